"""Networks whose gradients are of no use to an attack, by their inputs and layers: one function a kind.

A kind gets a :class:`Base` and gives a network for the same classes. What attacks on the base break of the points that an
attack on the masked network leaves is what the mask hides. More kinds are in masked_outputs.py.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from networks import fit
from torch import Tensor, nn


class Base(NamedTuple):
    """An honest network, another one of another seed, the radius of the attack, and the name of the data."""

    net: nn.Module
    other: nn.Module
    eps: float
    data: str
    in_shape: tuple[int, int, int]


class Kind(NamedTuple):
    """A way to mask gradients, and where it is described."""

    name: str
    make: Callable[[Base], nn.Module]
    source: str


KINDS: list[Kind] = []


def kind(name: str, source: str = "") -> Callable[[Callable[[Base], nn.Module]], Callable[[Base], nn.Module]]:
    """Add a kind."""

    def add(make: Callable[[Base], nn.Module]) -> Callable[[Base], nn.Module]:
        KINDS.append(Kind(name, make, source))
        return make

    return add


class Function(nn.Module):
    """A network made of modules and a function of them and of x."""

    def __init__(self, forward: Callable[..., Tensor], *nets: nn.Module) -> None:
        super().__init__()
        self.nets, self.function = nn.ModuleList(nets), forward

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        return self.function(x, *self.nets)


def before(base: Base, change: Callable[[Tensor], Tensor]) -> nn.Module:
    return Function(lambda x, net: net(change(x)), base.net)


def after(base: Base, change: Callable[[Tensor], Tensor]) -> nn.Module:
    return Function(lambda x, net: change(net(x)), base.net)


def with_gradient_of(value: Tensor, other: Tensor) -> Tensor:
    """The first tensor, with the gradient of the second."""
    return value.detach() + other - other.detach()


# ---------------------------------------------------------------- the input


@kind("inputs rounded to 8 levels", "Xu et al. 2018; Guo et al. 2018")
def _(base: Base) -> nn.Module:
    return before(base, lambda x: (x * 7).round() / 7)


@kind("inputs rounded to 8 levels, straight-through gradient", "Bengio et al. 2013")
def _(base: Base) -> nn.Module:
    return before(base, lambda x: with_gradient_of((x * 7).round() / 7, x))


@kind("inputs of 1 bit", "Xu et al. 2018")
def _(base: Base) -> nn.Module:
    return before(base, lambda x: (x > 0.5).to(x.dtype))


class Thermometer(nn.Module):
    """16 channels for each, 1 up to the value."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 16 C, H, W)."""
        levels = torch.arange(16, device=x.device).view(1, 1, 16, 1, 1) / 16
        return (x[:, :, None] > levels).to(x.dtype).flatten(1, 2)


def small_cnn(
    base: Base, channels: int, activation: Callable[[], nn.Module] = nn.ReLU, stride: int = 1
) -> nn.Module:
    _, height, width = base.in_shape
    stride = 2 if height > 16 else stride
    size = [(n - 1) // stride + 1 for n in (height, width)]
    size = [(n - 1) // stride + 1 for n in size]
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, stride, 1), activation(), nn.Conv2d(8, 8, 3, stride, 1), activation(),
        nn.Flatten(), nn.Linear(8 * math.prod(size), 10),
    )  # fmt: skip


@kind("thermometer encoding", "Buckman et al. 2018")
def _(base: Base) -> nn.Module:
    return fit(nn.Sequential(Thermometer(), *small_cnn(base, 16 * base.in_shape[0])), base.data)


def jpeg(x: Tensor, step: float) -> Tensor:
    """Blocks of 4x4, whose cosine transform is rounded to multiples of ``step``."""
    k = torch.arange(4, dtype=x.dtype)
    dct = torch.cos(math.pi / 4 * (k[None] + 0.5) * k[:, None]) * math.sqrt(0.5)
    dct[0] *= math.sqrt(0.5)
    b, c, h, w = x.shape
    blocks = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 1, 2, 4, 3, 5)
    coefficients = ((dct @ blocks @ dct.T) / step).round() * step
    return (dct.T @ coefficients @ dct).permute(0, 1, 2, 4, 3, 5).reshape(b, c, h, w)


@kind("JPEG: rounded cosine transform", "Guo et al. 2018; Das et al. 2017")
def _(base: Base) -> nn.Module:
    return before(base, lambda x: jpeg(x, 0.25))


@kind("median filter outside of the graph, 0.01 of x inside", "Xu et al. 2018")
def _(base: Base) -> nn.Module:
    def filtered(x: Tensor) -> Tensor:
        windows = F.unfold(x.detach().flatten(0, 1)[:, None], 3, padding=1)
        median = windows.median(1).values.view_as(x)
        return 0.99 * median + 0.01 * x

    return before(base, filtered)


@kind("random shift and padding", "Xie et al. 2018")
def _(base: Base) -> nn.Module:
    def moved(x: Tensor) -> Tensor:
        dy, dx = torch.randint(-1, 2, (2,)).tolist()
        return x.roll((dy, dx), (2, 3))

    return before(base, moved)


@kind("noise on the input, fresh in each pass", "He et al. 2019; Liu et al. 2018")
def _(base: Base) -> nn.Module:
    return before(base, lambda x: x + base.eps * torch.randn_like(x))


@kind("inputs saturated: sigmoid(100 (x - 0.5))", "Athalye et al. 2018")
def _(base: Base) -> nn.Module:
    return before(base, lambda x: torch.sigmoid(100 * (x - 0.5)))


@kind("inputs rounded to levels of each pixel's own, decoy gradient", "Prakash et al. 2018")
def _(base: Base) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    steps = torch.rand(base.in_shape, generator=generator)

    def nearest(x: Tensor) -> Tensor:  # each pixel to one of 8 levels, shifted by a number of its own
        rounded = ((x * 7 + steps).floor() - steps + 0.5) / 7
        return with_gradient_of(rounded, x.flip(3) * 0.1)

    return before(base, nearest)


@kind("ripples of x, shorter than a step", "Qiu et al. 2021; Athalye et al. 2018")
def _(base: Base) -> nn.Module:
    wave = base.eps / 50
    return before(base, lambda x: x + wave * torch.sin(x / wave * 5))


@kind("x flips its gradient within valleys as wide as the ball", "")
def _(base: Base) -> nn.Module:
    wave = base.eps / 2
    return before(base, lambda x: x + wave * torch.sin(x / wave * 2))


# ---------------------------------------------------------------- the layers


class Step(torch.autograd.Function):
    """The sign, with a made-up gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: D102
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: D102
        (x,) = ctx.saved_tensors
        return grad * (x.abs() < 1)


class StepActivation(nn.Module):
    """0 or 1; in training, and with ``through``, with a straight-through gradient."""

    def __init__(self, through: bool = False) -> None:
        super().__init__()
        self.through = through

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return Step.apply(x) if self.training or self.through else (x > 0).to(x.dtype) + 0 * x


@kind("step activations, zero gradient", "Galloway et al. 2018")
def _(base: Base) -> nn.Module:
    return fit(small_cnn(base, base.in_shape[0], StepActivation), base.data)


@kind("step activations, straight-through gradient", "Galloway et al. 2018")
def _(base: Base) -> nn.Module:
    return fit(small_cnn(base, base.in_shape[0], lambda: StepActivation(True)), base.data)


class Winners(nn.Module):
    """A tenth of the units, those with the largest values; the others are zero."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...)."""
        flat = x.flatten(1)
        least = flat.topk(max(flat.shape[1] // 10, 1), dim=1).values[:, -1:]
        return (flat * (flat >= least)).view_as(x)


@kind("k winners take all", "Xiao et al. 2020")
def _(base: Base) -> nn.Module:
    return fit(small_cnn(base, base.in_shape[0], Winners), base.data)


class Pruned(nn.Module):
    """ReLU, of which a random half is kept and doubled in every pass, also in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return F.dropout(x.relu(), 0.5, training=True)


@kind("activations pruned at random", "Dhillon et al. 2018")
def _(base: Base) -> nn.Module:
    return fit(small_cnn(base, base.in_shape[0], Pruned), base.data)


@kind("dropout at test time", "Feinman et al. 2017; Carlini & Wagner 2017")
def _(base: Base) -> nn.Module:
    return Function(lambda x, net: net(F.dropout(x, 0.1, training=True)), base.net)


@kind("normalized by the batch", "")
def _(base: Base) -> nn.Module:
    return before(
        base, lambda x: (x - x.mean((0, 2, 3), keepdim=True)) * 1.05 + x.mean((0, 2, 3), keepdim=True)
    )


@kind("the batch's mean logits are removed", "")
def _(base: Base) -> nn.Module:
    return after(base, lambda z: z - 0.5 * z.mean(0, keepdim=True))
