"""Liang & Huang 2021: do large norms of layers hurt adversarial robustness?"""

from opnorm.studies._liang2021 import liang_constructions, liang_figure2, liang_table1, liang_table2
from opnorm.studies._shared.paper import Paper, study_of

__all__ = ["PAPER", "liang2021"]

PAPER = Paper(
    name="liang2021",
    title="Large norms of CNN layers do not hurt adversarial robustness",
    source="Liang & Huang, AAAI 2021, arXiv:2009.08435",
    parts={
        "table1": liang_table1.PART,
        "table2": liang_table2.PART,
        "figure2": liang_figure2.PART,
        "constructions": liang_constructions.PART,
    },
    also={},
    sizes={
        "smoke": "one epoch of few points, to see that all works; nothing can be concluded from it",
        "laptop": (
            "digits of 8x8 pixels, networks of the same families an eighth as wide, 8 epochs (5 in Figure 2), attacks at "
            "larger radii (the paper: CIFAR-10, 120 epochs, radius 1/255 and 8/255)"
        ),
        "paper": (
            "the published setting: CIFAR-10, 120 epochs; norm decay as the authors' program has it (it leaves out 1/N, and "
            "has the last signs in place of their mean), not as their Algorithm 1, which the other sizes have"
        ),
    },
)
liang2021 = study_of(PAPER)
