"""Datasets in memory and the loader that cuts them into batches, under PyTorch's names.

A dataset is anything with ``len(d)`` and ``d[i]``. One that also offers ``d.batch(rows)`` (rows:
a slice or an int64 array; the result: what a batch of these samples looks like) is asked for whole
batches, which for arrays is one indexing instead of hundreds (``python -m benchmarks.loader``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..device import resolve
from ..random import Generator, default_generator
from ..tensor import Tensor, from_numpy, stack
from .prefetch import prefetch

Rows = Any  # a slice, or an int64 array of sample numbers


class Dataset:
    """Base for datasets: a subclass defines ``__getitem__(i)`` and ``__len__()``."""

    def __getitem__(self, i: int) -> Any:
        """Sample i."""
        raise TypeError(f"{type(self).__name__}: define __getitem__(self, i), which gives sample i")

    def __len__(self) -> int:
        """The number of samples."""
        raise TypeError(f"{type(self).__name__}: define __len__(self), the number of samples")


class TensorDataset(Dataset):
    """Samples (t0[i], t1[i], …) of tensors of one length along dimension 0.

    Raises ValueError if the lengths differ, TypeError for anything but tensors.
    """

    def __init__(self, *tensors: Tensor) -> None:
        if not tensors:
            raise ValueError("TensorDataset: expected one tensor or more, got none")
        for i, t in enumerate(tensors):
            if not isinstance(t, Tensor):
                raise TypeError(
                    f"TensorDataset: argument {i}: expected a Tensor, got {type(t).__name__}; "
                    "make one with tinygrad_ish.tensor(...) or tinygrad_ish.from_numpy(...)"
                )
            if t.ndim == 0:
                raise ValueError(
                    f"TensorDataset: argument {i}: expected a tensor with samples along "
                    "dimension 0, got one with no dimensions; add one with t.reshape(1)"
                )
        if len({len(t) for t in tensors}) > 1:
            raise ValueError(
                "TensorDataset: expected tensors of one length, got "
                f"{', '.join(str(tuple(t.shape)) for t in tensors)}; samples and labels must "
                "match along dimension 0"
            )
        self.tensors = tensors

    def __getitem__(self, i: Any) -> tuple[Tensor, ...]:
        return tuple(t[i] for t in self.tensors)

    def __len__(self) -> int:
        return len(self.tensors[0])

    def batch(self, rows: Rows) -> tuple[Tensor, ...]:
        """The samples in ``rows``: views for a slice, copies for an index array."""
        return self[rows]


class Subset(Dataset):
    """The samples ``indices`` of a dataset, in that order.

    Raises ValueError if an index is outside the dataset.
    """

    def __init__(self, dataset: Any, indices: Sequence[int] | np.ndarray) -> None:
        self.dataset = dataset
        self.indices = np.asarray(indices)
        if self.indices.size == 0:
            self.indices = self.indices.astype(np.int64)
        if self.indices.ndim != 1 or self.indices.dtype.kind not in "iu":
            raise TypeError(
                "Subset: indices: expected a list of integers, got "
                f"{self.indices.dtype}{list(self.indices.shape)}; for a mask use mask.nonzero()[0]"
            )
        n = len(dataset)
        wrong = self.indices[(self.indices < -n) | (self.indices >= n)]
        if wrong.size:
            raise ValueError(
                f"Subset: indices: expected numbers from 0 to {n - 1}, the dataset having {n} "
                f"samples, got {wrong[0]}"
            )

    def __getitem__(self, i: int) -> Any:
        return self.dataset[int(self.indices[i])]

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, rows: Rows) -> Any:
        """The samples in ``rows``, collated."""
        return _fetch(self.dataset, self.indices[rows])


def random_split(
    dataset: Any, lengths: Sequence[int | float], generator: Generator | None = None
) -> list[Subset]:
    """Cut a dataset at random into Subsets of these lengths, or fractions adding up to 1.

    Of fractions each part gets the floor; samples left over go one each to the first parts.
    Raises ValueError if the parts do not add up to the dataset.
    """
    n = len(dataset)
    sizes: list[Any] = list(lengths)
    if any(isinstance(s, float) for s in sizes) and math.isclose(sum(sizes), 1):
        sizes = [math.floor(n * s) for s in sizes]
        for i in range(n - sum(sizes)):
            sizes[i] += 1
    if any(not isinstance(s, (int, np.integer)) or s < 0 for s in sizes) or sum(sizes) != n:
        raise ValueError(
            f"random_split: lengths: expected non-negative integers that add up to {n}, the "
            f"length of the dataset, or fractions that add up to 1; got {list(lengths)}"
        )
    order = (generator or default_generator).numpy.permutation(n)
    ends = list(itertools.accumulate(int(s) for s in sizes))
    return [Subset(dataset, order[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


def default_collate(samples: Sequence[Any]) -> Any:
    """A list of samples as one batch, each position stacked.

    Tensors and arrays (S) become tensors (N, S); bools, ints and floats become bool, int64 and
    float64 tensors (N,); tuples, lists and dicts are collated position by position. Raises
    TypeError for any other type, ValueError if the samples differ in shape or length.
    """
    first = samples[0]
    if isinstance(first, (Tensor, np.ndarray)):
        _same("shapes", [tuple(np.shape(s)) for s in samples])
        return stack(samples) if isinstance(first, Tensor) else from_numpy(np.stack(samples))
    if isinstance(first, Mapping):
        _same("keys", [sorted(s) for s in samples])
        return {key: default_collate([s[key] for s in samples]) for key in first}
    if isinstance(first, (tuple, list)):
        _same("lengths", [len(s) for s in samples])
        return tuple(default_collate(part) for part in zip(*samples, strict=True))
    if isinstance(first, (bool, int, float, np.generic)):
        numbers = np.array(samples)
        if numbers.dtype.kind in _NUMBERS:
            return from_numpy(numbers.astype(_NUMBERS[numbers.dtype.kind]))
    raise TypeError(
        "default_collate: expected tensors, arrays, numbers, or tuples, lists or dicts of them, "
        f"got {type(first).__name__}; give the loader a collate_fn"
    )


_NUMBERS = {"b": np.bool_, "u": np.int64, "i": np.int64, "f": np.float64}


def _same(what: str, found: list[Any]) -> None:
    for i, other in enumerate(found):
        if other != found[0]:
            raise ValueError(
                f"default_collate: expected samples of one batch to have the same {what}, got "
                f"{found[0]} for the first and {other} for number {i}; make them alike in the "
                "dataset, or give the loader a collate_fn"
            )


class DataLoader:
    """Batches of a dataset, in order or shuffled anew for every pass.

    ``generator`` (or the default one, which ``manual_seed`` sets) is what shuffling draws from:
    the same seed gives the same batches. ``drop_last`` leaves out an incomplete last batch.
    Without ``collate_fn`` a dataset with ``batch`` is asked for whole batches: an unshuffled
    TensorDataset gives views of its tensors. ``device`` is where the batches are to be: to a GPU
    they are copied through pinned memory, each while the one before is computed on.
    ``num_workers`` and ``pin_memory`` are there so that PyTorch's calls run: batches are cut in
    this process whatever they say.

    Raises TypeError or ValueError for a batch size that is no positive integer, and ValueError
    for a dataset without samples.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        *,
        drop_last: bool = False,
        generator: Generator | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        device: Any = None,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)):
            raise TypeError(
                "DataLoader: batch_size: expected an integer of at least 1, got "
                f"{type(batch_size).__name__}: {batch_size!r}"
            )
        if batch_size < 1:
            raise ValueError(
                f"DataLoader: batch_size: expected an integer of at least 1, got {batch_size}; "
                "for one batch with everything give len(dataset)"
            )
        if len(dataset) == 0:
            raise ValueError(
                f"DataLoader: dataset: expected one sample or more, got {type(dataset).__name__} "
                "of length 0; check the split or filter that made it"
            )
        self.dataset = dataset
        self.batch_size = int(batch_size)
        self.shuffle = bool(shuffle)
        self.drop_last = bool(drop_last)
        self.generator = generator
        self.collate_fn = collate_fn
        self.device = None if device is None else resolve(device)

    def __len__(self) -> int:
        """The number of batches in one pass."""
        n = len(self.dataset)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        return self._batches() if self.device is None else prefetch(self._batches(), self.device)

    def _batches(self) -> Iterator[Any]:
        n = len(self.dataset)
        order = None
        if self.shuffle:
            order = (self.generator or default_generator).numpy.permutation(n)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            rows = slice(start, min(start + self.batch_size, n))
            yield _fetch(self.dataset, rows if order is None else order[rows], self.collate_fn)


def _fetch(dataset: Any, rows: Rows, collate_fn: Callable[[list[Any]], Any] | None = None) -> Any:
    if collate_fn is None and hasattr(dataset, "batch"):
        return dataset.batch(rows)
    numbers = range(len(dataset))[rows] if isinstance(rows, slice) else rows.tolist()
    return (collate_fn or default_collate)([dataset[i] for i in numbers])
