"""The analyses of Jacobians, against the same by hand on a small network; their charts and their words."""

import json
import math
import warnings

import pytest
import torch
from torch import nn

from opnorm import analyses
from opnorm.analyses import (
    jacobian_spectrum,
    lipschitz_bracket,
    local_linearity,
    power_method_agreement,
    relu_cells,
    robust_radius,
    singular_alignment,
)
from opnorm.analyses.points import in_double, random_network, sample
from opnorm.attacks import pgd
from opnorm.attacks._pgd import PGD
from opnorm.certificates import lipschitz_radius
from opnorm.data import Dataset, Split
from opnorm.errors import AttackError, ModelError, OpnormError, SpecError
from opnorm.jacobian import jacobian_norm, secant_ascent
from opnorm.models import mlp
from opnorm.norms import lipschitz_bound
from opnorm.report import charts_roth
from opnorm.report.words_roth import says
from opnorm.spec import spec_of

SHAPE, POINTS = (1, 4, 4), 30
FAST = {
    "jacobian_spectrum": {},
    "singular_alignment": {},
    "local_linearity": {"distances": (0, 0.1, 1)},
    "relu_cells": {"eps": (0, 0.1, 0.5)},
    "power_method_agreement": {"eps": (1e-6, 0.1, 1), "steps": 5},
    "lipschitz_bracket": {"steps": 5},
    "robust_radius": {"steps": 5},
}


def data(n=60):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, *SHAPE), generator=generator, dtype=torch.uint8)
    split = Split(images, (images.float().flatten(1).mean(1) > 127).long())
    return Dataset("toy", split, split, ("dark", "bright"))


def network():
    torch.manual_seed(0)
    model, toy = mlp(SHAPE, 2, 12, 2, 0.5, 0.3), data()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    x = toy.train.images.float() / 255
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), toy.train.labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def rows(model):
    return {
        name: getattr(analyses, name)(points=POINTS, **extra)(model, data()) for name, extra in FAST.items()
    }


def by_hand(model):
    """The hidden layers' matrices at a point, multiplied out: φ and its Jacobian."""
    normalize, first, second = model[0], model[2], model[4]

    def phi(x):
        h = ((x.flatten(1) - 0.5) / 0.3) @ first.weight.T.to(x.dtype) + first.bias.to(x.dtype)
        k = h.relu() @ second.weight.T.to(x.dtype) + second.bias.to(x.dtype)
        masks = (k > 0).to(x.dtype)[:, :, None], (h > 0).to(x.dtype)[:, :, None]
        J = masks[0] * (second.weight.to(x.dtype) @ (masks[1] * first.weight.to(x.dtype))) / 0.3
        return k.relu().detach(), J.detach(), torch.cat([h > 0, k > 0], 1)

    assert type(normalize).__name__ == "Normalize"
    return phi


@pytest.fixture(scope="module")
def points(model):
    return sample(model, data(), POINTS, 0)


def test_the_points_are_test_points_and_belong_to_the_seed(model):
    toy = data()
    x, y = sample(model, toy, 60, 5)
    assert torch.equal(x, toy.test.images.float() / 255)
    assert torch.equal(y, toy.test.labels)
    some, other = sample(model, toy, 10, 0)[0], sample(model, toy, 10, 1)[0]
    assert not torch.equal(some, other)
    assert all((x == z).flatten(1).all(1).any() for z in some)


def test_the_spectrum(model, rows, points):
    x, y = points
    z = pgd(norm=2, eps=0.5)(model, x, y, seed=0)
    clean, attacked = rows["jacobian_spectrum"]
    for row, at, where in ((clean, "clean", x), (attacked, "attacked", z)):
        S = torch.linalg.svdvals(by_hand(model)(where)[1])
        assert row["at"] == at
        assert row["mean"] == pytest.approx(S.mean(0).tolist(), rel=1e-4, abs=1e-5)
        assert row["sem"] == pytest.approx((S.std(0) / math.sqrt(POINTS)).tolist(), rel=1e-3, abs=1e-5)
        assert (row["layer"], row["points"]) == ("6", POINTS)
    assert clean["mean"] != attacked["mean"]


def test_the_alignment(model, rows, points):
    x, y = points
    z = pgd(norm=2, eps=0.5)(model, x, y, seed=0) - x
    own, random = rows["singular_alignment"]
    Vh = torch.linalg.svd(by_hand(model)(x.double())[1], full_matrices=False).Vh
    cosine = (Vh @ nn.functional.normalize(z.double().flatten(1))[:, :, None]).squeeze(2).abs()
    assert own["mean"][:3] == pytest.approx(cosine.mean(0)[:3].tolist(), rel=1e-3)
    assert own["mean"][0] > 0.7 > 2 * random["mean"][0], "two classes: attacks go one way"
    assert own["chance"] == pytest.approx(math.sqrt(2 / (16 * math.pi)), rel=1e-5)
    assert (own["network"], random["network"]) == ("own", "random")


def test_the_random_network_is_new_and_the_same_for_a_seed(model):
    state = torch.get_rng_state()
    a, b, c = (random_network(model, seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(a[2].weight, b[2].weight)
    assert not torch.equal(a[2].weight, c[2].weight)
    assert not torch.equal(a[2].weight, model[2].weight)


def test_linearity(model, rows, points):
    x, y = points
    z = (pgd(norm=2, eps=0.5)(model, x, y, seed=0) - x).double()
    z = z / z.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    phi = by_hand(model)
    here, J, _ = phi(x.double())
    found = {(r["direction"], r["distance"]): r for r in rows["local_linearity"]}
    for t in (0, 0.1, 1):
        there, J_there, _ = phi(x.double() + t * z)
        off = (there - here - t * (J @ z.flatten(1)[:, :, None]).squeeze(2)).norm(dim=1)
        row = found["adversarial", t]
        assert row["deviation"] == pytest.approx(float(off.mean()), rel=1e-4, abs=1e-12)
        assert row["deviation_sem"] == pytest.approx(
            float(off.std()) / math.sqrt(POINTS), rel=1e-4, abs=1e-12
        )
        assert row["sigma"] == pytest.approx(float(torch.linalg.svdvals(J_there)[:, 0].mean()), rel=1e-5)
    assert found["random", 0]["sigma"] == found["adversarial", 0]["sigma"]
    assert 0 < found["random", 0.1]["deviation"] < found["random", 1]["deviation"]


def test_relu_cells(model, rows):
    found = {(r["around"], r["eps"]): r for r in rows["relu_cells"]}
    assert len(found) == 6
    for around in ("data", "noise"):
        shares = [found[around, eps]["mean"] for eps in (0, 0.1, 0.5)]
        assert shares[0] == 1
        assert 1 > shares[1] > shares[2] > 0.3
        assert found[around, 0.1]["units"] == 24
    assert found["data", 0.5]["mean"] != found["noise", 0.5]["mean"]


def test_relu_cells_by_hand():
    """One unit, on above 1/2: noise in [-ε, ε] around 0.6 (153/255) switches it off with probability (ε - 0.1) / 2ε."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.ReLU())
    model[1].weight.data = torch.eye(16)[:1]
    model[1].bias.data = torch.tensor([-0.5])
    images = torch.randint(0, 256, (4000, *SHAPE), generator=torch.Generator().manual_seed(0)).byte()
    images[:, 0, 0, 0] = 153
    split = Split(images, torch.zeros(4000).long())
    toy = Dataset("one pixel", split, split, ("a", "b"))
    small, large = relu_cells(4000, (0.09, 0.4))(model, toy)[:2]
    assert small["mean"] == 1
    assert large["mean"] == pytest.approx(1 - 0.3 / 0.8, abs=0.03)


def test_theorem_1_holds_within_a_region_and_ends_beyond(rows):
    near, middle, far = rows["power_method_agreement"]
    assert near["same_region"] == 1
    assert near["worst_inside"] > 1 - 1e-9
    assert near["slope"] == pytest.approx(1, abs=1e-6)
    assert near["cosine"] == pytest.approx(1) == near["first_cosine"]
    assert far["same_region"] < middle["same_region"] + 1e-9
    assert far["cosine"] < middle["cosine"] < 1
    assert (near["p"], near["q"], near["eps"], near["steps"]) == ("2", "2", 1e-6, 5)


@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_the_bracket_holds_the_lipschitz_constant(model, norm):
    (row,) = lipschitz_bracket(norm, points=POINTS, steps=5)(model, data())
    assert row["jacobian_mean"] <= row["jacobian"] <= row["upper"]
    assert row["secant_mean"] <= row["secant"] <= row["upper"] * (1 + 1e-6)
    assert row["secant"] > 0.9 * row["jacobian"]
    assert row["upper"] == lipschitz_bound(model, torch.zeros(1, *SHAPE), norm).value
    x = sample(model, data(), POINTS, 0)[0].double()
    double = in_double(model)
    J = torch.stack([torch.func.jacrev(lambda v: double(v[None])[0])(z).flatten(1) for z in x])
    size = [torch.linalg.matrix_norm(A.detach(), norm) for A in J]
    assert row["jacobian"] == pytest.approx(float(max(size)), rel=1e-5)
    start = jacobian_norm(double, x, norm, norm).v
    best = torch.zeros(POINTS).double()
    for v, _ in secant_ascent(double, x, start, 0.1, norm, norm, steps=5):
        slope = (double(x + 0.1 * v) - double(x)).detach().norm(norm, dim=1) / 0.1
        best = torch.maximum(best, slope)
    assert row["secant_mean"] == pytest.approx(float(best.mean()), rel=1e-3)
    assert row["secant"] == pytest.approx(float(best.max()), rel=1e-3)


@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_the_robust_radius_is_an_interval(model, points, norm):
    highest = {1: 4.0, 2: 2.0, math.inf: 0.5}[norm]
    (row,) = robust_radius(norm, highest, POINTS, 5)(model, data())
    x, y = points
    logits = model(x).double()
    margin = logits.gather(1, y[:, None]).squeeze(1) - logits.gather(1, 1 - y[:, None]).squeeze(1)
    stretch = {1: 1, 2: math.sqrt(2), math.inf: 2}[norm] * row["lipschitz"]
    assert row["certified"] == lipschitz_radius(model, x, y, norm).tolist()
    plain = (
        margin.clamp(min=0) / stretch
    ).tolist()  # without a closer look at the last layer, and without rounding
    assert all(c >= 0.99 * m - 1e-3 for c, m in zip(row["certified"], plain, strict=True))
    assert sum(row["certified"]) > 0
    assert len(row["attacked"]) == POINTS
    for low, high in zip(row["certified"], row["attacked"], strict=True):
        assert high is None or low <= high
    assert sum(d is not None for d in row["attacked"]) > POINTS / 2


def test_the_robust_radius_is_tight_for_a_linear_network():
    """f = (a·x, -a·x): the distance to the boundary is 2 |a·x - b| / ‖2a‖, and the norm of the logits is √2 ‖a‖."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    a = torch.randn(16) / 4
    model[1].weight.data, model[1].bias.data = torch.stack([-a, a]), torch.zeros(2)
    toy = data()
    (row,) = robust_radius(2, 4.0, 60, 20)(model, toy)
    x, y = toy.test.images.float().flatten(1) / 255, toy.test.labels
    distance = (x @ a) * (2 * y - 1) / a.norm()
    want = distance.clamp(min=0).tolist()
    assert row["certified"] == pytest.approx(want, rel=1e-3, abs=1e-5)  # less the rounding of the logits
    assert all(c <= w * (1 + 1e-6) for c, w in zip(row["certified"], want, strict=True))
    pairs = [(d, w) for d, w in zip(row["attacked"], want, strict=True) if d is not None]
    assert all(d >= w * (1 - 1e-5) for d, w in pairs)
    assert sum(d <= 1.2 * w + 0.02 for d, w in pairs) > 20


def test_no_bound_certifies_nothing_and_a_constant_network_everything(points):
    class Product(nn.Module):
        def forward(self, x):
            x = x.flatten(1)[:, :2]
            return x * x.flip(1)

    (row,) = robust_radius(2, 0.1, 5, 1)(Product(), data())
    assert row["lipschitz"] is None
    assert "product" in row["reason"]
    assert row["certified"] == [0] * 5
    assert "bound is not known" in says("lipschitz_bracket", lipschitz_bracket(points=5)(Product(), data()))
    constant = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    nn.init.zeros_(constant[1].weight)
    constant[1].bias.data = torch.tensor([1.0, 0.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the attack says that it is blind
        (row,) = robust_radius(2, 0.1, 60, 1)(constant, data())
    labels = data().test.labels.tolist()
    assert row["certified"] == [0 if label else 4 for label in labels], "the whole box, or nothing"
    assert row["attacked"] == [0 if label else None for label in labels]


# ---------------------------------------------------------------- what they have in common


@pytest.mark.parametrize("name", FAST)
def test_rows_are_json_repeatable_and_leave_the_model_alone(name, rows):
    model = network().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    again = getattr(analyses, name)(points=POINTS, **FAST[name])(model, data())
    assert json.loads(json.dumps(again, allow_nan=False)) == again == rows[name]
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert str(spec_of(getattr(analyses, name)(points=3))) == f"{name}(points=3)"


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("points", [0, True, 1.5])
def test_bad_numbers_of_points(name, points):
    with pytest.raises(SpecError, match="points="):
        getattr(analyses, name)(points=points)


@pytest.mark.parametrize("name", FAST)
def test_fewer_points_than_asked_for(name, model):
    with pytest.raises(SpecError, match="points=61: toy has 60 test points; ask for fewer"):
        getattr(analyses, name)(points=61)(model, data())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: local_linearity(distances=()), r"distances=\(\): expected one or more numbers from 0 on"),
        (lambda: relu_cells(eps=(0.1, math.nan)), "nan"),
        (lambda: power_method_agreement(eps=(0,)), "expected one or more numbers above 0"),
        (lambda: power_method_agreement(p=0.5), "p=0.5"),
        (lambda: power_method_agreement(steps=0), "steps=0"),
        (lambda: lipschitz_bracket(norm=3), "norm=3 is not known here"),
        (lambda: lipschitz_bracket(radius=0), "radius=0"),
        (lambda: robust_radius(norm=True), "norm=True"),
        (lambda: robust_radius(highest=2), "larger than the whole range"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(OpnormError, match=message):
        make()


def test_models_that_have_no_such_thing(model):
    with pytest.raises(ModelError, match="has no layer 'heat'"):
        jacobian_spectrum(10, layer="heat")(model, data())
    with pytest.raises(ModelError, match="no ReLU"):
        relu_cells(10)(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), data())
    with pytest.raises(AttackError, match="left 10 of 10 points where they are"):
        singular_alignment(10, attack=PGD(2, 0.5, 0, start="point"))(model, data())
    broken = network()
    nn.init.constant_(broken[-1].weight, math.nan)
    for name, extra in FAST.items():
        if name not in ("relu_cells",):
            with pytest.raises(OpnormError, match="NaN or infinity"):
                getattr(analyses, name)(points=10, **extra)(broken, data())


def test_batch_norm_in_train_mode_is_evaluated():
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)]
    model = nn.Sequential(*layers).train()
    for name, extra in FAST.items():
        getattr(analyses, name)(points=5, **extra)(model, data())
    assert model[2].training
    assert model[2].num_batches_tracked == 0


# ---------------------------------------------------------------- charts and words


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("case", ["two methods, two seeds", "one row", "nothing"])
def test_charts(name, case, rows, capfd):
    vl_convert = pytest.importorskip("vl_convert")
    every = [{"method": m, "seed": s} | r for m in ("plain", "b") for s in (0, 1) for r in rows[name]]
    chart = getattr(charts_roth, name)(
        {"nothing": [], "one row": every[-1:]}.get(case, every), ["plain", "b"]
    )
    assert chart.empty == (case == "nothing")
    json.dumps(chart.spec, allow_nan=False)
    assert chart.caption
    if case != "nothing":
        vl_convert.vegalite_to_vega(chart.spec, show_warnings=True)
        said = "".join(capfd.readouterr())
        assert "WARN" not in said, said


def test_a_chart_shows_means_over_seeds():
    rows = [
        {"method": "plain", "seed": s, "around": "data", "eps": e, "mean": share, "sem": 0.0}
        for s, shares in enumerate(([1.0, 0.5], [1.0, 0.7]))
        for e, share in zip((0, 0.1), shares, strict=True)
    ]
    values = charts_roth.relu_cells(rows, []).spec["data"]["values"]
    assert [(v["x"], v["value"]) for v in values] == [(0, 1.0), (0.1, 0.6)]
    assert values[1]["text"] == "60.0 ± 14.1 % (2 seeds)"


def test_the_shares_that_stand():
    row = {"norm": "2", "highest": 3.0, "certified": [0.0, 1.0], "attacked": [2.0, None]}
    values = charts_roth.robust_radius([row | {"method": "plain", "seed": 0}], []).spec["data"]["values"]
    at = {(v["panel"], v["x"]): v["value"] for v in values}
    assert [at["certified 2", e] for e in (0, 0.9, 1.0, 3.0)] == [0.5, 0.5, 0, 0]
    assert [at["attacked 2", e] for e in (0, 1.9, 2.0, 3.0)] == [1, 1, 0.5, 0.5]


def test_words(rows):
    for name in FAST:
        text = says(name, rows[name])
        assert text.endswith(".")
        assert "nan" not in text
    agreement = [
        {"eps": e, "cosine": c, "same_region": s} for e, c, s in ((0.1, 1, 0.9), (0.2, 0.8, 0.2), (0.3, 1, 0))
    ]
    assert "(cosine 0.9 or more) up to ε = 0.1; most ascents stay in one linear region up to ε = 0.1" in says(
        "power_method_agreement", agreement
    )
    radius = {"norm": "inf", "highest": 0.3, "certified": [0.0, 0.1, 0.2], "attacked": [0.2, None, None]}
    assert says("robust_radius", [radius]) == (
        "In ℓ∞ half of the images are proven to stand changes of 0.1, and half are not fooled up to 0.3."
    )
    for name, some in (("accuracy", rows["relu_cells"]), ("relu_cells", [])):
        with pytest.raises(OpnormError, match="no words for"):
            says(name, some)
