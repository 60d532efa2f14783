"""Pictures of the records: ladders of ratios with the marks that are wanted, and the roofline of a CPU core."""

import hashlib
import io
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from advtrain.report.style import DPI, LIGHT, WIDTH, styled
from benchmarks.page import gpu
from benchmarks.page.records import Records
from benchmarks.page.tables import short, wanted_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = "Attack, loss, loader, evaluation (logarithmic)"
EXACT, OTHER, MARK, COARSER, THEIRS = LIGHT.robust, LIGHT.clean, LIGHT.warning, LIGHT.extra, LIGHT.muted
ON_CPU = {EXACT: "float32", OTHER: "bfloat16 autocast, opt-in"}
ON_GPU = {EXACT: "float32", COARSER: "TF32", OTHER: "bfloat16 autocast", THEIRS: "published, other settings"}
BESIDE = ("× float32", "× tuned", "MFU")  # columns at the right of bars that have words for them
Bar = tuple[str, dict[str, Any], float | None, str]  # label, ratio and range, wanted, colour


def ladder(records: Records) -> bytes | None:
    """On a CPU: training steps against the published way, then everything else on a logarithmic scale."""
    groups = {**step_bars(records.ratios), **part_bars(records)}
    return _ladder(groups, "One CPU thread: times as fast as others", ON_CPU)


def gpu_ladder(records: Records) -> bytes | None:
    """On GPUs: training steps against the published way."""
    return _ladder(gpu_bars(records), "GPU: times as fast as the published step in float32", ON_GPU)


def _ladder(groups: dict[str, list[Bar]], title: str, colours: dict[Any, str]) -> bytes | None:
    if not groups:
        return None
    from matplotlib.figure import Figure

    heights = [len(bars) + 0.4 for bars in groups.values()]
    with styled(LIGHT):
        figure = Figure(figsize=(WIDTH, 0.25 * sum(heights) + 0.62 * len(groups) + 1.0), layout="constrained", dpi=DPI)
        figure.suptitle(title, fontsize=11, fontweight="bold")
        axes = figure.subplots(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0]
        for ax, (name, bars) in zip(axes, groups.items(), strict=True):
            _bars(ax, name, bars)
        shown = {bar[-1] for bars in groups.values() for bar in bars}
        _ladder_legend(figure, {colour: words for colour, words in colours.items() if colour in shown})
        return png(figure, digest(groups))


def step_bars(record: dict[str, Any]) -> dict[str, list[Bar]]:
    """Of each network and loss."""
    groups: dict[str, list[Bar]] = {}
    for title, case in record.get("steps", {}).items():
        bars = groups.setdefault(f"Step, {title}", [])
        for name, one in case["ways"].items():
            if name != "published":
                colour = EXACT if one["precision"] == "float32" else OTHER
                bars.append((name, one, wanted_of(name, one, record["wanted"]), colour))
    return groups


def part_bars(records: Records) -> dict[str, list[Bar]]:
    """Loss, loader, attack and evaluation."""
    record, bars = records.ratios, []
    wanted = record.get("wanted", {})
    for classes, found in record.get("losses", {}).get("pairs", {}).items():
        for name in ("ikl", "ikl, compiled"):
            if name in found["ways"]:
                title = f"{name.replace('ikl', 'IKL')}, C = {classes}, against pairs"
                bars.append((title, found["ways"][name], wanted.get(f"ikl, C = {classes}"), EXACT))
    if "augmentation" in record:
        found = record["augmentation"]["ways"]["device"]
        bars.append(("crop and flip, against PIL", found, wanted["augmentation"], EXACT))
    for name, found in record.get("attack", {}).get("ways", {}).items():
        if name in ("eager", "compile=step"):
            bars.append((f"PGD-{record['attack']['steps']}, {name}, against torchattacks", found, None, EXACT))
    whole = records.autoattack.get("cpu_time", {}).get("weighted by AutoAttack's iterations", {})
    for engine in ("exact", "fast"):
        if engine in whole:
            low, high = whole[engine]["range"]
            found = {"ratio": 1 / whole[engine]["to_upstream"], "range": [1 / high, 1 / low]}
            bars.append((f"AutoAttack, {engine}, against upstream", found, None, EXACT))
    return {PARTS: bars} if bars else {}


def gpu_bars(records: Records) -> dict[str, list[Bar]]:
    """Of each case of each record: the rungs that passed and were timed beside the published step.

    A published way is shown also where it failed the parity gate, and is marked so: without a fast rival ours would
    look better than it is.
    """
    groups: dict[str, list[Bar]] = {}
    titles = [title for record in records.gpu.values() for title in record["cases"]]
    for name, record in records.gpu.items():
        for title, case in record["cases"].items():
            mark, unique = gpu.mark_of(title), titles.count(title) == 1
            for rung, one in case.get("rungs", {}).items():
                found = one.get("times_as_fast_as", {}).get(gpu.RIVAL)
                colour, passed = _colour(rung), one["status"] == "timed"
                if found is None or rung == gpu.RIVAL or not (passed or colour == THEIRS):
                    continue
                figures = {"ratio": found["median"], "range": found["range"], "beside": _beside(one, found)}
                label = rung if passed else f"{rung} (failed parity)"
                bars = groups.setdefault(title if unique else f"{title} ({name})", [])
                bars.append((label, figures, mark[0][0] if mark and colour != THEIRS else None, colour))
    return groups


def _beside(one: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """The words of BESIDE for a rung."""
    tuned = one["times_as_fast_as"].get(gpu.TUNED)
    mfu = "" if one.get("mfu") is None else f"{one['mfu']:.1%}"
    return [f"{found['median']:.2f}", "" if tuned is None else f"{tuned['median']:.2f}", mfu]


def _colour(rung: str) -> Any:
    """By the numbers that a rung of the GPU script computes with."""
    if rung.startswith("published"):
        return THEIRS
    return {"float32, contiguous": EXACT, "+ channels_last": EXACT, "+ tf32": COARSER}.get(rung, OTHER)


def _bars(ax: "Axes", title: str, bars: list[Bar]) -> None:
    places = list(range(len(bars)))
    left = 0.25 if title == PARTS else 0.0
    ax.barh(places, [found["ratio"] - left for _, found, _, _ in bars], left=left, color=[bar[-1] for bar in bars])
    for place, (_, found, wanted, _) in zip(places, bars, strict=True):
        ax.plot(found["range"], [place, place], color=LIGHT.ink, linewidth=1.2, solid_capstyle="butt")
        if wanted is not None:
            ax.plot([wanted, wanted], [place - 0.46, place + 0.46], color=MARK, linewidth=2.6)
    (_columns if "beside" in bars[0][1] else _inside)(ax, bars, left)
    ax.set_yticks(places, [label for label, *_ in bars], fontsize=9)
    ax.tick_params(axis="x", labelsize=9)
    ax.invert_yaxis()
    ax.axvline(1, color=LIGHT.muted, linewidth=1)
    ax.grid(visible=False, axis="y")
    ax.set_title(title, fontsize=10, pad=5)
    largest = max(max(found["range"][1], wanted or 0) for _, found, wanted, _ in bars)
    if title == PARTS:
        ax.set_xscale("log")
        _plain(ax.xaxis)
        ax.set_xlim(left, largest * 1.3)
    else:
        ax.set_xlim(0, max(largest * 1.05, 2))


def _inside(ax: "Axes", bars: list[Bar], left: float) -> None:
    """Each ratio, in its bar."""
    for place, (_, found, _, colour) in enumerate(bars):
        ax.annotate(
            short(found["ratio"]),
            (left, place),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            fontweight="bold",
            color=LIGHT.ground if colour in (EXACT, THEIRS) else LIGHT.ink,
        )


def _columns(ax: "Axes", bars: list[Bar], _left: float) -> None:
    """Ratios and MFU at the right of the axes, where neither short bars nor marks are in their way."""
    for column, head in enumerate(BESIDE):
        across, weight = 50 + 46 * column, "bold" if column == 0 else "normal"
        ax.annotate(
            head, (1, 1), (across, 0), xycoords="axes fraction", textcoords="offset points", ha="right", fontsize=8,
            va="center",
        )  # fmt: skip
        for place, (_, found, _, _) in enumerate(bars):
            ax.annotate(
                found["beside"][column],
                (1, place),
                (across, 0),
                xycoords=ax.get_yaxis_transform(),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=9,
                fontweight=weight,
            )


def _plain(axis: Any, at: tuple[int, ...] = (1,)) -> None:
    """Numbers of a logarithmic axis as 1, 10, 100, at these digits."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=at))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def _ladder_legend(figure: "Figure", colours: dict[Any, str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Line2D([], [], color=LIGHT.ink, linewidth=1.2, label="range over the rounds")]
    handles.append(Line2D([], [], color=MARK, linewidth=2.4, label="wanted"))
    if len(colours) > 1:
        handles += [Patch(color=colour, label=words) for colour, words in colours.items()]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles) if len(handles) <= 4 else 3, fontsize=8
    )


def roofline(records: Records) -> bytes | None:
    """Attained GFLOP/s against FLOPs per byte of convolutions and attack steps, below the measured ceilings."""
    found = records.ratios.get("roofline")
    if found is None:
        return None
    from matplotlib.figure import Figure

    with styled(LIGHT):
        figure = Figure(figsize=(WIDTH, 4.6), layout="constrained", dpi=DPI)
        ax = figure.subplots()
        ax.set_xscale("log")
        ax.set_yscale("log")
        _ceilings(ax, found)
        for axis in (ax.xaxis, ax.yaxis):
            _plain(axis, (1, 2, 5))
        _layers(ax, found["layers"])
        for name, marker in {"published": "X", "ours, eager": "*"}.items():
            one = found["attack_steps"][name]
            place = (one["flops"] / one["bytes"], one["gflops"])
            style: Any = {"color": LIGHT.ours, "markeredgecolor": LIGHT.ground, "linestyle": "none", "zorder": 4}
            ax.plot(*place, marker=marker, markersize=13, label=f"attack step, {name}", **style)
        ax.set_xlabel("FLOPs per byte (of convolutions: each tensor once; of steps: all that operations touch)")
        ax.set_ylabel("GFLOP/s")
        ax.set_title(f"{found['model']}, {found['images']} images, one thread, float32")
        ax.legend(loc="lower right", fontsize=8)
        return png(figure, digest(found))


def _ceilings(ax: "Axes", found: dict[str, Any]) -> None:
    from benchmarks.page.tables import fastest_convolution

    ceilings = found["ceilings"]
    low, high = 1.0, 1000.0
    rates = {
        "fastest convolution": (fastest_convolution(found), "-"),
        "matrix product, float32": (ceilings["matrix_float32_gflops"], ":"),
        "matrix product, bfloat16": (ceilings["matrix_bfloat16_gflops"], "--"),
    }
    for name, (rate, style) in rates.items():
        knee = rate / ceilings["copy_gbytes"]
        ax.plot([knee, high], [rate, rate], style, color=LIGHT.ink, linewidth=1.3)
        ax.annotate(f"{name}, {rate:.0f}", (high, rate), (-2, 4), textcoords="offset points", ha="right", fontsize=8)
    top = max(rate for rate, _ in rates.values())
    ends = [low, top / ceilings["copy_gbytes"]]
    ax.plot(ends, [x * ceilings["copy_gbytes"] for x in ends], color=LIGHT.ink, linewidth=1.3)
    ax.annotate(
        f"copy, {ceilings['copy_gbytes']:.0f} GB/s", (low, low * ceilings["copy_gbytes"]), (6, 0),
        textcoords="offset points", fontsize=8, va="top",
    )  # fmt: skip
    ax.set_xlim(low, high)
    ax.set_ylim(0.5 * low * ceilings["copy_gbytes"], top * 1.6)


def _layers(ax: "Axes", layers: list[dict[str, Any]]) -> None:
    kinds = {
        ("contiguous", "forward"): ("s", LIGHT.extra, "none"),
        ("channels_last", "forward"): ("s", LIGHT.robust, LIGHT.robust),
        ("contiguous", "input_gradient"): ("^", LIGHT.extra, "none"),
        ("channels_last", "input_gradient"): ("^", LIGHT.robust, LIGHT.robust),
    }
    for (layout, kind), (marker, edge, face) in kinds.items():
        x = [layer["flops"] / layer["bytes"] for layer in layers]
        y = [layer[layout][kind]["gflops"] for layer in layers]
        label = f"convolutions, {kind.replace('_', ' ')}, {layout}"
        ax.plot(x, y, marker, color=edge, markerfacecolor=face, markersize=5.5, linestyle="none", label=label)


PICTURES: dict[str, Callable[[Records], bytes | None]] = {
    "performance_ladder.png": ladder,
    "performance_ladder_gpu.png": gpu_ladder,
    "performance_roofline.png": roofline,
}


def digest(shown: Any) -> str:
    """Names what a picture shows, so that a test can tell whether it is up to date on any version of Matplotlib."""
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def png(figure: "Figure", shown: str) -> bytes:
    """A PNG file without a date that carries the digest of what it shows."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None, "Description": shown})
    return file.getvalue()
