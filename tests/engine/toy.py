"""A toy problem for the engine: separable images of a few classes, tiny networks, and the parts of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advtrain.attacks import PGD
from advtrain.config import ThreatSettings, TrainerSettings, ValidationSettings
from advtrain.data.array_dataset import ArrayDataset
from advtrain.engine import SGD, Constant, Ingredients, NoAveraging, NoLogger, NoPerturbation, Trainer
from advtrain.losses import (
    ARD,
    DKD,
    DKL,
    GKL,
    GKLKD,
    IAD,
    IKL,
    IKLKD,
    KD,
    KL,
    MART,
    PGDAT,
    RSLAD,
    TRADES,
    AdaAD,
    Distillation,
    Loss,
    Standard,
    Teacher,
)


class Toy(ArrayDataset):
    """96 training and 24 test images, 3 × 6 × 6, of four classes; each class has a mean of its own."""

    name = "toy"
    image_shape = (3, 6, 6)

    def __init__(self, **settings: Any) -> None:
        super().__init__(num_classes=4, validation_size=16, padding=1, **settings)

    def check(self) -> None:
        pass

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        n, seed = (112, 1) if train else (24, 2)
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(n) % 4
        means = torch.rand(4, 3, 1, 1, generator=torch.Generator().manual_seed(7)) * 255
        images = means[labels] + 60 * torch.randn(n, 3, 6, 6, generator=generator)
        return images.clamp(0, 255).to(torch.uint8), labels


def with_teacher(loss: Loss, seed: int = 11, dtype: torch.dtype = torch.float32) -> Loss:
    """The loss, holding another network of the toy problem where it needs a teacher."""
    teacher = Teacher(network(norm=True, seed=seed)).to(dtype)
    return loss.hold(teacher) if isinstance(loss, Distillation) else loss


LOSSES: dict[str, Callable[[], Loss]] = {
    "standard": lambda: Standard(),
    "pgd_at": lambda: PGDAT(),
    "trades": lambda: TRADES(),
    "mart": lambda: MART(),
    "kl": lambda: KL(),
    "dkl": lambda: DKL(),
    "ikl": lambda: IKL(num_classes=4, inner="ikl"),
    "gkl": lambda: GKL(num_classes=4, gamma=0.4),
    "kd": lambda: with_teacher(KD()),
    "ikl_kd": lambda: with_teacher(IKLKD(num_classes=4, warmup_epochs=2)),
    "ikl_kd_code": lambda: with_teacher(
        IKLKD(num_classes=4, global_weights=False, prior_temperature=100, warmup_epochs=2)
    ),
    "dkd": lambda: with_teacher(DKD(warmup_epochs=2)),
    # An untrained teacher is sure of nothing: a small τ lets the weights, and with them the normaliser, differ.
    "gkl_kd": lambda: with_teacher(GKLKD(num_classes=4, gamma=0.4, prior_temperature=0.02, warmup_epochs=2)),
    "gkl_kd_code": lambda: with_teacher(
        GKLKD(num_classes=4, gamma=0.4, prior_temperature=0.02, global_weights=False, warmup_epochs=2)
    ),
    "ard": lambda: with_teacher(ARD(alpha=0.7, temperature=3, divergence="ikl", global_weights=False)),
    "rslad": lambda: with_teacher(RSLAD(divergence="ikl", num_classes=4, inner="teacher_ikl")),
    "adaad": lambda: with_teacher(AdaAD(alpha=0.8, inner="adaptive_ikl")),
    "iad": lambda: with_teacher(IAD(alpha=0.9, temperature=2, warmup_epochs=1)),
}

# Settings under which a loss normalises otherwise over processes; "gkl_own" cannot be cut into passes.
VARIANTS = {
    "gkl_own": lambda: GKL(num_classes=4, gamma=0.4, global_weights=False),
    "gkl_sample": lambda: GKL(num_classes=4, gamma=0.4, global_weights=False, normaliser="sample"),
    "ikl_asymmetric": lambda: IKL(num_classes=4, break_asymmetry=False),
    "rslad_kl": lambda: with_teacher(RSLAD()),
    "adaad_ikl": lambda: with_teacher(AdaAD(num_classes=4, divergence="ikl", inner="adaptive_ikl")),
}


# What data can ask of a loss, and a run of it: the names of trainer's arguments.
DATA: dict[str, Callable[[], dict[str, Any]]] = {
    "two_views": lambda: {
        "data": Toy(second_view="autoaugment"),
        "loss": GKL(num_classes=4, gamma=0.4, second_view_weight=0.5),
    },
    "mixup": lambda: {"data": Toy(mix="mixup"), "loss": PGDAT(label_smoothing=0.1)},
    "cutmix": lambda: {"data": Toy(mix="cutmix"), "loss": TRADES(inner="ce")},
}


def network(norm: bool = False, seed: int = 3) -> nn.Module:
    """A small convolutional network, with or without BatchNorm."""
    torch.manual_seed(seed)
    middle = nn.BatchNorm2d(6) if norm else nn.Identity()
    return nn.Sequential(nn.Conv2d(3, 6, 3), middle, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4 * 4, 4))


def trainer(directory: Path, model: nn.Module | None = None, **changes: Any) -> Trainer:
    """A trainer for the toy problem; `changes` replace ingredients or trainer settings by name."""
    parts: dict[str, Any] = {
        "data": Toy(),
        "model": network() if model is None else model,
        "attack": PGD(eps=0.05, steps=2),
        "loss": IKL(num_classes=4),
        "optimizer": SGD(lr=0.02),
        "schedule": Constant(),
        "weight_perturbation": NoPerturbation(),
        "averaging": NoAveraging(),
        "logger": NoLogger(),
        "threat": ThreatSettings("linf", "0.05"),
    }
    settings: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 24,
        "precision": "fp64",
        "log_every": 1,
        "validation": ValidationSettings(steps=1, restarts=1, batch_size=8),
    }
    for name, value in changes.items():
        (parts if name in parts else settings)[name] = value
    return Trainer(Ingredients(**parts), TrainerSettings(**settings), seed=0, directory=directory, config={})


def weights_of(model: nn.Module) -> list[Tensor]:
    """Copies of all parameters and buffers."""
    return [tensor.detach().clone() for tensor in model.state_dict().values()]
