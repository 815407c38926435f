"""Training steps on the GPU: a part of benchmarks.gpu.

As benchmarks.train_step: the same models and two of four layers, 4096 wide; every contender in a
process of its own, its losses compared with NumPy's in float64 before the clock starts; then they
take turns. A step runs from a batch on the GPU to the updated parameters.
"""

from __future__ import annotations

import gc
import itertools
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import machine, train_step
from .children import ChildError
from .gpu_clock import Run, Worker
from .gpu_peers import GPU_PEERS, OURS
from .models import MODELS, Model, first_weights, samples
from .peers import ByHand

WIDE = [Model((4096,) * 5, batch, "adam", 1e-4) for batch in (256, 4096)]
TINY = [Model((6, 5, 3), 4, "adam", 1e-2), Model((6, 5, 3), 4, "sgd", 1e-2)]
TOLERANCE = {"fp32": 1e-4, "tf32": 3e-3, "bf16": 3e-2}  # of a loss, relative
BLOCK_SECONDS, WARM = 0.05, 0.2
WORK = 4e12  # operations in float64 that the expected losses may take


class Trainer:
    """A contender in its process, with one model after the other."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.peer: Any = None
        self.batches: Any = None

    def prepare(self, model: Model, precision: str) -> None:
        """Begin with a model."""
        self.peer = self.batches = None
        gc.collect()
        self.peer = GPU_PEERS[self.name](model, first_weights(model), precision)
        inputs, labels = (list(map(self.peer.put, arrays)) for arrays in samples(model))
        self.batches = zip(itertools.cycle(inputs), itertools.cycle(labels))

    def losses(self, steps: int) -> list[float]:
        """The loss of each of the next steps."""
        batches = itertools.islice(self.batches, steps)
        return [self.peer.value(self.peer.step(*batch)) for batch in batches]

    def start(self, model: Model, precision: str, steps: int) -> list[float]:
        """The first losses."""
        self.prepare(model, precision)
        return self.losses(steps)

    def block(self, steps: int) -> float:
        """Seconds for a step, the mean of so many."""
        for batch in itertools.islice(self.batches, int(steps * WARM) + 2):
            loss = self.peer.step(*batch)
        self.peer.value(loss)
        step, following = self.peer.step, self.batches
        start = time.perf_counter()
        for _ in range(steps):
            loss = step(*next(following))
        self.peer.value(loss)
        return (time.perf_counter() - start) / steps

    def drop(self) -> None:
        """Give the memory back."""
        self.peer = self.batches = None
        gc.collect()


def expected(model: Model) -> list[float]:
    """The first losses in float64 NumPy; fewer of a large model."""
    steps = int(min(train_step.COMPARED, max(2, WORK // model.flops())))
    peer = ByHand(model, first_weights(model), "", "float64")
    return [float(peer.step(*b)) for b in itertools.islice(zip(*samples(model)), steps)]


def differ(found: list[float], right: list[float], tolerance: float) -> str | None:
    """What is wrong with the losses; None if they agree."""
    for step, (theirs, exact) in enumerate(zip(found, right, strict=True)):
        if not abs(theirs - exact) <= tolerance * abs(exact):
            return f"loss {theirs:.6f} at step {step}, expected {exact:.6f}"
    return None


def contest(
    workers: dict[str, Worker], model: Model, precision: str, right: list[float], rounds: int,
    seconds: float = BLOCK_SECONDS,
) -> dict[str, Any]:  # fmt: skip
    """All contenders on one model in one precision."""

    def begin(name: str) -> Any:
        try:
            return workers[name].ask("start", model, precision, len(right))
        except ChildError as error:
            return error

    # At once: this is where libraries compile.
    with ThreadPoolExecutor(len(workers)) as pool:
        started = dict(zip(workers, pool.map(begin, workers)))
    left_out, wrong, field = {}, {}, {}
    for name, losses in started.items():
        if isinstance(losses, ChildError):
            left_out[name] = str(losses)
        else:
            reason = differ(losses, right, TOLERANCE[precision])
            if reason is None:
                field[name] = max(abs(a - b) / abs(b) for a, b in zip(losses, right))
            else:
                wrong[name] = reason
    times: dict[str, list[float]] = {name: [] for name in field}
    steps = dict.fromkeys(field, 3)
    order = random.Random(0)
    for turn in range(rounds + 2):  # two to find how many steps make a block
        for name in order.sample(list(times), len(times)):
            try:
                taken = workers[name].ask("block", steps[name])
            except ChildError as error:
                left_out[name] = str(error)
                del times[name]
                continue
            if turn < 2:
                steps[name] = max(2, round(seconds / taken))
            else:
                times[name].append(1e6 * taken)
    for name, worker in workers.items():
        if name in started:
            worker.ask("drop")
    return {
        "model": model.name, "parameters": model.parameters, "precision": precision,
        "losses compared": len(right), "tolerance": TOLERANCE[precision],
        "contenders": {
            name: {**machine.spread(t), "rounds": t, "error of losses": field[name]}
            for name, t in times.items()
        },
        "left_out": left_out, "wrong": wrong,
    }  # fmt: skip


HEADS = (
    "model", "precision", "contender", "µs a step", "p10", "p90", "error", "this / ours compiled",
)  # fmt: skip


def lines(result: dict[str, Any]) -> list[list[Any]]:
    """The rows of the table, the fastest first."""
    contenders = result["contenders"]
    ours = contenders.get(OURS[0], {}).get("median")
    return [
        [
            result["model"], result["precision"], name, c["median"], c["p10"], c["p90"],
            f"{c['error of losses']:.1e}", f"{c['median'] / ours:.2f}" if ours else None,
        ]
        for name, c in sorted(contenders.items(), key=lambda item: item[1]["median"])
    ]  # fmt: skip


def chosen(run: Run) -> tuple[list[Model], list[str]]:
    """The models and precisions asked for. Raises ValueError if there is none of a name."""
    if run.tiny:
        known = TINY
    else:
        known = MODELS if run.quick else [*MODELS, *WIDE]
    precisions = run.precisions or (["fp32"] if run.quick else list(TOLERANCE))
    names = {"-".join(map(str, m.sizes)) for m in known}
    unknown = {*(run.models or ())} - names | {*precisions} - {*TOLERANCE}
    if unknown:
        expected_names = ", ".join([*sorted(names), *TOLERANCE])
        raise ValueError(f"steps: expected some of {expected_names}; got {', '.join(unknown)}")
    picked = [m for m in known if "-".join(map(str, m.sizes)) in (run.models or names)]
    return picked, precisions


def run_steps(run: Run) -> None:
    """The part ``steps``."""
    picked, precisions = chosen(run)
    workers = {}
    for name, peer in GPU_PEERS.items():
        reason = peer.why_missing()
        if reason is None:
            workers[name] = Worker(Trainer, name, environment=peer.environment(1, ""))
        else:
            run.say(f"{name}: left out: {reason}")
    results = []
    seconds = 0.002 if run.tiny else BLOCK_SECONDS
    try:
        for model in picked:
            right = expected(model)
            for precision in precisions:
                rounds = 2 if run.tiny else 5 if run.quick else 9
                found = contest(workers, model, precision, right, rounds, seconds)
                results.append(found)
                run.save("steps", results)
                for row in lines(found):
                    run.say(" | ".join(f"{c:.1f}" if isinstance(c, float) else str(c) for c in row))
                for name, reason in found["left_out"].items():
                    run.say(f"{name}: left out: {reason}")
                    if name in OURS:
                        run.fails(f"{name}, {model.name} {precision}: {reason}")
                for name, reason in found["wrong"].items():
                    run.fails(f"{name}, {model.name} {precision}: {reason}")
    finally:
        for worker in workers.values():
            worker.close()
    run.table("steps", "Training steps", HEADS, [row for r in results for row in lines(r)])
    for r in results:
        _remark(run, r)


def _remark(run: Run, result: dict[str, Any]) -> None:
    """Ours beside the best of the others."""
    ours = result["contenders"].get(OURS[0])
    others = {n: c["median"] for n, c in result["contenders"].items() if n not in OURS}
    if ours and others:
        best = min(others, key=lambda name: others[name])
        ratio = others[best] / ours["median"]
        run.say(f"{result['model']} {result['precision']}: {ratio:.2f} x the speed of {best}")
