"""A report such as a study writes: 8 methods, 3 seeds, and what one tiny run has measured, scaled for each."""

import math
import random

import pytest

from opnorm.analyses import margins, norm_table
from opnorm.report import (
    Column,
    Report,
    Stat,
    Table,
    accuracy_against_eps,
    accuracy_against_norm,
    against_epoch,
)
from opnorm.runs.run import Run
from opnorm.runs.store import Store
from opnorm.runs.training_run import run_training

#          label                              clean  decay  norms
METHODS = {
    "plain": (0.942, 60, 9.0),
    "weight_decay(lam=1e-3)": (0.947, 64, 6.5),
    "norm_decay(p=1, beta=1e-3)": (0.951, 58, 3.1),
    "norm_decay(p=inf, beta=1e-3)": (0.949, 57, 2.7),
    "svc(bound=1.0)": (0.938, 55, 2.2),
    "parseval(beta=1e-2)": (0.940, 50, 2.4),
    "pgd_at(eps=8/255)": (0.871, 12, 10.5),
    "trades(eps=8/255, beta=6)": (0.858, 10, 11.8),
}
SEEDS = [0, 1, 2]
EPS = [0.0, 1 / 255, 2 / 255, 4 / 255, 6 / 255, 8 / 255]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The result of a real run, whose metrics and rows have the names that training and analyses give them."""
    run = Run(
        model="mlp(width=8, depth=3)",
        data="digits()",
        epochs=12,
        limit=100,
        analyses=("norm_table()", "margins()"),
    )
    return run_training(run, Store(tmp_path_factory.mktemp("runs")))


def rows(result, methods=METHODS, seeds=SEEDS):
    """Rows for every chart, as a dict of lists."""
    rng = random.Random(0)
    out = {"eps": [], "layers": [], "epochs": [], "margins": []}
    for method, (clean, decay, size) in methods.items():
        for seed in seeds:
            base = {"method": method, "seed": seed}
            wobble = rng.gauss(0, 0.008)
            for eps in EPS:
                accuracy = (clean + wobble) * math.exp(-decay * eps)
                out["eps"].append({**base, "norm": "inf", "eps": eps, "accuracy": accuracy})
                out["eps"].append({**base, "norm": "2", "eps": eps * 32, "accuracy": accuracy**1.1})
            for row in result.find("norm_table"):
                scale = size * math.exp(rng.gauss(0, 0.08))
                norms = {
                    p: {end: scale * norm[end] for end in ("lower", "upper")}
                    for p, norm in row["norms"].items()
                }
                out["layers"].append(row | base | {"norms": norms})
            for row in result.metrics:
                scale = math.exp(rng.gauss(0, 0.02))
                norms = {
                    p: size ** (row["epoch"] / 12) * scale * row[p] for p in ("norm_1", "norm_2", "norm_inf")
                }
                accuracy = row["test_accuracy"] * clean + wobble
                out["epochs"].append(
                    row | base | norms | {"test_accuracy": accuracy, "loss": row["loss"] * scale}
                )
            for row in result.find("margins"):
                shifted = [10 * margin + 0.1 * decay + wobble for margin in row["margins"]]
                out["margins"].append(row | base | {"margins": shifted})
    return out


@pytest.fixture
def make_rows(tiny_run):
    return lambda **settings: rows(tiny_run, **settings)


@pytest.fixture(scope="session")
def report(tiny_run):
    data = rows(tiny_run)
    methods = list(METHODS)
    table = []
    for method in methods:

        def stat(kind, value, method=method, **where):
            hits = [
                r for r in data[kind] if r["method"] == method and all(r[k] == v for k, v in where.items())
            ]
            return Stat.of(r[value] for r in hits)

        last = {"epoch": 12}
        table.append(
            {
                "method": method,
                "clean": stat("eps", "accuracy", norm="inf", eps=0.0),
                "robust2": stat("eps", "accuracy", norm="inf", eps=2 / 255),
                "robust": stat("eps", "accuracy", norm="inf", eps=8 / 255),
                "norm_1": stat("epochs", "norm_1", **last),
                "norm_2": stat("epochs", "norm_2", **last),
                "norm_inf": stat("epochs", "norm_inf", **last),
                "seconds": 30.0 + 9.5 * len(method),
            }
        )
    table[5]["norm_2"] = None
    table.append(
        {"method": "weissi(1e-6, 1e-5)", "_failed": "the loss was not finite in epoch 3 (seed 0, 1 and 2)"}
    )
    columns = [
        Column("method", "Method", "text"),
        Column("clean", "Clean", "percent", "high", "Accuracy on the unchanged test images."),
        Column(
            "robust2", "AutoAttack 2/255", "percent", "high", "Accuracy under AutoAttack (ℓ∞) at ε = 2/255."
        ),
        Column(
            "robust", "AutoAttack 8/255", "percent", "high", "Accuracy under AutoAttack (ℓ∞) at ε = 8/255."
        ),
        Column("norm_1", "ℓ₁ norm", "number", None, "Geometric mean of the layers' ℓ₁ norms."),
        Column("norm_2", "ℓ₂ norm", "number", None, "Geometric mean of the layers' ℓ₂ norms."),
        Column("norm_inf", "ℓ∞ norm", "number", None, "Geometric mean of the layers' ℓ∞ norms."),
        Column("seconds", "Seconds", "number", "low", "Time to train one network."),
    ]
    return Report(
        title="liang2021 on digits: do large norms hurt?",
        question="Eight ways to train one small network: what did each do to its accuracy, to its robustness "
        "and to the norms of its layers?",
        findings=[
            "Norm penalties shrink norms but do not raise AutoAttack accuracy: norm_decay(p=inf, beta=1e-3) "
            "has 32 % of the plain network's ℓ∞ norm, and 15.8 ± 0.1 % robust accuracy at 8/255 against "
            "14.5 ± 0.1 %.",
            "Adversarially trained networks have layer norms as large as plain ones or larger: 20.6 ± 0.1 "
            "against 16.3 ± 0.3 (ℓ∞).",
            "Adversarial training costs 8 points of clean accuracy and gains 45 points at 8/255.",
        ],
        table=Table(columns, table),
        charts=[
            accuracy_against_eps(data["eps"], methods),
            accuracy_against_norm(table, methods, accuracy_label="AutoAttack accuracy at 8/255"),
            norm_table().chart(data["layers"], methods),
            against_epoch(data["epochs"], methods),
            margins().chart(data["margins"], methods),
        ],
        settings={
            "opnorm": "0.1.0",
            "Git commit": "9f3c2ab, clean",
            "Data": "digits(): 1,437 training and 360 test images, 8×8, 10 classes",
            "Network": "vgg_small(width=16)",
            "Epochs": "12",
            "Time taken": "18 min 4 s",
            "Machine": "2 × Intel Xeon, torch 2.13.0 on the CPU",
            "Command": "opnorm study liang2021 --size laptop --seeds 3",
        },
        runs=[
            {"key": f"{abs(hash((m, s))):016x}"[:12], "label": m, "seed": s, "seconds": 40.0 + 3 * s}
            for m in methods
            for s in SEEDS
        ],
    )
