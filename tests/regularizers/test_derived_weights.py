"""Layers whose weight is computed from other parameters: parametrizations and hooks alike."""

import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from opnorm.errors import ModelError, NormError
from opnorm.norms import l1, linf
from opnorm.regularizers import norm_decay
from opnorm.spec import build

X = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0])

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")


def random_mask(layer):
    return prune.random_unstructured(layer, "weight", 0.4)


STYLES = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": functools.partial(parametrizations.orthogonal, orthogonal_map="cayley"),
    "weight_norm, hook": weight_norm,
    "spectral_norm, hook": spectral_norm,
    "pruning, hook": random_mask,
}
PENALTIES = [
    "global_snr(lam=0.1, steps=50)",
    'global_snr(lam=0.1, steps=50, operator="true")',
    "weissi(energy=0.1, complexity=0.1)",
    'weissi(energy=0.1, complexity=0, form="cnn")',
]
EDITS = ["parseval(beta=0.1)", "svc(c=0.1)", "spectral_normalization(sp=0.1)"]


@pytest.fixture(params=STYLES)
def style(request):
    return STYLES[request.param]


def net(style):
    torch.manual_seed(0)
    layers = style(nn.Conv2d(1, 2, 3)), nn.ReLU(), nn.Flatten(), style(nn.Linear(18, 3))
    return nn.Sequential(*layers).double().train()


def shown(layer):
    """The weight that the next forward pass in eval mode uses, found by the pass itself."""
    layer = copy_of(layer).eval()
    with torch.no_grad():
        layer(torch.zeros(1, *((1, 5, 5) if isinstance(layer, nn.Conv2d) else (18,)), dtype=torch.float64))
    return layer.weight.detach()


def copy_of(module):
    """A copy with the same state; deepcopy refuses tensors with a history."""
    with torch.no_grad():
        for layer in module.modules():
            for name, value in list(vars(layer).items()):
                if isinstance(value, torch.Tensor):
                    vars(layer)[name] = value.detach()
    return copy.deepcopy(module)


def plain(layer):
    """An ordinary layer with the weight shown."""
    new = nn.Conv2d(1, 2, 3) if isinstance(layer, nn.Conv2d) else nn.Linear(18, 3)
    new.double().weight.data.copy_(shown(layer))
    return new


@pytest.mark.each_value
@pytest.mark.parametrize(("p", "norm"), [(1, l1), (math.inf, linf)])
def test_norm_decay_trains_the_parameters_behind_the_weight(style, p, norm):
    """The gradients of all parameters are those of the norms, by differences of the parameters themselves."""
    model = net(style)
    hooks = norm_decay(p, beta=2.0, gamma=0.0)(model, X)
    model(X)
    before = {k: b.clone() for k, b in model.named_buffers()}
    hooks.edit_grads()
    assert all(torch.equal(b, before[k]) for k, b in model.named_buffers()), "no power iteration moves"
    assert all(m.training for m in model.modules())

    def value():
        return sum(float(norm(plain(model[i]), s)) for i, s in ((0, (1, 5, 5)), (3, (18,))))

    changed = 0
    for parameter in model.parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        flat = parameter.data.view(-1)
        for i in range(0, len(flat), max(1, len(flat) // 4)):
            kept = float(flat[i])
            flat[i] = kept + 1e-6
            up = value()
            flat[i] = kept - 1e-6
            down = value()
            flat[i] = kept
            assert float(grad.view(-1)[i]) == pytest.approx((up - down) / 2e-6, abs=1e-6)
            changed += abs(up - down) > 1e-9
    assert changed


def test_norm_decay_lowers_the_norms_of_the_network_that_is_used(style):
    if style is STYLES["orthogonal"]:
        pytest.skip("its norms hardly move")
    model = net(style)
    hooks, optimizer = norm_decay(math.inf, 1.0)(model, X), torch.optim.SGD(model.parameters(), 0.01)
    before = [float(linf(plain(model[i]), s)) for i, s in ((0, (1, 5, 5)), (3, (18,)))]
    for _ in range(20):
        optimizer.zero_grad()
        (0 * F.cross_entropy(model(X), Y)).backward()
        hooks.edit_grads()
        optimizer.step()
    after = [float(linf(plain(model[i]), s)) for i, s in ((0, (1, 5, 5)), (3, (18,)))]
    assert after[0] < before[0]
    assert after[1] < before[1]


@pytest.mark.parametrize("case", PENALTIES)
def test_penalties_are_those_of_the_weight_that_is_used(style, case):
    """Also after a change that no forward pass has followed."""
    model = net(style)
    hooks = build(case)(model, X)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    penalty = hooks.penalty(model, X, Y)
    penalty.backward()
    other = nn.Sequential(plain(model[0]), *model[1:3], plain(model[3]))
    assert float(penalty.detach()) == pytest.approx(
        float(build(case)(other, X).penalty(other, X, Y).detach()), rel=1e-6
    )
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("case", EDITS)
def test_weights_cannot_be_changed_where_they_are_computed(style, case):
    with pytest.raises(NormError, match="layer '0': its weight is computed from other parameters"):
        build(case)(net(style), X)


def test_weights_that_are_computed_in_an_unknown_way_are_an_error():
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(25, 3)
            self.raw = self.weight
            del self.weight
            self.weight = self.raw.detach()

        def forward(self, x):
            self.weight = 2 * self.raw
            return super().forward(x)

    model = nn.Sequential(nn.Flatten(), Scaled()).double()
    with pytest.raises(NormError, match="computed from other parameters in a way that is not known"):
        norm_decay(1)(model, X)


def test_frozen_ones_are_left_alone(style):
    model = net(style)
    model[0].requires_grad_(False)
    hooks = norm_decay(1)(model, X)
    assert all(name.startswith("3") for name in hooks.state)
    model.requires_grad_(False)
    with pytest.raises(ModelError, match="is the model frozen"):
        norm_decay(1)(model, X)


@pytest.mark.each_value
@pytest.mark.parametrize(
    "case", ["norm_decay(p=inf, beta=0.1)", 'norm_decay(p=1, beta=0.1, form="code")', *PENALTIES]
)
def test_stop_and_resume_give_the_same_bits(style, case):
    def train(model, hooks, steps):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            (F.cross_entropy(model(X), Y) + hooks.penalty(model, X, Y)).backward()
            hooks.edit_grads()
            optimizer.step()

    whole = net(style)
    hooks = build(case)(whole, X)
    train(whole, hooks, 2)
    saved = {k: v.clone() for k, v in whole.state_dict().items()}
    state = {k: v.clone() for k, v in hooks.state.items()}
    train(whole, hooks, 2)

    again = net(style)
    again.load_state_dict(saved)
    hooks = build(case)(again, X)
    assert hooks.state.keys() == state.keys()
    for k, v in hooks.state.items():
        v.copy_(state[k])
    train(again, hooks, 2)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())


def test_weights_of_attention_are_named():
    """Those of its linear layers are treated, its own are not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    x = torch.rand(2, 3, 8)
    with pytest.warns(
        UserWarning, match="norm_decay leaves these weights as they are: .*in_proj_weight"
    ) as seen:
        hooks = norm_decay(1)(model, x)
    assert len(seen) == 1
    assert {"1.linear1", "1.linear2"} <= hooks.state.keys()
    with pytest.warns(UserWarning, match="norm_decay") as seen:
        norm_decay(1, conv=False)(
            nn.Sequential(nn.Conv2d(1, 1, 3), nn.ConvTranspose2d(1, 1, 3), nn.Linear(5, 2)), X.float()
        )
    assert [str(w.message) for w in seen] == ["norm_decay leaves these weights as they are: 1.weight"]
