"""What a pass keeps for its backward pass, with and without activation checkpointing.

    python -m benchmarks.activation_memory

Counted, not measured: the bytes of all storages that autograd saves, without the model's own. They are proportional to
the batch, which is confirmed at one, two and three images; the table gives what each further image adds, in float32.
"""

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from advtrain.models import PreActResNet, WideResNet, checkpoint_blocks

NETWORKS = {
    "PreActResNet-18": lambda: PreActResNet(depth=18, num_classes=10),
    "WRN-34-10": lambda: WideResNet(depth=34, widen_factor=10, num_classes=10),
}
MIB = 2**20


def bytes_for_backward(model: nn.Module, x: Tensor) -> int:
    """Of the storages that a forward pass saves, without the model's own."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(x)  # held until the hooks have counted: a freed storage's address may come again
    del output
    return sum(kept.values())


def bytes_per_image(model: nn.Module, *, attack: bool) -> int:
    """What each further image adds to the pass of an attack, or to that of the training loss.

    Raises:
        ValueError: the third adds something else than the second.
    """
    model.train(not attack).requires_grad_(not attack)
    sizes = [bytes_for_backward(model, torch.rand(n, 3, 32, 32, requires_grad=attack)) for n in (1, 2, 3)]
    second, third = sizes[1] - sizes[0], sizes[2] - sizes[1]
    if second != third:
        raise ValueError(f"expected bytes in proportion to the batch, got {second} for image 2 and {third} for image 3")
    return third


def main() -> None:
    print("| network | pass | MiB an image | with checkpointing | a 128-image batch |")
    print("|---|---|---|---|---|")
    for name, build in NETWORKS.items():
        for word, attack in (("training loss", False), ("attack", True)):
            plain = bytes_per_image(build(), attack=attack)
            model = build()
            checkpoint_blocks(model)
            less = bytes_per_image(model, attack=attack)
            whole = f"{128 * plain / 2**30:.2f} → {128 * less / 2**30:.2f} GiB"
            print(
                f"| {name} | {word} | {plain / MIB:.2f} | {less / MIB:.2f} ({less / plain:.0%}) | {whole} |", flush=True
            )


if __name__ == "__main__":
    main()
