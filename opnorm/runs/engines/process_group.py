"""One run on several devices: torchrun's processes train it, and go on from the last epoch when one dies."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from opnorm._core import files
from opnorm.errors import BusyError, OpnormError, RunError, TrainError
from opnorm.runs.engines.share import Share
from opnorm.runs.run import Result, Run
from opnorm.runs.store import Store
from opnorm.runs.training_run import find_result

__all__ = ["EVENTS", "OUTCOME", "RESTARTS", "TASK", "train_in_group"]

RESTARTS = 3  # times that all processes of a run are started again after one has died
TASK, EVENTS, OUTCOME, LOG = "task.json", "events.jsonl", "outcome{rank}.json", "log.txt"
AGENT = "opnorm.runs.engines.group_agent"

ERRORS: dict[str, type[OpnormError]] = {"BusyError": BusyError, "TrainError": TrainError}


def train_in_group(run: Run, store: Store, share: Share, progress: Callable[[float, str], None]) -> Result:
    """Train and analyze a run in several processes of this machine.

    ``torchrun --standalone --nproc-per-node=N --max-restarts=3``: when a process dies, all are started again and go on from
    the last epoch.

    Args:
        run: the settings.
        store: where results are written and found.
        share: the number of processes, the threads of each, and the device of which each takes its own.
        progress: called with the share that is done and what the run does.

    Raises:
        BusyError, TrainError, RunError: as :func:`opnorm.runs.training_run.run_training`; RunError also where processes died
            more often than they are started again.
    """
    if found := find_result(run, store):
        return found
    with tempfile.TemporaryDirectory(prefix="opnorm-group-") as name:
        folder = Path(name)
        task: dict[str, Any] = {"run": run.as_dict(), "root": str(store.root), "device": share.device}
        task |= {"again": store.again, "track": store.track}
        files.write_json(folder / TASK, task)
        status = _carry_out(folder, share, progress)
        said = [folder / OUTCOME.format(rank=rank) for rank in range(share.processes)]
        outcome = next(
            (files.read_json(path) for path in said if path.exists()), {}
        )  # the main process's first
        if outcome.get("error"):
            raise ERRORS.get(outcome["error"], RunError)(outcome["text"])
        if status or not outcome:
            last = (folder / LOG).read_text(errors="replace").strip().splitlines()[-1:]
            raise RunError(
                f"a process that trained {run.key} has died {RESTARTS + 1} times: out of memory, or killed? "
                f"Finished epochs are kept, and the same command goes on; its last line: {' '.join(last)[:300]}"
            )
    result = find_result(run, Store(store.root))
    if result is None:
        raise RunError(f"the folder of run {run.key} in {store.root} has been removed while it was trained")
    return replace(result, found=False)


def _carry_out(folder: Path, share: Share, progress: Callable[[float, str], None]) -> int:
    """The exit status of torchrun, which ends with this process."""
    command = [
        sys.executable, "-m", AGENT, "--standalone", f"--nproc-per-node={share.processes}",
        f"--max-restarts={RESTARTS}", "--monitor-interval=0.2",
        "-m", "opnorm.runs.engines.group_process", str(folder),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": str(share.threads)}
    with (folder / LOG).open("wb") as log:
        agent = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        said = 0.0, ""
        try:
            while agent.poll() is None:
                if (event := _last_event(folder / EVENTS)) and (
                    now := (event["done"], event["text"])
                ) != said:
                    said = now
                    progress(*said)
                time.sleep(0.1)
        finally:
            assert agent.stdin is not None, "it was asked for"
            agent.stdin.close()  # ends the agent and its processes, should they be at work still
            agent.wait()
    return agent.returncode


def _last_event(path: Path) -> dict[str, Any] | None:
    """The last whole line of the events."""
    try:
        text = path.read_bytes()[-4096:]
    except OSError:
        return None
    lines = text[: text.rfind(b"\n") + 1].splitlines()
    return json.loads(lines[-1]) if lines else None
