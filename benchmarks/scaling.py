"""How the time of a training step grows: ``python -m benchmarks.scaling``.

Width, depth or batch size of a network is doubled several times while the rest stays. The exponent
is the slope of log time against log size, by least squares, over all sizes; beside it stands the
slope of the step's multiply-adds and of the optimizer's bytes, each taken for the time they need at
the measured limits of this machine. A lower exponent is time that does not depend on the size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import machine, report
from .models import Model
from .peers import OURS, PEERS
from .train_step import Contender, roofline

AXES: dict[str, dict[int, Model]] = {
    "width": {n: Model((n, n, n, 10), 64, "adam", 1e-3) for n in (64, 128, 256, 512, 1024)},
    "depth": {n: Model((256, *[256] * n, 10), 64, "adam", 1e-3) for n in (1, 2, 4, 8, 16)},
    "batch": {n: Model((256, 256, 256, 10), n, "adam", 1e-3) for n in (16, 32, 64, 128, 256, 512)},
}


def exponent(sizes: Sequence[int], times: Sequence[float]) -> float:
    """The slope of log time against log size, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def times_of(name: str, models: Sequence[Model], rounds: int) -> list[float]:
    """Median µs of a step of each model; they take turns, so that a slow minute slows them all."""
    contenders = [Contender(name, model, machine.threads(), "") for model in models]
    try:
        for contender in contenders:
            contender.child.end()
            contender.settle()
        for _ in range(rounds):
            for contender in contenders:
                contender.turn()
        return [contender.result()["median"] for contender in contenders]
    finally:
        for contender in contenders:
            contender.child.close()


def show(axis: str, sizes: Sequence[int], times: dict[str, list[float]]) -> dict[str, float]:
    """Print the times along one axis; the exponents."""
    slopes = {name: exponent(sizes, own) for name, own in times.items()}
    print()
    rows = [[name, *own, f"{slopes[name]:.2f}"] for name, own in times.items()]
    report.table([f"{axis}: µs a step", *map(str, sizes), "exponent"], rows)
    return slopes


def draw(results: dict[str, Any], axes: list[Any]) -> None:
    """Time against size, one picture for each axis."""
    for axis, (name, result) in zip(axes, results.items()):
        for who, times in result["us"].items():
            style = "k:" if who == "roofline" else "o-"
            label = f"{who}, exponent {result['exponents'][who]:.2f}"
            axis.plot(result["sizes"], times, style, label=label)
        axis.set(xlabel=name, ylabel="µs a step", xscale="log", yscale="log")
        axis.legend(fontsize=8)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="benchmarks.scaling", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--peers", metavar="A,B", help=f"of {', '.join(PEERS)} (this project's)")
    add("--axis", action="append", choices=list(AXES), help="may be repeated (all)")
    add("--rounds", type=int, default=7, help="turns of each size (7)")
    add("--quick", action="store_true", help="three sizes, 2 rounds")
    args = parser.parse_args(argv)
    args.peers = args.peers.split(",") if args.peers else list(OURS)
    unknown = set(args.peers) - set(PEERS)
    if unknown:
        parser.error(f"--peers {unknown.pop()}: expected some of {', '.join(PEERS)}")
    args.rounds = 2 if args.quick else args.rounds
    args.axis = args.axis or list(AXES)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the axes asked for."""
    args = parse(argv)
    facts = machine.describe()
    report.heading(facts)
    reasons = {name: PEERS[name].why_missing() for name in args.peers}
    for name, reason in reasons.items():
        if reason is not None:
            print(f"{name}: left out: {reason}")
    results: dict[str, Any] = {}
    for axis in args.axis:
        models = dict(list(AXES[axis].items())[: 3 if args.quick else None])
        times = {
            name: times_of(name, list(models.values()), args.rounds)
            for name, reason in reasons.items()
            if reason is None
        }
        times["roofline"] = [roofline(model)["us"] for model in models.values()]
        slopes = show(axis, list(models), times)
        results[axis] = {"sizes": list(models), "us": times, "exponents": slopes}
    report.save("scaling", {"machine": facts, "results": results})
    report.picture("scaling", lambda axes: draw(results, axes), len(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
