"""Every command takes a run by each of its names, and says the same of a damaged one."""

import json
import random
import shlex
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.test_analyze import TINY
from tests.runs.test_damage import flip

LIMITED = {
    "attack": ("--attack", "fgsm", "--limit", "10"),
    "analyze": ("--what", "accuracy"),
    "export": ("--to", "exported"),
    "norms": ("--ord", "1"),
}
COMMANDS = ("norms", "attack", "analyze", "show", "export")


@pytest.fixture
def key(tiny, finished, tmp_path):
    shutil.copytree(finished(tiny).root, tmp_path / "runs")
    return tiny.key


def call(main, command, name, *more):
    return main(command, name, *LIMITED.get(command, ()), *more)


@pytest.mark.parametrize("command", ["norms", "attack", "show", "export", "push"])
def test_all_names_name_the_same(main, key, command):
    names = [key, key[:3], f"runs/{key}", f"runs/{key}/", f"runs/{key}/weights.safetensors",
             f'file("runs/{key}/weights.safetensors")', f"file(path='runs/{key}/weights.safetensors')"]  # fmt: skip
    if command == "norms":  # of the path alone, the matrices
        del names[4]
    if command == "push":
        said = {main("push", name, "--repo", "user/name")[::2] for name in names}
        assert len(said) == 1
        assert "push to user/name" in said.pop()[1]
        return
    said = [call(main, command, name) for name in names]
    assert {status for status, _, _ in said} == {0}
    alike = {json.dumps([w for w in out.split() if not w.endswith("s)")]) for _, out, _ in said}
    assert len(alike) == 1, "the same output"


def test_results_of_all_names_belong_to_the_run(main, key):
    call(main, "attack", f'file("runs/{key}/weights.safetensors")')
    (row,) = json.loads(main("ls", "--json")[1])
    assert len(row["attacks"]) == 1


def test_a_file_alone_is_measured_without_its_network(main, key):
    _, out, _ = main("norms", f"runs/{key}/weights.safetensors", "--ord", "1", "--json")
    names = [row["name"] for row in json.loads(out)["weights"]]
    assert names
    assert all(name.endswith(".weight") for name in names)


def test_weights_are_compared_with_those_of_a_run(main, key):
    shutil.copy(f"runs/{key}/weights.safetensors", "copied.safetensors")
    by_key, by_path = (
        main("norms", "copied.safetensors", "--against", other, "--ord", "1", "--json")
        for other in (key[:4], f"runs/{key}/weights.safetensors")
    )
    assert by_key[0] == 0
    assert json.loads(by_key[1]) == json.loads(by_path[1])


@pytest.mark.parametrize("name", ["{}/weights.safetensors", 'file("{}/weights.safetensors")'])
def test_a_file_is_not_taken_for_a_run_to_remove(main, key, name):
    status, out, err = main("rm", name.format(f"runs/{key}"), "--yes")
    assert (status, out) == (2, "")
    assert err.endswith(f"is a file of a run, and whole runs are removed: opnorm rm runs/{key}\n")
    assert Path(f"runs/{key}/weights.safetensors").exists()


def test_other_weights_are_no_run(main, key):
    """A copy elsewhere, another architecture, and another file."""
    shutil.copy(f"runs/{key}/weights.safetensors", "copied.safetensors")
    for name in (
        'file("copied.safetensors")',
        f'file("runs/{key}/weights.safetensors", arch=cnn(in_shape=(1, 8, 8), width=4))',
    ):
        status, _, err = call(main, "attack", name)
        assert status == 2
        assert "a network does not say which data it is for; add --data" in err
        assert call(main, "attack", name, "--data", "digits()")[0] == 0
        assert "is no run in runs" in main("show", name)[2]


def test_of_weights_in_the_place_of_a_network_the_message_is_the_right_command(main, key):
    shutil.copy(f"runs/{key}/weights.safetensors", "copied.safetensors")
    status, out, err = call(main, "attack", "copied.safetensors")
    assert (status, out) == (2, "")
    assert err.startswith("opnorm: copied.safetensors is a file of weights, not a run; ")
    right = shlex.split(err.rpartition(": ")[2])
    assert right[:3] == ["opnorm", "attack", 'file("copied.safetensors")']
    assert main(*right[1:])[0] == 0


def test_the_right_command_keeps_names_and_adds_data_only_where_they_are_needed(main, key):
    shutil.copy(f"runs/{key}/weights.safetensors", "copied.safetensors")
    what = ("--what", "accuracy")
    _, _, err = main("compare", "a=copied.safetensors", f"b={key}", *what)
    assert err.endswith(f"""opnorm compare 'a=file("copied.safetensors")' b={key} --what accuracy\n""")
    _, _, err = main("analyze", "copied.safetensors", *what, "--data", "digits()")
    assert err.endswith("""'file("copied.safetensors")' --what accuracy --data 'digits()'\n""")
    torch.save({"weight": torch.eye(3)}, "state.pt")
    _, _, err = main("attack", "state.pt")
    assert err.startswith("opnorm: state.pt has weights without their network, and is no run; add that")
    assert err.endswith("""opnorm attack 'file("state.pt", arch=resnet(depth=20))' --data 'digits()'\n""")


@pytest.mark.parametrize("command", ["attack", "analyze", "compare"])
def test_a_folder_of_runs_and_one_of_nothing(main, key, command):
    Path("empty").mkdir()
    assert main(command, "runs", *["empty"] * (command == "compare")) == (
        2, "", f"opnorm: runs is a folder of runs, not one of them; expected one, such as runs/{key}\n"
    )  # fmt: skip
    _, _, err = main(command, "empty", *["runs"] * (command == "compare"))
    assert err.startswith(
        "opnorm: empty is a folder without a run and without weights; expected one of them, or a network"
    )


@pytest.mark.parametrize("name", [".", "adapter_model.safetensors", "{folder}"])
def test_an_adapter_is_no_network(main, tmp_path, monkeypatch, name):
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file(
        {"m.lora_A.weight": torch.ones(1, 2), "m.lora_B.weight": torch.ones(2, 1)},
        tmp_path / "adapter_model.safetensors",
    )
    monkeypatch.chdir(tmp_path)
    status, _, err = main("attack", name := name.format(folder=tmp_path))
    assert status == 2
    assert f"{name} is a low-rank adapter, without the network that it changes" in err
    assert "arch=" not in err


@pytest.mark.parametrize("command", [*COMMANDS, "rm"])
def test_too_few_digits_are_said(main, key, command):
    status, out, err = call(main, command, key[:2])
    assert (status, out) == (2, "")
    assert (
        err
        == f"opnorm: {key[:2]} is too short for the beginning of a key; expected 3 digits or more, such as "
        f"{key[:3]}\n"
    )


# ---------------------------------------------------------------- damage


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def changed(path):
    path.write_text(path.read_text().replace('"epoch": 1', '"epoch": 7'))


DAMAGE = {
    "missing weights": ("weights.safetensors", Path.unlink),
    "half of the weights": ("weights.safetensors", half),
    "a bit of the weights": ("weights.safetensors", lambda path: flip(path, random.Random(3))),
    "half of the results": ("results.json", half),
    "changed metrics": ("metrics.jsonl", changed),
    "half of the settings": ("run.json", half),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_all_commands_say_the_same_of_a_damaged_run_and_how_to_mend_it(main, key, damage):
    name, harm = DAMAGE[damage]
    path = Path("runs") / key / name
    harm(path)
    said = [call(main, command, key) for command in COMMANDS]
    said.append(main("compare", f"a={key}", f"b={key}", "--what", "accuracy"))
    if damage in ("missing weights", "half of the settings"):
        said.append(main("ls"))
        assert key in said[-1][1]
    assert {status for status, _, _ in said} == {2}
    (message,) = {err for _, _, err in said}
    assert message.startswith(f"opnorm: runs/{key} is damaged: ")
    assert str(path) in message
    if damage == "half of the settings":
        assert main(*shlex.split(message.partition("; opnorm ")[2].partition(" removes")[0]), "--yes")[0] == 0
        assert not path.parent.exists()
        return
    assert ("epochs_done" in said[3][1]) or damage in ("half of the results", "changed metrics"), (
        "what can be read is shown"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        status, _, _ = main(*shlex.split(message.rpartition("again: ")[2])[1:])
    assert status == 0
    assert any(name in str(w.message) for w in caught) == (name != "metrics.jsonl"), (
        "that one is asked for by --again"
    )
    assert {call(main, command, key)[0] for command in ("norms", "show", "export")} == {0}


# ---------------------------------------------------------------- labels


def test_a_run_has_one_label_everywhere(main, tiny):
    trained = main("train", *TINY, "--objective", "fgsm_at(eps=0.1, norm=inf)", "--json")
    key = json.loads(trained[1])["key"]
    label = "fgsm_at(eps=0.1)"  # without what is the default
    assert f"  {label}, seed 0: mlp" in main("ls")[1]
    assert json.loads(main("show", key, "--json")[1])["method"] == label
    assert list(json.loads(main("analyze", key, "--what", "accuracy", "--json")[1])["networks"]) == [label]
    main("export", key, "--to", "exported")
    assert f", {label}" in Path("exported/README.md").read_text()


def test_runs_of_one_label_are_compared_by_what_differs(main):
    settings = ("--epochs", "1", "--limit", "60", "--analyses", "accuracy", "--json")
    keys = [
        json.loads(main("train", "--model", f"mlp(width={width}, depth=1)", "--seed", seed, *settings)[1])[
            "key"
        ]
        for width, seed in ((6, "0"), (6, "1"), (5, "0"))
    ]
    _, out, _ = main("compare", *keys, f"mine={keys[0]}", "--what", "accuracy", "--json")
    assert list(json.loads(out)["networks"]) == [
        "plain, model=mlp(width=6, depth=1), seed=0",
        "plain, model=mlp(width=6, depth=1), seed=1",
        "plain, model=mlp(width=5, depth=1), seed=0",
        "mine",
    ]
