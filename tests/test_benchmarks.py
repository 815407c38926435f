"""The benchmarks run, with NumPy for their only peer, and know every kernel."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import (
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
