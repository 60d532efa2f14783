"""What the GPU script prints: tables of its record, and what follows from them."""

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.gpu_rungs import REFERENCE, RIVALS


def show(record: dict[str, Any], console: Console) -> None:
    """Prints the whole record."""
    console.print(_ceilings(record))
    for name, case in record["cases"].items():
        if "rungs" in case:
            console.print(ladder(name, case))
            for line in remarks(case):
                console.print(line, highlight=False)
        else:
            console.print(f"{name}: {case['status']}", highlight=False)
    if "losses" in record.get("classes", {}):
        console.print(_classes(record["classes"]))
    for line in record["recommendations"]:
        console.print(f"→ {line}", highlight=False)


def ladder(name: str, case: dict[str, Any]) -> Table:
    """The rungs of one case."""
    table = Table(title=f"{name} ({case.get('rounds', 0)} rounds)", title_justify="left")
    table.add_column("rung", no_wrap=True)
    for column in ("images/s", "TFLOP/s", "MFU", "GiB", "× published", "× tuned", "signs", "cosine", "build s"):
        table.add_column(column, justify="right")
    table.add_column("remark", overflow="fold")
    for rung, found in case["rungs"].items():
        parity = [_number(found.get("parity", {}).get(key)) for key in ("sign_agreement", "cosine")]
        parity.append(str(found.get("seconds_to_build", "")))
        remark = "" if found["status"] == "timed" else found["status"]
        if "images_per_second" not in found:
            table.add_row(rung, *[""] * 6, *parity, remark)
            continue
        mfu = "" if found["mfu"] is None else f"{found['mfu']:.1%}"
        ratios = [_median(found["times_as_fast_as"].get(rival)) for rival in (RIVALS[0], RIVALS[-1])]
        speed = (f"{found['images_per_second']:,.0f}", _number(found["useful_tflops"]), mfu)
        table.add_row(rung, *speed, str(found.get("peak_memory_gib", "")), *ratios, *parity, remark)
    return table


def remarks(case: dict[str, Any]) -> list[str]:
    """What belongs under the table: noise, profile."""
    lines = []
    if "noise" in case:
        low, high = case["noise"]["a_to_a"]["range"]
        lines.append(f"  A against A ({case['noise']['of']}): {low:.3f} to {high:.3f}")
    profile = case.get("profile", {})
    if "shares" in profile:
        shares = ", ".join(f"{share:.0%} {kind}" for kind, share in profile["shares"].items())
        lines.append(f"  profile of {profile['of']}: {shares}")
        lines.append(f"  next bottleneck: {profile['next_bottleneck']}")
    return lines


def recommendation(case: dict[str, Any]) -> str:
    """The fastest of our rungs that passed, in one line."""
    title = f"{case.get('model')}, {case.get('loss')}, batch {case.get('batch')}"
    best = fastest(case["rungs"])
    if best is None:
        return f"{title}: nothing was timed"
    found = case["rungs"][best]
    words = [f"{title}: {best.removeprefix('+ ')}: {found['images_per_second']:,.0f} images/s"]
    if found["mfu"] is not None:
        words.append(f"MFU {found['mfu']:.1%}")
    for other in (*RIVALS, REFERENCE):
        if other in found["times_as_fast_as"] and other != best:
            words.append(f"{_median(found['times_as_fast_as'][other])} × {other}")
    if "next_bottleneck" in case.get("profile", {}):
        words.append(f"next: {case['profile']['next_bottleneck']}")
    return "; ".join(words)


def fastest(rungs: dict[str, Any]) -> str | None:
    """The fastest of our rungs that was timed, if any."""
    timed = {name: one for name, one in rungs.items() if one["status"] == "timed" and name not in RIVALS}
    return max(timed, key=lambda name: timed[name]["images_per_second"], default=None)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _median(ratio: dict[str, Any] | None) -> str:
    return "" if ratio is None else f"{ratio['median']:.2f}"


def _ceilings(record: dict[str, Any]) -> Table:
    table = Table(title="ceilings", title_justify="left")
    for column in ("", "fp32 TFLOP/s", "tf32 TFLOP/s", "bf16 TFLOP/s", "copy TB/s"):
        table.add_column(column, justify="right")
    for when in ("before", "after"):
        found = record["ceilings"].get(when, {})
        if "matrix_tflops" in found:
            rates = [found["matrix_tflops"][precision] for precision in ("fp32", "tf32", "bf16")]
            shown = ["needs CUDA" if one is None else f"{one['median']:.4g}" for one in rates]
            table.add_row(when, *shown, f"{found['copy_tb_per_s']['median']:.4g}")
    return table


def _classes(found: dict[str, Any]) -> Table:
    title = f"C = {found['num_classes']}, batch {found['batch']}, {found['attack_steps']} attack steps"
    table = Table(title=title, title_justify="left")
    for column in ("", "ms", "× KL", "GiB"):
        table.add_column(column, justify="right" if column else "left")
    for kind, word in (("losses", "loss"), ("steps", "training step")):
        for name, one in found[kind].items():
            if "seconds" in one:
                memory = str(one.get("peak_memory_gib", ""))
                table.add_row(
                    f"{word}: {name}", _number(1e3 * one["seconds"]["median"]), _median(one.get("times_kl")), memory
                )
            else:
                table.add_row(f"{word}: {name}", one.get("status", ""), "", "")
    return table
