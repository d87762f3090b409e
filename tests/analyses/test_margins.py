"""Margins and their histogram, against the same by hand."""

import math
import re

import pytest
from torch import nn

from opnorm.analyses import accuracy, margins, predictions
from opnorm.report import Report, write_figures
from tests.analyses.toys import data, pixels, trained

NETWORK = trained


def test_margins_features_by_hand(model):
    toy = data()
    x, y = pixels(toy.test)
    logits = model(x).tolist()
    want = [z[c] - max(v for i, v in enumerate(z) if i != c) for z, c in zip(logits, y.tolist(), strict=True)]
    (row,) = margins()(model, toy)
    assert row["points"] == 700
    assert row["margins"] == pytest.approx(want, rel=1e-4, abs=1e-5)
    (accuracy_row,) = accuracy()(model, toy)
    assert sum(m > 0 for m in row["margins"]) == accuracy_row["correct"]
    assert len(margins("train")(model, toy)[0]["margins"]) == 50


@pytest.mark.parametrize("analysis", [margins(), predictions()])
def test_outputs_that_are_probabilities_are_named(model, analysis):
    logits, softmax = (analysis(net, data()) for net in (model, nn.Sequential(model, nn.Softmax(1)).eval()))
    assert (logits[0]["outputs"], softmax[0]["outputs"]) == ("logits", "probabilities")
    assert analysis.caution(logits) == ""
    assert analysis.caution(softmax).startswith("its outputs are probabilities, not logits")


def test_probabilities_need_no_second_softmax(model):
    softmax = nn.Sequential(model, nn.Softmax(1)).eval()
    (of_logits,), (of_softmax,) = (predictions()(net, data()) for net in (model, softmax))
    assert of_softmax["probabilities"] == pytest.approx(of_logits["probabilities"], rel=1e-4, abs=1e-6)
    assert of_softmax["losses"] == pytest.approx(of_logits["losses"], rel=1e-3, abs=1e-5)


def shares(chart, panel, method):
    return {
        v["x"]: v["value"]
        for v in chart.spec["datasets"]["rows"]
        if (v["panel"], v["method"]) == (panel, method)
    }


def test_histograms_share_bins_with_an_edge_at_zero_and_count_every_image():
    rows = [
        {"method": "a", "split": "test", "margins": [float(v) for v in range(-10, 40)]},
        {"method": "a", "split": "train", "margins": [1.0] * 50},
        {"method": "b", "split": "test", "margins": [5.0] * 49 + [1e6]},
    ]
    chart = margins().chart(rows, ["a", "b"])
    found = [shares(chart, *key) for key in (("test", "a"), ("train", "a"), ("test", "b"))]
    assert found[0].keys() == found[1].keys() == found[2].keys()
    assert all(math.fsum(f.values()) == pytest.approx(1, abs=1e-3) for f in found)
    assert math.fsum(y for x, y in found[0].items() if x < 0) == pytest.approx(10 / 50, abs=1e-3)
    notes = {v["note"] for v in chart.spec["datasets"]["rows"] if v["method"] == "a" and v["panel"] == "test"}
    assert notes == {"20.0%"}


def test_the_word_beside_zero_stands_within_the_chart(tmp_path):
    rows = [
        {"method": "plain", "split": "test", "points": 30, "margins": [-0.4, *(i / 4 for i in range(29))]}
    ]
    (svg,) = write_figures(Report("t", "q?", charts=[margins().chart(rows)]), tmp_path)
    word = r'text-anchor="start" transform="translate\(([\d.]+),[^>]*>[^<]*misclassified<'
    assert re.search(word, svg.read_text(encoding="utf-8")), (
        "it begins right of zero, away from the labels of the axis"
    )
