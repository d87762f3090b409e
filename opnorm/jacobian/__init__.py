"""What a network does to small changes of an input: its Jacobian at a point.

    with linearized(model, x) as J:        # one forward pass; the model is lent in eval mode
        J.apply(v)                         # J(x_b) v_b for every point b of the batch
        J.adjoint(u)                       # J(x_b)ᵀ u_b, one backward pass each
    jacobian_norm(model, x, p=inf, q=1)    # ‖J(x_b)‖_{p→q} as intervals, and the v that are amplified so
    singular_values(features(model, x), x) # all of them, for the last hidden features
    theorem_1(model, x, eps=0.01)          # the power method beside projected gradient ascent, step by step

The output is that of the model, or of a layer by its name: ``layer="features.3"``.
"""

from opnorm.jacobian.iteration import Found, dual, lp_norm, on_sphere, power_iteration, random_start
from opnorm.jacobian.linear_regions import Pattern, activations, same_region, shared_activations
from opnorm.jacobian.point_norms import PointNorms, jacobian_norm
from opnorm.jacobian.products import Jacobian, Matrices, Products, explicit, linearized
from opnorm.jacobian.singular_vectors import Features, alignment, features, singular_values
from opnorm.jacobian.theorem import Secant, Steps, secant_ascent, theorem_1

__all__ = [
    "Features",
    "Found",
    "Jacobian",
    "Matrices",
    "Pattern",
    "PointNorms",
    "Products",
    "Secant",
    "Steps",
    "activations",
    "alignment",
    "dual",
    "explicit",
    "features",
    "jacobian_norm",
    "linearized",
    "lp_norm",
    "on_sphere",
    "power_iteration",
    "random_start",
    "same_region",
    "secant_ascent",
    "shared_activations",
    "singular_values",
    "theorem_1",
]
