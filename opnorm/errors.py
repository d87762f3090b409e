"""What can go wrong for a user, as one family of exceptions.

Every message names the value, what was expected and the likely cause. The command line prints it as one
line and exits with status 2; in Python it is an ordinary exception.
"""

import difflib
from collections.abc import Callable, Iterable

__all__ = [
    "AttackError",
    "BoundError",
    "BusyError",
    "DataError",
    "ModelError",
    "NormError",
    "OpnormError",
    "RunError",
    "SpecError",
    "TrainError",
    "did_you_mean",
]


class OpnormError(Exception):
    """The base of all of opnorm's own errors."""


class SpecError(OpnormError):
    """A call such as ``pgd(eps=8/255)`` cannot be read, looked up or carried out."""


class DataError(OpnormError):
    """A data set is missing, damaged or not what was said."""


class ModelError(OpnormError):
    """A model cannot be built, loaded, or does not fit the data."""


class NormError(OpnormError):
    """A norm was asked for that is not defined or not known for this layer."""


class BoundError(NormError):
    """No bound is known for a value or a network; the message is the reason."""


class AttackError(OpnormError):
    """An attack was asked for that makes no sense for this model or these inputs."""


class TrainError(OpnormError):
    """Training cannot start or cannot go on."""


class RunError(OpnormError):
    """A run's folder cannot be used: locked, of another version, damaged, or on a full disk."""


class BusyError(RunError):
    """Another process is at this run."""


def did_you_mean(
    name: str, known: Iterable[str], otherwise: str = "", show: Callable[[str], str] = repr
) -> str:
    """The end of a message: ``"; did you mean 'cnn'?"`` for "cnnn", or ``otherwise`` where nothing known is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {show(close[0])}?" if close else otherwise
    return f"; {hint}" if hint else ""
