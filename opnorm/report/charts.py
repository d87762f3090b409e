"""Charts that several pages share: accuracy against ε and against norms."""

import math
from collections.abc import Sequence
from typing import Any

from opnorm.report.curves import Axis, Heading, Panel, Point, Row, draw_curves, method_of
from opnorm.report.document import Chart, Stat
from opnorm.report.theme import eps_text, norm_name, significant, stat_text

__all__ = ["accuracy_against_eps", "accuracy_against_norm", "eps_axis"]

AGAINST_EPS = Heading(
    "accuracy-against-eps",
    "Accuracy against attack strength",
    "The share of test images that are still classified correctly when each may be changed by up to ε. A line that "
    "stays high is a robust network.",
)
AGAINST_NORM = Heading(
    "accuracy-against-norm",
    "Do large norms hurt?",
    "Each point is one method: further right, its layers can amplify a change more; further up, it is more robust. If "
    "large norms hurt, the points fall from left to right. Bars: one standard deviation over seeds.",
)


def eps_axis(norm: str = "inf", eps: Sequence[float] = ()) -> Axis:
    """The axis of an attack's radii, in pixel values of [0, 1].

    Args:
        norm: of the ball, "1", "2" or "inf".
        eps: the radii; labeled as multiples of 1/255 where all of them are.
    """
    length = f"the {norm_name(norm)} length of the change"
    title = f"ε, {'the largest change of a pixel' if norm == 'inf' else length} (pixels are in [0, 1])"
    ticks = tuple(sorted({significant(e) for e in eps}))
    levels = norm == "inf" and all(math.isclose(255 * e, round(255 * e), abs_tol=2e-3) for e in ticks)
    levels = levels and bool(ticks)
    return Axis(title, ticks=ticks if levels else (), levels=levels, text=lambda e: eps_text(e, norm))


def accuracy_against_eps(
    rows: Sequence[Row], methods: Sequence[str] = (), heading: Heading = AGAINST_EPS
) -> Chart:
    """Accuracy under attack against the attack's strength, one panel per norm of the attack.

    Args:
        rows: ``method``, ``seed``, ``norm`` ("1", "2" or "inf"), ``eps`` (pixels in [0, 1]; 0 is no attack) and ``accuracy``
            (a fraction).
        methods: all methods in order, the baseline first.
        heading: key, title and caption.
    """
    norms = sorted({str(row["norm"]) for row in rows}, key=lambda norm: (norm != "inf", norm))
    panels = {
        norm: Panel(
            f"Accuracy, {norm_name(norm)} attacks",
            percent=True,
            limits=(0.0, 1.0),
            quantity="accuracy",
            x=eps_axis(norm, [row["eps"] for row in rows if str(row["norm"]) == norm]),
        )
        for norm in norms
    }
    points = [Point(method_of(row), str(row["norm"]), row["eps"], row["accuracy"]) for row in rows]
    return draw_curves(points, methods, heading, panels)


def accuracy_against_norm(
    rows: Sequence[Row],
    methods: Sequence[str] = (),
    *,
    norm: str = "norm_inf",
    accuracy: str = "robust",
    norm_label: str = "mean ℓ∞ norm of the layers",
    accuracy_label: str = "robust accuracy",
) -> Chart:
    """Robust accuracy against the layers' mean norm, one point per method: do large norms hurt?

    Args:
        rows: the table's rows: ``method``, and a `Stat` (or a number, or None) under the two keys.
        methods: all methods in order, the baseline first.
        norm: the key of the geometric-mean norm.
        accuracy: the key of the robust accuracy, a fraction.
        norm_label: the norm's name, for the axis.
        accuracy_label: the accuracy's name, for the heading.
    """
    import altair as alt

    from opnorm.report import drawing

    values: list[dict[str, Any]] = []
    for row in rows:
        x, y = Stat.from_cell(row.get(norm)), Stat.from_cell(row.get(accuracy))
        if x and y and x.mean > 0:
            numbers = {"x": x.mean, "x_lo": max(x.mean - x.std, x.mean / 100), "x_hi": x.mean + x.std}
            numbers |= {"value": y.mean, "lo": max(0.0, y.mean - y.std), "hi": min(1.0, y.mean + y.std)}
            value = {"panel": "norm", "method": method_of(row), "n": y.n, "at": stat_text(x)}
            value |= {key: significant(number) for key, number in numbers.items()}
            values.append(value | {"text": stat_text(y, percent=True)})
    order = list(dict.fromkeys([*methods, *map(method_of, rows)]))
    values.sort(key=lambda value: order.index(value["method"]))
    both = [value[end] for value in values for end in ("x_lo", "x_hi")]

    def horizontal(field: str) -> alt.X:
        return drawing.log_axis(alt.X(f"{field}:Q"), both, title=f"{norm_label} (log scale)")

    def vertical(field: str) -> alt.Y:
        return drawing.linear_axis(alt.Y(f"{field}:Q"), percent=True).scale(zero=False)

    base = alt.Chart(drawing.ROWS).encode(x=horizontal("x"), y=vertical("value"), detail="method:N")
    tooltip = drawing.tooltips(("method", "method"), ("at", "norm"), ("text", accuracy_label))
    layers = [
        drawing.bars(base, y=vertical("lo"), y2="hi"),
        drawing.bars(base, x=horizontal("x_lo"), x2="x_hi"),
        drawing.symbols(base, tooltip, 130),
    ]
    label = accuracy_label[:1].upper() + accuracy_label[1:]
    views = [drawing.view("norm", label, layers, 320)] if values else []
    return drawing.assemble(AGAINST_NORM, views, values, order)
