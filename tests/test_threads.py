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
    missing = "pip install 'tinygrad_ish[threads]'"
    threadpoolctl = pytest.importorskip("threadpoolctl", reason=missing)
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


def in_a_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


LINEAR = """
import os, threading, time
import numpy as np
import tinygrad_ish as tg
rng = np.random.default_rng(0)
x, w = rng.normal(size=(2, 256, 256)).astype("f4")
k = tg.get_default_backend()
expected = k.linear(x, w)
def same():
    return bool((k.linear(x, w) == expected).all())
"""


def test_kernels_from_several_threads_of_python() -> None:
    out = in_a_process(
        LINEAR
        + """
right = []
def work():
    right.extend(same() for _ in range(100))
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
print(len(right), all(right))
"""
    )
    assert out == "400 True\n"


def test_helpers_that_slept_come_back() -> None:
    out = in_a_process(
        LINEAR
        + """
from tinygrad_ish.kernels.cpu._threads import crew
tg.set_num_threads(crew.most)
right = []
for _ in range(5):
    right.append(same())
    give_up = time.monotonic() + 10
    while not all(helper.asleep for helper in crew._helpers) and time.monotonic() < give_up:
        time.sleep(0.001)
    right.append(all(helper.asleep for helper in crew._helpers))
print(all(right), len(crew._helpers) == crew.most - 1)
"""
    )
    assert out == "True True\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_has_helpers_of_its_own() -> None:
    out = in_a_process(
        LINEAR
        + """
if os.fork() == 0:
    tg.set_num_threads(tg.get_num_threads())
    print("child", all(same() for _ in range(50)), flush=True)
    os._exit(0)
_, status = os.wait()
print("parent", same(), status)
"""
    )
    assert out == "child True\nparent True 0\n"


def test_another_job_while_one_runs_is_done_without_helpers() -> None:
    from tinygrad_ish.kernels.cpu._threads import crew

    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 300, 300)).astype(np.float32)
    k = tg.get_default_backend()
    expected = k.linear(x, w)
    with crew.lock:
        np.testing.assert_array_equal(k.linear(x, w), expected)
