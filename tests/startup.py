"""Commands in a process that must not load torch, nor another large package."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CODE = """
import contextlib, io, json, sys
from opnorm.cli import main

heavy = {"torch", "numpy", "scipy", "pyarrow", "altair", "jinja2", "vl_convert", "PIL", "safetensors"}
found = []
for args in json.load(sys.stdin):
    status, out = 0, io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        try:
            main(args)
        except SystemExit as e:
            status = e.code or 0
    found.append((status, out.getvalue(), sorted(heavy & set(sys.modules))))
    if found[-1][2]:
        break
print(json.dumps(found))
"""


def without_torch(commands: Sequence[Sequence[str]], folder: Path) -> list[tuple[int, str]]:
    """The exit status and the output of each command, all in one process; none may load anything large."""
    given = json.dumps([list(args) for args in commands])
    done = subprocess.run(
        [sys.executable, "-c", CODE], input=given, cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for args, (_, _, loaded) in zip(commands, found, strict=False):
        assert loaded == [], args
    return [(status, out) for status, out, _ in found]
