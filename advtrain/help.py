"""The pages that --help prints."""

from advtrain.composition import groups

SUMMARIES = {
    "data": "what is learnt",
    "model": "the network; input in [0, 1], normalisation inside",
    "attack": "what makes the training examples",
    "loss": "the outer objective; loss.inner chooses what the attack maximises",
    "teacher": "whom loss=kd and its like learn from: teacher.source=RUN, robustbench:NAME, timm:NAME, …",
    "optimizer": "",
    "schedule": "of the learning rate",
    "weight_perturbation": "",
    "averaging": "of the weights; the average is what is evaluated",
    "eval": "how the run ends",
    "logger": "besides metrics.jsonl",
    "trainer": "epochs, batch size, precision, device, validation",
    "export": "what only the author knows about a submission",
    "experiment": "recipes: a choice in each group and the numbers that go with it",
}

TRAIN = """\
advtrain: adversarial training from one command line

usage: advtrain [GROUP=CHOICE ...] [KEY=VALUE ...] [-m] [--config-dir FOLDER]

Trains, evaluates with AutoAttack and exports a RobustBench bundle. Without experiment=, data= or model= it is
experiment=quickstart: two minutes on two CPU cores, nothing to download.

groups and their choices
{groups}

examples
  advtrain
  advtrain loss=pgd_at seed=1
  advtrain loss=trades model=wrn_28_10 data=cifar100 attack.steps=7 seed=1
  advtrain -m experiment=quickstart seed=0,1,2 loss=ikl,trades
  advtrain loss=kd teacher.source=runs/quickstart-seed0
  advtrain data=cifar100 model=resnet20 loss=kd teacher.source=model:resnet56 teacher.weights=resnet56.pth seed=1
  torchrun --nproc-per-node=2 -m advtrain experiment=cifar10_ikl_preact_resnet_18 data.root=/datasets

radii are written as fractions: threat.eps=8/255. The same command continues a run that was stopped.

results: runs/<name>/ (the name is made of the choices and the seed)
  config.yaml  metrics.jsonl  checkpoints/last.pt, best.pt  evaluation.json  adversarial.npz  export/

flags
  -m, --multirun       one run for each combination of comma-separated values
  --config-dir FOLDER  your own YAML files, laid out like the groups above
  --cfg job            print the configuration and stop
  --version            print the version and stop
"""

EVALUATE = """\
advtrain-eval: clean accuracy, PGD-20 and AutoAttack of a trained model

usage: advtrain-eval model=WHAT [KEY=VALUE ...]
       advtrain-eval verify=EVALUATION [model=WHAT]

WHAT is a run directory, a checkpoint file, an exported bundle, or robustbench:<name> of RobustBench's model zoo
(needs the extra advtrain[robustbench] and the weights in model_dir).

EVALUATION is the folder of an earlier evaluation or its adversarial.npz: every stored image is checked again in
float32, in [0, 1], in the ball and classified as its verdict says; a disagreement ends with exit code 1.

groups and their choices
{groups}

examples
  advtrain-eval model=runs/quickstart-seed0
  advtrain-eval model=runs/quickstart-seed0/checkpoints/last.pt eval=clean_pgd
  advtrain-eval model=checkpoints/cifar10_cpu data_root=/datasets eval.autoattack.n_examples=500
  advtrain-eval model=runs/quickstart-seed0 eps=0.1 eval.autoattack.version=custom eval.autoattack.attacks=[apgd-ce]
  advtrain-eval model=robustbench:Wang2023Better_WRN-28-10 dataset=cifar10 model_dir=models data_root=/datasets
  advtrain-eval model=robustbench:Rice2020Overfitting norm=l2 leaderboard=robustbench/model_info
  advtrain-eval verify=runs/quickstart-seed0
  torchrun --nproc-per-node=2 -m advtrain eval model=runs/quickstart-seed0

A killed evaluation goes on when the same command is given again; several processes share the work and give the same
verdicts as one.

results: evaluation.json and adversarial.npz in out=FOLDER; by default runs/eval-<model>-<norm>-<eps>/
"""

EXPORT = """\
advtrain-export: the RobustBench bundle of an evaluation, written and verified

usage: advtrain-export run=FOLDER [out=FOLDER] [KEY=VALUE ...]
       advtrain-export verify=BUNDLE

FOLDER is a run, or what advtrain-eval wrote about a run, a checkpoint or a bundle. verify= checks a bundle again in a
process that finds only torch, numpy and robustbench, and attacks anew what is recorded as robust.

groups and their choices
{groups}

export.target=auto         a submission where nothing stands in the way, else an archive with the reasons
export.target=leaderboard  refuses (exit code 2) what the leaderboard would refuse: another dataset, threat model or
                           radius, a subset, no standard AutoAttack, masking checks that failed or did not run
export.target=archive      weights, recipe, record and proof without the papers of a submission

examples
  advtrain-export run=runs/quickstart-seed0
  advtrain-export run=runs/quickstart-seed0 out=submission export.target=archive
  advtrain-export run=runs/quickstart-seed0 'export.paper_title="Robust digits"' 'export.authors="A. Author"'
  advtrain-export run=runs/quickstart-seed0 export.model_id=Author2026Robust 'export.venue="arXiv 2026"'
  advtrain-export run=runs/eval-quickstart-seed0-best-linf-0.2 out=bundle
  advtrain-export verify=runs/quickstart-seed0/export

results: <run>/export/ with weights (.pt and .safetensors), model_info JSON, zoo entry, issue text, model card, recipe,
         licence, verify.py and SHA-256 sums
"""


def page(command: str) -> str:
    """The help page of `train`, `eval` or `export`."""
    shown = {"train": list(SUMMARIES), "eval": ["eval"], "export": ["export"]}[command]
    text = {"train": TRAIN, "eval": EVALUATE, "export": EXPORT}[command]
    found = groups()
    return text.format(groups="\n".join(_group(name, found[name]) for name in shown if name in found))


def _group(name: str, choices: list[str]) -> str:
    lines, line = [], ""
    for choice in choices:
        if len(line) + len(choice) > 88:
            lines.append(line.rstrip())
            line = ""
        line += f"{choice}, "
    lines.append(line.removesuffix(", "))
    summary = f"  {'':20}({SUMMARIES[name]})\n" if SUMMARIES[name] else ""
    return f"  {name:20}" + ("\n" + " " * 22).join(lines) + ("\n" + summary.rstrip("\n") if summary else "")
