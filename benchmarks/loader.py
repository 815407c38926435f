"""One pass over a dataset in memory: batches cut by slicing, by index, or sample by sample.

``python -m benchmarks.loader`` prints the median of the passes, the spread, and the ratio to this
project's loader on the same order. With PyTorch installed its DataLoader (no workers) runs on the
same arrays.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tinygrad_ish.random import manual_seed
from tinygrad_ish.tensor import from_numpy
from tinygrad_ish.utils.data import DataLoader, TensorDataset, default_collate


def passes(loader: Iterable[Any], repeats: int) -> list[float]:
    """Seconds for each of ``repeats`` passes, after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for _batch in loader:
            pass
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def check(loader: Iterable[Any], labels: np.ndarray) -> None:
    """Every sample exactly once, before anything is timed."""
    seen = np.concatenate([np.asarray(y) for _, y in loader])
    if not np.array_equal(np.sort(seen), np.sort(labels)):
        raise ValueError("the loader lost or repeated samples")


def loaders(
    images: np.ndarray, labels: np.ndarray, batch_size: int
) -> list[tuple[str, Callable[[bool], Iterable[Any]]]]:
    """What is measured: a name, and a function from ``shuffle`` to a loader."""
    ours = TensorDataset(from_numpy(images), from_numpy(labels))
    found: list[tuple[str, Callable[[bool], Iterable[Any]]]] = [
        ("whole batches", lambda shuffle: DataLoader(ours, batch_size, shuffle)),
        (
            "sample by sample",
            lambda shuffle: DataLoader(ours, batch_size, shuffle, collate_fn=default_collate),
        ),
    ]
    try:
        import torch.utils.data as torch_data
        from torch import from_numpy as torch_tensor
    except ImportError:
        return found  # PyTorch is not installed (pip install -e '.[parity]')
    theirs = torch_data.TensorDataset(torch_tensor(images), torch_tensor(labels))
    return [
        *found,
        ("torch DataLoader", lambda shuffle: torch_data.DataLoader(theirs, batch_size, shuffle)),
    ]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    manual_seed(0)
    rng = np.random.default_rng(0)
    images = rng.random((options.samples, 1, 28, 28), np.float32)
    labels = np.arange(options.samples)
    print(
        f"{options.samples} samples float32 (1, 28, 28), batch {options.batch_size}, "
        f"{options.repeats} passes; Python {platform.python_version()}, NumPy {np.__version__}, "
        f"{platform.machine()}, {os.cpu_count()} CPUs"
    )
    print(f"{'':20}{'order':10}{'median ms':>10}{'min … max ms':>18}{'ratio':>8}")
    for shuffle in (False, True):
        base = None
        for name, make in loaders(images, labels, options.batch_size):
            loader = make(shuffle)
            check(loader, labels)
            times = [1e3 * s for s in passes(loader, options.repeats)]
            median = statistics.median(times)
            base = base or median
            spread = f"{min(times):.2f} … {max(times):.2f}"
            order = "shuffled" if shuffle else "in order"
            print(f"{name:20}{order:10}{median:10.2f}{spread:>18}{median / base:8.1f}")


if __name__ == "__main__":
    main()
