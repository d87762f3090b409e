"""The user's own parts by name: what is wrong with them is said with its place."""

import pytest

MINE = """import torch
from torch import nn
from opnorm import Run
from opnorm.analyses import Analysis
from opnorm.regularizers import Hooks
from opnorm.report import Report
from opnorm.runs.runner import Study

number = 5
def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
def raises():
    def penalty(model, x, y):
        raise KeyError("mine")
    return lambda model, example: Hooks(penalty=penalty)
def hook(value):
    return lambda model, example: Hooks(penalty=value)
def state():
    return lambda model, example: Hooks(state=[1])
def fails(width=0):
    return nn.Conv2d(1, 1, 3, groups=width)
def corners(eps=0.1):
    return lambda model, x, y: x
def rows(kind):
    return Analysis(lambda model, data: {"none": None, "dict": {"a": 1}, "tensor": [{"a": torch.ones(2)}]}[kind])
def sentence():
    return Analysis(lambda model, data: [{"a": 1}], lambda rows: rows[3])
def study():
    return Study("mine", [], lambda results: None)
"""
TRAIN = (
    "train",
    "--model",
    "mine.build()",
    "--epochs",
    "1",
    "--limit",
    "20",
    "--analyses",
    "accuracy",
    "--regularizers",
)
ON = ("mine.build()", "--data", "digits()", "--limit", "20")


@pytest.fixture
def mine(main, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "mine", raising=False)
    return main


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        ((*TRAIN, "mine.raises()"), 1, "KeyError: 'mine', at line 14 of mine.py, in penalty; --debug shows where"),
        ((*TRAIN, "mine.hook(3)"), 2, "a regularizer gave Hooks(penalty=3); expected a function"),
        ((*TRAIN, "mine.state()"), 2, "a regularizer gave Hooks(state=a list); expected a dict of tensors"),
        ((*TRAIN, "mine.number()"), 2, "'mine.number' is 5, which is no function"),
        (("attack", *ON, "--eps", "0.1", "--attack", "mine.corners()"), 2,
         "mine.corners(eps=0.1) does not say its norm; expected parameters norm and eps"),
        (("analyze", *ON, "--what", "mine.rows('none')"), 2, "an analysis gave None; expected its rows, a list of dicts"),
        (("analyze", *ON, "--what", "mine.rows('dict')"), 2, "expected its rows, a list of dicts"),
        (("analyze", *ON, "--what", "mine.rows('tensor')"), 2,
         "an analysis gave a=a tensor of shape (2,) in a row; expected what JSON can hold"),
        (("analyze", *ON, "--what", "mine.sentence()"), 1, "IndexError: list index out of range, at line 27 of mine.py"),
        (("norms", "mine.fails()", "--input", "1,8,8"), 2,
         "mine.fails() failed: ValueError: groups must be a positive integer, at line 21 of mine.py, in fails"),
        (("study", "mine.study()"), 2, "the report of the study mine is None; expected an opnorm.report.Report"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_own_code_is_said_with_its_place(mine, args, status, says):
    found, _, err = mine(*args)
    assert found == status
    assert says in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("norms", "mine.py"), "mine.py is no run; a network of this module is a call of the function that returns it"),
        (("train", "--model", "mine.py"), "mine.py is a file; expected a call of a function in it, such as mine.build()"),
        (("train", "--data", "mine.py"), "mine.py is a file; expected a call of a function in it"),
        (("train", "--model", "w.pt"), 'w.pt is a file; expected a call that reads it, such as file("w.pt")'),
        (("norms", "file(w.pt)"), 'such as file("w.pt"), with the name in quotes'),
        (("norms", 'file("w.pt", arch=mine.py)'), "mine.py is a file; expected a call of a function in it"),
        (("train", "--data", "x.parquet"), 'expected a call that reads it, such as parquet("x.parquet")'),
    ],
)  # fmt: skip
def test_a_file_in_the_place_of_a_call_is_said(mine, tmp_path, args, says):
    (tmp_path / "w.pt").touch()
    (tmp_path / "x.parquet").touch()
    status, _, err = mine(*args)
    assert (status, says in err.splitlines()[-1]) == (2, True)


def test_the_attack_of_the_examples_is_one_of_the_command(main, monkeypatch):
    from pathlib import Path

    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    call = ("--eps", "0.1", "--attack", "own_attack.random_corners(tries=2)")
    status, out, _ = main(
        "attack", "cnn(in_shape=(1, 8, 8), width=2)", "--data", "digits()", "--limit", "20", *call
    )
    assert (status, out.startswith("attack            own_attack.random_corners(")) == (0, True)
