"""The server as a process: settings, keys, limits, signals, workers, logs and counts."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="tinygrad_ish[serve] is not installed")

import tinygrad_ish as tg
from tests import serving
from tests.asgi import Client
from tinygrad_ish.__main__ import main
from tinygrad_ish.deploy.registry import publish
from tinygrad_ish.serve import logs, settings
from tinygrad_ish.serve.app import create_app
from tinygrad_ish.serve.auth import Keys, scope_of
from tinygrad_ish.serve.metrics import LEFT, SECONDS, Metrics
from tinygrad_ish.serve.settings import Settings, SettingsError

posix = pytest.mark.skipif(os.name != "posix", reason="signals and workers are POSIX")
PREFIX = settings.PREFIX
KEY, OTHER = "0123456789abcdef", "fedcba9876543210"
ROW = {"inputs": [[1.0, 2.0, 3.0, 4.0]]}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serving.publish(tmp_path_factory.mktemp("models"))


# --- settings ------------------------------------------------------------------------------------


def test_a_flag_goes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('max_batch = 1\nmax_queue = 2\ntimeout = 3\ncors = ["http://a", "http://b"]\n')
    paths, found, sources = settings.read(
        ["a.msgpack", "models", "--config", str(file), "--max-batch", "7", "--no-reload"],
        {PREFIX + "MAX_BATCH": "5", PREFIX + "MAX_QUEUE": "6", "OTHER": "x"},
    )
    assert paths == ["a.msgpack", "models"]
    assert (found.max_batch, found.max_queue, found.timeout, found.reload) == (7, 6, 3.0, False)
    assert found.cors == ("http://a", "http://b") and type(found.timeout) is float
    assert found.port == Settings().port
    assert sources == {
        "max_batch": "flag --max-batch", "max_queue": PREFIX + "MAX_QUEUE",
        "timeout": f"file {file}", "cors": f"file {file}", "reload": "flag --reload",
    }  # fmt: skip
    _, named, _ = settings.read(["a"], {PREFIX + "CONFIG": str(file), PREFIX + "RELOAD": "no"})
    assert named.max_queue == 2 and named.reload is False


@pytest.mark.parametrize(
    ("argv", "environment", "file", "message"),
    [
        (["--max-bach", "3"], {}, "", "there is no flag --max-bach; did you mean --max-batch?"),
        (["--max-b", "3"], {}, "", "there is no flag --max-b"),
        ([], {PREFIX + "MAXBATCH": "3"}, "", f"did you mean {PREFIX}MAX_BATCH?"),
        ([], {PREFIX + "max_batch": "3"}, "", "is not a setting"),
        ([], {}, "max_bacth = 3", "max_bacth is not a setting; did you mean max_batch?"),
        ([], {}, "[max_batch]", "max_batch: expected an int"),
        ([], {}, "max_batch", "serve.toml: "),
        ([], {}, "reload = 1", "reload: expected true or false, got 1"),
        ([], {}, "cors = [1]", "cors: expected texts"),
        (["--port", "x"], {}, "", "port (--port): expected an int, got 'x'"),
        (["--port", "70000"], {}, "", "port: expected 0 to 65535"),
        (["--port", "-1"], {}, "", "expected 0 or more"),
        (["--timeout", "nan"], {}, "", "timeout: expected 0 or more"),
        (["--workers", "0"], {}, "", "workers: expected 1 or more"),
        (["--log-level", "loud"], {}, "", "log_level: expected debug, info, warning or error"),
        (["--tls-key", "k"], {}, "", "tls_key: it needs tls_cert"),
        ([], {PREFIX + "RELOAD": "perhaps"}, "", "expected true or false, got 'perhaps'"),
        (["--port"], {}, "", "--port: expected one argument"),
    ],
)
def test_settings_that_make_no_sense(
    argv: list[str], environment: dict[str, str], file: str, message: str, tmp_path: Path
) -> None:
    if file:
        path = tmp_path / "serve.toml"
        path.write_text(file)
        argv = [*argv, "--config", str(path)]
    with pytest.raises(SettingsError, match=re.escape(message)):
        settings.read(["a.msgpack", *argv], environment)


def test_every_setting_says_what_it_is_for_and_is_shown() -> None:
    about = settings.about()
    assert set(about) == set(vars(Settings())) and all(about.values())
    shown = settings.show(Settings(port=9, tls_key_password="secret", tls_cert="c"), {
        "port": "flag --port", "tls_key_password": "environment", "tls_cert": "flag --tls-cert",
    })  # fmt: skip
    assert re.search(r"port = 9 +\(flag --port\)", shown) and "secret" not in shown
    assert all(name in shown for name in about)


def test_the_command_refuses_what_makes_no_sense(
    capsys: pytest.CaptureFixture[str], program: Path, tmp_path: Path
) -> None:
    for argv, message in (
        (["nowhere.msgpack"], "nowhere.msgpack: there is no such file"),
        ([str(program), "--prot", "1"], "did you mean --port?"),
        ([], "PATH"),
        ([str(program), "--keys", str(tmp_path / "none")], "keys: "),
    ):
        assert main(["serve", *argv]) == 2
        assert message in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(program), "--port", str(taken.getsockname()[1])]) == 1
    assert "in use" in capsys.readouterr().err


# --- keys ----------------------------------------------------------------------------------------


def test_keys_and_their_scopes(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    digest = hashlib.sha256(OTHER.encode()).hexdigest()
    path.write_text(f"# comment\n\nme infer {KEY}\nops admin,metrics sha256:{digest}\n")
    app = create_app(program, Settings(reload=False, keys=str(path), management=True))
    mine, theirs = {"Authorization": f"Bearer {KEY}"}, {"X-API-Key": OTHER}
    with Client(app) as client:
        for open_to_all in ("/healthz", "/readyz", "/", "/v2/health/live"):
            assert client.get(open_to_all).status_code == 200
        refused = client.post("/predict", json=ROW)
        assert refused.status_code == 401 and refused.json()["code"] == "unauthorized"
        assert refused.headers["www-authenticate"] == "Bearer"
        assert client.post("/predict", json=ROW, headers={"X-API-Key": "no"}).status_code == 401
        assert client.post("/predict", json=ROW, headers=mine).status_code == 200
        assert client.post("/predict", json=ROW, headers=theirs).status_code == 403
        for path_of, of_infer, of_ops in (
            ("/models", 200, 403), ("/metrics", 403, 200), ("/stats", 403, 200),
        ):  # fmt: skip
            assert client.get(path_of, headers=mine).status_code == of_infer
            assert client.get(path_of, headers=theirs).status_code == of_ops
        unload = "/v2/repository/models/small/unload"
        assert client.post(unload, headers=mine).status_code == 403
        assert client.post(unload, headers=theirs).status_code == 200
        model = app.state.server.metrics
        assert "0123456789abcdef" not in model.expose(app.state.server.catalog)[0].decode()


def test_management_is_off_unless_it_is_switched_on(program: Path) -> None:
    with Client(create_app(program, Settings(reload=False))) as client:
        answer = client.post("/v2/repository/models/small/unload")
        assert answer.status_code == 403 and answer.json()["code"] == "forbidden"


def test_the_keys_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tinygrad_ish.serve.auth.LOOK", 0.0)
    path = tmp_path / "keys"
    path.write_text(f"me infer {KEY}\n")
    keys = Keys(str(path))
    mine, other = [(b"x-api-key", KEY.encode())], [(b"x-api-key", OTHER.encode())]
    time.sleep(0.01)
    assert keys.check(mine, "infer") == "me"
    path.write_text(f"you infer {OTHER}   \n")
    assert keys.check(other, "infer") == "you"
    with pytest.raises(Exception, match="not known"):
        keys.check(mine, "infer")
    path.write_text("nonsense\n")
    assert keys.check(other, "infer") == "you"
    assert "line 1: expected a name, scopes and a key" in caplog.text
    path.unlink()
    assert keys.check(other, "infer") == "you"


@pytest.mark.parametrize(
    "line",
    ["me infer", "me cook 0123456789abcdef", "me infer short", "me infer sha256:00",
     "me infer sha256:zz"],
)  # fmt: skip
def test_a_file_of_keys_that_makes_no_sense(line: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# first\n{line}\n")
    with pytest.raises(SettingsError, match=r"keys: .*(line 2|hexadecimal)"):
        Keys(str(path))


def test_every_route_has_a_scope(program: Path) -> None:
    needs = {r.path: scope_of(r.path) for r in create_app(program).routes}  # type: ignore[attr-defined]
    assert {p for p, scope in needs.items() if scope is None} == {
        "/", "/page/{file}", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"
    }  # fmt: skip
    assert {p for p, scope in needs.items() if scope == "admin"} == {
        f"/v2/repository/models/{{name}}/{verb}" for verb in ("load", "unload")
    }


def test_pages_of_other_origins(program: Path) -> None:
    ask = {"Origin": "http://a", "Access-Control-Request-Method": "POST"}
    told = "access-control-allow-origin"
    app = create_app(program, Settings(reload=False, cors=("http://a",)))
    with Client(app) as client:
        options = client.loop.run_until_complete(client.client.options("/predict", headers=ask))
        assert options.headers[told] == "http://a"
        assert client.post("/predict", json=ROW, headers=ask).headers[told] == "http://a"
        assert told not in client.get("/healthz", headers={"Origin": "http://b"}).headers
    with Client(create_app(program, Settings(reload=False))) as client:
        assert told not in client.get("/healthz", headers=ask).headers


# --- logs ----------------------------------------------------------------------------------------


def test_ids_of_requests(program: Path) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    parent = f"00-{trace}-b7ad6b7169203331-01"
    app = create_app(program, Settings(reload=False, access_log=True))
    written = io.StringIO()
    app.state.server.access = logs.AccessLog(True, written)
    with Client(app) as client:

        def ident(**headers: str) -> str:
            found: str = client.get("/healthz", headers=headers).headers["x-request-id"]
            return found

        assert ident(**{"X-Request-Id": "mine"}) == "mine"
        assert ident(traceparent=parent) == trace
        assert ident(**{"X-Request-Id": "mine", "traceparent": parent}) == "mine"
        made = {ident(), ident(), ident(**{"X-Request-Id": "a b"}), ident(traceparent="00-0-0-00")}
        assert len(made) == 4 and "a b" not in made
        client.post("/predict", json=ROW, headers={"traceparent": parent})
        app.state.server.access.flush()
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert lines[2]["request_id"] == "mine" and lines[2]["trace_id"] == trace
    last = lines[-1]
    assert (last["route"], last["model"], last["status"]) == ("/predict", "small", 200)
    assert last["method"] == "POST" and last["path"] == "/predict" and last["seconds"] > 0


@pytest.mark.parametrize("given", ["", "00", "00-" + "0" * 32 + "-b7ad6b7169203331-01",
    "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01"])  # fmt: skip
def test_what_is_no_trace(given: str) -> None:
    assert logs.trace_of(given.encode()) is None


def test_a_line_of_the_log_is_one_line() -> None:
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "a\nb %s", ("c\r\n",), None)
    record.request_id = "7"
    found = json.loads(logs._Json(3).format(record))
    assert found["message"] == "a\nb c\r\n" and found["request_id"] == "7" and found["worker"] == 3
    assert len(logs._Text().format(record).splitlines()) == 1


# --- counts --------------------------------------------------------------------------------------


def sample(text: str, name: str, **labels: str) -> float:
    """A sample's value in the text for Prometheus."""
    from prometheus_client.parser import text_string_to_metric_families

    found = [
        s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if s.name == f"tinygrad_ish_{name}" and labels.items() <= s.labels.items()
    ]
    assert len(found) == 1, f"{name} {labels}: {found}"
    return float(found[0])


def test_what_is_counted(program: Path) -> None:
    with Client(create_app(program, Settings(reload=False))) as client:
        for _ in range(3):
            client.post("/predict", json=ROW)
        client.post("/models/small/predict", content=b"{")
        client.post("/models/absent/predict", json=ROW)
        client.get("/nowhere")
        text = client.get("/metrics").text
        opened = client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
        stats = client.get("/stats").json()
    count = {"model": "small", "route": "/predict"}
    assert sample(text, "requests_total", **count, status="200") == 3
    assert sample(text, "requests_total", route="/models/{name}/predict", status="400") == 1
    assert sample(text, "requests_total", model="", status="404", route="none") == 1
    assert "absent" not in text
    assert sample(text, "request_seconds_count", **count) == 3
    assert sample(text, "request_seconds_bucket", **count, le="+Inf") == 3
    assert 0 < sample(text, "request_seconds_sum", **count) < 3
    assert sample(text, "queue_seconds_count", model="small") == 3
    assert sample(text, "batch_rows_sum", model="small") == 3
    assert sample(text, "compute_seconds_count", model="small") == 3
    assert sample(text, "waiting_requests", model="small") == 0
    assert sample(text, "model_ready", model="small", version="1") == 1
    assert opened.headers["content-type"].startswith("application/openmetrics-text")
    assert opened.text.endswith("# EOF\n")
    figures = stats["models"]["small"]
    assert figures["requests"] == 4 and figures["statuses"] == {"200": 3, "400": 1}
    assert figures["batch_sizes"] == [[1, 3]] and figures["p50_ms"] <= figures["p99_ms"]


def test_the_counts_of_several_processes_are_added_up(tmp_path: Path) -> None:
    first, second = Metrics(tmp_path, 0), Metrics(tmp_path, 1)
    first.answered("/a", "m", 200, 0.001)
    second.answered("/b", "m", 200, 0.001)  # in another order than the first
    second.answered("/a", "m", 200, 0.002)
    second.answered("/a", "m", LEFT, 0.1)
    del second
    again = Metrics(tmp_path, 1)  # what takes the place of one that died
    again.answered("/a", "m", 200, 0.004)
    for metrics in (first, again):
        totals = metrics.totals()
        assert totals["answered", "/a", "m", "200"][0] == 3
        assert totals["answered", "/b", "m", "200"][0] == 1
        assert totals["latency", "/a", "m"][-1] == pytest.approx(0.107)
        assert totals["latency", "/a", "m"][:-1].sum() == 4


def test_quantiles_are_close(tmp_path: Path) -> None:
    metrics = Metrics()
    for n in range(1, 1001):
        metrics.answered("/a", "m", 200, n * 1e-4)  # 0.1 ms to 100 ms
    figures = metrics.stats()
    assert figures["p50_ms"] == pytest.approx(50, rel=0.05)
    assert figures["p99_ms"] == pytest.approx(99, rel=0.05)
    metrics.answered("/a", "m", 200, 100.0)  # beyond the last bound
    assert metrics.totals()["latency", "/a", "m"][len(SECONDS)] == 1


def test_counts_that_find_no_room_are_not_lost_with_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tinygrad_ish.serve.metrics.SLOTS", 200)
    metrics = Metrics()
    for n in range(20):
        metrics.answered(f"/{n}", "m", 200, 0.1)
    totals = metrics.totals()
    assert totals["answered", "/0", "m", "200"][0] == 1
    assert ("answered", "/19", "m", "200") not in totals and totals[("lost",)].sum() > 0


# --- the process ---------------------------------------------------------------------------------


def finished(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    found = b""
    try:
        while more := connection.recv(65536):
            found += more
    except ConnectionResetError:
        pass
    return found


@posix
def test_a_process_from_start_to_end(program: Path, tmp_path: Path) -> None:
    with serving.process(
        str(program), "--no-reload", "--grace", "0.3", "--keep-alive", "0.5", "--header-timeout",
        "0.5", "--body-timeout", "0.5", "--max-headers", "4096", "--max-connections", "20",
        "--access-log", environment={PREFIX + "MAX_BATCH": "8"},
    ) as server:  # fmt: skip
        assert re.search(rf"max_batch = 8 +\({PREFIX}MAX_BATCH\)", server.output)
        assert "small 1: x float32[batch, 4] → p float32[batch, 3]" in server.output
        if shutil.which("curl"):
            line = next(s for s in server.output.splitlines() if "curl" in s)
            done = subprocess.run(line, shell=True, capture_output=True, check=True)
            assert json.loads(done.stdout)["model"] == "small"
        status, answer = server.predict(X_Request_Id="first")
        assert status == 200 and len(answer["outputs"]["p"][0]) == 3

        silent, half, slow, long, idle, wrong = (server.connect() for _ in range(6))
        half.sendall(b"GET /healthz HTT")
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        wrong.sendall(b"nonsense\r\n\r\n")
        long.sendall(b"GET /healthz HTTP/1.1\r\n" + b"X-Long: " + b"a" * 5000)
        assert b"431" in finished(long)
        assert b'"code":"bad_request"' in finished(wrong)
        assert finished(idle).startswith(b"HTTP/1.1 200 OK")
        assert b" 408 " in finished(slow) and b" 408 " in finished(half)
        assert b'"code":"request_timeout"' in finished(silent)
        for connection in (silent, half, slow, long, idle, wrong):
            connection.close()

        many = [server.connect() for _ in range(60)]  # more than may be: those that rest go
        assert server.ask("/healthz")[0] == 200
        for connection in many:
            connection.close()

        stopped = threading.Event()
        statuses: list[int] = []

        def ask() -> None:
            while not stopped.is_set():
                try:
                    statuses.append(server.predict()[0])
                except ConnectionRefusedError:
                    return
                except urllib.error.URLError as error:
                    if isinstance(error.reason, ConnectionRefusedError):
                        return
                    statuses.append(0)

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.15)
        status, answer_body = server.ask("/readyz")
        assert status == 503 and json.loads(answer_body)["code"] == "not_ready"
        assert server.ask("/healthz")[0] == 200
        for client in clients:
            client.join()
        assert server.wait() == 0
        assert set(statuses) == {200}
    lines = server.logged()
    asked = [line for line in lines if line.get("request_id") == "first"]
    assert asked and asked[0]["route"] == "/predict" and asked[0]["model"] == "small"


@posix
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("shape", [(4,), (28, 28)], ids=["short", "long"])
def test_the_line_to_try_with_keys_runs_from_any_folder(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    keys, model = tmp_path / "keys", tmp_path / "m.msgpack"
    keys.write_text(f"reader infer {KEY}\n")
    tg.export(lambda x: x.flatten(1).sum(1), tg.randn(2, *shape), model)
    with serving.process(str(model), "--no-reload", "--grace", "0", "--keys", str(keys)) as server:
        assert KEY not in server.output
        *_, how, line = server.output.splitlines()
        assert "curl" in line and str(keys) in how and "scope infer" in how
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        for key, name in ((KEY, "outputs"), ("", "error")):
            done = subprocess.run(
                line, shell=True, capture_output=True, check=True, cwd=folder,
                env={**os.environ, "KEY": key},
            )  # fmt: skip
            assert name in json.loads(done.stdout)
        assert server.stop() == 0


@posix
def test_workers_share_a_port_and_their_counts(program: Path) -> None:
    with serving.process(str(program), "--no-reload", "--workers", "2", "--grace", "0") as server:
        pids = set()
        deadline = time.monotonic() + 20
        asked = 0
        while len(pids) < 2 and time.monotonic() < deadline:
            assert server.predict()[0] == 200
            asked += 1
            text = server.ask("/metrics")[1].decode()
            pids = set(re.findall(r'resident_memory_bytes{worker="(\d)"}', text))
        assert pids == {"0", "1"}
        for _ in range(20):
            assert server.predict()[0] == 200
            asked += 1
        count = {"model": "small", "route": "/predict", "status": "200"}
        for _ in range(4):  # whoever answers
            text = server.ask("/metrics")[1].decode()
            assert sample(text, "requests_total", **count) == asked

        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        if children.exists():
            found = [int(pid) for pid in children.read_text().split()]
            workers = [p for p in found if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]
            os.kill(workers[0], signal.SIGKILL)
            for _ in range(8):
                assert server.predict()[0] == 200
                asked += 1
            text = server.ask("/metrics")[1].decode()
            assert sample(text, "requests_total", **count) == asked
        assert server.stop() == 0
    if children.exists():
        assert any("another starts" in line["message"] for line in server.logged())


@posix
def test_loading_and_unloading_reach_every_worker(program: Path, tmp_path: Path) -> None:
    publish(program, tmp_path / "models" / "small")
    row = json.dumps(ROW).encode()

    def statuses(count: int = 30) -> set[int]:
        """Of requests on connections of their own: each goes to whichever worker takes it."""
        kind = "application/json"
        return {
            server.ask("/models/small/predict", row, Content_Type=kind)[0] for _ in range(count)
        }

    def workers() -> list[int]:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        found = [int(pid) for pid in children.read_text().split()]
        return [p for p in found if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]

    repository = "/v2/repository/models/small"
    with serving.process(
        str(tmp_path / "models"), "--workers", "2", "--grace", "0", "--management"
    ) as server:
        for _ in range(3):
            assert server.ask(f"{repository}/unload", b"") == (
                200, b'{"name":"small","state":"UNAVAILABLE"}'
            )  # fmt: skip
            assert statuses() == {503}
            assert server.ask(f"{repository}/load", b"")[0] == 200
            assert statuses() == {200}
        publish(program, tmp_path / "models" / "small")
        assert server.ask(f"{repository}/load", b"")[0] == 200
        versions = {server.predict()[1]["version"] for _ in range(30)}
        assert versions == {"2"}
        assert server.ask("/v2/repository/models/absent/unload", b"")[0] == 404
        broken = tmp_path / "models" / "broken" / "1"
        broken.mkdir(parents=True)
        (broken / "model.msgpack").write_bytes(b"nothing")
        status, said = server.ask("/v2/repository/models/broken/load", b"")
        assert status == 503 and re.search(rb"worker \d: ", said) and b'"not_ready"' in said

        if sys.platform == "linux":
            assert server.ask(f"{repository}/unload", b"")[0] == 200
            os.kill(workers()[0], signal.SIGKILL)  # whoever takes its place knows it too
            assert statuses() == {503}
            stopped = workers()[0]
            os.kill(stopped, signal.SIGSTOP)
            connections = [server.connect() for _ in range(20)]  # some are the other worker's
            for connection in connections:
                connection.sendall(
                    f"POST {repository}/load HTTP/1.1\r\nHost: x\r\nTimeout-Ms: 500\r\n"
                    "Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
                )
            said = finished(select.select(connections, [], [], 10)[0][0])
            os.kill(stopped, signal.SIGCONT)
            assert b" 504 " in said and b"not done in time by worker" in said
            for connection in connections:
                connection.close()
            deadline = time.monotonic() + 10
            while statuses() != {200}:  # it does it now
                assert time.monotonic() < deadline
        assert server.stop() == 0


@posix
def test_a_second_interrupt_ends_it_at_once(program: Path) -> None:
    with serving.process(str(program), "--no-reload", "--grace", "60") as server:
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert server.ask("/readyz")[0] == 503
        assert server.stop(signal.SIGINT) == 0


@posix
@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate")
def test_https(program: Path, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    with serving.process(
        str(program), "--no-reload", "--grace", "0", "--tls-cert", str(cert), "--tls-key", str(key)
    ) as server:
        assert server.url.startswith("https://127.0.0.1")
        context = ssl.create_default_context(cafile=str(cert))
        with urllib.request.urlopen(f"{server.url}/readyz", context=context) as answer:
            assert json.load(answer) == {"ready": True}
        assert server.stop() == 0


def test_what_is_imported_at_the_start(program: Path) -> None:
    """Numba, prometheus_client and the like wait until they are needed."""
    code = """
import sys
from tinygrad_ish.serve import process
from tinygrad_ish.serve.app import create_app
create_app(sys.argv[1], device="numpy")
print(*{name.split(".")[0] for name in sys.modules})
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(program)], capture_output=True, text=True, check=True
    )
    late = {"numba", "prometheus_client", "PIL", "httpx", "matplotlib", "pandas"}
    assert not late & set(done.stdout.split())


def test_mounted_it_does_not_touch_the_logging_of_others(program: Path) -> None:
    before: Any = list(logging.root.handlers)
    with Client(create_app(program, Settings(reload=False))) as client:
        assert client.get("/healthz").status_code == 200
    assert logging.root.handlers == before
