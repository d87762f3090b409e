"""Networks that separate norms from robustness (Liang & Huang 2021): large norms without effect, and a robust memorizer.

**The memorizer.** Two points x_i, x_k of different classes are separated by the 1-Lipschitz function

    h_ik(x) = w · (x - (x_i + x_k)/2),   ‖w‖_{p*} = 1,  w · (x_i - x_k) = ‖x_i - x_k‖_p,

which on the ball of radius ε around x_i is at least m = separation/2 - ε > 0, and at most -m on that around x_k. V is a soft
step of one or two activations: within τ of 0 left of -1, not below 1 - τ right of 1, nowhere below -τ. The first hidden
layer computes V(-h_ik/m) for all ordered pairs, the second one u_i = V(1 - 2 Σ_k V(-h_ik/m)): at least 1 - τ on the ball
of x_i, within τ of 0 on all balls of other classes. A class's logit is the sum of its u_i. τ is so small that the right
logit is at least 7/8 and the others are at most 1/8 on every ball, everywhere in R^n. (Rounding in the first layer is
subtracted from the margin.) For a Lipschitz constant of at least ξ, the first class's logit has the further summand A V(2
V(x_1 - T) - 1), T beyond all balls: negligible on the data, a slope of ξ elsewhere.

The paper proves existence, for a real-valued output and every continuous, non-affine activation with a point of non-zero
continuous derivative; this is a construction for logits, and for the activations in :data:`ACTIVATIONS` (not for polynomials
or sin, which make no steps).
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.lp import dual, lp_norm
from opnorm._core.orders import label
from opnorm._core.settings import check_choice, check_count, check_number
from opnorm.data import Dataset
from opnorm.errors import SpecError

__all__ = ["ACTIVATIONS", "large_norms_zero_lipschitz", "memorizer", "memorizer_of"]

ROUNDED_UNITS = 16  # allowed for rounding: units in the last place of the largest value in the first layer
MAX_WEIGHTS = 2**27  # 1 GiB in float64
USED_MARGIN = 0.9  # the rest of the margin absorbs the rounding


def large_norms_zero_lipschitz(
    norm: float, in_shape: Sequence[int] = (1, 28, 28), classes: int = 10, width: int = 16, depth: int = 3
) -> nn.Sequential:
    """A ReLU network of Lipschitz constant 0 in which every layer has a norm above ``norm``.

    All weights are ±c with c just above ``norm``, so ‖W‖_{p→q} ≥ |W_ij| > norm for every p and q. The second layer's weights
    are all -c and its inputs are not negative, so its ReLU never opens, and the output is constant on all of R^n.

    Args:
        norm: above 0 and at most 1e18, so that no sum leaves float32.
        in_shape: of one input.
        classes: number of logits.
        width: of the hidden layers.
        depth: number of linear layers, at least 3.

    Returns:
        ``Flatten, Linear, ReLU, Linear, ReLU, ..., Linear``; logits 0.

    Raises:
        SpecError: a number out of range.

    Source: Liang & Huang 2021, Proposition 1.

    Example:
        >>> net = large_norms_zero_lipschitz(1e6, in_shape=(4,))
        >>> net(torch.rand(2, 4)).abs().max().item()
        0.0
    """
    check_number("norm", norm, "above 0 and at most 1e18, so that no sum overflows", above=0, most=1e18)
    for name, value, least in (("classes", classes, 1), ("width", width, 1), ("depth", depth, 3)):
        check_count(name, value, least)
    sizes = [math.prod(in_shape), *[width] * (depth - 1), classes]
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        signs = torch.randint(0, 2, (outputs, inputs), generator=generator) * 2.0 - 1
        weight = 1.001 * norm * (-torch.ones_like(signs) if i == 1 else signs)
        layers += [_linear(weight, torch.zeros(outputs)), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


# ---------------------------------------------------------------- soft steps


class SoftStep(NamedTuple):
    """V(t) = constant + Σ_k c_k ρ(a_k t + b_k): |V(t)| ≤ τ for t ≤ -1, V(t) ≥ 1 - τ for t ≥ 1, V ≥ -τ.

    Attributes:
        activation: ρ.
        terms: (a_k, b_k, c_k).
        constant: the summand.
    """

    activation: nn.Module
    terms: tuple[tuple[float, float, float], ...]
    constant: float = 0.0

    def before(self, weight: Tensor, bias: Tensor) -> nn.Linear:
        """The layer before the activation, for V(W x + b)."""
        return _linear(
            torch.cat([a * weight for a, _, _ in self.terms]),
            torch.cat([a * bias + b for a, b, _ in self.terms]),
        )

    def after(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """W V + b as weight and bias on the outputs of the activation."""
        return torch.cat([c * weight for _, _, c in self.terms], 1), bias + self.constant * weight.sum(1)


LIKE_RELU: dict[str, tuple[type[nn.Module], float]] = {
    "softplus": (nn.Softplus, math.log(2)),
    "gelu": (nn.GELU, 0.17),
    "silu": (nn.SiLU, 0.2785),
    "mish": (nn.Mish, 0.3089),
    "elu": (nn.ELU, 1.0),
    "hardswish": (nn.Hardswish, 0.375),
}
"""Activations with sup |ρ(t) - ReLU(t)|, rounded up: ρ(β t)/β approximates ReLU to any precision."""


def _like_relu(kind: type[nn.Module], distance: float, tau: float) -> SoftStep:
    sharpness = max(distance / tau, 1.0)
    return SoftStep(kind(), ((sharpness / 2, sharpness / 2, 1 / sharpness),))


def _leaky(slope: float) -> SoftStep:
    """leaky(t) + s leaky(-t) = (1 - s²) ReLU(t)."""
    rest = 1 - slope * slope
    return SoftStep(nn.LeakyReLU(slope), ((0.5, 0.5, 1 / rest), (-0.5, -0.5, slope / rest)))


SOFT_STEPS: dict[str, Callable[[float], SoftStep]] = {
    "relu": lambda tau: SoftStep(nn.ReLU(), ((0.5, 0.5, 1.0),)),
    "relu6": lambda tau: SoftStep(nn.ReLU6(), ((0.5, 0.5, 1.0),)),
    "leaky_relu": lambda tau: _leaky(0.01),
    **{name: functools.partial(_like_relu, *like) for name, like in LIKE_RELU.items()},
    "sigmoid": lambda tau: SoftStep(nn.Sigmoid(), ((math.log(1 / tau), 0.0, 1.0),)),
    "tanh": lambda tau: SoftStep(nn.Tanh(), ((math.log(1 / tau) / 2, 0.0, 0.5),), 0.5),
    "hardtanh": lambda tau: SoftStep(nn.Hardtanh(), ((1.0, 0.0, 0.5),), 0.5),
    "hardsigmoid": lambda tau: SoftStep(nn.Hardsigmoid(), ((3.0, 0.0, 1.0),)),
    "softsign": lambda tau: SoftStep(nn.Softsign(), ((1 / (2 * tau), 0.0, 0.5),), 0.5),
}
"""By the activation: a soft step with an error of at most τ."""

ACTIVATIONS = tuple(SOFT_STEPS)
"""The activations that :func:`memorizer` has a soft step of."""


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


# ---------------------------------------------------------------- the memorizer


def memorizer(
    points: Tensor,
    labels: Tensor,
    eps: float,
    norm: float = math.inf,
    activation: str = "relu",
    lipschitz: float = 0.0,
) -> nn.Sequential:
    """A network of robust accuracy 1 on finite data whose classes are more than 2ε apart: built, not trained.

    The construction is at the head of :mod:`opnorm.theory.liang`. Its gradient vanishes on most of the data, so an attack by
    gradients that fails is no evidence; the inequalities of the construction are. There are as many units as ordered
    pairs of points of different classes.

    Args:
        points: (N, *in), finite; their type is the network's.
        labels: (N,) int64 from 0 on, at least two of them different.
        eps: ε ≥ 0, in the units of the points.
        norm: p of the balls: 1, 2 or inf.
        activation: one of :data:`ACTIVATIONS`.
        lipschitz: ξ ≥ 0; the network's Lipschitz constant is at least this, from any ℓp to any ℓq.

    Returns:
        ``Flatten, Linear, ρ, Linear, ρ, Linear``: (B, *in) -> logits (B, largest label + 1), on the device of the points.

    Raises:
        SpecError: another activation or norm; points that are not finite, or too many; classes that are not more than 2ε
            apart (with the pair), or by less than the rounding of the points' type.

    Source: Liang & Huang 2021, Theorem 2 and Proposition 2; hyperplanes between balls by duality go beyond the paper.

    Example:
        >>> x, y = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1, 1])
        >>> memorizer(x, y, eps=0.4)(x + 0.4).argmax(1)
        tensor([0, 1, 1])
    """
    _check(points, labels, eps, norm, lipschitz)
    check_choice("activation", activation, ACTIVATIONS)
    x, y = points.detach().flatten(1).double(), labels
    first, second = (y[:, None] != y[None]).nonzero(as_tuple=True)
    weight, bias = _separating_hyperplanes(points, first, second, eps, norm)
    count = nn.functional.one_hot(first, len(x)).T.to(x)  # (N, pairs): the h of each point
    sums = nn.functional.one_hot(y).T.to(x)  # (classes, N)
    offset, height = x.new_ones(len(x)), 0.0
    if lipschitz:  # one more unit in either layer: it opens as x_1 crosses T
        height = 1.5 * (2 * lipschitz + 1 + 2 * int((y == 0).sum()))
        beyond = x[:, :1].max().reshape(1) + eps + 2
        weight, bias = torch.cat([weight, torch.eye(1, x.shape[1]).to(x)]), torch.cat([bias, -beyond])
        count, offset = torch.block_diag(count, -x.new_ones(1, 1)), torch.cat([offset, -x.new_ones(1)])
        sums = torch.cat([sums, height * torch.eye(len(sums), 1).to(x)], 1)
    others = int(torch.bincount(first).max())
    tau = 1 / (16 * max(others + 1, len(x), height))
    sharper = 1 / (1 - 2 * (others + 1) * tau)  # for the errors of the first steps in the second ones' inputs
    step = SOFT_STEPS[activation](tau)
    first_layer = step.before(weight, bias)
    second_layer = step.before(*step.after(-2 * sharper * count, sharper * offset))
    logits = _linear(*step.after(sums, sums.new_zeros(len(sums))))
    layers = (first_layer, step.activation, second_layer, step.activation, logits)
    return nn.Sequential(nn.Flatten(), *layers).to(points)


def memorizer_of(
    data: Dataset,
    limit: int = 40,
    eps: float = 0.05,
    norm: float = math.inf,
    activation: str = "relu",
    lipschitz: float = 0.0,
) -> nn.Sequential:
    """The :func:`memorizer` of the test points that ``data.limit(limit)`` takes, as commands do with ``--limit``.

    Pixels are in [0, 1]. A class without a point among them has the logit 0, below the right one.

    Example:
        >>> from opnorm.data import digits
        >>> memorizer_of(digits(), limit=5)(torch.zeros(1, 1, 8, 8)).shape
        torch.Size([1, 10])
    """
    check_count("limit", limit)
    images, labels = data.limit(limit).test
    *body, last = memorizer(images[:].float() / 255, labels, eps, norm, activation, lipschitz)
    assert isinstance(last, nn.Linear), "a memorizer ends with a linear layer"
    weight, bias = torch.zeros(len(data.classes), last.in_features), torch.zeros(len(data.classes))
    weight[: last.out_features], bias[: last.out_features] = last.weight.detach(), last.bias.detach()
    return nn.Sequential(*body, _linear(weight, bias))


def _separating_hyperplanes(
    points: Tensor, first: Tensor, second: Tensor, eps: float, norm: float
) -> tuple[Tensor, Tensor]:
    """Weight and bias of -h_ik / m for every pair, with the used part of the margin for m."""
    x = points.detach().flatten(1).double()
    size = len(first) * (len(x) + x.shape[1])
    if size > MAX_WEIGHTS:
        raise SpecError(
            f"{len(x)} points make {len(first)} pairs and {size:,} weights; expected at most {MAX_WEIGHTS:,}: take fewer"
        )
    difference = x[first] - x[second]
    length = lp_norm(difference, norm)
    nearest = int(length.argmin())
    i, k, apart = int(first[nearest]), int(second[nearest]), float(length[nearest])
    if not apart > 2 * eps:
        raise SpecError(
            f"points {i} and {k} are of different classes and {apart:.6g} apart in {label(norm)}; "
            f"expected more than 2 eps = {2 * eps:.6g}, or no network is right on both balls"
        )
    weight = dual(difference, norm)
    bias = -(weight * (x[first] + x[second]) / 2).sum(1)
    margin = apart / 2 - eps
    largest = float((weight.abs() @ (x.abs().amax(0) + eps) + bias.abs()).max())
    if margin * (1 - USED_MARGIN) < ROUNDED_UNITS * torch.finfo(points.dtype).eps * largest:
        raise SpecError(
            f"the distance of the classes exceeds 2 eps by {2 * margin:.3g} only, less than the rounding of {points.dtype}: "
            "take a smaller eps, or points in float64"
        )
    return -weight / (USED_MARGIN * margin), -bias / (USED_MARGIN * margin)


def _check(points: Tensor, labels: Tensor, eps: float, norm: float, lipschitz: float) -> None:
    check_choice("norm", norm, (1, 2, math.inf))
    check_number("eps", eps, "a radius of at least 0", least=0)
    check_number("lipschitz", lipschitz, "a finite constant of at least 0", least=0)
    if not points.is_floating_point() or points.ndim < 2 or not bool(points.isfinite().all()):
        raise SpecError(
            f"points are {points.dtype} of shape {tuple(points.shape)}; expected finite floating-point numbers (N, *in); "
            "divide uint8 pixels by 255"
        )
    if labels.shape != points.shape[:1] or labels.dtype != torch.int64:
        raise SpecError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; expected int64, one for each of {len(points)} points"
        )
    if len(labels) == 0 or int(labels.min()) < 0 or int(labels.min()) == int(labels.max()):
        raise SpecError("labels: expected whole numbers from 0 on, and at least two different ones")
