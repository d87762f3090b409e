"""All singular values of a layer.

Exact for Linear layers, for convolutions with circular padding and for layers small enough to decompose outright. A large
zero-padded convolution is replaced by the circular one of the same kernel, whose values are those of small matrices. The
replacement changes the values by no more than the matrix (Hoffman & Wielandt): with both lists sorted,

    Σ_i (σ_i(zero-padded) - σ_i(circular))² ≤ ‖difference of the two matrices‖_F²,

and that difference is known exactly. The mean and the standard deviation of the values themselves, without the replacement,
are those of :mod:`opnorm.norms.spectral.singular_value_spread`.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from opnorm._core.argument_checks import as_shape
from opnorm._core.derived_weights import weight_of
from opnorm._core.frequencies import half_grid
from opnorm._core.layers import Shape, check_weights, is_standard
from opnorm._core.linear_map import linear_map
from opnorm._core.modes import in_default_modes
from opnorm.errors import NormError
from opnorm.norms.spectral.convolution_matrix import ConvolutionMatrix, as_convolution

__all__ = ["Spectrum", "exact_spectrum", "singular_values"]

DENSE = 2048  # up to this many rows or columns, the matrix itself is decomposed
ENDINGS = (".svg", ".pdf", ".png")


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a layer, the largest first.

    Attributes:
        values: float64 (count,), count = min(inputs, outputs).
        error: root mean square error of the values is at most this; 0 where they are exact.
        method: the algorithm.
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
        self.check_not_empty()
        largest = float(self.values[0])  # divided by, so that no square underflows or overflows
        return largest * float((self.values / largest).std(correction=0)) if largest else 0.0

    @property
    def condition(self) -> float:
        """Largest over smallest value; infinite for a map that loses a direction, NaN where the values are not exact."""
        self.check_not_empty()
        if not self.exact:
            return math.nan
        smallest = float(self.values[-1])
        rounding = len(self.values) * 2.0**-52 * float(self.values[0])
        return float(self.values[0]) / smallest if smallest > rounding else math.inf

    def check_not_empty(self) -> None:
        """NormError where there are no values: of a layer without inputs or outputs."""
        if not len(self.values):
            raise NormError("a layer without inputs or outputs has no singular values; expected at least one")

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


@in_default_modes
@torch.no_grad()
def singular_values(layer: nn.Module, in_shape: Shape, circular: bool = False) -> Spectrum:
    """All singular values of a layer without its bias.

    Args:
        layer: any affine module.
        in_shape: shape of one input, without the batch axis.
        circular: the values, exact, of the convolution with its kernel and stride on a circle of the input's size, rounded
            up to a multiple of the stride, whatever the layer's own padding: the quantity that Wen et al. compare. Linear
            layers have no padding.

    Raises:
        NormError: not linear, or too large for the matrix and without a known circular form.

    Source: Sedghi, Gupta & Long 2019 (circular convolutions); Wen, Li & Jia 2020 compare their spread.
    """
    check_weights(layer)
    in_shape = as_shape(in_shape)
    convolution = as_convolution(layer, in_shape)
    if circular and convolution is not None:
        return Spectrum(_of_symbol(convolution), 0.0, "Fourier transform of the circular convolution")
    if circular and not is_standard(layer, nn.Linear):
        raise NormError(
            f"the circular form is defined for convolutions and Linear, got {type(layer).__name__}"
        )
    spectrum = exact_spectrum(layer, in_shape)
    if spectrum is not None:
        return spectrum
    if convolution is not None and convolution.closes and convolution.geometry.mode == "zeros":
        values = _of_symbol(convolution)
        error = convolution.distance_from_circular() / math.sqrt(len(values))
        return Spectrum(values, error, "circular convolution in place of the zero-padded one")
    raise NormError(
        f"the singular values of {type(layer).__name__} at {tuple(in_shape)} are not known: its matrix has more than "
        f"{DENSE} rows and columns, and no circular form has as many outputs as the input over the stride"
    )


@torch.no_grad()
def exact_spectrum(layer: nn.Module, in_shape: Shape) -> Spectrum | None:
    """All singular values to rounding, or None where the matrix is too large and no convolution on its own circle."""
    if is_standard(layer, nn.Linear):
        linear_map(layer, in_shape)  # checks the layer and the shape
        values = torch.linalg.svdvals(weight_of(layer).detach().double())
        values = values.repeat_interleave(math.prod(in_shape[:-1]))
        return Spectrum(values, 0.0, "singular value decomposition")
    convolution = as_convolution(layer, in_shape)
    if convolution is not None and convolution.closes and convolution.distance_from_circular() == 0:
        return Spectrum(_of_symbol(convolution), 0.0, "Fourier transform of the circular convolution")
    linear = linear_map(layer, in_shape)
    if min(linear.shape) > DENSE:
        return None
    values = torch.linalg.svdvals(linear.to_dense())
    return Spectrum(values, 0.0, "singular value decomposition of the whole matrix")


def _of_symbol(convolution: ConvolutionMatrix) -> Tensor:
    """The union over frequencies of the singular values of A(ω), and zeros for inputs that the kernel skips."""
    size, symbol = convolution.circle, convolution.circular_symbol()
    omega, times = half_grid(size)
    values = []
    for part in np.array_split(np.arange(len(omega)), max(1, len(omega) // 256)):
        each = torch.linalg.svdvals(symbol.symbol(omega[part]))  # (groups, F, channels)
        values.append(each.repeat_interleave(torch.from_numpy(times[part]).to(each.device), 1).flatten())
    inputs = convolution.K.shape[1] * convolution.geometry.groups * math.prod(convolution.geometry.stride)
    count = min(inputs, len(convolution.K)) * math.prod(size)
    found = torch.cat(values).sort(descending=True).values[:count]
    return torch.cat([found, found.new_zeros(count - len(found))])
