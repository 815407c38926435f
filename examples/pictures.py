"""The pictures of a training run: its curves, a sheet of predictions, and one test image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

INSTALL = "pip install -e '.[examples]'"
ROWS, COLUMNS = 6, 10
EXAMPLE = 7  # the class of the test image


def write(folder: Path, curves: dict[str, list[float]], test: Any, probabilities: Any) -> str:
    """Write curves.png, predictions.png and the test image; what to say of it, also where
    matplotlib is missing."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError:
        return f"; no pictures, as matplotlib is not installed: {INSTALL}"
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    draw_curves(plt, curves, folder / "curves.png")
    draw_predictions(plt, test, np.asarray(probabilities), folder / "predictions.png")
    number = test.targets.tolist().index(EXAMPLE)
    one = folder / f"{name(test)}.png"
    plt.imsave(one, np.asarray(test.data)[number], cmap="gray")
    return f", {folder / 'curves.png'}, {folder / 'predictions.png'}, {one}"


def name(test: Any) -> str:
    """What the test image shows: "seven", or "sneaker"."""
    return test.classes[EXAMPLE].split(" - ")[-1].lower()


def draw_curves(plt: Any, curves: dict[str, list[float]], path: Path) -> None:
    """Loss and accuracy against the epoch, for training and validation."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, what in zip(axes, ("loss", "accuracy"), strict=True):
        for split, colour in (("training", "#9aa5b1"), ("validation", "#0b6e99")):
            values = curves[f"{split} {what}"]
            epochs = range(1, len(values) + 1)
            axis.plot(
                epochs, values, color=colour, label=split, marker="." if len(values) < 3 else ""
            )
            if values:
                shown = f" {values[-1]:.1%}" if what == "accuracy" else f" {values[-1]:.3f}"
                axis.annotate(shown, (len(values), values[-1]), color=colour, va="center")
        axis.set(xlabel="epoch", title="loss (of smoothed labels)" if what == "loss" else what)
        axis.grid(alpha=0.25)
        axis.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_predictions(plt: Any, test: Any, probabilities: np.ndarray, path: Path) -> None:
    """Test images with prediction and confidence; the wrong ones first, in red with the truth."""
    labels, guesses = np.asarray(test.targets), probabilities.argmax(1)
    wrong = np.flatnonzero(guesses != labels)[: 2 * COLUMNS]
    right = np.flatnonzero(guesses == labels)[: ROWS * COLUMNS - len(wrong)]
    figure, axes = plt.subplots(ROWS, COLUMNS, figsize=(COLUMNS, ROWS * 1.25), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, i in zip(axes.flat, [*wrong, *right], strict=False):
        axis.imshow(np.asarray(test.data)[i], cmap="gray_r", interpolation="nearest")
        title = f"{guesses[i]}  {probabilities[i, guesses[i]]:.0%}"
        if guesses[i] != labels[i]:
            title += f"  (is {labels[i]})"
            axis.add_patch(plt.Rectangle((0, 0), 27, 27, fill=False, color="#c62828", lw=2))
        axis.set_title(title, fontsize=8, color="#c62828" if guesses[i] != labels[i] else "#333333")
    figure.suptitle(
        f"predictions on the test images; {len(wrong)} of the mistakes first", fontsize=10
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
