"""The main job, examples/mnist_mlp.py: what runs in it, what it prints and leaves behind."""

from __future__ import annotations

import functools
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygrad_ish as tg
from tinygrad_ish import datasets, kernels, nn
from tinygrad_ish.kernels import Backend, cpu, reference
from tinygrad_ish.kernels.cpu import _tasks
from tinygrad_ish.kernels.cpu._jit import kernels_of

ROOT = Path(__file__).parent.parent
EXAMPLE = str(ROOT / "examples" / "mnist_mlp.py")
IN_NUMBA = ("linear", "linear_backward", "softmax_cross_entropy", "adam_step")


class Spy(Backend):
    """The Numba backend, counting the calls of each kernel by the module that it is in."""

    def __init__(self) -> None:
        super().__init__("numba", "cpu", "numpy", "tinygrad_ish.kernels.cpu")
        self.calls: Counter[tuple[str, str]] = Counter()

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        if name not in reference.__all__:
            return found

        @functools.wraps(found)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls[name, found.__module__] += 1
            return found(*args, **kwargs)

        setattr(self, name, counted)
        return counted


def run_here(monkeypatch: pytest.MonkeyPatch, out: Path, *options: str) -> None:
    """Run the example in this process, with its folder on the path as Python would put it."""
    monkeypatch.setattr(sys, "argv", [EXAMPLE, "--out", str(out), *options])
    monkeypatch.syspath_prepend(str(Path(EXAMPLE).parent))
    runpy.run_path(EXAMPLE, run_name="__main__")


def test_the_main_job_runs_in_numba(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spy = Spy()
    monkeypatch.setitem(kernels.BACKENDS, "numba", spy)
    for name in IN_NUMBA:  # a kernel that falls back to the reference would fail here
        monkeypatch.setattr(reference, name, lambda *a, name=name, **k: pytest.fail(name))
    native: list[list[str]] = []  # the tasks of each replayed step
    run = _tasks.Plan.run

    def counted(plan: Any) -> None:
        native.append([call.task.name for call in plan.calls])
        run(plan)

    monkeypatch.setattr(_tasks.Plan, "run", counted)
    run_here(monkeypatch, tmp_path, "--epochs", "1", "--hidden", "16")
    steps, recorded = -(-7204 // 64), 2  # a whole batch, and the smaller one at the end
    in_numba = {name: n for (name, home), n in spy.calls.items() if ".kernels.cpu." in home}
    assert in_numba["linear_backward"] > 2 * recorded  # besides the gradient that is exported
    assert in_numba["adam_step"] == recorded
    assert in_numba["softmax_cross_entropy"] > recorded
    assert in_numba["linear"] > 2 * recorded
    assert len(native) == steps - recorded
    for tasks in native:
        assert tasks.count("gemm._product") == 5
        assert {"losses._cross_entropy_rows", "optimizers._adam_chunk"} <= set(tasks)
    for name in IN_NUMBA:
        compiled = kernels_of(getattr(cpu, name))
        assert any(np.dtype("float32") in k.compiled for k in compiled), f"{name} ran no kernel"
    check_what_was_left(tmp_path, capsys.readouterr().out)


def check_what_was_left(out: Path, printed: str) -> None:
    assert "784-16-10 network, 7204 images to learn from, 800 to validate on, 1996" in printed
    assert "test accuracy (10k subset): " in printed
    assert "confusion (row: what it is, column: what it was taken for)" in printed
    for name in ("curves.png", "predictions.png", "seven.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    weights = tg.load(out / "weights.msgpack")
    assert {name: t.shape for name, t in weights.items()} == {
        "1.weight": (16, 784), "1.bias": (16,), "3.weight": (10, 16), "3.bias": (10,),
    }  # fmt: skip
    check_the_program(out, weights)
    check_what_is_next(out, printed)


def check_the_program(out: Path, weights: dict[str, tg.Tensor]) -> None:
    """It takes raw pixels, and answers as the network does."""
    program = tg.load_program(out / "digits.msgpack")
    assert program.labels == list("0123456789")
    assert program.metadata["image"] == "mnist" and program.metadata["data"] == "10k subset"
    assert 0.5 < program.metadata["test accuracy"] <= 1
    test = datasets.MNIST(ROOT / "data" / "mnist10k", train=False)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))
    model.load_state_dict(weights)
    pixels = (test.data[:7].float() / 255 - 0.1307) / 0.3081
    expected = model(pixels).softmax(1).detach().numpy()
    np.testing.assert_array_equal(program(test.data[:7]), expected)
    right = program(test.data).argmax(1) == test.targets.numpy()
    assert right.mean() == pytest.approx(program.metadata["test accuracy"])


def check_what_is_next(out: Path, printed: str) -> None:
    """The command that the run ends with gives an answer."""
    *_, last = printed.rstrip().splitlines()
    command = shlex.split(last.removeprefix("next: "))
    assert command[1:4] == ["-m", "tinygrad_ish", "predict"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path.cwd(), check=True)
    name, *bars = done.stdout.splitlines()
    assert name == str(out / "seven.png") and not done.stderr
    assert sorted(line.split()[0] for line in bars) == list("0123456789")


def test_a_run_repeats_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for folder in ("a", "b"):
        options = ("--epochs", "1", "--hidden", "8", "--augment", "--batch-size", "256")
        run_here(monkeypatch, tmp_path / folder, *options)
        found.append(tg.load(tmp_path / folder / "weights.msgpack"))
    for name, t in found[0].items():
        assert np.array_equal(t.numpy(), found[1][name].numpy()), name


def test_without_matplotlib_the_pictures_are_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run_here(monkeypatch, tmp_path, "--epochs", "1", "--hidden", "8", "--batch-size", "256")
    assert "matplotlib is not installed: pip install -e '.[examples]'" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["digits.msgpack", "weights.msgpack"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "{file}/runs"], "--out {file}/runs cannot be written"),
        (["--fashion", "{folder}"], "train-images-idx3-ubyte"),
        (["--device", "cuda"], "backend 'cupy' cannot run here"),
        (["--batch-size", "0"], "must be an int of 1 or more, got 0"),
        (["--epochs", "-3"], "must be an int of 1 or more, got -3"),
        (["--seed", "9" * 30], "must be an int from 0 to 2**63 - 1"),
        (["--device", "cuda", "--backend", "numpy"], "numpy does not run on --device cuda"),
        (["--lr", "0"], "must be a number above 0, got 0"),
        (["--lr", "nan"], "must be a number above 0, got nan"),
        (["--seed", "-1"], "must be an int from 0 to 2**63 - 1, got -1"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    if options == ["--device", "cuda"] and kernels.why_missing("cupy") is None:
        pytest.skip("this machine has a GPU")
    (tmp_path / "file").touch()
    damaged = tmp_path / "folder"
    damaged.mkdir()
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (damaged / name).write_bytes(b"no idx file")
    places = {"file": tmp_path / "file", "folder": damaged}
    with pytest.raises(SystemExit) as stopped:
        run_here(monkeypatch, tmp_path / "out", *(o.format(**places) for o in options))
    assert message.format(**places) in f"{stopped.value}{capsys.readouterr().err}"


def test_the_full_set_falls_back_to_the_bundled_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", ("http://127.0.0.1:9/",))  # nobody is there
    options = ("--full", str(tmp_path / "mnist"), "--epochs", "1", "--batch-size", "256")
    run_here(monkeypatch, tmp_path / "out", *options)
    printed = capsys.readouterr()
    assert "could not be downloaded; tried http://127.0.0.1:9/" in printed.err
    assert "Going on with the bundled digits." in printed.err
    assert "test accuracy (10k subset)" in printed.out


def test_without_an_install_two_lines_mend_it() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", EXAMPLE, "--epochs", "1"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == [
        "  python3 -m venv .venv && .venv/bin/python -m pip install -e '.[examples]'",
        f"  .venv/bin/python {EXAMPLE} --epochs 1",
    ]


def test_ctrl_c_leaves_the_weights_so_far(tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLE, "--out", str(tmp_path), "--epochs", "10000"]
    run = subprocess.Popen(
        [*command, "--hidden", "8"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stderr is not None
    while "epoch  2/10000" not in run.stderr.readline():
        assert run.poll() is None
    time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    printed, _ = run.communicate(timeout=60)
    assert run.returncode == 0
    assert "keeping the weights so far" in printed
    assert "test accuracy (10k subset)" in printed
    assert tg.load(tmp_path / "weights.msgpack")["3.bias"].shape == (10,)
    assert tg.load_program(tmp_path / "digits.msgpack").outputs[0].shape == (None, 10)
