"""Lower bounds of ‖M‖_2 by iteration with products of M and Mᵀ."""

import torch
from torch import Tensor

from opnorm._core import lp
from opnorm._core.lanczos import lanczos as krylov_maximizer
from opnorm._core.linear_map import LinearMap, check_map
from opnorm._core.modes import in_default_modes
from opnorm._core.rounding import PRODUCT
from opnorm._core.settings import check_count
from opnorm.errors import NormError

__all__ = ["lanczos", "power_iteration", "random_start"]


@in_default_modes
@torch.no_grad()
def power_iteration(
    linear: LinearMap, iterations: int = 100, seed: int = 0, tolerance: float = 1e-9
) -> float:
    """A lower bound of ‖M‖_2: ‖M v‖_2 for the unit vector v reached by ``iterations`` steps v ← MᵀM v / ‖MᵀM v‖.

    Every value ‖M v‖_2 / ‖v‖_2 is a true lower bound; it is lowered by a relative 1e-12 for rounding.

    Args:
        linear: the map, in float64.
        iterations: at most so many products with M and Mᵀ.
        seed: of the random start.
        tolerance: stop when the value grows by less than this, relatively.
    """
    v = lp.dual(random_start(linear, seed, iterations), 2)
    found = lp.power_iteration(linear, v, 2, 2, steps=max(iterations, 1) - 1, tolerance=tolerance)
    return float(found.value) * (1 - PRODUCT)


@in_default_modes
@torch.no_grad()
def lanczos(linear: LinearMap, iterations: int, seed: int = 0, tolerance: float = 0.0) -> float:
    """A lower bound of ‖M‖_2 by Lanczos iteration on MᵀM from a random start, lowered by 1e-12 for rounding.

    Args:
        linear: the map, in float64.
        iterations: at most so many products with M and Mᵀ.
        seed: of the random start.
        tolerance: stop when ten steps add less than this to the value, relatively.
    """
    v = random_start(linear, seed, iterations)
    v = krylov_maximizer(linear, v, steps=iterations, tolerance=tolerance)
    return float(lp.lp_norm(linear @ v, 2) / lp.lp_norm(v, 2)) * (1 - PRODUCT)


def random_start(linear: LinearMap, seed: int, iterations: int = 0) -> Tensor:
    """A normal random input, (1, *in)."""
    check_map(linear)
    check_count("iterations", iterations, 0, error=NormError)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, *linear.in_shape, generator=generator, dtype=torch.float64).to(linear.device)
