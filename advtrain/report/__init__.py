"""What a record means to a reader: the position on RobustBench's board, pictures, and a page of its own.

    print(position(record).text)          # would be rank 34 of 100 on CIFAR-10 Linf; between … and …
    write_report(Path("runs/mine"))       # runs/mine/report.html

Everything here works on plain records (the content of evaluation.json), never on a model.

- `position`, `Measured`, `Position`: the place on the board; `load`: the packaged snapshot or a model_info folder.
- `plots`: matplotlib figures of a record; matplotlib is imported when one is drawn.
- `write_report`: one HTML file without any outside resource.
"""

from advtrain.report.board import Entry, Snapshot, entries_from_model_info, load
from advtrain.report.leaderboard import Measured, Position, position
from advtrain.report.page import write_report

__all__ = [
    "Entry",
    "Measured",
    "Position",
    "Snapshot",
    "entries_from_model_info",
    "load",
    "position",
    "write_report",
]
