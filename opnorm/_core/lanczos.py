"""Lanczos iteration on AᵀA for many maps at once, and the probability with which its value is close to ‖A‖_2."""

import math

import torch
from torch import Tensor

from opnorm._core.linear_map import LinearMap
from opnorm._core.lp import dual, lp_norm

__all__ = ["lanczos", "steps_for", "upper_factor"]


@torch.no_grad()
def lanczos(A: LinearMap, start: Tensor, *, steps: int, tolerance: float = 0.0, every: int = 10) -> Tensor:
    """For each row, the unit v of the Krylov space of AᵀA from ``start`` with the largest ‖A v‖_2, (B, *in).

    With full reorthogonalization. The image of a basis vector is normalized before Aᵀ is applied, and the space counts as
    exhausted only where its next vector is rounding beside the largest so far; so the scale of A does not matter.

    Args:
        A: one map for every row, or one for each.
        start: (B, *in), of any length.
        steps: the dimension of the Krylov space, at most.
        tolerance: stop when ``every`` steps raise ‖A v‖_2 by less than this, relatively, in every row; 0 for all steps.
        every: how many steps from one such test to the next.

    Source: Golub & Van Loan 2013, Sec. 10.1.
    """
    count, shape, n = len(start), start.shape[1:], start[0].numel()
    steps = max(1, min(steps, n))
    basis, images = start.new_empty(count, steps, n), start.new_empty(count, steps, math.prod(A.out_shape))
    lengths, products = start.new_zeros(count, steps), start.new_zeros(count, steps, steps)  # of the images
    basis[:, 0] = dual(start.flatten(1), 2)
    largest, best = start.new_zeros(count), torch.zeros(count, dtype=torch.float64, device=start.device)
    for k in range(1, steps + 1):
        image = (A @ basis[:, k - 1].unflatten(1, shape)).flatten(1)
        lengths[:, k - 1] = lp_norm(image, 2)
        images[:, k - 1] = image / _positive(lengths[:, k - 1, None])
        products[:, k - 1, :k] = products[:, :k, k - 1] = _times(images[:, :k], images[:, k - 1])
        if k == steps:
            break
        if tolerance and k % every == 0:
            value = torch.linalg.eigvalsh(_gram(products[:, :k, :k], lengths[:, :k]))[:, -1].sqrt()
            value = value * lengths[:, :k].amax(1)
            if not (value > best * (1 + tolerance)).any():
                break
            best = value
        new = (A.T @ images[:, k - 1].unflatten(1, A.out_shape)).flatten(1)
        largest = torch.maximum(largest, lp_norm(new, 2))
        new = new / _positive(largest)[:, None]
        for _ in range(2):  # twice is enough
            new = new - _times(basis[:, :k].mT, _times(basis[:, :k], new))
        size = lp_norm(new, 2) * (lengths[:, k - 1] / _positive(lengths.amax(1)))
        alive = size > 100 * torch.finfo(start.dtype).eps
        if not alive.any():
            break
        basis[:, k] = dual(torch.where(alive[:, None], new, 0), 2)
    H = _gram(products[:, :k, :k], lengths[:, :k])
    finite = H.isfinite().all(2).all(1)
    top = torch.linalg.eigh(torch.where(finite[:, None, None], H, 0)).eigenvectors[:, :, -1]
    v = dual(_times(basis[:, :k].mT, top.to(start.dtype)), 2, basis[:, 0])
    return torch.where(finite[:, None], v, math.nan).unflatten(1, shape)


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
