"""Liu, Cui & Chan 2020: regularization of weights that does not change with their scale (WEISSI)."""

from opnorm.studies._liu2020 import liu_figures, liu_tables
from opnorm.studies._shared.paper import Paper, study_of

__all__ = ["PAPER", "liu2020"]

PAPER = Paper(
    name="liu2020",
    title="Regularization that is invariant under shifts of the weights' scale",
    source="Liu, Cui & Chan 2020, arXiv:2008.02965",
    parts={
        "table1": liu_tables.TABLE1,
        "table2": liu_tables.TABLE2,
        "table3": liu_tables.TABLE3,
        "table4": liu_tables.TABLE4,
        "figure2": liu_figures.FIGURE2,
        "figure3": liu_figures.FIGURE3,
        "figure4": liu_figures.FIGURE4,
        "invariance": liu_figures.INVARIANCE,
    },
    also={},
    sizes={
        "smoke": "one epoch of few points, to see that all works; nothing can be concluded from it",
        "laptop": (
            "digits of 8x8 pixels, a perceptron of width 128, a CNN and a VGG-16 an eighth as wide (the VGG-16 with two "
            "poolings), a WRN-10-1, 12 epochs (VGG-16: 20), radii 3 times the paper's, own "
            "strengths of WEISSI (the paper: MNIST and CIFAR-10, WRN-28-10, 60 to 300 epochs); the complexity of a layer of "
            "the WRN counts once its norm is above 0.1, because Fixup starts layers at zero"
        ),
        "paper": (
            "the published settings: MNIST and CIFAR-10, 60, 300 and 200 epochs; but the complexity of a layer of the WRN "
            "counts once its norm is above 0.1, as Fixup starts layers at zero, and without it the first steps diverge; "
            "with the printed strengths the energy of the VGG-16 overflows in the second step, and these runs fail"
        ),
    },
)
liu2020 = study_of(PAPER)
