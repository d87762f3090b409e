"""No certified point has a misclassified neighbor, and on linear networks the certificates are exact."""

import functools
import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from opnorm import attacks, spec
from opnorm._core.linear_map import linear_map
from opnorm.certificates import certified, lipschitz_radius, proof
from opnorm.certificates.affine import UNIT
from opnorm.certificates.linear_bounds import Balls, intervals, lower_bound, tightened
from opnorm.certificates.network_bounds import network_bounds
from opnorm.errors import AttackError, BoundError
from opnorm.models import cnn, mlp
from opnorm.models.modules import Normalize
from tests.attacks.honest import honest, points
from tests.property_tests import examples

METHODS = ("lipschitz", "ibp", "crown-ibp", "crown")
NORMS = (1, 2, math.inf)
EPS = {math.inf: 0.04, 2: 0.15, 1: 0.3}


def quiet(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return certified(*args, **kwargs)


# ---------------------------------------------------------------- bounds enclose


def sequence(draw):
    """A small network of everything that has bounds, and the shape of its inputs."""
    channels, size = draw(st.integers(1, 2)), draw(st.integers(1, 5))
    shape, layers = (channels, size, size), []
    if draw(st.booleans()):
        layers.append(Normalize(channels, 0.3, 0.4))
    for _ in range(draw(st.integers(0, 2))):
        kernel, groups = draw(st.integers(1, 4)), draw(st.sampled_from([1, channels]))
        settings_ = {
            "stride": draw(st.integers(1, 2)),
            "padding": draw(st.integers(kernel // 2, kernel)),
            "dilation": 1,
            "groups": groups,
            "padding_mode": draw(st.sampled_from(["zeros", "replicate"])),
            "bias": draw(st.booleans()),
        }
        if draw(st.integers(0, 2)):
            layers += [nn.Conv2d(channels, 2 * groups, kernel, **settings_)]
        else:
            stride = settings_["stride"]
            settings_ |= {"padding": draw(st.integers(0, (kernel - 1) // 2)), "padding_mode": "zeros"}
            settings_["output_padding"] = draw(st.integers(0, stride - 1))
            layers += [nn.ConvTranspose2d(channels, 2 * groups, kernel, **settings_)]
        channels = 2 * groups
        layers += draw(st.sampled_from([[], [nn.BatchNorm2d(channels)]]))
        layers += draw(
            st.sampled_from(
                [[], [nn.ReLU()], [nn.SiLU()], [nn.Tanh()], [nn.ReLU(inplace=True), nn.Dropout()]]
            )
        )
        pools = (
            (), (nn.MaxPool2d(2, 1, 1),), (nn.MaxPool2d(2, ceil_mode=True),),
            (nn.AvgPool2d(2, 1, 1),), (nn.AdaptiveAvgPool2d(2),),
        )  # fmt: skip
        layers += draw(st.sampled_from(pools))
    with torch.no_grad():
        body = nn.Sequential(*layers, nn.Flatten()).eval()
        features = body(torch.rand(1, *shape)).shape[1]
    hidden = draw(st.integers(1, 5))
    net = nn.Sequential(body, nn.Sequential(nn.Linear(features, hidden), nn.ReLU()), nn.Linear(hidden, 3))
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-1, 1), m.running_var.uniform_(0.1, 2), nn.init.normal_(m.weight)
    return net.eval(), shape


def corners_and_more(x, eps, norm, count=64):
    """Points of the ball: for ℓ∞ corners, for ℓ1 vertices, and random ones on the sphere; all in [0, 1]."""
    direction = torch.randn(count, *x.shape[1:])
    n = x[0].numel()
    if norm == math.inf:
        direction = direction.sign()
    elif norm == 1:
        direction = torch.cat([torch.eye(n), -torch.eye(n)]).view(-1, *x.shape[1:])
    else:
        direction = direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return (x + eps * direction * (1 - 1e-6)).clamp(0, 1)


@given(st.data())
@examples(50)
def test_bounds_hold_on_any_network_and_ball(data):
    torch.manual_seed(data.draw(st.integers(0, 10_000)))
    net, shape = sequence(data.draw)
    norm = data.draw(st.sampled_from(NORMS))
    eps = data.draw(st.sampled_from([0.0, 1e-3, 0.1, 0.5]))
    x = torch.rand(1, *shape)
    balls = Balls(x.double(), eps, norm)
    layers = network_bounds(net, shape)
    A = torch.randn(1, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        boxes = intervals(layers, balls)
        tight = tightened(layers, boxes, balls)
        z = corners_and_more(x, eps, norm)
        values = net(z).double()
        exact = net.double()(z.double())
        net.float()
        for low, high in (boxes[-1], tight[-1]):
            assert (low <= values).all()
            assert (values <= high).all()
            assert (low <= exact).all()
            assert (exact <= high).all()
        for bounds in (boxes, tight):
            assert (lower_bound(layers, bounds, balls, A)[0] <= (values @ A[0].T).amin(0)).all()
        for (low, high), (tight_low, tight_high) in zip(boxes, tight, strict=True):
            assert (tight_low >= low - 1e-9).all()
            assert (tight_high <= high + 1e-9).all()


def test_weights_that_are_computed_are_enclosed_and_stay_as_they_are():
    torch.manual_seed(0)
    conv, head = (parametrizations.weight_norm(layer) for layer in (nn.Conv2d(1, 2, 3), nn.Linear(18, 3)))
    model, x = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), head), torch.rand(4, 1, 5, 5)
    with torch.no_grad():
        low, high = intervals(network_bounds(model, (1, 5, 5)), Balls(x.double(), 0.0, math.inf))[-1]
        assert ((low <= model(x)) & (model(x) <= high)).all()
        assert float((high - low).max()) < 1e-4
    assert parametrize.is_parametrized(conv)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose1d(2, 3, 3, 2, 1, 1),
        nn.ConvTranspose2d(2, 4, (3, 2), (1, 2), groups=2, bias=False),
        nn.ConvTranspose3d(2, 1, 2, dilation=2),
    ],
)
def test_transposed_convolutions_have_bounds_as_tight_as_their_matrix(layer):
    shape = (2, 4, 3, 2)[: layer.weight.ndim - 1]
    x = torch.rand(3, *shape, dtype=torch.float64)
    with torch.no_grad():
        low, high = intervals(network_bounds(layer, shape), Balls(x, 0.01, math.inf))[-1]
        inside = ((x + 0.01).clamp(max=1) - (x - 0.01).clamp(min=0)) / 2
        radius = linear_map(layer, shape).to_dense().abs() @ inside.flatten(1).T
        found = ((high - low) / 2).flatten(1).T
    assert (found >= radius).all()
    assert torch.allclose(found, radius, rtol=1e-3)
    assert certified(
        nn.Sequential(layer, nn.Flatten()),
        x.float(),
        layer(x.float()).flatten(1).argmax(1),
        0.0,
        method="ibp",
    ).any()


@pytest.mark.parametrize("norm", NORMS)
def test_a_ball_that_is_a_point_is_enclosed_up_to_rounding(norm):
    x = points(4)[0]
    layers = network_bounds(honest(), (1, 8, 8))
    with torch.no_grad():
        low, high = intervals(layers, Balls(x.double(), 0.0, norm))[-1]
        assert (low < high).all(), "the rounding of float32 is inside"
        assert float((high - low).max()) < 1e-2
        assert ((low <= honest()(x)) & (honest()(x) <= high)).all()


def test_rounding_of_a_long_sum_is_enclosed():
    """A sum that float32 gets wrong: the formula's value alone would prove too much."""
    n = 4096
    layer = nn.Linear(n, 1, bias=False)
    layer.weight.data[:] = torch.randn(1, n, generator=torch.Generator().manual_seed(0)) * 100
    x = torch.rand(1, n, generator=torch.Generator().manual_seed(1))
    (step,) = network_bounds(layer, (n,))
    with torch.no_grad():
        low, high = step.bounds.interval(x.double(), x.double())
        one_by_one = torch.zeros(())
        for product in (layer.weight[0] * x[0]).flip(0):
            one_by_one = one_by_one + product
        exact = (layer.weight.double() @ x[0].double()).item()
        for value in (layer(x).item(), one_by_one.item(), exact):
            assert low.item() <= value <= high.item()
        size = (layer.weight.double().abs() @ x[0].double()).item()
        assert abs((high - low).item() / 2 - n * UNIT * size) < 0.05 * n * UNIT * size
        assert abs(one_by_one.item() - exact) > 0, "there is something to enclose"


# ---------------------------------------------------------------- certificates and attacks


@functools.cache
def wrong_under_attack(norm, eps):
    x, y = points(60)
    found = attacks.pgd(norm, eps, 20, restarts=3, stop_at_success=True)(honest(), x, y)
    with torch.no_grad():
        return honest()(found).argmax(1) != y


@pytest.mark.each_value
@pytest.mark.parametrize("method", [*METHODS, "auto"])
@pytest.mark.parametrize("norm", NORMS)
def test_no_certified_point_is_misclassified(norm, method):
    x, y = points(60)
    for eps in (EPS[norm] / 8, EPS[norm]):
        proved = quiet(honest(), x, y, eps, norm, method)
        wrong = wrong_under_attack(norm, eps)
        assert not (proved & wrong).any()
    if method in ("crown", "auto"):
        assert proved.sum() > 20
        assert wrong.sum() > 1


def test_every_method_proves_something_and_the_expensive_ones_more():
    x, y = points(60)
    count = {m: int(quiet(honest(), x, y, 0.002, math.inf, m).sum()) for m in METHODS}
    assert 0 < count["lipschitz"] <= count["ibp"] <= count["crown-ibp"] <= count["crown"]
    count = {m: int(quiet(honest(), x, y, 0.04, math.inf, m).sum()) for m in METHODS}
    assert count["crown-ibp"] < count["crown"] == int(quiet(honest(), x, y, 0.04).sum())


def linear(inputs=6, classes=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))


@pytest.mark.each_value
@pytest.mark.parametrize("method", ["crown-ibp", "crown", "auto", "lipschitz"])
@pytest.mark.parametrize("norm", NORMS)
def test_on_a_linear_network_it_is_exact(norm, method):
    """Far from the ends of [0, 1], the radius is min_j (z_y - z_j) / ‖w_y - w_j‖ in the dual norm."""
    model, x = linear(), 0.5 + 0.02 * torch.rand(20, 1, 2, 3)
    W = model[1].weight.detach().double()
    z = (x.double().flatten(1) @ W.T) + model[1].bias.detach().double()
    y = z.argmax(1)
    dual = {1: math.inf, 2: 2, math.inf: 1}[norm]
    gaps, apart = (z.gather(1, y[:, None]) - z), (W[y][:, None] - W).norm(p=dual, dim=2)
    radius = (gaps / apart).nan_to_num(math.inf).scatter(1, y[:, None], math.inf).amin(1)
    if method == "lipschitz":
        found = lipschitz_radius(model, x, y, norm)
        assert (found <= radius).all()
        if norm != math.inf:  # the pairs of a last layer alone are exact; nothing is before it but Flatten
            assert torch.allclose(found, radius, rtol=1e-2, atol=1e-5)
        return
    for i in range(8):
        at = float(radius[i])
        if at > 0.45:
            continue
        own = x[i : i + 1], y[i : i + 1]
        assert quiet(model, *own, at * 0.99 - 1e-5, norm, method).all() == (at * 0.99 > 1e-5)
        assert not quiet(model, *own, at * (1 + 1e-6), norm, method).any()


def test_the_box_counts():
    """A black image cannot get darker: half of the ℓ∞ ball is not there."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    model[1].weight.data[:] = torch.tensor([[1.0], [0.0]])
    model[1].bias.data[:] = torch.tensor([0.1, 0.0])  # right from -0.1 on
    x, y = torch.full((1, 1, 1, 1), 0.3), torch.zeros(1, dtype=torch.int64)
    assert quiet(model, x, y, 0.9, math.inf, "crown-ibp").all()
    model[1].bias.data[:] = torch.tensor([-0.1, 0.0])
    assert quiet(model, x, y, 0.19, math.inf, "crown-ibp").all()
    assert not quiet(model, x, y, 0.21, math.inf, "crown-ibp").any()


@given(st.integers(0, 10_000), st.sampled_from([0.02, 0.05, 0.1, 0.2]), st.sampled_from(NORMS))
@examples(15)
def test_no_certified_point_of_a_small_network_has_a_misclassified_neighbor(seed, eps, norm):
    """Two pixels, every ball on a grid."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)
    )
    x = torch.rand(8, 1, 1, 2)
    ticks = torch.linspace(-1, 1, 41) * (1 - 1e-6)
    grid = torch.tensor(list(itertools.product(ticks.tolist(), repeat=2))).view(-1, 1, 1, 2)
    with torch.no_grad():
        y = model(x).argmax(1)
        inside = grid[grid.flatten(1).norm(p=norm, dim=1) <= 1]
        proved = quiet(model, x, y, eps, norm)
        radius = lipschitz_radius(model, x, y, norm)
        for i in range(8):
            if proved[i]:
                assert (model((x[i] + eps * inside).clamp(0, 1)).argmax(1) == y[i]).all()
            near = (x[i] + min(float(radius[i]), 10.0) * inside).clamp(0, 1)
            assert (model(near).argmax(1) == y[i]).all()


def test_the_radius_of_networks_without_bounds_is_still_proved():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Softmin(1), nn.Linear(20, 10))
    x, _ = points(10)
    with torch.no_grad():
        y = model(x).argmax(1)
    radius = lipschitz_radius(model, x, y, 2)
    assert (radius > 0).any()
    assert (lipschitz_radius(model, x, (y + 1) % 10, 2) == 0).all(), "wrong points have none"
    eps = float(radius.median())
    with pytest.warns(UserWarning, match=r"2 \(Softmin\).*no bounds are known"):
        proved = certified(model, x, y, eps, 2)
    assert torch.equal(proved, radius > eps)


# ---------------------------------------------------------------- side effects and refusals


def test_autoattack_leaves_certified_points_alone():
    x, y = points(40)
    settings_ = {"norm": math.inf, "eps": 0.04, "attacks": ("apgd-ce", "apgd-t")}
    alone = attacks.AutoAttack(**settings_).evaluate(honest(), x, y)
    with_proof = attacks.AutoAttack(**settings_, certify=proof()).evaluate(honest(), x, y)
    assert torch.equal(alone.misclassified, with_proof.misclassified)
    assert with_proof.certified.sum() > 20
    assert not (with_proof.certified & alone.misclassified).any()
    assert with_proof.stages[1].attacked == alone.stages[1].attacked - int(with_proof.certified.sum())


def test_certificates_are_for_eval_mode():
    with pytest.raises(AttackError, match="mode='train'"):
        attacks.AutoAttack(certify=proof(), mode="train")


def test_as_text():
    built = spec.build('autoattack(eps=0.04, certify=proof(method="ibp"))', "attack")
    assert str(spec.spec_of(built)) == 'autoattack(eps=0.04, certify=proof(method="ibp"))'


def test_the_model_comes_back_as_it_was():
    model = cnn(in_shape=(1, 8, 8), width=2).train()
    x, y = points(4)
    before = [p.clone() for p in model.parameters()]
    certified(model, x, y, 0.01)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_wrong_points_and_empty_batches():
    x, y = points(10)
    assert not quiet(honest(), x, (honest()(x).argmax(1) + 1) % 10, 1e-6).any()
    assert certified(honest(), x[:0], y[:0], 0.1).shape == (0,)
    assert lipschitz_radius(honest(), x[:0], y[:0]).shape == (0,)


def hooked():
    model = mlp(in_shape=(1, 8, 8), width=4)
    model[2].register_forward_hook(lambda m, i, o: o * 100)
    return model


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(x) ** 3


WITHOUT_BOUNDS = {
    "own layer": lambda: nn.Sequential(nn.Flatten(), Own(64, 10)),
    "hooks": hooked,
    "16 bits": lambda: mlp(in_shape=(1, 8, 8), width=4).to(torch.bfloat16),
    "softmax": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1)),
    "batch statistics": lambda: nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(), nn.Linear(64, 10)),
    "another module": lambda: nn.ModuleDict({"a": nn.Linear(64, 10)}),
}  # fmt: skip


@pytest.mark.parametrize("kind", WITHOUT_BOUNDS)
def test_what_has_no_bounds_is_named(kind):
    with pytest.raises(BoundError):
        network_bounds(WITHOUT_BOUNDS[kind](), (1, 8, 8))


def test_autocast_of_the_caller_is_off_in_a_proof():
    x, y = points(4)
    want = certified(honest(), x, y, 1e-3, method="crown")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(certified(honest(), x, y, 1e-3, method="crown"), want)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"eps": -0.1}, "eps=-0.1"),
        ({"eps": math.nan}, "eps=nan"),
        ({"eps": True}, "eps=True"),
        ({"norm": 3}, "norm=3"),
        ({"method": "magic"}, "method='magic'"),
    ],
)
def test_settings_that_make_no_sense(settings_, message):
    x, y = points(2)
    with pytest.raises(AttackError, match=message):
        certified(honest(), x, y, **({"eps": 0.1} | settings_))
    with pytest.raises(AttackError):
        proof(method="magic")
