"""Wen, Li & Jia 2020: how does adversarial robustness regularize neural networks?"""

from opnorm.studies._shared.paper import Paper, study_of
from opnorm.studies._wen2020 import wen_distributions, wen_gaps

__all__ = ["PAPER", "wen2020"]

PAPER = Paper(
    name="wen2020",
    title="The regularization of adversarial robustness on neural networks",
    source="Wen, Li & Jia, ICML 2020, arXiv:2011.07478",
    parts={
        "table1": wen_distributions.TABLE1,
        "table2": wen_gaps.TABLE2,
        "table3": wen_gaps.TABLE3,
        "table4": wen_gaps.TABLE4,
        "table5": wen_gaps.TABLE5,
        "table6": wen_gaps.TABLE6,
        "figure4": wen_distributions.FIGURE4,
        "b2": wen_distributions.B2,
        "theorem31": wen_distributions.THEOREM31,
    },
    also={
        "figure1": "b2",
        "figure1b": "figure4",
        "figure3": "table3",
        "figure3b": "table4",
        "figure3c": "table5",
        "figure5": "b2",
        "figure5a": "figure4",
        "figure5b": "figure4",
        "figure6": "table6",
        "figure7": "table3",
        "figure8": "table1",
        "figure9": "table2",
        "figure10": "table2",
        "figure11": "table2",
        "figure12": "table3",
    },
    sizes={
        "smoke": "one epoch of few points, to see that all works; nothing can be concluded from it",
        "laptop": (
            "digits of 8x8 pixels (600 of them in place of CIFAR-100), residual networks of 8 and 14 layers and a WRN-50-2 "
            "of width 4, 12 epochs (10 of the WRN), radii twice the paper's (the paper: CIFAR and Tiny-ImageNet, 56 and "
            "110 layers, 200 epochs)"
        ),
        "paper": "the published settings: CIFAR-10, CIFAR-100 and Tiny-ImageNet, 200 and 90 epochs",
    },
)
wen2020 = study_of(PAPER)
