"""Results of a part's runs without training: the rows of every analysis, from a few numbers of each network and method."""

import fnmatch
import functools
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from opnorm import spec
from opnorm.analyses._shared.by_point import pack
from opnorm.runs.run import Result, Run
from opnorm.runs.runner import Study
from opnorm.studies import Setting, papers
from opnorm.studies._shared.outcomes import Case, Outcomes
from opnorm.studies._shared.paper import Paper, outcomes_of

POINTS, LAYERS = 400, 40

NUMBERS: dict[str, float] = {
    "clean": 0.9, "robust": 0.5, "norm": 3.0, "slope": 2e6, "slow": 1.0, "fast": 0.01, "difference": 1e-9,
    "energy": 20.0, "complexity": 50.0, "gradient": 0.1, "shift": 1e-9, "decay_ratio": 2.0, "variation": 0.1,
    "margin": 5.0, "confidence": 0.9, "spread": 1.0, "loss_gap": 0.5, "sigma": 10.0, "own": 0.8, "random": 0.2,
    "last": 0.1, "chance": 0.05, "deviation": 0.5, "top": 10.0, "flat": 1.0, "shared": 0.8, "shared_noise": 0.8,
    "inside": 1.0, "radius": 0.8,
}  # fmt: skip
"""What a network has unless a test says otherwise."""

Changes = Mapping[str, Mapping[str, float]]
Row = dict[str, Any]


class Numbers:
    """The numbers of one network, which vary a little from seed to seed.

    Args:
        changed: other numbers than the usual ones.
        who: the network and the method, as text.
        seed: of the training.
    """

    def __init__(self, changed: Mapping[str, float], who: str, seed: int) -> None:
        self.values, self.who, self.seed = NUMBERS | dict(changed), who, seed

    def __call__(self, key: str) -> float:
        jitter = zlib.crc32(f"{self.who} {self.seed} {key}".encode()) / 2**32 - 0.5
        return self.values[key] * (1 + 0.002 * jitter)

    def share(self, key: str) -> Row:
        """A share of points, the first ones."""
        count = round(self.values[key] * POINTS) - self.seed % 2 * (0 < self.values[key] < 1)
        correct = torch.arange(POINTS) < count
        return {"accuracy": count / POINTS, "points": POINTS, "correct": count, "by_point": pack(correct)}


def _attacked(n: Numbers, settings: Row) -> list[Row]:
    norm = f"{settings.get('norm', math.inf):g}"
    return [{"norm": norm, "eps": eps, "attack": "pgd()", **n.share("robust")} for eps in settings["eps"]]


def _wen(n: Numbers, settings: Row) -> list[Row]:
    """Of the points that are classified correctly, so that it is no share of the same points in each seed."""
    return [{"eps": settings["eps"], "accuracy": n("robust")}]


def _bracket(n: Numbers, settings: Row) -> list[Row]:
    found = dict.fromkeys(("jacobian", "secant", "along"), n("slope"))
    return [{"norm": "inf", "upper": 2 * n("slope"), "reason": "", **found}]


def _radius(n: Numbers, settings: Row) -> list[Row]:
    eps = n.values["radius"] or None
    return [{"norm": "2", "eps": eps, "share": 0.99, "points": POINTS, "reason": ""}]


def _liu(n: Numbers, settings: Row) -> list[Row]:
    return [
        {"norm": "inf", "eps": eps, "attack": f"{kind}()", **n.share("robust")}
        for kind in ("fgsm", "pgd")
        for eps in settings[f"{kind}_eps"]
    ]


def _spectrum(n: Numbers, settings: Row) -> list[Row]:
    values = [n("sigma") / rank for rank in range(1, LAYERS + 1)]
    return [{"at": at, "mean": values} for at in ("clean", "attacked")]


def _linearity(n: Numbers, settings: Row) -> list[Row]:
    return [
        {
            "direction": way,
            "distance": d,
            "deviation": n("deviation"),
            "sigma": n("top") + (n("flat") if d else 0.0),
        }
        for way in ("random", "adversarial")
        for d in settings["distances"]
    ]


def _cells(n: Numbers, settings: Row) -> list[Row]:
    return [
        {"around": around, "eps": eps, "mean": n(key), "both_on": n(key)}
        for around, key in (("data", "shared"), ("noise", "shared_noise"))
        for eps in settings["eps"]
    ]


def _agreement(n: Numbers, settings: Row) -> list[Row]:
    fixed = {"p": f"{settings['p']:g}", "q": f"{settings['q']:g}", "points": POINTS, "same_region": 0.5}
    inside = n.values["inside"] or None
    return [fixed | {"eps": eps, "cosine": 0.9, "worst_inside": inside} for eps in settings["eps"]]


def _norms(n: Numbers, settings: Row) -> list[Row]:
    return [
        {
            "layer": str(i),
            "kind": "Linear",
            "norms": {p: {"lower": n("norm"), "upper": n("norm")} for p in ("1", "2", "inf")},
        }
        for i in range(LAYERS)
    ]


def _times(n: Numbers, settings: Row) -> list[Row]:
    times = {"vs": n("slow"), "sgl": n("slow"), "certified": n("slow"), "l1": n("fast"), "linf": n("fast")}
    exact = {"l1": n("difference"), "linf": n("difference")}
    found = {"differences": exact, "whole_differences": exact}
    layer = {"kind": "Conv2d", "in_shape": [3, 32, 32], "times": times, **found}
    return [{"layer": str(i), **layer} for i in range(6)]


def _shift(n: Numbers, settings: Row) -> list[Row]:
    energy, complexity, change = n("energy"), n("complexity"), n("shift")
    row = {"log10_energy": energy, "log10_energy_after": energy + change, "logit_change": change}
    row |= {"complexity": complexity, "complexity_after": complexity * (1 + change)}
    return [row | {"decay": n("decay_ratio"), "least_decay": 1.0}]


ROWS: dict[str, Callable[[Numbers, Row], list[Row]]] = {
    "accuracy": lambda n, s: [{"split": "test", **n.share("clean")}],
    "robust_accuracy": _attacked,
    "roth_robust_accuracy": _attacked,
    "wen_robust_accuracy": _wen,
    "liu_robust_accuracy": _liu,
    "norm_table": _norms,
    "norm_times": _times,
    "lipschitz_bracket": _bracket,
    "input_gradients": lambda n, s: [{"lengths": [n("gradient")] * 9, "bounds": [2 * n("gradient")] * 9}],
    "scale_shift": _shift,
    "loss_variation": lambda n, s: [{"eps": e, "mean": n("variation"), "std": n("variation")} for e in s["eps"]],
    "margins": lambda n, s: [{"split": s.get("split", "test"), "margins": [n("margin"), -n("margin"), n("margin")]}],
    "predictions": lambda n, s: [{"split": s.get("split", "test"), "probabilities": [n("confidence")] * 3}],
    "singular_spread": lambda n, s: [{"layer": str(i), "circular_std": n("spread")} for i in range(LAYERS)],
    "generalization_gap": lambda n, s: [
        {"train_error": 0.0, "test_error": 1 - n("clean"), "error_gap": 1 - n("clean"), "train_loss": 0.1}
        | {"test_loss": 0.1 + n("loss_gap"), "loss_gap": n("loss_gap")}
    ],
    "wen_bound": lambda n, s: [dict.fromkeys(("u_min", "margin_term", "covering_term", "confidence_term", "value"), 1.0)],
    "attack_radius": _radius,
    "jacobian_spectrum": _spectrum,
    "singular_alignment": lambda n, s: [
        {"network": "own", "mean": [n("own"), n("last")], "chance": n("chance")},
        {"network": "random", "mean": [n("random"), n("last")], "chance": n("chance")},
    ],
    "local_linearity": _linearity,
    "relu_cells": _cells,
    "power_method_agreement": _agreement,
}  # fmt: skip


def made_up(run: Run, who: str, changes: Changes) -> Result:
    """The result of a run.

    Args:
        run: its settings.
        who: its network and method, "VGG-11: plain".
        changes: by a pattern of such names, other numbers than the usual ones.
    """
    changed: dict[str, float] = {}
    for pattern, numbers in changes.items():
        if fnmatch.fnmatchcase(who, pattern):
            changed |= numbers
    n = Numbers(changed, who, run.seed)
    rows = {}
    for call in run.analyses:
        full = _full(call)
        rows[call] = ROWS[full.name](n, dict(full.kwargs))
    metrics = [{"epoch": 1, "log10_weight_energy": n("energy"), "weight_complexity": n("complexity")}]
    return Result(run, metrics, rows, 1.0)


def name_of(run: Run) -> str:
    """Network and method of a run of Roth's, which are not known before the search has ended."""
    if not run.objective.startswith("plain"):
        return f"{run.model}: {run.objective.partition('(')[0]}"
    return f"{run.model}: {run.regularizers[0] if run.regularizers else 'standard'}"


@functools.cache
def _full(call: str) -> spec.Call:
    return spec.full(call, "analysis")


@functools.cache
def _study(paper: str, part: str, setting: Setting) -> tuple[Study, list[Case]]:
    """A part's study and its first cases, which many tests ask for."""
    (found,) = (p for p in papers() if p.name == paper)
    return found.study(part, setting), found.parts[part].cases(setting)


def outcomes_with(paper: Paper, name: str, changes: Changes, setting: Setting) -> Outcomes:
    """The outcomes of a part whose networks have these numbers, with those of all that a search asks for."""
    part = paper.parts[name]
    study, cases = _study(paper.name, name, setting)
    names = {case.run.key: f"{case.network}: {case.method}" for case in cases}
    results: dict[str, Result] = {}
    runs = list(study.runs)
    while runs:
        for run in runs:
            who = name_of(run) if part.more else names[run.key]
            results[run.key] = made_up(run, who, changes)
        runs = list(study.more(list(results.values()))) if study.more else []
    return outcomes_of(part, setting, cases, list(results.values()))
