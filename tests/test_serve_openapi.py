"""The description of the routes is whole and true."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

import tinygrad_ish as tg

pytest.importorskip("starlette", reason="tinygrad_ish[serve] is not installed")

from starlette.routing import Route

from tests import serving
from tinygrad_ish.serve import openapi
from tinygrad_ish.serve.app import create_app
from tinygrad_ish.serve.settings import Settings

schemathesis: Any = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
# What it imports late: deep in its calls CPython 3.11 can fail to compile (SystemError, AST depth).
pytest.importorskip(
    "schemathesis.specs.openapi.stateful.dependencies", reason="schemathesis is another version"
)

CHECKS = ["status_code_conformance", "content_type_conformance", "response_schema_conformance",
          "response_headers_conformance"]  # fmt: skip
EXAMPLES = settings(
    deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models")
    serving.publish(found, gradient=True)
    tg.export(lambda a, b: (a + b, a * 1), (tg.ones(2, 3), tg.ones(2, 3)), found / "two.msgpack",
              inputs=["a", "b"], outputs=["sum", "first"])  # fmt: skip
    return found


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[tuple[Any, str]]:
    paths = [folder / "small.msgpack", folder / "two.msgpack"]
    app = create_app(paths, Settings(reload=False), device="numpy")
    with serving.thread(app) as url:
        yield app, url


def test_every_route_is_described(server: tuple[Any, str]) -> None:
    app, _ = server
    document = openapi.describe(app.routes, app.state.server)
    described = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item
    }
    routes = {
        (method, route.path)
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert described == routes
    known = {(method, path.replace("/versions/{number}", "")) for method, path in routes}
    assert known == set(openapi.OPERATIONS), "descriptions without a route"


def test_what_is_described_is_true(server: tuple[Any, str]) -> None:
    """Requests that fit the description, and others: each answer is one that it names, of its
    shape."""
    app, url = server
    document = openapi.describe(app.routes, app.state.server, url)
    schemathesis.checks.load_all_checks()
    checks = schemathesis.checks.CHECKS.get_by_names(CHECKS)
    good = schemathesis.GenerationMode.POSITIVE
    answered = set()
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = found.ok()
        body = operation.method == "post"

        def ask(case: Any) -> None:
            response = case.call(base_url=url)
            assert response.status_code < 500 or response.status_code in (503, 504), response.text
            case.validate_response(response, checks=checks)
            if response.status_code == 200:
                answered.add((case.operation.method, case.operation.path))

        for mode in schemathesis.GenerationMode if body else [good]:
            strategy = operation.as_strategy(generation_mode=mode)
            examples = settings(EXAMPLES, max_examples=5 if body else 1)
            examples(given(case=strategy)(ask))()
    gets = {("get", path) for path, item in document["paths"].items() if "get" in item}
    assert gets - answered <= {("get", "/page/{file}")}


ROWS = [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 1.0]]
ASKED: dict[str, Any] = {
    "/predict": {"inputs": ROWS},
    "/models/{name}/predict": {"inputs": {"x": ROWS}},
    "/models/{name}/versions/{number}/predict": {"inputs": ROWS},
    "/explain": {"inputs": ROWS, "steps": 8},
    "/models/{name}/explain": {"inputs": ROWS, "method": "gradient", "target": [0, "b"]},
    "/v2/models/{name}/infer": {
        "id": "7", "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 4], "data": ROWS}]
    },
    "/v2/repository/index": {"ready": True},
    "/v1/models/{name}:predict": {"instances": ROWS},
    "/v1/models/{name}/versions/{number}:predict": {"inputs": ROWS},
    "/v1/models/{name}:classify": {"examples": [{"x": ROWS[0]}]},
}  # fmt: skip


@pytest.mark.parametrize("path", ASKED)
def test_what_is_asked_and_answered_is_as_described(server: tuple[Any, str], path: str) -> None:
    app, url = server
    schema = schemathesis.openapi.from_dict(openapi.describe(app.routes, app.state.server, url))
    schemathesis.checks.load_all_checks()
    names = {"name": "small", "number": "1"}
    case = schema[path]["POST"].Case(
        path_parameters={n: v for n, v in names.items() if f"{{{n}}}" in path},
        body=ASKED[path],
        media_type="application/json",
    )
    response = case.call(base_url=url)
    assert response.status_code == 200, response.text
    case.validate_response(response, checks=schemathesis.checks.CHECKS.get_by_names(CHECKS))


def test_the_description_over_http(server: tuple[Any, str]) -> None:
    _, url = server
    with urllib.request.urlopen(f"{url}/openapi.json") as answer:
        document = json.load(answer)
    assert document["openapi"].startswith("3.1")
    inputs = document["components"]["schemas"]["Inputs.small"]["properties"]["inputs"]
    row = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
    assert inputs["anyOf"][0] == {"type": "array", "items": row, "minItems": 1}
    assert set(document["components"]["schemas"]["Inputs.two"]["properties"]["inputs"]["required"])\
        == {"a", "b"}  # fmt: skip


def test_keys_stand_in_the_description(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("me infer,metrics 0123456789abcdef\n")
    app = create_app(folder / "small.msgpack", Settings(reload=False, keys=str(keys)))
    paths = openapi.describe(app.routes, app.state.server)["paths"]
    assert "security" not in paths["/healthz"]["get"]
    assert "infer" in paths["/predict"]["post"]["description"]
    assert "metrics" in paths["/metrics"]["get"]["description"]
    assert "admin" in paths["/v2/repository/models/{name}/load"]["post"]["description"]
    assert {"401", "403"} <= set(paths["/predict"]["post"]["responses"])
