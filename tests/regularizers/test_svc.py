"""Singular value clipping, against the explicit matrix of the circular operator."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from opnorm._core.linear_map import linear_map
from opnorm.errors import ModelError, NormError, SpecError, TrainError
from opnorm.norms import operator_norm
from opnorm.regularizers import clip, svc

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def make(kind, *args, seed=0, **kwargs):
    torch.manual_seed(seed)
    return kind(*args, bias=False, **kwargs).double()


def entries(weight, stride, dilation, groups, circle):
    """Where each tap sits in the circular convolution's matrix: (tap's index in the kernel, row, column), by going round."""
    c_out, c_in, *kernel = weight.shape
    positions = list(itertools.product(*(range(m) for m in circle)))
    sizes = [m * s for m, s in zip(circle, stride, strict=True)]
    inputs = {place: i for i, place in enumerate(itertools.product(*(range(n) for n in sizes)))}
    for i, j, (o, place) in itertools.product(range(c_out), range(c_in), enumerate(positions)):
        for tap in itertools.product(*(range(k) for k in kernel)):
            read = tuple(
                (p * s + t * d) % n for p, s, t, d, n in zip(place, stride, tap, dilation, sizes, strict=True)
            )
            channel = i // (c_out // groups) * c_in + j
            yield (i, j, *tap), i * len(positions) + o, channel * len(inputs) + inputs[read]


def circular(weight, stride, dilation, groups, circle):
    places = math.prod(circle)
    M = torch.zeros(
        weight.shape[0] * places, weight.shape[1] * groups * places * math.prod(stride), dtype=torch.float64
    )
    for at, row, column in entries(weight, stride, dilation, groups, circle):
        M[row, column] += weight[at]
    return M


def clipped(M, c):
    U, s, Vh = torch.linalg.svd(M, full_matrices=False)
    return U @ torch.diag(s.clamp(max=c)) @ Vh


def by_hand(weight, stride, dilation, groups, circle, c):
    """Clip the matrix, and share out what changed in each entry among the taps that meet there."""
    M = circular(weight, stride, dilation, groups, circle)
    delta = clipped(M, c) - M
    where = list(entries(weight, stride, dilation, groups, circle))
    meeting: dict = {}
    for _, row, column in where:
        meeting[row, column] = meeting.get((row, column), 0) + 1
    new = weight.clone()
    places = math.prod(circle)
    for at, row, column in where:
        if row % places == 0:  # all output positions say the same
            new[at] += delta[row, column] / meeting[row, column]
    return new


@st.composite
def geometries(draw):
    axes = draw(st.integers(1, 3))
    few = {1: 9, 2: 5, 3: 3}[axes]

    def sizes(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    groups = draw(st.integers(1, 2))
    return {
        "axes": axes,
        "groups": groups,
        "channels": (groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))),
        "kernel": sizes(1, 4 if axes < 3 else 2),
        "stride": sizes(1, 3 if axes < 3 else 2),
        "dilation": sizes(1, 3),
        "size": sizes(1, few),
        "c": draw(st.sampled_from([0.1, 0.4, 1.0])),
    }


@given(geometries(), st.integers(0, 2**16))
def test_clip_and_crop_of_any_geometry_is_that_of_the_matrix(g, seed):
    reach = [d * (k - 1) for d, k in zip(g["dilation"], g["kernel"], strict=True)]
    kind = CONVS[g["axes"] - 1]
    layer = make(
        kind, *g["channels"], g["kernel"], g["stride"], tuple(reach), g["dilation"], g["groups"], seed=seed
    )
    circle = tuple(math.ceil(n / s) for n, s in zip(g["size"], g["stride"], strict=True))
    want = by_hand(layer.weight.detach(), g["stride"], g["dilation"], g["groups"], circle, g["c"])
    svc(g["c"])(layer, torch.rand(1, g["channels"][0], *g["size"], dtype=torch.float64)).after_epoch()
    assert torch.allclose(layer.weight, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "groups", "size"),
    [
        ((5,), (1,), (1,), 1, (5,)),
        ((4, 6), (1, 1), (1, 1), 1, (4, 6)),
        ((6, 4), (2, 1), (1, 1), 2, (6, 4)),
        ((5, 5), (1, 1), (2, 3), 1, (5, 5)),  # dilations prime to the size go round all of it
        ((3, 2), (1, 1), (2, 2), 1, (6, 4)),  # others leave smaller circles
        ((3, 5), (1, 1), (1, 1), 1, (2, 2)),  # wraps around
        ((7, 7), (1, 1), (1, 1), 1, (1, 1)),
        ((2, 2, 3), (1, 1, 1), (1, 1, 1), 1, (2, 2, 3)),
    ],
)
def test_a_kernel_with_room_for_all_ends_with_its_values_at_most_c(kernel, stride, dilation, groups, size):
    layer = make(CONVS[len(size) - 1], 2 * groups, 3 * groups, kernel, stride, 0, dilation, groups)
    circle = tuple(n // s for n, s in zip(size, stride, strict=True))

    def matrix():
        return circular(layer.weight.detach(), stride, dilation, groups, circle)

    want = torch.linalg.svdvals(clipped(matrix(), 0.3))
    assert torch.linalg.svdvals(matrix())[0] > 0.4
    layer.padding = tuple(d * k for d, k in zip(dilation, kernel, strict=True))  # does not enter
    svc(0.3)(layer, torch.rand(1, 2 * groups, *size, dtype=torch.float64)).after_epoch()
    values = torch.linalg.svdvals(matrix())
    assert values[0] <= 0.3 * (1 + 1e-12)
    assert torch.allclose(values, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (1, 4)])
def test_linear_layers_are_clipped_by_their_svd(shape):
    layer = make(nn.Linear, shape[1], shape[0])
    want = clipped(layer.weight.detach(), 0.3)
    norm = clip(layer, (shape[1],), 0.3)
    assert torch.allclose(layer.weight, want, rtol=0, atol=1e-13)
    assert float(norm.lower) <= 0.3 * (1 + 1e-12)
    assert float(norm.upper) == pytest.approx(0.3, rel=1e-6)


@pytest.mark.parametrize(
    ("args", "size"), [((4, 2, 1), (3, 4)), ((3, 1, 1), (4, 4)), ((2, 3, 0, 0, 2), (2, 3))]
)
def test_transposed_convolutions_are_clipped_as_the_convolutions_they_are_adjoint_to(args, size):
    kernel, stride, padding, *rest = args
    groups = rest[1] if rest else 1
    layer = make(nn.ConvTranspose2d, 4, 2, kernel, stride, padding, groups=groups)
    want = by_hand(layer.weight.detach(), (stride,) * 2, (1, 1), groups, size, 0.2)
    assert not torch.allclose(layer.weight, want)
    norm = clip(layer, (4, *size), 0.2)
    assert torch.allclose(layer.weight, want, rtol=0, atol=1e-12)
    exact = torch.linalg.svdvals(linear_map(layer, (4, *size)).to_dense())[0]
    assert float(norm.lower) <= exact <= float(norm.upper)


def test_the_padding_mode_does_not_matter_and_circular_padding_is_the_operator_itself():
    layers = [make(nn.Conv2d, 3, 4, 3, padding=1, padding_mode=m) for m in ("zeros", "circular", "reflect")]
    for layer in layers:
        clip(layer, (3, 6, 5), 0.3)
    assert all(torch.equal(layer.weight, layers[0].weight) for layer in layers)
    M = circular(layers[1].weight.detach(), (1, 1), (1, 1), 1, (6, 5))
    own = torch.linalg.svdvals(linear_map(layers[1], (3, 6, 5)).to_dense())
    assert torch.allclose(torch.linalg.svdvals(M), own, atol=1e-12)


def test_the_crop_lifts_the_norm_and_projections_lower_it_again():
    norms = []
    for projections in (1, 2, 5, 30):
        layer = make(nn.Conv2d, 4, 4, 3, padding=1)
        clip(layer, (4, 8, 8), 0.3, projections)
        norms.append(
            float(torch.linalg.svdvals(circular(layer.weight.detach(), (1, 1), (1, 1), 1, (8, 8)))[0])
        )
    assert norms[0] > 0.31
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < 0.3 + 0.2 * (norms[0] - 0.3)


def test_projections_are_passes():
    once, twice = make(nn.Conv2d, 2, 3, 3), make(nn.Conv2d, 2, 3, 3)
    clip(once, (2, 6, 6), 0.3, 2)
    clip(twice, (2, 6, 6), 0.3)
    clip(twice, (2, 6, 6), 0.3)
    assert torch.allclose(once.weight, twice.weight, rtol=0, atol=1e-14)


def test_layers_below_c_keep_their_bits_and_scale_does_not_matter():
    layer = make(nn.Conv2d, 2, 3, 3)
    before = layer.weight.detach().clone()
    clip(layer, (2, 6, 6), 5.0)
    assert torch.equal(layer.weight, before)
    small = make(nn.Conv2d, 2, 3, 3)
    small.weight.data.mul_(2.0**-200)
    clip(layer, (2, 6, 6), 0.25)
    clip(small, (2, 6, 6), 0.25 * 2.0**-200)
    assert torch.equal(small.weight * 2.0**200, layer.weight)


def test_layers_of_one_shape_are_treated_jointly_and_in_chunks(monkeypatch):
    def net():
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1, groups=g) for g in (1, 1, 3, 1)))

    jointly, chunks, alone = net(), net(), net()
    x = torch.rand(1, 3, 8, 8)
    svc(0.3)(jointly, x).after_epoch()
    for layer in alone:
        clip(layer, (3, 8, 8), 0.3)
    monkeypatch.setattr("opnorm.regularizers._svc.CHUNK_BYTES", 2000)
    svc(0.3)(chunks, x).after_epoch()
    for a, b, c in zip(jointly, alone, chunks, strict=True):
        assert torch.allclose(a.weight, b.weight, rtol=0, atol=1e-6)
        assert torch.allclose(a.weight, c.weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision_is_that_of_the_weights(dtype):
    layer = make(nn.Conv2d, 8, 8, 3, padding=1)
    low = make(nn.Conv2d, 8, 8, 3, padding=1).to(dtype).to(memory_format=torch.channels_last)
    layer.weight.data.copy_(low.weight)
    clip(layer, (8, 8, 8), 0.3)
    clip(low, (8, 8, 8), 0.3)
    assert low.weight.dtype is dtype
    assert torch.allclose(low.weight.double(), layer.weight, rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_every_so_many_steps():
    layer, x = make(nn.Linear, 4, 4), torch.rand(1, 4).double()
    hooks = svc(0.1, every=3, linear=True)(layer, x)
    before = layer.weight.detach().clone()
    for step in (1, 2):
        hooks.after_step(0.1)
        hooks.after_epoch()
        assert int(hooks.state["step"]) == step
        assert torch.equal(layer.weight, before)
    hooks.after_step(0.1)
    assert torch.linalg.svdvals(layer.weight)[0] <= 0.1 * (1 + 1e-12)


def test_as_published_convolutions_alone_are_clipped(recwarn):
    """A classifier after convolutions keeps its bits, and no warning names what the setting leaves out."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ConvTranspose2d(3, 2, 3), nn.Flatten(), nn.Linear(50, 40)
    ).double()
    before = [p.detach().clone() for p in model.parameters()]
    x = torch.rand(1, 2, 5, 5).double()
    hooks = svc(0.1, every=100)(model, x)
    for _ in range(100):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
        hooks.after_step(0.1)
    assert not recwarn.list
    for i, changed in ((0, True), (1, True), (3, False)):
        assert torch.equal(model[i].weight, before[(0, 2, 4, 4)[i]]) is not changed
    svc(0.1, linear=True)(model, x).after_epoch()
    assert torch.linalg.svdvals(model[3].weight)[0] <= 0.1 * (1 + 1e-12)
    with pytest.raises(ModelError, match="svc finds no trainable layer among Conv1d"):
        svc()(nn.Linear(3, 3), torch.rand(1, 3))


def test_clip_returns_the_norm_with_the_real_padding():
    layer = make(nn.Conv2d, 3, 3, 3, padding=1)
    assert clip(layer, (3, 7, 7), 0.4) == operator_norm(layer, 2, (3, 7, 7))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"c": 0}, "c=0: expected a finite number above 0"),
        ({"c": -1.0}, r"c=-1\.0"),
        ({"c": math.nan}, "c=nan"),
        ({"c": math.inf}, "c=inf"),
        ({"c": True}, "c=True"),
        ({"c": "1"}, "c='1'"),
        ({"every": "step"}, "every='step': expected a whole number of steps, or 'epoch'"),
        ({"every": 0}, "every=0"),
        ({"every": True}, "every=True"),
        ({"every": 1.5}, r"every=1\.5"),
        ({"projections": 0}, "projections=0"),
        ({"projections": True}, "projections=True"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(SpecError, match=message):
        svc(**settings)


def test_what_cannot_be_treated_is_named():
    class Standardized(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    x = torch.rand(2, 1, 5, 5)
    model = nn.Sequential(Standardized(1, 2, 3), nn.Conv2d(2, 2, 3))
    with pytest.warns(
        UserWarning, match=r"^svc leaves these weights as they are: 0\.weight; it treats"
    ) as seen:
        svc()(model, x)
    assert len(seen) == 1
    with pytest.raises(ModelError, match="only layers with a forward of their own"):
        svc()(model[:1], x)
    with pytest.raises(NormError, match="computed from other parameters"):
        svc()(nn.Sequential(parametrizations.weight_norm(nn.Conv2d(1, 2, 3))), x)
    for layer in (model[0], nn.BatchNorm2d(1), parametrizations.weight_norm(nn.Conv2d(1, 2, 3))):
        with pytest.raises(NormError, match="can be clipped"):
            clip(layer, (1, 5, 5), 1.0)


def test_weights_that_are_not_finite_are_an_error():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 2))
    hooks = svc(linear=True)(model, torch.rand(1, 1, 2, 2))
    model[2].weight.data[0, 0] = math.nan
    with pytest.raises(TrainError, match="svc: the weight of layer '2' is no longer finite"):
        hooks.after_epoch()
    with pytest.raises(NormError, match="NaN"):
        clip(model[2], (4,), 1.0)
