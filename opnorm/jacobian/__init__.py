"""The Jacobian of a network at a point: products, norms, singular values, linear regions.

    with linearized(model, x) as J:          # one forward pass, with the model in eval mode for as long
        J @ v                                # J(x_b) v_b for every point b of the batch
        J.T @ u                              # J(x_b)ᵀ u_b, one backward pass each
    jacobian_norm(model, x, p=inf, q=1)      # ‖J(x_b)‖_{p→q} as intervals, and the v that are amplified so
    singular_values(features(model, x), x)   # all of them, for the last hidden features
    local_lipschitz(model, x, radius=0.1)    # ‖J‖_2 on a ball around each point, from above and below, block by block
    theorem_1(model, x, eps=0.01)            # the power method beside projected gradient ascent, step by step

The output is that of the model, or of a layer of it: ``features(model, x, "features.3")`` instead of the model.
"""

from opnorm._core.lp import Maximizer, dual, lp_norm, on_sphere, power_iteration, random_start
from opnorm.jacobian.hidden_features import Features, features
from opnorm.jacobian.linear_regions import Pattern, activations, same_region, shared_activations
from opnorm.jacobian.local.block_bounds import LocalBound, LocalTable, local_lipschitz
from opnorm.jacobian.point_norms import PointNorms, jacobian_norm
from opnorm.jacobian.products import Jacobian, Matrices, explicit, linearized
from opnorm.jacobian.singular_vectors import alignment, singular_values
from opnorm.jacobian.theorem import Agreement, Secant, secant_ascent, theorem_1

__all__ = [
    "Agreement",
    "Features",
    "Jacobian",
    "LocalBound",
    "LocalTable",
    "Matrices",
    "Maximizer",
    "Pattern",
    "PointNorms",
    "Secant",
    "activations",
    "alignment",
    "dual",
    "explicit",
    "features",
    "jacobian_norm",
    "linearized",
    "local_lipschitz",
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
