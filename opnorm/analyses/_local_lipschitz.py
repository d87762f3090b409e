"""The Lipschitz constant of each block on a ball around test points."""

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from opnorm._core.kept_parts import kept
from opnorm._core.settings import check_number, check_sample
from opnorm.analyses._shared.analysis import Analysis, Methods, Row, Rows, register
from opnorm.analyses._shared.points import sample
from opnorm.data import Dataset
from opnorm.jacobian import local_lipschitz as bounds
from opnorm.jacobian.local.block_bounds import LOOSE
from opnorm.report import Axis, Chart, Heading, Panel, Point, draw_curves, method_of, one_sentence

WHOLE = "whole network"


@register("neighborhood of the data")
def local_lipschitz(
    radius: float = 0.0, points: int | None = 3, blocks: Sequence[str] | None = None, seed: int = 0
) -> Analysis:
    """The ℓ2 Lipschitz constant of each block, and of the network, on a ball around some test points, from above and below.

    See :func:`opnorm.local_lipschitz`, also for ``radius`` and ``blocks``. Attention, normalization and gates are known.

    Returns:
        One row a block and point: block ("" is the network), kind, point, radius, lower, upper (None where it is not
        known) and reason, at_center, change, ratio.

    Source: Castin, Ablin & Peyré 2024; Yudin et al. 2025.
    """
    check_sample(points, seed)
    check_number("radius", radius, "a radius of at least 0", least=0)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        x, _ = sample(model, data, points, seed)

        def part(x: Tensor) -> dict[str, Any]:
            return {"rows": [row.as_dict() for row in bounds(model, x, radius, blocks=blocks).rows]}

        parts = [kept(partial(part, point), point)["rows"] for point in x.split(1)]
        return [row | {"point": i} for i, found in enumerate(parts) for row in found]

    return Analysis(rows, sentence, chart=chart)


def sentence(rows: Rows) -> str:
    own = [row for row in rows if not row["block"]]
    lower = statistics.fmean(row["lower"] for row in own)
    upper = [row["upper"] for row in own]
    if None in upper:
        reason = next(row["reason"] for row in own if row["upper"] is None)
        size = f"at least {lower:.3g}; a bound from above is not known ({reason})"
    else:
        size = f"between {lower:.3g} and {statistics.fmean(upper):.3g}"
    where = (
        f"on a ball of radius {own[0]['radius']:g}" if own[0]["radius"] else "in the limit of a small change"
    )
    parts = [f"around {len(own)} test images, {where}, the network amplifies by {size} on average"]
    blocks = [row for row in rows if row["block"]]
    if blocks:
        largest = max(blocks, key=lambda row: row["lower"])
        parts.append(f"of its blocks {largest['block']} amplifies most, by at least {largest['lower']:.3g}")
    if any(row["ratio"] is not None and row["ratio"] > LOOSE for row in own):
        parts.append(
            f"the bound from above is more than {LOOSE:g} times the one from below and says little; take a smaller radius"
        )
    return one_sentence(parts)


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "local-lipschitz",
        "Lipschitz constants of the blocks at test points",
        "The most that each block can lengthen a change of its input near the test points: from below the norm of its "
        "Jacobian there, from above the bound on the ball.",
    )
    names = list(dict.fromkeys(row["block"] or WHOLE for row in rows))
    points = [
        Point(method_of(row), end, row["block"] or WHOLE, row[end])
        for row in rows
        for end in ("lower", "upper")
        if row[end] is not None
    ]
    panels = {
        end: Panel(f"ℓ₂ constant, {side} (log scale)", log=True)
        for end, side in (("lower", "from below"), ("upper", "from above"))
    }
    return draw_curves(points, methods, heading, panels, Axis(quantity="block", names=tuple(names)))
