"""What the GPU script trains: networks, losses, batches, and what a step of each is worth in operations."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from advtrain.attacks import PGD
from advtrain.data.base import Batch
from advtrain.losses import IKL, PGDAT, TRADES, Loss
from advtrain.models import PreActResNet, WideResNet, resnet_50
from benchmarks.gpu_timing import significant

EPS = 8 / 255
DIFFERENT_BATCHES = 4  # in turn, so that no cache holds the images of the last step
FORWARDS_BEYOND_THE_ATTACK = {"trades": 7, "ikl": 7, "pgd_at": 3}  # useful work per image: (2 K + this) F


@dataclass(frozen=True)
class Case:
    """One network with one loss.

    Attributes:
        model: its name, as `--models` takes it.
        loss: trades, ikl or pgd_at.
        steps: of the attack, K.
        batch: images per step.
        size: height and width of the images.
        num_classes: C.
        weight: share of the minutes, relative to the other cases.
        short: whether only the rungs that carry the conclusion are run.
        rivals: whether the published step is run, too.
        interpreted: whether nothing is compiled.
    """

    model: str
    loss: str
    steps: int
    batch: int
    size: int
    num_classes: int
    weight: float
    short: bool = False
    rivals: bool = True
    interpreted: bool = False

    @property
    def name(self) -> str:
        return f"{self.model}, {self.loss}, {self.steps} steps, batch {self.batch}"

    @property
    def forwards(self) -> int:
        """Useful work of a step per image, in forward passes."""
        return 2 * self.steps + FORWARDS_BEYOND_THE_ATTACK[self.loss]


LARGE_BATCH = 512
NO_RIVAL = (
    "a batch that is not the published one changes the mathematics, so nothing is compared with the published step"
)
# In order of value: what does not fit into the minutes is at the end. A batch that nobody published trains to another
# network, so that it has no rival: it shows what the GPU can do with more images at once.
CASES = (
    Case("preact_resnet_18", "trades", 10, 128, 32, 10, weight=60),
    Case("wrn_34_10", "trades", 10, 128, 32, 10, weight=70),
    Case("wrn_34_10", "ikl", 10, 128, 32, 10, weight=34, short=True),
    Case("preact_resnet_18", "ikl", 10, 128, 32, 10, weight=18, short=True),
    Case("preact_resnet_18", "trades", 10, LARGE_BATCH, 32, 10, weight=24, short=True, rivals=False),
    Case("resnet_50", "pgd_at", 3, 64, 224, 1000, weight=6, short=True),
    Case("resnet_50", "ikl", 3, 64, 224, 1000, weight=6, short=True),
)
MODELS: dict[str, Callable[[int], nn.Module]] = {
    "preact_resnet_18": lambda classes: PreActResNet(num_classes=classes),
    "wrn_34_10": lambda classes: WideResNet(num_classes=classes, depth=34, widen_factor=10),
    "resnet_50": lambda classes: resnet_50(num_classes=classes),
}


def selected(models: list[str], toy: bool) -> list[Case]:
    """The cases of these networks; at toy size with few small images and two steps, and only the first one compiled."""
    chosen = [case for case in CASES if case.model in models]
    if not toy:
        return chosen
    small = {"steps": 2, "size": 8}
    return [replace(case, batch=case.batch // 32, interpreted=case is not chosen[0], **small) for case in chosen]


def network(case: Case, toy: bool, device: torch.device) -> nn.Module:
    """The case's network, or two convolutions in its place, drawn where it is to be: a CPU takes a second for 46 M."""
    torch.manual_seed(0)
    with device:
        return _stand_in(case) if toy else MODELS[case.model](case.num_classes)


def _stand_in(case: Case) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, case.num_classes),
    )


def make_loss(case: Case) -> Loss:
    """advtrain's loss; the IKL paper's attack on IKL, as in the published step."""
    if case.loss == "ikl":
        return IKL(num_classes=case.num_classes, inner="ikl")
    return TRADES() if case.loss == "trades" else PGDAT()


def make_attack(case: Case) -> PGD:
    return PGD(eps=EPS, steps=case.steps, step_size=2 / 255, init="uniform" if case.loss == "pgd_at" else "gaussian")


def batches(case: Case, device: torch.device) -> list[Batch]:
    """Noisy images with a faint pattern for each class, on the device: random, and still something to learn.

    The pattern is as strong as the attack, so that a network which knows it can be fooled.
    """
    generator = torch.Generator(device).manual_seed(1)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device) * 2 - 1

    patterns = uniform(case.num_classes, 3, 4, 4).sign().repeat_interleave(case.size // 4, 2)
    patterns = patterns.repeat_interleave(case.size // 4, 3)
    found = []
    for _ in range(DIFFERENT_BATCHES):
        y = torch.randint(case.num_classes, (case.batch,), generator=generator, device=device)
        noise = uniform(case.batch, 3, case.size, case.size)
        found.append(Batch(0.5 + EPS * patterns[y] + 0.1 * noise, y, slice(0, case.batch)))
    return found


def briefly_trained(case: Case, data: list[Batch], device: torch.device, toy: bool) -> dict[str, Tensor]:
    """A state dict after 30 steps of ordinary training.

    An untrained network predicts almost the same for everything, and the gradient of KL is then a difference of nearly
    equal numbers: no precision would pass.
    """
    model = network(case, toy, device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for step in range(30):
        batch = data[step % len(data)]
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss = F.cross_entropy(model(batch.x).float(), batch.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def forward_flops(case: Case, data: list[Batch], device: torch.device, toy: bool) -> float:
    """F: what a forward pass costs per image, 2 operations per multiply-add, as PyTorch's counter has it."""
    model = network(case, toy, device).eval()
    images = data[0].x[:2]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() / len(images)


def work(case: Case, flops: float) -> dict[str, Any]:
    """What a step is worth, for the record."""
    return {
        "forward_gflop_per_image": significant(flops / 1e9),
        "useful_gflop_per_image": significant(case.forwards * flops / 1e9),
        "useful": f"{case.forwards} F (2 K + {FORWARDS_BEYOND_THE_ATTACK[case.loss]}, K = {case.steps})",
    } | ({} if case.rivals else {"remark": NO_RIVAL})
