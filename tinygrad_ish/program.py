"""Recording a function of tensors as a program of kernel calls, and running it again.

    @tg.compile
    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

Everything that computes goes through the kernels of a backend. So one run of a function, with a
``Recorder`` looking at these calls, tells all that it does to memory: a ``Program``, a list of
``Instruction``s over arrays. Run again on the same memory, they do the same work with no graph, no
allocation and next to no Python.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from . import amp, autograd
from .autograd import Array, Version
from .device import resolve
from .kernels import Backend, get_float32_matmul_precision, reference
from .tensor import Tensor

__all__ = ["CompileError", "CompiledFunction", "Instruction", "Program", "compile"]

VIEWS = ("reshape", "permute", "expand", "getitem")
MOST_RECORDINGS = 16  # of one function for one kind of arguments
MOST_IN_ALL = 128
_one_records = threading.Lock()  # a backend has one observer at a time


class CompileError(ValueError):
    """A function does what a recording cannot hold; says what, and where."""


class Instruction:
    """A kernel call: its arguments by the names of the reference, and the arrays it gives."""

    def __init__(self, kernel: str, args: dict[str, Any], results: tuple[Array, ...]) -> None:
        self.kernel = kernel
        self.args = args
        self.results = results  # None among them for what was not needed
        self._spans: tuple[list[_Span], list[_Span]] | None = None

    def arguments(self) -> list[Array]:
        """The arrays among the arguments."""
        return [a for a in _flat(self.args.values()) if hasattr(a, "strides")]

    def writes(self) -> list[Array]:
        """The arrays that the call changes: its results, and what it updates in place."""
        updated = [self.args[name] for name in reference.UPDATES.get(self.kernel, ())]
        return [a for a in _flat((*self.results, *updated)) if a is not None]

    def touches(self, array: Array) -> bool:
        """Whether it reads or writes this memory."""
        return _meets(array, self._memory()[0])

    def overwrites(self, array: Array) -> bool:
        """Whether it writes this memory."""
        return _meets(array, self._memory()[1])

    def _memory(self) -> tuple[list[_Span], list[_Span]]:
        """What it touches, and of that what it writes: kept, as the passes ask again and again."""
        if self._spans is None:
            written = _spans(self.writes())
            self._spans = _spans(self.arguments()) + written, written
        return self._spans

    def replace(self, old: Array, new: Array) -> None:
        """Let one array stand wherever another stands."""

        def swap(x: Any) -> Any:
            if isinstance(x, tuple):
                return tuple(swap(y) for y in x)
            return new if hasattr(x, "strides") and _place(x) == _place(old) else x

        self._spans = None
        self.args = {name: swap(a) for name, a in self.args.items()}
        self.results = swap(self.results)


class Host(NamedTuple):
    """Something that Python does at each run: a schedule, a draw of random numbers."""

    action: Callable[[], object]
    writes: tuple[Array, ...] = ()


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple):
            yield from _flat(value)
        else:
            yield value


def _address(x: Array) -> int:
    return int(x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr)


class _Memory(NamedTuple):
    """Where an array lies: what tells it from others, its first byte and the end."""

    array: Array  # kept alive, so that its id is no other's
    place: tuple[Any, ...]
    start: int
    stop: int


_memo: dict[int, _Memory] = {}  # while a program is made: the passes ask for each many times


def _memory(x: Array) -> _Memory:
    known = _memo.get(id(x))
    if known is None:
        first = _address(x)
        spans = [(n - 1) * s for n, s in zip(x.shape, x.strides, strict=True)]
        start = first + sum(min(span, 0) for span in spans)
        stop = first + sum(max(span, 0) for span in spans) + x.itemsize
        known = _Memory(x, (first, x.shape, x.strides, x.dtype), start, stop if x.size else start)
        _memo[id(x)] = known
    return known


def _place(x: Array) -> tuple[Any, ...]:
    """What tells an array from others, while all of them are alive."""
    return _memory(x).place


def _overlap(a: Array, b: Array) -> bool:
    """Whether two arrays may share memory."""
    one, two = _memory(a), _memory(b)
    return max(one.start, two.start) < min(one.stop, two.stop)


_Span = tuple[int, int]


def _spans(arrays: list[Array]) -> list[_Span]:
    """The first byte and the end of each array that has elements."""
    return [(m.start, m.stop) for m in map(_memory, arrays) if m.start < m.stop]


def _meets(array: Array, spans: list[_Span]) -> bool:
    """Whether the array shares bytes with one of the spans."""
    start, stop = _memory(array)[2:]
    if start == stop:
        return False
    for first, end in spans:  # noqa: SIM110 (any(…) takes twice as long)
        if first < stop and start < end:
            return True
    return False


# --- recording ------------------------------------------------------------------------------


class Recorder:
    """Looks at the kernel calls of this thread, and hears of what else matters from tensors,
    modules and optimizers, which find it as ``autograd.recorder()``."""

    def __init__(self, inputs: list[Array], backend: Backend) -> None:
        self.inputs = inputs
        self.backend = backend
        self.steps: list[Instruction | Host] = []
        self.tensors: dict[int, tuple[Tensor, Array, bool]] = {}  # made before, as they were
        self.modules: dict[int, tuple[Any, bool]] = {}
        self.grads: dict[int, tuple[Tensor, bool, Tensor | None]] = {}  # leaf, entered, with what
        self.settings: list[tuple[Callable[[], Any], Any]] = []
        self.bumps: list[tuple[Version, str]] = []
        self.made: list[tuple[Array, Array]] = []  # by the function itself, and their first values
        self.fresh: set[tuple[Any, ...]] = set()
        self._results: set[tuple[Any, ...]] = {_place(x) for x in inputs}
        self._signatures: dict[str, inspect.Signature] = {}

    def called(self, name: str, function: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Run a kernel, and note the call."""
        result = function(*args, **kwargs)
        if name not in self._signatures:
            self._signatures[name] = inspect.signature(function)
        bound = self._signatures[name].bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {k: v for k, v in bound.arguments.items() if k != "out"}
        results = result if isinstance(result, tuple) else (result,)
        results = () if result is None else results
        held = [a for a in _flat(bound.arguments.values()) if hasattr(a, "strides")]
        for r in results:
            if r is not None:
                self._results.add(_place(r))
                if not any(_overlap(r, a) for a in held):  # neither a view nor given as out
                    self.fresh.add(_place(r))
        self.steps.append(Instruction(name, arguments, results))
        return result

    def saw(self, tensor: Tensor) -> None:
        """Note a tensor that takes part; those that were there before must stay as they are."""
        if tensor.backend is not self.backend:
            self.refuse(
                f"a tensor of {tensor.backend!r} takes part, but {self.backend!r} is recorded, "
                "that of the arguments or else the default; move it there before the call"
            )
        if id(tensor) not in self.tensors and _place(tensor._array) not in self._results:
            self.tensors[id(tensor)] = tensor, tensor._array, tensor._requires_grad

    def entered(self, module: Any) -> None:
        """Note a module whose forward runs."""
        self.modules[id(module)] = module, module.training

    def reads_grad(self, leaf: Tensor) -> None:
        """The function depends on what ``leaf.grad`` was before it ran."""
        self.grads.setdefault(id(leaf), (leaf, not self.makes(leaf._array), leaf._grad))

    def makes(self, array: Array) -> bool:
        """Whether the memory is the function's own: it begins anew at each run."""
        place = _place(array)
        inside = place in self.fresh or any(_place(x) == place for x in self.inputs)
        return inside or any(made is array for made, _ in self.made)

    def sets_grad(self, leaf: Tensor) -> None:
        """The function replaces ``leaf.grad``, whatever it was."""
        self.grads.setdefault(id(leaf), (leaf, False, None))

    def host(self, action: Callable[[], object], writes: tuple[Array, ...] = ()) -> None:
        """Do this again, here, at each run."""
        self.steps.append(Host(action, writes))

    def depends(self, setting: Callable[[], Any]) -> None:
        """The recording holds as long as this gives what it gives now."""
        self.settings.append((setting, setting()))

    def creates(self, array: Array) -> None:
        """Note an array that the function makes of numbers."""
        self.made.append((array, array.copy()))

    def refuse(self, what: str) -> None:
        """Raise CompileError: the function does what cannot be recorded."""
        raise CompileError(f"compile: {what}, at {_line()}")


def _is_ours(frame: Any, package: str) -> bool:
    return frame.f_globals.get("__name__", "").partition(".")[0] == package


def _line() -> str:
    """The innermost line of the caller's own code."""
    package = __name__.partition(".")[0]
    frame = sys._getframe()
    while frame.f_back is not None and _is_ours(frame, package):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


# --- programs -------------------------------------------------------------------------------


class Program:
    """What a function does, as kernel calls over arrays. Print it for a listing."""

    def __init__(
        self,
        backend: Backend,
        steps: list[Instruction | Host],
        inputs: list[Array],
        outputs: list[Array],
        names: dict[tuple[Any, ...], str],
    ) -> None:
        self.backend = backend
        self.steps = steps
        self.inputs = inputs
        self.outputs = outputs
        self._names = dict(names)

    def instructions(self) -> list[Instruction]:
        """The kernel calls."""
        return [s for s in self.steps if isinstance(s, Instruction)]

    def __str__(self) -> str:
        names, known = dict(self._names), list(self.inputs)

        def numbered(x: Array, sign: str) -> str:
            number = sum(name.startswith(sign) for name in names.values())
            return names.setdefault(_place(x), f"{sign}{number}")

        def name(x: Any) -> str:
            if isinstance(x, tuple):
                return f"({', '.join(map(name, x))})"
            if not hasattr(x, "strides"):
                return repr(x)
            if _place(x) not in names:
                whole = next((k for k in reversed(known) if _within(x, k)), None)
                if whole is not None:
                    return f"{names[_place(whole)]}.view{list(x.shape)}"
            return numbered(x, "@")  # memory from outside, such as an optimizer's state

        lines = []
        for step in self.steps:
            if isinstance(step, Host):
                lines.append("    host: " + _named(step.action))
                continue
            given = [f"{k}={name(v)}" for k, v in step.args.items() if v is not None]
            results = [r for r in step.results if r is not None]
            left = ", ".join(numbered(r, "%") for r in results)
            known += results
            kinds = ", ".join(map(_kind, results))
            call = f"{step.kernel}({', '.join(given)})"
            lines.append(f"    {left} = {call}  # {kinds}" if left else f"    {call}")
        inputs = ", ".join(f"{name(x)} {_kind(x)}" for x in self.inputs)
        outputs = ", ".join(name(x) for x in self.outputs)
        _memo.clear()
        return "\n".join([f"program({inputs}):", *lines, f"    return {outputs or None}"])


def _within(x: Array, whole: Array) -> bool:
    one, other = _memory(x), _memory(whole)
    return other.start <= one.start and one.stop <= other.stop


def _kind(x: Array) -> str:
    return f"{x.dtype.name}{list(x.shape)}"


def _named(action: Any) -> str:
    while isinstance(action, functools.partial):
        action = action.func
    return getattr(action, "__qualname__", repr(action))


# --- passes ---------------------------------------------------------------------------------
# Each takes a Draft and changes its steps; what they compute stays the same bit for bit.


class Draft:
    """The steps of a program that is being made, and the arrays that will be read after it."""

    def __init__(self, recorder: Recorder, exposed: list[Array]) -> None:
        self.steps = recorder.steps
        self.inputs = recorder.inputs
        self.exposed = exposed
        self.made = recorder.made
        self.fresh = recorder.fresh  # arrays that kernels made, of memory that was not there

    def instructions(self) -> list[tuple[int, Instruction]]:
        return [(i, s) for i, s in enumerate(self.steps) if isinstance(s, Instruction)]

    def replace(self, old: Array, new: Array) -> None:
        """Let ``new`` stand wherever ``old`` stands."""
        for _, s in self.instructions():
            if s.touches(old):
                s.replace(old, new)
        self.exposed = [new if _place(x) == _place(old) else x for x in self.exposed]

    def touching(self, array: Array, start: int = 0, stop: int | None = None) -> list[int]:
        """The steps among those from start to stop - 1 that read or write this memory."""
        stop = len(self.steps) if stop is None else stop
        return [i for i, s in self.instructions() if start <= i < stop and s.touches(array)]

    def writing(self, array: Array) -> list[int]:
        """The steps that write this memory."""
        return [i for i, s in self.instructions() if s.overwrites(array)]

    def maker(self, array: Array) -> int | None:
        """The step that first gives this array; None for memory that was there before."""
        touching = self.touching(array)
        if not touching or any(_overlap(array, x) for x in self.inputs):
            return None
        first = dict(self.instructions())[touching[0]]
        gives = any(r is not None and _place(r) == _place(array) for r in first.results)
        reads = any(_overlap(array, a) for a in first.arguments())
        return touching[0] if gives and not reads and _place(array) in self.fresh else None

    def only_whole(self, array: Array) -> bool:
        """Whether its memory is never seen as an array of another shape."""
        users = [s for _, s in self.instructions() if s.touches(array)]
        seen = [a for s in users for a in (*s.arguments(), *s.writes())]
        return all(_place(a) == _place(array) for a in (*seen, *self.exposed) if _overlap(a, array))


def drop_views(draft: Draft) -> None:
    """Views of static memory are made once. A reshape that copied stays."""
    draft.steps = [
        s
        for s in draft.steps
        if isinstance(s, Host)
        or s.kernel not in VIEWS
        or (s.results[0].size > 0 and not _overlap(s.results[0], s.args["x"]))
    ]


def keep_arguments(draft: Draft) -> None:
    """Arguments are not written to: they are copies at the first call, the caller's own later."""
    if any(draft.writing(x) for x in draft.inputs):
        raise CompileError(
            "compile: the function writes into an argument; work on x.clone(), or make it a "
            "tensor outside of the arguments"
        )


def restore_made(draft: Draft) -> None:
    """What the function makes of numbers and then changes is made again at the start of a run."""
    for array, first in draft.made:
        if draft.writing(array):
            again = Instruction("copy", {"x": first}, (array,))
            draft.steps.insert(0, again)


def _laid_out_alike(x: Array, y: Array) -> bool:
    """Whether one may stand for the other: the order of sums can follow the order in memory."""
    return x.shape == y.shape and x.flags.c_contiguous and y.flags.c_contiguous


def drop_unit_products(draft: Draft) -> None:
    """x · 1 is x: the gradient that ``backward`` begins with is 1."""
    ones = [
        _address(a)
        for a, first in draft.made
        if a.size == 1 and bool((first == 1).all()) and not draft.writing(a)
    ]
    for _, s in draft.instructions():
        if s.kernel != "mul":
            continue
        x, one, (y,) = s.args["a"], s.args["b"], s.results
        i, maker = draft.steps.index(s), draft.maker(x)
        unit = hasattr(one, "strides") and _place(one)[0] in ones and _laid_out_alike(x, y)
        if not unit or maker is None or not draft.only_whole(y):
            continue
        if draft.writing(x) == [maker] and draft.writing(y) == [i]:
            draft.steps.remove(s)
            draft.replace(y, x)


def write_in_place(draft: Draft) -> None:
    """A result that is only made to be copied elsewhere is computed there."""
    for _, s in draft.instructions():
        if s.kernel != "copy":
            continue
        x, (y,) = s.args["x"], s.results
        i, maker = draft.steps.index(s), draft.maker(x)
        alike = _laid_out_alike(x, y) and not _overlap(x, y)
        if maker is None or not alike or not draft.only_whole(x):
            continue
        later = [j for j in (*draft.writing(x), *draft.writing(y)) if j > i]
        if not later and not draft.touching(y, maker, i):
            draft.steps.remove(s)
            draft.replace(x, y)


def drop_dead(draft: Draft) -> None:
    """Results that nobody reads are not computed."""
    for i, s in reversed(draft.instructions()):
        if s.kernel in reference.UPDATES:
            continue
        results = [r for r in s.results if r is not None]
        shown = any(_overlap(r, x) for r in results for x in draft.exposed)
        kept = any(draft.maker(r) != i or draft.touching(r, i + 1) for r in results)
        if not shown and not kept:
            del draft.steps[i]


def hosts_first(draft: Draft) -> None:
    """What Python writes at each run, it writes before the kernels, so that these run in one go."""
    for place, host in enumerate([s for s in draft.steps if isinstance(s, Host)]):
        i = next(n for n, s in enumerate(draft.steps) if s is host)
        if not host.writes or any(draft.touching(a, 0, i) for a in host.writes):
            break  # those behind it may depend on what it does
        draft.steps.insert(place, draft.steps.pop(i))


def counts_first(draft: Draft) -> None:
    """Steps are counted before the kernels, so that what comes before an optimizer's step can run
    together with it."""
    place = sum(isinstance(s, Host) for s in draft.steps)
    for s in [s for _, s in draft.instructions() if s.kernel == "count_step"]:
        i = draft.steps.index(s)
        hosts = [h for h in draft.steps[place:i] if isinstance(h, Host)]
        if not hosts and not any(draft.touching(a, 0, i) for a in s.arguments()):
            draft.steps.insert(place, draft.steps.pop(i))


def join_scalings(draft: Draft) -> None:
    """Arrays side by side in memory that are scaled in place by the same number are scaled as one:
    so clipped gradients are, chunk by chunk with the optimizer's step."""
    joined: list[Instruction | Host] = []
    for s in draft.steps:
        if joined and _scales(joined[-1]) and _scales(s):
            one, other = joined[-1], s
            assert isinstance(one, Instruction) and isinstance(other, Instruction)
            a, b = one.args["a"], other.args["a"]
            alike = a.dtype == b.dtype and _place(one.args["b"]) == _place(other.args["b"])
            if alike and _owner(a) is _owner(b) and _memory(a).stop == _memory(b).start:
                both = _stretch(a, a.size + b.size)
                joined[-1] = Instruction("mul", {"a": both, "b": one.args["b"]}, (both,))
                continue
        joined.append(s)
    draft.steps = joined


def _scales(step: Instruction | Host) -> bool:
    """Whether the step multiplies an array in place by one number."""
    if isinstance(step, Host) or step.kernel != "mul":
        return False
    a, b, (result,) = step.args["a"], step.args["b"], step.results
    arrays = hasattr(a, "strides") and hasattr(b, "strides")
    return arrays and b.size == 1 and a.flags.c_contiguous and _place(a) == _place(result)


def _owner(x: Array) -> Any:
    """What holds the memory: the array that owns it, or CuPy's allocation."""
    if not isinstance(x, np.ndarray):
        return x.data.mem  # as_strided gives arrays without a base there
    while x.base is not None:
        x = x.base
    return x


def _stretch(x: Array, size: int) -> Array:
    """``size`` elements of the memory that x begins."""
    tricks = reference.namespace(x).lib.stride_tricks
    return tricks.as_strided(x.reshape(-1), (size,), (x.itemsize,))


def copy_inputs_out(draft: Draft) -> None:
    """A result that is an argument, or a view of one, is copied: a run may read the argument where
    the caller has it."""
    for x in [x for x in draft.exposed if any(_overlap(x, a) for a in draft.inputs)]:
        own = reference.namespace(x).empty(x.shape, x.dtype)
        own[...] = x
        draft.steps.append(Instruction("copy", {"x": x}, (own,)))
        draft.exposed = [own if _place(e) == _place(x) else e for e in draft.exposed]


def share_buffers(draft: Draft) -> None:
    """Results whose lives do not meet share memory."""
    lives = []
    for i, s in draft.instructions():
        for r in s.results:
            shown = r is None or any(_overlap(r, x) for x in draft.exposed)
            if shown or not r.size or not r.flags.c_contiguous:
                continue
            if draft.maker(r) == i and draft.only_whole(r):
                lives.append((i, draft.touching(r)[-1], r))
    rooms: list[tuple[int, list[Array]]] = []  # until when each is taken, and by whom in turn
    for start, end, r in lives:
        free = [
            n for n, (until, held) in enumerate(rooms) if until < start and held[0].dtype == r.dtype
        ]
        best = min(free, key=lambda n: abs(max(h.size for h in rooms[n][1]) - r.size), default=None)
        if best is None:
            rooms.append((end, [r]))
        else:
            rooms[best] = end, [*rooms[best][1], r]
    for _, held in rooms:
        largest = max(held, key=lambda h: h.size)
        flat = largest.reshape(-1)
        for r in held:
            if r is not largest:
                draft.replace(r, flat[: r.size].reshape(r.shape))


PASSES = (
    drop_views, keep_arguments, restore_made, drop_unit_products, write_in_place, drop_dead,
    hosts_first, counts_first, join_scalings, copy_inputs_out, share_buffers,
)  # fmt: skip


# --- running --------------------------------------------------------------------------------


class Replay:
    """A recording, ready to run on other inputs of the same kind."""

    def __init__(self, recorder: Recorder, backend: Backend, result: Any, names: Any) -> None:
        self._backend = backend
        self._result = result
        tensors = [t for t in _leaves(result) if isinstance(t, Tensor)]
        self._kept = {id(t): t for t in tensors if id(t) in recorder.tensors}
        outputs = [t for t in tensors if id(t) not in self._kept]
        ends = [(leaf, leaf._grad) for leaf, _, _ in recorder.grads.values()]
        exposed = [t._array for t in (*outputs, *(g for _, g in ends if g is not None))]
        draft = Draft(recorder, exposed)
        for improve in PASSES:
            improve(draft)
        self._outputs = {id(t): a for t, a in zip(outputs, draft.exposed, strict=False)}
        self._grads = []
        arrays = iter(draft.exposed[len(outputs) :])
        for leaf, grad in ends:
            if grad is not None:
                grad._array = next(arrays)
            self._grads.append((leaf, grad))
        self.program = Program(backend, draft.steps, draft.inputs, [*self._outputs.values()], names)
        self._bumps = [(v, w) for v, w in recorder.bumps]
        self._tensors = list(recorder.tensors.values())
        self._modes = list(recorder.modules.values())
        self._entered = [
            (leaf, grad, None if grad is None else grad._array)
            for leaf, read, grad in recorder.grads.values()
            if read
        ]
        self._settings = recorder.settings
        self._steps = lower(backend, draft, self._unchanging(draft))
        self._packed = self._copies()
        self._run = [s.action if isinstance(s, Host) else s.run for s in self._steps]
        self._binders = [self._binder(x) for x in draft.inputs]

    def _unchanging(self, draft: Draft) -> list[Array]:
        """The memory of tensors from outside that no step writes, and nobody uncounted."""
        return [
            array
            for tensor, array, _ in self._tensors
            if not tensor._version.exposed and not draft.writing(array)
        ]

    def _copies(self) -> list[_Packed]:
        """The copies that plans read in another layout, with what tells whether they are true."""
        versions = {_place(array): tensor._version for tensor, array, _ in self._tensors}
        return [
            _Packed(versions[_place(source)], copy)
            for step in self._steps
            for source, copy in getattr(step, "packed", ())
        ]

    def holds(self) -> bool:
        """Whether all that the recording took for granted is still so."""
        for tensor, array, requires_grad in self._tensors:
            if tensor._array is not array or tensor._requires_grad is not requires_grad:
                return False
        for module, training in self._modes:
            if module.training is not training:
                return False
        for leaf, grad, array in self._entered:
            if leaf._grad is not grad or (grad is not None and grad._array is not array):
                return False
        for packed in self._packed:
            if packed.version.exposed:
                return False
        return all([setting() == value for setting, value in self._settings])  # noqa: C419

    def perform(self, arrays: list[Array]) -> None:
        """Run the program on arrays like those of the recording."""
        for bind, array in zip(self._binders, arrays, strict=True):
            bind(array)
        for packed in self._packed:
            packed.refresh()
        for run in self._run:
            run()

    def __call__(self, tensors: list[Tensor]) -> Any:
        self.perform([t._array for t in tensors])
        for version, writer in self._bumps:
            version.bump(writer)
        for leaf, grad in self._grads:
            leaf._grad = grad
        return self.answer(self._result)

    def answer(self, result: Any) -> Any:
        """The result with tensors of its own: the program's memory is written again."""
        if isinstance(result, Tensor):
            kept = self._kept.get(id(result))
            if kept is not None:
                return kept
            return Tensor(self._outputs[id(result)].copy(), self._backend)
        if isinstance(result, (tuple, list)):
            return _like(result, [self.answer(r) for r in result])
        if isinstance(result, dict):
            return {k: self.answer(r) for k, r in result.items()}
        return result

    def _binder(self, x: Array) -> Callable[[Array], object]:
        """How an argument takes the place of the recorded one: by its address, or by a copy."""
        direct = [s for s in self._steps if isinstance(s, Direct) and s.instruction.touches(x)]
        plans = [s for s in self._steps if not isinstance(s, (Direct, Host))]
        if direct or not plans:
            return functools.partial(self._backend.copy, out=x)
        written = [a for s in self.program.instructions() for a in s.writes()]
        binders = [plan.binder(x, written) for plan in plans]

        def bind(array: Array) -> None:
            flags = array.flags  # CuPy's have no "aligned": its memory always is
            if not (flags.c_contiguous and getattr(flags, "aligned", True)):
                array = self._backend.copy(array, out=x)
            for place in binders:
                place(array)

        return bind

    def profile(self, tensors: list[Tensor], repeat: int) -> Profile:
        """Time each kernel; what the program writes is put back after."""
        for bind, tensor in zip(self._binders, tensors, strict=True):
            bind(tensor._array)
        written = [a for s in self.program.instructions() for a in s.writes()]
        before = [(a, a.copy()) for a in written]
        kernels = [step for step in self._steps if not isinstance(step, Host)]
        pieces = [piece for step in kernels for piece in _pieces(step)]
        times: list[list[float]] = [[] for _ in pieces]
        try:
            for _ in range(repeat):
                for taken, (_, run) in zip(times, pieces, strict=True):
                    start = time.perf_counter()
                    run()
                    taken.append(time.perf_counter() - start)
        finally:
            for a, values in before:
                a[...] = values
        rows = [
            (name, float(np.median(taken)) * 1e6)
            for taken, (name, _) in zip(times, pieces, strict=True)
        ]
        return Profile(rows, repeat)


class _Packed:
    """A copy of a parameter in the layout that a plan reads fastest."""

    def __init__(self, version: Version, copy: Callable[[], None]) -> None:
        self.version = version
        self._copy = copy
        self._count = version.count

    def refresh(self) -> None:
        """Copy again if the parameter was written since."""
        if self._count != self.version.count:
            self._copy()
            self._count = self.version.count


class Profile(NamedTuple):
    """Microseconds of each kernel, medians. Print it for a table."""

    rows: list[tuple[str, float]]
    repeat: int

    def __str__(self) -> str:
        total = sum(t for _, t in self.rows)
        lines = [f"{'kernel':40}{'µs':>10}{'share':>8}"]
        lines += [f"{name:40}{t:10.1f}{t / total:8.1%}" for name, t in self.rows]
        return "\n".join([*lines, f"{'sum':40}{total:10.1f}  (medians of {self.repeat} runs)"])


class Direct:
    """An instruction that Python performs, through the kernel's own function."""

    def __init__(self, backend: Backend, instruction: Instruction) -> None:
        self.instruction = instruction
        kernel = getattr(backend, instruction.kernel)
        args, results = instruction.args, instruction.results
        if instruction.kernel in VIEWS:  # a reshape that copies
            self.run: Callable[[], object] = lambda: backend.copy(kernel(**args), out=results[0])
        elif not results:
            self.run = functools.partial(kernel, **args)
        else:
            several = isinstance(inspect.signature(kernel).parameters["out"].default, tuple)
            self.run = functools.partial(kernel, **args, out=results if several else results[0])


def lower(backend: Backend, draft: Draft, unchanging: list[Array]) -> list[Any]:
    """The steps as things that run: plans of the backend where it makes them."""
    direct = functools.partial(Direct, backend)
    steps = backend.lower(draft.steps, draft.exposed, unchanging, direct)
    return [direct(s) if isinstance(s, Instruction) else s for s in steps]


def _pieces(step: Any) -> list[tuple[str, Callable[[], object]]]:
    if isinstance(step, Direct):
        return [(step.instruction.kernel, step.run)]
    return step.pieces()


# --- compile --------------------------------------------------------------------------------


def _leaves(value: Any) -> Iterator[Any]:
    """What stands in nested tuples, lists and dicts."""
    if isinstance(value, (tuple, list)):
        for v in value:
            yield from _leaves(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from _leaves(v)
    else:
        yield value


def _like(value: Any, items: list[Any]) -> Any:
    """Items in a tuple, named tuple or list like this one."""
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def rebuilt(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The nested value with each tensor as ``change`` gives it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return _like(value, [rebuilt(v, change) for v in value])
    if isinstance(value, dict):
        return {k: rebuilt(v, change) for k, v in value.items()}
    return value


def _form(value: Any, tensors: list[Tensor]) -> Any:
    """What the recording of a call depends on, of one argument; collects its tensors."""
    if isinstance(value, Tensor):
        tensors.append(value)
        a = value._array
        return a.shape, a.dtype.num, value.backend.name, value._requires_grad
    if isinstance(value, (tuple, list)):
        return type(value), tuple([_form(v, tensors) for v in value])
    if isinstance(value, dict):
        return dict, tuple([(k, _form(v, tensors)) for k, v in value.items()])
    if isinstance(value, float):
        return type(value), value.hex()  # tells -0.0 from 0.0, and knows a NaN again
    return type(value), value


def _pattern(tensors: list[Tensor]) -> tuple[int, ...]:
    """Which of the arrays are the same: for each, the place of the first such."""
    if len(tensors) < 2:
        return ()
    arrays = [id(t._array) for t in tensors]
    return tuple(map(arrays.index, arrays))


class CompiledFunction:
    """A function that is recorded at its first call for each kind of arguments, then replayed."""

    __name__: str  # the function's: update_wrapper sets it

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function, updated=())
        self._function = function
        self._replays: dict[Any, list[Replay]] = {}
        self._latest: Replay | None = None
        self._recordings = 0
        self._warned = False
        self._lock = threading.RLock()

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if autograd.recorder() is not None:  # part of another function that is being recorded
            return self._function(*args, **kwargs)
        with self._lock:
            form, tensors, known = self._find(args, kwargs)
            if known is None:
                return self._first(form, tensors, args, kwargs)
            self._latest = known
            return known(tensors)

    def _find(self, args: Any, kwargs: Any) -> tuple[Any, list[Tensor], Replay | None]:
        tensors: list[Tensor] = []
        form = (
            tuple([_form(a, tensors) for a in args]),
            tuple([(k, _form(v, tensors)) for k, v in kwargs.items()]) if kwargs else (),
            autograd.is_grad_enabled(),
            amp.regions(),
            get_float32_matmul_precision(),
            _pattern(tensors),
        )
        try:
            replays = self._replays.get(form, ())
        except TypeError:
            raise CompileError(
                "compile: arguments must be tensors, or values that can be hashed (numbers, "
                "strings), in tuples, lists and dicts"
            ) from None
        for replay in replays:
            if replay.holds():
                return form, tensors, replay
        return form, tensors, None

    def _first(self, form: Any, tensors: list[Tensor], args: Any, kwargs: Any) -> Any:
        replays = self._replays.setdefault(form, [])
        often, many = len(replays) >= MOST_RECORDINGS, self._recordings >= MOST_IN_ALL
        if often or many:
            if not self._warned:
                self._warned = True
                times = f"{MOST_RECORDINGS} times for the same arguments, as parameters, gradients"
                warnings.warn(
                    f"compile: {self.__name__} was recorded {times} or settings that it uses were "
                    "replaced between calls; it now runs uncompiled"
                    if often
                    else f"compile: {self.__name__} was recorded for {MOST_IN_ALL} kinds of "
                    "arguments; for others it now runs uncompiled. A number that changes with "
                    "every call is better passed as a tensor",
                    stacklevel=4,
                )
            return self._function(*args, **kwargs)
        result, replay = record(self._function, tensors, args, kwargs)
        replays.append(replay)
        self._recordings += 1
        self._latest = replay
        return result

    @property
    def program(self) -> Program:
        """What the latest call ran. Print it for a listing."""
        return self._recorded().program

    def profile(self, *args: Any, repeat: int = 100, **kwargs: Any) -> Profile:
        """Time each kernel of the step on these arguments, which it was called with the like of
        before. Nothing changes: what the kernels write is put back."""
        _, tensors, known = self._find(args, kwargs)
        if known is None:
            raise CompileError("profile: call the function with arguments like these first")
        with self._lock:
            return known.profile(tensors, repeat)

    def _recorded(self) -> Replay:
        if self._latest is None:
            raise CompileError(f"compile: {self.__name__} was not called yet: nothing is recorded")
        return self._latest


def record(
    function: Callable[..., Any], tensors: list[Tensor], args: Any, kwargs: Any
) -> tuple[Any, Replay]:
    """Run the function on copies of its tensors (those in args and kwargs), looking on: its result,
    and how to repeat it."""
    with alone():
        return _recorded(function, tensors, args, kwargs)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """For the time of a recording, which no other thread makes meanwhile."""
    with _one_records:
        try:
            yield
        finally:
            _memo.clear()


def refuse_inside() -> None:
    """Refuse to call or make a program while this thread is recorded, which would wait for itself;
    names the line."""
    recorder = autograd.recorder()
    if recorder is not None:
        recorder.refuse(
            "a program is called or exported inside the function; do that before, and give the "
            "function what it answers"
        )


def _recorded(
    function: Callable[..., Any], tensors: list[Tensor], args: Any, kwargs: Any
) -> tuple[Any, Replay]:
    if any(t._requires_grad for t in tensors):
        raise CompileError(
            "compile: an argument requires a gradient; pass x.detach(), or keep it outside of the "
            "arguments, as a parameter"
        )
    copies: dict[int, Tensor] = {}
    for t in tensors:
        if id(t._array) not in copies:
            copies[id(t._array)] = Tensor(t.backend.copy(t._array), t.backend)
    own = [copies[id(t._array)] for t in tensors]
    backend = _only_backend(own)
    recorder = Recorder([t._array for t in own], backend)
    with autograd.recording(recorder), backend.observed(recorder.called):
        again = iter(own)
        args, kwargs = rebuilt((args, kwargs), lambda _: next(again))
        result = function(*args, **kwargs)
    for t in _leaves(result):
        if isinstance(t, Tensor) and t._node is not None and t._node.saved is not None:
            raise CompileError(
                "compile: a result is still on the graph; call backward() inside the function, "
                "run it under no_grad, or return result.detach()"
            )
    replay = Replay(recorder, backend, result, _names(function, recorder))
    return replay.answer(result), replay


def _only_backend(tensors: list[Tensor]) -> Backend:
    backends = {t.backend.name: t.backend for t in tensors} or {"": resolve(None)}
    if len(backends) > 1:
        autograd.refuse_mixed("compile", *list(backends.values())[:2])
    return next(iter(backends.values()))


def _names(function: Callable[..., Any], recorder: Recorder) -> dict[tuple[Any, ...], str]:
    """Names for a listing: of arguments, and of the modules' parameters."""
    names: dict[tuple[Any, ...], str] = {}
    given = list(inspect.signature(function).parameters)
    for i, x in enumerate(recorder.inputs):
        names[_place(x)] = given[i] if len(given) == len(recorder.inputs) else f"input{i}"
    for module, _ in recorder.modules.values():  # the outermost ran first
        for name, p in module.named_parameters():
            names.setdefault(_place(p._array), name)
    return names


def compile(function: Callable[..., Any]) -> CompiledFunction:
    """A function of tensors that is recorded once for each kind of arguments, and then replayed.

    The first call with arguments of new shapes, dtypes or other values is an ordinary one, under
    a recorder; later calls run its kernels alone, on the same memory, with the same results bit
    for bit: forward, backward, optimizer, dropout, clipping. Learning rates may change in
    between, and schedules advance. What Python does besides (printing, counting, appending) is
    done at the first call only.

    What a call leaves for the next one must exist before the first (a tensor that is written in
    place); what is made on the way is made anew.

    Arguments and results are tensors, or values that can be hashed, in tuples, lists and dicts.
    Results are tensors of their own, outside the graph; gradients that the function leaves
    in ``.grad`` are written over by the next call. A step that was recorded is recorded again
    when a module's mode, a parameter's memory or a setting of the optimizer is another.

    ``.program`` is the recording, ``.profile(*args)`` times its kernels. Raises CompileError, at
    the first call, where the function reads values (``item()``, ``if loss > 1``).
    """
    return CompiledFunction(function)
