"""Random changes of training images: a whole uint8 batch at once, on its device, without a loop over images.

Each factory returns ``augment(x, generator)``, from uint8 (B, C, H, W) to uint8 of the same shape unless it says otherwise.
Another batch is a DataError, a setting out of range a SpecError. The few random numbers of each image are drawn on the CPU
and then moved, so that one seed gives the same images on every device.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float64, UInt8
from torch import Tensor

from opnorm._core.settings import check_count, check_number, check_range
from opnorm.errors import DataError
from opnorm.spec import factory

__all__ = ["crop", "flip", "random_resized_crop"]

Augmentation: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
"""(uint8 (B, C, H, W), CPU generator) -> uint8 (B, C, H', W')."""

TRIES = 10
"""Boxes drawn for an image until one fits into it."""


@factory("augmentation")
def crop(padding: int = 4) -> Augmentation:
    """Pad with zeros on all sides, then cut out the old size at a random place, for each image.

    Args:
        padding: pixels added on each side, at least 0.
    """
    check_count("padding", padding, 0, unit="pixels")

    def augment(x: Tensor, generator: torch.Generator) -> UInt8[Tensor, "B C H W"]:
        b, _, h, w = _check_batch(x)
        top, left = torch.randint(0, 2 * padding + 1, (2, b), generator=generator).to(x.device)
        padded = F.pad(x, (padding, padding, padding, padding))
        places = padded.unfold(2, h, 1).unfold(3, w, 1)  # (B, C, top, left, H, W): every crop, as a view
        return places[torch.arange(b, device=x.device), :, top, left]

    return augment


@factory("augmentation")
def flip(p: float = 0.5) -> Augmentation:
    """Mirror each image left to right with probability ``p``."""
    check_number("p", p, "a probability in [0, 1]; likely cause: a percentage", least=0, most=1)

    def augment(x: Tensor, generator: torch.Generator) -> UInt8[Tensor, "B C H W"]:
        b, *_ = _check_batch(x)
        chosen = (torch.rand(b, dtype=torch.float32, generator=generator) < p).to(x.device)
        return torch.where(chosen[:, None, None, None], x.flip(-1), x)

    return augment


@factory("augmentation")
def random_resized_crop(
    size: int = 56, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> Augmentation:
    """Cut a random box out of each image and resize it to ``size`` x ``size``, bilinear without antialiasing.

    The box's share of the image's area is uniform in ``scale``, its width / height uniform in the logarithm within
    ``ratio``. Ten are drawn, and the first that fits into the image is taken, else the largest central one with a
    permitted shape, as in torchvision.

    Args:
        size: side of the result, in pixels.
        scale: the smallest and the largest share of the area, in (0, 1].
        ratio: the smallest and the largest width / height.

    Returns:
        A function from uint8 (B, C, H, W) to uint8 (B, C, size, size), values rounded.

    Source: Szegedy et al. 2015, arXiv:1409.4842.
    """
    check_count("size", size, unit="pixels")
    check_range("scale", scale, 1.0)
    check_range("ratio", ratio)

    def augment(x: Tensor, generator: torch.Generator) -> UInt8[Tensor, "B C S S"]:
        _, _, h, w = _check_batch(x)
        top, left, height, width = boxes(len(x), h, w, scale, ratio, generator)
        rows, columns = _lines(top, height, size, h), _lines(left, width, size, w)
        grid = torch.stack(
            [columns[:, None, :].expand(-1, size, -1), rows[:, :, None].expand(-1, -1, size)], -1
        )
        y = F.grid_sample(x.float(), grid.float().to(x.device), padding_mode="border", align_corners=False)
        return y.round_().clamp_(0, 255).to(torch.uint8)

    return augment


def boxes(
    n: int, h: int, w: int, scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw ``n`` boxes in an image of (h, w) pixels: top, left, height, width, whole numbers, each (n,)."""
    u = torch.rand((n, 2 * TRIES + 2), generator=generator, dtype=torch.float64)
    area = (scale[0] + (scale[1] - scale[0]) * u[:, :TRIES]) * (h * w)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = torch.exp(low + (high - low) * u[:, TRIES : 2 * TRIES])
    heights, widths = (area / shape).sqrt().round(), (area * shape).sqrt().round()
    fits = (heights >= 1) & (heights <= h) & (widths >= 1) & (widths <= w)
    chosen = fits.to(torch.uint8).argmax(1, keepdim=True)  # the first that fits
    # the largest box with a permitted shape
    center_w = min(w, max(1, round(h * ratio[1]))) if w / h > ratio[1] else w
    center_h = min(h, max(1, round(w / ratio[0]))) if w / h < ratio[0] else h
    fitting = fits.any(1)
    height = torch.where(fitting, heights.gather(1, chosen)[:, 0], float(center_h))
    width = torch.where(fitting, widths.gather(1, chosen)[:, 0], float(center_w))
    top = torch.where(fitting, (u[:, -2] * (h - height + 1)).floor(), ((h - height) / 2).floor())
    left = torch.where(fitting, (u[:, -1] * (w - width + 1)).floor(), ((w - width) / 2).floor())
    return top, left, height, width


def _lines(start: Tensor, length: Tensor, size: int, total: int) -> Float64[Tensor, "n size"]:
    """The places of ``size`` new lines among ``total`` old ones, in grid_sample's units: -1 to 1, edge to edge.

    All are inside the box, so no pixel outside of it contributes.
    """
    at = (torch.arange(size, dtype=torch.float64) + 0.5) * length[:, None] / size - 0.5
    at = at.clamp(min=0).minimum(length[:, None] - 1) + start[:, None]
    return (2 * at + 1) / total - 1


def _check_batch(x: Tensor) -> tuple[int, int, int, int]:
    if x.dtype != torch.uint8 or x.dim() != 4:
        cause = (
            "Likely cause: augmenting after scaling to [0, 1]; augment first"
            if x.dtype != torch.uint8
            else "Vectors, sequences and volumes need an augmentation of their own"
        )
        raise DataError(
            f"the batch to augment is {x.dtype} {tuple(x.shape)}; expected torch.uint8 (B, C, H, W). {cause}"
        )
    b, c, h, w = x.shape
    return b, c, h, w
