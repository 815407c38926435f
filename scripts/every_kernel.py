"""Runs every CUDA kernel once, at odd sizes, and compares it with the reference.

``python -m scripts.every_kernel``: small enough to be run under NVIDIA's compute-sanitizer. Each
array is an allocation of its own, so that an access outside of one is seen. The exit status is 1 if
a result is wrong, or if a kernel of kernels/gpu/cu was never started.
"""

from __future__ import annotations

import argparse
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (NumPy knows bfloat16 then)
import numpy as np

from tests.test_kernels import CASES, IN_PLACE, arrays_in, on
from tinygrad_ish.kernels import Backend, get_backend, gpu, reference
from tinygrad_ish.kernels.gpu import _launch, _nvrtc, gemm

TOLERANCE = {"float16": 1e-2, "bfloat16": 3e-2, "float32": 2e-4, "float64": 1e-10}
Args = tuple[Any, ...]


def large(dtype: str) -> Iterator[tuple[str, Args, dict[str, Any]]]:
    """Calls (kernel, arguments, options) for what the common table is too small to reach: long
    rows, several blocks, sorting beyond one block."""
    rng = np.random.default_rng(7)
    number = lambda *shape: rng.normal(size=shape).astype(dtype)  # noqa: E731
    share = lambda *shape: rng.uniform(0.1, 0.9, shape).astype(dtype)  # noqa: E731
    for shape in ((3, 1033), (2, 40_001), (700, 5), (1031, 130)):
        labels = rng.integers(0, shape[1], shape[0])
        x = number(*shape)
        yield "softmax_cross_entropy", (x, labels), {}
        yield "softmax_cross_entropy", (x, labels), {"label_smoothing": 0.1}
        yield "nll_loss", (x, labels), {}
        yield "softmax", (x, 1), {}
        yield "log_softmax", (x, 1), {}
        yield "layer_norm", (x, number(shape[1]), number(shape[1])), {}
        given = (number(*shape), x, number(shape[0]), share(shape[0]), number(shape[1]))
        yield "layer_norm_backward", given, {}
        for axis in (None, 0, 1):
            for name in ("sum", "mean", "amax", "amin", "argmax"):
                yield name, (x, axis), {}
        for name in ("mse_loss", "bce_loss", "bce_with_logits"):
            yield name, (share(*shape), share(*shape)), {}
    index = rng.integers(0, 37, 5003)
    yield "index_select", (number(37, 65), index, 0), {}
    yield "index_select_backward", (number(5003, 33), index, 0, (37, 33)), {}
    yield "linear", (number(333, 40), number(72, 40), number(72), "relu"), {}
    backward = (number(333, 72), number(333, 40), number(72, 40), share(333, 72), "relu")
    yield "linear_backward", backward, {}
    for rows in (1, 5, 33):
        w8, scale = rng.integers(-127, 128, (37, 4100), np.int8), share(37).astype("float32")
        wide = "float64" if dtype == "float64" else "float32"
        yield "linear_int8", (number(rows, 4100), w8, scale.astype(wide), number(37), "relu"), {}
    yield "grad_norm", ((number(70_001), number(3)), 2.0), {}
    yield "grad_norm", ((number(70_001),), np.inf), {}


def table(dtype: str) -> Iterator[tuple[str, Args, dict[str, Any]]]:
    """The calls of tests/test_kernels.py that are made in this dtype, or in float32 for it."""
    for name in sorted(gpu.KERNELS):
        for i, case in enumerate(CASES[name]):
            if dtype in case.dtypes or (dtype == "bfloat16" and "float32" in case.dtypes):
                yield name, case.make(np.random.default_rng(i), dtype), case.kwargs
            elif dtype == "float32":  # for those that know it not
                yield name, case.make(np.random.default_rng(i), case.dtypes[0]), case.kwargs


def difference(k: Backend, name: str, args: Args, kwargs: dict[str, Any]) -> str | None:
    """What is wrong with a call; None if nothing is. In-place kernels leave it in their
    arguments."""
    plain = get_backend("numpy")
    given = [on(k, a, "contiguous") for a in args]
    wide = [on(plain, a, "contiguous") for a in args]
    wide = [_widened(a) for a in wide]
    with np.errstate(all="ignore"):
        right = getattr(reference, name)(*wide, **kwargs)
    got = getattr(k, name)(*given, **kwargs)
    found, expected = [arrays_in([got]), arrays_in([right])]
    if name in IN_PLACE:
        found, expected = found + arrays_in(given), expected + arrays_in(wide)
    for a, b in zip(found, expected, strict=True):
        reason = _differs(k.to_numpy(a), b)
        if reason:
            return reason
    return None


def _differs(a: Any, b: Any) -> str | None:
    if a.shape != b.shape:
        return f"shape {list(a.shape)}, expected {list(b.shape)}"
    tolerance, wide = TOLERANCE.get(a.dtype.name, 0), b.astype("float64")
    largest = np.abs(wide[np.isfinite(wide)]).max(initial=1.0)
    if np.allclose(a.astype("float64"), wide, tolerance, tolerance * largest, equal_nan=True):
        return None
    return f"{a.dtype} {list(a.shape)} is not the reference's"


def _widened(value: Any) -> Any:
    """bfloat16, in which NumPy computes roughly, as float32."""
    if isinstance(value, tuple):
        return tuple(map(_widened, value))
    narrow = hasattr(value, "dtype") and value.dtype.name == "bfloat16"
    return value.astype("float32") if narrow else value


def strided(k: Backend) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """Copies of what does not lie together."""
    x = np.random.default_rng(0).normal(size=(5, 33, 70))
    views: list[Callable[[Any], Any]] = [
        lambda x: x.transpose(2, 0, 1), lambda x: x.transpose(0, 2, 1), lambda x: x[:, ::2, ::3],
    ]  # fmt: skip
    for dtype in TOLERANCE:
        for view in views:
            host = x.astype(dtype)

            def run(view: Callable[[Any], Any] = view, host: Any = host) -> str | None:
                return _differs(k.to_numpy(k.copy(view(k.asarray(host)))), view(host))

            yield f"copy, {dtype}", run


def teaching(k: Backend) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """The matrix products on tensor cores."""
    rng = np.random.default_rng(0)
    for name, sizes in (("gemm_mma", (136, 72, 200)), ("gemm_wgmma", (264, 136, 392))):
        if name == "gemm_wgmma" and _launch.device.arch != "sm_90a":
            continue
        a, b = (rng.normal(size=s).astype("bfloat16") for s in (sizes[:2], sizes[1:]))

        def run(name: str = name, a: Any = a, b: Any = b) -> str | None:
            got = k.to_numpy(getattr(gemm, name)(k.asarray(a), k.asarray(b))).astype("float64")
            right = a.astype("float64") @ b.astype("float64")
            far = np.linalg.norm(got - right) / np.linalg.norm(right)
            return None if far < 1e-2 else f"an error of {far:.2g}"

        yield name, run


def outcome(run: Callable[[], str | None]) -> str | None:
    """What ``run`` says is wrong, or how it failed: the next call may work."""
    try:
        return run()
    except Exception:  # CUDA's and whatever else
        return traceback.format_exc()


class Started:
    """The names of the kernels that were loaded."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._load = _launch._kernel

    def __call__(self, file: str, dtype: str, name: str, shared: int) -> Any:
        self.names.add(name)
        return self._load(file, dtype, name, shared)


def all_kernels() -> set[str]:
    """The names in kernels/gpu/cu."""
    pattern = r"^KERNEL(?: __launch_bounds__\([^)]*\))?\s+(\w+)\("
    texts = [p.read_text() for p in Path(_nvrtc.FOLDER).glob("*.cu")]
    return {name for text in texts for name in re.findall(pattern, text, re.MULTILINE)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run them; 1 if something was wrong."""
    parser = argparse.ArgumentParser(prog="scripts.every_kernel")
    parser.add_argument("--dtype", action="append", choices=list(TOLERANCE), help="(all)")
    parser.add_argument("--only-large", action="store_true", help="without the common table")
    parser.add_argument("--skip", action="append", default=[], metavar="KERNEL", help="a GEMM")
    args = parser.parse_args(argv)
    k = get_backend("cupy")
    started = Started()
    _launch._kernel = started
    count, wrong = 0, []
    with k.xp.cuda.using_allocator():  # no pool: each array by cudaMalloc
        for dtype in args.dtype or TOLERANCE:
            calls = [*large(dtype)] + ([] if args.only_large else [*table(dtype)])
            for name, given, kwargs in calls:
                count += 1
                reason = outcome(lambda: difference(k, name, given, kwargs))  # noqa: B023
                wrong += [f"{name}, {dtype}, {kwargs}: {reason}"] if reason else []
        for name, run in [*strided(k), *teaching(k)]:
            if name in args.skip:
                continue
            count += 1
            reason = outcome(run)
            wrong += [f"{name}: {reason}"] if reason else []
    missed = all_kernels() - started.names - {*args.skip}
    print(f"{count} calls, {len(started.names)} kernels started, {len(wrong)} calls wrong")
    for reason in wrong[:20]:
        print(f"wrong: {reason}")
    if missed:
        print(f"never started: {', '.join(sorted(missed))}")
    return int(bool(wrong) or bool(missed))


if __name__ == "__main__":
    sys.exit(main())
