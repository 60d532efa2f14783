"""The process that verifies finds PyTorch, NumPy, RobustBench and what these need, and nothing else."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from advtrain.export import CannotVerify, VerificationError, verify_bundle, verify_script
from advtrain.export.bundle import write_sums

Evaluated = Callable[..., Any]  # the fixture in conftest.py
WORDS = """
import importlib, json, runpy, sys
script = runpy.run_path(sys.argv[1])
script["isolate"]()
found = {}
for name in sys.argv[2:]:
    try:
        found[name] = importlib.import_module(name).__name__
    except ModuleNotFoundError as error:
        found[name] = f"no {error.name}"
print(json.dumps(found))
"""
ALLOWED = ("torch", "numpy", "torch.fx", "json", "sqlite3", "yaml", "PIL.Image")
HIDDEN = ("advtrain", "advtrain.models", "hydra", "omegaconf", "sklearn", "wandb", "rich", "pytest")


def test_nothing_else_can_be_imported() -> None:
    for name in ("robustbench", "sklearn", "hydra", "wandb"):  # robustbench brings yaml and PIL
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")
    command = [sys.executable, "-I", "-W", "ignore", "-c", WORDS, verify_script.__file__, *ALLOWED, *HIDDEN]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {name: name for name in ALLOWED} | {name: f"no {name.split('.')[0]}" for name in HIDDEN}


@pytest.mark.parametrize("name", ["sklearn", "advtrain"])
def test_a_bundle_that_needs_more_fails_with_its_name(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = evaluated().export().directory
    monkeypatch.setenv("PYTHONPATH", str(Path(verify_script.__file__).parents[2]))
    with (folder / "architecture.py").open("a") as file:
        file.write(f"\nimport {name}\n")
    write_sums(folder)
    with pytest.raises(VerificationError, match=f"what these need, got an import of {name}, which is hidden or absent"):
        verify_bundle(folder)


def test_what_is_loaded_already_is_forgotten() -> None:
    """A package that some start-up hook imported is no way around the finder."""
    code = "import sqlite3, rich, runpy, sys; runpy.run_path(sys.argv[1])['isolate'](); import sqlite3, rich"
    command = [sys.executable, "-I", "-W", "ignore", "-c", code, verify_script.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "No module named 'rich'" in done.stderr


def test_robustbench_is_asked_for_where_its_class_is_needed(
    board: Any, here: Callable[[Path], dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = board.export().directory
    monkeypatch.setattr(verify_script, "_import_robustbench", lambda: "RobustBench does not import: absent")
    with pytest.raises(
        verify_script.Missing, match=r"whose class this model is, got .*absent; pip install robustbench"
    ):
        here(folder)
    line = "verification failed: expected robustbench"
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], verify_script.CANNOT, "", f"x\n{line}\n")
    )
    with pytest.raises(CannotVerify, match=line):
        verify_bundle(folder)
