"""Square: random search over square-shaped changes, which evaluates the model forward only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from opnorm._core.attack_settings import check_settings
from opnorm._core.modes import Mode
from opnorm._core.outputs import output_of
from opnorm._core.random import GOLDEN, uniform
from opnorm._core.surrogate import Surrogate
from opnorm.attacks._extrapolation import Extrapolation
from opnorm.attacks._local_forward import LocalForward, local_forward
from opnorm.attacks._pgd import Attack
from opnorm.attacks._rows import column, select, where
from opnorm.attacks._search import Batch, Response, Search, State
from opnorm.attacks._search_attack import SearchAttack
from opnorm.attacks._windows import Window, axis_of
from opnorm.attacks.losses import margin, wide
from opnorm.attacks.projections import LinfBall
from opnorm.spec import factory

__all__ = ["Square", "square"]

SHARE = 0.8
"""The share of the input that the first windows cover: p_init of the paper."""

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After so many queries, or so many of 10,000, the windows have half the size."""

FULL = 64
"""Points in a batch, up to which several queries of a row are evaluated at a time; more would mostly be wasted."""

RARE = 32
"""One in so many of the queries made so far is evaluated at a time: the later, the fewer succeed."""

SMALL = 3
"""Windows that are so many times smaller than the image change the values of the first layers at few places."""


@factory("attack")
def square(
    norm: float = math.inf,
    eps: float = 8 / 255,
    queries: int = 5000,
    *,
    rescale_schedule: bool = True,
    restarts: int = 1,
    stop_at_success: bool = True,
    mode: Mode = "eval",
    seed: int = 0,
) -> Attack:
    """Square: propose a change in a random square of the image, and keep it if the margin rises.

    The margin is max_{i≠y} z_i - z_y. Squares cover 80 % of the image at first, and have half the area after 10, 50, 200,
    500, 1000, 2000, 4000, 6000 and 8000 queries, or after these shares of 10,000. Every position in the image is equally
    likely, and every point has squares of its own.

    In a sequence (B, C, T) the squares are segments, in a volume (B, C, D, H, W) cubes; what is said of areas is then said
    of lengths and volumes. The features of a vector (B, F) have no neighbors: for each proposal they are put in a random
    order, of which a segment is changed, so that it is a random subset of them. The first axis after the batch is that of
    channels; (B, H, W) is a sequence with H channels, so images in gray need an axis of one channel.

    - ℓ∞: the search begins with vertical stripes x ± ε, one for each place along the last axis, and a proposal sets each
      channel of a square to x + ε or x - ε, but not to what it is already.
    - ℓ2, ℓ1: it begins with a grid of bumps, and a proposal adds a pair of bumps of opposite signs to a square (at least
      3 pixels wide where the image is 5) and restores another one, whose length ‖δ‖ the first one gets, together with
      what is left of ε.

    ``queries`` are evaluations of the model for each point and restart. With ``rescale_schedule`` the area is halved after
    shares of them, as in the paper; otherwise after the numbers above, as AutoAttack does with its 5,000 queries. Without
    ``stop_at_success`` the result is the point with the largest margin. Other settings are those of :mod:`opnorm.attacks`.

    Raises:
        AttackError: an invalid setting or input.

    Source: Andriushchenko et al. 2020, Algorithms 1 to 3; ℓ1: Croce & Hein 2021.
    """
    check_settings(norm=norm, eps=eps, queries=queries, restarts=restarts, mode=mode, seed=seed)
    search = Square(norm, queries, rescale=rescale_schedule)
    return SearchAttack(search, norm, eps, restarts, stop_at_success=stop_at_success, mode=mode, seed=seed)


@dataclass
class SquareState(State):
    """Of each row (R, ...).

    Attributes:
        best: the point with the largest margin.
        margin: its margin.
        history: of the margin; see :class:`opnorm.attacks._extrapolation.Extrapolation`.
    """

    best: Tensor
    margin: Tensor
    history: Tensor


@dataclass(eq=False)
class Square(Search[SquareState]):
    """Square as :func:`square` describes it.

    With a finite ``patience`` a job stops early by how its margin grows, towards zero and towards the largest margin that
    earlier attacks found at the point. ``full`` is the number of points up to which a batch is filled by evaluating
    several queries of a row at a time.
    """

    norm: float
    steps: int = 5000
    patience: float = math.inf
    full: int = FULL
    rescale: bool = True
    name = "Square"

    low_precision = False  # a square changes the margin by less than 16 bits resolve

    def __post_init__(self) -> None:
        self.extrapolation = Extrapolation(self.steps, self.patience)
        self.local: tuple[nn.Module, LocalForward | None] | None = None

    def start(self, batch: Batch) -> SquareState:
        """Stripes, or a grid of bumps."""
        z = self._stripes(batch) if self.norm == math.inf else self._grid(batch)
        least = torch.full_like(batch.y, -math.inf, dtype=torch.promote_types(z.dtype, torch.float32))
        k, no = torch.zeros_like(batch.y), torch.zeros_like(batch.y, dtype=torch.bool)
        return SquareState(z, k, no, best=z, margin=least, history=self.extrapolation.start(least))

    def loss(self, batch: Batch, state: SquareState, logits: Tensor) -> Tensor:
        """The margin."""
        return margin(logits, batch.y)

    def query(self, model: nn.Module, batch: Batch, state: SquareState) -> Response:
        """Evaluate the next proposal of each row, or several of them at a time.

        With several, all are proposed from the same best point, and the first one that raises the margin or is
        misclassified is the last one that counts. So the search finds what it finds with one query at a time, in fewer
        and fuller batches: small networks take half the time. A row whose best point is misclassified accepts most
        proposals, and has one query at a time.
        """
        count, device = len(batch.y), batch.y.device
        own = torch.arange(count, device=device)
        robust = (state.margin <= 0).nonzero().squeeze(1)
        rare = int(state.k[robust].sum()) // (RARE * max(len(robust), 1))
        ahead = max(1, min((self.full - count) // max(len(robust), 1) + 1, rare))
        row = torch.cat([own, robust.repeat(ahead - 1)])
        later = torch.arange(1, ahead, device=device).repeat_interleave(len(robust))
        turn = torch.cat([torch.zeros_like(own), later])
        every = batch if ahead == 1 else select(batch, row)
        with torch.no_grad():
            z = self.proposal(every, state.best[row], state.k[row] + turn)
            logits = wide(self._logits(model, state, row, z))
        loss = margin(logits, every.y)
        if ahead == 1:
            state.z = z
            return Response(logits, loss, None, count)
        ends, place = torch.zeros(ahead, count, dtype=torch.bool, device=device), own.repeat(ahead, 1)
        ends[turn, row] = (loss > state.margin[row]) | (logits.argmax(1) != every.y)
        place[turn, row] = torch.arange(len(row), device=device)
        most = torch.zeros_like(own).index_fill(0, robust, ahead - 1)
        # no further than the next check of the extrapolation
        most = most.minimum((self.extrapolation.until_check(state.k) - 1).clamp(min=0))
        last = torch.where(ends.any(0), ends.int().argmax(0), ahead - 1).minimum(most)
        chosen = place[last, own]
        state.z, state.k = z[chosen], state.k + last
        return Response(logits[chosen], loss[chosen], None, len(z))

    def _logits(self, model: nn.Module, state: SquareState, row: Tensor, z: Tensor) -> Tensor:
        """Of proposals z for some rows, which differ from their best points within a window."""
        if self.norm != math.inf or z.ndim != 4 or not isinstance(model, Surrogate):
            return output_of(model, z)
        if self.local is None or self.local[0] is not model:
            self.local = model, local_forward(model, z[:2])
        local, sizes = self.local[1], z.shape[2:]
        if local is None or SMALL * int(self.side(state.k, sizes).max()) > min(sizes):
            return output_of(model, z)
        return local(state.best, row, z)

    def proposal(self, batch: Batch, best: Tensor, k: Tensor) -> Tensor:
        """The point of query k (R,); the first one is where the search begins."""
        if vector := best.ndim == 2:
            batch, best = _with_channel(batch), best[:, None]
        _, channels, *sizes = batch.x.shape
        side, axes = self.side(k, sizes), len(sizes)
        count = channels + 2 * axes + 1
        u = uniform(batch.keys + (k << 32) * GOLDEN, count + sizes[0] * vector)  # far from those of the start
        order = u[:, count:].argsort(1).argsort(1) if vector else None
        first = Window.drawn(u[:, :axes], side, sizes, order)
        signs = column(u[:, 2 * axes + 1 : count] < 0.5, batch.x)
        if self.norm == math.inf:
            z = _repaint(batch, best, first.mask(), signs)
        else:
            second = Window.drawn(u[:, axes : 2 * axes], side, sizes, order)
            bumps = first.bumps(axis_of(u[:, 2 * axes], axes)) * first.mask()
            z = self._move_mass(batch, best, first.mask(), second.mask(), bumps, signs)
        z = where(k == 0, best, z)
        return z[:, 0] if vector else z

    def advance(self, batch: Batch, state: SquareState, response: Response) -> SquareState:
        """Keep the proposal if its margin is larger."""
        s, better = replace(state), response.loss > state.margin
        s.best = where(better, state.z, state.best)
        s.margin, s.k = torch.where(better, response.loss, state.margin), state.k + 1
        bar = batch.margin.clamp(max=0)
        short, s.history = self.extrapolation.falls_short(s.k, s.margin, s.history, bar)
        s.stopped = s.stopped | short
        return s

    def final_iterate(self, batch: Batch, state: SquareState) -> Tensor:
        """The point with the largest margin."""
        return state.best

    def side(self, k: Tensor, sizes: Sequence[int]) -> Tensor:
        """The width of the window of query k (R,); odd for ℓ2 and ℓ1, so that its bumps have a middle."""
        return _sides(self.steps, self.rescale, self.norm, tuple(sizes), k.device)[k.clamp(max=self.steps)]

    def _stripes(self, batch: Batch) -> Tensor:
        """As far as the ball goes up or down, by places along the last axis."""
        if batch.x.ndim == 2:
            return self._stripes(_with_channel(batch))[:, 0]
        count, channels, *sizes = batch.x.shape
        up = uniform(batch.keys, channels * sizes[-1]) < 0.5
        return torch.where(up.view(count, channels, *[1] * (len(sizes) - 1), sizes[-1]), *_ends(batch))

    # ------------------------------------------------------------ ℓ2 and ℓ1

    def _grid(self, batch: Batch) -> Tensor:
        """Bumps side by side, each with a sign of its own in every channel."""
        if batch.x.ndim == 2:
            return self._grid(_with_channel(batch))[:, 0]
        count, channels, *sizes = batch.x.shape
        side = max(min(sizes) // 5, 1)
        places = [torch.arange(n, device=batch.y.device) for n in sizes]
        tiles = (channels, *((n - 1) // side + 1 for n in sizes))
        u = uniform(batch.keys, 1 + math.prod(tiles))
        signs = 1 - 2 * (u[:, 1:] < 0.5).view(count, *tiles).to(batch.x)
        for axis, place in enumerate(places, 2):
            signs = signs.index_select(axis, place // side)
        cells = Window([(place % side).expand(count, -1) for place in places], torch.full_like(batch.y, side))
        d = cells.bumps(axis_of(u[:, 0], len(sizes))) * signs
        length = torch.linalg.vector_norm(d.flatten(1), self.norm, dim=1)
        d = d * column(batch.ball.eps.to(length.dtype) / length, d)
        return (batch.x + d).clamp(0, 1).to(batch.x.dtype)

    def _move_mass(
        self, batch: Batch, best: Tensor, here: Tensor, there: Tensor, bumps: Tensor, signs: Tensor
    ) -> Tensor:
        """Add bumps to the first window and restore the second, so that the whole has the length ε.

        Outside of both nothing changes: with m the q-th powers of lengths, the first window gets, in channel c,
        m_c(both windows) + (ε^q - m) / C. What the box cuts off is left for the next proposal.
        """
        x, q = batch.x, self.norm
        d = wide(best) - x
        size = d.square() if q == 2 else d.abs()
        most = column(batch.ball.eps**q, d)
        left = (most - size.sum(tuple(range(1, d.ndim)), keepdim=True)) / x.shape[
            1
        ]  # negative after a rounding error
        inside = (size * (here | there)).sum(_axes(d), keepdim=True)
        length = (left + inside).clamp(min=0) ** (1 / q)
        bumps = _unit(bumps, q) * torch.where(signs, 1, -1)
        new = _unit(d * here, q) + bumps
        opposite = torch.linalg.vector_norm(new, q, dim=_axes(d), keepdim=True) < 1e-3  # to the old change
        new = _unit(torch.where(opposite, bumps, new), q) * length
        return torch.where(here, (x + new).clamp(0, 1).to(x.dtype), torch.where(there, x, best))


@lru_cache(maxsize=64)
def _sides(steps: int, rescale: bool, norm: float, sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """The width of the window after 0, 1, ... ``steps`` queries."""
    k = torch.arange(steps + 1, device=device)
    done = k * 10000 // max(steps, 1) if rescale else k
    halvings = (done[:, None] > torch.tensor(HALVINGS, device=device)).sum(1)
    size = math.prod(sizes, start=SHARE) * 0.5 ** halvings.float()
    side = (size.sqrt() if len(sizes) == 2 else size ** (1 / len(sizes))).round().long()
    if norm != math.inf:
        side = side.clamp(min=3 if min(sizes) >= 5 else 1)  # a pair of bumps needs 3 pixels
        side = side + 1 - side % 2
    return side.clamp(min=1, max=min(sizes))


def _unit(d: Tensor, q: float) -> Tensor:
    """Each channel over its length; zero where it is zero."""
    return d / torch.linalg.vector_norm(d, q, dim=_axes(d), keepdim=True).clamp(min=1e-30)


def _axes(d: Tensor) -> tuple[int, ...]:
    """Those after batch and channels."""
    return tuple(range(2, d.ndim))


def _with_channel(batch: Batch) -> Batch:
    """Vectors (R, F) as sequences (R, 1, F)."""
    region = batch.ball
    changed = {name: getattr(region, name)[:, None] for name in ("x", "low", "high") if hasattr(region, name)}
    return replace(batch, x=batch.x[:, None], ball=replace(region, **changed))


# ---------------------------------------------------------------- ℓ∞


def _repaint(batch: Batch, best: Tensor, here: Tensor, up: Tensor) -> Tensor:
    """The window as far up or down as the ball goes, by channels; the other way round where that is what is there."""
    high, low = _ends(batch)
    z = torch.where(here, torch.where(up, high, low), best)
    up = up ^ column((z == best).flatten(1).all(1), z)
    return torch.where(here, torch.where(up, high, low), best)


def _ends(batch: Batch) -> tuple[Tensor, Tensor]:
    assert isinstance(batch.ball, LinfBall)  # as the norm says
    return batch.ball.high, batch.ball.low
