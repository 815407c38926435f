"""Batches: who is grouped, who is refused, who fails, who waits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tinygrad_ish.serve.batching import Batcher, Request
from tinygrad_ish.serve.errors import Disconnected, ServeError

Arrays = list[np.ndarray]
QUICK, SLOW = dict.fromkeys(range(8), 1e-05), dict.fromkeys(range(8), 0.05)


class Model:
    """Doubles numbers. Keeps what it was given, waits at its gate, and refuses what it is told."""

    def __init__(self) -> None:
        self.calls: list[list[float]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.refuses: dict[float, Exception] = {}

    def __call__(self, inputs: Arrays) -> tuple[np.ndarray, ...]:
        (x,) = inputs
        self.calls.append(x[:, 0].tolist())
        assert self.gate.wait(10)
        for value, error in self.refuses.items():
            if value in x:
                raise error
        return (x * 2,)


@pytest.fixture()
def model() -> Model:
    return Model()


@pytest.fixture()
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(main(), 10)

    asyncio.run(limited())


def request(*values: float, seconds: float = 5.0, left: asyncio.Event | None = None) -> Request:
    """A request of a row for each value."""
    x = np.array(values, np.float32)[:, None]
    deadline = asyncio.get_running_loop().time() + seconds
    return Request([x], len(x), deadline, left.wait if left else None)


def start(batcher: Batcher, *requests: Request) -> list[asyncio.Task[Any]]:
    return [asyncio.ensure_future(batcher.submit(r)) for r in requests]


async def answers(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    """Of each request its numbers, or its error's code."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return [
        getattr(r, "code", type(r).__name__)
        if isinstance(r, BaseException)
        else r[0][:, 0].tolist()
        for r in results
    ]


@pytest.mark.parametrize("seconds", [QUICK, SLOW], ids=["inline", "thread"])
def test_what_comes_together_runs_together(
    model: Model, executor: ThreadPoolExecutor, seconds: dict[int, float]
) -> None:
    async def main() -> None:
        batcher = Batcher(model, executor, seconds=seconds)
        tasks = start(batcher, request(1), request(2, 3), request(4))
        assert await answers(tasks) == [[2], [4, 6], [8]]
        assert model.calls == [[1, 2, 3, 4]]
        await batcher.drained()

    run(main)


def test_a_lone_request_does_not_wait(model: Model, executor: ThreadPoolExecutor) -> None:
    async def main() -> None:
        batcher = Batcher(model, executor, seconds=QUICK)
        (task,) = start(batcher, request(1))
        for _ in range(4):  # turns of the loop, no time
            await asyncio.sleep(0)
        assert task.done()

    run(main)


def test_batches_grow_while_the_thread_is_busy(model: Model, executor: ThreadPoolExecutor) -> None:
    async def main() -> None:
        batcher = Batcher(model, executor, seconds=SLOW, max_batch=4)
        model.gate.clear()
        tasks = start(batcher, request(0))
        await asyncio.sleep(0.01)
        tasks += start(batcher, *(request(n) for n in range(1, 7)))
        await asyncio.sleep(0.01)
        assert batcher.waiting == 6
        model.gate.set()
        assert await answers(tasks) == [[2 * n] for n in range(7)]
        assert model.calls == [[0], [1, 2, 3, 4], [5, 6]]

    run(main)


def test_a_request_larger_than_a_batch_runs_in_pieces(
    model: Model, executor: ThreadPoolExecutor
) -> None:
    async def main() -> None:
        batcher = Batcher(model, executor, seconds=QUICK, max_batch=4)
        tasks = start(batcher, request(*range(10)), request(10))
        assert await answers(tasks) == [[2 * n for n in range(10)], [20]]
        assert model.calls == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [10]]
        model.calls.clear()
        whole = Batcher(model, executor, seconds=QUICK, max_batch=4, batchable=False)
        assert await answers(start(whole, request(*range(10)), request(10))) != []
        assert model.calls == [list(range(10)), [10]]

    run(main)


@pytest.mark.parametrize("seconds", [QUICK, SLOW], ids=["inline", "thread"])
def test_a_bad_request_fails_alone(
    model: Model, executor: ThreadPoolExecutor, seconds: dict[int, float]
) -> None:
    async def main() -> None:
        model.refuses = {2: ValueError("an index of 2"), 4: RuntimeError("a secret")}
        batcher = Batcher(model, executor, seconds=seconds)
        tasks = start(batcher, *(request(n) for n in range(1, 6)))
        assert await answers(tasks) == [[2], "bad_input", [6], "model_failed", [10]]
        bad, failed = tasks[1].exception(), tasks[3].exception()
        assert "an index of 2" in str(bad) and "a secret" not in str(failed)
        assert await answers(start(batcher, request(7))) == [[14]]

    run(main)


def test_full_means_come_back(model: Model, executor: ThreadPoolExecutor) -> None:
    async def main() -> None:
        batcher = Batcher(
            model, executor, seconds={1: 2.0, 2: 2.0}, max_batch=2, max_queue=4, max_queue_bytes=40
        )
        model.gate.clear()
        tasks = start(batcher, request(0, seconds=60))
        await asyncio.sleep(0.01)
        tasks += start(batcher, *(request(n, seconds=60) for n in range(1, 5)))
        await asyncio.sleep(0.01)
        with pytest.raises(ServeError, match="4 requests wait") as caught:
            await batcher.submit(request(9, seconds=60))
        assert caught.value.status == 429
        with pytest.raises(ServeError, match="4 requests wait"):
            batcher.check_open(asyncio.get_running_loop().time() + 60)
        # one run of 2 s is under way, and two batches of 2 s wait
        assert 5.5 < batcher.wait_seconds() <= 6
        assert caught.value.headers == {"Retry-After": "6"}
        model.gate.set()
        assert await answers(tasks) == [[0], [2], [4], [6], [8]]

    run(main)


def test_full_counts_bytes_too(model: Model, executor: ThreadPoolExecutor) -> None:
    async def main() -> None:
        batcher = Batcher(model, executor, seconds=SLOW, max_queue_bytes=20)
        model.gate.clear()
        large = start(batcher, request(*range(100)))  # one that is alone is taken, whatever it has
        await asyncio.sleep(0.01)
        tasks = start(batcher, request(1, 2, 3), request(4, 5), request(6, 7, 8))
        await asyncio.sleep(0.01)
        model.gate.set()
        assert await answers(tasks) == [[2, 4, 6], [8, 10], "overloaded"]
        await asyncio.gather(*large)

    run(main)


def test_refused_on_arrival_if_the_deadline_cannot_be_met(
    model: Model, executor: ThreadPoolExecutor
) -> None:
    async def main() -> None:
        batcher = Batcher(model, executor, seconds={1: 1.0})
        model.gate.clear()
        tasks = start(batcher, request(0))
        await asyncio.sleep(0.01)
        before = time.monotonic()
        assert await answers(start(batcher, request(1, seconds=0.9))) == ["overloaded"]
        assert await answers(start(batcher, request(1, seconds=-1))) == ["deadline"]
        assert time.monotonic() - before < 0.5
        tasks += start(batcher, request(2, seconds=5))
        model.gate.set()
        assert await answers(tasks) == [[0], [4]]

    run(main)


def test_an_estimate_refuses_nobody_for_ever(model: Model, executor: ThreadPoolExecutor) -> None:
    """A run that took long once is no reason to refuse the next, which may be quick again."""

    async def main() -> None:
        batcher = Batcher(model, executor, seconds={1: 1000.0})
        assert await answers(start(batcher, request(1, seconds=1))) == [[2]]

    run(main)


def test_the_clock_runs_while_the_thread_computes(
    model: Model, executor: ThreadPoolExecutor
) -> None:
    async def main() -> None:
        batcher = Batcher(model, executor, seconds={1: 0.001})
        model.gate.clear()
        running, waiting, patient = start(
            batcher, request(1, seconds=0.05), request(2, seconds=0.05), request(3)
        )
        await asyncio.wait([running], timeout=5)
        assert await answers([running, waiting]) == ["deadline", "deadline"]
        assert not patient.done()
        late = start(batcher, request(4, seconds=0.05))
        assert (await answers(late))[0] in ("deadline", "overloaded")
        model.gate.set()
        assert await answers([patient]) == [[6]]
        assert not any(4 in call for call in model.calls)

    run(main)


def test_clients_that_left_are_not_computed_for(model: Model, executor: ThreadPoolExecutor) -> None:
    async def main() -> None:
        batcher = Batcher(model, executor, seconds=SLOW, max_queue=3)
        model.gate.clear()
        left = asyncio.Event()
        first, cancelled = start(batcher, request(0, left=left))[0], None
        await asyncio.sleep(0.01)
        gone, cancelled, stays = start(batcher, request(1, left=left), request(2), request(3))
        await asyncio.sleep(0.01)
        left.set()
        cancelled.cancel()
        await asyncio.sleep(0.01)
        assert batcher.waiting == 1, "who has left holds no place"
        assert isinstance(first.exception(), Disconnected)
        assert isinstance(gone.exception(), Disconnected)
        more = start(batcher, request(4), request(5))
        await asyncio.sleep(0)
        model.gate.set()
        assert await answers([stays, *more]) == [[6], [8], [10]]
        assert model.calls == [[0], [3, 4, 5]]

    run(main)


def test_nothing_is_held_after_the_answers(model: Model, executor: ThreadPoolExecutor) -> None:
    import weakref

    async def main() -> None:
        batcher = Batcher(lambda inputs: (inputs[0] * 2,), executor, seconds=SLOW)
        for seconds in (5.0, 0.0001):
            r = request(*range(1000), seconds=seconds)
            inputs = weakref.ref(r.inputs[0])
            await answers(start(batcher, r))
            del r
            await batcher.drained()
            await asyncio.sleep(0.02)
            assert inputs() is None
        assert batcher.waiting == 0 and batcher._bytes == 0 and batcher._rows == 0

    run(main)


def test_a_stopped_thread_hangs_nobody(model: Model) -> None:
    async def main() -> None:
        executor = ThreadPoolExecutor(1)
        batcher, other = (Batcher(model, executor, seconds=SLOW) for _ in range(2))
        model.gate.clear()
        tasks = start(batcher, request(1)) + start(other, request(2), request(3))
        await asyncio.sleep(0.01)
        executor.shutdown(wait=False, cancel_futures=True)
        await asyncio.sleep(0.01)
        model.gate.set()
        assert await answers(tasks) == [[2], "not_ready", "not_ready"]
        assert await answers(start(batcher, request(4))) == ["not_ready"]
        await asyncio.wait_for(asyncio.gather(batcher.drained(), other.drained()), 1)

    run(main)


def test_models_share_the_thread_in_turns(model: Model, executor: ThreadPoolExecutor) -> None:
    async def main() -> None:
        other = Model()
        order: list[str] = []
        batchers = [
            Batcher(m, executor, seconds=SLOW, max_batch=1, observe=lambda *_, n=n: order.append(n))
            for n, m in (("a", model), ("b", other))
        ]
        tasks = start(batchers[0], *(request(n) for n in range(4)))
        tasks += start(batchers[1], *(request(n) for n in range(2)))
        assert await answers(tasks) == [[0], [2], [4], [6], [0], [2]]
        assert order[:4] in (["a", "b", "a", "b"], ["b", "a", "b", "a"])

    run(main)
