"""What the help shows: every option is explained, and nothing is written as None."""

import re

import pytest

from opnorm import spec
from opnorm.cli.arguments import _taken
from opnorm.cli.commands import COMMANDS


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.__name__)
def test_every_option_is_explained(command, main, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    status, out, err = main(command.__name__, "--help")
    assert (status, err) == (0, "")
    assert "None" not in out
    assert "STR" not in out
    table = "\n".join(line.strip(" │") for line in out.partition(" options")[2].splitlines())
    entries = re.split(r"^(?=--)", table, flags=re.MULTILINE)[1:]
    explained = {}
    for entry in entries:
        name, _, text = entry.partition(" ")
        text = re.sub(r"^(--no-\S+|[A-Z]+( \.\.\.)?|\{.*?\})", "", text.strip())
        explained[name.strip(",")] = " ".join(re.sub(r"\([^()]* when left out\)", "", text).split())
    for argument in _taken(command):
        if argument.name.startswith("--"):
            assert len(explained[argument.name]) >= 5, argument.name
        else:
            assert argument.name in out.splitlines()[0]


@pytest.mark.parametrize(
    ("command", "families"),
    [
        ("train", ["model", "data set", "objective", "regularizer", "optimizer", "schedule", "augmentation"]),
        ("attack", ["model", "data set", "attack"]),
        ("norms", ["model"]),
        ("analyze", ["model", "data set", "analysis"]),
    ],
)
def test_help_lists_every_name_that_a_call_may_have(command, families, main):
    words = set(re.findall(r"\w+", main(command, "--help")[1]))
    for family in families:
        assert words >= set(spec.names(family)), family


def test_the_overview_has_each_command_and_is_short(main):
    status, out, err = main("--help")
    assert (status, err) == (0, "")
    assert [*re.findall(r"^  (\w+) ", out, re.MULTILINE)] == [*COMMANDS]
    assert len(out.splitlines()) < 60
    assert main("-h")[1] == out
