"""Studies: factories of a list of runs with a report."""

from opnorm.studies._tour import tour

__all__ = ["tour"]
