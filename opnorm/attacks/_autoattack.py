"""AutoAttack: several attacks of different kinds, each on the points that stood all before it."""

import math
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from opnorm._core.modes import Mode, model_state_preserved
from opnorm._core.surrogate import evaluation_surrogate
from opnorm.attacks._apgd import APGD, apgd_search
from opnorm.attacks._batching import Catch, Task, hunt_together
from opnorm.attacks._checks import check_inputs, check_logits
from opnorm.attacks._fab import FAB
from opnorm.attacks._pgd import Ascent, Attack
from opnorm.attacks._square import FULL, Square
from opnorm.attacks.losses import rank_targets, wide
from opnorm.attacks.result import AttackResult, StageResult, gradient_warnings
from opnorm.attacks.search import Search
from opnorm.errors import AttackError
from opnorm.spec import factory

__all__ = ["AutoAttack", "Certificate", "autoattack"]

VERSIONS: dict[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square", "fab"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
"""The attacks of each version, cheapest first; the order does not change which points are broken."""

GRADIENT_PASSES, JUDGE_PASSES = 20, 100  # of a randomized model


@runtime_checkable
class Certificate(Protocol):
    """(model, x, y, eps, norm) -> (B,) bool: the points that provably no attack can break."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: float) -> Tensor:
        """The points of which it is proved."""


@factory("attack")
def autoattack(
    norm: float = math.inf,
    eps: float = 8 / 255,
    version: str = "standard",
    attacks: tuple[str, ...] | None = None,
    certify: Certificate | None = None,
    batch: int = 128,
    bf16: bool = True,
    mode: Mode = "eval",
    seed: int = 0,
    patience: float = 3,
    restarts: int | None = None,
) -> Attack:
    """AutoAttack: what stands APGD-CE goes to APGD-T, then to FAB-T, then to Square.

    - "standard": APGD-CE, APGD-T (targeted DLR, 9 targets), FAB-T (9 targets), Square (5,000 queries). For ℓ1, APGD-CE has
      5 restarts and APGD-T 5 targets.
    - "plus": APGD-CE and APGD-DLR (5 restarts each), APGD-T, FAB-T, Square, FAB (5 restarts).
    - "rand", for models that draw random numbers: APGD-CE and APGD-DLR, whose gradients are those of the mean of the
      class probabilities over 20 passes; the mean over 100 other passes says who is fooled.

    All with 100 steps. Each APGD begins on the last points of the one before, except after the first attack where there is
    something to prove in between. A point that the model gets wrong by itself is never attacked, and one that is fooled is
    done. The points of those that were not fooled are the clean ones.

    Args:
        norm: of the ball: 1, 2 or inf.
        eps: radius, in pixel values of [0, 1]; ``8/255``.
        version: "standard", "plus" or "rand".
        attacks: only these of the version's, such as ``("apgd-ce", "apgd-t")``; all when None.
        certify: takes out points that stood the first attack and that it proves robust, so that the truth lies between
            its count and that of those who stand.
        batch: points that the model sees at once.
        bf16: search on a bfloat16 copy where the hardware has bfloat16 and the copy agrees with the model; what it finds
            counts only where the model itself is fooled. Not for float64 models.
        mode: of the model meanwhile: "eval", "train" or "as is".
        seed: of all random numbers; each belongs to a point, an attack, a target and a restart, not to a batch.
        patience: how unlikely a success must be for a job (a point, a target, a restart) to end before its last step. It
            ends when it would fall short of fooling the model even with so many times the progress that is foreseen: for
            APGD its Frank-Wolfe gap, for FAB and Square what the last doubling of the steps brought, for each doubling
            that is left. Square ends, too, where once that would not bring it as far as the attacks before came. inf
            carries every job to its last step, as published, at many times the cost. ℓ1 APGD always does.
        restarts: random starts of APGD-CE and APGD-DLR. None: as published, but 3 of APGD-CE in "standard" where
            ``patience`` is finite: most of them end early, and some points fall from some starts only.

    Returns:
        An :class:`AutoAttack`; its ``judge`` says more than the points.

    Raises:
        AttackError: a setting or an input that makes no sense.

    Source: Croce & Hein 2020 (ICML); ℓ1: Croce & Hein 2021.
    """
    return AutoAttack(norm, eps, version, attacks, certify, batch, bf16, mode, seed, patience, restarts)


@dataclass(frozen=True, eq=False)
class AutoAttack:
    """The attack that :func:`autoattack` describes.

    Raises:
        AttackError: a setting that makes no sense.
    """

    norm: float = math.inf
    eps: float = 8 / 255
    version: str = "standard"
    attacks: tuple[str, ...] | None = None
    certify: Certificate | None = None
    batch: int = 128
    bf16: bool = True
    mode: Mode = "eval"
    seed: int = 0
    patience: float = 3
    restarts: int | None = None

    def __post_init__(self) -> None:
        # the checks that it shares with PGD
        Ascent(
            self.norm, self.eps, 1, restarts=1 if self.restarts is None else self.restarts, mode=self.mode, seed=self.seed
        )  # fmt: skip
        if self.version not in VERSIONS:
            raise AttackError(f"version={self.version!r} is not known; expected one of {', '.join(VERSIONS)}")
        known = VERSIONS[self.version]
        if isinstance(self.attacks, str) or not set(self.names) <= set(known) or not self.names:
            raise AttackError(
                f"attacks={self.attacks!r}: expected some of {known}, the attacks of version {self.version!r}"
            )
        if self.certify is not None and self.mode != "eval":
            raise AttackError(f"mode={self.mode!r}: certificates are for mode 'eval'; leave certify out")
        if isinstance(self.batch, bool) or not isinstance(self.batch, int) or self.batch < 1:
            raise AttackError(f"batch={self.batch!r}: expected a whole number of points, at least 1")
        if isinstance(self.patience, bool) or not self.patience > 0:
            raise AttackError(f"patience={self.patience!r}: expected a factor above 0, such as 3, or inf")

    @property
    def names(self) -> tuple[str, ...]:
        """The attacks that run, in their order."""
        chosen = VERSIONS[self.version]
        return chosen if self.attacks is None else tuple(dict.fromkeys(self.attacks))

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int | None = None) -> Tensor:
        """The points of :meth:`judge`; each of its notes is a warning."""
        result = self.judge(model, x, y, seed=seed)
        for note in result.notes:
            warnings.warn(note, stacklevel=2)
        return result.points

    def standing(
        self, model: nn.Module, x: Tensor, y: Tensor, radii: Sequence[float], *, seed: int | None = None
    ) -> Tensor:
        """Which points stand at each of several radii, the largest first, all in one batch instead of one after another.

        A point that stands one radius counts as standing at every smaller one, and is not attacked there. ``eps`` plays no
        part. Every note is a warning.

        Args:
            model: gives logits (B, K); comes back as it was.
            x: (B, C, H, W) in [0, 1].
            y: labels (B,).
            radii: in pixel values of [0, 1], in any order.
            seed: instead of the attack's own.

        Returns:
            (radii, B), in the order of ``radii``: whether the point is right and stands.

        Raises:
            AttackError: no radius, attacks that do not share a batch, an input, or what the model returns.
        """
        if not isinstance(radii, Sequence) or not radii or len(self._rounds()) > 1:
            raise AttackError(
                f"radii={radii!r}, attacks={self.names}: expected a list of at least one radius, "
                "and attacks that share a batch: apgd-ce, apgd-dlr, apgd-t, without certify"
            )
        attacks = {eps: replace(self, eps=eps) for eps in radii}  # which checks each of them
        distinct = sorted({eps for eps in attacks if eps > 0}, reverse=True) or [0.0]
        result = self._judge(model, x, y, distinct, seed)
        for note in result.notes:
            warnings.warn(note, stacklevel=2)
        rows = result.robust.view(len(distinct), len(x))
        stood = dict(zip(distinct, rows, strict=True))
        return torch.stack([stood.get(eps, result.correct[: len(x)]) for eps in radii])

    def judge(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        seed: int | None = None,
        tell: Callable[[str, int, int], None] | None = None,
    ) -> AttackResult:
        """Attack every point, and say what happened.

        Points have nothing to do with each other, so a long evaluation may be cut into parts of any size.

        Args:
            model: gives logits (B, K); comes back as it was.
            x: (B, C, H, W) in [0, 1].
            y: labels (B,).
            seed: instead of the attack's own.
            tell: told (attack, points settled, points that it was given) again and again.

        Raises:
            AttackError: an input, or what the model returns, makes no sense.
        """
        return self._judge(model, x, y, [self.eps], seed, tell)

    def _judge(
        self, model: nn.Module, x: Tensor, y: Tensor, radii: Sequence[float], seed: int | None,
        tell: Callable[[str, int, int], None] | None = None,
    ) -> AttackResult:  # fmt: skip
        """Of each radius, the largest first, all points, one after another."""
        check_inputs(x, y)
        seed, x = self.seed if seed is None else seed, x.detach()
        with model_state_preserved(model, self.mode), torch.no_grad():
            _sow(seed, x.device)
            judge, notes = model, list[str]()
            surrogate: nn.Module | None = None
            if self.version == "rand":
                judge = _Mean(model, JUDGE_PASSES)
                surrogate = _Mean(model, GRADIENT_PASSES)
            logits = self._clean(judge, x, y)
            right = logits.argmax(1) == y if len(x) else torch.zeros_like(y, dtype=torch.bool)
            attacked = max(radii) > 0 and bool(right.any())
            if attacked:
                notes += _notes(logits, self)
                if self.version != "rand" and _is_random(model, x[: self.batch], logits):
                    notes.append(RANDOM)
                elif self.version != "rand" and self.bf16 and self.mode == "eval":
                    surrogate = evaluation_surrogate(model, x[right][:16], y[right][:16])
            goals = _Goals.at(radii, x, y, logits)
            x, y, right = goals.x, goals.y, right.repeat(len(radii))
            left, certified = right.nonzero().squeeze(1), torch.zeros_like(right)
            points, by, stages = x.clone(), torch.full_like(y, -1), list[StageResult]()
            reached = torch.full(y.shape, -math.inf, device=x.device)
            if attacked:
                for plans in self._rounds():
                    ran, caught = self._run(plans, judge, surrogate, goals, left, reached, seed, tell)
                    reached[left] = reached[left].maximum(caught.margin)
                    where = left[caught.fooled]
                    points[where] = caught.points[caught.fooled]
                    by[where] = len(stages) + caught.by[caught.fooled]
                    stages += ran
                    first, left = len(stages) == 1, left[~caught.fooled]
                    if first:  # what the cheapest attack breaks needs no attempt at a proof
                        certified[left] = self._proved(model, x[left], y[left])
                        left = left[~certified[left]]
                    if not len(left):
                        break
            else:
                certified[left] = self._proved(model, x[left], y[left])
        notes += gradient_warnings(stages, "points" if len(radii) == 1 else "pairs of a point and a radius")
        return AttackResult(points, right, certified, by >= 0, by, tuple(stages), tuple(notes))

    def _clean(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = []
        for part, labels in zip(x.split(self.batch), y.split(self.batch), strict=True):
            logits.append(model(part))
            check_logits(logits[-1], labels)
        if len(x) and logits[0].shape[1] < 2:
            raise AttackError("the model has 1 class: there is no other one to mistake a point for")
        return torch.cat([wide(z) for z in logits])

    def _proved(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if self.certify is None or not len(x):
            return torch.zeros_like(y, dtype=torch.bool)
        proved = self.certify(model, x, y, self.eps, self.norm)
        if proved.dtype != torch.bool or proved.shape != y.shape:
            raise AttackError(
                f"certify returned {proved.dtype} of shape {tuple(proved.shape)}; "
                f"expected one truth value for each of {len(y)} points"
            )
        return proved

    def _rounds(self) -> list[list["_Plan"]]:
        """The attacks by turns: those that ask in one way share a batch, unless points are to be proved after the first."""
        plans = [self._plan(name) for name in self.names]
        rounds = list[list[_Plan]]()
        for plan in plans:
            proving = self.certify is not None and len(rounds) == 1
            if rounds and not proving and all(isinstance(p.search, APGD) for p in (plan, *rounds[-1])):
                rounds[-1].append(plan)
            else:
                rounds.append([plan])
        return rounds

    def _plan(self, name: str) -> "_Plan":
        norm, patience, standard = self.norm, self.patience, self.version == "standard"
        many = (
            5
            if self.version == "plus" or (standard and norm == 1)
            else 3
            if standard and patience < math.inf
            else 1
        )
        many = many if self.restarts is None else self.restarts
        match name:
            case "apgd-ce":
                return _Plan(apgd_search(norm, patience=patience), restarts=many)
            case "apgd-dlr":
                return _Plan(apgd_search(norm, loss="dlr", patience=patience), restarts=many)
            case "apgd-t":
                search = apgd_search(norm, loss="dlr", targeted=True, patience=patience)
                return _Plan(search, targets=5 if standard and norm == 1 else 9, abreast=3)
            case "fab-t":
                return _Plan(FAB(norm, targeted=True, patience=patience), targets=9)
            case "fab":
                return _Plan(FAB(norm, targeted=False, patience=patience), restarts=5)
        return _Plan(Square(norm, patience=patience, full=min(FULL, self.batch)))

    def _run(
        self, plans: Collection["_Plan"], judge: nn.Module, surrogate: nn.Module | None, goals: "_Goals", left: Tensor,
        reached: Tensor, seed: int, tell: Callable[[str, int, int], None] | None,
    ) -> tuple[list[StageResult], Catch]:  # fmt: skip
        x, y, logits, eps, after = goals.only(left)
        ranked = {n: rank_targets(logits, y, n) if n else None for n in {plan.targets for plan in plans}}
        tasks = [Task(plan.search, ranked[plan.targets], plan.restarts, plan.abreast) for plan in plans]
        names = " and ".join(plan.search.name for plan in plans)
        coarse = all(plan.search.coarse for plan in plans)
        cpu, wall = time.process_time(), time.perf_counter()
        catch = hunt_together(
            judge, x, y, tasks, eps=eps, norm=self.norm, seed=seed, reached=reached[left], after=after,
            surrogate=surrogate if surrogate and (surrogate.precise_logits or coarse) else None,
            lanes=max(self.batch // GRADIENT_PASSES, 1) if self.version == "rand" else self.batch,
            tell=None if tell is None else lambda done, all_: tell(names, done, all_),
        )  # fmt: skip
        int(catch.fooled.sum())  # waits for the device, so that the clocks are right
        return _stages(tasks, catch, time.process_time() - cpu, time.perf_counter() - wall), catch


def _stages(tasks: Collection[Task], catch: Catch, cpu: float, wall: float) -> list[StageResult]:
    """What each attack of a round did, but for those that nothing was left for; the time is shared out by passes."""
    passes = sum(tally.counts["forward"] for tally in catch.tallies.values())
    stages = list[StageResult]()
    for rank, task in enumerate(tasks):
        tally, jobs = catch.tallies[task.search.name], 1 if task.targets is None else task.targets.shape[1]
        tried, share = int((tally.begun > 0).sum()), tally.counts["forward"] / passes
        if tried:
            broken_so_far = (catch.by >= 0) & (catch.by <= rank)
            zero, bad = tally.watch.zero & ~broken_so_far, tally.watch.broken
            stages.append(StageResult(
                task.search.name, task.restarts * jobs, tried, int((catch.by == rank).sum()),
                share * cpu, share * wall, int(zero.sum()), int(bad.sum()), tally.counts,
            ))  # fmt: skip
    return stages


class _Goals(NamedTuple):
    """Every point at every radius: its image, label, clean logits, radius, and which one must fall before; -1 for none."""

    x: Tensor
    y: Tensor
    logits: Tensor
    eps: Tensor
    after: Tensor

    @staticmethod
    def at(radii: Sequence[float], x: Tensor, y: Tensor, logits: Tensor) -> "_Goals":
        """All points at the largest radius first, each of which must fall before it is tried at the next."""
        count, several = len(x), len(radii)
        eps = torch.tensor(radii, dtype=torch.float64, device=x.device).repeat_interleave(count)
        after = (torch.arange(several * count, device=x.device) - count).clamp(min=-1)
        if several > 1:
            x, y, logits = (t.repeat(several, *[1] * (t.ndim - 1)) for t in (x, y, logits))
        return _Goals(x, y, logits, eps, after)

    def only(self, left: Tensor) -> "_Goals":
        """Some of them; one that waits for another is only among them together with it."""
        place = torch.full_like(self.after, -1)
        place[left] = torch.arange(len(left), device=left.device)
        x, y, logits, eps, after = (t[left] for t in self)
        return _Goals(x, y, logits, eps, torch.where(after < 0, -1, place[after]))


class _Plan(NamedTuple):
    search: Search
    targets: int = 0
    restarts: int = 1
    abreast: float = math.inf


class _Mean(nn.Module):
    """The logarithm of the mean of a randomized model's class probabilities over so many passes."""

    precise_logits = True

    def __init__(self, model: nn.Module, passes: int) -> None:
        super().__init__()
        self.model, self.passes = model, passes

    def forward(self, x: Tensor) -> Any:
        """(B, C, H, W) -> (B, K)."""
        first = self.model(x)
        if not isinstance(first, Tensor) or first.ndim != 2:
            return first  # the checks say what is wrong with it
        rest = [self.model(x) for _ in range(self.passes - 1)]
        return torch.stack([wide(z).log_softmax(1) for z in (first, *rest)]).logsumexp(0) - math.log(
            self.passes
        )


def _sow(seed: int, device: torch.device) -> None:
    """Seed what a randomized model draws from; :func:`opnorm._core.modes.model_state_preserved` puts it back."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


# ---------------------------------------------------------------- what a reader should know


RANDOM = (
    'two passes over the same points differ: the model is random, and only version="rand" averages that out'
)


def _is_random(model: nn.Module, x: Tensor, logits: Tensor) -> bool:
    """Whether a second pass gives other logits for the first points, the same batch as before: others may come in."""
    first, second = logits[: len(x)], wide(model(x))
    return not torch.allclose(first, second, rtol=1e-4, atol=1e-5 * float(first.abs().max()))


def _notes(logits: Tensor, attack: AutoAttack) -> list[str]:
    notes, classes = [], logits.shape[1]
    if attack.version != "rand" and bool((logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-3).all()):
        notes.append(
            "the model seems to return probabilities, not logits: their gradients vanish where it is sure, "
            "and a robust accuracy from them is too high"
        )
    for name, needed in (("apgd-dlr", 3), ("apgd-t", 4)):
        if name in attack.names and classes < needed:
            notes.append(
                f"the DLR loss of {name.upper()} needs {needed} classes, the model has {classes}: "
                "it climbs the difference of two logits instead"
            )
    if classes < 10 and {"apgd-t", "fab-t"} & set(attack.names):
        notes.append(f"with {classes} classes there are {classes - 1} targets, not 9")
    return notes
