"""Values that are written into parts of other ones: their bounds are those of the Jacobian, or close above."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opnorm.certificates.network_bounds import network_bounds
from opnorm.errors import BoundError
from opnorm.jacobian import local_lipschitz
from opnorm.norms import lipschitz_bound

ORDS = (1, 2, math.inf)


def zeros(x, *shape):
    return torch.zeros(len(x), *shape, dtype=x.dtype)


def put(y, index, value):
    y[(slice(None), *index)] = value
    return y


def into_slices(x):
    y = torch.empty(len(x), 8, dtype=x.dtype)
    y[:, :4] = x
    y[:, 4:] = 2 * x
    return y


def by_views(x):
    y = x.new_zeros(len(x), 6)
    y[:, 1:5].copy_(x)
    y[:, 1:5] += x
    y.narrow(1, 0, 1).add_(1)
    return y


def swapped(x):
    y = torch.zeros_like(x)
    y[:, :2] = x[:, 2:]
    y[:, 2:] = -x[:, :2]
    return y


def one_by_one(x):
    y = torch.zeros_like(x)
    for i in range(4):
        y[:, i] = x[:, 3 - i]
    return y


def only_part(x):
    y = x.clone()
    y[:, :1].mul_(3)
    return y


def scaled_between(x):
    y = torch.zeros_like(x)
    y[:, :2] = x[:, 2:]
    y.mul_(3)
    y[:, 2:] = 3 * x[:, :2]
    return y


def view_after(x):
    y = zeros(x, 4)
    part = y[:, :2]
    y[:, 1:3] = x[:, :2]
    return part


MASK = torch.tensor([True, False, True, True, True])
PLACES = torch.tensor([5, 0, 3, 1])
EXACT = {
    "slices": into_slices,
    "swapped": swapped,
    "one by one": one_by_one,
    "a view made before": view_after,
    "places": lambda x: put(zeros(x, 6), (PLACES,), x),
    "mask": lambda x: put(zeros(x, 5), (MASK,), x),
    "copies": lambda x: put(zeros(x, 3, 4), (slice(0, 2),), x[:, None]),
    "a constant": lambda x: put(x.clone(), (0,), 2.0),
    "overwritten": lambda x: put(put(zeros(x, 4), (slice(0, 4),), 9 * x), (slice(None),), x),
    "slice_scatter": lambda x: torch.slice_scatter(zeros(x, 6), x, 1, 0, 4),
    "select_scatter": lambda x: zeros(x, 4, 2).select_scatter(x, 2, 0),
    "index_put": lambda x: zeros(x, 6).index_put((torch.arange(len(x))[:, None], PLACES), x),
    "index_copy": lambda x: zeros(x, 6).index_copy_(1, PLACES, x),
    "index_add": lambda x: zeros(x, 6).index_add(1, PLACES // 2, x, alpha=-2),
    "scatter": lambda x: zeros(x, 6).scatter(1, PLACES.expand_as(x), x),
    "scatter a number": lambda x: x.scatter(1, PLACES[1:2].expand(len(x), 1), value=3.0),
    "pad by hand": lambda x: F.relu(put(zeros(x, 6), (slice(1, 5),), x)),
}
ABOVE = {
    "partly": only_part,
    "scaled between": scaled_between,
    "views": by_views,
    "two pieces of one": lambda x: put(put(zeros(x, 8), (slice(0, 4),), x), (slice(2, 6),), 2 * x),
    "accumulated": lambda x: zeros(x, 3).index_put(
        (torch.arange(len(x))[:, None], PLACES // 2), x, accumulate=True
    ),
}


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def norms(model):
    x = torch.full((1, 4), 0.3, dtype=torch.float64)
    J = torch.autograd.functional.jacobian(lambda v: model(v).flatten(), x).flatten(1)
    return [float(torch.linalg.matrix_norm(J, p)) for p in ORDS]


@pytest.mark.parametrize("name", [*EXACT, *ABOVE])
def test_bounds_are_those_of_the_jacobian(name):
    model = Net({**EXACT, **ABOVE}[name])
    for p, norm in zip(ORDS, norms(model), strict=True):
        bound = lipschitz_bound(model, torch.zeros(1, 4, dtype=torch.float64), p)
        assert norm * (1 - 1e-9) <= bound.value <= norm * (1 + 1e-9 if name in EXACT else 4), (p, bound)


class Keeps(nn.Module):
    """Writes into what stays from one call to the next."""

    def __init__(self, view=False):
        super().__init__()
        self.kept, self.view = torch.zeros(1, 6), view

    def forward(self, x):
        target = self.kept[:, :4] if self.view else self.kept
        target[:, :4] = x
        return self.kept[:, 1:]


@pytest.mark.parametrize("view", [True, False])
def test_what_stays_between_calls_is_refused(view):
    bound = lipschitz_bound(Keeps(view), torch.zeros(1, 4), 2)
    assert bound.value is None
    assert "writes into" in bound.reason or "hidden" in bound.reason


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: put(zeros(x, 4), (x.argmax(1),), x[:, 0]), "jumps|places"),
        (lambda x: put(torch.zeros(1, 4, dtype=torch.long), (slice(None),), x), "whole numbers|writes into"),
        (lambda x: x.scatter_reduce(1, PLACES[None] % 4, x, "prod"), "no rule"),
        (lambda x: put(x.clone(), (slice(1, 4),), x.clone().relu_()[:, :3]).bernoulli(), "rule|random"),
    ],
)
def test_refused(function, reason):
    bound = lipschitz_bound(Net(function), torch.zeros(1, 4), 2)
    assert bound.value is None
    assert any(part in bound.reason for part in reason.split("|")), bound.reason


def test_constants_are_as_before_in_every_run():
    """A constant that the forward makes is written to in each run of the graph; the last run sees it as the first does."""

    def net(x):
        y = torch.ones(len(x), 4, dtype=x.dtype)
        y.add_(x)
        return y * torch.sigmoid(y)

    values = [lipschitz_bound(Net(net), torch.zeros(1, 4, dtype=torch.float64), p).value for p in (1, 2, 1)]
    assert values == pytest.approx([1.09983932] * 3, rel=1e-6)


def test_certificates_refuse_what_they_do_not_follow():
    with pytest.raises(BoundError, match=r"writes into|no bounds"):
        network_bounds(Net(into_slices), (4,))


def test_local_bounds_follow_placed_values_and_refuse_writes():
    x = torch.rand(1, 4, dtype=torch.float64)
    for name, known in (
        ("slice_scatter", True),
        ("index_copy", True),
        ("slices", False),
        ("a constant", False),
    ):
        assert ("not known" not in str(local_lipschitz(Net(EXACT[name]), x, 0.1))) == known, name
