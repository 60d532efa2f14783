"""Freed memory stays while an attack runs, and only then."""

import subprocess
import sys
from pathlib import Path

import pytest

from advtrain.evaluation.autoattack.exact import memory

pytestmark = pytest.mark.skipif(
    not memory.adjustable() or not Path("/proc/self/statm").exists(),
    reason="needs Linux and glibc's allocator, not set by the environment",
)

PROGRAM = """
import resource
from pathlib import Path

import torch

from advtrain.evaluation.autoattack.exact import memory

MEGABYTES = 100  # more than glibc keeps by itself


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def use_and_free():
    torch.zeros(MEGABYTES, 2**18).add_(1)


use_and_free()
before = resident()
with memory.kept_memory():
    use_and_free()
    with memory.kept_memory():
        pass  # the end of an inner context is not the end
    assert resident() > before + 0.9 * MEGABYTES, "kept inside"
assert resident() < before + 0.1 * MEGABYTES, "given back at the end"
try:
    with memory.kept_memory():
        use_and_free()
        raise ValueError
except ValueError:
    pass
assert resident() < before + 0.1 * MEGABYTES, "given back after an error"
"""


def test_memory_stays_inside_and_goes_back_at_the_end() -> None:
    """In a process of its own: what a long-lived one holds depends on all that ran in it."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert not memory.adjustable()
