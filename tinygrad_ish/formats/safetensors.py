"""safetensors files: ``save_file`` and ``load_file``, as in ``safetensors.numpy``.

A file is the length of its header (u64, little-endian), the header (JSON, padded with spaces to a
multiple of 8), and the tensors' bytes; the header gives each tensor's dtype, shape and place.
https://github.com/huggingface/safetensors#format

What is written is, byte for byte, what the safetensors library writes for the same tensors and
metadata. One metadata entry is added: the SHA-256 of each tensor, as the format has no checksum of
its own; other readers pass it by. What is read is checked more strictly than there: a name that
stands twice, a space before the header, unknown fields and checksums that do not match are refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from typing import Any

from .. import weights
from ..weights import Array, StrPath, WeightsError
from ._stored import Raw, Stored, checked_shape, filled, flat_arrays, payload, require_text

__all__ = ["load_file", "load_metadata", "save_file"]

SHA256 = "tinygrad_ish.sha256"  # the metadata entry, {name: hexadecimal digest} as JSON

# The format's dtypes in ascending rank, by which a file's tensors are sorted: NumPy's name, bits.
_DTYPES: dict[str, tuple[str, int]] = {
    "BOOL": ("bool", 8),
    "F4": ("F4", 4),
    "F6_E2M3": ("F6_E2M3", 6),
    "F6_E3M2": ("F6_E3M2", 6),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "F8_E5M2": ("F8_E5M2", 8),
    "F8_E4M3": ("F8_E4M3", 8),
    "F8_E8M0": ("F8_E8M0", 8),
    "F8_E4M3FNUZ": ("F8_E4M3FNUZ", 8),
    "F8_E5M2FNUZ": ("F8_E5M2FNUZ", 8),
    "I16": ("int16", 16),
    "U16": ("uint16", 16),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "I32": ("int32", 32),
    "U32": ("uint32", 32),
    "F32": ("float32", 32),
    "C64": ("complex64", 64),
    "F64": ("float64", 64),
    "I64": ("int64", 64),
    "U64": ("uint64", 64),
}
_CODES = {name: code for code, (name, _) in _DTYPES.items()}
_RANKS = {name: rank for rank, (name, _) in enumerate(_DTYPES.values())}
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


def save_file(
    tensors: dict[str, Any], filename: StrPath, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors or arrays by name, all or nothing (as ``tinygrad_ish.save`` does).

    Any strides and byte orders are taken; a tensor under two names is written twice, so that every
    reader finds both. Raises WeightsError naming what cannot be saved, OSError where the file
    cannot be written.
    """
    arrays = flat_arrays(tensors)
    if "__metadata__" in arrays:
        raise WeightsError("__metadata__: the format keeps this name for itself: rename the tensor")
    for key, value in (metadata or {}).items():
        require_text(key, "a key of the metadata")
        require_text(value, f"the metadata's {weights.printable(key)}")
    order = sorted(arrays, key=lambda name: (-_RANKS[arrays[name].dtype.name], name))

    def header(digests: dict[str, str]) -> bytes:
        parts: dict[str, Any] = {"__metadata__": {**(metadata or {}), SHA256: _json(digests)}}
        begin = 0
        for name in order:
            end = begin + arrays[name].nbytes
            parts[name] = {
                "dtype": _CODES[arrays[name].dtype.name],
                "shape": arrays[name].shape,
                "data_offsets": [begin, end],
            }
            begin = end
        text = _json(parts).encode()
        text += b" " * (-len(text) % 8)
        _require_length(len(text))
        return len(text).to_bytes(8, "little") + text

    # The digests are known once the bytes are written; the header's length does not depend on them.
    first = header(dict.fromkeys(order, "0" * 64))
    with weights.replacing(weights.path_name(filename)) as file:
        file.write(first)
        digests = {}
        for name in order:
            digest = hashlib.sha256()
            for block in payload(arrays[name]):
                digest.update(block)
                file.write(block)
            digests[name] = digest.hexdigest()
        final = header(digests)
        assert len(final) == len(first)
        file.seek(0)
        file.write(final)


def load_file(filename: StrPath) -> dict[str, Array]:
    """The arrays of a file, by name; bfloat16 ones as float32, which holds them exactly.

    Raises WeightsError for a file that is damaged, truncated or not as the format demands, or that
    has a dtype which NumPy lacks (8 bits and fewer, complex), and OSError where it cannot be read.
    """
    with weights.opened(filename) as file:
        arrays: dict[str, Array] = filled(scan(file)[0])
        return arrays


def load_metadata(filename: StrPath) -> dict[str, str]:
    """The metadata of a file, without our checksums; reads the header only. Raises like
    ``load_file``."""
    with weights.opened(filename) as file:
        return scan(file)[1]


def scan(file: io.BufferedReader) -> tuple[dict[str, Stored], dict[str, str]]:
    """What a file holds: its tensors by name, unread, and its metadata."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > size - 8:
        raise weights._damaged(
            f"a safetensors header of {length:,} bytes does not fit into the file's {size:,}"
        )
    _require_length(length)
    header = _parse(file.read(length))
    metadata = _metadata(header.pop("__metadata__", {}))
    digests = _digests(metadata.pop(SHA256, "{}"))
    tensors: dict[str, Stored] = {}
    for name, entry in header.items():
        tensors[name] = _tensor(file, 8 + length, name, entry, digests.get(name))
    position = 0
    for begin, end in sorted(tuple(entry["data_offsets"]) for entry in header.values()):
        if begin != position:
            problem = "overlap" if begin < position else "leave a gap"
            raise weights._damaged(f"its tensors {problem} at byte {position:,} of the data")
        position = end
    if 8 + length + position != size:
        raise weights._damaged(
            f"its header demands a file of {8 + length + position:,} bytes, found {size:,}"
        )
    return tensors, metadata


def _require_length(length: int) -> None:
    if length > weights.HEADER_LIMIT:
        raise WeightsError(
            f"the header takes {length:,} bytes, expected at most {weights.HEADER_LIMIT:,}: split "
            "the file"
        )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _parse(text: bytes) -> dict[str, Any]:
    """The header's JSON object."""
    if text[:1] != b"{" or text.rstrip(b" ")[-1:] != b"}":
        raise weights._damaged("the header is not one JSON object, from its first byte on")
    if text.count(b"{") + text.count(b"[") > weights.CONTAINER_LIMIT:
        raise WeightsError(
            f"the header holds more than {weights.CONTAINER_LIMIT:,} JSON arrays and objects: "
            "split the file"
        )
    parsed = _loads(text, "the header")
    if "__metadata__" in parsed and type(parsed["__metadata__"]) is not dict:
        raise weights._damaged("the header's __metadata__ is not an object")
    return parsed


def _loads(text: bytes | str, what: str) -> dict[str, Any]:
    """A JSON object without keys that stand twice, numbers in it being ints."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            require_text(key, f"{what}'s name {weights._shown(key)}")
            if key in found:
                raise weights._damaged(f"{what} has the name {weights._shown(key)} twice")
            found[key] = value
        return found

    def refuse(number: str) -> Any:
        raise weights._damaged(f"{what} has the number {weights._shown(number)}, expected ints")

    try:
        text = text.decode() if isinstance(text, bytes) else text
        parsed = json.loads(
            text, object_pairs_hook=unique, parse_float=refuse, parse_constant=refuse
        )
    except WeightsError:
        raise
    except (ValueError, RecursionError) as error:
        raise weights._damaged(f"{what} is not valid JSON") from error
    if type(parsed) is not dict:
        raise weights._damaged(f"{what} is not a JSON object")
    return parsed


def _metadata(found: dict[str, Any]) -> dict[str, str]:
    for key, value in found.items():
        require_text(value, f"the metadata's {weights.printable(key)}")
    return dict(found)


def _digests(text: str) -> dict[str, str]:
    found = _loads(text, f"the metadata's {SHA256}")
    for name, digest in found.items():
        require_text(digest, f"the sha256 of {weights.printable(name)}")
    return found


def _tensor(
    file: io.BufferedReader, data: int, name: str, entry: Any, sha256: str | None
) -> Stored:
    """A tensor by its entry in the header, checked; the data begin at byte ``data``."""
    what = f"tensor {weights.printable(name)!r}"
    if type(entry) is not dict or set(entry) != _ENTRY_KEYS:
        raise weights._damaged(
            f"{what}: expected a map of {sorted(_ENTRY_KEYS)}, found {weights._shown(entry)}"
        )
    code, offsets = entry["dtype"], entry["data_offsets"]
    if type(code) is not str or code not in _DTYPES:
        raise weights._damaged(f"{what}: the format has no dtype {weights._shown(code)}")
    if (
        type(offsets) is not list
        or len(offsets) != 2
        or not all(type(offset) is int for offset in offsets)
        or not 0 <= offsets[0] <= offsets[1]
    ):
        raise weights._damaged(
            f"{what}: expected data_offsets [begin, end], found {weights._shown(offsets)}"
        )
    dtype, bits = _DTYPES[code]
    begin, end = offsets
    shape = checked_shape(name, entry["shape"], end - begin, bits)
    return Raw(name, dtype, shape, end - begin, file, ((data + begin, end - begin),), sha256)
