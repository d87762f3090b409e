"""Vectors, sequences and volumes as data: what a data set's refusal says makes analyses, attacks and pages of them."""

import re

import pytest
import torch
from torch import nn

from opnorm.attacks import pgd
from opnorm.data import Dataset, Split
from opnorm.data.dataset import as_pixels
from opnorm.errors import DataError
from opnorm.runs.attack_evaluation import evaluate
from opnorm.runs.network_report import analyze

WHAT = (
    "accuracy", "norm_table", "robust_accuracy(points=5, steps=2)", "singular_alignment(points=5)", "relu_cells(points=5)",
)  # fmt: skip
SHAPES = {
    "vectors": ((6,), nn.Flatten(), nn.Linear(6, 8), lambda x: x.view(*x.shape, 1, 1)),
    "sequences": ((2, 5), nn.Flatten(2), nn.Conv1d(2, 4, 3, padding=1), lambda x: x.unsqueeze(3)),
    "volumes": (
        (1, 2, 3, 4), nn.Unflatten(2, (2, 3)), nn.Conv3d(1, 3, 2), lambda x: x.flatten(2, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_what_the_refusal_says_works(name, tmp_path):
    shape, begin, layer, four_axes = SHAPES[name]
    torch.manual_seed(0)
    points = torch.randint(0, 256, (12, *shape), dtype=torch.uint8)
    labels = torch.arange(12) % 3
    with pytest.raises(DataError, match="expected 4 dimensions") as refusal:
        Dataset("toy", Split(points, labels), Split(points, labels), ("a", "b", "c"))
    remedy = re.search(r"images\.(\w+)\(([\d, ]+)\), with nn\.(\w+)\((.*)\) first", str(refusal.value))
    assert remedy, refusal.value
    images = getattr(points, remedy[1])(*(int(n) for n in remedy[2].split(",")))
    assert torch.equal(images, four_axes(points))
    assert remedy[3] == type(begin).__name__
    model = nn.Sequential(begin, layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).eval()
    assert torch.equal(begin(images).flatten(1), points.flatten(1))
    model(as_pixels(images))
    split = Split(images, labels)
    report = analyze(model, Dataset("toy", split, split, ("a", "b", "c")), WHAT)
    assert report.results[0].failures == {}
    assert report.write(tmp_path).stat().st_size > 0
    done = evaluate(model, as_pixels(images), labels, pgd(norm=2, eps=0.5, steps=2))
    assert done.result.points.shape == images.shape
