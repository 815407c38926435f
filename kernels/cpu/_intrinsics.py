"""Instructions that Numba has no function for."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core.registry import cpu_target
from numba.extending import intrinsic

__all__ = ["fma"]


def _has_fma() -> bool:
    """Whether the CPU that code is made for multiplies and adds in one instruction."""
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    return not triple.startswith(("x86_64", "i686")) or "+fma" in features.split(",")


HAS_FMA = _has_fma()


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c of three floats of one type, rounded once.

    Without the instruction llvm.fma becomes a call into the C library, a hundred times as slow;
    such a CPU multiplies, rounds, and adds.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b, c = args
        if not HAS_FMA:
            return builder.fadd(builder.fmul(a, b), c)
        function_type = ir.FunctionType(a.type, [a.type] * 3)
        function = builder.module.declare_intrinsic("llvm.fma", [a.type], function_type)
        return builder.call(function, args)

    return a(a, a, a), generate
