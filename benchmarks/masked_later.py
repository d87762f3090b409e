"""Networks whose gradients are of no use to an attack: kinds that were planted after the first indicators were chosen."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from masked_networks import KINDS, Base, Function, after, before, jpeg, kind, small_cnn, with_gradient_of
from masked_outputs import linear, votes
from networks import dataset, fit, test_points
from torch import Tensor, nn

from opnorm.data.dataset import as_pixels

__all__ = ["KINDS"]


# ---------------------------------------------------------------- the input


def median(x: Tensor) -> Tensor:
    """Of windows of 3x3, inside of the graph: its gradient reaches one pixel of nine."""
    return F.unfold(x.flatten(0, 1)[:, None], 3, padding=1).median(1).values.view_as(x)


@kind("inputs rounded to 6 levels, straight-through gradient 50 times as large", "Bengio et al. 2013")
def _(base: Base) -> nn.Module:
    return before(base, lambda x: with_gradient_of((x * 5).round() / 5, 50 * x))


@kind("resized at random in each pass", "Xie et al. 2018")
def _(base: Base) -> nn.Module:
    def resized(x: Tensor) -> Tensor:
        size = int(torch.randint(x.shape[2] - 2, x.shape[2] + 1, ()))
        small = F.interpolate(x, size=(size, size), mode="bilinear")
        return F.interpolate(small, size=x.shape[2:], mode="bilinear")

    return before(base, resized)


@kind("JPEG, straight-through gradient", "Shin & Song 2017")
def _(base: Base) -> nn.Module:
    return before(base, lambda x: with_gradient_of(jpeg(x, 0.25), x))


@kind("median filter inside of the graph, three times", "Xu et al. 2018")
def _(base: Base) -> nn.Module:
    return before(base, lambda x: median(median(median(x))))


@kind("inputs on steps: sigmoid(1000 (x - c)) at 5 places", "Athalye et al. 2018")
def _(base: Base) -> nn.Module:
    places = torch.linspace(0.1, 0.9, 5).view(5, 1, 1, 1, 1)
    return before(base, lambda x: torch.sigmoid(1000 * (x - places.to(x))).mean(0))


def smooth_step(x: Tensor) -> Tensor:
    return x * x * (3 - 2 * x)


@kind("a tone curve that is flat at black and white", "")
def _(base: Base) -> nn.Module:
    return before(base, lambda x: smooth_step(smooth_step(smooth_step(x))))


@kind(
    "patches replaced by the nearest of 64 stored ones, straight-through gradient",
    "Moosavi-Dezfooli et al. 2018",
)
def _(base: Base) -> nn.Module:
    def patches(x: Tensor) -> Tensor:
        return F.unfold(x, 2, stride=2).mT

    images = as_pixels(dataset(base.data).train.images[:64])
    stored = patches(images).flatten(0, 1)
    stored = stored[torch.randperm(len(stored), generator=torch.Generator().manual_seed(5))[:64]]

    def nearest(x: Tensor) -> Tensor:
        mine = patches(x.detach())
        chosen = stored[torch.cdist(mine, stored[None].expand(len(x), -1, -1)).argmin(2)]
        return with_gradient_of(F.fold(chosen.mT, x.shape[2:], 2, stride=2), x)

    return before(base, nearest)


@kind("noise that is drawn from a hash of the image", "")
def _(base: Base) -> nn.Module:
    def noise(x: Tensor) -> Tensor:
        number = 1e4 * torch.sin(1e3 * x.detach() + 7e3 * x.detach().flatten(1).sum(1).view(-1, 1, 1, 1))
        return x + 2 * base.eps * (number - number.floor() - 0.5)

    return before(base, noise)


@kind("small wavelet coefficients set to zero", "Prakash et al. 2018")
def _(base: Base) -> nn.Module:
    haar = 0.5 * torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1.0]]).view(
        4, 1, 2, 2
    )

    def denoised(x: Tensor) -> Tensor:
        c = F.conv2d(x.flatten(0, 1)[:, None], haar, stride=2)
        kept = torch.cat([c[:, :1], c[:, 1:] * (c[:, 1:].abs() > 2 * base.eps)], 1)
        return F.conv_transpose2d(kept, haar, stride=2).view_as(x)

    return before(base, denoised)


@kind("sawtooth: falls between jumps upward", "")
def _(base: Base) -> nn.Module:
    width = base.eps / 3

    def teeth(x: Tensor) -> Tensor:
        return 2 * width * (x.detach() / width).floor() + width - x

    return before(base, teeth)


@kind("the darkest of each 2x2 window, detached where it is not the pixel itself", "")
def _(base: Base) -> nn.Module:
    def darkest(x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 1, 0, 1), value=1.0)
        least = -F.max_pool2d(-padded, 2, 1)
        return torch.where(least == x, x, least.detach())

    return before(base, darkest)


# ---------------------------------------------------------------- the gradient


def stored_images(base: Base) -> Tensor:
    return test_points(base.data)[0].flatten(1)


@kind("gradient of a random map, but at the stored images", "")
def _(base: Base) -> nn.Module:
    images = stored_images(base)

    def near(x: Tensor, net: nn.Module, decoy: nn.Module) -> Tensor:
        far = torch.cat([(images - row).abs().amax(1).amin()[None] for row in x.detach().flatten(1)])
        z = net(x)
        return torch.where(far[:, None] < base.eps / 4, z, with_gradient_of(z, decoy(x)))

    return Function(near, base.net, linear(base))


@kind("gradient zeroed at the half of the pixels where it is largest", "")
def _(base: Base) -> nn.Module:
    class Smaller(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            size = grad.abs().flatten(1)
            return grad * (size <= size.median(1).values[:, None]).view_as(grad)

    return before(base, Smaller.apply)


@kind("two equal branches, one of them detached", "Athalye et al. 2018")
def _(base: Base) -> nn.Module:
    return Function(lambda x, net, other: net(x.detach()) + other(x), base.net, base.other)


@kind("gradient noise as large as the gradient, drawn anew", "")
def _(base: Base) -> nn.Module:
    class Noisy(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad + 3 * grad.std() * torch.randn_like(grad)

    return before(base, Noisy.apply)


# ---------------------------------------------------------------- the layers


class Steep(nn.Module):
    """tanh(40 x): its derivative is right, and zero nearly everywhere; tanh(x) in training."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return torch.tanh(4 * x if self.training else 40 * x)


@kind("activations so steep that they saturate", "Galloway et al. 2018")
def _(base: Base) -> nn.Module:
    return fit(small_cnn(base, base.in_shape[0], Steep), base.data)


class Teeth(nn.Module):
    """ReLU rounded up to multiples of 1/4, less a tenth of what is left: its slope is -0.1."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        z = x.relu()
        return (
            z
            if self.training
            else (4 * z.detach()).ceil() / 4 - 0.1 * (z - z.detach() + (4 * z.detach()).frac() / 4)
        )


@kind("activations that fall between jumps upward", "")
def _(base: Base) -> nn.Module:
    return fit(small_cnn(base, base.in_shape[0], Teeth), base.data)


# ---------------------------------------------------------------- votes and outputs


@functools.cache
def training_images(name: str) -> tuple[Tensor, Tensor]:
    images, labels = (t[:1000] for t in dataset(name).train)
    return as_pixels(images).flatten(1), F.one_hot(labels, 10).float()


@kind("votes of the 7 nearest training images, + 1e-3 of a decoy", "Papernot & McDaniel 2018")
def _(base: Base) -> nn.Module:
    images, labels = training_images(base.data)

    def nearest(x: Tensor, decoy: nn.Module) -> Tensor:
        rows = torch.cdist(x.detach().flatten(1), images).topk(7, largest=False).indices
        return labels[rows].mean(1) + 1e-3 * decoy(x)

    return Function(nearest, linear(base))


@kind(
    "mean of saturated probabilities of 15 copies, + 1e-3 of a decoy",
    "Cohen et al. 2019, without the certificate",
)
def _(base: Base) -> nn.Module:
    noise = (2 * torch.rand(15, 1, *base.in_shape, generator=torch.Generator().manual_seed(1)) - 1) * base.eps

    def mean(x: Tensor, net: nn.Module, decoy: nn.Module) -> Tensor:
        many = (1e3 * net((x + noise).flatten(0, 1))).softmax(1)
        return many.view(15, len(x), -1).mean(0) + 1e-3 * decoy(x)

    return Function(mean, base.net, linear(base))


@kind("vote of 15 copies + a decoy with ripples", "")
def _(base: Base) -> nn.Module:
    def rippled(x: Tensor, net: nn.Module, decoy: nn.Module) -> Tensor:
        return votes(base, net, x, 15) + 1e-3 * torch.sin(1e3 * decoy(x))

    return Function(rippled, base.net, linear(base))


@kind("vote of 15 copies + a tilted decoy that no small step contradicts", "")
def _(base: Base) -> nn.Module:
    def tilted(x: Tensor, net: nn.Module, decoy: nn.Module) -> Tensor:
        return votes(base, net, x, 15) + 0.3 * torch.tanh(decoy(x))

    return Function(tilted, base.net, linear(base))


@kind("temperature 10,000: probabilities saturated in float32, as logits", "Carlini & Wagner 2016")
def _(base: Base) -> nn.Module:
    return after(base, lambda z: 4 * (1e4 * z).softmax(1) - 2)


@kind("each logit through its own saturated sigmoid", "")
def _(base: Base) -> nn.Module:
    return after(base, lambda z: torch.sigmoid(3 * (z - z.detach().amax(1, keepdim=True) / 2)))


@kind("ranks of the logits, + 1e-3 of them", "")
def _(base: Base) -> nn.Module:
    return after(base, lambda z: z.argsort(1).argsort(1).to(z.dtype) + 1e-3 * z)


@kind("logits computed in float16 and scaled to its end", "")
def _(base: Base) -> nn.Module:
    return after(base, lambda z: with_gradient_of((z.half() / 64).half().float() * 64, z))


@kind("a code of 20 bits, each of them saturated", "Verma & Swami 2019")
def _(base: Base) -> nn.Module:
    code = 2.0 * torch.randint(0, 2, (20, 10), generator=torch.Generator().manual_seed(6)) - 1

    def decoded(z: Tensor) -> Tensor:
        z = z - z.mean(1, keepdim=True)
        return torch.tanh(20 * z @ code.T) @ code

    return after(base, decoded)
