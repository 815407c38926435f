"""What a program is asked, from the bytes of a file: an image, or rows of numbers as CSV or JSON.

An image is for a program whose input is (batch, H, W), (batch, 1, H, W) or (batch, 3, H, W), uint8
from 0 to 255 or float32 from 0 to 1. It is scaled to H × W; for a program whose metadata has
``"image": "mnist"`` it is brought into the form of MNIST's digits (``centred``).

Rows are for every program of one input. In CSV a row has the names of ``features`` above it, in
any order, or its numbers stand in the input's order; in JSON it is a list of these numbers, nested
or not, or an object by the names; one row, a list of rows, or one after the other.
"""

from __future__ import annotations

import array
import csv
import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..weights import printable
from .runtime import ExportedProgram, Signature

__all__ = ["InputError", "SIZE_LIMIT", "centred", "decode", "decode_image"]

SIZE_LIMIT = 32 * 2**20  # bytes
PIXEL_LIMIT = 50 * 10**6  # a decoded image takes 4 bytes for each
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
_IMAGE = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|BM....\0\0\0\0|II\*\0|MM\0\*|RIFF....WEBP", re.DOTALL
)
_SIDE = 1024  # larger images are reduced to about this before anything is computed of them
_CONTRAST = 24  # of 255: less is an empty page, or one tone
_BOX = 20 / 28  # of MNIST's pixels a digit takes 20 × 20
_INT = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_SPACE = re.compile(r"\s*")


class InputError(ValueError):
    """Bytes that the program cannot be asked: damaged, or not what it takes."""


def decode(program: ExportedProgram, data: bytes) -> tuple[np.ndarray, list[str]]:
    """The program's input from the bytes of a file, told by their content: an array with one row
    for each question, and notes for whoever asked. Raises InputError."""
    if len(program.inputs) != 1 or program.inputs[0].shape[:1] != (None,):
        names = ", ".join(printable(s.name) for s in program.inputs)
        raise InputError(
            f"a file answers for one input with a batch axis, and this program takes {names}: call "
            "tinygrad_ish.load_program(path) from Python"
        )
    if not data:
        raise InputError("it is empty")
    if len(data) > SIZE_LIMIT:
        raise InputError(f"it has more than {SIZE_LIMIT / 2**20:.0f} MiB: cut it into several")
    if _IMAGE.match(data):
        return _image(program, data)[None], []
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(
            f"it is neither an image ({', '.join(FORMATS)}) nor text in UTF-8 (CSV, JSON): save it "
            "as one of these"
        ) from None
    if not text.strip():
        raise InputError("it has no rows")
    rows = _json_rows if text.lstrip()[0] in "[{" else _csv_rows
    return rows(program, text)


def decode_image(program: ExportedProgram, data: bytes) -> np.ndarray:
    """``decode`` for what must be an image: an array of one row. Raises InputError."""
    if not _IMAGE.match(data):
        raise InputError(f"it is no image ({', '.join(FORMATS)})")
    return decode(program, data)[0]


# --- rows --------------------------------------------------------------------------------------


class _Rows:
    """Numbers that become the program's input, eight bytes for each meanwhile. A row's place, for
    messages, is a number of lines, rows or whatever the unit is."""

    def __init__(self, program: ExportedProgram, unit: str) -> None:
        self.unit = unit
        self.input = program.inputs[0]
        self.shape = _row_shape(self.input)
        self.width = math.prod(self.shape)
        self.features = program.features
        self.numbers: Any = array.array("q" if self.input.dtype.kind in "iu" else "d")
        self.places: Any = array.array("q")

    def add(self, numbers: Iterable[Any], at: int) -> None:
        """One row."""
        before = len(self.numbers)
        try:
            self.numbers.extend(numbers)
        except (TypeError, OverflowError):
            kind = "whole numbers" if self.numbers.typecode == "q" else "numbers"
            raise InputError(
                f"{self.unit} {at}: expected {kind} that {self.input.dtype.name} holds, got others"
            ) from None
        found = len(self.numbers) - before
        if found != self.width:
            names = f" ({_listed(self.features)})" if self.features else ""
            raise InputError(f"{self.unit} {at}: expected {self.width} numbers{names}, got {found}")
        self.places.append(at)

    def array(self) -> np.ndarray:
        """All rows, in the input's dtype and shape."""
        given = np.array(self.numbers).reshape(-1, self.width)
        with np.errstate(over="ignore"):
            fits = given.astype(self.input.dtype)
        bad = ~np.isfinite(fits) if fits.dtype.kind == "f" else fits != given
        if bad.any():
            row, column = np.argwhere(bad)[0]
            name = self.features[column] if self.features else f"number {column + 1}"
            raise InputError(
                f"{self.unit} {self.places[row]}: {printable(name)}: {given[row, column]} is no "
                f"number that {fits.dtype.name} holds"
            )
        return fits.reshape(-1, *self.shape)


def _row_shape(signature: Signature) -> tuple[int, ...]:
    """The input's shape without the batch."""
    return tuple(n for n in signature.shape[1:] if n is not None)


def _csv_rows(program: ExportedProgram, text: str) -> tuple[np.ndarray, list[str]]:
    rows, notes = _Rows(program, "line"), []
    lines = _csv_lines(text)
    at, first = next(lines, (0, []))
    if not first:
        raise InputError("it has no rows")
    columns: Any = range(len(first))
    names = first if _is_header(first, program.features or []) else None
    if names is None:
        lines = itertools.chain([(at, first)], lines)
    elif program.features is None:
        notes.append(f"line {at}: ignored the names: the columns are taken in their order")
    else:
        columns, notes = _columns(names, program.features, f"line {at}")
    for at, cells in lines:
        if len(cells) != len(first):
            raise InputError(f"line {at}: expected {len(first)} columns as above, got {len(cells)}")
        rows.add((_number(cells[i], names, i, f"line {at}") for i in columns), at)
    if not rows.places:
        raise InputError("it has no rows")
    return rows.array(), notes


def _csv_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not empty, each with its number, cut at its commas (or at semicolons or
    tabs, if the first has more of these)."""
    delimiter = max(",;\t", key=text.lstrip().split("\n", 1)[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise InputError(f"line {reader.line_num}: it is no CSV: {error}") from None


def _is_header(cells: list[str], features: list[str]) -> bool:
    return bool(set(cells) & set(features)) or not any(_is_number(cell) for cell in cells)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # 1_000 is Python, not CSV


def _columns(names: list[str], features: list[str], place: str) -> tuple[Any, list[str]]:
    """Where the features stand among the names, and a note about the others."""
    missing = [f for f in features if f not in names]
    if missing:
        raise InputError(
            f"{place}: without {_listed(missing)}; the program takes {_listed(features)}, given "
            f"are {_listed(names)}"
        )
    twice = [f for f in features if names.count(f) > 1]
    if twice:
        raise InputError(f"{place}: more than one {_listed(twice)}: rename all but one")
    others = [n for n in names if n not in features]
    notes = [f"ignored {_listed(others)}, which the program does not take"] if others else []
    return [names.index(f) for f in features], notes


def _number(cell: str, names: list[str] | None, i: int, place: str) -> int | float:
    if _INT.fullmatch(cell):
        return int(cell)
    if _is_number(cell):
        return float(cell)
    name = f" ({printable(names[i])})" if names else ""
    got = printable(cell) if cell else "nothing"
    raise InputError(f"{place}: column {i + 1}{name}: expected a number, got {got}")


def _json_rows(program: ExportedProgram, text: str) -> tuple[np.ndarray, list[str]]:
    rows = _Rows(program, "row")
    notes: list[str] = []
    for i, row in enumerate(_json_values(text, rows.shape), 1):
        place = f"row {i}"
        if type(row) is dict:
            if program.features is None:
                raise InputError(
                    f"{place}: the program's columns have no names: give a list of {rows.width} "
                    "numbers"
                )
            _, more = _columns(list(row), program.features, place)
            notes += [note for note in more if note not in notes]
            row = [row[name] for name in program.features]
        nested = _depth(row) == len(rows.shape) > 1
        items = _leaves(row, rows.shape if nested else None, place)
        rows.add((_json_number(x, place) for x in items), i)
    if not rows.places:
        raise InputError("it has no rows")
    return rows.array(), notes


def _json_values(text: str, shape: tuple[int, ...]) -> Iterator[Any]:
    """The rows: of each value in the text, itself, or its items if it is a list of rows."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise InputError("an object has a name twice")
        return dict(pairs)

    decoder = json.JSONDecoder(object_pairs_hook=unique)
    at = 0
    while (at := _SPACE.match(text, at).end()) < len(text):  # type: ignore[union-attr]
        try:
            value, at = decoder.raw_decode(text, at)
        except InputError:
            raise
        except (ValueError, RecursionError) as error:
            raise InputError(f"it is no JSON: {error}") from None
        objects = type(value) is list and value and type(value[0]) is dict
        is_row = not objects and _depth(value) in (0, 1, len(shape))
        yield from [value] if is_row else value


def _depth(value: Any) -> int:
    """How deep lists are nested, as the first items tell."""
    depth = 0
    while type(value) is list and value:
        depth, value = depth + 1, value[0]
    return depth


def _leaves(value: Any, shape: tuple[int, ...] | None, place: str) -> Iterator[Any]:
    """The items of nested lists of this shape; None is one list of any length."""
    if shape == ():
        yield value
        return
    if type(value) is not list or (shape and len(value) != shape[0]):
        got = f"{len(value)} items" if type(value) is list else printable(repr(value))
        raise InputError(f"{place}: expected a list{f' of {shape[0]}' if shape else ''}, got {got}")
    for item in value:
        yield from _leaves(item, shape[1:] if shape else (), place)


def _json_number(value: Any, place: str) -> int | float:
    if type(value) not in (int, float, bool):
        raise InputError(f"{place}: expected a number, got {printable(repr(value))}")
    return value


def _listed(names: list[str]) -> str:
    shown = [printable(name) for name in names[:10]]
    return ", ".join(shown) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


# --- images ------------------------------------------------------------------------------------


def _image(program: ExportedProgram, data: bytes) -> np.ndarray:
    """The image in the input's dtype and shape, without the batch."""
    signature = program.inputs[0]
    channels, height, width = _image_shape(signature, program.features)
    image = _opened(data)
    if program.metadata.get("image") == "mnist":
        pixels = centred(_ink(image), height, width)[None].repeat(channels, 0)
    else:
        pixels = _resized(image, channels, height, width)
    scaled = pixels if signature.dtype == np.uint8 else pixels / np.float32(255)
    return scaled.reshape(_row_shape(signature))


def _image_shape(signature: Signature, features: list[str] | None) -> tuple[int, int, int]:
    """Channels, height and width; InputError if the program takes no images."""
    shape = _row_shape(signature)
    if signature.dtype in (np.uint8, np.float32) and 0 not in shape:
        if len(shape) == 2:
            return 1, *shape
        if len(shape) == 3 and shape[0] in (1, 3):
            return shape[0], shape[1], shape[2]
    wanted = ", ".join(["batch", *map(str, shape)])
    named = f" ({_listed(features)})" if features else ""
    raise InputError(
        f"it is an image, and the program takes {signature.dtype.name}[{wanted}]{named}: give CSV "
        "or JSON"
    )


def _opened(data: bytes) -> Any:
    """A Pillow image, upright, of mode L, RGB or RGBA, not much larger than ``_SIDE``."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise InputError("images need Pillow: pip install 'tinygrad_ish[images]'") from None
    try:
        image: Any = Image.open(io.BytesIO(data), formats=FORMATS)
        if math.prod(image.size) > PIXEL_LIMIT:
            raise _too_large(" × ".join(map(str, image.size)))
        image = ImageOps.exif_transpose(image)
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise _too_large("far more") from None
    except Exception as error:  # on damaged files Pillow's decoders raise anything
        raise InputError(f"it is a damaged or truncated image: {error}") from error
    image = _plain(image)
    factor = max(image.size) // _SIDE
    return image.reduce(factor) if factor > 1 else image


def _too_large(size: str) -> InputError:
    return InputError(
        f"it is an image of {size} pixels, more than {PIXEL_LIMIT / 1e6:.0f} million in all: scale "
        "it down"
    )


def _plain(image: Any) -> Any:
    """The image with 8 bits for a channel."""
    from PIL import Image

    if image.mode.startswith("I"):  # grey of 16 bits, in some versions of Pillow as 32
        levels = np.asarray(image).astype(np.float32) / 257
        return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    if image.mode == "F":
        raise InputError("its pixels are floats, of a range that it does not tell: save it as PNG")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _resized(image: Any, channels: int, height: int, width: int) -> np.ndarray:
    """uint8 (channels, height, width); what is transparent becomes white."""
    from PIL import Image

    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def _ink(image: Any) -> np.ndarray:
    """How much of a stroke each pixel is: float32 (H, W), the strokes up to 255, the paper 0.

    The paper's colour is the median along the border. In each channel a stroke is what is darker,
    or what is lighter, whichever goes further; differences of the size of the border's own count
    as paper. A drawing of one tone on nothing is its opacity.
    """
    colours = np.asarray(image.convert("RGB"), np.float32)
    if image.mode == "RGBA":
        alpha = np.asarray(image.getchannel("A"), np.float32)
        seen = colours[alpha > 127]
        if not len(seen):
            raise InputError("it is an image without contrast: nothing is drawn on it")
        if np.ptp(seen, 0).max() < _CONTRAST <= np.ptp(alpha):
            return alpha
        colours += (np.median(seen, 0) - colours) * (1 - alpha[..., None] / 255)
    sides = (colours[0], colours[-1], colours[:, 0], colours[:, -1])
    border = np.concatenate(sides)
    paper = np.median(border, 0)
    noise = 4 * np.median(np.abs(border - paper), 0)
    ink = colours - paper
    ink *= np.where(ink.max((0, 1)) < -ink.min((0, 1)), -1, 1)
    ink = (ink - noise).max(2).clip(0)
    if ink.max() < _CONTRAST:
        raise InputError("it is an image without contrast: nothing is drawn on it")
    return ink.astype(np.float32)


def centred(ink: np.ndarray, height: int = 28, width: int = 28) -> np.ndarray:
    """Ink (H, W), above 0 somewhere, as MNIST's digits are: uint8 (height, width).

    The drawing's box is scaled to fit 20 × 20 of 28 × 28, anti-aliased and with its proportions,
    and placed so that its centre of mass is in the middle, without leaving the image (Y. LeCun,
    "The MNIST database"); the darkest ink is 255.
    """
    from PIL import Image

    drawn = ink > ink.max() / 16
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = min(_BOX * height / box.shape[0], _BOX * width / box.shape[1])
    size = [max(1, round(n * scale)) for n in box.shape]
    patch = np.asarray(Image.fromarray(box).resize(size[::-1], Image.Resampling.BILINEAR))
    patch = np.rint(patch * (255 / patch.max())).clip(0, 255)
    out = np.zeros((height, width), np.uint8)
    corner = []
    for axis, (n, whole) in enumerate(zip(size, out.shape)):
        mass = patch.sum(1 - axis)
        centre = (mass * np.arange(n)).sum() / mass.sum()
        corner.append(int(np.clip(round(whole / 2 - centre), 0, whole - n)))
    top, left = corner
    out[top : top + size[0], left : left + size[1]] = patch
    return out
