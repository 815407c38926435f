"""The command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tinygrad_ish as tg
from tinygrad_ish.__main__ import main


def test_info_names_versions_backends_and_the_cache(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for word in (f"tinygrad_ish {tg.__version__}", "numpy", "numba", "cores", "vector units",
                 "backends", "cupy", "compiled kernels", "folder"):  # fmt: skip
        assert word in printed
    reason = tg.kernels.why_missing("cupy")
    assert reason is None or reason in printed


def test_info_says_why_kernels_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "tinygrad_ish", "info"],
        env={**os.environ, "TINYGRAD_ISH_CACHE": str(tmp_path / "file" / "cache")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "cannot keep compiled kernels" in done.stdout
    assert "Set TINYGRAD_ISH_CACHE to a folder of your own" in done.stdout


def test_inspect_shows_what_is_in_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "weights.msgpack"
    tg.save({"fc": tg.ones(2, 3)}, path, {"epochs": 3})
    assert main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    for word in ("epochs: 3", "fc", "float32", "1 tensors, 6 parameters"):
        assert word in printed


def test_inspect_of_damaged_and_missing_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "weights.msgpack"
    tg.save({"fc": tg.ones(2, 3)}, path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["inspect", str(path)]) == 1
    assert "BAD" in capsys.readouterr().out
    path.write_bytes(content[:30])
    assert main(["inspect", str(path)]) == 2
    assert main(["inspect", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["nope"], ["inspect"]])
def test_a_wrong_command_line_shows_the_usage(
    capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert "usage: tinygrad-ish" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough() -> None:
    """As in ``tinygrad-ish info | head -0``: no traceback."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tinygrad_ish", "info"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 0
