"""The check that a teacher knows its subject: its accuracy on held-out images, before anything is learnt from it.

A teacher at chance is one that is not better than guessing the most frequent class. With k of n held-out images right
and a share q of them in that class, it passes when P(X ≥ k) ≤ 0.001 for X binomial with n and q: the exact one-sided
test. Whoever answers without looking at the images has at most that chance of passing (the labels given, the number
right is a sum of independent trials with mean at most n q, and no such sum has more weight far above its mean than the
binomial: Hoeffding, Ann. Math. Statist. 27, 1956).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advtrain import distributed
from advtrain.data.base import Dataset, evaluation_batches
from advtrain.engine import run_directory as directories
from advtrain.engine.execution import record_execution, recorded_execution
from advtrain.engine.fingerprints import of_network
from advtrain.engine.numerics import Numerics, untried_kernels
from advtrain.evaluation.statistics import binomial_tail
from advtrain.losses import Distillation, Loss, Teacher
from advtrain.teachers.checking import trained_on
from advtrain.teachers.settings import TeacherSettings
from advtrain.types import SettingError

LEVEL = 0.001
BATCH = 128
# What decides which training images are held out, besides the dataset and data.validation_size.
SPLIT_SETTINGS = ("split_seed", "train", "index", "validation_index")


@dataclass(frozen=True)
class Examination:
    """What was found of a teacher.

    Attributes:
        source: the word that named it.
        model: the class of the network.
        parameters: their number.
        sha256: fingerprint of its weights.
        correct, n_examples: of held-out images.
        guessing: share of the most frequent class among them.
        remark: why the accuracy may flatter it; empty where those images were held out from the teacher, too.
    """

    source: str
    model: str
    parameters: int
    sha256: str
    correct: int
    n_examples: int
    guessing: float
    remark: str

    @property
    def accuracy(self) -> float:
        return self.correct / self.n_examples

    @property
    def knows_its_subject(self) -> bool:
        """Whether it is better than guessing, by the test above."""
        return binomial_tail(self.correct, self.n_examples, self.guessing) <= LEVEL

    def lines(self) -> list[str]:
        """For the opening of a run."""
        what = f"{self.source} ({self.model}, {self.parameters:,} parameters)"
        first = f"teacher   {what}: {self.accuracy:.1%} of {self.n_examples:,} held-out images"
        return [first, *([f"          {self.remark}"] if self.remark else [])]

    def record(self) -> dict[str, Any]:
        """For execution.json."""
        own = {name: getattr(self, name) for name in ("source", "model", "parameters", "sha256")}
        return own | {"accuracy": round(self.accuracy, 6), "n_examples": self.n_examples, "remark": self.remark}

    def check(self) -> None:
        """Confirms that the teacher knows its subject.

        Raises:
            SettingError: it does not, or there are too few images to tell.
        """
        if self.knows_its_subject:
            return
        if binomial_tail(self.n_examples, self.n_examples, self.guessing) > LEVEL:
            raise SettingError(
                f"teacher.n_examples: expected enough held-out images to tell a teacher from a guess, got "
                f"{self.n_examples}; raise it, or data.validation_size"
            )
        remark = f" ({self.remark})" if self.remark else ""
        raise SettingError(
            f"teacher.source={self.source}: expected a network that knows the classes of the data, got one that is "
            f"right on {self.correct:,} of {self.n_examples:,} held-out images, {self.accuracy:.1%}, where always "
            f"naming the most frequent class gives {self.guessing:.1%}{remark}; check its classes and their order, its "
            "weights, and teacher.mean and teacher.std"
        )

    def confirm(self, directory: Path, settings: TeacherSettings) -> None:
        """Records the teacher of a run that starts, or confirms that it is the one with which the run began.

        Args:
            directory: of the run, which has its config.yaml.
            settings: of the teacher.

        Raises:
            SettingError: it is another one.
        """
        before = recorded_execution(directory).get("teacher")
        if before is None:  # the record is lost, or older than this check: the words must do
            stored = directories.load_config(directory)["teacher"]
            same = (stored["source"], stored["weights"]) == (settings.source, settings.weights)
            there = str(stored["source"])
        else:
            same = before["sha256"] == self.sha256
            there = f"{before['source']}, SHA-256 {before['sha256'][:12]}…"
        if not same:
            raise SettingError(
                f"{directory}: expected the teacher with which the run began ({there}), got {self.source} with other "
                f"weights, SHA-256 {self.sha256[:12]}…; give that teacher, choose another name=… or remove that folder"
            )
        record_execution(directory, teacher=self.record())


def examine(
    loss: Loss, settings: TeacherSettings, data: Dataset, data_config: dict[str, Any], numerics: Numerics
) -> Examination | None:
    """What the main process finds of a loss's teacher, on every process; None where it holds none. Writes nothing.

    Args:
        loss: whose teacher goes to the device on which the run trains, in its dtype and layout.
        settings: of the teacher.
        data: of the run.
        data_config: of the run.
        numerics: of the run.

    Raises:
        SettingError: the teacher does not know its subject, or some process has another one than the main process.
    """
    if not isinstance(loss, Distillation) or loss.teacher is None:
        return None
    teacher = loss.teacher
    digest = of_network(teacher.model)
    _check_agreement(digest, teacher, numerics.device)
    teacher.to(numerics.device, numerics.dtype).to(memory_format=numerics.memory_format)
    data.split("validation")  # by all processes, since reading may wait for the one that downloads

    def found() -> Examination:
        correct, n_examples, guessing = answers(teacher, data, settings.n_examples, numerics)
        network = getattr(teacher.model, "model", teacher.model)  # inside its normalisation
        return Examination(
            source=teacher.name,
            model=type(network if isinstance(network, nn.Module) else teacher.model).__name__,
            parameters=sum(parameter.numel() for parameter in teacher.model.parameters()),
            sha256=digest,
            correct=correct,
            n_examples=n_examples,
            guessing=guessing,
            remark=remark(settings, data, data_config),
        )

    examination = distributed.on_main(found)
    examination.check()
    return examination


@torch.no_grad()
def answers(teacher: Teacher, data: Dataset, n_examples: int, numerics: Numerics) -> tuple[int, int, float]:
    """Of the held-out images that stand for `n_examples`: correct ones, all, and the share of the commonest class."""
    correct, labels = 0, []
    with numerics.products(), untried_kernels():
        for x, y in evaluation_batches(data.split("validation"), BATCH, numerics.device, n_examples):
            with numerics.casting():
                correct += int((teacher(numerics.images(x)).argmax(1) == y).sum())
            labels.append(y)
    counts = torch.cat(labels).bincount()
    return correct, int(counts.sum()), int(counts.max()) / int(counts.sum())


def remark(settings: TeacherSettings, data: Dataset, data_config: dict[str, Any]) -> str:
    """Whether the teacher may have been trained on the held-out images of this run; empty where it was not."""
    known = trained_on(settings)
    if known is None:
        return "if it was trained on these images, too, that figure is optimistic"
    theirs, name = known
    if name != data.name:
        return f"it was trained on {name or 'other data'}; if these images are among those, that figure is optimistic"
    # With the same split_seed a larger held-out part contains a smaller one.
    larger = theirs["validation_size"] >= data_config["validation_size"]
    if larger and all(theirs.get(key) == data_config.get(key) for key in SPLIT_SETTINGS):
        return ""
    differing = [
        f"data.{key}={theirs.get(key)}"
        for key in ("validation_size", *SPLIT_SETTINGS)
        if theirs.get(key) != data_config.get(key)
    ]
    return f"it was trained with {' '.join(differing)}, so it may know some of these images: that figure is optimistic"


def _check_agreement(digest: str, teacher: Teacher, device: torch.device) -> None:
    here = torch.tensor(int(distributed.broadcast_object(digest) != digest), device=device)
    if distributed.all_reduce_max(here):
        raise SettingError(
            f"teacher.source={teacher.name}: expected the same weights on every machine, got others on some; copy the "
            "main one's"
        )
