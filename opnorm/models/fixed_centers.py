"""Networks whose last layer is not trained: it compares the features with fixed centers."""

from torch import nn

from opnorm._core.max_mahalanobis import center_layer, last_linear
from opnorm._core.settings import check_count, check_number
from opnorm.errors import ModelError
from opnorm.spec import factory

__all__ = ["max_mahalanobis"]


@factory("model")
def max_mahalanobis(model: nn.Module, radius: float = 10.0, features: int = 256) -> nn.Module:
    """A network with Max-Mahalanobis centers as its last layer: ``max_mahalanobis(vgg16())``.

    In place of the network's last linear layer stand a linear layer to so many features z, which may have any sign, and the
    fixed logits <z, μ_c>. So the largest logit is that of the nearest center; as all centers have one length, softmax and
    differences of logits are those of -½ ‖z - μ_c‖_2². The objective that trains such a network is ``mmc(on="features")``.

    Args:
        model: a network; its last linear layer is that which it has registered last.
        radius: the norm C of the centers.
        features: number of features, at least classes - 1.

    Raises:
        ModelError: no such layer, or too few features.

    Source: Pang et al. 2020, Eq. 8; radius and number of features are those of their program.
    """
    check_number("radius", radius, "the norm of the centers, above 0", above=0, error=ModelError)
    check_count("features", features, error=ModelError)
    if not isinstance(model, nn.Module):
        raise ModelError(f"model={model!r:.60}: expected a network, such as max_mahalanobis(vgg16())")
    found = last_linear(model)
    if found is None or not found[0]:
        raise ModelError(f"{type(model).__name__} has no linear layer whose place the centers could take")
    name, last = found
    layers = nn.Linear(last.in_features, features), center_layer(features, last.out_features, radius)
    model.set_submodule(name, nn.Sequential(*layers).to(last.weight))
    return model
