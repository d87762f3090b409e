"""Attacks of other packages used as opnorm's own, and opnorm's attacks used as theirs."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opnorm._core.attack_settings import check_settings
from opnorm._core.modes import Mode, in_default_modes, model_state_preserved
from opnorm._core.outputs import one_tensor
from opnorm.attacks._checks import check_inputs
from opnorm.attacks._pgd import Attack
from opnorm.attacks.minimum_norm import distances
from opnorm.attacks.projections import ball
from opnorm.errors import AttackError

__all__ = ["as_foolbox", "as_torchattacks", "external"]


class _Logits(nn.Module):
    """A model of any kind of output, as one that returns a tensor."""

    def __init__(self, model: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return one_tensor(self.model(x))


def external(
    function: Callable[[nn.Module, Tensor, Tensor], Tensor],
    norm: float,
    eps: float,
    *,
    mode: Mode = "eval",
    seed: int = 0,
) -> Attack:
    """Any function (model, x, y) -> perturbed x as an attack: for evaluations, objectives and the smallest radius.

    The function gets a model that returns logits as a tensor, whatever the model itself returns. What it returns is
    projected onto the ball cut with [0, 1], since other packages keep to it up to rounding only. torch's random state begins
    at ``seed`` and is restored afterwards; other generators are the function's own affair.

        external(lambda model, x, y: torchattacks.PGD(model, eps=8/255)(x, y), norm=inf, eps=8/255)

    Args:
        function: gives points of the shape of x, or a tuple or object with one tensor.
        norm: of the ball, from 1 on.
        eps: the radius that the function keeps to, in pixel values of [0, 1].
        mode: of the model inside.
        seed: of torch's random numbers.

    Raises:
        AttackError: an invalid setting or input; or, when it is called, points that are NaN, of another shape, or further
            from x than rounding explains.
    """
    if not callable(function):
        raise AttackError(f"function={function!r:.60}: expected a function (model, x, y) -> perturbed x")
    return _External(function, norm, eps, mode=mode, seed=seed)


@dataclass(frozen=True, eq=False)
class _External:
    """The attack that :func:`external` gives."""

    function: Callable[[nn.Module, Tensor, Tensor], Tensor]
    norm: float
    eps: float
    _: KW_ONLY
    mode: Mode = "eval"
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(any_norm=True, norm=self.norm, eps=self.eps, mode=self.mode, seed=self.seed)

    @in_default_modes
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int | None = None) -> Tensor:
        """Attack every point of the batch."""
        check_inputs(x, y)
        x, y = x.detach(), y.detach()
        with model_state_preserved(model, self.mode), torch.enable_grad():
            torch.manual_seed(self.seed if seed is None else seed)
            wrapped = _Logits(model)
            wrapped.training = model.training  # the modes of the parts stay
            points = one_tensor(self.function(wrapped, x.clone(), y.clone())).detach()
        self._check(x, points)
        return ball(x, self.eps, self.norm).project(points.to(x.dtype))

    def _check(self, x: Tensor, points: Tensor) -> None:
        """AttackError unless the points are in the ball and the box, up to the rounding of x + δ in each coordinate."""
        name = getattr(self.function, "__name__", type(self.function).__name__)
        if points.shape != x.shape:
            raise AttackError(
                f"{name} gave points of shape {tuple(points.shape)} for {tuple(x.shape)}; expected one for each input"
            )
        slack = 4 * torch.finfo(x.dtype).eps
        across = slack * (1.0 if self.norm == torch.inf else x[0].numel() ** (1 / self.norm))
        far = distances(x, points, self.norm)
        outside = ~(far <= self.eps * (1 + slack) + across)
        outside |= ~((points >= -slack) & (points <= 1 + slack)).flatten(1).all(1)
        if outside.any():
            raise AttackError(
                f"{name} left the ball of radius {self.eps:.6g} in norm {self.norm:g}, or [0, 1], at {int(outside.sum())} "
                f"of {len(x)} points; the furthest is at {float(far.max()):.6g}, values from {float(points.min()):.4g} to "
                f"{float(points.max()):.4g}. Does it use the same norm and eps, and pixels in [0, 1]?"
            )


def as_torchattacks(model: nn.Module, attack: Attack) -> Any:
    """An attack of opnorm as a ``torchattacks.Attack``: ``as_torchattacks(model, pgd(eps=8/255))(images, labels)``.

    Raises:
        ImportError: torchattacks is not installed.
    """
    import torchattacks

    class Wrapped(torchattacks.attack.Attack):
        def __init__(self) -> None:
            super().__init__(type(attack).__name__, model)

        def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
            return attack(self.model, inputs.to(self.device), labels.to(self.device))

    return Wrapped()


def as_foolbox(make: Callable[[float], Attack], norm: float) -> Any:
    """Attacks of opnorm as a foolbox attack: ``as_foolbox(lambda eps: pgd(eps=eps), inf)(fmodel, x, y, epsilons=[0.1])``.

    Foolbox's model is called with its preprocessing; its bounds have to be (0, 1), and the criterion misclassification.

    Args:
        make: from a radius to an attack of this norm.
        norm: 1, 2 or inf.

    Raises:
        ImportError: foolbox is not installed.
        AttackError: another norm; or, when it is called, other bounds or another criterion.
    """
    import foolbox

    check_settings(norm=norm)
    measure = foolbox.distances.LpDistance(norm)

    class Wrapped(foolbox.attacks.base.FixedEpsilonAttack):
        distance = measure

        def run(self, model: Any, inputs: Any, criterion: Any, *, epsilon: float, **_: Any) -> Any:
            labels = getattr(criterion, "labels", criterion)
            if tuple(model.bounds) != (0, 1):
                raise AttackError(f"the foolbox model has bounds {tuple(model.bounds)}; expected (0, 1)")
            if isinstance(criterion, foolbox.criteria.Criterion) and not isinstance(
                criterion, foolbox.criteria.Misclassification
            ):
                raise AttackError(f"the criterion is {criterion!r}; expected labels, or Misclassification")
            x, y = (getattr(value, "raw", value) for value in (inputs, labels))
            points = make(epsilon)(_Logits(model), x, y)
            return points if x is inputs else type(inputs)(points)

    return Wrapped()
