"""Two views: CE over both, the regulariser on each with its own weight, the class prior from the first."""

import pytest
import torch

from tests.losses.toy import CLASSES, identity, images, made

FAMILY = ("trades", "kl", "dkl", "ikl", "gkl")


@pytest.mark.parametrize("weight", (0.0, 0.3, 1.0))
@pytest.mark.parametrize("name", FAMILY)
def test_the_sum_of_the_parts(name: str, weight: float) -> None:
    x, x_adv, y = images(8)
    y[4:] = y[:4]  # the same images, seen twice
    both, alone = made(name, second_view_weight=weight), made(name)
    assert (both.views, alone.views) == (2, 1)
    total, parts = both.outer(identity, x, x_adv, y)
    (first, first_parts), (second, second_parts) = (
        alone.outer(identity, x[rows], x_adv[rows], y[rows]) for rows in (slice(4), slice(4, 8))
    )
    ce = (first_parts["ce"] + second_parts["ce"]) / 2  # the mean over all 2n images
    expected = ce + (first - first_parts["ce"]) + weight * (second - second_parts["ce"])
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
    term = both.regulariser_name
    torch.testing.assert_close(parts["ce"], ce, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts[term], first_parts[term], rtol=1e-12, atol=0)
    torch.testing.assert_close(parts[f"{term}_second_view"], second_parts[term], rtol=1e-12, atol=0)
    assert f"over both views + R(view 1) + {weight:g} R(view 2), R = " in both.formula()


@pytest.mark.parametrize("name", ("ikl", "gkl"))
def test_the_prior_learns_from_the_first_view(name: str) -> None:
    x, x_adv, y = images(8)
    both, alone = made(name, second_view_weight=0.3), made(name)
    both.train().outer(identity, x, x_adv, y)
    alone.train().outer(identity, x[:4], x_adv[:4], y[:4])
    assert torch.equal(both.prior.sums, alone.prior.sums) and both.prior.counts.sum() == 4
    both.eval().outer(identity, x, x_adv, y)
    assert both.prior.counts.sum() == 4


@pytest.mark.parametrize("announced", (4, 8))
def test_gkl_normalises_each_view_over_the_announced_batch(announced: int) -> None:
    """The labels of one view or of both may be announced: their mean weight is the same."""
    x, x_adv, y = images(8)
    y[4:] = y[:4]
    loss = made("gkl", second_view_weight=0.3)
    whole, _ = loss.outer(identity, x, x_adv, y)
    loss.start_batch(y[:announced])
    halves = [torch.tensor([i, i + 1, i + 4, i + 5]) for i in (0, 2)]
    parts = [loss.outer(identity, x[rows], x_adv[rows], y[rows])[0] / 2 for rows in halves]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-7, atol=0)  # the prior is float32


def test_soft_labels_have_two_views_too() -> None:
    x, x_adv, y = images(8)
    soft = torch.nn.functional.one_hot(y, CLASSES).double()
    loss = made("trades", second_view_weight=0.3)
    torch.testing.assert_close(
        loss.outer(identity, x, x_adv, soft)[0], loss.outer(identity, x, x_adv, y)[0], rtol=1e-12, atol=0
    )


def test_an_odd_number_of_rows_is_refused() -> None:
    x, x_adv, y = images(5)
    with pytest.raises(ValueError, match=r"expected rows \[view 1; view 2\], an even number, got 5 images"):
        made("trades", second_view_weight=0.3).outer(identity, x, x_adv, y)


def test_one_view_where_nothing_is_said() -> None:
    assert {made(name).views for name in (*FAMILY, "standard", "pgd_at", "mart")} == {1}
