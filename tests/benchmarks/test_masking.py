"""The collection of masked and honest networks: a few of them here, all of them behind the slow marker."""

import json

import pytest

from tests.benchmarks import masking, networks

QUICK = [
    "inputs rounded to 8 levels",
    "gradient of a random linear map",
    "vote of 15 copies + 1e-3 of a random decoy",
]

TOO_WEAK = {"logits on a logarithmic scale", "small wavelet coefficients set to zero"}
"""Masks whose gradients are right nearly everywhere, so that only the attack is called too weak."""


def names(group):
    return [case.name for case in (masking.KINDS if group == "masked" else masking.all_honest())]


def test_names_are_distinct_and_many():
    for group in masking.GROUPS:
        assert len(set(names(group))) == len(names(group)) >= 40


@pytest.mark.slow
def test_part_of_the_collection(tmp_path, capsys, monkeypatch):
    """Masks are found on a network of a few epochs, which is honest without them."""
    monkeypatch.setitem(networks.SETS, "digits", (1300, 4, 0.05))
    monkeypatch.setattr(masking, "POINTS", 32)
    path = tmp_path / "masking.json"
    for name in [*QUICK, "plain CNN, a tenth broken"]:
        monkeypatch.setattr("sys.argv", ["masking.py", "--only", name, "--out", str(path)])
        masking.main()
    rows = json.loads(path.read_text())
    assert {row["name"] for row in rows} >= {*QUICK, "plain CNN, a tenth broken"}
    assert [row["name"] for row in rows if row["flagged"] != (row["group"] == "masked")] == []
    assert "| pgd | honest, flagged |" in capsys.readouterr().out


@pytest.mark.slow
def test_whole_collection(tmp_path, monkeypatch, data_folder):
    """No mask that hides more than 5 % passes, and what is said of an honest network is known."""
    path = tmp_path / "masking.json"
    monkeypatch.setattr("sys.argv", ["masking.py", "--out", str(path)])
    masking.main()
    rows = json.loads(path.read_text())
    hiding = [r for r in rows if r["group"] == "masked" and masking.hides(r)]
    assert [r["name"] for r in hiding if not r["flagged"] and not r["weak"]] == []
    assert {r["name"] for r in hiding if not r["flagged"]} == TOO_WEAK
    assert {r["name"] for r in rows if r["group"] == "honest" and r["flagged"]} == {"logits times 30"}
