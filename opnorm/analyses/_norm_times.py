"""Time of each way of computing a layer's norm, and a check of the exact ones."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import nn

from opnorm._core.derived_weights import weight_of
from opnorm._core.kept_parts import kept
from opnorm._core.layers import in_float64
from opnorm._core.settings import check_count, check_number
from opnorm.analyses._shared.analysis import Analysis, Cells, Methods, Row, Rows, register
from opnorm.analyses._shared.layer_rows import numbered, weight_layers
from opnorm.data import Dataset
from opnorm.errors import NormError
from opnorm.norms import l1, linear_map, linf, sgl_norm, spectral_norm, vs_norm
from opnorm.norms.network.trace import LayerCall
from opnorm.report import Axis, Chart, Column, Heading, Panel, Point, draw_curves, method_of

NAMES = {
    "vs": "VS, power iteration",
    "sgl": "SGL, all singular values",
    "certified": "certified ℓ₂",
    "l1": "exact ℓ₁",
    "linf": "exact ℓ∞",
}
EXACT = {"l1": 1, "linf": math.inf}
CHECKED = 4  # pixels a side of the input on which the exact norms are compared with the explicit matrix


@register("weights", "norm_times(seconds=0.2)")
def norm_times(seconds: float = 0.5, most: int = 100) -> Analysis:
    """The time of one computation of a layer's norm, by five methods, in one process.

    VS with 100 iterations, SGL with the singular values at all frequencies of circular padding, both in the layer's
    precision; the certified ℓ2 interval; exact ℓ1 and ℓ∞. Each computation is repeated for ``seconds`` in all, once at least
    and ``most`` times at most; the fastest counts, as other programs only slow one down.

    Returns:
        One row a layer: layer, kind, in_shape, shape (of the weight), threads, times (seconds, by method; None where it is
        not defined), values (by method), differences (of the exact norms from those of the explicit float64 matrix,
        relative, of the same weights on an input of 4 pixels a side; None for a linear layer), whole_differences (those on
        the input itself from the largest sums of |A|'s columns and rows, by the layer with absolute weights in float64;
        None where padding is not with zeros).

    Raises:
        ModelError: there is no linear or convolutional layer.

    Source: Liang & Huang 2021, Table 1.
    """
    check_number("seconds", seconds, "a time of at least 0", least=0)
    check_count("most", most)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        return [kept(partial(_row, call, seconds, most)) for call in weight_layers(model, data)]

    return Analysis(rows, sentence, columns, chart)


def _row(call: LayerCall, seconds: float, most: int) -> Row:
    layer, shape = call.layer, call.in_shape
    ways: dict[str, Callable[[], float]] = {
        "vs": lambda: vs_norm(layer, shape),
        "sgl": lambda: _sgl(layer, shape),
        "certified": lambda: float(spectral_norm(layer, shape).upper),
        "l1": lambda: float(l1(layer, shape).detach()),
        "linf": lambda: float(linf(layer, shape).detach()),
    }
    row: Row = {"layer": call.name, "kind": type(layer).__name__, "in_shape": list(shape)}
    row |= {"shape": list(weight_of(layer).shape), "threads": torch.get_num_threads()}
    found = {name: _time(way, seconds, most) for name, way in ways.items()}
    row["times"] = {name: taken for name, (taken, _) in found.items()}
    row["values"] = {name: value for name, (_, value) in found.items()}
    row["differences"] = _differences(layer, shape)
    return row | {"whole_differences": _whole_differences(layer, shape, row["values"])}


def _sgl(layer: nn.Module, shape: Sequence[int]) -> float:
    """Of a convolution without stride, dilation or groups, for which the method is defined."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise NormError("SGL is defined for convolutions")
    if layer.groups != 1 or {*layer.stride, *layer.dilation} != {1}:
        raise NormError("SGL is defined for one group, stride 1 and dilation 1")
    return sgl_norm(weight_of(layer).detach(), tuple(shape[1:]))


def _time(way: Callable[[], float], seconds: float, most: int) -> tuple[float | None, float | None]:
    """The time of the fastest computation, and its value; None where the method is not defined."""
    taken: list[float] = []
    with torch.no_grad():
        while not taken or (sum(taken) < seconds and len(taken) < most):
            begin = time.perf_counter()
            try:
                with torch.enable_grad():  # VS differentiates
                    value = way()
            except NormError:
                return None, None
            taken.append(time.perf_counter() - begin)
    return min(taken), value if math.isfinite(value) else None


def _differences(layer: nn.Module, shape: Sequence[int]) -> dict[str, float] | None:
    """|exact - explicit| / explicit of ℓ1 and ℓ∞, of the same weights on a small input."""
    small = _small(layer, shape) if len(shape) > 1 else None
    if small is None:
        return None
    norms = {"l1": float(l1(layer, small).detach()), "linf": float(linf(layer, small).detach())}
    matrix = linear_map(layer, small).to_dense().abs()
    explicit = {"l1": float(matrix.sum(0).max()), "linf": float(matrix.sum(1).max())}
    return {name: _relative(norms[name], explicit[name]) for name in norms}


def _small(layer: nn.Module, shape: Sequence[int]) -> tuple[int, ...] | None:
    """The smallest input that the layer takes, of CHECKED entries an axis or more; the axis of the features stays whole.

    A kernel without padding needs an input as large as itself, and padding that reflects or repeats a larger one still.
    """
    features = len(shape) - 1 if isinstance(layer, nn.Linear) else 0
    for least in range(CHECKED, max(CHECKED, *shape) + 1):
        small = tuple(n if axis == features else min(n, least) for axis, n in enumerate(shape))
        with suppress(NormError):
            l1(layer, small)
            return small
    return None


def _whole_differences(
    layer: nn.Module, shape: Sequence[int], values: dict[str, float | None]
) -> dict[str, float] | None:
    """|exact - sums| / sums of ℓ1 and ℓ∞, with the sums of |A|'s columns and rows; None where those are not known.

    Without its bias the layer with weights |K| has the matrix |A|: of ones it gives the sums of the rows, and its transpose
    those of the columns.
    """
    if getattr(layer, "padding_mode", "zeros") != "zeros" or None in (values["l1"], values["linf"]):
        return None
    positive = in_float64(layer)
    weight, bias = getattr(positive, "weight"), getattr(positive, "bias")  # noqa: B009
    weight.abs_()
    if bias is not None:
        bias.zero_()
    ones = torch.ones(1, *shape, dtype=torch.float64, device=weight.device, requires_grad=True)
    rows = positive(ones)
    (columns,) = torch.autograd.grad(rows.sum(), ones)
    sums = {"l1": float(columns.max()), "linf": float(rows.detach().max())}
    return {name: _relative(values[name], total) for name, total in sums.items()}


def _relative(value: float | None, right: float) -> float:
    """|value - right| / right, 0 where both are 0."""
    assert value is not None, "a norm that is known"
    return abs(value - right) / right if right else abs(value)


def sentence(rows: Rows) -> str:
    parts = [
        f"{name} {sum(times):.3g} s"
        for key, name in NAMES.items()
        if (times := _known(rows, key)) and len(times) == len(rows)
    ]
    return f"Once for all {len(rows)} layers: {', '.join(parts)}." if parts else ""


def _known(rows: Rows, key: str) -> list[float]:
    return [row["times"][key] for row in rows if row["times"][key] is not None]


def columns(rows: Rows) -> Cells:
    help = "Time of one computation for all linear and convolutional layers."
    return [
        (Column(f"time_{key}", f"seconds, {name}", "number", None, help), sum(_known(rows, key)))
        for key, name in NAMES.items()
        if len(_known(rows, key)) == len(rows)
    ]


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "norm-times",
        "Time of a layer's norm",
        "Seconds of one computation of each layer's norm, from the first layer to the last, by five methods.",
    )
    layers = numbered(rows)
    x = Axis(quantity="layer", names=tuple(dict.fromkeys(name for name, _, _ in layers)))
    panels = {
        key: Panel(f"{name} (s, log scale)", log=True, quantity="seconds") for key, name in NAMES.items()
    }
    points = [
        Point(method_of(row), key, name, row["times"][key])
        for name, _, row in layers
        for key in NAMES
        if row["times"][key] is not None
    ]
    return draw_curves(points, methods, heading, panels, x, columns=3)
