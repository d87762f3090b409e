"""One of the processes of torchrun that train a run together; it says how far it is in files."""

import json
import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from opnorm._core import files
from opnorm._core.processes import start_with_parent
from opnorm.errors import OpnormError
from opnorm.runs.engines.process_group import EVENTS, OUTCOME, TASK
from opnorm.runs.engines.share import progress_of
from opnorm.runs.run import Run
from opnorm.runs.store import Store
from opnorm.runs.training_run import RunProgress, run_training
from opnorm.training import distributed

__all__ = ["main"]


def main(folder: Path) -> None:
    """Train what the folder's task says, and write what came out; an error of opnorm is no reason to start again."""
    # torchrun hands its own standard input on, which is closed when the study ends
    start_with_parent(Connection(os.dup(sys.stdin.fileno()), writable=False))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    task = files.read_json(folder / TASK)
    again = task["again"] and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    store = Store(task["root"], again=again, track=tuple(task["track"]))
    run, last = Run.from_dict(task["run"]), 0.0

    def progress(event: RunProgress) -> None:
        nonlocal last
        if time.monotonic() - last > 0.2:
            last = time.monotonic()
            done, text = progress_of(event)
            with (folder / EVENTS).open("a") as f:
                f.write(json.dumps({"done": done, "text": text}) + "\n")

    outcome = {"error": "", "text": ""}
    try:
        with distributed.process_group(task["device"]) as device:
            run_training(run, store, device=device, progress=progress)
    except OpnormError as e:
        outcome = {"error": type(e).__name__, "text": str(e)}
    if outcome["error"] or os.environ["RANK"] == "0":
        files.write_json(folder / OUTCOME.format(rank=os.environ["RANK"]), outcome)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
