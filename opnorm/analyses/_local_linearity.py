"""The deviation of the features from their linearization."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from opnorm._core.kept_parts import in_parts
from opnorm._core.settings import check_amounts, check_sample
from opnorm.analyses._shared.analysis import Analysis, Methods, Row, Rows, register
from opnorm.analyses._shared.points import ROTH_ATTACK, amounts, attacked, in_double, sample, summary
from opnorm.attacks import Attack
from opnorm.data import Dataset
from opnorm.jacobian import features, jacobian_norm, linearized, lp_norm, random_start
from opnorm.report import Axis, Chart, Heading, Panel, Point, draw_curves, method_of

BATCH = 50
STEPS = 20  # of Lanczos iteration, for averages


@register("neighborhood of the data")
def local_linearity(
    points: int | None = 100,
    distances: Sequence[float] = (0, 0.1, 0.25, 0.5, 1, 1.5, 2),
    attack: Attack = ROTH_ATTACK,
    layer: str | None = None,
    seed: int = 0,
) -> Analysis:
    """The deviation of the features from linear, and their slope, against the distance from a random test point.

    Along z = t d, with d of ℓ2 length 1, random or toward the attacked point: the deviation ‖φ(x + z) - (φ(x) + J(x) z)‖_2
    and the largest singular value of J(x + z), against t = ‖z‖_2, one of ``distances``. Pixels may leave [0, 1]. In float64.
    For the features see :func:`jacobian_spectrum`.

    Returns:
        One row a direction ("random", "adversarial") and distance: direction, distance, layer, points, and for deviation and
        sigma each the mean and its standard error: deviation, deviation_sem, sigma, sigma_sem.

    Raises:
        AttackError: the attack leaves a point where it is.

    Source: Roth, Kilcher & Hofmann 2020, Fig. 4.
    """
    check_sample(points, seed)
    check_amounts("distances", distances)
    lengths = amounts(distances)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        x, y = sample(model, data, points, seed)
        toward = (attacked(model, x, y, attack, seed) - x).double()
        toward = toward / lp_norm(toward, 2).view(-1, *(1,) * (x.ndim - 1))
        x = x.double()
        f = features(in_double(model), x, layer)
        found = []
        for direction, d in (("random", random_start(x, 2, seed)), ("adversarial", toward)):
            deviations = in_parts(partial(_deviations, f, lengths=lengths), x, d, size=BATCH)
            for length, deviation in zip(lengths, deviations.T, strict=True):
                row = {"direction": direction, "distance": length, "layer": f.layer, "points": len(x)}
                sigma = in_parts(partial(_sigma, f), x + length * d, size=BATCH)
                for key, values in (("deviation", deviation), ("sigma", sigma)):
                    means = summary(values)
                    row |= {key: means["mean"], f"{key}_sem": means["sem"]}
                found.append(row)
        return found

    return Analysis(rows, sentence, chart=chart)


def _deviations(f: nn.Module, x: Tensor, d: Tensor, lengths: list[float]) -> Tensor:
    """‖φ(x + t d) - φ(x) - t J d‖_2, (B, lengths)."""
    with linearized(f, x) as J:
        here, slope = J.outputs.detach(), J @ d
    with torch.no_grad():
        return torch.stack([lp_norm(f(x + t * d) - here - t * slope, 2) for t in lengths], 1)


def _sigma(f: nn.Module, x: Tensor) -> Tensor:
    return jacobian_norm(f, x, steps=STEPS).lower


def sentence(rows: Rows) -> str:
    ends = {row["direction"]: row for row in sorted(rows, key=lambda row: row["distance"])}
    ends = {direction: ends[direction] for direction in ("random", "adversarial")}
    deviations = " and ".join(f"{row['deviation']:.3g} in {d} directions" for d, row in ends.items())
    sigmas = " and ".join(f"{row['sigma']:.3g}" for row in ends.values())
    return (
        f"At a distance of {ends['random']['distance']:g} the features deviate from their linearization by {deviations}; "
        f"the largest singular value there is {sigmas}."
    )


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "local-linearity",
        "Linearity around an image",
        "Deviation: the distance between the features and their linearization by the Jacobian at the image, when the image "
        "is changed by so much. Singular value: the largest one of the Jacobian there. Low lines belong to a network that a "
        "linear map describes well.",
    )
    quantities = {"deviation": "Deviation", "sigma": "Largest singular value"}
    panels = {
        f"{key}, {direction}": Panel(f"{title}, {direction} direction")
        for key, title in quantities.items()
        for direction in ("random", "adversarial")
    }
    points = [
        Point(method_of(row), f"{key}, {row['direction']}", row["distance"], row[key])
        for row in rows
        for key in quantities
    ]
    x = Axis("Euclidean length of the change (pixels are in [0, 1])")
    return draw_curves(points, methods, heading, panels, x)
