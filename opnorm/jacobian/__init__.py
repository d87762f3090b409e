"""What a network does to small changes of an input: its Jacobian at a point.

    with linearized(model, x) as J:        # one forward pass; the model is lent in eval mode
        J.apply(v)                         # J(x_b) v_b for every point b of the batch
        J.adjoint(u)                       # J(x_b)ᵀ u_b, one backward pass each
    jacobian_norm(model, x, p=inf, q=1)    # ‖J(x_b)‖_{p→q} as intervals, and the v that are amplified so

The output is that of the model, or of a layer by its name: ``layer="features.3"``.
"""

from opnorm.jacobian.iteration import Found, dual, lp_norm, on_sphere, power_iteration, random_start
from opnorm.jacobian.norms import PointNorms, jacobian_norm
from opnorm.jacobian.products import Jacobian, Matrices, Products, explicit, linearized

__all__ = [
    "Found",
    "Jacobian",
    "Matrices",
    "PointNorms",
    "Products",
    "dual",
    "explicit",
    "jacobian_norm",
    "linearized",
    "lp_norm",
    "on_sphere",
    "power_iteration",
    "random_start",
]
