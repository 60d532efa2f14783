"""The run in stages, around upstream's own attacks, against upstream's own run: the same bits."""

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

from advtrain.evaluation.autoattack import run, upstream
from advtrain.evaluation.autoattack.job import Job
from advtrain.evaluation.autoattack.plan import plans
from advtrain.evaluation.autoattack.stages import run_in_stages
from advtrain.evaluation.autoattack.unfinished import Unfinished
from advtrain.evaluation.settings import AutoAttackSettings
from tests.evaluation.shortened import shortened

ALL = ["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]


def job_of(problem, planned, batch_size=16, seed=3, report=lambda line: None):
    model = problem.model.eval().requires_grad_(False)
    x, y = problem.split.images, problem.split.labels
    return Job(model, x, y, planned, seed, batch_size, "cpu", report)


def both(job, settings, num_classes, randomised=False):
    """Upstream's run and ours."""
    used = {"version": settings.version}
    theirs = upstream.run_whole(job, settings, used)
    attack = partial(upstream.attack_batch, job.model)
    ours = run_in_stages(job, attack, Unfinished(None), num_classes=num_classes, randomised=randomised, used=used)
    return ours, theirs


def assert_equal(ours, theirs):
    assert torch.equal(ours.x_adv, theirs.x_adv)
    assert torch.equal(ours.robust, theirs.robust)
    assert torch.equal(ours.broken_by, theirs.broken_by)
    assert ours.broken_by.dtype == theirs.broken_by.dtype == torch.int8
    assert ours.flags == theirs.flags
    without_time = [[{k: v for k, v in entry.items() if k != "seconds"} for entry in o.after] for o in (ours, theirs)]
    assert without_time[0] == without_time[1]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("batch_size", [9, 60])
def test_each_attack_in_batches_with_a_remainder(problem, monkeypatch, norm, batch_size):
    """Three of the standard version's four attacks; restarts and targets are the same for both here."""
    ten = problem(10, norm, n=40)
    attacks = ["square", "apgd-ce", "fab-t"]
    planned, _ = plans("custom", attacks, norm=norm, eps=ten.eps, num_classes=10)
    iterations = {"square": 25, "apgd-ce": 2, "fab-t": 8}
    planned = [dataclasses.replace(plan, iterations=iterations[plan.name]) for plan in planned]
    settings = AutoAttackSettings(version="custom", attacks=attacks)
    ours, theirs = both(job_of(ten, planned, batch_size), settings, 10)
    assert_equal(ours, theirs)
    assert len(set(ours.broken_by.tolist())) == 5  # misclassified, robust, and broken by each of the three


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_versions(problem, version, norm):
    five = problem(5, norm, n=24)
    planned, _ = plans(version, [], norm=norm, eps=five.eps, num_classes=5)
    planned = [dataclasses.replace(plan, iterations=40 if plan.name == "square" else 3) for plan in planned]
    settings = AutoAttackSettings(version=version)
    assert_equal(*both(job_of(five, planned, 10), settings, 5, randomised=version == "rand"))


@pytest.mark.parametrize("num_classes", [2, 3])
def test_few_classes(problem, num_classes):
    few = problem(num_classes, n=20)
    planned, fallback = plans("standard", [], norm="linf", eps=few.eps, num_classes=num_classes)
    assert fallback
    planned = [dataclasses.replace(plan, iterations=20 if plan.name == "square" else 3) for plan in planned]
    assert_equal(*both(job_of(few, planned, 8), AutoAttackSettings(), num_classes))


def test_nothing_to_attack_and_nothing_left(problem):
    four = problem(4, n=20)
    planned = shortened("custom", ["apgd-ce", "square"], norm="linf", eps=four.eps, num_classes=4)[0]
    settings = AutoAttackSettings(version="custom", attacks=["apgd-ce", "square"])
    wrong = dataclasses.replace(four)
    wrong.split.labels = (four.model(four.split.images).argmax(1) + 1) % 4
    ours, theirs = both(job_of(wrong, planned), settings, 4)
    assert_equal(ours, theirs)
    assert ours.broken_by.unique().tolist() == [-2] and [entry["attack"] for entry in ours.after] == ["none"]

    weak = problem(4, n=20)
    planned = [dataclasses.replace(plan, eps=0.3) for plan in planned]  # breaks everything at once
    ours, theirs = both(job_of(weak, planned), settings, 4)
    assert_equal(ours, theirs)
    assert set(ours.broken_by.tolist()) <= {-2, 0} and [e["attack"] for e in ours.after] == ["none", "apgd-ce"]


def test_one_image_left(problem):
    """Upstream squeezes index tensors; a single robust image is where that could go wrong."""
    four = problem(4, n=20)
    keep = four.robust.nonzero()[:1].flatten()
    four.split.images, four.split.labels = four.split.images[keep], four.split.labels[keep]
    attacks = ["apgd-ce", "square"]
    planned = shortened("custom", attacks, norm="linf", eps=four.eps, num_classes=4)[0]
    ours, theirs = both(job_of(four, planned), AutoAttackSettings(version="custom", attacks=attacks), 4)
    assert_equal(ours, theirs)
    assert ours.robust.tolist() == [True]


@pytest.mark.parametrize("fault", ["softmax", "noise", "rounding", "dynamic"])
def test_flags_are_upstreams(problem, fault):
    class Fault(nn.Module):
        def forward(self, x):
            if fault == "noise":
                return x + 0.1 * torch.randn_like(x)
            if fault == "rounding":
                return (x * 8).round() / 8
            if fault == "dynamic":
                with torch.enable_grad():
                    leaf = x.detach().requires_grad_()
                    (step,) = torch.autograd.grad(leaf.square().sum(), leaf)
                return x - 0.01 * step.detach()
            return x

    four = problem(4, n=30)
    four.model = nn.Sequential(Fault(), four.model, nn.Softmax(1) if fault == "softmax" else nn.Identity())
    attacks = ["apgd-dlr", "apgd-ce"]
    planned = shortened("custom", attacks, norm="linf", eps=four.eps, num_classes=4)[0]
    planned = [dataclasses.replace(plan, restarts=5) for plan in planned]
    lines: list[str] = []
    job = job_of(four, planned, report=lines.append)
    ours, theirs = both(job, AutoAttackSettings(version="custom", attacks=attacks), 4)
    names = {"softmax": "probabilities", "noise": "randomized", "rounding": "zero_gradients", "dynamic": "dynamic"}
    assert names[fault] in {flag["name"] for flag in ours.flags}
    assert any(line.startswith("AutoAttack warns: ") for line in lines)
    if fault != "noise":  # whose draws are not upstream's
        assert ours.flags == theirs.flags


def test_square_flag_is_upstreams(problem):
    """Square breaks images after an attack that breaks none."""
    four = problem(4, n=40)
    attacks = ["apgd-ce", "square"]
    planned = plans("custom", attacks, norm="linf", eps=four.eps, num_classes=4)[0]
    iterations = {"apgd-ce": 1, "square": 400}
    planned = [dataclasses.replace(plan, iterations=iterations[plan.name]) for plan in planned]

    class Masked(nn.Module):
        """No gradient for the cross-entropy to follow."""

        def forward(self, x):
            return x + (x.detach() - x)

    four.model = nn.Sequential(Masked(), four.model)
    ours, theirs = both(job_of(four, planned, 40), AutoAttackSettings(version="custom", attacks=attacks), 4)
    assert "square" in {flag["name"] for flag in ours.flags}
    assert ours.flags == theirs.flags


@pytest.mark.parametrize("engine", ["exact", "upstream"])
def test_the_public_call_runs_the_engine_of_the_settings(problem, monkeypatch, engine):
    four = problem(4, n=20)
    monkeypatch.setattr(run, "plans", shortened)
    lines: list[str] = []
    outcome = run.run_autoattack(
        four.model.eval().requires_grad_(False),
        four.split.images,
        four.split.labels,
        norm="linf",
        eps=four.eps,
        settings=AutoAttackSettings(engine=engine, batch_size=8),
        device="cpu",
        report=lines.append,
    )
    assert outcome.settings["engine"] == engine
    assert outcome.attack_names == ("apgd-ce", "apgd-t", "fab-t", "square")
    robust = int(outcome.robust.sum())
    assert any(line.startswith("AutoAttack square batch") and f"{robust}/20 robust so far" in line for line in lines)


def test_a_compiled_model_never_reaches_the_checks(problem, monkeypatch):
    """Upstream takes a compiled model for one that optimises as it predicts."""
    from advtrain.evaluation import EvaluationSettings, MaskingSettings, PGDSettings, evaluate
    from advtrain.evaluation.autoattack import stages

    four = problem(4, n=10)
    seen = []
    check = stages.upstream_checks.check_dynamic
    monkeypatch.setattr(stages.upstream_checks, "check_dynamic", lambda m, *a, **k: (seen.append(m), check(m, *a, **k)))
    compiled = torch.compile(four.model, backend="eager")
    settings = EvaluationSettings(
        masking=MaskingSettings(enabled=False),
        pgd=PGDSettings(enabled=False),
        autoattack=AutoAttackSettings(version="custom", attacks=["apgd-ce"]),
    )
    result = evaluate(compiled, four.split, norm="linf", eps=four.eps, settings=settings)
    assert seen == [four.model] and result.autoattack.details["flags"] == []
