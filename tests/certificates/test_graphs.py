"""Certificates along the graph of a forward: residual networks, concatenation, functions, in float32 and float64."""

import itertools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opnorm import attacks
from opnorm.certificates import certified
from opnorm.certificates.linear_bounds import Balls, intervals, lower_bound, tightened
from opnorm.certificates.network_bounds import network_bounds
from opnorm.errors import BoundError
from opnorm.models import resnet
from tests.attacks.honest import honest
from tests.certificates.test_certificates import corners_and_more
from tests.property_tests import examples

NORMS = (1, 2, math.inf)
WIDTH = 4


class RandomGraph(nn.Module):
    """Operations on values of four channels of 4 x 4, each of which takes one or two values before it."""

    OPERATIONS = (
        "conv", "functional conv", "relu", "relu in place", "add", "add in place", "subtract", "scale", "halves", "norm",
        "max pool", "average pool", "gate", "flip", "pad", "transposed", "means",
    )  # fmt: skip

    def __init__(self, operations, scale):
        super().__init__()
        self.operations = operations
        self.convs = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in operations)
        self.transposed = nn.ConvTranspose2d(WIDTH, WIDTH, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(WIDTH), nn.Linear(WIDTH * 16, 3)
        self.norm.running_mean.uniform_(-1, 1), self.norm.running_var.uniform_(0.1, 2)
        self.scale = scale
        self.register_buffer("gate", torch.randn(WIDTH, 1, 1))
        for conv in self.convs:
            conv.weight.data *= scale

    def forward(self, x):
        values = [x]
        for (operation, first, second), conv in zip(self.operations, self.convs, strict=True):
            a, b = values[first % len(values)], values[second % len(values)]
            values.append(self.apply_to(operation, a, b, conv))
        return self.head((values[-1] + values[len(values) // 2]).flatten(1))

    def apply_to(self, operation, a, b, conv):
        if operation == "add in place":
            a = a.clone()
            a += b
            return a
        return {
            "conv": lambda: conv(a),
            "functional conv": lambda: F.conv2d(a, conv.weight, conv.bias, padding=1),
            "relu": lambda: F.relu(a),
            "relu in place": lambda: (a + 0).relu_(),
            "add": lambda: torch.add(a, b, alpha=-0.5),
            "subtract": lambda: 1.5 - a - b,
            "scale": lambda: (a * 0.7 - 0.2) / 0.3,
            "halves": lambda: torch.cat([a[:, :2], b.chunk(2, 1)[1]], 1),
            "norm": lambda: self.norm(a),
            "max pool": lambda: F.max_pool2d(a, 3, 1, 1),
            "average pool": lambda: F.avg_pool2d(a, 3, 1, 1),
            "gate": lambda: a * self.gate,
            "flip": lambda: a.transpose(2, 3).flip(1).reshape(a.shape),
            "pad": lambda: F.pad(a[..., 1:], (1, 0), value=0.5),
            "transposed": lambda: self.transposed(a),
            "means": lambda: a - a.mean((2, 3), keepdim=True),
        }[operation]()


step_of_graph = st.tuples(st.sampled_from(RandomGraph.OPERATIONS), st.integers(0, 20), st.integers(0, 20))


@given(
    st.lists(step_of_graph, min_size=1, max_size=8),
    st.sampled_from([1e-30, 1e-6, 1.0, 1e6, 1e30]),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from(NORMS),
    st.sampled_from([0.0, 1e-3, 0.3]),
    st.integers(0, 1000),
)
@examples(40)
def test_bounds_of_random_graphs_hold(operations, scale, dtype, norm, eps, seed):
    torch.manual_seed(seed)
    net = RandomGraph(operations, scale).eval().to(dtype)
    x = torch.rand(1, WIDTH, 4, 4, dtype=dtype)
    A = torch.randn(1, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        values = net(corners_and_more(x, eps, norm).to(dtype)).double()
        try:
            steps = network_bounds(net, (WIDTH, 4, 4))
        except BoundError:
            assert not values.isfinite().all() or values.abs().max() > 1e30, (
                "only what may overflow is refused"
            )
            return
        balls = Balls(x.double(), eps, norm)
        boxes = intervals(steps, balls)
        tight = tightened(steps, boxes, balls)
        for bounds in (boxes, tight):
            low, high = bounds[-1]
            assert not (values < low).any()
            assert not (values > high).any()
            assert not (lower_bound(steps, bounds, balls, A)[0] > (values @ A[0].T).amin(0)).any()


def test_every_operation_of_the_random_graphs_has_bounds():
    torch.manual_seed(0)
    for operation in RandomGraph.OPERATIONS:
        steps = network_bounds(RandomGraph([(operation, 0, 0)], 1.0), (WIDTH, 4, 4))
        low, high = intervals(steps, Balls(torch.rand(1, WIDTH, 4, 4).double(), 0.0, 2))[-1]
        assert float((high - low).max()) < 1e-3, operation


class Written(nn.Module):
    """The layers of a sequence, called as functions."""

    def __init__(self, sequence):
        super().__init__()
        self.sequence = sequence

    def forward(self, x):
        for layer in self.sequence:
            if isinstance(layer, nn.Conv2d):
                x = F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)
            elif isinstance(layer, nn.Linear):
                x = x @ layer.weight.T + layer.bias
            elif isinstance(layer, nn.ReLU):
                x = x.clamp(min=0)
            elif isinstance(layer, nn.MaxPool2d):
                x = F.max_pool2d(x, 2)
            else:
                x = x.reshape(len(x), -1)
        return x


@pytest.mark.parametrize("norm", NORMS)
def test_functions_have_the_bounds_of_layers(norm):
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(1, 3, 3, 2, 1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )
    model, x = nn.Sequential(*layers), torch.rand(3, 1, 8, 8)
    balls = Balls(x.double(), 0.05, norm)
    with torch.no_grad():
        ends = [intervals(network_bounds(m, (1, 8, 8)), balls)[-1] for m in (model, Written(model))]
    assert torch.allclose(torch.stack(ends[0]), torch.stack(ends[1]), rtol=1e-5, atol=1e-5)


class TwoPixels(nn.Module):
    """A residual network of two inputs, with a concatenation."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, 6), nn.Linear(6, 6), nn.Linear(8, 3)

    def forward(self, x):
        x = x.flatten(1)
        h = F.relu(self.first(x))
        h = h + F.relu(self.second(h))
        return self.last(torch.cat([h, x], 1))


@pytest.mark.parametrize(
    "method", ["ibp", *(pytest.param(m, marks=pytest.mark.slow) for m in ("crown-ibp", "crown")), "auto"]
)
def test_no_certified_point_of_a_residual_network_has_a_misclassified_neighbor(method):
    ticks = torch.linspace(-1, 1, 61).tolist()
    grid = torch.tensor(list(itertools.product(ticks, repeat=2))).view(-1, 1, 1, 2)
    proved_at_all = 0
    for seed, norm, eps in itertools.product(range(3), NORMS, (0.03, 0.1, 0.3)):
        torch.manual_seed(seed)
        model, x = TwoPixels(), torch.rand(8, 1, 1, 2)
        inside = grid[grid.flatten(1).norm(p=norm, dim=1) <= 1 - 1e-6]
        with torch.no_grad():
            y = model(x).argmax(1)
            proved = certified(model, x, y, eps, norm, method)
            for i in proved.nonzero().flatten():
                assert (model((x[i] + eps * inside).clamp(0, 1)).argmax(1) == y[i]).all()
        proved_at_all += int(proved.sum())
    assert proved_at_all > 20


def test_a_residual_network_withstands_attacks_where_it_is_certified():
    torch.manual_seed(0)
    model, x = resnet(8, in_shape=(1, 8, 8), width=4).eval(), torch.rand(12, 1, 8, 8)
    with torch.no_grad():
        y = model(x).argmax(1)
    for eps in (1e-3, 0.01):
        proved = certified(model, x, y, eps, math.inf, "crown")
        found = attacks.pgd(math.inf, eps, 20, stop_at_success=True)(model, x, y)
        with torch.no_grad():
            assert not (proved & (model(found).argmax(1) != y)).any()
        if eps < 0.01:
            assert proved.sum() > 6


def test_values_that_overflow_prove_nothing():
    layers = nn.Linear(1, 1), nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), nn.Linear(1, 2)
    for layer, weight in zip(layers, (1.0, 1e25, 1e25, 0.0), strict=True):
        layer.weight.data.fill_(weight)
    layers[0].bias.data.fill_(-0.9999)
    layers[3].bias.data[:] = torch.tensor([1.0, 0.0])
    model = nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), *layers[1:])
    x = torch.tensor([[[[0.95]]]])
    assert model(x).isfinite().all()
    assert model(x + 0.05).isnan().all(), "0 times infinity, where the formula gives (1, 0)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = model(x).argmax(1)
        assert not certified(model, x, y, 0.1, math.inf, "ibp").any()
        assert not certified(model, x, y, 0.1, math.inf, "crown").any()


class Does(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.layer = function, nn.Linear(64, 10)

    def forward(self, x):
        return self.function(self.layer(x.flatten(1)))


def halves_doubled_in_place(x):
    x[:, :5].mul_(2)
    return x


REFUSED = {
    "softmax": lambda x: x.softmax(1),
    "x * x": lambda x: x * x,
    "1 / x": lambda x: 1 / x,
    "sort": lambda x: x.sort(1)[0],
    "batch norm": lambda x: F.batch_norm(x, None, None, training=True),
    "mean of a batch": lambda x: x - x.mean(0, keepdim=True),
    "other order of a batch": lambda x: x.flip(0),
    "transposed batch": lambda x: x.T.T.flip((0, 1)),
    "another axis": lambda x: x + x.unsqueeze(1).expand(-1, 2, -1).sum(1).unsqueeze(0),
    "a constant of the batch": lambda x: x + torch.arange(len(x))[:, None],
    "branch by values": lambda x: x if x.sum() > 0 else -x,
    "half": lambda x: x.half().float(),
    "random": lambda x: x + torch.rand(10),
    "infinite": lambda x: x / 0.0,
    "part in place": halves_doubled_in_place,
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_bounds_is_refused(kind):
    with pytest.raises(BoundError):
        network_bounds(Does(REFUSED[kind]), (1, 8, 8))


def test_the_graph_is_that_of_the_model_as_it_is():
    model = honest().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    network_bounds(model, (1, 8, 8))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.eval()
