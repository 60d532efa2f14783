"""The teacher of a run: the network that `teacher.source` names, and the check that it knows its subject."""

from dataclasses import dataclass

import torch
from torch import nn

from advtrain import checks
from advtrain.composition import own_settings
from advtrain.config import ThreatSettings, build, config_dir
from advtrain.data.base import Dataset, evaluation_batches
from advtrain.losses import Distillation, Loss, Teacher
from advtrain.models import Normalize, load_weights
from advtrain.sources import find
from advtrain.types import SettingError

LIBRARIES = ("torchvision:", "timm:")
OF_OURS = "model:"


@dataclass(frozen=True)
class TeacherSettings:
    """Whom a loss that distils learns from; see configs/teacher/default.yaml.

    Attributes:
        source: run directory, checkpoint, bundle, robustbench:NAME, torchvision:NAME, timm:NAME or model:NAME.
        checkpoint: of a run directory: best or last.
        weights: path of a state dict for torchvision:, timm: and model:.
        mean, std: per channel, what a network of model: expects its images to be standardised by.
        download: whether weights may be fetched.
        model_dir: of robustbench:.
        trust: whether a stored configuration may name classes that are not ours.
        n_examples: held-out images on which the accuracy is checked.
        logits: path of a .npy file with what it says of the training images; see `advtrain.engine.stored_logits`.
    """

    source: str | None = None
    checkpoint: str = "best"
    weights: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    download: bool = False
    model_dir: str = "models"
    trust: bool = False
    n_examples: int = 512
    logits: str | None = None

    def __post_init__(self) -> None:
        checks.choice("teacher.checkpoint", self.checkpoint, ("best", "last"))
        checks.integer("teacher.n_examples", self.n_examples, low=1)


def check_teacher(settings: TeacherSettings, loss: Loss) -> None:
    """Confirms that a loss has a teacher exactly where it needs one.

    Raises:
        SettingError: it has not.
    """
    name = type(loss).__name__
    if loss.needs_teacher and settings.source is None:
        raise SettingError(
            f"teacher.source: expected a trained network, which loss {name} holds its student to, got none; "
            "add teacher.source=RUN (a run directory, a checkpoint, robustbench:NAME, timm:NAME, torchvision:NAME)"
        )
    if settings.source is not None and not loss.needs_teacher:
        raise SettingError(
            f"teacher.source={settings.source} with loss {name}: expected a loss that holds a teacher; "
            "choose loss=kd (say), or leave teacher.source out"
        )


def give_teacher(loss: Loss, settings: TeacherSettings, data: Dataset, threat: ThreatSettings) -> None:
    """Has a loss that distils hold the teacher that the settings name, unless it holds one already."""
    if isinstance(loss, Distillation) and loss.teacher is None:
        loss.hold(find_teacher(settings, data, threat))


def find_teacher(settings: TeacherSettings, data: Dataset, threat: ThreatSettings) -> Teacher:
    """The network that `teacher.source` names, on the CPU, float32.

    Raises:
        SettingError: there is none such, or it does not fit the data.
    """
    word = str(settings.source)
    if word.startswith(OF_OURS):
        model = _ours(word.removeprefix(OF_OURS), settings, data)
    else:
        config = {
            "source": word,
            "eval": {"checkpoint": settings.checkpoint},
            "trust": settings.trust,
            "dataset": data.name,
            "norm": threat.norm,
            "eps": threat.eps,
            "model_dir": settings.model_dir,
            "download": settings.download,
            "leaderboard": None,
        }
        model = find(config, torch.device("cpu")).model
    return Teacher(model, name=word)


def _ours(name: str, settings: TeacherSettings, data: Dataset) -> nn.Module:
    config = own_settings("model", name, [config_dir()])
    config["num_classes"] = data.num_classes
    model = build(config)
    assert settings.weights is not None
    load_weights(model, settings.weights)
    if settings.mean is None or settings.std is None:
        return model
    return Normalize(model, mean=settings.mean, std=settings.std)


@torch.no_grad()
def accuracy(teacher: Teacher, data: Dataset, n_examples: int) -> float:
    """Fraction of the held-out images that stand for `n_examples` which the teacher classifies correctly."""
    like = next(teacher.model.parameters())
    correct = seen = 0
    for x, y in evaluation_batches(data.split("validation"), 128, like.device, n_examples):
        correct += int((teacher(x.to(like.dtype)).argmax(1) == y).sum())
        seen += len(y)
    return correct / seen
