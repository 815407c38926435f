"""Several processes on one port: a parent that holds a socket for each and starts again whoever
dies. Nothing is shared but the port, the pages of mapped weights, and a folder: of the counts
(metrics.py), and of what all of them are to load and unload (together.py)."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from .settings import Settings

__all__ = ["Worker", "supervise"]

log = logging.getLogger("tinygrad_ish.serve")
PAUSE = 1.0  # seconds before one that died is started again


class Worker(NamedTuple):
    """What a worker knows of the others."""

    number: int
    workers: int  # how many there are
    folder: str  # that they share
    ready: Any  # an event, set when it serves
    parent: int
    first: bool  # whether it is to say where it serves


def supervise(paths: list[str], settings: Settings, listeners: Sequence[socket.socket]) -> int:
    """Run a worker on each socket until a signal comes. The exit status."""
    from . import logs

    logs.configure(settings.log_level, settings.log_format)
    with tempfile.TemporaryDirectory(prefix="tinygrad-ish-serve-") as folder:
        return _Parent(paths, settings, listeners, folder).run()


class _Parent:
    def __init__(
        self, paths: list[str], settings: Settings, listeners: Sequence[socket.socket], folder: str
    ) -> None:
        self.paths = paths
        self.settings = settings
        self.listeners = listeners
        self.folder = folder
        self.context = multiprocessing.get_context("spawn")
        self.events = [self.context.Event() for _ in listeners]
        self.processes: dict[int, Any] = {}
        self.stopping = False

    def run(self) -> int:
        for sign in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sign, self.stop)
        for number in range(len(self.listeners)):
            self.start(number, number == 0)
        status = 0
        while self.processes:
            multiprocessing.connection.wait([p.sentinel for p in self.processes.values()], 0.5)
            for number, process in list(self.processes.items()):
                if process.is_alive():
                    continue
                del self.processes[number]
                if self.stopping:
                    continue
                if not self.events[number].is_set():
                    log.error("worker %d could not start; all stop", number)
                    status = 1
                    self.stop()
                else:
                    log.error("worker %d died (%s); another starts", number, process.exitcode)
                    time.sleep(PAUSE)
                    self.start(number, False)
        return status

    def start(self, number: int, first: bool) -> None:
        """Start a worker, unless all are to stop."""
        if self.stopping:
            return
        self.events[number].clear()
        workers = len(self.listeners)
        worker = Worker(number, workers, self.folder, self.events[number], os.getpid(), first)
        process = self.context.Process(
            target=_work, args=(self.paths, self.settings, self.listeners[number], worker)
        )
        process.start()
        self.processes[number] = process
        if self.stopping:  # told so just now
            process.terminate()

    def stop(self, *signal_and_frame: Any) -> None:
        """Let all workers end; each drains for itself, and is bounded in time."""
        self.stopping = True
        for process in self.processes.values():
            process.terminate()


def _work(paths: list[str], settings: Settings, listener: socket.socket, worker: Worker) -> None:
    import tinygrad_ish

    from .main import serve

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    tinygrad_ish.set_num_threads(max(1, (cores or 1) // settings.workers))
    serve(paths, settings, listener, worker)
