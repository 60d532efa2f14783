"""RobustBench's models and code, on top of the AutoAttack package that PyPI has.

    model = load_zoo_model("Wang2023Better_WRN-28-10", dataset="cifar10", threat_norm="linf", model_dir="models")

RobustBench 1.1.1 imports a package `autoattack` that PyPI does not carry, and calls it with its arguments. Where the
real one is absent, `import_robustbench` offers that name, made of `pyautoattack`: the same attacks, another signature.
"""

import importlib
import logging
import sys
import warnings
from difflib import get_close_matches
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pyautoattack
import torch
from pyautoattack import state as upstream_state
from torch import Tensor, nn

from advtrain import checks
from advtrain.evaluation.autoattack import NORM_WORDS
from advtrain.evaluation.autoattack.attack_log import listening
from advtrain.types import SettingError

DATASETS = ("cifar10", "cifar100", "imagenet")
INSTALL = "pip install 'advtrain[robustbench]'"


class AutoAttack:
    """`autoattack.AutoAttack` of github.com/fra31/auto-attack, as far as RobustBench calls it.

    Args:
        model: images to logits.
        norm: "Linf", "L2" or "L1".
        eps: radius.
        seed: of every batch; the time when None.
        verbose: whether the log is printed.
        attacks_to_run: with version="custom".
        version: "standard", "plus", "rand" or "custom".
        device: where the attacks run.
        log_path: a file that the log is appended to.
    """

    def __init__(
        self,
        model: nn.Module,
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: list[Any] | None = None,
        version: Any = "standard",
        device: torch.device | str = "cuda",
        log_path: str | Path | None = None,
    ) -> None:
        self.verbose, self.log_path = verbose, log_path
        with listening(logging.NullHandler()):
            self.attack: Any = pyautoattack.AutoAttack(
                model,
                norm=norm,  # pyright: ignore[reportArgumentType]
                eps=eps,
                seed=seed,
                attacks=attacks_to_run or None,
                version=version,
                device=device,
            )

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: str | Path | None = None,
    ) -> Any:
        """Adversarial images, and with `return_labels` the classes that the model gives them."""
        handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)] if self.verbose else []
        if self.log_path is not None:
            handlers.append(logging.FileHandler(self.log_path))
        try:
            with listening(*handlers or [logging.NullHandler()]):
                x_adv, y_adv = self.attack.run_standard_evaluation(
                    x_orig, y_orig, batch_size=bs, state_path=None if state_path is None else Path(state_path)
                )
        finally:
            for handler in handlers:
                handler.close()
        return (x_adv, y_adv) if return_labels else x_adv


def import_robustbench() -> ModuleType:
    """The installed `robustbench` package, importable.

    Raises:
        SettingError: it is not installed, or something it needs is not.
    """
    if find_spec("robustbench") is None:
        raise SettingError(f"robustbench: expected the package, got none; {INSTALL}")
    _offer_autoattack()
    try:
        with warnings.catch_warnings(action="ignore"):  # of what its pinned dependencies deprecate
            return importlib.import_module("robustbench")
    except ImportError as error:
        hint = " (setuptools below 82 brings it)" if error.name == "pkg_resources" else ""
        raise SettingError(f"robustbench: expected a package that imports, got {error}{hint}; {INSTALL}") from error


def load_zoo_model(
    name: str, *, dataset: str, threat_norm: str, model_dir: str | Path = "models", download: bool = False
) -> nn.Module:
    """A model of RobustBench's zoo in eval mode, built and loaded by RobustBench itself.

    Args:
        name: its ID, e.g. "Wang2023Better_WRN-28-10".
        dataset: "cifar10", "cifar100" or "imagenet".
        threat_norm: "linf", "l2" or "l1": which board.
        model_dir: holds <dataset>/<Linf|L2>/<name>.pt.
        download: whether RobustBench may fetch weights that are not there.

    Raises:
        SettingError: RobustBench is missing, the name is unknown, or the weights are not there or no weights.
    """
    checks.choice("dataset", dataset, DATASETS)
    board = NORM_WORDS[checks.choice("norm", threat_norm, tuple(NORM_WORDS))]
    import_robustbench()
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
    from robustbench.utils import load_model

    zoo = model_dicts[BenchmarkDataset(dataset)][ThreatModel(board)]
    if name not in zoo:
        near = get_close_matches(name, list(zoo), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "see https://robustbench.github.io"
        raise SettingError(f"model: expected one of the {len(zoo)} {dataset} {board} models, got {name!r}; {hint}")
    files = _weight_files(Path(model_dir) / dataset / board, name, zoo[name])
    missing = [path for path in files if not path.is_file()]
    if not files and not download:
        raise SettingError(
            f"model: expected a model with a file of weights, got {name!r}, whose weights another package downloads; "
            "pass download=true"
        )
    if missing and not download:
        raise SettingError(f"model_dir: expected {missing[0]}, got no such file; put it there or pass download=true")
    for path in files:
        if path.is_file():
            _check_not_a_page(path)
    model = load_model(name, model_dir=model_dir, dataset=dataset, threat_model=board)
    return model.eval()


def _weight_files(folder: Path, name: str, entry: dict[str, Any]) -> list[Path]:
    """Where RobustBench looks; nothing for the models that it gets from another package."""
    source = entry.get("gdrive_id") if not name.startswith("Standard_") else None
    if isinstance(source, list):  # an ensemble
        return [folder / f"{name}_m{i}.pt" for i in range(len(source))]
    return [folder / f"{name}.pt"] if source else []


def _check_not_a_page(path: Path) -> None:
    # Google Drive answers with a page of HTML when a file was asked for too often.
    with path.open("rb") as file:
        if file.read(64).lstrip().startswith(b"<"):
            raise SettingError(f"{path}: expected weights, got a web page; delete the file and download it again")


def _offer_autoattack() -> None:
    """Makes `autoattack` and `autoattack.state` importable, unless the real package is there."""
    if "autoattack" in sys.modules or find_spec("autoattack") is not None:
        return
    package = ModuleType("autoattack", "pyautoattack under the name and signature that RobustBench expects.")
    package.__spec__ = ModuleSpec("autoattack", loader=None, is_package=True)
    package.__path__ = []
    vars(package).update(AutoAttack=AutoAttack, state=upstream_state)
    sys.modules.update({"autoattack": package, "autoattack.state": upstream_state})
