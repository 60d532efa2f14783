"""Pictures of one record: how AutoAttack lowers the accuracy, what other radii and corruptions do, how training went.

Each function takes plain parts of evaluation.json or the lines of metrics.jsonl and returns a matplotlib figure; `png`
makes a file of it. The picture of the board is in `board_plot`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from advtrain.report.board_plot import board_plot
from advtrain.report.reading import eps_of, interval_of, label_of, radius_text
from advtrain.report.style import DARK, LIGHT, Theme, canvas, png, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["DARK", "LIGHT", "board_plot", "classes_plot", "corruptions_plot", "curve_plot", "descent_plot", "png",
           "training_plot"]  # fmt: skip

ROW = 0.3  # inches of a horizontal bar
FEW_CLASSES = 20  # up to so many are shown by name, of more only the order


def descent_plot(result: Mapping[str, Any], theme: Theme = LIGHT, name: str = "autoattack") -> "Figure":
    """The accuracy that is left after each attack, with the 95 % interval of the last.

    Args:
        result: "autoattack" or "screen" of a record, with "after": a row per attack, the first without any.
        theme: colours.
        name: which of the two.
    """
    rows = list(result["after"])
    names = ["no attack" if row["attack"] in ("none", "clean") else row["attack"] for row in rows]
    heights = [100 * row["accuracy"] for row in rows]
    with styled(theme):
        figure, axes = canvas(2.9)
        colors = [theme.clean, *[theme.robust] * (len(rows) - 1)]
        axes.bar(range(len(rows)), heights, width=0.62, color=colors)
        low, high = (100 * bound for bound in interval_of(result))
        last = heights[-1]
        axes.errorbar(
            len(rows) - 1, last, yerr=[[max(0, last - low)], [max(0, high - last)]], fmt="none", ecolor=theme.ours,
            elinewidth=1.2, capsize=4,
        )  # fmt: skip
        for i, height in enumerate(heights):
            fell = f"\n−{heights[i - 1] - height:.1f}" if i and heights[i - 1] > height else ""
            top = high if i == len(rows) - 1 else height
            axes.annotate(
                f"{height:.1f} %{fell}", (i, top), (0, 5), textcoords="offset points", ha="center", fontsize=9
            )
        axes.set_xticks(range(len(rows)), names)
        axes.set_ylabel("accuracy, %")
        axes.set_ylim(0, max(*heights, high) * 1.22 + 3)
        axes.grid(axis="x", visible=False)
        axes.set_title(f"{label_of(name, result).partition(' (')[0]}: what is left after each attack")
    return figure


def curve_plot(curve: Mapping[str, Any], threat_eps: float | None = None, theme: Theme = LIGHT) -> "Figure":
    """Robust accuracy over the radius, with the band of the 95 % intervals.

    Args:
        curve: "curve" of a record: norm, eps, accuracy and, where there is one, interval, a list each.
        threat_eps: radius of the threat model, marked by a line.
        theme: colours.
    """
    norm = str(curve.get("norm", "linf"))
    radii = [eps_of(eps) for eps in curve["eps"]]
    heights = [100 * value for value in curve["accuracy"]]
    order = sorted(range(len(radii)), key=radii.__getitem__)
    with styled(theme):
        figure, axes = canvas(3.3)
        x = [radii[i] for i in order]
        if curve.get("interval"):
            low, high = ([100 * curve["interval"][i][side] for i in order] for side in (0, 1))
            axes.fill_between(x, low, high, color=theme.robust, alpha=0.2, linewidth=0, label="95 % interval")
        axes.plot(
            x, [heights[i] for i in order], color=theme.robust, marker="o", markersize=4.5, label="robust accuracy"
        )
        if threat_eps is not None:
            axes.axvline(threat_eps, color=theme.ours, linewidth=1.2, linestyle="--", label="the threat model's ε")
        axes.set_xticks(x, [radius_text(eps, norm) for eps in x])
        if len(x) > 8:
            axes.tick_params(axis="x", labelrotation=45)
        axes.set_ylim(0, 102)
        axes.set_xlabel("ε")
        axes.set_ylabel("robust accuracy, %")
        axes.set_title(f"Robust accuracy over the {norm.capitalize()} radius")
        axes.legend(loc="upper right")
    return figure


def corruptions_plot(corruptions: Mapping[str, Any], theme: Theme = LIGHT) -> "Figure":
    """A bar per corruption: the mean over its severities, with the severities as points.

    Args:
        corruptions: of a record: "families", by name the accuracies of each severity.
        theme: colours.
    """
    families = {name: _severities(found) for name, found in corruptions["families"].items()}
    means = {name: sum(found) / len(found) for name, found in families.items() if found}
    names = sorted(means, key=means.__getitem__)
    with styled(theme):
        figure, axes = canvas(1.0 + ROW * len(names))
        axes.barh(range(len(names)), [means[name] for name in names], height=0.62, color=theme.clean)
        for row, name in enumerate(names):
            axes.plot(families[name], [row] * len(families[name]), "|", color=theme.ink, markersize=8, alpha=0.7)
            axes.annotate(f"{means[name]:.1f}", (101, row), va="center", fontsize=8.5, annotation_clip=False)
        axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, 100)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_xlabel("accuracy, %: bars are means, marks the severities")
        mean = corruptions.get("mean", corruptions.get("accuracy"))
        axes.set_title(f"Common corruptions{'' if mean is None else f': mean {100 * mean:.1f} %'}")
    return figure


def classes_plot(per_class: Mapping[str, Sequence[int]], theme: Theme = LIGHT, *, kind: str = "robust") -> "Figure":
    """Accuracy of each class, worst first; of many classes only the worst and the best by name.

    Args:
        per_class: by class, robust (or correct) images and images.
        theme: colours.
        kind: of the accuracy: robust or clean.
    """
    shares = {name: 100 * correct / n for name, (correct, n) in per_class.items() if n}
    names = sorted(shares, key=shares.__getitem__)
    color = theme.clean if kind == "clean" else theme.robust
    overall = 100 * sum(c for c, _ in per_class.values()) / max(1, sum(n for _, n in per_class.values()))
    with styled(theme):
        figure, axes = canvas(3.0)
        axes.bar(range(len(names)), [shares[name] for name in names], width=0.75, color=color)
        axes.axhline(overall, color=theme.ours, linewidth=1.2, linestyle="--", label=f"all: {overall:.1f} %")
        if len(names) <= FEW_CLASSES:
            axes.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 5 else 30, ha="center")
        else:
            axes.set_xticks([0, len(names) - 1], [f"worst: {names[0]}", f"best: {names[-1]}"])
            for label, side in zip(axes.get_xticklabels(), ("left", "right"), strict=True):
                label.set_horizontalalignment(side)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("class")
        axes.set_ylabel(f"{kind} accuracy, %")
        axes.set_title(f"{kind.capitalize()} accuracy by class")
        axes.legend(loc="upper left")
        axes.set_ylim(0, max([*shares.values(), 1.0]) * 1.15)
    return figure


def training_plot(
    metrics: Sequence[Mapping[str, Any]], collapse: Mapping[str, Any] | None = None, theme: Theme = LIGHT
) -> "Figure":
    """Held-out clean and robust accuracy over the epochs, and that on training batches: robust, or else clean.

    Args:
        metrics: lines of metrics.jsonl.
        collapse: of a record; its epoch is marked where one was detected.
        theme: colours.
    """
    from matplotlib.ticker import MaxNLocator

    attacked = any("robust_accuracy" in line for line in metrics)
    key, words = ("robust_accuracy", "robust") if attacked else ("clean_accuracy", "clean")
    training = (key, f"training: {words}", theme.muted, ":")
    with styled(theme):
        figure, axes = canvas(3.3)
        for key, words, color, style in (
            ("validation_clean", "held out: clean", theme.clean, "-"),
            ("validation_robust", "held out: robust", theme.robust, "-"),
            training,
        ):
            epochs, heights = by_epoch(metrics, key)
            marker = "o" if len(epochs) < 40 else None
            if epochs:
                axes.plot(
                    epochs, heights, style, color=color, marker=marker, markersize=3.5, linewidth=1.6, label=words
                )
        _mark_collapse(axes, collapse, theme)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(0, 102)
        axes.set_xlabel("epoch")
        axes.set_ylabel("accuracy, %")
        axes.set_title("Training")
        figure.legend(loc="outside lower center", ncols=4, columnspacing=1.6)
    return figure


def by_epoch(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Epochs and mean values, in percent, of the lines that have `key`."""
    found: dict[float, list[float]] = {}
    for line in metrics:
        if isinstance(line.get(key), int | float) and isinstance(line.get("epoch"), int | float):
            found.setdefault(line["epoch"], []).append(100 * line[key])
    epochs = sorted(found)
    return epochs, [sum(found[epoch]) / len(found[epoch]) for epoch in epochs]


def _mark_collapse(axes: "Axes", collapse: Mapping[str, Any] | None, theme: Theme) -> None:
    if collapse and collapse.get("detected") and collapse.get("epoch") is not None:
        words = f"collapse at epoch {collapse['epoch']}"
        axes.axvline(collapse["epoch"], color=theme.warning, linewidth=1.4, linestyle="--", label=words)


def _severities(found: Any) -> list[float]:
    """Accuracies in percent, mildest first, of {"1": 0.9, …}, of a list, or of a lone number."""
    if isinstance(found, Mapping):
        inner = found.get("severities", found.get("accuracy", found))
        if inner is not found:
            return _severities(inner)
        keys = sorted((key for key in found if re.fullmatch(r"\d+", str(key))), key=int)
        return [value for key in keys for value in _severities(found[key])]
    if isinstance(found, int | float):
        return [100.0 * found]
    return [value for item in found for value in _severities(item)]
