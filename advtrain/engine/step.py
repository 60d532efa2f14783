"""One optimiser step of adversarial training."""

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from advtrain import distributed
from advtrain.data.base import Batch
from advtrain.engine.acceleration import OFF, Acceleration, Passes
from advtrain.engine.free import WarmStart
from advtrain.engine.modes import attack_mode, buffers_kept, evaluating
from advtrain.engine.numerics import Numerics
from advtrain.engine.sharding import REPLICATED, Sharding
from advtrain.engine.weight_perturbations import WeightPerturbation
from advtrain.losses import Distillation, Loss, taught_beside
from advtrain.random import BatchRows, seed_layers, seeded_generator, stream_seed
from advtrain.types import Attack, Images, Logits, Parts, Targets


class OuterPass(nn.Module):
    """The outer loss as one forward of one module, so that DDP sees x and x' in a single pass before the backward."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model  # compiled or bare; its parameters are the same
        # In a list, so that the class prior is not the module's buffer: DDP would overwrite each process's share.
        self._loss = [loss]

    def forward(self, x: Images, x_adv: Images, y: Targets, *taught: Logits) -> tuple[Tensor, Parts]:
        return self._loss[0].outer(self.model, x, x_adv, y, *taught)


@dataclass(frozen=True)
class Piece:
    """Rows of the batch that go through the model together: with two views, those of view 1, then those of view 2."""

    x: Images
    y: Targets
    source: BatchRows
    share: float  # of this process's rows
    taught: tuple[Logits, ...] = ()  # for a loss that holds a teacher: what that says of x; of x', too, where needed


class TrainingStep:
    """Makes the adversarial images, computes the gradient and moves the weights.

    Args:
        model: the bare model; attacks run on it, not on its DDP wrapper.
        loss: what is maximised inside and minimised outside.
        optimizer: over the model's parameters.
        numerics: device, dtype, autocast and layout.
        batch_size: images per step over all processes.
        accumulation: passes per process and step.
        attack_batchnorm: "eval" or "train"; see `attack_mode`.
        clip_norm: largest gradient norm; None for no clipping.
        seed: of the run; names the random starts together with epoch and step.
        acceleration: how the passes are run.
        sharding: how the model, which is spread already, lies on the processes.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        *,
        numerics: Numerics,
        batch_size: int,
        accumulation: int,
        attack_batchnorm: str,
        clip_norm: float | None,
        seed: int,
        acceleration: Acceleration = OFF,
        sharding: Sharding = REPLICATED,
    ) -> None:
        loss.check_accumulation(accumulation)
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.numerics = numerics
        self.batch_size, self.accumulation = batch_size, accumulation
        self.attack_batchnorm, self.clip_norm, self.seed = attack_batchnorm, clip_norm, seed
        self._passes = Passes(model, acceleration, loss.teacher)
        self._sharding = sharding
        self._replica = sharding.replica(OuterPass(self._passes.trained, loss), numerics.device)

    @property
    def passes(self) -> Passes:
        """What runs in place of the bare model."""
        return self._passes

    def __call__(
        self, batch: Batch, attack: Attack | None, perturbation: WeightPerturbation, epoch: int, step: int
    ) -> Parts:
        """Takes the step and returns the loss terms and accuracies on this process's rows, left on the device.

        Args:
            batch: this process's rows.
            attack: makes the adversarial images; None trains on the natural ones.
            perturbation: of the weights, during the loss.
            epoch, step: where training is; with the seed they name the random starts.
        """
        # Whatever in the model draws from torch's global generator (dropout) is named by the step, too.
        seed_layers(stream_seed(self.seed, "model", epoch, step, distributed.rank()), self.numerics.device)
        with self._passes.teaching():
            parts = self._gradients(batch, attack, perturbation, epoch, step)
        if isinstance(attack, WarmStart):
            attack.after_backward()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        return parts

    def _gradients(
        self, batch: Batch, attack: Attack | None, perturbation: WeightPerturbation, epoch: int, step: int
    ) -> Parts:
        pieces = self._pieces(batch, epoch, step)
        taught = [torch.cat(said) for said in zip(*(piece.taught for piece in pieces), strict=True)]
        self.loss.start_batch(torch.cat([batch.y] * len(batch.views)), *taught)
        adversarial = self._adversarial(pieces, attack)
        pieces = [self._answered(piece, x_adv) for piece, x_adv in zip(pieces, adversarial, strict=True)]
        self.optimizer.zero_grad(set_to_none=True)
        with perturbation(self.model, lambda: self._ascent(pieces, adversarial)):
            return self._accumulate(pieces, adversarial)

    def _pieces(self, batch: Batch, epoch: int, step: int) -> list[Piece]:
        n, views = len(batch.y), batch.views
        bounds = [n * i // self.accumulation for i in range(self.accumulation + 1)]
        pieces = []
        for start, stop in itertools.pairwise(bounds):
            # Every piece draws from the start of the same stream and keeps its own rows: see advtrain.random.
            generator = seeded_generator(self.seed, "attack", epoch, step, device=self.numerics.device)
            rows = slice(batch.rows.start + start, batch.rows.start + stop)
            x = self.numerics.images(torch.cat([view[start:stop] for view in views]))
            y = torch.cat([batch.y[start:stop]] * len(views))
            source = BatchRows(generator, self.batch_size, rows, len(views))
            said = None if batch.taught is None else batch.taught[start:stop]
            pieces.append(Piece(x, y, source, (stop - start) / n, self._taught(x, said)))
        return pieces

    def _taught(self, x: Images, known: Logits | None) -> tuple[Logits, ...]:
        """The teacher is asked of x here alone, once for the attack, the loss and whatever perturbs the weights."""
        with self.numerics.casting():
            return taught_beside(self.loss, x, known)

    def _answered(self, piece: Piece, x_adv: Images) -> Piece:
        """`piece` with what the teacher says of x', too, where the loss compares with that: asked once, as of x."""
        if not isinstance(self.loss, Distillation) or not self.loss.needs_taught_adv:
            return piece
        with self.numerics.casting():
            return replace(piece, taught=(*piece.taught, self.loss.taught(x_adv)))

    def _adversarial(self, pieces: list[Piece], attack: Attack | None) -> list[Images]:
        if attack is None:
            return [piece.x for piece in pieces]
        with self._sharding.gathered(self.model):
            return [self._attacked(piece, attack) for piece in pieces]

    def _attacked(self, piece: Piece, attack: Attack) -> Images:
        with attack_mode(self.model, self.attack_batchnorm), self.numerics.casting():
            objective = self.loss.inner(self._passes.attacked, piece.x, piece.y, *piece.taught)
            return attack.using(self._passes.ascent)(objective, piece.x, generator=piece.source)

    def _accumulate(self, pieces: list[Piece], adversarial: list[Images]) -> Parts:
        totals: Parts = {}
        for i, (piece, x_adv) in enumerate(zip(pieces, adversarial, strict=True)):
            with self._sharding.local_gradients(self._replica, i < len(pieces) - 1):
                with self.numerics.casting():
                    total, parts = self._replica(piece.x, x_adv, piece.y, *piece.taught)
                (total * piece.share).backward()
            for name, value in parts.items():
                totals[name] = totals.get(name, 0) + value.detach() * piece.share
        return totals

    def _ascent(self, pieces: list[Piece], adversarial: list[Images]) -> None:
        # The extra passes must leave no trace: neither in BatchNorm's running statistics nor in the class prior.
        with buffers_kept(self.model), evaluating(self.loss):
            self._accumulate(pieces, adversarial)
