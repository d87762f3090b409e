"""Trained networks looked at from all sides: every analysis of one, or of several side by side, on one page.

    page = write(look([Subject("plain", model)], data, calls(["all"], points=100), Store("runs/analyses")), folder)

Each analysis of each network is kept as soon as it is made, under the network's weights and the data, and found again.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from opnorm import spec
from opnorm._core import files
from opnorm._core.fingerprint import add_tensor, of_network
from opnorm.analyses import Row
from opnorm.data import Dataset
from opnorm.data.dataset import as_pixels
from opnorm.errors import ModelError, OpnormError, SpecError
from opnorm.report import Column, Report, Table, against_epoch, write_figures, write_json, write_page
from opnorm.report.model import Cell
from opnorm.report.shown import SHOWN
from opnorm.report.vega import ORDS
from opnorm.report.words import spread_changes
from opnorm.runs.build import check_model
from opnorm.runs.store import FORMAT, Store
from opnorm.runs.training_run import environment

__all__ = ["Look", "Step", "Subject", "calls", "look", "report", "write"]

TWICE = {
    "margins": ("margins('train')", "margins()"),
    "predictions": ("predictions('train')", "predictions()"),
    "robust_accuracy": ("robust_accuracy()", "robust_accuracy(norm=2, eps=(0.25, 0.5, 1))"),
    "lipschitz_bracket": ("lipschitz_bracket()", "lipschitz_bracket(norm=inf)"),
}
"""What "all" asks for more than once, on one chart."""


class Subject(NamedTuple):
    """A network to look at.

    Attributes:
        label: what the page calls it.
        model: in eval mode, (B, C, H, W) in [0, 1] -> (B, K).
        call: how it was named, for the page.
        metrics: what was seen after each epoch, where that is known.
    """

    label: str
    model: nn.Module
    call: str = ""
    metrics: Sequence[Row] = ()


class Step(NamedTuple):
    """News: an analysis begins (``seconds`` is None) or has ended; ``found`` when it was made before."""

    at: int
    steps: int
    label: str
    analysis: str
    seconds: float | None = None
    found: bool = False
    failure: str = ""


@dataclass
class Look:
    """What was found out about a network.

    Attributes:
        subject: the network.
        data: the data set's name and counts.
        key: names the folder where the rows are kept.
        rows: of every analysis, by its call.
        failures: why an analysis was not possible, by its call.
        seconds: that the analyses took, by call, whenever they were made.
    """

    subject: Subject
    data: dict[str, Any]
    key: str
    rows: dict[str, list[Row]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def find(self, name: str) -> list[Row]:
        """The rows of all analyses of that name."""
        return [row for call, rows in self.rows.items() if spec.parse(call).name == name for row in rows]


# ---------------------------------------------------------------- what to find out


def calls(what: Sequence[str], *, points: int | None = None, seed: int = 0) -> list[str]:
    """Analyses in their canonical form, those of one name together, in the order of the page.

    Args:
        what: names or calls; "all" stands for every analysis with its own defaults.
        points: filled in where an analysis has such a setting and the call leaves it open.
        seed: likewise.

    Raises:
        SpecError: nothing to find out, an unknown name, a setting that makes no sense, or an analysis asked for twice in
            ways that one chart cannot show together (they may differ in ``norm`` and ``split``).
    """
    known: dict[str, int] = {"seed": seed} | ({} if points is None else {"points": points})
    texts = [t for w in what for t in ([c for n in SHOWN for c in TWICE.get(n, (n,))] if w == "all" else [w])]
    found: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        given = spec.parse(text)
        spec.resolve(given, "analysis")  # so that a typo is answered with the names of analyses only
        call = spec.short(spec.fill(given, **known), "analysis")
        spec.build(call, "analysis")  # what is wrong with it is said now
        settings = dict(spec.full(call, "analysis").kwargs)
        found.setdefault(str(call), (call.name, settings.get("norm"), settings.get("split")))
    if not found:
        raise SpecError("no analysis was named; expected 'all' or some of: " + ", ".join(SHOWN))
    kinds = list(found.values())
    twice = next((kind[0] for kind in kinds if kinds.count(kind) > 1), None)
    if twice:
        raise SpecError(
            f"{twice} is asked for twice with other settings; expected calls that differ in norm or split, which one chart "
            "can show; use another call of opnorm for the other settings"
        )
    order = list(SHOWN)
    return sorted(found, key=lambda c: order.index(found[c][0]) if found[c][0] in order else len(order))


# ---------------------------------------------------------------- finding out


def look(
    subjects: Sequence[Subject],
    data: Dataset,
    analyses: Sequence[str],
    store: Store,
    *,
    tell: Callable[[Step], None] = lambda step: None,
) -> list[Look]:
    """Carry out every analysis on every network, or find what is already there.

    An analysis that a network does not allow (no ReLU, a layer of unknown norm) is noted with its reason and hides nothing
    else.

    Args:
        subjects: the networks, the baseline first.
        data: what they are looked at with.
        analyses: from :func:`calls`.
        store: where rows are kept.
        tell: given news, before and after each analysis.

    Raises:
        SpecError: networks of the same label, or fewer test points than an analysis asks for.
        ModelError: a network in train mode, or one that does not fit the data.
        OpnormError: no analysis was possible (why the first was not).
    """
    labels = [s.label for s in subjects]
    if len(set(labels)) < len(labels) or not labels:
        raise SpecError(
            f"networks called {', '.join(labels) or '(none)'}: expected one or more with different names; name them: "
            "first=CALL second=CALL"
        )
    for text in analyses:
        points = dict(spec.full(text, "analysis").kwargs).get("points")
        if isinstance(points, int) and points > len(data.test.labels):
            raise SpecError(
                f"{text} takes {points} test points and {data.name} has {len(data.test.labels)}; ask for fewer, such as "
                f"--points {len(data.test.labels)}"
            )
    for subject in subjects:
        _check(subject, data)
    steps, at, found = len(subjects) * len(analyses), 0, []
    of_data = hashlib.sha256(str(FORMAT).encode())
    for tensor in (data.train.images, data.train.labels, data.test.images, data.test.labels):
        add_tensor(of_data, tensor)
    for subject in subjects:
        digest = of_network(subject.model)
        digest.update(of_data.digest())
        one = Look(subject, data.describe(), digest.hexdigest()[:12])
        with store.open(one.key) as entry:
            if not entry.finished:
                entry.begin({"model": subject.call, "data": one.data})
            for call in analyses:
                step = Step(at, steps, subject.label, call)
                tell(step)
                begun, old = time.perf_counter(), call in entry.results
                try:
                    analysis = partial(spec.build(call, "analysis"), subject.model, data)
                    one.rows[call], one.seconds[call], _ = entry.get_or_compute(call, analysis)
                except OpnormError as e:
                    one.failures[call] = str(e)
                at += 1
                seconds = time.perf_counter() - begun
                tell(step._replace(seconds=seconds, found=old, failure=one.failures.get(call, "")))
            if not entry.finished:
                entry.finish()
        found.append(one)
    if not any(one.rows for one in found):
        raise OpnormError(f"no analysis was possible: {next(iter(found[0].failures.values()))}")
    return found


def _check(subject: Subject, data: Dataset) -> None:
    if subject.model.training:
        raise ModelError(
            f"{subject.label} is in train mode; a network is looked at as it predicts: call model.eval() first"
        )
    device = next((p.device for p in subject.model.parameters()), torch.device("cpu"))
    check_model(subject.model, as_pixels(data.test.images[:1]).to(device), data.num_classes, subject.label)


# ---------------------------------------------------------------- the page


def report(looks: Sequence[Look]) -> Report:
    """The page of one network or of several; the first one is drawn in black.

    Args:
        looks: from :func:`look`.
    """
    labels = [one.subject.label for one in looks]
    names = [n for n in SHOWN if any(one.find(n) for one in looks)]
    charts = [
        draw(
            [{**row, "method": one.subject.label, "seed": 0} for one in looks for row in one.find(name)],
            labels,
            baseline=labels[0],
        )
        for name in names
        for draw in SHOWN[name].charts
    ]
    epochs = [{**row, "method": one.subject.label, "seed": 0} for one in looks for row in one.subject.metrics]
    if epochs:
        charts.append(against_epoch(epochs, labels, baseline=labels[0]))
    table = _table(looks, names)
    many = len(labels) > 1
    joined = ", ".join(labels[:-1]) + f" and {labels[-1]}" if many else labels[0]
    return Report(
        title=f"{joined}, side by side" if many else f"A network from all sides: {joined}",
        question=(
            f"How accurate and how robust {'are these networks' if many else 'is this network'} on {looks[0].data['name']}, "
            "how large are the norms of the layers, and how does the output answer to small changes of an image?"
        ),
        findings=[*(_compared(looks, table) if many else _said(looks[0], names)), *_impossible(looks)],
        table=table,
        charts=[chart for chart in charts if not chart.empty],
        settings=_settings(looks),
        runs=[
            {
                "key": one.key,
                "label": one.subject.label,
                "seed": "",
                "seconds": sum(one.seconds.values()),
            }
            for one in looks
        ],
    )


def write(looks: Sequence[Look], store: Store, figures: str | None = None) -> Path:
    """Write the page, and beside it ``report.json`` and ``analyses.json`` with the rows themselves.

    Args:
        looks: from :func:`look`.
        store: where the folder goes, named after the networks, the data and the analyses.
        figures: also write each figure as "svg", "pdf" or "png".

    Returns:
        The path of the page.
    """
    asked = [(one.subject.label, one.key, sorted({*one.rows, *one.failures})) for one in looks]
    name = "analyze" if len(looks) == 1 else "compare"
    folder = store.root / f"{name}-{hashlib.sha256(repr(asked).encode()).hexdigest()[:8]}"
    made = report(looks)
    page = write_page(made, folder / "report.html")
    write_json(made, folder / "report.json")
    files.write_json(folder / "analyses.json", as_dict(looks))
    if figures:
        write_figures(made, folder / "figures", figures)
    return page


def as_dict(looks: Sequence[Look]) -> dict[str, Any]:
    """Plain values for JSON, by label."""
    return {
        one.subject.label: {
            "model": one.subject.call,
            "key": one.key,
            "data": one.data,
            "analyses": one.rows,
            "impossible": one.failures,
        }
        for one in looks
    }


def _table(looks: Sequence[Look], names: Sequence[str]) -> Table:
    columns = {"method": Column("method", "network", "text")}
    rows: list[dict[str, Cell]] = [{"method": one.subject.label} for one in looks]
    for name in names:
        for one, row in zip(looks, rows, strict=True):
            for column, cell in SHOWN[name].cells(found) if (found := one.find(name)) else ():
                columns.setdefault(column.key, column)
                row[column.key] = cell
    return Table(list(columns.values()), rows)


def _said(one: Look, names: Sequence[str]) -> list[str]:
    return [SHOWN[name].says(one.find(name)) for name in names]


def _compared(looks: Sequence[Look], table: Table) -> list[str]:
    """Who is best at what, and how the norms and the singular values differ from the first network's."""
    said = []
    for column in table.columns:
        known = {
            str(r["method"]): float(v) for r in table.rows if isinstance(v := r.get(column.key), int | float)
        }
        if column.better and len(known) > 1:
            ranked = sorted(known, key=lambda m: known[m], reverse=column.better == "high")
            values = ", ".join(f"{m} {known[m]:.1%}" for m in ranked)
            said.append(f"{column.label[:1].upper()}{column.label[1:]}, the best first: {values}.")
    first = table.rows[0]
    for one, row in zip(looks[1:], table.rows[1:], strict=True):
        ratios = [
            f"×{b / a:.3g} ({ORDS[p]})"
            for p in ORDS
            if isinstance(a := first.get(f"norm_{p}"), float) and isinstance(b := row.get(f"norm_{p}"), float)
        ]
        if ratios:
            said.append(
                f"The typical norms of the layers of {row['method']} are {', '.join(ratios)} those of {first['method']}."
            )
        said += _spread(looks[0], one)
    return said


def _spread(a: Look, b: Look) -> list[str]:
    """Sums and means of what the singular values' deviations gain and lose; Wen, Li & Jia 2020, B.2."""
    changes = spread_changes(a.find("singular_spread"), b.find("singular_spread"))
    if not changes.layers:
        return []
    parts = [
        f"{word} in {len(by)} (by {sum(by):.3g} in sum and {sum(by) / max(len(by), 1):.3g} on average)"
        for word, by in (("larger", changes.up), ("smaller", changes.down))
    ]
    return [
        f"Of {changes.layers} layers, the standard deviation of the singular values is, in {b.subject.label} against "
        f"{a.subject.label}, {' and '.join(parts)}."
    ]


def _impossible(looks: Sequence[Look]) -> list[str]:
    return [
        f"Not possible for {one.subject.label}: {call}: {why.rstrip('.')}."
        for one in looks
        for call, why in one.failures.items()
    ]


def _settings(looks: Sequence[Look]) -> dict[str, str]:
    where, data = environment(), looks[0].data
    asked = dict.fromkeys(call for one in looks for call in (*one.rows, *one.failures))
    return {
        "opnorm": where["opnorm"] + (f", commit {where['git']}" if where["git"] else ""),
        "data": f"{data['name']}: {data['train']} training and {data['test']} test images, {data['classes']} classes",
        **{one.subject.label: one.subject.call for one in looks if one.subject.call},
        "analyses": "; ".join(asked),
        "points": _points(looks[0]),
        "computing time": f"{sum(s for one in looks for s in one.seconds.values()):.0f} s in all analyses together",
        "machine": f"{where['machine']}; Python {where['python']}, torch {where['torch']}",
    }


def _points(one: Look) -> str:
    """How many images each analysis looked at: the defaults of those that attack or iterate are a part of them."""
    used: dict[int, list[str]] = {}
    for call, rows in one.rows.items():
        row = rows[0] if rows else {}
        if "points" in row:
            name = spec.parse(call).name + (" (training)" if row.get("split") == "train" else "")
            used.setdefault(int(row.get("of") or row["points"]), []).append(name)
    parts = [f"{n:,} in {', '.join(dict.fromkeys(names))}" for n, names in sorted(used.items(), reverse=True)]
    return "; ".join(parts) or "none"
