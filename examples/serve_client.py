"""Ask a running server about handwritten digits, all at once, and say how many it got right.

make serve                                  in one terminal
.venv/bin/python examples/serve_client.py   in another
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

import numpy as np

from tinygrad_ish import datasets
from tinygrad_ish.serve import AsyncClient, Client

BUNDLED = Path(__file__).resolve().parent.parent / "data" / "mnist10k"


async def ask(url: str, images: np.ndarray, at_once: int) -> np.ndarray:
    """The digit that the server's default model sees in each image, each a request of its own."""
    gate = asyncio.Semaphore(at_once)
    async with AsyncClient(url) as client:

        async def one(image: np.ndarray) -> int:
            async with gate:
                return int((await client.predict(image[None])).argmax())

        return np.array(await asyncio.gather(*map(one, images)))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--count", type=int, default=1000, help="images to ask about")
    parser.add_argument("--at-once", type=int, default=8, help="requests under way")
    args = parser.parse_args()
    test = datasets.MNIST(BUNDLED, train=False)
    images, labels = test.data.numpy()[: args.count], test.targets.numpy()[: args.count]

    with Client(args.url) as client:
        if not client.ready():
            sys.exit(f"no server is ready at {args.url}: start one with make serve")
        for label, probability in client.labels(images[:1])[0][:3]:
            print(f"the first one is a {label}: {probability:.1%}")
    start = time.perf_counter()
    found = asyncio.run(ask(args.url, images, args.at_once))
    seconds = time.perf_counter() - start
    print(f"{(found == labels).mean():.1%} of {len(found)} are right, {len(found) / seconds:.0f}/s")


if __name__ == "__main__":
    main()
