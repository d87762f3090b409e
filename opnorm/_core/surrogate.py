"""Surrogates: cheaper copies of a model that attacks search on, the same function up to rounding.

A surrogate is a copy in eval mode. Batch norms that follow a convolution or a linear layer are folded into it. In bfloat16
the weights of these layers are of that type; all else stays in float32, so that pixels lose no more bits than needed. When
it is made, its outputs and input gradients are compared with the model's. Whether a point is misclassified is always
decided by the model itself.
"""

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from copy import deepcopy
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module
from torch.nn.utils.fusion import fuse_conv_bn_weights

from opnorm._core.fast_convolutions import fast_convolutions
from opnorm._core.folding import foldable
from opnorm._core.frozen_layers import FrozenConv2d
from opnorm._core.layers import BATCH_NORM, LINEAR_OR_CONV, hooks_of_all_modules
from opnorm._core.modes import Mode
from opnorm._core.module_settings import settings_of_modules
from opnorm._core.outputs import one_tensor, output_of
from opnorm._core.pixel_linear import pixel_linears
from opnorm._core.thin_convolution import ThinConv2d

__all__ = ["Surrogate", "evaluation_surrogate", "has_bf16", "replace_modules", "training_surrogate"]


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies in bfloat16; where it is emulated, it is up to 100 times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # ATEN_CPU_CAPABILITY restricts it
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def training_surrogate(model: nn.Module, x: Tensor, mode: Mode = "eval") -> nn.Module:
    """The network for an attack within a training step: a surrogate where it is faster, otherwise the model.

    Under bfloat16 autocast that is a copy in bfloat16; without autocast, on a CPU, one of a convolutional network in
    float32, with its batch norms folded and channels last in memory. It takes over the model's present weights at every
    call, and is made anew where the model's modules, or numbers and functions among their attributes, have changed: call it
    once a step, before the attack. Models in other modes or with hooks on their modules have none.

    Args:
        model: gives logits (B, K).
        x: pixels (B, ...), as the attack gets them.
        mode: of the model during the attack.

    Returns:
        A network in eval mode with frozen weights and the same logits, as float32, up to rounding; or the model itself,
        where the hardware has no bfloat16, a network in float32 has no convolution and no batch norm that can be folded, or
        the copy is not the same function (in bfloat16 with one warning).
    """
    if mode != "eval":
        return model
    if not torch.is_autocast_enabled(kind := x.device.type):
        return _in_float32(model, x) or model
    bf16 = torch.get_autocast_dtype(kind) == torch.bfloat16 and has_bf16(x.device)
    return (_surrogate(model, x) if bf16 else None) or model


def _in_float32(model: nn.Module, x: Tensor) -> "Surrogate | None":
    """A float32 surrogate on a CPU."""
    floats = {t.dtype for t in (x, *model.parameters()) if t.is_floating_point()}
    if x.device.type != "cpu" or floats != {torch.float32}:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the result is the same without it
        return _surrogate(model, x, bf16=False)


def evaluation_surrogate(model: nn.Module, x: Tensor, y: Tensor, *, bf16: bool = True) -> "Surrogate | None":
    """A surrogate with channels last in memory: in bfloat16 where the hardware has it, or on a CPU in float32.

    In bfloat16 the last layer is in float32 where that is possible. None on a GPU without bfloat16, where the model is not
    in float32 or would not be faster, and where logits or gradients differ too much.

    Args:
        model: in eval mode.
        x: a few points (B, ...) for the comparison.
        y: their labels (B,).
        bf16: False for float32 everywhere: the same function up to rounding.
    """
    floats = {t.dtype for t in (x, *model.parameters(), *model.buffers()) if t.is_floating_point()}
    bf16 = bf16 and has_bf16(x.device)
    if floats != {torch.float32} or not (bf16 or x.device.type == "cpu"):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a surrogate the result is the same, only slower
        shared = _surrogate(model, x, bf16)
    if shared is None:
        return None
    surrogate = deepcopy(shared)  # training may refresh the other one
    if bf16:
        surrogate.to_channels_last()
        surrogate.use_precise_logits(model, x.clone())
    return surrogate if _agree(model, surrogate, x, y, *((0.03, 0.9) if bf16 else (1e-3, 0.999))) else None


# ---------------------------------------------------------------- the copy


class Surrogate(nn.Module):
    """A copy of a model in eval mode whose weights can be refreshed.

    Args:
        model: stays unchanged.
        x: a few inputs, to find which layer follows which.
        fold: fold batch norms into the layers before them.

    Attributes:
        folded: names of each layer and the batch norm that is folded into it.
        precise_logits: the last layer computes in the precision of the model.
    """

    def __init__(self, model: nn.Module, x: Tensor, fold: bool = True) -> None:
        super().__init__()
        self.network = deepcopy(model).eval().requires_grad_(False)
        self.folded = foldable(self.network, x) if fold else []
        self.bf16, self.precise_logits = False, True
        for layer_name, norm_name in self.folded:
            layer: Any = self.network.get_submodule(layer_name)
            # tensors of its own, also where layers of the model share one
            layer.weight = nn.Parameter(torch.empty_like(layer.weight), requires_grad=False)
            layer.bias = nn.Parameter(layer.weight.new_empty(len(layer.weight)), requires_grad=False)
            replace_modules(self.network, {self.network.get_submodule(norm_name): nn.Identity()})
        computed = {f"{layer}.{kind}" for layer, _ in self.folded for kind in ("weight", "bias")}
        self.copied = [name for name in _tensors(self.network) if name not in computed]
        self.refresh(model)

    def to_bf16(self) -> "Surrogate":
        """Convolutions and linear layers in bfloat16 from now on."""
        for module in self.network.modules():
            if type(module) in (*LINEAR_OR_CONV, ThinConv2d):
                module.to(torch.bfloat16)
        self.bf16, self.precise_logits = True, False
        return self

    def to_channels_last(self) -> "Surrogate":
        """Convolutions with channels last in memory from now on."""
        for module in self.modules():
            if type(module) is nn.Conv2d or isinstance(module, FrozenConv2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stubs leave it out
            elif type(module) is nn.Flatten:
                module.register_forward_pre_hook(_channels_last_gradient)
        return self

    def use_precise_logits(self, model: nn.Module, x: Tensor) -> None:
        """Compute the last layer in float32, if it is linear: its sums over many features average their rounding out.

        FAB and Square depend on small differences of logits; with it they find as much as in float32.
        """
        outputs: dict[str, Tensor] = {}
        layers = {m: name for name, m in self.network.named_modules() if name and type(m) is nn.Linear}

        def record(layer: nn.Module, _: Any, out: Tensor) -> None:
            if layer in layers:  # not a copy that the network makes of it while it runs
                outputs[layers[layer]] = out

        with ExitStack() as hooks, torch.autocast(x.device.type, torch.bfloat16):
            for layer in layers:
                hooks.enter_context(layer.register_forward_hook(record))
            logits = output_of(self.network, x)
        folded = dict(self.folded)
        for name in [name for name, out in outputs.items() if out is logits and name not in folded]:
            own, source = self.network.get_submodule(name), model.get_submodule(name)
            replace_modules(self.network, {own: _Float32(source)})
            self.precise_logits = True

    def forward(self, x: Tensor) -> Any:
        """(B, ...) -> (B, K), float32."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            out = self.network(x)
        return one_tensor(out).float()

    @torch.no_grad()
    def refresh(self, model: nn.Module) -> None:
        """Take over the weights and statistics of the model."""
        own, source = _tensors(self.network), _tensors(model)
        if self.copied:
            torch._foreach_copy_([own[name] for name in self.copied], [source[name] for name in self.copied])
        for layer_name, norm_name in self.folded:
            layer, norm = (cast(Any, model.get_submodule(name)) for name in (layer_name, norm_name))
            weight, bias = fuse_conv_bn_weights(
                layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )  # fmt: skip
            own[f"{layer_name}.weight"].copy_(weight)
            own[f"{layer_name}.bias"].copy_(bias)

    def check(self, model: nn.Module, x: Tensor) -> None:
        """Compare outputs and input gradients in float32, with batch-norm statistics as after long training.

        Raises:
            ValueError: they differ.
        """
        trained = _with_statistics(model)
        self.refresh(trained)
        count = output_of(trained, x[:1])[0].numel()
        weights = torch.linspace(1, 2, count, dtype=torch.float32, device=x.device)
        own, expected = (
            _outputs_and_gradients(network, x, lambda out: out.flatten(1) @ weights)
            for network in (deepcopy(self), trained)  # what a copy of large layers keeps is freed with it
        )
        for name, a, b in zip(("outputs", "gradients"), own, expected, strict=True):
            error, size = float((a - b).norm()), float(b.norm())  # of a network that is dead, both are 0
            if not error <= 1e-2 * size:
                raise ValueError(f"its {name} are off by {error:.2g}, of {size:.2g}")
        self.refresh(model)


class _Float32(nn.Module):
    """A layer that computes in float32 also under autocast."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = self.layer(x.float())
        return out


def _channels_last_gradient(flatten: nn.Module, inputs: tuple[Tensor]) -> None:
    """Give the gradient the memory layout of the features: where they differ, an activation takes 20 times as long."""
    (features,) = inputs
    if features.requires_grad and features.ndim == 4 and not features.is_contiguous():
        features.register_hook(lambda grad: grad.contiguous(memory_format=torch.channels_last))


def replace_modules(network: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put new modules in the places of others, under all names that these have."""
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if module in new:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, new[module])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return parameters | dict(model.named_buffers(remove_duplicate=False))


# ---------------------------------------------------------------- one surrogate a model

Known = WeakKeyDictionary[nn.Module, tuple[Any, "Surrogate | None"]]
_surrogates: dict[bool, Known] = {bf16: WeakKeyDictionary() for bf16 in (True, False)}


def _surrogate(model: nn.Module, x: Tensor, bf16: bool = True) -> Surrogate | None:
    """The model's surrogate with the present weights, made at the first call; None where there can be none."""
    # torch has no public list of a module's hooks
    own = any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    if own or hooks_of_all_modules() or every_module._global_backward_hooks:
        return None
    shapes = [(name, t.shape, t.device) for name, t in _tensors(model).items()]
    present = shapes, settings_of_modules(model)
    known, surrogate = _surrogates[bf16].get(model, (None, None))
    if known != present:
        surrogate = _make_surrogate(model, x[:8].clone(), bf16)
        _surrogates[bf16][model] = present, surrogate
    if surrogate is not None:
        surrogate.refresh(model)
    return surrogate


def _make_surrogate(model: nn.Module, x: Tensor, bf16: bool) -> Surrogate | None:
    reason, name = "", type(model).__name__
    has_norms = any(isinstance(m, BATCH_NORM) for m in model.modules())
    gpus = [x.device] if x.device.type == "cuda" else []
    for fold in (True, False) if has_norms else (False,):
        try:
            with torch.random.fork_rng(gpus), torch.autocast(x.device.type, enabled=False):
                surrogate = Surrogate(model, x, fold)
                if not (bf16 or surrogate.folded or any(type(m) is nn.Conv2d for m in model.modules())):
                    return None  # it would be no faster
                if x.device.type == "cpu":
                    replace_modules(surrogate.network, fast_convolutions(surrogate.network))
                if not bf16:
                    replace_modules(surrogate.network, pixel_linears(surrogate.network))
                surrogate.check(model, x)
        except Exception as e:  # noqa: BLE001 - whatever a user's network raises when it is copied or changed
            reason = f"{type(e).__name__}: {e}"
            continue
        if has_norms and not fold:
            warnings.warn(
                f"batch norms of {name} are not folded for attacks in bf16, which is slower ({reason})",
                stacklevel=4,
            )
        return surrogate.to_bf16() if bf16 else surrogate.to_channels_last()
    warnings.warn(
        f"no bf16 copy of {name} is possible; attacks use the model itself, which is slower ({reason})",
        stacklevel=4,
    )
    return None


# ---------------------------------------------------------------- is it the same function?


def _outputs_and_gradients(
    network: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Outputs (B, ...), and the gradient of each point's loss (B, n); zero where the loss does not depend on x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = output_of(network, x)
        value = loss(out).sum()
        grad = torch.autograd.grad(value, x)[0] if value.requires_grad else torch.zeros_like(x)
    return out.detach(), grad.flatten(1)


def _with_statistics(model: nn.Module) -> nn.Module:
    """A copy whose batch norms are far from the identity, which they are at first."""
    copy, generator = deepcopy(model).eval().requires_grad_(False), torch.Generator().manual_seed(0)
    ranges = {"running_mean": (-0.5, 0.5), "running_var": (0.5, 2), "weight": (0.5, 1.5), "bias": (-0.5, 0.5)}
    for norm in [m for m in copy.modules() if isinstance(m, BATCH_NORM)]:
        for name, (low, high) in ranges.items():
            tensor = getattr(norm, name)
            if tensor is not None:
                tensor.copy_(
                    torch.empty(tensor.shape, dtype=torch.float32).uniform_(low, high, generator=generator)
                )
    return copy


def _agree(
    model: nn.Module, surrogate: nn.Module, x: Tensor, y: Tensor, most: float = 0.03, least: float = 0.9
) -> bool:
    """Logits within a share ``most`` of their spread on average, and half of the gradients' cosines above ``least``."""
    (logits, grad), (rounded, rounded_grad) = (
        _outputs_and_gradients(n, x, lambda z: z.logsumexp(1) - z.gather(1, y[:, None]).squeeze(1))
        for n in (model, surrogate)
    )
    error = (logits - rounded).square().mean().sqrt()
    similarity = torch.cosine_similarity(grad, rounded_grad).median()
    return bool(error <= most * logits.std()) and float(similarity) > least
