"""The norm table is that of opnorm.measure; its sentence, columns and chart."""

import math

import pytest
from torch import nn

from opnorm.analyses import norm_table
from opnorm.models import mlp
from opnorm.norms import measure
from tests.analyses.toys import data, pixels, trained

NETWORK = trained


def test_norm_table_is_measure(model):
    toy = data()
    rows = norm_table()(model, toy)
    assert rows == [r.as_dict() for r in measure(model, pixels(toy.test)[0][:1]).rows]
    assert all(set(r["norms"]) == {"1"} for r in norm_table((1,))(model, toy) if r["kind"] == "Linear")


def test_the_norms_of_a_model_of_nan_are_notes():
    model = mlp((1, 4, 4), 3, 4, 1)
    nn.init.constant_(model[-1].weight, math.nan)
    rows = norm_table()(model, data())
    assert rows[-1]["norms"] == {}
    assert "NaN" in rows[-1]["note"]
    assert rows[0]["norms"]


def norm_rows(values, kind="Conv2d", method="a"):
    return [
        {
            "layer": f"l{i}",
            "kind": kind,
            "norms": {"2": {"lower": v, "upper": 2 * v}},
            "method": method,
            "seed": 0,
        }
        for i, v in enumerate(values)
    ]


def test_typical_norm_and_complexity_by_hand():
    rows = [*norm_rows([1, 100]), *norm_rows([7], kind="ReLU")]
    cells = {column.key: cell for column, cell in norm_table().columns(rows)}
    assert cells == {"norm_2": pytest.approx(10), "complexity": pytest.approx(math.log10(400))}
    assert norm_table().sentence(rows).startswith("The typical norm of a layer is 10 (ℓ₂).")
    rows[0]["norms"]["2"]["upper"] = None
    assert {c.key: cell for c, cell in norm_table().columns(rows)}["complexity"] is None
    assert "×5 (ℓ₂) those of a" in norm_table().compare(rows, norm_rows([50, 50]), "a", "b")


def test_the_density_has_mass_one_and_marks_every_layer():
    values = (
        norm_table().chart([*norm_rows([1, 10, 100]), *norm_rows([5], method="b")]).spec["datasets"]["rows"]
    )
    assert [v["x"] for v in values if v["method"] == "a" and "rug" in v] == [1, 10, 100]
    for method in "ab":
        own = [v for v in values if v["method"] == method and v["panel"] == "density 2" and "rug" not in v]
        line = sorted((math.log10(v["x"]), v["value"]) for v in own)
        step = (line[-1][0] - line[0][0]) / (len(line) - 1)
        assert step * math.fsum(y for _, y in line) == pytest.approx(1, abs=0.01)
    mean = [math.log10(v["x"]) * v["value"] for v in values if v["panel"] == "density 2" and "value" in v]
    assert mean
    assert norm_table().chart(norm_rows([0.0])).empty, "a norm of 0 has no logarithm"


def test_the_density_counts_batch_norm_and_the_typical_norm_does_not():
    rows = [*norm_rows([1, 4]), *norm_rows([9], kind="BatchNorm2d"), *norm_rows([7], kind="ReLU")]
    for batch_norm, marked in ((True, [1, 4, 9]), (False, [1, 4])):
        values = norm_table(batch_norm=batch_norm).chart(rows).spec["datasets"]["rows"]
        assert [v["x"] for v in values if "rug" in v] == marked
        assert [v["value"] for v in values if v["panel"] == "2"] == [1, 4]
    assert {c.key: cell for c, cell in norm_table().columns(rows)}["norm_2"] == pytest.approx(2)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).eval()
    drawn = norm_table((1,)).chart(norm_table((1,))(net, data())).spec["datasets"]["rows"]
    assert sum("rug" in v for v in drawn) == 3


def test_layers_are_in_the_order_of_the_network():
    rows = norm_rows([1, 2, 3, 4])
    for row, name in zip(rows, ["z", "b10", "b9", "a"], strict=True):
        row["layer"] = name
    panel = norm_table().chart(rows).spec["vconcat"][0]["concat"][0]
    assert panel["layer"][0]["encoding"]["x"]["sort"] == [f"{n} Conv2d" for n in ("z", "b10", "b9", "a")]
