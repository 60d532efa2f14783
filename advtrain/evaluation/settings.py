"""What an evaluation does; the YAML files in configs/eval have the same keys."""

from dataclasses import dataclass, field

from advtrain import checks
from advtrain.types import SettingError

VERSIONS = ("standard", "custom", "rand", "plus")
ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")


@dataclass(frozen=True)
class PGDSettings:
    """PGD on the cross-entropy from uniform starts. An image is broken when any restart's last image is misclassified.

    Attributes:
        enabled: whether it runs.
        steps: of each restart.
        restarts: independent starts.
        step_size: in units of pixels in [0, 1], e.g. 2/255; ε/4 when null.
        n_examples: images attacked; as many as for the clean accuracy when null.
    """

    enabled: bool = True
    steps: int = 20
    restarts: int = 5
    step_size: str | None = None
    n_examples: int | None = None

    def __post_init__(self) -> None:
        checks.flag("eval.pgd.enabled", self.enabled)
        checks.integer("eval.pgd.steps", self.steps, low=1)
        checks.integer("eval.pgd.restarts", self.restarts, low=1)
        _at_least_one("eval.pgd.n_examples", self.n_examples)
        if self.step_size is not None:
            checks.number("eval.pgd.step_size", self.step_size, above=0)


@dataclass(frozen=True)
class AutoAttackSettings:
    """AutoAttack (Croce & Hein, arXiv:2003.01690) by its authors' code.

    Attributes:
        enabled: whether it runs.
        version: standard is what leaderboards report; rand is for randomised models, plus runs six attacks, custom
            those of `attacks`.
        attacks: in the order they run; only with version=custom.
        n_examples: images attacked; as many as for the clean accuracy when null. Leaderboards want the whole test set.
        seed: every batch of every attack starts from it.
        batch_size: images per batch. It takes part in the random draws: another size is another draw.
    """

    enabled: bool = True
    version: str = "standard"
    attacks: list[str] = field(default_factory=list)
    n_examples: int | None = None
    seed: int = 0
    batch_size: int = 250

    def __post_init__(self) -> None:
        checks.flag("eval.autoattack.enabled", self.enabled)
        checks.choice("eval.autoattack.version", self.version, VERSIONS)
        checks.integer("eval.autoattack.seed", self.seed, low=0)
        checks.integer("eval.autoattack.batch_size", self.batch_size, low=1)
        _at_least_one("eval.autoattack.n_examples", self.n_examples)
        for attack in self.attacks:
            checks.choice("eval.autoattack.attacks", attack, ATTACKS)
        if self.version == "custom" and not self.attacks:
            raise SettingError(
                "eval.autoattack.attacks: expected the attacks of version=custom, got an empty list; "
                f"choose from {', '.join(ATTACKS)}"
            )
        if self.version != "custom" and self.attacks:
            raise SettingError(
                f"eval.autoattack.attacks: expected none with version={self.version}, got {', '.join(self.attacks)}; "
                "set eval.autoattack.version=custom"
            )


@dataclass(frozen=True)
class EvaluationSettings:
    """How a run ends: clean accuracy, then the attacks that are enabled.

    Attributes:
        enabled: whether there is an evaluation at all.
        checkpoint: which weights: best (on the held-out split) or last.
        seed: of PGD's random starts.
        batch_size: images per pass for the clean accuracy and PGD, and when adversarial images are re-checked.
        n_examples: images of the split; the whole split when null.
        pgd: the first attack.
        autoattack: the second.
    """

    enabled: bool = True
    checkpoint: str = "best"
    seed: int = 0
    batch_size: int = 250
    n_examples: int | None = None
    pgd: PGDSettings = field(default_factory=PGDSettings)
    autoattack: AutoAttackSettings = field(default_factory=AutoAttackSettings)

    def __post_init__(self) -> None:
        checks.flag("eval.enabled", self.enabled)
        checks.choice("eval.checkpoint", self.checkpoint, ("best", "last"))
        checks.integer("eval.seed", self.seed, low=0)
        checks.integer("eval.batch_size", self.batch_size, low=1)
        _at_least_one("eval.n_examples", self.n_examples)


def _at_least_one(name: str, value: int | None) -> None:
    if value is not None:
        checks.integer(name, value, low=1)
