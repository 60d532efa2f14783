"""The attacks that the checks share: they are those of advtrain.attacks, and find what there is to find."""

import pytest
import torch
import torch.nn.functional as F

from advtrain.attacks import PGD
from advtrain.evaluation.masking import AutoAttackEvidence
from advtrain.evaluation.masking.whitebox import StandardisedCrossEntropy, climb, white_box
from tests.evaluation.conftest import linear_problem
from tests.evaluation.masking.test_toys import examined, silent


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_climb_is_pgd(norm):
    problem = linear_problem(5, norm)
    x, y = problem.split.images, problem.split.labels

    def objective(images):
        return F.cross_entropy(problem.model(images), y, reduction="none")

    for steps in (1, 7):
        pgd = PGD(norm=norm, eps=problem.eps, steps=steps, init="none")(objective, x)
        walk = climb(objective, x, x, norm=norm, eps=problem.eps, step_size=problem.eps / 4, steps=steps)
        assert torch.equal(list(walk)[-1], pgd)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_verdicts_of_linear_models_are_the_truth(norm, num_classes):
    problem = linear_problem(num_classes, norm)
    white = white_box(examined(problem.model, problem), None, silent)
    assert torch.equal(white.robust, problem.robust)
    if num_classes == 2:  # the cross-entropy knows the only other class
        assert torch.equal(white.pgd, problem.robust)
        assert torch.equal(white.starts, problem.robust.unsqueeze(1).expand_as(white.starts))
    broken = problem.clean & ~problem.robust
    assert torch.equal((white.found != problem.split.images).flatten(1).any(1), broken)
    assert (problem.model(white.found[broken]).argmax(1) != problem.split.labels[broken]).all()


def test_autoattacks_verdicts_replace_apgd():
    problem = linear_problem(5)
    subject = examined(problem.model, problem)
    robust = problem.robust.nonzero().flatten()
    broken_by = torch.full((len(subject),), -1)
    broken_by[robust[:3]], broken_by[robust[3:5]], broken_by[robust[5]] = 0, 1, 2
    autoattack = AutoAttackEvidence([], broken_by, ["apgd-t", "fab-t", "square"])
    white = white_box(subject, autoattack, silent)
    assert int((white.pgd & ~white.targeted).sum()) >= 3
    assert not white.targeted[robust[:3]].any() and white.targeted[robust[3:]].all()  # FAB is not APGD
    assert not white.robust[robust[:5]].any() and white.robust[robust[5:]].all()  # Square has no gradient


def test_standardised_cross_entropy_knows_no_scale():
    y = torch.tensor([0, 2])
    logits = torch.tensor([[1.0, 2, 4], [0.5, 0, 3]])
    measure = StandardisedCrossEntropy(y)
    assert torch.equal(measure(1024 * logits), measure(logits))
    expected = F.cross_entropy(logits / logits.std(1, keepdim=True), y, reduction="none")
    assert torch.allclose(measure(logits), expected)
    assert measure(torch.zeros(2, 3)).isfinite().all()
