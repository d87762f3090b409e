"""Loading torch for a command."""

import subprocess
import sys

CHECK = """
import gc
from opnorm.cli.torch_loading import load_torch
{before}
load_torch()
import torch
print(torch.collecting, gc.isenabled(), gc.get_freeze_count() > 1000)
frozen = gc.get_freeze_count()
load_torch()
print(gc.get_freeze_count() - frozen)
"""


def loaded(folder, before=""):
    """What it prints where a small module of the name stands in torch's place."""
    (folder / "torch.py").write_text(
        "import gc\ncollecting = gc.isenabled()\nkept = [[] for _ in range(2000)]\n"
    )
    code = f"import sys; sys.path.insert(0, {str(folder)!r})" + CHECK.format(before=before)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()


def test_the_garbage_collector_leaves_torch_out(tmp_path):
    assert loaded(tmp_path) == ["False", "True", "True", "0"]


def test_a_collector_that_is_switched_off_stays_so(tmp_path):
    assert loaded(tmp_path, "gc.disable()") == ["False", "False", "False", "0"]
