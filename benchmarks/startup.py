"""What starting costs: ``python -m benchmarks.startup``.

Importing each library in fresh processes, in turn: medians, and the ratio to NumPy's. Then, for the
peers of ``benchmarks.train_step``: seconds from starting Python to the end of the first training
step of 784-128-10, with the library's cache of compiled code empty (cold) and filled (warm); the
most memory held in the first steps; and the size of the library on disk with all that it requires.
Last, from starting Python to the first answer of that network read from a file: a program of ours
with NumPy alone and with Numba, onnxruntime, PyTorch.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import machine, report
from .memory import peak
from .models import MODELS, first_weights
from .peers import PEERS

IMPORTS = (
    "numpy", "tinygrad_ish", "numba", "torch", "jax", "tinygrad", "autograd", "onnxruntime",
)  # fmt: skip
ROUNDS = 7
TIMER = "import time; t = time.perf_counter(); import {0}; print(time.perf_counter() - t)"
FIRST_STEP = "from benchmarks.startup import first_step; first_step({name!r}, {start!r})"
CACHES = ("TINYGRAD_ISH_CACHE", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME")
ROOT = str(Path(__file__).resolve().parent.parent)
OURS = ("kernels", "serve", "tinygrad_ish")  # installed as links, so their sources are measured


def seconds(library: str) -> float:
    """The time that a fresh process takes to import a library."""
    command = [sys.executable, "-c", TIMER.format(library)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def imports(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds to import each library that is installed."""
    times: dict[str, list[float]] = {}
    for library in IMPORTS:  # once unmeasured: bytecode is written, files are in memory
        if importlib.util.find_spec(library):
            seconds(library)
            times[library] = []
    for _ in range(rounds):
        for library, found in times.items():
            found.append(seconds(library))
    return {library: {**machine.spread(t), "best": min(t)} for library, t in times.items()}


def first_step(name: str, start: float) -> None:
    """In a fresh process: take a step, print the seconds since ``start``, take some more, and
    print the most memory held so far, in bytes."""
    model = MODELS[0]
    peer = PEERS[name](model, first_weights(model), PEERS[name].options[0])
    rng = np.random.default_rng(0)
    batches = [
        (
            peer.put(rng.standard_normal((model.batch, model.sizes[0]), np.float32)),
            peer.put(rng.integers(0, model.sizes[-1], model.batch)),
        )
        for _ in range(10)
    ]
    peer.value(peer.step(*batches[0]))
    passed = time.time() - start
    for batch in batches[1:]:
        peer.value(peer.step(*batch))
    print(json.dumps({"seconds": passed, "memory": peak()}))


def step_in_process(name: str, cache: str) -> dict[str, float]:
    """What ``first_step`` prints, with the caches of compiled code in this folder."""
    peer = PEERS[name]
    environment = {
        **os.environ,
        **peer.environment(machine.threads(), peer.options[0]),
        **dict.fromkeys(CACHES, cache),
    }
    command = [sys.executable, "-c", FIRST_STEP.format(name=name, start=time.time())]
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a library is installed with its bytecode
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def starts(names: Sequence[str], rounds: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Cold start, warm starts and memory of each peer; and why others do not take part."""
    results: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name in names:
        reason = PEERS[name].why_missing()
        if reason is None:
            with tempfile.TemporaryDirectory() as cache:
                try:
                    cold = step_in_process(name, cache)["seconds"]
                    warm = [step_in_process(name, cache) for _ in range(rounds)]
                except RuntimeError as error:
                    reason = str(error)
        if reason is not None:
            left_out[name] = reason
            continue
        results[name] = {
            "cold": cold,
            "warm": statistics.median(w["seconds"] for w in warm),
            "memory": statistics.median(w["memory"] for w in warm),
            "installed": installed_size(PEERS[name].module),
        }
    return results, left_out


# What a fresh process does, from the file that the network is in to the first answer. None in
# ``sys.modules`` is as if the module were not installed.
ANSWERS = {
    "tinygrad_ish, NumPy alone": (
        "import sys; sys.modules['numba'] = None; import numpy as np, tinygrad_ish as tg; "
        "tg.load_program('{0}/net.msgpack')(np.zeros((1, 784), 'f4'))"
    ),
    "tinygrad_ish": (
        "import numpy as np, tinygrad_ish as tg; "
        "tg.load_program('{0}/net.msgpack')(np.zeros((1, 784), 'f4'))"
    ),
    "onnxruntime": (
        "import numpy as np, onnxruntime as ort; ort.InferenceSession('{0}/net.onnx', providers="
        "['CPUExecutionProvider']).run(None, {{'x': np.zeros((1, 784), 'f4')}})"
    ),
    "torch": (
        "import torch; from torch import nn; "
        "net = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)); "
        "net.load_state_dict(torch.load('{0}/net.pt')); net.eval()(torch.zeros(1, 784))"
    ),
}
MEASURED = (
    "; import time; seconds = time.time() - {1}; import sys; sys.path.insert(0, {2!r}); "
    "from benchmarks.memory import peak; import json; "
    "print(json.dumps(dict(seconds=seconds, memory=peak())))"
)


def answers(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds to the first answer, memory held then, and the size of what must be installed."""
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_networks(folder)
        installed = [n for n in ANSWERS if importlib.util.find_spec(n.partition(",")[0])]
        found: dict[str, list[dict[str, float]]] = {name: [] for name in installed}
        for turn in range(rounds + 1):
            for name in installed:
                code = (ANSWERS[name] + MEASURED).format(folder, time.time(), ROOT)
                result = machine_readable(code)
                if turn:  # once unmeasured
                    found[name].append(result)
    for name, several in found.items():
        module, alone = name.partition(",")[::2]
        results[name] = {key: statistics.median(r[key] for r in several) for key in several[0]}
        results[name]["installed"] = installed_size(
            module, {"numba", "llvmlite"} if alone else set()
        )
    return results


def machine_readable(code: str) -> dict[str, float]:
    """The last line that a fresh Python prints, as JSON."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def write_networks(folder: str) -> None:
    """784-128-10 as a program, and as ONNX and PyTorch's weights where these are installed."""
    import tinygrad_ish as tg

    from .inference import onnx_file
    from .peers import Eager

    weights = first_weights(MODELS[0])
    model = Eager(MODELS[0], weights, "").model
    tg.export(model, np.zeros((1, 784), np.float32), f"{folder}/net.msgpack")
    if importlib.util.find_spec("onnx"):
        Path(folder, "net.onnx").write_bytes(onnx_file(weights))
    if importlib.util.find_spec("torch"):
        import torch

        state = {
            f"{2 * n}.{name}": torch.from_numpy(a)
            for n, pair in enumerate(weights)
            for name, a in zip(("weight", "bias"), pair, strict=True)
        }
        torch.save(state, f"{folder}/net.pt")


def installed_size(module: str, without: set[str] | None = None) -> int:
    """Bytes of the files of a distribution and of all that it requires, but for some."""
    if module == "tinygrad_ish":
        module = "tinygrad-ish"
    found: dict[str, int] = dict.fromkeys(without or (), 0)
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # required on other systems alone
        found[name] = sum(_size(Path(str(file.locate()))) for file in distribution.files or ())
        for line in distribution.requires or ():
            required = re.match(r"[\w.-]+", line)
            if required and "extra ==" not in line:
                waiting.append(required.group())
    if module == "tinygrad-ish":
        sources = (path for top in OURS for path in Path(ROOT, top).rglob("*.py"))
        found[module] += sum(map(_size, sources))
    return sum(found.values())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="benchmarks.startup", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--peers", metavar="A,B", help=f"of {', '.join(PEERS)}")
    add("--rounds", type=int, default=ROUNDS, help=f"imports of each library ({ROUNDS})")
    add("--imports", action="store_true", help="importing alone")
    add("--quick", action="store_true", help="2 imports, 1 warm start")
    args = parser.parse_args(argv)
    args.peers = args.peers.split(",") if args.peers else list(PEERS)
    unknown = set(args.peers) - set(PEERS)
    if unknown:
        parser.error(f"--peers {unknown.pop()}: expected some of {', '.join(PEERS)}")
    args.rounds = 2 if args.quick else args.rounds
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    args = parse(argv)
    facts = machine.describe()
    report.heading(facts)
    times = imports(args.rounds)
    base = times["numpy"]["median"]
    rows: list[list[Any]] = [
        [library, 1e3 * t["median"], 1e3 * t["best"], f"{t['median'] / base:.2f}"]
        for library, t in times.items()
    ]
    report.table(["import, ms", "median", "best", "/ numpy"], rows)
    found, left_out = ({}, {}) if args.imports else starts(args.peers, 1 if args.quick else 3)
    if found:
        print()
        rows = [
            [name, r["cold"], r["warm"], r["memory"] / 2**20, r["installed"] / 2**20]
            for name, r in found.items()
        ]
        heads = ["first step, s", "cold", "warm", "memory, MiB", "installed, MiB"]
        report.table(heads, rows)
    first = {} if args.imports else answers(args.rounds)
    if first:
        print()
        rows = [
            [name, 1e3 * r["seconds"], r["memory"] / 2**20, r["installed"] / 2**20]
            for name, r in first.items()
        ]
        report.table(["first answer", "ms", "memory, MiB", "installed, MiB"], rows)
    for name, reason in left_out.items():
        print(f"{name}: left out: {reason}")
    report.save("startup", {"machine": facts, "imports": times, "steps": found, "answers": first})
    return 0


if __name__ == "__main__":
    sys.exit(main())
