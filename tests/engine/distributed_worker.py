"""Run by test_distributed.py, alone or under torchrun: 20 float64 steps of five epochs with every loss.

usage: python distributed_worker.py DIRECTORY
"""

import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

# A script's own folder comes first on the path, and there is a package named tests in robustbench's wheel.
sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from advtrain import distributed
from tests.engine.test_step import LOSSES
from tests.engine.toy import network, trainer


class SyncNorm(nn.BatchNorm2d):
    """SyncBatchNorm for float64 on CPUs, where PyTorch has none: statistics over the batches of all processes.

    The sums travel through the autograd-aware all-reduce, so the backward pass is the one of the whole batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        from torch.distributed.nn.functional import all_reduce

        count = x.numel() / x.shape[1] * distributed.world_size()
        mean = all_reduce(x.sum((0, 2, 3))) / count
        variance = all_reduce((x - mean[:, None, None]).square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        normal = (x - mean[:, None, None]) / (variance[:, None, None] + self.eps).sqrt()
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


def main() -> None:
    directory = Path(sys.argv[1])
    torch.set_num_threads(1)
    with distributed.process_group(torch.device("cpu")):
        for norm in (False, True):
            for name, loss in LOSSES.items():
                model = network()
                if norm:
                    model[1] = SyncNorm(6)
                run = trainer(directory / f"{name}{'-norm' if norm else ''}", model, loss=loss(), epochs=5)
                run.fit()


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)  # torch announces changes of torch.distributed.nn
    main()
