"""``opnorm attack`` as a user meets it."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from opnorm._core.files import read_tensors
from opnorm.attacks import pgd
from opnorm.runs.attack_evaluation import evaluate
from opnorm.runs.build import make_data, restore

pytestmark = pytest.mark.usefixtures("few_queries")

MODULE = """
import torch
from torch import nn

def noisy():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward((x + 0.1 * torch.randn_like(x)).flatten(1))
    return Noisy(64, 10)
"""


@pytest.fixture
def key(tiny, finished, tmp_path):
    """The key of a finished run of the user's folder."""
    shutil.copytree(finished(tiny).root, tmp_path / "runs")
    (tmp_path / "runs" / "begun.partial").mkdir()
    shutil.copy(tmp_path / "runs" / tiny.key / "run.json", tmp_path / "runs" / "begun.partial")
    return tiny.key


@pytest.fixture
def cli(main, tmp_path):
    (tmp_path / "my_noise.py").write_text(MODULE)
    return lambda *args: main("attack", *args)


PGD = ("--attack", "pgd(steps=3)", "--eps", "0.05", "--limit", "40")


def test_a_run_is_attacked_and_found_again(cli, key, tiny, tmp_path):
    status, out, err = cli(key, *PGD)
    assert status == 0
    assert re.fullmatch(r"0 of 40 points done\n(\d+ of 40 points done\n)*40 of 40 points done\n", err)
    assert out.startswith("attack            pgd(norm=inf, eps=0.05, steps=3), ℓ∞ ε = 0.05\n")
    assert re.search(r"^accuracy +\d+\.\d\d%  \(\d+ of 40 test points\)$", out, re.M)
    assert re.search(r"^robust accuracy +\d.*\(\d+ of 40; 95 % interval \d.*% to \d.*%\)$", out, re.M)
    assert re.search(r"^(gradient masking: none|check )", out, re.M)
    again = cli(key, *PGD)
    assert again[:2] == (0, out)
    assert re.fullmatch(r"found, of \d{4}-\d\d-\d\d \d\d:\d\d:\d\d; --again makes it anew\n", again[2])
    anew = cli(key, *PGD, "--again")
    assert anew[2].endswith("40 of 40 points done\n")
    assert "found" not in anew[2]
    folder = Path(out.split()[-1])
    assert folder.parts[:2] == ("runs", "attacks")
    for model in (str(tmp_path / "runs" / key), f'file("runs/{key}/weights.safetensors")'):
        extra = () if model.startswith("/") else ("--data", "digits()")
        assert cli(model, *extra, *PGD)[1] == out, "the same weights, the same evaluation"


@pytest.mark.parametrize("radii", [("--eps", "0.05", "0.1"), ("--eps", "0.05", "--eps", "0.1")])
def test_several_radii(cli, key, radii):
    args = (key, "--attack", "fgsm", "--limit", "40")
    each = [json.loads(cli(*args, "--eps", eps, "--json")[1]) for eps in ("0.05", "0.1")]
    status, out, err = cli(*args, *radii, "--json")
    assert (status, json.loads(out), err.count("found, of")) == (0, each, 2)
    status, out, _ = cli(*args, *radii)
    assert [line.split()[-1] for line in out.splitlines() if line.startswith("attack ")] == ["0.05", "0.1"]
    status, _, err = cli(*args, *radii, "--save", "points.safetensors")
    assert (status, "one radius" in err) == (2, True)


def test_json_is_one_object_with_what_the_library_says(cli, key, tiny):
    status, out, _ = cli(key, *PGD, "--json", "--norm", "2", "--seed", "3")
    said = json.loads(out)
    assert status == 0
    test = make_data(tiny).test  # of 100 points, as the tiny run has it
    data = make_data(type(tiny)(tiny.model, tiny.data)).limit(40).test
    assert len(test.labels) == 100
    model = restore(tiny, Path("runs") / key)
    done = evaluate(model, data.images.float() / 255, data.labels, pgd(2, 0.05, 3, seed=3))
    want = json.loads(json.dumps(done.as_dict()))
    for timed in (want, said):
        timed.pop("seconds")
        for stage in timed["stages"]:
            stage.pop("cpu_seconds"), stage.pop("wall_seconds")
    assert {k: said[k] for k in want} == want
    assert (said["model"], said["data"], said["limit"]) == (key, "digits()", 40)


def test_points_and_sheet_are_written(cli, key):
    status, _, _ = cli(key, *PGD, "--save", "points.safetensors", "--sheet", "sheet.png")
    assert status == 0
    assert read_tensors(Path("points.safetensors"))[0]["points"].shape == (40, 1, 8, 8)
    assert Path("sheet.png").read_bytes().startswith(b"\x89PNG")


def test_autoattack_and_its_versions(cli, key):
    """Short: one attack of the version, on few points."""
    call = ("--attack", "autoattack(attacks=('apgd-ce',))", "--limit", "40")
    status, out, _ = cli(key, *call, "--json")
    assert status == 0
    assert json.loads(out)["attack"] == (
        'autoattack(norm=inf, eps=8/255, version="standard", attacks=("apgd-ce",))'
    )
    assert json.loads(out)["eps"] == pytest.approx(8 / 255)
    status, out, _ = cli(key, *call, "--version", "plus", "--json")
    assert (status, json.loads(out)["stages"][0]["searches"]) == (0, 5)
    status, out, _ = cli(key, *call, "--version", "fast")
    assert status == 0
    assert 'autoattack(norm=inf, eps=8/255, version="fast", attacks=("apgd-ce",))' in out


def test_what_is_proved_is_said(cli, key):
    args = (
        key,
        "--eps",
        "0.0001",
        "--limit",
        "40",
        "--attack",
        "autoattack(attacks=('apgd-ce',), certify=proof())",
    )
    _, out, _ = cli(*args)
    said = json.loads(cli(*args, "--json")[1])
    assert said["certified_accuracy"] > 0
    assert f"proved            {said['certified_accuracy']:.2%}  (" in out


def test_a_random_model_and_a_surrogate(cli, key):
    status, out, _ = cli("my_noise.noisy()", "--data", "digits()", *PGD, "--surrogate", key)
    assert status == 0
    assert "check the random layers: two passes over the same points differ" in out
    status, out, _ = cli(key, *PGD, "--surrogate", key, "--json")
    assert "surrogate" in json.loads(out)["gradient_masking"]["indicators"][-1]["text"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{key}", "--eps", "0"], "eps=0: nothing would be attacked; expected a radius above 0, such as 8/255"),
        (["{key}", "--eps", "8"], "eps=8 is larger than the whole range [0, 1] of a pixel; did you mean 8/255?"),
        (["{key}", "--norm", "2", "--eps", "9"], "eps=9 is larger than the whole box of images of 64 values"),
        (["{key}", "--norm", "1", "--eps", "-1"], "eps=-1: expected a radius of at least 0"),
        (["{key}", "--norm", "3"], "norm=3: expected 1, 2 or inf"),
        (["{key}", "--norm", "l3"], "--norm 'l3': expected a number"),
        (["{key}", "--eps", "8/"], "--eps '8/': expected a number, such as 8/255"),
        (["{key}", "--eps", "1, steps=3"], "--eps '1, steps=3': expected a number"),
        (["{key}", "--eps", "nan"], "--eps 'nan'"),
        (["{key}", "--attack", "pdg"], "unknown attack 'pdg'; did you mean 'pgd'?"),
        (["{key}", "--attack", "pgd", "--version", "rand"], "pgd() has no parameter 'version'"),
        (["{key}", "--attack", "pgd(eps=0.1)", "--eps", "0.2"], "--eps and eps=0.1 in pgd(eps=0.1): expected one"),
        (["{key}", "--limit", "0"], "limit=0: expected a whole number of points, at least 1"),
        (["{key}", "--attack", "pgd(seed=3)", "--seed", "0"], "--seed and seed=3 in pgd(seed=3): expected one of the two"),
        (["{key}", "--norm", "L2", "--eps", "9"], "eps=9 is larger than the whole box of images of 64 values"),
        (["{key}", "--data", "nope"], "unknown data set 'nope'"),
        (["{key}", "--data", "./nope"], "'./nope' is a path; expected a call, such as folder(\"./nope\")"),
        (["{key}", "--fail-under", "45"], "--fail-under 45: expected a share of the points from 0 to 1, such as 0.45"),
        (["{key}", "--fail-under", "half"], "--fail-under 'half': expected a number"),
        (["{key}", "--sheet", "sheet.gif"], "--sheet sheet.gif: expected a name that ends in .png"),
        (["{key}", "--save", "no/x.safetensors"], "in an existing folder"),
        (["{key}", "--device", "abacus"], "--device abacus"),
        (["cnn"], "cnn is no run in runs (see opnorm ls --out runs), and a network does not say which data"),
        (["nokey"], "nokey is no run in runs (see opnorm ls --out runs), and no network: unknown model 'nokey'"),
        (["nokey", "--data", "digits()"], "nokey is no run in runs (see opnorm ls --out runs), and no network: unknown"),
        (["digits()"], "digits() is no run in runs (see opnorm ls --out runs), and no network"),
        (["{key}", "--surrogate", "nokey"], "nokey is no run in runs"),
        (["begun"], "run begun has not been trained to its end"),
        (["cnn(in_shape=(3, 8, 8))", "--data", "digits()"], "images of 3 channels, and these have 1"),
        (["cnn(classes=7)", "--data", "digits()"], "expected (1, 10), one logit for each of the 10 classes"),
        (["resnet18(in_shape=(3, 8))", "--data", "digits()"], "in_shape"),
        (['file("nope.safetensors")', "--data", "digits()"], "no file nope.safetensors"),
    ],
)  # fmt: skip
def test_what_the_user_can_mend_is_one_line(cli, key, args, message):
    status, out, err = cli(*(a.format(key=key) if a == "{key}" else a for a in args))
    assert (status, out) == (2, "")
    assert err.startswith("opnorm: ")
    assert len(err.splitlines()) == 1
    assert message in err


@pytest.mark.slow
def test_killed_it_goes_on(opnorm, key, tmp_path, until):
    """500 points are two parts; the first one is kept."""
    args = ("attack", key, "--attack", "pgd(steps=100)", "--eps", "0.1", "--json")
    process, _ = opnorm(*args, wait=False)
    kept = tmp_path / "runs" / "attacks"
    until(lambda: list(kept.glob("*.partial/part-*")))
    process.kill()
    process.join()
    (part,) = kept.glob("*.partial/part-*")
    stamp = part.stat().st_mtime_ns
    status, out, err = opnorm(*args)
    assert status == 0
    assert err == "256 of 500 points done\n500 of 500 points done\n"
    said = json.loads(out)
    assert next((tmp_path / said["folder"]).glob("part-00000000*")).stat().st_mtime_ns == stamp
    shutil.move(kept, tmp_path / "elsewhere")
    status, out, _ = opnorm(*args)
    anew = json.loads(out)
    assert [anew[k] for k in ("robust", "correct", "gradient_masking", "folder")] == [
        said[k] for k in ("robust", "correct", "gradient_masking", "folder")
    ]
    assert not math.isnan(said["seconds"])


def test_help_is_quick_and_teaches(opnorm):
    status, out, _ = opnorm("attack", "--help")
    assert status == 0
    for word in ("--norm", "--eps", "--version", "gradient masking", "opnorm attack 'file("):
        assert word in out
