"""The networks and trainings of Roth et al. 2020, and the search for their radius and their weights (section 5.1)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from opnorm import spec
from opnorm.report import Cell, Column, Stat, Table, significant
from opnorm.runs.matching import next_strength
from opnorm.runs.run import Result, Run
from opnorm.studies._shared.outcomes import Case, MissingError, Outcomes, row_of
from opnorm.studies._shared.paper import Setting

__all__ = [
    "ADVERSARIAL",
    "CNN",
    "DATA_DEPENDENT",
    "GLOBAL",
    "STANDARD",
    "Network",
    "adversarial_objective",
    "further_cases",
    "known_eps",
    "matched_strength",
    "measured",
    "search_table",
    "searched",
    "setting_text",
    "standard_cases",
    "training_eps",
]

STANDARD, ADVERSARIAL = "standard", "adversarial training"
GLOBAL = ("global SNR, 1 iteration", "global SNR, 10 iterations")
DATA_DEPENDENT = "d.d. SNR"
SEARCH = "search: "
TOLERANCE = 0.01  # of clean accuracy
CLEAN = ("accuracy()",)


@dataclass(frozen=True)
class Network:
    """A network of the paper with the norm of its attacks.

    Attributes:
        name: in tables.
        paper, small: as calls.
        norm: of the ball of the attack.
    """

    name: str
    paper: str
    small: str
    norm: float = 2

    @property
    def regularizers(self) -> dict[str, str]:
        """By method, a regularizer as a call, with {} for its weight.

        For attacks in ℓ∞ the data-dependent one is that of Theorem 1, the norm from ℓ∞ to ℓ2.
        """
        dd = "dd_snr(lam={})" if self.norm == 2 else f"dd_onr(lam={{}}, p={self.norm:g}, q=2, power=2)"
        return {
            GLOBAL[0]: "global_snr(lam={}, steps=1)",
            GLOBAL[1]: "global_snr(lam={}, steps=10)",
            DATA_DEPENDENT: dd,
        }


CNN = Network("7-layer CNN, ℓ2", "cnn7()", "cnn7(width=8)")
# weights between which the one of equal accuracy is searched for, by the name of the regularizer
ENDS = {"global_snr": (1e-3, 10.0), "dd_snr": (1e-3, 10.0), "dd_onr": (1e-5, 0.1)}


def base_run(setting: Setting, network: Network) -> Run:
    """Standard training."""
    if setting.size == "paper":
        run = Run(
            model=network.paper, data='hf("uoft-cs/cifar10")', optimizer="sgd(lr=0.1)", epochs=100, batch=128,
            augment=("crop(padding=4)", "flip()"),
        )  # fmt: skip
    else:
        run = Run(
            model=network.small, data="digits()", optimizer="sgd(lr=0.1)", epochs=setting.pick(5, 8, None),
            batch=setting.pick(20, 64, None), limit=setting.pick(100, None, None),
        )  # fmt: skip
    return setting.base(run)


def standard_cases(setting: Setting, networks: Sequence[Network]) -> list[Case]:
    """What a search begins with: standard training, and at which radius almost all attacked inputs fool it."""
    points = setting.pick(20, 200, 500)
    return [
        case
        for network in networks
        for case in setting.repeated(
            Case(
                SEARCH + network.name,
                STANDARD,
                replace(
                    base_run(setting, network),
                    analyses=(*CLEAN, f"attack_radius(norm={network.norm:g}, points={points})"),
                ),
            ),
            setting.pick(1, 3, 3),
        )
    ]


def searched(network: Network, outcomes: Outcomes) -> Outcomes:
    """The standard trainings that the search for the radius begins with."""
    return outcomes.of(SEARCH + network.name, STANDARD)


def training_eps(network: Network, outcomes: Outcomes) -> float | None:
    """The radius of adversarial training, to three digits, from the first seed of standard training.

    None if that is not known: another seed is no substitute, or a failed run would change the whole study.
    """
    found = searched(network, outcomes).all
    if not found or found[0].result.failure:
        return None
    eps = row_of(found[0].result, "attack_radius")["eps"]
    return None if eps is None else significant(eps, 3)


def known_eps(network: Network, outcomes: Outcomes) -> float:
    """The radius of adversarial training.

    Raises:
        MissingError: a standard training failed, or no radius is known at which almost all attacks on it succeed.
    """
    searched(network, outcomes).complete()
    eps = training_eps(network, outcomes)
    if eps is None:
        raise MissingError(f"{network.name}: no radius is known at which almost all attacks succeed")
    return eps


def adversarial_objective(setting: Setting, network: Network, eps: float) -> str:
    """Projected gradient ascent with 10 steps."""
    return f"pgd_at(eps={eps!r}, norm={network.norm:g}, steps={setting.pick(2, 10, 10)})"


def further_cases(
    setting: Setting,
    outcomes: Outcomes,
    network: Network,
    analyses: Callable[[float], Sequence[str]],
    methods: Sequence[str],
) -> list[Case]:
    """The cases that can be named from what is known: trials of the searches, and the networks of the figure.

    Args:
        setting: what the caller chose.
        outcomes: of all cases so far.
        network: one of the paper.
        analyses: the training radius -> what is measured of each network of the figure, besides clean accuracy.
        methods: of the figure.
    """
    eps = training_eps(network, outcomes)
    if eps is None:
        return []
    base = replace(base_run(setting, network), analyses=(*CLEAN, *analyses(eps)))

    def repeated(method: str, run: Run) -> list[Case]:
        return setting.repeated(Case(network.name, method, run), setting.pick(1, 3, 3))

    adversarial = replace(base, objective=adversarial_objective(setting, network, eps))
    found = [
        *repeated(STANDARD, base),
        *repeated(ADVERSARIAL, adversarial),
    ]
    target = mean_accuracy(outcomes.of(network.name, ADVERSARIAL))
    if target is None:
        return found
    for method in methods:
        if method in (STANDARD, ADVERSARIAL) or (setting.size == "smoke" and method == GLOBAL[1]):
            continue
        call = network.regularizers[method]
        trials = accuracies_of_trials(network, method, outcomes)
        strength = next_trial(setting, call, trials, target)
        if strength is not None:
            run = replace(base, regularizers=(call.format(repr(strength)),), analyses=CLEAN)
            found.append(Case(SEARCH + network.name, f"{method}, λ = {strength:.3g}", run))
        else:
            run = replace(base, regularizers=(call.format(repr(closest(trials, target))),))
            found += repeated(method, run)
    return found


def next_trial(setting: Setting, call: str, trials: Mapping[float, float], target: float) -> float | None:
    """The weight that is tried next; None where the search has ended."""
    low, high = ENDS[spec.parse(call.format(1)).name]
    most = setting.pick(0, 5, 6)
    return next_strength([*trials.items()], target, low=low, high=high, tolerance=TOLERANCE, most=most)


def closest(trials: Mapping[float, float], target: float) -> float:
    """The weight whose accuracy is closest to the target."""
    return min(trials, key=lambda strength: abs(trials[strength] - target))


def strength_of(run: Run) -> float:
    """The weight of a run's only regularizer."""
    (call,) = run.regularizers
    strength = dict(spec.parse(call).kwargs)["lam"]
    assert isinstance(strength, int | float), "a weight is a number"
    return float(strength)


def clean_accuracy(result: Result) -> float:
    """0 where training diverged: the weight is too large."""
    return 0.0 if result.failure else float(row_of(result, "accuracy")["accuracy"])


def mean_accuracy(outcomes: Outcomes) -> float | None:
    """The mean clean accuracy over the seeds; None where nothing is known or a training diverged."""
    if not outcomes.all or len(outcomes.good) < len(outcomes.all):
        return None
    return math.fsum(clean_accuracy(o.result) for o in outcomes.all) / len(outcomes.all)


def accuracies_of_trials(network: Network, method: str, outcomes: Outcomes) -> dict[float, float]:
    """Of each weight that was tried for a method, the mean clean accuracy over the seeds."""
    found: dict[float, list[float]] = {}
    for o in outcomes.of(network=SEARCH + network.name).all:
        if o.case.method.startswith(f"{method}, "):
            found.setdefault(strength_of(o.case.run), []).append(clean_accuracy(o.result))
    return {strength: math.fsum(values) / len(values) for strength, values in found.items()}


def matched_strength(network: Network, method: str, outcomes: Outcomes) -> float | None:
    """The weight of a method's network in the figures; None while it is searched for."""
    runs = [o.case.run for o in outcomes.of(network.name, method).all]
    return strength_of(runs[0]) if runs else None


def measured(outcomes: Outcomes) -> Outcomes:
    """Those of the figures, without the trials of the searches."""
    return Outcomes([o for o in outcomes.all if not o.case.network.startswith(SEARCH)])


def search_table(networks: Sequence[Network], outcomes: Outcomes) -> dict[str, Table]:
    """The radius, and every trial of a search with the accuracy to reach; one row a trial."""
    columns = [
        Column("method", "trial", "text"),
        Column("strength", "weight λ", "number", None, "Of the regularizer in the loss."),
        Column("accuracy", "clean", "percent", None, "Share of test images classified correctly."),
        Column("target", "to reach", "percent", None, "Clean accuracy of the adversarially trained network."),
        Column("chosen", "chosen", "text", None, "Whose accuracy is closest to the one to reach."),
    ]
    found = {}
    for network in networks:
        some, eps = outcomes.of(network=SEARCH + network.name), training_eps(network, outcomes)
        target = mean_accuracy(outcomes.of(network.name, ADVERSARIAL))
        rows: list[dict[str, Cell]] = []
        for method in (m for m in some.methods if m != STANDARD):
            trials = some.of(method=method)
            strength = strength_of(trials.all[0].case.run)
            best = matched_strength(network, method.rpartition(", λ")[0], outcomes)
            accuracy = Stat.of([clean_accuracy(o.result) for o in trials.all])
            row: dict[str, Cell] = {"method": method, "strength": strength, "accuracy": accuracy}
            rows.append(row | {"target": target, "chosen": "yes" if strength == best else ""})
        if rows:
            radius = "" if eps is None else f", training ε = {eps:g}"
            found[f"The search: {network.name}{radius}"] = Table(columns, rows, {})
    return found


def setting_text(networks: Sequence[Network], outcomes: Outcomes) -> str:
    """The radius and the weights that were found, as sentences."""
    found = []
    for network in networks:
        eps = training_eps(network, outcomes)
        if eps is None:
            found.append(
                f"{network.name}: no radius is known at which almost all attacks on the standard network succeed."
            )
            continue
        weights = {method: matched_strength(network, method, outcomes) for method in network.regularizers}
        known = [f"λ = {weight:.3g} of {method}" for method, weight in weights.items() if weight is not None]
        found.append(f"{network.name}: " + ", ".join([f"training ε = {eps:g}", *known]) + ".")
    return " ".join(found)
