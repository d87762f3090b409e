"""Tables as Markdown, LaTeX and CSV."""

import csv
import io
import re
import shutil
import subprocess

import pytest

from opnorm.report import (
    Column,
    Report,
    Section,
    Stat,
    Table,
    slug,
    to_csv,
    to_latex,
    to_markdown,
    write_tables,
)
from opnorm.report.tables import shown_columns, table_note

HOSTILE = "50% of_a & b#1 {x} $y$ ~ ^ \\cmd <b>|\n−ℓ∞ ε=10⁻³ log₁₀ é 中 *z*"
TABLE = Table(
    [
        Column("method", "training", "text"),
        Column("clean", "clean", "percent", "high"),
        Column("norm", "ℓ∞ norm", "number", "low"),
        Column("norm_paper", "paper, other setting"),
    ],
    [
        {"method": "plain", "clean": Stat(0.5, 0.1, 3, 200), "norm": Stat(-1234.5, 20.5, 3), "norm_paper": 7.0},
        {"method": HOSTILE, "clean": Stat(0.9, 0.01, 2, 200), "norm": None, "norm_paper": None},
        {"method": "one seed", "clean": Stat(0.7, 0.0, 1, 200), "norm": Stat(1e-9, 0.0, 1)},
        {"method": "weissi", "_failed": HOSTILE},
    ],
    best={"clean": [1, 2]},
)  # fmt: skip


def test_markdown():
    lines = to_markdown(TABLE).splitlines()
    assert lines[0] == "| training | clean (%) | ℓ∞ norm |"
    assert lines[1] == "|---|---:|---:|"
    assert lines[2] == "| plain | 50.0 ±\u200910.0 | −1,234 ±\u200920 (7.00) |", (
        "the paper's number is in parentheses"
    )
    assert "**90.0 ±\u20091.0** | not known |" in lines[3]
    assert lines[4] == "| one seed | *70.0* | 1.00 × 10⁻⁹ |"
    assert lines[5].startswith("| weissi | failed: 50%")
    assert len(lines) == 6, "line breaks in cells do not break rows"
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines} == {4}, "nor do bars"
    assert "<b" not in to_markdown(TABLE).replace("\\<b", "")


def test_the_note_says_what_is_in_parentheses():
    assert table_note(TABLE).startswith("In parentheses: the paper's number, other setting. Bold: ")
    assert [column.key for column in shown_columns(TABLE)] == ["method", "clean", "norm"]
    alone = Table(TABLE.columns[3:], [{"norm_paper": 7.0}])
    assert shown_columns(alone) == alone.columns, "no column that they belong to"
    assert table_note(alone) == ""


def test_latex_is_ascii_and_balanced():
    text = to_latex(TABLE)
    assert text.isascii()
    assert text.startswith("\\begin{tabular}{lrr}\n\\toprule\ntraining & clean (\\%)")
    rows = [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith(r"\\")]
    bare = [re.sub(r"\\[\\{}$&#%_]", "", row) for row in rows]  # without escaped characters
    assert [row.count("&") for row in bare] == [2, 2, 2, 2, 1]
    for row in bare:
        assert row.count("{") == row.count("}")
        assert row.count("$") % 2 == 0
        assert not re.search(r"\$\$", re.sub(r"\$[^$]+\$", "", row)), "no formula of its own line"
        assert not re.search(r"[#%]", row)
    assert r"plain & 50.0 $\pm$\,10.0 & $-$1,234" in rows[1]
    assert r"\textbf{90.0 $\pm$\,1.0} & not known" in rows[2]
    assert r"one seed & \textit{70.0}" in rows[3]
    assert r"$\ell$$\infty$ $\varepsilon$=10$^{-}$$^{3}$ log$_{1}$$_{0}$" in rows[2]
    assert r"\multicolumn{2}{l}{\emph{failed: 50\%" in rows[4]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex")
def test_latex_compiles(tmp_path):
    text = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{to_latex(TABLE)}\\end{{document}}"
    (tmp_path / "table.tex").write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "table.tex"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_csv_is_read_back():
    rows = list(csv.DictReader(io.StringIO(to_csv(TABLE))))
    names = ["method", "clean", "clean_std", "clean_n", "norm", "norm_std", "norm_n", "norm_paper", "failed"]
    assert list(rows[0]) == names
    assert rows[1]["method"] == rows[3]["failed"] == HOSTILE
    assert [float(rows[0][n]) for n in names[1:-1]] == [0.5, 0.1, 3, -1234.5, 20.5, 3, 7]
    assert [rows[1][n] for n in ("norm", "norm_std", "norm_n", "norm_paper")] == [""] * 4
    assert [rows[2][n] for n in ("norm", "norm_std", "norm_n")] == ["1e-09", "", "1"], (
        "one seed has no spread"
    )
    assert [row["failed"] == "" for row in rows] == [True, True, True, False]


def test_a_table_of_one_column_or_without_rows():
    single = Table([Column("method", "training", "text")], [{"method": "a"}, {"method": "b", "_failed": "x"}])
    for write in (to_markdown, to_latex, to_csv):
        assert write(single)
        assert write(Table(single.columns, []))
    assert to_latex(single).count("&") == 0


def test_every_table_has_its_files(tmp_path):
    twice = Section("table2", "Table 2", tables={"VGG-11": TABLE, "VGG 11": TABLE, "ℓ∞": TABLE})
    written = write_tables(Report("T", "Q?", table=TABLE, sections=[twice]), tmp_path / "tables")
    names = {path.name for path in written}
    assert names == {path.name for path in (tmp_path / "tables").iterdir()}
    stems = ("table", "table2-vgg-11", "table2-vgg-11--2", "table2-linf")
    assert names == {f"{stem}.{suffix}" for stem in stems for suffix in ("md", "tex", "csv")}
    assert slug("!") == "table"
