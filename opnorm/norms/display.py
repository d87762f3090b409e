"""Norms as text: numbers that are right to their last digit, tables that fit the terminal."""

import html as escaping
import math
from collections.abc import Iterator, Sequence
from typing import Any

from opnorm.errors import NormError
from opnorm.norms.norm import Norm, Product

__all__ = ["cell", "html", "key", "label", "markdown_row", "order", "product", "rich_table", "shape"]

DIGITS = 4
SLACK = 1e-9  # relative: what float64 rounding is allowed for need not be printed
TIGHT = 0.01  # intervals up to this relative width are shown as a number and a percentage
MARKS = "abcdefghijklmnopqrstuvwxyz"


# ---------------------------------------------------------------- names of norms


def key(ord: Any) -> str:
    """1 -> "1", inf -> "inf", (1, inf) -> "1:inf": in JSON, in CSV and on the command line."""
    return f"{ord[0]:g}:{ord[1]:g}" if isinstance(ord, tuple) else f"{ord:g}"


def order(text: str) -> Any:
    """What :func:`key` was given.

    Raises:
        NormError: it is none of 1, 2, inf, or two of them with a colon between them.
    """
    known = {"1": 1, "2": 2, "inf": math.inf}
    parts = [known.get(part.strip().removesuffix(".0")) for part in text.split(":")]
    if None in parts or len(parts) > 2:
        raise NormError(f"norm {text!r}: expected 1, 2, inf, or a pair such as 1:2 (from ℓ1 to ℓ2)")
    return parts[0] if len(parts) == 1 else tuple(parts)


def label(ord: Any) -> str:
    """ℓ1, ℓ∞, ℓ1→ℓ2."""
    if isinstance(ord, tuple):
        return f"{label(ord[0])}→{label(ord[1])}"
    return "ℓ∞" if math.isinf(ord) else f"ℓ{ord:g}"


def shape(size: Sequence[int]) -> str:
    """3x32x32."""
    return "x".join(map(str, size)) or "()"


# ---------------------------------------------------------------- numbers


def rounded(x: float, up: bool, digits: int = DIGITS) -> str:
    """So many digits, never below x (``up``) or never above it, but for a relative 1e-9."""
    if not math.isfinite(x) or x == 0:
        return f"{x:g}"
    size = math.floor(math.log10(abs(x))) + 1
    digits = max(digits, size if size <= 7 else 0)  # 15234 and not 1.523e+04
    text = f"{x:.{digits}g}"
    if (float(text) < x - SLACK * abs(x)) if up else (float(text) > x + SLACK * abs(x)):
        step = 10.0 ** (size - digits)
        text = f"{float(text) + (step if up else -step):.{digits}g}"
    return text


def nearest(x: float) -> str:
    """Four digits, or all before the point."""
    size = math.floor(math.log10(abs(x))) + 1 if x and math.isfinite(x) else 0
    return f"{x:.{max(DIGITS, size if size <= 7 else 0)}g}"


def interval(lower: float, upper: float) -> str:
    """What is known: a number, ``4.483 ± 0.12 %``, ``4.4 ... 6.2`` or ``≥ 4.4``, each true as it is printed."""
    if upper - lower <= SLACK * abs(lower):
        return nearest(lower)
    if math.isinf(upper):
        return f"≥ {rounded(lower, up=False)}"
    if lower > 0 and upper <= lower * (1 + TIGHT):
        shown = float(nearest((lower + upper) / 2))
        off = 100 * max(upper / shown - 1, 1 - lower / shown)
        return f"{nearest(shown)} ± {rounded(off, up=True, digits=1 if off < 0.1 else 2)} %"
    return f"{rounded(lower, up=False)} ... {rounded(upper, up=True)}"


def cell(norm: Norm | None, constant: float | None = None) -> str:
    """One norm, or the bound ``≤ 1`` of a layer that is not linear, or ``-``."""
    if norm is not None:
        return interval(float(norm.lower), float(norm.upper))
    return "-" if constant is None else f"≤ {rounded(constant, up=True)}"


def magnitude(log10: float, up: bool) -> str:
    """A number from its logarithm; as a power of ten where it is long."""
    if -4 < log10 < 6:
        return rounded(10.0**log10, up)
    return "0" if log10 == -math.inf else f"10^{rounded(log10, up)}"


def product(p: Product) -> str:
    """A product of many norms."""
    low = magnitude(p.log10_lower, up=False)
    if math.isinf(p.log10_upper) and p.log10_upper > 0:
        return f"not known ({p.reason})"
    high = magnitude(p.log10_upper, up=True)
    return high if low == high else f"{low} ... {high}"


# ---------------------------------------------------------------- tables


def markdown_row(cells: Sequence[str]) -> str:
    """One row; bars and line breaks in a cell do no harm."""
    return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


def short(text: str, width: int, keep: str = "end") -> str:
    """The text, cut to the width: the end of a layer's name says more than its beginning."""
    if len(text) <= width:
        return text
    return "…" + text[len(text) - width + 1 :] if keep == "end" else text[: width - 1] + "…"


def footnotes(notes: Sequence[Sequence[str]]) -> tuple[list[str], list[tuple[str, str]]]:
    """Marks for each row, and the marks with their texts; the same text has one mark."""
    marks: dict[str, str] = {}
    for text in (t for row in notes for t in row):
        i = len(marks)
        marks.setdefault(text, MARKS[i] if i < len(MARKS) else MARKS[i // 26 - 1] + MARKS[i % 26])
    return [" ".join(marks[t] for t in row) for row in notes], [(m, t) for t, m in marks.items()]


def rich_table(table: Sequence[Any], ords: Sequence[Any], totals: Sequence[str], width: int) -> Iterator[Any]:
    """The table for a terminal of this width, its notes and its totals."""
    rows = [
        [row.layer or "(model)", row.kind, shape(row.in_shape)]
        + [cell(row.norms.get(p), row.lipschitz.get(p)) for p in ords]
        for row in table
    ]
    notes = [[*row.tags, *([row.note] if row.note else [])] for row in table]
    head = ["layer", "kind", "input", *(label(p) for p in ords)]
    yield from laid_out(head, rows, notes, width, left=3)
    for line in totals:
        yield from _paragraph("", line)


def laid_out(
    head: Sequence[str], rows: list[list[str]], notes: Sequence[Sequence[str]], width: int, left: int
) -> Iterator[Any]:
    """A rich table with marks for its notes, cut to the width: first names and kinds, then whole text columns."""
    from rich.table import Table
    from rich.text import Text

    marks, texts = footnotes(notes)
    head, rows = [*head, ""], [[*row, mark] for row, mark in zip(rows, marks, strict=True)]
    widths = [max(len(r[i]) for r in [list(head), *rows]) for i in range(len(head))]
    shown = list(range(len(head)))

    def excess() -> int:
        return sum(widths[i] for i in shown) + 2 * (len(shown) - 1) - width

    for column, least in ((0, 20), (1, 9), (0, 12)):
        if excess() > 0 and column < left:
            widths[column] = min(widths[column], max(widths[column] - excess(), least))
    for column in (2, 1):
        if excess() > 0 and column < left:
            shown.remove(column)
    grid = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for i in shown:
        style = "dim" if i == len(head) - 1 else ""
        grid.add_column(head[i], justify="left" if i < left or style else "right", no_wrap=True, style=style)
    for row in rows:
        cells = [
            short(row[i], widths[i], "end" if i == 0 else "begin") if i < left else row[i] for i in shown
        ]
        dim = all(c == "-" or c.startswith("≤") for c in row[left:-1])
        grid.add_row(*(Text(c) for c in cells), style="dim" if dim else "")
    yield grid
    if texts:
        yield Text("")
    for mark, text in texts:
        yield from _paragraph(mark, text)
    yield Text("")


def _paragraph(mark: str, text: str) -> Iterator[Any]:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    if not mark:
        yield Text(text)
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(style="dim", overflow="fold")
    grid.add_row(Text(mark), Text(text))
    yield Padding(grid, 0, expand=False)


def html(table: Sequence[Any], ords: Sequence[Any], totals: Sequence[str]) -> str:
    """The table as HTML without style, for a notebook or a page."""
    head = ["layer", "kind", "input", *(label(p) for p in ords), "note"]
    lines = [
        "<table>",
        "<thead><tr>" + "".join(f"<th>{escaping.escape(h)}</th>" for h in head) + "</tr></thead>",
        "<tbody>",
    ]
    for row in table:
        norms = [cell(row.norms.get(p), row.lipschitz.get(p)) for p in ords]
        notes = "; ".join(filter(None, (*row.tags, row.note)))
        cells = [row.layer or "(model)", row.kind, shape(row.in_shape), *norms, notes]
        lines.append("<tr>" + "".join(f"<td>{escaping.escape(c)}</td>" for c in cells) + "</tr>")
    return "\n".join([*lines, "</tbody>", "</table>", *(f"<p>{escaping.escape(t)}</p>" for t in totals)])
