"""The size of the linear regions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opnorm._core.random import point_keys, uniform
from opnorm._core.settings import check_amounts, check_sample
from opnorm.analyses._shared.analysis import Analysis, Methods, Row, Rows, register
from opnorm.analyses._shared.points import amounts, sample, summary
from opnorm.data import Dataset
from opnorm.jacobian import activations, shared_activations
from opnorm.report import Axis, Chart, Heading, Panel, Point, draw_curves, method_of

BATCH = 50


@register("neighborhood of the data")
def relu_cells(
    points: int | None = 100, eps: Sequence[float] = (0, 0.01, 0.02, 0.05, 0.1, 0.2), seed: int = 0
) -> Analysis:
    """The share of ReLU units that keep their state when uniform noise in [-ε, ε] is added to every pixel.

    Around random test points, and around as many points drawn uniformly from [0, 1]^n, away from the data. The faster it
    falls with ε, the smaller are the linear regions. Pixels may leave [0, 1].

    Returns:
        One row a place ("data", "noise") and ε: around, eps, points, units, mean, sem (standard error over the points), and
        both_on, both_on_sem: the share of units that are on without and with the noise, m⁻¹ |φ(x) ∩ φ(x + z)|, as in the
        paper. It is below 1 at ε = 0, too, and falls when units are off, not only when their state changes.

    Raises:
        ModelError: the network has no ReLU or other piecewise linear unit.

    Source: Roth, Kilcher & Hofmann 2020, Fig. 5.
    """
    check_sample(points, seed)
    check_amounts("eps", eps)
    radii = amounts(eps)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        x, _ = sample(model, data, points, seed)
        found: list[Row] = []
        for around, center in (("data", x), ("noise", _uniform(x, seed, 1))):
            noise, parts = 2 * _uniform(center, seed, 2) - 1, []
            for a, z in zip(center.split(BATCH), noise.split(BATCH), strict=True):
                home = activations(model, a)
                moved = [activations(model, a + e * z) for e in radii]
                shares = [[shared_activations(home, to, on) for to in moved] for on in (False, True)]
                parts.append(torch.stack([torch.stack(of_radii) for of_radii in shares]))
            base = {"around": around, "points": len(x), "units": home.units.shape[1]}
            for e, same, both_on in zip(radii, *torch.cat(parts, 2), strict=True):
                on = summary(both_on)
                row = base | {"eps": e} | summary(same)
                found.append(row | {"both_on": on["mean"], "both_on_sem": on["sem"]})
        return found

    return Analysis(rows, sentence, chart=chart)


def _uniform(x: Tensor, seed: int, stream: int) -> Tensor:
    return uniform(point_keys(x, seed, stream), x[0].numel()).to(x.dtype).view_as(x)


def sentence(rows: Rows) -> str:
    largest = max(row["eps"] for row in rows)
    data, noise = (
        next(row for row in rows if (row["around"], row["eps"]) == (around, largest))
        for around in ("data", "noise")
    )
    return (
        f"Noise of {largest:g} on every pixel leaves {100 * data['mean']:.1f} % of the ReLU units in their state around "
        f"test images and {100 * noise['mean']:.1f} % around uniform noise: {_compared(data, noise)}."
    )


def _compared(data: Row, noise: Row) -> str:
    """Which regions are larger; neither for one point, or where the means differ by two standard errors or less."""
    difference, error = data["mean"] - noise["mean"], math.hypot(data["sem"], noise["sem"])
    if data["points"] > 1 and abs(difference) > 2 * error:
        return f"the linear regions around the data are {'larger' if difference > 0 else 'smaller'} than elsewhere"
    return "these points do not tell whether the linear regions around the data are larger or smaller than elsewhere"


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "relu-cells",
        "Size of the linear regions",
        "The share of ReLU units that stay on, or stay off, when uniform noise of this size is added to every pixel: around "
        "test images, and around images that are noise themselves. A line that stays high means large linear regions. "
        "Below: the share of units that are on before and after, which is less than 100 % without noise, too.",
    )
    titles = {"mean": "Same state", "both_on": "On before and after"}
    places = {"data": "around test images", "noise": "around uniform noise"}
    panels = {
        f"{key} {around}": Panel(f"{title}, {place}", percent=True)
        for key, title in titles.items()
        for around, place in places.items()
    }
    points = [
        Point(method_of(row), f"{key} {row['around']}", row["eps"], row[key])
        for row in rows
        for key in titles
    ]
    return draw_curves(points, methods, heading, panels, Axis("size of the noise (pixels are in [0, 1])"))
