"""Quick starts: --help and `import opnorm` do not load torch."""

import subprocess
import sys

import pytest

import opnorm
from opnorm._core.files import write_json
from opnorm.cli.commands import COMMANDS
from opnorm.runs.store import FORMAT
from tests.startup import without_torch


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_help_teaches_without_torch(tmp_path):
    examples = {
        "norms": "opnorm norms 'resnet(depth=20)'",
        "train": "--objective 'pgd_at(eps=0.1)'",
        "study": "--limit 2000",
    }
    commands = [[name, "--help"] for name in COMMANDS]
    overview, *helps = without_torch([["--help"], *commands], tmp_path)
    assert overview[0] == 0
    assert "opnorm COMMAND" in overview[1]
    for (name, _), (status, out) in zip(commands, helps, strict=True):
        assert status == 0
        assert f"opnorm {name} " in out
        assert "tour opnorm" not in out, "each example stands on a line of its own"
        assert examples.get(name, "") in " ".join(out.split())


def test_what_needs_no_network_needs_no_torch(tmp_path):
    """A run is listed, what is known of a damaged one shown, a version said, and a wrong argument refused at once."""
    run = {"format": FORMAT, "run": {"objective": "plain()", "seed": 0, "model": "mlp()", "data": "digits()"}}
    (tmp_path / "0123456789ab").mkdir()
    write_json(tmp_path / "0123456789ab" / "run.json", run, checked=True)
    (tmp_path / "0123456789ab" / "weights.safetensors").touch()
    commands = {
        "": 0, "--version": 0, "ls --out .": 0, "ls --out . --json": 0, "show 0123 --out .": 2, "rm abc --out .": 2,
        "attac": 2, "--print-completion bash": 0, "train --epoch x": 2,
    }  # fmt: skip
    found = without_torch([text.split() for text in commands], tmp_path)
    assert [status for status, _ in found] == [*commands.values()]
    said = dict(zip(commands, (out for _, out in found), strict=True))
    assert said["--version"] == f"opnorm {opnorm.__version__}\n"
    for listed in ("ls --out .", "show 0123 --out ."):
        assert "mlp()" in said[listed]


NOT_FOR_NORMS = {
    "tyro", "typeguard", "filelock", "scipy", "sympy", "numpy.random", "numpy.ma", "pyarrow", "altair", "PIL",
    "opnorm.attacks", "opnorm.training", "opnorm.report", "opnorm.data", "torch._dynamo", "torch._inductor",
}  # fmt: skip


def test_a_command_loads_what_it_needs():
    """Norms need no parser of help, no locks, and neither torch's compiler nor numpy's random numbers."""
    done = python(
        "import sys; from opnorm.cli import main; main(['norms', 'cnn(width=4, in_shape=(1, 8, 8))']); "
        f"assert 'opnorm.norms' in sys.modules; print(sorted({NOT_FOR_NORMS} & {{*sys.modules}}))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


WORK = """
import sys, torch
from torch import nn
from opnorm import data, models, training
from opnorm.norms import lipschitz_bound

def loaded(*names):
    print([name for name in names if name in sys.modules])

digits = data.digits()
loaded("pyarrow", "PIL", "rich", "huggingface_hub")
assert "gru" in str(lipschitz_bound(nn.Sequential(nn.Linear(2, 2), nn.GRU(2, 2)), torch.zeros(1, 2), 1))
loaded("torch._dynamo", "torch._inductor", "sympy")
training.train(models.cnn(width=2, in_shape=(1, 8, 8)), digits, training.TrainingSettings(epochs=1))
loaded("torch._dynamo", "torch._inductor", "sympy")
"""


def test_work_loads_what_it_needs():
    """The digits need no reader of files; a bound of a network and a training do without torch's compiler."""
    done = python(WORK)
    assert (done.returncode, done.stdout) == (0, "[]\n[]\n[]\n"), done.stderr


def test_import_does_not_load_torch():
    done = python("import sys, opnorm; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_everything_public_can_be_had():
    assert all(hasattr(opnorm, name) for name in opnorm.__all__)
    assert set(opnorm.__all__) <= set(dir(opnorm))
    assert opnorm.Run.__module__ == "opnorm.runs.run"
    assert len(opnorm.__all__) > 15


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
