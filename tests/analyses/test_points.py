"""Samples of points, settings, and errors that analyses have in common."""

import math

import pytest
import torch
from torch import nn

from opnorm import analyses, spec
from opnorm.analyses import jacobian_spectrum, relu_cells, singular_alignment
from opnorm.data import Dataset, Split
from opnorm.errors import AttackError, ModelError, OpnormError, SpecError
from tests.analyses.toys import data, sampled, trained, two_class_network, two_classes

NETWORK = two_class_network
AT_POINTS = {
    "jacobian_spectrum": {},
    "singular_alignment": {},
    "local_linearity": {"distances": (0, 0.1)},
    "relu_cells": {"eps": (0, 0.1)},
    "power_method_agreement": {"eps": (1e-6, 1), "steps": 2},
    "lipschitz_bracket": {"steps": 2},
    "robust_radius": {"steps": 2},
}


def make(name, **settings):
    return getattr(analyses, name)(**settings, **AT_POINTS[name])


def test_the_points_belong_to_the_seed(model):
    first, again, other = (
        make("jacobian_spectrum", points=5, seed=s)(model, two_classes()) for s in (0, 0, 1)
    )
    assert first == again != other
    x, y = sampled(5)
    images = (255 * x).round().byte()
    alone = Dataset("few", Split(images, y), Split(images, y), ("dark", "bright"))
    assert make("jacobian_spectrum", points=5)(model, alone)[0]["mean"] == first[0]["mean"], (
        "random test points"
    )


def test_the_random_network_belongs_to_the_seed(model):
    own = [singular_alignment(5, seed=s)(model, two_classes())[1]["mean"] for s in (0, 0, 1)]
    assert own[0] == own[1] != own[2]


@pytest.mark.parametrize("name", AT_POINTS)
def test_fewer_points_than_asked_for(name, model):
    with pytest.raises(SpecError, match="points=61: toy has 60 test points; ask for fewer"):
        make(name, points=61)(model, two_classes())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("accuracy('validation')", "split='validation': expected 'train' or 'test'"),
        ("margins('x')", "split='x'"),
        ("predictions('x')", "split='x'"),
        ("robust_accuracy(eps=())", "expected one or more numbers"),
        ("robust_accuracy(attack='bim')", "attack='bim': expected 'pgd', 'apgd' or 'autoattack'"),
        ("autoattack_accuracy(eps=2)", "expected|did you mean"),
        ("autoattack_accuracy(version='odd')", "expected"),
        ("wen_robust_accuracy(eps=-1)", "expected"),
        ("loss_variation(eps=())", "expected one or more numbers"),
        ("liu_robust_accuracy(fgsm_eps=(-0.1,))", "expected"),
        ("liu_robust_accuracy(pgd_eps='x')", "expected"),
        ("robustness_curve(eps=(0,))", "expected a radius above 0"),
        ("robustness_curve(halvings=-1)", "halvings=-1: expected a whole number, at least 0"),
        ("robustness_curve(norm=0.5)", "expected"),
        ("local_linearity(distances=())", r"distances=\(\): expected one or more numbers from 0 on"),
        ("power_method_agreement(eps=(0,))", "expected one or more numbers above 0"),
        ("power_method_agreement(p=0.5)", "p=0.5"),
        ("power_method_agreement(steps=0)", "steps=0"),
        ("lipschitz_bracket(norm=3)", "norm=3: expected 1, 2 or inf"),
        ("lipschitz_bracket(radius=0)", "radius=0"),
        ("robust_radius(norm=True)", "norm=True"),
        ("robust_radius(highest=2)", "larger than the whole range"),
    ],
)
def test_settings_that_make_no_sense(call, message):
    with pytest.raises(OpnormError, match=message):
        spec.build(call, "analysis")


def test_nan_is_no_radius():
    with pytest.raises(SpecError, match="nan"):
        relu_cells(eps=(0.1, math.nan))


def test_networks_without_the_layer_or_the_unit(model):
    with pytest.raises(ModelError, match="has no layer 'heat'"):
        jacobian_spectrum(10, layer="heat")(model, two_classes())
    with pytest.raises(ModelError, match="no ReLU"):
        relu_cells(10)(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), two_classes())


def test_an_attack_that_moves_nothing(model):
    def still(model, x, y, **settings):
        return x

    with pytest.raises(AttackError, match="left 10 of 10 points where they are"):
        singular_alignment(10, attack=still)(model, two_classes())


@pytest.mark.parametrize("name", sorted(AT_POINTS.keys() - {"relu_cells"}))
def test_a_network_of_nan_is_an_error(name):
    broken = two_class_network()
    nn.init.constant_(broken[-1].weight, math.nan)
    with pytest.raises(OpnormError, match="NaN or infinity"):
        make(name, points=10)(broken, two_classes())


@pytest.mark.parametrize("name", AT_POINTS)
def test_batch_norm_in_train_mode_is_evaluated(name):
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)]
    model = nn.Sequential(*layers).train()
    make(name, points=5)(model, two_classes())
    assert model[2].training
    assert model[2].num_batches_tracked == 0


def test_logits_of_all_points_batch_by_batch():
    model, toy = trained().train(), data()
    found = list(analyses.logits_of(model, toy.test))
    x, y, logits = (torch.cat(parts) for parts in zip(*found, strict=True))
    assert len(found) > 1
    assert torch.equal(x, toy.test.images.float() / 255)
    assert torch.equal(y, toy.test.labels)
    assert torch.allclose(logits, model.eval()(x), atol=1e-6)
    assert not logits.requires_grad
    doubled = next(analyses.logits_of(model.double(), toy.test))
    assert [t.dtype for t in doubled] == [torch.float64, torch.int64, torch.float64]
    with pytest.raises(OpnormError, match="expected logits"):
        next(analyses.logits_of(nn.Identity(), toy.test))


def test_no_number_of_points_is_all_of_them(model):
    (row,) = make("lipschitz_bracket", points=None)(model, two_classes())
    assert row["points"] == 60


def test_an_analysis_without_a_display_is_its_rows():
    bare = analyses.Analysis(lambda model, data: [{"a": 1}])
    rows = bare(trained(), two_classes())
    assert rows == [{"a": 1}]
    assert (
        bare.sentence(rows),
        bare.columns(rows),
        bare.chart(rows),
        bare.compare(rows, rows, "a", "b"),
    ) == ("", [], None, "")
