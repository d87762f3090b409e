"""Norms of the network's Jacobian at the training points as penalties (Roth, Kilcher & Hofmann 2020).

As published, u and v come from ``steps`` iterations of Eq. 11 or 12 from a random start, new for each point and each step:
batches are drawn again, so the last step's vectors belong to other images. The products J v in the iterations are
differences of logits over a length of about 1e-3 (in float32); uᵀ J v itself is exact, so still a true lower bound. One
iteration costs a forward and a backward pass to the inputs, as a PGD step does. With at most 2 ``steps`` logits, unless
exact=False or α is finite, the Jacobians are made explicit instead, by a backward pass a logit, which is faster; u and v are
then exact, but for the norms without a closed form (p = q = 2, p = 1 and q = inf have one), which get 30 iterations.

Batch norm in train mode would couple the points, and the paper says nothing of it. The ``mode``, with the words of an
attack's, says how it normalizes: "train" by the statistics of the clean batch, constant in the input but not in the weights;
"eval" by the running statistics, which lag behind, so that training may converge to weights that behave differently in eval
mode; "as is" by either, as each layer's own mode has it, in training by those of the batch but for frozen layers. Running
statistics do not change, and dropout is off.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opnorm._core.layers import check_initialized
from opnorm._core.lp import (
    conjugate,
    dual,
    lp_norm,
    on_sphere,
    per_row,
    power_iteration,
    power_of_two,
    random_start,
)
from opnorm._core.modes import Mode, in_default_modes
from opnorm._core.orders import check_alpha, check_orders
from opnorm._core.settings import MODES, check_choice, check_count, check_number
from opnorm.errors import ModelError, SpecError
from opnorm.jacobian import Jacobian, Matrices, linearized
from opnorm.jacobian.products import check_points
from opnorm.regularizers.batch_statistics import point_by_point
from opnorm.regularizers.hooks import Hooks, Regularizer, bound
from opnorm.spec import factory

__all__ = ["dd_onr", "dd_snr"]

EXPLICIT_STEPS = 30  # iterations on explicit Jacobians, where they are cheap


@factory("regularizer")
def dd_snr(
    lam: float = 1e-2,
    form: str = "difference",
    eps: float = 0.1,
    steps: int = 10,
    *,
    exact: bool = True,
    mode: Mode = "as is",
) -> Regularizer:
    """Data-dependent spectral norm regularization: (λ̃ / 2) E[σ(J(x))²], J the Jacobian of the logits.

    u and v, the first singular vectors at each point, are constants; at the maximum this is the gradient of σ².

    Args:
        lam: λ̃, the weight of σ² whatever the form.
        form: "uJv": (λ̃ / 2) E[(uᵀ J v)²]; or "difference": (λ̃ / 2ε²) E‖f(x + εv) - f(x)‖_2², which is Roth's
            (λ/2) E‖f(x + εv) - f(x)‖_2² with λ̃ = λε², and which they found the more stable. The two are equal if x + εv is
            in the linear region of x.
        eps: ε, ℓ2 length in pixel values of [0, 1]; used by "difference" alone.
        steps: power iterations.
        exact: take exact u and v where that is faster; False iterates as published.
        mode: of batch norm: "as is", "train" or "eval".

    Source: Roth, Kilcher & Hofmann 2020, Eqs. 6 and 7 and the paragraph after them.
    """
    check_choice("form", form, ("difference", "uJv"))
    check_choice("mode", mode, MODES)
    check_number("eps", eps, "a length above 0 in pixel values of [0, 1], such as 0.1", above=0)
    check_count("steps", steps)
    check_number("lam", lam, "a strength of at least 0", least=0)
    search = _Search("dd_snr", 2, 2, steps, exact, mode)
    return _regularizer(search, lam, power=2, eps=eps if form == "difference" else 0.0)


@factory("regularizer")
def dd_onr(
    lam: float = 1e-2,
    p: float = 2,
    q: float = 2,
    steps: int = 10,
    power: float = 1,
    *,
    alpha: float = math.inf,
    exact: bool = True,
    mode: Mode = "as is",
) -> Regularizer:
    """Data-dependent operator norm regularization: λ̃ E[‖J(x)‖_{p→q}^r / r], J the Jacobian of the logits.

    As uᵀ J v, with ‖v‖_p = 1, ‖u‖_{q*} = 1 and both constant; at the maximum this is the gradient of the norm.

    Args:
        lam: λ̃.
        p: of the input, in [1, inf].
        q: of the logits, in [1, inf].
        steps: iterations.
        power: r, at least 1; Roth's remark takes r = q.
        alpha: α of Eq. 11, above 0; inf is the power method, Eq. 12. A finite one needs p = 1, 2 or inf, and is iterated.
        exact: take exact u and v where that is faster; False iterates as published.
        mode: of batch norm: "as is", "train" or "eval".

    Source: Roth, Kilcher & Hofmann 2020, Eqs. 11 to 13 and the paragraph after them.
    """
    check_choice("mode", mode, MODES)
    check_orders(p, q, SpecError)
    check_alpha(alpha, p, SpecError)
    check_count("steps", steps)
    check_number("lam", lam, "a strength of at least 0", least=0)
    check_number("power", power, "an exponent of at least 1", least=1)
    return _regularizer(_Search("dd_onr", p, q, steps, exact, mode, alpha), lam, power=power, eps=0.0)


@dataclass(frozen=True)
class _Search:
    """How the u and v of a method are found."""

    method: str
    p: float
    q: float
    steps: int
    exact: bool
    mode: Mode
    alpha: float = math.inf

    def maximizer(self, f: Callable[[Tensor], Tensor], J: Jacobian, v: Tensor) -> tuple[Tensor, Tensor]:
        """The u (B, K) and v (B, *in) with uᵀ J v as large as was found, from a start v."""
        logits = J.outputs.detach()
        if self.exact and self.alpha == math.inf and logits.shape[1] <= 2 * self.steps:
            basis = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
            A = torch.stack([(J.T @ e.expand_as(logits)).flatten(1) for e in basis], 1)
            with torch.no_grad():
                u, found = _of_matrices(A, v.flatten(1), self.p, self.q)
                return u, found.view_as(v)
        for _ in range(self.steps):
            u = dual(_difference(f, J.inputs.detach(), v, logits), self.q)
            ascent = J.T @ u
            limit = self.alpha == math.inf
            v = dual(ascent, conjugate(self.p), v) if limit else on_sphere(v + self.alpha * ascent, self.p)
        return u, v


def _regularizer(search: _Search, lam: float, *, power: float, eps: float) -> Regularizer:
    """λ̃ E[s^r / r] with s = uᵀ J v, or with ``eps`` the length of the difference over ε."""

    @in_default_modes
    def bind(model: nn.Module, example: Tensor) -> Hooks:
        check_initialized(model, search.method)
        check_points(example)
        with linearized(model, example[:1]) as J:  # errors come before training
            if J.outputs.ndim != 2:
                shape = tuple(J.outputs.shape)
                raise ModelError(
                    f"{search.method}: the model returns shape {shape}; expected logits (B, classes)"
                )

        def penalty(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            # from the run's own random state, as the attacks' starts
            seed = int(torch.randint(2**62, (), device="cpu"))
            with point_by_point(model, x, search.mode) as f:
                inputs = x.detach().clone().requires_grad_()
                J = Jacobian(inputs, f(inputs))
                u, v = search.maximizer(f, J, random_start(x, search.p, seed))
                if eps:
                    slope = lp_norm(f(x.detach() + eps * v) - J.outputs, 2) / eps
                else:
                    slope = (J.vjp(u, create_graph=True) * v).flatten(1).sum(1)
            return lam / power * slope.pow(power).mean()

        return bound(Hooks(penalty=penalty), (), search.method)

    return bind


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
