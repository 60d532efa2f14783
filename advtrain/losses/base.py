"""The interface of a loss: what the attack maximises (`inner`) and what training minimises (`outer`)."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from advtrain import checks
from advtrain.losses import objectives
from advtrain.losses.teacher import Teacher
from advtrain.types import Images, Logits, Objective, Parts, SettingError, Targets

# What these maximise is defined for soft labels, too: ce by its sum over classes, kl and ikl because they need no
# label. A margin has one true class; taking the largest of a mixed label would attack half of the image.
SOFT_INNER = ("ce", "kl", "ikl")


class Loss(nn.Module, ABC):
    """Base of all losses. What a loss learns (a class prior) is a registered buffer, so `state_dict` is its state.

    Attributes:
        needs_attack: whether `outer` uses x_adv. A loss that does not is trained without an attack.
        needs_teacher: whether the loss holds a teacher; see `advtrain.losses.distillation`.
        selects_by: which held-out accuracy chooses checkpoints unless the trainer is told otherwise: robust or clean.
        inner_objective: the word for what the attack maximises, one of `objectives.INNER`.
        weighs_pairs: whether the loss weighs pairs of classes, as inner=ikl does.
        attacks_by_teacher: whether the attack may maximise a divergence from the teacher, `objectives.BY_TEACHER`.
        takes_soft_labels: whether `inner` and `outer` take labels of shape (N, C) from mixed images, with the settings
            of this loss. Those that do not raise ValueError.
        views: how many views of each image the rows of a batch hold; with 2 they are [view 1; view 2].
        needs_whole_batch: whether `outer` must see all rows of this process in one pass (no accumulation), since it
            normalises by what only the forward pass tells.
    """

    needs_attack = True
    needs_teacher = False
    selects_by = "robust"
    weighs_pairs = False
    attacks_by_teacher = False
    takes_soft_labels: bool = False
    views: int = 1
    needs_whole_batch: bool = False

    def __init__(self, *, inner: str) -> None:
        super().__init__()
        self.inner_objective = self._inside(inner)

    def _inside(self, inner: str) -> str:
        """The setting `loss.inner`."""
        if inner == "ikl" and not self.weighs_pairs:
            raise SettingError(self._no_ikl_inside())
        if self.attacks_by_teacher:
            words = [word for word in objectives.INNER if word != "ikl" or self.weighs_pairs]
            return checks.choice("loss.inner", inner, words)
        if inner in objectives.BY_TEACHER:
            raise SettingError(
                f"loss.inner={inner} with loss {type(self).__name__}: expected a loss whose attack knows a teacher; "
                "choose loss=rslad or loss=adaad (say), or loss.inner=kl"
            )
        return checks.choice("loss.inner", inner, objectives.PLAIN)

    def _no_ikl_inside(self) -> str:
        if self.attacks_by_teacher:
            return (
                f"loss.inner=ikl with loss {type(self).__name__}, whose class weights are its teacher's: expected "
                "teacher_ikl, adaptive_ikl, or a word without such weights; choose loss.inner=teacher_ikl"
            )
        return (
            f"loss.inner: expected ce, kl, margin or dlr for {type(self).__name__}, which keeps no class prior, got "
            "'ikl'; choose one of them, or loss=ikl or loss=gkl"
        )

    @property
    def has_prior(self) -> bool:
        """Whether the loss weighs classes by a `ClassPrior`."""
        return False

    @property
    def teacher(self) -> Teacher | None:
        """The teacher that the loss holds."""
        return None

    def class_weights(self, y: Targets) -> Logits | None:
        """The prior's rows for the labels, shape (N, C), where the loss keeps a prior."""
        return None

    def inner(self, model: nn.Module, x: Images, y: Targets) -> Objective:
        """What the attack maximises for this batch: images → loss per image. Uses the model in the mode it is in."""
        return objectives.objective(self.inner_objective, model, x, y, self.class_weights(y))

    @abstractmethod
    def outer(self, model: nn.Module, x: Images, x_adv: Images, y: Targets) -> tuple[Tensor, Parts]:
        """What training minimises: a scalar, and its named terms and accuracies, detached, for the log."""

    def check_accumulation(self, accumulation: int) -> None:
        """Confirms that the rows of a process may go through the model in so many passes.

        Raises:
            SettingError: they may not.
        """
        if self.needs_whole_batch and accumulation > 1:
            raise SettingError(
                f"trainer.accumulation: expected 1 for {type(self).__name__} with loss.global_weights=false, whose "
                f"normaliser is known only after the whole batch went through the model, got {accumulation}; "
                "set loss.normaliser=sample, loss.global_weights=true or trainer.accumulation=1"
            )

    def start_epoch(self, epoch: int) -> None:
        """Called on every process before the steps of an epoch (counted from 1), also where a run resumes in it."""

    def start_batch(self, y: Targets, taught: Logits | None = None) -> None:
        """Called with the labels of every row that this process adds to the coming optimiser step, before its passes.

        For losses that normalise over the whole batch, which may be spread over processes and accumulation passes.

        Args:
            y: labels.
            taught: what the teacher says of the same rows, shape (N, C), for losses that hold one.
        """

    def end_epoch(self) -> None:
        """Called on every process when an epoch is complete."""

    def synchronise(self) -> None:
        """Called on every process before the main one saves the state dict."""

    def forget_gathered(self) -> None:
        """Called on the other processes after all have loaded that state dict."""

    @abstractmethod
    def formula(self) -> str:
        """The loss in one line, for people: shown when a run starts."""


def smoothing(value: float) -> float:
    """The setting `loss.label_smoothing` ε, from 0 to 1; see `functional.cross_entropy_per_image`."""
    return checks.number("loss.label_smoothing", value, low=0, high=1)


def ce_formula(images: str, label_smoothing: float) -> str:
    """The cross-entropy on `images` for `Loss.formula`."""
    labels = f"(1 - {label_smoothing:g}) y + {label_smoothing:g}/C" if label_smoothing else "y"
    return f"CE(f({images}), {labels})"


def accuracies(
    y: Targets,
    natural_logits: Tensor | None = None,
    adversarial_logits: Tensor | None = None,
    teacher_logits: Tensor | None = None,
) -> Parts:
    """Fractions of the batch that are classified correctly, as scalars on the device (no synchronisation).

    Of a soft label the largest entry counts as the true class.
    """
    true = y.argmax(1) if y.is_floating_point() else y
    named = {
        "clean_accuracy": natural_logits,
        "robust_accuracy": adversarial_logits,
        "teacher_accuracy": teacher_logits,
    }
    return {
        name: (logits.detach().argmax(1) == true).float().mean() for name, logits in named.items() if logits is not None
    }
