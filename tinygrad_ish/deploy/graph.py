"""A forward as a list of kernel calls over numbered values, for any batch size.

Value k is an input, a constant (weights), or a result of a node. Nodes stand in the order they run
in and read values of lower numbers only: a graph cannot loop. Dimensions that grow with the batch
are ``Dim``s, a · batch + b; so are the ints among the arguments that stand for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..dtypes import SUPPORTED
from ..weights import WeightsError

__all__ = ["Dim", "Graph", "Node", "ProgramError", "Ref", "Value", "at_batch", "is_text"]

NAMES = frozenset(d.name for d in SUPPORTED)
TEXT_LIMIT = 1000  # characters of a name


class ProgramError(WeightsError):
    """A model that cannot be exported, or a program that is damaged, hostile or newer."""


class Dim(NamedTuple):
    """A dimension that grows with the batch: slope · batch + offset, slope not 0."""

    slope: int
    offset: int

    def at(self, batch: int) -> int:
        """Its length for a batch of so many rows."""
        return self.slope * batch + self.offset

    def __str__(self) -> str:
        text = "batch" if self.slope == 1 else f"{self.slope}·batch"
        return text if not self.offset else f"{text}{self.offset:+}"


class Ref(NamedTuple):
    """A value among the arguments of a node."""

    value: int


Shape: TypeAlias = "tuple[int | Dim, ...]"


@dataclass(frozen=True)
class Value:
    """An array's dtype and shape, and its name if it is an input, an output or a constant."""

    dtype: np.dtype
    shape: Shape
    name: str = ""

    def at(self, batch: int) -> tuple[int, ...]:
        """Its shape for a batch of so many rows."""
        return tuple(n.at(batch) if isinstance(n, Dim) else n for n in self.shape)

    def __str__(self) -> str:
        return f"{self.dtype.name}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Node:
    """A kernel call: arguments by the names of the reference, the values it gives (None for a
    result that is not needed), and the line of the model that it comes from."""

    kernel: str
    args: dict[str, Any]
    results: tuple[int | None, ...]
    line: str = ""

    def reads(self) -> list[int]:
        """The values among its arguments."""
        return [a.value for a in _flat(self.args.values()) if isinstance(a, Ref)]


@dataclass
class Graph:
    """See the module. ``constants`` are the arrays of the values that are constants."""

    values: list[Value] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    constants: dict[int, np.ndarray] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)

    def last_reads(self) -> list[list[int]]:
        """For each node the values that nobody needs after it."""
        last: dict[int | None, int] = {
            k: i for i, n in enumerate(self.nodes) for k in (*n.results, *n.reads())
        }
        for k in self.outputs:
            last.pop(k, None)
        dying: list[list[int]] = [[] for _ in self.nodes]
        for value, i in last.items():
            if value is not None:
                dying[i].append(value)
        return dying

    def __str__(self) -> str:
        """A listing, one line for each kernel call."""

        def name(k: int) -> str:
            return self.values[k].name or f"%{k}"

        def shown(x: Any) -> str:
            if isinstance(x, Ref):
                return name(x.value)
            if isinstance(x, (Dim, np.dtype)):
                return str(x)
            if isinstance(x, tuple):
                return f"({', '.join(map(shown, x))}{',' * (len(x) == 1)})"
            return repr(x)

        lines = []
        for node in self.nodes:
            args = ", ".join(f"{k}={shown(v)}" for k, v in node.args.items() if v is not None)
            results = [k for k in node.results if k is not None]
            left = ", ".join(f"{name(k)} {self.values[k]}" for k in results)
            lines.append(f"    {left} = {node.kernel}({args})")
        inputs = ", ".join(f"{name(k)} {self.values[k]}" for k in self.inputs)
        outputs = ", ".join(name(k) for k in self.outputs)
        return "\n".join([f"program({inputs}):", *lines, f"    return {outputs}"])


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple) and not isinstance(value, (Ref, Dim)):
            yield from _flat(value)
        else:
            yield value


def at_batch(argument: Any, batch: int) -> Any:
    """An argument with its dimensions for a batch of so many rows."""
    if isinstance(argument, Dim):
        return argument.at(batch)
    if isinstance(argument, slice):
        return slice(*(at_batch(n, batch) for n in (argument.start, argument.stop, argument.step)))
    if isinstance(argument, tuple) and not isinstance(argument, Ref):
        return tuple(at_batch(a, batch) for a in argument)
    return argument


# --- as msgpack holds it -----------------------------------------------------------------------
# Numbers, strings, None and arrays of arguments stand for themselves; the rest is a map with one
# key that tells what it is. Constants are in a map from the value's number to a place in the list
# of weights, which the graphs of a file share.


def to_tree(graph: Graph, weights: list[np.ndarray]) -> dict[str, Any]:
    """The graph as what a file's tree holds; its constants are added to the weights, if they are
    not among them."""
    return {
        "values": [[v.dtype.name, _packed(v.shape), v.name] for v in graph.values],
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        "constants": {str(k): _place(array, weights) for k, array in graph.constants.items()},
        "nodes": [
            [n.kernel, {k: _packed(a) for k, a in n.args.items()}, list(n.results), n.line]
            for n in graph.nodes
        ],
    }


def _place(array: np.ndarray, weights: list[np.ndarray]) -> int:
    """Where the array stands in the list, which gets it if it is not there."""
    for n, known in enumerate(weights):
        same = known.__array_interface__["data"] == array.__array_interface__["data"]
        if same and known.shape == array.shape and known.dtype == array.dtype:
            return n
    weights.append(array)
    return len(weights) - 1


def _packed(x: Any) -> Any:
    if isinstance(x, Ref):
        return {"value": x.value}
    if isinstance(x, Dim):
        return {"batch": list(x)}
    if isinstance(x, np.dtype):
        return {"dtype": x.name}
    if isinstance(x, slice):
        return {"slice": [_packed(n) for n in (x.start, x.stop, x.step)]}
    if x is Ellipsis:
        return {"ellipsis": True}
    if isinstance(x, tuple):
        return [_packed(a) for a in x]
    return x


def from_tree(tree: Any, weights: Any) -> Graph:
    """The graph that ``to_tree`` gave with these weights, every part of a type that it can have.
    Raises ProgramError for anything else; whether the kernels can run, ``rules.check`` tells."""
    keys = {"values", "inputs", "outputs", "constants", "nodes"}
    if type(tree) is not dict or set(tree) != keys:
        raise _bad("a program", f"a map of {sorted(keys)}", tree)
    values = [_value(k, v) for k, v in enumerate(_list("the values", tree["values"]))]
    count = len(values)
    constants: dict[int, Any] = {}
    if type(tree["constants"]) is not dict:
        raise _bad("the constants", "a map", tree["constants"])
    for key, place in tree["constants"].items():
        if not re.fullmatch("0|[1-9][0-9]{0,9}", key) or int(key) >= count:
            raise _bad("a constant", "the number of a value", key)
        array = weights[_number(f"constant {key}", place, len(weights))]
        if not isinstance(array, np.ndarray):
            raise _bad(f"the weights at {place}", "a tensor", array)
        constants[int(key)] = array
    graph = Graph(
        values,
        [_number("an input", k, count) for k in _list("the inputs", tree["inputs"])],
        [_number("an output", k, count) for k in _list("the outputs", tree["outputs"])],
        constants,
        [_node(i, n, count) for i, n in enumerate(_list("the nodes", tree["nodes"]))],
    )
    if not graph.inputs or not graph.outputs:
        raise ProgramError("a program has inputs and outputs; this one lacks them")
    _check_order(graph)
    return graph


def _check_order(graph: Graph) -> None:
    """Every value comes from one place, and from before it is read."""
    known: set[int] = set()

    def define(k: int, what: str) -> None:
        if k in known:
            raise ProgramError(f"{what}: value {k} is defined twice")
        known.add(k)

    for k in graph.inputs:
        define(k, "the inputs")
    for k, array in graph.constants.items():
        define(k, "the constants")
        value = graph.values[k]
        if array.shape != value.shape or array.dtype != value.dtype:
            raise ProgramError(
                f"constant {k} {value.name}: declared as {value}, but its tensor is "
                f"{array.dtype.name}{list(array.shape)}"
            )
    for i, node in enumerate(graph.nodes):
        for k in node.reads():
            if k not in known:
                raise ProgramError(f"node {i} ({node.kernel}) reads value {k} before it is made")
        for result in node.results:
            if result is not None:
                define(result, f"node {i} ({node.kernel})")
    for k in graph.outputs:
        if k not in known:
            raise ProgramError(f"the outputs: value {k} is never made")
    if len(known) != len(graph.values):
        raise ProgramError("the values: some are declared and never made")


def _value(k: int, entry: Any) -> Value:
    if type(entry) is not list or len(entry) != 3:
        raise _bad(f"value {k}", "[dtype, shape, name]", entry)
    dtype, shape, name = entry
    if type(dtype) is not str or dtype not in NAMES:
        raise _bad(f"the dtype of value {k}", f"one of {', '.join(sorted(NAMES))}", dtype)
    if not is_text(name):
        raise _bad(f"the name of value {k}", f"up to {TEXT_LIMIT} printable characters", name)
    if type(shape) is not list or len(shape) > 64:
        raise _bad(f"the shape of value {k}", "up to 64 dimensions", shape)
    dims = tuple(_argument(n) for n in shape)
    for n in dims:
        if type(n) is not int and not isinstance(n, Dim):
            raise _bad(f"the shape of value {k}", "ints and batch dimensions", n)
    return Value(np.dtype(dtype), dims, name)


def _node(i: int, entry: Any, count: int) -> Node:
    if type(entry) is not list or len(entry) != 4:
        raise _bad(f"node {i}", "[kernel, arguments, results, line]", entry)
    kernel, args, results, line = entry
    if not is_text(kernel) or type(args) is not dict or not is_text(line):
        raise _bad(f"node {i}", "a kernel's name, a map, an array and a line's name", entry)
    return Node(
        kernel,
        {name: _argument(a, count) for name, a in args.items()},
        tuple(
            None if k is None else _number(f"a result of node {i}", k, count)
            for k in _list(f"the results of node {i}", results)
        ),
        line,
    )


def is_text(x: Any) -> bool:
    """Whether x is a str that may stand in a listing and in messages."""
    return type(x) is str and len(x) <= TEXT_LIMIT and x.isprintable()


def _argument(x: Any, count: int = 0) -> Any:
    if x is None or type(x) in (bool, int, float, str):
        return x
    if type(x) is list:
        return tuple(_argument(a, count) for a in x)
    if type(x) is dict and len(x) == 1:
        ((kind, inside),) = x.items()
        if kind == "value":
            return Ref(_number("an argument", inside, count))
        pair = type(inside) is list and [type(n) for n in inside] == [int, int]
        if kind == "batch" and pair and inside[0]:
            return Dim(*inside)
        if kind == "dtype" and type(inside) is str and inside in NAMES:
            return np.dtype(inside)
        if kind == "slice" and type(inside) is list and len(inside) == 3:
            parts = [_argument(n) for n in inside]
            if all(n is None or type(n) is int or isinstance(n, Dim) for n in parts):
                return slice(*parts)
        if kind == "ellipsis" and inside is True:
            return Ellipsis
    raise _bad("an argument", "a number, a str, a value, a dimension, a dtype or a slice", x)


def _list(what: str, x: Any) -> list[Any]:
    if type(x) is not list:
        raise _bad(what, "an array", x)
    return x


def _number(what: str, k: Any, count: int) -> int:
    if type(k) is not int or not 0 <= k < count:
        raise _bad(what, f"a number from 0 to {count - 1}", k)
    return k


def _bad(what: str, expected: str, got: Any) -> ProgramError:
    text = ascii(got)
    return ProgramError(
        f"{what}: expected {expected}, got {text if len(text) <= 100 else text[:100] + '...'}; the "
        "program is damaged, or was not written by tinygrad_ish"
    )
