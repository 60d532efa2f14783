"""The whole report: what it says, what it leaves as it was, and what it costs."""

import json

import pytest
import torch
from torch import nn

from advtrain.evaluation import MaskingSettings
from advtrain.evaluation.masking import AutoAttackEvidence, Check, MaskingReport, masking_report
from advtrain.types import SettingError
from tests.evaluation.conftest import linear_problem
from tests.evaluation.masking.models import Wrapped, noisy


def reported(problem, model=None, **changes):
    wanted = {"norm": problem.norm, "eps": problem.eps, "settings": MaskingSettings()} | changes
    return masking_report(model or problem.model, problem.split.images, problem.split.labels, **wanted)


def test_record_and_lines():
    problem = linear_problem(5)
    lines = []
    report = reported(problem, surrogate=problem.model, report=lines.append)
    record = json.loads(json.dumps(report.record()))
    assert record["verdict"] == "believable"
    assert record["n_examples"] == 60
    assert [check["name"] for check in record["checks"]] == [check.name for check in report.checks]
    for check in record["checks"]:
        assert {"name", "passed", "value", "threshold", "reason", "source"} <= check.keys()
        assert check["passed"] is True
        assert check["source"] and check["reason"]
        assert check["name"] == "flags" or check["value"] <= check["threshold"]
    head, *rest = report.lines()
    assert head == "Masking checks on 60 images: the number is believable (11 pass, 0 FAIL, 0 not run)"
    assert len(rest) == 11
    assert all(any(check.name in line for line in lines) for check in report.checks)


def test_one_failure_makes_it_doubtful_and_what_was_not_run_does_not():
    def check(passed):
        return Check("name", passed, 0.2, 0.1, "because", "somebody")

    assert MaskingReport([check(True), check(None)], 1, 0.0).verdict == "believable"
    doubtful = MaskingReport([check(True), check(None), check(False)], 1, 0.0)
    assert doubtful.verdict == "doubtful"
    assert doubtful.failed == ["name"]
    assert "FAIL    20.0% > 10.0%" in doubtful.lines()[3]
    assert "(1 pass, 1 FAIL, 1 not run)" in doubtful.lines()[0]


def test_model_and_generators_are_left_as_they_were():
    problem = linear_problem(5)
    model = noisy(nn.Sequential(problem.model, nn.BatchNorm1d(5)).train())
    parameters = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first = reported(problem, model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, parameters[name]) for name, value in model.state_dict().items())
    torch.manual_seed(7)  # another state of the global generator, the same draws of the model
    again = reported(problem, model)
    assert first.record() | {"seconds": 0} == again.record() | {"seconds": 0}
    other = reported(problem, model, settings=MaskingSettings(seed=1))
    assert first.record()["checks"] != other.record()["checks"]


def test_only_the_first_images_are_used():
    problem = linear_problem(5)
    broken_by = torch.full((60,), -1)
    autoattack = AutoAttackEvidence([], broken_by, ["apgd-t", "square"])
    few = reported(problem, settings=MaskingSettings(n_examples=20, batch_size=7), autoattack=autoattack)
    assert few.n_examples == 20
    problem.split.images[20:] = 0.5  # unseen
    same = reported(problem, settings=MaskingSettings(n_examples=20, batch_size=7), autoattack=autoattack)
    assert few.record() | {"seconds": 0} == same.record() | {"seconds": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "l0"}, "threat.norm: expected one of"),
        ({"eps": 0}, "threat.eps: expected a number above 0"),
        ({"eps": 8}, "write threat.eps=8/255"),
        ({"autoattack": AutoAttackEvidence([], torch.full((5,), -1), ["apgd-t"])}, "of at least 60, got 5"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(SettingError, match=message):
        reported(linear_problem(5), **changes)


def test_cost():
    """At most 1,500 forward passes of each image, a gradient counted as two."""
    problem = linear_problem(10)
    passes = {"forward": 0, "backward": 0}

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            passes["forward"] += len(x)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            passes["backward"] += len(gradient)
            return gradient

    problem.eps /= 100  # nearly every image is robust: the dearest case
    settings = MaskingSettings(n_examples=30)
    reported(problem, Wrapped(problem.model, before=Counted.apply), settings=settings)
    cost = (passes["forward"] + passes["backward"]) / 30
    assert 500 < cost <= 1500
    passes.update(forward=0, backward=0)
    autoattack = AutoAttackEvidence([], torch.full((60,), -1), ["apgd-ce", "apgd-t", "fab-t", "square"])
    reported(problem, Wrapped(problem.model, before=Counted.apply), settings=settings, autoattack=autoattack)
    assert (passes["forward"] + passes["backward"]) / 30 < 500
