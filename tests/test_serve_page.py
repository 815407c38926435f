"""The page: how it is sent, what it may load, and how it does in a real Chromium."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygrad_ish as tg
from tinygrad_ish import datasets, nn, optim, transforms
from tinygrad_ish.deploy.inputs import centred

httpx = pytest.importorskip("httpx", reason="httpx is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from tinygrad_ish.serve import page as served  # noqa: E402
from tinygrad_ish.serve.app import create_app, routes  # noqa: E402
from tinygrad_ish.serve.settings import Settings  # noqa: E402

from .asgi import Client  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "serve" / "page"
FILES = sorted(FOLDER.iterdir())
TRAINED = ROOT / "runs" / "mnist" / "digits.msgpack"
KEY = "a-key-of-some-length"


def text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


# --- the files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_an_address_elsewhere(path: Path) -> None:
    found = re.findall(r"(?:https?:|wss?:|[\"'(]//)[^\s\"'`)]*", path.read_text(encoding="utf-8"))
    assert set(found) <= {"http://www.w3.org/2000/svg"}


def test_nothing_that_the_policy_forbids_stands_in_the_html() -> None:
    html = text("index.html")
    assert not re.search(r"\sstyle=|\son[a-z]+=|<style|javascript:", html)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", html))
    for name in ("app.js", "api.js", "charts.js", "digit.js", "snippets.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|\beval\(", text(name)), name


def test_every_file_is_used_and_every_used_file_is_there() -> None:
    named = set(re.findall(r'(?:src|href)="page/([^"#]+)', text("index.html")))
    named |= {
        name
        for path in FILES
        for name in re.findall(r'from "\./([^"]+)"', path.read_text(encoding="utf-8"))
    }
    assert named | {"index.html"} == {path.name for path in FILES} == set(served.FILES)


def test_the_reference_names_routes_that_there_are() -> None:
    known = {
        (method, re.sub(r":\w+}", "}", route.path))  # type: ignore[attr-defined]
        for route in routes()
        for method in route.methods  # type: ignore[attr-defined]
    }
    told = []
    for cell in re.findall(r"<td>(<code><b>.*?)</td>", text("index.html"), re.DOTALL):
        method = re.findall(r"<b>(\w+)</b>", cell)[0]
        told += [(method, path) for path in re.findall(r"/[^<\s]*(?=</code>)", cell)]
    assert len(told) > 9
    ours = {(method, path) for method, path in told if not path.startswith(("/v1", "/v2"))}
    assert ours <= known
    assert {(m, re.sub(r"{name}", "x", p)) for m, p in set(told) - ours} == {
        ("POST", "/v2/models/x/infer"),
        ("POST", "/v1/models/x:predict"),
    }


def channel(byte: int) -> float:
    level = byte / 255
    return level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
    red, green, blue = (channel(int(digits[n : n + 2], 16)) for n in (0, 2, 4))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_as_wcag_asks(dark: bool) -> None:
    """A ratio of 4.5 for text, of 3 for what draws (WCAG 2.2, 1.4.3 and 1.4.11)."""
    blocks = re.findall(r":root {(.*?)}", text("style.css"), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", blocks[1 if dark else 0]))
    pairs = [(fore, back, 4.5) for fore in ("ink", "quiet") for back in ("paper", "panel", "soft")]
    pairs += [("accent", "panel", 4.5), ("bad", "panel", 4.5), ("on-accent", "accent", 4.5)]
    pairs += [("for", "panel", 3), ("against", "panel", 3), ("good", "paper", 3)]
    for fore, back, least in pairs:
        low, high = sorted((luminance(colours[fore]), luminance(colours[back])))
        assert (high + 0.05) / (low + 0.05) >= least, (fore, back)


# --- how they are sent -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def get(programs: list[str]) -> Iterator[Callable[..., Any]]:
    app = create_app(programs[1:2], Settings(reload=False), device="numpy")
    with Client(app) as client:
        yield client.get


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/page/app.js", "text/javascript"), ("/page/icon.svg", "image/svg+xml")],
)
def test_a_file_has_the_headers_that_keep_it_safe(get: Any, path: str, kind: str) -> None:
    answer = get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].split(";")[0] == kind
    policy = dict(part.strip().split(" ", 1) for part in answer.headers[
        "content-security-policy"].split(";"))  # fmt: skip
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    assert set(policy.values()) <= {"'none'", "'self'"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_an_unchanged_file_is_not_sent_again(get: Any) -> None:
    etag = get("/").headers["etag"]
    again = get("/", headers={"if-none-match": etag})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"]
    assert get("/", headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize("name", ["none.js", "..%2fpage.py", "%2e%2e", "page.py", "app.js%00"])
def test_other_files_are_not_there(get: Any, name: str) -> None:
    assert get(f"/page/{name}").status_code == 404


def test_the_figures(get: Any) -> None:
    found = get("/stats").json()
    assert found["uptime"] > 0 and found["requests"] >= 0
    figures = found["models"]["penguins"]
    assert {"requests_per_second", "p50_ms", "p99_ms", "batch_sizes", "queue"} <= set(figures)


# --- in a browser ------------------------------------------------------------------------------


def train(path: Path) -> None:
    """A network like that of examples/mnist_mlp.py, learnt in a few seconds."""
    data = datasets.MNIST(ROOT / "data" / "mnist10k", train=True)
    prepare = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    tg.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer, loss = optim.Adam(model.parameters(), lr=1e-3), nn.CrossEntropyLoss()
    pictures, labels = data.data, data.targets
    for _ in range(4):
        order = np.random.default_rng(0).permutation(len(pictures))
        for start in range(0, len(order), 64):
            some = tg.tensor(order[start : start + 64])
            optimizer.zero_grad()
            given = prepare(pictures.index_select(0, some))
            loss(model(given), labels.index_select(0, some)).backward()
            optimizer.step()
    tg.export(model, pictures[:4], path, preprocess=prepare, postprocess="softmax", gradient=True,
              inputs=["image"], outputs=["probability"], labels=[str(n) for n in range(10)],
              metadata={"image": "mnist"})  # fmt: skip


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("programs")
    digits = folder / "digits.msgpack"
    try:
        assert tg.load_program(TRAINED, "numpy").gradient_graph is not None
        shutil.copy(TRAINED, digits)
    except (OSError, ValueError, AssertionError):  # none, or one of another time
        train(digits)
    tg.manual_seed(3)
    table = folder / "penguins.msgpack"
    tg.export(nn.Linear(3, 1), tg.randn(4, 3), table, gradient=True, inputs=["bird"],
              outputs=["grams"], features=["bill", "wing", "<b>tail</b>"])  # fmt: skip
    hostile = folder / "hostile.msgpack"
    names = ["<img src=x onerror=alert(1)>", "</script>", "long" * 30]
    tg.export(nn.Linear(2, 3), tg.randn(4, 2), hostile, postprocess="softmax", labels=names,
              outputs=["<i>p</i>"], metadata={"note": "<script>alert(1)</script>"})  # fmt: skip
    return [str(digits), str(table), str(hostile)]


@contextlib.contextmanager
def serving(programs: list[str], **settings: Any) -> Iterator[str]:
    """A server on a port of its own; its address."""
    app = create_app(programs, Settings(reload=False, **settings), device="numpy")
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, ws="none", log_level="warning", lifespan="on")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive() and time.monotonic() < until, "the server does not start"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def address(programs: list[str]) -> Iterator[str]:
    with serving(programs) as url:
        yield url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    api = pytest.importorskip(
        "playwright.sync_api",
        reason="Playwright is not installed: pip install 'tinygrad_ish[browser]'",
    )
    found = [path for name in ("chromium", "chromium-browser", "google-chrome")
             if (path := shutil.which(name))]  # fmt: skip
    if not found:
        pytest.skip("there is no Chromium: apt install chromium")
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=arguments)
        yield browser
        browser.close()


SHIFTS = """
  window.shifts = 0;
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts += entry.value;
  }).observe({ type: "layout-shift", buffered: true });
"""


@pytest.fixture
def opened(chromium: Any, address: str) -> Iterator[Callable[..., Any]]:
    """``opened(width=…, …)``: the page in a window; whatever went wrong in it fails the test."""
    wrong: list[str] = []
    contexts = []

    def start(url: str = address, ready: bool = True, **options: Any) -> Any:
        size = {"width": options.pop("width", 1180), "height": options.pop("height", 900)}
        contexts.append(chromium.new_context(viewport=size, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.add_init_script(SHIFTS)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("dialog", lambda dialog: wrong.append(f"a dialog: {dialog.message}"))
        page.on("request", lambda r: None if r.url.startswith(url) else wrong.append(r.url))
        page.goto(url)
        if ready:
            until(page, "document.querySelector('#model').options.length > 0")
        page.wrong = wrong
        return page

    yield start
    for context in contexts:
        context.close()
    assert not wrong


def arc(x: float, y: float, rx: float, ry: float, start: int, stop: int) -> list[Any]:
    turns = np.radians(np.linspace(start, stop, 20))
    return [(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns]


THREE = [*arc(0.48, 0.32, 0.2, 0.16, -150, 90), *arc(0.47, 0.66, 0.23, 0.18, -90, 160)]
SEVEN = [(0.28, 0.22), (0.72, 0.2), (0.66, 0.33), (0.57, 0.52), (0.5, 0.66), (0.44, 0.82)]


def draw(page: Any, stroke: list[Any]) -> None:
    page.locator("#pad").scroll_into_view_if_needed()
    box = page.locator("#pad").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place)
    page.mouse.up()


def until(page: Any, condition: str) -> None:
    """Wait for a condition. (Playwright's wait_for_function evaluates text in the page, which its
    policy forbids.)"""
    late = time.monotonic() + 10
    while not page.evaluate(condition):
        assert time.monotonic() < late, condition
        page.wait_for_timeout(20)


def settle(page: Any, best: str) -> None:
    """Wait until the answer to what is drawn is there."""
    until(page, f"document.querySelector('#best').textContent === {best!r}")


def shown(page: Any) -> list[float]:
    values = page.locator("#bars .value").all_text_contents()
    return [float(value.rstrip("% \u00a0")) for value in values]


def test_draws_a_three_and_a_seven_and_reads_the_answers(opened: Any) -> None:
    page = opened()
    assert page.locator("#invite").is_visible()
    draw(page, THREE)
    settle(page, "3")
    assert shown(page)[3] == max(shown(page)) > 40
    assert sum(shown(page)) == pytest.approx(100, abs=1)
    assert page.locator("#bars li[aria-current] .name").all_text_contents() == ["3"]
    assert float(page.text_content("#latency")) > 0
    page.click("#clear")
    settle(page, "–")
    draw(page, SEVEN)
    settle(page, "7")
    assert "median" in page.text_content("#median")
    until(page, "document.querySelector('#said').textContent.startsWith('7, ')")


def test_probabilities_move_while_the_pen_is_down(opened: Any) -> None:
    page = opened()
    half = THREE[:20]
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + half[0][0] * box["width"], box["y"] + half[0][1] * box["height"])
    page.mouse.down()
    seen = set()
    for x, y in half[1:]:
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        page.wait_for_timeout(25)
        seen.add(tuple(page.locator("#bars .value").all_text_contents()))
    assert len(seen) > 4
    page.mouse.up()


def test_a_digit_drawn_by_keyboard(opened: Any) -> None:
    page = opened()
    page.focus("#pad")
    for key, times in (("ArrowLeft", 5), (" ", 1), ("ArrowRight", 10)):
        for _ in range(times):
            page.keyboard.press(key)
    for _ in range(7):
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")
    settle(page, "7")
    page.keyboard.press("c")
    settle(page, "–")


def test_a_digit_drawn_by_finger(opened: Any) -> None:
    page = opened(width=390, height=844, has_touch=True, is_mobile=True)
    box = page.locator("#pad").bounding_box()
    session = page.context.new_cdp_session(page)
    for n, (x, y) in enumerate(SEVEN):
        point = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
        kind = "touchMove" if n else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    settle(page, "7")
    assert page.evaluate("scrollY") == 0, "drawing must not scroll the page"


def test_the_drawing_is_centred_as_the_server_would(opened: Any) -> None:
    """digit.js and deploy/inputs.py bring ink into the same 28 × 28, to one level of 255."""
    from PIL import Image, ImageDraw

    page = opened()
    code = """async ([ink, w, h]) => {
      const { centred } = await import("./page/digit.js");
      return [...centred(Float32Array.from(ink), w, h).pixels];
    }"""
    rng = np.random.default_rng(0)
    for width, height in ((280, 280), (200, 90), (31, 150), (12, 9)):
        for _ in range(3):
            image = Image.new("L", (width, height))
            places = rng.uniform(0, 1, (4, 2)) * (width, height)
            pen = max(1, min(width, height) // 12)
            ImageDraw.Draw(image).line([tuple(p) for p in places], 255, pen, joint="curve")
            ink = np.asarray(image, np.float32)
            found = page.evaluate(code, [ink.ravel().tolist(), width, height])
            expected = centred(ink).astype(int)
            assert np.abs(np.reshape(found, (28, 28)) - expected).max() <= 1, (width, height)


def test_the_saved_png_gets_the_same_answer_as_the_drawing(opened: Any, tmp_path: Path) -> None:
    page = opened()
    draw(page, THREE)
    settle(page, "3")
    page.wait_for_timeout(200)  # the last of the answers
    here = shown(page)
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "digit.png"
    download.value.save_as(tmp_path / "digit.png")
    answer = httpx.post(
        f"{page.url}predict",
        content=(tmp_path / "digit.png").read_bytes(),
        headers={"content-type": "image/png"},
    ).json()
    there = answer["outputs"]["probability"][0]
    np.testing.assert_allclose(here, np.multiply(there, 100), atol=2)


def coloured(page: Any) -> int:
    return int(page.evaluate("""() => {
      const canvas = document.querySelector("#heat");
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return data.filter((value, k) => k % 4 === 3 && value > 40).length;
    }"""))  # fmt: skip


def test_the_explanation_is_drawn_over_the_digit(opened: Any) -> None:
    page = opened()
    page.check("#explain")
    assert coloured(page) == 0
    draw(page, THREE)
    until(page, "/For “3”.*sum to/.test(document.querySelector('#why-note').textContent)")
    late = time.monotonic() + 10
    while coloured(page) <= 500:  # a part of the stroke may have been explained before the whole
        assert time.monotonic() < late
        page.wait_for_timeout(20)
    numbers = re.findall(r"[+−]\d+\.\d+", page.text_content("#why-note"))
    total, rise = (float(n.replace("−", "-")) for n in numbers)
    assert total == pytest.approx(rise, rel=0.1, abs=0.1)
    page.select_option("#target", "8")
    until(page, "document.querySelector('#why-note').textContent.includes('“8”')")
    page.select_option("#method", "gradient")
    until(page, "document.querySelector('#why-note').textContent.includes('how its score')")
    page.uncheck("#explain")
    page.wait_for_timeout(100)
    assert coloured(page) == 0


def test_a_table_is_asked_by_a_form(opened: Any, programs: list[str]) -> None:
    page = opened()
    page.select_option("#model", "penguins")
    fields = page.locator("#table input")
    assert fields.count() == 3 and page.get_by_label("<b>tail</b>").count() == 1
    page.check("#explain")
    for n, value in enumerate(("1.5", "-2", "0.25")):
        fields.nth(n).fill(value)
    page.wait_for_selector("#reasons li")
    program = tg.load_program(programs[1], "numpy")
    expected = float(program([[1.5, -2, 0.25]])[0, 0])
    said = page.text_content("#best").split()
    assert float(said[0].replace(",", "")) == pytest.approx(expected, rel=1e-4)
    assert said[1] == "grams"
    parts = [
        float(value.replace("−", "-"))
        for value in page.locator("#reasons .value").all_text_contents()
    ]
    rise = expected - float(program([[0.0, 0.0, 0.0]])[0, 0])
    assert sum(parts) == pytest.approx(rise, abs=0.02)


def test_names_out_of_a_model_are_text(opened: Any) -> None:
    page = opened()
    page.select_option("#model", "hostile")
    assert page.locator("#explain").is_disabled()
    page.fill("#json-text", '{"inputs": [[1, 2]]}')
    page.get_by_role("button", name="Ask").click()
    until(page, "document.querySelector('#latency').textContent !== '–'")
    assert "<img src=x onerror=alert(1)>" in page.locator("#bars .name").all_text_contents()
    assert page.locator("main img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_refusal_is_shown_in_the_servers_words(opened: Any) -> None:
    page = opened()
    page.select_option("#model", "hostile")
    page.fill("#json-text", '{"inputs": [[1]]}')
    page.get_by_role("button", name="Ask").click()
    page.wait_for_selector("#problem:visible")
    assert "expected shape [batch, 2]" in page.text_content("#problem")
    assert all("400" in entry for entry in page.wrong)
    page.wrong.clear()


def test_figures_move(opened: Any) -> None:
    page = opened()
    draw(page, SEVEN)
    until(
        page,
        """
      parseFloat(document.querySelector(".card .now").textContent) > 0
        && document.querySelectorAll(".card .chart svg .line").length > 0""",
    )
    assert page.locator(".card").count() == 3
    assert page.locator("#state").text_content() == "ready"


def test_the_python_that_is_shown_runs(opened: Any) -> None:
    page = opened()
    page.select_option("#model", "penguins")
    page.focus("#tab-curl")
    page.keyboard.press("ArrowRight")
    code = page.text_content("#snippet")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "snippet", "exec"), {})
    assert "grams" in printed.getvalue()
    page.keyboard.press("ArrowRight")
    answer = page.evaluate(f"(async () => {{ {page.text_content('#snippet')}; return outputs }})()")
    assert list(answer) == ["grams"]


@pytest.mark.parametrize("width", [320, 390, 768, 1400])
def test_nothing_is_cut_off_or_jumps_at_any_width(opened: Any, width: int) -> None:
    page = opened(width=width)
    page.check("#explain")
    draw(page, SEVEN)
    settle(page, "7")
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("window.shifts") < 0.02


def test_everything_one_can_reach_has_a_name_and_room_for_a_finger(opened: Any) -> None:
    page = opened(width=390)
    nameless = page.evaluate("""() => {
      const named = (e) => e.labels?.length || e.getAttribute("aria-label") || e.textContent.trim()
        || e.getAttribute("aria-labelledby");
      return [...document.querySelectorAll("a, button, input, select, textarea, [tabindex='0']")]
        .filter((e) => e.offsetParent && !named(e)).map((e) => e.outerHTML);
    }""")
    assert nameless == []
    small = page.evaluate("""() => [...document.querySelectorAll("button, select, .switch")]
      .filter((e) => e.offsetParent && !e.closest("h3") && e.getBoundingClientRect().height < 40)
      .map((e) => e.outerHTML)""")
    assert small == []


def test_focus_goes_to_the_drawing_by_keyboard_and_is_seen(opened: Any) -> None:
    page = opened()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "pad":
            break
    assert page.evaluate("document.activeElement.id") == "pad"
    shadow = page.evaluate("getComputedStyle(document.querySelector('.pad')).boxShadow")
    assert shadow != "none"


def test_a_server_with_keys_asks_for_one(opened: Any, programs: list[str], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"reader infer,metrics {KEY}\n")
    with serving(programs[:1], keys=str(keys)) as url:
        page = opened(url, ready=False)
        page.wait_for_selector("#key:visible")
        page.get_by_label("This server asks for an API key.").fill(KEY)
        page.get_by_role("button", name="Use it").click()
        until(page, "document.querySelector('#model').options.length > 0")
        assert page.locator("#key").is_hidden()
        draw(page, THREE)
        settle(page, "3")
        assert "Bearer $KEY" in page.text_content("#snippet")
        assert KEY not in page.content()
        page.close()  # before the server, which it goes on asking
        assert all("401" in entry for entry in page.wrong)
        page.wrong.clear()


def test_with_a_wrong_key_the_page_says_so_and_each_request_has_the_right_one(
    opened: Any, programs: list[str], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"reader infer,metrics {KEY}\nprometheus metrics {KEY[::-1]}\n")
    with serving(programs[:1], keys=str(keys)) as url:
        page = opened(url, ready=False)
        page.wait_for_selector("#key:visible")
        draw(page, THREE)  # nobody can be asked yet
        for wrong, why in (("not-one-of-the-keys", "the key is not known"),
                           (KEY[::-1], "the key does not allow this")):  # fmt: skip
            page.get_by_label("This server asks for an API key.").fill(wrong)
            page.get_by_role("button", name="Use it").click()
            until(page, f"document.querySelector('#key-problem').textContent.includes({why!r})")
            assert page.locator("#key").is_visible()
            until(page, f"document.querySelector('#state').textContent === {why!r}")
        page.get_by_label("This server asks for an API key.").fill(KEY)
        sent: list[Any] = []
        page.on("request", lambda request: sent.append(request))
        page.keyboard.press("Enter")
        settle(page, "3")  # what was drawn before
        assert page.locator("#key").is_hidden()
        page.check("#explain")
        until(page, "/For “3”/.test(document.querySelector('#why-note').textContent)")
        until(page, "document.querySelectorAll('.card .chart svg .line').length > 0")
        with page.context.expect_page() as tab:
            page.get_by_role("link", name="openapi.json").first.click()
        tab.value.wait_for_url("blob:**")
        assert '"openapi"' in tab.value.text_content("body")
        asked = {re.sub(r"\d+", "N", r.url.removeprefix(url).split("?")[0]) for r in sent
                 if r.headers.get("authorization") == f"Bearer {KEY}"}  # fmt: skip
        model = "models/digits/versions/N"
        assert asked == {"models", "stats", f"{model}/predict", f"{model}/explain", "openapi.json"}
        assert all(r.headers.get("authorization") == f"Bearer {KEY}" for r in sent
                   if r.url.startswith(url))  # fmt: skip
        assert page.evaluate("Object.values(sessionStorage)") == [KEY]
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        page.reload()
        until(page, "document.querySelector('#model').options.length > 0")
        assert page.locator("#key").is_hidden()
        page.close()  # before the server, which it goes on asking
        assert all("401" in entry or "403" in entry for entry in page.wrong)
        page.wrong.clear()


def test_a_key_that_does_not_allow_the_figures(
    opened: Any, programs: list[str], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"reader infer {KEY}\n")
    with serving(programs[:1], keys=str(keys)) as url:
        page = opened(url, ready=False)
        page.wait_for_selector("#key:visible")
        page.get_by_label("This server asks for an API key.").fill(KEY)
        page.keyboard.press("Enter")
        until(page, "document.querySelector('#total').textContent.includes('“metrics”')")
        assert page.locator("#state").text_content() == "ready"
        assert page.locator("#key").is_hidden()
        page.close()  # before the server, which it goes on asking
        assert all("401" in entry or "403" in entry for entry in page.wrong)
        page.wrong.clear()
