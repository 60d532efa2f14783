"""Clean accuracy, PGD and AutoAttack of one model on one split, in float32, each verdict re-checked from its image."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from advtrain import checks
from advtrain.data.base import Split
from advtrain.evaluation.autoattack import NORM_WORDS, run_autoattack
from advtrain.evaluation.modes import eager, exact_float32, frozen
from advtrain.evaluation.pgd import attack_batch, pgd_attack
from advtrain.evaluation.records import Evaluation, Evidence, Result
from advtrain.evaluation.settings import EvaluationSettings
from advtrain.evaluation.verify import logits_of, robust_images

Report = Callable[[str], None]


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    norm: str,
    eps: float,
    settings: EvaluationSettings,
    device: torch.device | str = "cpu",
    progress: Report | None = None,
) -> Evaluation:
    """Measures `model` on `split`: clean accuracy, then the attacks that `settings` enable.

    The model's modes, its parameters' `requires_grad` and the global random generators are as before on return.

    Args:
        model: images in [0, 1], shape (n, c, h, w), to logits; float32, on `device`.
        split: labelled images; a part of them when the settings say so (`Split.subset`).
        norm: "linf", "l2" or "l1".
        eps: radius in units of pixels in [0, 1].
        settings: what to run. `enabled` and `checkpoint` are for the caller to obey.
        device: where the model is.
        progress: takes readable lines as the work goes on.

    Raises:
        SettingError: a setting does not fit the model.
        EvaluationError: an attack's verdict is not backed by its image.
    """
    checks.choice("threat.norm", norm, tuple(NORM_WORDS))
    run = _Run(eager(model), split, norm, checks.radius("threat.eps", eps, norm), settings, device, progress or _silent)
    with frozen(model), exact_float32():
        clean = run.clean()
        pgd, evidence = run.pgd() if settings.pgd.enabled else (None, None)
        autoattack = None
        if settings.autoattack.enabled:
            autoattack, evidence = run.autoattack()
    return Evaluation(
        norm=norm,
        eps=run.eps,
        clean=clean,
        pgd=pgd,
        autoattack=autoattack,
        evidence=evidence,
        seeds={"pgd": settings.seed, "autoattack": settings.autoattack.seed},
        device=str(device),
    )


class _Run:
    """The three measurements of one evaluation."""

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        norm: str,
        eps: float,
        settings: EvaluationSettings,
        device: torch.device | str,
        report: Report,
    ) -> None:
        self.model, self.split, self.norm, self.eps = model, split, norm, eps
        self.settings, self.device, self.report = settings, device, report

    def clean(self) -> Result:
        started = time.monotonic()
        indices = self._indices(None)
        correct = 0
        for part in indices.split(self.settings.batch_size):
            x = self.split.fetch(part, self.device)
            (logits,) = logits_of(self.model, x, len(x), self.device)
            correct += int((logits.argmax(1).cpu() == self.split.labels[part]).sum())
        settings = {"batch_size": self.settings.batch_size}
        return self._done("clean", Result(correct, len(indices), time.monotonic() - started, settings))

    def pgd(self) -> tuple[Result, Evidence]:
        started = time.monotonic()
        settings, size = self.settings.pgd, self.settings.batch_size
        attack = pgd_attack(settings, self.norm, self.eps)
        indices = self._indices(settings.n_examples)
        x, y = self._images(indices)
        found, verdicts = [], []
        for batch, rows in enumerate(torch.arange(len(indices)).split(size)):
            images, labels = x[rows].to(self.device), y[rows].to(self.device)
            x_adv, robust = attack_batch(
                self.model, images, labels, attack, settings.restarts, seed=self.settings.seed, batch=batch
            )
            found.append(x_adv.cpu())
            verdicts.append(robust.cpu())
            left = int(torch.cat(verdicts).sum())
            self.report(f"PGD-{settings.steps}: {left} robust of {int(rows[-1]) + 1} attacked ({len(x)} in all)")
        x_adv = torch.cat(found)
        correct, ties = self._verified(x, x_adv, y, torch.cat(verdicts))
        used = {
            "objective": "ce",
            "init": "uniform",
            "steps": settings.steps,
            "restarts": settings.restarts,
            "step_size": attack.step_size,
            "seed": self.settings.seed,
            "batch_size": size,
        }
        result = Result(correct, len(x), time.monotonic() - started, used, {"ties": ties})
        return self._done(f"PGD-{settings.steps}", result), self._evidence("pgd", indices, x, y, x_adv)

    def autoattack(self) -> tuple[Result, Evidence]:
        started = time.monotonic()
        settings = self.settings.autoattack
        indices = self._indices(settings.n_examples)
        x, y = self._images(indices)
        outcome = run_autoattack(
            self.model,
            x,
            y,
            norm=self.norm,
            eps=self.eps,
            settings=settings,
            device=self.device,
            report=self.report,
        )
        correct, ties = self._verified(x, outcome.x_adv, y, outcome.robust)
        details = {"after": outcome.after, "flags": outcome.flags, "ties": ties}
        result = Result(correct, len(x), time.monotonic() - started, outcome.settings, details)
        evidence = self._evidence("autoattack", indices, x, y, outcome.x_adv)
        return self._done(f"AutoAttack ({settings.version})", result), evidence

    def _indices(self, n_examples: int | None) -> Tensor:
        return self.split.subset(self.settings.n_examples if n_examples is None else n_examples)

    def _images(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        parts = [self.split.fetch(part, "cpu") for part in indices.split(self.settings.batch_size)]
        # Contiguous, because AutoAttack takes views of gradients that have the layout of the images.
        return torch.cat(parts).contiguous(), self.split.labels[indices]

    def _verified(self, x: Tensor, x_adv: Tensor, y: Tensor, claimed: Tensor) -> tuple[int, int]:
        robust, ties = robust_images(
            self.model,
            x,
            x_adv,
            y,
            claimed,
            norm=self.norm,
            eps=self.eps,
            batch_size=self.settings.batch_size,
            device=self.device,
        )
        return int(robust.sum()), ties

    def _evidence(self, attack: str, indices: Tensor, x: Tensor, y: Tensor, x_adv: Tensor) -> Evidence:
        size = self.settings.batch_size
        predictions = torch.cat([logits.argmax(1).cpu() for logits in logits_of(self.model, x, size, self.device)])
        return Evidence(attack, indices, x, y, predictions, x_adv, size, self.norm, self.eps)

    def _done(self, name: str, result: Result) -> Result:
        self.report(f"{name}: {result}")
        return result


def _silent(line: str) -> None:
    pass
