"""CuPy as far as the engine uses it, with its arrays in NumPy's memory: ``device="cuda"`` without
a GPU.

``install()`` puts it in CuPy's place in ``sys.modules``. It computes with NumPy, and is as strict
as CuPy 14.2 is where code written on the CPU goes wrong on a GPU:

- NumPy arrays do not mix with CuPy's, and nothing becomes a NumPy array but by ``get()``. Results
  of no dimensions are arrays. Positions out of range wrap around. Flags tell less than NumPy's.
- A name that is missing here raises AttributeError. To use another of CuPy's functions, add it,
  with the parameters that CuPy gives it (``test_stand_in.py`` compares where CuPy is installed).
- New arrays hold NaN, or 0x7f in every byte.
- What CUDA forbids while a stream captures raises, cuBLAS included (``cuda_stand_in.py``).
"""

from __future__ import annotations

import functools
import math
import sys
import types
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np

from . import cuda_stand_in as device
from .cuda_stand_in import Device, MemoryPointer, record, synchronizes

POISON = {"f": 0xFF, "V": 0xFF, "b": 1}  # by the dtype's kind: NaN, also of bfloat16; True
GARBAGE = 0x7F
SUPPORTED = "?bhilqBHILQefdFD"

# --- arrays ----------------------------------------------------------------------------------

Scalar = (bool, int, float, complex, np.generic)


class Flags:
    """What CuPy tells of an array's layout; no more."""

    def __init__(self, x: ndarray) -> None:
        self.c_contiguous = x._np.flags.c_contiguous
        self.f_contiguous = x._np.flags.f_contiguous
        self.owndata = x.base is None
        self.forc = self.c_contiguous or self.f_contiguous
        self.fnc = self.f_contiguous and not self.c_contiguous


def _raw(x: Any) -> Any:
    """What NumPy computes with for an operand."""
    if isinstance(x, ndarray):
        return x._np
    if isinstance(x, Scalar):
        return x
    raise TypeError(f"Unsupported type {type(x)}")


def _quietly(function: Any, *operands: Any) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(function(*operands))


def _place(result: np.ndarray, keep: bool) -> ndarray:
    """A new array for a result: C-contiguous, or with the layout that NumPy gave it."""
    kept = keep and result.size and not result.flags.c_contiguous
    return ndarray(result.shape, result.dtype, strides_of_own=result.strides if kept else None)


def _compute(
    function: Any, *operands: Any, out: ndarray | None = None, keep: bool = False, casting: str = ""
) -> ndarray:
    """function(*operands) in new memory, or in ``out``."""
    raw = [_raw(x) for x in operands]
    result = _quietly(function, *raw)  # while a stream captures: of garbage, for shape and dtype
    if out is None:
        out = _place(result, keep)
    elif not isinstance(out, ndarray):
        raise TypeError(f"return arrays must be of cupy.ndarray, got {type(out)}")
    elif out.shape != result.shape:
        raise ValueError(f"Out shape is mismatched: {out.shape} for a result {result.shape}")
    elif casting and not np.can_cast(result.dtype, out.dtype, casting):
        raise TypeError(f"output ({result.dtype}) cannot be cast to {out.dtype} by {casting}")
    target = out._np
    if device.capture() is None:
        _quietly(np.copyto, target, result, "unsafe")
    else:
        again = functools.partial(_quietly, function, *raw)
        record(lambda: _quietly(np.copyto, target, again(), "unsafe"), out, *operands)
    return out


def _write(target: np.ndarray, at: Callable[[], Any], value: Any, *touched: Any) -> None:
    raw = _raw(value)
    record(lambda: _quietly(target.__setitem__, at(), raw), value, *touched)


def _wraps(index: np.ndarray, n: int) -> np.ndarray:
    return index % n if n and index.dtype != bool else index


def _index(index: Any, shape: tuple[int, ...]) -> tuple[Callable[[], Any], list[ndarray]]:
    """What gives the index for NumPy when it is needed, and the arrays that select."""
    parts = index if isinstance(index, tuple) else (index,)
    parts = tuple(asarray(p) if isinstance(p, (list, np.ndarray)) else p for p in parts)
    used = sum([p.ndim if _is_mask(p) else p is not None and p is not Ellipsis for p in parts])
    found: list[Any] = []
    axis = 0
    for p in parts:
        if isinstance(p, ndarray):
            if _is_mask(p):
                synchronizes("an index by a mask")
            found.append(functools.partial(_wraps, p._np, shape[axis]))
            axis += p.ndim if _is_mask(p) else 1
        elif p is None or p is Ellipsis or isinstance(p, (slice, int, np.integer)):
            found.append(p)
            axis += len(shape) - used if p is Ellipsis else p is not None
        else:
            raise IndexError(f"Only integers, slices, ... and arrays are indices, not {type(p)}")
    arrays = [p for p in parts if isinstance(p, ndarray)]
    if not arrays and Ellipsis not in parts:
        found.append(Ellipsis)  # NumPy's result is an array then, whatever its shape
    return lambda: tuple([p() if callable(p) else p for p in found]), arrays


def _is_mask(p: Any) -> bool:
    return isinstance(p, ndarray) and p.dtype == bool


def _operator(name: str, reflected: bool = False) -> Any:
    def operator(self: ndarray, other: Any) -> Any:
        if not isinstance(other, (ndarray, np.ndarray, *Scalar)):
            return NotImplemented
        return UFUNCS[name](other, self) if reflected else UFUNCS[name](self, other)

    return operator


def _in_place(name: str) -> Any:
    return lambda self, other: UFUNCS[name](self, other, out=self)


def _reduction(function: Any) -> Any:
    def reduce(self: ndarray, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _compute(lambda a: function(a, axis=axis, keepdims=keepdims), self, out=out)

    return reduce


class ndarray:
    """An array on the device."""

    __slots__ = ("_mem", "_np", "base")  # no __weakref__, no __dict__: CuPy's have none
    __module__ = "cupy"
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        shape: Any,
        dtype: Any = float,
        memptr: MemoryPointer | None = None,
        strides: Any = None,
        order: str = "C",
        strides_of_own: Any = None,
    ) -> None:
        shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        dtype = np.dtype(dtype)
        if dtype.char not in SUPPORTED and dtype.name != "bfloat16":  # ml_dtypes'
            raise ValueError(f"Unsupported dtype {dtype}")
        if strides is not None and memptr is None:
            raise ValueError("memptr is required if strides is given.")
        new = memptr is None
        pointer = device.alloc(math.prod(shape) * dtype.itemsize) if memptr is None else memptr
        self.base: ndarray | None = None
        self._mem = pointer.mem
        if new:
            self._mem._block.bytes[:] = POISON.get(dtype.kind, GARBAGE)
        self._np = np.ndarray(
            shape,
            dtype,
            self._mem._block.bytes,
            pointer.ptr - self._mem.ptr,
            strides_of_own if strides is None else strides,
            order,
        )

    def _view(self, seen: np.ndarray) -> ndarray:
        view = ndarray.__new__(ndarray)
        view._np, view._mem = seen, self._mem
        view.base = self if self.base is None else self.base
        return view

    # what it is

    shape = property(lambda self: self._np.shape)
    dtype = property(lambda self: self._np.dtype)
    strides = property(lambda self: self._np.strides)
    size = property(lambda self: self._np.size)
    ndim = property(lambda self: self._np.ndim)
    itemsize = property(lambda self: self._np.itemsize)
    nbytes = property(lambda self: self._np.nbytes)
    flags = property(Flags)
    device = property(lambda self: Device())
    T = property(lambda self: self._view(self._np.T))

    @property
    def data(self) -> MemoryPointer:
        return MemoryPointer(
            self._mem, self._np.ctypes.data - self._mem.ptr if self._mem.ptr else 0
        )

    def __len__(self) -> int:
        return len(self._np)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return repr(self.get())

    # to the host and from it

    def get(
        self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True
    ) -> np.ndarray:
        synchronizes("ndarray.get")
        if out is None:
            return self._np.copy(order)
        out[...] = self._np
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        synchronizes("ndarray.set")
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != arr.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self.flags.forc:
            raise RuntimeError("Cannot set to non-contiguous array")
        self._np[...] = arr

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def tobytes(self, order: str = "C") -> bytes:
        return self.get().tobytes(order)

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct "
            "a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        ours = UFUNCS.get(ufunc.__name__)
        if method != "__call__" or ours is None:
            return NotImplemented
        if "out" in options:
            (options["out"],) = options["out"]
        return ours(*inputs, **options)

    def __array_function__(self, function: Any, kinds: Any, args: Any, options: Any) -> Any:
        ours = getattr(sys.modules["cupy"], function.__name__, None)
        return NotImplemented if ours is None else ours(*args, **options)

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: Any = None,
        dl_device: Any = None,
        copy: Any = None,
    ) -> Any:
        return _Capsule(self)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0  # CUDA

    # views and copies

    def __getitem__(self, index: Any) -> ndarray:
        at, arrays = _index(index, self.shape)
        if arrays:
            return _compute(lambda a, *_: a[at()], self, *arrays)
        return self._view(self._np[at()])

    def __setitem__(self, index: Any, value: Any) -> None:
        at, arrays = _index(index, self.shape)
        _write(self._np, at, value, self, *arrays)

    def reshape(self, *shape: Any, order: str = "C", copy: Any = None) -> ndarray:
        shape = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        seen = self._np.reshape(shape)
        if self.size == 0 or np.may_share_memory(seen, self._np):
            return self._view(seen)
        return _compute(lambda a: a.reshape(shape), self)

    def ravel(self, order: str = "C") -> ndarray:
        return self.reshape(-1)

    def transpose(self, *axes: Any) -> ndarray:
        return self._view(self._np.transpose(*axes))

    def view(self, dtype: Any = None, type: Any = None) -> ndarray:
        return self._view(self._np.view(dtype or self.dtype))

    def copy(self, order: str = "C") -> ndarray:
        return _compute(lambda a: a.copy(order), self, keep=True)

    def astype(
        self,
        dtype: Any,
        order: str = "K",
        casting: Any = None,
        subok: Any = None,
        copy: bool = True,
    ) -> ndarray:
        if not copy and self.dtype == np.dtype(dtype):
            return self
        return _compute(lambda a: a.astype(dtype, order), self, keep=True)

    def __copy__(self) -> ndarray:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> ndarray:
        return self.copy()

    def fill(self, value: Any) -> None:
        _write(self._np, lambda: ..., value, self)

    # computing

    max, min = _reduction(np.max), _reduction(np.min)
    any, all = _reduction(np.any), _reduction(np.all)
    argmax, argmin = _reduction(np.argmax), _reduction(np.argmin)

    def sum(
        self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False
    ) -> ndarray:
        kind = self.dtype if dtype is None else np.dtype(dtype)
        wide = np.float32 if kind == np.float16 else dtype  # CuPy sums float16 in float32

        def total(a: np.ndarray) -> np.ndarray:
            found = np.sum(a, axis=axis, dtype=wide, keepdims=keepdims)
            return found.astype(kind) if kind == np.float16 else found

        return _compute(total, self, out=out)

    __matmul__ = lambda self, other: matmul(self, other)  # noqa: E731
    __neg__ = lambda self: UFUNCS["negative"](self)  # noqa: E731
    __abs__ = lambda self: UFUNCS["absolute"](self)  # noqa: E731
    __invert__ = lambda self: UFUNCS["invert"](self)  # noqa: E731


_BINARY = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide",
    "floordiv": "floor_divide", "mod": "remainder", "pow": "power", "and": "bitwise_and",
    "or": "bitwise_or", "xor": "bitwise_xor", "lshift": "left_shift", "rshift": "right_shift",
}  # fmt: skip
_COMPARED = {
    "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater",
    "ge": "greater_equal",
}  # fmt: skip
for _short, _name in _BINARY.items():
    setattr(ndarray, f"__{_short}__", _operator(_name))
    setattr(ndarray, f"__r{_short}__", _operator(_name, reflected=True))
    setattr(ndarray, f"__i{_short}__", _in_place(_name))
for _short, _name in _COMPARED.items():
    setattr(ndarray, f"__{_short}__", _operator(_name))


class _Capsule:
    """What DLPack hands over."""

    def __init__(self, array: ndarray) -> None:
        self.array = array


# --- functions -------------------------------------------------------------------------------


class ufunc:
    """An elementwise function: ``out`` and ``dtype``, no ``where``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._numpy = getattr(np, name)

    def __call__(
        self, *args: Any, out: Any = None, casting: str = "same_kind", dtype: Any = None
    ) -> ndarray:
        if isinstance(out, tuple):
            (out,) = out
        function = self._numpy if dtype is None else functools.partial(self._numpy, dtype=dtype)
        return _compute(function, *args, out=out, keep=True, casting=casting)

    def at(self, a: ndarray, indices: Any, b: Any = None) -> None:
        """``add.at``: atomic additions, for the dtypes that have them."""
        if self.name != "add":
            raise NotImplementedError(f"{self.name}.at")
        if a.dtype.char not in "iefdFDIQ":
            raise TypeError(
                "cupyx.scatter_add only supports int32, float16, float32, float64, complex64, "
                f"complex128, uint32, uint64 as data type, not {a.dtype}"
            )
        at, arrays = _index(indices, a.shape)
        target, value = a._np, _raw(b)
        record(lambda: np.add.at(target, at(), value), a, b, *arrays)


UFUNCS = {
    name: ufunc(name)
    for name in (
        *_BINARY.values(), *_COMPARED.values(), "divide", "maximum", "minimum", "negative",
        "absolute", "sign", "sqrt", "square", "exp", "expm1", "log", "log1p", "tanh", "invert",
        "isnan", "isinf", "isfinite", "logical_not",
    )
}  # fmt: skip


def _matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype == b.dtype == np.float16:  # summed in float32
        return np.matmul(a, b, dtype=np.float32).astype(np.float16)
    return np.matmul(a, b)


def matmul(x1: ndarray, x2: ndarray, /, out: Any = None) -> ndarray:
    if device.capture() is not None:
        raise NotImplementedError(
            "calling cuBLAS API during stream capture is currently unsupported"
        )
    if not (isinstance(x1, ndarray) and isinstance(x2, ndarray)):
        raise TypeError(f"Unsupported type {type(x1)} or {type(x2)}")
    return _compute(_matmul, x1, x2, out=out)


def asarray(
    a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: bool = False
) -> ndarray:
    if isinstance(a, ndarray):
        return a.copy() if copy and dtype is None else a.astype(dtype or a.dtype, copy=bool(copy))
    host = np.asarray(a, dtype)  # raises for a list of arrays on the device, which CuPy would join
    out = ndarray(host.shape, host.dtype)
    if host.ndim == 0:
        out.fill(host[()])
    else:
        synchronizes("a copy from the host")
        out._np[...] = host
    return out


def array(
    obj: Any, dtype: Any = None, copy: bool = True, order: str = "K", subok: bool = False,
    ndmin: int = 0, *, blocking: bool = False,
) -> ndarray:  # fmt: skip
    return asarray(obj, dtype, copy=copy)


def ascontiguousarray(a: ndarray, dtype: Any = None) -> ndarray:
    a = asarray(a, dtype)
    return a if a.flags.c_contiguous else a.copy()


def asnumpy(
    a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True
) -> np.ndarray:
    return a.get(stream, order, out) if isinstance(a, ndarray) else np.asarray(a)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype, order=order)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    out = ndarray(shape, np.asarray(fill_value).dtype if dtype is None else dtype, order=order)
    out.fill(fill_value)
    return out


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 0, dtype, order)


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 1, dtype, order)


def full_like(
    a: ndarray, fill_value: Any, dtype: Any = None, order: str = "K", subok: Any = None,
    shape: Any = None,
) -> ndarray:  # fmt: skip
    shape = a.shape if shape is None else shape
    alike = a._np if shape == a.shape else np.empty(shape)
    out = _place(np.empty_like(alike, dtype or a.dtype, order), keep=True)
    out.fill(fill_value)
    return out


def zeros_like(
    a: ndarray, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    return full_like(a, 0, dtype, order, subok, shape)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> ndarray:
    start, stop = (0, start) if stop is None else (start, stop)
    return _compute(lambda: np.arange(start, stop, step, dtype))


def concatenate(
    tup: Any, axis: int = 0, out: Any = None, *, dtype: Any = None, casting: str = "same_kind"
) -> ndarray:
    return _compute(lambda *a: np.concatenate(a, axis, dtype=dtype), *tup, out=out)


def stack(
    tup: Any, axis: int = 0, out: Any = None, *, dtype: Any = None, casting: str = "same_kind"
) -> ndarray:
    return _compute(lambda *a: np.stack(a, axis, dtype=dtype), *tup, out=out)


def where(condition: Any, x: Any = None, y: Any = None) -> Any:
    if x is None or y is None:
        synchronizes("where(condition)")
        return tuple(asarray(i) for i in condition.get().nonzero())
    return _compute(lambda c, a, b: np.where(c, a, b), condition, x, y)


def take(a: ndarray, indices: Any, axis: Any = None, out: Any = None) -> ndarray:
    return _compute(lambda b, i: np.take(b, i, axis, mode="wrap"), a, indices, out=out)


def take_along_axis(a: ndarray, indices: ndarray, axis: int) -> ndarray:
    n = a.shape[axis]
    return _compute(lambda b, i: np.take_along_axis(b, _wraps(i, n), axis), a, indices)


def broadcast_to(array: ndarray, shape: Any) -> ndarray:
    seen = np.broadcast_to(_raw(array), shape)  # CuPy's can be written to
    strides = np.lib.stride_tricks.as_strided(array._np, seen.shape, seen.strides)
    return array._view(strides)


def as_strided(x: ndarray, shape: Any = None, strides: Any = None) -> ndarray:
    shape = x.shape if shape is None else tuple(shape)
    return ndarray(shape, x.dtype, x.data, x.strides if strides is None else tuple(strides))


def may_share_memory(a: ndarray, b: ndarray, max_work: Any = None) -> bool:
    _only_arrays(a, b)
    return np.may_share_memory(a._np, b._np)


def shares_memory(a: ndarray, b: ndarray, max_work: Any = None) -> bool:
    _only_arrays(a, b)
    if a is b and a.size:
        return True
    synchronizes("shares_memory")
    return np.shares_memory(a._np, b._np)


def _only_arrays(*arrays: Any) -> None:
    for x in arrays:
        if not isinstance(x, ndarray):
            raise TypeError(f"Argument has incorrect type (expected cupy.ndarray, got {type(x)})")


def from_dlpack(array: Any, *, device: Any = None, copy: Any = None) -> ndarray:
    if array.__dlpack_device__()[0] != 2:
        raise BufferError("from_dlpack: the stand-in takes arrays of the device only")
    shared = array.__dlpack__().array
    return shared._view(shared._np)


class _Ogrid:
    """Open grids of ranges."""

    def __getitem__(self, key: Any) -> Any:
        found = np.ogrid[key]
        return [asarray(g) for g in found] if isinstance(found, (tuple, list)) else asarray(found)


def get_array_module(*args: Any) -> Any:
    return sys.modules["cupy"] if any(isinstance(a, ndarray) for a in args) else np


def empty_pinned(shape: Any, dtype: Any = float, order: str = "C") -> np.ndarray:
    return np.empty(shape, dtype, order)  # type: ignore[call-overload]


# --- the modules -----------------------------------------------------------------------------

FUNCTIONS: dict[str, Any] = {
    f.__name__: f
    for f in (
        array, arange, asarray, ascontiguousarray, asnumpy, broadcast_to, concatenate, empty,
        from_dlpack, full, full_like, get_array_module, matmul, may_share_memory, ones,
        shares_memory, stack, take, take_along_axis, where, zeros, zeros_like,
    )
}  # fmt: skip
NAMES = (
    "bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16",
    "float32", "float64", "dtype", "newaxis", "inf", "nan", "pi",
)  # fmt: skip


def modules() -> dict[str, types.ModuleType]:
    """The modules, by the names that CuPy gives them."""
    contents: dict[str, dict[str, Any]] = {
        "cupy": {
            "__version__": "14.2.0", "ndarray": ndarray, "ufunc": ufunc, "ogrid": _Ogrid(),
            "get_default_memory_pool": lambda: device.default_pool,
            "get_default_pinned_memory_pool": lambda: device.pinned_pool,
            **{name: getattr(np, name) for name in NAMES}, **UFUNCS, **FUNCTIONS,
        },
        "cupy.lib": {},
        "cupy.lib.stride_tricks": {"as_strided": as_strided},
        "cupy.cuda": {
            "Device": Device, "Event": device.Event, "Graph": device.Graph,
            "Memory": device.Memory, "MemoryPointer": MemoryPointer,
            "MemoryPool": device.MemoryPool, "Stream": device.Stream, "alloc": device.alloc,
            "get_current_stream": device.current_stream, "is_available": lambda: True,
            "get_elapsed_time": device.get_elapsed_time,
            "using_allocator": device.using_allocator,
        },
        "cupy.cuda.memory": {
            "MemoryPointer": MemoryPointer, "MemoryPool": device.MemoryPool,
            "OutOfMemoryError": device.OutOfMemoryError,
        },
        "cupy.cuda.runtime": {
            "CUDARuntimeError": device.CUDARuntimeError, "driverGetVersion": lambda: 13000,
            "runtimeGetVersion": lambda: 13000, "getDevice": lambda: 0, "getDeviceCount": lambda: 1,
            "getDeviceProperties": device.properties, "memGetInfo": lambda: Device().mem_info,
            "deviceSynchronize": Device().synchronize,
        },
        "cupyx": {"empty_pinned": empty_pinned},
    }  # fmt: skip
    made = {}
    for name, names in contents.items():
        module = types.ModuleType(name, "CuPy's stand-in: tests/cuda/cupy_stand_in.py")
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        module.__dict__.update(names)
        made[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, module)
    return made


def install() -> None:
    """Let ``import cupy`` give the stand-in. Raises ImportError where CuPy was imported before."""
    if "cupy" in sys.modules:
        raise ImportError("cupy is imported already: install the stand-in before anything else")
    sys.modules.update(modules())
