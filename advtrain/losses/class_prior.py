"""The class-wise global information of IKL: what the model says, on average, about each class."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from advtrain import checks, distributed
from advtrain.losses.shapes import DenseLogits, Mask, hard_labels, one_hot

DenseLabels = Int[Tensor, "..."] | Float[Tensor, "..."]  # soft ones are refused in words


class ClassPrior(nn.Module):
    """Mean of softmax(natural logits / τ) over the training images of each class, one epoch behind.

    Uniform (1/C) during the first epoch; then, at each epoch's end, the means gathered during that epoch (over all
    processes) replace the old ones. A class that had no image keeps its row. (arXiv:2305.13948, section 3.3; the
    published code gathers the same means.)

    Args:
        num_classes: C.
        temperature: τ.

    Attributes:
        weights: (C, C) float32; row y is s̄_y. In the state dict.
        sums, counts: what this epoch has gathered so far, float64 so that the order of adding hardly matters. In the
            state dict, so that a run stopped in mid-epoch resumes with the same prior.
    """

    weights: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, *, num_classes: int, temperature: float = 4.0) -> None:
        super().__init__()
        self.num_classes = checks.integer("loss.num_classes", num_classes, low=2)
        self.temperature = checks.number("loss.temperature", temperature, above=0)
        self.register_buffer("weights", torch.full((num_classes, num_classes), 1 / num_classes))
        self.register_buffer("sums", torch.zeros(num_classes, num_classes, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.float64))

    def forward(self, y: DenseLabels, class_dim: int = 1) -> DenseLogits:
        """The rows of the labels `y`, shape (N,) → (N, C), each summing to 1.

        For dense outputs, shape (N, …) → the logits' shape, with the classes in dimension `class_dim` (1 or -1). Labels
        at masked positions must be class numbers, too: any will do, as 0 in `y.where(mask, 0)`.

        Raises:
            ValueError: the labels are soft.
        """
        rows = self.weights[hard_labels(y, "a class prior")]
        return rows if rows.ndim == 2 else rows.movedim(-1, class_dim)

    @torch.no_grad()
    def update(self, natural_logits: DenseLogits, y: DenseLabels, class_dim: int = 1, mask: Mask | None = None) -> None:
        """Adds a batch of this process: logits of shape (N, C) and labels of shape (N,).

        For dense outputs logits of shape (N, C, …) or (N, …, C), as `class_dim` says, and labels of shape (N, …), of
        which only positions where `mask` is True count.

        Raises:
            ValueError: the labels are soft.
        """
        y = hard_labels(y, "a class prior")
        if y.ndim > 1 or mask is not None:
            natural_logits = natural_logits.movedim(class_dim, -1)
            counted = torch.ones_like(y, dtype=torch.bool) if mask is None else mask
            natural_logits, y = natural_logits[counted], y[counted]
        probabilities = (natural_logits.to(self.sums.dtype) / self.temperature).softmax(1)
        members = one_hot(y, self.num_classes, self.sums.dtype)
        # One matrix product, in a fixed order: deterministic on GPUs, too. In place, since C × C may be large.
        self.sums.addmm_(members.T, probabilities)
        self.counts += members.sum(0)

    @torch.no_grad()
    def synchronise(self) -> None:
        """Moves what all processes gathered to the main one, so that its state dict is the whole state."""
        for gathered in (self.sums, self.counts):
            distributed.all_reduce_sum(gathered)
        if not distributed.is_main():
            self.forget_gathered()

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Puts this epoch's means in force and starts to gather anew."""
        distributed.all_reduce_sum(self.sums)
        distributed.all_reduce_sum(self.counts)
        seen = self.counts[:, None] > 0
        means = (self.sums / self.counts.clamp_min(1)[:, None]).to(self.weights.dtype)
        self.weights.copy_(torch.where(seen, means, self.weights))
        self.forget_gathered()

    @torch.no_grad()
    def forget_gathered(self) -> None:
        """Drops what this process gathered so far in this epoch."""
        self.sums.zero_()
        self.counts.zero_()
