"""A run folder from elsewhere runs no code of its own choice."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from opnorm._core.files import read_json, write_json
from opnorm.models import cnn, resnet, save

pytestmark = pytest.mark.usefixtures("few_queries")

EVIL = """
from pathlib import Path
Path("ran").touch()
from opnorm.data import digits
from opnorm.models import cnn
from opnorm.objectives import plain
def net(in_shape=(1, 8, 8), classes=10):
    return cnn(in_shape, classes, width=2)
def data():
    return digits()
def objective():
    return plain()
def attack():
    return None
"""
TINY = ("--epochs", "1", "--limit", "60", "--analyses", "accuracy")
COMMANDS = [("analyze", "--what", "accuracy"), ("attack", "--attack", "fgsm", "--limit", "20")]


@pytest.fixture
def cli(main, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OPNORM_CACHE", str(tmp_path / "cache"))

    def call(*args):
        sys.modules.pop("evil", None)
        Path("ran").unlink(missing_ok=True)
        return main(*args)

    return call


@pytest.fixture
def key(cli, tmp_path):
    (tmp_path / "evil.py").write_text(EVIL)
    return json.loads(cli("train", "--model", "cnn(width=2)", *TINY, "--json")[1])["key"]


@pytest.mark.each_value
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "change",
    [{"model": "evil.net()"}, {"data": "evil.data()"}, {"objective": "evil.objective()"},
     {"analyses": ["robust_accuracy(attack=evil.attack())"]}],
)  # fmt: skip
def test_code_that_a_folder_names_is_not_run(cli, key, command, change):
    path = Path("runs", key, "run.json")
    about = read_json(path)
    write_json(path, about | {"run": about["run"] | change}, checked=True)
    status, out, err = cli(command[0], key, *command[1:])
    assert (status, out) == (2, "")
    assert "would run code: evil." in err
    assert "--trust" in err
    assert not Path("ran").exists()
    status, _, err = cli(command[0], key, *command[1:], "--trust")
    assert status == 0, err
    assert Path("ran").exists()
    assert cli(command[0], key, *command[1:])[0] == 0, "trusted once"


@pytest.mark.each_value
@pytest.mark.parametrize("command", [("norms",), *COMMANDS])
@pytest.mark.parametrize("study", ["tour", "roth2020"])
def test_no_study_reads_a_call_that_a_folder_hides_in_a_text(cli, key, command, study):
    """An argument of a call is no study, for a study carries out the text that it is given for its data."""
    path = Path("runs", key, "run.json")
    about = read_json(path)
    change = {"model": f"cnn(width={study}(data='evil.data()'))"}
    if command[0] != "norms":  # it reads no data
        change["data"] = f"parquet(path={study}(data='evil.data()'))"
    write_json(path, about | {"run": about["run"] | change}, checked=True)
    status, out, err = cli(command[0], key, *command[1:])
    assert (status, out) == (2, "")
    assert "unknown name" in err or "would run code" in err
    assert not Path("ran").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_module_of_the_same_name_elsewhere_is_not_the_users(cli, tmp_path, key, command, monkeypatch):
    """The call was given before, but in another working folder it would run another file."""
    trained = json.loads(cli("train", "--model", "evil.net()", *TINY, "--json")[1])["key"]
    sys.modules.pop("evil")
    (tmp_path / "unpacked").mkdir()
    (tmp_path / "evil.py").rename(tmp_path / "unpacked" / "evil.py")
    shutil.move(tmp_path / "runs", tmp_path / "unpacked" / "runs")
    monkeypatch.chdir(tmp_path / "unpacked")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])  # as of a process that has run no own code
    status, _, err = cli(command[0], trained, *command[1:])
    assert (status, "in another file" in err) == (2, True), err
    assert not Path("ran").exists()
    assert cli(command[0], trained, *command[1:], "--trust")[0] == 0
    assert cli(command[0], trained, *command[1:])[0] == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_own_runs_need_no_trust_and_moved_to_another_user_they_do(cli, tmp_path, key, command, monkeypatch):
    trained = json.loads(cli("train", "--model", "evil.net()", *TINY, "--json")[1])["key"]
    assert cli(command[0], trained, *command[1:])[0] == 0
    shutil.copytree(tmp_path / "runs" / trained, tmp_path / "elsewhere" / trained)
    assert cli(command[0], f"elsewhere/{trained}", *command[1:])[0] == 0
    monkeypatch.setenv("OPNORM_CACHE", str(tmp_path / "other"))
    assert cli(command[0], f"elsewhere/{trained}", *command[1:])[0] == 2
    assert cli("ls", "--out", "elsewhere")[0] == 0
    assert not Path("ran").exists()


def test_a_run_json_without_settings(cli, key):
    path = Path("runs", key, "run.json")
    write_json(path, read_json(path) | {"run": [3]}, checked=True)
    for extra in ((), ("--trust",)):
        status, _, err = cli("analyze", key, *extra)
        assert (status, "no settings of a run" in err) == (2, True), err


@pytest.mark.parametrize(
    "call",
    ["evil.net()", "cnn(width=evil.net())", "cnn(width=tour(data='evil.data()'))", "file('x', arch=evil.net())",
     "tour()", "digits()", "file('other.safetensors')", "cnn(width=folder('/usr'))", "file('a', arch=file('b'))"],
)  # fmt: skip
@pytest.mark.parametrize("arch", ["", ", arch=own.net()"])
def test_a_weights_file_chooses_no_code(cli, tmp_path, call, arch):
    (tmp_path / "evil.py").write_text(EVIL)
    (tmp_path / "own.py").write_text(
        "from opnorm.models import cnn\ndef net():\n    return cnn((1, 8, 8), width=2)\n"
    )
    save(cnn((1, 8, 8), width=2), tmp_path / "w.safetensors", call)
    status, _, err = cli("norms", f'file("w.safetensors"{arch})', "--ord", "1")
    assert (status, ("add --input" if arch else "is not opnorm's own") in err) == (2, True), err
    assert not Path("ran").exists()


def test_the_users_shape_is_not_beaten_by_the_files(cli, tmp_path):
    save(resnet(depth=8, width=2), tmp_path / "w.safetensors", "resnet(depth=8, width=2)")
    text = 'file("w.safetensors", arch=resnet(depth=8, width=2, in_shape=(3, 64, 64)))'
    rows = json.loads(cli("norms", text, "--ord", "1", "--json")[1])["layers"]
    assert rows[1]["in_shape"] == [3, 64, 64]


def test_weights_of_further_training_stand_for_themselves(cli, tmp_path):
    save(
        cnn((1, 8, 8), width=2),
        tmp_path / "w.safetensors",
        "file('gone', arch=cnn(in_shape=(1, 8, 8), width=2))",
    )
    assert cli("norms", 'file("w.safetensors")', "--ord", "1")[0] == 0
