"""The precision of a training: what "auto" takes, and what bfloat16 costs without hardware for it."""

import time
import warnings
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.modes import model_state_preserved
from opnorm._core.outputs import output_of
from opnorm._core.surrogate import has_bf16
from opnorm._core.training_numbers import Precision

__all__ = ["choose_precision", "examples_for", "seconds_of_a_pass"]

FEW = 16  # points are enough where bfloat16 is emulated


def examples_for(batch: int, device: torch.device) -> int:
    """How many points to measure with: a batch, or a few where bfloat16 is emulated and takes long."""
    return batch if has_bf16(device) else min(batch, FEW)


def choose_precision(model: nn.Module, x: Tensor, y: Tensor, asked: Precision) -> Literal["fp32", "bf16"]:
    """The precision to train in: the one asked for, and of "auto" the one with the faster pass.

    Where "bf16" is asked for and the hardware lacks it, a pass is measured as well, and one warning gives its cost.

    Args:
        model: stays as it was.
        x: pixels (B, ...), as many as :func:`examples_for` says.
        y: labels (B,).
        asked: "fp32", "bf16" or "auto".
    """
    if asked == "fp32" or (asked == "bf16" and has_bf16(x.device)):
        return asked
    full, half = seconds_of_a_pass(model, x, y)
    if asked == "auto":
        return "bf16" if half < full else "fp32"
    if half > full:
        warnings.warn(
            f"precision='bf16': this {x.device.type} has no bfloat16 and emulates it, so that training is slower by a "
            f"factor of about {half / full:.2g}: a pass forward and backward of {len(x)} points takes {half:.3g} s, and "
            f"{full:.3g} s in fp32; precision='auto' takes what is faster",
            stacklevel=4,
        )
    return "bf16"


def seconds_of_a_pass(model: nn.Module, x: Tensor, y: Tensor, turns: int = 2) -> tuple[float, float]:
    """Seconds of a forward and backward pass in fp32 and under bfloat16 autocast; the least of some turns after a first."""
    weights = [p for p in model.parameters() if p.requires_grad]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with model_state_preserved(model, "eval"), torch.enable_grad():
        for weight in weights:
            weight.requires_grad_(True)
        for _ in range(turns + 1):
            for bf16, times in seconds.items():
                times.append(_seconds(model, x, y, weights, bf16=bf16))
    return min(seconds[False][1:]), min(seconds[True][1:])


def _seconds(model: nn.Module, x: Tensor, y: Tensor, weights: Sequence[Tensor], *, bf16: bool) -> float:
    started = time.perf_counter()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        loss = F.cross_entropy(output_of(model, x), y)
    torch.autograd.grad(loss, weights, allow_unused=True)
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - started
