"""What the server counts, cheaply; /metrics and the page show it."""

from __future__ import annotations

from collections import Counter, deque

__all__ = ["Metrics"]


class Metrics:
    """Counts of requests by route and status, and of runs by model."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()  # route, model, status
        self.latencies: deque[float] = deque(maxlen=4096)  # seconds, of the latest
        self.runs: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()

    def answered(self, route: str, model: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self.requests[route, model, status] += 1
        self.latencies.append(seconds)

    def ran(self, model: str, rows: int, requests: int, seconds: float) -> None:
        """Count a run of a batch."""
        self.runs[model] += 1
        self.rows[model] += rows
