"""The commands as a user runs them: help, wrong words, and the whole way at toy size."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from advtrain.config import config_dir

ROOT = Path(__file__).resolve().parents[1]
GROUPS = sorted(path.name for path in (ROOT / "configs").iterdir() if path.is_dir())
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def advtrain(tmp_path: Path) -> Run:
    """Runs a command of this checkout in a temporary folder: `advtrain("loss=ikl")`, `advtrain("eval", "x")`."""

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        name = {"eval": "evaluate", "export": "export"}.get(words[0] if words else "", "train")
        words = words if name == "train" else words[1:]
        code = f"import sys; sys.argv[0] = 'advtrain'; from advtrain.cli import {name}; {name}()"
        return subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **variables},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


# A whole run in seconds: two epochs, few images under attack.
SHORT = (
    "trainer.epochs=2",
    "trainer.batch_size=256",
    "trainer.validation.steps=1",
    "trainer.threads=1",
    "eval.pgd.n_examples=20",
    "eval.autoattack.version=custom",
    "eval.autoattack.attacks=[apgd-ce]",
    "eval.autoattack.n_examples=20",
)


@pytest.mark.parametrize("command", ("train", "eval", "export"))
def test_help_is_a_page(advtrain: Run, command: str) -> None:
    done = advtrain(*(["--help"] if command == "train" else [command, "--help"]))
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("\n  advtrain") >= 5 - (command == "train")  # five examples, one with torchrun
    assert "runs/" in done.stdout
    if command == "train":
        for group in GROUPS:
            for choice in (ROOT / "configs" / group).glob("*.yaml"):
                assert choice.stem in done.stdout, f"{group}={choice.stem}"


REFUSED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unknown choice": (("loss=trade",), ("loss: expected one of", "trades", "did you mean loss=trades?")),
    "unknown key": (("attack.stepss=3",), ("attack.stepss: expected one of", "did you mean attack.steps?")),
    "unknown top key": (("eps=8",), ("did you mean attack.eps or threat.eps?",)),
    "unknown group": (("los=ikl",), ("los: expected one of", "did you mean loss?")),
    "forgotten /255": (("attack.eps=8",), ("attack.eps: expected an Linf radius", "attack.eps=8/255")),
    "forgotten /255 of the threat": (("threat.eps=8",), ("expected an Linf radius", "eps=8/255")),
    "negative steps": (("attack.steps=-1",), ("attack.steps: expected an integer of at least 1, got -1",)),
    "a word for a number": (("attack.steps=many",), ("attack.steps: expected an integer", "'many'")),
    "a word for a trainer number": (("trainer.epochs=ten",), ("trainer.epochs: expected an integer", "'ten'")),
    "a fraction for a count": (("trainer.epochs=1.5",), ("trainer.epochs: expected an integer",)),
    "unknown trainer key": (("+trainer.epoch=3",), ("trainer.epoch: expected one of", "did you mean trainer.epochs?")),
    "negative rate": (("optimizer.lr=-0.1",), ("optimizer.lr: expected a number above 0, got -0.1",)),
    "missing data": (
        ("data=cifar10", "data.download=false", "data.root=nowhere"),
        ("data.root: expected", "cifar-10-batches-py", "data.download=true"),
    ),
    "no ImageNet": (("data=imagenet", "data.root=nowhere", "model=resnet_50"), ("data.root: expected",)),
    "prior without classes": (
        ("data=npz", "data.train=a.npz", "data.test=b.npz", "loss=ikl", "model=preact_resnet_18"),
        ("data.num_classes", "IKL", "class prior", "loss=trades"),
    ),
    "npz without a file": (("data=npz", "model=preact_resnet_18"), ("data.train: expected a value, got none",)),
    "no attack to train with": (("attack=none",), ("attack=none", "IKL", "loss=standard")),
    "zero gradient at the start": (("attack.init=none",), ("attack.init=none", "loss.inner=kl", "uniform")),
    "prior objective without prior": (("loss=trades", "loss.inner=ikl"), ("loss.inner", "TRADES", "no class prior")),
    "a bare word": (("quickstart",), ("expected key=value, got 'quickstart'",)),
    "no such own folder": (("--config-dir", "nowhere"), ("--config-dir: expected a folder",)),
    "seed": (("seed=one",), ("seed: expected an integer, got 'one'",)),
    "a submission of digits": (
        ("export.target=leaderboard", "eval.autoattack.engine=fast"),
        ("export.target=leaderboard: expected", "digits is not a dataset", "It wants eval.autoattack.engine=exact."),
    ),
    "no statement": (("export.masking_statement=no",), ("export.masking_statement: expected 8 words or more",)),
    "attack list": (("eval.autoattack.version=custom",), ("eval.autoattack.attacks: expected",)),
    "one bad point of a sweep": (("-m", "attack.steps=2,0"), ("attack.steps: expected an integer of at least 1",)),
    "no GPU": (("trainer.device=cuda",), ("trainer.device: expected a CUDA GPU",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_words_get_one_line_before_any_model_is_built(advtrain: Run, tmp_path: Path, case: str) -> None:
    if case == "no GPU":
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    words, expected = REFUSED[case]
    done = advtrain(*words, WORLD_SIZE="1")
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("advtrain: error: "), done.stderr
    for text in expected:
        assert text in lines[0]
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []  # nothing was written


@pytest.mark.parametrize(
    ("words", "expected"),
    (
        (("eval", "model=nowhere"), "expected a run directory, a checkpoint in one, an exported bundle"),
        (("eval",), "model: expected a run directory"),
        (("eval", "model=x", "eval.pgd.stepss=3"), "eval.pgd.stepss"),
        (("eval", "model=x", "threats=[l2:0.5]", "eps=0.1"), "eps: expected none beside a list of threats"),
        (("eval", "model=x", "eval.autoattack.engine=quick"), "eval.autoattack.engine: expected one of exact, fast"),
        (("eval", "model=x", "leaderboard=nowhere"), "leaderboard: expected RobustBench's folder model_info"),
        (("export",), "expected run=FOLDER or verify=BUNDLE"),
        (("export", "run=nowhere"), "expected a folder with evaluation.json"),
    ),
)
def test_the_other_commands_refuse_too(advtrain: Run, words: tuple[str, ...], expected: str) -> None:
    done = advtrain(*words)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and expected in done.stderr


def test_a_model_that_does_not_fit_the_data_is_refused(advtrain: Run) -> None:
    done = advtrain("data=digits", "model=wrn_28_10", "model.depth=10", "model.widen_factor=1")
    assert done.returncode == 2
    assert "model: expected one that takes 1×8×8 images" in done.stderr


@pytest.mark.slow
def test_the_whole_way(advtrain: Run, tmp_path: Path) -> None:
    """Trains, evaluates, exports, verifies; evaluates again from run, checkpoint and bundle; exports again."""
    done = advtrain(*SHORT, "name=short")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "short"
    for path in ("config.yaml", "metrics.jsonl", "checkpoints/last.pt", "checkpoints/best.pt", "evaluation.json"):
        assert (run / path).is_file(), path
    record = json.loads((run / "evaluation.json").read_text())
    assert record["threat"] == {"norm": "linf", "eps": 0.2}
    assert record["n_examples"] == 360 and record["autoattack"]["n_examples"] == 20
    assert "CE(f(x), y) + 10 wMSE" in done.stdout and "verified: torch" in done.stdout
    assert "subset of 20" in done.stdout  # a subset is called one

    arrays = np.load(run / "adversarial.npz")
    distance = np.abs(arrays["adversarial_images"] - arrays["images"]).max()
    assert distance <= 0.2 + 1e-6

    for source in ("runs/short", "runs/short/checkpoints/last.pt", "runs/short/export"):
        done = advtrain("eval", source, "eval=clean_pgd", "eval.pgd.restarts=1", "out=again", "threads=1")
        assert done.returncode == 0, done.stderr
        again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
        assert again["source"]["command"].startswith(f"advtrain-eval model={source} eval=clean_pgd ")
        if source != "runs/short/checkpoints/last.pt":
            assert again["clean"]["correct"] == record["clean"]["correct"]

    words = ("eval=clean_pgd", "eval.n_examples=30", "eval.curve.enabled=true", "eval.curve.eps=[0.1,0.2]")
    done = advtrain("eval", "runs/short", *words, "threats=[linf:0.2,l2:1]", "out=threats", "threads=1")
    assert done.returncode == 0, done.stderr
    several = {
        name: json.loads((tmp_path / "threats" / name / "evaluation.json").read_text()) for name in (".", "l2-1")
    }
    threats = several["."]["threats"]
    assert list(threats) == ["linf-0.2", "l2-1", "union"] and "against all of them" in done.stdout
    assert threats["union"]["correct"] <= threats["l2-1"]["correct"] == several["l2-1"]["pgd"]["correct"]
    assert several["."]["curve"]["eps"] == [0.1, 0.2] and several["."]["curve"]["n_examples"] == 30
    assert len(several["l2-1"]["curve"]["eps"]) == 7  # radii of Linf mean nothing in L2

    done = advtrain(
        "export", "run=runs/short", "out=bundle", "export.authors='Ada Author'", "export.venue='arXiv 2026'"
    )
    assert done.returncode == 0, done.stderr
    assert next((tmp_path / "bundle").rglob("Author2026*.pt")).is_file()
    done = advtrain("export", "run=again", "out=second")  # the evaluation of the bundle, whose recipe it carries on
    assert done.returncode == 0 and "bundle    second (archive)" in done.stdout, done.stderr
    assert "wmse_weight" in (tmp_path / "second" / "recipe.yaml").read_text()
    done = advtrain("export", "run=runs/short", "export.target=leaderboard")
    assert done.returncode == 2 and "digits is not a dataset of the RobustBench leaderboard" in done.stderr
    done = advtrain("export", "verify=bundle")
    assert done.returncode == 0 and "verified: torch" in done.stdout
    (tmp_path / "bundle" / "architecture.py").write_text("")
    done = advtrain("export", "verify=bundle")
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_two_processes_under_torchrun(advtrain: Run, tmp_path: Path) -> None:
    """Training by two gloo processes, evaluation and bundle by the first; the same command then finds it finished."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "advtrain"]
    command = [sys.executable, *launcher, *SHORT, "name=two", "averaging=ema"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for words in ("trained 2 epochs", "trained 2 epochs"):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count(words) == 1 and "cpu × 2" in done.stdout
    assert (tmp_path / "runs" / "two" / "evaluation.json").is_file()
    assert (tmp_path / "runs" / "two" / "export" / "SHA256SUMS").is_file()


@pytest.mark.slow
def test_standard_training_needs_no_attack_and_sweeps_make_runs(advtrain: Run, tmp_path: Path) -> None:
    done = advtrain("-m", "loss=standard,pgd_at", "seed=1", "eval=none", *SHORT[:4])
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "runs").iterdir() if not path.name.startswith("."))
    assert len(names) == 2 and all(name.startswith("quickstart") and name.endswith("seed1") for name in names)
    assert any("standard" in name for name in names) and any("pgd_at" in name for name in names)


@pytest.mark.slow
def test_loggers_leave_their_files(advtrain: Run, tmp_path: Path) -> None:
    for logger, pattern in (("wandb", "wandb/offline-run-*"), ("tensorboard", "tensorboard/events*")):
        done = advtrain(f"logger={logger}", f"name={logger}", "eval=none", *SHORT[:4], WANDB_API_KEY="", NETRC="none")
        assert done.returncode == 0, done.stderr
        assert list((tmp_path / "runs" / logger).glob(pattern)), logger


@pytest.mark.slow
def test_own_configs_and_classes_are_found(advtrain: Run, tmp_path: Path) -> None:
    (tmp_path / "mine" / "loss").mkdir(parents=True)
    (tmp_path / "mine" / "loss" / "mine.yaml").write_text("_target_: my_losses.Mine\ninner: ce\n")
    (tmp_path / "my_losses.py").write_text("from advtrain.losses import PGDAT\n\n\nclass Mine(PGDAT):\n    pass\n")
    done = advtrain("--config-dir", "mine", "loss=mine", "eval=none", *SHORT[:4])
    assert done.returncode == 0, done.stderr
    done = advtrain("--config-dir", "mine", "loss=min", "eval=none")
    assert done.returncode == 2 and "did you mean loss=mine?" in done.stderr


def test_cfg_prints_what_runs(advtrain: Run) -> None:
    """A recipe's numbers stay with its own choices: TRADES under an IKL recipe has TRADES's defaults."""
    import yaml

    done = advtrain("experiment=cifar10_cpu", "loss=trades", "attack.eps=4/255", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    config: dict[str, Any] = yaml.safe_load(done.stdout)
    own = yaml.safe_load((config_dir() / "loss" / "trades.yaml").read_text())
    assert own["beta"] == 6.0 and config["loss"] == own
    assert config["attack"]["eps"] == "4/255" and config["threat"]["eps"] == "8/255"
    assert config["attack"]["steps"] == 2  # the recipe's, since its attack was kept
