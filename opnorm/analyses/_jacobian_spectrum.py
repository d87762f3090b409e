"""The singular values of the Jacobian of the last hidden features."""

from functools import partial

from torch import nn

from opnorm._core.kept_parts import in_parts
from opnorm._core.settings import check_sample
from opnorm.analyses._shared.analysis import Analysis, Methods, Row, Rows, register
from opnorm.analyses._shared.points import JACOBIANS, ROTH_ATTACK, attacked, by_rank, sample, summary
from opnorm.attacks import Attack
from opnorm.data import Dataset
from opnorm.jacobian import features, singular_values
from opnorm.report import Axis, Chart, Heading, Panel, draw_curves, method_of

FLOAT32_ERROR = 1e-7  # of the largest singular value


@register("neighborhood of the data")
def jacobian_spectrum(
    points: int | None = 200, attack: Attack = ROTH_ATTACK, layer: str | None = None, seed: int = 0
) -> Analysis:
    """All singular values of the Jacobian of the features, at clean and at attacked random test points.

    Features are φ^{L-1}, the input of the last linear layer, unless ``layer`` is given.

    Returns:
        Two rows: at ("clean", "attacked"), layer, points, mean and sem (standard error over the points; lists by rank).

    Source: Roth, Kilcher & Hofmann 2020, Fig. 2 left.
    """
    check_sample(points, seed)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        x, y = sample(model, data, points, seed)
        f = features(model, x, layer)
        both = {"clean": x, "attacked": attacked(model, x, y, attack, seed)}
        values = {at: in_parts(partial(singular_values, f), z, size=JACOBIANS) for at, z in both.items()}
        return [
            {"at": at, "layer": f.layer, "points": len(x), **summary(found)} for at, found in values.items()
        ]

    return Analysis(rows, sentence, chart=chart)


def sentence(rows: Rows) -> str:
    clean, moved = (next(r["mean"][0] for r in rows if r["at"] == at) for at in ("clean", "attacked"))
    return (
        f"The last hidden features amplify a small change of an image by up to {clean:.3g} on average, and that of an "
        f"attacked image by up to {moved:.3g}."
    )


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "jacobian-spectrum",
        "Singular values of the Jacobian",
        "The amplification of a small change of the image in the last hidden features: in the direction of the largest "
        "amplification (rank 1), in the next, and so on; averages over test images. A lower line is a less sensitive "
        "network.",
    )
    panels = {
        "clean": Panel("At clean test images (log scale)", log=True),
        "attacked": Panel("At attacked test images (log scale)", log=True),
    }
    points = []
    for row in rows:
        least = FLOAT32_ERROR * max(row["mean"], default=0.0)  # less is rounding
        points += by_rank(method_of(row), row["at"], [s for s in row["mean"] if s >= least])
    x = Axis("rank of the singular value", log=True)
    return draw_curves(points, methods, heading, panels, x, dots=False)
