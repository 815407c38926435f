"""What is wrong with a CUDA install is said in words."""

from __future__ import annotations

from typing import Any

import pytest

from tinygrad_ish.__main__ import main
from tinygrad_ish.kernels.gpu import _blas, _diagnosis


class Driver:
    """A driver's library for this CUDA version, whose start ends with this code."""

    def __init__(self, version: int, code: int = 0) -> None:
        self.version, self.code = version, code

    def cuDriverGetVersion(self, place: Any) -> int:
        place._obj.value = self.version
        return 0

    def cuInit(self, flags: int) -> int:
        return self.code


def machine(
    monkeypatch: pytest.MonkeyPatch,
    driver: Driver | None,
    *wheels: str,
    nvrtc: str | None = None,
    cublas: str | None = None,
) -> list[str]:
    """The problems of a machine with this driver and these CuPys."""

    def library() -> Any:
        if driver is None:
            raise OSError("libcuda.so.1: cannot open shared object file")
        return driver

    monkeypatch.setattr(_diagnosis, "library", library)
    monkeypatch.setattr(_diagnosis, "wheels", lambda: [(name, "14.2.0") for name in wheels])
    monkeypatch.setattr(_diagnosis._nvrtc, "why_missing", lambda: nvrtc)
    monkeypatch.setattr(_diagnosis, "_without_cublas", lambda: cublas)
    return _diagnosis.problems()


def test_nothing_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine(monkeypatch, Driver(13000), "cupy-cuda13x") == []


@pytest.mark.parametrize(
    "driver, wheels, words",
    [
        (None, ["cupy-cuda13x"], ["no NVIDIA driver", "nvidia-smi", "--gpus all"]),
        (Driver(13000), [], ["CuPy is not installed: pip install 'tinygrad_ish[gpu]'"]),
        (Driver(12040), ["cupy-cuda13x"], ["for CUDA 13", "CUDA 12.4", "pip install cupy-cuda12x"]),
        (Driver(13000), ["cupy-cuda12x", "cupy-cuda13x"], ["several CuPys", "pip uninstall"]),
        (Driver(13000, 100), ["cupy-cuda13x"], ["sees no GPU", "CUDA_VISIBLE_DEVICES is 7"]),
        (Driver(13000, 803), ["cupy-cuda13x"], ["restart the machine"]),
        (Driver(13000, 46), ["cupy-cuda13x"], ["cuInit gives error 46"]),
    ],
)  # fmt: skip
def test_what_is_wrong_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, driver: Driver | None, wheels: list[str], words: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    [problem] = machine(monkeypatch, driver, *wheels)
    assert all(word in problem for word in words), problem


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = machine(
        monkeypatch, Driver(13000), "cupy-cuda13x", nvrtc="no NVRTC", cublas="no cuBLAS"
    )
    assert problems == ["no NVRTC", "no cuBLAS"]


def test_cublas_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise _blas.BlasError("cuBLAS was not found")

    monkeypatch.setattr(_blas, "load", load)
    assert _diagnosis._without_cublas() == "cuBLAS was not found"


def test_info_prints_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, Driver(12040), "cupy-cuda13x")
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "CUDA 12.4" in printed and "cupy-cuda13x 14.2.0" in printed
    assert "to mend, 1" in printed and "update the driver" in printed


def test_info_does_not_complain_where_nothing_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, None)
    assert main(["info"]) == 0
    assert "to mend" not in capsys.readouterr().out


def test_the_wheels_are_found() -> None:
    assert all(name.startswith("cupy") for name, _ in _diagnosis.wheels())
