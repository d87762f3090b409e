"""Weights that layers compute from others: analyses see those of a forward now, and no power iteration moves."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from opnorm import spec
from opnorm._core.layers import plain_copy
from opnorm.analyses._shared.points import random_network
from opnorm.jacobian import local_lipschitz
from opnorm.theory import input_gradient_bound
from tests.analyses.toys import SHAPE, data

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")

STYLES = {
    "weight_norm, hook": weight_norm,
    "spectral_norm, hook": spectral_norm,
    "pruning, hook": lambda layer: prune.random_unstructured(layer, "weight", 0.4),
    "spectral_norm": parametrizations.spectral_norm,
}
CALLS = [
    "weight_energy()",
    "norm_table()",
    "norm_times(seconds=0.0)",
    "l2_bounds()",
    "singular_spread()",
    "scale_shift(points=6)",
    "wen_bound(v_min=0.1)",
]


@pytest.fixture(params=STYLES)
def network(request):
    """After a forward in train mode, whose weights have a history, and a step that no forward has followed."""
    torch.manual_seed(0)
    style = STYLES[request.param]
    conv, hidden, head = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(48, 6), nn.Linear(6, 3)
    model = nn.Sequential(style(conv), nn.ReLU(), nn.Flatten(), style(hidden), nn.ReLU(), style(head)).train()
    model(torch.rand(2, *SHAPE))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    return model


def same(found, expected):
    """Equal up to rounding, without times and what tells the two networks apart."""
    if isinstance(found, dict):
        skipped = ("times", "kind", "kinds", "tags", "parameters", "differences", "whole_differences")
        return all(same(found[k], expected[k]) for k in found.keys() | expected.keys() if k not in skipped)
    if isinstance(found, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found == (pytest.approx(expected, rel=1e-3) if isinstance(expected, float) else expected)


@pytest.mark.each_value
@pytest.mark.parametrize("call", CALLS)
def test_rows_are_those_of_the_weights_now_and_nothing_moves(call, network):
    analysis, toy = spec.build(call, "analysis"), data()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    rows = analysis(network, toy)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert same(rows, analysis(plain_copy(network), toy))
    for row in rows:
        assert max((row.get("whole_differences") or {"": 0.0}).values()) < 1e-6


def test_a_random_network_has_other_weights(network):
    plain = plain_copy(network)
    other = random_network(network, 7)
    for name in ("0", "3", "5"):
        own, random = (net.get_submodule(name).weight for net in (plain, other))
        assert float(torch.cosine_similarity(own.flatten(), random.flatten(), 0)) < 0.9


def test_bounds_at_the_data_and_of_gradients(network):
    x, y = torch.rand(2, *SHAPE), torch.tensor([0, 1])
    plain = plain_copy(network)
    for row, expected in zip(
        local_lipschitz(network, x, 1e-3).rows, local_lipschitz(plain, x, 1e-3).rows, strict=True
    ):
        assert (row.lower, row.upper) == pytest.approx((expected.lower, expected.upper), rel=1e-6)
    found, expected = (input_gradient_bound(net, x, y) for net in (network, plain))
    assert found.logits.tolist() == pytest.approx(expected.logits.tolist(), rel=1e-6)
    assert bool((found.measured_logits <= found.logits).all())
