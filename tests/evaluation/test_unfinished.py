"""What is kept of a run that is not over: whole batches of this very run, and nothing else."""

import dataclasses
from functools import partial

import pytest
import torch

from advtrain.evaluation.autoattack import upstream
from advtrain.evaluation.autoattack.job import Job
from advtrain.evaluation.autoattack.plan import plans
from advtrain.evaluation.autoattack.stages import run_in_stages
from advtrain.evaluation.autoattack.unfinished import Unfinished, fingerprint


class Stop(Exception):
    pass


class Attack:
    """Upstream's, counted; the power fails after so many batches."""

    def __init__(self, model, limit=10**6):
        self.attack, self.limit, self.calls = partial(upstream.attack_batch, model), limit, 0

    def __call__(self, *arguments):
        if self.calls == self.limit:
            raise Stop
        self.calls += 1
        return self.attack(*arguments)


@pytest.fixture
def job(problem):
    four = problem(4, n=24)
    attacks = ["apgd-ce", "apgd-dlr", "fab-t"]
    planned, _ = plans("custom", attacks, norm="linf", eps=four.eps, num_classes=4)
    planned = [dataclasses.replace(plan, iterations=2) for plan in planned]
    model = four.model.eval().requires_grad_(False)
    return Job(model, four.split.images, four.split.labels, planned, 0, 5, "cpu", lambda line: None)


def attacked(job, attack, folder, lines=None):
    kept = Unfinished(folder)
    kept.claim(fingerprint(job, "exact"), (lines if lines is not None else []).append)
    return run_in_stages(job, attack, kept, num_classes=4, randomised=False, used={})


def assert_same(one, other):
    assert torch.equal(one.x_adv, other.x_adv) and torch.equal(one.broken_by, other.broken_by)
    assert one.flags == other.flags
    assert [entry["correct"] for entry in one.after] == [entry["correct"] for entry in other.after]


@pytest.mark.parametrize("done", [0, 1, 4, 7])
def test_a_stopped_run_goes_on_with_the_next_batch(job, tmp_path, done):
    whole = Attack(job.model)
    reference = attacked(job, whole, None)
    assert whole.calls > 7
    folder, lines = tmp_path / "kept", []
    with pytest.raises(Stop):
        attacked(job, Attack(job.model, done), folder)
    rest = Attack(job.model)
    assert_same(attacked(job, rest, folder, lines), reference)
    assert rest.calls == whole.calls - done
    assert len(lines) == 1 and lines[0].startswith(f"resumes: {done} finished batch")


CHANGES = {
    "model": lambda job: dataclasses.replace(job, model=changed_model(job)),
    "images": lambda job: dataclasses.replace(job, x=job.x.flip(0).contiguous()),
    "attacks": lambda job: dataclasses.replace(job, planned=job.planned[:2]),
    "seed": lambda job: dataclasses.replace(job, seed=1),
    "batch_size": lambda job: dataclasses.replace(job, batch_size=8),
    "architecture": lambda job: dataclasses.replace(job, model=torch.nn.Sequential(job.model, torch.nn.ReLU())),
}


def changed_model(job):
    model = type(job.model)(job.model.weight.clone(), job.model.bias.clone()).eval().requires_grad_(False)
    model.weight[0, 0] += 1e-6
    return model


@pytest.mark.parametrize("what", CHANGES)
def test_batches_of_another_run_are_not_used(job, tmp_path, what):
    with pytest.raises(Stop):
        attacked(job, Attack(job.model, 4), tmp_path)
    other, lines = CHANGES[what](job), []
    attack = Attack(other.model)
    outcome = attacked(other, attack, tmp_path, lines)
    assert len(lines) == 1 and lines[0].startswith("starts anew: ") and what in lines[0]
    fresh = Attack(other.model)
    assert_same(outcome, attacked(other, fresh, None))
    assert attack.calls == fresh.calls


def test_a_folder_that_is_no_run_of_ours_is_started_anew(job, tmp_path):
    (tmp_path / "fingerprint.json").write_text("{")
    lines = []
    assert_same(attacked(job, Attack(job.model), tmp_path, lines), attacked(job, Attack(job.model), None))
    assert lines[0].startswith("starts anew: ")


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_batch_is_attacked_again(job, tmp_path, damage):
    reference = attacked(job, Attack(job.model), tmp_path)
    files = sorted(tmp_path.glob("*.npz"))
    assert files[0].name == "1-apgd-ce-00001.npz"
    files[0].write_bytes(files[0].read_bytes()[:-50] if damage is None else damage)
    attack = Attack(job.model)
    assert_same(attacked(job, attack, tmp_path), reference)
    assert attack.calls == 1


def test_a_batch_of_other_images_is_not_taken(job, tmp_path):
    attacked(job, Attack(job.model), tmp_path)
    kept = Unfinished(tmp_path)
    rows = job.model(job.x).argmax(1).eq(job.y).nonzero().flatten()[:5]
    assert kept.read(0, "apgd-ce", 0, rows) is not None
    assert kept.read(0, "apgd-ce", 0, rows + 1) is None
    assert kept.read(0, "apgd-ce", 0, rows[:3]) is None


def test_progress_says_what_came_from_disk(job, tmp_path):
    lines = []
    with pytest.raises(Stop):
        attacked(job, Attack(job.model, 3), tmp_path)
    attacked(dataclasses.replace(job, report=lines.append), Attack(job.model), tmp_path)
    assert lines[0].startswith("AutoAttack apgd-ce batch 3/") and "earlier call" in lines[0]
    assert lines[1].startswith("AutoAttack apgd-ce batch 4/") and "left" in lines[1]
