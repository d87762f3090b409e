"""Strengths of equal clean accuracy."""

import pytest

from opnorm.errors import RunError
from opnorm.runs.matching import match_accuracy, next_strength
from opnorm.runs.run import Run
from opnorm.runs.store import Store

ENDS = {"low": 0.01, "high": 1.0}


@pytest.mark.parametrize(
    ("trials", "wanted"),
    [
        ([], 0.01),
        ([(0.01, 0.9)], 1.0),
        ([(1.0, 0.6)], 0.01),
        ([(0.01, 0.9), (1.0, 0.6)], 0.1),
        ([(0.1, 0.85), (1.0, 0.6), (0.01, 0.9)], 10**-0.5),  # in any order
        ([(0.01, 0.9), (1.0, 0.6), (0.1, 0.7)], 10**-1.5),
        ([(0.01, 0.9), (1.0, 0.6), (0.1, 0.804)], None),  # close enough
        ([(0.01, 0.79), (1.0, 0.6)], None),  # not between the ends
        ([(0.01, 0.9), (1.0, 0.81)], None),
        ([(0.01, 0.9), (1.0, 0.6), (0.1, 0.85), (10**-0.5, 0.7)], None),  # two after the ends
    ],
)
def test_the_next_strength(trials, wanted):
    found = next_strength(trials, 0.8, **ENDS, most=2)
    assert found == (None if wanted is None else pytest.approx(wanted))


def test_a_search_ends_near_the_target():
    """Whatever the curve, as long as accuracy falls: within the last interval of the bisection."""
    for target in (0.2, 0.5, 0.77):
        trials = []
        while (
            strength := next_strength(trials, target, low=1e-3, high=1e3, tolerance=1e-6, most=20)
        ) is not None:
            assert strength not in dict(trials)
            trials.append((strength, 1 / (1 + strength)))
        assert min(abs(accuracy - target) for _, accuracy in trials) < 1e-4
        assert len(trials) <= 22


def run_of(lam: float) -> Run:
    decay = f"weight_decay(lam={lam!r})"
    return Run(
        "cnn(width=4)",
        "digits()",
        regularizers=(decay,),
        optimizer="sgd(lr=0.05)",
        epochs=4,
        batch=32,
        analyses=("accuracy()",),
    )


def test_strength_of_equal_accuracy(tmp_path):
    store = Store(tmp_path)
    match = match_accuracy(run_of, 0.9, store, low=0.01, high=3.0, tolerance=0.03)
    accuracies = {t.strength: t.accuracy for t in match.trials}
    assert accuracies[0.01] > 0.93 > 0.87 > accuracies[3.0]
    assert abs(match.best.accuracy - 0.9) <= 0.03
    assert match.best.accuracy == accuracies[match.best.strength]
    again = match_accuracy(run_of, 0.9, store, low=0.01, high=3.0, tolerance=0.03)
    assert again == match
    assert len(store.ls()) == len(match.trials)  # found, not trained again


def test_a_strength_at_which_training_diverges_is_too_large(tmp_path):
    match = match_accuracy(run_of, 0.9, Store(tmp_path), low=0.01, high=1e6, trials=1)
    assert [t.accuracy for t in match.trials if t.strength == 1e6] == [0.0]
    assert len(match.trials) == 3  # so the target lies between the ends


@pytest.mark.slow
def test_a_target_outside_gives_an_end(tmp_path):
    match = match_accuracy(run_of, 1.0, Store(tmp_path), low=0.01, high=0.1)
    assert len(match.trials) == 2
    assert match.best.strength == 0.01
    with pytest.raises(RunError, match="0 < low < high"):
        match_accuracy(run_of, 0.5, Store(tmp_path), low=1.0, high=0.1)
    with pytest.raises(RunError, match=r"target=85: expected an accuracy between 0 and 1"):
        match_accuracy(run_of, 85, Store(tmp_path), low=0.1, high=1.0)
