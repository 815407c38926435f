"""Neighbouring instructions of a recorded program as one CUDA graph: the GPU is told once what to
do, and then does it at one launch.

Capture keeps to what CUDA allows: a stream of its own, a memory pool of its own (temporaries lie
where the graph will look for them, and nobody else may get that memory), nothing that waits for the
GPU. https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-graphs

Graphs share cuBLAS's workspace for the capture stream: do not run two at once on different streams.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from ..reference import Array
from . import _blas

__all__: list[str] = []


def lower(
    steps: list[Any],
    exposed: list[Array],
    unchanging: list[Array],
    direct: Callable[[Any], Any],
) -> list[Any]:
    """The steps (those with a ``kernel`` are instructions) with neighbours as graphs; ``direct``
    gives an instruction as something with ``run()``."""
    lowered: list[Any] = []
    calls: list[Any] = []
    for step in [*steps, None]:
        if hasattr(step, "kernel"):
            calls.append(direct(step))
            continue
        if calls:
            lowered.append(GraphPlan(calls))
            calls = []
        if step is not None:
            lowered.append(step)
    return lowered


class _Refused(Exception):
    """A call that cannot be captured, by its number, and why."""

    def __init__(self, number: int, reason: BaseException) -> None:
        super().__init__(number, reason)
        self.number = number
        self.reason = reason


_capturing = threading.RLock()  # one plan at a time
_stream: Any = None


def _capture_stream() -> Any:
    """The stream that plans are captured on: one for all, as cuBLAS has a workspace for each."""
    global _stream
    if _stream is None:
        import cupy

        _stream = cupy.cuda.Stream(non_blocking=True)
    return _stream


class GraphPlan:
    """Calls that become a CUDA graph.

    The first run performs them one by one, which loads kernels, looks up algorithms and fills the
    pool; the second captures them; from then on a run is one launch. A call that cannot be captured
    divides the graph, with a warning that names it.
    """

    packed = ()

    def __init__(self, calls: list[Any]) -> None:
        import cupy

        self._calls = calls
        self._pool = cupy.cuda.MemoryPool()  # lives as long as the graphs: they write into it
        self._stream: Any = None  # of the captures: cuBLAS's workspace lives as long as it
        self._warm = False
        self._parts: list[Callable[[], object]] | None = None

    def run(self) -> None:
        """Perform the calls, in order with what is on the current stream."""
        if not self._warm:
            self._warm_up()
            self._warm = True
            return
        if self._parts is None:
            with _capturing:
                self._parts = self._captured()
        for part in self._parts:
            part()

    def binder(self, x: Array, written: list[Array]) -> Callable[[Array], object]:
        """How another array takes the place of the argument x: its values are copied there."""
        from .. import BACKENDS

        return functools.partial(BACKENDS["cupy"].copy, out=x)

    def pieces(self) -> list[tuple[str, Callable[[], object]]]:
        """Each call by its kernel's name, as a function that waits until the GPU has done it."""

        def waiting(run: Callable[[], object]) -> Callable[[], None]:
            def run_and_wait() -> None:
                run()
                _synchronize()

            return run_and_wait

        return [(call.instruction.kernel, waiting(call.run)) for call in self._calls]

    def _warm_up(self) -> None:
        _synchronize()  # the stream does not wait for the others
        with _capturing, self._inside() as stream:
            for call in self._calls:
                call.run()
            stream.synchronize()

    def _captured(self) -> list[Callable[[], object]]:
        """The graphs, and between them the calls that cannot be in one."""
        refused: dict[int, BaseException] = {}
        while True:
            try:
                parts = self._parts_without(refused)
            except _Refused as refusal:
                refused[refusal.number] = refusal.reason
                continue
            for number, reason in refused.items():
                kernel = self._calls[number].instruction.kernel
                warnings.warn(
                    f"compile: {kernel} cannot be captured in a CUDA graph "
                    f"({type(reason).__name__}: {reason}); it runs between two graphs",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return parts

    def _parts_without(self, refused: dict[int, BaseException]) -> list[Callable[[], object]]:
        parts: list[Callable[[], object]] = []
        stretch: list[int] = []
        for number in range(len(self._calls) + 1):
            if number < len(self._calls) and number not in refused:
                stretch.append(number)
                continue
            if stretch:
                parts.append(self._capture(stretch))
                stretch = []
            if number < len(self._calls):
                parts.append(self._calls[number].run)
        return parts

    def _capture(self, numbers: list[int]) -> Callable[[], object]:
        """The launch of a graph of these calls. Raises _Refused for the first that cannot be in."""
        import cupy

        global _stream
        _synchronize()
        with self._inside() as stream, _no_collection():
            stream.begin_capture()
            number = numbers[0]
            try:
                for number in numbers:
                    self._calls[number].run()
            except BaseException as reason:
                # The capture is void, and so is the stream: CUDA says so again when it is ended.
                with contextlib.suppress(cupy.cuda.runtime.CUDARuntimeError):
                    stream.end_capture()
                _stream = None
                if not isinstance(reason, Exception):
                    raise
                raise _Refused(number, reason) from reason
            graph = stream.end_capture()
        self._stream = stream
        launch: Callable[[], object] = graph.launch  # on the stream that is current then
        return launch

    @contextlib.contextmanager
    def _inside(self) -> Iterator[Any]:
        """The stream for captures, which is the current one, as the plan's pool is."""
        import cupy

        stream = _capture_stream()
        with stream:
            # A thread's first product cannot be captured, and a workspace is no plan's own. Whether
            # cuBLAS is missing, the kernels that need it say.
            with contextlib.suppress(_blas.BlasError, OSError):
                _blas.handle().on_current_stream()
            with cupy.cuda.using_allocator(self._pool.malloc):
                yield stream


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage is collected: an object's end may ask the GPU for what a capture forbids."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _synchronize() -> None:
    import cupy

    cupy.cuda.Device().synchronize()
