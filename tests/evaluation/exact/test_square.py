"""Square of engine=exact against upstream's, bit for bit."""

from pathlib import Path

import pytest
import torch

from advtrain.evaluation.autoattack import upstream
from advtrain.evaluation.autoattack.exact.execution import Execution
from advtrain.evaluation.autoattack.exact.square import perturb
from advtrain.evaluation.autoattack.exact.squares import side
from advtrain.evaluation.autoattack.plan import AttackPlan
from advtrain.types import SettingError
from tests.evaluation.exact.toys import EPS, Counts, Toy, robust_model, same_bits, threads, toy


def plan_for(norm: str, queries: int = 80, *, eps: float = 0.0, restarts: int = 1) -> AttackPlan:
    return AttackPlan("square", norm, eps or 1.4 * EPS[norm], iterations=queries, restarts=restarts)


def agrees(case: Toy, plan: AttackPlan, seed: int) -> bool:
    expected = upstream.perturb(case.model, case.x, case.y, plan, seed)
    return same_bits(perturb(case.model, case.x, case.y, plan, seed).images, expected)


@pytest.mark.parametrize("norm", EPS)
def test_the_images_are_upstreams_bit_for_bit(norm: str) -> None:
    case = toy()
    for seed in (0, 3):
        assert agrees(case, plan_for(norm), seed)
        at_once, later = (
            case.broken(perturb(case.model, case.x, case.y, plan_for(norm, queries), seed).images).sum()
            for queries in (1, 80)
        )
        assert at_once < later < len(case.y)


@pytest.mark.parametrize("norm", EPS)
def test_until_everything_is_broken(norm: str) -> None:
    """The last image that is left, and the end before the queries are used up."""
    case = toy()
    with Counts() as counts:
        images = perturb(case.model, case.x, case.y, plan_for(norm, 3000, eps=6 * EPS[norm]), 0).images
    assert case.broken(images).all()
    assert counts.batches[-2] <= 2
    assert len(counts.batches) < 3000
    assert agrees(case, plan_for(norm, 3000, eps=6 * EPS[norm]), 0)


@pytest.mark.parametrize("norm", EPS)
def test_restarts_go_on_in_the_stream(norm: str) -> None:
    assert agrees(toy(), plan_for(norm, 10, restarts=3), 1)


@pytest.mark.parametrize(("classes", "shape"), [(2, (1, 8, 8)), (3, (3, 11, 11)), (4, (1, 7, 9))])
def test_few_classes_small_images_and_single_images(classes: int, shape: tuple[int, int, int]) -> None:
    case = toy(classes, shape)
    for norm in EPS:
        assert agrees(case, plan_for(norm, 30), 0), norm
        assert agrees(Toy(case.model, case.x[:1], case.y[:1]), plan_for(norm, 30), 0), norm


@pytest.mark.slow
@pytest.mark.parametrize("norm", EPS)
def test_two_threads_give_upstreams_bits_too(norm: str) -> None:
    with threads(2):
        assert agrees(toy(), plan_for(norm, 30), 0)


@pytest.mark.parametrize("norm", EPS)
def test_a_look_every_25_queries_changes_no_verdict(norm: str) -> None:
    """The proposals are the same, only batches are larger. In L2 and L1 an image that is broken within a block ends
    the block, as the numbers after it depend on how many images are left."""
    case = toy()
    for seed in range(3):
        expected = case.broken(perturb(case.model, case.x, case.y, plan_for(norm), seed).images)
        images = perturb(case.model, case.x, case.y, plan_for(norm), seed, Execution(block=25)).images
        assert torch.equal(case.broken(images), expected)
        assert 0 < expected.sum() < len(case.y)


@pytest.mark.parametrize("norm", EPS)
def test_shrinking_finds_the_same_within_the_ball(norm: str) -> None:
    case = toy()
    plan = plan_for(norm)
    images = perturb(case.model, case.x, case.y, plan, 0, Execution(shrink=True)).images
    broken = case.broken(images)
    assert torch.equal(broken, case.broken(upstream.perturb(case.model, case.x, case.y, plan, 0)))
    assert torch.equal((images != case.x).flatten(1).any(1), broken)
    size = torch.linalg.vector_norm((images - case.x).flatten(1), {"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1)
    assert size.max() <= plan.eps * (1 + 1e-5)
    assert images.min() >= -1e-6
    assert images.max() <= 1 + 1e-6


@pytest.mark.parametrize("norm", EPS)
def test_work_per_query(norm: str) -> None:
    """One pass for the clean images, one for the start, one per query and one to confirm; none backwards. The host
    looks for images to attack, whether the start suffices and once per block; in L2 and L1 also how many queries of
    the block count. Its own random numbers are on the CPU anyway; per tile of the start and per query it reads some."""
    case = toy()
    looks = []
    for queries in (50, 100):
        with Counts() as counts:
            perturb(case.model, case.x, case.y, plan_for(norm, queries, eps=1e-4), 0, Execution(block=25))
        assert counts.batches == [len(case.y)] * (3 + queries)
        assert "convolution_backward" not in counts.calls
        looks.append(counts.host_looks)
    assert looks[1] - looks[0] == (2 if norm == "linf" else 4)  # two more blocks


def test_nothing_else_changes() -> None:
    case = toy()
    x, state = case.x.clone(), torch.get_rng_state()
    for norm in EPS:
        perturb(case.model, case.x, case.y, plan_for(norm, 5), 0)
    assert same_bits(case.x, x)
    assert torch.equal(torch.get_rng_state(), state)


def test_images_that_are_misclassified_come_back_as_they_are() -> None:
    case = toy()
    y = case.y.clone()
    y[::3] = (y[::3] + 1) % 6
    images = perturb(case.model, case.x, y, plan_for("linf", 5), 0).images
    assert same_bits(images[::3], case.x[::3])


def test_windows_shrink_with_the_schedule() -> None:
    """0.8 of the pixels of a 32 × 32 image at first: a side of √(0.8 · 1024) ≈ 28.6; halved in area after query 10, 50,
    200, 500, 1000, 2000 and 4000 (arXiv:1912.00049, section 5, for 10000 queries, not rescaled)."""
    sides = {0: 29, 10: 29, 11: 20, 51: 14, 201: 10, 501: 7, 1001: 5, 2001: 4, 4001: 3, 4999: 3}
    assert {query: side(query, 32, 32, smallest=1) for query in sides} == sides
    assert [side(query, 32, 32, smallest=3) for query in (11, 2001)] == [21, 5]
    assert side(0, 8, 6, smallest=1) == 6


def test_images_that_the_start_does_not_fit_say_so() -> None:
    """Upstream stops there with an error about shapes or a division by zero."""
    for shape in ((1, 4, 4), (3, 14, 14)):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(shape[0] * shape[1] * shape[2], 3))
        x = torch.rand(2, *shape)
        y = model(x).argmax(1)
        for norm in ("l2", "l1"):
            with pytest.raises((RuntimeError, ZeroDivisionError)):
                upstream.perturb(model, x, y, plan_for(norm, 3), 0)
            with pytest.raises(SettingError, match="leave square out"):
                perturb(model, x, y, plan_for(norm, 3), 0)
        perturb(model, x, y, plan_for("linf", 3), 0)


def test_impossible_plans_say_so() -> None:
    case = toy()
    with pytest.raises(SettingError, match="expected square in linf"):
        perturb(case.model, case.x, case.y, AttackPlan("fab", "linf", 0.1), 0)
    with pytest.raises(SettingError, match="1 or more queries"):
        perturb(case.model, case.x, case.y, AttackPlan("square", "linf", 0.1, iterations=0), 0)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 16 / 255), ("l2", 1.0), ("l1", 20.0)])
def test_a_robust_model_on_real_images(real_data: Path, norm: str, eps: float) -> None:
    assert agrees(robust_model(real_data, 10), plan_for(norm, 70, eps=eps), 0)


@pytest.mark.slow
def test_full_length() -> None:
    """All window sizes."""
    assert agrees(toy(), plan_for("linf", 5000), 0)
