"""Weight-scale shifts: networks with other weights and the same function (Liu et al. 2020).

Between layers W_l, l = 1 .. L+1, whose activations are positively homogeneous, φ(a x) = a φ(x) for a > 0, scale can be moved
about:

    W_l → γ_l W_l,   b_l → (∏_{k≤l} γ_k) b_l,   ∏ γ_l = 1

leaves the network's function as it is, up to rounding. The network must be a chain of linear and convolutional layers; only
what stands between the first and the last one has to be homogeneous. Weights are shifted whether they are frozen or not.
"""

import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from opnorm._core.layers import LINEAR_OR_CONV, overrides
from opnorm._core.modes import evaluating
from opnorm.errors import ModelError, SpecError
from opnorm.norms.network.graph import forward_graph
from opnorm.norms.network.interpreter import changed_by_hooks
from opnorm.norms.network.trace import unwrapped

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

CANNOT = "scale cannot be shifted"
CLOSE = 1e-6  # ∏ γ may differ from 1 by what a few factors of 7 digits make


def shift(model: nn.Module, example: Tensor, factors: Sequence[float]) -> tuple[float, ...]:
    """Multiply the l-th layer's weight by γ_l, in place, and its bias by γ_1 ... γ_l.

    Args:
        model: a chain of linear and convolutional layers; unchanged if this raises.
        example: a batch that it takes.
        factors: γ_l > 0, one for each layer in the order of the forward pass, with product 1.

    Returns:
        The factors.

    Raises:
        SpecError: another number of factors, one that is not positive and finite, a product that is not 1, or a weight
            that leaves the range of its type.
        ModelError: the network is no such chain (which module, and why).

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
    if abs(math.fsum(logs)) > CLOSE:
        raise SpecError(f"the product of the factors is {math.exp(math.fsum(logs)):.9g}; expected 1")
    _scale(layers, logs)
    return tuple(factors)


def balance(model: nn.Module, example: Tensor) -> tuple[float, ...]:
    """The shift after which all layers have the same Frobenius norm, where weight decay is least; in place.

    γ_l = (∏_k ‖W_k‖_2)^{1/(L+1)} / ‖W_l‖_2

    Args:
        model: a chain of linear and convolutional layers; unchanged if this raises.
        example: a batch that it takes.

    Returns:
        The factors γ_l, in the order of the forward pass.

    Raises:
        ModelError: the network is no such chain, or a layer is all zeros.

    Source: Liu et al. 2020, Eqs. 9 and 10.
    """
    layers = _chain(model, example)
    lengths = _lengths(layers)
    for (name, *_), length in zip(layers, lengths, strict=True):
        if length == 0:
            raise ModelError(f"layer {name!r} is all zeros; no factor gives it the norm of the others")
    logs = [math.log(length) for length in lengths]
    mean = math.fsum(logs) / len(logs)
    _scale(layers, [mean - log for log in logs])
    return tuple(math.exp(mean - log) for log in logs)


def least_weight_decay(model: nn.Module, example: Tensor) -> float:
    """The least Σ ‖W_l‖_2² that a shift can reach: (L+1) (∏ ‖W_l‖_2²)^{1/(L+1)}; the model is left alone.

    With a layer of zeros it is 0, which shifts come close to but do not reach. (Eqs. 31 and 40 of the paper lack the
    exponent 1/(L+1); Eqs. 9 and 11 have it.)

    Args:
        model: a chain of linear and convolutional layers.
        example: a batch that it takes.

    Raises:
        ModelError: the network is no such chain.

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
    lengths = [float(found.weight.detach().double().norm()) for found in layers]
    for (name, *_), length in zip(layers, lengths, strict=True):
        if not math.isfinite(length):
            raise ModelError(f"layer {name!r} has a weight that is NaN or infinite")
    return lengths


@torch.no_grad()
def _scale(layers: list[_Layer], logs: list[float]) -> None:
    """First all products, then all copies, so that a product out of range leaves the model as it was."""
    scaled: list[tuple[Tensor, Tensor]] = []
    for i, (name, _, weight, bias) in enumerate(layers):
        for own, log in ((weight, logs[i]), (bias, math.fsum(logs[: i + 1]))):
            if own is None or not own.any():
                continue
            new = (own.double() * torch.tensor(log, dtype=torch.float64).exp()).to(own.dtype)
            numbers, largest = torch.finfo(own.dtype), float(new.abs().max())
            if not numbers.tiny / numbers.eps < largest < math.inf:
                raise SpecError(
                    f"shifted, the largest number of layer {name!r} would be {largest:.3g}, outside of {own.dtype}"
                )
            scaled.append((own, new))
    for own, new in scaled:
        own.copy_(new)


# ---------------------------------------------------------------- is it a chain?


def _chain(model: nn.Module, example: Tensor) -> list[_Layer]:
    """The layers in order, or ModelError: along the graph, how many of them lie behind each value.

    Behind none and behind all of them, a value is not changed by a shift, and may be used in any way; in between it is
    multiplied by γ_1 ... γ_l.
    """
    model = unwrapped(model)
    with evaluating(model):
        graph, _, reason = forward_graph(model, example)
    if graph is None:
        raise ModelError(f"{CANNOT}: {reason}")
    modules = dict(graph.named_modules())
    nodes = list(graph.graph.nodes)
    count = sum(n.op == "call_module" and _is(modules[n.target], LINEAR_OR_CONV) for n in nodes)
    if not count:
        raise ModelError(f"{CANNOT}: the network has no linear or convolutional layer")
    layers: list[_Layer] = []
    behind: dict[fx.Node, int] = {}  # of the values that depend on the input
    for n in nodes:
        inputs = [behind[i] for i in n.all_input_nodes if i in behind]
        if n.op == "placeholder":
            behind[n] = 0
        elif not inputs or _is_shape(n):
            continue
        elif n.op == "call_module" and _is(modules[n.target], LINEAR_OR_CONV):
            if inputs != [len(layers)]:
                raise ModelError(
                    f"{CANNOT}: layer {n.target!r} does not follow the one before it; expected a chain, no branches"
                )
            layers.append(_checked(str(n.target), modules[n.target], layers))
            behind[n] = len(layers)
        elif not any(0 < i < count for i in inputs) or (len(inputs) == 1 and _is_homogeneous(n, modules)):
            behind[n] = max(inputs)
        else:
            raise ModelError(f"{CANNOT}: {_why(n, inputs, modules)}")
    if behind.get(nodes[-1]) != count:
        raise ModelError(f"{CANNOT}: the output does not come from the last layer, {layers[-1].name!r}")
    _check_parameters(model, graph, layers)
    return layers


def _is(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    return isinstance(module, kinds) and not overrides(module, *kinds)


def _name(n: fx.Node) -> str:
    return n.target if isinstance(n.target, str) else getattr(n.target, "__name__", str(n.target))


def _is_shape(n: fx.Node) -> bool:
    if n.op == "call_function" and n.target is getattr:
        return n.args[1] in ("shape", "ndim", "dtype", "device")
    return n.op == "call_method" and n.target in ("size", "dim", "numel")


def _is_homogeneous(n: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if n.op == "call_module":
        module = modules[str(n.target)]
        return _is(module, HOMOGENEOUS) and not changed_by_hooks(module)
    return n.op == "output" or _name(n) in FUNCTIONS


def _why(n: fx.Node, inputs: list[int], modules: dict[str, nn.Module]) -> str:
    if n.op == "output":
        return "the network returns a value from between its layers"
    if len(inputs) > 1:
        return f"{n.name} joins several values, such as a residual sum; expected a chain"
    if n.op != "call_module":
        return (
            f"{_name(n)} between the layers is not known as positively homogeneous, φ(a x) = a φ(x) for a > 0"
        )
    module = modules[str(n.target)]
    if _is(module, HOMOGENEOUS):
        return f"a hook may change what {n.target!r} computes"
    what = f"{n.target!r} ({type(module).__name__}) between the layers"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return f"{what} is not homogeneous: its statistics and shift do not follow the scale of its input"
    return f"{what} is not known as positively homogeneous, φ(a x) = a φ(x) for a > 0"


def _checked(name: str, layer: nn.Module, before: list[_Layer]) -> _Layer:
    where = f"{CANNOT}: layer {name!r}"
    if any(layer is old.layer for old in before):
        raise ModelError(f"{where} is called several times, and its weight can have only one factor")
    own = layer._parameters
    weight = own.get("weight")
    if weight is None or "bias" not in own:
        raise ModelError(f"{where} has a weight or bias that is computed from other parameters")
    if changed_by_hooks(layer):
        raise ModelError(f"{where} has a hook, which may change what it computes")
    return _Layer(name, layer, weight, own["bias"])


def _check_parameters(model: nn.Module, graph: fx.GraphModule, layers: list[_Layer]) -> None:
    """ModelError for weights that are used in two places, or outside the layers."""
    owner: dict[int, str] = {}
    inside = {id(found.layer) for found in layers}
    for name, layer, *_ in layers:
        for p in layer.parameters(recurse=False):
            if id(p) in owner:
                raise ModelError(f"{CANNOT}: layers {owner[id(p)]!r} and {name!r} share a parameter")
            owner[id(p)] = name
    read = [(n.target, operator.attrgetter(n.target)(graph)) for n in graph.graph.nodes if n.op == "get_attr"]
    for module_name, module in model.named_modules():
        if id(module) not in inside:
            read += [(f"{module_name}.{k}".removeprefix("."), p) for k, p in module._parameters.items()]
    for name, p in read:
        if id(p) in owner:
            raise ModelError(
                f"{CANNOT}: the parameter {name!r} of layer {owner[id(p)]!r} is used elsewhere too"
            )
        if isinstance(p, nn.Parameter) and p.ndim > 1:
            raise ModelError(
                f"{CANNOT}: {name!r} is no weight of a linear or convolutional layer in the chain"
            )
