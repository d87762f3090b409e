"""Square: random search over square-shaped changes, which evaluates the model forward only."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from opnorm._core.modes import Mode
from opnorm._core.random import GOLDEN, uniform
from opnorm.attacks._batching import SearchAttack
from opnorm.attacks._checks import check_settings
from opnorm.attacks._extrapolation import Extrapolation
from opnorm.attacks._pgd import Attack
from opnorm.attacks._rows import column, select, where
from opnorm.attacks._search import Batch, Response, Search, State
from opnorm.attacks.losses import margin, wide
from opnorm.attacks.projections import LinfBall
from opnorm.spec import factory

__all__ = ["Square", "square"]

SHARE = 0.8
"""The share of the image that the first squares cover: p_init of the paper."""

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After so many queries, or so many of 10,000, the squares have half the area."""

FULL = 64
"""Points in a batch, up to which several queries of a row are evaluated at a time; more would mostly be wasted."""

RARE = 32
"""One in so many of the queries made so far is evaluated at a time: the later, the fewer succeed."""


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

    - ℓ∞: the search begins with vertical stripes x ± ε, and a proposal sets each channel of a square to x + ε or x - ε,
      but not to what it is already.
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

    def start(self, batch: Batch) -> SquareState:
        """Stripes, or a grid of bumps."""
        z = _stripes(batch) if self.norm == math.inf else self._grid(batch)
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
            logits = wide(model(z.clone()))
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

    def proposal(self, batch: Batch, best: Tensor, k: Tensor) -> Tensor:
        """The point of query k (R,); the first one is where the search begins."""
        channels, height, width = batch.x.shape[1:]
        side = self.side(k, height, width)
        u = uniform(batch.keys + (k << 32) * GOLDEN, channels + 5)  # far from the counters of the start
        first = _Window.drawn(u[:, :2], side, height, width)
        signs, rest = column(u[:, 5:] < 0.5, batch.x), u[:, 2:5]
        if self.norm == math.inf:
            z = _repaint(batch, best, first.mask(), signs)
        else:
            second = _Window.drawn(rest[:, :2], side, height, width)
            bumps = first.bumps(rest[:, 2] < 0.5) * first.mask()
            z = self._move_mass(batch, best, first.mask(), second.mask(), bumps, signs)
        return where(k == 0, best, z)

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

    def side(self, k: Tensor, height: int, width: int) -> Tensor:
        """The width of the square of query k (R,); odd for ℓ2 and ℓ1, so that its bumps have a middle."""
        done = k * 10000 // self.steps if self.rescale else k
        halvings = (done[:, None] > torch.tensor(HALVINGS, device=k.device)).sum(1)
        side = (SHARE * height * width * 0.5**halvings).sqrt().round().long()
        if self.norm != math.inf:
            side = side.clamp(min=3 if min(height, width) >= 5 else 1)  # a pair of bumps needs 3 pixels
            side = side + 1 - side % 2
        return side.clamp(min=1, max=min(height, width))

    # ------------------------------------------------------------ ℓ2 and ℓ1

    def _grid(self, batch: Batch) -> Tensor:
        """Bumps side by side, each with a sign of its own in every channel."""
        count, channels, height, width = batch.x.shape
        side = max(min(height, width) // 5, 1)
        rows, columns = (torch.arange(n, device=batch.y.device) for n in (height, width))
        tiles = (channels, (height - 1) // side + 1, (width - 1) // side + 1)
        u = uniform(batch.keys, 1 + math.prod(tiles))
        signs = 1 - 2 * (u[:, 1:] < 0.5).view(count, *tiles).to(batch.x)
        sides = torch.full_like(batch.y, side)
        cells = _Window((rows % side).expand(count, -1), (columns % side).expand(count, -1), sides)
        d = cells.bumps(u[:, 0] < 0.5) * signs[:, :, rows // side][..., columns // side]
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
        left = (most - size.sum((1, 2, 3), keepdim=True)) / x.shape[1]  # negative after a rounding error
        length = (left + (size * (here | there)).sum((2, 3), keepdim=True)).clamp(min=0) ** (1 / q)
        bumps = _unit(bumps, q) * torch.where(signs, 1, -1)
        new = _unit(d * here, q) + bumps
        opposite = torch.linalg.vector_norm(new, q, dim=(2, 3), keepdim=True) < 1e-3  # to the old change
        new = _unit(torch.where(opposite, bumps, new), q) * length
        return torch.where(here, (x + new).clamp(0, 1).to(x.dtype), torch.where(there, x, best))


def _unit(d: Tensor, q: float) -> Tensor:
    """Each channel over its length; zero where it is zero."""
    return d / torch.linalg.vector_norm(d, q, dim=(2, 3), keepdim=True).clamp(min=1e-30)


# ---------------------------------------------------------------- ℓ∞


def _stripes(batch: Batch) -> Tensor:
    """As far as the ball goes up or down, by columns."""
    count, channels, _, width = batch.x.shape
    up = (uniform(batch.keys, channels * width) < 0.5).view(count, channels, 1, width)
    return torch.where(up, *_ends(batch))


def _repaint(batch: Batch, best: Tensor, here: Tensor, up: Tensor) -> Tensor:
    """The window as far up or down as the ball goes, by channels; the other way round where that is what is there."""
    high, low = _ends(batch)
    z = torch.where(here, torch.where(up, high, low), best)
    up = up ^ column((z == best).flatten(1).all(1), z)
    return torch.where(here, torch.where(up, high, low), best)


def _ends(batch: Batch) -> tuple[Tensor, Tensor]:
    assert isinstance(batch.ball, LinfBall)  # as the norm says
    return batch.ball.high, batch.ball.low


# ---------------------------------------------------------------- windows


@dataclass
class _Window:
    """A square of each row's image: where rows (R, H) and columns (R, W) are in it, from 0 to its side (R,)."""

    rows: Tensor
    columns: Tensor
    side: Tensor

    @staticmethod
    def drawn(u: Tensor, side: Tensor, height: int, width: int) -> "_Window":
        """Anywhere in the image, from two numbers in (0, 1)."""

        def place(share: Tensor, length: int) -> Tensor:
            corner = (share * (length - side + 1)).long().minimum(length - side)
            return torch.arange(length, device=u.device) - corner[:, None]

        return _Window(place(u[:, 0], height), place(u[:, 1], width), side)

    def mask(self) -> Tensor:
        """Which pixels are inside, (R, 1, H, W)."""
        rows, columns = ((p >= 0) & (p < self.side[:, None]) for p in (self.rows, self.columns))
        return rows[:, None, :, None] & columns[:, None, None, :]

    def bumps(self, turned: Tensor) -> Tensor:
        """Two pyramids, one up in the upper half and one down in the lower, (R, 1, H, W); left and right if turned.

        At the distance r from the middle (the larger of both coordinates'), a pyramid is Σ_{j=r}^{side // 2} 1 / (j + 1)².
        It falls with r, so the larger distance gives the smaller height.
        """
        steps = torch.arange(1, max(self.rows.shape[1], self.columns.shape[1]) + 2, device=turned.device)
        heights = torch.cat([turned.new_zeros(1, dtype=torch.float32), (1 / steps.float() ** 2).cumsum(0)])
        half, turned = (self.side // 2)[:, None], turned[:, None]
        sides, signs = [], []
        for place, split in ((self.rows, ~turned), (self.columns, turned)):
            lower = split & (place >= half)
            middle = torch.where(
                lower, half + (self.side[:, None] - half) // 2, torch.where(split, half // 2, half)
            )
            away = (place - middle).abs().minimum(half)
            sides.append(heights[half + 1] - heights[away])
            signs.append(torch.where(lower, -1, 1))
        height = torch.minimum(sides[0][:, None, :, None], sides[1][:, None, None, :])
        return height * (signs[0][:, None, :, None] * signs[1][:, None, None, :])
