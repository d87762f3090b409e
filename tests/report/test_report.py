import base64
import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from opnorm.errors import OpnormError, RunError
from opnorm.report import (
    Axis,
    Chart,
    Column,
    Heading,
    Panel,
    Point,
    Report,
    Sample,
    Section,
    Stat,
    Table,
    accuracy_against_eps,
    accuracy_against_norm,
    against_epoch,
    draw_curves,
    epoch_charts,
    histogram_points,
    write_figures,
    write_json,
    write_page,
)
from opnorm.report.tables import duration_text, marks_note, table_rows

vl_convert = pytest.importorskip("vl_convert")

BUILDERS = {"eps": accuracy_against_eps, "epochs": against_epoch}
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
    table = Table([Column("a", "A", kind)], [{"a": value}])
    ((cell,),) = (row["cells"] for row in table_rows(table))
    assert (cell["text"], cell["spread"]) == (text, spread)


def test_a_share_has_its_interval_and_its_number_of_points():
    table = Table(
        [Column("a", "A", "percent", "high")], [{"a": Stat.share(45, 50)}, {"a": Stat.share(440, 500)}]
    )
    first, second = (row["cells"][0] for row in table_rows(table))
    assert (first["text"], first["interval"]) == ("90.0", "78.6–95.7, n\u00a0=\u00a050")
    assert (second["text"], second["interval"]) == ("88.0", "84.9–90.6, n\u00a0=\u00a0500")
    assert (first["mark"], second["mark"]) == ("", ""), "2 points are within the interval of 50 images"
    assert Stat.share(0, 0) is None
    seeds = Stat.of([0.9, 0.8], points=100).interval
    assert seeds == Stat.share(85, 100).interval, "seeds share the points"


def test_the_best_of_a_column_and_what_ties_with_it():
    def marks(better, *cells, failed=(), best=None):
        rows = [{"a": cell} | ({"_failed": "no"} if i in failed else {}) for i, cell in enumerate(cells)]
        table = Table([Column("a", "A", "percent", better)], rows, best)
        found = {i: mark for i, row in enumerate(table_rows(table)) if (mark := row["cells"][0]["mark"])}
        assert bool(marks_note(table)) == bool(found)
        return found

    three = Stat(0.9, 0.01, 3), Stat(0.8, 0.01, 3), Stat(0.895, 0.001, 3)
    assert marks("high", *three) == {0: "best", 2: "tied"}
    assert marks("low", 3.0, 1.0, None) == {1: "best"}
    assert marks("high", Stat(0.9, 0.05, 3), Stat(0.88, 0.01, 3)) == {}, "all tie: none is best"
    assert marks(None, 1.0, 2.0) == {}
    assert marks("high", 1.0) == {}
    assert marks("high", 1.0, 9.0, 2.0, failed=(1,)) == {2: "best"}
    assert marks("low", *three, best={"a": [1, 2]}) == {1: "best", 2: "tied"}, "found by a test"
    assert marks("low", *three, best={}) == {}


def test_durations():
    assert [duration_text(s) for s in (0.5, 48, 200, 7500, None)] == [
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


def test_the_fields_of_tooltips_are_in_the_data(report):
    for chart in report.charts:
        for panel in chart.spec["vconcat"][0]["concat"]:
            own = [
                v
                for v in chart.spec["datasets"]["rows"]
                if v["panel"] == panel["transform"][0]["filter"]["equal"]
            ]
            fields = [f["field"] for layer in panel["layer"] for f in layer["encoding"].get("tooltip", [])]
            assert len(fields) >= 3
            assert set(fields) <= set().union(*own), chart.key


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("case", ["nothing", "one seed, one epoch", "one row", "not known", "24 methods"])
def test_charts_of_little_or_much(name, case, make_rows, capfd):
    if case == "24 methods":
        many = {f"m{i}(beta={i})": (0.9, 10 + i, 1.0 + i) for i in range(24)}
        data = make_rows(methods=many, seeds=[0, 1])[name]
    elif case == "nothing":
        data = []
    else:
        data = make_rows(methods={"plain": (0.9, 10, 3.0)}, seeds=[0])[name]
        data = [row for row in data if row.get("epoch", 12) == 12]
        data = data[:1] if case == "one row" else data
    if case == "not known":
        unknown = {"accuracy", "test_accuracy", "norm_2"}
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
    first, second, third = accuracy_against_eps(rows, ["plain"]).spec["datasets"]["rows"]
    assert first["value"] == pytest.approx(0.85)
    assert (first["at"], first["text"]) == ("0 (clean)", "85.0 ± 7.1 % (2 seeds)")
    assert (second["at"], second["text"], second["n"]) == ("0.03137 = 8/255", "50.0 % (1 seed)", 1)
    assert third["at"] == "0.1"


def test_a_method_looks_the_same_in_every_chart(report):
    styles = {}
    for chart in report.charts:
        for style in chart.spec["datasets"]["styles"]:
            assert styles.setdefault(style["method"], style) == style
    assert len({style["color"] for style in styles.values()}) == 8
    assert styles["plain"]["color"] == "#1f2328"


def test_24_methods_are_told_apart():
    methods = ["plain", *(f"m{i}" for i in range(24))]
    rows = [{"method": m, "norm_inf": 2.0, "robust": 0.5} for m in methods]
    values = accuracy_against_norm(rows, methods).spec["datasets"]["styles"]
    assert len({(v["color"], v["shape"]) for v in values}) == 25
    assert len({(v["color"], tuple(v["strokeDash"])) for v in values}) == 25


def test_histograms_share_bins_with_an_edge():
    samples = [
        Sample(m, "p", [i / 10 - 2 + shift for i in range(50)]) for m, shift in (("a", 0.0), ("b", 1.0))
    ]
    points = histogram_points(samples, edge=0.0)
    bins = {m: [p.x for p in points if p.method == m] for m in "ab"}
    assert bins["a"] == bins["b"]
    for method, below in {"a": 0.4, "b": 0.2}.items():
        own = [p for p in points if p.method == method]
        assert sum(p.value for p in own) == pytest.approx(1)
        assert sum(p.value for p in own if p.x < 0) == pytest.approx(below)
    assert histogram_points([]) == histogram_points([Sample("a", "p", [math.nan])]) == []


def test_labels_of_ordinary_numbers_have_no_powers_of_ten(tmp_path):
    points = [Point("a", "p", x, 100.0 * x) for x in (1, 2, 3)]
    chart = draw_curves(points, ["a"], Heading("k", "t", "c."), {"p": Panel("P")}, Axis("x"))
    (path,) = write_figures(Report("t", "q", [], Table([], []), [chart]), tmp_path)
    words = re.findall(r">([^<]+)</text>", path.read_text(encoding="utf-8"))
    assert {"100", "200", "300"} <= set(words)
    assert not any("e+" in word for word in words)


def test_long_training_is_thinned_and_says_so():
    rows = [
        {"method": "plain", "seed": 0, "epoch": e, "test_accuracy": 0.5 + e / 1000} for e in range(1, 201)
    ]
    chart = against_epoch(rows, ["plain"])
    epochs = {v["x"] for v in chart.spec["datasets"]["rows"]}
    assert len(epochs) <= 41
    assert {1, 200} <= epochs
    assert "Every 5th epoch is drawn." in chart.caption
    assert "over seeds" not in chart.caption
    two = [row | {"seed": seed} for row in rows for seed in (0, 1)]
    assert "over seeds" in against_epoch(two, ["plain"]).caption


def test_energy_complexity_and_layers_against_the_epoch():
    rows = [
        {"method": m, "seed": 0, "epoch": e, "loss": 1.0, "log10_weight_energy": -1.0 * e, "weight_complexity": 3.0 * e,
         "layer_norms": {f"l{i}": i + e for i in range(30)}}
        for m in ("plain", "b") for e in (1, 2, 3)
    ]  # fmt: skip
    loss, weights, layers = epoch_charts(rows, ["plain", "b"])
    assert (loss.key, weights.key, layers.key) == (
        "against-epoch",
        "weights-against-epoch",
        "layers-against-epoch",
    )
    found = {(v["panel"], v["method"], v["x"]): v["value"] for v in weights.spec["datasets"]["rows"]}
    assert len(found) == 12
    assert found["log10_weight_energy", "b", 3] == -3
    assert found["weight_complexity", "plain", 2] == 6
    drawn = {v["panel"]: v["value"] for v in layers.spec["datasets"]["rows"] if v["x"] == 3}
    assert len(drawn) == 24
    assert (drawn["l0"], drawn["l29"]) == (3, 32)
    assert "24 of the 30 layers" in layers.caption
    assert [chart.key for chart in epoch_charts([{"epoch": 1, "loss": 1.0}])] == ["against-epoch"]
    assert epoch_charts([]) == []


def test_a_real_run_has_every_panel(tiny_run):
    keys = [chart.key for chart in epoch_charts(tiny_run.metrics)]
    assert keys == ["against-epoch", "weights-against-epoch", "layers-against-epoch"]
    spec = against_epoch(tiny_run.metrics).spec
    titles = [panel["title"]["text"] for panel in spec["vconcat"][0]["concat"]]
    assert titles[:2] == ["Test accuracy", "Training loss"]
    assert [title.split()[1] for title in titles[2:]] == ["ℓ₁", "ℓ₂", "ℓ∞"]


def test_curves_average_over_seeds_and_keep_names_in_order():
    points = [
        Point("plain", "p", name, value)
        for value, name in [(1.0, "z"), (3.0, "z"), (5.0, "a"), (None, "a"), (math.inf, "a")]
    ]
    heading = Heading("key", "Title", "Caption.")
    chart = draw_curves(points, [], heading, {"p": Panel("P"), "q": Panel("empty")}, Axis(names=("z", "a")))
    rows = chart.spec["datasets"]["rows"]
    assert [(v["x"], v["value"], v["n"]) for v in rows] == [("z", 2.0, 2), ("a", 5.0, 1)]
    assert rows[0]["text"] == "2 ± 1.4 (2 seeds)"
    assert len(chart.spec["vconcat"][0]["concat"]) == 1


def test_the_legend_shows_what_the_chart_draws(report):
    for chart in report.charts:
        lines_only = chart.key in ("against-epoch", "margins")
        shown = chart.spec["vconcat"][1]["encoding"].keys()
        assert shown == {"color", "opacity", "strokeDash" if lines_only else "shape"}


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
    assert path.stat().st_size < 2.5e6
    for text in [report.question, *report.settings.values(), "not known", "failed: the loss was not finite"]:
        assert text.replace("'", "&#39;") in html
    assert embedded_specs(html).keys() == {chart.key for chart in report.charts}
    folder = tmp_path / "figures"
    write_figures(report, folder)
    pictures = re.findall(r"image/svg\+xml;base64,([^\"]*)", html)
    for chart, picture in zip(report.charts, pictures, strict=True):
        both = base64.b64decode(picture).decode(), (folder / f"{chart.key}.svg").read_text(encoding="utf-8")
        small, whole = (re.findall(r">([^<]+)</text>", svg) for svg in both)
        assert small == whole != [], "a smaller picture has the same labels"
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
    assert html.count("</script>") == 5  # specs, theme, highlighted methods, the library and the page's own
    assert "<b onmouseover" not in html
    assert "&lt;/script&gt;&lt;b onmouseover=alert(1)&gt;" in html
    assert embedded_specs(html)[chart.key]["datasets"]["rows"][0]["method"] == HOSTILE
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
        "Nothing yet",
        "What?",
        [],
        Table([Column("method", "Method", "text")], []),
        [accuracy_against_eps([])],
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


def test_further_tables_are_on_the_page(tmp_path):
    more = Table([Column("network", "network", "text"), Column("n", "n")], [{"network": "a", "n": 77.0}])
    section = Section("mine", "Rows of mine", tables={"Rows of mine": more, "Others": more})
    report = Report(
        "t", "q", [], Table([Column("method", "m", "text")], [{"method": "a"}]), sections=[section]
    )
    html = write_page(report, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h2>Rows of mine</h2>" in html
    assert "<h3>Others</h3>" in html
    assert ">77.0</td>" in html


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
        "claims",
        "sections",
    ]
    assert content["table"]["rows"][0]["clean"].keys() == {"mean", "std", "n", "points"}
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
    with pytest.raises(OpnormError, match="format='eps': expected 'svg', 'pdf' or 'png'"):
        write_figures(report, tmp_path, "eps")


def test_the_report_needs_no_torch():
    code = "import sys, opnorm.report; print(*(m in sys.modules for m in ('torch', 'altair', 'vl_convert')))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False"] * 3


def test_few_epochs_have_a_tick_each():
    rows = [{"method": "plain", "seed": 0, "epoch": e, "test_accuracy": 0.5} for e in (1, 2, 3)]
    assert '"values": [1, 2, 3]' in json.dumps(against_epoch(rows, ["plain"]).spec)


@pytest.mark.parametrize(
    ("values", "labels"),
    [((1e-4, 1.0), {"0.01%", "0.1%", "1%", "10%", "100%"}), ((0.02, 0.3), {"2%", "5%", "10%", "20%"})],
)
def test_labels_of_shares_on_a_log_axis_tell_them_apart(values, labels, tmp_path):
    points = [Point("a", "p", i, value) for i, value in enumerate(values)]
    panels = {"p": Panel("P", log=True, percent=True)}
    chart = draw_curves(points, ["a"], Heading("k", "t", "c."), panels, Axis("x"))
    (svg,) = write_figures(Report("t", "q?", charts=[chart]), tmp_path)
    shown = re.findall(r">([\d.]+%)<", svg.read_text())
    assert len(shown) == len(set(shown))
    assert labels <= set(shown)


@pytest.mark.parametrize(
    ("values", "log", "labels"),
    [
        ((0.037, 0.0774, 0.1148), False, {"0.02", "0.1", "0.12"}),
        ((2.5e-5, 2.9e-5), True, {"2.5e-5", "2.9e-5"}),
        ((1e-3, 1.0), True, {"0.001", "0.01", "0.1", "1"}),
    ],
)
def test_labels_of_neighboring_ticks_are_not_rounded_to_one_number(values, log, labels, tmp_path):
    points = [Point("a", "p", place, value) for place, value in zip("xyz", values, strict=False)]
    x = Axis(quantity="place", names=tuple("xyz"))
    chart = draw_curves(points, ["a"], Heading("k", "t", "c."), {"p": Panel("P", log=log)}, x)
    (svg,) = write_figures(Report("t", "q?", charts=[chart]), tmp_path)
    shown = re.findall(r">(\d[^<]*)</text>", svg.read_text(encoding="utf-8"))
    assert len(shown) == len(set(shown))
    assert labels <= set(shown)


def test_methods_at_one_number_stand_side_by_side():
    points = [
        Point(m, panel, x, v)
        for m, v in (("a", 0.5), ("a", 0.7), ("b", 0.4))
        for panel, x in (("one", 0.1), ("two", 0.1), ("two", 0.2))
    ]
    panels = {"one": Panel("After FGSM"), "two": Panel("After PGD")}
    chart = draw_curves(points, ["a"], Heading("k", "t", "c."), panels, Axis("ε, largest change"), dots=False)
    one, two = chart.spec["vconcat"][0]["concat"]
    assert one["title"]["text"] == "After FGSM, ε = 0.1"
    assert two["title"]["text"] == "After PGD"
    places = {
        panel: [v["x"] for v in chart.spec["datasets"]["rows"] if v["panel"] == panel] for panel in panels
    }
    assert places == {"one": ["a", "b"], "two": [0.1, 0.2, 0.1, 0.2]}
    assert "shape" in chart.spec["vconcat"][1]["encoding"], (
        "the legend shows the symbols, as there is no line"
    )
    alone = draw_curves(points[:1], [], Heading("k", "t", "c."), panels, Axis("ε"))
    assert alone.spec["datasets"]["rows"][0]["x"] == 0.1
