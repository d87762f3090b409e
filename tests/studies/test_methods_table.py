"""Tables of methods, from made-up results: printed numbers beside the measured ones, the best rows, failed seeds."""

import numpy as np
import pytest

from opnorm.report import Column, Stat
from opnorm.runs.run import Result, Run
from opnorm.studies import Setting
from opnorm.studies._shared.methods_table import Quantity, log_typical_norm, methods_table
from opnorm.studies._shared.outcomes import Case, Outcome, Outcomes
from opnorm.studies._shared.paper import data_of

HIGH = Column("clean", "clean", "percent", "high")
CLEAR = {"a": (0.9, 0.91, 0.89), "b": (0.5, 0.52, 0.51), "c": (0.3, 0.33, 0.31)}


def value(result):
    return result.rows["accuracy()"][0]["value"]


def outcomes(values, failed=(), pending=()):
    """Of each method and seed a value; failed and pending are pairs of method and seed."""
    found = []
    for method, of_method in values.items():
        for seed, x in enumerate(of_method):
            run = Run(model="cnn()", data="digits()", seed=seed, analyses=("accuracy()",))
            result = Result(run, [], {"accuracy()": [{"value": x}]}, 1.0)
            if (method, seed) in failed:
                result = Result(run, [], {}, 1.0, "the loss was not finite")
            if (method, seed) in pending:
                result = Result.to_come(run)
            found.append(Outcome(Case("net", method, run), result))
    return Outcomes(found)


def best(some, column=HIGH, measure=value):
    return methods_table(some, [Quantity(column, measure)]).best["clean"]


def test_the_best_row_by_a_test():
    assert best(outcomes(CLEAR)) == [0]
    assert best(outcomes(CLEAR), Column("clean", "clean", "percent", "low")) == [2]
    near = CLEAR | {"b": (0.88, 0.93, 0.9)}
    assert best(outcomes(near)) == [0, 1]
    assert best(outcomes({"a": (0.9, 0.1, 0.5), "b": (0.2, 0.8, 0.4)})) == [], "no row is told from the best"


def test_one_seed_is_not_the_best():
    assert best(outcomes({"a": (0.9,), "b": (0.1,)})) == []


def test_shares_are_tested_at_their_points():
    points = {m: [np.arange(400) < 400 * share for share in shares] for m, shares in CLEAR.items()}
    assert best(outcomes(points)) == [0]
    table = methods_table(outcomes(points), [Quantity(HIGH, value)])
    assert table.rows[0]["clean"] == Stat(pytest.approx(0.9), pytest.approx(0.01), 3, 400)


@pytest.mark.parametrize("state", ["failed", "pending"])
def test_a_method_with_a_missing_seed_takes_no_part(state):
    """Not even where the seeds that are left are the best ones."""
    for method, expected in (("a", [1]), ("b", [0]), ("c", [0])):
        assert best(outcomes(CLEAR, **{state: [(method, 1)]})) == expected
    missing = outcomes(CLEAR, **{state: [("a", seed) for seed in range(3)]})
    assert best(missing) == [1]


def test_a_method_with_an_unknown_value_takes_no_part():
    assert best(outcomes(CLEAR | {"a": (0.9, None, 0.89)})) == [1]
    assert (
        methods_table(outcomes(CLEAR | {"a": (None,) * 3}), [Quantity(HIGH, value)]).rows[0]["clean"] is None
    )


def test_failed_seeds_are_said():
    table = methods_table(outcomes(CLEAR, failed=[("b", 1)]), [Quantity(HIGH, value)])
    assert table.columns[-1].key == "failures"
    assert [row["failures"] for row in table.rows] == ["none", "seed 1: the loss was not finite", "none"]
    assert table.rows[1]["clean"].n == 2
    all_failed = methods_table(outcomes(CLEAR, failed=[("b", s) for s in range(3)]), [Quantity(HIGH, value)])
    assert all_failed.rows[1]["_failed"] == "the loss was not finite"


PRINTED = {"a": {"clean": 0.95}, "c": {"clean": 0.25}}


def test_printed_numbers_stand_beside():
    other = methods_table(outcomes(CLEAR), [Quantity(HIGH, value)], PRINTED)
    assert [column.label for column in other.columns] == ["training", "clean", "paper, other setting"]
    assert [row["clean_paper"] for row in other.rows] == [0.95, None, 0.25]
    same = methods_table(outcomes(CLEAR), [Quantity(HIGH, value)], PRINTED, same_setting=True)
    assert [column.label for column in same.columns] == ["training", "clean", "paper", "difference"]
    assert same.rows[0]["clean_difference"] == pytest.approx(-0.05)
    assert "clean_difference" not in same.rows[1]
    nothing = methods_table(outcomes(CLEAR), [Quantity(HIGH, value)], {})
    assert [column.key for column in nothing.columns] == ["method", "clean"]


def test_printed_numbers_of_no_column():
    with pytest.raises(ValueError, match="fgsm; the columns are clean"):
        methods_table(outcomes(CLEAR), [Quantity(HIGH, value)], {"a": {"fgsm": 0.5}})


@pytest.mark.parametrize(
    ("settings", "published"),
    [
        ({"size": "paper"}, True),
        ({"size": "paper", "seeds": 2}, True),
        ({"size": "paper", "limit": 100}, False),
        ({"size": "paper", "data": "digits()"}, False),
        ({"size": "laptop"}, False),
    ],
)
def test_the_published_setting(settings, published):
    """Only then is a difference to a printed number shown."""
    assert Setting(**settings).published is published


def test_the_data_of_all_runs():
    runs = [Run("cnn()", "digits()"), Run("cnn()", "digits()", seed=1), Run("cnn()", "digits()", limit=60)]
    assert (
        data_of([Result.to_come(run) for run in runs])
        == "digits(); digits(), at most 60 training and test points"
    )


def test_a_norm_that_has_no_logarithm():
    run = Run("cnn()", "digits()")

    def result(*norms):
        rows = [{"kind": "Linear", "norms": {"inf": {"lower": norm}}} for norm in norms]
        return Result(run, [], {"norm_table()": rows}, 1.0)

    assert log_typical_norm("inf")(result(10.0, 1000.0)) == pytest.approx(2)
    assert log_typical_norm("inf")(result(10.0, 0.0)) is None
    assert log_typical_norm("1")(result(10.0)) is None
