"""Every kernel on every backend: ``python -m benchmarks.kernels [--kernel NAME]``.

First the results are compared with the reference in float64; a kernel that is wrong is not clocked,
and the exit status is 1. Then the backends and PyTorch, each in a process of its own, take turns; a
turn is a block of calls that write to arrays made before (PyTorch too, where it has ``out``). NumPy
and PyTorch run on one thread and on all, and the faster counts. "numba plan" is the Numba kernel as
a compiled step runs it: the same machine code, laid out once, without Python's side of a call.

The limit of a call is the larger of two times: its multiply-adds at the measured peak, and the
bytes of its arguments and results, each once (twice what it updates), at the speed measured for
copying an equal number of bytes again and again. "of limit" is that time as a share of the call's.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tinygrad_ish.kernels import BACKENDS, Backend, get_backend, reference, why_missing

from . import machine, report
from .cases import CASES, CUBES, Case, Size
from .children import Child
from .peers import Peer

PLAN = "numba plan"
NO_PLAN = "a compiled step calls it through Python"
BLOCK_SECONDS = 2e-3
TOLERANCE = 2e-4  # of a float32 result, as a share of the largest one


def arrays_in(values: Any) -> Iterator[np.ndarray]:
    """The arrays among values and in tuples among them."""
    for value in values:
        if isinstance(value, tuple):
            yield from arrays_in(value)
        elif hasattr(value, "strides"):
            yield value


def mapped(values: Any, change: Callable[[Any], Any]) -> Any:
    """The values with every array changed, tuples of them too."""
    return tuple(
        mapped(v, change) if isinstance(v, tuple) else change(v) if hasattr(v, "strides") else v
        for v in values
    )


def widened(x: np.ndarray) -> np.ndarray:
    """A copy, in float64 if floating; its memory is laid out as x's."""
    return x.astype(np.float64) if x.dtype == np.float32 else x.copy(order="K")


def compare(backend: Backend, name: str, case: Case, args: tuple[Any, ...]) -> str | None:
    """What is wrong with a kernel's results and with what it left in its arguments."""
    on_device = mapped(args, lambda x: backend.asarray(x.copy(order="K")))
    result = getattr(backend, name)(*on_device, **case.kwargs)
    wide = mapped(args, widened)
    expected = getattr(reference, name)(*wide, **case.kwargs)
    found = list(map(backend.to_numpy, arrays_in((result, *on_device))))
    for ours, theirs in zip(found, arrays_in((expected, *wide)), strict=True):
        if ours.shape != theirs.shape:
            return f"shape {list(ours.shape)}, expected {list(theirs.shape)}"
        if not ours.size:
            continue
        wide_ours = ours.astype(np.float64)
        error = float(np.abs(wide_ours - theirs.astype(np.float64)).max())
        scale = float(np.abs(theirs).max()) if theirs.dtype.kind == "f" else 1.0
        if not error <= TOLERANCE * max(scale, 1e-30):
            return f"off by {error:.3g}, where the largest value is {scale:.3g}"
    return None


def moved(name: str, args: tuple[Any, ...], result: Any) -> int:
    """The bytes of arguments and results, twice of what is updated; 0 for a view."""
    read = list(arrays_in(args))
    written = [r for r in arrays_in((result,)) if not any(np.shares_memory(r, a) for a in read)]
    if result is not None and not written:
        return 0
    parameters = list(inspect.signature(getattr(reference, name)).parameters)
    updates = [args[parameters.index(p)] for p in reference.UPDATES.get(name, ())]
    return sum(x.nbytes for x in [*read, *written, *arrays_in(updates)])


def plan_of(name: str, case: Case, args: tuple[Any, ...]) -> Callable[[], Any] | None:
    """The call of a compiled step, into arrays made before; None where a step has no plan for it.
    Raises RuntimeError if it gives other bits than the kernel."""
    from tinygrad_ish.kernels.cpu._tasks import Plan
    from tinygrad_ish.kernels.cpu.lowering import CALLS

    if name not in CALLS:
        return None
    args = mapped(args, lambda x: x.copy(order="K"))
    bound = inspect.signature(getattr(reference, name)).bind(*args, **case.kwargs)
    bound.apply_defaults()
    given = {k: v for k, v in bound.arguments.items() if k != "out"}
    if "out" in bound.arguments:
        given["out"] = getattr(get_backend("numba"), name)(*args, **case.kwargs)
    calls = CALLS[name](**given)
    if calls is None:
        return None
    expected = [x.copy() for x in arrays_in((given.get("out"),))]
    plan = Plan(calls)
    if "state" not in given:  # else a second run draws or steps on
        plan.run()
        for ours, theirs in zip(arrays_in((given.get("out"),)), expected, strict=True):
            if ours.tobytes() != theirs.tobytes():
                raise RuntimeError(f"{name}: the plan gives other bits than the kernel")
    return plan.run


def call_of(backend: Backend, name: str, case: Case, args: tuple[Any, ...]) -> Callable[[], Any]:
    """The call to clock, into arrays made before, and done when it returns."""
    kernel = getattr(backend, name)
    args = mapped(args, lambda x: backend.asarray(x.copy(order="K")))
    kwargs = dict(case.kwargs)
    if "out" in inspect.signature(getattr(reference, name)).parameters:
        kwargs["out"] = kernel(*args, **kwargs)
    if backend.device == "cpu":
        return lambda: kernel(*args, **kwargs)

    def finished() -> None:
        kernel(*args, **kwargs)
        backend.xp.cuda.Device().synchronize()

    return finished


class Clock:
    """One library in its process: the NumPy, Numba or CuPy backend, or PyTorch."""

    def __init__(self, library: str) -> None:
        self.library = library
        self.call: Callable[[], Any]
        self.calls = 1

    def prepare(self, name: str, size: Size) -> str | None:
        """Make the arguments and choose how many calls make a turn. What is wrong with the
        kernel's results, if something is."""
        case = CASES[name]
        args = case.make(np.random.default_rng(0), size)
        if self.library == "torch":
            import torch

            assert case.torch is not None
            tensors = mapped(args, lambda x: torch.from_numpy(x.copy(order="K")))
            self.call = case.torch(torch, *tensors)
        elif self.library == PLAN:
            call = plan_of(name, case, args)
            if call is None:
                return NO_PLAN
            self.call = call
        else:
            backend = get_backend(self.library)
            wrong = compare(backend, name, case, args)
            if wrong is not None:
                return wrong
            self.call = call_of(backend, name, case, args)
        self.calls = 1
        for _ in range(2):
            self.calls = max(1, min(10_000, int(BLOCK_SECONDS / self.turn())))
        return None

    def turn(self) -> float:
        """Seconds for a call, the mean of a block of them, after one that is not counted (a block
        of one call is long enough to be its own warming up)."""
        if self.calls > 1:
            self.call()
        start = time.perf_counter()
        for _ in range(self.calls):
            self.call()
        return (time.perf_counter() - start) / self.calls


LIBRARIES = (*BACKENDS, PLAN, "torch")
Clocks = dict[tuple[str, int], Child]  # by library and number of threads


def start_clocks(libraries: Sequence[str]) -> Clocks:
    """A process for each library; for NumPy and PyTorch, which do not choose the number of threads
    by the size, one on one thread and one on all."""
    few_and_all = sorted({1, machine.threads()})
    clocks: Clocks = {}
    for library in libraries:
        for n in few_and_all if library in ("numpy", "torch") else few_and_all[-1:]:
            clocks[library, n] = Child(Clock, library, environment=Peer.environment(n, ""))
    for child in clocks.values():
        child.end()
    return clocks


def takes_part(library: str, threads: int, name: str) -> bool:
    """Whether this library has something of its own to clock for this kernel."""
    if library == "torch":
        return CASES[name].torch is not None
    if library == "numpy":  # of which BLAS alone has threads
        return threads == 1 or CASES[name].family == "products"
    library = "numba" if library == PLAN else library
    return getattr(get_backend(library), name) is not getattr(reference, name)


def measure(name: str, size: Size, clocks: Clocks, rounds: int) -> dict[str, Any]:
    """One kernel at one size: the times of every library, and what is wrong."""
    field, wrong = {}, {}
    for (library, threads), child in clocks.items():
        if takes_part(library, threads, name):
            error = child.ask("prepare", name, size)
            if error == NO_PLAN:
                continue
            if error:
                wrong[library] = error
            else:
                field[library, threads] = child
    times: dict[str, dict[int, list[float]]] = {}
    for _ in range(rounds):
        for (library, threads), child in field.items():
            own = times.setdefault(library, {}).setdefault(threads, [])
            own.append(1e6 * child.ask("turn"))
    case = CASES[name]
    args = case.make(np.random.default_rng(0), size)
    copied = mapped(args, lambda x: x.copy(order="K"))
    nbytes = moved(name, args, getattr(reference, name)(*copied, **case.kwargs))
    result = {
        "kernel": name, "family": case.family, "size": list(size), "flops": case.flops(size),
        "bytes": nbytes, "us": {n: _better(t) for n, t in times.items()}, "wrong": wrong,
    }  # fmt: skip
    limit(result)  # measured again and again, as the best of them counts
    return result


def _better(times: dict[int, list[float]]) -> dict[str, float]:
    """The spread of the number of threads that was faster."""
    threads = min(times, key=lambda n: statistics.median(times[n]))
    return {**machine.spread(times[threads]), "threads": threads}


def limit(result: dict[str, Any]) -> float:
    """The time in µs that the machine allows at best."""
    from . import limits  # here, so that Numba is not in the contenders' processes

    flops, nbytes = result["flops"], result["bytes"]
    return max(flops / limits.peak(), nbytes / limits.bandwidth(nbytes)) / 1e3


def median(result: dict[str, Any], name: str) -> float | None:
    """µs of a library; None if it did not run."""
    return result["us"][name]["median"] if name in result["us"] else None


def row(result: dict[str, Any], name: str) -> list[Any]:
    """A line of the table for one backend."""
    us = result["us"][name]
    t, numpy, torch = us["median"], median(result, "numpy"), median(result, "torch")
    rate = result["flops"] / t / 1e3 if result["flops"] else result["bytes"] / t / 1e3
    on_cpu = result["bytes"] and name != "cupy"
    return [
        result["kernel"], " ".join(map(str, result["size"])), name, t, us["p10"], us["p90"],
        f"{rate:.1f} {'GFLOP/s' if result['flops'] else 'GB/s'}" if result["bytes"] else "view",
        f"{100 * result['limit'] / t:.0f}%" if on_cpu else None,
        f"{t / numpy:.2f}" if numpy else None,
        torch, f"{t / torch:.2f}" if torch else None,
    ]  # fmt: skip


HEADS = (
    "kernel", "size", "backend", "µs", "p10", "p90", "rate", "of limit", "/ numpy", "torch µs",
    "/ torch",
)  # fmt: skip


def geometric_mean(results: list[dict[str, Any]], ours: str) -> dict[str, float]:
    """How many times as fast as NumPy and PyTorch the products of the models are, on average."""
    products = [r for r in results if r["kernel"] == "matmul" and tuple(r["size"][1:]) not in CUBES]
    means = {}
    for theirs in ("numpy", "torch"):
        pairs = [(median(r, theirs), median(r, ours)) for r in products]
        ratios = [other / own for other, own in pairs if other and own]
        if ratios:
            means[theirs] = math.exp(statistics.fmean(map(math.log, ratios)))
    return means


def draw(results: list[dict[str, Any]], axes: list[Any]) -> None:
    """Share of the limit against the bytes moved, a picture for each backend and PyTorch."""
    names = ["numba", PLAN, "numpy", "torch"]
    for axis, name in zip(axes, names):
        kernels = dict.fromkeys(r["kernel"] for r in results)
        for kernel in kernels:
            points = [
                (r["bytes"], 100 * r["limit"] / t)
                for r in results
                if r["kernel"] == kernel and r["bytes"] and (t := median(r, name))
            ]
            if points:
                axis.plot(*zip(*sorted(points)), "o-", markersize=3, label=kernel)
        axis.set(title=name, xscale="log", xlabel="bytes moved", ylabel="% of the limit")
        axis.set_ylim(0, 110)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=6, ncols=2)


def _absent(library: str) -> str | None:
    """Why a library cannot run here; None if it can."""
    if library != "torch":
        return why_missing("numba" if library == PLAN else library)
    there = importlib.util.find_spec("torch")
    return None if there else "torch is not installed: pip install -e '.[bench]'"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="benchmarks.kernels", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--kernel",
        action="append",
        choices=sorted(CASES),
        metavar="NAME",
        help="one; may be repeated (all)",
    )
    add("--only", metavar="A,B", help=f"of {', '.join(LIBRARIES)}; NumPy always (all there are)")
    add("--rounds", type=int, default=5, help="turns of each contender (5)")
    add("--quick", action="store_true", help="the smallest size, 2 rounds")
    args = parser.parse_args(argv)
    args.kernel = args.kernel or list(CASES)
    names = args.only.split(",") if args.only else [n for n in LIBRARIES if not _absent(n)]
    for name in names:
        if name not in LIBRARIES or _absent(name):
            known = f"expected some of {', '.join(LIBRARIES)}"
            parser.error(f"--only {name}: {known if name not in LIBRARIES else _absent(name)}")
    args.libraries = list(dict.fromkeys(["numpy", *names]))
    args.rounds = 2 if args.quick else args.rounds
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Clock the kernels asked for; 1 if one of them is wrong."""
    args = parse(argv)
    facts = machine.describe()
    report.heading(facts)
    missing = sorted(set(reference.__all__) - set(CASES))
    if missing:
        print(f"not in benchmarks/cases.py, so not clocked: {', '.join(missing)}")
    results = []
    clocks = start_clocks(args.libraries)
    for name in args.kernel:
        for size in CASES[name].sizes[: 1 if args.quick else None]:
            results.append(measure(name, size, clocks, args.rounds))
    for child in clocks.values():
        child.close()
    for result in results:
        result["limit"] = limit(result)
    report.table(HEADS, [row(r, name) for r in results for name in r["us"] if name != "torch"])
    means = {ours: geometric_mean(results, ours) for ours in ("numba", PLAN)}
    for ours, by_library in means.items():
        for theirs, mean in by_library.items():
            print(f"products of the models, {ours}, geometric mean: {mean:.2f} x {theirs}'s speed")
    report.save("kernels", {"machine": facts, "results": results, "geometric_mean": means})
    for family in dict.fromkeys(r["family"] for r in results):
        own = [r for r in results if r["family"] == family]
        report.picture(f"kernels-{family}", lambda axes, own=own: draw(own, axes), 4)
    wrong = [
        f"{r['kernel']} {r['size']} on {b}: {e}" for r in results for b, e in r["wrong"].items()
    ]
    print(*[f"wrong: {w}" for w in wrong], sep="\n", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
