"""Instructions that Numba has no function for."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

__all__ = ["fma"]

# The CPU that code is made for: the cache stamp holds the same names.
TRIPLE, _, _features = cpu_target.target_context.codegen().magic_tuple()
FEATURES = frozenset(_features.split(","))
IS_X86 = TRIPLE.startswith(("x86_64", "i686"))
HAS_FMA = not IS_X86 or "+fma" in FEATURES


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Emit a·b + c, rounded once, of three floats or three vectors of floats.

    Without the instruction llvm.fma becomes a call into the C library, a hundred times as slow;
    such a CPU multiplies, rounds, and adds.
    """
    if not HAS_FMA:
        return builder.fadd(builder.fmul(a, b), c)
    vector = isinstance(a.type, ir.VectorType)
    scalar = a.type.element if vector else a.type
    name = f"llvm.fma.{f'v{a.type.count}' if vector else ''}{scalar.intrinsic_name}"
    function_type = ir.FunctionType(a.type, [a.type] * 3)
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    return builder.call(function, (a, b, c))


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c of three floats of one type: see ``multiply_add``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return multiply_add(builder, *args)

    return a(a, a, a), generate
