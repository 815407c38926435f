"""The device beneath CuPy's stand-in: memory, streams and graphs, as strict as CUDA's.

- Freed memory holds 0xff in every byte, and there is as much memory as ``set_memory`` says.
- While a stream captures, operations are only recorded, and what CUDA forbids then raises. A graph
  raises when it is launched if it touches memory that was given back to a pool of others.

Everything runs at once and in order: races between streams are not seen.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

ALIGNMENT = 512  # of what CuPy's pools give

Operation = Callable[[], object]

# --- memory ----------------------------------------------------------------------------------


class CUDARuntimeError(RuntimeError):
    """An error of the CUDA runtime, by name."""


class OutOfMemoryError(MemoryError):
    """The device, or a pool's limit, has not that much memory."""

    __module__ = "cupy.cuda.memory"

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        super().__init__(
            f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes, limit "
            f"set to: {limit:,} bytes)."
        )


class _Block:
    """Bytes of the device. They stay readable after they were freed, as garbage."""

    def __init__(self, size: int, pool: MemoryPool) -> None:
        room = np.empty(size + ALIGNMENT, np.uint8)
        start = -room.ctypes.data % ALIGNMENT
        self.bytes = room[start : start + size]
        self.address = self.bytes.ctypes.data if size else 0
        self.pool = weakref.ref(pool)
        self.freed = False
        _blocks.add(self)

    def free(self, size: int) -> None:
        self.freed = True
        self.bytes[:] = 0xFF
        _room.used -= size
        pool = self.pool()
        if pool is not None:
            pool.used -= size


_blocks: weakref.WeakSet[_Block] = weakref.WeakSet()


class Memory:
    """One allocation; freed with the last array or pointer into it."""

    def __init__(self, size: int, pool: MemoryPool) -> None:
        self.size = size
        self._block = _Block(size, pool)
        self.ptr = self._block.address
        weakref.finalize(self, self._block.free, size).atexit = False


class MemoryPointer:
    """A place in an allocation."""

    def __init__(self, mem: Memory, offset: int) -> None:
        self.mem = mem
        self.ptr = mem.ptr + offset
        self.device_id = 0

    def __int__(self) -> int:
        return self.ptr

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    def copy_from_device_async(self, src: MemoryPointer, size: int, stream: Any = None) -> None:
        target, source = (p.mem._block.bytes[p.ptr - p.mem.ptr :][:size] for p in (self, src))
        record(lambda: np.copyto(target, source), stream=stream)


class MemoryPool:
    """Memory that its arrays draw from."""

    def __init__(self, allocator: Any = None) -> None:
        self.used = self._total = self._limit = 0

    def malloc(self, size: int) -> MemoryPointer:
        size = -(-size // ALIGNMENT) * ALIGNMENT
        for collect in (gc.collect, None):
            left = _room.total - _room.used
            if self._limit:
                left = min(left, self._limit - self.used)
            if size <= left:
                break
            if collect is None:
                raise OutOfMemoryError(size, self.used, self._limit)
            collect()  # as CuPy does before it gives up
        self.used += size
        self._total = max(self._total, self.used)
        _room.used += size
        pointer = MemoryPointer(Memory(size, self), 0)
        for into in _captures.values():
            into.blocks.append(pointer.mem._block)
        return pointer

    def used_bytes(self) -> int:
        return self.used

    def total_bytes(self) -> int:
        return self._total

    def free_bytes(self) -> int:
        return self._total - self.used

    def free_all_blocks(self, stream: Any = None) -> None:
        self._total = self.used

    def get_limit(self) -> int:
        return self._limit

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        self._limit = size if size is not None else int(_room.total * (fraction or 0))


class PinnedMemoryPool:
    """Memory of the host that the device reads."""

    def free_all_blocks(self) -> None: ...


class _Room:
    """The memory of the device, in bytes."""

    total = 1 << 40
    used = 0


_room = _Room()
default_pool = MemoryPool()
pinned_pool = PinnedMemoryPool()


@contextlib.contextmanager
def set_memory(total: int) -> Iterator[None]:
    """Let the device have this many bytes more than are in use now, inside the context."""
    gc.collect()
    before, _room.total = _room.total, _room.used + total
    try:
        yield
    finally:
        _room.total = before


# --- streams and graphs ----------------------------------------------------------------------


class _Current(threading.local):
    def __init__(self) -> None:
        self.streams = [Stream.null]
        self.allocators: list[Any] = []


class _Capture:
    """What a graph will do, and the memory it does it in."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.touched: dict[int, _Block] = {}
        self.blocks = list(_blocks)  # kept, so that an address in an operation stays one
        self.broken = False


_captures: dict[Stream, _Capture] = {}


def current_stream(device_id: int = -1) -> Stream:
    return _current.streams[-1]


def capture(stream: Stream | None = None) -> _Capture | None:
    """What the stream (the current one if None) captures, if it does."""
    return _captures.get(stream or current_stream()) if _captures else None


def record(operation: Operation, *operands: Any, stream: Stream | None = None) -> None:
    """Do something that the current stream was told to do: now, or when the graph that it captures
    is launched. ``operands``: the arrays it touches, so that freed ones are found."""
    into = capture(stream)
    if into is None:
        operation()
        return
    into.operations.append(operation)
    for x in operands:
        if isinstance(getattr(x, "data", None), MemoryPointer):
            block = x.data.mem._block
            into.touched[id(block)] = block


def synchronizes(what: str) -> None:
    """Raise if the current stream is capturing: CUDA forbids it then, and drops the capture."""
    dropped = capture()
    if dropped is not None:
        dropped.broken = True
        raise CUDARuntimeError(
            f"cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing "
            f"({what})"
        )


class Stream:
    """A queue of work, empty at any time but while it captures."""

    null: Stream

    def __init__(
        self,
        null: bool = False,
        non_blocking: bool = False,
        ptds: bool = False,
        priority: Any = None,
    ) -> None:
        self.ptr = 0 if null else id(self)
        self.is_non_blocking = non_blocking

    @property
    def done(self) -> bool:
        synchronizes("Stream.done")
        return True

    def use(self) -> Stream:
        _current.streams[-1] = self
        return self

    def __enter__(self) -> Stream:
        _current.streams.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _current.streams.pop()

    def synchronize(self) -> None:
        synchronizes("Stream.synchronize")

    def record(self, event: Event | None = None) -> Event:
        return event or Event()

    def wait_event(self, event: Event) -> None:
        if not isinstance(event, Event):
            raise TypeError(f"wait_event: expected an Event, got {type(event).__name__}")

    def begin_capture(self, mode: Any = None) -> None:
        if self.ptr == 0:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: the null stream")
        if self in _captures:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is capturing already")
        _captures[self] = _Capture()

    def end_capture(self) -> Graph:
        if self not in _captures:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is not capturing")
        ended = _captures.pop(self)
        if ended.broken:
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureInvalidated: an operation in it was unsafe"
            )
        return Graph(ended)

    def is_capturing(self) -> bool:
        return self in _captures


class Graph:
    """Recorded operations, which ``launch`` does in their order, on the same memory."""

    def __init__(self, captured: _Capture) -> None:
        self._captured = captured

    def upload(self, stream: Stream | None = None) -> None: ...

    def launch(self, stream: Stream | None = None) -> None:
        for block in self._captured.touched.values():
            if not block.freed:
                continue
            if block.pool() in (None, default_pool):
                raise AssertionError(
                    "the graph touches memory that was freed, which others may hold by now: keep "
                    "its arrays, or capture in a MemoryPool that is kept with it"
                )
            block.bytes[:] = 0xFF  # nothing survives there from one launch to the next

        def run() -> None:
            for operation in self._captured.operations:
                operation()

        record(run, stream=stream)


class Event:
    """A point in a stream's work."""

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self.done = True
        self.seconds: float | None = None

    def record(self, stream: Stream | None = None) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        synchronizes("Event.synchronize")


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Milliseconds."""
    if start_event.seconds is None or end_event.seconds is None:
        raise CUDARuntimeError("cudaErrorInvalidResourceHandle: an event was not recorded")
    return 1e3 * (end_event.seconds - start_event.seconds)


Stream.null = Stream(null=True)
_current = _Current()


class Device:
    """The one device there is."""

    def __init__(self, device: int | None = None) -> None:
        if device not in (None, 0):
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.id = 0
        self.compute_capability = "90"
        self.attributes = {"MultiProcessorCount": 2, "MaxSharedMemoryPerBlockOptin": 232448}

    @property
    def mem_info(self) -> tuple[int, int]:
        return _room.total - _room.used, _room.total

    def use(self) -> Device:
        return self

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def synchronize(self) -> None:
        synchronizes("Device.synchronize")


@contextlib.contextmanager
def using_allocator(allocator: Any = None) -> Iterator[None]:
    _current.allocators.append(allocator or MemoryPool().malloc)
    try:
        yield
    finally:
        _current.allocators.pop()


def alloc(size: int) -> MemoryPointer:
    return (_current.allocators or [default_pool.malloc])[-1](size)


def properties(number: int) -> dict[str, Any]:
    return {
        "name": b"stand-in for a GPU", "major": 9, "minor": 0, "multiProcessorCount": 2,
        "totalGlobalMem": _room.total,
    }  # fmt: skip
