"""Of a convolution of many groups, only those whose norm can be the largest are diagonalized or factorized."""

import pytest
import torch
from torch import nn

from opnorm.norms import spectral_norm
from opnorm.norms.spectral import explicit_matrix

CHANNELS = 18


@pytest.mark.parametrize("scales", ["equal", "1e-20 to 1"])
@pytest.mark.parametrize(("kernel", "size", "stride"), [(3, 14, 1), (7, 22, 1), (5, 30, 2)])
def test_the_interval_is_that_of_the_largest_channel(kernel, size, stride, scales, monkeypatch):
    torch.manual_seed(0)
    layer = nn.Conv2d(CHANNELS, CHANNELS, kernel, stride, kernel // 2, groups=CHANNELS, bias=False)
    if scales != "equal":
        factors = torch.logspace(-20, 0, CHANNELS)[torch.randperm(CHANNELS)]
        layer.weight.data *= factors.view(-1, 1, 1, 1)
    made, real = [], explicit_matrix.gram_matrices

    def counted(t):
        made.append(len(t.matrices))
        return real(t)

    monkeypatch.setattr(explicit_matrix, "gram_matrices", counted)
    found = spectral_norm(layer, (CHANNELS, size, size))
    assert sum(made) <= CHANNELS // 3
    truth = 0.0
    for channel in range(CHANNELS):
        one = nn.Conv2d(1, 1, kernel, stride, kernel // 2, bias=False)
        one.weight.data = layer.weight.data[channel : channel + 1]
        truth = max(truth, float(spectral_norm(one, (1, size, size), 1e-9).upper))
    assert found.lower <= truth
    assert found.upper >= truth * (1 - 1e-8)
    assert found.relative_width <= 5e-3
