"""WEISSI by hand, its gradients, its range, and what a weight-scale shift does to it."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opnorm.data import digits
from opnorm.data.dataset import as_pixels
from opnorm.errors import ModelError, SpecError
from opnorm.models import wrn
from opnorm.regularizers import weissi
from opnorm.regularizers._weissi import mixed_norms
from opnorm.spec import build, full
from opnorm.theory.weight_scale import shift
from tests.property_tests import examples

X = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def penalty(model, x=X, **arguments):
    return weissi(**arguments)(model, x).penalty(model, x, torch.zeros(len(x)))


def value(model, x=X, **arguments):
    return float(penalty(model, x, **arguments).detach())


def cnn(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3, 2)
    ).double()


def two_layers():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    model[1].weight.data.copy_(torch.tensor([[1.0, -2.0], [0.0, 2.0]]))  # ‖·‖_2 = 3, ‖·‖_1 = 5
    model[3].weight.data.copy_(torch.tensor([[3.0, -4.0]]))  # 5 and 7
    return model


X2 = torch.zeros(1, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        ({"energy": 0.1, "complexity": 0}, 0.1 * 9 * 25),
        ({"energy": 0, "complexity": 0.1}, 0.1 * (5 / 3 + 7 / 5)),
        ({"energy": 0.2, "complexity": 0.1}, 0.2 * 225 + 0.1 * (5 / 3 + 7 / 5)),
        ({"energy": 0.1, "complexity": 0, "form": "cnn"}, 0.1 * 9 * 5),
        ({"energy": 0.1, "complexity": 0, "form": "log"}, 0.1 * (math.log(9) + math.log(25))),
        ({"energy": 0, "complexity": 0}, 0),
        # rows (1, -2), (0, 2): ℓ1 norms 3 and 2, ℓ2 norms √5 and 2, maxima 2 and 2; one row (3, -4): 7, 5 and 4
        ({"energy": 1, "complexity": 0, "eta": (1, 2)}, (9 + 4) * 49),
        ({"energy": 1, "complexity": 0, "eta": (2, 1)}, (math.sqrt(5) + 2) ** 2 * 25),
        ({"energy": 1, "complexity": 0, "eta": (1, math.inf)}, 9 * 49),
        ({"energy": 1, "complexity": 0, "eta": (math.inf, 1)}, 16 * 16),
        ({"energy": 0, "complexity": 1, "eta": (math.inf, math.inf), "g": (1, 2)}, math.sqrt(13) / 2 + 7 / 4),
    ],
)
def test_two_layers_by_hand(arguments, want):
    assert value(two_layers(), X2, **arguments) == pytest.approx(want, rel=1e-14)


def test_the_gradients_are_the_paper_s():
    model = two_layers()
    penalty(model, X2, energy=0.1, complexity=0).backward()
    first, last = model[1].weight, model[3].weight
    assert torch.allclose(first.grad, 0.1 * 2 * first * 25, rtol=1e-14)
    assert torch.allclose(last.grad, 0.1 * 2 * last * 9, rtol=1e-14)
    assert model[1].bias.grad is None


P = st.sampled_from([1, 1.5, 2, 3, math.inf])


@examples(40)
@given(st.integers(1, 4), st.integers(1, 4), P, P, st.integers(0, 100))
def test_mixed_norms_and_their_gradients(rows, columns, p, q, seed):
    torch.manual_seed(seed)
    W = torch.randn(rows, columns, 1, dtype=torch.float64, requires_grad=True)
    want = torch.tensor([max(abs(v) for v in row) if math.isinf(p) else sum(abs(v) ** p for v in row) ** (1 / p)
                         for row in W.detach().squeeze(2).tolist()])  # fmt: skip
    want = want.max() if math.isinf(q) else (want**q).sum() ** (1 / q)
    assert float(mixed_norms([W], (p, q)).detach()) == pytest.approx(float(want), rel=1e-6)
    assert torch.autograd.gradcheck(lambda w: mixed_norms([w], (p, q)), W)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-36, 1e-25, 1e20, 1e36])
@pytest.mark.parametrize("pq", [(2, 2), (1, 2), (3, 3), (1, math.inf)])
def test_mixed_norms_of_tiny_and_huge_weights(dtype, scale, pq):
    W = torch.full((4, 4, 1), scale, dtype=dtype, requires_grad=True)
    norm = mixed_norms([W], pq)[0]
    ones = mixed_norms([torch.ones(4, 4, 1)], pq)[0]
    assert float(norm.detach() / W.detach()[0, 0, 0].double()) == pytest.approx(float(ones))
    norm.log().backward()
    assert W.grad.isfinite().all()
    assert float((W.grad.double() * W.detach().double()).sum()) == pytest.approx(1, rel=1e-2)  # of degree 1


@pytest.mark.parametrize("form", ["product", "cnn", "log"])
@pytest.mark.parametrize(("eta", "g"), [((2, 2), (1, 1)), ((1, 2), (2, math.inf)), ((math.inf, 1), (2, 2))])
def test_gradcheck(form, eta, g):
    model = cnn()
    hooks = weissi(0.1, 0.2, form, eta, g)(model, X)
    weights = [p for p in model.parameters() if p.ndim > 1]

    def total(*new):
        for old, w in zip(weights, new, strict=True):
            old.data.copy_(w)
        return hooks.penalty(model, X, X)

    want = torch.autograd.grad(total(*(w.detach().clone() for w in weights)), weights)
    for w, grad in zip(weights, want, strict=True):
        for i in range(0, w.numel(), 3):
            flat = w.data.view(-1)
            kept = float(flat[i])
            flat[i] = kept + 1e-6
            up = float(hooks.penalty(model, X, X).detach())
            flat[i] = kept - 1e-6
            down = float(hooks.penalty(model, X, X).detach())
            flat[i] = kept
            assert (up - down) / 2e-6 == pytest.approx(float(grad.view(-1)[i]), abs=1e-7)


@examples(10)
@given(st.floats(-3, 3), st.floats(-3, 3), P, P)
def test_a_shift_moves_only_the_cnn_form(a, b, p, q):
    factors = [math.exp(a), math.exp(b), math.exp(-a - b)]
    other = (1, 1) if (p, q) != (1, 1) else (2, 2)
    model = cnn()
    hooks = [
        weissi(0.1, 0, "product", (p, q))(model, X),
        weissi(0, 0.1, "product", (p, q), other)(model, X),
        weissi(0.1, 0, "log", (p, q))(model, X),
        weissi(0.1, 0, "cnn", (p, q))(model, X),
    ]
    before = [float(h.penalty(model, X, X).detach()) for h in hooks]
    shift(model, X, factors)
    after = [float(h.penalty(model, X, X).detach()) for h in hooks]
    before[-1] /= factors[-1]
    assert after == pytest.approx(before, rel=1e-10)


def deep(n, size, dtype=torch.float32):
    layers = [nn.Linear(2, 2, bias=False) for _ in range(n)]
    for layer in layers:
        layer.weight.data.fill_(size / 2)  # Frobenius norm: size
    return nn.Sequential(*layers).to(dtype)


def test_the_product_may_overflow_on_the_way():
    model, x = deep(57, 7.25), torch.zeros(1, 2)  # 1e98: no float32
    got = penalty(model, x, energy=1e-97, complexity=0)
    assert got.dtype == torch.float32
    assert float(got.detach()) == pytest.approx(7.25**114 * 1e-97, rel=2e-7)
    got.backward()
    want = 2 * 7.25**112 * 1e-97 * model[0].weight
    assert torch.allclose(model[0].weight.grad, want, rtol=1e-6)
    model, x = deep(500, 10.0), torch.zeros(1, 2)  # 1e1000: no float64 either
    assert value(model, x, energy=0.5, complexity=0, form="log") == pytest.approx(500 * math.log(10))


def test_a_penalty_that_is_no_number_is_refused_at_binding():
    with pytest.raises(
        ModelError, match=r'energy of this network is 1e\+80, too large even times.*form="log"'
    ):
        weissi(energy=1e-6)(deep(40, 10.0), torch.zeros(1, 2))
    model = deep(2, 1.0)
    model[0].weight.data[0] = math.nan
    for form in ("product", "cnn", "log"):
        with pytest.raises(ModelError, match="a weight or its norm is NaN"):
            weissi(form=form)(model, torch.zeros(1, 2))


@pytest.mark.parametrize("form", ["product", "cnn", "log"])
@pytest.mark.parametrize("eta", [(2, 2), (1, math.inf), (math.inf, 3)])
def test_layers_of_zeros(form, eta):
    for zeros in ([0], [1], [0, 2], [0, 1, 2]):
        model = deep(3, 4.0)
        for i in zeros:
            nn.init.zeros_(model[i].weight)
        got = penalty(model, torch.zeros(1, 2), energy=0.1, complexity=0.2, form=form, eta=eta)
        got.backward()
        assert math.isfinite(float(got.detach()))
        for i in range(3):
            assert bool(model[i].weight.grad.isfinite().all())
            assert i not in zeros or not model[i].weight.grad.any()
        if form != "log":
            energy = penalty(model, torch.zeros(1, 2), energy=0.1, complexity=0, form=form, eta=eta)
            assert energy == 0


def test_zeros_where_the_product_of_the_others_is_no_number():
    huge = deep(12, 1e30)
    nn.init.zeros_(huge[7].weight)
    got = penalty(huge, torch.zeros(1, 2), energy=1.0, complexity=0, form="product")
    got.backward()
    assert got == 0
    assert all(not layer.weight.grad.any() for layer in huge)


def test_only_trained_weights_count_and_tied_ones_once():
    model = two_layers()
    model[1].weight.requires_grad_(False)
    assert value(model, X2, energy=0.1, complexity=0) == pytest.approx(2.5)
    model[1].weight.requires_grad_(True)
    model[3].weight.requires_grad_(False)  # still the last linear layer
    assert value(model, X2, energy=0.1, complexity=0, form="cnn") == pytest.approx(0.9)
    tied = deep(2, 3.0)
    tied[1].weight = tied[0].weight
    assert value(tied, torch.zeros(1, 2), energy=1.0, complexity=0) == pytest.approx(9)


def test_what_it_does_not_count_is_named_once():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ConvTranspose2d(2, 1, 2), nn.Flatten())
    with pytest.warns(UserWarning, match=r"normalization layers 1 undo.*not counted: 2\.weight$") as caught:
        penalty(model.double())
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        penalty(cnn())


def test_its_text():
    text = 'weissi(energy=0.1, complexity=1e-05, form="product", eta=(2, 2), g=(1, inf), least=0)'
    assert str(full("weissi(energy=0.1, g=(1, inf))", "regularizer")) == text
    model = two_layers()
    assert float(build(text)(model, X2).penalty(model, X2, X2)) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"energy": -1}, "energy=-1: expected a strength"),
        ({"energy": math.nan}, "energy=nan"),
        ({"energy": math.inf}, "energy=inf"),
        ({"energy": True}, "energy=True"),
        ({"complexity": -1}, "complexity=-1"),
        ({"complexity": "1"}, "complexity='1'"),
        ({"form": "sum"}, "form='sum': expected 'product', 'cnn' or 'log'"),
        ({"eta": (0.5, 2)}, r"eta=\(0.5, 2\): expected \(p, q\)"),
        ({"eta": (2, math.nan)}, "eta=.*nan"),
        ({"eta": (2, True)}, "eta=.*True"),
        ({"eta": (2,)}, "eta="),
        ({"eta": 2}, "eta=2"),
        ({"g": ("1", 1)}, "g="),
        ({"g": (2, 2)}, "always 1"),
        ({"g": (1, 1), "eta": [1, 1.0]}, "always 1"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(SpecError, match=message):
        weissi(**arguments)


def test_g_may_be_eta_where_it_is_not_used():
    assert value(two_layers(), X2, energy=1.0, complexity=0, g=(2, 2)) == pytest.approx(225)


def test_models_without_layers():
    with pytest.raises(ModelError, match="weissi finds no trainable layer"):
        penalty(nn.Flatten())
    with pytest.raises(ModelError, match="finds no linear layer"):
        penalty(nn.Sequential(nn.Conv2d(1, 1, 2)).double(), form="cnn")


def test_a_layer_counts_in_the_complexity_above_the_least_norm():
    model = two_layers()  # norms 3 and 5, complexities 5/3 and 7/5
    for least, want in ((0, 5 / 3 + 7 / 5), (2.99, 5 / 3 + 7 / 5), (3, 7 / 5), (5, 0)):
        assert value(model, X2, energy=0, complexity=1, least=least) == pytest.approx(want, rel=1e-14)
    penalty(model, X2, energy=0.1, complexity=1, least=4).backward()
    assert torch.allclose(
        model[1].weight.grad, 0.1 * 2 * 25 * model[1].weight, rtol=1e-14
    )  # the energy's alone
    with pytest.raises(SpecError, match="least=-1"):
        weissi(least=-1)


@pytest.mark.parametrize("aggregation", ["sum", "convex"])
def test_layers_that_start_at_zero_do_not_jump(aggregation):
    points = digits().limit(192).train
    images, labels = as_pixels(points.images).split(64), points.labels.split(64)

    def largest_of_them(least):
        torch.manual_seed(0)
        model = wrn(10, 1, "fixup", aggregation, (1, 8, 8))
        starts_at_zero = [w for name, w in model.named_parameters() if name.endswith("branch.conv2.weight")]
        assert not any(bool(w.detach().any()) for w in starts_at_zero)
        hooks = weissi(0, 1e-4, least=least)(model, images[0])
        optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9)
        for x, y in zip(images, labels, strict=True):
            optimizer.zero_grad()
            (F.cross_entropy(model(x), y) + hooks.penalty(model, x, y)).backward()
            optimizer.step()
        return max(float(w.detach().norm()) for w in starts_at_zero)

    with pytest.warns(UserWarning, match=r"stage1\.0\.branch\.conv2.* least=0\.1"):
        assert largest_of_them(0.0) > 10  # more than other initial weights of that shape: sqrt(2 · 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert largest_of_them(0.1) < 0.1
