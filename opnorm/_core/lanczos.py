"""Lanczos iteration on AᵀA for many maps at once, and the probability with which its value is close to ‖A‖_2."""

import math

import torch
from torch import Tensor

from opnorm._core.linear_map import LinearMap
from opnorm._core.lp import dual, lp_norm
from opnorm._core.random import normal, point_keys

__all__ = ["lanczos", "steps_for", "upper_factor"]


@torch.no_grad()
def lanczos(A: LinearMap, start: Tensor, *, steps: int, tolerance: float = 0.0, every: int = 10) -> Tensor:
    """For each row, the unit v of the Krylov space of AᵀA from ``start`` with the largest ‖A v‖_2, (B, *in).

    With full reorthogonalization, in float32 at least. The image of a basis vector is normalized before Aᵀ is applied, so
    the scale of A does not matter. Where the space is exhausted, its next vector being rounding compared with the largest
    so far, it goes on with a random vector orthogonal to it: rounding that hides a larger value ends nothing.

    Args:
        A: one map for every row, or one for each.
        start: (B, *in), of any length.
        steps: the dimension of the Krylov space, at most.
        tolerance: stop when ``every`` steps raise ‖A v‖_2 by less than this, relatively, in every row; 0 for all steps.
        every: how many steps from one such test to the next.

    Returns:
        unit vectors of the type of ``start``; NaN where products are not finite.

    Source: Golub & Van Loan 2013, Sec. 10.1.
    """
    count, shape, n, dtype = len(start), start.shape[1:], start[0].numel(), start.dtype
    steps, keys = max(1, min(steps, n)), point_keys(start, 0)
    start = start.to(torch.promote_types(dtype, torch.float32))
    basis, images = start.new_empty(count, steps, n), start.new_empty(count, steps, math.prod(A.out_shape))
    lengths, products = start.new_zeros(count, steps), start.new_zeros(count, steps, steps)  # of the images
    basis[:, 0] = dual(start.flatten(1), 2, dual(normal(keys, n).to(start), 2))
    largest, best = start.new_zeros(count), torch.zeros(count, dtype=torch.float64, device=start.device)
    for k in range(1, steps + 1):
        image = (A @ basis[:, k - 1].to(dtype).unflatten(1, shape)).flatten(1).to(start.dtype)
        lengths[:, k - 1] = lp_norm(image, 2)
        images[:, k - 1] = dual(image, 2)
        products[:, k - 1, :k] = products[:, :k, k - 1] = _times(images[:, :k], images[:, k - 1])
        if k == steps:
            break
        if tolerance and k % every == 0:
            value = torch.linalg.eigvalsh(_gram(products[:, :k, :k], lengths[:, :k]))[:, -1].sqrt()
            value = value * lengths[:, :k].amax(1)
            if not (value > best * (1 + tolerance)).any():
                break
            best = value
        new = (A.T @ images[:, k - 1].to(dtype).unflatten(1, A.out_shape)).flatten(1).to(start.dtype)
        largest = torch.maximum(largest, lp_norm(new, 2))
        new = _orthogonal(new / _positive(largest)[:, None], basis[:, :k])
        size = lp_norm(new, 2) * (lengths[:, k - 1] / _positive(lengths.amax(1)))
        exhausted = size <= 8 * torch.finfo(start.dtype).eps
        if exhausted.any():
            fresh = normal(keys + k, n).to(new)
            new = torch.where(exhausted[:, None], _orthogonal(fresh, basis[:, :k]), new)
        basis[:, k] = dual(_orthogonal(dual(new, 2), basis[:, :k]), 2)
    H = _gram(products[:, :k, :k], lengths[:, :k])
    finite = H.isfinite().all(2).all(1)
    top = torch.linalg.eigh(torch.where(finite[:, None, None], H, 0)).eigenvectors[:, :, -1]
    v = dual(_times(basis[:, :k].mT, top.to(start.dtype)), 2, basis[:, 0])
    return torch.where(finite[:, None], v, math.nan).unflatten(1, shape).to(dtype)


def _orthogonal(vectors: Tensor, basis: Tensor) -> Tensor:
    """The parts of vectors (B, n) that are orthogonal to the bases (B, k, n)."""
    for _ in range(2):  # twice is enough
        vectors = vectors - _times(basis.mT, _times(basis, vectors))
    return vectors


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors[:, :, None]).squeeze(2)


def _gram(products: Tensor, lengths: Tensor) -> Tensor:
    """The Gram matrix of the images over the square of the largest length, in float64."""
    scaled = (lengths / _positive(lengths.amax(1, keepdim=True))).double()
    return scaled[:, :, None] * products.double() * scaled[:, None]


def _positive(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1)


def upper_factor(columns: int, steps: int, failure_probability: float) -> float:
    """The c with ‖A‖_2 ≤ c ‖A v‖_2 except with this probability, v from Lanczos iteration with a normal random start.

    P(λ_k < (1 - ε) λ_max) ≤ 1.648 sqrt(n) exp(-sqrt(ε) (2 k - 1)) for k steps on AᵀA with n columns; c = (1 - ε)^(-1/2),
    infinite for too few steps.

    Source: Kuczyński & Woźniakowski 1992, Theorem 4.2.
    """
    epsilon = (_exponent(columns, failure_probability) / (2 * steps - 1)) ** 2
    return 1 / math.sqrt(1 - epsilon) if epsilon < 1 else math.inf


def steps_for(columns: int, factor: float, failure_probability: float) -> int:
    """The least number of steps with :func:`upper_factor` at most ``factor``, above 1; all columns at most."""
    epsilon = 1 - factor**-2
    return min(columns, math.ceil((_exponent(columns, failure_probability) / math.sqrt(epsilon) + 1) / 2))


def _exponent(columns: int, failure_probability: float) -> float:
    return math.log(1.648 * math.sqrt(columns) / failure_probability)
