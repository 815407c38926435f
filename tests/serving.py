"""A server for tests: a process of its own, or a thread of this one; and small programs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tinygrad_ish as tg
from tinygrad_ish import nn


def publish(folder: Path, name: str = "small", **options: Any) -> Path:
    """A program of 4 features and 3 classes."""
    tg.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    path = folder / f"{name}.msgpack"
    tg.export(
        model, tg.randn(3, 4), path, inputs=["x"], outputs=["p"], labels=["a", "b", "c"],
        postprocess="softmax", **options,
    )  # fmt: skip
    return path


class Process:
    """``tinygrad-ish serve`` with NumPy alone, on a free port; its output as it comes."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tinygrad_ish", "serve", *arguments, "--port", "0",
             "--device", "numpy"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        self.errors: list[str] = []
        self.reader = threading.Thread(target=lambda: self.errors.extend(self.process.stderr or ()))
        self.reader.start()
        self.output = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if "curl" in line:
                break
        else:
            self.process.wait()
            self.reader.join()
            raise AssertionError(f"it did not start: {self.output}{''.join(self.errors)}")
        self.url = self.output.partition("serves at ")[2].split()[0].rstrip("/")
        self.port = int(self.url.rpartition(":")[2])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 20)

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """Status and body of an answer."""
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, body, told)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def predict(self, rows: Any = ((1, 2, 3, 4),), **headers: str) -> tuple[int, Any]:
        body = json.dumps({"inputs": rows}).encode()
        status, answer = self.ask("/predict", body, Content_Type="application/json", **headers)
        return status, json.loads(answer)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(30)
        self.reader.join()
        assert self.process.stdout is not None and self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        return status

    def logged(self) -> list[dict[str, Any]]:
        """The lines of the log, once it has ended."""
        return [json.loads(line) for line in self.errors]


@contextlib.contextmanager
def process(*arguments: str, **options: Any) -> Iterator[Process]:
    """A process that is gone afterwards."""
    running = Process(*arguments, **options)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.wait()


@contextlib.contextmanager
def thread(app: Any) -> Iterator[str]:
    """An application served in this process; its URL."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, ws="none", lifespan="on", interface="asgi3")
    server = uvicorn.Server(config)
    started = threading.Event()

    async def run() -> None:
        task = asyncio.ensure_future(server.serve([listener]))
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        started.set()
        await task

    running = threading.Thread(target=asyncio.run, args=(run(),))
    running.start()
    assert started.wait(20)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    running.join(20)
