"""BatchNorm's running statistics of averaged weights, recomputed from training images.

The images are natural ones of the training split, without augmentation: what the model meets when it is used. They are
the same in each epoch, a random subset that the run's seed names, so the statistics are a function of the weights and
the seed alone, and a resumed run has nothing to remember. Adversarial images would make the statistics depend on an
attack and its random starts, and a pass over them costs as much as training on them. Be aware that training gathers
its running statistics on what the loss passes through the model: adversarial images alone with PGD-AT, both kinds in
turn with the TRADES and IKL families.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advtrain import distributed
from advtrain.data.base import Split
from advtrain.engine.modes import evaluating
from advtrain.engine.numerics import Numerics
from advtrain.random import seeded_generator
from advtrain.types import Images

# (number of images, batch size) → this process's share of the batches
NaturalImages = Callable[[int, int], Iterator[Images]]


def natural_images(split: Split, n_images: int, batch_size: int, *, seed: int, numerics: Numerics) -> Iterator[Images]:
    """Batches of a random subset of `split`, without augmentation; processes take turns over them.

    Args:
        split: the training images.
        n_images: in all batches of all processes together; all images where there are fewer.
        batch_size: the last batch may be smaller.
        seed: of the run; names the subset and its order, in which classes are mixed.
        numerics: device, dtype and layout.
    """
    chosen = torch.randperm(len(split), generator=seeded_generator(seed, "batchnorm statistics"))[:n_images]
    for batch, indices in enumerate(chosen.split(batch_size)):
        if batch % distributed.world_size() == distributed.rank():
            yield numerics.images(split.fetch(indices, numerics.device))


def batchnorm_layers(model: nn.Module) -> list[tuple[str, _BatchNorm]]:
    """The BatchNorm layers that keep running statistics, with their names."""
    return [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats
    ]


@torch.no_grad()
def recompute_statistics(model: nn.Module, batches: Iterable[Images]) -> None:
    """Sets the running statistics of each BatchNorm layer to mean and variance of its input over all `batches`.

    While the statistics are gathered each layer normalises by its batch, as in training. Each mean is over all images
    and positions together and each variance is the unbiased one of all of them, not the average over batches, so
    only the layers below depend on how the images are batched. Everything but BatchNorm is in eval mode: there is no
    dropout in the activations, as in use. (`torch.optim.swa_utils.update_bn` differs in these two points, and it would
    let synchronised BatchNorm talk to other processes in the middle of a pass.)

    Called on every process with its own share of the batches; all end with the same statistics. A model without
    BatchNorm stays as it is, and so does a layer that no image reaches. No batch is fetched for such a model.

    Args:
        model: its buffers change; its modes do not.
        batches: images in [0, 1], shape (n, c, h, w), in the model's dtype on its device.
    """
    layers = [layer for _, layer in batchnorm_layers(model)]
    if not layers:
        return
    sums = {layer: _zeros(layer) for layer in layers}

    def gather(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # In eval mode a layer normalises by its running statistics: here those of the batch.
        assert isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None
        x = inputs[0]
        variance, mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
        n, mean = x.numel() / x.shape[1], mean.double()
        sums[layer] += torch.stack([torch.full_like(mean, n), n * mean, n * (variance.double() + mean.square())])

    with evaluating(model), ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(gather))
        for x in batches:
            model(x)
    for layer in layers:
        _set_statistics(layer, distributed.all_reduce_sum(sums[layer]))


def _zeros(layer: _BatchNorm) -> Tensor:
    """Count, sum and sum of squares of each channel, shape (3, channels)."""
    assert layer.running_mean is not None
    return torch.zeros(3, layer.num_features, dtype=torch.float64, device=layer.running_mean.device)


def _set_statistics(layer: _BatchNorm, sums: Tensor) -> None:
    count, total, squares = sums
    if count[0] < 2 or layer.running_mean is None or layer.running_var is None:
        return
    mean = total / count
    layer.running_mean.copy_(mean)
    layer.running_var.copy_((squares / count - mean.square()).clamp_min(0) * count / (count - 1))
