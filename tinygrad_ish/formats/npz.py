"""NumPy's .npz archives: ``save_file`` writes what ``np.savez`` does, ``load_file`` reads what it
or ``np.savez_compressed`` wrote. Pickled objects in one are refused.

An archive is a zip file of members NAME.npy, each a short header and an array's bytes; zip keeps a
CRC-32 of each. https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html

Stricter than ``np.load``: the header is not evaluated but matched, a name may stand once, and what
an archive claims is compared with its length before memory is taken.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import weights
from ..weights import Array, StrPath, WeightsError
from ._stored import (
    ITEM_BYTES,
    Stored,
    checked_shape,
    filled,
    flat_arrays,
    little_endian,
    require_bools,
)

__all__ = ["load_file", "save_file"]

RATIO_LIMIT = 100  # how many times the archive's length its arrays may take,
FREE_BYTES = 64 * 2**20  # beyond the first of these
HEADER_LIMIT = 10_000  # of a member, NumPy's own

_ITEM = r"""['"](\w+)['"]\s*:\s*(?:['"]([^'"]*)['"]|(True|False)|\(((?:\d+\s*,\s*)*\d*)\))"""
_HEADER = re.compile(rf"\{{\s*{_ITEM}\s*,\s*{_ITEM}\s*,\s*{_ITEM}\s*,?\s*\}}\s*", re.ASCII)


def save_file(tensors: dict[str, Any], filename: StrPath) -> None:
    """Write tensors or arrays by name, all or nothing, uncompressed.

    Any strides and byte orders are taken. Raises WeightsError naming what cannot be saved, OSError
    where the file cannot be written.
    """
    arrays = flat_arrays(tensors)
    for name, array in arrays.items():
        if "\0" in name or len(name.encode()) > 60_000:
            raise WeightsError(f"{weights.printable(name)}: a zip archive cannot hold this name")
        if array.dtype.name not in weights.DTYPES:
            raise WeightsError(
                f"{weights.printable(name)}: NumPy's files have no {array.dtype.name}: convert it "
                "with .float(), or write a safetensors file"
            )
    with (
        weights.replacing(weights.path_name(filename)) as file,
        zipfile.ZipFile(file, "w") as archive,
    ):
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, little_endian(array), allow_pickle=False)


def load_file(filename: StrPath) -> dict[str, Array]:
    """The arrays of an archive, by name.

    Raises WeightsError for an archive that is damaged or truncated, unpacks to more than
    ``RATIO_LIMIT`` times its length, or holds something other than arrays of bools, ints and floats
    (a pickled object among them), and OSError where it cannot be read.
    """
    with weights.opened(filename) as file:
        arrays: dict[str, Array] = filled(scan(file)[0])
        return arrays


def scan(file: io.BufferedReader) -> tuple[dict[str, Stored], dict[str, str]]:
    """What an archive holds: its tensors by name, unread, and its metadata, which it lacks."""
    size = os.fstat(file.fileno()).st_size
    with _zip_errors():
        archive = zipfile.ZipFile(_Bounded(file, size))
    members = archive.infolist()
    _require_tiling(file, archive)
    unpacked = sum(info.file_size for info in members)
    if unpacked > FREE_BYTES + RATIO_LIMIT * size:
        raise WeightsError(
            f"the archive's {size:,} bytes unpack to {unpacked:,}, expected at most {RATIO_LIMIT} "
            "times as many: load it with NumPy, if you trust it, and save it with np.savez"
        )
    tensors: dict[str, Stored] = {}
    for info in members:
        name = info.filename.removesuffix(".npy")
        what = f"member {weights._shown(info.filename)}"
        if name == info.filename or info.filename != info.orig_filename:
            raise WeightsError(f"{what} of the archive is not an array, expected NAME.npy")
        if name in tensors:
            raise weights._damaged(f"{what} stands twice in the archive")
        with _zip_errors(), archive.open(info) as member:
            tensors[name] = _tensor(archive, info, name, member)
    return tensors, {}


@dataclass(frozen=True)
class _Member(Stored):
    """An array in an archive; its bytes begin ``start`` bytes into the unpacked member."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    start: int
    big_endian: bool
    fortran: bool

    @property
    def checksum(self) -> str:
        return "crc32"

    def read(self) -> Array:
        self.require_dtype()
        shape = self.shape[::-1] if self.fortran else self.shape
        array = np.empty(shape, np.dtype(self.dtype).newbyteorder(">" if self.big_endian else "<"))
        member: Any
        with _zip_errors(), self.archive.open(self.info) as member:
            member.read(self.start)
            for block in weights._blocks(weights._bytes(array)):
                if member.readinto(block) != len(block):
                    raise weights._damaged("the archive ends inside a member")
            member.read(1)  # the checksum is compared at the end
        require_bools(self.name, array)
        ordered = array.T if self.fortran else array
        return ordered.astype(array.dtype.newbyteorder("="), order="C", copy=False)


def _require_tiling(file: io.BufferedReader, archive: zipfile.ZipFile) -> None:
    """WeightsError unless the members stand one behind the other, from the start to the directory:
    none overlaps another, none is missing in the directory."""
    position, slack = 0, 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if not position <= info.header_offset <= position + slack:
            break
        file.seek(info.header_offset + 26)
        header = 30 + sum(struct.unpack("<HH", file.read(4).ljust(4, b"\0")))
        position = info.header_offset + header + info.compress_size
        slack = 24 if info.flag_bits & 8 else 0  # written as a stream: sizes behind the bytes
    else:
        if position <= archive.start_dir <= position + slack:
            return
    raise weights._damaged(
        f"the members of the archive overlap or leave a gap at byte {position:,}"
    )


def _tensor(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, member: Any) -> _Member:
    """The tensor that a member holds, by the header that it begins with."""
    what = f"tensor {weights.printable(name)!r}"
    magic = member.read(8)
    width = {b"\x93NUMPY\1\0": 2, b"\x93NUMPY\2\0": 4, b"\x93NUMPY\3\0": 4}.get(magic)
    if width is None:
        raise weights._damaged(f"{what}: expected a NumPy array, found {weights._shown(magic)}")
    length = int.from_bytes(member.read(width), "little")
    start = 8 + width + length
    nbytes = info.file_size - start
    text = member.read(min(length, HEADER_LIMIT)).decode("utf-8", "replace")
    match = _HEADER.fullmatch(text)
    descr, fortran, dimensions = _fields(match) if match else (None, None, None)
    if (
        descr is None
        or fortran is None
        or dimensions is None
        or nbytes < 0
        or length > HEADER_LIMIT
    ):
        raise WeightsError(
            f"{what}: expected the header of an array of numbers, found {weights._shown(text)}"
        )
    big_endian, dtype = _dtype(descr)
    bits = 8 * ITEM_BYTES[dtype] if dtype in ITEM_BYTES else None
    numbers = [int(n) for n in dimensions.replace(",", " ").split()]
    shape = checked_shape(name, numbers, nbytes, bits)
    return _Member(name, dtype, shape, nbytes, archive, info, start, big_endian, fortran == "True")


def _fields(match: re.Match[str]) -> tuple[str | None, str | None, str | None]:
    """What a header says of descr, fortran_order and shape; None where it is of another type."""
    groups = match.groups()
    values = {groups[i]: groups[i + 1 : i + 4] for i in (0, 4, 8)}
    none = (None, None, None)
    return (
        values.get("descr", none)[0],
        values.get("fortran_order", none)[1],
        values.get("shape", none)[2],
    )


def _dtype(descr: str) -> tuple[bool, str]:
    """Whether a dtype is big-endian, and its name; the description itself where there is no such
    dtype here."""
    match = re.fullmatch(r"([<>|=]?)([biuf]\d)", descr, re.ASCII)
    names = {np.dtype(name).str[1:]: name for name in weights.DTYPES}
    if match is None or match[2] not in names:
        return False, "object, which is pickled" if descr == "|O" else descr
    return match[1] == ">", names[match[2]]


class _Bounded:
    """A file for zipfile, which asks for as many bytes as a hostile archive claims."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        self.file = file
        self.size = size

    def read(self, length: int = -1) -> bytes:
        left = max(0, self.size - self.file.tell())
        return self.file.read(left if length < 0 else min(length, left))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@contextlib.contextmanager
def _zip_errors() -> Iterator[None]:
    """What zipfile raises for a damaged archive, as WeightsError."""
    try:
        yield
    except WeightsError:
        raise
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # EINVAL: it sought a place before the start
            raise
        raise weights._damaged("the zip archive points outside itself") from error
    except (
        zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, EOFError,
        ValueError, OverflowError, IndexError,
    ) as error:  # fmt: skip
        raise weights._damaged(f"the zip archive cannot be unpacked ({error})") from error
