"""What the readers and writers of other people's files share."""

from __future__ import annotations

import hashlib
import io
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import weights
from ..weights import Array, WeightsError

ITEM_BYTES = {name: np.dtype(name).itemsize for name in weights.DTYPES} | {"bfloat16": 2}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: what the file says of it. ``read`` gives its array."""

    name: str
    dtype: str  # NumPy's name, or the file's own where NumPy lacks it
    shape: tuple[int, ...]
    nbytes: int

    @property
    def checksum(self) -> str:
        """The kind of checksum that ``read`` compares, or "none"."""
        return "none"

    def read(self) -> Array:
        """A new array in native byte order, of float32 where the file has bfloat16.

        Raises WeightsError where the bytes contradict their checksum, or NumPy lacks the dtype.
        """
        raise NotImplementedError

    def require_dtype(self) -> None:
        """WeightsError where there is no such array here."""
        if self.dtype not in ITEM_BYTES:
            raise WeightsError(
                f"tensor {weights.printable(self.name)!r}: it is of dtype "
                f"{weights.printable(self.dtype)}, expected one of {', '.join(ITEM_BYTES)}: "
                "convert it with the library that wrote it"
            )


@dataclass(frozen=True)
class Raw(Stored):
    """A tensor whose bytes stand in the file as they are, little-endian and in C order, in pieces
    of (offset, length)."""

    file: io.BufferedReader
    pieces: tuple[tuple[int, int], ...]
    sha256: str | None = None

    @property
    def checksum(self) -> str:
        return "none" if self.sha256 is None else "sha256"

    def read(self) -> Array:
        self.require_dtype()
        kept = "uint16" if self.dtype == "bfloat16" else self.dtype
        array = np.empty(self.shape, np.dtype(kept).newbyteorder("<"))
        content = weights._bytes(array)
        digest = hashlib.sha256()
        done = 0
        for offset, length in self.pieces:
            self.file.seek(offset)
            for block in weights._blocks(content[done : done + length]):
                if self.file.readinto(block) != len(block):
                    raise weights._damaged("the file became shorter while it was read")
                if self.sha256 is not None:
                    digest.update(block)
            done += length
        if self.sha256 not in (None, digest.hexdigest()):
            raise WeightsError(
                f"tensor {weights.printable(self.name)!r}: its bytes do not match the sha256 in "
                "the metadata: the file is damaged, or was written by a program that copied the "
                "metadata of another: copy or download it again"
            )
        require_bools(self.name, array)
        if self.dtype == "bfloat16":  # the upper half of a float32
            wide = array.astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def joined(self, pieces: list[Raw], shape: tuple[int, ...]) -> Raw:
        """The tensor of this shape whose bytes are those of all these, one after the other."""
        return replace(
            self,
            shape=shape,
            nbytes=sum(piece.nbytes for piece in pieces),
            pieces=tuple(place for piece in pieces for place in piece.pieces),
        )


def filled(tree: Any, convert: Callable[[Array], Any] = lambda array: array) -> Any:
    """The tree of a file with ``convert(array)`` in the places of its tensors."""
    if isinstance(tree, dict):
        return {key: filled(value, convert) for key, value in tree.items()}
    if isinstance(tree, list):
        return [filled(value, convert) for value in tree]
    return convert(tree.read()) if isinstance(tree, Stored) else tree


def require_bools(name: str, array: Array) -> None:
    """WeightsError for a bool array with a byte that is neither 0 nor 1."""
    if array.dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise weights._damaged(
            f"tensor {weights.printable(name)!r}: it is of dtype bool and has a byte that is "
            "neither 0 nor 1"
        )


def checked_shape(name: str, shape: Any, nbytes: int, item_bits: int | None) -> tuple[int, ...]:
    """``shape``, a list of dimensions that make up ``nbytes``; bits None: it is not known."""
    what = f"tensor {weights.printable(name)!r}"
    if (
        type(shape) is not list
        or len(shape) > weights.NDIM_LIMIT
        or not all(type(n) is int and n >= 0 for n in shape)
        # NumPy multiplies the other dimensions out even where one is 0.
        or math.prod(n or 1 for n in shape) * (item_bits or 8) > sys.maxsize
    ):
        raise weights._damaged(
            f"{what}: expected a shape of at most {weights.NDIM_LIMIT} non-negative ints, fewer "
            f"than 2**60 bytes in all, found {weights._shown(shape)}"
        )
    if item_bits is not None and math.prod(shape) * item_bits != nbytes * 8:
        raise weights._damaged(
            f"{what}: its dtype and the shape {weights._shown(shape)} take "
            f"{math.prod(shape) * item_bits / 8:,.10g} bytes, the file holds {nbytes:,}"
        )
    return tuple(shape)


def flat_arrays(tensors: Any) -> dict[str, Array]:
    """The little-endian arrays of a dict of names; WeightsError naming what else it holds."""
    if not isinstance(tensors, dict):
        raise WeightsError(f"tensors: expected a dict, got {type(tensors).__name__}")
    arrays = {}
    for name, value in tensors.items():
        require_text(name, f"the name {weights._shown(name)}")
        if isinstance(value, (dict, list, tuple)):
            raise WeightsError(
                f"{weights.printable(name)}: this format holds no {type(value).__name__}: give "
                "tinygrad_ish.formats.flatten_dict(tensors)"
            )
        if value is None or type(value) in (bool, int, float, complex, str, bytes):
            raise WeightsError(
                f"{weights.printable(name)}: this format holds tensors only, got "
                f"{type(value).__name__}: put it in an array, or leave it out"
            )
        arrays[name] = weights._array(value, (name,))
    return arrays


def little_endian(array: Array) -> Array:
    """The array in the byte order and memory order of the files, itself where it is so."""
    return array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)


def payload(array: Array) -> Iterator[memoryview]:
    """The bytes of an array as files hold them, in blocks."""
    return weights._blocks(weights._bytes(little_endian(array)))


def require_text(value: Any, what: str) -> None:
    """WeightsError where this is not a str, or not one that UTF-8 can write."""
    if type(value) is not str:
        raise WeightsError(f"{what}: expected a str, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise WeightsError(f"{what}: half of a surrogate pair is no character") from error
