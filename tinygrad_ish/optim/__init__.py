"""Optimizers, and schedules of their learning rates (``lr_scheduler``), with PyTorch's defaults and
trajectories."""

from . import lr_scheduler
from .adam import Adam
from .adamw import AdamW
from .optimizer import Optimizer
from .sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "lr_scheduler"]
