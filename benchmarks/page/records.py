"""The records of results/benchmarks that the page shows, and how they are quoted."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = "../results/benchmarks"  # from docs/


@dataclass(frozen=True)
class Records:
    """By name; those that are not there are empty.

    Attributes:
        counters, ratios, autoattack: of the benchmarks of these names.
        gpu: of the GPU script, by file name.
    """

    counters: dict[str, Any] = field(default_factory=dict)
    ratios: dict[str, Any] = field(default_factory=dict)
    autoattack: dict[str, Any] = field(default_factory=dict)
    gpu: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Records":
        named = {}
        for name in ("counters", "ratios", "autoattack"):
            path = folder / f"{name}.json"
            named[name] = json.loads(path.read_text()) if path.is_file() else {}
        found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("gpu*.json"))}
        return cls(**named, gpu={name: one for name, one in found.items() if "cases" in one})


def missing(name: str, command: str) -> str:
    """Instead of a table."""
    return f"No record yet: `{command}` writes {name}.json."


def source(name: str, record: dict[str, Any]) -> str:
    """The line below a table: where its figures come from."""
    hardware = record["hardware"]
    place = hardware.get("gpu") or f"{hardware['cpu']}, one thread"
    if isinstance(place, dict):
        place = place.get("name", "GPU")
    words = [f"`{record['command']}`", f"commit {(record.get('git_commit') or 'unknown')[:10]}", str(place)]
    words += [f"torch {record['versions']['torch']}", f"seed {record.get('seed', 0)}"]
    if "measured" in record:
        words.append(record["measured"])
    return f"Record [{name}.json]({FOLDER}/{name}.json): {'; '.join(words)}."


def rows(head: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    rule = "|".join(["---"] + ["---:"] * (len(head) - 1))
    lines = [" | ".join(head).join(("| ", " |")), f"|{rule}|"]
    return "\n".join([*lines, *(" | ".join(row).join(("| ", " |")) for row in body)])
