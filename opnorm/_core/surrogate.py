"""Attacks in bfloat16 on a shadow of the model that is being trained: the same function, several times cheaper.

The shadow is a copy in eval mode. Batch norms that follow a convolution or a linear layer are folded into it, and the
weights of these layers are bfloat16; all else stays in float32, so that pixels lose no more bits than they must. Whether
it is the same function, and has the same gradients, is tried out when it is made.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from opnorm._core.layers import BATCH_NORM, LINEAR_OR_CONV
from opnorm._core.modes import Mode

__all__ = ["Shadow", "attack_model", "has_bf16"]


def attack_model(model: nn.Module, x: Tensor, mode: Mode = "eval") -> nn.Module:
    """What an attack within a training step should ask for gradients: a shadow under bfloat16 autocast, else the model.

    The shadow takes the model's present weights at every call, so call it once a step, before the attack. It stands in for
    eval mode only, and not for a model with hooks on its modules, which might do or watch anything.

    Args:
        model: gives logits (B, K).
        x: pixels (B, C, H, W), as the attack will get them.
        mode: that the attack wants the model in.

    Returns:
        A network with the same logits (as float32) up to bfloat16 rounding, in eval mode and with frozen weights; or the
        model itself, where nothing is to be gained or the copy is not the same function, of which a warning tells once.
    """
    kind = x.device.type
    if (
        mode != "eval"
        or not torch.is_autocast_enabled(kind)
        or torch.get_autocast_dtype(kind) != torch.bfloat16
    ):
        return model
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules()):
        return model
    known = _known.get(model)
    if known is None or known.shapes != _shapes(model):
        known = _known[model] = _Known(_shapes(model), _shadow_or_warning(model, x))
    if known.shadow is None:
        return model
    known.shadow.refresh(model)
    return known.shadow


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware itself multiplies in bfloat16, rather than float32 in its stead."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class _Known(NamedTuple):
    shapes: list[Any]
    shadow: "Shadow | None"


_known: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def _shapes(model: nn.Module) -> list[Any]:
    return [(name, t.shape, t.device) for name, t in _tensors(model).items()]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )


def _shadow_or_warning(model: nn.Module, x: Tensor) -> "Shadow | None":
    why, name = "", type(model).__name__
    norms = any(isinstance(m, BATCH_NORM) for m in model.modules())
    gpus = [x.device] if x.device.type == "cuda" else []
    for fold in (True, False) if norms else (False,):
        try:
            with torch.random.fork_rng(gpus), torch.autocast(x.device.type, enabled=False):
                shadow = Shadow(model, x[:8], fold)
                shadow.check(model, x[:8])
        except Exception as e:  # noqa: BLE001 - whatever a user's network raises when it is copied or cut
            why = f"{type(e).__name__}: {e}"
            continue
        if norms and not fold:
            _warn(
                f"batch norms of {name} cannot be folded for attacks in bf16, and are kept, which is slower ({why})"
            )
        return shadow.narrow()
    _warn(
        f"no copy of {name} can stand in for it in bf16; attacks run on the model itself, which is slower ({why})"
    )
    return None


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=5)


class Shadow(nn.Module):
    """A copy of a model in eval mode that can be brought up to date.

    Args:
        model: left as it is.
        x: a few inputs, for a look at what follows what.
        fold: batch norms into the layers before them.
    """

    def __init__(self, model: nn.Module, x: Tensor, fold: bool = True) -> None:
        super().__init__()
        self.copy = deepcopy(model).eval().requires_grad_(False)
        self.pairs = foldable(self.copy, x) if fold else []
        for layer_name, norm_name in self.pairs:
            layer = self.copy.get_submodule(layer_name)
            assert isinstance(layer, LINEAR_OR_CONV), "only these are paired"
            # its own, also where the model's layers share one
            layer.weight = nn.Parameter(torch.empty_like(layer.weight), requires_grad=False)
            layer.bias = nn.Parameter(layer.weight.new_empty(len(layer.weight)), requires_grad=False)
            parent, _, child = norm_name.rpartition(".")
            setattr(self.copy.get_submodule(parent), child, nn.Identity())
        folded = {f"{layer}.{kind}" for layer, _ in self.pairs for kind in ("weight", "bias")}
        self.same = [name for name in _tensors(self.copy) if name not in folded]
        self.narrowed = False
        self.refresh(model)

    def narrow(self) -> "Shadow":
        """Convolutions and linear layers in bfloat16 from now on."""
        for module in self.copy.modules():
            if type(module) in LINEAR_OR_CONV:
                module.to(torch.bfloat16)
        self.narrowed = True
        return self

    def forward(self, x: Tensor) -> Any:
        """(B, C, H, W) -> (B, K), float32."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.narrowed):
            out = self.copy(x)
        return out.float() if isinstance(out, Tensor) else out

    @torch.no_grad()
    def refresh(self, model: nn.Module) -> None:
        """Take over the weights and statistics of the model: W ← γ W / √(v + ε), b ← β + γ (b - m) / √(v + ε)."""
        own, given = _tensors(self.copy), _tensors(model)
        if self.same:
            torch._foreach_copy_([own[name] for name in self.same], [given[name] for name in self.same])
        for layer_name, norm_name in self.pairs:
            layer, norm = (model.get_submodule(name) for name in (layer_name, norm_name))
            assert isinstance(layer, LINEAR_OR_CONV), "only these are paired"
            assert isinstance(norm, BATCH_NORM), "likewise"
            assert norm.running_mean is not None, "only such are folded"
            assert norm.running_var is not None, "it comes with the mean"
            scale = (norm.running_var + norm.eps).rsqrt_()
            if norm.weight is not None:
                scale *= norm.weight
            shift = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
            shift *= scale
            if norm.bias is not None:
                shift += norm.bias
            own[f"{layer_name}.weight"].copy_(layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1)))
            own[f"{layer_name}.bias"].copy_(shift)

    def check(self, model: nn.Module, x: Tensor) -> None:
        """In float32, and with statistics as after long training, it has the model's outputs and input gradients.

        Raises:
            ValueError: it has not.
        """
        trained = _with_statistics(model)
        self.refresh(trained)
        for name, own, right in zip(("outputs", "gradients"), _look(self, x), _look(trained, x), strict=True):
            error = float((own - right).norm() / right.norm())
            if not error <= 1e-2:
                raise ValueError(f"its {name} are off by a factor of {error:.2g}")
        self.refresh(model)


def _with_statistics(model: nn.Module) -> nn.Module:
    """A copy whose batch norms are far from the identity, which they are at first."""
    copy, generator = deepcopy(model).eval().requires_grad_(False), torch.Generator().manual_seed(0)
    ranges = {
        "running_mean": (-0.5, 0.5),
        "running_var": (0.5, 2.0),
        "weight": (0.5, 1.5),
        "bias": (-0.5, 0.5),
    }
    for norm in [m for m in copy.modules() if isinstance(m, BATCH_NORM)]:
        for name, (low, high) in ranges.items():
            tensor = getattr(norm, name)
            if tensor is not None:
                tensor.copy_(torch.empty(tensor.shape).uniform_(low, high, generator=generator))
    return copy


def _look(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs, and the gradient of a weighted sum of them."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = network(x)
        weights = torch.linspace(1, 2, out[0].numel(), device=x.device)
        (grad,) = torch.autograd.grad((out.flatten(1) * weights).sum(), x)
    return out.detach(), grad


def foldable(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """Which (convolution or linear layer, batch norm) pairs are one affine map, by name.

    Both are called once, and the batch norm, which has statistics of its own, is all that looks at the layer's output.
    """
    names = {m: name for name, m in model.named_modules()}
    calls: Counter[nn.Module] = Counter()
    made: dict[int, tuple[nn.Module, Tensor]] = {}
    taken: dict[nn.Module, int] = {}
    uses = _Uses()

    def after_layer(layer: nn.Module, inputs: Any, out: Tensor) -> None:
        calls[layer] += 1
        made[id(out)] = layer, out  # kept, so that no other tensor gets its id
        uses.counts[id(out)] = 0

    def before_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        taken[norm] = id(inputs[0])

    with _hooks() as hook, torch.no_grad(), uses:
        for m in names:
            if type(m) in LINEAR_OR_CONV:
                hook(m.register_forward_hook(after_layer))
            elif isinstance(m, BATCH_NORM) and m.running_mean is not None:
                hook(m.register_forward_pre_hook(before_norm))
        model(x)
    return [
        (names[made[out][0]], names[norm])
        for norm, out in taken.items()
        if out in made and uses.counts[out] == calls[norm] == calls[made[out][0]] == 1
    ]


@contextmanager
def _hooks() -> Iterator[Callable[[Any], None]]:
    handles: list[Any] = []
    try:
        yield handles.append
    finally:
        for handle in handles:
            handle.remove()


class _Uses(TorchFunctionMode):
    """How many operations take a tensor and give tensors (asking for a shape is no use), by the tensor's id."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every operation."""
        out = func(*args, **(kwargs or {}))
        if any(isinstance(t, Tensor) for t in tree_leaves(out)):
            self.counts.update({id(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)})
        return out
