"""MNIST and Fashion-MNIST under torchvision's names, and the IDX files they come in.

An IDX file: two zero bytes, a code for the type, the number of dimensions, each dimension as a
big-endian uint32, then the elements, big-endian and row-major. (Y. LeCun, "The MNIST database".)
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NoReturn

import numpy as np

from .tensor import Tensor, from_numpy
from .transforms import ToTensor
from .utils.data import Dataset, Rows, default_collate
from .weights import replacing

_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 18
_SOCKET_SECONDS = 20
_DOWNLOAD_SECONDS = 600
_DOWNLOAD_BYTES = 64 << 20


class DataError(ValueError):
    """A data file is missing, damaged, or holds something else than its name says."""


def read_idx(path: str | os.PathLike[str], max_bytes: int = 1 << 30) -> np.ndarray:
    """The array in an IDX file, raw or gzipped (told by its first bytes), in native byte order.

    Takes memory only as data arrives, and never more than the header declares. Raises DataError
    for a file that is no IDX file, is truncated, damaged or too long, or that declares more than
    ``max_bytes``; OSError if it cannot be read.
    """
    path = Path(path)
    with open(path, "rb") as raw:
        magic = raw.read(2)
        raw.seek(0)
        if magic != _GZIP_MAGIC:
            return _parse_idx(raw, path, max_bytes)
        try:
            with gzip.open(raw) as unpacked:
                return _parse_idx(unpacked, path, max_bytes)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{path}: expected an intact gzip file, got a damaged or truncated one ({error}); "
                "fetch the file again"
            ) from error


def _parse_idx(file: BinaryIO | gzip.GzipFile, path: Path, max_bytes: int) -> np.ndarray:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_TYPES or head[3] == 0:
        raise DataError(
            f"{path}: expected an IDX file, which begins with 00 00, a type code (08, 09, 0b to "
            f"0e) and the number of dimensions, got {head.hex(' ') or 'an empty file'}; check "
            "that this is the right file"
        )
    sizes = file.read(4 * head[3])
    shape = tuple(int(d) for d in np.frombuffer(sizes[: len(sizes) // 4 * 4], ">u4"))
    dtype = np.dtype(_IDX_TYPES[head[2]])
    # Dimensions of 0 count as 1: NumPy refuses shapes whose other dimensions are beyond memory.
    if math.prod(max(d, 1) for d in shape) * dtype.itemsize > max_bytes or len(shape) > 32:
        raise DataError(
            f"{path}: expected at most {max_bytes} bytes in 32 dimensions, got a header that "
            f"declares {dtype.name}{list(shape)}; if the file is meant to be so large, raise "
            "max_bytes"
        )
    expected = math.prod(shape) * dtype.itemsize
    data = bytearray()
    while chunk := file.read(min(_CHUNK, expected + 1 - len(data))):
        data += chunk
    if len(sizes) < 4 * head[3] or len(data) != expected:
        got = f"{len(data)}" if len(data) <= expected else "more"
        raise DataError(
            f"{path}: expected {expected} bytes of data, as its header declares "
            f"({dtype.name}{list(shape)} of {head[3]} dimensions), got {got}; the file is "
            "truncated or not what its name says: fetch it again"
        )
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False).reshape(shape)


class MNIST(Dataset):
    """Handwritten digits: 60,000 (``train``) or 10,000 grey images of 28 × 28, and their labels.

    ``root`` is a folder that holds the two files of the split (``train-images-idx3-ubyte`` and
    ``train-labels-idx1-ubyte``, or ``t10k-…``), raw or .gz, itself or in ``MNIST/raw`` as
    torchvision keeps them; ``mnist10k-…`` files, a subset of 8,004 and 1,996, are taken where the
    full ones are missing. None is a folder in the user's cache. With ``download`` files that are
    nowhere to be found are fetched into ``root/MNIST/raw`` and verified.

    ``data`` is a uint8 tensor (N, 28, 28), ``targets`` an int64 tensor (N,), ``files`` the two
    paths. A transform that says ``batched = True``, as those of ``transforms`` do, gets whole
    batches from a DataLoader, any other one image after the other: uint8 arrays (28, 28).

    Raises DataError if the files are missing, damaged, do not belong together, or hold anything
    but 28 × 28 images and labels 0 to 9.
    """

    classes: ClassVar[list[str]] = [
        "0 - zero", "1 - one", "2 - two", "3 - three", "4 - four",
        "5 - five", "6 - six", "7 - seven", "8 - eight", "9 - nine",
    ]  # fmt: skip
    mirrors: ClassVar[tuple[str, ...]] = (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://raw.githubusercontent.com/fgnt/mnist/master/",
    )
    # Of the mirrors' .gz files. Elsewhere gzip's headers differ: files found are not held to it.
    hashes: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte.gz":
            "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz":
            "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz":
            "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz":
            "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    }  # fmt: skip
    stems: ClassVar[dict[bool, tuple[str, ...]]] = {
        True: ("train", "mnist10k-train"),
        False: ("t10k", "mnist10k-test"),
    }
    system_folders: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        train: bool = True,
        transform: Callable[[Any], Any] | None = None,
        download: bool = False,
    ) -> None:
        self.root = _cache_folder() if root is None else Path(root)
        self.train = bool(train)
        self.transform = transform
        self.files = self._find() or (self._download() if download else self._refuse())
        images, labels = _read_pair(*self.files)
        self.data, self.targets = from_numpy(images), from_numpy(labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        """Image i, float32 (1, 28, 28) in [0, 1] or what the transform makes of it; its label."""
        return self._transform(np.asarray(self.data)[i]), int(self.targets[i])

    def batch(self, rows: Rows) -> tuple[Any, Tensor]:
        """The images in ``rows``, float32 (n, 1, 28, 28) or transformed, and labels int64 (n,)."""
        images, labels = np.asarray(self.data)[rows], np.asarray(self.targets)[rows]
        if getattr(self._transform, "batched", False):
            out = self._transform(images)
        else:
            out = default_collate([self._transform(image) for image in images])
        return out if isinstance(out, Tensor) else from_numpy(out), from_numpy(labels)

    @property
    def _transform(self) -> Callable[[Any], Any]:
        return self.transform or _TO_TENSOR

    @property
    def _names(self) -> tuple[str, str]:
        stem = self.stems[self.train][0]
        return f"{stem}-images-idx3-ubyte.gz", f"{stem}-labels-idx1-ubyte.gz"

    @property
    def _own_folder(self) -> Path:
        return self.root / type(self).__name__ / "raw"

    def _find(self) -> tuple[Path, Path] | None:
        for folder in (self._own_folder, self.root, *map(Path, self.system_folders)):
            for stem in self.stems[self.train]:
                images = _first_file(folder, f"{stem}-images", "idx3-ubyte")
                labels = _first_file(folder, f"{stem}-labels", "idx1-ubyte")
                if images and labels:
                    return images, labels
        return None

    def _refuse(self) -> NoReturn:
        folders = ", ".join(map(str, (self.root, self._own_folder, *self.system_folders)))
        raise DataError(
            f"{type(self).__name__}: expected {' and '.join(self._names)} (.gz or not) in one of "
            f"{folders}; not there. Pass download=True, or put the files there by hand, from "
            f"{self.mirrors[0]}"
        )

    def _download(self) -> tuple[Path, Path]:
        images, labels = (self._download_file(name) for name in self._names)
        return images, labels

    def _download_file(self, name: str) -> Path:
        target = self._own_folder / name
        if target.is_file():
            return target
        failures = []
        for mirror in self.mirrors:
            try:
                data = _fetch(mirror + name, self.hashes[name])
            except DataError as error:
                failures.append(f"{mirror}{name} ({error})")
            else:
                _write(target, data)
                return target
        raise DataError(
            f"{type(self).__name__}: {name} could not be downloaded; tried {'; '.join(failures)}. "
            f"Put it into {target.parent} by hand, or give a folder that has it as root"
        )


class FashionMNIST(MNIST):
    """Pictures of clothes in ten classes, of the same shape and number as MNIST's digits.

    Read as ``MNIST`` is, from ``root``, ``root/FashionMNIST/raw``, or the folder of Debian's
    package ``dataset-fashion-mnist``.
    """

    classes: ClassVar[list[str]] = [
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ]  # fmt: skip
    mirrors: ClassVar[tuple[str, ...]] = (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    )
    hashes: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
    }
    stems: ClassVar[dict[bool, tuple[str, ...]]] = {True: ("train",), False: ("t10k",)}
    system_folders: ClassVar[tuple[str, ...]] = ("/usr/share/datasets/fashion-mnist",)


_TO_TENSOR = ToTensor()


def _cache_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "tinygrad_ish" / "datasets"


def _first_file(folder: Path, name: str, kind: str) -> Path | None:
    for separator in "-.":
        for suffix in (".gz", ""):
            path = folder / f"{name}{separator}{kind}{suffix}"
            if path.is_file():
                return path
    return None


def _read_pair(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28) or not len(images):
        raise DataError(
            f"{images_path}: expected images uint8[N, 28, 28], got "
            f"{images.dtype}{list(images.shape)}; check that this is the right file"
        )
    if labels.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{labels_path}: expected labels uint8[{len(images)}], one for each image in "
            f"{images_path.name}, got {labels.dtype}{list(labels.shape)}; take both files from "
            "one place"
        )
    if labels.max() > 9:
        raise DataError(
            f"{labels_path}: expected labels from 0 to 9, got {labels.max()} for image "
            f"{labels.argmax()}; fetch the file again"
        )
    return images, labels


def _fetch(url: str, expected_hash: str) -> bytes:
    """The bytes at a URL, bounded in time and size, and verified; DataError says what failed."""
    import urllib.request  # with HTTP and TLS slow to import, and seldom used
    from http.client import HTTPException

    data = bytearray()
    deadline = time.monotonic() + _DOWNLOAD_SECONDS
    try:
        with urllib.request.urlopen(url, timeout=_SOCKET_SECONDS) as response:
            # read1 returns what has come; read would wait for a whole chunk from a slow server.
            while chunk := response.read1(_CHUNK):
                data += chunk
                if len(data) > _DOWNLOAD_BYTES:
                    raise DataError(f"more than {_DOWNLOAD_BYTES} bytes came")
                if time.monotonic() > deadline:
                    raise DataError(f"not finished after {_DOWNLOAD_SECONDS} s")
    except (OSError, HTTPException) as error:
        raise DataError(f"{error or type(error).__name__}") from error
    algorithm, _, expected = expected_hash.partition(":")
    found = hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
    if found != expected:
        raise DataError(
            f"expected {algorithm} {expected}, got {found} over {len(data)} bytes: not this file"
        )
    return bytes(data)


def _write(target: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(str(target)) as file:
            file.write(data)
    except OSError as error:
        raise DataError(
            f"{target}: cannot be written ({error}); give a root that you may write to"
        ) from error
