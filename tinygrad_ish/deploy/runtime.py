"""From a program's file to answers. Needs NumPy and msgpack; uses Numba where it is installed.

The tree of a file of the kind "program":

    program   the forward, as ``graph.to_tree`` gives it
    prepare   None, or the preprocessing alone, as a program
    gradient  None, or a program of (what the model is given after the preprocessing, a weight for
              each element of its first output before the postprocessing) that gives the gradient of
              the weighted sum
    weights   the constants of all of these
    sample    inputs that the model was given when it was exported, what it answered, and for each
              result of each node three numbers (``fingerprint``)
    labels, features, top_k    what ``predict`` says with, or None
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import autograd, program
from ..device import resolve
from ..kernels import Backend
from ..tensor import Tensor
from ..weights import Mapped, StrPath, WeightsError
from . import rules
from .graph import Dim, Graph, Node, ProgramError, Ref, at_batch, from_tree

__all__ = ["ExportedProgram", "Signature", "fingerprint", "load_program"]

AT_ONCE = 32 * 2**20  # bytes of weights that are verified as the file is loaded
IN_MEMORY = 64 * 2**20  # bytes of weights
KEPT = (
    64  # batch sizes for which it is kept how they run; recording takes as long as some ten calls
)
KEPT_ROWS = 256  # of larger batches one rarely sees the same size again
KEPT_NODES = 256  # the time to record grows with their square
BLOCK = 2**20  # elements that are looked at together
SAMPLE_ROWS = 4  # of the example, at most
KEYS = {"program", "prepare", "gradient", "weights", "sample", "labels", "features", "top_k"}
TOLERANCE = {2: 2e-2, 4: 2e-4, 8: 1e-9}  # by bytes of a float, of the largest size in an array


class Signature(NamedTuple):
    """What one input or output is: name, dtype, and shape with None for the batch."""

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...]

    def fits(self, x: Any) -> bool:
        """Whether x is an array of this dtype and shape, with a batch as first axis."""
        shape = self.shape
        return (
            x.__class__ is np.ndarray
            and x.dtype == self.dtype
            and len(x.shape) == len(shape)
            and x.shape[1:] == shape[1:]
            and shape[:1] == (None,)
        )


def load_program(path: StrPath, device: Any = None) -> ExportedProgram:
    """The program that ``tg.export`` wrote to ``path``, to run on ``device`` (the default one).

    The weights stay in the file, mapped: processes that load it share one copy. It must not be
    written to meanwhile (``export`` and ``publish`` never do; they put a new file in its place).
    Everything is checked: the structure at once; the weights' checksums, and the answer to the
    sample in the file, at once if the weights are small, else before the first answer, or when
    ``verify()`` is called.

    Raises ProgramError (a ValueError) for a file that is foreign, damaged, hostile or newer, and
    OSError where it cannot be read.
    """
    try:
        mapped = Mapped(path, "program")
    except WeightsError as error:  # it names the file
        raise ProgramError(str(error)) from None
    try:
        loaded = ExportedProgram(mapped, resolve(device))
    except ProgramError as error:
        raise ProgramError(f"{mapped.name}: {error}") from None
    if mapped.nbytes <= AT_ONCE:
        loaded.verify()
    return loaded


class ExportedProgram:
    """A program from a file: call it with arrays. Print it for a listing.

    ``inputs`` and ``outputs`` are Signatures; ``metadata``, ``labels`` (class names), ``features``
    (names of the columns of a table) and ``top_k`` are as they were exported; ``graph`` and
    ``gradient_graph`` (or None) are what runs.
    """

    def __init__(self, mapped: Mapped, backend: Backend) -> None:
        tree = mapped.tree
        if type(tree) is not dict or set(tree) != KEYS:
            raise ProgramError(
                f"a program's file holds {', '.join(sorted(KEYS))}; this one does not"
            )
        self.backend = backend
        self.metadata: dict[str, Any] = mapped.metadata
        weights = tree["weights"]
        if type(weights) is not list:
            raise ProgramError(f"weights: expected an array, got {type(weights).__name__}")
        self.graph = _checked(tree["program"], weights)
        self.prepare_graph, self.gradient_graph = (
            None if tree[key] is None else _checked(tree[key], weights)
            for key in ("prepare", "gradient")
        )
        self.labels = _names("labels", tree["labels"])
        self.features = _names("features", tree["features"])
        self.top_k = tree["top_k"]
        check_companions(self.graph, self.prepare_graph, self.gradient_graph)
        check_names(self.graph, self.features, self.labels, self.top_k)
        self.inputs = [_signature(self.graph, k) for k in self.graph.inputs]
        self.outputs = [_signature(self.graph, k) for k in self.graph.outputs]
        self._sample = _checked_sample(self.graph, tree["sample"])
        self._mapped: Mapped | None = mapped  # until it is verified
        self._runners: dict[str, Runner] = {}

    def __call__(self, *inputs: Any) -> Any:
        """The output as a NumPy array, a tuple of them if there are several.

        Inputs are arrays, nested lists or tensors, of the dtypes and shapes that ``inputs`` says,
        with the same number of rows; Python numbers and floats of another precision are converted.
        Raises ProgramError for what does not fit.
        """
        results = self.run(self.take(*inputs))
        return results[0] if len(results) == 1 else results

    def prepare(self, *inputs: Any) -> Any:
        """The inputs after the preprocessing, as the model takes them, and ``gradient``."""
        self.verify()
        arrays = self._taken(self.inputs, inputs)
        if self.prepare_graph is not None:
            arrays[0] = self._runner("prepare_graph")(arrays[:1])[0]
        return arrays[0] if len(arrays) == 1 else tuple(arrays)

    def gradient(self, *prepared: Any, weight: Any) -> Any:
        """The gradient of Σ weight · scores with respect to what ``prepare`` gives: one array, or a
        tuple.

        ``weight`` has the shape of the scores, the model's first output before the postprocessing:
        1 at a class and 0 elsewhere explains that class. Raises ProgramError if the program was
        exported without gradient=True.
        """
        self.verify()
        if self.gradient_graph is None:
            raise ProgramError("gradient: the program has none; export it with gradient=True")
        graph = self.gradient_graph
        expected = [_signature(graph, k) for k in graph.inputs]
        results = self._runner("gradient_graph")(self._taken(expected, (*prepared, weight)))
        return results[0] if len(results) == 1 else results

    def _runner(self, name: str) -> Runner:
        if name not in self._runners:
            self._runners[name] = Runner(getattr(self, name), self.backend)
        return self._runners[name]

    def predict(self, *inputs: Any) -> list[Any]:
        """For each row of the first output: with labels, ``top_k`` pairs (label, probability), the
        most probable first; without, the row as a number or nested lists."""
        rows = self.run(self.take(*inputs))[0]
        return list(rows.tolist()) if self.labels is None else self.best(rows)

    def best(self, rows: np.ndarray) -> list[list[tuple[str, float]]]:
        """The ``top_k`` labels of each row of probabilities (N, classes), most probable first."""
        assert self.labels is not None
        count = self.top_k or len(self.labels)
        order = np.argsort(-rows, axis=1, kind="stable")[:, :count]
        best = np.take_along_axis(rows, order, 1).tolist()
        return [
            [(self.labels[k], p) for k, p in zip(ks, ps, strict=True)]
            for ks, ps in zip(order.tolist(), best, strict=True)
        ]

    def verify(self) -> None:
        """Check the weights' checksums and the answer to the sample, if that was not done yet.

        Raises ProgramError for damaged weights, or naming the kernel from which on the results are
        others than at the export.
        """
        mapped = self._mapped
        if mapped is None:
            return
        try:
            mapped.verify()
            _compare(self._runner("graph"), *self._sample)
        except ValueError as error:
            raise ProgramError(f"{mapped.name}: {error}") from None
        self._mapped = None

    @property
    def sample_inputs(self) -> list[np.ndarray]:
        """The inputs in the file that the program checks itself with: some rows of its example."""
        return self._sample[0]

    def __str__(self) -> str:
        return str(self.graph)

    def __repr__(self) -> str:
        shown = ", ".join(f"{s.name} {s.dtype.name}{list(s.shape)}" for s in self.inputs)
        given = ", ".join(f"{s.name} {s.dtype.name}{list(s.shape)}" for s in self.outputs)
        return f"ExportedProgram({shown} -> {given}; {len(self.graph.nodes)} kernels)"

    def take(self, *inputs: Any) -> list[np.ndarray]:
        """The inputs as arrays of the dtypes and shapes that the program takes, without running it.
        Raises ProgramError for what does not fit."""
        return self._taken(self.inputs, inputs)

    def run(self, inputs: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        """All outputs, for what ``take`` gave."""
        self.verify()
        return self._runner("graph")(inputs)

    def _taken(self, expected: list[Signature], inputs: tuple[Any, ...]) -> list[np.ndarray]:
        if len(inputs) != len(expected):
            names = ", ".join(s.name for s in expected)
            raise ProgramError(f"expected {len(expected)} inputs ({names}), got {len(inputs)}")
        arrays = [x if s.fits(x) else _array(s, x) for s, x in zip(expected, inputs, strict=True)]
        if len(arrays) > 1:
            _check_rows(expected, arrays)
        return arrays


def _check_rows(expected: list[Signature], arrays: list[np.ndarray]) -> None:
    rows = {len(a): s.name for s, a in zip(expected, arrays, strict=True) if s.shape[:1] == (None,)}
    if len(rows) > 1:
        found = ", ".join(f"{name} has {n}" for n, name in rows.items())
        raise ProgramError(f"the inputs must have the same number of rows: {found}")


def _signature(graph: Graph, k: int) -> Signature:
    value = graph.values[k]
    shape = tuple(None if isinstance(n, Dim) else n for n in value.shape)
    return Signature(value.name, value.dtype, shape)


def _checked(tree: Any, weights: list[Any]) -> Graph:
    graph = from_tree(tree, weights)
    for k in graph.inputs:
        for axis, n in enumerate(graph.values[k].shape):
            if isinstance(n, Dim) and (axis, n) != (0, Dim(1, 0)):
                raise ProgramError(f"input {graph.values[k].name}: only its first axis may be {n}")
    rules.check(graph)
    return graph


def _names(what: str, names: Any) -> list[str] | None:
    if names is not None and (type(names) is not list or not all(type(n) is str for n in names)):
        raise ProgramError(f"{what}: expected an array of str, got {type(names).__name__}")
    return names


def check_names(
    graph: Graph,
    features: Sequence[str] | None,
    labels: Sequence[str] | None,
    top_k: int | None,
) -> None:
    """Raise ProgramError unless the names are as many as the columns of the input and output."""
    first, result = graph.values[graph.inputs[0]], graph.values[graph.outputs[0]]
    for what, names, value in (("features", features, first), ("labels", labels, result)):
        if names is not None and (len(value.shape) != 2 or value.shape[1] != len(names)):
            raise ProgramError(
                f"{what}: {len(names)} names are for an array of [batch, {len(names)}], but "
                f"{value.name} is {value}"
            )
    if labels is not None and result.dtype.kind != "f":
        raise ProgramError(f"labels: they go with probabilities, but {result.name} is {result}")
    most = len(labels or [])
    if top_k is not None and (type(top_k) is not int or not 1 <= top_k <= most):
        raise ProgramError(
            f"top_k: expected an int from 1 to the number of labels, {most}; got {top_k!r}"
        )


def check_companions(graph: Graph, prepare: Graph | None, gradient: Graph | None) -> None:
    """Raise ProgramError unless ``prepare`` takes the program's first input, and ``gradient`` what
    the model is given then, a weight besides, and gives arrays like it."""

    def kinds(of: Graph, numbers: Sequence[int]) -> list[Any]:
        return [(of.values[k].dtype, of.values[k].shape) for k in numbers]

    taken = kinds(graph, graph.inputs)
    if prepare is not None:
        if kinds(prepare, prepare.inputs) != taken[:1] or len(prepare.outputs) != 1:
            raise ProgramError("prepare: expected a program of the first input, with one output")
        taken[:1] = kinds(prepare, prepare.outputs)
    if gradient is not None:
        *given, _ = kinds(gradient, gradient.inputs)
        if given != taken or kinds(gradient, gradient.outputs) != taken:
            raise ProgramError(
                "gradient: expected a program of what the model is given and a weight, with an "
                "output like each input"
            )


def _checked_sample(graph: Graph, sample: Any) -> tuple[list[Any], list[Any], list[Any]]:
    keys = ("inputs", "outputs", "prints")
    if type(sample) is not dict or not all(type(sample.get(key)) is list for key in keys):
        raise ProgramError("the sample: expected arrays of inputs, outputs and prints")
    inputs, outputs, prints = (sample[key] for key in keys)
    rows = {
        len(x)
        for x, k in zip(inputs, graph.inputs)
        if _is_batched(graph, k) and isinstance(x, np.ndarray) and x.ndim
    }
    batch = rows.pop() if len(rows) == 1 else 1
    if batch > SAMPLE_ROWS:
        raise ProgramError(f"the sample: expected at most {SAMPLE_ROWS} rows, got {batch}")
    for arrays, numbers in ((inputs, graph.inputs), (outputs, graph.outputs)):
        fit = len(arrays) == len(numbers) and all(
            isinstance(x, np.ndarray)
            and x.shape == graph.values[k].at(batch)
            and x.dtype == graph.values[k].dtype
            for x, k in zip(arrays, numbers, strict=True)
        )
        if not fit:
            raise ProgramError("the sample: its arrays are not like the inputs and outputs")
    results = [k for node in graph.nodes for k in node.results if k is not None]
    if len(prints) != len(results) or not all(_is_print(p) for p in prints):
        raise ProgramError("the sample: expected three numbers for each result")
    return inputs, outputs, prints


def _is_batched(graph: Graph, k: int) -> bool:
    return graph.values[k].shape[:1] == (Dim(1, 0),)


def _is_print(p: Any) -> bool:
    return type(p) is list and len(p) == 3 and all(type(n) is float for n in p)


def _array(expected: Signature, x: Any) -> np.ndarray:
    """x as an array of the input's dtype and shape; ProgramError if it is none."""
    if isinstance(x, Tensor):
        x = x.detach().cpu().numpy()
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise ProgramError(f"input {expected.name}: not an array: {error}") from None
    shape = expected.shape
    if array.ndim != len(shape) or any(
        n is not None and n != m for n, m in zip(shape, array.shape, strict=True)
    ):
        wanted = ", ".join("batch" if n is None else str(n) for n in shape)
        raise ProgramError(
            f"input {expected.name}: expected shape [{wanted}], got {list(array.shape)}"
        )
    if array.dtype == expected.dtype:
        return array
    return _converted(expected, array)


def _converted(expected: Signature, array: np.ndarray) -> np.ndarray:
    """Numbers of another dtype whose values the expected one can hold."""
    to, kind = expected.dtype, array.dtype.kind
    if to.kind == "f" and kind in "fiu":
        with np.errstate(over="ignore"):
            return array.astype(to)
    if to.kind in "iu" and kind in "iu":
        limits = np.iinfo(to)
        if not array.size or (array.min() >= limits.min and array.max() <= limits.max):
            return array.astype(to)
        raise ProgramError(
            f"input {expected.name}: expected {to.name}, {limits.min} to {limits.max}; got values "
            f"from {array.min()} to {array.max()}"
        )
    if not array.size:  # an empty list is float64
        return array.astype(to)
    raise ProgramError(f"input {expected.name}: expected {to.name}, got {array.dtype}")


# --- running -----------------------------------------------------------------------------------


class Runner:
    """Performs a graph on a backend. What it runs for a batch size is kept for the next time."""

    def __init__(self, graph: Graph, backend: Backend) -> None:
        self.graph = graph
        self.backend = backend
        self._kept: dict[int, tuple[program.Replay, list[Any]]] = {}  # and where the outputs are
        self._lock = threading.Lock()
        self._dying = graph.last_reads()
        self._batched = [n for n, k in enumerate(graph.inputs) if _is_batched(graph, k)]

    @functools.cached_property
    def constants(self) -> dict[int, Tensor]:
        """The weights on the backend's device. On the CPU they stay in the file, but for small
        ones that Numba's ``linear`` reads: they are kept as it reads them fastest, one copy for all
        batch sizes. (Its results do not depend on how they lie; BLAS's do.)"""
        backend, constants = self.backend, self.graph.constants
        large = sum(a.nbytes for a in constants.values()) > IN_MEMORY
        copied = self._weights if backend.name == "numba" and not large else set()
        found = {}
        for k, a in constants.items():
            if k in copied:
                a = np.ascontiguousarray(a.T).T
            found[k] = tensor = Tensor(backend.asarray(a), backend)
            tensor._version.exposed = large  # a compiled step makes no copy of it
        return found

    @property
    def _weights(self) -> set[int]:
        given = [n.args["w"] for n in self.graph.nodes if n.kernel == "linear"]
        return {w.value for w in given if isinstance(w, Ref)}

    def __call__(self, inputs: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        """The outputs for inputs that fit."""
        program.refuse_inside()
        k, batch = self.backend, self.batch(inputs)
        arrays = [k.asarray(x) for x in inputs] if k.device != "cpu" else inputs
        with self._lock:
            kept = self._kept.get(batch)
            if kept is None:
                return self._first(arrays, batch)
            replay, outputs = kept
            replay.perform(arrays)
            return tuple([k.to_numpy(x).copy() for x in outputs])

    def batch(self, inputs: list[np.ndarray]) -> int:
        """The rows of the inputs; 1 where none has a batch."""
        return len(inputs[self._batched[0]]) if self._batched else 1

    def _first(self, arrays: list[Any], batch: int) -> tuple[np.ndarray, ...]:
        """The outputs, kernel by kernel; for a small batch it is recorded how."""
        k = self.backend
        tensors = [Tensor(x, k) for x in arrays]
        with autograd.no_grad():
            if not self._is_worth_keeping(batch):
                results = self._evaluate(*tensors)
            else:
                results, replay = program.record(self._evaluate, tensors, tensors, {})
                self._kept[batch] = replay, replay.program.outputs
        # A copy: a view would show the caller's input, or the file.
        return tuple([k.to_numpy(r._array).copy() for r in results])

    def _is_worth_keeping(self, batch: int) -> bool:
        few = len(self._kept) < KEPT and len(self.graph.nodes) <= KEPT_NODES
        return few and 0 < batch <= KEPT_ROWS

    def _evaluate(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        arrays = [x._array for x in inputs]
        values = dict(zip(self.graph.inputs, arrays, strict=True))
        for _ in self.steps(values, self.batch(arrays)):
            pass
        return tuple(Tensor(values[k], self.backend) for k in self.graph.outputs)

    def steps(self, values: dict[int, Any], batch: int) -> Iterator[Node]:
        """Perform node after node, giving each when its results are among the values."""
        recorder = autograd.recorder()
        for k, tensor in self.constants.items():
            if recorder is not None:
                recorder.saw(tensor)
            values[k] = tensor._array

        def argument(a: Any) -> Any:
            if isinstance(a, Ref):
                return values[a.value]
            if isinstance(a, tuple) and not isinstance(a, Dim):
                return tuple(argument(x) for x in a)
            return at_batch(a, batch)

        for node, dying in zip(self.graph.nodes, self._dying, strict=True):
            kernel = getattr(self.backend, node.kernel)
            results = kernel(**{name: argument(a) for name, a in node.args.items()})
            results = results if isinstance(results, tuple) else (results,)
            values.update({k: r for k, r in zip(node.results, results) if k is not None})
            yield node
            for k in dying:
                del values[k]


# --- the sample --------------------------------------------------------------------------------


def fingerprint(x: np.ndarray) -> list[float]:
    """Three numbers that change when an array does: how many elements are not finite, the mean
    size of the others, and a weighted mean that also tells their order."""
    odd = size = weighted = 0.0
    for start in range(0, x.size, BLOCK):
        block = x.flat[start : start + BLOCK].astype(np.float64)
        finite = np.isfinite(block)
        numbers = np.where(finite, block, 0.0)
        weights = np.modf(np.arange(start, start + block.size) * 0.6180339887498949)[0]
        odd += block.size - finite.sum()
        size += np.abs(numbers).sum()
        weighted += (numbers * weights).sum()
    count = max(x.size, 1)
    return [float(odd), float(size / count), float(weighted / count)]


def answers(runner: Runner, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """The outputs, kernel by kernel and not recorded."""
    program.refuse_inside()
    values = dict(zip(runner.graph.inputs, map(runner.backend.asarray, inputs), strict=True))
    for _ in runner.steps(values, runner.batch(inputs)):
        pass
    return [runner.backend.to_numpy(values[k]) for k in runner.graph.outputs]


def trace(runner: Runner, inputs: list[np.ndarray]) -> tuple[list[Any], list[list[float]]]:
    """The outputs, and the fingerprint of each result of each node."""
    values = dict(zip(runner.graph.inputs, map(runner.backend.asarray, inputs), strict=True))
    prints = []
    for node in runner.steps(values, runner.batch(inputs)):
        results = [k for k in node.results if k is not None]
        prints += [fingerprint(runner.backend.to_numpy(values[k])) for k in results]
    return [runner.backend.to_numpy(values[k]) for k in runner.graph.outputs], prints


def _compare(
    runner: Runner, inputs: list[np.ndarray], outputs: list[np.ndarray], prints: list[list[float]]
) -> None:
    with as_program_error():
        if all(map(close, answers(runner, inputs), outputs)):
            return
        _, found_prints = trace(runner, inputs)
    graph = runner.graph
    makers = [(node, k) for node in graph.nodes for k in node.results if k is not None]
    for (node, k), got, expected in zip(makers, found_prints, prints, strict=True):
        width = graph.values[k].dtype.itemsize
        least = TOLERANCE.get(width, 0.0) * max(expected[1], 1e-6)
        if (
            got[0] != expected[0]
            or max(abs(got[1] - expected[1]), abs(got[2] - expected[2])) > least
        ):
            raise ProgramError(
                f"the answer to the sample in the file is another than at the export; it starts at "
                f"{node.kernel} ({node.line or f'value {k}'}), whose results have the mean size "
                f"{got[1]:.6g}, expected {expected[1]:.6g}: the {runner.backend.name} kernels of "
                "this version do not compute what those of the export did"
            )
    raise ProgramError("the answer to the sample in the file is another than at the export")


@contextlib.contextmanager
def as_program_error() -> Iterator[None]:
    """What a kernel refuses, a program must not ask for."""
    try:
        yield
    except ProgramError:
        raise
    except (ValueError, TypeError, IndexError, OverflowError, MemoryError) as error:
        raise ProgramError(f"the program cannot run: {error}") from error


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two answers are the same, floats but for rounding."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind != "f":
        return bool((a == b).all())
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    scale = np.abs(b[finite].astype(np.float64)).max(initial=1e-6)
    difference = np.abs(a[finite].astype(np.float64) - b[finite]).max(initial=0.0)
    return bool(difference <= TOLERANCE[a.dtype.itemsize] * scale)
