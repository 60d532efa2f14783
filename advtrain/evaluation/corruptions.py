"""Accuracy under common corruptions (Hendrycks & Dietterich, arXiv:1903.12261), fifteen families of five severities.

Where CIFAR-10-C or CIFAR-100-C lie on disk, they are read by RobustBench's loaders. Otherwise the same families are
computed on the fly by the package `imagecorruptions` (`advtrain.evaluation.corrupting`). These are no CIFAR-10-C: the
package has ImageNet-C's strengths, which are much harsher on small images, so the two are named apart everywhere.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from advtrain.evaluation import corrupting
from advtrain.evaluation.modes import eager, exact_float32, frozen
from advtrain.evaluation.robustbench import import_robustbench
from advtrain.evaluation.settings import CorruptionSettings
from advtrain.evaluation.statistics import wilson_interval
from advtrain.evaluation.verify import logits_of
from advtrain.types import Images, Labels, SettingError

Report = Callable[[str], None]
FAMILIES = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
OFFICIAL = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C"}  # folders by dataset
OFFICIAL_IMAGES = 10_000  # of each family and severity


class Source(Protocol):
    """Where corrupted images come from."""

    @property
    def name(self) -> str:
        """As results are labelled."""
        ...

    def images(self, family: str, severity: int) -> tuple[Images, Labels]:
        """Images in [0, 1] and labels, on the CPU."""
        ...

    def refusal(self, family: str) -> str | None:
        """Why the family cannot be had; None where it can."""
        ...

    def record(self) -> dict[str, Any]:
        """What decides the images."""
        ...


@dataclass(frozen=True)
class Corrupted:
    """Accuracy of every family and severity that ran.

    Attributes:
        source: where the images are from: "CIFAR-10-C", or "corruptions (on the fly, <package>)".
        correct: images classified correctly, by family and severity.
        n_examples: images of each.
        clean: how many of the uncorrupted images are; None where there are none to compare with.
        not_run: families that could not be had, with the reason.
        settings: what decides the numbers.
        seconds: it took.
    """

    source: str
    correct: Mapping[str, Mapping[int, int]]
    n_examples: int
    clean: int | None
    not_run: Mapping[str, str]
    settings: Mapping[str, Any]
    seconds: float = field(compare=False)

    @property
    def accuracy(self) -> float | None:
        """The mean over all that ran, each family and severity alike; None when nothing did."""
        cells = [count for row in self.correct.values() for count in row.values()]
        return sum(cells) / (len(cells) * self.n_examples) if cells else None

    @property
    def relative(self) -> float | None:
        """`accuracy` as a share of the clean accuracy of the same images."""
        return None if self.accuracy is None or not self.clean else self.accuracy * self.n_examples / self.clean

    def family_accuracy(self, family: str) -> float:
        """The mean over the severities."""
        row = self.correct[family]
        return sum(row.values()) / (len(row) * self.n_examples)

    def record(self) -> dict[str, Any]:
        """The "corruptions" of evaluation.json.

        Intervals are given per family and severity. The mean has none: its cells show the same images, so it is no
        count of independent trials.
        """
        return {
            "label": self.source,
            "mean": self.accuracy,
            "relative_to_clean": self.relative,
            "clean": None if self.clean is None else {"accuracy": self.clean / self.n_examples, "correct": self.clean},
            "n_examples": self.n_examples,
            "families": {
                family: {
                    "accuracy": self.family_accuracy(family),
                    "severities": {str(severity): self._cell(count) for severity, count in row.items()},
                }
                for family, row in self.correct.items()
            },
            "not_run": dict(self.not_run),
            "settings": dict(self.settings),
            "seconds": round(self.seconds, 3),
        }

    def lines(self) -> list[str]:
        """For people: a line per family, the mean last."""
        severities = sorted({severity for row in self.correct.values() for severity in row})
        lines = [f"{self.source}: accuracy by severity, {self.n_examples} images each"]
        lines.append(f"  {'':18}" + "".join(f"{severity:>8}" for severity in severities) + f"{'mean':>9}")
        for family, row in self.correct.items():
            cells = "".join(f"{row[severity] / self.n_examples:8.1%}" for severity in severities)
            lines.append(f"  {family:18}{cells}{self.family_accuracy(family):9.1%}")
        if self.accuracy is not None:
            relative = "" if self.relative is None else f", {self.relative:.1%} of the clean accuracy"
            lines.append(f"  mean {self.accuracy:.2%}{relative}")
        lines += [f"  {family}: not run, {reason}" for family, reason in self.not_run.items()]
        return lines

    def _cell(self, correct: int) -> dict[str, Any]:
        interval = list(wilson_interval(correct, self.n_examples))
        return {"accuracy": correct / self.n_examples, "correct": correct, "interval": interval}


@dataclass(frozen=True)
class OfficialSet:
    """CIFAR-10-C or CIFAR-100-C on disk, through RobustBench's loaders.

    Attributes:
        dataset: "cifar10" or "cifar100".
        root: holds the folder CIFAR-10-C or CIFAR-100-C, with <family>.npy and labels.npy.
        n_examples: images of each family and severity: the first, as everywhere in the field.
    """

    dataset: str
    root: Path
    n_examples: int

    @property
    def name(self) -> str:
        return OFFICIAL[self.dataset]

    def check(self, families: Sequence[str]) -> None:
        """Looks for the files first: RobustBench's loader would download what is not there.

        Raises:
            SettingError: one is missing.
        """
        folder = self.root / self.name
        for name in ("labels", *families):
            if not (folder / f"{name}.npy").is_file():
                raise SettingError(
                    f"eval.corruptions.root: expected {folder / name}.npy, got no such file; unpack {self.name}.tar "
                    "there, or set eval.corruptions.root=null for corruptions on the fly"
                )

    def refusal(self, family: str) -> str | None:
        return None

    def images(self, family: str, severity: int) -> tuple[Images, Labels]:
        import_robustbench()
        from robustbench.data import load_cifar10c, load_cifar100c

        load = {"cifar10": load_cifar10c, "cifar100": load_cifar100c}[self.dataset]
        x, y = load(self.n_examples, severity, str(self.root), False, [family])
        return x, y.long()

    def record(self) -> dict[str, Any]:
        return {"loader": "robustbench"}


def corruption_result(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    dataset_name: str,
    settings: CorruptionSettings,
    device: torch.device | str = "cpu",
    report: Report | None = None,
) -> Corrupted:
    """Measures `model` on corrupted images.

    Args:
        model: images in [0, 1] to logits; float32, on `device`. Its modes are as before on return.
        x: clean test images, on the CPU: what corruptions on the fly are made from. `settings.n_examples` is for the
            caller to obey; of CIFAR-10-C that many are read.
        y: labels, on the CPU.
        dataset_name: "cifar10" or "cifar100" where the official files may be used.
        settings: families, severities, and where the files lie.
        device: where the model is.
        report: takes a readable line per family.

    Raises:
        SettingError: files or a package are missing, or a family is unknown.
    """
    families = _families(settings.families)
    source = corruption_source(x, y, dataset_name=dataset_name, settings=settings, families=families)
    started, not_run, counts, labels = time.monotonic(), {}, {}, y
    model = eager(model)
    with frozen(model), exact_float32():
        for family in families:
            if reason := source.refusal(family):
                not_run[family] = reason
                continue
            counts[family] = {}
            for severity in sorted(set(settings.severities)):
                images, labels = source.images(family, severity)
                counts[family][severity] = _correct(model, images, labels, settings.batch_size, device)
            if report is not None:
                report(f"{source.name}: {family}, {len(counts)} of {len(families)} families")
        # Only the same images can be compared; the official files hold the test set in its order.
        clean = _correct(model, x, y, settings.batch_size, device) if torch.equal(labels, y) else None
    return Corrupted(
        source=source.name,
        correct=counts,
        n_examples=len(labels),
        clean=clean,
        not_run=not_run,
        settings={**source.record(), "seed": settings.seed, "batch_size": settings.batch_size},
        seconds=time.monotonic() - started,
    )


def corruption_source(
    x: Images, y: Labels, *, dataset_name: str, settings: CorruptionSettings, families: Sequence[str]
) -> Source:
    """The official files where the settings name their folder, corruptions on the fly of `x` otherwise."""
    if settings.root is None:
        return corrupting.OnTheFly(x, y, settings.seed)
    if dataset_name not in OFFICIAL:
        raise SettingError(
            f"eval.corruptions.root: expected null for {dataset_name}, got {settings.root}: only "
            f"{' and '.join(OFFICIAL)} have a corrupted test set that is read; set it to null"
        )
    n_examples = OFFICIAL_IMAGES if settings.n_examples is None else min(settings.n_examples, OFFICIAL_IMAGES)
    official = OfficialSet(dataset_name, Path(settings.root).expanduser(), n_examples)
    official.check(families)
    return official


def _families(wanted: Sequence[str]) -> list[str]:
    for family in wanted:
        if family not in FAMILIES:
            raise SettingError(
                f"eval.corruptions.families: expected some of {', '.join(FAMILIES)}, got {family!r}; name one of them"
            )
    return list(dict.fromkeys(wanted)) or list(FAMILIES)


def _correct(model: nn.Module, x: Images, y: Labels, batch_size: int, device: torch.device | str) -> int:
    predictions = [logits.argmax(1).cpu() for logits in logits_of(model, x, batch_size, device)]
    return int((torch.cat(predictions) == y).sum())
