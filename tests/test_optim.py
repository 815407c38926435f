"""Optimizers: PyTorch's trajectories, packing, state that resumes bit for bit, messages."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygrad_ish as tg
from tinygrad_ish import nn, optim
from tinygrad_ish.kernels.reference import tiny

from .backends import BACKENDS

NO_TORCH = "PyTorch is not installed: pip install -e '.[parity]'"

MAKERS: dict[str, Callable[[Any, Any], Any]] = {
    "SGD": lambda o, params: o.SGD(params, lr=0.1),
    "SGD default": lambda o, params: o.SGD(params),
    "momentum": lambda o, params: o.SGD(params, lr=0.05, momentum=0.9),
    "dampening": lambda o, params: o.SGD(params, lr=0.05, momentum=0.8, dampening=0.3),
    "Nesterov": lambda o, params: o.SGD(params, lr=0.05, momentum=0.9, nesterov=True),
    "SGD decay": lambda o, params: o.SGD(params, lr=0.1, weight_decay=0.1),
    "SGD all": lambda o, params: o.SGD(
        params, lr=0.05, momentum=0.9, weight_decay=0.02, nesterov=True
    ),
    "dampening decay": lambda o, params: o.SGD(params, 0.05, 0.9, 0.5, 0.1),
    "Adam": lambda o, params: o.Adam(params),
    "Adam betas": lambda o, params: o.Adam(params, lr=0.1, betas=(0.5, 0.8), eps=1e-3),
    "Adam beta 0": lambda o, params: o.Adam(params, 0.01, (0.0, 0.0)),
    "Adam decay": lambda o, params: o.Adam(params, lr=0.02, weight_decay=0.1),
    "AdamW": lambda o, params: o.AdamW(params),
    "AdamW decay": lambda o, params: o.AdamW(params, lr=0.05, weight_decay=0.3),
    "AdamW no decay": lambda o, params: o.AdamW(params, 0.02, (0.8, 0.9), 1e-6, 0.0),
    "lr 0": lambda o, params: o.Adam(params, lr=0),
}
SHAPES = [(3, 4), (4,), (), (0, 2), (2, 1, 3)]


def start(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in SHAPES]


def ours(arrays: list[np.ndarray]) -> list[tg.Tensor]:
    return [tg.tensor(a, requires_grad=True) for a in arrays]


def host(t: Any) -> np.ndarray:
    return t.detach().cpu().numpy()


def set_grads(T: Any, params: list[Any], step: int, skipped: Any = ()) -> None:
    """Gradients that depend on the step and, so that errors would grow, on the values."""
    for i, p in enumerate(params):
        rng = np.random.default_rng(100 * step + i)
        g = np.asarray(rng.normal(size=p.shape) + np.sin(host(p)), host(p).dtype)
        p.grad = None if i in skipped else T.tensor(g)


def check_close(got: list[Any], expected: list[Any], rtol: float = 1e-10) -> None:
    for i, (p, q) in enumerate(zip(got, expected, strict=True)):
        p, q = host(p), host(q)
        assert p.dtype == q.dtype and p.shape == q.shape
        np.testing.assert_allclose(p, q, rtol=rtol, atol=rtol, err_msg=f"parameter {i}")


def compare(make: Any, steps: int = 60, change: Any = None, skipped: Any = lambda step: ()) -> None:
    """Run an optimizer here and in PyTorch; ``change(params, optimizer, step, T)`` meddles."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    params = ours(start())
    theirs = [torch.tensor(a, requires_grad=True) for a in start()]
    runs = [(tg, params, make(optim, params)), (torch, theirs, make(torch.optim, theirs))]
    for step in range(steps):
        for T, own, optimizer in runs:
            if change is not None:
                change(own, optimizer, step, T)
            set_grads(T, own, step, skipped(step))
            optimizer.step()
    check_close(params, theirs)


# --- trajectories ----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MAKERS)
def test_trajectory_is_pytorchs(name: str, backend: str) -> None:
    tg.set_default_device(backend)
    compare(MAKERS[name])


SKIPPED = {
    "late": lambda step: (1, 4) if step < 10 else (),
    "early": lambda step: (0,) if step > 10 else (),
    "alternating": lambda step: (0, 2, 4) if step % 2 else (1, 3),
    "interleaved": lambda step: [i for i in range(5) if (step * 7 + i * 3) % 4 == 0],
    "one in turn": lambda step: [i for i in range(5) if i != step % 5],
    "nobody": lambda step: range(5) if step % 3 else (),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", SKIPPED)
@pytest.mark.parametrize("name", ["dampening", "SGD all", "Adam decay", "AdamW decay"])
def test_parameters_without_a_gradient_are_left_alone(
    name: str, pattern: str, backend: str
) -> None:
    tg.set_default_device(backend)
    compare(MAKERS[name], steps=50, skipped=SKIPPED[pattern])


def test_no_gradient_no_step() -> None:
    params = ours(start())
    optimizer = optim.Adam(params)
    optimizer.step()
    assert optimizer.state_dict()["state"] == {}
    check_close(params, ours(start()), rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_groups_have_settings_of_their_own(kind: str, backend: str) -> None:
    tg.set_default_device(backend)

    def make(o: Any, params: Any) -> Any:
        first = {"params": params[:2], "lr": 0.3, "weight_decay": 0.1}
        second = {"params": params[2], **({"momentum": 0.5} if kind == "SGD" else {"eps": 0.1})}
        optimizer = getattr(o, kind)([first, second], lr=0.02)
        optimizer.add_param_group({"params": iter(params[3:]), "lr": 0.7})
        return optimizer

    compare(make)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_settings_may_change_between_steps(kind: str) -> None:
    def change(params: Any, optimizer: Any, step: int, T: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
            group["weight_decay"] = 0.1 * (step > 20)
            if kind == "SGD":
                group["momentum"] = 0.9 if 10 < step < 40 else 0
            else:
                group["betas"] = (0.9, 0.999) if step < 30 else (0.5, 0.9)

    compare(lambda o, params: getattr(o, kind)(params, lr=0.2), change=change)


def test_group_added_between_steps() -> None:
    def change(params: Any, optimizer: Any, step: int, T: Any) -> None:
        if step == 20:
            optimizer.add_param_group({"params": params[2:], "lr": 0.03})

    compare(lambda o, params: o.Adam(params[:2], lr=0.1), change=change)


def test_dtypes_mix() -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    arrays = [a.astype(np.float32 if i % 2 else np.float64) for i, a in enumerate(start())]
    params = ours(arrays)
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    for T, own in (tg, params), (torch, theirs):
        optimizer = T.optim.Adam(own, lr=0.01)
        for step in range(50):
            set_grads(T, own, step)
            optimizer.step()
    check_close(params, theirs, rtol=1e-4)
    check_close(params[::2], theirs[::2])


@pytest.mark.parametrize("name", ["momentum", "Adam decay"])
def test_a_frozen_parameter_keeps_its_value(name: str) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    net[0].requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = MAKERS[name](optim, net.parameters())
    for _ in range(3):
        net(tg.ones(2, 3)).sum().backward()
        optimizer.step()
    after = net.state_dict()
    assert (after["0.weight"] == before["0.weight"]).all()
    assert (after["2.bias"] != before["2.bias"]).all()


# --- packing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_become_views_of_one_array(backend: str) -> None:
    tg.set_default_device(backend)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    weight, stale = net[0].weight, net[0].weight.detach()
    optim.SGD(net.parameters(), lr=0.1)
    bases = [p._array.base for p in net.parameters()]
    assert all(b is bases[0] and b.ndim == 1 and b.size == 26 for b in bases)
    assert net[0].weight is weight
    assert not tg.get_default_backend().xp.may_share_memory(stale._array, weight._array)
    assert all((v == before[k]).all() for k, v in net.state_dict().items())


def test_a_transposed_parameter_is_packed_by_value() -> None:
    value = np.arange(6.0).reshape(2, 3)
    p = tg.tensor(value).T.detach().requires_grad_()
    assert not p.is_contiguous()
    optimizer = optim.SGD([p], lr=1.0)
    p.grad = tg.tensor(value).T
    optimizer.step()
    assert p.shape == (3, 2) and p.is_contiguous() and (p == 0).all()


def replace_data(params: Any, step: int, T: Any) -> None:
    params[step % 5].data = params[step % 5].data.clone() * 0.5


def swap_twice(params: Any, step: int, T: Any) -> None:
    a, b = params[0].data, T.tensor(np.full((3, 4), float(step)))
    params[0].data = b
    params[1].data = a[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("meddle", [replace_data, swap_twice])
@pytest.mark.parametrize("name", ["momentum", "Adam"])
def test_replaced_storage_keeps_the_state(name: str, meddle: Any, backend: str) -> None:
    tg.set_default_device(backend)

    def change(params: Any, optimizer: Any, step: int, T: Any) -> None:
        if step % 4 == 1:
            meddle(params, step, T)

    compare(MAKERS[name], change=change, skipped=SKIPPED["interleaved"])


def test_state_follows_a_model_to_another_dtype() -> None:
    net = nn.Linear(3, 2)
    optimizer = optim.Adam(net.named_parameters(), lr=0.1)
    net(tg.ones(1, 3)).sum().backward()
    optimizer.step()
    old = optimizer.state_dict()["state"]["weight"]
    weight = net.weight.detach().clone()
    net.double()
    assert net.weight.dtype == tg.float64 and net.weight.grad.dtype == tg.float64
    optimizer.step()
    new = optimizer.state_dict()["state"]["weight"]
    assert new["step"] == 2 and new["exp_avg"].dtype == tg.float64
    # the same gradient again: m = β₁ m + (1 - β₁) g with m = (1 - β₁) g
    np.testing.assert_allclose(new["exp_avg"].numpy(), 1.9 * old["exp_avg"].numpy(), rtol=1e-6)
    np.testing.assert_allclose(net.weight.detach().numpy(), weight.numpy() - 0.1, rtol=1e-6)


@pytest.mark.parametrize("shared", [False, True], ids=["disjoint", "shared"])
def test_two_optimizers(shared: bool) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    params = ours(start())
    theirs = [torch.tensor(a, requires_grad=True) for a in start()]
    for T, own in (tg, params), (torch, theirs):
        first = T.optim.Adam(own if shared else own[:2], lr=0.01)
        second = T.optim.SGD(own if shared else own[2:], lr=0.02, momentum=0.9)
        for step in range(30):
            for optimizer in (first, second, first):
                set_grads(T, own, step)
                optimizer.step()
    check_close(params, theirs)


def test_tied_parameters_move_once() -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    results = []
    for T in (tg, torch):
        net = T.nn.Sequential(T.nn.Linear(3, 3), T.nn.ReLU(), T.nn.Linear(3, 3))
        net[2].weight = net[0].weight
        with T.no_grad():
            for p in net.parameters():
                p.copy_(T.arange(p.numel()).reshape(p.shape) * 0.1)
        optimizer = T.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            net(T.ones(2, 3)).sum().backward()
            optimizer.step()
        assert net[2].weight is net[0].weight
        results.append(list(net.parameters()))
    check_close(*results, rtol=1e-5)


# --- state -----------------------------------------------------------------------------------


def model(seed: int) -> nn.Sequential:
    tg.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def train(net: nn.Module, optimizer: optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        rng = np.random.default_rng(step)
        x = tg.tensor(rng.normal(size=(8, 4)).astype(np.float32))
        y = tg.tensor(rng.integers(0, 3, 8))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        if step % 3 == 0:  # the step counts differ
            net[0].bias.grad = None
        optimizer.step()
        losses.append(loss.item())
    return losses


def through_lists(tree: Any) -> Any:
    """What a file format without tuples gives back."""
    if isinstance(tree, dict):
        return {k: through_lists(v) for k, v in tree.items()}
    return [through_lists(x) for x in tree] if isinstance(tree, (list, tuple)) else tree


def through_file(tree: Any, folder: Path) -> Any:
    tg.save(tree, folder / "state.msgpack")
    return tg.load(folder / "state.msgpack")


CARRIERS: dict[str, Callable[[Any, Path], Any]] = {
    "dict": lambda tree, folder: tree,
    "lists": lambda tree, folder: through_lists(tree),
    "file": through_file,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("name", ["SGD", "dampening", "SGD all", "Adam decay", "AdamW decay"])
def test_resumes_bit_for_bit(name: str, carrier: str, backend: str, tmp_path: Path) -> None:
    tg.set_default_device(backend)
    net = model(1)
    optimizer = MAKERS[name](optim, net.named_parameters())
    train(net, optimizer, range(7))
    optimizer.param_groups[0]["lr"] = 0.031
    checkpoint = {
        "net": {k: v.clone() for k, v in net.state_dict().items()},
        "optimizer": optimizer.state_dict(),
    }
    expected = train(net, optimizer, range(7, 15))

    carried = CARRIERS[carrier](checkpoint, tmp_path)
    other = model(2)
    again = MAKERS[name](optim, other.named_parameters())
    train(other, again, range(3))  # state to be replaced
    other.load_state_dict(carried["net"])
    again.load_state_dict(carried["optimizer"])
    assert again.param_groups[0]["lr"] == 0.031
    assert through_lists(again.state_dict()["param_groups"]) == through_lists(
        checkpoint["optimizer"]["param_groups"]
    )
    assert train(other, again, range(7, 15)) == expected
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        np.testing.assert_array_equal(host(p), host(q))
    if name == "Adam decay":
        assert again.param_groups[0]["betas"] == (0.9, 0.999)


def test_a_saved_state_is_a_copy() -> None:
    net = model(1)
    optimizer = optim.Adam(net.parameters())
    train(net, optimizer, range(2))
    state = optimizer.state_dict()
    before = state["state"]["0"]["exp_avg"].clone()
    train(net, optimizer, range(2, 4))
    assert (state["state"]["0"]["exp_avg"] == before).all() and state["state"]["0"]["step"] == 2
    optimizer.load_state_dict(state)
    train(net, optimizer, range(2, 4))
    assert (state["state"]["0"]["exp_avg"] == before).all()


def test_state_is_keyed_by_name_or_place() -> None:
    net = model(1)
    by_name = optim.Adam(net.named_parameters())
    by_place = optim.Adam([{"params": net[2].parameters()}, {"params": net[0].parameters()}])
    for optimizer in (by_name, by_place):
        net(tg.ones(1, 4)).sum().backward()
        optimizer.step()
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert by_name.state_dict()["param_groups"][0]["params"] == names
    assert list(by_name.state_dict()["state"]) == names
    state = by_place.state_dict()
    assert [g["params"] for g in state["param_groups"]] == [["0", "1"], ["2", "3"]]
    assert state["state"]["0"]["exp_avg"].shape == (3, 5)


def test_deepcopy_trains_apart_and_alike() -> None:
    net = model(1)
    optimizer = optim.Adam(net.parameters(), lr=0.01)
    train(net, optimizer, range(3))
    twin, twin_optimizer = copy.deepcopy((net, optimizer))
    at = twin[0].weight.detach().clone()
    expected = train(net, optimizer, range(3, 6))
    assert (twin[0].weight == at).all()
    assert train(twin, twin_optimizer, range(3, 6)) == expected
    assert list(twin_optimizer.state_dict()["state"]) == list(optimizer.state_dict()["state"])


# --- what belongs to a step --------------------------------------------------------------------


def test_closure_gives_the_loss() -> None:
    p = tg.tensor([1.0], requires_grad=True)
    optimizer = optim.SGD([p], lr=0.25)

    def closure() -> tg.Tensor:
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with tg.no_grad():
        losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses == [1.0, 0.25, 0.0625]
    assert optimizer.step() is None


def test_zero_grad() -> None:
    p, q = tg.ones(2, requires_grad=True), tg.ones(2, requires_grad=True)
    optimizer = optim.SGD([p, q], lr=0.5)
    p.sum().backward()
    grad = p.grad
    optimizer.zero_grad(set_to_none=False)
    assert p.grad is grad and p.grad.tolist() == [0, 0] and q.grad is None
    optimizer.zero_grad()
    assert p.grad is None


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_stale_graph_names_the_step(name: str) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = MAKERS[name](optim, net.parameters())
    x = tg.ones(1, 2)
    loss = net(x).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    message = re.escape(
        f"Linear needs its input 1 for the gradient, but {name}.step overwrote it after the forward"
    )
    with pytest.raises(tg.InPlaceError, match=message):
        loss.backward()
    net(x).sum().backward()  # a fresh graph is right


def test_a_step_leaves_graphs_of_other_parameters_alone() -> None:
    """Versions belong to a parameter, not to the flat array."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 1)
    optimizer = optim.SGD([*first.parameters(), *second.parameters()], lr=0.1)
    x = tg.ones(1, 2)
    loss = second(x).sum()
    first(x).sum().backward()
    optimizer.step()
    loss.backward()
    assert second.weight.grad.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["SGD all", "Adam", "Adam decay"])
def test_dead_units_leave_no_denormals(name: str, backend: str) -> None:
    """Gradients that vanish let moments decay by β each step, to denormals if nothing stops it."""
    tg.set_default_device(backend)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = MAKERS[name](optim, net.parameters())
    x, y = tg.randn(4, 4), tg.tensor([0, 1, 0, 1])
    for step in range(1000):
        if step == 5:  # every unit dies
            with tg.no_grad():
                net[0].bias.fill_(-100.0)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    state = optimizer.state_dict()["state"]
    kinds = ["exp_avg", "exp_avg_sq"] if "Adam" in name else ["momentum_buffer"]
    for value in [state["0"][kind] for kind in kinds] + [p.detach() for p in net.parameters()]:
        sizes = abs(host(value))
        assert np.isfinite(sizes).all()
        assert not ((sizes > 0) & (sizes < tiny(np.float32))).any()
    assert (state["0"][kinds[0]] == 0).any() or "decay" in name or "all" in name


def test_memory_of_gradients_stays_the_users() -> None:
    """The optimizer copies gradients: they neither change in a step nor become its views."""
    p = tg.ones(3, requires_grad=True)
    optimizer = optim.Adam([p], weight_decay=0.5)
    p.grad = tg.tensor([1.0, 2.0, 3.0])
    optimizer.step()
    assert p.grad.tolist() == [1.0, 2.0, 3.0]
    p.sum().backward()
    assert p.grad.tolist() == [2.0, 3.0, 4.0]


def test_repr() -> None:
    optimizer = optim.SGD([tg.ones(1), tg.ones(2)], lr=0.5)
    assert repr(optimizer) == (
        "SGD(\n  group 0: 2 parameters, lr=0.5, momentum=0.0, dampening=0.0, weight_decay=0.0, "
        "nesterov=False\n)"
    )


# --- mistakes --------------------------------------------------------------------------------

LEAF = tg.ones(2, device="numpy", requires_grad=True)
TWICE = LEAF * 2
NAMED = tg.ones(3, device="numpy", requires_grad=True)

REFUSED: list[tuple[Any, type[Exception], str]] = [
    (lambda: optim.SGD([]), ValueError, "SGD: got no parameters; pass model.parameters()"),
    (
        lambda: optim.SGD(nn.Linear(1, 1)),
        TypeError,
        "SGD: expected parameters in an order that lasts, such as model.parameters(), got Linear",
    ),
    (
        lambda: optim.Adam({LEAF}),
        TypeError,
        "Adam: expected parameters in an order that lasts, such as model.parameters(), got set",
    ),
    (lambda: optim.SGD([np.ones(2)]), TypeError, "SGD: expected tensors, got ndarray"),
    (lambda: optim.SGD([LEAF, LEAF]), ValueError, "SGD: parameter 1 comes twice"),
    (
        lambda: optim.SGD([{"params": [LEAF]}, {"params": LEAF}]),
        ValueError,
        "SGD: parameter 1 comes twice",
    ),
    (
        lambda: optim.SGD([("w", LEAF), ("w", NAMED)]),
        ValueError,
        "SGD: two parameters have the name w",
    ),
    (
        lambda: optim.SGD([TWICE]),
        ValueError,
        "SGD: parameter 0 is not a leaf but the result of Mul; pass the leaf itself",
    ),
    (
        lambda: optim.SGD([LEAF], lr=-0.1),
        ValueError,
        "SGD: lr must be a number of 0 or more, got -0.1",
    ),
    (
        lambda: optim.SGD([LEAF], lr="0.1"),
        ValueError,
        "SGD: lr must be a number of 0 or more, got '0.1'",
    ),
    (
        lambda: optim.Adam([LEAF], lr=float("nan")),
        ValueError,
        "Adam: lr must be a number of 0 or more, got nan",
    ),
    (
        lambda: optim.Adam([LEAF], eps=-1e-8),
        ValueError,
        "Adam: eps must be a number of 0 or more, got -1e-08",
    ),
    (
        lambda: optim.SGD([LEAF], momentum=-1),
        ValueError,
        "SGD: momentum must be a number of 0 or more, got -1",
    ),
    (
        lambda: optim.Adam([LEAF], betas=(0.9, 1.0)),
        ValueError,
        "Adam: betas must be two numbers in [0, 1), got (0.9, 1.0)",
    ),
    (
        lambda: optim.AdamW([LEAF], betas=(1.5, 0.9)),
        ValueError,
        "AdamW: betas must be two numbers in [0, 1), got (1.5, 0.9)",
    ),
    (
        lambda: optim.Adam([LEAF], betas=0.9),
        ValueError,
        "Adam: betas must be two numbers in [0, 1), got 0.9",
    ),
    (
        lambda: optim.SGD([LEAF], nesterov=True),
        ValueError,
        "SGD: nesterov needs a momentum above 0 and a dampening of 0",
    ),
    (
        lambda: optim.SGD([{"params": [LEAF], "momentun": 0.9}]),
        ValueError,
        "SGD: a group is a dict with params and any of lr, momentum, dampening, weight_decay, "
        "nesterov; got params, momentun",
    ),
    (
        lambda: optim.Adam([{"lr": 0.1}]),
        ValueError,
        "Adam: a group is a dict with params and any of lr, betas, eps, weight_decay; got lr",
    ),
    (
        lambda: optim.Adam([{"params": [LEAF]}, NAMED]),
        ValueError,
        "Adam: a group is a dict with params and any of lr, betas, eps, weight_decay; got Tensor",
    ),
]


@pytest.mark.parametrize("call, error, message", REFUSED)
def test_messages(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


def test_a_refused_group_leaves_no_trace() -> None:
    a, b = tg.ones(2, requires_grad=True), tg.ones(3, requires_grad=True)
    optimizer = optim.SGD([a], lr=0.1)
    before = b._array
    for bad in (
        {"params": [b], "lr": -1},
        {"params": [b, b]},
        {"params": [b, a]},
        {"params": [b, 3]},
        {"params": [b], "beta": 1},
    ):
        with pytest.raises((ValueError, TypeError)):
            optimizer.add_param_group(bad)
    assert len(optimizer.param_groups) == 1 and b._array is before
    optimizer.add_param_group({"params": [b]})
    b.grad = tg.ones(3)
    optimizer.step()
    np.testing.assert_allclose(b.detach().numpy(), 0.9)


@pytest.mark.parametrize(
    "grad, got",
    [
        (np.ones(3, np.float32), "float32[3]"),
        (np.ones((2, 1), np.float32), "float32[2, 1]"),
        (np.ones(2, np.float64), "float64[2]"),
        (np.ones(2, np.int64), "int64[2]"),
    ],
)
def test_a_wrong_gradient_changes_nothing(grad: np.ndarray, got: str) -> None:
    tg.set_default_device("numpy")
    params = [tg.ones(2, requires_grad=True) for _ in range(3)]
    optimizer = optim.Adam(
        [{"params": [("a", params[0])]}, {"params": [("b", params[1]), ("c", params[2])]}]
    )
    for p in params:
        p.grad = tg.ones(2)
    optimizer.step()
    before = [p.tolist() for p in params]
    params[2].grad = tg.tensor(grad)
    message = f"the gradient of c must be float32[2] on numpy, got {got} on numpy"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        optimizer.step()
    assert [p.tolist() for p in params] == before
    assert {s["step"] for s in optimizer.state_dict()["state"].values()} == {1}


def spoilt(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    def spoil(state: dict[str, Any]) -> Any:
        state = copy.deepcopy(state)
        return change(state) or state

    return spoil


def deleted(tree: Any, key: Any) -> None:
    del tree[key]


MISFITS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (spoilt(lambda s: s["state"]), "it is not what state_dict() gives: KeyError('param_groups')"),
    (spoilt(lambda s: deleted(s, "state")), "it is not what state_dict() gives: KeyError('state')"),
    (
        spoilt(lambda s: s.update(state=[1])),
        "it is not what state_dict() gives: AttributeError(\"'list' object has no attribute "
        "'items'\")",
    ),
    (
        spoilt(lambda s: s["param_groups"][1].update(params=["c", "b"])),
        "the parameters differ: here [['a'], ['b', 'c']], there [['a'], ['c', 'b']]; make the "
        "optimizer from the same parameters, by the same names, in the same groups",
    ),
    (
        spoilt(lambda s: s["param_groups"].pop() and None),
        "the parameters differ: here [['a'], ['b', 'c']], there [['a']]; make the optimizer from "
        "the same parameters, by the same names, in the same groups",
    ),
    (
        spoilt(lambda s: deleted(s["param_groups"][1], "betas")),
        "it sets lr, eps, weight_decay, not lr, betas, eps, weight_decay",
    ),
    (spoilt(lambda s: s["state"].update(d={"step": 1})), "there is no parameter d"),
    (
        spoilt(lambda s: s["state"]["c"].update(step=0)),
        "step of c must be an int of 1 or more, got 0",
    ),
    (
        spoilt(lambda s: deleted(s["state"]["c"], "step")),
        "step of c must be an int of 1 or more, got None",
    ),
    (
        spoilt(lambda s: deleted(s["state"]["c"], "exp_avg")),
        "expected ['exp_avg', 'exp_avg_sq'] of c, got ['exp_avg_sq']",
    ),
    (
        spoilt(lambda s: s["state"]["c"].update(exp_avg=tg.ones(2, 1))),
        "exp_avg of c must be a tensor of shape [2], got [2, 1]",
    ),
    (
        spoilt(lambda s: s["state"]["c"].update(exp_avg_sq="x")),
        "exp_avg_sq of c must be a tensor of shape [2], got str",
    ),
]


@pytest.mark.parametrize("spoil, message", MISFITS)
def test_a_state_that_does_not_fit_changes_nothing(spoil: Any, message: str) -> None:
    def make() -> tuple[list[tg.Tensor], optim.Adam]:
        params = [tg.ones(2, requires_grad=True) for _ in range(3)]
        named = list(zip("abc", params, strict=True))
        return params, optim.Adam([{"params": named[:1]}, {"params": named[1:]}], lr=0.1)

    params, optimizer = make()
    for p in params:
        p.grad = tg.ones(2)
    optimizer.step()
    bad = spoil(optimizer.state_dict())
    bad.setdefault("param_groups", [{}])[0]["lr"] = 5.0
    if "KeyError('param_groups')" in message:
        del bad["param_groups"]
    before = repr(optimizer.state_dict())
    with pytest.raises(ValueError, match=f"^Adam: the state does not fit: {re.escape(message)}$"):
        optimizer.load_state_dict(bad)
    assert repr(optimizer.state_dict()) == before


def test_state_of_another_kind_of_optimizer() -> None:
    a = tg.ones(2, requires_grad=True)
    sgd, adam = optim.SGD([a]), optim.Adam([a])
    with pytest.raises(ValueError, match="it sets lr, betas, eps, weight_decay, not lr, momentum"):
        sgd.load_state_dict(adam.state_dict())
    bad = adam.state_dict()
    bad["param_groups"][0]["lr"] = -1
    with pytest.raises(ValueError, match="Adam: lr must be a number of 0 or more, got -1"):
        adam.load_state_dict(bad)


def test_a_parameter_that_changed_its_shape() -> None:
    a = tg.ones(2, requires_grad=True)
    optimizer = optim.SGD([a], lr=0.1, momentum=0.9)
    a.grad = tg.ones(2)
    optimizer.step()
    a.data, a.grad = tg.ones(3), tg.ones(3)
    message = "SGD: the state does not fit: momentum_buffer of 0 must be a tensor of shape [3]"
    for _ in range(2):
        with pytest.raises(ValueError, match=re.escape(message)):
            optimizer.step()
