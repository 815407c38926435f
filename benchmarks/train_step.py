"""A training step in this project and in its peers: ``python -m benchmarks.train_step``.

Every contender trains the same network from the same weights on the same batches, in a process of
its own for each of its settings, one thread and all threads at least; the setting with the best
median counts. Its losses are compared with NumPy's in float64 before the clock starts; one that
disagrees is reported and left out, and the exit status is 1. Then the contenders take turns, in an
order drawn anew for each round: a few steps to warm the caches, then a block of steps under the
clock. A step runs from a batch in the library's own type to the updated parameters; the loss is
read once, at the end of the block, which waits for all that is still under way.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import machine, report
from .children import Child, ChildError
from .models import MODELS, Model, first_weights, samples
from .peers import OURS, PEERS, ByHand

COMPARED = 20  # losses
TOLERANCE = 1e-4  # of a loss, relative; libraries differ by 1e-7 to 1e-5
BLOCK_SECONDS = 0.03
SLOW_SECONDS = 0.2
WARM = 0.2  # steps before the clock starts, as a share of the block


class Trainer:
    """A contender in its process."""

    def __init__(self, peer: str, model: Model, option: str) -> None:
        self.peer = PEERS[peer](model, first_weights(model), option)
        inputs, labels = (list(map(self.peer.put, arrays)) for arrays in samples(model))
        self.batches = zip(itertools.cycle(inputs), itertools.cycle(labels))

    def losses(self, steps: int) -> list[float]:
        """The loss of each of the next steps."""
        return [
            self.peer.value(self.peer.step(*batch))
            for batch in itertools.islice(self.batches, steps)
        ]

    def block(self, steps: int) -> tuple[float, float]:
        """Seconds for a step, the mean of so many; and the last loss."""
        for batch in itertools.islice(self.batches, int(steps * WARM) + 1):
            loss = self.peer.step(*batch)
        self.peer.value(loss)
        step, following = self.peer.step, self.batches
        start = time.perf_counter()
        for _ in range(steps):
            loss = step(*next(following))
        value = self.peer.value(loss)
        return (time.perf_counter() - start) / steps, value


class Contender:
    """What the parent knows of a contender: its process, its settings and its times."""

    def __init__(self, name: str, model: Model, threads: int, option: str) -> None:
        self.name, self.threads, self.option = name, threads, option
        environment = PEERS[name].environment(threads, option)
        self.child = Child(Trainer, name, model, option, environment=environment)
        self.steps = 3
        self.times: list[float] = []
        self.loss = float("nan")
        self.failure: ChildError | None = None

    def attempt(self, call: Callable[..., Any], *args: Any) -> Any:
        """The result of a call; if the child fails in it, it ends, and ``failure`` says why."""
        try:
            return call(*args)
        except ChildError as error:
            self.failure = error
            self.child.close()

    def turn(self) -> None:
        """One block under the clock."""
        seconds, self.loss = self.child.ask("block", self.steps)
        self.times.append(seconds)

    def enough(self) -> bool:
        """Whether it is so slow that three turns must do."""
        return len(self.times) >= 3 and self.steps * self.times[-1] > SLOW_SECONDS

    def settle(self) -> None:
        """Choose how many steps make a block."""
        for _ in range(2):
            self.turn()
            self.steps = max(1, round(BLOCK_SECONDS / self.times[-1]))
        self.times.clear()

    def result(self) -> dict[str, Any]:
        """For the report; µs."""
        times = [1e6 * t for t in self.times]
        facts = {"threads": self.threads, "option": self.option, "last_loss": self.loss}
        return {**facts, **machine.spread(times), "best": min(times), "rounds": times}


def expected_losses(model: Model) -> list[float]:
    """The first losses in float64 NumPy."""
    peer = ByHand(model, first_weights(model), "", np.float64)
    return [float(peer.step(*batch)) for batch in itertools.islice(zip(*samples(model)), COMPARED)]


def differ(found: list[float], expected: list[float]) -> str | None:
    """What is wrong with the losses; None if they agree."""
    for step, (ours, theirs) in enumerate(zip(found, expected)):
        if not abs(ours - theirs) <= TOLERANCE * abs(theirs):
            return f"loss {ours:.6f} at step {step}, expected {theirs:.6f}"
    return None


class Disagreement(RuntimeError):
    """A contender's losses are not NumPy's."""


def enter(
    name: str, model: Model, expected: list[float], options: Sequence[str]
) -> list[Contender]:
    """A contender for each of the settings that run.

    Raises ChildError if none does, Disagreement if the losses of one are wrong.
    """
    threads = sorted({1, machine.threads()})
    started = [Contender(name, model, t, o) for t, o in itertools.product(threads, options)]
    for contender in started:
        contender.attempt(contender.child.end)
    for contender in _alive(started):  # at once: this is where libraries compile
        contender.child.begin("losses", COMPARED)
    losses = {c: c.attempt(c.child.end) for c in _alive(started)}
    for contender in _alive(started):
        contender.attempt(contender.settle)
    running = _alive(started)
    if not running:
        raise started[0].failure or ChildError("nothing was started")
    wrong = next(filter(None, (differ(losses[c], expected) for c in running)), None)
    if wrong is not None:
        for contender in running:
            contender.child.close()
        raise Disagreement(wrong)
    return running


def _alive(contenders: list[Contender]) -> list[Contender]:
    return [c for c in contenders if c.failure is None]


def run(model: Model, options: dict[str, Sequence[str]], rounds: int) -> dict[str, Any]:
    """Every contender's times for one model, the limit of the machine, and who was left out."""
    expected = expected_losses(model)
    field: list[Contender] = []
    left_out: dict[str, str] = {}
    disagree = []
    try:
        for name in options:
            try:
                field += enter(name, model, expected, options[name])
            except (ChildError, Disagreement) as error:
                left_out[name] = str(error)
                disagree += [name] if isinstance(error, Disagreement) else []
        order = random.Random(0)
        roofline(model)
        for _ in range(rounds):
            for contender in order.sample(field, len(field)):
                if not contender.enough():
                    contender.turn()
        limit = roofline(model)  # the best of both times: others may have been in the way
    finally:
        for contender in field:
            contender.child.close()
    best: dict[str, Any] = {}
    for contender in field:
        found, name = contender.result(), contender.name
        if name not in best or found["median"] < best[name]["median"]:
            best[name] = found
    return {
        "model": model.name,
        "parameters": model.parameters,
        "first_loss": expected[0],
        "roofline": limit,
        "contenders": best,
        "settings": [{"name": c.name, **c.result()} for c in field],
        "left_out": left_out,
        "disagree": disagree,
    }


def roofline(model: Model) -> dict[str, float]:
    """The time in µs that no step can beat here: the products at the peak of multiply-adds, then
    parameters and optimizer state once in and out at the speed of a copy of that size."""
    from . import limits  # here, so that Numba is not in the contenders' processes

    moved = model.optimizer_bytes()
    peak, bandwidth = limits.peak(), limits.bandwidth(moved)
    flops_us, bytes_us = model.flops() / peak / 1e3, moved / bandwidth / 1e3
    return {
        "gflops": peak,
        "gbytes": bandwidth,
        "products": flops_us,
        "optimizer": bytes_us,
        "us": flops_us + bytes_us,
    }


def show(result: dict[str, Any]) -> None:
    """Print one model's table."""
    limit, contenders = result["roofline"], result["contenders"]
    print(
        f"\n{result['model']}, {result['parameters']:,} parameters; roofline {limit['us']:.1f} µs "
        f"= products {limit['products']:.1f} ({limit['gflops']:.0f} GFLOP/s) + optimizer "
        f"{limit['optimizer']:.1f} ({limit['gbytes']:.0f} GB/s)"
    )
    ours = [name for name in OURS if name in contenders]
    heads = ["µs a step", "median", "p10", "p90", "best", "x roof", *(f"{n} /" for n in ours)]
    rows = []
    for name, c in sorted(contenders.items(), key=lambda item: item[1]["median"]):
        ratios = [f"{contenders[n]['median'] / c['median']:.2f}" for n in ours]
        times = [c["median"], c["p10"], c["p90"], c["best"], c["median"] / limit["us"]]
        setting = ", ".join(s for s in (f"{c['threads']} thr", c["option"]) if s)
        rows.append([name, *times, *ratios, setting, f"{c['last_loss']:.2f}"])
    report.table([*heads, "setting", "last loss"], rows)
    for name, reason in result["left_out"].items():
        print(f"{name}: left out: {reason}")


def draw(results: list[dict[str, Any]], axes: list[Any]) -> None:
    """Bars of the medians with p10 and p90, one picture for each model."""
    for axis, result in zip(axes, results):
        items = sorted(result["contenders"].items(), key=lambda item: -item[1]["median"])
        medians = [c["median"] for _, c in items]
        around = [
            [c["median"] - c["p10"] for _, c in items],
            [c["p90"] - c["median"] for _, c in items],
        ]
        colors = ["tab:orange" if name in OURS else "tab:gray" for name, _ in items]
        axis.barh([name for name, _ in items], medians, xerr=around, color=colors)
        axis.axvline(result["roofline"]["us"], color="black", linestyle=":")
        axis.set(
            title=result["model"], xlabel="µs a step (dotted: the machine's limit)", xscale="log"
        )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.train_step", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--model", action="append", metavar="NAME", help="784-128-10, say; may be repeated (all)")
    add("--optimizer", choices=["adam", "sgd"], help="for every model, in place of its own")
    add("--peers", metavar="A,B", help=f"of {', '.join(PEERS)}")
    add("--rounds", type=int, default=15, help="turns of each contender (15)")
    add("--quick", action="store_true", help="3 rounds")
    add("--thorough", action="store_true", help="try every setting of every peer (slow)")
    args = parser.parse_args(argv)
    names = ["-".join(map(str, m.sizes)) for m in MODELS]
    args.models = [m for m, name in zip(MODELS, names) if name in (args.model or names)]
    unknown = set(args.model or ()) - set(names)
    if unknown:
        parser.error(f"--model {unknown.pop()}: expected one of {', '.join(names)}")
    args.peers = args.peers.split(",") if args.peers else list(PEERS)
    unknown = set(args.peers) - set(PEERS)
    if unknown:
        parser.error(f"--peers {unknown.pop()}: expected some of {', '.join(PEERS)}")
    if args.optimizer:
        args.models = [m.with_optimizer(args.optimizer) for m in args.models]
    if args.quick:
        args.rounds = 3
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the models asked for; 1 if a contender computed something else."""
    args = parse(argv)
    facts = machine.describe()
    report.heading(facts)
    options = {}
    for name in args.peers:
        reason = PEERS[name].why_missing()
        if reason is None:
            options[name] = PEERS[name].options + PEERS[name].thorough * args.thorough
        else:
            print(f"{name}: left out: {reason}")
    results = []
    for model in args.models:
        results.append(run(model, options, args.rounds))
        show(results[-1])
    report.save("train_step", {"machine": facts, "results": results})
    report.picture(
        "train_step", lambda axes: draw(results, axes), min(2, len(results)), -(-len(results) // 2)
    )
    wrong = {name for result in results for name in result["disagree"]}
    if wrong:
        print(f"computed something else than NumPy: {', '.join(sorted(wrong))}", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
