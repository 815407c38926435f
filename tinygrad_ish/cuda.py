"""The GPU under PyTorch's names: whether there is one, its memory, waiting for it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from .kernels import get_backend, why_missing

__all__ = [
    "OutOfMemoryError", "device_count", "empty_cache", "get_device_name", "is_available",
    "memory_allocated", "memory_reserved", "memory_summary", "synchronize",
]  # fmt: skip


class OutOfMemoryError(MemoryError):
    """The GPU has no memory left for what was asked; says for what, and how much is taken."""


def is_available() -> bool:
    """Whether device="cuda" works here; ``python -m tinygrad_ish info`` says why not."""
    return why_missing("cupy") is None


def device_count() -> int:
    """The GPUs that are visible; 0 where device="cuda" does not work."""
    return int(_cupy().cuda.runtime.getDeviceCount()) if is_available() else 0


def get_device_name() -> str:
    """The current GPU's name. Raises BackendError where there is none."""
    cupy = _cupy()
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return str(properties["name"].decode())


def synchronize() -> None:
    """Wait until the GPU has done all it was given."""
    _cupy().cuda.Device().synchronize()


def memory_allocated() -> int:
    """The bytes that arrays of this process hold on the GPU, outside of CUDA graphs."""
    return int(_cupy().get_default_memory_pool().used_bytes())


def memory_reserved() -> int:
    """The bytes that this process keeps on the GPU for arrays: held, or free to be reused."""
    return int(_cupy().get_default_memory_pool().total_bytes())


def empty_cache() -> None:
    """Give the memory that no array holds back to the GPU, for other processes."""
    _cupy().get_default_memory_pool().free_all_blocks()


def memory_summary() -> str:
    """Where the GPU's memory is, as text: held by arrays, kept for reuse, taken otherwise, free."""
    free, total = _cupy().cuda.runtime.memGetInfo()
    held, reserved = memory_allocated(), memory_reserved()
    rows = [
        ("arrays", held),
        ("kept for reuse", reserved - held),
        ("graphs, libraries, other processes", total - free - reserved),
        ("free", free),
        ("in all", total),
    ]
    lines = [f"  {what:36}{_size(n):>12}{n / total:8.1%}" for what, n in rows]
    return "\n".join([get_device_name(), *lines])


def _cupy() -> Any:
    return get_backend("cupy").xp


def _size(count: float) -> str:
    """A number of bytes for people."""
    power = min(int(math.log(count, 1024)), 4) if count >= 1 else 0
    digits = f"{count / 1024**power:.1f}" if power else f"{count:.0f}"
    return f"{digits} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def raise_named(error: MemoryError, what: str, inputs: Any = ()) -> None:
    """Raise OutOfMemoryError if an allocation on the GPU raised this error, with the name of what
    was computed and of which arrays; the caller raises others again."""
    if not type(error).__module__.startswith("cupy"):
        return
    arrays = [x for x in inputs if hasattr(x, "strides")]
    kinds = ", ".join(f"{x.dtype.name}{list(x.shape)}" for x in arrays)
    of = f" of {kinds} ({_size(sum(x.nbytes for x in arrays))})" if arrays else ""
    raise OutOfMemoryError(
        f"the GPU has no memory left for {what}{of}: {error}\n{memory_summary()}\n"
        "Use smaller batches, drop tensors that are not needed (and graphs: no_grad, detach), or "
        "stop other processes on this GPU."
    ) from error


@contextlib.contextmanager
def named(what: str, shape: Any, dtype: Any) -> Iterator[None]:
    """Let an allocation that fails on the GPU inside this context name the tensor."""
    try:
        yield
    except MemoryError as error:
        raise_named(error, f"{what} {dtype.name}{list(shape)}")
        raise
