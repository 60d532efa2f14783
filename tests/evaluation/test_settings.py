"""Every setting is checked, and the YAML files say the same as the dataclasses."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from advtrain.config import config_dir, typed
from advtrain.evaluation import AutoAttackSettings, EvaluationSettings, MaskingSettings, PGDSettings, ScreenSettings
from advtrain.types import SettingError


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: PGDSettings(steps=-1), "eval.pgd.steps: expected an integer of at least 1, got -1"),
        (lambda: PGDSettings(restarts=0), "eval.pgd.restarts"),
        (lambda: PGDSettings(step_size="0/255"), "eval.pgd.step_size"),
        (lambda: PGDSettings(n_examples=0), "eval.pgd.n_examples"),
        (lambda: AutoAttackSettings(version="fast"), "eval.autoattack.version: expected one of standard, custom"),
        (lambda: AutoAttackSettings(version="custom", attacks=["pgd"]), "eval.autoattack.attacks: expected one of"),
        (lambda: AutoAttackSettings(version="custom"), "expected the attacks of version=custom, got an empty list"),
        (lambda: AutoAttackSettings(attacks=["square"]), "expected none with version=standard, got square"),
        (lambda: AutoAttackSettings(seed=-1), "eval.autoattack.seed"),
        (lambda: AutoAttackSettings(batch_size=0), "eval.autoattack.batch_size"),
        (lambda: AutoAttackSettings(n_examples=0), "eval.autoattack.n_examples"),
        (lambda: EvaluationSettings(checkpoint="first"), "eval.checkpoint: expected one of best, last"),
        (lambda: EvaluationSettings(batch_size=0), "eval.batch_size"),
        (lambda: EvaluationSettings(n_examples=0), "eval.n_examples"),
        (lambda: EvaluationSettings(seed=-1), "eval.seed"),
    ],
)
def test_range_checks(make, line):
    with pytest.raises(SettingError, match=line):
        make()


def settings(choice, *overrides):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("eval", [f"eval={choice}", *overrides])
    return typed(EvaluationSettings, OmegaConf.to_container(config["eval"], resolve=True), "eval")


def test_standard_is_the_default():
    assert settings("standard") == EvaluationSettings()


def test_other_choices_differ_where_they_say():
    lean = {"autoattack": AutoAttackSettings(enabled=False), "masking": MaskingSettings(enabled=False)}
    assert settings("clean_pgd") == EvaluationSettings(second_checkpoint="none", **lean)
    assert settings("screen") == EvaluationSettings(
        second_checkpoint="none", screen=ScreenSettings(enabled=True), **lean
    )
    assert settings("clean") == EvaluationSettings(second_checkpoint="full", pgd=PGDSettings(enabled=False), **lean)
    assert settings("none") == EvaluationSettings(enabled=False)


def test_overrides_arrive():
    chosen = settings(
        "standard", "eval.pgd.step_size=2/255", "eval.autoattack.version=custom", "eval.autoattack.attacks=[apgd-ce]"
    )
    assert chosen.pgd.step_size == "2/255"
    assert chosen.autoattack.attacks == ["apgd-ce"]
