"""What importing costs: ``python -m benchmarks.startup``.

Each library is imported in fresh processes, in turn; medians, and the ratio to NumPy's.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

LIBRARIES = ("numpy", "tinygrad_ish", "numba", "torch")
ROUNDS = 11
TIMER = "import time; t = time.perf_counter(); import {0}; print(time.perf_counter() - t)"


def seconds(library: str) -> float | None:
    """The time that a fresh process takes to import a library; None if it is not installed."""
    done = subprocess.run(
        [sys.executable, "-c", TIMER.format(library)], capture_output=True, text=True, check=False
    )
    if done.returncode and "ModuleNotFoundError" in done.stderr:
        return None
    done.check_returncode()
    return float(done.stdout)


def main() -> None:
    """Print the table."""
    times: dict[str, list[float]] = {}
    for library in LIBRARIES:  # once unmeasured: bytecode is written, files are in memory
        if seconds(library) is not None:
            times[library] = []
    for _ in range(ROUNDS):
        for library, found in times.items():
            found.append(seconds(library) or 0.0)
    base = statistics.median(times["numpy"])
    print(f"{'import':14}{'median':>10}{'best':>10}{'ratio to numpy':>17}")
    for library, found in times.items():
        median = statistics.median(found)
        print(f"{library:14}{median * 1e3:8.1f}ms{min(found) * 1e3:8.1f}ms{median / base:17.2f}")


if __name__ == "__main__":
    main()
