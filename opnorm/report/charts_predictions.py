"""Charts of how sure networks are, how they do beyond their training points, and how steep their loss is.

Each takes the rows of one analysis (:mod:`opnorm.analyses`), every one with its ``method`` and ``seed``; see
:mod:`opnorm.report.charts` for what all charts share.
"""

import math
from collections.abc import Callable, Iterator, Sequence

from opnorm.report.curves import Head, Panel, Point, curves
from opnorm.report.model import Chart, known
from opnorm.report.vega import Row

__all__ = ["generalization_gap", "input_gradients", "margins", "predictions"]

SPLITS = {"train": "training", "test": "test"}


def generalization_gap(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """Loss and error on both splits and the gaps; Wen, Li & Jia 2020, Fig. 3."""
    head = Head(
        "generalization-gap",
        "How much worse is it on new images?",
        "Mean cross-entropy and share of wrong answers on the images it was trained on, on the test images, and the "
        "difference of the two.",
        "",
    )
    panels = {"loss": Panel("Loss"), "error": Panel("Error", percent=True)}
    names = {"train_{}": "training", "test_{}": "test", "{}_gap": "gap"}

    def points(row: Row) -> Iterator[Point]:
        for what in panels:
            yield from ((what, words, row[key.format(what)]) for key, words in names.items())

    return curves(rows, methods, baseline, head, panels, points, list(names.values()))


def margins(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """How the margins are distributed, on both splits; Wen, Li & Jia 2020, Fig. 4."""
    head = Head(
        "margins",
        "Margins",
        "The right class's score less the largest other: the share of images (per bin) at each margin. Left of 0: "
        "misclassified. A hump close to 0 is a network that is less sure, and whose images are easier to fool. The ends "
        "hold all that lies beyond.",
        "margin",
        dots=False,
    )
    panels = {split: Panel(f"Share of the {words} images", percent=True) for split, words in SPLITS.items()}
    shown = _histograms([(row["split"], row, row["margins"]) for row in rows], together=True)
    return curves(shown, methods, baseline, head, panels, _points)


def predictions(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """Histograms of the true class's probability and of the loss; Wen, Li & Jia 2020, Figs. 5a and 5b."""
    head = Head(
        "predictions",
        "How sure are the answers?",
        "The share of images (per bin, log scale, bins without images left out) at which the true class gets this "
        "probability, and at which the loss is this large. Less sure networks fill the middle. The last bin of the loss "
        "holds all that lies beyond.",
        "probability of the true class, or loss",
        dots=False,
    )
    panels = {
        f"{what} {split}": Panel(f"{title}, {words} images (log scale)", log=True, percent=True)
        for split, words in SPLITS.items()
        for what, title in (("probability", "Probability"), ("loss", "Loss"))
    }
    shown = [
        *_histograms([(f"probability {r['split']}", r, r["probabilities"]) for r in rows], ends=(0.0, 1.0)),
        *_histograms([(f"loss {r['split']}", r, r["losses"]) for r in rows]),
    ]
    return curves(shown, methods, baseline, head, panels, _points)


def input_gradients(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """The lengths of the input gradients, and their bounds; Liu et al. 2020, Fig. 3."""
    head = Head(
        "input-gradients",
        "How steep is the loss at the test images?",
        "The share of test images (per bin) whose loss has an input gradient of this Euclidean length, and what the sizes "
        "of the weights allow at most. Further left is harder to attack by small steps; a gradient that underflows to 0 "
        "stands in the first bin.",
        "length of the gradient (log scale)",
        x_log=True,
        dots=False,
    )
    panels = {
        "lengths": Panel("Gradient of the loss", percent=True),
        "bounds": Panel("Bound from the weights", percent=True),
    }
    shown = [
        row for name in panels for row in _histograms([(name, r, r[name]) for r in rows if r[name]], log=True)
    ]
    return curves(shown, methods, baseline, head, panels, _points)


def _points(row: Row) -> list[Point]:
    return [(row["panel"], x, share) for x, share in row["shares"]]


def _histograms(
    samples: Sequence[tuple[str, Row, Sequence[float]]],
    *,
    ends: tuple[float, float] | None = None,
    log: bool = False,
    together: bool = False,
) -> list[Row]:
    """For every sample (panel, row, values) the share of its values in each bin, given by the bin's middle.

    All samples of a panel have the same bins (of all panels when ``together``), between the ends or, where none are given,
    between the 0.5 % and 99.5 % quantiles; what lies beyond counts to the first and the last bin.
    """
    found: list[Row] = []
    panels: dict[str, list[tuple[str, Row, Sequence[float]]]] = {}
    for sample in samples:
        panels.setdefault("" if together else sample[0], []).append(sample)
    for group in panels.values():
        change = _log_of(v for _, _, values in group for v in values) if log else float
        pooled = sorted(change(v) for _, _, values in group for v in values if known(v))
        if not pooled:
            continue
        low, high = ends or (_quantile(pooled, 0.005), _quantile(pooled, 0.995))
        largest = max(len(values) for _, _, values in group)
        bins = min(60, max(8, round(2 * largest ** (1 / 3))))  # Rice's rule
        width = (high - low) / bins or 1.0
        for panel, row, values in group:
            counts = [0] * bins
            for v in (v for v in values if known(v)):
                counts[min(bins - 1, max(0, math.floor((change(v) - low) / width)))] += 1
            middles = [low + (k + 0.5) * width for k in range(bins)]
            shares = [(10**x if log else x, c / len(values)) for x, c in zip(middles, counts, strict=True)]
            found.append({"panel": panel, "method": row["method"], "seed": row["seed"], "shares": shares})
    return found


def _log_of(values: Iterator[float]) -> Callable[[float], float]:
    """log10, with what is 0 at the smallest value above it."""
    least = min((v for v in values if known(v) and v > 0), default=1.0)
    return lambda v: math.log10(max(v, least))


def _quantile(sorted_values: Sequence[float], q: float) -> float:
    return sorted_values[min(len(sorted_values) - 1, int(q * len(sorted_values)))]
