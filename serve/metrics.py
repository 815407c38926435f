"""What the server counts, and how it is shown: ``/metrics`` for Prometheus, ``stats`` for the page.

A count is a float64 in a block of memory, so counting is an addition and locks nothing: only the
event loop counts. With several workers each block is a file that its worker maps; whoever is asked
adds them all up. A worker that takes a dead one's place goes on in its file, so no sum ever falls.
A block:

    0       uint64, bytes of names so far
    8       values, float64
    NAMES   names, each a line of JSON, [kind, label, …]: the rows of values in their order
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

if TYPE_CHECKING:
    from .models import Catalog

__all__ = ["LEFT", "Metrics"]

LEFT = 499  # counted as the status of a request whose client has left, as nginx does
SLOTS = 2**18
NAMES = 8 + 8 * SLOTS
SIZE = NAMES + 2**20  # what is not used takes no memory

# bounds in seconds, ten in a decade (R10), 10 µs to 10 s; Prometheus is told 1, 2 and 5
SECONDS = [
    float(f"{step}e{decade}")
    for decade in range(-5, 1)
    for step in (1, 1.25, 1.6, 2, 2.5, 3.2, 4, 5, 6.3, 8)
] + [10.0]
TOLD = [n for n in range(len(SECONDS)) if n % 10 in (0, 3, 7)]
ROWS = [float(2**n) for n in range(13)]

# kind: its labels, and the bounds if it is a histogram
KINDS: dict[str, tuple[tuple[str, ...], list[float]]] = {
    "answered": (("route", "model", "status"), []),
    "latency": (("route", "model"), SECONDS),
    "queued": (("model",), SECONDS),
    "computed": (("model",), SECONDS),
    "batch": (("model",), ROWS),
    "waiting": (("model",), []),
    "connections": ((), []),
    "memory": (("worker",), []),
    "lost": ((), SECONDS),  # where all goes that finds no more room
}
PREFIX = "tinygrad_ish"
REASONS = {"429": "overloaded", str(LEFT): "left", "503": "not_ready", "504": "deadline"}
WINDOW = 10.0  # seconds that ``stats`` looks back

Row = tuple[str, ...]  # kind and labels


def _width(kind: str) -> int:
    """Slots of a row: one, or a histogram's buckets, the one beyond its bounds, and the sum."""
    bounds = KINDS[kind][1]
    return len(bounds) + 2 if bounds else 1


class Metrics:
    """Counts of this process; with a ``folder``, in its file there, and shown with the others'."""

    def __init__(self, folder: str | os.PathLike[str] | None = None, worker: int = 0) -> None:
        self.folder = None if folder is None else Path(folder)
        self.worker = worker
        self.started = time.time()
        if self.folder is None:
            self._memory = mmap.mmap(-1, SIZE)
        else:
            path = self.folder / f"{worker}.counts"
            with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
                file.truncate(SIZE)
                self._memory = mmap.mmap(file.fileno(), SIZE)
        self._values = memoryview(self._memory)[8:NAMES].cast("d")
        self._rows: dict[Row, int] = {}  # where each begins
        self._used = 0
        for row in _names(self._memory):
            self._add(row)
        self._lost = self._row("lost")
        self._answers: dict[tuple[str, str, int], tuple[int, int]] = {}
        self._runs: dict[str, tuple[int, int]] = {}
        self._history: deque[tuple[float, dict[Row, np.ndarray]]] = deque()

    # --- counting ----------------------------------------------------------------------------

    def answered(self, route: str, model: str, status: int, seconds: float) -> None:
        """Count an answer. ``model`` must be a model's name or "", for it is kept."""
        key = (route, model, status)
        rows = self._answers.get(key)
        if rows is None:
            counter = self._row("answered", route, model, str(status))
            rows = self._answers[key] = (counter, self._row("latency", route, model))
        counter, latency = rows
        values = self._values
        values[counter] += 1.0
        values[latency + bisect_left(SECONDS, seconds)] += 1.0
        values[latency + len(SECONDS) + 1] += seconds

    def queued(self, model: str, seconds: float) -> None:
        """Count how long a request waited before it was run."""
        self._observe(self._row("queued", model), SECONDS, seconds)

    def ran(self, model: str, rows: int, requests: int, seconds: float) -> None:
        """Count a run of a batch."""
        places = self._runs.get(model)
        if places is None:
            places = self._row("computed", model), self._row("batch", model)
            self._runs[model] = places
        self._observe(places[0], SECONDS, seconds)
        self._observe(places[1], ROWS, rows)

    def measure(self, catalog: Catalog, connections: int | None = None) -> None:
        """Note what is so now: queues, memory, open connections."""
        for name, versions in catalog.models.items():
            waiting = [v.batcher.waiting for v in versions.values() if v.batcher is not None]
            self._values[self._row("waiting", name)] = float(sum(waiting))
        self._values[self._row("memory", str(self.worker))] = float(_resident())
        if connections is not None:
            self._values[self._row("connections")] = float(connections)

    def _observe(self, row: int, bounds: list[float], value: float) -> None:
        self._values[row + bisect_left(bounds, value)] += 1.0
        self._values[row + len(bounds) + 1] += value

    def _row(self, *row: str) -> int:
        """Where the row of this kind and labels begins; a new one is added."""
        place = self._rows.get(row)
        if place is not None:
            return place
        line = orjson.dumps(row) + b"\n"
        (used,) = struct.unpack_from("<Q", self._memory)
        if self._used + _width(row[0]) > SLOTS or NAMES + used + len(line) > SIZE:
            return self._lost
        self._memory[NAMES + used : NAMES + used + len(line)] = line
        struct.pack_into("<Q", self._memory, 0, used + len(line))  # last: now others see it
        return self._add(row)

    def _add(self, row: Row) -> int:
        self._rows[row] = place = self._used
        self._used += _width(row[0])
        return place

    # --- showing -----------------------------------------------------------------------------

    def totals(self) -> dict[Row, np.ndarray]:
        """The values of each row, summed over the workers."""
        found: dict[Row, np.ndarray] = {}
        for block in self._blocks():
            values = np.frombuffer(block, np.float64, SLOTS, 8)
            place = 0
            for row in _names(block):
                stop = place + _width(row[0])
                found[row] = found.get(row, 0.0) + values[place:stop]
                place = stop
        return found

    def _blocks(self) -> Iterator[Any]:
        if self.folder is None:
            yield self._memory
            return
        for path in sorted(self.folder.glob("*.counts")):
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size == SIZE:  # else it is just being made
                    yield mmap.mmap(file.fileno(), SIZE, access=mmap.ACCESS_READ)

    def stats(self) -> dict[str, Any]:
        """What the page shows, of the last seconds: rates, quantiles in milliseconds, batch sizes,
        queues; in all and by model."""
        now, totals = time.time(), self.totals()
        while len(self._history) > 1 and now - self._history[1][0] > WINDOW:
            self._history.popleft()
        since, before = self._history[0] if self._history else (self.started, {})
        if not self._history or now - self._history[-1][0] > 0.5:
            self._history.append((now, totals))
        seconds = max(now - since, 1e-3)
        recent = {row: values - before.get(row, 0.0) for row, values in totals.items()}
        names = sorted({row[1] for row in totals if row[0] == "waiting"})
        return {
            "uptime": now - self.started,
            "seconds": seconds,
            "connections": int(_sum(totals, "connections")[0]),
            **_answers(recent, totals, seconds),
            "models": {name: _of_model(recent, totals, seconds, name) for name in names},
        }

    def expose(self, catalog: Catalog, accept: str = "") -> tuple[bytes, str]:
        """The text for Prometheus and its content type."""
        from prometheus_client import CollectorRegistry, exposition

        registry = CollectorRegistry(auto_describe=False)
        totals = self.totals()
        registry.register(_Families(lambda: _families(totals, catalog)))
        encode, content_type = exposition.choose_encoder(accept)
        return encode(registry), content_type


def _names(block: Any) -> list[Row]:
    (used,) = struct.unpack_from("<Q", block)
    return [tuple(orjson.loads(line)) for line in bytes(block[NAMES : NAMES + used]).splitlines()]


def _resident() -> int:
    """Bytes of memory that the process holds, 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


# --- for the page --------------------------------------------------------------------------------


def _sum(rows: dict[Row, np.ndarray], kind: str, model: str | None = None) -> np.ndarray:
    """The sum of the rows of a kind: of one model, or of all but what is of no model."""
    labels = KINDS[kind][0]
    total = np.zeros(_width(kind))
    for row, values in rows.items():
        if row[0] == kind:
            of = row[1 + labels.index("model")] if "model" in labels else "all"
            if of and model in (None, of):
                total += values
    return total


def _answers(
    recent: dict[Row, np.ndarray],
    totals: dict[Row, np.ndarray],
    seconds: float,
    model: str | None = None,
) -> dict[str, Any]:
    statuses: dict[str, int] = {}
    for row, values in recent.items():
        if row[0] == "answered" and row[2] and model in (None, row[2]) and values[0]:
            statuses[row[3]] = statuses.get(row[3], 0) + int(values[0])
    return {
        "requests": int(_sum(totals, "answered", model)[0]),
        "requests_per_second": sum(statuses.values()) / seconds,
        "statuses": statuses,
        **_quantiles("", _sum(recent, "latency", model)),
    }


def _of_model(
    recent: dict[Row, np.ndarray], totals: dict[Row, np.ndarray], seconds: float, name: str
) -> dict[str, Any]:
    batch = _sum(recent, "batch", name)
    counts = batch[:-1]
    return {
        **_answers(recent, totals, seconds, name),
        **_quantiles("queue_", _sum(recent, "queued", name)),
        **_quantiles("compute_", _sum(recent, "computed", name)),
        "batches_per_second": float(counts.sum()) / seconds,
        "rows_per_second": float(batch[-1]) / seconds,
        # [up to so many rows, batches]; the last is all that is larger
        "batch_sizes": [[int(n), int(c)] for n, c in zip([*ROWS, 2 * ROWS[-1]], counts) if c],
        "queue": int(_sum(totals, "waiting", name)[0]),
    }


def _quantiles(what: str, histogram: np.ndarray) -> dict[str, float | None]:
    """p50 and p99 in milliseconds; None where nothing was counted."""
    counts = histogram[:-1]
    reached = np.concatenate([[0.0], np.cumsum(counts)])
    if not reached[-1]:
        return {f"{what}p50_ms": None, f"{what}p99_ms": None}
    edges = np.array([0.0, *SECONDS, SECONDS[-1]])
    return {
        f"{what}p{percent}_ms": float(np.interp(reached[-1] * percent / 100, reached, edges)) * 1e3
        for percent in (50, 99)
    }


# --- for Prometheus ------------------------------------------------------------------------------


class _Families:
    """What prometheus_client asks for when it collects."""

    def __init__(self, collect: Callable[[], Iterator[Any]]) -> None:
        self.collect = collect


def _families(totals: dict[Row, np.ndarray], catalog: Catalog) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.core import HistogramMetricFamily as Histogram

    def rows(kind: str) -> list[tuple[tuple[str, ...], np.ndarray]]:
        return sorted((row[1:], values) for row, values in totals.items() if row[0] == kind)

    def histogram(kind: str, name: str, about: str) -> Any:
        labels, bounds = KINDS[kind]
        shown = TOLD if bounds is SECONDS else range(len(bounds))
        family = Histogram(f"{PREFIX}_{name}", about, labels=labels)
        for values, row in rows(kind):
            reached = np.cumsum(row[:-1])
            buckets = [(str(bounds[n]), float(reached[n])) for n in shown]
            family.add_metric(values, [*buckets, ("+Inf", float(reached[-1]))], float(row[-1]))
        return family

    requests = CounterMetricFamily(
        f"{PREFIX}_requests", "Answers by route, model and HTTP status.",
        labels=("route", "model", "status"),
    )  # fmt: skip
    refused = CounterMetricFamily(
        f"{PREFIX}_refused", "Requests that a model did not answer, by reason.",
        labels=("model", "reason"),
    )  # fmt: skip
    lost: dict[tuple[str, str], float] = {}
    for labels, values in rows("answered"):
        requests.add_metric(labels, float(values[0]))
        _, model, status = labels
        if model and status in REASONS:
            key = model, REASONS[status]
            lost[key] = lost.get(key, 0.0) + float(values[0])
    for key, count in lost.items():
        refused.add_metric(key, count)
    yield requests
    yield refused
    yield histogram("latency", "request_seconds", "From a request's head to its answer.")
    yield histogram("queued", "queue_seconds", "From a request's arrival in a queue to its run.")
    yield histogram("computed", "compute_seconds", "How long a batch ran.")
    yield histogram("batch", "batch_rows", "Rows of a batch.")
    for kind, name, about in (
        ("waiting", "waiting_requests", "Requests in the queue of a model."),
        ("connections", "connections", "Open connections."),
        ("memory", "resident_memory_bytes", "Memory that a worker holds, shared pages included."),
    ):
        gauge = GaugeMetricFamily(f"{PREFIX}_{name}", about, labels=KINDS[kind][0])
        for labels, values in rows(kind):
            gauge.add_metric(labels, float(values[0]))
        yield gauge
    loaded = GaugeMetricFamily(
        f"{PREFIX}_model_ready", "Whether a version of a model is loaded, in the worker asked.",
        labels=("model", "version"),
    )  # fmt: skip
    for name, versions in catalog.models.items():
        for version in versions.values():
            loaded.add_metric((name, version.number), float(version.state == "ready"))
    yield loaded
