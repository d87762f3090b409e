"""What a study would take, and networks that do not fit its data."""

import pytest

from opnorm.errors import ModelError
from opnorm.runs.plan import check_networks, estimate, of_other_versions
from opnorm.runs.run import Run
from opnorm.runs.runner import Study, run_study
from opnorm.runs.store import Store

SMALL = Run(model="mlp(width=4)", data="digits()", epochs=1, batch=32, limit=100, analyses=("accuracy()",))


def test_an_estimate_counts_what_is_missing(tmp_path):
    store = Store(tmp_path / "runs")
    runs = [Run(**{**SMALL.as_dict(), "seed": seed}) for seed in range(4)]
    before = estimate(runs, store, jobs=2)
    assert not store.root.exists(), "nothing is written"
    assert before.training > 0
    assert before.seconds == before.training / 2
    weights = 4 * (64 * 4 + 4 + 4 * 10 + 10)
    assert before.disk >= 4 * weights
    assert before.notes[0] == "measured: one training step of 1 of 1 kinds of training"
    assert before.notes[-1].startswith("4 analyses not counted")
    run_study(Study("one", runs[:1], lambda results: None), store, jobs=1)
    after = estimate(runs, store, jobs=2)
    assert after.analyses == pytest.approx(3 * store.results(runs[0].key)["accuracy()"]["seconds"])
    assert after.disk == before.disk * 3 / 4
    assert estimate(runs[:1], store, jobs=2).training == 0
    assert of_other_versions(store) == 0


def test_runs_of_another_version_are_counted(tmp_path, monkeypatch):
    store = Store(tmp_path / "runs")
    run_study(Study("one", [SMALL], lambda results: None), store, jobs=1)
    monkeypatch.setattr("opnorm.__version__", "99.0")
    assert of_other_versions(store) == 1


def test_a_network_that_does_not_fit_is_refused_before_training(tmp_path):
    wrong = Run(**{**SMALL.as_dict(), "model": "mlp(width=4, classes=7)"})
    with pytest.raises(
        ModelError, match=r"expected \(1, 10\).* \(digits\(\) has points of 1x8x8 and 10 classes\)"
    ):
        check_networks([SMALL, wrong])
    store = Store(tmp_path / "runs")
    with pytest.raises(ModelError, match="1x8x8"):
        run_study(Study("wrong", [SMALL, wrong], lambda results: None), store, jobs=1)
    assert not store.finished(SMALL.key), "nothing was trained"
