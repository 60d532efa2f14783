"""The interface of a loss: what the attack maximises (`inner`) and what training minimises (`outer`)."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from advtrain import checks
from advtrain.losses import objectives
from advtrain.losses.functional import cross_entropy_per_image
from advtrain.types import Images, Labels, Logits, Objective, Parts, SettingError


class Loss(nn.Module, ABC):
    """Base of all losses. What a loss learns (a class prior) is a registered buffer, so `state_dict` is its state.

    Attributes:
        needs_attack: whether `outer` uses x_adv. A loss that does not is trained without an attack.
        inner_objective: the word for what the attack maximises, one of `objectives.INNER`.
    """

    needs_attack = True

    def __init__(self, *, inner: str) -> None:
        super().__init__()
        self.inner_objective = checks.choice("loss.inner", inner, objectives.INNER)
        if inner == "ikl" and not self.has_prior:
            name = type(self).__name__
            raise SettingError(
                f"loss.inner: expected ce, kl, margin or dlr for {name}, which keeps no class prior, got 'ikl'; "
                "choose one of them, or loss=ikl or loss=gkl"
            )

    @property
    def has_prior(self) -> bool:
        """Whether the loss weighs classes by a `ClassPrior`."""
        return False

    def class_weights(self, y: Labels) -> Logits | None:
        """The prior's rows for the labels, shape (N, C), where the loss keeps a prior."""
        return None

    def inner(self, model: nn.Module, x: Images, y: Labels) -> Objective:
        """What the attack maximises for this batch: images → loss per image. Uses the model in the mode it is in."""
        return objectives.objective(self.inner_objective, model, x, y, self.class_weights(y))

    @abstractmethod
    def outer(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> tuple[Tensor, Parts]:
        """What training minimises: a scalar, and its named terms and accuracies, detached, for the log."""

    def start_batch(self, y: Labels) -> None:
        """Called with the labels of every row that this process adds to the coming optimiser step, before its passes.

        For losses that normalise over the whole batch, which may be spread over processes and accumulation passes.
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


def accuracies(y: Labels, natural_logits: Tensor | None = None, adversarial_logits: Tensor | None = None) -> Parts:
    """Fractions of the batch that are classified correctly, as scalars on the device (no synchronisation)."""
    named = {"clean_accuracy": natural_logits, "robust_accuracy": adversarial_logits}
    return {
        name: (logits.detach().argmax(1) == y).float().mean() for name, logits in named.items() if logits is not None
    }


def regularised(
    model: nn.Module, x: Images, x_adv: Images, y: Labels, name: str, regulariser: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Parts]:
    """CE(f(x), y) + regulariser(f(x), f(x')), the form of every loss of the TRADES and KL families.

    Two forward passes, adversarial images first: each has its own BatchNorm statistics, and the natural ones are the
    last to enter the running averages (as in the published TRADES and IKL code).
    """
    adversarial_logits = model(x_adv)
    natural_logits = model(x)
    ce = cross_entropy_per_image(natural_logits, y).mean()
    regularisation = regulariser(natural_logits, adversarial_logits)
    total = ce + regularisation
    parts = {"loss": total.detach(), "ce": ce.detach(), name: regularisation.detach()}
    return total, parts | accuracies(y, natural_logits, adversarial_logits)
