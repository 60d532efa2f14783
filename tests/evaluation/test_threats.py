"""Several threat models: what words mean, and what holds against all of them."""

import json

import pytest
import torch

from advtrain.evaluation import AutoAttackSettings, EvaluationSettings, MaskingSettings, PGDSettings, evaluate
from advtrain.evaluation.per_class import class_lines, worst_classes
from advtrain.evaluation.statistics import wilson_interval
from advtrain.evaluation.threats import Member, Threat, parse_threats, union
from advtrain.types import SettingError

OWN = Threat("linf", "8/255")


def test_words() -> None:
    threats = parse_threats(["linf:8/255", "l2:0.5", "l1:12"], stored=OWN, dataset="digits")
    assert [(threat.norm, threat.radius) for threat in threats] == [("linf", 8 / 255), ("l2", 0.5), ("l1", 12.0)]
    assert [threat.folder for threat in threats] == ["linf-8_255", "l2-0.5", "l1-12"]
    assert parse_threats([], stored=OWN, dataset="cifar10") == []


@pytest.mark.parametrize("words", ["all", ["all"]])
def test_all_is_the_stored_threat_and_the_other_norms_at_their_published_radii(words) -> None:
    assert parse_threats(words, stored=OWN, dataset="cifar10") == [OWN, Threat("l2", "0.5"), Threat("l1", "12")]
    l2 = Threat("l2", "0.25")
    assert parse_threats(words, stored=l2, dataset="cifar100") == [l2, OWN, Threat("l1", "12")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["8/255"], "norm:radius"),
        (["l3:1"], "linf, l2, l1"),
        (["linf:8"], "8/255"),
        (["l2:x"], "a number"),
        (["l2:0"], "above 0"),
        (["l2:0.5", "l2:1/2"], "twice"),
        ("linf:8/255", "expected a list or all"),
    ],
)
def test_words_that_mean_nothing_are_named_in_one_line(words, message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        parse_threats(words, stored=OWN, dataset="cifar10")
    assert "\n" not in str(caught.value)


def test_all_has_no_meaning_without_published_radii() -> None:
    with pytest.raises(SettingError, match="CIFAR only"):
        parse_threats("all", stored=OWN, dataset="digits")


def member(norm: str, indices: list[int], robust: list[int]) -> Member:
    return Member(Threat(norm, "0.1"), "pgd", torch.tensor(indices), torch.tensor(robust).bool())


def test_the_union_is_what_holds_everywhere_on_the_common_images() -> None:
    together = union(
        [
            member("linf", [0, 1, 2, 3, 4], [1, 1, 0, 1, 1]),
            member("l2", [4, 3, 1, 0], [1, 0, 1, 1]),  # another order, and one image fewer
            member("l1", [0, 1, 3, 4, 7], [0, 1, 1, 1, 1]),
        ]
    )
    # Common images, in the first one's order: 0, 1, 3, 4.
    assert together.robust.tolist() == [False, True, False, True]
    record = together.record()
    assert record["union"]["correct"] == 2 and record["union"]["n_examples"] == 4
    assert record["union"]["interval"] == list(wilson_interval(2, 4))
    assert list(record) == ["linf-0.1", "l2-0.1", "l1-0.1", "union"]
    assert [entry["correct"] for entry in record.values()] == [4, 3, 3, 2]
    assert json.loads(json.dumps(record)) == record
    assert together.lines()[-1].strip().startswith("against all of them")


def test_no_common_image_is_an_error() -> None:
    with pytest.raises(SettingError, match="n_examples"):
        union([member("linf", [0], [1]), member("l2", [1], [1])])


def test_on_a_linear_model_the_union_is_the_truth(problem) -> None:
    toys = {norm: problem(5, norm) for norm in ("linf", "l2")}
    settings = EvaluationSettings(
        pgd=PGDSettings(enabled=False),
        autoattack=AutoAttackSettings(engine="upstream", version="custom", attacks=["apgd-t"]),
        masking=MaskingSettings(enabled=False),
    )
    base = toys["linf"]  # both have the same model; their images differ by which of them are clear
    members, truths = [], []
    for norm, toy in toys.items():
        weight, x, y = base.model.weight.detach(), base.split.images, base.split.labels
        logits = base.model(x).detach()
        margin = logits.gather(1, y[:, None]) - logits
        length = (weight[y].unsqueeze(1) - weight).norm(p={"linf": 1, "l2": 2}[norm], dim=2)
        worst = margin - toy.eps * length
        own = torch.nn.functional.one_hot(y, len(weight)).bool()
        truths.append(worst.masked_fill(own, torch.inf).amin(1))
        result = evaluate(base.model, base.split, norm=norm, eps=toy.eps, settings=settings)
        members.append(Member.of(Threat(norm, str(toy.eps)), result))
    together, worst = union(members), torch.stack(truths).amin(0)
    clear = worst.abs() > 0.02
    assert torch.equal(together.robust[clear], (worst > 0)[clear])
    assert 0 < together.correct <= min(entry.correct for entry in members)


def test_the_worst_classes_come_first_under_their_names() -> None:
    counts = {"0": [5, 10], "1": [1, 10], "2": [9, 10], "10": [1, 20]}
    worst = worst_classes(counts)
    assert [row.name for row in worst] == ["10", "1", "0"]
    assert worst[0].interval == wilson_interval(1, 20)
    names = [f"class{i}" for i in range(11)]
    (line,) = class_lines(counts, names)
    assert line.startswith("worst classes: class10 5.0% [") and "class1 10.0%" in line and "class2" not in line
    assert class_lines({"0": [1, 2]}) == []
