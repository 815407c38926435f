"""What the benchmarks of the GPU share: its clock, its facts, and processes that hold it.

A process that failed on the GPU can be left with a broken context, in which all that follows fails
too. So the work is done in a child, and after a failure in a new one.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinygrad_ish.kernels import get_backend

from . import children, machine, report
from .children import Child, ChildError

PATIENCE = 180.0  # seconds for one answer; torch.compile takes some tens of them
FLUSH = 1 << 30  # bytes written before each call: 0.35 ms on an H100, whose cache holds 50 MB
PACKAGES = ("cupy-cuda13x", "cupy-cuda12x", "torch", "triton", "jax", "ml_dtypes", "numpy", "numba")
QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,temperature.gpu"

Call = Callable[[], Any]


# --- options and results ----------------------------------------------------------------------


class Run:
    """How much is to be measured, and where results go, as they come."""

    def __init__(self, folder: Path, tiny: bool = False, quick: bool = False) -> None:
        self.folder, self.tiny, self.quick = folder, tiny, quick
        self.repeats = 2 if tiny else 9 if quick else 25
        self.models: list[str] | None = None  # for the part steps; None: all
        self.precisions: list[str] | None = None
        self.wrong: list[str] = []  # what computed something else, or failed
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, part: str, result: Any) -> None:
        """Write a part's results so far as JSON."""
        path = self.folder / f"gpu-{part}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")

    def table(self, part: str, title: str, heads: Sequence[str], rows: list[Any]) -> None:
        """Print a table, and keep it."""
        text = f"\n{title}\n\n{report.rendered(heads, rows)}\n"
        print(text, flush=True)
        with (self.folder / "gpu-tables.md").open("a", encoding="utf-8") as file:
            file.write(f"\n## {part}\n{text}")

    def say(self, text: str) -> None:
        """A line of progress."""
        print(text, flush=True)

    def fails(self, what: str) -> None:
        """Note something wrong, for the exit status and the end of the output."""
        self.wrong.append(what)
        self.say(f"WRONG: {what}")


_environment = threading.Lock()  # which a child that is started changes for a moment


class Worker:
    """An object in a process of its own, which is started anew after a failure. With ``again``,
    what failed in a process that was in use is tried once more in the new one."""

    def __init__(
        self,
        make: Callable[..., Any],
        *args: Any,
        environment: dict[str, str] | None = None,
        again: bool = False,
    ) -> None:
        self._make, self._args, self._environment = make, args, environment or {}
        self._again = again
        self._child: Child | None = None

    def ask(self, method: str, *args: Any) -> Any:
        """The result of a method there. Raises ChildError if it fails."""
        used = self._child is not None
        try:
            return self._started().ask(method, *args)
        except (ChildError, OSError) as error:
            self.close()
            if used and self._again:
                return self.ask(method, *args)
            raise ChildError(str(error), getattr(error, "details", "")) from error

    def _started(self) -> Child:
        if self._child is None:
            children.PATIENCE = PATIENCE
            with _environment:
                self._child = Child(self._make, *self._args, environment=self._environment)
            self._child.end()
        return self._child

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.close()
            self._child = None


# --- the clock --------------------------------------------------------------------------------


class Clock:
    """The time of calls by the GPU's own clock.

    Before each call a large array is written. That empties the cache, and keeps the GPU busy while
    the CPU issues the call, so that the time of a launch is hidden, as it is in a step.
    """

    def __init__(self, repeats: int, flush: int = FLUSH) -> None:
        self.cuda = get_backend("cupy").xp.cuda
        self.repeats = repeats
        self._scratch = get_backend("cupy").empty((flush,), "uint8")

    def times(self, call: Call, divisor: int = 1) -> dict[str, float]:
        """The spread of a call's times in µs, each divided; three calls are not counted."""
        for _ in range(3):
            call()
        events = [(self.cuda.Event(), self.cuda.Event()) for _ in range(self.repeats)]
        for start, end in events:
            self._scratch.fill(0)
            start.record()
            call()
            end.record()
        self.cuda.Device().synchronize()
        elapsed = [1e3 * self.cuda.get_elapsed_time(s, e) / divisor for s, e in events]
        return machine.spread(elapsed)

    def bandwidth(self, nbytes: int) -> float:
        """GB/s of CUDA's own copy of so many bytes on the GPU, read and written ones counted."""
        k = get_backend("cupy")
        source, target = k.full((nbytes,), 1, "uint8"), k.empty((nbytes,), "uint8")
        copy = target.data.copy_from_device_async
        found = self.times(lambda: copy(source.data, nbytes))
        return 2e-3 * nbytes / found["median"]


def graphed(calls: list[Call]) -> Call:
    """The calls as one launch of a CUDA graph; they were done twice before."""
    cuda = get_backend("cupy").xp.cuda
    stream, pool = cuda.Stream(non_blocking=True), cuda.MemoryPool()
    cuda.Device().synchronize()
    with stream, get_backend("cupy").xp.cuda.using_allocator(pool.malloc):
        for call in [*calls, *calls]:
            call()
        stream.synchronize()
        stream.begin_capture()
        try:
            for call in calls:
                call()
        finally:
            graph = stream.end_capture()
    kept = (pool, stream, calls)  # the graph works in their memory; cuBLAS's is the stream's

    def launch(kept: Any = kept) -> None:
        graph.launch()

    return launch


def torch_graphed(torch: Any, calls: list[Call]) -> Call:
    """PyTorch's calls as one launch of a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in [*calls, *calls]:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()

    def launch(kept: Any = calls) -> None:
        graph.replay()

    return launch


# --- arrays of any dtype, bfloat16 too, by way of integers of their size ---

CARRIER = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64"}


def poison(x: Any) -> None:
    """Let every bit of a C-contiguous array be 1: NaN, if it is floating."""
    carrier = np.dtype(CARRIER[x.itemsize])
    x.view(carrier).fill(np.iinfo(carrier).max)


def duplicate(x: Any) -> Any:
    """A copy that is laid out as x: C-contiguous, or its transpose is."""
    if not x.flags.c_contiguous:
        return duplicate(x.T).T
    return x.view(CARRIER[x.itemsize]).copy().view(x.dtype) if x.ndim else x.copy()


# --- PyTorch beside us ------------------------------------------------------------------------


def torch_or_why() -> tuple[Any, str]:
    """PyTorch if it sees a GPU; else None and why not."""
    if importlib.util.find_spec("torch") is None:
        return None, "torch is not installed"
    import torch

    if not torch.cuda.is_available():
        return None, "torch sees no GPU"
    return torch, ""


def as_torch(torch: Any, x: Any) -> Any:
    """An array of CuPy's as a tensor of PyTorch's, in the same memory."""
    if x.dtype.name == "bfloat16":  # CuPy's DLPack may not know it
        return torch.from_dlpack(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_dlpack(x)


# --- facts ------------------------------------------------------------------------------------


class Machine:
    """The GPU and the software on it, asked in a process of its own."""

    def __init__(self, repeats: int, tiny: bool) -> None:
        self.clock = Clock(repeats, 1 << 10 if tiny else FLUSH)
        self.sizes = [1 << 12] if tiny else [1 << 29, 1 << 31]

    def facts(self) -> dict[str, Any]:
        """For the head of every result."""
        cupy = get_backend("cupy").xp
        runtime = cupy.cuda.runtime
        properties = runtime.getDeviceProperties(runtime.getDevice())
        found = {
            **machine.describe(),
            "gpu": properties["name"].decode(),
            "multiprocessors": properties["multiProcessorCount"],
            "memory GiB": round(properties["totalGlobalMem"] / 2**30, 1),
            "driver CUDA": runtime.driverGetVersion(),
            "runtime CUDA": runtime.runtimeGetVersion(),
            "cupy": cupy.__version__,
            "nvidia-smi": nvidia_smi(),
        }
        for name in PACKAGES:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)
        for size in self.sizes:
            found[f"copy of {size >> 20} MiB, GB/s"] = round(self.clock.bandwidth(size), 1)
        found["nvidia-smi after"] = nvidia_smi()
        return found


def nvidia_smi() -> str:
    """What nvidia-smi says of the GPU's clocks; or why it does not."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not read: {error}"
    return done.stdout.strip() or f"not read: {done.stderr.strip()}"


def run_facts(run: Run) -> None:
    """The part ``facts``."""
    worker = Worker(Machine, run.repeats, run.tiny)
    try:
        found = worker.ask("facts")
    finally:
        worker.close()
    run.save("facts", found)
    run.table("facts", "The machine", ["what", "is"], [[k, str(v)] for k, v in found.items()])
