"""What the training benchmarks train: networks, their data and their first weights.

Every library gets the same numbers. The samples are points around one centre for each class. A
third of the labels are drawn by chance, anew for every pass over the samples, so nothing can be
learnt by heart: the loss stays well above zero, and the clock measures learning, not denormal
numbers.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

SAMPLES = 8192
OVERLAP = 3.0  # the distance between two centres, in standard deviations of the points
CHANCE = 0.3  # share of the labels that are drawn anew in each pass
LABELLED = 2048  # batches with labels of their own, in four passes at least; then they repeat


@dataclass(frozen=True)
class Model:
    """A multi-layer perceptron with ReLU between its layers, and how it is trained."""

    sizes: tuple[int, ...]
    batch: int
    optimizer: str  # "adam", or "sgd", which has momentum 0.9
    lr: float

    @property
    def name(self) -> str:
        """784-128-10 b64 adam."""
        return f"{'-'.join(map(str, self.sizes))} b{self.batch} {self.optimizer}"

    @property
    def momentum(self) -> float:
        """Of SGD."""
        return 0.9

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of each layer."""
        return list(itertools.pairwise(self.sizes))

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(k * d + k for d, k in self.layers)

    def flops(self) -> int:
        """Of a step's matrix products: one forward and, for all but the input, two backward."""
        products = [2 * self.batch * d * k for d, k in self.layers]
        return 3 * sum(products) - products[0]

    def optimizer_bytes(self) -> int:
        """What a step must read and write of parameters and optimizer state, in float32.

        The parameters, and Adam's two moments or SGD's one, each once in and once out. The
        gradient need not leave the registers.
        """
        return 4 * self.parameters * 2 * (3 if self.optimizer == "adam" else 2)

    def with_optimizer(self, optimizer: str) -> Model:
        """The same network under another optimizer, at that optimizer's usual rate."""
        if optimizer == self.optimizer:
            return self
        return replace(self, optimizer=optimizer, lr={"adam": 1e-3, "sgd": 1e-2}[optimizer])


MODELS = [
    Model((784, 128, 10), 64, "adam", 1e-3),
    Model((784, 512, 256, 10), 128, "adam", 1e-3),
    Model((1000, 500, 100, 10), 32, "sgd", 1e-2),
    Model((64, 64, 10), 16, "adam", 1e-3),
    # at 1e-3 its losses jump, and differences of rounding grow threefold with every step
    Model((1024, 1024, 1024, 1024, 1024, 10), 256, "adam", 1e-4),
]

Weights = list[tuple[np.ndarray, np.ndarray]]  # (outputs, inputs) and (outputs,) of each layer


def first_weights(model: Model) -> Weights:
    """PyTorch's default: uniform in ±1/√inputs."""
    rng = np.random.default_rng(1)
    draw = [
        (rng.uniform(-1, 1, (k, d)) / d**0.5, rng.uniform(-1, 1, k) / d**0.5)
        for d, k in model.layers
    ]
    return [(w.astype(np.float32), b.astype(np.float32)) for w, b in draw]


def samples(model: Model) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A pass over the samples in batches, float32 (batch, inputs); and the labels that go with
    them, int64 (batch,), for one pass after the other."""
    rng = np.random.default_rng(2)
    features, classes = model.sizes[0], model.sizes[-1]
    centres = rng.standard_normal((classes, features)) * OVERLAP / (2 * features) ** 0.5
    right = rng.integers(0, classes, SAMPLES)
    x = (centres[right] + rng.standard_normal((SAMPLES, features))).astype(np.float32)
    starts = range(0, SAMPLES - model.batch + 1, model.batch)
    passes = max(4, LABELLED // len(starts))
    by_chance = rng.integers(0, classes, (passes, SAMPLES))
    y = np.where(rng.random((passes, SAMPLES)) < CHANCE, by_chance, right)
    return (
        [x[i : i + model.batch].copy() for i in starts],
        [labels[i : i + model.batch].copy() for labels in y for i in starts],
    )
