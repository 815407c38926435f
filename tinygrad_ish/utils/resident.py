"""Training without looking: batches that are gathered on the device, losses that are kept there.

    tg.set_default_device("cuda")
    batches = ResidentLoader(images.to("cuda"), labels.to("cuda"), 64, shuffle=True, scale=1 / 255)
    losses = Ring(1000, device="cuda")

    @tg.compile
    def step():
        x, y = batches.next()
        ...
        losses.append(loss)

    for epoch in range(10):
        batches.start_epoch()
        for _ in range(len(batches)):
            step()
        print(losses.read().mean())

Where a batch begins and how many losses there are is counted on the device, so a recorded step
takes the next batch at each run, and nothing waits for the device but ``read``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import dtypes
from ..autograd import on_host, recorder
from ..device import resolve
from ..random import Generator, default_generator
from ..tensor import Tensor


class ResidentLoader:
    """Batches (x, y) of samples that lie on one device, in order or shuffled anew for every epoch.

    x is inputs[rows] · scale + shift as ``dtype``, y is targets[rows]. All batches have one size:
    the rest of an epoch is left out, as by ``DataLoader(drop_last=True)``, which gives the same
    batches for the same seed.

    inputs (N, …), floating or uint8, targets (N, …). Raises ValueError for lengths or devices that
    differ, and for a batch size outside 1..N.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch_size: int,
        shuffle: bool = False,
        *,
        scale: float = 1.0,
        shift: float = 0.0,
        dtype: Any = dtypes.DEFAULT_FLOAT,
        generator: Generator | None = None,
    ) -> None:
        if inputs.backend is not targets.backend or len(inputs) != len(targets):
            raise ValueError(
                "ResidentLoader: expected inputs and targets of one length on one device, got "
                f"{list(inputs.shape)} on {inputs.device} and {list(targets.shape)} on "
                f"{targets.device}"
            )
        if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)):
            raise TypeError(f"ResidentLoader: batch_size: expected an int, got {batch_size!r}")
        if not 1 <= batch_size <= len(inputs):
            raise ValueError(
                f"ResidentLoader: batch_size: expected 1 to {len(inputs)}, the number of samples, "
                f"got {batch_size}"
            )
        self.inputs = inputs
        self.targets = targets
        self.batch_size = int(batch_size)
        self.shuffle = bool(shuffle)
        self.generator = generator
        self._scaling = float(scale), float(shift), dtypes.as_dtype(dtype)
        self._backend = inputs.backend
        self._order = self._backend.asarray(np.arange(len(inputs), dtype=np.int64))
        self._place = self._backend.asarray(np.zeros(1, np.int64))

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return len(self.inputs) // self.batch_size

    def start_epoch(self) -> None:
        """Begin anew, in a new order if the loader shuffles."""
        on_host(self._start, (self._order, self._place))

    def _start(self) -> None:
        if self.shuffle:
            drawn = (self.generator or default_generator).numpy.permutation(len(self.inputs))
            self._backend.copy(self._backend.asarray(drawn.astype(np.int64)), out=self._order)
        self._place[0] = 0

    def next(self) -> tuple[Tensor, Tensor]:
        """The next batch; behind the last one the order begins again."""
        k, by = self._backend, recorder()
        if by is not None:
            by.saw(self.inputs)
            by.saw(self.targets)
        rows = k.next_rows(self._order, self._place, self.batch_size)
        x = k.take_scaled(self.inputs._array, rows, *self._scaling)
        return Tensor(x, k), Tensor(k.index_select(self.targets._array, rows, 0), k)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of a new epoch."""
        self.start_epoch()
        for _ in range(len(self)):
            yield self.next()


class Ring:
    """The last ``size`` numbers that were appended, on a device; reading them is what waits for it.

    Raises ValueError for a size below 1.
    """

    def __init__(self, size: int, dtype: Any = dtypes.DEFAULT_FLOAT, device: Any = None) -> None:
        if size < 1:
            raise ValueError(f"Ring: size: expected 1 or more, got {size}")
        self._backend = resolve(device)
        self._values = self._backend.full((int(size),), 0, dtypes.as_dtype(dtype))
        self._count = self._backend.asarray(np.zeros(1, np.int64))
        self._read = 0

    def append(self, value: Tensor) -> None:
        """Note a number: a tensor with one element, on the ring's device."""
        if value.numel() != 1 or value.backend is not self._backend:
            raise ValueError(
                f"Ring.append: expected a tensor with one element on {self._backend.device}, got "
                f"{list(value.shape)} on {value.device}"
            )
        number = value.detach().reshape(()).to(self._values.dtype)
        self._backend.push(self._values, self._count, number._array)

    def read(self) -> np.ndarray:
        """What was appended since the last ``read``, oldest first; of more than ``size`` numbers
        the last ``size``. Raises CompileError in a function that is being recorded."""
        Tensor(self._count, self._backend)._refuse_read("Ring.read()")
        count = int(self._backend.to_numpy(self._count)[0])
        values = self._backend.to_numpy(self._values)
        new = np.arange(max(self._read, count - len(values)), count)
        self._read = count
        return values[new % len(values)]
