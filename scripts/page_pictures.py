"""The pictures of the server's page in docs/images: run it after `make mnist` and `make penguins`.

    pip install -e '.[browser,serve]' && apt install chromium
    python scripts/page_pictures.py

It serves both models, draws a digit while other clients ask too, and takes serve-light.png,
serve-dark.png and serve-phone.png.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright

from tinygrad_ish.serve.app import create_app
from tinygrad_ish.serve.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
MODELS = [
    ROOT / "runs" / "mnist" / "digits.msgpack",
    ROOT / "runs" / "penguins" / "penguins.msgpack",
]
SECONDS = 50  # of traffic, so that the charts show something
WINDOWS = {
    "light": {"viewport": {"width": 1180, "height": 966}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1180, "height": 966}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 1.5,
              "has_touch": True, "is_mobile": True, "color_scheme": "light"},
}  # fmt: skip


def three() -> list[tuple[float, float]]:
    """A 3, in parts of the drawing area."""

    def arc(y: float, width: float, height: float, start: int, stop: int) -> list[Any]:
        turns = [math.radians(t) for t in range(start, stop, 12)]
        return [(0.48 + width * math.cos(t), y + height * math.sin(t)) for t in turns]

    return [*arc(0.32, 0.2, 0.16, -150, 90), *arc(0.66, 0.23, 0.18, -90, 160)]


def draw(page: Any) -> None:
    """Draw it with the mouse."""
    box = page.locator("#pad").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in three()]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def ask(url: str, stop: threading.Event, pace: float) -> None:
    """Ask both models now and then, as other clients would."""
    bodies = {"digits": bytes(784), "penguins": bytes(24)}
    for n in range(10**9):
        for name in ("digits", "digits", "penguins"):
            request = urllib.request.Request(
                f"{url}models/{name}/predict",
                bodies[name] * (1 + n % 3),
                {"Content-Type": "application/octet-stream"},
            )
            urllib.request.urlopen(request).close()
            if stop.wait(pace * (1.2 + math.sin(n / 40))):
                return


def main() -> None:
    """Serve, draw, take the pictures."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    missing = [str(path) for path in MODELS if not path.exists()]
    if missing or chromium is None:
        sys.exit(f"missing: {', '.join(missing) or 'chromium'}")
    config = uvicorn.Config(
        create_app(MODELS, Settings(reload=False)), port=0, ws="none", log_level="warning"
    )
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    stop = threading.Event()
    clients = [threading.Thread(target=ask, args=(url, stop, p), daemon=True) for p in (0.02, 0.03)]
    for client in clients:
        client.start()
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        pages = {name: browser.new_context(**window).new_page() for name, window in WINDOWS.items()}
        for page in pages.values():
            page.goto(url)
            page.bring_to_front()
        time.sleep(SECONDS)
        for name, page in pages.items():
            page.bring_to_front()
            draw(page)
            page.check("#explain")
            page.mouse.move(5, 5)
            page.wait_for_timeout(2500)
            page.evaluate(
                "scrollTo({ top: 0, behavior: 'instant' }); document.activeElement.blur()"
            )
            path = ROOT / "docs" / "images" / f"serve-{name}.png"
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            picture.point(lambda level: min(255, round(level / 3) * 3)).save(path, optimize=True)
            print(f"{path}: {path.stat().st_size // 1000} kB")
        browser.close()
    stop.set()
    server.should_exit = True


if __name__ == "__main__":
    main()
