"""Reverse-mode differentiation: the graph's node, and the pass over it.

Each op (``ops/``) is a ``Function``: ``forward`` computes with the kernels of ``ctx.k``,
``backward`` gives the gradient of each argument. Applying one makes a node; ``backward`` walks
the nodes from the result to the leaves.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from . import cuda
from .kernels import Backend, BackendError
from .kernels.reference import is_float

if TYPE_CHECKING:
    from . import program

Array = Any
Method = TypeVar("Method", bound=Callable[..., Any])


class GradientError(ValueError):
    """The gradient asked for does not exist: no graph, a freed one, or a wrong backward."""


class InPlaceError(ValueError):
    """A value that the backward pass needs was overwritten."""


class _Mode(threading.local):
    grad = True
    recorder: program.Recorder | None = None


_mode = _Mode()


def is_grad_enabled() -> bool:
    """Whether operations in this thread build a graph."""
    return _mode.grad


class set_grad_enabled(contextlib.ContextDecorator):
    """Build a graph, or do not: from here on, or inside this context or decorated function."""

    def __init__(self, mode: bool) -> None:
        self.mode = bool(mode)
        self.before, _mode.grad = _mode.grad, self.mode

    def __call__(self, function: Any) -> Any:
        _mode.grad = self.before
        return super().__call__(function)

    def __enter__(self) -> None:
        _mode.grad = self.mode

    def __exit__(self, *exception: object) -> None:
        _mode.grad = self.before

    def _recreate_cm(self) -> set_grad_enabled:  # for each call of a decorated function
        return set_grad_enabled(self.mode)


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Build no graph inside this context. Also a decorator."""
    with set_grad_enabled(False):
        yield


@contextlib.contextmanager
def enable_grad() -> Iterator[None]:
    """Build a graph inside this context, within a no_grad. Also a decorator."""
    with set_grad_enabled(True):
        yield


def recorder() -> program.Recorder | None:
    """What records this thread's operations for ``compile``, if anything does."""
    return _mode.recorder


@contextlib.contextmanager
def recording(by: program.Recorder) -> Iterator[None]:
    """Let ``by`` hear of operations inside this context."""
    _mode.recorder = by
    try:
        yield
    finally:
        _mode.recorder = None


def on_host(action: Callable[[], Any], writes: tuple[Array, ...] = ()) -> Any:
    """Do something that Python does, and do it again at each run of what is being recorded;
    ``writes`` are the arrays that it changes."""
    by = _mode.recorder
    if by is None:
        return action()
    by.host(action, writes)
    _mode.recorder = None
    try:
        return action()
    finally:
        _mode.recorder = by


def on_replay(method: Method) -> Method:
    """A method of Python's, such as a schedule's step, that a recording does at each run."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        return on_host(functools.partial(method, *args, **kwargs))

    return call  # type: ignore[return-value]


class Version:
    """How often the memory of a tensor and its views was written, and by what."""

    count = 0  # writes
    rebased = 0  # those among them that are part of a graph
    exposed = False  # an array outside shares the memory, and writes to it are not counted
    writer = ""

    def bump(self, writer: str) -> None:
        """Count a write."""
        self.count += 1
        self.writer = writer
        if _mode.recorder is not None:
            _mode.recorder.bumps.append((self, writer))


class Function:
    """One application of an op, a node of the graph.

    A subclass defines ``forward(ctx, *arrays, **constants)``, which gives the result, and
    ``backward(ctx, g)``, which gives a gradient for each positional argument (None where
    ``ctx.needs`` is False): g itself, or an array made for that argument. What backward needs is
    kept by ``ctx.save``; the arguments' shapes stand in ``ctx.shapes``.
    """

    view: ClassVar[bool] = False  # the result shares the memory of the first argument

    k: Backend
    needs: tuple[bool, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    dtypes: tuple[Any, ...]
    edges: tuple[Function | _tensor.Tensor | None, ...]
    saved: Any = ()  # a tuple; None once the graph was freed
    versions: Sequence[tuple[int, Version, int]] = ()  # of the arguments and result in ``saved``

    def forward(ctx, *args: Any, **constants: Any) -> Array:
        raise TypeError(f"{type(ctx).__name__} defines no forward")

    def backward(ctx, g: Array) -> Any:
        raise TypeError(f"{type(ctx).__name__} defines no backward")

    @classmethod
    def apply(cls, *args: Any, **constants: Any) -> _tensor.Tensor:
        """Run the op on tensors (and numbers or None), and put it on the graph if one is built.

        Raises BackendError if the tensors are of different devices or backends.
        """
        Tensor = _tensor.Tensor
        grad, recorder = _mode.grad, _mode.recorder
        k, arrays, needs = None, [], []
        for a in args:
            if not isinstance(a, Tensor):
                arrays.append(a)
                needs.append(False)
                continue
            k = k or a.backend
            if a.backend is not k:
                refuse_mixed(cls.__name__.lower(), k, a.backend)
            if grad and a._rebased is not None:
                a._refuse_stale()
            if recorder is not None:
                recorder.saw(a)
            arrays.append(a._array)
            needs.append(grad and a._requires_grad)
        if k is None:
            kinds = ", ".join(type(a).__name__ for a in args)
            raise TypeError(
                f"{cls.__name__.lower()}: expected a Tensor, got {kinds}; make one with "
                "tinygrad_ish.tensor(...)"
            )
        ctx = cls()
        ctx.k, ctx.needs = k, tuple(needs)
        try:
            out = Tensor(ctx.forward(*arrays, **constants), k)
        except MemoryError as error:
            cuda.raise_named(error, ctx.name, arrays)
            raise
        if cls.view and k.xp.may_share_memory(out._array, arrays[0]):
            out._share_memory(args[0])
        if True in needs and is_float(out._array.dtype):
            ctx._join_graph(args, arrays, out)
        return out

    def _join_graph(ctx, args: tuple[Any, ...], arrays: list[Any], out: _tensor.Tensor) -> None:
        out._requires_grad = True
        out._node = ctx
        ctx.edges = tuple([a._node or a if n else None for a, n in zip(args, ctx.needs)])
        ctx.shapes = tuple([getattr(a, "shape", None) for a in arrays])
        ctx.dtypes = tuple([getattr(a, "dtype", None) for a in arrays])
        if ctx.saved:
            saved = [id(s) for s in ctx.saved]
            ctx.versions = [
                (i, t._version, t._version.count)
                for i, t in enumerate((*args, out))
                if isinstance(t, _tensor.Tensor) and id(t._array) in saved
            ]

    def save(ctx, *arrays: Array) -> None:
        """Keep arrays for ``backward``, if there will be one."""
        if True in ctx.needs:
            ctx.saved = arrays

    def save_before_write(ctx, x: _tensor.Tensor) -> None:
        """Keep what was saved of x's memory as a copy: the result will be written there."""
        shared = ctx.k.xp.may_share_memory
        ctx.saved = tuple(
            [ctx.k.copy(s) if hasattr(s, "shape") and shared(s, x._array) else s for s in ctx.saved]
        )
        ctx.versions = [v for v in ctx.versions if v[1] is not x._version]

    def unbroadcast(ctx, g: Array, i: int) -> Array:
        """g summed to the shape of argument i: the gradient of an operand that broadcast."""
        shape = ctx.shapes[i]
        return g if shape is None or g.shape == shape else ctx.k.sum_to(g, shape)

    @property
    def name(ctx) -> str:
        """The op's name, for messages."""
        return type(ctx).__name__

    def _gradients(ctx, g: Array) -> tuple[Any, ...]:
        """Run ``backward``, and check what it gives: count, shapes and dtypes."""
        if ctx.saved is None:
            raise GradientError(
                f"{ctx.name}: this part of the graph was freed by an earlier backward; compute "
                "the forward again, or call that backward with retain_graph=True"
            )
        for i, version, count in ctx.versions:
            if version.count != count:
                what = f"input {i}" if i < len(ctx.needs) else "output"
                raise InPlaceError(
                    f"{ctx.name} needs its {what} for the gradient, but {version.writer} "
                    "overwrote it after the forward; use the form that is not in place "
                    "(x = x + 1), or give it x.clone()"
                )
        try:
            grads = ctx.backward(g)
        except MemoryError as error:
            cuda.raise_named(error, f"the gradient of {ctx.name}", (g, *ctx.saved))
            raise
        grads = grads if isinstance(grads, tuple) else (grads,)
        if len(grads) != len(ctx.needs):
            raise GradientError(
                f"{ctx.name}.backward: expected {len(ctx.needs)} gradients, one for each argument "
                f"of forward, got {len(grads)}"
            )
        return tuple([ctx._checked(d, i) if ctx.needs[i] else None for i, d in enumerate(grads)])

    def _checked(ctx, grad: Any, i: int) -> Array:
        if isinstance(grad, np.generic):  # what NumPy makes of a zero-dimensional array
            grad = ctx.k.asarray(grad)
        known = isinstance(grad, ctx.k.xp.ndarray)
        if not known or grad.shape != ctx.shapes[i] or grad.dtype != ctx.dtypes[i]:
            got = f"{grad.dtype}{list(grad.shape)}" if known else f"a {type(grad).__name__}"
            raise GradientError(
                f"{ctx.name}.backward: the gradient of argument {i} must be an array "
                f"{ctx.dtypes[i]}{list(ctx.shapes[i] or ())} like the argument, got {got}"
            )
        return grad


def refuse_mixed(name: str, a: Backend, b: Backend) -> None:
    """Say that an operation got tensors of two backends."""
    raise BackendError(
        f"{name}: the tensors are on different devices: {a!r} and {b!r}; move one with .to(...)"
    )


def backward(root: _tensor.Tensor, g: Array, retain_graph: bool = False) -> None:
    """Add the gradients of ``root``, weighted by g, to ``.grad`` of every leaf it depends on.

    Each node runs once, after all nodes that use its result, and is then freed unless
    ``retain_graph``. Nothing recurses, so a graph may be of any depth.
    """
    if root._node is None:
        root._accumulate(root.backend.copy(g))
        return
    grads: dict[Function, Array] = {root._node: g}
    order = _topological(root._node)
    while order:
        node = order.pop()
        g = grads.pop(node)
        arrived = node._gradients(g)
        held = (g, *arrived, *(node.saved or ()))
        for target, d in zip(node.edges, arrived, strict=True):
            if isinstance(target, Function):
                grads[target] = node.k.add(grads[target], d) if target in grads else d
            elif target is not None:
                # A leaf keeps its gradient: memory that others may hold is copied.
                own = d.base is None and sum([d is h for h in held]) == 1
                target._accumulate(d if own else node.k.copy(d))
        if not retain_graph:
            node.saved, node.edges = None, ()


def _topological(root: Function) -> list[Function]:
    """The nodes below root, each after all that it depends on; root is last."""
    order: list[Function] = []
    seen = {root}
    stack = [(root, iter(root.edges))]
    while stack:
        node, edges = stack[-1]
        for edge in edges:
            if isinstance(edge, Function) and edge not in seen:
                seen.add(edge)
                stack.append((edge, iter(edge.edges)))
                break
        else:
            order.append(node)
            stack.pop()
    return order


# Last, because tensor.py imports the names above.
from . import tensor as _tensor  # type: ignore[no-redef]  # noqa: E402
