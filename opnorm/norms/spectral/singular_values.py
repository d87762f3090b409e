"""All singular values of a layer: how evenly it treats its inputs.

Exact for Linear layers, for convolutions with circular padding and for layers small enough to decompose outright. A large
zero-padded convolution is replaced by the circular one of the same kernel, whose values are those of small matrices; how
far off they are is bounded by what the replacement changes (Hoffman & Wielandt): with both lists sorted,

    Σ_i (σ_i(zero-padded) - σ_i(circular))² ≤ ‖difference of the two maps‖_F²,

and that difference is known exactly: it is the taps that wrap around.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opnorm._core.convolution import ConvGeometry, conv_geometry
from opnorm._core.layers import Shape, overrides
from opnorm._core.linear_map import linear_map
from opnorm.errors import NormError
from opnorm.norms.spectral.frequency_response import Taps, taps

__all__ = ["Spectrum", "singular_values"]

DENSE = 2048  # up to this many rows or columns, the matrix itself is decomposed


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
        import vl_convert

        path = Path(path)
        convert: dict[str, Any] = {
            ".svg": vl_convert.vegalite_to_svg, ".pdf": vl_convert.vegalite_to_pdf, ".png": vl_convert.vegalite_to_png
        }  # fmt: skip
        if path.suffix not in convert:
            raise NormError(f"{path.name}: expected a name ending in {', '.join(convert)}")
        drawn = convert[path.suffix](self._chart())
        path.write_bytes(drawn if isinstance(drawn, bytes) else drawn.encode())
        return path

    def _chart(self) -> dict[str, Any]:
        step = max(1, len(self.values) // 400)
        rank = list(range(0, len(self.values), step))
        points = [{"rank": i + 1, "value": float(self.values[i])} for i in rank]
        note = "exact" if self.exact else f"root mean square error at most {self.error:.2g}"
        return {
            "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
            "width": 420,
            "height": 240,
            "title": {"text": "Singular values", "subtitle": f"standard deviation {self.std:.3g}; {note}"},
            "data": {"values": points},
            "mark": {"type": "line", "color": "#0b6fa4"},
            "encoding": {
                "x": {"field": "rank", "type": "quantitative", "title": "rank"},
                "y": {"field": "value", "type": "quantitative", "title": "singular value"},
            },
        }


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
        values = torch.linalg.svdvals(layer.weight.detach().double())
        return Spectrum(_repeated(values, math.prod(in_shape[:-1])), 0.0, "singular value decomposition")
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.padding_mode == "circular" and not own:
        t, size = _circle(layer, in_shape)
        if t is not None:
            return Spectrum(
                _of_symbol(t, size, _count(layer, in_shape)),
                0.0,
                "Fourier transform of the circular convolution",
            )
    linear = linear_map(layer, in_shape)
    if min(math.prod(linear.in_shape), math.prod(linear.out_shape)) <= DENSE:
        return Spectrum(
            torch.linalg.svdvals(linear.to_dense()), 0.0, "singular value decomposition of the whole matrix"
        )
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.padding_mode == "zeros" and not own:
        t, size = _circle(layer, in_shape)
        if t is not None:
            values = _of_symbol(t, size, _count(layer, in_shape))
            return Spectrum(
                values, _wrapped(t, size, len(values)), "circular convolution in place of the zero-padded one"
            )
    raise NormError(
        f"the singular values of {type(layer).__name__} at {tuple(in_shape)} are not known: its matrix has more than "
        f"{DENSE} rows and columns, and no circular form has as many outputs as the input over the stride"
    )


def _circle(layer: nn.modules.conv._ConvNd, in_shape: Shape) -> tuple[Taps | None, Shape]:
    """The taps of the circular convolution on the input's own size, where input and output fit around the same circle."""
    zeros = conv_geometry(layer) if layer.padding_mode == "zeros" else conv_geometry(layer, any_mode=True)
    size, stride = tuple(in_shape[1:]), zeros.stride
    out = zeros.out_size(size)
    if any(n % s or m != n // s for n, m, s in zip(size, out, stride, strict=True)):
        return None, ()
    # enough input on all sides that no tap is dropped: on a circle every tap is read
    reach = [
        s * (k * d + max(p))
        for s, k, d, p in zip(stride, zeros.kernel, zeros.dilation, zeros.padding, strict=True)
    ]
    wide = tuple(n + r for n, r in zip(size, reach, strict=True))
    t = taps(layer.weight.detach(), ConvGeometry(*zeros[:5]), wide, out)
    return t, tuple(n // s for n, s in zip(size, stride, strict=True))


def _count(layer: nn.modules.conv._ConvNd, in_shape: Shape) -> int:
    """min(inputs, outputs) of a convolution whose output has as many places as its input over the stride."""
    places = math.prod(n // s for n, s in zip(in_shape[1:], layer.stride, strict=True))
    return min(math.prod(in_shape), layer.out_channels * places)


def _of_symbol(t: Taps, size: Shape, count: int) -> Tensor:
    """The union over frequencies of the singular values of A(ω), and zeros for inputs that no tap reads."""
    places = np.indices(size).reshape(len(size), -1).T
    values = []
    for omega in np.array_split(places * 2 * math.pi / np.array(size), max(1, len(places) // 256)):
        phase = torch.from_numpy(np.exp(1j * (omega @ t.offsets.T))).to(t.matrices.device)
        for A in t.matrices:
            symbol = torch.tensordot(phase, A.to(phase.dtype), dims=([1], [0]))
            values.append(torch.linalg.svdvals(symbol).flatten())
    found = torch.cat(values).sort(descending=True).values[:count]
    return torch.cat([found, found.new_zeros(count - len(found))])


def _wrapped(t: Taps, size: Shape, count: int) -> float:
    """Root mean square of σ(zero-padded) - σ(circular): the Frobenius norm of what wraps around, over sqrt(count)."""
    squares = t.matrices.square().sum((0, 2, 3)).cpu().numpy()
    total = 0.0
    for offset, square in zip(t.offsets.tolist(), squares.tolist(), strict=True):
        inside = math.prod(max(0, min(n, n - o) - max(0, -o)) for n, o in zip(size, offset, strict=True))
        total += square * (math.prod(size) - inside)
    return math.sqrt(total / count)


def _repeated(values: Tensor, times: int) -> Tensor:
    return values.repeat_interleave(times)
