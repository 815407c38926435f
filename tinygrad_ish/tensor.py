"""The tensor: an array on a backend, and its place on the graph.

One ``def`` for each method, in PyTorch's names and semantics; the work is done by the ops
(``ops/``), or by a kernel directly where there is nothing to differentiate. The functions of the
package (``tg.exp``, ``tg.relu``, …) are these methods.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, Union

import numpy as np

from . import autograd, cuda, dtypes
from .amp import in_float32, in_low_precision
from .autograd import Array, Function, InPlaceError, Version, is_grad_enabled
from .device import device as device_name
from .device import resolve
from .kernels import Backend
from .ops import elementwise, linalg, movement, reductions

# Inside the class, int, float and bool are methods; the annotations need the types.
_int = int
_float = float
_bool = bool
Number = bool | int | float
Operand = Union["Tensor", Number, np.ndarray, np.generic]
Dim = Union[int, "tuple[int, ...]", "list[int]", None]
Method = TypeVar("Method", bound=Callable[..., Any])

_quiet = np.errstate(over="ignore")  # a number beyond the dtype's is infinite


class Extreme(NamedTuple):
    """What ``max`` and ``min`` give along an axis."""

    values: Tensor
    indices: Tensor


class Tensor:
    """A multi-dimensional array with a gradient. Make one with ``tg.tensor(data)``.

    ``grad`` is None or a Tensor of the same shape and dtype, filled by ``backward``;
    ``requires_grad`` asks for it; ``backend`` holds the kernels that compute with this tensor.
    """

    __slots__ = (
        "__weakref__", "_array", "_grad", "_is_view", "_node", "_rebased", "_requires_grad",
        "_version", "backend",
    )  # fmt: skip
    __array_priority__ = 1000  # an ndarray on the left leaves the operation to us

    def __init__(self, array: Array, backend: Backend | None = None) -> None:
        self.backend = backend = backend or resolve(None)
        if not isinstance(array, backend.xp.ndarray):
            if not isinstance(array, np.generic):
                raise TypeError(
                    f"Tensor: expected an array, got {type(array).__name__}; use tensor(data)"
                )
            array = backend.asarray(array)
        self._array = array
        self._version = Version()
        self._is_view = False
        self._rebased: int | None = None  # of a view: version.rebased when it was made
        self._node: Function | None = None
        self._grad: Tensor | None = None
        self._requires_grad = False

    # --- what it is ------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[_int, ...]:
        """The lengths of the axes."""
        return self._array.shape

    @property
    def dtype(self) -> np.dtype:
        """The type of the elements."""
        return self._array.dtype

    @property
    def device(self) -> device_name:
        """Where the elements are: "cpu" or "cuda"."""
        return device_name(self.backend.device)

    @property
    def ndim(self) -> _int:
        """The number of axes."""
        return self._array.ndim

    @property
    def requires_grad(self) -> _bool:
        """Whether operations on it are recorded for ``backward``."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: _bool) -> None:
        self.requires_grad_(value)

    @property
    def grad(self) -> Tensor | None:
        """What ``backward`` has added up for this leaf; None before, and after it is dropped."""
        recorder = autograd.recorder()
        if recorder is not None:
            recorder.reads_grad(self)
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"grad: expected a Tensor or None, got {type(value).__name__}")
        recorder = autograd.recorder()
        if recorder is not None:
            recorder.sets_grad(self)
        self._grad = value

    @property
    def is_leaf(self) -> _bool:
        """Whether no recorded operation made it."""
        return self._node is None

    @property
    def grad_fn(self) -> Function | None:
        """The op that made it, if it is on the graph."""
        return self._node

    @property
    def T(self) -> Tensor:
        """The axes in reverse order."""
        return self.permute(*reversed(range(self.ndim)))

    @property
    def data(self) -> Tensor:
        """The same memory outside the graph; assigning to it replaces the memory."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"data: expected a Tensor, got {type(value).__name__}")
        self._array, self.backend = value._array, value.backend
        self._version, self._is_view, self._rebased = value._version, False, None

    def dim(self) -> _int:
        """The number of axes."""
        return self.ndim

    def size(self, dim: _int | None = None) -> Any:
        """The shape, or the length of one axis."""
        return self.shape if dim is None else self.shape[self._axis(dim)]

    def numel(self) -> _int:
        """The number of elements."""
        return math.prod(self.shape)

    def element_size(self) -> _int:
        """Bytes of one element."""
        return self.dtype.itemsize

    def is_contiguous(self) -> _bool:
        """Whether the elements lie in row-major order without gaps."""
        return bool(self._array.flags.c_contiguous)

    def is_floating_point(self) -> _bool:
        """Whether the dtype is a float."""
        return dtypes.is_float(self.dtype)

    def __len__(self) -> _int:
        if self.ndim == 0:
            raise TypeError("len() of a zero-dimensional tensor")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        self._refuse_read("repr()")
        values = self.backend.to_numpy(self._array)
        if values.dtype.name == "bfloat16":  # which NumPy does not round for printing
            values = values.astype(np.float32)
        parts = [np.array2string(values, precision=4, separator=", ", prefix="tensor(")]
        if not values.size and self.ndim > 1:
            parts.append(f"size={self.shape}")
        if self.dtype not in (dtypes.float32, dtypes.int64, dtypes.bool_) or not values.size:
            parts.append(f"dtype={self.dtype.name}")
        if self.device != "cpu":
            parts.append(f"device={str(self.device)!r}")
        if self._node is not None:
            parts.append(f"grad_fn=<{self._node.name}>")
        elif self.requires_grad:
            parts.append("requires_grad=True")
        return f"tensor({', '.join(parts)})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 else format(repr(self), spec)

    def __bool__(self) -> _bool:
        if self.numel() != 1:
            raise ValueError(
                f"the truth of a tensor of shape {list(self.shape)} is ambiguous; use .any() or "
                ".all()"
            )
        return bool(self.item())

    def __int__(self) -> _int:
        return int(self.item())

    def __float__(self) -> _float:
        return float(self.item())

    def __index__(self) -> _int:
        if dtypes.is_float(self.dtype) or self.numel() != 1:
            raise TypeError(f"only a one-element integer tensor is an index, got {self!r}")
        return int(self.item())

    def __contains__(self, value: Operand) -> _bool:
        return bool(self.eq(value).any())

    __hash__ = object.__hash__

    # --- leaving -----------------------------------------------------------------------------

    def item(self) -> Any:
        """The one element as a Python number. Raises ValueError if there is not exactly one."""
        if self.numel() != 1:
            raise ValueError(
                f"item(): a tensor of shape {list(self.shape)} has {self.numel()} elements, not "
                "one; use tolist()"
            )
        self._refuse_read("item()")
        return self._array.item()

    def tolist(self) -> Any:
        """The elements as nested lists of Python numbers."""
        self._refuse_read("tolist()")
        return self._array.tolist()

    def numpy(self) -> np.ndarray:
        """The elements as a NumPy array: the same memory on the CPU.

        Raises TypeError for a tensor that requires a gradient (``detach()`` it first) or is on a
        GPU (``cpu()`` first). An optimizer moves its parameters into memory of its own when it is
        made: an array taken before then no longer follows them.
        """
        if self.requires_grad:
            raise TypeError("numpy(): the tensor requires a gradient; use x.detach().numpy()")
        if self.device != "cpu":
            raise TypeError("numpy(): the tensor is on the GPU; use x.cpu().numpy()")
        self._refuse_read("numpy()")
        self._version.exposed = True
        return self._array

    def __array__(self, dtype: Any = None, copy: _bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        if self.requires_grad:
            raise TypeError("__dlpack__: the tensor requires a gradient; use x.detach()")
        self._refuse_read("__dlpack__()")
        self._version.exposed = True
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[_int, _int]:
        return self._array.__dlpack_device__()

    def __deepcopy__(self, memo: dict[_int, Any]) -> Tensor:
        if self._node is not None:
            raise ValueError("deepcopy: only leaves can be copied; use x.detach().clone()")
        twin = type(self).__new__(type(self))
        Tensor.__init__(twin, self.backend.copy(self._array), self.backend)
        twin._requires_grad = self._requires_grad
        memo[id(self)] = twin
        if self.grad is not None:
            twin.grad = self.grad.clone()
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a Tensor is not pickled; write it with tinygrad_ish.save(obj, path), copy it with "
            "clone()"
        )

    def _refuse_read(self, name: str) -> None:
        """Raise if the caller is being recorded: a value read now would be taken for all runs."""
        recorder = autograd.recorder()
        if recorder is not None:
            recorder.refuse(
                f"{name} reads the values of a tensor, which a recording cannot follow; return "
                "the tensor, and read it after the call"
            )

    # --- the graph ---------------------------------------------------------------------------

    def backward(self, gradient: Tensor | None = None, retain_graph: _bool = False) -> None:
        """Add d(self)/d(leaf) to ``.grad`` of every leaf that requires it.

        ``gradient`` weights the elements; it may be left out for a tensor of one element. The
        graph is freed on the way unless ``retain_graph``. Raises GradientError where there is no
        graph, and InPlaceError where a value that is needed was overwritten.
        """
        if not self.requires_grad:
            raise autograd.GradientError(
                "backward(): the tensor does not depend on anything that requires a gradient; "
                "set requires_grad=True on a leaf before the forward, outside no_grad"
            )
        self._refuse_stale()
        if gradient is None:
            if self.numel() != 1:
                raise autograd.GradientError(
                    f"backward(): a tensor of shape {list(self.shape)} needs gradient=, a tensor "
                    "of that shape; or reduce it first, x.sum().backward()"
                )
            g = self.backend.full(self.shape, 1, self.dtype)
            recorder = autograd.recorder()
            if recorder is not None:
                recorder.creates(g)
        else:
            g = self._checked_gradient(gradient)
        autograd.backward(self, g, retain_graph)

    def _checked_gradient(self, gradient: Tensor) -> Array:
        if not isinstance(gradient, Tensor) or gradient.shape != self.shape:
            got = list(gradient.shape) if isinstance(gradient, Tensor) else type(gradient).__name__
            raise autograd.GradientError(
                f"backward(): gradient must be a tensor of shape {list(self.shape)}, got {got}"
            )
        if gradient.backend is not self.backend:
            autograd.refuse_mixed("backward", self.backend, gradient.backend)
        return gradient.to(self.dtype)._array

    def _refuse_stale(self) -> None:
        """Raise if a recorded operation wrote to this view's memory: it is not on that graph."""
        if self._rebased is not None and self._rebased != self._version.rebased:
            raise InPlaceError(
                f"this view was made before {self._version.writer} changed its memory, so its "
                "gradient would be wrong; make the view again, after that"
            )

    def _accumulate(self, g: Array) -> None:
        """Add g, memory that nobody else holds, to ``grad``."""
        if self.grad is None:
            self.grad = Tensor(g, self.backend)
        else:
            self.backend.add(self.grad._array, g, out=self.grad._array)
            self.grad._version.bump("backward")

    def detach(self) -> Tensor:
        """The same memory, outside the graph."""
        recorder = autograd.recorder()
        if recorder is not None:
            recorder.saw(self)
        out = Tensor(self._array, self.backend)
        out._share_memory(self)
        out._rebased = None  # whatever is recorded there does not concern it
        return out

    def requires_grad_(self, requires_grad: _bool = True) -> Tensor:
        """Ask for a gradient, or stop asking; in place."""
        if requires_grad and not dtypes.is_float(self.dtype):
            raise TypeError(f"requires_grad: only floats have gradients, not {self.dtype.name}")
        if not requires_grad and self._node is not None:
            raise ValueError("requires_grad_(False): only for leaves; use x.detach()")
        self._requires_grad = bool(requires_grad)
        return self

    def _share_memory(self, base: Tensor) -> None:
        self._version = base._version
        self._rebased = base._version.rebased
        self._is_view = True

    # --- dtype and device --------------------------------------------------------------------

    def to(
        self, *args: Any, device: Any = None, dtype: Any = None, non_blocking: _bool = False
    ) -> Tensor:
        """The tensor in another dtype or on another device, given in any order; itself if
        nothing changes. ``x.to(other)`` takes both from a tensor. ``non_blocking`` is there so that
        PyTorch's calls run; ``DataLoader(device=...)`` copies while the GPU computes."""
        for a in args:
            if isinstance(a, Tensor):
                device, dtype = a.backend, a.dtype
            elif isinstance(a, Backend) or (isinstance(a, str) and a not in dtypes.NAMES):
                device = a
            else:
                dtype = a
        out = self
        if dtype is not None and dtypes.as_dtype(dtype) != self.dtype:
            out = elementwise.Cast.apply(out, dtype=dtypes.as_dtype(dtype))
        if device is not None and (isinstance(device, Backend) or device != self.device):
            out = out._on(resolve(device))
        return out

    def _on(self, backend: Backend) -> Tensor:
        if backend is self.backend:
            return self
        if self._requires_grad and is_grad_enabled():
            raise ValueError(
                "to(): the graph does not cross devices; make the tensor on that device, or move "
                "x.detach()"
            )
        self._refuse_read(f"to({backend.device})")
        with cuda.named("a copy of a tensor", self.shape, self.dtype):
            array = backend.xp.array(self.backend.to_numpy(self._array))
        return Tensor(array, backend)

    def cpu(self) -> Tensor:
        """The tensor on the CPU."""
        return self.to("cpu")

    def cuda(self) -> Tensor:
        """The tensor on the GPU."""
        return self.to("cuda")

    def float(self) -> Tensor:
        """As float32."""
        return self.to(dtypes.float32)

    def double(self) -> Tensor:
        """As float64."""
        return self.to(dtypes.float64)

    def half(self) -> Tensor:
        """As float16."""
        return self.to(dtypes.float16)

    def bfloat16(self) -> Tensor:
        """As bfloat16."""
        return self.to("bfloat16")

    def int(self) -> Tensor:
        """As int32."""
        return self.to(dtypes.int32)

    def long(self) -> Tensor:
        """As int64."""
        return self.to(dtypes.int64)

    def bool(self) -> Tensor:
        """As bool: whether each element is not zero."""
        return self.to(dtypes.bool_)

    def type_as(self, other: Tensor) -> Tensor:
        """In the dtype of another tensor."""
        return self.to(other.dtype)

    # --- elementwise -------------------------------------------------------------------------

    def _pair(self, other: Operand, name: str) -> tuple[Any, Any]:
        """self and other in the dtype that they meet in; a Python number stays one."""
        if not isinstance(other, Tensor):
            other = self._operand(other, name)
        a = self._array
        if not isinstance(other, Tensor):
            if dtypes.is_float(a.dtype) or isinstance(other, bool):
                return self, other
            return self.to(dtypes.result_type(self, other)), other
        b = other._array
        if a.shape != b.shape:
            _check_broadcast(name, a.shape, b.shape)
        if a.dtype != b.dtype:
            dtype = dtypes.result_type(self, other)
            return self.to(dtype), other.to(dtype)
        return self, other

    def _numbers(self, other: Operand, name: str, kinds: str = "iuf") -> tuple[Any, Any]:
        """``_pair`` for what is defined on dtypes of some kinds only, not on bool."""
        a, b = self._pair(other, name)
        return a._of_kind(kinds, name), b

    def _of_kind(self, kinds: str, name: str) -> Tensor:
        if ("f" if dtypes.is_float(self.dtype) else self.dtype.kind) not in kinds:
            raise TypeError(
                f"{name}: not defined for {self.dtype.name}; cast first, with x.int(), x.float() "
                "or x.bool()"
            )
        return self

    def _operand(self, other: Operand, name: str) -> Any:
        if isinstance(other, np.generic):  # np.float64 is a float too, but of a dtype that wins
            other = other.item()
        if isinstance(other, (bool, int, float)):
            return other
        if isinstance(other, np.ndarray):
            return tensor(other, device=self.backend)
        raise TypeError(
            f"{name}: expected a tensor or a number, got {type(other).__name__}; make a tensor "
            "of it with tinygrad_ish.tensor(...)"
        )

    def _floating(self) -> Tensor:
        """Itself if floating, else as the default float."""
        return self if dtypes.is_float(self.dtype) else self.to(dtypes.DEFAULT_FLOAT)

    def add(self, other: Operand, *, alpha: Number = 1) -> Tensor:
        """self + alpha · other."""
        if alpha != 1:
            other = other * alpha  # type: ignore[operator]
        return elementwise.Add.apply(*self._pair(other, "add"))

    def sub(self, other: Operand, *, alpha: Number = 1) -> Tensor:
        """self - alpha · other."""
        if alpha != 1:
            other = other * alpha  # type: ignore[operator]
        return elementwise.Sub.apply(*self._numbers(other, "sub"))

    def mul(self, other: Operand) -> Tensor:
        """self · other."""
        return elementwise.Mul.apply(*self._pair(other, "mul"))

    def div(self, other: Operand) -> Tensor:
        """self / other; integers give the default float."""
        a, b = self._pair(other, "div")
        return elementwise.Div.apply(a._floating(), b._floating() if isinstance(b, Tensor) else b)

    def floor_divide(self, other: Operand) -> Tensor:
        """⌊self / other⌋, outside the graph."""
        return self._plain("floor_div", *self._numbers(other, "floor_divide"))

    def remainder(self, other: Operand) -> Tensor:
        """self - other·⌊self / other⌋."""
        return elementwise.Remainder.apply(*self._numbers(other, "remainder"))

    @in_float32
    def pow(self, exponent: Operand) -> Tensor:
        """self to the power ``exponent``."""
        return elementwise.Pow.apply(*self._numbers(exponent, "pow"))

    def maximum(self, other: Operand) -> Tensor:
        """The larger of self and other."""
        return elementwise.Maximum.apply(*self._pair(other, "maximum"))

    def minimum(self, other: Operand) -> Tensor:
        """The smaller of self and other."""
        return elementwise.Minimum.apply(*self._pair(other, "minimum"))

    def clamp(self, min: Operand | None = None, max: Operand | None = None) -> Tensor:
        """self kept between min and max. The gradient passes inside them and at their edges."""
        if min is None and max is None:
            raise ValueError("clamp: give min, max or both")
        out = self if min is None else where(self < min, min, self)
        return out if max is None else where(out > max, max, out)

    def neg(self) -> Tensor:
        """-self."""
        return elementwise.Neg.apply(self._of_kind("iuf", "neg"))

    def abs(self) -> Tensor:
        """|self|."""
        return elementwise.Abs.apply(self)

    def sqrt(self) -> Tensor:
        """√self."""
        return elementwise.Sqrt.apply(self._floating())

    def square(self) -> Tensor:
        """self²."""
        return self.pow(2)

    @in_float32
    def exp(self) -> Tensor:
        """e to the power self."""
        return elementwise.Exp.apply(self._floating())

    @in_float32
    def log(self) -> Tensor:
        """The natural logarithm."""
        return elementwise.Log.apply(self._floating())

    def sigmoid(self) -> Tensor:
        """1 / (1 + e^-self)."""
        return elementwise.Sigmoid.apply(self._floating())

    def tanh(self) -> Tensor:
        """The hyperbolic tangent."""
        return elementwise.Tanh.apply(self._floating())

    def relu(self) -> Tensor:
        """max(self, 0), elementwise."""
        return elementwise.ReLU.apply(self._of_kind("iuf", "relu"))

    def clone(self) -> Tensor:
        """The same values in memory of their own, on the graph."""
        return elementwise.Clone.apply(self)

    def contiguous(self) -> Tensor:
        """Itself if contiguous, else a copy that is."""
        return self if self.is_contiguous() else self.clone()

    # The commonest operators apply their op themselves: one call less in every use.

    def __add__(self, other: Operand) -> Tensor:
        return elementwise.Add.apply(*self._pair(other, "add"))

    def __radd__(self, other: Operand) -> Tensor:
        return elementwise.Add.apply(*self._pair(other, "add"))

    def __sub__(self, other: Operand) -> Tensor:
        return elementwise.Sub.apply(*self._numbers(other, "sub"))

    def __rsub__(self, other: Operand) -> Tensor:
        a, b = self._numbers(other, "sub")
        return elementwise.Sub.apply(b, a)

    def __mul__(self, other: Operand) -> Tensor:
        return elementwise.Mul.apply(*self._pair(other, "mul"))

    def __rmul__(self, other: Operand) -> Tensor:
        return elementwise.Mul.apply(*self._pair(other, "mul"))

    def __truediv__(self, other: Operand) -> Tensor:
        return self.div(other)

    def __rtruediv__(self, other: Operand) -> Tensor:
        a, b = self._pair(other, "div")
        return elementwise.Div.apply(b._floating() if isinstance(b, Tensor) else b, a._floating())

    def __floordiv__(self, other: Operand) -> Tensor:
        return self.floor_divide(other)

    def __rfloordiv__(self, other: Operand) -> Tensor:
        a, b = self._numbers(other, "floor_divide")
        return self._plain("floor_div", b, a)

    def __mod__(self, other: Operand) -> Tensor:
        return self.remainder(other)

    def __rmod__(self, other: Operand) -> Tensor:
        a, b = self._numbers(other, "remainder")
        return elementwise.Remainder.apply(b, a)

    def __pow__(self, other: Operand) -> Tensor:
        return self.pow(other)

    @in_float32
    def __rpow__(self, other: Operand) -> Tensor:
        a, b = self._numbers(other, "pow")
        return elementwise.Pow.apply(b, a)

    def __neg__(self) -> Tensor:
        return self.neg()

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return self.abs()

    # --- comparisons and logic: no gradient --------------------------------------------------

    def _plain(self, kernel: str, *args: Any, **constants: Any) -> Tensor:
        """A kernel's result, outside the graph."""
        for a in args:
            if isinstance(a, Tensor) and a.backend is not self.backend:
                autograd.refuse_mixed(kernel, self.backend, a.backend)
        recorder = autograd.recorder()
        if recorder is not None:
            for a in args:
                if isinstance(a, Tensor):
                    recorder.saw(a)
        arrays = [a._array if isinstance(a, Tensor) else a for a in args]
        return Tensor(getattr(self.backend, kernel)(*arrays, **constants), self.backend)

    def eq(self, other: Operand) -> Tensor:
        """self == other, elementwise, as bool."""
        return self._plain("eq", *self._pair(other, "eq"))

    def ne(self, other: Operand) -> Tensor:
        """self != other, elementwise, as bool."""
        return self._plain("ne", *self._pair(other, "ne"))

    def lt(self, other: Operand) -> Tensor:
        """self < other, elementwise, as bool."""
        return self._plain("lt", *self._pair(other, "lt"))

    def le(self, other: Operand) -> Tensor:
        """self <= other, elementwise, as bool."""
        return self._plain("le", *self._pair(other, "le"))

    def gt(self, other: Operand) -> Tensor:
        """self > other, elementwise, as bool."""
        return self._plain("gt", *self._pair(other, "gt"))

    def ge(self, other: Operand) -> Tensor:
        """self >= other, elementwise, as bool."""
        return self._plain("ge", *self._pair(other, "ge"))

    def __eq__(self, other: Any) -> Any:
        return self.eq(other) if _is_operand(other) else NotImplemented

    def __ne__(self, other: Any) -> Any:
        return self.ne(other) if _is_operand(other) else NotImplemented

    def __lt__(self, other: Operand) -> Tensor:
        return self.lt(other)

    def __le__(self, other: Operand) -> Tensor:
        return self.le(other)

    def __gt__(self, other: Operand) -> Tensor:
        return self.gt(other)

    def __ge__(self, other: Operand) -> Tensor:
        return self.ge(other)

    def __invert__(self) -> Tensor:
        return self._plain("bitwise_not", self._of_kind("biu", "bitwise_not"))

    def __and__(self, other: Operand) -> Tensor:
        return self._plain("bitwise_and", *self._numbers(other, "bitwise_and", "biu"))

    def __or__(self, other: Operand) -> Tensor:
        return self._plain("bitwise_or", *self._numbers(other, "bitwise_or", "biu"))

    __rand__, __ror__ = __and__, __or__

    def allclose(
        self, other: Tensor, rtol: _float = 1e-5, atol: _float = 1e-8, equal_nan: _bool = False
    ) -> _bool:
        """Whether |self - other| <= atol + rtol |other| everywhere; the shapes broadcast."""
        near = ((self - other).abs() <= atol + rtol * other.abs()) & other.isfinite()
        same = self == other  # infinities too
        if equal_nan:
            same = same | (self.isnan() & other.isnan())
        return bool((near | same).all())

    def equal(self, other: Tensor) -> _bool:
        """Whether the shapes and all elements are the same."""
        return self.shape == other.shape and bool((self == other).all())

    def isnan(self) -> Tensor:
        """Whether each element is NaN."""
        return self.ne(self)

    def isfinite(self) -> Tensor:
        """Whether each element is neither infinite nor NaN."""
        return self.detach().abs() < math.inf

    # --- reductions --------------------------------------------------------------------------

    def _axis(self, dim: _int) -> _int:
        if not isinstance(dim, int) or not -max(self.ndim, 1) <= dim < max(self.ndim, 1):
            raise ValueError(
                f"dim: expected an int from {-max(self.ndim, 1)} to {max(self.ndim, 1) - 1} for "
                f"a tensor of shape {list(self.shape)}, got {dim!r}"
            )
        return dim % max(self.ndim, 1)

    def _axes(self, dim: Dim) -> tuple[_int, ...] | None:
        if dim is None:
            return None
        axes = tuple(self._axis(d) for d in (dim if isinstance(dim, (tuple, list)) else (dim,)))
        if len(set(axes)) != len(axes):
            raise ValueError(f"dim: {dim} names an axis twice")
        return axes if self.ndim and axes else None

    @in_float32
    def sum(self, dim: Dim = None, keepdim: _bool = False, *, dtype: Any = None) -> Tensor:
        """The sum over ``dim``, over everything if None."""
        x = self if dtype is None else self.to(dtype)
        return reductions.Sum.apply(x, axis=self._axes(dim), keepdim=keepdim)

    def mean(self, dim: Dim = None, keepdim: _bool = False) -> Tensor:
        """The mean over ``dim`` of a floating tensor."""
        if not dtypes.is_float(self.dtype):
            raise TypeError(f"mean: expected a float, got {self.dtype.name}; use x.float().mean()")
        return reductions.Mean.apply(self, axis=self._axes(dim), keepdim=keepdim)

    def var(self, dim: Dim = None, keepdim: _bool = False, *, correction: _int = 1) -> Tensor:
        """Σ (x - mean)² / (n - correction) over ``dim``."""
        centred = self - self.mean(dim, keepdim=True)
        return reductions.Mean.apply(
            centred * centred, axis=self._axes(dim), keepdim=keepdim, correction=correction
        )

    def std(self, dim: Dim = None, keepdim: _bool = False, *, correction: _int = 1) -> Tensor:
        """The root of ``var``."""
        return self.var(dim, keepdim, correction=correction).sqrt()

    def amax(self, dim: Dim = None, keepdim: _bool = False) -> Tensor:
        """The largest element over ``dim``; equal ones share the gradient."""
        self._refuse_empty("amax", dim)
        return reductions.Amax.apply(self, axis=self._axes(dim), keepdim=keepdim)

    def amin(self, dim: Dim = None, keepdim: _bool = False) -> Tensor:
        """The smallest element over ``dim``; equal ones share the gradient."""
        self._refuse_empty("amin", dim)
        return reductions.Amin.apply(self, axis=self._axes(dim), keepdim=keepdim)

    def max(self, dim: _int | Tensor | None = None, keepdim: _bool = False) -> Any:
        """The largest element; with ``dim``, (values, indices) along that axis; with another
        tensor, ``maximum``."""
        if isinstance(dim, Tensor):
            return self.maximum(dim)
        return self.amax() if dim is None else self._pick(self.argmax(dim, True), dim, keepdim)

    def min(self, dim: _int | Tensor | None = None, keepdim: _bool = False) -> Any:
        """The smallest element; with ``dim``, (values, indices) along that axis; with another
        tensor, ``minimum``."""
        if isinstance(dim, Tensor):
            return self.minimum(dim)
        return self.amin() if dim is None else self._pick(self.argmin(dim, True), dim, keepdim)

    def _pick(self, index: Tensor, dim: _int, keepdim: _bool) -> Extreme:
        values = self.gather(dim, index)
        if keepdim:
            return Extreme(values, index)
        return Extreme(values.squeeze(dim), index.squeeze(dim))

    def argmax(self, dim: _int | None = None, keepdim: _bool = False) -> Tensor:
        """The int64 index of the first largest element, in the flattened tensor if no ``dim``."""
        return self._arg("argmax", dim, keepdim)

    def argmin(self, dim: _int | None = None, keepdim: _bool = False) -> Tensor:
        """The int64 index of the first smallest element, in the flattened tensor if no ``dim``."""
        return self._arg("argmin", dim, keepdim)

    def _arg(self, kernel: str, dim: _int | None, keepdim: _bool) -> Tensor:
        self._refuse_empty(kernel, dim)
        axis = None if dim is None or self.ndim == 0 else self._axis(dim)
        return self._plain(kernel, self, axis, keepdim)

    def _refuse_empty(self, name: str, dim: Dim) -> None:
        if 0 in [self.shape[a] for a in self._axes(dim) or range(self.ndim)]:
            raise ValueError(f"{name}: no elements to compare in shape {list(self.shape)}")

    def any(self, dim: Dim = None, keepdim: _bool = False) -> Tensor:
        """Whether some element is not zero."""
        return self._plain("any", self, self._axes(dim), keepdim)

    def all(self, dim: Dim = None, keepdim: _bool = False) -> Tensor:
        """Whether every element is not zero."""
        return self._plain("all", self, self._axes(dim), keepdim)

    @in_float32
    def softmax(self, dim: _int) -> Tensor:
        """e^self / Σ e^self along ``dim``."""
        return reductions.Softmax.apply(self._floating()._rank_one(), axis=self._axis(dim)).reshape(
            self.shape
        )

    @in_float32
    def log_softmax(self, dim: _int) -> Tensor:
        """The logarithm of softmax along ``dim``."""
        return reductions.LogSoftmax.apply(
            self._floating()._rank_one(), axis=self._axis(dim)
        ).reshape(self.shape)

    def _rank_one(self) -> Tensor:
        return self if self.ndim else self.reshape(1)

    # --- shape -------------------------------------------------------------------------------

    def reshape(self, *shape: Any) -> Tensor:
        """The elements in the same order under another shape; one length may be -1. A view where
        the memory allows it, else a copy."""
        wanted = self._solve_shape(_flat(shape))
        return self if wanted == self.shape else movement.Reshape.apply(self, shape=wanted)

    def view(self, *shape: Any) -> Tensor:
        """``reshape`` that never copies. Raises ValueError where it would have to."""
        wanted = self._solve_shape(_flat(shape))
        out = movement.Reshape.apply(self, shape=wanted)
        if not out._is_view and self.numel():
            raise ValueError(
                f"view: {list(self.shape)} with strides {self._array.strides} has no view as "
                f"{list(wanted)}; use reshape, which copies"
            )
        return out

    def _solve_shape(self, shape: tuple[_int, ...]) -> tuple[_int, ...]:
        _check_sizes("reshape", shape, -1)
        known = math.prod(n for n in shape if n != -1)
        free = shape.count(-1)
        fits = self.numel() == known if not free else known > 0 and self.numel() % known == 0
        if free > 1 or not fits:
            raise ValueError(
                f"reshape: {list(self.shape)} has {self.numel()} elements, which do not fit "
                f"{list(shape)}"
            )
        return tuple(self.numel() // known if n == -1 else n for n in shape)

    def view_as(self, other: Tensor) -> Tensor:
        """A view in the shape of another tensor."""
        return self.view(other.shape)

    def flatten(self, start_dim: _int = 0, end_dim: _int = -1) -> Tensor:
        """The axes from ``start_dim`` to ``end_dim`` made one."""
        start, end = self._axis(start_dim), self._axis(end_dim)
        if start > end:
            raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim}")
        middle = math.prod(self.shape[start : end + 1])
        return self.reshape(*self.shape[:start], middle, *self.shape[end + 1 :])

    def permute(self, *dims: Any) -> Tensor:
        """A view with the axes in this order."""
        axes = tuple(self._axis(d) for d in _flat(dims))
        if sorted(axes) != list(range(self.ndim)):
            raise ValueError(
                f"permute: expected each axis of shape {list(self.shape)} once, got {list(dims)}"
            )
        return movement.Permute.apply(self, axes=axes)

    def transpose(self, dim0: _int, dim1: _int) -> Tensor:
        """A view with two axes swapped."""
        axes = list(range(self.ndim))
        a, b = self._axis(dim0), self._axis(dim1)
        if self.ndim:
            axes[a], axes[b] = axes[b], axes[a]
        return movement.Permute.apply(self, axes=tuple(axes))

    def t(self) -> Tensor:
        """The transpose of a tensor of at most two axes."""
        if self.ndim > 2:
            raise ValueError(f"t: expected at most 2 axes, got shape {list(self.shape)}")
        return self.T

    def squeeze(self, dim: Dim = None) -> Tensor:
        """A view without the axes of length 1, or without those of ``dim`` that are."""
        axes = range(self.ndim) if dim is None else self._axes(dim) or ()
        return self.reshape(*(n for i, n in enumerate(self.shape) if not (i in axes and n == 1)))

    def unsqueeze(self, dim: _int) -> Tensor:
        """A view with an axis of length 1 put in at ``dim``."""
        if not -self.ndim - 1 <= dim <= self.ndim:
            raise ValueError(
                f"unsqueeze: dim {dim} is outside {-self.ndim - 1}..{self.ndim} for shape "
                f"{list(self.shape)}"
            )
        at = dim % (self.ndim + 1)
        return self.reshape(*self.shape[:at], 1, *self.shape[at:])

    def expand(self, *sizes: Any) -> Tensor:
        """A view with axes of length 1 repeated to ``sizes`` (-1 keeps a length)."""
        wanted = _check_sizes("expand", _flat(sizes), -1)
        lead = len(wanted) - self.ndim
        shape = tuple(
            self.shape[i - lead] if n == -1 and i >= lead else n for i, n in enumerate(wanted)
        )
        if -1 in shape or not _broadcasts(self.shape, shape):
            raise ValueError(f"expand: {list(self.shape)} does not broadcast to {list(wanted)}")
        return movement.Expand.apply(self, shape=shape)

    def expand_as(self, other: Tensor) -> Tensor:
        """``expand`` to the shape of another tensor."""
        return self.expand(other.shape)

    def broadcast_to(self, shape: tuple[_int, ...]) -> Tensor:
        """``expand`` to a shape."""
        return self.expand(shape)

    # --- selection ---------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> Tensor:
        """Ints, slices, None and Ellipsis give a view; one integer tensor, array or list selects
        slices along the first axis, as a copy."""
        if _selects(index):
            return self.index_select(0, index)
        return movement.GetItem.apply(self, index=self._basic(index))

    def _basic(self, index: Any) -> tuple[Any, ...]:
        """The index as a tuple of ints, slices, None and Ellipsis, checked against the shape."""
        parts = index if isinstance(index, tuple) else (index,)
        parts = tuple(
            p if p is None or p is Ellipsis or isinstance(p, slice) else _as_int(p) for p in parts
        )
        used = sum(p is not None and p is not Ellipsis for p in parts)
        if used > self.ndim or parts.count(Ellipsis) > 1:
            raise IndexError(
                f"too many indices for a tensor of shape {list(self.shape)}: {index!r}"
            )
        self._check_bounds(parts, used)
        return parts

    def _check_bounds(self, parts: tuple[Any, ...], used: _int) -> None:
        axis = 0
        for p in parts:
            if p is Ellipsis:
                axis += self.ndim - used
            elif p is not None:
                n = self.shape[axis]
                if isinstance(p, int) and not -n <= p < n:
                    raise IndexError(
                        f"index {p} is out of range for axis {axis} of shape {list(self.shape)}"
                    )
                if isinstance(p, slice) and p.step is not None and p.step <= 0:
                    raise ValueError("a slice of a tensor needs a positive step")
                axis += 1

    def __setitem__(self, index: Any, value: Operand) -> None:
        if _selects(index):
            raise TypeError(
                "writing at an index tensor or mask is not supported; use "
                "tinygrad_ish.where(mask, value, x)"
            )
        if not isinstance(value, Tensor):
            value = tensor(value, dtype=self.dtype, device=self.backend)
        self._assign(self._basic(index), value, "__setitem__")

    def index_select(self, dim: _int, index: Any) -> Tensor:
        """The slices along ``dim`` at integer positions (a tensor, array or list), as a copy."""
        if self.ndim == 0:
            raise IndexError("index_select: a zero-dimensional tensor has no axis to select from")
        index = self._index(index)._rank_one()
        return movement.IndexSelect.apply(self, index, axis=self._axis(dim))

    def gather(self, dim: _int, index: Tensor) -> Tensor:
        """The element at ``index`` along ``dim``; index has self's shape but for ``dim``."""
        axis, index = self._axis(dim), self._index(index)
        if index.ndim != self.ndim or _without(index.shape, axis) != _without(self.shape, axis):
            raise ValueError(
                f"gather: index {list(index.shape)} and self {list(self.shape)} must agree but "
                f"for dim {dim}"
            )
        if self.ndim == 0:
            return self.clone()
        return movement.Gather.apply(self, index, axis=axis)

    def _index(self, index: Any) -> Tensor:
        if not isinstance(index, Tensor):
            array = np.asarray(index)
            index = tensor(array if array.size else array.astype(np.int64), device=self.backend)
        if index.dtype.kind not in "iu":
            raise TypeError(
                f"an index tensor must hold integers, got {index.dtype.name}; for a mask use "
                "tinygrad_ish.where(mask, x, 0)"
            )
        return index.to(dtypes.int64)

    # --- products ----------------------------------------------------------------------------

    @in_low_precision
    def matmul(self, other: Tensor) -> Tensor:
        """The matrix product; leading axes broadcast, one-dimensional operands are a row on the
        left and a column on the right. The dtypes must be the same."""
        if not isinstance(other, Tensor):
            raise TypeError(f"matmul: expected a Tensor, got {type(other).__name__}")
        self._of_kind("iuf", "matmul")
        if self.dtype != other.dtype:
            raise TypeError(
                f"matmul: both must have one dtype, got {self.dtype.name} and {other.dtype.name}; "
                "cast one with .to(dtype)"
            )
        if self.ndim == 0 or other.ndim == 0:
            raise ValueError("matmul: expected at least one axis; use * for scalars")
        a = self.unsqueeze(0) if self.ndim == 1 else self
        b = other.unsqueeze(1) if other.ndim == 1 else other
        if a.shape[-1] != b.shape[-2] or not _broadcastable(a.shape[:-2], b.shape[:-2]):
            raise ValueError(
                f"matmul: {list(self.shape)} @ {list(other.shape)} do not fit; expected "
                "(…, M, K) @ (…, K, N)"
            )
        out = linalg.MatMul.apply(a, b)
        out = out.squeeze(-1) if other.ndim == 1 else out
        return out.squeeze(-1 if other.ndim == 1 else -2) if self.ndim == 1 else out

    def __matmul__(self, other: Tensor) -> Tensor:
        return self.matmul(other)

    def mm(self, other: Tensor) -> Tensor:
        """The product of two matrices."""
        if self.ndim != 2 or other.ndim != 2:
            raise ValueError(f"mm: expected matrices, got {list(self.shape)}, {list(other.shape)}")
        return self.matmul(other)

    def dot(self, other: Tensor) -> Tensor:
        """The inner product of two vectors."""
        if self.ndim != 1 or other.ndim != 1:
            raise ValueError(f"dot: expected vectors, got {list(self.shape)}, {list(other.shape)}")
        return self.matmul(other)

    # --- in place ----------------------------------------------------------------------------

    def _become(self, result: Tensor, writer: str) -> Tensor:
        """Write a result into this tensor's memory, and take its place on the graph."""
        if result.shape != self.shape:
            raise ValueError(
                f"{writer}: the result {list(result.shape)} does not fit into "
                f"{list(self.shape)} in place"
            )
        if dtypes.rank(result.dtype) > dtypes.rank(self.dtype):
            raise TypeError(
                f"{writer}: a {result.dtype.name} result does not go into {self.dtype.name} in "
                "place"
            )
        if is_grad_enabled() and self._requires_grad and self._node is None:
            raise InPlaceError(
                f"{writer}: a leaf that requires a gradient is not changed in place; do it inside "
                "no_grad, or use the form that is not in place"
            )
        if result._node is not None and self._is_view:
            raise InPlaceError(
                f"{writer}: a view cannot be changed in place where gradients are recorded; use "
                "the form that is not in place"
            )
        result = result.to(self.dtype)
        if result._node is not None:
            result._node.save_before_write(self)
            self._node, self._requires_grad = result._node, True
            self._version.rebased += 1
        return self._write(result._array, self._array, writer)

    def _assign(self, index: tuple[Any, ...], value: Tensor, writer: str) -> Tensor:
        """Write a value, which broadcasts, at a basic index."""
        place = self.backend.getitem(self._array, index)
        if not _broadcasts(value.shape, place.shape):
            raise ValueError(
                f"{writer}: a value of shape {list(value.shape)} does not broadcast to "
                f"{list(place.shape)}"
            )
        value = value.to(self.dtype)
        if is_grad_enabled() and (self._requires_grad or value._requires_grad):
            return self._become(movement.SetItem.apply(self, value, index=index), writer)
        if value.backend is not self.backend:
            autograd.refuse_mixed(writer, self.backend, value.backend)
        return self._write(value._array, place, writer)

    def _write(self, values: Array, place: Array, writer: str) -> Tensor:
        recorder = autograd.recorder()
        if recorder is not None:
            recorder.saw(self)
        steps = zip(place.shape, place.strides, strict=True)
        expanded = place.size and any(n > 1 and step == 0 for n, step in steps)
        if expanded or not getattr(place.flags, "writeable", True):  # CuPy has no such flag
            raise ValueError(f"{writer}: the memory is expanded or read-only; clone() it first")
        self.backend.copy(values, out=place)
        self._version.bump(writer)
        return self

    def add_(self, other: Operand, *, alpha: Number = 1) -> Tensor:
        """self += alpha · other."""
        return self._become(self.add(other, alpha=alpha), "add_")

    def sub_(self, other: Operand, *, alpha: Number = 1) -> Tensor:
        """self -= alpha · other."""
        return self._become(self.sub(other, alpha=alpha), "sub_")

    def mul_(self, other: Operand) -> Tensor:
        """self *= other."""
        return self._become(self.mul(other), "mul_")

    def div_(self, other: Operand) -> Tensor:
        """self /= other."""
        return self._become(self.div(other), "div_")

    def clamp_(self, min: Operand | None = None, max: Operand | None = None) -> Tensor:
        """``clamp`` in place."""
        return self._become(self.clamp(min, max), "clamp_")

    def relu_(self) -> Tensor:
        """``relu`` in place."""
        return self._become(self.relu(), "relu_")

    def copy_(self, source: Tensor) -> Tensor:
        """Take the values of another tensor, which broadcasts."""
        if not isinstance(source, Tensor):
            raise TypeError(f"copy_: expected a Tensor, got {type(source).__name__}")
        return self._assign((...,), source.to(self.backend), "copy_")

    def fill_(self, value: Number) -> Tensor:
        """Set every element to a number."""
        return self._assign((...,), full((), value, self.dtype, self.backend), "fill_")

    def zero_(self) -> Tensor:
        """Set every element to 0."""
        return self._assign((...,), full((), 0, self.dtype, self.backend), "zero_")

    def uniform_(self, low: _float = 0.0, high: _float = 1.0) -> Tensor:
        """Set every element to a random number in [low, high)."""
        from .random import uniform

        return self._take(lambda: uniform(low, high, self.shape, self.dtype), "uniform_")

    def normal_(self, mean: _float = 0.0, std: _float = 1.0) -> Tensor:
        """Set every element to a random number of the normal distribution."""
        from .random import normal

        return self._take(lambda: normal(mean, std, self.shape, self.dtype), "normal_")

    def _take(self, make: Callable[[], np.ndarray], writer: str) -> Tensor:
        from .random import drawn

        return self._assign((...,), drawn(make, self.dtype, self.backend), writer)

    def __iadd__(self, other: Operand) -> Tensor:
        return self.add_(other)

    def __isub__(self, other: Operand) -> Tensor:
        return self.sub_(other)

    def __imul__(self, other: Operand) -> Tensor:
        return self.mul_(other)

    def __itruediv__(self, other: Operand) -> Tensor:
        return self.div_(other)


# --- creation --------------------------------------------------------------------------------


@_quiet
def tensor(data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor with a copy of ``data``: numbers, nested lists, an array, or a tensor.

    Python floats give float32, ints int64; arrays keep their dtype, tensors their device too.
    Raises TypeError for dtypes that are not supported, ValueError for ragged lists.
    """
    if device is None and isinstance(data, Tensor):
        device = data.backend
    backend = resolve(device)
    if backend.device == "cuda" and backend.owns(data):
        array = data.copy()
    else:
        array = _host_array(data)
    wanted = array.dtype.newbyteorder("=") if dtype is None else dtype
    out = _made(backend.asarray(array.astype(dtypes.as_dtype(wanted), copy=False)), backend)
    return out.requires_grad_(requires_grad)


def _host_array(data: Any) -> np.ndarray:
    """A new NumPy array of the data, Python floats in the default dtype."""
    first = data
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    try:
        array = np.array(_without_tensors(data))
    except ValueError as error:
        raise ValueError(f"tensor: the data is not rectangular: {error}") from None
    if array.dtype == np.float64 and not hasattr(first, "dtype"):
        array = array.astype(dtypes.DEFAULT_FLOAT)
    return array


def _without_tensors(data: Any) -> Any:
    if isinstance(data, Tensor):
        return data.backend.to_numpy(data._array)
    if type(data).__module__.partition(".")[0] == "cupy":
        raise TypeError(
            "tensor: got a CuPy array for the CPU; name the GPU, device='cuda', or copy it to the "
            "host, x.get()"
        )
    if hasattr(data, "__array__"):
        return np.asarray(data)
    if isinstance(data, (list, tuple)) and data and not isinstance(data[0], (int, float)):
        return [_without_tensors(x) for x in data]
    return data


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor on the CPU that shares the memory of a NumPy array."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy: expected an ndarray, got {type(array).__name__}")
    dtypes.as_dtype(array.dtype)
    return _sharing(np.asarray(array), resolve("cpu"))  # of no subclass: a matrix is no array


def from_dlpack(source: Any) -> Tensor:
    """A tensor that shares the memory of any CPU or CUDA array that speaks DLPack."""
    if not hasattr(source, "__dlpack_device__"):
        raise TypeError(f"from_dlpack: {type(source).__name__} has no __dlpack__")
    on_cpu = source.__dlpack_device__()[0] == 1
    backend = resolve("cpu" if on_cpu else "cuda")
    array = backend.xp.from_dlpack(source)
    dtypes.as_dtype(array.dtype)
    return _sharing(array, backend)


def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """``data`` as a tensor; without a copy if it is a tensor or a NumPy array that fits."""
    if isinstance(data, Tensor):
        return data.to(dtype=dtype, device=device)
    backend = resolve(device)
    if dtype is None and backend.owns(data) and dtypes.is_supported(data.dtype):
        return _sharing(backend.asarray(data), backend)
    return tensor(data, dtype, backend)


def _sharing(array: Array, backend: Backend) -> Tensor:
    """A tensor in memory that others may write to."""
    out = Tensor(array, backend)
    out._version.exposed = True
    return out


@_quiet
def full(
    size: Any,
    fill_value: Number,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor with every element ``fill_value``; its dtype is the value's unless given."""
    dtype = dtypes.result_type(fill_value) if dtype is None else dtypes.as_dtype(dtype)
    backend, shape = resolve(device), _shape(size)
    with cuda.named("a tensor", shape, dtype):
        out = _made(backend.full(shape, fill_value, dtype), backend)
    return out.requires_grad_(requires_grad)


def zeros(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A float32 (unless told) tensor of zeros."""
    return full(_flat(size), 0, dtype or dtypes.DEFAULT_FLOAT, device, requires_grad)


def ones(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A float32 (unless told) tensor of ones."""
    return full(_flat(size), 1, dtype or dtypes.DEFAULT_FLOAT, device, requires_grad)


def empty(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A float32 (unless told) tensor with no particular values."""
    backend, shape = resolve(device), _shape(_flat(size))
    kind = dtypes.as_dtype(dtype or dtypes.DEFAULT_FLOAT)
    with cuda.named("a tensor", shape, kind):
        array = backend.empty(shape, kind)
    return _made(array, backend).requires_grad_(requires_grad)


def zeros_like(input: Tensor, dtype: Any = None) -> Tensor:
    """Zeros with the shape, dtype and device of a tensor."""
    return full(input.shape, 0, dtype or input.dtype, input.backend)


def ones_like(input: Tensor, dtype: Any = None) -> Tensor:
    """Ones with the shape, dtype and device of a tensor."""
    return full(input.shape, 1, dtype or input.dtype, input.backend)


def full_like(input: Tensor, fill_value: Number, dtype: Any = None) -> Tensor:
    """A number repeated in the shape, dtype and device of a tensor."""
    return full(input.shape, fill_value, dtype or input.dtype, input.backend)


def arange(
    start: Number,
    end: Number | None = None,
    step: Number = 1,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """start, start + step, … below ``end``; one argument is the end of a range from 0."""
    if end is None:
        start, end = 0, start
    start, end, step = (n.item() if hasattr(n, "item") else n for n in (start, end, step))
    if step == 0 or (end - start) * step < 0:
        raise ValueError(f"arange: no range goes from {start} to {end} in steps of {step}")
    if dtype is None:
        whole = all(isinstance(n, int) for n in (start, end, step))
        dtype = dtypes.int64 if whole else dtypes.DEFAULT_FLOAT
    backend = resolve(device)
    array = np.arange(start, end, step).astype(dtypes.as_dtype(dtype))
    return _made(backend.asarray(array), backend).requires_grad_(requires_grad)


def linspace(start: float, end: float, steps: int, dtype: Any = None, device: Any = None) -> Tensor:
    """``steps`` numbers from start to end, both included, evenly spaced."""
    backend = resolve(device)
    array = np.linspace(start, end, steps).astype(dtypes.as_dtype(dtype or dtypes.DEFAULT_FLOAT))
    return _made(backend.asarray(array), backend)


def eye(n: int, m: int | None = None, dtype: Any = None, device: Any = None) -> Tensor:
    """The n × m matrix with ones on its diagonal."""
    backend = resolve(device)
    array = np.eye(n, m, dtype=dtypes.as_dtype(dtype or dtypes.DEFAULT_FLOAT))
    return _made(backend.asarray(array), backend)


def _made(array: Array, backend: Backend) -> Tensor:
    """A tensor of an array that was made just now; a recorded step that changes it makes it anew
    at each run."""
    recorder = autograd.recorder()
    if recorder is not None:
        recorder.creates(array)
    return Tensor(array, backend)


# --- functions of several tensors ------------------------------------------------------------


def where(condition: Tensor, input: Operand, other: Operand) -> Tensor:
    """``input`` where the bool condition holds, else ``other``; the three broadcast."""
    if not isinstance(condition, Tensor) or condition.dtype != dtypes.bool_:
        got = condition.dtype.name if isinstance(condition, Tensor) else type(condition).__name__
        raise TypeError(f"where: condition must be a bool tensor, got {got}")
    values = [
        x if isinstance(x, Tensor) else condition._operand(x, "where") for x in (input, other)
    ]
    dtype = dtypes.result_type(*values)
    a, b = (
        x.to(dtype) if isinstance(x, Tensor) else full((), x, dtype, condition.backend)
        for x in values
    )
    for x, y in ((condition, a), (condition, b), (a, b)):
        _check_broadcast("where", x.shape, y.shape)
    return elementwise.Where.apply(condition, a, b)


def cat(tensors: Any, dim: int = 0) -> Tensor:
    """Tensors joined along an axis; their other axes have equal lengths."""
    tensors = _several(tensors, "cat")
    first = tensors[0]
    axis = first._axis(dim)
    for i, t in enumerate(tensors):
        fits = t.ndim == first.ndim > 0 and _without(t.shape, axis) == _without(first.shape, axis)
        if not fits:
            raise ValueError(
                f"cat: tensor {i} of shape {list(t.shape)} does not fit tensor 0 of shape "
                f"{list(first.shape)} along dim {dim}"
            )
    dtype = dtypes.result_type(*tensors)
    return movement.Cat.apply(*(t.to(dtype) for t in tensors), axis=axis)


def stack(tensors: Any, dim: int = 0) -> Tensor:
    """Tensors of one shape joined along a new axis."""
    tensors = _several(tensors, "stack")
    if any(t.shape != tensors[0].shape for t in tensors):
        shapes = ", ".join(str(list(t.shape)) for t in tensors)
        raise ValueError(f"stack: expected tensors of one shape, got {shapes}")
    return cat([t.unsqueeze(dim) for t in tensors], dim)


def _several(tensors: Any, name: str) -> list[Tensor]:
    found = list(tensors) if isinstance(tensors, (list, tuple)) else []
    if not found or not all(isinstance(t, Tensor) for t in found):
        raise TypeError(f"{name}: expected a list or tuple of tensors that is not empty")
    return found


def function(method: Method) -> Method:
    """A method as a function of the package: its first argument must be a Tensor."""

    @functools.wraps(method)
    def call(input: Any, *args: Any, **options: Any) -> Any:
        if not isinstance(input, Tensor):
            raise TypeError(
                f"{method.__name__}: expected a Tensor, got {type(input).__name__}; make one with "
                "tinygrad_ish.tensor(...)"
            )
        return method(input, *args, **options)

    return call  # type: ignore[return-value]


# --- shapes and indices as they are written ---------------------------------------------------


def _is_operand(x: Any) -> bool:
    return isinstance(x, (Tensor, bool, int, float, np.ndarray, np.generic))


def _flat(sizes: tuple[Any, ...]) -> tuple[Any, ...]:
    """f(2, 3) and f((2, 3)) mean the same."""
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        return tuple(sizes[0])
    return sizes


def _shape(size: Any) -> tuple[int, ...]:
    return _check_sizes("size", _flat((size,)), 0)


def _check_sizes(name: str, sizes: tuple[Any, ...], least: int) -> tuple[int, ...]:
    for n in sizes:
        if not isinstance(n, (int, np.integer)) or n < least:
            raise ValueError(f"{name}: expected ints of {least} or more, got {list(sizes)}")
    return sizes


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    lead = len(to) - len(shape)
    return lead >= 0 and all(n in (1, m) for n, m in zip(shape, to[lead:], strict=True))


def _broadcastable(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    for n, m in zip(reversed(a), reversed(b), strict=False):
        if n != m and n != 1 and m != 1:
            return False
    return True


def _check_broadcast(name: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    if not _broadcastable(a, b):
        raise ValueError(
            f"{name}: the shapes {list(a)} and {list(b)} do not broadcast: from the last axis on, "
            "lengths must be equal or 1; reshape or unsqueeze one of them"
        )


def _selects(index: Any) -> bool:
    """Whether an index is a single array of positions, not a basic index."""
    if isinstance(index, list):
        return True
    return hasattr(index, "ndim") and (index.ndim > 0 or index.dtype == np.bool_)


def _as_int(part: Any) -> int:
    try:
        if isinstance(part, bool):
            raise TypeError
        return int(part.__index__())
    except (AttributeError, TypeError):
        raise TypeError(
            f"an index holds ints, slices, None and ..., got {type(part).__name__}; to select "
            "by an index tensor use x.index_select(dim, index)"
        ) from None
