"""Networks whose gradients are of no use to an attack, by false gradients, votes and outputs: one function a kind."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from masked_networks import KINDS, Base, Function, after, before, kind, small_cnn, with_gradient_of
from networks import fit
from torch import Tensor, nn

__all__ = ["KINDS"]


def linear(base: Base, seed: int = 0, classes: int = 10) -> nn.Module:
    """Random linear logits of deviation 1 or so: no attack on them says anything about another network."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(base.in_shape), classes))
    return net.requires_grad_(False)


def votes(base: Base, net: nn.Module, x: Tensor, copies: int, share: float = 1.0) -> Tensor:
    """The shares of votes of copies, each of which sees x moved by a fixed uniform noise of up to ``share`` ε."""
    generator = torch.Generator().manual_seed(1)
    noise = (2 * torch.rand(copies, 1, *base.in_shape, generator=generator) - 1) * share * base.eps
    many = (x.detach() + noise).flatten(0, 1)
    logits = net(many)
    return F.one_hot(logits.argmax(1), logits.shape[1]).to(x.dtype).view(copies, len(x), -1).mean(0)


# ---------------------------------------------------------------- the gradient


@kind("no gradient: computed outside of torch", "Athalye et al. 2018")
def _(base: Base) -> nn.Module:
    return before(base, lambda x: torch.from_numpy(x.detach().cpu().numpy().copy()).to(x))


@kind("zero gradient", "Athalye et al. 2018")
def _(base: Base) -> nn.Module:
    return before(base, lambda x: x.detach() + 0 * x)


@kind("gradient of the opposite sign", "")
def _(base: Base) -> nn.Module:
    return before(base, lambda x: 2 * x.detach() - x)


@kind("gradient with random signs", "")
def _(base: Base) -> nn.Module:
    class Signs(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * (2 * torch.randint_like(grad, 2) - 1)

    return before(base, Signs.apply)


@kind("gradient of a random linear map", "")
def _(base: Base) -> nn.Module:
    return Function(lambda x, net, decoy: with_gradient_of(net(x), decoy(x)), base.net, linear(base))


@kind("gradient of a network trained on other labels", "")
def _(base: Base) -> nn.Module:
    return Function(lambda x, net, decoy: with_gradient_of(net(x), decoy(x).roll(3, 1)), base.net, base.other)


@kind("gradient of another network for the same classes", "Papernot et al. 2017")
def _(base: Base) -> nn.Module:
    return Function(lambda x, net, other: with_gradient_of(net(x), other(x)), base.net, base.other)


@kind("gradient through four pixels only", "")
def _(base: Base) -> nn.Module:
    def few(x: Tensor) -> Tensor:
        mask = torch.zeros(base.in_shape, device=x.device)
        mask[:, :2, :2] = 1
        return x.detach() + mask * (x - x.detach())

    return before(base, few)


@kind("gradient of the image mirrored", "")
def _(base: Base) -> nn.Module:
    return before(base, lambda x: with_gradient_of(x, x.flip(2)))


@kind("gradient only through a branch of size 0.01", "Athalye et al. 2018")
def _(base: Base) -> nn.Module:
    return Function(lambda x, net, branch: net(x.detach()) + 0.01 * branch(x), base.net, linear(base, 4))


# ---------------------------------------------------------------- votes


def vote(
    copies: int, decoy: float, share: float = 1.0, *, helpful: bool = False
) -> Callable[[Base], nn.Module]:
    def make(base: Base) -> nn.Module:
        other = base.other if helpful else linear(base)
        return Function(
            lambda x, net, small: votes(base, net, x, copies, share) + decoy * small(x), base.net, other
        )

    return make


kind("vote of 15 copies, zero gradient", "Cohen et al. 2019, without the certificate")(vote(15, 0.0))
kind("vote of 15 copies + 1e-3 of a random decoy")(vote(15, 1e-3))
kind("vote of 15 copies + 1e-2 of a random decoy")(vote(15, 1e-2))
kind("vote of 15 copies + 0.1 of a random decoy")(vote(15, 0.1))
kind("vote of 40 copies in a wider noise + 1e-3 of a decoy")(vote(40, 1e-3, 2.0))
kind("vote of 15 copies + 1e-3 of another network")(vote(15, 1e-3, helpful=True))


@kind("vote of three networks, + 1e-3 of a decoy", "Pang et al. 2019")
def _(base: Base) -> nn.Module:
    def mean(x: Tensor, net: nn.Module, other: nn.Module, decoy: nn.Module) -> Tensor:
        seen = [net, other, copy.deepcopy(net)]
        votes = [(1e4 * one(x + 0.3 * base.eps * k)).softmax(1) for k, one in enumerate(seen)]
        return torch.stack(votes).mean(0).detach() + 1e-3 * decoy(x)

    return Function(mean, base.net, base.other, linear(base))


# ---------------------------------------------------------------- the output


@kind("logits times 10,000", "Carlini & Wagner 2016")
def _(base: Base) -> nn.Module:
    return after(base, lambda z: 1e4 * z)


@kind("distilled at temperature 100", "Papernot et al. 2016")
def _(base: Base) -> nn.Module:
    class Cooled(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z / 100 if self.training else z

    return fit(nn.Sequential(*small_cnn(base, base.in_shape[0]), Scale(100.0), Cooled()), base.data)


class Scale(nn.Module):
    """Times a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, z: Tensor) -> Tensor:
        """Of any shape."""
        return self.factor * z


@kind("probabilities of a saturated softmax", "Carlini & Wagner 2016")
def _(base: Base) -> nn.Module:
    return after(base, lambda z: (10 * z).softmax(1))


@kind("logarithm of probabilities that underflow", "")
def _(base: Base) -> nn.Module:
    return after(base, lambda z: ((10 * z).softmax(1) + 1e-6).log())


@kind("logits on a logarithmic scale", "")
def _(base: Base) -> nn.Module:
    return after(base, lambda z: z.sign() * (1 + 1e6 * z.abs()).log())


@kind("logits so small that the loss underflows", "")
def _(base: Base) -> nn.Module:
    return after(base, lambda z: 1e-9 * z)


@kind("logits plus 100,000, which rounds them", "")
def _(base: Base) -> nn.Module:
    return after(base, lambda z: z + 1e5)


@kind("logits rounded to 1/4, plus 0.0001 of them", "")
def _(base: Base) -> nn.Module:
    return after(base, lambda z: (4 * z).round() / 4 + 1e-4 * z)


@kind("logits clipped", "")
def _(base: Base) -> nn.Module:
    return after(base, lambda z: z.clamp(max=2) + 1e-4 * z)


@kind("logits with ripples", "")
def _(base: Base) -> nn.Module:
    return after(base, lambda z: z + 0.1 * torch.sin(400 * z))


@kind("ripples of the loss along random directions", "")
def _(base: Base) -> nn.Module:
    return Function(
        lambda x, net, waves: net(x) + 0.3 * torch.sin(100 / base.eps * waves(x)), base.net, linear(base, 5)
    )


@kind("a detector sends noisy inputs to a blurred copy", "Carlini & Wagner 2017 (detection)")
def _(base: Base) -> nn.Module:
    def detect(x: Tensor, net: nn.Module) -> Tensor:
        smooth = F.avg_pool2d(x, 3, 1, 1)
        noisy = (x - smooth).abs().mean((1, 2, 3)) > 0.12
        return torch.where(noisy[:, None], net(0.5 * smooth.detach() + 0.5 * x.detach()) + 0 * net(x), net(x))

    return Function(detect, base.net)


@kind("a detector returns the clean class of stored images", "Dubey et al. 2019")
def _(base: Base) -> nn.Module:
    def lookup(x: Tensor, net: nn.Module) -> Tensor:
        coarse = F.avg_pool2d(x.detach(), 2)
        coarse = F.interpolate((coarse * 6).round() / 6, scale_factor=2, mode="nearest")
        return net(coarse) + 1e-3 * net(x)

    return Function(lookup, base.net)
