"""Training on a folder of JPEGs as a user starts it: two epochs, AutoAttack on 50 images, bundle."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advtrain.engine import checkpoints

ROOT = Path(__file__).resolve().parents[1]


def advtrain(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "advtrain", *words],
        cwd=folder,
        env={**os.environ, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=1500,
    )


@pytest.mark.slow
@pytest.mark.timeout(1600)  # about three minutes on two quiet cores
def test_two_epochs_on_real_photographs(real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    done = advtrain(
        tmp_path, "experiment=imagenet_small_cpu", f"data.root={real_data / 'imagenet_small'}", "name=small"
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "small"

    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in logged if "loss" in line]
    assert all(math.isfinite(loss) for loss in losses)
    assert len(losses) == 12  # every fifth of 2 × 30 steps
    assert np.mean(losses[-3:]) < np.mean(losses[:3])

    record = json.loads((run / "evaluation.json").read_text())
    assert record["threat"] == {"norm": "linf", "eps": 4 / 255}
    assert record["n_examples"] == record["clean"]["n_examples"] == 400
    assert record["autoattack"]["n_examples"] == 50 and record["autoattack"]["settings"]["version"] == "standard"
    assert "AutoAttack (standard), subset of 50" in done.stdout
    assert record["autoattack"]["correct"] <= record["pgd"]["correct"]  # on the same 50
    arrays = np.load(run / "adversarial.npz")
    assert np.abs(arrays["adversarial_images"] - arrays["images"]).max() <= 4 / 255 + 1e-6

    prior = checkpoints.load(run / "checkpoints" / "last.pt")["loss"]["prior.weights"]
    assert prior.shape == (10, 10)  # the folder's classes, not ImageNet's thousand
    assert np.allclose(prior.sum(1), 1, atol=1e-5)
    assert (prior.max(1).values > 0.1 + 1e-4).all()  # every class was seen: no row is uniform any more


@pytest.mark.slow
def test_a_damaged_file_ends_a_run_with_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(8):
                pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / name / f"{i}.jpg")
    for file in (tmp_path / "data" / "train").glob("*/*.jpg"):  # the held-out ones, too: whichever comes first
        file.write_bytes(file.read_bytes()[:500])
    words = ("data=imagenet", "data.root=data", "data.num_classes=2", "data.validation_size=2", "data.workers=1")
    done = advtrain(
        tmp_path, *words, "data.size=32", "data.resize=36", "model=preact_resnet_small", "trainer.batch_size=4"
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("advtrain: error: data.root: expected")
    assert "data/train/" in done.stderr and ".jpg" in done.stderr


def test_the_page_quotes_the_record_of_decoding() -> None:
    record = json.loads((ROOT / "results" / "benchmarks" / "decoding.json").read_text())
    page = (ROOT / "docs" / "imagenet.md").read_text()
    command = record["command"].replace(
        "python benchmarks/decoding.py", "python -m benchmarks decoding"
    )  # as it is now
    assert command in " ".join(page.split()) and record["git_commit"][:7] in page
    for kind in record["results"].values():
        for size in (64, 224):
            for way in kind[f"to {size} pixels"].values():
                assert f"{way['ms_per_image']:.3f} ms, {way['images_per_second_and_core']}/s" in page
