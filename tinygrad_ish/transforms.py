"""Image transforms under torchvision's names, made for whole batches.

They take one grey image (H, W), a batch (N, H, W) or (N, C, H, W), as an array or a tensor, and
give back the same kind; of a batch, every image draws its own random numbers. A DataLoader over
``datasets.MNIST`` hands them whole batches, because they say ``batched = True``.

Of a tensor, ToTensor and Normalize compute with tensor operations, to the same bits: they can be
recorded, as the preprocessing of an exported program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from .random import Generator, default_generator
from .tensor import Tensor, from_numpy, tensor

Images = Any  # array or Tensor: (H, W), (N, H, W) or (N, C, H, W)

# Images are warped a block at a time: temporaries of some 64 kB stay in the cache, and small
# enough for malloc to reuse them. With fresh pages for each, a batch of 64 takes 3 times longer.
_BLOCK_PIXELS = 1 << 14


class Compose:
    """Several transforms, one after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = list(transforms)

    @property
    def batched(self) -> bool:
        """Whether all of them take whole batches."""
        return all(getattr(t, "batched", False) for t in self.transforms)

    def __call__(self, images: Any) -> Any:
        for transform in self.transforms:
            images = transform(images)
        return images


class ToTensor:
    """A float32 tensor with a channel axis: (H, W) → (1, H, W), (N, H, W) → (N, 1, H, W).

    uint8 0 to 255 becomes 0 to 1; floats keep their values. (N, C, H, W) keeps its shape.
    """

    batched: ClassVar[bool] = True

    def __call__(self, images: Images) -> Tensor:
        if isinstance(images, Tensor):
            _check(images, "ToTensor")
            scaled = images / 255 if images.dtype == np.uint8 else images.float()
            return scaled if scaled.ndim == 4 else scaled.unsqueeze(-3)
        array = _as_array(images, "ToTensor")
        if array.dtype == np.uint8:
            array = array / np.float32(255)
        return from_numpy(_with_channels(array.astype(np.float32, copy=False)))


class Normalize:
    """(images − mean) / std, with one number for all channels or one for each.

    Raises ValueError for a std that is not positive, TypeError for images that are not floating
    (put ToTensor before it).
    """

    batched: ClassVar[bool] = True

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        self.mean, self.std = (np.atleast_1d(np.asarray(a, np.float64)) for a in (mean, std))
        if not (np.isfinite(self.mean).all() and (self.std > 0).all()):
            raise ValueError(
                f"Normalize: expected a finite mean and a positive std, got {mean} and {std}"
            )

    def __call__(self, images: Images) -> Images:
        if not isinstance(images, Tensor):
            images = np.asarray(images)
        _check(images, "Normalize")
        if images.dtype.kind != "f":
            raise TypeError(
                f"Normalize: images: expected floats, got {images.dtype}; put ToTensor() before it"
            )
        channels = max(self.mean.size, self.std.size)
        if channels > 1 and (images.ndim < 3 or images.shape[-3] != channels):
            raise ValueError(
                f"Normalize: expected images with {channels} channels (…, {channels}, H, W), one "
                f"for each mean and std, got {list(images.shape)}"
            )
        mean, std = (_constant(a, images) for a in (self.mean, self.std))
        out = images - mean
        if isinstance(out, Tensor):
            return out / std  # not in place: this is recorded
        out /= std
        return out


def _constant(values: np.ndarray, images: Images) -> Any:
    """One number for all channels, or one for each, to compute with images of this kind."""
    if values.size == 1:
        return values.item()
    each = values.astype(images.dtype).reshape(-1, 1, 1)
    return tensor(each, device=images.backend) if isinstance(images, Tensor) else each


class RandomAffine:
    """A random rotation, shift, scaling and shear about the centre of each image.

    ``degrees``: range of angles, clockwise; ``translate``: largest shift as fractions of width and
    height, in whole pixels; ``scale``: range of factors; ``shear``: range of degrees along x, four
    numbers for x and y. One number r for degrees or shear means (−r, r). Sampling is bilinear
    (torchvision's default is nearest), with 0 outside the image.

    Raises ValueError for a range that is out of order or out of bounds.
    """

    batched: ClassVar[bool] = True

    def __init__(
        self,
        degrees: float | Sequence[float],
        translate: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        shear: float | Sequence[float] | None = None,
        *,
        generator: Generator | None = None,
    ) -> None:
        shears = (0, 0) if shear is None else shear
        if isinstance(shears, (int, float)) or len(shears) == 2:
            shears = (*_span("shear", shears, -89, 89), 0, 0)
        self.degrees = _span("degrees", degrees, -math.inf, math.inf)
        self.translate = tuple(translate or (0, 0))
        self.scale = _span("scale", scale or (1, 1), 1e-6, math.inf)
        self.shear_x = _span("shear", shears[:2], -89, 89)
        self.shear_y = _span("shear", shears[2:], -89, 89)
        self.generator = generator
        if len(self.translate) != 2 or not all(0 <= t <= 1 for t in self.translate):
            raise ValueError(
                "RandomAffine: translate: expected two fractions from 0 to 1, of width and "
                f"height, got {translate}"
            )

    def __call__(self, images: Images) -> Images:
        array = _as_array(images, "RandomAffine")
        n, (height, width) = 1 if array.ndim == 2 else len(array), array.shape[-2:]
        draw = (self.generator or default_generator).numpy.uniform
        tx, ty = self.translate[0] * width, self.translate[1] * height
        angle = draw(*self.degrees, n)
        shift = np.rint(draw(-tx, tx, n)), np.rint(draw(-ty, ty, n))
        scale = draw(*self.scale, n)
        shear = draw(*self.shear_x, n), draw(*self.shear_y, n)
        return _like(images, affine(array, angle, shift, scale, shear))


def affine(
    images: Images,
    angle: Any = 0.0,
    translate: tuple[Any, Any] = (0.0, 0.0),
    scale: Any = 1.0,
    shear: tuple[Any, Any] = (0.0, 0.0),
) -> Images:
    """Images rotated by ``angle`` degrees clockwise, sheared, scaled, and shifted by pixels.

    Each parameter is a number or one for each image (N,). A pixel of the result at p from the
    centre shows A⁻¹ (p − translate), with A = scale · R(angle) · shear, as in torchvision. Raises
    ValueError for a scale that is not positive.
    """
    array = _as_array(images, "affine")
    if not np.all(np.asarray(scale) > 0):
        raise ValueError(f"affine: scale: expected factors above 0, got {scale}")
    height, width = array.shape[-2:]
    turn, slant_x, slant_y = (np.deg2rad(a) for a in (angle, *shear))
    cos, sin, tan_x, tan_y = np.cos(turn), np.sin(turn), np.tan(slant_x), np.tan(slant_y)
    # The rows of A⁻¹ = S⁻¹ R⁻¹ / scale, where S⁻¹ = [[1 + tan_x tan_y, tan_x], [tan_y, 1]].
    both = 1 + tan_x * tan_y
    x_row = (both * cos - tan_x * sin) / scale, (both * sin + tan_x * cos) / scale
    y_row = (tan_y * cos - sin) / scale, (tan_y * sin + cos) / scale
    n = 1 if array.ndim == 2 else len(array)
    shift_x, shift_y = (_per_image(t, n) for t in translate)
    columns, rows = np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2
    p_x, p_y = columns - shift_x, rows.reshape(-1, 1) - shift_y

    def place(row: tuple[Any, Any], centre: float) -> tuple[np.ndarray, np.ndarray]:
        by_column, by_row = _per_image(row[0], n) * p_x + centre, _per_image(row[1], n) * p_y
        return by_column.astype(np.float32), by_row.astype(np.float32)

    x, y = place(x_row, (width - 1) / 2), place(y_row, (height - 1) / 2)
    return _like(
        images, _warp(array, lambda block: (x[0][block] + x[1][block], y[0][block] + y[1][block]))
    )


def _per_image(value: Any, n: int) -> np.ndarray:
    return np.broadcast_to(value, (n,)).reshape(n, 1, 1)


def _warp(
    array: np.ndarray, source: Callable[[slice], tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Each pixel read at the place (x, y), each (N, H, W), that ``source`` gives for a block."""
    batch = array if array.ndim == 4 else array.reshape(-1, 1, *array.shape[-2:])
    out = np.empty(batch.shape, np.float32)
    step = max(1, _BLOCK_PIXELS // max(1, math.prod(batch.shape[1:])))
    for start in range(0, len(batch), step):
        block = slice(start, min(start + step, len(batch)))
        out[block] = _sample(batch[block], *source(block))
    if array.dtype.kind != "f":
        np.rint(out, out=out)
    return out.astype(array.dtype, copy=False).reshape(array.shape)


def _sample(images: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Images (N, C, H, W) read at columns x and rows y (N, H, W), bilinear; x and y are used up."""
    n, channels, height, width = images.shape
    # A border of zeros makes outside pixels ordinary ones, and every sample has four neighbours.
    padded = np.zeros((channels, n, height + 2, width + 2), np.float32)
    padded[:, :, 1:-1, 1:-1] = images.swapaxes(0, 1)
    for v, size in (x, width), (y, height):
        np.clip(v, -1, size, out=v)
        v += 1
    column, row = np.minimum(np.floor(x), width), np.minimum(np.floor(y), height)
    x -= column
    y -= row
    row *= width + 2
    row += column
    index = row.astype(np.intp)
    index += (np.arange(n) * ((height + 2) * (width + 2))).reshape(n, 1, 1)
    out = np.empty(images.shape, np.float32)
    for c in range(channels):
        flat = padded[c].reshape(-1)
        upper = _mix(flat, index, x)
        lower = _mix(flat[width + 2 :], index, x)
        lower -= upper
        lower *= y
        np.add(upper, lower, out=out[:, c])
    return out


def _mix(flat: np.ndarray, index: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(1 − x) flat[index] + x flat[index + 1], exact where x is 0."""
    # mode="clip" clips nothing here, and spares the check of every index.
    left, right = flat.take(index, mode="clip"), flat[1:].take(index, mode="clip")
    right -= left
    right *= x
    right += left
    return right


def _as_array(images: Images, name: str) -> np.ndarray:
    array = images.numpy() if isinstance(images, Tensor) else np.asarray(images)
    _check(array, name)
    return array


def _check(images: Images, name: str) -> None:
    if images.ndim not in (2, 3, 4) or images.dtype.kind not in "uif":
        raise ValueError(
            f"{name}: images: expected numbers (H, W), (N, H, W) or (N, C, H, W), got "
            f"{images.dtype}{list(images.shape)}; one coloured image goes in as (1, C, H, W)"
        )


def _with_channels(array: np.ndarray) -> np.ndarray:
    return array if array.ndim == 4 else np.expand_dims(array, -3)


def _like(images: Images, out: np.ndarray) -> Images:
    return from_numpy(out) if isinstance(images, Tensor) else out


def _span(
    name: str, value: float | Sequence[float], low: float, high: float
) -> tuple[float, float]:
    span = (-value, value) if isinstance(value, (int, float)) else tuple(value)
    if len(span) != 2 or not low <= span[0] <= span[1] <= high or not all(map(math.isfinite, span)):
        raise ValueError(
            f"RandomAffine: {name}: expected a range (smallest, largest), or r of 0 or more for "
            f"(-r, r), within [{low}, {high}]; got {value}"
        )
    return span[0], span[1]
