"""This project's server under what must not break it: ``python -m benchmarks.serving_soak NAME``.

overload   five times as many requests as it can answer: throughput, answers, memory, recovery
reloads    100 new versions of a model under load: all is answered; what a neighbour feels
sigterm    20 times told to stop under load: every request that it took is answered, exit with 0
memory     a million requests: memory

The exit status is 1 where something is not as it must be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import machine, report
from .models import MODELS, first_weights
from .peers import Eager
from .serving import (
    PORT,
    RAW,
    Server,
    arrivals,
    closed,
    memory,
    on_core,
    packet,
)

ROW = np.round(np.random.default_rng(1).random((1, 784), dtype=np.float32), 4)
OWN = "Pss_Anon:"  # a library's memory is shared with whoever else runs now
WIDE, DEPTH = 2048, 16  # of a network slow enough to be overloaded by one process


def start(*options: str) -> Any:
    """A server on the first core, ready."""
    command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-m",
               "tinygrad_ish", "serve", "--port", str(PORT), *options]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=5).close()
            return process
        except OSError:
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with {process.returncode}") from None
            time.sleep(0.02)


def stop(process: Any) -> int:
    """Its exit status."""
    process.send_signal(signal.SIGTERM)
    return int(process.wait(30))


def answer(path: str = "/predict") -> bytes:
    """What one raw row gets."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}{path}", ROW.tobytes(), {"Content-Type": RAW, "Accept": RAW}
    )
    with urllib.request.urlopen(request, timeout=5) as response:
        content: bytes = response.read()
    return content


def load(path: str, rate: float, seconds: float, connections: int, right: bytes | None) -> Any:
    """Raw rows at a rate."""
    server = Server("", "", "", raw=path)
    return arrivals(packet(server, ROW, RAW), rate, seconds, connections, right)


def small(path: Path, seed: float = 0.0) -> None:
    """A 784-128-10 network; another seed shifts its scores."""
    import tinygrad_ish as tg

    weights = first_weights(MODELS[0])
    last, bias = weights[-1]
    model = Eager(MODELS[0], [*weights[:-1], (last, bias + np.float32(seed))], "").model
    tg.export(model, ROW.repeat(2, 0), path)


def large(path: Path) -> None:
    """A network that takes milliseconds for a row."""
    import tinygrad_ish as tg
    from tinygrad_ish import nn

    tg.manual_seed(0)
    first, again, last = nn.Linear(784, WIDE), nn.Linear(WIDE, WIDE), nn.Linear(WIDE, 10)

    def model(x: tg.Tensor) -> tg.Tensor:
        x = first(x).relu()
        for _ in range(DEPTH):
            x = again(x).relu()
        return last(x)

    tg.export(model, ROW.repeat(2, 0), path)


def overload(folder: Path, seconds: float, core: int) -> tuple[dict[str, Any], bool]:
    """Five times its capacity."""
    large(folder / "m.msgpack")
    process = start(str(folder / "m.msgpack"), "--timeout", "2")
    try:
        right = answer()
        server = Server("", "", "", raw="/predict")
        closed(server, ROW, RAW, 64, 2, core)
        peak = closed(server, ROW, RAW, 64, 8, core)["rate"]
        with on_core(core):
            asyncio.run(load("/predict", 5 * peak, 3, 1500, right))  # sizes of batches seen once
            before = memory(process.pid, OWN)
            found = asyncio.run(load("/predict", 5 * peak, seconds, 1500, right))
        began, waits = time.perf_counter(), []
        while not waits or waits[-1] > 0.1:
            at = time.perf_counter()
            if answer() != right:
                raise RuntimeError("wrong answer")
            waits.append(time.perf_counter() - at)
        recovery = time.perf_counter() - began
        after = memory(process.pid, OWN)
    finally:
        code = stop(process)
    good = found["answered"] >= 0.9 * peak and set(found["codes"]) <= {"200", "429", "504"}
    good = good and recovery < 1 and after - before < 30 and code == 0
    facts = {"peak": peak, "memory before": before, "memory after": after, "recovery": recovery}
    return {**facts, **found}, good


def publishing(programs: list[Path], folder: Path, interval: float, count: int) -> None:
    """Publish one and another in turn."""
    from tinygrad_ish.deploy.registry import publish

    for n in range(count):
        time.sleep(interval)
        publish(programs[(n + 1) % 2], folder)


def reloads(folder: Path, seconds: float, core: int, count: int = 100) -> tuple[Any, bool]:
    """New versions of one model, and a neighbour: with them published elsewhere at first, for that
    takes its time of this machine too."""
    programs = [folder / f"{n}.msgpack" for n in range(2)]
    for n, path in enumerate(programs):
        small(path, float(n))
    for name in ("changing", "neighbour"):
        publishing(programs[::-1], folder / "models" / name, 0.0, 1)
    process = start(str(folder / "models"))

    async def both() -> list[Any]:
        right = answer("/models/neighbour/predict")
        return await asyncio.gather(
            load("/models/changing/predict", 300, seconds, 16, None),
            load("/models/neighbour/predict", 300, seconds, 16, right),
        )

    def phase(target: Path) -> list[Any]:
        args = (programs, target / "changing", seconds / count, count)
        publisher = multiprocessing.get_context("spawn").Process(target=publishing, args=args)
        with on_core(core):
            publisher.start()
            found = asyncio.run(both())
            publisher.join()
        return found

    try:
        quiet = phase(folder / "elsewhere")
        before = memory(process.pid, OWN)
        busy = phase(folder / "models")
        time.sleep(2)
        after = memory(process.pid, OWN)
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/models") as response:
            listed = json.load(response)["models"][0]["versions"]
    finally:
        code = stop(process)
    ready = [v["version"] for v in listed if v["state"] == "ready"]
    good = ready == [str(count + 1)] and code == 0
    good = good and all(set(found["codes"]) == {"200"} for found in busy)
    ratio = busy[1]["p99"] / quiet[1]["p99"]
    facts = {"memory before": before, "memory after": after, "p99 of the neighbour, ratio": ratio}
    return {**facts, "quiet": quiet, "busy": busy}, good and ratio <= 1.5


def sigterm(folder: Path, seconds: float, core: int, count: int = 20) -> tuple[Any, bool]:
    """Told to stop under load."""
    small(folder / "m.msgpack")
    rounds, good = [], True
    for _ in range(count):
        process = start(str(folder / "m.msgpack"))
        right = answer()
        timer = threading.Timer(1.0, process.send_signal, [signal.SIGTERM])
        timer.start()
        with on_core(core):
            found = asyncio.run(load("/predict", 1000, 3, 32, right))
        try:
            code = process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            code = -9
        rounds.append({"exit": code, **found["codes"]})
        good = good and code == 0 and set(found["codes"]) <= {"200", "503"}
    return {"rounds": rounds}, good


def flat(folder: Path, seconds: float, core: int) -> tuple[Any, bool]:
    """A million requests, or as many as the time allows."""
    small(folder / "m.msgpack")
    process = start(str(folder / "m.msgpack"))
    server = Server("", "", "", raw="/predict")
    total, sizes = 0.0, []
    try:
        while total < 1e6 and len(sizes) < seconds / 10:
            total += 10 * closed(server, ROW, RAW, 64, 10, core)["rate"]
            sizes.append(memory(process.pid, OWN))
    finally:
        code = stop(process)
    facts = {"requests": total, "MiB": sizes}
    return facts, code == 0 and sizes[-1] - sizes[min(1, len(sizes) - 1)] < 5


SOAKS: dict[str, tuple[Callable[..., tuple[Any, bool]], float]] = {
    "overload": (overload, 60), "reloads": (reloads, 40), "sigterm": (sigterm, 60),
    "memory": (flat, 600),
}  # fmt: skip


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SOAKS)}; or all")
    parser.add_argument("--seconds", type=float, help="instead of the usual time")
    args = parser.parse_args()
    facts, status = machine.describe(), 0
    report.heading(facts)
    core = max(os.sched_getaffinity(0))
    for name in args.names or SOAKS:
        run, usual = SOAKS[name]
        with tempfile.TemporaryDirectory() as folder:
            found, good = run(Path(folder), args.seconds or usual, core)
        status = status if good else 1
        print(f"\n{name}: {'good' if good else 'NOT AS IT MUST BE'}\n{json.dumps(found, indent=1)}")
        report.save(f"serving-{name}", {"machine": facts, "good": good, **found})
    return status


if __name__ == "__main__":
    sys.exit(main())
