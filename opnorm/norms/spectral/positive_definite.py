"""Whether θ² I - G(ω) is positive definite at many frequencies, a proof that ‖A(ω)‖ ≤ θ, float rounding included."""

import numpy as np
import torch

from opnorm._core.rounding import unit_roundoff
from opnorm.norms.spectral.frequency_response import Gram, Polyphase

__all__ = ["DOUBLE", "SINGLE", "CholeskyTest"]

SINGLE, DOUBLE = torch.complex64, torch.complex128
CHUNK_BYTES = 4e6  # of the matrices that are factorized at once
MOST_ERROR = 0.06  # of θ²: where single precision can err by more than this, it is not tried


class CholeskyTest:
    """Factorizations of θ² I - G(ω) for one Gram symbol.

    Attributes:
        count: the number of factorizations so far.
    """

    def __init__(self, t: Polyphase, g: Gram) -> None:
        self.g, self.count = g, 0
        self._grams = {DOUBLE: g}
        self._traces = g.even.diagonal(dim1=-2, dim2=-1).sum(-1).cpu().numpy()  # (groups, D)
        self._coefficients = float(sum(torch.linalg.matrix_norm(H).sum(1) for H in (g.even, g.odd)).max())
        lengths = torch.linalg.vector_norm(t.matrices.flatten(1), dim=1)
        self._kernel = len(t.offsets) * max(t.matrices.shape[-2:]) * float(lengths.max()) ** 2

    def gram(self, dtype: torch.dtype) -> Gram:
        """The Gram symbol with coefficients of this precision, SINGLE or DOUBLE."""
        if dtype not in self._grams:
            self._grams[dtype] = self.g.single()
        return self._grams[dtype]

    def rounding(self, dtype: torch.dtype, trace: np.ndarray | float) -> np.ndarray | float:
        """A bound of the float error in an eigenvalue of θ² I - G(ω), or of G(ω).

        With unit roundoff u, D coefficients, and 2√2 for complex products: sums over them err by at most
        (2 D + 8) u Σ_δ ‖H_δ‖_F, the coefficients themselves by far less than 64 T c u ‖K‖_F² in double; a factorization by
        (n + 8) u times the trace of the matrix (Higham 2002, Thm 10.3), a diagonalization by as much times n times the norm.

        Args:
            dtype: SINGLE or DOUBLE.
            trace: that trace, or that product.
        """
        u = unit_roundoff(dtype)
        sums = (2 * len(self.g.offsets) + 8) * u * self._coefficients
        return 2.83 * (sums + 64 * unit_roundoff(DOUBLE) * self._kernel + (self.g.n + 8) * u * trace)

    def exceeding(self, omega: np.ndarray, groups: np.ndarray, theta2: np.ndarray) -> np.ndarray:
        """The indices at which ‖A(ω)‖² ≤ θ² is not proved, first in single precision, then in double."""
        left = np.arange(len(omega))
        cosines = np.cos(omega @ self.g.offsets.T)
        traces = self.g.n * theta2 - (cosines * self._traces[groups]).sum(1)
        for dtype in (SINGLE, DOUBLE):
            error = self.rounding(dtype, np.maximum(traces[left], 0))
            if dtype is DOUBLE or np.all(error <= MOST_ERROR * theta2[left]):
                left = left[self.indefinite(omega[left], groups[left], theta2[left] - error, dtype)]
        return left

    def indefinite(
        self, omega: np.ndarray, groups: np.ndarray, theta2: np.ndarray, dtype: torch.dtype
    ) -> np.ndarray:
        """Whether each matrix θ² I - G(ω) is not proved to be positive definite."""
        bad = np.zeros(len(omega), dtype=bool)
        step = max(1, int(CHUNK_BYTES / (8 * self.g.n**2)))
        for i in range(0, len(omega), step):
            some = slice(i, i + step)
            M = self.gram(dtype).at(omega[some], groups[some]).neg_()
            M.diagonal(dim1=1, dim2=2).add_(torch.from_numpy(theta2[some]).to(M)[:, None])
            bad[some] = (torch.linalg.cholesky_ex(M).info != 0).cpu().numpy()
        self.count += len(omega)
        return bad
