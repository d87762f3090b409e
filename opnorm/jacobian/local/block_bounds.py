"""Lipschitz constants of a network and of its blocks on a ball around a point, between two ends."""

import fnmatch
import functools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opnorm._core.layers import in_float64, unwrap
from opnorm._core.modes import evaluating, in_default_modes
from opnorm._core.outputs import one_tensor, raw_output_of
from opnorm._core.settings import check_number
from opnorm.errors import BoundError, NormError
from opnorm.jacobian.local.ball_walk import LocalWalk
from opnorm.jacobian.local.known_values import Known
from opnorm.jacobian.point_norms import jacobian_norm
from opnorm.jacobian.products import check_points
from opnorm.norms import display
from opnorm.norms.network.attention import EXPANSIONS
from opnorm.norms.network.graph import attributes_restored, forward_graph, no_random_numbers, same_output
from opnorm.norms.network.interpreter import KnownFactors, NodeBound
from opnorm.norms.network.trace import eagerly, map_tensors, tensors_in
from opnorm.norms.number_text import rounded

__all__ = ["LocalBound", "LocalTable", "local_lipschitz"]

WHOLE = "(whole network)"
CLOSE = 1.1  # upper / lower, beyond which the Jacobians between the values of the forward are computed
LOOSE = 100.0  # upper / lower, beyond which the upper end says little
SAYS_LITTLE = (
    f"Where the ratio is above {LOOSE:g}, the upper end holds and says little about the block: over the ball the derivative "
    "may be far larger than at its center. A smaller radius may narrow it"
)
SLACK = 1e-9  # relative: rounding of the last few operations in float64


@dataclass(frozen=True)
class LocalBound:
    """The ℓ2 Lipschitz constant of a block on a ball around its input at one point: lower <= constant <= upper.

    Attributes:
        block: its name in the network; "" is the network itself.
        kind: its class.
        point: the index of the point.
        radius: of the ball around the block's own input, in ℓ2.
        lower: ‖J‖_2 at the center, from below.
        upper: None where no bound is known.
        at_center: ‖J‖_2 at the center, from above.
        change: the part of ``upper`` that is due to the change of J over the ball, by the kind of the operation.
        reason: why ``upper`` is not known; empty where it is.
        nodes: the operations of the block, each with its own constant on the ball and that of the block up to it.
    """

    block: str
    kind: str
    point: int
    radius: float
    lower: float
    upper: float | None
    at_center: float
    change: dict[str, float]
    reason: str
    nodes: tuple[NodeBound, ...]

    @property
    def ratio(self) -> float | None:
        """``upper / lower``."""
        return self.upper / self.lower if self.upper is not None and self.lower > 0 else None

    @property
    def says_little(self) -> bool:
        """Whether the upper end is so far above the lower one that it tells nothing of the block."""
        return self.ratio is not None and self.ratio > LOOSE

    def as_dict(self) -> dict[str, Any]:
        """Plain values ready for JSON, without the nodes."""
        values = {k: v for k, v in asdict(self).items() if k != "nodes"}
        return values | {
            "ratio": self.ratio,
            "at_center": None if math.isinf(self.at_center) else self.at_center,
        }


@dataclass(frozen=True)
class LocalTable(display.TextTable):
    """The blocks of a network at some points; prints itself.

    Attributes:
        rows: point by point the blocks in the order of the forward pass, and the network itself.
    """

    rows: tuple[LocalBound, ...]

    def to_json(self) -> str:
        """The rows as a JSON list of objects."""
        return json.dumps([row.as_dict() for row in self.rows], indent=2, allow_nan=False)

    def grid(self, width: int | None = None) -> display.Grid:
        """A line for each block and point."""
        cells, notes = [], []
        for row in self.rows:
            upper, ratio = row.upper, row.ratio
            most = max(row.change, key=lambda name: row.change[name], default="")
            cells.append(
                [
                    row.block or WHOLE,
                    row.kind,
                    str(row.point),
                    rounded(row.lower, up=False),
                    "not known" if upper is None else rounded(upper, up=True),
                    "-" if ratio is None else rounded(ratio, up=True, digits=3),
                    most,
                ]
            )
            notes.append([row.reason] if row.reason else [])
        head = ["block", "kind", "point", "‖J‖ at it ≥", "on the ball ≤", "ratio", "most change by"]
        radius = self.rows[0].radius if self.rows else 0.0
        total = [f"ℓ2 Lipschitz constants on balls of radius {radius:g} around the input of each block"]
        if any(row.says_little for row in self.rows):
            total.append(SAYS_LITTLE)
        return display.Grid(head, cells, 3, total, notes)


@in_default_modes
def local_lipschitz(
    model: nn.Module,
    x: Tensor,
    radius: float = 0.0,
    *,
    blocks: str | Sequence[str] | None = None,
    steps: int = 40,
) -> LocalTable:
    """How far a network, and each of its blocks, can amplify a small change near each of some points, in ℓ2, as intervals.

    For attention, LayerNorm, RMSNorm and gates, which have no useful Lipschitz constant on all inputs. On the ball
    ‖z - z₀‖_2 ≤ r around the input z₀ of a block,

        ‖J(z₀)‖_2  ≤  Lipschitz constant  ≤  ‖J(z₀)‖_2 + max ‖J(z) - J(z₀)‖_2.

    The first term is the norm of the Jacobian at the point, an interval by :func:`opnorm.jacobian_norm` in float64; with
    r = 0 it is the answer. The second one is bounded along the graph of the forward: an operation f multiplies J by Df,
    which changes by a proved amount over the ball (:mod:`opnorm.jacobian.local.ball_rules`). The product of the
    operations' own constants is the upper end where it is smaller.

    Args:
        model: any network, in eval mode; a copy in float64 is measured. Bounds are of exact arithmetic with its weights.
        x: points (B, *in).
        radius: r, of the ball around the input of each block and of the network: the same number for each.
        blocks: patterns of module names, such as ``"blocks.*.attn"``; by default the innermost entries of ``nn.Sequential``
            and ``nn.ModuleList`` that are no single layers. The first call of a module counts.
        steps: of each Lanczos iteration, whose end is right with probability 1 - 1e-9; with r > 0 a block takes several.

    Returns:
        :class:`LocalTable`, with a row for each block and the network at each point. Where an operation has no bound,
        ``upper`` is None and ``reason`` names it.

    Raises:
        NormError: a negative radius, a pattern that no module matches, or x that is no batch of floating point numbers.
        ModelError: as :func:`opnorm.jacobian.linearized`.

    Source: Castin, Ablin & Peyré 2024; Kim, Papamakarios & Mnih 2021; Yudin et al. 2025.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> layer = torch.nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True)
        >>> (row,) = local_lipschitz(layer, torch.randn(1, 5, 16), radius=0.01).rows
        >>> row.lower <= row.upper <= 3 * row.lower
        True
    """
    check_points(x)
    check_number("radius", radius, "a radius of at least 0", least=0, error=NormError)
    network = in_float64(unwrap(model))
    names = _blocks(network, blocks)
    known: KnownFactors = {}
    rows = []
    for place, point in enumerate(x.detach().double().split(1)):
        calls = _calls(network, names, point)
        for name in (*calls, ""):
            at = _AtPoint(*calls[name]) if name else network
            value = at.start if isinstance(at, _AtPoint) else point
            kind = type(network.get_submodule(name)).__name__
            rows.append(_row(at, value, radius, steps, known, (name, kind, place)))
    return LocalTable(tuple(rows))


def _row(
    at: nn.Module, z: Tensor, radius: float, steps: int, factors: KnownFactors, names: tuple[str, str, int]
) -> LocalBound:
    J = jacobian_norm(at, z, steps=steps)
    lower, center = float(J.lower), float(J.upper)
    nodes: list[NodeBound] = []
    found = None
    reason, upper = "", center if radius == 0 else math.inf
    try:
        for inner in (0, 3 * steps // 4) if radius else (0,):
            nodes.clear()
            found = _walked(at, z, radius, factors, nodes, inner)
            center = min(center, found.norm * (1 + SLACK))
            upper = min(upper, found.most * (1 + SLACK), (center + found.change) * (1 + SLACK))
            if upper <= lower * CLOSE:
                break
    except BoundError as e:
        reason = str(e)
    if not math.isfinite(upper):
        reason = reason or "the bound is too large for a number"
        return LocalBound(*names, float(radius), lower, None, center, {}, reason, tuple(nodes))
    change = dict(found.parts) if found else {}
    return LocalBound(*names, float(radius), lower, upper, center, change, "", tuple(nodes))


def _walked(
    at: nn.Module, z: Tensor, radius: float, factors: KnownFactors, nodes: list[NodeBound], steps: int
) -> Known:
    """What is known of the output; with ``steps`` by the Jacobians between its values."""
    with attributes_restored(at), evaluating(at):
        forward = forward_graph(nn.Sequential(at), z, written_out=EXPANSIONS)
        walk = LocalWalk(forward, radius, factors, nodes, steps)
        with no_random_numbers(), eagerly():
            output = one_tensor(at(z.clone()))
            with torch.set_grad_enabled(steps > 0):
                value = walk.run(z.clone().requires_grad_(steps > 0))
    found = walk.result[0] if len(walk.result) == 1 else BoundError("it returns several tensors")
    if isinstance(found, BoundError):
        raise found
    if found is None:
        raise BoundError("its output does not depend on the input")
    if not same_output(value, output):
        raise BoundError("its graph gives another output than the model: control flow by the data?")
    if steps:
        found = walk.telescoped(found, value[0])
    return found


# ---------------------------------------------------------------- blocks


def _blocks(model: nn.Module, patterns: str | Sequence[str] | None) -> list[str]:
    """The names of the blocks, in the order of their registration."""
    if patterns is None:
        listed = [
            f"{name}.{child}".removeprefix(".")
            for name, parent in model.named_modules()
            if isinstance(parent, nn.Sequential | nn.ModuleList)
            for child, module in parent.named_children()
            if any(True for _ in module.children())
        ]
        return [n for n in dict.fromkeys(listed) if not any(m.startswith(f"{n}.") for m in listed)]
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise NormError(f"blocks={pattern!r} matches no module; there are {display.first_few(names, 6)}")
    return [name for name in names if any(fnmatch.fnmatchcase(name, p) for p in patterns)]


Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def _calls(model: nn.Module, names: Sequence[str], point: Tensor) -> dict[str, Call]:
    """The first call of each block, in order; blocks that are not called, or not with a tensor, are left out."""
    calls: dict[str, Call] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name not in calls and any(
                t.is_floating_point() and t.ndim for t in tensors_in((args, kwargs))
            ):
                given = map_tensors((args, kwargs), lambda t: t.detach().clone())
                calls[name] = module, given[0], given[1]

        return hook

    handles = [model.get_submodule(n).register_forward_pre_hook(keep(n), with_kwargs=True) for n in names]
    try:
        with evaluating(model), eagerly():
            raw_output_of(model, point)
    finally:
        for handle in handles:
            handle.remove()
    return calls


class _AtPoint(nn.Module):
    """A block as a function of the first tensor that it was called with, (B, *shape): all of it is one point."""

    def __init__(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.block = block
        self._given = args, kwargs
        self._first = next(t for t in tensors_in((args, kwargs)) if t.is_floating_point() and t.ndim)
        self.start = self._first[None]

    def forward(self, z: Tensor) -> Tensor:
        return torch.stack(list(self._outputs(z)))

    def _outputs(self, z: Tensor) -> Iterator[Tensor]:
        for point in z:
            args, kwargs = map_tensors(self._given, functools.partial(self._replaced, by=point))
            yield one_tensor(self.block(*args, **kwargs))

    def _replaced(self, t: Tensor, by: Tensor) -> Tensor:
        return by.double() if t is self._first else t
