"""The command line as a user meets it: results on stdout, one clear line on stderr, the right exit status."""

import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from opnorm.cli import main
from opnorm.cli.commands import COMMANDS
from tests.data.files import write_pictures
from tests.runs import processes

TINY = [
    "--model",
    "cnn(width=4)",
    "--epochs",
    "2",
    "--limit",
    "100",
    "--batch",
    "32",
    "--analyses",
    "accuracy",
]


def tiny(*options):
    """TINY with these options in place of its own."""
    own = dict(zip(TINY[::2], TINY[1::2], strict=True)) | dict(zip(options[::2], options[1::2], strict=True))
    return [token for option in own.items() for token in option]


MODULE = """
import torch
from torch import nn
from opnorm.data import Dataset
from opnorm.data.dataset import Split

def build(width=3, in_shape=(1, 8, 8), classes=10):
    return nn.Sequential(nn.Conv2d(in_shape[0], width, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes))

def data(pixels="uint8", label=0, n=40):
    images = torch.randint(256, (n, 1, 8, 8)).to(torch.uint8)
    labels = torch.arange(n) % 10
    labels[0] = label
    if pixels == "nan":
        images = images / 255.0
        images[1, 0, 2, 3] = float("nan")
    split = Split(images, labels)
    return Dataset("mine", split, split, tuple("0123456789"))

def stubborn():
    class Stubborn(nn.Linear):
        def forward(self, x):
            if self.training:
                raise KeyError("only in training")
            return super().forward(x.flatten(1))
    return Stubborn(64, 10)

def oops():
    raise RuntimeError("two\\nlines")

def study(lr=0.05, seeds=1, runs=4):
    from dataclasses import replace
    from opnorm.studies import tour
    whole = tour(size="smoke", seeds=seeds, limit=50, model="cnn(width=2)", lr=lr)
    return replace(whole, runs=whole.runs[:runs])
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A user's folder, with a module beside the user."""
    (tmp_path / "my_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    yield tmp_path
    sys.modules.pop("my_module", None)


@pytest.fixture
def cli(here, capsys):
    """``cli("ls", "--json")`` in this process: (exit status, stdout, stderr)."""

    def call(*args: str):
        status = 0
        threads = torch.get_num_threads()
        try:
            main(list(args))
        except SystemExit as e:
            status = e.code
        torch.set_num_threads(threads)
        out, err = capsys.readouterr()
        return status or 0, out, err

    return call


# ---------------------------------------------------------------- what works


def test_train_then_ls_then_found(cli, here):
    status, out, err = cli("train", *TINY)
    assert status == 0
    assert re.search(r"^accuracy +\d+\.\d\d% +\(\d+ of 100 test points\)$", out, re.M)
    folder = Path(out.split()[-1])
    assert (here / folder / "weights.safetensors").exists()
    assert [line.split()[:2] for line in err.splitlines()] == [["epoch", "1/2"], ["epoch", "2/2"]]
    assert "\x1b" not in err, "no control characters where there is no terminal"
    assert "\r" not in err

    status, again, err = cli("train", *TINY)
    assert (status, again) == (0, out)
    assert re.fullmatch(r"found, of [-\d]{10} [:\d]{8}; --again makes it anew\n", err), "not trained again"
    status, again, err = cli("train", *TINY, "--again")
    assert (status, again, err.count("epoch")) == (0, out, 2)

    status, out, err = cli("ls")
    assert status == 0
    assert re.fullmatch(
        rf"{folder.name}  finished +[-\d]{{10}} [:\d]{{8}}  +\d+\.\d s  plain, seed 0: cnn\(width=4\) on digits\(\)\n",
        out,
    )
    rows = json.loads(cli("ls", "--json")[1])
    assert [(r["key"], r["state"]) for r in rows] == [(folder.name, "finished")]

    table = json.loads(cli("norms", f'file("{folder}/weights.safetensors")', "--json")[1])
    kinds = [row["kind"] for row in table["layers"]]
    assert kinds == ["Normalize", "Conv2d", "ReLU", "Conv2d", "ReLU", "Flatten", "Linear"]


def test_train_json_is_all_there_is_on_stdout(cli):
    status, out, _ = cli("train", *TINY, "--json")
    found = json.loads(out)
    assert status == 0
    assert found.keys() == {"key", "folder", "run", "results"}
    assert found["results"]["accuracy()"][0]["points"] == 100


@pytest.mark.parametrize(
    "options",
    [("--regularizers", "norm_decay(1)", "weight_decay"),
     ("--regularizers", "norm_decay(1)", "--regularizers", "weight_decay"),
     ("--regularizers=norm_decay(1)", "--regularizers", "weight_decay")],
)  # fmt: skip
def test_repeated_options_add_up(cli, options):
    run = json.loads(cli("train", *options, *TINY, "--json")[1])["run"]
    assert run["regularizers"] == ["norm_decay(p=1)", "weight_decay()"]
    assert run["epochs"] == 2


@pytest.mark.parametrize("options", [("--seed", "1", "--seed", "1"), ("--channels-last", "--channels_last"),
                                     ("--model=cnn", "--model", "mlp")])  # fmt: skip
def test_other_repeated_options_are_refused(cli, options):
    status, out, err = cli("train", *options)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"opnorm: --\S+ is given twice; expected one value\n", err)


def test_ls_of_nothing(cli):
    assert cli("ls") == (0, "", "no runs in runs\n")
    assert json.loads(cli("ls", "--json")[1]) == []


def test_ls_shows_what_is_wrong_and_the_rest(cli, here):
    cli("train", *TINY)
    cli("train", *tiny("--model", "my_module.build(width=2)"))
    (here / "my_module.py").unlink()
    sys.modules.pop("my_module")
    for key, text in (("bad", "{"), ("old", '{"format": 0}'), ("odd", '{"format": 1, "run": 3, "key": 7}')):
        (here / "runs" / key).mkdir()
        (here / "runs" / key / "run.json").write_text(text)
    status, out, err = cli("ls")
    assert (status, err.count("\n")) == (2, 1)
    assert "(and 2 more of those listed)" in err
    assert len(out.splitlines()) == 5
    assert "my_module.build(width=2) on digits()" in out, "listed without importing it"
    assert "written in format 0" in out
    assert len(json.loads(cli("ls", "--json")[1])) == 5


def test_a_module_beside_the_user(cli):
    status, out, _ = cli("train", *tiny("--model", "my_module.build(width=3)"))
    assert status == 0
    assert "accuracy" in out
    status, out, _ = cli("norms", "my_module.build(width=3)", "--json")
    assert status == 0
    assert json.loads(out)["layers"][0]["kind"] == "Conv2d"


def test_norms(cli):
    status, out, _ = cli("norms", "cnn(width=4, in_shape=(1, 8, 8))")
    assert status == 0
    assert out.count("Conv2d") == 2
    rows = json.loads(cli("norms", "cnn(width=4)", "--ord", "1,inf", "--json")[1])["layers"]
    assert rows[1]["norms"].keys() == {"1", "inf"}
    assert rows[1]["norms"]["1"]["exact"]
    rows = json.loads(cli("norms", "resnet(depth=8)", "--input", "3x16x16", "--ord", "1", "--json")[1])[
        "layers"
    ]
    assert rows[1]["in_shape"] == [3, 16, 16]


def test_study_dry_run(cli, here):
    status, out, err = cli(
        "study", "tour(model='cnn(width=2)')", "--dry-run", "--seeds", "1", "--size", "smoke"
    )
    assert (status, err) == (0, "")
    lines = out.splitlines()
    runs = [line for line in lines if re.match(r"[0-9a-f]{12}  to do", line)]
    assert lines[len(runs)] == f"{len(runs)} runs, 0 finished"
    assert re.fullmatch(
        rf"{len(runs)} runs to do, about .+ with \d+ process.*, memory .*, disk .*", lines[len(runs) + 1]
    )
    assert lines[len(runs) + 2].startswith("- measured: one training step of ")
    assert any("analyses not counted" in line for line in lines)
    plan = json.loads(cli("study", "my_module.study()", "--dry-run", "--json", "--seeds", "2")[1])
    assert plan["estimate"]["seconds"] > 0
    assert plan["estimate"]["disk"] > 0
    rows = plan["runs"]
    assert [r["seed"] for r in rows[:4]] == [0, 1, 0, 1]
    assert len({r["key"] for r in rows}) == len(rows)
    assert not (here / "runs").exists(), "nothing is done"


def test_a_plan_of_one_run(cli, here):
    status, out, _ = cli("study", "my_module.study(runs=1)", "--dry-run")
    assert (status, out.splitlines()[1]) == (0, "1 run, 0 finished")
    assert out.splitlines()[2].startswith("1 run to do, about ")


def test_the_size_of_the_paper_on_a_cpu_asks_first(cli, here):
    command = ["study", "liu2020.invariance", "--size", "paper", "--data", "digits()", "--limit", "200"]
    status, out, err = cli(*command)
    assert (status, out) == (2, "")
    assert re.search(r"on a CPU: \d+ runs to do, about .* --yes goes on", err)
    assert not (here / "runs").exists(), "nothing is done"


SMOKE = [
    "study",
    "tour",
    "--size",
    "smoke",
    "--seeds",
    "1",
    "--limit",
    "50",
    "--model",
    "cnn(width=2)",
    "--jobs",
    "1",
]


FOUR = ["study", "my_module.study()", "--jobs", "1"]


@pytest.mark.parametrize("study", [FOUR, pytest.param(SMOKE, marks=pytest.mark.slow)], ids=["four", "all"])
def test_study_ends_with_the_page(cli, study):
    """Of four runs of the tour; behind the slow marker, of all."""
    status, out, err = cli(*study)
    assert status == 0
    assert len(out.splitlines()) == 1
    page = Path(out.splitlines()[-1])
    assert page.name == "report.html"
    assert page.stat().st_size > 100_000
    address, *ended = err.splitlines()
    assert address == f"page: {page.absolute().as_uri()}", "known before anything is trained"
    n = len(ended)
    assert sorted(int(m) for m in re.findall(r"^\[(\d+)/", err, re.M)) == list(range(1, n + 1))
    assert "\x1b" not in err
    assert "\r" not in err

    status, again, err = cli(*study, "--json")
    found = json.loads(again)
    assert found["page"] == str(page)
    assert len(found["runs"]) == n
    assert not any(r["failure"] for r in found["runs"])
    assert err.count("found, ") == n
    assert (
        cli(*study, "--dry-run")[1].splitlines()[-1] == f"{n} runs, {n} finished"
    )  # and nothing to estimate


def test_a_study_with_failures_says_so_and_ends_well(cli):
    status, out, err = cli("study", "my_module.study(lr=1e30)", *FOUR[2:])
    assert status == 0
    assert Path(out.strip()).exists()
    assert "failed: " in err


def on_mnist(folder, *args):
    """``opnorm ARGS --json`` in a process of its own, on 40 points: what it prints."""
    data = ["--data", f'parquet("{folder}/mnist")', "--limit", "40", "--model", "mlp(width=8)", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "opnorm", *args, *data], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_run_on_images_in_parquet_files(cli, here, monkeypatch):
    monkeypatch.setenv("OPNORM_CACHE", str(here / "cache"))
    for part in ("train", "test"):
        write_pictures(here / f"animals/{part}-00000-of-00001.parquet", 50)
    args = (
        "train",
        "--data",
        'parquet("animals")',
        "--limit",
        "40",
        "--model",
        "mlp(width=8)",
        "--epochs",
        "1",
    )
    status, out, err = cli(*args, "--analyses", "accuracy", "--json")
    assert status == 0, err
    assert json.loads(out)["results"]["accuracy()"][0]["points"] == 40


@pytest.mark.slow
@pytest.mark.data
def test_a_run_on_mnist(data_folder, here, monkeypatch):
    monkeypatch.setenv("OPNORM_CACHE", str(here / "cache"))
    found = on_mnist(data_folder, "train", "--epochs", "1", "--analyses", "accuracy")
    assert found["results"]["accuracy()"][0]["points"] == 40


@pytest.mark.slow
@pytest.mark.data
def test_the_tour_on_mnist(data_folder, here, monkeypatch):
    monkeypatch.setenv("OPNORM_CACHE", str(here / "cache"))
    found = on_mnist(data_folder, "study", "tour", "--seeds", "1", "--size", "smoke")
    accuracies = [r["results"]["accuracy()"][0] for r in found["runs"]]
    assert {a["points"] for a in accuracies} == {40}
    assert "mnist" in (here / found["page"]).read_text()


# ---------------------------------------------------------------- what does not


BAD = {
    "unknown model": (["train", "--model", "cnnn(width=4)"], r"unknown model 'cnnn'; did you mean 'cnn'\?"),
    "unknown parameter": (["train", "--model", "cnn(widht=4)"], r"no parameter 'widht'; did you mean 'width'\?"),
    "unknown objective": (["train", "--objective", "pdg_at"], r"did you mean 'pgd_at'\?"),
    "unknown analysis": (["train", "--analyses", "acuracy"], r"did you mean 'accuracy'\?"),
    "unknown study": (["study", "tuor"], r"did you mean 'tour'\?"),
    "no study": (["study", "my_module.build()"], r"expected a study"),
    "no call": (["train", "--model", "1 +"], r"cannot be read"),
    "code": (["train", "--model", "__import__('os')"], r"private"),
    "not of this study": (["study", "my_module.build()", "--seeds", "2"], r"no parameter 'seeds'"),
    "said twice": (["study", "tour(seeds=1)", "--seeds", "2"], r"--seeds and seeds=1 in tour\(seeds=1\)"),
    "study size": (["study", "tour", "--size", "big"], r"size='big'"),
    "study jobs": (["study", "tour", "--jobs=-2"], r"jobs=-2: expected at least 1"),
    "no jobs": (["study", "tour", "--jobs", "0"], r"jobs=0: expected at least 1"),
    "study limit": (["study", "tour", "--limit", "0", "--size", "smoke"], r"limit=0"),
    "epochs": (["train", "--epochs=-1"], r"epochs=-1"),
    "batch": (["train", "--batch", "0"], r"batch=0"),
    "limit": (["train", "--limit", "0"], r"limit=0"),
    "seed": (["train", "--seed=-1"], r"seed=-1"),
    "large seed": (["train", "--seed", "9" * 30], r"seed=9+: expected"),
    "device": (["train", "--device", "nonsense"], r"--device nonsense: .*such as cpu"),
    "device meta": (["train", "--device", "meta"], r"--device meta: .*such as cpu"),
    "device hpu": (["train", "--device", "hpu"], r"--device hpu: .*such as cpu"),
    "device xla": (["train", "--device", "xla"], r"--device xla: .{0,120}; expected one that this machine has"),
    "device empty": (["train", "--device", ""], r"--device '': expected one, not empty"),
    "eps": (["train", "--objective", "pgd_at(eps=8)"], r"did you mean 8/255\?"),
    "learning rate": (["train", "--optimizer", "sgd(lr=0)"], r"lr=0"),
    "classes": (["train", "--model", "mlp(classes=7)"], r"output of shape \(1, 7\) for one image; expected \(1, 10\)"),
    "shape": (["train", "--model", "cnn(in_shape=(3, 32, 32))"], r"images of 3 channels, and these have 1"),
    "augmented": (["train", "--augment", "random_resized_crop(size=5)"],
                  r"random_resized_crop\(size=5\) does not take images of shape \(1, 5, 5\)"),
    "no file": (["train", "--model", 'file("nope.safetensors")'], r"no file nope\.safetensors"),
    "no parquet": (["train", "--data", 'parquet("nope")'], r"there is no .*nope"),
    "no folder": (["train", "--data", 'folder("nope")'], r"there is no .*nope"),
    "no data set": (["train", "--data", "my_module.build()"], r"expected an opnorm\.data\.Dataset"),
    "no model": (["train", "--model", "my_module.data()"], r"expected a torch\.nn\.Module"),
    "user's error": (["train", "--model", "my_module.oops()"],
                     r"my_module\.oops\(\) failed: RuntimeError: two lines, at line \d+ of .*my_module\.py, in oops$"),
    "NaN": (["train", "--data", "my_module.data(pixels='nan')"],
            r"1 NaN or infinite values, the first \(nan\) at index \(1, 0, 2, 3\)"),
    "label": (["train", "--data", "my_module.data(label=10)"], r"row 0 is 10; expected 0 to 9"),
    "no module": (["train", "--model", "nowhere.build()"], r"no module named 'nowhere'"),
    "too large": (["train", "--model", "mlp(width=10**9)"], r"allocate"),
    "input": (["norms", "cnn", "--input", "abc"], r"--input 'abc': expected numbers"),
    "input of zero": (["norms", "cnn", "--input", "0,3,3"], r"--input '0,3,3'"),
    "input too large": (["norms", "cnn", "--input", "1000000,1000000,1000000"], r"--input 1000000,1000000,10+: .*expected"),
    "input beyond": (["norms", "cnn", "--input", "9" * 40], r"--input 9+: .*expected"),
    "input shape": (["norms", "cnn", "--input", "3,32,32"], r"images of 1 channels, and these have 3"),
    "ord": (["norms", "cnn", "--ord", "3"], r"'3': expected"),
    "ord text": (["norms", "cnn", "--ord", "abc"], r"'abc': expected"),
    "ord nothing": (["norms", "cnn", "--ord", ","], r"--ord ','"),
    "no shape": (["norms", "my_module.oops()"], r"two lines"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_gets_one_line_and_status_2(cli, what):
    args, message = BAD[what]
    status, out, err = cli(*args)
    assert status == 2
    assert out == ""
    assert err.startswith("opnorm: ")
    assert err.count("\n") == 1, err
    assert re.search(message, err.strip()), err


@pytest.mark.parametrize(
    "args",
    [["nonsense"], ["train", "--nonsense"], ["norms"], ["study"], ["train", "--epochs", "abc"], ["train", "--epochs"],
     ["train", "--precision", "fp8"], ["train", "cnn"], ["study", "tour", "--figures", "gif"], ["ls", "x"]],
)  # fmt: skip
def test_what_cannot_be_parsed_has_status_2(cli, args):
    status, out, err = cli(*args)
    assert status == 2
    assert out == ""
    assert "Traceback" not in err
    assert "--help" in err


def test_debug_gives_the_traceback(here):
    from opnorm.errors import SpecError

    with pytest.raises(SpecError):
        main(["--debug", "train", "--model", "cnnn"])
    with pytest.raises(SpecError):
        main(["train", "--model", "cnnn", "--debug"])


def test_what_nobody_foresaw_says_how_to_see_more(cli):
    status, _, err = cli("train", *tiny("--model", "my_module.stubborn()"))
    assert status == 1
    place = r"at line \d+ of my_module\.py, in forward"
    assert re.fullmatch(rf"opnorm: KeyError: 'only in training', {place}; --debug shows where\n", err)


def test_divergence_has_status_2(cli):
    for remembered in (False, True):
        status, out, err = cli("train", *TINY, "--optimizer", "sgd(lr=1e30)")
        assert (status, out) == (2, "")
        assert "at epoch 1, step 2 of 3: the output of layer '3' (Conv2d) is not finite" in err
        assert ("remembered" in err) == remembered


def test_a_run_folder_of_another_version(cli, here):
    cli("train", *TINY)
    about = next(here.glob("runs/*/run.json"))
    about.write_text(re.sub(r'"format": \d+', '"format": 99', about.read_text()))
    for args in (["train", *TINY],):
        status, out, err = cli(*args)
        assert (status, out) == (2, "")
        assert re.fullmatch(
            r"opnorm: .*written in format 99 by another version of opnorm, and this one reads format \d+; .*\n",
            err,
        )


@pytest.mark.parametrize(
    ("given", "want"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_wait_briefly_unless_the_user_says_otherwise(given, want):
    env = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | given
    code = "import atexit, os; atexit.register(lambda: print(os.environ.get('GOMP_SPINCOUNT')))\n"
    code += "from opnorm.cli import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.split()[-1] == want


def test_no_arguments_show_what_to_do_next(main):
    status, out, err = main()
    assert (status, err) == (0, "")
    assert len(out.splitlines()) < 15
    for line in re.findall(r"^  (opnorm .*?)(?:  .*)?$", out, re.MULTILINE):
        _, command, *_ = shlex.split(line)
        assert command == "--help" or command in COMMANDS


# ---------------------------------------------------------------- real processes


def test_two_at_once_and_then_ctrl_c(opnorm, tmp_path, until):
    args = ["train", *tiny("--epochs", "400", "--batch", "8")]
    first, end = opnorm(*args, wait=False)
    until(lambda: list(tmp_path.glob("runs/*/metrics.jsonl")))
    status, out, err = opnorm(*args)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"opnorm: another process is at run \w{12} in runs; wait until it ends, or .*\n", err)
    os.kill(first.pid, signal.SIGINT)
    status, out, err = end()
    assert (status, out) == (130, "")
    assert err.splitlines()[-1] == "stopped; what was done is kept, and the same command goes on from there"
    assert "Traceback" not in err
    kept = len(next(tmp_path.glob("runs/*/metrics.jsonl")).read_text().splitlines())
    assert kept >= 1

    again, end = opnorm(*args, wait=False)
    until(lambda: len(next(tmp_path.glob("runs/*/metrics.jsonl")).read_text().splitlines()) > kept)
    os.kill(again.pid, signal.SIGINT)
    _, _, err = end()
    # the metrics are written before the checkpoint, so a stop between the two repeats their last epoch
    went_on = tuple(f"epoch {epoch}/400" for epoch in (kept, kept + 1))
    assert err.splitlines()[0].startswith(went_on), "it went on where it was"


FAKE_TORCH = """
import pathlib, time
pathlib.Path("loading").touch()
try:
    time.sleep(60)
except BaseException:  # as the real one does while numpy is loaded from C
    pass
"""


def test_ctrl_c_while_torch_loads(tmp_path, until):
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    code = "import sys; sys.path.insert(0, '.'); from opnorm.cli import main; main(['norms', 'mlp()'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until((tmp_path / "loading").exists)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "stopped\n")


@pytest.mark.parametrize(
    ("command", "kept"),
    [(("train",), True), (("attack", "RUN"), True), (("analyze", "RUN"), True), (("norms", "mlp()"), False)],
)
def test_what_is_said_after_ctrl_c(cli, monkeypatch, command, kept):
    from opnorm.cli import arguments

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(arguments, "read", interrupted)
    status, out, err = cli(*command)
    sentence = "; what was done is kept, and the same command goes on from there" if kept else ""
    assert (status, out, err) == (130, "", f"stopped{sentence}\n")


def in_terminal(args, cwd, columns=100, no_color="") -> tuple[int, str]:
    """The exit status, and what a terminal was sent."""
    reading, terminal = pty.openpty()
    environment = {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "30", "NO_COLOR": no_color}
    process = processes.start(
        processes.command_with, environment, args, cwd, os.ttyname(terminal), os.ttyname(terminal)
    )
    shown, ended = b"", False
    while not ended:
        ended = not process.is_alive()
        while select.select([reading], [], [], 0.05)[0]:
            shown += os.read(reading, 65536)
    os.close(reading)
    os.close(terminal)
    return process.exitcode, shown.decode()


def test_a_terminal_sees_a_bar_with_the_time_left(tmp_path):
    status, shown = in_terminal(["train", *tiny("--epochs", "20")], tmp_path)
    assert status == 0
    assert re.search(r"left.*0:\d\d:\d\d", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown))
    assert re.search(r"epoch \d+/20", shown)
    assert "folder" in shown


# ---------------------------------------------------------------- make


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
def test_make_says_what_it_would_do():
    root = Path(__file__).parents[2]

    alone = {
        k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k not in ("MFLAGS", "ARGS")
    }  # not make's own child

    def dry(target: str) -> str:
        done = subprocess.run(["make", "-n", target], cwd=root, env=alone, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert dry("run").splitlines()[-1].strip() == ".venv/bin/opnorm study tour"
    assert "pytest" in dry("test").splitlines()[-1]
    assert "make run" in dry("help")
    assert "mypy" in dry("lint").splitlines()[-1]
