"""Small models of digits, honest and masked, trained in the test run."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from advtrain.attacks import PGD
from advtrain.data import Digits
from advtrain.models import SmallCNN

EPS = 0.15  # Linf, of the robust model
FGSM_EPS = 0.3  # of the model that is overfitted to FGSM
IMAGES = 128


@cache
def digits():
    """Training images and labels, then those of the checks."""
    train, test = Digits().split("train"), Digits().split("test")
    rows = torch.arange(IMAGES)
    return train.fetch(torch.arange(len(train)), "cpu"), train.labels, test.fetch(rows, "cpu"), test.labels[rows]


@cache
def standard():
    return trained(SmallCNN(width=16, hidden=64), None, epochs=20)


@cache
def robust():
    return trained(SmallCNN(width=16, hidden=64), PGD(eps=EPS, steps=5), epochs=20)


@cache
def fgsm_overfitted():
    """Trained on FGSM's images alone, from the image itself: they fool it no more, and those of PGD do."""
    layers = [nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    fgsm = PGD(eps=FGSM_EPS, steps=1, relative_step_size=1, init="none")
    return trained(nn.Sequential(*layers), fgsm, epochs=60, learning_rate=2e-3)


def trained(model, attack, *, epochs, learning_rate=1e-3):
    torch.manual_seed(0)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    images, labels, _, _ = digits()
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(128):
            x, y = images[rows], labels[rows]
            if attack is not None:
                model.requires_grad_(False)
                x = attack(lambda x, y=y: F.cross_entropy(model(x), y, reduction="none"), x)
                model.requires_grad_(True)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


class Wrapped(nn.Module):
    """after(model(before(x)))."""

    def __init__(self, model, before=lambda x: x, after=lambda logits: logits):
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x):
        return self.after(self.model(self.before(x)))


def hot(model):
    """Logits times 1000: the same classes, and a cross-entropy whose gradient underflows to zero."""
    return Wrapped(model, after=lambda logits: 1000 * logits)


def quantised(model):
    """Five grey levels; the gradient of rounding is zero."""
    return Wrapped(model, before=lambda x: (4 * x).round() / 4)


def shattered(model, period=0.003, height=0.1):
    """A fine triangle wave on the pixels moves them by at most height / 2, with slopes of 1 ± 2 height / period."""
    return Wrapped(model, before=lambda x: x + height * (2 * (x / period - (x / period + 0.5).floor()).abs() - 0.5))


def noisy(model, scale=0.1):
    """Gaussian noise in every forward pass."""
    return Wrapped(model, before=lambda x: x + scale * torch.randn_like(x))
