"""Other people's files: what comes back, what their libraries make of ours, what is refused."""

from __future__ import annotations

import collections
import contextlib
import io
import itertools
import json
import pathlib
import pickle
import random
import re
import struct
import tempfile
import tracemalloc
import zipfile
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ish as tg
from tinygrad_ish import formats, weights
from tinygrad_ish.__main__ import main
from tinygrad_ish.formats import flatten_dict, flax, npz, safetensors, unflatten_dict
from tinygrad_ish.weights import WeightsError

MODULES = {"safetensors": safetensors, "flax": flax, "npz": npz}
EXTENSIONS = {name: ext for ext, name in formats.EXTENSIONS.items()}
DOCS = pathlib.Path(__file__).parents[1] / "docs" / "formats.md"
NO_SAFETENSORS = "safetensors is not installed: pip install -e '.[parity]'"
NO_TORCH = "PyTorch is not installed: pip install -e '.[parity]'"
NO_FLAX = "Flax is not installed: pip install flax"


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "file")


def native(array: Any) -> np.ndarray:
    """The array in this machine's byte order, laid out in C order."""
    array = np.asarray(array)
    return array.astype(array.dtype.newbyteorder("="), order="C")


def same(found: Any, saved: Any) -> bool:
    """Equal to the bit, in native byte order, writable."""
    if isinstance(saved, dict):
        return (
            type(found) is dict
            and found.keys() == saved.keys()
            and all(same(found[key], saved[key]) for key in saved)
        )
    if not isinstance(saved, (np.ndarray, np.generic)):
        return type(found) is type(saved) and (found == saved or saved != saved)
    expected = native(saved)
    return (
        type(found) is np.ndarray
        and (found.dtype, found.shape) == (expected.dtype, expected.shape)
        and found.dtype.isnative
        and found.flags.writeable
        and found.flags.c_contiguous
        and found.tobytes() == expected.tobytes()
    )


def every_dtype() -> dict[str, Any]:
    """Arrays of every dtype, every bit pattern of a byte in them; NaNs with payloads, -0.0 and
    denormals among the floats, empty and 0-d ones, big-endian and strided ones."""
    made: dict[str, Any] = {}
    for name in weights.DTYPES:
        dtype = np.dtype(name)
        if name == "bool":
            array = np.arange(24) % 3 == 0
        else:
            array = np.arange(256, dtype=np.uint8).repeat(3)[:720].view(dtype)
        made[f"{name}.plain"] = array
        made[f"{name}.turned"] = array[:24].reshape(4, 6).T
        made[f"{name}.big"] = array.astype(dtype.newbyteorder(">")).reshape(2, -1)[:, ::-2]
        made[f"{name}.scalar"] = array[1:2].reshape(())
        made[f"{name}.empty"] = np.zeros((0, 3), dtype)
    for name, code in (("float16", "u2"), ("float32", "u4"), ("float64", "u8")):
        bits = 8 * np.dtype(name).itemsize
        exponent = {16: 0x7C00, 32: 0x7F800000, 64: 0x7FF0 << 48}[bits]
        patterns = [0, 1, 1 << bits - 1, exponent, exponent | 1, exponent | 5 | 1 << bits - 1]
        made[f"{name}.special"] = np.array(patterns, code).view(name)
    return made


# --- what comes back ---------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_every_dtype_comes_back_to_the_bit(path: str, name: str) -> None:
    tensors = every_dtype()
    MODULES[name].save_file(tensors, path)
    assert same(MODULES[name].load_file(path), tensors)
    MODULES[name].save_file({}, path)
    assert MODULES[name].load_file(path) == {}


@pytest.mark.parametrize("route", [
    ["safetensors", "flax", "npz"], ["npz", "safetensors", "flax"], ["flax", "npz", "safetensors"],
], ids="-".join)  # fmt: skip
def test_conversions_move_every_bit_and_the_metadata(
    tmp_path: pathlib.Path, route: list[str]
) -> None:
    tensors = every_dtype()
    files = [str(tmp_path / f"{i}{EXTENSIONS[name]}") for i, name in enumerate(route)]
    files = [str(tmp_path / "first.msgpack"), *files, str(tmp_path / "last.msgpack")]
    weights.save(tensors, files[0], {"epochs": 3, "by": "us"})
    for source, target in itertools.pairwise(files):
        formats.convert(source, target)
    assert same(weights._read(files[-1]), tensors)
    formats.convert(files[0], str(tmp_path / "m.safetensors"))
    formats.convert(str(tmp_path / "m.safetensors"), files[-1])
    assert weights.load_metadata(files[-1]) == {"epochs": "3", "by": "us"}


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=".\0"), max_size=6)
arrays = st.builds(
    lambda name, raw, shape, layout: layout(
        (raw % 2 if name == "bool" else raw)
        .view(name)[: int(np.prod(shape))]
        .reshape(shape)
    ),
    st.sampled_from(weights.DTYPES),
    st.binary(min_size=512, max_size=512).map(lambda b: np.frombuffer(b, np.uint8).copy()),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from([
        np.array, np.asfortranarray, np.transpose, lambda a: a[..., ::-1] if a.ndim else a,
        lambda a: a.astype(a.dtype.newbyteorder(">")),
    ]),
)  # fmt: skip


@settings(max_examples=50)
@given(tensors=st.dictionaries(names.filter(lambda n: n != "__metadata__"), arrays, max_size=4))
def test_round_trip(tensors: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, module in MODULES.items():
            path = f"{folder}/{name}"
            module.save_file(tensors, path)
            assert same(module.load_file(path), tensors)


leaves = st.one_of(arrays, st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(),
                   st.complex_numbers(), st.text(max_size=3), st.binary(max_size=3))  # fmt: skip
trees = st.dictionaries(
    names, st.recursive(leaves, lambda inner: st.dictionaries(names, inner, max_size=3)), max_size=3
)


@settings(max_examples=50)
@given(tree=trees, chunk=st.sampled_from([flax.CHUNK_BYTES, 1, 24]))
def test_flax_trees_come_back_in_chunks_too(tree: dict[str, Any], chunk: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(flax, "CHUNK_BYTES", chunk)
        flax.save_file(tree, f"{folder}/x")
        assert same(flax.load_file(f"{folder}/x"), tree)


def test_flax_containers_become_maps_as_in_to_bytes(path: str) -> None:
    point = collections.namedtuple("point", "x y")
    flax.save_file({"l": [1, (2, np.float32(3))], "p": point(4, None)}, path)
    found = flax.load_file(path)
    assert same(found, {"l": {"0": 1, "1": {"0": 2, "1": np.float32(3)}}, "p": {"x": 4, "y": None}})


def test_tensors_are_saved_and_one_under_two_names_comes_back_twice(path: str) -> None:
    w = tg.tensor([[1.0, 2.0]], requires_grad=True)
    for module in MODULES.values():
        module.save_file({"a": w, "b": w.T}, path)
        loaded = tg.load(path)
        assert isinstance(loaded["b"], tg.Tensor)
        assert loaded["a"].tolist() == [[1, 2]]
        assert loaded["b"].tolist() == [[1], [2]]
        loaded["a"].numpy()[:] = 7
        assert loaded["b"].tolist() == [[1], [2]]


def test_a_models_state_dict_travels(path: str) -> None:
    model = tg.nn.Sequential(tg.nn.Linear(3, 4), tg.nn.ReLU(), tg.nn.Linear(4, 2))
    other = tg.nn.Sequential(tg.nn.Linear(3, 4), tg.nn.ReLU(), tg.nn.Linear(4, 2))
    for module in (safetensors, npz):
        module.save_file(model.state_dict(), path)
        other.load_state_dict(tg.load(path))
    flax.save_file(unflatten_dict(model.state_dict()), path)
    tree = tg.load(path)
    assert set(tree) == {"0", "2"}
    other.load_state_dict(flatten_dict(tree))
    assert (other[0].weight == model[0].weight).all()


@pytest.mark.parametrize("name", MODULES)
def test_load_goes_by_content(tmp_path: pathlib.Path, name: str) -> None:
    path = tmp_path / "weights.msgpack"
    MODULES[name].save_file({"w": np.ones(2, np.float32), "n": np.ones(2, np.uint32)}, path)
    loaded = tg.load(path)
    assert loaded["w"].tolist() == [1, 1]
    assert isinstance(loaded["n"], np.ndarray)  # as load does for ours


def test_bfloat16_becomes_float32_exactly(path: str) -> None:
    bits = np.array([0x0000, 0x8000, 0x3F80, 0x0001, 0x7F80, 0x7F81, 0xFFC1, 0x4049], np.uint16)
    expected = {"w": (bits.astype(np.uint32) << 16).view(np.float32).reshape(2, 4)}
    header = b'{"w":{"dtype":"BF16","shape":[2,4],"data_offsets":[0,16]}}      '
    theirs = struct.pack("<Q", len(header)) + header + bits.tobytes()
    pathlib.Path(path).write_bytes(theirs)
    assert same(safetensors.load_file(path), expected)
    assert "bfloat16" in formats.describe(path)[0]
    note = "1 tensors of bfloat16 became float32"
    assert note in formats.convert(path, path + ".npz")
    inner = msgpack.packb([[2, 4], "bfloat16", bits.tobytes()])
    pathlib.Path(path).write_bytes(msgpack.packb({"w": msgpack.ExtType(1, inner)}))
    assert same(flax.load_file(path), expected)


def test_golden_safetensors(path: str) -> None:
    safetensors.save_file({"b": np.array([1, -2], np.float32), "a": np.int64(3)}, path, {"k": "é"})
    digests = (
        r"{\"a\":\"35be322d094f9d154a8aba4733b8497f180353bd7ae7b0a15f90b586b549f28b\","
        r"\"b\":\"ee4ac73c2bd27756ab82780f27c73a7bc4d3f0bb6acb37e008bc27eccd7e588b\"}"
    )
    header = (
        f'{{"__metadata__":{{"k":"é","tinygrad_ish.sha256":"{digests}"}},'
        '"a":{"dtype":"I64","shape":[],"data_offsets":[0,8]},'
        '"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}'
    ).encode()
    header += b" " * (-len(header) % 8)
    data = bytes.fromhex("0300000000000000 0000803f 000000c0")
    assert pathlib.Path(path).read_bytes() == struct.pack("<Q", len(header)) + header + data
    assert safetensors.load_metadata(path) == {"k": "é"}


@pytest.mark.parametrize(
    ("tree", "golden"),
    [
        (
            {"params": {"w": np.array([1, 2], np.float32)}},
            "81a6706172616d7381a177c71501939102a7666c6f61743332c4080000803f00000040",
        ),
        ({"s": np.float32(1.5)}, "81a173d8039390a7666c6f61743332c4040000c03f"),
        ({"c": 1 - 2j}, "81a163c7130292cb3ff0000000000000cbc000000000000000"),
        ({"n": 3, "x": 0.5, "o": None}, "83a16e03a178cb3fe0000000000000a16fc0"),
    ],
    ids=["array", "scalar", "complex", "plain"],
)
def test_golden_flax(path: str, tree: dict[str, Any], golden: str) -> None:
    flax.save_file(tree, path)
    assert pathlib.Path(path).read_bytes().hex() == golden
    assert same(flax.load_file(path), tree)


def test_golden_flax_chunks(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flax, "CHUNK_BYTES", 4)
    flax.save_file({"w": np.array([[1], [2], [3]], ">i2")}, path)

    def chunk(*values: int) -> msgpack.ExtType:
        data = np.array(values, "<i2").tobytes()
        return msgpack.ExtType(1, msgpack.packb([[len(values)], "int16", data]))

    parts = {"0": chunk(1, 2), "1": chunk(3)}
    golden = {"__msgpack_chunked_array__": True, "shape": {"0": 3, "1": 1}, "chunks": parts}
    assert pathlib.Path(path).read_bytes() == msgpack.packb({"w": golden})


# --- what theirs and ours make of each other ---------------------------------------------


def test_the_safetensors_library_agrees(path: str) -> None:
    theirs = pytest.importorskip("safetensors.numpy", reason=NO_SAFETENSORS)
    tensors = {name: native(array) for name, array in every_dtype().items()}
    safetensors.save_file(tensors, path)
    assert same({k: native(v) for k, v in theirs.load_file(path).items()}, tensors)
    ours = pathlib.Path(path).read_bytes()
    digests = json.loads(ours[8 : 8 + int.from_bytes(ours[:8], "little")])["__metadata__"]
    theirs.save_file(tensors, path, digests)
    assert pathlib.Path(path).read_bytes() == ours
    theirs.save_file(tensors, path)  # without checksums
    assert same(safetensors.load_file(path), tensors)
    assert "no checksum" in formats.describe(path)[0]


def test_pytorch_state_dicts_come_and_go(path: str) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    theirs = pytest.importorskip("safetensors.torch", reason=NO_SAFETENSORS)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state = {name: t.detach().clone() for name, t in model.state_dict().items()}
    expected = {name: t.numpy() for name, t in state.items()}
    theirs.save_file(state, path)
    assert same(safetensors.load_file(path), expected)
    np.savez(path + ".npz", **{name: t.numpy() for name, t in state.items()})
    assert same(npz.load_file(path + ".npz"), expected)
    safetensors.save_file(expected, path)
    model.load_state_dict(theirs.load_file(path))
    npz.save_file(expected, path)
    with np.load(path, allow_pickle=False) as archive:
        model.load_state_dict({name: torch.from_numpy(archive[name]) for name in archive.files})
    half = torch.tensor([1.5, -0.0, 3e-39, float("nan")], dtype=torch.bfloat16)
    theirs.save_file({"w": half}, path)
    assert same(safetensors.load_file(path), {"w": half.float().numpy()})


def test_the_command_that_a_refused_checkpoint_gets_is_right(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    state = torch.nn.Linear(3, 4).state_dict()
    monkeypatch.chdir(tmp_path)
    for zipped in (True, False):
        torch.save(state, "net.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(WeightsError, match="could run any code") as caught:
            tg.load("net.pt")
        command = str(caught.value).partition("where PyTorch is: ")[2]
        exec(command.replace("FILE", "net.pt"))
        assert same(weights._read("net.pt.msgpack"), {k: v.numpy() for k, v in state.items()})


@pytest.mark.parametrize("compress", [False, True])
def test_numpy_agrees(path: str, compress: bool) -> None:
    tensors = every_dtype()
    write = np.savez_compressed if compress else np.savez
    with open(path, "wb") as file:
        write(file, **tensors)
    assert same(npz.load_file(path), tensors)
    npz.save_file(tensors, path)
    with np.load(path, allow_pickle=False) as archive:
        assert same({name: native(archive[name]) for name in archive.files}, tensors)
    buffer = io.BytesIO()
    np.savez(buffer, **{name: native(array) for name, array in tensors.items()})
    assert pathlib.Path(path).read_bytes() == buffer.getvalue()


def test_flax_agrees(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    serialization = pytest.importorskip("flax.serialization", reason=NO_FLAX)
    jnp = pytest.importorskip("jax.numpy", reason=NO_FLAX)
    plain = {name: native(array) for name, array in every_dtype().items()}
    tree = {"params": unflatten_dict(plain), "n": 3, "c": 1j, "s": np.float32(2), "l": [1, "x"]}
    for chunk in (flax.CHUNK_BYTES, 100):
        monkeypatch.setattr(flax, "CHUNK_BYTES", chunk)
        monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", chunk)
        flax.save_file(tree, path)
        assert pathlib.Path(path).read_bytes() == serialization.to_bytes(tree)
        restored = serialization.msgpack_restore(pathlib.Path(path).read_bytes())
        assert same(flatten_dict(restored["params"]).keys(), plain.keys())
    halves = {"w": jnp.arange(5, dtype=jnp.bfloat16)}
    pathlib.Path(path).write_bytes(serialization.to_bytes(halves))
    assert same(flax.load_file(path), {"w": np.arange(5, dtype=np.float32)})
    # Flax itself loses the byte order.
    flax.save_file({"w": np.array([1, 2], ">f4")}, path)
    restored = serialization.msgpack_restore(pathlib.Path(path).read_bytes())
    assert restored["w"].tolist() == [1, 2]


# --- names ---------------------------------------------------------------------------------


def test_flat_and_nested_names() -> None:
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": [3, {"f": 4}], "none": {}}
    flat = flatten_dict(tree)
    assert flat == {"a.b": 1, "a.c.d": 2, "e.0": 3, "e.1.f": 4, "none": {}}
    assert unflatten_dict(flat) == tree | {"e": {"0": 3, "1": {"f": 4}}}


@pytest.mark.parametrize(
    ("function", "tree", "message"),
    [
        (flatten_dict, {"a.b": 1, "a": {"b": 2}}, "a.b: two tensors have this name"),
        (flatten_dict, 3, "expected a dict of tensors, got int: give its tensors names"),
        (unflatten_dict, {"a": 1, "a.b": 2}, "a.b: another tensor's name is the beginning of this"),
        (unflatten_dict, {"a.b": 2, "a": 1}, "a: another tensor's name is the beginning of this"),
        (unflatten_dict, {"a": {}, "a.b": 2}, "a.b: another tensor's name is the beginning"),
        (unflatten_dict, {"a.b": {}, "a.b.c.d": 2}, "a.b.c.d: another tensor's name is the"),
    ],
)
def test_names_that_collide(function: Any, tree: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=re.escape(message)):
        function(tree)


def test_a_tree_that_contains_itself() -> None:
    tree: dict[str, Any] = {}
    tree["again"] = tree
    with pytest.raises(WeightsError, match="nested more than 64 deep, or one contains itself"):
        flatten_dict(tree)


# --- what save_file refuses ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "tree", "message"),
    [
        *((module, {"x": np.ones(2, complex)}, "x: cannot save dtype complex128, expected one of")
          for module in MODULES.values()),
        *((module, {"x": np.array(["a"])}, "x: cannot save dtype <U1")
          for module in MODULES.values()),
        *((module, {"x": np.zeros(1, [("f", "f4")])}, "x: cannot save dtype [('f', '<f4')], expect")
          for module in MODULES.values()),
        *((module, {1: np.ones(1)}, "the key 1" if module is flax else "the name 1")
          for module in MODULES.values()),
        *((module, {"\ud800": np.ones(1)}, "half of a surrogate pair is no character")
          for module in MODULES.values()),
        (safetensors, {"x": {"y": np.ones(1)}}, "x: this format holds no dict: give tinygrad_ish."),
        (npz, {"x": 3}, "x: this format holds tensors only, got int: put it in an array, or leave"),
        (npz, [], "tensors: expected a dict, got list"),
        (npz, {"a\0b": np.ones(1)}, "a zip archive cannot hold this name"),
        (safetensors, {"__metadata__": np.ones(1)}, "the format keeps this name for itself"),
        (flax, [1], "a Flax file holds a dict, got list"),
        (flax, {"x": {"__msgpack_chunked_array__": 1}}, "x: the format keeps the key __msgpack"),
        (flax, {"x": 2**64}, "x: it cannot be packed"),
        (flax, {"x": {1, 2}}, "x: a file cannot hold a builtins.set"),
    ],
)  # fmt: skip
def test_save_file_names_what_it_cannot_save_and_writes_nothing(
    tmp_path: pathlib.Path, module: Any, tree: Any, message: str
) -> None:
    with pytest.raises(WeightsError, match=re.escape(message)):
        module.save_file(tree, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_safetensors_metadata_are_str(path: str) -> None:
    with pytest.raises(WeightsError, match="the metadata's k: expected a str, got int"):
        safetensors.save_file({}, path, {"k": 1})  # type: ignore[dict-item]


# --- what load refuses -----------------------------------------------------------------------


def refused(content: bytes, path: str, module: Any) -> str:
    pathlib.Path(path).write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        module.load_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < len(path) + 1000
    return str(caught.value)


def rows(*pairs: tuple[Any, str]) -> list[Any]:
    return [pytest.param(value, message, id=message[:60]) for value, message in pairs]


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes


def framed(header: Any, data: bytes = bytes(4)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ONE = json.dumps(entry()).encode()


@pytest.mark.parametrize(("content", "message"), rows(
    # what the safetensors library lets pass
    (framed(b'{"a":' + ONE + b',"a":' + ONE + b"}"), "the header has the name 'a' twice"),
    (framed(b' {"a":' + ONE + b"}"), "the header is not one JSON object, from its first byte"),
    (framed({"a": entry(more=1)}), "tensor 'a': expected a map of ['data_offsets', 'dtype', "),
    (framed(b'{"a":{"dtype":"F32","dtype":"F32"}}'), "the header has the name 'dtype' twice"),
    # what it refuses
    (b"", "a safetensors header of 0 bytes does not fit into the file's 0"),
    (struct.pack("<Q", 10**12) + b"{}", "a safetensors header of 1,000,000,000,000 bytes does"),
    (framed(b'{"a":' + ONE), "the header is not valid JSON"),
    (framed(b'{"a":' + ONE + b"}\0\0"), "the header is not one JSON object"),
    (framed(b"{}{}"), "the header is not valid JSON"),
    (framed(b'{"\xff":1}'), "the header is not valid JSON"),
    (framed(b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}"), "the header is not valid JSON"),
    (framed(b'{"a":' + b"[" * 2**20 + b"]" * 2**20 + b"}"), "holds more than 1,048,576 JSON"),
    (framed(b'{"a":' + b"1" * 5000 + b"}"), "the header is not valid JSON"),
    (framed(b'{"a":1e3}'), "the header has the number '1e3', expected ints"),
    (framed(b'{"a":NaN}'), "the header has the number 'NaN', expected ints"),
    (framed(b'{"\\ud800":' + ONE + b"}"), "half of a surrogate pair is no character"),
    (framed({"a": 1}), "tensor 'a': expected a map"),
    (framed({"a": entry(dtype="F33")}), "tensor 'a': the format has no dtype 'F33'"),
    (framed({"a": entry(dtype=["F32"])}), "tensor 'a': the format has no dtype ['F32']"),
    (framed({"a": entry(shape=[-1])}), "tensor 'a': expected a shape of at most 64"),
    (framed({"a": entry(shape=[True])}), "tensor 'a': expected a shape of at most 64"),
    (framed({"a": entry(shape=[1] * 65)}), "tensor 'a': expected a shape of at most 64"),
    (framed({"a": entry(shape=[2**32, 2**32])}), "tensor 'a': expected a shape of at most"),
    (framed({"a": entry(shape=[0, 2**63])}), "tensor 'a': expected a shape of at most 64"),
    (framed({"a": entry(shape=[2])}), "tensor 'a': its dtype and the shape [2] take 8 bytes, "),
    (framed({"a": entry(data_offsets=[0])}), "tensor 'a': expected data_offsets [begin, end]"),
    (framed({"a": entry(data_offsets=[4, 0])}), "tensor 'a': expected data_offsets [begin, "),
    (framed({"a": entry(data_offsets=[-4, 0])}), "tensor 'a': expected data_offsets [begin, "),
    (framed({"a": entry(data_offsets=[1, 5])}, bytes(5)), "leave a gap at byte 0 of the data"),
    (framed({"a": entry(), "b": entry()}), "its tensors overlap at byte 4 of the data"),
    (framed({"a": entry()}, bytes(5)), "its header demands a file of"),
    (framed({"a": entry()}, bytes(3)), "its header demands a file of"),
    (framed({"__metadata__": {"k": 1}}, b""), "the metadata's k: expected a str, got int"),
    (framed({"__metadata__": []}, b""), "the header's __metadata__ is not an object"),
    # what we cannot hold
    (framed({"a": entry(dtype="F8_E4M3", shape=[4])}), "tensor 'a': it is of dtype F8_E4M3, ex"),
    (framed({"a": entry(dtype="F4", shape=[8])}), "tensor 'a': it is of dtype F4, expected one"),
    (framed({"a": entry(dtype="C64", shape=[0], data_offsets=[0, 0])}, b""), "dtype complex64"),
    (framed({"a": entry(dtype="BOOL", shape=[4])}, b"\0\1\2\0"), "neither 0 nor 1"),
    # our checksums
    (framed({"__metadata__": {safetensors.SHA256: "[]"}}, b""), "tinygrad_ish.sha256 is not a"),
    (framed({"__metadata__": {safetensors.SHA256: '{"a":1}'}}, b""), "the sha256 of a: expected"),
    (
        framed({"__metadata__": {safetensors.SHA256: '{"a":"0"}'}, "a": entry()}),
        "tensor 'a': its bytes do not match the sha256 in the metadata",
    ),
))  # fmt: skip
def test_hostile_safetensors(path: str, content: bytes, message: str) -> None:
    assert message in refused(content, path, safetensors)


def array_of(shape: Any, dtype: Any, data: Any, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb([shape, dtype, data]))


def chunked(**changes: Any) -> bytes:
    made = {"__msgpack_chunked_array__": True, "shape": {"0": 2},
            "chunks": {"0": array_of([2], "int8", b"ab")}}  # fmt: skip
    packed: bytes = msgpack.packb({"w": made | changes})
    return packed


@pytest.mark.parametrize(("content", "message"), rows(
    (b"", "the file ends inside an object"),
    (b"\x93\1\2\3", "a Flax file holds one msgpack map"),
    (msgpack.packb({"a": 1}) + b"\0", "1 bytes follow its msgpack map"),
    (b"\x82\xa1a\1\xa1a\2", "the key 'a' stands twice"),
    (b"\x81\1\1", "it has a key that is not a str"),
    (b"\x81\xc4\1a\1", "it has a key that is not a str"),
    (b"\x81\xa1\xff\1", "it has a str that is not UTF-8"),
    (b"\x81\xa1a\xc1", "the byte c1 begins no msgpack object"),
    (b"\xdf\xff\xff\xff\xff\xa1a\1", "the file ends inside an object"),
    (b"\x81\xa1a\xdd\xff\xff\xff\xff", "the file ends inside an object"),
    (b"\x81\xa1a\xc6\xff\xff\xff\xff", "the file ends inside an object"),
    (b"\x81\xa1a" * 100 + b"\xc0", "or nests them more than 64 deep"),
    (b"\x81\xa1a" + b"\x91" * 1000 + b"\xc0", "or nests them more than 64 deep"),
    (msgpack.packb({"a": msgpack.ExtType(4, b"")}), "a: Flax has no msgpack extension type 4"),
    (msgpack.packb({"a": msgpack.Timestamp(1)}), "a: Flax has no msgpack extension type 255"),
    (msgpack.packb({"a": msgpack.ExtType(2, b"\x91\xcb" + bytes(8))}), "a complex number is"),
    (msgpack.packb({"a": msgpack.ExtType(2, b"\x92\1\2")}), "expected an array of floats"),
    (msgpack.packb({"a": msgpack.ExtType(1, b"\x92\1\2")}), "expected [shape, dtype, bytes]"),
    (msgpack.packb({"a": array_of(2, "int8", b"ab")}), "expected at most 64 ints in an array"),
    (msgpack.packb({"a": array_of([1] * 65, "int8", b"a")}), "expected at most 64 ints"),
    (msgpack.packb({"a": array_of([2.0], "int8", b"ab")}), "expected an array of ints"),
    (msgpack.packb({"a": array_of([True], "int8", b"a")}), "expected an array of ints"),
    (msgpack.packb({"a": array_of([2], 3, b"ab")}), "its dtype is not a str"),
    (msgpack.packb({"a": array_of([2], "int8", "ab")}), "its bytes do not fill its place"),
    (msgpack.packb({"a": array_of([3], "int8", b"ab")}), "the shape [3] take 3 bytes, the file"),
    (msgpack.packb({"a": array_of([-2], "int8", b"ab")}), "expected a shape of at most 64"),
    (msgpack.packb({"a": array_of([2**40] * 2, "int8", b"")}), "expected a shape of at most"),
    (msgpack.packb({"a": array_of([2], "complex64", bytes(16))}), "it is of dtype complex64, exp"),
    (msgpack.packb({"a": array_of([1], "\x1b[2J", b"a")}), r"it is of dtype '\x1b[2J', expecte"),
    (msgpack.packb({"a": array_of([2], "bool", b"\1\2")}), "neither 0 nor 1"),
    (msgpack.packb({"a": array_of([2], "int8", b"ab")})[:-1], "do not fill its place"),
    (chunked(shape={"0": 3}), "tensor 'w': its dtype and the shape [3] take 3 bytes"),
    (chunked(shape={"1": 2}), "tensor 'w': expected its shape and its numbered chunks"),
    (chunked(shape=2), "tensor 'w': expected its shape and its numbered chunks"),
    (chunked(chunks={}), "tensor 'w': expected its shape and its numbered chunks"),
    (chunked(chunks={"0": 1}), "tensor 'w': its chunks are not flat arrays of one dtype"),
    (chunked(chunks={"0": array_of([1, 2], "int8", b"ab")}), "its chunks are not flat arrays"),
    (chunked(more=1), "tensor 'w': expected its shape and its numbered chunks"),
    (chunked(__msgpack_chunked_array__=False), "tensor 'w': expected its shape and its numb"),
))  # fmt: skip
def test_hostile_flax(path: str, content: bytes, message: str) -> None:
    assert message in refused(content, path, flax)


def test_flax_files_of_too_many_values(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "CONTAINER_LIMIT", 100)
    content = b"\x81\xa1a\xdc\x00\xff" + bytes(255)
    assert "the file holds more than 100 values" in refused(content, path, flax)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def archive(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made:
        for name, content in members:
            made.writestr(name, content)
    return buffer.getvalue()


def encrypted(content: bytes) -> bytes:
    """The archive, its directory saying that its member is encrypted."""
    at = content.index(b"PK\1\2") + 8
    return content[:at] + b"\1" + content[at + 1 :]


def without_first(content: bytes) -> bytes:
    """The archive, its directory beginning with the second of two members."""
    start, second = content.index(b"PK\1\2"), content.rindex(b"PK\1\2")
    end = content.rindex(b"PK\5\6")
    lengths = struct.pack("<HHII", 1, 1, end - second, second)
    assert struct.unpack("<I", content[end + 16 : end + 20]) == (start,)
    return content[: end + 8] + lengths + content[end + 20 :]


def twice_the_same(content: bytes) -> bytes:
    """The archive, the second entry of its directory leading to the first member."""
    at = content.rindex(b"PK\1\2") + 42
    return content[:at] + bytes(4) + content[at + 4 :]


W = npy(np.ones(2, np.int8))


@pytest.mark.parametrize(("content", "message"), rows(
    (b"", "the zip archive cannot be unpacked"),
    (archive(("w.txt", b"hello")), "member 'w.txt' of the archive is not an array, expected NAM"),
    (archive(("w.npy", b"hello")), "tensor 'w': expected a NumPy array, found b'hello'"),
    (archive(("w.npy", W[:20])), "tensor 'w': expected the header of an array of numbers"),
    (archive(("w.npy", W[:-1])), "tensor 'w': its dtype and the shape [2] take 2 bytes, the f"),
    (archive(("w.npy", W + b"\0")), "tensor 'w': its dtype and the shape [2] take 2 bytes, the"),
    (archive(("w.npy", W.replace(b"shape", b"shapf"))), "expected the header of an array of"),
    (archive(("w.npy", W.replace(b"(2,)", b"(2*)"))), "expected the header of an array of numb"),
    (archive(("w.npy", W.replace(b"(2,)", b"open"))), "expected the header of an array of numb"),
    (archive(("w.npy", W.replace(b"'|i1'", b"[1,2]"))), "expected the header of an array of"),
    (archive(("w.npy", npy(np.ones(1, complex)))), "tensor 'w': it is of dtype <c16, expected"),
    (archive(("w.npy", npy(np.array(["a"])))), "tensor 'w': it is of dtype <U1, expected one"),
    (
        archive(("w.npy", npy(np.array([{}], object)))),
        "tensor 'w': it is of dtype object, which is pickled, expected one of",
    ),
    (
        archive(("w.npy", bytes(2**27)), compression=zipfile.ZIP_DEFLATED),
        "expected at most 100 times as many: load it with NumPy, if you trust it",
    ),
    (archive(("w.npy", W), ("v.npy", W)).replace(b"v.npy", b"w.npy"), "'w.npy' stands twice"),
    (b"more" + archive(("w.npy", W)), "overlap or leave a gap at byte 0"),
    (without_first(archive(("w.npy", W), ("v.npy", W))), "overlap or leave a gap at byte 0"),
    (twice_the_same(archive(("w.npy", W), ("v.npy", W))), "overlap or leave a gap at byte"),
    (encrypted(archive(("w.npy", W))), "is encrypted, password required"),
    (archive(("w.npy", W))[:-1], "the zip archive cannot be unpacked"),
    (archive(("w.npy", npy(np.array([2, 1], np.int8)).replace(b"|i1", b"|b1"))), "neither 0"),
))  # fmt: skip
def test_hostile_npz(path: str, content: bytes, message: str) -> None:
    assert message in refused(content, path, npz)


VICTIM = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "flags": np.array([True, False]),
    "n": np.int64(3) * np.ones((), np.int64),
    "none": np.zeros((0, 2), np.float16),
}


def victim(name: str, path: str) -> bytes:
    MODULES[name].save_file(VICTIM, path)
    return pathlib.Path(path).read_bytes()


def load_or_refuse(content: bytes, path: str, module: Any) -> bool:
    """Whether the file loads; another exception than WeightsError, or arrays that the file's length
    cannot explain, fail the test."""
    pathlib.Path(path).write_bytes(content)
    try:
        tree = module.load_file(path)
    except WeightsError as error:
        assert len(str(error)) < len(path) + 2000
        return False
    found = [v for v in flatten_dict(tree).values() if isinstance(v, np.ndarray)]
    assert sum(array.nbytes for array in found) <= 2 * len(content)  # bfloat16 doubles
    assert all(array.dtype.name in weights.DTYPES for array in found)
    return True


@pytest.mark.parametrize("name", MODULES)
def test_every_truncation_is_found(path: str, name: str) -> None:
    content = victim(name, path)
    for length in range(len(content)):
        refused(content[:length], path, MODULES[name])


@pytest.mark.parametrize("name", MODULES)
def test_random_changes_raise_nothing_but_weights_error(path: str, name: str) -> None:
    content = victim(name, path)
    draw = random.Random(0)
    loaded = 0
    for i in range(2000):
        corrupt = bytearray(content)
        for _ in range(draw.choice([1, 1, 2, 5])):
            at = draw.randrange(len(corrupt))
            if draw.random() < 0.8:
                corrupt[at] = draw.choice([draw.randrange(256), corrupt[at] ^ 1, 0xFF, 0])
            elif draw.random() < 0.5:
                corrupt[at:at] = draw.choice([b"\0", b"[", b'"', draw.randbytes(8)])
            else:
                del corrupt[at : at + draw.choice([1, 2, 8, 64])]
        if i % 10:
            loaded += load_or_refuse(bytes(corrupt), path, MODULES[name])
            continue
        tracemalloc.start()
        try:
            load_or_refuse(bytes(corrupt), path, MODULES[name])
            with contextlib.suppress(WeightsError):
                formats.describe(path)
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()
    assert loaded > 10  # other names, padding, dates, or numbers without checksums


@pytest.mark.parametrize("name", MODULES)
def test_a_changed_number_is_found_where_there_are_checksums(path: str, name: str) -> None:
    numbers = np.arange(10**4, dtype=np.float32)
    MODULES[name].save_file({"w": numbers}, path)
    content = bytearray(pathlib.Path(path).read_bytes())
    content[content.index(numbers.tobytes()) + 39_000] ^= 1
    pathlib.Path(path).write_bytes(content)
    text, intact = formats.describe(path)
    assert intact == (name == "flax")
    assert ("BAD" in text) == (name != "flax")
    assert ("no checksum: whether these bytes" in text) == (name == "flax")
    if name != "flax":
        refused(bytes(content), path, MODULES[name])


@pytest.mark.parametrize("name", MODULES)
def test_a_file_of_pieces_takes_its_length_in_memory(path: str, name: str) -> None:
    MODULES[name].save_file({"a": np.ones(2**20), "b": np.ones(2**20)}, path)
    MODULES[name].load_file(path)
    tracemalloc.start()
    try:
        MODULES[name].load_file(path)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
        tracemalloc.reset_peak()
        formats.describe(path)
        assert tracemalloc.get_traced_memory()[1] < 13 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", MODULES)
def test_writing_streams(path: str, name: str) -> None:
    arrays = {"a": np.ones(2**20), "b": np.ones(2**20)}
    MODULES[name].save_file(arrays, path)
    tracemalloc.start()
    try:
        MODULES[name].save_file(arrays, path)
        assert tracemalloc.get_traced_memory()[1] < (40 if name == "npz" else 1) * 2**20
    finally:
        tracemalloc.stop()


def test_a_pickle_is_not_opened(path: str) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("the pickle ran",))

    pathlib.Path(path).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(WeightsError, match=r"could run any code.*torch\.load\('FILE'"):
        tg.load(path)
    buffer = io.BytesIO()
    np.savez(buffer, w=np.array([Evil()], object))
    pathlib.Path(path).write_bytes(buffer.getvalue())
    with pytest.raises(WeightsError, match="it is of dtype object, which is pickled"):
        tg.load(path)


# --- the command line ------------------------------------------------------------------------


def test_convert_and_inspect(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tg.save({"fc.weight": tg.ones(2, 3), "fc.bias": tg.zeros(2)}, "a.msgpack", {"epochs": 3})
    steps = ["a.msgpack", "b.safetensors", "c.flax", "d.npz", "e.msgpack"]
    for source, target in itertools.pairwise(steps):
        assert main(["convert", source, target]) == 0
        assert f"{target}: {formats.EXTENSIONS[target[1:]]}, 2 tensors" in capsys.readouterr().out
        assert main(["inspect", target]) == 0
        printed = capsys.readouterr().out
        for word in ("fc.weight", "float32", "(2, 3)", "2 tensors, 8 parameters"):
            assert word in printed
    assert tg.load("e.msgpack")["fc.weight"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert main(["convert", "b.safetensors", "c.msgpack", "--to", "flax"]) == 0
    assert "the metadata was left out, flax has no place for it" in capsys.readouterr().out
    assert pathlib.Path("c.msgpack").read_bytes()[0] == 0x81
    assert main(["inspect", "c.flax"]) == 0
    assert "no checksum: whether these bytes are the ones" in capsys.readouterr().out


def test_convert_and_inspect_refuse_in_words(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tg.save({"a": tg.ones(1), "n": {"step": 3}}, "a.msgpack")
    tg.save({"a": tg.ones(1), "a.b": tg.ones(1)}, "b.msgpack")
    pathlib.Path("c.bin").write_bytes(b"hello")
    pathlib.Path("d.npz").write_bytes(b"")
    for arguments, message in (
        (
            ["convert", "a.msgpack", "x.bin"],
            "x.bin: the name does not tell a format: expected",
        ),
        (["convert", "a.msgpack", "x.npz", "--to", "onnx"], "expected tinygrad_ish, safetensors"),
        (["convert", "a.msgpack", "x.npz"], "n.step: this format holds tensors only, got int"),
        (["convert", "b.msgpack", "x.flax"], "a.b: another tensor's name is the beginning of this"),
        (["convert", "c.bin", "x.npz"], "it is not a tinygrad_ish file"),
        (["convert", "nowhere", "x.npz"], "nowhere"),
        (["inspect", "d.npz"], "it is empty"),
    ):
        assert main(arguments) == 2
        printed = capsys.readouterr().err
        assert printed.startswith(f"tinygrad-ish {arguments[0]}: ")
        assert message in printed
    assert not list(tmp_path.glob("x*"))


def test_inspect_shows_what_load_cannot_hold(path: str) -> None:
    eight = entry(dtype="F8_E4M3", shape=[4])
    pathlib.Path(path).write_bytes(framed({"__metadata__": {"k": "v"}, "a": eight}))
    text, intact = formats.describe(path)
    assert intact
    assert text.splitlines()[1:] == [
        "  k: 'v'",
        "tensor  dtype    shape  bytes  checksum  min  max  mean",
        "a       F8_E4M3  (4,)   4      none",
        "1 tensors, 4 parameters",
        "no checksum: whether these bytes are the ones that were written is unknown",
    ]


def test_the_documents_listing_runs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (listing,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    model = tg.nn.Sequential(tg.nn.Linear(2, 3))
    scope: dict[str, Any] = {"model": model, "tinygrad_ish": tg}
    exec(listing, scope)
    assert same(scope["arrays"], {k: v.numpy() for k, v in model.state_dict().items()})
