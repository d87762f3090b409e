"""The scripts of examples/ run, and stay short."""

import runpy
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_runs(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(script.parent)  # as Python does for a script
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.strip(), "an example shows something"
    assert len(script.read_text(encoding="utf-8").splitlines()) < 40


def test_there_is_one_for_each_kind():
    kinds = {"model", "data", "layer", "regularizer", "attack", "analysis", "study", "training_loop"}
    assert kinds <= {path.stem.removeprefix("own_") for path in SCRIPTS}
