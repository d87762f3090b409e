"""A study of your own: does a norm penalty make a network robust? Two methods, two seeds, a page and a verdict."""

import tempfile

from opnorm import Run, Store
from opnorm.report import Column, Report, Stat, Table
from opnorm.runs.run import Result
from opnorm.runs.runner import Study, run_study
from opnorm.runs.study_page import write_study
from opnorm.studies.claims import percent

DECAY = "norm_decay(p=inf, beta=0.1)"
ANALYSES = ("accuracy()", "robust_accuracy(eps=(0.1,), points=200)")
COLUMNS = [
    Column("method", "training", "text", help="Cross-entropy and the penalty."),
    Column("accuracy", "clean", "percent", "high", "Share of test images classified correctly."),
    Column("robust_accuracy", "ℓ∞ ε = 0.1", "percent", "high", "Share classified correctly after PGD."),
]


def report(results: list[Result]) -> Report:
    """One row per method, the mean over its seeds, and the verdict."""
    plain, decay = {"method": "plain"}, {"method": DECAY}
    for row in (plain, decay):
        for key in ("accuracy", "robust_accuracy"):
            row[key] = Stat.of(r.find(key)[0]["accuracy"] for r in results if r.run.label == row["method"])
    verdict = (
        f"Robust: {percent(decay['robust_accuracy'])}; plainly trained: {percent(plain['robust_accuracy'])}."
    )
    return Report("Norm decay", "Does norm decay make robust?", [verdict], Table(COLUMNS, [plain, decay]))


if __name__ == "__main__":
    settings = {"model": "mlp(width=64)", "data": "digits()", "epochs": 3, "analyses": ANALYSES}
    runs = [Run(**settings, regularizers=r, seed=seed) for r in ((), (DECAY,)) for seed in (0, 1)]
    with tempfile.TemporaryDirectory() as folder:
        study, store = Study("norm-decay", runs, report), Store(folder)
        results = run_study(study, store, jobs=1)
        print(write_study(study, results, store).name, *report(results).findings)
