"""Which settings of a run are calls, and of which family."""

__all__ = ["KINDS"]

KINDS = {
    "model": "model",
    "data": "data set",
    "objective": "objective",
    "regularizers": "regularizer",
    "optimizer": "optimizer",
    "schedule": "schedule",
    "augment": "augmentation",
    "analyses": "analysis",
}
"""Setting -> family, a key of ``spec.FAMILIES``."""
