"""What all tests share: type checks, seeds, real data."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

CHECKOUT = Path(__file__).resolve().parent.parent

# Shapes and types are checked while tests run, and only then. An int passes for a float, as everywhere in Python.
jaxtyping.install_import_hook(
    ["advtrain.attacks", "advtrain.losses"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)


@pytest.hookimpl(trylast=True)  # after pytest has put tests of one fixture together
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        items[:] = _long_ones_apart(items)
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def _long_ones_apart(items: list[pytest.Item]) -> list[pytest.Item]:
    """GPU tests with a timeout of their own first, the longest ahead, each followed by one without: pytest-xdist hands
    out two at a time, and time on a GPU is dear."""

    def timeout(item: pytest.Item) -> float:
        marker = item.get_closest_marker("gpu") and item.get_closest_marker("timeout")
        return marker.args[0] if marker else 0

    ordered = sorted(items, key=timeout, reverse=True)
    count = sum(timeout(item) > 0 for item in items)
    long, short = ordered[:count], ordered[count:]
    pairs = [item for pair in zip(long, short, strict=False) for item in pair]
    return pairs + long[len(short) :] + short[len(long) :]


@pytest.fixture(autouse=True, scope="session")
def children_import_the_checkout() -> Iterator[None]:
    """Processes that tests start see the same package as the tests, also where it is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(CHECKOUT), prepend=os.pathsep)
        yield


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> Iterator[None]:
    """SIGINT means what it means at a terminal, also where the tests run in the background and would ignore it."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Tests that draw from PyTorch's global generator draw the same in any order and selection."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with cifar-10-batches-py, cifar-100-python and imagenet_small that ADVTRAIN_DATA names."""
    folder = os.environ.get("ADVTRAIN_DATA")
    if not folder:
        pytest.skip("ADVTRAIN_DATA is not set: it names a folder with the real CIFAR and ImageNet files")
    return Path(folder)


@pytest.fixture
def without_type_checks() -> Iterator[None]:
    """What users meet, who have no type checks: the functions' own messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
