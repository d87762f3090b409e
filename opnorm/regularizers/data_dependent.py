"""Norms of the network's Jacobian at the training points as penalties (Roth, Kilcher & Hofmann 2020).

With at most 2 ``steps`` logits the Jacobians are made explicit, by a backward pass a logit, which is faster than ``steps``
iterations; u and v are then exact, but for the NP-hard norms (2→1, ∞→1, ∞→2), which get 30 iterations from one start. With
more logits they come from ``steps`` iterations from a random start, new for each point and each step: batches are drawn
again, so the last step's vectors belong to other images. The products J v in the iterations are differences of logits over
a length of about 1e-3 (in float32); uᵀ J v itself is exact, so still a true lower bound. One iteration costs a forward
and a backward pass to the inputs, as a PGD step does.

Batch norm in train mode would couple the points, and the paper says nothing of it. Here it normalizes by the statistics
of the clean batch, constant in the input but not in the weights; with running statistics instead, which lag behind,
training converges to weights that behave differently in eval mode. Running statistics do not change, and dropout is off.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from opnorm._core.layers import check_initialized
from opnorm._core.lp import conjugate, dual, lp_norm, per_row, power_iteration, power_of_two, random_start
from opnorm._core.settings import check_choice, check_count, check_number
from opnorm.errors import ModelError
from opnorm.jacobian import Jacobian, Matrices, linearized
from opnorm.regularizers.batch_statistics import point_by_point
from opnorm.regularizers.hooks import Hooks, Regularizer
from opnorm.spec import factory

__all__ = ["dd_onr", "dd_snr"]

EXPLICIT_STEPS = 30  # iterations on explicit Jacobians, where they are cheap


@factory("regularizer")
def dd_snr(lam: float = 1e-2, form: str = "difference", eps: float = 0.1, steps: int = 10) -> Regularizer:
    """Data-dependent spectral norm regularization: (λ̃ / 2) E[σ(J(x))²], J the Jacobian of the logits.

    u and v, the first singular vectors at each point, are constants; at the maximum this is the gradient of σ².

    Args:
        lam: λ̃, the weight of σ² whatever the form.
        form: "uJv": (λ̃ / 2) E[(uᵀ J v)²]; or "difference": (λ̃ / 2ε²) E‖f(x + εv) - f(x)‖_2², which is Roth's
            (λ/2) E‖f(x + εv) - f(x)‖_2² with λ̃ = λε², and which they found the more stable. The two are equal if x + εv is
            in the linear region of x.
        eps: ε, ℓ2 length in pixel values of [0, 1]; used by "difference" alone.
        steps: power iterations.

    Source: Roth, Kilcher & Hofmann 2020, Eqs. 6 and 7 and the paragraph after them.
    """
    check_choice("form", form, ("difference", "uJv"))
    check_number("eps", eps, "a length above 0 in pixel values of [0, 1], such as 0.1", above=0)
    return _regularizer("dd_snr", lam, 2, 2, steps=steps, power=2, eps=eps if form == "difference" else 0.0)


@factory("regularizer")
def dd_onr(lam: float = 1e-2, p: float = 2, q: float = 2, steps: int = 10, power: float = 1) -> Regularizer:
    """Data-dependent operator norm regularization: λ̃ E[‖J(x)‖_{p→q}^r / r], J the Jacobian of the logits.

    As uᵀ J v, with ‖v‖_p = 1, ‖u‖_{q*} = 1 and both constant; at the maximum this is the gradient of the norm.

    Args:
        lam: λ̃.
        p: 1, 2 or inf, of the input.
        q: 1, 2 or inf, of the logits.
        steps: power iterations.
        power: r, at least 1; Roth's remark takes r = q.

    Source: Roth, Kilcher & Hofmann 2020, Eqs. 12 and 13 and the paragraph after them.
    """
    check_choice("p", p, (1, 2, math.inf))
    check_choice("q", q, (1, 2, math.inf))
    return _regularizer("dd_onr", lam, p, q, steps=steps, power=power, eps=0.0)


def _regularizer(
    method: str, lam: float, p: float, q: float, *, steps: int, power: float, eps: float
) -> Regularizer:
    check_number("lam", lam, "a strength of at least 0", least=0)
    check_count("steps", steps)
    check_number("power", power, "an exponent of at least 1", least=1)

    def bind(model: nn.Module, example: Tensor) -> Hooks:
        check_initialized(model, method)
        with linearized(model, example[:1]) as J:  # errors come before training
            if J.outputs.ndim != 2:
                raise ModelError(
                    f"{method}: the model returns shape {tuple(J.outputs.shape)}; expected logits (B, classes)"
                )

        def penalty(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            seed = int(torch.randint(2**62, ()))  # from the run's own random state, as the attacks' starts
            with point_by_point(model, x) as f:
                inputs = x.detach().clone().requires_grad_()
                J = Jacobian(inputs, f(inputs))
                u, v = _maximizer(f, J, random_start(x, p, seed), p, q, steps)
                if eps:
                    slope = lp_norm(f(x.detach() + eps * v) - J.outputs, 2) / eps
                else:
                    slope = (J.vjp(u, create_graph=True) * v).flatten(1).sum(1)
            return lam / power * slope.pow(power).mean()

        return Hooks(penalty=penalty)

    return bind


def _maximizer(
    f: Callable[[Tensor], Tensor], J: Jacobian, v: Tensor, p: float, q: float, steps: int
) -> tuple[Tensor, Tensor]:
    """The u (B, K) and v (B, *in) with uᵀ J v as large as was found."""
    logits = J.outputs.detach()
    if logits.shape[1] <= 2 * steps:
        basis = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
        A = torch.stack([(J.T @ e.expand_as(logits)).flatten(1) for e in basis], 1)
        with torch.no_grad():
            u, found = _of_matrices(A, v.flatten(1), p, q)
            return u, found.view_as(v)
    for _ in range(steps):
        u = dual(_difference(f, J.inputs.detach(), v, logits), q)
        v = dual(J.T @ u, conjugate(p), v)
    return u, v


@torch.no_grad()
def _difference(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, logits: Tensor) -> Tensor:
    """J v up to a factor above 0, by a forward pass: f(x + hv) - f(x), ‖hv‖_2 large enough for rounding to be small."""
    h = 4 * math.sqrt(torch.finfo(x.dtype).eps)
    return f(x + h * dual(v, 2)) - logits


def _of_matrices(A: Tensor, v: Tensor, p: float, q: float) -> tuple[Tensor, Tensor]:
    """The exact maximizer for A (B, K, n), on the side of the start v; that of an iteration where it is NP-hard."""
    J, each = Matrices(A), torch.arange(len(A), device=A.device)
    if p == q == 2:
        unit = A / per_row(power_of_two(lp_norm(A, math.inf)), A)  # so that no square leaves the range
        # a diverged network's NaN are in the loss anyway
        gram = (unit @ unit.mT).double().nan_to_num(0, 0, 0)
        u = torch.linalg.eigh(gram).eigenvectors[:, :, -1].to(A.dtype)
        side = torch.where((u * (J @ v)).sum(1) < 0, -1.0, 1.0).to(A.dtype)
        u = u * side[:, None]
        return u, dual(J.T @ u, 2, v)
    if p == 1:
        at = lp_norm(A, q, 1).argmax(1)
        return dual(A[each, :, at], q), torch.zeros_like(v).scatter(1, at[:, None], 1)
    if q == math.inf:
        at = lp_norm(A, conjugate(p), 2).argmax(1)
        u = A.new_zeros(A.shape[:2]).scatter(1, at[:, None], 1)
        return u, dual(A[each, at], conjugate(p), v)
    found = power_iteration(J, v, p, q, steps=EXPLICIT_STEPS)
    return found.u, found.v
