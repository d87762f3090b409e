"""The results of the analyses of one network or of several, and their page."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from opnorm import spec
from opnorm._core import files
from opnorm.analyses import Analysis, Row
from opnorm.report import (
    Cell,
    Chart,
    Column,
    Report,
    Section,
    Stat,
    Table,
    epoch_charts,
    write_figures,
    write_json,
    write_page,
)
from opnorm.runs.training_run import environment

LISTED = 4  # values of a list in a cell

__all__ = ["Network", "NetworkReport", "NetworkResults"]


@dataclass(frozen=True)
class Network:
    """A network to analyze.

    Attributes:
        label: its name on the page.
        model: in eval mode, (B, C, H, W) in [0, 1] -> (B, K).
        call: the call that made it, for the page.
        metrics: the metrics of training after each epoch, where they are known.
    """

    label: str
    model: nn.Module
    call: str = ""
    metrics: Sequence[Row] = ()


@dataclass
class NetworkResults:
    """The analyses of one network.

    Attributes:
        network: the network.
        key: names the folder where the rows are kept.
        rows: of every analysis, by its call.
        failures: why an analysis was not possible, by its call.
        seconds: that the analyses took, by call, whenever they were made.
    """

    network: Network
    key: str
    rows: dict[str, list[Row]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def find(self, name: str) -> list[Row]:
        """The rows of all analyses of that name."""
        return [row for call, rows in self.rows.items() if spec.parse(call).name == name for row in rows]


@dataclass(frozen=True)
class NetworkReport:
    """The analyses of one network or of several.

    Attributes:
        results: of each network, the baseline first.
        data: the data set's name and counts.
    """

    results: Sequence[NetworkResults]
    data: dict[str, Any]

    @property
    def name(self) -> str:
        """A name for the page's folder, which the networks, the data and the analyses decide."""
        content = [(r.network.label, r.key, sorted({*r.rows, *r.failures})) for r in self.results]
        kind = "analyze" if len(self.results) == 1 else "compare"
        return f"{kind}-{hashlib.sha256(repr(content).encode()).hexdigest()[:8]}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, by label."""
        return {
            r.network.label: {
                "model": r.network.call,
                "key": r.key,
                "data": self.data,
                "analyses": r.rows,
                "impossible": r.failures,
            }
            for r in self.results
        }

    def write(self, folder: str | Path, figures: str | None = None) -> Path:
        """Write the page, and beside it ``report.json`` and ``analyses.json`` with the rows themselves.

        Args:
            folder: made if it is missing.
            figures: also write each figure as "svg", "pdf" or "png".

        Returns:
            The path of the page.
        """
        folder, report = Path(folder), self.report()
        page = write_page(report, folder / "report.html")
        write_json(report, folder / "report.json")
        files.write_json(folder / "analyses.json", self.as_dict())
        if figures:
            write_figures(report, folder / "figures", figures)
        return page

    def report(self) -> Report:
        """The page's content; the first network is drawn in black."""
        labels, many = [r.network.label for r in self.results], len(self.results) > 1
        analyses = self._analyses()
        charts, shown = list[Chart](), set[str]()
        for name, analysis in analyses.items():
            chart = analysis.chart(_labeled((r, r.find(name)) for r in self.results), labels)
            if chart is not None and not chart.empty:
                charts.append(chart)
                shown.add(name)
            if any(analysis.columns(rows) for r in self.results if (rows := r.find(name))):
                shown.add(name)
        charts += epoch_charts(_labeled((r, r.network.metrics) for r in self.results), labels)
        table = self._table(analyses)
        names = ", ".join(labels[:-1]) + f" and {labels[-1]}" if many else labels[0]
        return Report(
            title=f"{names}, side by side" if many else f"Analyses of {names}",
            question=(
                f"How accurate and how robust {'are these networks' if many else 'is this network'} on {self.data['name']}, "
                "how large are the norms of the layers, and how does the output respond to small changes of an image?"
            ),
            findings=[*self._cautions(analyses), *self._findings(analyses, table), *self._impossible()],
            table=table,
            charts=charts,
            settings=self._settings(),
            sections=[
                Section(
                    f"rows-{n}", title, tables={title: _rows_table((r, r.find(name)) for r in self.results)}
                )
                for n, name in enumerate(name for name in analyses if name not in shown)
                for title in [f"Rows of {name}"]
            ],
            runs=[
                {"key": r.key, "label": r.network.label, "seed": "", "seconds": sum(r.seconds.values())}
                for r in self.results
            ],
        )

    def _analyses(self) -> dict[str, Analysis]:
        """By name, every analysis that has rows; an own function that gives rows alone has no display."""
        found: dict[str, Analysis] = {}
        for call in (call for r in self.results for call, rows in r.rows.items() if rows):
            built = spec.build(call, "analysis")
            found[spec.parse(call).name] = built if isinstance(built, Analysis) else Analysis(built)
        return found

    def _table(self, analyses: Mapping[str, Analysis]) -> Table:
        columns = {"method": Column("method", "network", "text")}
        rows: list[dict[str, Cell]] = [{"method": r.network.label} for r in self.results]
        for name, analysis in analyses.items():
            for r, row in zip(self.results, rows, strict=True):
                for column, cell in analysis.columns(found) if (found := r.find(name)) else ():
                    columns.setdefault(column.key, column)
                    row[column.key] = cell
        whole = [row.get("accuracy_test") for row in rows]
        same = [
            key for key in columns if key.startswith("clean_of_") and [row.get(key) for row in rows] == whole
        ]
        return Table([column for key, column in columns.items() if key not in same], rows)

    def _findings(self, analyses: Mapping[str, Analysis], table: Table) -> list[str]:
        """Of one network, every analysis as a sentence; of several, the best of each column and the differences."""
        first, *others = self.results
        if not others:
            found = [a.sentence(first.find(name)) for name, a in analyses.items()]
            return [sentence for sentence in found if sentence]
        found = []
        for column in table.columns:
            values = {
                str(r["method"]): stat for r in table.rows if (stat := Stat.from_cell(r.get(column.key)))
            }
            if column.better and len(values) > 1:
                ranked = sorted(values, key=lambda m: values[m].mean, reverse=column.better == "high")
                text = ", ".join(f"{method} {_share(values[method])}" for method in ranked)
                ends = [stat.interval for stat in values.values() if stat.interval]
                alike = len(ends) == len(values) and max(e[0] for e in ends) <= min(e[1] for e in ends)
                chance = "; all intervals overlap, so the order may be chance" if alike else ""
                found.append(f"{column.label[:1].upper()}{column.label[1:]}, the best first: {text}{chance}.")
        for other in others:
            for name, analysis in analyses.items():
                a, b = first.find(name), other.find(name)
                if a and b:
                    found.append(analysis.compare(a, b, first.network.label, other.network.label))
        return [sentence for sentence in found if sentence]

    def _cautions(self, analyses: Mapping[str, Analysis]) -> list[str]:
        """What would mislead a reader, network by network."""
        found = [
            f"Caution, {r.network.label}: {text}"
            for r in self.results
            for name, analysis in analyses.items()
            if (rows := r.find(name)) and (text := analysis.caution(rows))
        ]
        return list(dict.fromkeys(found))

    def _impossible(self) -> list[str]:
        return [
            f"Not possible for {r.network.label}: {call}: {reason.rstrip('.')}."
            for r in self.results
            for call, reason in r.failures.items()
        ]

    def _settings(self) -> dict[str, str]:
        where, data = environment(), self.data
        calls = dict.fromkeys(call for r in self.results for call in (*r.rows, *r.failures))
        seconds = sum(s for r in self.results for s in r.seconds.values())
        return {
            "opnorm": where["opnorm"] + (f", commit {where['git']}" if where["git"] else ""),
            "data": f"{data['name']}: {data['train']} training and {data['test']} test images, {data['classes']} classes",
            **{r.network.label: r.network.call for r in self.results if r.network.call},
            "analyses": "; ".join(calls),
            "points": self._points(),
            "computing time": f"{seconds:.0f} s in all analyses together",
            "machine": f"{where['machine']}; Python {where['python']}, torch {where['torch']}",
        }

    def _points(self) -> str:
        """How many images each analysis used."""
        used: dict[int, list[str]] = {}
        for call, rows in self.results[0].rows.items():
            if rows and "points" in rows[0]:
                name = spec.parse(call).name + (" (training)" if rows[0].get("split") == "train" else "")
                used.setdefault(int(rows[0].get("of") or rows[0]["points"]), []).append(name)
        parts = [
            f"{n:,} in {', '.join(dict.fromkeys(names))}" for n, names in sorted(used.items(), reverse=True)
        ]
        return "; ".join(parts) or "none"


def _share(stat: Stat) -> str:
    """A share with its interval and number of images; a difference of shares alone."""
    if stat.interval is None:
        return f"{stat.mean:.1%}"
    low, high = stat.interval
    return f"{stat.mean:.1%} ({100 * low:.1f} to {100 * high:.1f} of {stat.points:,} images)"


def _rows_table(pairs: Iterable[tuple[NetworkResults, Sequence[Row]]]) -> Table:
    """The rows themselves, one column a key; long lists by their beginning."""
    rows = [{"network": r.network.label, **row} for r, rows in pairs for row in rows]
    columns = [
        Column(str(key), str(key), "text") for key in dict.fromkeys(key for row in rows for key in row)
    ]
    return Table(columns, [{str(key): _as_cell(value) for key, value in row.items()} for row in rows])


def _as_cell(value: Any) -> Cell:
    if isinstance(value, list | tuple) and len(value) > LISTED:
        return f"{', '.join(map(str, value[:LISTED]))}, … ({len(value):,} values)"
    if isinstance(value, float):
        return f"{value:.6g}"
    return None if value is None else str(value)


def _labeled(pairs: Iterable[tuple[NetworkResults, Sequence[Row]]]) -> list[Row]:
    """Rows with the labels of their networks, as charts take them."""
    return [{**row, "method": r.network.label, "seed": 0} for r, rows in pairs for row in rows]
