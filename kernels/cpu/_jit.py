"""How kernels are compiled: the flags, the signatures, the disk cache. Nowhere else.

    @device                                   a function that kernels call, compiled into each
    def clamp(v): ...

    @jit("const(T[::1]), T[::1]")             a kernel, compiled for T = float32 and float64
    def _relu(x, out): ...

A signature is a list of Numba types: T is the floating dtype, const(...) an array that is only
read (so that read-only arrays are taken), "::1" contiguous rows. The first argument is an array of
T. A kernel is compiled, or loaded from the disk, at the first call for a dtype; arguments that do
not fit the signature raise TypeError.

Kernels and the functions they call are module globals, never closures: the name is the key of the
disk cache.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import pickle
import re
import struct
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FunctionType
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import caching, config, types
from numba.core.compiler import CompileResult
from numba.core.registry import CPUDispatcher, cpu_target
from numba.core.serialize import dumps

from ._cache import CacheInfo, DiskCache

FLAGS = {
    "nopython": True,
    "error_model": "numpy",  # the default checks each division, which stops vectorization
    "fastmath": False,  # it reorders sums and deletes NaN checks
    "boundscheck": False,
    "no_cfunc_wrapper": True,  # nobody calls a kernel from C
}
DTYPES = {np.dtype(np.float32): types.float32, np.dtype(np.float64): types.float64}

Progress = Callable[[int, int, str], object]


def device(function: Callable[..., Any]) -> Any:
    """A function for kernels to call; it is compiled into each of them."""
    return CPUDispatcher(function, targetoptions={**FLAGS, "no_cpython_wrapper": True})


def jit(signature: str, nogil: bool = False) -> Callable[[Callable[..., Any]], Kernel]:
    """A kernel for T = float32 and T = float64; with ``nogil`` other Python threads run beside."""
    return lambda function: Kernel(function, signature, {"nogil": nogil})


def task(function: Callable[..., Any]) -> Task:
    """A piece of a kernel for T = float32 and T = float64, called by address: see _tasks.py."""
    return Task(function, "pointer(T), int64")


class Kernel:
    """A function compiled for its declared signatures alone, chosen by its first argument's dtype.

    Each dtype has a dispatcher of its own, closed once it is compiled: an open one would compile
    again for every other layout, and takes 30 µs for a call that needs a conversion (an array
    that may be written to, where the signature says const).
    """

    def __init__(
        self, function: Callable[..., Any], signature: str, options: dict[str, bool]
    ) -> None:
        self.function = function
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        self.signature = signature
        self.options = {**FLAGS, **options}
        self.compiled: dict[np.dtype, Any] = {}
        self._by_number: dict[int, Any] = {}  # the same by dtype.num, which is hashed faster

        self.typed = re.search(r"\bT\b", signature) is not None

    def __call__(self, first: np.ndarray, *rest: Any) -> Any:
        dispatcher = self._by_number.get(first.dtype.num)
        if dispatcher is None:
            dispatcher = self._by_number[first.dtype.num] = self.compile(first.dtype)
        return dispatcher(first, *rest)

    def compile(self, dtype: np.dtype) -> Any:
        """The dispatcher for this dtype, compiled or loaded from the disk if it is not yet."""
        dtype = self.key(dtype)
        with _compiling:
            if dtype not in self.compiled:
                dispatcher = CPUDispatcher(self.function, targetoptions=self.options)
                dispatcher._cache = _KernelCache(self.file_name(dtype))
                dispatcher.compile(_expand(self.signature, dtype))
                dispatcher.disable_compile()
                self.compiled[dtype] = dispatcher
            return self.compiled[dtype]

    def key(self, dtype: np.dtype) -> np.dtype:
        """The dtype it is compiled for, to serve arrays of this one: int64 if T does not occur."""
        return dtype if self.typed else np.dtype(np.int64)

    def file_name(self, dtype: np.dtype) -> str:
        """The name under which the disk cache keeps the kernel for this dtype."""
        return f"{self.name}-{self.key(dtype).name}"


class Task(Kernel):
    """A kernel that other native code calls by its address."""

    def __init__(self, function: Callable[..., Any], signature: str) -> None:
        super().__init__(function, signature, {"no_cpython_wrapper": True})
        self._addresses: dict[np.dtype, int] = {}
        self._slots: struct.Struct | None = None

    def address(self, dtype: np.dtype) -> int:
        """Where the native function for this dtype lies."""
        if dtype not in self._addresses:
            (result,) = self.compile(dtype).overloads.values()
            pointer = result.library.get_pointer_to_function(result.fndesc.llvm_func_name)
            self._addresses[dtype] = pointer
        return self._addresses[dtype]

    def slots(self, values: list[Any]) -> struct.Struct:
        """How a call's address, count and values are laid out: the same for every call."""
        if self._slots is None:
            codes = ["d" if isinstance(v, float) else "q" for v in values]
            self._slots = struct.Struct(f"=qq{''.join(codes)}")
        return self._slots


_compiling = threading.Lock()


def _expand(signature: str, dtype: np.dtype) -> tuple[types.Type, ...]:
    if dtype not in DTYPES and re.search(r"\bT\b", signature):
        raise TypeError(f"a kernel takes float32 or float64, got {dtype.name}")
    names = {
        "T": DTYPES.get(dtype),
        "pointer": types.CPointer,
        "const": lambda array: array.copy(readonly=True),
        "int64": types.int64,
        "float64": types.float64,
        "boolean": types.boolean,
    }
    return tuple(eval(f"[{signature}]", names))


class _KernelCache(caching._Cache):
    """One file of the disk cache as Numba's dispatchers want it."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def cache_path(self) -> str:
        return disk().folder

    def load_overload(self, sig: Any, target_context: Any) -> CompileResult | None:
        target_context.refresh()
        payload = disk().load(self._name)
        if payload is None:
            return None
        return CompileResult._rebuild(target_context, *pickle.loads(payload))

    def save_overload(self, sig: Any, data: CompileResult) -> None:
        # Numba cannot cache these two; a kernel of ours with either is a mistake.
        assert not data.lifted and not data.library.has_dynamic_globals, self._name
        disk().save(self._name, dumps(data._reduce()))

    def enable(self) -> None:
        """Always enabled."""

    def disable(self) -> None:
        """Always enabled."""

    def flush(self) -> None:
        """Nothing is held back."""


_disk: DiskCache | None = None


def disk() -> DiskCache:
    """The disk cache of this process."""
    global _disk
    if _disk is None:
        _disk = DiskCache(stamp())
    return _disk


def stamp() -> str:
    """A hash of everything that machine code depends on.

    That is every source file beside this one (Numba would not notice an edited callee in another
    file), the flags, the versions of all that takes part, and the CPU with its features.
    """
    switches = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "USING_SVML", "DEBUGINFO_DEFAULT")
    facts = [
        __package__,  # a payload names its modules
        FLAGS,
        [getattr(config, name, None) for name in switches],
        [numba.__version__, llvmlite.__version__, np.__version__],
        [sys.implementation.cache_tag, getattr(sys, "abiflags", ""), sys.maxsize],
        cpu_target.target_context.codegen().magic_tuple(),
    ]
    digest = hashlib.sha256(repr(facts).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source = path.read_bytes()
        digest.update(f"{path.name} {len(source)} ".encode() + source)
    return digest.hexdigest()[:20]


def cache_info() -> CacheInfo:
    """Where compiled kernels are kept, how many files and bytes, what this process found."""
    return disk().info()


def kernels_of(function: Callable[..., Any]) -> list[Kernel]:
    """The compiled kernels that a kernel's Python function calls, itself or through others."""
    found: dict[Kernel, None] = {}
    functions = [function]
    for caller in functions:
        for name in caller.__code__.co_names:
            for part in _parts(caller.__globals__.get(name)):
                if isinstance(part, Kernel):
                    found[part] = None
                elif part not in functions and part.__module__.startswith(f"{__package__}."):
                    functions.append(part)
    return list(found)


def _parts(value: Any) -> list[Any]:
    """The kernels and functions in a global: itself, what a partial holds, a class's methods."""
    if isinstance(value, functools.partial):
        return [part for held in (value.func, *value.args) for part in _parts(held)]
    if isinstance(value, type):
        return [method for method in vars(value).values() if isinstance(method, FunctionType)]
    return [value] if isinstance(value, (Kernel, FunctionType)) else []


def warmup(names: Iterable[str], dtype: Any = "float32", progress: Progress | None = None) -> None:
    """Compile, or load, all that the kernels of these names need for arrays of this dtype.

    ``progress(done, total, kernel)`` is called before each compilation and once after the last;
    with a warm disk cache it is not called at all. Names without a compiled kernel, and dtypes
    other than float32 and float64, need nothing.
    """
    package = importlib.import_module(__package__)
    dtype = np.dtype(dtype)
    functions = [getattr(package, name) for name in names if name in package.KERNELS]
    kernels = dict.fromkeys(k for function in functions for k in kernels_of(function))
    needed = [k for k in kernels if dtype in DTYPES and k.key(dtype) not in k.compiled]
    missing = [k for k in needed if not disk().holds(k.file_name(dtype))]
    for kernel in needed:
        if kernel not in missing:
            kernel.compile(dtype)
    for done, kernel in enumerate(missing):
        if progress is not None:
            progress(done, len(missing), kernel.name)
        kernel.compile(dtype)
    if missing and progress is not None:
        progress(len(missing), len(missing), "")
