"""Bounds along the graph that are not known, and why."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opnorm.norms import lipschitz_bound
from opnorm.norms.network.layer_rules import RULES
from tests.norms.network.small_networks import Net, w, weights


class Control(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else 9 * x


class Writes(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.zeros(1, 2))

    def forward(self, x):
        self.kept.copy_(x)
        return 2 * x + self.kept


class Jumps(nn.Module):
    def forward(self, x):
        return x.round()


def set_item(s, x):
    y = s.a(x)
    y[:, 0] = 1.0
    return y


def written_split(s, x):
    first, second = s.a(x).split(1, 1)
    first.mul_(10)
    return torch.cat([first, second], 1)


def written_view(s, x):
    y = s.a(x)
    part = y.unbind(1)[0]
    torch.add(part, part, out=part)
    return y


UNKNOWN = {
    "softmax of the batch after a permutation": (Net(lambda s, x: x.permute(1, 0).softmax(1)), "several points of a batch"),
    "log-softmax of the batch": (Net(lambda s, x: 9 * x.t().log_softmax(-1).t()), "several points of a batch"),
    "softmax module of the batch": (Net(lambda s, x: s.m(x), m=nn.Softmax(0)), "several points of a batch"),
    "one logit of each point": (Net(lambda s, x: F.log_softmax(x[:, 0], -1)), "several points of a batch"),
    "one point for all": (Net(lambda s, x: x.narrow(0, 0, 1).expand_as(x)), "several points of a batch"),
    "sum of the batch": (Net(lambda s, x: x.sum(0)), "several points of a batch"),
    "the last point twice": (Net(lambda s, x: x[torch.tensor([-1, -1])]), "several points of a batch"),
    "mean of the batch": (Net(lambda s, x: x - x.mean(0, keepdim=True)), "several points of a batch"),
    "windows of the batch": (Net(lambda s, x: x.unfold(0, min(2, len(x)), 1)), "several points of a batch"),
    "windows of four points": (Net(lambda s, x: x.unfold(0, min(4, len(x)), 1)), "several points of a batch"),
    "written into a view by out": (Net(written_view, a=w()), "writes"),
    "control flow": (Control(), "control flow"),
    "writes a buffer": (Writes(), "writes into kept|not known"),
    "product": (Net(lambda s, x: x * x), "depend on the input"),
    "gate by another entry": (Net(lambda s, x: x * torch.sigmoid(x.flip(1))), "depend on the input"),
    "square of what is positive": (Net(lambda s, x: F.relu(x) ** 2), "no Lipschitz constant"),
    "too many constants": (Net(lambda s, x: x.repeat(1, 20) * (x.repeat(1, 20) * torch.arange(40.0)).tanh()), "depend"),
    "as a list": (Net(lambda s, x: torch.stack([x, x]).prod(0)), "no rule"),
    "quotient": (Net(lambda s, x: 1 / x), "division by what depends"),
    "rounding division": (Net(lambda s, x: torch.div(x, 2, rounding_mode="floor")), "rounding"),
    "division by zero": (Net(lambda s, x: x / torch.zeros(2)), "not finite"),
    "square": (Net(lambda s, x: x**2), "no Lipschitz constant"),
    "no rule": (Net(lambda s, x: torch.special.i0(x)), "i0.*no rule"),
    "normalize": (Net(lambda s, x: F.normalize(x)), "no Lipschitz constant"),
    "jump": (Jumps(), "jumps"),
    "to whole numbers": (Net(lambda s, x: x.to(torch.int32).float()), "whole numbers"),
    "picks by value": (Net(lambda s, x: torch.where(x > 0, x, 1 - x)), "by the values|jumps"),
    "index by value": (Net(lambda s, x: x[:, x.argmax(1)]), "jumps"),
    "place of the maximum": (Net(lambda s, x: x.max(1)[1].float()), "place of a maximum"),
    "random": (Net(lambda s, x: x + torch.rand(2)), "random"),
    "random like": (Net(lambda s, x: x * torch.rand_like(x)), "random"),
    "dropout always": (Net(lambda s, x: F.dropout(x, 0.5, training=True)), "random|drops"),
    "attention": (nn.TransformerEncoderLayer(2, 1, 4), "no Lipschitz constant on all inputs.*local_lipschitz"),
    "rnn": (Net(lambda s, x: s.r(x)[0], r=nn.GRU(2, 2)), "gru.*no rule"),
    "another forward": (type("Twice", (nn.Tanh,), {"forward": lambda s, x: torch.special.i1(x)})(), "no rule"),
    "nan": (nn.Sequential(nn.Linear(2, 2), weights(nn.Linear(2, 2), [[math.nan, 0], [0, 0]])), "1 .*NaN"),
    "meta": (nn.Linear(2, 2, device="meta"), "no values"),
    "lazy": (nn.LazyLinear(2), "not there yet"),
    "any number of arguments": (Net(lambda s, x: x), None),
    "overflow": (nn.Sequential(*(weights(nn.Linear(1, 1), [[1e38]]) for _ in range(9))), "too large"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_not_known_with_the_reason(name):
    model, reason = UNKNOWN[name]
    x = torch.zeros(1, 1) if name == "overflow" else torch.zeros(1, 2)
    bound = lipschitz_bound(model, x, 1)
    if reason is None:
        assert bound.value == pytest.approx(1)
        return
    assert bound.value is None, bound
    assert re.search(reason, bound.reason), bound.reason
    assert str(bound).startswith("not known: ")


def test_written_parts_count_beside_those_before():
    """Of one layer, in ℓ1: its bound and that of what was written, for the entries that are left and those that are new."""
    for function, value in ((set_item, 6), (written_split, 6 + 60)):
        assert lipschitz_bound(Net(function, a=w()), torch.zeros(1, 2), 1).value == pytest.approx(value)


def test_hooks_make_a_layer_unknown():
    model = nn.Sequential(w(), nn.ReLU())
    handle = model[1].register_forward_hook(lambda m, i, o: 5 * o)
    assert "hook" in lipschitz_bound(model, torch.zeros(1, 2), 1).reason
    handle.remove()
    assert lipschitz_bound(model, torch.zeros(1, 2), 1).value == pytest.approx(6)


def test_a_value_that_nothing_is_made_of_may_be_unknown():
    model = Net(lambda s, x: (x * x, s.a(x))[1], a=w())
    assert lipschitz_bound(model, torch.zeros(1, 2), 1).value == pytest.approx(6)


def test_the_error_of_a_rule_is_no_bound_that_is_not_known(monkeypatch):
    def slip(call):
        return call.bounds[0] / 0

    monkeypatch.setitem(RULES, torch.sin, slip)
    with pytest.raises(ZeroDivisionError):
        lipschitz_bound(Net(lambda s, x: torch.sin(x)), torch.zeros(1, 2), 1)


def test_an_unbatched_module_mixes_the_points():
    for model in (nn.Softmax(0), nn.LogSoftmax(0), Net(lambda s, x: x.softmax(0))):
        bound = lipschitz_bound(model, torch.zeros(5), 2)
        assert bound.value is None
        assert "points of a batch" in bound.reason


class Remembers(nn.Module):
    """Assigns a buffer, an attribute and a count in its forward."""

    def __init__(self):
        super().__init__()
        self.a, self.last = w(), None
        self.register_buffer("kept", torch.zeros(1, 2))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.kept = 2 * self.a(x)
        self.last = self.kept + 1
        self.count += 1
        return self.kept + x


def test_what_a_forward_assigns_is_taken_back():
    model = Remembers()
    kept = model.kept
    assert lipschitz_bound(model, torch.zeros(1, 2), 1).value == pytest.approx(13)
    assert model.kept is kept
    assert (model.last, float(model.count), float(kept.sum())) == (None, 0, 0)
    assert not [name for name in vars(model) if "constant" in name]


def test_a_shortcut_that_was_changed_in_place_counts_as_changed():
    model = Net(lambda s, x: s.act(s.a(x)) + x, a=w(), act=nn.LeakyReLU(3.0, inplace=True))
    assert lipschitz_bound(model, torch.zeros(1, 2), 1).value == pytest.approx(19)

    def alias(s, x):
        y = s.a(x)
        z = y  # the same tensor
        return s.act(y) + z

    model = Net(alias, a=w(), act=nn.LeakyReLU(3.0, inplace=True))
    assert lipschitz_bound(model, torch.zeros(1, 2), 1).value == pytest.approx(36)
    model = Net(lambda s, x: (lambda y: F.relu_(y[:, 0]) + y[:, 1])(s.a(x)), a=w())
    assert lipschitz_bound(model, torch.zeros(1, 2), 1).value == pytest.approx(18)  # 6 + (6 + 6)
