"""Tables of norms as text that fits the terminal, as Markdown, HTML and CSV."""

import html
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from opnorm._core.orders import key, label, order
from opnorm._core.plain_text import encodable, markdown_row
from opnorm.norms.norm import Norm, Product
from opnorm.norms.number_text import interval, magnitude, rounded

__all__ = ["Grid", "TextTable", "cell", "first_few", "key", "label", "order", "product", "shape"]

MARKS = "abcdefghijklmnopqrstuvwxyz"


# ---------------------------------------------------------------- cells


def shape(size: Sequence[int]) -> str:
    """3x32x32."""
    return "x".join(map(str, size)) or "()"


def cell(norm: Norm | None, constant: float | None = None) -> str:
    """One norm, or the bound ``≤ 1`` of a layer that is not linear, or ``-``."""
    if norm is not None:
        return interval(float(norm.lower), float(norm.upper))
    return "-" if constant is None else f"≤ {rounded(constant, up=True)}"


def product(p: Product) -> str:
    """A product of many norms."""
    low = magnitude(p.log10_lower, up=False)
    if math.isinf(p.log10_upper) and p.log10_upper > 0:
        return f"not known ({p.reason})"
    high = magnitude(p.log10_upper, up=True)
    return high if low == high else f"{low} ... {high}"


def first_few(names: Sequence[str], most: int = 4) -> str:
    """Names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# ---------------------------------------------------------------- tables


class Grid(NamedTuple):
    """A table as text.

    Attributes:
        head: the names of the columns.
        rows: their cells.
        names: how many columns at the left are names; the others are numbers.
        totals: lines below the table.
        notes: the remarks on each row; None for a table without remarks.
    """

    head: list[str]
    rows: list[list[str]]
    names: int
    totals: list[str]
    notes: list[list[str]] | None = None

    def encodable(self, encoding: str) -> "Grid":
        """The same in the characters of an encoding."""

        def plain(texts: list[str]) -> list[str]:
            return [encodable(text, encoding) for text in texts]

        notes = None if self.notes is None else [plain(row) for row in self.notes]
        rows = [plain(row) for row in self.rows]
        return Grid(plain(self.head), rows, self.names, plain(self.totals), notes)


class TextTable(ABC):
    """What prints itself in a terminal and a notebook, and writes itself as Markdown and HTML."""

    @abstractmethod
    def grid(self, width: int | None = None) -> Grid:
        """The table as text, for a terminal of this width or, by default, without a limit."""

    def to_markdown(self) -> str:
        """A table for a README or an issue, with totals below."""
        head, rows, names, totals, _ = _with_note_column(self.grid())
        numbers = len(self.grid().head) - names
        rule = "|" + "|".join(["---"] * names + ["---:"] * numbers + ["---"] * (len(head) - names - numbers))
        table = [markdown_row(head), f"{rule}|", *map(markdown_row, rows)]
        return "\n".join([*table, "", *(f"{line}  " for line in totals)]).rstrip() + "\n"

    def to_html(self) -> str:
        """The table as a piece of HTML without style."""
        head, rows, _, totals, _ = _with_note_column(self.grid())

        def line(cells: list[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

        lines = ["<table>", f"<thead>{line(head, 'th')}</thead>", "<tbody>", *(line(r, "td") for r in rows)]
        return "\n".join([*lines, "</tbody>", "</table>", *(f"<p>{html.escape(t)}</p>" for t in totals)])

    def _repr_html_(self) -> str:
        return self.to_html()

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        grid = self.grid(options.max_width).encodable(options.encoding)
        yield from _laid_out(grid, options.max_width)
        yield from map(Text, grid.totals)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=110, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _with_note_column(grid: Grid) -> Grid:
    if grid.notes is None:
        return grid
    rows = [[*row, "; ".join(notes)] for row, notes in zip(grid.rows, grid.notes, strict=True)]
    return grid._replace(head=[*grid.head, "note"], rows=rows)


def _footnotes(notes: Sequence[Sequence[str]]) -> tuple[list[str], dict[str, str]]:
    """Marks for each row, and the mark of each text; the same text has one mark."""
    marks: dict[str, str] = {}
    for text in (t for row in notes for t in row):
        i = len(marks)
        marks.setdefault(text, MARKS[i] if i < len(MARKS) else MARKS[i // 26 - 1] + MARKS[i % 26])
    return [" ".join(marks[t] for t in row) for row in notes], marks


def _laid_out(grid: Grid, width: int) -> Iterator[Any]:
    """A rich table with marks for its notes, cut to the width: first names and kinds, then whole text columns."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    marks, texts = _footnotes(grid.notes or [[] for _ in grid.rows])
    head, rows = [*grid.head, ""], [[*row, mark] for row, mark in zip(grid.rows, marks, strict=True)]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    columns = list(range(len(head)))

    def excess() -> int:
        return sum(widths[i] for i in columns) + 2 * (len(columns) - 1) - width

    for column, least in ((0, 20), (1, 9), (0, 12)):
        if excess() > 0:
            widths[column] = min(widths[column], max(widths[column] - excess(), least))
    for column in (2, 1):
        if excess() > 0 and column < grid.names:
            columns.remove(column)
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for i in columns:
        style = "dim" if i == len(head) - 1 else ""
        side = "left" if i < grid.names or style else "right"
        table.add_column(head[i], justify=side, no_wrap=True, style=style)  # type: ignore[arg-type]
    for row in rows:
        cells = [_cut(row[i], widths[i], at_start=i == 0) if i < grid.names else row[i] for i in columns]
        dim = all(c == "-" or c.startswith(("≤", "<=")) for c in row[grid.names : -1])
        table.add_row(*map(Text, cells), style="dim" if dim else "")
    yield table
    if texts:
        yield Text("")
    for text, mark in texts.items():
        note = Table.grid(padding=(0, 2, 0, 0))
        note.add_column(style="dim", no_wrap=True)
        note.add_column(style="dim", overflow="fold")
        note.add_row(Text(mark), Text(text))
        yield Padding(note, 0, expand=False)
    yield Text("")


def _cut(text: str, width: int, at_start: bool) -> str:
    """The text in this width: the end of a layer's name says more than its beginning."""
    if len(text) <= width:
        return text
    return "…" + text[len(text) - width + 1 :] if at_start else text[: width - 1] + "…"
