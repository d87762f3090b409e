"""The result of an attack on many points, and its adversarial points in a file."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opnorm._core import files
from opnorm.attacks.gradient_masking import GradientMaskingReport
from opnorm.attacks.result import AttackResult
from opnorm.errors import RunError

__all__ = ["Evaluation", "SavedPoints", "load_points", "save_points"]


@dataclass(frozen=True)
class Evaluation:
    """The result of an attack on a model, and the indicators of gradient masking.

    Attributes:
        attack: the call; empty for the user's own object, which has none.
        norm: of the ball.
        eps: its radius.
        result: for every point.
        clean: (B, C, H, W), the points before the attack.
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
    clean: Tensor
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


@dataclass(frozen=True)
class SavedPoints:
    """The points of an evaluation, as :func:`load_points` reads them.

    Attributes:
        points: (B, C, H, W) in [0, 1], adversarial where one was found, otherwise clean.
        clean: (B, C, H, W), before the attack.
        index: (B,), of the point among the test points of the data set.
        labels: (B,), the correct classes.
        before: (B,), the model's class of the clean point.
        after: (B,), its class of the point.
        correct: (B,), the clean point is classified correctly.
        misclassified: (B,), correct, and misclassified at ``points``.
        stage_index: (B,), which of ``stages`` made it misclassified; -1 for none.
        attack: the call.
        stages: the names of the attacks that ran.
    """

    points: Tensor
    clean: Tensor
    index: Tensor
    labels: Tensor
    before: Tensor
    after: Tensor
    correct: Tensor
    misclassified: Tensor
    stage_index: Tensor
    attack: str
    stages: tuple[str, ...]


def save_points(path: str | Path, evaluation: Evaluation, index: Tensor | None = None) -> None:
    """Write the adversarial points with what belongs to them as safetensors, for :func:`load_points`.

    Args:
        path: of the file.
        evaluation: of the points.
        index: (B,), of each point in its data set; 0, 1, ... when None.

    Raises:
        RunError: it cannot be written.
    """
    e = evaluation
    index = torch.arange(len(e.labels)) if index is None else index
    tensors = {"clean": e.clean, "index": index, "labels": e.labels, "before": e.before, "after": e.after}
    tensors |= {k: getattr(e.result, k) for k in ("points", "correct", "misclassified", "stage_index")}
    metadata = {"attack": e.attack, "stages": json.dumps([stage.name for stage in e.result.stages])}
    files.write_tensors(Path(path), tensors, metadata)


def load_points(path: str | Path) -> SavedPoints:
    """Read what :func:`save_points`, or ``opnorm attack --save``, wrote.

    Raises:
        RunError: it cannot be read, has changed since it was written, or is no such file.
    """
    tensors, metadata = files.read_tensors(Path(path), checked=True)
    missing = [f.name for f in fields(SavedPoints) if f.name not in {*tensors, *metadata}]
    if missing:
        raise RunError(f"{path} has no {', '.join(missing)}; expected a file that opnorm attack --save wrote")
    saved = SavedPoints(**tensors, attack=metadata["attack"], stages=tuple(json.loads(metadata["stages"])))
    outside = ~((saved.points >= 0) & (saved.points <= 1)).flatten(1).all(1)
    if outside.any():
        raise RunError(
            f"{path} has {int(outside.sum())} points outside of [0, 1], the first at {int(outside.nonzero()[0])}"
        )
    return saved
