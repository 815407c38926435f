"""The rules of programs: what ``infer`` accepts, the reference kernel does, with these shapes and
dtypes and without more memory than its arrays. The cases are those of ``test_kernels``."""

from __future__ import annotations

import functools
import inspect
import random
import tracemalloc
from dataclasses import replace
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from tinygrad_ish import dtypes
from tinygrad_ish.deploy import rules
from tinygrad_ish.deploy.graph import Dim, Graph, Node, ProgramError, Ref, Value
from tinygrad_ish.deploy.rules import FORWARD, GRADIENT, KERNELS, Meta, check, infer
from tinygrad_ish.kernels import reference

from .test_kernels import CASES, results_of

NOT_IN_PROGRAMS = {
    "draw", "dropout", "next_rows", "take_scaled", "push", "softmax_cross_entropy", "nll_loss",
    "mse_loss", "bce_loss", "bce_with_logits", "grad_norm", "clip_scale", "unscale_step",
    "scale_step", "count_step", "sgd_step", "adam_step",
}  # fmt: skip
F32, F64, I64, BOOL = (np.dtype(name) for name in ("float32", "float64", "int64", "bool"))


def meta(*shape: int, dtype: Any = F32) -> Meta:
    return Meta(shape, dtype)


@functools.cache
def names_of(kernel: str) -> list[str]:
    parameters = inspect.signature(getattr(reference, kernel)).parameters
    return [name for name in parameters if name != "out"]


def calls(kernel: str) -> list[dict[str, Any]]:
    """The arguments of every case, by name."""
    found = []
    for i, case in enumerate(CASES[kernel]):
        for dtype in case.dtypes:
            args = case.make(np.random.default_rng(i), dtype)
            bound = inspect.signature(getattr(reference, kernel)).bind(*args, **case.kwargs)
            bound.apply_defaults()
            found.append({name: bound.arguments[name] for name in names_of(kernel)})
    return found


def metas_of(x: Any) -> Any:
    if isinstance(x, np.ndarray):
        return Meta(x.shape, x.dtype)
    if type(x) is dict:
        return {name: metas_of(a) for name, a in x.items()}
    return tuple(map(metas_of, x)) if type(x) is tuple else x


def given_by(kernel: str, args: dict[str, Any]) -> tuple[Meta | None, ...]:
    return metas_of(tuple(results_of(getattr(reference, kernel)(**args))))


def refused(kernel: str, message: str, **args: Any) -> None:
    with pytest.raises(ProgramError, match=message) as info:
        infer(kernel, args)
    assert str(info.value).startswith(f"{kernel}: ")


# --- the table --------------------------------------------------------------------------------


def test_every_kernel_is_in_a_program_or_listed_as_not() -> None:
    assert set(reference.__all__) == KERNELS | NOT_IN_PROGRAMS
    assert not KERNELS & NOT_IN_PROGRAMS and not FORWARD & GRADIENT
    assert KERNELS == FORWARD | GRADIENT == set(rules._RULES) <= set(CASES)


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_a_rule_has_the_arguments_of_the_reference(kernel: str) -> None:
    rule = rules._RULES[kernel]
    assert list(rule.kinds) == names_of(kernel) == list(inspect.signature(rule.results).parameters)


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_infer_gives_what_the_reference_gives(kernel: str) -> None:
    assert calls(kernel)
    for args in calls(kernel):
        assert infer(kernel, metas_of(args)) == given_by(kernel, args), metas_of(args)


# --- mutations --------------------------------------------------------------------------------

DEEP: Any = ()
for _ in range(10_000):
    DEEP = (DEEP,)
JUNK = [
    None, True, False, 0, 1, -1, 2, 3, 300, 2**31, 2**62, 2**63, -(2**63), 10**5000,
    1.0, -1.5, float("nan"), float("inf"), 1e300, "", "relu", "tanh", "none", "float32", "x" * 9999,
    b"relu", [1], {}, {1}, object(), Ellipsis, slice(None), slice(0, 2), slice(1.5),
    (), (0,), (1,), (-1,), (1, 0), (0, 0), (2, 3), (True,), (1.0,), ([1],), (10**5000,), DEEP,
    (None,) * 40, (1,) * 40, (2,) * 40, (2**40, 2**40), (2**62, 0), (Ellipsis, Ellipsis),
    (slice(None, None, -1),), (slice(None, None, 0),), (slice(-(10**30), 10**30),), (slice(DEEP),),
    (slice(-2, None, 2**62),), (slice(True, 2),), (True, True, True), (False, True), (1, 1, 1),
    F32, F64, I64, BOOL, np.dtype(">f4"), np.dtype("uint16"), np.dtype("O"), np.float32,
    np.float32(1), np.int64(1), np.ones(2), Ref(0), Dim(1, 0), (Dim(1, 0),), Dim(10**5000, 1),
    meta(2, 3), meta(2, 3, dtype=I64), meta(), meta(0), meta(2**62, 0), meta(2**62, 2**62),
    meta(-1), Meta((2,), np.dtype("O")), Meta((2,), "float32"), Meta((2,), None),  # type: ignore
    Meta([2], F32), Meta((True,), F32), Meta((2.0,), F32), Meta((1,) * 33, F32),  # type: ignore
    (meta(2, 3), meta(2, 3)), (meta(2), F32),
]  # fmt: skip
LENGTHS = [0, 0, 1, 2, 3, 5, 100_000, 2**62]


def changed(x: Any, change: Any) -> Any:
    """x with ``change`` applied to its ints and dtypes, inside of shapes and tuples too."""
    if type(x) is Meta:
        return Meta(changed(x.shape, change), change(x.dtype))
    if type(x) is tuple:
        return tuple(a if type(a) is tuple else changed(a, change) for a in x)
    return change(x) if type(x) is int or isinstance(x, np.dtype) else x


def mutated(rng: random.Random, args: dict[Any, Any]) -> dict[Any, Any]:
    """The arguments of a call that is valid, with some of them changed."""
    args, how = dict(args), rng.randrange(8)
    of_kind = [[k for k, a in args.items() if type(a) is kind] for kind in (Meta, int, tuple)]
    some, other = rng.choices(list(args), k=2)
    array, number, several = (rng.choice(names) if names else None for names in of_kind)
    if how == 0:
        args[some] = rng.choice(JUNK)
    elif how == 1:
        args[some] = rng.choice([None, True, False, 1])
    elif how == 2:  # one length, wherever it is
        old, new = rng.choice([1, 2, 3, 4, 5, 6, 7]), rng.choice(LENGTHS)
        args = {k: changed(a, lambda n: new if n == old else n) for k, a in args.items()}
    elif how == 3:  # one dtype, wherever it is
        used, put = rng.choice([F32, F64, I64, BOOL]), rng.choice(dtypes.SUPPORTED)
        args = {k: changed(a, lambda d: put if d == used else d) for k, a in args.items()}
    elif how == 4 and array:
        shape, dtype = list(args[array].shape), args[array].dtype
        replace_some(rng, shape, LENGTHS)
        args[array] = Meta(tuple(shape), rng.choice([dtype, rng.choice(dtypes.SUPPORTED)]))
    elif how == 5 and number:
        value = args[number]
        args[number] = rng.choice([value + 1, value - 1, value - 2, -value, bool(value)])
    elif how == 6 and several:
        parts = list(args[several])
        replace_some(rng, parts, [*JUNK, *parts, *parts, *parts])
        args[several] = tuple(parts)
    elif how == 7:
        args[some], args[other] = args[other], args[some]
    return args


def replace_some(rng: random.Random, parts: list[Any], by: list[Any]) -> None:
    """Replace, remove or put in one part."""
    at = rng.randrange(len(parts) + 1)
    parts[at : at + rng.randrange(2)] = rng.choices(by, k=rng.randrange(2))


def without_or_more(rng: random.Random, args: dict[Any, Any]) -> dict[Any, Any]:
    """The arguments of a call but one, or with one more."""
    if rng.random() < 0.5:
        return {k: args[k] for k in rng.sample(list(args), len(args) - 1)}
    return {**args, rng.choice(["out", "z", 3, None, (1, 2), "x" * 9999]): None}


def arrays_of(x: Any) -> Any:
    """Arrays of such metas, whose values no kernel refuses."""
    if type(x) is Meta:
        return np.zeros(x.shape, x.dtype) if x.dtype == I64 else np.ones(x.shape, x.dtype)
    return tuple(map(arrays_of, x)) if type(x) is tuple else x


def bytes_of(x: Any) -> int:
    """What arrays of such metas take, an axis of length 0 counted as 1."""
    if type(x) is Meta:
        return int(np.prod([max(n, 1) for n in x.shape], dtype=object)) * x.dtype.itemsize
    return sum(map(bytes_of, x)) if type(x) in (tuple, list) else 0


def does_what_infer_says(kernel: str, args: Any) -> str:
    """Whether the call was refused, run, or is too large to run here."""
    try:
        found = infer(kernel, args)
    except ProgramError as error:
        assert len(str(error)) < 1000
        return "refused"
    size = bytes_of(list(args.values())) + bytes_of(found)
    if size > 2**23:
        return "large"
    arrays = {name: arrays_of(a) for name, a in args.items()}
    if kernel in ("floor_div", "remainder") and type(args["b"]) is Meta:
        arrays["b"][...] = 1
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    results = given_by(kernel, arrays)
    used = tracemalloc.get_traced_memory()[1] - before
    assert results == found, (kernel, args)
    assert used <= 30 * size + 2**16, (kernel, args, used, size)
    return "run"


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_a_mutated_call_is_refused_or_runs(kernel: str) -> None:
    rng = random.Random(kernel)
    valid = [metas_of(args) for args in calls(kernel)]
    outcomes = []
    tracemalloc.start()
    try:
        for _ in range(300):
            args = rng.choice(valid)
            for _ in range(rng.randrange(1, 4)):
                args = mutated(rng, args)
            outcomes.append(does_what_infer_says(kernel, args))
            with pytest.raises(ProgramError, match="expected the arguments"):
                infer(kernel, without_or_more(rng, args))
    finally:
        tracemalloc.stop()
    # Were nearly all refused, or nearly none, this would show little.
    assert outcomes.count("run") >= 40 and outcomes.count("refused") >= 40


@pytest.mark.parametrize("junk", JUNK, ids=lambda x: type(x).__name__)
def test_junk_is_refused_everywhere(junk: Any) -> None:
    for kernel in KERNELS:
        with pytest.raises(ProgramError):
            infer(kernel, junk)
        with pytest.raises(ProgramError):
            infer(kernel, dict.fromkeys(names_of(kernel), junk) | {"a": DEEP})
    with pytest.raises(ProgramError):
        infer(junk, {})


# --- properties -------------------------------------------------------------------------------

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@given(hnp.mutually_broadcastable_shapes(num_shapes=3, min_side=0, max_side=4, max_dims=4))
def test_shapes_that_broadcast(shapes: Any) -> None:
    a, b, c = shapes.input_shapes
    assert infer("where", {"condition": meta(*a, dtype=BOOL), "a": meta(*b), "b": meta(*c)}) == (
        meta(*shapes.result_shape),
    )
    assert infer("le", {"a": meta(*a), "b": meta(*b)}) == (
        meta(*np.broadcast_shapes(a, b), dtype=BOOL),
    )


@given(SHAPES, SHAPES)
def test_shapes_that_perhaps_broadcast(a: Any, b: Any) -> None:
    x, y = np.zeros(a, F32), np.zeros(b, F32)
    for kernel in ("add", "matmul"):
        args = {"a": x, "b": y}
        try:
            expected = given_by(kernel, args)
        except ValueError:
            refused(kernel, "expected", **metas_of(args))
        else:
            assert infer(kernel, metas_of(args)) == expected


@given(st.data(), SHAPES, st.booleans(), st.sampled_from(dtypes.SUPPORTED))
def test_reductions(data: Any, shape: Any, keepdims: bool, dtype: Any) -> None:
    ndim = len(shape)
    axes = [a for a in range(ndim) if data.draw(st.booleans())]
    axes = [a - ndim * data.draw(st.booleans()) for a in axes]
    axis = data.draw(st.sampled_from([None, tuple(axes), *axes]))
    gone = range(ndim) if axis is None else axis if type(axis) is tuple else (axis,)
    empty = 0 in [shape[a] for a in gone]
    x = np.zeros(shape, dtype)
    for kernel in ("sum", "any", "amax", "mean", "argmin"):
        args: dict[str, Any] = {"x": x, "axis": axis, "keepdims": keepdims}
        args |= {"correction": 1} if kernel == "mean" else {}
        wrong = {"mean": dtype.kind != "f", "argmin": type(axis) is tuple}.get(kernel, False)
        if wrong or (kernel in ("amax", "argmin") and empty):
            refused(kernel, "expected", **metas_of(args))
        else:
            assert infer(kernel, metas_of(args)) == given_by(kernel, args)


def positive(index: tuple[Any, ...]) -> bool:
    return all(p.step is None or p.step > 0 for p in index if isinstance(p, slice))


@given(st.data(), SHAPES)
def test_basic_indices(data: Any, shape: Any) -> None:
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    index = index if isinstance(index, tuple) else (index,)
    x = np.zeros(shape, F32)
    if not positive(index):
        refused("getitem", "positive steps", x=metas_of(x), index=index)
        return
    (y,) = given_by("getitem", {"x": x, "index": index})
    assert y is not None
    assert infer("getitem", {"x": metas_of(x), "index": index}) == (y,)
    args = {"g": y, "index": index, "shape": shape}
    assert infer("getitem_backward", args) == (metas_of(x),)
    args["g"] = Meta((*y.shape, 2), F32)
    refused("getitem_backward", "g: expected", **args)


@given(SHAPES, SHAPES)
def test_reshape(old: Any, new: Any) -> None:
    x = meta(*old)
    if np.prod(old) == np.prod(new):
        assert infer("reshape", {"x": x, "shape": new}) == (meta(*new),)
    else:
        refused("reshape", r"shape: expected a shape of \d+ elements", x=x, shape=new)
    assert infer("reshape", {"x": x, "shape": (*reversed(old), 1)}) == (meta(*old[::-1], 1),)


@given(SHAPES, st.lists(st.integers(0, 4), max_size=5).map(tuple))
def test_expand_and_sum_to(shape: Any, to: Any) -> None:
    x = np.zeros(shape, F32)
    try:
        expected = given_by("expand", {"x": x, "shape": to})
    except ValueError:
        refused("expand", "shape: expected", x=metas_of(x), shape=to)
        refused("sum_to", "shape: expected", x=meta(*to), shape=shape)
    else:
        assert infer("expand", {"x": metas_of(x), "shape": to}) == expected
        assert infer("sum_to", {"x": meta(*to), "shape": shape}) == (metas_of(x),)


# --- what is refused --------------------------------------------------------------------------


def test_messages_name_kernel_argument_and_what_came() -> None:
    with pytest.raises(ProgramError) as info:
        infer("linear", {"x": meta(2, 3), "w": meta(4, 5), "b": None, "activation": None})
    assert str(info.value) == "linear: w: expected float32[4, 3], got float32[4, 5]"
    with pytest.raises(ProgramError) as info:
        infer("gelu", {"x": meta(2), "approximate": "exact"})
    assert str(info.value) == "gelu: approximate: expected 'none' or 'tanh', got 'exact'"
    with pytest.raises(ProgramError) as info:
        infer("relu", {"x": meta(2), "out": None})
    assert str(info.value) == "relu: expected the arguments x, got ('x', 'out')"
    with pytest.raises(ProgramError, match="got 'dropout'; the program is damaged, or needs a new"):
        infer("dropout", {})


@pytest.mark.parametrize(
    ("kernel", "message", "args"),
    [
        ("add", "one dtype, got float32", {"a": meta(2), "b": meta(2, dtype=F64)}),
        ("add", "an array among them, got 1, 2", {"a": 1, "b": 2}),
        ("add", "a number that fits uint8", {"a": meta(2, dtype=np.dtype("uint8")), "b": 256}),
        ("mul", "a number of the kind of int64", {"a": meta(2, dtype=I64), "b": 1.5}),
        ("sub", "not bool", {"a": meta(2, dtype=BOOL), "b": True}),
        ("floor_div", "not 0", {"a": meta(2, dtype=I64), "b": 0}),
        ("pow", "not negative", {"a": meta(2, dtype=I64), "b": -1}),
        ("where", "bool array", {"condition": meta(2), "a": meta(2), "b": meta(2)}),
        ("reshape", "ints of 0 or more", {"x": meta(2, 3), "shape": (3, -1)}),
        ("reshape", "ints of 0 or more", {"x": meta(1), "shape": (True,)}),
        ("expand", "32 axes and", {"x": meta(1), "shape": (2**40, 2**40)}),
        ("permute", "once", {"x": meta(2, 3), "axes": (0, 0)}),
        ("softmax", "axis of an array of 2", {"x": meta(2, 3), "axis": 2}),
        ("sum", "once", {"x": meta(2, 3), "axis": (0, -2), "keepdims": False}),
        ("sum", "True or False", {"x": meta(2, 3), "axis": None, "keepdims": 1}),
        ("amax", "elements to compare", {"x": meta(0, 3), "axis": 0, "keepdims": False}),
        ("getitem", "from -2 to 1", {"x": meta(2, 3), "index": (2,)}),
        ("getitem", "one Ellipsis", {"x": meta(2, 3), "index": (..., ...)}),
        ("getitem", "32 axes", {"x": meta(2, 3), "index": (None,) * 31}),
        ("cat", "not empty", {"arrays": (), "axis": 0}),
        ("cat", "but for axis 0", {"arrays": (meta(2, 3), meta(2, 4)), "axis": 0}),
        ("index_select", "int64", {"x": meta(2), "index": meta(1), "axis": 0}),
        ("index_select", "has none", {"x": meta(0), "index": meta(1, dtype=I64), "axis": 0}),
        ("gather", "but for axis 1", {"x": meta(2, 3), "index": meta(1, 3, dtype=I64), "axis": 1}),
        ("cast", "a dtype", {"x": meta(2), "dtype": np.dtype("complex64")}),
    ],
)  # fmt: skip
def test_a_call_that_does_not_fit(kernel: str, message: str, args: Any) -> None:
    refused(kernel, message, **args)


@pytest.mark.parametrize("which", ["g", "x", "mean", "rstd", "weight"])
def test_a_gradient_of_layer_norm_that_would_read_beyond_its_arrays(which: str) -> None:
    args = {"g": meta(4, 3), "x": meta(4, 3), "mean": meta(4), "rstd": meta(4), "weight": meta(3)}
    args[which] = Meta((*args[which].shape[:-1], 1), F32)
    refused("layer_norm_backward", r": expected float32\[", **args, needs=(True, True, True))


# --- graphs -----------------------------------------------------------------------------------

BATCH = Dim(1, 0)


def classifier() -> Graph:
    """softmax(relu(x wᵀ)), and a view of it as a vector."""
    linear = {"x": Ref(0), "w": Ref(1), "b": None, "activation": "relu"}
    return Graph(
        [
            Value(F32, (BATCH, 3), "x"), Value(F32, (4, 3), "w"), Value(F32, (BATCH, 4)),
            Value(F32, (BATCH, 4)), Value(F32, (Dim(4, -4),), "flat"),
        ],
        inputs=[0], outputs=[4], constants={1: np.ones((4, 3), F32)},
        nodes=[
            Node("linear", linear, (2,), "model.py:7"),
            Node("softmax", {"x": Ref(2), "axis": 1}, (3,), "model.py:8"),
            Node("getitem", {"x": Ref(3), "index": (slice(1, BATCH),)}, (5,), "model.py:9"),
            Node("reshape", {"x": Ref(5), "shape": (Dim(4, -4),)}, (4,)),
        ],
    )  # fmt: skip


def with_part(graph: Graph) -> Graph:
    graph.values.append(Value(F32, (Dim(1, -1), 4)))
    return graph


def with_node(i: int, **changes: Any) -> Graph:
    graph = with_part(classifier())
    graph.nodes[i] = replace(graph.nodes[i], **changes)
    return graph


def with_value(k: int, *shape: Any, dtype: Any = F32) -> Graph:
    graph = with_part(classifier())
    graph.values[k] = replace(graph.values[k], shape=shape, dtype=dtype)
    return graph


def test_a_graph_that_fits() -> None:
    check(with_part(classifier()))
    check(with_part(classifier()), batches=(1, 1000))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (with_value(2, BATCH, 5), r"node 0 at model.py:7, for a batch of 1: linear: value 2 is "
            r"declared as float32\[batch, 5\], but the kernel gives float32\[1, 4\]"),
        (with_value(3, BATCH, 4, dtype=F64), "node 1 at model.py:8.*declared as float64"),
        (with_value(2, 1, 4), "node 0 .*for a batch of 2"),
        (with_value(2, Dim(2, -1), 4), "node 0 .*for a batch of 2"),
        (with_value(4, Dim(1, -2)), "node 3, for a batch of 1: reshape: value 4 is declared"),
        (with_value(0, Dim(1, -2), 3), r"value 0 'x', for a batch of 1: .*, got \(-1, 3\)"),
        (with_value(0, 2**40, 0), r"0\] takes 4398046511104"),
        (with_value(0, 2**62, 3), "value 0 'x', for a batch of 1: .*bytes"),
        (with_value(0, *[1] * 40), "value 0 'x', for a batch of 1: .*32 lengths"),
        (with_node(1, kernel="dropout"), "node 1 at model.py:8.*got 'dropout'"),
        (with_node(1, args={"x": Ref(2)}), "node 1 at model.py:8.*the arguments x, axis, got"),
        (with_node(1, args={"x": Ref(2), "axis": BATCH}), "node 1 .*softmax: axis: expected a con"),
        (with_node(1, args={"x": (Ref(2), BATCH), "axis": 1}), "node 1 .*softmax: x: expected a c"),
        (with_node(1, args={"x": Ref(2), "axis": 1, "y": BATCH}), "node 1 .*softmax: y: expected"),
        (with_node(1, args={"x": Ref(2), "axis": slice(BATCH)}), "softmax: axis: expected a c"),
        (with_node(1, args={"x": 2, "axis": 1}), "softmax: x: expected a floating array, got 2"),
        (with_node(1, results=(3, None)), "node 1 .*the number of results: expected 1, got 2"),
        (with_node(1, results=()), "node 1 .*the number of results: expected 1, got 0"),
    ],
)  # fmt: skip
def test_a_graph_that_is_refused(graph: Graph, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        check(graph)


def test_a_value_that_is_too_large() -> None:
    check(with_part(classifier()), limit=3 * 4 * 4)
    for limit, name in ((15, "linear"), (11, "value 0 'x'")):
        with pytest.raises(ProgramError, match=rf"{name}.*float32\[1, \d\] takes"):
            check(with_part(classifier()), limit=limit)
    big = Graph([Value(F32, (1,)), Value(F32, (2**20, 2**10))], [0], [1])
    big.nodes = [Node("expand", {"x": Ref(0), "shape": (2**20, 2**10)}, (1,), "model.py:3")]
    with pytest.raises(ProgramError, match=r"node 0 at model.py:3.*takes 4294967296 bytes"):
        check(big)
    check(big, limit=2**32)


def test_a_value_that_is_small_for_one_row_only() -> None:
    steep = Dim(2**30, 1 - 2**30)
    graph = Graph([Value(F32, (1,)), Value(F32, (steep,))], [0], [1])
    graph.nodes = [Node("expand", {"x": Ref(0), "shape": (steep,)}, (1,))]
    with pytest.raises(ProgramError, match=r"node 0, for a batch of 2: expand.*takes"):
        check(graph)


def test_a_large_result_that_no_value_declares() -> None:
    """The statistics of rows without elements."""
    x = Value(F64, (2**20, 0))
    args = {"x": Ref(0), "weight": None, "bias": None, "eps": 1e-5}
    node = Node("layer_norm", args, (1, None, None))
    graph = Graph([x, x], [], [1], {0: np.ones((2**20, 0))}, [node])
    with pytest.raises(ProgramError, match=r"node 0.*layer_norm: a result.*takes 8388608 bytes"):
        check(graph, limit=2**20)


def test_results_that_are_not_needed() -> None:
    g, x, w = Value(F32, (BATCH, 4)), Value(F32, (BATCH, 3)), Value(F32, (4, 3))
    args = {"g": Ref(0), "x": Ref(1), "w": Ref(2), "y": None, "activation": None}
    node = Node("linear_backward", args | {"needs": (True, False, False)}, (3, None, None))
    graph = Graph([g, x, w, x], [0, 1], [3], {2: np.ones((4, 3), F32)}, [node])
    check(graph)
    graph.values.append(w)
    graph.nodes = [replace(node, results=(3, 4, None))]
    with pytest.raises(ProgramError, match=r"value 4 is declared as .*, but the kernel gives N"):
        check(graph)


def test_constants_may_be_larger_than_the_limit() -> None:
    check(with_part(classifier()), limit=16)


def test_values_that_are_too_large_together() -> None:
    """Each takes a third of the limit; a chain lets go of them, a sum of all needs them at once."""
    size = 2**20
    for together in (False, True):
        graph = Graph([Value(F32, (size,))], [0])
        for n in range(20):
            graph.values.append(Value(F32, (size,)))
            graph.nodes.append(Node("exp", {"x": Ref(n)}, (n + 1,)))
        if together:
            graph.values.append(Value(F32, (21 * size,)))
            args = {"arrays": tuple(Ref(n) for n in range(21)), "axis": 0}
            graph.nodes.append(Node("cat", args, (21,)))
        graph.outputs = [len(graph.values) - 1]
        limit = 21 * 4 * size if together else 3 * 4 * size
        check(graph, limit=limit)
        if together:
            graph.nodes.pop()
            graph.values.pop()
            graph.outputs = list(range(21))
            with pytest.raises(ProgramError, match=r"exp: \d+ bytes would be held at once"):
                check(graph, limit=4 * size)
