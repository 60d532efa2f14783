"""Random streams: named, independent, and blind to how a batch is cut up."""

import itertools
import os
import subprocess
import sys

import pytest
import torch

from advtrain.random import BatchRows, normal_like, seed_layers, seeded_generator, stream_seed, uniform_like

DRAWS = [lambda x, source: uniform_like(x, -0.5, 2.0, source), normal_like]


def first_draw(*keys: int | str) -> float:
    return torch.rand((), generator=seeded_generator(*keys)).item()


def test_a_stream_is_a_function_of_its_name() -> None:
    assert torch.equal(
        torch.rand(100, generator=seeded_generator(3, "attack", 1, 7)),
        torch.rand(100, generator=seeded_generator(3, "attack", 1, 7)),
    )


def test_streams_of_different_names_differ() -> None:
    names = [
        (0,), (1,), (0, 0), (0, 1), (1, 0), (0, "0"), (0, ""), (0, "attack", 1, 23), (0, "attack", 12, 3),
        (0, "attack", 1, 2, 3), (0, "attack1", 23), (0, "crop", 1, 23), (-1,),
    ]  # fmt: skip
    assert len({stream_seed(*name) for name in names}) == len(names)
    assert len({first_draw(*name) for name in names}) == len(names)


def test_streams_of_neighbouring_steps_are_uncorrelated() -> None:
    """1000 streams of 1000 numbers: neighbours correlate like independent ones, |r| of about 1/√1000, and no more."""
    streams = torch.stack([torch.randn(1000, generator=seeded_generator(0, "attack", step)) for step in range(1000)])
    correlations = (streams[1:] * streams[:-1]).mean(1)
    assert correlations.abs().max() < 5 / 1000**0.5
    assert abs(correlations.square().mean().item() * 1000 - 1) < 0.25


def test_seeds_are_valid_and_equal_in_every_process() -> None:
    seeds = [stream_seed(seed, "attack") for seed in range(200)]
    assert min(seeds) >= 0
    assert max(seeds) < 2**63
    program = "from advtrain.random import stream_seed; print(stream_seed(5, 'attack'))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert int(printed.stdout) == seeds[5]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("cut", [[12], [6, 6], [4, 4, 4], [1, 11], [3, 1, 8]])
def test_the_cut_of_a_batch_does_not_matter(draw, cut: list[int]) -> None:
    x = torch.zeros(12, 3, 5, 5)
    whole = draw(x, seeded_generator(0, "attack"))
    ends = list(itertools.accumulate(cut))
    parts = [
        draw(x[end - size : end], BatchRows(seeded_generator(0, "attack"), 12, slice(end - size, end)))
        for size, end in zip(cut, ends, strict=True)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_a_part_of_the_rows_counts_from_their_first() -> None:
    x = torch.zeros(12, 2)
    whole = normal_like(x, seeded_generator(0))
    second_process = BatchRows(seeded_generator(0), 12, slice(6, 12))
    assert torch.equal(normal_like(x[:2], second_process.part(slice(2, 4))), whole[8:10])


def test_successive_draws_of_one_source_differ() -> None:
    x = torch.zeros(4, 2)
    rows = BatchRows(seeded_generator(0), 8, slice(0, 4))
    assert not torch.equal(normal_like(x, rows), normal_like(x, rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("draw", DRAWS)
def test_draws_are_like_the_tensor(draw, dtype: torch.dtype) -> None:
    x = torch.zeros(3, 4, dtype=dtype)
    for source in (None, seeded_generator(0), BatchRows(seeded_generator(0), 9, slice(2, 5))):
        drawn = draw(x, source)
        assert (drawn.shape, drawn.dtype, drawn.device) == (x.shape, x.dtype, x.device)


def test_uniform_draws_fill_their_interval() -> None:
    drawn = uniform_like(torch.zeros(100_000), -0.5, 2.0, seeded_generator(0))
    assert -0.5 <= drawn.min() < -0.499
    assert 1.999 < drawn.max() <= 2.0
    assert drawn.mean().item() == pytest.approx(0.75, abs=5 * 2.5 / 12**0.5 / 100_000**0.5)


def test_normal_draws_have_mean_0_and_variance_1() -> None:
    drawn = normal_like(torch.zeros(100_000), seeded_generator(0))
    assert drawn.mean().item() == pytest.approx(0, abs=5 / 100_000**0.5)
    assert drawn.var().item() == pytest.approx(1, abs=5 * 2**0.5 / 100_000**0.5)


@pytest.mark.parametrize("draw", DRAWS)
def test_views_draw_for_themselves_whatever_the_cut(draw) -> None:
    """A part of two views of 12 images holds its rows of view 1, then those of view 2."""
    first, second = draw(torch.zeros(24, 3), BatchRows(seeded_generator(0), 12, slice(0, 12), views=2)).split(12)
    assert not torch.isin(first, second).any()
    for rows in (slice(0, 5), slice(5, 12)):
        part = BatchRows(seeded_generator(0), 12, slice(0, 12), views=2).part(rows)
        x = torch.zeros(2 * (rows.stop - rows.start), 3)
        assert torch.equal(draw(x, part), torch.cat([first[rows], second[rows]]))


@pytest.mark.parametrize("draw", DRAWS)
def test_without_a_source_the_global_generator_draws(draw) -> None:
    x = torch.zeros(4)
    torch.manual_seed(1)
    first = draw(x, None)
    torch.manual_seed(1)
    assert torch.equal(draw(x, None), first)


@pytest.mark.parametrize("draw", DRAWS)
def test_a_tensor_of_other_length_than_the_rows_is_refused(draw) -> None:
    with pytest.raises(ValueError, match=r"expected slice\(0, 4, None\) of the batch, got 5 images"):
        draw(torch.zeros(5, 2), BatchRows(seeded_generator(0), 8, slice(0, 4)))


def test_layers_draw_as_after_manual_seed() -> None:
    torch.manual_seed(2**62 + 5)
    expected = torch.nn.functional.dropout(torch.ones(100))
    torch.rand(7)
    seed_layers(2**62 + 5, torch.device("cpu"))
    assert torch.equal(torch.nn.functional.dropout(torch.ones(100)), expected)


@pytest.mark.gpu
def test_layers_draw_as_after_manual_seed_on_a_gpu() -> None:
    torch.manual_seed(5)
    expected = torch.nn.functional.dropout(torch.ones(100, device="cuda"))
    seed_layers(5, torch.device("cuda", 0))
    assert torch.equal(torch.nn.functional.dropout(torch.ones(100, device="cuda")), expected)
