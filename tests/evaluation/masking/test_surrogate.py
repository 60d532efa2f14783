"""The other model, on which transferred images are made."""

from pathlib import Path

import numpy as np
import torch

from advtrain.data import Digits
from advtrain.evaluation.masking import standard_surrogate, train_surrogate
from tests.evaluation.masking import models

BUNDLE = Path(__file__).parents[3] / "checkpoints" / "cifar10_cpu"


def test_standard_model_of_cifar10():
    assert standard_surrogate("digits") is None
    model = standard_surrogate("cifar10")
    assert model is not None and not model.training
    arrays = np.load(BUNDLE / "verification.npz")
    x = torch.from_numpy(arrays["images"][:16]).float() / 255
    with torch.no_grad():
        assert (model(x).argmax(1) == torch.from_numpy(arrays["labels"][:16])).sum() >= 13  # 94 % on the test set


def test_training_learns_and_leaves_no_trace():
    train = Digits().split("train")
    state = torch.get_rng_state()
    first, again = (train_surrogate(train, 10, steps=60) for _ in range(2))
    other = train_surrogate(train, 10, steps=1, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    _, _, x, y = models.digits()
    assert torch.equal(first(x), again(x))
    assert not torch.equal(other(x), train_surrogate(train, 10, steps=1)(x))
    assert (first(x).argmax(1) == y).float().mean() > 0.8
    assert not first.training


def test_large_images_are_reduced():
    class Large:
        labels = torch.tensor([0, 1] * 4)

        def __len__(self):
            return 8

        def fetch(self, indices, device):
            return torch.linspace(0, 1, 3 * 100 * 70).view(1, 3, 100, 70).repeat(len(indices), 1, 1, 1)

    model = train_surrogate(Large(), 2, steps=1)
    seen = []
    model[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[2:]))
    model(torch.rand(1, 3, 100, 70))
    assert seen == [torch.Size([33, 23])]
