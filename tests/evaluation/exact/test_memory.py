"""Freed memory stays while an attack runs, and only then."""

import resource
from pathlib import Path

import pytest
import torch

from advtrain.evaluation.autoattack.exact import memory

pytestmark = pytest.mark.skipif(
    not memory.adjustable() or not Path("/proc/self/statm").exists(),
    reason="needs Linux and glibc's allocator, not set by the environment",
)

MEGABYTES = 100  # more than glibc keeps by itself


def resident() -> float:
    """MB that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def use_and_free() -> None:
    torch.zeros(MEGABYTES, 2**18).add_(1)


def test_memory_stays_inside_and_goes_back_at_the_end() -> None:
    before = resident()
    with memory.kept_memory():
        use_and_free()
        with memory.kept_memory():
            pass  # the end of an inner context is not the end
        assert resident() > before + 0.9 * MEGABYTES
    assert resident() < before + 0.1 * MEGABYTES


def test_it_goes_back_after_an_error_too() -> None:
    before = resident()
    with pytest.raises(ValueError, match="stop"), memory.kept_memory():
        use_and_free()
        raise ValueError("stop")
    assert resident() < before + 0.1 * MEGABYTES


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert not memory.adjustable()
