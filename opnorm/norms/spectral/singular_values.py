"""All singular values of a layer.

Exact for Linear layers, for convolutions with circular padding and for layers small enough to decompose outright. A large
zero-padded convolution is replaced by the circular one of the same kernel, whose values are those of small matrices; how
far off they are is bounded by what the replacement changes (Hoffman & Wielandt): with both lists sorted,

    Σ_i (σ_i(zero-padded) - σ_i(circular))² ≤ ‖difference of the two maps‖_F²,

and that difference is known exactly: it is the kernel entries that wrap around.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from opnorm._core.convolution import conv_geometry
from opnorm._core.derived_weights import weight_of
from opnorm._core.frequencies import half_grid
from opnorm._core.layers import Shape, overrides
from opnorm._core.linear_map import linear_map
from opnorm.errors import NormError
from opnorm.norms.spectral.frequency_response import Polyphase, polyphase

__all__ = ["Spectrum", "singular_values"]

DENSE = 2048  # up to this many rows or columns, the matrix itself is decomposed
ENDINGS = (".svg", ".pdf", ".png")


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a layer, the largest first.

    Attributes:
        values: float64 (count,), count = min(inputs, outputs).
        error: root mean square error of the values is at most this; 0 where they are exact.
        method: how they were found.
    """

    values: Tensor
    error: float
    method: str

    @property
    def exact(self) -> bool:
        """Whether the values are right to rounding."""
        return self.error == 0

    @property
    def std(self) -> float:
        """Their standard deviation (Wen et al. 2020 follow it layer by layer); off by at most ``error``."""
        return float(self.values.std(correction=0))

    @property
    def condition(self) -> float:
        """Largest over smallest value; infinite for a map that loses a direction, NaN where the values are not exact."""
        if not self.exact:
            return math.nan
        smallest = float(self.values[-1])
        rounding = len(self.values) * 2.0**-52 * float(self.values[0])
        return float(self.values[0]) / smallest if smallest > rounding else math.inf

    def plot(self, path: str | Path) -> Path:
        """Draw the values against their rank; the ending of ``path`` chooses SVG, PDF or PNG.

        Raises:
            NormError: another ending.
        """
        import altair

        path = Path(path)
        if path.suffix not in ENDINGS:
            raise NormError(f"{path.name}: expected a name ending in {', '.join(ENDINGS)}")
        ranks = range(0, len(self.values), max(1, len(self.values) // 400))
        rows = [{"rank": i + 1, "value": float(self.values[i])} for i in ranks]
        note = "exact" if self.exact else f"root mean square error at most {self.error:.2g}"
        title = altair.Title("Singular values", subtitle=f"standard deviation {self.std:.3g}; {note}")
        chart = altair.Chart(altair.Data(values=rows), title=title, width=420, height=240)
        x, y = altair.X("rank:Q", title="rank"), altair.Y("value:Q", title="singular value")
        chart.mark_line(color="#0b6fa4").encode(x, y).save(path)
        return path


@torch.no_grad()
def singular_values(layer: nn.Module, in_shape: Shape) -> Spectrum:
    """All singular values of a layer without its bias.

    Args:
        layer: any affine module.
        in_shape: shape of one input, without the batch axis.

    Raises:
        NormError: not linear, or too large for the matrix and without a known circular form.

    Source: Sedghi, Gupta & Long 2019 (circular convolutions); Wen et al. 2020 look at their spread.
    """
    own = overrides(layer, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    if isinstance(layer, nn.Linear) and not own:
        values = torch.linalg.svdvals(weight_of(layer).detach().double())
        values = values.repeat_interleave(math.prod(in_shape[:-1]))
        return Spectrum(values, 0.0, "singular value decomposition")
    circle = None
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and not own:
        circle = _circle(layer, in_shape)
        if circle is not None and layer.padding_mode == "circular":
            values = _of_symbol(circle)
            return Spectrum(values, 0.0, "Fourier transform of the circular convolution")
    linear = linear_map(layer, in_shape)
    if min(linear.shape) <= DENSE:
        values = torch.linalg.svdvals(linear.to_dense())
        return Spectrum(values, 0.0, "singular value decomposition of the whole matrix")
    if circle is not None and layer.padding_mode == "zeros":
        values = _of_symbol(circle)
        return Spectrum(values, _wrapped(circle), "circular convolution in place of the zero-padded one")
    raise NormError(
        f"the singular values of {type(layer).__name__} at {tuple(in_shape)} are not known: its matrix has more than "
        f"{DENSE} rows and columns, and no circular form has as many outputs as the input over the stride"
    )


class _Circle(NamedTuple):
    """A circular convolution: its polyphase form, output positions per axis, and min(inputs, outputs) values."""

    t: Polyphase
    size: Shape
    values: int


def _circle(layer: nn.modules.conv._ConvNd, in_shape: Shape) -> _Circle | None:
    """The circular convolution on the input's own size; None where input and output do not fit around the same circle."""
    geometry, size = conv_geometry(layer)._replace(mode="zeros"), tuple(in_shape[1:])
    stride, out = geometry.stride, geometry.out_size(size)
    if any(n % s or m != n // s for n, m, s in zip(size, out, stride, strict=True)):
        return None
    # enough input on all sides that no kernel entry is dropped: on a circle every one is read
    each = zip(size, stride, geometry.kernel, geometry.dilation, geometry.padding, strict=True)
    wide = tuple(n + s * (k * d + max(p)) for n, s, k, d, p in each)
    count = min(math.prod(in_shape), layer.out_channels * math.prod(out))
    return _Circle(polyphase(weight_of(layer).detach(), geometry, wide, out), out, count)


def _of_symbol(circle: _Circle) -> Tensor:
    """The union over frequencies of the singular values of A(ω), and zeros for inputs that the kernel skips."""
    omega, times = half_grid(circle.size)
    values = []
    for part in np.array_split(np.arange(len(omega)), max(1, len(omega) // 256)):
        each = torch.linalg.svdvals(circle.t.symbol(omega[part]))  # (groups, F, channels)
        values.append(each.repeat_interleave(torch.from_numpy(times[part]).to(each.device), 1).flatten())
    found = torch.cat(values).sort(descending=True).values[: circle.values]
    return torch.cat([found, found.new_zeros(circle.values - len(found))])


def _wrapped(circle: _Circle) -> float:
    """Root mean square of σ(zero-padded) - σ(circular): the Frobenius norm of what wraps around, over sqrt(count)."""
    t, size = circle.t, circle.size
    squares = t.matrices.square().sum((0, 2, 3)).tolist()
    total = 0.0
    for offset, square in zip(t.offsets.tolist(), squares, strict=True):
        inside = math.prod(max(0, min(n, n - o) - max(0, -o)) for n, o in zip(size, offset, strict=True))
        total += square * (math.prod(size) - inside)
    return math.sqrt(total / circle.values)
