"""The tensor: creation, dtypes, shapes, indexing, writing, leaving, and what it says when it is
asked for the impossible. PyTorch and NumPy are the judges."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tinygrad_ish as tg
from tinygrad_ish import dtypes

from .backends import DEVICES

NO_TORCH = "PyTorch is not installed: pip install -e '.[parity]'"
NAMES = [d.name for d in dtypes.SUPPORTED]


@pytest.fixture(autouse=True)
def _numpy_backend() -> None:
    tg.set_default_device("numpy")


# --- expressions that mean the same in PyTorch ---------------------------------------------------


def names(T: Any) -> dict[str, Any]:
    """What the expressions below may use, made by either library."""
    return {
        "T": T,
        "np": np,
        "x": T.arange(24, dtype=T.float32).reshape(2, 3, 4) - 7.5,
        "m": T.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]]),
        "v": T.tensor([0.5, 1.5, -2.5]),
        "s": T.tensor(2.5),
        "i": T.tensor([[1, -2, 3], [4, 5, -6]]),
        "j": T.tensor([7, -7, 2]),
        "u": T.tensor([200, 3, 0], dtype=T.uint8),
        "b": T.tensor([True, False, True]),
        "d": T.tensor([0.5, 1.5, -2.5], dtype=T.float64),
        "h": T.tensor([0.5, 1.5, -2.5], dtype=T.float16),
        "e": T.zeros(0, 3),
        "inf": float("inf"),
        "nan": float("nan"),
        "one": T.tensor(1),
    }


def outcome(T: Any, expression: str) -> Any:
    """The value as (dtype, shape, numbers), or the error."""
    scope = names(T)
    try:
        *statements, last = expression.split("; ")
        for statement in statements:
            exec(statement, scope)
        value = eval(last, scope)
    except (ValueError, TypeError, IndexError, RuntimeError, NotImplementedError) as error:
        return error
    return plain(value)


def plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(plain(v) for v in value)
    if not hasattr(value, "detach"):
        return str(value).removeprefix("torch.") if hasattr(value, "itemsize") else value
    dtype = str(value.dtype).removeprefix("torch.")
    return dtype, tuple(value.shape), value.detach().cpu().numpy()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return bool(np.allclose(a, b, rtol=1e-6, equal_nan=True))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(same(p, q) for p, q in zip(a, b, strict=True))
    return bool(a == b)


LIKE_PYTORCH = """
T.tensor(3)
T.tensor(3.5)
T.tensor(True)
T.tensor([1, True])
T.tensor([1, 2.5])
T.tensor([])
T.tensor([[], []])
T.tensor(range(3))
T.tensor((1, (2)))
T.tensor([np.float64(1.5)])
T.tensor([np.float32(1.5), np.float32(2)])
T.tensor(np.float64(1.5))
T.tensor(np.int8(1))
T.tensor([[T.tensor(1), T.tensor(2)]])
T.tensor([T.tensor(1.5, dtype=T.float64)])
T.tensor([1, 2], dtype=T.float16)
T.tensor([1.7, -1.7], dtype=T.int32)
T.tensor([0.0, 2.0], dtype=T.bool)
T.tensor([1e300, -1e300])
T.tensor([1, [2, 3]])
T.tensor([[1, 2], [3]])
T.tensor(None)
T.tensor("abc")
T.tensor({1, 2})
T.tensor([1, None])
T.full((2, 3), 7)
T.full((2,), 7.0)
T.full((), True)
T.full((2,), 1, dtype=T.float64)
T.zeros(2, 3)
T.zeros((2, 3), dtype=T.int64)
T.zeros([0, 2])
T.zeros(-1)
T.ones(2.5)
T.ones(())
T.eye(3), T.eye(2, 3, dtype=T.float64)
T.arange(5), T.arange(2, 5), T.arange(5, 2, -1), T.arange(0.0, 1.0, 0.1)
T.arange(np.int64(3)), T.arange(T.tensor(3)), T.arange(3, dtype=T.float32)
T.arange(5, 0)
T.arange(0, 5, 0)
T.linspace(0, 1, 5)
T.linspace(0, 1, 1)
T.zeros_like(i), T.ones_like(h), T.full_like(v, 3), T.zeros_like(v, dtype=T.int64)
T.empty(2, 3).shape
T.as_tensor([1.5, 2.5]), T.as_tensor(v, dtype=T.float64)
i // 2, i // -2, i % 3, i % -3, i / 2, i // 2.5, i % 2.5
i / i, i / 2.0, j // 2, u / 2, u // 7, u % 7
2 - i, 2 / i, 7 // j, 7 % j, 2.5 // j
v // 0.7, v % 0.7, -v % 0.7, 1 // v, 1 % v, v // 0
inf // v, v // inf, v % inf
i ** 2, i ** 0, 2 ** u.long(), i ** 2.0, 2.0 ** i, v ** 2, (-v) ** 0.5, v.double() ** j
i ** -1
b + b, b * b, b * 2, b + 1.5, b / b, b / 2, True + v, b & True, True & b, b | b, ~b, False | b
b - b
b - True
True - b
b // b
b % b
b ** b
-b
T.relu(b)
b @ b
v & v
~v
~i, i & 3, i | 8, u & u
i * True, i + True
i.sum(), b.sum(), u.sum(), i.sum(0), b.sum(0, keepdim=True), u.sum(dtype=T.float32)
x.sum((0, 2)), x.sum(-1, True), x.sum(()), x.sum([0, 1]), e.sum(), e.sum(0), h.sum()
x.mean(), x.mean(1), x.mean((0, -1), keepdim=True), e.mean(0), h.mean()
i.mean()
x.var(), x.var(0), x.std(1, correction=0), x.var((0, 1), keepdim=True)
x.max(), i.min(), x.amax((0, 1)), x.amin(-1, keepdim=True), b.any(), i.all(), b.all(0), e.all(), e.any()
x.max(1).values, x.max(1).indices, x.min(0, keepdim=True)[0], x.argmax(), x.argmax(0), x.argmin(-1, True)
T.tensor([1.0, nan, 3.0]).max(), T.tensor([1.0, nan, 3.0]).argmax(), T.tensor([1.0, nan]).min(0)[1]
e.max()
e.argmax(0)
e.amax(0)
e.amax(1).shape, e.argmax(1).shape
x.sum(3)
x.sum((0, 0))
x.sum((0, -3))
s.sum(0), s.mean(-1), s.max(0).values, s.argmax(0), s.softmax(0), s.squeeze(0), s.flatten()
s.sum(1)
s.squeeze(5)
s.softmax(1)
x.softmax(3)
v.clamp(-1, 1), v.clamp(min=0), v.clamp(max=0), i.clamp(0.5), v.clamp(2, 1), T.tensor([nan]).clamp(0, 1)
v.clamp(T.zeros(3), T.ones(3))
v.clamp()
v.abs(), abs(i), i.sqrt(), i.abs().log(), b.exp(), i.sigmoid(), u.tanh(), v.square(), T.relu(i)
i > 2, i >= 2.5, v < v, i == 1, i != i, b == True, b < 1, u > j, v <= d, 3 > i
v == None, v != None, v == "a", v != [0.5], v == (1,)
v.maximum(s), T.minimum(i, s), T.maximum(v, T.tensor([nan, 0.0, 0.0]))
T.where(b, v, 0), T.where(b, 1, 0), T.where(b, i, 1.5), T.where(b, v, d[0]), T.where(b, v, d)
T.where(v, v, v)
T.isnan(T.tensor([nan, 1.0, inf])), T.isfinite(T.tensor([nan, 1.0, -inf])), T.isnan(i)
T.add(v, v, alpha=2), T.sub(v, 1, alpha=3), T.mul(v, 2), T.div(i, 4), T.pow(v, 2)
v * np.float64(2), v * np.float32(2), i * np.float64(2), np.float64(2) * v, v + np.int64(1), np.int8(3) - i
v + [1.0, 2.0, 3.0]
v + None
v + "a"
h * 1e4, h + 1e6, h * h, h / 0, h + j, h * s, h.sum()
m @ v, v @ v, x @ T.ones(4), m @ i.float().t(), i @ j, x @ T.ones(2, 4, 1), T.mm(m, m.t()), v.dot(v)
m @ m
m @ d
m @ 2
s @ v
m.mm(v)
m.dot(m)
x.reshape(6, 4), x.reshape(-1), x.reshape(2, -1, 2), x.reshape((4, 6)), x.reshape([24])
x.reshape(5, 5)
x.reshape(-1, -1)
x.reshape(-1, 5)
x.reshape(-2, 12)
x.reshape(2.5)
x.reshape(None)
e.reshape(-1).shape, e.reshape(3, 0).shape, e.reshape(-1, 3).shape, e.view(0).shape
e.reshape(-1, 0)
x.view(6, 4), x.view(2, 12), m.t().view(3, 2), x.permute(1, 0, 2).view(3, 2, 2, 2), x.view_as(x + 1)
m.t().view(6)
x.permute(1, 0, 2).view(6, 4)
x.flatten(), x.flatten(1), x.flatten(0, 1), x.flatten(-2), x.flatten(1, 1)
x.flatten(2, 1)
x.flatten(3)
x[:, :1].squeeze().shape, x.squeeze().shape, x[:, :1].squeeze(1).shape, x.squeeze(0).shape, x[:1, :1].squeeze((0, 1)).shape
x.squeeze(3)
x.unsqueeze(0).shape, x.unsqueeze(-1).shape, x.unsqueeze(3).shape, s.unsqueeze(0).shape, x.unsqueeze(-4).shape
x.unsqueeze(4)
x.permute(2, 0, 1), x.permute((0, 2, 1)), x.permute(-1, 0, 1), s.permute(())
x.permute(0, 1)
x.permute(0, 0, 1)
x.permute(0, 1, 3)
x.transpose(0, 2), x.transpose(-1, -2), s.transpose(0, 0), m.t(), m.T, v.t()
x.transpose(0, 3)
x.t()
v.expand(2, 3), v.expand(2, -1), s.expand(2), s.expand(0).shape, e.expand(2, 0, 3).shape, v.unsqueeze(1).expand(-1, 4), T.broadcast_to(v, (2, 3))
v.expand(4)
v.expand(2, 2)
v.expand(-1, 3)
v.expand(-2, 3)
x.expand(3, 4)
x.size(), x.size(0), x.size(-1), x.dim(), x.numel(), x.ndim, len(x), x.element_size(), x.is_contiguous(), x.permute(2, 1, 0).is_contiguous()
x.size(3)
len(s)
list(s)
[r.tolist() for r in m], [int(n) for n in j], 4 in i, 9 in i, 0.5 in v, i.tolist(), s.tolist(), b.tolist(), e.tolist()
None in v
bool(s), bool(T.tensor([[0.0]])), float(s), int(s), s.item(), T.tensor([[3]]).item(), b[0].item(), list(range(T.tensor(3)))
bool(v)
bool(e)
v.item()
e.item()
float(v)
[1, 2, 3][s]
[1, 2, 3][one]
f"{s:.2f} {T.tensor(3):d}"
v.to(T.int64), v.long(), v.int(), i.float(), i.double(), i.bool(), v.half(), v.to(d), v.type_as(i), v.to("cpu", T.float64), v.to(device="cpu", dtype=T.int8)
T.tensor([-1.7, 1.7, 300.0]).int(), T.tensor([300, -1]).to(T.uint8), u.to(T.int8)
v.is_floating_point(), i.is_floating_point(), v.dtype, i.dtype, str(v.device), v.device.type
T.cat([m, m]), T.cat((m, m), 1), T.cat([v, j]), T.cat([e, m]), T.stack([v, v]), T.stack([v, j], 1), T.stack((s, s), -1)
T.cat([])
T.cat([m, v])
T.cat([m, m], 2)
T.cat([m, m.t()])
T.cat([s, s])
T.stack([v, m])
T.stack([v, v], 3)
T.cat(3)
x[1, 2, 3], x[1], x[-1, ..., 0], x[:, None, 1:3, ::2], x[...], x[None].shape, x[one], x[one, :, -one], x[(0, 1)], s[...], s[None], s[()]
x[2]
x[0, 0, 0, 0]
s[0]
x[1.5]
x["a"]
x[s]
x[::-1]
x[::0]
v[[2, 0, 0]], v[T.tensor([2, 0])], m[np.array([1, 1])], v[[]].shape, v[T.tensor([[0, 1], [2, 2]])], v[[-1]]
v[[3]]
s[[0]]
m.index_select(1, T.tensor([2, 0])), v.index_select(0, one), T.index_select(m, -2, T.tensor([0, 0, 1]))
m.index_select(2, T.tensor([0]))
m.index_select(0, T.tensor([0.0]))
m.gather(1, T.tensor([[0, 0], [2, 1]])), m.gather(0, T.tensor([[1, 0, 1]]))
m.gather(1, T.tensor([0, 1]))
m.gather(1, T.tensor([[0], [3]]))
x[0, 1] = 5; x[:, 2] = v[0]; x[1, 0] = T.arange(4); x[0, 2, 3] = 7.9; x
i[0] = 2.9; i[1, 1] = True; i[:, 2] = T.tensor([8, 9]); i
x[0] = T.ones(5); x
x[0] = T.ones(2, 3, 4); x
x[3] = 1; x
x[..., 0] = T.tensor([[1], [2]]); x[1:1] = 5; e[:] = 1; x
x[1:] = x[:-1] + 1; x
y = x.view(6, 4); y[0] = 0; y.add_(1); z = x[1]; z *= 2; z -= 1; z /= 2; x
v.add_(v, alpha=2).sub_(1).mul_(j).div_(2)
v.clamp_(-1, 1), v.relu_(), v.fill_(3), v.zero_(), v.copy_(T.tensor(5)), m.copy_(v), i.fill_(2), i.copy_(v)
v.add_(m)
v.copy_(m)
i.add_(1.5)
i.div_(2)
b.add_(1)
b.mul_(1.5)
u.add_(T.tensor([1, 2, 3], dtype=T.int8)), i.add_(u), v.add_(d), h.mul_(s), i.mul_(b)
s.expand(3).add_(1)
T.exp([1.0])
T.softmax([1.0], 0)
T.sum(3)
T.cat(v)
T.matmul(v, [1.0])
v.requires_grad, v.is_leaf, v.grad, v.grad_fn
i.requires_grad_()
i.requires_grad = True; i
T.tensor([1], requires_grad=True)
w = v.requires_grad_() * 2; w.requires_grad = False; w
w = v.requires_grad_(); w.long().requires_grad, w.bool().requires_grad, (w > 0).requires_grad, w.argmax().requires_grad, w.double().requires_grad
v.requires_grad_().numpy()
T.rand(2, dtype=T.int64)
T.randn(2, dtype=T.int64)
T.randint(5, 5, (2,))
T.randint(0, 9, (2, 3)).shape, T.randint(9, (4,)).dtype, T.rand(2, 3).shape, T.randn((2, 3)).dtype, T.randperm(5).sum(), T.rand(()).shape
T.set_grad_enabled(False); g = T.is_grad_enabled(); T.set_grad_enabled(True); g
"""


READS = ("device", "[[3]]", "gather(1, T.tensor([[0], [3]]))", ".numpy()")  # positions out of range


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("expression", LIKE_PYTORCH.strip().splitlines())
def test_means_what_it_means_in_pytorch(expression: str, device: str) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    tg.set_default_device(device)
    if device == "cupy" and any(part in expression for part in READS):
        pytest.skip("on a GPU it differs by design: another device's name, no look at the data")
    ours, theirs = outcome(tg, expression), outcome(torch, expression)
    if isinstance(theirs, Exception):
        assert isinstance(ours, (ValueError, TypeError, IndexError)), f"PyTorch: {theirs!r}"
    else:
        assert not isinstance(ours, Exception), f"PyTorch gives {theirs}; here: {ours!r}"
        assert same(ours, theirs), f"PyTorch gives {theirs}; here {ours}"


# --- dtypes ------------------------------------------------------------------------------------

NUMBERS = {"bool": True, "int": 3, "float": 2.5}


def operands(T: Any) -> list[tuple[str, Any]]:
    """Every dtype with a dimension and without, and the Python numbers."""
    made = []
    for name in NAMES:
        made.append((f"{name}[2]", T.ones(2, dtype=getattr(T, name))))
        made.append((f"{name}[]", T.tensor(1, dtype=getattr(T, name))))
    return made + list(NUMBERS.items())


OPERATIONS = {
    "+": lambda a, b: a + b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    ">": lambda a, b: a > b,
}


def test_every_pair_of_dtypes_meets_where_it_does_in_pytorch() -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    wrong = []
    for (ka, a, x), (kb, b, y) in itertools.product(
        [(k, ours, theirs) for (k, ours), (_, theirs) in zip(operands(tg), operands(torch), strict=True)],
        repeat=2,
    ):  # fmt: skip
        if ka in NUMBERS and kb in NUMBERS:
            continue
        expected = str(torch.result_type(x, y)).removeprefix("torch.")
        if tg.result_type(a, b).name != expected:
            wrong.append(f"result_type({ka}, {kb}): {tg.result_type(a, b).name}, not {expected}")
        for sign, operation in OPERATIONS.items():
            ours, theirs = operation(a, b), operation(x, y)
            if not same(plain(ours), plain(theirs)):
                wrong.append(f"{ka} {sign} {kb}: {plain(ours)}, not {plain(theirs)}")
    assert not wrong


def test_result_type_without_pytorch() -> None:
    f32, i64 = tg.ones(2), tg.ones(2, dtype=tg.int64)
    assert tg.result_type(f32, tg.tensor(1.0, dtype=tg.float64)) == tg.float32
    assert tg.result_type(i64, 1.5) == tg.float32
    assert tg.result_type(tg.ones(2, dtype=tg.uint8), tg.ones(2, dtype=tg.int8)) == tg.int16
    with pytest.raises(TypeError, match="expected a tensor or a bool, int or float; got str"):
        tg.result_type(f32, "a")


@pytest.mark.parametrize("name", NAMES)
def test_arrays_keep_their_dtype_and_are_copied(name: str) -> None:
    array = np.array([[0, 1], [2, 3]], name)
    x = tg.tensor(array)
    assert x.dtype == name and x.dtype == getattr(tg, name) and x.dtype.name == name
    array[0, 0] = 1
    assert x[0, 0].item() == 0
    assert tg.tensor(array[:, ::-1]).is_contiguous()
    swapped = tg.tensor(array.astype(array.dtype.newbyteorder(">")))
    assert swapped.dtype.isnative and swapped.tolist() == array.tolist()


@pytest.mark.parametrize(
    "data",
    [1j, [1j], np.ones(2, np.complex64), "abc", ["a"], np.array(["a"]), np.array([None]), object(),
     np.ones(2, np.uint16), np.ones(2, np.longdouble), np.array(["2020-01-01"], "datetime64[D]"),
     2**63, [10**30]],
    ids=str,
)  # fmt: skip
def test_unsupported_data_is_refused(data: Any) -> None:
    with pytest.raises(TypeError, match=r"dtype: expected one of bool, .*; got dtype\(.*cast"):
        tg.tensor(data)


def test_float16_works_without_warnings() -> None:
    h = tg.tensor([1.0, 60000.0], dtype=tg.float16, requires_grad=True)
    y = (h * 2 + 1e6).relu().exp() @ tg.ones(2, dtype=tg.float16)
    y.backward()
    assert y.dtype == tg.float16 and h.grad is not None and h.grad.dtype == tg.float16
    assert tg.full((2,), 1e6, dtype=tg.float16).tolist() == [np.inf, np.inf]


# --- broadcasting ------------------------------------------------------------------------------


def summed_to(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """g summed over the axes that broadcasting made longer."""
    lead = g.ndim - len(shape)
    g = g.sum(axis=tuple(range(lead)))
    return g.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60)
@given(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=4, min_side=0, max_side=3))
def test_broadcasting_forward_and_gradient(device: str, drawn: hnp.BroadcastableShapes) -> None:
    tg.set_default_device(device)
    rng = np.random.default_rng(3)
    arrays = [np.asarray(rng.normal(size=s)) for s in drawn.input_shapes]
    a, b, c = tensors = [tg.tensor(x, requires_grad=True) for x in arrays]
    out = a * b - c
    np.testing.assert_allclose(out.detach().cpu().numpy(), arrays[0] * arrays[1] - arrays[2])
    assert out.shape == drawn.result_shape
    out.backward(tg.ones_like(out))
    ones = np.ones(drawn.result_shape)
    for x, factor in zip(tensors, (arrays[1], arrays[0], -1.0), strict=True):
        assert x.grad is not None
        np.testing.assert_allclose(
            x.grad.cpu().numpy(), summed_to(ones * factor, x.shape), atol=1e-12
        )


# --- indexing ----------------------------------------------------------------------------------


@st.composite
def arrays_and_indices(draw: st.DrawFn) -> tuple[np.ndarray, tuple[Any, ...]]:
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    parts: list[Any] = []
    for n in shape[: draw(st.integers(0, len(shape)))]:
        bound = st.none() | st.integers(-6, 6)
        a_slice = st.builds(slice, bound, bound, st.none() | st.integers(1, 3))
        parts.append(draw(st.integers(-n, n - 1) | a_slice if n else a_slice))
    if draw(st.booleans()):  # an Ellipsis, and the last axes after it
        keep = draw(st.integers(0, len(parts)))
        tail = [slice(1, None)] if keep < len(shape) and len(parts) < len(shape) else []
        parts = [*parts[:keep], Ellipsis, *tail]
    for _ in range(draw(st.integers(0, 2))):
        parts.insert(draw(st.integers(0, len(parts))), None)
    return np.arange(np.prod(shape, dtype=int), dtype=np.float64).reshape(shape), tuple(parts)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=200)
@given(arrays_and_indices())
def test_basic_indexing_is_numpys(device: str, drawn: tuple[np.ndarray, tuple[Any, ...]]) -> None:
    tg.set_default_device(device)
    array, index = drawn
    expected = array[index]
    zero_d = tuple(tg.tensor(p) if isinstance(p, int) else p for p in index)
    x = tg.tensor(array, requires_grad=True)
    for form in (index, zero_d, index[0] if len(index) == 1 else index):
        assert x[form].shape == expected.shape
        np.testing.assert_array_equal(x[form].detach().cpu().numpy(), expected)
    (x[index] * 3).sum().backward()
    gradient = np.zeros_like(array)
    gradient[index] = 3
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.cpu().numpy(), gradient)

    y, copied = tg.tensor(array), array.copy()
    view = y[index]
    y[index] = -5
    copied[index] = -5
    np.testing.assert_array_equal(y.cpu().numpy(), copied)
    np.testing.assert_array_equal(view.cpu().numpy(), copied[index])  # the same memory


@pytest.mark.parametrize("device", DEVICES)
@given(st.data())
@settings(max_examples=50)
def test_selecting_by_positions_is_numpys(device: str, data: st.DataObject) -> None:
    tg.set_default_device(device)
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
    axis = data.draw(st.integers(0, len(shape) - 1))
    index = data.draw(st.lists(st.integers(-shape[axis], shape[axis] - 1), max_size=5))
    array = np.random.default_rng(0).normal(size=shape)
    x = tg.tensor(array, requires_grad=True)
    forms: list[Any] = [index, np.array(index, np.int32), tg.tensor(np.array(index, np.int64))]
    for form in forms:
        picked = x.index_select(axis, form)
        np.testing.assert_array_equal(
            picked.detach().cpu().numpy(), np.take(array, np.array(index, int), axis)
        )
    picked.sum().backward()
    count = np.zeros(shape)
    np.add.at(count, (slice(None),) * axis + (np.array(index, int),), 1.0)
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.cpu().numpy(), count)


# --- repr ----------------------------------------------------------------------------------------

REPRS = [
    (lambda: tg.tensor(1.5), "tensor(1.5)"),
    (lambda: tg.tensor([[1.0, -2.5], [3.25, 1e-3]]),
     "tensor([[ 1.00e+00, -2.50e+00],\n        [ 3.25e+00,  1.00e-03]])"),
    (lambda: tg.tensor([[1.0, -2.0], [3.0, 4.5]]), "tensor([[ 1. , -2. ],\n        [ 3. ,  4.5]])"),
    (lambda: tg.tensor([1, -2]), "tensor([ 1, -2])"),
    (lambda: tg.tensor([True, False]), "tensor([ True, False])"),
    (lambda: tg.tensor([]), "tensor([], dtype=float32)"),
    (lambda: tg.zeros(2, 0, dtype=tg.int64), "tensor([], size=(2, 0), dtype=int64)"),
    (lambda: tg.tensor([1.0], requires_grad=True), "tensor([1.], requires_grad=True)"),
    (lambda: tg.tensor([1.0], requires_grad=True) * 2, "tensor([2.], grad_fn=<Mul>)"),
    (lambda: tg.tensor([0.5], dtype=tg.float64), "tensor([0.5], dtype=float64)"),
    (lambda: tg.tensor(7, dtype=tg.uint8), "tensor(7, dtype=uint8)"),
    (lambda: tg.tensor([np.nan, np.inf]), "tensor([nan, inf])"),
    (lambda: tg.nn.Parameter(tg.ones(1)),
     "Parameter containing:\ntensor([1.], requires_grad=True)"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "text"), REPRS, ids=[r[1] for r in REPRS])
def test_repr(make: Any, text: str) -> None:
    assert repr(make()) == text


def test_repr_of_a_large_tensor_is_short() -> None:
    text = repr(tg.zeros(1000, 1000))
    assert "..." in text and len(text) < 1000


# --- leaving and coming back ---------------------------------------------------------------------


def test_numpy_shares_memory_both_ways() -> None:
    array = np.arange(6.0).reshape(2, 3)
    x = tg.from_numpy(array)
    x[0, 0] = 9
    assert array[0, 0] == 9 and x.numpy() is array
    assert np.asarray(x) is array and np.shares_memory(x.t().numpy(), array)
    assert np.shares_memory(tg.as_tensor(array).numpy(), array)
    assert not np.shares_memory(tg.tensor(array).numpy(), array)
    assert np.array(x, dtype=np.float32).dtype == np.float32
    assert np.array(x, copy=True) is not array
    with pytest.raises(ValueError, match="copy"):
        np.array(x, dtype=np.float32, copy=False)


def test_numpy_functions_take_tensors() -> None:
    x = tg.tensor([1.0, 4.0])
    assert np.sqrt(x).tolist() == [1.0, 2.0]
    assert np.concatenate([x, np.zeros(1)]).tolist() == [1.0, 4.0, 0.0]
    assert np.allclose(x, [1, 4]) and isinstance(np.add(np.ones(2), x), np.ndarray)
    for y in (np.ones(2) + x, np.float32(1) + x, x + np.ones(2)):
        assert isinstance(y, tg.Tensor) and y.tolist() == [2.0, 5.0]


def test_operands_of_numpy_take_part_in_gradients() -> None:
    x = tg.tensor([1.0, 4.0], requires_grad=True)
    (np.array([2.0, 3.0], np.float32) * x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [2.0, 3.0]


def test_dlpack_with_numpy() -> None:
    array = np.arange(4.0)
    x = tg.from_dlpack(array)
    array[0] = 7
    assert x.tolist() == [7.0, 1.0, 2.0, 3.0]
    assert np.shares_memory(np.from_dlpack(x), array)
    with pytest.raises(TypeError, match="complex64"):
        tg.from_dlpack(np.ones(2, np.complex64))
    with pytest.raises(TypeError, match=r"requires a gradient; use x\.detach\(\)"):
        np.from_dlpack(tg.ones(2, requires_grad=True))


def test_dlpack_with_pytorch() -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    for dtype in (n for n in NAMES if n != "bool"):
        x = tg.ones(2, 3, dtype=dtype).t()
        t = torch.from_dlpack(x)
        t[0, 0] = 5
        assert x[0, 0].item() == 5 and tuple(t.shape) == (3, 2)
        back = tg.from_dlpack(torch.arange(3, dtype=getattr(torch, dtype)))
        assert back.dtype == dtype and back.tolist() == [0, 1, 2]
        back[0] = 1


def test_deepcopy_and_pickle() -> None:
    x = tg.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    (x * x).sum().backward()
    twin, shared = copy.deepcopy([x, x])
    assert twin is shared and twin.requires_grad and twin.tolist() == x.tolist()
    assert twin.grad is not None and twin.grad is not x.grad
    twin.grad.zero_()
    with tg.no_grad():
        twin.zero_()
    assert x[1, 1].item() == 4 and x.grad is not None and x.grad[1, 1].item() == 8
    with pytest.raises(ValueError, match=r"only leaves can be copied; use x\.detach\(\)\.clone"):
        copy.deepcopy(x * 2)
    for refused in (lambda: pickle.dumps(x), lambda: copy.copy(x)):
        with pytest.raises(TypeError, match=r"not pickled; write it with tinygrad_ish\.save"):
            refused()


def test_hash_is_identity() -> None:
    x, y = tg.ones(2), tg.ones(2)
    assert {x: 1, y: 2}[x] == 1 and len({x, y, x}) == 2


def test_attributes_cannot_be_misspelled() -> None:
    with pytest.raises(AttributeError):
        tg.ones(1).requires_gard = True  # type: ignore[attr-defined]


def test_data_replaces_the_memory() -> None:
    x = tg.ones(2, requires_grad=True)
    x.data.add_(1)
    assert x.tolist() == [2.0, 2.0] and x.requires_grad
    x.data = tg.zeros(3)
    assert x.shape == (3,) and x.requires_grad and x.is_leaf


# --- devices -----------------------------------------------------------------------------------


def test_the_default_device_is_where_tensors_are_made() -> None:
    for name in ("numpy", "numba"):
        tg.set_default_device(name)
        made = [
            tg.ones(1), tg.tensor(1), tg.rand(1), tg.arange(2), tg.eye(1), tg.linspace(0, 1, 2),
            tg.from_numpy(np.ones(1)), tg.from_dlpack(np.ones(1)), tg.ones(1, device="cpu"),
            tg.as_tensor(np.ones(1)), tg.as_tensor([1]), tg.get_rng_state(), tg.randperm(3),
            tg.ones(1, device="numba").to("cpu"), tg.nn.Linear(1, 1).weight, tg.empty(1),
        ]  # fmt: skip
        assert {x.backend.name for x in made[:-3]} == {name}, [x.backend for x in made]
        assert {x.device for x in made} == {"cpu"}
    with pytest.raises(tg.BackendError, match="expected 'cpu' or 'cuda', got 'tpu'"):
        tg.set_default_device("tpu")
    assert tg.ones(1).backend.name == "numba"


def test_moving_between_backends_copies() -> None:
    x = tg.ones(2)
    y = x.to("numba")
    y[0] = 5
    assert x.tolist() == [1.0, 1.0] and y.backend.name == "numba" and x.to("numpy") is x
    assert (
        x.to("cpu") is x
        and x.to(tg.device("cpu"), tg.float32) is x
        and x.to(y).backend is y.backend
    )
    with pytest.raises(ValueError, match="the graph does not cross devices"):
        tg.ones(2, requires_grad=True).to("numba")


# --- random numbers ----------------------------------------------------------------------------


def draws() -> list[Any]:
    return [
        x.tolist()
        for x in (tg.rand(3), tg.randn(2, 2, dtype=tg.float64), tg.randint(0, 100, (5,)),
                  tg.randperm(7), tg.rand_like(tg.ones(2)), tg.randn_like(tg.ones(1)),
                  tg.empty(2).uniform_(-1, 1), tg.empty(2).normal_(5, 2))
    ]  # fmt: skip


def test_a_seed_and_a_state_repeat_the_numbers_bit_for_bit() -> None:
    tg.manual_seed(7)
    first = draws()
    tg.rand(1, dtype=tg.float16)
    state = tg.get_rng_state()
    later = draws()
    assert later != first
    tg.manual_seed(7)
    assert draws() == first
    tg.set_rng_state(state)
    assert draws() == later
    tg.manual_seed(8)
    assert draws() != first
    own = tg.Generator().manual_seed(3)
    before = tg.get_rng_state().tolist()
    assert tg.rand(4, generator=own).tolist() == tg.rand(4, generator=own.manual_seed(3)).tolist()
    assert tg.get_rng_state().tolist() == before


def test_rand_never_gives_its_upper_end() -> None:
    assert tg.rand(50_000, dtype=tg.float16).max().item() < 1  # 1 in 4,000 rounds up
    x = tg.empty(50_000, dtype=tg.float16).uniform_(-3, 5)
    assert -3 <= x.min().item() < -2.9 and 4.9 < x.max().item() < 5


# --- messages ----------------------------------------------------------------------------------

MESSAGES = [
    ("tg.exp([1.0])", TypeError, r"exp: expected a Tensor, got list; make one with tinygrad_ish\.tensor"),
    ("tg.relu(2.0)", TypeError, r"relu: expected a Tensor, got float; make one"),
    ("tg.softmax(np.ones(2), 0)", TypeError, r"softmax: expected a Tensor, got ndarray; make one"),
    ("tg.nn.functional.relu([1.0])", TypeError, r"relu: expected a Tensor, got list"),
    ("tg.nn.functional.log_softmax([1.0], 0)", TypeError, r"log_softmax: expected a Tensor, got list"),
    ("tg.matmul([1.0], v)", TypeError, r"matmul: expected a Tensor, got list; make one"),
    ("tg.add(1, v)", TypeError, r"add: expected a Tensor, got int; make one"),
    ("v @ [1.0]", TypeError, r"matmul: expected a Tensor, got list"),
    ("v + 'a'", TypeError, r"add: expected a tensor or a number, got str; make a tensor of it"),
    ("v * 1j", TypeError, r"mul: expected a tensor or a number, got complex"),
    ("v + np.complex64(1)", TypeError, r"add: expected a tensor or a number, got complex"),
    ("v > [1]", TypeError, r"gt: expected a tensor or a number, got list"),
    ("tg.cat(v)", TypeError, r"cat: expected a list or tuple of tensors that is not empty"),
    ("tg.cat([v, 1])", TypeError, r"cat: expected a list or tuple of tensors"),
    ("v.to(tg.uint8) + 300", OverflowError, r"300 out of bounds for uint8"),  # PyTorch wraps
    ("tg.stack([v, m])", ValueError, r"stack: expected tensors of one shape, got \[3\], \[2, 3\]"),
    ("tg.cat([m, v])", ValueError, r"cat: tensor 1 of shape \[3\] does not fit tensor 0 of shape \[2, 3\] along dim 0"),
    ("v + tg.ones(4)", ValueError, r"add: the shapes \[3\] and \[4\] do not broadcast: .* reshape or unsqueeze"),
    ("v.lt(tg.ones(4))", ValueError, r"lt: the shapes \[3\] and \[4\] do not broadcast"),
    ("tg.where(v > 0, v, tg.ones(2))", ValueError, r"where: the shapes \[3\] and \[2\] do not broadcast"),
    ("tg.where(v, v, v)", TypeError, r"where: condition must be a bool tensor, got float32"),
    ("v - tg.ones(3, device='numba')", tg.BackendError, r"sub: the tensors are on different devices: <backend numpy on cpu> and <backend numba on cpu>; move one with \.to"),
    ("v == tg.ones(3, device='numba')", tg.BackendError, r"eq: the tensors are on different devices"),
    ("tg.nn.functional.linear(m, m.to('numba'))", tg.BackendError, r"linear: the tensors are on different devices"),
    ("v.__setitem__(0, tg.tensor(1.0, device='numba'))", tg.BackendError, r"__setitem__: the tensors are on different devices"),
    ("m @ m", ValueError, r"matmul: \[2, 3\] @ \[2, 3\] do not fit; expected \(…, M, K\) @ \(…, K, N\)"),
    ("m @ v.double()", TypeError, r"matmul: both must have one dtype, got float32 and float64; cast one"),
    ("m @ tg.tensor(1.0)", ValueError, r"matmul: expected at least one axis; use \* for scalars"),
    ("m.mm(v)", ValueError, r"mm: expected matrices, got \[2, 3\], \[3\]"),
    ("m.dot(v)", ValueError, r"dot: expected vectors"),
    ("m.sum(2)", ValueError, r"dim: expected an int from -2 to 1 for a tensor of shape \[2, 3\], got 2"),
    ("m.sum('a')", ValueError, r"dim: expected an int from -2 to 1 .*, got 'a'"),
    ("m.sum((0, 0))", ValueError, r"dim: \(0, 0\) names an axis twice"),
    ("m.softmax(-3)", ValueError, r"dim: expected an int from -2 to 1"),
    ("m.long().mean()", TypeError, r"mean: expected a float, got int64; use x\.float\(\)\.mean\(\)"),
    ("tg.zeros(0, 3).max()", ValueError, r"amax: no elements to compare in shape \[0, 3\]"),
    ("m.reshape(4)", ValueError, r"reshape: \[2, 3\] has 6 elements, which do not fit \[4\]"),
    ("m.reshape(-1, 4)", ValueError, r"reshape: \[2, 3\] has 6 elements"),
    ("m.reshape(None)", ValueError, r"reshape: expected ints of -1 or more, got \[None\]"),
    ("m.t().view(6)", ValueError, r"view: \[3, 2\] with strides .* has no view as \[6\]; use reshape"),
    ("m.permute(0, 0)", ValueError, r"permute: expected each axis of shape \[2, 3\] once, got \[0, 0\]"),
    ("m.transpose(0, 2)", ValueError, r"dim: expected an int"),
    ("tg.zeros(1, 2, 3).t()", ValueError, r"t: expected at most 2 axes, got shape \[1, 2, 3\]"),
    ("m.flatten(1, 0)", ValueError, r"flatten: start_dim 1 comes after end_dim 0"),
    ("m.unsqueeze(3)", ValueError, r"unsqueeze: dim 3 is outside -3\.\.2 for shape \[2, 3\]"),
    ("m.expand(4, 3)", ValueError, r"expand: \[2, 3\] does not broadcast to \[4, 3\]"),
    ("v.expand(2, 3).add_(1)", ValueError, r"add_: the memory is expanded or read-only; clone\(\) it first"),
    ("m[2]", IndexError, r"index 2 is out of range for axis 0 of shape \[2, 3\]"),
    ("m[0, 0, 0]", IndexError, r"too many indices for a tensor of shape \[2, 3\]: \(0, 0, 0\)"),
    ("m[::-1]", ValueError, r"a slice of a tensor needs a positive step"),
    ("m['a']", TypeError, r"an index holds ints, slices, None and \.\.\., got str"),
    ("m[True]", TypeError, r"an index holds ints, slices, None and \.\.\., got bool"),
    ("m[0, [1]]", TypeError, r"got list; to select by an index tensor use x\.index_select\(dim, index\)"),
    ("m[m > 0]", TypeError, r"index tensor must hold integers, got bool; for a mask use tinygrad_ish\.where"),
    ("v[np.bool_(True)]", TypeError, r"index tensor must hold integers, got bool"),
    ("v[[5]]", ValueError, r"index_select: index 5 is outside an axis of 3 elements"),
    ("m.gather(1, tg.tensor([0]))", ValueError, r"gather: index \[1\] and self \[2, 3\] must agree but for dim 1"),
    ("m.__setitem__(m > 0, 1)", TypeError, r"writing at an index tensor or mask is not supported; use"),
    ("m.__setitem__(0, tg.ones(2))", ValueError, r"__setitem__: a value of shape \[2\] does not broadcast to \[3\]"),
    ("v.copy_([1])", TypeError, r"copy_: expected a Tensor, got list"),
    ("v.copy_(m)", ValueError, r"copy_: a value of shape \[2, 3\] does not broadcast to \[3\]"),
    ("v.add_(m)", ValueError, r"add_: the result \[2, 3\] does not fit into \[3\] in place"),
    ("v.long().add_(0.5)", TypeError, r"add_: a float32 result does not go into int64 in place"),
    ("v.bool() - v.bool()", TypeError, r"sub: not defined for bool; cast first, with x\.int\(\)"),
    ("v & v", TypeError, r"bitwise_and: not defined for float32; cast first"),
    ("v.clamp()", ValueError, r"clamp: give min, max or both"),
    ("v.item()", ValueError, r"item\(\): a tensor of shape \[3\] has 3 elements, not one; use tolist"),
    ("bool(v)", ValueError, r"the truth of a tensor of shape \[3\] is ambiguous; use \.any\(\) or \.all"),
    ("len(tg.tensor(1))", TypeError, r"len\(\) of a zero-dimensional tensor"),
    ("tg.ones(2, requires_grad=True).numpy()", TypeError, r"requires a gradient; use x\.detach\(\)\.numpy"),
    ("tg.tensor([[1], [1, 2]])", ValueError, r"tensor: the data is not rectangular"),
    ("tg.tensor([1], requires_grad=True)", TypeError, r"requires_grad: only floats have gradients, not int64"),
    ("tg.tensor(1, dtype='float33')", TypeError, r"dtype: expected one of bool, .*; got 'float33'"),
    ("v.to('float33')", tg.BackendError, r"device: expected 'cpu' or 'cuda', got 'float33'"),
    ("v.to(3)", TypeError, r"dtype: expected one of"),
    ("tg.zeros(2, -1)", ValueError, r"size: expected ints of 0 or more, got \[2, -1\]"),
    ("tg.full(2.5, 1)", ValueError, r"size: expected ints of 0 or more, got \[2\.5\]"),
    ("tg.arange(5, 0)", ValueError, r"arange: no range goes from 5 to 0 in steps of 1"),
    ("tg.from_numpy([1])", TypeError, r"from_numpy: expected an ndarray, got list"),
    ("tg.from_numpy(np.ones(1, '>f4'))", TypeError, r"dtype: expected one of .*'>f4'"),
    ("tg.from_dlpack([1])", TypeError, r"from_dlpack: list has no __dlpack__"),
    ("tg.Tensor([1.0])", TypeError, r"Tensor: expected an array, got list; use tensor\(data\)"),
    ("tg.manual_seed(-1)", ValueError, r"manual_seed: expected an int of 0 or more, got -1"),
    ("tg.set_rng_state(v)", ValueError, r"set_state: expected the int64\[15\] tensor of get_state"),
    ("tg.randint(5, 5, (1,))", ValueError, r"randint: expected low < high, got 5 and 5"),
    ("tg.rand(2, dtype=tg.int64)", TypeError, r"random: expected a float dtype, got int64; use randint"),
    ("tg.ones(2, device='tpu')", tg.BackendError, r"device: expected 'cpu' or 'cuda', got 'tpu'"),
    ("setattr(v, 'data', 3)", TypeError, r"data: expected a Tensor, got int"),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "error", "message"), MESSAGES, ids=[m[0] for m in MESSAGES])
def test_message(expression: str, error: type[Exception], message: str) -> None:
    m = tg.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    with pytest.raises(error, match=message):
        eval(expression, {"tg": tg, "np": np, "m": m, "v": m[0].clone()})


def test_allclose_and_equal_decide_as_pytorch_does() -> None:
    torch = pytest.importorskip(
        "torch", reason="PyTorch is not installed: pip install -e '.[parity]'"
    )
    inf, nan = float("inf"), float("nan")
    pairs = [
        ([1.0, 2.0], [1.0, 2.0]), ([1.0, 2.0], [1.0, 2.00001]), ([1.0, 2.0], [1.0, 2.1]),
        ([inf, 1.0], [inf, 1.0]), ([inf], [-inf]), ([nan], [nan]), ([0.0], [1e-9]), ([], []),
        ([inf], [1.0]), ([1.0], [inf]),
    ]  # fmt: skip
    for a, b in pairs:
        x, y, z, w = tg.tensor(a), tg.tensor(b), torch.tensor(a), torch.tensor(b)
        assert x.equal(y) == torch.equal(z, w), (a, b)
        for nans in (False, True):
            assert tg.allclose(x, y, equal_nan=nans) == torch.allclose(z, w, equal_nan=nans), (a, b)
    assert not tg.equal(tg.ones(2), tg.ones(1))
