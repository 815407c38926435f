"""Everything that can be tested on a GPU, one after the other: ``python scripts/test_gpu.py``.

The tests marked gpu; every CUDA kernel under compute-sanitizer (memcheck, racecheck); the digits
trained there and on the CPU; dropout's masks there and on the CPU. What fails does not stop the
rest; a table at the end says how each went, and the exit status is 1 if something failed. Runs with
the Python it is started with, which needs CuPy, and this project: where there is no network,
``python3 -m pip install --no-deps --no-build-isolation -e .`` first.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SANITIZERS = ("/usr/local/cuda/bin/compute-sanitizer", "/opt/cuda/bin/compute-sanitizer")
ERRORS = "86"  # the exit status of compute-sanitizer when it found some
EPOCHS = 3
MOST_BEHIND = 0.01  # of the CPU's accuracy; the order of additions differs
MASKS = """
import numpy as np, tinygrad_ish as tg
found = []
for device in ("cpu", "cuda"):
    tg.manual_seed(11)
    layer = tg.nn.Dropout(0.3)
    found.append([layer(tg.ones(n, device=device)).cpu().numpy() for n in (61, 1031, 70_001)])
for cpu, gpu in zip(*found, strict=True):
    assert np.array_equal(cpu, gpu), f"{(cpu != gpu).sum()} of {cpu.size} differ"
    assert 0 < (cpu == 0).sum() < cpu.size
print("the masks are the CPU's")
"""
Outcome = tuple[str, str]  # "ok", "FAILED" or "skipped", and a remark


def run(command: Sequence[str], seconds: float, **environment: str) -> tuple[int, str]:
    """A command's exit status (124: it ran too long) and its output, which is shown as it comes."""
    print(f"\n$ {' '.join(command)}", flush=True)
    ends = time.monotonic() + seconds
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        ) as process,
    ):  # fmt: skip
        shown = 0
        while True:
            status = process.poll()
            log.seek(shown)
            print(log.read(), end="", flush=True)
            shown = log.tell()
            if status is not None:
                break
            if time.monotonic() > ends:
                process.kill()
                status = 124
            time.sleep(0.2)
        log.seek(0)
        return (124 if time.monotonic() > ends else status), log.read()


def judged(status: int, output: str) -> Outcome:
    """How a command went, with its last line."""
    lines = output.strip().splitlines() or ["no output"]
    remark = "it ran too long" if status == 124 else lines[-1][:90]
    return ("FAILED" if status else "ok"), remark


# --- the stages -------------------------------------------------------------------------------


def absent_files() -> list[str]:
    """Options that leave out the tests of the server where its packages are absent."""
    needed = ("starlette", "uvicorn", "httpx", "schemathesis")
    if all(importlib.util.find_spec(name) for name in needed):
        return []
    return ["--ignore-glob=*/test_serve*.py"]


def tests() -> Outcome:
    """The tests that are marked gpu."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *absent_files()]
    status, output = run(command, 240, TINYGRAD_ISH_REQUIRE_GPU="1")
    if not status and not re.search(r"\b[1-9]\d* passed", output):
        return "FAILED", "no test ran"
    summary = re.findall(r"^.*\d+ (?:passed|failed|error).*$", output, re.MULTILINE)
    outcome, remark = judged(status, output)
    return outcome, summary[-1].strip("= ") if summary else remark


def sanitizer() -> str | None:
    """The path of compute-sanitizer."""
    toolkit = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or ""
    places = (f"{toolkit}/bin/compute-sanitizer", *SANITIZERS)
    return shutil.which("compute-sanitizer") or next(filter(os.path.exists, places), None)


def sanitized(tool: str, *options: str) -> Outcome:
    """Every kernel under a tool of compute-sanitizer."""
    path = sanitizer()
    if path is None:
        return "skipped", "compute-sanitizer is not on the PATH, nor in CUDA_HOME/bin"
    command = [path, "--tool", tool, "--error-exitcode", ERRORS, sys.executable, "-m",
               "scripts.every_kernel", *options]  # fmt: skip
    status, output = run(command, 150)
    found = re.findall(r"^=+ (?:ERROR|RACECHECK) SUMMARY: .*$", output, re.MULTILINE)
    outcome, remark = judged(status, output)
    if outcome == "ok" and not found:
        return "FAILED", f"{tool} gave no summary"
    return outcome, found[-1].strip("= ") if found else remark


def kernels() -> Outcome:
    """Every kernel, without a sanitizer."""
    return judged(*run([sys.executable, "-m", "scripts.every_kernel"], 120))


def digits() -> Outcome:
    """A short training on the GPU beside the same on the CPU."""
    if importlib.util.find_spec("tqdm") is None:
        return "skipped", "tqdm is not installed, which the example needs"
    accuracy = {}
    for device in ("cuda", "cpu"):
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "examples/mnist_mlp.py", "--device", device]
            status, output = run([*command, "--epochs", f"{EPOCHS}", "--out", out], 120)
        found = re.search(r"test accuracy .*: ([\d.]+)%", output)
        if status or found is None:
            return "FAILED", f"on {device}: {judged(status, output)[1]}"
        accuracy[device] = float(found[1]) / 100
    remark = ", ".join(f"{device} {share:.2%}" for device, share in accuracy.items())
    behind = accuracy["cpu"] - accuracy["cuda"]
    return ("ok" if behind <= MOST_BEHIND else "FAILED"), f"after {EPOCHS} epochs {remark}"


def masks() -> Outcome:
    """Dropout drops the same elements as on the CPU."""
    return judged(*run([sys.executable, "-c", MASKS], 60))


STAGES: dict[str, Callable[[], Outcome]] = {
    "tests": tests,
    "kernels": kernels,
    "memcheck": functools.partial(sanitized, "memcheck"),
    "racecheck": functools.partial(
        sanitized, "racecheck", "--dtype", "float32", "--dtype", "bfloat16"
    ),
    "digits": digits,
    "masks": masks,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages asked for; 1 if one failed."""
    parser = argparse.ArgumentParser(prog="test_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--stage", action="append", choices=list(STAGES), help="one (all)")
    args = parser.parse_args(argv)
    rows = []
    for name in args.stage or STAGES:
        start = time.monotonic()
        try:
            outcome, remark = STAGES[name]()
        except (OSError, ValueError) as error:  # a program that cannot be started, say
            outcome, remark = "FAILED", str(error)
        rows.append((name, outcome, time.monotonic() - start, remark))
    print()
    for name, outcome, seconds, remark in rows:
        print(f"{name:10} {outcome:8} {seconds:5.0f} s  {remark}")
    return int(any(outcome == "FAILED" for _, outcome, *_ in rows))


if __name__ == "__main__":
    sys.exit(main())
