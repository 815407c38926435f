"""Instructions of a recorded program as plans: lists of calls that native code performs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from . import elementwise
from ._tasks import Call, Plan
from .clipping import clip_scale_calls, grad_norm_calls
from .linalg import linear_backward_calls, linear_calls, matmul_calls
from .losses import (
    bce_loss_calls,
    bce_with_logits_calls,
    mse_loss_calls,
    nll_loss_calls,
    softmax_cross_entropy_calls,
)
from .normalization import layer_norm_backward_calls, layer_norm_calls
from .optimizers import adam_step_calls, count_step_calls, sgd_step_calls
from .randoms import draw_calls, dropout_calls
from .rows import log_softmax_calls, softmax_calls

__all__: list[str] = []

FEW_ROWS = 256  # of a product whose weights are kept transposed if they do not change


# Each gives the calls of a kernel on these very arrays, or None where its Python function is to
# answer, for the sake of a copy or of a dtype that is not compiled.
CALLS: dict[str, Callable[..., list[Call] | None]] = {
    "add": elementwise.add_calls,
    "sub": elementwise.sub_calls,
    "mul": elementwise.mul_calls,
    "div": elementwise.div_calls,
    "copy": elementwise.copy_calls,
    "exp": elementwise.exp_calls,
    "log": elementwise.log_calls,
    "tanh": elementwise.tanh_calls,
    "sigmoid": elementwise.sigmoid_calls,
    "relu": elementwise.relu_calls,
    "relu_backward": elementwise.relu_backward_calls,
    "gelu": elementwise.gelu_calls,
    "gelu_backward": elementwise.gelu_backward_calls,
    "softmax": softmax_calls,
    "log_softmax": log_softmax_calls,
    "matmul": matmul_calls,
    "linear": linear_calls,
    "linear_backward": linear_backward_calls,
    "softmax_cross_entropy": softmax_cross_entropy_calls,
    "nll_loss": nll_loss_calls,
    "mse_loss": mse_loss_calls,
    "bce_loss": bce_loss_calls,
    "bce_with_logits": bce_with_logits_calls,
    "layer_norm": layer_norm_calls,
    "layer_norm_backward": layer_norm_backward_calls,
    "draw": draw_calls,
    "dropout": dropout_calls,
    "grad_norm": grad_norm_calls,
    "clip_scale": clip_scale_calls,
    "count_step": count_step_calls,
    "sgd_step": sgd_step_calls,
    "adam_step": adam_step_calls,
}


def lower(
    steps: list[Any],
    exposed: list[np.ndarray],
    unchanging: list[np.ndarray],
    direct: Callable[[Any], Any],
) -> list[Any]:
    """The steps (those with a ``kernel`` are instructions) with neighbours as plans; ``exposed``
    are the arrays that are read after them, ``unchanging`` those that others seldom write."""
    layers = {
        n
        for n, step in enumerate(steps)
        if getattr(step, "kernel", "") == "linear_backward" and _calls(step, {}) is not None
    }
    changes = _gates(steps, exposed, layers)
    sums = _sums_into(steps, exposed, layers, changes)
    packed = _pack(steps, unchanging, changes)
    lowered: list[Any] = []
    calls: list[Call] = []
    for n, step in enumerate([*steps, None]):
        if n in sums:
            continue
        own = _calls(step, changes.get(n, {})) if hasattr(step, "kernel") else None
        if own is not None:
            calls += own
            continue
        if calls:
            lowered.append(Plan(calls, packed))
            calls, packed = [], []
        if step is not None:
            lowered.append(step)
    return lowered


def _calls(step: Any, changes: dict[str, Any]) -> list[Call] | None:
    make = CALLS.get(step.kernel)
    if make is None:
        return None
    out = (
        {"out": step.results if len(step.results) > 1 else step.results[0]} if step.results else {}
    )
    return make(**{**step.args, **out, **changes})


def _gates(
    steps: list[Any], exposed: list[np.ndarray], layers: set[int]
) -> dict[int, dict[str, Any]]:
    """Changed arguments of the steps, by number, where a product can take over a ReLU's gradient.

    Two layers in a row: what the upper gives to the lower alone, the lower would zero where its
    output is. The product that gives it does that as it stores its sums.
    """
    changes: dict[int, dict[str, Any]] = {}
    last: dict[tuple[Any, ...], int] = {}  # who gave a gradient
    for n in sorted(layers):
        step = steps[n]
        g, y, giver = step.args["g"], step.args["y"], last.get(_place(step.args["g"]))
        if step.args["activation"] == "relu" and giver is not None:
            alone = not any(_touches(s, g) for s in steps[giver + 1 : n]) and _over(
                g, steps[n + 1 :]
            )
            shown = any(np.may_share_memory(g, x) for x in exposed)
            if alone and not shown and y.flags.c_contiguous:
                changes.setdefault(giver, {})["gate"] = y
                changes.setdefault(n, {}).update(activation=None, y=None)
        if step.results[0] is not None:
            last[_place(step.results[0])] = n
    return changes


def _pack(
    steps: list[Any], unchanging: list[np.ndarray], changes: dict[int, dict[str, Any]]
) -> list[tuple[np.ndarray, Callable[[], None]]]:
    """Let products of few rows read their weights transposed: of few rows, transposing them anew
    each time takes as long as the product. Adds to the changed arguments."""
    places = {_place(a) for a in unchanging}
    packed: list[tuple[np.ndarray, Callable[[], None]]] = []
    for n, step in enumerate(steps):
        if getattr(step, "kernel", "") != "linear" or _calls(step, {}) is None:
            continue
        x, w = step.args["x"], step.args["w"]
        lies_so = w.T.flags.c_contiguous
        if _place(w) in places and len(x) <= FEW_ROWS and w.size and not lies_so:
            transposed = np.empty(w.shape[::-1], w.dtype)
            copy = partial(np.copyto, transposed, w.T)
            copy()
            packed.append((w, copy))
            changes.setdefault(n, {})["w"] = transposed.T
    return packed


def _sums_into(
    steps: list[Any],
    exposed: list[np.ndarray],
    layers: set[int],
    changes: dict[int, dict[str, Any]],
) -> set[int]:
    """The additions that a layer's gradient takes over, as it is summed into ``.grad`` for a second
    time: what the layer gives is added where it belongs at once. Adds to the changed arguments.
    """
    done = set()
    for n, step in enumerate(steps):
        if getattr(step, "kernel", "") != "add":
            continue
        total, given = step.args["a"], step.args["b"]
        if not hasattr(total, "strides") or not hasattr(given, "strides"):
            continue
        giver = _giver(steps[:n], given)
        if giver not in layers or _place(total) != _place(step.results[0]):
            continue
        between, layer = steps[giver + 1 : n], steps[giver]
        alike = total.shape == given.shape and total.dtype == given.dtype
        free = alike and not any(_touches(s, total) for s in (layer, *between))
        shown = any(np.may_share_memory(given, x) for x in exposed)
        if free and not shown and _over(given, steps[n + 1 :]) and total.flags.carray:
            place = [r is given for r in layer.results].index(True)
            now = changes.setdefault(giver, {})
            now.setdefault("out", layer.results)
            now.setdefault("added", (False,) * 3)
            now["out"] = _with(now["out"], place, total)
            now["added"] = _with(now["added"], place, True)
            done.add(n)
    return done


def _giver(steps: list[Any], gradient: Any) -> int | None:
    """The last of the steps that touch this gradient, if it is the layer that gives it."""
    last = next((n for n in reversed(range(len(steps))) if _touches(steps[n], gradient)), None)
    if last is None or steps[last].kernel != "linear_backward":
        return None
    return last if any(r is gradient for r in steps[last].results[1:]) else None


def _with(values: tuple[Any, ...], place: int, value: Any) -> tuple[Any, ...]:
    return (*values[:place], value, *values[place + 1 :])


def _over(array: np.ndarray, steps: list[Any]) -> bool:
    """Whether nobody reads this memory before it is made anew."""
    user = next((s for s in steps if _touches(s, array)), None)
    return user is None or not any(np.may_share_memory(array, a) for a in user.arguments())


def _place(x: np.ndarray) -> tuple[Any, ...]:
    return x.ctypes.data, x.shape, x.strides


def _touches(step: Any, array: np.ndarray) -> bool:
    return hasattr(step, "touches") and step.touches(array)
