"""Mean and standard deviation of the singular values of large convolutions, as intervals with a stated probability.

With r = min(rows, columns) singular values σ_i, and A the matrix or its transpose, the one with r rows,

    std² = ‖A‖_F² / r - mean²,     mean = tr (A Aᵀ)^(1/2) / r.

The Frobenius norm is known in closed form (:meth:`ConvolutionMatrix.inner_product`). The trace is the expectation of
y = uᵀ (A Aᵀ)^(1/2) u over vectors u of random signs (Hutchinson 1990). Each y lies between two quadrature rules that k steps
of Golub-Kahan bidiagonalization from u give: Gauss's is too large, since the even derivatives of the square root are
negative, and that of Gauss and Radau with a node at 0 is too small (Golub & Meurant 2010, Sec. 6.2). With L the (k + 1) x k
bidiagonal matrix, they are ‖u‖² e_1ᵀ (L Lᵀ)^(1/2) e_1 for the first k rows of L and for all of L.

Most of the variance of y is removed by control variates, forms uᵀ C u of known trace: C = A Aᵀ, whose trace is ‖A‖_F², and
G and G^(1/2), where G is the block circulant matrix with the symbol A(ω) A(ω)ᴴ of the convolution. Their traces are sums
over the frequencies. y is regressed on the forms, and the value of the line at their traces is the estimate of
tr (A Aᵀ)^(1/2), with the interval of linear regression (Student's t distribution, for residuals that are normal, as forms of
thousands of entries nearly are).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.argument_checks import as_shape
from opnorm._core.frequencies import half_grid
from opnorm._core.layers import Shape, check_weights
from opnorm._core.linear_map import LinearMap
from opnorm._core.lp import lp_norm, per_row
from opnorm._core.modes import in_default_modes
from opnorm._core.settings import check_count, check_number
from opnorm.errors import NormError
from opnorm.norms.spectral.convolution_matrix import ConvolutionMatrix, as_convolution
from opnorm.norms.spectral.singular_values import exact_spectrum

__all__ = ["Spread", "bidiagonalized", "singular_value_spread"]

FIRST_PROBES, MOST_PROBES = 8, 2048
MOST_STEPS = 300  # of bidiagonalization
MEMORY = 3e7  # entries of the probes that are worked on at once
ROOT_WORK = (
    2e10  # points n³ of the diagonalizations for the second control variate, above which it is left out
)
SMALL = 1e-6  # a standard deviation below this share of the root mean square counts as none
ROUNDING = 1e-10  # relative; of the quadrature, whose own is about 1e-14


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a layer's min(inputs, outputs) singular values.

    Attributes:
        std: the standard deviation, which divides by the number of values.
        lower: end of an interval for it.
        upper: end of an interval for it.
        mean: of the values.
        count: number of values.
        failure_probability: that the interval does not hold the standard deviation; 0 where it is exact to rounding.
        method: the algorithm.
    """

    std: float
    lower: float
    upper: float
    mean: float
    count: int
    failure_probability: float
    method: str

    @property
    def error(self) -> float:
        """The largest distance of ``std`` from a value of the interval."""
        return max(self.std - self.lower, self.upper - self.std)


@in_default_modes
@torch.no_grad()
def singular_value_spread(
    layer: nn.Module,
    in_shape: Shape,
    *,
    relative_error: float = 0.01,
    failure_probability: float = 1e-3,
    seed: int = 0,
) -> Spread:
    """The standard deviation of a layer's singular values, with its own padding and stride.

    Exact where :func:`singular_values` is. For other convolutions, of any padding, stride, dilation and groups, and
    transposed ones, an estimate with an interval; the module's documentation has the formulas.

    Args:
        layer: Linear, a convolution, or any affine layer of up to 2,048 inputs or outputs.
        in_shape: shape of one input, without the batch axis.
        relative_error: of the standard deviation, to aim at; reached but for layers whose values nearly coincide.
        failure_probability: that the interval does not hold the standard deviation.
        seed: of the random vectors.

    Raises:
        NormError: not linear, or too large and no convolution.

    Source: the spread of singular values, layer by layer: Wen, Li & Jia 2020, Figs. 1a, 5c and 5d.
    """
    check_number("relative_error", relative_error, "a number above 0", above=0, error=NormError)
    expected = "a probability in (0, 1)"
    check_number("failure_probability", failure_probability, expected, above=0, below=1, error=NormError)
    check_count("seed", seed, 0, error=NormError)
    check_weights(layer)
    in_shape = as_shape(in_shape)
    spectrum = exact_spectrum(layer, in_shape)
    if spectrum is not None:
        spectrum.check_not_empty()
        std, mean = spectrum.std, float(spectrum.values.mean())
        return Spread(std, std, std, mean, len(spectrum.values), 0.0, spectrum.method)
    convolution = as_convolution(layer, in_shape)
    if convolution is None:
        raise NormError(
            f"the singular values of {type(layer).__name__} at {tuple(in_shape)} are not known: its matrix has more than "
            "2,048 rows and columns, and it is no convolution"
        )
    if not convolution.K.any():
        return Spread(0.0, 0.0, 0.0, 0.0, min(convolution.linear().shape), 0.0, "all weights are zero")
    return _estimate(*convolution.scaled(), relative_error, failure_probability, seed)


def _estimate(
    convolution: ConvolutionMatrix, scale: float, relative_error: float, failure_probability: float, seed: int
) -> Spread:
    """More vectors, twice as many at each look, until the interval is narrow enough."""
    samples = _Samples(convolution, relative_error / 4, seed)
    count, mean_square = samples.count, samples.square / samples.count
    probes, share = FIRST_PROBES, failure_probability
    while True:
        samples.draw(probes)
        share /= 2  # the looks' probabilities of failure sum to less than the whole
        low, middle, high = samples.trace(share)
        means = low / count * (1 - ROUNDING), middle / count, high / count * (1 + ROUNDING)
        upper, std, lower = (math.sqrt(max(mean_square - max(mean, 0.0) ** 2, 0.0)) for mean in means)
        narrow = max(upper - std, std - lower) <= relative_error * std
        if narrow or upper <= SMALL * math.sqrt(mean_square) or 2 * probes > MOST_PROBES:
            break
        probes *= 2
    method = f"stochastic quadrature, {probes} vectors of random signs, {samples.steps} steps"
    ends = std * scale, lower * scale, upper * scale
    return Spread(*ends, middle / count * scale, count, failure_probability, method)


class _Samples:
    """Forms of random vectors, with A the map that has no more rows than columns.

    Attributes:
        count: rows of A.
        square: ‖A‖_F².
        steps: the most steps of bidiagonalization.
    """

    def __init__(self, convolution: ConvolutionMatrix, tolerance: float, seed: int) -> None:
        linear, mode = convolution.linear(), convolution.geometry.mode
        of_inputs = linear.shape[1] < linear.shape[0]
        self.A = linear.T if of_inputs else linear
        self.count, self.square = self.A.shape[0], convolution.inner_product(mode, mode)
        self.tolerance, self.steps = tolerance, 0
        self._controls = _circular_controls(convolution, of_inputs, self.A.out_shape)
        self._generator = torch.Generator().manual_seed(seed)
        self._rows: list[
            Tensor
        ] = []  # (n, 2 + controls): both rules, and the control variates less their traces

    def draw(self, total: int) -> None:
        """Forms of new random vectors, until there are ``total``."""
        at_once = max(1, int(MEMORY / max(self.A.shape)))
        while (missing := total - sum(map(len, self._rows))) > 0:
            shape = (min(missing, at_once), *self.A.out_shape)
            u = 2 * torch.randint(2, shape, generator=self._generator).double().to(self.A.device) - 1
            low, high, squares = self._quadrature(u)
            rules = torch.stack([low, high, squares - self.square], 1)
            self._rows.append(torch.cat([rules, self._controls(u)], 1))

    def _quadrature(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rule of Gauss and Radau and that of Gauss for uᵀ (A Aᵀ)^(1/2) u, and ‖Aᵀ u‖², each (n,).

        Steps of bidiagonalization until the rules differ by no more than the tolerance allows.
        """
        square = lp_norm(u, 2) ** 2
        for L in bidiagonalized(self.A, u):
            low, high = _root(L) * square, _root(L[:, :-1]) * square
            gap, mean = float((high - low).mean()) / self.count, float(high.mean()) / self.count
            variance = max(self.square / self.count - mean**2, (SMALL * mean) ** 2)
            if gap * mean <= 2 * self.tolerance * variance or L.shape[2] >= MOST_STEPS:
                break
        self.steps = max(self.steps, L.shape[2])
        return low, high, L[:, 0, 0] ** 2 * square

    def trace(self, failure_probability: float) -> tuple[float, float, float]:
        """An estimate of tr (A Aᵀ)^(1/2) between the ends of an interval, by regression on the control variates."""
        from scipy.special import stdtrit

        rows = torch.cat(self._rows).cpu()
        rules, X = rows[:, :2], rows[:, 2:] / rows[:, 2:].abs().amax(0).clamp(min=1e-300)
        X = torch.cat([torch.ones_like(X[:, :1]), X], 1)
        inverse = torch.linalg.pinv(X, rtol=1e-10)
        low, high = (inverse[0] @ rules).tolist()
        freedom = len(X) - X.shape[1]
        variances = (rules - X @ (inverse @ rules)).square().sum(0) / freedom * inverse[0].square().sum()
        margins = variances.sqrt() * float(stdtrit(freedom, 1 - failure_probability / 2))
        # the rule of Gauss errs about half as much as the other
        return low - float(margins[0]), (low + 2 * high) / 3, high + float(margins[1])


def bidiagonalized(A: LinearMap, u: Tensor) -> Iterator[Tensor]:
    """The lower bidiagonal matrices (n, k + 1, k) of Golub & Kahan for k = 8, 16, ... from starts u (n, *A.out_shape).

    With u / ‖u‖ the first column of U: Aᵀ U_k = V_k L_kᵀ for the first k rows L_k, and A V_k = U_{k+1} L. The columns are
    not orthogonalized again: quadrature does not need it (Golub & Meurant 2010, Sec. 4.6).
    """
    x = u / per_row(lp_norm(u, 2), u)
    v, beta = torch.zeros_like(A.T @ x), u.new_zeros(len(u))
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    while True:
        v = A.T @ x - per_row(beta, v) * v
        alpha = lp_norm(v, 2)
        v = v / per_row(alpha.clamp(min=1e-300), v)
        x = A @ v - per_row(alpha, x) * x
        beta = lp_norm(x, 2)
        x = x / per_row(beta.clamp(min=1e-300), x)
        alphas.append(alpha)
        betas.append(beta)
        if len(alphas) % 8 == 0:
            diagonal, below = (torch.diag_embed(torch.stack(part, 1)) for part in (alphas, betas))
            yield F.pad(diagonal, (0, 0, 0, 1)) + F.pad(below, (0, 0, 1, 0))


def _root(L: Tensor) -> Tensor:
    """e_1ᵀ (L Lᵀ)^(1/2) e_1 of matrices (n, rows, columns)."""
    U, values, _ = torch.linalg.svd(L, full_matrices=False)
    return (U[:, 0].square() * values).sum(1)


def _circular_controls(
    convolution: ConvolutionMatrix, of_inputs: bool, shape: Shape
) -> Callable[[Tensor], Tensor]:
    """The function of vectors u (n, *shape) to uᵀ G u and uᵀ G^(1/2) u less their traces, (n, 2); (n, 0) for large symbols.

    On the inputs, a circulant acts on their phases, and G is cut down to the positions that exist.
    """
    geometry, groups = convolution.geometry, convolution.geometry.groups
    size = convolution.circle if of_inputs else convolution.out_size
    symbol, (omega, times) = convolution.circular_symbol(), half_grid(size)
    skipped = symbol.matrices.shape[-1] < convolution.K.shape[1] * math.prod(geometry.stride)
    work = groups * len(omega) * symbol.matrices.shape[-1 if of_inputs else -2] ** 3
    if (of_inputs and skipped) or work > ROOT_WORK:
        return lambda u: u.new_empty(len(u), 0)
    A = symbol.symbol(omega)  # (groups, F, c_out, c_in)
    values, vectors = torch.linalg.eigh(A.mH @ A if of_inputs else A @ A.mH)
    eigenvalues = torch.stack([values, values.clamp(min=0).sqrt()], -1)
    weights = torch.from_numpy(times / math.prod(size)).to(values)
    places = np.round(omega * np.array(size) / (2 * math.pi)).astype(int)
    where = tuple(torch.from_numpy(place).to(A.device) for place in places.T)

    def layout(u: Tensor) -> Tensor:
        return _by_phase(u, groups, geometry.stride, size) if of_inputs else u.unflatten(1, (groups, -1))

    diagonals = torch.einsum("f,gfcj,gfjk->gck", weights, vectors.abs().square(), eigenvalues)
    positions = layout(torch.ones(1, *shape).to(values)).flatten(3).sum(3)[0]  # (groups, channels)
    traces = torch.einsum("gc,gck->k", positions, diagonals)

    def forms(u: Tensor) -> Tensor:
        waves = torch.fft.fftn(layout(u), dim=tuple(range(3, 3 + len(size))))[(..., *where)]
        parts = (vectors.mH @ waves.permute(1, 3, 2, 0)).abs().square()  # (groups, F, channels, n)
        return torch.einsum("f,gfjn,gfjk->nk", weights, parts, eigenvalues) - traces

    return forms


def _by_phase(u: Tensor, groups: int, stride: Shape, size: Shape) -> Tensor:
    """(n, channels, *positions) -> (n, groups, phases times channels of a group, *size), zeros where a phase is short."""
    pads: list[int] = []
    for length, m, s in zip(reversed(u.shape[2:]), reversed(size), reversed(stride), strict=True):
        pads += [0, m * s - length]
    u = F.pad(u, pads).unflatten(1, (groups, -1))
    for axis, s in enumerate(stride):
        u = u.unflatten(3 + 2 * axis, (-1, s))
    places = [3 + 2 * axis for axis in range(len(size))]
    return u.permute(0, 1, *(place + 1 for place in places), 2, *places).flatten(2, 2 + len(size))
