"""Robust accuracy of Liu et al., against the same by hand."""

import math

from opnorm.analyses import liu_robust_accuracy
from opnorm.attacks import fgsm, pgd
from tests.analyses.toys import after, data, pixels, trained

NETWORK = trained


def test_liu_is_each_attack_features_by_hand(model):
    x, y = pixels(data().test)
    rows = liu_robust_accuracy(points=None)(model, data())
    attacks = [fgsm(e) for e in (0.01, 0.03, 0.05)] + [pgd(math.inf, e, 10) for e in (0.01, 0.03)]
    right = model(x).argmax(1) == y
    assert [(r["attack"], r["eps"]) for r in rows] == [
        *((f"fgsm(eps={e}, norm=inf)", e) for e in (0.01, 0.03, 0.05)),
        *((f"pgd(norm=inf, eps={e}, steps=10, bf16=False)", e) for e in (0.01, 0.03)),
    ]
    for row, attack in zip(rows, attacks, strict=True):
        held = int((right & after(model, attack, x, y)).sum())
        assert row["correct"] == held
        assert row["accuracy"] == held / row["points"] == held / len(y)
