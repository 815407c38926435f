"""A client for the server's own routes: ``Client`` and, for asyncio, ``AsyncClient``.

    with Client("http://127.0.0.1:8000") as client:
        client.predict(images)                  # the first output, an array
        client.labels(images)                   # [[("7", 0.98), …], …], one list for each row
        client.predict({"ids": ids, "scale": scale}, model="lookup")

Arrays travel as msgpack with their bytes, so an answer has the very bits that the model gave. A
request that the server has no room for (429) or is not ready for (503), or whose connection fails,
is sent again, after as long as the server's Retry-After says or a growing while. Needs httpx.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import msgpack
import numpy as np

try:
    import httpx
except ImportError as error:
    raise ImportError("the client needs httpx: pip install 'tinygrad_ish[client]'") from error

__all__ = ["AsyncClient", "Client", "ServerError"]

MSGPACK = "application/msgpack"
AGAIN = {429, 502, 503}  # the server has done nothing for the request
Result = httpx.Response | httpx.TransportError
Inputs = Any  # an array, nested lists, or a mapping of them by the inputs' names


class ServerError(Exception):
    """An answer that is an error: ``status``, ``code`` (as the server's documentation lists them),
    and ``body``, all that was said."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        self.status = status
        self.code = body.get("code", "")
        self.body = body
        super().__init__(f"{status} {self.code}: {body.get('error', 'no reason was given')}")


class _Both:
    """What the clients have in common: requests and answers, and when to try again."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout: float = 10.0,
        retries: int = 3,
        **options: Any,
    ) -> None:
        """``key`` is an API key; ``timeout``, in seconds, is for all of a call, its retries and
        waits included, and the server is told; ``options`` are httpx's (verify, headers, …)."""
        if not (timeout > 0 and math.isfinite(timeout)):
            raise ValueError(f"timeout: expected a number of seconds, got {timeout!r}")
        self.timeout = timeout
        self.retries = retries
        headers = {**options.pop("headers", {}), "Accept": MSGPACK}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        self._options = {"base_url": url, "headers": headers, **options}

    def _attempts(self) -> Iterator[tuple[float, float, dict[str, str]]]:
        """For each attempt when the call must end, the seconds until then, and the header that
        tells the server."""
        end = time.monotonic() + self.timeout
        for _ in range(self.retries + 1):
            left = end - time.monotonic()
            if left <= 0:
                return
            yield end, left, {"Timeout-Ms": f"{left * 1e3:.0f}"}

    def _wait(self, attempt: int, result: Result, left: float) -> float | None:
        """Seconds until the next attempt; None if there shall be none."""
        told = ""
        if isinstance(result, httpx.Response):
            if result.status_code not in AGAIN:
                return None
            told = result.headers.get("retry-after", "")
        if attempt >= self.retries:
            return None
        # those who were refused together shall not come back together
        wait = float(told) if told.isdecimal() else 0.05 * 2**attempt
        wait += random.uniform(0, 0.1 * wait)
        return wait if wait < left else None

    def _late(self) -> httpx.TransportError:
        return httpx.TimeoutException(f"no answer within {self.timeout} s")


def _given(result: Result) -> httpx.Response:
    if isinstance(result, httpx.Response):
        return result
    raise result


def _asked(inputs: Inputs, model: str | None, version: int | None) -> tuple[str, dict[str, Any]]:
    """The path and the rest of a request for a prediction."""
    path = "/predict" if model is None else f"/models/{quote(model, safe='')}"
    if version is not None:
        if model is None:
            raise ValueError("version: name the model too")
        path += f"/versions/{version}"
    path += "" if model is None else "/predict"
    named = isinstance(inputs, Mapping)
    given = {k: _packed(x) for k, x in inputs.items()} if named else _packed(inputs)
    return path, {
        "content": msgpack.packb({"inputs": given}),
        "headers": {"Content-Type": MSGPACK},
    }


def _packed(x: Any) -> Any:
    """An array as dtype, shape and bytes; anything else as it is, for the server to convert."""
    if isinstance(x, list):
        return x
    x = np.asarray(x.numpy() if hasattr(x, "numpy") else x)
    little = np.ascontiguousarray(x, x.dtype.newbyteorder("<"))
    return {"dtype": x.dtype.name, "shape": list(x.shape), "data": little.tobytes()}


def _body(response: httpx.Response) -> Any:
    """What an answer says. Raises ServerError for one that is an error."""
    kind = response.headers.get("content-type", "")
    try:
        body = msgpack.unpackb(response.content) if kind == MSGPACK else response.json()
    except ValueError:
        body = {"error": response.text[:200]}
    if response.is_success:
        return body
    raise ServerError(response.status_code, body if isinstance(body, dict) else {"error": body})


def _outputs(body: dict[str, Any]) -> dict[str, np.ndarray]:
    """The outputs of an answer by name."""
    return {
        name: np.frombuffer(x["data"], np.dtype(x["dtype"]).newbyteorder("<"))
        .reshape(x["shape"])
        .astype(x["dtype"])
        for name, x in body["outputs"].items()
    }


def _first(body: dict[str, Any]) -> np.ndarray:
    return next(iter(_outputs(body).values()))


def _labels(body: dict[str, Any]) -> list[list[tuple[str, float]]]:
    if "predictions" not in body:
        raise ValueError(f"model {body['model']} has no labels; use predict")
    return [[(label, p) for label, p in row] for row in body["predictions"]]


class Client(_Both):
    """Calls that wait for the answer; usable from several threads."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._http = httpx.Client(**self._options)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(
        self, inputs: Inputs, model: str | None = None, version: int | None = None
    ) -> np.ndarray:
        """The first output of a model (the server's default one) for an array or a mapping of
        arrays by the inputs' names. Raises ServerError, and httpx's errors."""
        return _first(self._ask(inputs, model, version))

    def outputs(
        self, inputs: Inputs, model: str | None = None, version: int | None = None
    ) -> dict[str, np.ndarray]:
        """``predict``, with all outputs by their names."""
        return _outputs(self._ask(inputs, model, version))

    def labels(
        self, inputs: Inputs, model: str | None = None, version: int | None = None
    ) -> list[list[tuple[str, float]]]:
        """For each row the labels and their probabilities, the most probable first."""
        return _labels(self._ask(inputs, model, version))

    def models(self) -> list[dict[str, Any]]:
        """The models and their versions."""
        return list(_body(self._send("GET", "/models"))["models"])

    def ready(self) -> bool:
        """Whether the server takes requests; False too where there is none."""
        try:
            return self._http.get("/readyz", timeout=self.timeout).is_success
        except httpx.TransportError:
            return False

    def _ask(self, inputs: Inputs, model: str | None, version: int | None) -> dict[str, Any]:
        path, request = _asked(inputs, model, version)
        answer: dict[str, Any] = _body(self._send("POST", path, **request))
        return answer

    def _send(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **request: Any
    ) -> httpx.Response:
        for attempt, (end, left, told) in enumerate(self._attempts()):
            try:
                result: Result = self._http.request(
                    method, path, headers={**(headers or {}), **told}, timeout=left, **request
                )
            except httpx.TransportError as error:
                result = error
            wait = self._wait(attempt, result, end - time.monotonic())
            if wait is None:
                return _given(result)
            time.sleep(wait)
        raise self._late()


class AsyncClient(_Both):
    """The same for asyncio: each call is awaited."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._http = httpx.AsyncClient(**self._options)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def predict(
        self, inputs: Inputs, model: str | None = None, version: int | None = None
    ) -> np.ndarray:
        """As ``Client.predict``."""
        return _first(await self._ask(inputs, model, version))

    async def outputs(
        self, inputs: Inputs, model: str | None = None, version: int | None = None
    ) -> dict[str, np.ndarray]:
        """As ``Client.outputs``."""
        return _outputs(await self._ask(inputs, model, version))

    async def labels(
        self, inputs: Inputs, model: str | None = None, version: int | None = None
    ) -> list[list[tuple[str, float]]]:
        """As ``Client.labels``."""
        return _labels(await self._ask(inputs, model, version))

    async def models(self) -> list[dict[str, Any]]:
        """As ``Client.models``."""
        return list(_body(await self._send("GET", "/models"))["models"])

    async def ready(self) -> bool:
        """As ``Client.ready``."""
        try:
            return (await self._http.get("/readyz", timeout=self.timeout)).is_success
        except httpx.TransportError:
            return False

    async def _ask(self, inputs: Inputs, model: str | None, version: int | None) -> dict[str, Any]:
        path, request = _asked(inputs, model, version)
        answer: dict[str, Any] = _body(await self._send("POST", path, **request))
        return answer

    async def _send(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **request: Any
    ) -> httpx.Response:
        for attempt, (end, left, told) in enumerate(self._attempts()):
            try:
                result: Result = await self._http.request(
                    method, path, headers={**(headers or {}), **told}, timeout=left, **request
                )
            except httpx.TransportError as error:
                result = error
            wait = self._wait(attempt, result, end - time.monotonic())
            if wait is None:
                return _given(result)
            await asyncio.sleep(wait)
        raise self._late()
