"""Random numbers of a counter, the very ones that the reference draws, and the counts that advance
between steps: one thread's work, as kernels so that a CUDA graph can hold them."""

from __future__ import annotations

import numpy as np

from .. import reference
from ..reference import Array, namespace
from ._arrays import compilable, deliver, destination
from ._launch import blocks_for, launch
from .optimizers import is_flag, is_state

__all__ = ["count_step", "draw", "dropout"]

THREADS = 256  # of a block


def _is_ticket(x: Array) -> bool:
    return bool(x.shape == (2,) and x.dtype == np.int64 and x.flags.c_contiguous)


def draw(state: Array, out: Array | None = None) -> Array:
    """A ticket for random numbers: a copy of ``state``, int64 [seed, calls], whose calls then
    advance by one. Kernels that get the same ticket draw the same numbers."""
    if not _is_ticket(state):
        return reference.draw(state, out)
    ticket = destination(out, state.shape, state.dtype, state)
    launch("randoms", "draw", np.float64, 1, 1, (state, ticket))
    return deliver(ticket, out)


def count_step(state: Array, found_inf: Array | None = None) -> None:
    """Advance the step count, state[1], by one: called once before the ``*_step`` it serves.

    state: float64 [lr, step]; found_inf: float64 (), where it is not 0 nothing changes.
    """
    if not (is_state(state) and is_flag(found_inf)):
        return reference.count_step(state, found_inf)
    launch("randoms", "count_step", np.float64, 1, 1, (state, found_inf))


def dropout(x: Array, ticket: Array, p: float, out: Array | None = None) -> Array:
    """x · 1/(1-p), or 0 with probability p; whatever x holds where it is dropped, NaN too.

    Element i takes word i mod 4 of Philox with the counter (⌊i/4⌋, calls) and the key seed, and is
    dropped where that word is below round(p·2³²). ticket: int64 [seed, calls], from ``draw``, read
    on the GPU.
    """
    if not compilable(x):
        return reference.dropout(x, ticket, p, out)
    if not _is_ticket(ticket):
        ticket = namespace(ticket).ascontiguousarray(ticket)
    y = destination(out, x.shape, x.dtype, x, elementwise=True)
    scale = float(x.dtype.type(1 / (1 - p) if p < 1 else 0))
    blocks = blocks_for(x.size, THREADS * max(16 // x.dtype.itemsize, 4))
    args = (x, ticket, y, x.size, round(p * 2**32), scale)
    launch("randoms", "dropout", x.dtype, blocks, THREADS, args)
    return deliver(y, out)
