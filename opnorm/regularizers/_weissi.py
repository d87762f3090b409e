"""WEISSI: a penalty that moving scale from one layer to another cannot lower (Liu et al. 2020)."""

import math
import warnings

import torch
from torch import Tensor, nn

from opnorm._core.layers import LINEAR_OR_CONV
from opnorm.errors import ModelError, SpecError
from opnorm.norms.table import trace
from opnorm.regularizers.hooks import Hooks, Regularizer
from opnorm.regularizers.targets import left_out, output_weight, trainable_layers
from opnorm.spec import factory

__all__ = ["mixed_norms", "weissi"]

FORMS = ("product", "cnn", "log")


@factory("regularizer")
def weissi(
    energy: float = 1e-6,
    complexity: float = 1e-5,
    form: str = "product",
    eta: tuple[float, float] = (2, 2),
    g: tuple[float, float] = (1, 1),
) -> Regularizer:
    """Weight energy and complexity: λ_e ∏_l η(W_l)² + λ_c Σ_l g(W_l / η(W_l)).

    η and g are norms ‖W‖_{p,q} = (Σ_rows ‖row‖_p^q)^{1/q} of the weights of the linear and convolutional layers, with a
    row for each output unit or filter; (2, 2) is the Frobenius norm and (1, 1) the sum of absolute values. Biases are not
    counted, tied weights once, and frozen weights not at all (a constant factor of the energy).

    - ``product``: as above.
    - ``cnn``: the last linear layer enters the product as η(W) instead of η(W)². The paper takes it for VGG-16 and the wide
      residual networks, but not for the small convolutional net on MNIST.
    - ``log``: λ_e Σ_l log η(W_l)² for the energy, where the product is too large or small for a number.

    A weight-scale shift W_l → γ_l W_l with ∏ γ_l = 1 leaves the complexity and the energies ``product`` and ``log`` as they
    are. The energy ``cnn`` changes by 1 / γ of the last linear layer: moving scale from the convolutions into that layer
    lowers it, without end and without a change of the network's function.

    A layer of zeros (the last ones of residual branches in some initializations) makes the product 0 and its gradient 0;
    the logarithm and the complexity leave such a layer out.

    A large energy needs a tiny λ_e: opnorm's VGG-16 starts from an energy of 3e39 (``cnn``: 8e38), and there the λ_e = 1e-31
    that the paper prints for it overflows after one step of SGD at 0.01; tried alone, 1e-36 and less brought it down.

    Args:
        energy: λ_e; 0 leaves the term out.
        complexity: λ_c; 0 leaves the term out.
        form: of the energy: "product", "cnn" or "log".
        eta: (p, q) of η, each at least 1, or inf.
        g: (p, q) of g, likewise, and another one than η's, whose complexity would always be 1.

    Returns:
        A regularizer with a penalty. Binding it to a model raises ModelError where there is no such layer or the penalty is
        no finite number, and warns once of what it does not count.

    Raises:
        SpecError: a strength that is negative or not finite, an unknown form, no norm, or g equal to η.

    Source: Liu et al. 2020, Eqs. 4 and 13 and section 5 ("CNNs").
    """
    for name, value in (("energy", energy), ("complexity", complexity)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise SpecError(f"{name}={value!r}: expected a strength of at least 0")
    if form not in FORMS:
        raise SpecError(f"form={form!r}: expected one of {', '.join(FORMS)}")
    for name, pair in (("eta", eta), ("g", g)):
        _check_norm(name, pair)
    if complexity and tuple(g) == tuple(eta):
        raise SpecError(
            f"g={g!r} is the norm eta, so the complexity of every layer is always 1; expected another norm"
        )

    def bind(model: nn.Module, example: Tensor) -> Hooks:
        layers = trainable_layers(model, example, LINEAR_OR_CONV, "weissi", sized=False)
        weights: list[Tensor] = [found.weight for found in layers]
        output = output_weight(model, example, "weissi(form='cnn')") if form == "cnn" else None
        single = next((i for i, w in enumerate(weights) if w is output), None)

        def log_energy(sizes: Tensor) -> Tensor:
            logs = _or_one(sizes).double().log()
            total = 2 * logs.sum()
            return total if single is None else total - logs[single]

        def penalty(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            sizes = mixed_norms(weights, eta)
            total = x.new_zeros((), dtype=torch.float64)
            if energy and form == "log":
                total = total + energy * log_energy(sizes)
            elif energy:  # one exponential at the end: the product may overflow where λ_e times it does not
                exponent = math.log(energy) + log_energy(sizes)
                total = total + torch.where((sizes != 0).all(), exponent, -math.inf).exp()
            if complexity:
                total = total + complexity * (mixed_norms(weights, g) / _or_one(sizes)).sum()
            return total.to(x.dtype)

        with torch.no_grad():
            if not math.isfinite(float(penalty(model, example, example))):
                raise ModelError(_not_finite(float(log_energy(mixed_norms(weights, eta))), energy, form))
        if others := _not_counted(model, example, left_out(model, layers)):
            warnings.warn(f"weissi: {others}", stacklevel=2)
        return Hooks(penalty=penalty)

    return bind


def mixed_norms(weights: list[Tensor], pq: tuple[float, float]) -> Tensor:
    """‖W‖_{p,q} = (Σ_rows ‖row‖_p^q)^{1/q} of each weight, (L,); differentiable, with gradient 0 at zero.

    Args:
        weights: (out, ...), each row flattened.
        pq: p and q, each at least 1, or inf.

    Source: Liu et al. 2020, Eq. 4.
    """
    p, q = pq
    if p != q:
        weights = [torch.linalg.vector_norm(w.flatten(1), p, dim=1) for w in weights]
    return torch.stack(torch._foreach_norm(weights, q))


def _or_one(sizes: Tensor) -> Tensor:
    """Divisors and arguments of a logarithm: what is 0 becomes a constant 1."""
    return torch.where(sizes != 0, sizes, 1)


def _check_norm(name: str, pair: object) -> None:
    numbers = pair if isinstance(pair, tuple | list) else ()
    if len(numbers) != 2 or any(
        isinstance(n, bool) or not isinstance(n, int | float) or not n >= 1 for n in numbers
    ):
        raise SpecError(
            f"{name}={pair!r}: expected (p, q), each a number of at least 1, or inf, such as (2, 2)"
        )


def _not_finite(log_energy: float, energy: float, form: str) -> str:
    if form == "log" or not log_energy < math.inf:
        return "weissi: a weight is NaN or infinite (or its norm is), so the penalty is too; a damaged file?"
    return (
        f"weissi: the energy of this network is 1e{log_energy / math.log(10):+.0f}, too large a number even times "
        f'energy={energy:g}; expected a smaller energy, smaller initial weights, or form="log"'
    )


def _not_counted(model: nn.Module, example: Tensor, others: list[str]) -> str:
    """In words, what makes the penalty say less about the network's function than it should."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    norms = dict.fromkeys(visit.name for visit in trace(model, example) if isinstance(visit.layer, kinds))
    said = []
    if norms:
        said.append(
            f"the normalization layers {', '.join(norms)} undo the scale of the weights before them, so that the energy can "
            "fall without any effect on the network's function"
        )
    if others:
        said.append(f"these weights are not counted: {', '.join(others)}")
    return "; ".join(said)
