"""Runs as flat rows: all columns, one type each, and the robust accuracies of analyses and attacks."""

import json
from dataclasses import replace

import pyarrow.parquet
import pytest

from opnorm._core import files
from opnorm.errors import RunError
from opnorm.runs.run_columns import COLUMNS, robust_accuracies, run_rows, write_parquet
from opnorm.runs.store import Store

PGD = {
    "attack": "pgd(norm=inf, eps=8/255, steps=2)",
    "points": 40,
    "correct": 30,
    "state": "finished",
    "data": "digits",
}


def test_a_finished_run(finished, tiny):
    store = finished(tiny)
    (row,) = run_rows(store)
    assert tuple(row) == COLUMNS
    assert (row["key"], row["state"], row["model"], row["epochs"]) == (
        tiny.key,
        "finished",
        "cnn(width=4)",
        3,
    )
    assert row["accuracy"] == store.results(tiny.key)["accuracy()"]["rows"][0]["accuracy"]
    assert row["test_accuracy"] == store.metrics(store.folder(tiny.key))[-1]["test_accuracy"]
    assert (row["epochs_done"], row["robust_accuracy"], row["failure"]) == (3, None, None)


def test_robust_accuracies():
    analyses = {
        "robust_accuracy()": {"rows": [{"attack": "pgd()", "norm": "2", "eps": 0.5, "correct": 3, "points": 4}]},
        "wen": {"rows": [{"attack": "fgsm(eps=0.1, norm=inf)", "eps": 0.1, "correct": 2, "points": 4, "of": 8}]},
        "robustness_curve()": {"rows": [{"attack": "x", "eps": [0.1], "accuracy": [0.5], "points": 4}]},
        "margins()": {"rows": [{"margins": [1]}]},
    }  # fmt: skip
    attacks = [
        PGD | {"robust": 20},
        PGD | {"robust": 1, "data": "other()"},
        PGD | {"robust": 1, "state": "partial"},
        PGD,
    ]
    found = {r.column: (r.accuracy, r.points) for r in robust_accuracies(analyses, attacks, "digits()")}
    assert found == {
        "robust_2_0.5_pgd": (0.75, 4), "robust_inf_0.1_fgsm": (0.25, 8), "robust_inf_0.03137_pgd": (0.5, 40),
    }  # fmt: skip


def test_of_several_with_one_name_that_of_most_points_counts(store, tiny):
    with store.open(tiny.key) as entry:
        entry.begin({"run": tiny.as_dict()})
    for key, robust, points in (("a" * 12, 1, 10), ("b" * 12, 30, 50), ("c" * 12, 40, 50)):
        kept = Store(store.root / "attacks", subject={"subject": tiny.key, "data": "digits()"})
        with kept.open(key) as entry:
            entry.begin({"attack": PGD["attack"]})
            entry.note(robust=robust, points=points, correct=points)
            entry.finish()
    (row,) = run_rows(store)
    assert (row["robust_inf_0.03137_pgd"], row["robust_inf_0.03137_pgd_points"]) == (0.6, 50)
    assert row["robust_accuracy"] == 0.1, "the lowest that is known"


def test_parquet_has_one_type_a_column(store, tiny, tmp_path):
    for i, run in enumerate((tiny, replace(tiny, limit=None, ema=0.5))):
        with store.open(run.key) as entry:
            entry.begin({"run": run.as_dict(), "where": {"threads": i}})
    (store.root / "odd").mkdir()
    files.write_json(
        store.root / "odd" / "run.json", {"format": 4, "run": {"model": 7, "seed": "x"}}, checked=True
    )
    rows = run_rows(store)
    write_parquet(tmp_path / "new" / "runs.parquet", rows)
    table = pyarrow.parquet.read_table(tmp_path / "new" / "runs.parquet")
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds["epochs"] == kinds["limit"] == kinds["threads"] == "int64"
    assert kinds["ema"] == kinds["accuracy"] == kinds["robust_accuracy"] == "double"
    assert kinds["channels_last"] == "bool"
    assert {kinds[n] for n in ("failure", "ended", "git", "model", "seed")} == {"string"}
    assert table.column("key").to_pylist() == [row["key"] for row in rows]
    write_parquet(tmp_path / "none.parquet", [])
    assert pyarrow.parquet.read_table(tmp_path / "none.parquet").column_names == list(COLUMNS)


def test_damaged_results_are_the_state(finished, tiny, tmp_path):
    import shutil

    store = Store(shutil.copytree(finished(tiny).root, tmp_path / "runs"))
    path = store.folder(tiny.key) / "results.json"
    path.write_text(json.dumps({"analyses": {}}))
    (row,) = run_rows(store)
    assert "its contents differ from its checksum" in row["state"]
    assert row["model"] == "cnn(width=4)"
    with pytest.raises(RunError, match="cannot write"):
        write_parquet(path / "x.parquet", [row])
