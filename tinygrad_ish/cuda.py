"""Whether there is a GPU to use."""

from __future__ import annotations

from .kernels import why_missing


def is_available() -> bool:
    """Whether device="cuda" works here; ``python -m tinygrad_ish info`` says why not."""
    return why_missing("cupy") is None
