"""Other people's weights: safetensors, Flax msgpack and NumPy's .npz.

``tinygrad_ish.load`` reads them all, by their content. ``safetensors.save_file``,
``flax.save_file`` and ``npz.save_file`` write them; the ``load_file`` beside each reads that one
format, into NumPy arrays. ``convert`` (``tinygrad-ish convert A B``) goes from any to any, our own
included.

Bytes move, layouts do not: a parameter keeps its shape. Ours are PyTorch's (a Linear's weight is
out x in); a Flax Dense keeps a kernel of in x out, to be transposed by whoever knows the model.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .. import weights
from ..weights import Array, StrPath, WeightsError
from . import flax, npz, safetensors
from ._stored import Stored, filled

__all__ = [
    "convert", "describe", "flatten_dict", "flax", "npz", "recognize", "safetensors",
    "unflatten_dict",
]  # fmt: skip

FORMATS = ("tinygrad_ish", "safetensors", "flax", "npz")
EXTENSIONS = {
    ".msgpack": "tinygrad_ish",
    ".safetensors": "safetensors",
    ".flax": "flax",
    ".npz": "npz",
}
TITLES = {
    "safetensors": "a safetensors file",
    "flax": "a Flax msgpack file",
    "npz": "a NumPy .npz archive",
}
_READERS: dict[str, Any] = {"safetensors": safetensors, "flax": flax, "npz": npz}
# A map with, soon, a chunked array, or an extension type 1 or 3 around [shape, ...].
_FLAX = re.compile(
    rb"[\x80-\x8f\xde\xdf].*?(__msgpack_chunked_array__"
    rb"|(\xc7.|\xc8..|\xc9....|[\xd4-\xd8])[\x01\x03]\x93[\x90-\x9f\xdc])",
    re.DOTALL,
)


def recognize(start: bytes, size: int) -> str | None:
    """The format ("safetensors", "flax", "npz") of a file of this length that begins with these
    bytes, some 4096; None if it is another."""
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32:
        return "safetensors"
    name_length = int.from_bytes(start[26:28], "little")
    if start[:4] == b"PK\3\4" and start[30 : 30 + name_length].endswith(b".npy"):
        return "npz"
    if start[:4] == b"PK\5\6" and size == 22:  # an archive without members
        return "npz"
    return "flax" if _FLAX.match(start) else None


def read(path: StrPath, convert: Callable[[Array], Any] = lambda array: array) -> Any:
    """The tree of a file in one of the other formats, ``convert(array)`` in its tensors' places.

    Raises WeightsError for a file that is damaged or of no known format, OSError where it cannot be
    read.
    """
    with weights.opened(path) as file:
        return filled(_reader(file).scan(file)[0], convert)


def describe(path: StrPath) -> tuple[str, bool]:
    """A table of what a weights file of any format holds, and whether no tensor contradicts its
    checksum; formats without checksums say so. One tensor is in memory at a time.

    Raises WeightsError where the file cannot be understood, OSError where it cannot be read.
    """
    if _is_ours(path):
        return weights.describe(path)
    with weights.opened(path) as file:
        reader = _reader(file)
        tree, metadata = reader.scan(file)
        size = os.fstat(file.fileno()).st_size
        title = TITLES[reader.__name__.rpartition(".")[2]]
        lines = [f"{weights.printable(os.fsdecode(path))}: {title}, {size:,} bytes"]
        for key, value in metadata.items():
            lines.append(f"  {weights.printable(key)}: {weights._shown(value)}")
        rows, numbers = [], 0
        for name, value in _leaves(tree, ()):
            if isinstance(value, Stored):
                rows.append(_row(value))
                numbers += math.prod(value.shape)
            else:
                lines.append(f"  {weights._name(name)}: {weights._shown(value)}")
    bad = sum(row[4] == "BAD" for row in rows)
    checksums = {row[4].split()[0] for row in rows}
    count = len(rows)
    rows.insert(0, ("tensor", "dtype", "shape", "bytes", "checksum", "min", "max", "mean"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    lines.append(f"{count:,} tensors, {numbers:,} parameters")
    if "none" in checksums:
        lines.append("no checksum: whether these bytes are the ones that were written is unknown")
    if bad:
        lines.append(f"{bad:,} of {count:,} tensors BAD: {weights._DAMAGED}")
    return "\n".join(lines), not bad


def convert(source: StrPath, target: StrPath, to: str | None = None) -> str:
    """Write the weights of ``source``, a file of any format, to ``target`` in the format ``to``
    (one of ``FORMATS``), by default the one of its extension; what there is to tell of it.

    Names are joined with dots (``flatten_dict``), and nested again for Flax. Metadata goes where
    the format has a place for it: safetensors keeps str only, other values become JSON.

    Raises WeightsError naming what the other format cannot hold, ValueError for an extension
    without a format, OSError where a file cannot be read or written.
    """
    if to is None:
        to = EXTENSIONS.get(os.path.splitext(weights.path_name(target))[1].lower())
        if to is None:
            raise ValueError(
                f"{os.fsdecode(target)}: the name does not tell a format: expected one that ends "
                f"in {', '.join(EXTENSIONS)}, or --to FORMAT"
            )
    if to not in FORMATS:
        raise ValueError(f"to: expected {', '.join(FORMATS)}, got {to!r}")
    tree, metadata, notes = _source(source)
    flat = flatten_dict(tree)
    if to == "tinygrad_ish":
        weights.save(flat, target, metadata)
    elif to == "flax":
        flax.save_file(unflatten_dict(flat), target)
    else:
        flat = {name: v for name, v in flat.items() if not isinstance(v, (dict, list))}
        if to == "npz":
            npz.save_file(flat, target)
        else:
            safetensors.save_file(flat, target, _texts(metadata))
    if metadata and to in ("flax", "npz"):
        notes.append(f"the metadata was left out, {to} has no place for it")
    size = os.stat(target).st_size
    count = sum(isinstance(value, np.ndarray) for value in flat.values())
    first = f"{os.fsdecode(target)}: {to}, {count:,} tensors, {size:,} bytes"
    return "\n".join([weights.printable(first), *notes])


def flatten_dict(tree: Any) -> dict[str, Any]:
    """The leaves of nested dicts and lists by their path joined with dots, as a state dict has
    them; an empty dict or list is a leaf. (flax.traverse_util.flatten_dict with sep=".".)

    Raises WeightsError where two paths give the same name: {"a.b": 1, "a": {"b": 2}}.
    """
    if not isinstance(tree, dict):
        raise WeightsError(
            f"expected a dict of tensors, got {type(tree).__name__}: give its tensors names"
        )
    flat: dict[str, Any] = {}
    for place, value in _leaves(tree, ()):
        name = ".".join(map(str, place))
        if name in flat:
            raise WeightsError(
                f"{weights.printable(name)}: two tensors have this name once their paths are "
                "joined with dots: rename one"
            )
        if place:
            flat[name] = value
    return flat


def unflatten_dict(flat: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts of a dict of dotted names: {"a.b": 1} becomes {"a": {"b": 1}}. What was a list
    before ``flatten_dict`` is a dict with the keys "0", "1" then, as in Flax.

    Raises WeightsError where a name is another's prefix: {"a": 1, "a.b": 2}.
    """
    tree: dict[str, Any] = {}
    made = {id(tree)}  # the dicts of this function, not those among the values
    for name, value in flat.items():
        *parents, last = name.split(".")
        place = tree
        for key in parents:
            if key not in place:
                place[key] = {}
                made.add(id(place[key]))
            place = place[key]
            if id(place) not in made:
                break
        if id(place) not in made or last in place:
            raise WeightsError(
                f"{weights.printable(name)}: another tensor's name is the beginning of this one, "
                "or this of another: rename one, as nested dicts cannot hold both"
            )
        place[last] = value
    return tree


def _is_ours(path: StrPath) -> bool:
    with weights.opened(path) as file:
        return file.read(1 + len(weights._SIGNATURE)).endswith(weights._SIGNATURE)


def _reader(file: Any) -> Any:
    """The module that reads this open file; it is left at its start."""
    start = file.read(4096)
    size = os.fstat(file.fileno()).st_size
    if not size:
        raise weights._damaged("it is empty")
    name = recognize(start, size)
    if name is None:
        raise WeightsError(weights._foreign(start, size))
    file.seek(0)
    return _READERS[name]


def _source(path: StrPath) -> tuple[Any, dict[str, Any], list[str]]:
    """The tree and metadata of a file of any format, and what there is to tell."""
    if _is_ours(path):
        return weights._read(path), weights.load_metadata(path), []
    with weights.opened(path) as file:
        tree, metadata = _reader(file).scan(file)
        halves = sum(
            isinstance(value, Stored) and value.dtype == "bfloat16"
            for _, value in _leaves(tree, ())
        )
        note = f"{halves:,} tensors of bfloat16 became float32, which holds them exactly"
        return filled(tree), metadata, [note] if halves else []


def _leaves(tree: Any, place: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Each leaf of a tree and its path; empty containers count as leaves."""
    if len(place) > weights.DEPTH_LIMIT:
        raise WeightsError(
            f"{weights._name(place[:4])}: containers are nested more than {weights.DEPTH_LIMIT} "
            "deep, or one contains itself: flatten them"
        )
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, (*place, key))
    elif isinstance(tree, (list, tuple)) and tree:
        for i, value in enumerate(tree):
            yield from _leaves(value, (*place, i))
    else:
        yield place, tree


def _texts(metadata: dict[str, Any]) -> dict[str, str]:
    """Metadata as safetensors takes them."""
    try:
        return {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in metadata.items()
        }
    except TypeError as error:
        raise WeightsError(f"metadata: safetensors holds no bytes: {error}") from error


def _row(stored: Stored) -> tuple[str, ...]:
    """One line of ``describe``'s table."""
    name, dtype = weights.printable(stored.name), weights.printable(stored.dtype)
    cells = (name, dtype, str(stored.shape), f"{stored.nbytes:,}")
    try:
        stored.require_dtype()
    except WeightsError:
        return (*cells, "none", "", "", "")
    try:
        array = stored.read()
    except WeightsError:
        return (*cells, "BAD", "", "", "")
    checked = stored.checksum if stored.checksum == "none" else f"{stored.checksum} ok"
    if array.dtype.kind != "f" or not array.size:
        return (*cells, checked, "", "", "")
    with np.errstate(all="ignore"):  # inf - inf in the mean
        values = (array.min(), array.max(), array.mean(dtype=np.float64))
    return (*cells, checked, *(f"{value:.4g}" for value in values))
