"""What a forward does with its input is seen, whatever it is written with, or the network is refused with the reason."""

import gc
import linecache
import re
from collections import Counter, OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opnorm.norms import lipschitz_bound
from tests.norms.network.test_lipschitz import ORDS, Net, W, w, weights

# ---------------------------------------------------------------- what is followed


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return 2 * g


class Gated(nn.Module):
    """Control flow by a parameter, by a shape, and by a count."""

    def __init__(self):
        super().__init__()
        self.a, self.scale = w(), nn.Parameter(torch.tensor(3.0))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x, *rest, **options):
        self.calls += 1
        if x.shape[1] != 2 or x.dim() != 2 or len(x) < 1:
            raise ValueError(f"a tensor of shape {tuple(x.shape)}")
        if self.scale.item() > 2 and int(self.calls) > 0:
            x = float(self.scale) * x
        return self.a(x)


class Named(OrderedDict):
    """As the outputs of the Transformers library."""


PLAIN_LIST = [w()]

FOLLOWED = {
    "control flow by shapes and parameters": (Gated(), 3),
    "layers in a plain list": (Net(lambda s, x: PLAIN_LIST[0](x)), 1),
    "a layer made in the forward": (Net(lambda s, x: nn.Identity()(F.linear(x, s.a.weight)), a=w()), 1),
    "an autograd function": (Net(lambda s, x: s.a(Twice.apply(x)), a=w()), 2),
    "a dict": (Net(lambda s, x: Named(out=s.a(x), none=None), a=w()), 1),
    "rows": (Net(lambda s, x: torch.stack([s.a(row) for row in x]), a=w()), 1),
    "methods of the forward": (Net(lambda s, x: s.a.forward(x), a=w()), 1),
    "parts of a split": (Net(lambda s, x: sum(s.a(x).tensor_split(2, 1)), a=w()), 2),
    "unpacked": (Net(lambda s, x: (lambda one, two: one - two)(*s.a(x).split(1, 1)), a=w()), 2),
    "a layer of fewer axes": (Net(lambda s, x: s.c(x[None])[0, 0], c=weights(nn.Conv1d(1, 1, 1), [1.0])), None),
    "text of a value": (Net(lambda s, x: (f"{x} {x.sum():.2f}", s.a(x))[1], a=w()), 1),
    "data": (Net(lambda s, x: s.a(x.data), a=w()), 1),
}  # fmt: skip


@pytest.mark.parametrize("p", ORDS)
@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_followed(name, p):
    model, factor = FOLLOWED[name]
    bound = lipschitz_bound(model, torch.zeros(1, 2), p)
    expected = 1 if factor is None else factor * W[p]
    assert bound.value == pytest.approx(expected, rel=5e-3 if p == 2 else 1e-9), bound.reason


def test_inside_of_inference_mode():
    """Where tensors count no versions."""
    model = nn.Sequential(w(), nn.ReLU(inplace=True))
    with torch.inference_mode():
        assert lipschitz_bound(model, torch.zeros(1, 2), 1).value == pytest.approx(6)


def test_any_number_of_inputs():
    model = Net(lambda s, pair: s.a(pair["x"]) + pair["y"][0], a=w())
    example = ({"x": torch.zeros(1, 2), "y": [torch.zeros(1, 2)]},)
    assert lipschitz_bound(model, example, 1).value == pytest.approx(7)

    class Many(nn.Module):
        def forward(self, *xs, **named):
            return sum(xs) + sum(named.values())

    for example in (
        (torch.zeros(1, 2),) * 3,
        {"x": torch.zeros(1, 2), "y": torch.zeros(1, 2), "z": torch.zeros(1, 2)},
    ):
        assert lipschitz_bound(Many(), example, 1).value == pytest.approx(3)


# ---------------------------------------------------------------- what is refused


@torch.jit.script
def scripted(x):
    if bool(x.sum() > -1e6):
        return 0 * x
    return x


@dataclass
class Output:
    logits: torch.Tensor


def swallowed(s, x):
    try:
        return x if x.sum() > -1e6 else 9 * x
    except Exception:  # noqa: BLE001
        return x


def behind(s, x):
    y = s.a(x)
    x.data = 5 * x.data
    return y + x


def by_memory(s, x):
    y = s.a(x)
    torch.from_numpy(np.lib.stride_tricks.as_strided(np.zeros(1), (1,)))
    nn.Parameter(y, requires_grad=False).mul_(7)
    return y


def times_sparse(s, x):
    return torch.stack([(s.a.weight.detach().to_sparse() * row).to_dense().sum(0) for row in x])


def sparse_for_a_while(s, x):
    return 3 * x.to_sparse().to_dense()


REFUSED = {
    "a sparse constant": (Net(times_sparse, a=w()), "sparse"),
    "a sparse value": (Net(sparse_for_a_while), "sparse"),
    "a value in an if": (Net(lambda s, x: x if (x > 0).all() else 9 * x), "control flow by the data .*__bool__"),
    "an if that is caught": (Net(swallowed), "control flow by the data"),
    "a number": (Net(lambda s, x: x * x.sum().item()), "control flow by the data .*item"),
    "numbers": (Net(lambda s, x: torch.tensor(x.tolist()) * 2), "control flow by the data .*tolist"),
    "numpy": (Net(lambda s, x: torch.from_numpy(x.numpy()) * 2), "control flow by the data .*numpy"),
    "an array": (Net(lambda s, x: torch.tensor(np.asarray(x)) * 2), "control flow by the data .*__array__"),
    "an index": (Net(lambda s, x: x[:, : int(x.argmax())]), "control flow by the data .*__int__"),
    "a scripted function": (Net(lambda s, x: scripted(x) + 1), "hidden"),
    "a scripted function's output": (Net(lambda s, x: scripted(x)), "hidden"),
    "a parameter of the value": (Net(lambda s, x: nn.Parameter(x, requires_grad=False) * 2), "hidden"),
    "a parameter written to": (Net(by_memory, a=w()), "hidden"),
    "another output": (Net(lambda s, x: Output(x)), "returns Output; expected tensors"),
    "data set": (Net(behind, a=w()), "sets the attribute 'data'"),
    "an operator of aten": (Net(lambda s, x: torch.ops.aten.relu(x)), "aten.relu.*no rule"),
    "a mapped function": (Net(lambda s, x: torch.vmap(torch.exp)(x)), "hidden|no rule|no Lipschitz|another output"),
    "a gradient": (Net(lambda s, x: torch.func.grad(lambda v: (v**3).sum())(x)), "hidden|no rule|no Lipschitz|cannot be"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    model, reason = REFUSED[name]
    bound = lipschitz_bound(model, torch.zeros(1, 2), 1)
    assert bound.value is None, bound
    assert re.search(reason, bound.reason), bound.reason
    assert "\n" not in bound.reason
    assert torch.zeros(1).tolist() == [0]  # nothing is recorded any more


# ---------------------------------------------------------------- cost


def test_nothing_stays_after_a_call():
    """A call leaves no object and no source text behind."""
    model = nn.Sequential(w(), nn.ReLU())

    def counts():
        gc.collect()
        return Counter(type(o).__name__ for o in gc.get_objects()), len(linecache.cache)

    for _ in range(20):  # caches fill
        lipschitz_bound(model, torch.zeros(1, 2), 1)
    (before, lines), calls = counts(), 100
    for _ in range(calls):
        lipschitz_bound(model, torch.zeros(1, 2), 1)
    after, more_lines = counts()
    assert more_lines == lines
    assert not {kind: after[kind] - before[kind] for kind in after if after[kind] - before[kind] >= calls}


@pytest.mark.parametrize("name", ["relu", "silu", "sort", "flatten"])
def test_an_own_operator_is_not_taken_for_the_function_of_its_name(name):
    """5 x, under the name of a function that has a constant of 1 or 1.1."""
    library = torch.library.Library("opnorm_tests", "FRAGMENT")
    library.define(f"{name}(Tensor x) -> Tensor")
    library.impl(name, lambda x: 5 * x, "CompositeImplicitAutograd")
    operator = getattr(torch.ops.opnorm_tests, name)
    bound = lipschitz_bound(Net(lambda s, x: operator(x)), torch.zeros(1, 2), 1)
    assert bound.value is None
    assert f"opnorm_tests.{name}" in bound.reason
