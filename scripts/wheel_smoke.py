"""A short training run on generated data, with the installed wheel; writes `smoke.msgpack`.

check_wheel.py runs it in a clean environment, from a folder that is not the repository.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np

import tinygrad_ish as tg
import tinygrad_ish.kernels
import tinygrad_ish.serve
from tinygrad_ish import nn, optim

for module in (tg, tinygrad_ish.kernels, tinygrad_ish.serve):
    if not Path(str(module.__file__)).is_relative_to(sys.prefix):
        sys.exit(f"{module.__name__} came from {module.__file__}, not from {sys.prefix}")

tg.manual_seed(0)
rng = np.random.default_rng(0)
points = rng.standard_normal((512, 8), dtype=np.float32)
x = tg.tensor(points)
y = tg.tensor((points @ rng.standard_normal((8, 3), dtype=np.float32)).argmax(axis=1))

net = nn.Sequential(
    OrderedDict(hidden=nn.Linear(8, 32), relu=nn.ReLU(), fc=nn.Linear(32, 3)),
)
criterion = nn.CrossEntropyLoss()
optimizer = optim.Adam(net.parameters(), lr=1e-2)
losses = []
for _ in range(100):
    optimizer.zero_grad()
    loss = criterion(net(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
if not losses[-1] < 0.3 * losses[0]:
    sys.exit(f"100 steps of Adam took the loss only from {losses[0]:.3f} to {losses[-1]:.3f}")

tg.save(net.state_dict(), "smoke.msgpack")
before = net(x).detach().numpy().copy()
optimizer.step()
net.load_state_dict(tg.load("smoke.msgpack"))
if not np.array_equal(before, net(x).detach().numpy()):
    sys.exit("weights came back from smoke.msgpack changed")
print(
    f"training from the wheel: loss {losses[0]:.3f} -> {losses[-1]:.3f}, weights saved and loaded"
)
