"""Charts of robustness: accuracy against ε, and how far the loss moves within ε.

Each takes the rows of one analysis (:mod:`opnorm.analyses`), every one with its ``method`` and ``seed``; see
:mod:`opnorm.report.charts` for what all charts share.
"""

from collections.abc import Sequence
from dataclasses import replace

from opnorm.report import charts
from opnorm.report.curves import Head, Panel, curves
from opnorm.report.model import Chart
from opnorm.report.vega import Row

__all__ = ["liu_robust_accuracy", "loss_variation", "robust_accuracy", "robustness_curve"]

EPS = "ε, the largest change of a pixel (pixels are in [0, 1])"


def robust_accuracy(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """Accuracy under attack against ε."""
    chart = charts.accuracy_against_eps(rows, methods, baseline=baseline)
    caption = (
        "How many test images are still classified rightly when each may be changed by up to ε. A line that stays high is a "
        "robust network."
    )
    return replace(chart, caption=caption)


def robustness_curve(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """Accuracy against ε from each image's smallest radius; Roth, Kilcher & Hofmann 2020, Fig. 3."""
    flat = [
        {"method": row["method"], "seed": row["seed"], "norm": row["norm"], "eps": eps, "accuracy": accuracy}
        for row in rows
        for eps, accuracy in zip(row["eps"], row["accuracy"], strict=True)
    ]
    chart = charts.accuracy_against_eps(flat, methods, baseline=baseline)
    caption = (
        "For each test image the smallest change that fools the network was searched for; shown is the share of images that "
        "need more than ε. At 0 nothing is changed. A line that stays high is a robust network."
    )
    return replace(chart, key="robustness-curve", title="How far until it is fooled?", caption=caption)


def liu_robust_accuracy(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """Accuracy under FGSM and PGD10, each radius for itself; Liu et al. 2020, Tables 1 to 4."""
    head = Head(
        "fgsm-and-pgd",
        "Accuracy under one step and under ten",
        "The share of test images still classified rightly after one step of the attack (FGSM) and after ten (PGD), at each "
        "size of the change.",
        EPS,
    )
    panels = {"FGSM": Panel("After FGSM", percent=True), "PGD10": Panel("After PGD, 10 steps", percent=True)}
    return curves(
        rows, methods, baseline, head, panels, lambda row: [(row["attack"], row["eps"], row["accuracy"])]
    )


def loss_variation(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """Mean and deviation of the largest change of the loss within ε; Wen, Li & Jia 2020, Fig. 8."""
    head = Head(
        "loss-variation",
        "How far does the loss move?",
        "The largest change of a test image's loss that an attack of size ε reaches: its mean over the images, and its "
        "standard deviation over them.",
        EPS,
    )
    panels = {"mean": Panel("Mean over the images"), "std": Panel("Standard deviation over the images")}
    return curves(
        rows, methods, baseline, head, panels, lambda row: [(name, row["eps"], row[name]) for name in panels]
    )
