"""Orders that are computed place by place: permutations, all alike, one after the other without end."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advtrain.data.shuffle import endless


def chi_square_is_plausible(counts: np.ndarray, freedom: int) -> bool:
    expected = counts.mean()
    return ((counts - expected) ** 2 / expected).sum() < freedom + 4 * np.sqrt(2 * freedom)


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), first=st.integers(0, 2**40))
def test_every_pass_holds_each_image_once(size: int, seed: int, first: int) -> None:
    position = first - first % size  # where a pass begins
    order = endless(np.arange(position, position + 2 * size), size, seed)
    assert np.array_equal(np.sort(order[:size]), np.arange(size))
    assert np.array_equal(np.sort(order[size:]), np.arange(size))


@pytest.mark.parametrize("size", [2**16, 2**16 + 1, 99_991])
def test_large_sets_are_permuted_too(size: int) -> None:
    assert np.array_equal(np.sort(endless(np.arange(size), size, 1)), np.arange(size))


def test_a_position_of_fifty_million_is_found_by_itself() -> None:
    positions = np.array([0, 49_999_999, 50_000_000, 7 * 10**9, 123])
    alone = [endless(positions[i : i + 1], 50_000_000, 5)[0] for i in range(len(positions))]
    assert endless(positions, 50_000_000, 5).tolist() == alone
    assert min(alone) >= 0 and max(alone) < 50_000_000


@pytest.mark.parametrize("size", [4, 5, 24, 49])
def test_every_image_is_as_likely_at_every_place_and_beside_every_other(size: int) -> None:
    orders = endless(np.arange(4000 * size), size, 11).reshape(4000, size)
    at = np.zeros((size, size))
    beside = np.zeros((size, size))
    for order in orders:
        at[np.arange(size), order] += 1
        beside[order[:-1], order[1:]] += 1
    assert chi_square_is_plausible(at, (size - 1) ** 2)
    assert chi_square_is_plausible(beside[~np.eye(size, dtype=bool)], size * (size - 1) - 1)


def test_all_orders_of_four_images_come_up_alike() -> None:
    orders = endless(np.arange(4 * 24_000), 4, 3).reshape(-1, 4)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24 and chi_square_is_plausible(counts, 23)


def test_neighbours_in_the_order_are_not_neighbours_in_the_set() -> None:
    order = endless(np.arange(20_000), 20_000, 2).astype(float)
    assert abs(np.corrcoef(np.arange(20_000), order)[0, 1]) < 4 / np.sqrt(20_000)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 4 / np.sqrt(20_000)


def test_seeds_passes_and_groups_have_unrelated_orders() -> None:
    places = np.arange(1000)
    orders = [
        endless(places, 1000, 1),
        endless(places, 1000, 2),
        endless(places + 1000, 1000, 1),
        endless(places, 1000, 1, 1),
        endless(places + 1000, 1000, 1, 1),
    ]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 8  # one in a thousand by chance, Poisson with mean 1


def test_groups_of_different_sizes_are_streams_of_their_own() -> None:
    groups = np.repeat([0, 1, 2], 30)
    sizes = np.array([1, 7, 30])[groups]
    mixed = endless(np.tile(np.arange(30), 3), sizes, 9, groups)
    for group, size in enumerate((1, 7, 30)):
        assert np.array_equal(mixed[groups == group], endless(np.arange(30), size, 9, group))
