"""Requests grouped into batches, run one batch at a time, answered as rows.

A request joins the queue of its model and is run in the next turn of the event loop, together with
all that have arrived by then; a lone one waits for nobody. What is quick is run on the loop itself
(handing it to a thread would take longer), the rest in the one compute thread; meanwhile the queue
fills, and the next batch is what has come. So batches grow with the load, without a delay to set.

Only rows are grouped: each request was checked before it came here, and a row's answer does not
depend on its neighbours. If a batch fails, its requests are run one by one: those fail that must.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np

from .errors import ServeError

__all__ = ["Batcher", "Request"]

Arrays = list[np.ndarray]
Run = Callable[[Arrays], "tuple[np.ndarray, ...]"]

INLINE = 0.0005  # seconds of work that the event loop does itself
RECENT = 0.2  # weight of the latest measurement in a running mean


class Request:
    """Checked inputs on their way to an answer; ``deadline`` is a time of the event loop."""

    __slots__ = ("answer", "deadline", "disconnected", "inputs", "nbytes", "rows", "started",
                 "timer", "watcher")  # fmt: skip

    def __init__(
        self,
        inputs: Arrays,
        rows: int,
        deadline: float,
        disconnected: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self.inputs = inputs
        self.rows = rows
        self.nbytes = sum([x.nbytes for x in inputs])
        self.deadline = deadline
        self.disconnected = disconnected  # returns when the client has left
        self.started = 0.0
        self.answer: asyncio.Future[tuple[np.ndarray, ...]]
        self.timer: asyncio.TimerHandle | None = None
        self.watcher: asyncio.Task[None] | None = None


class Batcher:
    """The queue of one model. Use it from one event loop.

    ``run`` takes inputs and gives outputs, rows for rows, if ``batchable``; else each request runs
    by itself. ``observe(rows, requests, seconds)`` hears of each run; ``seconds`` tells what runs
    took before, by the bit length of their rows.
    """

    def __init__(
        self,
        run: Run,
        executor: Executor,
        *,
        batchable: bool = True,
        max_batch: int = 64,
        max_queue: int = 1024,
        max_queue_bytes: int = 64 * 2**20,
        observe: Callable[[int, int, float], None] = lambda rows, requests, seconds: None,
        seconds: dict[int, float] | None = None,
    ) -> None:
        self._run = run
        self._executor = executor
        self._batchable = batchable
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._max_queue_bytes = max_queue_bytes
        self._observe = observe
        self._queue: deque[Request] = deque()
        self._bytes = 0
        self._rows = 0
        self._scheduled = False
        self._busy = False
        self._running = 0  # requests in the compute thread
        self._seconds = dict(seconds or {})  # of a run, by the bit length of its rows
        self._idle = asyncio.Event()
        self._idle.set()

    # --- from outside ------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def wait_seconds(self) -> float:
        """How long a request that comes now will wait, by the runs so far."""
        batches = -(-self._rows // self._max_batch) + self._busy
        return batches * self._estimate(min(self._rows or 1, self._max_batch))

    async def submit(self, request: Request) -> tuple[np.ndarray, ...]:
        """The outputs for a request.

        Raises ServeError: "overloaded" where the queue is full or the deadline cannot be met,
        "deadline" when it has passed, what the model refuses as "bad_input"; and
        asyncio.CancelledError where the client has left.
        """
        loop = asyncio.get_running_loop()
        self._check_room(request, loop.time())
        request.answer = loop.create_future()
        self._queue.append(request)
        self._bytes += request.nbytes
        self._rows += request.rows
        self._idle.clear()
        if self._busy:
            self._must_wait(request)
        elif not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._turn)
        try:
            return await request.answer
        finally:
            self._leave(request)

    async def drained(self) -> None:
        """Return when no request is waiting or running."""
        await self._idle.wait()

    # --- the queue ---------------------------------------------------------------------------

    def _check_room(self, request: Request, now: float) -> None:
        full = len(self._queue) >= self._max_queue
        full = full or (self._queue and self._bytes + request.nbytes > self._max_queue_bytes)
        if not full and not self._busy:
            return
        wait = self.wait_seconds()
        after = {"Retry-After": str(max(1, round(wait + 0.5)))}
        if full:
            raise ServeError(
                "overloaded",
                f"{len(self._queue)} requests wait for this model; come back in "
                f"{after['Retry-After']} s",
                headers=after,
            )
        if now + wait > request.deadline:
            raise ServeError(
                "overloaded",
                f"the wait is {wait:.2f} s now, longer than the deadline allows; come back in "
                f"{after['Retry-After']} s",
                headers=after,
            )

    def _must_wait(self, request: Request) -> None:
        """Watch the clock and the client for a request that is not run at once."""
        loop = asyncio.get_running_loop()
        if request.timer is None:
            request.timer = loop.call_at(request.deadline, self._expire, request)
        if request.watcher is None and request.disconnected is not None:
            request.watcher = loop.create_task(self._watch(request))

    async def _watch(self, request: Request) -> None:
        assert request.disconnected is not None
        await request.disconnected()
        request.answer.cancel()

    def _expire(self, request: Request) -> None:
        if not request.answer.done():
            request.answer.set_exception(
                ServeError("deadline", "the deadline passed before there was an answer")
            )

    def _leave(self, request: Request) -> None:
        if request.timer is not None:
            request.timer.cancel()
        if request.watcher is not None:
            request.watcher.cancel()

    def _take(self) -> list[Request]:
        """The next batch: those first in the queue that still want an answer."""
        batch: list[Request] = []
        rows = 0
        while self._queue:
            request = self._queue[0]
            fits = not batch or (self._batchable and rows + request.rows <= self._max_batch)
            if not request.answer.done() and not fits:
                break
            self._queue.popleft()
            self._bytes -= request.nbytes
            self._rows -= request.rows
            if not request.answer.done():
                batch.append(request)
                rows += request.rows
        return batch

    # --- running -----------------------------------------------------------------------------

    def _turn(self) -> None:
        """Run a batch, here or in the compute thread."""
        self._scheduled = False
        batch = [] if self._busy else self._take()
        if not batch:
            if not self._busy and not self._queue:
                self._idle.set()
            return
        loop = asyncio.get_running_loop()
        rows = sum([r.rows for r in batch])
        now = loop.time()
        for request in batch:
            request.started = now
        if self._estimate(rows) < INLINE:
            self._finish(batch, *self._timed(batch))
            return
        self._busy = True
        self._running = len(batch)
        for request in (*batch, *self._queue):
            self._must_wait(request)
        run = loop.run_in_executor(self._executor, self._timed, batch)
        run.add_done_callback(lambda done: self._returned(batch, done))

    def _returned(self, batch: list[Request], done: asyncio.Future[Any]) -> None:
        self._busy = False
        self._running = 0
        self._finish(batch, *done.result())

    def _timed(self, batch: list[Request]) -> tuple[list[Any], float]:
        """The answer or error of each request, and the seconds it took."""
        start = time.perf_counter()
        answers = self._answers(batch)
        return answers, time.perf_counter() - start

    def _answers(self, batch: list[Request]) -> list[Any]:
        if len(batch) == 1:
            return [self._alone(batch[0])]
        inputs = [np.concatenate(parts) for parts in zip(*[r.inputs for r in batch], strict=True)]
        try:
            outputs = self._run(inputs)
        except Exception:
            return [self._alone(request) for request in batch]
        answers, start = [], 0
        for request in batch:
            stop = start + request.rows
            answers.append(tuple([x[start:stop] for x in outputs]))
            start = stop
        return answers

    def _alone(self, request: Request) -> Any:
        try:
            return self._run(request.inputs)
        except Exception as error:
            return error

    def _finish(self, batch: list[Request], answers: list[Any], seconds: float) -> None:
        rows = sum([r.rows for r in batch])
        key = rows.bit_length()
        before = self._seconds.get(key, seconds)
        self._seconds[key] = before + RECENT * (seconds - before)
        self._observe(rows, len(batch), seconds)
        for request, answer in zip(batch, answers, strict=True):
            if request.answer.done():  # too late, or nobody is there
                continue
            if isinstance(answer, BaseException):
                request.answer.set_exception(_refusal(answer))
            else:
                request.answer.set_result(answer)
        if self._queue:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)
        else:
            self._idle.set()

    def _estimate(self, rows: int) -> float:
        """Seconds of a run, from those of about as many rows so far; unknown ones are long."""
        key = rows.bit_length()
        known = self._seconds.get(key)
        if known is not None:
            return known
        if not self._seconds:
            return 1.0
        nearest = min(self._seconds, key=lambda k: abs(k - key))
        return self._seconds[nearest] * 2.0 ** max(key - nearest, 0)


def _refusal(error: BaseException) -> BaseException:
    """A kernel raises ValueError for values that it cannot take; all else is the model's fault."""
    if isinstance(error, ServeError):
        return error
    if isinstance(error, ValueError):
        return ServeError("bad_input", str(error))
    failed = ServeError("model_failed", f"the model failed: {type(error).__name__}")
    failed.__cause__ = error
    return failed
