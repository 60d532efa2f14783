"""The KL family against slow references: explicit loops, float64, and KL's own gradient."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from advtrain.engine.memory import LiveBytes
from advtrain.losses import functional

CLASSES = (2, 3, 10, 100, 1000)
SCALES = (0.01, 1.0, 5.0, 20.0)


def logits(n: int, classes: int, scale: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(n, classes, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()


def weights(n: int, classes: int, seed: int = 9) -> Tensor:
    return logits(n, classes, seed=seed).softmax(1).detach()


def pair_sum(m: list, n: list, p: list) -> Tensor:
    """¼ Σ_jk p_j p_k (Δm_jk - Δn_jk)², as the paper writes it, pair by pair."""
    total = torch.zeros((), dtype=torch.float64)
    for j in range(len(p)):
        for k in range(len(p)):
            total = total + p[j] * p[k] * ((m[j] - m[k]) - (n[j] - n[k])) ** 2
    return total / 4


def cross_entropy(m: list, n: list) -> Tensor:
    """-Σ_j sg(s_m^j) log s_n^j from exponentials."""
    m = [v.item() for v in m]
    z_m = sum(math.exp(v) for v in m)
    z_n = sum(torch.exp(v) for v in n)
    return -sum(math.exp(a) / z_m * (b - torch.log(z_n)) for a, b in zip(m, n, strict=True))


def loop(
    natural: Tensor, adversarial: Tensor, p: Tensor, *, wmse: float, ce: float, stop_n: bool, batch_norm: bool
) -> Tensor:
    """IKL, DKL and GKL over images and classes, one number at a time."""
    pairs, entropies, total_weight = [], [], 0.0
    for m, n, q in zip(natural, adversarial, p.detach().tolist(), strict=True):
        n_in_pairs = [v.detach() if stop_n else v for v in n]
        pairs.append(pair_sum(list(m), n_in_pairs, q))
        entropies.append(cross_entropy(list(m), list(n)))
        total_weight += sum(q) ** 2
    count = len(natural)
    return wmse * sum(pairs) / (total_weight if batch_norm else count) + ce * sum(entropies) / count


def assert_same(actual: Tensor, expected: Tensor, inputs: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    actual_gradients = torch.autograd.grad(actual, inputs)
    expected_gradients = torch.autograd.grad(expected, inputs)
    torch.testing.assert_close(actual_gradients, expected_gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("scale", SCALES)
def test_dkl_has_the_gradient_of_kl(classes: int, scale: float) -> None:
    m, n = logits(4, classes, scale, 1), logits(4, classes, scale, 2)
    expected = torch.autograd.grad(functional.kl(m, n), (m, n))
    actual = torch.autograd.grad(functional.dkl(m, n), (m, n))
    # Both sum C terms of the size of the logits in float64.
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-13 * max(scale, 1))


def test_dkl_weights_scale_the_two_sides() -> None:
    m, n = logits(4, 7, 2, 1), logits(4, 7, 2, 2)
    natural, adversarial = torch.autograd.grad(functional.kl(m, n), (m, n))
    scaled = torch.autograd.grad(functional.dkl(m, n, wmse_weight=20, ce_weight=4), (m, n))
    torch.testing.assert_close(scaled, (20 * natural, 4 * adversarial), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("classes", (2, 3, 5, 10))
@pytest.mark.parametrize("scale", (0.1, 3.0))
def test_dkl_equals_the_loop(classes: int, scale: float) -> None:
    m, n = logits(3, classes, scale, 1), logits(3, classes, scale, 2)
    expected = loop(m, n, m.softmax(1), wmse=5, ce=3, stop_n=True, batch_norm=False)
    assert_same(functional.dkl(m, n, wmse_weight=5, ce_weight=3), expected, (m, n))


@pytest.mark.parametrize("classes", (2, 3, 5, 10))
@pytest.mark.parametrize("scale", (0.1, 3.0))
def test_ikl_equals_the_loop(classes: int, scale: float) -> None:
    m, n, p = logits(3, classes, scale, 1), logits(3, classes, scale, 2), weights(3, classes)
    expected = loop(m, n, p, wmse=20, ce=4, stop_n=False, batch_norm=False)
    assert_same(functional.ikl(m, n, p, wmse_weight=20, ce_weight=4), expected, (m, n))


@pytest.mark.parametrize("gamma", (0.0, 0.2, 1.0, 2.5))
def test_gkl_equals_the_loop(gamma: float) -> None:
    m, n, p = logits(3, 6, 2, 1), logits(3, 6, 2, 2), weights(3, 6)
    factors = torch.tensor([[value**gamma for value in row] for row in p.tolist()], dtype=torch.float64)
    expected = loop(m, n, factors, wmse=20, ce=4, stop_n=False, batch_norm=True)
    assert_same(functional.gkl(m, n, p, gamma=gamma, wmse_weight=20, ce_weight=4), expected, (m, n))


@pytest.mark.parametrize("classes", (100, 1000))
def test_closed_form_equals_the_pair_tensor(classes: int) -> None:
    m, n = logits(2, classes, 3, 1), logits(2, classes, 3, 2)
    p = weights(2, classes) * torch.tensor([[1.0], [0.3]], dtype=torch.float64)  # rows need not sum to 1
    d = m - n
    pairs = p[:, :, None] * p[:, None, :] * (d[:, :, None] - d[:, None, :]) ** 2
    assert_same(functional.ikl(m, n, p, ce_weight=0), pairs.sum((1, 2)).mean() / 4, (m, n))


def test_golden_values() -> None:
    m = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    n = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    kl = functional.kl(m, n)
    assert kl.item() == pytest.approx(0.37973825346464446, rel=1e-14)
    natural, adversarial = torch.autograd.grad(kl, (m, n))
    expected = [0.2636103610858106, -0.192714615887535, -0.07089574519827553]
    assert natural[0].tolist() == pytest.approx(expected, rel=1e-13)
    expected = [-0.42147593622982127, 0.3081235988669237, 0.11335233736289754]
    assert adversarial[0].tolist() == pytest.approx(expected, rel=1e-13)
    p = m.detach().softmax(1)
    assert functional.ikl(m, n, p, ce_weight=0).item() == pytest.approx(0.2636103610858106, rel=1e-14)
    assert functional.ikl(m, n, p, wmse_weight=0).item() == pytest.approx(0.9040048701923171, rel=1e-14)


def losses() -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    return {
        "kl": lambda m, n, p: functional.kl(m, n),
        "dkl": lambda m, n, p: functional.dkl(m, n, wmse_weight=5, ce_weight=3),
        "ikl": lambda m, n, p: functional.ikl(m, n, p, wmse_weight=5, ce_weight=3),
        "gkl": lambda m, n, p: functional.gkl(m, n, p, gamma=0.4, wmse_weight=5, ce_weight=3),
    }


@pytest.mark.parametrize("name", losses())
def test_invariances(name: str) -> None:
    loss = losses()[name]
    m, n, p = logits(5, 8, 2, 1), logits(5, 8, 2, 2), weights(5, 8)
    value = loss(m, n, p)
    shift_m, shift_n = logits(5, 1, 50, 3), logits(5, 1, 50, 4)
    torch.testing.assert_close(loss(m + shift_m, n + shift_n, p), value, rtol=1e-10, atol=0)
    order = torch.randperm(8)
    torch.testing.assert_close(loss(m[:, order], n[:, order], p[:, order]), value, rtol=1e-12, atol=0)
    rows = torch.randperm(5)
    torch.testing.assert_close(loss(m[rows], n[rows], p[rows]), value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("gamma", (0.3, 1.0))
def test_swapping_the_sides_keeps_the_pair_sum(gamma: float) -> None:
    m, n, p = logits(5, 8, 2, 1), logits(5, 8, 2, 2), weights(5, 8)
    there, back = (functional.gkl(a, b, p, gamma=gamma, ce_weight=0) for a, b in ((m, n), (n, m)))
    torch.testing.assert_close(there, back, rtol=1e-12, atol=0)


def test_gamma_one_is_ikl_and_zero_is_uniform() -> None:
    m, n, p = logits(5, 8, 2, 1), logits(5, 8, 2, 2), weights(5, 8)
    torch.testing.assert_close(functional.gkl(m, n, p, gamma=1), functional.ikl(m, n, p), rtol=1e-12, atol=0)
    uniform = torch.full_like(p, 1 / 8)
    p[:, 0] = 0  # 0 to the power 0 is 1
    torch.testing.assert_close(functional.gkl(m, n, p, gamma=0), functional.ikl(m, n, uniform), rtol=1e-12, atol=0)


def test_gkl_over_shards_is_gkl_of_the_batch() -> None:
    m, n = logits(9, 5, 2, 1), logits(9, 5, 2, 2)
    p = weights(9, 5) * torch.linspace(0.2, 2, 9, dtype=torch.float64)[:, None]
    whole = functional.gkl(m, n, p, gamma=0.3)
    mean_weight = functional.pair_weights(functional.power(p, 0.3)).mean()
    shards = [slice(0, 2), slice(2, 9)]
    parts = [functional.gkl(m[s], n[s], p[s], gamma=0.3, mean_weight=mean_weight) * len(m[s]) / 9 for s in shards]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0)
    own = [functional.gkl(m[s], n[s], p[s], gamma=0.3) * len(m[s]) / 9 for s in shards]
    assert abs((sum(own) - whole).item()) > 1e-4  # without it the shards disagree: the normaliser matters


@pytest.mark.parametrize("name", losses())
@pytest.mark.parametrize("side", ("natural", "adversarial"))
def test_a_common_offset_keeps_float32_exact(name: str, side: str) -> None:
    """1e-4 is promised; 1e-6 is what is left when the offset goes out before anything is subtracted, else 3e-6."""
    loss = losses()[name]
    m, n, p = (t.detach().float() for t in (logits(16, 10, 3, 1), logits(16, 10, 3, 2), weights(16, 10)))
    m, n = (m + 1000, n) if side == "natural" else (m, n + 1000)
    m.requires_grad_(), n.requires_grad_()
    value = loss(m, n, p)
    exact_m, exact_n = m.detach().double().requires_grad_(), n.detach().double().requires_grad_()
    exact = loss(exact_m, exact_n, p.double())
    assert value.dtype == torch.float32
    assert abs(value.item() - exact.item()) < 1e-6 * exact.item()
    for actual, expected in zip(
        torch.autograd.grad(value, (m, n)), torch.autograd.grad(exact, (exact_m, exact_n)), strict=True
    ):
        assert (actual - expected).norm() < 1e-6 * expected.norm()


def peak_bytes(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> int:
    m, n = logits(256, 1000, 1, 1, torch.float32), logits(256, 1000, 1, 2, torch.float32)
    p = weights(256, 1000).float()
    with LiveBytes() as counter:
        loss(m, n, p).backward()
    return counter.peak


@pytest.mark.parametrize("name", ("dkl", "ikl", "gkl"))
def test_memory_stays_near_that_of_kl(name: str) -> None:
    pairwise_floor = 256 * 1000 * 1000 * 4
    extra = peak_bytes(losses()[name]) - peak_bytes(losses()["kl"])
    assert extra < 64 * 2**20 < pairwise_floor


@pytest.mark.parametrize("name", losses())
def test_low_precision_is_computed_in_float32(name: str) -> None:
    loss = losses()[name]
    m, n, p = logits(8, 10, 3, 1), logits(8, 10, 3, 2), weights(8, 10)
    half_m, half_n = m.detach().bfloat16(), n.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(half_m, half_n, p.float())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), loss(half_m.double(), half_n.double(), p), rtol=1e-5, atol=1e-6)


def test_margin_against_a_loop() -> None:
    z, y = logits(20, 4, 2, 1).detach(), torch.arange(20) % 4
    rows = zip(z.tolist(), y.tolist(), strict=True)
    expected = [max(v for j, v in enumerate(row) if j != label) - row[label] for row, label in rows]
    assert functional.margin_per_image(z, y).tolist() == pytest.approx(expected, rel=1e-14)
    assert torch.equal(functional.margin_per_image(z, y) > 0, z.argmax(1) != y)
    assert 0 < (z.argmax(1) == y).sum() < 20
    with pytest.raises(ValueError, match="at least 2 classes"):
        functional.margin_per_image(z[:, :1], y)


def test_a_row_of_zero_weights_is_harmless() -> None:
    m, n = logits(2, 4, 1, 1), logits(2, 4, 1, 2)
    p = torch.tensor([[0.0] * 4, [0.25] * 4], dtype=torch.float64)
    value = functional.ikl(m, n, p)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, (m, n)))


@pytest.mark.usefixtures("without_type_checks")
def test_wrong_shapes_and_powers_are_named() -> None:
    m, n = logits(2, 4), logits(2, 5)
    with pytest.raises(ValueError, match=r"expected tensors of one shape \(N, C\), .*got \(2, 4\), \(2, 5\)"):
        functional.kl(m, n)
    with pytest.raises(ValueError, match="gamma: expected a number of at least 0"):
        functional.gkl(m, m, weights(2, 4), gamma=-1)


SHAPES = [((4, 3), (2, 3)), ((4, 3), (1, 3)), ((3,), (3,)), ((4, 3, 2), (4, 3, 1)), ((4, 3, 2), (4, 3))]


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("name", losses())
@pytest.mark.parametrize(("natural", "adversarial"), SHAPES)
def test_every_loss_refuses_logits_that_would_broadcast(name: str, natural: tuple, adversarial: tuple) -> None:
    with pytest.raises(ValueError, match=r"expected tensors of one shape \(N, C\), .*got") as error:
        losses()[name](torch.zeros(natural), torch.zeros(adversarial), torch.ones(natural))
    assert f"{natural}, {adversarial}" in str(error.value)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("name", ("ikl", "gkl"))
@pytest.mark.parametrize("shape", ((3,), (1, 3), (4, 1), (4, 3, 3)))
def test_class_weights_that_would_broadcast_are_refused(name: str, shape: tuple) -> None:
    with pytest.raises(ValueError, match=r"expected tensors of one shape \(N, C\), .*got"):
        losses()[name](torch.zeros(4, 3), torch.zeros(4, 3), torch.ones(shape))


@pytest.mark.parametrize("name", ("ikl", "gkl"))
def test_class_weights_are_constants(name: str) -> None:
    """Also where they depend on the logits, as in the variant without global information, p = softmax(o_m)."""
    m, n = logits(4, 10, 1, 1), logits(4, 10, 1, 2)
    expected = torch.autograd.grad(losses()[name](m, n, m.softmax(1).detach()), (m, n))
    assert torch.equal(torch.autograd.grad(losses()[name](m, n, m.softmax(1)), m)[0], expected[0])


@pytest.mark.parametrize("name", losses())
def test_equal_predictions_are_a_stationary_point(name: str) -> None:
    m = logits(6, 10, 1, 1)
    n = (m.detach() + 2).requires_grad_()
    value = losses()[name](m, n, weights(6, 10))
    entropy = -(m.softmax(1) * m.log_softmax(1)).sum(1).mean()
    expected = torch.zeros_like(value) if name == "kl" else 3 * entropy  # the wMSE is 0, the cross-entropy is not
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
    for gradient in torch.autograd.grad(value, (m, n)):
        assert gradient.abs().max() < 1e-14


@pytest.mark.parametrize("name", losses())
def test_certain_and_opposite_predictions_stay_finite(name: str) -> None:
    m = torch.tensor([[1e4, 0.0, 0.0], [-1e4, 0.0, 0.0]], requires_grad=True)
    n = m.detach().flip(1).requires_grad_()
    value = losses()[name](m, n, torch.tensor([[1.0, 0.0, 0.0]] * 2))
    assert all(result.isfinite().all() for result in (value, *torch.autograd.grad(value, (m, n))))


@pytest.mark.parametrize("loss", (functional.ikl, functional.gkl))
def test_an_unlikely_class_far_from_the_rest_costs_no_precision(loss: Callable[..., Tensor]) -> None:
    """That offset is no common one of the row: only the weighted mean takes it out, and an uncentred sum cancels."""
    m, n, p = logits(16, 10, 2, 1).detach(), logits(16, 10, 2, 2), weights(16, 10)
    p[:, 0] = 0
    m = (m * 1024).round() / 1024  # adding 1000 is then exact in float32
    m[:, 0] += 1000
    m.requires_grad_()
    single_m, single_n = (t.detach().float().requires_grad_() for t in (m, n))
    exact = loss(m, n, p, ce_weight=0)
    value = loss(single_m, single_n, p.float(), ce_weight=0)
    gradients = torch.autograd.grad(value, (single_m, single_n)), torch.autograd.grad(exact, (m, n))
    for actual, expected in ((value, exact), *zip(*gradients, strict=True)):
        assert (actual - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("device", ("cpu", pytest.param("cuda", marks=pytest.mark.gpu)))
@pytest.mark.parametrize("name", losses())
def test_autocast_changes_no_bit(name: str, device: str, dtype: torch.dtype) -> None:
    loss, p = losses()[name], weights(6, 10).float().to(device)
    m, n = (logits(6, 10, 3, seed).detach().to(device, dtype).requires_grad_() for seed in (1, 2))
    expected = loss(m.float(), n.float(), p)
    with torch.autocast(device, dtype):
        value, from_float32 = loss(m, n, p), loss(m.float(), n.float(), p)
        gradients = torch.autograd.grad(value, (m, n))
    assert value.dtype == torch.float32
    assert value.item() == from_float32.item() == expected.item()
    for actual, reference in zip(gradients, torch.autograd.grad(expected, (m, n)), strict=True):
        assert actual.dtype == dtype
        assert torch.equal(actual, reference)


def test_the_counter_sees_both_passes_and_what_is_freed() -> None:
    unit = 100 * 100 * 4
    x = torch.zeros(100, 100, requires_grad=True)
    with LiveBytes() as counter:
        x.exp().sum().backward()
    assert 2 * unit <= counter.peak < 2.1 * unit  # exp(x), kept for the backward pass, and the gradient
    with LiveBytes() as counter:
        for _ in range(10):
            torch.ones(100, 100)
    assert counter.peak == unit


def test_losses_are_means_over_their_images() -> None:
    m, n, p, y = logits(6, 10, 1, 1), logits(6, 10, 1, 2), weights(6, 10), torch.arange(6)
    for i, (kl, ikl, ce) in enumerate(
        zip(
            functional.kl_per_image(m, n),
            functional.ikl_per_image(m, n, p, wmse_weight=5, ce_weight=3),
            functional.cross_entropy_per_image(m, y),
            strict=True,
        )
    ):
        alone = m[i : i + 1], n[i : i + 1], p[i : i + 1]
        torch.testing.assert_close(kl, losses()["kl"](*alone), rtol=1e-12, atol=0)
        torch.testing.assert_close(ikl, losses()["ikl"](*alone), rtol=1e-12, atol=0)
        torch.testing.assert_close(ce, -(m[i, y[i]].exp() / m[i].exp().sum()).log(), rtol=1e-12, atol=0)
