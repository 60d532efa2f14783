"""What happens during the backward passes of two steps under DDP, in its order. Run by test_ddp_overlap.py.

usage under torchrun: python ddp_events.py DIRECTORY
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from advtrain import distributed
from advtrain.attacks import PGD
from advtrain.data.base import Batch, rows_of
from advtrain.engine import AWP, NoPerturbation
from advtrain.engine.numerics import Numerics
from advtrain.engine.sharding import Replicated
from advtrain.engine.step import TrainingStep
from advtrain.losses import TRADES

LAYERS = 6
PIECES = 3
Event = list[Any]  # ["gradient", parameter] or ["message", parameters, bytes]


class SmallBuckets(Replicated):
    """Every layer's gradient, 32 KiB, is a message of its own."""

    def replica(self, outer: nn.Module, device: torch.device) -> nn.Module:
        return distributed.replicate(outer, device, bucket_mb=0.02)


def network() -> nn.Module:
    torch.manual_seed(0)
    hidden = [module for _ in range(LAYERS - 2) for module in (nn.Linear(64, 64), nn.Tanh())]
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 64), nn.Tanh(), *hidden, nn.Linear(64, 4)).double()


def two_steps(accumulation: int = 1, perturbed: bool = False) -> tuple[list[Event], nn.Module]:
    """The events of the second step, and the model after it.

    The first step of DDP learns the order in which gradients come, and sends them together.
    """
    model = network()
    events: list[Event] = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, n=name: events.append(["gradient", n]))
    step = TrainingStep(
        model,
        TRADES(),
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        numerics=Numerics(torch.device("cpu"), torch.float64),
        batch_size=24,
        accumulation=accumulation,
        attack_batchnorm="eval",
        clip_norm=None,
        seed=0,
        sharding=SmallBuckets(),
    )
    observe(step, model, events)
    rows = rows_of(24, distributed.rank(), distributed.world_size())
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(24, 3, 4, 4, generator=generator)[rows], (torch.arange(24) % 4)[rows]
    for number in (0, 1):
        events.clear()
        perturbation = AWP(gamma=0.1) if perturbed else NoPerturbation()
        step(Batch(x, y, rows), PGD(eps=0.05, steps=2), perturbation, 1, number)
    return events, model


def observe(step: TrainingStep, model: nn.Module, events: list[Event]) -> None:
    """Notes when DDP starts the all-reduce of a bucket; it then runs as it does without an observer."""
    replica: Any = step._replica
    names = {parameter: name for name, parameter in model.named_parameters()}

    def hook(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        parts = [names[parameter] for parameter in bucket.parameters()]
        events.append(["message", parts, bucket.buffer().numel() * bucket.buffer().element_size()])
        reduce: Callable[..., Any] = allreduce_hook
        return reduce(None, bucket)

    if isinstance(replica, nn.parallel.DistributedDataParallel):
        replica.register_comm_hook(None, hook)


def main() -> None:
    torch.set_num_threads(1)
    scenes = {"plain": {}, "accumulated": {"accumulation": PIECES}, "perturbed": {"accumulation": 2, "perturbed": True}}
    alone = {name: two_steps(**scene)[1].state_dict() for name, scene in scenes.items()}
    with distributed.process_group(torch.device("cpu")):
        found = {}
        for name, scene in scenes.items():
            events, model = two_steps(**scene)
            apart = max(float((value - alone[name][key]).abs().max()) for key, value in model.state_dict().items())
            found[name] = {"events": events, "apart": apart}
    (Path(sys.argv[1]) / f"{'main' if distributed.is_main() else 'other'}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
