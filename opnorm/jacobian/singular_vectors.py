"""All singular values of Jacobians, and how directions align with their singular vectors."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from opnorm._core.lp import lp_norm
from opnorm._core.modes import Mode, in_default_modes
from opnorm.errors import NormError
from opnorm.jacobian.products import check_points, explicit, linearized, points_at_once

__all__ = ["alignment", "singular_values"]

BYTES = 2**28  # of explicit Jacobians at a time, in float64
LARGEST = 2**31  # bytes of one of them


@in_default_modes
def singular_values(model: nn.Module, x: Tensor, *, mode: Mode = "eval") -> Tensor:
    """All singular values of J(x_b), the largest first: (B, min(K, n)) float64 for K outputs and n inputs.

    Arguments as of :func:`opnorm.jacobian.linearized`; :func:`features` for hidden layers.

    Raises:
        NormError: a single Jacobian takes more than 2 GiB.
        ModelError: see :func:`opnorm.jacobian.linearized`.

    Source: Roth, Kilcher & Hofmann 2020, Fig. 2 left.
    """
    return torch.cat([torch.linalg.svdvals(A) for A in _matrices(model, x, mode)])


@in_default_modes
def alignment(model: nn.Module, x: Tensor, z: Tensor, *, mode: Mode = "eval") -> Tensor:
    """|cos| of the angle between z_b and the r-th right singular vector of J(x_b), (B, min(K, n)) float64, r = 1, 2, ...

    A random z has about sqrt(2 / (π n)) with each. Singular vectors have no sign, so the cosine has none either;
    those of equal singular values, or of 0, are arbitrary. Arguments as of :func:`singular_values`; z is (B, *in).

    Raises:
        NormError: a zero direction, or another shape than that of x; see also :func:`singular_values`.
        ModelError: see :func:`opnorm.jacobian.linearized`.

    Source: Roth, Kilcher & Hofmann 2020, Fig. 2 right.
    """
    if z.shape != x.shape:
        raise NormError(f"directions have shape {tuple(z.shape)}; expected {tuple(x.shape)}")
    z = z.flatten(1).double()
    length = lp_norm(z, 2)[:, None]
    if not (length > 0).all():
        raise NormError(f"{int((length <= 0).sum())} of {len(z)} directions are zero or NaN")
    rest, cosines = z / length, []
    for A in _matrices(model, x, mode):
        part, rest = rest[: len(A)], rest[len(A) :]
        cosines.append((_right_vectors(A, x.dtype) @ part[:, :, None]).squeeze(2).abs())
    return torch.cat(cosines)


def _right_vectors(A: Tensor, dtype: torch.dtype) -> Tensor:
    """The right singular vectors as rows, (b, min(K, n), n), the one of the largest singular value first.

    For a tall Jacobian that was computed in float32 or below, the eigenvectors of AᵀA in float64: a third of the work, and
    an error of ε_64 σ_1² / σ_r in a singular value σ_r, less than that of A itself, ε_32 σ_1, where σ_r > 1e-9 σ_1.
    """
    if dtype == torch.float64 or A.shape[-2] < A.shape[-1]:
        return torch.linalg.svd(A, full_matrices=False).Vh
    A = A / A.abs().amax((-2, -1), keepdim=True).clamp_min(
        torch.finfo(A.dtype).tiny
    )  # squares neither overflow nor vanish
    return torch.linalg.eigh(A.mT @ A).eigenvectors.mT.flip(-2)


def _matrices(model: nn.Module, x: Tensor, mode: Mode) -> Iterator[Tensor]:
    """The Jacobians (b, K, n) in float64, a few points at a time."""
    check_points(x)
    with linearized(model, x[:1], mode=mode) as J:
        size = 8 * J.shape[0] * J.shape[1]
    if size > LARGEST:
        raise NormError(
            f"the Jacobian takes {size:,} bytes a point, more than {LARGEST:,}; jacobian_norm needs none of them"
        )
    for part in x.split(max(1, min(points_at_once(x), BYTES // size))):
        yield explicit(model, part, mode=mode, limit=LARGEST).flatten(2).double()
