"""What import-linter cannot see: who knows torch.distributed, how large files are, what is never mentioned."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "advtrain").rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_only_one_package_knows_torch_distributed() -> None:
    knowing = [
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        if any(name.startswith(("torch.distributed", "torch.nn.parallel")) for name in imported(path))
    ]
    assert knowing == ["advtrain/distributed/__init__.py", "advtrain/distributed/shards.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_stay_readable(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 300 or path.name in ("trainer.py", "verify_script.py"), f"{path} has {len(lines)} lines"


def test_the_product_names_no_folder_of_its_makers() -> None:
    for path in [*SOURCES, *(ROOT / "configs").rglob("*.yaml")]:
        text = path.read_text()
        assert "ADVTRAIN_DATA" not in text and "shared/" not in text, path
