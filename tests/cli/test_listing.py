"""``opnorm ls`` tells runs apart, every command finds them by the beginning of a key, ``opnorm rm`` removes them."""

import json
import os
import pty
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from opnorm._core import files
from opnorm.runs.damage import train_command
from opnorm.runs.evaluation import load_points
from opnorm.runs.store import FORMAT, Store

PGD = ("--attack", "pgd(steps=2)", "--eps", "0.05", "--limit", "30")


@pytest.fixture
def key(tiny, finished, tmp_path):
    """The key of a finished run of the user's folder."""
    shutil.copytree(finished(tiny).root, tmp_path / "runs")
    return tiny.key


def begin(run, key=None, **about):
    """The folder of a run that has begun."""
    store = Store("runs")
    with store.open(key or run.key) as entry:
        entry.begin({"run": run.as_dict()} | about)


# ---------------------------------------------------------------- ls


@pytest.mark.parametrize(
    ("settings", "shown"),
    [({"optimizer": "adam()"}, "optimizer=adam()"), ({"epochs": 4}, "epochs=4"), ({"limit": None}, "limit=None"),
     ({"augment": ("flip()", "crop(padding=1)")}, "augment=flip() + crop(padding=1)"),
     ({"precision": "bf16"}, "precision=bf16"), ({"batch": 16}, "batch=16"),
     ({"schedule": "constant()"}, "schedule=constant()"), ({"channels_last": True}, "channels_last=True"),
     ({"ema": 0.5}, "ema=0.5"), ({"regularizers": ("weight_decay()",)}, "weight_decay()"), ({"seed": 3}, "seed 3")],
)  # fmt: skip
def test_whatever_differs_is_shown(main, tiny, settings, shown):
    begin(tiny)
    alone = main("ls")[1]
    begin(replace(tiny, **settings))
    _, out, _ = main("ls")
    lines = out.splitlines()
    assert len(lines) == 2
    assert len({line.partition("  partial ")[2][30:] for line in lines}) == 2
    assert sum(shown in line for line in lines) == 1
    assert shown not in alone


def test_runs_of_the_same_settings_are_told_apart(main, tiny):
    """As after a change of the user's own module: their keys differ."""
    begin(tiny)
    begin(tiny, "0" * 12)
    _, out, _ = main("ls")
    assert (
        len(
            re.findall(
                rf"\(as ({tiny.key}|0{{12}}), with other code, files or version of opnorm\)$", out, re.M
            )
        )
        == 1
    )


def test_attacks_are_below_their_run(main, key):
    main("attack", key, *PGD)
    main("attack", "cnn(width=2, in_shape=(1, 8, 8))", "--data", "digits()", *PGD)
    status, out, err = main("ls")
    run, mine, other = out.splitlines()
    assert (status, err) == (0, "")
    assert run.startswith(f"{key}  finished")
    assert re.search(
        r"^    \w{12}  finished .*attack pgd\(.*eps=0.05.*\): \d+ of 30 robust, \d+ correct$", mine
    )
    assert other.endswith(": cnn(width=2, in_shape=(1, 8, 8))")
    rows = json.loads(main("ls", "--json")[1])
    assert [len(row.get("attacks", ())) for row in rows] == [1, 0]


def test_no_folder_of_a_stranger_commands_the_terminal(main, tiny, tmp_path):
    begin(replace(tiny, model="cnn(width=2)"), data={"name": "x"})
    for name, text in (("\x1b[31mred", "{}"), ("odd", '{"format": "\\u001b[2J"}'), ("deep", "[" * 10**5), ("list", "[1]"),
                       ("bytes", "\udcff")):  # fmt: skip
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    (tmp_path / "runs" / "empty").mkdir()
    files.write_json(
        tmp_path / "runs" / "empty" / "run.json", {"format": FORMAT, "run": 7, "begun": 7}, checked=True
    )
    status, out, err = main("ls")
    assert (status, err.count("\n")) == (2, 1)
    assert "(and 5 more of those listed)" in err
    assert len(out.splitlines()) == 7
    assert "\x1b" not in out + err
    assert "\\x1b[31mred" in out
    assert len(json.loads(main("ls", "--json")[1])) == 7


def test_runs_that_meet_a_condition_in_order(main, key, tiny):
    begin(replace(tiny, seed=1))
    begin(replace(tiny, model="mlp(depth=1)", seed=2))
    main("attack", key, *PGD)
    status, out, err = main("ls", "--where", "model ~ CNN and epochs_done >= 0", "--sort", "seed desc")
    lines = out.splitlines()
    assert (status, err, len(lines)) == (0, "", 3)
    assert "seed 1: " in lines[0]
    assert lines[0].endswith("  epochs_done 0")
    assert lines[1].startswith(key)
    assert "    " in lines[2][:4]
    rows = json.loads(main("ls", "--where", "robust_inf_0.05_pgd >= 0", "--json")[1])
    assert [(row["key"], len(row["attacks"]), row["run"]["seed"]) for row in rows] == [(key, 1, 0)]
    assert (
        rows[0]["robust_accuracy"] == rows[0]["robust_inf_0.05_pgd"] == rows[0]["attacks"][0]["robust"] / 30
    )
    status, out, err = main("ls", "--where", "seed > 0", "--parquet", "runs.parquet")
    assert (status, out.count("\n"), err) == (0, 2, "2 rows in runs.parquet\n")
    assert main("ls", "--where", "seed > 7")[1:] == ("", "no runs in runs meet the condition\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--where", "robust_acuracy > 0.5"), "did you mean 'robust_accuracy'?"),
        (
            ("--where", "model > 0.5"),
            "model is text, such as cnn(width=4), and 0.5 is not one to compare with >",
        ),
        (("--sort", "acuracy"), "--sort 'acuracy': no column 'acuracy'; did you mean 'accuracy'?"),
        (("--parquet", "runs.csv"), "--parquet runs.csv: expected a name that ends in .parquet"),
    ],
)
def test_a_selection_that_cannot_be_meant(main, tiny, args, message):
    begin(tiny)
    status, out, err = main("ls", *args)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


# ---------------------------------------------------------------- keys


def test_the_beginning_of_a_key_names_a_run(main, key):
    short = key[:3]
    status, table, _ = main("norms", short, "--ord", "1", "--json")
    assert status == 0
    by_file = main("norms", f'file("runs/{key}/weights.safetensors")', "--ord", "1", "--json")[1]
    assert json.loads(table) == json.loads(by_file)
    assert main("norms", f"runs/{key}", "--against", short, "--ord", "1")[0] == 0
    assert main("attack", short, *PGD, "--surrogate", short, "--save", "points.safetensors")[0] == 0
    saved = load_points("points.safetensors")
    assert len(saved.points) == 30
    assert sorted(saved.index.tolist()) == saved.index.tolist() != list(range(30))
    assert main("analyze", short, "--what", "accuracy")[0] == 0
    assert main("compare", f"a={short}", f"b={key}", "--what", "accuracy")[0] == 0


def test_saved_points_are_those_of_the_data(main, key, tmp_path):
    from opnorm.data import digits

    main("attack", key, *PGD, "--save", "points.safetensors")
    saved, test = load_points(tmp_path / "points.safetensors"), digits().test
    assert (saved.labels == test.labels[saved.index]).all()
    assert (saved.clean == test.images[saved.index].float() / 255).all()


@pytest.mark.parametrize("command", [("norms",), ("attack",), ("analyze",), ("rm", "--yes")])
def test_a_beginning_of_several_keys_names_them(main, tiny, command):
    for end in ("0", "1"):
        begin(tiny, "abcdef00000" + end)
    status, out, err = main(command[0], "abcd", *command[1:])
    assert (status, out) == (2, "")
    assert (
        err
        == "opnorm: abcd is the beginning of several keys in runs: abcdef000000, abcdef000001; name one of them\n"
    )


# ---------------------------------------------------------------- rm


def test_what_depends_on_a_run_is_removed_and_the_rest_stays(main, key, tiny):
    other = replace(tiny, epochs=9)
    begin(other)
    main("attack", key, *PGD)
    main("analyze", key, "--what", "accuracy")
    status, out, err = main("rm", key[:5])
    assert (status, err) == (2, "opnorm: nothing was removed: there is no terminal to ask; add --yes\n")
    assert out.count("remove runs/") == 3
    assert main("ls")[1].count("\n") == 3
    status, out, err = main("rm", key[:5], "--yes")
    assert (status, err) == (0, "")
    assert out.count("removed runs/") == 3
    assert re.search(r"^kept runs/analyses/.*/report\.html, a page that shows what was removed", out, re.M)
    assert [row["key"] for row in json.loads(main("ls", "--json")[1])] == [other.key]
    assert not list(Path("runs").glob("a*/*/run.json"))
    assert main("rm", key, "--yes")[0] == 2


def test_a_run_under_way_is_not_removed(main, tiny, key):
    begin(replace(tiny, epochs=9))
    with Store("runs").open(replace(tiny, epochs=9).key):
        status, out, err = main("rm", key, replace(tiny, epochs=9).key, "--yes")
    assert (status, out) == (2, "")
    assert "is under way in another process, and was not removed" in err
    assert main("ls")[1].count("\n") == 2


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("\n", 1), ("n\n", 1), ("", 1)])
def test_it_asks(main, key, monkeypatch, answer, left):
    ours, theirs = pty.openpty()
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        os.write(ours, answer.encode() or b"\x04")
        status, _, err = main("rm", key)
    os.close(ours)
    assert "Remove 1 folder? [y/N]" in err
    assert status == (2 if left else 0)
    assert len(Store("runs").ls()) == left


@pytest.mark.parametrize("damage", [lambda f: f.write_text("{"), lambda f: f.unlink()])
def test_a_damaged_run_is_removed_as_its_error_says(main, key, tiny, damage):
    damage(Path("runs") / key / "run.json")
    _, _, err = main(*shlex.split(train_command(tiny.as_dict(), Path.cwd() / "runs"))[1:])
    words = re.search(r"opnorm (rm \S+ --out runs) removes the folder, and the command that began", err)[
        1
    ].split()
    assert main(*words, "--yes")[0] == 0
    assert Store("runs").ls() == []
