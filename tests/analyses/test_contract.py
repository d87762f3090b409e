"""Every registered analysis: rows for JSON, an unchanged model, a chart that draws, a sentence, and columns."""

import json
import re

import pytest
import torch

from opnorm import spec
from opnorm.analyses import all_analyses, register
from opnorm.errors import SpecError
from opnorm.report import Column, Report, Stat, Table, write_figures
from tests.analyses.toys import data, trained

vl_convert = pytest.importorskip("vl_convert")

SMALL = {
    "points": 6,
    "steps": 2,
    "halvings": 2,
    "version": "rand",
}  # settings of those analyses that have them
NAMES = [one.name for one in all_analyses()]


def build(name):
    accepted = dict(spec.full(name, "analysis").kwargs)
    settings = {key: value for key, value in SMALL.items() if key in accepted}
    return spec.build(name, "analysis", **settings)


@pytest.fixture(scope="module")
def measured():
    """The rows of every analysis for one model."""
    model = trained().eval()
    return {name: build(name)(model, data()) for name in NAMES}


def untimed(rows):
    """Rows without the one thing that no computation repeats: how long it took."""
    return [{key: value for key, value in row.items() if key != "times"} for row in rows]


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_json_and_the_model_is_unchanged(name, measured):
    model = trained().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    grads, state = [p.grad.clone() for p in model.parameters()], torch.get_rng_state()
    rows = build(name)(model, data())
    assert rows
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert untimed(rows) == untimed(measured[name]), "the same in train mode, and the second time"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), grads, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", NAMES)
def test_the_sentence_has_numbers(name, measured):
    text = build(name).sentence(measured[name])
    assert re.fullmatch(r"[A-Z0-9].*\d.*\.", text)
    assert not re.search(r"\bnan\b|\.\.$", text)


@pytest.mark.parametrize("name", NAMES)
def test_columns_have_cells(name, measured):
    columns = build(name).columns(measured[name])
    keys = [column.key for column, _ in columns]
    assert len(set(keys)) == len(keys)
    for column, cell in columns:
        assert isinstance(column, Column)
        assert column.label
        assert column.help.endswith(".")
        assert cell is None or isinstance(cell, str | float | Stat)


@pytest.mark.each_value
@pytest.mark.parametrize("case", ["one network", "two methods, two seeds", "one row", "nothing"])
@pytest.mark.parametrize("name", NAMES)
def test_the_chart_draws(name, case, measured, tmp_path, capfd):
    analysis, rows = build(name), measured[name]
    if "two" in case:
        rows = [row | {"method": m, "seed": seed} for m in ("plain", "b") for seed in (0, 1) for row in rows]
    chart = analysis.chart({"one row": rows[-1:], "nothing": []}.get(case, rows), ["plain", "b"])
    if chart is None:
        return
    json.dumps(chart.spec, allow_nan=False)
    assert chart.caption.endswith(".")
    assert chart.empty == (case == "nothing")
    if chart.empty:
        return
    vl_convert.vegalite_to_vega(chart.spec, show_warnings=True)
    warnings = "".join(capfd.readouterr())
    assert "WARN" not in warnings, warnings
    drawn = {row["method"] for row in chart.spec["datasets"]["rows"]}
    assert drawn == ({"plain", "b"} if "two" in case else {"network"})
    report = Report("t", "q", [], Table([Column("method", "m", "text")], []), [chart])
    (path,) = write_figures(report, tmp_path)
    svg, panels = path.read_text(encoding="utf-8"), chart.spec["vconcat"][0]["concat"]
    assert "NaN" not in svg
    for color in {style["color"] for style in chart.spec["datasets"]["styles"]}:
        assert svg.count(f'="{color}"') > len(panels), "lines and symbols in every panel, and the legend"
    for panel in panels:
        fields = [t["field"] for layer in panel["layer"] for t in layer["encoding"].get("tooltip", [])]
        assert {"method", "at"} <= set(fields), "a tooltip names the method and the place"
        assert set(fields) <= set().union(*(row.keys() for row in chart.spec["datasets"]["rows"]))


def test_an_unknown_section_is_an_error():
    with pytest.raises(SpecError, match="section='norms': expected 'accuracy and robustness', 'weights'"):
        register("norms")


def test_charts_have_files_of_their_own(measured):
    charts = [build(name).chart(rows) for name, rows in measured.items()]
    keys = [chart.key for chart in charts if chart is not None]
    assert len(set(keys)) == len(keys) > 0


@pytest.mark.parametrize("one", all_analyses(), ids=NAMES)
def test_an_analysis_is_found_by_its_file_and_its_call(one):
    assert one.factory.__module__ == f"opnorm.analyses._{one.name}"
    assert one.factory.__doc__.splitlines()[0].endswith(".")
    assert "Returns:" in one.factory.__doc__
    for call in one.calls:
        built = spec.build(call, "analysis")
        assert spec.short(spec.spec_of(built), "analysis") == spec.short(call, "analysis")
    points = dict(spec.full(one.name, "analysis").kwargs).get("points", 0)
    assert points is not None or one.name == "input_gradients", "many points only where they cost little"


@pytest.mark.parametrize("name", [n for n in NAMES if "points" in dict(spec.full(n, "analysis").kwargs)])
@pytest.mark.parametrize("points", [0, -1, True, 1.5])
def test_points_are_a_whole_number(name, points):
    with pytest.raises(SpecError, match="at least 1"):
        spec.build(name, "analysis", points=points)
