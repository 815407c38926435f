"""Models and versions: loaded, published under load, replaced, refused, unloaded."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import threading
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import tinygrad_ish as tg
from tinygrad_ish import nn
from tinygrad_ish.deploy.registry import publish
from tinygrad_ish.serve import models
from tinygrad_ish.serve.app import create_app
from tinygrad_ish.serve.errors import ServeError
from tinygrad_ish.serve.models import Catalog
from tinygrad_ish.serve.settings import Settings

Job = Callable[[], Coroutine[Any, Any, None]]
QUIET = Settings(reload=False, max_batch=4)


class Shift(nn.Module):
    """x + the number of the version."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = nn.Parameter(tg.full((3,), by))

    def forward(self, x: tg.Tensor) -> tg.Tensor:
        return x + self.by


class Centre(nn.Module):
    """The rows without their mean: they depend on each other."""

    def forward(self, x: tg.Tensor) -> tg.Tensor:
        return x - x.mean(0, keepdim=True)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Programs that add 0, 1, 2, …"""
    folder = tmp_path_factory.mktemp("programs")
    paths = [folder / f"{n}.msgpack" for n in range(5)]
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for n, path in enumerate(paths):
        tg.export(Shift(float(n)), x, path)
    return paths


def run(main: Job) -> None:
    async def limited() -> None:
        await asyncio.wait_for(main(), 20)

    asyncio.run(limited())


def serving(main: Callable[[Catalog], Coroutine[Any, Any, None]], *args: Any, **more: Any) -> None:
    """Run with a catalog of these sources."""

    async def started() -> None:
        catalog = Catalog(*args, **{"settings": QUIET, "device": "numpy", **more})
        await catalog.start()
        try:
            await main(catalog)
        finally:
            await catalog.close()

    run(started)


def added(version: models.Version) -> float:
    """What the version adds."""
    assert version.program is not None
    return float(version.program(np.zeros((1, 3), np.float32))[0, 0])


def states(catalog: Catalog, name: str = "m") -> dict[str, str]:
    return {number: v.state for number, v in catalog.models.get(name, {}).items()}


def replace(source: Path, target: Path) -> None:
    """Put a copy in the place of a file, at once."""
    shutil.copy(source, target.with_suffix(".new"))
    os.replace(target.with_suffix(".new"), target)


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # a weight
    path.with_suffix(".new").write_bytes(data)
    os.replace(path.with_suffix(".new"), path)


def test_the_latest_is_loaded_and_others_when_asked_for(
    programs: list[Path], tmp_path: Path
) -> None:
    for n in range(3):
        publish(programs[n], tmp_path / "m")

    async def main(catalog: Catalog) -> None:
        assert catalog.ready and catalog.default == "m"
        assert states(catalog) == {"1": "available", "2": "available", "3": "ready"}
        assert added(await catalog.loaded()) == added(await catalog.loaded("m")) == 2
        first = await asyncio.gather(*[catalog.loaded("m", "1") for _ in range(5)])
        assert len(set(first)) == 1 and added(first[0]) == 0
        for name, number in (("k", None), ("m", "4"), ("m", "01"), ("", None), ("../m", "1")):
            with pytest.raises(ServeError) as caught:
                await catalog.loaded(name, number)
            assert caught.value.code == "model_not_found"

    serving(main, [tmp_path])


def test_a_new_version_takes_over_and_the_old_one_goes(
    programs: list[Path], tmp_path: Path
) -> None:
    publish(programs[0], tmp_path / "m")

    async def main(catalog: Catalog) -> None:
        old = await catalog.loaded("m")
        publish(programs[1], tmp_path / "m")
        await catalog.refresh()
        assert added(await catalog.loaded("m")) == 1
        assert states(catalog) == {"1": "available", "2": "ready"}
        assert added(old) == 0, "who holds the old version finishes with it"
        assert old.program is not None
        program, batcher = weakref.ref(old.program), weakref.ref(old.batcher)
        del old
        gc.collect()
        assert program() is None and batcher() is None

    serving(main, [tmp_path])


def test_a_bad_version_changes_nothing(programs: list[Path], tmp_path: Path) -> None:
    publish(programs[0], tmp_path / "m")

    async def main(catalog: Catalog) -> None:
        entry = publish(programs[1], tmp_path / "m")
        spoil(entry.path)
        await catalog.refresh()
        assert added(await catalog.loaded("m")) == 0 and catalog.ready
        assert states(catalog) == {"1": "ready", "2": "failed"}
        with pytest.raises(ServeError, match=r"^m 2: model\.msgpack: .*sha256") as caught:
            await catalog.loaded("m", "2")
        assert caught.value.code == "not_ready" and str(tmp_path) not in str(caught.value)
        (tmp_path / "m" / "3").mkdir()
        (tmp_path / "m" / "3" / "model.msgpack").write_bytes(b"no program")
        (tmp_path / "n" / "1").mkdir(parents=True)
        await catalog.refresh()
        assert added(await catalog.loaded("m")) == 0 and catalog.ready
        publish(programs[2], tmp_path / "m")
        await catalog.refresh()
        assert added(await catalog.loaded("m")) == 2

    serving(main, [tmp_path])


def test_a_file_replaced_by_rename(programs: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "m.msgpack"
    shutil.copy(programs[1], path)

    async def main(catalog: Catalog) -> None:
        replace(programs[2], path)
        await catalog.refresh()
        version = await catalog.loaded("m")
        assert added(version) == 2
        spoil(path)
        await catalog.refresh()
        await catalog.refresh()
        assert await catalog.loaded("m") is version
        assert version.describe()["reason"].startswith("a newer file was refused: ")
        path.unlink()
        await catalog.refresh()
        assert await catalog.loaded("m") is version, "a file that is not there is no file to load"
        shutil.copy(programs[3], path)
        await catalog.refresh()
        version = await catalog.loaded("m")
        assert added(version) == 3 and not version.reason

    serving(main, [path])


def test_versions_that_are_removed(programs: list[Path], tmp_path: Path) -> None:
    for n in range(3):
        publish(programs[n], tmp_path / "m")
    publish(programs[3], tmp_path / "k")

    async def main(catalog: Catalog) -> None:
        shutil.rmtree(tmp_path / "m" / "3")
        await catalog.refresh()
        assert added(await catalog.loaded("m")) == 1
        assert states(catalog) == {"1": "available", "2": "ready"}
        spoil(tmp_path / "m" / "1" / "model.msgpack")
        shutil.rmtree(tmp_path / "m" / "2")
        await catalog.refresh()
        assert added(await catalog.loaded("m")) == 1, "it stays as long as no other runs"
        assert states(catalog) == {"1": "failed", "2": "ready"}
        shutil.rmtree(tmp_path / "m")
        await catalog.refresh()
        with pytest.raises(ServeError, match="no model 'm'"):
            await catalog.loaded("m")
        assert added(await catalog.loaded()) == 3 and catalog.ready

    serving(main, [tmp_path])


def test_a_folder_that_cannot_be_read_for_a_while(
    programs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(programs[1], tmp_path / "models" / "m")

    async def main(catalog: Catalog) -> None:
        with monkeypatch.context() as patch:

            def fails(*args: Any, **more: Any) -> Any:
                raise OSError(24, "Too many open files")

            patch.setattr(models, "list_models", fails)
            await catalog.refresh()
            assert added(await catalog.loaded("m")) == 1
        (tmp_path / "models").rename(tmp_path / "away")
        await catalog.refresh()
        assert added(await catalog.loaded("m")) == 1
        (tmp_path / "away").rename(tmp_path / "models")
        await catalog.refresh()
        assert added(await catalog.loaded("m")) == 1 and states(catalog) == {"1": "ready"}

    serving(main, [tmp_path / "models"])


def test_nothing_to_serve(tmp_path: Path) -> None:
    async def main(catalog: Catalog) -> None:
        assert not catalog.ready
        with pytest.raises(ServeError) as caught:
            await catalog.loaded()
        assert caught.value.code == "not_ready"

    serving(main, [tmp_path / "nothing.msgpack"])
    serving(main, [tmp_path])


def test_a_bad_model_at_the_start_is_not_ready(programs: list[Path], tmp_path: Path) -> None:
    shutil.copy(programs[0], tmp_path / "m.msgpack")
    (tmp_path / "bad.msgpack").write_bytes(b"no program")

    async def main(catalog: Catalog) -> None:
        assert not catalog.ready
        assert added(await catalog.loaded("m")) == 0
        replace(programs[1], tmp_path / "bad.msgpack")
        await catalog.refresh()
        assert catalog.ready

    serving(main, [tmp_path / "m.msgpack", tmp_path / "bad.msgpack"])


def test_memory_is_given_to_who_is_used(programs: list[Path], tmp_path: Path) -> None:
    for n, name in enumerate("abc"):
        publish(programs[n], tmp_path / name)
    size = publish(programs[3], tmp_path / "d").nbytes
    settings = Settings(reload=False, max_batch=1, memory=2 * size + size // 2)

    async def main(catalog: Catalog) -> None:
        assert catalog.ready, "what had to make room is loaded when it is asked for"

        def loaded() -> str:
            return "".join(n for n in "abcd" if "ready" in states(catalog, n).values())

        assert len(loaded()) == 2
        held = await catalog.loaded("a")
        await catalog.loaded("b")
        assert loaded() == "ab"
        await catalog.loaded("a")
        await catalog.loaded("c")
        assert loaded() == "ac"
        await asyncio.gather(*[catalog.loaded(n) for n in "abcd" * 3])
        assert len(loaded()) == 2 and added(held) == 0
        await catalog.refresh()
        assert len(loaded()) == 2, "looking at the folders loads nothing again"

    serving(main, [tmp_path], settings=settings)


def test_by_hand(programs: list[Path], tmp_path: Path) -> None:
    publish(programs[0], tmp_path / "m")

    async def main(catalog: Catalog) -> None:
        held = await catalog.loaded("m")
        await catalog.unload("m")
        for number in (None, "1"):
            with pytest.raises(ServeError, match="was unloaded"):
                await catalog.loaded("m", number)
        publish(programs[1], tmp_path / "m")
        await catalog.refresh()
        with pytest.raises(ServeError, match="was unloaded"):
            await catalog.loaded("m")
        assert states(catalog) == {"1": "available", "2": "available"} and added(held) == 0
        await catalog.load("m")
        assert added(await catalog.loaded("m")) == 1
        work = [catalog.load("m"), catalog.unload("m"), catalog.refresh(), catalog.load("m")]
        await asyncio.gather(*work, *[catalog.refresh() for _ in range(3)])
        assert added(await catalog.loaded("m")) == 1
        for method in (catalog.load, catalog.unload):
            with pytest.raises(ServeError, match="no model 'k'"):
                await method("k")

    serving(main, [tmp_path])


def test_loading_holds_nobody_for_ever(
    programs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(programs[0], tmp_path / "m")
    publish(programs[1], tmp_path / "m")

    async def main(catalog: Catalog) -> None:
        import time

        prepare = models._prepare

        def slowly(*args: Any) -> Any:
            time.sleep(0.3)
            return prepare(*args)

        monkeypatch.setattr(models, "_prepare", slowly)
        with pytest.raises(ServeError, match="m 1 is loading") as caught:
            await catalog.loaded("m", "1")
        assert caught.value.status == 503 and caught.value.headers["Retry-After"]
        assert added(await catalog.loaded("m")) == 1
        await asyncio.sleep(0.5)
        assert added(await catalog.loaded("m", "1")) == 0

    serving(main, [tmp_path], settings=Settings(reload=False, timeout=0.1))


def test_rows_are_grouped_only_if_that_changes_nothing(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    tg.export(Centre(), x, tmp_path / "centre.msgpack")
    tg.export(Shift(1.0), x, tmp_path / "shift.msgpack")
    app = create_app([tmp_path / "centre.msgpack", tmp_path / "shift.msgpack"], QUIET)

    async def main() -> None:
        transport = httpx.ASGITransport(app)
        client = httpx.AsyncClient(transport=transport, base_url="http://test")
        async with client, app.router.lifespan_context(app):
            listing = (await client.get("/models")).json()["models"]
            grouped = {m["name"]: m["versions"][0]["grouped"] for m in listing}
            assert grouped == {"centre": False, "shift": True}
            asked = [
                client.post("/predict", json={"inputs": [[n, n, n], [0, 0, 0]]}) for n in range(9)
            ]
            for n, response in enumerate(await asyncio.gather(*asked)):
                rows = response.json()["outputs"]["output"]
                assert rows == [[n / 2] * 3, [-n / 2] * 3]

    run(main)


def test_publishing_under_load(programs: list[Path], tmp_path: Path) -> None:
    """Every request is answered, by one version or the next, and in the end by the last."""
    publish(programs[0], tmp_path / "m")
    app = create_app(tmp_path, Settings(max_batch=4), device="numpy")
    answers: list[tuple[str, float]] = []

    async def main() -> None:
        transport = httpx.ASGITransport(app)
        client = httpx.AsyncClient(transport=transport, base_url="http://test")
        done = False

        async def ask() -> None:
            while not done:
                response = await client.post("/models/m/predict", json={"inputs": [[0, 0, 0]]})
                assert response.status_code == 200, response.text
                body = response.json()
                answers.append((body["version"], body["outputs"]["output"][0][0]))
                # No network makes the loop wait here: the threads that publish and load would
                # hardly ever have the interpreter.
                await asyncio.sleep(0.001)

        async with client, app.router.lifespan_context(app):
            asking = [asyncio.ensure_future(ask()) for _ in range(4)]
            for n in range(1, 5):
                await asyncio.to_thread(publish, programs[n], tmp_path / "m")
                while answers[-1:] != [(str(n + 1), float(n))]:
                    await asyncio.sleep(0.01)
                    assert not any(task.done() for task in asking)
            done = True
            await asyncio.gather(*asking)

    run(main)
    assert {(version, int(version) - 1) for version, _ in answers} == set(answers)
    assert {version for version, _ in answers} == {"1", "2", "3", "4", "5"}


def test_a_file_is_watched(programs: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "m.msgpack"
    shutil.copy(programs[1], path)

    async def main(catalog: Catalog) -> None:
        replace(programs[2], path)
        while added(await catalog.loaded("m")) != 2:
            await asyncio.sleep(0.01)

    serving(main, [path], settings=Settings(max_batch=1))


def test_watching_survives_what_fails(
    programs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(programs[0], tmp_path / "m")
    monkeypatch.setattr(models, "LOOK_SECONDS", 0.01)

    async def main(catalog: Catalog) -> None:
        refresh, failures = catalog.refresh, []

        async def fails() -> None:
            if len(failures) < 3:
                failures.append(1)
                raise RuntimeError("something odd")
            await refresh()

        monkeypatch.setattr(catalog, "refresh", fails)
        publish(programs[1], tmp_path / "m")
        while added(await catalog.loaded("m")) != 1:
            await asyncio.sleep(0.01)
        assert len(failures) == 3

    serving(main, [tmp_path], settings=Settings(max_batch=1))


def test_a_model_loads_where_no_thread_may_have_another_priority(
    programs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(os, "setpriority", refused, raising=False)

    async def main(catalog: Catalog) -> None:
        assert states(catalog, "1") == {"1": "ready"}

    serving(main, [programs[1]])


@pytest.mark.skipif(not hasattr(os, "getpriority"), reason="threads have no priorities here")
def test_a_model_is_loaded_at_the_priority_of_the_event_loop(programs: list[Path]) -> None:
    """What is stepped back and holds the interpreter holds up the event loop too."""

    async def main(catalog: Catalog) -> None:
        found = [await asyncio.get_running_loop().run_in_executor(executor, priority)
                 for executor in (catalog._loader, catalog._compute)]  # fmt: skip
        assert found == [priority()] * 2

    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    serving(main, [programs[1]])
