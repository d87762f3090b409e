"""Upper ends from corners, edges and the inside: never below the norm, and as close as their angles say."""

import math

import pytest
import torch
from torch import nn

from opnorm.norms import spectral_norm
from opnorm.norms.spectral import border_regions
from opnorm.norms.spectral.border_regions import region_bound
from opnorm.norms.spectral.convolution_matrix import as_convolution
from tests.norms.cases import matrix

CASES = [
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 17, 14)),
    (nn.Conv2d(3, 2, 3, padding=1, padding_mode="replicate"), (3, 13, 16)),
    (nn.Conv2d(2, 2, 3, stride=2, padding=1, padding_mode="circular"), (2, 21, 19)),
    (nn.Conv2d(2, 2, (5, 3), padding=(2, 1), padding_mode="replicate"), (2, 26, 15)),
    (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2, padding_mode="reflect"), (4, 16, 15)),
    (nn.Conv2d(2, 2, (1, 4), padding="same", padding_mode="circular"), (2, 5, 30)),
    (nn.Conv1d(3, 3, 3, padding=1, padding_mode="circular", stride=3), (3, 40)),
    (nn.Conv1d(2, 4, 5, padding=2, padding_mode="reflect", stride=2), (2, 61)),
    (nn.Conv3d(1, 2, 3, padding=1, padding_mode="replicate"), (1, 9, 8, 7)),
]


@pytest.mark.each_value
@pytest.mark.parametrize("steps", [2, 4, 6])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_bounds_are_above_the_norm_and_close(case, steps, monkeypatch):
    layer, shape = CASES[case]
    torch.manual_seed(case)
    layer = layer.double()
    nn.init.normal_(layer.weight, mean=0.3 * (case % 2))  # of one sign, the padding counts most
    true = float(torch.linalg.matrix_norm(matrix(layer, shape), 2))
    monkeypatch.setattr(border_regions, "STEPS", (steps,))
    convolution = as_convolution(layer, shape)
    for lower in (0.2 * true, true * (1 - 1e-9)):
        bound, _ = region_bound(convolution, lower, 5e-3, 4000)
        assert bound >= true * (1 - 1e-9)
    least = min((r.factor for r in border_regions.regions(convolution, 4000**3)), default=0.0)
    assert bound == math.inf if not least else bound <= true / least * 1.03


def test_a_map_of_many_channels_has_a_bound_far_below_that_of_its_padding():
    torch.manual_seed(0)
    layer, shape = nn.Conv2d(12, 12, 3, padding=1, padding_mode="reflect"), (12, 28, 28)
    norm = spectral_norm(layer, shape, effort=1000)
    assert "corners, edges" in norm.method
    assert norm.relative_width < 0.1  # 0.7 by the norm of the padding
    narrow = spectral_norm(layer, shape, 0.01, failure_probability=1e-9)
    assert narrow.relative_width <= 0.01
    assert norm.lower <= narrow.upper
    assert narrow.lower <= norm.upper


def test_the_remedy_is_named_where_an_interval_is_wide():
    layer = nn.Conv2d(12, 12, 5, padding=2, padding_mode="reflect")
    assert "failure_probability" in spectral_norm(layer, (12, 16, 16), effort=600).method
