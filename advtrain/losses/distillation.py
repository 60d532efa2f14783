"""Distillation: a loss that holds a teacher. Here what all of them share, and the form of those without an attack."""

from abc import abstractmethod

from torch import Tensor, nn

from advtrain import checks
from advtrain.losses.base import Loss, accuracies, ce_formula, smoothing
from advtrain.losses.class_prior import ClassPrior
from advtrain.losses.functional import cross_entropy_per_image
from advtrain.losses.teacher import Teacher
from advtrain.types import Images, Logits, Objective, Parts, Scalar, Targets


class Distillation(Loss):
    """Base of the losses that hold a teacher.

    `inner` and `outer` take what the teacher says of the natural images, where somebody has it (the training step asks
    once per batch, or reads it from a file), and ask the teacher otherwise.

    Args:
        inner: what the attack maximises.
        label_weight: multiplies the cross-entropy with the labels.
        label_smoothing: ε of that cross-entropy.
        warmup_epochs: W; the teacher's terms are multiplied by min(epoch / W, 1), epochs counted from 1; 0 for none.
        prior: class-wise means of the teacher's predictions, where the loss weighs classes by them.
    """

    needs_teacher = True

    def __init__(
        self,
        *,
        inner: str,
        label_weight: float,
        label_smoothing: float,
        warmup_epochs: int,
        prior: ClassPrior | None = None,
    ) -> None:
        super().__init__(inner=inner)
        self.label_weight = checks.number("loss.label_weight", label_weight, low=0)
        self.label_smoothing = smoothing(label_smoothing)
        self.warmup_epochs = checks.integer("loss.warmup_epochs", warmup_epochs, low=0)
        self.prior = prior
        self._warmth = 1.0
        self._teacher: list[Teacher] = []

    @property
    def teacher(self) -> Teacher | None:
        return self._teacher[0] if self._teacher else None

    def hold(self, teacher: Teacher) -> "Distillation":
        """Takes the teacher on, in place of an earlier one."""
        self._teacher = [teacher]
        return self

    def taught(self, x: Images) -> Logits:
        """What the teacher says of the images, a constant.

        Raises:
            RuntimeError: there is no teacher yet.
        """
        return self._held()(x)

    def network(self) -> nn.Module:
        """The teacher's network in eval mode, for attacks whose gradient goes through it, too.

        Raises:
            RuntimeError: there is no teacher yet.
        """
        return self._held().model.eval()

    def _held(self) -> Teacher:
        if self.teacher is None:
            raise RuntimeError(f"expected a teacher, got none; call {type(self).__name__}.hold(Teacher(model))")
        return self.teacher

    @property
    def needs_taught_adv(self) -> bool:
        """Whether `outer` compares with what the teacher says of x', and takes it as `taught_adv`, shape (N, C)."""
        return False

    @property
    def has_prior(self) -> bool:
        return self.prior is not None

    @property
    def warmth(self) -> float:
        """min(epoch / W, 1); 1 until the first epoch is announced."""
        return self._warmth

    def start_epoch(self, epoch: int) -> None:
        self._warmth = min(epoch / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0

    def observe(self, taught: Logits, y: Targets) -> None:
        """Called with the teacher's logits of natural images: what the prior learns from, in training."""
        if self.prior is not None and self.training:
            self.prior.update(taught, y)

    def end_epoch(self) -> None:
        if self.prior is not None:
            self.prior.end_epoch()

    def synchronise(self) -> None:
        if self.prior is not None:
            self.prior.synchronise()

    def forget_gathered(self) -> None:
        if self.prior is not None:
            self.prior.forget_gathered()

    @abstractmethod
    def outer(
        self, model: nn.Module, x: Images, x_adv: Images, y: Targets, taught: Logits | None = None
    ) -> tuple[Tensor, Parts]:
        """As `Loss.outer`; `taught` are the teacher's logits of x, shape (N, C), asked for when None."""

    def inner(self, model: nn.Module, x: Images, y: Targets, taught: Logits | None = None) -> Objective:
        """As `Loss.inner`; `taught` as for `outer`."""
        return super().inner(model, x, y)


def taught_beside(loss: Loss, x: Images, known: Logits | None = None) -> tuple[Logits, ...]:
    """What `inner` and `outer` of the loss take beside images and labels.

    Args:
        loss: any.
        x: natural images.
        known: the teacher's logits of them, where they are known.

    Returns:
        The teacher's logits of x, asked for where they are not known; nothing for a loss without a teacher.
    """
    if not isinstance(loss, Distillation):
        return ()
    return (loss.taught(x) if known is None else known,)


class CleanDistillation(Distillation):
    """label_weight · CE(f(x), y) + min(epoch / W, 1) · D(t(x), f(x)): no attack is run, whichever is configured.

    Args:
        label_weight, label_smoothing, warmup_epochs, prior: as for `Distillation`.
    """

    needs_attack = False
    selects_by = "clean"
    term: str  # the name of D in the log

    def __init__(
        self, *, label_weight: float, label_smoothing: float, warmup_epochs: int, prior: ClassPrior | None = None
    ) -> None:
        super().__init__(
            inner="ce",
            label_weight=label_weight,
            label_smoothing=label_smoothing,
            warmup_epochs=warmup_epochs,
            prior=prior,
        )
        self.takes_soft_labels = prior is None

    @abstractmethod
    def distilled(self, taught: Logits, logits: Logits, y: Targets) -> Scalar:
        """D, a mean over the batch."""

    @abstractmethod
    def distilled_formula(self) -> str:
        """D in one line."""

    def outer(
        self, model: nn.Module, x: Images, x_adv: Images, y: Targets, taught: Logits | None = None
    ) -> tuple[Tensor, Parts]:
        taught = self.taught(x) if taught is None else taught
        logits = model(x)
        ce = self.label_weight * cross_entropy_per_image(logits, y, self.label_smoothing).mean()
        self.observe(taught, y)
        distilled = self.warmth * self.distilled(taught, logits, y)
        total = ce + distilled
        parts = {"loss": total.detach(), "ce": ce.detach(), self.term: distilled.detach()}
        return total, parts | accuracies(y, natural_logits=logits, teacher_logits=taught)

    def formula(self) -> str:
        warmth = f"min(epoch/{self.warmup_epochs}, 1) · " if self.warmup_epochs else ""
        weight = "" if self.label_weight == 1 else f"{self.label_weight:g} "
        return f"{weight}{ce_formula('x', self.label_smoothing)} + {warmth}[{self.distilled_formula()}]"
