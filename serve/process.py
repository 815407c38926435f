"""A process that serves: uvicorn with our signals, limits and logs.

Asked to stop (SIGTERM, SIGINT), it says at once that it is not ready, still answers for ``grace``
seconds while clients are told to close, then takes nothing new, finishes what it has within
``drain`` seconds, and leaves with 0. A second SIGINT ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import math
import os
import shlex
import signal
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import numpy as np
import orjson
from uvicorn.config import Config
from uvicorn.server import Server as Uvicorn

from tinygrad_ish import __version__
from tinygrad_ish.deploy.runtime import Signature

from . import connections, logs
from .app import Server, create_app
from .metrics import Metrics
from .models import Version
from .settings import Settings
from .together import Together
from .workers import Worker

__all__ = ["Process"]

log = logging.getLogger("tinygrad_ish.serve")
LAST = 0.1  # seconds to take what has connected already, once nobody else can
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
SHORT = 400  # characters of JSON in a line to paste


class Process(Uvicorn):
    """One process: serves on a bound socket until it is told to stop."""

    def __init__(
        self,
        paths: list[str],
        settings: Settings,
        listener: socket.socket,
        worker: Worker | None = None,
    ) -> None:
        number = None if worker is None else worker.number
        as_json = logs.configure(settings.log_level, settings.log_format, number)
        counts = None if worker is None else Metrics(worker.folder, worker.number)
        app = create_app(paths, settings, device=settings.device or None, counts=counts)
        self.serving: Server = app.state.server
        if worker is not None:
            self.serving.together = Together(worker, self.serving.catalog)
        if self.serving.access is not None:
            self.serving.access = logs.AccessLog(as_json)
        self.settings = settings
        self.listener = listener
        self.worker = worker
        super().__init__(
            Config(
                app,
                http=connections.protocol(settings),
                ws="none",
                interface="asgi3",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=settings.keep_alive,  # type: ignore[arg-type]  # a float will do
                timeout_graceful_shutdown=settings.drain,  # type: ignore[arg-type]
                h11_max_incomplete_event_size=settings.max_headers,
                ssl_certfile=settings.tls_cert or None,
                ssl_keyfile=settings.tls_key or None,
                ssl_keyfile_password=settings.tls_key_password or None,
                ssl_ca_certs=settings.tls_ca or None,
                ssl_cert_reqs=ssl.CERT_REQUIRED if settings.tls_ca else ssl.CERT_NONE,
            )
        )
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self.watch = connections.Watch(self.server_state.connections, settings.header_timeout)
        _allow_files(settings.max_connections + 256)

    def serve_until_told(self) -> int:
        """Run. The process ends here, for a model that hangs would keep its threads."""
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            self.run(sockets=[self.listener])
        if self.serving.access is not None:
            self.serving.access.flush()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0 if self.should_exit else 1)

    # --- from start to end -------------------------------------------------------------------

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Load the models, listen, and say so."""
        await super().startup(sockets)
        sys.setswitchinterval(0.0005)  # the compute thread waits less for a busy event loop
        gc.freeze()  # what is there now stays; later collections need not look at it
        if self.worker is None or self.worker.first:
            host = address(self.listener, bool(self.settings.tls_cert))
            print(banner(host, self.serving), flush=True)
        if self.worker is not None:
            self.worker.ready.set()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % 10 == 0:
            self.watch.look()
            open_now = len(self.server_state.connections)
            self.serving.metrics.measure(self.serving.catalog, open_now)
            if self.worker is not None and os.getppid() != self.worker.parent:
                log.warning("the parent is gone")
                self.handle_exit(signal.SIGTERM, None)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would in the end let the signal kill the process."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; at once if nothing has begun, or if it is asked again from the keyboard."""
        if not self.started or (self.should_exit and sig == signal.SIGINT):
            os._exit(0)
        if not self.should_exit:
            self.should_exit = self.serving.leaving = True
            longest = self.settings.grace + self.settings.drain + 2
            timer = threading.Timer(longest, os._exit, (0,))  # whatever hangs
            timer.daemon = True
            timer.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Work on for a while, then let nobody in, and end what runs."""
        log.info("stopping in %g s", self.settings.grace)
        self.server_state.default_headers.append((b"connection", b"close"))
        await asyncio.sleep(self.settings.grace)
        with _nobody_new(self.listener):
            await asyncio.sleep(LAST)
            self.serving.draining = True
            with contextlib.suppress(OSError):  # it ends for all processes that have it open
                self.listener.shutdown(socket.SHUT_RDWR)
        await super().shutdown(sockets)
        log.info("stopped")


@contextlib.contextmanager
def _nobody_new(listener: socket.socket) -> Iterator[None]:
    """Meanwhile nobody can connect, while those that have connected are still accepted. Closing a
    socket at once would cut off whoever is in its queue."""
    if sys.platform != "linux":
        listener.listen(0)  # a queue of one, which is as near as it gets
        yield
        return
    # a filter of one instruction, BPF_RET 0: let no byte of a packet through (linux/filter.h)
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(instruction))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    yield
    with contextlib.suppress(OSError):  # for a worker that comes after
        listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def _allow_files(count: int) -> None:
    """Let the process have so many files open, if it may."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


# --- what is said at the start -------------------------------------------------------------------


def address(listener: socket.socket, tls: bool) -> str:
    """The URL of a bound socket, as one on this machine would write it."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def banner(url: str, server: Server) -> str:
    """Where it serves, what, and a line to try."""
    lines = [f"tinygrad_ish {__version__} serves at {url}/", ""]
    catalog, example = server.catalog, None
    for name, versions in catalog.models.items():
        for version in versions.values():
            lines.append(f"  {name} {version.number}: {_described(version)}")
            if name == catalog.default and version.state == "ready":
                example = version
    if not catalog.models:
        lines.append("  no models yet")
    if not server.keys and server.settings.host not in ("127.0.0.1", "localhost", "::1"):
        lines += ["", "anybody who reaches this address may use it: --keys FILE asks for keys"]
    if example is not None:
        keys = server.settings.keys
        how = f" (read -rs KEY, and paste a key of {keys} with the scope infer, goes first)"
        lines += ["", f"try{how if keys else ''}", f"  {curl(url, example, bool(keys))}"]
    return "\n".join([*lines, ""])


def _described(version: Version) -> str:
    if version.program is None:
        return f"{version.state}. {version.reason}".rstrip(". ")
    taken = ", ".join(map(_signature, version.program.inputs))
    given = ", ".join(map(_signature, version.program.outputs))
    return f"{taken} → {given}"


def _signature(s: Signature) -> str:
    shape = ", ".join("batch" if n is None else str(n) for n in s.shape)
    return f"{s.name} {s.dtype.name}[{shape}]"


def curl(url: str, version: Version, keyed: bool) -> str:
    """A line for a shell that asks a model for the answer to a row of its sample, or to zeros."""
    assert version.program is not None
    inputs = version.program.inputs
    key = ' -H "Authorization: Bearer $KEY"' if keyed else ""
    rows = [x[:1] if s.shape[:1] == (None,) else x
            for s, x in zip(inputs, version.program.sample_inputs, strict=True)]  # fmt: skip
    given = {s.name: x.tolist() for s, x in zip(inputs, rows, strict=True)}
    body = orjson.dumps({"inputs": given if len(inputs) > 1 else next(iter(given.values()))})
    if len(body) < SHORT or len(inputs) > 1 or inputs[0].shape[:1] != (None,):
        return (
            f"curl {url}/predict{key} -H 'Content-Type: application/json' "
            f"-d {shlex.quote(body.decode())}"
        )
    count = math.prod(rows[0].shape) * np.dtype(rows[0].dtype).itemsize
    return (
        f"head -c {count} /dev/zero | curl {url}/predict{key} "
        "-H 'Content-Type: application/octet-stream' --data-binary @-"
    )
