"""How kernels are compiled, kept and loaded: the flags, the disk cache. Nowhere else.

    @device                    a function that kernels call, compiled into each
    def clamp(v): ...

    @task                      a kernel  int64 f(T* args, int64 i), for T = float32 and float64:
    def _relu(args, i): ...    see _tasks.py

Numba makes an object file of a kernel, which is kept on disk and loaded by LLVM alone: a process
that finds its kernels there does not import Numba, which takes longer than all the rest of its
start. So what the sources of kernels name of Numba's is ``Late``, got when something is compiled.

A kernel is compiled, or loaded from the disk, at the first call for a dtype. Kernels and the
functions they call are module globals, never closures: the name is the key of the disk cache.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import importlib.metadata
import os
import re
import struct
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FunctionType
from typing import Any

import llvmlite
import numpy as np
from llvmlite import binding as llvm

from .._cache import CacheInfo, DiskCache

FLAGS = {
    "nopython": True,
    "error_model": "numpy",  # the default checks each division, which stops vectorization
    "fastmath": False,  # it reorders sums and deletes NaN checks
    "boundscheck": False,
    "_nrt": False,  # memory that counts references needs Numba to run: see _tasks.scratch
    "no_cfunc_wrapper": True,  # kernels are called by address
    "no_cpython_wrapper": True,
}
# What object code may call: LLVM ends the process if it cannot find a function.
CALLED = {"clock_gettime", "free", "log", "malloc", "pow", "sched_yield", "sqrt", "sqrtf"}
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))  # what tasks are compiled for
SLOT = np.dtype(np.int64)  # and drivers
ANSWER_BITS = 40
NO_MEMORY = (1 << ANSWER_BITS) - 1  # the answer of a function that ``_tasks.scratch`` had none for
THREADS = "NUMBA_NUM_THREADS"  # of Numba's settings the one that changes no code

Progress = Callable[[int, int, str], object]


# --- Numba, when it is needed -----------------------------------------------------------------


class Late:
    """Something of Numba's that sources name and that only compiling needs."""

    def __init__(self, get: Callable[[], Any]) -> None:
        self._get = get

    @functools.cached_property
    def got(self) -> Any:
        """The thing itself."""
        return self._get()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.got, name)


def late(module: str) -> Any:
    """A module that is imported when something of it is used."""
    return Late(lambda: importlib.import_module(module))


cgutils, ir, types = late("numba.core.cgutils"), late("llvmlite.ir"), late("numba.core.types")


def intrinsic(function: Callable[..., Any]) -> Any:
    """``numba.extending.intrinsic``: a function that emits LLVM instructions."""
    return Late(lambda: importlib.import_module("numba.extending").intrinsic(function))


class device(Late):
    """A function for kernels to call, compiled into each of them; Python may call it as it is."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(lambda: _numba().CPUDispatcher(function, targetoptions=FLAGS))
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


@functools.cache
def _numba() -> Any:
    """Numba's registry; from now on Numba sees in what is ``Late`` the thing itself."""
    from numba.core import registry
    from numba.extending import typeof_impl

    @typeof_impl.register(Late)
    def typeof(value: Any, context: Any) -> Any:
        typing, got = registry.cpu_target.typing_context, value.got
        typing.refresh()  # an intrinsic has been registered just now
        return typing.resolve_value_type(got)

    return registry


def _compile(function: Callable[..., Any], *arguments: Any) -> Any:
    """Numba's result for a function from these types to int64."""
    dispatcher = _numba().CPUDispatcher(function, targetoptions=FLAGS)
    dispatcher.compile(arguments)
    (result,) = dispatcher.overloads.values()
    assert types.unliteral(result.signature.return_type) == types.int64, function
    return result


def _payload(library: Any, name: str) -> bytes:
    """The name of a function, a zero byte, and the object code in which it has that name."""
    declared = re.findall(r'^declare .*@"?([\w.$]+)', library.get_llvm_str(), re.MULTILINE)
    foreign = {called for called in declared if not called.startswith("llvm.")} - CALLED
    assert not foreign, f"{name} calls {foreign}"
    _, _, (code, _) = library.serialize_using_object_code()
    return name.encode() + b"\0" + code


# --- kernels ----------------------------------------------------------------------------------


class Task:
    """A kernel that native code calls by its address."""

    kinds: tuple[np.dtype, ...] = FLOATS  # the dtypes that it may be compiled for

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        self.compiled: dict[np.dtype, int] = {}  # of the code for each dtype
        self._slots: struct.Struct | None = None

    def address(self, dtype: np.dtype) -> int:
        """Where the code for this dtype lies, compiled or loaded from the disk if it is not yet."""
        found = self.compiled.get(dtype)
        return self._make(dtype) if found is None else found

    def _make(self, dtype: np.dtype) -> int:
        if dtype not in self.kinds:
            raise TypeError(f"a kernel takes float32 or float64, got {dtype.name}")
        with _compiling:
            if dtype not in self.compiled:
                name = self.file_name(dtype)
                payload = disk().load(name)
                if payload is None:
                    payload = self._code(dtype)
                    disk().save(name, payload)
                self.compiled[dtype] = _load(payload)
        return self.compiled[dtype]

    def _code(self, dtype: np.dtype) -> bytes:
        """What the disk keeps: see ``_payload``."""
        result = _compile(self.function, types.CPointer(getattr(types, dtype.name)), types.int64)
        return _payload(result.library, result.fndesc.llvm_func_name)

    def file_name(self, dtype: np.dtype) -> str:
        """The name under which the disk cache keeps the code for this dtype."""
        return f"{self.name}-{dtype.name}"

    def holds(self, dtype: np.dtype) -> bool:
        """Whether there is code for this dtype, loaded or on the disk."""
        return dtype in self.compiled or disk().holds(self.file_name(dtype))

    def slots(self, values: list[Any]) -> struct.Struct:
        """How a call's address, count and values are laid out: the same for every call."""
        if self._slots is None:
            codes = ["d" if isinstance(v, float) else "q" for v in values]
            self._slots = struct.Struct(f"=qq{''.join(codes)}")
        return self._slots


class Driver(Task):
    """int64 f(int64* arguments), which Python calls with an address or with bytes. While one that
    is ``nogil`` runs, other threads of Python run beside."""

    kinds = (SLOT,)

    def __init__(self, function: Callable[..., Any], nogil: bool) -> None:
        super().__init__(function)
        prototype = ctypes.CFUNCTYPE if nogil else ctypes.PYFUNCTYPE
        self._prototype = prototype(ctypes.c_int64, ctypes.c_void_p)

    @functools.cached_property
    def native(self) -> Callable[[int | bytes], int]:
        """The function for Python to call."""
        return self._prototype(self.address(SLOT))

    def _code(self, dtype: np.dtype) -> bytes:
        """Behind a function that is called as in C: Numba's return a status too."""
        arguments = (types.CPointer(types.int64),)
        result = _compile(self.function, *arguments)
        context, name = result.target_context, result.fndesc.llvm_func_name
        module, convention = context.create_module("plain"), context.call_conv
        callee = ir.Function(module, convention.get_function_type(types.int64, arguments), name)
        kind = ir.FunctionType(ir.IntType(64), [ir.IntType(64).as_pointer()])
        plain = ir.Function(module, kind, f"plain.{self.name}")
        builder = ir.IRBuilder(plain.append_basic_block())
        status, answer = convention.call_function(
            builder, callee, types.int64, arguments, plain.args
        )
        builder.ret(builder.select(status.is_error, answer.type(NO_MEMORY), answer))
        library = context.codegen().create_library(plain.name)
        library.enable_object_caching()
        library.add_ir_module(module)
        library.add_linking_library(result.library)
        with late("numba.core.compiler_lock").global_compiler_lock:
            library.finalize()
        return _payload(library, plain.name)


def task(function: Callable[..., Any]) -> Task:
    """A piece of a kernel for T = float32 and T = float64: see _tasks.py."""
    return Task(function)


def driver(nogil: bool) -> Callable[[Callable[..., Any]], Driver]:
    """What runs tasks."""
    return lambda function: Driver(function, nogil)


_compiling = threading.Lock()
_engines: list[Any] = []  # kept alive, as the code in them is


def _load(payload: bytes) -> int:
    """The address of the function in this payload."""
    name, _, code = payload.partition(b"\0")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address(name.decode()))


# --- the disk cache ---------------------------------------------------------------------------

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
    file), the flags, the versions of all that takes part, Numba's settings, and the CPU with its
    features.
    """
    settings = {k: v for k, v in os.environ.items() if k.startswith("NUMBA_") and k != THREADS}
    facts = [
        FLAGS,
        sorted(settings.items()),
        [importlib.metadata.version("numba"), llvmlite.__version__, np.__version__],
        [sys.implementation.cache_tag, getattr(sys, "abiflags", ""), sys.maxsize],
        [llvm.get_process_triple(), llvm.get_host_cpu_name()],
        llvm.get_host_cpu_features().flatten(),
    ]
    digest = hashlib.sha256(repr(facts).encode())
    settings_file = Path(".numba_config.yaml")  # Numba reads it in the current folder
    sources = sorted(Path(__file__).parent.glob("*.py"))
    for path in [settings_file] * settings_file.exists() + sources:
        source = path.read_bytes()
        digest.update(f"{path.name} {len(source)} ".encode() + source)
    return digest.hexdigest()[:20]


@functools.cache
def target() -> tuple[str, frozenset[str]]:
    """The CPU that code is made for, as Numba takes it: LLVM's triple, and features like "+fma"."""
    saved = disk().load("target")
    if saved is None:
        triple, _, features = _numba().cpu_target.target_context.codegen().magic_tuple()
        saved = f"{triple} {features}".encode()
        disk().save("target", saved)
    triple, _, features = saved.decode().partition(" ")
    return triple, frozenset(features.split(","))


def cache_info() -> CacheInfo:
    """Where compiled kernels are kept, how many files and bytes, what this process found."""
    return disk().info()


def kernels_of(function: Callable[..., Any]) -> list[Task]:
    """The compiled kernels that a kernel's Python function calls, itself or through others."""
    found: dict[Task, None] = {}
    functions = [function]
    for caller in functions:
        for name in caller.__code__.co_names:
            for part in _parts(caller.__globals__.get(name)):
                if isinstance(part, Task):
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
    return [value] if isinstance(value, (Task, FunctionType)) else []


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
    needed = {k: dtype if dtype in k.kinds else SLOT for k in kernels} if dtype in FLOATS else {}
    missing = [k for k, kind in needed.items() if not k.holds(kind)]
    for kernel, kind in needed.items():
        if kernel not in missing:
            kernel.address(kind)
    for done, kernel in enumerate(missing):
        if progress is not None:
            progress(done, len(missing), kernel.name)
        kernel.address(needed[kernel])
    if missing and progress is not None:
        progress(len(missing), len(missing), "")
