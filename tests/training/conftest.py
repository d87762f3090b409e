"""Processes of their own, as for the tests of runs."""

from tests.runs.conftest import _until, opnorm

__all__ = ["_until", "opnorm"]
