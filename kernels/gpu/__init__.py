"""The GPU backend: CUDA kernels (``cu/*.cu``) under the reference's names; the reference over CuPy
arrays for the rest.

A flat module, filled as it is used: the file that holds a kernel is imported when the kernel is
first asked for. A file here is the Python side of one or two ``.cu`` files, mostly of its name.
"""

from __future__ import annotations

import importlib
from typing import Any

from . import _diagnosis

KERNELS: dict[str, str] = {
    "add": "elementwise",
    "div": "elementwise",
    "exp": "elementwise",
    "gelu": "elementwise",
    "gelu_backward": "elementwise",
    "log": "elementwise",
    "maximum": "elementwise",
    "minimum": "elementwise",
    "mul": "elementwise",
    "neg": "elementwise",
    "relu": "elementwise",
    "relu_backward": "elementwise",
    "sigmoid": "elementwise",
    "sqrt": "elementwise",
    "sub": "elementwise",
    "tanh": "elementwise",
    "cast": "movement",
    "cat": "movement",
    "copy": "movement",
    "gather": "indexing",
    "gather_backward": "indexing",
    "index_select": "indexing",
    "index_select_backward": "indexing",
    "count_step": "randoms",
    "draw": "randoms",
    "dropout": "randoms",
    "amax": "reductions",
    "amin": "reductions",
    "argmax": "reductions",
    "argmin": "reductions",
    "mean": "reductions",
    "mean_backward": "reductions",
    "sum": "reductions",
    "sum_to": "reductions",
    "matmul": "linalg",
    "linear": "linalg",
    "linear_backward": "linalg",
    "linear_int8": "linalg",
    "grad_norm": "clipping",
    "clip_scale": "clipping",
    "unscale_step": "clipping",
    "scale_step": "clipping",
    "sgd_step": "optimizers",
    "adam_step": "optimizers",
    "softmax": "rows",
    "log_softmax": "rows",
    "softmax_cross_entropy": "losses",
    "nll_loss": "losses",
    "mse_loss": "losses",
    "bce_loss": "losses",
    "bce_with_logits": "losses",
    "layer_norm": "normalization",
    "layer_norm_backward": "normalization",
    "next_rows": "feeding",
    "take_scaled": "feeding",
    "push": "feeding",
}
_HOME = {**KERNELS, "lower": "lowering"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def why_missing() -> str | None:
    """Why CuPy cannot run here, and what to do; None if it can."""
    return _diagnosis.why_missing()
