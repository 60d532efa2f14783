"""`advtrain-eval verify=…`: does every adversarial image of an earlier evaluation bear its verdict out?"""

import json
from pathlib import Path
from typing import Any

from advtrain.engine.progress import console
from advtrain.evaluation import EvaluationError, load_evidence, plain_check, recheck
from advtrain.evaluation.records import EVIDENCE, RECORD
from advtrain.finish import evaluation_device
from advtrain.sources import find_again

SHOWN = 20  # disagreements, at most: there may be thousands


def confirm(config: dict[str, Any]) -> None:
    """Re-checks the images that `verify` names with the model that they are of, and prints how anyone can.

    Raises:
        SettingError: images or model are not to be found.
        EvaluationError: an image does not bear its verdict out.
    """
    path = Path(config["verify"]).expanduser()
    path = path / EVIDENCE if path.is_dir() else path
    arrays = load_evidence(path)
    device = evaluation_device(config)
    record_path = path.with_name(RECORD)
    record = json.loads(record_path.read_text()) if record_path.is_file() else {}
    source = find_again(record, path.parent, config, device)
    norm, eps = str(arrays["norm"]), float(arrays["eps"])
    console.print(f"{path}: {len(arrays['labels'])} images, {norm}, ε = {eps:.5g}; model {source.name}")
    found = recheck(source.model, arrays, device)
    for name, claimed in found.claimed.items():
        console.print(f"{name:34}{found.counts[name]:>7} of {claimed} confirmed")
    if found.ties:
        console.print(f"{found.ties} verdict(s) rest on a tie of two logits, which rounds otherwise on this machine")
    for line in found.disagreements[:SHOWN]:
        console.print(line)
    console.print("\nthe same in plain PyTorch, with numpy, torch and the model in `model` (eval mode):\n")
    console.print(plain_check(path, norm, int(arrays["batch_size"])), markup=False)
    if found.disagreements:
        raise EvaluationError(
            f"expected every image to bear its verdict out, got {len(found.disagreements)} that do not; see above"
        )
