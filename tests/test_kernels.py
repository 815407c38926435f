"""Every kernel on every backend against the reference, and the rules of the seam: inputs stay as
they are, a given ``out`` is overwritten and returned, overlap is refused, dtypes are kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tinygrad_ish.kernels import Backend, get_backend, reference

from .backends import BACKENDS

RAN: Counter[str] = Counter()

Rng = np.random.Generator
FLOATS = ("float32", "float64")
ELEMENTWISE = set(reference.__all__[: reference.__all__.index("sum")])
VIEWS = {"reshape", "permute", "expand", "getitem"}
IN_PLACE = {
    "count_step", "sgd_step", "adam_step", "unscale_step", "scale_step", "draw", "next_rows", "push",
}  # fmt: skip
TOLERANCE = {"float16": 1e-2, "float32": 2e-5, "float64": 1e-12}


@dataclass
class Case:
    """``make(rng, dtype)`` gives the positional arguments; arrays among them are the inputs."""

    make: Callable[[Rng, Any], tuple[Any, ...]]
    kwargs: dict[str, Any]
    dtypes: tuple[str, ...]


def case(make: Any, dtypes: tuple[str, ...] = FLOATS, **kwargs: Any) -> Case:
    return Case(make, kwargs, dtypes)


def normal(*shapes: Any) -> Callable[[Rng, Any], tuple[Any, ...]]:
    return lambda rng, dtype: tuple(rng.normal(size=s).astype(dtype) for s in shapes)


def positive(*shapes: Any) -> Callable[[Rng, Any], tuple[Any, ...]]:
    return lambda rng, dtype: tuple(rng.uniform(0.5, 2, s).astype(dtype) for s in shapes)


def integers(*shapes: Any, low: int = -3, high: int = 4) -> Callable[[Rng, Any], tuple[Any, ...]]:
    return lambda rng, dtype: tuple(rng.integers(low, high, s).astype(dtype) for s in shapes)


def fixed(*values: Any) -> Callable[[Rng, Any], tuple[Any, ...]]:
    return lambda rng, dtype: tuple(np.array(v, dtype) for v in values)


def then(make: Any, *constants: Any) -> Callable[[Rng, Any], tuple[Any, ...]]:
    return lambda rng, dtype: (*make(rng, dtype), *constants)


EXTREMES = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e30, -1e30, 1e-38, 88.0, -104.0]
INTS = ("int64", "int32", "uint8")
TICKET = np.array([-5, 2**33 + 1])  # [seed, calls] of which both words matter

BINARY = [
    case(normal((3, 5), (3, 5))), case(normal((4, 3, 5), (3, 1))), case(normal((), (7,))),
    case(normal((0, 3), (3,))), case(fixed(EXTREMES, EXTREMES[::-1])),
    case(then(normal((3, 5)), 2.5)), case(normal((33, 17), (17,)), ("float16",)),
]  # fmt: skip
ORDERED = [*BINARY, case(integers((3, 5), (5,), low=0), INTS), case(fixed([1.0, 2.0], [1.0, 3.0]))]
UNARY = [
    case(normal((3, 5))), case(normal(())), case(normal((0, 3))), case(normal((1031,))),
    case(normal((2, 3, 4))), case(fixed(EXTREMES)), case(normal((9, 9)), ("float16",)),
]  # fmt: skip
AXES = [
    case(then(normal((4, 5)), None)), case(then(normal((4, 5)), 0)), case(then(normal((4, 5)), (1,), True)),
    case(then(normal((2, 3, 4)), (0, 2))), case(then(normal(()), None)), case(then(fixed(EXTREMES), None)),
    case(then(fixed([[1.0, 3.0, 3.0], [-1.0, -2.0, -1.0]]), 1)),
]  # fmt: skip
WITH_EMPTY = [
    case(then(normal((0, 5)), 0)),
    case(then(normal((4, 0)), 1, True)),
    case(then(normal((0,)), None)),
]
LOGICAL = [
    case(integers((3, 5), (5,), low=0, high=2), ("bool", "int64", "uint8")),
    case(integers((0,), (1,), low=0), ("int32",)),
]
SHAPES_OF_LINEAR = [
    (5, 7, 3),
    (1, 784, 10),
    (64, 33, 17),
    (130, 65, 40),
    (0, 4, 3),
    (3, 0, 2),
    (3, 4, 0),
    (4, 8, 16),
    (257, 20, 129),
    (4, 4, 4),
]


def linear_args(n: int, d: int, k: int, bias: bool = True) -> Callable[[Rng, Any], Any]:
    def make(rng: Rng, dtype: Any) -> tuple[Any, ...]:
        x, w = rng.normal(size=(n, d)).astype(dtype), rng.normal(size=(k, d)).astype(dtype)
        return (x, w, rng.normal(size=k).astype(dtype)) if bias else (x, w)

    return make


def linear_backward_args(n: int, d: int, k: int, relu: bool) -> Callable[[Rng, Any], Any]:
    def make(rng: Rng, dtype: Any) -> tuple[Any, ...]:
        x, w = linear_args(n, d, k, False)(rng, dtype)
        g = rng.normal(size=(n, k)).astype(dtype)
        y = np.maximum(rng.normal(size=(n, k)), 0).astype(dtype)
        return (g, x, w, y, "relu") if relu else (g, x, w)

    return make


def linear_int8_args(n: int, d: int, k: int, bias: bool = True) -> Callable[[Rng, Any], Any]:
    def make(rng: Rng, dtype: Any) -> tuple[Any, ...]:
        x = rng.normal(size=(n, d)).astype(dtype)
        w8, scale = rng.integers(-128, 128, (k, d), np.int8), rng.uniform(1e-3, 2e-2, k)
        b = (rng.normal(size=k).astype(dtype),) if bias else ()
        return (x, w8, scale.astype(reference.wider(x.dtype)), *b)

    return make


SHAPES_OF_NORM = [(5, 7), (1, 784), (64, 33), (0, 4), (3, 0), (4, 1), (257, 20)]


def layer_norm_args(n: int, d: int) -> Callable[[Rng, Any], Any]:
    return normal((n, d), (d,), (d,))


def layer_norm_backward_args(n: int, d: int, weight: bool = True) -> Callable[[Rng, Any], Any]:
    def make(rng: Rng, dtype: Any) -> tuple[Any, ...]:
        g, x, w = normal((n, d), (n, d), (d,))(rng, dtype)
        return (g, x, *normal((n,))(rng, dtype), *positive((n,))(rng, dtype), *([w] * weight))

    return make


def shares(shape: Any, weight: Any = None) -> Callable[[Rng, Any], Any]:
    """Probabilities, targets and perhaps weights."""

    def make(rng: Rng, dtype: Any) -> tuple[Any, ...]:
        x, t = (np.asarray(rng.uniform(0, 1, shape), dtype) for _ in range(2))
        return (x, t) if weight is None else (x, t, *positive(weight)(rng, dtype))

    return make


def logits(
    n: int, c: int, scale: float = 1.0, skip: int = 0, weight: bool = False
) -> Callable[[Rng, Any], Any]:
    def make(rng: Rng, dtype: Any) -> tuple[Any, ...]:
        labels = rng.integers(0, c, n)
        labels[:skip] = -100
        own = (rng.uniform(0.5, 2, c).astype(dtype),) if weight else ()
        return ((scale * rng.normal(size=(n, c))).astype(dtype), labels, *own)

    return make


def step_args(
    n: int, moments: int, scale: float, state: Any, *constants: Any
) -> Callable[[Rng, Any], Any]:
    def make(rng: Rng, dtype: Any) -> tuple[Any, ...]:
        p, g = (rng.normal(size=n).astype(dtype) for _ in range(2))
        m = [np.abs(rng.normal(size=n) * scale).astype(dtype) for _ in range(moments)]
        return (
            p,
            (g * scale).astype(dtype),
            *m,
            *([None] * (1 - moments)),
            np.array(state),
            *constants,
        )

    return make


def grads_args(
    shapes: Any, scale: float, at: int = 0, bad: float | None = None
) -> Callable[[Rng, Any], Any]:
    """Gradients, of which one may hold a number that is not finite, the scale and a flag."""

    def make(rng: Rng, dtype: Any) -> tuple[Any, ...]:
        grads = tuple(np.asarray(rng.normal(size=s) * scale, dtype) for s in shapes)
        if bad is not None:
            grads[at][-1] = bad
        return (grads, np.array([scale, 3.0]), np.array(np.nan))

    return make


def index_args(shape: Any, index: Any) -> Callable[[Rng, Any], Any]:
    return lambda rng, dtype: (rng.normal(size=shape).astype(dtype), np.array(index, np.int64))


CASES: dict[str, list[Case]] = {
    "add": BINARY, "sub": BINARY, "mul": BINARY, "maximum": BINARY, "minimum": BINARY,
    "div": BINARY, "remainder": BINARY[:4], "floor_div": [*BINARY[:4], case(integers((4,), (4,), low=1), INTS)],
    "pow": [case(positive((3, 5), (5,))), case(then(normal((3, 5)), 2)), case(normal((0, 2), (2,)))],
    "where": [case(lambda r, d: (r.random((3, 4)) > 0.5, *normal((3, 4), (4,))(r, d))), case(lambda r, d: (r.random((0, 4)) > 0.5, *normal((4,), ())(r, d)))],
    "neg": UNARY, "abs": UNARY, "sign": UNARY, "sqrt": UNARY, "exp": UNARY, "log": UNARY,
    "sigmoid": UNARY, "tanh": UNARY, "relu": [*UNARY, case(integers((4, 3)), ("int64",))],
    "relu_backward": [case(normal((3, 5), (3, 5))), case(normal((), ())), case(normal((0, 2), (0, 2))), case(fixed(EXTREMES, EXTREMES)), case(normal((1031,), (1031,)))],
    "gelu": [*UNARY, *[case(then(c.make, "tanh"), c.dtypes) for c in UNARY]],
    "gelu_backward": [case(then(c, how)) for how in ("none", "tanh") for c in [normal((3, 5), (3, 5)), normal((), ()), normal((0, 2), (0, 2)), fixed(EXTREMES, EXTREMES[::-1]), normal((1031,), (1031,))]],
    "eq": ORDERED, "ne": ORDERED, "lt": ORDERED, "le": ORDERED, "gt": ORDERED, "ge": ORDERED,
    "bitwise_not": [case(integers((3, 5), low=0, high=2), ("bool", "int64"))],
    "bitwise_and": LOGICAL, "bitwise_or": LOGICAL,
    "copy": [*UNARY, case(integers((3,)), ("int64",))],
    "cast": [case(then(normal((3, 4)), np.dtype("float64")), ("float32", "float16")), case(then(normal((0, 2)), np.dtype("float32"))), case(then(normal((5,)), np.dtype("int64")))],
    "draw": [case(lambda r, d: (np.array([5, 3]),), ("int64",))],
    "dropout": [case(then(lambda r, d, x=x: (*x(r, d), TICKET), p)) for x, p in [
        (normal((3, 5)), 0.5), (normal((2, 3, 4)), 0.1), (normal(()), 0.5), (normal((0, 3)), 0.5), (normal((1031,)), 0.9),
        (normal((4, 4)), 1.0), (normal((4, 4)), 0.0), (normal((4, 4)), 1 - 2.0**-40), (fixed(EXTREMES), 0.5)]]
        + [case(then(lambda r, d: (*normal((9, 9))(r, d), TICKET), 0.3), ("float16",))],
    "next_rows": [case(then(lambda r, d, m=m, at=at: (r.permutation(m), np.array([at])), n), ("int64",)) for m, at, n in [(10, 0, 4), (10, 8, 4), (3, 2**40, 7), (1, 0, 1), (5, 3, 0), (1000, 990, 64)]],
    "take_scaled": [case(then(lambda r, d, s=s, n=n: (r.integers(0, 256, s).astype("uint8"), r.integers(-s[0], s[0], n), ), 1 / 255, -0.5, np.dtype(t)), ("uint8",)) for t in (*FLOATS, "float16") for s, n in [((7, 28, 28), 5), ((3, 5), 64), ((4,), 3), ((3, 0), 2), ((3, 4), 0)]]
        + [case(then(lambda r, d: (r.normal(size=(6, 5)).astype(d), r.integers(0, 6, 6)), 2.0, 1.0, np.dtype("float32")))],
    "push": [case(lambda r, d, m=m, at=at: (*normal((m,))(r, d), np.array([at]), *normal(())(r, d))) for m, at in [(4, 0), (4, 3), (4, 9), (1, 2**40)]],
    "sum": [*AXES, *WITH_EMPTY, case(then(integers((3, 4), low=0), 1), INTS), case(then(normal((3, 2)), ()), FLOATS)],
    "sum_to": [case(then(normal((4, 3, 5)), (3, 1))), case(then(normal((3, 5)), ())), case(then(normal((0, 5)), (1, 5))), case(then(normal((2, 3)), (2, 3)))],
    "mean": [*AXES, *WITH_EMPTY, case(normal((2, 70_000)), ("float16",)), case(then(normal((4, 5)), 1), correction=1), case(then(normal((4, 1)), 1), correction=1)],
    "mean_backward": [case(then(normal((4, 1)), (4, 5))), case(then(normal((1, 1)), (3, 2))), case(then(normal((1, 3)), (0, 3))), case(then(normal((4, 1)), (4, 5), 1)), case(then(normal(()), ()))],
    "amax": AXES, "amin": AXES,
    "argmax": [c for c in AXES if c.make(np.random.default_rng(0), "float64")[1] not in ((1,), (0, 2))],
    "argmin": [c for c in AXES if c.make(np.random.default_rng(0), "float64")[1] not in ((1,), (0, 2))],
    "any": [*AXES, *WITH_EMPTY, case(then(integers((3, 4), low=0, high=2), 0), ("bool",))],
    "all": [*AXES, *WITH_EMPTY, case(then(integers((3, 4), low=0, high=2), 0), ("bool",))],
    "softmax": [case(then(normal((4, 5)), 1)), case(then(normal((4, 5)), 0)), case(then(normal((0, 5)), 1)), case(then(normal((5, 0)), 1)), case(then(fixed([1e30, -1e30, 0.0]), 0))],
    "log_softmax": [case(then(normal((4, 5)), 1)), case(then(normal((3, 0)), 1)), case(then(fixed([1e30, -1e30, 0.0]), 0))],
    "reshape": [case(then(normal((4, 6)), (3, 8))), case(then(normal((0, 3)), (3, 0))), case(then(normal(()), (1,)))],
    "permute": [case(then(normal((2, 3, 4)), (2, 0, 1))), case(then(normal(()), ()))],
    "expand": [case(then(normal((3, 1)), (2, 3, 4))), case(then(normal((1,)), (0,)))],
    "getitem": [case(then(normal((4, 6)), (slice(1, None), 0))), case(then(normal((4, 6)), (Ellipsis, None, slice(0, 6, 2)))), case(then(normal((4,)), (2,)))],
    "getitem_backward": [case(then(normal((3,)), (slice(1, None), 0), (4, 6))), case(then(normal(()), (2,), (4,)))],
    "cat": [case(lambda r, d: (normal((2, 3), (2, 1), (2, 0))(r, d), 1)), case(lambda r, d: (normal((2, 3), (1, 3))(r, d), 0))],
    "index_select": [case(then(index_args((4, 3), [2, 0, 2]), 0)), case(then(index_args((4, 3), [[-1], [1]]), 1)), case(then(index_args((4, 3), []), 0))],
    "index_select_backward": [case(then(index_args((3, 3), [2, 0, 2]), 0, (4, 3))), case(then(index_args((4, 2, 1), [[1], [1]]), 1, (4, 3)))],
    "gather": [case(then(index_args((2, 4), [[0, 3, 3], [1, 1, 2]]), 1)), case(then(index_args((3,), [2, 2]), 0))],
    "gather_backward": [case(then(index_args((2, 3), [[0, 3, 3], [1, 1, 2]]), 1, (2, 4)))],
    "matmul": [case(normal((3, 4), (4, 5))), case(normal((2, 1, 3, 4), (5, 4, 2))), case(normal((0, 4), (4, 2))), case(normal((3, 0), (0, 2))), case(normal((65, 33), (33, 70)))],
    "linear": [case(linear_args(*s)) for s in SHAPES_OF_LINEAR] + [case(linear_args(*s, bias=False), activation="relu") for s in SHAPES_OF_LINEAR]
        + [case(linear_args(6, 5, 4), activation="relu"), case(linear_args(4, 5, 6), ("float16",))],
    "linear_backward": [case(linear_backward_args(*s, relu)) for s in SHAPES_OF_LINEAR for relu in (False, True)]
        + [case(linear_backward_args(5, 4, 3, True), needs=(False, True, False)), case(linear_backward_args(5, 4, 3, False), needs=(True, False, False)), case(linear_backward_args(5, 4, 3, False), ("float16",))],
    "linear_int8": [case(linear_int8_args(*s)) for s in SHAPES_OF_LINEAR] + [case(linear_int8_args(*s, bias=False), activation="relu") for s in SHAPES_OF_LINEAR]
        + [case(linear_int8_args(6, 5, 4), activation="relu"), case(linear_int8_args(4, 5, 6), ("float16",))],
    "layer_norm": [case(layer_norm_args(*s)) for s in SHAPES_OF_NORM] + [case(normal((4, 6))), case(lambda r, d: (*normal((4, 6), (6,))(r, d), None, 1e-2)),
        case(then(fixed([[1e4, 1e4 + 1, 1e4 + 2], [3.0, 3.0, 3.0]]), None, None, 0.1)), case(layer_norm_args(5, 4), ("float16",))],
    "layer_norm_backward": [case(layer_norm_backward_args(*s)) for s in SHAPES_OF_NORM] + [case(layer_norm_backward_args(4, 6), needs=n) for n in [(True, False, False), (False, True, False), (False, False, True)]]
        + [case(layer_norm_backward_args(4, 6, False)), case(layer_norm_backward_args(5, 4), ("float16",))],
    "nll_loss": [case(logits(5, 3)), case(logits(1, 1)), case(logits(0, 3), reduction="sum"), case(logits(0, 3), reduction="none"), case(logits(8, 5, skip=3)), case(logits(8, 5, skip=2), reduction="none"),
        case(logits(8, 5), reduction="sum"), case(logits(8, 5, weight=True, skip=1)), case(logits(8, 5, weight=True), reduction="none"), case(logits(4, 3, skip=4)), case(logits(8, 5), ("float16",))],
    "bce_loss": [case(shares((3, 4))), case(shares((3, 4), (4,)), reduction="sum"), case(shares((3, 4), (3, 1)), reduction="none"), case(shares(())), case(shares((0, 2))), case(shares((1031,))),
        case(fixed([0.0, 1.0, 0.0, 1.0, 1e-30], [0.0, 1.0, 1.0, 0.0, 1.0]), reduction="none")],
    "bce_with_logits": [case(normal((3, 4), (3, 4))), case(normal((3, 4), (3, 4), (4,)), reduction="sum"), case(lambda r, d: (*normal((3, 4), (3, 4))(r, d), None, *positive((4,))(r, d)), reduction="none"),
        case(lambda r, d: (*normal((3, 4), (3, 4), (3, 1))(r, d), *positive((1, 4))(r, d))), case(normal((), ())), case(normal((0, 2), (0, 2))), case(fixed([1e4, -1e4, 0.0, -0.0, 1e30], [0.0, 1.0, 1.0, 0.0, 1.0]), reduction="none")],
    "softmax_cross_entropy": [case(logits(5, 3)), case(logits(64, 10)), case(logits(1, 1)), case(logits(0, 3), reduction="sum"), case(logits(0, 3), reduction="none"),
        case(logits(8, 5, skip=3)), case(logits(8, 5, skip=2), reduction="none"), case(logits(8, 5), reduction="sum"), case(logits(6, 4, 1e4)),
        case(logits(8, 5, weight=True, skip=1)), case(logits(8, 5, weight=True), label_smoothing=0.3, reduction="none"), case(logits(8, 5, skip=2), label_smoothing=0.1),
        case(logits(4, 3, skip=4)), case(logits(3, 1000)), case(logits(8, 5), ("float16",))],
    "mse_loss": [case(normal((3, 4), (3, 4))), case(normal((3, 4), (3, 4)), reduction="none"), case(normal((1031,), (1031,)), reduction="sum"), case(normal((), ())), case(normal((0, 2), (0, 2)), reduction="sum"), case(normal((0,), (0,)))],
    "grad_norm": [case(lambda r, d, s=s, p=p: (normal(*s)(r, d), p)) for s in [((3, 4), (5,), ()), ((0,), (2, 2)), ((),), ((0,),), ((300, 70), (11,))] for p in (2.0, 1.0, np.inf, 3.5)]
        + [case(lambda r, d: ((np.full(9, 1e25, d), np.full(2, -1e30, d)), 2.0)), case(lambda r, d: (fixed([1.0, np.nan], [np.inf])(r, d), 2.0)), case(lambda r, d: (fixed([1.0, np.nan], [np.inf])(r, d), np.inf))],
    "clip_scale": [case(then(fixed(x), 1.5)) for x in (0.0, 1.0, 1.5, 7.0, 1e30, np.inf, np.nan)] + [case(then(fixed(0.0), 0.0))],
    "unscale_step": [case(grads_args(s, scale)) for s in [((3, 4), (5,), ()), ((0,), (2, 2)), ((),), ((0,),), ((300, 70), (11,)), ((7,),) * 19] for scale in (65536.0, 3.0)]
        + [case(grads_args(((4,), (33,)), 2.0, at, bad)) for at in (0, 1) for bad in (np.inf, -np.inf, np.nan)],
    "scale_step": [case(lambda r, d, s=s, f=f: (np.array(s), np.array(f), 2.0, 0.5, 5), ("float64",)) for s, f in [([8.0, 0.0], 0.0), ([8.0, 4.0], 0.0), ([8.0, 4.0], 1.0), ([2.0**127, 4.0], 0.0), ([3.0, 2.0], 1.0)]],
    "count_step": [case(lambda r, d: (np.array([0.1, 3.0]),), ("float64",)), *[case(lambda r, d, f=f: (np.array([0.1, 3.0]), np.array(f)), ("float64",)) for f in (0.0, 1.0)]],
    "sgd_step": [case(step_args(n, m, s, [0.1, t], *c)) for n, m, s, t, c in [
        (7, 0, 1, 1.0, (0.0, 0.0, 0.0, False)), (33, 1, 1, 1.0, (0.9, 0.5, 0.0, False)), (33, 1, 1, 2.0, (0.9, 0.5, 0.01, False)),
        (1031, 1, 1, 5.0, (0.9, 0.0, 0.1, True)), (0, 1, 1, 1.0, (0.9, 0.0, 0.0, False)), (33, 1, 1e-31, 2.0, (0.9, 0.0, 0.0, False)),
        *[(33, m, 1, 2.0, (0.9 * m, 0.0, 0.1, False, np.array(f))) for m in (0, 1) for f in (0.0, 1.0)]]]
        + [case(step_args(33, 1, 1, [0.1, 2.0], 0.9, 0.5, 0.01, False), ("float16",))],
    "adam_step": [case(step_args(n, 2, s, [1e-3, t], 0.9, 0.999, 1e-8, wd)) for n, s, t, wd in [
        (7, 1, 1.0, 0.0), (1031, 1, 2.0, 0.0), (33, 1, 100.0, 0.01), (0, 1, 1.0, 0.0), (33, 1e-16, 3.0, 0.0), (33, 1e-31, 3.0, 0.0)]]
        + [case(step_args(n, 2, 1, [1e-2, 4.0], 0.9, 0.999, 1e-8, wd, True)) for n, wd in [(1031, 0.1), (33, 0.0)]]
        + [case(step_args(33, 2, 1, [1e-2, 4.0], 0.9, 0.999, 1e-8, 0.1, d, np.array(f))) for d in (False, True) for f in (0.0, 1.0)]
        + [case(step_args(33, 2, 1, [1e-2, 4.0], 0.9, 0.999, 1e-4, 0.1, d), ("float16",)) for d in (False, True)],
}  # fmt: skip


def strided(x: np.ndarray) -> np.ndarray:
    room = np.zeros((*[2 * n for n in reversed(x.shape)],), x.dtype).T
    view = room[tuple(slice(None, None, 2) for _ in x.shape)]
    view[...] = x
    return view


def on(backend: Backend, value: Any, layout: str) -> Any:
    """An argument as the backend takes it."""
    if isinstance(value, tuple) and value and isinstance(value[0], np.ndarray):
        return tuple(on(backend, v, layout) for v in value)
    if not isinstance(value, np.ndarray):
        return value
    return backend.asarray(strided(value) if layout == "strided" and value.ndim else value.copy())


def arrays_in(args: Any) -> list[Any]:
    found = []
    for a in args:
        found += arrays_in(a) if isinstance(a, tuple) else [a] if hasattr(a, "strides") else []
    return found


def results_of(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple) else [value]


def run(name: str, backend: Backend, args: Any, kwargs: Any) -> list[Any]:
    """The results as NumPy arrays; of a kernel that works in place, its arguments afterwards."""
    returned = getattr(backend, name)(*args, **kwargs)
    if name in IN_PLACE:
        assert (returned is None) == (name not in ("draw", "next_rows"))
        return [backend.to_numpy(a) for a in arrays_in([returned, *args])]
    return [None if r is None else backend.to_numpy(r) for r in results_of(returned)]


def agree(got: list[Any], expected: list[Any], dtype: str, what: str) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert (a.shape, a.dtype) == (b.shape, b.dtype), what
            tol = TOLERANCE.get(dtype, 0)
            np.testing.assert_allclose(a, b, rtol=tol, atol=tol, err_msg=what)


def everything(name: str) -> list[tuple[Case, str, str]]:
    return [
        (c, dtype, layout)
        for c in CASES[name]
        for dtype in c.dtypes
        for layout in ("contiguous", "strided")
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", sorted(CASES))
def test_kernel_agrees_with_the_reference(name: str, backend: str) -> None:
    k = get_backend(backend)
    for i, (c, dtype, layout) in enumerate(everything(name)):
        args = c.make(np.random.default_rng(i), dtype)
        expected = run(
            name,
            get_backend("numpy"),
            [on(get_backend("numpy"), a, "contiguous") for a in args],
            c.kwargs,
        )
        given = [on(k, a, layout) for a in args]
        before = [k.to_numpy(x).tobytes() for x in arrays_in(given)]
        got = run(name, k, given, c.kwargs)
        agree(got, expected, dtype, f"{name} case {i}: {dtype}, {layout}")
        if name not in IN_PLACE:
            after = [k.to_numpy(x).tobytes() for x in arrays_in(given)]
            assert before == after, f"{name} changed an input"
        RAN[backend] += 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", sorted(set(CASES) - VIEWS - IN_PLACE))
def test_a_given_out_is_overwritten_and_returned(name: str, backend: str) -> None:
    k = get_backend(backend)
    for i, (c, dtype, layout) in enumerate(everything(name)):
        given = [on(k, a, layout) for a in c.make(np.random.default_rng(i), dtype)]
        results = results_of(getattr(k, name)(*given, **c.kwargs))
        outs = [None if r is None else poisoned(k, r) for r in results]
        out = tuple(outs) if len(outs) > 1 else outs[0]
        returned = results_of(getattr(k, name)(*given, **c.kwargs, out=out))
        for r, o, expected in zip(returned, outs, results, strict=True):
            assert r is o
            if o is not None:
                assert k.to_numpy(o).tobytes() == k.to_numpy(expected).tobytes(), f"case {i}"


def poisoned(k: Backend, like: Any) -> Any:
    """An array of that shape and dtype whose every element is wrong."""
    return k.full(like.shape, np.nan if like.dtype.kind == "f" else 113, like.dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", sorted(set(CASES) - VIEWS - IN_PLACE))
def test_out_that_overlaps_an_input(name: str, backend: str) -> None:
    """Elementwise kernels may write over an input that is exactly ``out``; the others refuse."""
    k = get_backend(backend)
    tried = 0
    for i, c in enumerate(CASES[name]):
        dtype = c.dtypes[0]
        given = [on(k, a, "contiguous") for a in c.make(np.random.default_rng(i), dtype)]
        results = results_of(getattr(k, name)(*given, **c.kwargs))
        for at, result in enumerate(results):
            for x in arrays_in(given):
                if (
                    result is None
                    or not result.size
                    or x.shape != result.shape
                    or x.dtype != result.dtype
                ):
                    continue
                tried += 1
                out = [None] * len(results)
                out[at] = x
                target = tuple(out) if len(out) > 1 else x
                if name in ELEMENTWISE:
                    assert getattr(k, name)(*given, **c.kwargs, out=target) is x
                    assert k.to_numpy(x).tobytes() == k.to_numpy(result).tobytes()
                    given = [
                        on(k, a, "contiguous") for a in c.make(np.random.default_rng(i), dtype)
                    ]
                else:
                    with pytest.raises(ValueError, match="overlaps"):
                        getattr(k, name)(*given, **c.kwargs, out=target)
    assert tried or name in NEVER_OVERLAP, f"no case of {name} has an input like its output"


NEVER_OVERLAP = {"cast", "sum", "amax", "amin", "mean", "argmax", "argmin", "any", "all",
    "eq", "ne", "lt", "le", "gt", "ge", "index_select", "gather", "gather_backward",
    "getitem_backward", "matmul", "cat", "index_select_backward"}  # fmt: skip


def test_every_kernel_has_a_row() -> None:
    assert set(CASES) == set(reference.__all__)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_label_out_of_range(backend: str) -> None:
    k = get_backend(backend)
    x, labels = k.full((3, 4), 0.5, "float32"), k.asarray(np.array([0, 4, -100]))
    if k.device == "cuda":
        assert np.isnan(k.to_numpy(k.softmax_cross_entropy(x, labels)[0]))
    else:
        with pytest.raises(ValueError, match=r"label 4 at row 1 is outside 0\.\.3"):
            k.softmax_cross_entropy(x, labels)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_denormals_do_not_survive_a_step(backend: str, dtype: str) -> None:
    k = get_backend(backend)
    tiny = reference.tiny(dtype)
    p, g, m, v = (k.full((64,), x, dtype) for x in (1.0, 0.0, tiny * 1.05, tiny * 1.0005))
    state = k.asarray(np.array([1e-3, 5.0]))
    k.adam_step(p, g, m, v, state, 0.9, 0.999, 1e-8, 0.0)
    assert not k.to_numpy(m).any() and not k.to_numpy(v).any()
    buf = k.full((64,), tiny * 1.05, dtype)
    k.sgd_step(p, g, buf, state, 0.9, 0.0, 0.0, False)
    assert not k.to_numpy(buf).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_probability_out_of_range(backend: str) -> None:
    k = get_backend(backend)
    for bad in (1.5, -0.1, np.nan):
        x = k.asarray(np.array([0.5, bad]))
        if k.device == "cuda":
            assert np.isnan(k.to_numpy(k.bce_loss(x, x)[0]))
        else:
            with pytest.raises(ValueError, match=f"input {bad} is outside 0..1"):
                k.bce_loss(x, k.full((2,), 1.0, "float64"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gelu_is_right_far_out(backend: str) -> None:
    """In float64 against math.erfc, which keeps its digits in the tail."""
    k = get_backend(backend)
    x = np.concatenate([np.linspace(-20, 20, 1001), np.linspace(-1, 1, 101), [1e-300, 1e300]])
    expected = [v * math.erfc(-v / math.sqrt(2)) / 2 for v in x]
    got = k.to_numpy(k.gelu(k.asarray(x)))
    np.testing.assert_allclose(got, expected, rtol=2e-13)
    got = k.to_numpy(k.gelu(k.asarray(x[:1102].astype(np.float32))))
    np.testing.assert_allclose(got, expected[:1102], rtol=3e-5, atol=1e-37)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_draw_is_the_state_before_it_advances(backend: str) -> None:
    k = get_backend(backend)
    state = k.asarray(np.array([7, 3]))
    ticket, out = k.draw(state), k.full((2,), 113, "int64")
    assert k.draw(state, out=out) is out
    assert ticket.tolist() == [7, 3] and out.tolist() == [7, 4] and state.tolist() == [7, 5]
    with pytest.raises(ValueError, match="overlaps"):
        k.draw(state, out=state)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers of Random123
        ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)  # fmt: skip
def test_philox_gives_the_known_answers(counter: str, key: str, words: str) -> None:
    c, k = ([np.uint64(int(word, 16)) for word in text.split()] for text in (counter, key))
    assert " ".join(f"{w:08x}" for w in reference.philox(tuple(c), tuple(k))) == words


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", [0.25, 0.5, 0.9])
def test_dropout_takes_its_words_by_place(backend: str, p: float) -> None:
    """Element i is dropped where word i mod 4 of block i // 4 is small, whatever the shape."""
    k = get_backend(backend)
    seed, calls, n = 2**40 + 3, 2**35 + 1, 4003
    ticket = k.asarray(np.array([seed, calls]))
    dropped = []
    for block in range((n + 3) // 4):
        numbers = (block, block >> 32, calls & 0xFFFFFFFF, calls >> 32)
        key = np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)
        words = reference.philox(tuple(np.uint64(c) for c in numbers), key)
        dropped += [int(w) < p * 2**32 for w in words]
    flat = k.to_numpy(k.dropout(k.full((n,), 3.0, "float64"), ticket, p))
    np.testing.assert_array_equal(flat, np.where(dropped[:n], 0, 3 * (1 / (1 - p))))
    assert abs((flat == 0).mean() - p) < 5 * (p * (1 - p) / n) ** 0.5
    square = k.full((20, 10), 3.0, "float64").T
    np.testing.assert_array_equal(k.to_numpy(k.dropout(square, ticket, p)).ravel(), flat[:200])
    nothing = k.to_numpy(k.dropout(k.full((n,), np.nan, "float32"), ticket, p))
    np.testing.assert_array_equal(nothing == 0, dropped[:n])


@pytest.mark.parametrize("backend", BACKENDS)
def test_denormals_do_not_survive_a_step_of_adamw(backend: str) -> None:
    k = get_backend(backend)
    p, g, m, v = (k.full((64,), x, "float32") for x in (1.0, 0.0, 1.05e-30, 1.0005e-30))
    state = k.asarray(np.array([0.5, 5.0]))
    k.adam_step(p, g, m, v, state, 0.9, 0.999, 1e-8, 0.5, True)
    assert not k.to_numpy(m).any() and (k.to_numpy(p) == 0.75).all()


ADVERSARIAL = {  # rounding shows in every digit of such sums
    "random": lambda rng, shape: rng.normal(size=shape),
    "cancelling": lambda rng, shape: rng.choice([1e8, -1e8, 1.0, 1e-8], shape),
    "growing": lambda rng, shape: rng.normal(size=shape) * 10.0 ** rng.integers(-12, 12, shape),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("data", ADVERSARIAL.values(), ids=ADVERSARIAL)
def test_a_row_does_not_depend_on_its_neighbours(data: Any, dtype: str) -> None:
    """On the Numba backend: not a bit of it, for batches of 1 to 300."""
    k, rng = get_backend("numba"), np.random.default_rng(0)
    x, w, b = (data(rng, s).astype(dtype) for s in ((300, 131), (77, 131), (77,)))
    together = k.linear(x, w, b, "relu")
    for n in range(1, 301):
        at = (17 * n) % (301 - n)
        alone = k.linear(x[at : at + n], w, b, "relu")
        assert alone.tobytes() == together[at : at + n].tobytes(), f"batch of {n}"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("data", ADVERSARIAL.values(), ids=ADVERSARIAL)
def test_the_number_of_threads_changes_nothing(data: Any, dtype: str) -> None:
    """On the Numba backend: products above the size where threads start, and Adam's step."""
    import numba

    k, rng = get_backend("numba"), np.random.default_rng(0)
    x, w, g = (data(rng, s).astype(dtype) for s in ((130, 401), (77, 401), (130, 77)))
    assert 2 * x.size * len(w) > 1_000_000
    found = []
    for threads in range(1, numba.config.NUMBA_NUM_THREADS + 1):
        numba.set_num_threads(threads)
        p, m, v = w.ravel().copy(), np.zeros(w.size, dtype), np.zeros(w.size, dtype)
        dx, dw, db = k.linear_backward(g, x, w)
        k.adam_step(p, dw.ravel(), m, v, np.array([1e-3, 1.0]), 0.9, 0.999, 1e-8, 0.0)
        found.append([r.tobytes() for r in (k.linear(x, w), dx, dw, db, p, m, v)])
    if len(found) == 1:
        pytest.skip("this machine has one core")
    assert all(f == found[0] for f in found)


@pytest.mark.parametrize("name", ["nope", "cuda", "NUMBA"])
def test_an_unknown_backend_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected one of numpy, numba, cupy"):
        get_backend(name)


def test_a_missing_gpu_is_explained() -> None:
    from tinygrad_ish.kernels import BackendError, why_missing

    if why_missing("cupy") is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(BackendError, match=r"pip install 'tinygrad_ish\[gpu\]'|nvidia-smi"):
        get_backend("cupy")
