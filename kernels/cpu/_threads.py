"""The thread budget, and the threads that help with a kernel's tasks."""

from __future__ import annotations

import importlib.util
import os
import struct
import threading
import time
import warnings
from collections.abc import Callable

import numpy as np

__all__ = ["crew", "get_num_threads", "set_num_threads"]


WAITED = 40  # where in the table a job leaves how long it waited
TABLE = WAITED + 8  # numbers in it
LONG_WAIT = 200_000  # nanoseconds
SHORT, LONGEST = 5_000_000, 40_000_000  # nanoseconds that a caller works alone then


class Helper:
    """A thread that takes part in jobs. It waits for the next one awake for a while, then asleep:
    waking it takes longer than a small job."""

    def __init__(self, number: int, table: np.ndarray, work: Callable[[bytes], int]):
        self.asleep = False
        self._called = threading.Event()
        self._work, self._table = work, table  # kept: its address is among the arguments
        self._arguments = struct.pack("=3q", table.ctypes.data, len(table), number)
        name = f"tinygrad_ish helper {number + 1}"
        threading.Thread(target=self._live, name=name, daemon=True).start()

    def _live(self) -> None:
        while True:
            self._work(self._arguments)
            self._called.clear()
            self.asleep = True
            self._called.wait()

    def wake(self) -> None:
        """Let it look for jobs again."""
        self.asleep = False
        self._called.set()


class Crew:
    """The helpers of this process, and the table where jobs are offered to them (_tasks.py)."""

    def __init__(self) -> None:
        self.table = np.zeros(TABLE, np.int64)
        self.lock = threading.Lock()  # one job at a time
        self.most = _usable_cores()
        self.threads = self.most
        self._helpers: list[Helper] = []
        self._alone_until = 0  # by time.perf_counter_ns
        self._alone_for = SHORT

    def gather(self, work: Callable[[bytes], int], now: int) -> int:
        """Have the helpers look for jobs; how many may take part."""
        wanted = self.threads - 1 if now >= self._alone_until else 0
        while len(self._helpers) < wanted:
            self._helpers.append(Helper(len(self._helpers), self.table, work))
        for helper in self._helpers[:wanted]:
            if helper.asleep:
                helper.wake()
        return wanted

    def waited(self, start: int, nanoseconds: int) -> None:
        """Take note of how long a job that began then has waited for helpers.

        One that waits for most of its time waits for a helper whose core another process has
        taken: then the helpers are left out for a while, for longer if it happens again.
        """
        if nanoseconds < LONG_WAIT:
            return
        now = time.perf_counter_ns()
        if 2 * nanoseconds > now - start:
            again = start - self._alone_until < self._alone_for
            self._alone_for = min(2 * self._alone_for, LONGEST) if again else SHORT
            self._alone_until = now + self._alone_for

    def leave(self) -> None:
        """Begin anew, in a forked process: threads do not come along."""
        threads = self.threads
        self.__init__()  # type: ignore[misc]
        self.threads = threads


def _usable_cores() -> int:
    """The cores that this process may use, or as many threads as Numba is told to have."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return int(os.environ.get("NUMBA_NUM_THREADS") or cores)


crew = Crew()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=crew.leave)


def get_num_threads() -> int:
    """The most threads that a kernel uses."""
    return crew.threads


def set_num_threads(threads: int) -> None:
    """Let kernels and NumPy's BLAS use at most this many threads. No result depends on it.

    Raises ValueError for a number outside 1 … the CPU's cores (NUMBA_NUM_THREADS). NumPy's BLAS
    follows where threadpoolctl is installed.
    """
    whole = isinstance(threads, int) and not isinstance(threads, bool)
    if not whole or not 1 <= threads <= crew.most:
        raise ValueError(f"set_num_threads: expected an int from 1 to {crew.most}, got {threads!r}")
    crew.threads = threads
    _limit_blas(threads)


def _limit_blas(threads: int) -> None:
    if importlib.util.find_spec("threadpoolctl") is None:
        warnings.warn(
            "NumPy's BLAS keeps the threads it has: to set them too, "
            "pip install 'tinygrad_ish[threads]'",
            stacklevel=4,
        )
        return
    import threadpoolctl

    threadpoolctl.threadpool_limits(threads, user_api="blas")
