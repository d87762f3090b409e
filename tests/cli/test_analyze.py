"""``opnorm analyze`` and ``opnorm compare``: pages, names, runs, and one clear line for what the user can mend."""

import json
from pathlib import Path

import pytest
import torch

from opnorm.cli.analyze import ANALYSES
from opnorm.models import mlp, save
from opnorm.spec import names

DATA = ("--data", "digits()", "--limit", "60")
WHAT = ("--what", "accuracy", "margins", "norm_table")
TINY = ("--model", "mlp(width=6, depth=1)", "--epochs", "1", "--limit", "60", "--analyses", "accuracy")
MODEL = "mlp(in_shape=(1, 8, 8), width=6, depth=1)"


@pytest.fixture
def weights(tmp_path):
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        save(mlp((1, 8, 8), 10, 6, 1), tmp_path / f"{name}.safetensors")
    return [f'{name}=file("{name}.safetensors")' for name in "ab"]


def test_analyze_writes_a_page_and_finds_it_again(main):
    status, out, err = main("analyze", MODEL, *DATA, *WHAT)
    assert status == 0
    page = Path(out.strip())
    assert "Analyses of " in page.read_text()
    assert sorted(p.name for p in page.parent.iterdir()) == ["analyses.json", "report.html", "report.json"]
    assert len(err.strip().splitlines()) == 3
    again = main("analyze", MODEL, *DATA, *WHAT)
    assert again[1] == out
    assert again[2].count(": found") == 3


def test_compare_puts_networks_side_by_side(main, weights):
    status, out, _ = main("compare", *weights, *DATA, *WHAT, "--json")
    assert status == 0
    found = json.loads(out)
    assert list(found["networks"]) == ["a", "b"]
    assert found["networks"]["a"]["key"] != found["networks"]["b"]["key"]
    assert len(found["networks"]["b"]["analyses"]["margins()"][0]["margins"]) == 60
    assert "a and b, side by side" in Path(found["page"]).read_text()


def test_a_run_knows_its_data_and_its_epochs(main):
    settings = (
        "--model",
        "mlp(width=6, depth=1)",
        "--epochs",
        "2",
        "--limit",
        "60",
        "--analyses",
        "accuracy",
    )
    trained = main("train", *settings, "--json")
    key = json.loads(trained[1])["key"]
    status, out, _ = main("analyze", key, "--limit", "60", "--what", "accuracy")
    assert status == 0
    report = json.loads((Path(out.strip()).parent / "report.json").read_text())
    chart, *weights = report["charts"]
    assert [of["key"] for of in weights] == ["weights-against-epoch", "layers-against-epoch"]
    titles = [panel["title"]["text"] for panel in chart["spec"]["vconcat"][0]["concat"]]
    assert titles[:2] == ["Test accuracy", "Training loss"]
    assert report["title"] == "Analyses of plain"


def test_runs_of_different_data_are_compared_on_data_that_are_named(main, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "turned.py").write_text(
        "from opnorm.data import Dataset, digits\n"
        "def labels():\n"
        "    d = digits()\n"
        "    turn = lambda s: s._replace(labels=9 - s.labels)\n"
        "    return Dataset('turned', turn(d.train), turn(d.test), d.classes)\n"
    )
    keys = [
        json.loads(main("train", *TINY, "--json", "--data", data)[1])["key"]
        for data in ("digits()", "turned.labels()")
    ]
    status, out, err = main("compare", *keys, "--what", "accuracy")
    assert (status, out) == (2, "")
    assert f"{keys[1]}: turned.labels()" in err
    assert "--data 'digits()'" in err
    status, out, _ = main("compare", f"a={keys[0]}", f"b={keys[1]}", *DATA, "--what", "accuracy")
    assert status == 0
    assert "trained on turned.labels(), not on the data of this page" in Path(out.strip()).read_text()


@pytest.mark.parametrize(
    "command",
    [pytest.param(("analyze", "--what", "accuracy"), marks=pytest.mark.slow), ("attack", "--attack", "fgsm")],
)
def test_results_of_a_run_elsewhere_are_kept_there(main, tmp_path, command):
    key = json.loads(main("train", *TINY, "--out", "elsewhere", "--json")[1])["key"]
    name, *options = command
    for run, out in (((f"elsewhere/{key}",), "elsewhere"), ((key, "--out", "elsewhere"), "elsewhere"),
                     ((f"elsewhere/{key}", "--out", "here"), "here")):  # fmt: skip
        before = set(tmp_path.glob("*"))
        status, printed, _ = main(name, *run, *options)
        assert status == 0
        assert Path(printed.split()[-1]).absolute().is_relative_to(tmp_path / out)
        assert {p.name for p in set(tmp_path.glob("*")) - before} <= {"here"}, "nothing anywhere else"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("analyze", MODEL), "add --data"),
        (("analyze", "nokey"), "nokey is no run in runs (see opnorm ls --out runs), and no network"),
        (("compare", MODEL, "nokey", *DATA), "nokey is no run in runs"),
        (("compare", MODEL, *DATA), "expected two or more"),
        (("compare", MODEL, MODEL, *DATA, "--what", "accuracy"), "name them"),
        (
            ("analyze", MODEL, *DATA, "--what", "jacobian_spectrum(points=70)"),
            "ask for fewer, such as --points 60",
        ),
        (("analyze", MODEL, *DATA, "--what", "acuracy"), "did you mean"),
        (
            ("analyze", "mlp(in_shape=(1, 8, 8), classes=1)", *DATA, "--what", "accuracy"),
            "the model has 1 class",
        ),
        (("analyze", MODEL, *DATA, "--device", "nowhere"), "--device nowhere"),
    ],
)
def test_what_can_be_mended_is_one_line(main, args, says):
    status, out, err = main(*args)
    assert (status, out) == (2, "")
    assert says in err.splitlines()[-1]


def test_a_typo_is_answered_with_analyses_only(main):
    _, _, err = main("analyze", MODEL, *DATA, "--what", "nothing")
    known = err.partition("known: ")[2].partition(";")[0].split(", ")
    assert known == names("analysis")


@pytest.mark.parametrize("command", ["analyze", "compare"])
def test_help_has_examples(main, command):
    status, out, _ = main(command, "--help")
    assert status == 0
    assert f"opnorm {command} " in out
    assert names("analysis") == ANALYSES
    assert "power_method_agreement" in out
