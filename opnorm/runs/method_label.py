"""What tables call a way of training."""

from collections.abc import Mapping, Sequence
from typing import Any

from opnorm._core.settings import is_number

__all__ = ["label_of", "method_label"]


def method_label(objective: str, regularizers: Sequence[str], ema: float = 0.0) -> str:
    """What a table calls a way of training."""
    named = [] if objective == "plain()" else [objective]
    averaged = [f"ema={ema:g}"] if ema else []
    return " + ".join([*named, *regularizers, *averaged]) or "plain"


def label_of(about: Mapping[str, Any]) -> str:
    """What a table calls the way of training of a run.json, without importing what its calls name.

    It is recorded, as :attr:`opnorm.runs.run.Run.label` has it: without settings that equal their defaults.
    """
    if isinstance(recorded := about.get("label"), str):
        return recorded
    run = about.get("run")
    run = run if isinstance(run, dict) else {}
    texts, ema = run.get("regularizers"), run.get("ema")
    named = list(map(str, texts)) if isinstance(texts, list) else []
    return method_label(str(run.get("objective", "?")), named, ema if is_number(ema) else 0.0)
