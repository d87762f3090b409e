"""Contexts that use a model in a mode and then restore its modes, gradients, statistics and random numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import nn

from opnorm.errors import ModelError

__all__ = ["Mode", "evaluating", "model_state_preserved"]

Mode = Literal["eval", "train", "as is"]
"""The mode of a model inside such a context; ``as is`` leaves every module in its own."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode and without gradients; afterwards every module is in the mode it was in."""
    with _in_mode(model, "eval"), torch.no_grad():
        yield model


@contextmanager
def model_state_preserved(model: nn.Module, mode: Mode = "eval") -> Iterator[nn.Module]:
    """A model for an attack: weights take no gradients inside, and the model is unchanged afterwards.

    Restored on exit, also after an error: the mode of every module, ``requires_grad`` of every parameter, the
    gradients accumulated so far, the buffers (batch-norm statistics move in train mode) and the global random state
    (dropout draws from it in train mode).

    Args:
        model: any module.
        mode: of the model inside; one of ``eval``, ``train``, ``as is``.

    Raises:
        ModelError: the mode has another name.
    """
    frozen = [p for p in model.parameters() if p.requires_grad]
    moves = mode == "train" or (mode == "as is" and any(m.training for m in model.modules()))
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in (model.modules() if moves else ())
        for name, buffer in module.named_buffers(recurse=False)
    ]
    gpus = {t.device.index for t in (*frozen, *model.buffers()) if t.device.type == "cuda"}
    with _in_mode(model, mode), torch.random.fork_rng(gpus):  # also in eval mode: a defence may draw there
        for p in frozen:
            p.requires_grad_(False)
        try:
            yield model
        finally:
            for p in frozen:
                p.requires_grad_(True)
            with torch.no_grad():
                for module, name, buffer, before in buffers:
                    buffer.copy_(before)
                    setattr(module, name, buffer)  # a module may have put another tensor in its place


@contextmanager
def _in_mode(model: nn.Module, mode: Mode) -> Iterator[None]:
    if mode not in get_args(Mode):
        raise ModelError(f"unknown mode {mode!r}; expected one of {', '.join(get_args(Mode))}")
    before = [(m, m.training) for m in model.modules()]
    if mode != "as is":
        model.train(mode == "train")
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
