"""Batches gathered on the device, and losses kept there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinygrad_ish as tg
from tinygrad_ish import nn, optim
from tinygrad_ish.nn import functional as F
from tinygrad_ish.utils.data import DataLoader, TensorDataset
from tinygrad_ish.utils.resident import ResidentLoader, Ring

from .backends import BACKENDS


def digits(backend: str, n: int = 50) -> tuple[tg.Tensor, tg.Tensor]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 4, 4)).astype(np.uint8)
    return tg.tensor(images, device=backend), tg.tensor(rng.integers(0, 3, n), device=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shuffle", [False, True])
def test_its_batches_are_those_of_a_loader(backend: str, shuffle: bool) -> None:
    x, y = digits(backend)
    both = []
    for loader in (
        ResidentLoader(x, y, 8, shuffle, scale=1 / 255, shift=-0.5),
        DataLoader(TensorDataset(x, y), 8, shuffle, drop_last=True),
    ):
        tg.manual_seed(3)
        both.append([batch for _ in range(3) for batch in loader])
    assert len(both[0]) == len(both[1]) == 18
    for (x0, y0), (x1, y1) in zip(*both, strict=True):
        assert x0.dtype == tg.float32 and x0.backend.name == backend
        expected = x1.cpu().numpy().astype(np.float32) * np.float32(1 / 255) - np.float32(0.5)
        np.testing.assert_allclose(x0.cpu().numpy(), expected, rtol=1e-6, atol=1e-7)
        assert y0.tolist() == y1.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_step_takes_the_next_batch_each_time(backend: str) -> None:
    tg.set_default_device(backend)  # of a function without arguments

    def train(compiled: bool) -> tuple[list[float], list[Any]]:
        tg.manual_seed(0)
        x, y = digits(backend)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = optim.Adam(model.parameters(), lr=0.01)
        batches = ResidentLoader(x, y, 8, True, scale=1 / 255)
        losses = Ring(100, device=backend)

        def step() -> None:
            x, y = batches.next()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss)

        run = tg.compile(step) if compiled else step
        for _ in range(4):
            batches.start_epoch()
            for _ in range(len(batches)):
                run()
        return losses.read().tolist(), [p.tolist() for p in model.parameters()]

    eager = train(False)
    assert len(eager[0]) == 24 and len(set(eager[0])) == 24
    assert train(True) == eager


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_ring_keeps_the_last_numbers(backend: str) -> None:
    ring = Ring(4, device=backend)
    assert ring.read().tolist() == []
    for i in range(3):
        ring.append(tg.tensor([float(i)], device=backend))
    assert ring.read().tolist() == [0, 1, 2]
    assert ring.read().tolist() == []
    for i in range(3, 10):
        ring.append(tg.tensor(i, device=backend))  # an integer, as the ring's dtype
    assert ring.read().tolist() == [6, 7, 8, 9]


def test_a_ring_is_not_read_in_a_recording() -> None:
    ring = Ring(4)

    @tg.compile
    def step(x: tg.Tensor) -> tg.Tensor:
        ring.append(x.sum())
        return x * float(ring.read().sum())

    with pytest.raises(tg.CompileError, match=r"Ring\.read\(\) reads the values"):
        step(tg.ones(2))


def test_what_does_not_fit_is_refused() -> None:
    x, y = digits("numpy")
    with pytest.raises(ValueError, match="one length on one device"):
        ResidentLoader(x, y[:3], 2)
    with pytest.raises(ValueError, match="1 to 50, the number of samples, got 51"):
        ResidentLoader(x, y, 51)
    with pytest.raises(TypeError, match=r"expected an int, got 2\.5"):
        ResidentLoader(x, y, 2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 or more"):
        Ring(0)
    with pytest.raises(ValueError, match="one element"):
        Ring(3).append(tg.zeros(2))
