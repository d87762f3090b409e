"""The operator norm of the Jacobian at each of some points, for any pair of norms."""

import math
import statistics
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from opnorm._core.kept_parts import kept
from opnorm._core.orders import check_alpha, check_orders
from opnorm._core.settings import check_count, check_sample
from opnorm.analyses._shared.analysis import Analysis, Cells, Methods, Row, Rows, register
from opnorm.analyses._shared.points import sample, six_digits
from opnorm.data import Dataset
from opnorm.jacobian import jacobian_norm
from opnorm.report import (
    Axis,
    Chart,
    Column,
    Heading,
    Panel,
    Sample,
    draw_curves,
    histogram_points,
    method_of,
)

BATCH = 20


@register("neighborhood of the data")
def jacobian_norms(
    p: float = 2,
    q: float = 2,
    points: int | None = 100,
    steps: int = 40,
    restarts: int = 8,
    alpha: float | None = None,
    seed: int = 0,
) -> Analysis:
    """‖J(x)‖_{p→q} of the logits at random test points, each as an interval.

    ``steps``, ``restarts`` and ``alpha`` as of :func:`opnorm.jacobian_norm`: with α = None each pair of norms goes the way
    that is exact for it or has a bound from above; a number is the step length of Roth's iteration, from below alone, with
    ``alpha=inf, steps=10, restarts=1`` as published.

    Returns:
        One row: p, q, alpha, steps, restarts, points, algorithm; lower and upper (lists, one value a point; None for an
        upper end that is not known).

    Raises:
        NormError: p or q below 1, or another α.

    Source: Roth, Kilcher & Hofmann 2020, Table 1, Eqs. 8 to 12.
    """
    check_sample(points, seed)
    check_count("steps", steps)
    check_count("restarts", restarts)
    check_orders(p, q)
    check_alpha(alpha, p, optional=True)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        x, _ = sample(model, data, points, seed)

        def part(x: Tensor) -> dict[str, Any]:
            found = jacobian_norm(model, x, p, q, steps=steps, restarts=restarts, seed=seed, alpha=alpha)
            return {"lower": found.lower, "upper": found.upper, "method": found.method}

        parts = [kept(partial(part, some), some) for some in x.split(BATCH)]
        lower, upper = (six_digits(torch.cat([found[end] for found in parts])) for end in ("lower", "upper"))
        row: Row = {"p": f"{p:g}", "q": f"{q:g}", "alpha": None if alpha is None else f"{alpha:g}"}
        row |= {"steps": steps, "restarts": restarts, "points": len(x), "algorithm": parts[0]["method"]}
        return [row | {"lower": lower, "upper": [end if math.isfinite(end) else None for end in upper]}]

    return Analysis(rows, sentence, columns, chart)


def sentence(rows: Rows) -> str:
    (row,) = rows
    lower, most = statistics.fmean(row["lower"]), max(row["lower"])
    if row["lower"] == row["upper"]:
        size = f"{lower:.4g}"
    elif None in row["upper"]:
        size = f"at least {lower:.4g}"
    else:
        size = f"between {lower:.4g} and {statistics.fmean(row['upper']):.4g}"
    return (
        f"The {_name(row)} norm of the Jacobian of the logits is {size} on average over {row['points']} test images, at "
        f"least {most:.4g} at the largest ({row['algorithm']})."
    )


def columns(rows: Rows) -> Cells:
    (row,) = rows
    label = f"Jacobian norm {_name(row)}"
    help = "Largest amplification of a small change of an image in the logits, from below; average over test images."
    return [(Column("jacobian_norm", label, "number", "low", help), statistics.fmean(row["lower"]))]


def _name(row: Row) -> str:
    return f"{row['p']}→{row['q']}".replace("inf", "∞")


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    names = sorted({_name(row) for row in rows})
    heading = Heading(
        "jacobian-norms",
        f"Norms of the Jacobian, {', '.join(names)}" if names else "Norms of the Jacobian",
        "The largest amplification of a small change of the image in the logits: the share of test images (per bin) at each "
        "value, from below and, where a bound is known, from above. Further left is a less sensitive network.",
    )
    panels = {
        end: Panel(f"Share of the images, {side}", percent=True, quantity="images here")
        for end, side in (("lower", "lower end"), ("upper", "upper end"))
    }
    samples = [
        Sample(method_of(row), end, [v for v in row[end] if v is not None]) for row in rows for end in panels
    ]
    x = Axis("operator norm (log scale)", log=True)
    return draw_curves(histogram_points(samples, log=True), methods, heading, panels, x, dots=False)
