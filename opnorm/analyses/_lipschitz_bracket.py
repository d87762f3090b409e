"""The Lipschitz constant from above and from below."""

import math

import torch
from torch import Tensor, nn

from opnorm._core.kept_parts import in_parts
from opnorm._core.outputs import output_of
from opnorm._core.settings import check_amounts, check_choice, check_count, check_number, check_sample
from opnorm.analyses._shared.analysis import Analysis, Methods, Row, Rows, register
from opnorm.analyses._shared.points import sample, summary
from opnorm.data import Dataset
from opnorm.jacobian import jacobian_norm, secant_ascent
from opnorm.norms.network.lipschitz import lipschitz_bound
from opnorm.report import Axis, Chart, Heading, Panel, Point, draw_curves, method_of, norm_name, one_sentence

BATCH = 50
LINE = 1000  # inputs of the line


@register("neighborhood of the data", "lipschitz_bracket()", "lipschitz_bracket(norm=inf)")
def lipschitz_bracket(
    norm: float = 2,
    radius: float = 0.1,
    points: int | None = 100,
    steps: int = 20,
    seed: int = 0,
    along: float = 0.0,
) -> Analysis:
    """The network's Lipschitz constant from ℓp to ℓp, from above and from below, of the logits.

    - from above, on all inputs: the layers' norms along the graph (:func:`opnorm.norms.lipschitz_bound`);
    - from below: the largest ‖J(x)‖_p at random test points, and the largest secant slope ‖f(x + z) - f(x)‖_p / ‖z‖_p found
      by ``steps`` of ascent over ‖z‖_p = ``radius``, from the Jacobian's own maximizer; x + z may leave [0, 1].
    - with ``along`` above 0 also the largest slope between neighbors of 1,000 inputs from 0 to that value of the first
      coordinate, the other ones those of the first test point: it finds a slope that is far from the data.

    p is ``norm``. The gap between them shows how little the global bound depends on the data.

    Returns:
        One row: norm, points, radius; upper (None where it is not known) and reason; jacobian and secant (the largest);
        jacobian_mean, secant_mean; with ``along``, along (the largest slope there).

    Source: Liang & Huang 2021, Definition 1; Roth, Kilcher & Hofmann 2020, Sec. 3.
    """
    check_sample(points, seed)
    check_count("steps", steps)
    check_choice("norm", norm, (1, 2, math.inf))
    check_amounts("radius", radius, zero=False)
    check_number("along", along, "a distance of at least 0", least=0)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        x, _ = sample(model, data, points, seed)
        bound = lipschitz_bound(model, x[:1], norm)

        def slopes(x: Tensor) -> Tensor:
            found = jacobian_norm(model, x, norm, norm)
            ascent = secant_ascent(model, x, found.v, radius, norm, norm, steps=steps)
            secant = torch.stack([secant.slope for secant in ascent]).amax(0)
            return torch.stack([found.lower, secant.double()], 1)

        jacobian, secant = in_parts(slopes, x, size=BATCH).unbind(1)
        row = {"norm": f"{norm:g}", "points": len(x), "radius": radius}
        row |= {"upper": bound.value, "reason": bound.reason}
        for key, values in (("jacobian", jacobian), ("secant", secant)):
            row |= {key: float(values.max()), f"{key}_mean": summary(values)["mean"]}
        if along:
            row["along"] = _slope_along(model, x[0], along, norm)
        return [row]

    return Analysis(rows, sentence, chart=chart)


@torch.no_grad()
def _slope_along(model: nn.Module, x: Tensor, end: float, norm: float) -> float:
    """The largest secant slope between neighbors on the line from 0 to ``end`` in the first coordinate."""
    line = x.flatten().repeat(LINE, 1)
    line[:, 0] = torch.linspace(0, end, LINE, dtype=line.dtype, device=line.device)
    logits = torch.cat([output_of(model, part.reshape(-1, *x.shape)) for part in line.split(BATCH)]).double()
    distances = line[:, 0].double().diff()
    return float((torch.linalg.vector_norm(logits.diff(dim=0), norm, dim=1) / distances).max())


def sentence(rows: Rows) -> str:
    parts = []
    for row in rows:
        below, name = max(row["secant"], row["jacobian"], row.get("along", 0.0)), norm_name(row["norm"])
        if row["upper"] is None:
            text = f"slopes up to {below:.3g} were found; a bound is not known ({row['reason']})"
        else:
            ratio = f"at most {below:.3g} was found, {row['upper'] / below:.3g} times less" if below else ""
            text = f"the layers allow a slope of {row['upper']:.3g}; at the data {ratio or 'none was found'}"
        parts.append(f"in {name} {text}")
    return one_sentence(parts)


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "lipschitz-bracket",
        "Slope of the network: bound and measurements",
        "The product of the layers' norms bounds the slope everywhere; the others were measured at test images: the "
        "steepest secant to a point nearby, and the largest and the mean Jacobian norm. A large gap means that the bound "
        "depends little on the data.",
    )
    names = {"bound": "upper", "largest secant": "secant", "largest Jacobian": "jacobian"}
    names["mean Jacobian"] = "jacobian_mean"
    panels = {row["norm"]: Panel(f"{norm_name(row['norm'])} slopes (log scale)", log=True) for row in rows}
    points = [
        Point(method_of(row), row["norm"], name, row[key]) for row in rows for name, key in names.items()
    ]
    return draw_curves(points, methods, heading, panels, Axis(quantity="slope", names=tuple(names)))
