"""The instruction set: every kernel there is, written plainly. This file is the specification.

A kernel takes arrays and plain numbers and gives arrays. It is written against the array
namespace of its arguments, so the same lines serve NumPy and CuPy. The rules of the seam:

- ``out=None`` allocates. A given ``out`` is fully overwritten and returned. It may be exactly one
  of the inputs in the elementwise kernels; any other overlap is refused.
- A kernel never changes an input. The exceptions: the ``*_step`` kernels (and ``count_step``)
  update parameters and optimizer state in place and return nothing; ``draw``, ``next_rows`` and
  ``push`` advance the count in the state that they are given.
- Floating results keep the floating dtype, comparisons give bool, indices are int64. The caller
  has promoted the dtypes: the arrays of one call have one dtype, beside labels and indices. Of
  floats of 16 bits (float16, bfloat16) sums, products of matrices, losses and steps are computed in
  float32, and rounded once.
- Plain numbers are constants. What changes between calls (learning rate, step, the count of random
  draws) is a small array, so that a recorded call can be replayed. No number is derived from a
  shape by the caller.
- Any strides are accepted, and empty arrays work. Floating-point warnings are silent: infinities
  and NaN are results.
- Views (``reshape``, ``permute``, ``expand``, ``getitem``) take no ``out``.

A backend overrides what it makes faster (``kernels/cpu``, ``kernels/gpu``) and gets the rest
from here. To add a kernel: a function here, its name in ``__all__``, a row in
``tests/test_kernels.py``.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

__all__ = [
    # elementwise
    "add", "sub", "mul", "div", "floor_div", "remainder", "pow", "maximum", "minimum", "where",
    "neg", "abs", "sign", "sqrt", "exp", "log", "sigmoid", "tanh", "relu", "relu_backward",
    "gelu", "gelu_backward",
    "eq", "ne", "lt", "le", "gt", "ge", "bitwise_not", "bitwise_and", "bitwise_or",
    "copy", "cast",
    # random numbers
    "draw", "dropout",
    # reductions
    "sum", "sum_to", "mean", "mean_backward", "amax", "amin", "argmax", "argmin", "any", "all",
    "softmax", "log_softmax",
    # movement
    "reshape", "permute", "expand", "getitem", "getitem_backward", "cat",
    "index_select", "index_select_backward", "gather", "gather_backward",
    # data on the device
    "next_rows", "take_scaled", "push",
    # linear algebra
    "matmul", "linear", "linear_backward", "linear_int8",
    # normalization
    "layer_norm", "layer_norm_backward",
    # losses
    "softmax_cross_entropy", "nll_loss", "mse_loss", "bce_loss", "bce_with_logits",
    # optimizers
    "grad_norm", "clip_scale", "unscale_step", "scale_step", "count_step", "sgd_step", "adam_step",
]  # fmt: skip

# What a kernel changes among its arguments.
UPDATES = {
    "draw": ("state",),
    "unscale_step": ("grads", "found_inf"),
    "scale_step": ("state",),
    "next_rows": ("state",),
    "push": ("ring", "state"),
    "count_step": ("state",),
    "sgd_step": ("p", "buf"),
    "adam_step": ("p", "m", "v"),
}

Array = Any  # numpy.ndarray or cupy.ndarray
Kernel = TypeVar("Kernel", bound=Callable[..., Any])
_quiet = np.errstate(all="ignore")


def namespace(*arrays: Array) -> Any:
    """The array module (numpy or cupy) of the first array among the arguments.

    CuPy 14 has no ``__array_namespace__``; its arrays are told by their type, so that CuPy is
    never imported from here.
    """
    for x in arrays:
        if isinstance(x, np.ndarray):
            return np
        module = type(x).__module__.partition(".")[0]
        if module == "cupy":
            return sys.modules[module]
    kinds = ", ".join(type(x).__name__ for x in arrays)
    raise TypeError(f"a kernel needs a numpy or cupy array among its arguments, got {kinds}")


def is_float(dtype: Any) -> bool:
    """Whether this is one of the floating dtypes: bfloat16 too, which NumPy takes for a void."""
    return dtype.kind == "f" or (dtype.kind == "V" and dtype.name == "bfloat16")


def wider(dtype: Any) -> Any:
    """What numbers of a floating dtype are computed in: float32 for those of 16 bits."""
    return np.promote_types(dtype, np.float32)


def _in_float32(kernel: Kernel) -> Kernel:
    """The kernel with floats of 16 bits computed in float32, and its results rounded once."""
    place = list(inspect.signature(kernel).parameters).index("out")

    @functools.wraps(kernel)
    def call(*args: Any, **kwargs: Any) -> Any:
        half = next((x for x in (*args, *kwargs.values()) if _is_half(x)), None)
        if half is None:
            return kernel(*args, **kwargs)
        out = args[place] if len(args) > place else kwargs.pop("out", None)
        args = args[:place]
        results = kernel(*map(_widened, args), **{k: _widened(v) for k, v in kwargs.items()})
        inputs = (*args, *kwargs.values())
        if not isinstance(results, tuple):
            return _give(results.astype(half.dtype), out, *inputs)
        return tuple(
            None if r is None else _give(r.astype(half.dtype), o, *inputs)
            for r, o in zip(results, out or (None,) * len(results), strict=True)
        )

    return call  # type: ignore[return-value]


def _is_half(x: Any) -> bool:
    return hasattr(x, "strides") and x.dtype.itemsize == 2 and is_float(x.dtype)


def _widened(x: Any) -> Any:
    return x.astype(np.float32) if _is_half(x) else x


def check_out(
    out: Array, shape: tuple[int, ...], dtype: Any, *inputs: Any, elementwise: bool = False
) -> None:
    """Raise unless ``out`` has this shape and dtype and overlaps none of the inputs; an
    ``elementwise`` kernel may write over an input that is exactly ``out``."""
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(
            f"out: expected {np.dtype(dtype).name}{list(shape)}, "
            f"got {out.dtype.name}{list(out.shape)}; give an array of that shape and dtype"
        )
    xp = namespace(out)
    for x in inputs:
        if (x is out and elementwise) or not hasattr(x, "shape") or not xp.may_share_memory(out, x):
            continue
        if not (elementwise and _same(x, out)) and xp.shares_memory(out, x):
            raise ValueError("out overlaps an input; give an array with memory of its own")


def _give(result: Any, out: Array | None, *inputs: Any, elementwise: bool = False) -> Array:
    """The result of a function that has no ``out``: as an array, copied into ``out`` if given."""
    xp = namespace(*inputs)
    result = xp.asarray(result)
    if out is None:
        return result
    check_out(out, result.shape, result.dtype, *inputs, elementwise=elementwise)
    out[...] = result
    return out


def _elementwise(function: Any, *inputs: Any, out: Array | None, dtype: Any = None) -> Array:
    if float in (type(inputs[0]), type(inputs[-1])):
        inputs = _kept_bfloat16(inputs)
    if out is None:
        result = function(*inputs)
        # NumPy gives a scalar, not an array, for zero-dimensional inputs.
        return result if hasattr(result, "__setitem__") else namespace(*inputs).asarray(result)
    arrays = [x for x in inputs if hasattr(x, "shape")]
    shape = np.broadcast_shapes(*[x.shape for x in arrays])
    check_out(out, shape, dtype or arrays[-1].dtype, *arrays, elementwise=True)
    return function(*inputs, out=out)


def _kept_bfloat16(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs; a plain float, which would make bfloat16 float32, as an array of that."""
    kind = next(x.dtype for x in inputs if hasattr(x, "dtype"))
    if kind.kind != "V":
        return inputs
    full = namespace(*inputs).full
    return tuple([x if hasattr(x, "dtype") else full((), x, kind) for x in inputs])


def _same(x: Array, out: Array) -> bool:
    return x is out or (
        x.shape == out.shape
        and x.strides == out.strides
        and x.dtype == out.dtype
        and _address(x) == _address(out)
    )


def _address(x: Array) -> int:
    return int(x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr)


# --- elementwise -----------------------------------------------------------------------------
# a, b: arrays that broadcast, or one of them a plain number.


@_quiet
def add(a: Array, b: Array, out: Array | None = None) -> Array:
    """a + b."""
    return _elementwise(namespace(a, b).add, a, b, out=out)


@_quiet
def sub(a: Array, b: Array, out: Array | None = None) -> Array:
    """a - b."""
    return _elementwise(namespace(a, b).subtract, a, b, out=out)


@_quiet
def mul(a: Array, b: Array, out: Array | None = None) -> Array:
    """a · b."""
    return _elementwise(namespace(a, b).multiply, a, b, out=out)


@_quiet
def div(a: Array, b: Array, out: Array | None = None) -> Array:
    """a / b of floating arrays; x / 0 is ±inf, 0 / 0 NaN."""
    return _elementwise(namespace(a, b).divide, a, b, out=out)


@_quiet
def floor_div(a: Array, b: Array, out: Array | None = None) -> Array:
    """⌊a / b⌋, rounded towards minus infinity. An integer divided by 0 raises on the CPU."""
    _check_divisor("floor_div", a, b)
    return _elementwise(namespace(a, b).floor_divide, a, b, out=out)


@_quiet
def remainder(a: Array, b: Array, out: Array | None = None) -> Array:
    """a - b·⌊a / b⌋: the remainder that has b's sign. Of an integer by 0 it raises on the CPU."""
    _check_divisor("remainder", a, b)
    return _elementwise(namespace(a, b).remainder, a, b, out=out)


def _check_divisor(name: str, a: Array, b: Array) -> None:
    xp = namespace(a, b)
    if xp is np and np.result_type(a, b).kind in "iu" and np.any(np.equal(b, 0)):
        raise ValueError(f"{name}: an integer is divided by 0; with floats it gives inf or nan")


@_quiet
def pow(a: Array, b: Array, out: Array | None = None) -> Array:
    """a to the power b."""
    return _elementwise(namespace(a, b).power, a, b, out=out)


@_quiet
def maximum(a: Array, b: Array, out: Array | None = None) -> Array:
    """The larger of a and b; NaN where either is NaN."""
    return _elementwise(namespace(a, b).maximum, a, b, out=out)


@_quiet
def minimum(a: Array, b: Array, out: Array | None = None) -> Array:
    """The smaller of a and b; NaN where either is NaN."""
    return _elementwise(namespace(a, b).minimum, a, b, out=out)


def where(condition: Array, a: Array, b: Array, out: Array | None = None) -> Array:
    """a where the bool condition holds, else b; the three broadcast."""
    result = namespace(condition).where(condition, a, b)
    return _give(result, out, condition, a, b, elementwise=True)


@_quiet
def neg(x: Array, out: Array | None = None) -> Array:
    """-x."""
    return _elementwise(namespace(x).negative, x, out=out)


@_quiet
def abs(x: Array, out: Array | None = None) -> Array:
    """\\|x\\|."""
    return _elementwise(namespace(x).absolute, x, out=out)


@_quiet
def sign(x: Array, out: Array | None = None) -> Array:
    """-1, 0 or 1."""
    return _elementwise(namespace(x).sign, x, out=out)


@_quiet
def sqrt(x: Array, out: Array | None = None) -> Array:
    """√x; NaN below 0."""
    return _elementwise(namespace(x).sqrt, x, out=out)


@_quiet
def exp(x: Array, out: Array | None = None) -> Array:
    """eˣ."""
    return _elementwise(namespace(x).exp, x, out=out)


@_quiet
def log(x: Array, out: Array | None = None) -> Array:
    """The natural logarithm; -inf at 0, NaN below."""
    return _elementwise(namespace(x).log, x, out=out)


@_quiet
def sigmoid(x: Array, out: Array | None = None) -> Array:
    """1 / (1 + e⁻ˣ), by the form that does not overflow: e^(-|x|) ≤ 1."""
    xp = namespace(x)
    e = xp.exp(-xp.absolute(x))
    return _give(xp.where(x >= 0, 1, e) / (1 + e), out, x, elementwise=True)


@_quiet
def tanh(x: Array, out: Array | None = None) -> Array:
    """The hyperbolic tangent."""
    return _elementwise(namespace(x).tanh, x, out=out)


@_quiet
def relu(x: Array, out: Array | None = None) -> Array:
    """max(x, 0); NaN stays NaN."""
    return _elementwise(namespace(x).maximum, x, 0, out=out)


def relu_backward(g: Array, y: Array, out: Array | None = None) -> Array:
    """0 where y <= 0, else g; y is relu's output (its input serves as well). At 0: 0; at NaN: g."""
    result = namespace(g).where(y <= 0, g.dtype.type(0), g)
    return _give(result, out, g, y, elementwise=True)


_TAIL = (
    0.09441064130196893, -0.1703977215484544, 0.12437925533926537, -0.07170740733782753,
    0.03086480410622515, -0.008492095479758216, 0.000507562076799988, 0.0006388138234854208,
    -0.00018718428669896724, -4.555470650032797e-05, 2.8648442798579606e-05,
    4.630796917724566e-06, -4.303904346491218e-06, -8.274302256520367e-07, 6.62297108753446e-07,
    2.026236560690965e-07, -9.534702277947434e-08, -4.904678284724266e-08, 1.0479978903484804e-08,
    9.259844747144312e-09, -4.583989356967971e-10, -9.543550430903501e-10, -4.767851228809609e-11,
)  # fmt: skip


def normal_cdf(x: Array) -> tuple[Array, Array]:
    """Φ(x), the distribution function of the normal distribution, and e^(-x²/2).

    For z = |x|, Φ(-z) is e^(-z²/2) times a smooth function of t = (z - 4)/(z + 4), whose first 23
    Chebyshev terms are ``_TAIL``, written as a polynomial in t. In float64 the error is below
    4·10⁻¹⁶, and relative to Φ below 2·10⁻¹⁵ for x > -5.
    """
    xp = namespace(x)
    z = xp.absolute(x)
    t = 1 - 8 / (z + 4)
    tail = xp.full_like(t, _TAIL[-1])
    for a in _TAIL[-2::-1]:
        tail = tail * t + a
    e = xp.exp(-0.5 * z * z)
    tail = tail * e
    return xp.where(x < 0, tail, 1 - tail), e


def check_approximate(approximate: str) -> None:
    """Raise unless this names a form of gelu."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")


@_quiet
def gelu(x: Array, approximate: str = "none", out: Array | None = None) -> Array:
    """x Φ(x), Φ the distribution function of the normal distribution (Hendrycks and Gimpel, 2016).

    For ``approximate`` "tanh": x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))).
    """
    check_approximate(approximate)
    xp = namespace(x)
    wide = x.astype(wider(x.dtype))
    if approximate == "tanh":
        y = 0.5 * wide * (1 + xp.tanh(_gelu_inner(wide)))
    else:
        y = wide * normal_cdf(wide)[0]
    return _give(y.astype(x.dtype), out, x, elementwise=True)


def _gelu_inner(x: Array) -> Array:
    return math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)


@_quiet
def gelu_backward(g: Array, x: Array, approximate: str = "none", out: Array | None = None) -> Array:
    """g · (Φ(x) + x e^(-x²/2)/√(2π)); the derivative of the other form for "tanh"."""
    check_approximate(approximate)
    xp = namespace(x)
    wide = x.astype(wider(x.dtype))
    if approximate == "tanh":
        t = xp.tanh(_gelu_inner(wide))
        slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * wide * wide)
        d = 0.5 * (1 + t) + 0.5 * wide * (1 - t * t) * slope
    else:
        cdf, e = normal_cdf(wide)
        d = cdf + wide * e * (1 / math.sqrt(2 * math.pi))
    return _give((g * d).astype(x.dtype), out, g, x, elementwise=True)


@_quiet
def eq(a: Array, b: Array, out: Array | None = None) -> Array:
    """a == b, as bool."""
    return _elementwise(namespace(a, b).equal, a, b, out=out, dtype=bool)


@_quiet
def ne(a: Array, b: Array, out: Array | None = None) -> Array:
    """a != b, as bool."""
    return _elementwise(namespace(a, b).not_equal, a, b, out=out, dtype=bool)


@_quiet
def lt(a: Array, b: Array, out: Array | None = None) -> Array:
    """a < b, as bool."""
    return _elementwise(namespace(a, b).less, a, b, out=out, dtype=bool)


@_quiet
def le(a: Array, b: Array, out: Array | None = None) -> Array:
    """a <= b, as bool."""
    return _elementwise(namespace(a, b).less_equal, a, b, out=out, dtype=bool)


@_quiet
def gt(a: Array, b: Array, out: Array | None = None) -> Array:
    """a > b, as bool."""
    return _elementwise(namespace(a, b).greater, a, b, out=out, dtype=bool)


@_quiet
def ge(a: Array, b: Array, out: Array | None = None) -> Array:
    """a >= b, as bool."""
    return _elementwise(namespace(a, b).greater_equal, a, b, out=out, dtype=bool)


def bitwise_not(x: Array, out: Array | None = None) -> Array:
    """~x of a bool or integer array."""
    return _elementwise(namespace(x).invert, x, out=out)


def bitwise_and(a: Array, b: Array, out: Array | None = None) -> Array:
    """a & b of bool or integer arrays."""
    return _elementwise(namespace(a, b).bitwise_and, a, b, out=out)


def bitwise_or(a: Array, b: Array, out: Array | None = None) -> Array:
    """a | b of bool or integer arrays."""
    return _elementwise(namespace(a, b).bitwise_or, a, b, out=out)


def copy(x: Array, out: Array | None = None) -> Array:
    """The same values in C-contiguous memory of their own; into ``out``, x broadcasts, and may
    overlap it."""
    if out is None:
        return x.copy(order="C")
    if out.dtype != x.dtype:
        raise ValueError(f"copy: out is {out.dtype.name}, x is {x.dtype.name}; cast x first")
    out[...] = x
    return out


@_quiet
def cast(x: Array, dtype: Any, out: Array | None = None) -> Array:
    """The values of x as ``dtype``, in new memory; float to int cuts towards zero."""
    return _give(x.astype(dtype, order="C"), out, x, elementwise=True)


# --- random numbers --------------------------------------------------------------------------
# Random numbers of a counter: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
# 1, 2, 3", 2011) turns (counter, key) into four random words. So an element's number follows from
# its place, and backward draws the same numbers again where others would store a mask.

_LOW = np.uint64(0xFFFFFFFF)  # the low word of a product
_HIGH = np.uint64(32)  # the shift to the high one
_FACTORS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


def draw(state: Array, out: Array | None = None) -> Array:
    """A ticket for random numbers: a copy of ``state``, int64 [seed, calls], whose calls then
    advance by one. Kernels that get the same ticket draw the same numbers."""
    ticket = _give(state.copy(), out, state)
    state[1] += 1
    return ticket


def philox(counter: tuple[Any, Any, Any, Any], key: tuple[Any, Any]) -> tuple[Array, ...]:
    """The four random words of each counter: ten rounds of Philox4x32. Counter, key and result
    are words of 32 bits, lowest first, held as uint64."""
    (a, b, c, d), (k0, k1) = counter, key
    for _ in range(10):
        p, q = a * _FACTORS[0], c * _FACTORS[1]
        a, b, c, d = (q >> _HIGH) ^ b ^ k0, q & _LOW, (p >> _HIGH) ^ d ^ k1, p & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return a, b, c, d


@_quiet
def dropout(x: Array, ticket: Array, p: float, out: Array | None = None) -> Array:
    """x · 1/(1-p), or 0 with probability p; whatever x holds where it is dropped, NaN too.

    Element i, counted in C order of the shape, takes word i mod 4 of Philox with the counter
    (⌊i/4⌋, calls) and the key seed, each a number of 64 bits. It is dropped where that word is
    below round(p·2³²). 1/(1-p) is rounded to x's dtype; for p = 1 all is 0.
    ticket: int64 [seed, calls], from ``draw``. Its gradient is dropout of g with this ticket.
    """
    xp, dtype = namespace(x), x.dtype.type
    block = xp.arange(-(-x.size // 4), dtype=np.uint64)
    seed, calls = ticket.astype(np.uint64)
    counter = block & _LOW, block >> _HIGH, calls & _LOW, calls >> _HIGH
    words = xp.stack(philox(counter, (seed & _LOW, seed >> _HIGH)), axis=1)
    kept = words.ravel()[: x.size].reshape(x.shape) >= np.uint64(round(p * 2**32))
    scale = dtype(1 / (1 - p) if p < 1 else 0)
    return _give(xp.where(kept, x * scale, dtype(0)), out, x, elementwise=True)


# --- reductions ------------------------------------------------------------------------------
# axis: None (all), an int, or a tuple of ints.


@_quiet
@_in_float32
def sum(x: Array, axis: Any = None, keepdims: bool = False, out: Array | None = None) -> Array:
    """Σ x over ``axis``; bool and integer sums are int64."""
    dtype = x.dtype if is_float(x.dtype) else np.int64
    return _give(x.sum(axis=axis, keepdims=keepdims, dtype=dtype), out, x)


@_quiet
@_in_float32
def sum_to(x: Array, shape: tuple[int, ...], out: Array | None = None) -> Array:
    """The sum of x over the axes along which ``shape`` was broadcast to x's shape.

    It is the gradient of ``expand``, so of every operand that broadcast.
    """
    lead = x.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(
        lead + i for i, n in enumerate(shape) if n == 1 and x.shape[lead + i] != 1
    )
    return _give(x.sum(axis=axes, keepdims=True).reshape(shape), out, x)


@_quiet
def mean(
    x: Array,
    axis: Any = None,
    keepdims: bool = False,
    correction: int = 0,
    out: Array | None = None,
) -> Array:
    """Σ x / (n - correction) over the n elements along ``axis`` of a floating array.

    A divisor of 0 or less counts as 0: the result is NaN or infinite.
    """
    wide = wider(x.dtype)  # n may be beyond float16
    total = x.sum(axis=axis, keepdims=keepdims, dtype=wide)
    n = wide.type(max(_count(x.shape, axis) - correction, 0))
    return _give((total / n).astype(x.dtype), out, x)


def _count(shape: tuple[int, ...], axis: Any) -> int:
    axes = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
    return math.prod(shape[a] for a in axes)


@_quiet
def mean_backward(
    g: Array, shape: tuple[int, ...], correction: int = 0, out: Array | None = None
) -> Array:
    """g / (n - correction) expanded to ``shape``; g has 1 in the axes that the mean went over."""
    xp = namespace(g)
    wide = wider(g.dtype)
    count = math.prod(n for n, m in zip(shape, g.shape) if n != m)
    share = (g / wide.type(max(count - correction, 0))).astype(g.dtype)
    return _give(xp.broadcast_to(share, shape).copy(), out, g)


@_quiet
def amax(x: Array, axis: Any = None, keepdims: bool = False, out: Array | None = None) -> Array:
    """The largest element over ``axis``; NaN if there is one."""
    return _give(x.max(axis=axis, keepdims=keepdims), out, x)


@_quiet
def amin(x: Array, axis: Any = None, keepdims: bool = False, out: Array | None = None) -> Array:
    """The smallest element over ``axis``; NaN if there is one."""
    return _give(x.min(axis=axis, keepdims=keepdims), out, x)


def argmax(x: Array, axis: Any = None, keepdims: bool = False, out: Array | None = None) -> Array:
    """The int64 index of the first largest element, in the flattened array for axis None."""
    return _give(x.argmax(axis=axis, keepdims=keepdims), out, x)


def argmin(x: Array, axis: Any = None, keepdims: bool = False, out: Array | None = None) -> Array:
    """The int64 index of the first smallest element, in the flattened array for axis None."""
    return _give(x.argmin(axis=axis, keepdims=keepdims), out, x)


def any(x: Array, axis: Any = None, keepdims: bool = False, out: Array | None = None) -> Array:
    """Whether an element is not zero."""
    return _give(x.any(axis=axis, keepdims=keepdims), out, x)


def all(x: Array, axis: Any = None, keepdims: bool = False, out: Array | None = None) -> Array:
    """Whether no element is zero."""
    return _give(x.all(axis=axis, keepdims=keepdims), out, x)


@_quiet
@_in_float32
def softmax(x: Array, axis: int, out: Array | None = None) -> Array:
    """eˣ / Σ eˣ along ``axis``, shifted by the largest element so that it does not overflow."""
    if x.size == 0:
        return _give(x.copy(), out, x)
    xp = namespace(x)
    e = xp.exp(x - x.max(axis=axis, keepdims=True))
    return _give(e / e.sum(axis=axis, keepdims=True), out, x)


@_quiet
@_in_float32
def log_softmax(x: Array, axis: int, out: Array | None = None) -> Array:
    """log softmax(x) = (x - max x) - log Σ e^(x - max x) along ``axis``."""
    if x.size == 0:
        return _give(x.copy(), out, x)
    xp = namespace(x)
    shifted = x - x.max(axis=axis, keepdims=True)
    return _give(shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True)), out, x)


# --- movement --------------------------------------------------------------------------------


def reshape(x: Array, shape: tuple[int, ...]) -> Array:
    """x with another shape: a view where the strides allow it, else a copy."""
    return x.reshape(shape)


def permute(x: Array, axes: tuple[int, ...]) -> Array:
    """A view of x with its axes in this order."""
    return x.transpose(axes)


def expand(x: Array, shape: tuple[int, ...]) -> Array:
    """A view of x broadcast to ``shape``; not to be written to."""
    return namespace(x).broadcast_to(x, shape)


def getitem(x: Array, index: tuple[Any, ...]) -> Array:
    """x[index] as a view; index holds ints, slices, None and Ellipsis alone."""
    return x[index if Ellipsis in index else index + (Ellipsis,)]


def getitem_backward(
    g: Array, index: tuple[Any, ...], shape: tuple[int, ...], out: Array | None = None
) -> Array:
    """Zeros of ``shape`` with g at ``index``: the gradient of ``getitem``."""
    out = _zeros(g, shape, out)
    out[index] = g
    return out


def _zeros(g: Array, shape: tuple[int, ...], out: Array | None) -> Array:
    if out is None:
        return namespace(g).zeros(shape, g.dtype)
    check_out(out, shape, g.dtype, g)
    out[...] = 0
    return out


def cat(arrays: tuple[Array, ...], axis: int, out: Array | None = None) -> Array:
    """The arrays joined along ``axis``; their other dimensions are equal."""
    return _give(namespace(*arrays).concatenate(arrays, axis), out, *arrays)


def index_select(x: Array, index: Array, axis: int, out: Array | None = None) -> Array:
    """x's slices along ``axis`` at the int64 positions ``index`` (any shape).

    The shape is x's with axis replaced by index's. Positions outside -n..n-1 raise on the CPU.
    """
    xp = namespace(x)
    if xp is np:
        _check_index("index_select", index, x.shape[axis])
    return _give(xp.take(x, index, axis=axis), out, x, index)


@_quiet
@_in_float32
def index_select_backward(
    g: Array, index: Array, axis: int, shape: tuple[int, ...], out: Array | None = None
) -> Array:
    """Zeros of ``shape`` to which g's slices are added at ``index``; repeats add up."""
    out = _zeros(g, shape, out)
    namespace(g).add.at(out, (slice(None),) * axis + (index,), g)
    return out


def gather(x: Array, index: Array, axis: int, out: Array | None = None) -> Array:
    """x[…, index[i, j], …] along ``axis``; index has x's shape but for that axis."""
    xp = namespace(x)
    if xp is np:
        _check_index("gather", index, x.shape[axis])
    return _give(xp.take_along_axis(x, index, axis=axis), out, x, index)


@_quiet
@_in_float32
def gather_backward(
    g: Array, index: Array, axis: int, shape: tuple[int, ...], out: Array | None = None
) -> Array:
    """Zeros of ``shape`` to which g is added at ``index`` along ``axis``; repeats add up."""
    xp = namespace(g)
    out = _zeros(g, shape, out)
    grid = list(xp.ogrid[tuple(slice(n) for n in index.shape)])
    grid[axis] = index
    xp.add.at(out, tuple(grid), g)
    return out


def _check_index(name: str, index: Array, n: int) -> None:
    bad = (index < -n) | (index >= n)
    if bad.any():
        raise ValueError(f"{name}: index {index[bad][0]} is outside an axis of {n} elements")


# --- data on the device ----------------------------------------------------------------------
# A recorded step can take its own batches and note its own losses: where it stands is an array.


def next_rows(order: Array, state: Array, n: int, out: Array | None = None) -> Array:
    """The next n numbers of ``order``, which begins anew at its end; state, int64 [place], then
    advances by n. order (M,) int64, M ≥ 1 → (n,) int64."""
    places = (state[0] + namespace(order).arange(n)) % order.size
    rows = _give(order[places], out, order, state)
    state[0] += n
    return rows


@_quiet
def take_scaled(
    x: Array, rows: Array, scale: float, shift: float, dtype: Any, out: Array | None = None
) -> Array:
    """x[rows] · scale + shift, as the floating ``dtype``: of uint8 images a batch of inputs.

    x (M, …), rows (n,) int64 → (n, …), computed in float32 at least and rounded once. A row outside
    -M..M-1 raises on the CPU, and of uint8 x gives NaN on a GPU.
    """
    xp, kind = namespace(x), wider(np.dtype(dtype)).type
    if xp is np:
        _check_index("take_scaled", rows, len(x))
    y = x[rows].astype(kind) * kind(scale) + kind(shift)
    return _give(y.astype(dtype), out, x, rows)


def push(ring: Array, state: Array, value: Array) -> None:
    """ring[count mod M] = value, where count is state, int64 [count], which then advances by one.
    ring (M,), M ≥ 1, value () of its dtype."""
    xp = namespace(ring)
    place = xp.arange(ring.size) == state[0] % ring.size
    ring[...] = xp.where(place, value, ring)
    state[0] += 1


# --- linear algebra --------------------------------------------------------------------------


@_quiet
@_in_float32
def matmul(a: Array, b: Array, out: Array | None = None) -> Array:
    """The matrix product of (…, M, K) and (…, K, N) → (…, M, N); a one-dimensional operand is a
    row (left) or a column (right), and its axis is dropped from the result."""
    return _give(namespace(a).matmul(a, b), out, a, b)


def check_linear(x: Array, w: Array, b: Array | None, activation: str | None) -> None:
    """Raise unless the shapes are x (N, D), w (K, D), b (K,) and the activation is known."""
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(
            f"linear: expected x (N, D) and w (K, D), got x {list(x.shape)} and w {list(w.shape)}"
        )
    if b is not None and b.shape != (w.shape[0],):
        raise ValueError(f"linear: expected b [{w.shape[0]}], got {list(b.shape)}")
    if activation not in (None, "relu"):
        raise ValueError(f"linear: activation must be None or 'relu', got {activation!r}")


def check_linear_backward(
    g: Array, x: Array, w: Array, y: Array | None, activation: str | None
) -> None:
    """Raise unless g (N, K) fits x (N, D) and w (K, D), and y is there where it is needed."""
    check_linear(x, w, None, activation)
    if g.shape != (x.shape[0], w.shape[0]):
        raise ValueError(
            f"linear_backward: expected g [{x.shape[0]}, {w.shape[0]}], got {list(g.shape)}"
        )
    if activation == "relu" and y is None:
        raise ValueError("linear_backward: activation 'relu' needs y, the output of linear")


@_quiet
@_in_float32
def linear(
    x: Array,
    w: Array,
    b: Array | None = None,
    activation: str | None = None,
    out: Array | None = None,
) -> Array:
    """x wᵀ + b, then ReLU if ``activation`` is "relu". x (N, D), w (K, D), b (K,) → (N, K)."""
    check_linear(x, w, b, activation)
    xp = namespace(x)
    y = xp.matmul(x, w.T)
    if b is not None:
        y += b
    if activation == "relu":
        xp.maximum(y, 0, out=y)
    return _give(y, out, x, w, *(() if b is None else (b,)))


@_quiet
@_in_float32
def linear_backward(
    g: Array,
    x: Array,
    w: Array,
    y: Array | None = None,
    activation: str | None = None,
    needs: tuple[bool, bool, bool] = (True, True, True),
    out: tuple[Array | None, Array | None, Array | None] = (None, None, None),
) -> tuple[Array | None, Array | None, Array | None]:
    """The gradients of ``linear``: dx = g w, dw = gᵀ x, db = Σₙ g; None where not needed.

    With activation "relu", g is zeroed first where y <= 0; y is the output of ``linear``.
    """
    check_linear_backward(g, x, w, y, activation)
    inputs = (g, x, w, y)
    if activation == "relu":
        g = relu_backward(g, y)
    dx = _give(namespace(g).matmul(g, w), out[0], *inputs) if needs[0] else None
    dw = _give(namespace(g).matmul(g.T, x), out[1], *inputs) if needs[1] else None
    db = _give(g.sum(axis=0), out[2], *inputs) if needs[2] else None
    return dx, dw, db


def check_linear_int8(
    x: Array, w8: Array, scale: Array, b: Array | None, activation: str | None
) -> None:
    """Raise unless the shapes are x (N, D), w8 (K, D), scale (K,), b (K,), w8 is int8 and scale
    ``wider`` than x, and the activation is known."""
    check_linear(x, w8, b, activation)
    wide = wider(x.dtype)
    if w8.dtype != np.int8 or scale.dtype != wide or scale.shape != w8.shape[:1]:
        raise ValueError(
            f"linear_int8: expected w8 int8[K, D] and scale {wide.name}[{w8.shape[0]}], got "
            f"{w8.dtype.name}{list(w8.shape)} and {scale.dtype.name}{list(scale.shape)}"
        )


@_quiet
@_in_float32
def linear_int8(
    x: Array,
    w8: Array,
    scale: Array,
    b: Array | None = None,
    activation: str | None = None,
    out: Array | None = None,
) -> Array:
    """``linear`` with the weights scale[k] · w8[k, d], 8 bits each: (x w8ᵀ) · scale + b, then ReLU.

    x (N, D) floating, w8 (K, D) int8, scale (K,) float32 (float64 for an x of float64), b (K,) like
    x → (N, K) like x. It has no gradient: weights are rounded so once they are trained.
    """
    check_linear_int8(x, w8, scale, b, activation)
    xp = namespace(x)
    y = xp.matmul(x, w8.T.astype(x.dtype)) * scale
    if b is not None:
        y += b
    if activation == "relu":
        xp.maximum(y, 0, out=y)
    return _give(y, out, x, w8, scale, *(() if b is None else (b,)))


# --- normalization ---------------------------------------------------------------------------


def check_layer_norm(x: Array, weight: Array | None, bias: Array | None) -> None:
    """Raise unless the shapes are x (N, D), weight (D,) or None, bias (D,) or None."""
    if x.ndim != 2:
        raise ValueError(f"layer_norm: expected x (N, D), got {list(x.shape)}")
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None and t.shape != x.shape[1:]:
            raise ValueError(f"layer_norm: expected {name} [{x.shape[1]}], got {list(t.shape)}")


@_quiet
def layer_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    out: tuple[Array | None, Array | None, Array | None] = (None, None, None),
) -> tuple[Array, Array, Array]:
    """Each row of x with mean 0 and variance 1, then · weight + bias (Ba et al., 2016).

        y = (x - μ) r · w + b;  μ = Σ x / D;  r = 1/√(Σ (x - μ)² / D + ε)

    x (N, D), weight (D,), bias (D,) → y (N, D), μ (N,), r (N,), the last two for the gradient.
    """
    check_layer_norm(x, weight, bias)
    xp = namespace(x)
    wide = x.astype(wider(x.dtype))
    d = wide.dtype.type(x.shape[1])
    mean = wide.sum(axis=1) / d
    centred = wide - mean[:, None]
    rstd = 1 / xp.sqrt((centred * centred).sum(axis=1) / d + eps)
    y = centred * rstd[:, None]
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    inputs = (x, weight, bias)
    results = zip((y, mean, rstd), out, strict=True)
    first, second, third = (_give(r.astype(x.dtype), o, *inputs) for r, o in results)
    return first, second, third


@_quiet
def layer_norm_backward(
    g: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None = None,
    needs: tuple[bool, bool, bool] = (True, True, True),
    out: tuple[Array | None, Array | None, Array | None] = (None, None, None),
) -> tuple[Array | None, Array | None, Array | None]:
    """The gradients of ``layer_norm`` for x, weight and bias; None where not needed.

    With x̂ = (x - μ) r and h = g w:
        dx = r (h - Σ h / D - x̂ Σ (h x̂) / D);  dweight = Σₙ g x̂;  dbias = Σₙ g
    """
    check_layer_norm(x, weight, None)
    inputs = (g, x, mean, rstd, weight)
    wide = wider(x.dtype)
    scale = rstd.astype(wide)[:, None]
    normed = (x.astype(wide) - mean.astype(wide)[:, None]) * scale
    dx = dweight = dbias = None
    if needs[0]:
        h = g.astype(wide) if weight is None else g.astype(wide) * weight
        d = wide.type(x.shape[1])
        along = (h * normed).sum(axis=1, keepdims=True) / d
        dx = scale * (h - h.sum(axis=1, keepdims=True) / d - normed * along)
        dx = _give(dx.astype(x.dtype), out[0], *inputs)
    if needs[1]:
        dweight = _give((g * normed).sum(axis=0).astype(x.dtype), out[1], *inputs)
    if needs[2]:
        dbias = _give(g.sum(axis=0, dtype=wide).astype(x.dtype), out[2], *inputs)
    return dx, dweight, dbias


# --- losses ----------------------------------------------------------------------------------
# A loss gives its value and, from the same pass, its gradient with respect to the first input.
# reduction: "mean", "sum" or "none"; for "none" the gradient is that of the sum.

REDUCTIONS = ("mean", "sum", "none")


def check_cross_entropy(
    logits: Array,
    labels: Array,
    weight: Array | None,
    label_smoothing: float,
    reduction: str,
    name: str = "softmax_cross_entropy",
) -> None:
    """Raise on wrong shapes and options, as ``softmax_cross_entropy`` states them."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"{name}: expected logits (N, C) and labels (N,), "
            f"got {list(logits.shape)} and {list(labels.shape)}"
        )
    if weight is not None and weight.shape != logits.shape[1:]:
        raise ValueError(
            f"{name}: expected weight [{logits.shape[1]}], one for each class, "
            f"got {list(weight.shape)}"
        )
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")


def raise_bad_label(
    labels: Array, row: int, classes: int, name: str = "softmax_cross_entropy"
) -> None:
    """Say which label is out of range."""
    raise ValueError(
        f"{name}: label {int(labels[row])} at row {row} is outside "
        f"0..{classes - 1}, the classes of logits [{len(labels)}, {classes}]; "
        "mark rows to leave out with ignore_index"
    )


@_quiet
@_in_float32
def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    out: tuple[Array | None, Array | None] = (None, None),
) -> tuple[Array, Array]:
    """The cross-entropy of softmax(logits) with integer labels, and its gradient.

    With p = softmax(logits), y the label, w the class weights, ε the smoothing, row n gives
        lₙ = -(1-ε) w_y log p_y - ε/C Σ_c w_c log p_c
        ∂lₙ/∂logits = ((1-ε) w_y + ε/C Σ_c w_c) p - (1-ε) w_y e_y - ε/C w
    and 0 for a label equal to ``ignore_index``. "mean" divides by Σₙ w_y of the rows kept, as
    PyTorch does (NaN if there is none).

    logits (N, C) floating, labels (N,) int64, weight (C,) → loss () or (N,), dlogits (N, C).
    A label outside 0..C-1 raises ValueError on the CPU and gives a NaN loss on a GPU.
    """
    check_cross_entropy(logits, labels, weight, label_smoothing, reduction)
    xp = namespace(logits)
    dtype = logits.dtype.type
    n, c = logits.shape
    keep = labels != ignore_index
    bad = keep & ((labels < 0) | (labels >= c))
    if xp is np and bad.any():
        raise_bad_label(labels, int(bad.argmax()), c)
    label = xp.where(keep & ~bad, labels, 0)
    hard, smooth = dtype(1 - label_smoothing), dtype(label_smoothing / c if c else 0)
    w = xp.ones(c, logits.dtype) if weight is None else weight
    wy = xp.where(bad, dtype(np.nan), xp.where(keep, w[label], dtype(0))) if c else keep * hard
    rows = xp.arange(n)
    logp = log_softmax(logits, 1)
    p = xp.exp(logp)
    if n and c:
        # where, not a product: a row that is left out may hold infinities
        loss = xp.where(keep, -hard * wy * logp[rows, label], dtype(0))
        dlogits = p * (hard * wy)[:, None]
        dlogits[rows, label] -= hard * wy
        if label_smoothing:
            loss += xp.where(keep, -smooth * (w * logp).sum(axis=1), dtype(0))
            dlogits += smooth * (w.sum() * p - w)
    else:
        loss, dlogits = xp.zeros(n, logits.dtype), p
    if reduction == "mean":
        total = wy.sum(dtype=logits.dtype)
        loss, dlogits = loss.sum() / total, dlogits / total
    elif reduction == "sum":
        loss = loss.sum()
    dlogits = xp.where(keep[:, None], dlogits, dtype(0))
    return _give(loss, out[0], logits, labels), _give(dlogits, out[1], logits, labels)


@_quiet
@_in_float32
def nll_loss(
    logp: Array,
    labels: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    out: tuple[Array | None, Array | None] = (None, None),
) -> tuple[Array, Array]:
    """-w_y logp[y] for each row, y its label, and the gradient: -w_y at y, 0 elsewhere.

    Labels, weights and reductions are those of ``softmax_cross_entropy``, which is this of
    ``log_softmax``. logp (N, C), labels (N,) int64, weight (C,) → loss () or (N,), dlogp (N, C).
    """
    check_cross_entropy(logp, labels, weight, 0.0, reduction, "nll_loss")
    xp, zero = namespace(logp), logp.dtype.type(0)
    n, c = logp.shape
    keep = labels != ignore_index
    bad = keep & ((labels < 0) | (labels >= c))
    if xp is np and bad.any():
        raise_bad_label(labels, int(bad.argmax()), c, "nll_loss")
    dlogp = xp.zeros_like(logp, order="C")
    loss = share = xp.zeros(n, logp.dtype)
    if n and c:
        label = xp.where(keep & ~bad, labels, 0)
        share = xp.ones(n, logp.dtype) if weight is None else weight[label]
        share = xp.where(bad, logp.dtype.type(np.nan), xp.where(keep, share, zero))
        loss = xp.where(keep, -share * logp[xp.arange(n), label], zero)
        dlogp[xp.arange(n), label] = -share
    if reduction == "mean":
        total = share.sum()
        loss, dlogp = loss.sum() / total, xp.where(keep[:, None], dlogp / total, zero)
    elif reduction == "sum":
        loss = loss.sum()
    return _give(loss, out[0], logp, labels), _give(dlogp, out[1], logp, labels)


def check_mse(input: Array, target: Array, reduction: str, name: str = "mse_loss") -> None:
    """Raise unless the shapes are equal (no broadcasting) and the reduction is known."""
    if input.shape != target.shape:
        raise ValueError(
            f"{name}: input {list(input.shape)} and target {list(target.shape)} must have the "
            "same shape; reshape one of them (broadcasting here would be a silent mistake)"
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")


@_quiet
@_in_float32
def mse_loss(
    input: Array,
    target: Array,
    reduction: str = "mean",
    out: tuple[Array | None, Array | None] = (None, None),
) -> tuple[Array, Array]:
    """(input - target)², and its gradient 2 (input - target), divided by n for "mean".

    Shapes are equal. The loss is () or, for "none", input's shape; dinput has input's shape.
    """
    check_mse(input, target, reduction)
    xp = namespace(input)
    d = input - target
    loss, dinput = _reduced(xp.asarray(d * d), xp.asarray(2 * d), reduction)
    return _give(loss, out[0], input, target), _give(dinput, out[1], input, target)


def _reduced(loss: Array, dinput: Array, reduction: str) -> tuple[Array, Array]:
    if reduction == "mean":
        n = loss.dtype.type(loss.size)
        return loss.sum() / n, dinput / n
    return loss.sum() if reduction == "sum" else loss, dinput


def check_bce(name: str, input: Array, target: Array, reduction: str, **weights: Any) -> None:
    """Raise unless the shapes are equal, weights fit to them, and the reduction is known."""
    check_mse(input, target, reduction, name)
    for which, w in weights.items():
        if w is not None and not _fits(w.shape, input.shape):
            raise ValueError(
                f"{name}: {which} {list(w.shape)} does not broadcast to input {list(input.shape)}"
            )


def _fits(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether an array of ``shape`` broadcasts to ``to``."""
    differ = {n for n, m in zip(reversed(shape), reversed(to)) if n != m}
    return len(shape) <= len(to) and differ <= {1}


@_quiet
@_in_float32
def bce_loss(
    input: Array,
    target: Array,
    weight: Array | None = None,
    reduction: str = "mean",
    out: tuple[Array | None, Array | None] = (None, None),
) -> tuple[Array, Array]:
    """The cross-entropy of probabilities x with targets t, and its gradient.

        l = -w (t log x + (1-t) log(1-x)),  each log at least -100, as PyTorch has it
        dx = w (x - t) / max(x (1-x), 10⁻¹²)

    input and target of one shape, to which weight broadcasts → loss () or, for "none", of that
    shape, dinput. An input outside 0..1 raises ValueError on the CPU and gives NaN on a GPU.
    """
    check_bce("bce_loss", input, target, reduction, weight=weight)
    xp, dtype = namespace(input), input.dtype.type
    fits = (input >= 0) & (input <= 1)
    if xp is np and not fits.all():
        raise ValueError(
            f"bce_loss: input {input[~fits].ravel()[0]} is outside 0..1; give probabilities, or "
            "scores of any size to binary_cross_entropy_with_logits"
        )
    least = dtype(-100)
    loss = (target - 1) * xp.maximum(xp.log1p(-input), least) - target * xp.maximum(
        xp.log(input), least
    )
    loss = xp.where(fits, loss, dtype(np.nan))
    dinput = (input - target) / xp.maximum(input * (1 - input), dtype(1e-12))
    if weight is not None:
        loss, dinput = loss * weight, dinput * weight
    inputs = (input, target, weight)
    loss, dinput = _reduced(xp.asarray(loss), xp.asarray(dinput), reduction)
    return _give(loss, out[0], *inputs), _give(dinput, out[1], *inputs)


@_quiet
@_in_float32
def bce_with_logits(
    input: Array,
    target: Array,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    reduction: str = "mean",
    out: tuple[Array | None, Array | None] = (None, None),
) -> tuple[Array, Array]:
    """The cross-entropy of σ(x) with targets t, by a form that does not overflow, and its gradient.

        l = w ((1-t) x + (1 + (q-1) t) log(1 + e⁻ˣ)),  q = pos_weight, or 1
        dx = w ((q t + 1 - t) σ(x) - q t)

    input and target of one shape, to which weight and pos_weight broadcast → loss () or, for
    "none", of that shape, dinput.
    """
    check_bce("bce_with_logits", input, target, reduction, weight=weight, pos_weight=pos_weight)
    xp = namespace(input)
    softplus = xp.log1p(xp.exp(-xp.absolute(input))) + xp.maximum(-input, 0)
    if pos_weight is None:
        loss, dinput = (1 - target) * input + softplus, sigmoid(input) - target
    else:
        positive = pos_weight * target
        loss = (1 - target) * input + (1 + (pos_weight - 1) * target) * softplus
        dinput = (positive + 1 - target) * sigmoid(input) - positive
    if weight is not None:
        loss, dinput = loss * weight, dinput * weight
    inputs = (input, target, weight, pos_weight)
    loss, dinput = _reduced(xp.asarray(loss), xp.asarray(dinput), reduction)
    return _give(loss, out[0], *inputs), _give(dinput, out[1], *inputs)


# --- clipping --------------------------------------------------------------------------------


@_quiet
def grad_norm(arrays: tuple[Array, ...], norm_type: float, out: Array | None = None) -> Array:
    """(Σ |x|ᵖ)^(1/p) over all elements of all arrays, p = ``norm_type`` > 0; for infinity the
    largest |x|. () of the arrays' dtype.

    The sums are float64, so that squares of float32 do not overflow; each array is summed by
    itself, then these sums in order.
    """
    xp = namespace(*arrays)
    sizes = [xp.absolute(x) for x in arrays if x.size]
    if norm_type == math.inf:
        parts = [x.max() for x in sizes]
        total = xp.stack(parts).max() if parts else 0.0
    else:
        total = xp.zeros((), np.float64)
        for x in sizes:
            total = total + (x.astype(np.float64) ** norm_type).sum()
        total = total ** (1 / norm_type)
    return _give(xp.asarray(total).astype(arrays[0].dtype), out, *arrays)


@_quiet
@_in_float32
def clip_scale(total: Array, max_norm: float, out: Array | None = None) -> Array:
    """min(1, max_norm / (total + 10⁻⁶)), the factor that brings gradients of this norm down to
    ``max_norm``; NaN if total is. total () → ()."""
    return _give(namespace(total).minimum(max_norm / (total + 1e-6), 1), out, total)


# --- loss scaling ----------------------------------------------------------------------------
# Gradients of 16 bits vanish below 6e-8 and overflow above 65504. So the loss is multiplied by a
# scale, the gradients are divided by it, and a step whose gradients are not finite is left out
# (Micikevicius et al., "Mixed precision training", 2018). state is float64 [scale, steps without an
# overflow since it changed]; found_inf is float64 (), 1 after an overflow, else 0.


@_quiet
def unscale_step(grads: tuple[Array, ...], state: Array, found_inf: Array) -> None:
    """g ← g · (1/scale) for each of grads, in place; found_inf ← whether one of them held an
    infinity or NaN before. 1/scale is rounded once to g's dtype."""
    xp = namespace(*grads)
    bad = xp.zeros((), np.bool_)
    for g in grads:
        bad = bad | ~xp.isfinite(g).all()
        g *= (1 / state[0]).astype(g.dtype)
    found_inf[...] = bad


@_quiet
def scale_step(
    state: Array, found_inf: Array, growth_factor: float, backoff_factor: float, interval: int
) -> None:
    """The scale for the next step, in place on state.

    After an overflow scale ← backoff_factor · scale, and counting begins anew. After ``interval``
    steps without one scale ← growth_factor · scale, unless that exceeds float32.
    """
    xp = namespace(state)
    count = xp.where(found_inf != 0, 0.0, state[1] + 1)
    grown = state[0] * growth_factor
    grows = (count == interval) & (grown <= np.finfo(np.float32).max)
    scale = xp.where(grows, grown, state[0])
    state[0] = xp.where(found_inf != 0, state[0] * backoff_factor, scale)
    state[1] = xp.where(count == interval, 0.0, count)


# --- optimizers ------------------------------------------------------------------------------
# p, g and the moments are one-dimensional, of one length and dtype; state is float64
# [learning rate, step]. Denormals never slow a step: tiny values count as 0. found_inf, if given,
# is that of unscale_step: where it is not 0, nothing changes.


def tiny(dtype: Any) -> float:
    """The size below which a gradient, its square or a moment counts as 0."""
    return 1e-290 if np.dtype(dtype) == np.float64 else 1e-30


def _flush(x: Array) -> Array:
    xp = namespace(x)
    return xp.where(xp.absolute(x) < tiny(x.dtype), x.dtype.type(0), x)


def _become(x: Array, new: Array, found_inf: Array | None) -> None:
    """x ← new, unless there was an overflow."""
    x[...] = new if found_inf is None else namespace(x).where(found_inf != 0, x, new)


def count_step(state: Array, found_inf: Array | None = None) -> None:
    """Advance the step count, state[1], by one: called once before the ``*_step`` it serves."""
    state[1] += 1 if found_inf is None else found_inf == 0


@_quiet
def sgd_step(
    p: Array,
    g: Array,
    buf: Array | None,
    state: Array,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    found_inf: Array | None = None,
) -> None:
    """One step of SGD, in place on p and buf (PyTorch's form of momentum).

        g ← g + λp;  buf ← μ buf + (1 - dampening) g  (the first time: buf ← g)
        p ← p - lr · (g + μ buf  if nesterov else  buf)

    ``buf`` starts as zeros; it is None if momentum is 0. state: float64 [lr, step].
    """
    xp, wide = namespace(p), wider(p.dtype)
    number, lr = wide.type, state[0].astype(wide)
    old, d = p.astype(wide, copy=False), g.astype(wide, copy=False)
    d = _flush(d + number(weight_decay) * old if weight_decay else d)
    if buf is not None:
        share = xp.where(state[1] == 1, 1.0, 1.0 - dampening).astype(wide)
        moment = _flush(number(momentum) * buf.astype(wide, copy=False) + share * d)
        d = d + number(momentum) * moment if nesterov else moment
        _become(buf, moment, found_inf)
    _become(p, old - lr * d, found_inf)


@_quiet
def adam_step(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    state: Array,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool = False,
    found_inf: Array | None = None,
) -> None:
    """One step of Adam (Kingma and Ba, 2015), in place on p, m and v, in PyTorch's order.

        g ← g + λp;  m ← m + (1-β₁)(g - m);  v ← β₂ v + (1-β₂) g²
        p ← p - lr/(1-β₁ᵗ) · m / (√v · 1/√(1-β₂ᵗ) + ε)

    ``decoupled`` is AdamW: p ← (1 - lr λ) p first, instead of g ← g + λp. ``m`` and ``v`` start
    as zeros. state: float64 [lr, t], t counted from 1; what depends on them alone is computed in
    float64 and rounded once to p's dtype.
    """
    xp, wide = namespace(p), wider(p.dtype)
    number, lr, t = wide.type, state[0], state[1]
    step_size = (lr / (1 - beta1**t)).astype(wide)
    correction = (1 / xp.sqrt(1 - beta2**t)).astype(wide)
    old, d, mean, square = (x.astype(wide, copy=False) for x in (p, g, m, v))
    if decoupled and weight_decay:
        old = old * (1 - lr * weight_decay).astype(wide)
    elif weight_decay:
        d = d + number(weight_decay) * old
    d = _flush(d)
    mean = _flush(mean + number(1 - beta1) * (d - mean))
    square = _flush(number(beta2) * square + number(1 - beta2) * _flush(d * d))
    _become(p, old - step_size * (mean / (xp.sqrt(square) * correction + number(eps))), found_inf)
    _become(m, mean, found_inf)
    _become(v, square, found_inf)
