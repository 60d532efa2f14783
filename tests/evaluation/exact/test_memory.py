"""Freed memory stays while an attack runs, and only then."""

import pytest
import torch

from advtrain.evaluation.autoattack.exact import memory

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(not memory.adjustable(), reason="needs glibc's allocator, not set by the environment")

PAGES = 10_000  # 40 MB, more than glibc ever keeps by itself


def faults() -> int:
    """Page faults of five tensors, one after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.zeros(PAGES, 1024).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_memory_stays_inside_and_goes_back_outside() -> None:
    with memory.kept_memory():
        faults()
        with memory.kept_memory():
            pass
        assert faults() < PAGES / 10  # an inner context must not end it
    assert faults() > 2 * PAGES


def test_it_ends_with_an_error_too() -> None:
    with pytest.raises(ValueError, match="stop"), memory.kept_memory():
        raise ValueError("stop")
    assert faults() > 2 * PAGES


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert not memory.adjustable()
