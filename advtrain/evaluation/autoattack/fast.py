"""engine=fast: verdicts that are sound and statistically equal to AutoAttack's, from cheaper passes.

- APGD searches in bfloat16, where the device multiplies in it, and in the channels_last layout; FAB and Square, whose
  steps are decided by differences of logits that bfloat16's eight bits would hide, search in float32. (In a
  trial, of which no record was kept, FAB with gradients in bfloat16 was the weaker attack.)
- What bfloat16 takes for broken counts when the eager float32 model agrees; where it does not, the image is attacked
  again in float32 at once.
- Images leave a batch when they are broken, and passes that can change nothing are left out (`Execution.shrink`).
- At the end the survivors with the lowest margins are attacked once more in float32 (`again` in run.py).
- BatchNorm is folded into the convolutions before it, where the model can be traced.
- On a GPU passes are compiled and replayed as CUDA graphs. A compiled model meets none of the checks of the model.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from advtrain.evaluation.autoattack.exact import Execution, Forward, Found, perturb
from advtrain.evaluation.autoattack.plan import AttackPlan
from advtrain.types import Images, Labels, Logits

SEARCHES_IN_BFLOAT16 = ("apgd-ce", "apgd-dlr", "apgd-t")
BUCKET = 64  # compiled passes take batches of multiples of it, so that few shapes are compiled and recorded
GPU_BLOCK = 25  # iterations between two looks at a GPU


class FastAttack:
    """Attacks batches of one model.

    Args:
        model: images to logits, eager, in eval mode, frozen, on `device`.
        device: of the model.
        compiled: whether its passes are compiled; on GPUs only when None.
    """

    def __init__(self, model: nn.Module, device: torch.device, compiled: bool | None = None) -> None:
        self.model = model
        compiled = device.type == "cuda" if compiled is None else compiled
        self.execution = Execution(block=1 if device.type == "cpu" else GPU_BLOCK, shrink=True)
        self.bfloat16 = multiplies_in_bfloat16(device)
        # On CPUs float32 is as fast in the usual layout.
        self._float32 = passes(model, device, torch.float32, channels_last=device.type == "cuda", compiled=compiled)
        self._search = self._float32
        if self.bfloat16:
            self._search = passes(model, device, torch.bfloat16, channels_last=True, compiled=compiled)

    def __call__(self, x: Images, y: Labels, plan: AttackPlan, seed: int) -> Found:
        """What the plan's attack makes of a batch; where it found nothing, the clean image."""
        if not self.bfloat16 or plan.name not in SEARCHES_IN_BFLOAT16:
            return perturb(self._float32, x, y, plan, seed, self.execution)
        found = perturb(self._search, x, y, plan, seed, self.execution)
        with torch.no_grad():
            broken = self.model(found.images).argmax(1) != y
        mistaken = ((found.images != x).flatten(1).any(1) & ~broken).nonzero().flatten()
        if len(mistaken):
            again = perturb(self._float32, x[mistaken], y[mistaken], plan, seed, self.execution)
            found.images[mistaken] = again.images
        return found


def describe(device: torch.device, compiled: bool | None) -> dict[str, Any]:
    """How `FastAttack` searches on a device, for the record."""
    gpu = device.type == "cuda"
    compiled = gpu if compiled is None else compiled
    searched = ", ".join(SEARCHES_IN_BFLOAT16)
    return {
        "dtype": f"bfloat16 in {searched}, float32 elsewhere" if multiplies_in_bfloat16(device) else "float32",
        "compiled": compiled,
        "cuda_graphs": compiled and gpu,
    }


def multiplies_in_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for it: a rule and no timing, so that a seed gives the same twice."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def passes(
    model: nn.Module, device: torch.device, dtype: torch.dtype, *, channels_last: bool, compiled: bool
) -> Forward:
    """Images to float32 logits through a copy of `model` that computes in `dtype`.

    Args:
        model: frozen, in eval mode, float32.
        device: of the model.
        dtype: float32, or bfloat16 for autocast.
        channels_last: memory layout of weights and images.
        compiled: whether the copy is compiled, on GPUs with CUDA graphs.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    body: Any = folded(model).to(memory_format=layout)  # pyright: ignore[reportCallIssue]

    def forward(x: Images) -> Logits:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            return body(x.contiguous(memory_format=layout)).float()

    if not compiled:
        return forward
    if device.type != "cuda":
        return in_buckets(torch.compile(forward, dynamic=False))
    return in_buckets(torch.compile(forward, dynamic=False, mode="reduce-overhead"))


def folded(model: nn.Module) -> nn.Module:
    """A copy of a frozen model in eval mode, in which every BatchNorm behind a convolution is part of its weights. A
    plain copy of models that cannot be traced."""
    try:
        return fuse(model).eval().requires_grad_(False)
    except Exception:  # whatever tracing meets in foreign code; the copy computes the same
        return copy.deepcopy(model)


def in_buckets(forward: Forward) -> Forward:
    """`forward` on batches filled up to a multiple of BUCKET with copies of the first image.

    The product and the copy at the ends keep what a CUDA graph wrote: the next replay overwrites its logits and its
    gradient, while an attack holds on to both.
    """

    def padded(x: Images) -> Tensor:
        n = len(x)
        missing = -n % BUCKET
        filled = torch.cat((x, x[:1].expand(missing, *x.shape[1:]))) if missing else x
        return forward(filled * 1.0)[:n].clone()

    return padded
