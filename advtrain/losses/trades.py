"""TRADES: natural cross-entropy and a pull of the adversarial prediction towards the natural one."""

from advtrain import checks
from advtrain.losses.divergences import DIVERGENCES
from advtrain.losses.regularised import Regularised
from advtrain.types import Logits, Scalar, Targets

FORMULAS = {
    "kl": "KL(f(x) || f(x'))",
    "reverse_kl": "KL(f(x') || f(x))",
    "js": "JS(f(x), f(x'))",
    "squared": "‖softmax f(x) - softmax f(x')‖²",
}


class TRADES(Regularised):
    """CE(f(x), y) + β D(f(x), f(x')), with D = KL(f(x) || f(x')) where nothing else is said.

    Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019, arXiv:1901.08573,
    eq. 5; the regulariser is averaged over the batch as in the published code, the gradient reaches both sides.

    The attack maximises what `inner` says, whatever the divergence; KL is TRADES's own. `divergence="squared"` is the
    regulariser of SCORE (arXiv:2202.10103), which moreover has the squared error in place of the cross-entropy and
    inside the attack, neither of which is here.

    Args:
        beta: β, the paper's 1/λ.
        divergence: D, one of kl, reverse_kl, js, squared; see `advtrain.losses.divergences`.
        inner: what the attack maximises, one of ce, kl, margin.
        label_smoothing: ε of the natural cross-entropy.
        second_view_weight: weight of the regulariser on the second view; None for one view.
    """

    def __init__(
        self,
        *,
        beta: float = 6.0,
        divergence: str = "kl",
        inner: str = "kl",
        label_smoothing: float = 0.0,
        second_view_weight: float | None = None,
    ) -> None:
        super().__init__(inner=inner, label_smoothing=label_smoothing, second_view_weight=second_view_weight)
        self.beta = checks.number("loss.beta", beta, low=0)
        self.regulariser_name = checks.choice("loss.divergence", divergence, tuple(DIVERGENCES))

    def regulariser(self, natural_logits: Logits, adversarial_logits: Logits, y: Targets) -> Scalar:
        return self.beta * DIVERGENCES[self.regulariser_name](natural_logits, adversarial_logits)

    def regulariser_formula(self) -> str:
        return f"{self.beta:g} {FORMULAS[self.regulariser_name]}"
