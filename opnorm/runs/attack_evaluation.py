"""Attacks on many points, part by part: each part is stored when it ends, and a stopped evaluation resumes."""

import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opnorm import spec
from opnorm._core import files
from opnorm._core.argument_checks import check_module
from opnorm._core.attack_settings import is_amount
from opnorm._core.memory import freed_memory_kept
from opnorm._core.modes import Mode, in_default_modes, model_state_preserved
from opnorm._core.outputs import output_of
from opnorm._core.tensor_hash import add_tensor
from opnorm.attacks._autoattack import AutoAttack
from opnorm.attacks._checks import check_classes, check_inputs, check_logits
from opnorm.attacks._pgd import Attack
from opnorm.attacks.gradient_masking import (
    GradientMaskingReport,
    Indicator,
    check_gradient_masking,
    check_transfer,
)
from opnorm.attacks.minimum_norm import distances
from opnorm.attacks.result import AttackResult, StageResult, attack_call, join_results
from opnorm.errors import AttackError, RunError, SpecError
from opnorm.runs.evaluation import Evaluation
from opnorm.runs.identity import hash_of, identity
from opnorm.runs.network_identity import network_identity, outputs
from opnorm.runs.store import FORMAT, Store

__all__ = ["EvaluationProgress", "evaluate"]

TENSORS = ("points", "correct", "certified", "misclassified", "stage_index")  # of an AttackResult


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


@freed_memory_kept()
@in_default_modes
def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    store: Store | None = None,
    part: int = 256,
    surrogate: nn.Module | None = None,
    progress: Callable[[EvaluationProgress], None] | None = None,
) -> Evaluation:
    """Attack many points, part by part, and check for gradient masking.

    With a store, every part is written when it ends, and the same call resumes there, also after a kill. The same call
    has the same attack, points, labels, weights, arguments of the model, source of the user's modules in both, and version
    of opnorm; and the model gives the same outputs on fixed inputs.

    Args:
        model: gives logits (B, K); its state is preserved.
        x: (B, ...) in [0, 1].
        y: labels (B,).
        attack: made by a factory of opnorm, or with attributes ``norm`` and ``eps``. It gets the correct points only;
            with ``stop_at_success=True``, where it has that, it is faster and not weaker.
        store: for the results; needs an attack that was made by a call.
        part: points of a part.
        surrogate: another model for the same classes, for :func:`opnorm.attacks.gradient_masking.check_transfer`.
        progress: called with the numbers of points.

    Raises:
        AttackError: a setting, an input or a model is not valid, or the attack returns points outside of the ball.
        BusyError: another process runs this evaluation.
        RunError: nothing can be written. What is damaged of an earlier call is made again, with a warning.
    """
    norm, eps, mode = _terms(attack)
    check_module(model)
    check_inputs(x, y)
    _check(x, eps, norm, part)
    with model_state_preserved(model), torch.no_grad():
        logits = output_of(model, x[:1])  # what it does not take is an error before anything runs
        check_classes(logits, 1)
        check_logits(logits.expand(len(y), -1), y)
    work = _Work(model, x, y, attack, attack_call(attack), norm, eps, mode, part, progress)
    if store is None:
        return _evaluate(work, None, surrogate)
    if not work.text:
        raise AttackError(
            "an evaluation is stored under the attack's call; expected an attack made by a factory"
        )
    return _find_or_evaluate(work, store, surrogate)


@dataclass(frozen=True)
class _Work:
    """The arguments of :func:`evaluate`, and the attack's call, norm, radius and mode."""

    model: nn.Module
    x: Tensor
    y: Tensor
    attack: Attack
    text: str
    norm: float
    eps: float
    mode: Mode
    part: int
    progress: Callable[[EvaluationProgress], None] | None

    def logits(self, x: Tensor) -> Tensor:
        """Of the model itself, in its mode (B, K)."""
        with model_state_preserved(self.model, self.mode), torch.no_grad():
            return output_of(self.model, x)

    def report(self, activity: str, settled: int, attacked: int, finished: int) -> None:
        """Call ``progress``."""
        if self.progress is not None:
            self.progress(EvaluationProgress(activity, settled, attacked, finished, len(self.x)))


class _Part(NamedTuple):
    """The result of a part as it is stored: the tensors have one entry a point."""

    tensors: dict[str, Tensor]
    stages: tuple[StageResult, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def result(self) -> AttackResult:
        """Of its points."""
        return AttackResult(
            **{name: self.tensors[name] for name in TENSORS}, stages=self.stages, notes=self.notes
        )


def _find_or_evaluate(work: _Work, store: Store, surrogate: nn.Module | None) -> Evaluation:
    with store.open(_key(work), outputs=outputs(work.model, work.x.shape[1:])) as entry:
        found = entry.finished
        if not found:
            entry.begin({"attack": work.text, "model": type(work.model).__name__, "points": len(work.x)})
        evaluation = _evaluate(work, entry.folder, surrogate)
        if not found:
            robust, correct = (
                int(share.sum()) for share in (evaluation.result.robust, evaluation.result.correct)
            )
            entry.note(robust=robust, correct=correct)
            entry.finish(evaluation.seconds)
    about = store.about(entry.key)
    ended = about["ended"] if found else ""
    return replace(evaluation, seconds=about["seconds"], folder=entry.folder, found=ended)


def _evaluate(work: _Work, folder: Path | None, surrogate: nn.Module | None) -> Evaluation:
    parts = []
    for start in range(0, len(work.x), work.part):
        path = None if folder is None else folder / f"part-{start:08d}.safetensors"
        found = _found(path, _read, work, start)
        parts.append(found or _attack_part(work, start))
        if path is not None and found is None:
            rest = parts[-1]._asdict() | {"stages": [stage._asdict() for stage in parts[-1].stages]}
            files.write_tensors(path, rest.pop("tensors"), {"rest": files.to_json(rest, None)})
    result = join_results([part.result for part in parts])
    before, after = (torch.cat([part.tensors[name] for part in parts]) for name in ("before", "after"))
    started = time.perf_counter()
    masking = _check_masking(work, result, folder, surrogate)
    seconds = sum(part.seconds for part in parts) + time.perf_counter() - started
    return Evaluation(work.text, work.norm, work.eps, result, work.x, work.y, before, after, masking, seconds)


def _found(path: Path | None, read: Callable[..., Any], *more: Any) -> Any:
    """What was written before; None, with a warning, where it is damaged, and without one where there is nothing."""
    if path is None or not path.exists():
        return None
    try:
        return read(path, *more)
    except RunError as e:
        warnings.warn(f"{e}. It is made again", stacklevel=2)
        return None


def _read(path: Path, work: _Work, start: int) -> _Part:
    tensors, metadata = files.read_tensors(path, checked=True)
    clean = work.x[start : start + work.part]
    moved = {name: tensor.to(clean.device) for name, tensor in tensors.items()}
    if _outside(work, clean, moved["points"]).any():
        raise RunError(f"{path} has points outside of the ball or of [0, 1]")
    rest = json.loads(metadata["rest"])
    stages = tuple(StageResult(**stage) for stage in rest["stages"])
    return _Part(moved, stages, tuple(rest["notes"]), rest["seconds"])


def _outside(work: _Work, x: Tensor, points: Tensor) -> Tensor:
    """Which points are outside of their ball or of [0, 1], or NaN (B,)."""
    within = ((points >= 0) & (points <= 1)).flatten(1).all(1)
    return (distances(x, points, work.norm) > work.eps * (1 + 1e-6)) | ~within


def _attack_part(work: _Work, start: int) -> _Part:
    x, y = work.x[start : start + work.part], work.y[start : start + work.part]
    started = time.perf_counter()
    work.report(work.text, 0, len(x), start)
    if isinstance(work.attack, AutoAttack):
        result = work.attack.evaluate(
            work.model, x, y, progress=lambda name, settled, of: work.report(name, settled, of, start)
        )
    else:
        result = _attack_once(work, x, y)
    outside = _outside(work, x, result.points)
    if outside.any():
        raise AttackError(
            f"{work.text or work.attack!r} gave points outside of its ball of radius {work.eps:.4g} in norm {work.norm:g}, "
            f"or of [0, 1]: {int(outside.sum())} of {len(x)}"
        )
    tensors = {name: getattr(result, name) for name in TENSORS}
    tensors |= {"before": work.logits(x).argmax(1), "after": work.logits(result.points).argmax(1)}
    return _Part(tensors, result.stages, result.notes, time.perf_counter() - started)


def _attack_once(work: _Work, x: Tensor, y: Tensor) -> AttackResult:
    """The record that AutoAttack makes itself, for any other attack; its warnings become notes."""
    logits = work.logits(x)
    check_logits(logits, y)
    correct, points = logits.argmax(1) == y, x.detach().clone()
    cpu, wall = time.process_time(), time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if correct.any():
            points[correct] = work.attack(work.model, x[correct], y[correct])
    misclassified = correct & (work.logits(points).argmax(1) != y)
    stage = StageResult(
        work.text or type(work.attack).__name__, 1, int(correct.sum()), int(misclassified.sum()),
        time.process_time() - cpu, time.perf_counter() - wall, 0, 0, {},
    )  # fmt: skip
    index, notes = torch.where(misclassified, 0, -1), tuple(str(w.message) for w in caught)
    return AttackResult(points, correct, torch.zeros_like(correct), misclassified, index, (stage,), notes)


def _check_masking(
    work: _Work, result: AttackResult, folder: Path | None, surrogate: nn.Module | None
) -> GradientMaskingReport:
    """The indicators, read where they are stored."""
    suffix = "" if surrogate is None else "-" + network_identity(surrogate)
    path = None if folder is None else folder / f"gradient_masking{suffix}.json"
    if found := _found(path, files.read_json, True):
        return GradientMaskingReport(tuple(Indicator(**indicator) for indicator in found["indicators"]))
    work.report("gradient masking", 0, 1, len(work.x))
    random = isinstance(work.attack, AutoAttack) and work.attack.version == "rand"
    ball: dict[str, Any] = {"norm": work.norm, "eps": work.eps, "mode": work.mode}
    report = check_gradient_masking(work.model, work.x, work.y, result, random=random, **ball)
    if surrogate is not None:
        transfer = check_transfer(work.model, surrogate, work.x, work.y, result, **ball)
        report = GradientMaskingReport((*report.indicators, *([transfer] if transfer else [])))
    if path is not None:
        files.write_json(path, report.as_dict(), checked=True)
    return report


def _key(work: _Work) -> str:
    """Names an evaluation: a hash of all that it depends on."""
    attack = identity(spec.full(spec.spec_of(work.attack)))
    modes = [m.training for m in work.model.modules()] if work.mode == "as is" else []
    points = hashlib.sha256()
    for tensor in (work.x, work.y):
        add_tensor(points, tensor)
    return hash_of(FORMAT, network_identity(work.model), attack, work.part, modes, points.hexdigest())


# ---------------------------------------------------------------- settings


def _terms(attack: Attack) -> tuple[float, float, Mode]:
    """Norm, radius and mode: attributes of the attack, or arguments of the call that made it."""
    known: dict[str, Any] = {k: getattr(attack, k) for k in ("norm", "eps", "mode") if hasattr(attack, k)}
    if not {"norm", "eps"} <= known.keys():
        try:
            known |= dict(spec.full(spec.spec_of(attack)).kwargs)
        except SpecError:
            known = {}
    if missing := [name for name in ("norm", "eps") if name not in known]:
        raise AttackError(
            f"{_name_of(attack)} does not say its {' and '.join(missing)}; expected parameters norm and eps of the function "
            "that makes the attack, such as def my_attack(eps=0.1, norm=math.inf), or attributes of the attack"
        )
    return known["norm"], known["eps"], known.get("mode", "eval")


def _name_of(attack: Attack) -> str:
    with suppress(SpecError):
        return str(spec.spec_of(attack))
    return f"{attack!r:.60}"


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
