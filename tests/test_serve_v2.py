"""Open Inference Protocol v2: every form of a tensor, every mistake, and Triton's own client."""

from __future__ import annotations

import asyncio
import copy
import gzip
import json
import shutil
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ish as tg
from tinygrad_ish import nn
from tinygrad_ish.deploy.registry import publish

pytest.importorskip("starlette", reason="starlette is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")


from tinygrad_ish.serve import v2
from tinygrad_ish.serve.app import create_app
from tinygrad_ish.serve.settings import Settings

from .asgi import Client
from .serving import thread

try:
    import tritonclient.http as triton
    import tritonclient.http.aio as triton_aio
    from tritonclient.utils import InferenceServerException
except ImportError:
    triton = None
needs_triton = pytest.mark.skipif(
    triton is None, reason="tritonclient is not installed: pip install 'tritonclient[http]'"
)

LENGTH = "Inference-Header-Content-Length"
X = np.random.default_rng(0).normal(size=(3, 4)).astype("f4")
LEFT = np.random.default_rng(1).normal(size=(3, 2)).astype("f4")
COUNT = np.array([[1], [-2], [2**40]], "i8")
MASK = np.array([[True, False], [False, False], [True, True]])


def mixed(left: Any, count: Any, mask: Any) -> dict[str, Any]:
    return {"chosen": tg.where(mask, left, -left), "twice": count * 2, "all": mask.all(1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tg.manual_seed(0)
    folder = tmp_path_factory.mktemp("programs")
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    iris = folder / "iris.msgpack"
    tg.export(net, X, iris, postprocess="softmax", labels=["setosa", "versi:color", "日本"])
    for _ in range(2):
        publish(iris, folder / "models" / "flowers")
    tg.export(mixed, (LEFT, COUNT, MASK), folder / "mixed.msgpack")
    tg.export(lambda x: x.log(), np.abs(X), folder / "log.msgpack")
    tg.export(lambda x: x + x, X.astype("f2"), folder / "half.msgpack")
    tg.export(lambda x, scale: x * scale, (X, np.float32(2)), folder / "scaled.msgpack")
    return folder


def settings(**others: Any) -> Settings:
    return Settings(reload=False, **others)


@pytest.fixture(scope="module")
def app(folder: Path) -> Any:
    names = ["iris.msgpack", "mixed.msgpack", "log.msgpack", "half.msgpack", "scaled.msgpack"]
    sources = [folder / name for name in [*names, "models"]]
    return create_app(sources, settings(max_elements=1000, max_body=10_000), device="numpy")


@pytest.fixture(scope="module")
def client(app: Any) -> Iterator[Client]:
    with Client(app) as client:
        yield client


def tensor(name: str, x: np.ndarray, /, **others: Any) -> dict[str, Any]:
    """An input with its data in JSON."""
    datatype = v2.DATATYPES[x.dtype]
    entry = {"name": name, "shape": list(x.shape), "datatype": datatype, "data": x.ravel().tolist()}
    return {key: value for key, value in (entry | others).items() if value is not None}


def binary(name: str, x: np.ndarray, /, **others: Any) -> dict[str, Any]:
    """An input whose data follow the JSON."""
    return tensor(name, x, data=None, parameters={"binary_data_size": x.nbytes}, **others)


def infer(client: Client, model: str, document: Any, tail: bytes = b"", **headers: str) -> Any:
    head = document if isinstance(document, bytes) else json.dumps(document).encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if tail:
        headers = {LENGTH: str(len(head))} | headers
    return client.post(f"/v2/models/{model}/infer", content=head + tail, headers=headers)


def refused(response: Any, status: int = 400, code: str | None = None) -> str:
    """The message of an error, in the one shape of an error."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) <= {"error", "code", "expected", "got", "request_id"}
    assert code is None or body["code"] == code
    assert isinstance(body["error"], str)
    return str(body["error"])


def arrays(response: Any) -> dict[str, np.ndarray]:
    """The outputs of an answer, by name."""
    assert response.status_code == 200, response.text
    length = response.headers.get(LENGTH)
    body = response.content
    document = json.loads(body if length is None else body[: int(length)])
    rest = b"" if length is None else body[int(length) :]
    dtypes = {datatype: dtype for dtype, datatype in v2.DATATYPES.items()}
    found = {}
    for output in document["outputs"]:
        assert ("data" in output) != ("parameters" in output)
        dtype = dtypes[output["datatype"]]
        if "data" in output:
            x = np.array(output["data"], dtype)
        else:
            size = output["parameters"]["binary_data_size"]
            x, rest = np.frombuffer(rest[:size], dtype), rest[size:]
        found[output["name"]] = x.reshape(output["shape"])
    assert not rest
    kind = "application/json" if length is None else "application/octet-stream"
    assert response.headers["content-type"] == kind
    return found


@pytest.fixture(scope="module")
def answer(folder: Path) -> np.ndarray:
    result: np.ndarray = tg.load_program(folder / "iris.msgpack", "numpy")(X)
    return result


# --- what there is -----------------------------------------------------------------------------


def test_the_server_says_what_it_is(client: Client) -> None:
    about = client.get("/v2").json()
    assert about["name"] == "tinygrad_ish" and about["version"] == tg.__version__
    assert set(about["extensions"]) == {"binary_tensor_data", "classification", "model_repository"}
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}


def test_a_model_says_what_it_takes_and_gives(client: Client) -> None:
    assert client.get("/v2/models/mixed").json() == {
        "name": "mixed",
        "versions": ["1"],
        "platform": "tinygrad_ish",
        "inputs": [
            {"name": "left", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "count", "datatype": "INT64", "shape": [-1, 1]},
            {"name": "mask", "datatype": "BOOL", "shape": [-1, 2]},
        ],
        "outputs": [
            {"name": "chosen", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "twice", "datatype": "INT64", "shape": [-1, 1]},
            {"name": "all", "datatype": "BOOL", "shape": [-1]},
        ],
    }


def test_versions(client: Client, answer: np.ndarray) -> None:
    assert client.get("/v2/models/flowers").json()["versions"] == ["1", "2"]
    for path, number in (("flowers", "2"), ("flowers/versions/1", "1")):
        assert client.get(f"/v2/models/{path}/ready").json() == {"name": "flowers", "ready": True}
        assert client.get(f"/v2/models/{path}").json()["name"] == "flowers"
        response = infer(client, path, {"inputs": [tensor("input", X)]})
        assert response.json()["model_version"] == number
        np.testing.assert_array_equal(arrays(response)["output"], answer)


@pytest.mark.parametrize("path", ["nobody", "flowers/versions/3", "flowers/versions/..%2f1", "%00"])
def test_models_and_versions_that_are_not_there(client: Client, path: str) -> None:
    for url in (f"/v2/models/{path}", f"/v2/models/{path}/ready"):
        response = client.get(url)
        assert response.status_code == 404
    refused(infer(client, "nobody", {}), 404, "model_not_found")
    refused(infer(client, "flowers/versions/3", {}), 404, "model_not_found")


def test_a_damaged_version_is_not_ready(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "models", tmp_path / "models")
    (tmp_path / "models/flowers/2/model.msgpack").write_bytes(b"nothing")
    with Client(create_app(tmp_path / "models", settings(), device="numpy")) as client:
        assert client.get("/v2/models/flowers").json()["versions"] == ["1"]
        refused(client.get("/v2/models/flowers/versions/2/ready"), 503, "not_ready")
        states = {e["version"]: e for e in client.post("/v2/repository/index").json()}
        assert states["1"]["state"] == "READY"
        assert states["2"]["state"] == "UNAVAILABLE" and states["2"]["reason"]


# --- tensors -----------------------------------------------------------------------------------


def test_data_in_json_flat_and_nested(client: Client, answer: np.ndarray) -> None:
    for data in (X.ravel().tolist(), X.tolist()):
        document = {"id": "an id", "inputs": [tensor("input", X, data=data)]}
        response = infer(client, "iris", document)
        assert response.json()["id"] == "an id"
        assert list(response.json()) == ["model_name", "model_version", "id", "outputs"]
        assert len(response.json()["outputs"][0]["data"]) == 9  # flat
        np.testing.assert_array_equal(arrays(response)["output"], answer)
    assert "id" not in infer(client, "iris", {"inputs": [tensor("input", X)]}).json()


@pytest.mark.parametrize("padding", range(4))  # the tensor begins at any byte
def test_binary_data(client: Client, answer: np.ndarray, padding: int) -> None:
    document = {
        "inputs": [binary("input", X)],
        "parameters": {"binary_data_output": True, "unknown": " " * padding},
    }
    np.testing.assert_array_equal(arrays(infer(client, "iris", document, X.tobytes()))["output"],
                                  answer)  # fmt: skip


def test_json_that_comes_again(client: Client, app: Any, answer: np.ndarray) -> None:
    document: dict[str, Any] = {"inputs": [binary("input", X[:1])]}
    for _ in range(2):
        for x, expected in zip(X, answer):
            found = arrays(infer(client, "iris", document, x.tobytes()))["output"]
            np.testing.assert_array_equal(found, [expected])
        refused(infer(client, "iris", document, X.tobytes()))
    known = v2._known[app.state.server.catalog.find("iris").program]
    assert json.dumps(document).encode() in known
    for n in range(v2.KEPT + 10):
        document["parameters"] = {"unknown": n}
        assert infer(client, "iris", document, X[:1].tobytes()).status_code == 200
    kept = set(known)
    assert len(kept) <= v2.KEPT
    document["id"] = "another each time"
    assert infer(client, "iris", document, X[:1].tobytes()).json()["id"] == document["id"]
    infer(client, "iris", {"inputs": [tensor("input", X)]})
    assert set(known) == kept


def test_no_rows(client: Client) -> None:
    x = X[:0]
    assert arrays(infer(client, "iris", {"inputs": [tensor("input", x)]}))["output"].shape == (0, 3)
    document = {"inputs": [binary("input", x)], "parameters": {"binary_data_output": True}}
    assert arrays(infer(client, "iris", document))["output"].shape == (0, 3)


def test_json_and_binary_inputs_in_one_request(client: Client) -> None:
    entries = [binary("mask", MASK), tensor("left", LEFT), binary("count", COUNT)]
    outputs = [
        {"name": "twice", "parameters": {"binary_data": True}},
        {"name": "all", "parameters": {"binary_data": False}},
        {"name": "chosen"},
    ]
    for default in (False, True):
        document = {
            "inputs": entries, "outputs": outputs, "parameters": {"binary_data_output": default}
        }  # fmt: skip
        response = infer(client, "mixed", document, MASK.tobytes() + COUNT.tobytes())
        found = arrays(response)
        assert list(found) == ["twice", "all", "chosen"]
        np.testing.assert_array_equal(found["twice"], COUNT * 2)
        np.testing.assert_array_equal(found["all"], MASK.all(1))
        np.testing.assert_array_equal(found["chosen"], np.where(MASK, LEFT, -LEFT))
        head = json.loads(response.content[: int(response.headers[LENGTH])])
        came = ["parameters" in output for output in head["outputs"]]
        assert came == [True, False, default]


def test_outputs_that_are_chosen(client: Client) -> None:
    inputs = [tensor("left", LEFT), tensor("count", COUNT), tensor("mask", MASK)]
    some = {"inputs": inputs, "outputs": [{"name": "all"}]}
    assert list(arrays(infer(client, "mixed", some))) == ["all"]
    for none in ([], None):
        found = arrays(infer(client, "mixed", {"inputs": inputs, "outputs": none}))
        assert list(found) == ["chosen", "twice", "all"]


def test_an_input_without_a_batch(client: Client) -> None:
    scale = np.array(3, "f4")
    found = arrays(infer(client, "scaled", {"inputs": [tensor("x", X), tensor("scale", scale)]}))
    np.testing.assert_array_equal(found["output"], X * 3)
    document = {"inputs": [binary("x", X), binary("scale", scale)]}
    found = arrays(infer(client, "scaled", document, X.tobytes() + scale.tobytes()))
    np.testing.assert_array_equal(found["output"], X * 3)


def test_fp16_is_binary_only(client: Client) -> None:
    half = X.astype("f2")
    everything = {"parameters": {"binary_data_output": True}}
    document = {"inputs": [binary("x", half)]}
    found = arrays(infer(client, "half", document | everything, half.tobytes()))
    np.testing.assert_array_equal(found["output"], half + half)
    said = refused(infer(client, "half", document, half.tobytes()), 406)
    assert "output output: FP16" in said
    assert "input x: FP16" in refused(infer(client, "half", {"inputs": [tensor("x", half)]}))


def test_a_body_that_is_nothing_but_a_tensor(client: Client, answer: np.ndarray) -> None:
    found = arrays(infer(client, "iris", X.tobytes(), **{LENGTH: "0"}))
    np.testing.assert_array_equal(found["output"], answer)
    assert "rows of 16 bytes" in refused(infer(client, "iris", X.tobytes()[1:], **{LENGTH: "0"}))
    assert "one input" in refused(infer(client, "mixed", b"0", **{LENGTH: "0"}))


def test_classification(client: Client, answer: np.ndarray) -> None:
    outputs = [{"name": "output", "parameters": {"classification": 2}}]
    response = infer(client, "iris", {"inputs": [tensor("input", X)], "outputs": outputs})
    (output,) = response.json()["outputs"]
    labels = ["setosa", "versi:color", "日本"]
    expected = [f"{p[k]}:{k}:{labels[k]}" for p in answer for k in np.argsort(-p)[:2]]
    assert output["datatype"] == "BYTES" and output["shape"] == [3, 2]
    assert output["data"] == expected
    many = [{"name": "output", "parameters": {"classification": 99}}]
    response = infer(client, "iris", {"inputs": [tensor("input", X)], "outputs": many})
    assert response.json()["outputs"][0]["shape"] == [3, 3]
    inputs = [tensor("left", LEFT), tensor("count", COUNT), tensor("mask", MASK)]
    outputs[0]["name"] = "twice"
    assert "floats" in refused(infer(client, "mixed", {"inputs": inputs, "outputs": outputs}))


def test_numbers_that_json_cannot_hold(client: Client) -> None:
    x = X.copy()
    x[:] = 1
    x[1, 2], x[2, 3] = -1, 0
    document = {"inputs": [tensor("x", x)]}
    said = refused(infer(client, "log", document), 406, "not_acceptable")
    assert "output output is nan at [1, 2]" in said and "nan=null" in said
    response = infer(client, "log", document, accept="application/json; nan=null")
    assert response.json()["outputs"][0]["data"] == [0.0] * 6 + [None] + [0.0] * 4 + [None]
    everything = {"parameters": {"binary_data_output": True}}
    found = arrays(infer(client, "log", document | everything))["output"]
    assert np.isnan(found[1, 2]) and np.isneginf(found[2, 3])
    x[:] = np.nan
    found = arrays(infer(client, "log", {"inputs": [binary("x", x)]} | everything, x.tobytes()))
    assert np.isnan(found["output"]).all()


# --- compression -------------------------------------------------------------------------------


@pytest.mark.parametrize("name, pack", [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_the_length_is_that_of_the_unpacked_json(
    client: Client, answer: np.ndarray, name: str, pack: Any
) -> None:
    document = {"inputs": [binary("input", X)], "parameters": {"binary_data_output": True}}
    head = json.dumps(document).encode()
    response = client.post(
        "/v2/models/iris/infer",
        content=pack(head + X.tobytes()),
        headers={LENGTH: str(len(head)), "Content-Encoding": name, "Accept-Encoding": name},
    )
    assert response.headers["content-encoding"] == name
    np.testing.assert_array_equal(arrays(response)["output"], answer)  # httpx has unpacked it


def test_a_library_that_can_unpack_has_not_asked_for_it(client: Client) -> None:
    document = {"inputs": [tensor("input", X)]}
    response = infer(client, "iris", document, accept_encoding="gzip, deflate, br")
    assert "content-encoding" not in response.headers


def test_a_long_answer_is_compressed(folder: Path) -> None:
    x = np.zeros((20_000, 4), "f4")
    everything = {"parameters": {"binary_data_output": True}}
    source = folder / "scaled.msgpack"
    scale = np.array(3, "f4")
    with Client(create_app(source, settings(), device="numpy")) as client:
        document = {"inputs": [binary("x", x), tensor("scale", scale)]} | everything
        response = infer(client, "scaled", document, x.tobytes(), accept_encoding="gzip")
        assert int(response.headers["content-length"]) < x.nbytes / 50
        np.testing.assert_array_equal(arrays(response)["output"], x)


# --- mistakes ----------------------------------------------------------------------------------

GOOD = tensor("input", X)
BAD: dict[str, tuple[Any, str]] = {
    "no object": ([], "must be an object"),
    "no inputs": ({}, "inputs: expected an array"),
    "inputs an object": ({"inputs": {"input": 1}}, "inputs: expected an array"),
    "no input": ({"inputs": []}, "inputs are missing"),
    "an input that is a string": ({"inputs": ["input"]}, "objects with a name"),
    "without a name": ({"inputs": [tensor("input", X, name=None)]}, "objects with a name"),
    "another name": ({"inputs": [tensor("Input", X)]}, "which the model does not have"),
    "twice": ({"inputs": [GOOD, GOOD]}, "twice"),
    "no shape": ({"inputs": [tensor("input", X, shape=None)]}, "expected a shape"),
    "-1": ({"inputs": [tensor("input", X, shape=[-1, 4])]}, "expected a shape"),
    "true": ({"inputs": [tensor("input", X, shape=[True, 12])]}, "expected a shape"),
    "another shape": ({"inputs": [tensor("input", X, shape=[4, 3])]}, "expected shape [batch, 4]"),
    "another size": ({"inputs": [tensor("input", X, shape=[2, 4])]}, "not of its shape"),
    "nested otherwise": ({"inputs": [tensor("input", X, data=X.T.tolist())]}, "not of its shape"),
    "ragged": ({"inputs": [tensor("input", X, data=[[1, 2], [3]])]}, "input input"),
    "data a number": ({"inputs": [tensor("input", X, data=1)]}, "expected data, an array"),
    "no data": ({"inputs": [tensor("input", X, data=None)]}, "expected data, an array"),
    "a string": ({"inputs": [tensor("input", X, data=["1"] * 12)]}, "input input"),
    "null": ({"inputs": [tensor("input", X, data=[None] * 12)]}, "input input"),
    "too large": ({"inputs": [tensor("input", X, data=[1e39] * 12)]}, "1e+39 at [0]"),
    "no datatype": ({"inputs": [tensor("input", X, datatype=None)]}, "expected datatype FP32"),
    "FP64": ({"inputs": [tensor("input", X, datatype="FP64")]}, "got FP64"),
    "BYTES": ({"inputs": [tensor("input", X, datatype="BYTES")]}, "got BYTES"),
    "BF16": ({"inputs": [tensor("input", X, datatype="BF16")]}, "got BF16"),
    "parameters": ({"inputs": [GOOD], "parameters": []}, "parameters: expected an object"),
    "a flag": ({"inputs": [GOOD], "parameters": {"binary_data_output": 1}}, "true or false"),
    "a timeout": ({"inputs": [GOOD], "parameters": {"timeout": "1"}}, "microseconds"),
    "an id": ({"inputs": [GOOD], "id": 7}, "id: expected a string"),
    "outputs": ({"inputs": [GOOD], "outputs": {"name": "output"}}, "outputs: expected an array"),
    "another output": ({"inputs": [GOOD], "outputs": [{"name": "x"}]}, "does not have"),
    "an output twice": ({"inputs": [GOOD], "outputs": [{"name": "output"}] * 2}, "twice"),
    "no classes": (
        {"inputs": [GOOD], "outputs": [{"name": "output", "parameters": {"classification": -1}}]},
        "from 1 on",
    ),
    "shared memory": (
        {"inputs": [tensor("input", X, data=None, parameters={"shared_memory_region": "a"})]},
        "no shared memory",
    ),
    "output to shared memory": (
        {"inputs": [GOOD], "outputs": [
            {"name": "output", "parameters": {"shared_memory_region": "a"}}]},
        "no shared memory",
    ),
    "bytes that do not come": ({"inputs": [binary("input", X)]}, "but 0 bytes follow"),
    "a size of its own": (
        {"inputs": [tensor("input", X, data=None, parameters={"binary_data_size": 7})]},
        "binary_data_size is not",
    ),
    "a size that is none": (
        {"inputs": [tensor("input", X, data=None, parameters={"binary_data_size": "48"})]},
        "binary_data_size is not",
    ),
    "data twice": (
        {"inputs": [tensor("input", X, parameters={"binary_data_size": 48})]}, "has both"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request(client: Client, case: str) -> None:
    document, message = BAD[case]
    assert message in refused(infer(client, "iris", document))
    assert infer(client, "iris", {"inputs": [GOOD]}).status_code == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b"nonsense", b"\xff\xfe", b"[" * 3000, b'{"inputs": [NaN]}']
)
def test_no_json(client: Client, body: bytes) -> None:
    assert "not valid JSON" in refused(infer(client, "iris", body))


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "99999", "9" * 400, "3.5"])
def test_a_length_that_is_none(client: Client, length: str) -> None:
    said = refused(infer(client, "iris", {"inputs": [GOOD]}, **{LENGTH: length}))
    assert "Inference-Header-Content-Length" in said


def test_bytes_that_are_left_over(client: Client) -> None:
    document = {"inputs": [binary("input", X)]}
    said = refused(infer(client, "iris", document, X.tobytes() + b"1"))
    assert "the inputs' binary_data_size are 48 in all, but 49 bytes follow the JSON" in said
    assert "but 1 bytes follow" in refused(infer(client, "iris", {"inputs": [GOOD]}, b"1"))
    said = refused(infer(client, "iris", document, X.tobytes()[:-1]))
    assert "but 47 bytes follow" in said
    # without the header all of the body must be JSON
    refused(client.post("/v2/models/iris/infer", content=json.dumps(document) + "    1"))


def test_a_bool_is_0_or_1(client: Client) -> None:
    inputs = [tensor("left", LEFT), tensor("count", COUNT), binary("mask", MASK)]
    said = refused(infer(client, "mixed", {"inputs": inputs}, b"\0\1\2\0\0\0"))
    assert "a BOOL is a byte of 0 or 1" in said


def test_inputs_of_different_length(client: Client) -> None:
    inputs = [tensor("left", LEFT[:2]), tensor("count", COUNT), tensor("mask", MASK)]
    assert "same number of rows" in refused(infer(client, "mixed", {"inputs": inputs}))
    inputs = [tensor("left", LEFT), tensor("mask", MASK)]
    response = infer(client, "mixed", {"inputs": inputs})
    assert refused(response) == "inputs are missing" and "count" in response.json()["expected"]


@pytest.mark.parametrize("shape", [[10**18] * 4, [251, 4], [0, 10**18], [10**12, 0]])
def test_more_than_may_be(client: Client, shape: list[int]) -> None:
    for entry in (tensor("input", X, data=[]), binary("input", X[:0])):
        document = {"inputs": [entry | {"shape": shape}]}
        refused(infer(client, "iris", document), 413, "too_large")
    refused(infer(client, "iris", b" " * 10_001), 413, "too_large")


def test_a_timeout_in_the_body(folder: Path) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(inputs: Any) -> Any:
        entered.set()
        go_on.wait(10)
        return run(inputs)

    app = create_app(folder / "iris.msgpack", settings(), device="numpy")
    with Client(app) as client:
        document = {"inputs": [tensor("input", X)], "parameters": {"timeout": 30_000}}
        version = app.state.server.catalog.find("iris")
        run, version.batcher._run = version.batcher._run, slow
        version.batcher._seconds = dict.fromkeys(range(8), 0.01)
        refused(infer(client, "iris", document), 504, "deadline")
        assert entered.is_set()
        go_on.set()
        document["parameters"] = {"timeout": 0}
        assert infer(client, "iris", document).status_code == 200


PIECES: list[Any] = [
    [], {}, [1, 4], [0, 4], [3], "input", "output", "FP32", "BYTES", 48, X.tolist(),
]  # fmt: skip
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats()
SOME = st.none() | st.booleans() | NUMBERS | st.text(max_size=3) | st.sampled_from(PIECES)
KEYS = [
    "id", "parameters", "inputs", "outputs", "name", "shape", "datatype", "data", "timeout",
    "binary_data_size", "binary_data", "binary_data_output", "classification",
]  # fmt: skip


def parts(document: Any) -> list[Any]:
    """All objects and lists in a document."""
    inside = document.values() if isinstance(document, dict) else document
    found = [document]
    for part in inside:
        if isinstance(part, (dict, list)):
            found += parts(part)
    return found


@given(st.data())
def test_no_request_breaks_the_server(client: Client, data: st.DataObject) -> None:
    document = {
        "inputs": [data.draw(st.sampled_from([tensor("input", X), binary("input", X)]))],
        "outputs": [{"name": "output", "parameters": {"binary_data": True}}],
        "parameters": {"binary_data_output": False},
    }
    document = json.loads(json.dumps(document))
    for _ in range(data.draw(st.integers(0, 3))):
        part = data.draw(st.sampled_from(parts(document)))
        if isinstance(part, dict):
            part[data.draw(st.sampled_from(KEYS))] = copy.deepcopy(data.draw(SOME))
        elif part:
            part[data.draw(st.integers(0, len(part) - 1))] = copy.deepcopy(data.draw(SOME))
    head = json.dumps(document).encode()
    tail = data.draw(st.sampled_from([b"", X.tobytes(), X.tobytes()[:-1], bytes(64)]))
    content = bytearray(head + tail)
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=2)):
        content[at] = data.draw(st.integers(0, 255))
    length = len(head) + data.draw(st.sampled_from([0, 0, 0, 1, -1]))
    response = client.post(
        "/v2/models/iris/infer", content=bytes(content), headers={LENGTH: str(length)}
    )
    if response.status_code == 200:
        assert response.headers["content-type"].startswith("application/")
    else:
        assert response.status_code in (400, 406, 413, 504)
        refused(response, response.status_code)


# --- the model repository ----------------------------------------------------------------------


def test_the_index(client: Client) -> None:
    entries = client.post("/v2/repository/index").json()
    versions = {(entry["name"], entry["version"]): entry["state"] for entry in entries}
    assert versions["iris", "1"] == "READY" and ("flowers", "1") in versions
    ready = client.post("/v2/repository/index", json={"ready": True}).json()
    assert {entry["state"] for entry in ready} == {"READY"}
    refused(client.post("/v2/repository/index", json={"ready": 1}))
    refused(client.post("/v2/repository/index", json=[]))


def test_loading_is_off_unless_it_is_allowed(client: Client) -> None:
    for action in ("load", "unload"):
        said = refused(client.post(f"/v2/repository/models/iris/{action}"), 403, "forbidden")
        assert "management" in said
    assert client.get("/v2/models/iris/ready").status_code == 200


def test_load_and_unload(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "models", tmp_path / "models")
    app = create_app(tmp_path / "models", settings(management=True), device="numpy")
    document = {"inputs": [tensor("input", X)]}
    with Client(app) as client:
        assert client.post("/v2/repository/models/flowers/unload", json={}).status_code == 200
        refused(client.get("/v2/models/flowers/ready"), 503, "not_ready")
        refused(infer(client, "flowers", document), 503, "not_ready")
        refused(infer(client, "flowers/versions/1", document), 503, "not_ready")
        states = [entry["state"] for entry in client.post("/v2/repository/index").json()]
        assert states == ["UNAVAILABLE"] * 2
        publish(folder / "iris.msgpack", tmp_path / "models" / "flowers")
        assert client.post("/v2/repository/models/flowers/load").status_code == 200
        assert infer(client, "flowers", document).json()["model_version"] == "3"
        for action in ("load", "unload"):
            response = client.post(f"/v2/repository/models/nobody/{action}")
            refused(response, 404, "model_not_found")
        config = {"parameters": {"config": "{}"}}
        response = client.post("/v2/repository/models/flowers/load", json=config)
        assert "own folders" in refused(response)


# --- Triton's client ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A server in a thread of this process."""
    sources = [folder / name for name in ("iris.msgpack", "mixed.msgpack", "half.msgpack")]
    app = create_app(sources, settings(management=True), device="numpy")
    with thread(app) as url:
        yield url.removeprefix("http://").rstrip("/")


def of_triton(name: str, x: np.ndarray, binary: bool = True) -> Any:
    given = triton.InferInput(name, list(x.shape), v2.DATATYPES[x.dtype])
    return given.set_data_from_numpy(x, binary_data=binary)


WAYS: list[dict[str, Any]] = [
    {},
    {"request_compression_algorithm": "gzip"},
    {"response_compression_algorithm": "deflate"},
    {"request_compression_algorithm": "deflate", "response_compression_algorithm": "gzip"},
    {"request_id": "7", "priority": 1, "timeout": 5_000_000, "sequence_id": 3},
]


@needs_triton
def test_tritonclient(address: str, answer: np.ndarray) -> None:
    with triton.InferenceServerClient(address) as client:
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("iris") and client.is_model_ready("iris", "1")
        assert not client.is_model_ready("nobody")
        assert client.get_server_metadata()["name"] == "tinygrad_ish"
        assert client.get_model_metadata("iris", "1")["inputs"][0]["name"] == "input"
        assert len(client.get_model_repository_index()) == 3
        client.unload_model("half")
        assert not client.is_model_ready("half")
        client.load_model("half")
        assert client.is_model_ready("half")
        for way in WAYS:
            for binary_in in (True, False):
                outputs = [None] + [
                    [triton.InferRequestedOutput("output", binary_data=b)] for b in (True, False)
                ]
                for wanted in outputs:
                    given = [of_triton("input", X, binary_in)]
                    result = client.infer("iris", given, outputs=wanted, **way)
                    np.testing.assert_array_equal(result.as_numpy("output"), answer)
                    assert result.get_response().get("id", "") == way.get("request_id", "")
        later = [client.async_infer("iris", [of_triton("input", X)]) for _ in range(5)]
        for handle in later:
            np.testing.assert_array_equal(handle.get_result().as_numpy("output"), answer)


@needs_triton
def test_tritonclient_with_other_types(address: str, answer: np.ndarray) -> None:
    with triton.InferenceServerClient(address) as client:
        given = [of_triton("left", LEFT, False), of_triton("count", COUNT), of_triton("mask", MASK)]
        result = client.infer("mixed", given)
        np.testing.assert_array_equal(result.as_numpy("twice"), COUNT * 2)
        np.testing.assert_array_equal(result.as_numpy("all"), MASK.all(1))
        half = X.astype("f2")
        result = client.infer("half", [of_triton("x", half)])
        np.testing.assert_array_equal(result.as_numpy("output"), half + half)
        for b in (True, False):
            wanted = [triton.InferRequestedOutput("output", binary_data=b, class_count=1)]
            result = client.infer("iris", [of_triton("input", X)], outputs=wanted)
            texts = result.as_numpy("output").ravel()
            first = [t.decode() if isinstance(t, bytes) else t for t in texts]
            assert [int(t.split(":")[1]) for t in first] == answer.argmax(1).tolist()
        result = client.infer("iris", [of_triton("input", X[:0])])
        assert result.as_numpy("output").shape == (0, 3)
        with pytest.raises(InferenceServerException, match=r"expected shape \[batch, 4\]"):
            client.infer("iris", [of_triton("input", X[:, :3])])
        with pytest.raises(InferenceServerException, match="no model 'nobody'"):
            client.infer("nobody", [of_triton("input", X)])
        words = np.array([["a", "b"]], object)
        given = triton.InferInput("input", [1, 2], "BYTES").set_data_from_numpy(words)
        with pytest.raises(InferenceServerException, match="expected datatype FP32, got BYTES"):
            client.infer("iris", [given])


@needs_triton
def test_tritonclient_asyncio(address: str, answer: np.ndarray) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(address) as client:
            assert await client.is_server_live() and await client.is_model_ready("iris")
            assert (await client.get_model_metadata("mixed"))["name"] == "mixed"
            for way in WAYS:
                for binary_in in (True, False):
                    given = [of_triton("input", X, binary_in)]
                    result = await client.infer("iris", given, **way)
                    np.testing.assert_array_equal(result.as_numpy("output"), answer)
                    wanted = [triton_aio.InferRequestedOutput("output", binary_data=False)]
                    result = await client.infer("iris", given, outputs=wanted, **way)
                    np.testing.assert_array_equal(result.as_numpy("output"), answer)
            many = await asyncio.gather(
                *[client.infer("iris", [of_triton("input", X[n % 3 :][:1])]) for n in range(30)]
            )
            for n, result in enumerate(many):
                np.testing.assert_array_equal(result.as_numpy("output"), answer[n % 3 :][:1])
            with pytest.raises(InferenceServerException, match="expected datatype"):
                await client.infer("iris", [of_triton("input", X.astype("f8"))])

    asyncio.run(ask())
