"""Does the verdict depend on the last digits?"""

import torch

from advtrain.evaluation.masking.check import Check
from advtrain.evaluation.masking.iterative import share
from advtrain.evaluation.masking.subject import Subject, logits_of
from advtrain.evaluation.masking.whitebox import WhiteBox

CHANGED = 0.05
SOURCE = (
    "Kalamkar et al., arXiv:1905.12322: bfloat16 leaves the accuracy of networks as it is; Jia & Rinard, "
    "arXiv:2003.03021: robustness that rests on rounding can be broken; the 5 % are ours; passes up to 5 % of the "
    "verdicts and what a binomial test at 0.001 adds"
)


def precision(subject: Subject, white: WhiteBox) -> Check:
    """Verdicts on correct clean images and on adversarial ones that change when all is computed in bfloat16.

    The images are rounded to bfloat16, too: by at most half a grey level of 255. Fine steps of the input and logits
    that differ in their last digits do not survive that.
    """
    broken = subject.clean & ~(white.found == subject.x).flatten(1).all(1)
    images = torch.cat([subject.x[subject.clean], white.found[broken]])
    labels = torch.cat([subject.y[subject.clean], subject.y[broken]])
    if not len(labels):
        return Check("precision", None, None, None, "no image is classified correctly", SOURCE)
    exact = logits_of(subject.model, images, subject.batch_size, subject.device)
    kind = torch.device(subject.device).type
    try:
        with torch.autocast(kind, dtype=torch.bfloat16):
            rounded = logits_of(subject.model, images.bfloat16().float(), subject.batch_size, subject.device)
    except RuntimeError as error:
        problem = str(error).splitlines()[0]
        return Check("precision", None, None, None, f"the model does not run in bfloat16: {problem}", SOURCE)
    right, still = (logits.argmax(1) == labels for logits in (exact, rounded))
    count = int((right != still).sum())
    largest = float((exact - rounded).abs().amax() / exact.abs().amax().clamp_min(torch.finfo(torch.float32).tiny))
    reason = f"{count} of {len(labels)} verdicts change in bfloat16; logits by up to {largest:.1%} of the largest"
    return share("precision", count, len(labels), CHANGED, reason, SOURCE)
