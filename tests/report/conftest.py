"""A report such as a study writes: 8 methods, 3 seeds, 4 layers, 12 epochs, 6 strengths of the attack."""

import math
import random

import pytest

from opnorm.report import (
    Column,
    Report,
    Stat,
    Table,
    accuracy_against_eps,
    accuracy_against_norm,
    against_epoch,
    layer_norms,
    margins,
)

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
LAYERS = ["conv1", "conv2", "fc1", "fc2"]
SEEDS = [0, 1, 2]
EPS = [0.0, 1 / 255, 2 / 255, 4 / 255, 6 / 255, 8 / 255]


def rows(methods=METHODS, seeds=SEEDS, epochs=12, images=200):
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
            for index, layer in enumerate(LAYERS):
                for p, factor in {"1": 1.4, "2": 0.5, "inf": 2.0}.items():
                    value = size * factor * (1 + 0.4 * math.sin(index)) * math.exp(rng.gauss(0, 0.08))
                    interval = (0.97 * value, 1.02 * value) if p == "2" else (value, value)
                    row = {**base, "layer": layer, "index": index, "ord": p, "value": value}
                    out["layers"].append({**row, "lower": interval[0], "upper": interval[1]})
            for epoch in range(1, epochs + 1):
                grown = size ** (1 - math.exp(-epoch / 4)) * math.exp(rng.gauss(0, 0.02))
                accuracy = clean * (1 - 0.6 * math.exp(-epoch / 2)) + wobble + rng.gauss(0, 0.003)
                norms = {"norm_1": 1.4 * grown, "norm_2": 0.5 * grown, "norm_inf": 2 * grown}
                loss = 2.2 * math.exp(-epoch / 3) + 0.02 * decay / 60
                out["epochs"].append(
                    {**base, "epoch": epoch, "test_accuracy": accuracy, "train_loss": loss, **norms}
                )
            out["margins"] += [{**base, "margin": rng.gauss(0.2 + 0.1 * decay, 3.5)} for _ in range(images)]
    return out


@pytest.fixture
def make_rows():
    return rows


@pytest.fixture(scope="session")
def report():
    data = rows()
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
            layer_norms(data["layers"], methods),
            against_epoch(data["epochs"], methods),
            margins(data["margins"], methods),
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
