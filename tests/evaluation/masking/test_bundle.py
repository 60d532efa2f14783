"""A robust CIFAR-10 model that is published with the project, and what masks make of it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from advtrain.evaluation import MaskingSettings
from advtrain.evaluation.masking import masking_report, standard_surrogate
from advtrain.models import SmallPreActResNet
from tests.evaluation.masking import models

BUNDLE = Path(__file__).parents[3] / "checkpoints" / "cifar10_cpu"
N = 64


@pytest.fixture(scope="module")
def published():
    """The model, real images of the test set that come with it, and their labels."""
    (weights,) = BUNDLE.glob("models/cifar10/Linf/*.pt")
    model = SmallPreActResNet(num_classes=10, width=32, blocks=1)
    model.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])
    arrays = np.load(BUNDLE / "verification.npz")
    return model.eval(), torch.from_numpy(arrays["images"][:N]).float() / 255, torch.from_numpy(arrays["labels"][:N])


def checked(model, x, y, surrogate=None):
    settings = MaskingSettings(n_examples=N)
    return masking_report(model, x, y, norm="linf", eps=8 / 255, settings=settings, surrogate=surrogate)


@pytest.mark.slow
def test_published_model_passes_every_check(published):
    report = checked(*published, surrogate=standard_surrogate("cifar10"))
    assert all(check.passed for check in report.checks), report.lines()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (models.hot, {"zero_gradients", "logit_scale"}),
        (models.quantised, {"zero_gradients"}),
        (models.noisy, {"flags"}),
    ],
)
def test_masks_on_it_are_caught(published, mask, expected):
    model, x, y = published
    assert expected <= set(checked(mask(model), x, y).failed)
