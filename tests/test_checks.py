"""Range checks: what passes comes back in its proper type, and what does not is named in one line."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from advtrain import checks
from advtrain.types import SettingError


def line(check: Callable[..., object], *arguments: object, **bounds: float) -> str:
    """The message of the refusal, after a check that it is one line and names the setting first."""
    with pytest.raises(SettingError) as error:
        check("part.setting", *arguments, **bounds)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("part.setting: expected ")
    return message


@pytest.mark.parametrize(("value", "expected"), [(3, 3), (0, 0), (-2, -2), (4.0, 4)])
def test_integers_pass_as_int(value: object, expected: int) -> None:
    result = checks.integer("steps", value)
    assert result == expected
    assert type(result) is int


@pytest.mark.parametrize("value", [2.5, True, "3", "three", None, [1], math.inf, -math.inf, math.nan])
def test_what_is_no_integer_is_refused(value: object) -> None:
    message = line(checks.integer, value)
    assert f"an integer, got {value!r}; " in message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        (0.03, 0.03),
        ("0.03", 0.03),
        ("8/255", 8 / 255),
        ("-1/2", -0.5),
        ("1e-3", 1e-3),
        (np.float32(0.5), 0.5),
    ],
)
def test_numbers_and_fractions_pass_as_float(value: object, expected: float) -> None:
    result = checks.number("eps", value)
    assert result == expected
    assert type(result) is float


def test_a_fraction_is_the_nearest_float() -> None:
    for grey_levels in range(256):
        assert checks.number("eps", f"{grey_levels}/255") == float(Fraction(grey_levels, 255))


@pytest.mark.parametrize("value", ["eight", "1/0", "8/", "8/two", "", True, None, [1], math.inf, "nan", -math.inf])
def test_what_is_no_finite_number_is_refused(value: object) -> None:
    message = line(checks.number, value)
    assert f"a number, got {value!r}; " in message


@pytest.mark.parametrize("check", [checks.integer, checks.number])
def test_bounds_are_inclusive(check: Callable[..., float]) -> None:
    assert check("n", 1, low=1, high=3) == 1
    assert check("n", 3, low=1, high=3) == 3
    assert "from 1 to 3, got 0; " in line(check, 0, low=1, high=3)
    assert "from 1 to 3, got 4; " in line(check, 4, low=1, high=3)
    assert "of at least 1, got 0; " in line(check, 0, low=1)
    assert "of at most 3, got 4; " in line(check, 4, high=3)


def test_above_is_exclusive() -> None:
    assert checks.number("n", 1e-9, above=0) == 1e-9
    assert "above 0, got 0; " in line(checks.number, 0, above=0)
    assert "of at most 1 above 0, got 2; " in line(checks.number, 2, above=0, high=1)


def test_choices() -> None:
    assert checks.choice("norm", "l2", ("linf", "l2")) == "l2"
    assert "one of linf, l2, got 'l1'; " in line(checks.choice, "l1", ("linf", "l2"))
    assert "one of linf, l2, got None; " in line(checks.choice, None, ("linf", "l2"))


def test_flags() -> None:
    assert checks.flag("on", True) is True
    assert checks.flag("on", False) is False
    for value in (1, 0, "true", None):
        assert f"true or false, got {value!r}; " in line(checks.flag, value)


def test_a_radius_of_8_is_a_forgotten_denominator() -> None:
    assert checks.radius("eps", "8/255", "linf") == 8 / 255
    assert checks.radius("eps", 1, "linf") == 1
    assert "write part.setting=8/255" in line(checks.radius, 8, "linf")
    assert checks.radius("eps", 3, "l2") == 3  # lengths of image vectors go far beyond 1
    assert "of at least 0, got -0.1; " in line(checks.radius, -0.1, "l2")


def test_numpy_integers_are_integers() -> None:
    """`num_classes=labels.max() + 1` in a notebook."""
    numpy = pytest.importorskip("numpy")
    value = checks.integer("n", numpy.int64(7), low=2)
    assert value == 7 and type(value) is int
