"""Charts of one line per method against a number, or against names in order, in one panel or several."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from opnorm.report.document import Chart, Stat, known
from opnorm.report.theme import significant, stat_text

__all__ = ["Axis", "Heading", "Panel", "Point", "draw_curves", "method_of"]

Row = Mapping[str, Any]


class Heading(NamedTuple):
    """Key, title and caption of a chart; see :class:`opnorm.report.Chart`."""

    key: str
    title: str
    caption: str


class Axis(NamedTuple):
    """A horizontal axis.

    Attributes:
        title: with units.
        quantity: the title in tooltips; up to the first bracket or comma of ``title`` when empty.
        log: a logarithmic scale, which leaves out values that are not above 0.
        zero: whether the axis includes 0.
        names: for an axis of names, these in order.
        ticks: values of the ticks; chosen by Vega-Lite when empty.
        levels: whether ticks are labeled as multiples of 1/255.
        text: a value as text, for tooltips.
        mark: a dashed vertical line at a value, with a text to its left.
    """

    title: str = ""
    quantity: str = ""
    log: bool = False
    zero: bool = True
    names: tuple[str, ...] = ()
    ticks: tuple[float, ...] = ()
    levels: bool = False
    text: Callable[[float], str] = "{:.4g}".format
    mark: tuple[float, str] | None = None

    @property
    def name(self) -> str:
        """The title in tooltips; "at" where the axis has none."""
        return self.quantity or self.title.partition(" (")[0].partition(",")[0] or "at"


class Panel(NamedTuple):
    """Title and vertical axis of a panel.

    Attributes:
        title: above the panel.
        log: a logarithmic scale.
        percent: values are fractions, written times 100.
        zero: whether the axis includes 0, unless it is logarithmic.
        limits: ends of the axis; chosen from the values when None.
        quantity: the title of the value in tooltips.
        note: the title of the points' notes in tooltips.
        dots: whether each point is marked, where the chart marks points at all.
        x: its own horizontal axis, where it differs from the chart's.
    """

    title: str
    log: bool = False
    percent: bool = False
    zero: bool = True
    limits: tuple[float, float] | None = None
    quantity: str = "value"
    note: str = ""
    dots: bool = True
    x: Axis | None = None


class Point(NamedTuple):
    """One value of one method and seed; points that differ in the seed alone are averaged.

    Attributes:
        method: the method's label.
        panel: the key of the panel.
        x: a number, or a name for an axis of names.
        value: vertical; left out where it is not known. A point of a rug (a tick on the horizontal axis) has none.
        low: lower end of the error bar; mean less one standard deviation over the seeds when None.
        high: upper end.
        note: a text for the tooltip.
        rug: whether it is a tick on the horizontal axis.
    """

    method: str
    panel: str
    x: float | str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""
    rug: bool = False


def method_of(row: Row) -> str:
    """The label of a row's method; "network" for rows of a single network, which need none."""
    return str(row.get("method", "network"))


def draw_curves(
    points: Iterable[Point],
    methods: Sequence[str],
    heading: Heading,
    panels: Mapping[str, Panel],
    x: Axis | None = None,
    *,
    dots: bool = True,
    band: bool = False,
    columns: int = 2,
) -> Chart:
    """One line per method in every panel, averaged over seeds, with error bars of one standard deviation.

    A panel whose points all stand at one number has one symbol per method side by side instead.

    Args:
        points: in any order.
        methods: all methods in order, the baseline first; methods that only the points name follow.
        heading: key, title and caption.
        panels: in order; those without points are left out.
        x: the horizontal axis of the panels that have none of their own.
        dots: whether each point is marked.
        band: show the standard deviation as a band, of the methods that are picked alone, in place of error bars.
        columns: at most so many panels side by side.
    """
    points = list(points)
    order = list(dict.fromkeys([*methods, *(point.method for point in points)]))
    placed: dict[str, tuple[Panel, Axis, list[dict[str, Any]]]] = {}
    beside = set()
    for key, panel in panels.items():
        axis = panel.x or x or Axis()
        some = [
            p for p in points if p.panel == key and (p.rug or known(p.value)) and _on_axis(p.x, axis)
        ]  # fmt: skip
        if _at_one_number(some):
            beside.add(key)
            panel, axis, some = _side_by_side(panel, axis, some, order)
        if own := _values(key, some, panel, axis, order):
            placed[key] = panel, axis, own
    from opnorm.report import drawing  # loads altair

    drawn = [
        drawing.panel(key, panel, axis, own, dots=dots or key in beside, band=band and key not in beside)
        for key, (panel, axis, own) in placed.items()
    ]
    values = [value for _, _, own in placed.values() for value in own]
    symbols = dots or bool(placed.keys() & beside)
    return drawing.assemble(heading, drawn, values, order, dots=symbols, columns=columns)


def _at_one_number(points: Sequence[Point]) -> bool:
    """Whether several methods have one point each, all above one number, so that no line can be drawn."""
    places = {point.x for point in points}
    several = len({point.method for point in points}) > 1
    return several and len(places) == 1 and not any(p.rug or isinstance(p.x, str) for p in points)


def _side_by_side(
    panel: Panel, axis: Axis, points: Sequence[Point], order: Sequence[str]
) -> tuple[Panel, Axis, list[Point]]:
    """The panel with the methods' names on its horizontal axis, and the number in its title."""
    there = {point.method for point in points}
    place = points[0].x
    title = f"{panel.title}, {axis.name} = {place if isinstance(place, str) else axis.text(place)}"
    names = Axis(quantity="method", names=tuple(method for method in order if method in there))
    return panel._replace(title=title, dots=True, zero=False), names, [p._replace(x=p.method) for p in points]


def _values(
    key: str, points: Sequence[Point], panel: Panel, axis: Axis, order: Sequence[str]
) -> list[dict[str, Any]]:
    """The means over seeds of one panel, in the order of the methods and along the axis."""
    groups: dict[tuple[str, float | str, bool], list[Point]] = {}
    for point in points:
        groups.setdefault((point.method, point.x, point.rug), []).append(point)
    own = [_value(key, group, panel, axis) for group in groups.values()]
    places = {name: i for i, name in enumerate(axis.names)}
    return sorted(
        (value for value in own if value is not None),
        key=lambda value: (order.index(value["method"]), places.get(value["x"], value["x"])),
    )


def _on_axis(x: float | str, axis: Axis) -> bool:
    return isinstance(x, str) or (known(x) and not (axis.log and x <= 0))


def _value(key: str, group: Sequence[Point], panel: Panel, axis: Axis) -> dict[str, Any] | None:
    """The mean over seeds as a row of the chart's data; None where a logarithmic axis has no place for it."""
    first = group[0]
    x = first.x if isinstance(first.x, str) else significant(first.x)
    value = {"panel": key, "method": first.method, "x": x}
    value["at"] = first.x if isinstance(first.x, str) else axis.text(first.x)
    if first.rug:
        return value | {"rug": True}
    stat = Stat.of(point.value for point in group)
    if stat is None or (panel.log and stat.mean <= 0):
        return None
    lows = [point.low for point in group if known(point.low)]
    highs = [point.high for point in group if known(point.high)]
    low = min(lows) if lows else stat.mean - stat.std
    high = max(highs) if highs else stat.mean + stat.std
    if panel.log:
        low = max(low, stat.mean / (1e6 if lows else 100))
    if panel.limits:
        low, high = max(low, panel.limits[0]), min(high, panel.limits[1])
    value |= {"value": significant(stat.mean), "lo": significant(low), "hi": significant(high), "n": stat.n}
    value["text"] = stat_text(stat, panel.percent)
    return value | ({"note": first.note or f"{low:.3g} to {high:.3g}"} if panel.note else {})
