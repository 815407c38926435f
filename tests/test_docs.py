"""The documents: their code runs, their links and commands lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tinygrad_ish import datasets

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readme_listings_train_and_export(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listings = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    listing = "\n".join(listings)
    listing = listing.replace('"data/mnist10k"', repr(str(ROOT / "data" / "mnist10k")))
    monkeypatch.chdir(tmp_path)
    exec(compile(listing, "README.md", "exec"), {})
    first, *program, best = capsys.readouterr().out.splitlines()
    assert float(first.removeprefix("loss ")) < 1.0
    assert program[0].startswith("program(") and "softmax" in program[-2]
    label, probability = ast.literal_eval(best)
    assert label in datasets.MNIST.classes and 0.1 < probability <= 1
    assert (tmp_path / "digits.msgpack").exists()


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_lead_to_files(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_make_targets_and_modules_exist(path: Path) -> None:
    text, makefile = path.read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z][a-z-]*)(?=[`\n ])", "\n".join(quoted(text))):
        assert re.search(rf"^{target}:", makefile, re.M), f"{path.name}: make {target}"
    for module in re.findall(r"python -m (benchmarks\.\w+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), f"{path.name}: {module}"


def quoted(text: str) -> list[str]:
    """Code spans and blocks."""
    return [a or b for a, b in re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", text, re.S)]
