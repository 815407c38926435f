"""How results are shown and kept: tables in Markdown, and JSON and pictures in runs/benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path("runs/benchmarks")


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under their heads in Markdown: the first column to the left, the others to the
    right."""
    print(rendered(heads, rows))


def rendered(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The table that ``table`` prints."""
    cells = [list(heads), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    cells.insert(1, [":" + "-" * (widths[0] - 1), *("-" * (w - 1) + ":" for w in widths[1:])])
    lines = []
    for row in cells:
        first, rest = row[0].ljust(widths[0]), [c.rjust(w) for c, w in zip(row[1:], widths[1:])]
        lines.append(f"| {' | '.join([first, *rest])} |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def heading(facts: dict[str, Any]) -> None:
    """Print the machine in a line or two."""
    print(", ".join(f"{k} {v}" for k, v in facts.items() if v is not None))


def save(name: str, result: Any) -> None:
    """Write the result as JSON."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {path}")


def picture(name: str, draw: Callable[[Any], None], columns: int = 1, rows: int = 1) -> None:
    """Draw into a grid of axes, given as a list, and write it as a PNG."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: matplotlib is not installed: pip install -e '.[bench]'")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, columns, figsize=(5.2 * columns, 3.6 * rows), squeeze=False, layout="constrained"
    )
    draw(list(axes.flat))
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    print(f"wrote {path}")
