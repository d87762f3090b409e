"""Of a convolution of many groups whose padding copies the input, those that may have the largest norm.

Which groups are large is estimated on a small map, and the largest of them is measured on the whole one: a lower bound. That
the norms of others are no larger is proved group by group: first from the parts at the borders and inside
(``border_regions.py``), which takes little work; then by a factorization of the whole Gram matrix.
"""

import numpy as np
import torch
from torch import Tensor

from opnorm._core.lanczos import lanczos as krylov_maximizer
from opnorm._core.linear_map import LinearMap, convolution_map
from opnorm._core.lp import lp_norm
from opnorm.norms.spectral.border_regions import exceeding, regions
from opnorm.norms.spectral.convolution_matrix import ConvolutionMatrix
from opnorm.norms.spectral.group_selection import FEW
from opnorm.norms.spectral.iterations import lanczos

__all__ = ["leading_kernels"]

LITTLE_WORK = 1e9  # multiplications of all factorizations, up to which the parts are not looked at
LESS = 50, 10, 3  # times the work of the parts is that of the whole, at least, one after the other
SMALL_MAP = 16  # places on an axis of the map on which all groups are compared
STEPS = 6  # of Lanczos iterations there
MANY = 1000  # of those that run until they have converged
TRIES = 8  # groups that are measured on the whole map, at most


def leading_kernels(
    convolution: ConvolutionMatrix, relative_width: float, effort: int
) -> tuple[Tensor, float, float]:
    """The kernels of the groups that may have the largest norm; a lower bound of that, and an upper bound of the others'.

    Args:
        convolution: with padding that copies.
        relative_width: groups may be left out if their norms exceed the largest one by no more than this, relatively.
        effort: the side of a matrix whose factorization takes as long as may be.
    """
    K = convolution.K.unflatten(0, (convolution.geometry.groups, -1))
    if len(K) < FEW or not bool(K.any()):
        return K, 0.0, 0.0
    K = K.unique(dim=0)
    K = K[_estimates(convolution.of_groups(K)).argsort(descending=True)]
    leader = convolution.of_groups(K[:1])
    lower, rest, tried = _norm(leader, relative_width), 0.0, 1
    left, work = np.arange(1, len(K)), leader.block_gram().work
    for less in LESS:
        if len(left) * work > LITTLE_WORK and (parts := regions(leader, work / less)):
            left, rest = left[exceeding(convolution.of_groups(K[left]), parts, lower)], lower
    while len(left) and convolution.of_groups(K[left]).block_gram().side <= effort:
        rest = lower * (1 + 0.995 * relative_width)
        left = left[convolution.of_groups(K[left]).block_gram().exceeding(rest)]
        found = (
            _norm(convolution.of_groups(K[left[:1]]), relative_width) if len(left) and tried < TRIES else 0.0
        )
        if found <= lower:
            break
        lower, tried = found, tried + 1
    return K[[0, *left]], lower, rest


def _norm(convolution: ConvolutionMatrix, relative_width: float) -> float:
    """A lower bound."""
    return lanczos(convolution.linear(), MANY, tolerance=relative_width / 50)


def _estimates(convolution: ConvolutionMatrix) -> Tensor:
    """About the norm of each group, on a small map."""
    geometry, (scaled, _) = convolution.geometry, convolution.scaled()
    axes = zip(convolution.in_size, geometry.kernel, geometry.dilation, geometry.padding, strict=True)
    size = tuple(min(n, max(SMALL_MAP, 2 * d * k, *(p + 1 for p in pads))) for n, k, d, pads in axes)
    M, groups = convolution_map(scaled.K.float(), geometry, size), geometry.groups
    each = LinearMap(
        lambda v: (M @ v.flatten(0, 1)[None])[0].unflatten(0, (groups, -1)),
        lambda u: (M.T @ u.flatten(0, 1)[None])[0].unflatten(0, (groups, -1)),
        (M.in_shape[0] // groups, *size),
        (M.out_shape[0] // groups, *M.out_shape[1:]),
        dtype=torch.float32,
    )
    start = torch.randn(groups, *each.in_shape, generator=torch.Generator().manual_seed(0)).to(
        scaled.K.device
    )
    return lp_norm(each @ krylov_maximizer(each, start, steps=STEPS), 2)
