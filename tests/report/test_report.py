import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from opnorm.errors import OpnormError, RunError
from opnorm.report import (
    Chart,
    Column,
    Report,
    Stat,
    Table,
    accuracy_against_eps,
    accuracy_against_norm,
    against_epoch,
    layer_norms,
    margins,
    write_figures,
    write_json,
    write_page,
)
from opnorm.report.charts_roth import jacobian_spectrum
from opnorm.report.page import _best, _cell, _duration

vl_convert = pytest.importorskip("vl_convert")

BUILDERS = {"eps": accuracy_against_eps, "layers": layer_norms, "epochs": against_epoch, "margins": margins}
HOSTILE = "</script><b onmouseover=alert(1)>&\"'{{ 1 + 1 }}<!--"


def compile_quietly(spec, capfd):
    """Vega-Lite's own check: it compiles, and says nothing."""
    vega = vl_convert.vegalite_to_vega(spec, show_warnings=True)
    said = "".join(capfd.readouterr())
    assert "WARN" not in said, said
    return vega


def embedded_specs(html):
    block = re.search(r'<script type="application/json" id="specs">(.*?)</script>', html, re.S)
    return json.loads(block[1])


# ---- numbers ----


def test_stat():
    assert Stat.of([3]) == Stat(3.0, 0.0, 1)
    stat = Stat.of([1.0, 2.0, 4.0])
    assert stat.n == 3
    assert stat.mean == pytest.approx(7 / 3)
    assert stat.std == pytest.approx(math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2))


def test_stat_leaves_out_what_is_not_known():
    assert Stat.of(v for v in [None, 1.0, math.nan, 3.0, math.inf]) == Stat(2.0, math.sqrt(2.0), 2)
    assert Stat.of([]) is None
    assert Stat.of([None, math.nan]) is None


@pytest.mark.parametrize(
    ("kind", "value", "text", "spread"),
    [
        ("percent", Stat(0.9449, 0.0051, 3), "94.5", "±\u20090.5"),
        ("percent", Stat(0.9449, 0.0, 1), "94.5", ""),
        ("percent", 0.0, "0.0", ""),
        ("number", Stat(17.62, 0.46, 3), "17.6", "±\u20090.5"),
        ("number", 1234.4, "1,234", ""),
        ("number", 0.01234, "0.0123", ""),
        ("number", 99.96, "100", ""),
        ("number", -2.5, "−2.50", ""),
        ("number", 3.14159e12, "3.14 × 10¹²", ""),
        ("number", 3.14159e-7, "3.14 × 10⁻⁷", ""),
        ("number", 0, "0", ""),
        ("number", None, None, ""),
        ("number", math.nan, None, ""),
        ("text", "pgd", "pgd", ""),
    ],
)
def test_a_cell_as_text(kind, value, text, spread):
    cell = _cell(value, Column("a", "A", kind))
    assert (cell["text"], cell["spread"]) == (text, spread)


def test_the_best_of_a_column_and_what_ties_with_it():
    def best(better, *cells):
        rows = [{"a": cell} for cell in cells]
        return _best(Table([], rows), Column("a", "A", "percent", better))

    assert best("high", Stat(0.9, 0.01, 3), Stat(0.8, 0.01, 3), Stat(0.895, 0.001, 3)) == {0, 2}
    assert best("low", 3.0, 1.0, None) == {1}
    assert best("high", Stat(0.9, 0.05, 3), Stat(0.88, 0.01, 3)) == set(), "all tie: none is best"
    assert best(None, 1.0, 2.0) == set()
    assert best("high", 1.0) == set()
    failed = Table([], [{"a": 1.0}, {"a": 9.0, "_failed": "no"}, {"a": 2.0}])
    assert _best(failed, Column("a", "A", "number", "high")) == {2}


def test_durations():
    assert [_duration(s) for s in (0.5, 48, 200, 7500, None)] == [
        "0.5 s",
        "48 s",
        "3 min 20 s",
        "2 h 5 min",
        "not known",
    ]


# ---- charts ----


def test_charts_compile_without_a_warning(report, capfd):
    for chart in report.charts:
        assert chart.caption
        compile_quietly(chart.spec, capfd)


def test_what_a_tooltip_shows_is_there(report):
    for chart in report.charts:
        for panel in chart.spec["vconcat"][0]["concat"]:
            there = chart.spec["data"]["values"][0].keys() | {t.get("as") for t in panel["transform"]}
            shown = [f["field"] for layer in panel["layer"] for f in layer["encoding"].get("tooltip", [])]
            assert len(shown) >= 3
            assert set(shown) <= there, chart.key


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("case", ["nothing", "one seed, one epoch", "one row", "not known", "24 methods"])
def test_charts_of_little_or_much(name, case, make_rows, capfd):
    if case == "24 methods":
        many = {f"m{i}(beta={i})": (0.9, 10 + i, 1.0 + i) for i in range(24)}
        data = make_rows(many, seeds=[0, 1], epochs=4, images=20)[name]
    elif case == "nothing":
        data = []
    else:
        data = make_rows({"plain": (0.9, 10, 3.0)}, seeds=[0], epochs=1, images=5)[name]
        data = data[:1] if case == "one row" else data
    if case == "not known":
        unknown = {"accuracy", "value", "margin", "test_accuracy", "norm_2", "lower", "upper"}
        data = [
            {k: (None if i % 2 else math.nan) if k in unknown else v for k, v in row.items()}
            for i, row in enumerate(data)
        ]
    chart = BUILDERS[name](data, [])
    assert chart.empty == (case == "nothing" or (case == "not known" and name != "epochs"))
    json.dumps(chart.spec, allow_nan=False)
    if not chart.empty:
        compile_quietly(chart.spec, capfd)


def test_means_over_seeds_and_eps_as_gray_levels():
    rows = [
        {"method": "plain", "seed": seed, "norm": "inf", "eps": eps, "accuracy": accuracy}
        for seed, eps, accuracy in [
            (0, 0.0, 0.9),
            (1, 0.0, 0.8),
            (0, 8 / 255, 0.5),
            (1, 8 / 255, None),
            (0, 0.1, 0.2),
        ]
    ]
    first, second, third = accuracy_against_eps(rows, ["plain"]).spec["data"]["values"]
    assert first["accuracy"] == pytest.approx(0.85)
    assert (first["at"], first["text"]) == ("0 (clean)", "85.0 ± 7.1 % (2 seeds)")
    assert (second["at"], second["text"], second["n"]) == ("0.03137 = 8/255", "50.0 % (1 seed)", 1)
    assert third["at"] == "0.1"


def test_a_method_looks_the_same_in_every_chart(report):
    looks = {}
    for chart in report.charts:
        grid = chart.spec["vconcat"][0]
        for look in grid["transform"][0]["from"]["data"]["values"]:
            assert looks.setdefault(look["method"], look) == look
    assert len({look["color"] for look in looks.values()}) == 8
    assert looks["plain"]["color"] == "#1f2328"


def test_24_methods_are_told_apart():
    methods = ["plain", *(f"m{i}" for i in range(24))]
    rows = [{"method": m, "norm_inf": 2.0, "robust": 0.5} for m in methods]
    values = accuracy_against_norm(rows, methods).spec["vconcat"][0]["transform"][0]["from"]["data"]["values"]
    assert len({(v["color"], v["shape"]) for v in values}) == 25
    assert len({(v["color"], tuple(v["strokeDash"])) for v in values}) == 25


def test_margins_share_bins_with_an_edge_at_zero():
    rows = [
        {"method": m, "seed": 0, "margin": x}
        for m, shift in [("a", 0.0), ("b", 1.0)]
        for x in (i / 10 - 2 + shift for i in range(50))
    ]
    values = margins(rows, ["a", "b"]).spec["data"]["values"]
    bins = {m: [v["margin"] for v in values if v["method"] == m] for m in "ab"}
    assert bins["a"] == bins["b"]
    for method, wrong in {"a": 0.4, "b": 0.2}.items():
        own = [v for v in values if v["method"] == method]
        assert sum(v["share"] for v in own if v["margin"] < 0) == pytest.approx(wrong, abs=1e-3)
        assert own[0]["wrong"].startswith(f"{100 * wrong:.1f} %")


def test_long_training_is_thinned_and_says_so(make_rows):
    chart = against_epoch(
        make_rows({"plain": (0.9, 10, 3.0)}, seeds=[0], epochs=200, images=0)["epochs"], ["plain"]
    )
    epochs = {v["epoch"] for v in chart.spec["data"]["values"]}
    assert len(epochs) <= 41
    assert {1, 200} <= epochs
    assert "Every 5th epoch is drawn." in chart.caption


def test_the_legend_shows_what_the_chart_draws(report):
    for chart in report.charts:
        lines_only = chart.key in ("against-epoch", "margins")
        shown = chart.spec["vconcat"][1]["encoding"].keys()
        assert shown == {"color", "opacity", "strokeDash" if lines_only else "shape"}


def test_layers_stand_in_the_order_of_the_network():
    rows = [
        {"method": "plain", "seed": 0, "layer": name, "index": i, "ord": "2", "value": 1.0 + i}
        for i, name in reversed(list(enumerate(["z", "b10", "b9", "a"])))
    ]
    panel = layer_norms(rows, ["plain"]).spec["vconcat"][0]["concat"][0]
    assert panel["layer"][0]["encoding"]["x"]["sort"] == ["z", "b10", "b9", "a"]


def test_a_chart_key_is_a_file_name():
    with pytest.raises(OpnormError, match="file name"):
        Chart("../etc/passwd", "t", "c", {})
    twice = Chart("a", "t", "c", {"data": {"values": []}})
    with pytest.raises(OpnormError, match="two charts"):
        Report("t", "q", [], Table([], []), [twice, twice])


# ---- files ----


def test_page(report, tmp_path):
    path = write_page(report, tmp_path / "new" / "report.html")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"], "no temporary file is left"
    html = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 1.5e6
    for text in [report.question, *report.settings.values(), "not known", "failed: the loss was not finite"]:
        assert text.replace("'", "&#39;") in html
    assert embedded_specs(html).keys() == {chart.key for chart in report.charts}
    own = html.replace(re.search(r"<script>(.*?)</script>", html, re.S)[1], "")
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|@import|url\(", own)
    assert "default-src 'none'" in own


def test_page_with_hostile_text(tmp_path):
    rows = [
        {"method": HOSTILE, "a": Stat(1.0, 0.1, 3), "norm_inf": 2.0, "robust": 0.5},
        {"method": "x", "_failed": HOSTILE},
    ]
    columns = [Column("method", HOSTILE, "text", None, HOSTILE), Column("a", "A")]
    chart = accuracy_against_norm(rows, [HOSTILE], accuracy_label=HOSTILE, norm_label=HOSTILE)
    runs = [{"key": HOSTILE, "label": HOSTILE, "seed": 0, "seconds": None}]
    report = Report(
        HOSTILE, HOSTILE, [HOSTILE], Table(columns, rows), [chart], {HOSTILE: HOSTILE}, runs, [HOSTILE]
    )
    html = write_page(report, tmp_path / "r.html").read_text(encoding="utf-8")
    assert html.count("</script>") == 4  # specs, what is highlighted, the library and the page's own
    assert "<b onmouseover" not in html
    assert "&lt;/script&gt;&lt;b onmouseover=alert(1)&gt;" in html
    assert embedded_specs(html)[chart.key]["data"]["values"][0]["method"] == HOSTILE
    (svg,) = write_figures(report, tmp_path)
    assert "<b " not in svg.read_text(encoding="utf-8")


def test_figures_highlight_what_the_page_does(report, tmp_path):
    two = replace(report, highlight=["plain", "pgd_at(eps=8/255)"], charts=report.charts[:1])
    (all_,) = write_figures(replace(two, highlight=[]), tmp_path / "a")
    (some,) = write_figures(two, tmp_path / "b")
    assert 'opacity="0.08"' not in all_.read_text(encoding="utf-8")
    assert 'opacity="0.08"' in some.read_text(encoding="utf-8")


def test_page_of_an_empty_report(tmp_path):
    report = Report(
        "Nothing yet", "What?", [], Table([Column("method", "Method", "text")], []), [margins([], [])]
    )
    html = write_page(report, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Nothing has been measured yet." in html
    assert "Nothing was measured for this chart." in html
    assert write_figures(report, tmp_path) == []


def test_a_page_is_replaced_whole(report, tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(RunError, match="No space"):
        write_page(report, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_json(report, tmp_path):
    content = json.loads(write_json(report, tmp_path / "r.json").read_text(encoding="utf-8"))
    assert list(content) == [
        "title",
        "question",
        "findings",
        "table",
        "charts",
        "settings",
        "runs",
        "highlight",
    ]
    assert content["table"]["rows"][0]["clean"].keys() == {"mean", "std", "n"}
    assert list(content["settings"]) == list(report.settings)
    odd = Report("t", "q", [], Table([], [{"a": math.nan, "b": math.inf}]))
    assert json.loads(write_json(odd, tmp_path / "o.json").read_text())["table"]["rows"] == [
        {"a": None, "b": None}
    ]


@pytest.mark.parametrize(("kind", "start"), [("svg", b"<svg"), ("pdf", b"%PDF-"), ("png", b"\x89PNG\r\n")])
def test_figures(report, tmp_path, kind, start):
    few = Report("t", "q", [], report.table, [report.charts[1], report.charts[2]])
    paths = write_figures(few, tmp_path, kind)
    assert [p.name for p in paths] == [f"accuracy-against-norm.{kind}", f"layer-norms.{kind}"]
    for path in paths:
        assert path.read_bytes().startswith(start)
    if kind == "svg":
        text = paths[0].read_text(encoding="utf-8")
        assert "norm_decay(p=inf, beta=1e-3)" in text
        assert text.count('aria-roledescription="point"') >= 8
        assert "var(" not in text


def test_an_unknown_format_is_an_error(report, tmp_path):
    with pytest.raises(OpnormError, match="'svg', 'pdf' or 'png', not 'eps'"):
        write_figures(report, tmp_path, "eps")


def test_the_report_needs_no_torch():
    code = "import sys, opnorm.report; print('torch' in sys.modules, 'vl_convert' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]


def test_the_end_of_a_spectrum_that_is_rounding_alone_is_not_drawn():
    row = {"method": "plain", "seed": 0, "at": "clean", "mean": [2.0, 0.5, 1e-6, 1e-9, 0.0]}
    drawn = jacobian_spectrum([row], ["plain"]).spec["data"]["values"]
    assert [(v["x"], v["value"]) for v in drawn] == [(1, 2.0), (2, 0.5), (3, 1e-6)]
    assert not jacobian_spectrum([row | {"mean": [0.0, 0.0]}], ["plain"]).spec["data"]["values"]


def test_few_epochs_have_a_tick_each():
    rows = [{"method": "plain", "seed": 0, "epoch": e, "test_accuracy": 0.5} for e in (1, 2, 3)]
    assert '"values": [1, 2, 3]' in json.dumps(against_epoch(rows, ["plain"]).spec)
