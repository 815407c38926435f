"""Programs from hostile, damaged and newer files: a clear error, and bounded memory."""

from __future__ import annotations

import copy
import random
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygrad_ish as tg
from tinygrad_ish import nn, weights
from tinygrad_ish.deploy import runtime
from tinygrad_ish.deploy.graph import ProgramError, from_tree, to_tree
from tinygrad_ish.weights import Mapped, WeightsError

X = np.random.default_rng(0).normal(size=(5, 6)).astype("f4")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tg.set_default_device("numba")
    tg.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3))
    path = tmp_path_factory.mktemp("program") / "p.msgpack"
    tg.export(model, X, path, postprocess="softmax", labels=["a", "b", "c"], gradient=True)
    return path


@pytest.fixture
def tree(exported: Path) -> Any:
    """What the file's tree holds, to be changed and written again."""
    return copy.deepcopy(Mapped(exported, "program").tree)


def reload(tree: Any, path: Path) -> Any:
    weights.write(tree, path, {}, "program")
    program = tg.load_program(path)
    program(X)
    return program


def test_the_tree_is_the_graph(tree: Any, tmp_path: Path) -> None:
    graph = from_tree(tree["program"], tree["weights"])
    assert to_tree(graph, tree["weights"]) == tree["program"]
    assert str(reload(tree, tmp_path / "p")) == str(graph)


def test_the_gradient_shares_the_weights(tree: Any) -> None:
    forward, gradient = tree["program"]["constants"], tree["gradient"]["constants"]
    assert set(gradient.values()) <= set(forward.values())
    assert len(tree["weights"]) == len(set(forward.values()))


def nodes(tree: Any) -> Any:
    return tree["program"]["nodes"]


def assign(*place: Any, value: Any) -> Callable[[Any], None]:
    """A change: tree[place[0]][place[1]]… = value."""

    def change(tree: Any) -> None:
        *parents, last = place
        for key in parents:
            tree = tree[key]
        tree[last] = value

    return change


def huge(tree: Any) -> None:
    """Every dimension that was 8 is 2⁴⁰."""
    for value in tree["program"]["values"]:
        value[1] = [2**40 if n == 8 else n for n in value[1]]


def billion_laughs(tree: Any) -> None:
    """Each node doubles what the one before gave."""
    program = tree["program"]
    last, shape = program["outputs"][0], [{"batch": [1, 0]}, 3]
    for _ in range(60):
        shape = [shape[0], shape[1] * 2]
        program["values"].append(["float32", shape, ""])
        new = len(program["values"]) - 1
        program["nodes"].append(["cat", {"arrays": [{"value": last}] * 2, "axis": 1}, [new], ""])
        last = new


P = "program"
HOSTILE: dict[str, tuple[Callable[[Any], None], str]] = {
    "no program": (assign(P, value=None), "a program: expected a map"),
    "a key more": (lambda t: t.update(more=1), "a program's file holds"),
    "a key less": (lambda t: t[P].pop("nodes"), "a program: expected a map of"),
    "no weights": (assign("weights", value=None), "weights: expected an array"),
    "weights that are none": (assign("weights", 0, value="w"), "the weights at 0: expected a"),
    "a constant beyond": (lambda t: t[P]["constants"].update({"1": 99}), "constant 1: expected a"),
    "no inputs": (assign(P, "inputs", value=[]), "has inputs and outputs"),
    "no outputs": (assign(P, "outputs", value=[]), "has inputs and outputs"),
    "a cycle": (assign(P, "nodes", 0, 1, "x", value={"value": 9}), "reads value 9 before it is"),
    "read before write": (lambda t: nodes(t).reverse(), "before it is made"),
    "made twice": (lambda t: nodes(t).append(copy.deepcopy(nodes(t)[-1])), "is defined twice"),
    "never made": (lambda t: t[P]["values"].append(["bool", [], ""]), "declared and never made"),
    "unknown kernel": (assign(P, "nodes", 0, 0, value="system"), "system"),
    "a kernel that updates": (assign(P, "nodes", 0, 0, value="adam_step"), "adam_step"),
    "a private name": (assign(P, "nodes", 0, 0, value="__class__"), "__class__"),
    "argument missing": (lambda t: nodes(t)[0][1].pop("b"), r"linear"),
    "argument unknown": (assign(P, "nodes", 0, 1, "out", value={"value": 0}), "out"),
    "a str for a value": (assign(P, "nodes", 0, 1, "x", value="x"), "x"),
    "a value that is none": (assign(P, "nodes", 0, 1, "x", value={"value": 99}), "a number from 0"),
    "an object": (assign(P, "nodes", 0, 1, "x", value={"__reduce__": 1}), "an argument: expected"),
    "another shape": (assign(P, "values", 0, 1, value=[{"batch": [1, 0]}, 7]), "linear"),
    "a batch of -1": (assign(P, "values", 0, 1, 0, value={"batch": [-1, 0]}), "only its first"),
    "a batch inside": (assign(P, "values", 0, 1, 1, value={"batch": [1, 3]}), "only its first"),
    "huge": (huge, "declared as float32"),
    "many": (billion_laughs, "bytes"),
    "a long number": (
        lambda t: t[P]["constants"].update({"9" * 5000: 0}), "a constant: expected the number",
    ),
    "a name that moves the cursor": (
        assign(P, "values", 0, 2, value="\x1b[2J"), "name of value 0: .* characters, got '.x1b",
    ),
    "a line that does": (assign(P, "nodes", 0, 3, value="\x1b[2J"), "node 0: expected a kernel's"),
    "an argument that does": (
        lambda t: nodes(t)[0][1].update({"\x1b": {"batch": [1, 0]}}), "'.x1b': expected a con",
    ),
    "dtype": (assign(P, "values", 0, 0, value="float128"), "the dtype of value 0: expected one of"),
    "dtype of python": (assign(P, "values", 0, 0, value="O"), "the dtype of value 0"),
    "labels": (assign("labels", value=[1, 2, 3]), "labels: expected an array of str"),
    "top_k": (assign("top_k", value=0), "top_k: expected an int from 1"),
    "no sample": (assign("sample", value=None), "the sample: expected arrays"),
    "sample like no input": (
        assign("sample", "inputs", 0, value=np.zeros((4, 7), "f4")), "the sample: its arrays",
    ),
    "a ragged sample": (assign("sample", "inputs", value=[[[1], [1, 2]]]), "the sample: its arr"),
    "many rows": (
        assign("sample", "inputs", 0, value=np.zeros((5, 6), "f4")), "at most 4 rows, got 5",
    ),
    "the gradient of another": (
        lambda t: t.update(gradient=t[P] | {"outputs": t[P]["inputs"]}), "gradient: expected a pro",
    ),
    "a preparation of another": (
        lambda t: t.update(prepare=t["gradient"]), "prepare: expected a program of the first input",
    ),
    "prints": (assign("sample", "prints", value=[[0.0, 0.0, 0.0]]), "three numbers for each"),
    "gradient": (assign("gradient", "nodes", 0, 0, value="eval"), "eval"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs(tree: Any, tmp_path: Path, name: str) -> None:
    change, message = HOSTILE[name]
    change(tree)
    with pytest.raises(ProgramError, match=message):
        reload(tree, tmp_path / "p.msgpack")


def test_labels_must_fit_the_output(tree: Any, tmp_path: Path) -> None:
    tree["labels"] = ["a", "b"]
    with pytest.raises(ProgramError, match="labels: 2 names"):
        reload(tree, tmp_path / "p.msgpack")


def test_another_answer_names_the_kernel(
    exported: Path, tree: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree["sample"]["outputs"][0] = tree["sample"]["outputs"][0][::-1]
    with pytest.raises(ProgramError, match="the answer to the sample in the file is another than"):
        reload(tree, tmp_path / "p.msgpack")
    backend = tg.get_default_backend()
    right = backend.gelu
    monkeypatch.setattr(backend, "gelu", lambda *a, **k: right(*a, **k) ** 2)
    with pytest.raises(ProgramError, match=r"it starts at gelu \(.*py:\d+\), whose results"):
        tg.load_program(exported)


def test_large_weights_are_verified_before_the_first_answer(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "AT_ONCE", 0)
    data = bytearray(exported.read_bytes())
    data[-3] ^= 1
    damaged = tmp_path / "p.msgpack"
    damaged.write_bytes(data)
    program = tg.load_program(damaged)
    for _ in range(2):
        with pytest.raises(ProgramError, match=r"expected the sha256 .* the file is damaged"):
            program(X)
        with pytest.raises(ProgramError) as refused:
            program(X)
        assert str(refused.value).count(str(damaged)) == 1
    assert tg.load_program(exported)(X).shape == (5, 3)


def test_weights_and_programs_are_told_apart(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"it is of the kind program, expected weights: read it"):
        tg.load(exported)
    tg.save({"w": tg.ones(2)}, tmp_path / "w.msgpack")
    with pytest.raises(WeightsError, match=r"tinygrad_ish.load\(\)"):
        tg.load_program(tmp_path / "w.msgpack")
    with pytest.raises(WeightsError, match="not a tinygrad_ish file"):
        (tmp_path / "x").write_bytes(b"hello" * 100)
        tg.load_program(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="no such file"):
        tg.load_program(tmp_path / "nothing")


def test_random_damage(exported: Path, tmp_path: Path) -> None:
    """Changed bits and cut ends: refused, or, where no byte is another, the same answer."""
    data, expected = exported.read_bytes(), tg.load_program(exported)(X)
    rng, path = random.Random(0), tmp_path / "p.msgpack"
    for turn in range(600):
        damaged = bytearray(data)
        if turn % 3:
            for _ in range(rng.choice((1, 1, 2, 8))):
                damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            del damaged[rng.randrange(len(data)) :]
        path.write_bytes(damaged)
        if bytes(damaged) == data:
            np.testing.assert_array_equal(tg.load_program(path)(X), expected)
            continue
        with pytest.raises(WeightsError):
            tg.load_program(path)


def test_damage_behind_right_checksums(tree: Any, tmp_path: Path) -> None:
    """Programs with random changes that were sealed again: an error or an answer, nothing else."""
    rng, path = random.Random(1), tmp_path / "p.msgpack"
    outcomes = set()
    for _ in range(300):
        changed = copy.deepcopy(tree)
        for _ in range(rng.choice((1, 1, 2))):
            mutate(changed["program"], rng)
        try:
            reload(changed, path)
            outcomes.add("ran")
        except (ProgramError, WeightsError) as error:
            assert str(error)
            outcomes.add("refused")
    assert outcomes == {"ran", "refused"}


def mutate(tree: Any, rng: random.Random) -> None:
    """Put something else in the place of one leaf of nested lists and dicts."""
    container, key = None, None
    node = tree
    while isinstance(node, (dict, list)) and node:
        container, key = (
            node,
            rng.choice(list(node) if isinstance(node, dict) else range(len(node))),
        )
        node = node[key]
    others = [None, True, -1, 0, 1, 3, 2**62, 0.5, float("nan"), "relu", "x", [], [1], {},
              {"value": rng.randrange(12)}, {"batch": [1, 0]}, {"slice": [0, 1, None]},
              {"dtype": "float64"}, {"ellipsis": True}]  # fmt: skip
    container[key] = rng.choice(others)


def test_memory_is_bounded(tree: Any, tmp_path: Path) -> None:
    """A program that asks for 200 GB, in a process that may have two more gigabytes."""
    values = tree["program"]["values"]
    for value in values:
        value[1] = [{"batch": [10**9, 0]} if type(n) is dict else n for n in value[1]]
    weights.write(tree, tmp_path / "p.msgpack", {}, "program")
    code = f"""
        import resource, tinygrad_ish as tg
        limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 2 * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
        try:
            tg.load_program({str(tmp_path / "p.msgpack")!r})
        except tg.ProgramError as error:
            print("refused")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < limit
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "refused\n", done.stderr
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
