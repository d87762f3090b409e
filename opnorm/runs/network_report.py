"""Analyses of trained networks: every analysis of one network, or of several side by side, on one page.

    analyze(model, data).write("report")                                          every analysis of one network
    analyze({"plain": a, "robust": b}, data, ["norm_table", "margins"]).write("report")

With a store, each analysis of each network is kept as soon as it is made, under the network's weights and the data, and
found again.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from opnorm import spec
from opnorm._core import files
from opnorm._core.fingerprint import add_tensor, of_network
from opnorm.analyses import Analysis, Row, all_analyses
from opnorm.data import Dataset
from opnorm.data.dataset import as_pixels
from opnorm.errors import ModelError, OpnormError, SpecError
from opnorm.report import (
    Cell,
    Column,
    Report,
    Table,
    against_epoch,
    write_figures,
    write_json,
    write_page,
)
from opnorm.runs.build import check_model
from opnorm.runs.store import FORMAT, Entry, Store
from opnorm.runs.training_run import environment

__all__ = ["AnalysisProgress", "Network", "NetworkReport", "NetworkResults", "analysis_calls", "analyze"]


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


class AnalysisProgress(NamedTuple):
    """The state of :func:`analyze`: an analysis begins (``seconds`` is None) or has ended.

    Attributes:
        done: how many analyses of all networks have ended before this one.
        total: how many there are.
        label: of the network.
        call: of the analysis.
        seconds: that it took.
        found: whether it had been made before.
        failure: why it is not possible; empty when it is.
    """

    done: int
    total: int
    label: str
    call: str
    seconds: float | None = None
    found: bool = False
    failure: str = ""


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


def analysis_calls(
    analyses: str | Sequence[str] = "all", *, points: int | None = None, seed: int = 0
) -> list[str]:
    """Analyses in their canonical form, those of one name together, in the order of the page.

    Args:
        analyses: names or calls; "all" stands for every analysis with its own defaults.
        points: filled in where an analysis has such a setting and the call leaves it open.
        seed: likewise.

    Raises:
        SpecError: no analysis, an unknown name, a setting that makes no sense, or an analysis asked for twice with settings
            that one chart cannot show together (they may differ in ``norm`` and ``split``).
    """
    filled: dict[str, int] = {"seed": seed} | ({} if points is None else {"points": points})
    every, order = all_analyses(), [one.name for one in all_analyses()]
    found: dict[str, tuple[Any, ...]] = {}
    for text in [analyses] if isinstance(analyses, str) else analyses:
        for given in (call for one in every for call in one.calls) if text == "all" else (text,):
            call = spec.parse(given)
            spec.resolve(call, "analysis")  # so that a typo is answered with the names of analyses only
            call = spec.short(spec.fill(call, **filled), "analysis")
            spec.build(call, "analysis")  # raises what is wrong with its settings
            settings = dict(spec.full(call, "analysis").kwargs)
            found.setdefault(str(call), (call.name, settings.get("norm"), settings.get("split")))
    if not found:
        raise SpecError("no analysis was named; expected 'all' or some of: " + ", ".join(order))
    kinds = list(found.values())
    twice = next((kind[0] for kind in kinds if kinds.count(kind) > 1), None)
    if twice:
        raise SpecError(
            f"{twice} is asked for twice with other settings; expected calls that differ in norm or split, which one chart "
            "can show; use another call of opnorm for the other settings"
        )
    return sorted(found, key=lambda c: order.index(found[c][0]) if found[c][0] in order else len(order))


def analyze(
    networks: nn.Module | Mapping[str, nn.Module] | Sequence[Network],
    data: Dataset,
    analyses: str | Sequence[str] = "all",
    *,
    points: int | None = None,
    seed: int = 0,
    store: Store | None = None,
    progress: Callable[[AnalysisProgress], None] | None = None,
) -> "NetworkReport":
    """Apply every analysis to every network, or find the results of an earlier call.

    An analysis that is not possible for a network (no ReLU, a layer of unknown norm) is noted with its reason; the others
    go on.

    Args:
        networks: one model, models by name, or :class:`Network` objects; the baseline first. In eval mode.
        data: training and test images.
        analyses: names or calls; see :func:`analysis_calls`.
        points: test points of each analysis that takes a sample of them, in place of its default.
        seed: of the choice of points and of attacks.
        store: where rows are kept and found again; nowhere when None.
        progress: called before and after each analysis.

    Returns:
        The results; its ``write(folder)`` writes the page.

    Raises:
        SpecError: networks of the same label, fewer test points than an analysis asks for, or see :func:`analysis_calls`.
        ModelError: a network in train mode, or one that does not fit the data.
        OpnormError: no analysis was possible (why the first was not).
    """
    if store is None:
        with tempfile.TemporaryDirectory() as folder:
            settings: dict[str, Any] = {"points": points, "seed": seed, "progress": progress}
            return analyze(networks, data, analyses, store=Store(folder), **settings)
    calls, networks = analysis_calls(analyses, points=points, seed=seed), _networks(networks)
    _check(networks, data, calls)
    data_digest, results = _digest(data), list[NetworkResults]()
    for network in networks:
        digest = of_network(network.model)
        digest.update(data_digest)
        results.append(NetworkResults(network, digest.hexdigest()[:12]))
        before, total = (len(results) - 1) * len(calls), len(networks) * len(calls)
        with store.open(results[-1].key) as entry:
            if not entry.finished:
                entry.begin({"model": network.call, "data": data.describe()})
            for i, call in enumerate(calls):
                state = AnalysisProgress(before + i, total, network.label, call)
                _analyze(results[-1], entry, data, state, progress or (lambda state: None))
            if not entry.finished:
                entry.finish()
    if not any(result.rows for result in results):
        raise OpnormError(f"no analysis was possible: {next(iter(results[0].failures.values()))}")
    return NetworkReport(results, data.describe())


def _digest(data: Dataset) -> bytes:
    digest = hashlib.sha256(str(FORMAT).encode())
    for tensor in (data.train.images, data.train.labels, data.test.images, data.test.labels):
        add_tensor(digest, tensor)
    return digest.digest()


def _analyze(
    result: NetworkResults,
    entry: Entry,
    data: Dataset,
    state: AnalysisProgress,
    progress: Callable[[AnalysisProgress], None],
) -> None:
    """Apply one analysis to one network, or find its rows."""
    progress(state)
    call, started, found = state.call, time.perf_counter(), state.call in entry.results
    try:
        compute = partial(spec.build(call, "analysis"), result.network.model, data)
        result.rows[call], result.seconds[call], _ = entry.get_or_compute(call, compute)
    except OpnormError as e:
        result.failures[call] = str(e)
    seconds, failure = time.perf_counter() - started, result.failures.get(call, "")
    progress(state._replace(seconds=seconds, found=found, failure=failure))


def _networks(networks: nn.Module | Mapping[str, nn.Module] | Sequence[Network]) -> Sequence[Network]:
    if isinstance(networks, nn.Module):
        return [Network(type(networks).__name__, networks)]
    if isinstance(networks, Mapping):
        return [Network(label, model) for label, model in networks.items()]
    return networks


def _check(networks: Sequence[Network], data: Dataset, calls: Sequence[str]) -> None:
    labels = [network.label for network in networks]
    if len(set(labels)) < len(labels) or not labels:
        raise SpecError(
            f"networks called {', '.join(labels) or '(none)'}: expected one or more with different names; name them: "
            "first=CALL second=CALL"
        )
    test = len(data.test.labels)
    for text in calls:
        points = dict(spec.full(text, "analysis").kwargs).get("points")
        if isinstance(points, int) and points > test:
            raise SpecError(
                f"{text} takes {points} test points and {data.name} has {test}; ask for fewer, such as --points {test}"
            )
    for network in networks:
        if network.model.training:
            raise ModelError(
                f"{network.label} is in train mode; a network is analyzed as it predicts: call model.eval() first"
            )
        device = next((p.device for p in network.model.parameters()), torch.device("cpu"))
        check_model(
            network.model, as_pixels(data.test.images[:1]).to(device), data.num_classes, network.label
        )


# ---------------------------------------------------------------- the page


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
        charts = [
            analysis.chart(_labeled((r, r.find(name)) for r in self.results), labels)
            for name, analysis in analyses.items()
        ]
        if epochs := _labeled((r, r.network.metrics) for r in self.results):
            charts.append(against_epoch(epochs, labels))
        table = self._table(analyses)
        names = ", ".join(labels[:-1]) + f" and {labels[-1]}" if many else labels[0]
        return Report(
            title=f"{names}, side by side" if many else f"Analyses of {names}",
            question=(
                f"How accurate and how robust {'are these networks' if many else 'is this network'} on {self.data['name']}, "
                "how large are the norms of the layers, and how does the output respond to small changes of an image?"
            ),
            findings=[*self._findings(analyses, table), *self._impossible()],
            table=table,
            charts=[chart for chart in charts if chart is not None and not chart.empty],
            settings=self._settings(),
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
        return Table(list(columns.values()), rows)

    def _findings(self, analyses: Mapping[str, Analysis], table: Table) -> list[str]:
        """Of one network, every analysis as a sentence; of several, the best of each column and the differences."""
        first, *others = self.results
        if not others:
            found = [a.sentence(first.find(name)) for name, a in analyses.items()]
            return [sentence for sentence in found if sentence]
        found = []
        for column in table.columns:
            values = {
                str(r["method"]): float(v)
                for r in table.rows
                if isinstance(v := r.get(column.key), int | float)
            }
            if column.better and len(values) > 1:
                ranked = sorted(values, key=lambda m: values[m], reverse=column.better == "high")
                text = ", ".join(f"{method} {values[method]:.1%}" for method in ranked)
                found.append(f"{column.label[:1].upper()}{column.label[1:]}, the best first: {text}.")
        for other in others:
            for name, analysis in analyses.items():
                a, b = first.find(name), other.find(name)
                if a and b:
                    found.append(analysis.compare(a, b, first.network.label, other.network.label))
        return [sentence for sentence in found if sentence]

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


def _labeled(pairs: Any) -> list[Row]:
    """Rows with the labels of their networks, as charts take them."""
    return [{**row, "method": r.network.label, "seed": 0} for r, rows in pairs for row in rows]
