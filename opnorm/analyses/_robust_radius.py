"""An interval around each point's robust radius: certified from below, attacked from above."""

import math
import statistics

from torch import Tensor, nn

from opnorm._core.attack_settings import check_radii
from opnorm._core.kept_parts import in_parts
from opnorm._core.settings import check_choice, check_count, check_sample
from opnorm.analyses._shared.analysis import Analysis, Methods, Row, Rows, register
from opnorm.analyses._shared.points import sample, six_digits
from opnorm.attacks import Attack, pgd
from opnorm.attacks.minimum_norm import minimal_eps
from opnorm.certificates.radius import lipschitz_radius
from opnorm.data import Dataset
from opnorm.norms.network.lipschitz import lipschitz_bound
from opnorm.report import (
    Chart,
    Heading,
    Panel,
    Point,
    draw_curves,
    eps_axis,
    method_of,
    norm_name,
    one_sentence,
)

BATCH = 50
RADII = 31  # points on a line


@register("accuracy and robustness")
def robust_radius(
    norm: float = math.inf, highest: float = 0.3, points: int | None = 100, steps: int = 20, seed: int = 0
) -> Analysis:
    """An interval around the robust radius of random test points, the distance of the closest misclassified input.

    - from below, certified: margin over Lipschitz constant (:func:`opnorm.certificates.lipschitz_radius`), and at most
      n^(1/p), as no two points of [0, 1]^n are further apart;
    - from above: the closest misclassified input that PGD finds by bisection, up to the radius ``highest``
      (:func:`opnorm.attacks.minimum_norm.minimal_eps`).

    Both are 0 at points that are misclassified without an attack. p is ``norm``.

    Returns:
        One row: norm, points, highest, lipschitz (an upper bound on the constant of the logits from ℓp to ℓp, or None where
        it is not known) and reason; certified and attacked (lists, point by point; attacked is None where nothing was found
        up to ``highest``).

    Source: Tsuzuku, Sato & Sugiyama 2018 (margin over Lipschitz constant).
    """
    check_sample(points, seed)
    check_count("steps", steps)
    check_choice("norm", norm, (1, 2, math.inf))
    check_radii("highest", highest, norm, zero=False)

    def attack(radius: float) -> Attack:
        return pgd(norm, radius, steps, stop_at_success=True, seed=seed)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        x, y = sample(model, data, points, seed)
        bound = lipschitz_bound(model, x[:1], norm)
        certified = lipschitz_radius(model, x, y, norm).clamp(max=x[0].numel() ** (1 / norm))

        def closest(x: Tensor, y: Tensor) -> Tensor:
            return minimal_eps(model, x, y, attack, norm, highest).distance

        distance = six_digits(in_parts(closest, x, y, size=BATCH))
        attacked = [d if math.isfinite(d) else None for d in distance]
        row = {"norm": f"{norm:g}", "points": len(x), "highest": highest}
        row |= {"lipschitz": bound.value, "reason": bound.reason}
        return [row | {"certified": certified.tolist(), "attacked": attacked}]

    return Analysis(rows, sentence, chart=chart)


def sentence(rows: Rows) -> str:
    parts = []
    for row in rows:
        certified = statistics.median(row["certified"])
        attacked = statistics.median(math.inf if d is None else d for d in row["attacked"])
        unbroken = f"not misclassified up to {row['highest']:g}"
        above = f"misclassified at {attacked:.3g}" if attacked < math.inf else unbroken
        parts.append(
            f"in {norm_name(row['norm'])} half of the images are proven robust to changes of {certified:.3g}, and half are "
            f"{above}"
        )
    return one_sentence(parts)


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "robust-radius",
        "Robust accuracy from below and from above",
        "The share of test images that are proven to be classified correctly under any change of size ε, and the share for "
        "which the attack found no adversarial image. The truth lies in between.",
    )
    sides = {"certified": "Proven", "attacked": "Not broken by the attack"}
    panels, points = {}, []
    for row in rows:
        for side, title in sides.items():
            key = f"{side} {row['norm']}"
            panels[key] = Panel(f"{title}, {norm_name(row['norm'])}", percent=True, x=eps_axis(row["norm"]))
            radii = [math.inf if d is None else d for d in row[side]]
            for k in range(RADII):
                eps = row["highest"] * k / (RADII - 1)
                share = sum(radius > eps for radius in radii) / len(radii)
                points.append(Point(method_of(row), key, eps, share))
    return draw_curves(points, methods, heading, panels, dots=False)
