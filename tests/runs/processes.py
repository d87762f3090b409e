"""What the tests run in processes of their own, forked from a server that has torch loaded already."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path

import torch
from torch import nn

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    # torch._dynamo: processes that train together load it, which takes longer than all the rest here
    [
        "torch._dynamo",
        "opnorm.runs.run",
        "opnorm.runs.runner",
        "opnorm.cli",
        "opnorm.cli.progress",
        "opnorm.studies",
    ]
)


def start(target, *args):
    """A process at work on ``target(*args)``; kill() it, or join() it."""
    process = CONTEXT.Process(target=_calm, args=(target, args))
    process.start()
    return process


def _calm(target, args):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it, and its children would
    torch.set_num_threads(1)
    target(*args)


def command(args, cwd, out, err, encoding=None):
    """``opnorm ARGS`` in a folder, its output in two files or named pipes; ends with its exit status."""
    from opnorm.cli import main

    os.chdir(cwd)
    for path, fd in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    sys.stdout, sys.stderr = (open(fd, "w", closefd=False, encoding=encoding) for fd in (1, 2))  # noqa: SIM115
    try:
        main(args)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def command_with(environment, *args):
    """:func:`command` with further environment variables."""
    os.environ |= environment
    command(*args)


def command_in_session(*args):
    """:func:`command` in a session of its own, as a terminal would have it."""
    os.setsid()
    command(*args)


class Slow(nn.Module):
    """A network of images 1x4x4 that needs some time for a batch."""

    delay = 0.0  # of the class, so that it is no part of the network

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(16, 2)
        with torch.no_grad():
            self.last.weight.copy_(torch.linspace(-1, 1, 32).view(2, 16).sin())
            self.last.bias.zero_()

    def forward(self, x):
        time.sleep(Slow.delay)
        return self.last(x.flatten(1).tanh())


def analyze_slowly(root, call, data, delay=0.0):
    """The rows of an analysis of :class:`Slow`, kept in a store."""
    from opnorm.runs.network_report import analyze
    from opnorm.runs.store import Store

    Slow.delay = delay
    (result,) = analyze(Slow().eval(), data, [call], store=Store(root)).results
    return result.rows[call]


def train_run(run, root, diary=None, epochs_to_live=None):
    """Complete a run; the epoch under way goes into ``diary``, unbuffered.

    With ``epochs_to_live`` the process is killed when, after its first epoch, it has used that many times its CPU time.
    """
    from opnorm.runs.run import Run
    from opnorm.runs.store import Store
    from opnorm.runs.training_run import run_training

    fd = os.open(diary, os.O_WRONLY | os.O_CREAT) if diary else None
    begun = []  # (epoch, CPU time) of the first two epochs

    def note(event):
        if fd is not None and event.training:
            os.pwrite(fd, b"%06d" % event.training.epoch, 0)
        if epochs_to_live and event.training and len(begun) < 2:
            if not begun or begun[0][0] != event.training.epoch:
                begun.append((event.training.epoch, time.process_time()))
            if len(begun) == 2:  # SIGPROF ends the process at once, wherever it is
                signal.setitimer(signal.ITIMER_PROF, epochs_to_live * (begun[1][1] - begun[0][1]))

    run_training(Run.from_dict(run), Store(root), progress=note)


def die_at_write(run, root, n, diary):
    """Complete a run, but be killed just before the ``n``-th change of a name in the file system."""
    count, replace = 0, os.replace

    def deadly(function):
        def call(*args, **kwargs):
            nonlocal count
            count += not str(args[0]).endswith(".part") or function is replace
            if count == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in ("replace", "rename", "unlink", "mkdir"):
        setattr(os, name, deadly(getattr(os, name)))
    train_run(run, root, diary)


def full_disk(run, root, after_bytes, err):
    """Complete a run where no file can grow beyond ``after_bytes``; the error's text goes to a file."""
    import resource

    from opnorm.errors import OpnormError

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after_bytes, resource.RLIM_INFINITY))
    try:
        train_run(run, root)
    except OpnormError as e:
        Path(err).write_text(f"{type(e).__name__}: {e}")
        sys.exit(2)


def hold_lock(root, key, ready):
    """Hold the lock of a run until killed."""
    from opnorm.runs.store import Store

    with Store(root).open(key):
        Path(ready).touch()
        time.sleep(600)


def timeless(metrics):
    """The metrics without what no two runs share."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in metrics]


def children(pid: int) -> list[int]:
    """Processes below another, without those that wait for their parent to look at them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found += [int(stat.parent.name), *children(int(stat.parent.name))]
    return found


def alive(pids) -> list[int]:
    def state(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return "Z"

    return [pid for pid in pids if state(pid) != "Z"]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has just ended
        return ""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
