"""A client for an ASGI application in this process, whose lifespan it runs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

httpx = pytest.importorskip("httpx", reason="httpx is not installed")

__all__ = ["Client"]


class Client:
    """``client.get(path)`` and ``client.post(path, json=…)``, without awaiting."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __enter__(self) -> Client:
        self.loop = asyncio.new_event_loop()
        self.lifespan = self.app.router.lifespan_context(self.app)
        self.loop.run_until_complete(self.lifespan.__aenter__())
        transport = httpx.ASGITransport(self.app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://server")
        return self

    def __exit__(self, *exception: object) -> None:
        self.loop.run_until_complete(self.client.aclose())
        self.loop.run_until_complete(self.lifespan.__aexit__(None, None, None))
        self.loop.close()

    def get(self, path: str, **request: Any) -> Any:
        return self.loop.run_until_complete(self.client.get(path, **request))

    def post(self, path: str, **request: Any) -> Any:
        return self.loop.run_until_complete(self.client.post(path, **request))
