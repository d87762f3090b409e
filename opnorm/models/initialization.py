"""Initial weights of networks without batch norm."""

import torch
from torch import nn

from opnorm.models.stages import PreActivated, Residual

__all__ = ["fixup", "he"]


def he(model: nn.Module) -> None:
    """Normal weights of variance 2 / fan-in for every convolution and linear layer.

    Source: He et al. 2015, Eq. 10.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)


@torch.no_grad()
def fixup(model: nn.Module) -> None:
    """Fixup without its scalar layers: a residual network of any depth that starts, and trains, without batch norm.

    All weights as by :func:`he`; then, with L residual branches of m convolutions each, the first m - 1 of a branch are
    scaled by L^(-1 / (2m - 2)), and the last one of every branch and the linear layer at the end are zero.

    Source: Zhang, Dauphin & Ma 2019, section 4, rules 1 and 2. Wen et al. 2020 leave out rule 3, the scalar layers.
    """
    he(model)
    branches = [m.branch for m in model.modules() if isinstance(m, Residual | PreActivated)]
    for branch in branches:
        *first, last = (m for m in branch.modules() if isinstance(m, nn.Conv2d))
        for layer in first:
            layer.weight *= len(branches) ** (-1 / (2 * len(first)))
        nn.init.zeros_(last.weight)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
