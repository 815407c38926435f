"""A server around programs: ``create_app`` is a Starlette application, ``Client`` talks to it.

app.py        the application and its routes
bodies.py     what a request's body says, and how an answer is written; large.py if it is large
batching.py   requests grouped, run in turn, answered as rows
models.py     models and their versions: loaded, replaced, unloaded
errors.py     the one shape of an error
settings.py   every setting, with its default
auth.py       keys, scopes, other origins
logs.py       lines of text or JSON, ids of requests
metrics.py    counts, for Prometheus and the page
openapi.py    the description of all routes
main.py       the command; process.py one process, workers.py several, together.py what they share,
              connections.py the limits of connections
client.py     Client and AsyncClient
"""

from __future__ import annotations

from typing import Any

__all__ = ["AsyncClient", "Client", "ServerError", "Settings", "create_app"]
_HOMES = {
    "AsyncClient": "client",
    "Client": "client",
    "ServerError": "client",
    "Settings": "settings",
    "create_app": "app",
}


def __getattr__(name: str) -> Any:
    """What has a home is imported when it is asked for: the client needs no server."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
