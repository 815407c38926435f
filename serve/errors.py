"""The one shape of an error, for every route and protocol.

    {"error": "input pixels: expected shape [batch, 28, 28], got [1, 7]", "code": "bad_input",
     "expected": …, "got": …, "request_id": "…"}

``code`` is stable and for programs, ``error`` for people; ``expected`` and ``got`` are there where
they can be said shortly. A text under ``error`` is what Open Inference Protocol clients read.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

__all__ = ["CODES", "Disconnected", "ServeError", "dumps"]

# code: (HTTP status, what it means)
CODES = {
    "bad_request": (400, "The body or a header cannot be read."),
    "bad_input": (400, "The inputs are not what the model takes."),
    "unauthorized": (401, "No key, or one that is not known."),
    "forbidden": (403, "The key does not allow this, or this is switched off."),
    "not_found": (404, "No such path."),
    "model_not_found": (404, "No model, or no version, of this name."),
    "method_not_allowed": (405, "The path takes other methods."),
    "not_acceptable": (406, "None of the formats in Accept can be given."),
    "request_timeout": (408, "The body came too slowly."),
    "conflict": (409, "The state of the model does not allow this now."),
    "too_large": (413, "The body, or what it unpacks to, is over the limit."),
    "unsupported_media_type": (415, "The body's type is none that is taken."),
    "not_explainable": (422, "The model was exported without its gradient."),
    "overloaded": (429, "More requests wait than may; come back after Retry-After."),
    "headers_too_large": (431, "The headers are over the limit."),
    "model_failed": (500, "The model raised an error; the server's log has it."),
    "not_ready": (503, "The server or the model is starting, or shutting down."),
    "deadline": (504, "The answer did not come within the deadline."),
}


class Disconnected(Exception):
    """The client has left; nobody reads an answer."""


class ServeError(Exception):
    """An answer that is an error; ``code`` is one of CODES."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        expected: Any = None,
        got: Any = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = CODES[code][0]
        self.expected = expected
        self.got = got
        self.headers = headers or {}

    def body(self, request_id: str | None = None) -> dict[str, Any]:
        """What the answer's body says."""
        parts = {"expected": self.expected, "got": self.got, "request_id": request_id}
        told = {name: value for name, value in parts.items() if value is not None}
        return {"error": str(self), "code": self.code, **told}

    def json(self, request_id: str | None = None) -> bytes:
        """``body`` as JSON."""
        return dumps(self.body(request_id))


def dumps(value: Any) -> bytes:
    """A value as JSON, whatever a client or a file's name has led us to say: orjson refuses an
    integer of more than 64 bits, and half of a surrogate pair."""
    try:
        return orjson.dumps(value, default=str)
    except TypeError:
        return json.dumps(value, default=str).encode()
