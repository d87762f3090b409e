"""Attacks as searches that advance many points side by side, each at an iteration of its own.

:mod:`opnorm.attacks._batching` runs them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opnorm.attacks.losses import wide
from opnorm.attacks.projections import Ball
from opnorm.errors import AttackError

__all__ = ["Answer", "Lanes", "Search", "State", "ask_once", "falls_short", "unmarked", "until_look"]

State = dict[str, Tensor]
"""What a search remembers of each lane, lanes first; ``state["z"]`` is where it asks the model next."""


class Lanes(NamedTuple):
    """The jobs under way, one a lane.

    Attributes:
        x: clean inputs (L, C, H, W) in [0, 1].
        y: labels (L,).
        target: the wrong class to reach (L,), -1 for none in particular.
        restart: how often this point and target were tried before (L,).
        keys: of each lane's own random numbers (L,); see :mod:`opnorm._core.random`.
        reached: the largest margin that attacks before this one reached (L,); -inf where there was none.
        region: the balls around ``x``.
    """

    x: Tensor
    y: Tensor
    target: Tensor
    restart: Tensor
    keys: Tensor
    reached: Tensor
    region: Ball

    def select(self, kept: Tensor) -> "Lanes":
        """Some of the lanes."""
        x, y, target, restart, keys, reached = (value[kept] for value in self[:6])
        return Lanes(x, y, target, restart, keys, reached, self.region.select(kept))

    def join(self, other: "Lanes") -> "Lanes":
        """These lanes, then those."""
        x, y, target, restart, keys, reached = map(torch.cat, zip(self[:6], other[:6], strict=True))
        return Lanes(x, y, target, restart, keys, reached, _join(self.region, other.region))


def _join(a: Any, b: Any) -> Any:
    """Two balls of one kind, each a dataclass of tensors and of settings that both share."""
    pairs = {f.name: (getattr(a, f.name), getattr(b, f.name)) for f in fields(a)}
    return replace(a, **{k: torch.cat(pair) for k, pair in pairs.items() if isinstance(pair[0], Tensor)})


class Answer(NamedTuple):
    """What the model said at ``state["z"]``.

    Attributes:
        logits: (L, K).
        loss: of the search (L,).
        grad: of the loss at z, or None.
        steps: that each job took for it (L,).
        asked: points that went through the model, if not as many as there are lanes.
    """

    logits: Tensor
    loss: Tensor
    grad: Tensor | None
    steps: Tensor | int = 1
    asked: int | None = None


class Search(ABC):
    """An attack, written for lanes that are each at an iteration of their own.

    Attributes:
        name: as reports call it; part of the keys of its random numbers.
        steps: how often a job asks the model.
        passes: forward passes that a step takes.
        coarse: whether 16-bit logits are good enough to search on.
        patience: a job ends early when it would fall short even if it made this times the progress that is foreseen.
    """

    name: str
    steps: int
    passes: int = 1
    coarse: bool = True
    patience: float = math.inf

    @abstractmethod
    def start(self, lanes: Lanes) -> State:
        """The state of new jobs."""

    @abstractmethod
    def loss(self, lanes: Lanes, state: State, logits: Tensor) -> Tensor:
        """What a step climbs, (L,), from logits (L, K) in float32 at least."""

    @abstractmethod
    def advance(self, lanes: Lanes, state: State, answer: Answer) -> State:
        """The state after one more step; tensors may be changed in place, except ``state["z"]``."""

    def ask(self, model: nn.Module, lanes: Lanes, state: State) -> Answer:
        """Ask the model once, forward and backward.

        A search that asks in another way has no batch in common with others, and may choose ``state["z"]`` here.
        """
        (answer,) = ask_once(model, [(self, lanes, state)])
        return answer

    def inside(self, lanes: Lanes, state: State) -> Tensor:
        """Whether ``state["z"]`` lies in the ball up to rounding, (L,); a search that never leaves it need not look."""
        return torch.ones_like(lanes.y, dtype=torch.bool)

    def hopeless(self, lanes: Lanes, state: State) -> Tensor:
        """Which jobs fall short (L,), asked after each step where ``patience`` is finite."""
        return torch.zeros_like(lanes.y, dtype=torch.bool)

    def last(self, lanes: Lanes, state: State) -> Tensor:
        """The point that an ended job thinks most of (L, C, H, W); the model as given looks at it once."""
        return state["z"]


def ask_once(model: nn.Module, jobs: Collection[tuple[Search, Lanes, State]]) -> Iterator[Answer]:
    """One pass forward and backward for the lanes of several searches, each with its own loss."""
    parts = [state["z"] for _, _, state in jobs]
    sizes = [len(part) for part in parts]
    with torch.enable_grad():
        z = (parts[0] if len(parts) == 1 else torch.cat(parts)).detach().requires_grad_()
        logits = wide(model(z))
        losses = [
            search.loss(lanes, state, own)
            for (search, lanes, state), own in zip(jobs, logits.split(sizes), strict=True)
        ]
        loss = losses[0] if len(losses) == 1 else torch.cat(losses)
        if not loss.requires_grad:
            raise AttackError(
                "no gradient reaches the inputs; is there a detach() or no_grad() in the model?"
            )
        (grad,) = torch.autograd.grad(loss.sum(), z)
    shares = (t.detach().split(sizes) for t in (logits, loss, grad))
    return (Answer(*share) for share in zip(*shares, strict=True))


LOOKS = 4  # at a search while its steps double
DOUBLINGS = 5  # before its end, in which it is looked at
EARLY = 10  # within so many steps nothing is foreseen


def unmarked(value: Tensor) -> Tensor:
    """The marks of searches (L,) that nothing is known of."""
    return torch.full_like(value, -math.inf)[:, None].repeat(1, LOOKS)


@lru_cache(maxsize=16)
def _looks(steps: int, device: torch.device) -> Tensor:
    looks = {round(steps * 2 ** (-j / LOOKS)) for j in range(1, LOOKS * DOUBLINGS + 1)}
    return torch.tensor(sorted(looks), device=device)


def until_look(steps: int, k: Tensor) -> Tensor:
    """How many steps after k (L,) a search is looked at again, or ends."""
    ends = torch.cat([_looks(steps, k.device), k.new_tensor([steps])])
    return ends[torch.searchsorted(ends, k, right=True).clamp(max=len(ends) - 1)] - k


def falls_short(
    steps: int, k: Tensor, value: Tensor, marks: Tensor, patience: float, bar: Tensor | float = -math.inf
) -> tuple[Tensor, Tensor]:
    """Whether a search after ``k`` of its steps (L,) will stay below zero with its ``value`` (L,), and the next marks.

    Each doubling of the steps brings such a search less than the one before. So it falls short when even ``patience``
    times the progress since k / 2 for each doubling that is left would not bring it to zero, or when once that progress
    would not bring it to the ``bar`` (L,) that other attacks reached. It is looked at four times while its steps
    double; ``marks`` (L, 4) are its values at the last four looks, the first of them at k / 2.
    """
    now = (k[:, None] == _looks(steps, k.device)).any(1)
    doublings = (steps / k.clamp(min=1)).log2().to(value.dtype)
    # NaN, where nothing was found yet, falls short of nothing
    foreseen = (value - marks[:, 0]) * doublings
    short = now & (k > EARLY) & ((value + patience * foreseen < 0) | (value + foreseen < bar))
    return short, torch.where(now[:, None], torch.cat([marks[:, 1:], value[:, None]], 1), marks)
