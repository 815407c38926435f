"""Reverse-mode differentiation: the graph's node, and the pass over it.

Each op (``ops/``) is a ``Function``: ``forward`` computes with the kernels of ``ctx.k``,
``backward`` gives the gradient of each argument. Applying one makes a node; ``backward`` walks
the nodes from the result to the leaves.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

from .kernels import Backend, BackendError

Array = Any


class GradientError(ValueError):
    """The gradient asked for does not exist: no graph, a freed one, or a wrong backward."""


class InPlaceError(ValueError):
    """A value that the backward pass needs was overwritten."""


class _Mode(threading.local):
    grad = True


_mode = _Mode()


def is_grad_enabled() -> bool:
    """Whether operations in this thread build a graph."""
    return _mode.grad


@contextlib.contextmanager
def set_grad_enabled(mode: bool) -> Iterator[None]:
    """Build a graph inside this context, or do not. Also a decorator."""
    before, _mode.grad = _mode.grad, mode
    try:
        yield
    finally:
        _mode.grad = before


def no_grad() -> contextlib.AbstractContextManager[None]:
    """Build no graph inside this context. Also a decorator."""
    return set_grad_enabled(False)


def enable_grad() -> contextlib.AbstractContextManager[None]:
    """Build a graph inside this context, within a no_grad. Also a decorator."""
    return set_grad_enabled(True)


class Version:
    """How often the memory of a tensor and its views was written, and by what."""

    __slots__ = ("count", "rebased", "writer")

    def __init__(self) -> None:
        self.count = 0  # writes
        self.rebased = 0  # those among them that are part of a graph
        self.writer = ""

    def bump(self, writer: str) -> None:
        """Count a write."""
        self.count += 1
        self.writer = writer


class Function:
    """One application of an op, a node of the graph.

    A subclass defines ``forward(ctx, *arrays, **constants)``, which gives the result, and
    ``backward(ctx, g)``, which gives a gradient for each positional argument (None where
    ``ctx.needs`` is False): g itself, or an array made for that argument. What backward needs is
    kept by ``ctx.save``; the inputs' shapes stand in ``ctx.shapes``.
    """

    view: ClassVar[bool] = False  # the result shares the memory of the first argument

    k: Backend
    needs: tuple[bool, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    dtypes: tuple[Any, ...]
    edges: tuple[Function | _tensor.Tensor | None, ...]
    saved: tuple[Array, ...] | None
    versions: tuple[tuple[str, Version, int], ...]

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
        ctx = cls()
        tensors = [a for a in args if isinstance(a, Tensor)]
        if not tensors:
            kinds = ", ".join(type(a).__name__ for a in args)
            raise TypeError(
                f"{cls.__name__.lower()}: expected a Tensor, got {kinds}; make one with "
                "tinygrad_ish.tensor(...)"
            )
        ctx.k = k = tensors[0].backend
        for t in tensors:
            if t.backend is not k:
                raise BackendError(
                    f"{cls.__name__.lower()}: the tensors are on different devices: {k!r} and "
                    f"{t.backend!r}; move one with .to(...)"
                )
        grad = _mode.grad
        ctx.needs = tuple([grad and isinstance(a, Tensor) and a.requires_grad for a in args])
        ctx.saved = ()
        arrays = [a._array if isinstance(a, Tensor) else a for a in args]
        ctx.shapes = tuple([getattr(a, "shape", None) for a in arrays])
        out = Tensor(ctx.forward(*arrays, **constants), k)
        if cls.view and k.xp.may_share_memory(out._array, tensors[0]._array):
            out._share_version(tensors[0])
        if True in ctx.needs:
            ctx._join_graph(args, out)
        return out

    def _join_graph(ctx, args: tuple[Any, ...], out: _tensor.Tensor) -> None:
        Tensor = _tensor.Tensor
        ctx.edges = tuple([a._edge() if n else None for a, n in zip(args, ctx.needs, strict=True)])
        ctx.dtypes = tuple([a.dtype if isinstance(a, Tensor) else None for a in args])
        out.requires_grad = True
        out._node = ctx
        assert ctx.saved is not None
        ctx.versions = tuple(
            [
                (what, t._version, t._version.count)
                for what, t in (*((f"input {i}", a) for i, a in enumerate(args)), ("output", out))
                if isinstance(t, Tensor) and any(t._array is s for s in ctx.saved)
            ]
        )

    def save(ctx, *arrays: Array) -> None:
        """Keep arrays for ``backward``, if there will be one."""
        if True in ctx.needs:
            ctx.saved = arrays

    def unbroadcast(ctx, g: Array, i: int) -> Array:
        """g summed to the shape of argument i: the gradient of an operand that broadcast."""
        shape = ctx.shapes[i]
        return g if shape is None or g.shape == shape else ctx.k.sum_to(g, shape)

    @property
    def name(ctx) -> str:
        """The op's name, for messages."""
        return type(ctx).__name__

    def _gradients(ctx, g: Array, retain_graph: bool) -> tuple[Any, ...]:
        """Run ``backward``, and check what it gives: count, shapes and dtypes."""
        if ctx.saved is None:
            raise GradientError(
                f"{ctx.name}: this part of the graph was freed by an earlier backward; compute "
                "the forward again, or call that backward with retain_graph=True"
            )
        for what, version, count in ctx.versions:
            if version.count != count:
                raise InPlaceError(
                    f"{ctx.name} needs its {what} for the gradient, but {version.writer} "
                    "overwrote it after the forward; use the form that is not in place "
                    "(x = x + 1), or give it x.clone()"
                )
        grads = ctx.backward(g)
        grads = grads if isinstance(grads, tuple) else (grads,)
        if len(grads) != len(ctx.needs):
            raise GradientError(
                f"{ctx.name}.backward: expected {len(ctx.needs)} gradients, one for each argument "
                f"of forward, got {len(grads)}"
            )
        for i, need in enumerate(ctx.needs):
            if need:
                ctx._check(grads[i], i)
        if not retain_graph:
            ctx.saved = None
        return grads

    def _check(ctx, grad: Array, i: int) -> None:
        shape, dtype = getattr(grad, "shape", None), getattr(grad, "dtype", None)
        if shape != ctx.shapes[i] or dtype != ctx.dtypes[i]:
            got = "None" if shape is None else f"{dtype}{list(shape)}"
            raise GradientError(
                f"{ctx.name}.backward: the gradient of argument {i} must be "
                f"{ctx.dtypes[i]}{list(ctx.shapes[i] or ())} like the argument, got {got}"
            )


def backward(root: _tensor.Tensor, g: Array, retain_graph: bool = False) -> None:
    """Add the gradients of ``root``, weighted by g, to ``.grad`` of every leaf it depends on.

    Each node runs once, after all nodes that use its result, and is then freed unless
    ``retain_graph``. Nothing recurses, so a graph may be of any depth.
    """
    edge = root._edge()
    if not isinstance(edge, Function):
        edge._accumulate(root.backend.copy(g))
        return
    grads: dict[Function, Array] = {edge: g}
    order = _topological(edge)
    while order:
        node = order.pop()
        g = grads.pop(node)
        arrived = node._gradients(g, retain_graph)
        for target, d in zip(node.edges, arrived, strict=True):
            if isinstance(target, Function):
                grads[target] = node.k.add(grads[target], d) if target in grads else d
            elif target is not None:
                # A leaf keeps its gradient: memory that others may hold is copied.
                target._accumulate(d if d is not g and d.base is None else node.k.copy(d))
        if not retain_graph:
            node.edges = ()


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
from . import tensor as _tensor  # noqa: E402
