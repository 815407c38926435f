"""tg.export and load_program: the same answers without the class, at any batch; refusals."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygrad_ish as tg
from tinygrad_ish import nn
from tinygrad_ish.deploy import runtime
from tinygrad_ish.deploy.export import record
from tinygrad_ish.deploy.graph import ProgramError
from tinygrad_ish.nn import functional as F

from .backends import BACKENDS

BATCHES = (1, 2, 3, 17, 130)
DIGITS = list("0123456789")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    tg.set_default_device(request.param)
    yield request.param
    tg.set_default_device("cpu")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "p.msgpack"


def mlp() -> nn.Sequential:
    tg.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10)
    )


def scaled(pixels: tg.Tensor) -> tg.Tensor:
    return (pixels.float() / 255 - 0.1307) / 0.3081


def images(n: int) -> tg.Tensor:
    return tg.tensor(np.random.default_rng(n).integers(0, 256, (n, 28, 28)).astype("u1"))


def results_of(model: Any, *inputs: tg.Tensor) -> list[np.ndarray]:
    with tg.no_grad():
        out = model(*inputs)
    several = out.values() if isinstance(out, dict) else out if isinstance(out, tuple) else (out,)
    return [t.cpu().numpy() for t in several]


def assert_same(model: Any, path: Path, make: Callable[[int], tuple[tg.Tensor, ...]]) -> Any:
    """Exported from 4 rows, the program gives what the model gives, bit for bit, at any batch."""
    tg.export(model, make(4), path)
    program = tg.load_program(path)
    if isinstance(model, nn.Module):
        model.eval()
    for n in BATCHES:
        for _ in range(2):  # recorded, then replayed
            got = program(*make(n))
            got = got if isinstance(got, tuple) else (got,)
            for a, b in zip(got, results_of(model, *make(n)), strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b, strict=True)
    return program


# --- what can be exported ----------------------------------------------------------------------


def test_a_classifier_with_all_that_goes_with_it(backend: str, path: Path) -> None:
    model = mlp()
    tg.export(
        model, images(8), path, preprocess=scaled, postprocess="softmax", labels=DIGITS, top_k=3,
        metadata={"accuracy": 0.9, "data": "digits"},
    )  # fmt: skip
    assert model.training and model[3].training
    program = tg.load_program(path)
    assert [tuple(s) for s in program.inputs] == [("input", np.uint8, (None, 28, 28))]
    assert [tuple(s) for s in program.outputs] == [("output", np.float32, (None, 10))]
    assert program.metadata == {"accuracy": 0.9, "data": "digits"}
    assert program.labels == DIGITS
    model.eval()
    for n in BATCHES:
        expected = results_of(lambda x: model(scaled(x)).softmax(-1), images(n))[0]
        np.testing.assert_array_equal(program(images(n).cpu().numpy()), expected)
    (first, *_), row = program.predict(images(3)), program(images(3))[0]
    assert [label for label, _ in first] == [str(k) for k in np.argsort(-row)[:3]]
    assert [p for _, p in first] == [float(row[int(label)]) for label, _ in first]
    lines = str(program).splitlines()
    assert lines[0] == "program(input uint8[batch, 28, 28]):"
    assert any("linear(x=%5, w=1.weight, b=1.bias, activation='relu')" in s for s in lines)
    assert lines[-1] == "    return output"


class Two(nn.Module):
    """Shared weights, two inputs, two outputs, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 6)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.LayerNorm(12)

    def forward(self, left: tg.Tensor, right: tg.Tensor) -> dict[str, tg.Tensor]:
        a, b = (F.gelu(self.encode(x)) for x in (left, right))
        both = self.norm(self.drop(tg.cat([a, b], 1)))
        return {"joined": both, "distance": ((a - b) ** 2).mean(1)}


def pairs(n: int) -> tuple[tg.Tensor, ...]:
    rng = np.random.default_rng(n)
    return tuple(tg.tensor(rng.normal(size=(n, 6)).astype("f4")) for _ in range(2))


def test_two_inputs_two_outputs_shared_weights(backend: str, path: Path) -> None:
    program = assert_same(Two(), path, pairs)
    assert [s.name for s in program.inputs] == ["left", "right"]
    assert [s.name for s in program.outputs] == ["joined", "distance"]
    weights = [program.graph.values[k].name for k in program.graph.constants]
    assert weights.count("encode.weight") == 1


def filled(x: tg.Tensor) -> tg.Tensor:
    y = x.clone()
    y[:] = x[:, :1]
    return y


FORWARDS: dict[str, Callable[[Any], Any]] = {
    "shape of the batch": lambda x: x.reshape(x.shape[0] * 2, 6).reshape(len(x), 2, 6).sum(1),
    "neighbours": lambda x: x[1:] - x[:-1] if len(x) > 1 else x[1:] - x[:0],
    "zeros": lambda x: tg.cat([x, tg.zeros(len(x), 3)], 1),
    "no columns": lambda x: tg.cat([x, tg.zeros(len(x), 0)], 1),
    "constant": lambda x: x * tg.tensor([1.0, 2.0] * 6) + 1,
    "mean over the batch": lambda x: x - x.mean(0),
    "choice": lambda x: tg.where(x > 0, x, x.exp() - 1).clamp(-0.5, 1),
    "best": lambda x: (x.argmax(1), x.max(1).values, x.amin(1)),
    "halves": lambda x: x[:, ::2] * x[:, 1::2],
    "columns": lambda x: x.T.contiguous().T @ tg.ones(12, 2),
    "own memory": lambda x: x.clone().mul_(2).add_(1),
    "input itself": lambda x: (x, x.reshape(-1, 12), x),
    "whole again": lambda x: filled(x),
    "a NumPy int": lambda x: x[:, : np.int64(3)],
    "expand": lambda x: x.unsqueeze(1).expand(-1, 3, -1).reshape(-1, 12),
    "masked": lambda x: (x * (x > 0).float()).softmax(1).log(),
}  # fmt: skip


@pytest.mark.parametrize("name", FORWARDS)
def test_functions_of_tensors(backend: str, path: Path, name: str) -> None:
    assert_same(
        FORWARDS[name],
        path,
        lambda n: (tg.tensor(np.random.default_rng(n).normal(size=(n, 12)).astype("f4")),),
    )


def test_integers_and_a_scalar(backend: str, path: Path) -> None:
    table = tg.randn(20, 4)

    def forward(words: tg.Tensor, temperature: tg.Tensor) -> tg.Tensor:
        return (
            table.index_select(0, words.reshape(-1)).reshape(*words.shape, 4) / temperature
        ).mean(1)

    program = assert_same(
        forward, path, lambda n: (tg.arange(n * 5).reshape(n, 5) % 20, tg.tensor(0.5))
    )
    assert program.inputs[1].shape == ()
    if backend != "cupy":  # a look at the data would wait for the GPU
        with pytest.raises(ValueError, match="20"):
            program(np.full((1, 5), 20), np.float32(1))


def test_a_class_of_a_notebook_in_a_fresh_process(path: Path) -> None:
    """Exported by one process, run by another that does not have the class."""
    export = """
        import numpy as np, tinygrad_ish as tg
        from tests.test_export import Two, pairs
        class Mine(Two): pass
        model = Mine()
        tg.export(model, pairs(4), PATH)
        model.eval()
        with tg.no_grad():
            out = model(*pairs(7))
        np.savez(PATH + ".npz", joined=out["joined"].numpy(), distance=out["distance"].numpy())
    """
    run = """
        import numpy as np, sys, tinygrad_ish as tg
        rng = np.random.default_rng(7)
        given = [rng.normal(size=(7, 6)).astype("f4") for _ in range(2)]
        joined, distance = tg.load_program(PATH)(*given)
        expected = np.load(PATH + ".npz")
        assert (joined == expected["joined"]).all() and (distance == expected["distance"]).all()
        assert not any(name.startswith("tests") for name in sys.modules)
        print("same")
    """
    root = Path(__file__).resolve().parents[1]
    for code in (export, run):
        text = f"PATH = {str(path)!r}\n" + textwrap.dedent(code)
        done = subprocess.run(
            [sys.executable, "-c", text], capture_output=True, text=True, cwd=root, check=False
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout == "same\n"


def test_gradients_for_explanations(backend: str, path: Path) -> None:
    model = mlp()
    tg.export(model, images(8), path, preprocess=scaled, postprocess="softmax", gradient=True)
    assert all(p.requires_grad for p in model.parameters())
    program = tg.load_program(path)
    model.eval()
    for n in (1, 5):
        prepared = program.prepare(images(n))
        np.testing.assert_array_equal(prepared, results_of(scaled, images(n))[0])
        weight = np.eye(10, dtype="f4")[np.arange(n) % 10]
        x = tg.tensor(prepared, requires_grad=True)
        model(x).backward(tg.tensor(weight))
        assert x.grad is not None
        np.testing.assert_array_equal(
            program.gradient(prepared, weight=weight), x.grad.cpu().numpy()
        )


def test_gradients_that_there_are_not(path: Path) -> None:
    tg.export(mlp(), images(2).float(), path)
    with pytest.raises(ProgramError, match="export it with gradient=True"):
        tg.load_program(path).gradient(images(1).float(), weight=np.ones((1, 10), "f4"))
    with pytest.raises(ProgramError, match="integers have no gradient"):
        tg.export(lambda x: x.float().exp(), images(2), path, gradient=True)
    with pytest.raises(ProgramError, match="a row for each input"):
        tg.export(lambda x: x.sum(), images(2).float(), path, gradient=True)
    with pytest.raises(ProgramError, match="does not depend on b"):
        tg.export(lambda a, b: (a * 2, b), pairs(2), path, gradient=True)
    with pytest.raises(ProgramError, match="does not depend on the inputs, or through integers"):
        tg.export(lambda x: x.argmax(1), images(2).float(), path, gradient=True)
    linear = nn.Linear(6, 2)
    with pytest.raises(ProgramError, match="the gradient of a tensor from outside is asked for"):
        tg.export(lambda a: linear(a), tg.ones(2, 6), path, gradient=True)
    assert linear.weight.grad is None


def test_an_array_is_an_example_for_a_model_on_another_device(path: Path) -> None:
    tg.set_default_device("numpy")
    model, x = nn.Linear(6, 2), np.ones((2, 6), "f4")
    tg.set_default_device("numba")
    tg.export(model, x, path)
    np.testing.assert_array_equal(
        tg.load_program(path, "numpy")(x), results_of(model, tg.tensor(x, device="numpy"))[0]
    )


def test_the_gradient_takes_the_names_that_were_given(path: Path) -> None:
    tg.export(mlp(), images(2).float(), path, inputs=["pixels"], gradient=True)
    graph = tg.load_program(path).gradient_graph
    assert graph is not None
    assert [graph.values[k].name for k in graph.inputs] == ["pixels", "weight"]
    assert [graph.values[k].name for k in graph.outputs] == ["pixels.grad"]


@pytest.mark.parametrize("rows", [3, 300])
def test_answers_own_their_memory(backend: str, path: Path, rows: int) -> None:
    constant = tg.ones(6)
    tg.export(
        lambda x: (x[:, 1:4], constant.reshape(2, 3), x.expand(2, -1, -1)), tg.ones(2, 6), path
    )
    program, x = tg.load_program(path), np.ones((rows, 6), "f4")
    for _ in range(2):
        for answer in program(x):
            answer += 1
    assert (x == 1).all()
    assert all((answer == 1).all() for answer in program(x))


def test_a_reshape_at_the_end_is_no_node(path: Path) -> None:
    model = nn.Linear(6, 3)
    graph = record(model, lambda x: model(x).reshape(-1, 3), [tg.ones(2, 6)])
    assert [n.kernel for n in graph.nodes] == ["linear"]
    assert graph.values[graph.outputs[0]].name == "output"


def test_inside_of_a_recording(backend: str, path: Path) -> None:
    """No recording waits for another one of its own thread."""
    x = np.ones((2, 6), "f4")
    tg.export(lambda x: x * 2, x, path)
    program = tg.load_program(path)

    def calls(y: tg.Tensor) -> tg.Tensor:
        return y + tg.tensor(program(x))

    with pytest.raises(ProgramError, match=r"a program is called or exported .*test_export.py:\d+"):
        tg.export(calls, x, path)

    def exports(y: tg.Tensor) -> tg.Tensor:
        tg.export(lambda x: x * 2, x, path)
        return y

    for step in (calls, exports):
        with pytest.raises(ValueError, match=r"a program is called or exported .*export.py:\d+"):
            tg.compile(step)(tg.tensor(x))
    assert program(x).sum() == 24


def test_so_many_batch_sizes_are_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the oldest given up, batches of ever other sizes would be recorded at each call."""
    monkeypatch.setattr(runtime, "KEPT", 3)
    tg.export(lambda x: x * 2, tg.ones(2, 6), path)
    program = tg.load_program(path)
    for n in (1, 2, 3, 4, 5, 4):
        assert program(np.ones((n, 6), "f4")).sum() == 12 * n
    assert set(program._runner("graph")._kept) == {1, 2, 3}


def test_many_kernels_are_not_recorded(backend: str, path: Path) -> None:
    """The time to record grows with the square of their number."""

    def forward(x: tg.Tensor) -> tg.Tensor:
        for _ in range(300):
            x = x + 1
        return x

    tg.export(forward, tg.ones(2, 6), path)
    program = tg.load_program(path)
    assert (program(np.ones((2, 6), "f4")) == 301).all()
    assert not program._runner("graph")._kept


def test_jit_is_another_door(path: Path) -> None:
    model, x = mlp().eval(), images(3).float()
    tg.jit.trace(model, x).save(path)
    loaded = tg.jit.load(path).eval()
    with tg.no_grad():
        assert tg.equal(loaded(x), model(x))
    scripted = tg.jit.script(model)
    with pytest.raises(ProgramError, match=r"call the scripted model once before save\(\)"):
        scripted.save(path)
    scripted(x)
    tg.jit.save(scripted, path)
    assert tg.equal(tg.jit.load(path)(x), loaded(x))
    tg.jit.trace(Two(), pairs(2)).save(path)
    assert [type(t) for t in tg.jit.load(path)(*pairs(2))] == [tg.Tensor, tg.Tensor]


# --- what cannot -------------------------------------------------------------------------------


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", tg.zeros(6))

    def forward(self, x: tg.Tensor) -> tg.Tensor:
        self.seen.add_(x.sum(0))  # type: ignore[operator]
        return x - self.seen


def slices(x: tg.Tensor) -> tg.Tensor:
    y = x * 2
    y[:, 0] = x[:, 1]
    return y + 1


def rows_of_zeros(x: tg.Tensor) -> tg.Tensor:
    y = tg.zeros(3, 6)
    y[0] = x[0]
    return y


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "if": (lambda x: x if x.sum() > 0 else -x, r"test_export.py:\d+"),
    "item": (lambda x: x * x.max().item(), r"item\(\) reads .*test_export.py:\d+"),
    "a number from the batch": (
        lambda x: x.sum(0) * (1 / len(x)),
        r"b of mul is 0.5 for 2 rows and 0.33.* for 3: a number that depends on the batch size",
    ),
    "calls that depend on the batch": (
        lambda x: x.exp() if len(x) > 2 else x.log(),
        "what is computed depends on the batch size: log for 2 rows, exp for another number",
    ),
    "more calls for more rows": (
        lambda x: tg.stack([x[i].exp() for i in range(len(x))]), "depends on the batch size",
    ),
    "a square": (lambda x: (x @ x.T).reshape(-1, 1) * 1.5, r"dimension of 4, 9, 25 for batches"),
    "arange": (lambda x: x * tg.arange(len(x)).reshape(-1, 1), "constant0 is made from the batch"),
    "random": (lambda x: x + tg.rand_like(x), "random numbers"),
    "dropout": (lambda x: F.dropout(x, 0.5, training=True), "random numbers"),
    "its input": (lambda x: x.add_(1), r"writes into its input; work on x.clone\(\)"),
    "a part": (slices, "writes into a part of a tensor; put the parts together with tg.cat"),
    "a part of zeros": (rows_of_zeros, "writes into a part of a tensor; put the parts together"),
    "a loss": (lambda x: F.mse_loss(x, x * 2), "the kernel mse_loss cannot be part of a program"),
    "one row is different": (lambda x: x.squeeze() * 2, r"\[1, 6\] at 1, the model \[6\]"),
    "no tensor": (lambda x: (x, 3), "a model gives tensors, .* output1 is a int"),
    "nothing": (lambda x: (), "gives no output"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(backend: str, path: Path, name: str) -> None:
    forward, message = REFUSED[name]
    x = tg.tensor(np.random.default_rng(0).normal(size=(4, 6)).astype("f4"))
    with pytest.raises(ProgramError, match=message):
        tg.export(forward, x, path)
    assert not path.exists()
    assert tg.rand(2).shape == (2,)  # nothing is left recording


def test_a_buffer_that_counts(backend: str, path: Path) -> None:
    with pytest.raises(ProgramError, match=r"writes into a parameter, a buffer .*export.py:\d+"):
        tg.export(Counting(), tg.ones(4, 6), path)


def test_settings_that_make_no_sense(path: Path) -> None:
    x = tg.ones(2, 6)
    for settings, message in (
        ({"labels": ["a", "b"]}, r"labels: 2 names are for an array of \[batch, 2\]"),
        ({"features": ["a"]}, "features: 1 names"),
        ({"top_k": 2}, "top_k: expected an int from 1 to the number of labels, 0; got 2"),
        ({"inputs": ["a", "b"]}, r"inputs: expected 1 different names, got \['a', 'b'\]"),
        ({"outputs": ["a", "b"]}, "outputs: expected 1 different names"),
        ({"labels": DIGITS[:6], "top_k": True}, "top_k: expected an int .*, 6; got True"),
        ({"inputs": ["a\x1b[2J"]}, "inputs: expected 1 different names"),
        ({"postprocess": "logsoftmax"}, "one of softmax, sigmoid; got 'logsoftmax'"),
    ):
        with pytest.raises(ProgramError, match=message):
            tg.export(lambda x: x * 2, x, path, **settings)  # type: ignore[arg-type]
    for forward, message in (
        (lambda x: x > 0, r"labels: they go with probabilities, but output is bool\[batch, 6\]"),
        (lambda x: {1: x * 2, "1": x}, r"outputs: expected 2 different names, got \['1', '1'\]"),
        (lambda x: {"\n": x * 2}, "outputs: expected 1 different names"),
    ):
        with pytest.raises(ProgramError, match=message):
            tg.export(forward, x, path, labels=DIGITS[:6])
    assert not path.exists()
    for example in ((), tg.ones(0, 3), (tg.ones(2, 3), tg.ones(3, 3)), tg.tensor(1.0)):
        with pytest.raises(ProgramError, match=r"^example: "):
            tg.export(lambda *x: x[0] * 2, example, path)


def test_a_failed_export_leaves_the_model_as_it_was() -> None:
    model = mlp()
    model[3].eval()
    with pytest.raises(ProgramError):
        record(model, lambda x: model(x).sum().item(), [tg.ones(2, 784)])
    assert model.training and not model[3].training


# --- calling -----------------------------------------------------------------------------------


def test_inputs_are_checked(backend: str, path: Path) -> None:
    tg.export(Two(), pairs(3), path)
    program, (a, b) = tg.load_program(path), pairs(3)
    expected = program(a, b)[0]
    for given in (
        (a.tolist(), b.cpu().numpy()),
        (a.double(), b),
        (a.cpu().numpy(), b.cpu().numpy()[::1]),
    ):
        np.testing.assert_array_equal(program(*given)[0], expected)
    for given, message in (
        ((a,), r"expected 2 inputs \(left, right\), got 1"),
        ((a, b[:2]), "the same number of rows: left has 3, right has 2"),
        ((a, b.reshape(6, 3)), r"input right: expected shape \[batch, 6\], got \[6, 3\]"),
        ((a, np.array([["x"] * 6] * 3)), "input right: expected float32, got <U1"),
        ((a, [[1.0], [1.0, 2.0]]), "input right: not an array"),
        ((a.cpu().numpy() * 1j, b), "input left: expected float32, got complex"),
    ):
        with pytest.raises(ProgramError, match=message):
            program(*given)
    tg.export(mlp(), images(2), path, preprocess=scaled)
    program = tg.load_program(path)
    with pytest.raises(ProgramError, match="expected uint8, 0 to 255; got values from 0 to 256"):
        program(np.full((1, 28, 28), 256) * (np.arange(28) > 3))
    with pytest.raises(ProgramError, match="expected uint8, got float64"):
        program(np.zeros((1, 28, 28)))
    assert program(np.zeros((2, 28, 28), int)).shape == (2, 10)


def test_no_rows(backend: str, path: Path) -> None:
    tg.export(mlp(), images(2), path, preprocess=scaled, postprocess="softmax", labels=DIGITS)
    program = tg.load_program(path)
    assert program(images(0).cpu().numpy()).shape == (0, 10)
    assert program.predict(images(0)) == []


def test_rows_do_not_depend_on_their_neighbours(path: Path) -> None:
    tg.set_default_device("numba")
    tg.export(mlp(), images(2), path, preprocess=scaled)
    program, x = tg.load_program(path), images(300).cpu().numpy()
    whole = program(x)
    for n in (1, 2, 5, 64, 129):
        np.testing.assert_array_equal(program(x[:n]), whole[:n])


def test_numpy_alone(path: Path) -> None:
    """A process in which Numba cannot be imported."""
    tg.set_default_device("numba")
    tg.export(mlp(), images(2), path, preprocess=scaled)
    np.save(str(path) + ".npy", tg.load_program(path)(images(5)))
    code = f"""
        import sys
        for name in ("numba", "llvmlite"):
            sys.modules[name] = None
        import numpy as np, tinygrad_ish as tg
        program = tg.load_program({str(path)!r})
        assert program.backend.name == "numpy"
        x = np.random.default_rng(5).integers(0, 256, (5, 28, 28)).astype("u1")
        expected = np.load({str(path) + ".npy"!r})
        np.testing.assert_allclose(program(x), expected, rtol=1e-5, atol=1e-6)
        print("same")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, check=False, env={**os.environ},
    )  # fmt: skip
    assert done.stdout == "same\n", done.stderr
