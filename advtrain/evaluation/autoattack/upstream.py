"""AutoAttack through its authors' code (PyPI's pyautoattack), unchanged: engine=upstream, and the tests' reference."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyautoattack import AutoAttack
from pyautoattack import checks as upstream_checks
from torch import Tensor, nn

from advtrain.evaluation.autoattack.attack_log import AttackLog, Flags, ZeroGradients, listening
from advtrain.evaluation.autoattack.exact import Found
from advtrain.evaluation.autoattack.job import Job
from advtrain.evaluation.autoattack.outcome import MISCLASSIFIED, ROBUST, AutoAttackOutcome
from advtrain.evaluation.autoattack.plan import AttackPlan
from advtrain.evaluation.settings import AutoAttackSettings
from advtrain.types import Images, Labels

NORM_WORDS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def run_whole(job: Job, settings: AutoAttackSettings, used: dict[str, Any]) -> AutoAttackOutcome:
    """Upstream's own run over all images and attacks, in this process alone; a killed one starts anew.

    Args:
        job: images and attacks.
        settings: version and attacks as they were asked for.
        used: what the outcome shall say ran.
    """
    log = AttackLog(len(job.x), int(job.clean().sum()), job.report)
    with listening(log), undisturbed(job.device):
        adversary: Any = AutoAttack(
            job.model,
            norm=NORM_WORDS[job.planned[0].norm],  # pyright: ignore[reportArgumentType]
            eps=job.planned[0].eps,
            seed=job.seed,
            device=job.device,
            version=settings.version,  # pyright: ignore[reportArgumentType]
            attacks=list(settings.attacks) or None,  # pyright: ignore[reportArgumentType]
        )
        adversary.attacks_to_run = [plan.name for plan in job.planned]
        for plan in job.planned:
            _set_numbers(_part(adversary, plan.name), plan)
        watch = _Watch(job, log)
        adversary.get_logits = watch.logits
        for part in (adversary.apgd, adversary.apgd_targeted, adversary.fab, adversary.square):
            part.perturb = watch.over(part.perturb)
        x_adv, predictions = adversary.run_standard_evaluation(job.x, job.y, batch_size=job.batch_size)
    robust = predictions == job.y
    names = tuple(plan.name for plan in job.planned)
    flags = list(log.flags.found.values())
    unknown = torch.full((len(job.x),), torch.inf)
    after = _after(log, int(robust.sum()))
    return AutoAttackOutcome(x_adv, robust, watch.broken_by, names, unknown, after, flags, used)


class _Watch:
    """Sees which batch each of upstream's attacks returns and what the model then says of it, and so which attack broke
    which image: upstream keeps no account of that. It adds no pass of the model.
    """

    def __init__(self, job: Job, log: AttackLog) -> None:
        self.job, self.log = job, log
        self._before: list[Tensor] = []  # predictions ahead of the first attack
        self._pending: tuple[Tensor, Tensor] | None = None
        self._stage, self._batches = 0, iter(())
        self._broken_by: Tensor | None = None

    @property
    def broken_by(self) -> Tensor:
        if self._broken_by is None:
            # The last predictions ahead of the attacks are of all images, batch by batch; those before are checks.
            batches = -(-len(self.job.x) // self.job.batch_size)
            clean = torch.cat(self._before[-batches:]) == self.job.y
            self._broken_by = torch.where(clean, ROBUST, MISCLASSIFIED).to(torch.int8)
        return self._broken_by

    def over(self, perturb: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """An attack that leaves its batch here."""

        def watched(x: Tensor, y: Tensor) -> Tensor:
            x_adv = perturb(x, y)
            self._pending = x_adv, y
            return x_adv

        return watched

    def logits(self, x: Tensor) -> Tensor:
        """What upstream takes its verdicts from."""
        logits = self.job.model(x)
        if not self.log.stages:
            self._before.append(logits.argmax(1).cpu())
        elif self._pending is not None and x is self._pending[0]:
            self._verdict((logits.argmax(1) != self._pending[1]).cpu())
        return logits

    def _verdict(self, broken: Tensor) -> None:
        if self._stage != len(self.log.stages):  # another attack, on the images that are robust now
            self._stage = len(self.log.stages)
            self._batches = iter((self.broken_by == ROBUST).nonzero().flatten().split(self.job.batch_size))
        rows = next(self._batches)
        names = [plan.name for plan in self.job.planned]
        self.broken_by[rows[broken]] = names.index(self.log.stages[-1].attack)
        self._pending = None


def attack_batch(model: nn.Module, x: Images, y: Labels, plan: AttackPlan, seed: int) -> Found:
    """One attack on one batch, by upstream's own class.

    Args:
        model: images to logits, eager, in eval mode.
        x: images in [0, 1] that are classified correctly, on the model's device.
        y: labels, there too.
        plan: the attack.
        seed: of its random draws.

    Returns:
        Adversarial images, the clean image where none was found; of the starts with points of zero gradient, how many.
    """
    zero = ZeroGradients()
    with listening(zero), undisturbed(x.device), torch.no_grad():
        adversary: Any = AutoAttack(
            model,
            norm=NORM_WORDS[plan.norm],  # pyright: ignore[reportArgumentType]
            eps=plan.eps,
            seed=seed,
            device=x.device,
            version="custom",
            attacks=[plan.name],  # pyright: ignore[reportArgumentType]
        )
        attack = _fit(adversary, plan)
        attack.seed = seed
        images = attack.perturb(x.clone(), y.clone())
    return Found(images, torch.tensor(zero.points, dtype=torch.int64))


def perturb(model: nn.Module, x: Images, y: Labels, plan: AttackPlan, seed: int) -> Images:
    """The images of `attack_batch`."""
    return attack_batch(model, x, y, plan, seed).images


def _part(adversary: Any, name: str) -> Any:
    """Upstream's object for an attack; several attacks share one."""
    parts = {"square": adversary.square, "fab": adversary.fab, "fab-t": adversary.fab}
    return parts.get(name, adversary.apgd_targeted if name == "apgd-t" else adversary.apgd)


def _set_numbers(attack: Any, plan: AttackPlan) -> None:
    """Those of the plan; for a whole version they are what upstream's constructor has set already."""
    if plan.name != "fab-t":  # upstream's run sets it when fab-t begins, after fab
        attack.n_restarts = plan.restarts
    if plan.target_classes:
        attack.n_target_classes = plan.target_classes
    if plan.name == "square":
        attack.n_queries = plan.iterations
        return
    attack.n_iter = plan.iterations
    if plan.name.startswith("apgd"):
        attack.eot_iter, attack.use_largereps, attack.n_iter_orig = plan.eot, plan.large_eps, plan.iterations
        # As in upstream's constructor.
        attack.n_iter_2 = max(int(0.22 * plan.iterations), 1)
        attack.n_iter_min = max(int(0.06 * plan.iterations), 1)
        attack.size_decr = max(int(0.03 * plan.iterations), 1)


def _fit(adversary: Any, plan: AttackPlan) -> Any:
    """Upstream's object for the attack alone, with the plan's numbers."""
    attack = _part(adversary, plan.name)
    _set_numbers(attack, plan)
    attack.n_restarts = plan.restarts
    if plan.name.startswith("fab"):
        attack.targeted = plan.name == "fab-t"
    elif plan.name != "square":
        attack.loss = {"apgd-ce": "ce", "apgd-dlr": "dlr", "apgd-t": "dlr-targeted"}[plan.name]
    return attack


def _after(log: AttackLog, robust: int) -> list[dict[str, Any]]:
    correct = robust + sum(stage.broken for stage in log.stages)
    after: list[dict[str, Any]] = [{"attack": "none", "correct": correct, "accuracy": correct / log.n_examples}]
    for stage in log.stages:
        correct -= stage.broken
        seconds = round(stage.seconds, 3)
        after.append(
            {"attack": stage.attack, "correct": correct, "accuracy": correct / log.n_examples, "seconds": seconds}
        )
    return after


def check_model(model: nn.Module, x: Images, y: Labels, flags: Flags, *, randomised: bool = False) -> None:
    """Upstream's own checks of a model, whatever engine runs: is it random, dynamic, are its outputs logits?

    Args:
        model: images to logits, eager: a compiled one is taken for dynamic.
        x, y: one batch, on the model's device.
        flags: takes the warnings.
        randomised: the model is known to be, and is not to be warned about.
    """
    with listening(flags) as logger, undisturbed(x.device):
        if not randomised:
            upstream_checks.check_randomized(model, x, y, bs=len(x), logger=logger)
        upstream_checks.check_range_output(model, x, logger=logger)
        upstream_checks.check_dynamic(model, x, False, logger=logger)


@contextmanager
def undisturbed(device: torch.device | str) -> Iterator[None]:
    """Keeps upstream's side effects in: it seeds the global generators, and its check for dynamic models ends any
    tracer (coverage, debugger) and counts over all models of the process."""
    tracer = sys.gettrace()
    upstream_checks.funcs.update(dict.fromkeys(upstream_checks.funcs, 0))
    try:
        with torch.random.fork_rng(devices=_cuda(device)):
            yield
    finally:
        sys.settrace(tracer)


def _cuda(device: torch.device | str) -> list[torch.device | str]:
    return [device] if torch.device(device).type == "cuda" else []
