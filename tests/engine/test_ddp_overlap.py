"""Gradients are averaged while the backward pass goes on, once per optimiser step, and in how many bytes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn

from advtrain.engine.sharding import gradient_bytes
from tests.engine.ddp_events import LAYERS, PIECES, Event, network, two_steps


@pytest.fixture
def group() -> Iterator[None]:
    """A gloo group of this process alone: what DDP sends when does not depend on how many there are."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def check_overlap(events: list[Event]) -> None:
    """Each message leaves right after the last gradient that is in it, and all but the last before the pass ends."""
    kinds = [event[0] for event in events]
    messages = [event for event in events if event[0] == "message"]
    assert len(messages) == LAYERS - 1  # the head is small and goes with the layer below it
    assert kinds.count("gradient") == 2 * LAYERS
    assert kinds.index("message") < len(kinds) - 1 - kinds[::-1].index("gradient")
    for i, event in enumerate(events):
        if event[0] == "message":
            before = {name for kind, name, *_ in events[:i] if kind == "gradient"}
            assert events[i - 1][0] == "gradient" and events[i - 1][1] in event[1] and set(event[1]) <= before
    # From the last layer to the first: one layer's gradient is on its way while that of the layer below is computed.
    numbers = [min(int(name.split(".")[0]) for name in message[1]) for message in messages]
    assert numbers == sorted(numbers, reverse=True)
    assert sum(message[2] for message in messages) == gradient_bytes(network())


def check_accumulation(events: list[Event], passes: int, rounds: int) -> None:
    """Every round has `passes` backward passes and sends each gradient once, in the last of them."""
    assert [event[0] for event in events].count("gradient") == rounds * passes * 2 * LAYERS
    sent = [name for event in events if event[0] == "message" for name in event[1]]
    names = [name for name, _ in network().named_parameters()]
    assert sorted(sent) == sorted(names * rounds)
    first = next(i for i, event in enumerate(events) if event[0] == "message")
    assert sum(event[0] == "gradient" for event in events[:first]) > (passes - 1) * 2 * LAYERS


@pytest.mark.usefixtures("group")
def test_averaging_overlaps_with_the_backward_pass() -> None:
    events, model = two_steps()
    check_overlap(events)
    # Gradients lie in the buffers that are sent: there is no second copy of them.
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len({gradient.untyped_storage().data_ptr() for gradient in gradients}) == LAYERS - 1


@pytest.mark.usefixtures("group")
def test_accumulation_averages_once_per_step() -> None:
    check_accumulation(two_steps(accumulation=PIECES)[0], PIECES, rounds=1)
    check_accumulation(two_steps(accumulation=2, perturbed=True)[0], 2, rounds=2)


@pytest.mark.slow
def test_two_processes_overlap_and_equal_one(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(Path(__file__).with_name("ddp_events.py")), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for process in ("main", "other"):
        found: dict[str, Any] = json.loads((tmp_path / f"{process}.json").read_text())
        check_overlap(found["plain"]["events"])
        check_accumulation(found["accumulated"]["events"], PIECES, rounds=1)
        check_accumulation(found["perturbed"]["events"], 2, rounds=2)
        assert all(scene["apart"] < 1e-12 for scene in found.values())


def test_gradient_bytes_count_what_learns() -> None:
    model = nn.Sequential(nn.Linear(10, 5), nn.BatchNorm1d(5))  # 55 numbers and 10; running statistics are none
    assert gradient_bytes(model) == 4 * 65
    model[0].requires_grad_(False)
    assert gradient_bytes(model) == 4 * 10
    assert gradient_bytes(model.double()) == 8 * 10
    with torch.device("meta"):
        assert gradient_bytes(nn.Linear(1000, 1000, bias=False)) == 4_000_000
