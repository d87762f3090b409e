"""A 16-bit stand-in of a model for attacks to search on: cheaper several times, and close enough to lead them right.

Nothing that an attack reports is taken from it: what counts as fooled is looked at by the model as given.
"""

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.surrogate import Shadow, attack_model, has_bf16
from opnorm.attacks.losses import wide

__all__ = ["Scout", "find_scout"]


class Scout(NamedTuple):
    """A network to search on, and whether its logits have more than the 8 bits of bfloat16."""

    network: nn.Module
    fine: bool = False


def find_scout(model: nn.Module, x: Tensor, y: Tensor) -> Scout | None:
    """A copy in bfloat16, with channels last in memory, where that is fast, all is in float32, and both agree.

    Args:
        model: in eval mode.
        x: a few points (B, C, H, W) to try it on.
        y: their labels (B,).
    """
    floats = {t.dtype for t in (x, *model.parameters(), *model.buffers()) if t.is_floating_point()}
    if floats != {torch.float32} or not has_bf16(x.device):
        return None
    with torch.autocast(x.device.type, torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a stand-in all is as right, and slower
        shadow = attack_model(model, x)
    if not isinstance(shadow, Shadow):
        return None
    network = deepcopy(shadow)  # the other one may be refreshed by somebody else
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stubs leave it out
        elif type(module) is nn.Flatten:
            module.register_forward_pre_hook(_in_one_format)
    scout = Scout(network, _sharpened(network, model, x))
    return scout if _agree(model, network, x, y) else None


def _in_one_format(flatten: nn.Module, inputs: tuple[Tensor]) -> None:
    """Have the gradient laid out in memory like the features: where the two differ, an activation takes 20 times as long."""
    (features,) = inputs
    if features.requires_grad and features.ndim == 4 and not features.is_contiguous():
        features.register_hook(lambda grad: grad.contiguous(memory_format=torch.channels_last))


def _sharpened(shadow: Shadow, model: nn.Module, x: Tensor) -> bool:
    """Compute the last layer in float32, if it is linear: its sums over many features average their rounding out.

    FAB and Square, which live on small differences of logits, then find what they find in float32, and without it less.
    """
    made: list[tuple[str, Tensor]] = []

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda layer, inputs, out: made.append((name, out))

    layers = [(name, m) for name, m in shadow.copy.named_modules() if name and type(m) is nn.Linear]
    hooks = [layer.register_forward_hook(note(name)) for name, layer in layers]
    with torch.autocast(x.device.type, torch.bfloat16):
        logits = shadow.copy(x)
    for hook in hooks:
        hook.remove()
    last = [name for name, out in made if out is logits and name not in dict(shadow.pairs)]
    for name in last:
        parent, _, child = name.rpartition(".")
        setattr(shadow.copy.get_submodule(parent), child, _Float32(model.get_submodule(name)))
    return bool(last)


class _Float32(nn.Module):
    """A layer that computes in float32 whatever is around it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Like the layer's."""
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = self.layer(x.float())
        return out


def _agree(model: nn.Module, scout: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Logits mostly within 3 % of their spread, and gradients of which half are nearly parallel."""
    with torch.enable_grad():
        pair = []
        for network in (model, scout):
            z = x.detach().requires_grad_()
            logits = wide(network(z))
            gap = logits.logsumexp(1) - logits.gather(1, y[:, None]).squeeze(1)
            grad = torch.autograd.grad(gap.sum(), z)[0] if gap.requires_grad else torch.zeros_like(z)
            pair.append((logits.detach(), grad.flatten(1)))
    (exact, grad), (coarse, coarse_grad) = pair
    off = (exact - coarse).square().mean().sqrt()
    return (
        bool(off <= 0.03 * exact.std()) and float(torch.cosine_similarity(grad, coarse_grad).median()) > 0.9
    )
