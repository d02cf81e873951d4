"""How numbers are written: significant digits, values with their error, percentages, passes and seconds."""

from __future__ import annotations

import math

MINUS, TIMES = "−", "×"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def printable(text: str) -> str:
    r"""Text of a file for a terminal, a log or a picture: control characters, also those that reorder text, as \x1b."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def number(value: float | None, digits: int = 4, *, zeros: bool = False) -> str:
    """`value` with that many significant digits: 0.01234, 1.234×10⁻⁵; a dash for what is not there.

    `zeros`: zeros at the end stay, as behind a number whose error tells its last digit.
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else MINUS + "∞"
    if value == 0:
        return "0"
    if not zeros and float(value).is_integer() and abs(value) < 1e6:
        return f"{int(value):,}".replace("-", MINUS)
    exponent = math.floor(math.log10(float(f"{abs(value):.{digits - 1}e}")))
    if -4 <= exponent < 6:
        text = f"{value:,.{max(0, digits - 1 - exponent)}f}"
        return (text if zeros else _trim(text)).replace("-", MINUS)
    text = f"{value / 10**exponent:.{digits - 1}f}"
    mantissa = (text if zeros else _trim(text)).replace("-", MINUS)
    return f"{mantissa}{TIMES}10{str(exponent).translate(_SUPERSCRIPT)}"


def digits(value: float | None, error: float | None, *, usual: int = 4, most: int = 5) -> int:
    """Significant digits of `value` that its error leaves: to the place of the error's second digit."""
    if not value or not error or not math.isfinite(value) or not math.isfinite(error):
        return usual
    error = rounded_up(error)
    return min(max(math.floor(math.log10(abs(value))) - math.floor(math.log10(error)) + 2, 2), most)


def beside(value: float | None, error: float | None) -> str:
    """`value` to the last place of its error, which is shown with two digits; an error below five digits is none."""
    many = digits(value, error, most=6)
    if value is None or not error or not math.isfinite(error):
        return number(value, many)
    if many > 5:
        return number(value, 5, zeros=True)
    place = math.floor(math.log10(rounded_up(error))) - 1
    if place < -6 or abs(value) >= 1e6 or not math.isfinite(value):
        return number(value, many, zeros=True)
    return f"{value:,.{max(-place, 0)}f}".replace("-", MINUS)


def rounded_up(error: float) -> float:
    """Two significant digits, never less than `error`: a bound must not shrink in print."""
    if error <= 0 or not math.isfinite(error):
        return error
    unit = 10.0 ** (math.floor(math.log10(error)) - 1)
    return float(f"{math.ceil(error / unit - 1e-9) * unit:.2g}")


def signed(text: str) -> str:
    """A difference with its sign, also where it is positive."""
    return f"+{text}" if text.strip("0.%") and text[0].isdigit() else text


def percent(fraction: float | None, digits: int = 2) -> str:
    """A fraction in [0, 1] as a percentage."""
    return (
        "–" if fraction is None or not math.isfinite(fraction) else f"{100 * fraction:.{digits}f}%".replace("-", MINUS)
    )


def count(value: float | None) -> str:
    """A whole number with separators, or in millions where it is large."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) < 1e7 else f"{value / 1e6:,.1f} million"


def duration(seconds: float) -> str:
    """Wall time that a person reads at once."""
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _trim(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text
