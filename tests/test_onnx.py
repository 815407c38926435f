"""ONNX files against our kernels: each kernel by its row, models at several batches, and what the
exporter finds wrong."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ish as tg
from tinygrad_ish import nn, transforms
from tinygrad_ish.deploy import rules
from tinygrad_ish.deploy.graph import Dim, Graph, Node, ProgramError, Ref, Value
from tinygrad_ish.kernels import reference

from .test_kernels import CASES

MISSING = "onnx or onnxruntime is not installed: pip install -e '.[parity]'"
onnx = pytest.importorskip("onnx", reason=MISSING)
onnxruntime = pytest.importorskip("onnxruntime", reason=MISSING)

VERSION = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
NAN, INF = float("nan"), float("inf")
TOLERANCE = {"float16": 1e-2, "float32": 2e-5, "float64": 1e-12}
ALL = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
WHOLE = ("uint8", "int8", "int16", "int32", "int64")
FLOATS = ("float16", "float32", "float64")


def answer(model: Any, *inputs: np.ndarray) -> list[np.ndarray]:
    """What onnxruntime makes of a file."""
    content = model if isinstance(model, (str, bytes)) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


def call(kernel: str, *args: Any, **kwargs: Any) -> tuple[Graph, list[np.ndarray], np.ndarray]:
    """A kernel call as a graph, its inputs, and the reference's answer."""
    function = getattr(reference, kernel)
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    graph, inputs = Graph(), []

    def argument(a: Any) -> Any:
        if isinstance(a, np.ndarray):
            graph.inputs.append(len(graph.values))
            graph.values.append(Value(a.dtype, a.shape))
            inputs.append(a)
            return Ref(graph.inputs[-1])
        return tuple(map(argument, a)) if isinstance(a, tuple) else a

    given = {name: argument(a) for name, a in bound.arguments.items() if name != "out"}
    results = function(*args, **kwargs)
    results = results if isinstance(results, tuple) else (results,)
    graph.outputs = [len(graph.values)]
    numbers = tuple(range(len(graph.values), len(graph.values) + len(results)))
    graph.values += [Value(r.dtype, r.shape) for r in results]
    graph.nodes = [Node(kernel, given, numbers, "model.py:1")]
    rules.check(graph)
    return graph, inputs, results[0]


def check(kernel: str, *args: Any, **kwargs: Any) -> None:
    graph, inputs, expected = call(kernel, *args, **kwargs)
    (found,) = answer(tg.onnx.to_onnx(graph), *inputs)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    least = TOLERANCE.get(expected.dtype.name, 0)
    if kernel in ("gelu", "layer_norm"):  # Erf of float32, ε as float32
        least = max(least, 1e-6)
    np.testing.assert_allclose(found, expected, rtol=least, atol=least, err_msg=f"{kernel} {args}")


def array(values: Any, dtype: str) -> np.ndarray:
    return np.array(values).astype(dtype)


# --- each kernel -------------------------------------------------------------------------------


def test_every_kernel_of_a_forward_has_a_row() -> None:
    assert set(tg.onnx.ROWS) == set(rules.FORWARD)


@pytest.mark.parametrize("kernel", sorted(rules.FORWARD))
def test_a_kernel_agrees_with_the_reference(kernel: str) -> None:
    """On the cases that hold the backends to the reference."""
    for i, case in enumerate(CASES[kernel]):
        for dtype in case.dtypes:
            args = case.make(np.random.default_rng(i), dtype)
            old = kernel == "layer_norm" and VERSION < (1, 27)
            if old and (args[0].shape[1] == 1 or (args[0] > 1e3).any()):
                continue  # it refused rows of one element, and lost the digits of such rows
            check(kernel, *args, **case.kwargs)


@pytest.mark.parametrize("dtype", WHOLE)
def test_quotients_of_integers_round_down(dtype: str) -> None:
    low = 0 if dtype == "uint8" else -7
    a, b = np.meshgrid(np.arange(low, 8), [n for n in range(max(low, -3), 4) if n])
    extreme = array([[np.iinfo(dtype).min, np.iinfo(dtype).max]], dtype)
    for kernel in ("floor_div", "remainder"):
        check(kernel, a.astype(dtype), b.astype(dtype))
        check(kernel, a.astype(dtype), 3)
        check(kernel, 7, b.astype(dtype))
        check(kernel, extreme, 3)


@pytest.mark.parametrize("dtype", FLOATS)
def test_quotients_of_floats_round_down(dtype: str) -> None:
    numbers = [-7.5, -6.0, -1.0, -0.25, 0.0, 0.25, 1.0, 6.0, 7.5, INF, -INF, NAN]
    a, b = (x.astype(dtype) for x in np.meshgrid(numbers, numbers))
    with np.errstate(all="ignore"):
        check("remainder", a, b)
        check("floor_div", a, b)
        check("floor_div", a, -0.1)


@pytest.mark.parametrize("dtype", ("bool", *WHOLE))
def test_bits(dtype: str) -> None:
    a, b = array([[0, 1, 12, 127]], dtype), array([[0], [1], [10]], dtype)
    check("bitwise_not", a)
    for kernel in ("bitwise_and", "bitwise_or"):
        check(kernel, a, b)
        check(kernel, a, dtype == "bool" or 6)


@pytest.mark.parametrize("dtype", WHOLE)
def test_arithmetic_of_integers_wraps(dtype: str) -> None:
    info = np.iinfo(dtype)
    a = array([info.min, info.max, 3, 100], dtype)
    b = array([info.max, info.max, 2, 100], dtype)
    for kernel in ("add", "sub", "mul", "maximum", "minimum", "matmul"):
        check(kernel, a, b)
    for kernel in ("neg", "abs", "sign", "relu"):
        check(kernel, a)
    for exponent in (0, 1, 2, 5, 13):
        check("pow", a, exponent)
    check("pow", array([0, 1, 2, 3], dtype), array([0, 9, 6, 4], dtype))
    check("pow", 2, array([0, 1, 6], dtype))


@pytest.mark.parametrize("dtype", ALL)
def test_comparisons_and_choices_in_every_dtype(dtype: str) -> None:
    a, b = array([[0, 1, 2]], dtype), array([[0], [1], [3]], dtype)
    for kernel in ("eq", "ne", "lt", "le", "gt", "ge"):
        check(kernel, a, b)
        check(kernel, True if dtype == "bool" else 1, b)
    check("where", a == b, a, b)
    for kernel in ("add", "mul", "maximum", "minimum"):
        check(kernel, a, b)
        check(kernel, a, dtype == "bool" or 1)
    check("abs", a)
    if dtype == "float16":
        check("minimum", a, 1e30)


def test_a_comparison_with_a_number_that_the_array_cannot_hold() -> None:
    for number in (300, -1, 2**40):
        check("lt", np.array([0, 255], np.uint8), number)


@pytest.mark.parametrize("dtype", ALL)
def test_reductions_in_every_dtype(dtype: str) -> None:
    x = array([[0, 1, 1], [1, 0, 0], [0, 0, 0]], dtype)
    for kernel in ("sum", "amax", "amin", "any", "all"):
        for axis in (None, 0, 1, (0, 1), ()):
            check(kernel, x, axis, axis == 1)
        check(kernel, array(1, dtype), None)
    for kernel in ("argmax", "argmin"):  # the first of equal ones
        for axis, keepdims in ((None, False), (None, True), (0, False), (1, True)):
            check(kernel, x, axis, keepdims)
        check(kernel, array(1, dtype), None)


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_and_infinities(dtype: str) -> None:
    x = array([[1, NAN, 2, NAN], [INF, 3, NAN, 4], [NAN, -INF, INF, 0], [1, 2, 3, 4]], dtype)
    for kernel in ("relu", "sign", "abs", "tanh", "sigmoid", "exp", "gelu"):
        check(kernel, x)
    for kernel in ("maximum", "minimum", "eq", "ne", "lt", "ge"):
        check(kernel, x, x[::-1].copy())
        check(kernel, x, 0.0)
    for kernel in ("amax", "amin", "argmax", "argmin", "any", "all", "sum", "mean"):
        for axis in (None, 0, 1):
            check(kernel, x, axis)
    for axis in (0, 1, -1):
        with np.errstate(all="ignore"):
            check("softmax", x, axis)
            check("log_softmax", x, axis)
    check("linear", x, np.eye(4, dtype=dtype), None, "relu")


@pytest.mark.parametrize("source", ALL)
@pytest.mark.parametrize("target", ALL)
def test_casts(source: str, target: str) -> None:
    """Floats cut towards zero; whatever is not 0 is True."""
    low, high = (0, 1) if source == "bool" else (0, 100) if "uint8" in (source, target) else (-7, 7)
    x = array(np.linspace(low, high, 9), source)
    check("cast", x, np.dtype(target))
    if source in FLOATS and target == "bool":
        check("cast", array([NAN, 0.1, -0.0, INF], source), np.dtype(target))


@pytest.mark.parametrize("dtype", ALL)
def test_movement_in_every_dtype(dtype: str) -> None:
    x = array(np.arange(24).reshape(2, 3, 4) % 2, dtype)
    index = np.array([[[0, -1, 1, 0]] * 2] * 2)
    check("reshape", x, (4, 6))
    check("reshape", x, (2, 3, 4))
    check("reshape", x[:0], (0, 5, 0))
    check("permute", x, (2, 0, 1))
    check("permute", x[0, 0, 0, ...], ())
    check("expand", x, (5, 2, 3, 4))
    check("expand", x[:, :1], (2, 0, 4))
    check("cat", (x, x[:, :1]), 1)
    check("cat", (x, x[..., :0]), -1)
    check("copy", x)
    check("index_select", x, np.array([[1, -1], [0, 1]]), 1)
    check("index_select", x, np.array(2), 2)
    check("gather", x, index, 1)
    check("gather", x[0, 0], np.array([3, 0, -2, 1, 1]), 0)


@pytest.mark.parametrize(
    "shapes",
    [((4,), (4,)), ((4,), (4, 3)), ((2, 4), (4,)), ((5, 2, 4), (4,)), ((3,), (5, 3, 2)),
     ((5, 2, 3), (3, 4)), ((2, 1, 2, 3), (5, 3, 2)), ((2, 0), (0, 3))],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "uint8"])
def test_matmul_of_any_axes(shapes: Any, dtype: str) -> None:
    rng = np.random.default_rng(0)
    check("matmul", *(rng.integers(0, 4, s).astype(dtype) for s in shapes))


@pytest.mark.parametrize("dtype", FLOATS)
def test_sums_to_a_shape(dtype: str) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(dtype)
    for shape in ((2, 3, 4), (3, 4), (1, 4), (3, 1), (2, 1, 4), (1, 1, 1), (1,), ()):
        check("sum_to", x, shape)


parts = st.one_of(
    st.integers(-3, 2),
    st.none(),
    st.builds(slice, *[st.none() | st.integers(-6, 6)] * 2, st.none() | st.integers(1, 4)),
)


@settings(max_examples=80)
@given(st.lists(parts, max_size=4), st.none() | st.integers(0, 4))
def test_any_index(index: list[Any], dots: int | None) -> None:
    if dots is not None:
        index.insert(dots, Ellipsis)
    while sum(p is not None and p is not Ellipsis for p in index) > 3:
        index.pop(next(i for i, p in enumerate(index) if p is not None and p is not Ellipsis))
    check("getitem", np.arange(3 * 4 * 5).reshape(3, 4, 5), tuple(index))


def test_layer_norm_with_and_without_weights() -> None:
    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(5, 6)), rng.normal(size=6), rng.normal(size=6)
    for weight in (None, w):
        for bias in (None, b):
            check("layer_norm", x, weight, bias, 0.01)


# --- the file ----------------------------------------------------------------------------------


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


class Residual(nn.Module):
    """GELU, LayerNorm and a residual connection over a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.up = nn.Linear(12, 24)
        self.down = nn.Linear(24, 12)

    def forward(self, x: tg.Tensor) -> tg.Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Pair(nn.Module):
    """Two inputs, two outputs, a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(5, 4)

    def forward(self, left: tg.Tensor, right: tg.Tensor) -> Any:
        a, b = self.shared(left), self.shared(right).tanh()
        return {"likeness": (a * b).sum(1).sigmoid(), "both": tg.cat([a, b], 1)}


def agrees(model: Any, path: Path, make: Any, **pipeline: Any) -> None:
    """The file of a model, and the model itself, at several batches."""
    assert tg.onnx.export(model, make(4), path, **pipeline)
    before = pipeline.get("preprocess") or (lambda x: x)
    after = {"softmax": lambda y: y.softmax(-1)}.get(pipeline.get("postprocess"), lambda y: y)
    for batch in (1, 2, 7, 64):
        rows = make(batch)
        rows = rows if isinstance(rows, tuple) else (rows,)
        tensors = [tg.tensor(x) for x in rows]
        with tg.no_grad():
            expected = model(before(tensors[0]), *tensors[1:])
        several = expected.values() if isinstance(expected, dict) else [after(expected)]
        for found, tensor in zip(answer(str(path), *rows), several, strict=True):
            assert found.shape == tensor.shape
            scale = max(1.0, tensor.abs().max().item())
            np.testing.assert_allclose(found, tensor.numpy(), rtol=0, atol=1e-5 * scale)


def test_the_digits_example_with_its_preprocessing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)
    agrees(
        nn.Sequential(*layers).eval(),
        tmp_path / "digits.onnx",
        lambda n: rng.integers(0, 256, (n, 28, 28)).astype(np.uint8),
        preprocess=transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(0.1307, 0.3081)]
        ),
        postprocess="softmax",
    )
    loaded = onnx.load(tmp_path / "digits.onnx")
    assert [i.name for i in loaded.graph.input] == ["input"]
    weights = {t.name: tuple(t.dims) for t in loaded.graph.initializer}
    assert weights["1.weight"] == (128, 784) and weights["3.bias"] == (10,)


def test_the_program_of_the_penguins_example(tmp_path: Path) -> None:
    example = Path(__file__).parent.parent / "examples" / "penguins.py"
    command = [sys.executable, str(example), "--epochs", "1", "--out", str(tmp_path)]
    subprocess.run(command, check=True, stdout=subprocess.PIPE)
    program = tg.load_program(tmp_path / "penguins.msgpack")
    model = tg.onnx.to_onnx(program.graph, program.metadata)
    assert [o.name for o in model.graph.output] == ["body_mass_g"]
    for batch in (1, 2, 7, 64):
        x = np.random.default_rng(batch).uniform(1, 200, (batch, 6)).astype(np.float32)
        (found,) = answer(model, x)
        np.testing.assert_allclose(found, program(x), rtol=1e-5)


def test_gelu_layer_norm_and_a_residual(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    agrees(
        Residual().eval(),
        tmp_path / "m.onnx",
        lambda n: rng.normal(size=(n, 5, 12)).astype(np.float32),
    )


def test_two_inputs_and_two_outputs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    agrees(
        Pair().eval(),
        tmp_path / "m.onnx",
        lambda n: tuple(rng.normal(size=(n, 5)).astype(np.float32) for _ in range(2)),
    )
    loaded = onnx.load(tmp_path / "m.onnx")
    assert [i.name for i in loaded.graph.input] == ["left", "right"]
    assert [o.name for o in loaded.graph.output] == ["likeness", "both"]


SHAPES = [
    lambda x: x.reshape(-1, 2),
    lambda x: x.reshape(len(x) * 2, 3),
    lambda x: x.reshape(2, len(x), 3),
    lambda x: x.reshape(len(x), 3, 2).permute(2, 1, 0),
    lambda x: x.permute(1, 0).reshape(-1),
    lambda x: x - x.mean(0, keepdim=True).expand(len(x), 6),
    lambda x: tg.cat([x, x * 2, x[:1]], 0)[1:],
    lambda x: x[:, None].expand(len(x), len(x), 6).sum(1),
    lambda x: tg.stack([x[-1], x[0]]),
    lambda x: x.T @ x,
    lambda x: tg.cat([x, x])[len(x) :],
    lambda x: tg.cat([x, x])[len(x) - 1],
    lambda x: x[: len(x), 1:-1:2],
    lambda x: tg.zeros(len(x), 3) + x[:, :3],
    lambda x: (x[0] + x.amax(0)).expand(len(x), 6),
    lambda x: x[0].reshape(1, 6).expand(len(x), 6) + x,
    lambda x: tg.cat([x, tg.ones(2, 6)]).std(0),
    lambda x: nn.functional.layer_norm(tg.cat([x, -x]).T, (2 * len(x),)),
]


@pytest.mark.parametrize("function", SHAPES, ids=range(len(SHAPES)))
def test_shapes_that_depend_on_the_batch(function: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    agrees(function, tmp_path / "m.onnx", lambda n: rng.normal(size=(n, 6)).astype(np.float32))


def test_the_batch_is_a_symbol_and_takes_no_computing(tmp_path: Path) -> None:
    def model(x: tg.Tensor) -> Any:
        return x.reshape(-1, 2), tg.cat([x, x[:1]]), x[:, None, :].expand(len(x), 5, 6)

    tg.onnx.export(model, np.ones((2, 6), np.float32), tmp_path / "m.onnx")
    loaded = onnx.load(tmp_path / "m.onnx")
    shapes = [
        [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*loaded.graph.input, *loaded.graph.output)
    ]
    assert shapes == [["batch", 6], ["3*batch", 2], ["batch+1", 6], ["batch", 5, 6]]
    assert {n.op_type for n in loaded.graph.node} <= {
        "Reshape",
        "Concat",
        "Slice",
        "Expand",
        "Unsqueeze",
    }
    assert (loaded.ir_version, loaded.opset_import[0].version) == (8, 18)


def test_an_output_that_is_an_input_a_weight_or_given_twice(tmp_path: Path) -> None:
    weight = tg.tensor([[1.0, 2.0]])

    def model(x: tg.Tensor) -> Any:
        y = x + 1
        return x, y, y, weight.expand(len(x), 2)

    assert tg.onnx.export(model, np.ones((3, 2), np.float32), tmp_path / "m.onnx")
    x = np.array([[3.0, 4.0]], np.float32)
    found = answer(str(tmp_path / "m.onnx"), x)
    for a, b in zip(found, (x, x + 1, x + 1, [[1, 2]]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_graph_whose_output_is_its_input() -> None:
    value = Value(np.dtype("float32"), (Dim(1, 0),), "x")
    constant = np.array([1, 2], np.int64)
    graph = Graph([value, Value(constant.dtype, (2,), "c")], [0], [0, 0, 1], {1: constant})
    x = np.ones(3, np.float32)
    first, second, third = answer(tg.onnx.to_onnx(graph), x)
    np.testing.assert_array_equal([first, second], [x, x])
    np.testing.assert_array_equal(third, constant)


def test_names_that_clash_are_told_apart() -> None:
    values = [Value(np.dtype("float32"), (2,), n) for n in ("neg_0", "", "neg_0")]
    nodes = [Node("neg", {"x": Ref(0)}, (1,)), Node("neg", {"x": Ref(1)}, (2,))]
    x = np.array([1, 2], np.float32)
    (found,) = answer(tg.onnx.to_onnx(Graph(values, [0], [2], {}, nodes)), x)
    np.testing.assert_array_equal(found, x)


def test_metadata_lines_and_what_the_program_says_of_itself(tmp_path: Path) -> None:
    tg.onnx.export(
        dense(),
        np.ones((2, 6), np.float32),
        tmp_path / "m.onnx",
        inputs=["table"],
        outputs=["scores"],
        features=list("abcdef"),
        labels=["rot", "grün", "blau"],
        metadata={"accuracy": 0.5, "data": "colours"},
    )
    loaded = onnx.load(tmp_path / "m.onnx")
    props = {p.key: p.value for p in loaded.metadata_props}
    assert props == {
        "features": '["a", "b", "c", "d", "e", "f"]',
        "labels": '["rot", "grün", "blau"]',
        "accuracy": "0.5",
        "data": "colours",
    }
    assert loaded.producer_name == "tinygrad_ish" and loaded.producer_version == tg.__version__
    assert [n.op_type for n in loaded.graph.node] == ["Gemm", "Relu", "Gemm"]
    assert all("test_onnx.py:" in n.doc_string for n in loaded.graph.node)
    assert len({n.name for n in loaded.graph.node}) == 3


def test_weights_stay_as_they_are_in_memory() -> None:
    """Big-endian and non-contiguous arrays become little-endian rows."""
    w = np.arange(6, dtype=">f4").reshape(2, 3).T
    f4 = np.dtype("float32")
    graph = Graph(
        [Value(f4, (3, 2), "x"), Value(f4, (3, 2), "w"), Value(f4, (3, 2), "y")],
        [0],
        [2],
        {1: w},
        [Node("add", {"a": Ref(0), "b": Ref(1)}, (2,))],
    )
    (found,) = answer(tg.onnx.to_onnx(graph), np.zeros((3, 2), np.float32))
    np.testing.assert_array_equal(found, w)


# --- what goes wrong ---------------------------------------------------------------------------


def test_the_first_node_that_differs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is wrong by 0.01 % is found, and leaves the file that was there."""
    row = tg.onnx.ROWS["gelu"]

    def wrong(w: Any, result: Any, **args: Any) -> Any:
        return w.op("Mul", *w.computable(row(w, result, **args), 1.0001))

    path = tmp_path / "m.onnx"
    path.write_bytes(b"what was there")
    model, example = Residual(), np.random.default_rng(0).normal(size=(2, 12)).astype(np.float32)
    monkeypatch.setitem(tg.onnx.ROWS, "gelu", wrong)
    with pytest.raises(ProgramError, match=r"batch of 1,.*gelu_\d, gelu at test_onnx\.py:\d+: it"):
        tg.onnx.export(model, example, path)
    assert path.read_bytes() == b"what was there"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    monkeypatch.setitem(tg.onnx.ROWS, "gelu", row)
    assert tg.onnx.export(model, example, path)


def test_a_file_that_works_at_one_batch_only_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fixed(w: Any, result: Any, x: Any, shape: Any) -> Any:
        return w.op("Reshape", x, w.lengths([2, 3]))

    monkeypatch.setitem(tg.onnx.ROWS, "reshape", fixed)
    with pytest.raises(ProgramError, match=r"onnxruntime [\d.]+ cannot run the file"):
        tg.onnx.export(lambda x: x.reshape(-1, 3), np.ones((1, 6), np.float32), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_integers_must_be_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tg.onnx.ROWS, "argmax", tg.onnx.ROWS["argmin"])
    with pytest.raises(ProgramError, match=r"differs in 1 of 1 elements; the first .* argmax at"):
        tg.onnx.export(lambda x: x.argmax(1), np.array([[1.0, 2.0]]), tmp_path / "m.onnx")


def test_a_gradient_has_no_onnx_form() -> None:
    x = np.ones((2, 2), np.float32)
    graph, _, _ = call("relu_backward", x, x)
    with pytest.raises(ProgramError, match=r"relu_backward \(model\.py:1\) belongs to no forward"):
        tg.onnx.to_onnx(graph)


def test_more_weights_than_a_file_can_hold() -> None:
    big = np.broadcast_to(np.float32(0), (2**15, 2**14))
    graph = Graph([Value(big.dtype, big.shape, "w")], [], [0], {0: big})
    with pytest.raises(ProgramError, match=r"2\.0 GiB.*ends at 2 GiB; cast"):
        tg.onnx.to_onnx(graph)


def test_metadata_that_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="metadata: key: expected what JSON can hold, got bytes"):
        tg.onnx.export(dense(), np.ones((1, 6), np.float32), tmp_path / "m", metadata={"key": b""})


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_what_is_not_installed(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    path, x = tmp_path / "m.onnx", np.ones((2, 6), np.float32)
    if missing == "onnx":
        with pytest.raises(ImportError, match=r"pip install 'tinygrad_ish\[onnx\]'"):
            tg.onnx.export(dense(), x, path)
    else:
        assert tg.onnx.export(dense(), x, path) is False and path.exists()


def test_importing_tinygrad_ish_imports_no_onnx() -> None:
    code = (
        "import sys, tinygrad_ish; tinygrad_ish.onnx.export; "
        "print([m for m in ('onnx', 'onnxruntime', 'google.protobuf') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
