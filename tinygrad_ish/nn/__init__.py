"""Layers and losses, in PyTorch's names: ``module`` (what a layer is), ``layers``, ``losses``,
``functional`` (the same as functions) and ``init`` (initial values)."""

from . import functional, init
from .layers import Flatten, Identity, Linear, ReLU, Sequential, Sigmoid, Softmax, Tanh
from .losses import CrossEntropyLoss, MSELoss
from .module import Module, Parameter

__all__ = [
    "CrossEntropyLoss", "Flatten", "Identity", "Linear", "MSELoss", "Module", "Parameter", "ReLU",
    "Sequential", "Sigmoid", "Softmax", "Tanh", "functional", "init",
]  # fmt: skip
