"""One listing, written for PyTorch, runs on both: only its import lines are replaced."""

from __future__ import annotations

import functools
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

import tinygrad_ish as tg

from .backends import BACKENDS

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[parity]'")

IMPORTS = """
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
from torch.utils.data import DataLoader, TensorDataset
"""

LISTING = """
class Net(nn.Module):
    def __init__(self):
        self.classes = 10
        super(Net, self).__init__()
        self.fc1 = nn.Linear(784, 128)
        self.fc2 = nn.Linear(128, 32)
        self.act = nn.ReLU(inplace=True)
        self.fc3 = nn.Linear(32, self.classes)

    def forward(self, x):
        x = torch.flatten(x, 1)
        x = torch.relu(self.fc1(x))
        x = self.act(self.fc2(x))
        x = self.fc3(x)
        return x


def init_weights(m):
    if isinstance(m, nn.Linear):
        nn.init.normal_(m.weight, std=0.1)
        nn.init.zeros_(m.bias)


def train(net, optimizer, criterion, trainloader, epochs, device):
    losses = []
    net.train()
    for epoch in range(epochs):
        running_loss = 0.0
        for i, data in enumerate(trainloader, 0):
            inputs, labels = data[0].to(device), data[1].to(device)
            optimizer.zero_grad()
            outputs = net(inputs)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: loss {running_loss / len(trainloader):.3f}")
    return losses


def test(net, testloader, device):
    correct = 0
    total = 0
    test_loss = 0
    net.eval()
    with torch.no_grad():
        for images, labels in testloader:
            images, labels = images.to(device), labels.to(device)
            outputs = net(images)
            test_loss += F.cross_entropy(outputs, labels, reduction="sum").item()
            _, predicted = torch.max(outputs.data, 1)
            total += labels.size(0)
            correct += (predicted == labels).sum().item()
            pred = outputs.argmax(dim=1, keepdim=True)
            assert pred.eq(labels.view_as(pred)).sum().item() == (predicted == labels).sum().item()
    assert not outputs.requires_grad and not net.training
    print(f"Accuracy: {100 * correct / total:.1f} %, average loss {test_loss / total:.4f}")
    return correct / total


def main(images, labels, make_optimizer, start, path, epochs=4, batch_size=16):
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x = torch.from_numpy(images)
    y = torch.tensor(labels, dtype=torch.long)
    data = TensorDataset(x, y)
    trainloader = DataLoader(data, batch_size=batch_size, shuffle=False)
    net = Net().to(device)
    net.apply(init_weights)
    if start is not None:
        net.load_state_dict({k: torch.from_numpy(v) for k, v in start.items()})
    first = {k: v.cpu().clone().numpy() for k, v in net.state_dict().items()}
    criterion = nn.CrossEntropyLoss()
    optimizer = make_optimizer(optim, net)

    losses = train(net, optimizer, criterion, trainloader, epochs, device)
    accuracy = test(net, trainloader, device)

    torch.save(net.state_dict(), path)
    again = Net().to(device)
    again.load_state_dict(torch.load(path))
    assert test(again, DataLoader(data, batch_size=64, shuffle=True), device) == accuracy
    last = {k: v.cpu().numpy() for k, v in net.state_dict().items()}
    count = sum(p.numel() for p in net.parameters() if p.requires_grad)
    return losses, accuracy, first, last, count, str(net)
"""

OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda optim, net: optim.SGD(net.parameters(), lr=0.05),
    "momentum": lambda optim, net: optim.SGD(net.parameters(), lr=0.01, momentum=0.9),
    "Nesterov": lambda optim, net: optim.SGD(
        net.parameters(), lr=0.01, momentum=0.9, nesterov=True
    ),
    "dampening": lambda optim, net: optim.SGD(
        net.parameters(), lr=0.05, momentum=0.9, dampening=0.5
    ),
    "SGD decay": lambda optim, net: optim.SGD(
        net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-2
    ),
    "Adam": lambda optim, net: optim.Adam(net.parameters(), lr=1e-3),
    "Adam decay": lambda optim, net: optim.Adam(
        net.parameters(), lr=1e-3, betas=(0.8, 0.99), weight_decay=1e-2
    ),
}


OUR_IMPORTS = re.sub(r"\btorch\.", "tinygrad_ish.", IMPORTS).replace(
    "import torch\n", "import tinygrad_ish as torch\n"
)


def run_listing(imports: str, name: str, *args: Any) -> Any:
    space: dict[str, Any] = {"__name__": "listing"}
    exec(compile(imports + LISTING, "<listing>", "exec"), space)
    return space["main"](*digits(), OPTIMIZERS[name], *args)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """400 images in ten classes, a tenth of the labels wrong: losses stay far from 0."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 400)
    prototypes = rng.normal(size=(10, 1, 28, 28))
    images = 0.2 * prototypes[labels] + rng.normal(size=(400, 1, 28, 28))
    labels[::10] = rng.integers(0, 10, 40)
    return images.astype(np.float32), labels


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Generator[None, None, None]:
    """The matrices are small: on a busy machine threads would only wait for each other."""
    threads = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    yield
    torch.set_num_threads(threads[0])
    numba.set_num_threads(threads[1])


@functools.cache
def run_in_torch(name: str, path: str) -> Any:
    return run_listing(IMPORTS, name, None, path)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_listing_trains_alike(name: str, backend: str, tmp_path_factory: Any) -> None:
    tg.set_default_device(backend)
    theirs_path = str(tmp_path_factory.getbasetemp() / "net.pt")
    our_path = str(tmp_path_factory.getbasetemp() / "net.msgpack")

    losses, accuracy, first, last, *shown = run_in_torch(name, theirs_path)
    got_losses, got_accuracy, got_first, got_last, *got_shown = run_listing(
        OUR_IMPORTS, name, first, our_path
    )
    assert got_shown == shown
    assert list(got_first) == list(first)
    for key in first:
        np.testing.assert_array_equal(got_first[key], first[key])
    assert len(losses) == 100 and losses[-1] < 0.5 * losses[0]
    np.testing.assert_allclose(got_losses, losses, rtol=1e-4)
    assert abs(got_accuracy - accuracy) <= 1 / 400
    for key in last:
        np.testing.assert_allclose(got_last[key], last[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["Nesterov", "Adam"])
def test_pytorch_goes_on_from_our_weights(name: str, backend: str, tmp_path: Path) -> None:
    tg.set_default_device(backend)
    losses, _, first, last, *_ = run_listing(OUR_IMPORTS, name, None, tmp_path / "a.msgpack", 1)
    for start in (first, last):
        theirs, *_ = run_listing(IMPORTS, name, start, tmp_path / "b.pt", 1)
        again, *_ = run_listing(OUR_IMPORTS, name, start, tmp_path / "b.msgpack", 1)
        np.testing.assert_allclose(again, theirs, rtol=1e-4)
        assert (again == losses) == (start is first)
