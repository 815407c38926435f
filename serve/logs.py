"""What is told while it runs: a line for each event, as text or as JSON, on the standard error.

Each line about a request carries its id: the client's X-Request-Id, the trace id of a W3C
``traceparent``, or one of our own.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import sys
import time
from typing import IO, Any

import orjson

from tinygrad_ish.deploy.inputs import printable

from .errors import dumps

__all__ = ["AccessLog", "configure", "trace_of"]

EXTRA = ("request_id", "trace_id", "route", "model", "worker")  # of a record, where it has them
FLUSH = 0.1  # seconds that lines about requests are held, to be written together
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def trace_of(value: bytes) -> str | None:
    """The trace id in a ``traceparent`` (https://www.w3.org/TR/trace-context), if it is one."""
    found = _TRACEPARENT.fullmatch(value)
    return found[1].decode() if found and not value.startswith(b"ff") else None


def configure(level: str, form: str, worker: int | None = None) -> bool:
    """Let all loggers of the process write lines of this form; whether it is JSON."""
    as_json = form == "json" or (form == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(worker) if as_json else _Text())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("asyncio", "watchfiles"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.root.level))
    return as_json


class _Json(logging.Formatter):
    """{"time", "level", "logger", "message", …}, one object a line."""

    def __init__(self, worker: int | None) -> None:
        super().__init__()
        self.about = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self.about,
        }
        line.update({key: vars(record)[key] for key in EXTRA if key in vars(record)})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return dumps(line).decode()


class _Text(logging.Formatter):
    """Time, level and message; what came from outside cannot begin a new line."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f" {record.levelname}"
        line = f"{_time(record.created)[11:19]}{level} {printable(record.getMessage())}"
        ident = getattr(record, "request_id", None)
        line += f" [{ident}]" if ident else ""
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(seconds: float) -> str:
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03}Z"


@functools.lru_cache(2)
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


class AccessLog:
    """A line for each request, held for a moment: many are formatted and written at once."""

    def __init__(self, as_json: bool = True, stream: IO[str] | None = None) -> None:
        self._as_json = as_json
        self._stream = stream or sys.stderr
        self._held: list[tuple[Any, ...]] = []

    def add(self, scope: Any, route: str, status: int, seconds: float) -> None:
        """Note an answer."""
        if not self._held:
            asyncio.get_running_loop().call_later(FLUSH, self.flush)
        self._held.append((time.time(), scope, route, status, seconds))

    def flush(self) -> None:
        """Write what is held."""
        held, self._held = self._held, []
        form = self._json if self._as_json else self._text
        self._stream.write("".join([form(*line) for line in held]))
        self._stream.flush()

    def _json(self, when: float, scope: Any, route: str, status: int, seconds: float) -> str:
        state = scope["state"]
        line = {
            "time": _time(when),
            "level": "info",
            "logger": "tinygrad_ish.serve.access",
            "request_id": state["request_id"],
            "trace_id": state.get("trace_id"),
            "client": (scope.get("client") or [None])[0],
            "method": scope["method"],
            "path": scope["path"],
            "route": route,
            "model": state.get("model"),
            "status": status,
            "seconds": round(seconds, 6),
        }
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE).decode()

    def _text(self, when: float, scope: Any, route: str, status: int, seconds: float) -> str:
        return (
            f"{_time(when)[11:23]} {scope['method']} {printable(scope['path'])} {status} "
            f"{seconds * 1e3:.2f} ms [{scope['state']['request_id']}]\n"
        )
