"""The GPU backend: CUDA kernels (``cu/*.cu``) under the reference's names; the reference over CuPy
arrays for the rest.

A flat module, filled as it is used: the file that holds a kernel is imported when the kernel is
first asked for. A file here is the Python side of the ``.cu`` file of its name.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

INSTALL = "pip install 'tinygrad_ish[gpu]'"

KERNELS: dict[str, str] = {
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
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed: {INSTALL} (needs an NVIDIA GPU with a CUDA 13 driver)"
    try:
        import cupy
    except Exception as error:
        return f"CuPy is installed but does not import ({error}): reinstall it, {INSTALL}"
    if not cupy.cuda.is_available():
        return (
            "CuPy found no CUDA device or driver: check that `nvidia-smi` lists a GPU and that "
            "its CUDA version is 13 or newer"
        )
    return None
