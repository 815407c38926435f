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
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np

from .errors import Disconnected, ServeError

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
        self.started = 0.0  # when its batch was taken from the queue
        self.answer: asyncio.Future[tuple[np.ndarray, ...]]
        self.timer: asyncio.TimerHandle | None = None
        self.watcher: asyncio.Task[None] | None = None


class Batcher:
    """The queue of one model. Use it from one event loop.

    ``run`` takes inputs and gives outputs, rows for rows, if ``batchable``; else each request runs
    by itself. What is quick is run on the event loop if ``inline``. ``observe(rows, requests,
    seconds)`` hears of each run; ``seconds`` tells what runs took before, by the bit length of
    their rows.
    """

    def __init__(
        self,
        run: Run,
        executor: Executor,
        *,
        batchable: bool = True,
        inline: bool = True,
        max_batch: int = 64,
        max_queue: int = 1024,
        max_queue_bytes: int = 64 * 2**20,
        observe: Callable[[int, int, float], None] = lambda rows, requests, seconds: None,
        seconds: dict[int, float] | None = None,
    ) -> None:
        self._run = run
        self._executor = executor
        self._batchable = batchable
        self._inline = inline
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._max_queue_bytes = max_queue_bytes
        self._observe = observe
        self._queue: OrderedDict[Request, None] = OrderedDict()
        self._bytes = 0
        self._rows = 0
        self._scheduled = False
        self._busy = False  # a batch of ours is in the compute thread, or waits for it
        self._until = 0.0  # when that is expected back
        self._seconds = dict(seconds or {})  # of a run, by the bit length of its rows
        self._delay = 0.0  # that a batch waits for the compute thread, which others use too
        self._idle = asyncio.Event()
        self._idle.set()

    # --- from outside ------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def wait_seconds(self) -> float:
        """How long a request that comes now will wait, by the runs so far."""
        wait = 0.0
        if self._busy:
            wait = max(self._until - asyncio.get_running_loop().time(), 0.0)
        if self._queue:
            batches = -(-self._rows // self._max_batch) if self._batchable else len(self._queue)
            batches = max(batches, 1)
            wait += batches * self._turn_seconds(-(-self._rows // batches))
        return wait

    async def submit(self, request: Request) -> tuple[np.ndarray, ...]:
        """The outputs for a request.

        Raises ServeError: "overloaded" where the queue is full or the deadline cannot be met,
        "deadline" when it has passed, "bad_input" for what the model refuses, "model_failed" for
        all else that it raises; and Disconnected where the client has left.
        """
        loop = asyncio.get_running_loop()
        self.check_open(request.deadline, request.rows, request.nbytes)
        request.answer = loop.create_future()
        self._queue[request] = None
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

    def check_open(self, deadline: float, rows: int = 0, nbytes: int = 0) -> None:
        """Raise ServeError if there is no room for a request, or no time. Asked before anything is
        done for it, too: what is refused must not take the time of what is not."""
        now = asyncio.get_running_loop().time()
        if now >= deadline:
            raise _late()
        if not self._queue and not self._busy:
            return  # whatever it will take: it is next, and its run says how long such ones take
        size = self._bytes + nbytes
        full = len(self._queue) >= self._max_queue or (self._queue and size > self._max_queue_bytes)
        wait = self.wait_seconds()
        takes = wait + self._turn_seconds(rows)
        if full:
            raise _overloaded(f"{len(self._queue)} requests wait for this model", wait)
        if now + takes > deadline:
            raise _overloaded(
                f"an answer takes {takes:.2f} s now, and the deadline is before", wait
            )

    def _must_wait(self, request: Request) -> None:
        """Watch the clock and the client for a request that is not run at once."""
        loop = asyncio.get_running_loop()
        if request.timer is None:
            request.timer = loop.call_at(request.deadline, self._fail, request, _late())
        if request.watcher is None and request.disconnected is not None:
            request.watcher = loop.create_task(self._watch(request))

    async def _watch(self, request: Request) -> None:
        assert request.disconnected is not None
        await request.disconnected()
        self._fail(request, Disconnected())

    def _fail(self, request: Request, error: Exception) -> None:
        """An error for the answer. What ran for the request is let go of when it comes."""
        if not request.answer.done():
            request.answer.set_exception(error)

    def _leave(self, request: Request) -> None:
        """The request has its answer, or nobody waits for one."""
        request.inputs = []  # an error's traceback may hold the request
        if request.timer is not None:
            request.timer.cancel()
        if request.watcher is not None:
            request.watcher.cancel()
        if request in self._queue:
            self._pop(request)

    def _pop(self, request: Request) -> None:
        del self._queue[request]
        self._bytes -= request.nbytes
        self._rows -= request.rows

    def _take(self, now: float) -> list[Request]:
        """The next batch: those first in the queue that still want an answer."""
        batch: list[Request] = []
        rows = 0
        while self._queue:
            request = next(iter(self._queue))
            if request.deadline <= now:
                self._fail(request, _late())
            if not request.answer.done():
                if batch and not (self._batchable and rows + request.rows <= self._max_batch):
                    break
                request.started = now
                batch.append(request)
                rows += request.rows
            self._pop(request)
        return batch

    # --- running -----------------------------------------------------------------------------

    def _turn(self) -> None:
        """Run a batch, here or in the compute thread."""
        self._scheduled = False
        loop = asyncio.get_running_loop()
        now = loop.time()
        batch = self._take(now)
        if not batch:
            self._idle.set()
            return
        for request in batch:
            request.started = now
        inputs = [request.inputs for request in batch]
        seconds = self._estimate(sum([r.rows for r in batch]))
        if self._inline and seconds < INLINE:
            answers, taken = self._timed(inputs)
            self._finish(batch, answers, taken, min(taken, 2 * seconds))
            return
        self._busy = True
        self._until = now + self._delay + seconds
        for request in (*batch, *self._queue):
            self._must_wait(request)
        try:
            run = loop.run_in_executor(self._executor, self._worked, inputs)
        except RuntimeError:  # it was shut down
            self._stopped(batch)
        else:
            run.add_done_callback(lambda done: self._returned(batch, now, done))

    def _returned(self, batch: list[Request], start: float, done: asyncio.Future[Any]) -> None:
        if done.cancelled():
            self._stopped(batch)
            return
        self._busy = False
        answers, seconds, work = done.result()
        waited = asyncio.get_running_loop().time() - start - work
        self._delay += RECENT * (max(waited, 0.0) - self._delay)
        if self._queue:
            self._turn()  # first, for the thread is idle
        self._finish(batch, answers, seconds, work)

    def _stopped(self, batch: list[Request]) -> None:
        """The compute thread takes nothing more."""
        for request in (*batch, *self._queue):
            self._fail(request, ServeError("not_ready", "the server is shutting down"))
        self._busy = False
        self._idle.set()

    def _timed(self, inputs: list[Arrays]) -> tuple[list[Any], float]:
        """The answer or error of each request, and the seconds it took."""
        start = time.perf_counter()
        answers = self._answers(inputs)
        return answers, time.perf_counter() - start

    def _worked(self, inputs: list[Arrays]) -> tuple[list[Any], float, float]:
        """``_timed``, and the seconds without the waits for a core or for the interpreter: else
        what was slow in this thread once would never be found quick enough for the loop."""
        start = time.thread_time()
        answers, seconds = self._timed(inputs)
        return answers, seconds, time.thread_time() - start if self._inline else seconds

    def _answers(self, inputs: list[Arrays]) -> list[Any]:
        if len(inputs) == 1:
            return [self._alone(inputs[0])]
        together = [np.concatenate(parts) for parts in zip(*inputs, strict=True)]
        try:
            outputs = self._run(together)
        except Exception:
            return [self._alone(some) for some in inputs]
        answers, start = [], 0
        for some in inputs:
            stop = start + len(some[0])
            answers.append(tuple([x[start:stop] for x in outputs]))
            start = stop
        return answers

    def _alone(self, inputs: Arrays) -> Any:
        """The outputs for one request, in pieces if it is larger than a batch."""
        most = self._max_batch
        try:
            if not self._batchable or len(inputs[0]) <= most:
                return self._run(inputs)
            parts = [
                self._run([x[start : start + most] for x in inputs])
                for start in range(0, len(inputs[0]), most)
            ]
            return tuple([np.concatenate(part) for part in zip(*parts, strict=True)])
        except Exception as error:
            return error

    def _finish(
        self, batch: list[Request], answers: list[Any], seconds: float, work: float
    ) -> None:
        """Answer. ``seconds`` are what is reported, ``work`` what the next such run may take."""
        rows = sum([r.rows for r in batch])
        key = rows.bit_length()
        before = self._seconds.get(key, work)
        self._seconds[key] = before + RECENT * (work - before)
        self._observe(rows, len(batch), seconds)
        for request, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                self._fail(request, _refusal(answer))
            elif not request.answer.done():  # else it is too late, or nobody is there
                request.answer.set_result(answer)
        if self._busy or self._scheduled:
            return
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

    def _turn_seconds(self, rows: int) -> float:
        """Seconds from a batch's turn to its answers."""
        seconds = self._estimate(rows)
        return seconds if self._inline and seconds < INLINE else seconds + self._delay


def _overloaded(reason: str, wait: float) -> ServeError:
    after = max(1, math.ceil(wait))
    headers = {"Retry-After": f"{after}"}
    return ServeError("overloaded", f"{reason}; come back in {after} s", headers=headers)


def _late() -> ServeError:
    return ServeError("deadline", "the deadline passed before there was an answer")


def _refusal(error: Exception) -> Exception:
    """A kernel raises ValueError for values that it cannot take; all else is the model's fault."""
    if isinstance(error, ServeError):
        return error
    if isinstance(error, ValueError):
        return ServeError("bad_input", str(error))
    failed = ServeError("model_failed", f"the model failed: {type(error).__name__}")
    failed.__cause__ = error
    return failed
