"""The thread budget: what it takes, and that no result and no process suffers from threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

import tinygrad_ish as tg
from tinygrad_ish import nn
from tinygrad_ish.nn import functional as F

MOST = tg.get_num_threads()


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    tg.set_default_device("numba")
    yield
    tg.set_num_threads(MOST)


@pytest.mark.parametrize("threads", [0, -1, 10_000, 1.0, True, "2"])
def test_a_budget_is_a_number_of_cores(threads: object) -> None:
    with pytest.raises(ValueError, match=rf"expected an int from 1 to \d+, got {threads!r}"):
        tg.set_num_threads(threads)
    assert tg.get_num_threads() == MOST


def test_blas_follows() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl", reason="pip install threadpoolctl")
    tg.set_num_threads(1)
    pools = [p for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
    assert all(p["num_threads"] == 1 for p in pools)


def trained(threads: int, compiled: bool) -> list[np.ndarray]:
    """The parameters after some steps of a network that is large enough for threads."""
    tg.set_num_threads(threads)
    tg.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 210), nn.ReLU(), nn.Dropout(0.2), nn.Linear(210, 37))
    optimizer = tg.optim.AdamW(model.parameters(), lr=0.01)
    rng = np.random.default_rng(1)

    def step(x: tg.Tensor, y: tg.Tensor) -> tg.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    run = tg.compile(step) if compiled else step
    for _ in range(5):
        x = rng.normal(size=(150, 300)) * rng.choice([1e-20, 1.0, 1e4], (150, 300))
        run(tg.tensor(x, tg.float32), tg.tensor(rng.integers(0, 37, 150)))
    return [p.detach().numpy() for p in model.parameters()]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_training_is_the_same_for_any_number_of_threads(compiled: bool) -> None:
    expected = trained(1, compiled)
    for threads in range(2, MOST + 1):
        for a, b in zip(expected, trained(threads, compiled), strict=True):
            np.testing.assert_array_equal(a, b)


FROM_THREADS = """
import threading
import numpy as np
import tinygrad_ish as tg
rng = np.random.default_rng(0)
x, w = rng.normal(size=(2, 256, 256)).astype("f4")
k = tg.get_default_backend()
expected = k.linear(x, w)
wrong = []
def work():
    for _ in range(100):
        if not (k.linear(x, w) == expected).all():
            wrong.append(1)
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
print("wrong", len(wrong))
"""


@pytest.mark.parametrize("layer", ["workqueue", "omp", "tbb"])
def test_kernels_from_several_threads(layer: str) -> None:
    """Numba's workqueue aborts the process where two threads are in parallel kernels at once."""
    done = subprocess.run(
        [sys.executable, "-c", FROM_THREADS],
        env={**os.environ, "NUMBA_THREADING_LAYER": layer},
        capture_output=True,
        text=True,
        check=False,
    )
    if "No threading layer could be loaded" in done.stderr:
        pytest.skip(f"Numba's threading layer {layer} is not installed here")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "wrong 0\n"


AFTER_FORK = """
import os
import numpy as np
import tinygrad_ish as tg
rng = np.random.default_rng(0)
x, w = rng.normal(size=(2, 256, 256)).astype("f4")
k = tg.get_default_backend()
expected = k.linear(x, w)
if os.fork() == 0:
    same = (k.linear(x, w) == expected).all()
    try:
        tg.set_num_threads(2)
    except ValueError as error:
        print("child", same, tg.get_num_threads(), str(error)[:60], flush=True)
    os._exit(0)
_, status = os.wait()
print("parent", (k.linear(x, w) == expected).all(), status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_computes_on_one_thread() -> None:
    """libgomp aborts where a forked process enters a parallel region of its parent's threads."""
    if MOST == 1:
        pytest.skip("this machine has one core")
    done = subprocess.run(
        [sys.executable, "-c", AFTER_FORK], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == [
        "child True 1 set_num_threads: this process was forked from one whose thre",
        "parent True 0",
    ], done.stderr
