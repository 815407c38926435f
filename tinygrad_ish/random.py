"""Random numbers: one generator, set by ``manual_seed``, from which every draw is taken."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from . import dtypes
from .autograd import on_host, recorder
from .device import resolve
from .kernels import Backend
from .tensor import Tensor, _flat, _shape


class Generator:
    """A stream of random numbers (NumPy's Philox), which ``manual_seed`` starts anew.

    Dropout draws on the device instead, from a seed and a count of its calls, ``state``.
    """

    _numpy: np.random.Generator | None = None
    _start: np.ndarray | None = None  # the seed and count that a device begins with

    def __init__(self) -> None:
        self._states: dict[str, Any] = {}  # by device

    @property
    def numpy(self) -> np.random.Generator:
        """The NumPy generator to draw from; seeded by the system until ``manual_seed``."""
        if self._numpy is None:  # made late: importing numpy.random takes a while
            self._numpy = np.random.Generator(np.random.Philox())
        return self._numpy

    def state(self, backend: Backend) -> Any:
        """The int64 array [seed, calls] on this backend's device that the kernel ``draw`` reads
        and advances. It stays the same array: a new seed is written into it."""
        if backend.device not in self._states:
            self._states[backend.device] = backend.asarray(self._first().copy())
        return self._states[backend.device]

    def _first(self) -> np.ndarray:
        if self._start is None:  # seeded by the system
            self._start = np.array([int.from_bytes(os.urandom(7), "little"), 0], np.int64)
        return self._start

    def _begin(self, start: np.ndarray) -> None:
        self._start = start
        for state in self._states.values():
            state[0], state[1] = int(start[0]), int(start[1])

    def manual_seed(self, seed: int) -> Generator:
        """Start the stream of this seed, an int of 0 or more."""
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"manual_seed: expected an int of 0 or more, got {seed!r}")
        self._numpy = np.random.Generator(np.random.Philox(int(seed)))
        self._begin(np.array([int(seed) % 2**64, 0], np.uint64).view(np.int64))
        return self

    def get_state(self) -> Tensor:
        """Where the stream stands, as 15 int64 numbers that ``set_state`` takes. Where several
        devices have drawn, the count is that of the one that drew most."""
        s: dict[str, Any] = self.numpy.bit_generator.state  # type: ignore[assignment]
        words = [
            *s["state"]["counter"], *s["state"]["key"], *s["buffer"],
            s["buffer_pos"], s["has_uint32"], s["uinteger"],
        ]  # fmt: skip
        seed, calls = self._first().tolist()
        calls = max([calls, *(int(state[1]) for state in self._states.values())])
        numbers = [*np.array(words, dtype=np.uint64).view(np.int64), seed, calls]
        return Tensor(np.array(numbers, dtype=np.int64), resolve("cpu"))

    def set_state(self, state: Tensor) -> None:
        """Go on from where ``get_state`` stood."""
        if not isinstance(state, Tensor) or state.shape != (15,) or state.dtype != np.int64:
            raise ValueError("set_state: expected the int64[15] tensor of get_state")
        w = state.cpu().numpy().copy().view(np.uint64)
        self.numpy.bit_generator.state = {
            "bit_generator": "Philox",
            "state": {"counter": w[:4], "key": w[4:6]},
            "buffer": w[6:10],
            "buffer_pos": int(w[10]),
            "has_uint32": int(w[11]),
            "uinteger": int(w[12]),
        }
        self._begin(w[13:].view(np.int64))


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Seed every draw from here on: initial weights, shuffling, augmentation, dropout."""
    generator: Generator = on_host(partial(default_generator.manual_seed, seed))
    return generator


def get_rng_state() -> Tensor:
    """Where the default generator stands."""
    return default_generator.get_state()


def set_rng_state(state: Tensor) -> None:
    """Put the default generator where ``get_rng_state`` stood."""
    default_generator.set_state(state)


def uniform(
    low: float, high: float, shape: Any, dtype: Any, generator: Generator | None = None
) -> np.ndarray:
    """Random numbers of a float dtype in [low, high), as an array."""
    kind = _float_type(dtype)
    values = (generator or default_generator).numpy.uniform(low, high, shape)
    # Rounding to the dtype may give high itself.
    return np.minimum(np.asarray(values, kind), np.nextafter(kind(high), kind(low)))


def normal(
    mean: float, std: float, shape: Any, dtype: Any, generator: Generator | None = None
) -> np.ndarray:
    """Random numbers of the normal distribution, of a float dtype, as an array."""
    kind = _float_type(dtype)
    return np.asarray((generator or default_generator).numpy.normal(mean, std, shape), kind)


def _float_type(dtype: Any) -> Any:
    dtype = dtypes.as_dtype(dtype)
    if not dtypes.is_float(dtype):
        raise TypeError(f"random: expected a float dtype, got {dtype.name}; use randint")
    return dtype.type


def drawn(make: Callable[[], Any], dtype: Any, backend: Backend) -> Tensor:
    """The random numbers that ``make`` draws, as a tensor; a recorded step draws at each run."""
    dtype = dtypes.as_dtype(dtype)

    def draw() -> Any:
        return backend.asarray(np.asarray(make()).astype(dtype, copy=False))

    array, by = draw(), recorder()
    if by is not None:
        by.host(lambda: backend.copy(draw(), out=array), (array,))
    return Tensor(array, backend)


def rand(
    *size: Any,
    dtype: Any = dtypes.DEFAULT_FLOAT,
    device: Any = None,
    requires_grad: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Random numbers, uniform in [0, 1)."""
    make = partial(uniform, 0.0, 1.0, _shape(_flat(size)), dtype, generator)
    return drawn(make, dtype, resolve(device)).requires_grad_(requires_grad)


def randn(
    *size: Any,
    dtype: Any = dtypes.DEFAULT_FLOAT,
    device: Any = None,
    requires_grad: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Random numbers of the standard normal distribution."""
    make = partial(normal, 0.0, 1.0, _shape(_flat(size)), dtype, generator)
    return drawn(make, dtype, resolve(device)).requires_grad_(requires_grad)


def randint(
    low: int,
    high: int | None = None,
    size: Any = (),
    *,
    dtype: Any = dtypes.int64,
    device: Any = None,
    generator: Generator | None = None,
) -> Tensor:
    """Random integers from low to high - 1; one number is ``high``."""
    if high is None or isinstance(high, (tuple, list)):
        low, high, size = 0, low, size if high is None else high
    if high <= low:
        raise ValueError(f"randint: expected low < high, got {low} and {high}")
    shape, rng = _shape(size), generator or default_generator
    return drawn(lambda: rng.numpy.integers(low, high, shape), dtype, resolve(device))


def randperm(n: int, *, device: Any = None, generator: Generator | None = None) -> Tensor:
    """0 … n-1 in random order, int64."""
    rng = generator or default_generator
    return drawn(lambda: rng.numpy.permutation(n), dtypes.int64, resolve(device))


def rand_like(input: Tensor) -> Tensor:
    """``rand`` with the shape, dtype and device of a tensor."""
    return rand(input.shape, dtype=input.dtype, device=input.backend)


def randn_like(input: Tensor) -> Tensor:
    """``randn`` with the shape, dtype and device of a tensor."""
    return randn(input.shape, dtype=input.dtype, device=input.backend)
