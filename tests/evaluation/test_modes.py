"""Temporary states come back, after errors too."""

import pytest
import torch
from torch import nn

from advtrain.evaluation.modes import eager, exact_float32, frozen
from advtrain.types import SettingError


def test_frozen_restores_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))
    model[1].eval()
    model[2].weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match="inside"), frozen(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise RuntimeError("inside")
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, True, False, True]


def test_only_float32_models():
    line = r"expected float32 parameters, got torch.float64; call model.float\(\)"
    with pytest.raises(SettingError, match=line), frozen(nn.Linear(2, 2).double()):
        pass


def test_exact_float32_restores():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, matmul.allow_tf32)
    try:
        matmul.allow_tf32, cudnn.benchmark = True, True
        with torch.autocast("cpu", torch.bfloat16):
            with exact_float32():
                assert not (cudnn.allow_tf32 or cudnn.benchmark or matmul.allow_tf32)
                assert cudnn.deterministic
                assert nn.functional.linear(torch.ones(1, 2), torch.ones(1, 2)).dtype == torch.float32
            assert nn.functional.linear(torch.ones(1, 2), torch.ones(1, 2)).dtype == torch.bfloat16
        assert matmul.allow_tf32
        assert cudnn.benchmark
    finally:
        cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, matmul.allow_tf32 = before


def test_eager_model():
    model = nn.Linear(2, 2)
    assert eager(torch.compile(model, backend="eager")) is model
    assert eager(model) is model
