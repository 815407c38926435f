"""Measurements: ``python -m benchmarks.NAME`` in the repository's root."""
