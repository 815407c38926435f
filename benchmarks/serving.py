"""Servers of the same network, raced: ``python -m benchmarks.serving``.

A 784-128-10 network behind this project's server, LitServe, BentoML, MLServer, FastAPI and Flask
with onnxruntime, a handler of Starlette, orjson and NumPy, and, as the limit, a Starlette that
gives back what it got. Each server runs on one core, the load on another, and each answers one row
correctly before it is measured.

Closed loop (wrk): so many connections ask one row each, again as soon as they have the answer.
Open loop: requests leave at fixed times whatever comes back, and latency counts from these times,
so a server that falls behind shows it.

The peers live in an environment of their own, since they pin what they need: --peers names
Pythons that have some of them; who is in none is named and left out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import machine, report
from .inference import onnx_file
from .models import MODELS, Weights, first_weights

MODEL = MODELS[0]
PORT = 8700
JSON, RAW = "application/json", "application/octet-stream"
HERE = Path(__file__).resolve().parent


class Server(NamedTuple):
    """A server: the module that it needs, and where it takes JSON and raw rows."""

    name: str
    module: str
    run: str  # a function of serving_peers, or options of ours
    json: str = "/predict"
    raw: str | None = None
    v2: bool = False  # the JSON is that of the Open Inference Protocol


SERVERS = [
    Server("echo", "starlette", "echo", raw="/predict"),
    Server("Starlette, orjson, NumPy", "starlette", "minimal", raw="/predict"),
    Server("tinygrad_ish", "tinygrad_ish", "", raw="/predict"),
    Server("tinygrad_ish, no batches", "tinygrad_ish", "--max-batch 1", raw="/predict"),
    Server("FastAPI, onnxruntime", "fastapi", "fastapi", raw="/raw"),
    Server("Flask, gunicorn, onnxruntime", "flask", "flask", raw="/raw"),
    Server("LitServe", "litserve", "litserve"),
    Server("LitServe, batches", "litserve", "litserve_batched"),
    Server("BentoML", "bentoml", "bentoml"),
    Server("BentoML, batches", "bentoml", "bentoml_batched"),
    Server("MLServer", "mlserver", "mlserver", json="/v2/models/digits/infer", v2=True),
]


def body(server: Server, row: np.ndarray, kind: str) -> bytes:
    """A request for one row."""
    if kind == RAW:
        return row.tobytes()
    if server.v2:
        tensor = {"name": "x", "shape": [1, row.size], "datatype": "FP32", "data": row.ravel()}
        return json.dumps({"inputs": [{**tensor, "data": row.ravel().tolist()}]}).encode()
    return json.dumps({"inputs": row.tolist()}).encode()


def scores(server: Server, content: bytes, kind: str) -> np.ndarray:
    """The scores in an answer."""
    if kind == RAW:
        return np.frombuffer(content, np.float32)
    answer = json.loads(content)
    if isinstance(answer, dict):
        answer = answer["outputs"]
        answer = answer[0]["data"] if server.v2 else answer["output"]
    return np.asarray(answer, np.float32).ravel()


# --- processes ---------------------------------------------------------------------------------


def prepare(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write the network for everybody; a row and its scores."""
    import tinygrad_ish as tg

    from .peers import Eager

    weights: Weights = first_weights(MODEL)
    row = np.random.default_rng(1).random((1, MODEL.sizes[0]), dtype=np.float32)
    row = np.round(row, 4)
    tg.export(Eager(MODEL, weights, "").model, row.repeat(2, 0), folder / "digits.msgpack")
    (folder / "model.onnx").write_bytes(onnx_file(weights))
    arrays = {f"{k}{i}": a for i, pair in enumerate(weights) for k, a in zip("wb", pair)}
    np.savez(folder / "weights.npz", **arrays)
    x = row.astype(np.float64)
    for i, (w, b) in enumerate(weights):
        x = x @ w.T.astype(np.float64) + b
        x = np.maximum(x, 0) if i < len(weights) - 1 else x
    return row, x.ravel()


def python_for(server: Server, peers: Sequence[str]) -> str | None:
    """A Python that has what a server needs."""
    for python in [sys.executable, *peers]:
        code = f"import {server.module}" + (", onnxruntime" if "litserve" in server.run else "")
        if not subprocess.run([python, "-c", code], capture_output=True, check=False).returncode:
            return python
    return None


class Failed(RuntimeError):
    """A server that does not start, or answers wrongly."""


@contextlib.contextmanager
def running(
    server: Server, python: str, folder: Path, row: np.ndarray, expected: np.ndarray, core: int
) -> Iterator[dict[str, float]]:
    """A server that has answered correctly: its process and seconds from start to that answer."""
    if server.module == "tinygrad_ish":
        command = [python, "-m", "tinygrad_ish", "serve", str(folder / "digits.msgpack"),
                   "--port", str(PORT), *server.run.split()]  # fmt: skip
    else:
        command = [python, str(HERE / "serving_peers.py"), server.run, str(PORT), str(folder)]
    threads = dict.fromkeys(["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"], "1")
    with open(folder / "log", "w+b") as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={**os.environ, **threads}, start_new_session=True,
        )  # fmt: skip
        try:
            facts = {"pid": process.pid}
            for kind in [JSON] if server.raw is None else [JSON, RAW]:
                _check(server, process, row, expected, kind)
                facts.setdefault("start", time.perf_counter() - start)
            yield facts
        except Failed as error:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()[-3:]
            raise Failed(f"{error}; {' | '.join(lines)}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            time.sleep(0.5)


def _check(server: Server, process: Any, row: np.ndarray, expected: np.ndarray, kind: str) -> None:
    """Wait for the first answer, and compare it."""
    end = time.monotonic() + 60
    url = f"http://127.0.0.1:{PORT}{server.raw if kind == RAW else server.json}"
    request = urllib.request.Request(
        url, body(server, row, kind), {"Content-Type": kind, "Accept": kind}
    )
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                content = response.read()
            break
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            if process.poll() is not None or time.monotonic() > end:
                raise Failed(f"no answer: {error}") from None
            time.sleep(0.01)
    if server.run == "echo":
        return
    found = scores(server, content, kind)
    if found.shape != expected.shape or np.abs(found - expected).max() > 1e-4:
        raise Failed(f"wrong answer: {content[:200]!r}")


def memory(pid: int, kind: str = "Pss:") -> float:
    """MiB of a process and its children: private memory, and its share of what is shared."""
    total, pids = 0, [pid]
    while pids:
        pid = pids.pop()
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                total += int(line.split()[1]) if line.startswith(kind) else 0
            children = Path(f"/proc/{pid}/task").glob("*/children")
            pids += [int(n) for path in children for n in path.read_text().split()]
    return total / 1024


# --- load --------------------------------------------------------------------------------------

LUA = """
wrk.method = "POST"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
wrk.headers["Content-Type"] = "{kind}"
wrk.headers["Accept"] = "{kind}"
function done(summary, latency, requests)
  io.write(string.format(
    'RESULT {{"rate": %f, "p50": %f, "p99": %f, "p99.9": %f, "errors": %d}}\\n',
    summary.requests / summary.duration * 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3,
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write
    + summary.errors.timeout))
end
"""


def closed(
    server: Server, row: np.ndarray, kind: str, connections: int, seconds: float, core: int
) -> dict[str, float]:
    """Requests/s and percentiles in ms, by wrk."""
    path = server.raw if kind == RAW else server.json
    with tempfile.TemporaryDirectory() as folder:
        request, script = Path(folder, "body"), Path(folder, "script.lua")
        request.write_bytes(body(server, row, kind))
        script.write_text(LUA.format(body=request, kind=kind))
        command = ["taskset", "-c", str(core), "wrk", "-t1", f"-c{connections}", "-s", str(script)]
        command += ["--timeout", "30s", f"-d{seconds:.0f}s", f"http://127.0.0.1:{PORT}{path}"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "RESULT" not in output:
        raise Failed(f"wrk: {output[-300:]}")
    result: dict[str, float] = json.loads(output.partition("RESULT ")[2].replace("nan", "0"))
    return result


class Pipe(asyncio.Protocol):
    """A connection of the open loop: one request at a time."""

    def __init__(
        self,
        idle: deque[Pipe],
        latencies: list[float],
        codes: dict[str, int],
        right: bytes | None = None,
    ) -> None:
        self.idle, self.latencies, self.codes, self.right = idle, latencies, codes, right
        self.due: float | None = None
        self.received = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, request: bytes, due: float) -> None:
        """Send a request that was to leave at that time."""
        self.due = due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, gap, rest = self.received.partition(b"\r\n\r\n")
        if not gap:
            return
        lower = head.lower()
        length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(rest) < length:
            return
        self.received = b""
        code = head[9:12].decode()
        if code == "200":
            assert self.due is not None
            self.latencies.append(time.perf_counter() - self.due)
            code = "200" if self.right in (None, rest) else "wrong"
        self._count(code)
        self.due = None
        if b"connection: close" not in lower:
            self.idle.append(self)

    def _count(self, what: str) -> None:
        self.codes[what] = self.codes.get(what, 0) + 1

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self.due is not None:
            self._count("lost")
        if self in self.idle:
            self.idle.remove(self)


async def arrivals(
    request: bytes, rate: float, seconds: float, connections: int, right: bytes | None = None
) -> dict[str, Any]:
    """Requests at a fixed rate; latencies in ms from when each was due. ``right`` is the body that
    all answers must have."""
    loop = asyncio.get_running_loop()
    idle: deque[Pipe] = deque()
    latencies: list[float] = []
    codes: dict[str, int] = {}
    pipes: list[Pipe] = []
    for _ in range(connections):
        connection = await loop.create_connection(
            lambda: Pipe(idle, latencies, codes, right), "127.0.0.1", PORT
        )
        pipes.append(connection[1])
    idle += pipes
    start, sent = time.perf_counter(), 0
    while (now := time.perf_counter() - start) < seconds:
        while sent < now * rate and idle:
            # it keeps its time though no connection was free then: a client would have waited
            idle.popleft().ask(request, start + sent / rate)
            sent += 1
        await asyncio.sleep(0.0002)
    end = time.perf_counter() + 15
    while any(pipe.due is not None and pipe.transport for pipe in pipes):
        if time.perf_counter() > end:
            codes["hung"] = sum(pipe.due is not None for pipe in pipes)
            break
        await asyncio.sleep(0.01)
    for pipe in pipes:
        if pipe.transport:
            pipe.transport.close()
    p50, p99, p999 = np.percentile(latencies or [np.nan], [50, 99, 99.9]) * 1e3
    return {
        "rate": rate, "answered": len(latencies) / seconds, "not sent": int(rate * seconds) - sent,
        "p50": float(p50), "p99": float(p99), "p99.9": float(p999), "codes": codes,
    }  # fmt: skip


def packet(server: Server, row: np.ndarray, kind: str) -> bytes:
    """A request for one row, with its headers."""
    path = server.raw if kind == RAW else server.json
    content = body(server, row, kind)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nAccept: {kind}\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """This process on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# --- the race ----------------------------------------------------------------------------------


def race(server: Server, python: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All measurements of one server."""
    row, expected = prepare(folder)
    result: dict[str, Any] = {"closed": {}, "open": []}
    cores = sorted(os.sched_getaffinity(0))
    with running(server, python, folder, row, expected, cores[0]) as facts:
        result["start"] = facts["start"]
        for kind in [JSON] if server.raw is None else [JSON, RAW]:
            closed(server, row, kind, 16, 2, cores[-1])  # caches, and batch sizes seen once
            for connections in args.connections:
                found = closed(server, row, kind, connections, args.seconds, cores[-1])
                result["closed"][f"{kind} {connections}"] = found
        result["memory"] = memory(int(facts["pid"]))
        peak = result["closed"][f"{JSON} {args.connections[-1]}"]["rate"]
        for share in args.shares:
            load = arrivals(packet(server, row, JSON), share * peak, args.seconds, 64)
            with on_core(cores[-1]):
                result["open"].append({"share": share, **asyncio.run(load)})
    return result


def show(results: dict[str, dict[str, Any]], connections: Sequence[int]) -> None:
    """Tables of all that was measured."""
    for kind in (JSON, RAW):
        print(f"\n{kind}: requests/s (p50 / p99 / p99.9 in ms) by connections")
        rows = [
            [name, *(_cell(result["closed"].get(f"{kind} {n}")) for n in connections)]
            for name, result in results.items()
        ]
        report.table(["server", *map(str, connections)], [r for r in rows if any(r[1:])])
    print("\nseconds from start to the first answer, and MiB after the load")
    report.table(
        ["server", "start", "memory"], [[n, r["start"], r["memory"]] for n, r in results.items()]
    )
    print("\nopen loop, JSON: p50 / p99 / p99.9 in ms at shares of each one's own best rate")
    shares = [str(o["share"]) for o in next(iter(results.values()))["open"]]
    rows = [[name, *(_cell(o) for o in result["open"])] for name, result in results.items()]
    report.table(["server", *shares], rows)


def _cell(found: dict[str, Any] | None) -> str | None:
    if found is None:
        return None
    times = " / ".join(f"{found[p]:.3g}" for p in ("p50", "p99", "p99.9"))
    bad = found.get("errors") or sum(n for k, n in found.get("codes", {}).items() if k != "200")
    return f"{found.get('answered', found['rate']):.0f} ({times})" + (f" {bad} bad" if bad else "")


def draw(results: dict[str, dict[str, Any]], axes: Any) -> None:
    """Requests/s by connections, and p99 by rate."""
    for name, result in results.items():
        found = [(int(k.split()[1]), c["rate"]) for k, c in result["closed"].items() if JSON in k]
        axes[0].plot(*zip(*found), marker="o", label=name)
        found = [(o["rate"], o["p99"]) for o in result["open"]]
        if found:
            axes[1].plot(*zip(*found), marker="o", label=name)
    axes[0].set(xscale="log", xlabel="connections", ylabel="requests/s", title="JSON, one row")
    axes[1].set(yscale="log", xlabel="requests/s sent", ylabel="p99 in ms", title="open loop")
    axes[0].legend(fontsize=7)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the time")
    parser.add_argument("--only", nargs="+", help="some servers, by their names")
    parser.add_argument("--peers", nargs="*", default=[], help="Pythons that have the peers")
    args = parser.parse_args()
    args.seconds = 2 if args.quick else 8
    args.connections = [1, 16, 64, 256]
    args.shares = [0.5, 0.9, 1.1, 1.5] if args.quick else [0.25, 0.5, 0.75, 0.9, 1.1, 1.5]
    if shutil.which("wrk") is None or shutil.which("taskset") is None:
        print("this needs wrk and taskset: apt install wrk util-linux", file=sys.stderr)
        return 2
    facts = machine.describe()
    report.heading(facts)
    results: dict[str, dict[str, Any]] = {}
    failed = {}
    for server in SERVERS:
        if args.only and server.name not in args.only:
            continue
        python = python_for(server, args.peers)
        if python is None:
            failed[server.name] = f"{server.module} is not installed"
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                results[server.name] = race(server, python, args, Path(folder))
            except Failed as error:
                failed[server.name] = str(error)
    if results:
        show(results, args.connections)
    for name, why in failed.items():
        print(f"{name}: left out: {why}")
    report.save("serving", {"machine": facts, "results": results, "left out": failed})
    report.picture("serving", lambda axes: draw(results, axes), 2)
    return 1 if any("wrong answer" in why for why in failed.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
