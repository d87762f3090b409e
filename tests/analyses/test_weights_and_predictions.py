"""Spread of singular values, weight energy, gaps, probabilities and input gradients, against the same by hand."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opnorm._core.linear_map import linear_map
from opnorm.analyses import generalization_gap, input_gradients, predictions, singular_spread, weight_energy
from opnorm.data import Dataset, Split
from opnorm.errors import ModelError, SpecError
from opnorm.models import cnn, mlp
from opnorm.theory import input_gradient_bound

SHAPE = (1, 4, 4)


def data(train=40, test=30, classes=3):
    generator = torch.Generator().manual_seed(0)

    def split(n):
        images = torch.randint(0, 256, (n, *SHAPE), generator=generator, dtype=torch.uint8)
        return Split(images, torch.arange(n) % classes)

    return Dataset("toy", split(train), split(test), tuple("abc"[:classes]))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = mlp(SHAPE, 3, 12, 2, 0.5, 0.3)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(2)
    return made.eval()


def pixels(split):
    return split.images.float() / 255, split.labels


def test_singular_spread_is_that_of_the_matrices():
    torch.manual_seed(1)
    net = cnn(in_shape=SHAPE, classes=3, width=2).eval()
    rows = singular_spread()(net, data())
    modules = dict(net.named_modules())
    assert len(rows) == sum(isinstance(m, nn.Linear | nn.Conv2d) for m in net.modules())
    for row in rows:
        matrix = linear_map(modules[row["layer"]], tuple(row["in_shape"])).to_dense()
        values = torch.linalg.svdvals(matrix)
        assert row["std"] == pytest.approx(float(values.std(correction=0)), rel=1e-9)
        assert row["largest"] == pytest.approx(float(values.max()), rel=1e-9)
        assert (row["count"], row["error"], row["note"]) == (min(matrix.shape), 0, "")


def test_a_layer_of_unknown_singular_values_hides_no_other():
    net = nn.Sequential(nn.Conv2d(1, 130, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(130 * 61 * 61, 3))
    wide = Dataset(
        "wide", *(Split(torch.zeros(3, 1, 60, 60, dtype=torch.uint8), torch.arange(3)),) * 2, ("a", "b", "c")
    )
    unknown, known = singular_spread()(net, wide)
    assert "not known" in unknown["note"]
    assert "std" not in unknown
    assert known["std"] > 0
    assert known["note"] == ""


def test_weight_energy_by_hand(model):
    (row,) = weight_energy()(model, data())
    weights = [m.weight.detach().double() for m in model.modules() if isinstance(m, nn.Linear)]
    energy = math.prod(float(w.square().sum()) for w in weights)
    assert 10 ** row["log10_energy"] == pytest.approx(energy, rel=1e-9)
    assert row["complexity"] == pytest.approx(sum(float(w.abs().sum() / w.norm()) for w in weights), rel=1e-9)
    assert row["complexity"] == pytest.approx(sum(row["complexities"]))
    assert row["sizes"] == pytest.approx([float(w.norm()) for w in weights])


def test_energy_and_complexity_stay_when_scale_is_shifted(model):
    import copy

    shifted = copy.deepcopy(model)
    linears = [m for m in shifted.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        linears[0].weight.mul_(8)
        linears[1].weight.div_(8)
    (a,), (b,) = weight_energy()(model, data()), weight_energy()(shifted, data())
    assert a["sizes"] != b["sizes"]
    assert a["log10_energy"] == pytest.approx(b["log10_energy"])
    assert a["complexity"] == pytest.approx(b["complexity"])


def test_a_weight_of_zeros_has_no_energy_and_tied_weights_count_once():
    first = nn.Linear(16, 16)
    tied = nn.Sequential(nn.Flatten(), first, nn.ReLU(), first, nn.Linear(16, 3))
    (row,) = weight_energy()(tied, data())
    assert row["layers"] == ["1", "4"]
    nn.init.zeros_(tied[4].weight)
    (row,) = weight_energy()(tied, data())
    assert row["log10_energy"] is None
    assert row["complexities"][1] == 0


@pytest.mark.parametrize("analysis", [singular_spread, weight_energy])
def test_a_network_without_weights_is_refused(analysis):
    with pytest.raises(ModelError, match="no linear or convolutional layer"):
        analysis()(nn.Flatten(), data())


def test_gaps_by_hand(model):
    toy = data()
    (row,) = generalization_gap()(model, toy)
    for name in ("train", "test"):
        x, y = pixels(getattr(toy, name))
        logits = model(x).detach().double()
        assert row[f"{name}_loss"] == pytest.approx(float(F.cross_entropy(logits, y)))
        assert row[f"{name}_error"] == pytest.approx(float((logits.argmax(1) != y).double().mean()))
        assert row[f"{name}_points"] == len(y)
    assert row["loss_gap"] == pytest.approx(row["test_loss"] - row["train_loss"])
    assert row["error_gap"] == pytest.approx(row["test_error"] - row["train_error"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_predictions_by_hand(model, split):
    toy = data()
    (row,) = predictions(split)(model, toy)
    x, y = pixels(getattr(toy, split))
    p = model(x).double().softmax(1)[torch.arange(len(y)), y]
    assert row["probabilities"] == pytest.approx(p.tolist(), rel=1e-4)
    assert row["losses"] == pytest.approx((-p.log()).tolist(), rel=1e-4)
    with pytest.raises(SpecError, match="'train' or 'test'"):
        predictions("all")


def test_input_gradients_by_hand_and_within_their_bounds(model):
    toy = data()
    (row,) = input_gradients(points=20)(model, toy)
    x, y = (t[:20] for t in pixels(toy.test))
    for i in range(20):
        z = x[i : i + 1].clone().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(z), y[i : i + 1]), z)
        assert row["lengths"][i] == pytest.approx(float(g.norm()), rel=1e-4)
    assert row["bounds"] == pytest.approx(input_gradient_bound(model, x, y).loss.tolist(), rel=1e-4)
    assert all(g <= b for g, b in zip(row["lengths"], row["bounds"], strict=True))
    assert (row["points"], row["reason"]) == (20, "")
    assert all(p.grad is None for p in model.parameters())


def test_gradients_without_a_known_bound_say_why():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.Linear(16, 3)

        def forward(self, x):
            return self.inside(x.flatten(1))

    (row,) = input_gradients()(Own().eval(), data())
    assert row["bounds"] is None
    assert "Own" in row["reason"]
    assert len(row["lengths"]) == 30


@pytest.mark.parametrize("points", [0, -1, True, 1.5])
def test_points_are_a_whole_number(points):
    with pytest.raises(SpecError, match="at least 1"):
        input_gradients(points=points)


def test_rows_are_ready_for_json(model):
    for make in (singular_spread, weight_energy, generalization_gap, predictions, input_gradients):
        json.dumps(make()(model, data()), allow_nan=False)
