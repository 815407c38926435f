"""Contenders in processes of their own, asked in turn over a pipe; who is not asked sleeps.

A library's thread pool, allocator and environment variables then touch nobody else's.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

REST = 0.01  # seconds between two turns: threads that wait by spinning give the cores back
PATIENCE = 600.0  # seconds for an answer; torch.compile can take one of those minutes


class ChildError(RuntimeError):
    """What went wrong in a child: the last line of its traceback, and all of it in ``details``."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class Child:
    """An object made by ``make(*args)`` in a fresh process; ``ask`` calls its methods.

    ``begin`` asks without waiting, ``end`` waits for the answer; the making itself is begun here
    and needs an ``end``.
    """

    def __init__(self, make: Callable[..., Any], *args: Any, environment: dict[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, make, args), daemon=True)
        with _environment(environment):
            self._process.start()
        far.close()

    def ask(self, method: str, *args: Any) -> Any:
        """The result of a method there. Raises ChildError if it failed or the process ended."""
        time.sleep(REST)
        self.begin(method, *args)
        return self.end()

    def begin(self, method: str, *args: Any) -> None:
        """Call a method there."""
        self._pipe.send((method, args))

    def end(self) -> Any:
        """The result of what was begun. Raises ChildError as ``ask`` does."""
        if not self._pipe.poll(PATIENCE):
            raise ChildError(f"no answer within {PATIENCE:.0f} s")
        try:
            result, details = self._pipe.recv()
        except EOFError:
            raise ChildError("its process ended without a word") from None
        if details:
            raise ChildError(details.strip().splitlines()[-1], details)
        return result

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(1.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe: Any, make: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        served = make(*args)
    except BaseException:
        pipe.send((None, traceback.format_exc()))
        return
    pipe.send((None, ""))
    with contextlib.suppress(EOFError):  # the parent has closed the pipe: this is the end
        while True:
            method, args = pipe.recv()
            try:
                pipe.send((getattr(served, method)(*args), ""))
            except Exception:
                pipe.send((None, traceback.format_exc()))


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
