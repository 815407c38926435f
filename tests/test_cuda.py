"""What is the GPU's alone: graphs, prefetching, memory. On a GPU, or on the stand-in for one."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import tinygrad_ish as tg
from tinygrad_ish import nn, optim
from tinygrad_ish.kernels import get_backend, why_missing
from tinygrad_ish.nn import functional as F
from tinygrad_ish.utils.data import DataLoader, TensorDataset

NO_GPU = why_missing("cupy")
gpu = [pytest.mark.gpu, pytest.mark.skipif(NO_GPU is not None, reason=str(NO_GPU))]
pytestmark = gpu


def trainer(compiled: bool, schedule: bool = False) -> Any:
    """A training step on the GPU and its parameters."""
    tg.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)).cuda()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    rate = optim.lr_scheduler.StepLR(optimizer, 2)

    def step(x: tg.Tensor, y: tg.Tensor) -> tg.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if schedule:
            rate.step()
        return loss

    return (tg.compile(step) if compiled else step), list(model.parameters())


def batches(n: int = 8) -> list[tuple[tg.Tensor, tg.Tensor]]:
    rng = np.random.default_rng(1)
    made = [(rng.normal(size=(5, 6)).astype("float32"), rng.integers(0, 3, 5)) for _ in range(n)]
    return [(tg.tensor(x, device="cuda"), tg.tensor(y, device="cuda")) for x, y in made]


def run(compiled: bool, schedule: bool = False) -> tuple[Any, list[Any]]:
    step, parameters = trainer(compiled, schedule)
    losses = [step(x, y).item() for x, y in batches()]
    return step, [losses, *[p.tolist() for p in parameters]]


@pytest.mark.parametrize("schedule", [False, True])
def test_graph_steps_equal_eager_ones(schedule: bool) -> None:
    _, eager = run(False, schedule)
    assert len(set(eager[0])) == 8
    assert run(True, schedule)[1] == eager


def plans(step: Any) -> list[Any]:
    return [s for s in step._latest._steps if hasattr(s, "_parts")]


def test_a_step_is_one_graph() -> None:
    step, _ = run(True)
    [plan] = plans(step)
    assert len(plan._parts) == 1 and len(plan._calls) > 5
    assert "linear" in str(step.program)


def test_a_call_that_cannot_be_captured_divides_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    _, eager = run(False)
    k = get_backend("cupy")
    dropout = k.dropout

    def waits(x: Any, ticket: Any, p: float, out: Any = None) -> Any:
        ticket.get()  # a copy to the host, which CUDA forbids in a capture
        return dropout(x, ticket, p, out)

    monkeypatch.setattr(k, "dropout", waits)
    with pytest.warns(RuntimeWarning, match="dropout cannot be captured in a CUDA graph"):
        step, compiled = run(True)
    [plan] = plans(step)
    assert len(plan._parts) == 5  # graph, dropout, graph, its gradient, graph
    assert compiled == eager


def test_a_graph_may_be_captured_by_a_thread_that_has_made_no_product() -> None:
    _, eager = run(False)
    step, parameters = trainer(True)
    losses = []

    def train(part: list[tuple[tg.Tensor, tg.Tensor]]) -> None:
        losses.extend(step(x, y).item() for x, y in part)

    data = batches()
    train(data[:2])
    with ThreadPoolExecutor(1) as pool:
        pool.submit(train, data[2:]).result()
    [plan] = plans(step)
    assert len(plan._parts) == 1
    assert [losses, *[p.tolist() for p in parameters]] == eager


def test_profile_names_the_kernels() -> None:
    step, _ = trainer(True)
    x, y = batches(1)[0]
    for _ in range(3):
        step(x, y)
    names = [name for name, _ in step.profile(x, y, repeat=2).rows]
    assert "linear" in names and "adam_step" in names


# --- movement ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 20])
def test_prefetched_batches_are_those_of_the_loader(n: int) -> None:
    x, y = tg.arange(3 * n).reshape(n, 3).float(), tg.arange(n)
    plain = list(DataLoader(TensorDataset(x, y), 4))
    moved = list(DataLoader(TensorDataset(x, y), 4, device="cuda"))
    assert len(moved) == len(plain)
    for (a, b), (c, d) in zip(plain, moved, strict=True):
        assert c.device == d.device == "cuda"
        assert (a.tolist(), b.tolist()) == (c.tolist(), d.tolist())


def test_prefetching_keeps_the_form_of_a_batch() -> None:
    data = [{"x": np.float32([i, i]), "n": i} for i in range(5)]
    found = list(DataLoader(data, 2, device="cuda"))  # type: ignore[arg-type]
    assert [sorted(batch) for batch in found] == [["n", "x"]] * 3
    assert found[2]["x"].tolist() == [[4, 4]] and found[2]["n"].tolist() == [4]


def test_dlpack_shares_memory() -> None:
    x = tg.arange(4, device="cuda")
    again = tg.from_dlpack(x)
    again[0] = 9
    assert x.tolist() == [9, 1, 2, 3] and again.device == "cuda"
    with pytest.raises(TypeError, match="requires a gradient"):
        tg.from_dlpack(tg.ones(2, device="cuda").requires_grad_())


def test_to_moves_both_ways() -> None:
    x = tg.arange(4).float()
    moved = x.to("cuda", non_blocking=True)
    assert moved.device == "cuda" and moved.cpu().tolist() == [0, 1, 2, 3]
    layer = nn.Linear(2, 2).to("cuda", non_blocking=True)
    assert {p.device for p in layer.parameters()} == {"cuda"}


# --- memory -----------------------------------------------------------------------------------


def test_memory_is_told() -> None:
    before = tg.cuda.memory_allocated()
    x = tg.zeros(1 << 20, device="cuda")
    assert tg.cuda.memory_allocated() >= before + 4 * x.numel()
    assert tg.cuda.memory_reserved() >= tg.cuda.memory_allocated()
    text = tg.cuda.memory_summary()
    for word in (tg.cuda.get_device_name(), "arrays", "kept for reuse", "free", "in all"):
        assert word in text
    del x
    tg.cuda.empty_cache()
    assert tg.cuda.memory_allocated() <= before
    tg.cuda.synchronize()
    assert tg.cuda.device_count() >= 1


def test_a_lack_of_memory_names_the_tensor() -> None:
    huge = 1 << 45
    with pytest.raises(tg.cuda.OutOfMemoryError, match=rf"a tensor float32\[{huge}\]") as error:
        tg.zeros(huge, device="cuda")
    for words in ("Out of memory allocating", "in all", "Use smaller batches"):
        assert words in str(error.value)
    x = tg.ones(1 << 20, device="cuda", requires_grad=True)
    pool = get_backend("cupy").xp.get_default_memory_pool()
    pool.free_all_blocks()
    pool.set_limit(size=pool.used_bytes() + (1 << 20))
    try:
        with pytest.raises(tg.cuda.OutOfMemoryError, match=r"for Mul of float32\[1048576\], float"):
            x * x.detach()
    finally:
        pool.set_limit(size=0)
    assert (x * x).sum().item() == 1 << 20  # it goes on


def test_no_warning_comes_of_all_this() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(True)


def test_a_cupy_array_for_the_cpu_is_refused_with_what_to_do() -> None:
    x = get_backend("cupy").xp.arange(3)
    for data in (x, [x, x]):
        with pytest.raises(TypeError, match=r"device='cuda', or copy it to the host, x\.get\(\)"):
            tg.tensor(data, device="cpu")


def test_a_copy_of_a_tensor_stays_on_its_device() -> None:
    x = tg.ones(2, device="cuda")
    assert tg.tensor(x).device == "cuda" and tg.tensor(x, device="cpu").device == "cpu"
