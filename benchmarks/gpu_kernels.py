"""The CUDA kernels that memory bounds, and those of the optimizers: a part of benchmarks.gpu.

Each kernel computes once on its full size and is compared with the reference, which computes in
float64 on the GPU too, by CuPy's kernels. Then it is clocked, and PyTorch's own way beside it: line
by line ("eager"), and where that needs several passes over memory also by torch.compile. Bytes are
the floor: each argument and result once, twice what is updated.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes  # noqa: F401 (NumPy knows bfloat16 then)
import numpy as np

from tinygrad_ish.kernels import Backend, get_backend, reference
from tinygrad_ish.kernels.gpu import linalg

from .cases import CASES, TorchCall, optimizer
from .children import ChildError
from .gpu_clock import (
    CARRIER,
    FLUSH,
    Clock,
    Run,
    Worker,
    as_torch,
    duplicate,
    graphed,
    torch_graphed,
    torch_or_why,
)
from .kernels import arrays_in, mapped

TOLERANCE = {"float32": 2e-4, "float16": 5e-3, "bfloat16": 2e-2}  # a share of the largest value
GOAL = 0.85  # of the copy's bandwidth
POOL = (1 << 22) + 3


class Numbers:
    """Random arrays on the GPU: some millions of numbers drawn on the CPU, laid end to end."""

    def __init__(self, k: Backend, seed: int) -> None:
        self.k, self.rng = k, np.random.default_rng(seed)
        self._pools: dict[tuple[str, str], Any] = {}
        self._at = 0

    def normal(self, *shape: int, dtype: str = "float32") -> Any:
        """Normal numbers."""
        return self._laid("normal", shape, dtype)

    def share(self, *shape: int, dtype: str = "float32") -> Any:
        """Numbers between 0.05 and 0.95."""
        return self._laid("share", shape, dtype)

    def _laid(self, kind: str, shape: tuple[int, ...], dtype: str) -> Any:
        size, xp = math.prod(shape), self.k.xp
        pool = self._pool(kind, dtype, min(size, POOL))
        flat, done = xp.empty((size,), pool.dtype), 0
        start = self._at % len(pool)  # so that two arrays are not alike
        while done < size:
            piece = pool[start : start + size - done]
            flat[done : done + len(piece)] = piece
            done, start = done + len(piece), 0
        self._at += 1_000_003
        return flat.view(np.dtype(dtype)).reshape(shape)

    def _pool(self, kind: str, dtype: str, size: int) -> Any:
        """At least so many numbers, as integers of their size: CuPy copies those of any dtype."""
        found = self._pools.get((kind, dtype))
        if found is None or len(found) < size:
            drawn = self.rng.standard_normal(size, np.float32)
            if kind == "share":
                drawn = self.rng.uniform(0.05, 0.95, size).astype(np.float32)
            narrow = drawn.astype(dtype)
            found = self.k.asarray(narrow.view(CARRIER[narrow.dtype.itemsize]))
            self._pools[kind, dtype] = found
        return found

    def below(self, high: int, *shape: int, dtype: Any = np.int64) -> Any:
        """Integers from 0 on."""
        return self.k.asarray(self.rng.integers(0, high, shape).astype(dtype))


Make = Callable[[Numbers], tuple[Any, ...]]


@dataclass(frozen=True)
class Row:
    """A kernel on one size, what it must give, and PyTorch's ways to the same."""

    kernel: str
    size: str
    dtype: str
    make: Make
    torch: dict[str, TorchCall] = field(default_factory=dict)
    nbytes: Callable[..., int] | None = None  # of the arguments; else counted
    sets: int = 0  # of arguments, in turn in a graph: for calls shorter than their launch
    family: str = "kernels"
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """softmax_cross_entropy 8192x1000 bfloat16."""
        return f"{self.kernel} {self.size} {self.dtype}"


# --- kernels inside of others -------------------------------------------------------------------


def _bias_relu(y: Any, b: Any, out: Any = None) -> Any:
    """relu(y + b), in place."""
    linalg._finish(y, b, True)


def _bias_relu_truth(y: Any, b: Any) -> None:
    y[...] = reference.relu(y + b)


def _bias_relu_backward(g: Any, y: Any, out: Any = None) -> tuple[Any, Any]:
    """g where y > 0, and its column sums."""
    db = get_backend("cupy").empty((g.shape[1],), g.dtype)
    return linalg._gate_and_sum(g, y, db), db


def _bias_relu_backward_truth(g: Any, y: Any) -> tuple[Any, Any]:
    gated = g * (y > 0)
    return gated, gated.sum(axis=0)


INSIDE: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "bias_relu": (_bias_relu, _bias_relu_truth),
    "bias_relu_backward": (_bias_relu_backward, _bias_relu_backward_truth),
}
UPDATES = {**reference.UPDATES, "bias_relu": ("y",)}


def ours(k: Backend, kernel: str) -> Callable[..., Any]:
    """The kernel, as the GPU's backend has it."""
    return INSIDE[kernel][0] if kernel in INSIDE else getattr(k, kernel)


def truth(kernel: str) -> Callable[..., Any]:
    """What it must give."""
    return INSIDE[kernel][1] if kernel in INSIDE else getattr(reference, kernel)


# --- in PyTorch -------------------------------------------------------------------------------


def _both(function: Callable[..., Any]) -> dict[str, TorchCall]:
    """A function of torch and its tensors, line by line and compiled."""

    def eager(torch: Any, *args: Any) -> Any:
        return lambda: function(torch, *args)

    def compiled(torch: Any, *args: Any) -> Any:
        fast = torch.compile(lambda *tensors: function(torch, *tensors))
        return lambda: fast(*args)

    return {"eager": eager, "compile": compiled}


def _loss(name: str) -> dict[str, TorchCall]:
    """A loss and its gradient."""

    def made(compiles: bool) -> TorchCall:
        def call(torch: Any, x: Any, *rest: Any) -> Any:
            function, leaf = getattr(torch.nn.functional, name), x.clone().requires_grad_()
            loss = torch.compile(lambda a, *b: function(a, *b)) if compiles else function

            def run() -> Any:
                return torch.autograd.grad(loss(leaf, *rest), leaf)

            return run

        return call

    return {"eager": made(False), "compile": made(True)}


def _same(kernel: str) -> dict[str, TorchCall]:
    """What benchmarks.kernels compares with."""
    call = CASES[kernel].torch
    return {} if call is None else {"eager": call}


def _int8(torch: Any, x: Any, w8: Any, scale: Any, b: Any) -> Any:
    """The product with weights of x's dtype: of more bytes, by cuBLAS."""
    w = (w8.to(torch.float32) * scale[:, None]).to(x.dtype)
    return lambda: torch.nn.functional.linear(x, w, b)


# --- the table --------------------------------------------------------------------------------


def rows(tiny: bool = False) -> list[Row]:
    """Every row, or the same ones so small that a CPU can do them."""
    wide = 8 if tiny else 4096
    line = 1 << 10 if tiny else 1 << 27
    return [
        *_elementwise(line), *_linear(wide * 2 if tiny else 32768, wide), *_losses(tiny),
        *_norms(tiny), *_reductions(tiny), *_embedding(tiny), *_optimizers(tiny), *_int8_rows(tiny),
    ]  # fmt: skip


def _elementwise(n: int) -> list[Row]:
    found = []
    for dtype, size in (("float32", n), ("bfloat16", 2 * n)):
        for kernel, count in (
            ("add", 2), ("exp", 1), ("relu", 1), ("gelu", 1), ("gelu_backward", 2),
        ):  # fmt: skip
            make = _normals(count, size, dtype=dtype)
            found.append(Row(kernel, f"{size}", dtype, make, _same(kernel)))
        found.append(
            Row(
                "dropout", f"{size}", dtype,
                lambda r, s=size, d=dtype: (
                    r.normal(s, dtype=d), r.k.asarray(np.array([7, 3])), 0.5
                ),
                _same("dropout"),
            )
        )  # fmt: skip
    casts = (("float32", "bfloat16"), ("bfloat16", "float32"))
    found += [
        Row("cast", f"{n} to {to}", dtype, _normals(1, n, np.dtype(to), dtype=dtype),
            {"eager": lambda torch, x, to: lambda: x.to(getattr(torch, to.name))})
        for dtype, to in casts
    ]  # fmt: skip
    side = math.isqrt(n)
    for dtype in ("float32", "bfloat16"):
        found.append(
            Row(
                "copy", f"transpose {side}x{side}", dtype,
                lambda r, d=dtype: (r.normal(side, side, dtype=d).T,),
                {"eager": lambda torch, x: lambda: x.contiguous()},
            )
        )  # fmt: skip
    return found


def _normals(count: int, *size: Any, dtype: str) -> Make:
    """So many arrays of normal numbers; what is no int of the size follows them."""
    shape = [n for n in size if isinstance(n, int)]
    rest = [c for c in size if not isinstance(c, int)]
    return lambda r: (*[r.normal(*shape, dtype=dtype) for _ in range(count)], *rest)


def _linear(n: int, k: int) -> list[Row]:
    forward = _both(lambda torch, y, b: torch.relu(y + b))

    def backward(torch: Any, g: Any, y: Any) -> Any:
        h = torch.ops.aten.threshold_backward(g, y, 0)
        return h, h.sum(0)

    return [
        row
        for dtype in ("float32", "bfloat16")
        for row in (
            Row("bias_relu", f"{n}x{k}", dtype,
                lambda r, d=dtype: (r.normal(n, k, dtype=d), r.normal(k, dtype=d)), forward),
            Row("bias_relu_backward", f"{n}x{k}", dtype,
                lambda r, d=dtype: (r.normal(n, k, dtype=d), r.normal(n, k, dtype=d)),
                _both(backward)),
        )
    ]  # fmt: skip


def _losses(tiny: bool) -> list[Row]:
    shapes = [(6, 10), (4, 1000)] if tiny else [(8192, 1000), (131072, 1000), (8192, 50304)]
    line = 1 << 10 if tiny else 1 << 27
    found = [
        Row("softmax_cross_entropy", f"{n}x{c}", dtype,
            lambda r, n=n, c=c, d=dtype: (r.normal(n, c, dtype=d), r.below(c, n)),
            _loss("cross_entropy"))
        for n, c in shapes for dtype in ("float32", "bfloat16")
    ]  # fmt: skip
    for dtype in ("float32", "bfloat16"):
        for kernel, theirs in (
            ("mse_loss", "mse_loss"),
            ("bce_loss", "binary_cross_entropy"),
            ("bce_with_logits", "binary_cross_entropy_with_logits"),
        ):
            found.append(
                Row(kernel, f"{line}", dtype,
                    lambda r, d=dtype: (r.share(line, dtype=d), r.share(line, dtype=d)),
                    _loss(theirs))
            )  # fmt: skip
    return found


def _norms(tiny: bool) -> list[Row]:
    shapes = [(6, 16), (4, 200)] if tiny else [(131072, 768), (131072, 1024), (32768, 4096)]

    def backward(n: int, d: int, dtype: str) -> Make:
        def make(r: Numbers) -> tuple[Any, ...]:
            x = r.normal(n, d, dtype=dtype)
            mean, rstd = r.normal(n, dtype=dtype), r.share(n, dtype=dtype)
            return r.normal(n, d, dtype=dtype), x, mean, rstd, r.normal(d, dtype=dtype)

        return make

    def forward(torch: Any, x: Any, w: Any, b: Any) -> Any:
        return lambda: torch.native_layer_norm(x, [x.shape[1]], w, b, 1e-5)

    def their_backward(torch: Any, g: Any, x: Any, mean: Any, rstd: Any, w: Any) -> Any:
        sizes = [x.shape[1]]
        _, mean, rstd = torch.native_layer_norm(x, sizes, w, w, 1e-5)  # in the dtype it wants
        return lambda: torch.ops.aten.native_layer_norm_backward(
            g, x, sizes, mean, rstd, w, w, [True, True, True]
        )

    return [
        row
        for n, d in shapes
        for dtype in ("float32", "bfloat16")
        for row in (
            Row("layer_norm", f"{n}x{d}", dtype,
                lambda r, n=n, d=d, t=dtype: (
                    r.normal(n, d, dtype=t), r.normal(d, dtype=t), r.normal(d, dtype=t)),
                {"eager": forward}),
            Row("layer_norm_backward", f"{n}x{d}", dtype, backward(n, d, dtype),
                {"eager": their_backward}),
        )
    ]  # fmt: skip


def _reductions(tiny: bool) -> list[Row]:
    n, d = (7, 33) if tiny else (131072, 1024)
    found = []
    for dtype in ("float32", "bfloat16"):
        for kernel, axis in (
            ("sum", None), ("sum", 0), ("sum", 1), ("mean", 1), ("amax", 1), ("argmax", 1),
        ):  # fmt: skip
            given = {"dim": axis} if axis is not None else {}
            found.append(
                Row(
                    kernel, f"{n}x{d} axis {axis}", dtype, _normals(1, n, d, dtype=dtype),
                    {"eager": lambda torch, x, f=kernel, g=given: (
                        lambda: getattr(torch, f)(x, **g))},
                    kwargs={"axis": axis},
                )
            )  # fmt: skip
        for kernel in ("softmax", "log_softmax"):
            found.append(
                Row(kernel, f"{n}x{d}", dtype,
                    lambda r, t=dtype: (r.normal(n, d, dtype=t), 1),
                    {"eager": lambda torch, x, axis, f=kernel: (
                        lambda: getattr(torch, f)(x, axis))})
            )  # fmt: skip
    return found


def _embedding(tiny: bool) -> list[Row]:
    tokens, words, d = (20, 9, 16) if tiny else (262144, 50304, 768)
    pixels, images = (30, 12) if tiny else (784, 1 << 18)

    def forward(torch: Any, x: Any, index: Any, axis: int) -> Any:
        return lambda: torch.nn.functional.embedding(index, x)

    def backward(torch: Any, g: Any, index: Any, axis: int, shape: Any) -> Any:
        return lambda: torch.ops.aten.embedding_dense_backward(g, index, shape[0], -1, False)

    def scaled(torch: Any, x: Any, index: Any, scale: float, shift: float, dtype: Any) -> Any:
        return x.index_select(0, index).to(torch.float32) * scale + shift

    rows_read = lambda x, index, *_: int(  # noqa: E731
        x.itemsize * x.shape[1] * (len(np.unique(index.get())) + len(index)) + index.nbytes
    )
    return [
        row
        for dtype in ("float32", "bfloat16")
        for row in (
            Row("index_select", f"{tokens} of {words}x{d}", dtype,
                lambda r, t=dtype: (r.normal(words, d, dtype=t), r.below(words, tokens), 0),
                {"eager": forward}, rows_read),
            Row("index_select_backward", f"{tokens} to {words}x{d}", dtype,
                lambda r, t=dtype: (
                    r.normal(tokens, d, dtype=t), r.below(words, tokens), 0, (words, d)),
                {"eager": backward}),
        )
    ] + [
        Row("take_scaled", f"{images} of {pixels} pixels", "float32",
            lambda r: (
                r.below(256, 8004, pixels, dtype=np.uint8), r.below(8004, images),
                1 / 255, -0.5, np.dtype(np.float32)),
            _both(scaled), lambda x, index, *_: index.size * pixels * 4 + x.nbytes + index.nbytes),
    ]  # fmt: skip


def _optimizers(tiny: bool) -> list[Row]:
    n = 1003 if tiny else 124_439_808  # parameters of GPT-2's smallest
    rate = lambda r, lr: r.k.asarray(np.array([lr, 5.0]))  # noqa: E731
    found = []
    for kernel, decoupled, theirs in (("adam_step", False, "Adam"), ("adam_step", True, "AdamW")):
        found.append(
            Row(
                kernel, f"{theirs} {n}", "float32",
                lambda r, w=decoupled: (
                    r.normal(n), r.normal(n), r.normal(n), r.share(n), rate(r, 1e-3),
                    0.9, 0.999, 1e-8, 0.01 * w, w),
                {"eager": optimizer(theirs, lr=1e-3)}, family="optimizers",
            )
        )  # fmt: skip
    return [
        *found,
        Row("sgd_step", f"momentum {n}", "float32",
            lambda r: (r.normal(n), r.normal(n), r.normal(n), rate(r, 1e-2), 0.9, 0.0, 0.0, False),
            {"eager": optimizer("SGD", lr=1e-2, momentum=0.9)}, family="optimizers"),
        Row("grad_norm", f"{n}", "float32", lambda r: ((r.normal(n),), 2.0),
            {"eager": lambda torch, arrays, p: (
                lambda: torch.nn.utils.get_total_norm(list(arrays), p))},
            family="optimizers"),
        Row("unscale_step", f"{n}", "float32",
            lambda r: ((r.normal(n),), r.k.asarray(np.array([1.0, 0.0])),
                       r.k.full((), 0.0, "float64")),
            {}, family="optimizers"),
    ]  # fmt: skip


def _int8_rows(tiny: bool) -> list[Row]:
    k = 40 if tiny else 4096
    return [
        Row("linear_int8", f"{m} rows, {k}x{k}", dtype,
            lambda r, m=m, t=dtype: (
                r.normal(m, k, dtype=t), r.below(255, k, k, dtype=np.uint8).view(np.int8),
                r.share(k), r.normal(k, dtype=t)),
            {f"{dtype} weights": _int8}, sets=2 if tiny else 16)
        for m in (1, 4, 16) for dtype in ("float32", "bfloat16")
    ]  # fmt: skip


# --- measuring --------------------------------------------------------------------------------


def widened(k: Backend, x: Any) -> Any:
    """A copy, in float64 if floating."""
    return _float64(k, duplicate(x)) if reference.is_float(x.dtype) else duplicate(x)


def _float64(k: Backend, x: Any) -> Any:
    wide = np.dtype(np.float64)
    if x.dtype == wide:
        return x
    return k.cast(x if x.flags.c_contiguous else k.copy(x), wide)


def error(k: Backend, row: Row, args: tuple[Any, ...]) -> float:
    """How far the kernel is off, as a share of the largest value; of results and of what it left in
    its arguments. NaN if a result has another shape."""
    given = mapped(args, duplicate)
    result = ours(k, row.kernel)(*given, **row.kwargs)
    wide = mapped(args, lambda x: widened(k, x))
    expected = truth(row.kernel)(*wide, **row.kwargs)
    pairs = zip(arrays_in((result, *given)), arrays_in((expected, *wide)), strict=True)
    errors = [_far(k, found, right) for found, right in pairs]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _far(k: Backend, found: Any, right: Any) -> float:
    if found.shape != right.shape:
        return math.nan
    found, right = _float64(k, found), _float64(k, right)
    largest = float(k.xp.absolute(right).max())
    return float(k.xp.absolute(found - right).max()) / max(largest, 1e-30)


def floor(row: Row, args: tuple[Any, ...], result: Any) -> int:
    """The bytes that must move."""
    if row.nbytes is not None:
        return row.nbytes(*args)
    function = ours(get_backend("cupy"), row.kernel)
    parameters = list(inspect.signature(function).parameters)
    updated = [args[parameters.index(p)] for p in UPDATES.get(row.kernel, ()) if p in parameters]
    return sum(x.nbytes for x in arrays_in((*args, result, *updated)))


class Bench:
    """The kernels in a process of their own."""

    def __init__(self, tiny: bool, repeats: int) -> None:
        self.k, self.tiny = get_backend("cupy"), tiny
        self.clock = Clock(repeats, 1 << 10 if tiny else FLUSH)
        self.numbers = Numbers(self.k, 0)
        self.rows = rows(tiny)
        self.torch, self.why = torch_or_why()

    def bandwidth(self) -> float:
        """GB/s of a copy."""
        sizes = [1 << 12] if self.tiny else [1 << 29, 1 << 31]
        return max(self.clock.bandwidth(size) for size in sizes)

    def measure(self, number: int) -> dict[str, Any]:
        """One row: the error, and unless it is too large the times."""
        row = self.rows[number]
        try:
            return self._measured(row)
        finally:
            self.k.xp.get_default_memory_pool().free_all_blocks()
            if self.torch is not None:
                self.torch.cuda.empty_cache()

    def _measured(self, row: Row) -> dict[str, Any]:
        args = row.make(self.numbers)
        found: dict[str, Any] = {
            "name": row.name, "kernel": row.kernel, "size": row.size, "dtype": row.dtype,
            "error": error(self.k, row, args), "torch": {}, "absent": {},
        }  # fmt: skip
        if not found["error"] <= TOLERANCE[row.dtype]:
            return found
        sets = [args, *[row.make(self.numbers) for _ in range(row.sets - 1)]]
        calls = [self._call(row, a) for a in sets]
        found["bytes"] = floor(row, args, calls[0]())
        call = graphed(calls) if row.sets else calls[0]
        found["us"] = self.clock.times(call, len(calls))
        for name, theirs in row.torch.items():
            try:
                found["torch"][name] = self._torch(row, theirs, sets)
            except Exception as reason:  # of any library's kind; it is told in the table
                found["absent"][name] = f"{type(reason).__name__}: {str(reason).splitlines()[0]}"
        return found

    def _call(self, row: Row, args: tuple[Any, ...]) -> Callable[[], Any]:
        kernel, kwargs = ours(self.k, row.kernel), dict(row.kwargs)
        if row.kernel not in INSIDE and "out" in inspect.signature(kernel).parameters:
            kwargs["out"] = kernel(*args, **kwargs)
        return lambda: kernel(*args, **kwargs)

    def _torch(self, row: Row, theirs: TorchCall, sets: list[Any]) -> dict[str, float]:
        if self.torch is None:
            raise RuntimeError(self.why)
        torch = self.torch
        torch._dynamo.reset()  # it gives up compiling a function of its eighth kind
        calls = [theirs(torch, *mapped(a, lambda x: as_torch(torch, x))) for a in sets]
        call = torch_graphed(torch, calls) if row.sets else calls[0]
        return self.clock.times(call, len(calls))


HEADS = (
    "kernel", "size", "dtype", "error", "µs", "p10", "p90", "GB/s", "% of copy", "floor MB",
    "torch µs", "by", "ours / torch",
)  # fmt: skip


def best_of_torch(found: dict[str, Any]) -> tuple[str, float] | None:
    """PyTorch's fastest way and its µs."""
    ways = [(name, t["median"]) for name, t in found["torch"].items()]
    return min(ways, key=lambda way: way[1]) if ways else None


def line(found: dict[str, Any], bandwidth: float) -> list[Any]:
    """A row of the table."""
    start = [found["kernel"], found["size"], found["dtype"], f"{found['error']:.1e}"]
    if "us" not in found:
        return [*start, "WRONG", *[None] * 8]
    t, best = found["us"], best_of_torch(found)
    rate = found["bytes"] / t["median"] / 1e3
    theirs = [best[1], best[0], f"{t['median'] / best[1]:.2f}"] if best else [None] * 3
    return [
        *start, t["median"], t["p10"], t["p90"], rate, f"{100 * rate / bandwidth:.0f}%",
        f"{found['bytes'] / 1e6:.1f}", *theirs,
    ]  # fmt: skip


def measure_all(run: Run, part: str, family: str) -> None:
    """The rows of a family, each saved as it comes."""
    worker = Worker(Bench, run.tiny, run.repeats, again=True)
    results: list[dict[str, Any]] = []
    try:
        bandwidth = worker.ask("bandwidth")
        for number, row in enumerate(rows(run.tiny)):
            if row.family != family or (run.quick and row.dtype == "bfloat16"):
                continue
            try:
                found = worker.ask("measure", number)
            except ChildError as reason:
                run.fails(f"{row.name}: {reason}")
                found = {"name": row.name, "failed": str(reason), "details": reason.details}
            results.append(found)
            if "failed" not in found:
                run.say(" | ".join(_shown(c) for c in line(found, bandwidth)))
                if "us" not in found:
                    run.fails(f"{row.name}: off by {found['error']:.2g} of the largest value")
            run.save(part, {"copy GB/s": bandwidth, "results": results})
    finally:
        worker.close()
    done = [r for r in results if "failed" not in r]
    title = f"GPU kernels; a copy moves {bandwidth:.0f} GB/s, read and written bytes counted"
    run.table(part, title, HEADS, [line(r, bandwidth) for r in done])
    _remarks(run, done, bandwidth)


def _shown(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else "-" if cell is None else str(cell)


def _remarks(run: Run, done: list[dict[str, Any]], bandwidth: float) -> None:
    """What is slower than it should be, and which of PyTorch's ways did not run."""
    absent: dict[str, list[str]] = {}
    for r in done:
        for name, reason in r["absent"].items():
            absent.setdefault(reason, []).append(f"{r['name']} ({name})")
        if "us" not in r:
            continue
        best, taken = best_of_torch(r), r["us"]["median"]
        share = r["bytes"] / taken / 1e3 / bandwidth
        if share < GOAL and not run.tiny:
            run.say(f"below {GOAL:.0%} of a copy: {r['name']} at {share:.0%}")
        if best and best[1] < taken:
            run.say(f"slower than torch's {best[0]}: {r['name']}, {taken / best[1]:.2f} x its time")
    for reason, names in absent.items():
        run.say(f"torch did not run {len(names)} of these, {names[0]} first: {reason}")


def run_kernels(run: Run) -> None:
    """The part ``kernels``."""
    measure_all(run, "kernels", "kernels")


def run_optimizers(run: Run) -> None:
    """The part ``adam``: the optimizers' kernels on 124 million parameters."""
    measure_all(run, "adam", "optimizers")
