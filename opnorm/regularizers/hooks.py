"""The interface of a regularizer: a few functions that any training loop can call."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.argument_checks import named
from opnorm._core.modes import in_default_modes
from opnorm.errors import ModelError

__all__ = ["Hooks", "Regularizer", "bound", "chain"]


def _no_penalty(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return x.new_zeros(())


def _nothing(*_: float) -> None:
    return None


class Hooks(NamedTuple):
    """A regularizer bound to a model: functions that do nothing unless the regularizer fills them, so all may be called.

        hooks = norm_decay(p=inf, beta=1e-3)(model, x)        # once, with an example batch
        loss = loss + hooks.penalty(model, x, y)              # each step
        loss.backward(); hooks.edit_grads(); optimizer.step(); hooks.after_step(lr)

    Attributes:
        penalty: (model, x, y) -> scalar, added to the loss.
        edit_grads: () -> None, after the backward pass.
        after_step: (learning rate) -> None, after the optimizer's step.
        after_epoch: () -> None.
        state: the regularizer's tensors (momenta, warm starts), changed in place only, so that copying into them
            restores it.
        constrain: () -> None, brings weights that were set otherwise, such as an average, under the constraint; what
            keeps the weights within bounds by ``after_step`` or ``after_epoch`` fills it.
    """

    penalty: Callable[[nn.Module, Tensor, Tensor], Tensor] = _no_penalty
    edit_grads: Callable[[], None] = _nothing
    after_step: Callable[[float], None] = _nothing
    after_epoch: Callable[[], None] = _nothing
    state: dict[str, Tensor] = {}  # noqa: RUF012 - the default is never written to
    constrain: Callable[[], None] = _nothing


def bound(hooks: Hooks, parameters: Iterable[Tensor], method: str) -> Hooks:
    """The same hooks, in torch's default modes: autocast would compute a penalty or a constraint in 16 bits.

    The penalty raises ModelError for a model without these parameters, such as a copy of theirs.
    """
    own = {id(p) for p in parameters}

    def penalty(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if not own <= {id(p) for p in model.parameters()}:
            raise ModelError(
                f"{method} was bound to other weights than this model's, so that it would change nothing here; a copy? "
                f"Bind it to the model that is trained: hooks = {method}(...)(model, x)"
            )
        return hooks.penalty(model, x, y)

    others = ("edit_grads", "after_step", "after_epoch", "constrain")
    return hooks._replace(
        penalty=in_default_modes(penalty), **{name: in_default_modes(getattr(hooks, name)) for name in others}
    )


Regularizer = Callable[[nn.Module, Tensor], Hooks]
"""(model, example batch with pixels in [0, 1]) -> Hooks."""


def chain(all_hooks: Sequence[Hooks]) -> Hooks:
    """Several regularizers as one, applied in the order given; penalties add up."""
    if not isinstance(all_hooks, Sequence) or isinstance(all_hooks, Hooks):
        raise ModelError(f"{named(all_hooks)}: expected a list of Hooks")
    for hooks in all_hooks:
        if not isinstance(hooks, Hooks):
            raise ModelError(
                f"a regularizer gave {named(hooks)}; expected Hooks, as norm_decay(p=1)(model, x) does: it is bound once"
            )

        for name, value in hooks._asdict().items():
            if not (isinstance(value, dict) if name == "state" else callable(value)):
                expected = "a dict of tensors" if name == "state" else "a function"
                raise ModelError(f"a regularizer gave Hooks({name}={named(value)}); expected {expected}")

    def penalty(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        values = []
        for i, hooks in enumerate(all_hooks):
            value = hooks.penalty(model, x, y)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ModelError(
                    f"the penalty of regularizer {i + 1} is {named(value)}; expected a scalar tensor, differentiable in the "
                    "weights: without item() or float(), and summed up; x.new_zeros(()) for none"
                )
            values.append(value.reshape(()))
        return torch.stack(values or [x.new_zeros(())]).sum()

    def each(name: str) -> Callable[..., None]:
        def call(*args: float) -> None:
            for hooks in all_hooks:
                getattr(hooks, name)(*args)

        return call

    state = {f"{i}.{k}": v for i, hooks in enumerate(all_hooks) for k, v in hooks.state.items()}
    names = ("edit_grads", "after_step", "after_epoch", "constrain")
    return Hooks(penalty, state=state, **{name: each(name) for name in names})
