"""AutoAttack on copies of a model in 16 bits, or with folded batch norms: the model itself has the last word."""

import math

import pytest
import torch
from torch import nn

from opnorm._core import surrogate as surrogates
from opnorm.attacks._autoattack import AutoAttack
from tests.attacks.test_autoattack import GRADIENTS, module, short, trained  # noqa: F401 - short is used by every test
from tests.attacks.test_losses import Times
from tests.attacks.victims import net


def test_a_surrogate_never_changes_who_is_right(monkeypatch):
    """Even one that lies: every claim is the model's own."""

    class Lies(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return -self.inner(x)

    model, x, y = trained()
    for surrogate in (Lies(model), net(3, 5).eval(), Rounded(model)):
        surrogate.precise_logits = True
        monkeypatch.setattr(module, "evaluation_surrogate", lambda *_, surrogate=surrogate, bf16: surrogate)
        result = AutoAttack(math.inf, 0.05, "fast", attacks=GRADIENTS).evaluate(model, x, y)
        assert torch.equal(result.misclassified, (model(result.points).argmax(1) != y) & result.correct)
        assert sum(stage.counts["confirmations"] for stage in result.stages) > 0


class Rounded(nn.Module):
    """Logits as bfloat16 would give them."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.bfloat16().float()).bfloat16().float()


def test_bf16_finds_about_as_much():
    model, x, y = trained()
    fp32 = AutoAttack(math.inf, 0.1, "fast", attacks=GRADIENTS, bf16=False).evaluate(model, x, y)
    bf16 = AutoAttack(math.inf, 0.1, "fast", attacks=GRADIENTS).evaluate(model, x, y)
    assert torch.equal(bf16.misclassified, (model(bf16.points).argmax(1) != y) & bf16.correct)
    assert abs(int(bf16.misclassified.sum()) - int(fp32.misclassified.sum())) <= 2


def test_the_last_linear_layer_of_a_surrogate_is_in_float32():
    if not surrogates.has_bf16(torch.device("cpu")):
        pytest.skip("this processor has no fast bfloat16")
    model, x, y = trained()
    surrogate = surrogates.evaluation_surrogate(model, x, y)
    assert surrogate.precise_logits
    with torch.no_grad():
        logits = surrogate(x)
    assert not torch.equal(logits, logits.bfloat16().float())
    assert torch.allclose(logits, model(x), atol=0.02)
    assert not torch.equal(logits, model(x))
    scaled = nn.Sequential(model, Times(2))  # here something follows that layer
    assert not surrogates.evaluation_surrogate(scaled, x, y).precise_logits
    seen = []
    model[-1].register_forward_hook(lambda *_: seen.append(1))  # such a model is not copied
    assert surrogates.evaluation_surrogate(model, x, y) is None


def test_gradients_of_a_surrogate_are_laid_out_like_its_features():
    if not surrogates.has_bf16(torch.device("cpu")):
        pytest.skip("this processor has no fast bfloat16")
    model, x, y = trained()
    network, seen = surrogates.evaluation_surrogate(model, x, y), []
    for layer in network.modules():
        if isinstance(layer, nn.ReLU):
            layer.register_full_backward_hook(lambda _, grads, above: seen.append(above[0].stride()))
    z = x.clone().requires_grad_()
    network(z).sum().backward()
    assert seen
    assert all(strides[1] == 1 for strides in seen)  # channels last
    with torch.no_grad():
        network(x)  # nothing to lay out


def test_what_disagrees_is_no_surrogate(monkeypatch):
    model, x, y = trained()
    assert surrogates._agree(model, Rounded(model), x, y)
    assert not surrogates._agree(model, net(1, 5).eval(), x, y)
    assert not surrogates._agree(
        model, nn.Sequential(model, Times(1.1)), x, y
    )  # though its gradients are parallel
    factors = torch.ones(60, 5)
    factors[0] = 1.1
    assert surrogates._agree(
        model, nn.Sequential(model, Times(factors)), x, y
    )  # one point in sixty may be off
    double, xd, yd = trained(dtype=torch.float64)
    assert surrogates.evaluation_surrogate(double, xd, yd) is None
    assert surrogates.evaluation_surrogate(double, xd, yd, bf16=False) is None


def test_without_bfloat16_the_copy_is_the_same_up_to_rounding(monkeypatch):
    model, x, y = trained()
    monkeypatch.setattr(surrogates, "has_bf16", lambda device: False)
    copy = surrogates.evaluation_surrogate(model, x, y)
    assert not copy.bf16
    assert copy.precise_logits
    with torch.no_grad():
        torch.testing.assert_close(copy(x), model(x), rtol=1e-5, atol=1e-5)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 5)).eval()  # it would not be faster
    assert surrogates.evaluation_surrogate(flat, x, y) is None


def test_the_published_version_finds_the_same_on_the_copy_in_float32(monkeypatch):
    model, x, y = trained()
    on_copy = AutoAttack(math.inf, 0.1, attacks=GRADIENTS).evaluate(model, x, y)
    monkeypatch.setattr(module, "evaluation_surrogate", lambda *_, bf16: None)
    on_model = AutoAttack(math.inf, 0.1, attacks=GRADIENTS).evaluate(model, x, y)
    assert int((on_copy.misclassified ^ on_model.misclassified).sum()) <= 1  # of 60, by rounding
    assert 0 < int(on_copy.misclassified.sum()) < len(x)
    assert on_copy.stages[0].counts["forward"] == pytest.approx(
        on_model.stages[0].counts["forward"], rel=0.05
    )
