"""An epoch of the handwritten digits on the GPU, and what launches and copies cost there: two parts
of benchmarks.gpu.

The 8,004 images lie on the GPU as bytes; a step gathers and scales 64 of them, and trains. At the
end of an epoch its losses are read. PyTorch does the same, line by line and as one CUDA graph.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from . import machine
from .children import ChildError
from .gpu_clock import Call, Run, Worker, graphed, torch_graphed, torch_or_why
from .gpu_peers import TorchGraph
from .models import Model, first_weights

FOLDER = "data/mnist10k"
MODEL = Model((784, 128, 10), 64, "adam", 1e-3)
SCALE = 1 / 255
ACCURATE = 0.93  # what every contender reaches on the test images after 5 epochs


def images(train: bool, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The images uint8 (N, 784) and labels int64 (N,), the first so many."""
    from tinygrad_ish.datasets import MNIST

    found = MNIST(FOLDER, train)
    pixels = found.data.numpy().reshape(len(found), -1)
    return pixels[:most].copy(), found.targets.numpy()[:most].copy()


class Digits:
    """A contender: ``epoch`` trains and gives the mean loss, ``accuracy`` looks at test images."""

    name: str

    def __init__(self, most: int) -> None:
        self.train, self.test = images(True, most), images(False, most)
        self.steps = len(self.train[0]) // MODEL.batch
        self.order = np.random.default_rng(0)
        self.make()

    def make(self) -> None:
        """Put everything on the GPU."""
        raise NotImplementedError

    def epoch(self) -> float:
        """One pass in a new order."""
        raise NotImplementedError

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        """What the network says of float32 (N, 784)."""
        raise NotImplementedError

    def accuracy(self) -> float:
        """The share of test images that it gets right."""
        pixels, labels = self.test
        found = self.scores(pixels.astype(np.float32) * np.float32(SCALE))
        return float((found.argmax(axis=1) == labels).mean())

    def timed(self, epochs: int) -> tuple[list[float], float]:
        """ms for each of so many epochs, and the last one's loss."""
        times = []
        for _ in range(epochs):
            start = time.perf_counter()
            loss = self.epoch()
            times.append(1e3 * (time.perf_counter() - start))
        return times, loss


class Ours(Digits):
    """ResidentLoader and Ring, line by line."""

    name = "tinygrad_ish"

    def make(self) -> None:
        import tinygrad_ish as tg
        from tinygrad_ish import nn, optim
        from tinygrad_ish.utils.resident import ResidentLoader, Ring

        tg.set_default_device("cuda")
        tg.manual_seed(0)
        self.tg = tg
        layers: list[Any] = []
        for w, b in first_weights(MODEL):
            layer = nn.Linear(w.shape[1], w.shape[0])
            layer.load_state_dict({"weight": tg.tensor(w), "bias": tg.tensor(b)})
            layers += [layer, nn.ReLU()]
        self.model = nn.Sequential(*layers[:-1])
        optimizer = optim.Adam(self.model.parameters(), lr=MODEL.lr)
        pixels, labels = map(tg.tensor, self.train)
        self.batches = ResidentLoader(pixels, labels, MODEL.batch, shuffle=True, scale=SCALE)
        self.losses = Ring(self.steps)

        def step() -> None:
            x, y = self.batches.next()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(x), y)
            loss.backward()
            optimizer.step()
            self.losses.append(loss)

        self.step: Call = self.written(step)

    def written(self, step: Call) -> Call:
        """The step as it is run."""
        return step

    def epoch(self) -> float:
        self.batches.start_epoch()
        for _ in range(self.steps):
            self.step()
        return float(self.losses.read().mean())

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        with self.tg.no_grad():
            return self.model(self.tg.tensor(pixels)).cpu().numpy()


class OursGraph(Ours):
    """The same, compiled."""

    name = "tinygrad_ish compiled"

    def written(self, step: Call) -> Call:
        return self.tg.compile(step)


class TorchEager(Digits):
    """PyTorch with its fused optimizer, line by line."""

    name = "torch eager"

    def make(self) -> None:
        import torch

        torch.set_float32_matmul_precision("highest")
        self.torch, self.peer = torch, TorchGraph(MODEL, first_weights(MODEL), "fp32")
        put = self.peer.put
        self.pixels, self.labels = map(put, self.train)
        self.place = put(np.zeros(1, np.int64))
        self.within = put(np.arange(MODEL.batch))
        self.rows = put(np.arange(len(self.train[0])))
        self.losses = put(np.zeros(self.steps, np.float32))
        self.ready()

    def ready(self) -> None:
        """Make the graph, if there is one."""
        self.step: Call = self.whole

    def gathered(self) -> tuple[Any, Any]:
        """The next batch."""
        rows = self.rows.index_select(0, self.place * MODEL.batch + self.within)
        x = self.pixels.index_select(0, rows).to(self.torch.float32) * SCALE
        return x, self.labels.index_select(0, rows)

    def whole(self) -> None:
        """A step, from the next batch to its loss in its place."""
        self.peer.optimizer.zero_grad(set_to_none=True)
        x, y = self.gathered()
        loss = self.peer.forward(x, y)
        loss.backward()
        self.peer.optimizer.step()
        self.losses.index_copy_(0, self.place, loss.detach().reshape(1))
        self.place += 1

    def epoch(self) -> float:
        drawn = self.order.permutation(len(self.train[0]))
        self.rows.copy_(self.torch.from_numpy(drawn))
        self.place.zero_()
        for _ in range(self.steps):
            self.step()
        return float(self.losses.mean())

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        with self.torch.no_grad():
            return self.peer.model(self.peer.put(pixels)).cpu().numpy()


class TorchWholeGraph(TorchEager):
    """The step, with its gathering, as one CUDA graph."""

    name = "torch CUDA graph"

    def ready(self) -> None:
        parameters = list(self.peer.model.parameters())
        before = [p.detach().clone() for p in parameters]
        side = self.torch.cuda.Stream()
        side.wait_stream(self.torch.cuda.current_stream())
        with self.torch.cuda.stream(side):
            for _ in range(3):
                self.whole()
        self.torch.cuda.current_stream().wait_stream(side)
        self.peer.undo(parameters, before)
        self.place.zero_()
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph):
            self.whole()
        self.step = graph.replay


CONTENDERS = {c.name: c for c in (OursGraph, Ours, TorchEager, TorchWholeGraph)}


def make_digits(name: str, most: int) -> Digits:
    """A contender by its name."""
    return CONTENDERS[name](most)


def run_digits(run: Run) -> None:
    """The part ``digits``."""
    most, warm, epochs = (200, 2, 2) if run.tiny else (10_000, 5, 10 if run.quick else 30)
    results: dict[str, Any] = {}
    why = torch_reason()
    for name in CONTENDERS:
        if name.startswith("torch") and why:
            run.say(f"{name}: left out: {why}")
            continue
        worker = Worker(make_digits, name, most)
        try:
            first, _ = worker.ask("timed", warm)
            accuracy = worker.ask("accuracy")
            times, loss = worker.ask("timed", epochs)
            results[name] = {
                **machine.spread(times), "first epoch": first[0], "warm epochs": warm,
                "accuracy": accuracy, "last loss": loss, "rounds": times,
            }  # fmt: skip
            if not run.tiny and accuracy < ACCURATE:
                run.fails(f"digits, {name}: {accuracy:.1%} right after {warm} epochs")
        except ChildError as error:
            run.fails(f"digits, {name}: {error}")
            results[name] = {"failed": error.details or str(error)}
        finally:
            worker.close()
        run.save("digits", results)
    heads = ("contender", "ms an epoch", "p10", "p90", "first epoch, ms", "accuracy", "last loss")
    rows = [
        [name, r["median"], r["p10"], r["p90"], r["first epoch"], f"{r['accuracy']:.2%}",
         f"{r['last loss']:.4f}"]
        for name, r in results.items() if "median" in r
    ]  # fmt: skip
    title = (
        f"Epochs of the digits, batch {MODEL.batch}; accuracy on test images after {warm} epochs"
    )
    run.table("digits", title, heads, rows)


def torch_reason() -> str:
    """Why PyTorch cannot take part, found in a process of its own; or nothing."""
    worker = Worker(_Probe)
    try:
        return str(worker.ask("why"))
    finally:
        worker.close()


class _Probe:
    """Looks for PyTorch's GPU."""

    def why(self) -> str:
        """Why there is none."""
        return torch_or_why()[1]


# --- launches and copies ------------------------------------------------------------------------


class Overheads:
    """What a call costs beside its work, in µs."""

    def __init__(self, tiny: bool) -> None:
        import tinygrad_ish as tg
        from tinygrad_ish.kernels import get_backend

        tg.set_default_device("cuda")
        self.tg, self.k, self.tiny = tg, get_backend("cupy"), tiny
        self.wait = self.k.xp.cuda.Device().synchronize
        self.torch, self.why = torch_or_why()

    def _each(self, call: Callable[[], Any], wait: Callable[[], Any]) -> float:
        """The median µs of a call in blocks of many, waited for at the end of each block."""
        calls, blocks = (5, 2) if self.tiny else (500, 9)
        found = []
        for _ in range(3):  # what compiles, records or captures
            call()
        for _ in range(blocks):
            wait()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            wait()
            found.append(1e6 * (time.perf_counter() - start) / calls)
        return statistics.median(found)

    def launches(self) -> dict[str, float]:
        """µs of small operations and graphs, one after the other."""
        k, tg = self.k, self.tg
        x = k.full((1024,), 1.0, "float32")
        out = k.empty((1024,), "float32")
        t = tg.ones(1024)
        leaf = tg.ones(1024, requires_grad=True)
        one = graphed([lambda: k.relu(x, out=out)])
        hundred = graphed([lambda: k.relu(x, out=out)] * 100)
        compiled = tg.compile(lambda a: a.relu())
        calls = {
            "kernel relu, out given": lambda: k.relu(x, out=out),
            "tensor relu": t.relu,
            "tensor relu with gradient": leaf.relu,
            "matmul of 32x32 (cuBLAS)": self._matmul(),
            "CUDA graph of 1 kernel": one,
            "CUDA graph of 100 kernels": hundred,
            "compiled relu": lambda: compiled(t),
        }
        return {name: self._each(call, self.wait) for name, call in calls.items()}

    def _matmul(self) -> Call:
        a, out = self.k.full((32, 32), 1.0, "float32"), self.k.empty((32, 32), "float32")
        return lambda: self.k.matmul(a, a, out=out)

    def torch_launches(self) -> dict[str, float]:
        """The same of PyTorch."""
        if self.torch is None:
            raise RuntimeError(self.why)
        torch = self.torch
        x = torch.ones(1024, device="cuda")
        leaf, out = x.clone().requires_grad_(), torch.empty_like(x)
        small = torch.ones(32, 32, device="cuda")
        clamp = lambda: torch.clamp(x, min=0, out=out)  # noqa: E731
        calls = {
            "kernel relu, out given": clamp,
            "tensor relu": x.relu,
            "tensor relu with gradient": leaf.relu,
            "matmul of 32x32 (cuBLAS)": lambda: torch.mm(small, small),
            "CUDA graph of 1 kernel": torch_graphed(torch, [clamp]),
            "CUDA graph of 100 kernels": torch_graphed(torch, [clamp] * 100),
        }
        return {name: self._each(call, torch.cuda.synchronize) for name, call in calls.items()}

    def prefetching(self) -> dict[str, float]:
        """ms for a pass over batches from the CPU: copied only, computed only, and both."""
        from tinygrad_ish.utils.data import DataLoader, TensorDataset

        tg = self.tg
        count, rows, width = (3, 4, 8) if self.tiny else (24, 4096, 4096)
        x = tg.ones(count * rows, width, device="cpu")
        loader = DataLoader(TensorDataset(x, tg.zeros(len(x), device="cpu")), rows)
        ahead = DataLoader(TensorDataset(x, tg.zeros(len(x), device="cpu")), rows, device="cuda")
        w, resident = tg.ones(width, width), tg.ones(rows, width)

        def work(batch: Any) -> None:
            for _ in range(4):
                batch @ w

        def timed(whole: Callable[[], Any]) -> float:
            found = []
            with tg.no_grad():
                for _ in range(2 if self.tiny else 4):
                    self.wait()
                    start = time.perf_counter()
                    whole()
                    self.wait()
                    found.append(1e3 * (time.perf_counter() - start))
            return min(found[1:])

        passes: dict[str, Callable[[], Any]] = {
            "batches made, on the CPU": lambda: [None for _ in loader],
            "and copied, prefetched": lambda: [None for _ in ahead],
            "computing alone": lambda: [work(resident) for _ in range(count)],
            "copied and computed, one after the other": lambda: [
                work(batch.to("cuda")) for batch, _ in loader
            ],
            "copied and computed, prefetched": lambda: [work(batch) for batch, _ in ahead],
        }
        return {name: timed(whole) for name, whole in passes.items()}


def run_overheads(run: Run) -> None:
    """The part ``overheads``."""
    worker = Worker(Overheads, run.tiny)
    found: dict[str, dict[str, float]] = {}
    try:
        for method in ("launches", "torch_launches", "prefetching"):
            try:
                found[method] = worker.ask(method)
            except ChildError as error:
                if method == "torch_launches":
                    run.say(f"torch: left out: {error}")
                else:
                    run.fails(f"overheads, {method}: {error}\n{error.details}")
            run.save("overheads", found)
    finally:
        worker.close()
    ours, theirs = found.get("launches", {}), found.get("torch_launches", {})
    rows = [[name, t, theirs.get(name)] for name, t in ours.items()]
    run.table("overheads", "Launches, one after the other", ("call", "µs", "torch µs"), rows)
    passes = [[name, t] for name, t in found.get("prefetching", {}).items()]
    run.table("overheads", "A pass over batches from the CPU", ("what", "ms"), passes)
