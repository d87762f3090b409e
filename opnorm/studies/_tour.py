"""The tour, and the main job: every way of training, on the same small network, side by side.

It asks what the papers ask: do large layer norms hurt robustness, and does keeping them small help?
"""

from collections.abc import Sequence
from dataclasses import replace

from opnorm._core.layers import LINEAR_OR_CONV
from opnorm.errors import SpecError
from opnorm.report import Column, Report, Stat, Table, charts
from opnorm.report.model import Cell
from opnorm.runs.run import Result, Run
from opnorm.runs.runner import Study
from opnorm.runs.training_run import environment, geometric_mean
from opnorm.spec import factory
from opnorm.studies import claims

__all__ = ["tour"]

WEIGHT_LAYERS = tuple(kind.__name__ for kind in LINEAR_OR_CONV)
RADII = (0.05, 0.1, 0.15, 0.2)
RADII_L2 = (0.25, 0.5, 1.0)
IN_TABLE = {"inf": (0.1, 0.2), "2": (0.5,)}  # the charts show all
TRAIN_EPS = 0.1
ATTACKED = 200  # test points: the interval of a share is then ± 7 points at most

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
    ("weight_decay(lam=0.01)",),
    ("weight_decay(lam=0.01, decoupled=True)",),
    ("norm_decay(p=1, beta=0.1)",),
    ("norm_decay(p=inf, beta=0.1)",),
    ("svc(c=1)",),
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
    "weight_decay(lam=0.01)",
    "norm_decay(p=inf",
    "global_snr(lam=0.1)",
    "dd_snr(lam=0.1)",
    f"pgd_at(eps={TRAIN_EPS})",
)


@factory("study")
def tour(
    data: str = "digits()",
    model: str = "cnn(width=32)",
    epochs: int = 7,
    batch: int = 64,
    lr: float = 0.05,
    seeds: int = 3,
    limit: int | None = None,
    size: str = "laptop",
) -> Study:
    """One network, trained plainly, with its weights or norms held small, and on attacked images.

    Args:
        data: any data set, as a call.
        model: any network, as a call.
        epochs: passes over the data.
        batch: points a step.
        lr: learning rate at the beginning (SGD with momentum, cosine schedule).
        seeds: how many times each way is repeated.
        limit: at most so many training and test points.
        size: "laptop", or "smoke" for a test of the machinery: one epoch of few points.

    Raises:
        SpecError: settings that make no sense.

    Source: of each method, in its own documentation: :mod:`opnorm.objectives`, :mod:`opnorm.regularizers`.
    """
    if seeds < 1 or size not in ("smoke", "laptop"):
        raise SpecError(
            f"seeds={seeds!r}, size={size!r}: expected at least 1 seed, and size 'smoke' or 'laptop'"
        )
    if size == "smoke":
        epochs, limit = 1, 200 if limit is None else min(limit, 200)
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
            f"robust_accuracy(eps={RADII}, points={ATTACKED}, attack='apgd', largest_first=True)",
            f"robust_accuracy(norm=2, eps={RADII_L2}, points={ATTACKED}, attack='apgd', largest_first=True)",
        ),
    )
    ways: list[dict] = [
        *({"objective": o} for o in OBJECTIVES),
        *({"regularizers": r} for r in REGULARIZERS),
        *OTHERS,
    ]
    runs = [replace(base, **way, seed=seed) for way in ways for seed in range(seeds)]
    return Study("tour", runs, _report)


def _report(results: Sequence[Result]) -> Report:
    by_method: dict[str, list[Result]] = {}
    for result in results:
        by_method.setdefault(result.run.label, []).append(result)
    methods = list(by_method)
    good = [r for r in results if not r.failure]
    table = Table(_columns(), [_row(label, group) for label, group in by_method.items()])
    return Report(
        title="What keeping norms small does to a network",
        question=(
            f"The same network, {results[0].run.model}, was trained on {results[0].run.data} in {len(methods)} ways. "
            "How accurate is each, how well does it stand up to attacks on its inputs, and how large are the operator norms "
            "of its layers, that is, the most that a layer can amplify a change?"
        ),
        findings=claims.findings(table, _robust_key(TRAIN_EPS), f"ε = {TRAIN_EPS}"),
        table=table,
        charts=[
            charts.accuracy_against_eps(_accuracy_rows(good), methods),
            charts.accuracy_against_norm(
                table.rows,
                methods,
                accuracy=_robust_key(TRAIN_EPS),
                accuracy_label=f"robust accuracy at ℓ∞ ε = {TRAIN_EPS}",
            ),
            charts.layer_norms(_layer_rows(good), methods),
            charts.against_epoch([_of(r) | row for r in good for row in r.metrics], methods),
            charts.margins(
                [_of(r) | {"margin": m} for r in good for row in r.find("margins") for m in row["margins"]],
                methods,
            ),
        ],
        settings=_settings(results),
        runs=[
            {
                "key": r.run.key,
                "label": r.run.label,
                "seed": r.run.seed,
                "seconds": None if r.failure else r.seconds,
            }
            for r in results
        ],
        highlight=[m for m in methods if m == "plain" or (m.startswith(HIGHLIGHT) and "+" not in m)],
    )


# ---------------------------------------------------------------- the table


def _robust_key(eps: float, norm: str = "inf") -> str:
    return f"robust_{norm}_{eps:g}"


def _columns() -> list[Column]:
    attacked = (
        f"Share of the first {ATTACKED} test images still right after APGD-CE and APGD-T, AutoAttack's gradient attacks; an "
        "upper bound of the true robust accuracy."
    )
    norm = "Geometric mean over the linear and convolutional layers"
    return [
        Column("method", "training", "text", None, "Plain cross-entropy unless it says otherwise."),
        Column("clean", "clean", "percent", "high", "Share of test images classified rightly."),
        *(Column(_robust_key(e), f"ℓ∞ ε = {e:g}", "percent", "high", attacked) for e in IN_TABLE["inf"]),
        *(Column(_robust_key(e, "2"), f"ℓ2 ε = {e:g}", "percent", "high", attacked) for e in IN_TABLE["2"]),
        Column("norm_1", "ℓ1 norm", "number", "low", f"{norm} of the exact ℓ1 operator norm."),
        Column(
            "norm_2",
            "ℓ2 norm",
            "number",
            "low",
            f"{norm} of the ℓ2 operator norm, certified to 0.5 %.",
        ),
        Column("norm_inf", "ℓ∞ norm", "number", "low", f"{norm} of the exact ℓ∞ operator norm."),
        Column("seconds", "seconds", "number", None, "Training and analyses together, one run."),
    ]


def _row(label: str, group: Sequence[Result]) -> dict[str, Cell]:
    good = [r for r in group if not r.failure]
    row: dict[str, Cell] = {"method": label}
    if not good:
        return row | {"_failed": group[0].failure}
    row["clean"] = Stat.of(r.find("accuracy")[0]["accuracy"] for r in good)
    for i, attacked in enumerate(good[0].find("robust_accuracy")):
        key = _robust_key(attacked["eps"], attacked["norm"])
        row[key] = Stat.of(r.find("robust_accuracy")[i]["accuracy"] for r in good)
    for p in ("1", "2", "inf"):
        row[f"norm_{p}"] = Stat.of(geometric_mean([n["lower"] for n in _weight_norms(r, p)]) for r in good)
    row["seconds"] = Stat.of(r.seconds for r in good)
    return row


def _weight_norms(result: Result, p: str) -> list[dict]:
    return [
        row["norms"][p]
        for row in result.find("norm_table")
        if row["kind"] in WEIGHT_LAYERS and p in row["norms"]
    ]


# ---------------------------------------------------------------- the charts


def _of(result: Result) -> dict:
    return {"method": result.run.label, "seed": result.run.seed}


def _accuracy_rows(results: Sequence[Result]) -> list[dict]:
    rows = []
    for r in results:
        clean = r.find("accuracy")[0]["accuracy"]
        rows += [_of(r) | {"norm": norm, "eps": 0.0, "accuracy": clean} for norm in ("inf", "2")]
        rows += [
            _of(r) | {k: row[k] for k in ("norm", "eps", "accuracy")} for row in r.find("robust_accuracy")
        ]
    return rows


def _layer_rows(results: Sequence[Result]) -> list[dict]:
    return [
        _of(r)
        | {
            "layer": f"{row['layer']} {row['kind']}",
            "index": i,
            "ord": p,
            "value": norm["lower"],
            **_ends(norm),
        }
        for r in results
        for i, row in enumerate(r.find("norm_table"))
        if row["kind"] in WEIGHT_LAYERS
        for p, norm in row["norms"].items()
    ]


def _ends(norm: dict) -> dict:
    return {"lower": norm["lower"], "upper": norm["upper"]}


# ---------------------------------------------------------------- how it was made


def _settings(results: Sequence[Result]) -> dict[str, str]:
    run, where = results[0].run, environment()
    points = next((r.find("accuracy")[0]["points"] for r in results if not r.failure), None)
    attack = next((row["attack"] for r in results for row in r.find("robust_accuracy")), "")
    return {
        "opnorm": where["opnorm"] + (f", commit {where['git']}" if where["git"] else ""),
        "data": run.data + (f", at most {run.limit} training and test points" if run.limit else ""),
        "test points": str(points) if points else "not known",
        "network": run.model,
        "training": f"{run.epochs} epochs, batch {run.batch}, {run.optimizer}, {run.schedule}, {run.precision}",
        "seeds": f"{len({r.run.seed for r in results})}; ± is one standard deviation over them",
        "attack": f"{attack}, largest radius first; what stands it counts as standing smaller ones; pixels in [0, 1]",
        "computing time": f"{sum(r.seconds for r in results):.0f} s in all runs together",
        "machine": f"{where['machine']}; Python {where['python']}, torch {where['torch']}",
    }
