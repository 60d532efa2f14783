"""The parity gate: whether passes in other numerics, or run in another way, are still those of the run.

On one real training batch, with the run's own model, loss and attack, a candidate is held against plain float32 (or
float64), one operation after the other. Everything is compared at the same points: the gradient of the attack's
objective at a point of its path, and that of the training loss at the adversarial images that the reference found. The
images that the candidate itself ends with are not compared, since steps by sign turn the last bit of a gradient into a
whole step; asked is only whether its attack gets as far.

Nothing stays behind: weights, buffers, class prior, gradients, modes and random numbers are what they were.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from advtrain import distributed
from advtrain.attacks.ascent import values
from advtrain.attacks.norms import norm_named
from advtrain.engine.acceleration.passes import OFF, Passes
from advtrain.engine.acceleration.scene import Scene, Seen, observe, untouched
from advtrain.engine.batchnorm import batchnorm_layers, recompute_statistics
from advtrain.engine.modes import attack_mode
from advtrain.engine.numerics import Numerics, untried_kernels
from advtrain.types import Images

# Unit roundoff u: half the distance from 1 to the next number. Of TF32 and bfloat16 that of the factors; sums are
# float32 there.
ROUNDOFF = {"fp64": 2.0**-53, "fp32": 2.0**-24, "tf32": 2.0**-11, "bf16": 2.0**-9}

# The bounds, for roundoff u and d weighted layers: rounding errors of layers add up like a random walk, to u √d.
SMOOTH = 16.0  # of what depends smoothly on the passes: SMOOTH · u √d; at most 1.1 was seen
KINKS = 40.0  # of gradients, which jump where a ReLU's input changes sign: KINKS · √(u √d); at most 19 was seen
COARSEST = 0.75**0.5  # sin 60°: a gradient with a smaller relative error still gives half of the ascent or more
REACH = 0.15  # of a chaotic path, whose end differs by some percent when the last bit does
OUTSIDE = 1e-3  # of a radius; float32 near 1 has steps of 2e-6 of 8/255
FEWEST = 8  # images of each view: fewer say nothing


@dataclass(frozen=True)
class Figures:
    """How far a candidate is from the reference; 0 everywhere when they agree, None where there is nothing to compare.

    Attributes:
        gradient: ‖g - g₀‖ / ‖g₀‖ of the objective's gradient at the fixed point.
        climb: 1 - ⟨g₀, d⟩ / ⟨g₀, d₀⟩ of the step d that the attack takes from there: the share of the ascent, to first
            order, that is lost. For steps by sign it is twice the share of signs that differ, weighted by |g₀|.
        reach: 1 - (v - v_x) / (v₀ - v_x), v the objective at the end of the attack, v_x at the images: the share of the
            whole attack's success that is lost. Negative where it went further.
        outside: how far beyond the radius of the attack its images lie, as a fraction of the radius.
        weights: ‖g - g₀‖ / ‖g₀‖ of the training loss's gradient, all parameters together.
        loss: |l - l₀| / max(1, |l₀|) of the training loss.
        buffers: ‖b - b₀‖ / ‖b₀‖ of BatchNorm's statistics after the training pass.
    """

    gradient: float | None
    climb: float | None
    reach: float | None
    outside: float | None
    weights: float
    loss: float
    buffers: float | None


def bounds(word: str, depth: int) -> Figures:
    """The largest figures with which a candidate passes; see "What starts a run" in docs/performance.md.

    Args:
        word: of `ROUNDOFF`, the coarsest numbers of the candidate.
        depth: of the model, in weighted layers.
    """
    rounding = ROUNDOFF[word] * depth**0.5
    sine = min(COARSEST, KINKS * rounding**0.5)
    lost = sine**2 / (1 + (1 - sine**2) ** 0.5)  # 1 - cosine, of the largest angle that such an error makes
    smooth = SMOOTH * rounding
    return Figures(sine, lost, REACH, OUTSIDE, weights=sine, loss=smooth, buffers=smooth)


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a candidate.

    Attributes:
        figures: the largest of all processes.
        limits: the bounds.
        images: how many the figures are of, in one process.
    """

    figures: Figures
    limits: Figures
    images: int

    @property
    def failed(self) -> list[str]:
        """The names of the figures above their bound; NaN is above every bound."""
        found, limits = asdict(self.figures), asdict(self.limits)
        return [name for name, value in found.items() if value is not None and not value <= limits[name]]

    @property
    def passed(self) -> bool:
        return not self.failed

    def reason(self) -> str:
        """The figures that are too large, in words."""
        found, limits = asdict(self.figures), asdict(self.limits)
        return ", ".join(f"{name} {found[name]:.2g} above {limits[name]:.2g}" for name in self.failed)

    def record(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "figures": _plain(self.figures),
            "bounds": _plain(self.limits),
            "images": self.images,
        }


def judge(scene: Scene, passes: Passes, numerics: Numerics) -> Verdict:
    """Whether `passes` in `numerics` may stand for the run's own passes in plain float32 (float64 for float64).

    All processes call it alike, each with its own rows.

    Args:
        scene: left as it is.
        passes: of the scene's model.
        numerics: in which they run.
    """
    exact = numerics.exact()
    try:
        with untouched(scene.model, scene.loss):
            with untried_kernels():
                settle(scene.model, scene.x)
                reference = observe(scene, Passes(scene.model, OFF), exact)
            got = observe(scene, passes, numerics, reference)
            with untried_kernels():
                found = _over_processes(figures(scene, reference, got, exact), scene.x.device)
    except torch.OutOfMemoryError:  # float32 needs more memory than what the run was sized for
        if len(scene.x) // scene.rows.views < 2 * FEWEST:
            raise
        return judge(scene.half(), passes, numerics)
    depth = sum(p.dim() > 1 for p in scene.model.parameters())
    return Verdict(found, bounds(numerics.word, depth), len(scene.x))


def settle(model: nn.Module, x: Images) -> None:
    """Gives a fresh model's BatchNorm the statistics of `x`.

    Attacks run in eval mode, and means of 0 with variances of 1 belong to no network that is trained: the first steps
    replace them.
    """
    layers = batchnorm_layers(model)
    if all(layer.num_batches_tracked is not None and layer.num_batches_tracked == 0 for _, layer in layers):
        recompute_statistics(model, [x])


def figures(scene: Scene, reference: Seen, got: Seen, exact: Numerics) -> Figures:
    """Compares what a candidate saw with what the reference did."""
    gradient = climb = reach = outside = None
    if scene.attack is not None and reference.point is not None and reference.gradient is not None:
        if got.gradient is not None:
            gradient = _distance([got.gradient], [reference.gradient])
        slope, point = reference.gradient.double(), reference.point
        ours, its = (
            float((slope * (seen.moved - point)).sum()) if seen.moved is not None else 0.0 for seen in (got, reference)
        )
        climb = _lost(ours, its)
        reach = _lost(*_gains(scene, [got.adversarial, reference.adversarial], exact))
        outside = _outside(scene, got.adversarial)
    return Figures(
        gradient=gradient,
        climb=climb,
        reach=reach,
        outside=outside,
        weights=_distance(got.weights, reference.weights),
        loss=float((got.loss.double() - reference.loss.double()).abs() / reference.loss.double().abs().clamp_min(1)),
        buffers=_distance(got.buffers, reference.buffers) if reference.buffers else None,
    )


def _outside(scene: Scene, adversarial: Images) -> float | None:
    attack = scene.attack
    if attack is None or not 0 < attack.radius < float("inf"):
        return None
    longest = norm_named(attack.norm).length(adversarial - scene.x).max()
    return max(0.0, float(longest) / attack.radius - 1)


def _gains(scene: Scene, ends: list[Images], exact: Numerics) -> list[float]:
    """How much the mean of the objective grows from the images to each of `ends`, by the bare model in `exact`."""
    with untouched(scene.model, scene.loss), exact.products(), attack_mode(scene.model, scene.attack_batchnorm):
        objective = scene.loss.inner(scene.model, scene.x, scene.y, *scene.taught())
        first, *others = (float(values(objective, x).double().mean()) for x in (scene.x, *ends))
    return [other - first for other in others]


def _lost(ours: float, its: float) -> float | None:
    """The share of `its` gain that is missing in `ours`; None where the reference gained nothing either."""
    return 1 - ours / its if its > 0 or its != its else None


def _distance(ours: list[Tensor], its: list[Tensor]) -> float:
    """‖ours - its‖ / ‖its‖ over all tensors together, in float64."""
    apart = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(ours, its, strict=True))
    whole = sum(float(b.double().square().sum()) for b in its)
    return 0.0 if apart == 0 else (apart / whole) ** 0.5 if whole else float("inf")


def _over_processes(found: Figures, device: torch.device) -> Figures:
    """The largest figures of all processes."""
    own = [-torch.inf if value is None else value for value in asdict(found).values()]
    # NaN would get lost in a maximum.
    values = torch.tensor(own, dtype=torch.float64, device=device).nan_to_num(nan=torch.inf, neginf=-torch.inf)
    largest = distributed.all_reduce_max(values).tolist()
    return Figures(*(None if value == -torch.inf else value for value in largest))  # pyright: ignore[reportArgumentType]


def _plain(figures: Figures) -> dict[str, Any]:
    """For JSON, which has no infinity."""
    return {k: str(v) if v in (float("inf"), float("-inf")) else v for k, v in asdict(figures).items()}
