"""Where tensors live: device names, and the backend that serves each.

"cpu" is served by the ``numba`` backend (by ``numpy`` where Numba is not installed) unless
``set_default_device`` chose another of the CPU's, "cuda" by ``cupy``. Wherever a device is named,
a backend's name is accepted as well, to choose the kernels: ``tg.tensor([1.0], device="numpy")``.
"""

from __future__ import annotations

from .kernels import BACKENDS, Backend, BackendError, get_backend, why_missing


class device(str):
    """A device by name: "cpu" or "cuda". Equal to its name as a string."""

    __slots__ = ()

    def __new__(cls, name: str) -> device:
        """Check the name; "cuda:0" is "cuda"."""
        plain = "cuda" if name == "cuda:0" else name
        if plain not in ("cpu", "cuda"):
            raise BackendError(f"device: expected 'cpu' or 'cuda', got {name!r}")
        return super().__new__(cls, plain)

    @property
    def type(self) -> str:
        """The name, as PyTorch gives it."""
        return str(self)

    def __repr__(self) -> str:
        return f"device(type={str(self)!r})"


_default: Backend | None = None


def resolve(name: str | Backend | None) -> Backend:
    """The backend for a device name, a backend name, a backend, or None (the default).

    Raises BackendError, saying what is missing and how to install it.
    """
    if name is None:
        return get_default_backend()
    if isinstance(name, Backend):
        return name
    if name in BACKENDS:
        return get_backend(name)
    if device(name) == "cuda":
        return get_backend("cupy")
    if _default is not None and _default.device == "cpu":
        return _default
    return get_backend("numba" if why_missing("numba") is None else "numpy")


def get_default_backend() -> Backend:
    """The backend of tensors made without ``device=``."""
    global _default
    if _default is None:
        _default = resolve("cpu")
    return _default


def set_default_device(name: str | Backend) -> None:
    """Make tensors on this device (or backend) where none is named; "cpu" at the start. A CPU
    backend chosen here also serves "cpu" from then on."""
    global _default
    before, _default = _default, None
    try:
        _default = resolve(name)
    except BackendError:
        _default = before
        raise
