"""Models and their versions: found in files and folders, loaded, replaced, unloaded.

A source is a program's file (``digits.msgpack`` is the model "digits") or a folder of models,
``NAME/VERSION/model.msgpack``. The latest version of each model is loaded at the start, an older
one when somebody asks for it. What is new is loaded beside what serves: read, verified, run at
every size of batch, and only then does the name lead to it; if any of that fails, the old one stays
and the reason stands in the listing. A version that is dropped first answers what it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tinygrad_ish.deploy.registry import Entry, list_models
from tinygrad_ish.deploy.runtime import ExportedProgram, load_program

from .batching import Batcher
from .errors import ServeError
from .settings import Settings

__all__ = ["Catalog", "Version"]

log = logging.getLogger("tinygrad_ish.serve")
LOOK_SECONDS = 1.0  # between looks at the sources, where nothing tells of changes


class Version:
    """A version of a model. ``state`` is "available" (on disk), "loading", "ready" or "failed"
    (``reason`` says why)."""

    def __init__(self, entry: Entry, stamp: Any) -> None:
        self.entry = entry
        self.name = entry.name
        self.number = str(entry.version)
        self.stamp = stamp  # changes with the file
        self.state = "available"
        self.reason = entry.problem or ""
        self.program: ExportedProgram | None = None
        self.batcher: Batcher | None = None
        self.batchable = False
        self.used = 0.0
        self.loading: asyncio.Task[None] | None = None
        if entry.problem is not None:
            self.state = "failed"

    def describe(self) -> dict[str, Any]:
        """The version as the listing shows it."""
        about: dict[str, Any] = {"version": self.number, "state": self.state}
        if self.reason:
            about["reason"] = self.reason
        if self.program is not None:
            shown = {"inputs": self.program.inputs, "outputs": self.program.outputs}
            for key, signatures in shown.items():
                about[key] = [
                    {"name": s.name, "dtype": s.dtype.name,
                     "shape": [-1 if n is None else n for n in s.shape]}
                    for s in signatures
                ]  # fmt: skip
            about["labels"] = self.program.labels
            about["features"] = self.program.features
            about["explains"] = self.program.gradient_graph is not None
            about["metadata"] = self.program.metadata
            about["nbytes"] = self.entry.nbytes
        return about


class Catalog:
    """All models of a server. Use it from one event loop; ``observe(version, rows, requests,
    seconds)`` hears of each run."""

    def __init__(
        self,
        sources: Iterable[str | os.PathLike[str]],
        settings: Settings,
        observe: Callable[[Version, int, int, float], None] = lambda *run: None,
        device: Any = None,
    ) -> None:
        self.sources = [Path(s) for s in sources]
        self.settings = settings
        self.models: dict[str, dict[str, Version]] = {}  # by name and number
        self._observe = observe
        self._device = device
        self._latest: dict[str, Version] = {}  # what serves a name, where no version is asked for
        self._compute: Executor = ThreadPoolExecutor(1, "compute")
        self._loader: Executor = ThreadPoolExecutor(1, "loader")
        self._watcher: asyncio.Task[None] | None = None
        self._refreshing = asyncio.Lock()

    # --- what there is -----------------------------------------------------------------------

    @property
    def default(self) -> str | None:
        """The model that serves where none is named: the first."""
        return next(iter(self.models), None)

    @property
    def ready(self) -> bool:
        """Whether every model has a version that serves."""
        return bool(self.models) and all(name in self._latest for name in self.models)

    def find(self, name: str | None = None, number: str | None = None) -> Version:
        """The version of this number, or the one that serves the name. ServeError if none does."""
        name = self.default if name is None else name
        versions = self.models.get(name or "")
        if versions is None:
            known = list(self.models)
            raise ServeError("model_not_found", f"no model {name!r}", expected=known[:20], got=name)
        if number is None:
            version = self._latest.get(name or "")
            if version is None:
                reasons = "; ".join(v.reason for v in versions.values() if v.reason)
                raise ServeError("not_ready", f"model {name} has no version that runs. {reasons}")
            return version
        if number not in versions:
            raise ServeError(
                "model_not_found",
                f"model {name} has no version {number!r}",
                expected=list(versions)[-20:],
                got=number,
            )
        return versions[number]

    async def loaded(self, name: str | None = None, number: str | None = None) -> Version:
        """``find``, loaded if it is not."""
        version = self.find(name, number)
        if version.batcher is None:
            await self._load(version)
        version.used = time.monotonic()
        return version

    # --- from start to end -------------------------------------------------------------------

    async def start(self) -> None:
        """Load the latest version of every model, and go on watching."""
        await self.refresh()
        if self.settings.reload:
            self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        """Stop watching, wait for what runs, let go of everything."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        batchers = [v.batcher for vs in self.models.values() for v in vs.values() if v.batcher]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(
                asyncio.gather(*[b.drained() for b in batchers]), self.settings.drain
            )
        self._loader.shutdown(wait=False, cancel_futures=True)
        self._compute.shutdown(wait=False, cancel_futures=True)

    async def refresh(self) -> None:
        """Look at the sources; load what is new, drop what is gone."""
        async with self._refreshing:
            found = await asyncio.get_running_loop().run_in_executor(self._loader, self._scan)
            for (name, number), (entry, stamp) in found.items():
                versions = self.models.setdefault(name, {})
                known = versions.get(number)
                if known is None or known.stamp != stamp:
                    await self._replace(versions, Version(entry, stamp))
            for name, versions in list(self.models.items()):
                self.models[name] = dict(sorted(versions.items(), key=lambda v: int(v[0])))
                await self._serve_latest(name)
                for number, version in list(versions.items()):
                    if (name, number) not in found and version is not self._latest.get(name):
                        del self.models[name][number]
                        self._drop(version)
                if not self.models[name]:
                    del self.models[name]

    def _scan(self) -> dict[tuple[str, str], tuple[Entry, Any]]:
        """What the sources hold now, by name and number, with what tells that a file is another."""
        found: dict[tuple[str, str], tuple[Entry, Any]] = {}
        for source in self.sources:
            try:
                entries = (
                    list_models(source, verify=False)
                    if source.is_dir()
                    else [Entry(source.stem, 1, source, source.stat().st_size)]
                )
            except OSError as error:
                entries = [Entry(source.stem, 1, source, problem=str(error))]
            for entry in entries:
                if entry.version is not None:
                    found[entry.name, str(entry.version)] = entry, _stamp(entry)
        return found

    async def _watch(self) -> None:
        """Refresh when a source changes."""
        from watchfiles import awatch

        folders = {p if p.is_dir() else p.absolute().parent for p in self.sources}
        async for _ in awatch(*folders, step=100, debounce=500):
            try:
                await self.refresh()
            except Exception:
                log.exception("looking at the models failed; what serves goes on")

    # --- one version -------------------------------------------------------------------------

    async def _replace(self, versions: dict[str, Version], new: Version) -> None:
        """Put a version in the place of one of its number, once it runs."""
        old = versions.get(new.number)
        if old is None:
            versions[new.number] = new
            return
        with contextlib.suppress(ServeError):
            await self._load(new)
        if new.state == "ready":
            versions[new.number] = new
            if self._latest.get(new.name) is old:
                self._latest[new.name] = new
            self._drop(old)
        else:
            old.stamp = new.stamp  # this file is known, and was refused
            old.reason = f"a newer file was refused: {new.reason}"

    async def _serve_latest(self, name: str) -> None:
        """Let the name lead to its highest version that loads."""
        for version in reversed(self.models[name].values()):
            if version.state == "failed":
                continue
            if version.state != "ready":
                with contextlib.suppress(ServeError):
                    await self._load(version)
            if version.state == "ready":
                self._latest[name] = version
                return

    async def _load(self, version: Version) -> None:
        """Load a version, once however many ask. Raises ServeError if it cannot be."""
        if version.state == "failed":
            raise ServeError("not_ready", f"{version.name} {version.number}: {version.reason}")
        if version.loading is None:
            version.loading = asyncio.get_running_loop().create_task(self._loading(version))
        await asyncio.shield(version.loading)
        if version.state != "ready":
            raise ServeError("not_ready", f"{version.name} {version.number}: {version.reason}")

    async def _loading(self, version: Version) -> None:
        version.state = "loading"
        loop, start = asyncio.get_running_loop(), time.perf_counter()
        try:
            program, batchable, seconds = await loop.run_in_executor(
                self._loader, _prepare, version.entry.path, self._device, self.settings.max_batch
            )
        except Exception as error:
            version.state, version.reason = "failed", f"{error}"
            log.warning("model %s %s cannot be loaded: %s", version.name, version.number, error)
            return
        finally:
            version.loading = None
        s = self.settings
        version.batcher = Batcher(
            program.run,
            self._compute,
            batchable=batchable,
            max_batch=s.max_batch,
            max_queue=s.max_queue,
            max_queue_bytes=s.max_queue_bytes,
            observe=lambda *run: self._observe(version, *run),
            seconds=seconds,
        )
        version.program, version.batchable = program, batchable
        version.state, version.reason, version.used = "ready", "", time.monotonic()
        took = time.perf_counter() - start
        log.info("model %s %s is ready (%.2f s)", version.name, version.number, took)
        self._make_room(version)

    def _make_room(self, newest: Version) -> None:
        """Unload the versions that were used longest ago, until the rest fits the memory."""
        loaded = [v for vs in self.models.values() for v in vs.values() if v.state == "ready"]
        total = sum(v.entry.nbytes for v in {*loaded, newest})
        for version in sorted(loaded, key=lambda v: v.used):
            if not self.settings.memory or total <= self.settings.memory:
                return
            if version is not newest:
                total -= version.entry.nbytes
                self._drop(version)

    def _drop(self, version: Version) -> None:
        """Take a version out of service; what it has taken on, it still answers."""
        version.program = version.batcher = None  # those who wait hold the batcher
        if version.state == "ready":
            version.state = "available"
            log.info("model %s %s is unloaded", version.name, version.number)

    async def load(self, name: str) -> None:
        """Load a model's latest version, by hand."""
        self.find_any(name)
        for version in self.models[name].values():
            if version.state == "failed":
                version.state = "available"  # try again
        await self._serve_latest(name)
        self.find(name)

    async def unload(self, name: str) -> None:
        """Unload all versions of a model, by hand; it is loaded again by ``load``."""
        self.find_any(name)
        self._latest.pop(name, None)
        for version in self.models[name].values():
            self._drop(version)

    def find_any(self, name: str) -> dict[str, Version]:
        """The versions of a model by number. ServeError if there is no such model."""
        if name not in self.models:
            raise ServeError("model_not_found", f"no model {name!r}", got=name)
        return self.models[name]


def _stamp(entry: Entry) -> Any:
    try:
        status = entry.path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _prepare(
    path: Path, device: Any, max_batch: int
) -> tuple[ExportedProgram, bool, dict[int, float]]:
    """A program, verified and run at every size of batch: whether rows may be grouped, and seconds
    of a run by the bit length of its rows."""
    program = load_program(path, device)
    program.verify()
    rows = _rows(program, max_batch)
    batchable = rows is not None and _independent(program, rows)
    seconds: dict[int, float] = {}
    for count in [2**n for n in range(max_batch.bit_length())] if batchable else []:
        assert rows is not None
        part = [x[:count] for x in rows]
        program.run(part)  # recorded
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            program.run(part)
            taken.append(time.perf_counter() - start)
        seconds[count.bit_length()] = min(taken)
    return program, batchable, seconds


def _rows(program: ExportedProgram, count: int) -> list[np.ndarray] | None:
    """So many different rows of inputs, made from the sample by rolling its last axis; None for a
    program with inputs or outputs that have no row for each row."""
    if any(s.shape[:1] != (None,) for s in (*program.inputs, *program.outputs)):
        return None
    rows = []
    for x in program.sample_inputs:
        some = [np.roll(x[n % len(x)], n // len(x), axis=-1 if x.ndim > 1 else None)
                for n in range(count)]  # fmt: skip
        rows.append(np.stack(some))
    return rows


def _independent(program: ExportedProgram, rows: list[np.ndarray]) -> bool:
    """Whether a row's answer is the same whatever stands beside it."""
    count = min(8, len(rows[0]))
    some = [x[:count] for x in rows]
    together = program.run(some)
    for n in range(count):
        alone = program.run([x[n : n + 1] for x in some])
        for a, b in zip(together, alone, strict=True):
            if len(a) != count or not np.allclose(a[n], b[0], rtol=1e-4, atol=1e-6, equal_nan=True):
                return False
    return True
