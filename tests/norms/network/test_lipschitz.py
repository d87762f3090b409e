"""Bounds along the graph: never below what inputs show, right by hand where that can be told, and unknown otherwise."""

import math
import operator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opnorm.errors import NormError, OpnormError
from opnorm.models import cnn, resnet
from opnorm.norms import NetworkBound, lipschitz_bound, measure, operator_norm, spectral_complexity
from opnorm.norms.network.lipschitz import lipschitz_bounds
from tests.norms import nets
from tests.norms.network.small_networks import Net, check, steepest, w, weights
from tests.property_tests import examples

ORDS = (1, 2, math.inf)

# ---------------------------------------------------------------- by hand


W = {1: 6.0, 2: 5.464985704219043, math.inf: 7.0}

BY_HAND = {
    "composition": (lambda s, x: s.b(F.relu(s.a(x))), lambda p: W[p] ** 2),
    "residual": (lambda s, x: x + s.a(x), lambda p: 1 + W[p]),
    "residual of residual": (lambda s, x: (x + s.a(x)) + s.b(x + s.a(x)), lambda p: (1 + W[p]) * (1 + W[p])),
    "difference": (lambda s, x: s.a(x) - 3 * x, lambda p: W[p] + 3),
    "alpha": (lambda s, x: torch.add(s.a(x), x, alpha=-0.5), lambda p: W[p] + 0.5),
    "convex sum": (lambda s, x: 0.3 * x + 0.7 * s.a(x), lambda p: 0.3 + 0.7 * W[p]),
    "scaled by a tensor": (lambda s, x: s.a(x) * torch.tensor([2.0, -5.0]) / 4 + 1, lambda p: 5 / 4 * W[p]),
    "concatenation": (
        lambda s, x: torch.cat([x, s.a(x)], 1),
        lambda p: max(1, W[p]) if math.isinf(p) else (1 + W[p] ** p) ** (1 / p),
    ),
    "stack with a constant": (lambda s, x: torch.stack([s.a(x), x.new_ones(x.shape)], 1), lambda p: W[p]),
    "in-place activation": (lambda s, x: F.relu(s.a(x), inplace=True) + x, lambda p: W[p] + 1),
    "in place on the shortcut": (lambda s, x: F.leaky_relu_(x, 3.0) + x, lambda p: 6),
    "in place on both": (lambda s, x: operator.imul(x, 3) + x, lambda p: 6),
    "by its type": (lambda s, x: 9 * x if isinstance(x, torch.Tensor) else x, lambda p: 9),
    "mean": (lambda s, x: s.a(x).mean(1), lambda p: W[p] * 2 ** (-1 / p)),
    "sum": (lambda s, x: s.a(x).sum(-1, keepdim=True), lambda p: W[p] * 2 ** (1 - 1 / p)),
    "broadcast": (lambda s, x: x[:, :1] + s.a(x), lambda p: 2 ** (1 / p) + W[p]),
    "expand": (lambda s, x: s.a(x)[:, :, None].expand(-1, -1, 3), lambda p: W[p] * 3 ** (1 / p)),
    "repeat": (lambda s, x: s.a(x).repeat(1, 4), lambda p: W[p] * 4 ** (1 / p)),
    "repeated as often as a tensor says": (
        lambda s, x: s.a(x).repeat_interleave(torch.tensor([1, 4]), 1),
        lambda p: W[p] * 4 ** (1 / p),
    ),
    "repeated in another order": (
        lambda s, x: torch.repeat_interleave(s.a(x), repeats=torch.tensor([0, 3]), dim=-1),
        lambda p: W[p] * 3 ** (1 / p),
    ),
    "log-softmax of what squeeze left": (
        lambda s, x: F.log_softmax(s.a(x).squeeze(), -1),
        lambda p: W[p] * {1: 1.0, 2: math.sqrt(2), math.inf: 2.0}[p],
    ),
    "log-softmax along a moved axis": (
        lambda s, x: F.log_softmax(s.a(x).transpose(0, 1), 0).transpose(0, 1),
        lambda p: W[p] * {1: 1.0, 2: math.sqrt(2), math.inf: 2.0}[p],
    ),
    "arguments by name": (lambda s, x: torch.add(input=F.relu(input=s.a(x)), other=x), lambda p: W[p] + 1),
    "picked twice": (lambda s, x: s.a(x)[:, [0, 1, 1, 1]], lambda p: W[p] * 3 ** (1 / p)),
    "moved": (lambda s, x: s.a(x).view(x.size(0), 1, -1).transpose(1, 2).flip(1).flatten(1), lambda p: W[p]),
    "split": (lambda s, x: (lambda halves: halves[0] + halves[1])(s.a(x).chunk(2, 1)), lambda p: 2 * W[p]),
    "maximum": (
        lambda s, x: torch.maximum(s.a(x), x),
        lambda p: max(1, W[p]) if math.isinf(p) else (1 + W[p] ** p) ** (1 / p),
    ),
    "largest": (lambda s, x: s.a(x).max(1)[0] + s.a(x).max(dim=1).values + x.amax(1), lambda p: 2 * W[p] + 1),
    "clamped": (lambda s, x: s.a(x).clamp(-1, 1).abs().neg(), lambda p: W[p]),
    "sigmoid, softmax": (lambda s, x: torch.softmax(s.a(x).sigmoid(), 1), lambda p: W[p] / 8),
    "padded": (lambda s, x: F.pad(s.a(x), (1, 2), value=5.0), lambda p: W[p]),
    "masked": (lambda s, x: torch.where(torch.tensor([True, False]), x, s.a(x)), None),
    "the same layer twice": (lambda s, x: s.a(s.a(x)), lambda p: W[p] ** 2),
    "weights without a layer": (lambda s, x: F.linear(x, s.a.weight) @ s.b.weight.T, lambda p: W[p] ** 2),
    "dropout": (lambda s, x: F.dropout(s.a(x), 0.5, training=s.training), lambda p: W[p]),
    "a constant": (lambda s, x: torch.ones(1, 2) + s.a.weight.sum(), lambda p: 0.0),
}


@pytest.mark.parametrize("p", ORDS)
@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name, p):
    function, expected = BY_HAND[name]
    model = Net(function, a=w(), b=w())
    bound = lipschitz_bound(model, torch.zeros(1, 2), p)
    assert bound.value is not None, bound.reason
    if expected is not None:
        assert bound.value == pytest.approx(expected(p), rel=5e-3 if p == 2 else 1e-9)
    if name != "a constant":
        assert steepest(model, (2,), p, tries=40) <= bound.value * (1 + 1e-9)


GELU, SILU = 1.1289041451851549, 1.0998393201288670
BY_ONE_VARIABLE = {
    "GELU": (lambda s, x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))), GELU),
    "GELU by tanh": (
        lambda s, x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0)))),
        1.1289930686577719,
    ),
    "QuickGELU": (lambda s, x: x * torch.sigmoid(1.702 * x), SILU),
    "Swish": (lambda s, x: x * s.sigmoid(s.beta * x), SILU),
    "Swish of channels": (lambda s, x: x * torch.sigmoid(x * torch.tensor([0.3, 4.0])), SILU),
    "SiLU by exp": (lambda s, x: x / (1 + torch.exp(-x)), SILU),
    "Mish": (lambda s, x: x * F.softplus(x).tanh(), 1.0884981612517280),
    "Hardswish": (lambda s, x: x * F.relu6(x + 3) / 6, 1.5),
    "Hardswish by clamp": (lambda s, x: x.mul((x + 3).clamp(min=0, max=6)).div(6), 1.5),
    "softsign": (lambda s, x: x / (1 + x.abs()), 1.0),
    "Snake": (lambda s, x: x + torch.sin(2 * x) ** 2 / 2, 2.0),
    "tanh shrink": (lambda s, x: x - torch.tanh(x), 1.0),
    "in place": (lambda s, x: (2 * x).mul_(3).mul_(torch.sigmoid(x)), 6 * SILU),
    "in place on itself": (lambda s, x: (lambda y: y.mul_(y.sigmoid()))(2 * x), 2 * SILU),
    "between layers": (lambda s, x: (lambda y: s.a(y * torch.sigmoid(y)))(s.a(x)), SILU * 49),
    "Gaussian": (lambda s, x: torch.exp(-(x**2)), math.sqrt(2 / math.e)),
    "a constant that is written to": (lambda s, x: x.new_full(x.shape, 5.0).mul_(x), 5.0),
}


@pytest.mark.parametrize("name", BY_ONE_VARIABLE)
def test_functions_of_one_variable(name):
    function, truth = BY_ONE_VARIABLE[name]
    model = Net(function, a=w(), sigmoid=nn.Sigmoid(), beta=nn.Parameter(torch.tensor([1.5])))
    value = check(model, (2,), math.inf)
    assert truth * (1 - 1e-15) <= value <= truth * (1 + 1e-8)
    node = lipschitz_bound(model, torch.zeros(1, 2), math.inf).nodes[-1]
    assert node.bound == pytest.approx(value)


def test_a_function_of_what_a_value_was_before_a_write():
    def function(s, x):
        y = 1.0 * x
        gate = torch.sigmoid(y)
        y.add_(1.0)
        return y * gate  # (y + 1) σ(y), not (y + 1) σ(y + 1)

    truth = max(
        (F.sigmoid(y) * (1 + (y + 1) * F.sigmoid(-y))).max() for y in [torch.linspace(-9, 9, 99_999).double()]
    )
    value = lipschitz_bound(Net(function), torch.zeros(1, 2), 1).value
    assert value == pytest.approx(float(truth), rel=1e-7)


@pytest.mark.parametrize(
    ("pool", "factors"),
    [
        (lambda s, x: F.max_pool2d(x, 2), (1, 1, 1)),
        (lambda s, x: F.max_pool2d(x, 3, 2, 1), (4, 2, 1)),
        (lambda s, x: F.max_pool2d(x, 3, stride=1, ceil_mode=True), (9, 3, 1)),
        (lambda s, x: F.adaptive_max_pool2d(x, 1), (1, 1, 1)),
        (lambda s, x: F.avg_pool2d(x, 2), (1 / 4, 1 / 2, 1)),
        (lambda s, x: F.adaptive_avg_pool2d(x, 1), (1 / 36, 1 / 6, 1)),
        (lambda s, x: F.interpolate(x, scale_factor=2), (4, 2, 1)),
        (lambda s, x: F.pad(x, (1, 1, 1, 1), mode="replicate"), (4, 2, 1)),
        (lambda s, x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2), (4, 2, 1)),
        (lambda s, x: F.batch_norm(x, *(torch.full((1,), v).double() for v in (0.0, 0.25, 3.0)), eps=0.0), (6, 6, 6)),
        (lambda s, x: F.conv2d(x, torch.ones(1, 1, 3, 3, dtype=torch.float64), padding=1), (9, None, 9)),
        (lambda s, x: F.conv_transpose2d(x, torch.ones(1, 2, 2, 2, dtype=torch.float64), stride=2), (8, math.sqrt(8), 1)),
    ],
)  # fmt: skip
def test_functions_that_are_layers(pool, factors):
    model = Net(pool)
    for p, factor in zip(ORDS, factors, strict=True):
        value = check(model, (1, 6, 6), p)
        if factor is not None:
            assert value == pytest.approx(factor, rel=5e-3 if p == 2 else 1e-9)


def test_layer_norm_by_module_and_by_function():
    for model in (
        nn.LayerNorm(3, eps=0.04),
        Net(lambda s, x: F.layer_norm(x, (3,), eps=0.04)),
        nn.GroupNorm(1, 3, eps=0.04),
    ):
        for p, factor in zip(ORDS, (4 / 3, 1, 4 / 3), strict=True):  # of I - 1 1ᵀ / 3
            assert check(model, (3,), p) == pytest.approx(5 * factor)


# ---------------------------------------------------------------- random networks


@st.composite
def networks(draw):
    """Small convolutional networks of random layers, shortcuts and branches."""
    torch.manual_seed(draw(st.integers(0, 999)))
    channels, steps = draw(st.integers(1, 3)), []
    size = 6

    def activation():
        return draw(
            st.sampled_from(
                [nn.ReLU(), nn.ELU(), nn.GELU(), nn.Tanh(), nn.LeakyReLU(1.5), nn.SiLU(), nn.Softplus()]
            )
        )

    first = channels
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "strided", "residual", "cat", "pool", "avg", "norm", "up"]))
        if kind == "conv":
            out = draw(st.integers(1, 3))
            mode = draw(st.sampled_from(["zeros", "circular", "reflect"]))
            steps.append(
                nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, padding_mode=mode), activation())
            )
            channels = out
        elif kind == "strided" and size > 2:
            steps.append(nn.Conv2d(channels, channels, 2, 2, groups=draw(st.sampled_from([1, channels]))))
            size //= 2
        elif kind == "residual":
            branch = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), activation())
            steps.append(Net(lambda s, x: F.relu(x + s.branch(x)), branch=branch))
        elif kind == "cat" and channels <= 3:
            steps.append(
                Net(lambda s, x: torch.cat((x, s.branch(x)), dim=1), branch=nn.Conv2d(channels, channels, 1))
            )
            channels *= 2
        elif kind == "pool" and size > 2:
            steps.append(nn.MaxPool2d(3, 1))
            size -= 2
        elif kind == "avg":
            steps.append(nn.AvgPool2d(2, 1, 1))
            size += 1
        elif kind == "norm":
            layer = nn.BatchNorm2d(channels)
            layer.running_var.uniform_(0.1, 3)
            nn.init.normal_(layer.weight)
            steps.append(layer)
        elif kind == "up" and size <= 4:
            steps.append(nn.ConvTranspose2d(channels, channels, 2, 2))
            size *= 2
    tail = nn.Linear(channels * size * size, 3)
    return Net(lambda s, x: s.tail(torch.flatten(s.body(x), 1)), body=nn.Sequential(*steps), tail=tail), (
        first,
        6,
        6,
    )


@given(networks(), st.sampled_from(ORDS))
@examples(60)
def test_no_random_network_is_steeper_than_its_bound(case, p):
    model, shape = case
    check(model, shape, p)


@pytest.mark.parametrize("p", ORDS)
def test_the_projects_networks(p):
    for model in (cnn(in_shape=(1, 6, 6), width=2), resnet(depth=8, in_shape=(2, 8, 8), width=2)):
        x = torch.zeros(1, *((1, 6, 6) if model[0].mean.numel() == 1 else (2, 8, 8)))
        check(model, tuple(x.shape[1:]), p)


def test_a_block_of_the_projects_resnet_by_hand():
    """The first block of the second stage: its shortcut drops pixels and adds zeros, which has norm 1."""
    model = resnet(depth=8, in_shape=(2, 8, 8), width=2)
    block = model[5]
    branch = block.branch
    value = lipschitz_bound(block, torch.zeros(1, 2, 8, 8), 1).value
    conv1, bn1, conv2, bn2 = (
        float(operator_norm(layer, 1, shape).upper)
        for layer, shape in (
            (branch.conv1, (2, 8, 8)), (branch.bn1, (4, 4, 4)), (branch.conv2, (4, 4, 4)), (branch.bn2, (4, 4, 4)),
        )
    )  # fmt: skip
    assert value == pytest.approx(1 + conv1 * bn1 * conv2 * bn2, rel=1e-9)


@pytest.mark.parametrize("p", ORDS)
def test_well_known_networks_have_bounds(p):
    for model, shape in (
        (nets.resnet18(4, 5), (3, 16, 16)), (nets.depthwise_separable(4), (3, 16, 16)), (nets.decoder(2), (32,)),
        (nets.Audio(4), (1, 128)),
    ):  # fmt: skip
        x = torch.zeros(1, *shape)
        table = measure(model, x, ords=(p,))
        bound = lipschitz_bound(model, x, p, table=table)
        assert bound.value is not None, bound.reason
        assert bound == lipschitz_bound(model, x, p)


# ---------------------------------------------------------------- inputs and outputs


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = w()

    def forward(self, x, y=None, *, scale=1.0, pair=False):
        if y is not None:
            x = x + 2 * y
        out = scale * self.a(x)
        return (out, x) if pair else out


@pytest.mark.parametrize(
    ("example", "value"),
    [
        (torch.zeros(1, 2), 6),
        ((torch.zeros(1, 2),), 6),
        ({"x": torch.zeros(1, 2), "scale": 3.0}, 18),
        ((torch.zeros(1, 2), torch.zeros(1, 2)), 18),  # of (x, y) side by side; (1 + 2) · 6 is an upper bound
        ({"x": torch.zeros(1, 2), "pair": True}, 7),  # of both outputs side by side
    ],
)
def test_other_arguments(example, value):
    assert lipschitz_bound(Two(), example, 1).value == pytest.approx(value)


def test_whole_numbers_are_no_input():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.a = nn.Embedding(3, 2), w()

        def forward(self, tokens, x):
            return self.a(x) + self.embed(tokens)

    assert lipschitz_bound(
        Tokens(), (torch.zeros(1, dtype=torch.long), torch.zeros(1, 2)), 1
    ).value == pytest.approx(6)


def test_wrapped_models_and_layers():
    inner = nn.Sequential(w(), nn.ReLU(inplace=True))
    for model in (torch.compile(inner), nn.DataParallel(inner), nn.Sequential(torch.compile(w()), nn.ReLU())):
        assert lipschitz_bound(model, torch.zeros(1, 2), 1).value == pytest.approx(6)
    spectral = torch.nn.utils.parametrizations.spectral_norm(w())
    assert lipschitz_bound(spectral.eval(), torch.zeros(1, 2), 2).value == pytest.approx(1, rel=0.1)
    assert lipschitz_bound(w().to(torch.bfloat16), torch.zeros(1, 2), 1).value == pytest.approx(6)


def test_a_subclass_is_followed_into_its_own_forward():
    class ReluLinear(nn.Linear):
        def forward(self, x):
            return 3 * F.relu(super().forward(x))

    layer = weights(ReluLinear(2, 2), [[1, 2], [3, 4]])
    assert check(nn.Sequential(layer).double(), (2,), 1) == pytest.approx(18)


def test_a_traced_graph_is_followed_too():
    assert lipschitz_bound(
        torch.fx.symbolic_trace(nn.Sequential(w(), nn.ReLU())), torch.zeros(1, 2), 1
    ).value == pytest.approx(6)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), torch.compile(nn.ReLU(inplace=True)), nn.Dropout()
    ).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modules = list(model.named_modules())
    x, state = torch.rand(2, 1, 5, 5), torch.get_rng_state()
    kept = x.clone()
    lipschitz_bound(model, x, 1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert list(model.named_modules()) == modules
    assert all(m.training for m in model.modules())
    assert torch.equal(x, kept)
    assert torch.equal(state, torch.get_rng_state())


def test_nodes_show_where_the_bound_comes_from():
    bound = lipschitz_bound(Net(lambda s, x: x + F.relu(s.a(x)), a=w()), torch.zeros(1, 2), 1)
    assert [(n.name, n.operation, n.factor, n.bound) for n in bound.nodes] == [
        ("a", "Linear", 6, 6), ("relu", "relu", 1, 6), ("add", "add", None, 7),
    ]  # fmt: skip
    assert str(bound) == "7"
    assert str(NetworkBound(10.0**8.12345, "", ())) == "10^8.124"
    assert str(NetworkBound(0.0, "", ())) == "0"


def test_models_that_do_not_take_the_example_and_other_orders():
    with pytest.raises(OpnormError, match="does not take"):
        lipschitz_bound(nn.Linear(2, 2), torch.zeros(1, 3), 1)
    with pytest.raises(OpnormError, match="forward want more"):
        lipschitz_bound(Two(), (), 1)
    for ord in (3, (1, 2)):
        with pytest.raises(NormError, match="expected 1, 2"):
            lipschitz_bound(nn.Linear(2, 2), torch.zeros(1, 2), ord)


def test_several_orders_at_once():
    mixing, plain = nn.Sequential(w(), nn.Softmax(0)), nn.Sequential(w(), nn.ReLU(), w())
    for model in (plain, mixing, nn.Sequential(nn.Linear(2, 2), nn.RNN(2, 2))):
        example = torch.zeros(1, 2)
        alone = {p: lipschitz_bound(model, example, p) for p in ORDS}
        assert lipschitz_bounds(model, example, ORDS) == alone
    with pytest.raises(NormError, match="expected 1, 2"):
        lipschitz_bounds(plain, example, (1, 3))


def test_spectral_complexity():
    model = nn.Sequential(w(), nn.ReLU(), w())
    found = spectral_complexity(model, torch.zeros(1, 2))
    assert found.layers == 2
    assert found.lower <= W[2] ** 2 <= found.upper
    assert found.upper <= found.lower * 1.02
