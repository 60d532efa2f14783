"""What an evaluation does; the YAML files in configs/eval have the same keys."""

from dataclasses import dataclass, field

from advtrain import checks
from advtrain.types import SettingError

VERSIONS = ("standard", "custom", "rand", "plus")
ENGINES = ("exact", "fast", "upstream")
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
    """AutoAttack (Croce & Hein, arXiv:2003.01690).

    Attributes:
        enabled: whether it runs.
        engine: upstream is its authors' code, unchanged, in one process, and starts anew after a kill; exact gives the
            same verdicts for the same seed and batches with less work; fast gives sound and statistically equal ones,
            and is not called AutoAttack alone. These two run on all processes and go on where they were killed.
        compile: whether engine=fast compiles its passes, on GPUs with CUDA graphs; not when null. Every size of a batch
            is compiled for itself; on a CPU the first takes about a minute.
        version: standard is what leaderboards report; rand is for randomised models, plus runs six attacks, custom
            those of `attacks`.
        attacks: in the order they run; only with version=custom.
        n_examples: images attacked; as many as for the clean accuracy when null. Leaderboards want the whole test set.
        seed: every batch of every attack starts from it.
        batch_size: images per batch. It takes part in the random draws: another size is another draw.
    """

    enabled: bool = True
    engine: str = "exact"
    compile: bool | None = None
    version: str = "standard"
    attacks: list[str] = field(default_factory=list)
    n_examples: int | None = None
    seed: int = 0
    batch_size: int = 250

    def __post_init__(self) -> None:
        checks.flag("eval.autoattack.enabled", self.enabled)
        checks.choice("eval.autoattack.engine", self.engine, ENGINES)
        if self.compile is not None:
            checks.flag("eval.autoattack.compile", self.compile)
            if self.engine != "fast":
                raise SettingError(
                    f"eval.autoattack.compile: expected null with engine={self.engine}, got {self.compile}; it is a "
                    "choice of engine=fast"
                )
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
class ScreenSettings:
    """APGD-CE and APGD-T, the two attacks of AutoAttack that decide most verdicts: for choosing among models.

    Attributes:
        enabled: whether it runs.
        n_examples: images attacked; as many as for the clean accuracy when null.
        seed: every batch starts from it.
        batch_size: images per batch; part of the random draws.
    """

    enabled: bool = False
    n_examples: int | None = None
    seed: int = 0
    batch_size: int = 250

    def __post_init__(self) -> None:
        checks.flag("eval.screen.enabled", self.enabled)
        checks.integer("eval.screen.seed", self.seed, low=0)
        checks.integer("eval.screen.batch_size", self.batch_size, low=1)
        _at_least_one("eval.screen.n_examples", self.n_examples)


@dataclass(frozen=True)
class MaskingSettings:
    """Checks of whether the robust accuracy can be believed; see `advtrain.evaluation.masking`.

    Attributes:
        enabled: whether they run.
        n_examples: images used, at most.
        seed: of their attacks.
        batch_size: images per pass.
    """

    enabled: bool = True
    n_examples: int = 128
    seed: int = 0
    batch_size: int = 128

    def __post_init__(self) -> None:
        checks.flag("eval.masking.enabled", self.enabled)
        checks.integer("eval.masking.n_examples", self.n_examples, low=1)
        checks.integer("eval.masking.seed", self.seed, low=0)
        checks.integer("eval.masking.batch_size", self.batch_size, low=1)


@dataclass(frozen=True)
class CurveSettings:
    """Robust accuracy over a grid of radii, in one pass that starts each radius from the images of the last.

    Attributes:
        enabled: whether it runs.
        eps: radii, fractions such as 8/255 parse; multiples ¼ to 2 of the threat's radius when empty.
        n_examples: images attacked, at most; as many as for the clean accuracy when null.
        seed: of the attack.
        batch_size: images per pass.
    """

    enabled: bool = False
    eps: list[str] = field(default_factory=list)
    n_examples: int | None = 1000
    seed: int = 0
    batch_size: int = 250

    def __post_init__(self) -> None:
        checks.flag("eval.curve.enabled", self.enabled)
        for eps in self.eps:
            checks.number("eval.curve.eps", eps, above=0)
        checks.integer("eval.curve.seed", self.seed, low=0)
        checks.integer("eval.curve.batch_size", self.batch_size, low=1)
        _at_least_one("eval.curve.n_examples", self.n_examples)


@dataclass(frozen=True)
class CorruptionSettings:
    """Accuracy under common corruptions (Hendrycks & Dietterich, arXiv:1903.12261).

    Attributes:
        enabled: whether they run.
        root: folder that holds CIFAR-10-C or CIFAR-100-C; corruptions are computed on the fly when null.
        families: by name, e.g. fog; all fifteen when empty.
        severities: 1 to 5.
        n_examples: images of each family and severity, at most; all of the split when null.
        seed: of random corruptions.
        batch_size: images per pass.
    """

    enabled: bool = False
    root: str | None = None
    families: list[str] = field(default_factory=list)
    severities: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5])
    n_examples: int | None = 1000
    seed: int = 0
    batch_size: int = 250

    def __post_init__(self) -> None:
        checks.flag("eval.corruptions.enabled", self.enabled)
        for severity in self.severities:
            checks.integer("eval.corruptions.severities", severity, low=1, high=5)
        if not self.severities:
            raise SettingError("eval.corruptions.severities: expected some of 1 to 5, got none; name one")
        checks.integer("eval.corruptions.seed", self.seed, low=0)
        checks.integer("eval.corruptions.batch_size", self.batch_size, low=1)
        _at_least_one("eval.corruptions.n_examples", self.n_examples)


@dataclass(frozen=True)
class EvaluationSettings:
    """How a run ends: clean accuracy, then the attacks and checks that are enabled.

    Attributes:
        enabled: whether there is an evaluation at all.
        checkpoint: which weights: best (on the held-out split) or last.
        second_checkpoint: what is measured of the other of the two where its weights differ: screen (clean, PGD and
            the screen), full (all that is enabled) or none.
        seed: of PGD's random starts.
        batch_size: images per pass for the clean accuracy and PGD, and when adversarial images are re-checked.
        n_examples: images of the split; the whole split when null.
        pgd: the first attack.
        screen: APGD-CE and APGD-T alone.
        autoattack: what leaderboards report.
        masking: whether the number can be believed.
        curve: accuracy over radii.
        corruptions: accuracy under common corruptions.
    """

    enabled: bool = True
    checkpoint: str = "best"
    second_checkpoint: str = "screen"
    seed: int = 0
    batch_size: int = 250
    n_examples: int | None = None
    pgd: PGDSettings = field(default_factory=PGDSettings)
    screen: ScreenSettings = field(default_factory=ScreenSettings)
    autoattack: AutoAttackSettings = field(default_factory=AutoAttackSettings)
    masking: MaskingSettings = field(default_factory=MaskingSettings)
    curve: CurveSettings = field(default_factory=CurveSettings)
    corruptions: CorruptionSettings = field(default_factory=CorruptionSettings)

    def __post_init__(self) -> None:
        checks.flag("eval.enabled", self.enabled)
        checks.choice("eval.checkpoint", self.checkpoint, ("best", "last"))
        checks.choice("eval.second_checkpoint", self.second_checkpoint, ("none", "screen", "full"))
        checks.integer("eval.seed", self.seed, low=0)
        checks.integer("eval.batch_size", self.batch_size, low=1)
        _at_least_one("eval.n_examples", self.n_examples)


def _at_least_one(name: str, value: int | None) -> None:
    if value is not None:
        checks.integer(name, value, low=1)
