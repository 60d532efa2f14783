"""Checks this folder: python verify.py

Needs Python, PyTorch and NumPy; uses RobustBench's own loader and classes where they are installed and fit. Nothing
is downloaded, and advtrain, which wrote the folder, cannot be imported. Checked are the SHA-256 sums, the clean
predictions one by one, the robust count from the stored adversarial images, that these stay in the ball and in
[0, 1], and the percentages in model_info. Ends with 0 when all of it holds, else with 1 and one line that says what
does not. Like any model file with code, the folder is as trustworthy as who gave it to you: architecture.py and
zoo_entry.py are run.
"""

import hashlib
import importlib
import importlib.util
import json
import platform
import sys
import types
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

TIE = 1e-4  # a gap between logits, relative to the largest, that another machine's float32 rounding may turn around
FORMAT = 1
FILES = (
    "verification.json",
    "verification.npz",
    "zoo_entry.py",
    "architecture.py",
    "verify.py",
    "README.md",
    "submission.md",
)


class Mismatch(Exception):
    """Something in the folder does not hold."""


class _NoAdvtrain:
    """On sys.meta_path: a folder that needs advtrain would not be one for everybody."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] == "advtrain":
            raise ModuleNotFoundError("advtrain is hidden from the verification", name=name)


def isolate() -> None:
    """Hides advtrain, refuses connections, writes no bytecode."""
    loaded = [name for name in sys.modules if name.split(".")[0] == "advtrain"]
    _expect(not loaded, "a process without advtrain", f"{', '.join(loaded)} loaded", "run it with python -I")
    sys.meta_path.insert(0, _NoAdvtrain())
    sys.dont_write_bytecode = True
    sys.addaudithook(_offline)


def check(folder: Path) -> dict:
    """Checks `folder`; returns what was found.

    Raises:
        Mismatch: with one line.
    """
    check_sums(folder)
    spec = json.loads((folder / "verification.json").read_text())
    _expect(spec["format"] == FORMAT, f"format {FORMAT}", spec["format"], "use the verify.py of the same bundle")
    device = _prepare(spec)
    with np.load(folder / "verification.npz", allow_pickle=False) as stored:
        data = {name: torch.from_numpy(np.asarray(stored[name])) for name in stored.files}
    x, x_adv = _pixels(data["images"]), _pixels(data["adversarial_images"])
    y, size = data["labels"], int(data["batch_size"])
    check_inside(x, x_adv, spec["norm"], float(Fraction(spec["eps"])))
    model, loader, architecture = load(folder, spec)
    model.eval().to(device)
    if spec["channels_last"]:
        model.to(memory_format=torch.channels_last)
    slack = 0.0 if spec["environment"] == environment(device) else TIE
    ties = check_predictions(logits_of(model, x, size, device), data["clean_predictions"], slack)
    robust, robust_ties = check_robust(logits_of(model, x_adv, size, device), y, spec["robust"]["correct"], slack)
    clean = int((data["clean_predictions"] == y).sum())
    check_model_info(folder, spec, clean, len(y))
    return {
        "loader": loader,
        "architecture": architecture,
        "n_examples": len(y),
        "clean_correct": clean,
        "robust_correct": robust,
        "attack": spec["robust"]["attack"],
        "rounding_ties": ties + robust_ties,
    }


def check_sums(folder: Path) -> None:
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    spec = json.loads((folder / "verification.json").read_text())
    # Other files may lie in the folder (__pycache__, notes), but none of ours may have left the list.
    missing = {*FILES, spec["weights"], spec["model_info"]} - listed.keys()
    _expect(not missing, "every file in SHA256SUMS", f"no {', '.join(sorted(missing))}", "export again")
    for name, digest in listed.items():
        path = folder / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        _expect(found == digest, f"{name} with SHA-256 {digest[:12]}…", f"{found[:12]}", "the file was changed")


def check_inside(x: torch.Tensor, x_adv: torch.Tensor, norm: str, eps: float) -> None:
    """In the ball to within float32 rounding, in [0, 1] exactly."""
    in_box = bool(x_adv.min() >= 0 and x_adv.max() <= 1)  # nan is not
    _expect(in_box, "adversarial pixels in [0, 1]", f"{x_adv.min():.7g} to {x_adv.max():.7g}", "wrong images?")
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[norm]
    parts = zip(x.split(500), x_adv.split(500), strict=True)
    distance = max(torch.linalg.vector_norm((b.double() - a.double()).flatten(1), order, 1).max() for a, b in parts)
    inside = bool(distance <= eps + 1e-6 * max(1.0, eps))
    _expect(inside, f"adversarial images within {norm} {eps:.7g}", f"{distance:.7g}", "wrong images or radius?")


def check_model_info(folder: Path, spec: dict, clean_correct: int, n_examples: int) -> None:
    """The percentages that will be published are those of the counts."""
    info = json.loads((folder / spec["model_info"]).read_text())
    clean, robust = spec["clean"], spec["robust"]
    if clean["n_examples"] == n_examples:
        _expect(clean["correct"] == clean_correct, f"{clean_correct} correct", clean["correct"], "edited record?")
    percent = f"{100 * clean['correct'] / clean['n_examples']:.2f}"
    _expect(info["clean_acc"] == percent, f"clean_acc {percent}", info["clean_acc"], "edited model_info?")
    _expect(info["eps"] == spec["eps"], f"eps {spec['eps']}", info["eps"], "edited model_info?")
    _expect(robust["n_examples"] == n_examples, f"{n_examples} attacked", robust["n_examples"], "edited record?")
    if robust["attack"] == "autoattack":
        percent = f"{100 * robust['correct'] / n_examples:.2f}"
        for field in ("autoattack_acc", "reported"):
            _expect(info[field] == percent, f"{field} {percent}", info[field], "edited model_info?")


def load(folder: Path, spec: dict) -> tuple[torch.nn.Module, str, str]:
    """The model, which loader read it, and which class it is."""
    architecture = _module("architecture", folder / "architecture.py")
    reason = "RobustBench's loader does not fit" if not spec["loads_in_robustbench"] else _import_robustbench()
    if reason is None:
        from robustbench.model_zoo import model_dicts
        from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
        from robustbench.utils import load_model

        zoo = model_dicts[BenchmarkDataset(spec["dataset"])][ThreatModel(spec["threat"])]
        zoo.update(_module("zoo_entry", folder / "zoo_entry.py").ENTRIES)
        model = load_model(spec["model_id"], folder / "models", spec["dataset"], spec["threat"])
        return model, "robustbench load_model", _class_of(model)
    model = getattr(architecture, spec["build"])(**spec["arguments"])
    weights = torch.load(folder / spec["weights"], map_location="cpu", weights_only=True)
    model.load_state_dict(weights["state_dict"], strict=True)
    return model, f"torch ({reason})", _class_of(model)


def logits_of(model: torch.nn.Module, x: torch.Tensor, batch_size: int, device: str) -> torch.Tensor:
    """(n, classes), in the batches of the evaluation."""
    with torch.no_grad():
        logits = torch.cat([model(part.to(device)).cpu() for part in x.split(batch_size)])
    _expect(bool(logits.isfinite().all()), "finite logits", "inf or nan", "wrong weights?")
    return logits


def check_predictions(logits: torch.Tensor, stored: torch.Tensor, slack: float) -> int:
    """Each prediction is the stored one; returns how many are so only because two logits tie to within `slack`."""
    differ = logits.argmax(1) != stored
    wrong = int((differ & ~_may_win(logits, stored, slack)).sum())
    _expect(wrong == 0, "the stored clean predictions", f"{wrong} others", "wrong weights or images?")
    return int(differ.sum())


def check_robust(logits: torch.Tensor, y: torch.Tensor, claimed: int, slack: float) -> tuple[int, int]:
    """The claimed number of correct predictions; returns it and how far it is from ours because of ties."""
    correct = logits.argmax(1) == y
    first, second = logits.topk(2, dim=1).values.unbind(1)
    surely = correct & (first - second >= slack * logits.abs().amax(1))
    possible = int(surely.sum()) <= claimed <= int((correct | _may_win(logits, y, slack)).sum())
    found = int(correct.sum())
    _expect(possible, f"{claimed} robust images", found, "wrong weights or images?")
    return claimed, abs(found - claimed)


def _may_win(logits: torch.Tensor, classes: torch.Tensor, slack: float) -> torch.Tensor:
    """Where rounding may make `classes` the prediction."""
    behind = logits.amax(1) - logits.gather(1, classes[:, None]).squeeze(1)
    return behind < slack * logits.abs().amax(1)


def environment(device: str) -> dict:
    """What float32 rounding depends on."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {"torch": torch.__version__, "cpu": _cpu_model(), "gpu": gpu}


def _prepare(spec: dict) -> str:
    torch.set_num_threads(spec["threads"])
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return "cuda" if spec["environment"]["gpu"] and torch.cuda.is_available() else "cpu"


def _import_robustbench() -> str | None:
    """Makes RobustBench importable; returns why not. Its wheel imports a package `autoattack` that is not on PyPI."""
    if "autoattack" not in sys.modules and importlib.util.find_spec("autoattack") is None:
        package, state = types.ModuleType("autoattack"), types.ModuleType("autoattack.state")
        vars(package)["AutoAttack"] = vars(state)["EvaluationState"] = type("Absent", (), {})
        sys.modules.update({"autoattack": package, "autoattack.state": state})
    try:
        importlib.import_module("robustbench")
    except Exception as error:  # whatever its many dependencies raise: plain PyTorch remains
        return f"RobustBench does not import: {error}"
    return None


def _pixels(stored: torch.Tensor) -> torch.Tensor:
    """float32 in [0, 1]; grey levels are stored as bytes."""
    return stored.float() / 255 if stored.dtype == torch.uint8 else stored


def _module(name: str, path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise Mismatch(f"expected a Python file, got {path.name}; export again")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _class_of(model: torch.nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"


def _cpu_model() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _offline(event: str, arguments: tuple) -> None:
    if event == "socket.connect":
        raise OSError("the verification is offline")


def _expect(holds: bool, expected: str, got: object, remedy: str) -> None:
    if not holds:
        raise Mismatch(f"expected {expected}, got {got}; {remedy}")


def main(arguments: list) -> int:
    as_json = "--json" in arguments
    named = [word for word in arguments if not word.startswith("--")]
    folder = Path(named[0]) if named else Path(__file__).parent
    try:
        isolate()
        found = check(folder.resolve())
    except Mismatch as error:
        print(f"verification failed: {error}", file=sys.stderr)
        return 1
    except Exception as error:  # a folder that cannot even be read or run is not a verified one
        lines = str(error).strip().splitlines() or ["no message"]
        print(f"verification failed: {type(error).__name__}: {' '.join(lines)[:500]}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(found))
    else:
        n, attack = found["n_examples"], found["attack"]
        print(f"verified with {found['loader']}, {found['architecture']}")
        print(f"clean {found['clean_correct']} of {n}, robust against {attack} {found['robust_correct']} of {n}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
