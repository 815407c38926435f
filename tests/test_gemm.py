"""The matrix product at the edges of memory: arrays that begin or end at an unreadable page."""

from __future__ import annotations

import subprocess
import sys

import pytest

GUARDED = '''
import ctypes, itertools, mmap
import numpy as np
from tinygrad_ish.kernels.cpu import gemm
from tinygrad_ish.kernels.cpu._tasks import run

libc, pages, PAGE = ctypes.CDLL(None, use_errno=True), [], mmap.PAGESIZE

def guarded(values, at_end):
    """A copy of the values between two pages that nobody may touch, against one of them."""
    room = -(-values.nbytes // PAGE) * PAGE
    pages.append(mmap.mmap(-1, room + 2 * PAGE))
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages[-1]))
    for page in (start, start + PAGE + room):
        assert libc.mprotect(ctypes.c_void_p(page), PAGE, 0) == 0
    first = PAGE + (room - values.nbytes if at_end else 0)
    out = np.frombuffer(pages[-1], values.dtype, values.size, first).reshape(values.shape)
    out[...] = values
    return out

rng, cases = np.random.default_rng(0), 0
for n, d, k in itertools.product((1, 3, 8, 13), (1, 7, 16, 40), (1, 9, 16, 31, 33, 70)):
    for dtype, at_end in itertools.product(("f4", "f8"), (False, True)):
        draw = lambda *shape: guarded(rng.normal(size=shape).astype(dtype), at_end)
        x, w, g, b, y, dx, dw = (
            draw(n, d), draw(k, d), draw(n, k), draw(k), draw(n, k), draw(n, d), draw(k, d)
        )
        run(gemm.product(x, w.T, y, b, "relu"))
        run(gemm.product(g, w, dx))
        run(gemm.product(g.T, x, dw))
        tolerance = 1e-4 if dtype == "f4" else 1e-12
        np.testing.assert_allclose(y, np.maximum(x @ w.T + b, 0), atol=tolerance)
        np.testing.assert_allclose(dx, g @ w, atol=tolerance)
        np.testing.assert_allclose(dw, g.T @ x, atol=tolerance)
        cases += 1
print(cases, "cases")
'''


def test_nothing_is_read_or_written_past_an_array() -> None:
    if sys.platform != "linux":
        pytest.skip("guard pages are made with Linux's mprotect")
    done = subprocess.run(
        [sys.executable, "-c", GUARDED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"signal or error {done.returncode}: {done.stderr}"
    assert done.stdout == "384 cases\n"
