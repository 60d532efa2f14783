"""The model of the scaling: one row by hand, what a record of a GPU changes, and the page."""

import pytest

from benchmarks import scaling

# PreActResNet-18 at 32 × 32, layer by layer: multiply-adds of the convolutions, stages of two blocks each.
STAGES = [(64, 64, 32), (64, 128, 16), (128, 256, 8), (256, 512, 4)]  # channels before, after, pixels of a side
MACS = 3 * 64 * 9 * 32**2 + 512 * 10
PARAMETERS = 3 * 64 * 9 + 512 * 10 + 10 + 2 * 512  # the linear layer, and the last normalisation
for before, after, side in STAGES:
    shortcut = before * after if before != after else 0
    weights = 9 * (before * after + 3 * after * after) + shortcut
    MACS += weights * side**2
    PARAMETERS += weights + 2 * (before + 3 * after)  # the normalisation before each convolution of 3 × 3


def test_one_row_by_hand() -> None:
    """PreActResNet-18, TRADES-10, 64 GPUs of 128 images, at 30 % of 790 TFLOP/s."""
    one_pass = 128 * 2 * MACS / (0.3 * 790e12)
    assert one_pass == pytest.approx(0.60e-3, rel=0.01)  # more than 20 + 1 products and 2 · 17 kernels of 5 µs
    bucket = 4 * PARAMETERS / 2  # 44.7 MB in buckets of 26.2 MB at most
    ring = 2 * 63 / 64 * bucket / 40e9 + (126 - 14) * 5e-6 + 14 * 10e-6  # 8 nodes: 2 · 7 hops between them
    tree = 2 * bucket / 40e9 + 2 * (7 + 3) * 28e-6
    assert tree < ring
    exposed = 2 * tree - 4 * one_pass / 2  # one of the two buckets travels during half of the outer backward
    assert exposed > tree  # so the last bucket alone is not all
    step = 27 * one_pass + exposed

    job = scaling.replace(scaling.JOBS[0], rate=0.3 * scaling.PEAK)
    found = scaling.point(job, 64, strong=False)
    assert scaling.size(job.model, job.data).parameters == PARAMETERS
    assert found.compute == pytest.approx(27 * one_pass, rel=1e-9)
    assert found.exposed == pytest.approx(exposed, rel=1e-9)
    assert found.epoch == pytest.approx(50_000 / (64 * 128) * step, rel=1e-9)
    assert found.efficiency == pytest.approx(27 * one_pass / step, rel=1e-9)
    row = f"| preact_resnet_18 | 64 | 8,192 | 128 | {27e3 * one_pass:.1f} / "
    assert row in scaling.tables({})


def test_a_gpu_that_is_not_filled_gets_no_faster() -> None:
    """Two images for each of 64 GPUs: the launches of 20 convolutions, 3 shortcuts, a linear layer and 17 norms."""
    job = scaling.replace(scaling.JOBS[0], rate=0.5 * scaling.PEAK)
    found = scaling.point(job, 64, strong=True)
    assert found.per_gpu == 2 and scaling.filling_batch(job) > 16
    assert found.compute == scaling.point(job, 8, strong=True).compute
    assert found.compute == pytest.approx(27 * (17 + 3 + 1 + 2 * 17) * 5e-6)


def test_an_all_reduce_within_a_node_and_alone() -> None:
    assert scaling.all_reduce_seconds(1e9, 1) == 0.0
    assert scaling.all_reduce_seconds(1e9, 8) == pytest.approx(2 * 7 / 8 / 360 + 14 * 5e-6)
    assert scaling.all_reduce_seconds(1e9, 64) > 1 / 40  # at least once through a link of 40 GB/s


def test_measured_steps_take_the_place_of_the_model() -> None:
    def case(model: str, loss: str, steps: int, rungs: dict[str, object]) -> dict[str, object]:
        return {"model": model, "loss": loss, "attack_steps": steps, "batch": 128, "rungs": rungs}

    rungs = {
        "the published way": {"status": "timed", "images_per_second": 9000.0},
        "bf16": {"status": "timed", "images_per_second": 2000.0},
        "+ compile": {"status": "timed", "images_per_second": 4000.0},
        "+ cuda graph": {"status": "failed parity", "images_per_second": 8000.0},
    }
    record = {"cases": {"a": case("preact_resnet_18", "trades", 10, rungs), "b": {"status": "left out: no time"}}}
    measured = scaling.measured_rates(record)
    assert measured == {("preact_resnet_18", 27): 4000.0}
    (job,) = scaling.rates(scaling.JOBS[0], measured)
    assert scaling.point(job, 1, strong=False).epoch == pytest.approx(50_000 / 4000)
    assert len(scaling.rates(scaling.JOBS[1], measured)) == 2
    assert "| preact_resnet_18 | 1 | 128 | 128 | 32.0 | 0.00 | 100 | 12.5 |" in scaling.tables(measured)


def test_the_page_is_what_the_script_writes() -> None:
    """By the records that the page names."""
    page = scaling.PAGE.read_text()
    assert scaling.BEGIN in page and scaling.END in page
    names = ("gpu_preact_resnet_18", "gpu_wrn_34_10")
    assert all(f"results/benchmarks/{name}.json" in page for name in names)
    folder = scaling.PAGE.parents[1] / "results" / "benchmarks"
    measured = scaling.measured_in(folder / f"{name}.json" for name in names)
    assert {model for model, _ in measured} == {"preact_resnet_18", "wrn_34_10"}
    assert scaling.written(page, scaling.tables(measured)) == page
