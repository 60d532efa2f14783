"""The page: complete for complete records, quiet about what is missing, safe and self-contained."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from advtrain.report import page as page_module
from advtrain.report import write_report
from advtrain.report.page import render
from advtrain.report.reading import dataset_of, label_of, percent_range, radius_text, wilson
from advtrain.types import FileError

VOID = {"meta", "img", "source", "br", "link"}


class Page(HTMLParser):
    """Every tag with its attributes, the headings, and whether tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.headings: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without pictures, where those are beside the point."""
    monkeypatch.setattr(page_module, "_data_uri", lambda picture, dark: "data:image/png;base64,")


def test_a_full_record_fills_every_section(full: dict[str, Any], metrics: list[dict[str, Any]]) -> None:
    config = {
        "data": {"root": "/somewhere/private"},
        "provenance": {"command": "advtrain seed=1", "git_commit": "c0ffee"},
    }
    page = Page(render(full, title="mine", config=config, metrics=metrics, checkable=True))
    assert page.headings == [
        "mine", "Results", "Can the number be believed?", "AutoAttack (standard), stage by stage",
        "Position on the CIFAR-10 Linf board", "Several threat models", "Over the radius", "Common corruptions",
        "By class", "Best and last checkpoint", "Training", "Check it yourself", "Provenance",
    ]  # fmt: skip
    for words in (
        "67.72 %", "32.00 %", "28.0–36.0 %", "doubtful", "failed: square", "would be rank 93 of 100 on CIFAR-10 Linf",
        "Collapse at epoch 12: yes; fell", "advtrain-eval verify=.", "3 of the attacked images", "41.00 %",
        "AutoAttack (standard)", "not run", "9.00 %", "c0ffee", "Robust overfitting: none; 32 % at its best.",
        "Not run: frost, no pictures of frost", "100 images of each corruption", "L1", "Intel(R) Xeon(R)", "March 2025",
    ):  # fmt: skip
        assert words in page.words, words
    assert "/somewhere" not in page.words and "private" in page.words
    assert sum(tag == "img" for tag, _ in page.tags) == 6
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")


def test_an_old_record(old: dict[str, Any]) -> None:
    page = Page(render(old, title="old"))
    assert "not checked" in page.words and "28.1–36.2 %" in page.words
    assert "Can the number be believed?" not in page.headings and "Training" not in page.headings


def test_clean_accuracy_alone(minimal: dict[str, Any]) -> None:
    page = Page(render(minimal, title="nothing more"))
    assert page.headings == ["nothing more", "Results", "Check it yourself", "Provenance"]
    assert "not comparable: the record does not say which dataset was evaluated" in page.words
    assert "No attack was run." in page.words and "ε" not in page.words and "Can it be believed?" not in page.words


def test_a_run_that_was_never_attacked(minimal: dict[str, Any]) -> None:
    """Of a student of clean distillation: its classes, both checkpoints and the course of its training."""
    unknown = {"detected": False, "epoch": None, "reason": "not assessed: no validation of training under an attack"}
    clean = minimal["clean"] | {"per_class": {"0": [2, 5], "1": [3, 5]}}
    second = {"checkpoint": "last", "epoch": 2, "same_weights": False, "clean": clean}
    record = minimal | {"clean": clean, "second": second, "collapse": unknown | {"robust_overfitting": unknown}}
    lines = [{"epoch": e, "step": e, "clean_accuracy": 0.3, "validation_clean": 0.2 * e} for e in (1, 2)]
    page = Page(render(record, title="student", metrics=lines))
    assert page.headings == [
        "student", "Results", "By class", "Best and last checkpoint", "Training", "Check it yourself", "Provenance",
    ]  # fmt: skip
    assert "Held-out images are those that training never saw." in page.words and "ollapse" not in page.words
    assert "The clean accuracy of each class" in str(page.tags)
    del record["second"]
    assert "Best and last checkpoint" not in Page(render(record, title="student", metrics=lines)).headings


@pytest.mark.parametrize(
    "part", ["masking", "second", "collapse", "curve", "corruptions", "threats", "autoattack", "pgd"]
)
def test_any_part_may_be_missing(full: dict[str, Any], part: str, undrawn: None) -> None:
    del full[part]
    Page(render(full, title="less"))


def test_nothing_becomes_html(full: dict[str, Any], undrawn: None) -> None:
    page = Page(render(full, title="<b>&</b>", config={"note": "</code><script>1</script>"}))
    tags = {tag for tag, _ in page.tags}
    assert "script" not in tags and "b" not in tags
    assert page.words.count("<script>alert('&')</script>") >= 6 and "<b>&</b>" in page.words


def test_nothing_is_loaded(full: dict[str, Any], metrics: list[dict[str, Any]]) -> None:
    text = render(full, title="mine", metrics=metrics, checkable=True)
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("link", "script", "iframe", "object", "base")
        for name in ("src", "srcset", "href", "data", "poster"):
            assert attributes.get(name) is None or str(attributes[name]).startswith("data:image/png;base64,")
    style = re.search(r"<style>(.*?)</style>", text, re.S)
    assert style is not None and "url(" not in style[1] and "@import" not in style[1]
    assert "prefers-color-scheme: dark" in style[1] and "http" not in style[1]


def test_a_folder_of_a_run(full: dict[str, Any], metrics: list[dict[str, Any]], tmp_path: Path) -> None:
    run = tmp_path / "my-run"
    run.mkdir()
    del full["dataset"]
    (run / "evaluation.json").write_text(json.dumps(full))
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"_target_": "advtrain.data.CIFAR100Generated"}}))
    lines = "\n".join(json.dumps(line) for line in metrics)
    (run / "metrics.jsonl").write_text(lines + '\n{"epoch": 5, "validation_ro')  # a run that was killed
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.headings[0] == "my-run" and "Position on the CIFAR-100 Linf board" in page.headings
    assert "Training" in page.headings and "are not in this folder" in page.words


@pytest.mark.parametrize(
    ("content", "message"), [(None, "got no file"), ("{", "expected JSON"), ("[]", "expected threat")]
)
def test_no_record(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(FileError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_wilson_has_the_ends_that_solve_its_equation() -> None:
    """The bounds p solve |p̂ − p| = z·√(p(1 − p)/n)."""
    for correct, n in ((160, 500), (1, 10), (9_999, 10_000)):
        for bound in wilson(correct, n):
            assert abs(correct / n - bound) == pytest.approx(1.959964 * (bound * (1 - bound) / n) ** 0.5, rel=1e-5)
    assert (wilson(0, 10)[0], wilson(10, 10)[1]) == pytest.approx((0, 1), abs=1e-12)
    assert percent_range((0.301, 0.359)) == "30.1–35.9 %"


def test_words() -> None:
    assert [radius_text(8 / 255, "linf"), radius_text(0.2, "linf"), radius_text(0.5, "l2")] == ["8/255", "0.2", "0.5"]
    assert (
        label_of("autoattack", {"settings": {"version": "standard", "engine": "fast"}})
        == "AutoAttack (standard, fast engine)"
    )
    assert "AutoAttack" not in label_of("screen", {})
    found = [
        dataset_of({}, {"data": {"_target_": f"advtrain.data.{name}", "num_classes": n}})
        for name, n in (
            ("CIFAR10", 10),
            ("CIFAR10Generated", 10),
            ("ImageFolder", 1000),
            ("ImageFolder", 10),
            ("Digits", 10),
        )
    ]
    assert found == ["cifar10", "cifar10", "imagenet", "images", "digits"]
    assert dataset_of({"command": "advtrain experiment=cifar100_cpu"}) == "cifar100"
    assert dataset_of({"command": "advtrain data=tiny_imagenet"}) is None
    assert dataset_of({"source": {"dataset": "cifar10"}}) == "cifar10"
