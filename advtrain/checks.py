"""Range checks for constructors: each returns the value in its proper type or raises one clear line."""

import math
from collections.abc import Sequence
from fractions import Fraction
from numbers import Integral
from typing import Any

from advtrain.types import SettingError


def integer(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """Returns `value` as an int in [low, high]; a bool, a fraction or a word is refused."""
    expected = f"an integer{_range(low, high)}"
    # Integral covers NumPy's integers; a float counts when it is whole, as YAML may write 1e3.
    if isinstance(value, bool) or not isinstance(value, Integral | float) or value % 1 != 0:
        raise SettingError(f"{name}: expected {expected}, got {value!r}; give a whole number")
    whole = int(value)
    if (low is not None and whole < low) or (high is not None and whole > high):
        raise SettingError(f"{name}: expected {expected}, got {value}; choose a value in that range")
    return whole


def number(
    name: str, value: Any, low: float | None = None, high: float | None = None, above: float | None = None
) -> float:
    """Returns `value` as a finite float with low ≤ value ≤ high and value > above. Fractions such as "8/255" parse."""
    expected = f"a number{_range(low, high)}" + (f" above {above:g}" if above is not None else "")
    try:
        parsed = float(Fraction(value)) if isinstance(value, str) and "/" in value else float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        parsed = math.nan
    if isinstance(value, bool) or not math.isfinite(parsed):
        raise SettingError(f"{name}: expected {expected}, got {value!r}; give a number such as 0.03 or 8/255")
    too_low = (low is not None and parsed < low) or (above is not None and parsed <= above)
    if too_low or (high is not None and parsed > high):
        raise SettingError(f"{name}: expected {expected}, got {value}; choose a value in that range")
    return parsed


def choice(name: str, value: Any, options: Sequence[str]) -> str:
    """Returns `value` when it is one of `options`."""
    if value not in options:
        raise SettingError(f"{name}: expected one of {', '.join(options)}, got {value!r}; choose one of them")
    return value


def flag(name: str, value: Any) -> bool:
    """Returns `value` when it is a bool."""
    if not isinstance(value, bool):
        raise SettingError(f"{name}: expected true or false, got {value!r}; give one of the two")
    return value


def radius(name: str, value: Any, norm: str) -> float:
    """Returns the radius of a ball around images with pixels in [0, 1]; an Linf radius above 1 is a forgotten /255."""
    eps = number(name, value, low=0)
    if norm == "linf" and eps > 1:
        remedy = f"pixels are in [0, 1], so write {name}={eps:g}/255 if you mean {eps:g} grey levels"
        raise SettingError(f"{name}: expected an Linf radius from 0 to 1, got {value}; {remedy}")
    return eps


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    if low is not None:
        return f" of at least {low:g}"
    return f" of at most {high:g}" if high is not None else ""
