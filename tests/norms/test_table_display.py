"""How a table of norms looks: text, JSON, CSV, Markdown, plots, totals and progress."""

import csv
import io
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

import opnorm
from opnorm.errors import NormError
from opnorm.norms import Norm, NormTable, display, measure, operator_norm
from opnorm.norms.norm import product
from opnorm.norms.number_text import interval
from opnorm.norms.plot import norm_chart
from tests.norms import nets
from tests.norms.nets import Residual, small


def test_json_comes_back_and_csv_and_markdown_have_every_row():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight.data[0, 0] = math.nan
    table = measure(model, torch.zeros(1, 3))
    assert NormTable.from_json(table.to_json()) == table
    assert NormTable.from_json(json.dumps({"layers": json.loads(table.to_json())})) == table
    lines = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [line["layer"] for line in lines] == ["0", "1", "2"]
    assert float(lines[0]["norm_1_lower"]) == float(table.rows[0].norms[1].lower)
    assert lines[1]["lipschitz_inf"] == "1.0"
    assert lines[2]["norm_2_upper"] == ""
    assert "NaN" in lines[2]["note"]
    markdown = table.to_markdown().splitlines()
    assert len([line for line in markdown if line.startswith("|")]) == 5
    assert len({line.count("|") for line in markdown if line.startswith("|")}) == 1
    assert table.to_html().count("<tr>") == 4
    for text in ("3", "{}", "[1]", "no"):
        with pytest.raises(NormError, match="expected a table of norms"):
            NormTable.from_json(text)


def test_select():
    table = measure(small(), torch.rand(1, 1, 4, 4), ords=(1,))
    assert [r.layer for r in table.select("[04]").rows] == ["0", "4"]
    assert [r.layer for r in table.select("*Norm*").rows] == ["1"]
    with pytest.raises(NormError, match="no layer matches 'x'; there are 0, 1, 2, 3, 4"):
        table.select("x")


def test_only_some_layers_are_computed(monkeypatch):
    model, calls = small(), []
    table_of = opnorm.norms.layer_table.layer_norms
    monkeypatch.setattr(
        opnorm.norms.layer_table, "layer_norms", lambda *a: calls.append(a[0]) or table_of(*a)
    )
    table = measure(model, torch.rand(1, 1, 4, 4), only="[14]")
    assert calls == [model[1], model[4]]
    assert table == measure(model, torch.rand(1, 1, 4, 4)).select("[14]")
    with pytest.raises(NormError, match="no layer matches"):
        measure(model, torch.rand(1, 1, 4, 4), only="conv")


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("make", ["resnet18", "depthwise_separable", "decoder", "Audio"])
def test_tables_fit_the_terminal_without_folding(make, width):
    shape = {"decoder": (32,), "Audio": (1, 256)}.get(make, (3, 32, 32))
    model = nets.resnet18(8, 10) if make == "resnet18" else getattr(nets, make)(8)
    table = measure(model, torch.zeros(1, *shape), ords=(1, math.inf))
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert max(map(len, lines)) <= width
    assert lines.index("") == len(table.rows) + 1  # one line a row, under one heading
    assert all(row.norms or row.lipschitz for row in table.rows)


@given(st.floats(1e-12, 1e12), st.floats(0, 1e-1))
def test_numbers_are_true_as_printed(x, width):
    y = x * (1 + width)
    text = interval(x, y)
    slack = 1 + 3e-9
    if "±" in text:
        middle, percent = (float(t.strip(" %")) for t in text.split("±"))
        assert middle * (1 - percent / 100) <= x * slack
        assert middle * (1 + percent / 100) * slack >= y
        assert percent < 1
    elif "..." in text:
        low, high = map(float, text.split("..."))
        assert low <= x * slack
        assert high * slack >= y
    else:
        assert float(text) == pytest.approx(x, rel=5e-4)
        assert width < 1e-8


@pytest.mark.parametrize(
    ("lower", "upper", "text"),
    [
        (4.476, 4.48, "4.478 ± 0.05 %"),
        (4.476, 6, "4.476 ... 6"),
        (2.0, math.inf, "≥ 2"),
        (0.0, 0.0, "0"),
        (0.0, 1.0, "0 ... 1"),
        (15234.4, 15234.4, "15234"),
        (1 / 3, 1 / 3, "0.3333"),
        (1e9, 1e9, "1e+09"),
    ],
)
def test_how_intervals_look(lower, upper, text):
    assert interval(lower, upper) == text


# ---------------------------------------------------------------- totals


def test_spectral_complexity_is_the_product_over_all_calls():
    model = Residual()
    for layer, gain in ((model.a, 2.0), (model.b, 3.0)):
        layer.weight.data = gain * torch.eye(3)
    table = measure(model, {"x": torch.zeros(1, 3), "twice": True})
    found = table.spectral_complexity
    assert found.layers == 3
    assert found.lower <= 18 <= found.upper
    assert found.upper == pytest.approx(18, rel=1e-2)
    assert measure(model, torch.zeros(1, 3), ords=(1,)).spectral_complexity is None
    model.b.weight.data[0, 0] = math.nan
    unknown = measure(model, torch.zeros(1, 3)).spectral_complexity
    assert (unknown.upper, unknown.reason) == (math.inf, "no upper bound of b")


def test_products_beyond_the_range_of_numbers():
    norms = [Norm.of(1e10, 2e10, "")] * 100
    found = product(norms)
    assert found.lower == math.inf
    assert found.log10_lower == pytest.approx(1000)
    assert display.product(found) == "10^1000 ... 10^1031"
    assert display.product(product([Norm.of(0.0, 0.0, "")])) == "0"
    assert display.product(product([])) == "1"


# ---------------------------------------------------------------- plot and progress


@pytest.mark.parametrize(
    ("end", "start"), [("svg", b"<svg"), ("pdf", b"%PDF"), ("png", b"\x89PNG"), ("html", b"<!DOCTYPE")]
)
def test_plots(tmp_path, end, start):
    table = measure(small(), torch.rand(1, 1, 4, 4))
    path = table.plot(tmp_path / "new" / f"norms.{end}")
    data = path.read_bytes()
    assert data.lstrip().lower().startswith(start.lower())
    if end in ("svg", "html"):
        assert b"Conv2d" in data
    if end == "html":  # works offline
        assert b'src="http' not in data


def test_a_plot_has_a_bar_for_each_call_and_norm():
    model = Residual()
    chart = norm_chart(measure(model, {"x": torch.zeros(1, 3), "twice": True}).rows).to_dict()
    assert len(chart["data"]["values"]) == 9
    assert len(chart["hconcat"]) == 3
    assert {v["index"] for v in chart["data"]["values"]} == {0, 1, 2}


def test_an_exact_norm_is_a_number_and_an_interval_is_not():
    layer = nn.Linear(3, 2)
    exact = operator_norm(layer, 1)
    assert float(exact) == exact.item() == float(layer.weight.detach().double().abs().sum(0).max())
    with pytest.raises(NormError, match=r"interval only.*use \.lower or \.upper"):
        float(Norm.of(1.0, 2.0, "by hand"))
    norm = nn.BatchNorm2d(3)
    assert float(operator_norm(norm, 2)) == float(operator_norm(norm, 2, (3, 4, 4)))
    with pytest.raises(NormError, match="in_shape is missing"):
        operator_norm(nn.Conv2d(1, 1, 3), 1)


def test_plots_that_cannot_be(tmp_path):
    with pytest.raises(NormError, match="nothing to draw"):
        measure(nn.ReLU(), torch.rand(1, 3)).plot(tmp_path / "x.svg")
    with pytest.raises(NormError, match=r"ends in .svg, .pdf, .png or .html, not '.gif'"):
        measure(small(), torch.rand(1, 1, 4, 4)).plot(tmp_path / "x.gif")
    assert not list(tmp_path.iterdir())


def test_progress_is_silent_where_there_is_no_terminal(capsys):
    plain = measure(small(), torch.rand(1, 1, 4, 4))
    assert (
        measure(small(), torch.rand(1, 1, 4, 4), progress=True).rows[0].norms.keys()
        == plain.rows[0].norms.keys()
    )
    out, err = capsys.readouterr()
    assert not out.strip()
    assert not err.strip()
