"""`python -m advtrain [train | eval | export] …`, for torchrun: the commands `advtrain`, `advtrain-eval`, …"""

import sys

from advtrain.cli import evaluate, export, train

COMMANDS = {"train": train, "eval": evaluate, "export": export}

command = COMMANDS[sys.argv.pop(1)] if len(sys.argv) > 1 and sys.argv[1] in COMMANDS else train
command()
