"""The charts of Roth, Kilcher & Hofmann 2020, and of bounds that hold everywhere beside what is seen at the data.

Each takes the rows of one analysis (:mod:`opnorm.analyses`), every one with its ``method`` and ``seed``; see
:mod:`opnorm.report.charts` for what all charts share.
"""

import math
from collections.abc import Iterator, Sequence

from opnorm.report.curves import Head, Panel, Point, curves
from opnorm.report.model import Chart
from opnorm.report.vega import ORDS, Row, short

__all__ = [
    "jacobian_spectrum",
    "lipschitz_bracket",
    "local_linearity",
    "power_method_agreement",
    "relu_cells",
    "robust_radius",
    "singular_alignment",
]

RANKS = 40  # points on one line
ROUNDING = 1e-7  # of the largest singular value
RADII = 31


def jacobian_spectrum(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """The singular values of the Jacobian of the last hidden features, by rank; Roth et al. 2020, Fig. 2 left."""
    head = Head(
        "jacobian-spectrum",
        "Singular values of the Jacobian",
        "By how much the last hidden features answer to a small change of the image, in the direction that they answer to "
        "most (rank 1), in the next, and so on; averages over test images. A lower line is a less sensitive network.",
        "rank of the singular value",
        x_log=True,
        dots=False,
    )
    panels = {
        "clean": Panel("At clean test images (log scale)", log=True),
        "attacked": Panel("At attacked test images (log scale)", log=True),
    }
    return curves(rows, methods, baseline, head, panels, lambda row: _by_rank(row["at"], _seen(row["mean"])))


def _seen(sizes: Sequence[float]) -> list[float]:
    """Without the end that float32 rounds to nothing, which a logarithmic scale would be all about."""
    return [s for s in sizes if s >= ROUNDING * max(sizes)]


def singular_alignment(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """The cosine between perturbations and right singular vectors, by rank; Roth et al. 2020, Fig. 2 right."""
    chance = next((row["chance"] for row in rows), None)
    by_chance = f" A random direction has about {chance:.2g} with each." if chance is not None else ""
    head = Head(
        "singular-alignment",
        "Do attacks follow the first singular vectors?",
        "The size of the cosine between the adversarial change of an image and each right singular vector of the Jacobian, "
        f"the one with the largest singular value first.{by_chance}",
        "rank of the singular vector",
        x_log=True,
        dots=False,
    )
    panels = {"own": Panel("With the network's own"), "random": Panel("With those of random weights")}
    return curves(rows, methods, baseline, head, panels, lambda row: _by_rank(row["network"], row["mean"]))


def local_linearity(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """Deviation from linearity and the largest singular value against the distance; Roth et al. 2020, Fig. 4."""
    head = Head(
        "local-linearity",
        "How linear is the network around an image?",
        "Deviation: how far the features end from where the Jacobian at the image says, when the image is changed by so "
        "much. Singular value: the largest one of the Jacobian there. A network that a linear map describes well stays low.",
        "Euclidean length of the change (pixels are in [0, 1])",
    )
    panels = {
        f"{what}, {direction}": Panel(f"{title}, {direction} direction")
        for what, title in (("deviation", "Deviation"), ("sigma", "Largest singular value"))
        for direction in ("random", "adversarial")
    }

    def points(row: Row) -> Iterator[Point]:
        for what in ("deviation", "sigma"):
            yield f"{what}, {row['direction']}", row["distance"], row[what]

    return curves(rows, methods, baseline, head, panels, points)


def relu_cells(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """The share of ReLU units that keep their state against the size of the noise; Roth et al. 2020, Fig. 5."""
    head = Head(
        "relu-cells",
        "How large are the linear regions?",
        "The share of ReLU units that stay on, or stay off, when uniform noise of this size is added to every pixel: around "
        "test images, and around images that are noise themselves. A line that stays high means large linear regions.",
        "size of the noise (pixels are in [0, 1])",
    )
    panels = {
        "data": Panel("Around test images", percent=True),
        "noise": Panel("Around uniform noise", percent=True),
    }
    return curves(
        rows, methods, baseline, head, panels, lambda row: [(row["around"], row["eps"], row["mean"])]
    )


def power_method_agreement(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """How far Theorem 1 of Roth et al. 2020 holds, against ε."""
    head = Head(
        "power-method-agreement",
        "Is the attack a power method?",
        "Within one linear region of the network, adversarial ascent takes the same steps as the power method on the "
        "Jacobian. Shown: the cosine between the two after the last step, and the share of images whose whole ascent stays "
        "in the image's own region.",
        "ε (pixels are in [0, 1]; log scale)",
        x_log=True,
    )
    panels = {
        "cosine": Panel("Cosine after the last step"),
        "same_region": Panel("Within one linear region", percent=True),
    }
    return curves(
        rows, methods, baseline, head, panels, lambda row: [(name, row["eps"], row[name]) for name in panels]
    )


def lipschitz_bracket(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """The bound on the Lipschitz constant from the layers beside the slopes that are seen at the data."""
    head = Head(
        "lipschitz-bracket",
        "How steep is the network, and where?",
        "The product of the layers' norms bounds the slope everywhere; the others are slopes seen at test images: the "
        "steepest way to a point nearby, and the largest and the mean Jacobian norm. A large gap means that the bound "
        "says little of the data.",
        "",
    )
    names = {
        "upper": "bound",
        "secant": "largest secant",
        "jacobian": "largest Jacobian",
        "jacobian_mean": "mean Jacobian",
    }
    norms = dict.fromkeys(row["norm"] for row in rows)
    panels = {norm: Panel(f"{ORDS.get(norm, norm)} slopes (log scale)", log=True) for norm in norms}

    def points(row: Row) -> Iterator[Point]:
        yield from ((row["norm"], words, row[name]) for name, words in names.items())

    return curves(rows, methods, baseline, head, panels, points, sort=list(names.values()))


def robust_radius(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """The share of test images proven robust at each ε, and the share that no attack has fooled."""
    head = Head(
        "robust-radius",
        "Robust accuracy from below and from above",
        "The share of test images that are proven to be classified rightly whatever change of size ε is made, and the share "
        "that the attack did not fool. The truth lies in between.",
        "ε (pixels are in [0, 1])",
        dots=False,
    )
    norms = dict.fromkeys(row["norm"] for row in rows)
    panels = {
        f"{side} {norm}": Panel(f"{words}, {ORDS.get(norm, norm)}", percent=True)
        for norm in norms
        for side, words in (("certified", "Proven"), ("attacked", "Not fooled"))
    }
    return curves(rows, methods, baseline, head, panels, _standing)


def _standing(row: Row) -> Iterator[Point]:
    for k in range(RADII):
        eps = row["highest"] * k / (RADII - 1)
        for side in ("certified", "attacked"):
            values = [math.inf if d is None else d for d in row[side]]
            yield f"{side} {row['norm']}", short(eps), sum(d > eps for d in values) / len(values)


def _by_rank(panel: str, values: Sequence[float]) -> list[Point]:
    """At most so many ranks, evenly on a log scale, the first and the last among them."""
    last = len(values)
    ranks = {round(last ** (k / (RANKS - 1))) for k in range(RANKS)}
    return [(panel, float(rank), values[rank - 1]) for rank in sorted(ranks)]
