"""Roth, Kilcher & Hofmann 2020: is adversarial training a form of data-dependent operator norm regularization?"""

from opnorm.studies._roth2020 import roth_linearity, roth_robustness, roth_spectra
from opnorm.studies._shared.paper import Paper, study_of

__all__ = ["PAPER", "roth2020"]

PAPER = Paper(
    name="roth2020",
    title="Adversarial training as data-dependent operator norm regularization",
    source="Roth, Kilcher & Hofmann, NeurIPS 2020, arXiv:1906.01527",
    parts={
        "table2": roth_robustness.TABLE2,
        "theorem1": roth_spectra.THEOREM1,
        "figure2": roth_spectra.FIGURE2,
        "figure3": roth_robustness.FIGURE3,
        "figure4": roth_linearity.FIGURE4,
        "figure5": roth_linearity.FIGURE5,
        "figure7": roth_robustness.FIGURE7,
    },
    also={},
    sizes={
        "smoke": "one epoch of few points and two trials a search, to see that all works; nothing can be concluded from it",
        "laptop": (
            "digits of 8x8 pixels, the 7-layer CNN with 8 filters in its first layers and a WRN-10-1, 8 epochs, 3 seeds "
            "(the paper: CIFAR-10, a 7-layer CNN, WRN-28-10)"
        ),
        "paper": (
            "CIFAR-10, the 7-layer CNN and WRN-28-10; the extract gives neither the widths of the CNN nor the optimizer, so "
            "both are this project's reading"
        ),
    },
    note=(
        "The radius of adversarial training and the weights of regularizers are searched for, as in section 5.1: "
        "the radius is the smallest at which almost all attacked inputs fool the network trained without attacks, and a "
        "weight is that at which clean accuracy equals the adversarially trained network's. The search is part of the study."
    ),
)
roth2020 = study_of(PAPER)
