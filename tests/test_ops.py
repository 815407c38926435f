"""Every op: forward and gradient against PyTorch and against central differences, on every
backend, over broadcasting, strided, scalar and empty inputs. One row for each op."""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import tinygrad_ish as tg
from tinygrad_ish import ops
from tinygrad_ish.autograd import Function
from tinygrad_ish.ops import elementwise as E
from tinygrad_ish.ops import linalg as L
from tinygrad_ish.ops import losses, movement, normalization
from tinygrad_ish.ops import reductions as R

from .backends import BACKENDS

RAN: Counter[str] = Counter()  # op × backend × dtype × case, shown in the summary

NO_TORCH = "PyTorch is not installed: pip install -e '.[parity]'"
ANY, POSITIVE, OFF_ZERO, DISTINCT = "any", "positive", "off zero", "distinct"


@dataclass
class Row:
    """``call(T, *inputs)`` runs with T = tinygrad_ish and, unchanged, with T = torch."""

    op: type[Function]
    call: Any
    cases: list[tuple[Any, ...]]  # each: an input's shape, or an integer array, for each input
    domain: str = ANY
    torch_call: Any = None
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.op.__name__


UNARY = [((3, 4),), ((),), ((0, 3),), ((5,),), ((2, 3, 4),)]
BINARY = [
    ((3, 4), (3, 4)), ((3, 4), (4,)), ((2, 1, 4), (3, 1)), ((), (3,)), ((2, 3), ()), ((), ()),
    ((0, 4), (4,)), ((1, 3), (0, 3)), ((1,), (2, 3)),
]  # fmt: skip
MATRICES = [
    ((3, 4), (4, 5)), ((4,), (4,)), ((4,), (4, 3)), ((3, 4), (4,)), ((2, 3, 4), (4, 5)),
    ((2, 1, 3, 4), (5, 4, 2)), ((0, 4), (4, 2)), ((3, 0), (0, 2)), ((2, 3, 4), (4,)),
]  # fmt: skip
DIMS = [((3, 4),), ((2, 3, 4),), ((3, 1),)]
MASK = np.array([[1, 0, 1], [0, 0, 1]])
LABELS = np.array([2, 0, 1, -100, 2])
WEIGHT = (3,)


def F(T: Any) -> Any:
    return T.nn.functional


def dropped(x: Any) -> Any:
    tg.manual_seed(3)
    return F(tg).dropout(x, 0.3)


def setitem(T: Any, x: Any, value: Any) -> Any:
    y = x * 1
    y[1:, ::2] = value
    return y * y


ROWS = [
    Row(E.Add, lambda T, a, b: a + b, BINARY),
    Row(E.Add, lambda T, x: 2.5 + x + True, UNARY, name="Add number"),
    Row(E.Add, lambda T, a, b: T.add(a, b, alpha=3), BINARY, name="Add alpha"),
    Row(E.Sub, lambda T, a, b: a - b, BINARY),
    Row(E.Sub, lambda T, x: 2 - (x - 1.5), UNARY, name="Sub number"),
    Row(E.Mul, lambda T, a, b: a * b, BINARY),
    Row(E.Mul, lambda T, x: -3 * x * 0.5, UNARY, name="Mul number"),
    Row(E.Div, lambda T, a, b: a / b, BINARY, OFF_ZERO),
    Row(E.Div, lambda T, x: 2 / (x / 3), UNARY, OFF_ZERO, name="Div number"),
    Row(E.Remainder, lambda T, a, b: a % b, BINARY, DISTINCT),
    Row(E.Remainder, lambda T, x: x % 0.7, UNARY, DISTINCT, name="Remainder number"),
    Row(E.Pow, lambda T, a, b: a**b, BINARY, POSITIVE),
    Row(E.Pow, lambda T, x: x**3 + x**-1 + x**0, UNARY, OFF_ZERO, name="Pow number"),
    Row(E.Pow, lambda T, x: 2**x, UNARY, name="Pow of number"),
    Row(E.Maximum, lambda T, a, b: T.maximum(a, b), BINARY, DISTINCT),
    Row(E.Minimum, lambda T, a, b: T.minimum(a, b), BINARY, DISTINCT),
    Row(E.Where, lambda T, a, b: T.where(a > b, a * 2, b), BINARY, DISTINCT),
    Row(E.Where, lambda T, c, a, b: T.where(c > 0, a, b), [(MASK, (2, 3), (3,)), (MASK, (), (2, 1))], name="Where mask"),
    Row(E.Where, lambda T, x: x.clamp(-0.6, 0.6), UNARY, DISTINCT, name="Where clamp"),
    Row(E.Neg, lambda T, x: -x, UNARY),
    Row(E.Abs, lambda T, x: abs(x), UNARY, OFF_ZERO),
    Row(E.Sqrt, lambda T, x: T.sqrt(x), UNARY, POSITIVE),
    Row(E.Exp, lambda T, x: T.exp(x), UNARY),
    Row(E.Log, lambda T, x: T.log(x), UNARY, POSITIVE),
    Row(E.Sigmoid, lambda T, x: T.sigmoid(x), UNARY),
    Row(E.Tanh, lambda T, x: T.tanh(x), UNARY),
    Row(E.ReLU, lambda T, x: T.relu(x), UNARY, OFF_ZERO),
    Row(E.GELU, lambda T, x: F(T).gelu(x), UNARY),
    Row(E.GELU, lambda T, x: F(T).gelu(x, approximate="tanh"), UNARY, name="GELU tanh"),
    Row(E.Where, lambda T, x: F(T).leaky_relu(x) + F(T).leaky_relu(x, 0.3), UNARY, OFF_ZERO, name="Where leaky_relu"),
    Row(E.Dropout, lambda T, x: dropped(x), UNARY, torch_call=lambda T, x: x * T.from_numpy(dropped(tg.ones(x.shape, dtype=x.detach().numpy().dtype)).cpu().numpy())),
    Row(E.Clone, lambda T, x: x.clone(), UNARY),
    Row(E.Cast, lambda T, x: x.to(T.float64) * 2, UNARY),
    Row(R.Sum, lambda T, x: x.sum(), UNARY),
    Row(R.Sum, lambda T, x: x.sum(1) * x.sum(-2, keepdim=True).sum(), DIMS, name="Sum dim"),
    Row(R.Sum, lambda T, x: x.sum((0, -1)), [*DIMS, ((0, 3),)], name="Sum dims"),
    Row(R.Mean, lambda T, x: x.mean(), [c for c in UNARY if 0 not in c[0]]),
    Row(R.Mean, lambda T, x: x.mean(-1, keepdim=True), DIMS, name="Mean dim"),
    Row(R.Mean, lambda T, x: x.var(0) + x.std(), DIMS[:2], name="Mean var std"),
    Row(R.Amax, lambda T, x: x.amax(1), DIMS, DISTINCT),
    Row(R.Amax, lambda T, x: x.max(), DIMS, DISTINCT, name="Amax all"),
    Row(R.Amin, lambda T, x: x.amin((0, 1), keepdim=True), DIMS, DISTINCT),
    Row(R.Amin, lambda T, x: x.min(), DIMS, DISTINCT, name="Amin all"),
    Row(R.Softmax, lambda T, x: T.softmax(x, 0), [*UNARY[:3], ((2, 3, 4),)]),
    Row(R.LogSoftmax, lambda T, x: T.log_softmax(x, -1), UNARY),
    Row(movement.Reshape, lambda T, x: x.reshape(-1, 2) * 2, [((3, 4),), ((2, 3, 2),)]),
    Row(movement.Reshape, lambda T, x: T.flatten(x, 1), [((3, 2, 2),), ((0, 2, 3),)], name="Reshape flatten"),
    Row(movement.Reshape, lambda T, x: x.unsqueeze(1).squeeze(-1), UNARY[:1] + [((3, 1),)], name="Reshape squeeze"),
    Row(movement.Permute, lambda T, x: x.permute(2, 0, 1) * 2, [((2, 3, 4),), ((0, 2, 1),)]),
    Row(movement.Permute, lambda T, x: T.transpose(x, 0, -1), [((2, 3),), ((2, 3, 4),)], name="Permute transpose"),
    Row(movement.Expand, lambda T, x: x.expand(2, -1, 4), [((3, 1),), ((1, 4),)]),
    Row(movement.GetItem, lambda T, x: x[1:, ..., None, 0], [((3, 4),), ((2, 3, 4),)]),
    Row(movement.GetItem, lambda T, x: x[-1] * x[:, 1:3].sum(), [((3, 4),)], name="GetItem mixed"),
    Row(movement.SetItem, setitem, [((3, 4), (2, 2)), ((3, 4), ()), ((2, 4), (1, 2))]),
    Row(movement.Cat, lambda T, a, b: T.cat([a, b, a], 1), [((2, 3), (2, 1)), ((2, 0), (2, 2))]),
    Row(movement.Cat, lambda T, a, b: T.stack((a, b), -1), [((2, 3), (2, 3)), ((), ())], name="Cat stack"),
    Row(movement.IndexSelect, lambda T, x, i: x[i], [((4, 3), np.array([2, 0, 2])), ((4,), np.array([1]))]),
    Row(movement.IndexSelect, lambda T, x, i: T.index_select(x, 1, i), [((2, 4), np.array([3, 3]))], name="IndexSelect dim"),
    Row(movement.Gather, lambda T, x, i: T.gather(x, 1, i), [((2, 4), np.array([[0, 3, 3], [1, 1, 2]]))]),
    Row(movement.Gather, lambda T, x: x.max(1)[0] * x.min(0, keepdim=True)[0].sum(), DIMS[:1], DISTINCT, name="Gather max"),
    Row(L.MatMul, lambda T, a, b: a @ b, MATRICES),
    Row(L.Linear, lambda T, x, w, b: F(T).linear(x, w, b), [((5, 4), (3, 4), (3,)), ((4,), (3, 4), (3,)), ((2, 3, 4), (2, 4), (2,)), ((0, 4), (3, 4), (3,))]),
    Row(L.Linear, lambda T, x, w: F(T).linear(x, w), [((5, 4), (3, 4)), ((9, 33), (35, 33)), ((70, 5), (6, 5))], name="Linear no bias"),
    Row(L.Linear, lambda T, x, w, b: F(T).linear(x, w, b, activation="relu"), [((5, 4), (3, 4), (3,)), ((37, 19), (21, 19), (21,))], torch_call=lambda T, x, w, b: T.relu(F(T).linear(x, w, b)), name="Linear relu"),
    Row(losses.SoftmaxCrossEntropy, lambda T, x, y: F(T).cross_entropy(x, y), [((5, 3), LABELS), ((5, 3, 2), np.stack([LABELS, LABELS], 1)), ((3,), np.array(1))]),
    Row(losses.SoftmaxCrossEntropy, lambda T, x, y: F(T).cross_entropy(x, y, reduction="none", ignore_index=0), [((5, 3), LABELS.clip(0)), ((0, 3), LABELS[:0])], name="SoftmaxCrossEntropy none"),
    Row(losses.SoftmaxCrossEntropy, lambda T, x, y: F(T).cross_entropy(x, y, T.ones(3, dtype=x.dtype) * 0.5 + T.arange(3), label_smoothing=0.2), [((5, 3), LABELS)], name="SoftmaxCrossEntropy weight smoothing"),
    Row(losses.SoftmaxCrossEntropy, lambda T, x, y: F(T).cross_entropy(x, y, reduction="sum", label_smoothing=0.1), [((5, 3), LABELS), ((0, 3), LABELS[:0])], name="SoftmaxCrossEntropy sum"),
    Row(normalization.LayerNorm, lambda T, x, w, b: F(T).layer_norm(x, x.shape[-1:], w, b), [((5, 4), (4,), (4,)), ((2, 3, 5), (5,), (5,)), ((4,), (4,), (4,)), ((0, 4), (4,), (4,)), ((9, 7), (7,), (7,))]),
    Row(normalization.LayerNorm, lambda T, x, w, b: F(T).layer_norm(x, (3, 4), w, b, 0.1), [((2, 3, 4), (3, 4), (3, 4)), ((2, 1, 3, 4), (3, 4), (3, 4))], name="LayerNorm axes"),
    Row(normalization.LayerNorm, lambda T, x: F(T).layer_norm(x, x.shape[1:]) ** 2, [((3, 4),), ((2, 3, 4),)], name="LayerNorm plain"),
    Row(normalization.LayerNorm, lambda T, x, w: F(T).layer_norm(x, [4], w) ** 2, [((3, 4), (4,))], name="LayerNorm weight"),
    Row(losses.NLLLoss, lambda T, x, y: F(T).nll_loss(x, y), [((5, 3), LABELS), ((5, 3, 2), np.stack([LABELS, LABELS], 1)), ((3,), np.array(1))]),
    Row(losses.NLLLoss, lambda T, x, y: F(T).nll_loss(x, y, T.ones(3, dtype=x.dtype) * 0.5 + T.arange(3), ignore_index=0), [((5, 3), LABELS.clip(0))], name="NLLLoss weight"),
    Row(losses.NLLLoss, lambda T, x, y: F(T).nll_loss(T.log_softmax(x, 1), y, reduction="none"), [((5, 3), LABELS), ((0, 3), LABELS[:0])], name="NLLLoss none"),
    Row(losses.NLLLoss, lambda T, x, y: F(T).nll_loss(x, y, reduction="sum"), [((5, 3), LABELS)], name="NLLLoss sum"),
    Row(losses.BCELoss, lambda T, x: F(T).binary_cross_entropy(T.sigmoid(x), (x > 0).to(x.dtype)), [((3, 4),), ((),), ((7,),)], OFF_ZERO),
    Row(losses.BCELoss, lambda T, x: F(T).binary_cross_entropy(T.sigmoid(x), (x > 0).to(x.dtype) * 0.7, T.arange(4).to(x.dtype), reduction="none"), [((3, 4),), ((0, 4),)], OFF_ZERO, name="BCELoss weight"),
    Row(losses.BCELoss, lambda T, x: F(T).binary_cross_entropy(T.sigmoid(x), x.detach() * 0 + 0.3, reduction="sum"), [((3, 4),)], name="BCELoss sum"),
    Row(losses.BCEWithLogits, lambda T, x: F(T).binary_cross_entropy_with_logits(3 * x, (x > 0).to(x.dtype)), [((3, 4),), ((),), ((7,),)], OFF_ZERO),
    Row(losses.BCEWithLogits, lambda T, x: F(T).binary_cross_entropy_with_logits(x, x.detach() * 0 + 0.3, T.arange(4).to(x.dtype), reduction="none", pos_weight=T.ones(4, dtype=x.dtype) * 2.5), [((3, 4),), ((0, 4),)], name="BCEWithLogits weights"),
    Row(losses.BCEWithLogits, lambda T, x: F(T).binary_cross_entropy_with_logits(x, x.detach() * 0 + 0.3, pos_weight=T.ones(3, 1, dtype=x.dtype) * 0.5, reduction="sum"), [((3, 4),)], name="BCEWithLogits sum"),
    Row(E.Abs, lambda T, a, b: F(T).l1_loss(a, b) + F(T).l1_loss(a, b, reduction="sum") + F(T).l1_loss(a, b, reduction="none"), [((3, 4), (3, 4)), ((), ())], DISTINCT, name="Abs l1_loss"),
    Row(losses.MSELoss, lambda T, a, b: F(T).mse_loss(a, b), [((3, 4), (3, 4)), ((), ())]),
    Row(losses.MSELoss, lambda T, a, b: F(T).mse_loss(a, b, reduction="none"), [((3, 4), (3, 4)), ((0, 2), (0, 2))], name="MSELoss none"),
    Row(losses.MSELoss, lambda T, a, b: F(T).mse_loss(a, b, reduction="sum"), [((7,), (7,))], name="MSELoss sum"),
]  # fmt: skip


def draw(rng: np.random.Generator, shape: Any, domain: str, dtype: str) -> np.ndarray:
    """Values of the domain; DISTINCT ones lie at least 0.02 apart, so no kink is near."""
    if isinstance(shape, np.ndarray):
        return shape if shape.dtype == np.int64 else shape.astype(dtype)
    if domain == DISTINCT:
        n = int(np.prod(shape))
        start = rng.uniform(0.011, 0.019)
        return (start + 0.04 * (rng.permutation(n) - n // 2)).reshape(shape).astype(dtype)
    x = rng.uniform(0.3, 2.0, shape)
    if domain != POSITIVE:
        x *= rng.choice([-1.0, 1.0], shape)
    return np.asarray(x, dtype)


def strided(x: np.ndarray) -> np.ndarray:
    """The same values in memory with gaps and reversed axes."""
    if x.ndim == 0:
        return x
    room = np.zeros((*[2 * n for n in reversed(x.shape)],), x.dtype).T
    view = room[tuple(slice(None, None, 2) for _ in x.shape)]
    view[...] = x
    return view


def inputs_of(row: Row, case: tuple[Any, ...], dtype: str, layout: str) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    arrays = [draw(rng, shape, row.domain, dtype) for shape in case]
    if row.op is E.Remainder and len(arrays) > 1:
        arrays[1] = arrays[1] * 0 + arrays[1].dtype.type(0.7)
    return [strided(x) for x in arrays] if layout == "strided" else arrays


def leaves(arrays: list[np.ndarray], backend: str) -> list[tg.Tensor]:
    from tinygrad_ish.device import resolve

    k = resolve(backend)
    own = [np.array(x) if x.flags.c_contiguous else strided(x) for x in arrays]
    out = [tg.Tensor(k.asarray(x), k) for x in own]
    return [x.requires_grad_(x.is_floating_point()) for x in out]


def cases(row: Row) -> list[tuple[tuple[Any, ...], str]]:
    return [(case, layout) for case in row.cases for layout in ("contiguous", "strided")]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row).replace(" ", "_"))
def test_op_agrees_with_pytorch(row: Row, backend: str, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    tol = {"rtol": 2e-5, "atol": 2e-6} if dtype == "float32" else {"rtol": 1e-9, "atol": 1e-11}
    tg.set_default_device(backend)
    for case, layout in cases(row):
        arrays = inputs_of(row, case, dtype, layout)
        ours = leaves(arrays, backend)
        theirs = [torch.from_numpy(np.array(x)) for x in arrays]
        for t in theirs:
            t.requires_grad_(t.is_floating_point())
        y, z = row.call(tg, *ours), (row.torch_call or row.call)(torch, *theirs)
        assert y.shape == tuple(z.shape)
        assert y.dtype.name == str(z.dtype).removeprefix("torch.")
        np.testing.assert_allclose(y.detach().cpu().numpy(), z.detach().numpy(), **tol)
        g = np.asarray(np.random.default_rng(1).uniform(0.5, 1.5, y.shape), y.dtype)
        y.backward(tg.tensor(g, device=backend))
        z.backward(torch.from_numpy(g))
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if b.grad is not None:
                assert a.grad is not None and a.grad.shape == a.shape
                np.testing.assert_allclose(
                    a.grad.cpu().numpy(), b.grad.numpy(), **tol, err_msg=f"{case} input {i}"
                )
        RAN[backend] += 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row).replace(" ", "_"))
def test_gradient_agrees_with_central_differences(row: Row, backend: str) -> None:
    tg.set_default_device(backend)
    for case, layout in cases(row):
        inputs = leaves(inputs_of(row, case, "float64", layout), backend)
        assert tg.gradcheck(lambda *xs, row=row: row.call(tg, *xs), inputs)
        RAN[f"{backend} gradcheck"] += 1


def test_every_op_has_a_row() -> None:
    defined = set()
    for info in pkgutil.iter_modules(ops.__path__):
        module = importlib.import_module(f"{ops.__name__}.{info.name}")
        defined |= {
            c for c in vars(module).values()
            if isinstance(c, type) and issubclass(c, Function) and "forward" in dir(c)
        }  # fmt: skip
    abstract = {Function, R.Extremum}
    missing = defined - abstract - {row.op for row in ROWS}
    assert not missing, f"ops without a row in tests/test_ops.py: {missing}"


def test_the_table_catches_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    tg.set_default_device("numpy")
    right = E.Tanh.backward
    monkeypatch.setattr(E.Tanh, "backward", lambda ctx, g: right(ctx, g) * 1.0005)
    row = next(r for r in ROWS if r.op is E.Tanh)
    x = leaves(inputs_of(row, ((3, 4),), "float64", "contiguous"), "numpy")
    with pytest.raises(tg.GradientError, match=r"input 0 is wrong in 12 of 12 elements"):
        tg.gradcheck(lambda x: row.call(tg, x), x)


KINKS: list[tuple[str, Any, list[float]]] = [
    ("relu at 0", lambda T, x: T.relu(x), [-1.0, 0.0, 1.0]),
    ("abs at 0", lambda T, x: T.abs(x), [-1.0, 0.0, 1.0]),
    ("max of ties", lambda T, x: T.amax(x, 0), [2.0, 2.0, 1.0]),
    ("max along of ties", lambda T, x: T.max(x, 0)[0], [2.0, 2.0, 1.0]),
    ("maximum of ties", lambda T, x: T.maximum(x, 0 * x), [0.0, 1.0, -1.0]),
    ("clamp at its edges", lambda T, x: T.clamp(x, -1.0, 1.0), [-1.0, 1.0, 2.0]),
    ("pow 2 at 0", lambda T, x: x**2, [0.0, 1.0, -1.0]),
    ("pow 0 at 0", lambda T, x: x**0, [0.0, 1.0, -1.0]),
    ("sqrt at 0", lambda T, x: T.sqrt(x), [0.0, 1.0, 4.0]),
    ("softmax of huge", lambda T, x: T.softmax(x, 0), [1e30, -1e30, 1e30]),
    ("sigmoid of huge", lambda T, x: T.sigmoid(x), [1e30, -1e30, 100.0]),
    ("log of 0", lambda T, x: T.log(x), [0.0, 1.0, 2.0]),
    ("relu of nan and inf", lambda T, x: T.relu(x), [float("nan"), float("inf"), -float("inf")]),
    ("gelu", lambda T, x: T.nn.functional.gelu(x), [0.0, -0.0, 30.0, -30.0, 1e30, -1e30]),
    ("gelu tanh", lambda T, x: T.nn.functional.gelu(x, approximate="tanh"), [0.0, 30.0, -30.0, 1e4]),
    ("gelu of nan", lambda T, x: T.nn.functional.gelu(x), [float("nan"), 1.0]),
    ("leaky_relu", lambda T, x: T.nn.functional.leaky_relu(x), [0.0, -0.0, -1.0, float("nan"), float("inf")]),
    ("bce of sure answers", lambda T, x: T.nn.functional.binary_cross_entropy(x, 1 - x.detach()), [0.0, 1.0]),
    ("bce of right answers", lambda T, x: T.nn.functional.binary_cross_entropy(x, x.detach()), [0.0, 1.0]),
    ("bce of huge logits", lambda T, x: T.nn.functional.binary_cross_entropy_with_logits(x, (x > 9).to(x.dtype)), [1e30, -1e30, 9.0]),
    ("layer norm of equals", lambda T, x: T.nn.functional.layer_norm(x, (3,)), [2.0, 2.0, 2.0]),
    ("log_softmax of -inf", lambda T, x: T.log_softmax(x, 0), [-float("inf"), 1.0, 2.0]),
]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("call", "values"), [k[1:] for k in KINKS], ids=[k[0] for k in KINKS])
def test_conventions_at_kinks_and_extremes(backend: str, call: Any, values: list[float]) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    x = tg.tensor(values, requires_grad=True, device=backend)
    z = torch.tensor(values, requires_grad=True)
    ours, theirs = call(tg, x), call(torch, z)
    ours.backward(tg.ones_like(ours))
    theirs.backward(torch.ones_like(theirs))
    np.testing.assert_allclose(ours.detach().cpu().numpy(), theirs.detach().numpy(), rtol=1e-6)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.cpu().numpy(), z.grad.numpy(), rtol=1e-6)
