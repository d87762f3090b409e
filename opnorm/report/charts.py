"""The charts of a report: Vega-Lite specifications built from rows of numbers.

Each function takes long-form rows (a list of dicts), averages over seeds here rather than in the browser,
so that a page stays small, and returns a `Chart`. All take ``methods``, every label of the study in its
order: a method keeps its color, dash and symbol in all charts. A click on a legend's entry highlights it
(shift-click: several; double-click: all again). Values that are None, NaN or infinite are left out.
"""

import math
from collections.abc import Sequence

from opnorm.report.model import Chart, known
from opnorm.report.vega import (
    NOTE,
    ORDS,
    Row,
    Spec,
    all_methods,
    as_stat,
    assemble,
    bars,
    eps_text,
    fade,
    grouped,
    line_and_points,
    log_axis,
    log_scale,
    look,
    mean_of,
    method_looks,
    number_text,
    only_picked,
    percent_text,
    short,
    tooltips,
    view,
)

__all__ = ["accuracy_against_eps", "accuracy_against_norm", "against_epoch", "layer_norms", "margins"]

MAX_EPOCHS = 40  # points on one line; more cannot be told apart and make the page slow


def accuracy_against_eps(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """Accuracy under attack against the attack's strength, one panel per norm of the attack.

    Args:
        rows: ``method``, ``seed``, ``norm`` ("inf" or "2"), ``eps`` (pixels in [0, 1]; 0 is no attack) and
            ``accuracy`` (a fraction).
        methods: All labels, in order.
        baseline: The label drawn in black.
    """
    order = all_methods(rows, methods)
    groups = grouped(rows, ("norm", "method", "eps"), "accuracy")
    looks = method_looks((method for _, method, _ in groups), order, baseline)
    values: list[Spec] = []
    for (norm, method, eps), accuracies in groups.items():
        stat = mean_of(accuracies)
        values.append(
            {
                "panel": str(norm),
                "method": method,
                "eps": short(eps),
                "accuracy": short(stat.mean),
                "lo": short(max(0.0, stat.mean - stat.std)),
                "hi": short(min(1.0, stat.mean + stat.std)),
                "n": stat.n,
                "at": eps_text(eps, str(norm)),
                "text": percent_text(stat),
            }
        )
    values.sort(key=lambda v: (v["panel"] != "inf", v["panel"], order.index(v["method"]), v["eps"]))
    views = []
    for panel in dict.fromkeys(v["panel"] for v in values):
        eps_values = sorted({v["eps"] for v in values if v["panel"] == panel})
        axis: Spec = {
            "title": "ε, the largest change of a pixel (pixels are in [0, 1])",
            "labelOverlap": "greedy",
            "format": "~g",
        }
        if panel != "inf":
            axis["title"] = "ε, the Euclidean length of the change (pixels are in [0, 1])"
        elif all(math.isclose(255 * e, round(255 * e), abs_tol=2e-3) for e in eps_values):
            axis |= {
                "values": eps_values,
                "labelExpr": "datum.value ? round(255 * datum.value) + '/255' : '0'",
            }
        encoding = {
            "x": {"field": "eps", "type": "quantitative", "axis": axis, "scale": {"nice": False}},
            "y": {
                "field": "accuracy",
                "type": "quantitative",
                "axis": {"title": None, "format": ".0%", "tickCount": 5},
                "scale": {"domain": [0, 1]},
            },
        }
        tooltip = tooltips(("method", "method"), ("at", "ε"), ("text", "accuracy"))
        title = f"Accuracy, {ORDS.get(panel, panel)} attacks"
        views.append(
            view(
                panel, title, [bars(encoding, "y", "lo", "hi"), *line_and_points(encoding, tooltip, 50)], 320
            )
        )
    return Chart(
        "accuracy-against-eps",
        "Accuracy against attack strength",
        "How many test images are still classified rightly when each may be changed by up to ε; at 0 nothing "
        "is changed. A line that stays high is a robust network. Bars: one standard deviation over seeds.",
        assemble(views, values, looks, "Accuracy against epsilon, one line per method."),
    )


def layer_norms(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """The norm of every layer, in the network's order, one panel per norm.

    Args:
        rows: ``method``, ``seed``, ``layer`` (its name), ``index`` (its place), ``ord`` ("1", "2" or "inf"),
            ``value``, and the certified interval ``lower``, ``upper`` (equal to it where exact).
        methods: All labels, in order.
        baseline: The label drawn in black.
    """
    order = all_methods(rows, methods)
    rows = [row for row in rows if known(row.get("value")) and row["value"] > 0]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    places: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault((str(row["ord"]), str(row["method"]), str(row["layer"])), []).append(row)
        places.setdefault(str(row["layer"]), []).append(float(row["index"]))
    layers = sorted(places, key=lambda name: (math.fsum(places[name]) / len(places[name]), name))
    looks = method_looks((method for _, method, _ in groups), order, baseline)
    values: list[Spec] = []
    for (panel, method, layer), members in groups.items():
        stat = mean_of(row["value"] for row in members)
        lows = [row["lower"] if known(row.get("lower")) else row["value"] for row in members]
        highs = [row["upper"] if known(row.get("upper")) else row["value"] for row in members]
        lo, hi = max(min(lows), stat.mean / 1e6), max(highs)
        values.append(
            {
                "panel": panel,
                "method": method,
                "layer": layer,
                "norm": short(stat.mean),
                "lo": short(lo),
                "hi": short(hi),
                "text": number_text(stat),
            }
        )
    values.sort(
        key=lambda v: (
            list(ORDS).index(v["panel"]) if v["panel"] in ORDS else 9,
            order.index(v["method"]),
            layers.index(v["layer"]),
        )
    )
    views = []
    for panel in dict.fromkeys(v["panel"] for v in values):
        ends = [v[end] for v in values if v["panel"] == panel for end in ("lo", "hi")]
        encoding = {
            "x": {
                "field": "layer",
                "type": "ordinal",
                "sort": layers,
                "axis": {"title": None, "labelAngle": -40, "labelLimit": 110, "labelOverlap": "parity"},
            },
            "y": {
                "field": "norm",
                "type": "quantitative",
                "axis": log_axis(ends),
                "scale": log_scale(ends),
            },
        }
        tooltip = tooltips(
            ("method", "method"), ("layer", "layer"), ("text", "norm"), ("range", "all seeds within")
        )
        title = f"{ORDS.get(panel, panel)} norm (log scale)"
        layer_marks = [bars(encoding, "y", "lo", "hi"), *line_and_points(encoding, tooltip, 45)]
        panel_view = view(panel, title, layer_marks, 260)
        span = "format(datum.lo, '.3~r') + ' to ' + format(datum.hi, '.3~r')"
        panel_view["transform"].append({"calculate": span, "as": "range"})
        views.append(panel_view)
    return Chart(
        "layer-norms",
        "Norm of every layer",
        "The most that each layer, from the first to the last, can lengthen a change of its input, measured "
        "in three ways. Bars reach over all seeds and, for ℓ₂, over the certified interval.",
        assemble(views, values, looks, "Operator norm of every layer, one line per method.", columns=3),
    )


def against_epoch(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """Test accuracy, training loss and the layers' geometric-mean norms against the epoch.

    Args:
        rows: ``method``, ``seed``, ``epoch`` and any of ``test_accuracy``, ``train_loss``, ``norm_1``,
            ``norm_2``, ``norm_inf``; a quantity that no row knows has no panel.
        methods: All labels, in order.
        baseline: The label drawn in black.
    """
    order = all_methods(rows, methods)
    titles = {
        "test_accuracy": "Test accuracy",
        "train_loss": "Training loss",
        "norm_1": "Mean ℓ₁ norm of the layers (log scale)",
        "norm_2": "Mean ℓ₂ norm of the layers (log scale)",
        "norm_inf": "Mean ℓ∞ norm of the layers (log scale)",
    }
    groups = {panel: grouped(rows, ("method", "epoch"), panel) for panel in titles}
    looks = method_looks((method for group in groups.values() for method, _ in group), order, baseline)
    epochs = sorted({row["epoch"] for row in rows})
    step = max(1, math.ceil(len(epochs) / MAX_EPOCHS))
    shown = {*epochs[::-1][::step], *epochs[:1]}
    few = len(shown) <= 6  # few enough to show each epoch as a dot
    values: list[Spec] = []
    views = []
    for panel, title in titles.items():
        percent, log = panel == "test_accuracy", panel.startswith("norm_")
        own = []
        for (method, epoch), members in groups[panel].items():
            stat = mean_of(members)
            if epoch not in shown or (log and stat.mean <= 0):
                continue
            own.append(
                {
                    "panel": panel,
                    "method": method,
                    "epoch": epoch,
                    "value": short(stat.mean),
                    "std": short(stat.std),
                }
            )
        if not own:
            continue
        own.sort(key=lambda v: (order.index(v["method"]), v["epoch"]))
        values += own
        y: Spec = {"field": "value", "type": "quantitative", "axis": {"title": None, "tickCount": 5}}
        if log:
            ends = [v["value"] for v in own]
            y |= {"axis": log_axis(ends), "scale": log_scale(ends)}
        else:
            y["scale"] = {"zero": False}
            y["axis"]["format"] = "~%" if percent else "~g"
        x = {
            "field": "epoch",
            "type": "quantitative",
            "axis": {"title": "epoch", "format": "d", "tickMinStep": 1, "labelOverlap": True}
            | ({"values": sorted(shown)} if few else {}),
            "scale": {"zero": False, "nice": False},
        }
        band = {
            "mark": {"type": "area", "clip": True, "tooltip": None},
            "encoding": {
                "x": x,
                "y": {**y, "field": "lo"},
                "y2": {"field": "hi"},
                **look("color"),
                **only_picked(0.2),
            },
        }
        tooltip = tooltips(("method", "method"), ("epoch", "epoch"), ("text", title.split(" (")[0].lower()))
        panel_view = view(
            panel, title, [band, *line_and_points({"x": x, "y": y}, tooltip, 60, dots=few)], 220
        )
        # there are many rows, so what follows from a row is computed in the browser
        low = "max(datum.value - datum.std, datum.value / 100)" if log else "datum.value - datum.std"
        text = "format(datum.value, '{0}') + (datum.std ? ' ± ' + format(datum.std, '{0}') : '')"
        panel_view["transform"] += [
            {"calculate": low, "as": "lo"},
            {"calculate": "datum.value + datum.std", "as": "hi"},
            {"calculate": text.format(".1%" if percent else ".3~r"), "as": "text"},
        ]
        views.append(panel_view)
    nth = {2: "second", 3: "third"}.get(step, f"{step}th")
    thinned = f" Every {nth} epoch is drawn." if step > 1 else ""
    return Chart(
        "against-epoch",
        "Accuracy and norms during training",
        "How accuracy on the test images and the layers' norms (the geometric mean over the layers) moved "
        f"from epoch to epoch. Pick a method to see its spread over seeds.{thinned}",
        assemble(
            views,
            values,
            looks,
            "Test accuracy and norms against the epoch, one line per method.",
            dots=few,
            columns=3,
        ),
    )


def _quantile(sorted_values: Sequence[float], q: float) -> float:
    return sorted_values[min(len(sorted_values) - 1, int(q * len(sorted_values)))]


def margins(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """How the margins of the test images are distributed, one line per method.

    The margin of an image is the right class's score less the largest other. All methods share bins with
    an edge at 0; the shares are averaged over seeds.

    Args:
        rows: ``method``, ``seed`` and ``margin``, one per image.
        methods: All labels, in order.
        baseline: The label drawn in black.
    """
    order = all_methods(rows, methods)
    groups = grouped(rows, ("method", "seed"), "margin")
    looks = method_looks((method for method, _ in groups), order, baseline)
    pooled = sorted(m for members in groups.values() for m in members)
    values: list[Spec] = []
    outside = 0.0
    if pooled:
        low, high = min(0.0, _quantile(pooled, 0.005)), max(0.0, _quantile(pooled, 0.995))
        images = len(pooled) / len({method for method, _ in groups})
        bins = min(60, max(8, round(2 * images ** (1 / 3))))  # Rice's rule
        width = (high - low) / bins or 1.0
        first, last = math.floor(low / width), max(math.ceil(high / width), math.floor(low / width) + 1)
        shares: dict[str, list[list[float]]] = {}
        wrong: dict[str, list[float]] = {}
        for (method, _), members in groups.items():
            counts = [0] * (last - first)
            for margin in members:
                place = math.floor(margin / width) - first
                if 0 <= place < len(counts):
                    counts[place] += 1
            outside += len(members) - sum(counts)
            shares.setdefault(method, []).append([count / len(members) for count in counts])
            wrong.setdefault(method, []).append(sum(margin < 0 for margin in members) / len(members))
        outside /= len(pooled)
        for method in (m for m in order if m in shares):
            below = mean_of(wrong[method])
            for place in range(last - first):
                left = (first + place) * width
                stat = mean_of(seed[place] for seed in shares[method])
                values.append(
                    {
                        "panel": "margin",
                        "method": method,
                        "margin": short(left + width / 2),
                        "share": short(stat.mean),
                        "at": f"{left:.3g} to {left + width:.3g}",
                        "text": percent_text(stat),
                        "wrong": percent_text(below),
                    }
                )
    encoding = {
        "x": {
            "field": "margin",
            "type": "quantitative",
            "axis": {"title": "margin: the right class's score less the largest other", "labelOverlap": True},
            "scale": {"zero": False, "nice": False},
        },
        "y": {
            "field": "share",
            "type": "quantitative",
            "axis": {"title": None, "format": "~%", "tickCount": 5},
        },
    }
    tooltip = tooltips(
        ("method", "method"), ("at", "margin"), ("text", "images here"), ("wrong", "below 0: misclassified")
    )
    zero = {"x": {"datum": 0, "type": "quantitative"}}
    once: Spec = {"values": [{}]}
    layer = [
        {
            "data": once,
            "mark": {"type": "rule", "strokeDash": [4, 3], "color": NOTE},
            "encoding": zero,
        },
        {
            "data": once,
            "mark": {
                "type": "text",
                "text": "misclassified ←",
                "align": "right",
                "dx": -6,
                "baseline": "top",
                "color": NOTE,
            },
            "encoding": {**zero, "y": {"value": 2}},
        },
        *line_and_points(encoding, tooltip, 60, dots=False),
    ]
    lost = f" {100 * outside:.1f} % of the images lie beyond the ends." if outside > 0 else ""
    return Chart(
        "margins",
        "Margins of the test images",
        "How sure the networks are: the share of test images (per bin) at each margin. Left of 0: "
        f"misclassified. Images just right of 0 are the easiest to fool.{lost}",
        assemble(
            [view("margin", "Share of the test images", layer, 300)] if values else [],
            values,
            looks,
            "Distribution of the margins, one line per method.",
            dots=False,
        ),
    )


def accuracy_against_norm(
    rows: Sequence[Row],
    methods: Sequence[str],
    *,
    norm: str = "norm_inf",
    accuracy: str = "robust",
    norm_label: str = "Mean ℓ∞ norm of the layers",
    accuracy_label: str = "robust accuracy",
    baseline: str = "plain",
) -> Chart:
    """Robust accuracy against the layers' mean norm, one point per method: do large norms hurt?

    Args:
        rows: The table's rows: ``method``, and a `Stat` (or a number, or None) under the two keys.
        methods: All labels, in order.
        norm: The key of the geometric-mean norm.
        accuracy: The key of the robust accuracy, a fraction.
        norm_label: What the norm is, for the axis.
        accuracy_label: What the accuracy is, for the heading.
        baseline: The label drawn in black.
    """
    order = all_methods(rows, methods)
    values: list[Spec] = []
    for row in rows:
        x, y = as_stat(row.get(norm)), as_stat(row.get(accuracy))
        if x is None or y is None or x.mean <= 0:
            continue
        values.append(
            {
                "panel": "norm",
                "method": str(row["method"]),
                "norm": short(x.mean),
                "norm_lo": short(max(x.mean - x.std, x.mean / 100)),
                "norm_hi": short(x.mean + x.std),
                "accuracy": short(y.mean),
                "lo": short(max(0.0, y.mean - y.std)),
                "hi": short(min(1.0, y.mean + y.std)),
                "n": y.n,
                "norm_text": number_text(x),
                "text": percent_text(y),
            }
        )
    values.sort(key=lambda v: order.index(v["method"]))
    looks = method_looks((v["method"] for v in values), order, baseline)
    ends = [v[end] for v in values for end in ("norm_lo", "norm_hi")]
    x_enc: Spec = {
        "field": "norm",
        "type": "quantitative",
        "axis": {**log_axis(ends), "title": f"{norm_label[:1].lower()}{norm_label[1:]} (log scale)"},
        "scale": log_scale(ends),
    }
    y_enc: Spec = {
        "field": "accuracy",
        "type": "quantitative",
        "axis": {"title": None, "format": "~%", "tickCount": 5},
        "scale": {"zero": False},
    }
    encoding = {"x": x_enc, "y": y_enc}
    tooltip = tooltips(("method", "method"), ("norm_text", "norm"), ("text", accuracy_label))
    point = {
        "mark": {"type": "point", "filled": True, "size": 130},
        "encoding": {**encoding, **look("color", "shape"), "tooltip": tooltip, **fade()},
    }
    layer = [bars(encoding, "y", "lo", "hi"), bars(encoding, "x", "norm_lo", "norm_hi"), point]
    title = f"{accuracy_label[:1].upper()}{accuracy_label[1:]}"
    return Chart(
        "accuracy-against-norm",
        "Do large norms hurt?",
        "Each point is one method: further right, its layers can amplify a change more; further up, it "
        "withstands the attack better. If large norms hurt, the points fall from left to right. "
        "Bars: one standard deviation over seeds.",
        assemble(
            [view("norm", title, layer, 320)] if values else [],
            values,
            looks,
            f"{title} against {norm_label}, one point per method.",
        ),
    )
