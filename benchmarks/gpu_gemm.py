"""Matrix products on the GPU beside PyTorch's at equal precision: a part of benchmarks.gpu.

Operands rotate, so that no cache holds those of small products; a CUDA graph of some products hides
what it costs to launch one. The results of both are compared with float64 on some rows first.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from tinygrad_ish.kernels import get_backend, set_float32_matmul_precision
from tinygrad_ish.kernels.gpu import _launch
from tinygrad_ish.kernels.gpu.gemm import gemm_mma, gemm_wgmma

from .cases import LAYERS, Size, _products
from .children import ChildError
from .gpu_clock import (
    FLUSH,
    Clock,
    Run,
    Worker,
    as_torch,
    graphed,
    poison,
    torch_graphed,
    torch_or_why,
)
from .gpu_kernels import Numbers

PRECISIONS = {  # the dtype, how float32 is multiplied, the error that is allowed
    "fp32": ("float32", "highest", 1e-5),
    "tf32": ("float32", "high", 2e-3),
    "bf16": ("bfloat16", "highest", 1e-2),
    "fp16": ("float16", "highest", 2e-3),
}
CACHE = 128 << 20  # bytes that operands and results of all turns have together, if it takes few
MOST_SETS, CALLS = 16, 16
LONG = 2e11  # operations after which a product is launched by itself
ROWS = 32  # of the first and the last that are compared
TEACHING = 4096


def sizes(tiny: bool, precision: str) -> list[Size]:
    """(layout, M, K, N): squares, the models' products (in the precisions they come in), and the
    4096-wide ones; layouts as in benchmarks.cases."""
    if tiny:
        return [("nn", 16, 24, 8), ("nt", 8, 16, 24), ("tn", 8, 16, 8)]
    squares = [("nn", n, n, n) for n in (512, 1024, 2048, 4096, 8192)]
    wide = [("nt", 256, 4096, 4096), ("nn", 256, 4096, 4096), ("tn", 4096, 256, 4096)]
    models = _products()[:-3] if precision == "fp32" else [("nt", *LAYERS[-2])]
    return [*squares, *wide, *dict.fromkeys(models)]


class Gemm:
    """The products in a process of their own."""

    def __init__(self, tiny: bool, repeats: int) -> None:
        self.k, self.tiny = get_backend("cupy"), tiny
        self.clock = Clock(repeats, 1 << 10 if tiny else FLUSH)
        self.numbers = Numbers(self.k, 1)
        self.torch, self.why = torch_or_why()

    def _operands(self, size: Size, dtype: str) -> list[tuple[Any, Any, Any]]:
        layout, m, k, n = size
        draw = self.numbers.normal
        nbytes = np.dtype(dtype).itemsize * (m * k + k * n + m * n)
        count = min(MOST_SETS, max(2, CACHE // nbytes))
        return [
            (
                draw(k, m, dtype=dtype).T if layout[0] == "t" else draw(m, k, dtype=dtype),
                draw(n, k, dtype=dtype).T if layout[1] == "t" else draw(k, n, dtype=dtype),
                self.k.empty((m, n), np.dtype(dtype)),
            )
            for _ in range(count)
        ]

    def measure(self, precision: str, size: Size) -> dict[str, Any]:
        """Errors and times of both for one product."""
        dtype, how, _ = PRECISIONS[precision]
        set_float32_matmul_precision(how)
        operands = self._operands(size, dtype)
        products = {"ours": lambda a, b, out: self.k.matmul(a, b, out=out)}
        calls = self._repeated(products["ours"], operands)
        found = self._found(precision, size, {"ours": self._error(products["ours"], operands[0])})
        contest = {"ours": (graphed(calls), len(calls))}
        if self.torch is not None:
            mm = self._torch_product(how)
            tensors = [tuple(as_torch(self.torch, x) for x in three) for three in operands]
            found["errors"]["torch"] = self._error_of_torch(mm, operands[0], tensors[0])
            calls = self._repeated(mm, tensors)
            contest["torch"] = (torch_graphed(self.torch, calls), len(calls))
        else:
            found["absent"] = {"torch": self.why}
        return self._clocked(found, contest)

    def _torch_product(self, how: str) -> Callable[..., Any]:
        torch = self.torch
        torch.set_float32_matmul_precision(how)
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        return lambda a, b, out: torch.mm(a, b, out=out)

    def _repeated(self, product: Callable[..., Any], operands: list[Any]) -> list[Any]:
        (m, k), n = operands[0][0].shape, operands[0][1].shape[1]
        count = len(operands) if 2 * m * k * n > LONG else max(len(operands), CALLS)
        sets = [operands[i % len(operands)] for i in range(count)]
        return [lambda s=s: product(*s) for s in sets]

    def _error(self, product: Callable[..., Any], operands: tuple[Any, Any, Any]) -> float:
        """‖out - a b‖ / ‖a b‖ over some of the rows."""
        a, b, out = operands
        poison(out)
        product(a, b, out)
        return self._distance(a, b, out)

    def _error_of_torch(self, product: Any, operands: Any, tensors: Any) -> float:
        poison(operands[2])
        product(*tensors)
        return self._distance(*operands)

    def _distance(self, a: Any, b: Any, out: Any) -> float:
        wide = np.dtype(np.float64)
        ends = [slice(0, ROWS), slice(-ROWS, None)]
        get = lambda x: self.k.to_numpy(self.k.copy(x)).astype(wide)  # noqa: E731
        right = [get(a[rows]) @ get(b) for rows in ends]
        far = [np.linalg.norm(get(out[rows]) - r) for rows, r in zip(ends, right)]
        return float(np.hypot(*far) / np.hypot(*[np.linalg.norm(r) for r in right]))

    def _found(self, precision: str, size: Size, errors: dict[str, float]) -> dict[str, Any]:
        return {"precision": precision, "size": list(size), "errors": errors, "us": {}}

    def _clocked(self, found: dict[str, Any], contest: dict[str, Any]) -> dict[str, Any]:
        """With the times: they take turns."""
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in contest}
        for _ in range(3):
            for name, (call, count) in contest.items():
                rounds[name].append(self.clock.times(call, count))
        for name, times in rounds.items():
            found["us"][name] = {
                key: statistics.median(t[key] for t in times) for key in ("median", "p10", "p90")
            }
        self.k.xp.get_default_memory_pool().free_all_blocks()
        return found

    def teaching(self) -> dict[str, Any]:
        """The kernels written by hand beside cuBLAS."""
        n = 64 if self.tiny else TEACHING
        operands = self._operands(("nn", n, n, n), "bfloat16")
        products: dict[str, Any] = {"cuBLAS": self.k.matmul, "gemm_mma": gemm_mma}
        if _launch.device.arch == "sm_90a" and not self.tiny:
            products["gemm_wgmma"] = gemm_wgmma
        errors, contest = {}, {}
        for name, product in products.items():
            run = lambda a, b, out, product=product: product(a, b, out=out)  # noqa: E731
            errors[name] = self._error(run, operands[0])
            calls = self._repeated(run, operands)
            contest[name] = (graphed(calls), len(calls))
        return self._clocked(self._found("bf16", ("nn", n, n, n), errors), contest)

    def int8(self, rows: int) -> dict[str, Any]:
        """A linear layer with weights of 8 bits, beside PyTorch's with weights of bfloat16."""
        d = 24 if self.tiny else 4096
        draw, below = self.numbers.normal, self.numbers.below
        x, b = draw(rows, d, dtype="bfloat16"), draw(d, dtype="bfloat16")
        w8 = below(255, d, d, dtype=np.uint8).view(np.int8)
        scale = self.numbers.share(d)
        calls = [lambda: self.k.linear_int8(x, w8, scale, b)]
        size = ("nt", rows, d, d)
        wide = [self.k.to_numpy(a).astype(np.float64) for a in (x[:ROWS], w8, scale, b)]
        right = wide[0] @ (wide[1] * wide[2][:, None]).T + wide[3]
        got = self.k.to_numpy(calls[0]()[:ROWS]).astype(np.float64)
        error = float(np.linalg.norm(got - right) / np.linalg.norm(right))
        contest = {"ours, int8": (graphed(calls), 1)}
        if self.torch is not None:
            torch = self.torch
            tx, tw, ts, tb = (as_torch(torch, a) for a in (x, w8, scale, b))
            weight = (tw.float() * ts[:, None]).to(torch.bfloat16)
            theirs = [lambda: torch.nn.functional.linear(tx, weight, tb)]
            contest["torch, bf16"] = (torch_graphed(torch, theirs), 1)
        return self._clocked(self._found("int8", size, {"ours, int8": error}), contest)


def line(found: dict[str, Any]) -> list[list[Any]]:
    """Rows of the table: one for each contender."""
    layout, m, k, n = found["size"]
    first = next(iter(found["us"]))
    return [
        [
            found["precision"], layout, f"{m} {k} {n}", name,
            f"{found['errors'].get(name, float('nan')):.1e}",
            t["median"], t["p10"], t["p90"], 2 * m * k * n / t["median"] / 1e6,
            f"{found['us'][first]['median'] / t['median']:.3f}",
        ]
        for name, t in found["us"].items()
    ]  # fmt: skip


HEADS = (
    "precision", "layout", "M K N", "by", "error", "µs", "p10", "p90", "TFLOP/s", "first / this",
)  # fmt: skip


def run_gemm(run: Run) -> None:
    """The part ``gemm``."""
    worker = Worker(Gemm, run.tiny, max(2, run.repeats // 3))
    results: list[dict[str, Any]] = []
    precisions = ["fp32", "bf16"] if run.quick else list(PRECISIONS)
    tasks: list[tuple[str, tuple[Any, ...], float]] = [("teaching", (), PRECISIONS["bf16"][2])]
    tasks += [("int8", (rows,), 2e-2) for rows in ((5, 20) if run.tiny else (1, 16, 256, 4096))]
    for p in precisions:
        tasks += [("measure", (p, size), PRECISIONS[p][2]) for size in sizes(run.tiny, p)]
    try:
        for method, args, allowed in tasks:
            try:
                found = worker.ask(method, *args)
            except ChildError as reason:
                run.fails(f"gemm {method} {args}: {reason}")
                results.append({"task": [method, *args], "failed": reason.details or str(reason)})
                run.save("gemm", results)
                continue
            results.append(found)
            run.save("gemm", results)
            for name, error in found["errors"].items():
                if not error <= allowed:
                    run.fails(f"{name}: {found['precision']} {found['size']}: error {error:.2g}")
            for row in line(found):
                run.say(" | ".join(f"{c:.4g}" if isinstance(c, float) else str(c) for c in row))
    finally:
        worker.close()
    done = [row for r in results if "failed" not in r for row in line(r)]
    run.table("gemm", "Matrix products, a median of medians", HEADS, done)
    why = {r["absent"]["torch"] for r in results if "absent" in r}
    for reason in why:
        run.say(f"no torch: {reason}")
