"""``--fail-under`` and ``--fail-over``: status 1 and one line for a network that a pipeline should not take."""

import json
import re
import shutil

import pytest
import torch

from opnorm.models import mlp, save

NETWORK = 'file("network.safetensors")'

OWN = """
from torch import nn

class Unknown(nn.Module):
    def forward(self, x):
        return x.flatten(1).sort(dim=1).values * x.sum()

def build():
    return nn.Sequential(Unknown(), nn.Linear(4, 2))
"""


def tables(main):
    found = json.loads(main("norms", NETWORK, "--json")[1])
    upper = {row["layer"]: row["norms"]["inf"]["upper"] for row in found["layers"] if "inf" in row["norms"]}
    return upper, found["lipschitz_bound"]["2"]["value"]


def test_the_largest_norm_of_a_layer_and_that_of_the_network(main, tmp_path):
    torch.manual_seed(0)
    save(mlp(in_shape=(1, 4, 4), depth=2, width=4), tmp_path / "network.safetensors")
    upper, network = tables(main)
    name, largest = max(upper.items(), key=lambda item: item[1])
    passing = f"inf={largest!r}", f"network:2={network!r}"
    assert main("norms", NETWORK, "--fail-over", *passing)[0] == 0, "at the number is not over it"
    assert main("norms", NETWORK, "--fail-over", passing[0], "--fail-over", passing[1])[0] == 0
    status, out, err = main("norms", NETWORK, "--fail-over", f"inf={largest * 0.999!r}", "--csv")
    assert (status, out.count("\n") > 3) == (1, True), "the table is printed all the same"
    assert re.fullmatch(
        rf"opnorm: refused: ℓ∞ of layer {name} is up to \S+, above --fail-over inf=\S+\n", err
    )
    status, _, err = main("norms", NETWORK, "--fail-over", f"network:2={network * 0.999!r}", "inf=0")
    assert (status, err.count("\n")) == (1, 1)
    assert "the bound of the whole network in ℓ2 is up to" in err
    assert re.search(rf"; ℓ∞ of layer {name} is up to .* \(and of \d+ more layers\)", err)


def test_what_is_not_known_does_not_pass(main, tmp_path, monkeypatch):
    (tmp_path / "unknown_norm.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    call = ("norms", "unknown_norm.build()", "--input", "1,2,2")
    for gate in ("inf=1e300", "network:inf=1e300"):
        status, _, err = main(*call, "--fail-over", gate)
        assert (status, err.count("\n")) == (1, 1)
        assert "is not known (" in err
        assert f"which --fail-over {gate} does not pass" in err
    assert main(*call, "--layers", "Linear", "--fail-over", "inf=1e300")[0] == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("inf",), "--fail-over 'inf': expected NORM=NUMBER"),
        (("inf=",), "--fail-over inf= '': expected a number"),
        (("inf=twelve",), "--fail-over inf= 'twelve': expected a number"),
        (("inf=-1",), "no norm is below 0"),
        (("3=1",), "norm '3': expected 1, 2, inf"),
        (("2=1", "--ord", "1"), "--fail-over 2=1: this norm is not measured; add it to --ord"),
        (("network:1:2=1", "--ord", "1:2"), "the whole network has bounds for 1, 2 and inf only"),
        (("network:1=1", "--layers", "Linear"), "--fail-over network:1=1 is of the whole network"),
    ],
)
def test_no_gate(main, args, message):
    status, out, err = main("norms", "mlp(in_shape=(1, 4, 4), depth=2, width=4)", "--fail-over", *args)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_robust_accuracy(main, tiny, finished, tmp_path):
    shutil.copytree(finished(tiny).root, tmp_path / "runs")
    call = ("attack", tiny.key, "--attack", "fgsm", "--limit", "40", "--eps", "0.02", "0.2", "--json")
    status, out, _ = main(*call)
    mild, strong = (found["robust_accuracy"] for found in json.loads(out))
    assert status == 0
    assert strong < mild
    assert main(*call, "--fail-under", f"{strong!r}")[0] == 0, "at the number is not under it"
    status, again, err = main(*call, "--fail-under", f"{mild!r}")
    assert (status, again) == (1, out)
    (line,) = (line for line in err.splitlines() if line.startswith("opnorm: "))
    assert re.fullmatch(
        rf"opnorm: refused: the robust accuracy on these 40 points is {strong:.2%} \(95 % interval \S+% to \S+%\), "
        rf"below --fail-under {mild:g}: fgsm\(.*eps=0.2.*\)",
        line,
    )
