"""`python -m advtrain`, for torchrun: the command `advtrain`."""

from advtrain.cli import train

train()
