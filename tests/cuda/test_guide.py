"""The kernel that docs/kernels.md writes works as it is written there, on the CPU and for NVRTC."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinygrad_ish.kernels import gpu, reference
from tinygrad_ish.kernels.gpu import _nvrtc

from . import shim

GUIDE = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")
LISTINGS = re.findall(r"```(?:python|cuda)\n(.*?)```", GUIDE, re.S)


def listing(start: str) -> str:
    [found] = [text for text in LISTINGS if text.startswith(start)]
    return found


@pytest.mark.skipif(shim.why_missing() is not None, reason=str(shim.why_missing()))
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_square(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, python = listing("#include"), listing('"""Squares')
    monkeypatch.setattr(_nvrtc, "source", {"square": source}.__getitem__)
    specification = dict(vars(reference))
    exec(listing("@_quiet"), specification)
    monkeypatch.setattr(reference, "square", specification["square"], raising=False)
    module: dict[str, Any] = {"__package__": gpu.__name__}
    exec(compile(python, "square.py", "exec"), module)
    x = np.linspace(-9, 9, 5003).astype(dtype)
    with shim.in_place_of_a_gpu("shuffled"):
        for part in (x, x[1:], x[:0], x[::2]):
            out = np.full(part.shape, np.nan, dtype)
            assert module["square"](part, out) is out
            np.testing.assert_array_equal(out, np.square(part))
        changed = x.copy()
        module["square"](changed, changed)
    np.testing.assert_array_equal(changed, np.square(x))


@pytest.mark.skipif(_nvrtc.why_missing() is not None, reason=str(_nvrtc.why_missing()))
def test_square_compiles() -> None:
    _, log = _nvrtc.compile_cubin(
        listing("#include"), "square", "sm_90", ("-DT=bfloat16", "-Xptxas", "-v")
    )
    assert "0 bytes spill stores" in log and "warning" not in log


def test_its_commands_name_files_that_are_there() -> None:
    root = Path(__file__).parents[2]
    named = re.findall(r"(?<![\w/])((?:tests|kernels|docs|benchmarks)/[\w/.]+\w)", GUIDE)
    assert len(named) > 15
    for path in {name for name in named if "square" not in name}:
        assert (root / path).exists(), path
