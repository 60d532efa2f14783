"""The numbers against a truth known by hand, and what an evaluation leaves untouched."""

import pytest
import torch
from torch import nn

from advtrain.evaluation import AutoAttackSettings, EvaluationSettings, MaskingSettings, PGDSettings, evaluate

UNMASKED = MaskingSettings(enabled=False)
QUICK = AutoAttackSettings(version="custom", attacks=["apgd-ce", "apgd-t", "fab-t"], batch_size=32)


def run(problem, model=None, **settings):
    settings = {"pgd": PGDSettings(restarts=2), "autoattack": QUICK, "masking": UNMASKED, "batch_size": 25, **settings}
    return evaluate(
        model or problem.model,
        problem.split,
        norm=problem.norm,
        eps=problem.eps,
        settings=EvaluationSettings(**settings),
    )


def verdicts(result, problem):
    """Robust or broken per image, from the saved images alone."""
    with torch.no_grad():
        return problem.model(result.evidence.adversarial_images).argmax(1) == result.evidence.labels


def check_autoattack(problem, **settings):
    truth = problem.robust
    assert 10 < truth.sum() < problem.clean.sum() < len(truth)  # the problem has something to tell apart
    result = run(problem, **settings)
    assert result.clean.correct == problem.clean.sum()
    assert result.autoattack.correct == truth.sum()
    assert torch.equal(verdicts(result, problem), truth)
    # The cross-entropy mixes the other classes, so PGD may miss some images, but it never breaks a robust one.
    assert truth.sum() <= result.pgd.correct < problem.clean.sum()


def test_autoattack_linf_truth(problem):
    check_autoattack(problem(10))


def test_autoattack_l2_truth(problem):
    check_autoattack(problem(10, "l2"))


def test_autoattack_l1_truth(problem):
    check_autoattack(problem(10, "l1"))


def test_standard_version_truth(problem):
    check_autoattack(problem(5, n=40), autoattack=AutoAttackSettings())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_truth_and_evidence(problem, norm):
    """With two classes the cross-entropy climbs along the one direction that matters, so PGD is exact."""
    two = problem(2, norm)
    assert 10 < two.robust.sum() < two.clean.sum()
    result = run(two, autoattack=AutoAttackSettings(enabled=False))
    assert result.autoattack is None
    assert result.pgd.correct == two.robust.sum()
    assert result.evidence.attack == "pgd"
    assert torch.equal(verdicts(result, two), two.robust)


def test_pgd_l1_never_breaks_a_robust_image(problem):
    """Near its optimum, which is a single pixel, L1 PGD moves between pixels, so it may miss some images."""
    two = problem(2, "l1")
    assert 10 < two.robust.sum() < two.clean.sum()
    result = run(two, autoattack=AutoAttackSettings(enabled=False))
    assert two.robust.sum() <= result.pgd.correct < two.clean.sum()
    assert not (two.robust & ~verdicts(result, two)).any()


def test_clean_only(problem):
    result = run(problem(4), pgd=PGDSettings(enabled=False), autoattack=AutoAttackSettings(enabled=False))
    assert list(result.results) == ["clean"]
    assert result.evidence is None


def test_more_restarts_break_more():
    """A model that a single random start cannot beat on every image: the loss has a valley between start and goal."""

    class Valley(nn.Module):
        def forward(self, x):
            # The first pixel decides: the gap to the wrong class falls towards both ends of the ball, but only at the
            # upper end does it change sign, so that a start in the lower half climbs the wrong way.
            t = (x[:, 0, 0, 0] - 0.5) * 10
            gap = torch.where(t < 0, 0.5 + 0.3 * t, 0.5 - 0.7 * t)
            return torch.stack([gap, torch.zeros_like(gap)], 1)

    split_images = torch.full((64, 1, 2, 2), 0.5)
    split = type("Split", (), {})()
    split.labels = torch.zeros(64, dtype=torch.int64)
    split.subset = lambda n: torch.arange(64)
    split.fetch = lambda indices, device: split_images[indices]
    correct = {}
    for restarts in (1, 8):
        settings = EvaluationSettings(
            masking=UNMASKED, pgd=PGDSettings(restarts=restarts), autoattack=AutoAttackSettings(enabled=False)
        )
        correct[restarts] = evaluate(Valley(), split, norm="linf", eps=0.1, settings=settings).pgd.correct
    assert 16 < correct[1] < 48  # one start in two is on the wrong side
    assert correct[8] <= 3  # (1/2)^8 of 64 images


def test_subsets_are_named(problem):
    result = run(
        problem(4),
        n_examples=40,
        pgd=PGDSettings(restarts=1, n_examples=30),
        autoattack=AutoAttackSettings(version="custom", attacks=["apgd-ce"], n_examples=20),
    )
    record = result.record()
    assert record["n_examples"] == record["clean"]["n_examples"] == 40
    assert record["pgd"]["n_examples"] == 30
    assert record["autoattack"]["n_examples"] == 20
    assert result.evidence.indices.tolist() == list(range(20))


def test_model_is_left_as_it_was(problem):
    four = problem(4)
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Sequential(four.model))
    model[0].eval()
    model[2][0].bias.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    before = torch.get_rng_state()

    result = run(four, model=model)

    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, False]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)
    assert result.clean.n_examples == 60


def test_parameters_take_no_gradient_while_attacked(problem):
    class Spy(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.seen = inner, set()

        def forward(self, x):
            self.seen.add((self.training, any(p.requires_grad for p in self.parameters()), x.is_contiguous()))
            return self.inner(x)

    four = problem(4)
    spy = Spy(four.model).train()
    run(four, model=spy)
    assert spy.seen == {(False, False, True)}


def test_channels_last_model_and_images(problem):
    """AutoAttack's `view` of the gradient fails on channels_last images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 5))
    model = model.to(memory_format=torch.channels_last)
    four = problem(4)
    four.split.images = torch.rand(60, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    four.split.labels = torch.randint(0, 5, (60,))
    attacks = AutoAttackSettings(version="custom", attacks=["apgd-dlr", "apgd-t"])  # those that check gradients
    result = run(four, model=model, autoattack=attacks)
    assert result.autoattack.correct <= result.pgd.correct <= result.clean.correct


def test_progress_says_what_is_robust_so_far(problem):
    four = problem(4)
    lines = []
    settings = EvaluationSettings(masking=UNMASKED, pgd=PGDSettings(restarts=1), autoattack=QUICK)
    result = evaluate(four.model, four.split, norm=four.norm, eps=four.eps, settings=settings, progress=lines.append)
    last = [line for line in lines if line.startswith("AutoAttack fab-t batch")][-1]
    assert f"{result.autoattack.correct}/60 robust so far" in last
    assert any(line.startswith("clean: ") for line in lines)
    assert any(line.startswith("PGD-20: ") for line in lines)
