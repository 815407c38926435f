"""The thread budget: one number for our kernels and for NumPy's BLAS."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings

import numba

__all__ = ["get_num_threads", "set_num_threads", "start"]


class _Budget:
    threads: int | None = None  # None: all that Numba has
    started = False
    forked = False  # from a process whose threads were running: they do not exist here


_budget = _Budget()


def get_num_threads() -> int:
    """The most threads that a kernel uses."""
    if _budget.forked:
        return 1
    return _budget.threads or int(numba.config.NUMBA_NUM_THREADS)


def set_num_threads(threads: int) -> None:
    """Let kernels and NumPy's BLAS use at most this many threads. No result depends on it.

    Raises ValueError for a number outside 1 … the CPU cores (NUMBA_NUM_THREADS), and for more
    than 1 in a process that was forked after its parent's threads had started. NumPy's BLAS
    follows where threadpoolctl is installed.
    """
    most = int(numba.config.NUMBA_NUM_THREADS)
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= most:
        raise ValueError(f"set_num_threads: expected an int from 1 to {most}, got {threads!r}")
    if _budget.forked and threads > 1:
        raise ValueError(
            "set_num_threads: this process was forked from one whose threads had started; they "
            "do not exist here, so it has one thread. Start processes with "
            'multiprocessing.get_context("spawn")'
        )
    _budget.threads = threads
    _limit_blas(threads)


def _limit_blas(threads: int) -> None:
    if importlib.util.find_spec("threadpoolctl") is None:
        warnings.warn(
            "NumPy's BLAS keeps the threads it has: to set them too, pip install threadpoolctl",
            stacklevel=3,
        )
        return
    import threadpoolctl

    threadpoolctl.threadpool_limits(threads, user_api="blas")


@functools.cache
def start() -> None:
    """Start Numba's threads, told to sleep while they wait for work.

    By default OpenMP's threads wait by spinning. Where another process uses a core they then hold
    up each parallel kernel for milliseconds. OpenMP reads the setting once, at its start.
    """
    _budget.started = True
    given = os.environ.get("OMP_WAIT_POLICY")
    os.environ["OMP_WAIT_POLICY"] = given or "passive"
    try:
        numba.get_num_threads()
    finally:
        if given is None:
            del os.environ["OMP_WAIT_POLICY"]


def _after_fork() -> None:
    _budget.forked = _budget.forked or _budget.started


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
