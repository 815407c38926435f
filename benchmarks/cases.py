"""The arguments on which each kernel is clocked: one row for each kernel, float32.

To clock a kernel of your own, add a row: its family (which picture it is in), the sizes, and a
function from a generator and a size to the arguments. A row may give what the clock cannot see, the
multiply-adds as ``flops``, and PyTorch's way to the same result as ``torch``, a function from torch
and the arguments as its tensors to a function without arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .models import MODELS

Rng = np.random.Generator
Size = tuple[Any, ...]
TorchCall = Callable[..., Callable[[], Any]]


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    family: str
    sizes: list[Size]
    make: Callable[[Rng, Size], tuple[Any, ...]]
    torch: TorchCall | None = None
    flops: Callable[[Size], float] = lambda size: 0.0
    kwargs: dict[str, Any] = field(default_factory=dict)


LINES: list[Size] = [(1_000,), (100_000,), (4_000_000,)]
ROWS: list[Size] = [(64, 10), (512, 1000), (4096, 1024)]
PARAMETERS: list[Size] = [(5_000,), (102_000,), (536_000,), (4_000_000,)]
LAYERS = [(m.batch, d, k) for m in MODELS for d, k in dict.fromkeys(m.layers)]
CUBES = [(512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048)]


def _products() -> list[Size]:
    """(layout, M, K, N) of each product of the models: n plain, t transposed, for either factor."""
    forward = [("nt", n, d, k) for n, d, k in LAYERS]
    weights = [("tn", k, n, d) for n, d, k in LAYERS]
    later = [(m.batch, d, k) for m in MODELS for d, k in dict.fromkeys(m.layers[1:])]
    inputs = [("nn", n, k, d) for n, d, k in later]
    return [*forward, *inputs, *weights, *[("nn", *cube) for cube in CUBES]]


# --- arguments ---------------------------------------------------------------------------------


def _floats(rng: Rng, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def normal(count: int = 1, *constants: Any) -> Callable[[Rng, Size], tuple[Any, ...]]:
    """So many normal arrays of the size, then the constants."""
    return lambda rng, size: (*[_floats(rng, *size) for _ in range(count)], *constants)


def positive(count: int = 1, *constants: Any) -> Callable[[Rng, Size], tuple[Any, ...]]:
    """So many arrays between 0.1 and 0.9, then the constants."""
    draw = lambda rng, size: rng.uniform(0.1, 0.9, size).astype(np.float32)  # noqa: E731
    return lambda rng, size: (*[draw(rng, size) for _ in range(count)], *constants)


def flags(count: int = 1) -> Callable[[Rng, Size], tuple[Any, ...]]:
    """So many bool arrays."""
    return lambda rng, size: tuple(rng.random(size) < 0.5 for _ in range(count))


def _classes(rng: Rng, size: Size) -> tuple[Any, ...]:
    return _floats(rng, *size), rng.integers(0, size[1], size[0])


def _factors(rng: Rng, size: Size) -> tuple[Any, ...]:
    layout, m, k, n = size
    a = _floats(rng, k, m).T if layout[0] == "t" else _floats(rng, m, k)
    b = _floats(rng, n, k).T if layout[1] == "t" else _floats(rng, k, n)
    return a, b


def _linear(rng: Rng, size: Size) -> tuple[Any, ...]:
    n, d, k = size
    return _floats(rng, n, d), _floats(rng, k, d), _floats(rng, k), "relu"


def _linear_backward(rng: Rng, size: Size) -> tuple[Any, ...]:
    n, d, k = size
    y = np.maximum(_floats(rng, n, k), 0)
    return _floats(rng, n, k), _floats(rng, n, d), _floats(rng, k, d), y, "relu"


def _linear_int8(rng: Rng, size: Size) -> tuple[Any, ...]:
    n, d, k = size
    w8, scale = rng.integers(-128, 128, (k, d), np.int8), rng.uniform(1e-3, 1e-2, k)
    return _floats(rng, n, d), w8, scale.astype(np.float32), _floats(rng, k), "relu"


def _layer_norm_backward(rng: Rng, size: Size) -> tuple[Any, ...]:
    g, x = _floats(rng, *size), _floats(rng, *size)
    mean, rstd = x.mean(axis=1), 1 / x.std(axis=1)
    return g, x, mean, rstd, _floats(rng, size[1])


def _adam(rng: Rng, size: Size) -> tuple[Any, ...]:
    p, g, m = (_floats(rng, *size) for _ in range(3))
    return p, g, m, m * m, np.array([1e-3, 5.0]), 0.9, 0.999, 1e-8, 0.0


def _sgd(rng: Rng, size: Size) -> tuple[Any, ...]:
    p, g, buf = (_floats(rng, *size) for _ in range(3))
    return p, g, buf, np.array([1e-2, 5.0]), 0.9, 0.0, 0.0, False


def _scaled(rng: Rng, size: Size) -> tuple[Any, ...]:
    return (_floats(rng, *size),), np.array([8.0, 0.0]), np.zeros(())


def _positions(rng: Rng, size: Size) -> np.ndarray:
    return rng.integers(0, size[0], size[0])


def _places(rng: Rng, size: Size) -> np.ndarray:
    return rng.integers(0, size[1], size)


TICKET = np.array([7, 3])


# --- the same in PyTorch -----------------------------------------------------------------------


def same(name: str, *constants: Any, **options: Any) -> TorchCall:
    """torch.name(*tensors, *constants, out=...): the tensors alone of the arguments are taken."""

    def call(torch: Any, *args: Any) -> Callable[[], Any]:
        function = getattr(torch, name)
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        out = function(*tensors, *constants, **options)
        return lambda: function(*tensors, *constants, **options, out=out)

    return call


def fresh(name: str, *constants: Any, **options: Any) -> TorchCall:
    """The same for a function of torch, or of torch.nn.functional, that has no ``out``."""

    def call(torch: Any, *args: Any) -> Callable[[], Any]:
        function = getattr(torch, name, None) or getattr(torch.nn.functional, name)
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        return lambda: function(*tensors, *constants, **options)

    return call


def loss(name: str) -> TorchCall:
    """A loss and its gradient for the first argument."""

    def call(torch: Any, x: Any, *rest: Any) -> Callable[[], Any]:
        function, leaf = getattr(torch.nn.functional, name), x.clone().requires_grad_()

        def run() -> Any:
            value = function(leaf, *rest)
            return value, torch.autograd.grad(value, leaf)

        return run

    return call


def _torch_linear(torch: Any, x: Any, w: Any, b: Any, activation: str) -> Callable[[], Any]:
    return lambda: torch.nn.functional.linear(x, w, b).relu_()


def _torch_linear_backward(
    torch: Any, g: Any, x: Any, w: Any, y: Any, activation: str
) -> Callable[[], Any]:
    def run() -> Any:
        h = torch.ops.aten.threshold_backward(g, y, 0)
        return h @ w, h.t() @ x, h.sum(0)

    return run


def _torch_layer_norm(torch: Any, x: Any, w: Any, b: Any) -> Callable[[], Any]:
    return lambda: torch.native_layer_norm(x, [x.shape[1]], w, b, 1e-5)


def _torch_layer_norm_backward(
    torch: Any, g: Any, x: Any, mean: Any, rstd: Any, w: Any
) -> Callable[[], Any]:
    mean, rstd = mean[:, None], rstd[:, None]
    return lambda: torch.ops.aten.native_layer_norm_backward(
        g, x, [x.shape[1]], mean, rstd, w, w, [True, True, True]
    )


def optimizer(name: str, **settings: Any) -> TorchCall:
    """A fused step of an optimizer of torch."""

    def call(torch: Any, p: Any, g: Any, *rest: Any) -> Callable[[], Any]:
        leaf = p.clone().requires_grad_()
        leaf.grad = g
        return getattr(torch.optim, name)([leaf], fused=True, **settings).step

    return call


def _torch_where(torch: Any, condition: Any, a: Any, b: Any) -> Callable[[], Any]:
    out = torch.empty_like(a)
    return lambda: torch.where(condition, a, b, out=out)


def _torch_add_at(torch: Any, g: Any, index: Any, axis: int, shape: Any) -> Callable[[], Any]:
    return lambda: torch.zeros(shape).index_add_(axis, index, g)


def _torch_scatter(torch: Any, g: Any, index: Any, axis: int, shape: Any) -> Callable[[], Any]:
    return lambda: torch.zeros(shape).scatter_add_(axis, index, g)


def _torch_cat(torch: Any, arrays: Any, axis: int) -> Callable[[], Any]:
    return lambda: torch.cat(arrays, axis)


def _torch_norm(torch: Any, arrays: Any, norm_type: float) -> Callable[[], Any]:
    return lambda: torch.nn.utils.get_total_norm(arrays, norm_type)


def _torch_sum_to(torch: Any, x: Any, shape: Any) -> Callable[[], Any]:
    return lambda: x.sum_to_size(shape)


# --- the table ---------------------------------------------------------------------------------


def _elementwise(name: str, count: int, make: Any = normal, torch: Any = same) -> Case:
    return Case("elementwise", LINES, make(count), torch(name))


def _comparison(name: str) -> Case:
    return Case("elementwise", LINES, normal(2), same(name))


CASES: dict[str, Case] = {
    **{
        name: _elementwise(theirs, 2)
        for name, theirs in [
            ("add", "add"),
            ("sub", "sub"),
            ("mul", "mul"),
            ("div", "div"),
            ("maximum", "maximum"),
            ("minimum", "minimum"),
        ]
    },
    **{name: _comparison(name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{name: _elementwise(name, 1) for name in ("neg", "abs", "sign", "exp", "sigmoid", "tanh")},
    **{name: _elementwise(name, 1, positive) for name in ("sqrt", "log")},
    "floor_div": _elementwise("floor_divide", 2, positive),
    "remainder": _elementwise("remainder", 2, positive),
    "pow": _elementwise("pow", 2, positive),
    "where": Case(
        "elementwise", LINES, lambda r, s: (*flags()(r, s), *normal(2)(r, s)), _torch_where
    ),
    "relu": _elementwise("relu", 1, torch=fresh),
    "relu_backward": Case(
        "elementwise",
        LINES,
        normal(2),
        lambda torch, g, y: lambda: torch.ops.aten.threshold_backward(g, y, 0),
    ),
    "gelu": _elementwise("gelu", 1, torch=fresh),
    "gelu_backward": Case(
        "elementwise",
        LINES,
        normal(2),
        lambda torch, g, x: lambda: torch.ops.aten.gelu_backward(g, x),
    ),
    "bitwise_not": _elementwise("bitwise_not", 1, flags),
    "bitwise_and": _elementwise("bitwise_and", 2, flags),
    "bitwise_or": _elementwise("bitwise_or", 2, flags),
    "copy": Case("elementwise", LINES, normal(), lambda torch, x: lambda: x.clone()),
    "cast": Case(
        "elementwise",
        LINES,
        normal(1, np.dtype(np.float64)),
        lambda torch, x, dtype: lambda: x.double(),
    ),
    "draw": Case("random", [()], lambda r, s: (TICKET.copy(),)),
    "dropout": Case(
        "random",
        LINES,
        normal(1, TICKET, 0.5),
        lambda torch, x, *_: lambda: torch.dropout(x, 0.5, True),
    ),
    "sum": Case("reductions", ROWS, normal(), same("sum", 1), kwargs={"axis": 1}),
    "sum_to": Case("reductions", ROWS, lambda r, s: (_floats(r, *s), s[1:]), _torch_sum_to),
    "mean": Case("reductions", ROWS, normal(), same("mean", 1), kwargs={"axis": 1}),
    "mean_backward": Case(
        "reductions",
        ROWS,
        lambda r, s: (_floats(r, s[0], 1), s),
        lambda torch, g, s: lambda: (g / s[1]).expand(s).contiguous(),
    ),
    "amax": Case("reductions", ROWS, normal(), same("amax", 1), kwargs={"axis": 1}),
    "amin": Case("reductions", ROWS, normal(), same("amin", 1), kwargs={"axis": 1}),
    "argmax": Case("reductions", ROWS, normal(), fresh("argmax", 1), kwargs={"axis": 1}),
    "argmin": Case("reductions", ROWS, normal(), fresh("argmin", 1), kwargs={"axis": 1}),
    "any": Case("reductions", ROWS, flags(), same("any", 1), kwargs={"axis": 1}),
    "all": Case("reductions", ROWS, flags(), same("all", 1), kwargs={"axis": 1}),
    "softmax": Case("reductions", ROWS, normal(1, 1), same("softmax", 1)),
    "log_softmax": Case("reductions", ROWS, normal(1, 1), same("log_softmax", 1)),
    "reshape": Case(
        "movement",
        ROWS,
        lambda r, s: (_floats(r, *s), (s[1], s[0])),
        lambda torch, x, s: lambda: x.reshape(s),
    ),
    "permute": Case(
        "movement", ROWS, normal(1, (1, 0)), lambda torch, x, axes: lambda: x.permute(axes)
    ),
    "expand": Case(
        "movement",
        ROWS,
        lambda r, s: (_floats(r, 1, s[1]), s),
        lambda torch, x, s: lambda: x.expand(s),
    ),
    "getitem": Case(
        "movement",
        ROWS,
        normal(1, (slice(1, None), slice(None, -1))),
        lambda torch, x, at: lambda: x[at],
    ),
    "getitem_backward": Case(
        "movement",
        ROWS,
        lambda r, s: (_floats(r, s[0] - 1, s[1]), (slice(1, None),), s),
        lambda torch, g, at, s: lambda: torch.nn.functional.pad(g, (0, 0, 1, 0)),
    ),
    "cat": Case("movement", ROWS, lambda r, s: ((_floats(r, *s), _floats(r, *s)), 0), _torch_cat),
    "index_select": Case(
        "movement",
        ROWS,
        lambda r, s: (_floats(r, *s), _positions(r, s), 0),
        lambda torch, x, i, axis: lambda: torch.index_select(x, axis, i),
    ),
    "index_select_backward": Case(
        "movement", ROWS, lambda r, s: (_floats(r, *s), _positions(r, s), 0, s), _torch_add_at
    ),
    "gather": Case(
        "movement",
        ROWS,
        lambda r, s: (_floats(r, *s), _places(r, s), 1),
        lambda torch, x, i, axis: lambda: torch.gather(x, axis, i),
    ),
    "gather_backward": Case(
        "movement", ROWS, lambda r, s: (_floats(r, *s), _places(r, s), 1, s), _torch_scatter
    ),
    "matmul": Case("products", _products(), _factors, same("mm"), lambda s: 2 * s[1] * s[2] * s[3]),
    "linear": Case(
        "products", [*LAYERS, *CUBES[:2]], _linear, _torch_linear, lambda s: 2 * s[0] * s[1] * s[2]
    ),
    "linear_backward": Case(
        "products",
        [*LAYERS, *CUBES[:2]],
        _linear_backward,
        _torch_linear_backward,
        lambda s: 4 * s[0] * s[1] * s[2],
    ),
    "linear_int8": Case(
        "products",
        [(1, 784, 512), (1, 4096, 4096), (16, 4096, 4096), (64, 4096, 4096)],
        _linear_int8,
        flops=lambda s: 2 * s[0] * s[1] * s[2],
    ),
    "layer_norm": Case(
        "rows",
        ROWS,
        lambda r, s: (_floats(r, *s), _floats(r, s[1]), _floats(r, s[1])),
        _torch_layer_norm,
    ),
    "layer_norm_backward": Case("rows", ROWS, _layer_norm_backward, _torch_layer_norm_backward),
    "softmax_cross_entropy": Case("rows", ROWS, _classes, loss("cross_entropy")),
    "nll_loss": Case("rows", ROWS, _classes, loss("nll_loss")),
    "mse_loss": Case("rows", ROWS, normal(2), loss("mse_loss")),
    "bce_loss": Case("rows", ROWS, positive(2), loss("binary_cross_entropy")),
    "bce_with_logits": Case("rows", ROWS, positive(2), loss("binary_cross_entropy_with_logits")),
    "grad_norm": Case("optimizers", PARAMETERS, lambda r, s: (normal(2)(r, s), 2.0), _torch_norm),
    "clip_scale": Case("optimizers", [()], lambda r, s: (np.array(3, np.float32), 1.0)),
    "unscale_step": Case("optimizers", PARAMETERS, _scaled),
    "next_rows": Case(
        "movement", [(64,)], lambda r, s: (r.permutation(8004), np.zeros(1, np.int64), *s)
    ),
    "take_scaled": Case(
        "movement",
        [(64, 784), (4096, 784)],
        lambda r, s: (
            r.integers(0, 256, (8004, s[1])).astype(np.uint8),
            r.integers(0, 8004, s[0]),
            1 / 255,
            -0.5,
            np.dtype(np.float32),
        ),
        lambda torch, x, rows, *_: lambda: x[rows].to(torch.float32) * (1 / 255) - 0.5,
    ),
    "push": Case(
        "movement",
        [()],
        lambda r, s: (np.zeros(100, np.float32), np.zeros(1, np.int64), np.ones((), np.float32)),
    ),
    "scale_step": Case("optimizers", [()], lambda r, s: (np.ones(2), np.zeros(()), 2.0, 0.5, 9)),
    "count_step": Case("optimizers", [()], lambda r, s: (np.array([1e-3, 5.0]),)),
    "sgd_step": Case("optimizers", PARAMETERS, _sgd, optimizer("SGD", lr=1e-2, momentum=0.9)),
    "adam_step": Case("optimizers", PARAMETERS, _adam, optimizer("Adam", lr=1e-3)),
}
