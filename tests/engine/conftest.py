"""Fixtures of the tests of acceleration."""

import logging
from collections.abc import Callable, Iterator

import pytest
from torch._dynamo.utils import counters

from advtrain.engine.acceleration import compiled


@pytest.fixture
def traceable(without_type_checks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The type checks of the tests are nothing that torch.compile can trace; users have none.

    Nor have they pytest's record of all that torch.compile would tell its developers.
    """
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)


@pytest.fixture
def aot_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")


@pytest.fixture
def graphs() -> Iterator[Callable[[], int]]:
    """A function that says how many graphs were built since the test began."""
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    assert not counters["graph_break"]
