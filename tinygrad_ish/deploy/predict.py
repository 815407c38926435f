"""The command ``predict``: files in; a bar chart of the classes, lines or JSON out."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..weights import printable
from .inputs import SIZE_LIMIT, InputError, decode
from .runtime import ExportedProgram, load_program

__all__ = ["chart", "predict"]

_AT_ONCE = 1024  # rows
_BLOCKS = " ▏▎▍▌▋▊▉█"  # eighths
_WIDEST = 60  # of a bar
_LABEL = 24


def predict(
    program: str, files: Sequence[str], top: int | None = None, as_json: bool = False
) -> int:
    """Ask the program in a file about each of ``files`` ("-" is standard input) and print what it
    answers, ``top`` classes of it; on standard error a line for each file that cannot be answered.
    The exit status: 2 if there is one, else 0."""
    try:
        loaded = load_program(program, "numpy")  # Numba takes three times as long to start
    except (ValueError, OSError) as error:
        _complain(str(error))
        return 2
    if loaded.outputs[0].shape[:1] != (None,):
        _complain(f"{program}: the program's first output has no row for each row of its input")
        return 2
    loaded.top_k = top or loaded.top_k
    status = 0
    for name in files:
        try:
            answers = _answers(loaded, name)
        except (ValueError, OSError) as error:
            _complain(f"{printable(name)}: {getattr(error, 'strerror', None) or error}")
            status = 2
        else:
            render = _json if as_json else _text
            sys.stdout.writelines(f"{line}\n" for line in render(loaded, name, answers))
            sys.stdout.flush()
    return status


def _answers(program: ExportedProgram, name: str) -> list[Any]:
    """What ``program.predict`` says of each row in a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata; what matters is an InputError
        rows, notes = decode(program, _content(name))
    for note in notes:
        _complain(f"{printable(name)}: {note}")
    answers: list[Any] = []
    for start in range(0, len(rows), _AT_ONCE):
        answers += program.predict(rows[start : start + _AT_ONCE])
    for i, answer in enumerate(answers, 1):
        numbers = [p for _, p in answer] if program.labels else answer
        if not np.isfinite(numbers).all():
            raise InputError(f"row {i}: the program's answer is not finite")
    return answers


def _content(name: str) -> bytes:
    """The bytes of a file, or as many as make it too long."""
    if name == "-":
        return sys.stdin.buffer.read(SIZE_LIMIT + 1)
    with open(name, "rb") as file:
        return file.read(SIZE_LIMIT + 1)


def _complain(text: str) -> None:
    sys.stderr.write(f"tinygrad-ish predict: {' '.join(text.split())}\n")


def _json(program: ExportedProgram, name: str, answers: list[Any]) -> Iterator[str]:
    """An object for each row."""
    for i, answer in enumerate(answers, 1):
        said: dict[str, Any] = {"input": name, "row": i, "output": program.outputs[0].name}
        if program.labels:
            said["classes"] = [{"label": label, "probability": p} for label, p in answer]
        else:
            said["value"] = answer
        yield json.dumps(said, allow_nan=False)


def _text(program: ExportedProgram, name: str, answers: list[Any]) -> Iterator[str]:
    """The classes of one row as a chart; several rows on a line each."""
    shown = printable(name)
    if program.labels and len(answers) == 1:
        yield f"{shown}"
        yield from chart(answers[0])
        return
    for i, answer in enumerate(answers, 1):
        place = shown if len(answers) == 1 else f"{shown} row {i}"
        if program.labels:
            label, p = answer[0]
            yield f"{place}: {printable(label)} {p:.1%}"
        else:
            yield f"{place}: {printable(program.outputs[0].name)} {_rounded(answer)}"


def _rounded(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_rounded, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def chart(answer: list[tuple[str, float]]) -> list[str]:
    """A line for each (label, probability): a bar as wide as the terminal allows, of what its
    encoding has. Numbers that are no probabilities get none."""
    labels = [printable(label)[:_LABEL] for label, _ in answer]
    left = max(map(len, labels), default=0)
    if not all(0 <= p <= 1.0001 for _, p in answer):
        return [f"  {label:>{left}}  {p:.6g}" for label, (_, p) in zip(labels, answer)]
    width = min(_WIDEST, max(8, shutil.get_terminal_size().columns - left - 12))
    bar = _bar if _can_print(_BLOCKS) else _plain_bar
    return [
        f"  {label:>{left}}  {bar(p, width):<{width}}  {p:6.1%}".rstrip()
        for label, (_, p) in zip(labels, answer)
    ]


def _bar(p: float, width: int) -> str:
    full, part = divmod(round(p * width * 8), 8)
    return "█" * full + _BLOCKS[part].rstrip()


def _plain_bar(p: float, width: int) -> str:
    return "#" * round(p * width)


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
