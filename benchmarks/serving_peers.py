"""The servers that ``benchmarks.serving`` races, as their users would write them. Read them side by
side. Each is run by a Python of its own: ``python benchmarks/serving_peers.py NAME PORT FOLDER``.

All answer with a 784-128-10 network's scores: ``model.onnx`` in the folder, run by onnxruntime on
one thread; ``weights.npz`` for those that use NumPy.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

BATCH, PATIENCE = 64, 0.002  # most rows of a batch, and seconds to wait for more


def session(folder: str) -> Any:
    """What runs the network."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = os.path.join(folder, "model.onnx")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def uvicorn(app: Any, port: int) -> None:
    """Run an application as its documentation says for production: one worker, no access log."""
    import uvicorn

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def echo(port: int, folder: str) -> None:
    """Starlette that gives back the body: the limit."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def predict(request: Request) -> Response:
        return Response(await request.body(), media_type="application/octet-stream")

    uvicorn(Starlette(routes=[Route("/predict", predict, methods=["POST"])]), port)


def minimal(port: int, folder: str) -> None:
    """Starlette, orjson and NumPy, without a check."""
    import orjson
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    weights = np.load(os.path.join(folder, "weights.npz"))
    w0, b0, w1, b1 = (np.ascontiguousarray(weights[k].T) for k in ("w0", "b0", "w1", "b1"))

    async def predict(request: Request) -> Response:
        body = await request.body()
        raw = request.headers["content-type"] == "application/octet-stream"
        if raw:
            x = np.frombuffer(body, np.float32).reshape(-1, 784)
        else:
            x = np.asarray(orjson.loads(body)["inputs"], np.float32)
        y = np.maximum(x @ w0 + b0, 0) @ w1 + b1
        if raw:
            return Response(y.tobytes(), media_type="application/octet-stream")
        answer = orjson.dumps({"outputs": {"output": y}}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(answer, media_type="application/json")

    uvicorn(Starlette(routes=[Route("/predict", predict, methods=["POST"])]), port)


def fastapi(port: int, folder: str) -> None:
    """FastAPI with a model of the body."""
    from fastapi import FastAPI, Request, Response
    from pydantic import BaseModel

    network = session(folder)
    app = FastAPI()

    class Body(BaseModel):
        inputs: list[list[float]]

    globals()["Body"] = Body  # where FastAPI looks annotations up
    globals()["Request"] = Request

    @app.post("/predict")
    async def predict(body: Body) -> dict[str, Any]:
        (y,) = network.run(None, {"x": np.asarray(body.inputs, np.float32)})
        return {"outputs": {"output": y.tolist()}}

    @app.post("/raw")
    async def raw(request: Request) -> Any:
        x = np.frombuffer(await request.body(), np.float32).reshape(-1, 784)
        (y,) = network.run(None, {"x": x})
        return Response(y.tobytes(), media_type="application/octet-stream")

    uvicorn(app, port)


def flask(port: int, folder: str) -> None:
    """Flask behind gunicorn: one worker, four threads."""
    folder = str(Path(folder).resolve())
    os.environ["BENCHMARK_FOLDER"] = folder
    os.chdir(Path(__file__).resolve().parent)
    command = ["-m", "gunicorn", "serving_peers:flask_app()", "--bind", f"127.0.0.1:{port}"]
    command += ["--workers", "1", "--threads", "4", "--keep-alive", "60", "--log-level", "warning"]
    os.execv(sys.executable, [sys.executable, *command])


def flask_app() -> Any:
    """The application that gunicorn loads."""
    from flask import Flask, Response, request

    network = session(os.environ["BENCHMARK_FOLDER"])
    app = Flask("digits")

    @app.post("/predict")
    def predict() -> Any:
        (y,) = network.run(None, {"x": np.asarray(request.get_json()["inputs"], np.float32)})
        return {"outputs": {"output": y.tolist()}}

    @app.post("/raw")
    def raw() -> Any:
        x = np.frombuffer(request.get_data(), np.float32).reshape(-1, 784)
        (y,) = network.run(None, {"x": x})
        return Response(y.tobytes(), mimetype="application/octet-stream")

    return app


LITAPI = """
import sys
sys.path.insert(0, {here!r})
import litserve, numpy as np
from serving_peers import session

class Digits(litserve.LitAPI):
    def setup(self, device):
        self.network = session({folder!r})

    def decode_request(self, request):
        return np.asarray(request["inputs"][0], np.float32)

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, x):
        return self.network.run(None, {{"x": x.reshape(-1, 784)}})[0]

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {{"outputs": {{"output": output.reshape(-1, 10).tolist()}}}}

if __name__ == "__main__":
    api = Digits(max_batch_size={batch}, batch_timeout={patience})
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port={port}, num_api_servers=1, log_level="warning", generate_client_file=False)
"""


def litserve(port: int, folder: str, batch: int = 1) -> None:
    """LitServe: a LitAPI, its worker a process of its own."""
    here, patience = str(Path(__file__).resolve().parent), PATIENCE if batch > 1 else 0.0
    path = Path(folder, "api.py")
    text = LITAPI.format(here=here, folder=folder, batch=batch, patience=patience, port=port)
    path.write_text(text, encoding="utf-8")
    os.execv(sys.executable, [sys.executable, str(path)])


def litserve_batched(port: int, folder: str) -> None:
    """LitServe with its batching on."""
    litserve(port, folder, BATCH)


BENTO = """
import sys
sys.path.insert(0, {here!r})
import bentoml, numpy as np
from serving_peers import session

@bentoml.service(workers=1, traffic={{"max_concurrency": 100000}})
class Digits:
    def __init__(self):
        self.network = session({folder!r})

    @bentoml.api(route="/predict"{batch})
    def predict(self, inputs: np.ndarray) -> np.ndarray:
        return self.network.run(None, {{"x": np.asarray(inputs, np.float32)}})[0]
"""


def bentoml(port: int, folder: str, batch: str = "") -> None:
    """BentoML: a service with one method."""
    here = str(Path(__file__).resolve().parent)
    text = BENTO.format(here=here, folder=str(Path(folder).resolve()), batch=batch)
    Path(folder, "service.py").write_text(text, encoding="utf-8")
    os.environ |= {"BENTOML_HOME": os.path.join(folder, "home"), "BENTOML_DO_NOT_TRACK": "True"}
    os.chdir(folder)
    command = ["-m", "bentoml", "serve", "service:Digits", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, *command])


def bentoml_batched(port: int, folder: str) -> None:
    """BentoML with its batching on."""
    bentoml(port, folder, f", batchable=True, max_batch_size={BATCH}, max_latency_ms=10000")


MLMODEL = """
import sys
sys.path.insert(0, {here!r})
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from serving_peers import session

class Digits(MLModel):
    async def load(self):
        self.network = session({folder!r})
        return True

    async def predict(self, payload):
        x = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        y = self.network.run(None, {{"x": x}})[0]
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("output", y)]
        )
"""


def mlserver(port: int, folder: str) -> None:
    """MLServer: a custom runtime, in the server's process."""
    here = str(Path(__file__).resolve().parent)
    text = MLMODEL.format(here=here, folder=str(Path(folder).resolve()))
    Path(folder, "digits.py").write_text(text, encoding="utf-8")
    Path(folder, "model-settings.json").write_text(
        '{"name": "digits", "implementation": "digits.Digits"}', encoding="utf-8"
    )
    Path(folder, "settings.json").write_text(
        f'{{"http_port": {port}, "grpc_port": {port + 1}, "metrics_port": {port + 2}, '
        '"parallel_workers": 0, "debug": false}',
        encoding="utf-8",
    )
    os.chdir(folder)
    os.environ["PYTHONPATH"] = folder
    command = str(Path(sys.executable).parent / "mlserver")
    os.execv(command, [command, "start", "."])


if __name__ == "__main__":
    globals()[sys.argv[1]](int(sys.argv[2]), sys.argv[3])
