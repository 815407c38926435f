"""Kernels as tasks: pieces of work that native code calls by address.

    @task                      compiled for T = float32 and float64 to  int64 f(T* args, int64 i)
    def _block(args, i):
        a, out = matrix(args, 0), rows(args, 5)
        ...

    Call(_block, x.dtype, count, (x, *x.shape, *x.strides, out, *out.shape), writes=(out,))

A ``Call`` says: run task(args, i) for i = 0 … count - 1, in any order, on any threads; no two of
them write the same element. Its values are 64-bit slots: an array stands for its address, then
come whole and floating numbers. ``run`` performs one call; a ``Plan`` is a list of calls laid out
once, which one native function performs again and again.

Threads take tasks one by one from a common counter and wait for each other between levels, groups
of calls that do not depend on each other. A thread that comes late, or is held up by another
process, leaves its share to the others: nobody waits for a thread that holds no task. They are
threads of our own (_threads.py): Numba's would all have to come, and take long to wake.

A task returns 0, or another number to stop the run: what it refuses is then raised by the call's
``refuse``.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from llvmlite import binding as llvm

from . import _threads
from ._intrinsics import IS_X86
from ._jit import (
    ANSWER_BITS,
    NO_MEMORY,
    Task,
    cgutils,
    device,
    driver,
    intrinsic,
    ir,
    late,
    types,
)
from ._threads import TABLE, WAITED

__all__ = [
    "Call", "Plan", "array_at", "flat", "floats", "free", "integer", "integers", "matrix", "number",
    "rows", "run", "scratch", "vector",
]  # fmt: skip

LINE = 8  # int64 numbers in a cache line: counters that threads change stand this far apart


arrayobj = late("numba.np.arrayobj")

# --- reading arguments, in a task -----------------------------------------------------------


def _slot(context: Any, builder: Any, args: Any, k: Any, type_: Any) -> Any:
    """The content of slot k as an LLVM value of this type."""
    place = builder.bitcast(args, ir.IntType(64).as_pointer())
    return builder.load(builder.bitcast(builder.gep(place, [k]), type_.as_pointer()))


def array_at(
    context: Any, builder: Any, array: Any, data: Any, shape: list[Any], *strides: Any
) -> Any:
    """Emit an array of this type at ``data``; C-contiguous if no strides are given."""
    element = context.get_data_type(array.dtype)
    item = context.get_abi_sizeof(element)
    if not strides:
        strides = (ir.IntType(64)(item),)
        for length in reversed(shape[1:]):
            strides = (builder.mul(strides[0], length), *strides)
    result = context.make_array(array)(context, builder)
    arrayobj.populate_array(
        result,
        data=builder.bitcast(data, element.as_pointer()),
        shape=shape,
        strides=strides,
        itemsize=context.get_constant(types.intp, item),
        meminfo=None,
    )
    return result._getvalue()


def _array(kind: str | None, ndim: int, strided: bool) -> Any:
    """The intrinsic that makes an array of the slots from k on: address, shape, strides."""

    @intrinsic
    def read(typingctx, args, k):
        array = types.Array(getattr(types, kind) if kind else args.dtype, ndim, "CA"[strided])

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            pointer, first = values
            address, *numbers = (
                _slot(context, builder, pointer, builder.add(first, first.type(n)), ir.IntType(64))
                for n in range(1 + ndim * (2 if strided else 1))
            )
            data = builder.inttoptr(address, cgutils.voidptr_t)
            return array_at(context, builder, array, data, numbers[:ndim], *numbers[ndim:])

        return array(args, types.int64), generate

    return read


vector = _array(None, 1, strided=False)  # slots: address, length
rows = _array(None, 2, strided=False)  # slots: address, rows, columns
matrix = _array(None, 2, strided=True)  # slots: address, rows, columns, two strides in bytes
floats = _array("float64", 1, strided=False)  # slots: address, length
integers = _array("int64", 1, strided=False)  # slots: address, length


@intrinsic
def slots(typingctx: Any, args: Any, k: Any, count: Any) -> Any:
    """The slots from k on themselves, as an array of int64."""
    array = types.Array(types.int64, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer, first, length = values
        place = builder.bitcast(pointer, ir.IntType(64).as_pointer())
        return array_at(context, builder, array, builder.gep(place, [first]), [length])

    return array(args, types.int64, types.int64), generate


@intrinsic
def _pointer(typingctx: Any, array: Any) -> Any:
    """An array's elements as slots to read from."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return context.make_array(array)(context, builder, values[0]).data

    return types.CPointer(array.dtype)(array), generate


@intrinsic
def integer(typingctx: Any, args: Any, k: Any) -> Any:
    """The whole number in slot k."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _slot(context, builder, values[0], values[1], ir.IntType(64))

    return types.int64(args, types.int64), generate


@intrinsic
def number(typingctx: Any, args: Any, k: Any) -> Any:
    """The floating number in slot k, float64."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _slot(context, builder, values[0], values[1], ir.DoubleType())

    return types.float64(args, types.int64), generate


# --- memory, in a task ------------------------------------------------------------------------

ALIGNED = 64  # bytes: a cache line


@intrinsic
def scratch(typingctx: Any, dtype: Any, size: Any) -> Any:
    """An array (size,) of this dtype that begins a cache line, to be given back by ``free``.

    Numba's own arrays count references, by functions that are there only if Numba is imported.
    """
    array = types.Array(dtype.dtype, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        item = context.get_abi_sizeof(context.get_data_type(array.dtype))
        room = builder.add(builder.mul(values[1], size_t(item)), size_t(2 * ALIGNED))
        memory = builder.call(_function(builder, "malloc", voidptr, [size_t]), [room])
        cgutils.guard_memory_error(context, builder, memory)
        start = builder.add(builder.ptrtoint(memory, size_t), size_t(2 * ALIGNED - 1))
        data = builder.inttoptr(builder.and_(start, size_t(-ALIGNED)), voidptr.as_pointer())
        builder.store(memory, builder.gep(data, [size_t(-1)]))  # what free is to be told
        return array_at(context, builder, array, data, [values[1]])

    voidptr, size_t = cgutils.voidptr_t, cgutils.intp_t
    return array(dtype, types.int64), generate


@intrinsic
def free(typingctx: Any, array: Any) -> Any:
    """Give back what ``scratch`` gave."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(array)(context, builder, values[0]).data
        data = builder.bitcast(data, cgutils.voidptr_t.as_pointer())
        memory = builder.load(builder.gep(data, [cgutils.intp_t(-1)]))
        release = _function(builder, "free", ir.VoidType(), [cgutils.voidptr_t])
        builder.call(release, [memory])
        return context.get_dummy_value()

    return types.void(array), generate


@intrinsic
def flat(typingctx: Any, array: Any) -> Any:
    """All elements of a C-contiguous array as a vector."""
    vector = types.Array(array.dtype, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        whole = context.make_array(array)(context, builder, values[0])
        return array_at(context, builder, vector, whole.data, [whole.nitems])

    return vector(array), generate


def _function(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """A function of the C library."""
    kind = ir.FunctionType(result, arguments)
    return cgutils.get_or_insert_function(builder.module, kind, name)


# --- running them, in native code -----------------------------------------------------------
# A call in slots: the task's address, count, values. The calls of a plan lie WIDTH slots apart.
# A job: how many numbers say where its levels begin and end, how many slots its calls take; then
# these numbers and slots themselves.

HEAD = 2
WIDTH = 32
FIRST = 2  # the slot of the first value
STOPPED = 0  # the first counter: which call stopped the run, and the task's answer
FOLLOWS = -1  # in the place of a count: each task runs after that task of the call before
PATIENCE = 500  # rests, some microseconds, before a waiting thread makes way for others


@intrinsic
def _call_task(typingctx: Any, code: Any, call: Any, i: Any) -> Any:
    """Run task i of the call in the slots from ``call`` on; its answer."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array, first, number = values
        slots = context.make_array(code)(context, builder, array).data
        argtypes = (types.voidptr, types.int64)
        function = context.call_conv.get_function_type(types.int64, argtypes)
        address = builder.load(builder.gep(slots, [first]))
        arguments = builder.gep(slots, [builder.add(first, first.type(FIRST))])
        status, answer = context.call_conv.call_function(
            builder,
            builder.inttoptr(address, function.as_pointer()),
            types.int64,
            argtypes,
            [builder.bitcast(arguments, cgutils.voidptr_t), number],
        )
        return builder.select(status.is_error, answer.type(NO_MEMORY), answer)

    return types.int64(code, types.int64, types.int64), generate


@intrinsic
def _fetch_add(typingctx: Any, counters: Any, k: Any, value: Any) -> Any:
    """counters[k] += value for all threads to see; what it was before."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(counters)(context, builder, values[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [values[1]]), values[2], "seq_cst")

    return types.int64(counters, types.int64, types.int64), generate


@intrinsic
def _load(typingctx: Any, counters: Any, k: Any) -> Any:
    """counters[k] as the other threads have left it."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(counters)(context, builder, values[0]).data
        return builder.load_atomic(builder.gep(data, [values[1]]), "seq_cst", 8)

    return types.int64(counters, types.int64), generate


@intrinsic
def _store(typingctx: Any, counters: Any, k: Any, value: Any) -> Any:
    """counters[k] = value, after all that was written before, for all threads to see."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(counters)(context, builder, values[0]).data
        builder.store_atomic(values[2], builder.gep(data, [values[1]]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(counters, types.int64, types.int64), generate


@intrinsic
def _rest(typingctx: Any) -> Any:
    """Tell the CPU that this thread is waiting in a loop."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if IS_X86:
            builder.call(_function(builder, "llvm.x86.sse2.pause", ir.VoidType(), []), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _make_way(typingctx: Any) -> Any:
    """Let another thread have this core, if one is waiting for it."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if llvm.address_of_symbol("sched_yield") is not None:  # not on Windows
            builder.call(_function(builder, "sched_yield", ir.IntType(32), []), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _now(typingctx: Any) -> Any:
    """Nanoseconds of a clock that only runs forward; 0 where there is no POSIX clock."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        long = ir.IntType(64)
        if llvm.address_of_symbol("clock_gettime") is None:
            return long(0)
        place = cgutils.alloca_once(builder, long, size=2)
        int32 = ir.IntType(32)
        clock = _function(builder, "clock_gettime", int32, [int32, long.as_pointer()])
        builder.call(clock, [int32(getattr(time, "CLOCK_MONOTONIC", 0)), place])
        seconds, rest = (builder.load(builder.gep(place, [long(n)])) for n in range(2))
        return builder.add(builder.mul(seconds, long(10**9)), rest)

    return types.int64(), generate


@device
def _count_of(code, levels, level):
    total = 0
    for call in range(levels[level], levels[level + 1]):
        total += max(code[call * WIDTH + 1], 0)
    return total


@device
def _task(code, call, i):
    """Run the i-th task from this call on, which may be one of a later call, and the same piece of
    the calls that follow it; 0 or what stops."""
    while i >= max(code[call * WIDTH + 1], 0):
        i -= max(code[call * WIDTH + 1], 0)
        call += 1
    answer = _call_task(code, call * WIDTH, i)
    following = (call + 1) * WIDTH
    while answer == 0 and following < len(code) and code[following + 1] == FOLLOWS:
        answer = _call_task(code, following, i)
        following += WIDTH
    return (call << ANSWER_BITS) | answer if answer else 0


@driver(nogil=False)
def _serial(args):
    """Run a job on this thread."""
    levels = slots(args, HEAD, integer(args, 0))
    code = slots(args, HEAD + len(levels), integer(args, 1))
    for level in range(len(levels) - 1):
        for i in range(_count_of(code, levels, level)):
            stop = _task(code, levels[level], i)
            if stop:
                return stop
    return 0


@device
def _work(code, levels, counters):
    """What each thread does: take tasks of a level while there are any, then wait for the rest.

    Returns for how many nanoseconds it has waited, short waits left out.
    """
    waited = 0
    for level in range(len(levels) - 1):
        total = _count_of(code, levels, level)
        taken = (2 * level + 1) * LINE
        done = taken + LINE
        i = _fetch_add(counters, taken, 1)
        while i < total:
            stop = _task(code, levels[level], i)
            if stop:
                _store(counters, STOPPED, stop)
            _fetch_add(counters, done, 1)
            i = _fetch_add(counters, taken, 1)
        rests = since = 0
        while _load(counters, done) < total:
            if rests < PATIENCE:
                rests += 1
                _rest()
                continue
            # The thread that holds the last task may be without a core: it is given ours.
            since = since or _now()
            _make_way()
        if since:
            waited += _now() - since
        if _load(counters, STOPPED):
            break
    return waited


# A job is offered to the helping threads in a table: where the code, the levels and the counters
# lie, and how long they are. The caller opens it, works, closes it, and waits for the helpers
# inside; who comes late finds it closed. So a helper without a core holds nobody up.
JOB, OPEN, INSIDE, LIMIT = 0, LINE, 2 * LINE, 3 * LINE
NUMBER = 4 * LINE  # of the job
IDLE = 1_500  # rests, some tenths of a millisecond, before a helper without a job sleeps


@driver(nogil=True)
def _shared(args):
    """Run calls on this thread and on the helpers that come; table[WAITED] says for how long this
    thread waited for them."""
    code, levels, table = integers(args, 0), integers(args, 2), integers(args, 4)
    counters = scratch(np.int64, (2 * len(levels) + 1) * LINE)
    counters[:] = 0
    for k in range(4):
        table[JOB + k] = integer(args, k)
    table[JOB + 4], table[JOB + 5] = counters.ctypes.data, len(counters)
    table[NUMBER] += 1
    _store(table, LIMIT, integer(args, 6))
    _store(table, OPEN, table[NUMBER])
    waited = _work(code, levels, counters)
    _store(table, OPEN, 0)
    rests = 0
    while _load(table, INSIDE):
        _rest() if rests < PATIENCE else _make_way()
        rests += 1
    table[WAITED] = waited
    stop = counters[STOPPED]
    free(counters)
    return stop


@driver(nogil=True)
def _help(args):
    """Work on the jobs that are opened, until there was none for a while."""
    table, helper = integers(args, 0), integer(args, 2)
    jobs = _pointer(table)
    last = rests = 0
    while rests < IDLE:
        job = _load(table, OPEN)
        if job == 0 or job == last or helper >= _load(table, LIMIT):
            # On a busy machine the thread that will open the next job may wait for this core.
            _rest() if rests < PATIENCE else _make_way()
            rests += 1
            continue
        _fetch_add(table, INSIDE, 1)
        if _load(table, OPEN) == job:
            _work(integers(jobs, JOB), integers(jobs, JOB + 2), integers(jobs, JOB + 4))
            last, rests = job, 0
        _fetch_add(table, INSIDE, -1)
    return 0


# --- calls ----------------------------------------------------------------------------------

LEAST_NANOSECONDS = 8_000  # of work for which a job for the helpers pays
SHARED = struct.Struct("=7q")  # what _shared is given
ONE_CALL = struct.Struct("=4q")  # what stands before the slots of a job's only call


class Call:
    """``count`` runs of a task on values: see the module.

    The arrays that a task writes are named again in ``writes``; it may read all the others.
    ``nanoseconds`` is about how long the call takes on one thread.
    """

    __slots__ = ("chunked", "count", "dtype", "nanoseconds", "refuse", "task", "values", "writes")

    def __init__(
        self,
        task: Task,
        dtype: np.dtype,
        count: int,
        values: tuple[Any, ...],
        writes: tuple[np.ndarray, ...],
        nanoseconds: float = 0.0,
        refuse: Callable[[int, list[np.ndarray]], object] | None = None,
    ) -> None:
        self.task = task
        self.dtype = dtype
        self.count = count
        self.values = values
        self.writes = writes
        self.nanoseconds = nanoseconds
        self.refuse = refuse
        self.chunked = (
            False  # task i touches chunk i of arrays as long as what it writes, others whole
        )

    def pack(self) -> bytes:
        """The call in slots."""
        values = [address(v) if v.__class__ is np.ndarray else v for v in self.values]
        return self.task.slots(values).pack(self.task.address(self.dtype), self.count, *values)

    def arrays(self) -> list[np.ndarray]:
        """The arrays among the values."""
        return [v for v in self.values if isinstance(v, np.ndarray)]

    def refused(self, answer: int, arrays: list[np.ndarray] | None = None) -> None:
        """Raise what the task's answer means."""
        if answer == NO_MEMORY:
            raise MemoryError(f"{self.task.name} got no memory for its intermediate results")
        assert self.refuse is not None, self.task.name
        self.refuse(answer, self.arrays() if arrays is None else arrays)


def _perform(job: np.ndarray, nanoseconds: float) -> int:
    """Run a job, on several threads if it pays and no other thread of Python is doing so."""
    crew, start = _threads.crew, address(job)
    if nanoseconds >= LEAST_NANOSECONDS and crew.lock.acquire(blocking=False):
        now = time.perf_counter_ns()
        try:
            bounds, slots = job[:HEAD].tolist()
            levels = start + 8 * HEAD
            parts = (levels + 8 * bounds, slots, levels, bounds, address(crew.table), TABLE)
            stop = _shared.native(SHARED.pack(*parts, crew.gather(_help.native, now)))
            crew.waited(now, int(crew.table[WAITED]))
            return stop
        finally:
            crew.lock.release()
    return _serial.native(start)


def _perform_one(packed: bytes, nanoseconds: float) -> int:
    """Run a single call."""
    job = ONE_CALL.pack(2, len(packed) // 8, 0, 1) + packed
    if nanoseconds < LEAST_NANOSECONDS:
        return _serial.native(job)
    return _perform(np.frombuffer(job, np.int64), nanoseconds)


def _divisible(calls: Iterable[Call]) -> float:
    """Nanoseconds of work that several threads could share."""
    total = 0.0
    for call in calls:
        if call.count > 1:
            total += call.nanoseconds
    return total


def run(*calls: Call) -> None:
    """Perform calls, one after another."""
    nanoseconds = _divisible(calls)
    if len(calls) == 1:
        stop = _perform_one(calls[0].pack(), nanoseconds)
    else:
        stop = _perform(_job(calls, range(len(calls) + 1)), nanoseconds)
    if stop:
        calls[stop >> ANSWER_BITS].refused(stop & ((1 << ANSWER_BITS) - 1))


def _job(calls: Sequence[Call], levels: Sequence[int]) -> np.ndarray:
    """The calls laid out, with where each level begins, and the end."""
    packed = [call.pack() for call in calls]
    assert all(len(slots) <= 8 * WIDTH for slots in packed)
    code = b"".join([slots.ljust(8 * WIDTH, b"\0") for slots in packed])
    head = np.array([len(levels), len(code) // 8, *levels])
    return np.concatenate([head, np.frombuffer(code, np.int64)])


class Plan:
    """Calls laid out to be performed again and again, on the memory they were made with.

    ``packed`` lists arrays of which the calls read copies, each with a function to copy it again.
    """

    def __init__(
        self,
        calls: list[Call],
        packed: Sequence[tuple[np.ndarray, Callable[[], None]]] = (),
    ) -> None:
        self.calls = calls
        self.packed = packed
        starts, follows = _levels(calls)
        self._job = _job(calls, starts)
        self._start = address(self._job)
        self._levels, self._code = np.split(self._job[HEAD:], [len(starts)])
        for n in follows:
            self._code[n * WIDTH + 1] = FOLLOWS
        self._divisible = _divisible(calls)
        self._serial = _serial.native
        self._bound: list[list[np.ndarray]] = []  # arrays of the calls, and what stands for them

    def binder(self, x: np.ndarray, written: Iterable[np.ndarray]) -> Callable[[np.ndarray], None]:
        """A function that puts another array in the place of x: of its dtype and shape, and
        contiguous as x is. One that shares memory with what the program writes is copied into x.
        """
        start, size = address(x), x.nbytes
        ranges = sorted(np.lib.array_utils.byte_bounds(a) for a in written)
        starts, ends = [low for low, _ in ranges], list(accumulate((e for _, e in ranges), max))
        places = [
            (n * WIDTH + FIRST + k, address(value) - start)
            for n, call in enumerate(self.calls)
            for k, value in enumerate(call.values)
            if isinstance(value, np.ndarray) and np.may_share_memory(value, x)
        ]
        code, bound = self._code.data, [x, x]
        self._bound.append(bound)

        def bind(array: np.ndarray) -> None:
            start = address(array)
            before = bisect_left(starts, start + size)  # so many of them begin before its end
            if before and ends[before - 1] > start:
                x[...] = array
                array, start = x, address(x)
            bound[1] = array  # kept alive: the code holds its address
            for slot, offset in places:
                code[slot] = start + offset

        return bind

    def _current(self, value: np.ndarray) -> np.ndarray:
        """What was bound in the place of an array."""
        for x, array in self._bound:
            if np.may_share_memory(value, x):
                offset = address(value) - address(x)
                return np.ndarray(value.shape, value.dtype, array.data, offset, value.strides)
        return value

    def _refused(self, n: int, answer: int) -> None:
        call = self.calls[n]
        call.refused(answer, [self._current(a) for a in call.arrays()])

    def pieces(self) -> list[tuple[str, Callable[[], None]]]:
        """The calls by name, each to be performed alone."""
        return [
            (call.task.name, functools.partial(self._run_one, n))
            for n, call in enumerate(self.calls)
        ]

    def _run_one(self, n: int) -> None:
        code = self._code[n * WIDTH : (n + 1) * WIDTH].copy()
        code[1] = self.calls[n].count
        stop = _perform_one(code.tobytes(), _divisible((self.calls[n],)))
        if stop:
            self._refused(n, stop)

    def run(self) -> None:
        """Perform the calls."""
        if self._divisible < LEAST_NANOSECONDS:
            stop = self._serial(self._start)
        else:
            stop = _perform(self._job, self._divisible)
        if stop:
            self._refused(stop >> ANSWER_BITS, stop & ((1 << ANSWER_BITS) - 1))


def _levels(calls: list[Call]) -> tuple[list[int], list[int]]:
    """Where each level begins, and the end: calls of one level do not depend on each other, but for
    those in the second list. These follow the call before them chunk by chunk, while it is hot.
    """
    starts, follows, head = [0], [], 0
    for n, call in enumerate(calls):
        level, chain = calls[starts[-1] : head], calls[head:n]
        needs_chain = any(_depend(c, call) for c in chain)
        in_step = needs_chain and all(_in_step(c, call) for c in chain)
        if n > starts[-1] and in_step and not any(_depend(c, call) for c in level):
            follows.append(n)
            continue
        if needs_chain or any(_depend(c, call) for c in level):
            starts.append(n)
        head = n
    return [*starts, len(calls)], follows


def _in_step(a: Call, b: Call) -> bool:
    """Whether chunk i of b needs of what a touches chunk i alone."""
    if not (a.chunked and b.chunked and a.writes[0].size == b.writes[0].size):
        return False
    return all(
        x.size == y.size == b.writes[0].size and address(x) == address(y)
        for one, other in ((a, b), (b, a))
        for x in one.writes
        for y in other.arrays()
        if np.may_share_memory(x, y)
    )


def _depend(a: Call, b: Call) -> bool:
    """Whether either writes what the other reads or writes."""
    return any(
        np.may_share_memory(written, touched)
        for one, other in ((a, b), (b, a))
        for written in one.writes
        for touched in other.arrays()
    )


# --- addresses ------------------------------------------------------------------------------
# x.ctypes.data takes ten times as long.

_word = ctypes.c_ssize_t.from_address


def _first_field(x: np.ndarray) -> int:
    """In NumPy's C interface that is where the elements lie (PyArrayObject_fields)."""
    return _word(id(x) + object.__basicsize__).value


def _data(x: np.ndarray) -> int:
    return int(x.ctypes.data)


_probe = np.empty(1)
address = _first_field if _first_field(_probe) == _data(_probe) else _data
"""Where the first element of an array lies."""
