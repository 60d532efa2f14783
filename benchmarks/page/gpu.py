"""Tables of the GPU script's records."""

from typing import Any

from benchmarks.page.records import Records, rows, source

RIVAL, TUNED = "published, float32", "published, tuned"
# By how a case's title starts: times the published step and MFU of the best rung, each wanted at least and hoped for.
MARKS = {"preact_resnet_18": ((4.0, 7.0), (0.20, 0.30)), "wrn_34_10": ((3.0, 5.0), (0.35, 0.50))}
HEAD = (
    "rung",
    "images/s",
    "TFLOP/s",
    "MFU",
    "GiB",
    "times published (range)",
    "times tuned",
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
            blocks.append(f"**{title}**\n\n{rows(HEAD, body)}")
            blocks.extend([*marks(title, case), *_notes(case)])
        else:
            blocks.append(f"**{title}**: {case['status']}.")
    return "\n\n".join([*blocks, *_classes(record), *_ceilings(record), source(name, record)])


def _row(rung: str, one: dict[str, Any]) -> tuple[str, ...]:
    parity = one.get("parity", {})
    signs, apart = parity.get("sign_agreement"), parity.get("weights_relative_l2")
    close = ("" if signs is None else f"{signs:.2%}", "" if apart is None else f"{apart:.1e}")
    remark = "" if one["status"] == "timed" else one["status"]
    if "images_per_second" not in one:
        return (rung, "", "", "", "", "", "", *close, remark)
    mfu = "" if one.get("mfu") is None else f"{one['mfu']:.1%}"
    speed = (f"{one['images_per_second']:,.0f}", f"{one['useful_tflops']:.3g}", mfu)
    tuned = one["times_as_fast_as"].get(TUNED)
    ratios = (_spread(one["times_as_fast_as"].get(RIVAL)), "" if tuned is None else f"{tuned['median']:.2f}")
    return (rung, *speed, str(one.get("peak_memory_gib", "")), *ratios, *close, remark)


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


def _spread(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    low, high = found["range"]
    return f"{found['median']:.2f} ({low:.2f} to {high:.2f})"


def marks(title: str, case: dict[str, Any]) -> list[str]:
    """What is wanted of a case of that title, and what its fastest rung reaches; nothing without a published step."""
    found = mark_of(title)
    if found is None or RIVAL not in case["rungs"] or "noise" not in case:
        return []
    ratio, mfu = found
    best = case["rungs"][case["noise"]["of"]]
    words = [
        f"{_spread(best['times_as_fast_as'][rival])} times `{rival}`, {_level(best['times_as_fast_as'][rival], ratio)}"
        for rival in (RIVAL, TUNED)
        if rival in best["times_as_fast_as"]
    ]
    if best.get("mfu") is not None:
        words.append(f"an MFU of {best['mfu']:.1%}{_of_mfu(best)}, {_level({'median': best['mfu']}, mfu)}")
    return [
        f"Wanted: {ratio[0]:g} times the published step (hoped for: {ratio[1]:g}) at an MFU of {mfu[0]:.0%} "
        f"({mfu[1]:.0%}). Measured, {_quoted(case['noise']['of'])}: {'; '.join(words)}."
    ]


def _level(found: dict[str, Any], mark: tuple[float, float]) -> str:
    """Where a median stands between what is wanted and what is hoped for."""
    least, hoped = mark
    if found["median"] < least:
        return "**missed**"
    return "reached" if found["median"] < hoped else "more than hoped for"


def _of_mfu(one: dict[str, Any]) -> str:
    """The MFU's range, from that of the seconds."""
    seconds = one.get("seconds_per_step")
    if seconds is None:
        return ""
    low, high = (one["mfu"] * seconds["median"] / bound for bound in reversed(seconds["range"]))
    return f" ({low:.1%} to {high:.1%})"


def mark_of(title: str) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """What is wanted of a case of that title: times the published step, MFU; each at least, and hoped for."""
    return next((mark for start, mark in MARKS.items() if title.startswith(start)), None)
