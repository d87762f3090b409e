"""What the processes of a group do in the tests; they are started without torchrun, which takes seconds."""

import os

from tests.runs import processes


def start(count, target, *args):
    """``count`` processes at work on ``target(*args)`` with what torchrun puts into the environment."""
    port = processes.free_port()
    return [processes.start(_joined, rank, count, port, target, args) for rank in range(count)]


def end(group, seconds=60):
    """Their exit statuses."""
    for process in group:
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
    return [process.exitcode for process in group]


def _joined(rank, count, port, target, args):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    target(*args)


def said(path):
    """What the command itself wrote; torch's C++ adds remarks, which it silences where it is the one to load torch."""
    return [line for line in path.read_text().splitlines() if line.startswith("opnorm")]


def opnorm(args, cwd, out):
    """``opnorm ARGS``, its output in files that end with the rank."""
    rank = os.environ["RANK"]
    processes.command(args, cwd, f"{out}.out{rank}", f"{out}.err{rank}")


def trainings(folder, names):
    """Train in every way of test_parallel.py, one after the other, and save what comes out."""
    import torch

    from opnorm.training import distributed as parallel
    from tests.runs import ways

    with parallel.process_group("cpu"):
        for name in names:
            found = ways.trained(name)
            torch.save(found, f"{folder}/{name}.{parallel.rank()}")


def troubles(folder):
    """What goes wrong in one process goes wrong in both; what each raised is written down."""
    from opnorm.training import distributed as parallel
    from tests.runs import ways

    with parallel.process_group("cpu"):
        for name, trouble in ways.TROUBLES.items():
            try:
                trouble(parallel.rank())
            except Exception as e:  # noqa: BLE001 - that is what is looked at
                text = f"{type(e).__name__}: {e}"
            else:
                text = "nothing"
            with open(f"{folder}/{name}.{parallel.rank()}", "w") as file:
                file.write(text)
