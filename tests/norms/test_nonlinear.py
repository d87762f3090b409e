"""Lipschitz constants: no pair of inputs exceeds them, and some pair comes close where they are called the best possible."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opnorm.errors import NormError
from opnorm.norms import lipschitz, lipschitz_bound, measure, operator_norm
from opnorm.norms.nonlinear import copies, copying_norm, is_copying, is_nonlinear, window_count

ORDS = (1, 2, math.inf)


def jacobian(layer, x):
    """(outputs, inputs) in float64."""
    J = torch.autograd.functional.jacobian(lambda v: layer(v[None])[0], x)
    return J.reshape(-1, x.numel())


def norm(M, p):
    return float(torch.linalg.matrix_norm(M, {1: 1, 2: 2, math.inf: math.inf}[p]))


ELEMENTWISE = [
    nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.LeakyReLU(-3.0), nn.PReLU(4, 1.7), nn.RReLU(0.1, 5.0), nn.ELU(),
    nn.ELU(2.5),
    nn.CELU(0.3), nn.SELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Tanh(), nn.Sigmoid(), nn.LogSigmoid(),
    nn.Softplus(), nn.Softplus(3.0), nn.Softsign(), nn.Softshrink(), nn.Tanhshrink(), nn.Hardtanh(-2, 3), nn.Hardsigmoid(),
    nn.Hardswish(), nn.Threshold(0.5, 0.5), nn.Hardshrink(0.0),
]  # fmt: skip


@pytest.mark.parametrize("layer", ELEMENTWISE, ids=str)
def test_elementwise_constants_are_the_largest_slope(layer):
    layer = layer.double().eval()
    x = torch.linspace(-30, 30, 120_001, dtype=torch.float64).repeat(4, 1).T.clone().requires_grad_()
    (slope,) = torch.autograd.grad(layer(x).sum(), x)
    largest = float(slope.abs().max())
    for p in ORDS:
        constant = lipschitz(layer, p, (4,))
        assert largest <= constant * (1 + 1e-7)  # torch differentiates hardsigmoid with a float32 1/6
        assert largest >= constant * (1 - 1e-3)


@pytest.mark.parametrize("layer", ELEMENTWISE, ids=str)
@given(seed=st.integers(0, 10**6))
def test_no_secant_is_steeper(layer, seed):
    layer = layer.double().eval()
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 50, 4, generator=generator, dtype=torch.float64) * 3
    assert (
        (layer(x) - layer(y)).abs() <= lipschitz(layer, 2, (4,)) * (x - y).abs() * (1 + 1e-12) + 1e-14
    ).all()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Softmax(-1), (5,)),
        (nn.Softmin(1), (5,)),
        (nn.Softmax2d(), (4, 2, 1)),
        (nn.LogSoftmax(-1), (5,)),
        (nn.LogSoftmax(1), (2,)),
        (nn.LogSoftmax(1), (3, 2)),
        (nn.LogSoftmax(-1), (4, 1)),
        (nn.MaxPool1d(3, 1), (2, 6)),
        (nn.MaxPool2d(2), (1, 4, 4)),
        (nn.MaxPool2d(3, 2, 1), (1, 5, 4)),
        (nn.MaxPool2d(3, 2, ceil_mode=True), (1, 4, 4)),
        (nn.MaxPool2d((2, 3), (1, 2), dilation=(2, 1)), (1, 5, 5)),
        (nn.MaxPool3d(2, 1), (1, 3, 2, 3)),
        (nn.AdaptiveMaxPool1d(3), (1, 7)),
        (nn.AdaptiveMaxPool2d((2, None)), (1, 5, 3)),
        (nn.LPPool1d(2, 2), (2, 6)),
        (nn.LPPool1d(2, 3, 2, ceil_mode=True), (1, 6)),
        (nn.LPPool1d(4, 3, 1), (1, 5)),
        (nn.LPPool1d(math.inf, 3, 1), (1, 5)),
        (nn.LPPool1d(-math.inf, 2, 2), (1, 5)),
        (nn.LPPool2d(2, 3, 1), (1, 4, 3)),
        (nn.LPPool2d(6, (2, 3), (1, 2), ceil_mode=True), (1, 3, 4)),
        (nn.LPPool3d(2, 2, 1, True), (1, 3, 2, 3)),
        (nn.LayerNorm(4, eps=0.1), (4,)),
        (nn.LayerNorm((2, 3), eps=0.01), (2, 3)),
        (nn.LayerNorm((2, 3), eps=0.01, elementwise_affine=False), (2, 3)),
        (nn.GroupNorm(2, 4, eps=0.1), (4, 3)),
        (nn.RMSNorm(4, eps=0.1), (4,)),
        (nn.InstanceNorm1d(2, eps=0.1, affine=True), (2, 4)),
        (nn.InstanceNorm2d(2, affine=True, track_running_stats=True), (2, 2, 2)),
    ],
    ids=str,
)
def test_constants_bound_jacobians_and_are_approached(layer, shape):
    torch.manual_seed(0)
    layer = layer.double().eval()
    for p in layer.parameters():
        nn.init.normal_(p)
    if getattr(layer, "running_var", None) is not None:
        layer.running_var.uniform_(0.5, 2)
    points = [
        torch.randn(shape, dtype=torch.float64) * scale for scale in (1e-4, 0.1, 1, 8) for _ in range(3)
    ]
    n = math.prod(shape)
    peaks = (
        torch.eye(n, dtype=torch.float64).view(n, *shape) * 40
    )  # one-hot softmax, one position above all others
    points += [*peaks, *(a + b for a in peaks[:4] for b in peaks[:4])]
    points += [-x for x in points] + [torch.ones(shape, dtype=torch.float64)]
    if isinstance(
        layer, nn.LPPool1d | nn.LPPool2d | nn.LPPool3d
    ):  # of one entry that is not 0, without 0 / 0
        points += [x + 1e-6 * torch.randn(shape, dtype=torch.float64) for x in peaks]
    jacobians = [jacobian(layer, x) for x in points]
    for p in ORDS:
        constant = lipschitz(layer, p, shape)
        found = max(norm(J, p) for J in jacobians)
        assert found <= constant * (1 + 1e-9)
        # max |γ| need not meet the mean-free inputs, or another γ in its column
        affine = getattr(layer, "weight", None) is not None and not isinstance(layer, nn.PReLU)
        assert found >= constant * (0.5 if affine else 0.99)


@given(
    n=st.integers(1, 9), k=st.integers(1, 4), s=st.integers(1, 4), d=st.integers(1, 3), ceil=st.booleans(), data=st.data()
)  # fmt: skip
def test_window_counts_are_torchs(n, k, s, d, ceil, data):
    p = data.draw(st.integers(0, k // 2))
    pool = nn.MaxPool1d(k, s, p, d, ceil_mode=ceil)
    try:
        pool(torch.zeros(1, 1, n))
    except RuntimeError:
        return
    seen = 0
    for i in range(n):  # the windows that notice position i
        x = torch.zeros(1, 1, n)
        x[..., i] = 1
        seen = max(seen, int(pool(x).sum()))
    assert window_count(n, k, s, p, d, ceil) == seen


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.GLU(), "multiplies"),
        (nn.Hardshrink(0.5), "jumps"),
        (nn.Threshold(0.5, 1.0), "jumps"),
        (nn.Softplus(threshold=1.0), "jump"),
        (nn.CELU(-1.0), "without bound"),
        (nn.LogSoftmax(), "mixes the points"),  # as torch chooses the axis of a tensor with three
        (nn.LogSoftmax(-3), "mixes the points"),
        (nn.Softmax(0), "mixes the points"),
        (nn.Softmin(-3), "mixes the points"),
        (nn.Softmax2d(), "mixes the points"),  # of a point with channels and one more axis
        (nn.MaxPool1d(2, return_indices=True), "indices"),
        (nn.LPPool1d(3, 2), "expected an even number"),
        (nn.LPPool1d(1.5, 2), "expected an even number"),
        (nn.LPPool1d(-2, 2), "expected an even number"),
        (nn.LPPool1d(1, 2), "is linear"),
        (nn.LayerNorm(4, eps=0.0), "no Lipschitz constant"),
        (nn.Linear(2, 2), "no Lipschitz constant of Linear"),
    ],
)
def test_no_constant_where_there_is_none(layer, message):
    with pytest.raises(NormError, match=message):
        lipschitz(layer, 2, (4, 4))


def test_a_subclass_with_another_forward_has_no_entry():
    class Doubled(nn.ReLU):
        def forward(self, x):
            return 2 * super().forward(x)

    assert is_nonlinear(nn.ReLU())
    assert not is_nonlinear(Doubled())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Identity(), (3,)),
        (nn.Flatten(), (2, 3)),
        (nn.Unflatten(1, (2, 2)), (4, 2)),
        (nn.Dropout(0.9), (4,)),
        (nn.PixelShuffle(2), (4, 2, 2)),
        (nn.ZeroPad2d(1), (1, 2, 2)),
        (nn.ConstantPad1d(2, 7.0), (1, 3)),
        (nn.ReflectionPad2d(2), (1, 3, 4)),
        (nn.ReplicationPad1d((3, 1)), (1, 2)),
        (nn.CircularPad2d(2), (1, 2, 3)),
        (nn.Upsample(scale_factor=3), (1, 2, 2)),
        (nn.Upsample(size=(5, 4)), (1, 3, 2)),
        (nn.UpsamplingNearest2d(scale_factor=2), (2, 2, 2)),
    ],
    ids=str,
)
def test_layers_that_copy_have_exact_norms(layer, shape):
    layer = layer.eval()
    assert is_copying(layer)
    M = jacobian(layer, torch.randn(shape, dtype=torch.float64))
    for p in ORDS:
        assert copying_norm(layer, p, shape) == pytest.approx(norm(M, p), rel=1e-12)


@pytest.mark.parametrize(
    "layer", [nn.Upsample(scale_factor=2, mode="bilinear"), nn.ZeroPad2d(-1), nn.ReLU(), nn.AvgPool2d(2)]
)
def test_layers_that_do_more_than_copy(layer):
    assert not is_copying(layer)


def test_constants_do_not_count_as_copies():
    assert copies(lambda x: torch.zeros(3), (2,)) == 0
    assert copies(lambda x: torch.cat([x, x], 1), (2,)) == 2


@pytest.mark.parametrize("p", ORDS)
def test_lp_pooling_in_a_table_and_along_a_graph(p):
    class Net(nn.Module):
        def forward(self, x):
            return F.lp_pool2d(3 * x, 2, kernel_size=2, stride=1)

    expected = 3 * {1: 4, 2: 2, math.inf: 2}[p]
    assert lipschitz_bound(Net(), torch.zeros(1, 1, 4, 4), p).value == pytest.approx(expected)
    (row,) = measure(nn.LPPool2d(2, 2, 1), torch.zeros(1, 1, 4, 4), ords=(p,)).rows
    assert row.lipschitz == {p: pytest.approx(expected / 3)}
    assert not row.norms


@pytest.mark.parametrize("p", ORDS)
def test_lp_pooling_with_norm_1_is_a_sum(p):
    pool = nn.LPPool2d(1, 2)
    assert float(operator_norm(pool, p, (1, 4, 4)).upper) == pytest.approx({1: 1, 2: 2, math.inf: 4}[p])
    bound = lipschitz_bound(nn.Sequential(pool, nn.ReLU()), torch.zeros(1, 1, 4, 4), p)
    assert bound.value == pytest.approx({1: 1, 2: 2, math.inf: 4}[p])
