"""What a program is asked from files, how drawings become digits, and the command ``predict``."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import runpy
import shlex
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ish as tg
from tinygrad_ish import datasets, transforms
from tinygrad_ish.__main__ import main
from tinygrad_ish.deploy import inputs
from tinygrad_ish.deploy.inputs import InputError, centred, decode

ROOT = Path(__file__).parent.parent
FEATURES = ["height", "width", "age"]


class Asked:
    """What ``decode`` looks at of a program."""

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: str = "float32",
        features: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        count: int = 1,
    ) -> None:
        self.inputs = [tg.deploy.runtime.Signature("x", np.dtype(dtype), (None, *shape))] * count
        self.features = features
        self.metadata = metadata or {}


TABLE: Any = Asked((3,), features=FEATURES)
NAMELESS: Any = Asked((2, 2))
DIGITS: Any = Asked((28, 28), "uint8", metadata={"image": "mnist"})


# --- rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rows", "notes"),
    [
        ("height,width,age\n1,2,3\n", [[1, 2, 3]], []),
        ("age,height,width\n3,1,2\n30,10,20", [[1, 2, 3], [10, 20, 30]], []),
        ("1,2,3\n4,5,6\n", [[1, 2, 3], [4, 5, 6]], []),
        ("\ufeffage,height,width\r\n3,1,2\r\n\r\n", [[1, 2, 3]], []),
        ("height;width;age\n1.5;-2e1;+3\n", [[1.5, -20, 3]], []),
        ('"height"\t"width"\t"age"\n 1 \t2\t3', [[1, 2, 3]], []),
        ("id,age,height,width\nx,3,1,2", [[1, 2, 3]], ["ignored id, which the program"]),
        ("[1, 2, 3]", [[1, 2, 3]], []),
        (" [[1, 2, 3], [4, 5, 6.5]]", [[1, 2, 3], [4, 5, 6.5]], []),
        ('{"age": 3, "width": 2, "height": true}', [[1, 2, 3]], []),
        ('{"age": 3, "width": 2, "height": 1}\n[4, 5, 6]\n', [[1, 2, 3], [4, 5, 6]], []),
        ('[{"age": 3, "width": 2, "height": 1, "a": 0}]', [[1, 2, 3]], ["ignored a, which"]),
    ],
)
def test_rows(text: str, rows: list[list[float]], notes: list[str]) -> None:
    found, said = decode(TABLE, text.encode())
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, rows)
    assert len(said) == len(notes) and all(map(str.startswith, said, notes))


def test_rows_without_names() -> None:
    square = np.array([[[1, 2], [3, 4]]])
    for text in ("[[1, 2], [3, 4]]", "[1, 2, 3, 4]", "[[[1, 2], [3, 4]]]", "1,2,3,4"):
        np.testing.assert_array_equal(decode(NAMELESS, text.encode())[0], square)
    found, notes = decode(NAMELESS, b"a,b,c,d\n1,2,3,4")
    np.testing.assert_array_equal(found, square)
    assert notes == ["line 1: ignored the names: the columns are taken in their order"]
    whole: Any = Asked((2,), "int64")
    found = decode(whole, b"9007199254740993,-1")[0]
    assert found.dtype == np.int64 and found.tolist() == [[9007199254740993, -1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        (" \n ", "it has no rows"),
        ("height,width,age\n", "it has no rows"),
        (",,\n,,", "it has no rows"),
        ("1,2,3,4", "line 1: expected 3 numbers (height, width, age), got 4"),
        ("height,age\n1,2\n", "line 1: without width; the program takes height, width, age, given"),
        ("height,width,age,age\n1,2,3,4", "line 1: more than one age"),
        ("1,2\n", r"line 1: expected 3 numbers (height, width, age), got 2"),
        ("1,2,3\n\n1,2\n", "line 3: expected 3 columns as above, got 2"),
        ("height,width,age\n1,NA,3", "line 2: column 2 (width): expected a number, got NA"),
        ("1,2,3\n1,,3", "line 2: column 2: expected a number, got nothing"),
        ("1,1_0,3", "line 1: column 2: expected a number, got 1_0"),
        ("1,2,3\n1,nan,3", "line 2: width: nan is no number that float32 holds"),
        ("1,2,1e39", "line 1: age: 1e+39 is no number that float32 holds"),
        ('1,2,"3', "line 1: it is no CSV"),
        ("[1, 2, 3", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("[1, 2, NaN]", "row 1: age: nan is no number"),
        ("[1, 2, 1" + 400 * "0" + "]", "row 1: expected numbers that float32 holds"),
        ("[1, 2]", "row 1: expected 3 numbers (height, width, age), got 2"),
        ("[[1, 2, 3], [1, 2]]", "row 2: expected 3 numbers"),
        ('[1, 2, "3"]', "row 1: expected a number, got '3'"),
        ("[[1, 2, 3], 4]", "row 2: expected a list, got 4"),
        ("[[1, 2, 3], [1, 2, [3]]]", "row 2: expected a number, got [3]"),
        ('{"height": 1, "age": 1}', "row 1: without width"),
        ('{"age": 1, "age": 1}', "an object has a name twice"),
        ("[]", "row 1: expected 3 numbers"),
        ("\x1b[31m,a,b\n1,2,3", "given are '\\x1b[31m', a, b"),
    ],
)
def test_rows_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        decode(TABLE, text.encode())
    assert message in str(raised.value)


def test_programs_that_do_not_fit_the_file() -> None:
    for program, data, message in [
        (Asked((3,)), b'{"a": 1}', "the program's columns have no names: give a list of 3"),
        (Asked((3,), "int64"), b"1,2.5,3", "line 1: expected whole numbers that int64 holds"),
        (Asked((1,), "uint8"), b"1\n256\n", "line 2: number 1: 256 is no number that uint8 holds"),
        (Asked((2, 2)), b"[[1, 2, 3], [4]]", "row 1: expected a list of 2, got 3 items"),
        (Asked((3,), count=2), b"1,2,3", "this program takes x, x: call tinygrad_ish.load_program"),
        (
            TABLE,
            b"\xff\xfe1\0",
            "it is neither an image (PNG, JPEG, GIF, BMP, TIFF, WEBP) nor text",
        ),
        (TABLE, png(np.zeros((2, 2))), "takes float32[batch, 3] (height, width, age): give CSV"),
    ]:
        with pytest.raises(InputError) as raised:
            decode(program, data)  # type: ignore[arg-type]
        assert message in str(raised.value)


def test_a_file_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "SIZE_LIMIT", 2**20)
    with pytest.raises(InputError, match="more than 1 MiB"):
        decode(TABLE, b"1,2,3\n" * 2**18)


@given(
    rows=st.lists(
        st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 3).map(list),
        min_size=1, max_size=5,
    ),
    order=st.permutations([*FEATURES, "note"]),
    delimiter=st.sampled_from(",;\t"),
)  # fmt: skip
def test_every_writing_of_the_same_rows_is_read_alike(
    rows: list[list[float]], order: list[str], delimiter: str
) -> None:
    expected = np.array(rows, np.float32)
    named = [{**dict(zip(FEATURES, row, strict=True)), "note": 0} for row in rows]
    lines = [order, *([repr(row[name]) for name in order] for row in named)]
    for text in (
        "\n".join(map(delimiter.join, lines)),
        "\n".join(delimiter.join(map(repr, row)) for row in rows),
        json.dumps(rows),
        json.dumps(named),
        "\n".join(map(json.dumps, named)),
    ):
        np.testing.assert_array_equal(decode(TABLE, text.encode())[0], expected)


# --- images ------------------------------------------------------------------------------------


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    """The bytes of a PNG of these pixels."""
    return encoded(pixels.astype(np.uint8), "PNG", mode)


def encoded(pixels: np.ndarray, form: str, mode: str | None = None, **options: Any) -> bytes:
    Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    image = Image.fromarray(pixels)
    out = io.BytesIO()
    (image.convert(mode) if mode else image).save(out, form, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    """MNIST's first test digits."""
    return datasets.MNIST(ROOT / "data" / "mnist10k", train=False).data.numpy()[:40]


def off(a: np.ndarray, b: np.ndarray) -> float:
    """How far two images are apart: 0 to 1, of what is drawn."""
    return float(np.abs(a.astype(float) - b).sum() / b.astype(float).sum())


def enlarged(digit: np.ndarray, times: int = 8) -> np.ndarray:
    return np.kron(digit, np.ones((times, times), np.uint8))


def test_mnist_itself_hardly_changes(drawn: np.ndarray) -> None:
    found = [decode(DIGITS, png(digit))[0][0] for digit in drawn]
    assert np.mean([np.array_equal(a, b) for a, b in zip(found, drawn, strict=True)]) > 0.8

    assert max(off(a, b) for a, b in zip(found, drawn, strict=True)) < 0.01


PAPER = np.array([250, 240, 200])
PEN = np.array([20, 30, 160])


def coloured(digit: np.ndarray, pen: Any, paper: Any) -> np.ndarray:
    share = digit[..., None] / 255
    return np.rint(share * pen + (1 - share) * paper).astype(np.uint8)


def padded(digit: np.ndarray, value: int = 0) -> np.ndarray:
    return np.pad(digit, ((40, 200), (300, 20)), constant_values=value)


def with_alpha(digit: np.ndarray, tone: int) -> np.ndarray:
    return np.stack([np.full_like(digit, tone)] * 3 + [digit], -1)


def on_paper_with_corners(digit: np.ndarray) -> np.ndarray:
    """Dark on light, the corners transparent (and of a colour that nobody sees)."""
    grey = 255 - padded(digit)
    alpha = np.full_like(grey, 255)
    grey[:30, :30], alpha[:30, :30] = 0, 0
    return np.stack([grey] * 3 + [alpha], -1)


BOUND = 0.2
WAYS = {
    "light on dark": lambda d: png(d),
    "dark on light": lambda d: png(255 - d),
    "large": lambda d: png(enlarged(d)),
    "very large": lambda d: png(255 - enlarged(d, 60)),
    "off centre": lambda d: png(255 - padded(enlarged(d))),
    "small on a large page": lambda d: png(padded(d)),
    "blue pen on yellow paper": lambda d: png(coloured(enlarged(d), PEN, PAPER)),
    "red on green of one brightness": lambda d: png(coloured(d, [255, 60, 0], [0, 165, 20])),
    "faint": lambda d: png(120 + d // 4),
    "white on nothing": lambda d: png(with_alpha(enlarged(d), 255)),
    "black on nothing": lambda d: png(with_alpha(enlarged(d), 0)),
    "paper with transparent corners": lambda d: png(on_paper_with_corners(enlarged(d))),
    "a palette": lambda d: png(d, "P"),
    "16 bits": lambda d: encoded(d.astype(np.uint16) * 257, "PNG"),
    "JPEG": lambda d: encoded(255 - padded(enlarged(d), 0), "JPEG", quality=70),
    "CMYK": lambda d: encoded(np.stack([d] * 3, -1), "JPEG", "CMYK", quality=95),
    "GIF": lambda d: encoded(d, "GIF"),
    "BMP": lambda d: encoded(d, "BMP"),
    "TIFF": lambda d: encoded(d, "TIFF"),
    "WebP": lambda d: encoded(255 - enlarged(d), "WEBP", lossless=True),
    "shade and noise": lambda d: png(photographed(d)),
}


def photographed(digit: np.ndarray) -> np.ndarray:
    page = 240 - padded(enlarged(digit)).astype(float) * 0.8
    page -= np.linspace(0, 30, page.shape[1])
    return (page + np.random.default_rng(0).normal(0, 3, page.shape)).clip(0, 255)


@pytest.mark.parametrize("way", WAYS)
def test_a_digit_is_the_same_however_it_is_drawn(drawn: np.ndarray, way: str) -> None:
    if way == "WebP" and not pytest.importorskip("PIL.features").check("webp"):
        pytest.skip("this Pillow was built without WebP")
    for digit in drawn[:6]:
        found = decode(DIGITS, WAYS[way](digit))[0]
        assert found.shape == (1, 28, 28) and found.dtype == np.uint8
        assert off(found[0], digit) < BOUND
    assert min(off(a, b) for a, b in itertools.combinations(drawn[:6], 2)) > 2 * BOUND


def test_the_position_a_camera_was_held_in_counts(drawn: np.ndarray) -> None:
    Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    turned = np.rot90(enlarged(drawn[0]))
    found = decode(DIGITS, encoded(turned, "JPEG", exif=exif))[0][0]
    assert off(found, drawn[0]) < 0.3


@settings(max_examples=40)
@given(
    height=st.integers(1, 90), width=st.integers(1, 90), seed=st.integers(0, 99),
    size=st.sampled_from([(28, 28), (20, 32), (7, 7)]),
)  # fmt: skip
def test_centred_keeps_the_promise_of_mnist(
    height: int, width: int, seed: int, size: tuple[int, int]
) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    random = np.random.default_rng(seed)
    ink = np.zeros((120, 130), np.float32)
    box = ink[5 : 5 + height, 7 : 7 + width]
    box[:] = random.uniform(100, 200, box.shape)
    out = centred(ink, *size)
    assert out.shape == size and out.max() == 255
    rows, columns = np.flatnonzero(out.any(1)), np.flatnonzero(out.any(0))
    tall, wide = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    scale = min(size[0] * 20 / 28 / height, size[1] * 20 / 28 / width)
    assert abs(tall - max(1, height * scale)) <= 0.5
    assert abs(wide - max(1, width * scale)) <= 0.5
    for axis, n in enumerate(size):
        mass = out.sum(1 - axis).astype(float)
        assert abs((mass * np.arange(n)).sum() / mass.sum() - n / 2) <= 0.51


def test_a_heavy_end_is_not_pushed_out_of_the_image() -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    ink = np.zeros((40, 40), np.float32)
    ink[:, 19] = 255
    ink[36:, :] = 255
    out = centred(ink)
    assert np.count_nonzero(out.any(1)) == 20 and out[0].any()


def test_other_images_are_resized() -> None:
    grey: Any = Asked((1, 4, 6), "float32")
    colour: Any = Asked((3, 4, 6), "uint8")
    picture = np.zeros((8, 12, 3), np.uint8)
    picture[:, :6] = [255, 0, 0]
    found = decode(colour, png(picture))[0]
    assert found.shape == (1, 3, 4, 6) and found.dtype == np.uint8
    assert found[0, :, 0, 0].tolist() == [255, 0, 0] and not found[0, :, 0, 5].any()
    found = decode(grey, png(picture))[0]
    assert found.shape == (1, 1, 4, 6) and found.dtype == np.float32
    assert found[0, 0, 0, 0] == np.float32(76) / np.float32(255)  # ITU-R 601: 0.299 R
    nothing = np.zeros((8, 12, 4), np.uint8)
    assert decode(grey, png(nothing))[0].min() == 1
    fraction = np.full((5, 5), 51, np.uint8)
    assert decode(Asked((2, 2)), png(fraction))[0].tolist() == [  # type: ignore[arg-type]
        [[np.float32(0.2)] * 2] * 2
    ]


def huge() -> bytes:
    """A PNG that declares 100,000 × 100,000 pixels in 60 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b""))


def test_images_that_are_refused(monkeypatch: pytest.MonkeyPatch, drawn: np.ndarray) -> None:
    whole = png(enlarged(drawn[0]))
    for data, message in [
        (huge(), "more than 50 million in all: scale it down"),
        (whole[: len(whole) // 2], "it is a damaged or truncated image: "),
        (whole[:20], "it is a damaged or truncated image: "),
        (png(np.full((30, 30), 255)), "without contrast: nothing is drawn on it"),
        (png(np.zeros((30, 30, 4))), "without contrast: nothing is drawn on it"),
        (encoded(np.zeros((3, 3), np.float32), "TIFF"), "its pixels are floats"),
    ]:
        with pytest.raises(InputError) as raised:
            decode(DIGITS, data)
        assert message in str(raised.value)
    monkeypatch.setattr(inputs, "PIXEL_LIMIT", 10_000)
    with pytest.raises(InputError, match="an image of 224 × 224 pixels"):
        decode(DIGITS, whole)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(
        InputError, match=r"images need Pillow: pip install 'tinygrad_ish\[images\]'"
    ):
        decode(DIGITS, whole)


def seeds() -> Iterator[bytes]:
    yield b"age,height,width\n3,1,2\n30,10,20\n"
    yield b'[{"age": 3, "width": 2, "height": 1}]'
    digit = np.zeros((28, 28), np.uint8)
    digit[5:20, 10:14] = 255
    yield png(digit)
    yield encoded(digit, "JPEG")
    yield encoded(digit, "GIF")
    yield encoded(digit, "TIFF")


@settings(max_examples=150)
@given(data=st.data(), program=st.sampled_from([TABLE, DIGITS, NAMELESS]))
def test_any_bytes_give_an_array_or_an_input_error(data: st.DataObject, program: Any) -> None:
    given = bytearray(data.draw(st.sampled_from(list(seeds()))))
    for _ in range(data.draw(st.integers(0, 4))):
        given[data.draw(st.integers(0, len(given) - 1))] = data.draw(st.integers(0, 255))
    del given[data.draw(st.integers(1, len(given))) :]
    try:
        found, _ = decode(program, bytes(given))
    except InputError:
        return
    assert found.shape[1:] == program.inputs[0].shape[1:]
    assert found.dtype == program.inputs[0].dtype and np.isfinite(found).all()


# --- the command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs: digits by what is bright where, and a weight from measures."""
    folder = tmp_path_factory.mktemp("programs")
    weight = tg.tensor(np.random.default_rng(0).normal(0, 0.1, (10, 784)).astype(np.float32))
    tg.export(
        lambda x: x.flatten(1) @ weight.T, np.zeros((2, 28, 28), np.uint8),
        folder / "digits.msgpack", preprocess=transforms.ToTensor(), postprocess="softmax",
        labels=[str(n) for n in range(10)], metadata={"image": "mnist"},
    )  # fmt: skip
    slopes = tg.tensor([1.0, 10.0, 100.0])
    tg.export(
        lambda x: x @ slopes, np.zeros((2, 3), np.float32), folder / "table.msgpack",
        features=FEATURES, outputs=["weight"],
    )  # fmt: skip
    tg.export(
        lambda x: x.log(), np.ones((2, 3), np.float32), folder / "logs.msgpack", outputs=["log"]
    )
    tg.export(lambda x: x.sum(), np.ones((2, 3), np.float32), folder / "total.msgpack")
    tg.save({"w": weight}, folder / "weights.msgpack")
    return folder


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*words: str, stdin: bytes = b"") -> tuple[int, list[str], list[str]]:
        """The exit status, and the lines on standard output and standard error."""
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = main(["predict", *words])
        printed = capsys.readouterr()
        return status, printed.out.splitlines(), printed.err.splitlines()

    return run


def test_an_image_gives_a_chart(run: Any, folder: Path, drawn: np.ndarray) -> None:
    (folder / "seven.png").write_bytes(png(drawn[0]))
    status, out, err = run("digits.msgpack", "seven.png")
    assert (status, err) == (0, [])
    assert out[0] == "seven.png" and len(out) == 11
    centre, _ = decode(DIGITS, png(drawn[0]))
    expected = tg.load_program(folder / "digits.msgpack", "numpy").predict(centre)[0]
    assert [line.split()[0] for line in out[1:]] == [label for label, _ in expected]
    assert [line.split()[-1] for line in out[1:]] == [f"{p:.1%}" for _, p in expected]
    bars = [line.count("█") for line in out[1:]]
    assert bars == sorted(bars, reverse=True) and bars[0] == int(expected[0][1] * 60 + 1e-9)
    assert max(map(len, out)) <= 80 and all(line.isprintable() for line in out)
    assert run("digits.msgpack", "seven.png", "--top", "3")[1] == out[:4]


def test_narrow_and_plain_terminals(
    run: Any, folder: Path, drawn: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "seven.png").write_bytes(png(drawn[0]))
    answer = [("a" * 40, 0.5), ("b", 0.25), ("\x1b[1m", 0.0)]
    monkeypatch.setenv("COLUMNS", "60")
    lines = tg.deploy.predict.chart(answer)
    assert lines[0].split() == ["a" * 24, "█" * 12, "50.0%"] and max(map(len, lines)) <= 60
    assert "\x1b" not in lines[2]
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert tg.deploy.predict.chart(answer)[0].split()[1] == "#" * 12
    assert tg.deploy.predict.chart([("a", 7.25), ("b", -1.0)]) == ["  a  7.25", "  b  -1"]


def test_several_files_and_standard_input(run: Any, folder: Path) -> None:
    (folder / "a.csv").write_text("age,width,height\n3,2,1\n30,20,10\n")
    status, out, err = run(
        "table.msgpack", "a.csv", "-", stdin=b'{"age": 1, "width": 0, "height": 0}'
    )
    assert (status, err) == (0, [])
    assert out == ["a.csv row 1: weight 321", "a.csv row 2: weight 3210", "-: weight 100"]


def test_json_has_an_object_for_each_row(run: Any, folder: Path, drawn: np.ndarray) -> None:
    (folder / "a.csv").write_text("1,2,3\n10,20,30\n")
    _, out, _ = run("table.msgpack", "--json", "a.csv")
    assert [json.loads(line) for line in out] == [
        {"input": "a.csv", "row": 1, "output": "weight", "value": 321.0},
        {"input": "a.csv", "row": 2, "output": "weight", "value": 3210.0},
    ]
    _, out, _ = run("digits.msgpack", "-", "--json", "--top", "2", stdin=png(drawn[0]))
    (said,) = map(json.loads, out)
    centre, _ = decode(DIGITS, png(drawn[0]))
    expected = tg.load_program(folder / "digits.msgpack", "numpy").predict(centre)[0][:2]
    assert [(c["label"], c["probability"]) for c in said["classes"]] == expected


def test_rows_of_pixels_are_classified_on_a_line_each(run: Any, drawn: np.ndarray) -> None:
    rows = "\n".join(",".join(map(str, d.ravel())) for d in drawn[:2])
    _, out, _ = run("digits.msgpack", "-", stdin=rows.encode())
    assert len(out) == 2 and out[1].startswith("- row 2: ") and out[1].endswith("%")


def test_bad_files_are_named_and_the_others_answered(run: Any, folder: Path) -> None:
    (folder / "good.csv").write_text("1,2,3\n")
    (folder / "bad.csv").write_text("1,two,3\n")
    (folder / "image.png").write_bytes(png(np.zeros((3, 3))))
    (folder / "red\x1b.csv").write_text("id,height,width,age\nx,1,2,3\n")
    status, out, err = run(
        "table.msgpack", "bad.csv", "good.csv", "nowhere.csv", ".", "image.png", "red\x1b.csv"
    )
    assert status == 2
    assert out == ["good.csv: weight 321", "'red\\x1b.csv': weight 321"]
    heads = ["bad.csv: line 1: column 2:", "nowhere.csv: No such file", ".: Is a directory",
             "image.png: it is an image", "'red\\x1b.csv': ignored id"]  # fmt: skip
    for line, head in zip(err, heads, strict=True):
        assert line.startswith(f"tinygrad-ish predict: {head}")


def test_answers_that_are_no_numbers_are_refused(run: Any) -> None:
    status, out, err = run("logs.msgpack", "-", stdin=b"1,1,1\n1,-1,1")
    assert (status, out) == (2, [])
    assert err == ["tinygrad-ish predict: -: row 2: the program's answer is not finite"]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("weights.msgpack", "weights.msgpack: it is of the kind weights, expected program"),
        ("nowhere.msgpack", "cannot read nowhere.msgpack: no such file"),
        ("total.msgpack", "the program's first output has no row for each row of its input"),
    ],
)
def test_what_is_no_program_for_files(run: Any, program: str, message: str) -> None:
    status, out, err = run(program, "-", stdin=b"1,2,3")
    assert (status, out, len(err)) == (2, [], 1) and message in err[0]


@pytest.mark.parametrize("words", [["a"], ["a", "b", "--top", "0"], ["a", "b", "--top", "x"]])
def test_wrong_command_lines(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["predict", *words])


def test_a_process_reads_rows_without_pillow_and_numba_until_nobody_listens(folder: Path) -> None:
    code = (
        "import sys; from tinygrad_ish.__main__ import main; status = main(sys.argv[1:]);"
        "print({'PIL', 'numba'} & set(sys.modules), status, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "predict", str(folder / "table.msgpack"), "-"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command, input=b"1,2,3\n" * 20_000, stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"set() 0\n")


# --- the example -------------------------------------------------------------------------------


def test_the_penguins_end_with_a_program_and_the_command_that_asks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = str(ROOT / "examples" / "penguins.py")
    monkeypatch.setattr(sys, "argv", [example, "--out", str(tmp_path / "out")])
    runpy.run_path(example, run_name="__main__")
    printed = capsys.readouterr().out
    error, baseline = (
        int(line.split()[-2])
        for line in printed.splitlines()
        if line.endswith(" g") and ":" in line
    )
    assert error < 0.4 * baseline
    command = shlex.split(printed.splitlines()[-1].removeprefix("next: "))
    assert command[1:4] == ["-m", "tinygrad_ish", "predict"]
    assert main([*command[3:], "--json"]) == 0
    answers = capsys.readouterr()
    assert "ignored body_mass_g, which the program does not take" in answers.err
    guesses = [json.loads(line)["value"] for line in answers.out.splitlines()]
    lines = Path(command[-1]).read_text().splitlines()
    truth = [float(line.split(",")[-1]) for line in lines[1:]]
    assert np.abs(np.array(guesses) - truth).mean() < 0.6 * baseline


def test_the_penguins_are_those_of_the_notice() -> None:
    folder = ROOT / "data" / "penguins"
    found = hashlib.sha256((folder / "penguins.csv").read_bytes()).hexdigest()
    assert f"{found}  penguins.csv" in (folder / "NOTICE").read_text()
