"""IDX files, well-formed and hostile; MNIST's folders, downloads and refusals."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import re
import socket
import struct
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinygrad_ish import datasets, transforms
from tinygrad_ish.datasets import MNIST, DataError, FashionMNIST, read_idx
from tinygrad_ish.random import Generator
from tinygrad_ish.tensor import Tensor
from tinygrad_ish.utils.data import DataLoader

BUNDLED = Path(__file__).resolve().parent.parent / "data" / "mnist10k"
CODES = {
    "uint8": 0x08,
    "int8": 0x09,
    "int16": 0x0B,
    "int32": 0x0C,
    "float32": 0x0D,
    "float64": 0x0E,
}

one_file = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def idx_bytes(array: np.ndarray) -> bytes:
    head = bytes([0, 0, CODES[array.dtype.name], array.ndim])
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return head + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes()


def digits(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n, np.uint8)


def place(
    folder: Path, stem: str = "train", n: int = 6, suffix: str = ".gz", dot: str = "-"
) -> Path:
    """Two files of one split in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in zip(("images-idx3", "labels-idx1"), digits(n), strict=True):
        name, _, rank = kind.partition("-")
        content = idx_bytes(array)
        path = folder / f"{stem}-{name}{dot}{rank}-ubyte{suffix}"
        path.write_bytes(gzip.compress(content) if suffix else content)
    return folder


# --- IDX -------------------------------------------------------------------------------------

arrays = st.sampled_from(sorted(CODES)).flatmap(
    lambda name: hnp.arrays(name, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
)


@one_file
@given(array=arrays, packed=st.booleans())
def test_idx_round_trip(array: np.ndarray, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "a"
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    read = read_idx(path)
    assert read.dtype == array.dtype and read.dtype.isnative and read.flags.writeable
    np.testing.assert_array_equal(read, array)


@one_file
@given(array=arrays, packed=st.booleans(), cut=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(
    array: np.ndarray, packed: bool, cut: float, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    content = gzip.compress(idx_bytes(array), 1) if packed else idx_bytes(array)
    path.write_bytes(content[: int(cut * len(content))])
    with pytest.raises(DataError, match=re.escape(str(path))):
        read_idx(path)


@one_file
@given(data=st.data(), packed=st.booleans())
def test_a_flipped_byte_is_refused_or_changes_one_element(
    data: st.DataObject, packed: bool, tmp_path: Path
) -> None:
    array = np.arange(60, dtype=np.int16).reshape(3, 20)
    content = bytearray(idx_bytes(array))
    if packed:
        content = bytearray(gzip.compress(bytes(content), 1))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "a"
    path.write_bytes(content)
    try:
        read = read_idx(path)
    except DataError:
        return
    if packed:  # gzip's header holds a time and the like; all else is under its checksum
        assert place < 10
        np.testing.assert_array_equal(read, array)
    else:  # a raw file has no checksum: only data, or a shape and type of as many bytes
        assert read.nbytes == array.nbytes
        assert place < 12 or (read != array).sum() == 1


@given(content=st.binary(max_size=200))
@one_file
def test_any_bytes_give_an_array_or_a_data_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    for prefix in (b"", b"\0\0\x08", b"\x1f\x8b\x08\0"):
        path.write_bytes(prefix + content)
        with contextlib.suppress(DataError):
            read_idx(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected an IDX file, .* got an empty file"),
        (b"\x89PNG\r\n", "got 89 50 4e 47"),
        (bytes([0, 0, 8, 0]), "got 00 00 08 00"),
        (bytes([0, 0, 7, 1, 0, 0, 0, 1, 0]), "got 00 00 07 01"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 2, 5]), r"expected 2 bytes .*\(uint8\[2\].*, got 1;"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 1, 5, 6]), "expected 1 bytes .* got more"),
        (bytes([0, 0, 8, 2, 0, 0, 0, 1, 0]), "of 2 dimensions"),
        (bytes([0, 0, 14, 2]) + b"\xff" * 8 + b"data", "expected at most 1073741824 bytes"),
        (bytes([0, 0, 8, 3]) + b"\0" * 4 + b"\xff" * 8, "expected at most 1073741824 bytes"),
        (bytes([0, 0, 8, 65]) + b"\0\0\0\1" * 65 + b"a", "in 32 dimensions"),
    ],
)
def test_idx_refusals(content: bytes, message: str, tmp_path: Path) -> None:
    for name, stored in (("raw", content), ("packed", gzip.compress(content))):
        path = tmp_path / name
        path.write_bytes(stored)
        with pytest.raises(DataError, match=f"^{re.escape(str(path))}: .*{message}"):
            read_idx(path)


def test_a_gzip_bomb_is_read_no_further_than_its_header_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.zeros(10, np.uint8)) + b"\0" * (1 << 26)))
    read = 0
    original = gzip.GzipFile.read

    def counting(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        nonlocal read
        data = original(self, size)
        read += len(data)
        return data

    monkeypatch.setattr(gzip.GzipFile, "read", counting)
    with pytest.raises(DataError, match=r"expected 10 bytes of data, .* got more"):
        read_idx(path)
    assert read < 100


def test_max_bytes_allows_larger_files(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(idx_bytes(np.zeros(100, np.uint8)))
    with pytest.raises(DataError, match="raise max_bytes"):
        read_idx(path, max_bytes=99)
    assert read_idx(path, max_bytes=100).shape == (100,)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "none")


# --- MNIST in folders ------------------------------------------------------------------------


def test_the_bundled_files_are_those_of_the_notice() -> None:
    lines = re.findall(r"^([0-9a-f]{64})  (\S+)$", (BUNDLED / "NOTICE").read_text(), re.M)
    assert sorted(name for _, name in lines) == sorted(p.name for p in BUNDLED.glob("*.gz"))
    for digest, name in lines:
        assert hashlib.sha256((BUNDLED / name).read_bytes()).hexdigest() == digest, name


def test_the_bundled_set() -> None:
    train, test = MNIST(BUNDLED), MNIST(BUNDLED, train=False)
    assert (len(train), len(test)) == (8004, 1996)
    for part in (train, test):
        assert isinstance(part.data, Tensor) and part.data.dtype == np.uint8
        assert part.targets.dtype == np.int64 and part.data.shape == (len(part), 28, 28)
        counts = np.bincount(part.targets.numpy(), minlength=10)
        assert counts.min() > 0.8 * len(part) / 10
    assert train.classes[7] == "7 - seven"
    pictures = {image.tobytes() for image in train.data.numpy()}
    assert not pictures & {image.tobytes() for image in test.data.numpy()}


def test_samples_and_batches_agree(tmp_path: Path) -> None:
    data = MNIST(place(tmp_path, n=5))
    image, label = data[3]
    assert image.shape == (1, 28, 28) and image.dtype == np.float32 and isinstance(label, int)
    np.testing.assert_array_equal(image.numpy()[0], digits(5)[0][3] / np.float32(255))
    for rows in (slice(1, 4), np.array([1, 2, 3])):
        images, labels = data.batch(rows)
        assert images.shape == (3, 1, 28, 28) and labels.dtype == np.int64
        np.testing.assert_array_equal(images[2].numpy(), image.numpy())
        assert labels[2].item() == label
    assert len(list(data)) == 5  # indexing past the end ends the iteration


def test_a_transform_gets_batches_only_if_it_says_so(tmp_path: Path) -> None:
    shapes: list[tuple[int, ...]] = []

    def flatten(image: np.ndarray) -> np.ndarray:
        shapes.append(image.shape)
        return image.ravel().astype(np.float32)

    ((images, _),) = DataLoader(MNIST(place(tmp_path, n=3), transform=flatten), 3)
    assert shapes == [(28, 28)] * 3 and images.shape == (3, 784)

    normalize = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.5, 0.25)])
    data = MNIST(tmp_path, transform=normalize)
    ((batch, _),) = DataLoader(data, 3)
    np.testing.assert_array_equal(batch[2].numpy(), data[2][0].numpy())
    np.testing.assert_allclose(
        batch.numpy().ravel(), (images.numpy().ravel() / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-6
    )

    shift = transforms.RandomAffine(0, (0.1, 0.1), generator=Generator().manual_seed(0))
    raw, _ = MNIST(tmp_path, transform=shift).batch(slice(0, 2))
    assert raw.dtype == np.uint8 and raw.shape == (2, 28, 28)


def test_changed_data_and_targets_are_used(tmp_path: Path) -> None:
    data = MNIST(place(tmp_path, n=6))
    data.data, data.targets = data.data[2:4], data.targets[2:4]
    ((images, labels),) = DataLoader(data, 5)
    assert images.shape == (2, 1, 28, 28) and labels.tolist() == digits(6)[1][2:4].tolist()


@pytest.mark.parametrize("suffix", [".gz", ""])
@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("folder", [".", "MNIST/raw"])
def test_the_names_and_folders_that_are_found(
    suffix: str, dot: str, folder: str, tmp_path: Path
) -> None:
    place(tmp_path / folder, "train", 4, suffix, dot)
    place(tmp_path / folder, "t10k", 3, suffix, dot)
    assert len(MNIST(tmp_path)) == 4
    assert len(MNIST(str(tmp_path), train=False)) == 3


def test_the_full_files_come_before_the_subset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FashionMNIST, "system_folders", ())  # this machine may have the package
    place(tmp_path, "mnist10k-test", 3)
    assert len(MNIST(tmp_path, train=False)) == 3
    place(tmp_path, "t10k", 4)
    data = MNIST(tmp_path, train=False)
    assert len(data) == 4 and data.files[0] == tmp_path / "t10k-images-idx3-ubyte.gz"
    with pytest.raises(DataError, match="FashionMNIST: expected train-images"):
        FashionMNIST(place(tmp_path / "f", "mnist10k-train"))


def test_fashion_is_found_in_the_systems_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FashionMNIST, "system_folders", (str(place(tmp_path / "system", n=4)),))
    place(tmp_path / "root" / "MNIST" / "raw", n=5)
    assert len(FashionMNIST(tmp_path / "root")) == 4
    place(tmp_path / "root" / "FashionMNIST" / "raw", n=6)
    assert len(FashionMNIST(tmp_path / "root")) == 6
    assert len(MNIST(tmp_path / "root")) == 5


def test_without_a_root_the_users_cache_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place(tmp_path / "tinygrad_ish" / "datasets" / "MNIST" / "raw", n=2)
    assert len(MNIST()) == 2


def test_missing_files_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"alone")
    with pytest.raises(DataError) as error:
        MNIST(tmp_path)
    for part in (
        "MNIST: expected train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz",
        str(tmp_path / "MNIST" / "raw"),
        "Pass download=True, or put the files there by hand",
    ):
        assert part in str(error.value)


def _rewrite(folder: Path, kind: str, array: np.ndarray) -> None:
    (path,) = folder.glob(f"*{kind}*")
    path.write_bytes(gzip.compress(idx_bytes(array)))


@pytest.mark.parametrize(
    ("kind", "array", "message"),
    [
        ("images", np.zeros((6, 28, 27), np.uint8), r"images uint8\[N, 28, 28\], got .*28, 27\]"),
        ("images", np.zeros((6, 28, 28), np.int16), r"expected images uint8.* got int16"),
        ("images", np.zeros((0, 28, 28), np.uint8), r"expected images .*got uint8\[0, 28, 28\]"),
        ("images", np.zeros(6, np.uint8), r"expected images uint8.* got uint8\[6\]"),
        ("labels", np.zeros(5, np.uint8), r"expected labels uint8\[6\].* got uint8\[5\]"),
        ("labels", np.zeros((6, 1), np.uint8), r"expected labels uint8\[6\].* got uint8\[6, 1\]"),
        ("labels", np.array([0, 1, 9, 10, 2, 3], np.uint8), "from 0 to 9, got 10 for image 3"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    kind: str, array: np.ndarray, message: str, tmp_path: Path
) -> None:
    _rewrite(place(tmp_path), kind, array)
    with pytest.raises(DataError, match=f"{kind}.*{message}"):
        MNIST(tmp_path)


# --- Downloads -------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    """Serves ``files``: bytes, or an int for an HTTP status."""

    def __init__(self, files: dict[str, Any], *args: Any) -> None:
        self.files = files
        super().__init__(*args)

    def do_GET(self) -> None:
        content = self.files.get(self.path, 404)
        self.send_response(content if isinstance(content, int) else 200)
        self.end_headers()
        if isinstance(content, bytes):
            self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[dict[str, Any], str]]:
    """A web server on this machine, its files, and MNIST looking for its own files there."""
    files: dict[str, Any] = {}
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, files))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{http.server_port}"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(MNIST, "mirrors", (f"{address}/first/", f"{address}/second/"))
    contents = {
        "train-images-idx3-ubyte.gz": gzip.compress(idx_bytes(digits(4)[0])),
        "train-labels-idx1-ubyte.gz": gzip.compress(idx_bytes(digits(4)[1])),
    }
    hashes = {n: f"sha256:{hashlib.sha256(c).hexdigest()}" for n, c in contents.items()}
    monkeypatch.setattr(MNIST, "hashes", hashes)
    files.update({f"/second/{name}": content for name, content in contents.items()})
    try:
        yield files, address
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def test_download_goes_on_to_the_next_mirror(
    server: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    files, _ = server
    files["/first/train-images-idx3-ubyte.gz"] = 503
    files["/first/train-labels-idx1-ubyte.gz"] = b"something else"
    data = MNIST(tmp_path / "new", download=True)
    assert len(data) == 4
    raw = tmp_path / "new" / "MNIST" / "raw"
    assert sorted(os.listdir(raw)) == sorted(MNIST.hashes)
    files.clear()
    assert len(MNIST(tmp_path / "new", download=True)) == 4  # not fetched again


def test_a_download_that_fails_everywhere_says_what_was_tried(
    server: tuple[dict[str, Any], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, address = server
    files["/second/train-images-idx3-ubyte.gz"] = b"damaged"
    gone = "http://127.0.0.1:1/"
    monkeypatch.setattr(MNIST, "mirrors", (*MNIST.mirrors, gone))
    with pytest.raises(DataError) as error:
        MNIST(tmp_path, download=True)
    message = str(error.value)
    for part in (
        "MNIST: train-images-idx3-ubyte.gz could not be downloaded; tried ",
        f"{address}/first/train-images-idx3-ubyte.gz (HTTP Error 404",
        f"{address}/second/train-images-idx3-ubyte.gz (expected sha256 ",
        f"{gone}train-images-idx3-ubyte.gz (",
        f"Put it into {tmp_path / 'MNIST' / 'raw'} by hand",
    ):
        assert part in message
    assert not list(tmp_path.rglob("*.*"))


def test_downloads_are_bounded(
    server: tuple[dict[str, Any], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "_DOWNLOAD_BYTES", 10)
    with pytest.raises(DataError, match=r"second/train-images.* \(more than 10 bytes came\)"):
        MNIST(tmp_path, download=True)
    monkeypatch.setattr(datasets, "_DOWNLOAD_SECONDS", -1)
    monkeypatch.setattr(datasets, "_DOWNLOAD_BYTES", 1 << 20)
    with pytest.raises(DataError, match=r"second/train-images.* \(not finished after -1 s\)"):
        MNIST(tmp_path, download=True)


def test_a_server_that_says_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(MNIST, "mirrors", (f"http://127.0.0.1:{silent.getsockname()[1]}/",))
        monkeypatch.setattr(datasets, "_SOCKET_SECONDS", 0.05)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(DataError, match="timed out"):
            MNIST(tmp_path, download=True)


def test_a_folder_that_cannot_be_written_is_named(
    server: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file/MNIST/raw/train-images.* cannot be written"):
        MNIST(tmp_path / "file", download=True)


def test_every_file_of_both_sets_has_a_hash_and_a_mirror() -> None:
    for kind in (MNIST, FashionMNIST):
        assert all(
            mirror.startswith("https://") and mirror.endswith("/") for mirror in kind.mirrors
        )
        for stem in ("train", "t10k"):
            for name in (f"{stem}-images-idx3-ubyte.gz", f"{stem}-labels-idx1-ubyte.gz"):
                algorithm, digest = kind.hashes[name].split(":")
                assert len(bytes.fromhex(digest)) == hashlib.new(algorithm).digest_size
        assert len(kind.classes) == 10
