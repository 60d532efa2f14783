"""Square Attack (Andriushchenko et al., arXiv:1912.00049; L1: Croce & Hein, arXiv:2103.01208), with upstream's numbers.

What it leaves out of upstream's work: the cross-entropy nobody reads, operations outside of the window that a query
changes, patterns and norms that were computed before, and everything that makes the host wait for a GPU within
`Execution.block` queries.
"""

import torch
from torch import Tensor

from advtrain.evaluation.autoattack.exact.draws import Draws
from advtrain.evaluation.autoattack.exact.execution import UPSTREAM, Execution, Forward, Found
from advtrain.evaluation.autoattack.exact.objectives import margin
from advtrain.evaluation.autoattack.exact.per_image import wide
from advtrain.evaluation.autoattack.exact.squares import MOVES, Moves
from advtrain.evaluation.autoattack.plan import AttackPlan
from advtrain.types import Images, Labels, SettingError


def perturb(
    forward: Forward, x: Images, y: Labels, plan: AttackPlan, seed: int, execution: Execution = UPSTREAM
) -> Found:
    """Square on one batch; on a CPU and with execution.block = 1 the images are upstream's, bit for bit.

    Images that are broken leave the batch, as in upstream: here after the block in which that happened. In L2 and L1
    the random numbers depend on how many images are left; a block therefore changes nothing more after the first image
    was broken in it, and the rest of its queries are drawn anew.

    Args:
        forward: images to logits, deterministic; called without gradients.
        x: images in [0, 1], contiguous; those that are not classified as `y` are returned as they are.
        y: labels.
        plan: square.
        seed: of the random draws; the global generators stay as they are.
        execution: how it runs. With `shrink` the last pass, which only confirms what was found, is left out.

    Raises:
        SettingError: the images are too small for the start in L2 and L1, or the plan is not Square's.
    """
    if plan.name != "square" or plan.norm not in MOVES:
        raise SettingError(f"Square: expected square in linf, l2 or l1, got {plan.name} in {plan.norm}; choose so")
    if plan.iterations < 1:
        raise SettingError(f"square: expected 1 or more queries, got {plan.iterations}; give more")
    x, y = x.detach().float().contiguous(), y.detach().long()
    with torch.no_grad():
        robust = forward(x).max(1)[1] == y
        draws = Draws(seed, x.device)
        images, closest = x.clone(), x.new_full((len(x),), torch.inf)
        for _ in range(plan.restarts):
            rows = robust.nonzero().squeeze(1)
            if not len(rows):
                break
            part = x[rows]
            moves = MOVES[plan.norm](part, plan.eps, draws)
            final, margins = _search(forward, moves, y[rows], plan.iterations, execution.block)
            broken = margins <= 0 if execution.shrink else forward(final).max(1)[1] != y[rows]
            robust[rows] = ~broken
            images[rows] = torch.where(wide(broken), final, part)
            closest[rows] = torch.minimum(closest[rows], margins)
    return Found(images, images.new_zeros(0, dtype=torch.int64), closest)


def _search(forward: Forward, moves: Moves, y: Tensor, queries: int, block: int) -> tuple[Tensor, Tensor]:
    """Random search; returns the last accepted images and their margins."""
    final, margins = moves.best.clone(), margin(forward(moves.best), y)
    rows, best = torch.arange(len(y), device=y.device), margins.clone()
    if bool((margins < 0).all()):
        return final, margins
    done, length = 0, block
    while done < queries:
        stay = (best > 0).nonzero().squeeze(1)  # the host looks once per block
        if len(stay) < len(rows):
            final[rows], margins[rows] = moves.best, best
            moves.select(stay)
            rows, best, y = rows[stay], best[stay], y[stay]
            length = 1 if moves.depends_on_rest else block
            if not len(stay):
                break
        done, best = _block(forward, moves, y, best, done, min(length, queries - done))
        length = min(2 * length, block)
    final[rows], margins[rows] = moves.best, best
    return final, margins


def _block(forward: Forward, moves: Moves, y: Tensor, best: Tensor, first: int, length: int) -> tuple[int, Tensor]:
    """`length` queries, from number `first` on; returns the number of the next one and the margins."""
    moves.draw(first, length)
    counted = torch.zeros((), dtype=torch.int64, device=y.device)
    for query in range(length):
        open_images = best > 0
        if moves.depends_on_rest and length > 1:
            open_images = open_images.all().expand_as(best)
            counted += open_images[0]
        margins = margin(forward(moves.propose(query)), y)
        better = (margins < best) & open_images if length > 1 else margins < best
        moves.settle(better)
        best = torch.where(better, margins, best)
    valid = int(counted) if moves.depends_on_rest and length > 1 else length
    moves.drawn(valid)
    return first + valid, best
