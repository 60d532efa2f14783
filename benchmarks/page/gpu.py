"""Tables of the GPU script's records."""

from typing import Any

from benchmarks.page.records import Records, rows, source

RIVAL = "published, float32"
# Times the published step, by how a case's title starts: wanted at least, and hoped for.
MARKS = {"preact_resnet_18": (4.0, 7.0), "wrn_34_10": (3.0, 5.0)}


def ladders(records: Records) -> str:
    """The ladder of each case of each record."""
    if not records.gpu:
        return "No record of a GPU yet: `python -m benchmarks gpu results/benchmarks/gpu.json` writes one."
    picture = "![Bars: times as fast as the published step, by rung](pictures/performance_ladder_gpu.png)"
    return "\n\n".join([picture, *(_record(name, record) for name, record in records.gpu.items())])


def _record(name: str, record: dict[str, Any]) -> str:
    blocks = []
    for title, case in record["cases"].items():
        body = [_row(rung, one) for rung, one in case.get("rungs", {}).items()]
        if body:
            head = ("rung", "images/s", "TFLOP/s", "MFU", "GiB", "times published (range)", "signs equal", "remark")
            blocks.append(f"**{title}**{marks(title)}\n\n{rows(head, body)}")
    return "\n\n".join([*blocks, source(name, record)])


def _row(rung: str, one: dict[str, Any]) -> tuple[str, ...]:
    parity = one.get("parity", {}).get("sign_agreement")
    signs = "" if parity is None else f"{parity:.2%}"
    if one["status"] != "timed":
        return (rung, "", "", "", "", "", signs, one["status"])
    mfu = "" if one.get("mfu") is None else f"{one['mfu']:.1%}"
    speed = (f"{one['images_per_second']:,.0f}", f"{one['useful_tflops']:.3g}", mfu)
    return (rung, *speed, str(one.get("peak_memory_gib", "")), times(one), signs, "")


def times(one: dict[str, Any]) -> str:
    """How many times as fast as the published step."""
    found = one.get("times_as_fast_as", {}).get(RIVAL)
    if found is None:
        return ""
    low, high = found["range"]
    return f"{found['median']:.2f} ({low:.2f} to {high:.2f})"


def marks(title: str) -> str:
    """What is wanted of a case of that title, in words."""
    found = mark_of(title)
    return f" (wanted {found[0]:g} times the published step, hoped for {found[1]:g})" if found else ""


def mark_of(title: str) -> tuple[float, float] | None:
    """What is wanted of a case of that title."""
    return next((mark for start, mark in MARKS.items() if title.startswith(start)), None)
