"""AutoAttack: several attacks of different kinds, each on the points that are robust to those before it."""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from opnorm._core.attack_settings import STANDARD, VERSIONS, check_autoattack, check_settings
from opnorm._core.modes import Mode, in_default_modes, model_state_preserved
from opnorm._core.outputs import output_of
from opnorm._core.surrogate import evaluation_surrogate
from opnorm.attacks._apgd import apgd_search
from opnorm.attacks._batching import Options, Problem, Searches, SearchResult, run_searches
from opnorm.attacks._checks import check_inputs, check_logits, logits_notes
from opnorm.attacks._fab import FAB
from opnorm.attacks._randomized import MeanProbabilities, is_random, seed_global
from opnorm.attacks._rows import where
from opnorm.attacks._square import FULL, Square
from opnorm.attacks.losses import wide
from opnorm.attacks.result import AttackResult, StageResult, gradient_warnings
from opnorm.errors import AttackError
from opnorm.spec import factory

__all__ = ["AutoAttack", "Certificate", "autoattack"]


GRADIENT_PASSES, VERDICT_PASSES = 20, 100  # of a randomized model
BATCH, SMALL_INPUTS = 128, 2**16  # points at once, or numbers in their inputs
RANDOM = (
    'two passes over the same points differ: the model is random; only version="rand" averages over passes'
)

Progress = Callable[[str, int, int], None]


@runtime_checkable
class Certificate(Protocol):
    """(model, x, y, eps, norm) -> (B,) bool: the points whose prediction provably no attack can change."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: float) -> Tensor:
        """The points for which it is proved."""


@factory("attack")
def autoattack(
    norm: float = math.inf,
    eps: float = 8 / 255,
    *,
    version: str = "standard",
    attacks: tuple[str, ...] | None = None,
    certify: Certificate | None = None,
    batch: int | None = None,
    mode: Mode = "eval",
    seed: int = 0,
    bf16: bool | None = None,
    patience: float | None = None,
    restarts: int | None = None,
) -> "AutoAttack":
    """AutoAttack: points that are robust to APGD-CE go to APGD-T, then to FAB-T, then to Square.

    - "standard", as published: APGD-CE from one random start, APGD-T (targeted DLR, 9 targets), FAB-T (9 targets), Square
      (5,000 queries, its schedule not rescaled), all in the model's own precision (convolutions in float32 on a CPU: on a
      faster copy, the same up to rounding), each search to its last step. For ℓ1: 5 restarts of APGD-CE, 5 targets.
    - "plus", as published: APGD-CE and APGD-DLR (5 restarts each), APGD-T, FAB-T, Square, FAB (5 restarts).
    - "rand", for models that draw random numbers: APGD-CE and APGD-DLR, whose gradients are those of the mean of the
      class probabilities over 20 passes; the mean over 100 other passes decides whether a point is misclassified.
    - "fast", not published: the attacks of "standard" with ``patience=3``, ``bf16=True``, 3 random starts of APGD-CE and
      the schedule of Square rescaled to its queries, at a fraction of the cost.

    All with 100 steps. Each APGD begins on the last points of the one before, except after the first attack if there is a
    certificate. A misclassified point is not attacked further, neither is a misclassified clean point. Robust points are
    returned as they are.

    Settings beside those of :mod:`opnorm.attacks`; the last three are the version's own when None:

    - ``attacks``: only these of the version's, such as ``("apgd-ce", "apgd-t")``; all when None.
    - ``certify``: removes points that are robust to the first attack and that it proves robust; the true robust accuracy
      is between the share of certified points and that of robust ones.
    - ``batch``: points that the model evaluates at once; when None, 128, and up to 512 of inputs of fewer than 512 numbers.
    - ``bf16``: search on a bfloat16 copy where the hardware has bfloat16 and the copy agrees with the model; only the model
      decides whether a point is misclassified. Not for float64 models.
    - ``patience``: how unlikely a success must be for a job (a point, a target, a restart) to end before its last step: it
      ends if it would not succeed even with so many times the progress that is extrapolated: for APGD its Frank-Wolfe gap,
      for FAB and Square the progress of the last doubling of the steps, for each doubling that is left. Square also ends if
      that progress itself would not reach the margin of the attacks before. inf runs every job to its last step. ℓ1 APGD
      always does.
    - ``restarts``: random starts of APGD-CE and APGD-DLR.

    Returns:
        An :class:`AutoAttack`; its ``evaluate`` returns more than the points.

    Raises:
        AttackError: an invalid setting or input.

    Source: Croce & Hein 2020 (ICML); ℓ1: Croce & Hein 2021.
    """
    check_autoattack(
        norm=norm, eps=eps, version=version, attacks=attacks, certify=certify, batch=batch, mode=mode, seed=seed,
        patience=patience, restarts=restarts,
    )  # fmt: skip
    return AutoAttack(norm, eps, version, attacks, certify, batch, mode, seed, bf16, patience, restarts)


@dataclass(frozen=True, eq=False)
class AutoAttack:
    """The attack that :func:`autoattack` describes.

    Raises:
        AttackError: an invalid setting.
    """

    norm: float = math.inf
    eps: float = 8 / 255
    version: str = "standard"
    attacks: tuple[str, ...] | None = None
    certify: Certificate | None = None
    batch: int | None = None
    mode: Mode = "eval"
    seed: int = 0
    bf16: bool | None = None
    patience: float | None = None
    restarts: int | None = None

    def __post_init__(self) -> None:
        check_autoattack(**vars(self))

    @property
    def names(self) -> tuple[str, ...]:
        """The attacks that run, in their order."""
        return tuple(dict.fromkeys(self._choice("attacks")))

    def _choice(self, name: str) -> Any:
        """A setting, or that of the version where it is None."""
        own = getattr(self, name)
        return getattr(VERSIONS[self.version], name) if own is None else own

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int | None = None) -> Tensor:
        """The points of :meth:`evaluate`; each of its notes is a warning."""
        result = self.evaluate(model, x, y, seed=seed)
        for note in result.notes:
            warnings.warn(note, stacklevel=2)
        return result.points

    @in_default_modes
    def evaluate(
        self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int | None = None, progress: Progress | None = None
    ) -> AttackResult:  # fmt: skip
        """Attack every point, and return the verdicts and the work of each attack.

        Points do not depend on each other, so a long evaluation may be cut into parts of any size. ``progress`` is called
        with (attack, points settled, points attacked) again and again; ``seed`` replaces the attack's own.

        Raises:
            AttackError: an invalid input or output of the model.
        """
        return self._evaluate(model, x, y, [self.eps], seed, progress)

    @in_default_modes
    def robust_at(
        self, model: nn.Module, x: Tensor, y: Tensor, radii: Sequence[float], *, seed: int | None = None
    ) -> Tensor:
        """Which points are robust at each of several radii, the largest first, all in one batch.

        A point that is robust at one radius counts as robust at every smaller one, and is not attacked there. ``eps`` is
        not used. Every note is a warning.

        Returns:
            (radii, B), in the order of ``radii``: whether the point is classified correctly and robust.

        Raises:
            AttackError: no radius, attacks that do not share a batch, an invalid input or output of the model.
        """
        if not isinstance(radii, Sequence) or not radii or len(self._rounds()) > 1:
            raise AttackError(
                f"radii={radii!r}, attacks={self.names}: expected at least one radius, "
                "and attacks that share a batch: apgd-ce, apgd-dlr, apgd-t, without certify"
            )
        for eps in radii:
            check_settings(norm=self.norm, eps=eps)
        distinct = sorted({eps for eps in radii if eps > 0}, reverse=True) or [0.0]
        result = self._evaluate(model, x, y, distinct, seed)
        for note in result.notes:
            warnings.warn(note, stacklevel=3)
        robust = dict(zip(distinct, result.robust.view(len(distinct), len(x)), strict=True))
        return torch.stack([robust.get(eps, result.correct[: len(x)]) for eps in radii])

    def _evaluate(
        self, model: nn.Module, x: Tensor, y: Tensor, radii: Sequence[float], seed: int | None,
        progress: Progress | None = None,
    ) -> AttackResult:  # fmt: skip
        """All points at the first radius, then all of them at the next, smaller one."""
        check_inputs(x, y)
        x, random, several = x.detach(), self.version == "rand", len(radii)
        with model_state_preserved(model, self.mode), torch.no_grad():
            seed = self.seed if seed is None else seed
            seed_global(seed, x.device)
            verdicts = MeanProbabilities(model, VERDICT_PASSES) if random else model
            logits = self._clean_logits(verdicts, x, y)
            correct = logits.argmax(1) == y if len(x) else torch.zeros_like(y, dtype=torch.bool)
            surrogate: nn.Module | None = None
            notes, attacked = list[str](), max(radii) > 0 and bool(correct.any())
            if attacked:
                notes += logits_notes(logits, self.names, random=random)
                if random:
                    surrogate = MeanProbabilities(model, GRADIENT_PASSES)
                elif is_random(model, x[: self._rows(x)], logits):
                    notes.append(RANDOM)
                elif self.mode == "eval":
                    few = x[correct][:16], y[correct][:16]
                    surrogate = evaluation_surrogate(model, *few, bf16=self._choice("bf16"))
            problem, correct = self._problem(verdicts, x, y, logits, radii), correct.repeat(several)
            result, certified = SearchResult.start(problem.x, correct.clone()), torch.zeros_like(correct)
            stages = list[StageResult]()
            for number, searches in enumerate(self._rounds() if attacked else [[]]):
                if searches:
                    options = self._options(self._rows(x), searches, surrogate, seed, progress)
                    stages += run_round(problem, searches, options, result)
                left = result.attacked & ~result.misclassified
                if number == 0:  # the cheapest attack leaves fewer points to prove
                    certified[left] = self._certified(model, problem.x[left], problem.y[left])
                    result.attacked &= ~certified
        notes += gradient_warnings(stages, "points" if several == 1 else "pairs of a point and a radius")
        misclassified = result.misclassified
        points = where(misclassified, result.points, problem.x)
        return AttackResult(
            points, correct, certified, misclassified, result.search, tuple(stages), tuple(notes)
        )

    def _problem(
        self, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor, radii: Sequence[float]
    ) -> Problem:
        """Every point at every radius; at all but the first, after it was misclassified at the one before."""
        count, several = len(x), len(radii)
        eps = torch.tensor(radii, dtype=torch.float64, device=x.device).repeat_interleave(count)
        after = (torch.arange(several * count, device=x.device) - count).clamp(min=-1)
        x, y, logits = (t.repeat(several, *[1] * (t.ndim - 1)) for t in (x, y, logits))
        return Problem(model, x, y, logits, eps, self.norm, after)

    def _options(
        self, rows: int, searches: Sequence[Searches], surrogate: nn.Module | None, seed: int, progress: Progress | None
    ) -> Options:  # fmt: skip
        random, names = self.version == "rand", " and ".join(one.search.name for one in searches)
        precise = random or getattr(surrogate, "precise_logits", False)
        return Options(
            seed=seed, batch=max(rows // GRADIENT_PASSES, 1) if random else rows,
            surrogate=surrogate if precise or all(one.search.low_precision for one in searches) else None,
            progress=progress and (lambda settled, points: progress(names, settled, points)),
        )  # fmt: skip

    def _rows(self, x: Tensor) -> int:
        """Points that the model evaluates at once: small inputs leave room for more, which cost less each."""
        return self.batch or min(max(BATCH, SMALL_INPUTS // max(x[:1].numel(), 1)), 4 * BATCH)

    def _clean_logits(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = []
        for part, labels in zip(x.split(self._rows(x)), y.split(self._rows(x)), strict=True):
            logits.append(output_of(model, part))
            check_logits(logits[-1], labels)
        return torch.cat([wide(z) for z in logits])

    def _certified(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if self.certify is None or not len(x):
            return torch.zeros_like(y, dtype=torch.bool)
        certified = self.certify(model, x, y, self.eps, self.norm)
        if certified.dtype != torch.bool or certified.shape != y.shape:
            raise AttackError(
                f"certify returned {certified.dtype} of shape {tuple(certified.shape)}; "
                f"expected one truth value for each of {len(y)} points"
            )
        return certified

    def _searches(self) -> list[Searches]:
        """The searches, with the numbers of targets and restarts of the version."""
        norm, version, patience = self.norm, VERSIONS[self.version], self._choice("patience")
        sparse = norm == 1 and version.attacks == STANDARD
        restarts = 5 if sparse and self.restarts is None else self._choice("restarts")
        dlr = apgd_search(norm, loss="dlr", targeted=True, patience=patience)
        square = Square(norm, patience=patience, full=min(FULL, self.batch or FULL), rescale=version.rescale)
        every = {
            "apgd-ce": Searches(apgd_search(norm, patience=patience), restarts=restarts),
            "apgd-dlr": Searches(apgd_search(norm, loss="dlr", patience=patience), restarts=restarts),
            "apgd-t": Searches(dlr, targets=5 if sparse else 9),
            "fab-t": Searches(FAB(norm, targeted=True, patience=patience), targets=9),
            "square": Searches(square),
            "fab": Searches(FAB(norm, targeted=False, patience=patience), restarts=5),
        }
        return [every[name] for name in self.names]

    def _rounds(self) -> list[list[Searches]]:
        """The searches that share a batch together; the first one alone if its robust points are certified after it."""
        rounds = list[list[Searches]]()
        for one in self._searches():
            after_first = self.certify is not None and len(rounds) == 1
            if not rounds or after_first or not all(o.search.shares_batch for o in (one, *rounds[-1])):
                rounds.append([])
            rounds[-1].append(one)
        return rounds


def run_round(
    problem: Problem, searches: Sequence[Searches], options: Options, result: SearchResult
) -> list[StageResult]:
    """Run searches that share a batch; their times are divided in proportion to forward passes."""
    cpu, wall, first = time.process_time(), time.perf_counter(), len(result.records)
    run_searches(problem, searches, options, result)
    int(result.misclassified.sum())  # waits for the device, so that the times are right
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    passes, stages = sum(record.counts["forward"] for record in result.records[first:]), list[StageResult]()
    for index, record in enumerate(result.records[first:], first):
        if attacked := int((record.jobs > 0).sum()):
            share, found = record.counts["forward"] / passes, int((result.search == index).sum())
            zero = record.gradients.zero & ~((result.search >= 0) & (result.search <= index))
            stages.append(StageResult(
                record.name, record.jobs_per_point, attacked, found, share * cpu, share * wall,
                int(zero.sum()), int(record.gradients.nonfinite.sum()), record.counts,
            ))  # fmt: skip
    return stages
