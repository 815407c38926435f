"""Compiled functions: what they compute is what the same function computes uncompiled, to the bit.

A "pair" is the same training set-up twice, from one seed; one of them steps compiled.
"""

from __future__ import annotations

import gc
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import tinygrad_ish as tg
from tinygrad_ish import nn
from tinygrad_ish.nn import functional as F
from tinygrad_ish.optim import lr_scheduler

from .backends import BACKENDS, CPU_BACKENDS, STAND_IN

rng = np.random.default_rng(0)
X = rng.normal(size=(7, 16, 20)).astype(np.float32)
Y = rng.integers(0, 5, (7, 16))


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    tg.set_default_device(request.param)
    return request.param


class Setup(NamedTuple):
    model: Any
    optimizer: Any
    step: Callable[..., Any]


def train(
    optimizer: Callable[[Any], Any] = lambda p: tg.optim.Adam(p, lr=0.01),
    layers: Callable[[], list[Any]] = lambda: [nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 5)],
    between: Callable[[Any, Any], object] = lambda model, optimizer: None,
    after: Callable[[Any], Callable[[], object]] = lambda optimizer: lambda: None,
) -> Setup:
    """A model, its optimizer, and a step that trains it; ``between`` runs before the optimizer's
    step, what ``after`` makes runs after it."""
    tg.manual_seed(3)
    model = nn.Sequential(*layers())
    chosen = optimizer(model.parameters())
    last = after(chosen)

    def step(x: Any, y: Any) -> Any:
        chosen.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        between(model, chosen)
        chosen.step()
        last()
        return loss

    return Setup(model, chosen, step)


def state(setup: Setup) -> list[np.ndarray]:
    grads = [p.grad.cpu().numpy() for p in setup.model.parameters() if p.grad is not None]
    return [*[p.detach().cpu().numpy() for p in setup.model.parameters()], *grads]


def assert_same_steps(make: Callable[[], Setup], steps: int = 20) -> Any:
    """Both set-ups, stepped in turn with the random numbers of one seed, stay equal to the bit."""
    plain, compiled = make(), make()
    step = tg.compile(compiled.step)
    states = {id(plain): tg.get_rng_state(), id(compiled): tg.get_rng_state()}
    for n in range(steps):
        losses = []
        for setup, run in ((plain, plain.step), (compiled, step)):
            tg.set_rng_state(states[id(setup)])
            losses.append(run(tg.tensor(X[n % 7]), tg.tensor(Y[n % 7])).item())
            states[id(setup)] = tg.get_rng_state()
        assert losses[0] == losses[1], f"step {n}"
    for a, b in zip(state(plain), state(compiled), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(*[s.cpu().numpy() for s in states.values()])
    return step


OPTIMIZERS = {
    "sgd": lambda p: tg.optim.SGD(p, lr=0.1),
    "momentum": lambda p: tg.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: tg.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: tg.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adamw": lambda p: tg.optim.AdamW(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_steps_as_it_does_uncompiled(backend: str, name: str) -> None:
    assert_same_steps(lambda: train(OPTIMIZERS[name]))


def test_a_thousand_steps_with_dropout_schedule_clipping_and_decay(backend: str) -> None:
    def make() -> Setup:
        return train(
            lambda p: tg.optim.AdamW(p, lr=0.01, weight_decay=0.1),
            lambda: [nn.Linear(20, 12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 5)],
            lambda model, _: nn.utils.clip_grad_norm_(model.parameters(), 0.5),
            lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=300).step,
        )

    step = assert_same_steps(make, 100 if STAND_IN else 1000)
    assert "dropout" in str(step.program)
    assert "clip_scale" in str(step.program)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.Linear(20, 5)],
        lambda: [nn.Linear(20, 9, bias=False), nn.ReLU(), nn.Linear(9, 5)],
        lambda: [nn.Linear(20, 9), nn.Tanh(), nn.Linear(9, 9), nn.Sigmoid(), nn.Linear(9, 5)],
        lambda: [
            *(layer for _ in range(4) for layer in (nn.Linear(20, 20), nn.ReLU())),
            nn.Linear(20, 5),
        ],
    ],
    ids=["one", "no bias", "smooth", "deep"],
)
def test_models(backend: str, layers: Callable[[], list[Any]]) -> None:
    assert_same_steps(lambda: train(layers=layers))


def test_gradients_of_several_batches_are_summed_as_they_are_made(backend: str) -> None:
    def make() -> Setup:
        setup = train()

        def step(x: Any, y: Any) -> Any:
            setup.optimizer.zero_grad()
            total = tg.zeros(())
            for part in range(3):
                rows = slice(part * 5, part * 5 + 5)
                loss = F.cross_entropy(setup.model(x[rows]), y[rows]) / 3
                loss.backward()
                total += loss.detach()
            setup.optimizer.step()
            return total

        return Setup(setup.model, setup.optimizer, step)

    step = assert_same_steps(make)
    assert sum(s.kernel == "add" for s in step.program.instructions()) >= 8
    if backend == "numba":
        tasks = [call.task.name for s in step._latest._steps for call in getattr(s, "calls", ())]
        assert tasks.count("elementwise._add") == 3  # the totals; gradients need none


def test_the_whole_step_is_one_plan_of_native_calls() -> None:
    tg.set_default_device("numba")
    setup = train()
    step = tg.compile(setup.step)
    step(tg.tensor(X[0]), tg.tensor(Y[0]))
    (replay,) = next(iter(step._replays.values()))
    kinds = [type(s).__name__ for s in replay._steps]
    assert kinds == ["Host", "Plan"]


def test_elementwise_neighbours_run_chunk_by_chunk() -> None:
    tg.set_default_device("numba")
    shift, total = tg.tensor(0.5), tg.randn(30_000)

    def function(x: Any) -> Any:
        y = ((x * 2 + shift).tanh() * x).exp()
        z = (y * total).sigmoid()
        scale = total * 0 + 1  # of nothing before
        return z - y, scale * (x[:1] * 3)  # the factor of one element is all needed

    compiled = tg.compile(tg.no_grad()(function))
    for _ in range(3):
        x = tg.randn(30_000)
        for got, expected in zip(compiled(x), function(x), strict=True):
            np.testing.assert_array_equal(got.cpu().numpy(), expected.cpu().numpy())
    (plan,) = [s for s in compiled._latest._steps if hasattr(s, "calls")]
    assert len(plan.calls) == 12
    assert len(plan._levels) - 1 <= 3


@pytest.mark.parametrize("optimizer", [tg.optim.Adam, tg.optim.SGD])
def test_clipping_and_step_take_the_gradients_together(backend: str, optimizer: Any) -> None:
    def make() -> tuple[Any, Any]:
        tg.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 300), nn.ReLU(), nn.Linear(300, 5))
        optim = optimizer(model.parameters(), lr=0.01, weight_decay=0.1)

        def step(x: Any, y: Any) -> Any:
            optim.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            optim.step()
            return loss, norm

        return model, step

    (plain, eager), (model, function) = make(), make()
    step = tg.compile(function)
    for n in range(5):
        x, y = tg.tensor(X[n]), tg.tensor(Y[n])
        for got, expected in zip(step(x, y), eager(x, y), strict=True):
            assert got.item() == expected.item()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        np.testing.assert_array_equal(p.detach().cpu().numpy(), q.detach().cpu().numpy())
        assert p.grad is not None and q.grad is not None
        np.testing.assert_array_equal(p.grad.cpu().numpy(), q.grad.cpu().numpy())
    assert [s.kernel for s in step.program.instructions()].count("mul") == 1
    if backend == "numba":
        (plan,) = [s for s in step._latest._steps if hasattr(s, "calls")]
        names = [call.task.name.rpartition("_")[0] for call in plan.calls[-2:]]
        assert names[-1] in ("optimizers._adam", "optimizers._sgd")
        assert len(plan.calls) - 2 in plan._levels  # where the scaling begins, and
        assert len(plan.calls) - 1 not in plan._levels  # the step goes on


def test_the_last_and_smaller_batch_is_recorded_by_itself(backend: str) -> None:
    plain, compiled = train(), train()
    step = tg.compile(compiled.step)
    for n in (16, 16, 5, 16, 5, 1):
        x, y = X[0, :n], Y[0, :n]
        assert step(tg.tensor(x), tg.tensor(y)).item() == plain.step(tg.tensor(x), tg.tensor(y))
    assert len(step._replays) == 3


def test_modes_are_told_apart(backend: str) -> None:
    model = nn.Sequential(nn.Linear(20, 5), nn.Dropout(0.5))
    forward = tg.compile(tg.no_grad()(lambda x: model(x)))
    x = tg.tensor(X[0])
    trained = [forward(x) for _ in range(3)]
    assert not (trained[1] == trained[2]).all()
    model.eval()
    assert (forward(x) == forward(x)).all()
    model.train()
    assert not (forward(x) == trained[2]).all()


def test_gradients_may_be_dropped_outside_or_kept(backend: str) -> None:
    """zero_grad before the compiled step, after it, with zeros, or not at all."""
    for where in ("outside", "last", "zeros", "never"):
        pair = []
        for compiled in (False, True):
            tg.manual_seed(0)
            model = nn.Linear(20, 5)
            optimizer = tg.optim.SGD(model.parameters(), lr=0.1)

            def step(x: Any, y: Any, where=where, model=model, optimizer=optimizer) -> Any:
                if where == "zeros":
                    optimizer.zero_grad(set_to_none=False)
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                if where == "last":
                    optimizer.zero_grad()
                return loss

            run = tg.compile(step) if compiled else step
            for n in range(6):
                if where == "outside":
                    optimizer.zero_grad()
                run(tg.tensor(X[n]), tg.tensor(Y[n]))
            grads = [p.grad if p.grad is None else p.grad.cpu().numpy() for p in model.parameters()]
            pair.append(([p.detach().cpu().numpy() for p in model.parameters()], grads))
        for a, b in zip(pair[0][0], pair[1][0], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=where)
        for a, b in zip(pair[0][1], pair[1][1], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=where)
        assert (pair[0][1][0] is None) == (where == "last")


def test_changes_from_outside_are_followed(backend: str) -> None:
    """The learning rate, a setting, loaded weights, new memory, a frozen layer."""

    def disturb(n: int, setup: Setup) -> None:
        group = setup.optimizer.param_groups[0]
        if n == 2:
            group["lr"] = 0.5
        if n == 4:
            group["betas"] = (0.5, 0.6)
        if n == 6:
            values = {k: v * 0.5 for k, v in setup.model.state_dict().items()}
            setup.model.load_state_dict(values)
        if n == 8:
            setup.model[0].weight.data = setup.model[0].weight.detach() * 2
        if n == 10:
            setup.model[0].weight.requires_grad_(False)
        if n == 12:
            setup.optimizer.load_state_dict(setup.optimizer.state_dict())

    plain, compiled = train(), train()
    step = tg.compile(compiled.step)
    for n in range(15):
        for setup, run in ((plain, plain.step), (compiled, step)):
            disturb(n, setup)
            loss = run(tg.tensor(X[n % 7]), tg.tensor(Y[n % 7])).item()
            if setup is plain:
                expected = loss
        assert loss == expected, f"step {n}"


def test_results_have_memory_of_their_own(backend: str) -> None:
    setup = train()
    step = tg.compile(lambda x, y: {"loss": setup.step(x, y), "size": (len(x), [x * 2])})
    results = [step(tg.tensor(X[n]), tg.tensor(Y[n])) for n in range(4)]
    assert len({r["loss"].item() for r in results}) == 4
    assert all(r["size"][0] == 16 for r in results)
    for n, r in enumerate(results):
        np.testing.assert_array_equal(r["size"][1][0].cpu().numpy(), X[n] * 2)
        assert not r["loss"].requires_grad


def test_random_numbers_are_drawn_at_each_run(backend: str) -> None:
    def noisy(x: Any) -> Any:
        noise = tg.zeros(20).uniform_(-1, 1)
        return x + tg.randn(16, 20) * noise + tg.randint(0, 9, (20,)).float() + tg.rand(1)

    compiled = tg.compile(noisy)
    x = tg.tensor(X[0])
    tg.manual_seed(5)
    expected = [noisy(x).cpu().numpy() for _ in range(3)]
    tg.manual_seed(5)
    for values in expected:
        np.testing.assert_array_equal(compiled(x).cpu().numpy(), values)


def test_state_outside_is_updated_and_state_inside_begins_anew(backend: str) -> None:
    running = tg.zeros(20)

    def count(x: Any) -> Any:
        total = tg.zeros(20)
        for row in (0, 1, 2):
            total += x[row]
        running.mul_(0.5)
        running.add_(total)
        return total

    compiled = tg.compile(count)
    expected = np.zeros(20, np.float32)
    for n in range(5):
        total = X[n][0] + X[n][1] + X[n][2]
        expected = expected * np.float32(0.5) + total
        np.testing.assert_array_equal(compiled(tg.tensor(X[n])).cpu().numpy(), total)
        np.testing.assert_array_equal(running.cpu().numpy(), expected)


def test_versions_are_counted_so_that_a_stale_graph_is_refused(backend: str) -> None:
    setup = train()
    step = tg.compile(setup.step)
    x, y = tg.tensor(X[0]), tg.tensor(Y[0])
    step(x, y)
    stale = F.cross_entropy(setup.model(x), y)
    step(x, y)
    with pytest.raises(tg.InPlaceError, match=r"Adam\.step"):
        stale.backward()


def test_strided_arguments_and_arguments_given_twice(backend: str) -> None:
    double = tg.compile(lambda a, b: a @ b + a)
    square = rng.normal(size=(6, 6)).astype(np.float32)
    a, b = tg.tensor(square), tg.tensor(square[::-1].copy())
    for p, q in ((a, b), (a.T, b), (b, b.T), (a, a), (b, b), (a, b)):
        np.testing.assert_array_equal(double(p, q).cpu().numpy(), (p @ q + p).cpu().numpy())


def test_keywords_values_and_methods(backend: str) -> None:
    class Scale:
        factor = 3

        @tg.compile
        def by(self, x: Any, power: int = 1, *, shift: Any = None) -> Any:
            y = x**power * self.factor
            return y if shift is None else y + shift["by"]

    x = tg.tensor(X[0])
    for _ in range(2):
        np.testing.assert_array_equal(Scale().by(x).cpu().numpy(), X[0] * 3)
        np.testing.assert_array_equal(Scale().by(x, 2).cpu().numpy(), X[0] ** 2 * 3)
        shifted = Scale().by(x, shift={"by": tg.tensor(1.0)})
        np.testing.assert_array_equal(shifted.cpu().numpy(), X[0] * 3 + 1)


def test_weights_that_change_between_calls_are_read_anew(backend: str) -> None:
    """A forward keeps them in another layout: however they are written, it must notice."""
    model = nn.Sequential(nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 5))
    forward = tg.compile(tg.no_grad()(lambda x: model(x)))
    optimizer = tg.optim.SGD(model.parameters(), lr=0.1)
    x, y = tg.tensor(X[0]), tg.tensor(Y[0])

    @tg.compile
    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    inside = model[2].weight.detach()
    outside = inside._array if backend == "cupy" else inside.numpy()
    elsewhere = tg.from_numpy(np.ones((6, 20), np.float32)).to(inside.device)
    writes = [
        lambda: step(),
        lambda: step(),
        lambda: model[0].weight.data.mul_(2),
        lambda: model.load_state_dict({k: v * 3 for k, v in model.state_dict().items()}),
        lambda: outside.__imul__(0.5),
        lambda: setattr(model[0].weight, "data", elsewhere),
        lambda: nn.init.uniform_(model[0].weight),
    ]
    for write in writes:
        write()
        expected = model(x).detach().cpu().numpy()
        np.testing.assert_array_equal(forward(x).cpu().numpy(), expected)


def test_a_compiled_function_in_another_is_part_of_it(backend: str) -> None:
    inner = tg.compile(lambda x: x * 2)
    outer = tg.compile(lambda x: inner(x) + 1)
    for n in range(3):
        np.testing.assert_array_equal(outer(tg.tensor(X[n])).cpu().numpy(), X[n] * 2 + 1)
    assert not inner._replays


def assert_follows(make: Callable[[], tuple[Any, Callable[[], Any]]], *calls: Any) -> None:
    """``make`` gives a function and what to look at after each call of it; each of ``calls`` are
    arguments. Compiled, results and state are the same."""
    (plain, looked), (function, seen) = make(), make()
    compiled = tg.compile(function)
    for n, args in enumerate(calls):
        got, expected = compiled(*args), plain(*args)
        for a, b in zip((*got, *seen()), (*expected, *looked()), strict=True):
            np.testing.assert_array_equal(a.cpu().numpy(), b.cpu().numpy(), err_msg=f"call {n}")


def training(loss: Callable[[Any, Any], Any], width: int) -> Callable[[], Any]:
    def make() -> Any:
        tg.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, width))
        optimizer = tg.optim.SGD(model.parameters(), lr=0.1)

        def step(x: Any) -> Any:
            optimizer.zero_grad()
            value = loss(model(x), x)
            value.backward()
            optimizer.step()
            return [value.detach()]

        return step, lambda: [p.detach() for p in model.parameters()]

    return make


def inputs() -> list[tuple[Any]]:
    return [(tg.tensor(x),) for x in X]


@pytest.mark.parametrize(
    ("loss", "width"),
    [
        (lambda y, x: F.mse_loss(y.squeeze(1), x[:, 0]), 1),
        (lambda y, x: F.mse_loss(y.reshape(-1), x[:, :4].reshape(-1)), 4),
        (lambda y, x: F.mse_loss(y.T, x[:, :4].T), 4),
        (lambda y, x: F.mse_loss(y[:, 1:3], x[:, :2]), 4),
        (lambda y, x: y.T.exp().mean(), 4),
    ],
    ids=["squeeze", "reshape", "transposed", "slice", "not contiguous"],
)
def test_a_loss_on_a_view_of_the_output(backend: str, loss: Any, width: int) -> None:
    assert_follows(training(loss, width), *inputs())


def test_parts_and_views_of_outside_tensors_are_written_at_each_run(backend: str) -> None:
    def make() -> Any:
        state, other = tg.zeros(16, 20), tg.zeros(16, 20)

        def write(x: Any) -> Any:
            state[0] = x[1]
            state[1:, 2] = x[1:, 0]
            seen = other.reshape(16, 20)
            other.mul_(0.5)
            other[...] = x
            return [seen * 1]

        return write, lambda: [state, other]

    assert_follows(make, *inputs())


def test_arguments_and_views_of_them_are_results(backend: str) -> None:
    assert_follows(lambda: (lambda x: (x, x * 2, x[:, :3], x.T, x), list), *inputs())


def test_rows_move_within_a_tensor(backend: str) -> None:
    def make() -> Any:
        history = tg.zeros(5, 20)

        def push(x: Any) -> Any:
            history[1:].copy_(history[:-1])
            history[0] = x[0]
            return [history * 1]

        return push, lambda: [history]

    assert_follows(make, *inputs())


def test_a_product_with_one_is_kept_where_the_factor_changes_later(backend: str) -> None:
    def make() -> Any:
        w = tg.tensor([2.0])

        def step(x: Any) -> Any:
            before = w * tg.tensor([1.0])
            w.add_(x)
            return [before]

        return step, lambda: [w]

    assert_follows(make, *[(tg.tensor([float(n)]),) for n in range(4)])


def test_a_schedule_may_step_before_the_optimizer(backend: str) -> None:
    def make() -> Setup:
        setup = train(lambda p: tg.optim.SGD(p, lr=0.1, momentum=0.9))
        schedule = lr_scheduler.ExponentialLR(setup.optimizer, gamma=0.5)

        def step(x: Any, y: Any) -> Any:
            schedule.step()
            return setup.step(x, y)

        return Setup(setup.model, setup.optimizer, step)

    assert_same_steps(make, 6)


def test_leaves_made_inside_begin_anew_and_are_recorded_once(backend: str) -> None:
    model = nn.Linear(20, 5).requires_grad_(False)

    def attack(x: Any) -> Any:
        x = x.clone().requires_grad_()
        model(x).exp().mean().backward()
        return [x.detach() + 0.1 * x.grad]

    compiled = tg.compile(attack)
    for (x,) in inputs():
        np.testing.assert_array_equal(compiled(x)[0].cpu().numpy(), attack(x)[0].cpu().numpy())
    assert [len(replays) for replays in compiled._replays.values()] == [1]


def test_zeros_of_both_signs_and_nan_as_values(backend: str) -> None:
    divide = tg.compile(lambda x, zero: 1 / (x * zero))
    x = tg.tensor([1.0])
    assert [divide(x, zero).item() for zero in (0.0, -0.0, 0.0)] == [np.inf, -np.inf, np.inf]
    for _ in range(3):
        assert np.isnan(divide(x, float("nan")).item())
    assert len(divide._replays) == 3


def test_two_threads_may_record_at_once(backend: str) -> None:
    """Each its own function; that of one is not seen by the other."""
    failures: list[Any] = []
    both = threading.Barrier(2)

    def work(first: bool) -> None:
        tg.set_default_device(backend)
        total = tg.zeros(3)

        def add(x: Any) -> Any:
            time.sleep(0 if first else 0.02)
            total.add_(x)
            time.sleep(0.04 if first else 0.06)
            total.add_(x)
            return x * 2

        compiled = tg.compile(add)
        both.wait()
        for _ in range(3):
            compiled(tg.ones(3))
        if total.tolist() != [6.0] * 3:
            failures.append(total.tolist())

    threads = [threading.Thread(target=work, args=(first,)) for first in (True, False)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_tensors_of_another_backend_are_refused(backend: str) -> None:
    other = next(name for name in CPU_BACKENDS if name != backend)
    tg.set_default_device(other)
    model = nn.Linear(20, 5)
    tg.set_default_device(backend)
    fixed = tg.tensor(X[0]).to(model.weight.backend)
    with pytest.raises(tg.CompileError, match="takes part"):
        tg.compile(tg.no_grad()(lambda: model(fixed)))()


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda x: x.sum().item(), r"item\(\)"),
        (lambda x: x if x.sum() > 0 else -x, r"item\(\)"),
        (lambda x: float(x.sum()), r"item\(\)"),
        (lambda x: x.tolist(), r"tolist\(\)"),
        (lambda x: x.numpy(), r"numpy\(\)"),
        (lambda x: np.asarray(x), r"numpy\(\)"),
        (lambda x: f"{x.sum():.3f}", r"item\(\)"),
        (lambda x: str(x), r"repr\(\)"),
    ],
    ids=["item", "if", "float", "tolist", "numpy", "asarray", "format", "str"],
)
def test_reading_values_is_refused_with_the_line(backend: str, read: Any, name: str) -> None:
    on_gpu = backend == "cupy" and name == r"numpy\(\)"  # where it is refused at any time
    error, where = (
        (TypeError, "on the GPU") if on_gpu else (tg.CompileError, r"test_program\.py:\d+")
    )
    with pytest.raises(error, match=rf"{name}.*{where}"):
        tg.compile(read)(tg.tensor(X[0]))
    assert tg.tensor(X[0]).sum().item() == pytest.approx(X[0].sum(), rel=1e-3)


def test_what_cannot_be_recorded_is_refused(backend: str) -> None:
    x, weight = tg.tensor(X[0]), tg.ones(20, requires_grad=True)
    for function, message in (
        (lambda x: x.add_(1), "writes into an argument"),
        (lambda x: x * weight, "still on the graph"),
    ):
        with pytest.raises(tg.CompileError, match=message):
            tg.compile(function)(x)
    with pytest.raises(tg.CompileError, match="an argument requires a gradient"):
        tg.compile(lambda w: w * 2)(weight)
    with pytest.raises(tg.CompileError, match="can be hashed"):
        tg.compile(lambda x, values: x)(x, np.ones(3))
    never = tg.compile(lambda x: x)
    with pytest.raises(tg.CompileError, match="not called yet"):
        print(never.program)
    with pytest.raises(tg.CompileError, match="call the function"):
        never.profile(x)


@pytest.mark.parametrize("backend", CPU_BACKENDS, indirect=True)
def test_a_bad_label_raises_as_uncompiled_and_trains_nothing(backend: str) -> None:
    setup = train()
    step = tg.compile(setup.step)
    x, y = tg.tensor(X[0]), tg.tensor(Y[0])
    for _ in range(2):
        step(x, y)
    before = [a.copy() for a in state(setup)[:4]]
    bad = Y[0].copy()
    bad[11] = 7
    with pytest.raises(ValueError, match=r"label 7 at row 11 is outside 0\.\.4"):
        step(x, tg.tensor(bad))
    for a, b in zip(before, state(setup)[:4], strict=True):
        np.testing.assert_array_equal(a, b)
    step(x, y)


def test_a_function_that_changes_at_every_call_ends_uncompiled(backend: str) -> None:
    setup = train(lambda p: tg.optim.SGD(p, lr=0.1, momentum=0.9))
    plain = train(lambda p: tg.optim.SGD(p, lr=0.1, momentum=0.9))
    step = tg.compile(setup.step)
    x, y = tg.tensor(X[0]), tg.tensor(Y[0])
    with pytest.warns(UserWarning, match="recorded 16 times"):
        for n in range(20):
            for s in (setup, plain):
                s.optimizer.param_groups[0]["momentum"] = 0.9 - n / 100
            assert step(x, y).item() == plain.step(x, y).item()


# --- looking at it --------------------------------------------------------------------------


def test_the_listing_names_kernels_arguments_and_parameters(backend: str) -> None:
    setup = train()
    step = tg.compile(setup.step)
    step(tg.tensor(X[0]), tg.tensor(Y[0]))
    lines = str(step.program).splitlines()
    assert lines[0] == "program(x float32[16, 20], y int64[16]):"
    assert lines[1] == "    host: Clock.follow"
    assert lines[2] == "    count_step(state=@0)"
    assert lines[3] == (
        "    %0 = linear(x=x, w=0.weight, b=0.bias, activation='relu')  # float32[16, 12]"
    )
    assert lines[-1].startswith("    return %")
    kernels = [s.kernel for s in step.program.instructions()]
    assert kernels == [
        "count_step", "linear", "linear", "softmax_cross_entropy", "linear_backward",
        "linear_backward", "adam_step",
    ]  # fmt: skip


def test_the_listing_tells_views_and_memory_from_outside(backend: str) -> None:
    layers = [nn.Flatten(), nn.Linear(20, 5)]
    setup = train(lambda p: tg.optim.SGD(p, lr=0.1), lambda: layers)
    step = tg.compile(setup.step)
    step(tg.tensor(X[0]).reshape(16, 4, 5), tg.tensor(Y[0]))
    lines = str(step.program).splitlines()
    assert "    %0 = linear(x=x.view[16, 20], w=1.weight, b=1.bias)  # float32[16, 5]" in lines
    assert "    count_step(state=@0)" in lines
    (last,) = [line for line in lines if "sgd_step" in line]
    assert last.startswith("    sgd_step(p=@1, g=@2, state=@0, ")


def test_profiling_changes_nothing(backend: str) -> None:
    setup, plain = train(), train()
    step = tg.compile(setup.step)
    x, y = tg.tensor(X[0]), tg.tensor(Y[0])
    for s in (step, plain.step):
        s(x, y)
    before = [a.copy() for a in state(setup)]
    profile = step.profile(x, y, repeat=3)
    for a, b in zip(before, state(setup), strict=True):
        np.testing.assert_array_equal(a, b)
    assert step(x, y).item() == plain.step(x, y).item()
    assert any("adam" in name for name, _ in profile.rows)
    assert "sum" in str(profile)


def test_recordings_take_no_more_memory_and_go_with_the_function(backend: str) -> None:
    setup = train()
    step = tg.compile(setup.step)
    for n in range(3):
        step(tg.tensor(X[n]), tg.tensor(Y[n]))
    gc.collect()
    counted = len(gc.get_objects())
    for n in range(50):
        step(tg.tensor(X[n % 7]), tg.tensor(Y[n % 7]))
    gc.collect()
    assert len(gc.get_objects()) - counted < 20


def test_compiled_steps_in_two_threads(backend: str) -> None:
    """Each thread trains a model of its own, and both share a compiled forward."""
    shared = train()
    forward = tg.compile(tg.no_grad()(lambda x: shared.model(x)))
    expected = [shared.model(tg.tensor(x)).detach().cpu().numpy() for x in X]
    failures: list[str] = []

    def work() -> None:
        tg.set_default_device(backend)
        for n in range(200):
            if not (forward(tg.tensor(X[n % 7])).cpu().numpy() == expected[n % 7]).all():
                failures.append(f"call {n}")

    threads = [threading.Thread(target=work) for _ in range(3)]
    with warnings.catch_warnings():
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not failures


def test_which_arguments_are_the_same_array_is_part_of_the_kind(backend: str) -> None:
    compiled = tg.compile(lambda a, b, c: a + b * 10 + c * 100)
    one, two = tg.ones(3), tg.full((3,), 2.0)
    for args in ((one, one, two), (one, two, two), (one, two, one), (two, one, one)):
        a, b, c = (t[0].item() for t in args)
        assert compiled(*args)[0].item() == a + 10 * b + 100 * c


def test_an_argument_in_memory_that_the_program_writes(backend: str) -> None:
    def make() -> Any:
        tg.manual_seed(0)
        layer, x = nn.Linear(96, 96), tg.ones(4, 96)
        layer(x).sum().backward()

        def step(given: Any) -> Any:
            layer.weight.grad = None
            (layer(given) ** 2).sum().backward()
            return [layer.weight.grad * 1]

        return layer, step

    (plain, step), (other, same) = make(), make()
    compiled = tg.compile(same)
    for _ in range(4):
        (expected,), (got,) = step(plain.weight.grad), compiled(other.weight.grad)
        np.testing.assert_array_equal(got.cpu().numpy(), expected.cpu().numpy())


def test_a_parameter_that_missed_steps_counts_its_own(backend: str) -> None:
    plain, compiled = train(), train()
    step = tg.compile(compiled.step)
    for n in range(9):
        for setup, run in ((plain, plain.step), (compiled, step)):
            setup.model[0].weight.requires_grad_(n // 3 != 1)
            loss = run(tg.tensor(X[n % 7]), tg.tensor(Y[n % 7])).item()
            if setup is plain:
                expected = loss
        assert loss == expected, f"step {n}"


def test_a_norm_that_is_read_is_refused(backend: str) -> None:
    setup = train(
        between=lambda model, _: nn.utils.clip_grad_norm_(
            model.parameters(), 1.0, error_if_nonfinite=True
        )
    )
    with pytest.raises(tg.CompileError, match=r"item\(\)"):
        tg.compile(setup.step)(tg.tensor(X[0]), tg.tensor(Y[0]))


def test_new_memory_behind_a_detached_tensor_or_a_gradient(backend: str) -> None:
    layer = nn.Linear(20, 3)
    compiled = tg.compile(lambda x: x @ layer.weight.detach().T)
    x = tg.tensor(X[0])
    for _ in range(3):
        with tg.no_grad():
            expected = (x @ layer.weight.T).cpu().numpy()
        np.testing.assert_array_equal(compiled(x).cpu().numpy(), expected)
        layer.weight.data = layer.weight.detach() * 2
    optimizer = tg.optim.SGD(layer.parameters(), lr=1.0)
    step = tg.compile(optimizer.step)
    for n in range(4):
        for p in layer.parameters():
            p.grad = p.grad if n in (2, 3) else tg.ones(*p.shape)
            p.grad.data = tg.full(p.shape, float(n))
        before = layer.bias.detach().clone()
        step()
        np.testing.assert_allclose((before - layer.bias.detach()).cpu().numpy(), [n] * 3, atol=1e-6)


def test_named_tuples_and_seeds(backend: str) -> None:
    largest = tg.compile(lambda x: x.max(1))
    seeded = tg.compile(lambda x: (tg.manual_seed(4), x * tg.rand(20))[1])
    for n in range(3):
        x = tg.tensor(X[n])
        np.testing.assert_array_equal(largest(x).values.cpu().numpy(), X[n].max(1))
        np.testing.assert_array_equal(largest(x).indices.cpu().numpy(), X[n].argmax(1))
        got = seeded(x)
        tg.manual_seed(4)
        np.testing.assert_array_equal(got.cpu().numpy(), (x * tg.rand(20)).cpu().numpy())


def test_numbers_that_always_change_end_uncompiled(backend: str) -> None:
    scaled = tg.compile(lambda x, factor: x * factor)
    x = tg.tensor(X[0])
    with pytest.warns(UserWarning, match="better passed as a tensor"):
        for n in range(140):
            np.testing.assert_array_equal(
                scaled(x, float(n)).cpu().numpy(), (x * float(n)).cpu().numpy()
            )
    assert sum(map(len, scaled._replays.values())) == 128
