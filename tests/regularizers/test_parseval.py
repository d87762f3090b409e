"""Parseval's step against the singular values that it moves."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opnorm.errors import ModelError, SpecError
from opnorm.regularizers import parseval
from tests.property_tests import examples


def bound(model, x, **arguments):
    return parseval(**arguments)(model, x)


def deep(width=6):
    """Three layers of one shape, one of another, and the output layer."""
    torch.manual_seed(0)
    hidden = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(4, width), *hidden, nn.Linear(width, 3)).double()


def matrix(weight):
    return weight.detach().flatten(1)


@examples(40)
@given(
    st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(0, 100),
    st.booleans(),
)  # fmt: skip
def test_a_step_moves_each_singular_value_by_itself(out, in_channels, k, groups, seed, last):
    torch.manual_seed(seed)
    conv = nn.Conv2d(in_channels * groups, out * groups, k, groups=groups).double()
    if last:
        conv = conv.to(memory_format=torch.channels_last)
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(out * groups * (6 - k) ** 2, 2).double())
    before = conv.weight.detach().clone()
    bound(model, torch.rand(1, in_channels * groups, 5, 5), beta=0.2).after_step(0.1)
    for old, new in zip(before.chunk(groups), conv.weight.detach().chunk(groups), strict=True):
        U, s, V = torch.linalg.svd(matrix(old), full_matrices=False)
        want = U @ torch.diag(s * (1.2 - 0.2 * s**2)) @ V
        assert torch.allclose(matrix(new), want, atol=1e-13)


def test_a_step_is_the_formula_and_has_no_other_effect():
    model = deep()
    before = [p.detach().clone() for p in model.parameters()]
    bound(model, torch.rand(2, 4), beta=0.01).after_step(123.0)
    for i, (old, new) in enumerate(zip(before, model.parameters(), strict=True)):
        hidden = old.ndim > 1 and i < len(before) - 2
        want = 1.01 * old - 0.01 * old @ old.T @ old if hidden else old
        assert torch.allclose(new, want, atol=1e-15), i
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("layer", [nn.Linear(9, 4), nn.Linear(4, 9), nn.Linear(5, 5), nn.Conv1d(2, 4, 3)])
def test_it_leads_to_orthonormal_rows_or_columns(layer):
    torch.manual_seed(0)
    size = (1, 2, 4) if isinstance(layer, nn.Conv1d) else (1, layer.in_features)
    nn.init.normal_(layer.weight, std=0.3)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(layer(torch.zeros(size)).numel(), 2)).double()
    hooks = bound(model, torch.rand(size), beta=0.3)
    for _ in range(200):
        hooks.after_step(0.1)
    W = matrix(layer.weight)
    small = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
    assert torch.allclose(small, torch.eye(len(small)).double(), atol=1e-9)
    if W.shape[0] > W.shape[1]:  # W Wᵀ is a projection
        assert torch.allclose(W @ W.T @ W @ W.T, W @ W.T, atol=1e-9)


def test_the_default_step_is_stable_in_float32():
    model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 2))
    hooks = bound(model, torch.rand(1, 20))
    start = matrix(model[0].weight).clone()
    for _ in range(100):
        hooks.after_step(0.1)
    s = torch.linalg.svdvals(start.double())
    for _ in range(100):
        s = s * (1 + 1e-4 - 1e-4 * s**2)
    assert torch.allclose(torch.linalg.svdvals(matrix(model[0].weight).double()), s, rtol=1e-5)


def test_the_output_layer_decays_in_the_loss():
    model = deep()
    hooks = bound(model, torch.rand(2, 4), output_decay=0.3)
    penalty = hooks.penalty(model, torch.rand(2, 4), torch.zeros(2))
    penalty.backward()
    assert torch.isclose(penalty, 0.3 * model[-1].weight.square().sum())
    assert torch.allclose(model[-1].weight.grad, 0.6 * model[-1].weight)
    assert all(layer.weight.grad is None for layer in model[:-1] if isinstance(layer, nn.Linear))
    alone = bound(model, torch.rand(2, 4), output_decay=0)
    assert not alone.penalty(model, torch.rand(2, 4), torch.zeros(2)).requires_grad


def test_the_output_layer_is_the_last_that_is_called():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(4, 2), nn.Linear(4, 4)

        def forward(self, x):
            return self.last(self.first(x))

    model = Backwards()
    before = model.last.weight.detach().clone(), model.first.weight.detach().clone()
    bound(model, torch.rand(1, 4), beta=0.1).after_step(0.1)
    assert torch.equal(model.last.weight, before[0])
    assert not torch.equal(model.first.weight, before[1])


def test_a_frozen_output_layer_stays_the_output_layer():
    model = deep()
    model[-1].requires_grad_(False)
    hidden = model[-3].weight.detach().clone()
    hooks = bound(model, torch.rand(1, 4), beta=0.1, output_decay=0.5)
    hooks.after_step(0.1)
    assert hooks.penalty(model, torch.rand(1, 4), torch.zeros(1)) == 0
    assert not torch.equal(model[-3].weight, hidden)


def test_beta_0_moves_nothing():
    model = deep()
    before = [p.detach().clone() for p in model.parameters()]
    bound(model, torch.rand(1, 4), beta=0, output_decay=0).after_step(0.1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_divergent_step_is_refused():
    model = deep()
    limit = math.sqrt(1 + 2 / 0.5)
    for value, fits in ((limit * 0.99, True), (limit * 1.01, False)):
        with torch.no_grad():
            model[1].weight.copy_(torch.eye(6)).mul_(value)
        if fits:
            hooks = bound(model, torch.rand(1, 4), beta=0.5)
            for _ in range(60):
                hooks.after_step(0.1)
            s = torch.linalg.svdvals(model[1].weight.detach())
            assert torch.allclose(s, torch.ones(6).double(), atol=1e-6)
        else:
            with pytest.raises(
                ModelError, match=r"layer '1' has a singular value of 2.258.*diverges from 2.236"
            ):
                bound(model, torch.rand(1, 4), beta=0.5)
    model[1].weight.data[0, 0] = math.nan
    with pytest.raises(ModelError, match="NaN or infinite in one of the layers 1, 3, 5"):
        bound(model, torch.rand(1, 4))


def test_what_it_does_not_treat_is_named_once():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ConvTranspose2d(2, 1, 2), nn.Flatten(), nn.Linear(25, 2))
    with pytest.warns(UserWarning, match=r"parseval leaves these weights as they are: 1\.weight$") as caught:
        bound(model, torch.rand(1, 1, 5, 5))
    assert len(caught) == 1


def test_a_layer_at_several_sizes_is_no_matter():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv1d(1, 1, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.out(self.conv(self.conv(x)).flatten(1))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bound(Twice(), torch.rand(1, 1, 7))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 1}, r"beta=1: expected a step in \[0, 1\)"),
        ({"beta": -1e-9}, "beta=-1e-09"),
        ({"beta": math.nan}, "beta=nan"),
        ({"beta": False}, "beta=False"),
        ({"beta": "0.1"}, "beta='0.1'"),
        ({"output_decay": -1}, "output_decay=-1"),
        ({"output_decay": math.inf}, "output_decay=inf"),
        ({"output_decay": math.nan}, "output_decay=nan"),
        ({"output_decay": True}, "output_decay=True"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(SpecError, match=message):
        parseval(**arguments)


def test_a_model_needs_a_linear_layer():
    with pytest.raises(ModelError, match="finds no linear layer"):
        bound(nn.Sequential(nn.Conv2d(1, 1, 3)), torch.rand(1, 1, 5, 5))
    with pytest.raises(ModelError, match="no trainable layer"):
        bound(nn.Flatten(), torch.rand(1, 1, 5, 5))
