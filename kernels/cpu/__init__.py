"""The Numba backend: compiled kernels under the reference's names.

A flat module, filled as it is used: the file that holds a kernel is imported when the kernel is
first asked for, and Numba when one is not in the disk cache. ``warmup`` compiles ahead,
``cache_info`` describes the disk cache.
"""

from __future__ import annotations

import importlib
import threading
from typing import Any

KERNELS = {
    "exp": "elementwise",
    "log": "elementwise",
    "sigmoid": "elementwise",
    "tanh": "elementwise",
    "relu": "elementwise",
    "relu_backward": "elementwise",
    "gelu": "elementwise",
    "gelu_backward": "elementwise",
    "softmax": "rows",
    "log_softmax": "rows",
    "matmul": "linalg",
    "linear": "linalg",
    "linear_backward": "linalg",
    "softmax_cross_entropy": "losses",
    "nll_loss": "losses",
    "mse_loss": "losses",
    "bce_loss": "losses",
    "bce_with_logits": "losses",
    "layer_norm": "normalization",
    "layer_norm_backward": "normalization",
    "dropout": "randoms",
    "grad_norm": "clipping",
    "clip_scale": "clipping",
    "sgd_step": "optimizers",
    "adam_step": "optimizers",
}
_HOME = {**KERNELS, "lower": "lowering", "warmup": "_jit", "cache_info": "_jit"}


# Numba does not bear to be imported by two threads at once.
_importing = threading.RLock()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _importing:
        found = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = found
    return found
