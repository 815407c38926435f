"""Dropout's bits, many blocks of them, and the counts that advance on the GPU."""

from __future__ import annotations

import numpy as np
import pytest

from tinygrad_ish.kernels import get_backend, reference

from . import shim
from .checks import DTYPES, Kernels, as_dtype, check, normal, sees
from .test_kernels import Watched

pytestmark = pytest.mark.skipif(shim.why_missing() is not None, reason=str(shim.why_missing()))

TICKET = np.array([-(2**40) - 5, 2**33 + 1])  # all four words of it matter
BLOCKS = 2 * 8 * 256 * 4  # numbers that the shim's grid takes at once


def dropped(n: int, p: float, dtype: str) -> np.ndarray:
    """What dropout makes of ones, by the reference in float64 and rounded at the end."""
    kept = reference.dropout(np.ones(n), TICKET, p) != 0
    scale = as_dtype(dtype).type(1 / (1 - p))
    return np.where(kept, scale, as_dtype(dtype).type(0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 5, 16, 1027, 2 * BLOCKS + 13])
def test_dropout_has_the_bits_of_the_reference(kernels: Kernels, n: int, dtype: str) -> None:
    expected = dropped(n, 0.3, dtype)
    for offset in (0, 1):
        watched = Watched()
        x = watched.array(np.ones(n, as_dtype(dtype)), offset)
        assert kernels.dropout(x, TICKET, 0.3).tobytes() == expected.tobytes()
        assert kernels.dropout(x, TICKET, 0.3, out=x) is x  # in place
        assert x.tobytes() == expected.tobytes()
        watched.check("dropout")
    assert kernels.used == {"dropout"}


def test_dropout_at_the_ends(kernels: Kernels) -> None:
    x = normal(200, "float32")
    for p in (0.0, 1.0, 1 - 2.0**-40, 2.0**-40):
        check(kernels, "dropout", x, TICKET, p)
    nothing = kernels.dropout(np.full(999, np.nan, "float32"), TICKET, 0.5)
    np.testing.assert_array_equal(nothing == 0, dropped(999, 0.5, "float32") == 0)


def test_a_strided_ticket(kernels: Kernels) -> None:
    ticket = np.repeat(TICKET, 2)[::2]
    assert not ticket.flags.c_contiguous
    x = normal(50, "float64")
    np.testing.assert_array_equal(
        kernels.dropout(x, ticket, 0.5), get_backend("numpy").dropout(x, TICKET, 0.5)
    )


def test_tickets_and_steps_are_counted(kernels: Kernels) -> None:
    state, step = np.array([7, 3]), np.array([0.1, 4.0])
    assert kernels.draw(state).tolist() == [7, 3]
    assert kernels.draw(state).tolist() == [7, 4] and state.tolist() == [7, 5]
    for found, count in [(None, 5), (np.array(0.0), 6), (np.array(1.0), 6), (np.array(np.nan), 6)]:
        assert kernels.count_step(step, found) is None
        assert step.tolist() == [0.1, count]
    assert kernels.used == {"draw", "count_step"}


@pytest.mark.parametrize(
    "fault",
    [
        ("uint64(i + k) / 4", "uint64(i) / 4"),
        ("i < 10; i++", "i < 9; i++"),
        (">= uint64(least)", "> uint64(least) + (1u << 24)"),
        ("d = uint32(call >> 32)", "d = 0"),
        ("T(A(y) * A(scale))", "y"),
    ],
)  # fmt: skip
def test_a_planted_fault_is_seen(fault: tuple[str, str]) -> None:
    sees(fault, lambda k: test_dropout_has_the_bits_of_the_reference(k, 1027, "float16"))
