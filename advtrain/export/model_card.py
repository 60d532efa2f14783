"""The bundle's README.md: what the model is, how good, how that is known, and what it does not say."""

import json
from typing import Any

from advtrain.export import leaderboard
from advtrain.export.contents import Contents
from advtrain.export.documents import attack_log, bullets, interval, loader_notes, method
from advtrain.export.recipe import recipe_lines, training_lines


def model_card(contents: Contents) -> str:
    """README.md of a bundle."""
    parts = [_results, _use, _recipe, _evaluation, _masking, _checkpoints, _limitations]
    return "\n".join(text for text in (part(contents) for part in parts) if text)


def _results(contents: Contents) -> str:
    rows = [
        f"| {score.label} | {score.percent} % | {interval(score) or '–'} | {score.correct:,} of {score.n_examples:,} |"
        for score in contents.scores.values()
    ]
    table = "\n".join(["| attack | accuracy | 95 % interval (Wilson) | images |", "|---|---:|---:|---:|", *rows])
    position = contents.record.get("leaderboard") or {}
    quoted = f"\nOn the board of {position['source']}: {position['text']}.\n" if position.get("text") else ""
    return f"""# {contents.model_id}

{contents.architecture.name} for {contents.dataset}, evaluated at {contents.threat} ε = {contents.eps}.
Images in [0, 1], shape (n, channels, height, width); logits out; any normalisation is inside.

{table}
{quoted}"""


def _use(contents: Contents) -> str:
    architecture = contents.architecture
    if contents.network_file == "zoo_entry.py":
        first, build = "from zoo_entry import ENTRIES", f'ENTRIES["{contents.model_id}"]["model"]()'
    elif contents.network_file == "build.py":
        first, build = "from build import build", "build()"
    else:
        arguments = ", ".join(f"{name}={value!r}" for name, value in architecture.arguments.items())
        first, build = f"from architecture import {architecture.build}", f"{architecture.build}({arguments})"
    packages = {
        None: "Needs PyTorch.",
        "robustbench": "The network is RobustBench's class: `pip install robustbench 'setuptools<82'`.",
    }
    needs = packages.get(architecture.needs, f"Needs PyTorch and {architecture.needs}.")
    return f"""## Check it

`python verify.py` repeats the clean predictions and the robust verdicts from the stored adversarial images, with
RobustBench's loader where it is installed and fits, and attacks anew what is recorded as robust;
`sha256sum -c SHA256SUMS` checks the files.

## Load it

In this folder. {needs} `{contents.safetensors_path}` holds the same tensors.

```python
import torch
{first}

model = {build}
model.load_state_dict(torch.load("{contents.weights_path}", weights_only=True)["state_dict"])
model.eval()
```
"""


def _recipe(contents: Contents) -> str:
    lines = recipe_lines(contents.recipe) + (
        training_lines(contents.training) or ["compute of the training: not recorded"]
    )
    where = "\nrecipe.yaml holds all settings.\n" if contents.recipe else ""
    return f"## Recipe, data and compute\n\n{bullets(lines)}\n{where}"


def _evaluation(contents: Contents) -> str:
    record = contents.record
    settings = {name: dict(score.settings) for name, score in contents.scores.items()}
    lines = [f"{name}: {value}" for name, value in (record["hardware"] | record["versions"]).items() if value]
    near = contents.robust.near_boundary
    if near is not None:
        lines.insert(0, f"robust images within a hair of the decision boundary: {near}")
    if record.get("autoattack"):
        lines.insert(0, f"AutoAttack log: {attack_log(contents)}")
    classes = (record.get(contents.robust.attack) or {}).get("per_class") or {}
    worst = min(classes.items(), key=lambda item: item[1][0] / item[1][1], default=None)
    if worst is not None:
        lines.append(f"weakest class: {worst[0]}, {worst[1][0]} of {worst[1][1]} robust")
    return f"""## Evaluation

{method(contents)}, with the settings

{_json(settings)}

{bullets(lines)}
"""


def _masking(contents: Contents) -> str:
    masking = contents.record.get("masking")
    if not masking:
        return "## Gradient masking\n\nThe masking checks did not run.\n"
    rows = []
    for check in masking.get("checks", []):
        words = {True: "passed", False: "FAILED", None: "undecided"}[check.get("passed")]
        reason = " ".join(str(check.get("reason") or "").replace("|", "/").split())
        rows.append(f"| {check['name']} | {words} | {_number(check.get('value'))} | {reason} |")
    table = "\n".join(["| check | verdict | value | reason |", "|---|---|---:|---|", *rows])
    statement = contents.metadata.masking_statement
    stated = f"\nThe authors state: {statement}\n" if leaderboard.overridden(contents.record, statement) else ""
    return f"## Gradient masking\n\nVerdict: {masking.get('verdict')}.\n{stated}\n{table}\n"


def _checkpoints(contents: Contents) -> str:
    second, collapse = contents.record.get("second"), contents.record.get("collapse")
    lines = []
    if second:
        where = f"checkpoint {second.get('checkpoint')}" + (f", epoch {second['epoch']}" if second.get("epoch") else "")
        if second.get("same_weights"):
            lines.append(f"{where}: the same weights as this one")
        else:
            measured = [
                f"{name} {100 * second[name]['correct'] / second[name]['n_examples']:.2f} % of "
                f"{second[name]['n_examples']:,}"
                for name in ("clean", "pgd", "screen", "autoattack")
                if second.get(name)
            ]
            lines.append(f"{where}: {', '.join(measured)}")
    if collapse:
        at = f" at epoch {collapse['epoch']}" if collapse.get("epoch") is not None else ""
        found = f"detected{at}" if collapse.get("detected") else "not detected"
        lines.append(f"collapse of robustness in training: {found}; {collapse.get('reason', '')}".rstrip("; "))
    return f"## Other checkpoint and collapse\n\n{bullets(lines)}\n" if lines else ""


def _limitations(contents: Contents) -> str:
    always = [
        "Robust accuracy is an upper bound: a stronger attack can only lower it.",
        f"It says nothing about other threats than {contents.threat} at ε = {contents.eps}.",
    ]
    return f"""## Limitations

{bullets([*contents.obstacles, *loader_notes(contents), *always])}

Licence of the weights: {contents.metadata.license}, see LICENSE.
"""


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value or "")


def _json(content: Any) -> str:
    return f"```json\n{json.dumps(content, indent=2, ensure_ascii=False, default=str)}\n```"
