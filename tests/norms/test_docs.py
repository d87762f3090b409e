"""The table of layers in the documentation holds."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from opnorm.norms import measure

DOCS = Path(__file__).resolve().parents[2] / "docs"
STATUSES = {"exact", "interval", "to rounding", "constant", "not known"}
PAGES = sorted(DOCS.glob("*.md")) if DOCS.is_dir() else []

ARGUMENTS = {
    "Linear": ((5, 4), (5,)), "Unflatten": ((1, (2, 2)), (4, 5, 5)), "PixelShuffle": ((2,), (4, 5, 5)),
    "BatchNorm": ((4,), None), "Conv": ((4, 2, 3), None), "AdaptiveAvgPool": ((2,), None), "AvgPool": ((2,), None),
    "AdaptiveMaxPool": ((2,), None), "MaxPool": ((2, 1), None), "UpsamplingNearest": ((None, 2), None),
    "Upsample": ((None, 2), None), "Unfold": ((2,), None), "Fold": (((3, 3), 2), (4, 4)),
    "LPPool": ((2, 2), None), "Softmax": ((1,), (5,)), "LogSoftmax": ((1,), (5,)),
    "LayerNorm": ((5,), (5,)), "InstanceNorm": ((4,), None), "GroupNorm": ((2, 4), (4, 5)), "RMSNorm": ((5,), (5,)),
    "GLU": ((1,), (4,)), "MultiheadAttention": ((4, 1), (3, 4)), "LSTM": ((4, 2), (3, 4)), "Embedding": ((3, 2), (4,)),
    "ZeroPad": ((1,), None), "ReflectionPad": ((1,), None), "ReplicationPad": ((1,), None), "CircularPad": ((1,), None),
}  # fmt: skip


def status():
    """(layer, status of ℓ1 and ℓ∞, status of ℓ2) as the page tells them."""
    if not PAGES:
        return []
    text = (DOCS / "which_norm.md").read_text(encoding="utf-8").partition("## Layers and norms")[2]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    return [(name, row[1], row[2]) for row in rows for name in re.findall(r"`(\w+)`", row[0])]


def make(name):
    axes = int(name[-2]) if re.search(r"[123]d$", name) else 2
    kind = re.sub(r"(Transpose)?[123]d$", "", name)
    arguments, shape = ARGUMENTS.get(name, ARGUMENTS.get(kind, ((), (4, 5))))
    return getattr(nn, name)(*arguments), shape or (4, *[5] * axes)


@pytest.mark.parametrize(("name", "ends", "two"), status())
def test_the_table_of_layers_is_true(name, ends, two):
    torch.manual_seed(0)
    layer, shape = make(name)
    example = torch.zeros(1, *shape)
    if name == "Embedding":
        example = example.long()
    if name == "MultiheadAttention":
        example = (example, example, example)
    (row, *_) = measure(layer.eval(), example).rows

    def found(p):
        if p in row.lipschitz:
            return "constant"
        if p not in row.norms or math.isinf(row.norms[p].upper):
            return "not known"
        return "exact" if row.norms[p].exact else "interval"

    assert (found(1), found(math.inf)) == (ends, ends)
    if two == "to rounding":
        assert 2 in row.norms
        assert row.norms[2].relative_width < 1e-12
    else:
        assert found(2) == two or (two == "interval" and found(2) == "exact")


def test_every_status_is_there():
    if PAGES:
        assert {s for _, *both in status() for s in both} == STATUSES
        assert len(status()) > 45
