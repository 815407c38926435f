"""What this machine can do at most, measured: multiply-adds and copied bytes per second.

Imports Numba, so the contenders' processes do not import this.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from tinygrad_ish.kernels.cpu._intrinsics import multiply_add

from .machine import threads

CHAINS = 12  # an fma takes about 4 cycles and two start in each: 8 must be on their way
VECTOR = ir.VectorType(ir.FloatType(), 16)  # LLVM splits it on CPUs with smaller registers
FLOPS = 2 * CHAINS * 16  # in a turn of the loop
REPEATS = 9


@intrinsic
def _chains(typingctx: Any, turns: Any, seed: Any) -> Any:
    """Σ of CHAINS vectors, each multiplied and added to ``turns`` times, all in registers."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        turns, seed = args
        lane = ir.Constant(ir.IntType(32), 0)
        factor = builder.insert_element(VECTOR(ir.Undefined), seed, lane)
        mask = ir.Constant(ir.VectorType(ir.IntType(32), 16), [0] * 16)
        factor = builder.shuffle_vector(factor, factor, mask)
        before = builder.block
        loop, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
        builder.branch(loop)
        builder.position_at_end(loop)
        count = builder.phi(turns.type)
        olds = [builder.phi(VECTOR) for _ in range(CHAINS)]
        news = [multiply_add(builder, old, factor, factor) for old in olds]
        left = builder.sub(count, turns.type(1))
        builder.cbranch(builder.icmp_signed(">", left, turns.type(0)), loop, after)
        for phi, start, then in zip([count, *olds], [turns, *[factor] * CHAINS], [left, *news]):
            phi.add_incoming(start, before)
            phi.add_incoming(then, loop)
        builder.position_at_end(after)
        total = functools.reduce(builder.fadd, news)
        return builder.extract_element(total, lane)

    return types.float32(types.intp, types.float32), generate


@numba.njit("float32(intp, float32)", nogil=True)
def _multiply_adds(turns, seed):  # type: ignore[no-untyped-def]
    return _chains(turns, seed)


@numba.njit("void(float32[::1], float32[::1], intp)", nogil=True)
def _copies(target, source, repeats):  # type: ignore[no-untyped-def]
    for n in range(repeats):
        source[0] = n  # or the second copy would be found to change nothing
        for i in range(target.size):
            target[i] = source[i]


def _seconds(work: list[Callable[[], Any]]) -> float:
    """The best time in which all of the work, each on a thread of its own, was done."""
    best = float("inf")
    with ThreadPoolExecutor(len(work)) as pool:
        for _ in range(REPEATS):
            start = time.perf_counter()
            for future in [pool.submit(function) for function in work]:
                future.result()
            best = min(best, time.perf_counter() - start)
    return best


_best: dict[tuple[str, int, int], float] = {}


def _keep_best(key: tuple[str, int, int], value: float) -> float:
    """The best of this process so far: other processes can slow a measurement, none speeds it."""
    _best[key] = max(value, _best.get(key, 0.0))
    return _best[key]


def peak(using: int | None = None) -> float:
    """GFLOP/s of float32 multiply-adds that wait for no memory, on all threads or so many."""
    using, turns = using or threads(), 1_000_000
    work = [functools.partial(_multiply_adds, turns, 0.5)] * using
    return _keep_best(("peak", using, 0), using * turns * FLOPS / _seconds(work) / 1e9)


def bandwidth(nbytes: int, using: int | None = None) -> float:
    """GB/s of copying, read and written bytes both counted, where ``nbytes`` of memory, half of
    them source and half target, are gone over again and again; on all threads or so many."""
    using = using or threads()
    each = max(nbytes // 8 // using, 16)
    repeats = max(1, 20_000_000 // (8 * each))
    pairs = [(np.zeros(each, np.float32), np.ones(each, np.float32)) for _ in range(using)]
    work = [functools.partial(_copies, target, source, repeats) for target, source in pairs]
    found = using * repeats * 8 * each / _seconds(work) / 1e9
    return _keep_best(("bandwidth", using, each), found)


def memory_bandwidth() -> float:
    """``bandwidth`` of arrays that no cache holds."""
    return bandwidth(400_000_000)
