"""Batches that are on their way to the GPU while it computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..kernels import Backend
from ..program import rebuilt
from ..tensor import Tensor


def prefetch(batches: Iterable[Any], backend: Backend) -> Iterator[Any]:
    """The batches on a device. On a GPU each is copied, through pinned memory and on a stream of
    its own, while the one before is computed on."""
    if backend.device == "cpu":
        for batch in batches:
            yield rebuilt(batch, lambda t: t.to(backend))
        return
    copies = _Copies(backend)
    ahead: list[Any] = []
    for batch in batches:
        ahead.append(copies.start(batch))
        if len(ahead) == 2:
            yield copies.finish(*ahead.pop(0))
    for started in ahead:
        yield copies.finish(*started)


class _Slot:
    """Pinned memory for one batch, and the end of the latest copy out of it."""

    def __init__(self, event: Any) -> None:
        self.arrays: dict[tuple[Any, ...], Any] = {}
        self.done = event


class _Copies:
    """Copies to the GPU from two slots in turn."""

    def __init__(self, backend: Backend) -> None:
        import cupy
        import cupyx

        self._cupy, self._cupyx, self._backend = cupy, cupyx, backend
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._slots = [_Slot(cupy.cuda.Event(disable_timing=True)) for _ in range(2)]

    def start(self, batch: Any) -> tuple[Any, Any]:
        """Begin to copy a batch: it as it will be on the GPU, and the event that ends the copy."""
        slot = self._slots.pop(0)
        self._slots.append(slot)
        slot.done.synchronize()  # what was copied out of this slot has arrived
        held, slot.arrays = slot.arrays, {}
        # Memory that the user has dropped may still be computed on: what was launched comes first.
        self._stream.wait_event(self._cupy.cuda.get_current_stream().record())
        places: dict[tuple[Any, ...], int] = {}

        def copy(t: Tensor) -> Tensor:
            if t.backend is self._backend:
                return t
            host = t.detach().numpy()
            kind = (host.shape, host.dtype)
            places[kind] = places.get(kind, -1) + 1
            key = (*kind, places[kind])
            if key not in held:
                held[key] = self._cupyx.empty_pinned(host.shape, host.dtype)
            slot.arrays[key] = held[key]
            return Tensor(self._copy(held[key], host), self._backend)

        moved = rebuilt(batch, copy)
        slot.done.record(self._stream)
        return moved, slot.done

    def _copy(self, pinned: np.ndarray, host: np.ndarray) -> Any:
        np.copyto(pinned, host)
        with self._stream:
            array = self._cupy.empty(host.shape, host.dtype)
            array.set(pinned, stream=self._stream)
        return array

    def finish(self, batch: Any, done: Any) -> Any:
        """The batch, on which the current stream may compute once the copy is done."""
        self._cupy.cuda.get_current_stream().wait_event(done)
        return batch
