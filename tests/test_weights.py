"""The weights file: what comes back, what is refused, and what survives a failed write."""

from __future__ import annotations

import collections
import hashlib
import io
import os
import pathlib
import random
import re
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import tracemalloc
import zipfile
from typing import Any

import hypothesis.extra.numpy as hnp
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_ish import weights
from tinygrad_ish.tensor import Tensor, tensor
from tinygrad_ish.weights import WeightsError, describe, load, load_metadata, save

DAMAGED = "the file is damaged or truncated: copy or download it again"
DOCS = pathlib.Path(__file__).parents[1] / "docs" / "format.md"


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "w.msgpack")


def same(found: Any, saved: Any) -> bool:
    """Equal to the bit, a tuple as a list, a NumPy scalar as an array."""
    if isinstance(saved, (np.ndarray, np.generic)):
        native = np.asarray(saved).astype(saved.dtype.newbyteorder("="), order="C")
        return (
            type(found) is np.ndarray
            and (found.dtype, found.shape) == (native.dtype, native.shape)
            and found.dtype.isnative
            and found.flags.writeable
            and found.tobytes() == native.tobytes()
        )
    if isinstance(saved, (list, tuple)):
        return type(found) is list and len(found) == len(saved) and all(map(same, found, saved))
    if isinstance(saved, dict):
        return (
            type(found) is dict
            and list(found) == list(saved)
            and all(same(found[key], saved[key]) for key in saved)
        )
    return type(found) is type(saved) and (found == saved or (found != found and saved != saved))


def rows(*pairs: tuple[Any, str]) -> list[Any]:
    return [pytest.param(value, message, id=message[:60]) for value, message in pairs]


def sealed(header: dict[str, Any] | bytes, payload: bytes = b"") -> bytes:
    """A file whose header checksum is right, whatever the header says."""
    packed = header if isinstance(header, bytes) else msgpack.packb(header)
    return packed + b"\xc4\x20" + hashlib.sha256(packed).digest() + payload


def header(**changes: Any) -> dict[str, Any]:
    """The header of a file with one tensor of 0 elements, some values replaced."""
    made = {
        "format": "tinygrad_ish",
        "version": 1,
        "kind": "weights",
        "tree": {"w": None, "b": 1},
        "tensors": [line()],
        "metadata": {},
    }
    return made | changes


def line(**changes: Any) -> dict[str, Any]:
    empty = hashlib.sha256().digest()
    return {"path": ["w"], "dtype": "float32", "shape": [0, 3], "sha256": empty} | changes


# --- what comes back ---------------------------------------------------------------------

arrays = st.builds(
    lambda array, layout: layout(array),
    hnp.arrays(
        st.sampled_from([np.dtype(name) for name in weights.DTYPES]).flatmap(
            lambda dtype: st.sampled_from([dtype, dtype.newbyteorder(">")])
        ),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    st.sampled_from(
        [np.array, np.asfortranarray, np.transpose, lambda a: a[..., ::-1] if a.ndim else a]
    ),
)
leaves = st.one_of(
    arrays,
    arrays.filter(lambda a: a.size > 0).map(lambda a: a.ravel()[0]),
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=4), inner, max_size=4),
    ),
    max_leaves=8,
)


@settings(max_examples=150)
@given(tree=trees, piece=st.sampled_from([weights.PIECE_LIMIT, 64, 128]))
def test_round_trip(tree: Any, piece: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "PIECE_LIMIT", piece)
        path = os.path.join(folder, "w")
        save(tree, path, metadata={"note": [1, None]})
        assert same(weights._read(path), tree)
        assert load_metadata(path) == {"note": [1, None]}
        assert os.listdir(folder) == ["w"]


def test_load_gives_tensors_and_numpy_arrays_where_tensors_lack_the_dtype(path: str) -> None:
    leaf = tensor(np.ones((2, 3), np.float32), requires_grad=True)
    save({"w": leaf, "n": np.int64(3), "rng": np.array([1, 2], np.uint64)}, path)
    loaded = load(path)
    assert isinstance(loaded["w"], Tensor)
    assert not loaded["w"].requires_grad
    assert loaded["n"].item() == 3
    assert loaded["n"].shape == ()
    assert type(loaded["rng"]) is np.ndarray
    loaded["w"].numpy()[0, 0] = 7  # what an optimizer does
    save(loaded, path)
    assert same(weights._read(path)["w"], np.array([[7, 1, 1], [1, 1, 1]], np.float32))


def test_tied_tensors_are_written_twice_and_dict_subclasses_become_dicts(path: str) -> None:
    w = np.arange(3.0)
    save(collections.OrderedDict(b=w, a=w), path)
    loaded = weights._read(path)
    assert list(loaded) == ["b", "a"]
    assert same(loaded, {"b": w, "a": w})
    assert not np.shares_memory(loaded["a"], loaded["b"])


def test_golden_bytes(path: str) -> None:
    """Files of version 1 stay readable, and this is one: any change here needs version 2."""
    save({"w": np.array([1, -2], np.float32), "n": 1}, path, metadata={"by": "us"})
    packed = bytes.fromhex(
        "86"
        "a6 666f726d6174 ac 74696e79677261645f697368"  # format: tinygrad_ish
        "a7 76657273696f6e 01"  # version: 1
        "a4 6b696e64 a7 77656967687473"  # kind: weights
        "a4 74726565 82 a1 77 c0 a1 6e 01"  # tree: {w: nil, n: 1}
        "a7 74656e736f7273 91 84"  # tensors
        "a4 70617468 91 a1 77"  # path: [w]
        "a5 6474797065 a7 666c6f61743332"  # dtype: float32
        "a5 7368617065 91 02"  # shape: [2]
        "a6 736861323536 c4 20"
        "ee4ac73c2bd27756ab82780f27c73a7bc4d3f0bb6acb37e008bc27eccd7e588b"
        "a8 6d65746164617461 81 a2 6279 a2 7573"  # metadata: {by: us}
    )
    assert len(packed) + 34 + 6 == 192  # so one byte of padding brings the payload to 3 * 64
    golden = sealed(packed, bytes.fromhex("c0 c6 00000008 0000803f 000000c0"))
    assert pathlib.Path(path).read_bytes() == golden


def test_every_payload_is_aligned_split_and_framed(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "PIECE_LIMIT", 128)
    sizes = [0, 1, 127, 128, 129, 300]
    save([np.full(size, size % 251, np.uint8) for size in sizes], path)
    content = pathlib.Path(path).read_bytes()
    objects = msgpack.Unpacker(io.BytesIO(content))
    objects.skip()
    objects.skip()
    pieces = []
    while (start := objects.tell()) < len(content):
        if (piece := next(objects)) is not None:
            assert content[start] == 0xC6
            assert (start + 5) % 64 == 0
            pieces.append(len(piece))
    assert pieces == [0, 1, 127, 128, 128, 1, 128, 128, 44]


def test_a_payload_over_4_gib_is_laid_out_in_pieces_that_bin_32_can_hold() -> None:
    position, lengths = 1000, []
    for lead, length in weights._pieces(position, 10 * 2**30):
        assert (position + len(lead)) % 64 == 0
        assert lead == b"\xc0" * (len(lead) - 5) + b"\xc6" + length.to_bytes(4, "big")
        position += len(lead) + length
        lengths.append(length)
    assert lengths == [2**32 - 64, 2**32 - 64, 2 * 2**30 + 128]


def test_the_documents_reader_needs_only_msgpack_and_numpy(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert "max_buffer_size" in source
    scope: dict[str, Any] = {}
    exec(source, scope)
    monkeypatch.setattr(weights, "PIECE_LIMIT", 64)
    tree = {"a": [np.arange(50, dtype=">f8").reshape(5, 10).T, {"b": np.float32(2)}], "s": "x"}
    tree |= {"empty": np.zeros((0, 2), np.int8), "last": np.zeros(0), "none": None}
    for saved in (tree, np.arange(3)):
        save(saved, path, metadata={"k": 1})
        found, metadata = scope["read"](path)
        assert metadata == {"k": 1}
        assert np.array_equal(found["a"][0], tree["a"][0]) if saved is tree else True
        save(found, path)  # so that the two readers can be compared
        assert same(weights._read(path), saved)


# --- what save refuses -------------------------------------------------------------------


def cyclic() -> list[Any]:
    made: list[Any] = []
    made.append({"again": made})
    return made


def nested(depth: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(depth - 1):
        made = [made]
    return made


class Sub(np.ndarray):
    pass


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "message"),
    rows(
        (np.ones(2, complex), "x: cannot save dtype complex128, expected one of bool, uint8,"),
        (np.ones(2, np.longdouble), f"x: cannot save dtype {np.dtype(np.longdouble)}, expected"),
        (np.array(["a"]), "x: cannot save dtype <U1, expected one of"),
        (np.str_("a"), "x: cannot save dtype <U1, expected one of"),
        (np.array([None]), "x: cannot save dtype object, expected one of"),
        (np.zeros(1, [("f", "f4")]), "x: cannot save dtype [('f', '<f4')], expected one of"),
        (np.ones(2).view(Sub), "test_weights.Sub, expected a tensor"),
        (np.ma.ones(2), "MaskedArray, expected a tensor"),
        ([{"y": {1}}], "x.0.y: a file cannot hold a builtins.set, expected a tensor, np.ndarray"),
        (Point(1, 2), "Point, expected a tensor"),
        ({"y": {2: 1}}, "x.y: the key 2 is of type int, expected str: rename it"),
        ({np.str_("y"): 1}, "is of type str_, expected str"),
        (2**64, "x: the int 0x10000000000000000 does not fit into 64 bits"),
        (-(2**63) - 1, "x: the int -0x8000000000000001 does not fit into 64 bits"),
        (10**10000, "does not fit into 64 bits"),
        ("\ud800", "cannot be packed: 'utf-8' codec can't encode character '\\ud800'"),
        (cyclic(), "x.0.again: this list contains itself"),
        (nested(64), "containers are nested more than 64 deep: flatten them"),
    ),
)
def test_save_names_what_it_cannot_save_and_writes_nothing(
    path: str, value: Any, message: str
) -> None:
    with pytest.raises(WeightsError, match=re.escape(message)):
        save({"x": value}, path)
    assert not os.listdir(os.path.dirname(path))


def test_save_asks_for_the_state_dict_of_a_module(path: str) -> None:
    class Module:
        def state_dict(self) -> dict[str, Any]:
            return {}

    with pytest.raises(WeightsError, match=r"\(the object itself\): .* save its state_dict\(\)"):
        save(Module(), path)


def test_metadata_is_a_dict_without_tensors(path: str) -> None:
    with pytest.raises(WeightsError, match=r"metadata\.a\.0: metadata cannot hold a ndarray"):
        save({}, path, metadata={"a": [np.ones(2)]})
    with pytest.raises(WeightsError, match="metadata: expected a dict or None, got list"):
        save({}, path, metadata=[])  # type: ignore[arg-type]


def test_the_deepest_tree_saves_and_loads(path: str) -> None:
    save({"x": nested(63)}, path)
    assert weights._read(path) == {"x": nested(63)}


# --- what a failed write leaves ----------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save({"w": np.arange(10)}, path)
    old = pathlib.Path(path).read_bytes()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    for name in ("_write_payload", "os.fsync", "os.replace"):
        with monkeypatch.context() as patch:
            target, attribute = (weights.os, name[3:]) if name[:3] == "os." else (weights, name)
            patch.setattr(target, attribute, interrupt)
            with pytest.raises(KeyboardInterrupt):
                save({"w": np.zeros(10)}, path)
        assert pathlib.Path(path).read_bytes() == old
        assert os.listdir(os.path.dirname(path)) == ["w.msgpack"]


def test_a_full_disk_is_told_and_leaves_the_old_file(path: str) -> None:
    save({"w": np.arange(10)}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        with pytest.raises(OSError, match=r"w\.msgpack: File too large; the file there is as"):
            save({"w": np.zeros(2**17)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert same(weights._read(path), {"w": np.arange(10)})
    assert os.listdir(os.path.dirname(path)) == ["w.msgpack"]


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True
    )


def test_a_killed_write_leaves_the_old_file(path: str) -> None:
    save({"w": np.arange(10)}, path)
    done = run(
        """
        import os, signal, sys
        import numpy as np
        from tinygrad_ish import weights

        write = weights._write_payload

        def write_and_die(file, array):
            write(file, array)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        weights._write_payload = write_and_die
        weights.save({"w": np.zeros(10), "v": np.zeros(10)}, sys.argv[1])
        """,
        path,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert same(weights._read(path), {"w": np.arange(10)})


def test_permission_bits_and_links_are_kept(path: str) -> None:
    before = os.umask(0o027)
    try:
        save({}, path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640
    os.chmod(path, 0o604)
    link = path + ".link"
    os.symlink(path, link)
    save({"new": 1}, link)
    assert os.path.islink(link)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o604
    assert weights._read(path) == {"new": 1}


def test_where_nothing_can_be_written(path: str) -> None:
    folder = os.path.dirname(path)
    with pytest.raises(IsADirectoryError, match="it is a folder: name a file in it"):
        save({}, folder)
    with pytest.raises(
        FileNotFoundError, match=r"/no does not exist: create it first, e\.g\. with"
    ):
        save({}, os.path.join(folder, "no", "w"))
    os.mkfifo(path)
    with pytest.raises(OSError, match="it is a device or a pipe: name a regular file"):
        save({}, path)
    assert os.listdir(folder) == ["w.msgpack"]


def test_a_read_only_folder_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)  # root may write anywhere: be nobody for a moment
        try:
            with pytest.raises(PermissionError, match="Permission denied: check the permissions"):
                save({}, os.path.join(folder, "w"))
        finally:
            if root:
                os.seteuid(0)
        os.chmod(folder, 0o755)
        assert not os.listdir(folder)


# --- what load refuses -------------------------------------------------------------------


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("victim") / "w"
    flags = np.array([True, False])
    save({"a": np.arange(5, dtype=np.float32), "b": [flags, "s"]}, path, metadata={"k": 1.5})
    return path.read_bytes()


def refused(content: bytes, path: str) -> str:
    pathlib.Path(path).write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        weights._read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < len(path) + 1000
    return str(caught.value)


def test_every_flipped_bit_and_every_truncation_is_found(victim: bytes, path: str) -> None:
    for i in range(len(victim)):
        flipped = bytearray(victim)
        flipped[i] ^= 1 << (i % 8)
        refused(bytes(flipped), path)
        refused(victim[:i], path)


def test_random_corruptions_are_found(victim: bytes, path: str) -> None:
    draw = random.Random(0)
    for _ in range(1000):
        start, stop = sorted(draw.choices(range(len(victim) + 1), k=2))
        stop = min(stop, start + draw.choice([0, 1, 8, 64]))
        filler = draw.choice([b"", b"\xc0", b"\0", draw.randbytes(1), draw.randbytes(64)])
        filler = draw.choice([filler, victim[start:stop] * 2])
        corrupt = victim[:start] + filler + victim[stop:]
        if corrupt != victim:
            refused(corrupt, path)


def test_corrupt_headers_with_a_right_checksum_raise_nothing_but_weights_error(
    victim: bytes, path: str
) -> None:
    draw = random.Random(1)
    unpacker = msgpack.Unpacker(io.BytesIO(victim))
    unpacker.skip()
    packed, rest = victim[: unpacker.tell()], victim[unpacker.tell() + 34 :]
    loaded = 0
    for _ in range(2000):
        corrupt = bytearray(packed)
        for _ in range(draw.choice([1, 1, 2, 5])):
            corrupt[draw.randrange(20, len(packed))] = draw.choice(
                [draw.randrange(256), 0x90, 0xC0, 0xC7, 0xD6, 0xDD, 0xDF, 0xFF, 0x7F]
            )
        pathlib.Path(path).write_bytes(sealed(bytes(corrupt), rest))
        try:
            weights._read(path)
            describe(path)
            loaded += 1  # another name or number, in good form
        except WeightsError as error:
            assert len(str(error)) < 2000
    assert loaded > 10


START = b"\x86\xa6format\xactinygrad_ish\xa7version\x01\xa4kind\xa7weights\xa4tree"


@pytest.mark.parametrize(
    ("content", "message"),
    rows(
        # the container
        (b"", f"it is empty: {DAMAGED}"),
        (b"hello", "it is not a tinygrad_ish file, or its first bytes are damaged: check the path"),
        (msgpack.packb(header())[:-3], f"the file ends inside its header: {DAMAGED}"),
        (START + b"\xc1", "the header is not valid msgpack"),
        (START + b"\x91" * 2000, "the header is not valid msgpack"),
        (START + b"\xdd\xff\xff\xff\xff" * 900, "the file ends inside its header"),
        (START + b"\xdf\xff\xff\xff\xff" + b"\xa1a\xc0" * 9, "the file ends inside its header"),
        (START + b"\xc6\xff\xff\xff\xff" + b"ab", "the file ends inside its header"),
        (msgpack.packb(header()), f"the header does not match its checksum: {DAMAGED}"),
        (sealed(header(), bytes(9)), "its header demands a file of"),
        (sealed(header(tensors=[]), b"\xc0"), "its header demands a file of"),
        # the header
        (
            sealed(header(version=2, more=1)),
            "it is of format version 2, this tinygrad_ish reads 1: it was written by a newer "
            "version: upgrade tinygrad_ish",
        ),
        (sealed(header(version=0)), "the header does not give its version"),
        (sealed(header(version=True)), "the header does not give its version"),
        (sealed(header(version=nested(500))), "the header does not give its version"),
        (
            sealed(b"\x93" + START[1:29]),
            "the header does not give its version",
        ),
        (
            sealed(header(more=1)),
            "'metadata', 'more', 'tensors', 'tree', 'version'], not ['format'",
        ),
        (
            sealed(header(kind="recipe")),
            "it is of the kind 'recipe', expected one of weights, program",
        ),
        (sealed(header(tensors={})), "the header's tensors are not an array"),
        (sealed(header(metadata=[])), "the header's tensors are not an array, or its metadata"),
        (
            sealed(msgpack.packb(header()).replace(b"\xa1b\x01", b"\xa1w\x01")),
            "the header has a map with the key 'w' twice",
        ),
        (
            sealed(msgpack.packb(header()).replace(b"\xa1b\x01", b"\xc4\x01b\x01")),
            "the header has a map with the key b'b' that is not a str",
        ),
        (
            sealed(msgpack.packb(header()).replace(b"\xa1b\x01", b"\x01\x01")),
            "the header is not valid msgpack (int is not allowed for map key",
        ),
        (
            sealed(msgpack.packb(header()).replace(b"\xa1b\x01", b"\xa1\xff\x01")),
            "the header is not valid msgpack ('utf-8' codec can't decode byte 0xff",
        ),
        (
            sealed(header(metadata={"x": msgpack.ExtType(5, b"ab")})),
            f"the header holds the msgpack extension type 5: {DAMAGED}",
        ),
        (
            sealed(header(metadata={"x": msgpack.Timestamp(1)})),
            "metadata.x: a file cannot hold a msgpack.ext.Timestamp",
        ),
        (sealed(header(tree=nested(65))), "containers are nested more than 64 deep"),
        (sealed(header(tensors=[nested(500)])), "containers are nested more than 64 deep"),
        # the tensors' lines
        (sealed(header(tensors=[1])), "tensor number 0: expected a map of"),
        (sealed(header(tensors=[line(more=1)])), "tensor number 0: expected a map of"),
        (sealed(header(tensors=[line(path="w")])), "tensor number 0: expected a path of str and"),
        (sealed(header(tensors=[line(path=[None])])), "tensor number 0: expected a path of str"),
        (sealed(header(tensors=[line(path=["v"])])), "tensor 'v': the tree has no such place: no"),
        (
            sealed(header(tree=[None], tensors=[line(path=[-1])])),
            "tensor '-1': the tree has no such place: no -1",
        ),
        (
            sealed(header(tree=[None], tensors=[line(path=[False])])),
            "tensor number 0: expected a path of str and int, found [False]",
        ),
        (
            sealed(header(tensors=[line(path=["w", "x"])])),
            "tensor 'w.x': the tree has no such place: no 'x'",
        ),
        (sealed(header(tensors=[line(path=["b"])])), "tensor 'b': its place in the tree is not ni"),
        (sealed(header(tensors=[line(), line()])), "tensor 'w': its place in the tree is not nil"),
        (
            sealed(header(tree=None, tensors=[line(path=[]), line(path=[])])),
            "tensor '(the object itself)': its place in the tree is not nil",
        ),
        (sealed(header(tensors=[line(dtype="object")])), "found 'object'"),
        (
            sealed(header(tensors=[line(dtype="<f4")])),
            "tensor 'w': expected a dtype of bool, uint8",
        ),
        (sealed(header(tensors=[line(dtype=["float32"])])), "found ['float32']"),
        (sealed(header(tensors=[line(dtype="long" * 10**5)])), "found 'longlong"),
        (sealed(header(tensors=[line(dtype="\x1b[2J")])), r"found '\x1b[2J'"),
        (
            sealed(header(tensors=[line(shape=[-1])])),
            "tensor 'w': expected a shape of at most 64 non-negative ints, fewer than 2**63 bytes "
            "in all, found [-1]",
        ),
        (sealed(header(tensors=[line(shape=[True])])), "found [True]"),
        (sealed(header(tensors=[line(shape=[2.0])])), "found [2.0]"),
        (sealed(header(tensors=[line(shape=3)])), "found 3"),
        (sealed(header(tensors=[line(shape=[1] * 65)])), "tensor 'w': expected a shape of at most"),
        (sealed(header(tensors=[line(shape=[2**32, 2**32])])), "found [4294967296, 4294967296]"),
        (sealed(header(tensors=[line(shape=[0, 2**63])])), "found [0, 9223372036854775808]"),
        (
            sealed(header(tensors=[line(shape=[10**6, 10**6])])),
            "tensor 'w': float32 of shape (1000000, 1000000) takes 4,000,000,000,000 bytes, the "
            "whole file has ",
        ),
        (sealed(header(tensors=[line(sha256=bytes(31))])), "expected a sha256 of 32 bytes"),
        (sealed(header(tensors=[line(sha256="x" * 32)])), "expected a sha256 of 32 bytes"),
    ),
)
def test_hostile_files(path: str, content: bytes, message: str) -> None:
    assert message in refused(content, path)


def test_headers_too_long_or_too_full(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "HEADER_LIMIT", 1000)
    monkeypatch.setattr(weights, "CONTAINER_LIMIT", 100)
    containers = "the header holds more than 100 lists and dicts: keep numbers in arrays"
    length = "bytes, expected at most 1,000: keep long lists, str and bytes in arrays"
    for tree, message in (([[]] * 100, containers), ([0] * 1000, length)):
        with pytest.raises(WeightsError, match=message):
            save(tree, path)
        assert message in refused(sealed(header(tree=tree, tensors=[])), path)
    long = START + b"\xc6\xff\xff\xff\xff" + bytes(2000)
    assert "the header is not valid msgpack, or too long" in refused(long, path)


def framed(packed: bytes, payload: bytes, pad: bytes = b"\xc0") -> bytes:
    gap = -(len(packed) + 5) % 64
    return packed + pad * gap + b"\xc6" + len(payload).to_bytes(4, "big") + payload


def test_hostile_payloads(path: str) -> None:
    payload = b"\0\2"
    digest = hashlib.sha256(payload).digest()
    packed = sealed(header(tensors=[line(dtype="bool", shape=[2], sha256=digest)]))
    assert "tensor 'w': it is of dtype bool and has a byte that is" in refused(
        framed(packed, payload), path
    )
    assert f"tensor 'w': expected the sha256 {digest.hex()}, found " in refused(
        framed(packed, b"\0\1"), path
    )
    other = framed(packed, payload, pad=b"\0")
    assert "before its bytes, found 00" in refused(other, path)


@pytest.mark.parametrize(
    ("start", "name", "remedy"),
    [
        (
            b"\x80\x04\x95\x10\0\0\0",
            "a pickle (it could run any code)",
            "tinygrad_ish.save(torch.load('FILE', map_location='cpu', weights_only=True), ",
        ),
        (b"\x93NUMPY\x01\0", "a NumPy .npy file", "np.savez"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "then save() its arrays"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer", "git lfs pull"),
        # those that load reads, where only ours will do
        (
            (48).to_bytes(8, "little")
            + b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'[:48]
            + b"a",
            "a safetensors file",
            "tinygrad_ish.load() reads it, and `tinygrad-ish convert` makes one of ours of it",
        ),
        # What flax.serialization.to_bytes makes of {"params": {"w": float32[1, 2]}}.
        (
            bytes.fromhex("81a6706172616d7381a177c71501939102a7666c6f61743332c4080000803f00000040"),
            "a Flax msgpack file",
            "tinygrad_ish.load() reads it",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_foreign_files_are_named(path: str, start: bytes, name: str, remedy: str) -> None:
    message = refused(start, path)
    assert f"it is {name}" in message
    assert remedy in message


@pytest.mark.parametrize(
    ("member", "name"),
    [
        ("net/data.pkl", "a PyTorch checkpoint"),
        ("w.npy", "a NumPy .npz archive"),
        ("x", "a zip archive"),
    ],
)
def test_zip_archives_are_named(path: str, member: str, name: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"")
    assert f"it is {name}" in refused(pathlib.Path(path).read_bytes(), path)


def test_load_names_a_missing_file_and_a_folder(path: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such file; the working folder is"):
        load(path)
    with pytest.raises(OSError, match="it is a folder, a device or a pipe, expected a file"):
        load(os.path.dirname(path))


def test_memory(path: str) -> None:
    """A file that claims 10**12 elements, and a real one, with little memory to be had."""
    claim = path + ".claim"
    pathlib.Path(claim).write_bytes(sealed(header(tensors=[line(shape=[10**12])])))
    save({"w": np.ones(2**22, np.float32), "v": np.ones(2**22, np.float32)}, path)
    done = run(
        """
        import resource, sys
        from tinygrad_ish import weights

        def limit(megabytes):
            pages = int(open("/proc/self/statm").read().split()[0])
            most = pages * resource.getpagesize() + megabytes * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

        limit(8)
        try:
            weights._read(sys.argv[1])
        except weights.WeightsError as error:
            print(error)
        try:
            weights._read(sys.argv[2])
        except MemoryError:
            print("the limit is felt")
        limit(40)
        print(sum(array.sum() for array in weights._read(sys.argv[2]).values()) == 2**23)
        """,
        claim,
        path,
    )
    assert done.stderr == ""
    first, *others = done.stdout.splitlines()
    assert "takes 4,000,000,000,000 bytes, the whole file has" in first
    assert others == ["the limit is felt", "True"]


# --- describe ----------------------------------------------------------------------------


def test_describe(path: str) -> None:
    tree = {
        "fc": {"weight": np.array([[1, 2, 6]], np.float32)},
        "steps": [np.int64(9)],
        "none": np.zeros((0, 4)),
        "x\x1b[2J": np.array([np.inf, -np.inf, 0]),
    }
    save(tree, path, metadata={"accuracy": 0.5, "note": "\x1b[2J"})
    size = os.path.getsize(path)
    assert describe(path)[0].splitlines() == [
        f"{path}: tinygrad_ish weights, format version 1, {size:,} bytes",
        "  accuracy: 0.5",
        r"  note: '\x1b[2J'",
        "tensor      dtype    shape   bytes  sha256  min   max  mean",
        "fc.weight   float32  (1, 3)  12     ok      1     6    3",
        "steps.0     int64    ()      8      ok",
        "none        float64  (0, 4)  0      ok",
        r"'x\x1b[2J'  float64  (3,)    24     ok      -inf  inf  nan",
        "4 tensors, 7 parameters",
    ]


@pytest.mark.parametrize("offset", [0, -1], ids=["payload", "length"])
def test_describe_marks_the_damaged_tensor_and_goes_on(
    victim: bytes, path: str, offset: int
) -> None:
    content = bytearray(victim)
    content[content.index(np.arange(5, dtype="<f4").tobytes()) + offset] ^= 1
    pathlib.Path(path).write_bytes(content)
    assert describe(path)[0].splitlines()[2:] == [
        "tensor  dtype    shape  bytes  sha256  min  max  mean",
        "a       float32  (5,)   20     BAD",
        "b.0     bool     (2,)   2      ok",
        "2 tensors, 7 parameters",
        f"1 of 2 tensors BAD: {DAMAGED}",
    ]


def test_describe_holds_one_tensor_at_a_time(path: str) -> None:
    save([np.ones(2**18, np.float32) for _ in range(9)], path)
    describe(path)
    tracemalloc.start()
    try:
        describe(path)
        assert tracemalloc.get_traced_memory()[1] < 3 * 2**20
    finally:
        tracemalloc.stop()


def test_a_path_is_a_name_and_pytorchs_options_of_load_are_taken(path: str) -> None:
    save({"w": np.ones(2, np.float32)}, path)
    assert load(path, map_location="cpu", weights_only=True)["w"].tolist() == [1.0, 1.0]
    with open(path, "rb") as file:
        for call in (lambda: load(file), lambda: save({}, file)):
            with pytest.raises(
                TypeError, match=r"path: expected a name such as 'weights\.msgpack', got"
            ):
                call()
