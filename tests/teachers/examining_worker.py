"""One of several processes that examine the same teachers; started by torchrun in the school's folder."""

import json
import os
from pathlib import Path

import torch

from advtrain import distributed
from advtrain.composition import compose
from advtrain.config import ThreatSettings
from advtrain.engine.numerics import Numerics
from advtrain.losses import KD
from advtrain.runs import dataset
from advtrain.teachers import TeacherSettings, examine, find_teacher
from advtrain.types import SettingError


def outcome(source: str) -> str:
    config, numerics = compose("train", ["experiment=quickstart"])["data"], Numerics(torch.device("cpu"))
    data, settings = dataset(config), TeacherSettings(source)
    loss = KD().hold(find_teacher(settings, data, ThreatSettings()))
    try:
        found = examine(loss, settings, data, config, numerics)
    except SettingError as error:
        return str(error)
    assert found is not None
    return f"{found.sha256} {found.correct}"


def main() -> None:
    rank = os.environ["RANK"]
    with distributed.process_group(torch.device("cpu")):
        words = [outcome("runs/t"), outcome("runs/dunce"), outcome("runs/t" if rank == "0" else "runs/dunce")]
    Path(f"rank{rank}.json").write_text(json.dumps(words))


if __name__ == "__main__":
    main()
