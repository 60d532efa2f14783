"""RobustBench's wheel on top of today's AutoAttack package."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from advtrain.evaluation import robustbench as adapter
from advtrain.evaluation.robustbench import import_robustbench, load_zoo_model, zoo_norm
from advtrain.types import SettingError

NAME = "Addepalli2022Efficient_RN18"


@pytest.fixture(scope="module", autouse=True)
def robustbench():
    pytest.importorskip("pyautoattack")
    try:
        return import_robustbench()
    except SettingError as error:
        pytest.skip(str(error))


def test_benchmark_as_robustbench_calls_it(problem, monkeypatch, capsys, tmp_path):
    """RobustBench's own `benchmark`, with data and model of ours: its arguments fit the adapter."""
    import robustbench.eval

    ten = problem(10, n=12)
    monkeypatch.setattr(robustbench.eval, "load_clean_dataset", lambda *_: (ten.split.images, ten.split.labels))
    log = tmp_path / "log.txt"
    clean, robust = robustbench.eval.benchmark(
        ten.model.eval(), n_examples=12, dataset="cifar10", threat_model="Linf", eps=ten.eps, log_path=str(log)
    )
    assert clean == pytest.approx(ten.clean.float().mean().item())
    assert robust == pytest.approx(ten.robust.float().mean().item())
    assert "robust accuracy after APGD-T" in capsys.readouterr().out
    assert "robust accuracy after SQUARE" in log.read_text()


def test_labels_and_silence(problem, capsys):
    four = problem(4, n=12)
    attack = adapter.AutoAttack(
        four.model.eval(), "Linf", four.eps, seed=0, verbose=False, attacks_to_run=["apgd-ce"], version="custom",
        device="cpu",
    )  # fmt: skip
    x_adv, y_adv = attack.run_standard_evaluation(four.split.images, four.split.labels, bs=5, return_labels=True)
    assert torch.equal(y_adv, four.model(x_adv).argmax(1))
    assert (y_adv != four.split.labels).sum() > (~four.clean).sum()
    assert capsys.readouterr() == ("", "")


def test_the_real_package_wins():
    """In a process where `autoattack` can be imported, that one stays."""
    code = (
        "import sys, types; real = types.ModuleType('autoattack'); sys.modules['autoattack'] = real\n"
        "from advtrain.evaluation.robustbench import _offer_autoattack\n"
        "_offer_autoattack(); assert sys.modules['autoattack'] is real\n"
        "del sys.modules['autoattack']; _offer_autoattack()\n"
        "from autoattack import AutoAttack; from autoattack.state import EvaluationState\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_package(monkeypatch):
    monkeypatch.setattr(adapter, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"expected the package, got none; pip install 'advtrain\[robustbench\]'"):
        load_zoo_model(NAME, dataset="cifar10", threat_norm="linf")


def test_unknown_name_suggests_near_ones():
    with pytest.raises(SettingError, match=r"did you mean .*Wang2023Better_WRN-28-10"):
        load_zoo_model("Wang2023Better_WRN2810", dataset="cifar10", threat_norm="linf")


def test_unknown_dataset_and_norm():
    with pytest.raises(SettingError, match="dataset: expected one of cifar10, cifar100, imagenet"):
        load_zoo_model(NAME, dataset="mnist", threat_norm="linf")
    with pytest.raises(SettingError, match="norm: expected one of linf, l2"):
        load_zoo_model(NAME, dataset="cifar10", threat_norm="Linf")


@pytest.mark.parametrize("name", [NAME, "Debenedetti2022Light_XCiT-S12", "Chen2020Adversarial"])
def test_nothing_is_downloaded_unasked(name, tmp_path):
    with pytest.raises(SettingError, match="download=true"):
        load_zoo_model(name, dataset="cifar10", threat_norm="linf", model_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_web_page_is_no_weights(tmp_path):
    folder = tmp_path / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    (folder / f"{NAME}.pt").write_text("\n<!DOCTYPE html><html>Google Drive quota exceeded</html>")
    with pytest.raises(SettingError, match="got a web page; delete the file"):
        load_zoo_model(NAME, dataset="cifar10", threat_norm="linf", model_dir=tmp_path)


def test_weights_from_disk(tmp_path):
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    torch.manual_seed(0)
    own: nn.Module = model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf][NAME]["model"]().eval()
    folder = tmp_path / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    torch.save(own.state_dict(), folder / f"{NAME}.pt")
    loaded = load_zoo_model(NAME, dataset="cifar10", threat_norm="linf", model_dir=tmp_path)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), own(x))
    assert not loaded.training


def test_which_board_a_name_means():
    assert zoo_norm(NAME, dataset="cifar10") == "linf"
    assert zoo_norm("Rice2020Overfitting", dataset="cifar10") == "linf"  # a model on both boards
    assert zoo_norm("Rice2020Overfitting", dataset="cifar10", norm="l2") == "l2"
    assert zoo_norm("Augustin2020Adversarial_34_10", dataset="cifar10") == "l2"
    assert zoo_norm(NAME, dataset="cifar10", norm="l1") == "linf"  # no such board: the model is attacked otherwise


def test_a_name_of_another_board_says_where_it_is():
    with pytest.raises(SettingError, match=r"it is there with dataset=cifar10 norm=l2$"):
        zoo_norm("Augustin2020Adversarial_34_10", dataset="cifar100")
    with pytest.raises(SettingError, match="norm: expected one of linf, l2, got 'l1'"):
        load_zoo_model(NAME, dataset="cifar10", threat_norm="l1")
    with pytest.raises(SettingError, match="one of the 0 imagenet L2 models"):
        load_zoo_model(NAME, dataset="imagenet", threat_norm="l2")


class Tiny(nn.Module):
    """As some architectures of the zoo do, it puts a constant on the GPU while it is built, and prints."""

    def __init__(self) -> None:
        super().__init__()
        print("The network has parameters.")
        self.shift = torch.zeros(3, 1, 1).cuda()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).cuda()

    def forward(self, x):
        return self.layers(x + self.shift.to(x.device))


@pytest.fixture
def tiny_zoo(monkeypatch):
    """RobustBench's zoo with two small models: one file of weights, and an ensemble of two."""
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.models = nn.ModuleList([Tiny(), Tiny()])

        def forward(self, x):
            return sum(model(x) for model in self.models)

    zoo = model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf]
    monkeypatch.setitem(zoo, "Tiny2026Model.v1-a", {"model": Tiny, "gdrive_id": "x"})
    monkeypatch.setitem(zoo, "Tiny2026Pair", {"model": Pair, "gdrive_id": ["x", "y"]})


def test_a_constructor_that_wants_a_gpu_works_without(tiny_zoo, tmp_path, capsys):
    folder = tmp_path / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    weights = {f"layers.1.{name}": torch.randn(shape) for name, shape in (("weight", (10, 3072)), ("bias", (10,)))}
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in weights.items()}}, folder / "Tiny2026Model.v1-a.pt"
    )
    kept = torch.Tensor.cuda, nn.Module.cuda
    loaded = load_zoo_model("Tiny2026Model.v1-a", dataset="cifar10", threat_norm="linf", model_dir=tmp_path)
    assert (torch.Tensor.cuda, nn.Module.cuda) == kept
    assert capsys.readouterr().out == ""
    x = torch.rand(2, 3, 32, 32)
    expected = x.flatten(1) @ weights["layers.1.weight"].T + weights["layers.1.bias"]
    torch.testing.assert_close(loaded.to("cpu")(x), expected, rtol=1e-4, atol=1e-4)


def test_an_ensemble_has_its_files_where_robustbench_looks(tiny_zoo, tmp_path):
    with pytest.raises(SettingError, match=r"Tiny2026Pair\.pt_m0\.pt, got no such file"):
        load_zoo_model("Tiny2026Pair", dataset="cifar10", threat_norm="linf", model_dir=tmp_path)
    folder = tmp_path / "cifar10" / "Linf"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(2):
        weights = {"layers.1.weight": torch.full((10, 3072), float(i)), "layers.1.bias": torch.zeros(10)}
        torch.save(weights, folder / f"Tiny2026Pair.pt_m{i}.pt")
    loaded = load_zoo_model("Tiny2026Pair", dataset="cifar10", threat_norm="linf", model_dir=tmp_path)
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(loaded(x), x.sum().expand(1, 10), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("broken", ["other", "cut", "pickle"])
def test_weights_that_do_not_fit_are_named(tiny_zoo, broken, tmp_path):
    path = tmp_path / "cifar10" / "Linf" / "Tiny2026Model.v1-a.pt"
    path.parent.mkdir(parents=True)
    torch.save({"other": torch.zeros(1)} if broken != "pickle" else {"state_dict": nn.Linear(1, 1)}, path)
    if broken == "cut":
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SettingError, match=r"v1-a\.pt: expected the weights of Tiny2026Model\.v1-a, got ") as caught:
        load_zoo_model("Tiny2026Model.v1-a", dataset="cifar10", threat_norm="linf", model_dir=tmp_path)
    assert "\n" not in str(caught.value)
