"""RobustBench's board as a picture, with the model of a record marked.

    python scripts/leaderboard_plot.py results/cifar10_cpu.json board.png
    python scripts/leaderboard_plot.py runs/mine/evaluation.json board.png --name mine --board robustbench/model_info

RECORD is the content of evaluation.json. Prints the position.
"""

import argparse
import json
from pathlib import Path

from advtrain.report import Measured, load, position
from advtrain.report.plots import DARK, LIGHT, board_plot, png
from advtrain.report.reading import dataset_of, read_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="evaluation.json, or a record in results/")
    parser.add_argument("out", type=Path, help="PNG file to write")
    parser.add_argument("--name", help="of the model in the picture; default: that of the run or the file")
    parser.add_argument("--dataset", help="where the record and the run do not say: cifar10, cifar100, imagenet")
    parser.add_argument("--board", type=Path, help="RobustBench's folder model_info; default: the packaged snapshot")
    parser.add_argument("--dark", action="store_true", help="for a dark page")
    arguments = parser.parse_args()

    record = json.loads(arguments.record.read_text())
    snapshot = load(arguments.board)
    dataset = arguments.dataset or dataset_of(record, read_config(arguments.record.parent / "config.yaml"))
    place = position(Measured.from_record(record, dataset), snapshot)
    print(place.text)
    if place.total == 0:
        parser.error("this record has no board to be shown on")
    run = arguments.record.resolve()
    name = arguments.name or (run.parent.name if run.name == "evaluation.json" else run.stem)
    figure = board_plot(place, snapshot, name=name, theme=DARK if arguments.dark else LIGHT)
    arguments.out.write_bytes(png(figure))


if __name__ == "__main__":
    main()
