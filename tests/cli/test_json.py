"""Every command has ``--json``, and prints nothing else on standard output then; colors are for terminals that want them."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from typing import get_type_hints

import pytest

from opnorm.cli.commands import COMMANDS
from tests.cli.test_cli import in_terminal

USES = {
    "norms": "norms KEY --ord 1",
    "train": "train --model mlp(width=2) --epochs 1 --limit 20 --analyses accuracy",
    "attack": "attack KEY --attack fgsm --eps 0.1 --limit 10",
    "analyze": "analyze KEY --what accuracy",
    "compare": "compare a=KEY b=KEY --what accuracy",
    "study": "study --list",
    "show": "show KEY",
    "export": "export KEY --to made",
    "push": "push KEY --repo me/network",
    "rm": "rm KEY --yes",
}
"""A use that prints something; of the other commands, the name alone."""


@pytest.fixture
def key(tiny, finished, tmp_path, monkeypatch):
    """The key of a finished run of the user's folder; nothing leaves this machine."""
    shutil.copytree(finished(tiny).root, tmp_path / "runs")
    monkeypatch.setattr("opnorm.runs.export.push", lambda folder, repo, private: f"https://hub/{repo}")
    return tiny.key


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.__name__)
def test_every_command_prints_nothing_but_json(main, key, command):
    name = command.__name__
    before = main(*USES.get(name, name).replace("KEY", key).split()) if name in ("export", "push") else None
    status, out, err = main(*USES.get(name, name).replace("KEY", key).split(), "--json")
    assert status == 0, err
    assert json.loads(out)
    assert "\x1b" not in out + err
    if before is not None:
        assert before[1] != out, "the text of a person is another one"


def test_json_is_an_option_of_every_command():
    for command in COMMANDS.values():
        hints = get_type_hints(command)
        kinds = [hints[name] for name in inspect.signature(command).parameters]
        assert any("json" in getattr(kind, "__dataclass_fields__", ()) for kind in kinds) or "json" in hints


def test_no_colors_where_the_user_wants_none(tmp_path):
    color = r"\x1b\[[\d;]*[39]\d[\d;]*m"
    assert re.search(color, in_terminal(["ls", "--help"], tmp_path)[1])
    assert not re.search(color, in_terminal(["ls", "--help"], tmp_path, no_color="1")[1])
    status, table = in_terminal(["norms", "mlp(width=2)", "--ord", "1"], tmp_path, no_color="1")
    assert (status, "Linear" in table) == (0, True)
    assert not re.search(color, table)


# ---------------------------------------------------------------- completion

COMPLETE = """
source completion
try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _tyro_opnorm; echo "${COMPREPLY[*]}"; }
try opnorm no
try opnorm norms mlp --ord 1 --mark
try opnorm train --precision b
complete -p opnorm
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
def test_tab_completes_commands_options_and_choices(main, tmp_path):
    status, script, err = main("--print-completion", "bash")
    assert (status, err) == (0, "")
    (tmp_path / "completion").write_text(script)
    done = subprocess.run(
        ["bash", "-c", COMPLETE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"},
    )
    assert done.stdout.splitlines() == ["norms", "--markdown", "bf16", "complete -F _tyro_opnorm opnorm"]


def test_the_completion_of_zsh(main):
    status, script, _ = main("--print-completion=zsh")
    assert status == 0
    assert script.startswith("#compdef opnorm")
    assert "separation" in script
