"""``opnorm show``: a run on one screen, also where the terminal has no blocks."""

import json
import shutil
from pathlib import Path

import pytest

from opnorm.cli.show import sparkline
from opnorm.models import file
from opnorm.runs.store import Store


def test_a_finished_run(main, tiny, finished, tmp_path):
    shutil.copytree(finished(tiny).root, tmp_path / "runs")
    status, out, err = main("show", tiny.key[:4])
    lines = {line[:30].strip(): line[32:] for line in out.splitlines()}
    assert (status, err) == (0, "")
    assert (lines["key"], lines["state"], lines["model"]) == (tiny.key, "finished", "cnn(width=4)")
    loss = [row["loss"] for row in Store("runs").metrics(Path("runs") / tiny.key)]
    assert lines["loss"] == f"{sparkline(loss)}  {loss[0]:.4g} to {loss[-1]:.4g}"
    code = [line[32:] for line in out.splitlines() if line[32:].startswith(("from ", "model = "))]
    names: dict = {"file": file}
    for line in code[1:]:
        path = line.partition("file('")[2].partition("')")[0]
        names["model"] = file(path)
    assert names["model"].state_dict()
    found = json.loads(main("show", f"runs/{tiny.key}", "--json")[1])
    assert [row["loss"] for row in found["metrics"]] == loss
    assert float(lines["accuracy"]) == pytest.approx(found["accuracy"], rel=1e-5)


def test_a_run_that_has_not_ended(main, tiny):
    with Store("runs").open(tiny.key) as entry:
        entry.begin({"run": tiny.as_dict()})
    status, out, _ = main("show", tiny.key)
    assert status == 0
    assert "partial" in out
    assert "load it" not in out


def test_in_ascii(opnorm, tiny, finished, tmp_path):
    shutil.copytree(finished(tiny).root, tmp_path / "runs")
    status, out, err = opnorm("show", tiny.key, encoding="ascii")
    assert (status, err) == (0, "")
    (loss,) = (line for line in out.splitlines() if line.startswith("loss "))
    assert set(loss[32:35]) <= set("_.-=+*#@")
    assert loss[32] == "@"


def test_no_run(main):
    status, out, err = main("show", "nokey")
    assert (status, out, err) == (2, "", "opnorm: nokey is no run in runs; opnorm ls --out runs lists them\n")


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([0, 7], "▁█"),
        ([3, 3], "▁▁"),
        ([], ""),
        ([1, None, 2], "▁ █"),
        ([0, 2, 4, 6, 8, 10, 12, 14], "▁▂▃▄▅▆▇█"),
    ],
)
def test_curves(values, drawn):
    assert sparkline(values) == drawn


def test_a_long_curve_is_the_mean_of_its_parts():
    assert len(sparkline(range(1000))) == 60
    assert sparkline([0, 2, 10, 12], width=2) == "▁█"
