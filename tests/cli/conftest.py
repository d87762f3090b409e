"""The fixtures of runs, for the commands that work on them."""

from tests.runs.conftest import _until, finished, opnorm, same, seeds, store, tiny  # noqa: F401
