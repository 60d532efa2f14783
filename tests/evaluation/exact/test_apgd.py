"""APGD of engine=exact against upstream's, bit for bit."""

from pathlib import Path

import pytest
import torch
from torch import nn

from advtrain.evaluation.autoattack import upstream
from advtrain.evaluation.autoattack.exact.apgd import perturb, phases
from advtrain.evaluation.autoattack.exact.execution import Execution
from advtrain.evaluation.autoattack.exact.paces import Halving, checkpoints
from advtrain.evaluation.autoattack.plan import AttackPlan
from advtrain.types import SettingError
from tests.evaluation.exact.toys import EPS, Counts, Toy, robust_model, same_bits, threads, toy

NAMES = ("apgd-ce", "apgd-dlr", "apgd-t")


def plan_for(name: str, norm: str, **numbers: int | bool | float) -> AttackPlan:
    targets = 2 if name == "apgd-t" else 0
    return AttackPlan(**{"name": name, "norm": norm, "eps": EPS[norm], "target_classes": targets} | numbers)


def agrees(case: Toy, plan: AttackPlan, seed: int) -> bool:
    expected = upstream.perturb(case.model, case.x, case.y, plan, seed)
    return same_bits(perturb(case.model, case.x, case.y, plan, seed).images, expected)


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", NAMES)
def test_the_images_are_upstreams_bit_for_bit(norm: str, name: str) -> None:
    case = toy()
    for seed, numbers in ((0, {"iterations": 30}), (3, {"iterations": 12, "restarts": 2})):
        plan = plan_for(name, norm, **numbers)
        assert agrees(case, plan, seed), (seed, numbers)
        broken = case.broken(perturb(case.model, case.x, case.y, plan, seed).images).sum()
        assert 0 < broken < len(case.y)


@pytest.mark.parametrize("name", NAMES)
def test_large_eps_starts_of_l1_are_upstreams(name: str) -> None:
    assert agrees(toy(), plan_for(name, "l1", iterations=20, restarts=2, large_eps=True), 1)


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_few_iterations(iterations: int) -> None:
    for norm in EPS:
        assert agrees(toy(), plan_for("apgd-ce", norm, iterations=iterations), 0), norm
    if iterations > 1:
        assert agrees(toy(), plan_for("apgd-ce", "l1", iterations=iterations, large_eps=True), 0)


@pytest.mark.slow
@pytest.mark.parametrize("norm", EPS)
def test_two_threads_give_upstreams_bits_too(norm: str) -> None:
    with threads(2):
        assert agrees(toy(), plan_for("apgd-t", norm, iterations=8), 0)


@pytest.mark.parametrize(("classes", "name"), [(2, "apgd-ce"), (3, "apgd-dlr"), (4, "apgd-t")])
def test_few_classes_small_grey_images_and_single_images(classes: int, name: str) -> None:
    case = toy(classes, (1, 8, 8))
    for norm in EPS:
        plan = plan_for(name, norm, iterations=10, target_classes=3 if name == "apgd-t" else 0, restarts=2)
        assert agrees(case, plan, 0), norm
        assert agrees(Toy(case.model, case.x[:1], case.y[:1]), plan, 0), norm


class Noisy(nn.Module):
    """A randomised model: noise on the images, from the global generator."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x + 0.05 * torch.randn_like(x))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", EPS)
def test_randomised_models_see_upstreams_noise(norm: str, name: str) -> None:
    """Their draws fall between the attack's own, so that one missing pass would change all that follows."""
    case = toy()
    noisy = Noisy(case.model)
    plan = plan_for(name, norm, iterations=6, restarts=2, eot=3, large_eps=norm == "l1")
    torch.manual_seed(5)
    expected = upstream.perturb(noisy, case.x, case.y, plan, 2)
    torch.manual_seed(5)
    assert same_bits(perturb(noisy, case.x, case.y, plan, 2).images, expected)


def test_images_that_are_misclassified_come_back_as_they_are() -> None:
    case = toy()
    y = case.y.clone()
    y[::3] = (y[::3] + 1) % 6
    images = perturb(case.model, case.x, y, plan_for("apgd-ce", "linf", iterations=3), 0).images
    assert same_bits(images[::3], case.x[::3])
    assert same_bits(images, upstream.perturb(case.model, case.x, y, plan_for("apgd-ce", "linf", iterations=3), 0))


def test_nothing_else_changes() -> None:
    case = toy()
    x, state = case.x.clone(), torch.get_rng_state()
    perturb(case.model, case.x, case.y, plan_for("apgd-t", "l1", iterations=4, large_eps=True), 0)
    assert same_bits(case.x, x)
    assert torch.equal(torch.get_rng_state(), state)


def test_zero_gradients_are_counted_per_start() -> None:
    """Logits are a linear function of images whose top left pixel is not black; of the others they are constant."""
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))

    def model(x: torch.Tensor) -> torch.Tensor:
        alive = (x[:, 0, 0, 0] > 0.3).float()[:, None]
        return alive * (x.flatten(1) @ weight.T) + torch.tensor([3.0, 2.0, 1.0, 0.0])

    x = torch.full((5, 1, 8, 8), 0.5)
    x[:2, 0, 0, 0] = 0.0
    y = model(x).argmax(1)
    for name, starts in (("apgd-ce", 0), ("apgd-dlr", 2), ("apgd-t", 4)):
        plan = plan_for(name, "linf", eps=1e-6, iterations=2, restarts=2)
        assert perturb(model, x, y, plan, 0).zero_gradients.tolist() == [2] * starts


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t"])
def test_shrinking_finds_the_same_within_the_ball(norm: str, name: str) -> None:
    case = toy()
    plan = plan_for(name, norm, iterations=40, large_eps=norm == "l1")
    with Counts() as all_stay:
        default = perturb(case.model, case.x, case.y, plan, 0).images
    with Counts() as counts:
        images = perturb(case.model, case.x, case.y, plan, 0, Execution(shrink=True)).images
    verdicts = [case.broken(upstream.perturb(case.model, case.x, case.y, plan, seed)) for seed in (1, 2)]
    seeds_differ = int((verdicts[0] != verdicts[1]).sum())
    broken = case.broken(images)
    assert int((broken != case.broken(default)).sum()) <= seeds_differ
    assert sum(counts.batches) < 0.9 * sum(all_stay.batches)
    moved = (images != case.x).flatten(1).any(1)
    assert torch.equal(moved, broken)  # whatever is returned as found is found
    size = torch.linalg.vector_norm((images - case.x).flatten(1), {"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1)
    assert size.max() <= plan.eps * (1 + 1e-5)
    assert images.min() >= -1e-6
    assert images.max() <= 1 + 1e-6


@pytest.mark.parametrize("norm", EPS)
def test_images_may_break_just_before_the_end(norm: str) -> None:
    """After the last step there is no gradient that could leave with them."""
    case = toy()
    plan = plan_for("apgd-ce", norm, iterations=25)
    found = perturb(case.model, case.x, case.y, plan, 0, Execution(block=25, shrink=True)).images
    assert 0.1 * len(case.y) < case.broken(found).sum() < len(case.y)
    assert same_bits(found, perturb(case.model, case.x, case.y, plan, 0).images)


@pytest.mark.parametrize("norm", EPS)
def test_work_per_run(norm: str) -> None:
    """One pass for the clean images; per start, one for the start and one per iteration. Each has a backward pass but
    the clean and the last one; the network has two convolutions. The host looks once per start, for the images that
    are left, so twice here, however many iterations there are."""
    case = toy()
    for iterations in (5, 20):
        plan = plan_for("apgd-ce", norm, iterations=iterations, restarts=2, eps=1e-4)  # nothing breaks
        with Counts() as counts:
            perturb(case.model, case.x, case.y, plan, 0, Execution(block=25))
        assert counts.batches == [len(case.y)] * (1 + 2 * (iterations + 1))
        assert counts.calls["convolution_backward"] == 2 * 2 * iterations
        assert counts.weight_gradients == 0
        assert counts.host_looks == 2


def test_targets_share_the_pass_over_unchanged_images() -> None:
    """Three targets, no image broken: one clean pass in all, where upstream makes four."""
    case = toy()
    plan = plan_for("apgd-t", "linf", iterations=4, target_classes=3, eps=1e-4)
    with Counts() as counts:
        perturb(case.model, case.x, case.y, plan, 0)
    assert len(counts.batches) == 1 + 3 * 5


def test_checkpoints_of_100_iterations() -> None:
    """Windows of 22, 19, 16, 13, 10, 7 and then 6 iterations (arXiv:2003.01690, section 3.2)."""
    ends = [22, 41, 57, 70, 80, 87, 93, 99]
    assert [check + 1 for check in checkpoints(100)] == ends
    assert [*checkpoints(100).values()] == [22, 19, 16, 13, 10, 7, 6, 6]


def test_steps_are_halved_where_progress_is_slow() -> None:
    """100 iterations, the first window has 22. Losses of the three images: they rise all the time; in 16 of 22
    iterations, which is less than 0.75 · 22; all the time, but from so low that the best one stays the start's, which
    counts against a step only where it was as long at the checkpoint before (arXiv:2003.01690, section 3.2)."""
    pace = Halving(0.1, 100, torch.tensor([0.0, 0.0, 1000.0]))
    best, halved = torch.tensor([0.0, 0.0, 1000.0]), []
    for iteration in range(41):
        up = float(iteration + 1)
        losses = torch.tensor([up, up if iteration % 22 < 16 else -up, up])
        best = torch.maximum(best, losses)
        pace.observe(losses)
        if (back := pace.review(iteration, best, torch.zeros(3, 1, 1, 1))) is not None:
            halved.append((iteration, back.tolist(), [round(step, 6) for step in pace.step.flatten().tolist()]))
    assert halved[0] == (21, [False, True, False], [0.2, 0.1, 0.2])
    assert halved[1][0] == 40
    assert halved[1][1][::2] == [False, True]


def test_phases_of_100_iterations() -> None:
    plan = plan_for("apgd-ce", "l1", iterations=100, large_eps=True)
    assert phases(plan) == [(15.0, 30), (10.0, 30), (5.0, 40)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "square"}, "apgd-ce, apgd-dlr or apgd-t"),
        ({"iterations": 0}, "1 or more iterations"),
        ({"large_eps": True}, "l1 only"),
        ({"name": "apgd-t", "target_classes": 6}, "7 or more classes, got 6"),
    ],
)
def test_impossible_plans_say_so(changes: dict[str, object], words: str) -> None:
    case = toy()
    plan = AttackPlan(**{"name": "apgd-ce", "norm": "linf", "eps": 0.1} | changes)
    with pytest.raises(SettingError, match=words):
        perturb(case.model, case.x, case.y, plan, 0)


def test_dlr_needs_three_classes() -> None:
    case = toy(2, (1, 8, 8))
    with pytest.raises(SettingError, match="3 or more classes, got 2"):
        perturb(case.model, case.x, case.y, plan_for("apgd-dlr", "linf"), 0)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.5), ("l1", 12.0)])
def test_a_robust_model_on_real_images(real_data: Path, norm: str, eps: float) -> None:
    case = robust_model(real_data, 12)
    for name in NAMES:
        plan = plan_for(
            name, norm, eps=eps, iterations=12, large_eps=norm == "l1", target_classes=3 * (name[-1] == "t")
        )
        assert agrees(case, plan, 0), name


@pytest.mark.slow
def test_full_length_on_real_images(real_data: Path) -> None:
    case = robust_model(real_data, 8)
    assert agrees(case, plan_for("apgd-ce", "linf", eps=8 / 255), 0)
