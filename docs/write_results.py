"""Write docs/results.md from the reports in results/: `make results-page`."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from opnorm.report import read_report, results_page
from opnorm.studies import papers

ROOT = Path(__file__).parents[1]


def names() -> Iterator[str]:
    """Every study of a paper, in the papers' order."""
    for paper in papers():
        yield from (f"{paper.name}.{part.name}" for part in paper.parts)


def page() -> str:
    """The page, of the studies whose reports are there."""
    paths = {name: ROOT / "results" / name / "report.json" for name in names()}
    reports = {name: read_report(path) for name, path in paths.items() if path.exists()}
    return results_page(reports, "../results")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", action="store_true", help="print the names of the studies instead")
    if parser.parse_args().names:
        print(*names(), sep="\n")
    else:
        (ROOT / "docs" / "results.md").write_text(page(), encoding="utf-8")
