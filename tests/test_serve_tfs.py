"""TensorFlow Serving's REST API: its rows and columns, its examples, its listings."""

from __future__ import annotations

import base64
import io
import json
import shutil
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

from tinygrad_ish.serve.app import create_app
from tinygrad_ish.serve.settings import Settings

from .asgi import Client

X = np.random.default_rng(0).normal(size=(3, 2)).astype("f4")
Y = np.array([[1], [2], [3]], "i4")
FEATURES = ["length", "width"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tg.manual_seed(0)
    folder = tmp_path_factory.mktemp("programs")
    net = nn.Sequential(nn.Linear(2, 3))
    iris = folder / "iris.msgpack"
    tg.export(
        net, X, iris, postprocess="softmax", features=FEATURES, labels=["a", "b", "c"], top_k=2
    )
    for _ in range(2):
        publish(iris, folder / "models" / "flowers")
    tg.export(lambda x: x + x, X, folder / "plain.msgpack")
    tg.export(lambda x: x.sum(1), X, folder / "sum.msgpack")

    def lightness(image: tg.Tensor) -> tg.Tensor:
        mean = image.flatten(1).mean(1, keepdim=True)
        return tg.cat([mean, 1 - mean], 1)

    image = np.zeros((2, 1, 6, 5), "f4")
    tg.export(lightness, image, folder / "picture.msgpack", inputs=["image"],
              labels=["light", "dark"])  # fmt: skip
    tg.export(lambda x: x.mean(), X, folder / "mean.msgpack")
    tg.export(lambda x: x.log(), np.abs(X), folder / "log.msgpack")
    tg.export(lambda x, y: {"p": x * y, "q": y + y}, (X, Y), folder / "two.msgpack")
    tg.export(lambda x, scale: x * scale, (X, np.float32(2)), folder / "scaled.msgpack")
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    sources = [*sorted(folder.glob("*.msgpack")), folder / "models"]
    with Client(create_app(sources, Settings(reload=False), device="numpy")) as client:
        yield client


def ask(client: Client, what: str, document: Any, **headers: str) -> Any:
    """The answer of ``what``, such as "iris:predict"."""
    response = client.post(
        f"/v1/models/{what}",
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        **({"content": document} if isinstance(document, bytes) else {"json": document}),
    )
    assert response.status_code == 200, response.text
    return response.json()


def refused(response: Any, status: int = 400) -> str:
    assert response.status_code == status, response.text
    assert {"error", "code"} <= set(response.json())
    return str(response.json()["error"])


@pytest.fixture(scope="module")
def answer(folder: Path) -> np.ndarray:
    result: np.ndarray = tg.load_program(folder / "iris.msgpack", "numpy")(X)
    return result


# --- predict -----------------------------------------------------------------------------------


def test_rows_of_one_input(client: Client, answer: np.ndarray) -> None:
    by_input = [{"input": row} for row in X.tolist()]
    by_feature = [{"width": w, "length": n} for n, w in X.tolist()]
    for instances in (X.tolist(), by_input, by_feature):
        found = ask(client, "iris:predict", {"instances": instances})
        assert list(found) == ["predictions"]
        np.testing.assert_array_equal(np.array(found["predictions"], "f4"), answer)
    np.testing.assert_array_equal(
        np.array(ask(client, "sum:predict", {"instances": X.tolist()})["predictions"], "f4"),
        X.sum(1),
    )


def test_columns_of_one_input(client: Client) -> None:
    for inputs in (X.tolist(), {"x": X.tolist()}):
        found = ask(client, "plain:predict", {"inputs": inputs})
        assert list(found) == ["outputs"]
        np.testing.assert_array_equal(np.array(found["outputs"], "f4"), X + X)


def test_several_inputs_and_outputs(client: Client) -> None:
    rows = [{"x": x, "y": y} for x, y in zip(X.tolist(), Y.tolist())]
    found = ask(client, "two:predict", {"instances": rows})["predictions"]
    assert all(list(row) == ["p", "q"] for row in found)
    np.testing.assert_allclose([row["p"] for row in found], X * Y, rtol=1e-6)
    columns = ask(client, "two:predict", {"inputs": {"x": X.tolist(), "y": Y.tolist()}})["outputs"]
    np.testing.assert_allclose(columns["p"], X * Y, rtol=1e-6)
    assert columns["q"] == [row["q"] for row in found] == (Y + Y).tolist()


def test_what_has_no_rows_goes_by_columns(client: Client) -> None:
    document = {"inputs": {"x": X.tolist(), "scale": 3}}
    np.testing.assert_allclose(ask(client, "scaled:predict", document)["outputs"], X * 3)
    mean = ask(client, "mean:predict", {"inputs": X.tolist()})["outputs"]
    assert mean == pytest.approx(float(X.mean()))
    for model in ("scaled", "mean"):
        url = f"/v1/models/{model}:predict"
        said = refused(client.post(url, json={"instances": X.tolist()}))
        assert 'use "inputs"' in said


def test_versions_and_signatures(client: Client, answer: np.ndarray) -> None:
    for path in ("flowers", "flowers/versions/1"):
        for name in ("serving_default", "", None):
            document = {"signature_name": name, "instances": X.tolist()}
            found = ask(client, f"{path}:predict", document)["predictions"]
            np.testing.assert_array_equal(np.array(found, "f4"), answer)
    document = {"instances": X.tolist(), "signature_name": "other"}
    said = refused(client.post("/v1/models/flowers:predict", json=document))
    assert "one signature" in said
    good = {"instances": X.tolist()}
    refused(client.post("/v1/models/nobody:predict", json=good), 404)
    refused(client.post("/v1/models/flowers/versions/9:predict", json=good), 404)
    said = refused(client.post("/v1/models/flowers/labels/stable:predict", json=good), 404)
    assert "no labels" in said


def test_numbers_that_json_cannot_hold(client: Client) -> None:
    x = [[1, -1], [0, 1]]
    url = "/v1/models/log:predict"
    said = refused(client.post(url, json={"instances": x}), 406)
    assert "output output is nan at [0, 1]" in said and "nan=null" in said
    nulls = "application/json; nan=null"
    found = ask(client, "log:predict", {"instances": x}, accept=nulls)
    assert found == {"predictions": [[0.0, None], [None, 0.0]]}
    document = {"instances": [[None, 1]]}
    assert "null at [0, 0]" in refused(client.post(url, json=document))
    found = ask(client, "log:predict", document, accept=nulls, content_type=nulls)
    assert found == {"predictions": [[None, 0.0]]}


# --- classify and regress ----------------------------------------------------------------------


def test_classify(client: Client, answer: np.ndarray) -> None:
    rows = [{"length": n, "width": w} for n, w in X.tolist()]
    expected = [[["abc"[k], float(p[k])] for k in np.argsort(-p)[:2]] for p in answer]
    for signature in ("serving_default", "tensorflow/serving/classify"):
        document = {"examples": rows, "signature_name": signature}
        found = ask(client, "iris:classify", document)["results"]
        for row, wanted in zip(found, expected, strict=True):
            assert [label for label, _ in row] == [label for label, _ in wanted]
            np.testing.assert_allclose([p for _, p in row], [p for _, p in wanted], rtol=1e-6)
    lists = [{key: [value] for key, value in row.items()} for row in rows]
    assert ask(client, "iris:classify", {"examples": lists})["results"] == found
    shared = {"context": {"width": 0.5}, "examples": [{"length": 0.25}]}
    alone = {"examples": [{"length": 0.25, "width": 0.5}]}
    assert ask(client, "iris:classify", shared) == ask(client, "iris:classify", alone)


def test_classify_without_labels(client: Client) -> None:
    found = ask(client, "plain:classify", {"examples": [{"x": [1, 2]}]})
    assert found == {"results": [[["", 2.0], ["", 4.0]]]}
    url = "/v1/models/sum:classify"
    assert "no classes" in refused(client.post(url, json={"examples": [{"x": [1, 2]}]}))


def test_regress(client: Client) -> None:
    rows = [{"x": row} for row in X.tolist()]
    found = ask(client, "sum:regress", {"examples": rows})["results"]
    np.testing.assert_allclose(found, X.sum(1), rtol=1e-6)
    url = "/v1/models/plain:regress"
    assert "not one number a row" in refused(client.post(url, json={"examples": rows}))


# --- images ------------------------------------------------------------------------------------


def png(level: int, kind: str = "PNG") -> str:
    """An image of one grey, in base64."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    file = io.BytesIO()
    image.new("L", (9, 7), level).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_images_in_base64(client: Client, kind: str) -> None:
    one, two = ({"b64": png(level, kind)} for level in (51, 204))
    expected = [0.2, 0.8]
    for instances in ([one, two], [{"image": one}, {"image": two}]):
        found = ask(client, "picture:predict", {"instances": instances})["predictions"]
        np.testing.assert_allclose([row[0] for row in found], expected, atol=0.01)
    for inputs in ([one, two], {"image": [one, two]}):
        found = ask(client, "picture:predict", {"inputs": inputs})["outputs"]
        np.testing.assert_allclose([row[0] for row in found], expected, atol=0.01)
    for examples in ([one, two], [{"image": one}, {"image": two}]):
        found = ask(client, "picture:classify", {"examples": examples})["results"]
        assert [row[0][0] for row in found] == ["dark", "light"]
        np.testing.assert_allclose([row[0][1] for row in found], [0.8, 0.8], atol=0.01)


BAD_IMAGES: dict[str, tuple[str, Any, str]] = {
    "no base64": ("picture", {"b64": "*!"}, "instances[1]: b64: it is not valid base64"),
    "not padded": ("picture", {"b64": "abc"}, "instances[1]: b64: it is not valid base64"),
    "no text": ("picture", {"b64": 7}, 'instances[1]: expected {"b64": text}'),
    "a row among images": ("picture", [[1.0]], 'instances[1]: expected {"b64": text}'),
    "numbers": ("picture", {"b64": "MSwyLDM="}, "instances[1]: it is no image"),
    "cut off": ("picture", {"b64": "iVBORw0KGgo="}, "instances[1]: it is a damaged"),
    "no image wanted": ("plain", None, "instances[0]: it is an image, and the program takes"),
    "two inputs": ("two", None, "objects by input"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_a_bad_image(client: Client, case: str) -> None:
    model, row, message = BAD_IMAGES[case]
    instances = [{"b64": png(100)}, *([] if row is None else [row])]
    response = client.post(f"/v1/models/{model}:predict", json={"instances": instances})
    assert message in refused(response)


def test_images_of_too_many_numbers_and_for_too_long(folder: Path) -> None:
    images = {"instances": [{"b64": png(100)}] * 3}
    settings = Settings(reload=False, max_elements=2 * 6 * 5)
    with Client(create_app(folder / "picture.msgpack", settings, device="numpy")) as client:
        url = "/v1/models/picture:predict"
        assert "too many numbers" in refused(client.post(url, json=images), 413)
        images["instances"].pop()
        refused(client.post(url, json=images, headers={"Timeout-Ms": "0"}), 504)


# --- mistakes ----------------------------------------------------------------------------------

ROWS = X.tolist()
BAD: dict[str, tuple[str, Any, str]] = {
    "no object": ("iris:predict", [], "must be an object"),
    "neither": ("iris:predict", {}, 'either "instances"'),
    "both": ("iris:predict", {"instances": ROWS, "inputs": ROWS}, 'either "instances"'),
    "no array": ("iris:predict", {"instances": 1}, "instances: expected an array"),
    "no rows": ("iris:predict", {"instances": []}, "one row or more"),
    "another width": ("iris:predict", {"instances": [[1, 2, 3]]}, "expected shape [batch, 2]"),
    "ragged": ("iris:predict", {"instances": [[1, 2], [3]]}, "input input"),
    "a string": ("iris:predict", {"instances": [["1", "2"]]}, "input input"),
    "an object among rows": ("iris:predict", {"instances": [[1, 2], {"input": [1, 2]}]}, "input"),
    "a row among objects": (
        "iris:predict", {"instances": [{"input": [1, 2]}, [1, 2]]}, "instances[1]: expected an"
    ),
    "another name": ("iris:predict", {"instances": [{"x": [1, 2]}]}, "object of input"),
    "a feature short": ("iris:classify", {"examples": [{"length": 1}]}, "examples[0]: expected"),
    "a long list": (
        "iris:classify", {"examples": [{"length": [1, 2], "width": 1}]}, "input input"
    ),
    "plain rows of several inputs": ("two:predict", {"instances": ROWS}, "objects by input"),
    "columns of another name": ("two:predict", {"inputs": {"x": ROWS}}, "names are others"),
    "no examples": ("iris:classify", {"instances": ROWS}, 'expected "examples"'),
    "rows for examples": ("iris:classify", {"examples": ROWS}, 'expected "examples"'),
    "in both": (
        "iris:classify", {"examples": [{"width": 1}], "context": {"width": 1}}, "of others"
    ),
    "a context": ("iris:classify", {"examples": [], "context": []}, 'expected "examples"'),
    "another method": (
        "iris:classify",
        {"examples": [{"length": 1, "width": 1}], "signature_name": "tensorflow/serving/regress"},
        "one signature",
    ),
    "NaN": ("iris:predict", b'{"instances": [[NaN, 1]]}', "not valid JSON"),
    "cut off": ("iris:predict", b'{"instances": [[1, 1]', "not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request(client: Client, case: str) -> None:
    what, document, message = BAD[case]
    content = {"content": document} if isinstance(document, bytes) else {"json": document}
    assert message in refused(client.post(f"/v1/models/{what}", **content))


KEYS = st.sampled_from(["instances", "inputs", "examples", "context", "signature_name", "input",
                        "x", "y", "length", "width", "dtype", "shape", "data"])  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
JSON = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=3), max_leaves=8
)


@given(
    st.sampled_from(["iris:predict", "iris:classify", "two:predict", "sum:regress"]),
    st.dictionaries(KEYS, JSON, max_size=2) | JSON,
)
def test_no_request_breaks_the_server(client: Client, what: str, document: Any) -> None:
    response = client.post(f"/v1/models/{what}", content=json.dumps(document).encode())
    if response.status_code != 200:
        assert response.status_code == 400
        refused(response)


# --- what there is -----------------------------------------------------------------------------


def test_the_status_of_a_model(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "models", tmp_path / "models")
    (tmp_path / "models/flowers/1/model.msgpack").write_bytes(b"nothing")
    with Client(create_app(tmp_path / "models", Settings(reload=False), device="numpy")) as client:
        bad, good = client.get("/v1/models/flowers").json()["model_version_status"]
        assert good == {
            "version": "2",
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
        assert bad["state"] == "END" and bad["status"]["error_code"] == "FAILED_PRECONDITION"
        assert bad["status"]["error_message"]
        one = client.get("/v1/models/flowers/versions/2").json()
        assert one == {"model_version_status": [good]}
        refused(client.get("/v1/models/nobody"), 404)
        refused(client.get("/v1/models/flowers/versions/3"), 404)


def test_the_metadata_of_a_model(client: Client) -> None:
    found = client.get("/v1/models/two/metadata").json()
    assert found["model_spec"] == {"name": "two", "signature_name": "", "version": "1"}
    signature = found["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["y"] == {
        "name": "y",
        "dtype": "DT_INT32",
        "tensor_shape": {
            "dim": [{"size": "-1", "name": ""}, {"size": "1", "name": ""}],
            "unknown_rank": False,
        },
    }
    assert signature["outputs"]["p"]["dtype"] == "DT_FLOAT"
    assert signature["method_name"] == "tensorflow/serving/predict"
    version = client.get("/v1/models/flowers/versions/1/metadata").json()["model_spec"]["version"]
    assert version == "1"
