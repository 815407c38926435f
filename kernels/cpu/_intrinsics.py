"""Instructions that Numba has no function for."""

from __future__ import annotations

from typing import Any

from ._jit import cgutils, intrinsic, ir, target, types

__all__ = [
    "by_precision", "copysign", "fma", "mantissa_and_exponent", "nearest", "polynomial",
    "power_of_two",
]  # fmt: skip

TRIPLE, FEATURES = target()
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


def by_precision(float32: float, float64: float) -> Any:
    """An intrinsic f(x): the one of two constants that has x's type."""

    @intrinsic
    def constant(typingctx: Any, x: Any) -> Any:
        value = float32 if x.bitwidth == 32 else float64

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return ir.Constant(args[0].type, value)

        return x(x), generate

    return constant


def polynomial(float32: tuple[float, ...], float64: tuple[float, ...]) -> Any:
    """An intrinsic f(x) = c₀ + c₁x + c₂x² + …, by Horner's rule, with the c of x's type."""

    @intrinsic
    def horner(typingctx: Any, x: Any) -> Any:
        coefficients = float32 if x.bitwidth == 32 else float64

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            (at,) = args
            *rest, value = (context.get_constant(x, c) for c in coefficients)
            for c in reversed(rest):
                value = multiply_add(builder, value, at, c)
            return value

        return x(x), generate

    return horner


class _Bits:
    """A float seen as an integer of the same size."""

    def __init__(self, builder: Any, type_: Any) -> None:
        self.builder, self.float = builder, type_
        single = isinstance(type_, ir.FloatType)
        self.int = ir.IntType(32 if single else 64)
        self.fraction = 23 if single else 52  # bits of the mantissa; the exponent lies above

    def of(self, value: float) -> Any:
        """The bits of a constant."""
        return self.ints(ir.Constant(self.float, value))

    def ints(self, x: Any) -> Any:
        return self.builder.bitcast(x, self.int)

    def floats(self, bits: Any) -> Any:
        return self.builder.bitcast(bits, self.float)

    @property
    def rounder(self) -> Any:
        """1.5 · 2^fraction: added to a small float it leaves no bits below the point, and the
        whole number lies in the last bits of the sum."""
        return ir.Constant(self.float, 1.5 * 2.0**self.fraction)


@intrinsic
def nearest(typingctx: Any, x: Any) -> Any:
    """The whole number nearest to x, |x| < 2²¹; of two the even one."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rounder = _Bits(builder, args[0].type).rounder
        return builder.fsub(builder.fadd(args[0], rounder), rounder)

    return x(x), generate


@intrinsic
def power_of_two(typingctx: Any, n: Any) -> Any:
    """2ⁿ for a float n that is whole, where 2ⁿ is a normal number."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = _Bits(builder, args[0].type)
        last = bits.ints(builder.fadd(args[0], bits.rounder))
        exponent = builder.shl(last, ir.Constant(bits.int, bits.fraction))
        return bits.floats(builder.add(exponent, bits.of(1.0)))

    return n(n), generate


@intrinsic
def mantissa_and_exponent(typingctx: Any, x: Any) -> Any:
    """(m, e) with x = m · 2ᵉ and 2/3 <= m < 4/3, for a normal x > 0; e is a whole float."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = _Bits(builder, args[0].type)
        whole, shift = bits.ints(args[0]), ir.Constant(bits.int, bits.fraction)
        e = builder.ashr(builder.sub(whole, bits.of(2 / 3)), shift)
        m = bits.floats(builder.sub(whole, builder.shl(e, shift)))
        e = bits.floats(builder.add(e, bits.ints(bits.rounder)))
        e = builder.fsub(e, bits.rounder)
        return context.make_tuple(builder, signature.return_type, (m, e))

    return types.UniTuple(x, 2)(x), generate


@intrinsic
def copysign(typingctx: Any, x: Any, sign: Any) -> Any:
    """\\|x\\| with the sign of ``sign``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name = f"llvm.copysign.{args[0].type.intrinsic_name}"
        function_type = ir.FunctionType(args[0].type, [args[0].type] * 2)
        function = cgutils.get_or_insert_function(builder.module, function_type, name)
        return builder.call(function, args)

    return x(x, x), generate
