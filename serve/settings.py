"""Every setting of the server, with its default and what it is for."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Settings"]


def _setting(default: object, about: str) -> object:
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class Settings:
    """Sizes are in bytes, times in seconds. ``fields(Settings)`` gives each one's ``about``."""

    host: str = _setting("127.0.0.1", "the address to listen on; 0.0.0.0 for all")  # type: ignore[assignment]
    port: int = _setting(8000, "the port to listen on")  # type: ignore[assignment]
    max_batch: int = _setting(64, "most rows that are run together")  # type: ignore[assignment]
    max_queue: int = _setting(1024, "most requests that wait for one model")  # type: ignore[assignment]
    max_queue_bytes: int = _setting(64 * 2**20, "most bytes of inputs that wait for one model")  # type: ignore[assignment]
    timeout: float = _setting(10.0, "from a request's arrival to its answer, unless it says less")  # type: ignore[assignment]
    max_body: int = _setting(16 * 2**20, "largest body, before and after decompression")  # type: ignore[assignment]
    max_elements: int = _setting(4_000_000, "most numbers in one request")  # type: ignore[assignment]
    body_timeout: float = _setting(10.0, "for a body to arrive")  # type: ignore[assignment]
    drain: float = _setting(10.0, "longest wait for running requests at shutdown")  # type: ignore[assignment]
    memory: int = _setting(0, "most bytes of loaded weights, the least used are unloaded; 0: any")  # type: ignore[assignment]
    reload: bool = _setting(True, "watch model folders and load what is published")  # type: ignore[assignment]
    management: bool = _setting(False, "allow loading and unloading over HTTP")  # type: ignore[assignment]
