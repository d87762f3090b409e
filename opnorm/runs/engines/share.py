"""What one run gets of a machine, and what is said of how far it is."""

from typing import TYPE_CHECKING, NamedTuple

from opnorm.errors import RunError

if TYPE_CHECKING:
    from opnorm.runs.training_run import RunProgress

__all__ = ["Share", "check_jobs", "check_share", "progress_of"]


class Share(NamedTuple):
    """A device, so many processes that train together, and so many threads of each; the bits depend on all three."""

    device: str = "cpu"
    processes: int = 1
    threads: int = 1


def check_jobs(jobs: int | None) -> None:
    """RunError for less than one process."""
    if jobs is not None and jobs < 1:
        raise RunError(f"jobs={jobs!r}: expected at least 1 process")


def check_share(cpus: float | None, gpus: float | None, processes: int) -> None:
    """RunError for amounts a run that make no sense."""
    for name, amount in (("cpus", cpus), ("gpus", gpus)):
        if amount is not None and not 0 < amount < float("inf"):
            raise RunError(f"{name}={amount!r}: expected a number above 0 for each run, such as 1 or 0.5")
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        raise RunError(f"gpus={gpus!r}: expected a whole number, or a part of one GPU such as 0.5")
    if processes < 1:
        raise RunError(f"processes={processes!r}: expected at least 1 process for each run")
    if gpus is not None and processes > 1 and gpus != processes:
        raise RunError(
            f"processes={processes} with gpus={gpus:g}: expected one process for each GPU of a run"
        )


def progress_of(event: "RunProgress") -> tuple[float, str]:
    """The share of the training that is done, 0 to 1, and what the run does, in a few words."""
    if at := event.training:
        done = (at.epoch - 1 + at.step / at.steps) / max(at.epochs, 1)
        return done, f"epoch {at.epoch}/{at.epochs}, loss {at.loss:.3f}, {at.accuracy:.1%}"
    return 1.0, event.activity.partition("(")[0]
