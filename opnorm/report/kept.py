"""Reports in a repository: their content as JSON with six digits, their charts as small pictures, and one page of all."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opnorm._core import files
from opnorm._core.plain_text import markdown_row
from opnorm.errors import RunError
from opnorm.report.document import Chart, Column, Report, Section, Stat, Table
from opnorm.report.page import small_svg
from opnorm.report.table_files import to_markdown
from opnorm.report.tables import duration_text

__all__ = ["keep_report", "read_report", "results_page"]

OUTCOMES = ("holds", "does not hold", "not decided")


def keep_report(report: Report, folder: Path) -> Path:
    """Write a report as ``folder/report.json`` and its charts as ``folder/KEY.svg``, to be committed to a repository.

    Numbers have six digits. Files of an earlier report in the folder are replaced.

    Returns:
        The path of ``report.json``.
    """
    files.make_folder(folder)
    for old in folder.glob("*.svg"):
        old.unlink()
    for chart in report.all_charts:
        if not chart.empty:
            files.write_bytes(folder / f"{chart.key}.svg", small_svg(chart.spec, report.highlight).encode())
    files.write_json(folder / "report.json", _six_digits(asdict(report)))
    return folder / "report.json"


def read_report(path: Path) -> Report:
    """The report that :func:`~opnorm.report.write_json` or :func:`keep_report` has written.

    Raises:
        RunError: the file cannot be read, or holds something else.
    """
    content = files.read_json(path)
    try:
        table, charts = content["table"], _charts(content["charts"])
        sections = [
            Section(
                s["key"],
                s["title"],
                s["text"],
                {t: _table(v) for t, v in s["tables"].items()},
                _charts(s["charts"]),
            )
            for s in content["sections"]
        ]
        made = {"table": _table(table) if table else None, "charts": charts, "sections": sections}
        return Report(**{**content, **made})
    except (AttributeError, KeyError, TypeError) as e:
        raise RunError(f"{path} is not the report of a study ({type(e).__name__}: {e})") from e


def results_page(reports: Mapping[str, Report], pictures: str) -> str:
    """Reports of papers' studies as one page of Markdown: all claims, then a section for each study.

    Args:
        reports: by the study's name, such as ``liang2021.table2``, in order.
        pictures: the folder, as seen from the page, in which ``NAME/KEY.svg`` are the charts.
    """
    claims = [claim for report in reports.values() for claim in report.claims]
    counts = ", ".join(f"{sum(c['outcome'] == outcome for c in claims)} {outcome}" for outcome in OUTCOMES)
    lines = [
        "# Results",
        "",
        "Every claim of the four papers that can be tested, with the verdict of our own measurements at the size `laptop`:",
        "small members of the papers' families of networks, small sets of images, two cores, a few seeds. A verdict says",
        "what these networks show, not what the papers' networks would. How: [studies](studies.md).",
        "This page is made from `results/` by `make results-page`; `make results` measures all of it again.",
        "",
        f"{len(claims)} claims: {counts}.",
        "",
        *_claims(claims, "## {}"),
    ]
    for name, report in reports.items():
        lines += ["", f"## {name}", "", *_study(name, report, f"{pictures}/{name}")]
    return "\n".join(lines) + "\n"


def _study(name: str, report: Report, pictures: str) -> list[str]:
    """The section of one study."""
    took = duration_text(sum(run["seconds"] or 0.0 for run in report.runs))
    lines = [report.question, "", "```sh", f"opnorm study {name} --size laptop", "```", ""]
    lines += [f"- runs: {len(report.runs)}, {took} of computing time"]
    lines += [f"- {key}: {text}" for key, text in report.settings.items() if key != "computing time"]
    lines += ["", *(line for finding in report.findings for line in (finding, ""))]
    for section in report.sections:
        lines += [f"### {section.title}", ""]
        lines += [section.text, ""] if section.text and section.text != report.question else []
        for title, table in section.tables.items():
            lines += [f"{title}:", "", to_markdown(table)]
        for chart in section.charts:
            if not chart.empty:
                lines += [
                    f"![{chart.title}]({pictures}/{chart.key}.svg)",
                    "",
                    f"{chart.title}. {chart.caption}",
                    "",
                ]
    return lines + _claims(report.claims, "**{}**")


def _claims(claims: Sequence[dict[str, Any]], heading: str) -> list[str]:
    """Claims as tables, one for each outcome."""
    lines = []
    for outcome in OUTCOMES:
        some = [claim for claim in claims if claim["outcome"] == outcome]
        if some:
            rows = [
                [
                    _cell(c["sentence"]),
                    _cell(c["evidence"]),
                    _cell(c["section"]),
                    f"[{c['study']}](#{_anchor(c['study'])})",
                ]
                for c in some
            ]
            head = markdown_row(["claim", "measured", "in the paper", "study"])
            lines += [
                heading.format(outcome.capitalize()),
                "",
                head,
                "|---|---|---|---|",
                *map(markdown_row, rows),
                "",
            ]
    return lines


def _anchor(heading: str) -> str:
    """The name that Markdown gives to a heading."""
    return heading.lower().replace(".", "")


def _cell(text: str) -> str:
    return text.replace("*", r"\*").replace("_", r"\_").replace("<", "&lt;")


def _six_digits(value: Any) -> Any:
    """A value with its floats rounded to six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _six_digits(inner) for key, inner in value.items()}
    return [_six_digits(inner) for inner in value] if isinstance(value, list | tuple) else value


def _charts(charts: Sequence[Mapping[str, Any]]) -> list[Chart]:
    return [Chart(**chart) for chart in charts]


def _table(table: Mapping[str, Any]) -> Table:
    rows = [
        {key: Stat(**cell) if isinstance(cell, dict) else cell for key, cell in row.items()}
        for row in table["rows"]
    ]
    return Table([Column(**column) for column in table["columns"]], rows, table["best"])
