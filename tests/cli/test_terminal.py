"""Output for terminals without some characters, and for readers that end before the command does."""

import fcntl
import json
import os
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import opnorm as package
from opnorm._core.plain_text import PLAIN, encodable
from tests.runs import processes

NORMS = ("norms", "cnn(width=2, depth=6, in_shape=(1, 8, 8))", "--ord", "1,2")
ROOT = Path(package.__file__).parent
SAID = ("PYTHONUNBUFFERED", "LANG", "LC_ALL", "LC_CTYPE", "PYTHONIOENCODING", "PYTHONUTF8")


def start(args, cwd, env=None, **streams):
    """``opnorm ARGS`` as from a shell, with no more said about its output than in ``env``."""
    env = {k: v for k, v in os.environ.items() if k not in SAID} | (env or {})
    return subprocess.Popen([sys.executable, "-m", "opnorm", *args], cwd=cwd, env=env, **streams)


# ---------------------------------------------------------------- characters


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_table_has_words_for_what_the_terminal_lacks(opnorm, encoding):
    status, text, err = opnorm(*NORMS, encoding=encoding)
    assert (status, err) == (0, "")
    assert "?" not in text
    lines = text.splitlines()
    if encoding == "utf-8":
        assert "ℓ2 ≤" in text
        return
    assert re.search(r"graph: +l1 <= [\d.e+]+, +l2 +<=", " ".join(lines))
    ends = {line.index("<= 1") for line in lines if " ReLU " in line}
    assert len(ends) == 1, "the columns are as wide as the words"


@pytest.mark.parametrize(
    "env", [{"PYTHONIOENCODING": "ascii"}, {"LANG": "C"}, {"LC_ALL": "POSIX", "LANG": "C.UTF-8"}]
)
def test_where_only_ascii_is_known(tmp_path, env):
    process = start(["ls", "≤"], tmp_path, env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, b"")
    assert err.isascii()
    assert b"?" not in err
    assert b"<=" in err


def test_json_has_the_same_values_everywhere(opnorm):
    call = ("norms", NORMS[1].replace("cnn(", "cnn(depth=1, ").replace("depth=6, ", ""), "--json")
    ascii, whole = (opnorm(*call, encoding=name)[1] for name in ("ascii", "utf-8"))
    assert ascii.isascii()
    notes = [[row["note"] for row in json.loads(text)["layers"]] for text in (ascii, whole)]
    assert notes[0] == notes[1]


def test_a_name_that_is_not_utf8(opnorm):
    for encoding in ("ascii", "utf-8"):
        status, _, err = opnorm("ls", "--out", os.fsdecode(b"caf\xe9"), encoding=encoding)
        assert (status, err) == (0, "no runs in caf\\udce9\n")


def test_every_character_of_the_package_has_a_word():
    text = "".join(path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py"))
    for char in sorted({char for char in text if not char.isascii()}):
        assert "\\" not in encodable(char, "ascii"), char


@pytest.mark.parametrize(
    ("text", "ascii", "latin"),
    [("ℓ∞ ≤ 3 ± 2", "linf <= 3 +- 2", "linf <= 3 ± 2"), ("‖W‖₂²", "||W||2^2", "||W||2²"), ("ε=8/255", "eps=8/255", None),
     ("Świątek, Øre", "Swiatek, \\xd8re", "Swiatek, Øre"), ("犬", "\\u72ac", None), ("Δ", "Delta", None),
     ("plain?", "plain?", None), ("─│┼╭", "-|++", None)],
)  # fmt: skip
def test_words(text, ascii, latin):
    assert text.encode("ascii", PLAIN) == ascii.encode()
    assert encodable(text, "latin-1") == (latin or ascii)
    assert encodable(text, "utf-8") == text


# ---------------------------------------------------------------- readers that end


def closed_pipe() -> int:
    """The end to write to of a pipe whose other end is closed."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize(
    "args", [pytest.param(NORMS, marks=pytest.mark.slow), ("--help",), ("train", "--help")]
)
def test_output_that_nobody_reads(tmp_path, args):
    process = start(args, tmp_path, stdout=closed_pipe(), stderr=subprocess.PIPE)
    assert process.communicate(timeout=120)[1] == b""
    assert process.returncode == 141


def test_errors_that_nobody_reads(tmp_path):
    process = start(["nothing"], tmp_path, stdout=subprocess.DEVNULL, stderr=closed_pipe())
    assert process.wait(120) == 141


def many_runs(folder):
    for i in range(2000):
        (folder / f"runs/{i:012x}").mkdir(parents=True)
        (folder / f"runs/{i:012x}/run.json").write_text("{}")
    return ["ls"], "out"


def long_table(folder):
    return [*NORMS[:1], NORMS[1].replace("depth=6", "depth=100"), "--ord", "1"], "out"


def training(folder):
    return ["train", "--model", "cnn(width=2)", "--epochs", "1000", "--limit", "40", "--batch", "10"], "err"


@pytest.mark.parametrize("what", [many_runs, long_table, training])
def test_a_reader_that_ends_in_the_middle(tmp_path, what):
    """After a line, from a pipe of the least size."""
    args, stream = what(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(reading, True)
    paths = {"out": "/dev/null", "err": "/dev/null"} | {stream: tmp_path / "pipe"}
    process = processes.start(processes.command, args, tmp_path, paths["out"], paths["err"])
    assert select.select([reading], [], [], 120)[0]
    while os.read(reading, 1) != b"\n":  # no more than the line
        pass
    os.close(reading)
    process.join(120)
    assert process.exitcode == 141


def test_an_end_of_another_pipe_is_an_error_like_any_other(opnorm, tmp_path):
    code = "import os\ndef net():\n    r, w = os.pipe()\n    os.close(r)\n    os.write(w, b'x')"
    (tmp_path / "mine.py").write_text(code)
    status, out, err = opnorm("norms", "mine.net()")
    assert (status, out) == (2, "")
    assert "Broken pipe" in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this machine")
def test_output_on_a_full_disk(tmp_path):
    with open("/dev/full", "w") as full:
        process = start(["--help"], tmp_path, stdout=full, stderr=subprocess.PIPE)
        err = process.communicate(timeout=120)[1]
    assert process.returncode == 2
    assert re.fullmatch(rb"opnorm: .*No space left on device\n", err)


def test_a_warning_is_its_sentence(opnorm, tmp_path):
    """Without the line of the program that gave it, in a process of its own, where nothing records warnings."""
    for i in range(6):
        path = tmp_path / "images" / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 40 * i).save(path)
    (tmp_path / "images" / "train" / "a" / "0.png").write_bytes(b"")
    call = (
        "attack",
        "mlp(in_shape=(1, 8, 8), classes=2)",
        "--data",
        'folder("images")',
        "--attack",
        "fgsm",
        "--skip-bad",
    )
    status, _, err = opnorm(*call)
    assert status == 0
    first, second, *_ = err.splitlines()
    assert first == "warning: images: 1 of 6 images cannot be decoded and are skipped:"
    assert second.startswith("  train/a/0.png: ")
    assert not {"UserWarning", "expected", "skip_bad", "function("} & set(err.replace("=", " ").split())
