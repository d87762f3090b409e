"""Write docs/results.md, and the times that `opnorm study --list` names, from results/: `make results-page`."""

import argparse
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from opnorm._core.plain_text import markdown_row
from opnorm.report import Report, read_report, to_markdown
from opnorm.report.tables import duration_text, table_note
from opnorm.studies import papers

ROOT = Path(__file__).parents[1]
OUTCOMES = ("holds", "does not hold", "not decided")
MINUTES = ROOT / "opnorm" / "studies" / "_shared" / "minutes.json"
HOW_TO_READ = """\
In a row, "measured" is the difference of the two that are named, the first minus the second, or so many times the second.
p is the chance of a difference at least so far on its side of the claim's bound if the true one were at the bound (Student's
test over the seeds, before the correction for the number of comparisons). Then come the 95 % intervals of the difference,
over other seeds and over other test images. Of several comparisons, the one is shown that decides. A claim that does not
hold, or is not decided, has a reason, from `results/reasons.toml`."""


def names() -> Iterator[str]:
    """Every study of a paper, in the papers' order."""
    for paper in papers():
        yield from (f"{paper.name}.{part}" for part in paper.parts)


def kept_reports() -> dict[str, Report]:
    """The reports that are there, by the study's name."""
    paths = {name: ROOT / "results" / name / "report.json" for name in names()}
    return {name: read_report(path) for name, path in paths.items() if path.exists()}


def reasons() -> dict[str, dict[str, str]]:
    """By study and claim: why it does not hold, or is not decided."""
    text = (ROOT / "results" / "reasons.toml").read_text(encoding="utf-8")
    return {
        study: {claim: " ".join(reason.split()) for claim, reason in some.items()}
        for study, some in tomllib.loads(text).items()
    }


def minutes(reports: Mapping[str, Report]) -> str:
    """How long each study computed, the sum of its runs in minutes, as JSON."""
    found = {name: max(1, round(_seconds(report) / 60)) for name, report in reports.items()}
    return json.dumps(found, indent=1) + "\n"


def results_page(
    reports: Mapping[str, Report],
    studies: Sequence[str],
    pictures: str,
    why: Mapping[str, Mapping[str, str]],
) -> str:
    """Reports of papers' studies as one page of Markdown: all claims, then a section for each study.

    Args:
        reports: by the study's name, such as ``liang2021.table2``, in order.
        studies: all names; those without a report are listed as not run.
        pictures: the folder, as seen from the page, in which ``NAME/KEY.svg`` are the charts.
        why: by study and claim, the reason why it does not hold, or is not decided.
    """
    with_reasons = {
        name: [c | {"reason": why.get(name, {}).get(c["name"], "")} for c in report.claims]
        for name, report in reports.items()
    }
    claims = [claim for some in with_reasons.values() for claim in some]
    counts = [(outcome, sum(claim["outcome"] == outcome for claim in claims)) for outcome in OUTCOMES]
    lines = [
        "# Results",
        "",
        "Every claim of the four papers that can be tested, with the verdict of our own measurements at the size `laptop`:",
        "small members of the papers' families of networks, small sets of images, two cores, a few seeds. A verdict says",
        "what these networks show, not what the papers' networks would. How: [studies](studies.md).",
        "This page is made from `results/` by `make results-page`; `make results` measures all of it again.",
        "",
        f"{len(claims)} claims. {' '.join(f'{outcome.capitalize()}: {count}.' for outcome, count in counts)}",
        "",
        HOW_TO_READ,
        "",
        *(
            [f"Not run yet: {', '.join(missing)}.", ""]
            if (missing := [s for s in studies if s not in reports])
            else []
        ),
        *_claims(claims, "## {}"),
    ]
    for name, report in reports.items():
        lines += ["", f"## {name}", "", *_study(name, report, f"{pictures}/{name}")]
        lines += _claims(with_reasons[name], "**{}**")
    return "\n".join(lines) + "\n"


def _study(name: str, report: Report, pictures: str) -> list[str]:
    """The section of one study, without its claims."""
    took, seeds = duration_text(_seconds(report)), 1 + max((run["seed"] for run in report.runs), default=0)
    lines = [report.question, "", "```sh", f"opnorm study {name} --size laptop --seeds {seeds}", "```", ""]
    lines += [f"- runs: {len(report.runs)}, {took} of computing time"]
    lines += [f"- {key}: {text}" for key, text in report.settings.items() if key != "computing time"]
    lines += ["", *(line for finding in report.findings for line in (finding, ""))]
    for section in report.sections:
        lines += [f"### {section.title}", ""]
        lines += [section.text, ""] if section.text and section.text != report.question else []
        for title, table in section.tables.items():
            lines += [f"{title}:", "", to_markdown(table)]
            lines += [note, ""] if (note := table_note(table)) else []
        for chart in section.charts:
            if not chart.empty:
                lines += [
                    f"![{chart.title}]({pictures}/{chart.key}.svg)",
                    "",
                    f"{chart.title}. {chart.caption}",
                    "",
                ]
    return lines


def _seconds(report: Report) -> float:
    """The computing time of all runs."""
    return sum(run["seconds"] or 0.0 for run in report.runs)


def _claims(claims: Sequence[dict[str, Any]], heading: str) -> list[str]:
    """Claims as tables, one for each outcome."""
    lines = []
    for outcome in OUTCOMES:
        some = [claim for claim in claims if claim["outcome"] == outcome]
        if some:
            rows = [
                [
                    _cell(c["sentence"]),
                    _cell(c["evidence"]) + (f"<br>Reason: {_cell(c['reason'])}" if c["reason"] else ""),
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", action="store_true", help="print the names of the studies instead")
    if parser.parse_args().names:
        print(*names(), sep="\n")
    else:
        reports = kept_reports()
        MINUTES.write_text(minutes(reports), encoding="utf-8")
        page = results_page(reports, list(names()), "../results", reasons())
        (ROOT / "docs" / "results.md").write_text(page, encoding="utf-8")
