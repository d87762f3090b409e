"""The generalization bound for adversarially robust networks, term by term (Wen, Li & Jia 2020)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opnorm._core.layers import overrides
from opnorm.errors import ModelError, SpecError
from opnorm.models.modules import Normalize
from opnorm.norms.spectral.singular_values import singular_values
from opnorm.theory.chain import Place, is_weighted, places

__all__ = ["GeneralizationBound", "generalization_bound"]

PASSING = (
    nn.ReLU, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
"""What may stand between the weights: ReLU and max pooling, and what does nothing in eval mode."""


@dataclass(frozen=True)
class GeneralizationBound:
    """max{0, 1 - u_min/γ} + sqrt(2 log(2) C_X^k / (ε^k m) + 2 log(1/η) / m), with each of its terms.

    Attributes:
        smallest: the layers before the last one, in order, with σ_min^i of each.
        row_gap: min_{y ≠ ŷ} ‖w_y - w_ŷ‖_2 over the rows of the last layer.
        v_min: as given.
        gamma: γ, as given.
        eps: ε, as given.
        covering_constant: C_X, as given.
        dimension: k, as given.
        samples: m, as given.
        eta: η, as given.
    """

    smallest: tuple[tuple[str, float], ...]
    row_gap: float
    v_min: float
    gamma: float
    eps: float
    covering_constant: float
    dimension: float
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
    def log_covering_number(self) -> float:
        """The natural logarithm of (C_X/ε)^k: the number itself is out of range for images."""
        return self.dimension * math.log(self.covering_constant / self.eps)

    @property
    def covering_term(self) -> float:
        """2 log(2) (C_X/ε)^k / m; infinite where it leaves the range of a float."""
        log = math.log(2 * math.log(2)) + self.log_covering_number - math.log(self.samples)
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
        """Whether it says nothing: the ramp loss lies in [0, 1]."""
        return self.value >= 1


def generalization_bound(
    model: nn.Module,
    example: Tensor,
    *,
    v_min: float,
    gamma: float,
    eps: float,
    covering_constant: float,
    dimension: float,
    samples: int,
    eta: float = 0.05,
) -> GeneralizationBound:
    """The bound of Theorem 3.1, which holds with probability at least 1 - η over m training points.

        GE(ramp loss) ≤ max{0, 1 - u_min/γ} + sqrt(2 log(2) C_X^k / (ε^k m) + 2 log(1/η) / m),
        u_min = min_{y≠ŷ} ‖w_y - w_ŷ‖_2 · ∏_{i<L} σ_min^i · v_min.

    It assumes: a ReLU and max-pooling network that is ε_0-adversarially robust with ε ≤ ε_0; data on a k-dimensional
    regular manifold with covering number at most (C_X/ε)^k; a margin that falls monotonously on the way from a point to the
    nearest one of the decision boundary; and, in the proof, that the way is orthogonal to what the layers lose. None of it
    can be read off a model: it is the caller's claim. σ_min is the last of min(rows, columns) singular values of the layer's
    whole matrix; where only an approximation is known, what it is at least.

    Args:
        model: nested ``nn.Sequential`` of linear and convolutional layers with ReLU and max pooling, that ends with a linear
            layer of at least 2 rows; taken in eval mode.
        example: a batch that it takes.
        v_min: the smallest distance, in ℓ2, of a point in the covering balls that hold training points to the decision
            boundary; ≥ 0. An attack's smallest perturbation is an upper bound of a point's.
        gamma: γ > 0 of the ramp loss, in units of the logits.
        eps: ε > 0, radius of the covering balls.
        covering_constant: C_X > 0.
        dimension: k > 0.
        samples: m ≥ 1.
        eta: η in (0, 1).

    Returns:
        The bound and each of its terms. For images it is vacuous in practice (k in the tens): it names quantities to watch.

    Raises:
        SpecError: a number out of range.
        ModelError: another network (which layer).
        NormError: a layer whose singular values are not known.

    Source: Wen, Li & Jia 2020, Theorem 3.1, Eqs. 4 and 5.
    """
    positive = {
        "gamma": gamma, "eps": eps, "covering_constant": covering_constant, "dimension": dimension, "samples": samples,
    }  # fmt: skip
    for name, value in {**positive, "v_min": v_min, "eta": eta}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise SpecError(f"{name}={value!r}: expected a finite number from 0 on")
        if value == 0 and name != "v_min":
            raise SpecError(f"{name}=0: expected a number above 0")
    if eta >= 1 or samples != int(samples):
        raise SpecError(
            f"eta={eta!r}, samples={samples!r}: expected eta below 1 and a whole number of points"
        )
    found = places(model, example[:1])
    head = found.pop().module if found else model
    if not isinstance(head, nn.Linear) or head.out_features < 2:
        raise ModelError(f"the network ends with {head}; expected a linear layer of at least 2 outputs")
    smallest = tuple((p.name, _smallest(p)) for p in found if not _passes(p))
    return GeneralizationBound(
        smallest, _row_gap(head.weight), v_min, gamma, eps, covering_constant, dimension, int(samples), eta
    )


def _passes(place: Place) -> bool:
    module = place.module
    if isinstance(module, PASSING) and not overrides(module, *PASSING):
        return True
    if is_weighted(module) or type(module) is Normalize:
        return False
    raise ModelError(
        f"{place.name} is a {type(module).__name__}; the theorem speaks of linear and convolutional layers with ReLU "
        "and max pooling only"
    )


def _smallest(place: Place) -> float:
    module = place.module
    if isinstance(module, Normalize):
        return float((1 / module.std.double()).min())
    spectrum = singular_values(module, place.in_shape)
    # a root mean square error e of n values leaves each of them within e sqrt(n)
    return max(0.0, float(spectrum.values[-1]) - spectrum.error * math.sqrt(len(spectrum.values)))


def _row_gap(weight: Tensor) -> float:
    return float(torch.pdist(weight.detach().double()).min())
