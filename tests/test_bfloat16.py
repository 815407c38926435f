"""bfloat16: operations against PyTorch's, promotion, gradients, files, and what happens without the
package that brings it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygrad_ish as tg
from tinygrad_ish import dtypes, formats, nn
from tinygrad_ish.kernels import get_backend
from tinygrad_ish.kernels.reference import wider
from tinygrad_ish.nn import functional as F

from .backends import BACKENDS
from .test_kernels import CASES, IN_PLACE, VIEWS, arrays_in, run

ml_dtypes = pytest.importorskip("ml_dtypes", reason="pip install 'tinygrad_ish[bfloat16]'")
NO_TORCH = "PyTorch is not installed: pip install -e '.[parity]'"
BF16 = np.dtype(ml_dtypes.bfloat16)

# --- kernels ----------------------------------------------------------------------------------


def rounded(x: Any) -> Any:
    """Floating arrays in bfloat16, in tuples too."""
    if isinstance(x, tuple):
        return tuple(map(rounded, x))
    return x.astype(BF16) if hasattr(x, "strides") and x.dtype == np.float32 else x


def wide(x: Any) -> Any:
    """The same in float32."""
    if isinstance(x, tuple):
        return tuple(map(wide, x))
    return x.astype(np.float32) if hasattr(x, "strides") and x.dtype == BF16 else x


# Not continuous, or of another dtype by an argument.
NOT_CLOSE = {"linear_int8", "cast", "floor_div", "remainder", "argmax", "argmin", "take_scaled"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", sorted(set(CASES) - VIEWS - NOT_CLOSE))
def test_kernels_are_close_to_float32(name: str, backend: str) -> None:
    k, tried = get_backend(backend), 0
    for i, case in enumerate(CASES[name]):
        if "float32" not in case.dtypes:
            continue
        args = rounded(case.make(np.random.default_rng(i), "float32"))
        if name not in IN_PLACE and not any(np.isfinite(x).all() for x in arrays_in(args)):
            continue  # extreme values are beyond bfloat16's digits
        numpy = get_backend("numpy")
        expected = run(name, numpy, [_on(numpy, a) for a in wide(args)], case.kwargs)
        given = [_on(k, a) for a in args]
        for a, b in zip(run(name, k, given, case.kwargs), expected, strict=True):
            if b is None:
                continue
            assert a.dtype == (BF16 if b.dtype == np.float32 else b.dtype)
            largest = np.abs(b[np.isfinite(b)]).max(initial=1e-30) if b.size else 1.0
            got = a.astype(b.dtype)
            np.testing.assert_allclose(got, b, rtol=2e-2, atol=2e-2 * min(largest, 1e3))
            tried += 1
    assert tried or not any("float32" in case.dtypes for case in CASES[name])


def _on(k: Any, a: Any) -> Any:
    if isinstance(a, tuple) and any(hasattr(x, "strides") for x in a):
        return tuple(k.asarray(x.copy()) for x in a)
    return k.asarray(a.copy()) if hasattr(a, "strides") else a


@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_do_not_stall(backend: str) -> None:
    """Added one by one, ones stop at 256: it has eight digits."""
    x = tg.ones(1000, 3, dtype=tg.bfloat16, device=backend)
    w = tg.ones(2, 1000, dtype=tg.bfloat16, device=backend)
    assert x.sum(0).tolist() == [1000] * 3 and x.mean() == 1
    assert (w @ x).tolist() == [[1000] * 3] * 2
    assert (x / x.sum(0)).sum(0).tolist() == pytest.approx([1] * 3, abs=0.01)
    assert x[:, 0].softmax(0).sum().item() == pytest.approx(1, abs=0.01)
    assert F.mse_loss(2 * x, x, reduction="sum").item() == 3008  # 3000, rounded


# --- tensors ----------------------------------------------------------------------------------

UNARY: list[Callable[[Any, Any], Any]] = [
    lambda T, x: x.exp(), lambda T, x: (x * x + 1).log(), lambda T, x: x.tanh(),
    lambda T, x: x.sigmoid(), lambda T, x: x.relu(), lambda T, x: (x * x + 1).sqrt(),
    lambda T, x: x.sum(1), lambda T, x: x.mean(0), lambda T, x: x.amax(1), lambda T, x: -x / 3,
    lambda T, x: x.softmax(1), lambda T, x: x.log_softmax(0), lambda T, x: x @ x.T,
    lambda T, x: x[1:, :2] * 2 + x[:-1, 1:3], lambda T, x: T.cat([x, x], 0), lambda T, x: abs(x),
    lambda T, x: T.nn.functional.gelu(x), lambda T, x: T.nn.functional.layer_norm(x, (4,)),
    lambda T, x: T.nn.functional.linear(x, x), lambda T, x: x.clamp(-0.5, 0.5),
    lambda T, x: T.where(x > 0, x, x * 0.5), lambda T, x: x.to(T.float32) * 2, lambda T, x: x**2,
    lambda T, x: T.nn.functional.cross_entropy(x, T.tensor([0, 1, 2])),
    lambda T, x: T.nn.functional.mse_loss(x, x.detach() * 2), lambda T, x: 1 - x,
]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", range(len(UNARY)))
def test_values_and_gradients_are_pytorchs(op: int, backend: str) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    tg.set_default_device(backend)
    values, found = np.random.default_rng(op).normal(size=(3, 4)), []
    for T in (tg, torch):
        x = T.tensor(values, dtype=T.bfloat16, requires_grad=True)
        y = UNARY[op](T, x)
        (y * y).sum().backward()
        dtype = str(y.dtype).removeprefix("torch.")
        result, grad = (t.detach().to(T.float64).cpu().numpy() for t in (y, x.grad))
        found.append((result, grad, dtype))
        assert x.grad.dtype == T.bfloat16
    (y, g, dtype), (y2, g2, dtype2) = found
    assert dtype == dtype2
    np.testing.assert_allclose(y, y2, rtol=2e-2, atol=2e-2)
    np.testing.assert_allclose(g, g2, rtol=5e-2, atol=5e-2 * max(1, abs(g2).max()))


@pytest.mark.parametrize("other", ["bool", "uint8", "int64", "float16", "float32", "float64"])
def test_promotion_is_pytorchs(other: str) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    for shape in ((), (2,)):
        for other_shape in ((), (2,)):
            a = tg.ones(shape, dtype=tg.bfloat16) + tg.ones(other_shape, dtype=other)
            b = torch.ones(shape, dtype=torch.bfloat16) + torch.ones(
                other_shape, dtype=getattr(torch, other)
            )
            assert f"torch.{a.dtype.name}" == str(b.dtype), (shape, other_shape)
            assert (
                tg.ones(other_shape, dtype=other) + tg.ones(shape, dtype=tg.bfloat16)
            ).dtype == (a.dtype)
    assert (tg.ones(2, dtype=tg.bfloat16) * 2.5).dtype == BF16


def test_it_is_a_dtype_as_the_others() -> None:
    assert tg.bfloat16 == "bfloat16" == dtypes.as_dtype(BF16) and tg.bfloat16 != tg.float16
    assert dtypes.is_float(tg.bfloat16) and wider(tg.bfloat16) == np.float32
    x = tg.tensor([1.0, 0.1], dtype="bfloat16", requires_grad=True)
    assert repr(x) == "tensor([1.    , 0.1001], dtype=bfloat16, requires_grad=True)"
    assert x.to("bfloat16") is x and x.float().bfloat16().dtype == x.bfloat16().dtype == BF16
    assert x.tolist() == [1.0, 0.10009765625] and x[0].item() == 1.0
    assert tg.from_numpy(np.ones(2, BF16)).dtype == BF16 and tg.tensor(np.ones(2, BF16)).sum() == 2
    assert x.isfinite().all() and (x > 0.5).tolist() == [True, False] and x.argmax() == 0
    assert x.long().tolist() == [1, 0] and tg.tensor([1, 2]).bfloat16().tolist() == [1, 2]
    for made in (
        tg.rand(3, dtype="bfloat16"), tg.randn(3, dtype="bfloat16"), tg.zeros_like(x),
        tg.arange(3, dtype="bfloat16"), tg.full((2,), 1.5, "bfloat16"), tg.eye(2, dtype=BF16),
    ):  # fmt: skip
        assert made.dtype == BF16
    y = tg.ones(2, dtype="bfloat16")
    y += 1.5
    y[0] = 7
    assert y.tolist() == [7, 2.5]
    with pytest.raises(TypeError, match="index tensor must hold integers, got bfloat16"):
        y[y]
    with pytest.raises(TypeError, match=r"expected one of bool, .*, bfloat16; got"):
        tg.zeros(2, dtype="complex64")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_model_trains(name: str, backend: str) -> None:
    tg.set_default_device(backend)
    tg.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 2)).bfloat16()
    x = tg.randn(32, 4, dtype=tg.bfloat16)
    y = (x.sum(1) > 0).long()
    optimizer = getattr(tg.optim, name)(net.parameters(), lr=0.1 if name == "SGD" else 0.02)

    @tg.compile
    def step(x: tg.Tensor, y: tg.Tensor) -> tg.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    losses = [step(x, y).item() for _ in range(40)]
    assert losses[-1] < 0.3 * losses[0]
    assert all(p.dtype == p.grad.dtype == BF16 for p in net.parameters())


# --- files ------------------------------------------------------------------------------------


def test_files_keep_it(tmp_path: Path) -> None:
    x = tg.randn(3, 5).bfloat16()
    tg.save({"x": x, "empty": tg.zeros(0, dtype=tg.bfloat16)}, tmp_path / "w.tgi")
    found = tg.load(tmp_path / "w.tgi")
    assert found["x"].dtype == found["empty"].dtype == BF16 and found["x"].equal(x)
    net = nn.Linear(5, 3)
    net.load_state_dict({"weight": found["x"], "bias": tg.zeros(3)})
    assert net.weight.dtype == tg.float32 and net.weight.equal(x.float())


def test_files_of_others(tmp_path: Path) -> None:
    x = tg.randn(3, 5).bfloat16()
    for written in (formats.safetensors, formats.flax):
        written.save_file({"x": x}, tmp_path / "w")
        assert (written.load_file(tmp_path / "w")["x"] == x.float().numpy()).all()
    with pytest.raises(tg.WeightsError, match="x: NumPy's files have no bfloat16: convert it"):
        formats.npz.save_file({"x": x}, tmp_path / "w")


def test_programs_refuse_it(tmp_path: Path) -> None:
    net, x = nn.Linear(4, 2).bfloat16(), tg.ones(1, 4, dtype=tg.bfloat16)
    with pytest.raises(tg.ProgramError, match="a program holds no bfloat16"):
        tg.export(net, x, tmp_path / "p.tgi")
    with tg.autocast("cpu"), pytest.raises(tg.ProgramError, match="and outside of autocast"):
        tg.export(nn.Linear(4, 2), tg.ones(1, 4), tmp_path / "p.tgi")


WITHOUT = """
import sys
sys.modules["ml_dtypes"] = None
import tinygrad_ish as tg
for attempt in (
    lambda: tg.bfloat16, lambda: tg.zeros(2, dtype="bfloat16"), lambda: tg.ones(2).bfloat16(),
    lambda: tg.load(sys.argv[1]), lambda: tg.autocast("cpu"),
):
    try:
        attempt()
    except (ImportError, tg.WeightsError) as error:
        print(type(error).__name__, error)
print(tg.autocast("cpu", tg.float16).dtype, hasattr(tg, "nonsense"))
"""


def test_without_the_package_it_says_what_to_install(tmp_path: Path) -> None:
    tg.save(tg.ones(2, dtype=tg.bfloat16), tmp_path / "w.tgi")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path / "w.tgi")],
        capture_output=True,
        text=True,
        check=True,
    )
    *messages, last = done.stdout.splitlines()
    assert len(messages) == 5 and last == "float16 False"
    assert all("pip install 'tinygrad_ish[bfloat16]'" in line for line in messages)
    assert sum(line.startswith("ImportError") for line in messages) == 4
    assert messages[3].startswith("WeightsError") and "w.tgi: tensor '(the object" in messages[3]
