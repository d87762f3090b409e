"""``opnorm norms``: tables, files, comparisons, and one clear line for what the user can mend."""

import csv
import io
import json
from pathlib import Path

import pytest
import torch

import opnorm as package
from opnorm.models import cnn, save

SMALL = "cnn(in_shape=(1, 8, 8), width=2)"

OWN = """
import torch
from torch import nn

def build(width=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 2))

def random():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 2))

class Control(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else self.fc(-x)

def text():
    return "no network"
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    name = "own_networks"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    return name


def test_a_table_with_totals(main):
    status, out, err = main("norms", SMALL)
    assert status == 0
    assert not err.strip()
    lines = out.splitlines()
    assert lines[0].split() == ["layer", "kind", "input", "ℓ1", "ℓ2", "ℓ∞"]
    assert lines[2].split()[:3] == ["1", "Conv2d", "1x8x8"]
    assert "spectral complexity" in out
    assert "Lipschitz constant of the whole network, along its graph: ℓ1 ≤" in out


def test_in_a_process_of_its_own(opnorm):
    status, out, err = opnorm("norms", SMALL, "--ord", "1")
    assert (status, err) == (0, "")
    assert "Conv2d" in out


def test_json_csv_and_markdown(main):
    value = json.loads(main("norms", SMALL, "--ord", "1,inf", "--json")[1])
    assert [row["layer"] for row in value["layers"]] == ["0", "1", "2", "3", "4", "5", "6"]
    assert list(value["layers"][1]["norms"]) == ["1", "inf"]
    assert value["lipschitz_bound"]["1"]["value"] > 0
    assert value["spectral_complexity"] is None
    rows = list(csv.DictReader(io.StringIO(main("norms", SMALL, "--ord", "1", "--csv")[1])))
    assert len(rows) == 7
    assert float(rows[1]["norm_1_lower"]) > 0
    assert main("norms", SMALL, "--ord", "1", "--markdown")[1].startswith(
        "| layer | kind | input | ℓ1 | note |"
    )
    status, _, err = main("norms", SMALL, "--json", "--csv")
    assert (status, err) == (2, "opnorm: --json, --csv and --markdown exclude each other\n")


def test_a_file_knows_its_network_and_its_input(main, tmp_path):
    torch.manual_seed(0)
    model = cnn(in_shape=(1, 8, 8), width=2)
    save(model, tmp_path / "x.safetensors")
    plain = json.loads(package.measure(model, torch.zeros(1, 1, 8, 8), (1,)).to_json())
    for text in ('file("x.safetensors")', f'file("x.safetensors", arch={SMALL})'):
        assert json.loads(main("norms", text, "--ord", "1", "--json")[1])["layers"] == plain


def test_the_users_own_network(main, own):
    status, out, _ = main("norms", f"{own}.build(width=2)", "--input", "3,8,8", "--ord", "1")
    assert status == 0
    assert "3x8x8" in out
    assert main("norms", f"{own}.build(width=2)", "--input", "3x8x8", "--ord", "1")[1] == out
    status, _, err = main("norms", f"{own}.build(width=2)")
    assert (status, "add --input" in err) == (2, True)
    status, _, err = main("norms", f"{own}.text()", "--input", "3")
    assert (status, err.strip()) == (2, f"opnorm: {own}.text() gave str; expected a torch.nn.Module")
    out = main("norms", f"{own}.Control()", "--input", "3", "--ord", "1,inf")[1]
    assert (
        "Lipschitz constant in ℓ1, ℓ∞ not known: its forward goes by values that depend on the input" in out
    )


def test_a_network_of_random_weights_is_the_same_each_time_and_in_eval_mode(main, own):
    printed = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        printed.append(main("norms", f"{own}.random()", "--input", "1,8,8", "--json")[1])
        assert torch.equal(torch.get_rng_state(), before)
    first, second = printed
    assert first == second
    assert all(row["tags"] == [] for row in json.loads(first)["layers"])


def test_a_wrong_number_of_axes_is_said_only_where_it_is_the_cause(main, own):
    def said(shape):
        return main("norms", f"{own}.random()", "--input", shape)[2]

    assert "it takes an input of shape (1, 8, 8): is the axis of the batch twice there?" in said("1,1,8,8")
    assert "is taken for the batch: is it missing?" in said("8,8")
    assert "batch" not in said("5,8,8")


def test_layers_and_plot(main, tmp_path):
    status, out, err = main("norms", SMALL, "--layers", "Conv*", "--ord", "1", "--plot", "a/norms.svg")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["layer", "1", "3"]
    assert f"drawn in {Path('a/norms.svg').absolute()}" in " ".join(err.split())
    assert (tmp_path / "a" / "norms.svg").read_text().startswith("<svg")


def test_against_another_network_or_a_table(main, tmp_path):
    save(cnn(in_shape=(1, 8, 8), width=2), tmp_path / "a.safetensors")
    model = cnn(in_shape=(1, 8, 8), width=2)
    save(model, tmp_path / "b.safetensors")
    status, out, _ = main(
        "norms", 'file("a.safetensors")', "--against", 'file("b.safetensors")', "--ord", "1"
    )
    assert status == 0
    assert "layers grew" in out
    (tmp_path / "b.json").write_text(main("norms", 'file("b.safetensors")', "--ord", "1", "--json")[1])
    assert main("norms", 'file("a.safetensors")', "--against", "b.json", "--ord", "1")[1] == out
    value = json.loads(
        main("norms", 'file("a.safetensors")', "--against", "b.json", "--ord", "1", "--json")[1]
    )
    assert set(value) == {"layers", "summary", "missing"}
    assert main("norms", 'file("a.safetensors")', "--against", "b.json", "--ord", "1", "--csv")[1].startswith(
        "layer,kind,ord"
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((SMALL, "--ord", "3"), "norm '3': expected 1, 2, inf, rms, or a pair such as 1:2"),
        ((SMALL, "--ord", ","), "--ord ',': expected some of 1, 2, inf"),
        ((SMALL, "--ord", "1:2:inf"), "norm '1:2:inf': expected"),
        ((SMALL, "--layers", "none"), "no layer matches 'none'; there are 0, 1, 2"),
        ((SMALL, "--plot", "x.gif"), "ends in .svg, .pdf, .png or .html"),
        ((SMALL, "--input", "3,8,8"), "expected (B, 1, H, W), got shape (1, 3, 8, 8)"),
        ((SMALL, "--input", "a,b"), "--input 'a,b': expected numbers"),
        ((SMALL, "--against", "none.json"), "none.json"),
        ((SMALL, "--against", "mlp(in_shape=(1, 8, 8), depth=1, width=2)"), "no norm of any layer in common"),
        (("cnnn()",), "did you mean 'cnn'?"),
    ],
)
def test_one_line_and_status_2(main, args, message):
    status, out, err = main("norms", *args)
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("opnorm: ")
    assert err.count("\n") == 1


def test_help_teaches(main):
    status, out, _ = main("norms", "--help")
    assert status == 0
    for word in ("--against", "--plot", "opnorm norms", "safetensors", "interval"):
        assert word in out


def test_intervals_are_as_narrow_as_asked_for(main):
    status, out, _ = main("norms", SMALL, "--ord", "2", "--relative-width", "1e-5", "--json")
    ends = [row["norms"]["2"] for row in json.loads(out)["layers"] if row["kind"] in ("Conv2d", "Linear")]
    assert (status, len(ends)) == (0, 3)
    for norm in ends:
        assert norm["lower"] <= norm["upper"] <= norm["lower"] * (1 + 1e-5)
    status, _, error = main("norms", SMALL, "--relative-width", "0")
    assert status == 2
    assert "relative_width=0" in error


def test_weights_without_their_model(main, tmp_path):
    torch.manual_seed(0)
    save(cnn(in_shape=(1, 8, 8), width=2), tmp_path / "x.safetensors")
    save(cnn(in_shape=(1, 8, 8), width=2), tmp_path / "y.safetensors")
    status, out, _ = main("norms", "x.safetensors")
    assert status == 0
    assert out.splitlines()[0].split()[:7] == ["weight", "kind", "shape", "ℓ1", "ℓ2", "ℓ∞", "RMS"]
    assert "The file records its network" in out
    value = json.loads(main("norms", "x.safetensors", "--ord", "1,rms", "--layers", "kernel", "--json")[1])
    assert {tuple(row["norms"]) for row in value["weights"]} == {("1", "rms")}
    value = json.loads(main("norms", "x.safetensors", "--against", "y.safetensors", "--json")[1])
    assert main("norms", "x.safetensors", "--fail-over", "1=1e9")[0] == 0
    assert "refused: ℓ1 of layer" in main("norms", "x.safetensors", "--fail-over", "1=1e-9")[2]
    assert all(row["relative"]["2"]["lower"] > 0 for row in value["weights"] if row["kind"] != "diagonal")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("missing.safetensors",), "no file missing.safetensors"),
        ((".",), ". has no weights"),
        (("x.pt", "--input", "3,8,8"), "--input is for a model"),
        (("x.pt", "--ord", "1:2"), "pairs need the layer"),
        (("x.pt", "--fail-over", "network:2=3"), "the norms of each weight are known"),
        ((SMALL, "--condition"), "--condition is for a file or folder of weights"),
    ],
)
def test_wrong_uses_of_weights_are_one_line(main, tmp_path, args, says):
    torch.save({"w": torch.ones(2, 2)}, tmp_path / "x.pt")
    if args == (".",):
        (tmp_path / "x.pt").unlink()
    status, _, err = main("norms", *args)
    assert status == 2
    assert says in err
    assert err.count("\n") == 1
