"""Flax msgpack files: ``save_file`` writes what ``flax.serialization.to_bytes`` gives,
``load_file`` reads it as ``flax.serialization.msgpack_restore`` does.

A file is one msgpack map with str keys, nested as the parameters are. Its extension types:

1. an array: msgpack of [shape, dtype name, little-endian bytes in C order];
2. a complex number: msgpack of [real, imaginary];
3. a NumPy scalar, as type 1 with the shape [].

An array of more than 2**30 bytes is a map {"__msgpack_chunked_array__": true, "shape": {"0": ...},
"chunks": {"0": flat array, "1": ...}}. Nothing in a file has a checksum.
https://github.com/google/flax/blob/main/flax/serialization.py

Different from there: big-endian arrays keep their values; what could not be read again is refused
when it is saved; tensors are streamed, never packed in memory; duplicate keys are refused.
"""

from __future__ import annotations

import io
import os
from dataclasses import replace
from typing import Any, TypeGuard

import msgpack
import numpy as np

from .. import weights
from ..weights import Array, StrPath, TreePath, WeightsError
from ._stored import ITEM_BYTES, Raw, checked_shape, filled, payload, require_text

__all__ = ["load_file", "save_file"]

CHUNKED = "__msgpack_chunked_array__"
CHUNK_BYTES = 2**30

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
# The first byte of an object: what it is, and how many bytes of length follow.
_SIZED = {
    0xC4: ("bin", 1), 0xC5: ("bin", 2), 0xC6: ("bin", 4),
    0xC7: ("ext", 1), 0xC8: ("ext", 2), 0xC9: ("ext", 4),
    0xD9: ("str", 1), 0xDA: ("str", 2), 0xDB: ("str", 4),
    0xDC: ("array", 2), 0xDD: ("array", 4),
    0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip
_FIXED_EXT = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
# The first byte of a number, nil or bool: how many bytes follow.
_PLAIN = {
    0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8,
    0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
}  # fmt: skip


def save_file(tree: dict[str, Any], filename: StrPath) -> None:
    """Write nested dicts of tensors, arrays and plain values, all or nothing.

    As in ``to_bytes``, lists and tuples become maps {"0": ...}, named tuples maps of their fields.
    Leaves are tensors, NumPy arrays and scalars of any strides and byte order, int (64 bits),
    float, complex, bool, str, bytes and None. Raises WeightsError naming the place that cannot be
    saved, OSError where the file cannot be written.
    """
    if not isinstance(tree, dict):
        raise WeightsError(f"a Flax file holds a dict, got {type(tree).__name__}")
    with weights.replacing(weights.path_name(filename)) as file:
        _write(file, tree, ())


def load_file(filename: StrPath) -> dict[str, Any]:
    """The tree of a file: nested dicts, its arrays as NumPy's (bfloat16 as float32, which holds it
    exactly; a NumPy scalar as an array of no dimensions), all writable.

    Raises WeightsError for a file that is damaged, truncated or not as the format demands, or that
    has a dtype which NumPy lacks, and OSError where it cannot be read. Without checksums, a changed
    byte in an array is a changed number.
    """
    with weights.opened(filename) as file:
        tree: dict[str, Any] = filled(scan(file)[0])
        return tree


def scan(file: io.BufferedReader) -> tuple[dict[str, Any], dict[str, str]]:
    """What a file holds: its tree, tensors unread, and its metadata, which this format lacks."""
    scanner = _Scanner(file)
    tree = scanner.value(())
    if type(tree) is not dict:
        raise weights._damaged("a Flax file holds one msgpack map, found something else")
    if file.tell() != scanner.size:
        raise weights._damaged(f"{scanner.size - file.tell():,} bytes follow its msgpack map")
    return tree, {}


# --- Writing --------------------------------------------------------------------------


def _write(file: io.BufferedWriter, value: Any, place: TreePath) -> None:
    if hasattr(value, "_asdict"):
        value = value._asdict()
    elif isinstance(value, (list, tuple)):
        value = {str(i): item for i, item in enumerate(value)}
    if isinstance(value, dict):
        if len(place) >= weights.DEPTH_LIMIT:
            raise WeightsError(
                f"{weights._name(place)}: containers are nested more than {weights.DEPTH_LIMIT} "
                "deep, or one contains itself: flatten them"
            )
        if CHUNKED in value:
            raise WeightsError(
                f"{weights._name(place)}: the format keeps the key {CHUNKED} for itself: rename it"
            )
        file.write(msgpack.Packer().pack_map_header(len(value)))
        for key, item in value.items():
            require_text(key, f"{weights._name(place)}: the key {weights._shown(key)}")
            file.write(msgpack.packb(key))
            _write(file, item, (*place, key))
    elif value is None or type(value) in (bool, int, float, str, bytes):
        try:
            file.write(msgpack.packb(value))
        except (OverflowError, ValueError) as error:
            raise WeightsError(f"{weights._name(place)}: it cannot be packed: {error}") from error
    elif type(value) is complex:
        parts = msgpack.packb([value.real, value.imag])
        file.write(msgpack.packb(msgpack.ExtType(_COMPLEX, parts)))
    else:
        code = _SCALAR if isinstance(value, np.generic) else _ARRAY
        _write_array(file, weights._array(value, place), code)


def _write_array(file: io.BufferedWriter, array: Array, code: int) -> None:
    if array.nbytes <= CHUNK_BYTES:
        _write_ext(file, array, code)
        return
    packer = msgpack.Packer()
    length = max(1, CHUNK_BYTES // array.itemsize)
    flat = np.ascontiguousarray(array).reshape(-1)
    file.write(packer.pack_map_header(3) + packer.pack(CHUNKED) + packer.pack(True))
    shape = {str(i): n for i, n in enumerate(array.shape)}
    file.write(packer.pack("shape") + packer.pack(shape) + packer.pack("chunks"))
    starts = range(0, flat.size, length)
    file.write(packer.pack_map_header(len(starts)))
    for i, start in enumerate(starts):
        file.write(packer.pack(str(i)))
        _write_ext(file, flat[start : start + length], _ARRAY)


def _write_ext(file: io.BufferedWriter, array: Array, code: int) -> None:
    head = b"\x93" + msgpack.packb(array.shape) + msgpack.packb(array.dtype.name)
    head += _lead(array.nbytes, {1: 0xC4, 2: 0xC5, 4: 0xC6})
    length = len(head) + array.nbytes
    fixed = {n: byte for byte, n in _FIXED_EXT.items()}
    lead = bytes([fixed[length]]) if length in fixed else _lead(length, {1: 0xC7, 2: 0xC8, 4: 0xC9})
    file.write(lead + bytes([code]) + head)
    for block in payload(array):
        file.write(block)


def _lead(length: int, codes: dict[int, int]) -> bytes:
    """The first byte and the length of an object, in as few bytes as hold it."""
    for nbytes, code in codes.items():
        if length < 256**nbytes:
            return bytes([code]) + length.to_bytes(nbytes, "big")
    raise AssertionError("a chunk is shorter than 4 GiB")


# --- Reading --------------------------------------------------------------------------


class _Scanner:
    """Reads msgpack from a file, the arrays' bytes excepted: no declared length is believed before
    the file was seen to be long enough."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.count = 0

    def take(self, length: int) -> bytes:
        """The next bytes."""
        if length > self.size - self.file.tell():
            raise weights._damaged("the file ends inside an object")
        return self.file.read(length)

    def head(self) -> tuple[str, Any]:
        """The kind of the next object and its length; of a number, nil or bool its value."""
        first = self.take(1)
        byte = first[0]
        if byte in _SIZED:
            kind, width = _SIZED[byte]
            return kind, int.from_bytes(self.take(width), "big")
        if byte in _FIXED_EXT:
            return "ext", _FIXED_EXT[byte]
        for kind, start, stop in (("map", 0x80, 0x90), ("array", 0x90, 0xA0), ("str", 0xA0, 0xC0)):
            if start <= byte < stop:
                return kind, byte - start
        if byte == 0xC1:
            raise weights._damaged("the byte c1 begins no msgpack object")
        return "plain", msgpack.unpackb(first + self.take(_PLAIN.get(byte, 0)))

    def value(self, place: TreePath) -> Any:
        """The next object."""
        self.count += 1
        if self.count > weights.CONTAINER_LIMIT or len(place) > weights.DEPTH_LIMIT:
            raise WeightsError(
                f"{weights._name(place[:4])}: the file holds more than {weights.CONTAINER_LIMIT:,} "
                f"values, or nests them more than {weights.DEPTH_LIMIT} deep"
            )
        kind, found = self.head()
        if kind == "map":
            return self.map(found, place)
        if kind == "array":
            return [self.value((*place, i)) for i in range(found)]
        if kind == "str":
            return self.text(found)
        if kind == "bin":
            return self.take(found)
        return self.extension(found, place) if kind == "ext" else found

    def text(self, length: int) -> str:
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise weights._damaged("it has a str that is not UTF-8") from error

    def map(self, length: int, place: TreePath) -> Any:
        tree: dict[str, Any] = {}
        for _ in range(length):
            kind, found = self.head()
            if kind != "str":
                raise weights._damaged(f"{weights._name(place)}: it has a key that is not a str")
            key = self.text(found)
            if key in tree:
                raise weights._damaged(
                    f"{weights._name(place)}: the key {weights._shown(key)} stands twice"
                )
            tree[key] = self.value((*place, key))
        return _dechunked(tree, weights._name(place)) if CHUNKED in tree else tree

    def extension(self, length: int, place: TreePath) -> Any:
        name = weights._name(place)
        code = self.take(1)[0]
        end = self.file.tell() + length
        if code not in (_ARRAY, _COMPLEX, _SCALAR):
            raise weights._damaged(f"{name}: Flax has no msgpack extension type {code}")
        if code == _COMPLEX:
            parts = self.list("float")
            if len(parts) != 2 or self.file.tell() != end:
                raise weights._damaged(f"{name}: a complex number is two floats")
            return complex(*parts)
        kind, found = self.head()
        if (kind, found) != ("array", 3):
            raise weights._damaged(f"tensor {name!r}: expected [shape, dtype, bytes]")
        shape = self.list("int")
        kind, found = self.head()
        if kind != "str":
            raise weights._damaged(f"tensor {name!r}: its dtype is not a str")
        dtype = self.text(found)
        kind, nbytes = self.head()
        start = self.file.tell()
        if kind != "bin" or start + nbytes != end or end > self.size:
            raise weights._damaged(f"tensor {name!r}: its bytes do not fill its place in the file")
        item_bytes = ITEM_BYTES.get(dtype)
        bits = None if item_bytes is None else 8 * item_bytes
        self.file.seek(end)
        return Raw(
            name, dtype, checked_shape(name, shape, nbytes, bits), nbytes, self.file,
            ((start, nbytes),),
        )  # fmt: skip

    def list(self, kind: str) -> list[Any]:
        """The next object, a short array of ints or floats."""
        form, length = self.head()
        if form != "array" or length > weights.NDIM_LIMIT:
            raise weights._damaged(f"expected at most {weights.NDIM_LIMIT} {kind}s in an array")
        found = [self.head() for _ in range(length)]
        if not all(form == "plain" and type(value).__name__ == kind for form, value in found):
            raise weights._damaged(f"expected an array of {kind}s, found {weights._shown(found)}")
        return [value for _, value in found]


def _dechunked(tree: dict[str, Any], name: str) -> Raw:
    """The tensor of a map that holds it in chunks."""
    what = f"tensor {name!r}"
    shape, chunks = tree.get("shape"), tree.get("chunks")
    if (
        tree[CHUNKED] is not True
        or set(tree) != {CHUNKED, "shape", "chunks"}
        or not _numbered(shape)
        or not _numbered(chunks)
        or not chunks
    ):
        raise weights._damaged(f"{what}: expected its shape and its numbered chunks")
    pieces = [chunks[str(i)] for i in range(len(chunks))]
    first = pieces[0]
    if not all(
        isinstance(piece, Raw) and piece.dtype == first.dtype and len(piece.shape) == 1
        for piece in pieces
    ):
        raise weights._damaged(f"{what}: its chunks are not flat arrays of one dtype")
    dimensions = [shape[str(i)] for i in range(len(shape))]
    bits = 8 * ITEM_BYTES[first.dtype] if first.dtype in ITEM_BYTES else None
    whole = first.joined(pieces, ())
    return replace(whole, name=name, shape=checked_shape(name, dimensions, whole.nbytes, bits))


def _numbered(found: Any) -> TypeGuard[dict[str, Any]]:
    """Whether it is a map with the keys "0", "1" and so on."""
    return type(found) is dict and set(found) == {str(i) for i in range(len(found))}
