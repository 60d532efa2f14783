"""engine=fast: verdicts that are sound and statistically equal to AutoAttack's, from cheaper passes.

- Searches run in a cheaper arithmetic where the device has instructions for it (`arithmetic`): APGD in bfloat16 and the
  channels_last layout; FAB and Square, whose steps are decided by differences of logits that bfloat16's eight bits
  would hide, on GPUs in arithmetic of eleven bits, and in float32 elsewhere. (In a trial, of which no record was kept,
  FAB with gradients in bfloat16 was the weaker attack.) FAB has TF32, which is what PyTorch's convolutions do unless
  they are told not to, and with them most numbers that were published from such GPUs. It holds inside of a search
  alone. Square, which needs no gradients and so nothing of float32's range, has float16, whose products are as exact
  and cheaper; the last linear layer stays in float32.
- What such a search takes for broken counts when the eager float32 model agrees; where it does not, or where already
  the clean image is misclassified in that arithmetic alone, the image is attacked again in float32 at once.
- Images leave a batch when they are broken, and passes that can change nothing are left out (`Execution.shrink`).
- At the end APGD attacks the survivors with the lowest margins once more in float32 (`again` in run.py). FAB and Square
  do not: their search had eleven bits, APGD's eight.
- BatchNorm is folded into the convolutions before it, where the model can be traced.
- Passes may be compiled, on GPUs with CUDA graphs: worth it for hours of attacks, since every shape of a batch is
  compiled and recorded for itself. A compiled model meets none of the checks of the model.

Convolutions keep to algorithms that give the same bits twice, chosen by cuDNN's rules and not by its timings: else a
seed would not give the same images twice.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from advtrain.evaluation.autoattack.exact import Execution, Forward, Found, perturb
from advtrain.evaluation.autoattack.exact.objectives import margin
from advtrain.evaluation.autoattack.passes import passes, tf32
from advtrain.evaluation.autoattack.plan import AttackPlan
from advtrain.types import Images, Labels

SEARCHES_IN_BFLOAT16 = ("apgd-ce", "apgd-dlr", "apgd-t")
GPU_BLOCK = 25  # iterations between two looks at a GPU


class FastAttack:
    """Attacks batches of one model.

    Args:
        model: images to logits, eager, in eval mode, frozen, on `device`.
        device: of the model.
        compiled: whether its passes are compiled; not when None.
    """

    def __init__(self, model: nn.Module, device: torch.device, compiled: bool | None = None) -> None:
        self.model, self.device, self.compiled = model, device, bool(compiled)
        self.execution = Execution(block=1 if device.type == "cpu" else GPU_BLOCK, shrink=True)
        self._passes: dict[str, Forward] = {}

    def __call__(self, x: Images, y: Labels, plan: AttackPlan, seed: int) -> Found:
        """What the plan's attack makes of a batch; where it found nothing, the clean image."""
        chosen = arithmetic(plan.name, self.device)
        found = self._search(chosen, x, y, plan, seed)
        if chosen == "float32":
            return found
        mistaken = self._mistaken(chosen, found, x, y)
        if len(mistaken):
            again = self._search("float32", x[mistaken], y[mistaken], plan, seed)
            found.images[mistaken] = again.images
            if found.margins is not None and again.margins is not None:
                found.margins[mistaken] = again.margins
        return found

    def _search(self, chosen: str, x: Images, y: Labels, plan: AttackPlan, seed: int) -> Found:
        with _allowed(chosen):
            return perturb(self._in(chosen), x, y, plan, seed, self.execution)

    @torch.no_grad()
    def _mistaken(self, chosen: str, found: Found, x: Images, y: Labels) -> Tensor:
        """Indices of the images that the search gave up wrongly: broken, or misclassified before it, by its own
        arithmetic alone. Logits that are no numbers count as misclassified."""
        with _allowed(chosen):
            skipped = ~(margin(self._in(chosen)(x), y) > 0)
        moved = (found.images != x).flatten(1).any(1)
        broken = self.model(found.images).argmax(1) != y
        return ((moved | skipped) & ~broken).nonzero().flatten()

    def _in(self, chosen: str) -> Forward:
        """The passes of an arithmetic; made when they are first wanted, and never used in another one."""
        if chosen not in self._passes:
            dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(chosen, torch.float32)
            # On CPUs float32 is as fast in the usual layout.
            channels_last = chosen != "float32" or self.device.type == "cuda"
            self._passes[chosen] = passes(
                self.model, self.device, dtype, channels_last=channels_last, compiled=self.compiled
            )
        return self._passes[chosen]


def describe(device: torch.device, compiled: bool | None) -> dict[str, Any]:
    """How `FastAttack` searches on a device, for the record."""
    elsewhere = arithmetic("fab-t", device)
    groups = ((SEARCHES_IN_BFLOAT16, arithmetic("apgd-ce", device)), (("square",), arithmetic("square", device)))
    words = [f"{chosen} in {', '.join(names)}" for names, chosen in groups if chosen != elsewhere]
    return {
        "dtype": ", ".join((*words, f"{elsewhere} elsewhere")) if words else elsewhere,
        "compiled": bool(compiled),
        "cuda_graphs": bool(compiled) and device.type == "cuda",
    }


def arithmetic(attack: str, device: torch.device) -> str:
    """What an attack searches in: bfloat16, float16, tf32 or float32."""
    if not multiplies_in_bfloat16(device):
        return "float32"
    if attack in SEARCHES_IN_BFLOAT16:
        return "bfloat16"
    if device.type != "cuda":
        return "float32"
    return "float16" if attack == "square" else "tf32"  # GPUs have these instructions with bfloat16's


def multiplies_in_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for it: a rule and no timing, so that a seed gives the same twice."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _allowed(chosen: str) -> AbstractContextManager[None]:
    """Where a search computes: but for TF32, as exactly as the caller wants it."""
    return tf32() if chosen == "tf32" else nullcontext()
