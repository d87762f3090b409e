"""Evaluations that may take long: in parts that are kept as they end, so that a stopped one goes on."""

import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opnorm import spec
from opnorm._core import files
from opnorm._core.fingerprint import add_tensor, of_network
from opnorm._core.modes import Mode, model_state_preserved
from opnorm.attacks._autoattack import AutoAttack
from opnorm.attacks._checks import check_inputs, check_logits, is_amount
from opnorm.attacks._pgd import Attack
from opnorm.attacks.gradient_masking import GradientMaskingReport, Indicator, check_gradient_masking
from opnorm.attacks.minimum_norm import gaps
from opnorm.attacks.result import AttackResult, StageResult, gradient_warnings
from opnorm.errors import AttackError, SpecError
from opnorm.runs.store import FORMAT, Store

__all__ = ["Evaluation", "EvaluationProgress", "evaluate", "save_points"]

TENSORS = ("points", "correct", "certified", "misclassified", "stage_index")  # of a result


class EvaluationProgress(NamedTuple):
    """Numbers of points during an evaluation.

    Attributes:
        activity: the attack that runs, or another step.
        settled: points of the present part whose result this attack has.
        attacked: points of the present part that it attacks.
        finished: points in finished parts.
        total: all points.
    """

    activity: str
    settled: int
    attacked: int
    finished: int
    total: int


@dataclass(frozen=True)
class Evaluation:
    """What an attack did to a model, and whether to believe it.

    Attributes:
        attack: the call; empty for the user's own object, which has none.
        norm: of the ball.
        eps: its radius.
        result: on every point.
        labels: (B,), the right classes.
        before: (B,), the model's class of each clean point.
        after: (B,), its class of each of ``result.points``.
        masking: the indicators of gradient masking.
        seconds: on the clock, of all sessions.
        folder: where it is kept, if it is.
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

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without what concerns single points."""
        v = self.result
        return {
            "attack": self.attack,
            "norm": f"{self.norm:g}",
            "eps": self.eps,
            "points": len(v.correct),
            "correct": int(v.correct.sum()),
            "robust": int(v.robust.sum()),
            "clean_accuracy": v.clean_accuracy,
            "robust_accuracy": v.robust_accuracy,
            "interval": list(v.interval),
            "certified_accuracy": v.certified_accuracy,
            "stages": [stage._asdict() for stage in v.stages],
            "gradient_masking": self.masking.as_dict(),
            "notes": list(v.notes),
            "seconds": self.seconds,
        }


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    store: Store | None = None,
    part: int = 256,
    surrogate: nn.Module | None = None,
    tell: Callable[[EvaluationProgress], None] | None = None,
) -> Evaluation:
    """Attack many points, part by part, and check for gradient masking.

    With a store, every part is kept the moment it ends, and the same call, even after a kill, goes on from there. The same
    call is one with the same attack, points and labels, and a model of the same text and weights: what else its code does
    cannot be seen from here.

    Args:
        model: gives logits (B, K); comes back as it was.
        x: (B, C, H, W) in [0, 1].
        y: labels (B,).
        attack: made by a factory of opnorm, or with attributes ``norm`` and ``eps``. It is asked only about points that
            the model gets right; with ``stop_at_success=True``, where it has that, it is faster and not weaker.
        store: where to keep it; nowhere when None. Needs an attack that was made by a call.
        part: points that are attacked, and kept, at a time.
        surrogate: another model for the same classes, to see whether its adversarial points do better.
        tell: told how far it has got.

    Raises:
        AttackError: a setting, an input or a model that makes no sense; a point of the attack that is outside of the ball.
        RunError: another process is at this evaluation, or nothing can be written.
    """
    norm, eps, mode = _terms(attack)
    _check(x, eps, norm, part)
    check_inputs(x, y)
    text = _text(attack)
    if store is None:
        return _carry_out(_Job(model, x, y, attack, text, norm, eps, mode, part, surrogate, tell, None))
    if not text:
        raise AttackError(
            "an evaluation is kept under the attack's call; expected an attack made by a factory"
        )
    # with every default, so that another version's defaults are not taken for these
    key = _key(model, x, y, str(spec.full(spec.spec_of(attack))), mode, part)
    with store.open(key) as entry:
        if not entry.finished:
            entry.begin({"attack": text, "model": type(model).__name__, "points": len(x)})
        done = _carry_out(
            _Job(model, x, y, attack, text, norm, eps, mode, part, surrogate, tell, entry.folder)
        )
        if not entry.finished:
            entry.finish(done.seconds)
    return replace(done, seconds=store.seconds(key), folder=store.folder(key))


def save_points(path: Path, evaluation: Evaluation) -> None:
    """Write the adversarial points as safetensors.

    The tensors: ``points``, ``labels``, ``correct``, ``misclassified``, ``stage_index`` (of the attack, -1 for none),
    ``before`` and ``after`` (classes). The metadata: ``attack`` and ``stages``.

    Raises:
        RunError: the file cannot be written.
    """
    v, e = evaluation.result, evaluation
    tensors = {
        "points": v.points,
        "labels": e.labels,
        "correct": v.correct,
        "misclassified": v.misclassified,
        "stage_index": v.stage_index,
    }
    metadata = {"attack": e.attack, "stages": json.dumps([stage.name for stage in v.stages])}
    files.write_tensors(path, tensors | {"before": e.before, "after": e.after}, metadata)


class _Job(NamedTuple):
    model: nn.Module
    x: Tensor
    y: Tensor
    attack: Attack
    text: str
    norm: float
    eps: float
    mode: Mode
    part: int
    surrogate: nn.Module | None
    tell: Callable[[EvaluationProgress], None] | None
    folder: Path | None


class _Part(NamedTuple):
    result: AttackResult
    before: Tensor
    after: Tensor
    seconds: float


def _carry_out(job: _Job) -> Evaluation:
    parts = []
    for at in range(0, len(job.x), job.part):
        path = None if job.folder is None else job.folder / f"part-{at:08d}.safetensors"
        found = None if path is None or not path.exists() else _read(path, job.x.device)
        if found is None:
            found = _attack(job, at)
            if path is not None:
                _write(path, found)
        parts.append(found)
    result = _merge([part.result for part in parts])
    begun = time.perf_counter()
    masking = _masking(job, result)
    return Evaluation(
        job.text, job.norm, job.eps, result, job.y,
        torch.cat([part.before for part in parts]), torch.cat([part.after for part in parts]), masking,
        sum(part.seconds for part in parts) + time.perf_counter() - begun,
    )  # fmt: skip


def _attack(job: _Job, at: int) -> _Part:
    x, y = job.x[at : at + job.part], job.y[at : at + job.part]
    begun, total = time.perf_counter(), len(job.x)

    def heard(what: str, settled: int, given: int) -> None:
        if job.tell is not None:
            job.tell(EvaluationProgress(what, settled, given, at, total))

    heard(job.text, 0, len(x))
    own = job.attack if isinstance(job.attack, AutoAttack) else None
    result = own.evaluate(job.model, x, y, progress=heard) if own else _judge(job, x, y)
    outside = gaps(x, result.points, job.norm) > job.eps * (1 + 1e-6)
    boxed = (result.points >= 0) & (result.points <= 1)  # also refuses NaN
    if outside.any() or not boxed.all():
        raise AttackError(
            f"{job.text or job.attack!r} gave points outside of its ball of radius {job.eps:.4g} in norm {job.norm:g}, "
            f"or of [0, 1]: {int((outside | ~boxed.flatten(1).all(1)).sum())} of {len(x)}"
        )
    with model_state_preserved(job.model, job.mode), torch.no_grad():
        before, after = job.model(x).argmax(1), job.model(result.points).argmax(1)
    return _Part(result, before, after, time.perf_counter() - begun)


def _judge(job: _Job, x: Tensor, y: Tensor) -> AttackResult:
    """What AutoAttack says of itself, for any attack: its warnings become notes."""
    with model_state_preserved(job.model, job.mode), torch.no_grad():
        logits = job.model(x)
        check_logits(logits, y)
    right, points = logits.argmax(1) == y, x.detach().clone()
    cpu, wall = time.process_time(), time.perf_counter()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if right.any():
            points[right] = job.attack(job.model, x[right], y[right])
    with model_state_preserved(job.model, job.mode), torch.no_grad():
        fooled = right & (job.model(points).argmax(1) != y)
    stage = StageResult(
        job.text or type(job.attack).__name__, 1, int(right.sum()), int(fooled.sum()),
        time.process_time() - cpu, time.perf_counter() - wall, 0, 0, {},
    )  # fmt: skip
    by = torch.where(fooled, 0, -1)
    return AttackResult(
        points, right, torch.zeros_like(right), fooled, by, (stage,), tuple(str(w.message) for w in said)
    )


def _merge(parts: Sequence[AttackResult]) -> AttackResult:
    """One result on the points of all parts: attacks run in one order, and a part may end before the last."""
    runs = [
        [part.stages[k] for part in parts if len(part.stages) > k]
        for k in range(max(len(p.stages) for p in parts))
    ]
    stages = tuple(_sum(run) for run in runs)
    notes = [note for part in parts for note in part.notes if note not in gradient_warnings(part.stages)]
    joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS}
    return AttackResult(
        **joined, stages=stages, notes=tuple(dict.fromkeys([*notes, *gradient_warnings(stages)]))
    )


def _sum(run: Sequence[StageResult]) -> StageResult:
    first, *_ = run
    totals = {
        k: sum(getattr(stage, k) for stage in run)
        for k in StageResult._fields
        if k not in ("name", "searches", "counts")
    }
    counts = {k: sum(stage.counts.get(k, 0) for stage in run) for k in first.counts}
    return first._replace(searches=max(stage.searches for stage in run), counts=counts, **totals)


def _masking(job: _Job, result: AttackResult) -> GradientMaskingReport:
    """Looked for, or found where it was written down."""
    suffix = "" if job.surrogate is None else "-" + of_network(job.surrogate).hexdigest()[:12]
    path = None if job.folder is None else job.folder / f"gradient_masking{suffix}.json"
    if path is not None and path.exists():
        return GradientMaskingReport(
            tuple(Indicator(**indicator) for indicator in files.read_json(path)["indicators"])
        )
    if job.tell is not None:
        job.tell(EvaluationProgress("gradient masking", 0, 1, len(job.x), len(job.x)))
    masking = check_gradient_masking(
        job.model, job.x, job.y, result, norm=job.norm, eps=job.eps, mode=job.mode, surrogate=job.surrogate,
        random=isinstance(job.attack, AutoAttack) and job.attack.version == "rand",
    )  # fmt: skip
    if path is not None:
        files.write_json(path, masking.as_dict())
    return masking


# ---------------------------------------------------------------- on the disk


def _write(path: Path, part: _Part) -> None:
    v = part.result
    tensors = {name: getattr(v, name) for name in TENSORS} | {"before": part.before, "after": part.after}
    rest = {"stages": [stage._asdict() for stage in v.stages], "notes": v.notes, "seconds": part.seconds}
    files.write_tensors(path, tensors, {"rest": files.to_json(rest, None)})


def _read(path: Path, device: torch.device) -> _Part:
    tensors, metadata = files.read_tensors(path)
    moved: dict[str, Any] = {k: v.to(device) for k, v in tensors.items()}
    before, after, rest = moved.pop("before"), moved.pop("after"), json.loads(metadata["rest"])
    stages = tuple(StageResult(**stage) for stage in rest["stages"])
    result = AttackResult(**moved, stages=stages, notes=tuple(rest["notes"]))
    return _Part(result, before, after, rest["seconds"])


def _key(model: nn.Module, x: Tensor, y: Tensor, text: str, mode: Mode, part: int) -> str:
    """Twelve hex digits that name an evaluation."""
    digest = of_network(model)
    modes = [m.training for m in model.modules()] if mode == "as is" else []
    digest.update(json.dumps([FORMAT, text, part, modes]).encode())
    for tensor in (x, y):
        add_tensor(digest, tensor)
    return str(digest.hexdigest()[:12])


# ---------------------------------------------------------------- what makes sense


def _text(attack: Attack) -> str:
    try:
        return str(spec.short(spec.spec_of(attack)))
    except SpecError:  # the user's own object: it can be used, but not be named
        return ""


def _terms(attack: Attack) -> tuple[float, float, Mode]:
    """Norm, radius and mode, which the attack says itself, or else the call that made it."""
    said: dict[str, Any] = {k: getattr(attack, k) for k in ("norm", "eps", "mode") if hasattr(attack, k)}
    if not {"norm", "eps"} <= said.keys():
        try:
            said |= dict(spec.full(spec.spec_of(attack)).kwargs)
        except SpecError:
            said = {}
    if not {"norm", "eps"} <= said.keys():
        raise AttackError(
            f"{attack!r:.60} does not say its norm and eps; expected a factory of opnorm, or attributes norm and eps"
        )
    return said["norm"], said["eps"], said.get("mode", "eval")


def _check(x: Tensor, eps: float, norm: float, part: int) -> None:
    if not is_amount(eps) or eps == 0:
        raise AttackError(f"eps={eps!r}: nothing would be attacked; expected a radius above 0, such as 8/255")
    if isinstance(part, bool) or not isinstance(part, int) or part < 1:
        raise AttackError(f"part={part!r}: expected a whole number of points, at least 1")
    if not len(x):
        raise AttackError("there are no points to attack; expected at least 1")
    size = x[0].numel()
    across = size ** (1 / norm) if norm < math.inf else 1.0
    if eps > across:
        raise AttackError(
            f"eps={eps:.6g} is larger than the whole box of images of {size} values, {across:.4g} across in norm {norm:g}; "
            f"did you mean {eps:g}/255?"
        )
