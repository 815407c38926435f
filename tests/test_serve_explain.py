"""Explanations over HTTP: the numbers are those of autograd, and of the definition."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

import tinygrad_ish as tg
from tinygrad_ish import nn

pytest.importorskip("starlette", reason="starlette is not installed")

from tinygrad_ish.serve import explain
from tinygrad_ish.serve.app import create_app
from tinygrad_ish.serve.settings import Settings

from .asgi import Client

LABELS = ["a", "b", "c", "7"]


def scaled(x: Any) -> Any:
    return (x.float() / 255 - 0.25) / 0.5


def digits() -> nn.Sequential:
    tg.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.GELU(), nn.Linear(16, 4))


def images(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 6, 6), dtype=np.uint8)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(5, 1)

    def forward(self, a: Any, b: Any) -> Any:
        return self.mix(tg.cat([a * b, a.tanh(), b.sum(1, keepdim=True)], 1))


def neighbours(x: Any) -> Any:
    return (x - x.mean(0)) * (x * x).sum(1, keepdim=True)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("programs")
    image = images(6)

    def export(name: str, *args: Any, **options: Any) -> str:
        path = folder / f"{name}.msgpack"
        tg.export(*args, path, **options)
        return str(path)

    rng = np.random.default_rng(2)
    a, b = (rng.normal(size=(5, 2)).astype("f4") for _ in range(2))
    plain = {"preprocess": scaled, "postprocess": "softmax", "labels": LABELS}
    files = [
        export("digits", digits(), image, gradient=True, **plain),
        export("silent", digits(), image, **plain),
        export("pair", Pair(), (a, b), gradient=True, postprocess=lambda y: (y * 3 + 1).squeeze(1)),
        export("neighbours", neighbours, a, gradient=True),
        export(
            "turned", digits(), image, gradient=True, preprocess=lambda x: scaled(x).transpose(1, 2)
        ),
    ]
    return create_app(files, Settings(reload=False), device="numpy")


@pytest.fixture(scope="module")
def call(app: Any) -> Iterator[Callable[..., Any]]:
    with Client(app) as client:
        yield client.post


def ok(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refused(answer: Any, status: int, code: str) -> str:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    return str(answer.json()["error"])


def scores(x: Any) -> np.ndarray:
    with tg.no_grad():
        return np.asarray(digits()(x).numpy())


def gradient(x: np.ndarray, targets: list[int]) -> np.ndarray:
    leaf = scaled(tg.tensor(x)).detach().requires_grad_()
    digits()(leaf).backward(tg.tensor(np.eye(4, dtype="f4")[targets]))
    return np.asarray(leaf.grad.numpy())


# --- the numbers -------------------------------------------------------------------------------


def test_gradients_are_those_of_autograd(call: Any) -> None:
    x, targets = images(3, seed=5), [2, 0, 3]
    answer = ok(
        call("/explain", json={"inputs": x.tolist(), "method": "gradient", "target": targets})
    )
    assert answer["target"] == targets and answer["labels"] == ["c", "a", "7"]
    assert "completeness" not in answer and "steps" not in answer
    found = np.array(answer["attributions"]["input"], np.float32)
    assert found.shape == x.shape
    np.testing.assert_allclose(found, gradient(x, targets), rtol=1e-4, atol=1e-6)


def test_integrated_gradients_sum_to_the_rise_of_the_score(call: Any) -> None:
    x = images(4, seed=6)
    answer = ok(call("/explain", json={"inputs": x.tolist(), "steps": 100}))
    assert answer["method"] == "integrated_gradients" and answer["steps"] == 100
    prepared = scaled(tg.tensor(x))
    above = scores(prepared)
    assert answer["target"] == above.argmax(1).tolist()
    rise = (above - scores(prepared * 0))[np.arange(4), answer["target"]]
    found = np.array(answer["attributions"]["input"])
    np.testing.assert_allclose(found.sum((1, 2)), rise, rtol=2e-3)
    for row, part in enumerate(answer["completeness"]):
        assert part["score_difference"] == pytest.approx(rise[row], rel=1e-4)
        assert part["sum"] == pytest.approx(found[row].sum(), rel=1e-4)
        assert part["gap"] == pytest.approx(part["sum"] - part["score_difference"])


def test_integrated_gradients_follow_the_definition(call: Any) -> None:
    x = images(2, seed=7)
    answer = ok(call("/explain?steps=5&target=b", json={"inputs": x.tolist()}))
    end = scaled(tg.tensor(x)).numpy()
    total = np.zeros(end.shape)
    for t in (0.1, 0.3, 0.5, 0.7, 0.9):
        leaf = tg.tensor((end * t).astype("f4"), requires_grad=True)
        digits()(leaf)[:, 1].sum().backward()
        total += leaf.grad.numpy()
    expected = end * total / 5
    np.testing.assert_allclose(answer["attributions"]["input"], expected, rtol=1e-3, atol=1e-6)


def test_more_steps_leave_a_smaller_gap(call: Any) -> None:
    def gap(steps: int) -> float:
        answer = ok(call(f"/explain?steps={steps}", json={"inputs": images(1).tolist()}))
        return abs(answer["completeness"][0]["gap"])

    assert gap(512) < 1e-3 < gap(1)


def test_a_baseline_of_zeros_before_the_preprocessing_or_of_ones_own(call: Any) -> None:
    x, other = images(2, seed=8), images(1, seed=9)
    body = {"inputs": x.tolist(), "target": "c", "steps": 200}
    prepared = scaled(tg.tensor(x))
    for baseline, start in (("input", np.zeros_like(other)), (other.tolist(), other)):
        answer = ok(call("/explain", json={**body, "baseline": baseline}))
        rise = (scores(prepared) - scores(scaled(tg.tensor(start))))[:, 2]
        sums = np.array(answer["attributions"]["input"]).sum((1, 2))
        np.testing.assert_allclose(sums, rise, rtol=2e-3, atol=1e-3)


def test_several_inputs_and_a_postprocessing_of_ones_own(call: Any) -> None:
    a, b = [[0.5, -1.0], [2.0, 0.25]], [[1.5, 0.5], [-0.5, 1.0]]
    answer = ok(call("/models/pair/explain?steps=200", json={"inputs": {"a": a, "b": b}}))
    tg.manual_seed(0)
    sums = sum(np.array(answer["attributions"][name]).sum(1) for name in "ab")
    for total, part in zip(sums, answer["completeness"], strict=True):
        assert total == pytest.approx(part["score_difference"], rel=1e-3, abs=1e-5)


def test_rows_that_depend_on_each_other_are_stepped_together(call: Any) -> None:
    """Steps of such a model cannot share a run: its rows would see those of other steps."""
    x = np.random.default_rng(3).normal(size=(3, 2)).astype("f4")
    answer = ok(call("/models/neighbours/explain?steps=7&target=0", json={"inputs": x.tolist()}))
    total = np.zeros(x.shape)
    for t in (np.arange(7) + 0.5) / 7:
        leaf = tg.tensor(x * np.float32(t), requires_grad=True)
        neighbours(leaf)[:, 0].sum().backward()
        total += leaf.grad.numpy()
    np.testing.assert_allclose(answer["attributions"]["x"], x * total / 7, rtol=1e-3, atol=1e-6)


def test_attributions_keep_the_models_shape_where_the_input_was_rearranged(call: Any) -> None:
    """A transposed image cannot be given back in the input's shape by renaming its axes."""
    x = images(1)
    turned = ok(call("/models/turned/explain?target=1", json={"inputs": x.tolist()}))
    straight = ok(call("/explain?target=1", json={"inputs": x.transpose(0, 2, 1).tolist()}))
    np.testing.assert_allclose(
        turned["attributions"]["input"], straight["attributions"]["input"], rtol=1e-3, atol=1e-6
    )


# --- how it is asked and answered --------------------------------------------------------------


def test_raw_bodies_and_answers(call: Any) -> None:
    x = images(2, seed=4)
    raw = {"content-type": "application/octet-stream"}
    listed = ok(call("/explain?target=7", content=x.tobytes(), headers=raw))
    assert listed["target"] == [3, 3] and listed["labels"] == ["7", "7"], "a label before a number"
    answer = call(
        "/explain?target=7", content=x.tobytes(), headers={**raw, "accept": raw["content-type"]}
    )
    found = np.frombuffer(answer.content, "<f4").reshape(x.shape)
    np.testing.assert_allclose(found, listed["attributions"]["input"], rtol=1e-6)


def test_msgpack_both_ways(call: Any) -> None:
    kind = "application/msgpack"
    tensor = {"dtype": "uint8", "shape": [1, 6, 6], "data": images(1).tobytes()}
    body = msgpack.packb({"inputs": {"input": tensor}, "steps": 4})
    answer = call("/explain", content=body, headers={"content-type": kind, "accept": kind})
    assert answer.headers["content-type"] == kind
    found = msgpack.unpackb(answer.content)
    assert found["steps"] == 4 and found["model"] == "digits"
    assert found["attributions"]["input"]["shape"] == [1, 6, 6]


@pytest.mark.parametrize(
    "path", ["/explain", "/models/digits/explain", "/models/digits/versions/1/explain"]
)
def test_the_three_paths(call: Any, path: str) -> None:
    answer = ok(call(path, json={"inputs": images(1).tolist(), "method": "gradient"}))
    assert (answer["model"], answer["version"]) == ("digits", "1")


def test_the_query_is_stronger_than_the_body(call: Any) -> None:
    body = {"inputs": images(1).tolist(), "steps": 9, "target": 0}
    answer = ok(call("/explain?steps=3", json=body))
    assert (answer["steps"], answer["target"]) == (3, [0])


@pytest.mark.parametrize(
    ("query", "more", "said"),
    [
        ("method=shap", {}, "method: expected one of integrated_gradients, gradient"),
        ("steps=0", {}, "steps: expected a whole number, 1 to 512"),
        ("steps=513", {}, "steps"),
        ("", {"steps": 2.5}, "steps"),
        ("", {"steps": True}, "steps"),
        ("", {"steps": [3]}, "steps"),
        ("target=4", {}, "target: expected 0 to 3"),
        ("target=zebra", {}, "or a label"),
        ("", {"target": -1}, "target"),
        ("", {"target": [0, 1]}, "expected one class, or 1"),
        ("", {"target": {"a": 1}}, "target"),
        ("baseline=mean", {}, "baseline: expected prepared or input"),
        ("", {"baseline": images(3).tolist()}, "1 row or 1"),
        ("speed=9", {}, "the query: expected only"),
        ("", {"speed": 9}, "the body: expected the keys inputs"),
    ],
)
def test_options_that_are_none(call: Any, query: str, more: dict[str, Any], said: str) -> None:
    answer = call(f"/explain?{query}", json={"inputs": images(1).tolist(), **more})
    assert said in refused(answer, 400, "bad_request")


def test_bad_inputs(call: Any) -> None:
    refused(call("/explain", json={"inputs": [[1, 2]]}), 400, "bad_input")
    refused(call("/explain", json=[1]), 400, "bad_request")
    refused(call("/explain", content=b"{"), 400, "bad_request")
    refused(call("/explain", json={"inputs": np.zeros((0, 6, 6)).tolist()}), 400, "bad_input")
    body = {"inputs": images(1).tolist(), "baseline": [[1]]}
    refused(call("/explain", json=body), 400, "bad_input")
    refused(call("/models/none/explain", json=body), 404, "model_not_found")


def test_a_model_without_a_gradient_says_how_to_get_one(call: Any) -> None:
    answer = call("/models/silent/explain", json={"inputs": images(1).tolist()})
    assert "export it with gradient=True" in refused(answer, 422, "not_explainable")


# --- limits ------------------------------------------------------------------------------------


def test_more_rows_than_one_request_may_explain(call: Any) -> None:
    ok(call("/explain?steps=1", json={"inputs": images(explain.MOST_ROWS).tolist()}))
    answer = call("/explain", json={"inputs": images(explain.MOST_ROWS + 1).tolist()})
    refused(answer, 413, "too_large")


def test_more_explanations_at_once_than_there_may_be(app: Any, call: Any) -> None:
    server = app.state.server
    explain._under_way[server] = explain.WAITING
    try:
        answer = call("/explain", json={"inputs": images(1).tolist()})
        refused(answer, 429, "overloaded")
        assert answer.headers["retry-after"] == "1"
    finally:
        explain._under_way[server] = 0
    ok(call("/explain", json={"inputs": images(1).tolist()}))
    assert explain._under_way[server] == 0, "a finished one is counted no more"


def test_work_is_done_in_the_compute_thread_in_chunks(
    app: Any, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = app.state.server.catalog.find("digits").program
    runs: list[tuple[str, int]] = []
    whole = program.gradient

    def spy(*prepared: Any, weight: Any) -> Any:
        runs.append((threading.current_thread().name, len(weight)))
        return whole(*prepared, weight=weight)

    monkeypatch.setattr(program, "gradient", spy)
    ok(call("/explain?steps=100", json={"inputs": images(3).tolist()}))
    assert {name for name, _ in runs} == {"compute_0"}
    assert sum(rows for _, rows in runs) == 300
    assert max(rows for _, rows in runs) <= explain.AT_ONCE


def test_a_deadline_ends_the_work(app: Any, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    program = app.state.server.catalog.find("digits").program
    whole, runs = program.gradient, []

    def slow(*prepared: Any, weight: Any) -> Any:
        runs.append(threading.Event().wait(0.05))
        return whole(*prepared, weight=weight)

    monkeypatch.setattr(program, "gradient", slow)
    body = {"inputs": images(explain.AT_ONCE).tolist(), "steps": 100}
    answer = call("/explain", json=body, headers={"timeout-ms": "120"})
    refused(answer, 504, "deadline")
    assert len(runs) < 10, "the steps that nobody waits for are left out"


def test_a_deadline_that_is_no_number(call: Any) -> None:
    body = {"inputs": images(1).tolist()}
    refused(call("/explain", json=body, headers={"timeout-ms": "soon"}), 400, "bad_request")


def test_a_failing_model_is_no_traceback(
    app: Any, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = app.state.server.catalog.find("digits").program
    monkeypatch.setattr(program, "gradient", lambda *given, weight: 1 / 0)
    answer = call("/explain", json={"inputs": images(1).tolist()})
    assert "ZeroDivisionError" not in refused(answer, 500, "model_failed")


def test_scores_that_are_not_found_leave_the_gap_out(
    app: Any, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = app.state.server.catalog.find("digits").program
    monkeypatch.setitem(explain._scores, program, None)
    answer = ok(call("/explain", json={"inputs": images(1).tolist()}))
    assert answer["completeness"] is None and answer["attributions"]["input"]


def test_the_scores_are_found_before_the_postprocessing(app: Any, call: Any) -> None:
    catalog = app.state.server.catalog
    program = catalog.find("digits").program
    runner = explain._found(program)
    assert runner is not None
    prepared = scaled(tg.tensor(images(3)))
    np.testing.assert_allclose(runner([prepared.numpy()])[0], scores(prepared), rtol=1e-5)


def test_a_path_with_a_null_byte(tmp_path: Path, call: Any) -> None:
    refused(call("/models/%00/explain", json={"inputs": []}), 404, "model_not_found")
