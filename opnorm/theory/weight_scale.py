"""Weight-scale shifts: networks with other weights and the same function (Liu et al. 2020).

In a chain of linear and convolutional layers W_l, l = 1 .. L+1, with positively homogeneous layers between the first and the
last one, φ(a x) = a φ(x) for a > 0, the shift

    W_l → γ_l W_l,   b_l → (∏_{k≤l} γ_k) b_l,   ∏ γ_l = 1

does not change the network's function, up to rounding. Weights are shifted whether they are frozen or not. All functions
take such a network and a batch that it takes, and raise ModelError for another network (which module, and why); a model is
unchanged if they raise.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from opnorm._core.layers import LINEAR_OR_CONV, changed_by_hooks, is_standard, unwrap
from opnorm._core.lp import lp_norm
from opnorm._core.modes import evaluating
from opnorm.errors import BoundError, ModelError, SpecError
from opnorm.norms.network.graph import forward_graph

__all__ = ["balance", "least_weight_decay", "shift"]

HOMOGENEOUS = (
    nn.Identity, nn.Flatten, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip
FUNCTIONS = frozenset(
    ["flatten", "view", "reshape", "relu", "relu_", "leaky_relu", "dropout", "mean"]
    + [f"{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for d in (1, 2, 3)]
)
"""Functions and methods of tensors that are homogeneous in their first argument."""

TOLERANCE = 1e-6  # of ∏ γ: the rounding of a few factors of 7 digits


def shift(model: nn.Module, example: Tensor, factors: Sequence[float]) -> tuple[float, ...]:
    """Multiply the l-th layer's weight by γ_l, in place, and its bias by γ_1 ... γ_l; returns the factors.

    The factors γ_l > 0, one for each layer in the order of the forward pass, have product 1.

    Raises:
        SpecError: another number of factors, one that is not positive and finite, a product that is not 1, or a weight
            that leaves the range of its type.

    Source: Liu et al. 2020, Eq. 5.
    """
    layers = _chain(model, example)
    for factor in factors:
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
            raise SpecError(f"factors: {factor!r} is not above 0 and finite")
    if len(factors) != len(layers):
        names = ", ".join(name for name, *_ in layers)
        raise SpecError(f"{len(factors)} factors for {len(layers)} layers ({names}); expected one for each")
    logs = [math.log(factor) for factor in factors]
    if abs(math.fsum(logs)) > TOLERANCE:
        raise SpecError(f"the product of the factors is {math.exp(math.fsum(logs)):.9g}; expected 1")
    _scale(layers, logs)
    return tuple(factors)


def balance(model: nn.Module, example: Tensor) -> tuple[float, ...]:
    """The shift to equal Frobenius norms of all layers, where weight decay is smallest, in place; returns the factors.

    γ_l = (∏_k ‖W_k‖_2)^{1/(L+1)} / ‖W_l‖_2, in the order of the forward pass.

    Raises:
        ModelError: a layer is all zeros.

    Source: Liu et al. 2020, Eqs. 9 and 10.
    """
    layers = _chain(model, example)
    lengths = _lengths(layers)
    if 0 in lengths:
        name = layers[lengths.index(0)].name
        raise ModelError(f"layer {name!r} is all zeros; no factor gives it the norm of the others")
    logs = [math.log(length) for length in lengths]
    mean = math.fsum(logs) / len(logs)
    _scale(layers, [mean - log for log in logs])
    return tuple(math.exp(mean - log) for log in logs)


def least_weight_decay(model: nn.Module, example: Tensor) -> float:
    """The infimum of Σ ‖W_l‖_2² over all shifts: (L+1) (∏ ‖W_l‖_2²)^{1/(L+1)}; the model is unchanged.

    With a layer of zeros it is 0, which no shift attains. (Eqs. 31 and 40 of the paper lack the exponent 1/(L+1); Eqs. 9
    and 11 have it.)

    Source: Liu et al. 2020, Eq. 9.
    """
    lengths = _lengths(_chain(model, example))
    if 0 in lengths:
        return 0.0
    return len(lengths) * math.exp(2 * math.fsum(map(math.log, lengths)) / len(lengths))


class _Layer(NamedTuple):
    name: str
    layer: nn.Module
    weight: Tensor
    bias: Tensor | None


def _lengths(layers: list[_Layer]) -> list[float]:
    lengths = [float(lp_norm(layer.weight.detach().double()[None], 2)) for layer in layers]
    for (name, *_), length in zip(layers, lengths, strict=True):
        if not math.isfinite(length):
            raise ModelError(f"layer {name!r} has a weight that is NaN or infinite")
    return lengths


@torch.no_grad()
def _scale(layers: list[_Layer], logs: list[float]) -> None:
    """First all products, then all copies, so that a product out of range leaves the model unchanged."""
    scaled: list[tuple[Tensor, Tensor]] = []
    for i, (name, _, weight, bias) in enumerate(layers):
        for own, log in ((weight, logs[i]), (bias, math.fsum(logs[: i + 1]))):
            if own is None or not own.any():
                continue
            new = (own.double() * torch.tensor(log, dtype=torch.float64).exp()).to(own.dtype)
            limits, largest = torch.finfo(own.dtype), float(new.abs().max())
            if not limits.tiny / limits.eps < largest < math.inf:
                raise SpecError(
                    f"shifted, the largest number of layer {name!r} would be {largest:.3g}, outside of {own.dtype}"
                )
            scaled.append((own, new))
    for own, new in scaled:
        own.copy_(new)


# ---------------------------------------------------------------- the chain


def _chain(model: nn.Module, example: Tensor) -> list[_Layer]:
    """The layers in order, or ModelError: along the graph, the number l of layers before each value.

    With l = 0 or all layers before it, a value is unchanged by a shift and may be used in any way; otherwise it is
    multiplied by γ_1 ... γ_l.
    """
    model = unwrap(model)
    try:
        with evaluating(model):
            forward = forward_graph(model, example)
    except BoundError as e:
        raise _refused(str(e)) from e
    modules, nodes = forward.named, list(forward.graph.nodes)
    weighted = {n for n in nodes if n.op == "call_module" and is_standard(modules[n.target], *LINEAR_OR_CONV)}
    if not weighted:
        raise _refused("the network has no linear or convolutional layer")
    layers: list[_Layer] = []
    before: dict[fx.Node, int] = {}  # of the values that depend on the input
    for n in nodes:
        inputs = [before[i] for i in n.all_input_nodes if i in before]
        if n.op == "placeholder":
            before[n] = 0
        elif not inputs:
            continue
        elif n in weighted:
            if inputs != [len(layers)]:
                raise _refused(
                    f"layer {n.target!r} does not follow the one before it; expected a chain, no branches"
                )
            layers.append(_chain_layer(str(n.target), modules[n.target], layers))
            before[n] = len(layers)
        elif any(0 < i < len(weighted) for i in inputs) and (reason := _reason(n, inputs, modules)):
            raise _refused(reason)
        else:
            before[n] = max(inputs)
    if before.get(nodes[-1]) != len(weighted):
        raise _refused(f"the output does not come from the last layer, {layers[-1].name!r}")
    _check_parameters(model, forward.read, layers)
    return layers


def _refused(reason: str) -> ModelError:
    return ModelError(f"scale cannot be shifted: {reason}")


def _reason(n: fx.Node, inputs: list[int], modules: dict[str, nn.Module]) -> str:
    """The reason why the scale of a value between the layers is not kept; empty where it is."""
    if len(inputs) > 1 and n.op != "output":
        return f"{n.name} joins several values, such as a residual sum; expected a chain"
    if n.op == "output":
        return "the network returns a value from between its layers" if len(inputs) > 1 else ""
    unknown = "between the layers is not known as positively homogeneous, φ(a x) = a φ(x) for a > 0"
    if n.op != "call_module":
        name = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", str(n.target))
        return "" if name in FUNCTIONS else f"{name} {unknown}"
    module = modules[str(n.target)]
    if is_standard(module, *HOMOGENEOUS):
        return f"a hook may change what {n.target!r} computes" if changed_by_hooks(module) else ""
    name = f"{n.target!r} ({type(module).__name__})"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return f"{name} between the layers is not homogeneous: its statistics and shift do not follow the scale of its input"
    return f"{name} {unknown}"


def _chain_layer(name: str, layer: nn.Module, before: list[_Layer]) -> _Layer:
    own = layer._parameters
    weight = own.get("weight")
    if any(layer is other.layer for other in before):
        raise _refused(f"layer {name!r} is called several times, and its weight can have only one factor")
    if weight is None or "bias" not in own:
        raise _refused(f"layer {name!r} has a weight or bias that is computed from other parameters")
    if changed_by_hooks(layer):
        raise _refused(f"layer {name!r} has a hook, which may change what it computes")
    return _Layer(name, layer, weight, own["bias"])


def _check_parameters(model: nn.Module, used: dict[str, Tensor], layers: list[_Layer]) -> None:
    """ModelError for weights that are used in two places, or outside the layers."""
    owner: dict[int, str] = {}
    inside = {id(layer.layer) for layer in layers}
    for name, layer, *_ in layers:
        for p in layer.parameters(recurse=False):
            if owner.setdefault(id(p), name) != name:
                raise _refused(f"layers {owner[id(p)]!r} and {name!r} share a parameter")
    read: list[tuple[str, Tensor | None]] = [*used.items()]
    for module_name, module in model.named_modules():
        if id(module) not in inside:
            read += [(f"{module_name}.{k}".removeprefix("."), p) for k, p in module._parameters.items()]
    for name, tensor in read:
        if id(tensor) in owner:
            raise _refused(f"the parameter {name!r} of layer {owner[id(tensor)]!r} is used elsewhere too")
        if isinstance(tensor, nn.Parameter) and tensor.ndim > 1:
            raise _refused(f"{name!r} is no weight of a linear or convolutional layer in the chain")
