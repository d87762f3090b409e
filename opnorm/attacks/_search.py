"""The protocol of attacks that run in one batch, each row at an iteration of its own.

A job is one search from one start: of a point, a restart and, for targeted losses, a wrong class. The jobs under way are
the rows of a :class:`Batch`. An attack implements :class:`Search`: where a job starts, the loss at the points that the
model evaluates, and the step that follows. :mod:`opnorm.attacks._batching` runs the jobs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from opnorm._core.outputs import output_of
from opnorm.attacks._gradients import input_gradient
from opnorm.attacks._rows import select
from opnorm.attacks.losses import wide
from opnorm.attacks.projections import Ball

__all__ = ["Batch", "Response", "Search", "Settle", "State", "evaluate"]


@dataclass
class Batch:
    """The jobs under way, one a row.

    Attributes:
        x: clean inputs (R, ...) in [0, 1].
        y: labels (R,).
        target: the wrong class to go to (R,), -1 for none.
        restart: the restart of this point and target (R,).
        keys: of each row's random numbers (R,); see :mod:`opnorm._core.random`.
        margin: the largest margin that attacks before this one found (R,); -inf where there was none.
        ball: the balls around ``x``.
    """

    x: Tensor
    y: Tensor
    target: Tensor
    restart: Tensor
    keys: Tensor
    margin: Tensor
    ball: Ball


@dataclass
class State:
    """What a search keeps of each row.

    Attributes:
        z: the points to evaluate next (R, ...).
        k: evaluations so far (R,).
        stopped: the search has given the row up before its last step (R,).
    """

    z: Tensor
    k: Tensor
    stopped: Tensor


class Response(NamedTuple):
    """The model's response at ``state.z``.

    Attributes:
        logits: (R, K).
        loss: of the search (R,).
        grad: of the loss (R, ...), or None.
        forward: forward passes of single points that it took.
        backward: backward passes.
    """

    logits: Tensor
    loss: Tensor
    grad: Tensor | None
    forward: int
    backward: int = 0


Settle = Callable[[Tensor], Tensor]  # logits (R, K) -> whether the row needs a gradient (R,)
S = TypeVar("S", bound=State)


class Search(ABC, Generic[S]):
    """An attack, written for rows that are each at an iteration of their own.

    Attributes:
        name: as reports name it; part of the keys of its random numbers.
        steps: evaluations of a job.
        low_precision: 16-bit logits are precise enough to search on.
    """

    name: str
    steps: int
    low_precision: bool = True

    @abstractmethod
    def start(self, batch: Batch) -> S:
        """The state of new jobs."""

    @abstractmethod
    def loss(self, batch: Batch, state: S, logits: Tensor) -> Tensor:
        """The loss to ascend (R,), from logits (R, K) in float32 at least."""

    @abstractmethod
    def advance(self, batch: Batch, state: S, response: Response) -> S:
        """The state after one more step, with ``k`` counted up and ``stopped`` set where the job should end early."""

    def query(self, model: nn.Module, batch: Batch, state: S) -> Response:
        """Evaluate the model; by default once, forward and backward. It may choose ``state.z`` here."""
        return evaluate(model, [(self, batch, state)])[0]

    def feasible(self, batch: Batch, state: S) -> Tensor:
        """Whether ``state.z`` is in the ball up to rounding (R,), so that it may count as adversarial."""
        return torch.ones_like(batch.y, dtype=torch.bool)

    def final_iterate(self, batch: Batch, state: S) -> Tensor:
        """The result of an ended job (R, ...); the model as given evaluates it once."""
        return state.z

    @property
    def shares_batch(self) -> bool:
        """Whether it evaluates forward and backward once a step, so that other searches can share the batch."""
        return type(self).query is Search.query


def evaluate(
    model: nn.Module, jobs: Sequence[tuple[Search[Any], Batch, Any]], settle: Sequence[Settle] | None = None
) -> list[Response]:
    """One pass forward and backward for the rows of several searches, each with its own loss.

    ``settle``, of each search, is called with its logits between the two, and says which rows need a gradient; others may
    have zero. Where these are most of the rows, the few are evaluated once more, which costs less than to go back for all.
    """
    sizes = [len(state.z) for _, _, state in jobs]
    with torch.enable_grad():
        z = torch.cat([state.z for _, _, state in jobs]).detach().requires_grad_()
        logits = wide(output_of(model, z))
        every = logits.detach().split(sizes)
        needed = [rows(part) for rows, part in zip(settle, every, strict=True)] if settle else []
        again = bool(needed) and 2 * int(torch.cat(needed).sum()) < len(z)
        parts = zip(jobs, logits.split(sizes), strict=True)
        loss = torch.cat([search.loss(batch, state, part) for (search, batch, state), part in parts])
        grads = (torch.zeros_like(z) if again else input_gradient(loss, z)).detach().split(sizes)
    losses, backward = loss.detach().split(sizes), [0 if again else size for size in sizes]
    responses = list(map(Response, every, losses, grads, sizes, backward))
    some = [k for k, rows in enumerate(needed) if again and rows.any()]
    if some:
        few = [(jobs[k][0], select(jobs[k][1], needed[k]), select(jobs[k][2], needed[k])) for k in some]
        for k, own in zip(some, evaluate(model, few), strict=True):
            grads[k][needed[k]] = own.grad
            responses[k] = responses[k]._replace(forward=sizes[k] + own.forward, backward=own.backward)
    return responses
