"""Which batch norms can be folded into the layer before them."""

from collections import Counter
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from opnorm._core.layers import BATCH_NORM, LINEAR_OR_CONV

__all__ = ["Uses", "foldable"]


def foldable(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """The (convolution or linear layer, batch norm) pairs, by name, that are one affine map.

    Each of both is called once, and the batch norm, which has running statistics, alone uses the layer's output.
    """
    names = {m: name for name, m in model.named_modules()}
    calls: Counter[nn.Module] = Counter()
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}
    inputs_of: dict[nn.Module, int] = {}
    uses = Uses()

    def after_layer(layer: nn.Module, inputs: Any, out: Tensor) -> None:
        if layer in names:  # not a copy that the network makes of it while it runs
            calls[layer] += 1
            outputs[id(out)] = layer, out  # kept, so that no other tensor gets its id
            uses.counts[id(out)] = 0

    def before_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if norm in names:
            calls[norm] += 1
            inputs_of[norm] = id(inputs[0])

    with ExitStack() as hooks, torch.no_grad(), uses:
        for m in names:
            if type(m) in LINEAR_OR_CONV:
                hooks.enter_context(m.register_forward_hook(after_layer))
            elif isinstance(m, BATCH_NORM) and m.running_mean is not None:
                hooks.enter_context(m.register_forward_pre_hook(before_norm))
        model(x.clone())  # it may write to its inputs
    return [
        (names[outputs[out][0]], names[norm])
        for norm, out in inputs_of.items()
        if out in outputs and uses.counts[out] == calls[norm] == calls[outputs[out][0]] == 1
    ]


READ = ("item", "tolist", "numpy", "equal", "allclose", "__bool__", "__int__", "__float__", "__index__")
"""Operations that make numbers of Python of values of tensors."""


class Uses(TorchFunctionMode):
    """The number of operations that take a tensor, by tensor id.

    Those count that return tensors or, as ``x[0] = 1`` does, nothing; reading a shape does not count.

    Attributes:
        values_read: numbers of Python were made of values, on which the next operations can depend.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self.values_read = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every operation."""
        out = func(*args, **(kwargs or {}))
        self.values_read |= getattr(func, "__name__", "") in READ
        if out is None or any(isinstance(t, Tensor) for t in tree_leaves(out)):
            self.counts.update({id(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)})
        return out
