"""Train a small network on handwritten digits: python examples/mnist_mlp.py --help

Learns from the digits in data/mnist10k in about ten seconds, and writes the trained weights, a
program that needs nothing of this file, and some pictures to runs/mnist.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    from tqdm import tqdm

    import tinygrad_ish as tg
    from tinygrad_ish import datasets, nn, optim, transforms
    from tinygrad_ish.utils.data import DataLoader, Dataset, Subset
except ImportError as error:
    sys.exit(
        f"{error}: this Python does not have the project. From its folder, run\n"
        "  python3 -m venv .venv && .venv/bin/python -m pip install -e '.[examples]'\n"
        f"  .venv/bin/python {' '.join(sys.argv)}"
    )

import pictures

BUNDLED = Path(__file__).resolve().parent.parent / "data" / "mnist10k"
KERNELS = ("linear", "linear_backward", "softmax_cross_entropy")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options; --augment changes what some of them are by default."""
    p = argparse.ArgumentParser(
        description="Train a multi-layer perceptron on images of 28 x 28 pixels: the 10,000 "
        "handwritten digits that come with the project, unless told otherwise."
    )
    add = p.add_argument
    add("--epochs", type=positive, metavar="N", help="passes over the images (40)")
    add("--batch-size", type=positive, default=64, metavar="N", help="images in a step (64)")
    add("--lr", type=rate, metavar="X", help="learning rate at the start, from where it falls "
        "to 0 (adam 0.001, sgd 0.05)")  # fmt: skip
    add("--optimizer", choices=["adam", "sgd"], default="adam", help="sgd has momentum 0.9 (adam)")
    add("--hidden", type=positive, nargs="*", metavar="N", help="sizes of the hidden layers (128)")
    add("--seed", type=seed, default=0, metavar="N", help="of weights, order, augmentation (0)")
    add("--device", choices=["cpu", "cuda"], help="where to compute (cpu)")
    add("--backend", choices=["numba", "numpy", "cupy"], help="kernels (the device's fastest)")
    add("--augment", action="store_true", help="learn from shifted, turned and slanted copies: a "
        "better network in half a minute; --hidden is 256 128 then, --epochs 60")  # fmt: skip
    add("--full", nargs="?", const="", metavar="FOLDER", help="MNIST's 60,000 images, from FOLDER "
        "or downloaded; without either, the bundled ones")  # fmt: skip
    add("--fashion", nargs="?", const="", metavar="FOLDER", help="pictures of clothes instead "
        "(Fashion-MNIST), from FOLDER, Debian's dataset-fashion-mnist, or downloaded")  # fmt: skip
    add("--out", type=Path, metavar="FOLDER", help="where the results go (runs/mnist; "
        "with --fashion runs/fashion)")  # fmt: skip
    args = p.parse_args(argv)
    if args.backend and args.device and (args.backend == "cupy") != (args.device == "cuda"):
        p.error(f"--backend {args.backend} does not run on --device {args.device}")
    args.out = args.out or Path("runs/mnist" if args.fashion is None else "runs/fashion")
    args.epochs = args.epochs or (60 if args.augment else 40)
    if args.hidden is None:
        args.hidden = [256, 128] if args.augment else [128]
    args.lr = args.lr or {"adam": 1e-3, "sgd": 0.05}[args.optimizer]
    return args


def positive(text: str) -> int:
    """An int of 1 or more, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an int of 1 or more, got {text}")
    return int(text)


def seed(text: str) -> int:
    """An int from 0 to 2⁶³ - 1, for argparse."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be an int from 0 to 2**63 - 1, got {text}")
    return int(text)


def rate(text: str) -> float:
    """A number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value


# --- data --------------------------------------------------------------------------------------


# Mean and deviation of MNIST's pixels: inputs around 0 are learnt from faster.
NORMALIZE = transforms.Normalize(0.1307, 0.3081)
# Each image turned, shifted, sized and slanted by chance, anew in every epoch.
AUGMENT = transforms.RandomAffine(degrees=12, translate=(0.08, 0.08), scale=(0.85, 1.15), shear=10)


def load(args: argparse.Namespace) -> tuple[str, Dataset, Dataset, Dataset]:
    """The name of the test set; images to learn from, to validate on, and to test on.

    The last tenth of the training images is held out for validation. The test images are looked
    at once, after training.
    """
    as_they_are = transforms.Compose([transforms.ToTensor(), NORMALIZE])
    bent = transforms.Compose([transforms.ToTensor(), AUGMENT, NORMALIZE])
    source, root = datasets.MNIST, BUNDLED
    if args.fashion is not None:
        source, root = datasets.FashionMNIST, args.fashion or None
    elif args.full is not None:
        try:
            for train in (True, False):
                datasets.MNIST(args.full or None, train, download=True)
            root = args.full or None
        except datasets.DataError as error:
            print(f"--full: {error}\nGoing on with the bundled digits.\n", file=sys.stderr)

    def images(train: bool, transform: transforms.Compose) -> datasets.MNIST:
        return source(root, train, transform, download=root is not BUNDLED)

    learn, plain = images(True, bent if args.augment else as_they_are), images(True, as_they_are)
    held_out = len(plain) // 10
    kept = range(len(plain) - held_out)
    validation = Subset(plain, range(len(kept), len(plain)))
    test = images(False, as_they_are)
    name = "10k subset" if test.files[0].name.startswith("mnist10k") else source.__name__
    return name, Subset(learn, kept), validation, test


# --- training ----------------------------------------------------------------------------------


def build(hidden: list[int]) -> nn.Sequential:
    """784 pixels, hidden layers with ReLU, 10 classes."""
    sizes = [784, *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for size, following in itertools.pairwise(sizes):
        layers += [nn.Linear(size, following), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 10))


def compile_kernels(names: tuple[str, ...]) -> None:
    """Compile what is not in the disk cache yet, with a bar; silent and quick after that."""
    bar = None

    def show(done: int, total: int, name: str) -> None:
        nonlocal bar
        bar = bar or tqdm(total=total, desc="compiling kernels (once)", unit="kernel")
        bar.update(done - bar.n)
        bar.set_postfix_str(name.rpartition(".")[2].lstrip("_"))

    tg.get_default_backend().warmup(names, progress=show)
    if bar is not None:
        bar.close()


# The right class is aimed at with 0.9, not 1: a network that is less sure of itself errs less.
criterion = nn.CrossEntropyLoss(label_smoothing=0.1)


def make_step(
    model: nn.Module, optimizer: optim.Optimizer, schedule: optim.lr_scheduler.LRScheduler
) -> Callable[[tg.Tensor, tg.Tensor], tuple[tg.Tensor, tg.Tensor]]:
    """A function that trains on a batch, and gives its loss and how many it got right."""

    @tg.compile
    def step(x: tg.Tensor, y: tg.Tensor) -> tuple[tg.Tensor, tg.Tensor]:
        scores = model(x)
        loss = criterion(scores, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss, (scores.argmax(1) == y).sum()

    return step


def train_epoch(
    model: nn.Module,
    step: Callable[[tg.Tensor, tg.Tensor], tuple[tg.Tensor, tg.Tensor]],
    loader: DataLoader,
    validation: Dataset,
    title: str,
) -> tuple[float, float, float, float]:
    """One pass over the training images, with a bar; loss and accuracy there and in validation."""
    total, right, seen = 0.0, 0, 0
    bar = tqdm(
        total=len(loader.dataset),
        desc=title,
        unit=" samples",
        mininterval=0.1 if sys.stderr.isatty() else math.inf,  # in a log: one line an epoch
    )
    with bar:
        for x, y in loader:
            loss, correct = step(x, y)
            total += loss.item() * len(y)
            right += correct.item()
            seen += len(y)
            if bar.update(len(y)):
                bar.set_postfix_str(f"loss {total / seen:.3f}, accuracy {right / seen:.1%}", False)
        loss, accuracy = evaluate(model, validation)[:2]
        bar.set_postfix_str(
            f"loss {total / seen:.3f}, accuracy {right / seen:.1%}, validation {accuracy:.1%}"
        )
    if not math.isfinite(total):
        sys.exit("The loss is no longer a number; try a smaller --lr.")
    return total / seen, right / seen, loss, accuracy


@tg.no_grad()
def evaluate(model: nn.Module, dataset: Dataset) -> tuple[float, float, tg.Tensor, tg.Tensor]:
    """Mean loss and accuracy on a dataset, the probabilities (N, 10), and the labels (N,)."""
    device = tg.get_default_backend()
    batches = [(model(x.to(device)), y) for x, y in DataLoader(dataset, batch_size=1000)]
    scores = tg.cat([s for s, _ in batches])
    labels = tg.cat([y for _, y in batches])
    loss = criterion(scores, labels.to(device)).item()
    probabilities = scores.softmax(1).cpu()
    accuracy = (probabilities.argmax(1) == labels).float().mean().item()
    return loss, accuracy, probabilities, labels


def train(
    args: argparse.Namespace, model: nn.Module, learn: Dataset, validation: Dataset
) -> dict[str, list[float]]:
    """Train for the epochs asked for, or until Ctrl-C; the curves."""
    if args.optimizer == "adam":
        optimizer: optim.Optimizer = optim.Adam(model.named_parameters(), lr=args.lr)
    else:
        optimizer = optim.SGD(model.named_parameters(), lr=args.lr, momentum=0.9)
    loader = DataLoader(learn, args.batch_size, shuffle=True, device=tg.get_default_backend())
    steps = args.epochs * len(loader)
    falling = optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / steps)
    step = make_step(model, optimizer, falling)
    curves: dict[str, list[float]] = {
        "training loss": [], "training accuracy": [],
        "validation loss": [], "validation accuracy": [],
    }  # fmt: skip
    try:
        for epoch in range(args.epochs):
            title = f"epoch {epoch + 1:2}/{args.epochs}"
            found = train_epoch(model, step, loader, validation, title)
            for name, value in zip(curves, found, strict=True):
                curves[name].append(value)
    except KeyboardInterrupt:
        print(f"\nStopped in epoch {epoch + 1}; keeping the weights so far.")
    return curves


# --- the whole job -----------------------------------------------------------------------------


def main() -> None:
    """Load, train, save, test, draw."""
    args = parse()
    try:
        check_writable(args.out)
        tg.set_default_device(args.backend or args.device or "cpu")
        tg.manual_seed(args.seed)
        name, learn, validation, test = load(args)
    except (ValueError, OSError) as error:
        sys.exit(f"mnist_mlp: {error}")
    compile_kernels((*KERNELS, f"{args.optimizer}_step"))
    model = build(args.hidden)
    sizes = "-".join(map(str, [784, *args.hidden, 10]))
    print(
        f"{sizes} network, {len(learn)} images to learn from, {len(validation)} to validate on, "
        f"{len(test)} to test on ({name}); {tg.get_default_backend().name} kernels"
    )
    started = time.perf_counter()
    curves = train(args, model, learn, validation)
    seconds = time.perf_counter() - started
    weights = args.out / "weights.msgpack"
    program = args.out / ("digits.msgpack" if args.fashion is None else "clothes.msgpack")
    metadata = {"model": sizes, "data": name, "seed": args.seed}
    if curves["validation accuracy"]:
        metadata["validation accuracy"] = curves["validation accuracy"][-1]
    try:
        tg.save(model.state_dict(), weights, metadata)
        _, accuracy, probabilities, labels = evaluate(model, test)
        names = [c.split(" - ")[0] for c in test.classes]
        export(model, test, program, names, {**metadata, "test accuracy": accuracy})
        print(f"\n{confusion(probabilities, labels, names)}\n")
        right = (probabilities.argmax(1) == labels).sum().item()
        print(f"test accuracy ({name}): {accuracy:.2%}, {right} of {len(test)}; ", end="")
        print(f"training took {seconds:.1f} s")
        print(f"wrote {weights}, {program}", end="")
        print(pictures.write(args.out, curves, test, probabilities))
    except OSError as error:
        sys.exit(f"\nmnist_mlp: {error}")
    picture = args.out / f"{pictures.name(test)}.png"
    asked = f"predict {shlex.quote(str(program))} {shlex.quote(str(picture))}"
    seen = f"inspect {shlex.quote(str(program))}"
    print(f"next: {_python()} -m tinygrad_ish {asked if picture.exists() else seen}")


def export(
    model: nn.Module, test: datasets.MNIST, path: Path, names: list[str], metadata: dict[str, Any]
) -> None:
    """Write the network as a program: from uint8 images (N, 28, 28) to probabilities (N, 10)."""
    if isinstance(test, datasets.FashionMNIST):
        marks = {}
    else:
        marks = {"image": "mnist"}  # predict centres a drawing as MNIST's digits are
    tg.export(
        model.cpu(),
        test.data[:4],
        path,
        preprocess=transforms.Compose([transforms.ToTensor(), NORMALIZE]),
        postprocess="softmax",
        inputs=["image"],
        outputs=["probability"],
        labels=names,
        gradient=True,  # so that a server can show which pixels speak for an answer
        metadata={**metadata, **marks, "tinygrad_ish": tg.__version__},
    )


def check_writable(folder: Path) -> None:
    """Make the folder; raise OSError, before any work is done, if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise OSError(f"--out {folder} cannot be written ({error}); name another folder") from error


def _python() -> str:
    """This Python, as one would type it here."""
    here, python = Path.cwd(), Path(sys.executable)
    found = python.relative_to(here) if python.is_relative_to(here) else python
    return shlex.quote(str(found))


def confusion(probabilities: tg.Tensor, labels: tg.Tensor, names: list[str]) -> str:
    """How often each class (row) was taken for which (column)."""
    width = max(len(name) for name in names) + 2
    table = [[0] * 10 for _ in range(10)]
    for truth, guess in zip(labels.tolist(), probabilities.argmax(1).tolist(), strict=True):
        table[truth][guess] += 1
    lines = ["confusion (row: what it is, column: what it was taken for)"]
    lines.append(" " * width + "".join(f"{c:5}" for c in range(10)))
    for name, row in zip(names, table, strict=True):
        lines.append(f"{name:>{width}}" + "".join(f"{n or '.':>5}" for n in row))
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nmnist_mlp: stopped")
