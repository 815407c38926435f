"""The seam between tensors and kernels.

A backend is a flat module of kernels with the names of ``reference``; what it does not define is
the reference's. ``get_backend`` resolves one by name:

    numpy   the reference on NumPy arrays (device "cpu")
    numba   ``kernels/cpu``: compiled kernels on NumPy arrays (device "cpu")
    cupy    ``kernels/gpu``: the reference on CuPy arrays (device "cuda")

A tensor carries its backend, and everything it computes goes through that object. Nothing is
chosen by an environment variable, and Numba and CuPy are imported when they are first needed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from . import reference

__all__ = [
    "BACKENDS", "Backend", "BackendError", "get_backend", "get_float32_matmul_precision",
    "get_num_threads", "set_float32_matmul_precision", "set_num_threads", "why_missing",
]  # fmt: skip

Array = reference.Array


class BackendError(ValueError):
    """A backend was asked for that does not exist or cannot run here; says what to install."""


class Backend:
    """The kernels of one backend as attributes, and the making of its arrays.

    ``backend.relu(x)`` is the override of the backend if it has one, else the reference's.
    """

    def __init__(self, name: str, device: str, array_module: str, overrides: str | None) -> None:
        self.name = name
        self.device = device
        self._array_module = array_module
        self._overrides = overrides

    def __repr__(self) -> str:
        return f"<backend {self.name} on {self.device}>"

    def __getattr__(self, name: str) -> Any:
        """Resolve a kernel at its first use, and keep it."""
        if name == "xp":
            found: Any = importlib.import_module(self._array_module)
        elif name in reference.__all__:
            found = getattr(reference, name)
            if self._overrides is not None:
                found = getattr(importlib.import_module(self._overrides), name, found)
        else:
            raise AttributeError(f"backend {self.name!r} has no kernel {name!r}")
        setattr(self, name, found)
        return found

    def __reduce__(self) -> Any:
        return get_backend, (self.name,)

    def asarray(self, data: Any, dtype: Any = None) -> Array:
        """Data on this backend's device, without a copy where none is needed."""
        return self.xp.asarray(data, dtype=dtype)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array with no particular values."""
        return self.xp.empty(shape, dtype)

    def full(self, shape: tuple[int, ...], value: Any, dtype: Any) -> Array:
        """An array with every element ``value``."""
        return self.xp.full(shape, value, dtype)

    def warmup(
        self,
        names: Iterable[str] | None = None,
        dtype: Any = "float32",
        progress: Callable[[int, int, str], object] | None = None,
    ) -> None:
        """Compile ahead what these kernels (all, if None) need for arrays of ``dtype``.

        ``progress(done, total, name)`` is called around each compilation, and not at all where
        everything is in the disk cache or nothing is compiled.
        """
        module: Any = importlib.import_module(self._overrides) if self._overrides else None
        if hasattr(module, "warmup"):
            module.warmup(reference.__all__ if names is None else names, dtype, progress)

    @contextlib.contextmanager
    def observed(self, call: Callable[[str, Any, tuple[Any, ...], Any], Any]) -> Iterator[None]:
        """Let ``call(name, kernel, args, kwargs)`` stand in the place of every kernel, for calls
        from this thread inside the context."""
        thread = threading.get_ident()

        def observe(name: str, kernel: Any) -> Any:
            def observed(*args: Any, **kwargs: Any) -> Any:
                if threading.get_ident() != thread:
                    return kernel(*args, **kwargs)
                return call(name, kernel, args, kwargs)

            return observed

        kernels = {name: getattr(self, name) for name in reference.__all__}
        self.__dict__.update({name: observe(name, kernel) for name, kernel in kernels.items()})
        try:
            yield
        finally:
            self.__dict__.update(kernels)

    def lower(
        self,
        instructions: list[Any],
        exposed: list[Array],
        unchanging: list[Array],
        direct: Callable[[Any], Any],
    ) -> list[Any]:
        """The instructions of a program, with runs of them as plans where the backend makes such:
        things with ``run()``, ``binder`` and ``pieces``. The ``exposed`` arrays are read later. Of
        the ``unchanging`` a plan may read a copy in another layout: its ``packed`` lists each such
        array with a function that copies it again. ``direct`` gives an instruction as a call that
        Python performs."""
        module: Any = importlib.import_module(self._overrides) if self._overrides else None
        return (
            module.lower(instructions, exposed, unchanging, direct)
            if hasattr(module, "lower")
            else instructions
        )

    def owns(self, x: Any) -> bool:
        """Whether x is an array of this backend's array module."""
        return isinstance(x, self.xp.ndarray)

    def to_numpy(self, x: Array) -> np.ndarray:
        """x as a NumPy array: itself on the CPU, a copy from a GPU."""
        return x if isinstance(x, np.ndarray) else x.get()


BACKENDS = {
    "numpy": Backend("numpy", "cpu", "numpy", None),
    "numba": Backend("numba", "cpu", "numpy", f"{__name__}.cpu"),
    "cupy": Backend("cupy", "cuda", "cupy", f"{__name__}.gpu"),
}


def why_missing(name: str) -> str | None:
    """Why the backend cannot run on this machine and what to do, or None if it can."""
    if name == "numba" and importlib.util.find_spec("numba") is None:
        return "Numba is not installed: pip install numba"
    if name == "cupy":
        return importlib.import_module(f"{__name__}.gpu").why_missing()
    return None


def get_backend(name: str) -> Backend:
    """The backend of this name: "numpy", "numba" or "cupy".

    Raises BackendError, with what to install, if there is none or it cannot run here.
    """
    if name not in BACKENDS:
        raise BackendError(f"backend: expected one of {', '.join(BACKENDS)}; got {name!r}")
    reason = why_missing(name)
    if reason is not None:
        raise BackendError(f"backend {name!r} cannot run here. {reason}")
    return BACKENDS[name]


_PRECISIONS = ("highest", "high", "medium")
_precision = _PRECISIONS[0]


def get_float32_matmul_precision() -> str:
    """How exactly the GPU multiplies float32 matrices: "highest", "high" or "medium"."""
    return _precision


def set_float32_matmul_precision(precision: str) -> None:
    """Say how exactly the GPU must multiply float32 matrices; the names are PyTorch's.

    "highest", the default: as float32, with 24 bits of each factor. "high" and "medium": factors
    may be rounded to TF32, 11 bits, for the tensor cores, which are many times faster; sums stay
    float32. ("medium" would allow bfloat16 too; as in PyTorch, nothing makes use of that.) The CPU
    always computes in float32; float16, bfloat16 and float64 are not affected.

    Raises ValueError for another name.
    """
    if precision not in _PRECISIONS:
        raise ValueError(
            f"set_float32_matmul_precision: expected one of {', '.join(map(repr, _PRECISIONS))}; "
            f"got {precision!r}"
        )
    global _precision
    _precision = precision


def get_num_threads() -> int:
    """The most threads that a kernel on the CPU uses."""
    return int(_threads().get_num_threads())


def set_num_threads(threads: int) -> None:
    """Let kernels on the CPU, and NumPy's BLAS, use at most this many threads. No result of
    the Numba backend depends on it.

    Raises ValueError for a number outside 1 … the CPU's cores (NUMBA_NUM_THREADS). NumPy's BLAS
    follows where threadpoolctl is installed.
    """
    _threads().set_num_threads(threads)


def _threads() -> Any:
    get_backend("numba")  # says what to install
    return importlib.import_module(f"{__name__}.cpu._threads")
