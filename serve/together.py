"""What the workers of a server tell each other: which models were loaded and unloaded by hand.

A request to load or unload comes to one worker. It adds the wish to a file in the folder that the
workers share. Ten times a second each of them does what is new in the file, and says in a file of
its own how far it has come; the one that was asked answers when all have come so far. A worker that
takes a dead one's place reads the file before it serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from .errors import ServeError, dumps
from .models import Catalog

if TYPE_CHECKING:
    from .workers import Worker

__all__ = ["Together"]

log = logging.getLogger("tinygrad_ish.serve")
LOOK = 0.1  # seconds between looks at the file


class Together:
    """One worker's side. Use it from one event loop."""

    def __init__(self, worker: Worker, catalog: Catalog) -> None:
        self._catalog = catalog
        self._folder = Path(worker.folder)
        self._number = worker.number
        self._workers = range(worker.workers)
        self._wishes = self._folder / "wishes"  # lines of [action, model]; none is ever taken out
        self._done = -1  # so many bytes of them
        self._failed: dict[str, str] = {}  # why the last wish for a model could not be done
        self._following = asyncio.Lock()

    async def run(self) -> None:
        """Follow the others until cancelled."""
        while True:
            try:
                await self.follow()
            except Exception:
                log.exception("what other workers were asked could not be done here")
            await asyncio.sleep(LOOK)

    async def follow(self) -> None:
        """Do what was wished since the last time, and say so."""
        async with self._following:
            wishes, end = self._new()
            if end == self._done:
                return
            if wishes:
                await self._catalog.refresh()
            for name, action in wishes.items():
                work = self._catalog.load if action == "load" else self._catalog.unload
                self._failed.pop(name, None)
                try:
                    await work(name)
                except Exception as error:
                    log.warning("to %s %s by hand has failed: %s", action, name, error)
                    self._failed[name] = str(error)
            path = self._folder / f"{self._number}.done"
            path.with_suffix(".new").write_bytes(dumps([end, self._failed]))
            path.with_suffix(".new").replace(path)
            self._done = end

    async def ask(self, action: str, name: str, seconds: float) -> None:
        """Let all workers "load" or "unload" a model. Raises ServeError if one of them cannot, or
        has not after so many seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        file = os.open(self._wishes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, orjson.dumps([action, name]) + b"\n")
            mine = os.lseek(file, 0, os.SEEK_CUR)
        finally:
            os.close(file)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.follow(), seconds)
        late = list(self._workers)
        while late and loop.time() < until:
            await asyncio.sleep(LOOK / 5)
            late = [number for number in late if not self._has_done(number, name, mine)]
        if late:
            raise ServeError(
                "deadline",
                f"{action} {name}: not done in time by worker {', '.join(map(str, late))}, which "
                "will do it as soon as it can; the others have",
            )

    def _has_done(self, number: int, name: str, wish: int) -> bool:
        """Whether a worker has come to a wish about a model. ServeError if it could not do it."""
        try:
            done, failed = orjson.loads((self._folder / f"{number}.done").read_bytes())
        except FileNotFoundError:
            return False
        if done >= wish and name in failed:
            raise ServeError("not_ready", f"worker {number}: {failed[name]}")
        return bool(done >= wish)

    def _new(self) -> tuple[dict[str, str], int]:
        """The last wish for each model since the last time, and where they end."""
        start = max(self._done, 0)
        try:
            with self._wishes.open("rb") as file:
                file.seek(start)
                lines = file.read()
        except FileNotFoundError:
            return {}, 0
        whole = lines[: lines.rfind(b"\n") + 1]
        wishes = (orjson.loads(line) for line in whole.splitlines())
        return {name: action for action, name in wishes}, start + len(whole)
