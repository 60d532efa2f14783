"""Tables of the GPU script's records."""

from typing import Any

from benchmarks.page.records import Records, rows, source

RIVAL = "published, float32"
# By how a case's title starts: times the published step, wanted at least and hoped for; and the MFU wanted of the best.
MARKS = {"preact_resnet_18": (4.0, 7.0, 0.20), "wrn_34_10": (3.0, 5.0, 0.35)}
HEAD = (
    "rung",
    "images/s",
    "TFLOP/s",
    "MFU",
    "GiB",
    "times published (range)",
    "signs equal",
    "weights apart",
    "remark",
)


def ladders(records: Records) -> str:
    """The ladder of each case of each record, with what bounds its best rung, and IKL against KL."""
    if not records.gpu:
        return "No record of a GPU yet: `python -m benchmarks gpu results/benchmarks/gpu.json` writes one."
    blocks = [_record(name, record) for name, record in records.gpu.items()]
    if any(RIVAL in one["times_as_fast_as"] for record in records.gpu.values() for one in _timed(record)):
        blocks.insert(0, "![Bars: times as fast as the published step, by rung](pictures/performance_ladder_gpu.png)")
    return "\n\n".join(blocks)


def _timed(record: dict[str, Any]) -> list[dict[str, Any]]:
    cases = record["cases"].values()
    return [one for case in cases for one in case.get("rungs", {}).values() if "images_per_second" in one]


def _record(name: str, record: dict[str, Any]) -> str:
    blocks = []
    for title, case in record["cases"].items():
        body = [_row(rung, one) for rung, one in case.get("rungs", {}).items()]
        if body:
            blocks.append(f"**{title}**{marks(title, case)}\n\n{rows(HEAD, body)}")
            blocks.extend(_notes(case))
        else:
            blocks.append(f"**{title}**: {case['status']}.")
    return "\n\n".join([*blocks, *_classes(record), *_ceilings(record), source(name, record)])


def _row(rung: str, one: dict[str, Any]) -> tuple[str, ...]:
    parity = one.get("parity", {})
    signs, apart = parity.get("sign_agreement"), parity.get("weights_relative_l2")
    close = ("" if signs is None else f"{signs:.2%}", "" if apart is None else f"{apart:.1e}")
    remark = "" if one["status"] == "timed" else one["status"]
    if "images_per_second" not in one:
        return (rung, "", "", "", "", "", *close, remark)
    mfu = "" if one.get("mfu") is None else f"{one['mfu']:.1%}"
    speed = (f"{one['images_per_second']:,.0f}", f"{one['useful_tflops']:.3g}", mfu)
    return (rung, *speed, str(one.get("peak_memory_gib", "")), times(one), *close, remark)


def _notes(case: dict[str, Any]) -> list[str]:
    """Below a ladder: how much of a ratio is noise, what bounds the best rung, what else is to be known."""
    words = []
    if "noise" in case:
        low, high = case["noise"]["a_to_a"]["range"]
        words.append(
            f"{_quoted(case['noise']['of'])} against itself: {low:.3f} to {high:.3f}, {case['rounds']} rounds."
        )
    profile = case.get("profile", {})
    if "shares" in profile:
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in profile["shares"].items())
        words.append(f"A step of {_quoted(profile['of'])} takes {profile['milliseconds_per_step']:.3g} ms: {shares}.")
        words.append(f"Next bottleneck: {profile['next_bottleneck']}.")
    elif "status" in profile:
        words.append(f"Profile of {_quoted(profile['of'])}: {profile['status']}.")
    if "remark" in case:
        words.append(f"No rival: {case['remark']}.")
    return [" ".join(words)] if words else []


def _quoted(rung: str) -> str:
    return f"`{rung.removeprefix('+ ')}`"


def _classes(record: dict[str, Any]) -> list[str]:
    """IKL against KL where there are many classes."""
    found = record.get("classes", {})
    body = []
    for kind, word in (("losses", "loss alone"), ("steps", "training step")):
        for name, one in found.get(kind, {}).items():
            title = f"{word}, {name.replace('ikl', 'IKL').replace('kl', 'KL')}"
            milliseconds = f"{1e3 * one['seconds']['median']:.3g}" if "seconds" in one else ""
            gib, remark = str(one.get("peak_memory_gib", "")), one.get("status", "")
            body.append((title, milliseconds, _spread(one.get("times_kl")), gib, remark))
    if not body:
        return []
    title = f"**IKL against KL, C = {found['num_classes']}, batch {found['batch']}**"
    return [f"{title}\n\n{rows(('what', 'ms', 'times as long as KL (range)', 'GiB', 'remark'), body)}"]


def _ceilings(record: dict[str, Any]) -> list[str]:
    """What MFU is measured against."""
    found = record.get("ceilings", {}).get("before", {})
    rates = {name: one["median"] for name, one in found.get("matrix_tflops", {}).items() if one}
    if not rates:
        return []
    words = ", ".join(f"{rate:.4g} TFLOP/s in {name}" for name, rate in rates.items())
    copy = f"copy {found['copy_tb_per_s']['median']:.3g} TB/s"
    after = record["ceilings"].get("after", {}).get("matrix_tflops", {}).get("bf16")
    later = "" if not after else f"; bf16 after all ladders {after['median']:.4g}"
    return [f"Ceilings of this run: matrix products {words}; {copy}{later}."]


def times(one: dict[str, Any]) -> str:
    """How many times as fast as the published step."""
    return _spread(one.get("times_as_fast_as", {}).get(RIVAL))


def _spread(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    low, high = found["range"]
    return f"{found['median']:.2f} ({low:.2f} to {high:.2f})"


def marks(title: str, case: dict[str, Any]) -> str:
    """What is wanted of a case of that title, in words; nothing where no published step is beside it."""
    found = mark_of(title)
    if found is None or RIVAL not in case["rungs"]:
        return ""
    least, hoped, mfu = found
    return f" (wanted {least:g} times the published step, hoped for {hoped:g}, at an MFU of {mfu:.0%} or more)"


def mark_of(title: str) -> tuple[float, float, float] | None:
    """What is wanted of a case of that title."""
    return next((mark for start, mark in MARKS.items() if title.startswith(start)), None)
