"""Who may do what: API keys from a file, read again when it changes.

A line of the file is a name, what the key allows, and the key or its SHA-256:

    # name   scopes                key
    alice    infer                 pw7Jt2yHq0mVb4Xn
    ops      infer,admin,metrics   sha256:2c26b46b68ff… (64 digits)

A client sends ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``. Without a file everybody may do
all that is switched on.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import time
from typing import NamedTuple

from starlette.middleware import Middleware

from .errors import ServeError
from .settings import Settings, SettingsError

__all__ = ["Keys", "cross_origin", "scope_of"]

log = logging.getLogger("tinygrad_ish.serve")

SCOPES = ("infer", "admin", "metrics")
OPEN = ("/", "/page/{file}", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
ADMIN = ("/v2/repository/models/{name}/load", "/v2/repository/models/{name}/unload")
METRICS = ("/metrics", "/stats")
SHORTEST = 16  # characters of a key
LOOK = 0.5  # seconds between looks at the file


def scope_of(route: str) -> str | None:
    """What a key must allow for a route; None where none is asked for."""
    if route in OPEN:
        return None
    return "admin" if route in ADMIN else "metrics" if route in METRICS else "infer"


class Key(NamedTuple):
    """A line of the file."""

    name: str
    scopes: frozenset[str]
    digest: bytes


class Keys:
    """The keys in a file. Raises SettingsError if it cannot be read at first; later, what was read
    before stays in force and the log says why."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._stamp = _stamp(path)
            self._keys = _read(path)
        except (OSError, ValueError) as error:
            raise SettingsError(f"keys: {path}: {error}") from None
        self._next_look = time.monotonic() + LOOK

    def check(self, headers: list[tuple[bytes, bytes]], scope: str) -> str:
        """The name of the key in a request's headers. Raises ServeError if it does not allow the
        scope."""
        self._refresh()
        given = _given(headers)
        if given is None:
            raise _unauthorized("a key is needed: Authorization: Bearer KEY")
        digest = hashlib.sha256(given).digest()
        found = None
        for key in self._keys:  # all of them, so the time tells nothing
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise _unauthorized("the key is not known")
        if scope not in found.scopes:
            raise ServeError(
                "forbidden", "the key does not allow this", expected=scope, got=sorted(found.scopes)
            )
        return found.name

    def _refresh(self) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK
        try:
            stamp = _stamp(self.path)
            if stamp != self._stamp:
                self._stamp = stamp
                self._keys = _read(self.path)
                log.info("%s: %d keys", self.path, len(self._keys))
        except (OSError, ValueError) as error:
            log.error("%s: %s; the keys that were read before stay in force", self.path, error)


def _stamp(path: str) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: str) -> list[Key]:
    with open(path, encoding="utf-8") as file:
        lines = file.read().splitlines()
    return [
        _key(line, number)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]


def _key(line: str, number: int) -> Key:
    parts = line.split()
    if len(parts) != 3:
        raise ValueError(f"line {number}: expected a name, scopes and a key")
    name, scopes, secret = parts
    unknown = set(scopes.split(",")) - set(SCOPES)
    if unknown:
        raise ValueError(f"line {number}: no scope {', '.join(unknown)}; there are {SCOPES}")
    if secret.startswith("sha256:"):
        digest = bytes.fromhex(secret.removeprefix("sha256:"))
        if len(digest) != 32:
            raise ValueError(f"line {number}: a SHA-256 has 64 hexadecimal digits")
    elif len(secret) < SHORTEST:
        raise ValueError(f"line {number}: the key is shorter than {SHORTEST} characters")
    else:
        digest = hashlib.sha256(secret.encode()).digest()
    return Key(name, frozenset(scopes.split(",")), digest)


def _given(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
        if name == b"x-api-key":
            return value.strip()
    return None


def _unauthorized(message: str) -> ServeError:
    return ServeError("unauthorized", message, headers={"WWW-Authenticate": "Bearer"})


def cross_origin(settings: Settings) -> list[Middleware]:
    """What lets pages of other origins call; nothing where none is allowed."""
    if not settings.cors:
        return []
    from starlette.middleware.cors import CORSMiddleware

    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After", "Inference-Header-Content-Length"],
        )
    ]
