"""Elementwise kernels: tasks over chunks of contiguous arrays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .. import reference
from . import _math
from ._arrays import compilable, deliver, destination
from ._jit import Task, device, intrinsic, task, types
from ._lanes import updates
from ._tasks import Call, array_at, integer, run, vector

__all__ = [
    "exp", "gelu", "gelu_backward", "log", "relu", "relu_backward", "sigmoid", "tanh",
]  # fmt: skip

CHUNK = 8192  # elements in one task
SMALL_CHUNK = 2048  # of arrays so short that several threads would have too few
FEW = 8  # chunks


@device
def clamp(v):
    """max(v, 0); NaN stays NaN."""
    return type(v)(0) if v <= 0 else v


@device
def shut(v, y):
    """0 where y <= 0, else v."""
    return type(v)(0) if y <= 0 else v


# --- tasks: a chunk of contiguous arrays of one length ---------------------------------------


def _size_of_chunk(length):
    return CHUNK if length > FEW * CHUNK else SMALL_CHUNK


@intrinsic
def chunk(typingctx: Any, array: Any, i: Any) -> Any:
    """The part of a one-dimensional array that task i takes."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        whole, i = context.make_array(array)(context, builder, values[0]), values[1]
        size_of = types.int64(types.int64)
        size = context.compile_internal(builder, _size_of_chunk, size_of, [whole.nitems])
        start = builder.mul(i, size)
        left = builder.sub(whole.nitems, start)
        length = builder.select(builder.icmp_signed("<", left, size), left, size)
        return array_at(context, builder, array, builder.gep(whole.data, [start]), [length])

    return array(array, types.int64), generate


def chunks(length: int) -> int:
    """The number of tasks."""
    return -(-length // _size_of_chunk(length))


@task
def _exp(args, i):
    x, out = chunk(vector(args, 0), i), chunk(vector(args, 2), i)
    for k in range(len(out)):
        out[k] = _math.exp(x[k])
    return 0


@task
def _log(args, i):
    x, out = chunk(vector(args, 0), i), chunk(vector(args, 2), i)
    for k in range(len(out)):
        out[k] = _math.log(x[k])
    return 0


@task
def _tanh(args, i):
    x, out = chunk(vector(args, 0), i), chunk(vector(args, 2), i)
    for k in range(len(out)):
        out[k] = _math.tanh(x[k])
    return 0


@task
def _sigmoid(args, i):
    x, out = chunk(vector(args, 0), i), chunk(vector(args, 2), i)
    for k in range(len(out)):
        out[k] = _math.sigmoid(x[k])
    return 0


@task
def _relu(args, i):
    x, out = chunk(vector(args, 0), i), chunk(vector(args, 2), i)
    for k in range(len(out)):
        out[k] = clamp(x[k])
    return 0


@task
def _relu_backward(args, i):
    g, y, out = chunk(vector(args, 0), i), chunk(vector(args, 2), i), chunk(vector(args, 4), i)
    for k in range(len(out)):
        out[k] = shut(g[k], y[k])
    return 0


@task
def _gelu(args, i):
    x, out, by_tanh = chunk(vector(args, 0), i), chunk(vector(args, 2), i), integer(args, 4)
    if by_tanh:
        for k in range(len(out)):
            out[k] = _math.gelu_tanh(x[k])
    else:
        for k in range(len(out)):
            out[k] = _math.gelu(x[k])
    return 0


@task
def _gelu_backward(args, i):
    g, x, out = chunk(vector(args, 0), i), chunk(vector(args, 2), i), chunk(vector(args, 4), i)
    if integer(args, 6):
        for k in range(len(out)):
            out[k] = g[k] * _math.gelu_tanh_slope(x[k])
    else:
        for k in range(len(out)):
            out[k] = g[k] * _math.gelu_slope(x[k])
    return 0


# a ∘ b, a ∘ number and number ∘ b, as vectors are: LLVM makes none of a loop that works in place.


def _plus(builder: Any, elements: Any, numbers: Any, old: Any) -> Any:
    return builder.fadd(*elements, *numbers)


def _minus(builder: Any, elements: Any, numbers: Any, old: Any) -> Any:
    return builder.fsub(*elements, *numbers)


def _minus_from(builder: Any, elements: Any, numbers: Any, old: Any) -> Any:
    return builder.fsub(*numbers, *elements)


def _times(builder: Any, elements: Any, numbers: Any, old: Any) -> Any:
    return builder.fmul(*elements, *numbers)


def _over(builder: Any, elements: Any, numbers: Any, old: Any) -> Any:
    return builder.fdiv(*elements, *numbers)


def _over_from(builder: Any, elements: Any, numbers: Any, old: Any) -> Any:
    return builder.fdiv(*numbers, *elements)


_sum, _product = updates(_plus), updates(_times)
_difference, _difference_from = updates(_minus), updates(_minus_from)
_quotient, _quotient_from = updates(_over), updates(_over_from)


@task
def _add(args, i):
    a, b, out = vector(args, 0), vector(args, 2), chunk(vector(args, 4), i)
    if len(a) == len(b):
        _sum((out,), (chunk(a, i), chunk(b, i)), ())
    else:
        one, many = (a, b) if len(a) == 1 else (b, a)
        _sum((out,), (chunk(many, i),), (one[0],))
    return 0


@task
def _mul(args, i):
    a, b, out = vector(args, 0), vector(args, 2), chunk(vector(args, 4), i)
    if len(a) == len(b):
        _product((out,), (chunk(a, i), chunk(b, i)), ())
    else:
        one, many = (a, b) if len(a) == 1 else (b, a)
        _product((out,), (chunk(many, i),), (one[0],))
    return 0


@task
def _sub(args, i):
    a, b, out = vector(args, 0), vector(args, 2), chunk(vector(args, 4), i)
    if len(a) == len(b):
        _difference((out,), (chunk(a, i), chunk(b, i)), ())
    elif len(a) == 1:
        _difference_from((out,), (chunk(b, i),), (a[0],))
    else:
        _difference((out,), (chunk(a, i),), (b[0],))
    return 0


@task
def _div(args, i):
    a, b, out = vector(args, 0), vector(args, 2), chunk(vector(args, 4), i)
    if len(a) == len(b):
        _quotient((out,), (chunk(a, i), chunk(b, i)), ())
    elif len(a) == 1:
        _quotient_from((out,), (chunk(b, i),), (a[0],))
    else:
        _quotient((out,), (chunk(a, i),), (b[0],))
    return 0


@task
def _copy(args, i):
    x, out = chunk(vector(args, 0), i), chunk(vector(args, 2), i)
    for k in range(len(out)):
        out[k] = x[k]
    return 0


# --- calls ------------------------------------------------------------------------------------


def chunked(kind: Task, cost: float, inputs: tuple[Any, ...], out: Any, *numbers: Any) -> Call:
    """A call of an elementwise task; ``cost`` is in nanoseconds for an element."""
    values = [part for x in (*inputs, out) for part in (x, x.size)]
    count = chunks(out.size)
    call = Call(kind, out.dtype, count, (*values, *numbers), (out,), cost * out.size)
    call.chunked = True
    return call


def _alike(out: np.ndarray, *inputs: np.ndarray) -> bool:
    """Whether compiled tasks take these arrays as they lie."""
    arrays = (out, *inputs)
    return compilable(*arrays) and all(
        x.shape == out.shape and x.flags.c_contiguous for x in arrays
    )


def _unary_calls(kind: Task, cost: float, x: np.ndarray, out: np.ndarray) -> list[Call] | None:
    return [chunked(kind, cost, (x,), out)] if _alike(out, x) else None


def _binary_calls(kind: Task, a: Any, b: Any, out: np.ndarray) -> list[Call] | None:
    """a and b have out's shape, or one element, or one is a number."""
    operands = [x if hasattr(x, "shape") else np.array([x], out.dtype) for x in (a, b)]
    if not all((x.size == 1 and x.dtype == out.dtype) or _alike(out, x) for x in operands):
        return None
    fits = (
        compilable(out)
        and out.size
        and any(x.shape == out.shape for x in (a, b) if hasattr(x, "shape"))
    )
    return [chunked(kind, 0.1, tuple(operands), out)] if fits else None


exp_calls = partial(_unary_calls, _exp, 0.4)
log_calls = partial(_unary_calls, _log, 0.5)
tanh_calls = partial(_unary_calls, _tanh, 0.5)
sigmoid_calls = partial(_unary_calls, _sigmoid, 0.5)
relu_calls = partial(_unary_calls, _relu, 0.1)
add_calls = partial(_binary_calls, _add)
sub_calls = partial(_binary_calls, _sub)
mul_calls = partial(_binary_calls, _mul)
div_calls = partial(_binary_calls, _div)


def copy_calls(x: np.ndarray, out: np.ndarray) -> list[Call] | None:
    """``copy`` as calls, or None if compiled tasks do not take these arrays: of two that overlap
    some elements would be read after others were written over them."""
    shifted = np.may_share_memory(x, out) and x.ctypes.data != out.ctypes.data
    return None if shifted else _unary_calls(_copy, 0.1, x, out)


def relu_backward_calls(g: np.ndarray, y: np.ndarray, out: np.ndarray) -> list[Call] | None:
    """``relu_backward`` as calls, or None if compiled tasks do not take these arrays."""
    return [chunked(_relu_backward, 0.1, (g, y), out)] if _alike(out, g, y) else None


def gelu_calls(x: np.ndarray, approximate: str, out: np.ndarray) -> list[Call] | None:
    """``gelu`` as calls, or None if compiled tasks do not take these arrays."""
    known = approximate in ("none", "tanh") and _alike(out, x)
    return [chunked(_gelu, 1.0, (x,), out, approximate == "tanh")] if known else None


def gelu_backward_calls(
    g: np.ndarray, x: np.ndarray, approximate: str, out: np.ndarray
) -> list[Call] | None:
    """``gelu_backward`` as calls, or None if compiled tasks do not take these arrays."""
    known = approximate in ("none", "tanh") and _alike(out, g, x)
    return [chunked(_gelu_backward, 1.0, (g, x), out, approximate == "tanh")] if known else None


# --- kernels ----------------------------------------------------------------------------------


def _elementwise(
    calls: Callable[..., list[Call] | None],
    otherwise: Callable[..., np.ndarray],
    arrays: tuple[np.ndarray, ...],
    out: np.ndarray | None,
    *constants: Any,
) -> np.ndarray:
    """Run the calls for contiguous forms of these arrays, or the reference where there are none."""
    if not compilable(*arrays) or any(x.shape != arrays[0].shape for x in arrays):
        return otherwise(*arrays, *constants, out)
    y = destination(out, arrays[0].shape, arrays[0].dtype, *arrays, elementwise=True)
    made = calls(*[np.ascontiguousarray(x).reshape(x.shape) for x in arrays], *constants, y)
    if made is None:
        return otherwise(*arrays, *constants, out)
    run(*made)
    return deliver(y, out)


def exp(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """eˣ."""
    return _elementwise(exp_calls, reference.exp, (x,), out)


def log(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The natural logarithm; -inf at 0, NaN below."""
    return _elementwise(log_calls, reference.log, (x,), out)


def tanh(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The hyperbolic tangent."""
    return _elementwise(tanh_calls, reference.tanh, (x,), out)


def sigmoid(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """1 / (1 + e⁻ˣ)."""
    return _elementwise(sigmoid_calls, reference.sigmoid, (x,), out)


def relu(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """max(x, 0); NaN stays NaN."""
    return _elementwise(relu_calls, reference.relu, (x,), out)


def relu_backward(g: np.ndarray, y: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """0 where y <= 0, else g; y is relu's output (its input serves as well). At 0: 0; at NaN: g."""
    return _elementwise(relu_backward_calls, reference.relu_backward, (g, y), out)


def gelu(x: np.ndarray, approximate: str = "none", out: np.ndarray | None = None) -> np.ndarray:
    """x Φ(x), Φ the distribution function of the normal distribution (Hendrycks and Gimpel, 2016).

    For ``approximate`` "tanh": x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))).
    """
    return _elementwise(gelu_calls, reference.gelu, (x,), out, approximate)


def gelu_backward(
    g: np.ndarray, x: np.ndarray, approximate: str = "none", out: np.ndarray | None = None
) -> np.ndarray:
    """g · (Φ(x) + x e^(-x²/2)/√(2π)); the derivative of the other form for "tanh"."""
    return _elementwise(gelu_backward_calls, reference.gelu_backward, (g, x), out, approximate)
