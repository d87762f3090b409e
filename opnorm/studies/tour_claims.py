"""What the tour says about two papers' claims, each by one pair of its methods."""

import math

from opnorm.studies._shared.claim import Claim, Region, Verdict, below, decide, no_lower
from opnorm.studies._shared.methods_table import log_typical_norm
from opnorm.studies._shared.outcomes import Measure, Outcomes, correct_points
from opnorm.studies._shared.unit import POINTS, times_the

__all__ = ["CLAIMS", "TRAIN_EPS"]

TRAIN_EPS = 0.1
DECAY, TRAINED = "norm_decay(p=inf, beta=0.1)", f"pgd_at(eps={TRAIN_EPS})"
LOCAL, LAYERS = "dd_snr(lam=0.1)", "global_snr(lam=0.1)"
MARGIN = 0.05  # of robust accuracy, and less, is "as robust"
COMPARABLE = 0.8  # of plain training's norm, and more, is "as large"

robust_points = correct_points("robust_accuracy", norm="inf", eps=TRAIN_EPS)


log_norm = log_typical_norm("inf")


def _claim(
    name: str,
    sentence: str,
    section: str,
    methods: tuple[str, str],
    measure: Measure,
    region: Region,
) -> Claim:
    """A claim about the difference of two methods."""

    def verdict(outcomes: Outcomes) -> Verdict:
        first, second = (outcomes.of(method=method) for method in methods)
        compared = first.compare(f"{methods[0]} against {methods[1]}", second, measure)
        unit = POINTS if measure is robust_points else times_the("typical ℓ∞ norm")
        return decide([compared], region, unit=unit)

    return Claim(name, sentence, section, verdict)


LIANG, ROTH = "Liang & Huang 2021", "Roth et al. 2020"
CLAIMS = (
    _claim(
        "norm_decay_shrinks_norms_of_layers",
        "Norm decay makes the typical ℓ∞ norm of a layer smaller than plain training does.",
        f"{LIANG}, Table 2", (DECAY, "plain"), log_norm, below(),
    ),
    _claim(
        "norm_decay_is_no_more_robust",
        "Norm decay is no more robust than plain training, by 5 points or more.",
        f"{LIANG}, Table 2", (DECAY, "plain"), robust_points, below(MARGIN),
    ),
    _claim(
        "adversarial_training_keeps_norms_as_large",
        "Adversarial training ends with a typical ℓ∞ norm of a layer of at least 0.8 times plain training's.",
        f"{LIANG}, Figure 2", (TRAINED, "plain"), log_norm, no_lower(-math.log10(COMPARABLE)),
    ),
    _claim(
        "spectral_norm_at_the_data_is_as_robust",
        "Keeping the Jacobian's spectral norm at the data small is as robust as adversarial training, to 5 points.",
        f"{ROTH}, Figure 3", (LOCAL, TRAINED), robust_points, no_lower(MARGIN),
    ),
    _claim(
        "spectral_norms_of_layers_are_less_robust",
        "Keeping the spectral norm of each layer small is less robust than keeping that of the Jacobian at the data small.",
        f"{ROTH}, Figure 3", (LAYERS, LOCAL), robust_points, below(),
    ),
)  # fmt: skip
