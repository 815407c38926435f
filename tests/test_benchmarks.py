"""The benchmarks run, with NumPy for their only peer, and know every kernel."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import (
    gpu_peers,
    gpu_steps,
    inference,
    kernels,
    limits,
    models,
    peers,
    report,
    scaling,
    startup,
    train_step,
)
from benchmarks.cases import CASES
from benchmarks.children import Child, ChildError
from scripts import test_gpu as gpu_script
from tests import backends
from tests.cuda import shim
from tinygrad_ish.kernels import get_backend, reference
from tinygrad_ish.kernels.cpu import lowering

SMALL = models.Model((6, 5, 3), 4, "adam", 1e-2)


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    monkeypatch.setattr(limits, "REPEATS", 1)


def written(tmp_path: Path, name: str) -> Any:
    return json.loads((tmp_path / f"{name}.json").read_text())


def test_every_kernel_has_a_row_and_no_row_is_left_over() -> None:
    missing = set(reference.__all__) - set(CASES)
    assert not missing, f"add a row to CASES in benchmarks/cases.py for {sorted(missing)}"
    assert not set(CASES) - set(reference.__all__)


@pytest.mark.parametrize("name", CASES)
def test_the_arguments_of_a_row_fit_its_kernel(name: str) -> None:
    case = CASES[name]
    args = case.make(np.random.default_rng(0), case.sizes[0])
    assert kernels.compare(get_backend("numpy"), name, case, args) is None
    result = getattr(reference, name)(*args, **case.kwargs)
    assert kernels.moved(name, args, result) >= 0


@pytest.mark.parametrize("name", CASES)
def test_a_plan_gives_the_bits_of_the_kernel(name: str) -> None:
    """plan_of compares before it gives the call; what has no plan is known here."""
    case = CASES[name]
    args = case.make(np.random.default_rng(0), case.sizes[0])
    run = kernels.plan_of(name, case, args)
    assert (run is not None) == (name in lowering.CALLS)
    if run is not None:
        run()


def test_a_wrong_kernel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = get_backend("numpy")
    monkeypatch.setattr(backend, "relu", lambda x, out=None: reference.relu(x) * 1.01)
    args = CASES["relu"].make(np.random.default_rng(0), (64,))
    assert str(kernels.compare(backend, "relu", CASES["relu"], args)).startswith("off by 0.0")


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("name", ["tinygrad_ish", "torch", "jax.jit", "autograd"])
def test_peers_take_the_same_steps(name: str, optimizer: str) -> None:
    if name in ("jax.jit", "autograd"):
        pytest.importorskip(peers.PEERS[name].module, reason="a peer of the extra [bench]")
    if name == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    model = SMALL.with_optimizer(optimizer)
    peer = peers.PEERS[name](model, models.first_weights(model), peers.PEERS[name].options[0])
    inputs, labels = models.samples(model)
    found = [peer.value(peer.step(peer.put(inputs[i]), peer.put(labels[i]))) for i in range(20)]
    assert train_step.differ(found, train_step.expected_losses(model)) is None


def test_train_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(train_step, "BLOCK_SECONDS", 1e-3)
    options = ["--quick", "--model", "64-64-10", "--peers", "tinygrad_ish,numpy by hand"]
    assert train_step.main(options) == 0
    (result,) = written(tmp_path, "train_step")["results"]
    assert set(result["contenders"]) == {"tinygrad_ish", "numpy by hand"}
    assert all(len(c["rounds"]) == 3 for c in result["contenders"].values())
    assert (tmp_path / "train_step.png").exists()


def test_a_contender_with_other_losses_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [loss + 0.01 for loss in train_step.expected_losses(models.MODELS[3])]
    monkeypatch.setattr(train_step, "expected_losses", lambda model: wrong)
    options = ["--quick", "--model", "64-64-10", "--peers", "numpy by hand"]
    assert train_step.main(options) == 1
    assert "computed something else than NumPy: numpy by hand" in capsys.readouterr().err


def test_kernels(tmp_path: Path) -> None:
    assert kernels.main(["--quick", "--only", "numpy", "--kernel", "relu"]) == 0
    (result,) = written(tmp_path, "kernels")["results"]
    assert result["us"]["numpy"]["median"] > 0
    assert result["bytes"] == 8000


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (inference, ["--quick", "--peers", "numpy"]),
        (scaling, ["--quick", "--peers", "numpy by hand", "--axis", "batch"]),
        (startup, ["--quick", "--peers", "numpy by hand"]),
    ],
)
def test_the_others_run(
    module: Any, options: Sequence[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(inference, "TURN_SECONDS", 1e-3)
    monkeypatch.setattr(startup, "IMPORTS", ("numpy", "tinygrad_ish"))
    assert module.main(options) == 0
    assert written(tmp_path, module.__name__.removeprefix("benchmarks."))["machine"]["cpu"]


@pytest.mark.parametrize("module", [train_step, kernels, inference, startup, scaling])
def test_a_name_that_is_not_there_is_refused(
    module: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    option = "--kernel" if module is kernels else "--peers"
    with pytest.raises(SystemExit):
        module.main([option, "nobody"])
    assert "nobody" in capsys.readouterr().err


def test_a_model_counts_its_work() -> None:
    model = models.MODELS[0]
    assert model.parameters == 101_770
    assert model.flops() == 2 * 64 * (2 * 784 * 128 + 3 * 128 * 10)
    assert model.optimizer_bytes() == 24 * model.parameters
    assert model.with_optimizer("sgd").optimizer_bytes() == 16 * model.parameters


def test_the_exponent_of_a_power_is_found() -> None:
    assert scaling.exponent([1, 2, 4], [3.0, 3 * 2**1.5, 3 * 4**1.5]) == pytest.approx(1.5)


def test_the_machine_is_measured() -> None:
    assert 0.1 < limits.peak(1) < 1e5
    assert 0.1 < limits.bandwidth(100_000, 1) < 1e5


def test_a_child_that_fails_says_why() -> None:
    child = Child(math.sqrt, -1.0, environment={})
    with pytest.raises(ChildError, match="ValueError"):
        child.end()
    child.close()


# --- the GPU's, on the stand-in for one ----------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = [sys.executable, "-m", "tests.cuda.run_on_stand_in"]


def on_stand_in(test: Any) -> Any:
    """A test of what is for a GPU, which takes long on what stands in for one."""
    asked = pytest.mark.skipif(not backends.STAND_IN, reason="make test-gpu-shim runs it")
    able = pytest.mark.skipif(shim.why_missing() is not None, reason=str(shim.why_missing()))
    return pytest.mark.cuda(asked(able(test)))


def run_on_stand_in(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*STAND_IN, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def bench_gpu(folder: Path, *parts: str) -> str:
    options = [option for part in parts for option in ("--part", part)]
    done = run_on_stand_in("benchmarks.gpu", "--sizes", "tiny", "--out", str(folder), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@on_stand_in
def test_every_gpu_kernel_is_compared_and_clocked(tmp_path: Path) -> None:
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    from benchmarks import gpu_kernels

    out = bench_gpu(tmp_path, "facts", "kernels", "adam")
    assert "torch did not run" in out and ("sees no GPU" in out or "not installed" in out)
    assert written(tmp_path, "gpu-facts")["gpu"] == "stand-in for a GPU"
    results = [r for p in ("kernels", "adam") for r in written(tmp_path, f"gpu-{p}")["results"]]
    assert {r["name"] for r in results} == {row.name for row in gpu_kernels.rows(tiny=True)}
    for r in results:
        assert r["error"] <= gpu_kernels.TOLERANCE[r["dtype"]], r["name"]
        assert r["us"]["median"] > 0 and r["bytes"] > 0, r["name"]
    assert "softmax_cross_entropy" in (tmp_path / "gpu-tables.md").read_text()


@on_stand_in
def test_the_other_parts_of_the_gpu_benchmark_run(tmp_path: Path) -> None:
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    bench_gpu(tmp_path, "gemm", "steps", "digits", "overheads")
    for found in written(tmp_path, "gpu-gemm"):
        assert all(t["median"] > 0 for t in found["us"].values()) and found["errors"]
    for result in written(tmp_path, "gpu-steps"):
        assert set(result["contenders"]) >= {"tinygrad_ish", "tinygrad_ish compiled"}
        assert not result["wrong"]
    digits = written(tmp_path, "gpu-digits")
    ours = [digits[name] for name in ("tinygrad_ish", "tinygrad_ish compiled")]
    assert ours[0]["last loss"] == ours[1]["last loss"] and ours[0]["median"] > 0
    assert len(written(tmp_path, "gpu-overheads")["launches"]) == 7


FAULTY = """
import os
from benchmarks import gpu, gpu_kernels

class Faulty(gpu_kernels.Bench):
    def __init__(self, *args):
        super().__init__(*args)
        exp = self.k.exp
        self.k.exp = lambda x, out=None: exp(x) * 1.01
        self.k.relu = lambda x, out=None: os._exit(3)

def main(argv):
    gpu_kernels.Bench, every = Faulty, gpu_kernels.rows
    gpu_kernels.rows = lambda tiny=False: every(tiny)[:4]
    return gpu.main(argv)
"""


@on_stand_in
def test_a_wrong_gpu_kernel_is_told_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = ("--sizes", "tiny", "--out", str(tmp_path), "--part", "kernels")
    done = run_on_stand_in("faulty", *options)
    assert done.returncode == 1
    assert "wrong: exp 1024 float32: off by 0.01" in done.stderr
    assert "wrong: relu 1024 float32: its process ended without a word" in done.stderr
    results = written(tmp_path, "gpu-kernels")["results"]
    assert [("us" in r) for r in results] == [True, False, False, True]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pytorch_of_the_gpu_takes_the_same_steps_on_a_cpu(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.setattr(gpu_peers._Torch, "where", "cpu")
    before = torch.get_float32_matmul_precision()
    try:
        peer = gpu_peers.TorchEager(SMALL, models.first_weights(SMALL), precision)
        inputs, labels = models.samples(SMALL)
        steps = [peer.step(peer.put(inputs[i]), peer.put(labels[i])) for i in range(20)]
        found = [peer.value(step) for step in steps]
    finally:
        torch.set_default_device(None)
        torch.set_float32_matmul_precision(before)
    right = gpu_steps.expected(SMALL)
    assert gpu_steps.differ(found, right, gpu_steps.TOLERANCE[precision]) is None
    assert gpu_steps.differ([x * 1.1 for x in found], right, 3e-2)


# --- the script behind make test-gpu -----------------------------------------------------------


@on_stand_in
def test_every_cuda_kernel_runs_for_the_sanitizer() -> None:
    options = ("--dtype", "float32", "--skip", "gemm_wgmma")
    done = run_on_stand_in("scripts.every_kernel", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 calls wrong" in done.stdout and "never started" not in done.stdout


@on_stand_in
def test_the_masks_are_compared() -> None:
    other = "seed, seeds = tg.manual_seed, [1, 2]\ntg.manual_seed = lambda n: seed(seeds.pop())\n"
    for draws, status in (("", 0), (other, 1)):
        code = f"import tests.cuda.run_on_stand_in, tinygrad_ish as tg\n{draws}{gpu_script.MASKS}"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr
        assert ("the masks are the CPU's" if not status else "differ") in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("says", "status", "outcome"),
    [("ERROR SUMMARY: 0 errors", 0, "ok"), ("ERROR SUMMARY: 2 errors", 86, "FAILED"),
     ("nothing", 0, "FAILED")],
)  # fmt: skip
def test_the_sanitizers_word_counts(
    says: str, status: int, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "compute-sanitizer"
    fake.write_text(f"#!/bin/sh\necho '========= {says}'\nexit {status}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert gpu_script.sanitized("memcheck")[0] == outcome
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(gpu_script, "SANITIZERS", ())
    assert gpu_script.sanitized("memcheck")[0] == "skipped"


def test_a_command_that_takes_too_long_is_ended() -> None:
    status, _ = gpu_script.run([sys.executable, "-c", "import time; time.sleep(60)"], 0.3)
    assert status == 124


def test_what_fails_does_not_stop_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> tuple[str, str]:
        raise OSError("no such program")

    stages = {"one": missing, "two": lambda: ("ok", "fine"), "three": lambda: ("skipped", "why")}
    monkeypatch.setattr(gpu_script, "STAGES", stages)
    assert gpu_script.main([]) == 1
    out = capsys.readouterr().out
    assert "FAILED" in out and "fine" in out and "why" in out
    assert gpu_script.main(["--stage", "two"]) == 0
