"""Processes of their own, as for the tests of runs."""

from tests.runs.conftest import _until, finished, opnorm, store, tiny

__all__ = ["_until", "finished", "opnorm", "store", "tiny"]
