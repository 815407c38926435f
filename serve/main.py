"""The command: ``tinygrad-ish serve digits.msgpack``. Settings are read and shown, the port is
taken, and one process serves, or several do."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .settings import Settings, SettingsError, read, show

if TYPE_CHECKING:
    from .workers import Worker

__all__ = ["listen", "main", "serve"]

INSTALL = "pip install 'tinygrad_ish[serve]'"


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal comes. The exit status: 0, 1 if it cannot start, 2 for settings that
    make no sense."""
    try:
        paths, settings, sources = read(sys.argv[1:] if argv is None else argv, os.environ)
        for path in paths:
            if not Path(path).exists():
                raise SettingsError(f"{path}: there is no such file or folder")
        if settings.workers > 1 and sys.platform == "win32":
            raise SettingsError("workers: on Windows there can be one")
        if settings.keys:
            from .auth import Keys

            Keys(settings.keys)
    except SettingsError as error:
        print(f"tinygrad-ish serve: {error}", file=sys.stderr)
        return 2
    print(show(settings, sources), flush=True)
    try:
        listeners = listen(settings)
    except OSError as error:
        print(f"tinygrad-ish serve: {settings.host}:{settings.port}: {error}", file=sys.stderr)
        return 1
    if settings.workers > 1:
        from .workers import supervise

        return supervise(paths, settings, listeners)
    return serve(paths, settings, listeners[0])


def listen(settings: Settings) -> list[socket.socket]:
    """A bound socket for each worker; where the system shares connections out between sockets of
    one port (Linux), else the same for all. OSError if the port is taken."""
    family, *_, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    first = _bound(family, address, False)
    if settings.workers == 1 or sys.platform != "linux":
        return [first] * settings.workers
    address = first.getsockname()
    first.close()  # it has shown that the port is free; these need an option from the start
    return [_bound(family, address, True) for _ in range(settings.workers)]


def _bound(family: socket.AddressFamily, address: Any, shared: bool) -> socket.socket:
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind(address)
    except OSError:
        found.close()
        raise
    return found


def serve(
    paths: list[str],
    settings: Settings,
    listener: socket.socket,
    worker: Worker | None = None,
) -> int:
    """Serve on a bound socket until a signal comes."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # nothing has been promised so far
    try:
        from .process import Process
    except ModuleNotFoundError as error:
        print(f"tinygrad-ish serve needs {error.name}: {INSTALL}", file=sys.stderr)
        return 1
    return Process(paths, settings, listener, worker).serve_until_told()


if __name__ == "__main__":
    sys.exit(main())
