"""Every benchmark of speed takes the same options and says on what machine it measured."""

import argparse
from pathlib import Path

import pytest
import torch

from tests.benchmarks import machine

FOLDER = Path(__file__).parents[2] / "benchmarks"
TIMED = (
    "attacks", "autoattack_versions", "checkpoint", "gpu", "jacobian", "norms", "norms_exact", "norms_l2", "scaling",
    "streaming", "training",
)  # fmt: skip


@pytest.mark.parametrize("name", TIMED)
def test_each_script_has_the_options_of_all(name):
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert "add_options(parser" in text
    assert "begin(" in text or name == "norms"  # its parts call it
    for option in ("--device", "--threads", "--json"):
        assert f'add_argument("{option}"' not in text, "these are the same for all"


def test_every_script_that_measures_time_is_in_the_list():
    """But that of masked networks, which is about rates and names the time a network only in passing."""
    timed = {
        path.stem
        for path in FOLDER.glob("*.py")
        if "ArgumentParser(" in (text := path.read_text(encoding="utf-8"))
        and any(clock in text for clock in ("process_time", "perf_counter", "used_seconds", "import seconds"))
    }
    assert timed <= {*TIMED, "masking"}


def test_the_machine_is_said(capsys, monkeypatch):
    parser = argparse.ArgumentParser()
    machine.add_options(parser, [1, 2])
    threads = torch.get_num_threads()
    try:
        found = machine.begin(parser, parser.parse_args(["--threads", "1"]), ["torch", "no-such-package"])
    finally:
        torch.set_num_threads(threads)
    assert found["threads"] == [1]
    assert found["no-such-package"] == "not installed"
    assert {"instruction sets", "used by torch", "device", "opnorm"} <= set(found)
    assert str(torch.__version__) in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, only, why in (
        (["--device", "cuda"], False, "sees no GPU"),
        (["--device", "cuda"], True, "on the CPU"),
    ):
        with pytest.raises(SystemExit):
            machine.begin(parser, parser.parse_args(arguments), cpu_only=only)
        assert why in capsys.readouterr().err
