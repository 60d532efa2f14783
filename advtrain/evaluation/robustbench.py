"""RobustBench's models and code, on top of the AutoAttack package that PyPI has.

    model = load_zoo_model("Wang2023Better_WRN-28-10", dataset="cifar10", threat_norm="linf", model_dir="models")

RobustBench 1.1.1 imports a package `autoattack` that PyPI does not carry, and calls it with its arguments. Where the
real one is absent, `import_robustbench` offers that name, made of `pyautoattack`: the same attacks, another signature.
"""

import importlib
import io
import logging
import pickle
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
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
BOARD_NORMS = ("linf", "l2")
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
        threat_norm: "linf" or "l2": which board; a name may be on both, as two models.
        model_dir: holds <dataset>/<Linf|L2>/<name>.pt.
        download: whether RobustBench may fetch weights that are not there.

    Raises:
        SettingError: RobustBench is missing, the name is unknown, or the weights are not there or no weights.
    """
    files = check_zoo_model(name, dataset=dataset, threat_norm=threat_norm, model_dir=model_dir, download=download)
    from robustbench.utils import load_model

    try:
        with _cpu_where_there_is_no_gpu(), redirect_stdout(io.StringIO()):  # some architectures print themselves
            model = load_model(name, model_dir=model_dir, dataset=dataset, threat_model=NORM_WORDS[threat_norm])
    except (RuntimeError, pickle.UnpicklingError, KeyError, EOFError) as error:
        reason = " ".join(str(error).split())[:160]
        named = ", ".join(str(path) for path in files) or name
        raise SettingError(
            f"{named}: expected the weights of {name}, got {type(error).__name__}: {reason}; get the file again"
        ) from error
    return model.eval()


def check_zoo_model(
    name: str, *, dataset: str, threat_norm: str, model_dir: str | Path = "models", download: bool = False
) -> list[Path]:
    """Confirms that `load_zoo_model` has what it needs, without building anything; the files of the weights.

    Args and errors: as there.
    """
    checks.choice("dataset", dataset, DATASETS)
    board = NORM_WORDS[checks.choice("norm", threat_norm, BOARD_NORMS)]
    zoo = _zoo().get((dataset, threat_norm), {})
    if name not in zoo:
        raise SettingError(_unknown(name, dataset, threat_norm))
    files = _weight_files(Path(model_dir) / dataset / board, name, zoo[name])
    if not files and not download:
        raise SettingError(
            f"model: expected a model with a file of weights, got {name!r}, whose weights another package downloads; "
            "add download=true"
        )
    missing = [path for path in files if not path.is_file()]
    if missing and not download:
        raise SettingError(f"model_dir: expected {missing[0]}, got no such file; put it there or add download=true")
    for path in files:
        if path.is_file():
            _check_not_a_page(path)
    return files


def zoo_norm(name: str, *, dataset: str, norm: str | None = None) -> str:
    """The norm of the board whose model a name means: `norm` where that board has it, else the other one that does.

    Args:
        name: ID in the zoo.
        dataset: "cifar10", "cifar100" or "imagenet".
        norm: of the threat model that is asked for, which need not be the one that the model was trained for.

    Raises:
        SettingError: RobustBench is missing, or no board of the dataset has the name.
    """
    checks.choice("dataset", dataset, DATASETS)
    boards = _zoo()
    for candidate in (norm, *BOARD_NORMS):
        if name in boards.get((dataset, str(candidate)), {}):
            return str(candidate)
    raise SettingError(_unknown(name, dataset, norm if norm in BOARD_NORMS else BOARD_NORMS[0]))


def _zoo() -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """RobustBench's zoo: by dataset and norm, the entry of every name."""
    import_robustbench()
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import ThreatModel

    return {
        (dataset.value, norm): dict(boards.get(ThreatModel(NORM_WORDS[norm]), {}))
        for dataset, boards in model_dicts.items()
        for norm in BOARD_NORMS
    }


def _unknown(name: str, dataset: str, norm: str) -> str:
    """The line for a name that is not on the board: where it is, or which names are near."""
    boards = _zoo()
    zoo = boards[dataset, norm]
    elsewhere = [f"dataset={other} norm={threat}" for (other, threat), entries in boards.items() if name in entries]
    near = get_close_matches(name, list(zoo), n=3, cutoff=0.4)
    if elsewhere:
        remedy = f"it is there with {' or '.join(elsewhere)}"
    elif near:
        remedy = f"did you mean {' or '.join(near)}?"
    else:
        remedy = "see https://robustbench.github.io"
    return f"model: expected one of the {len(zoo)} {dataset} {NORM_WORDS[norm]} models, got {name!r}; {remedy}"


def _weight_files(folder: Path, name: str, entry: dict[str, Any]) -> list[Path]:
    """Where RobustBench looks; nothing for the models that it gets from another package."""
    source = entry.get("gdrive_id") if not name.startswith("Standard_") else None
    if isinstance(source, list):  # an ensemble: RobustBench appends to the name with its ending
        return [folder / f"{name}.pt_m{i}.pt" for i in range(len(source))]
    return [folder / f"{name}.pt"] if source else []


@contextmanager
def _cpu_where_there_is_no_gpu() -> Iterator[None]:
    """Some of the zoo's constructors put tensors on the GPU; without one they stay where they are."""
    if torch.cuda.is_available():
        yield
        return
    kept = torch.Tensor.cuda, nn.Module.cuda

    def stay(this: Any, *_: Any, **__: Any) -> Any:
        return this

    torch.Tensor.cuda, nn.Module.cuda = stay, stay  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.Tensor.cuda, nn.Module.cuda = kept  # pyright: ignore[reportAttributeAccessIssue]


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
