"""Save and load tensors: ``save(obj, path)`` and ``load(path)``. msgpack, never pickle.

The format, version 1
---------------------
A file is a stream of plain msgpack objects (https://github.com/msgpack/msgpack/blob/master/spec.md):

1. The header, a map whose first keys are "format" and "version", in this order:

   ======== ==========================================================================
   format   "tinygrad_ish"
   version  1
   kind     "weights", or "program" (deploy/runtime.py says what its tree holds)
   tree     the saved object, with nil where its tensors stand
   tensors  an array of maps {"path", "dtype", "shape", "sha256"}: the keys (str) and
            indices (int) that lead to the tensor's nil in the tree, a name out of
            ``KNOWN``, the dimensions, and the SHA-256 of its bytes (bin 8, 32 bytes)
   metadata a map with str keys: whatever the writer wants to say
   ======== ==========================================================================

   Tree and metadata hold maps with str keys, arrays, str, bin, int, float, bool and nil; no
   extension types. No map has the same key twice.
2. bin 8, 32 bytes: the SHA-256 of the header's exact bytes. These two objects begin every version.
3. For each tensor, in the header's order: as few nil objects (0xc0) as bring the payload's first
   byte to a file offset that is a multiple of 64, then one bin 32 object (never bin 8 or 16): the
   elements, little-endian, in C order; a bool is 0 or 1. A payload longer than 4 GiB - 64 is split
   into pieces of that length and a shorter last one, each padded and aligned like a first one. A
   tensor without elements is one empty piece.

Then the file ends. So the header alone fixes the length of the file and the place of every piece,
and each byte is either covered by a checksum or has one permitted value.

``load`` takes no memory for a tensor before the header is known to fit the file's length, and reads
into the arrays it returns: its peak is the file's length plus what the header's objects take, which
``HEADER_LIMIT`` and ``CONTAINER_LIMIT`` bound.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import math
import mmap
import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgpack
import numpy as np

from .kernels.reference import is_float

FORMAT = "tinygrad_ish"
VERSION = 1
DTYPES = (
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "float32",
    "float64",
)  # NumPy's own
KNOWN = (*DTYPES, "bfloat16")
KINDS = {"weights": "load", "program": "load_program"}  # and what reads each
ALIGNMENT = 64
PIECE_LIMIT = 2**32 - 64  # the longest bin 32 that leaves the next piece's elements whole
HEADER_LIMIT = 16 * 2**20  # bytes; some 100,000 tensors
CONTAINER_LIMIT = 2**20  # arrays and maps in a header: one byte of file can ask for 72 of memory
DEPTH_LIMIT = 64
NDIM_LIMIT = 64  # NumPy's own

_SIGNATURE = b"\xa6format\xac" + FORMAT.encode() + b"\xa7version"  # from the file's second byte on
_HEADER_KEYS = {"format", "version", "kind", "tree", "tensors", "metadata"}
_TENSOR_KEYS = {"path", "dtype", "shape", "sha256"}
_DIGEST_LEAD = b"\xc4\x20"  # bin 8 of 32 bytes
_BLOCK = 2**20  # read and hash, or hash and write, while the bytes are in the processor's cache
_DAMAGED = "the file is damaged or truncated: copy or download it again"

StrPath: TypeAlias = "str | os.PathLike[str]"
TreePath: TypeAlias = "tuple[str | int, ...]"
Array: TypeAlias = "np.ndarray[Any, Any]"


class WeightsError(ValueError):
    """An object that cannot be saved, or a file that is not what ``save`` writes."""


@dataclass(frozen=True)
class _Tensor:
    """A header's line about one tensor, and where its first padding byte stands in the file."""

    path: TreePath
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    sha256: bytes
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Header:
    kind: str
    root: list[Any]  # [tree]: so the tree's own place can be written to, like any other
    tensors: list[_Tensor]
    metadata: dict[str, Any]


def save(obj: Any, path: StrPath, metadata: dict[str, Any] | None = None) -> None:
    """Write ``obj`` (a state dict, or any tree of containers) to ``path``, all of it or nothing.

    ``obj`` holds dicts with str keys, lists, tuples, tensors, NumPy arrays and scalars of one of
    ``KNOWN``, str, bytes, int (64 bits), float, bool and None. ``load`` returns tuples as lists,
    dict subclasses as dicts, arrays and NumPy scalars as tensors; a tensor that stands in two
    places is written, and comes back, twice. ``metadata`` is like ``obj`` without tensors.

    The file is written under another name in the same folder, synced, then renamed: a failure
    leaves an existing file as it was. An existing file's permission bits are kept, a symbolic link
    is followed.

    Raises WeightsError (a ValueError) naming the place in ``obj`` that cannot be saved, and OSError
    where the file cannot be written.
    """
    write(obj, path, metadata, "weights")


def write(obj: Any, path: StrPath, metadata: dict[str, Any] | None, kind: str) -> None:
    """``save``, for a file of any kind."""
    arrays: list[tuple[TreePath, Array]] = []
    tree = _plain(obj, (), arrays)
    if not isinstance(metadata, (dict, type(None))):
        raise WeightsError(f"metadata: expected a dict or None, got {type(metadata).__name__}")
    plain_metadata = _plain(metadata or {}, ("metadata",), None)

    def header(digests: list[bytes]) -> bytes:
        tensors = [
            {"path": place, "dtype": array.dtype.name, "shape": array.shape, "sha256": digest}
            for (place, array), digest in zip(arrays, digests)
        ]
        return _pack_header(kind, tree, tensors, plain_metadata)

    # The digests are known once the payloads are written; the header's length does not depend on
    # them, so it is written twice and every payload is read once.
    first = header([bytes(32)] * len(arrays))
    _unpack(first)  # what a reader would refuse is refused before anything is written
    with replacing(path_name(path)) as file:
        file.write(first + _DIGEST_LEAD + bytes(32))
        digests = [_write_payload(file, array) for _, array in arrays]
        final = header(digests)
        assert len(final) == len(first)
        file.seek(0)
        file.write(final + _DIGEST_LEAD + hashlib.sha256(final).digest())


def load(path: StrPath, map_location: Any = None, *, weights_only: bool = True) -> Any:
    """The object that ``save`` wrote to ``path``, its tensors on ``map_location`` (a device), or
    on the default one. ``weights_only`` is there for PyTorch's calls: a file holds nothing else.

    A safetensors file, a Flax msgpack file or a NumPy .npz archive is known by its content and read
    too, names and nesting as they are there (see ``tinygrad_ish.formats``). Arrays of a dtype that
    tensors lack (uint16, uint32, uint64) come back as NumPy arrays, bfloat16 ones of others' files
    as float32; of ours they need ml_dtypes.

    Raises WeightsError (a ValueError) for a file that is foreign, damaged, truncated, of a newer
    version or not as the format demands, and OSError where it cannot be read.
    """
    from . import dtypes
    from .tensor import as_tensor

    def convert(array: Array) -> Any:
        known = dtypes.is_supported(array.dtype)
        return as_tensor(array, device=map_location) if known else array

    with opened(path) as file:
        ours = file.read(1 + len(_SIGNATURE)).endswith(_SIGNATURE)
    if ours:
        return _read(path, convert)
    from . import formats

    return formats.read(path, convert)


def load_metadata(path: StrPath) -> dict[str, Any]:
    """The ``metadata`` that was given to ``save``; reads the header only. Raises like ``load``."""
    with opened(path) as file:
        return _read_header(file).metadata


def describe(path: StrPath) -> tuple[str, bool]:
    """A table of what a weights file holds, and whether every tensor is intact.

    One tensor is in memory at a time; one whose bytes do not match its checksum is marked BAD.
    Raises like ``load`` where the header itself cannot be trusted.
    """
    with opened(path) as file:
        header = _read_header(file)
        size = os.fstat(file.fileno()).st_size
        lines = [
            f"{printable(os.fsdecode(path))}: {FORMAT} {header.kind}, format version {VERSION}, "
            f"{size:,} bytes"
        ]
        for key, value in header.metadata.items():
            lines.append(f"  {printable(key)}: {_shown(value)}")
        rows = [_row(file, tensor) for tensor in header.tensors]
    bad = sum(row[4] == "BAD" for row in rows)
    rows.insert(0, ("tensor", "dtype", "shape", "bytes", "sha256", "min", "max", "mean"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    count = sum(math.prod(tensor.shape) for tensor in header.tensors)
    lines.append(f"{len(header.tensors):,} tensors, {count:,} parameters")
    if bad:
        lines.append(f"{bad:,} of {len(header.tensors):,} tensors BAD: {_DAMAGED}")
    return "\n".join(lines), not bad


# --- Writing --------------------------------------------------------------------------


def _plain(
    value: Any,
    place: TreePath,
    arrays: list[tuple[TreePath, Array]] | None,
    parents: tuple[int, ...] = (),
) -> Any:
    """``value`` in msgpack's types, nil where its tensors stand. These are appended to ``arrays``,
    or refused where that is None; ``parents`` are the ids of the containers around ``value``."""
    if value is None or type(value) in (bool, float, str, bytes):
        return value
    if type(value) is int:
        if not -(2**63) <= value < 2**64:
            raise WeightsError(
                f"{_name(place)}: the int {printable(hex(value))} does not fit into 64 bits: save "
                "it as a str or a float"
            )
        return value
    if isinstance(value, (dict, list)) or (
        isinstance(value, tuple) and not hasattr(value, "_fields")
    ):
        if id(value) in parents:
            raise WeightsError(
                f"{_name(place)}: this {type(value).__name__} contains itself: a file holds trees"
            )
        if len(parents) >= DEPTH_LIMIT:
            raise WeightsError(
                f"{_name(place)}: containers are nested more than {DEPTH_LIMIT} deep: flatten them"
            )
        inside = (*parents, id(value))
        if not isinstance(value, dict):
            return [_plain(item, (*place, i), arrays, inside) for i, item in enumerate(value)]
        for key in value:
            if type(key) is not str:
                raise WeightsError(
                    f"{_name(place)}: the key {_shown(key)} is of type "
                    f"{type(key).__name__}, expected str: rename it, e.g. to str(key)"
                )
        return {key: _plain(item, (*place, key), arrays, inside) for key, item in value.items()}
    array = _array(value, place)
    if arrays is None:
        raise WeightsError(
            f"{_name(place)}: metadata cannot hold a {type(value).__name__}: save it in the object "
            "itself, or convert it with .tolist()"
        )
    arrays.append((place, array))
    return None


def _array(value: Any, place: TreePath) -> Array:
    """The NumPy array of a tensor, array or NumPy scalar, of any strides and byte order."""
    array = value
    if hasattr(value, "detach") and hasattr(value, "numpy"):
        array = value.detach()
        array = (array.cpu() if hasattr(array, "cpu") else array).numpy()
    elif isinstance(value, np.generic):
        array = np.asarray(value)
    if type(array) is not np.ndarray:
        remedy = (
            "convert it with np.asarray()"
            if isinstance(array, np.ndarray)
            else "save its state_dict()"
            if hasattr(value, "state_dict")
            else "convert it to one of these"
        )
        raise WeightsError(
            f"{_name(place)}: a file cannot hold a {type(value).__module__}."
            f"{type(value).__qualname__}, expected a tensor, np.ndarray, dict, list, tuple, str, "
            f"bytes, int, float, bool or None: {remedy}"
        )
    if array.dtype.name not in KNOWN:
        raise WeightsError(
            f"{_name(place)}: cannot save dtype {printable(str(array.dtype))}, expected one of "
            f"{', '.join(KNOWN)}: convert it, e.g. with .astype(np.float32)"
        )
    return array


def _pack_header(
    kind: str, tree: Any, tensors: list[dict[str, Any]], metadata: dict[str, Any]
) -> bytes:
    header = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "tree": tree,
        "tensors": tensors,
        "metadata": metadata,
    }
    try:
        packed: bytes = msgpack.packb(header)
    except ValueError as error:  # a lone surrogate in a str, or 4 GiB of bytes
        raise WeightsError(f"the object's strings cannot be packed: {error}") from error
    return packed


def _write_payload(file: io.BufferedWriter, array: Array) -> bytes:
    """Append the padding and pieces of one tensor; the SHA-256 of its bytes."""
    content = _bytes(array.astype(array.dtype.newbyteorder("<"), order="C", copy=False))
    digest = hashlib.sha256()
    done = 0
    for lead, length in _pieces(file.tell(), len(content)):
        file.write(lead)
        for block in _blocks(content[done : done + length]):
            digest.update(block)
            file.write(block)
        done += length
    return digest.digest()


@contextlib.contextmanager
def replacing(path: str) -> Iterator[io.BufferedWriter]:
    """A new file that takes ``path``'s place when the block ends, or vanishes when it fails."""
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    if os.path.isdir(target):
        raise IsADirectoryError(f"cannot save to {path}: it is a folder: name a file in it")
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"cannot save to {path}: the folder {folder} does not exist: create it first, e.g. "
            f"with os.makedirs({folder!r})"
        )
    exists = os.path.exists(target)
    if exists and not os.path.isfile(target):
        raise OSError(f"cannot save to {path}: it is a device or a pipe: name a regular file")
    temporary = os.path.join(folder, f".tinygrad_ish-{os.urandom(8).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            if exists:
                os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):  # most likely never made; the first error is the news
            os.unlink(temporary)
        if not isinstance(error, OSError):
            raise
        before = "; the file there is as it was" if exists else ""
        raise OSError(
            error.errno,
            f"cannot save to {path}: {error.strerror}{before}: check the permissions and the free "
            f"space of the folder {folder}",
        ) from error
    if hasattr(os, "O_DIRECTORY"):  # the rename itself is on disk once the folder is synced
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- Reading --------------------------------------------------------------------------


def _read(path: StrPath, convert: Any = lambda array: array) -> Any:
    """The tree in a weights file; ``convert`` is called on each tensor's array."""
    with opened(path) as file:
        header = _read_header(file)
        _expect_kind(header, "weights")
        for tensor in header.tensors:
            container, key = _find(header.root, tensor.path)
            container[key] = convert(_read_tensor(file, tensor))
        return header.root[0]


def _expect_kind(header: _Header, kind: str) -> None:
    if header.kind != kind:
        raise WeightsError(
            f"it is of the kind {header.kind}, expected {kind}: read it with "
            f"tinygrad_ish.{KINDS[header.kind]}()"
        )


class Mapped:
    """A file whose tensors stay in it: ``name``, ``tree`` and ``metadata``, the arrays in the tree
    read-only views of the mapped file. They hold what is there; whether that is what was written,
    ``verify`` tells."""

    def __init__(self, path: StrPath, kind: str) -> None:
        with opened(path) as file:
            header = _read_header(file)
            _expect_kind(header, kind)
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._arrays = [(t, _mapped(mapping, file, t)) for t in header.tensors]
        for tensor, array in self._arrays:
            container, key = _find(header.root, tensor.path)
            container[key] = array.astype(array.dtype.newbyteorder("="), copy=False)
        self.tree = header.root[0]
        self.metadata = header.metadata
        self.name = path_name(path)

    @property
    def nbytes(self) -> int:
        """Bytes that ``verify`` reads."""
        return sum(tensor.nbytes for tensor, _ in self._arrays)

    def verify(self) -> None:
        """Raise WeightsError unless every tensor matches its checksum."""
        for tensor, array in self._arrays:
            _check_digest(tensor, hashlib.sha256(_bytes(array)).digest())
            _check_bools(tensor, array)


def _mapped(mapping: mmap.mmap, file: io.BufferedReader, tensor: _Tensor) -> Array:
    """A tensor as a view of the mapped file; one in several pieces is read into memory."""
    pieces = list(_pieces(tensor.start, tensor.nbytes))
    if len(pieces) > 1:
        return _read_tensor(file, tensor).astype(tensor.dtype, copy=False)
    ((lead, _),) = pieces
    start = tensor.start + len(lead)
    if mapping[tensor.start : start] != lead:
        raise _damaged(f"tensor {_name(tensor.path)!r}: its bytes do not begin where they must")
    count = math.prod(tensor.shape)
    return np.frombuffer(mapping, tensor.dtype, count, start).reshape(tensor.shape)


def path_name(path: Any) -> str:
    """The path as str; TypeError for a file object, which cannot be written all or nothing."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(
            f"path: expected a name such as 'weights.msgpack', got {type(path).__name__}"
        )
    return os.fsdecode(path)


@contextlib.contextmanager
def opened(path: StrPath) -> Iterator[io.BufferedReader]:
    """``path`` open for reading; a WeightsError inside gets the file's name in front."""
    name = path_name(path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(
            errno.ENOENT, f"cannot read {name}: no such file; the working folder is {os.getcwd()}"
        ) from None
    if not stat.S_ISREG(mode):
        raise OSError(f"cannot read {name}: it is a folder, a device or a pipe, expected a file")
    with open(path, "rb") as file:
        try:
            yield file
        except WeightsError as error:
            raise WeightsError(f"{name}: {error}") from error.__cause__


def _read_header(file: io.BufferedReader) -> _Header:
    """Read the header and check everything but the payloads, the file's length included."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(4096)
    if start[1 : 1 + len(_SIGNATURE)] != _SIGNATURE:
        raise _damaged("it is empty") if not size else WeightsError(_foreign(start, size))
    packed = _packed_header(file)
    if file.read(34) != _DIGEST_LEAD + hashlib.sha256(packed).digest():
        raise _damaged("the header does not match its checksum")
    header = _unpack(packed)
    root = [header["tree"]]
    tensors = []
    position = len(packed) + 34
    for index, line in enumerate(header["tensors"]):
        tensor = _tensor(line, index, position)
        container, key = _find(root, tensor.path)
        if container[key] is not None:
            raise _damaged(f"tensor {_name(tensor.path)!r}: its place in the tree is not nil")
        container[key] = tensor
        if tensor.nbytes > size:  # before its pieces are counted: it may claim 2**63 bytes
            raise _damaged(
                f"tensor {_name(tensor.path)!r}: {tensor.dtype.name} of shape {tensor.shape} takes "
                f"{tensor.nbytes:,} bytes, the whole file has {size:,}"
            )
        position += sum(len(lead) + length for lead, length in _pieces(position, tensor.nbytes))
        tensors.append(tensor)
    if position != size:
        raise _damaged(f"its header demands a file of {position:,} bytes, found {size:,}")
    return _Header(header["kind"], root, tensors, header["metadata"])


def _packed_header(file: io.BufferedReader) -> bytes:
    """The exact bytes of the file's first object; the file is left at their end."""
    file.seek(0)
    limit = min(HEADER_LIMIT, os.fstat(file.fileno()).st_size)  # of what the scanner may hold
    scanner = msgpack.Unpacker(file, read_size=min(2**16, limit), max_buffer_size=limit)
    try:
        # Skipping builds no objects: no declared length is believed before its bytes were seen.
        scanner.skip()
    except msgpack.OutOfData as error:
        raise _damaged("the file ends inside its header") from error
    except (msgpack.UnpackException, ValueError) as error:
        raise _damaged("the header is not valid msgpack, or too long") from error
    length = scanner.tell()
    _check_header_length(length)
    file.seek(0)
    return file.read(length)


def _check_header_length(length: int) -> None:
    if length > HEADER_LIMIT:
        raise WeightsError(
            f"the header takes {length:,} bytes, expected at most {HEADER_LIMIT:,}: keep long "
            "lists, str and bytes in arrays"
        )


def _unpack(packed: bytes) -> dict[str, Any]:
    """The header's map, checked but for the lines about its tensors."""
    _check_header_length(len(packed))
    containers = 0

    def count(container: Any) -> Any:
        nonlocal containers
        containers += 1
        if containers > CONTAINER_LIMIT:
            raise WeightsError(
                f"the header holds more than {CONTAINER_LIMIT:,} lists and dicts: keep numbers in "
                "arrays"
            )
        return container

    def unique(pairs: list[tuple[Any, Any]]) -> Any:
        keys = set()
        for key, _ in pairs:
            if type(key) is not str or key in keys:
                problem = "twice" if key in keys else "that is not a str"
                raise _damaged(f"the header has a map with the key {_shown(key)} {problem}")
            keys.add(key)
        return count(dict(pairs))

    def refuse(code: int, data: bytes) -> Any:
        raise _damaged(f"the header holds the msgpack extension type {code}")

    try:
        header = msgpack.unpackb(
            packed, object_pairs_hook=unique, list_hook=count, ext_hook=refuse, strict_map_key=True
        )
    except WeightsError:
        raise
    except (msgpack.UnpackException, ValueError) as error:
        raise _damaged(f"the header is not valid msgpack ({error})") from error
    version = header.get("version") if type(header) is dict else None
    if type(version) is not int or version < 1:
        raise _damaged("the header does not give its version")
    if version > VERSION:
        raise WeightsError(
            f"it is of format version {version}, this tinygrad_ish reads {VERSION}: it was written "
            "by a newer version: upgrade tinygrad_ish"
        )
    if set(header) != _HEADER_KEYS:
        raise _damaged(
            f"the header's keys are {_shown(sorted(header))}, not {sorted(_HEADER_KEYS)}"
        )
    for key in ("kind", "tree", "tensors", "metadata"):
        _plain(header[key], (key,), None)
    if header["kind"] not in KINDS:
        raise WeightsError(
            f"it is of the kind {_shown(header['kind'])}, expected one of {', '.join(KINDS)}"
        )
    if type(header["tensors"]) is not list or type(header["metadata"]) is not dict:
        raise _damaged("the header's tensors are not an array, or its metadata not a map")
    return header


def _tensor(line: Any, index: int, start: int) -> _Tensor:
    """The header's line about its tensor number ``index``, checked."""
    what = f"tensor number {index}"
    if type(line) is not dict or set(line) != _TENSOR_KEYS:
        raise _damaged(f"{what}: expected a map of {_TENSOR_KEYS}, found {_shown(line)}")
    path, dtype, shape, sha256 = (line[key] for key in ("path", "dtype", "shape", "sha256"))
    if type(path) is not list or not all(type(key) in (str, int) for key in path):
        raise _damaged(f"{what}: expected a path of str and int, found {_shown(path)}")
    what = f"tensor {_name(tuple(path))!r}"
    if type(dtype) is not str or dtype not in KNOWN:
        raise _damaged(f"{what}: expected a dtype of {', '.join(KNOWN)}, found {_shown(dtype)}")
    little = _dtype_named(dtype, what).newbyteorder("<")
    if (
        type(shape) is not list
        or len(shape) > NDIM_LIMIT
        or not all(type(n) is int and n >= 0 for n in shape)
        # NumPy multiplies the other dimensions out even where one is 0.
        or math.prod(n or 1 for n in shape) * little.itemsize > sys.maxsize
    ):
        raise _damaged(
            f"{what}: expected a shape of at most {NDIM_LIMIT} non-negative ints, fewer than 2**63 "
            f"bytes in all, found {_shown(shape)}"
        )
    if type(sha256) is not bytes or len(sha256) != 32:
        raise _damaged(f"{what}: expected a sha256 of 32 bytes, found {_shown(sha256)}")
    return _Tensor(tuple(path), little, tuple(shape), sha256, start)


def _dtype_named(name: str, what: str) -> np.dtype[Any]:
    """One of ``KNOWN``; WeightsError for bfloat16 where there is none."""
    from . import dtypes

    try:
        return dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)
    except ImportError as error:
        raise WeightsError(f"{what}: {error}") from None


def _find(root: list[Any], path: TreePath) -> tuple[Any, Any]:
    """The container inside ``root[0]``, or ``root`` itself, and the key that ``path`` leads to."""
    container: Any = None
    node: Any = root
    key: Any
    for key in (0, *path):
        container = node
        if not (
            (type(node) is dict and type(key) is str and key in node)
            or (type(node) is list and type(key) is int and 0 <= key < len(node))
        ):
            raise _damaged(f"tensor {_name(path)!r}: the tree has no such place: no {_shown(key)}")
        node = container[key]
    return container, key


def _read_tensor(file: io.BufferedReader, tensor: _Tensor) -> Array:
    """A new array, its padding, length and checksum verified."""
    what = f"tensor {_name(tensor.path)!r}"
    array = np.empty(tensor.shape, tensor.dtype)
    content = _bytes(array)
    digest = hashlib.sha256()
    done = 0
    file.seek(tensor.start)
    for lead, length in _pieces(tensor.start, len(content)):
        found = file.read(len(lead))
        if found != lead:
            raise _damaged(f"{what}: expected {lead.hex()} before its bytes, found {found.hex()}")
        for block in _blocks(content[done : done + length]):
            if file.readinto(block) != len(block):
                raise _damaged(f"{what}: the file became shorter while it was read")
            digest.update(block)
        done += length
    _check_digest(tensor, digest.digest())
    _check_bools(tensor, array)
    return array.astype(tensor.dtype.newbyteorder("="), copy=False)


def _check_digest(tensor: _Tensor, found: bytes) -> None:
    if found != tensor.sha256:
        raise _damaged(
            f"tensor {_name(tensor.path)!r}: expected the sha256 {tensor.sha256.hex()}, found "
            f"{found.hex()}"
        )


def _check_bools(tensor: _Tensor, array: Array) -> None:
    if tensor.dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise _damaged(
            f"tensor {_name(tensor.path)!r}: it is of dtype bool and has a byte that is neither 0 "
            "nor 1"
        )


# --- The layout, shared by both ----------------------------------------------------------


def _pieces(position: int, nbytes: int) -> Iterator[tuple[bytes, int]]:
    """The pieces of a payload from file offset ``position`` on: the bytes in front of each (padding
    and the start of a bin 32 object), and its length."""
    left = nbytes
    while True:
        length = min(left, PIECE_LIMIT)
        lead = b"\xc0" * (-(position + 5) % ALIGNMENT) + b"\xc6" + length.to_bytes(4, "big")
        yield lead, length
        position += len(lead) + length
        left -= length
        if not left:
            return


def _bytes(array: Array) -> memoryview:
    """The bytes of a C-contiguous array, 0-d and empty ones included."""
    return array.reshape(-1).view(np.uint8).data


def _blocks(content: memoryview) -> Iterator[memoryview]:
    return (content[i : i + _BLOCK] for i in range(0, len(content), _BLOCK))


# --- Words -------------------------------------------------------------------------------


def _damaged(what: str) -> WeightsError:
    return WeightsError(f"{what}: {_DAMAGED}")


_TO_TENSORS = (
    "convert it where PyTorch is: import torch, tinygrad_ish; tinygrad_ish.save(torch.load('FILE', "
    "map_location='cpu', weights_only=True), 'FILE.msgpack')"
)
_FOREIGN = (
    (
        rb"PK\x03\x04.{26}[^/]*/(data\.pkl|\.format_version)",
        "a PyTorch checkpoint, zip and pickle (it could run any code)",
        _TO_TENSORS,
    ),
    (
        rb"\x80[\x02-\x05]",
        "a pickle (it could run any code), as older PyTorch checkpoints are",
        _TO_TENSORS,
    ),
    (rb"PK\x03\x04", "a zip archive, as PyTorch and Keras write", ""),
    (rb"\x93NUMPY", "a NumPy .npy file", "put the array into an archive, with np.savez"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file, as older Keras versions write", ""),
    (rb"version https://git-lfs", "a Git LFS pointer", "replace it, with git lfs pull"),
)


def _foreign(start: bytes, size: int) -> str:
    """What a file that is not ours is, judged by its first bytes, and what to do about it."""
    from . import formats

    expected = "expected a file written by tinygrad_ish.save()"
    known = formats.recognize(start, size)
    if known is not None:
        return (
            f"it is {formats.TITLES[known]}, {expected}: tinygrad_ish.load() reads it, and "
            "`tinygrad-ish convert` makes one of ours of it"
        )
    for pattern, name, remedy in _FOREIGN:
        if re.match(pattern, start, re.DOTALL):
            remedy = remedy or "read it with the library that wrote it, then save() its arrays"
            return f"it is {name}, {expected}: {remedy}"
    return "it is not a tinygrad_ish file, or its first bytes are damaged: check the path"


def _name(place: TreePath) -> str:
    return printable(".".join(map(str, place))) if place else "(the object itself)"


def _shown(value: Any) -> str:
    return printable(repr(value))


def printable(text: str) -> str:
    """``text`` fit for a message: a file may hold a terminal's escape codes, or a megabyte."""
    text = text if len(text) <= 200 else f"{text[:200]}..."
    return text if text.isprintable() else ascii(text)


def _row(file: io.BufferedReader, tensor: _Tensor) -> tuple[str, ...]:
    """One line of ``describe``'s table."""
    cells = (_name(tensor.path), tensor.dtype.name, str(tensor.shape), f"{tensor.nbytes:,}")
    try:
        array = _read_tensor(file, tensor)
    except WeightsError:
        return (*cells, "BAD", "", "", "")
    if not is_float(tensor.dtype) or not array.size:
        return (*cells, "ok", "", "", "")
    with np.errstate(all="ignore"):  # inf - inf in the mean
        values = (array.min(), array.max(), array.mean(dtype=np.float64))
    return (*cells, "ok", *(f"{value:.4g}" for value in values))
