"""Optimizer steps over flat arrays. What changes between steps is read on the device."""

from __future__ import annotations

from .. import reference
from ..reference import Array, tiny
from ._arrays import compilable
from ._launch import blocks_for, launch

__all__ = ["adam_step", "sgd_step"]

THREADS = 256
FILE = "optimizers"


def _takes(state: Array, found_inf: Array | None, *arrays: Array) -> bool:
    """Whether the kernels take these arrays; the reference answers for all others."""
    flat = all(x.ndim == 1 and x.shape == arrays[0].shape for x in arrays)
    return flat and is_state(state) and is_flag(found_inf) and compilable(*arrays)


def is_state(state: Array) -> bool:
    """Whether this is a pair of float64 numbers as the kernels read it."""
    return state.shape == (2,) and state.dtype.name == "float64" and bool(state.flags.c_contiguous)


def is_flag(found_inf: Array | None) -> bool:
    """Whether this is an overflow's flag as the kernels read it, or none."""
    return found_inf is None or (found_inf.shape == () and found_inf.dtype.name == "float64")


def _blocks(p: Array) -> int:
    return blocks_for(p.size, THREADS * max(16 // p.dtype.itemsize, 1))


def sgd_step(
    p: Array,
    g: Array,
    buf: Array | None,
    state: Array,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    found_inf: Array | None = None,
) -> None:
    """One step of SGD, in place on p and buf (PyTorch's form of momentum).

    p, g, buf: one-dimensional, of one length and dtype; state: float64 [lr, step]; found_inf:
    float64 (), where it is not 0 nothing changes. Where the reference rounds a product before it
    adds, this does not.
    """
    if not _takes(state, found_inf, p, g, *(() if buf is None else (buf,))):
        options = (momentum, dampening, weight_decay, nesterov, found_inf)
        return reference.sgd_step(p, g, buf, state, *options)
    numbers = (float(momentum), float(dampening), float(weight_decay), bool(nesterov))
    values = (p, g, buf, state, found_inf, *numbers, tiny(p.dtype), p.size)
    launch(FILE, "sgd_step", p.dtype, _blocks(p), THREADS, values)


def adam_step(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    state: Array,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool = False,
    found_inf: Array | None = None,
) -> None:
    """One step of Adam (Kingma and Ba, 2015), in place on p, m and v; of AdamW if ``decoupled``.

    p, g, m, v: one-dimensional, of one length and dtype; state: float64 [lr, t], t from 1;
    found_inf: float64 (), where it is not 0 nothing changes. Where the reference rounds a product
    before it adds, this does not.
    """
    if not _takes(state, found_inf, p, g, m, v):
        options = (beta1, beta2, eps, weight_decay, decoupled, found_inf)
        return reference.adam_step(p, g, m, v, state, *options)
    numbers = (float(beta1), float(beta2), float(eps), float(weight_decay), bool(decoupled))
    values = (p, g, m, v, state, found_inf, *numbers, tiny(p.dtype), p.size)
    launch(FILE, "adam_step", p.dtype, _blocks(p), THREADS, values)
