"""Layers and losses: PyTorch's initial values, names, registration and messages."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import numpy as np
import pytest

import tinygrad_ish as tg
from tinygrad_ish import nn
from tinygrad_ish.nn import functional as F

from .backends import BACKENDS

NO_TORCH = "PyTorch is not installed: pip install -e '.[parity]'"


def torch_module() -> Any:
    return pytest.importorskip("torch", reason=NO_TORCH)


@pytest.fixture(params=["tinygrad_ish", "torch"])
def lib(request: Any) -> Any:
    """One after the other: what holds for PyTorch holds here."""
    return tg if request.param == "tinygrad_ish" else torch_module()


def mlp(T: Any) -> Any:
    return T.nn.Sequential(T.nn.Flatten(), T.nn.Linear(6, 4), T.nn.ReLU(), T.nn.Linear(4, 2))


def nested(T: Any) -> Any:
    """Every way to hold a tensor: nested, shared twice, buffers, None, a plain attribute."""

    class Block(T.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.fc = T.nn.Linear(width, width, bias=False)
            self.scale = T.nn.Parameter(T.ones(width))
            self.register_buffer("count", T.tensor(3))
            self.register_buffer("nothing", None)
            self.register_parameter("absent", None)

        def forward(self, x: Any) -> Any:
            return self.fc(x) * self.scale

    class Model(T.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", T.zeros(3))
            self.block = Block(3)
            self.again = self.block
            self.head = T.nn.Sequential(T.nn.Linear(3, 3), T.nn.ReLU())
            self.tied = T.nn.Linear(3, 3)
            self.tied.weight = self.head[0].weight
            self.temperature = T.nn.Parameter(T.tensor(2.0))
            self.plain = T.zeros(2)
            self.none = None

        def forward(self, x: Any) -> Any:
            x = self.again(self.block(x - self.mean))
            return self.tied(self.head(x)) / self.temperature

    return Model()


# --- what a module holds ---------------------------------------------------------------------


@pytest.mark.parametrize("make", [mlp, nested])
def test_names_shapes_and_order_are_pytorchs(make: Any) -> None:
    torch = torch_module()
    net, other = make(tg), make(torch)

    def shapes(named: Any) -> list[Any]:
        return [(name, tuple(t.shape)) for name, t in named]

    assert shapes(net.state_dict().items()) == shapes(other.state_dict().items())
    for way in (
        lambda m: shapes(m.named_parameters()),
        lambda m: shapes(m.named_parameters(prefix="net")),
        lambda m: shapes(m.named_parameters(recurse=False)),
        lambda m: shapes(m.named_buffers()),
        lambda m: shapes(m.named_buffers(recurse=False)),
        lambda m: [tuple(p.shape) for p in m.parameters()],
        lambda m: [tuple(p.shape) for p in m.parameters(recurse=False)],
        lambda m: [tuple(b.shape) for b in m.buffers()],
        lambda m: [(n, type(x).__name__) for n, x in m.named_modules()],
        lambda m: [(n, type(x).__name__) for n, x in m.named_modules(prefix="a.b")],
        lambda m: [(n, type(x).__name__) for n, x in m.named_children()],
        lambda m: [type(x).__name__ for x in m.modules()],
        lambda m: [type(x).__name__ for x in m.children()],
    ):
        assert way(net) == way(other)
    assert repr(net) == repr(other)


@pytest.mark.parametrize("make", [mlp, nested])
def test_weights_move_both_ways(make: Any) -> None:
    torch = torch_module()
    net, other = make(tg), make(torch)
    result = net.load_state_dict({k: v.numpy() for k, v in other.state_dict().items()})
    assert result.missing_keys == result.unexpected_keys == []
    x = np.random.default_rng(0).normal(size=(5, 6 if make is mlp else 3)).astype(np.float32)
    expected = other(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(net(tg.tensor(x)).detach().numpy(), expected, rtol=1e-5, atol=1e-6)

    fresh = make(torch)
    fresh.load_state_dict({k: torch.tensor(v.numpy()) for k, v in net.state_dict().items()})
    np.testing.assert_array_equal(fresh(torch.tensor(x)).detach().numpy(), expected)


REPRS = [
    lambda T: T.nn.Linear(3, 4),
    lambda T: T.nn.Linear(3, 4, bias=False),
    lambda T: T.nn.ReLU(),
    lambda T: T.nn.ReLU(inplace=True),
    lambda T: T.nn.Sigmoid(),
    lambda T: T.nn.Tanh(),
    lambda T: T.nn.Softmax(dim=1),
    lambda T: T.nn.Flatten(),
    lambda T: T.nn.Flatten(0, 2),
    lambda T: T.nn.Identity(),
    lambda T: T.nn.LeakyReLU(),
    lambda T: T.nn.LeakyReLU(0.2, inplace=True),
    lambda T: T.nn.GELU(),
    lambda T: T.nn.GELU(approximate="tanh"),
    lambda T: T.nn.LogSoftmax(dim=-1),
    lambda T: T.nn.LayerNorm(4),
    lambda T: T.nn.LayerNorm((3, 4), eps=0.1, bias=False),
    lambda T: T.nn.LayerNorm([4], elementwise_affine=False),
    lambda T: T.nn.BCEWithLogitsLoss(pos_weight=T.ones(3)),
    lambda T: T.nn.NLLLoss(weight=T.ones(3)),
    lambda T: T.nn.L1Loss(),
    lambda T: T.nn.BCELoss(),
    lambda T: T.nn.Dropout(),
    lambda T: T.nn.Dropout(0.25, inplace=True),
    lambda T: T.nn.Sequential(),
    lambda T: T.nn.Sequential(T.nn.Sequential(T.nn.Linear(1, 2)), T.nn.Tanh()),
    lambda T: T.nn.CrossEntropyLoss(weight=T.ones(3), label_smoothing=0.1),
    lambda T: T.nn.MSELoss(reduction="sum"),
    lambda T: type("Lines", (T.nn.Module,), {"extra_repr": lambda self: "a=1\nb=2"})(),
    lambda T: type("One", (T.nn.Sequential,), {"extra_repr": lambda self: "a=1"})(T.nn.ReLU()),
]


@pytest.mark.parametrize("make", REPRS)
def test_repr_is_pytorchs(make: Any) -> None:
    assert repr(make(tg)) == repr(make(torch_module()))


def test_attributes(lib: Any) -> None:
    """A value decides where a name goes."""
    m = lib.nn.Module()
    m.a = lib.nn.Parameter(lib.ones(1))
    m.b = lib.nn.Linear(1, 1)
    m.register_buffer("c", lib.zeros(1))
    m.d = 4
    second = lib.nn.Parameter(lib.zeros(2))
    m.a = second
    assert m.a is second and dict(m.named_parameters(recurse=False)) == {"a": second}
    m.a = None
    assert m.a is None and list(m.named_parameters(recurse=False)) == []
    m.a = second  # its place was kept
    assert [n for n, _ in m.named_parameters()] == ["a", "b.weight", "b.bias"]
    m.c = lib.ones(2)
    assert m.state_dict()["c"].tolist() == [1, 1]
    m.c = None
    assert "c" not in m.state_dict() and m.c is None
    m.b = None
    assert m.b is None and list(m.children()) == []
    m.d = lib.nn.ReLU()  # a plain attribute becomes a module, then a parameter
    assert "d" not in vars(m) and [n for n, _ in m.named_children()] == ["d"]
    m.d = second
    assert list(m.children()) == []
    assert [n for n, _ in m.named_parameters(recurse=False)] == ["a"]  # each once
    del m.a
    assert [n for n, _ in m.named_parameters(recurse=False)] == ["d"]
    assert not hasattr(m, "a")
    with pytest.raises(AttributeError):
        del m.a
    m.e = lib.zeros(3)  # a tensor is no parameter
    assert "e" not in m.state_dict() and "e" in vars(m)
    assert set(dir(m)) >= {"d", "c", "b", "e", "forward"}
    for name, value in (("d", 3), ("d", lib.zeros(1)), ("d", lib.nn.ReLU()), ("b", 3), ("c", 3)):
        with pytest.raises(TypeError):
            setattr(m, name, value)
    for register in (m.register_parameter, m.register_buffer, m.add_module):
        for name in ("x.y", "", "training", "forward"):
            with pytest.raises((KeyError, ValueError)):
                register(name, None)
    for register in (m.register_parameter, m.register_buffer, m.add_module):
        with pytest.raises(TypeError):
            register("new", 3)
    assert not hasattr(m, "new")


def test_registration_messages() -> None:
    m = nn.Sequential(nn.Linear(2, 2))
    cases: list[tuple[Any, type[Exception], str]] = [
        (
            lambda: setattr(m[0], "weight", tg.ones(2, 2)),
            TypeError,
            "Linear: 'weight' must be a Parameter or None, got Tensor",
        ),
        (
            lambda: m.add_module("x", 3),  # type: ignore[arg-type]
            TypeError,
            "Sequential: 'x' must be a Module or None, got int",
        ),
        (
            lambda: m.register_buffer("a.b", None),
            ValueError,
            "Sequential: a name is a string without dots, got 'a.b'",
        ),
        (
            lambda: m.register_buffer("training", None),
            ValueError,
            "Sequential has an attribute 'training' already",
        ),
        (lambda: m.wieght, AttributeError, "'Sequential' has no attribute 'wieght'"),
        (lambda: m(1), TypeError, "linear: input must be a Tensor, got int"),
        (lambda: nn.Module()(), TypeError, "Module defines no forward(self, ...)"),
        (
            lambda: nn.Sequential(nn.ReLU(), F.relu),
            TypeError,
            "Sequential: expected modules, got function at 1",
        ),
        (
            lambda: nn.Linear(2, 1.5),  # type: ignore[arg-type]
            ValueError,
            "Linear: out_features must be an int of 0 or more, got 1.5",
        ),
        (
            lambda: nn.Linear(-1, 2),
            ValueError,
            "Linear: in_features must be an int of 0 or more, got -1",
        ),
        (
            lambda: nn.Parameter([1.0]),  # type: ignore[arg-type]
            TypeError,
            "Parameter: expected a Tensor, got list",
        ),
        (
            lambda: nn.Parameter(tg.ones(2).long()),
            TypeError,
            "requires_grad: only floats have gradients, not int64",
        ),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            call()


def test_init_comes_first() -> None:
    class Early(nn.Module):
        def __init__(self, value: Any) -> None:
            self.width = 3  # a plain attribute may
            self.value = value
            super().__init__()

    message = re.escape(
        "Early: call super().__init__() before setting parameters, buffers and modules"
    )
    for value in (nn.Linear(1, 1), nn.Parameter(tg.ones(1))):
        with pytest.raises(AttributeError, match=message):
            Early(value)
    assert Early(4).width == 3

    class Never(nn.Module):
        def __init__(self) -> None:
            self.register_buffer("b", None)

    with pytest.raises(AttributeError, match=re.escape("Never: call super().__init__()")):
        Never()


def test_parameter() -> None:
    t = tg.ones(2)
    p = nn.Parameter(t)
    assert isinstance(p, tg.Tensor) and p.requires_grad and p.is_leaf
    assert type(p * 2) is tg.Tensor
    assert repr(p).startswith("Parameter containing:\ntensor([1., 1.]")
    assert not nn.Parameter(tg.ones(1).long(), requires_grad=False).requires_grad
    twin = copy.deepcopy(p)
    assert type(twin) is nn.Parameter and twin.requires_grad and twin is not p


# --- walking ---------------------------------------------------------------------------------


def test_apply_goes_below_first(lib: Any) -> None:
    order: list[str] = []
    net = nested(lib)
    names = {id(m): n for n, m in net.named_modules()}
    assert net.apply(lambda m: order.append(names[id(m)])) is net
    assert order == ["block.fc", "block", "head.0", "head.1", "head", "tied", ""]


def test_train_and_eval_reach_every_module() -> None:
    class Frozen(nn.Linear):
        def train(self, mode: bool = True) -> nn.Module:
            return super().train(False)

    net = nn.Sequential(nn.Sequential(nn.ReLU()), Frozen(1, 1))
    assert net.training and net.eval() is net
    assert not any(m.training for m in net.modules())
    assert net.train() is net
    assert [m.training for m in net.modules()] == [True, True, True, False]


def test_requires_grad_and_zero_grad() -> None:
    net = mlp(tg)
    assert net.requires_grad_(False) is net
    assert not any(p.requires_grad for p in net.parameters())
    net.requires_grad_()
    net(tg.ones(2, 6)).sum().backward()
    grads = [p.grad for p in net.parameters()]
    net.zero_grad(set_to_none=False)
    assert all(p.grad is g and not g.any() for p, g in zip(net.parameters(), grads, strict=True))
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_to_casts_floats_alone() -> None:
    net = nested(tg)
    net.register_buffer("big", tg.tensor(2**53 + 1))
    net(tg.ones(1, 3)).sum().backward()
    before = list(net.parameters())
    weight = net.tied.weight.detach().clone()
    assert net.to(tg.float64) is net
    assert all(p is q and p.requires_grad for p, q in zip(net.parameters(), before, strict=True))
    assert all(p.dtype == p.grad.dtype == tg.float64 for p in net.parameters())
    assert (net.mean.dtype, net.block.count.dtype) == (tg.float64, tg.int64)
    assert net.big.item() == 2**53 + 1
    assert net.tied.weight is net.head[0].weight
    assert net(tg.ones(1, 3, dtype=tg.float64)).dtype == tg.float64
    net.float()
    assert (net.tied.weight == weight).all() and net.tied.weight.dtype == tg.float32
    net.to(tg.float16)
    assert net.big.item() == 2**53 + 1 and net.tied.weight.dtype == tg.float16
    net.to("cpu").to(dtype="float32", device="cpu").cpu().double().to(tg.ones(1))
    assert net.tied.weight.dtype == tg.float32


def test_to_refuses_integers() -> None:
    net = mlp(tg)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(TypeError, match=re.escape("to: expected a float dtype, got int64")):
        net.to(tg.int64)
    assert all((v == before[k]).all() for k, v in net.state_dict().items())


def test_to_where_it_is_keeps_graphs_valid() -> None:
    net = nn.Linear(2, 2)
    loss = net(tg.ones(1, 2)).sum()
    net.to("cpu").float()
    with tg.no_grad():
        net.weight.zero_()
    with pytest.raises(tg.InPlaceError, match="zero_ overwrote it"):
        loss.backward()


def test_to_another_backend() -> None:
    net = nn.Linear(2, 2)
    net(tg.ones(1, 2)).sum().backward()
    net.to("numpy")
    assert {t.backend.name for p in net.parameters() for t in (p, p.grad)} == {"numpy"}


def test_deepcopy_keeps_what_is_shared() -> None:
    net = nested(tg)
    twin = copy.deepcopy(net)
    assert twin.again is twin.block and twin.tied.weight is twin.head[0].weight
    assert twin.block.fc.weight is not net.block.fc.weight
    x = tg.randn(2, 3)
    expected = net(x).tolist()
    assert twin(x).tolist() == expected
    with tg.no_grad():
        twin.tied.weight.zero_()
    assert net(x).tolist() == expected
    net(x).sum().backward()
    assert copy.deepcopy(net).tied.weight.grad.tolist() == net.tied.weight.grad.tolist()
    assert list(twin.state_dict()) == list(net.state_dict())


# --- loading ---------------------------------------------------------------------------------


def test_state_dict_shares_memory_and_no_graph() -> None:
    net = nn.Linear(2, 2)
    state = net.state_dict()
    assert not any(t.requires_grad for t in state.values())
    state["weight"].zero_()
    assert not net.weight.any()


def spoil(state: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {k: v for k, v in {**state, **changes}.items() if v is not None}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"1.bias": None}, "missing: 1.bias"),
        ({"1.bias": None, "3.weight": None}, "missing: 1.bias, 3.weight"),
        ({"extra": np.ones(1), "a.b": np.ones(1)}, "unexpected: extra, a.b"),
        ({"1.bias": np.ones((4, 1))}, "1.bias: expected shape [4], got [4, 1]"),
        ({"3.weight": np.ones((4, 2))}, "3.weight: expected shape [2, 4], got [4, 2]"),
        (
            {"1.bias": np.ones(3), "3.bias": None, "extra": np.ones(1), "3.weight": np.ones(2)},
            "missing: 3.bias; unexpected: extra; 1.bias: expected shape [4], got [3]; "
            "3.weight: expected shape [2, 4], got [2]",
        ),
    ],
)
def test_load_refuses_before_it_writes(changes: dict[str, Any], message: str) -> None:
    net, good = mlp(tg), mlp(tg).state_dict()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(
        ValueError, match=f"^{re.escape('load_state_dict into Sequential: ' + message)}$"
    ):
        net.load_state_dict(spoil(good, **changes))
    assert all((v == before[k]).all() for k, v in net.state_dict().items())


@pytest.mark.parametrize("bad", ["text", object(), 1j * np.ones(4)])
def test_load_refuses_what_is_no_tensor(bad: Any) -> None:
    net, good = mlp(tg), mlp(tg).state_dict()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises((TypeError, ValueError)):
        net.load_state_dict(spoil(good, **{"3.bias": bad}))
    assert all((v == before[k]).all() for k, v in net.state_dict().items())
    message = (
        "load_state_dict into Sequential: expected a dict of tensors by name, got str; read a "
        "file with tinygrad_ish.load(path)"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        net.load_state_dict("net.msgpack")  # type: ignore[arg-type]


def test_load_what_fits() -> None:
    net, good = mlp(tg), mlp(tg).state_dict()
    bias = net[1].bias.detach().clone()
    result = net.load_state_dict(spoil(good, extra=np.ones(1), **{"1.bias": None}), strict=False)
    assert result == (["1.bias"], ["extra"])
    assert (net[1].bias == bias).all() and (net[1].weight == good["1.weight"]).all()
    with pytest.raises(ValueError, match=r"1\.bias: expected shape \[4\], got \[3\]"):
        net.load_state_dict(spoil(good, **{"1.bias": np.ones(3)}), strict=False)


def test_load_converts_and_is_seen_by_graphs() -> None:
    net = nn.Linear(2, 1)
    weight = net.weight
    loss = net(tg.ones(1, 2)).sum()
    net.load_state_dict({"weight": np.array([[1, 2]]), "bias": np.array([0.5])})
    assert net.weight is weight and net.weight.dtype == tg.float32
    assert net(tg.ones(1, 2)).item() == 3.5
    with pytest.raises(tg.InPlaceError, match=r"Linear needs its input 1 .* copy_ overwrote it"):
        loss.backward()


# --- initial values --------------------------------------------------------------------------


def test_linear_starts_as_in_pytorch() -> None:
    torch = torch_module()
    for fan_in, fan_out, rows in ((100, 2000, "weight"), (10, 20000, "bias")):
        tg.manual_seed(3)
        torch.manual_seed(3)
        got = getattr(nn.Linear(fan_in, fan_out), rows).detach().numpy().ravel()
        theirs = getattr(torch.nn.Linear(fan_in, fan_out), rows).detach().numpy().ravel()
        bound = 1 / math.sqrt(fan_in)
        for values in (got, theirs):
            assert abs(values).max() <= np.float32(bound)
            assert abs(values).max() > 0.999 * bound
            n = len(values)
            assert abs(values.mean()) < 4 * bound / math.sqrt(3 * n)
            # the greatest distance to the distribution function (Kolmogorov and Smirnov)
            expected = (np.sort(values) / bound + 1) / 2
            assert abs(expected - (np.arange(n) + 0.5) / n).max() < 2 / math.sqrt(n)


def test_linear_without_features_or_bias() -> None:
    assert nn.Linear(0, 3)(tg.ones(2, 0)).tolist() == [[0.0] * 3] * 2
    assert nn.Linear(3, 0)(tg.ones(2, 3)).shape == (2, 0)
    layer = nn.Linear(np.int64(2), 3, bias=False, dtype=tg.float64)
    assert layer.bias is None and list(layer.state_dict()) == ["weight"]
    assert layer.weight.dtype == tg.float64
    assert layer(tg.ones(4, 5, 2, dtype=tg.float64)).shape == (4, 5, 3)
    assert layer(tg.ones(2, dtype=tg.float64)).shape == (3,)


def test_the_seed_fixes_the_weights() -> None:
    def draw(seed: int) -> list[float]:
        tg.manual_seed(seed)
        return nn.Linear(2, 2).weight.tolist()

    assert draw(1) == draw(1) != draw(2)
    layer = nn.Linear(2, 2)
    before = layer.weight.tolist()
    layer.reset_parameters()
    assert layer.weight.tolist() != before and layer.weight.requires_grad


def test_init_functions() -> None:
    w = nn.Parameter(tg.empty(200, 300))
    assert nn.init.constant_(w, 0.5) is w and (w == 0.5).all()
    assert (nn.init.ones_(w) == 1).all() and (nn.init.zeros_(w) == 0).all()
    nn.init.uniform_(w, 2.0, 3.0)
    assert w.min().item() >= 2 and w.max().item() <= 3 and abs(w.mean().item() - 2.5) < 0.01
    nn.init.normal_(w, 1.0, 2.0)
    assert abs(w.mean().item() - 1) < 0.05 and abs(w.std().item() - 2) < 0.05
    nn.init.kaiming_uniform_(w)
    assert w.max().item() == pytest.approx(math.sqrt(6 / 300), rel=1e-3)
    assert w.requires_grad and w.is_leaf
    with pytest.raises(ValueError, match=r"kaiming_uniform_: expected a matrix, got shape \[3\]"):
        nn.init.kaiming_uniform_(tg.ones(3))


# --- Sequential ------------------------------------------------------------------------------


def test_sequential_is_a_list_of_modules(lib: Any) -> None:
    layers = [lib.nn.Linear(2, 3), lib.nn.ReLU(), lib.nn.Linear(3, 1)]
    net = lib.nn.Sequential(*layers)
    assert len(net) == 3 and list(net) == layers
    assert net[0] is layers[0] and net[-1] is layers[2]
    with pytest.raises(IndexError):
        net[3]
    tail = net[1:]
    assert type(tail) is lib.nn.Sequential and list(tail) == layers[1:]
    assert list(tail.state_dict()) == ["2.weight", "2.bias"]
    assert len(net[:0]) == 0
    assert net.append(lib.nn.ReLU()) is net and len(net) == 4
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    net[2] = lib.nn.Linear(3, 5)
    assert net(lib.ones(1, 2)).shape == (1, 5)
    assert [n for n, _ in net.named_children()] == ["0", "1", "2", "3"]
    twice = lib.nn.Sequential(layers[1], layers[0], layers[1])
    assert len(twice) == len(list(twice)) == 3 and len(list(twice.children())) == 2
    assert twice(lib.ones(1, 2)).shape == (1, 3)


def test_sequential_by_name() -> None:
    net = nn.Sequential({"fc": nn.Linear(2, 3), "act": nn.ReLU()})
    assert list(net.state_dict()) == ["fc.weight", "fc.bias"] and net.fc is net[0]
    net.append(nn.Linear(3, 1))
    assert [n for n, _ in net.named_children()] == ["fc", "act", "2"]
    assert len(nn.Sequential({})) == 0
    with pytest.raises(ValueError, match=r"without dots, got 'a\.b'"):
        nn.Sequential({"a.b": nn.ReLU()})


def test_append_to_a_slice_loses_nothing() -> None:
    tail = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))[1:]
    tail.append(nn.Linear(1, 4))
    assert [n for n, _ in tail.named_children()] == ["1", "2", "3"]
    assert tail(tg.ones(1, 2)).shape == (1, 4)


def test_an_empty_sequential_gives_its_input() -> None:
    x = tg.ones(2)
    assert nn.Sequential()(x) is x and nn.Identity()(x) is x


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [tg.float32, tg.float64], ids=str)
@pytest.mark.parametrize("shape", [(17, 33), (33,), (2, 5, 33), (0, 33)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_fused_equals_unfused(bias: bool, shape: tuple[int, ...], dtype: Any, backend: str) -> None:
    tg.set_default_device(backend)
    layers = [nn.Linear(33, 19, bias=bias), nn.ReLU(), nn.Linear(19, 7, bias=bias), nn.ReLU(True)]
    net = nn.Sequential(*layers).to(dtype)
    x = tg.randn(*shape, dtype=dtype)
    g = tg.randn(*shape[:-1], 7, dtype=dtype)

    def run(forward: Any) -> list[np.ndarray]:
        net.zero_grad()
        inputs = x.detach().requires_grad_()
        out = forward(inputs)
        out.backward(g)
        found = [out, inputs.grad, *(p.grad for p in net.parameters())]
        return [t.detach().cpu().numpy() for t in found]

    def unfused(h: tg.Tensor) -> tg.Tensor:
        for layer in layers:
            h = layer(h)
        return h

    for fused, plain in zip(run(net), run(unfused), strict=True):
        np.testing.assert_array_equal(fused, plain)


def test_fusion_at_extremes() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU())
    with tg.no_grad():
        net[0].weight.copy_(tg.tensor([[1.0, 0], [0, 1], [-1, 0], [1, 1]]))
        net[0].bias.zero_()
    x = tg.tensor([[math.nan, 0.0], [math.inf, -math.inf], [-0.0, 0.0], [1e-45, -1e-45]])

    def run(forward: Any) -> Any:
        inputs = x.detach().requires_grad_()
        out = forward(inputs)
        out.sum().backward()
        return out.detach().numpy(), inputs.grad.numpy()

    for fused, plain in zip(run(net), run(lambda h: net[1](net[0](h))), strict=True):
        np.testing.assert_array_equal(fused, plain)


def test_only_plain_layers_are_fused() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: tg.Tensor) -> tg.Tensor:
            return super().forward(input) * 2

    class Leaky(nn.ReLU):
        def forward(self, input: tg.Tensor) -> tg.Tensor:
            return tg.maximum(input, input * 0.5)

    doubled = Doubled(1, 1)
    with tg.no_grad():
        doubled.weight.fill_(3.0)
        doubled.bias.fill_(0.0)
    assert nn.Sequential(doubled, nn.ReLU())(tg.ones(1, 1)).item() == 6
    plain = nn.Linear(1, 1)
    plain.load_state_dict({"weight": np.array([[-2.0]]), "bias": np.zeros(1)})
    assert nn.Sequential(plain, Leaky())(tg.ones(1, 1)).item() == -1


# --- layers and losses against PyTorch -------------------------------------------------------

LAYERS = [
    lambda T: T.nn.ReLU(),
    lambda T: T.nn.Sigmoid(),
    lambda T: T.nn.Tanh(),
    lambda T: T.nn.Softmax(dim=1),
    lambda T: T.nn.Softmax(dim=-1),
    lambda T: T.nn.Flatten(),
    lambda T: T.nn.Flatten(0, -2),
    lambda T: T.nn.Identity(),
    lambda T: T.nn.LeakyReLU(),
    lambda T: T.nn.LeakyReLU(negative_slope=0.3),
    lambda T: T.nn.GELU(),
    lambda T: T.nn.GELU("tanh"),
    lambda T: T.nn.LogSoftmax(dim=1),
    lambda T: T.nn.LayerNorm(4, dtype=T.float64),
    lambda T: T.nn.LayerNorm((3, 4), 0.01, bias=False, dtype=T.float64),
    lambda T: T.nn.LayerNorm([3, 4], elementwise_affine=False),
]


@pytest.mark.parametrize("make", LAYERS)
def test_layers_are_pytorchs(make: Any) -> None:
    torch = torch_module()
    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    results = []
    for T in (tg, torch):
        inputs = T.tensor(x, requires_grad=True)
        out = make(T)(inputs)
        (out * out).sum().backward()
        results.append((out.detach().numpy(), inputs.grad.numpy()))
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


def test_relu_in_place(lib: Any) -> None:
    x = lib.tensor([-1.0, 2.0])
    for out in (lib.nn.ReLU(inplace=True)(x), lib.nn.functional.relu(x, inplace=True)):
        assert out is x and x.tolist() == [0.0, 2.0]
    leaf = lib.tensor([-1.0, 2.0], requires_grad=True)
    hidden = leaf * 3
    assert lib.nn.functional.relu(hidden, True) is hidden
    hidden.sum().backward()
    assert leaf.grad.tolist() == [0.0, 3.0]


CROSS_ENTROPY: list[dict[str, Any]] = [
    {},
    {"weight": True},
    {"ignore_index": 1},
    {"label_smoothing": 0.1},
    {"weight": True, "ignore_index": 2, "label_smoothing": 0.3},
    {"weight": True, "label_smoothing": 1.0},
]
LABELLED = [
    ((5, 4), (5,)),
    ((4,), ()),
    ((2, 4, 3), (2, 3)),
    ((2, 4, 3, 2), (2, 3, 2)),
    ((0, 4), (0,)),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape, labels", LABELLED, ids=str)
@pytest.mark.parametrize("options", CROSS_ENTROPY, ids=str)
def test_cross_entropy_is_pytorchs(
    options: dict[str, Any], shape: Any, labels: Any, reduction: str, backend: str
) -> None:
    torch = torch_module()
    tg.set_default_device(backend)
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=shape) * 5, rng.integers(0, 4, labels), rng.uniform(0.1, 2, 4)
    y.ravel()[-1:] = options.get("ignore_index", -100) if y.size > 1 else 0
    results = []
    for T in (tg, torch):
        weight = T.tensor(w) if "weight" in options else None
        loss = T.nn.CrossEntropyLoss(**{**options, "weight": weight}, reduction=reduction)
        inputs = T.tensor(x, requires_grad=True)
        out = loss(inputs, T.tensor(y))
        (out * 1.5).sum().backward()
        results.append((out.detach().cpu().numpy(), inputs.grad.cpu().numpy()))
    for got, expected in zip(*results, strict=True):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_mse_is_pytorchs(reduction: str) -> None:
    torch = torch_module()
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    results = []
    for T in (tg, torch):
        x, y = T.tensor(a, requires_grad=True), T.tensor(b, requires_grad=True)
        out = T.nn.MSELoss(reduction=reduction)(x, y)
        (out * 1.5).sum().backward()
        results.append((out.detach().numpy(), x.grad.numpy(), y.grad.numpy()))
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)


LOSSES: list[tuple[Any, str]] = [
    (lambda T, w, **o: T.nn.L1Loss(**o), "numbers"),
    (lambda T, w, **o: T.nn.BCELoss(**o), "shares"),
    (lambda T, w, **o: T.nn.BCELoss(w, **o), "shares"),
    (lambda T, w, **o: T.nn.BCEWithLogitsLoss(**o), "numbers"),
    (lambda T, w, **o: T.nn.BCEWithLogitsLoss(w, pos_weight=w * 2, **o), "numbers"),
    (lambda T, w, **o: T.nn.NLLLoss(**o), "labels"),
    (lambda T, w, **o: T.nn.NLLLoss(w, ignore_index=1, **o), "labels"),
]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("make, kind", LOSSES, ids=[str(i) for i in range(len(LOSSES))])
def test_losses_are_pytorchs(make: Any, kind: str, reduction: str) -> None:
    torch = torch_module()
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (6, 4)) if kind == "shares" else rng.normal(size=(6, 4)) * 3
    y = rng.integers(0, 4, 6) if kind == "labels" else rng.uniform(0, 1, (6, 4))
    w, results = rng.uniform(0.1, 2, 4), []
    for T in (tg, torch):
        inputs = T.tensor(x, requires_grad=True)
        out = make(T, T.tensor(w), reduction=reduction)(inputs, T.tensor(y))
        (out * 1.5).sum().backward()
        results.append((out.detach().numpy(), inputs.grad.numpy()))
    for got, expected in zip(*results, strict=True):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


def test_layer_norm_holds_its_parameters(lib: Any) -> None:
    shapes = {n: tuple(t.shape) for n, t in lib.nn.LayerNorm((3, 4)).state_dict().items()}
    assert shapes == {"weight": (3, 4), "bias": (3, 4)}
    assert list(lib.nn.LayerNorm(4, bias=False).state_dict()) == ["weight"]
    plain = lib.nn.LayerNorm(4, elementwise_affine=False)
    assert list(plain.parameters()) == [] and plain.weight is None and plain.bias is None
    norm = lib.nn.LayerNorm(2)
    assert norm.weight.tolist() == [1, 1] and norm.bias.tolist() == [0, 0]


def test_losses_hold_their_weights() -> None:
    weighted = nn.BCEWithLogitsLoss(tg.ones(3), pos_weight=tg.ones(3))
    assert list(weighted.state_dict()) == ["weight", "pos_weight"]
    loss = nn.CrossEntropyLoss(weight=tg.ones(3))
    assert list(loss.state_dict()) == ["weight"] and list(loss.parameters()) == []
    assert loss.double().weight.dtype == tg.float64
    assert list(nn.CrossEntropyLoss().state_dict()) == []


def test_labels_may_be_of_any_integer_dtype() -> None:
    x = tg.randn(3, 4)
    expected = F.cross_entropy(x, tg.tensor([0, 3, 1])).item()
    for dtype in (tg.int32, tg.uint8, tg.int8):
        assert F.cross_entropy(x, tg.tensor([0, 3, 1], dtype=dtype)).item() == expected


# --- dropout ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_dropout_drops_its_share(p: float, backend: str) -> None:
    x = tg.ones(100, 200, device=backend, requires_grad=True)
    y = nn.Dropout(p)(x)
    kept = (y != 0).cpu().numpy()
    assert abs(kept.mean() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / kept.size)
    for axis in (0, 1):  # no row or column is favoured
        spread = 6 * math.sqrt(p * (1 - p) / kept.shape[axis])
        assert (abs(kept.mean(axis) - (1 - p)) < spread).all()
    np.testing.assert_allclose(y.detach().cpu().numpy(), kept / (1 - p), rtol=1e-6)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.cpu().numpy(), y.detach().cpu().numpy())


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_draws_anew_until_seeded_again(backend: str) -> None:
    x = tg.ones(64, device=backend)

    def mask() -> list[float]:
        return F.dropout(x).tolist()

    tg.manual_seed(5)
    first, state, second = mask(), tg.get_rng_state(), mask()
    assert first != second == (tg.set_rng_state(state), mask())[1]
    assert tg.get_rng_state()[-2:].tolist() == [5, 2]
    tg.manual_seed(5)
    assert mask() == first
    tg.manual_seed(2**64 - 1)
    assert mask() not in (first, second)


def test_dropout_by_a_generator_that_nobody_seeded() -> None:
    k = tg.get_default_backend()
    states = [tg.Generator().state(k).tolist() for _ in range(2)]
    assert states[0] != states[1] and states[0][1] == 0
    own = tg.Generator()
    array = own.state(k)
    own.set_state(tg.Generator().manual_seed(9).get_state())
    assert own.state(k) is array and array.tolist() == [9, 0]


def test_evaluation_and_no_probability_draw_nothing(lib: Any) -> None:
    before = lib.get_rng_state().tolist()
    x = lib.ones(5)
    drop = lib.nn.Dropout(0.7)
    assert drop.eval()(x) is x and lib.nn.Dropout(0)(x).tolist() == x.tolist()
    assert lib.nn.functional.dropout(x, 0.7, training=False) is x
    assert lib.get_rng_state().tolist() == before
    assert lib.nn.functional.dropout(x, 1.0).tolist() == [0] * 5


def test_dropout_in_place() -> None:
    x = tg.ones(1000)
    assert F.dropout(x, 0.5, inplace=True) is x and sorted(set(x.tolist())) == [0, 2]
    leaf = tg.ones(1000, requires_grad=True)
    hidden = leaf * 3
    assert nn.Dropout(0.5, inplace=True)(hidden) is hidden
    hidden.sum().backward()
    np.testing.assert_array_equal(leaf.grad.numpy(), hidden.detach().numpy())


def test_layers_of_a_model_drop_differently() -> None:
    net = nn.Sequential(nn.Dropout(), nn.Linear(64, 64), nn.Dropout())
    with tg.no_grad():
        net[1].weight.copy_(tg.eye(64))
        net[1].bias.fill_(0.0)
    out = net(tg.ones(100, 64))
    assert abs((out != 0).double().mean().item() - 0.25) < 0.05  # two masks, not one twice
    assert (net.eval()(tg.ones(2, 64)) == 1).all()


# --- clipping --------------------------------------------------------------------------------

SHAPES = [(3, 4), (4,), (), (0, 2), (2, 1, 3)]


def with_gradients(T: Any, scale: float, dtypes: Any = ("float64",)) -> list[Any]:
    """Parameters, one in three without a gradient."""
    rng = np.random.default_rng(0)
    params = []
    for i, shape in enumerate(SHAPES * 2):
        g = np.asarray(scale * rng.normal(size=shape), dtypes[i % len(dtypes)])
        params.append(T.tensor(np.zeros_like(g), requires_grad=True))
        if i % 3:
            params[-1].grad = T.tensor(g)
    return params


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtypes", [("float32",), ("float64",), ("float32", "float64")], ids=str)
@pytest.mark.parametrize("norm_type", [2.0, 1, float("inf"), 3.5])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_clip_grad_norm_is_pytorchs(
    scale: float, norm_type: Any, dtypes: Any, backend: str
) -> None:
    torch = torch_module()
    tg.set_default_device(backend)
    results = []
    for T in (tg, torch):
        params = with_gradients(T, scale, dtypes)
        if norm_type == float("inf"):  # PyTorch has none of an empty gradient
            params = [p for p in params if p.numel()]
        norm = T.nn.utils.clip_grad_norm_(iter(params), 1.5, norm_type)
        grads = [p.grad for p in params if p.grad is not None]
        results.append([t.cpu().numpy() for t in (norm, *grads)])
    rtol = 1e-12 if dtypes == ("float64",) else 1e-5
    for got, expected in zip(*results, strict=True):
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(got, expected, rtol=rtol)


def test_clipping_leaves_small_gradients_bit_for_bit() -> None:
    params = with_gradients(tg, 1e-4, ("float32",))
    before = [p.grad.numpy().tobytes() for p in params if p.grad is not None]
    nn.utils.clip_grad_norm_(params, 1.0)
    assert [p.grad.numpy().tobytes() for p in params if p.grad is not None] == before


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_clip_grad_norm_of_what_is_not_finite(lib: Any, bad: float) -> None:
    p = lib.ones(3, requires_grad=True)
    p.grad = lib.tensor([1.0, bad, 2.0])
    error = ValueError if lib is tg else RuntimeError
    with pytest.raises(error, match=r"the norm of order 2\.0 of the gradients is|non-finite"):
        lib.nn.utils.clip_grad_norm_(p, 1.0, error_if_nonfinite=True)
    assert p.grad.tolist()[::2] == [1.0, 2.0]
    norm = lib.nn.utils.clip_grad_norm_(p, 1.0)
    np.testing.assert_equal(norm.item(), bad)
    expected = [0.0, math.nan, 0.0] if bad == math.inf else [math.nan] * 3
    np.testing.assert_equal(p.grad.tolist(), expected)


def test_clip_grad_value(lib: Any) -> None:
    p, q = lib.ones(4, requires_grad=True), lib.ones(2, requires_grad=True)
    p.grad = grad = lib.tensor([-5.0, 0.25, 3.0, math.nan])
    assert lib.nn.utils.clip_grad_value_([p, q], 0.5) is None
    np.testing.assert_equal(p.grad.tolist(), [-0.5, 0.25, 0.5, math.nan])
    assert p.grad is grad and q.grad is None


def test_clipping_of_nothing(lib: Any) -> None:
    assert lib.nn.utils.clip_grad_norm_([lib.ones(2, requires_grad=True)], 1.0).tolist() == 0.0
    assert lib.nn.utils.clip_grad_norm_([], 1.0).shape == ()


X, Y = tg.zeros(2, 3, device="numpy"), tg.tensor([0, 1], device="numpy")
W, B = tg.zeros(4, 3, device="numpy"), tg.zeros(4, device="numpy")

REFUSED: list[tuple[Any, type[Exception], str]] = [
    (
        lambda: F.linear(X.numpy(), W),
        TypeError,
        "linear: input must be a Tensor, got ndarray",
    ),
    (lambda: F.linear(X, None), TypeError, "linear: weight must be a Tensor, got NoneType"),
    (lambda: F.linear(X, W, 3), TypeError, "linear: bias must be a Tensor, got int"),
    (
        lambda: F.linear(X.double(), W, B),
        TypeError,
        "linear: expected one float dtype, got input float64, weight float32, bias float32; cast "
        "with .to(dtype)",
    ),
    (
        lambda: F.linear(X.to(tg.uint8), W.to(tg.uint8)),
        TypeError,
        "linear: expected one float dtype, got input uint8, weight uint8; cast with .to(dtype)",
    ),
    (
        lambda: F.linear(tg.zeros(2, 5, device="numpy"), W),
        ValueError,
        "linear: expected input (…, 3) for weight [4, 3], got input [2, 5]",
    ),
    (
        lambda: F.linear(X.sum(), W),
        ValueError,
        "linear: expected input (…, 3) for weight [4, 3], got input []",
    ),
    (
        lambda: F.linear(tg.zeros(2, 1, 3, 1, device="numpy"), W),
        ValueError,
        "linear: expected input (…, 3) for weight [4, 3], got input [2, 1, 3, 1]; flatten the "
        "images first, x.flatten(1)",
    ),
    (lambda: F.linear(X, B), ValueError, "linear: expected weight (K, D), got [4]"),
    (lambda: F.linear(X, X.sum()), ValueError, "linear: expected weight (K, D), got []"),
    (
        lambda: F.linear(X, W, tg.zeros(3, device="numpy")),
        ValueError,
        "linear: expected bias [4] for weight [4, 3], got [3]",
    ),
    (
        lambda: F.linear(X, W, B, activation="gelu"),
        ValueError,
        "linear: activation must be None or 'relu', got 'gelu'",
    ),
    (
        lambda: F.cross_entropy([[1.0]], Y),
        TypeError,
        "cross_entropy: input must be a Tensor, got list",
    ),
    (
        lambda: F.cross_entropy(X, [0, 1]),
        TypeError,
        "cross_entropy: target must be a Tensor, got list",
    ),
    (
        lambda: F.cross_entropy(X, Y, weight=[1.0, 1.0, 1.0]),
        TypeError,
        "cross_entropy: weight must be a Tensor, got list",
    ),
    (
        lambda: F.cross_entropy(Y, Y),
        TypeError,
        "cross_entropy: input must be floating logits, got int64",
    ),
    (
        lambda: F.cross_entropy(X, X),
        TypeError,
        "cross_entropy: target must hold integer labels, got float32; for one-hot rows use "
        "target.argmax(1)",
    ),
    (
        lambda: F.cross_entropy(X, Y, weight=tg.ones(3, dtype=tg.float64, device="numpy")),
        TypeError,
        "cross_entropy: weight is float64, input float32; cast one",
    ),
    (
        lambda: F.cross_entropy(X, Y, weight=tg.ones(2, device="numpy")),
        ValueError,
        "softmax_cross_entropy: expected weight [3], one for each class, got [2]",
    ),
    (
        lambda: F.cross_entropy(X, Y.reshape(2, 1)),
        ValueError,
        "cross_entropy: for input [2, 3] expected target [2], got [2, 1]; input holds a score for "
        "each class on axis 1, target one label for each row",
    ),
    (
        lambda: F.cross_entropy(X.sum(), Y),
        ValueError,
        "cross_entropy: for input [] expected target [], got [2]; input holds a score for each "
        "class on axis 0, target one label for each row",
    ),
    (
        lambda: F.cross_entropy(X, Y + 2),
        ValueError,
        "softmax_cross_entropy: label 3 at row 1 is outside 0..2, the classes of logits [2, 3]; "
        "mark rows to leave out with ignore_index",
    ),
    (
        lambda: F.cross_entropy(X, Y - 1),
        ValueError,
        "softmax_cross_entropy: label -1 at row 0 is outside 0..2, the classes of logits [2, 3]; "
        "mark rows to leave out with ignore_index",
    ),
    (
        lambda: F.cross_entropy(X, Y, reduction="avg"),
        ValueError,
        "reduction must be one of mean, sum, none; got 'avg'",
    ),
    (
        lambda: F.cross_entropy(X, Y, label_smoothing=1.5),
        ValueError,
        "label_smoothing must be between 0 and 1, got 1.5",
    ),
    (
        lambda: F.mse_loss(X, 3.0),
        TypeError,
        "mse_loss: target must be a Tensor, got float",
    ),
    (
        lambda: F.mse_loss(X, X.double()),
        TypeError,
        "mse_loss: expected one float dtype, got input float32, target float64; cast with "
        ".to(dtype)",
    ),
    (
        lambda: F.mse_loss(Y, Y),
        TypeError,
        "mse_loss: expected one float dtype, got input int64, target int64; cast with .to(dtype)",
    ),
    (
        lambda: F.mse_loss(X, X.sum(1)),
        ValueError,
        "mse_loss: input [2, 3] and target [2] must have the same shape; reshape one of them "
        "(broadcasting here would be a silent mistake)",
    ),
    (
        lambda: F.mse_loss(X, X, reduction="batchmean"),
        ValueError,
        "reduction must be one of mean, sum, none; got 'batchmean'",
    ),
    (
        lambda: F.l1_loss(X, X.sum(1)),
        ValueError,
        "l1_loss: input [2, 3] and target [2] must have the same shape; reshape one of them "
        "(broadcasting here would be a silent mistake)",
    ),
    (
        lambda: F.binary_cross_entropy(X, X.sum(1)),
        ValueError,
        "bce_loss: input [2, 3] and target [2] must have the same shape; reshape one of them "
        "(broadcasting here would be a silent mistake)",
    ),
    (
        lambda: F.binary_cross_entropy(X + 2, X),
        ValueError,
        "bce_loss: input 2.0 is outside 0..1; give probabilities, or scores of any size to "
        "binary_cross_entropy_with_logits",
    ),
    (
        lambda: F.binary_cross_entropy(X, X, X.reshape(1, 2, 3)),
        ValueError,
        "bce_loss: weight [1, 2, 3] does not broadcast to input [2, 3]",
    ),
    (
        lambda: F.binary_cross_entropy_with_logits(X, X, pos_weight=B),
        ValueError,
        "bce_with_logits: pos_weight [4] does not broadcast to input [2, 3]",
    ),
    (
        lambda: F.binary_cross_entropy_with_logits(X, X.clone().requires_grad_()),
        ValueError,
        "binary_cross_entropy_with_logits: the target requires a gradient, which is not computed; "
        "give target.detach()",
    ),
    (
        lambda: F.binary_cross_entropy(X, Y),
        TypeError,
        "binary_cross_entropy: expected one float dtype, got input float32, target int64; cast "
        "with .to(dtype)",
    ),
    (
        lambda: F.nll_loss(X, Y + 2),
        ValueError,
        "nll_loss: label 3 at row 1 is outside 0..2, the classes of logits [2, 3]; mark rows to "
        "leave out with ignore_index",
    ),
    (
        lambda: F.nll_loss(X, X),
        TypeError,
        "nll_loss: target must hold integer labels, got float32; for one-hot rows use "
        "target.argmax(1)",
    ),
    (
        lambda: F.layer_norm(X, (2,)),
        ValueError,
        "layer_norm: normalized_shape [2] must be the last axes of input [2, 3]",
    ),
    (
        lambda: F.layer_norm(X, ()),
        ValueError,
        "layer_norm: normalized_shape [] must be the last axes of input [2, 3]",
    ),
    (
        lambda: F.layer_norm(X, (3,), B),
        ValueError,
        "layer_norm: expected weight [3], got [4]",
    ),
    (
        lambda: F.gelu(X, "erf"),
        ValueError,
        "gelu: approximate must be 'none' or 'tanh', got 'erf'",
    ),
    (
        lambda: nn.Dropout(1.5),
        ValueError,
        "Dropout: p, the share to drop, must be between 0 and 1, got 1.5",
    ),
    (
        lambda: F.dropout(X, -0.1),
        ValueError,
        "dropout: p, the share to drop, must be between 0 and 1, got -0.1",
    ),
    (
        lambda: F.dropout(X, float("nan")),
        ValueError,
        "dropout: p, the share to drop, must be between 0 and 1, got nan",
    ),
    (
        lambda: F.dropout(Y),
        TypeError,
        "dropout: expected one float dtype, got input int64; cast with .to(dtype)",
    ),
    (
        lambda: F.dropout([1.0]),
        TypeError,
        "dropout: input must be a Tensor, got list",
    ),
    (
        lambda: nn.utils.clip_grad_norm_([X], 1.0, 0),
        ValueError,
        "clip_grad_norm_: norm_type must be above 0, got 0.0",
    ),
    (
        lambda: nn.utils.clip_grad_norm_([X], -1.0),
        ValueError,
        "clip_grad_norm_: max_norm must be a number of 0 or more, got -1.0",
    ),
    (
        lambda: nn.utils.clip_grad_value_([X], float("nan")),
        ValueError,
        "clip_grad_value_: clip_value must be a number of 0 or more, got nan",
    ),
    (
        lambda: nn.utils.clip_grad_norm_(["w"], 1.0),
        TypeError,
        "clip_grad_norm_: expected tensors, got str",
    ),
]


@pytest.mark.parametrize("call, error, message", REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_messages(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()
