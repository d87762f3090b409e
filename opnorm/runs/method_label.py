"""What tables call a way of training."""

from collections.abc import Sequence

__all__ = ["method_label"]


def method_label(objective: str, regularizers: Sequence[str], ema: float = 0.0) -> str:
    """What a table calls a way of training."""
    named = [] if objective == "plain()" else [objective]
    averaged = [f"ema={ema:g}"] if ema else []
    return " + ".join([*named, *regularizers, *averaged]) or "plain"
