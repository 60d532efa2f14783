"""The recipes as they stand, each composed once for all tests that look at them."""

import copy
from functools import cache
from typing import Any

from advtrain.composition import compose


def composed(experiment: str) -> dict[str, Any]:
    """The configuration of a recipe; the caller may change it."""
    return copy.deepcopy(_composed(experiment))


@cache
def _composed(experiment: str) -> dict[str, Any]:
    return compose("train", [f"experiment={experiment}"])
