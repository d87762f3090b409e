"""The page of a network or of several: every analysis has its place, results are kept, errors are explained."""

import json
import re

import pytest
import torch
from torch import nn

from opnorm import spec
from opnorm.analyses import all_analyses, margins
from opnorm.data import Dataset, Split
from opnorm.errors import AttackError, ModelError, OpnormError, SpecError
from opnorm.models import mlp
from opnorm.report.theme import INK
from opnorm.runs.network_report import Network, analysis_calls, analyze
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
    return [Network("first", network(0), "mlp()"), Network("second", network(1))]


def test_all_is_every_analysis_with_points_and_seed_filled_in():
    texts = analysis_calls(["all"], points=7, seed=3)
    assert {spec.parse(t).name for t in texts} == {one.name for one in all_analyses()}
    assert all(spec.parse(t) == spec.short(t, "analysis") for t in texts)
    full = [dict(spec.full(t, "analysis").kwargs) for t in texts]
    assert all(c.get("points", 7) == 7 and c.get("seed", 3) == 3 for c in full)
    assert analysis_calls(["robust_accuracy(points=5)"], points=7) == ["robust_accuracy(points=5)"]
    assert analysis_calls(["margins", "accuracy", "margins()"]) == ["accuracy()", "margins()"]
    assert analysis_calls([margins("train"), "accuracy"]) == ["accuracy()", 'margins(split="train")']


def test_the_page_says_how_many_points_were_used(two, tmp_path):
    texts = analysis_calls(
        ["accuracy", "margins('train')", "margins", "wen_robust_accuracy(points=7)", "norm_table"]
    )
    settings = analyze(two[:1], data(), texts, store=Store(tmp_path)).report().settings
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
        analysis_calls(what)


def test_two_networks_on_one_page(two, tmp_path):
    states = []
    done = analyze(two, data(), CHEAP, store=Store(tmp_path), progress=states.append)
    page, made = done.write(tmp_path / "page"), done.report()
    assert [chart.key for chart in made.charts] == [
        "generalization-gap", "layer-norms", "singular-spread", "weight-energy", "margins",
    ]  # fmt: skip
    for chart in made.charts:
        assert {row["method"] for row in chart.spec["datasets"]["rows"]} == {"first", "second"}, chart.key
    styles = [{s["method"]: s["color"] for s in chart.spec["datasets"]["styles"]} for chart in made.charts]
    assert all(style == styles[0] for style in styles)
    assert len(set(styles[0].values())) == 2
    assert styles[0]["first"] == INK
    assert [row["method"] for row in made.table.rows] == ["first", "second"]
    assert any("×" in line and "those of first" in line for line in made.findings)
    assert any(re.match(r"Clean, the best first: .*of 30 images\).*overlap", line) for line in made.findings)
    assert any("singular values, second against first: " in line for line in made.findings)
    assert len(states) == 2 * len(two) * len(CHEAP)
    assert [s.done for s in states[::2]] == list(range(len(two) * len(CHEAP)))
    written = json.loads((page.parent / "analyses.json").read_text())
    assert written == json.loads(json.dumps(done.as_dict()))
    assert written["first"]["analyses"]["accuracy()"][0]["points"] == 30
    assert (page.parent / "report.json").exists()
    assert "side by side" in page.read_text()


@pytest.mark.parametrize(("points", "labels"), [(10, ["clean", "clean, first 10"]), (30, ["clean"])])
def test_the_clean_accuracy_of_fewer_points_stands_beside_their_robust_accuracy(two, points, labels):
    asked = ("accuracy", f"robust_accuracy(eps=(0.1,), steps=2, points={points})")
    table = analyze(two, data(), asked).report().table
    assert [c.label for c in table.columns if c.label.startswith("clean")] == labels
    for row in table.rows:
        clean = row.get(f"clean_of_{points}") or row["accuracy_test"]
        assert clean.points == row["robust_inf"].points == points
        assert clean.mean >= row["robust_inf"].mean


def test_one_call_without_a_store(tmp_path):
    done = analyze(network(), data(), "margins")
    assert done.write(tmp_path, figures="svg") == tmp_path / "report.html"
    assert (tmp_path / "figures" / "margins.svg").exists()
    assert done.report().title == "Analyses of Sequential"
    named = analyze({"a": network(0), "b": network(1)}, data(), ["accuracy"])
    assert list(named.as_dict()) == ["a", "b"]


def test_one_network_is_described_in_words(two, tmp_path):
    made = analyze(two[:1], data(), CHEAP, store=Store(tmp_path)).report()
    assert len(made.findings) == len(CHEAP) + 1
    assert made.findings[0].startswith("Caution, first: an accuracy of ")
    assert all(re.search(r"\d", line) for line in made.findings)


def test_results_are_found_again_and_belong_to_the_weights(two, tmp_path):
    store, states = Store(tmp_path), []

    def one(points=30, **settings):
        return analyze(two[:1], data(points), store=store, **settings).results[0]

    first = one(analyses="accuracy")
    again = one(analyses=["accuracy", "margins"], progress=states.append)
    assert again.key == first.key
    assert again.rows["accuracy()"] == first.rows["accuracy()"]
    assert [bool(s.found) for s in states if s.seconds is not None] == [True, False]
    assert one(29, analyses="accuracy").key != first.key
    with torch.no_grad():
        next(two[0].model.parameters()).add_(1)
    assert one(analyses="accuracy").key != first.key


def test_what_was_made_before_a_stop_is_kept(two, tmp_path):
    store, states = Store(tmp_path), []

    def stop(state):
        if state.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyze(two[:1], data(), ["accuracy", "margins"], store=store, progress=stop)
    analyze(two[:1], data(), ["accuracy", "margins"], store=store, progress=states.append)
    assert [bool(s.found) for s in states if s.seconds is not None] == [True, False]


def test_an_analysis_that_is_not_possible_hides_no_other():
    linear = {"linear": nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()}
    done = analyze(linear, data(), ["accuracy", "relu_cells"], points=5)
    assert list(done.results[0].rows) == ["accuracy()"]
    assert list(done.results[0].failures) == ["relu_cells(points=5)"]
    assert any("Not possible for linear: relu_cells" in line for line in done.report().findings)
    with pytest.raises(OpnormError, match="no analysis was possible"):
        analyze(linear, data(), "relu_cells", points=5)


def test_an_analysis_of_the_user_is_shown_too(monkeypatch, tmp_path):
    (tmp_path / "own_analyses.py").write_text(
        "from opnorm.analyses import Analysis\n"
        "def count():\n"
        "    return Analysis(lambda model, data: [{'n': 3}], lambda rows: f'There are {rows[0][\"n\"]}.')\n"
        "def bare():\n"
        "    return lambda model, data: [{'n': 4, 'long': list(range(9))}]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    done = analyze(network(), data(), ["own_analyses.count()", "own_analyses.bare()", "accuracy"])
    assert done.report().findings[-1] == "There are 3."
    assert done.results[0].find("own_analyses.bare") == [{"n": 4, "long": list(range(9))}]
    tables = {s.title: s.tables[s.title] for s in done.report().sections}
    assert list(tables) == ["Rows of own_analyses.count", "Rows of own_analyses.bare"]
    (row,) = tables["Rows of own_analyses.bare"].rows
    assert row == {"network": "Sequential", "n": "4", "long": "0, 1, 2, 3, … (9 values)"}
    page = done.write(tmp_path).read_text(encoding="utf-8")
    assert "0, 1, 2, 3, … (9 values)" in page


def test_a_default_number_of_points_takes_all_of_a_smaller_set(two):
    report = analyze(two[:1], data(), ["input_gradients", "relu_cells", "roth_robust_accuracy(eps=(0.1,))"])
    assert {row["points"] for rows in report.results[0].rows.values() for row in rows} == {30}
    assert "roth_robust_accuracy(eps=(0.1,), points=30)" in report.results[0].rows


def test_errors_name_the_networks(two, tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ModelError, match="second is in train mode"):
        analyze([two[0], Network("second", network().train())], data(), "accuracy", store=store)
    with pytest.raises(SpecError, match="different names"):
        analyze([two[0], two[0]], data(), "accuracy", store=store)
    with pytest.raises(AttackError, match="the model has 1 class"):
        analyze(nn.Sequential(nn.Flatten(), nn.Linear(16, 1)).eval(), data(), "accuracy", store=store)
    with pytest.raises(SpecError, match="201 test points and toy has 30; ask for fewer"):
        analyze(two, data(), "jacobian_spectrum(points=201)", store=store)
    assert not list(tmp_path.glob("*.partial")), "all is checked before anything is begun"
