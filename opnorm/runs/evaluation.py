"""The result of an attack on many points, and its adversarial points in a file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from opnorm._core import files
from opnorm.attacks.gradient_masking import GradientMaskingReport
from opnorm.attacks.result import AttackResult

__all__ = ["Evaluation", "save_points"]


@dataclass(frozen=True)
class Evaluation:
    """The result of an attack on a model, and the indicators of gradient masking.

    Attributes:
        attack: the call; empty for the user's own object, which has none.
        norm: of the ball.
        eps: its radius.
        result: for every point.
        labels: (B,), the correct classes.
        before: (B,), the model's class of each clean point.
        after: (B,), its class of each of ``result.points``.
        masking: the indicators of gradient masking.
        seconds: wall-clock time of all sessions.
        folder: where it is stored, if it is.
        found: when it was made, if it had been made before; else empty.
    """

    attack: str
    norm: float
    eps: float
    result: AttackResult
    labels: Tensor
    before: Tensor
    after: Tensor
    masking: GradientMaskingReport
    seconds: float
    folder: Path | None = None
    found: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without those of single points."""
        r = self.result
        return {
            "attack": self.attack,
            "norm": f"{self.norm:g}",
            "eps": self.eps,
            "points": len(r.correct),
            "correct": int(r.correct.sum()),
            "robust": int(r.robust.sum()),
            "clean_accuracy": r.clean_accuracy,
            "robust_accuracy": r.robust_accuracy,
            "interval": list(r.interval),
            "certified_accuracy": r.certified_accuracy,
            "stages": [stage._asdict() for stage in r.stages],
            "gradient_masking": self.masking.as_dict(),
            "notes": list(r.notes),
            "seconds": self.seconds,
        }


def save_points(path: Path, evaluation: Evaluation) -> None:
    """Write the adversarial points as safetensors.

    The tensors: ``points``, ``labels``, ``correct``, ``misclassified``, ``stage_index`` (of the attack, -1 for none),
    ``before`` and ``after`` (classes). The metadata: ``attack`` and ``stages``. RunError when it cannot be written.
    """
    e = evaluation
    tensors = {"labels": e.labels, "before": e.before, "after": e.after}
    tensors |= {k: getattr(e.result, k) for k in ("points", "correct", "misclassified", "stage_index")}
    metadata = {"attack": e.attack, "stages": json.dumps([stage.name for stage in e.result.stages])}
    files.write_tensors(path, tensors, metadata)
