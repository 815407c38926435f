"""Autocast and loss scaling: PyTorch's dtypes and trajectories, eager and compiled alike."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import tinygrad_ish as tg
from tinygrad_ish import nn
from tinygrad_ish.nn import functional as F

from .backends import BACKENDS, CPU_BACKENDS

pytest.importorskip("ml_dtypes", reason="pip install 'tinygrad_ish[bfloat16]'")
NO_TORCH = "PyTorch is not installed: pip install -e '.[parity]'"
NO_GPU = tg.kernels.why_missing("cupy")

BF16, F16, F32, F64 = "bfloat16", "float16", "float32", "float64"


# --- which operation computes in what ---------------------------------------------------------

# a, b float32, h bfloat16 (a product), d float64
RULES: dict[str, tuple[str, Callable[..., Any]]] = {
    "linear": (BF16, lambda T, F, a, b, h, d: F.linear(a, b)),
    "linear with a bias": (BF16, lambda T, F, a, b, h, d: F.linear(a, b, b[0])),
    "linear of both": (BF16, lambda T, F, a, b, h, d: F.linear(h, b)),
    "linear of float64": (F64, lambda T, F, a, b, h, d: F.linear(d, d)),
    "matmul": (BF16, lambda T, F, a, b, h, d: T.matmul(a, b)),
    "@": (BF16, lambda T, F, a, b, h, d: h @ b),
    "mm": (BF16, lambda T, F, a, b, h, d: a.mm(b)),
    "relu": (BF16, lambda T, F, a, b, h, d: F.relu(h)),
    "gelu": (BF16, lambda T, F, a, b, h, d: F.gelu(h)),
    "gelu of float32": (F32, lambda T, F, a, b, h, d: F.gelu(a)),
    "tanh": (BF16, lambda T, F, a, b, h, d: h.tanh()),
    "mean": (BF16, lambda T, F, a, b, h, d: h.mean()),
    "add": (F32, lambda T, F, a, b, h, d: h + a),
    "cat": (F32, lambda T, F, a, b, h, d: T.cat([h, a])),
    "mse_loss": (F32, lambda T, F, a, b, h, d: F.mse_loss(h, a)),
    "l1_loss": (F32, lambda T, F, a, b, h, d: F.l1_loss(h, a)),
    "cross_entropy": (F32, lambda T, F, a, b, h, d: F.cross_entropy(h, T.tensor([0, 1, 2, 3]))),
    "nll_loss": (F32, lambda T, F, a, b, h, d: F.nll_loss(h, T.tensor([0, 1, 2, 3]))),
    "binary_cross_entropy": (
        F32, lambda T, F, a, b, h, d: F.binary_cross_entropy(h.sigmoid(), a.sigmoid())),
    "binary_cross_entropy_with_logits": (
        F32, lambda T, F, a, b, h, d: F.binary_cross_entropy_with_logits(h, a.sigmoid())),
}  # fmt: skip
# PyTorch has two lists, and we one, that of CUDA. On the CPU it leaves these in 16 bits.
RULES_OF_CUDA: dict[str, tuple[str, Callable[..., Any]]] = {
    "softmax": (F32, lambda T, F, a, b, h, d: h.softmax(1)),
    "log_softmax": (F32, lambda T, F, a, b, h, d: F.log_softmax(h, 1)),
    "layer_norm": (F32, lambda T, F, a, b, h, d: F.layer_norm(h, (4,), b[0], b[1])),
    "exp": (F32, lambda T, F, a, b, h, d: T.exp(h)),
    "log": (F32, lambda T, F, a, b, h, d: h.abs().log()),
    "pow": (F32, lambda T, F, a, b, h, d: h**2),
    "rpow": (F32, lambda T, F, a, b, h, d: 2**h),
    "sum": (F32, lambda T, F, a, b, h, d: h.sum()),
    "sum of float64": (F64, lambda T, F, a, b, h, d: d.sum()),
}


def operands(T: Any) -> list[Any]:
    rng = np.random.default_rng(0)
    a, b, h = (T.tensor(rng.normal(size=(4, 4)).astype("float32")) for _ in range(3))
    return [a, b, h.to(getattr(T, BF16)), a.to(T.float64)]


@pytest.mark.parametrize("name", [*RULES, *RULES_OF_CUDA])
def test_the_dtype_is_pytorchs(name: str) -> None:
    expected, run = {**RULES, **RULES_OF_CUDA}[name]
    with tg.autocast("cpu", tg.bfloat16):
        got = run(tg, F, *operands(tg))
    assert got.dtype == expected
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = run(torch, torch.nn.functional, *operands(torch))
    assert name in RULES_OF_CUDA or str(theirs.dtype) == f"torch.{expected}"
    ours = got.to("float64").numpy()
    np.testing.assert_allclose(ours, theirs.double().numpy(), rtol=2e-2, atol=2e-2)


def test_outside_nothing_is_cast() -> None:
    a, b, _, _ = operands(tg)
    with tg.autocast("cpu"):
        assert (a @ b).dtype == BF16  # the CPU's, unless told
        with tg.autocast("cpu", tg.float16):
            assert (a @ b).dtype == F16
            with tg.autocast("cpu", enabled=False):
                assert (a @ b).dtype == F32
            assert (a @ b).dtype == F16
        assert (a @ b).dtype == BF16
    assert (a @ b).dtype == F32
    with pytest.raises(ZeroDivisionError), tg.autocast("cpu"):
        raise ZeroDivisionError
    assert (a @ b).dtype == F32


def test_it_is_a_decorator_and_of_one_thread() -> None:
    a, b, _, _ = operands(tg)

    @tg.autocast("cpu", tg.float16)
    def product(depth: int) -> list[Any]:
        return [(a @ b).dtype] + (product(depth - 1) if depth else [])

    assert product(2) == [F16] * 3 and (a @ b).dtype == F32
    found: list[Any] = []
    with tg.autocast("cpu"):
        other = threading.Thread(target=lambda: found.append((a @ b).dtype))
        other.start()
        other.join()
    assert found == [F32]


def test_what_autocast_refuses() -> None:
    with pytest.raises(TypeError, match="float16 or bfloat16, got float32"):
        tg.autocast("cpu", tg.float32)
    with pytest.raises(ValueError, match="expected 'cpu' or 'cuda', got 'tpu'"):
        tg.autocast("tpu")


@pytest.mark.skipif(NO_GPU is None, reason="this machine has a GPU")
def test_without_a_gpu_it_warns_and_does_nothing() -> None:
    a, b, _, _ = operands(tg)
    with pytest.warns(UserWarning, match="autocast: there is no GPU, so it is off"):
        region = tg.autocast("cuda", tg.float16)
    with region:
        assert (a @ b).dtype == F32
    with pytest.warns(UserWarning, match="GradScaler: there is no GPU, so it is off"):
        scaler = tg.amp.GradScaler()
    assert not scaler.is_enabled() and scaler.scale(a) is a


# --- weights and gradients --------------------------------------------------------------------


def casts(step: Any) -> list[str]:
    return re.findall(r"cast\(x=(\S+), dtype=dtype\((\w+)\)\)", str(step.program))


def model(seed: int = 0) -> nn.Module:
    tg.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 3))


def batch(seed: int = 0) -> tuple[tg.Tensor, tg.Tensor]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(5, 6)).astype("float32")
    return tg.tensor(x), tg.tensor(rng.integers(0, 3, 5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_float32(backend: str) -> None:
    tg.set_default_device(backend)
    net, (x, y) = model(), batch()
    with tg.autocast(x.device.type, tg.bfloat16):
        out = net(x)
        loss = F.cross_entropy(out, y)
    loss.backward()
    assert out.dtype == BF16 and loss.dtype == F32
    exact = model()
    F.cross_entropy(exact(x), y).backward()
    for p, q in zip(net.parameters(), exact.parameters(), strict=True):
        assert p.dtype == p.grad.dtype == F32
        g, h = p.grad.cpu().numpy(), q.grad.cpu().numpy()
        np.testing.assert_allclose(g, h, rtol=0.1, atol=0.01 * abs(h).max() + 0.004)


def test_a_weight_is_cast_once() -> None:
    w = tg.randn(6, 6, requires_grad=True)

    @tg.compile
    def step(x: tg.Tensor) -> tg.Tensor:
        w.grad = None
        with tg.autocast("cpu"):
            y = F.linear(F.linear(x, w), w)
            with tg.autocast("cpu"):
                y = F.linear(y, w)
        y.sum().backward()
        return y

    step(batch()[0])
    assert [dtype for _, dtype in casts(step)].count(BF16) == 2  # of x and of w
    with tg.autocast("cpu", cache_enabled=False):
        kept = F.linear(batch()[0], w)
    assert (kept == F.linear(batch()[0].bfloat16(), w.bfloat16())).all()


def test_a_weight_that_was_written_is_cast_again() -> None:
    w, x = tg.ones(2, 2, requires_grad=True), tg.ones(1, 2)
    with tg.autocast("cpu"):
        before = F.linear(x, w)
        with tg.no_grad():
            w.mul_(3)
        after = F.linear(x, w)
        w.data = tg.zeros(2, 2)
        last = F.linear(x, w)
    assert [before[0, 0].item(), after[0, 0].item(), last[0, 0].item()] == [2, 6, 0]


def test_two_losses_of_one_region() -> None:
    w, x = tg.ones(2, 2, requires_grad=True), tg.ones(1, 2)
    with tg.autocast("cpu"):
        with tg.no_grad():
            F.linear(x, w)
        one, two = F.linear(x, w).sum(), F.linear(x, w).sum()
    one.backward()
    two.backward()
    assert w.grad is not None and (w.grad == 2).all()


def test_training_is_pytorchs() -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    x, y = batch()
    layers = torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3)
    theirs, ours = torch.nn.Sequential(*layers), model()
    theirs.load_state_dict({k: torch.tensor(v.numpy()) for k, v in ours.state_dict().items()})
    tx, ty = torch.tensor(x.numpy()), torch.tensor(y.numpy())
    a, b = tg.optim.Adam(ours.parameters(), 0.01), torch.optim.Adam(theirs.parameters(), 0.01)
    for _ in range(30):
        a.zero_grad()
        b.zero_grad()
        with tg.autocast("cpu", tg.bfloat16):
            loss = F.cross_entropy(ours(x), y)
        with torch.autocast("cpu", torch.bfloat16):
            expected = torch.nn.functional.cross_entropy(theirs(tx), ty)
        loss.backward()
        expected.backward()
        a.step()
        b.step()
        assert abs(loss.item() - expected.item()) < 0.03
    assert loss.item() < 0.5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("outside", [False, True])
def test_compiled_is_eager_bit_for_bit(backend: str, outside: bool) -> None:
    tg.set_default_device(backend)
    x, y = batch()
    results = []
    for compiled in (False, True):
        net = model()
        optimizer = tg.optim.AdamW(net.parameters(), 0.01)

        def step(x: tg.Tensor, y: tg.Tensor, net: Any = net, optimizer: Any = optimizer) -> Any:
            optimizer.zero_grad()
            with contextlib.nullcontext() if outside else tg.autocast(x.device.type, tg.bfloat16):
                loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        run, losses = tg.compile(step) if compiled else step, []
        for _ in range(4):
            with tg.autocast(x.device.type, tg.bfloat16, enabled=outside):
                losses.append(run(x, y).item())
        results.append((losses, [p.detach().cpu().numpy().tobytes() for p in net.parameters()]))
    assert results[0] == results[1]
    assert len(set(results[0][0])) == 4


def test_a_recording_is_of_one_region() -> None:
    w, x = tg.randn(3, 6), batch()[0]
    product = tg.compile(lambda x: F.linear(x, w))
    assert product(x).dtype == F32
    with tg.autocast("cpu"):
        assert product(x).dtype == BF16 and product(x).dtype == BF16
        with tg.autocast("cpu", tg.float16):
            assert product(x).dtype == F16
    assert product(x).dtype == F32


def test_a_recording_casts_weights_itself() -> None:
    w, x = tg.ones(2, 2, requires_grad=True), tg.ones(1, 2)
    product = tg.compile(lambda x: F.linear(x, w).detach())
    with tg.autocast("cpu"):
        F.linear(x, w)  # a cast that the recording must not take over
        assert product(x)[0, 0].item() == 2
        with tg.no_grad():
            w.mul_(3)
        assert product(x)[0, 0].item() == 6


# --- GradScaler -------------------------------------------------------------------------------


def scaled_steps(
    T: Any, scaler: Any, optimizer: Any, params: Any, steps: int, clip: float | None = None
) -> list[float]:
    """Steps whose gradients are not finite now and then; the scales."""
    scales = []
    for i in range(steps):
        optimizer.zero_grad()
        rng = np.random.default_rng(i)
        loss = T.zeros(())
        for p in params:
            factor = rng.normal(size=tuple(p.shape)).astype("float32")
            if i % 5 == 2:
                factor.ravel()[-1] = [np.inf, -np.inf, np.nan][i % 3]
            loss = loss + (p * T.tensor(factor)).sum()
        scaler.scale(loss).backward()
        if clip is not None:
            scaler.unscale_(optimizer)
            T.nn.utils.clip_grad_norm_(params, clip)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


OPTIMIZERS: dict[str, Callable[[Any, Any], Any]] = {
    "SGD": lambda o, p: o.SGD(p, lr=0.1),
    "momentum": lambda o, p: o.SGD(p, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.1),
    "Adam": lambda o, p: o.Adam(p, lr=0.1, weight_decay=0.1),
    "AdamW": lambda o, p: o.AdamW(p, lr=0.1),
}


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scaled_training_is_pytorchs(name: str, clip: float | None, backend: str) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    tg.set_default_device(backend)
    settings = {"init_scale": 1024.0, "growth_factor": 2.0, "growth_interval": 2}
    found = []
    for T in (tg, torch):
        rng = np.random.default_rng(0)
        params = [
            T.tensor(rng.normal(size=s).astype("float32"), requires_grad=True) for s in [(3, 4), 5]
        ]
        scaler = T.amp.GradScaler("cpu", **settings)
        optimizer = OPTIMIZERS[name](T.optim, params)
        scales = scaled_steps(T, scaler, optimizer, params, 23, clip)
        found.append((scales, [p.detach().numpy() for p in params], scaler.state_dict()))
    (ours, mine, state), (expected, theirs, their_state) = found
    assert ours == expected and len(set(ours)) > 2
    assert state == their_state
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_overflows_changes_nothing(name: str, backend: str) -> None:
    tg.set_default_device(backend)
    p = tg.ones(7, requires_grad=True)
    optimizer = OPTIMIZERS[name](tg.optim, [p])
    scaler = tg.amp.GradScaler(p.device.type)

    def step(factor: float) -> bytes:
        optimizer.zero_grad()
        scaler.scale((p * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        return p.detach().cpu().numpy().tobytes()

    def state() -> Any:
        found = optimizer.state_dict()["state"]
        return {k: v if k == "step" else v.tolist() for k, v in found.get("0", {}).items()}

    first = p.detach().cpu().numpy().tobytes()
    assert step(float("inf")) == first and not state()
    second = step(0.5)
    before = state()
    assert second != first and before["step"] == 1
    assert step(float("nan")) == second and state() == before
    assert scaler.get_scale() == 2.0**14
    assert step(0.5) != second and state()["step"] == 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_compiled_scaled_step_is_eager(name: str, clip: bool, backend: str) -> None:
    tg.set_default_device(backend)
    results = []
    for compiled in (False, True):
        net = model()
        optimizer = OPTIMIZERS[name](tg.optim, net.parameters())
        scaler = tg.amp.GradScaler(tg.zeros(()).device.type, init_scale=2.0**20, growth_interval=2)

        def step(
            x: Any, y: Any, net: Any = net, optimizer: Any = optimizer, scaler: Any = scaler
        ) -> Any:
            optimizer.zero_grad()
            with tg.autocast(x.device.type, tg.float16):
                loss = F.cross_entropy(net(x), y)
            scaler.scale(loss).backward()
            if clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            return loss.detach()

        run = tg.compile(step) if compiled else step
        seen = []
        for i in range(12):
            x, y = batch(i)
            seen.append((run(x, y).item(), scaler.get_scale()))
        weights = [p.detach().cpu().numpy().tobytes() for p in net.parameters()]
        results.append((seen, weights, str(optimizer.state_dict())))
    assert results[0] == results[1]
    scales = [scale for _, scale in results[0][0]]
    assert any(b < a for a, b in pairwise(scales)), "no step overflowed"
    assert any(b > a for a, b in pairwise(scales)), "the scale never grew"


def test_two_optimizers_have_overflows_of_their_own() -> None:
    a, b = tg.ones(3, requires_grad=True), tg.ones(3, requires_grad=True)
    one, two = tg.optim.SGD([a], 1.0), tg.optim.SGD([b], 1.0)
    scaler = tg.amp.GradScaler("cpu", init_scale=4.0)
    losses = scaler.scale([a.sum(), (b * float("inf")).sum()])
    for loss in losses:
        loss.backward()
    scaler.step(one)
    scaler.step(two)
    scaler.update()
    assert a.tolist() == [0] * 3 and b.tolist() == [1] * 3 and scaler.get_scale() == 2
    scaler.scale(a.sum()).backward()
    scaler.step(one)
    scaler.update(64.0)
    assert scaler.get_scale() == 64


def test_a_scaler_goes_on_from_its_state() -> None:
    p = tg.ones(3, requires_grad=True)
    optimizer = tg.optim.SGD([p], 0.0)
    first = tg.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
    assert scaled_steps(tg, first, optimizer, [p], 2) == [8, 8]
    state = first.state_dict()
    assert state["_growth_tracker"] == 2
    for used in (False, True):
        second = tg.amp.GradScaler("cpu")
        if used:
            scaled_steps(tg, second, optimizer, [p], 1)
        second.load_state_dict(state)
        assert second.state_dict() == state
        assert scaled_steps(tg, second, optimizer, [p], 1) == [16]


def test_a_disabled_scaler_only_steps() -> None:
    p = tg.ones(3, requires_grad=True)
    optimizer = tg.optim.SGD([p], 1.0)
    scaler = tg.amp.GradScaler("cpu", enabled=False)
    scaler.scale(p.sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    scaler.load_state_dict(scaler.state_dict())
    assert p.tolist() == [0] * 3 and scaler.get_scale() == 1 and scaler.state_dict() == {}


def test_misuse_is_told() -> None:
    p = tg.ones(3, requires_grad=True)
    optimizer, scaler = tg.optim.SGD([p], 1.0), tg.amp.GradScaler("cpu")
    with pytest.raises(ValueError, match=r"nothing to unscale; call scaler\.scale"):
        scaler.step(optimizer)
    with pytest.raises(ValueError, match=r"update\(\) comes after"):
        scaler.update()
    loss = p.sum()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(ValueError, match="called for this optimizer already"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(ValueError, match=r"unscale_\(\) comes after step"):
        scaler.unscale_(optimizer)
    with pytest.raises(ValueError, match=r"step\(\) was called already"):
        scaler.step(optimizer)
    scaler.update()
    with pytest.raises(TypeError, match="expected a Tensor, got float"):
        scaler.scale(1.0)


def test_float16_gradients_are_refused() -> None:
    p = tg.ones(3, dtype=tg.float16, requires_grad=True)
    optimizer, scaler = tg.optim.SGD([p], 1.0), tg.amp.GradScaler("cpu")
    scaler.scale(p.sum()).backward()
    with pytest.raises(ValueError, match="a gradient is float16"):
        scaler.step(optimizer)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"init_scale": 0.0}, "a scale above 0"),
        ({"growth_factor": 1.0}, "growth_factor above 1"),
        ({"backoff_factor": 1.5}, "between 0 and 1"),
        ({"growth_interval": 0}, "growth_interval must be an int of 1 or more"),
        ({"growth_interval": 2.5}, "growth_interval must be an int of 1 or more"),
    ],
)
def test_settings_are_checked(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tg.amp.GradScaler("cpu", **settings)
    scaler = tg.amp.GradScaler("cpu")
    with pytest.raises(ValueError, match="the state must hold scale"):
        scaler.load_state_dict({})


def test_a_step_reads_nothing() -> None:
    """What reads a value cannot be recorded: only get_scale does."""
    p = tg.ones(3, requires_grad=True)
    optimizer, scaler = tg.optim.SGD([p], 1.0), tg.amp.GradScaler("cpu")

    @tg.compile
    def step(read: bool) -> None:
        optimizer.zero_grad()
        scaler.scale(p.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        if read:
            scaler.get_scale()

    step(False)
    with pytest.raises(tg.CompileError, match=r"get_scale\(\) reads"):
        step(True)
