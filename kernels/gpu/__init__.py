"""The GPU backend: the reference over CuPy arrays. A kernel written for CUDA would stand here
under the reference's name and take its place."""

from __future__ import annotations

import importlib.util

INSTALL = "pip install 'tinygrad_ish[gpu]'"


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
