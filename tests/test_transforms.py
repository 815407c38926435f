"""Transforms: exact where they must be, the same for the same seed, each image on its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ish as tg
from tinygrad_ish.random import Generator, manual_seed
from tinygrad_ish.tensor import Tensor, from_numpy
from tinygrad_ish.transforms import (
    Compose,
    Normalize,
    RandomAffine,
    ToTensor,
    affine,
)


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def shifted(image: np.ndarray, right: int, down: int) -> np.ndarray:
    """An image moved by whole pixels, zeros coming in."""
    height, width = image.shape[-2:]
    out = np.zeros_like(image)
    wide, high = max(width - abs(right), 0), max(height - abs(down), 0)
    x, y = max(right, 0), max(down, 0)
    source = image[..., max(-down, 0) :, max(-right, 0) :]
    out[..., y : y + high, x : x + wide] = source[..., :high, :wide]
    return out


def slow_affine(
    image: np.ndarray, angle: float, shift: Any, scale: float, shear: Any
) -> np.ndarray:
    """The formula in docs and loops: every pixel asks A⁻¹ (p − shift) for its value."""
    turn, slant_x, slant_y = np.deg2rad([angle, *shear])
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    lean_y = np.array([[1, 0], [-np.tan(slant_y), 1]])
    lean_x = np.array([[1, -np.tan(slant_x)], [0, 1]])
    inverse = np.linalg.inv(scale * rotation @ lean_y @ lean_x)
    height, width = image.shape
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    out = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            x, y = inverse @ (np.array([column, row]) - centre - shift) + centre
            for j in (int(np.floor(y)), int(np.floor(y)) + 1):
                for i in (int(np.floor(x)), int(np.floor(x)) + 1):
                    if 0 <= i < width and 0 <= j < height:
                        out[row, column] += image[j, i] * (1 - abs(x - i)) * (1 - abs(y - j))
    return out


SHAPES = [(7, 9), (3, 7, 9), (3, 1, 7, 9), (2, 3, 7, 9), (0, 1, 7, 9), (40, 30, 28)]
IDENTITIES: list[Callable[[Any], Any]] = [
    affine,
    RandomAffine(0),
    RandomAffine(0, (0, 0), (1, 1), (0, 0, 0, 0)),
]


@pytest.mark.parametrize("transform", IDENTITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_identity_parameters_give_the_same_image(
    transform: Callable[[Any], Any], shape: tuple[int, ...]
) -> None:
    images = pictures(*shape)
    before = images.copy()
    np.testing.assert_array_equal(transform(images), images)
    np.testing.assert_array_equal(images, before)
    grey = (images * 255).astype(np.uint8)
    out = transform(grey)
    assert out.dtype == np.uint8 and out.shape == shape
    np.testing.assert_array_equal(out, grey)


@settings(max_examples=30)
@given(right=st.integers(-9, 9), down=st.integers(-7, 7))
def test_shifts_by_whole_pixels_are_exact(right: int, down: int) -> None:
    images = pictures(3, 2, 6, 8)
    out = affine(images, translate=([right, 0, -right], [down, 1, 0]))
    np.testing.assert_array_equal(out[0], shifted(images[0], right, down))
    np.testing.assert_array_equal(out[1], shifted(images[1], 0, 1))
    np.testing.assert_array_equal(out[2], shifted(images[2], -right, 0))


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("size", [8, 9])
def test_quarter_turns_match_rot90(turns: int, size: int) -> None:
    images = pictures(5, size, size)
    clockwise = np.rot90(images, -turns, axes=(1, 2))
    np.testing.assert_allclose(affine(images, angle=90 * turns), clockwise, atol=1e-5)


@settings(max_examples=15)
@given(
    angle=st.floats(-180, 180),
    shift=st.tuples(st.floats(-4, 4), st.floats(-4, 4)),
    scale=st.floats(0.5, 2),
    shear=st.tuples(st.floats(-40, 40), st.floats(-40, 40)),
)
def test_affine_follows_its_formula(
    angle: float, shift: tuple[float, float], scale: float, shear: tuple[float, float]
) -> None:
    images = pictures(2, 7, 6)
    each = [[v, w] for v, w in ((angle, 10.0), (scale, 1.5))]
    moves = ([shift[0], 0.5], [shift[1], -0.5])
    leans = ([shear[0], 0.0], [shear[1], 5.0])
    out = affine(images, each[0], moves, each[1], leans)
    for i in range(2):
        at = [m[i] for m in moves], each[1][i], [s[i] for s in leans]
        np.testing.assert_allclose(out[i], slow_affine(images[i], each[0][i], *at), atol=2e-4)


def wild(generator: Generator | None = None) -> RandomAffine:
    return RandomAffine(20, (0.2, 0.2), (0.8, 1.2), 10, generator=generator)


def test_a_seed_repeats_the_images_and_every_image_draws_its_own() -> None:
    images = np.broadcast_to(pictures(28, 28), (50, 28, 28))
    out = wild(Generator().manual_seed(3))(images)
    assert len({image.tobytes() for image in out}) == 50
    np.testing.assert_array_equal(wild(Generator().manual_seed(3))(images), out)
    assert (wild(Generator().manual_seed(4))(images) != out).any()
    manual_seed(3)
    np.testing.assert_array_equal(wild()(images), out)


def test_kinds_of_input_agree() -> None:
    def run(images: Any) -> Any:
        return wild(Generator().manual_seed(0))(images)

    images = pictures(20, 28, 28)
    out = run(images)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(run(images[:, None])[:, 0], out)
    np.testing.assert_array_equal(run(images.copy(order="F")), out)
    np.testing.assert_array_equal(run(np.repeat(images[:, None], 3, 1))[:, 2], out)
    doubled = run(images.astype(np.float64))
    assert doubled.dtype == np.float64
    np.testing.assert_array_equal(doubled, out)
    tensor = run(from_numpy(images))
    assert isinstance(tensor, Tensor)
    np.testing.assert_array_equal(tensor.numpy(), out)
    assert out.min() >= 0 and out.max() <= 1
    np.testing.assert_array_equal(run(images[0]), run(images[:1])[0])


def test_random_affine_stays_within_its_ranges() -> None:
    picture = np.zeros((20, 20), np.float32)
    picture[10, 10] = 1
    generator = Generator().manual_seed(0)
    out = RandomAffine(0, (0.1, 0.25), generator=generator)(np.stack([picture] * 500))
    _, rows, columns = np.nonzero(out)
    assert out.max() == 1 and len(rows) == 500  # whole pixels
    assert set(columns) == {8, 9, 10, 11, 12} and set(rows) == set(range(5, 16))

    square = np.zeros((40, 40), np.float32)
    square[10:30, 10:30] = 1
    areas = RandomAffine(180, scale=(0.5, 1.5), generator=generator)(np.stack([square] * 200))
    found = areas.sum((1, 2)) / 400
    assert 0.24 < found.min() < 0.4 and 1.9 < found.max() < 2.26


def test_to_tensor() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    for images, shape in (
        (grey[0], (1, 16, 16)),
        (grey, (1, 1, 16, 16)),
        (grey[None], (1, 1, 16, 16)),
    ):
        out = ToTensor()(images)
        assert isinstance(out, Tensor) and out.shape == shape and out.dtype == np.float32
        np.testing.assert_array_equal(
            out.numpy().ravel(), np.arange(256, dtype=np.float32) / np.float32(255)
        )
    floats = np.array([[-1.0, 7.0]])
    np.testing.assert_array_equal(ToTensor()(floats).numpy(), [[[-1.0, 7.0]]])


def test_normalize() -> None:
    images = pictures(4, 3, 5, 5)
    out = Normalize((0.1, 0.2, 0.3), (0.5, 0.5, 2.0))(images)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[:, 2], (images[:, 2] - 0.3) / 2, rtol=1e-6)
    np.testing.assert_allclose(out[:, 0], (images[:, 0] - 0.1) / 0.5, rtol=1e-6)
    grey = pictures(4, 5)
    tensor = Normalize(0.1307, (0.3081,))(from_numpy(grey))
    assert isinstance(tensor, Tensor) and tensor.shape == (4, 5)
    np.testing.assert_allclose(tensor.numpy(), (grey - 0.1307) / 0.3081, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64", "int32"])
@pytest.mark.parametrize(
    ("shape", "mean", "std"),
    [
        ((28, 28), 0.1307, 0.3081),
        ((3, 5, 4), 0.1307, (0.3081,)),
        ((0, 28, 28), 0.5, 0.25),
        ((2, 3, 5, 4), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((2, 3, 5, 4), 0.5, (0.229, 0.224, 0.225)),
    ],
)
def test_tensors_are_computed_with_to_the_same_bits(
    backend: str, dtype: str, shape: tuple[int, ...], mean: Any, std: Any
) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    arrays, tensors = ToTensor()(images), ToTensor()(tg.tensor(images, device=backend))
    assert tensors.dtype == tg.float32 and tensors.shape == arrays.shape
    assert tensors.backend.name == backend
    np.testing.assert_array_equal(tensors.numpy(), arrays.numpy())
    normalize = Normalize(mean, std)
    for array in (arrays.numpy(), arrays.numpy().astype(np.float64)):
        out = normalize(tg.tensor(array, device=backend))
        assert out.backend.name == backend and out.dtype == array.dtype
        np.testing.assert_array_equal(out.numpy(), normalize(array))


def test_transforms_of_tensors_are_recorded_and_differentiated(tmp_path: Path) -> None:
    both = Compose([ToTensor(), Normalize((0.5, 0.25, 0.1), (0.5, 0.25, 2.0))])
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 6, 5)).astype(np.uint8)
    tg.export(lambda x: x.relu(), images, tmp_path / "program.msgpack", preprocess=both)
    program = tg.load_program(tmp_path / "program.msgpack", "numpy")
    for rows in (1, 4):
        expected = np.maximum(both(images[:rows]).numpy(), 0)
        np.testing.assert_array_equal(program(images[:rows]), expected)
    floats = tg.tensor(images.astype(np.float32), requires_grad=True)
    both(floats).sum().backward()
    assert floats.grad is not None
    assert floats.grad[0, :, 0, 0].tolist() == [2.0, 4.0, 0.5]


def test_compose_applies_in_order_and_is_batched_if_all_are() -> None:
    both = Compose([ToTensor(), Normalize(1, 2)])
    assert both.batched and Compose([both]).batched
    assert both(np.zeros((2, 3, 3), np.uint8)).numpy().tolist() == [[[[-0.5] * 3] * 3]] * 2
    mixed = Compose([np.fliplr, ToTensor()])
    assert not mixed.batched
    assert mixed(np.array([[0, 255]], np.uint8)).tolist() == [[[1.0, 0.0]]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomAffine(-5), "RandomAffine: degrees: expected a range"),
        (lambda: RandomAffine((5, 1)), "RandomAffine: degrees: expected a range"),
        (lambda: RandomAffine(float("nan")), "RandomAffine: degrees: expected a range"),
        (lambda: RandomAffine(0, (0.1,)), "RandomAffine: translate: expected two fractions"),
        (lambda: RandomAffine(0, (0.1, 2)), "RandomAffine: translate: expected two fractions"),
        (lambda: RandomAffine(0, scale=(0, 1)), "RandomAffine: scale: expected a range"),
        (lambda: RandomAffine(0, scale=(2, 1)), "RandomAffine: scale: expected a range"),
        (lambda: RandomAffine(0, shear=90), "RandomAffine: shear: expected a range"),
        (lambda: RandomAffine(0, shear=(1, 2, 3)), "RandomAffine: shear: expected a range"),
        (lambda: Normalize(0, 0), "Normalize: expected a finite mean and a positive std"),
        (lambda: Normalize((0, 1), (1, 1))(pictures(3, 1, 4, 4)), "with 2 channels .* got [3, 1,"),
        (lambda: affine(pictures(2, 4, 4), scale=[1.0, 0.0]), "affine: scale: expected factors ab"),
        (lambda: RandomAffine(0)(np.zeros(5)), "RandomAffine: images: expected numbers (H, W)"),
        (lambda: ToTensor()(np.zeros((2, 2), bool)), "ToTensor: images: expected numbers"),
    ],
)
def test_refusals(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        make()


def test_normalize_refuses_integers() -> None:
    with pytest.raises(TypeError, match=r"expected floats, got uint8; put ToTensor\(\) before it"):
        Normalize(0.5, 0.5)(np.zeros((2, 2), np.uint8))
