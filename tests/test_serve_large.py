"""Large bodies: read in pieces, beside the event loop, and to the same numbers."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tinygrad_ish as tg

pytest.importorskip("starlette", reason="starlette is not installed")

from tinygrad_ish.serve import bodies, large
from tinygrad_ish.serve.app import create_app
from tinygrad_ish.serve.settings import Settings

from .asgi import Client

X = np.random.default_rng(0).normal(size=(500, 30)).astype("f4")  # some 160 kB of JSON
LIMITS = {"PIECE": 16, "LARGE": 60}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LIMITS.items():
        monkeypatch.setattr(large, name, value)


# --- the same as orjson ------------------------------------------------------------------------


def check_same(found: Any, expected: Any) -> None:
    """A document, and what it is where its arrays are lists."""
    if isinstance(found, np.ndarray):
        whole = all(type(x) is int for x in np.ravel(np.array(expected, object)))
        assert found.dtype == (np.int64 if whole else np.float64)
        np.testing.assert_array_equal(found, np.array(expected, found.dtype))
        return
    assert type(found) is type(expected)
    if isinstance(found, dict):
        assert list(found) == list(expected)
        expected = list(expected.values())
        found = list(found.values())
    if not isinstance(found, list):
        assert found == expected
        return
    for one, other in zip(found, expected, strict=True):
        check_same(one, other)


def same(body: bytes) -> None:
    """Read a body both ways; what comes must be equal, or both be refused."""
    try:
        expected = orjson.loads(body)
    except ValueError as error:
        with pytest.raises(orjson.JSONDecodeError) as refused:
            large.loads(body)
        assert str(refused.value) == str(error)
        return
    check_same(large.loads(body), expected)


SPACES = st.sampled_from(["", " ", "\n  ", " " * 20])
NUMBERS = st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text("ab:,[]{}\"'\\ul\n")
NAMES = st.sampled_from(["inputs", "data", "x", ":", "[1,2"])
SHAPES = st.lists(st.integers(0, 9), min_size=1, max_size=4)


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """Nested lists of numbers, alike in all rows."""
    shape = draw(SHAPES)
    leaf = draw(st.sampled_from([st.integers(-99, 99), st.floats(-9, 9), NUMBERS]))
    some = draw(st.lists(leaf, min_size=1, max_size=7))
    return np.resize(np.array(some, object), shape).tolist()


DOCUMENTS = st.recursive(
    arrays() | LEAVES,
    lambda v: st.lists(v, max_size=4) | st.dictionaries(NAMES, v, max_size=3),
    max_leaves=6,
)


@pytest.mark.usefixtures("small_pieces")
@given(DOCUMENTS, SPACES, SPACES)
def test_a_body_is_read_as_orjson_reads_it(document: Any, comma: str, colon: str) -> None:
    same(json.dumps(document, separators=(comma + "," + comma, colon + ":" + colon)).encode())


@pytest.mark.usefixtures("small_pieces")
@given(arrays(), st.data())
@example([[1, 2], [3, 4]] * 9, None)
def test_a_broken_body_is_refused_as_orjson_does(rows: Any, data: Any) -> None:
    body = json.dumps({"inputs": rows, "more": [1]}).encode()
    if data is not None:
        at = data.draw(st.integers(0, len(body) - 1))
        put = data.draw(
            st.sampled_from([b"", b",", b"]", b"[", b" ", b'"', b"1", b":", b"}", b"e"])
        )
        body = body[:at] + put + body[at + data.draw(st.integers(0, 1)) :]
    same(body)


BROKEN = [
    b'{"x": [%s,]}', b'{"x": [%s, ,1]}', b'{"x": [,%s]}', b'{"x": [%s', b'{"x": [%s}',
    b'{"x": [%s               ,                ,1]}', b'{"x": [[%s],[1,2]]}', b'{"x": [%s,"a"]}',
    b'{"x": [%s,null]}', b'{"x": [%s,true]}', b'{"x": [%s,[1]]}', b'{"x": "[%s]"}', b'{"x": [%s]]}',
    b'{"x:[%s]": 1}', b'{"x": [%s], "x": 1}', b'{"x": [%s, 18446744073709551615]}',
    b'{"x": [%s, 1e999]}',
    b'{"x": ' + b"[" * 40 + b"%s" + b"]" * 40 + b"}", b'{"x": [%s] 1}', b'[%s]', b'{"x"  [%s]}',
]  # fmt: skip


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("form", BROKEN)
def test_what_is_no_array_of_numbers(form: bytes) -> None:
    same(form % b", ".join([b"%d" % n for n in range(50)]))


def test_large_arrays_are_arrays_and_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    longest: list[int] = []
    loads = orjson.loads
    monkeypatch.setattr(
        large.orjson, "loads", lambda text: longest.append(len(text)) or loads(text)
    )
    for shape in ((-1, 30), (-1, 5, 6), (-1,), (1, 1, 500, 30)):
        longest.clear()
        body = orjson.dumps(
            {"id": "a", "inputs": [{"data": X.reshape(shape)}], "n": 1},
            option=orjson.OPT_SERIALIZE_NUMPY,
        )
        assert len(body) > large.LARGE
        found = large.loads(body)
        assert found["id"] == "a" and found["n"] == 1
        np.testing.assert_array_equal(found["inputs"][0]["data"].astype("f4"), X.reshape(shape))
        if shape != (1, 1, 500, 30):  # one row is one piece
            assert max(longest) < 1.2 * large.PIECE


# --- through the server ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    tg.export(lambda x: (x + x)[:, :1], X[:2], folder / "m.msgpack", inputs=["x"], outputs=["y"])
    tg.export(lambda x: x[:, :1], X[:2].astype("u1"), folder / "u.msgpack")
    return folder


@pytest.fixture
def client(folder: Path) -> Iterator[Client]:
    sources = sorted(folder.iterdir())
    with Client(create_app(sources, Settings(reload=False), device="numpy")) as client:
        yield client


ASKED = {
    "native": ("/predict", {"inputs": X.tolist()}, lambda d: d["outputs"]["y"]),
    "by name": ("/predict", {"inputs": {"x": X.tolist()}}, lambda d: d["outputs"]["y"]),
    "v2": (
        "/v2/models/m/infer",
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [500, 30], "data": X.tolist()}]},
        lambda d: d["outputs"][0]["data"],
    ),
    "v2, flat": (
        "/v2/models/m/infer",
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [500, 30],
                     "data": X.ravel().tolist()}]},
        lambda d: d["outputs"][0]["data"],
    ),
    "rows": ("/v1/models/m:predict", {"instances": X.tolist()}, lambda d: d["predictions"]),
    "columns": ("/v1/models/m:predict", {"inputs": X.tolist()}, lambda d: d["outputs"]),
    "objects": (
        "/v1/models/m:predict",
        {"instances": [{"x": row} for row in X.tolist()]},
        lambda d: d["predictions"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ASKED)
def test_a_large_body_is_read_beside_the_event_loop(
    client: Client, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[Any] = []
    unpack = bodies.unpack
    monkeypatch.setattr(
        bodies, "unpack", lambda *a: threads.append(threading.current_thread()) or unpack(*a)
    )
    path, document, of = ASKED[case]
    for headers in ({}, {"Content-Encoding": "gzip"}):
        body = json.dumps(document).encode()
        content = gzip.compress(body) if headers else body
        kind = {"Content-Type": "application/json", **headers}
        response = client.post(path, content=content, headers=kind)
        assert response.status_code == 200, response.text
        found = np.array(of(response.json()), "f4").reshape(-1, 1)
        np.testing.assert_array_equal(found, X[:, :1] + X[:, :1])
    assert [t is threading.current_thread() for t in threads] == [False, False]
    client.post("/predict", json={"inputs": X[:1].tolist()})
    assert threads[-1] is threading.current_thread()  # a small one is not worth the way


def test_whole_numbers_in_a_large_body(client: Client) -> None:
    x = np.arange(60_000).reshape(-1, 30) % 256
    found = client.post("/models/u/predict", json={"inputs": x.tolist()}).json()["outputs"]
    assert found["output"] == x[:, :1].tolist()
    for value, said in ((256, "256"), (1.5, "float64"), (-1, "-1")):
        rows = x.tolist()
        rows[-1][-1] = value
        response = client.post("/models/u/predict", json={"inputs": rows})
        assert response.status_code == 400 and said in response.json()["error"], response.text


@pytest.mark.parametrize("value", ["a", None, True, [], [1]])
def test_what_is_wrong_in_a_large_body_is_said_as_in_a_small_one(
    client: Client, value: Any
) -> None:
    rows = X.tolist()
    rows[-1][3] = value
    response = client.post("/predict", json={"inputs": rows})
    if value is True:
        assert response.status_code == 200
        return
    assert response.status_code == 400
    small = client.post("/predict", json={"inputs": rows[-1:]}).json()["error"]
    assert response.json()["error"] == small.replace("[0, 3", "[499, 3")


FIELDS = ["signature_name", "id", "parameters", "outputs", "examples", "context", "baseline",
          "target", "steps", "method", "inputs", "instances"]  # fmt: skip


@pytest.mark.parametrize("path", ["/predict", "/explain", "/v2/models/m/infer",
                                  "/v1/models/m:predict", "/v1/models/m:classify"])  # fmt: skip
def test_a_large_array_in_an_odd_place_breaks_nothing(client: Client, path: str) -> None:
    good: dict[str, Any] = {"inputs": X[:1].tolist()}
    if "v2" in path:
        good = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 30],
                            "data": X[:1].tolist()}]}  # fmt: skip
    elif "classify" in path:
        good = {"examples": [{"x": X[0].tolist()}]}
    placed = [{**good, name: X.tolist()} for name in FIELDS]
    for key in ("name", "datatype", "shape", "dtype", "data", "b64", "x", "parameters"):
        placed += [{**good, "inputs": [{key: X.tolist()}]}, {**good, "inputs": {key: X.tolist()}}]
        placed.append({"instances": [{key: X.tolist()}]})
    for document in placed:
        response = client.post(path, json=document)
        assert response.status_code in (200, 400, 422), response.text


def test_the_event_loop_has_its_turns_while_a_large_body_is_read(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never rests for half of the time that the reading takes; orjson alone would let it rest
    for nearly all of that, in this thread or in another."""
    x = np.tile(X, (90, 1))  # 14 MB of JSON
    body = orjson.dumps({"inputs": x}, option=orjson.OPT_SERIALIZE_NUMPY)
    spans: list[tuple[float, float]] = []

    def timed(body: bytes) -> Any:
        start = time.perf_counter()
        found = large.loads(body)
        spans.append((start, time.perf_counter()))
        return found

    turns: list[float] = []

    async def ask() -> Any:
        request = client.client.post(
            "/predict", content=body, headers={"Content-Type": "application/json"}
        )
        asked = asyncio.ensure_future(request)
        while not asked.done():
            turns.append(time.perf_counter())
            await asyncio.sleep(0.001)
        return asked.result()

    monkeypatch.setattr(bodies, "loads", timed)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)  # as the server does
    try:
        response = client.loop.run_until_complete(ask())
    finally:
        sys.setswitchinterval(interval)
    assert response.status_code == 200
    ((start, stop),) = spans
    within = [start, *(turn for turn in turns if start < turn < stop), stop]
    assert max(np.diff(within)) < 0.5 * (stop - start)
