"""Charts of what changes from epoch to epoch of a training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from opnorm.report.curves import Axis, Heading, Panel, Point, Row, draw_curves, method_of
from opnorm.report.document import Chart
from opnorm.report.theme import NORMS

__all__ = ["against_epoch", "epoch_charts", "layers_against_epoch", "weights_against_epoch"]

MAX_EPOCHS = 40  # points on one line; more cannot be distinguished and make the page slow
MAX_LAYERS = 24  # panels


def epoch_charts(rows: Sequence[Row], methods: Sequence[str] = ()) -> list[Chart]:
    """The charts of this module that have something to draw, of the metrics of training."""
    draw = (against_epoch, weights_against_epoch, layers_against_epoch)
    return [chart for of in draw if not (chart := of(rows, methods)).empty]


def against_epoch(rows: Sequence[Row], methods: Sequence[str] = ()) -> Chart:
    """Test accuracy, training loss and the layers' geometric-mean norms against the epoch.

    Args:
        rows: the metrics of training with ``method`` and ``seed``: ``epoch`` and any of ``test_accuracy``, ``loss``,
            ``norm_1``, ``norm_2``, ``norm_inf``; a quantity that no row has gets no panel.
        methods: all methods in order, the baseline first.
    """
    panels = {
        "test_accuracy": Panel("Test accuracy", percent=True, zero=False, quantity="test accuracy"),
        "loss": Panel("Training loss", zero=False, quantity="training loss"),
    }
    for norm, name in NORMS.items():
        title = f"Mean {name} norm of the layers"
        panels[f"norm_{norm}"] = Panel(f"{title} (log scale)", log=True, quantity=title.lower())
    heading = Heading(
        "against-epoch",
        "Accuracy, loss and norms during training",
        "Accuracy on the test images, the loss that training minimized, and the layers' norms (the geometric mean over the "
        "layers) after each epoch.",
    )
    return _draw(rows, rows, methods, heading, panels, columns=3)


def weights_against_epoch(rows: Sequence[Row], methods: Sequence[str] = ()) -> Chart:
    """Weight energy and complexity against the epoch.

    Args:
        rows: the metrics of training, with ``log10_weight_energy`` and ``weight_complexity``.
        methods: all methods in order, the baseline first.

    Source: Liu et al. 2020, Fig. 2.
    """
    panels = {
        "log10_weight_energy": Panel("log₁₀ of the weight energy", zero=False, quantity="log₁₀ energy"),
        "weight_complexity": Panel("Weight complexity", zero=False, quantity="weight complexity"),
    }
    heading = Heading(
        "weights-against-epoch",
        "Weight energy and complexity during training",
        "The product of the squared sizes of the layers' weights, and the sum over the layers of absolute weights over the "
        "size, after each epoch. A lower complexity means that few weights are large.",
    )
    return _draw(rows, rows, methods, heading, panels)


def layers_against_epoch(rows: Sequence[Row], methods: Sequence[str] = ()) -> Chart:
    """The norm of every layer against the epoch, one panel a layer; of more than 24 layers, 24 from the first to the last.

    Args:
        rows: the metrics of training, with ``layer_norms``, {layer: ℓ∞ norm} in the order of the network.
        methods: all methods in order, the baseline first.

    Source: Liang & Huang 2021, supplement.
    """
    layers = list(dict.fromkeys(layer for row in rows for layer in row.get("layer_norms", ())))
    count = min(len(layers), MAX_LAYERS)
    shown = [layers[round(i * (len(layers) - 1) / max(count - 1, 1))] for i in range(count)]
    panels = {
        layer: Panel(f"Layer {layer or '(model)'} (log scale)", log=True, quantity="norm") for layer in shown
    }
    some = f" {len(shown)} of the {len(layers)} layers are drawn." if len(shown) < len(layers) else ""
    heading = Heading(
        "layers-against-epoch",
        "ℓ∞ norms of the layers during training",
        f"The ℓ∞ norm of each layer after each epoch, from the first layer to the last.{some}",
    )
    return _draw(rows, [row.get("layer_norms", {}) for row in rows], methods, heading, panels, columns=4)


def _draw(
    rows: Sequence[Row],
    values: Sequence[Mapping[str, Any]],
    methods: Sequence[str],
    heading: Heading,
    panels: Mapping[str, Panel],
    columns: int = 2,
) -> Chart:
    """One line a method in each panel; of many epochs, every so many; ``values`` are those of the rows, by panel."""
    epochs = sorted({row["epoch"] for row in rows})
    step = max(1, math.ceil(len(epochs) / MAX_EPOCHS))
    drawn = {*epochs[::-1][::step], *epochs[:1]}
    few = len(drawn) <= 6  # few enough to mark each epoch with a dot
    nth = {2: "second", 3: "third"}.get(step, f"{step}th")
    thinned = f" Every {nth} epoch is drawn." if step > 1 else ""
    seeds = len({row.get("seed") for row in rows}) > 1
    pick = " Pick a method to show its standard deviation over seeds." if seeds else ""
    heading = heading._replace(caption=f"{heading.caption}{pick}{thinned}")
    points = [
        Point(method_of(row), key, row["epoch"], of_row.get(key))
        for row, of_row in zip(rows, values, strict=True)
        for key in panels
        if row["epoch"] in drawn
    ]
    x = Axis("epoch", zero=False, ticks=tuple(sorted(drawn)) if few else (), text="{:d}".format)
    return draw_curves(points, methods, heading, panels, x, dots=few, band=True, columns=columns)
