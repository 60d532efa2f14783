"""The package as users get it: a wheel, an editable install and a bare checkout, from any working directory."""

import ast
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import pytest

import advtrain

CHECKOUT = Path(__file__).resolve().parent.parent
COMMANDS = ("advtrain", "advtrain-eval", "advtrain-export")
HEAVY = (
    "torch",
    "torchvision",
    "numpy",
    "hydra",
    "omegaconf",
    "wandb",
    "sklearn",
    "rich",
    "pyautoattack",
    "robustbench",
    "matplotlib",
    "jinja2",
)


def run(command: Sequence[str | Path], folder: Path, **variables: str) -> str:
    """Standard output of a command that must succeed, run in `folder` without this process's PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def pip(command: str, *arguments: str | Path, python: Path | str = sys.executable) -> None:
    """This environment's pip for `python`, without network: the test extra brings the build backend."""
    options = ["--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation"]
    run([sys.executable, "-m", "pip", "--python", python, command, *options, *arguments], CHECKOUT)


@dataclass
class Environment:
    """A virtual environment with this one's dependencies and at most one advtrain.

    Attributes:
        folder: of the environment.
        elsewhere: an empty folder to work in.
        variables: of its processes.
        package: where advtrain has to come from.
        configs: where its YAML files have to be found.
    """

    folder: Path
    elsewhere: Path
    variables: dict[str, str]
    package: Path
    configs: Path

    @property
    def python(self) -> Path:
        return self.scripts / "python"

    @property
    def scripts(self) -> Path:
        return Path(sysconfig.get_path("scripts", "venv", {"base": str(self.folder)}))

    @property
    def packages(self) -> Path:
        base = {"base": str(self.folder), "platbase": str(self.folder)}
        return Path(sysconfig.get_path("purelib", "venv", base))

    def run(self, *command: str | Path) -> str:
        return run(command, self.elsewhere, **self.variables)


def environment(root: Path) -> Environment:
    """Dependencies come by a .pth file; those of the folders it names are not read, so no editable install follows."""
    made = Environment(root / "venv", root / "elsewhere", {}, CHECKOUT / "advtrain", CHECKOUT / "configs")
    made.elsewhere.mkdir()
    run([sys.executable, "-m", "venv", "--without-pip", made.folder], root)
    outer = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (made.packages / "dependencies.pth").write_text("\n".join(outer))
    return made


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--wheel-dir", folder, CHECKOUT)
    (built,) = folder.glob("advtrain-*.whl")
    return built


@pytest.fixture(scope="session")
def installed_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = environment(tmp_path_factory.mktemp("installed_wheel"))
    made.package = made.packages / "advtrain"
    made.configs = made.package / "configs"
    pip("install", wheel, python=made.python)
    return made


@pytest.fixture(scope="session")
def editable_install(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = environment(tmp_path_factory.mktemp("editable_install"))
    pip("install", "--editable", CHECKOUT, python=made.python)
    return made


@pytest.fixture(scope="session")
def bare_checkout(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = environment(tmp_path_factory.mktemp("bare_checkout"))
    made.variables["PYTHONPATH"] = str(CHECKOUT)
    return made


def test_the_wheel_holds_the_package_and_every_config(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "advtrain").rglob("*.py")}
    configs = {f"advtrain/{path.relative_to(CHECKOUT).as_posix()}" for path in (CHECKOUT / "configs").rglob("*.yaml")}
    assert configs
    assert modules | configs | {"advtrain/report/leaderboard.csv", "advtrain/report/page.html.j2"} <= names
    assert {name.split("/")[0] for name in names} == {"advtrain", f"advtrain-{advtrain.__version__}.dist-info"}


@pytest.mark.parametrize("install", ["installed_wheel", "editable_install", "bare_checkout"])
def test_package_and_configs_come_from_the_install(install: str, request: pytest.FixtureRequest) -> None:
    made: Environment = request.getfixturevalue(install)
    program = "import sys, advtrain.config as c; print(c.__file__, c.config_dir(), *sys.path, sep='\\n')"
    module, configs, *path = made.run(made.python, "-c", program).splitlines()
    assert Path(module).parent == made.package
    assert Path(configs) == made.configs
    assert (str(CHECKOUT) in path) == (made.package.parent == CHECKOUT)


@pytest.mark.parametrize("install", ["installed_wheel", "bare_checkout"])
def test_help_shows_the_choices_and_writes_nothing(install: str, request: pytest.FixtureRequest) -> None:
    made: Environment = request.getfixturevalue(install)
    before = list(made.elsewhere.iterdir())
    page = made.run(made.python, "-m", "advtrain", "--help")
    for group in ("loss", "data", "model", "attack", "experiment"):
        choices = [path.stem for path in (CHECKOUT / "configs" / group).glob("*.yaml")]
        assert all(f" {word}" in page for word in (group, *choices))
    assert list(made.elsewhere.iterdir()) == before


@pytest.mark.slow
def test_the_wheel_trains_evaluates_and_exports(installed_wheel: Environment) -> None:
    """The main job at toy size, by the installed command, where only installed packages can be imported."""
    attack = ["eval.autoattack.version=custom", "eval.autoattack.attacks=[apgd-ce]", "eval.autoattack.n_examples=10"]
    training = ["trainer.epochs=1", "trainer.batch_size=256", "trainer.validation.steps=1", "trainer.threads=1"]
    words = [*training, "eval.pgd.n_examples=10", *attack, "name=toy"]
    installed_wheel.run(installed_wheel.scripts / "advtrain", *words)
    made = installed_wheel.elsewhere / "runs" / "toy"
    assert json.loads((made / "evaluation.json").read_text())["autoattack"]["n_examples"] == 10
    assert list((made / "export").rglob("*.pt"))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_installed(installed_wheel: Environment, command: str) -> None:
    assert command in installed_wheel.run(installed_wheel.scripts / command, "--help")


def test_importing_advtrain_imports_nothing_heavy(bare_checkout: Environment) -> None:
    program = f"import sys, advtrain; print(*{{*sys.modules}} & {{*{HEAVY}}})"
    assert bare_checkout.run(bare_checkout.python, "-c", program).split() == []


def test_parts_are_imported_when_they_are_used(bare_checkout: Environment) -> None:
    """The losses for use in other code: neither Hydra nor wandb nor AutoAttack comes with them."""
    program = f"import sys, advtrain; advtrain.losses.functional.ikl; print(*{{*sys.modules}} & {{*{HEAVY}}})"
    imported = set(bare_checkout.run(bare_checkout.python, "-c", program).split())
    assert "torch" in imported
    assert not imported & {"hydra", "omegaconf", "wandb", "pyautoattack", "robustbench", "sklearn"}


def test_reading_the_board_needs_no_drawing(bare_checkout: Environment) -> None:
    program = f"import sys, advtrain; advtrain.report.load(); print(*{{*sys.modules}} & {{*{HEAVY}}})"
    imported = set(bare_checkout.run(bare_checkout.python, "-c", program).split())
    assert not imported & {"hydra", "omegaconf", "wandb", "matplotlib", "jinja2", "pyautoattack", "robustbench"}


def test_the_wheel_reads_its_board_and_template(installed_wheel: Environment) -> None:
    """The files that are no modules are found by the installed package."""
    record = {"threat": {"norm": "linf", "eps": 8 / 255}, "clean": {"accuracy": 0.5, "correct": 1, "n_examples": 2}}
    program = (
        "from advtrain.report import load\nfrom advtrain.report.page import render\n"
        f"print(len(load().entries), len(render({record}, title='x')))"
    )
    entries, page = installed_wheel.run(installed_wheel.python, "-c", program).split()
    assert int(entries) == 188 and int(page) > 1000


def test_every_part_is_an_attribute_of_the_package() -> None:
    for part in ("attacks", "data", "engine", "evaluation", "export", "losses", "models", "report"):
        assert attrgetter(part)(advtrain).__name__ == f"advtrain.{part}"
        assert part in dir(advtrain)
    with pytest.raises(AttributeError, match="has no attribute 'atacks'"):
        attrgetter("atacks")(advtrain)


def imported_names(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def test_torch_distributed_has_one_importer() -> None:
    """import-linter sees other packages as a whole and cannot tell it from torch."""
    modules = (CHECKOUT / "advtrain").rglob("*.py")
    importers = {m.parent.name for m in modules if any(n.startswith("torch.distributed") for n in imported_names(m))}
    assert importers == {"distributed"}
