"""The server's own routes over HTTP: what they take, what they answer, and all that is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import random
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgpack
import numpy as np
import orjson
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

import tinygrad_ish as tg
from tinygrad_ish import nn
from tinygrad_ish.serve.app import create_app, error_response, routes
from tinygrad_ish.serve.errors import CODES, ServeError
from tinygrad_ish.serve.settings import Settings

from .asgi import Client

RAW = {"content-type": "application/octet-stream"}
MSGPACK = {"content-type": "application/msgpack", "accept": "application/msgpack"}
JSON = {"content-type": "application/json"}
LABELS = ["ant", "bee", "cat"]


class Lookup(nn.Module):
    """Rows of a table by their numbers, scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(tg.randn(7, 3))

    def forward(self, ids: tg.Tensor, scale: tg.Tensor) -> tg.Tensor:
        return self.table[ids] * scale


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs: flowers (4 numbers, classes), wide (no classes), lookup (two inputs), picture."""
    folder = tmp_path_factory.mktemp("programs")
    tg.manual_seed(0)
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x = rng.normal(size=(5, 4)).astype(np.float32)
    names = {"inputs": ["size"], "outputs": ["kind"], "features": list("abcd"), "labels": LABELS}
    tg.export(model, x, folder / "flowers.msgpack", postprocess="softmax", top_k=2, **names)
    model = nn.Sequential(nn.Linear(300, 64), nn.ReLU(), nn.Linear(64, 10))
    x = rng.normal(size=(5, 300)).astype(np.float32)
    tg.export(model, x, folder / "wide.msgpack", inputs=["x"], outputs=["y"])
    tables = (np.array([1, 2, 3], np.int32), np.ones((3, 1), np.float32))
    tg.export(Lookup(), tables, folder / "lookup.msgpack", inputs=["ids", "scale"])
    image = rng.integers(0, 255, (2, 8, 8), dtype=np.uint8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    tg.export(
        model, image, folder / "picture.msgpack",
        preprocess=lambda x: x.to(tg.float32) / 255, inputs=["pixels"],
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    files = [folder / f"{name}.msgpack" for name in ("flowers", "wide", "lookup", "picture")]
    settings = Settings(reload=False, max_body=200_000, max_elements=20_000)
    with Client(create_app(files, settings, device="numpy")) as client:
        yield client


@pytest.fixture(scope="module")
def flowers(folder: Path) -> Any:
    return tg.load_program(folder / "flowers.msgpack", "numpy")


ROWS = [[0.5, -1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0]]


def check_error(response: httpx.Response, status: int, code: str) -> str:
    """That an error has its one shape; what it says."""
    body = response.json()
    assert (response.status_code, body["code"]) == (status, code), body
    assert set(body) <= {"error", "code", "expected", "got", "request_id"}
    assert body["request_id"] == response.headers["x-request-id"]
    assert CODES[code][0] == status and "Traceback" not in body["error"]
    return str(body["error"])


# --- what is taken, and what is answered ---------------------------------------------------------


def test_json(client: Client, flowers: Any) -> None:
    answer = client.post("/predict", json={"inputs": ROWS}).json()
    assert (answer["model"], answer["version"]) == ("flowers", "1")
    expected = flowers(np.array(ROWS, np.float32))
    np.testing.assert_array_equal(np.array(answer["outputs"]["kind"], np.float32), expected)
    best = flowers.predict(np.array(ROWS, np.float32))
    assert [[name for name, _ in row] for row in answer["predictions"]] == [
        [name for name, _ in row] for row in best
    ]
    assert len(answer["predictions"][0]) == 2
    named = client.post("/models/flowers/predict", json={"inputs": {"size": ROWS}}).json()
    versioned = client.post("/models/flowers/versions/1/predict", json={"inputs": ROWS}).json()
    assert named == versioned == answer


def test_several_inputs(client: Client) -> None:
    inputs = {"ids": [1, 6], "scale": [[2], [3]]}
    answer = client.post("/models/lookup/predict", json={"inputs": inputs})
    assert answer.status_code == 200 and np.shape(answer.json()["outputs"]["output"]) == (2, 3)
    inputs["ids"] = [7, 1]  # beyond the table: only the model knows
    response = client.post("/models/lookup/predict", json={"inputs": inputs})
    check_error(response, 400, "bad_input")


@pytest.mark.parametrize("form", ["lists", "float32", "float64", "float16"])
def test_msgpack(client: Client, flowers: Any, form: str) -> None:
    x = np.array(ROWS, np.float32)
    rows: Any = ROWS
    if form != "lists":
        rows = {"dtype": form, "shape": [2, 4], "data": x.astype(form).tobytes()}
    body = msgpack.packb({"inputs": rows})
    response = client.post("/predict", content=body, headers=MSGPACK)
    assert response.headers["content-type"] == "application/msgpack"
    kind = msgpack.unpackb(response.content)["outputs"]["kind"]
    found = np.frombuffer(kind["data"], kind["dtype"]).reshape(kind["shape"])
    np.testing.assert_array_equal(found, flowers(x))


def test_raw(client: Client, flowers: Any) -> None:
    x = np.array(ROWS, "<f4")
    headers = {**RAW, "accept": "application/octet-stream"}
    response = client.post("/predict", content=x.tobytes(), headers=headers)
    np.testing.assert_array_equal(
        np.frombuffer(response.content, "<f4").reshape(2, 3), flowers(np.array(ROWS, np.float32))
    )


def test_csv_and_images(client: Client) -> None:
    text = "a,b,c,d\n0.5,-1,2,0\n1,1,1,1\n"
    answer = client.post("/predict", content=text, headers={"content-type": "text/csv"}).json()
    assert answer == client.post("/predict", json={"inputs": ROWS}).json()
    pil = pytest.importorskip(
        "PIL.Image", reason="needs Pillow: pip install 'tinygrad_ish[images]'"
    )
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    file = io.BytesIO()
    pil.fromarray(pixels).save(file, "PNG")
    url = "/models/picture/predict"
    png = client.post(url, content=file.getvalue(), headers={"content-type": "image/png"})
    listed = client.post(url, json={"inputs": [pixels.tolist()]})
    assert png.json()["outputs"] == listed.json()["outputs"]


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_compressed_bodies(client: Client, name: str) -> None:
    body = orjson.dumps({"inputs": ROWS})
    packed = gzip.compress(body) if name == "gzip" else zlib.compress(body)
    headers = {**JSON, "content-encoding": name}
    response = client.post("/predict", content=packed, headers=headers)
    assert response.json() == client.post("/predict", content=body, headers=JSON).json()
    for broken in (packed[:-3], packed + b"x", b"\1" + packed[1:]):
        response = client.post("/predict", content=broken, headers=headers)
        check_error(response, 400, "bad_request")


def test_no_rows(client: Client) -> None:
    rows = {"dtype": "float32", "shape": [0, 4], "data": b""}
    headers = {"content-type": "application/msgpack"}
    answer = client.post("/predict", content=msgpack.packb({"inputs": rows}), headers=headers)
    assert answer.json()["outputs"] == {"kind": []} and answer.json()["predictions"] == []


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "json"), ("*/*", "json"), ("text/html, application/*;q=0.1", "json"),
        ("application/json;q=0.2, application/octet-stream", "octet-stream"),
        ("application/x-msgpack", "msgpack"), ("application/json; nan=null", "json"),
        ("application/json;q=0, */*", "msgpack"),
    ],
)  # fmt: skip
def test_accept(client: Client, accept: str, kind: str) -> None:
    response = client.post("/predict", json={"inputs": ROWS}, headers={"accept": accept})
    assert response.headers["content-type"] == f"application/{kind}"


def test_accept_nothing_that_there_is(client: Client) -> None:
    response = client.post("/predict", json={"inputs": ROWS}, headers={"accept": "text/html"})
    check_error(response, 406, "not_acceptable")


def test_numbers_that_json_has_not(client: Client) -> None:
    rows = [[1.0, 2, 3, 4], [1, 2, 3, float("nan")]]
    raw = np.array(rows, "<f4").tobytes()
    response = client.post("/predict", content=raw, headers=RAW)
    text = check_error(response, 406, "not_acceptable")
    assert "output kind is nan at [1, 0]" in text and "msgpack" in text
    accept = {**RAW, "accept": "application/json; nan=null"}
    answer = client.post("/predict", content=raw, headers=accept).json()
    assert answer["outputs"]["kind"][1] == [None, None, None]
    body = orjson.dumps({"inputs": rows})  # null
    text = check_error(client.post("/predict", content=body, headers=JSON), 400, "bad_input")
    assert "null at [1, 3]" in text and "nan=null" in text
    both = {"content-type": "application/json; nan=null", "accept": "application/json; nan=null"}
    assert client.post("/predict", content=body, headers=both).json() == answer


def test_models_and_health(client: Client) -> None:
    listing = client.get("/models").json()
    assert listing["default"] == "flowers"
    names = [model["name"] for model in listing["models"]]
    assert names == ["flowers", "wide", "lookup", "picture"]
    version = listing["models"][0]["versions"][0]
    assert version["state"] == "ready" and version["labels"] == LABELS
    assert version["inputs"] == [{"name": "size", "dtype": "float32", "shape": [-1, 4]}]
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_mounted_in_another_application(folder: Path) -> None:
    """A mounted application's lifespan is not run: the first request starts it."""
    settings = Settings(reload=False)
    app = Starlette(routes=[Mount("/ml", create_app(folder / "flowers.msgpack", settings))])

    async def main() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            predict = client.post("/ml/predict", json={"inputs": ROWS})
            for response in await asyncio.gather(predict, client.post("/ml/predict", json={})):
                assert response.status_code in (200, 400)
            assert (await client.get("/ml/readyz")).status_code == 200

    asyncio.run(main())


def test_answers_do_not_depend_on_the_batch(folder: Path) -> None:
    """Bit for bit: each row by itself, all at the same time, and as rows of larger requests."""
    app = create_app(folder / "wide.msgpack", Settings(reload=False, max_batch=16))
    rows = np.random.default_rng(3).normal(size=(50, 300)).astype("<f4")
    ran: list[int] = []
    headers = {**RAW, "accept": "application/octet-stream"}

    async def main() -> None:
        transport = httpx.ASGITransport(app)
        client = httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)
        async with client, app.router.lifespan_context(app):
            app.state.server.metrics.ran = lambda model, n, requests, seconds: ran.append(n)

            async def ask(part: np.ndarray) -> bytes:
                response = await client.post("/predict", content=part.tobytes())
                assert response.status_code == 200
                return response.content

            alone = [await ask(rows[i : i + 1]) for i in range(50)]
            assert set(ran) == {1}
            ran.clear()
            assert await asyncio.gather(*[ask(rows[i : i + 1]) for i in range(50)]) == alone
            assert max(ran) > 1, "nothing was grouped"
            sizes = [7, 1, 30, 2, 10]
            parts = np.split(rows, np.cumsum(sizes)[:-1])
            assert b"".join(await asyncio.gather(*map(ask, parts))) == b"".join(alone)

    asyncio.run(main())


# --- what is wrong -----------------------------------------------------------------------------

NESTED = b'{"inputs": ' + b"[" * 900 + b"]" * 900 + b"}"
BAD = {
    "empty": (b"", JSON, "not valid JSON"),
    "truncated": (b'{"inputs": [[1, 2', JSON, "not valid JSON"),
    "not UTF-8": (b'{"inputs": "\xff"}', JSON, "not valid JSON"),
    "no object": (b"[1, 2]", JSON, 'with the key "inputs"'),
    "no inputs": (b'{"instances": [[1, 2, 3, 4]]}', JSON, 'with the key "inputs"'),
    "unknown key": (b'{"inputs": [[1, 2, 3, 4]], "topk": 3}', JSON, "unknown keys"),
    "other name": (b'{"inputs": {"weight": [[1, 2, 3, 4]]}}', JSON, "the inputs' names are others"),
    "too narrow": (b'{"inputs": [[1, 2, 3]]}', JSON, "expected shape [batch, 4], got [1, 3]"),
    "one row": (b'{"inputs": [1, 2, 3, 4]}', JSON, "expected shape [batch, 4], got [4]"),
    "ragged": (b'{"inputs": [[1, 2, 3, 4], [1, 2, 3]]}', JSON, "differ in length"),
    "ragged depth": (b'{"inputs": [[1, 2, 3, 4], [1, 2, 3, [4]]]}', JSON, "differ in length"),
    "string": (b'{"inputs": [[1, 2, "3", 4]]}', JSON, "expected a number at [0, 2], got a string"),
    "object": (b'{"inputs": [[1, 2, {"a": 1}, 4]]}', JSON, "[0, 2, 'a']"),
    "empty list": (b'{"inputs": [[1, 2, [], 4]]}', JSON, "[0, 2], got a list"),
    "null": (b'{"inputs": [[1, 2, 3, null]]}', JSON, "null at [0, 3]"),
    "all null": (b'{"inputs": null}', JSON, "null at []"),
    "NaN": (b'{"inputs": [[1, 2, 3, NaN]]}', JSON, "nan at ['inputs', 0, 3]"),
    "Infinity": (b'{"inputs": [[1, -Infinity, 3, 4]]}', JSON, "-inf at ['inputs', 0, 1]"),
    "1e999": (b'{"inputs": [[1, 2, 3, 1e999]]}', JSON, "inf at ['inputs', 0, 3]"),
    "1e300": (b'{"inputs": [[1, 2, 3, 1e300]]}', JSON, "1e+300 at [0, 3] is more than float32"),
    "deep": (NESTED, JSON, "got a list"),
    "deeper": (b'{"inputs": ' + b"[" * 9000 + b"]" * 9000 + b"}", JSON, "not valid JSON"),
    "many digits": (b'{"inputs": [[' + b"9" * 5000 + b", 1, 1, 1]]}", JSON, "not valid JSON"),
    "empty msgpack": (b"", MSGPACK, "not valid msgpack"),
    "truncated msgpack": (b"\x81\xa6inputs\x92\x01", MSGPACK, "not valid msgpack"),
    "msgpack with more": (msgpack.packb({"inputs": ROWS}) + b"\0", MSGPACK, "not valid msgpack"),
    "int keys": (b"\x81\x01\x02", MSGPACK, "not valid msgpack"),
    "msgpack bomb": (b"\x81\xa6inputs\xdd\xff\xff\xff\xff", MSGPACK, "not valid msgpack"),
    "deep msgpack": (b"\x81\xa6inputs" + b"\x91" * 5000, MSGPACK, "not valid msgpack"),
    "bytes as a row": (b"\x81\xa6inputs\x91\xc4\x04abcd", MSGPACK, "at [0], got bytes"),
    "ext": (msgpack.packb({"inputs": [[1, 2, 3, msgpack.ExtType(5, b"")]]}), MSGPACK, "[0, 3]"),
    "dtype": (
        msgpack.packb({"inputs": {"dtype": "complex64", "shape": [1, 4], "data": bytes(32)}}),
        MSGPACK, "expected dtype, shape and data",
    ),
    "bytes of another shape": (
        msgpack.packb({"inputs": {"dtype": "float32", "shape": [1, 4], "data": bytes(15)}}),
        MSGPACK, "15 bytes are not float32 of shape [1, 4]",
    ),
    "negative shape": (
        msgpack.packb({"inputs": {"dtype": "float32", "shape": [-1, 4], "data": bytes(16)}}),
        MSGPACK, "expected dtype, shape and data",
    ),
    "no bytes": (b"", RAW, "float32 rows of 16 bytes"),
    "part of a row": (bytes(17), RAW, "float32 rows of 16 bytes"),
    "not CSV": (b"a,b\n1,2\n", {"content-type": "text/csv"}, "without c, d"),
    "empty CSV": (b"", {"content-type": "text/csv"}, "it is empty"),
    "not an image": (b"\x89PNG\r\n", {"content-type": "image/png"}, "image"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_bodies(client: Client, case: str) -> None:
    body, headers, says = BAD[case]
    response = client.post("/predict", content=body, headers=headers)
    text = check_error(response, 400, response.json()["code"])
    assert response.json()["code"] in ("bad_request", "bad_input")
    assert says in text
    assert client.post("/predict", json={"inputs": ROWS}).status_code == 200


def test_whole_numbers(client: Client) -> None:
    def ask(ids: Any) -> httpx.Response:
        body = {"inputs": {"ids": ids, "scale": [[1.0]]}}
        return client.post("/models/lookup/predict", json=body)

    assert ask([1]).status_code == 200
    assert "expected int32, got float64" in check_error(ask([1.5]), 400, "bad_input")
    assert "expected int32, -2147483648 to" in check_error(ask([2**31]), 400, "bad_input")
    check_error(ask([2**64]), 400, "bad_input")
    check_error(ask(["1"]), 400, "bad_input")
    assert "same number of rows" in check_error(ask([1, 2]), 400, "bad_input")
    several = client.post("/models/lookup/predict", json={"inputs": [[1]]})
    assert "give them by name" in check_error(several, 400, "bad_input")
    raw = client.post("/models/lookup/predict", content=bytes(4), headers=RAW)
    assert "one input" in check_error(raw, 400, "bad_input")


def test_damaged_images(client: Client) -> None:
    pil = pytest.importorskip(
        "PIL.Image", reason="needs Pillow: pip install 'tinygrad_ish[images]'"
    )
    file = io.BytesIO()
    pil.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(file, "PNG")
    bomb = io.BytesIO()
    pil.new("1", (9_000, 9_000)).save(bomb, "PNG")
    headers = {"content-type": "image/png"}
    for content in (file.getvalue()[:45], file.getvalue()[:20], bomb.getvalue()[:150_000]):
        response = client.post("/models/picture/predict", content=content, headers=headers)
        assert "image" in check_error(response, 400, "bad_input")
    response = client.post("/predict", content=file.getvalue(), headers=headers)
    assert "the program takes float32" in check_error(response, 400, "bad_input")


def test_too_much(client: Client) -> None:
    text = check_error(
        client.post("/predict", content=bytes(200_001), headers=RAW), 413, "too_large"
    )
    assert "200000 bytes" in text
    rows = np.zeros((5001, 4)).astype(int).tolist()
    check_error(client.post("/predict", json={"inputs": rows}), 413, "too_large")
    bomb = gzip.compress(bytes(50_000_000))
    headers = {**JSON, "content-encoding": "gzip"}
    text = check_error(client.post("/predict", content=bomb, headers=headers), 413, "too_large")
    assert str(len(bomb)) in client.post("/predict", content=bomb, headers=headers).json()["got"]


def test_unknown_formats(client: Client) -> None:
    body = orjson.dumps({"inputs": ROWS})
    response = client.post("/predict", content=body, headers={"content-type": "text/xml"})
    check_error(response, 415, "unsupported_media_type")
    response = client.post("/predict", content=body, headers={**JSON, "content-encoding": "br"})
    check_error(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "path",
    [
        "/models/roses/predict", "/models/..%2f..%2fetc%2fpasswd/predict", "/models/%2e%2e/predict",
        "/models/flowers%00/predict", "/models/flowers/versions/2/predict",
        "/models/flowers/versions/01/predict", "/models/flowers/versions/-1/predict",
        "/models/flowers/versions/1e0/predict", "/models/flowers/versions/%2e/predict",
        "/models//predict", "/models/" + "x" * 5000 + "/predict",
        "/models/flowers/../flowers.msgpack", "/nothing",
    ],
)  # fmt: skip
def test_names_and_versions_that_are_none(client: Client, path: str) -> None:
    response = client.post(path, json={"inputs": ROWS})
    text = check_error(response, 404, response.json()["code"])
    assert response.json()["code"] in ("model_not_found", "not_found")
    assert len(text) < 300, "a name is not repeated whole"


def test_other_methods(client: Client) -> None:
    response = client.get("/predict")
    check_error(response, 405, "method_not_allowed")
    assert response.headers["allow"]


@pytest.mark.parametrize("value", ["soon", "nan", ""])
def test_deadlines_that_are_none(client: Client, value: str) -> None:
    response = client.post("/predict", json={"inputs": ROWS}, headers={"timeout-ms": value})
    if value:
        check_error(response, 400, "bad_request")
    else:
        assert response.status_code == 200


def test_a_deadline_of_nothing(client: Client) -> None:
    response = client.post("/predict", json={"inputs": ROWS}, headers={"timeout-ms": "0"})
    check_error(response, 504, "deadline")


def test_a_model_that_fails(folder: Path) -> None:
    with Client(create_app(folder / "flowers.msgpack", Settings(reload=False))) as client:
        version = client.app.state.server.catalog.find()
        run = version.batcher._run

        def fails(inputs: list[np.ndarray]) -> Any:
            if (inputs[0] == 13).any():
                raise MemoryError("a secret")
            return run(inputs)

        version.batcher._run = fails
        text = check_error(
            client.post("/predict", json={"inputs": [[13] * 4]}), 500, "model_failed"
        )
        assert "secret" not in text
        assert client.post("/predict", json={"inputs": ROWS}).status_code == 200


def mutated(rng: random.Random, body: bytes) -> bytes:
    """A body with some of its bytes changed, taken out, repeated or replaced by what hurts."""
    tokens = [b"null", b"NaN", b"1e309", b"[", b"]", b"{}", b'"', b"-", b"\0", b"\xff", b"\xdd\xff",
              b"9" * 30, b"true", b"inputs", b"\xc7\x05", b",", b"\x89PNG", b"\n"]  # fmt: skip
    data = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        kind = rng.randrange(5)
        if kind == 0 and data:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.randint(1, 20)]
        elif kind == 2:
            data[at:at] = rng.choice(tokens)
        elif kind == 3:
            data[at : at + 3] = rng.choice(tokens)
        else:
            data = data[:at] if rng.random() < 0.3 else data + data[at:]
    return bytes(data)


def test_mutated_requests(folder: Path) -> None:
    """Thousands of requests with something wrong: an answer in shape to each, and no 5xx."""
    app = create_app(
        [folder / "flowers.msgpack", folder / "picture.msgpack"],
        Settings(reload=False, max_body=100_000),
        device="numpy",
    )
    rng = random.Random(0)
    tensor = {"name": "size", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    seeds: list[tuple[str, str, bytes]] = [
        ("/predict", "application/json", b'{"inputs": [[1, 2.5, -3e2, 4], [0, 0, 0, 0]]}'),
        ("/predict", "application/json", b'{"inputs": {"size": [[1, 2, 3, 4]]}}'),
        ("/predict", "application/msgpack", msgpack.packb({"inputs": ROWS})),
        ("/predict", "application/octet-stream", bytes(32)),
        ("/predict", "text/csv", b"a,b,c,d\n1,2,3,4\n"),
        ("/models/picture/predict", "application/json", orjson.dumps({"inputs": [[[1] * 8] * 8]})),
        ("/v2/models/flowers/infer", "application/json", orjson.dumps({"inputs": [tensor]})),
        ("/v1/models/flowers:predict", "application/json", b'{"instances": [[1, 2, 3, 4]]}'),
        ("/models/flowers/explain", "application/json", b'{"inputs": [[1, 2, 3, 4]]}'),
    ]
    extra = [(b"accept", b"application/msgpack"), (b"timeout-ms", b"5"), (b"accept", b"a/b;;q=,"),
             (b"content-encoding", b"gzip"), (b"inference-header-content-length", b"9"),
             (b"traceparent", b"00-x"), (b"x-request-id", b"\xff")]  # fmt: skip
    statuses: dict[int, int] = {}

    async def ask(path: str, kind: str, body: bytes) -> None:
        headers = [(b"host", b"test"), (b"content-type", kind.encode("latin-1"))]
        headers += rng.sample(extra, rng.choice([0, 0, 1, 2]))
        sent: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]
        received: list[Any] = []

        async def receive() -> Any:
            if sent:
                return sent.pop()
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            received.append(message)

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "path": path, "raw_path": path.encode(), "root_path": "", "scheme": "http",
            "query_string": b"", "headers": headers, "client": None, "server": ("test", 80),
        }  # fmt: skip
        await app(scope, receive, send)
        status, content = received[0]["status"], received[1]["body"]
        statuses[status] = statuses.get(status, 0) + 1
        assert status < 500 or status in (503, 504), (path, kind, headers, body, content)
        if status >= 400:
            assert {"error", "code"} <= set(json.loads(content)), (path, body, content)

    async def main() -> None:
        async with app.router.lifespan_context(app):
            for _ in range(6000):
                path, kind, body = rng.choice(seeds)
                if rng.random() < 0.05:
                    path = mutated(rng, path.encode()).decode("utf-8", "replace")
                if rng.random() < 0.05:
                    kind = mutated(rng, kind.encode()).decode("latin-1")
                await ask(path, kind, mutated(rng, body))

    asyncio.run(main())
    assert statuses.get(200, 0) > 30 and statuses.get(400, 0) > 1000


# --- on the wire -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[tuple[str, int]]:
    """A real server, in a thread."""
    settings = Settings(reload=False, body_timeout=0.4, max_body=100_000)
    app = create_app(folder / "flowers.msgpack", settings, device="numpy")
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[:2]
    server.should_exit = True
    thread.join(10)


def exchange(address: tuple[str, int], *parts: bytes, wait: float = 0.0) -> bytes:
    """What a server answers until it closes, or is quiet for half a second."""
    received = b""
    with socket.create_connection(address, timeout=0.5) as connection:
        with contextlib.suppress(TimeoutError, ConnectionError):
            for part in parts:
                connection.sendall(part)
                time.sleep(wait)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while data := connection.recv(65536):
                received += data
    return received


HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
BODY = b'{"inputs": [[1, 2, 3, 4]]}'


def test_a_body_that_stops(address: tuple[str, int]) -> None:
    start = time.monotonic()
    answer = exchange(address, HEAD + b"1000\r\n\r\n" + BODY)
    assert answer.startswith(b"HTTP/1.1 408") and b'"code":"request_timeout"' in answer
    assert time.monotonic() - start < 3


def test_a_body_that_drips(address: tuple[str, int]) -> None:
    pieces = [bytes([c]) for c in BODY]
    answer = exchange(address, HEAD + b"26\r\n\r\n", *pieces[:-1], wait=0.03)
    assert answer.startswith(b"HTTP/1.1 408")


def test_a_body_in_pieces_is_fine(address: tuple[str, int]) -> None:
    answer = exchange(address, HEAD + b"26\r\n\r\n", BODY[:5], BODY[5:20], BODY[20:], wait=0.01)
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("length", [b"-5", b"abc", b"1, 2", b"99999999999999999999999999", b"\xb2"])
def test_lengths_that_are_wrong(address: tuple[str, int], length: bytes) -> None:
    answer = exchange(address, HEAD + length + b"\r\n\r\n" + BODY)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413")), answer[:100]


def test_a_length_too_short_cuts_the_body(address: tuple[str, int]) -> None:
    answer = exchange(address, HEAD + b"10\r\n\r\n" + BODY)
    assert answer.startswith(b"HTTP/1.1 400")


def test_a_large_body_is_refused_before_it_comes(address: tuple[str, int]) -> None:
    answer = exchange(address, HEAD + b"100000000\r\n\r\n" + BODY)
    assert answer.startswith(b"HTTP/1.1 413") and b"connection: close" in answer.lower()


def test_a_chunked_body_is_counted(address: tuple[str, int]) -> None:
    head = HEAD.replace(b"Content-Length: ", b"Transfer-Encoding: chunked\r\n\r\n")
    chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n"
    answer = exchange(address, head, *[chunk] * 8)
    assert answer.startswith(b"HTTP/1.1 413")


def test_clients_that_leave_do_no_harm(address: tuple[str, int]) -> None:
    for _ in range(50):
        with socket.create_connection(address) as connection:
            connection.sendall(HEAD + b"26\r\n\r\n" + BODY[:13])
    assert exchange(address, HEAD + b"26\r\n\r\n" + BODY).startswith(b"HTTP/1.1 200")


# --- numbers that no machine word holds -----------------------------------------------------------

HUGE = "1" + 30 * "0"
TENSOR = '"name": "size", "datatype": "FP32"'
ODD = [
    HUGE, f"[{HUGE}]", f'{{"inputs": {HUGE}}}', f'{{"inputs": [[{HUGE}]]}}',
    f'{{"inputs": [[1, 2, 3, 4]], "steps": {HUGE}, "target": {HUGE}}}',
    '{"inputs": [[1, 2, 3, 4]], "target": [18446744073709551615]}',
    f'{{"inputs": [{{{TENSOR}, "shape": [{HUGE}, 4], "data": [1, 2, 3, 4]}}]}}',
    f'{{"inputs": [{{{TENSOR}, "shape": [18446744073709551615, 0, {2**63}], "data": []}}]}}',
    f'{{"inputs": [{{{TENSOR}, "shape": [1], "parameters": {{"binary_data_size": {HUGE}}}}}]}}',
    f'{{"inputs": [{{{TENSOR}, "shape": [1, 4], "data": [1, 2, 3, 4]}}], '
    f'"parameters": {{"timeout": {HUGE}}}}}',
    f'{{"instances": {HUGE}}}', f'{{"instances": [{{"size": {HUGE}}}]}}',
    f'{{"instances": [[1, 2, 3, 4]], "signature_name": {HUGE}}}',
    f'{{"examples": [{{"a": {HUGE}}}]}}', f'{{"examples": {HUGE}, "context": {HUGE}}}',
    f'{{"inputs": {{"dtype": {HUGE}, "shape": [{HUGE}], "data": {HUGE}}}}}',
    f'{{"ready": {HUGE}}}',
]  # fmt: skip
POSTED = sorted(r.path for r in routes() if "POST" in r.methods)  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", POSTED)
def test_a_number_of_31_digits_is_at_worst_a_clients_mistake(client: Client, path: str) -> None:
    path = path.replace("{name}", "flowers").replace("{number}", "1").replace("{label}", "x")
    for body in ODD:
        for headers in ({}, {"timeout-ms": HUGE}, {"inference-header-content-length": HUGE}):
            response = client.post(path, content=body.encode(), headers={**JSON, **headers})
            if response.status_code == 200:  # it stands where nobody looks
                continue
            assert 400 <= response.status_code < 500, (body, response.text)
            check_error(response, response.status_code, response.json()["code"])


def test_an_error_can_tell_of_any_value(flowers: Any) -> None:
    for value in (10**30, {"shape": [2**64, -(10**20)]}, "\ud800", np.float32(1), flowers):
        error = ServeError("bad_input", "no", expected=value, got=value)
        body = json.loads(bytes(error_response(error, "7").body))
        assert body["code"] == "bad_input" and body["request_id"] == "7"
        assert body["got"] == (value if type(value) in (int, dict, str) else str(value))
