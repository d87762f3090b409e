"""What is kept is found only where it would come out the same: after any change of what it depends on, it is made anew."""

import importlib
import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import opnorm
from opnorm.attacks import fgsm
from opnorm.cli import main
from opnorm.models import cnn, save
from opnorm.runs.attack_evaluation import evaluate
from opnorm.runs.identity import same_outputs
from opnorm.runs.run import Run
from opnorm.runs.store import Store
from tests.attacks.honest import points

pytestmark = pytest.mark.usefixtures("few_queries")

LAB = {
    "nets.py": """
import torch
from torch import nn
from lab.parts import scale

class Defended(nn.Sequential):
    bits = 0
    def forward(self, x):
        x = (x * 2**self.bits).round() / 2**self.bits if self.bits else x
        return super().forward(x) * scale()

def defended(bits=0, classes=10):
    net = Defended(nn.Flatten(), nn.Linear(64, classes))
    net.bits = bits
    return net
""",
    "parts.py": "from . import deep\ndef scale():\n    from lab.lazy import one\n    return one * deep.one\n",
    "deep.py": "one = 1\n",
    "lazy.py": "one = 1\n",
    "unused.py": "one = 1\n",
    "training.py": """
from importlib import import_module
import torch
from opnorm.data import digits, Dataset
from opnorm.objectives import plain
from opnorm.regularizers import weight_decay
from opnorm.training.optimizers import sgd
from opnorm.training.schedules import constant

step = import_module("lab." + "computed").one

def regularizer():
    return weight_decay(1e-3)
def objective():
    return plain()
def optimizer():
    return sgd(0.1 * step)
def schedule():
    return constant()
def augment():
    return lambda images, generator: images
def data():
    return digits()
""",
    "computed.py": "one = 1\n",
    "study.py": """
from opnorm.attacks import fgsm
def attack(norm=float("inf"), eps=0.1):
    return fgsm(norm=norm, eps=eps)
def analysis():
    return lambda model, data: [{"n": 3}]
""",
}
TINY = ("--epochs", "1", "--limit", "60", "--analyses", "accuracy")
ATTACK = ("attack", "lab.nets.defended()", "--data", "digits()", "--limit", "30")
ANALYZE = ("analyze", "lab.nets.defended()", "--data", "digits()", "--limit", "30")


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A user's folder with a package, which is imported anew by every command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "lab").mkdir()
    for name, text in LAB.items():
        (tmp_path / "lab" / name).write_text(text)
    yield tmp_path
    forget()


def forget():
    for name in [n for n in sys.modules if n.partition(".")[0] == "lab"]:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def found(lab, capsys):
    """``found("attack", ...)``: whether the command found all that it printed."""

    def call(*args: str) -> bool:
        forget()
        torch.manual_seed(0)
        main(list(args))
        return "found, of" in capsys.readouterr().err

    return call


def edit(name):
    def change(folder: Path):
        path = folder / "lab" / name
        path.write_text(path.read_text() + "\nchanged = True\n")

    return change


COMMANDS = {
    "model": ("train", "--model", "lab.nets.defended()", *TINY),
    "training": ("train", *TINY, "--regularizers", "lab.training.regularizer()"),
    "objective": ("train", *TINY, "--objective", "lab.training.objective()"),
    "optimizer": ("train", *TINY, "--optimizer", "lab.training.optimizer()"),
    "schedule": ("train", *TINY, "--schedule", "lab.training.schedule()"),
    "augment": ("train", *TINY, "--augment", "lab.training.augment()"),
    "data": ("train", *TINY, "--data", "lab.training.data()"),
    "analyses": ("train", *TINY[:-1], "lab.study.analysis()"),
    "attacked": (*ATTACK, "--attack", "fgsm"),
    "attack": ("attack", "cnn(width=2)", *ATTACK[2:], "--attack", "lab.study.attack()"),
    "analyzed": (*ANALYZE, "--what", "accuracy"),
    "analysis": ("analyze", "cnn(width=2)", *ANALYZE[2:], "--what", "lab.study.analysis()"),
}


@pytest.mark.parametrize(
    ("command", "module"),
    [("model", "nets.py"), ("model", "parts.py"), ("model", "deep.py"), ("model", "lazy.py"),
     *((name, "training.py") for name in ("training", "objective", "optimizer", "schedule", "augment", "data")),
     ("training", "computed.py"), ("analyses", "study.py"), ("attacked", "nets.py"), ("attacked", "lazy.py"),
     ("attack", "study.py"), ("analyzed", "deep.py"), ("analysis", "study.py")],
)  # fmt: skip
def test_changed_code_of_the_user(found, lab, command, module):
    args = COMMANDS[command]
    assert not found(*args)
    assert found(*args)
    edit(module)(lab)
    assert not found(*args)
    assert found(*args)
    if module == "study.py":
        assert not found(*args, "--again")
    if command == "model":  # not imported by it
        edit("unused.py")(lab)
        assert found(*args)


@pytest.mark.parametrize("command", [COMMANDS["attacked"], COMMANDS["analyzed"]])
def test_other_arguments_of_a_network_with_the_same_weights(found, command):
    for bits in (0, 1, 2):
        assert not found(command[0], f"lab.nets.defended(bits={bits})", *command[2:])
    assert found(command[0], "lab.nets.defended(bits=1)", *command[2:])


@pytest.mark.parametrize("command", ["train", "attack"])
def test_overwritten_weights(found, lab, command):
    args = {
        "train": ("train", "--model", 'file("w.safetensors")', *TINY),
        "attack": ("attack", 'file("w.safetensors")', *ATTACK[2:], "--attack", "fgsm"),
    }[command]
    for seed in range(2):
        torch.manual_seed(seed)
        save(cnn((1, 8, 8), 10, 2), lab / "w.safetensors")
        assert not found(*args)
        assert found(*args)


def images(folder: Path, shade: int) -> None:
    for part in ("train", "test"):
        for label in ("a", "b"):
            (folder / part / label).mkdir(parents=True, exist_ok=True)
            for k in range(3):
                Image.new("L", (8, 8), shade + 9 * k).save(folder / part / label / f"{k}.png")


def test_a_relative_path_from_two_folders_and_a_changed_file(found, lab, monkeypatch):
    monkeypatch.setenv("OPNORM_CACHE", str(lab / "cache"))
    args = ("train", "--data", 'folder("set")', "--out", str(lab / "runs"), *TINY)
    for k, name in enumerate(("one", "two")):
        images(lab / name / "set", 20 * k)
        monkeypatch.chdir(lab / name)
        assert not found(*args)
        assert found(*args)
    monkeypatch.chdir(lab)
    assert found("train", "--data", f'folder("{lab}/two/set")', *TINY), "the same set by its full path"
    Image.new("L", (8, 8), 99).save(lab / "two" / "set" / "train" / "a" / "0.png")
    assert not found("train", "--data", 'folder("two/set")', *TINY)


def test_another_version_of_opnorm(found, monkeypatch):
    commands = [COMMANDS[name] for name in ("attack", "analysis")] + [("train", *TINY)]
    for version in ("0.1.0", "0.2.0"):
        monkeypatch.setattr(opnorm, "__version__", version)
        assert not any(found(*args) for args in commands)
    assert all(found(*args) for args in commands)


READS = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    def forward(self, x):
        return self.body(x) * float(open("factor").read())
def net():
    return Net()
"""


def test_a_file_that_only_the_outputs_show(found, lab, capsys):
    """The user's network opens it by itself, so that no key can see it."""
    (lab / "lab" / "reads.py").write_text(READS)
    (lab / "factor").write_text("1")
    attack = ("attack", "lab.reads.net()", *ATTACK[2:], "--attack", "fgsm")
    train = ("train", "--model", "lab.reads.net()", *TINY)
    assert not found(*attack)
    assert found(*attack)
    assert not found(*train)
    assert found(*train)
    (run,) = lab.glob("runs/*/weights.safetensors")
    for factor in ("-1", "2"):
        (lab / "factor").write_text(factor)
        assert not found(*attack)
        for args in (train, ("analyze", str(run.parent), "--what", "accuracy")):
            with pytest.raises(SystemExit):
                found(*args)
            assert "gives other outputs than after its training" in capsys.readouterr().err
    (lab / "factor").write_text("1")
    assert found(*train)


DRAWS = """
import torch
from opnorm.data import Dataset, Split
def data(seed=None):
    generator = torch.Generator()
    generator.manual_seed(int(open("seed").read())) if seed is None else generator.seed()
    images = torch.randint(0, 256, (12, 1, 8, 8), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(12) % 2)
    return Dataset("drawn", split, split, ("a", "b"))
"""


def test_data_from_a_file_that_no_key_sees(found, lab, capsys):
    (lab / "lab" / "draws.py").write_text(DRAWS)
    (lab / "seed").write_text("1")
    train = (
        "train",
        "--model",
        "mlp(width=4)",
        "--data",
        "lab.draws.data()",
        *TINY[TINY.index("--epochs") :],
    )
    assert not found(*train)
    assert found(*train)
    (lab / "seed").write_text("2")
    with pytest.raises(SystemExit):
        found(*train)
    assert "gives other data than when run" in capsys.readouterr().err
    (lab / "seed").write_text("1")
    assert found(*train)
    each_time = [text.replace("data()", "data(seed='none')") for text in train]
    assert not found(*each_time)
    assert found(*each_time)


def test_networks_made_in_python(tmp_path):
    """Without a call: attributes, tensors that are no buffers, hooks, classes of the same text."""
    store, (x, y) = Store(tmp_path), points(20)

    class Net(torch.nn.Sequential):
        def __init__(self):
            super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, 10))
            self.settings, self.shift, self.sign = {"depth": 1}, torch.zeros(()), 1

        def forward(self, x):
            return self.sign * super().forward(x + self.shift)

    def folder(change=lambda net: None):
        torch.manual_seed(0)
        net = Net()
        change(net)
        return evaluate(net, x, y, fgsm(eps=0.1), store=store)

    first = folder()
    assert folder().found
    for change in (
        lambda net: setattr(net, "sign", -1),
        lambda net: setattr(net, "shift", torch.ones(())),
        lambda net: net.settings.update(depth=2),
        lambda net: net.register_forward_hook(lambda module, inputs, output: -output),
    ):
        assert not folder(change).found
    assert first.found == ""


def test_a_network_of_nan_gets_no_healthy_figures(tmp_path):
    store, (x, y) = Store(tmp_path), points(20)
    net = cnn((1, 8, 8), width=2)
    evaluate(net, x, y, fgsm(eps=0.1), store=store)
    net.register_forward_hook(lambda module, inputs, output: output * math.nan)
    with pytest.raises(opnorm.errors.OpnormError, match="NaN"):
        evaluate(net, x, y, fgsm(eps=0.1), store=store)


def test_a_run_in_the_store_means_the_same_from_anywhere(lab, monkeypatch):
    images(lab / "set", 3)
    run = Run("cnn(width=2)", 'folder("set")')
    assert json.loads(json.dumps(run.as_dict()))["data"] == f'folder(path="{lab}/set")'
    monkeypatch.chdir(os.path.dirname(lab))
    assert Run.from_dict(run.as_dict()).key == run.key


@pytest.mark.parametrize(
    ("kept", "now", "same"),
    [
        (None, [[1.0]], True),
        ([[1.0, 2.0]], None, True),
        ([[1.0, 1000.0]], [[1.5, 1000.0]], True),
        ([[1.0, 1000.0]], [[3.0, 1000.0]], False),
        ([[1.0, 2.0]], [[1.0], [2.0]], False),
        ([[None, 1.0]], [[math.nan, 1.0]], True),
        ([[None, 1.0]], [[0.0, 1.0]], False),
        ([[math.inf, 1.0]], [[math.inf, 1.0]], True),
        ([[math.inf, 1.0]], [[5.0, 1.0]], False),
        ([[0.0, 0.0]], [[1e-30, 0.0]], False),
        ([[]], [[]], True),
    ],
)
def test_outputs_are_the_same_up_to_rounding(kept, now, same):
    assert same_outputs(kept, now) == same
