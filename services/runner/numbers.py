"""Numbers within bounds, digit by digit, as llama.cpp's `_build_min_max_int` has it → what a grammar says about them.

A number with bounds has no exponent. It is an integer `n` of units: 1, or the last place of its fraction; then `> x` is
no more than `>= x + 1 unit`. Integers and fractional numbers differ in nothing but their places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import NamedTuple

from services.runner.gbnf import DIGIT, Either, Expression, Repeat, Row, chars, row

# How a bound between two units becomes one that is inclusive: rounded, and what is added.
LOW: dict[str, tuple[Callable[[Fraction], int], int]] = {"minimum": (math.ceil, 0), "exclusiveMinimum": (math.floor, 1)}
HIGH: dict[str, tuple[Callable[[Fraction], int], int]] = {"maximum": (math.floor, 0),
                                                          "exclusiveMaximum": (math.ceil, -1)}
BOUNDS = LOW | HIGH
OPEN_DIGITS = 16            # of a whole part without a bound, as of numbers without any
MOST_DIGITS = {"integer": 40, "number": 14}         # of a whole part, whatever the bounds
# Decimals of so many digits differ as floats too: none that is above a bound is read as that bound.
FLOAT_DIGITS = 15
NONZERO = chars((0x31, 0x39))


class Unheld(Exception):
    """The bound `keyword` has more digits than are written."""

    def __init__(self, keyword: str) -> None:
        super().__init__(keyword)
        self.keyword = keyword


class Span(NamedTuple):
    """The numbers low/10**places … high/10**places, none where high is below low."""

    low: int
    high: int
    places: int

    def expression(self) -> Expression:
        parts: list[Expression] = []
        if self.high >= 0:
            parts.append(_decimals(max(self.low, 0), self.high, self.places))
        if self.low < 0:
            parts.append(row("-", _decimals(max(-self.high, 0), -self.low, self.places)))
        return _one_of(parts)


def span(name: str, bounds: Mapping[str, float]) -> Span:
    """What `bounds` leave of the type `name`, "integer" or "number". `Unheld` names a bound that cannot be held."""
    digits = MOST_DIGITS[name]
    limit = 10 ** digits            # bounds beyond it leave out nothing that is written
    near = {key: value for key, value in bounds.items() if (value > -limit if key in LOW else value < limit)}
    for key, value in near.items():
        if abs(value) >= limit:
            raise Unheld(key)
    places = 0
    if name == "number":
        places = FLOAT_DIGITS - max((len(str(int(abs(value)))) for value in near.values()), default=1)
    lows = [_units(key, near[key], places) for key in LOW if key in near]
    highs = [_units(key, near[key], places) for key in HIGH if key in near]
    most = 10 ** (digits + places) - 1
    wide = min(most, 10 ** (OPEN_DIGITS + places) - 1)
    low = max(lows) if lows else max(-most, min(-wide, 10 * min(highs, default=0)))
    return Span(low, min(highs) if highs else min(most, max(wide, 10 * low)), places)


def _units(key: str, value: float, places: int) -> int:
    """A bound in units, inclusive. That of an integer is what readers make of the float; others are as written."""
    exact = Fraction(str(value)) * 10 ** places if places else Fraction(value)
    if places and exact.denominator > 1:
        raise Unheld(key)
    rounded, more = BOUNDS[key]
    return rounded(exact) + more


def _decimals(low: int, high: int, places: int) -> Expression:
    """From `low` to `high` units, neither negative: no leading zeros, zeros at the end of a fraction or not."""
    unit = 10 ** places
    (first, least), (last, most) = divmod(low, unit), divmod(high, unit)
    if first == last:
        return row(str(first), _fraction(least, most, places))
    parts: list[Expression] = []
    if least:
        parts.append(row(str(first), _fraction(least, unit - 1, places)))
        first += 1
    if most < unit - 1:
        parts.append(row(str(last), _fraction(0, most, places)))
        last -= 1
    if first <= last:
        parts.append(row(_wholes(str(first), str(last)), _fraction(0, unit - 1, places)))
    return _one_of(parts)


def _fraction(low: int, high: int, places: int) -> Expression:
    if not places:
        return Row(())
    fraction = row(".", _digits(f"{low:0{places}}", f"{high:0{places}}", 1))
    return fraction if low else Repeat(fraction, 0, 1)


def _wholes(low: str, high: str) -> Expression:
    """The integers from `low` to `high`: those as long as either, and those in between."""
    if len(low) == len(high):
        return _digits(low, high, len(low))
    parts = [_digits(low, "9" * len(low), len(low)),
             _digits("1" + "0" * (len(high) - 1), high, len(high))]
    if len(high) - len(low) > 1:
        parts.append(row(NONZERO, Repeat(DIGIT, len(low), len(high) - 2)))
    return Either(tuple(parts))


def _digits(low: str, high: str, least: int) -> Expression:
    """The rows of digits from `low` to `high`, which are as long as they; zeros at their end may be missing, but for
    `least` digits."""
    zeros, nines = "0" * len(low), "9" * len(low)
    if (low, high) == (zeros, nines):
        return Repeat(DIGIT, least, len(low))
    rest, first, last = max(least - 1, 0), int(low[0]), int(high[0])
    parts: list[Expression] = []
    if first == last:
        parts.append(row(low[0], _digits(low[1:], high[1:], rest)))
    else:
        if low[1:] != zeros[1:]:
            parts.append(row(low[0], _digits(low[1:], nines[1:], rest)))
            first += 1
        if high[1:] != nines[1:]:
            parts.append(row(high[0], _digits(zeros[1:], high[1:], rest)))
            last -= 1
        if first <= last:
            parts.append(row(chars((0x30 + first, 0x30 + last)), _digits(zeros[1:], nines[1:], rest)))
    return _one_of(parts) if least or low != zeros else Repeat(_one_of(parts), 0, 1)


def _one_of(parts: list[Expression]) -> Expression:
    return parts[0] if len(parts) == 1 else Either(tuple(parts))
