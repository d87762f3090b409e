"""The generalization bound for adversarially robust networks, term by term (Wen, Li & Jia 2020).

It assumes: a ReLU and max-pooling network that is ε_0-adversarially robust with ε ≤ ε_0; data on a k-dimensional regular
manifold with covering number at most (C_X/ε)^k; a margin that decreases monotonically from a point to the nearest one of the
decision boundary; and, in the proof, a path between them orthogonal to the null spaces of the layers. A model shows none of
this: it is the caller's claim. σ_min is the last of min(rows, columns) singular values of the layer's whole matrix, from
below (:func:`opnorm.norms.smallest_singular_value`). Batch norm in eval mode is a diagonal layer: of a convolution and its
batch norm as one layer, σ_min is at least the product of the two.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.batch_norm import batch_norm_scale
from opnorm._core.derived_weights import weight_of
from opnorm._core.layers import AVERAGE_POOL, BATCH_NORM, LINEAR_OR_CONV, in_float64, is_standard
from opnorm._core.settings import check_count, check_number, check_positive
from opnorm.errors import ModelError
from opnorm.models.modules import Normalize
from opnorm.norms.spectral.smallest_singular_value import smallest_singular_value
from opnorm.theory.chain import ChainLayer, chain_layers

__all__ = ["Covering", "GeneralizationBound", "generalization_bound"]

WEIGHTLESS = (
    nn.ReLU, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
"""Allowed between the weights: ReLU and max pooling, and layers that do nothing in eval mode."""
LINEAR_MAPS = (*LINEAR_OR_CONV, *BATCH_NORM, *AVERAGE_POOL, Normalize)


class Covering(NamedTuple):
    """Covering numbers of the data: at most (C_X / ε)^k balls of radius ε.

    Attributes:
        eps: ε > 0.
        constant: C_X > 0.
        dimension: k > 0.
    """

    eps: float
    constant: float
    dimension: float

    @property
    def log_number(self) -> float:
        """The natural logarithm of (C_X / ε)^k, which itself is out of range for images."""
        return self.dimension * math.log(self.constant / self.eps)


@dataclass(frozen=True)
class GeneralizationBound:
    """max{0, 1 - u_min/γ} + sqrt(2 log(2) C_X^k / (ε^k m) + 2 log(1/η) / m), with each of its terms.

    Attributes:
        smallest: the layers before the last one, in order, with a lower bound of σ_min^i of each.
        row_gap: min_{y ≠ ŷ} ‖w_y - w_ŷ‖_2 over the rows of the last layer.

    The others are arguments of :func:`generalization_bound`.
    """

    smallest: tuple[tuple[str, float], ...]
    row_gap: float
    v_min: float
    gamma: float
    covering: Covering
    samples: int
    eta: float

    @property
    def u_min(self) -> float:
        """row_gap · ∏ σ_min^i · v_min: a lower bound of the margins in the covering balls that hold training points."""
        return self.row_gap * math.prod(value for _, value in self.smallest) * self.v_min

    @property
    def margin_term(self) -> float:
        """max{0, 1 - u_min/γ}: the largest change of the loss within a covering ball; in [0, 1]."""
        return max(0.0, 1 - self.u_min / self.gamma)

    @property
    def covering_term(self) -> float:
        """2 log(2) (C_X/ε)^k / m; infinite where it leaves the range of a float."""
        log = math.log(2 * math.log(2)) + self.covering.log_number - math.log(self.samples)
        return math.exp(log) if log < 700 else math.inf

    @property
    def confidence_term(self) -> float:
        """2 log(1/η) / m."""
        return 2 * math.log(1 / self.eta) / self.samples

    @property
    def value(self) -> float:
        """The bound on the generalization error of the ramp risk, with probability at least 1 - η."""
        return self.margin_term + math.sqrt(self.covering_term + self.confidence_term)

    @property
    def vacuous(self) -> bool:
        """Whether it exceeds what is true of any loss in [0, 1], such as the ramp loss."""
        return self.value >= 1


def generalization_bound(
    model: nn.Module,
    example: Tensor,
    *,
    v_min: float,
    gamma: float,
    covering: Covering,
    samples: int,
    eta: float = 0.05,
) -> GeneralizationBound:
    """The bound of Theorem 3.1, which holds with probability at least 1 - η over m training points.

        GE(ramp loss) ≤ max{0, 1 - u_min/γ} + sqrt(2 log(2) C_X^k / (ε^k m) + 2 log(1/η) / m),
        u_min = min_{y≠ŷ} ‖w_y - w_ŷ‖_2 · ∏_{i<L} σ_min^i · v_min.

    The assumptions are at the head of :mod:`opnorm.theory.wen`. For images it is vacuous in practice (k in the tens).

    Args:
        model: nested ``nn.Sequential`` of linear and convolutional layers, batch norm and average pooling, with ReLU and max
            pooling, that ends with a linear layer of at least 2 rows; taken in eval mode.
        example: a batch that it takes.
        v_min: the smallest distance, in ℓ2, of a point in the covering balls that hold training points to the decision
            boundary; ≥ 0. An attack's smallest perturbation is an upper bound of a point's.
        gamma: γ > 0 of the ramp loss, in units of the logits.
        covering: covering numbers of the data.
        samples: m ≥ 1.
        eta: η in (0, 1).

    Raises:
        SpecError: a number out of range.
        ModelError: another network (which layer).
        NormError: a layer with unknown singular values.

    Source: Wen, Li & Jia 2020, Theorem 3.1, Eqs. 4 and 5.
    """
    check_number("v_min", v_min, "a finite distance of at least 0", least=0)
    check_positive(gamma=gamma, **covering._asdict())
    check_count("samples", samples)
    check_number("eta", eta, "a probability in (0, 1)", above=0, below=1)
    *body, head = chain_layers(model, example[:1]) or [ChainLayer("", model, example)]
    if not isinstance(head.module, nn.Linear) or head.module.out_features < 2:
        raise ModelError(
            f"the network ends with {head.module}; expected a linear layer of at least 2 outputs"
        )
    weighted = [place for place in body if not is_standard(place.module, *WEIGHTLESS)]
    for place in weighted:
        if not is_standard(place.module, *LINEAR_MAPS):
            raise ModelError(
                f"{place.name} is a {type(place.module).__name__}; expected linear and convolutional layers, batch norm and "
                "average pooling, with ReLU and max pooling, the networks of the theorem"
            )
    smallest = tuple((place.name, _smallest(place)) for place in weighted)
    row_gap = float(torch.pdist(weight_of(head.module).detach().double()).min())
    return GeneralizationBound(smallest, row_gap, v_min, gamma, covering, samples, eta)


def _smallest(place: ChainLayer) -> float:
    """A lower bound of σ_min of a layer's whole matrix."""
    module = place.module
    if isinstance(module, Normalize):
        return float((1 / module.std.double()).min())
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return float(batch_norm_scale(in_float64(module)).abs().min())
    return float(smallest_singular_value(module, place.in_shape).lower)
