"""docs/performance.md shows what the records hold, with every mark that is wanted, reached or not."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import page
from benchmarks.page import gpu, pictures, tables
from benchmarks.page.records import Records

ROOT = Path(__file__).resolve().parents[2]
RECORDS = Records.read(ROOT / "results" / "benchmarks")
HARDWARE = {"hardware": {"cpu": "some CPU", "gpu": None}, "versions": {"torch": "2"}, "command": "c", "git_commit": "g"}


def step_way(ratio: float, precision: str = "float32") -> dict[str, Any]:
    parity = {"loss": 1e-7, "attack_gradient": 2e-5, "attack_gradient_same_sign": 0.9999, "weight_gradient": 3e-4}
    times = {"milliseconds": 5.0, "images_per_second": 6.0, "ratio": ratio, "range": [ratio - 0.1, ratio + 0.1]}
    return {**times, "precision": precision, "parity": parity}


def ratios_record() -> dict[str, Any]:
    ways = {"published": step_way(1.0), "eager": step_way(1.7), "compile=step": step_way(1.8)}
    ways["eager, bf16"] = step_way(2.5, "bfloat16 autocast, opt-in")
    wanted = {"step, eager": 1.6, "step, compiled": 1.9, "augmentation": 8.0, "ikl, C = 100": 50.0}
    return {**HARDWARE, "wanted": wanted, "steps": {"Net, TRADES-10": {"images": 4, "ways": ways}}}


def gpu_record() -> dict[str, Any]:
    timed = {"status": "timed", "images_per_second": 9000.0, "useful_tflops": 210.0, "mfu": 0.31}
    ratios = {gpu.RIVAL: {"median": 3.4, "range": [3.3, 3.5]}, gpu.TUNED: {"median": 2.9, "range": [2.8, 3.1]}}
    timed |= {"times_as_fast_as": ratios, "parity": {"sign_agreement": 0.98}}
    timed |= {"seconds_per_step": {"median": 0.1, "range": [0.05, 0.124]}}
    rungs = {"+ bf16": timed, "+ CUDA graph": {"status": "failed: out of memory"}}
    rungs["+ tf32"] = {**timed, "status": "failed parity: cosine 0.9", "images_per_second": 7000.0}
    rungs[gpu.RIVAL] = {**timed, "images_per_second": 2600.0}
    rungs[gpu.TUNED] = {**timed, "status": "failed parity: weights 0.06", "images_per_second": 3100.0}
    shares = {"gaps between kernels": 0.6, "copies": 0.4}
    profile = {"of": "+ bf16", "shares": shares, "milliseconds_per_step": 14.2, "next_bottleneck": "gaps: replay"}
    case = {"rungs": rungs, "rounds": 7, "noise": {"of": "+ bf16", "a_to_a": {"range": [0.99, 1.01]}}}
    large = {"rungs": {"+ bf16": {**timed, "times_as_fast_as": {}}}, "remark": "other mathematics"}
    rate, loss = {"median": 760.0}, {"seconds": {"median": 1e-3}, "times_kl": {"median": 1.1, "range": [1.0, 1.2]}}
    return {
        **HARDWARE,
        "ceilings": {"before": {"matrix_tflops": {"bf16": rate, "tf32": None}, "copy_tb_per_s": {"median": 4.2}}},
        "classes": {"num_classes": 1000, "batch": 128, "losses": {"ikl": loss, "pairs": {"status": "failed: x"}}},
        "cases": {
            "wrn_34_10, trades, 10 steps, batch 128": {**case, "profile": profile},
            "wrn_34_10, trades, 10 steps, batch 512": large,
            "wrn_34_10, ikl, 10 steps, batch 128": {"status": "left out: no time"},
        },
    }


def line(text: str, start: str) -> str:
    (found,) = [one for one in text.splitlines() if one.startswith(f"| {start} |")]
    return found


def test_the_page_is_up_to_date() -> None:
    written = (ROOT / page.PAGE).read_text()
    assert written == page.filled(written, RECORDS), "run python scripts/performance_page.py"


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_the_pictures_are_up_to_date(name: str) -> None:
    path = ROOT / "docs" / "pictures" / name
    drawn = pictures.PICTURES[name](RECORDS)
    assert (drawn is None) == (not path.exists())
    if drawn is not None:  # the digest of what is shown: pixels differ between versions of Matplotlib
        assert digest_of(path.read_bytes()) == digest_of(drawn), "run python scripts/performance_page.py"
        assert len(path.read_bytes()) < 300_000


def digest_of(content: bytes) -> bytes:
    found = re.search(rb"tEXtDescription\0([0-9a-f]{64})", content)
    assert found is not None
    return found[1]


def test_a_picture_names_what_it_shows() -> None:
    record = ratios_record()
    before = pictures.ladder(Records(ratios=record))
    record["steps"]["Net, TRADES-10"]["ways"]["eager"]["ratio"] = 1.71
    after = pictures.ladder(Records(ratios=record))
    assert before is not None and after is not None and digest_of(before) != digest_of(after)


def test_every_link_of_the_page_leads_to_a_file() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / page.PAGE).read_text())
    local = [target for target in targets if "://" not in target]
    assert local and not [target for target in local if not (ROOT / "docs" / target).exists()]


def test_marks_show_whether_reached_or_not() -> None:
    text = tables.steps(Records(ratios=ratios_record()))
    assert "1.70 (1.60 to 1.80) | 1.60: reached" in line(text, "Net, TRADES-10: eager")
    assert "1.90: **missed**" in line(text, "Net, TRADES-10: compile=step")
    assert "reached" not in line(text, "Net, TRADES-10: eager, bf16")  # other numbers: no mark is theirs
    assert "results/benchmarks/ratios.json" in text


def test_without_records_the_page_says_how_to_make_them() -> None:
    text = page.filled((ROOT / page.PAGE).read_text(), Records())
    for name in ("counters", "ratios", "autoattack", "gpu"):
        assert f"python -m benchmarks {name}" in text
    assert all(picture(Records()) is None for picture in pictures.PICTURES.values())


def test_what_people_wrote_stays() -> None:
    text = (ROOT / page.PAGE).read_text()
    emptied = page.filled(text, Records())
    assert page.filled(emptied.replace("## The ladder", "## The ladder\n\nMine."), RECORDS) == text.replace(
        "## The ladder", "## The ladder\n\nMine."
    )


def test_a_page_without_a_block_is_refused() -> None:
    text = (ROOT / page.PAGE).read_text().replace("<!-- end of steps -->", "")
    with pytest.raises(ValueError, match="steps"):
        page.filled(text, Records())


def test_a_gpu_record_has_its_ladder_and_bars(tmp_path: Path) -> None:
    (tmp_path / "gpu_h200.json").write_text(json.dumps(gpu_record()))
    (tmp_path / "gpu_other.json").write_text("{}")
    records = Records.read(tmp_path)
    text = gpu.ladders(records)
    ladder, large = text.split("batch 512**")
    assert "3.40 (3.30 to 3.50)" in line(ladder, "+ bf16") and "31.0%" in line(ladder, "+ bf16")
    assert "failed: out of memory" in line(ladder, "+ CUDA graph")
    assert "7,000" in line(ladder, "+ tf32") and "failed parity: cosine 0.9" in line(ladder, "+ tf32")
    assert "Wanted: 3 times the published step (hoped for: 5) at an MFU of 35% (50%)." in ladder
    assert "3.40 (3.30 to 3.50) times `published, float32`, reached" in ladder and "Wanted" not in large
    assert "2.90 (2.80 to 3.10) times `published, tuned`, **missed**" in ladder
    assert "an MFU of 31.0% (25.0% to 62.0%), **missed**" in ladder
    for words in (
        "`bf16` against itself: 0.990 to 1.010, 7 rounds",
        "gaps between kernels 60%",
        "Next bottleneck: gaps",
    ):
        assert words in ladder
    for words in (
        "No rival: other mathematics",
        "ikl, 10 steps, batch 128**: left out: no time",
        "760 TFLOP/s in bf16",
    ):
        assert words in large
    assert line(text, "loss alone, IKL") == "| loss alone, IKL | 1 | 1.10 (1.00 to 1.20) |  |  |"
    assert "gpu_h200.json" in text and "performance_ladder_gpu.png" in text
    assert pictures.gpu_ladder(records) is not None
    ((title, bars),) = pictures.gpu_bars(records).items()  # none of ours that failed, nothing without a rival
    assert title.startswith("wrn_34_10")
    ours, theirs = ("+ bf16", 3.0, pictures.OTHER), (f"{gpu.TUNED} (failed parity)", None, pictures.THEIRS)
    assert [(bar[0], *bar[2:]) for bar in bars] == [ours, theirs]
    assert bars[0][1]["beside"] == ["3.40", "2.90", "31.0%"]


@pytest.mark.parametrize(
    ("median", "words"), [(2.99, "**missed**"), (3.0, "reached"), (4.99, "reached"), (5.0, "more than hoped for")]
)
def test_a_gpu_mark_has_two_levels(median: float, words: str) -> None:
    record = gpu_record()
    title, case = next(iter(record["cases"].items()))
    case["rungs"]["+ bf16"]["times_as_fast_as"][gpu.RIVAL]["median"] = median
    assert f"times `published, float32`, {words};" in gpu.marks(title, case)[0]


def test_the_same_case_on_two_gpus_has_bars_of_both() -> None:
    groups = pictures.gpu_bars(Records(gpu={"gpu_a": gpu_record(), "gpu_b": gpu_record()}))
    assert [title.endswith(f"({name})") for title, name in zip(groups, ("gpu_a", "gpu_b"), strict=True)] == [True, True]


def test_counters_show_both_ways() -> None:
    counted = {"forward": 440, "input_gradient": 238, "weight_gradient": 40, "host_syncs": 2, "operations": 9000}
    counted |= {"convolution_flops": 8 * 10**9, "matrix_flops": 0, "bytes": {"attack_pass": 2**21}}
    found = {"steps": 10, "batch": 2, "trades": {"published": counted}, "gates": [{"holds": True}, {"holds": False}]}
    text = tables.counters(Records(counters={**HARDWARE, "preact_resnet18": found}))
    assert line(text, "TRADES, published") == "| TRADES, published | 440 | 238 | 40 | 2 | 9,000 | 4.0 | 1.0 |"
    assert "1 of 2 gates hold" in text
