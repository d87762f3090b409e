"""Forward passes of images that differ from known ones within a window, beside full passes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import opnorm.attacks._square as square_module
from opnorm._core.surrogate import Surrogate, evaluation_surrogate
from opnorm.attacks import AutoAttack
from opnorm.attacks._local_forward import LocalForward, _FirstLayers, local_forward


def reference(model: nn.Module, x: Tensor) -> Tensor:
    """In float64."""
    with torch.no_grad():
        return Surrogate(model, x[:2]).network.double()(x.double())


def moved(base: Tensor, row: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Images near those of the base: one square of each is another."""
    z = base[row].clone()
    for image in z:
        top, left = (int(torch.randint(n - side + 1, (1,), generator=generator)) for n in image.shape[1:])
        window = image[:, top : top + side, left : left + side]
        window.copy_(torch.rand(window.shape, generator=generator))
    return z


def agree(local: LocalForward, model: nn.Module, base: Tensor, row: Tensor, z: Tensor) -> None:
    with torch.no_grad():
        found = local(base, row, z)
    assert local.network is not None
    want = reference(model, z)
    assert found.shape == want.shape
    assert (found - want).abs().max() <= 1e-4 * want.abs().max().clamp(min=1)


@st.composite
def networks(draw):
    torch.manual_seed(draw(st.integers(0, 2**16)))
    sizes = [draw(st.integers(7, 15)), draw(st.integers(7, 15))]
    channels = draw(st.sampled_from([1, 2, 4]))
    layers: list[nn.Module] = []
    x = torch.rand(3, channels, *sizes)
    for _ in range(draw(st.integers(2, 3))):
        groups = draw(st.sampled_from([1, math.gcd(channels, 4)]))
        pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
        how = {
            "kernel_size": draw(pair), "stride": draw(pair), "dilation": draw(st.tuples(*[st.integers(1, 2)] * 2)),
            "padding": draw(st.tuples(*[st.integers(0, 2)] * 2)), "groups": groups,
        }  # fmt: skip
        layer = nn.Conv2d(channels, 4, **how, bias=draw(st.booleans()))
        try:
            layer(torch.zeros(1, channels, *sizes))
        except RuntimeError:  # the kernel is larger than the image
            layer = nn.Conv2d(channels, 4, 1)
        sizes, channels = list(layer(torch.zeros(1, channels, *sizes)).shape[2:]), 4
        layers += [layer, draw(st.sampled_from([nn.ReLU(), nn.Softplus(), nn.PReLU(4), nn.Identity()]))]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * math.prod(sizes), 3))
    return model.eval(), x


@given(networks(), st.integers(1, 6), st.integers(0, 2**16))
@settings(deadline=None)
def test_the_logits_are_those_of_full_passes(network, side, seed):
    model, base = network
    local, generator = local_forward(Surrogate(model, base), base), torch.Generator().manual_seed(seed)
    assert local is not None
    for step in range(3):
        row = torch.tensor([0, 1, 2, 0, 2])
        z = moved(base, row, side, generator)
        z[step] = base[row[step]]  # one that does not change
        agree(local, model, base, row, z)
        base = torch.where(torch.tensor([True, False, step == 1])[:, None, None, None], z[:3], base)
    agree(local, model, base[1:], torch.tensor([1, 0]), base[[2, 1]])  # other rows than before


def small_cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 25, 4),
    ).eval()  # fmt: skip


def test_few_places_are_evaluated(monkeypatch):
    model, base = small_cnn(), torch.rand(2, 1, 20, 20)
    local = local_forward(Surrogate(model, base), base)
    z = base.clone()
    z[0, 0, 8, 8], z[1, 0, 0, 19] = 0.5, 0.5  # also at a corner
    agree(local, model, base, torch.arange(2), z)
    seen, convolution = [], torch.nn.functional.conv2d
    monkeypatch.setattr(
        "opnorm.attacks._local_forward.F.conv2d", lambda x, *how: seen.append(x.shape) or convolution(x, *how)
    )
    local(base, torch.arange(2), z)
    assert seen == [(2, 1, 7, 7), (2, 8, 3, 3)]  # for one place of the second convolution


def test_infinite_and_undefined_values_stay_where_they_are():
    model, base = small_cnn(), torch.rand(2, 1, 20, 20)
    local, z = local_forward(Surrogate(model, base), base), base.clone()
    z[0, 0, 3, 3], z[1, 0, 3, 3] = math.nan, 0.9
    with torch.no_grad():
        found = local(base, torch.arange(2), z)
    assert found[0].isnan().all()
    agree(local, model, base, torch.tensor([1]), z[1:])


class Shared(nn.Module):
    """The outputs of the first convolution are used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (
            nn.Conv2d(1, 4, 3, 1, 1),
            nn.Conv2d(4, 4, 3, 1, 1),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last((h + self.second(h)).mean((2, 3)))


class Twice(Shared):
    """The second convolution is called twice."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.second(self.first(x))).mean((2, 3)))


class Crops(Shared):
    """Two images for each."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.first(torch.cat([x, x.flip(3)])))
        return self.last(h.mean((2, 3)).view(2, len(x), 4).mean(0))


class InPlace(Shared):
    """The outputs of the first convolution are used, and then changed."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        more = h.mean((2, 3))
        return self.last(self.second(self.relu(h)).mean((2, 3)) + more)

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)


class Erased(Shared):
    """Some outputs of the first convolution are written to."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h[:, :, :2] = 0
        return self.last(self.second(h).mean((2, 3)))


class Copied(Shared):
    """The outputs of the first convolution are copied to numpy."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        more = torch.from_numpy(h.detach().numpy().copy())
        return self.last((self.second(h) + more).mean((2, 3)))


class Bright(Shared):
    """What is done depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        more = h.mean((2, 3)) if x.max() > 2 else 0
        return self.last(self.second(h).mean((2, 3)) + more)


class ByKeyword(Shared):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(input=self.first(input=x)).mean((2, 3)))


@pytest.mark.parametrize("kind", [Shared, Twice, Crops, InPlace, Erased, Copied, Bright, ByKeyword])
def test_first_layers_with_other_uses_are_left_alone(kind):
    torch.manual_seed(0)
    model, x = kind().eval(), torch.rand(2, 1, 8, 8)
    assert local_forward(Surrogate(model, x), x) is None


class Written(Shared):
    """The image and the outputs of the second convolution are written to, after they were used."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.first(x))
        x.zero_()
        return self.last(nn.functional.leaky_relu(h, 0.1, inplace=True).mean((2, 3)))


class TwoNames(Shared):
    """The convolutions have second names, under which they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(self.first, nn.ReLU(), self.second)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x).relu().mean((2, 3)))


@pytest.mark.parametrize("kind", [Written, TwoNames])
def test_networks_that_write_to_tensors_or_have_two_names_for_a_layer(kind):
    torch.manual_seed(0)
    model, base = kind().eval(), torch.rand(3, 1, 16, 16).round()
    local, generator = local_forward(Surrogate(model, base), base), torch.Generator().manual_seed(0)
    for _ in range(5):
        row = torch.tensor([0, 2, 1, 2])
        z = moved(base, row, 2, generator).round()
        agree(local, model, base, row, z)
        base = torch.cat([z[:1], base[1:]])


class Chunks(Shared):
    """Two images at a time."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.last(self.second(self.first(part)).mean((2, 3))) for part in x.split(2)])


class OneAtATime(Shared):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.last(self.second(self.first(part)).mean((2, 3))) for part in x.split(1)])


class ByBatch(Shared):
    """Other layers for more images; what takes other shapes would fail."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.other = nn.Conv2d(1, 8, 3, 1, 1), nn.Conv2d(8, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.first(x)) if len(x) <= 2 else self.other(self.wide(x))
        return self.last(h.mean((2, 3)))


class SkipsOne(Shared):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last((self.second(h) if len(x) <= 2 else h.relu()).mean((2, 3)))


class Reads(Shared):
    """An attribute of a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x.to(self.first.weight.dtype))).mean((2, 3)))


@pytest.mark.parametrize("kind", [Chunks, OneAtATime, ByBatch, SkipsOne, Reads])
def test_a_network_that_does_not_call_its_first_layers_one_after_another_is_evaluated_in_full(kind):
    torch.manual_seed(0)
    model, base = kind().eval(), torch.rand(5, 1, 12, 12)
    surrogate, row = Surrogate(model, base), torch.tensor([0, 1, 2, 3, 4, 1])
    local, z = local_forward(surrogate, base[:1]), base[row].clone()
    z[:, :, 3:5, 3:5] = 0
    for _ in range(2):
        assert torch.equal(local(base, row, z), surrogate(z))
    assert local.network is None


def test_an_error_of_ours_is_not_taken_for_one_of_the_network(monkeypatch):
    def wrong(*args):
        raise ZeroDivisionError

    model, x = small_cnn(), torch.rand(2, 1, 20, 20)
    local = local_forward(Surrogate(model, x), x)
    monkeypatch.setattr(_FirstLayers, "_changed", wrong)
    with torch.no_grad(), pytest.raises(ZeroDivisionError):
        local(x, torch.arange(2), x)


def test_layers_around_the_first_ones_may_be_anything():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small_cnn()

        def forward(self, x: Tensor) -> Tensor:
            return 3 * self.inner((x - x.mean((1, 2, 3), keepdim=True)).round(decimals=1)).log_softmax(1)

    model, base = Model().eval(), torch.rand(3, 1, 20, 20)
    local, z = local_forward(Surrogate(model, base), base), base.clone()
    z[:, 0, 4:6, 4:6] = 0.2
    agree(local, model, base, torch.arange(3), z)


def test_only_a_float32_surrogate_on_a_cpu_has_one():
    model, x = small_cnn(), torch.rand(4, 1, 20, 20)
    assert local_forward(model, x) is None
    assert local_forward(Surrogate(model, x).to_bf16(), x) is None
    assert local_forward(Surrogate(nn.Sequential(nn.Flatten(), nn.Linear(400, 3)), x), x) is None
    assert (
        local_forward(Surrogate(nn.Sequential(nn.Flatten(), nn.Linear(400, 3)), x.flatten(1)), x.flatten(1))
        is None
    )


def test_square_makes_the_same_search_with_full_passes(monkeypatch):
    model, x = small_cnn(), torch.rand(12, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    assert evaluation_surrogate(model, x, y, bf16=False) is not None
    calls, changed = [], _FirstLayers._changed
    monkeypatch.setattr(
        _FirstLayers, "_changed", lambda *inputs: calls.append(len(inputs[1])) or changed(*inputs)
    )
    monkeypatch.setattr(
        "opnorm.attacks._autoattack.Square", lambda norm, **how: square_module.Square(norm, 300, **how)
    )
    attack = AutoAttack(math.inf, 0.2, attacks=("square",))
    local = attack.evaluate(model, x, y)
    assert sum(calls) > 300
    monkeypatch.setattr(square_module, "SMALL", 1000)  # no window is small
    calls.clear()
    full = attack.evaluate(model, x, y)
    assert not calls
    assert 0 < local.misclassified.sum() < len(x)
    assert torch.equal(local.misclassified, full.misclassified)
    assert (local.points - full.points).abs().max() < 1e-6
    assert local.stages[0].counts == full.stages[0].counts
