"""The GPU script, as far as a CPU can tell: its arithmetic, what it does with rungs that fail, and a whole run."""

import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from advtrain.engine.acceleration import passes
from benchmarks import gpu_cases, gpu_profile, gpu_race, gpu_rungs, gpu_table
from benchmarks.gpu_machine import arithmetic
from benchmarks.gpu_race import Race
from benchmarks.gpu_rungs import LADDER, REFERENCE, Look, Rung, compared, verdict
from benchmarks.gpu_timing import (
    Budget,
    Deadline,
    Effort,
    Entrants,
    OutOfTime,
    ProcessTime,
    ratio,
    spread,
    take_turns,
    time_limit,
)

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
FAR = Deadline(time.monotonic() + 1e6)


def toy(loss: str = "trades") -> gpu_cases.Case:
    """A case that takes milliseconds and no compiler."""
    case = next(case for case in gpu_cases.CASES if case.loss == loss)
    return replace(case, steps=2, batch=4, size=8, interpreted=True)


def race(record: dict[str, Any], saved: list[str] | None = None, loss: str = "trades") -> Race:
    def save() -> None:
        if saved is not None:
            saved.append(json.dumps(record, allow_nan=False))

    effort = Effort(rounds=2, least_rounds=1, block_seconds=0.001)
    return Race(toy(loss), CPU, toy=True, clock=ProcessTime(), effort=effort, record=record, save=save)


class Steady:
    """A clock on which every entrant takes the seconds that it returns, whatever the number of calls."""

    measures = "nothing"

    def seconds(self, work: Any, times: int = 1) -> float:
        return work()


class SteadyBy(Steady):
    """Takes the step, and says what `seconds` has for the rung, or 1 s."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds

    def seconds(self, work: Any, times: int = 1) -> float:
        work()
        return self._seconds.get(work.rung.name, 1.0)


# Arithmetic


def test_what_is_left_over_is_for_the_next_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    budget = Budget(10, {"a": 1, "b": 2, "c": 1})
    assert [budget.deadline(part).at - 100 for part in "abc"] == [150, 450, 600]
    now = 110.0  # a took ten seconds
    assert budget.deadline("b").left() == 440


def test_turns_are_medians_with_range_in_every_round() -> None:
    seconds = iter([2.0, 4.0, 3.0])
    entrants = Entrants({"steady": lambda: 1.0, "other": lambda: next(seconds)}, {"steady": 1.0, "other": 1.0})
    seen: list[int] = []
    assert take_turns(entrants, Steady(), Effort(3, 3, 0.0), FAR, seen.append) == 3
    assert seen == [1, 2, 3]
    assert spread(entrants.times["other"]) == {"median": 3.0, "range": [2.0, 4.0]}
    assert ratio(entrants.times["other"], entrants.times["steady"]) == {"median": 3.0, "range": [2.0, 4.0]}


def test_an_entrant_that_fails_is_out_and_the_others_go_on() -> None:
    def fails() -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    entrants = Entrants({"good": lambda: 1.0, "bad": fails}, {"good": 1.0, "bad": 1.0})
    take_turns(entrants, Steady(), Effort(2, 2, 0.0), FAR, lambda number: None)
    assert entrants.times == {"good": [1.0, 1.0]}
    assert entrants.fallen == {"bad": "out of memory: CUDA out of memory. Tried to allocate 2 GiB"}


def test_rounds_end_with_the_time_but_not_before_there_is_a_measurement() -> None:
    entrants = Entrants({"one": lambda: 1.0}, {"one": 1.0})
    past = Deadline(time.monotonic() - 1)
    assert take_turns(entrants, Steady(), Effort(7, 3, 0.0), past, lambda number: None) == 3


def test_only_the_lasting_go_on_and_ratios_are_of_common_rounds() -> None:
    seconds = iter([1.0, 2.0, 3.0, 4.0])
    works = {"short": lambda: 6.0, "long": lambda: next(seconds)}
    entrants = Entrants(works, {"short": 1.0, "long": 2.0}, frozenset({"long"}))
    effort = Effort(4, 2, 1.5)
    assert [entrants.seconds(number, effort) for number in range(4)] == [3.5, 3.5, 2.0, 2.0]
    take_turns(entrants, Steady(), effort, FAR, lambda number: None)
    assert {name: len(times) for name, times in entrants.times.items()} == {"short": 2, "long": 4}
    assert ratio(entrants.times["short"], entrants.times["long"]) == {"median": 4.5, "range": [3.0, 6.0]}


def test_time_is_over_inside_of_a_block() -> None:
    end = time.monotonic() + 5
    with pytest.raises(OutOfTime), time_limit(0.01):
        while time.monotonic() < end:
            with contextlib.suppress(Exception):  # a compiler that goes on whatever happens
                sum(range(1000))
    time.sleep(0.02)  # the alarm of a block that ended in time does not ring
    with time_limit(0.01):
        pass
    time.sleep(0.02)


@pytest.mark.parametrize(("loss", "steps", "forwards"), (("trades", 10, 27), ("ikl", 10, 27), ("pgd_at", 3, 9)))
def test_useful_work(loss: str, steps: int, forwards: int) -> None:
    """2 F per step, forward and input gradient; then a training pass of 3 F, or the natural logits and two of them."""
    case = replace(toy(loss), steps=steps)
    assert case.forwards == forwards


def test_forward_flops_by_hand() -> None:
    """Of the stand-in network at 8 × 8: a convolution 3 → 8 of 64 pixels, one 8 → 16 of 3 × 3 pixels, a last layer."""
    case = toy()
    by_hand = 2 * (64 * 8 * 27 + 9 * 16 * 72 + 16 * 10)
    assert gpu_cases.forward_flops(case, gpu_cases.batches(case, CPU), CPU, True) == by_hand


def test_shares_of_a_profile() -> None:
    rows = [
        (300.0, 20, "sm90_xmma_fprop_implicit_gemm_bf16"),
        (100.0, 40, "triton_poi_fused__native_batch_norm_convolution_relu_3"),
        (50.0, 10, "void cudnn::bn_fw_tr_1C11_kernel_NCHW"),
        (50.0, 2, "Memcpy DtoD (Device -> Device)"),
    ]
    found = gpu_profile.summary(rows, 2000.0)
    assert found["shares"] == {
        gpu_profile.GAPS: 0.75,
        "matrix products and convolutions": 0.15,
        gpu_profile.POINTWISE: 0.075,
        "copies": 0.025,
    }
    assert found["next_bottleneck"].startswith("gaps between kernels")
    assert found["kernels_per_step"] == 72
    assert gpu_profile.summary(rows, None)["next_bottleneck"].startswith("matrix products")


# Parity


def test_parity_by_hand() -> None:
    """A gradient turned by 60° in one plane, one sign of four wrong, weights 10 % too long."""
    gradient = torch.tensor([1.0, -1.0, 1.0, 1.0])
    reference = Look(gradient, gradient.sign(), gradient.sign(), torch.tensor([3.0, 4.0]))
    turned = torch.tensor([1.0, -1.0, 1.0, -1.0])
    found = compared(Look(turned, turned.sign(), gradient.sign(), torch.tensor([3.3, 4.4])), reference)
    expected = {"sign_agreement": 0.75, "relative_l2": 1.0, "cosine": 0.5, "start_sign_agreement": 1.0}
    expected |= {"weights_relative_l2": 0.1, "weights_cosine": 1.0}
    assert found == pytest.approx(expected, abs=1e-4)
    assert "cosine 0.5" in str(verdict(Rung("x", "bf16"), {"cosine": 0.5, "sign_agreement": 1.0}))
    assert "sign_agreement 0.75" in str(verdict(Rung("x", "bf16"), {"sign_agreement": 0.75}))
    assert "weights_relative_l2 0.3" in str(verdict(Rung("x", "bf16"), {"weights_relative_l2": 0.3}))
    assert "no finite number" in str(verdict(Rung("x"), {"cosine": None}))


def test_every_rung_has_its_turn_to_be_built() -> None:
    assert sorted(gpu_rungs.ORDER) == sorted(rung.name for rung in LADDER)
    assert sorted(gpu_rungs.SHORT_ORDER) == sorted(rung.name for rung in LADDER if rung.short)


def test_signs_of_tiny_gradients_do_not_count() -> None:
    gradient = torch.tensor([1.0, 1.0, 1e-4, -1e-4])
    reference = Look(gradient, gradient.sign(), gradient.sign(), torch.ones(1))
    found = compared(Look(None, torch.tensor([1.0, -1.0, -1.0, 1.0]), gradient.sign(), torch.ones(1)), reference)
    assert found["sign_agreement"] == 0.5


@pytest.mark.parametrize("loss", ("trades", "ikl", "pgd_at"))
def test_the_published_step_and_every_rung_of_float32_agree(loss: str) -> None:
    """With gradients that are not small: the network was trained, and the images are those that fool it."""
    case = toy(loss)
    data = gpu_cases.batches(case, CPU)
    state = gpu_cases.briefly_trained(case, data, CPU, True)
    points = gpu_rungs.fixed_images(case, data, state, True)
    looks = {
        rung.name: gpu_rungs.Entrant(rung, case, data, state, True).look(points)
        for rung in LADDER
        if not rung.needs_cuda and not rung.compiled
    }
    reference = looks[REFERENCE]
    assert reference.gradient is not None and reference.gradient.abs().max() > 1e-4
    for rung in LADDER:
        if rung.name in looks:
            assert verdict(rung, compared(looks[rung.name], reference)) is None, rung.name
    assert len(looks) == 4


@pytest.mark.parametrize(
    ("precision", "convolutions", "products", "tries"),
    (
        ("fp32", False, False, True),
        ("bf16", False, False, True),
        ("tf32", True, True, True),
        ("defaults", True, False, False),
    ),
)
def test_switches_of_a_precision(precision: str, convolutions: bool, products: bool, tries: bool) -> None:
    """They say on a CPU, too, what a GPU would do."""
    cudnn: Any = torch.backends.cudnn
    before = (cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, cudnn.benchmark)
    with arithmetic(precision):
        assert (cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (convolutions, products)
        assert cudnn.benchmark == tries
    assert (cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, cudnn.benchmark) == before


def test_a_small_network_lies_where_it_is_asked_for() -> None:
    assert next(gpu_cases.network(toy(), True, torch.device("meta")).parameters()).device.type == "meta"


def test_turns_keep_the_collector_out_and_bring_it_back() -> None:

    seen: list[bool] = []

    def works() -> float:
        seen.append(gc.isenabled())
        return 1.0

    take_turns(Entrants({"one": works}, {"one": 1.0}), Steady(), Effort(1, 1, 0.0), FAR, lambda number: None)
    assert seen == [False] and gc.isenabled()


# A case


def test_a_case_on_a_cpu() -> None:
    record: dict[str, Any] = {}
    saved: list[str] = []
    rates = {"matrix_tflops": {"fp32": {"median": 1e-3}, "bf16": {"median": 1e-3}}}
    run = race(record, saved)
    run.run(FAR, rates)
    run.close()
    status = {name: found["status"] for name, found in record["rungs"].items()}
    assert list(status) == [rung.name for rung in LADDER]
    for rung in LADDER:
        if rung.needs_cuda:
            assert status[rung.name] == "needs CUDA"
        elif rung.compiled:
            assert status[rung.name].startswith("left out at toy size")
        else:
            assert status[rung.name] == "timed"
            found = record["rungs"][rung.name]
            assert found["images_per_second"] == pytest.approx(4 / found["seconds_per_step"]["median"], rel=1e-3)
            useful = 11 * record["forward_gflop_per_image"] / 1e3 * found["images_per_second"]
            assert found["useful_tflops"] == pytest.approx(useful, rel=1e-3)
            assert found["mfu"] == pytest.approx(found["useful_tflops"] / 1e-3, rel=1e-3)
    assert record["rounds"] == 2 and record["noise"]["of"] in status and record["profile"]["shares"]
    # Something was on the disk after each rung and each round.
    assert len(saved) >= len(LADDER) + 2
    assert json.loads(saved[-3])["rounds"] == 1
    advice = gpu_table.recommendation(record)
    assert "trades, batch 4: " in advice and "× published, float32" in advice


def test_a_rung_that_fails_parity_is_never_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where it is the fastest by far; its time stands beside how far it is off."""
    monkeypatch.setitem(gpu_rungs.GATES, "bf16", {"cosine": 1.1, "sign_agreement": 0.0, "weights_relative_l2": 1.0})
    record: dict[str, Any] = {}
    run = race(record)
    monkeypatch.setattr(run, "clock", SteadyBy({"+ bf16": 1e-3}))
    run.run(FAR, {})
    failed = record["rungs"]["+ bf16"]
    assert failed["status"].startswith("failed parity: cosine") and failed["images_per_second"] == 4000
    assert record["noise"]["of"] != "+ bf16" and gpu_table.fastest(record["rungs"]) not in ("+ bf16", None)
    assert "bf16" not in gpu_table.recommendation(record)
    assert record["rungs"][REFERENCE]["mfu"] is None  # no ceiling was measured


def test_a_rung_without_finite_numbers_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_race, "verdict", lambda rung, parity: "nan" if rung.name == "+ bf16" else None)
    monkeypatch.setattr(gpu_race, "compared", lambda look, reference: {"cosine": None})
    record: dict[str, Any] = {}
    race(record).run(FAR, {})
    assert record["rungs"]["+ bf16"]["status"] == "failed parity: nan"
    assert "images_per_second" not in record["rungs"]["+ bf16"]


def test_what_the_conclusion_rests_on_may_take_the_time_of_later_cases() -> None:
    """No time is left to the case itself: the essential rungs are built and timed, the others are not."""
    record: dict[str, Any] = {}
    race(record).run(Deadline(time.monotonic() - 1), {}, FAR)
    status = {name: found["status"] for name, found in record["rungs"].items()}
    assert status[REFERENCE] == status["published, float32"] == status["+ bf16"] == "timed"
    assert status["+ channels_last"] == "left out: no time"


def test_a_batch_that_nobody_published_has_no_rival() -> None:
    case = next(case for case in gpu_cases.selected(["preact_resnet_18"], True) if not case.rivals)
    record: dict[str, Any] = {}
    effort = Effort(rounds=1, least_rounds=1, block_seconds=0.001)
    Race(case, CPU, toy=True, clock=ProcessTime(), effort=effort, record=record, save=lambda: None).run(FAR, {})
    timed = {name: found for name, found in record["rungs"].items() if found["status"] == "timed"}
    assert timed.keys() == {REFERENCE, "+ bf16"} and "changes the mathematics" in record["remark"]
    assert all(found["times_as_fast_as"].keys() == {REFERENCE} for found in timed.values())
    names = [case.name for case in gpu_cases.selected(["preact_resnet_18"], True)]
    assert len(set(names)) == len(names) == 3


def test_a_rung_that_does_not_fit_is_named_and_the_next_ones_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(gpu_rungs.Entrant):
        def __init__(self, rung: Rung, *rest: Any) -> None:
            if rung.name == "+ channels_last":
                raise torch.OutOfMemoryError("CUDA out of memory")
            if rung.name == "+ bf16":
                raise OutOfTime
            super().__init__(rung, *rest)

    monkeypatch.setattr(gpu_race, "Entrant", Large)
    record: dict[str, Any] = {}
    race(record).run(FAR, {})
    assert record["rungs"]["+ channels_last"]["status"] == "failed: out of memory: CUDA out of memory"
    assert record["rungs"]["+ bf16"]["status"].startswith("left out: the time was over")
    assert record["rungs"][REFERENCE]["status"] == record["rungs"]["published, float32"]["status"] == "timed"


def test_a_replayed_rung_is_looked_at_through_its_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for CUDA graphs that computes where they would replay, and one that replays the same for ever."""
    rung = next(rung for rung in LADDER if rung.name == "+ CUDA graph, not compiled")
    case = toy()
    data = gpu_cases.batches(case, CPU)
    state = gpu_cases.briefly_trained(case, data, CPU, True)
    points = gpu_rungs.fixed_images(case, data, state, True)
    reference_rung = next(one for one in LADDER if one.name == REFERENCE)
    reference = gpu_rungs.Entrant(reference_rung, case, data, state, True).look(points)
    replays = []

    def record(function: Any) -> Any:
        def replay() -> Any:
            replays.append(function)
            return function()

        return replay

    monkeypatch.setattr(passes, "CudaGraphs", lambda device: record)
    entrant = gpu_rungs.Entrant(rung, case, data, state, True)
    look = entrant.look(points)
    assert len(replays) == 2 and look.gradient is None  # two steps, from the found images and from the start
    assert verdict(rung, compared(look, reference)) is None

    monkeypatch.setattr(passes, "CudaGraphs", lambda device: lambda function: lambda: (points.found.clone(),))
    stuck = gpu_rungs.Entrant(rung, case, data, state, True).look(points)
    assert "sign_agreement" in str(verdict(rung, compared(stuck, reference)))


def test_a_case_without_time_says_so() -> None:
    record: dict[str, Any] = {}
    race(record).run(Deadline(time.monotonic() - 1), {})
    assert record["rungs"][REFERENCE]["status"] == record["rungs"]["+ bf16"]["status"] == "left out: no time"
    assert "nothing was timed" in gpu_table.recommendation(record)


# The command

# What a GPU machine may lack. None in sys.modules makes an import fail as if the package were not there.
WITHOUT = ("hydra", "omegaconf", "pyautoattack", "torchattacks", "wandb", "beartype")
RUN = f"""
import sys
sys.modules.update(dict.fromkeys({WITHOUT!r}))
from benchmarks.__main__ import main
main()
"""


def command(*words: str, **folders: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", RUN, "gpu", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **folders},
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.slow
def test_the_whole_script_at_toy_size(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "gpu.json"
    words = ("--toy", "--device", "cpu", "--models", "preact_resnet_18")
    folders = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "a"), "TRITON_CACHE_DIR": str(tmp_path / "b")}
    warm = command(str(tmp_path / "warm.json"), *words, "--warm-up", **folders)
    assert warm.returncode == 0, warm.stderr[-3000:]
    built = list(json.loads((tmp_path / "warm.json").read_text())["warm_up"].values())
    assert [one["status"] for one in built] == ["built", "built"]
    assert built[0]["compile_cache"]["graphs_built"] > 0

    done = command(str(out), *words, **folders)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(out.read_text())
    for name in ("command", "git_commit", "seed", "hardware", "versions", "measured", "state"):
        assert name in record
    assert record["hardware"]["gpu"] is None and record["toy"]
    assert [case["status"] for case in record["cases"].values()] == ["done", "done", "done"]
    first = next(iter(record["cases"].values()))
    for name in ("+ compile=model", "+ compile=step"):  # read from the disk, where another process wrote them
        read = first["rungs"][name]["compile_cache"]
        assert read["graphs_read"] > 0 and read.keys() <= {"graphs_read", "traces_read"}
    assert {first["rungs"][name]["status"] for name in ("+ compile=model", "+ compile=step")} == {"timed"}
    assert record["ceilings"].keys() == {"before", "after"}
    assert record["classes"]["losses"].keys() == {"kl", "ikl", "ikl, published (pairs of classes)"}
    assert len(record["recommendations"]) == 3
    for word in ("images/s", "needs CUDA", "+ compile=step", "next bottleneck", "training step: ikl", "→ "):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("words", "line"),
    (
        (("--models", "vgg"), "expected some of preact_resnet_18, wrn_34_10, resnet_50, got 'vgg'"),
        (("--only", "all"), "expected some of ceilings, ladders, classes, got 'all'"),
        (("--minutes", "0"), "expected a number above 0, got 0"),
        (("--block-seconds", "-1"), "expected a number above 0, got -1"),
        (("--device", "cpu"), "expected a CUDA GPU, got none; --toy"),
    ),
)
def test_wrong_words_stop_it(words: tuple[str, ...], line: str, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    from benchmarks import gpu

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as error:
        patch.setattr(sys, "argv", ["gpu", str(tmp_path / "x.json"), *words])
        gpu.main()
    assert error.value.code == 2
    assert line in capsys.readouterr().err
