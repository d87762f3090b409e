"""Two checkpoints side by side: ratios that hold, sums by hand, and layers of one network only are named."""

import copy
import csv
import io
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from opnorm.errors import NormError
from opnorm.norms import LayerNorms, Norm, NormTable, compare, measure


def table(*norms, ords=(1,), names=None, kind="Linear"):
    rows = []
    for i, norm in enumerate(norms):
        ends = norm if isinstance(norm, tuple) else (norm, norm)
        rows.append(
            LayerNorms((names or "abcdef")[i], kind, (2,), (2,), 4, {p: Norm.of(*ends, "") for p in ords})
        )
    return NormTable(tuple(rows), ords)


def test_ratios_and_sums_by_hand():
    found = compare(table(1.0, 4.0, 2.0, 5.0), table(3.0, 1.0, 2.0, 10.0))
    assert [(c.layer, c.ratio_lower, c.ratio_upper) for c in found.changes] == [
        ("a", 3, 3), ("b", 0.25, 0.25), ("c", 1, 1), ("d", 2, 2),
    ]  # fmt: skip
    s = found.summary(1)
    assert (s.increase, s.decrease, s.grew, s.shrank) == (7, 3, 2, 1)
    assert (s.mean_increase, s.mean_decrease) == (3.5, 3)
    assert math.exp(s.log_ratio) == pytest.approx((3 * 0.25 * 2) ** 0.25)
    assert [c.layer for c in found.largest(1)] == ["b", "a", "d", "c"]


@given(*[st.floats(0.01, 100)] * 4)
def test_ratios_of_intervals_hold_every_ratio(a, b, x, y):
    (a, b), (x, y) = sorted((a, b)), sorted((x, y))
    (change,) = compare(table((a, b)), table((x, y))).changes
    for before in (a, b, (a + b) / 2):
        for after in (x, y, (x + y) / 2):
            assert change.ratio_lower * (1 - 1e-12) <= after / before <= change.ratio_upper * (1 + 1e-12)
    assert (change.difference == 0) == (x <= b and a <= y)


def test_intervals_that_overlap_did_not_change():
    s = compare(table((1.0, 2.0), (1.0, 1.1)), table((1.5, 3.0), (1.2, 1.3))).summary(1)
    assert (s.grew, s.increase) == (1, pytest.approx(0.2))


def test_zero_and_unknown_norms():
    found = compare(table(0.0, 0.0, 2.0, (1.0, math.inf)), table(0.0, 1.0, 0.0, 2.0))
    assert [(c.ratio_lower, c.ratio_upper) for c in found.changes] == [
        (1, 1),
        (math.inf, math.inf),
        (0, 0),
        (0, 2),
    ]
    rows = json.loads(found.to_json())["layers"]
    assert rows[1]["ratio"] == [None, None]
    assert rows[3]["before"] == [1, None]
    assert math.isfinite(found.summary(1).log_ratio)
    assert "×" in str(found)


def test_layers_of_one_network_and_of_other_kinds():
    found = compare(table(1.0, 2.0, 3.0, names="abc"), table(1.0, 2.0, 9.0, names="acd"))
    assert [c.layer for c in found.changes] == ["a", "c"]
    assert found.missing == ("only in the first model: b", "only in the second model: d")
    with pytest.raises(NormError, match="no norm of any layer in common"):
        compare(table(1.0), table(1.0, kind="Conv2d"))
    with pytest.raises(NormError, match="no norm of any layer in common"):
        compare(table(1.0, ords=(1,)), table(1.0, ords=(2,)))
    assert (
        "a is Linear in the first model, Conv2d in the second"
        in compare(
            table(1.0, 1.0, names="ba"),
            NormTable((*table(1.0, names="b").rows, *table(1.0, kind="Conv2d").rows), (1,)),
        ).missing
    )


def test_of_real_networks():
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 2, 3, padding=1)
    a = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).requires_grad_(True)
    b = copy.deepcopy(a)
    b[0].weight.data.mul_(4)
    x = torch.zeros(1, 1, 4, 4)
    found = compare(measure(a, x), measure(b, x))
    assert [(c.layer, c.ord) for c in found.changes] == [(n, p) for n in "03" for p in (1, 2, math.inf)]
    for change in found.changes:
        ratio = 4 if change.layer == "0" else 1
        assert change.ratio_lower * (1 - 1e-9) <= ratio <= change.ratio_upper * (1 + 1e-9)
        assert change.ratio_upper <= change.ratio_lower * 1.05
    same = compare(measure(a, x), measure(a, x))
    assert all(same.summary(p).grew == same.summary(p).shrank == 0 for p in same.ords)
    other = compare(
        measure(a, x),
        measure(nn.Sequential(conv, nn.Flatten(), nn.Flatten(), nn.Linear(72, 3)), torch.zeros(1, 1, 6, 6)),
    )
    assert "0 takes inputs of different shapes: 1x4x4 and 1x6x6" in other.missing


def test_a_layer_that_is_called_twice_is_compared_call_by_call():
    found = compare(table(1.0, 2.0, names="aa"), table(3.0, 8.0, names="aa"))
    assert [c.ratio_lower for c in found.changes] == [3, 4]
    assert len([line for line in found.to_markdown().splitlines() if line.startswith("| a")]) == 2


def test_csv_markdown_and_text():
    found = compare(table(1.0, (2.0, 2.2), ords=(1, 2)), table(2.0, (4.0, 4.4), ords=(1, 2)))
    lines = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [(line["layer"], line["ord"]) for line in lines] == [
        ("a", "1"),
        ("a", "2"),
        ("b", "1"),
        ("b", "2"),
    ]
    assert float(lines[1]["ratio_lower"]) == 2
    assert "| a | Linear | 1 | ×2 | 1 | ×2 |" in found.to_markdown()
    assert "2 of 2 layers grew" in found.to_markdown()
    for width, shown in ((44, "ℓ2 ratio"), (100, "ratio")):
        console = Console(width=width, color_system=None)
        with console.capture() as capture:
            console.print(found)
        text = capture.get()
        assert shown in text.splitlines()[0]
        assert max(map(len, text.splitlines())) <= width
