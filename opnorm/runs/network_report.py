"""Analyses of trained networks: every analysis of one network, or of several side by side.

    analyze(model, data).write("report")                                          every analysis of one network, on a page
    analyze({"plain": a, "robust": b}, data, ["norm_table", "margins"]).write("report")

With a store, each analysis of each network is kept as soon as it is made, under the network's weights and the data, and
found again.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from opnorm import spec
from opnorm._core.argument_checks import check_module
from opnorm.analyses import Analysis, all_analyses
from opnorm.data import Dataset
from opnorm.data.dataset import as_pixels, check_dataset
from opnorm.errors import ModelError, OpnormError, SpecError
from opnorm.runs.identity import hash_of
from opnorm.runs.network_identity import data_identity, network_identity, outputs
from opnorm.runs.network_page import Network, NetworkReport, NetworkResults
from opnorm.runs.store import FORMAT, Entry, Store
from opnorm.training.setup_checks import check_model

__all__ = ["AnalysisProgress", "Network", "NetworkReport", "NetworkResults", "analysis_calls", "analyze"]


class AnalysisProgress(NamedTuple):
    """The state of :func:`analyze`: an analysis begins (``seconds`` is None) or has ended.

    Attributes:
        done: how many analyses of all networks have ended before this one.
        total: how many there are.
        label: of the network.
        call: of the analysis.
        seconds: that it took.
        found: when it was made, if it had been made before; else empty.
        failure: why it is not possible; empty when it is.
    """

    done: int
    total: int
    label: str
    call: str
    seconds: float | None = None
    found: str = ""
    failure: str = ""


def analysis_calls(
    analyses: str | Sequence[str | Analysis] = "all", *, points: int | None = None, seed: int = 0
) -> list[str]:
    """Analyses in their canonical form, those of one name together, in the order of the page.

    Args:
        analyses: names, calls, or objects from a function under ``@factory("analysis")``, also one of your own; "all" means
            every analysis of opnorm with its own defaults.
        points: filled in where an analysis has such a setting and the call leaves it open.
        seed: filled in in the same way.

    Raises:
        SpecError: no analysis, an unknown name, a setting that makes no sense, or an analysis asked for twice with settings
            that one chart cannot show together (they may differ in ``norm`` and ``split``).
    """
    filled: dict[str, int] = {"seed": seed} | ({} if points is None else {"points": points})
    every, order = all_analyses(), [one.name for one in all_analyses()]
    found: dict[str, tuple[Any, ...]] = {}
    if not isinstance(analyses, str | Sequence):
        raise SpecError(
            f"analyses={analyses!r:.60}: expected names or calls, such as ['accuracy', 'norm_table']"
        )
    for text in [analyses] if isinstance(analyses, str) else analyses:
        for given in (call for one in every for call in one.calls) if text == "all" else (text,):
            call = spec.parse(given) if isinstance(given, str) else spec.spec_of(given)
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
    analyses: str | Sequence[str | Analysis] = "all",
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
        analyses: names, calls or objects; see :func:`analysis_calls`.
        points: test points of each analysis that takes a sample of them, in place of its default, or all if these are fewer.
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
            return analyze(
                networks, data, analyses, points=points, seed=seed, store=Store(folder), progress=progress
            )
    report = progress or (lambda state: None)
    networks = _networks(networks)
    calls = _all_there_are(analysis_calls(analyses, points=points, seed=seed), data)
    _check(networks, data, calls)
    results: list[NetworkResults] = []
    images = data_identity(data)
    for network in networks:
        key = hash_of(FORMAT, network_identity(network.model), images)
        results.append(NetworkResults(network, key))
        before, total = (len(results) - 1) * len(calls), len(networks) * len(calls)
        with store.open(key, outputs=outputs(network.model, data.image_shape), keep=True) as entry:
            if not entry.finished:
                entry.begin({"model": network.call, "data": data.describe()})
            for i, call in enumerate(calls):
                state = AnalysisProgress(before + i, total, network.label, call)
                report(state)
                report(_analyze(results[-1], entry, data, state))
            if not entry.finished:
                entry.finish()
    if not any(result.rows for result in results):
        raise OpnormError(f"no analysis was possible: {next(iter(results[0].failures.values()))}")
    return NetworkReport(results, data.describe())


def _analyze(
    result: NetworkResults, entry: Entry, data: Dataset, state: AnalysisProgress
) -> AnalysisProgress:
    """Apply one analysis to one network, or find its rows; the state afterwards."""
    call, started, found = state.call, time.perf_counter(), ""
    try:
        compute = partial(spec.build(call, "analysis"), result.network.model, data)
        saved = entry.get_or_compute(call, compute)
        result.rows[call], result.seconds[call] = saved.rows, saved.seconds
        found = saved.made if saved.found else ""
    except OpnormError as e:
        result.failures[call] = str(e)
    seconds, failure = time.perf_counter() - started, result.failures.get(call, "")
    return state._replace(seconds=seconds, found=found, failure=failure)


def _networks(networks: nn.Module | Mapping[str, nn.Module] | Sequence[Network]) -> Sequence[Network]:
    if isinstance(networks, nn.Module):
        return [Network(type(networks).__name__, networks)]
    if isinstance(networks, Mapping):
        for label, model in networks.items():
            check_module(model, str(label))
        return [Network(label, model) for label, model in networks.items()]
    if not isinstance(networks, Sequence) or not all(isinstance(one, Network) for one in networks):
        check_module(networks)
    return networks


def _all_there_are(calls: Sequence[str], data: Dataset) -> list[str]:
    """The calls, with all test points where the default number of an analysis is larger than that of the data."""
    check_dataset(data)
    test, found = len(data.test.labels), []
    for text in calls:
        call, default = spec.parse(text), dict(spec.full(text, "analysis").kwargs).get("points")
        stated = any(name == "points" for name, _ in spec.stated(call, "analysis").kwargs)
        more = not stated and isinstance(default, int) and default > test
        found.append(str(spec.fill(call, points=test)) if more else text)
    return found


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
