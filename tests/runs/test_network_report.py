"""The page of a network or of several: every analysis has its place, results are kept, what is wrong is said."""

import json
import math
import re

import pytest
import torch
from torch import nn

from opnorm import analyses, spec
from opnorm.data import Dataset, Split
from opnorm.errors import ModelError, OpnormError, SpecError
from opnorm.models import mlp
from opnorm.report.charts_predictions import input_gradients, margins, predictions
from opnorm.report.charts_weights import kde, norm_density
from opnorm.report.shown import SHOWN
from opnorm.report.vega import INK
from opnorm.report.words import log10_complexity, spread_changes, typical_norm
from opnorm.runs.network_report import Subject, as_dict, calls, look, report, write
from opnorm.runs.store import Store

SHAPE = (1, 4, 4)
CHEAP = ("accuracy", "generalization_gap", "norm_table", "singular_spread", "weight_energy", "margins")


def data(n=30):
    images = torch.randint(0, 256, (n, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = Split(images, torch.arange(n) % 2)
    return Dataset("toy", split, split, ("a", "b"))


def network(seed=0):
    torch.manual_seed(seed)
    return mlp(SHAPE, 2, 6, 1, 0.5, 0.3).eval()


@pytest.fixture
def two():
    return [Subject("first", network(0), "mlp()"), Subject("second", network(1))]


def test_every_analysis_has_its_words_and_its_place():
    assert set(SHOWN) == set(analyses.__all__)


def test_all_is_every_analysis_with_points_and_seed_filled_in():
    texts = calls(["all"], points=7, seed=3)
    assert {spec.parse(t).name for t in texts} == set(analyses.__all__)
    assert all(spec.parse(t) == spec.short(t, "analysis") for t in texts)
    full = [dict(spec.full(t, "analysis").kwargs) for t in texts]
    assert all(c.get("points", 7) == 7 and c.get("seed", 3) == 3 for c in full)
    assert calls(["robust_accuracy(points=5)"], points=7) == ["robust_accuracy(points=5)"]
    assert calls(["margins", "accuracy", "margins()"]) == ["accuracy()", "margins()"]


def test_what_attacks_or_iterates_takes_a_modest_number_of_points():
    defaults = {n: dict(spec.full(n, "analysis").kwargs) for n in analyses.__all__}
    many = {n for n, settings in defaults.items() if settings.get("points", 0) is None}
    assert many == {"input_gradients"}, "one gradient at each"
    for name, settings in defaults.items():
        if "steps" in settings or "version" in settings or "attack" in settings:
            assert settings["points"] <= 500
            assert "points" in getattr(analyses, name).__doc__


def test_the_page_says_how_many_points_were_used(two, tmp_path):
    texts = calls(["accuracy", "margins('train')", "margins", "wen_robust_accuracy(points=7)", "norm_table"])
    settings = report(look(two[:1], data(), texts, Store(tmp_path))).settings
    assert settings["points"] == "30 in accuracy, margins (training), margins; 7 in wen_robust_accuracy"


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ((), "no analysis was named"),
        (("norm_tabel",), "norm_table"),
        (("loss_variation(steps=3)", "loss_variation(steps=4)"), "loss_variation is asked for twice"),
        (("robust_radius(points=0)",), "at least 1"),
    ],
)
def test_what_cannot_be_asked(what, says):
    with pytest.raises(OpnormError, match=says):
        calls(what)


def test_two_networks_on_one_page(two, tmp_path):
    store = Store(tmp_path)
    news = []
    looks = look(two, data(), calls(CHEAP), store, tell=news.append)
    page = write(looks, store)
    made = report(looks)
    assert [chart.key for chart in made.charts] == [
        "generalization-gap", "layer-norms", "norm-density", "singular-spread", "weight-energy", "margins",
    ]  # fmt: skip
    for chart in made.charts:
        assert {row["method"] for row in chart.spec["data"]["values"]} == {"first", "second"}, chart.key
    colors = [
        {look["method"]: look["color"] for look in chart.spec["vconcat"][1]["data"]["values"]}
        for chart in made.charts
    ]
    assert all(c == colors[0] for c in colors)
    assert len(set(colors[0].values())) == 2
    assert colors[0]["first"] == INK
    assert [row["method"] for row in made.table.rows] == ["first", "second"]
    assert len(news) == 2 * len(two) * len(CHEAP)
    assert [n.at for n in news[::2]] == list(range(len(two) * len(CHEAP)))
    said = json.loads((page.parent / "analyses.json").read_text())
    assert said == json.loads(json.dumps(as_dict(looks)))
    assert said["first"]["analyses"]["accuracy()"][0]["points"] == 30
    assert (page.parent / "report.json").exists()
    assert "side by side" in page.read_text()


def test_one_network_is_described_in_words(two, tmp_path):
    made = report(look(two[:1], data(), calls(CHEAP), Store(tmp_path)))
    assert len(made.findings) == len(CHEAP)
    assert all(re.search(r"\d", line) for line in made.findings)


def test_results_are_found_again_and_belong_to_the_weights(two, tmp_path):
    store, texts = Store(tmp_path), calls(["accuracy"])
    first = look(two[:1], data(), texts, store)[0]
    news = []
    again = look(two[:1], data(), texts + calls(["margins"]), store, tell=news.append)[0]
    assert again.key == first.key
    assert again.rows["accuracy()"] == first.rows["accuracy()"]
    assert [n.found for n in news if n.seconds is not None] == [True, False]
    assert look(two[:1], data(29), texts, store)[0].key != first.key
    with torch.no_grad():
        next(two[0].model.parameters()).add_(1)
    assert look(two[:1], data(), texts, store)[0].key != first.key


def test_what_was_made_before_a_stop_is_kept(two, tmp_path):
    store, texts = Store(tmp_path), calls(["accuracy", "margins"])

    def stop(step):
        if step.at == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look(two[:1], data(), texts, store, tell=stop)
    news = []
    look(two[:1], data(), texts, store, tell=news.append)
    assert [n.found for n in news if n.seconds is not None] == [True, False]


def test_an_analysis_that_is_not_possible_hides_no_other(tmp_path):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    (found,) = look(
        [Subject("linear", linear)], data(), calls(["accuracy", "relu_cells"], points=5), Store(tmp_path)
    )
    assert list(found.rows) == ["accuracy()"]
    assert list(found.failures) == ["relu_cells(points=5)"]
    assert any("Not possible for linear: relu_cells" in line for line in report([found]).findings)
    with pytest.raises(OpnormError, match="no analysis was possible"):
        look([Subject("linear", linear)], data(), calls(["relu_cells"], points=5), Store(tmp_path))


def test_what_is_wrong_with_the_networks_is_said(two, tmp_path):
    store, texts = Store(tmp_path), calls(["accuracy"])
    with pytest.raises(ModelError, match="second is in train mode"):
        look([two[0], Subject("second", network().train())], data(), texts, store)
    with pytest.raises(SpecError, match="different names"):
        look([two[0], two[0]], data(), texts, store)
    with pytest.raises(ModelError, match="one logit for each"):
        look([Subject("one", nn.Sequential(nn.Flatten(), nn.Linear(16, 1)).eval())], data(), texts, store)
    with pytest.raises(SpecError, match="200 test points and toy has 30; ask for fewer"):
        look(two, data(), calls(["jacobian_spectrum(points=200)"]), store)
    assert not list(tmp_path.glob("*.partial")), "all is checked before anything is begun"


# ---------------------------------------------------------------- charts and words


def of(method, rows):
    return [{**row, "method": method, "seed": 0} for row in rows]


def norm_rows(values, kind="Conv2d"):
    return [
        {"layer": f"l{i}", "kind": kind, "norms": {"2": {"lower": v, "upper": 2 * v}}}
        for i, v in enumerate(values)
    ]


def test_density_is_a_gaussian_mixture_of_mass_one():
    values = [0.0, 0.3, 2.0]
    grid = [-5 + 0.01 * k for k in range(1201)]
    density = kde(values, grid, 0.4)
    assert 0.01 * math.fsum(density) == pytest.approx(1, abs=1e-6)
    normal = torch.distributions.Normal(torch.tensor(values, dtype=torch.float64), 0.4)
    expected = normal.log_prob(torch.tensor(grid, dtype=torch.float64)[:, None]).exp().mean(1)
    assert density == pytest.approx(expected.tolist())


def test_density_chart_has_the_mass_and_the_layers():
    chart = norm_density(
        [*of("a", norm_rows([1, 10, 100])), *of("b", norm_rows([5]))], ["a", "b"], baseline="a"
    )
    values = chart.spec["data"]["values"]
    assert [v["rug"] for v in values if v["method"] == "a" and "rug" in v] == [1, 10, 100]
    for method in "ab":
        line = [
            (math.log10(v["norm"]), v["density"]) for v in values if v["method"] == method and "density" in v
        ]
        step = (line[-1][0] - line[0][0]) / (len(line) - 1)
        assert step * math.fsum(y for _, y in line) == pytest.approx(1, abs=0.01)
    assert norm_density(of("a", norm_rows([0.0])), ["a"]).empty, "a norm of 0 has no logarithm"


def test_norms_in_words():
    rows = [*norm_rows([1, 100]), *norm_rows([7], kind="ReLU")]
    assert typical_norm(rows, "2") == pytest.approx(10)
    assert typical_norm(rows, "1") is None
    assert log10_complexity(rows) == pytest.approx(math.log10(400))
    rows[0]["norms"]["2"]["upper"] = None
    assert log10_complexity(rows) is None


def test_changes_of_the_spread_by_hand():
    def rows(stds, error=0.0):
        return [{"layer": name, "std": std, "error": error} for name, std in stds.items()]

    before = [*rows({"a": 1.0, "b": 2.0, "c": 3.0}), {"layer": "d", "note": "not known"}]
    found = spread_changes(before, rows({"a": 1.5, "b": 1.0, "c": 3.0, "e": 9.0}))
    assert (found.up, found.down, found.layers) == ([0.5], [1.0], 3)
    within = spread_changes(before, rows({"a": 1.5, "b": 1.0, "c": 3.0}, error=0.7))
    assert (within.up, within.down, within.layers) == ([], [1.0], 3), "errors may make up a difference"


def shares(chart, panel, method):
    return {
        v["x"]: v["value"]
        for v in chart.spec["data"]["values"]
        if (v["panel"], v["method"]) == (panel, method)
    }


def test_histograms_share_their_bins_and_count_every_image():
    rows = [
        *of("a", [{"split": "test", "margins": [float(v) for v in range(-10, 40)]}]),
        *of("a", [{"split": "train", "margins": [1.0] * 50}]),
        *of("b", [{"split": "test", "margins": [5.0] * 49 + [1e6]}]),
    ]
    chart = margins(rows, ["a", "b"])
    found = [shares(chart, *key) for key in (("test", "a"), ("train", "a"), ("test", "b"))]
    assert found[0].keys() == found[1].keys() == found[2].keys()
    assert all(math.fsum(f.values()) == pytest.approx(1, abs=1e-3) for f in found)
    gradients = of("a", [{"lengths": [0.0, 1e-3, 1.0, 1.0], "bounds": None}])
    lengths = shares(input_gradients(gradients, ["a"]), "lengths", "a")
    assert lengths[min(lengths)] == 0.5, "0 stands in the first bin"


def test_probabilities_are_binned_between_0_and_1():
    rows = of(
        "a", [{"split": "test", "probabilities": [0.0, 0.5, 1.0, 1.0], "losses": [700.0, 0.7, 0.0, 0.0]}]
    )
    found = shares(predictions(rows, ["a"]), "probability test", "a")
    assert all(0 < x < 1 for x in found)
    assert found[max(found)] == 0.5


@pytest.mark.parametrize("attack", ["PGD-20, 1 start", "APGD-CE, APGD-T", "AutoAttack standard"])
def test_a_column_of_robust_accuracy_names_its_attack(attack):
    row = {"norm": "inf", "eps": 0.1, "accuracy": 0.6, "correct": 6, "points": 10, "attack": attack}
    ((column, cell),) = SHOWN["robust_accuracy"].cells([row])
    assert column.label in {"PGD ℓ∞ 0.1", "APGD ℓ∞ 0.1", "AutoAttack ℓ∞ 0.1"}
    assert attack.startswith(column.label.split()[0])
    assert attack in column.help
    assert cell == 0.6
