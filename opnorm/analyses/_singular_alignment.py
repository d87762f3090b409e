"""The alignment of adversarial perturbations with the singular vectors of the Jacobian."""

import math
from functools import partial

from torch import nn

from opnorm._core.kept_parts import in_parts
from opnorm._core.settings import check_sample
from opnorm.analyses._shared.analysis import Analysis, Methods, Row, Rows, register
from opnorm.analyses._shared.points import (
    JACOBIANS,
    ROTH_ATTACK,
    attacked,
    by_rank,
    random_network,
    sample,
    summary,
)
from opnorm.attacks import Attack
from opnorm.data import Dataset
from opnorm.jacobian import alignment, features
from opnorm.report import Axis, Chart, Heading, Panel, draw_curves, method_of, significant


@register("neighborhood of the data")
def singular_alignment(
    points: int | None = 200, attack: Attack = ROTH_ATTACK, layer: str | None = None, seed: int = 0
) -> Analysis:
    """|cos| between the adversarial perturbation and each right singular vector of the Jacobian of the features.

    At random test points. For comparison, the same perturbations beside the singular vectors of the network with random
    weights, and the value for a random direction and any vector, sqrt(2 / (π n)) for n pixels. For the features see
    :func:`jacobian_spectrum`.

    Returns:
        Two rows: network ("own", "random"), layer, points, chance, mean and sem (standard error over the points; lists by
        rank).

    Raises:
        AttackError: the attack leaves a point where it is.

    Source: Roth, Kilcher & Hofmann 2020, Fig. 2 right.
    """
    check_sample(points, seed)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        x, y = sample(model, data, points, seed)
        z = attacked(model, x, y, attack, seed) - x
        chance = significant(math.sqrt(2 / (math.pi * x[0].numel())), 6)
        found = []
        for name, network in (("own", model), ("random", random_network(model, seed))):
            f = features(network, x, layer)
            row = {"network": name, "layer": f.layer, "points": len(x), "chance": chance}
            cosines = in_parts(partial(alignment, f), x, z, size=JACOBIANS)
            found.append(row | summary(cosines))
        return found

    return Analysis(rows, sentence, chart=chart)


def sentence(rows: Rows) -> str:
    own, random = (next(r for r in rows if r["network"] == name) for name in ("own", "random"))
    first, last = own["mean"][0], own["mean"][-1]
    return (
        f"The attack's change of an image has a cosine of {first:.2f} with the first singular vector of the network's "
        f"Jacobian and {last:.2g} with the last (chance: {own['chance']:.2g}); with the first one of a network of random "
        f"weights it is {random['mean'][0]:.2g}."
    )


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    chance = next((row["chance"] for row in rows), None)
    random = f" For a random direction it is about {chance:.2g}." if chance is not None else ""
    heading = Heading(
        "singular-alignment",
        "Alignment of attacks with singular vectors",
        "The absolute cosine between the adversarial change of an image and each right singular vector of the Jacobian, the "
        f"one with the largest singular value first.{random}",
    )
    panels = {"own": Panel("With the network's own"), "random": Panel("With those of random weights")}
    points = [point for row in rows for point in by_rank(method_of(row), row["network"], row["mean"])]
    x = Axis("rank of the singular vector", log=True)
    return draw_curves(points, methods, heading, panels, x, dots=False)
