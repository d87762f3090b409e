"""Networks whose last layer is not trained: it compares the features with fixed centers."""

from torch import nn

from opnorm._core.max_mahalanobis import center_layer, last_linear
from opnorm._core.settings import check_number
from opnorm.errors import ModelError
from opnorm.spec import factory

__all__ = ["max_mahalanobis"]


@factory("model")
def max_mahalanobis(model: nn.Module, radius: float = 10.0) -> nn.Module:
    """A network with the Max-Mahalanobis centers in place of its last linear layer: ``max_mahalanobis(vgg16())``.

    The logits are <z, μ_c>, z the last hidden features, so that the largest is that of the nearest center; as all centers
    have one length, softmax and differences of logits are those of -½ ‖z - μ_c‖_2². The objective that trains such a network
    is ``mmc(on="features")``.

    Args:
        model: a network; its last linear layer is that which it has registered last.
        radius: the norm C of the centers; 10 as published.

    Raises:
        ModelError: no such layer, or fewer features than classes - 1.

    Source: Pang et al. 2020, Eq. 8; Liu et al. 2020, Table 4, train with it.
    """
    check_number("radius", radius, "the norm of the centers, above 0", above=0, error=ModelError)
    if not isinstance(model, nn.Module):
        raise ModelError(f"model={model!r:.60}: expected a network, such as max_mahalanobis(vgg16())")
    found = last_linear(model)
    if found is None or not found[0]:
        raise ModelError(f"{type(model).__name__} has no linear layer whose place the centers could take")
    name, last = found
    model.set_submodule(name, center_layer(last.in_features, last.out_features, radius).to(last.weight))
    return model
