"""Large bodies of JSON, read without holding up the event loop.

orjson keeps the interpreter to itself until it is done: for 16 MB a tenth of a second, in whatever
thread it runs, and what turns the lists into an array does so again. Here the large arrays of a
body are cut where one of their rows ends, and each piece is read and made an array by itself; what
is left of the body, with a mark in the place of each array, is small. Between two pieces the event
loop has its turn.

A cut is right because JSON has one reading only: a text that begins with an element of the array
and that, with brackets around it, is valid JSON, ends with an element of the same array.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

__all__ = ["LARGE", "loads"]

LARGE = 128 * 2**10  # bytes of a body that are read in half a millisecond, five times a hand-over
PIECE = 64 * 2**10
MOST_DEPTH = 32
MOST_CLOSED = 4  # brackets of what holds the array, before the next name
MOST_COLONS = 1000  # that are looked at; what has more is no array in an object
_OPENED = re.compile(rb"\s*((?:\[\s*)+)")


def loads(body: bytes) -> Any:
    """What a body says, as ``orjson.loads`` gives it, but large arrays of numbers, alike in all
    rows, are int64 or float64 arrays of NumPy. Raises ValueError."""
    try:
        return _in_pieces(body)
    except ValueError:
        return orjson.loads(body)  # it is of another kind, or this says what is wrong with it


def _in_pieces(body: bytes) -> Any:
    token = os.urandom(16).hex()  # nobody can have written it into the body
    arrays: dict[str, np.ndarray] = {}
    rest, done = [], 0
    for start, stop in _gaps(body):
        opened = _OPENED.match(body, start, stop)
        if opened is None:
            continue
        array, end = _array(body, opened.end(1), stop, opened[1].count(b"["))
        mark = f"{token}{len(arrays)}"
        arrays[mark] = array
        rest += [body[done:start], b'"%b"' % mark.encode()]
        done = end
    rest.append(body[done:])
    if sum(map(len, rest)) > LARGE:
        raise ValueError("there is more than large arrays in it")
    document = _placed(orjson.loads(b"".join(rest)), arrays)
    if arrays:
        raise ValueError("a name stands twice in an object")
    return document


def _gaps(body: bytes) -> Iterator[tuple[int, int]]:
    """From behind each colon to the next one, or to the end, where that is far: there is no colon
    in an array of numbers."""
    start = body.find(b":") + 1
    for _ in range(MOST_COLONS):
        if not start:
            return
        following = body.find(b":", start)
        stop = len(body) if following < 0 else following
        if stop - start > PIECE:
            yield start, stop
        start = following + 1
    raise ValueError("it has too many names")


def _array(body: bytes, start: int, stop: int, depth: int) -> tuple[np.ndarray, int]:
    """The numbers in an array whose lists are nested to a depth, of which the first have all been
    opened at ``start``; and where it ends, before ``stop``. Raises ValueError."""
    if depth > MOST_DEPTH or any(body.find(x, start, stop) >= 0 for x in (b"u", b"l")):
        raise ValueError("it is too deep, or true, false and null are in it")
    closing = rb"\](?:\s*\]){%d}\s*" % (depth - 2) if depth > 1 else b""
    between = re.compile(closing + b",")  # which begins with a letter, to be found quickly
    opening, pieces, at = b"[" * depth, [], start
    comma = between.search(body, at + PIECE, stop)
    while comma is not None:
        try:
            pieces.append(_rows(opening + body[at : comma.end() - 1] + b"]"))
        except orjson.JSONDecodeError:
            break  # it may be the comma behind the array
        at, opening = comma.end(), b"["
        comma = between.search(body, at + PIECE, stop)
    end = body.rfind(b"]", at, stop)
    for _ in range(MOST_CLOSED):
        try:
            pieces.append(_rows(opening + body[at:end] + b"]"))
        except orjson.JSONDecodeError:
            end = body.rfind(b"]", at, end)
        else:
            return np.concatenate(pieces), end + 1
    raise ValueError("it does not end")


def _rows(text: bytes) -> np.ndarray:
    found = np.asarray(orjson.loads(text))
    floats = found.dtype == np.float64 and any(x in text for x in (b".", b"e", b"E"))
    if not len(found) or not (floats or found.dtype == np.int64):
        raise ValueError("it has no rows, or not of such numbers")  # but of more than 64 bits
    return found


def _placed(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The value with the arrays in the places of their marks."""
    if type(value) is dict:
        return {key: _placed(item, arrays) for key, item in value.items()}
    if type(value) is list:
        return [_placed(item, arrays) for item in value]
    return arrays.pop(value, value) if type(value) is str else value
