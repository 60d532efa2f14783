"""The losses that hold a teacher and run no attack: each recipe written out, the warm-up, the prior, the settings."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advtrain.losses import DKD, GKLKD, IKLKD, KD, CleanDistillation
from advtrain.types import SettingError
from tests.losses import loops
from tests.losses.distilling import CLEAN, Given, batch, configured, cross_entropy, network, teacher
from tests.losses.toy import made

PAIRS = ("ikl_kd", "ikl_kd_code", "gkl_kd", "gkl_kd_code")
each_loss = pytest.mark.parametrize("name", CLEAN)


def expected(name: str, t: Tensor, f: Tensor, y: Tensor, prior: Tensor | None) -> Tensor:
    """What the teacher's logits t ask of the student's f: image by image, from the formulas."""
    n = len(y)
    if name == "kd":
        return sum(0.9 * loops.kd(t[i], f[i], 4.0) for i in range(n)) / n
    if name == "dkd":
        return sum(loops.dkd(t[i], f[i], int(y[i]), 1.0, 8.0, 4.0) for i in range(n)) / n
    soft = sum(loops.soft_ce(t[i] / 4, f[i] / 4) for i in range(n)) / n
    if name in ("ikl_kd", "ikl_kd_code"):
        p = (t / 100).softmax(1) if prior is None else prior[y]
        return sum(8 * loops.pairs(p[i].tolist(), t[i], f[i]) for i in range(n)) / n + soft
    if name in ("gkl_kd", "gkl_kd_code"):
        gamma, weight = (0.1, 4) if prior is None else (0.05, 16)
        q = ((t / 4).softmax(1) if prior is None else prior[y]).pow(gamma)
        return weight * sum(loops.pairs(q[i].tolist(), t[i], f[i]) for i in range(n)) / q.sum(1).square().sum() + soft
    raise KeyError(name)


@each_loss
@pytest.mark.parametrize("epoch", (1, 5, 30))
def test_outer_equals_the_formula(name: str, epoch: int) -> None:
    """The whole loss through the YAML, and its gradient; the student in train mode, as in training."""
    student, (x, y) = network(seed=2), batch()
    loss = configured(name)
    assert loss.has_prior == (name in ("ikl_kd", "gkl_kd"))
    prior = loss.prior.weights.double() if loss.has_prior else None
    loss.start_epoch(epoch)
    total, parts = loss.outer(student, x, x, y)
    t, f = loss.teacher.model(x), copy.deepcopy(student)(x)
    ce = (0.1 if name == "kd" else 1.0) * cross_entropy(f, y)
    distilled = (1 if name == "kd" else min(epoch / 20, 1)) * expected(name, t, f, y, prior)
    torch.testing.assert_close(total, ce + distilled, rtol=1e-9, atol=1e-12)
    (of_logits,) = torch.autograd.grad(ce + distilled, f)
    again = student(x)
    weights = list(student.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(total, weights), torch.autograd.grad(again, weights, of_logits), rtol=1e-8, atol=1e-11
    )
    named = {"loss": total, "ce": ce, name.removesuffix("_code"): distilled}
    named["clean_accuracy"] = (f.argmax(1) == y).float().mean()
    named["teacher_accuracy"] = (t.argmax(1) == y).float().mean()
    assert parts.keys() == named.keys() and not any(part.requires_grad for part in parts.values())
    torch.testing.assert_close(parts, {key: value.detach() for key, value in named.items()}, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("epoch", (1, 7, 20, 240))
def test_the_published_cifar_100_setting_of_ikl(epoch: int) -> None:
    """Total = CE + min(epoch/20, 1) (alpha softCE_T + beta/4 Σ_jk w_j w_k (Δt_jk - Δf_jk)²), w = softmax(t/100), T = 4.

    alpha 3, beta 12 is the row wrn_40_2 → wrn_16_2. There is no factor T², and the pairs are those of raw logits.
    """
    student, (x, y) = network(seed=2), batch()
    loss = configured("ikl_kd_code", ce_weight=3, wmse_weight=12)
    assert (loss.prior, loss.prior_temperature, loss.temperature) == (None, 100.0, 4.0)
    loss.start_epoch(epoch)
    total, _ = loss.outer(student, x, x, y)
    t, f = loss.teacher(x), student(x)
    w = torch.nn.functional.softmax(t / 100, dim=1)
    differences = (t[:, :, None] - t[:, None, :]) - (f[:, :, None] - f[:, None, :])
    wmse = (w[:, :, None] * w[:, None, :] * differences**2).sum() / 4 / 6
    soft = -((t / 4).softmax(1) * (f / 4).log_softmax(1)).sum(1).mean()
    reference = nn.functional.cross_entropy(f, y) + min(epoch / 20, 1.0) * (3 * soft + 12 * wmse)
    torch.testing.assert_close(total, reference, rtol=1e-10, atol=0)
    weights = list(student.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(total, weights), torch.autograd.grad(reference, weights), rtol=1e-8, atol=1e-11
    )
    assert (w - 0.1).abs().max() < 0.02  # almost uniform, as it is said to be


@pytest.mark.parametrize("name", PAIRS)
def test_with_the_asymmetry_kept_only_cross_entropies_drive_the_student(name: str) -> None:
    student, (x, y) = network(seed=2), batch()
    f = student(x).detach().requires_grad_()
    kept, broken = (configured(name, break_asymmetry=flag).outer(Given(f), x, x, y)[0] for flag in (False, True))
    soft = sum(loops.soft_ce(t / 4, row / 4) for t, row in zip(teacher()(x), f, strict=True)) / 6
    gradients = [torch.autograd.grad(value, f)[0] for value in (kept, cross_entropy(f, y) + soft, broken)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(kept, broken, rtol=1e-12, atol=0)
    assert not torch.allclose(gradients[2], gradients[0], rtol=1e-2)


@each_loss
def test_the_teachers_term_grows_over_the_warm_up(name: str) -> None:
    """The term of epoch e is min(e / W, 1) of the whole; the cross-entropy is whole from the start."""
    student, (x, y) = network(seed=2).eval(), batch()
    loss = configured(name, warmup_epochs=4).eval()
    term = name.removesuffix("_code")
    whole = loss.outer(student, x, x, y)[1]  # nobody has said which epoch it is
    assert whole[term] > 0.1
    for epoch, share in ((1, 0.25), (3, 0.75), (4, 1.0), (5, 1.0), (200, 1.0), (2, 0.5)):
        loss.start_epoch(epoch)
        parts = loss.outer(student, x, x, y)[1]
        assert loss.warmth == share and parts["ce"] == whole["ce"]
        torch.testing.assert_close(parts[term], share * whole[term])
        torch.testing.assert_close(parts["loss"], parts["ce"] + parts[term])
    assert "min(epoch/4, 1)" in loss.formula()
    at_once = configured(name, warmup_epochs=0)
    at_once.start_epoch(1)
    assert at_once.warmth == 1 and "epoch" not in at_once.formula()


@pytest.mark.parametrize("name", ("ikl_kd", "gkl_kd"))
def test_the_prior_learns_from_the_teacher_in_training_one_epoch_behind(name: str) -> None:
    student, (x, y) = network(seed=2), batch()
    loss = configured(name, prior_temperature=2.0)
    first = loss.prior.weights.clone()
    loss.eval().outer(student, x, x, y)
    assert not loss.prior.counts.any()
    loss.train().outer(student, x, x, y)
    loss.outer(student, x + 1, x, y)
    means = [(loss.teacher(images) / 2).softmax(1) for images in (x, x + 1)]
    assert loss.prior.counts.tolist() == [4, 4, 2, 0, 0, 0, 0, 0, 0, 2]
    assert torch.equal(loss.prior.weights, first)
    loss.end_epoch()
    ones = [m[i] for m in means for i in (1, 4)]
    torch.testing.assert_close(loss.prior.weights[1].double(), sum(ones) / 4, rtol=1e-6, atol=1e-8)
    assert torch.equal(loss.prior.weights[5], first[5]) and not loss.prior.counts.any()  # a class that was absent


@pytest.mark.parametrize("gi", (True, False))
@pytest.mark.parametrize("gamma", (0.0, 0.4, 1.0))
@pytest.mark.parametrize("normaliser", ("batch", "sample"))
def test_the_cut_into_passes_changes_nothing(gi: bool, gamma: float, normaliser: str) -> None:
    student, (x, y) = network(seed=2).eval(), batch()
    loss = configured("gkl_kd", global_weights=gi, gamma=gamma, normaliser=normaliser).eval()
    loss.check_accumulation(3)
    taught = loss.taught(x)
    whole, _ = loss.outer(student, x, x, y)

    def in_passes() -> Tensor:
        bounds = (slice(0, 1), slice(1, 3), slice(3, 6))
        return sum(loss.outer(student, x[rows], x[rows], y[rows])[0] * len(y[rows]) / 6 for rows in bounds)

    alone = in_passes()
    loss.start_batch(y, taught)
    torch.testing.assert_close(in_passes(), whole, rtol=1e-9, atol=0)
    assert (abs(alone - whole) > 1e-6) == (normaliser == "batch" and gamma == 0.4)
    loss.start_batch(y)  # with what the teacher says unknown, a pass is a batch
    torch.testing.assert_close(in_passes(), alone, rtol=1e-12, atol=0)


def test_a_batch_is_forgotten_when_the_next_or_the_epoch_ends_it() -> None:
    student, (x, y) = network(seed=2).eval(), batch()
    loss = configured("gkl_kd_code").eval()
    alone = loss.outer(student, x[:2], x[:2], y[:2])[0]
    loss.start_batch(y, loss.taught(x))
    assert loss.outer(student, x[:2], x[:2], y[:2])[0] != alone
    loss.end_epoch()
    assert loss.outer(student, x[:2], x[:2], y[:2])[0] == alone


@pytest.mark.parametrize("normaliser", ("batch", "sample"))
def test_gkl_at_gamma_one_is_ikl_and_at_zero_uniform(normaliser: str) -> None:
    student, (x, y) = network(seed=2).eval(), batch()
    common = {"num_classes": 10, "global_weights": False, "wmse_weight": 7.0, "warmup_epochs": 0}

    def value(loss: CleanDistillation) -> Tensor:
        return loss.hold(teacher()).outer(student, x, x, y)[0]

    ikl = value(IKLKD(**common))
    torch.testing.assert_close(value(GKLKD(gamma=1.0, normaliser=normaliser, **common)), ikl, rtol=1e-10, atol=0)
    uniform = value(IKLKD(**common | {"prior_temperature": 1e12}))
    torch.testing.assert_close(value(GKLKD(gamma=0.0, normaliser=normaliser, **common)), uniform, rtol=1e-9, atol=0)
    assert abs(ikl - uniform) > 1e-3


@pytest.mark.usefixtures("without_type_checks")
def test_decoupling_needs_to_know_the_true_class() -> None:
    x, y = batch()
    soft = torch.nn.functional.one_hot(y, 10).double()
    assert not DKD().takes_soft_labels
    with pytest.raises(ValueError, match="whole class numbers, which decoupled distillation needs, got soft labels"):
        DKD().hold(teacher()).outer(network(seed=2), x, x, soft)
    with pytest.raises(ValueError, match="whole class numbers, which a class prior needs, got soft labels"):
        IKLKD(num_classes=10).hold(teacher()).outer(network(seed=2), x, x, soft)


@each_loss
def test_smoothing_moves_the_cross_entropy_and_nothing_else(name: str) -> None:
    student, (x, y) = network(seed=2).eval(), batch()
    plain, smooth = (configured(name, label_smoothing=s).eval().outer(student, x, x, y)[1] for s in (0, 0.3))
    f = student(x).detach()
    spread = sum(-row.log_softmax(0).mean() for row in f) / 6
    weight = 0.1 if name == "kd" else 1.0
    torch.testing.assert_close(smooth["ce"] - plain["ce"], 0.3 * weight * (spread - cross_entropy(f, y)))
    assert smooth[name.removesuffix("_code")] == plain[name.removesuffix("_code")]


@each_loss
def test_no_attack_and_clean_accuracy_selects(name: str) -> None:
    """x' is not looked at; the objective that every loss has is the cross-entropy."""
    student, (x, y) = network(seed=2).eval(), batch()
    loss = configured(name).eval()
    assert not loss.needs_attack and loss.needs_teacher and loss.selects_by == "clean"
    assert loss.outer(student, x, torch.full_like(x, torch.nan), y)[0] == loss.outer(student, x, x, y)[0]
    values = loss.inner(student, x, y)(x)
    torch.testing.assert_close(values.mean(), cross_entropy(student(x), y))


@each_loss
def test_half_precision_logits_are_measured_in_float32(name: str) -> None:
    """On both sides; the class prior, too, takes the teacher's as they are."""
    x, y = batch()
    loss = configured(name).train()
    f, t = ((20 * network(seed)(x)).detach().bfloat16() for seed in (2, 9))
    value, parts = loss.outer(Given(f), x, x, y, t)
    exact, _ = loss.outer(Given(f.double()), x, x, y, t.double())
    assert value.dtype == torch.float32 and parts["loss"].dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)


@each_loss
def test_large_logits_stay_finite(name: str) -> None:
    x, y = batch()
    for scale in (1e3, 1e6):
        f, t = ((scale * network(seed)(x)).detach().float() for seed in (2, 9))
        f.requires_grad_()
        total, _ = configured(name).outer(Given(f), x, x, y, t)
        (gradient,) = torch.autograd.grad(total, f)
        assert total.isfinite() and gradient.isfinite().all() and gradient.any()


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("make", "line"),
    (
        (lambda: KD(kd_weight=-1), "loss.kd_weight: expected a number of at least 0, got -1"),
        (lambda: KD(temperature=0), "loss.temperature: expected a number above 0, got 0"),
        (lambda: KD(label_weight="x"), "loss.label_weight"),
        (lambda: KD(warmup_epochs=-1), "loss.warmup_epochs: expected an integer of at least 0, got -1"),
        (lambda: DKD(alpha=-1), "loss.alpha: expected a number of at least 0, got -1"),
        (lambda: DKD(beta=None), "loss.beta"),
        (lambda: DKD(temperature=-4), "loss.temperature: expected a number above 0, got -4"),
        (lambda: IKLKD(num_classes=1), "loss.num_classes: expected an integer of at least 2, got 1"),
        (lambda: IKLKD(num_classes=5, prior_temperature=0), "loss.prior_temperature: expected a number above 0"),
        (lambda: IKLKD(num_classes=5, global_weights=1), "loss.global_weights: expected true or false, got 1"),
        (lambda: GKLKD(num_classes=5, gamma=-0.1), "loss.gamma: expected a number of at least 0, got -0.1"),
        (lambda: GKLKD(num_classes=5, normaliser="all"), "loss.normaliser: expected one of batch, sample, got 'all'"),
        (lambda: GKLKD(num_classes=5, break_asymmetry="no"), "loss.break_asymmetry: expected true or false, got 'no'"),
    ),
)
def test_impossible_settings_are_named(make: Any, line: str) -> None:
    with pytest.raises(SettingError) as error:
        make()
    assert str(error.value).startswith(line)


def test_the_formulas() -> None:
    warm = "CE(f(x), y) + min(epoch/20, 1) · "
    assert made("kd").formula() == "0.1 CE(f(x), y) + [0.9 · 4² KL(t(x)/4 || f(x)/4)]"
    assert made("dkd").formula() == warm + "[4² (1 TCKD + 8 NCKD)(t(x)/4 || f(x)/4)]"
    soft = " + 1 softCE(t(x)/4, f(x)/4)]"
    assert made("ikl_kd").formula() == warm + "[8 wMSE(t(x), f(x); prior_y(t), τ=4)" + soft
    assert made("ikl_kd_code").formula() == warm + "[8 wMSE(t(x), f(x); softmax(t(x)/τ), τ=100)" + soft
    power = "τ=4, normalised over the batch)"
    assert made("gkl_kd").formula() == f"{warm}[16 wMSE(t(x), f(x); prior_y(t)^0.05, {power}{soft}"
    assert made("gkl_kd_code").formula() == f"{warm}[4 wMSE(t(x), f(x); softmax(t(x)/τ)^0.1, {power}{soft}"
    assert "sg f(x); " in made("gkl_kd", break_asymmetry=False).formula()
