"""WEISSI: a penalty that moving scale from one layer to another does not lower (Liu et al. 2020).

A weight-scale shift W_l → γ_l W_l with ∏ γ_l = 1 changes neither the complexity nor the energies ``product`` and ``log``. It
changes the energy ``cnn`` by 1 / γ of the last linear layer: moving scale from the convolutions into that layer lowers it
without a limit. A layer of zeros (the last ones of residual branches in some initializations) makes the product and its
gradient 0; the logarithm and the complexity leave such a layer out. After the first steps it is not zero but tiny, and the
gradient of its complexity is large, λ_c sqrt(n) / ‖W‖_2 for n weights, and orthogonal to W: one step of SGD gives the layer
a norm of lr λ_c sqrt(n) / ‖W‖_2 that the data did not ask for. In WRN-28-10 with Fixup and convex sums that is 5, from
a norm of 8e-5, at the paper's strengths, and the penalty is 1e7 in the next step. ``least`` leaves a layer out of the
complexity until its norm is above it.

A large energy needs a tiny λ_e: opnorm's VGG-16 starts from an energy of 3e39 (``cnn``: 8e38), where the paper's λ_e = 1e-31
overflows after one step of SGD at 0.01; 1e-36 and less lower it.
"""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.derived_weights import weight_parameters
from opnorm._core.layers import LINEAR_OR_CONV
from opnorm._core.modes import in_default_modes
from opnorm._core.regularizer_settings import check_weissi
from opnorm.errors import ModelError
from opnorm.norms.network.trace import trace
from opnorm.regularizers.hooks import Hooks, Regularizer, bound
from opnorm.regularizers.targets import output_layer, parameters_of, trainable_layers, untreated_weights
from opnorm.spec import factory

__all__ = ["mixed_norms", "weissi"]

Exponents = tuple[float, float]


@factory("regularizer")
def weissi(
    energy: float = 1e-6,
    complexity: float = 1e-5,
    form: str = "product",
    eta: Exponents = (2, 2),
    g: Exponents = (1, 1),
    least: float = 0.0,
) -> Regularizer:
    """Weight energy and complexity: λ_e ∏_l η(W_l)² + λ_c Σ_l g(W_l / η(W_l)).

    η and g are norms ‖W‖_{p,q} = (Σ_rows ‖row‖_p^q)^{1/q} of the weights of the linear and convolutional layers, with a
    row for each output unit or filter; (2, 2) is the Frobenius norm and (1, 1) the sum of absolute values. Tied weights
    count once; biases and frozen weights do not.

    Args:
        energy: λ_e; 0 leaves the term out.
        complexity: λ_c; 0 leaves the term out.
        form: of the energy. "product": as above; "cnn": η(W) instead of η(W)² for the last linear layer, in the paper for
            VGG-16 and the wide residual networks; "log": λ_e Σ_l log η(W_l)², for products out of the range of a float.
        eta: (p, q) of η, each at least 1, or inf.
        g: (p, q) of g, likewise, different from η's, whose complexity would always be 1.
        least: a layer counts in the complexity where η(W) is above this, at least 0. The paper has 0; above 0 is for layers
            that start at zero, such as those of ``wrn(norm="fixup")``.

    Binding it raises ModelError where the penalty is not finite, and warns of normalization layers, and of layers of zeros
    with least=0.

    Source: Liu et al. 2020, Eqs. 4 and 13 and section 5 ("CNNs").
    """
    check_weissi(energy, complexity, form, eta, g, least)
    settings = _Settings(energy, complexity, form, eta, g, least)

    @in_default_modes
    def bind(model: nn.Module, example: Tensor) -> Hooks:
        layers = trainable_layers(model, example, LINEAR_OR_CONV, "weissi", sized=False, derived=True)
        output = output_layer(model, example, "weissi(form='cnn')") if form == "cnn" else nn.Identity()
        own = {id(p) for p in weight_parameters(output).values()}
        last = next((i for i, t in enumerate(layers) if own & {id(p) for p in t.parameters.values()}), None)
        settings.check_finite([target.weight for target in layers], last, example.dtype)
        if reasons := _reasons(model, example, untreated_weights(model, layers)):
            warnings.warn(f"weissi: {reasons}", stacklevel=3)
        zeros = [target.name for target in layers if not bool(target.weight.detach().any())]
        if zeros and settings.complexity and not settings.least:
            warnings.warn(
                f"weissi: all weights of {', '.join(zeros)} are 0, and once they are tiny the gradient of their complexity "
                "is so large that the training may diverge; least=0.1 leaves them out until their norm is above 0.1",
                stacklevel=3,
            )

        def penalty(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return settings.penalty([target.weight for target in layers], last).to(x.dtype)

        return bound(Hooks(penalty=penalty), parameters_of(layers), "weissi")

    return bind


class _Settings(NamedTuple):
    energy: float
    complexity: float
    form: str
    eta: Exponents
    g: Exponents
    least: float

    def log_energy(self, sizes: Tensor, last: int | None) -> Tensor:
        """The logarithm of the product; ``last`` is the layer that counts once instead of twice."""
        logs = _or_one(sizes).double().log()
        total = 2 * logs.sum()
        return total if last is None else total - logs[last]

    def penalty(self, weights: list[Tensor], last: int | None) -> Tensor:
        """Both terms, float64."""
        sizes = mixed_norms(weights, self.eta)
        total = sizes.new_zeros((), dtype=torch.float64)
        if self.energy and self.form == "log":
            total = total + self.energy * self.log_energy(sizes, last)
        elif self.energy:  # one exponential at the end: the product may overflow where λ_e times it does not
            exponent = math.log(self.energy) + self.log_energy(sizes, last)
            total = total + torch.where((sizes != 0).all(), exponent, -math.inf).exp()
        if self.complexity:
            ratios = mixed_norms(weights, self.g) / _or_one(sizes)
            total = total + self.complexity * torch.where(sizes <= self.least, 0, ratios).sum()
        return total

    @torch.no_grad()
    def check_finite(self, weights: list[Tensor], last: int | None, dtype: torch.dtype) -> None:
        """ModelError unless the penalty is finite."""
        if math.isfinite(float(self.penalty(weights, last).to(dtype))):
            return
        log_energy = float(self.log_energy(mixed_norms(weights, self.eta), last))
        if self.form == "log" or not log_energy < math.inf:
            raise ModelError(
                "weissi: a weight or its norm is NaN or infinite, so the penalty is too; a damaged file?"
            )
        raise ModelError(
            f"weissi: the energy of this network is 1e{log_energy / math.log(10):+.0f}, too large even times "
            f'energy={self.energy:g}; expected a smaller energy, smaller initial weights, or form="log"'
        )


def mixed_norms(weights: list[Tensor], pq: Exponents) -> Tensor:
    """‖W‖_{p,q} = (Σ_rows ‖row‖_p^q)^{1/q} of each weight (out, ...), as (L,); differentiable, with gradient 0 at zero.

    In float64: in float32 the squares of weights below 1e-23 are 0, and those above 1e19 inf.

    Source: Liu et al. 2020, Eq. 4.
    """
    p, q = pq
    weights = [w.double() for w in weights]
    if p != q:
        weights = [torch.linalg.vector_norm(w.flatten(1), p, dim=1) for w in weights]
    return torch.stack(torch._foreach_norm(weights, q))


def _or_one(sizes: Tensor) -> Tensor:
    """Divisors and arguments of a logarithm: 0 becomes a constant 1."""
    return torch.where(sizes != 0, sizes, 1)


def _reasons(model: nn.Module, example: Tensor, others: list[str]) -> str:
    """The reasons why the penalty does not bound the scale of the whole network; empty if there are none."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    norms = dict.fromkeys(call.name for call in trace(model, example) if isinstance(call.layer, kinds))
    reasons = []
    if norms:
        reasons.append(
            f"the normalization layers {', '.join(norms)} undo the scale of the weights before them, so that the energy can "
            "fall without any effect on the network's function"
        )
    if others:
        reasons.append(f"these weights are not counted: {', '.join(others)}")
    return "; ".join(reasons)
