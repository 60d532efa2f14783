"""What a recipe claims: where its numbers come from, what it is expected to reach, and what it costs.

The block `evidence:` of an experiment's YAML, read by tests, by docs/methods.md and by reports. It is about the recipe
and no part of a run: composing a configuration drops it, and the command line cannot set it.
"""

import re
from dataclasses import dataclass, field

from advtrain import checks
from advtrain.types import SettingError

ORIGINS = ("paper", "code", "ours")


@dataclass(frozen=True)
class Expected:
    """Accuracies on the whole test set that the source reports, in percent.

    Attributes:
        clean, pgd, autoattack: null where the source does not say.
        tolerance: percentage points within which a run counts as having reached them.
    """

    clean: float | None = None
    pgd: float | None = None
    autoattack: float | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.accuracies().items():
            if value is not None:
                checks.number(f"evidence.expected.{name}", value, low=0, high=100)
        if self.tolerance is not None:
            checks.number("evidence.expected.tolerance", self.tolerance, above=0, high=100)
        if (self.tolerance is None) != all(value is None for value in self.accuracies().values()):
            raise SettingError(
                "evidence.expected.tolerance: expected a number of percentage points exactly where an accuracy is "
                f"given, got {self.tolerance!r}; add or remove it"
            )

    def accuracies(self) -> dict[str, float | None]:
        return {"clean": self.clean, "pgd": self.pgd, "autoattack": self.autoattack}


@dataclass(frozen=True)
class HyperParameters:
    """Where each setting of the recipe comes from: dotted names, of which the longest that fits a setting counts.

    `optimizer` stands for the choice of the optimiser and all its numbers, `optimizer.lr` for that number alone.

    Attributes:
        paper: stated in the paper.
        code: not in the paper, but in the published code.
        ours: in neither; this project's choice.
    """

    paper: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    ours: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [name for origin in ORIGINS for name in getattr(self, origin)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or not names:
            got = f"{twice[0]!r} twice" if twice else "none"
            raise SettingError(f"evidence.hyper_parameters: expected each setting once, got {got}; correct the lists")

    def origin(self, setting: str) -> str | None:
        """Where a setting such as `loss.wmse_weight` comes from; None when no name fits."""
        fitting = [
            (len(name), origin)
            for origin in ORIGINS
            for name in getattr(self, origin)
            if setting == name or setting.startswith(name + ".")
        ]
        return max(fitting)[1] if fitting else None


@dataclass(frozen=True)
class Evidence:
    """The evidence of one recipe.

    Attributes:
        method: its name in the literature, e.g. TRADES-AWP.
        source: paper and table (or the page of the code) that the expected accuracies come from.
        hyper_parameters: where its settings come from.
        images_per_epoch: training images that an epoch may draw from: what is left without the held-out ones, or the
            length of an epoch where the recipe sets it.
        cost_pflop: predicted cost of training in 10¹⁵ floating-point operations; see `advtrain.recipes.cost`.
        teacher: the architecture of the teacher, for a loss that distils: a choice of the group model,
            torchvision:NAME or timm:NAME. Where its weights are `teacher.source` says.
        expected: accuracies that the source reports.
        unknown: why an expected accuracy is null; given exactly where one is.
        reference: of the paper, as arXiv:2305.13948; null for a recipe of this project.
        code: address of the published code, where there is one.
        differs: what is known to differ from the source, a sentence each.
        measured: page in docs/ that holds what this project measured, for a recipe of many runs; the record of a single
            run in results/ is found without it.
    """

    method: str
    source: str
    hyper_parameters: HyperParameters
    images_per_epoch: int
    cost_pflop: float
    teacher: str | None = None
    expected: Expected = field(default_factory=Expected)
    unknown: str | None = None
    reference: str | None = None
    code: str | None = None
    differs: list[str] = field(default_factory=list)
    measured: str | None = None

    def __post_init__(self) -> None:
        for name in ("method", "source"):
            if not getattr(self, name).strip():
                raise SettingError(f"evidence.{name}: expected words, got none; fill it in")
        if self.measured is not None and not re.fullmatch(r"\w+\.md", self.measured):
            raise SettingError(
                f"evidence.measured: expected a page in docs/ such as comparison.md, got {self.measured!r}; correct it"
            )
        checks.integer("evidence.images_per_epoch", self.images_per_epoch, low=1)
        checks.number("evidence.cost_pflop", self.cost_pflop, above=0)
        absent = [name for name, value in self.expected.accuracies().items() if value is None]
        if bool(absent) != bool(self.unknown and self.unknown.strip()):
            got = f"{', '.join(absent) or 'none'} null with the reason {self.unknown!r}"
            raise SettingError(f"evidence.unknown: expected a reason exactly where an accuracy is null, got {got}")
        if self.reference is not None and not re.fullmatch(r"arXiv:\d{4}\.\d{4,5}", self.reference):
            raise SettingError(
                f"evidence.reference: expected the form arXiv:2305.13948, got {self.reference!r}; correct it"
            )
        if self.code is not None and not self.code.startswith("https://"):
            raise SettingError(f"evidence.code: expected an address https://…, got {self.code!r}; correct it")
