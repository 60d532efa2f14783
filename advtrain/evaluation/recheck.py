"""Checks the adversarial images of an earlier evaluation again, image by image, with the model alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from advtrain.attacks.norms import norm_named
from advtrain.evaluation.autoattack.outcome import MISCLASSIFIED, ROBUST
from advtrain.evaluation.modes import eager, exact_float32, frozen
from advtrain.evaluation.records import EVIDENCE
from advtrain.evaluation.verify import TIE, TOLERANCE, logits_of, margins
from advtrain.types import SettingError

NEEDED = ("indices", "images", "labels", "adversarial_images", "robust", "broken_by", "attack_names", "norm", "eps")


@dataclass(frozen=True)
class Recheck:
    """What the stored images say.

    Attributes:
        counts: images by what is claimed of them and confirmed: broken by each attack, misclassified without any,
            robust.
        claimed: the same, before it was checked.
        ties: verdicts that another machine's rounding turned: two logits tie.
        disagreements: a line for each image that does not bear its verdict out.
    """

    counts: Mapping[str, int]
    claimed: Mapping[str, int]
    ties: int
    disagreements: list[str]


def load_evidence(path: Path) -> dict[str, np.ndarray]:
    """The arrays of adversarial.npz.

    Raises:
        SettingError: there is no such file, or it is of a version that kept no verdict per image.
    """
    if not path.is_file():
        raise SettingError(f"verify: expected {EVIDENCE} of an evaluation, got no file {path}; check the path")
    with np.load(path, allow_pickle=False) as stored:
        missing = [name for name in NEEDED if name not in stored.files]
        if missing:
            got = f"only {', '.join(stored.files)}"
            raise SettingError(f"{path}: expected the array {missing[0]}, got {got}; evaluate again")
        return {name: stored[name] for name in stored.files}


def recheck(model: nn.Module, arrays: Mapping[str, np.ndarray], device: torch.device | str = "cpu") -> Recheck:
    """Confirms in float32 that every image lies in [0, 1] and in the ball and is classified as its verdict says.

    Args:
        model: images to logits, on `device`.
        arrays: of adversarial.npz.
        device: where the model is.
    """
    x, x_adv, y = (torch.from_numpy(arrays[name]) for name in ("images", "adversarial_images", "labels"))
    robust, broken_by = torch.from_numpy(arrays["robust"]), torch.from_numpy(arrays["broken_by"])
    model = eager(model)
    with frozen(model), exact_float32():
        parts = logits_of(model, x_adv, int(arrays["batch_size"]), device)
        logits = torch.cat([part.cpu() for part in parts])
    margin = margins(logits, y)
    tie = margin.abs() <= TIE * logits.abs().amax(1)
    turned = (logits.argmax(1) == y) != robust
    faults = {
        "outside of [0, 1]": ~((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1),
        "outside of the ball": ~_inside(x, x_adv, str(arrays["norm"]), float(arrays["eps"])),
        "classified otherwise": turned & ~tie,
        "changed, though misclassified without an attack": (broken_by == MISCLASSIFIED)
        & (x_adv != x).flatten(1).any(1),
        "with two verdicts that exclude each other": robust != (broken_by == ROBUST),
    }
    words = [_word(code, arrays["attack_names"]) for code in broken_by.tolist()]
    bad = torch.stack(list(faults.values())).any(0)
    disagreements = [
        f"image {int(arrays['indices'][i])}, {words[i]}: {', '.join(name for name, at in faults.items() if at[i])} "
        f"(margin {margin[i]:.4g})"
        for i in bad.nonzero().flatten().tolist()
    ]
    names = [
        _word(code, arrays["attack_names"]) for code in (*range(len(arrays["attack_names"])), MISCLASSIFIED, ROBUST)
    ]
    claimed = {name: words.count(name) for name in names}
    good = [word for word, wrong in zip(words, bad.tolist(), strict=True) if not wrong]
    return Recheck({name: good.count(name) for name in names}, claimed, int((turned & tie).sum()), disagreements)


def plain_check(path: Path, norm: str, batch_size: int) -> str:
    """Three lines of plain PyTorch that check the same, for anyone who has the model in `model`, numpy and torch."""
    order = {"linf": 'float("inf")', "l2": "2", "l1": "1"}[norm]
    adversarial = 'e["adversarial_images"]'
    return "\n".join(
        (
            f"e = {{k: torch.from_numpy(v) for k, v in numpy.load({str(path)!r}).items() "
            'if v.ndim and v.dtype.kind in "bif"}',
            f"with torch.no_grad(): wrong = torch.cat([model(x).argmax(1) for x in {adversarial}.split({batch_size})]) "
            '!= e["labels"]',
            f'print(int((wrong == e["robust"]).sum()), "verdicts differ; distance at most", '
            f'float(({adversarial} - e["images"]).flatten(1).norm({order}, 1).max()))',
        )
    )


def _inside(x: Tensor, x_adv: Tensor, norm: str, eps: float) -> Tensor:
    parts = zip(x.split(1000), x_adv.split(1000), strict=True)
    distance = torch.cat([norm_named(norm).length(b.double() - a.double()).flatten() for a, b in parts])
    return distance <= eps + TOLERANCE * max(1.0, eps)


def _word(code: int, attack_names: np.ndarray) -> str:
    if code == ROBUST:
        return "robust"
    if code == MISCLASSIFIED:
        return "misclassified without an attack"
    return f"broken by {attack_names[code]}"
