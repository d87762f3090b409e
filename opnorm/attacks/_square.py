"""Square: random search over square-shaped changes, with nothing of the model but its answers."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opnorm._core.modes import Mode, model_state_preserved
from opnorm._core.random import GOLDEN, uniform
from opnorm.attacks._batching import hunt
from opnorm.attacks._checks import check_inputs, check_logits
from opnorm.attacks._pgd import Ascent, Attack
from opnorm.attacks.losses import margin, wide
from opnorm.attacks.projections import LinfBall
from opnorm.attacks.search import Answer, Lanes, Search, State, falls_short, unmarked, until_look
from opnorm.errors import AttackError
from opnorm.spec import factory

__all__ = ["Square", "square"]

SHARE = 0.8
"""Of all pixels, that of the first squares: p_init of the paper."""

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After so many of 10,000 queries (or the same share of fewer) the squares have half the area."""

FULL = 64
"""Points in a batch: fewer lanes than that ask about several queries at a time. More would be asked in vain more often."""

RARELY = 32
"""About as many queries are asked at a time as one in so many of those that were made: the later, the fewer succeed."""


@factory("attack")
def square(
    norm: float = math.inf,
    eps: float = 8 / 255,
    queries: int = 5000,
    restarts: int = 1,
    stop_at_success: bool = True,
    mode: Mode = "eval",
    seed: int = 0,
) -> Attack:
    """Square: propose a change in a random square of the image, and keep it if the margin rises.

    The margin is max_{i≠y} z_i - z_y. Squares cover 80 % of the image at first, and have half the area after 10, 50, 200,
    500, 1000, 2000, 4000, 6000 and 8000 of 10,000 queries, or after these shares of fewer. Every position in the image is
    equally likely, and every point has squares of its own. Up to 64 images go through the model at a time, also where there
    are fewer points: several queries of each, as if none of them were accepted.

    - ℓ∞: the search begins with vertical stripes x ± ε, and a proposal sets each channel of a square to x + ε or x - ε,
      but not to what it is already.
    - ℓ2, ℓ1: it begins with a grid of bumps, and a proposal adds a pair of bumps of opposite signs to a square (at least
      3 pixels wide where the image is 5) and restores another one, which has to give its length ‖δ‖ to the first,
      together with what is left of ε.

    Args:
        norm: of the ball: 1, 2 or inf.
        eps: radius, in pixel values of [0, 1]; ``8/255``.
        queries: of the model for each point and restart.
        restarts: how often from the beginning; a point keeps the worst that was found.
        stop_at_success: a point is done as soon as it is misclassified, also by nature. Otherwise it ends where its margin
            is the largest that was found.
        mode: of the model meanwhile: "eval", "train" or "as is".
        seed: of the search; each point has its own random numbers, whatever batch it is in.

    Raises:
        AttackError: a setting or an input that makes no sense.

    Source: Andriushchenko et al. 2020, Algorithms 1 to 3; ℓ1: Croce & Hein 2021.
    """
    if isinstance(queries, bool) or not isinstance(queries, int) or queries < 0:
        raise AttackError(f"queries={queries!r}: expected a whole number from 0 on")
    Ascent(norm, eps, 1, restarts=restarts, mode=mode, seed=seed)  # the checks that it shares with PGD
    own_seed = seed

    def attack(model: nn.Module, x: Tensor, y: Tensor, *, seed: int | None = None) -> Tensor:
        check_inputs(x, y)
        found = x.detach().clone()
        if eps == 0 or queries == 0 or len(x) == 0:
            return found
        with model_state_preserved(model, mode), torch.no_grad():
            logits = model(found)
            check_logits(logits, y)
            left = (logits.argmax(1) == y) | (not stop_at_success)
            catch = hunt(
                model, found[left], y[left], Square(norm, queries), eps=eps, norm=norm, restarts=restarts,
                seed=own_seed if seed is None else seed, stop=stop_at_success, lanes=len(x),
            )  # fmt: skip
        found[left] = catch.points
        return found

    return attack


@dataclass(eq=False)
class Square(Search):
    """Square as :func:`square` describes it; it asks forward only."""

    norm: float
    steps: int = 5000
    patience: float = math.inf
    full: int = FULL
    name = "Square"

    coarse = False  # a square changes the margin by less than 16 bits can tell

    def start(self, lanes: Lanes) -> State:
        """Stripes, or a grid of bumps."""
        z = _stripes(lanes) if self.norm == math.inf else self._grid(lanes)
        least = torch.full_like(lanes.y, -math.inf, dtype=torch.promote_types(z.dtype, torch.float32))
        return {"z": z, "best": z, "margin": least, "marks": unmarked(least), "k": torch.zeros_like(lanes.y)}

    def loss(self, lanes: Lanes, state: State, logits: Tensor) -> Tensor:
        """The margin."""
        return margin(logits, lanes.y)

    def ask(self, model: nn.Module, lanes: Lanes, state: State) -> Answer:
        """Ask the model forward, about several queries of each lane in one batch where lanes are few.

        They are made as if none of them were accepted, and the first that is accepted, or wrong and so to be confirmed, ends
        the step: the others are made again from there. So a search finds what it would find one query after another, in
        fewer and fuller batches. Where the best point is wrong already, most queries are, and are asked one at a time.
        """
        count, device = len(lanes.y), lanes.y.device
        own = torch.arange(count, device=device)
        open_ = (state["margin"] <= 0).nonzero().squeeze(1)
        rare = int(state["k"][open_].sum()) // (RARELY * max(len(open_), 1))
        ahead = max(1, min((self.full - count) // max(len(open_), 1) + 1, rare))
        lane = torch.cat([own, open_.repeat(ahead - 1)])
        later = torch.arange(1, ahead, device=device).repeat_interleave(len(open_))
        turn = torch.cat([torch.zeros_like(own), later])
        every = lanes if ahead == 1 else lanes.select(lane)
        with torch.no_grad():
            z = self._proposal(every, state["best"][lane], state["k"][lane] + turn)
            logits = wide(model(z))
        loss = self.loss(every, state, logits)
        if ahead == 1:
            state["z"] = z
            return Answer(logits, loss, None)
        ends, place = torch.zeros(ahead, count, dtype=torch.bool, device=device), own.repeat(ahead, 1)
        ends[turn, lane] = (loss > state["margin"][lane]) | (logits.argmax(1) != every.y)
        place[turn, lane] = torch.arange(len(lane), device=device)
        most = torch.zeros_like(own).index_fill(0, open_, ahead - 1)
        # queries before one after which it is looked at
        most = most.minimum((until_look(self.steps, state["k"]) - 1).clamp(min=0))
        last = torch.where(ends.any(0), ends.int().argmax(0), ahead - 1).minimum(most)
        chosen = place[last, own]
        state["z"], state["k"] = z[chosen], state["k"] + last
        return Answer(logits[chosen], loss[chosen], None, last + 1, len(z))

    def _proposal(self, lanes: Lanes, best: Tensor, k: Tensor) -> Tensor:
        """What query k (L,) asks; the first one where the search begins."""
        channels, height, width = lanes.x.shape[1:]
        side = self._side(k, height, width)
        u = uniform(lanes.keys + (k << 32) * GOLDEN, channels + 5)  # far from the counters of the start
        first = _Window.drawn(u[:, :2], side, height, width)
        signs, rest = _like(u[:, 5:] < 0.5, lanes.x), u[:, 2:5]
        if self.norm == math.inf:
            z = _repaint(lanes, best, first.mask(), signs)
        else:
            second = _Window.drawn(rest[:, :2], side, height, width)
            z = self._move_mass(lanes, best, first, second, signs, turned=rest[:, 2] < 0.5)
        return torch.where(_like(k == 0, z), best, z)

    def advance(self, lanes: Lanes, state: State, answer: Answer) -> State:
        """Keep the proposal if it is better."""
        better = answer.loss > state["margin"]
        best = torch.where(_like(better, lanes.x), state["z"], state["best"])
        loss = torch.where(better, answer.loss, state["margin"])
        return state | {"best": best, "margin": loss, "k": state["k"] + 1}

    def hopeless(self, lanes: Lanes, state: State) -> Tensor:
        """By how the margin grows, towards zero and towards what other attacks reached."""
        short, state["marks"] = falls_short(
            self.steps, state["k"], state["margin"], state["marks"], self.patience, lanes.reached.clamp(max=0)
        )
        return short

    def last(self, lanes: Lanes, state: State) -> Tensor:
        """The point with the largest margin."""
        return state["best"]

    def _side(self, k: Tensor, height: int, width: int) -> Tensor:
        """How wide the square of query k is, (L,); odd for ℓ2 and ℓ1, so that its bumps have a middle."""
        done = k * 10000 // self.steps
        halvings = (done[:, None] > torch.tensor(HALVINGS, device=k.device)).sum(1)
        side = (SHARE * height * width * 0.5**halvings).sqrt().round().long()
        if self.norm != math.inf:
            side = side.clamp(
                min=3 if min(height, width) >= 5 else 1
            )  # pairs of bumps cannot fill fewer pixels
            side = side + 1 - side % 2
        return side.clamp(min=1, max=min(height, width))

    # ------------------------------------------------------------ ℓ2 and ℓ1

    def _grid(self, lanes: Lanes) -> Tensor:
        """Bumps side by side, each with a sign of its own in every channel."""
        count, channels, height, width = lanes.x.shape
        side = max(min(height, width) // 5, 1)
        rows, columns = (torch.arange(n, device=lanes.y.device) for n in (height, width))
        tiles = (channels, (height - 1) // side + 1, (width - 1) // side + 1)
        u = uniform(lanes.keys, 1 + math.prod(tiles))
        signs = 1 - 2 * (u[:, 1:] < 0.5).view(count, *tiles).to(lanes.x)
        cells = _Window(
            (rows % side).expand(count, -1),
            (columns % side).expand(count, -1),
            torch.full_like(lanes.y, side),
        )
        d = cells.bumps(u[:, 0] < 0.5) * signs[:, :, rows // side][..., columns // side]
        length = torch.linalg.vector_norm(d.flatten(1), self.norm, dim=1)
        d = d * _like(lanes.region.eps.to(length.dtype) / length, d)
        return (lanes.x + d).clamp(0, 1).to(lanes.x.dtype)

    def _move_mass(
        self, lanes: Lanes, best: Tensor, first: "_Window", second: "_Window", signs: Tensor, turned: Tensor
    ) -> Tensor:
        """Add bumps to the first window and restore the second, so that the whole has the length ε.

        Outside of both nothing changes: with m the q-th powers of lengths, the first window gets, in channel c,
        m_c(both windows) + (ε^q - m) / C. What the box cuts off is left for the next proposal.
        """
        x, q, here, there = lanes.x, self.norm, first.mask(), second.mask()
        d = wide(best) - x
        size = d.square() if q == 2 else d.abs()
        most = _like((lanes.region.eps**q).to(d.dtype), d)
        left = (most - size.sum((1, 2, 3), keepdim=True)) / x.shape[1]  # a rounding error below 0 counts, too
        length = (left + (size * (here | there)).sum((2, 3), keepdim=True)).clamp(min=0) ** (1 / q)
        bumps = _unit(first.bumps(turned) * here, q) * torch.where(signs, 1, -1)
        new = _unit(d * here, q) + bumps
        gone = (
            torch.linalg.vector_norm(new, q, dim=(2, 3), keepdim=True) < 1e-3
        )  # the old was just the opposite
        new = _unit(torch.where(gone, bumps, new), q) * length
        return torch.where(here, (x + new).clamp(0, 1).to(x.dtype), torch.where(there, x, best))


def _unit(d: Tensor, q: float) -> Tensor:
    """Each channel over its length; zero where it is zero."""
    return d / torch.linalg.vector_norm(d, q, dim=(2, 3), keepdim=True).clamp(min=1e-30)


# ---------------------------------------------------------------- ℓ∞


def _stripes(lanes: Lanes) -> Tensor:
    """As far as the ball goes up or down, by columns."""
    count, channels, _, width = lanes.x.shape
    up = (uniform(lanes.keys, channels * width) < 0.5).view(count, channels, 1, width)
    return torch.where(up, *_ends(lanes))


def _repaint(lanes: Lanes, best: Tensor, here: Tensor, up: Tensor) -> Tensor:
    """The window as far up or down as the ball goes, by channels; the other way round where that is what is there."""
    high, low = _ends(lanes)
    z = torch.where(here, torch.where(up, high, low), best)
    up = up ^ _like((z == best).flatten(1).all(1), z)
    return torch.where(here, torch.where(up, high, low), best)


def _ends(lanes: Lanes) -> tuple[Tensor, Tensor]:
    assert isinstance(lanes.region, LinfBall)  # as the norm says
    return lanes.region.high, lanes.region.low


# ---------------------------------------------------------------- windows


@dataclass
class _Window:
    """A square of each lane's image: where rows (L, H) and columns (L, W) are in it, from 0 to its side (L,)."""

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
        """Which pixels are inside, (L, 1, H, W)."""
        rows, columns = ((p >= 0) & (p < self.side[:, None]) for p in (self.rows, self.columns))
        return rows[:, None, :, None] & columns[:, None, None, :]

    def bumps(self, turned: Tensor) -> Tensor:
        """Two pyramids, one up in the upper half and one down in the lower, (L, 1, H, W); left and right if turned.

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


def _like(lanes: Tensor, z: Tensor) -> Tensor:
    """One number a lane, or one a channel, to be broadcast over images."""
    return lanes.reshape(*lanes.shape, *[1] * (z.ndim - lanes.ndim))
