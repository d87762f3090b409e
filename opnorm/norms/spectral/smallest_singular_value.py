"""The smallest singular value of a layer between two bounds.

With A the matrix or its transpose, the one with no more rows than columns, σ_min = min_u ‖Aᵀ u‖_2 / ‖u‖_2 is the last of
min(rows, columns) singular values: 0 exactly where A loses rank. Every u gives an upper bound. A lower bound μ is proved by
a Cholesky factorization of A Aᵀ - μ² I, rounding included. Positions of a convolution that are far apart on the first
spatial axis have no input in common, so that A Aᵀ is block tridiagonal, and its factorization costs far less than that of a
full matrix.
"""

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opnorm._core.argument_checks import as_shape
from opnorm._core.layers import Shape, check_weights
from opnorm._core.linear_map import LinearMap, linear_map
from opnorm._core.modes import in_default_modes
from opnorm._core.rounding import unit_roundoff
from opnorm.norms.norm import Norm
from opnorm.norms.spectral.convolution_matrix import ConvolutionMatrix, as_convolution
from opnorm.norms.spectral.singular_value_spread import bidiagonalized
from opnorm.norms.spectral.singular_values import exact_spectrum

__all__ = ["smallest_singular_value"]

UNIT = unit_roundoff(torch.float64)
ENTRIES, PRODUCTS = 5e7, 4e9  # of the sparse matrix A, and multiplications for A Aᵀ, at most
SIDE, BLOCKS = 4096, 2e8  # rows of a block of A Aᵀ, and entries of all blocks, at most
ITERATIONS = 12  # of inverse iteration
SHARES = (0.999, 0.99, 0.9, 0.5)  # of the upper end, tried as the lower one
STEPS = 100  # of bidiagonalization, where the blocks are too large


@in_default_modes
@torch.no_grad()
def smallest_singular_value(layer: nn.Module, in_shape: Shape) -> Norm:
    """The smallest of a layer's min(inputs, outputs) singular values, as an interval; rounding included.

    It is 0 for a layer without full rank. Of a layer with more inputs than outputs, the zeros that its shape alone implies
    do not count: at full rank, inputs orthogonal to the null space are scaled by σ_min at least.

    Args:
        layer: any affine module.
        in_shape: shape of one input, without the batch axis.

    Returns:
        ``Norm(lower, upper, method)``. A lower end of 0 with "not known" in the method means that nothing larger was proved.

    Raises:
        NormError: the layer is not linear, or does not take such inputs.

    Source: σ_min of Wen, Li & Jia 2020, Theorem 3.1.
    """
    check_weights(layer)
    in_shape = as_shape(in_shape)
    spectrum = exact_spectrum(layer, in_shape)
    if spectrum is not None:
        spectrum.check_not_empty()
        value, largest = float(spectrum.values[-1]), float(spectrum.values[0])
        error = 4 * sum(linear_map(layer, in_shape).shape) * UNIT * largest
        return Norm.of(max(value - error, 0.0), value + error, f"{spectrum.method}, to rounding")
    convolution = as_convolution(layer, in_shape)
    if convolution is not None:
        if not convolution.K.any():
            return Norm.of(0.0, 0.0, "all weights are zero")
        scaled, scale = convolution.scaled()
        blocks = _Blocks.of(scaled)
        if blocks is not None:
            lower, upper = blocks.interval()
            side = max(len(D) for D in blocks.diagonal)
            known = "" if lower else "; lower end not known"
            return Norm.of(lower * scale, upper * scale, f"block factorization, blocks of {side} rows{known}")
    return Norm.of(
        0.0, _by_bidiagonalization(linear_map(layer, in_shape)), "bidiagonalization; lower end not known"
    )


def _by_bidiagonalization(linear: LinearMap) -> float:
    """An upper bound: the smallest singular value of the leading square bidiagonal matrix."""
    A = linear.T if linear.shape[1] < linear.shape[0] else linear
    start = torch.randn(1, *A.out_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for L in bidiagonalized(A, start.to(A.device)):
        if L.shape[2] >= min(STEPS, A.shape[0]):
            break
    values = torch.linalg.svdvals(L[0, :-1])
    largest, smallest = float(values[0]), float(values[-1])
    # rounding moves the values of A Aᵀ by far less than k³ units of its norm
    return largest * math.sqrt((smallest / largest) ** 2 + L.shape[2] ** 3 * UNIT) if largest else 0.0


class _Blocks:
    """A Aᵀ as a block tridiagonal matrix.

    Attributes:
        A: sparse.
        diagonal: the blocks on the diagonal.
        below: the blocks below it, one fewer.
        error: of the Cholesky factorization of A Aᵀ minus a multiple of the identity, and of A Aᵀ itself, at most.
    """

    def __init__(self, A: Any, G: Any, starts: list[int]) -> None:
        self.A = A
        ends = [*starts[1:], G.shape[0]]
        spans = list(zip(starts, ends, strict=True))
        self.diagonal = [torch.from_numpy(G[a:b, a:b].toarray()) for a, b in spans]
        self.below = [torch.from_numpy(G[c:d, a:b].toarray()) for (a, b), (c, d) in itertools.pairwise(spans)]
        absolute = abs(A)
        self.square = float(absolute.sum(0).max() * absolute.sum(1).max())  # at least ‖|A|‖_2²
        self.terms = int(np.diff(A.indptr).max())
        width = 2 * max(map(len, self.diagonal))
        # |L| |L|ᵀ has a norm of at most width times the largest diagonal entry (Higham 2002, Thm 10.3)
        self.error = UNIT * (
            2 * (self.terms + 2) * self.square + 4 * (width + 2) ** 2 * float(G.diagonal().max())
        )

    @classmethod
    def of(cls, convolution: ConvolutionMatrix) -> "_Blocks | None":
        """None where the matrix or the blocks would be too large."""
        taps = convolution.K.numel() * math.prod(convolution.out_size)
        if taps > ENTRIES:
            return None
        A, size = convolution.to_sparse(), convolution.out_size[0]
        if A.shape[1] < A.shape[0]:
            A, size = A.T.tocsr(), convolution.in_size[0]
        in_column = np.bincount(A.indices, minlength=A.shape[1]).astype(float)
        if (in_column**2).sum() > PRODUCTS:
            return None
        G = (A @ A.T).tocoo()
        rows = G.shape[0] // size  # of one position of the first axis
        reach = max(1, int(np.abs(G.row // rows - G.col // rows).max()))
        side = min(reach, size) * rows
        if side > SIDE or 2 * side * G.shape[0] > BLOCKS:
            return None
        return cls(A, G.tocsr(), list(range(0, G.shape[0], side)))

    def interval(self) -> tuple[float, float]:
        """The ends, the upper one by inverse iteration."""
        shift = 2 * self.error
        while (factors := self.factorized(-shift)) is None:
            shift *= 10
        V = torch.randn(self.A.shape[0], 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for _ in range(ITERATIONS):
            V = torch.linalg.qr(_solve(factors, V))[0]
        images = torch.from_numpy(self.A.T @ V.numpy())
        upper = float(torch.linalg.svdvals(images)[-1]) + 4 * (self.terms + 8) * UNIT * math.sqrt(self.square)
        for share in SHARES:
            value = share * upper
            if value**2 > self.error and self.factorized(value**2 + self.error) is not None:
                return value, upper
        return 0.0, upper

    def factorized(self, shift: float) -> list[tuple[Tensor, Tensor]] | None:
        """The block Cholesky factors of A Aᵀ - shift I, each with the block below it; None where it is indefinite."""
        factors: list[tuple[Tensor, Tensor]] = []
        rest = self.diagonal[0]
        for i in range(len(self.diagonal)):
            L, info = torch.linalg.cholesky_ex(rest - shift * torch.eye(len(rest), dtype=rest.dtype))
            if int(info):
                return None
            if i + 1 == len(self.diagonal):
                return [*factors, (L, L[:0])]
            W = torch.linalg.solve_triangular(L.mT, self.below[i], upper=True, left=False)
            factors.append((L, W))
            rest = self.diagonal[i + 1] - W @ W.mT
        return factors


def _solve(factors: list[tuple[Tensor, Tensor]], V: Tensor) -> Tensor:
    """X with (L Lᵀ) X = V for a block bidiagonal L."""
    parts = list(V.split([len(L) for L, _ in factors]))
    for i, (L, W) in enumerate(factors):
        parts[i] = torch.linalg.solve_triangular(L, parts[i], upper=False)
        if i + 1 < len(parts):
            parts[i + 1] = parts[i + 1] - W @ parts[i]
    for i, (L, W) in reversed(list(enumerate(factors))):
        right = parts[i] - W.mT @ parts[i + 1] if i + 1 < len(parts) else parts[i]
        parts[i] = torch.linalg.solve_triangular(L.mT, right, upper=True)
    return torch.cat(parts)
