"""One training step in each library, as its user would write it. Read them side by side.

A peer is made in a process of its own from a model, its first weights and an option, one of the
settings that are tried. ``put`` moves an array into the library's type, before the clock starts;
``step`` updates the parameters and gives the loss in the library's type, which ``value`` waits for
and reads. ``environment`` is set before the library is imported.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import shlex
import shutil
import subprocess
from typing import Any, ClassVar

import numpy as np

from .models import Model, Weights

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # Adam's defaults in every library here


class Peer:
    """A library and one way to write the step in it."""

    name: ClassVar[str]
    module: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ("",)  # tried always
    thorough: ClassVar[tuple[str, ...]] = ()  # tried on demand: slow to make, seldom the best

    def __init__(self, model: Model, weights: Weights, option: str) -> None:
        raise NotImplementedError

    @classmethod
    def why_missing(cls) -> str | None:
        """Why it cannot run here; None if it can."""
        if importlib.util.find_spec(cls.module) is None:
            return f"{cls.module} is not installed: pip install -e '.[bench]'"
        return None

    @classmethod
    def environment(cls, threads: int, option: str) -> dict[str, str]:
        """Variables that hold the library, and the BLAS below it, to so many threads."""
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        # OpenBLAS's threads otherwise wait by spinning into the next contender's turn
        patience = {"OPENBLAS_THREAD_TIMEOUT": "18"}  # 2¹⁸ cycles
        return {**dict.fromkeys(names, str(threads)), **patience}

    def put(self, array: np.ndarray) -> Any:
        """Samples, float32 (N, D), or labels, int64 (N,), in the library's type."""
        return array

    def step(self, x: Any, y: Any) -> Any:
        """Update the parameters once; the loss before the update."""
        raise NotImplementedError

    def value(self, loss: Any) -> float:
        """The loss as a number, once everything before it has been computed."""
        return float(loss)


# --- this project ------------------------------------------------------------------------------


class Eager(Peer):
    """tinygrad_ish, line by line."""

    name, module = "tinygrad_ish", "tinygrad_ish"

    def __init__(self, model: Model, weights: Weights, option: str) -> None:
        import tinygrad_ish as tg
        from tinygrad_ish import nn, optim

        self.tg, self.loss = tg, nn.functional.cross_entropy
        layers: list[Any] = []
        for w, b in weights:
            layer = nn.Linear(w.shape[1], w.shape[0])
            layer.load_state_dict({"weight": tg.tensor(w), "bias": tg.tensor(b)})
            layers += [layer, nn.ReLU()]
        self.model = nn.Sequential(*layers[:-1])
        if model.optimizer == "adam":
            self.optimizer: Any = optim.Adam(self.model.parameters(), lr=model.lr)
        else:
            self.optimizer = optim.SGD(
                self.model.parameters(), lr=model.lr, momentum=model.momentum
            )

    def put(self, array: np.ndarray) -> Any:
        return self.tg.from_numpy(array)

    def step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad()
        loss = self.loss(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss

    def value(self, loss: Any) -> float:
        return loss.item()


class Compiled(Eager):
    """tinygrad_ish, recorded once and replayed."""

    name = "tinygrad_ish compiled"

    def __init__(self, model: Model, weights: Weights, option: str) -> None:
        super().__init__(model, weights, option)
        self.step = self.tg.compile(super().step)  # type: ignore[method-assign]

    @classmethod
    def why_missing(cls) -> str | None:
        import tinygrad_ish

        return None if hasattr(tinygrad_ish, "compile") else "tinygrad_ish has no compile yet"


# --- PyTorch -----------------------------------------------------------------------------------


class Torch(Peer):
    """PyTorch eager, the optimizer with its defaults and with foreach=True."""

    name, module, thorough = "torch", "torch", ("foreach",)

    def __init__(self, model: Model, weights: Weights, option: str) -> None:
        import torch
        from torch import nn

        self.torch, self.loss = torch, nn.functional.cross_entropy
        layers: list[Any] = []
        for w, b in weights:
            layer = nn.Linear(w.shape[1], w.shape[0])
            layer.load_state_dict({"weight": torch.tensor(w), "bias": torch.tensor(b)})
            layers += [layer, nn.ReLU()]
        self.model = nn.Sequential(*layers[:-1])
        settings: dict[str, Any] = {option: True} if option in ("foreach", "fused") else {}
        if model.optimizer == "adam":
            self.optimizer: Any = torch.optim.Adam(self.model.parameters(), lr=model.lr, **settings)
        else:
            self.optimizer = torch.optim.SGD(
                self.model.parameters(), lr=model.lr, momentum=model.momentum, **settings
            )

    def put(self, array: np.ndarray) -> Any:
        return self.torch.from_numpy(array)

    def step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad()
        loss = self.loss(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss

    def value(self, loss: Any) -> float:
        return loss.item()


class TorchFused(Torch):
    """PyTorch eager with its fused optimizer."""

    name, options = "torch fused", ("fused",)


class TorchCompiled(Torch):
    """torch.compile of model and loss, and of the optimizer or beside the fused one."""

    name, options, thorough = "torch.compile", ("optimizer too",), ("fused",)

    def __init__(self, model: Model, weights: Weights, option: str) -> None:
        super().__init__(model, weights, option)
        self.torch._logging.set_logs(all=logging.ERROR)
        network, cross_entropy = self.model, self.loss
        self.forward = self.torch.compile(lambda x, y: cross_entropy(network(x), y))
        self.update = self.optimizer.step
        if option == "optimizer too":
            self.update = self.torch.compile(self.optimizer.step)

    @classmethod
    def why_missing(cls) -> str | None:
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            return f"torch.compile needs a C++ compiler; there is no {compiler} on the PATH"
        return super().why_missing()

    def step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad()
        loss = self.forward(x, y)
        loss.backward()
        self.update()
        return loss


# --- JAX ---------------------------------------------------------------------------------------


class Jax(Peer):
    """jax.jit of the whole step, which may reuse the memory of what it replaces."""

    name, module = "jax.jit", "jax"

    def __init__(self, model: Model, weights: Weights, option: str) -> None:
        import jax
        import jax.numpy as jnp

        self.jnp = jnp
        self.parameters = [(jnp.array(w), jnp.array(b)) for w, b in weights]
        zeros = jax.tree.map(jnp.zeros_like, self.parameters)
        self.state = (0, zeros, jax.tree.map(jnp.zeros_like, zeros))

        def loss_of(parameters: Any, x: Any, y: Any) -> Any:
            for w, b in parameters[:-1]:
                x = jax.nn.relu(self.linear(x, w, b))
            w, b = parameters[-1]
            logp = jax.nn.log_softmax(self.linear(x, w, b).astype(jnp.float32))
            return -jnp.take_along_axis(logp, y[:, None], axis=1).mean()

        def adam(p: Any, g: Any, state: Any) -> Any:
            t, m, v = state
            t = t + 1
            m = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, m, g)
            v = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, v, g)
            size, root = model.lr / (1 - BETA1**t), jnp.sqrt(1 - BETA2**t)
            p = jax.tree.map(lambda p, m, v: p - size * m / (jnp.sqrt(v) / root + EPS), p, m, v)
            return p, (t, m, v)

        def sgd(p: Any, g: Any, state: Any) -> Any:
            t, buf, rest = state
            buf = jax.tree.map(lambda b, g: model.momentum * b + g, buf, g)
            return jax.tree.map(lambda p, b: p - model.lr * b, p, buf), (t, buf, rest)

        update = adam if model.optimizer == "adam" else sgd

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def train(parameters: Any, state: Any, x: Any, y: Any) -> Any:
            loss, g = jax.value_and_grad(loss_of)(parameters, x, y)
            return *update(parameters, g, state), loss

        self.train = train

    def linear(self, x: Any, w: Any, b: Any) -> Any:
        """A layer without its activation."""
        return x @ w.T + b

    @classmethod
    def environment(cls, threads: int, option: str) -> dict[str, str]:
        single = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"} if threads == 1 else {}
        return {
            **super().environment(threads, option),
            "JAX_PLATFORMS": "cpu",
            "NPROC": str(threads),  # XLA's own thread pools
            **single,
        }

    def put(self, array: np.ndarray) -> Any:
        return self.jnp.array(array)  # int64 becomes int32

    def step(self, x: Any, y: Any) -> Any:
        self.parameters, self.state, loss = self.train(self.parameters, self.state, x, y)
        return loss

    def value(self, loss: Any) -> float:
        self.parameters[0][0].block_until_ready()
        return float(loss)


# --- tinygrad ----------------------------------------------------------------------------------


class Tinygrad(Peer):
    """tinygrad under TinyJit, as it is and with its search for fast kernels (BEAM=2)."""

    name, module, thorough = "tinygrad TinyJit", "tinygrad", ("BEAM=2",)

    def __init__(self, model: Model, weights: Weights, option: str) -> None:
        from tinygrad import Tensor, TinyJit
        from tinygrad.nn import optim

        self.Tensor = Tensor
        parameters = [(self.put(w), self.put(b)) for w, b in weights]
        flat = [p for pair in parameters for p in pair]
        if model.optimizer == "adam":
            optimizer = optim.Adam(flat, lr=model.lr)
        else:
            optimizer = optim.SGD(flat, lr=model.lr, momentum=model.momentum)

        @TinyJit
        def train(x: Any, y: Any) -> Any:
            optimizer.zero_grad()
            for w, b in parameters[:-1]:
                x = x.linear(w.T, b).relu()
            w, b = parameters[-1]
            loss = x.linear(w.T, b).sparse_categorical_crossentropy(y)
            loss.backward()
            return loss.realize(*optimizer.schedule_step())

        self.step = train  # type: ignore[method-assign]

    @classmethod
    def why_missing(cls) -> str | None:
        compiler = os.environ.get("CC", "clang")
        reason = super().why_missing()
        if reason is not None:
            return reason
        if shutil.which(shlex.split(compiler)[0]) is None or "clang" not in _version(compiler):
            return f"tinygrad needs clang for the CPU, and {compiler} is none; name one in CC"
        return None

    @classmethod
    def environment(cls, threads: int, option: str) -> dict[str, str]:
        search = dict([option.split("=")]) if option else {}
        return {"DEV": "CPU", "NUM_CPU_THREADS": str(threads), "TRAINING": "1", **search}

    def put(self, array: np.ndarray) -> Any:
        narrow = array.astype(np.int32) if array.dtype == np.int64 else array
        return self.Tensor(narrow).contiguous().realize()

    def value(self, loss: Any) -> float:
        return loss.item()


def _version(compiler: str) -> str:
    command = [*shlex.split(compiler), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


# --- NumPy -------------------------------------------------------------------------------------


class Flat:
    """Parameters as views of one array, gradients likewise, and the update by hand."""

    def __init__(self, model: Model, weights: Weights, dtype: Any = np.float32) -> None:
        self.model, self.steps = model, 0
        self.p = np.concatenate([x.ravel() for pair in weights for x in pair]).astype(dtype)
        self.g, self.m, self.v, self.a, self.b = (np.zeros_like(self.p) for _ in range(5))
        self.parameters, self.gradients = self._views(self.p, weights), self._views(self.g, weights)

    def _views(self, flat: np.ndarray, weights: Weights) -> Weights:
        views, at = [], 0
        for w, b in weights:
            middle, end = at + w.size, at + w.size + b.size
            views.append((flat[at:middle].reshape(w.shape), flat[middle:end]))
            at = end
        return views

    def update(self) -> None:
        """One step of the optimizer, without a temporary array."""
        if self.model.optimizer == "adam":
            self._adam()
        else:
            self.m *= self.model.momentum
            self.m += self.g
            np.multiply(self.m, self.model.lr, out=self.a)
            self.p -= self.a

    def _adam(self) -> None:
        g, m, v, a, b = self.g, self.m, self.v, self.a, self.b
        self.steps += 1
        m *= BETA1
        m += np.multiply(g, 1 - BETA1, out=a)
        v *= BETA2
        np.multiply(g, g, out=a)
        a *= 1 - BETA2
        v += a
        np.sqrt(v, out=a)
        a /= (1 - BETA2**self.steps) ** 0.5
        a += EPS
        np.divide(m, a, out=b)
        b *= self.model.lr / (1 - BETA1**self.steps)
        self.p -= b


class ByHand(Peer):
    """Forward and backward written out in NumPy."""

    name, module = "numpy by hand", "numpy"

    def __init__(
        self, model: Model, weights: Weights, option: str, dtype: Any = np.float32
    ) -> None:
        self.flat = Flat(model, weights, dtype)
        self.rows = np.arange(model.batch)

    def step(self, x: Any, y: Any) -> Any:
        parameters, gradients = self.flat.parameters, self.flat.gradients
        inputs = [x]
        for w, b in parameters[:-1]:
            h = inputs[-1] @ w.T
            h += b
            inputs.append(np.maximum(h, 0, out=h))
        w, b = parameters[-1]
        g = inputs[-1] @ w.T
        g += b
        g -= g.max(axis=1, keepdims=True)
        right = g[self.rows, y]
        np.exp(g, out=g)
        total = g.sum(axis=1, keepdims=True)
        loss = (np.log(total[:, 0]) - right).mean()
        g /= total
        g[self.rows, y] -= 1
        g /= len(x)
        for i in reversed(range(len(parameters))):
            np.matmul(g.T, inputs[i], out=gradients[i][0])
            np.sum(g, axis=0, out=gradients[i][1])
            if i:
                g = g @ parameters[i][0]
                g *= inputs[i] > 0
        self.flat.update()
        return loss


class Autograd(Peer):
    """HIPS autograd for the gradient, NumPy by hand for the update."""

    name, module = "autograd", "autograd"

    def __init__(self, model: Model, weights: Weights, option: str) -> None:
        import autograd.numpy as anp
        from autograd import value_and_grad

        self.flat = Flat(model, weights)
        rows = np.arange(model.batch)

        def loss_of(parameters: Any, x: Any, y: Any) -> Any:
            for w, b in parameters[:-1]:
                x = anp.maximum(anp.dot(x, w.T) + b, 0)
            w, b = parameters[-1]
            z = anp.dot(x, w.T) + b
            z = z - anp.max(z, axis=1, keepdims=True)
            return anp.mean(anp.log(anp.sum(anp.exp(z), axis=1)) - z[rows, y])

        self.gradient = value_and_grad(loss_of)

    def step(self, x: Any, y: Any) -> Any:
        loss, gradients = self.gradient(self.flat.parameters, x, y)
        for ours, theirs in zip(self.flat.gradients, gradients):
            ours[0][...], ours[1][...] = theirs
        self.flat.update()
        return loss


PEERS = {
    peer.name: peer
    for peer in (
        Compiled, Eager, Torch, TorchFused, TorchCompiled, Jax, Tinygrad, Autograd, ByHand,
    )
}  # fmt: skip
OURS = (Compiled.name, Eager.name)
