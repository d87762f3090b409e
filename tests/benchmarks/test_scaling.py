"""The benchmark of growth: slopes, and one sweep as a command."""

import json

import pytest

from tests.benchmarks import scaling


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_slope_of_a_power(power):
    sizes = [2, 4, 8, 16, 32]
    assert scaling.slope(sizes, [3.0 * n**power for n in sizes]) == pytest.approx(power, abs=1e-9)


def test_fixed_costs_of_small_sizes_do_not_count():
    assert scaling.slope([1, 2, 4, 8, 16], [9, 9, 4, 8, 16]) < 1.2


def test_one_sweep(tmp_path, capsys):
    path = tmp_path / "scaling.json"
    scaling.main(["--only", "norms l1", "--quick", "--json", str(path)])
    sweeps = json.loads(path.read_text())["sweeps"]
    assert [s["variable"] for s in sweeps] == ["channels", "kernel", "image"]
    assert all(len(s["seconds"]) == len(s["MiB"]) == 3 for s in sweeps)
    assert "theory 2" in capsys.readouterr().out


def test_unknown_sweep(capsys):
    with pytest.raises(SystemExit):
        scaling.main(["--only", "nothing"])
    assert "norms l1" in capsys.readouterr().err
