"""Calls of the user's own code, by dotted names."""

import importlib
import sys
import textwrap

import pytest
import torch

from opnorm.errors import SpecError
from opnorm.spec import (
    build,
    calls_in,
    full,
    parse,
    short,
    spec_of,
    stated,
)

# ---------------------------------------------------------------- the user's own code

MINE = """
import functools
import os
from os import system
from opnorm.models import mlp
from opnorm.spec import factory

def net(width=2, classes=10):
    return mlp((1, 2, 2), classes, width, 1)

def pair(first, *rest, scale=1, **more):
    return Box(first, rest, scale, more)

def only(a, /, b=2):
    return Box(a, b)

class Box:
    def __init__(self, *args):
        self.args = args

tiny = functools.partial(net, 3)
number = 3

@factory("model")
def many(parts=(), flag=False):
    return Box(*parts)

def fails():
    raise KeyError("gone")

def _hidden():
    return 1
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    folder = tmp_path / "my_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "nets.py").write_text(MINE)
    (folder / "broken.py").write_text("import opnorm\n1 / 0\n")
    (folder / "leaves.py").write_text("raise SystemExit('usage: ...')\n")
    (folder / "needs.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [n for n in sys.modules if n.split(".")[0] == "my_package"]:
        del sys.modules[name]


@pytest.mark.usefixtures("mine")
def test_dotted_names():
    model = build("my_package.nets.net(width=3)", "model", classes=4)
    assert model(torch.rand(1, 1, 2, 2)).shape == (1, 4)
    assert build("my_package.nets.tiny()")[2].out_features == 3
    assert str(full("my_package.nets.net")) == "my_package.nets.net(width=2, classes=10)"
    assert str(spec_of(model)) == "my_package.nets.net(width=3, classes=4)"
    with pytest.raises(SpecError, match="unknown name 'many'"):
        build("many()")  # decorated, and still found by every process under its dotted name only
    assert str(spec_of(build("my_package.nets.many((1, 2))"))) == "my_package.nets.many((1, 2))"
    box = build("my_package.nets.Box(1, 'x')")
    assert box.args == (1, "x")
    assert str(spec_of(box)) == 'my_package.nets.Box(1, "x")'


@pytest.mark.usefixtures("mine")
def test_calls_inside_tuples_are_built_and_filled():
    call = parse("my_package.nets.many(parts=(pgd(steps=2), (plain(), 3), mlp(width=2, depth=1)))")
    box = build(call, in_shape=(1, 2, 2), classes=3)
    assert callable(box.args[0])
    assert callable(box.args[1][0])
    assert box.args[1][1] == 3
    assert box.args[2](torch.rand(1, 1, 2, 2)).shape == (1, 3)
    assert [c.name for c in calls_in(spec_of(box))][1:] == ["pgd", "plain", "mlp"]


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    "text",
    [
        "my_package.nets.pair(1, 2, 3, scale=4, x=5)",
        "my_package.nets.pair(1)",
        "my_package.nets.only(1)",
        "my_package.nets.only(1, b=3)",
        "my_package.nets.pair(1, pgd(), k=(pgd(steps=3),))",
    ],
)
def test_full_and_short_mean_the_same_call(text):
    want = build(text)
    for form in (full(text), stated(text), short(text)):
        got = build(str(form))
        assert [type(a) for a in got.args] == [type(a) for a in want.args]
        if "pgd" not in text:
            assert got.args == want.args
        assert full(form) == full(text)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("my_package.nets.ned()", r"my_package.nets has no function 'ned'; did you mean 'net'\?"),
        ("my_package.nets.number()", "is .*, which is no function"),
        ("my_package.nets._hidden()", "private"),
        ("my_package.nets.net(widht=1)", r"no parameter 'widht'; did you mean 'width'\?"),
        ("my_package.nets.fails()", r"my_package.nets.fails\(\) failed: KeyError: 'gone'"),
        ("my_package.broken.net()", "importing my_package.broken failed: ZeroDivisionError"),
        ("my_package.leaves.net()", "importing my_package.leaves failed: SystemExit: usage"),
        ("my_package.needs.net()", "no module named 'surely_not_installed'"),
        ("my_package.nothing.net()", "no module named 'my_package.nothing'"),
        ("my_package.nets.os.system('true')", "no module named 'my_package.nets.os'"),
        ("my_package.nets.system('true')", "standard library"),
        ("os.system('true')", "standard library"),
        ("subprocess.run('true')", "standard library"),
        ("builtins.eval('1')", "standard library"),
        ("importlib.import_module('antigravity')", "standard library"),
        ("antigravity.fly()", "standard library"),
        ("opnorm.runs.run.Path('x')", "standard library"),
        ("torch.add(1, 2)", "has no readable signature"),
        ("numpy.no_such_thing()", "has no function"),
    ],
)
def test_dotted_names_refused(text, message):
    with pytest.raises(SpecError, match=message):
        build(text)


@pytest.mark.usefixtures("mine")
def test_stdlib_is_refused_before_it_is_imported():
    sys.modules.pop("antigravity", None)
    with pytest.raises(SpecError):
        build("antigravity.fly()")
    assert "antigravity" not in sys.modules


def test_a_dotted_name_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "beside_me.py").write_text(textwrap.dedent("def make():\n    return {1}\n"))
    monkeypatch.chdir(tmp_path)
    assert build("beside_me.make()") == {1}


@pytest.mark.parametrize("text", ["changing.net()", "file('w.pt', arch=changing.net())"])
def test_a_default_of_the_users_function_that_changes(text, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for width in (2, 3):
        sys.modules.pop("changing", None)
        importlib.invalidate_caches()
        (tmp_path / "changing.py").write_text(f"def net(width={width}):  # {'-' * width}\n    return width\n")
        assert f"changing.net(width={width})" in str(full(text))


def test_equal_values_of_other_types_are_other_calls():
    assert str(stated("cnn(width=1)")) == "cnn(width=1)"
    assert str(stated("cnn(width=True)")) == "cnn(width=True)"
    assert stated("cnn(width=1.0)") == stated("cnn(width=1)")
