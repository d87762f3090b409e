"""Layers as other packages write them, with forwards of their own: what they are known to do is found in those."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from opnorm import local_lipschitz
from opnorm.certificates import certified
from opnorm.norms import lipschitz_bound, measure, operator_norm
from opnorm.regularizers import norm_decay
from opnorm.training import weight_metrics
from tests.norms.network.test_lipschitz import steepest


class ChannelNorm(nn.LayerNorm):
    """A layer norm of the channels of an image."""

    def forward(self, x):
        return F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        ).permute(0, 3, 1, 2)


class FastLayerNorm(nn.LayerNorm):
    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class NormAct(nn.BatchNorm2d):
    """A batch norm and its activation."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        x = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )
        return self.act(x)


class Gelu(nn.Module):
    def forward(self, x):
        return F.gelu(x)


class DropWholePath(nn.Module):
    def forward(self, x):
        if not self.training:
            return x
        return x * x.new_empty(len(x)).bernoulli_(0.5)


class TransposedLinear(nn.Module):
    """A linear layer with the weight (inputs, outputs), by ``addmm`` on a view."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.ones(outputs))

    def forward(self, x):
        y = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return y.view(*x.shape[:-1], len(self.bias))


class LlamaNorm(nn.Module):
    """As the Transformers library writes RMSNorm."""

    def __init__(self, n):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.linspace(-3, 1, n)), 0.1

    def forward(self, x):
        dtype = x.dtype
        x = x.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x.to(dtype)


class ChannelsFirst(nn.Module):
    """As ConvNeXt writes its layer norm."""

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        return (x - mean) / torch.sqrt(var + 0.01) * 2


class CheckedLinear(nn.Linear):
    def forward(self, x):
        if x.shape[-1] != self.in_features or x.dim() < 2:
            raise ValueError(f"a tensor of shape {tuple(x.shape)}")
        return super().forward(x)


class CheckedNorm(nn.BatchNorm2d):
    def forward(self, x):
        if len(x.shape) != 4:
            raise ValueError(f"{x.dim()} axes")
        return F.relu(super().forward(x))


class CastLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), self.bias)


NONLINEAR = [
    (ChannelNorm(3, eps=0.1), (3, 2, 2), 2),
    (FastLayerNorm(4, eps=0.04), (4,), 2),
    (NormAct(2), (2, 3, 3), 1),
    (Gelu(), (5,), math.inf),
    (LlamaNorm(4), (3, 4), 2),
    (ChannelsFirst(), (3, 2, 2), 2),
    (CheckedNorm(2), (2, 3, 3), 1),
    (nn.LayerNorm(4, eps=0.1), (3, 4), 2),
]


@pytest.mark.parametrize(("layer", "shape", "ord"), NONLINEAR)
def test_constants_of_layers_that_are_not_linear(layer, shape, ord):
    row = measure(nn.Sequential(nn.Identity(), layer), torch.zeros(1, *shape), ords=(ord,)).rows[1]
    assert not row.norms
    assert "Lipschitz constant" in row.note
    slope = steepest(layer, shape, ord, tries=50)
    assert slope <= row.lipschitz[ord] * (1 + 1e-9)
    assert lipschitz_bound(layer, torch.zeros(1, *shape), ord).value == pytest.approx(row.lipschitz[ord])


@pytest.mark.parametrize("layer", [TransposedLinear(4, 3), CastLinear(4, 3), CheckedLinear(4, 3)])
@pytest.mark.parametrize("shape", [(4,), (2, 4)])
def test_affine_layers(layer, shape):
    basis = torch.eye(math.prod(shape)).view(-1, *shape)
    with torch.no_grad():
        M = (layer(basis) - layer(0 * basis[:1])).flatten(1).T.double()
    for ord in (1, 2, math.inf):
        norm = operator_norm(layer, ord, shape)
        truth = float(torch.linalg.matrix_norm(M, ord))
        assert norm.lower * (1 - 1e-5) <= truth <= norm.upper * (1 + 1e-5)
        assert norm.upper <= norm.lower * 1.01
        assert lipschitz_bound(layer, torch.zeros(1, *shape), ord).value == pytest.approx(truth, rel=1e-2)


def test_an_identity_in_eval_mode_has_norm_1():
    for ord in (1, 2, math.inf):
        assert float(operator_norm(DropWholePath(), ord, (3,)).upper) == pytest.approx(1, rel=1e-9)


def test_layers_alone_have_the_bound_that_their_row_has():
    for layer, shape in (
        (nn.BatchNorm2d(2), (2, 3, 3)),
        (nn.Softmax2d(), (2, 3, 3)),
        (nn.RMSNorm(3, eps=0.1), (3,)),
        (nn.InstanceNorm2d(2), (2, 3, 3)),
        (nn.Unfold(2), (1, 4, 4)),
    ):
        row = measure(layer, torch.zeros(1, *shape), ords=(2,)).rows[0]
        known = row.lipschitz.get(2) or float(row.norms[2].upper)
        assert lipschitz_bound(layer, torch.zeros(1, *shape), 2).value == pytest.approx(known)


def test_parameters_of_layers_inside_layers_are_counted_once():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.inner = nn.Parameter(torch.zeros(5)), nn.Linear(3, 3)

        def forward(self, x):
            return self.inner(x) + self.table.sum()

    model = nn.Sequential(Block(), nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    table = measure(model, torch.zeros(1, 3), ords=(1,))
    assert sum(row.parameters for row in table.rows) == sum(p.numel() for p in model.parameters())


def test_what_is_written_out_is_no_normalization_after_a_write():
    class Written(nn.Module):
        def forward(self, x):
            x = x * 1.0
            scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.1)
            if self.part:
                x[:].mul_(9)
            return x * scale

    model = Written()
    for model.part in (False, True):
        bound = lipschitz_bound(model, torch.zeros(1, 4), 2)
        assert (bound.value is None) == model.part
    assert "no Lipschitz constant" in bound.reason


def test_torchs_functional_batch_norm_is_not_taken_for_that_of_another_order_of_arguments():
    """torch.batch_norm takes the weight before the statistics."""
    weight, bias, mean, var = (torch.full((2,), v) for v in (5.0, 4.0, 0.0, 1.0))

    class Norm(nn.Module):
        def forward(self, x):
            return torch.batch_norm(x, weight, bias, mean, var, False, 0.1, 0.0, True)

    bound = lipschitz_bound(Norm(), torch.zeros(1, 2), 1)
    assert bound.value is None
    assert "batch_norm" in bound.reason


class DoubledKernel(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 2 * weight, bias)


class LongerOutput(nn.ConvTranspose1d):
    def _output_padding(self, *args, **kwargs):
        return [1]


class TripledCall(nn.Linear):
    def __call__(self, x):
        return 3 * super().__call__(x)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(DoubledKernel(1, 2, 3, padding=1), (1, 5, 5)), (LongerOutput(1, 2, 3, stride=2), (1, 4)),
     (TripledCall(3, 2), (3,))],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_a_layer_whose_forward_calls_methods_of_its_own_has_not_its_parents_norm(layer, shape):
    layer = layer.double()
    size = math.prod(shape)
    with torch.no_grad():
        at_zero = layer(torch.zeros(1, *shape, dtype=torch.float64))
        matrix = (layer(torch.eye(size, dtype=torch.float64).reshape(size, *shape)) - at_zero).flatten(1).T
    for ord in (1, 2, math.inf):
        truth = float(torch.linalg.matrix_norm(matrix, ord))
        assert float(operator_norm(layer, ord, shape).upper) == pytest.approx(truth, rel=1e-2)
        bound = lipschitz_bound(nn.Sequential(layer, nn.ReLU()), torch.zeros(1, *shape), ord).value
        assert truth <= bound < 1.01 * truth


@pytest.mark.parametrize("kind", ["hook", "pre-hook", "pre-hook with names"])
def test_what_a_hook_changes_is_in_no_norm_without_a_word(kind):
    layer = nn.Linear(2, 2)
    if kind == "hook":
        layer.register_forward_hook(lambda m, args, output: 9 * output)
    elif kind == "pre-hook":
        layer.register_forward_pre_hook(lambda m, args: (9 * args[0],))
    else:
        layer.register_forward_pre_hook(lambda m, args, names: ((9 * args[0],), names), with_kwargs=True)
    for model in (layer, nn.Sequential(layer)):
        assert "a hook may change" in lipschitz_bound(model, torch.zeros(1, 2), 1).reason
        assert measure(model, torch.zeros(1, 2)).rows[0].tags == (
            "has a forward hook, which is not in the norm",
        )
    with pytest.warns(UserWarning, match="a forward hook, which is not in the norm"):
        operator_norm(layer, 1)


@pytest.mark.parametrize("kind", ["hook", "pre-hook"])
def test_hooks_of_all_modules_are_seen_as_those_of_one(kind):
    layer, x = nn.Linear(2, 2), torch.zeros(1, 2)
    deep = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    truth = float(lipschitz_bound(deep, x, 1).value)

    def proved():
        point = torch.full((1, 2), 0.5)
        return bool(certified(deep, point, deep(point).argmax(1), eps=1e-6))

    if kind == "hook":
        handle = register_module_forward_hook(lambda m, args, output: 9 * output)
    else:
        handle = register_module_forward_pre_hook(lambda m, args: (9 * args[0],))
    try:
        for model in (layer, nn.Sequential(layer), deep):
            assert "hook" in lipschitz_bound(model, x, 1).reason
            assert local_lipschitz(model, x, 0.1).rows[-1].upper is None
            assert all("hook" in row.tags[-1] for row in measure(model, x).rows)
        with pytest.warns(UserWarning, match="a forward hook, which is not in the norm"):
            operator_norm(layer, 1)
        assert not proved()
    finally:
        handle.remove()
    assert proved()
    assert lipschitz_bound(deep, x, 1).value == truth
    assert not measure(deep, x).rows[0].tags


class WritesToItsInput(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.layer = how, nn.Linear(4, 3)

    def forward(self, x):
        with torch.no_grad():
            self.how(x)
        return self.layer(x.flatten(1))


@pytest.mark.parametrize(
    "how",
    [lambda x: x.mul_(0.5), lambda x: x.data.add_(1), lambda x: x[:, 0].zero_(), lambda x: x.view(-1).clamp_(0.4, 0.6)],
    ids=["mul", "data", "part", "view"],
)  # fmt: skip
def test_a_model_that_writes_to_its_input_leaves_the_example_as_it_is(how):
    model, x = WritesToItsInput(how), torch.rand(2, 1, 2, 2)
    before = x.clone()
    for example in (x, (x,), {"x": x}):
        measure(model, example)
        lipschitz_bound(model, example)
        assert torch.equal(x, before)
    norm_decay(p=1)(model, x).edit_grads()
    weight_metrics(model, x)
    assert torch.equal(x, before)
