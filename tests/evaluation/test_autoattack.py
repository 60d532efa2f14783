"""The upstream attacks as we run them: few classes, seeds, warnings, and no traces in the process."""

import logging
import sys

import pytest
import torch
from pyautoattack import AutoAttack
from pyautoattack import checks as upstream_checks
from torch import nn

from advtrain.evaluation.autoattack import attacks_for, run_autoattack
from advtrain.evaluation.settings import AutoAttackSettings
from advtrain.types import SettingError


def run(problem, model=None, report=lambda line: None, **settings):
    model = (model or problem.model).eval().requires_grad_(False)
    x, y = problem.split.images, problem.split.labels
    return run_autoattack(
        model,
        x,
        y,
        norm=problem.norm,
        eps=problem.eps,
        settings=AutoAttackSettings(**settings),
        device="cpu",
        report=report,
    )


def custom(*attacks):
    return {"version": "custom", "attacks": list(attacks), "batch_size": 32}


@pytest.mark.parametrize(
    ("num_classes", "attacks"),
    [
        (2, ["apgd-ce", "fab-t", "square"]),
        (3, ["apgd-ce", "apgd-dlr", "fab-t", "square"]),
        (4, ["apgd-ce", "apgd-t", "fab-t", "square"]),
    ],
)
def test_few_classes(problem, num_classes, attacks):
    few = problem(num_classes, n=30)
    outcome = run(few)
    assert torch.equal(outcome.robust, few.robust)
    assert outcome.settings["attacks"] == attacks
    targets = [p["target_classes"] for p in outcome.settings["parameters"].values() if "target_classes" in p]
    assert set(targets) == {num_classes - 1}
    assert f"with {num_classes} classes" in outcome.settings["fallback"]
    assert not outcome.flags


def test_ten_classes_need_no_fallback():
    settings = custom("apgd-ce", "apgd-t")
    assert attacks_for(settings["attacks"], 10) == settings["attacks"]


def test_other_versions_with_few_classes():
    plus = ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert attacks_for(plus, 4) == plus
    assert attacks_for(plus, 3) == ["apgd-ce", "apgd-dlr", "fab", "square", "fab-t"]
    assert attacks_for(["apgd-ce", "apgd-dlr"], 2) == ["apgd-ce"]


def test_own_list_is_refused_not_changed(problem):
    with pytest.raises(SettingError, match=r"expected attacks for 3 classes, got apgd-t.*choose apgd-dlr"):
        run(problem(3), **custom("apgd-t"))


def test_parameters_of_the_standard_version_are_upstreams(problem):
    ten = problem(10)
    parameters = run(ten, model=nn.Sequential(nn.Flatten(), Always(1 - ten.split.labels))).settings["parameters"]
    assert parameters == {
        "apgd-ce": {"iterations": 100, "restarts": 1, "eot": 1},
        "apgd-t": {"iterations": 100, "restarts": 1, "target_classes": 9, "eot": 1},
        "fab-t": {"iterations": 100, "restarts": 1, "target_classes": 9},
        "square": {"queries": 5000, "restarts": 1},
    }


class Always(nn.Module):
    """A model that is wrong on every image, so that nothing is attacked."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong = wrong.abs() % 10

    def forward(self, x):
        return 5 * nn.functional.one_hot(self.wrong[: len(x)], 10).float() + 0 * x.sum(1, keepdim=True)


def test_nothing_to_attack(problem):
    ten = problem(10)
    ten.split.labels = torch.full_like(ten.split.labels, 3)
    outcome = run(ten, model=nn.Sequential(nn.Flatten(), Always(torch.full((60,), 4))))
    assert not outcome.robust.any()
    assert [stage["attack"] for stage in outcome.after] == ["none"]


def test_same_bits_as_upstream_called_directly(problem):
    four = problem(4)
    ours = run(four, **custom("apgd-ce", "square"), seed=5)
    adversary = AutoAttack(
        four.model, norm="Linf", eps=four.eps, seed=5, version="custom", attacks=["apgd-ce", "square"]
    )
    theirs, _ = adversary.run_standard_evaluation(four.split.images, four.split.labels, batch_size=32)
    assert torch.equal(ours.x_adv, theirs)


def test_seed_decides(problem):
    four = problem(4)
    torch.manual_seed(1)
    first = run(four, **custom("apgd-ce"), seed=0)
    torch.manual_seed(2)
    again = run(four, **custom("apgd-ce"), seed=0)
    other = run(four, **custom("apgd-ce"), seed=1)
    assert torch.equal(first.x_adv, again.x_adv)
    assert not torch.equal(first.x_adv, other.x_adv)


def test_accuracy_after_each_attack(problem):
    four = problem(4)
    outcome = run(four, **custom("apgd-ce", "fab-t"))
    assert [stage["attack"] for stage in outcome.after] == ["none", "apgd-ce", "fab-t"]
    correct = [stage["correct"] for stage in outcome.after]
    assert correct[0] == four.clean.sum()
    assert correct[0] > correct[1] >= correct[2] == four.robust.sum()
    assert outcome.after[1]["accuracy"] == correct[1] / 60
    only = run(four, **custom("apgd-ce"))
    assert correct[1] == only.robust.sum()


def flags(outcome):
    return {flag["name"] for flag in outcome.flags}


def test_softmax_output_is_flagged(problem):
    four = problem(4)
    lines = []
    outcome = run(four, model=nn.Sequential(four.model, nn.Softmax(1)), report=lines.append, **custom("apgd-ce"))
    assert flags(outcome) == {"probabilities"}
    assert any("probability distribution" in line for line in lines)


def test_randomised_and_masked_models_are_flagged(problem):
    class Noisy(nn.Module):
        def forward(self, x):
            return x + 0.1 * torch.randn_like(x)

    class Rounding(nn.Module):
        def forward(self, x):
            return (x * 8).round() / 8

    four = problem(4)
    noisy = run(four, model=nn.Sequential(Noisy(), four.model), **custom("apgd-ce"))
    assert "randomized" in flags(noisy)
    assert "zero_gradients" in flags(run(four, model=nn.Sequential(Rounding(), four.model), **custom("apgd-dlr")))
    assert not flags(run(four, **custom("apgd-dlr")))


@pytest.mark.parametrize("engine", ["upstream", "exact"])
def test_flag_for_a_dynamic_model_does_not_stick(problem, engine):
    class Optimises(nn.Module):
        def forward(self, x):
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                (step,) = torch.autograd.grad(leaf.square().sum(), leaf)
            return x - 0.01 * step.detach()

    four = problem(4)
    choice = custom("apgd-ce") | {"engine": engine}
    assert flags(run(four, model=nn.Sequential(Optimises(), four.model), **choice)) == {"dynamic"}
    upstream_checks.funcs["grad"] += 1  # as upstream leaves it: it would accuse every later model
    assert not flags(run(four, **choice))


def test_process_is_left_as_it_was(problem):
    four = problem(4)
    logger = logging.getLogger("auto-attack")
    before = (list(logger.handlers), logger.level, logger.propagate)
    torch.manual_seed(0)
    state = torch.get_rng_state()

    def tracer(frame, event, argument):
        return None

    previous = sys.gettrace()
    sys.settrace(tracer)
    try:
        run(four, **custom("apgd-ce"))
        kept = sys.gettrace()
    finally:
        sys.settrace(previous)
    assert kept is tracer
    assert torch.equal(torch.get_rng_state(), state)
    assert (logger.handlers, logger.level, logger.propagate) == before
