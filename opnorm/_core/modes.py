"""Contexts that use a model in a mode and then restore its modes, gradients, statistics and random numbers.

And torch's own global modes, which must not change a result: :func:`in_default_modes` decorates public functions.
"""

import copy
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from opnorm._core.argument_checks import check_module
from opnorm._core.settings import Mode
from opnorm.errors import ModelError

__all__ = ["Mode", "default_modes", "evaluating", "in_default_modes", "model_state_preserved", "ordinary"]

AUTOCAST = ("cpu", "cuda", "mps", "xpu")
F = TypeVar("F", bound=Callable[..., Any])
_OWNER: dict[int, int] = {}
"""The thread that uses a module, by the module's id; changed under ``_FREE``."""
_FREE = threading.Condition()


# ---------------------------------------------------------------- torch's modes


@contextmanager
def default_modes(*, keep_autocast: bool = False) -> Iterator[None]:
    """Without the caller's inference mode, default device, anomaly detection and, if not kept, autocast.

    And without torch's fast path of transformer encoders, which without gradients gives other outputs than with them where
    positions are masked, and nested tensors in between.

    The default type stays: tensors of opnorm are made with a type of their own.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device in () if keep_autocast else AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.is_anomaly_enabled():  # a NaN gradient is reported, not raised
            stack.enter_context(torch.autograd.set_detect_anomaly(False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.backends.mha.get_fastpath_enabled():
            torch.backends.mha.set_fastpath_enabled(False)
            stack.callback(torch.backends.mha.set_fastpath_enabled, True)
        yield


def in_default_modes(function: F) -> F:
    """Decorate a public function: it runs in :func:`default_modes`, with arguments that are :func:`ordinary`."""

    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        with default_modes():
            return function(*ordinary(args), **ordinary(kwargs))

    return cast(F, inner)


def ordinary(value: Any) -> Any:
    """The value; of a tensor or a model made in inference mode a copy, which autograd takes; inside containers, too."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, nn.Module):
        tensors = [t for t in (*value.parameters(), *value.buffers()) if not is_lazy(t)]
        return copy.deepcopy(value) if any(t.is_inference() for t in tensors) else value
    # not torch's tree_map: it takes longer than the norm of a small kernel
    if isinstance(value, dict):
        items = {key: ordinary(item) for key, item in value.items()}
        if any(item is not value[key] for key, item in items.items()):
            value = copy.copy(value)  # keeps the type, such as OrderedDict
            value.update(items)
        return value
    if type(value) in (list, tuple):
        return type(value)(map(ordinary, value))
    named = isinstance(value, tuple) and hasattr(value, "_make")
    return value._make(map(ordinary, value)) if named else value


# ---------------------------------------------------------------- a model's mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode and without gradients; afterwards every module is in the mode it was in.

    For one thread at a time, as :func:`model_state_preserved`.
    """
    with _one_thread(model), _in_mode(model, "eval"), torch.no_grad():
        yield model


@contextmanager
def model_state_preserved(model: nn.Module, mode: Mode = "eval") -> Iterator[nn.Module]:
    """A model for an attack: weights take no gradients inside, and the model is unchanged afterwards.

    Restored on exit, also after an error: the mode of every module, ``requires_grad`` of every parameter, the
    gradients accumulated so far, the buffers (batch-norm statistics move in train mode) and the global random state
    (dropout draws from it in train mode).

    One thread at a time uses a module inside: another waits, also where two models share one. Different models are used
    at the same time, but torch's random state is one for all threads.

    Args:
        model: any module.
        mode: of the model inside; one of ``eval``, ``train``, ``as is``.

    Raises:
        ModelError: the mode has another name.
    """
    with _one_thread(model), _preserved(model, mode):
        yield model


@contextmanager
def _one_thread(model: nn.Module) -> Iterator[None]:
    """Wait until no other thread uses a module of the model; then all are this thread's."""
    check_module(model)
    modules, thread = list(model.modules()), threading.get_ident()
    with _FREE:
        _FREE.wait_for(lambda: all(_OWNER.get(id(m), thread) == thread for m in modules))
        taken = {id(m) for m in modules} - _OWNER.keys()  # not those of a context around this one
        _OWNER.update(dict.fromkeys(taken, thread))
    try:
        yield
    finally:
        with _FREE:
            for key in taken:
                del _OWNER[key]
            _FREE.notify_all()


@contextmanager
def _preserved(model: nn.Module, mode: Mode) -> Iterator[None]:
    # a forward inside may be the first one, which gives lazy layers their weights
    frozen = [p for p in model.parameters() if p.requires_grad and not is_lazy(p)]
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
            yield
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
