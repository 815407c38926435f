"""Fused kernels of the Numba backend: what the table of cases in test_kernels.py is too small for.

No result depends on the number of threads, nor a row's on the other rows; large arrays are cut into
chunks; random bits are the reference's; and compiled steps hold these kernels in one plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tinygrad_ish as tg
from tinygrad_ish import nn
from tinygrad_ish.kernels import get_backend, reference
from tinygrad_ish.nn import functional as F

from .test_program import X, Y, assert_same_steps, train

MOST = tg.get_num_threads()
CHUNK = 16384  # elements in a task of these kernels, or a divisor of 2 of it
SIZES = (CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 33, 300_001)
TICKET = np.array([-5, 2**33 + 1])
FLOATS = ("float32", "float64")

k = get_backend("numba")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    tg.set_default_device("numba")
    yield
    tg.set_num_threads(MOST)


def normal(*shape: int, dtype: Any = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def shares(size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(size=size).astype("f4"), rng.uniform(size=size).astype("f4")


def norm_backward(g: np.ndarray, x: np.ndarray, weight: np.ndarray | None) -> Any:
    _, mean, rstd = k.layer_norm(x)
    return k.layer_norm_backward(g, x, mean, rstd, weight)


# --- threads and neighbours -----------------------------------------------------------------

ON_THREADS: dict[str, Callable[[int], Any]] = {
    "dropout": lambda n: k.dropout(normal(n), TICKET, 0.3),
    "layer_norm": lambda n: k.layer_norm(normal(n // 33, 33), normal(33), normal(33, seed=1)),
    "layer_norm_backward": lambda n: norm_backward(
        normal(n // 70, 70), normal(n // 70, 70, seed=1), normal(70)
    ),
    "softmax": lambda n: k.softmax(normal(n // 9, 9), 1),
    "log_softmax": lambda n: k.log_softmax(normal(n // 33, 33), 1),
    "bce_loss": lambda n: k.bce_loss(*shares(n)),
    "bce_with_logits": lambda n: k.bce_with_logits(normal(n), shares(n)[1], *shares(n)),
    "nll_loss": lambda n: k.nll_loss(normal(n // 9, 9), np.arange(n // 9) % 9),
    "grad_norm": lambda n: k.grad_norm((normal(n), normal(7), normal(n // 2, 2)), 2.0),
    "largest": lambda n: k.grad_norm((normal(n), normal(7)), np.inf),
}


@pytest.mark.skipif(MOST == 1, reason="this machine has one core")
@pytest.mark.parametrize("name", ON_THREADS)
@pytest.mark.parametrize("size", SIZES)
def test_no_result_depends_on_the_threads(name: str, size: int) -> None:
    results = []
    for number in (1, MOST):
        tg.set_num_threads(number)
        found = ON_THREADS[name](size)
        results.append(found if isinstance(found, tuple) else (found,))
    for one, several in zip(*results, strict=True):
        assert one.tobytes() == several.tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [1, 7, 64, 65, 300])
def test_a_row_of_layer_norm_does_not_depend_on_the_others(dtype: str, width: int) -> None:
    g, x = normal(500, width, dtype=dtype), normal(500, width, dtype=dtype, seed=1)
    weight = normal(width, dtype=dtype, seed=2)
    y, mean, rstd = k.layer_norm(x, weight, weight)
    dx = norm_backward(g, x, weight)[0]
    for first, last in ((0, 1), (3, 4), (17, 400), (499, 500)):
        part = slice(first, last)
        alone = k.layer_norm(x[part], weight, weight)
        for one, all_ in zip(alone, (y, mean, rstd), strict=True):
            assert one.tobytes() == all_[part].tobytes()
        assert norm_backward(g[part], x[part], weight)[0].tobytes() == dx[part].tobytes()


# --- large arrays ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_dropout_drops_what_the_reference_drops(dtype: str, size: int) -> None:
    x = normal(size, dtype=dtype)
    for p, ticket in ((0.3, TICKET), (0.5, np.array([2**40 + 3, 0])), (1e-9, TICKET)):
        expected = reference.dropout(x, ticket, p)
        np.testing.assert_array_equal(k.dropout(x, ticket, p), expected)
        over = x.copy()
        assert k.dropout(over, ticket, p, out=over) is over
        np.testing.assert_array_equal(over, expected)


def test_all_64_bits_of_seed_and_call_count() -> None:
    x = np.ones(1000, np.float32)
    tickets = [np.array(t) for t in ((1, 1), (1 + 2**32, 1), (1, 1 + 2**32))]
    results = [k.dropout(x, t, 0.5) for t in tickets]
    assert len({r.tobytes() for r in results}) == 3
    for t, r in zip(tickets, results, strict=True):
        np.testing.assert_array_equal(r, reference.dropout(x, t, 0.5))


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("shape", [(5000, 33), (200, 700), (3, 40_000), (70_000, 1)])
def test_gradients_of_layer_norm_on_large_arrays(shape: tuple[int, int], weighted: bool) -> None:
    g, x, weight = normal(*shape), normal(*shape, seed=1), normal(shape[1])
    exact = [a.astype("f8") for a in (g, x, weight)]
    _, mean, rstd = reference.layer_norm(exact[1])
    expected = reference.layer_norm_backward(*exact[:2], mean, rstd, exact[2] if weighted else None)
    got = norm_backward(g, x, weight if weighted else None)
    for a, b in zip(got, expected, strict=True):
        scale = max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6 * scale)


@pytest.mark.parametrize("size", SIZES)
def test_sums_of_large_arrays(size: int) -> None:
    x, (p, t) = normal(size), shares(size)
    for norm_type in (1.0, 2.0, 3.0, np.inf):
        expected = reference.grad_norm((x.astype("f8"), p.astype("f8")), norm_type)
        np.testing.assert_allclose(k.grad_norm((x, p), norm_type), expected, rtol=2e-7)
    for name, args in (("bce_loss", (p, t)), ("bce_with_logits", (x, t)), ("mse_loss", (x, t))):
        loss, d = getattr(k, name)(*args)
        wide = [a.astype("f8") for a in args]
        exact_loss, exact_d = getattr(reference, name)(*wide)
        np.testing.assert_allclose(loss, exact_loss, rtol=1e-6)
        np.testing.assert_allclose(d * np.float32(size), exact_d * size, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_losses_of_small_probabilities_and_large_scores_keep_their_digits(dtype: str) -> None:
    """log(1 + x) for an x whose 1 + x rounds to 1."""
    x = np.array([10.0**-n for n in range(1, 30)], dtype)
    loss, _ = k.bce_loss(x, np.zeros_like(x), reduction="none")
    np.testing.assert_allclose(loss, -np.log1p(-x.astype("f8")), rtol=10 * np.finfo(dtype).eps)
    scores = np.arange(1, 60).astype(dtype)
    loss, _ = k.bce_with_logits(scores, np.ones_like(scores), reduction="none")
    exact = np.log1p(np.exp(-scores.astype("f8")))
    np.testing.assert_allclose(loss, exact, rtol=10 * np.finfo(dtype).eps)


def test_a_norm_of_no_elements_and_of_many_arrays() -> None:
    assert k.grad_norm((np.zeros((0, 3), "f4"),), 2.0) == 0
    arrays = tuple(normal(n, seed=n) for n in range(100))
    whole = np.concatenate([a.astype("f8") for a in arrays])
    np.testing.assert_allclose(k.grad_norm(arrays, 2.0), np.sqrt((whole**2).sum()), rtol=1e-7)


def test_a_probability_outside_is_named() -> None:
    x, t = shares(CHUNK * 2)
    x[CHUNK + 5] = 1.5
    with pytest.raises(ValueError, match=r"bce_loss: input 1\.5 is outside 0\.\.1"):
        k.bce_loss(x, t)
    x[70] = np.nan
    with pytest.raises(ValueError, match=r"bce_loss: input nan is outside 0\.\.1"):
        k.bce_loss(x, t)


# --- in compiled steps ----------------------------------------------------------------------


def kinds(step: Any) -> list[str]:
    (replay,) = next(iter(step._replays.values()))
    return [type(s).__name__ for s in replay._steps]


def test_a_step_with_layer_norm_dropout_gelu_and_clipping_is_one_plan() -> None:
    def make() -> Any:
        return train(
            layers=lambda: [
                nn.Linear(20, 12), nn.LayerNorm(12), nn.GELU(), nn.Dropout(0.3), nn.Linear(12, 5),
            ],
            between=lambda model, _: nn.utils.clip_grad_norm_(model.parameters(), 0.5),
        )  # fmt: skip

    step = assert_same_steps(make, 50)
    assert kinds(step) == ["Host", "Plan"]
    names = {s.kernel for s in step.program.instructions()}
    assert {"layer_norm", "layer_norm_backward", "draw", "dropout", "clip_scale"} <= names


@pytest.mark.parametrize("shape", [(7,), (300, 33), (2, 3, 5000)])
def test_softmax_in_a_compiled_function_is_one_plan(shape: tuple[int, ...]) -> None:
    def both(x: Any) -> Any:
        return F.softmax(x, -1), F.log_softmax(x, x.ndim - 1)

    compiled = tg.compile(both)
    for seed in range(3):
        x = tg.tensor(normal(*shape, seed=seed))
        for a, b in zip(compiled(x), both(x), strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert kinds(compiled) == ["Plan"]


@pytest.mark.parametrize("name", ["bce", "logits", "nll"])
def test_losses_in_a_compiled_step(name: str) -> None:
    classes = tg.arange(5)
    loss_of = {
        "bce": lambda z, y: F.binary_cross_entropy(
            F.sigmoid(z), (y.unsqueeze(1) == classes).float()
        ),
        "logits": lambda z, y: F.binary_cross_entropy_with_logits(
            z, (y.unsqueeze(1) == classes).float()
        ),
        "nll": lambda z, y: F.nll_loss(z, y),
    }[name]
    results = []
    for compiled in (False, True):
        tg.manual_seed(0)
        model = nn.Linear(20, 5)
        optimizer = tg.optim.SGD(model.parameters(), lr=0.1)

        def step(x: Any, y: Any, model: Any = model, optimizer: Any = optimizer) -> Any:
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        run = tg.compile(step) if compiled else step
        losses = [run(tg.tensor(X[n]), tg.tensor(Y[n])).item() for n in range(6)]
        results.append((losses, [p.detach().numpy() for p in model.parameters()]))
    assert results[0][0] == results[1][0]
    for a, b in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_compiled_step_refuses_a_probability_outside() -> None:
    forward = tg.compile(lambda x, t: F.binary_cross_entropy(x, t))
    good, t = tg.full((40,), 0.5), tg.zeros(40)
    for _ in range(2):
        forward(good, t)
    bad = np.full(40, 0.5, np.float32)
    bad[33] = -2.0
    with pytest.raises(ValueError, match=r"bce_loss: input -2\.0 is outside 0\.\.1"):
        forward(tg.tensor(bad), t)
