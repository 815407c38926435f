"""Elementary functions of one float, for kernels to call.

They hold no branch, no table and no call, so a loop over one of them becomes vector instructions on
any CPU. Each multiply-add is an explicit fma: the vectors of a loop, what is left after them, and
any other loop give the same bits. Infinities, NaN, denormals and the sign of 0 are right. Of two
neighbouring floats the larger may have the smaller result, by one unit in the last place.

Largest error in units of the last place of the result (float32: every seventh of all bit patterns,
against float64; float64: 12,000 random points against 40 digits):

            exp    log    tanh   erf    sigmoid
    float32 0.92   0.95   1.49   1.83   2.33
    float64 0.77   0.68   1.37   1.36   2.08

The polynomials are minimax fits made for this file, by Remez's exchange algorithm in 60 digits: of
the function named beside each, weighted by what its error does to the result, and then rounded.
"""

from __future__ import annotations

import math

from ._intrinsics import (
    by_precision,
    copysign,
    fma,
    mantissa_and_exponent,
    nearest,
    polynomial,
    power_of_two,
)
from ._jit import device

__all__ = [
    "erf", "exp", "gelu", "gelu_slope", "gelu_tanh", "gelu_tanh_slope", "log", "sigmoid", "tanh",
]  # fmt: skip

# (e^x - 1 - x) / x² on |x| <= ln 2 / 2.
_exp_terms = polynomial(
    float32=(
        0.5, 0.16666526, 0.041666232, 0.008368262, 0.0013949081,
    ),
    float64=(
        0.5, 0.1666666666666668, 0.041666666666666706, 0.00833333333331963, 0.0013888888888864074,
        0.0001984126989098046, 2.4801587365448402e-05, 2.7557239533397467e-06,
        2.755723899913799e-07, 2.511059836717664e-08, 2.092549685405985e-09,
    ),
)  # fmt: skip

# (log(1 + x) - x) / x² on -1/3 <= x <= 1/3.
_log1p_terms = polynomial(
    float32=(
        -0.5, 0.33333212, -0.24999523, 0.20010567, -0.1668908, 0.14003766, -0.12082398, 0.13993181,
        -0.13297032,
    ),
    float64=(
        -0.5, 0.3333333333333334, -0.2499999999999913, 0.1999999999999494, -0.16666666666884916,
        0.14285714286567006, -0.12499999975571997, 0.11111111039231006, -0.10000001493250352,
        0.090909126179617, -0.08333278173013808, 0.07692198797143593, -0.07144154025529532,
        0.06668866804310943, -0.06230202497509086, 0.05852904801628918, -0.05750040069670026,
        0.05520614509233778, -0.03827825020466864, 0.03365995158422135, -0.08352592330584739,
        0.0844981309235137,
    ),
)  # fmt: skip

# -log(erfc x) / x - 9/8 on 0 <= x <= 4 (float64: 6); a smooth function of which erf is expm1.
_log_erfc_terms = polynomial(
    float32=(
        0.0033791717, 0.6366194, 0.10277783, -0.019153057, -0.00016040899, 0.0016670388,
        -0.0006328415, 0.000117641954, -9.256255e-06,
    ),
    float64=(
        0.0033791670955125586, 0.6366197723675812, 0.10277260330195191, -0.019128447009425193,
        -0.0002091946336279515, 0.00169620586120655, -0.0005901225607281979, 2.586655985789076e-05,
        6.452750096735839e-05, -2.9803916475902132e-05, 3.5458658717677767e-06,
        2.6457657668596544e-06, -1.5352605894473168e-06, 1.5558173306217815e-07,
        2.654357622408292e-07, -2.1568369673694193e-07, 1.0038682873433451e-07,
        -3.415595611345229e-08, 9.059613592654374e-09, -1.9117830505856723e-09,
        3.214455763716703e-10, -4.2610798871098356e-11, 4.3563715009621855e-12,
        -3.310418549955251e-13, 1.757075418536625e-14, -5.797078074130598e-16,
        8.917422581903523e-18,
    ),
)  # fmt: skip

# (tanh √z / √z - 1) / z on 0 <= z <= 0.56².
_tanh_terms = polynomial(
    float32=(
        -0.33333316, 0.13332513, -0.05384346, 0.02103135, -0.0062125074,
    ),
    float64=(
        -0.3333333333333329, 0.13333333333325095, -0.05396825396273804, 0.021869488353811303,
        -0.008863232041606328, 0.003592086092308891, -0.001455503089728032, 0.0005882755791611579,
        -0.00023294001245853375, 8.26687488291917e-05, -1.9086744653201707e-05,
    ),
)  # fmt: skip

# Φ(-z) e^(z²/2) of t = 1 - 8 / (z + 4), with Φ the normal distribution; -1 <= t <= 0.6 (float64:
# 0.82), beyond which Φ(-z) is 0.
_normal_terms = polynomial(
    float32=(
        0.09441064, -0.17039773, 0.1243792, -0.07170735, 0.030865647, -0.008492745, 0.00050243095,
        0.0006407147, -0.00017321977, -4.5401932e-05, 1.2792758e-05,
    ),
    float64=(
        0.09441064130196894, -0.17039772154845537, 0.12437925533926336, -0.0717074073377434,
        0.03086480410632868, -0.008492095481907656, 0.0005075620747224642, 0.0006388138487172745,
        -0.00018718426532323966, -4.555486986018058e-05, 2.8648314340584138e-05,
        4.63143567810997e-06, -4.303421842900521e-06, -8.29004968448372e-07, 6.611287090306139e-07,
        2.050921983045522e-07, -9.352045870239532e-08, -5.1438220627118125e-08,
        8.69646311551467e-09, 1.0567880549427978e-08, 5.322032229422545e-10,
        -1.263884627452303e-09, -2.8694060934851955e-10,
    ),
)  # fmt: skip

# ln 2 in two parts: n · _ln2_high is exact for every exponent n.
_ln2_high = by_precision(0.693145751953125, 0.6931471803691238)
_ln2_low = by_precision(1.4286068203094173e-06, 1.9082149292705877e-10)

_exp_least = by_precision(-104.0, -746.0)  # here eˣ rounds to 0
_exp_most = by_precision(89.0, 710.0)  # and here to inf
_least_normal = by_precision(2.0**-126, 2.0**-1022)
_lift = by_precision(2.0**32, 2.0**64)
_lift_exponent = by_precision(32.0, 64.0)
_erf_most = by_precision(4.0, 6.0)  # here erf rounds to 1


@device
def _reduce(x):
    """(n, r) with x = n · ln 2 + r, n whole and |r| <= ln 2 / 2."""
    n = nearest(x * type(x)(1 / math.log(2)))
    return n, fma(-n, _ln2_low(x), fma(-n, _ln2_high(x), x))


@device
def exp(x):
    """eˣ."""
    low, high = _exp_least(x), _exp_most(x)
    x = low if x < low else x
    n, r = _reduce(high if x > high else x)
    half = nearest(n * type(x)(0.5))  # 2ⁿ itself may not be a normal number
    return _exp_near_0(r) * power_of_two(half) * power_of_two(n - half)


@device
def _exp_near_0(r):
    """eʳ for |r| <= ln 2 / 2."""
    one = type(r)(1)
    return fma(r, fma(r, _exp_terms(r), one), one)


# The next two need 2ⁿ, with n the whole number nearest to x / ln 2, to be a normal number.


@device
def _exp_inside(x):
    """eˣ."""
    n, r = _reduce(x)
    return _exp_near_0(r) * power_of_two(n)


@device
def _expm1_inside(x):
    """eˣ - 1."""
    n, r = _reduce(x)
    scale = power_of_two(n)
    return fma(scale, fma(r * r, _exp_terms(r), r), scale - type(x)(1))


@device
def log(x):
    """The natural logarithm; -inf at 0, NaN below."""
    T = type(x)
    tiny = x < _least_normal(x)
    m, e = mantissa_and_exponent(x * _lift(x) if tiny else x)
    e = e - _lift_exponent(x) if tiny else e
    f = m - T(1)
    # e · ln 2 + f + f²·(…), in which the rounding of the first sum is made good.
    whole = e * _ln2_high(x)
    y = whole + f
    lost = f - (y - whole)
    y += fma(f * f, _log1p_terms(f), fma(e, _ln2_low(x), lost))
    y = y if x < T(math.inf) else x
    edge = T(-math.inf) if x == 0 else T(math.nan)
    return edge if x <= 0 else y


@device
def tanh(x):
    """The hyperbolic tangent: 1 - 2e / (1 + e) with e = e^(-2|x|); near 0 a polynomial."""
    T = type(x)
    y = abs(x)
    e = _exp_inside(T(-2) * (T(40) if y > 40 else y))
    large = T(1) - T(2) * e / (T(1) + e)
    z = y * y
    small = fma(y * z, _tanh_terms(z), y)
    return copysign(large if y > T(0.55) else small, x)


@device
def sigmoid(x):
    """1 / (1 + e⁻ˣ), by the form that does not overflow."""
    T = type(x)
    e = exp(-abs(x))
    return (e if x < 0 else T(1)) / (T(1) + e)


@device
def erf(x):
    """The error function: 1 - e^(log erfc |x|), with the sign of x."""
    most = _erf_most(x)
    y = abs(x)
    y = most if y > most else y
    log_erfc = fma(y, type(x)(-9 / 8), -y * _log_erfc_terms(y))
    return copysign(_expm1_inside(log_erfc), x)


@device
def _normal(x):
    """(Φ(x), e^(-x²/2)), Φ the distribution function of the normal distribution."""
    T = type(x)
    z = abs(x)
    e = exp(T(-0.5) * z * z)
    tail = e * _normal_terms(T(1) - T(8) / (z + T(4)))
    return tail if x < 0 else T(1) - tail, e


@device
def gelu(x):
    """x Φ(x)."""
    cdf, _ = _normal(x)
    return x * cdf


@device
def gelu_slope(x):
    """The derivative of ``gelu``: Φ(x) + x e^(-x²/2) / √(2π)."""
    cdf, e = _normal(x)
    return fma(x, e * type(x)(1 / math.sqrt(2 * math.pi)), cdf)


@device
def _tanh_inner(x):
    """tanh(√(2/π) (x + 0.044715 x³))."""
    T = type(x)
    return tanh(T(math.sqrt(2 / math.pi)) * fma(T(0.044715) * x * x, x, x))


@device
def gelu_tanh(x):
    """x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    T = type(x)
    return T(0.5) * x * (T(1) + _tanh_inner(x))


@device
def gelu_tanh_slope(x):
    """The derivative of ``gelu_tanh``."""
    T = type(x)
    t = _tanh_inner(x)
    slope = T(math.sqrt(2 / math.pi)) * fma(T(3 * 0.044715) * x, x, T(1))
    return T(0.5) * (T(1) + t) + T(0.5) * x * (T(1) - t * t) * slope
