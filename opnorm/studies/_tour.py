"""The tour: every method of training, on the same small network, side by side.

It asks the papers' question: do large layer norms hurt robustness, and does keeping them small help?
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from opnorm._core.settings import check_choice, check_count
from opnorm._core.training_numbers import check_numbers, check_rate
from opnorm.analyses import margins, norm_table, robust_accuracy
from opnorm.analyses._shared.points import at_any_radius
from opnorm.report import (
    NOT_RUN_YET,
    Cell,
    Chart,
    Column,
    Report,
    Stat,
    Table,
    accuracy_against_norm,
    epoch_charts,
)
from opnorm.runs.run import Result, Run
from opnorm.runs.runner import Study
from opnorm.runs.training_run import environment
from opnorm.spec import factory
from opnorm.studies._shared.methods_table import FAILED_RUNS, failed_seeds
from opnorm.studies._shared.outcomes import Case, Outcome, Outcomes
from opnorm.studies._shared.paper import data_of, no_result
from opnorm.studies.claims import mean, percent, rank_correlation
from opnorm.studies.tour_claims import CLAIMS, TRAIN_EPS

__all__ = ["tour"]

RADII = (0.05, 0.1, 0.15, 0.2)
RADII_L2 = (0.25, 0.5, 1.0)
IN_TABLE = {"inf": (0.1, 0.2), "2": (0.5,)}  # the charts show all
ATTACKED = 200  # test points: the interval of a share is then ± 7 points at most
ATTACK_SETTINGS = "attack='apgd', version='fast', restarts=1, largest_first=True"

# strengths at which each method shows on the digits and none diverges
OBJECTIVES = (
    "plain()",
    "plain(smoothing=0.1)",
    "mmc(radius=3)",
    f"fgsm_at(eps={TRAIN_EPS})",
    f"pgd_at(eps={TRAIN_EPS})",
    f"pgd_at(eps={2 * TRAIN_EPS})",
    "pgd_at(eps=0.5, norm=2)",
    "pgd_at(eps=3, norm=1)",
    f"mixed(eps={TRAIN_EPS})",
    f"trades(eps={TRAIN_EPS})",
    f"alp(eps={TRAIN_EPS})",
)
REGULARIZERS = (
    ("weight_decay(lam=0.02)",),
    ("weight_decay(lam=0.02, decoupled=True)",),
    ("norm_decay(p=1, beta=0.1)",),
    ("norm_decay(p=inf, beta=0.1)",),
    ("svc(c=1, linear=True)",),
    ("spectral_normalization(sp=1)",),
    ("global_snr(lam=0.1)",),
    ("global_snr(lam=0.1, operator='true')",),
    ("parseval(beta=0.01)",),
    ("weissi(energy=1e-4, complexity=1e-3)",),
    ("dd_snr(lam=0.1)",),
    ("dd_snr(lam=0.01, form='uJv')",),
    ("dd_onr(lam=0.1)",),
    ("dd_onr(lam=0.03, p=inf, q=1)",),
    ("input_gradient(lam=0.1)",),
)
OTHERS: tuple[dict, ...] = (
    {"ema": 0.99},
    {"objective": f"pgd_at(eps={TRAIN_EPS})", "regularizers": ("norm_decay(p=inf, beta=0.1)",)},
)
HIGHLIGHT = (
    "weight_decay(lam=0.02)",
    "norm_decay(p=inf",
    "global_snr(lam=0.1)",
    "dd_snr(lam=0.1)",
    f"pgd_at(eps={TRAIN_EPS})",
)

Size = Literal["smoke", "laptop"]


@factory("study")
def tour(
    data: str = "digits()",
    model: str = "cnn(width=32)",
    epochs: int = 7,
    batch: int = 64,
    lr: float = 0.05,
    seeds: int | None = None,
    limit: int | None = None,
    size: Size = "laptop",
) -> Study:
    """One network, trained plainly, with its weights or norms held small, and on attacked images.

    Args:
        data: any data set, as a call.
        model: any network, as a call.
        epochs: passes over the data.
        batch: points a step.
        lr: learning rate at the beginning (SGD with momentum, cosine schedule).
        seeds: how many times each way is repeated; when None 3, and 1 for "smoke".
        limit: at most so many training and test points.
        size: "laptop", or "smoke" to see that all works: one epoch of one batch.

    Raises:
        SpecError: settings that make no sense.

    Source: of each method, in its own documentation: :mod:`opnorm.objectives`, :mod:`opnorm.regularizers`.
    """
    check_count("seeds", seeds, optional=True)
    check_count("limit", limit, unit="points", optional=True)
    check_numbers(epochs, batch)
    check_rate(lr)
    check_choice("size", size, ("smoke", "laptop"))
    if size == "smoke":
        epochs, limit = 1, min(batch, limit or batch)
    if seeds is None:
        seeds = 1 if size == "smoke" else 3
    base = Run(
        model=model,
        data=data,
        optimizer=f"sgd(lr={lr!r})",
        epochs=epochs,
        batch=batch,
        limit=limit,
        analyses=(
            "accuracy()",
            "norm_table()",
            "margins()",
            f"robust_accuracy(eps={RADII}, points={ATTACKED}, {ATTACK_SETTINGS})",
            f"robust_accuracy(norm=2, eps={RADII_L2}, points={ATTACKED}, {ATTACK_SETTINGS})",
        ),
    )
    methods: list[dict] = [
        *({"objective": o} for o in OBJECTIVES),
        *({"regularizers": r} for r in REGULARIZERS),
        *OTHERS,
    ]
    runs = [replace(base, **method, seed=seed) for method in methods for seed in range(seeds)]
    return Study("tour", runs, _report, rank=lambda run: 0 if _tells_the_story(run.label) else 1)


def _tells_the_story(method: str) -> bool:
    """Whether it is one of the methods that the charts begin with; they are trained first."""
    return method == "plain" or (method.startswith(HIGHLIGHT) and "+" not in method)


def _report(results: Sequence[Result]) -> Report:
    outcomes = Outcomes([Outcome(Case(r.run.model, r.run.label, r.run), r) for r in results])
    methods, failed = outcomes.methods, [r for r in results if r.failure and not r.pending]
    good = [r for r in results if not r.failure]
    rows = [_row(label, outcomes.of(method=label)) for label in methods]
    table = Table(_columns(any(row.get("failures") for row in rows)), rows)
    return Report(
        title="What keeping norms small does to a network",
        question=(
            f"The same network, {results[0].run.model}, was trained on {results[0].run.data} by {len(methods)} methods. "
            "How accurate is each, how robust to attacks on its inputs, and how large are the operator norms of its layers, "
            "that is, the most that a layer can amplify a change?"
        ),
        findings=[*([no_result(failed)] if failed else []), *findings(table)],
        claims=[claim.as_dict(outcomes) | {"study": "tour"} for claim in CLAIMS],
        table=table,
        charts=_charts(good, methods, table),
        settings=_settings(results),
        runs=[
            {"key": r.run.key, "label": r.run.label, "seed": r.run.seed, "seconds": seconds}
            for r in results
            if not r.pending
            for seconds in [None if r.failure else r.seconds]
        ],
        highlight=[method for method in methods if _tells_the_story(method)],
    )


# ---------------------------------------------------------------- the table


def _robust_key(eps: float, norm: str = "inf") -> str:
    return f"robust_{norm}_{eps:g}"


def _columns(failures: bool) -> list[Column]:
    attacked = (
        f"Share of the first {ATTACKED} test images still classified correctly after APGD-CE and APGD-T, the gradient "
        "attacks of AutoAttack's version fast; an upper bound of the true robust accuracy."
    )
    norm = "Geometric mean over the linear and convolutional layers"
    return [
        Column("method", "training", "text", None, "Plain cross-entropy unless named otherwise."),
        Column("clean", "clean", "percent", "high", "Share of test images classified correctly."),
        *(Column(_robust_key(e), f"ℓ∞ ε = {e:g}", "percent", "high", attacked) for e in IN_TABLE["inf"]),
        *(Column(_robust_key(e, "2"), f"ℓ2 ε = {e:g}", "percent", "high", attacked) for e in IN_TABLE["2"]),
        Column("norm_1", "ℓ1 norm", "number", "low", f"{norm} of the exact ℓ1 operator norm."),
        Column("norm_2", "ℓ2 norm", "number", "low", f"{norm} of the ℓ2 operator norm, certified to 0.5 %."),
        Column("norm_inf", "ℓ∞ norm", "number", "low", f"{norm} of the exact ℓ∞ operator norm."),
        Column("seconds", "seconds", "number", None, "Training and analyses together, one run."),
        *([FAILED_RUNS] if failures else []),
    ]


def _row(label: str, outcomes: Outcomes) -> dict[str, Cell]:
    good = [o.result for o in outcomes.good]
    if not good:
        why = next((o.result.failure for o in outcomes.all if not o.result.pending), NOT_RUN_YET)
        return {"method": label, "_failed": why}
    values, points = defaultdict[str, list[Any]](list), dict[str, int]()
    for r in good:
        values["seconds"].append(r.seconds)
        for column, cell in norm_table().columns(r.find("norm_table")):
            values[column.key].append(cell)
        shares = {_robust_key(row["eps"], row["norm"]): row for row in r.find("robust_accuracy")}
        for key, row in {"clean": r.find("accuracy")[0], **shares}.items():
            values[key].append(row["accuracy"])
            points[key] = row["points"]
    cells: dict[str, Cell] = {key: Stat.of(v, points.get(key)) for key, v in values.items()}
    if failed := failed_seeds(outcomes):
        cells["failures"] = failed
    return {"method": label, **cells}


# ---------------------------------------------------------------- the charts


def _charts(results: Sequence[Result], methods: Sequence[str], table: Table) -> list[Chart]:
    key = _robust_key(TRAIN_EPS)
    accuracies = [row for r in results for row in _accuracies(r)]
    label = f"robust accuracy at ℓ∞ ε = {TRAIN_EPS}"
    charts = [
        robust_accuracy().chart(accuracies, methods),
        accuracy_against_norm(table.rows, methods, accuracy=key, accuracy_label=label),
        norm_table().chart(_labeled(results, "norm_table"), methods),
        *epoch_charts([_label(r) | row for r in results for row in r.metrics], methods),
        margins().chart(_labeled(results, "margins"), methods),
    ]
    return [chart for chart in charts if chart is not None]


def _label(result: Result) -> dict[str, Any]:
    return {"method": result.run.label, "seed": result.run.seed}


def _labeled(results: Sequence[Result], analysis: str) -> list[dict[str, Any]]:
    return [_label(r) | row for r in results for row in r.find(analysis)]


def _accuracies(result: Result) -> list[dict[str, Any]]:
    """The rows of robust accuracy, with the clean accuracy of the same points at ε = 0."""
    attacked = result.find("margins")[0]["margins"][:ATTACKED]
    clean = sum(margin > 0 for margin in attacked) / len(attacked)
    at_zero = [{"norm": norm, "eps": 0.0, "accuracy": clean} for norm in ("inf", "2")]
    return [_label(result) | row for row in [*at_zero, *result.find("robust_accuracy")]]


# ---------------------------------------------------------------- how it was made


def _settings(results: Sequence[Result]) -> dict[str, str]:
    run, where = results[0].run, environment()
    points = next((r.find("accuracy")[0]["points"] for r in results if not r.failure), None)
    calls = [row["attack"] for r in results for row in r.find("robust_accuracy")]
    attack = at_any_radius(next(iter(calls), ""))
    return {
        "opnorm": where["opnorm"] + (f", commit {where['git']}" if where["git"] else ""),
        "data": data_of(results),
        "test points": str(points) if points else "not known",
        "network": run.model,
        "training": f"{run.epochs} epochs, batch {run.batch}, {run.optimizer}, {run.schedule}, {run.precision}",
        "seeds": f"{len({r.run.seed for r in results})}; ± is one standard deviation over them",
        "attack": f"{attack}, largest radius first; robust there counts as robust to smaller ones; pixels in [0, 1]",
        "computing time": f"{sum(r.seconds for r in results):.0f} s in all runs together",
        "machine": f"{where['machine']}; Python {where['python']}, torch {where['torch']}",
    }


# ---------------------------------------------------------------- findings


def findings(table: Table) -> list[str]:
    """Plain sentences with the measured numbers."""
    rows = {str(row["method"]): row for row in table.rows if "_failed" not in row}
    if "plain" not in rows or len(rows) < 2:
        return []
    return [sentence for sentence in (_best(rows), _correlation(rows)) if sentence]


Rows = dict[str, dict[str, Cell]]
ROBUST = _robust_key(TRAIN_EPS)
ATTACK = f"ε = {TRAIN_EPS}"


def _best(rows: Rows) -> str:
    plain = rows["plain"]
    best = max(rows, key=lambda m: mean(rows[m][ROBUST]))
    return (
        f"Most robust at {ATTACK}: {best}, {percent(rows[best][ROBUST])} (plain: {percent(plain[ROBUST])}), "
        f"at {percent(rows[best]['clean'])} clean accuracy (plain: {percent(plain['clean'])})."
    )


def _correlation(rows: Rows) -> str:
    """Whether small norms and robustness go together."""
    rho = rank_correlation(
        [mean(r["norm_inf"]) for r in rows.values()], [mean(r[ROBUST]) for r in rows.values()]
    )
    if rho is None:
        return ""
    return (
        f"Over the {len(rows)} methods, the rank correlation of typical ℓ∞ norm and robust accuracy at {ATTACK} "
        f"is {rho:+.2f} (-1: the smaller the norms, the more robust; 0: no relation)."
    )
