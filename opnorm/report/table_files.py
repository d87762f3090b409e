"""Tables of a report as Markdown, LaTeX and CSV, and as files beside the page."""

import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from opnorm._core import files
from opnorm._core.plain_text import csv_text, encodable, markdown_row
from opnorm.report.document import Report, Stat, Table
from opnorm.report.tables import shown_columns, table_rows

__all__ = ["slug", "to_csv", "to_latex", "to_markdown", "write_tables"]

ESCAPED = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": "$<$", ">": "$>$", "|": "$|$", '"': "''",
    "±": r"$\pm$", "−": "$-$", "×": r"$\times$", "·": r"$\cdot$", "ℓ": r"$\ell$", "∞": r"$\infty$", "ε": r"$\varepsilon$",
    "≤": r"$\leq$", "≥": r"$\geq$", "→": r"$\to$", "λ": r"$\lambda$", "β": r"$\beta$", "–": "--", "—": "---",
    "“": "``", "”": "''", "‘": "`", "’": "'", "…": r"\ldots{}", "\u00a0": "~", "\u2009": r"\,", "\n": " ",
}  # fmt: skip
RAISED = {"<super>": "^", "<sub>": "_"}


def to_markdown(table: Table) -> str:
    """The table as Markdown: mean ± standard deviation, the best in bold, what ties with it in italics.

    Numbers of a paper follow in parentheses. A failed row has its reason in its second cell.
    """
    columns = shown_columns(table)
    head = [_heading(_markdown(column.label), column.kind, "%") for column in columns]
    rule = "|" + "|".join("---" if column.kind == "text" else "---:" for column in columns) + "|"
    others = len(columns) - 1
    rows = _rows(
        table, _markdown, {"best": "**{}**", "tied": "*{}*"}, lambda why: [why, *[""] * (others - 1)][:others]
    )
    return "\n".join([markdown_row(head), rule, *map(markdown_row, rows)]) + "\n"


def to_latex(table: Table) -> str:
    """The table as a LaTeX ``tabular`` for the package booktabs, in ASCII: as :func:`to_markdown` in its content."""
    columns = shown_columns(table)
    align = "".join("l" if column.kind == "text" else "r" for column in columns)
    head = [_heading(_latex(column.label), column.kind, r"\%") for column in columns]
    others = len(columns) - 1
    rows = _rows(
        table,
        _latex,
        {"best": r"\textbf{{{}}}", "tied": r"\textit{{{}}}"},
        lambda why: [rf"\multicolumn{{{others}}}{{l}}{{\emph{{{why}}}}}"] if others else [],
    )
    lines = [rf"{' & '.join(cells)} \\" for cells in (head, *rows)]
    body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([rf"\begin{{tabular}}{{{align}}}", *body, r"\end{tabular}"]) + "\n"


def to_csv(table: Table) -> str:
    """The table as CSV: numbers in full, shares as fractions.

    The columns have the keys of the table's; those with means over seeds are followed by the standard deviation (empty with
    one seed) and the number of seeds, KEY_std and KEY_n. What is not known is empty. The last column, if a row has failed,
    says why.
    """
    spread = {c.key for c in table.columns if any(isinstance(row.get(c.key), Stat) for row in table.rows)}
    failed = ["failed"] if any(row.get("_failed") for row in table.rows) else []
    ends = {c.key: ("", "_std", "_n") if c.key in spread else ("",) for c in table.columns}
    lines: list[list[Any]] = [[*(key + end for key, names in ends.items() for end in names), *failed]]
    for row in table.rows:
        cells: list[Any] = []
        for key, names in ends.items():
            value = row.get(key)
            stat = Stat.from_cell(value)
            if isinstance(value, str):
                cells += [value, "", ""][: len(names)]
            elif stat is None:
                cells += [""] * len(names)
            else:
                cells += [stat.mean, stat.std if stat.n > 1 else "", stat.n][: len(names)]
        lines.append([*cells, *(row.get("_failed") or "" for _ in failed)])
    return csv_text(lines)


def write_tables(report: Report, folder: Path) -> list[Path]:
    """Write every table as ``folder/SECTION-TITLE.md``, ``.tex`` and ``.csv``; the one without a section as ``table``."""
    named = [("table", report.table)] if report.table else []
    named += [
        (f"{section.key}-{slug(title)}", table)
        for section in report.sections
        for title, table in section.tables.items()
    ]
    made: dict[str, Callable[[Table], str]] = {"md": to_markdown, "tex": to_latex, "csv": to_csv}
    written: list[Path] = []
    for name, table in named:
        count = sum(path.stem == name or path.stem.startswith(f"{name}--") for path in written) // len(made)
        for suffix, text in made.items():
            path = folder / f"{name}{f'--{count + 1}' if count else ''}.{suffix}"
            files.write_bytes(path, text(table).encode("utf-8", "backslashreplace"))
            written.append(path)
    return written


def slug(title: str) -> str:
    """A title as a part of a file's name: lower-case letters, digits and single hyphens.

    Example:
        >>> slug("Theorem 2, ℓ∞: robust networks")
        'theorem-2-linf-robust-networks'
    """
    return re.sub(r"[^a-z0-9]+", "-", encodable(title, "ascii").lower()).strip("-") or "table"


def _heading(label: str, kind: str, percent: str) -> str:
    return f"{label} ({percent})" if kind == "percent" else label


def _rows(
    table: Table,
    escape: Callable[[str], str],
    marks: Mapping[str, str],
    reason: Callable[[str], list[str]],
) -> list[list[str]]:
    """The cells of every row as text; a failed one has its name and the cells of its reason."""
    found = []
    for row in table_rows(table):
        name, *cells = row["cells"]
        texts = [escape(name["text"] or "not known")]
        if row["reason"]:
            texts += reason(escape(row["reason"]))
        else:
            for cell in cells:
                text = escape(" ".join(filter(None, [cell["text"], cell["spread"]])) or "not known")
                printed = f" ({escape(cell['printed'])})" if cell["printed"] else ""
                texts.append(marks.get(cell["mark"], "{}").format(text) + printed)
        found.append(texts)
    return found


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_<>\[\]])", r"\\\1", text)


def _latex(text: str) -> str:
    """Text for LaTeX, in ASCII."""
    return "".join(map(_latex_char, text))


def _latex_char(char: str) -> str:
    if char in ESCAPED:
        return ESCAPED[char]
    if char.isascii():
        return char if char.isprintable() else " "
    form, _, code = unicodedata.decomposition(char).partition(" ")
    if form in RAISED and " " not in code:  # such as a superscript two
        inner = ESCAPED.get(chr(int(code, 16)), chr(int(code, 16))).strip("$")
        return f"${RAISED[form]}{{{inner}}}$"
    return "".join(ESCAPED.get(c, c) for c in encodable(char, "ascii"))
