"""The client: what it asks and gives, and when it asks again."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

import tinygrad_ish as tg
from tinygrad_ish import nn

httpx = pytest.importorskip("httpx", reason="httpx is not installed")

from tinygrad_ish.serve import AsyncClient, Client, ServerError, Settings, create_app  # noqa: E402

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("programs") / "flowers.msgpack"
    tg.manual_seed(0)
    tg.export(nn.Linear(4, 3), X, path, postprocess="softmax", labels=["ant", "bee", "cat"])
    return path


def test_predictions(path: Path) -> None:
    app = create_app(path, Settings(reload=False), device="numpy")
    program = tg.load_program(path, "numpy")

    async def main() -> None:
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), AsyncClient(transport=transport) as client:
            assert await client.ready()
            expected = program(X)
            for given in (X, tg.from_numpy(X), X.astype(np.float64), X.tolist(), X.T.copy().T):
                answer = await client.predict(given)
                assert answer.dtype == np.float32 and answer.flags.writeable
                np.testing.assert_array_equal(answer, expected)
            outputs = await client.outputs({"input": X}, model="flowers", version=1)
            np.testing.assert_array_equal(outputs["output"], expected)
            assert [row[0][0] for row in await client.labels(X)] == [
                row[0][0] for row in program.predict(X)
            ]
            assert [m["name"] for m in await client.models()] == ["flowers"]
            with pytest.raises(ServerError, match=r"^400 bad_input: .*expected shape") as caught:
                await client.predict(X[:, :2])
            assert (caught.value.status, caught.value.code) == (400, "bad_input")
            with pytest.raises(ServerError, match=r"^404 (model_)?not_found"):
                await client.predict(X, model="../etc")
            with pytest.raises(ValueError, match="name the model too"):
                await client.predict(X, version=1)

    asyncio.run(main())


ANSWER = msgpack.packb(
    {"model": "m", "outputs": {"y": {"dtype": "float32", "shape": [1], "data": bytes(4)}}}
)


def replying(*replies: Any) -> tuple[Client, list[Any]]:
    """A client that gets these replies in turn, and the requests that it makes."""
    asked: list[Any] = []
    left = list(replies)

    def handle(request: Any) -> Any:
        asked.append(request)
        reply = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(reply, Exception):
            raise reply
        status, headers = reply
        content = ANSWER if status == 200 else b'{"code": "overloaded", "error": "full"}'
        kind = "application/msgpack" if status == 200 else "application/json"
        return httpx.Response(status, headers={"content-type": kind, **headers}, content=content)

    return Client(key="k", transport=httpx.MockTransport(handle)), asked


def test_it_comes_back_when_the_server_says(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    client, asked = replying((429, {"retry-after": "2"}), (503, {}), (200, {}))
    assert client.predict(X).tolist() == [0]
    assert len(asked) == 3 and 2 <= slept[0] <= 2.2 and 0 < slept[1] < 1
    assert asked[0].headers["authorization"] == "Bearer k"
    assert 0 < float(asked[0].headers["timeout-ms"]) <= 10_000
    client.close()


def test_connections_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    client, asked = replying(httpx.ConnectError("refused"), (200, {}))
    assert client.predict(X).tolist() == [0]
    client, asked = replying(httpx.ConnectError("refused"))
    with pytest.raises(httpx.ConnectError, match="refused"):
        client.predict(X)
    assert len(asked) == 4 and slept[1] < slept[2] < slept[3]
    assert not client.ready()


@pytest.mark.parametrize(
    "reply", [(429, {"retry-after": "60"}), (400, {}), (500, {}), (504, {})], ids=lambda r: r[0]
)
def test_it_does_not_ask_in_vain(reply: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", pytest.fail)
    client, asked = replying(reply)
    with pytest.raises(ServerError, match=f"{reply[0]} overloaded: full"):
        client.predict(X)
    assert len(asked) == 1


@pytest.mark.parametrize("make", [Client, AsyncClient])
def test_timeouts(make: Callable[..., Any]) -> None:
    for timeout in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="timeout: expected"):
            make(timeout=timeout)


def test_it_needs_no_server() -> None:
    code = """if True:
        import sys
        from tinygrad_ish.serve import Client
        assert not {"starlette", "uvicorn", "numba"} & set(sys.modules), sys.modules
        import tinygrad_ish.serve
        try:
            tinygrad_ish.serve.Clients
        except AttributeError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no attribute 'Clients'" in done.stdout


def test_no_retry_is_waited_for_that_would_come_too_late() -> None:
    """What an attempt takes counts: the error in hand is given, not a timeout."""

    def busy(request: Any) -> Any:
        time.sleep(0.3)
        return httpx.Response(503, headers={"Retry-After": "1"}, json={"error": "busy"})

    with (
        Client(transport=httpx.MockTransport(busy), timeout=1.2) as client,
        pytest.raises(ServerError, match=r"^503"),
    ):
        client.predict(X)
