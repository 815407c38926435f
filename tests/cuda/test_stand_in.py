"""CuPy's stand-in is as strict as CuPy and CUDA are, and has no name that CuPy lacks."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import cuda_stand_in as cuda
from . import cupy_stand_in as stand_in

cp: Any = stand_in.modules()["cupy"]
FORBIDDEN = cuda.CUDARuntimeError


@pytest.fixture(autouse=True)
def _as_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", cp)  # where CuPy looks for its own functions


def numbers() -> Any:
    return cp.asarray(np.arange(6.0).reshape(2, 3))


# --- arrays ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, a: x + a,
        lambda x, a: a + x,
        lambda x, a: x > a,
        lambda x, a: x.__iadd__(a),
        lambda x, a: cp.maximum(x, a),
        lambda x, a: cp.add(x, x, out=a),
        lambda x, a: cp.where(x > 0, x, a),
        lambda x, a: cp.concatenate([x, a]),
        lambda x, a: cp.matmul(x, a.T),
        lambda x, a: cp.take(a, x),
        lambda x, a: cp.may_share_memory(x, a),
        lambda x, a: x.__setitem__(..., a),
        lambda x, a: x.fill(a),
        lambda x, a: np.asarray(x),
        lambda x, a: np.array(x),
        lambda x, a: a.__setitem__(..., x),
        lambda x, a: np.testing.assert_array_equal(x, a),
    ],
)
def test_numpy_arrays_do_not_mix(mix: Callable[[Any, np.ndarray], Any]) -> None:
    with pytest.raises(TypeError, match=r"NumPy array|numpy\.ndarray|[Uu]nsupported"):
        mix(numbers(), np.ones((2, 3)))


def test_scalars_mix_and_results_are_arrays() -> None:
    x = numbers()
    for result in (x.sum(), x[1, 2], 2 * x.max(), np.float64(2) * x.sum(), x.any(), x[0].argmax()):
        assert type(result) is cp.ndarray and result.shape == ()
    assert (np.float32(2) * x.astype("f4")).dtype == np.float32
    assert (
        float(x.sum()) == 15
        and int(x.argmax()) == 5
        and bool(x.any())
        and x[0].tolist() == [0, 1, 2]
    )


@pytest.mark.parametrize(
    "name", ["x.ctypes", "x.flags.aligned", "x.flags.writeable", "x.flags.carray", "x.__index__",
             "cp.errstate", "cp.broadcast_shapes", "cp.generic_name", "x.__array_namespace__",
             "cp.cuda.OutOfMemoryError"]
)  # fmt: skip
def test_what_cupy_has_not(name: str) -> None:
    x = numbers()
    with pytest.raises(AttributeError):
        eval(name, {"x": x, "cp": cp})


def test_arrays_take_no_weak_reference_attribute_or_hash() -> None:
    import weakref

    for use in (weakref.ref, hash, lambda x: setattr(x, "name", 1)):
        with pytest.raises((TypeError, AttributeError)):
            use(numbers())


def test_views_share_memory_and_copies_do_not() -> None:
    x = numbers()
    for view in (x[0], x.T, x.reshape(3, 2), x.ravel(), cp.broadcast_to(x, (4, 2, 3)), x[:, None]):
        assert view.base is x and cp.shares_memory(x, view) and view.data.mem is x.data.mem
    assert x[1].data.ptr == x.data.ptr + 24
    for copy in (x.copy(), x.T.reshape(-1), x[cp.asarray(np.array([0]))], x.astype("f8"), +1 * x):
        assert copy.base is None and not cp.may_share_memory(x, copy)
    x.T[2, 1] = 9
    assert x.get()[1, 2] == 9
    strided = cp.lib.stride_tricks.as_strided(x, (2,), (24,))
    assert strided.base is None and strided.tolist() == [0, 3]


def test_positions_out_of_range_wrap_around() -> None:
    x = cp.asarray(np.arange(3.0))
    at = cp.asarray(np.array([3, -1, 7]))
    assert (
        x[at].tolist()
        == cp.take(x, at).tolist()
        == cp.take_along_axis(x, at, 0).tolist()
        == [0, 2, 1]
    )


def test_only_some_dtypes_are_added_atomically() -> None:
    at = cp.asarray(np.array([0, 0, 2]))
    x = cp.zeros(3, "f4")
    cp.add.at(x, at, cp.ones(3, "f4"))
    assert x.tolist() == [2, 0, 1]
    with pytest.raises(TypeError, match="scatter_add only supports"):
        cp.add.at(cp.zeros(3, "i8"), at, cp.ones(3, "i8"))


def test_options_that_cupy_lacks_and_results_that_do_not_fit() -> None:
    x = numbers()
    with pytest.raises(TypeError, match="where"):
        cp.add(x, x, where=x > 0)
    with pytest.raises(TypeError, match="cannot be cast"):
        cp.add(x, x, out=cp.empty((2, 3), "i8"))
    with pytest.raises(ValueError, match="Out shape"):
        cp.add(x, x, out=cp.empty((4, 2, 3)))
    with pytest.raises(ValueError, match="Unsupported dtype"):
        cp.asarray(np.array(["text"]))
    with pytest.raises(RuntimeError, match="non-contiguous"):
        numbers()[:, ::2].set(np.ones((2, 2)))


def test_new_memory_is_garbage_and_freed_memory_too() -> None:
    assert np.isnan(cp.empty(3).get()).all() and cp.empty(3, "i4").tolist() == [0x7F7F7F7F] * 3
    x = cp.ones(4)
    seen = x._np
    del x
    assert np.isnan(seen).all()


def test_memory_runs_out() -> None:
    with cuda.set_memory(1 << 20):
        kept = cp.zeros(100_000)
        with pytest.raises(cp.cuda.memory.OutOfMemoryError, match="allocating 800,256 bytes"):
            cp.zeros(100_000)
        del kept
        cp.zeros(100_000)
        assert cp.cuda.runtime.memGetInfo()[0] <= 1 << 20
    pool = cp.cuda.MemoryPool()
    pool.set_limit(size=4096)
    with cp.cuda.using_allocator(pool.malloc):
        x = cp.zeros(512)
        assert pool.used_bytes() == 4096 and isinstance(
            cp.cuda.memory.OutOfMemoryError(1, 2), MemoryError
        )
        with pytest.raises(cp.cuda.memory.OutOfMemoryError):
            cp.zeros(1)
    del x
    assert pool.used_bytes() == 0


def test_dlpack_stays_on_the_device() -> None:
    x = numbers()
    assert x.__dlpack_device__() == (2, 0) and cp.from_dlpack(x).data.ptr == x.data.ptr
    with pytest.raises(BufferError):
        cp.from_dlpack(np.ones(3))


# --- streams and graphs --------------------------------------------------------------------------


def captured(work: Callable[[], Any], pool: Any = None) -> Any:
    """The graph of what ``work`` does, in the pool."""
    stream = cp.cuda.Stream(non_blocking=True)
    with stream, cp.cuda.using_allocator((pool or cuda.default_pool).malloc):
        stream.begin_capture()
        try:
            work()
        finally:
            graph = stream.end_capture()
    return graph


def test_a_capture_records_and_a_launch_computes() -> None:
    pool, x, y = cp.cuda.MemoryPool(), cp.ones(3), cp.zeros(3)
    at, seen = cp.asarray(np.array([2, 0, 1])), []

    def work() -> None:
        z = cp.exp(x) + 1
        seen.append(np.isnan(z._np).all())
        y[...] = (z * cp.arange(3))[at]
        x.__iadd__(1)

    graph = captured(work, pool)
    assert seen == [True] and y.tolist() == [0, 0, 0] and x.tolist() == [1, 1, 1]
    for n in (1, 2):
        graph.launch()
        z = np.exp(float(n)) + 1
        np.testing.assert_allclose(y.get(), [2 * z, 0, z])
        assert x.tolist() == [n + 1] * 3


def test_labels_that_change_are_read_at_each_launch() -> None:
    x, at = cp.zeros(3), cp.asarray(np.array([0]))
    graph = captured(lambda: x.__setitem__(at, 1.0), cp.cuda.MemoryPool())
    at.set(np.array([2]))
    graph.launch()
    assert x.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.get(), lambda x: x.set(np.ones((2, 3))), lambda x: x.sum().item(),
        lambda x: x.tolist(), lambda x: bool(x.any()), lambda x: float(x.sum()),
        lambda x: int(x.sum()), lambda x: repr(x),
        lambda x: cp.asarray(np.ones(3)), lambda x: x[x > 0], lambda x: x.__setitem__(x > 0, 0),
        lambda x: cp.where(x > 0), lambda x: cp.cuda.Device().synchronize(),
        lambda x: cp.cuda.get_current_stream().synchronize(), lambda x: cp.shares_memory(x, x[0]),
        lambda x: cp.cuda.Event().synchronize(), lambda x: cp.cuda.runtime.deviceSynchronize(),
    ],
)  # fmt: skip
def test_what_waits_is_forbidden_in_a_capture(work: Callable[[Any], Any]) -> None:
    x = numbers()
    work(x)
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(FORBIDDEN, match="not permitted when stream is capturing"):
            work(x)
        with pytest.raises(FORBIDDEN, match="Invalidated"):
            stream.end_capture()


def test_cupys_matrix_products_refuse_a_capture() -> None:
    x = numbers()
    with pytest.raises(NotImplementedError, match="cuBLAS"):
        captured(lambda: cp.matmul(x, x.T))


def test_rules_of_begin_and_end() -> None:
    with pytest.raises(FORBIDDEN, match="null stream"):
        cp.cuda.get_current_stream().begin_capture()
    stream = cp.cuda.Stream()
    with pytest.raises(FORBIDDEN, match="not capturing"):
        stream.end_capture()
    stream.begin_capture()
    with pytest.raises(FORBIDDEN, match="already"):
        stream.begin_capture()
    y = cp.zeros(1)
    y += 1  # on the null stream: not in the graph
    stream.end_capture().launch()
    assert y.tolist() == [1]


def test_a_graph_that_uses_memory_of_others_is_found() -> None:
    y = cp.zeros(3)
    graph = captured(lambda: y.__iadd__(cp.ones(3) * 2))  # temporaries of the default pool
    with pytest.raises(AssertionError, match="memory that was freed"):
        graph.launch()
    pool, held = cp.cuda.MemoryPool(), [cp.ones(3)]
    graph = captured(lambda: y.__iadd__(held[0] * 2), pool)
    graph.launch()
    assert y.tolist() == [2, 2, 2]
    held.clear()  # an input of the graph
    with pytest.raises(AssertionError, match="memory that was freed"):
        graph.launch()
    graph = captured(lambda: y.__iadd__(cp.ones(3)), pool)
    del pool
    gc.collect()
    with pytest.raises(AssertionError, match="MemoryPool that is kept"):
        graph.launch()


# --- the real CuPy -------------------------------------------------------------------------------

COMPARE = """
import importlib, inspect, sys, types
sys.path.insert(0, sys.argv[1])
from tests.cuda import cupy_stand_in
import cupy, cupyx
wrong = []
def parameters(f):
    try:
        return set(inspect.signature(f).parameters) - {"self"}
    except (TypeError, ValueError):
        return None  # Cython tells none
def compare(where, ours, theirs):
    public = {n: f for n, f in vars(ours).items() if not n.startswith("_") and n not in OWN}
    for name, mine in public.items():
        if not hasattr(theirs, name):
            wrong.append(f"{where}.{name}: CuPy has none")
        elif isinstance(mine, types.FunctionType):
            known, given = parameters(getattr(theirs, name)), parameters(mine)
            if known is not None and "args" not in known and given - known:
                wrong.append(f"{where}.{name}: CuPy takes {known}, the stand-in {given}")
OWN = {"used"}  # of MemoryPool
modules = cupy_stand_in.modules()
for name, module in modules.items():
    compare(name, module, importlib.import_module(name))
compare("ndarray", modules["cupy"].ndarray, cupy.ndarray)
for kind in ("Stream", "Event", "Graph", "MemoryPool", "Device"):
    compare(kind, getattr(modules["cupy.cuda"], kind), getattr(cupy.cuda, kind))
print(*wrong, sep=chr(10))
"""


def test_cupy_has_all_that_the_stand_in_has() -> None:
    """In a process of its own, where CuPy is the real one."""
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec('cupy') is None)"
    if subprocess.run([sys.executable, "-c", find], check=False).returncode:
        pytest.skip("CuPy is not installed: pip install 'tinygrad_ish[gpu]'")
    root = Path(importlib.import_module("tests").__path__[0]).parent
    done = subprocess.run(
        [sys.executable, "-c", COMPARE, str(root)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stdout.strip(), done.stdout + done.stderr
