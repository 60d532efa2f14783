"""Tables of the records that a CPU makes."""

from typing import Any

from benchmarks.page.records import Records, missing, rows, source

COUNTED = ("forward", "input_gradient", "weight_gradient", "host_syncs", "operations")
LOSSES = {"pgd_at": "PGD-AT", "trades": "TRADES", "ikl": "IKL", "ikl_awp": "IKL + AWP"}
WAYS = {"lean": "ours", "published": "published"}


def counters(records: Records) -> str:
    """What steps ask of the device, ours beside the published one, on PreActResNet-18."""
    record = records.counters
    found = record.get("preact_resnet18", {})
    if not found:
        return missing("counters", "python -m benchmarks counters results/benchmarks/counters.json")
    body = []
    for loss, title in LOSSES.items():
        for way, word in WAYS.items():
            one = found.get(loss, {}).get(way)
            if one is not None:
                flops = (one["convolution_flops"] + one["matrix_flops"]) / 1e9 / found["batch"]
                kept = one["bytes"]["attack_pass"] / 2**20 / found["batch"]
                counts = tuple(f"{one[key]:,}" for key in COUNTED)
                body.append((f"{title}, {word}", *counts, f"{flops:.1f}", f"{kept:.1f}"))
    head = ("step", "conv forward", "input gradient", "weight gradient", "host waits", "operations", "GFLOP")
    networks = [one for one in record.values() if isinstance(one, dict) and "gates" in one]
    gates = [gate for one in networks for part in (one, one.get("compiled", {})) for gate in part.get("gates", [])]
    held = f"{sum(gate['holds'] for gate in gates)} of {len(gates)} gates hold."
    note = (
        f"PreActResNet-18, {found['steps']} attack steps; GFLOP and MiB per image, MiB kept for one attack pass. {held}"
    )
    return "\n\n".join([note, rows((*head, "MiB kept"), body), source("counters", record)])


def autoattack(records: Records) -> str:
    """CPU time of AutoAttack's engines."""
    found = records.autoattack.get("cpu_time")
    if not found:
        command = "python -m benchmarks autoattack checkpoints/cifar10_cpu /datasets results/benchmarks/autoattack.json"
        return missing("autoattack", command)
    engines = list(next(iter(found.values())))
    body = [
        (attack, *(f"{1 / one['to_upstream']:.2f}" for one in (figures[engine] for engine in engines)))
        for attack, figures in found.items()
    ]
    note = (
        "AutoAttack's engines, times as fast as upstream's (`upstream_frozen` is the same on a model whose parameters "
        "take no gradient):"
    )
    return "\n\n".join([note, rows(("attack", *engines), body), source("autoattack", records.autoattack)])


def steps(records: Records) -> str:
    """Training steps against the published way, and what bounds the ratio."""
    record = records.ratios
    if "steps" not in record:
        return missing("ratios", "python -m benchmarks ratios results/benchmarks/ratios.json")
    body = []
    for title, case in record["steps"].items():
        for name, one in case["ways"].items():
            wanted = wanted_of(name, one, record["wanted"])
            images = f"{one['images_per_second']:.3g}"
            body.append((f"{title}: {name}", images, ratio(one), verdict(one, wanted), *_parity(one["parity"])))
    head = ("step", "images/s", "times as fast (range)", "wanted", "loss", "attack's gradient", "weights' gradient")
    note = "How far from the published step in float64, relative: loss, gradient of the attack at a fixed image (and "
    note += "the share of its signs that differ), gradient of the weights. Rungs with bf16 are opt-in; all others are "
    note += "float32."
    return "\n\n".join([rows(head, body), note, bound(record), source("ratios", record)]).replace("\n\n\n\n", "\n\n")


def bound(record: dict[str, Any]) -> str:
    """Why no float32 rung can be much faster: what the convolutions alone take."""
    if "roofline" not in record:
        return ""
    found, title = record["roofline"], next(iter(record["steps"]))
    alone = found["convolutions_of_a_step"]
    ways = record["steps"][title]["ways"]
    theirs, ours = (alone[side]["milliseconds"] for side in ("published", "ours"))
    passes = [sum(alone[side][kind] for kind in KINDS) for side in ("published", "ours")]
    return (
        f"What bounds it, {title}: convolutions, timed one by one, take {theirs / 1e3:.2f} s of the published step's "
        f"{ways['published']['milliseconds'] / 1e3:.2f} s and {ours / 1e3:.2f} s of the eager "
        f"{ways['eager']['milliseconds'] / 1e3:.2f} s of ours. A step that took nothing but the latter would be "
        f"{ways['published']['milliseconds'] / ours:.2f} times as fast: {passes[0]} passes through the network become "
        f"{passes[1]} ({passes[0] / passes[1]:.2f}), and convolutions run at {fastest_convolution(found):.0f} GFLOP/s "
        "of this core at best in either."
    )


KINDS = ("forward", "input_gradient", "weight_gradient")


def fastest_convolution(roofline: dict[str, Any]) -> float:
    """GFLOP/s."""
    layouts = ("contiguous", "channels_last")
    return max(layer[layout][kind]["gflops"] for layer in roofline["layers"] for layout in layouts for kind in KINDS)


def parts(records: Records) -> str:
    """Attack, loss and loader."""
    record = records.ratios
    body = [*_attack(record), *_pairs(record), *_augmentation(record)]
    if not body:
        return missing("ratios", "python -m benchmarks ratios results/benchmarks/ratios.json")
    head = ("what, against what", "ms", "times as fast (range)", "wanted", "memory", "parity")
    return "\n\n".join([rows(head, body), _kl(record), source("ratios", record)])


def _attack(record: dict[str, Any]) -> list[tuple[str, ...]]:
    found = record.get("attack", {})
    if "left_out" in found:
        return [("PGD against torchattacks", "not installed", "", "", "", "")]
    body = []
    for name, one in found.get("ways", {}).items():
        if name != "torchattacks":
            title = f"PGD-{found['steps']} of {found['images']} images, {name}, against torchattacks"
            same = f"{one['parity']['pixels_equal']:.2%} of the pixels equal"
            body.append((title, f"{one['milliseconds']:.3g}", ratio(one), "", "", same))
    return body


def _pairs(record: dict[str, Any]) -> list[tuple[str, ...]]:
    body = []
    for classes, found in record.get("losses", {}).get("pairs", {}).items():
        theirs, wanted = found["ways"]["pairwise"]["peak_bytes"], record["wanted"].get(f"ikl, C = {classes}")
        for name, one in found["ways"].items():
            if name != "pairwise":
                words = name.replace("ikl", "IKL")
                title = f"{words}, from logits to gradients, C = {classes}, {found['images']} images, against pairs"
                memory = ""
                if "memory_ratio" in one:
                    memory = f"{size(theirs)} → {size(one['peak_bytes'])} (1/{one['memory_ratio']:.0f})"
                parity = f"gradients {max(one['parity'].values()):.0e} apart"
                body.append((title, f"{one['milliseconds']:.3g}", ratio(one), verdict(one, wanted), memory, parity))
    return body


def _augmentation(record: dict[str, Any]) -> list[tuple[str, ...]]:
    found = record.get("augmentation")
    if found is None:
        return []
    one = found["ways"]["device"]
    title = f"crop and flip of {found['images']} images, against PIL"
    same = f"{one['parity']['pixels_equal']:.2%} of the pixels equal"
    wanted = record["wanted"]["augmentation"]
    return [(title, f"{one['milliseconds']:.3g}", ratio(one), verdict(one, wanted), "", same)]


def _kl(record: dict[str, Any]) -> str:
    found = record.get("losses", {}).get("kl")
    if found is None:
        return ""
    step, alone = found["step"]["ways"], found["loss"]["ways"]
    low, high = step["kl again"]["range"]
    more = step["ikl"]["peak_bytes"] / step["kl"]["peak_bytes"] - 1
    return (
        f"IKL beside plain KL at C = {found['classes']}: a training step of {found['step']['images']} images with "
        f"IKL is {ratio(step['ikl'])} times as fast as one with KL, where the same step against itself gives "
        f"{step['kl again']['ratio']:.2f} ({low:.2f} to {high:.2f}). Its peak memory is {more:.1%} larger: "
        f"{size(step['ikl']['peak_bytes'])} against {size(step['kl']['peak_bytes'])} on a network for small images, "
        "whose passes keep little; what is added, the class prior's, does not grow with the network. The loss "
        f"alone takes {alone['ikl']['milliseconds']:.2f} ms against {alone['kl']['milliseconds']:.2f} ms and "
        f"{size(alone['ikl']['peak_bytes'])} against {size(alone['kl']['peak_bytes'])}."
    )


def wanted_of(name: str, one: dict[str, Any], wanted: dict[str, float]) -> float | None:
    """The mark of a rung of the training step; none for the rival, nor where numbers are other than float32's."""
    if name == "published" or one["precision"] != "float32":
        return None
    return wanted["step, compiled" if name.startswith("compile") else "step, eager"]


def ratio(one: dict[str, Any]) -> str:
    low, high = one["range"]
    return f"{short(one['ratio'])} ({short(low)} to {short(high)})"


def verdict(one: dict[str, Any], wanted: float | None) -> str:
    """The mark, and whether the median reaches it."""
    if wanted is None:
        return ""
    return f"{short(wanted)}: " + ("reached" if one["ratio"] >= wanted else "**missed**")


def short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def _parity(found: dict[str, float]) -> tuple[str, str, str]:
    signs = f"{1 - found['attack_gradient_same_sign']:.2%}"
    return f"{found['loss']:.0e}", f"{found['attack_gradient']:.0e} ({signs})", f"{found['weight_gradient']:.0e}"
