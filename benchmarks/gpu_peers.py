"""The training step of benchmarks.peers on the GPU, in float32, TF32 or bfloat16 (autocast).

Everything lies on the GPU before the clock starts. The option is the precision: fp32, tf32, bf16.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from typing import Any, ClassVar

import numpy as np

from .models import Model, Weights
from .peers import Eager, Jax, Peer, Torch


class _Ours(Eager):
    """tinygrad_ish on the GPU."""

    def __init__(self, model: Model, weights: Weights, option: str) -> None:
        import tinygrad_ish as tg

        tg.set_default_device("cuda")
        tg.set_float32_matmul_precision("high" if option == "tf32" else "highest")
        super().__init__(model, weights, "")
        self.low = option == "bf16"

    @classmethod
    def why_missing(cls) -> str | None:
        from tinygrad_ish.kernels import why_missing

        return why_missing("cupy")

    def put(self, array: np.ndarray) -> Any:
        return self.tg.tensor(array)

    def step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad()
        region = self.tg.autocast("cuda", "bfloat16") if self.low else contextlib.nullcontext()
        with region:
            loss = self.loss(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss


class OursEager(_Ours):
    """Line by line."""

    name = "tinygrad_ish"


class OursGraph(_Ours):
    """Recorded once, replayed as a CUDA graph."""

    name = "tinygrad_ish compiled"

    def __init__(self, model: Model, weights: Weights, option: str) -> None:
        super().__init__(model, weights, option)
        self.step = self.tg.compile(super().step)  # type: ignore[method-assign]


class _Torch(Torch):
    """PyTorch on the GPU, with its fused optimizer."""

    where: ClassVar[str] = "cuda"

    def __init__(self, model: Model, weights: Weights, option: str) -> None:
        import torch

        torch.set_float32_matmul_precision("high" if option == "tf32" else "highest")
        torch._dynamo.reset()
        torch._logging.set_logs(all=logging.ERROR)
        torch.set_default_device(self.where)
        super().__init__(model, weights, "fused")
        self.low = option == "bf16"
        self.prepare(model)

    def prepare(self, model: Model) -> None:
        """What a way of writing the step needs besides."""

    @classmethod
    def why_missing(cls) -> str | None:
        if importlib.util.find_spec("torch") is None:
            return "torch is not installed"
        import torch

        return None if torch.cuda.is_available() else "torch sees no GPU"

    def put(self, array: np.ndarray) -> Any:
        return self.torch.from_numpy(array).to(self.where)

    def forward(self, x: Any, y: Any) -> Any:
        """The loss."""
        region = self.torch.autocast(self.where, self.torch.bfloat16, enabled=self.low)
        with region:
            return self.loss(self.model(x), y)

    def step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad()
        loss = self.forward(x, y)
        loss.backward()
        self.optimizer.step()
        return loss


class TorchEager(_Torch):
    """Line by line."""

    name = "torch eager"


class TorchCompile(_Torch):
    """torch.compile of model and loss."""

    name = "torch.compile"
    mode: ClassVar[str | None] = None

    def prepare(self, model: Model) -> None:
        self.forward = self.torch.compile(super().forward, mode=self.mode)  # type: ignore[method-assign]


class TorchReduceOverhead(TorchCompile):
    """The same in the mode that makes CUDA graphs of forward and backward."""

    name = "torch.compile reduce-overhead"
    mode = "reduce-overhead"

    def step(self, x: Any, y: Any) -> Any:
        self.torch.compiler.cudagraph_mark_step_begin()
        return super().step(x, y)


class TorchGraph(_Torch):
    """The whole step, optimizer included, as one CUDA graph made by hand."""

    name = "torch CUDA graph"

    def prepare(self, model: Model) -> None:
        self.graph: Any = None
        if model.optimizer == "adam":
            self.optimizer = self.torch.optim.Adam(
                self.model.parameters(), lr=model.lr, fused=True, capturable=True
            )

    def step(self, x: Any, y: Any) -> Any:
        if self.graph is None:
            self._capture(x, y)
        self.x.copy_(x)
        self.y.copy_(y)
        self.graph.replay()
        return self.captured

    def _train(self) -> Any:
        loss = self.forward(self.x, self.y)
        loss.backward()
        self.optimizer.step()
        return loss

    def _capture(self, x: Any, y: Any) -> None:
        """Some steps to warm up, which are undone; then the graph."""
        torch, parameters = self.torch, list(self.model.parameters())
        self.x, self.y = x.clone(), y.clone()
        before = [p.detach().clone() for p in parameters]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.optimizer.zero_grad(set_to_none=True)
                self._train()
        torch.cuda.current_stream().wait_stream(side)
        self.undo(parameters, before)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.captured = self._train()

    def undo(self, parameters: list[Any], before: list[Any]) -> None:
        """Parameters as they were, the optimizer's state zero, no gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.torch.no_grad():
            for p, old in zip(parameters, before):
                p.copy_(old)
            for state in self.optimizer.state.values():
                for value in state.values():
                    if self.torch.is_tensor(value):
                        value.zero_()


class TorchCompiledGraph(TorchGraph):
    """That graph, of what torch.compile makes of model and loss."""

    name = "torch.compile in a CUDA graph"

    def prepare(self, model: Model) -> None:
        super().prepare(model)
        self.forward = self.torch.compile(super().forward)  # type: ignore[method-assign]


class JaxGpu(Jax):
    """jax.jit of the whole step."""

    name = "jax.jit"
    platform: ClassVar[str] = "cuda"

    def __init__(self, model: Model, weights: Weights, option: str) -> None:
        import jax

        highest = "tensorfloat32" if option == "tf32" else "highest"
        jax.config.update("jax_default_matmul_precision", highest)
        self.low = option == "bf16"
        super().__init__(model, weights, "")

    @classmethod
    def why_missing(cls) -> str | None:
        return None if importlib.util.find_spec("jax") else "jax is not installed"

    @classmethod
    def environment(cls, threads: int, option: str) -> dict[str, str]:
        return {"JAX_PLATFORMS": cls.platform, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

    def linear(self, x: Any, w: Any, b: Any) -> Any:
        if not self.low:
            return super().linear(x, w, b)
        x, w, b = (a.astype(self.jnp.bfloat16) for a in (x, w, b))
        return x @ w.T + b


GPU_PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        OursGraph, OursEager, TorchEager, TorchCompile, TorchReduceOverhead, TorchGraph,
        TorchCompiledGraph, JaxGpu,
    )
}  # fmt: skip
OURS = (OursGraph.name, OursEager.name)
