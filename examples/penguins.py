"""Guess a penguin's weight from its measures: python examples/penguins.py --help

Linear regression on 333 real penguins (data/penguins) in a second. What it leaves in runs/penguins
is a program that takes the raw columns, in millimetres and zeros and ones, and answers in grams.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import sys
from pathlib import Path

import tinygrad_ish as tg
from tinygrad_ish import nn, optim
from tinygrad_ish.utils.data import DataLoader, TensorDataset, random_split

DATA = Path(__file__).resolve().parent.parent / "data" / "penguins" / "penguins.csv"
MEASURES = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm"]
# Words become columns of 0 and 1. An Adelie is neither of the other two, a female no male: columns
# for these would follow from the others.
FEATURES = [*MEASURES, "is_male", "is_chinstrap", "is_gentoo"]
TARGET = "body_mass_g"


def load() -> tuple[tg.Tensor, tg.Tensor]:
    """Features (N, 6) and weights in grams (N, 1), without the 11 birds that lack a value."""
    with open(DATA, encoding="utf-8", newline="") as file:
        birds = [bird for bird in csv.DictReader(file) if "NA" not in bird.values()]
    rows = [
        [
            *(float(bird[name]) for name in MEASURES),
            float(bird["sex"] == "male"),
            float(bird["species"] == "Chinstrap"),
            float(bird["species"] == "Gentoo"),
        ]
        for bird in birds
    ]
    return tg.tensor(rows), tg.tensor([[float(bird[TARGET])] for bird in birds])


def train(x: tg.Tensor, y: tg.Tensor, epochs: int) -> nn.Linear:
    """A linear layer that gives y for x, both of mean 0 and deviation 1, by least squares."""
    model = nn.Linear(x.shape[1], 1)
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    criterion = nn.MSELoss()

    @tg.compile
    def step(features: tg.Tensor, target: tg.Tensor) -> tg.Tensor:
        loss = criterion(model(features), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(epochs):
        for features, target in DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True):
            step(features, target)
    return model


def mean_error(guess: tg.Tensor, truth: tg.Tensor) -> float:
    """How many grams a guess is off, on average."""
    return (guess - truth).abs().mean().item()


def main() -> None:
    """Load, split, train, test, export."""
    parser = argparse.ArgumentParser(description="Linear regression on the Palmer penguins.")
    parser.add_argument("--epochs", type=int, default=100, help="passes over the penguins (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the order (0)")
    parser.add_argument("--out", type=Path, default=Path("runs/penguins"), help="(runs/penguins)")
    args = parser.parse_args()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        tg.manual_seed(args.seed)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    tg.set_default_device("numpy")  # 333 rows: compiling kernels would take longer than training

    x, y = load()
    held_out = len(x) // 5
    learn, test = random_split(TensorDataset(x, y), [len(x) - held_out, held_out])
    (x, y), (x_test, y_test) = learn.batch(slice(None)), test.batch(slice(None))

    # The scales come from the birds it learns from: the others are as unseen as later ones.
    mean, deviation, usual, spread = x.mean(0), x.std(0), y.mean(0), y.std(0)
    model = train((x - mean) / deviation, (y - usual) / spread, args.epochs)

    def in_grams(scaled: tg.Tensor) -> tg.Tensor:
        return (scaled * spread + usual).squeeze(1)

    with tg.no_grad():
        guess = in_grams(model((x_test - mean) / deviation))
        error = mean_error(guess, y_test.squeeze(1))
        baseline = mean_error(usual, y_test)
        slopes = (model.weight[0] * spread / deviation).tolist()
    print(f"{len(x)} penguins to learn from, {len(x_test)} held out to test on")
    print("what it learnt, everything else being equal:")
    for name, slope in zip(FEATURES, slopes, strict=True):
        print(f"  {slope:+8.1f} g  {'for each mm, ' * name.endswith('_mm')}{name}")
    print(f"mean error on the held-out penguins: {error:.0f} g")
    print(f"  of one who always says {usual.item():.0f} g, the mean: {baseline:.0f} g")

    program, birds = args.out / "penguins.msgpack", args.out / "penguins.csv"
    tg.export(
        model,
        x[:4],
        program,
        preprocess=lambda raw: (raw - mean) / deviation,
        postprocess=in_grams,
        inputs=["penguin"],
        outputs=[TARGET],
        features=FEATURES,
        gradient=True,  # so that a server can show which measures speak for an answer
        metadata={"mean error in g": round(error, 1), "data": "Palmer penguins", "seed": args.seed},
    )
    with open(birds, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*FEATURES, TARGET])  # the answer is for you: predict ignores it
        for row in tg.cat([x_test[:5], y_test[:5]], 1).tolist():
            writer.writerow([f"{number:g}" for number in row])
    print(f"wrote {program}, and five held-out penguins to {birds}")
    here, python = Path.cwd(), Path(sys.executable)
    python = python.relative_to(here) if python.is_relative_to(here) else python
    command = [str(python), "-m", "tinygrad_ish", "predict", str(program), str(birds)]
    print(f"next: {shlex.join(command)}")


if __name__ == "__main__":
    main()
