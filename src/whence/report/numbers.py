"""Numbers as people read them."""

from __future__ import annotations

import math

__all__ = ["number", "percentage"]

SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
#: From this size on, numbers are written with a power of ten.
LARGE = 1e9


def number(value: float, *, digits: int = 3, sign: bool = False) -> str:
    """Return a number as a page prints it: a true minus sign, a plus if ``sign``, powers of ten spelled.

    Examples
    --------
    >>> number(0.25, sign=True), number(-1.5), number(12345.678, digits=1), number(2e-7), number(3e20)
    ('+0.250', '−1.500', '12,345.7', '2.0 × 10⁻⁷', '3.0 × 10²⁰')
    """
    value = float(value) or 0.0  # without the sign of a zero
    plus = "+" if sign else ""
    if math.isnan(value):
        return "nan"
    if value == 0 or math.isinf(value) or 0.5 * 10.0**-digits <= abs(value) < LARGE:
        return f"{value:{plus},.{digits}f}".replace("-", "−")
    factor, exponent = f"{value:{plus}.1e}".replace("-", "−", 1 if value < 0 else 0).split("e")
    return f"{factor} × 10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def percentage(share: float, *, sign: bool = True) -> str:
    """Return a share as text, nothing for NaN; what is not zero is not rounded to it, nor to a whole.

    Examples
    --------
    >>> percentage(0.0375), percentage(-1.2), percentage(4e-7), percentage(float("nan"))
    ('+3.8%', '−120%', '+4.0 × 10⁻⁵%', '')
    >>> percentage(1, sign=False), percentage(0.99996, sign=False), percentage(0, sign=False)
    ('100%', '99.996%', '0%')
    """
    share = float(share)
    if math.isnan(share):
        return ""
    size = abs(share)
    if sign:
        digits = 0 if size >= 1 else 1 if size >= 0.001 else 2
    else:  # of a whole: as many digits as tell it from none and from all
        digits = 0
        while digits < 6 and 0 < size < 1 and round(size, digits + 2) in (0, 1):
            digits += 1
    return f"{number(100 * share, digits=digits, sign=sign)}%"
