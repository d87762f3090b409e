"""Quick starts: --help and `import opnorm` do not load torch."""

import subprocess
import sys

import pytest

import opnorm
from opnorm._core.files import write_json
from opnorm.runs.store import FORMAT

CHECK = """
import sys
from opnorm.cli import main
try:
    main({args!r})
except SystemExit as e:
    assert not e.code, e.code
heavy = {{"torch", "numpy", "scipy", "pyarrow", "altair", "jinja2", "vl_convert", "PIL", "safetensors"}} & set(sys.modules)
assert not heavy, heavy
"""


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("command", ["norms", "train", "study", "ls", ""])
def test_help_teaches_without_torch(command):
    done = python(CHECK.format(args=[command, "--help"] if command else ["--help"]))
    assert done.returncode == 0, done.stderr
    assert (f"opnorm {command} " if command else "opnorm COMMAND") in done.stdout
    if command in ("norms", "train", "study"):
        assert "tour opnorm" not in done.stdout, "each example stands on a line of its own"
        text = " ".join(done.stdout.split())
        example = {
            "norms": "opnorm norms 'resnet(depth=20)'",
            "train": "--objective 'pgd_at(eps=0.1)'",
            "study": "--limit 2000",
        }
        assert example[command] in text


@pytest.mark.parametrize(
    ("args", "status"),
    [
        ([], 0),
        (["--version"], 0),
        (["ls", "--out", "."], 0),
        (["rm", "abc", "--out", "."], 2),
        (["attac"], 2),
        (["--print-completion", "bash"], 0),
        (["train", "--epoch", "x"], 2),
    ],
)
def test_what_needs_no_network_needs_no_torch(args, status, tmp_path, monkeypatch):
    """A run is listed, a version said, and a wrong argument refused at once."""
    monkeypatch.chdir(tmp_path)
    run = {"format": FORMAT, "run": {"objective": "plain()", "seed": 0, "model": "mlp()", "data": "digits()"}}
    (tmp_path / "0123456789ab").mkdir()
    write_json(tmp_path / "0123456789ab" / "run.json", run, checked=True)
    done = python(
        CHECK.format(args=args).replace(
            "assert not e.code, e.code", f"assert (e.code or 0) == {status}, e.code"
        )
    )
    assert done.returncode == 0, done.stderr
    assert {"--version": f"opnorm {opnorm.__version__}", "ls": "mlp() on digits()"}.get(
        args[0] if args else "", ""
    ) in done.stdout


def test_import_does_not_load_torch():
    done = python("import sys, opnorm; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_everything_public_can_be_had():
    code = (
        "import opnorm; names = opnorm.__all__; [getattr(opnorm, n) for n in names]; "
        "assert set(names) <= set(dir(opnorm)); "
        "assert opnorm.Run.__module__ == 'opnorm.runs.run'; print(len(names))"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15


@pytest.mark.parametrize(
    "name",
    [
        "certificates",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("AutoAttack", "analyze", "jacobian_norm", "lipschitz_bound")
        ),
    ],
)
def test_a_name_can_be_had_alone(name):
    done = python(f"import opnorm; opnorm.{name}; assert {name!r} in opnorm.__all__")
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        opnorm.nope  # noqa: B018
