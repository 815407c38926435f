"""Models and their versions: found in files and folders, loaded, replaced, unloaded.

A source is a program's file (``digits.msgpack`` is the model "digits") or a folder of models,
``NAME/VERSION/model.msgpack``. The latest version of each model is loaded at the start, an older
one when somebody asks for it. What is new is loaded beside what serves: read, verified, run at
many sizes of batch, and only then does the name lead to it; if any of that fails, the old one stays
and the reason stands in the listing.

A Version that is loaded never changes. To unload or replace one is to put another object into its
place; requests that hold the old one finish with it, and with the last of them it is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable
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
MISSED_SECONDS = 30.0  # ... where something does, which may have missed one


class Version:
    """A version of a model. ``state`` is "available" (on disk), "loading", "ready" or "failed"
    (``reason`` says why)."""

    def __init__(self, source: Path, entry: Entry, stamp: Any) -> None:
        self.source = source
        self.entry = entry
        self.name = entry.name
        self.number = str(entry.version)
        self.stamp = stamp  # changes with the file
        self.state = "available" if entry.problem is None else "failed"
        self.reason = self.told(entry.problem or "")
        self.program: ExportedProgram | None = None
        self.batcher: Batcher | None = None
        self.batchable = False
        self.used = 0.0
        self.loading: asyncio.Task[None] | None = None

    def told(self, problem: str) -> str:
        """What clients are told of a problem: not where the file is."""
        return problem.replace(f"{self.entry.path}", self.entry.path.name)

    def unloaded(self) -> Version:
        """The same, not loaded."""
        return Version(self.source, self.entry, self.stamp)

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
            about["grouped"] = self.batchable
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
        self.sources = [Path(os.path.abspath(s)) for s in sources]
        self.settings = settings
        self.models: dict[str, dict[str, Version]] = {}  # by name and number
        self.started = False
        self._observe = observe
        self._device = device
        self._latest: dict[str, str] = {}  # the number that serves a name where none is asked for
        self._unloaded: set[str] = set()  # names, by hand
        self._was_ready = False
        self._compute: Executor = ThreadPoolExecutor(1, "compute")
        # At the usual priority: a thread of a lower one that holds the interpreter while another
        # process has the core keeps the event loop waiting with it (a median of 22 ms, not 2.5).
        self._loader: Executor = ThreadPoolExecutor(1, "loader")
        self._batchers: weakref.WeakSet[Batcher] = weakref.WeakSet()
        self._starting: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    # --- what there is -----------------------------------------------------------------------

    @property
    def default(self) -> str | None:
        """The model that serves where none is named: the first."""
        return next(iter(self.models), None)

    @property
    def ready(self) -> bool:
        """Whether every model that was there at the start has served; a bad one that comes later
        does not make the others unready."""
        if not self._was_ready and self.started:
            self._was_ready = all(name in self._latest for name in self.models)
        return self._was_ready and bool(self.models)

    def find(self, name: str | None = None, number: str | None = None) -> Version:
        """The version of this number, or the one that serves the name. ServeError if none does."""
        name = self.default if name is None else name
        if name is None:
            raise ServeError("not_ready", "there is no model")
        versions = self.find_any(name)
        if name in self._unloaded:
            raise ServeError("not_ready", f"model {name} was unloaded")
        if number is None:
            number = self._latest.get(name)
            if number is None:
                reasons = "; ".join(v.reason for v in versions.values() if v.reason)
                raise ServeError("not_ready", f"model {name} has no version that runs. {reasons}")
        if number not in versions:
            raise ServeError(
                "model_not_found",
                f"model {name} has no version {number[:50]!r}",
                expected=list(versions)[-20:],
                got=number[:50],
            )
        return versions[number]

    def find_any(self, name: str) -> dict[str, Version]:
        """The versions of a model by number. ServeError if there is no such model."""
        if name not in self.models:
            shown = name[:100]
            raise ServeError(
                "model_not_found",
                f"no model {shown!r}",
                expected=list(self.models)[:20],
                got=shown,
            )
        return self.models[name]

    async def loaded(self, name: str | None = None, number: str | None = None) -> Version:
        """``find``, loaded if it is not, for as long as a request may take."""
        if not self.started:
            await asyncio.wait([self.begin()], timeout=self.settings.timeout)
        version = self.find(name, number)
        if version.batcher is None:
            try:
                await asyncio.wait_for(self._load(version), self.settings.timeout)
            except asyncio.TimeoutError:
                raise ServeError(
                    "not_ready",
                    f"model {version.name} {version.number} is loading",
                    headers={"Retry-After": "1"},
                ) from None
        version.used = time.monotonic()
        return version

    # --- from start to end -------------------------------------------------------------------

    def begin(self) -> asyncio.Task[None]:
        """Start, once: what mounts an application does not run its lifespan."""
        if self._starting is None or (self._starting.done() and not self.started):
            self._starting = asyncio.get_running_loop().create_task(self.start())
        return self._starting

    async def start(self) -> None:
        """Load the latest version of every model, and go on watching."""
        await self.refresh()
        if self.settings.reload and self._watcher is None:
            self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        """Stop watching, wait for what runs, let go of everything."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        drained = asyncio.gather(*[batcher.drained() for batcher in self._batchers])
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(drained, self.settings.drain)
        self._loader.shutdown(wait=False, cancel_futures=True)
        self._compute.shutdown(wait=False, cancel_futures=True)

    async def refresh(self) -> None:
        """Look at the sources; load what is new, drop what is gone."""
        async with self._changing:
            found = await asyncio.get_running_loop().run_in_executor(self._loader, self._scan)
            for new in found.values():
                known = self.models.setdefault(new.name, {}).get(new.number)
                if known is None:
                    self._put(new)
                elif known.stamp != new.stamp:
                    await self._replace(known, new)
            for name in list(self.models):
                await self._serve_latest(name, [n for k, n in found if k == name])
            self.started = True

    def _scan(self) -> dict[tuple[str, str], Version]:
        """What the sources hold now, by name and number. A source or a folder that cannot be read
        at this moment holds what it held before."""
        found: dict[tuple[str, str], Version] = {}
        known = [v for vs in list(self.models.values()) for v in list(vs.values())]
        for source in self.sources:
            before = [v for v in known if v.source == source]
            try:
                if source.is_dir():
                    entries = list_models(source, verify=False)
                else:
                    entries = [Entry(source.stem, 1, source, source.stat().st_size)]
            except OSError as error:
                log.warning("%s cannot be read: %s", source, error)
                lost = [Version(source, Entry(source.stem, 1, source, problem=f"{error}"), None)]
                found.update({(v.name, v.number): v for v in before or lost})
                continue
            for entry in entries:
                if entry.version is not None:
                    version = Version(source, entry, _stamp(entry))
                    found.setdefault((version.name, version.number), version)
                elif entry.path.parent == source:
                    found.update({(v.name, v.number): v for v in before if v.name == entry.name})
        return found

    async def _watch(self) -> None:
        """Refresh when a source changes."""
        folders = {path for path in self.sources if path.is_dir()}
        parents = {path.parent for path in self.sources} - {path.parent for path in folders}
        looks = [(folders, True), (parents, False)]
        await asyncio.gather(*[self._follow(paths, deep) for paths, deep in looks if paths])

    async def _follow(self, paths: set[Path], recursive: bool) -> None:
        while True:
            try:
                async for _ in _changes(paths, recursive):
                    await self.refresh()
            except Exception:
                log.exception("looking at the models failed; what serves goes on")
                await asyncio.sleep(LOOK_SECONDS)

    # --- one version -------------------------------------------------------------------------

    def _put(self, version: Version) -> None:
        """Give a version its place, by the number."""
        versions = {**self.models.get(version.name, {}), version.number: version}
        self.models[version.name] = dict(sorted(versions.items(), key=lambda v: int(v[0])))

    def _drop(self, version: Version) -> None:
        """Take a version out of service; what it has taken on, it still answers."""
        if self.models.get(version.name, {}).get(version.number) is version:
            self.models[version.name][version.number] = version.unloaded()
        if version.state == "ready":
            log.info("model %s %s is unloaded", version.name, version.number)

    async def _replace(self, old: Version, new: Version) -> None:
        """Put a version in the place of one of its number; if that is loaded, once this is too."""
        if old.state == "ready":
            with contextlib.suppress(ServeError):
                await self._load(new)
            if new.state != "ready":
                old.stamp = new.stamp  # this file is known, and was refused
                old.reason = f"a newer file was refused: {new.reason}"
                return
        self._put(new)

    async def _serve_latest(self, name: str, there: list[str]) -> None:
        """Let the name lead to its highest version that is ``there`` and loads, and forget those
        that are gone; the one that serves stays as long as no other can."""
        if not there:
            del self.models[name]
            self._latest.pop(name, None)
            self._unloaded.discard(name)
            return
        before = self._latest.get(name)
        if name not in self._unloaded:
            await self._advance(name, there)
        for number, version in list(self.models[name].items()):
            if number == self._latest.get(name):
                continue
            if number not in there:
                del self.models[name][number]
            elif number == before:
                self._drop(version)

    async def _advance(self, name: str, there: list[str]) -> None:
        for number, version in reversed(list(self.models[name].items())):
            if version.state == "failed" or number not in there:
                continue
            # one that served and was unloaded for want of memory is loaded when it is asked for
            if version.batcher is None and number != self._latest.get(name):
                with contextlib.suppress(ServeError):
                    await self._load(version)
                if version.batcher is None:
                    continue
            self._latest[name] = number
            return

    async def _load(self, version: Version) -> None:
        """Load a version, once however many ask. Raises ServeError if it cannot be."""
        if version.state != "failed":
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
        except (Exception, asyncio.CancelledError) as error:
            # a file that cannot be read may be later; one that is wrong stays wrong
            passing = isinstance(error, (OSError, asyncio.CancelledError))
            version.state = "available" if passing else "failed"
            version.reason = version.told(f"{error}" or "the server is shutting down")
            log.warning("model %s %s cannot be loaded: %s", version.name, version.number, error)
            return
        finally:
            version.loading = None
        s = self.settings
        version.batcher = Batcher(
            program.run,
            self._compute,
            batchable=batchable,
            inline=program.backend.device == "cpu",
            max_batch=s.max_batch,
            max_queue=s.max_queue,
            max_queue_bytes=s.max_queue_bytes,
            observe=functools.partial(self._observe, weakref.proxy(version)),
            seconds=seconds,
        )
        self._batchers.add(version.batcher)
        version.program, version.batchable = program, batchable
        version.state, version.reason, version.used = "ready", "", time.monotonic()
        took = time.perf_counter() - start
        log.info("model %s %s is ready (%.2f s)", version.name, version.number, took)
        self._make_room(version)

    def _make_room(self, newest: Version) -> None:
        """Unload the versions that were used longest ago, until the rest fits the memory."""
        loaded = {v for vs in self.models.values() for v in vs.values() if v.state == "ready"}
        total = sum(v.entry.nbytes for v in loaded | {newest})
        for version in sorted(loaded - {newest}, key=lambda v: v.used):
            if not self.settings.memory or total <= self.settings.memory:
                return
            total -= version.entry.nbytes
            self._drop(version)

    # --- by hand -----------------------------------------------------------------------------

    async def load(self, name: str) -> None:
        """Load a model's latest version, again if it has failed. ServeError if none can be."""
        async with self._changing:
            versions = self.find_any(name)
            self._unloaded.discard(name)
            for number, version in versions.items():
                if version.state == "failed" and version.entry.problem is None:
                    versions[number] = version.unloaded()
            await self._advance(name, list(versions))
            await self._load(self.find(name))

    async def unload(self, name: str) -> None:
        """Unload all versions of a model, until it is loaded by hand."""
        async with self._changing:
            versions = self.find_any(name)
            self._unloaded.add(name)
            self._latest.pop(name, None)
            for version in list(versions.values()):
                self._drop(version)


async def _changes(paths: set[Path], recursive: bool) -> AsyncIterator[object]:
    """Something, whenever a path may have changed."""
    try:
        from watchfiles import awatch
    except ImportError:
        while True:
            yield None
            await asyncio.sleep(LOOK_SECONDS)
    due = time.monotonic() + LOOK_SECONDS  # what came before the watch began, it does not tell
    times: Any = {"step": 100, "debounce": 500, "rust_timeout": int(LOOK_SECONDS * 1e3)}
    async for changes in awatch(*paths, recursive=recursive, yield_on_timeout=True, **times):
        if changes or time.monotonic() >= due:
            due = time.monotonic() + MISSED_SECONDS
            yield changes


def _stamp(entry: Entry) -> Any:
    try:
        status = entry.path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _prepare(
    path: Path, device: Any, max_batch: int
) -> tuple[ExportedProgram, bool, dict[int, float]]:
    """A program, verified and run at many sizes of batch: whether rows may be grouped, and seconds
    of a run by the bit length of its rows."""
    program = load_program(path, device)
    program.verify()
    seconds: dict[int, float] = {}
    rows = _rows(program, max_batch)
    if rows is not None:
        whole = _timed(program, rows, seconds)
        sizes = [2**n for n in range((max_batch - 1).bit_length())]
        for part in [*(slice(0, size) for size in sizes), slice(1, 2), slice(1, 4)]:
            if not _same(_timed(program, [x[part] for x in rows], seconds), whole, part):
                break
        else:
            return program, True, seconds
        log.info("%s: a row's answer depends on the others beside it; none are grouped", path)
    _timed(program, program.sample_inputs, seconds)
    return program, False, seconds


def _timed(
    program: ExportedProgram, inputs: list[np.ndarray], seconds: dict[int, float]
) -> tuple[np.ndarray, ...]:
    """The outputs, once the program has recorded how it runs for so many rows."""
    program.run(inputs)
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        outputs = program.run(inputs)
        taken.append(time.perf_counter() - start)
    rows = len(inputs[0]) if program.inputs[0].shape[:1] == (None,) else 1
    seconds[rows.bit_length()] = min(taken)
    return outputs


def _rows(program: ExportedProgram, count: int) -> list[np.ndarray] | None:
    """So many different rows of inputs, made from the sample by rolling its last axis; None for a
    program with inputs or outputs that have no row for each row."""
    if any(s.shape[:1] != (None,) for s in (*program.inputs, *program.outputs)):
        return None
    rows = []
    for x in program.sample_inputs:
        if not len(x):
            return None
        some = [np.roll(x[n % len(x)], n // len(x), axis=-1 if x.ndim > 1 else None)
                for n in range(count)]  # fmt: skip
        rows.append(np.stack(some))
    return rows


def _same(part: tuple[np.ndarray, ...], whole: tuple[np.ndarray, ...], rows: slice) -> bool:
    """Whether these rows were answered as among all, to the last bit."""
    return all(
        a.shape == b[rows].shape and a.tobytes() == b[rows].tobytes()
        for a, b in zip(part, whole, strict=True)
    )
