"""Checks this folder: python verify.py

Needs Python, PyTorch and NumPy; RobustBench too where the network is RobustBench's class. In the process that checks,
nothing else can be imported but what these three need, nothing is downloaded, and advtrain, which wrote the folder,
does not exist.

Checked are the SHA-256 sums, that both weight files hold the same tensors, the clean predictions one by one, the robust
verdicts from the stored adversarial images, that these stay in the ball and in [0, 1], and the percentages in
model_info. Then a short white-box attack looks for adversarial images among those that are recorded as robust: a few
can be found by luck, many prove the record wrong.

Ends with 0 when all of it holds, with 1 and one line that says what does not, with 3 and a line when RobustBench is
needed and not there, or when the weights or the images, which may be kept apart from the rest, are not. Like any model
file with code, the folder is as trustworthy as who gave it to you: architecture.py, build.py or zoo_entry.py is run.
"""

import functools
import hashlib
import importlib
import importlib.util
import json
import math
import platform
import re
import sys
import types
import warnings
from collections.abc import Callable
from fractions import Fraction
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

TIE = 1e-4  # a gap between logits, relative to the largest, that another machine's float32 rounding may turn around
FORMAT = 2
FORMATS = (1, 2)
CANNOT = 3  # exit code: a package or a large file is missing
TO_FILL = "to be filled by the author"
ALWAYS = ("verification.json", "verification.npz", "verify.py", "README.md")
PAPERS = {
    1: ("architecture.py", "zoo_entry.py", "submission.md"),
    "leaderboard": ("LICENSE", "zoo_entry.py", "submission.md"),
    "archive": ("LICENSE", "NOT_A_SUBMISSION.md"),
}

ATTACK = "PGD-10 × 2"
STEPS, RESTARTS, SAMPLE = 10, 2, 200  # the attack on at most so many images
# Luck finds one image of a hundred where AutoAttack found none; a weaker attack leaves more.
TOLERANCE = {"autoattack": 0.02, "screen": 0.03, "pgd": 0.05}

ROOTS = ("torch", "numpy", "robustbench", "timm", "torchvision")  # the last two are what RobustBench itself needs


class Mismatch(Exception):
    """Something in the folder does not hold."""


class Missing(Exception):
    """A package that the folder's network needs is not here, or a file that is too large to travel with the rest."""


class Only:
    """Stands before a finder of sys.meta_path and lets it find the allowed top-level modules alone."""

    def __init__(self, finder: object, allowed: frozenset) -> None:
        self.finder, self.allowed = finder, allowed

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        find = getattr(self.finder, "find_spec", None)
        # What sysconfig reads it imports by a name of its own, when it is first asked.
        fits = _top(name) in self.allowed or name.startswith("_sysconfigdata")
        return find(name, path, target) if find is not None and fits else None

    def __getattr__(self, name: str) -> object:
        return getattr(self.finder, name)


def isolate() -> None:
    """Hides all but the allowed packages, refuses connections, writes no bytecode."""
    loaded = [name for name in sys.modules if _top(name) == "advtrain"]
    _expect(not loaded, "a process without advtrain", f"{', '.join(loaded)} loaded", "run it with python -I")
    allowed = frozenset(allowed_modules())
    for name in [name for name in sys.modules if _top(name) not in allowed and name != "__main__"]:
        del sys.modules[name]
    finders: list = [Only(finder, allowed) for finder in sys.meta_path]
    sys.meta_path[:] = finders
    sys.dont_write_bytecode = True
    sys.addaudithook(_offline)


def allowed_modules() -> set:
    """The standard library's modules, and those of the roots and of every package that these require."""
    allowed = {*sys.stdlib_module_names, *sys.builtin_module_names, *ROOTS, "autoattack"}
    seen, waiting = set(), [(name, "") for name in ROOTS]
    while waiting:
        package, extra = waiting.pop()
        if (package, extra) in seen:
            continue
        seen.add((package, extra))
        try:
            found = metadata.distribution(package)
        except metadata.PackageNotFoundError:
            continue
        allowed |= _modules_of(found)
        for line in found.requires or []:
            named = re.match(r"([\w.-]+)\s*(?:\[([^\]]*)\])?", line)
            wanted = re.search(r"extra\s*==\s*['\"]([^'\"]+)", line)
            if named and (wanted is None or wanted.group(1) == extra):
                extras = [word.strip() for word in (named.group(2) or "").split(",")]
                waiting += [(named.group(1).lower(), word) for word in {"", *extras}]
    return allowed - {"advtrain"}


def _modules_of(found: metadata.Distribution) -> set:
    """Top-level modules of a package; those too that it carries in a folder `_vendor`, as setuptools does."""
    declared = (found.read_text("top_level.txt") or "").split()
    if declared and "setuptools" not in declared:
        return set(declared)
    files = [file for file in found.files or [] if file.suffix in (".py", ".so", ".pyd")]
    modules = {_top(file.parts[0]) for file in files} if not declared else set(declared)
    vendored = [file.parts[file.parts.index("_vendor") + 1] for file in files if "_vendor" in file.parts[:-1]]
    return modules | {_top(name) for name in vendored if not name.startswith("__")}


def check(folder: Path) -> dict:
    """Checks `folder`; returns what was found.

    Raises:
        Mismatch: with one line.
        Missing: RobustBench is needed and not there, or the weights or the images are not; all else was checked.
    """
    spec = json.loads((folder / "verification.json").read_text())
    written = " or ".join(map(str, FORMATS))
    _expect(spec["format"] in FORMATS, f"format {written}", spec["format"], "use the verify.py of the same bundle")
    elsewhere = check_sums(folder, spec)
    if elsewhere:
        check_model_info(folder, spec, spec["clean"]["correct"], spec["robust"]["n_examples"])
        raise Missing(
            f"expected {', '.join(elsewhere)}, got no such file: this copy of the folder comes without; the rest is as "
            "listed; put it in its place, or train such a model anew as README.md says"
        )
    device = _prepare(spec)
    with np.load(folder / "verification.npz", allow_pickle=False) as stored:
        arrays = {name: np.asarray(stored[name]) for name in stored.files if name != "attack_names"}
    data = {name: torch.from_numpy(value) for name, value in arrays.items()}
    x, x_adv = _pixels(data["images"]), _pixels(data["adversarial_images"])
    y, size = data["labels"], int(data["batch_size"])
    radius = float(Fraction(spec["eps"]))
    check_inside(x, x_adv, spec["norm"], radius)
    check_weights(folder, spec)
    model, loader, architecture = load(folder, spec)
    model.eval().requires_grad_(False).to(device)
    if spec["channels_last"]:
        model.to(memory_format=torch.channels_last)
    slack = 0.0 if spec["environment"] == environment(device) else TIE
    ties = check_predictions(logits_of(model, x, size, device), data["clean_predictions"], slack)
    logits = logits_of(model, x_adv, size, device)
    robust, robust_ties = check_robust(logits, y, spec["robust"]["correct"], slack)
    check_verdicts(logits, y, data.get("robust"), slack)
    clean = int((data["clean_predictions"] == y).sum())
    check_model_info(folder, spec, clean, len(y))
    claimed = (logits.argmax(1) == y).nonzero().flatten()
    attacked, broken = check_attack(model, x[claimed], y[claimed], spec, size, device)
    return {
        "loader": loader,
        "architecture": architecture,
        "n_examples": len(y),
        "clean_correct": clean,
        "robust_correct": robust,
        "attack": spec["robust"]["attack"],
        "attacked": attacked,
        "broken": broken,
        "rounding_ties": ties + robust_ties,
    }


def check_sums(folder: Path, spec: dict) -> list:
    """Each file is the listed one; returns, with their sums, those of the large ones that are not here."""
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    # Other files may lie in the folder (__pycache__, notes), but none of ours may have left the list.
    papers = PAPERS[1] if spec["format"] == 1 else (*PAPERS[spec["target"]], spec["network"], spec["safetensors"])
    missing = {*ALWAYS, *papers, spec["weights"], spec["model_info"]} - listed.keys()
    _expect(not missing, "every file in SHA256SUMS", f"no {', '.join(sorted(missing))}", "export again")
    large, elsewhere = (spec["weights"], spec.get("safetensors"), "verification.npz"), []
    for name, digest in listed.items():
        path = folder / name
        if name in large and not path.exists():
            elsewhere.append(f"{name} with SHA-256 {digest}")
            continue
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        _expect(found == digest, f"{name} with SHA-256 {digest[:12]}…", f"{found[:12]}", "the file was changed")
    return elsewhere


def check_inside(x: torch.Tensor, x_adv: torch.Tensor, norm: str, eps: float) -> None:
    """In the ball to within float32 rounding, in [0, 1] exactly."""
    in_box = bool(x_adv.min() >= 0 and x_adv.max() <= 1)  # nan is not
    _expect(in_box, "adversarial pixels in [0, 1]", f"{x_adv.min():.7g} to {x_adv.max():.7g}", "wrong images?")
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[norm]
    parts = zip(x.split(500), x_adv.split(500), strict=True)
    distance = max(torch.linalg.vector_norm((b.double() - a.double()).flatten(1), order, 1).max() for a, b in parts)
    inside = bool(distance <= eps + 1e-6 * max(1.0, eps))
    _expect(inside, f"adversarial images within {norm} {eps:.7g}", f"{distance:.7g}", "wrong images or radius?")


def check_weights(folder: Path, spec: dict) -> None:
    """Both files of weights hold the same tensors under the same names."""
    if spec["format"] == 1:
        return
    first = torch.load(folder / spec["weights"], map_location="cpu", weights_only=True)["state_dict"]
    second = read_safetensors(folder / spec["safetensors"])
    differ = sorted(first.keys() ^ second.keys()) or [
        name
        for name in first
        if not (first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]))
    ]
    _expect(not differ, "the same tensors in both files of weights", f"others in {differ[:1]}", "export again")


def read_safetensors(path: Path) -> dict:
    """The tensors of a safetensors file: eight bytes with the header's length, the header as JSON, the raw values."""
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"}
    kinds |= {"U8": "u1", "BOOL": "?"}
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    tensors = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__":
            low, high = entry["data_offsets"]
            values = np.frombuffer(raw[start + low : start + high], kinds[entry["dtype"]])
            tensors[name] = torch.from_numpy(values.reshape(entry["shape"]).copy())
    return tensors


def check_model_info(folder: Path, spec: dict, clean_correct: int, n_examples: int) -> None:
    """The percentages that will be published are those of the counts; an archive may leave them to the author."""
    info = json.loads((folder / spec["model_info"]).read_text())
    clean, robust = spec["clean"], spec["robust"]
    if clean["n_examples"] == n_examples:
        _expect(clean["correct"] == clean_correct, f"{clean_correct} correct", clean["correct"], "edited record?")
    _expect(info["eps"] == spec["eps"], f"eps {spec['eps']}", info["eps"], "edited model_info?")
    _expect(robust["n_examples"] == n_examples, f"{n_examples} attacked", robust["n_examples"], "edited record?")
    percents = {"clean_acc": f"{100 * clean['correct'] / clean['n_examples']:.2f}"}
    percents |= dict.fromkeys(("autoattack_acc", "reported"), f"{100 * robust['correct'] / n_examples:.2f}")
    for field, percent in percents.items():
        may_be_open = spec.get("target") == "archive" or (spec["format"] == 1 and robust["attack"] != "autoattack")
        is_open = may_be_open and str(info[field]).startswith(TO_FILL)
        _expect(is_open or info[field] == percent, f"{field} {percent}", info[field], "edited model_info?")


def load(folder: Path, spec: dict) -> tuple:
    """The model, which loader read it, and which class it is."""
    needs = spec.get("needs")
    reason = _import_robustbench() if spec["loads_in_robustbench"] or needs == "robustbench" else None
    if reason is not None and needs == "robustbench":
        raise Missing(f"expected robustbench, whose class this model is, got {reason}; pip install robustbench")
    if not spec["loads_in_robustbench"]:
        reason = "RobustBench's loader does not fit"
    build = _builder(folder, spec)
    if reason is None:
        from robustbench.model_zoo import model_dicts
        from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
        from robustbench.utils import load_model

        entry = {spec["model_id"]: {"model": build, "gdrive_id": "", "preprocessing": "Res256Crop224"}}
        if (folder / "zoo_entry.py").is_file():
            entry = _module("zoo_entry", folder / "zoo_entry.py").ENTRIES
        model_dicts[BenchmarkDataset(spec["dataset"])][ThreatModel(spec["threat"])].update(entry)
        model = load_model(spec["model_id"], folder / "models", spec["dataset"], spec["threat"])
        return model, "robustbench load_model", _class_of(model)
    model = build()
    weights = torch.load(folder / spec["weights"], map_location="cpu", weights_only=True)
    model.load_state_dict(weights["state_dict"], strict=True)
    return model, f"torch ({reason})", _class_of(model)


def _builder(folder: Path, spec: dict) -> Callable:
    """What makes the network without its weights."""
    file = spec.get("network", "architecture.py")
    if file == "zoo_entry.py":
        return _module("zoo_entry", folder / file).ENTRIES[spec["model_id"]]["model"]
    build = getattr(_module(Path(file).stem, folder / file), spec["build"])
    return functools.partial(build, **spec["arguments"])


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


def check_robust(logits: torch.Tensor, y: torch.Tensor, claimed: int, slack: float) -> tuple:
    """The claimed number of correct predictions; returns it and how far it is from ours because of ties."""
    correct = logits.argmax(1) == y
    surely = correct & ~_near_tie(logits, slack)
    possible = int(surely.sum()) <= claimed <= int((correct | _may_win(logits, y, slack)).sum())
    found = int(correct.sum())
    _expect(possible, f"{claimed} robust images", found, "wrong weights or images?")
    return claimed, abs(found - claimed)


def check_verdicts(logits: torch.Tensor, y: torch.Tensor, stored: "torch.Tensor | None", slack: float) -> None:
    """Each image is robust or broken as recorded, where the evaluation recorded that."""
    if stored is not None:
        differ = ((logits.argmax(1) == y) != stored.bool()) & ~_near_tie(logits, slack)
        _expect(not differ.any(), "the stored robust verdicts", f"{int(differ.sum())} others", "edited record?")


def check_attack(
    model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, spec: dict, batch_size: int, device: str
) -> tuple:
    """Attacks a sample of the images recorded as robust; returns how many, and how many it broke."""
    sample = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:SAMPLE]
    radius, broken = float(Fraction(spec["eps"])), 0
    for part in sample.split(batch_size):
        broken += int(is_broken(model, x[part].to(device), y[part].to(device), spec["norm"], radius).sum())
    allowed = max(1, math.ceil(TOLERANCE[spec["robust"]["attack"]] * len(sample)))
    found = f"{broken} of {len(sample)} broken by {ATTACK}"
    remedy = "the robust accuracy is too high: evaluate with a stronger attack"
    _expect(broken <= allowed, "images recorded as robust to be so", found, remedy)
    return len(sample), broken


def is_broken(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, norm: str, eps: float) -> torch.Tensor:
    """Where projected gradient ascent on the cross-entropy (Madry et al., arXiv:1706.06083) finds a misclassification.

    Args:
        model: in eval mode, on the device of `x`.
        x: images in [0, 1], shape (n, c, h, w).
        y: their labels.
        norm: linf, l2 or l1.
        eps: radius.
    """
    generator, found = torch.Generator().manual_seed(1), torch.zeros(len(y), dtype=torch.bool, device=x.device)
    for _ in range(RESTARTS):
        noise = torch.rand(x.shape, generator=generator).mul(2).sub(1).to(x.device)
        reach = 1.0 if norm == "linf" else 1 / length(noise, norm)
        x_adv = inside(x, noise * reach * eps, norm, eps)
        for step in range(STEPS + 1):
            x_adv = x_adv.detach().requires_grad_()
            with torch.enable_grad():
                logits = model(x_adv)
                loss = torch.nn.functional.cross_entropy(logits, y, reduction="sum")
            found |= logits.argmax(1) != y
            if step < STEPS and not found.all():
                (gradient,) = torch.autograd.grad(loss, x_adv)
                x_adv = inside(x, x_adv.detach() - x + eps / 4 * ascent(gradient, x_adv.detach(), norm), norm, eps)
    return found


def ascent(gradient: torch.Tensor, x: torch.Tensor, norm: str) -> torch.Tensor:
    """The step of length 1 that raises the loss most; in L1, the same in 2 % of the pixels that can still move."""
    if norm == "linf":
        return gradient.sign()
    if norm == "l2":
        return gradient / length(gradient, norm)
    movable = torch.where(gradient > 0, x < 1, x > 0)
    size = (gradient.abs() * movable).flatten(1)
    least = size.topk(max(1, size.shape[1] // 50), 1).values[:, -1:]
    chosen = (size >= least.clamp_min(1e-30)).view_as(gradient)
    return gradient.sign() * chosen / length(chosen.float(), norm)


def inside(x: torch.Tensor, delta: torch.Tensor, norm: str, eps: float) -> torch.Tensor:
    """x + delta brought back into the ball, then into [0, 1], which only shortens the way from x."""
    if norm == "linf":
        delta = delta.clamp(-eps, eps)
    elif norm == "l2":
        delta = delta * (eps / length(delta, norm)).clamp_max(1)
    else:
        delta = _project_l1(delta.flatten(1), eps).view_as(delta)
    return (x + delta).clamp(0, 1)


def length(delta: torch.Tensor, norm: str) -> torch.Tensor:
    """Of each image's part, shape (n, 1, 1, 1); never 0."""
    order = {"l2": 2, "l1": 1}[norm]
    return torch.linalg.vector_norm(delta.flatten(1), order, 1).clamp_min(1e-12).view(-1, 1, 1, 1)


def _project_l1(rows: torch.Tensor, eps: float) -> torch.Tensor:
    """The nearest point of the ball (Duchi et al., 2008, figure 1), for each row."""
    ordered = rows.abs().sort(1, descending=True).values
    threshold = (ordered.cumsum(1) - eps) / torch.arange(1, rows.shape[1] + 1, device=rows.device)
    kept = (ordered > threshold).sum(1, keepdim=True).clamp_min(1)
    shrunk = rows.sign() * (rows.abs() - threshold.gather(1, kept - 1)).clamp_min(0)
    return torch.where(rows.abs().sum(1, keepdim=True) <= eps, rows, shrunk)


def _near_tie(logits: torch.Tensor, slack: float) -> torch.Tensor:
    """Where rounding may make another class the prediction."""
    first, second = logits.topk(2, dim=1).values.unbind(1)
    return first - second < slack * logits.abs().amax(1)


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


def _import_robustbench() -> "str | None":
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


def _top(name: str) -> str:
    return name.partition(".")[0]


def _offline(event: str, arguments: tuple) -> None:
    if event == "socket.connect":
        raise OSError("the verification is offline")


def _expect(holds: bool, expected: str, got: object, remedy: str) -> None:
    if not holds:
        raise Mismatch(f"expected {expected}, got {got}; {remedy}")


def _failure(error: Exception) -> str:
    """One line for whatever stopped the check: a folder that cannot even be read or run is not a verified one."""
    if isinstance(error, Mismatch | Missing):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return (
            f"expected code that needs PyTorch, NumPy, RobustBench and what these need, got an import of {error.name}, "
            "which is hidden or absent; take it out"
        )
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {' '.join(lines)[:500]}"


def main(arguments: list) -> int:
    as_json = "--json" in arguments
    named = [word for word in arguments if not word.startswith("--")]
    folder = Path(named[0]) if named else Path(__file__).parent
    warnings.simplefilter("ignore")  # of what RobustBench's dependencies deprecate
    try:
        isolate()
        found = check(folder.resolve())
    except Exception as error:
        print(f"verification failed: {_failure(error)}", file=sys.stderr)
        return CANNOT if isinstance(error, Missing) else 1
    if as_json:
        print(json.dumps(found))
    else:
        n, attack = found["n_examples"], found["attack"]
        print(f"verified with {found['loader']}, {found['architecture']}")
        print(f"clean {found['clean_correct']} of {n}, robust against {attack} {found['robust_correct']} of {n}")
        print(f"{ATTACK} broke {found['broken']} of {found['attacked']} images recorded as robust")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
