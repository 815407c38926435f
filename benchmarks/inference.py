"""Latency and throughput of a trained network: ``python -m benchmarks.inference``.

A 784-128-10 network answers batches of 1 to 1024 rows: this project's model under ``no_grad``,
compiled, and exported as a program; onnxruntime, PyTorch in inference mode, and NumPy by hand. Each
runs in processes of its own, on one thread and on all; the better is shown for each batch. The
outputs are compared with float64 NumPy's first; where one differs the exit status is 1. Then the
contenders take turns of calls that are timed one by one, from a NumPy array to a NumPy array.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import machine, report
from .children import Child, ChildError
from .models import MODELS, Weights, first_weights, samples
from .peers import Compiled, Eager, Peer, Torch

MODEL = MODELS[0]
BATCHES = (1, 4, 16, 64, 256, 1024)
TURN_SECONDS = 0.02
TOLERANCE = 1e-4  # of an output, absolute; they are around 1

Predict = Callable[[np.ndarray], np.ndarray]


def eager(weights: Weights, threads: int) -> Predict:
    """The model called line by line."""
    import tinygrad_ish as tg

    model = Eager(MODEL, weights, "").model.eval()

    def predict(x: np.ndarray) -> np.ndarray:
        with tg.no_grad():
            return model(tg.from_numpy(x)).numpy()

    return predict


def compiled(weights: Weights, threads: int) -> Predict:
    """The model recorded for each batch size, and replayed."""
    import tinygrad_ish as tg

    model = Eager(MODEL, weights, "").model.eval()
    forward = tg.compile(tg.no_grad()(lambda x: model(x)))

    def predict(x: np.ndarray) -> np.ndarray:
        return forward(tg.from_numpy(x)).numpy()

    return predict


def exported(weights: Weights, threads: int) -> Predict:
    """The model exported to a file, and loaded."""
    import tinygrad_ish as tg

    model = Eager(MODEL, weights, "").model
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.msgpack")
        tg.export(model, np.zeros((1, MODEL.sizes[0]), np.float32), path)
        return tg.load_program(path)


def torch(weights: Weights, threads: int) -> Predict:
    """PyTorch's model in eval mode, in inference mode."""
    import torch

    model = Torch(MODEL, weights, "").model.eval()

    def predict(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(x)).numpy()

    return predict


def onnxruntime(weights: Weights, threads: int) -> Predict:
    """A session with all graph optimizations, its graph a Gemm and a Relu for each layer."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(
        onnx_file(weights), options, providers=["CPUExecutionProvider"]
    )
    return lambda x: session.run(None, {"x": x})[0]


def onnx_file(weights: Weights) -> bytes:
    """The network as ONNX."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, last = [], [], "x"
    for i, (w, b) in enumerate(weights):
        constants += [numpy_helper.from_array(w, f"w{i}"), numpy_helper.from_array(b, f"b{i}")]
        nodes.append(helper.make_node("Gemm", [last, f"w{i}", f"b{i}"], [f"z{i}"], transB=1))
        last = f"z{i}"
        if i < len(weights) - 1:
            nodes.append(helper.make_node("Relu", [last], [f"h{i}"]))
            last = f"h{i}"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", MODEL.sizes[0]])
    y = helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", MODEL.sizes[-1]])
    graph = helper.make_graph(nodes, "mlp", [x], [y], constants)
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


def numpy(weights: Weights, threads: int) -> Predict:
    """Products, bias and ReLU in place."""

    def predict(x: np.ndarray) -> np.ndarray:
        for w, b in weights[:-1]:
            x = x @ w.T
            x += b
            np.maximum(x, 0, out=x)
        w, b = weights[-1]
        x = x @ w.T
        x += b
        return x

    return predict


# name: (how it is made, the module that it needs)
CONTENDERS = {
    "tinygrad_ish program": (exported, "tinygrad_ish"),
    "tinygrad_ish compiled": (compiled, "tinygrad_ish"),
    "tinygrad_ish": (eager, "tinygrad_ish"),
    "onnxruntime": (onnxruntime, "onnxruntime"),
    "torch": (torch, "torch"),
    "numpy": (numpy, "numpy"),
}


def why_missing(name: str) -> str | None:
    """Why a contender cannot run here; None if it can."""
    needed = [CONTENDERS[name][1], *(["onnx"] if name == "onnxruntime" else [])]
    for module in needed:
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed: pip install -e '.[bench]'"
    return Compiled.why_missing() if name == Compiled.name else None


class Server:
    """A contender in its process."""

    def __init__(self, name: str, threads: int) -> None:
        self.predict = CONTENDERS[name][0](first_weights(MODEL), threads)
        self.rows = np.concatenate(samples(MODEL)[0])
        self.at = 0

    def check(self, batch: int) -> float:
        """The largest difference from NumPy in float64."""
        x = self.rows[:batch]
        h = x.astype(np.float64)
        weights = first_weights(MODEL)
        for i, (w, b) in enumerate(weights):
            h = h @ w.T + b
            h = np.maximum(h, 0) if i < len(weights) - 1 else h
        return float(np.abs(self.predict(x) - h).max())

    def turn(self, batch: int) -> list[float]:
        """Seconds of each call, after a few that are not counted."""
        times: list[float] = []
        start = end = time.perf_counter()
        while end - start < TURN_SECONDS or len(times) < 5:
            self.at = (self.at + batch) % (len(self.rows) - batch + 1)
            x = self.rows[self.at : self.at + batch]
            before = time.perf_counter()
            self.predict(x)
            end = time.perf_counter()
            times.append(end - before)
        return times[3:]


def start(names: Sequence[str]) -> tuple[dict[tuple[str, int], Child], dict[str, str]]:
    """The contenders by name and number of threads, and why others do not take part."""
    running: dict[tuple[str, int], Child] = {}
    left_out: dict[str, str] = {}
    for name in names:
        reason = why_missing(name)
        if reason is not None:
            left_out[name] = reason
            continue
        for threads in sorted({1, machine.threads()}):
            environment = Peer.environment(threads, "")
            running[name, threads] = Child(Server, name, threads, environment=environment)
    for key, child in list(running.items()):
        try:
            child.end()
        except ChildError as error:
            left_out[key[0]] = str(error)
            child.close()
            del running[key]
    return running, left_out


def measure(running: dict[tuple[str, int], Child], batch: int, rounds: int) -> dict[str, Any]:
    """Latencies at one batch size."""
    wrong = {}
    for (name, _), child in running.items():
        error = child.ask("check", batch)
        if not error <= TOLERANCE:
            wrong[name] = f"an output is off by {error:.3g}"
    times: dict[str, dict[int, list[float]]] = {}
    for _ in range(rounds):
        for (name, threads), child in running.items():
            found = [1e6 * t for t in child.ask("turn", batch)]
            times.setdefault(name, {}).setdefault(threads, []).extend(found)
    return {
        "batch": batch,
        "wrong": wrong,
        "contenders": {name: _summary(own, batch) for name, own in times.items()},
    }


def _summary(times: dict[int, list[float]], batch: int) -> dict[str, float]:
    """µs of the better number of threads."""
    threads = min(times, key=lambda n: statistics.median(times[n]))
    p50, p99 = np.percentile(times[threads], [50, 99])
    rate = 1e6 * batch / statistics.fmean(times[threads])
    return {"p50": float(p50), "p99": float(p99), "rows_per_s": rate, "threads": threads}


def show(result: dict[str, Any]) -> None:
    """Print the table of one batch size."""
    found = result["contenders"]
    print(f"\nbatch {result['batch']}")
    first = found.get("onnxruntime", found["numpy"] if "numpy" in found else {"p50": float("nan")})
    rows = [
        [
            name,
            c["p50"],
            c["p99"],
            f"{c['rows_per_s']:,.0f}",
            f"{c['p50'] / first['p50']:.2f}",
            c["threads"],
        ]
        for name, c in sorted(found.items(), key=lambda item: item[1]["p50"])
    ]
    versus = "/ onnxruntime" if "onnxruntime" in found else "/ numpy"
    report.table(["µs a call", "p50", "p99", "rows/s", versus, "threads"], rows)


def draw(results: list[dict[str, Any]], axes: list[Any]) -> None:
    """Median and 99th percentile of the latency against the batch size."""
    for axis, kind in zip(axes, ("p50", "p99")):
        for name in results[0]["contenders"]:
            points = [(r["batch"], r["contenders"][name][kind]) for r in results]
            axis.plot(*zip(*points), "o-", label=name)
        axis.set(
            title=f"{kind} of a call, µs", xlabel="rows in a batch", xscale="log", yscale="log"
        )
        axis.legend(fontsize=8)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.inference", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--peers", metavar="A,B", help=f"of {', '.join(CONTENDERS)}")
    add("--rounds", type=int, default=15, help="turns of each contender (15)")
    add("--quick", action="store_true", help="batches of 1 and 64, 3 rounds")
    args = parser.parse_args(argv)
    args.peers = args.peers.split(",") if args.peers else list(CONTENDERS)
    unknown = set(args.peers) - set(CONTENDERS)
    if unknown:
        parser.error(f"--peers {unknown.pop()}: expected some of {', '.join(CONTENDERS)}")
    args.batches = (1, 64) if args.quick else BATCHES
    args.rounds = 3 if args.quick else args.rounds
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the contenders asked for; 1 if one of them computed something else."""
    args = parse(argv)
    facts = machine.describe()
    report.heading(facts)
    running, left_out = start(args.peers)
    for name, reason in left_out.items():
        print(f"{name}: left out: {reason}")
    results = []
    for batch in args.batches:
        results.append(measure(running, batch, args.rounds))
        show(results[-1])
    for child in running.values():
        child.close()
    report.save("inference", {"machine": facts, "results": results, "left_out": left_out})
    report.picture("inference", lambda axes: draw(results, axes), 2)
    wrong = {f"{n}: {e}" for result in results for n, e in result["wrong"].items()}
    for line in sorted(wrong):
        print(line, file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
