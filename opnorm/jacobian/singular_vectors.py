"""All singular values of Jacobians, and the last hidden features, whose Jacobian Roth et al. look at."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from opnorm._core.layers import unwrap
from opnorm._core.modes import Mode
from opnorm.errors import ModelError, NormError
from opnorm.jacobian.products import check_points, explicit, linearized, output_of, together
from opnorm.norms.network.trace import trace

__all__ = ["Features", "alignment", "features", "singular_values"]

BYTES = 2**28  # of explicit Jacobians at a time, in float64
LARGEST = 2**31  # bytes of one of them


class Features(nn.Module):
    """A network that ends early: at the output of a layer, or at its input."""

    def __init__(self, model: nn.Module, layer: str, before: bool) -> None:
        super().__init__()
        self.model, self.layer, self.before = model, layer, before

    def forward(self, x: Tensor) -> Tensor:
        """Those features, flattened to (B, K)."""
        found = output_of(self.model, x, self.layer, self.before)
        if not isinstance(found, Tensor) or found.ndim < 2:
            raise ModelError(f"layer {self.layer!r} has no tensor of features for each point")
        return found.flatten(1)


def features(model: nn.Module, x: Tensor, layer: str | None = None) -> Features:
    """φ^{L-1}, the last hidden features: what the last linear layer of the forward pass is given.

    Args:
        model: any network; it stays a part of what is returned.
        x: a batch of its inputs, of which one is used.
        layer: the name of a layer whose output is meant instead.

    Raises:
        ModelError: no such layer, or no linear layer to find by itself.

    Source: Roth, Kilcher & Hofmann 2020, Sec. 5.2.
    """
    model = unwrap(model)
    before = layer is None
    if layer is None:
        linear = [call.name for call in trace(model, x) if isinstance(call.layer, nn.Linear)]
        if not linear or not linear[-1]:
            raise ModelError(
                f"{type(model).__name__} has no linear layer after hidden ones, so it is not known where its features are; "
                "name the layer whose output is meant"
            )
        layer = linear[-1]
    found = Features(model, layer, before)
    found.training = model.training
    return found


def singular_values(model: nn.Module, x: Tensor, layer: str | None = None, mode: Mode = "eval") -> Tensor:
    """All singular values of J(x_b), the largest first: (B, min(K, n)) float64 for K outputs and n inputs.

    Args:
        model: see :func:`opnorm.jacobian.linearized`; of :func:`features`, for the last hidden ones.
        x: (B, *in).
        layer: whose output is meant; the model's own when None.
        mode: of the model.

    Raises:
        NormError: a single Jacobian takes more than 2 GiB.
        ModelError: see :func:`opnorm.jacobian.linearized`.

    Source: Roth, Kilcher & Hofmann 2020, Fig. 2 left.
    """
    return torch.cat([torch.linalg.svdvals(A) for A in _matrices(model, x, layer, mode)])


def alignment(
    model: nn.Module, x: Tensor, z: Tensor, layer: str | None = None, mode: Mode = "eval"
) -> Tensor:
    """|cos| of the angle between z_b and the r-th right singular vector of J(x_b), (B, min(K, n)) float64, r = 1, 2, ...

    A random z has about sqrt(2 / (π n)) with each. Singular vectors have no sign, so the cosine has none either; and among
    those of equal singular values, or of 0, which is which is arbitrary.

    Args:
        model: see :func:`singular_values`.
        x: (B, *in).
        z: directions, (B, *in).
        layer: whose output is meant; the model's own when None.
        mode: of the model.

    Raises:
        NormError: a zero direction, or another shape than that of x; see also :func:`singular_values`.
        ModelError: see :func:`opnorm.jacobian.linearized`.

    Source: Roth, Kilcher & Hofmann 2020, Fig. 2 right.
    """
    if z.shape != x.shape:
        raise NormError(f"directions have shape {tuple(z.shape)}; expected {tuple(x.shape)}")
    z = z.flatten(1).double()
    length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    if not (length > 0).all():
        raise NormError(f"{int((length <= 0).sum())} of {len(z)} directions are zero or NaN")
    z, parts, done = z / length, [], 0
    for A in _matrices(model, x, layer, mode):
        Vh = torch.linalg.svd(A, full_matrices=False).Vh
        parts.append((Vh @ z[done : done + len(A), :, None]).squeeze(2).abs())
        done += len(A)
    return torch.cat(parts)


def _matrices(model: nn.Module, x: Tensor, layer: str | None, mode: Mode) -> Iterator[Tensor]:
    """The Jacobians (b, K, n) in float64, a few points at a time."""
    check_points(x)
    with linearized(model, x[:1], layer, mode) as J:
        size = 8 * J.outputs[0].numel() * x[0].numel()
    if size > LARGEST:
        raise NormError(
            f"the Jacobian takes {size:,} bytes a point, more than {LARGEST:,}; jacobian_norm needs none of them"
        )
    for part in x.split(max(1, min(together(x), BYTES // size))):
        yield explicit(model, part, layer, mode, limit=LARGEST).flatten(2).double()
