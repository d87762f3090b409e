"""Networks of timm of three families."""

import pytest
import torch

from opnorm.models import timm
from tests.interop.checks import check_attacked, check_jacobian, check_measured, check_trained

pytest.importorskip(
    "timm",
    reason="the extra timm is optional, and needs the torchvision that belongs to torch",
    exc_type=(ImportError, RuntimeError),
)
NAMES = [pytest.param("resnet10t", marks=pytest.mark.slow), "vit_tiny_patch16_224", "convnext_atto"]


@pytest.mark.parametrize("name", NAMES)
def test_networks(name):
    torch.manual_seed(0)
    model, x = timm(name, in_shape=(1, 32, 32), classes=3).eval(), torch.rand(6, 1, 32, 32)
    check_measured(model, x)
    check_jacobian(model, x)
    if name == "resnet10t":
        check_attacked(model, x)
        check_trained(model, x)
