"""The table of a whole network: every layer is there, a bad one hides no other, and the model stays as it was."""

import copy
import json
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import opnorm
from opnorm.errors import NormError, OpnormError
from opnorm.models import cnn, resnet
from opnorm.norms import Norm, NormTable, measure, operator_norm, trace
from opnorm.norms.network.trace import arguments
from tests.norms import nets
from tests.norms.cases import matrix
from tests.norms.nets import Residual, small


def test_rows_are_the_layers_in_order_with_their_shapes():
    table = measure(small(), torch.rand(5, 1, 4, 4))
    assert [(r.layer, r.kind, r.in_shape, r.out_shape, r.parameters) for r in table.rows] == [
        ("0", "Conv2d", (1, 4, 4), (2, 2, 2), 20),
        ("1", "BatchNorm2d", (2, 2, 2), (2, 2, 2), 4),
        ("2", "ReLU", (2, 2, 2), (2, 2, 2), 0),
        ("3", "Flatten", (2, 2, 2), (8,), 0),
        ("4", "Linear", (8,), (3,), 27),
    ]


def test_norms_are_those_of_operator_norm_and_of_the_matrix():
    model = small()
    for row in measure(model, torch.rand(1, 1, 4, 4)).rows:
        if row.kind in ("ReLU", "Flatten"):
            continue
        layer = model.get_submodule(row.layer)
        assert row.norms == {p: operator_norm(layer, p, row.in_shape) for p in (1, 2, math.inf)}
        M = matrix(copy.deepcopy(layer), row.in_shape)
        assert float(row.norms[1].lower) == pytest.approx(float(M.abs().sum(0).max()), rel=1e-12)
        assert row.norms[2].lower <= torch.linalg.svdvals(M)[0] * (1 + 1e-12)
        assert not row.note


def test_a_bad_layer_is_a_row_with_a_note_and_hides_no_other():
    model = small()
    model[0].weight.data[0, 0] = math.nan
    rows = measure(model, torch.rand(1, 1, 4, 4)).rows
    assert rows[0].note == "weight has 9 of 18 entries that are NaN or infinite; diverged training?"
    assert [len(r.norms) for r in rows] == [0, 3, 0, 3, 3]
    assert [bool(r.note) for r in rows] == [True, False, True, False, False]


def test_a_shared_layer_is_called_twice_with_its_two_shapes():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3)

        def forward(self, x):
            return self.conv(self.conv(x))

    calls = trace(Twice(), torch.rand(1, 1, 9, 9))
    assert [(v.name, v.in_shape, v.out_shape) for v in calls] == [
        ("conv", (1, 9, 9), (1, 7, 7)),
        ("conv", (1, 7, 7), (1, 5, 5)),
    ]


def test_layers_called_with_keywords_and_the_model_itself_as_a_layer():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 2)

        def forward(self, x):
            return self.last(input=x)

    assert [v.name for v in trace(Keyword(), torch.rand(1, 4))] == ["last"]
    assert [v.name for v in trace(nn.Linear(4, 2), torch.rand(1, 4))] == [""]


class ReluConv(nn.Conv2d):
    def forward(self, x):
        return F.relu(super().forward(x))


class NormAct(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


class HalfLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight / 2, self.bias)


@pytest.mark.parametrize("layer", [ReluConv(1, 1, 3), NormAct(1), HalfLinear(8, 2)])
def test_a_subclass_with_another_forward_is_not_taken_for_its_base(layer):
    """It is measured by its own forward: as a matrix where that is affine, else as a Lipschitz constant."""
    (row,) = measure(layer, torch.rand(1, 1, 8, 8)).rows
    for ord in (1, 2, math.inf):
        if isinstance(layer, HalfLinear):
            M = matrix(layer, row.in_shape)
            assert float(row.norms[ord].upper) == pytest.approx(
                float(torch.linalg.matrix_norm(M, ord)), rel=1e-6
            )
        elif isinstance(layer, ReluConv):
            plain = nn.Conv2d(1, 1, 3)
            plain.load_state_dict(layer.state_dict())
            expected = float(operator_norm(plain, ord, row.in_shape).upper)
            assert row.lipschitz[ord] == pytest.approx(expected, rel=1e-2)
        else:
            assert "not linear" in row.note
            assert not row.norms
            assert row.lipschitz[ord] == pytest.approx((1 + layer.eps) ** -0.5)


def test_computed_weights_are_measured():
    """Pruned and weight-normalized layers hold weights with a history, which deepcopy refuses."""
    layers = []
    for _ in range(3):
        torch.manual_seed(0)
        layers.append(nn.Conv2d(2, 2, 3, bias=False))
    torch.nn.utils.parametrizations.weight_norm(layers[1])
    prune.identity(layers[2], "weight")
    x = torch.rand(1, 2, 5, 5)
    for layer in layers:
        layer(x).sum().backward()  # leaves a weight with a history
    for p in (1, 2, math.inf):
        values = [float(operator_norm(layer, p, (2, 5, 5)).lower) for layer in layers]
        assert values[1:] == pytest.approx([values[0]] * 2, rel=1e-5)
    for layer in layers:
        rows = measure(nn.Sequential(layer), x).rows
        assert len(next(r for r in rows if r.layer == "0").norms) == 3


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model = resnet(depth=8, in_shape=(1, 8, 8), width=2)
    model.train(training)
    model[2].eval()  # frozen batch norm
    model[1].weight.requires_grad_(False)
    calls = []
    model[3].register_forward_hook(lambda *_: calls.append(1))
    model(torch.rand(4, 1, 8, 8)).sum().backward()
    calls.clear()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grads = {k: p.grad if p.grad is None else p.grad.clone() for k, p in model.named_parameters()}
    modes = {k: m.training for k, m in model.named_modules()}
    hooks = {k: len(m._forward_hooks) for k, m in model.named_modules()}
    x = torch.rand(4, 1, 8, 8)
    state = torch.get_rng_state()

    measure(model, x)

    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for k, p in model.named_parameters():
        assert (p.grad is None) == (grads[k] is None)
        assert p.grad is None or torch.equal(p.grad, grads[k])
    assert {k: m.training for k, m in model.named_modules()} == modes
    assert {k: len(m._forward_hooks) for k, m in model.named_modules()} == hooks
    assert not model[1].weight.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert len(calls) == 1


def test_the_model_is_left_as_it_was_after_an_error():
    class Raises(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            self.fc(x)
            raise KeyError("missing")

    model = Raises().train()
    with pytest.raises(OpnormError, match=r"does not take an input of shape \(2,\): 'missing'"):
        measure(model, torch.rand(1, 2))
    assert model.training
    assert not model.fc._forward_hooks


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.rand(1, 3, 4, 4), r"does not take an input of shape \(3, 4, 4\)"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), "does not take"),
        (torch.rand(1, 1, 9, 9), "does not take"),
    ],
)
def test_examples_that_do_not_fit(example, message):
    with pytest.raises(OpnormError, match=message):
        measure(small(), example)


def test_unknown_orders():
    with pytest.raises(NormError, match="ord=3 is not known"):
        measure(small(), torch.rand(1, 1, 4, 4), ords=(1, 3))


def test_text_and_json():
    table = measure(cnn(in_shape=(1, 8, 8), width=4), torch.rand(2, 1, 8, 8), ords=(1, 2))
    assert isinstance(table, NormTable)
    text = str(table)
    assert "Conv2d" in text
    assert "ℓ1" in text
    assert "ℓ∞" not in text
    rows = json.loads(table.to_json())
    assert rows[1]["kind"] == "Conv2d"
    assert rows[1]["norms"]["1"]["exact"] is True
    assert rows[1]["norms"]["2"]["lower"] <= rows[1]["norms"]["2"]["upper"]
    assert rows[2]["norms"] == {}
    assert rows[2]["note"]


def test_an_empty_batch_is_enough():
    assert len(measure(small(), torch.rand(0, 1, 4, 4)).rows) == 5


# ---------------------------------------------------------------- any network


@pytest.mark.parametrize(
    ("example", "rows"),
    [
        (torch.zeros(4, 3), ["a", "b"]),
        ((torch.zeros(2, 3), torch.ones(3)), ["a", "b"]),
        ([torch.zeros(2, 3), None], ["a", "b"]),
        ({"x": torch.zeros(1, 3), "twice": True}, ["a", "b", "b"]),
    ],
)
def test_a_batch_a_tuple_or_a_dict(example, rows):
    table = measure(Residual(), example, ords=(1,))
    assert [r.layer for r in table.rows] == rows
    assert all(r.norms for r in table.rows)


def test_a_layer_called_again_is_marked_and_computed_once(monkeypatch):
    calls = []
    table_of = opnorm.norms.layer_table.layer_norms
    monkeypatch.setattr(opnorm.norms.layer_table, "layer_norms", lambda *a: calls.append(a) or table_of(*a))
    rows = measure(Residual(), {"x": torch.zeros(1, 3), "twice": True}, ords=(1,)).rows
    assert [r.tags for r in rows] == [(), (), ("called again",)]
    assert rows[1].norms == rows[2].norms
    assert len(calls) == 2


def test_tied_frozen_and_parametrized_weights_are_marked():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    torch.nn.utils.parametrizations.orthogonal(model[3])
    rows = measure(model, torch.zeros(1, 3)).rows
    assert [r.layer for r in rows] == ["0", "1", "2", "3"]  # and none for the parametrization itself
    assert [r.kind for r in rows] == ["Linear"] * 4
    assert [r.tags for r in rows] == [(), ("weights shared with 0",), ("frozen",), ("parametrized",)]
    assert float(rows[3].norms[2].lower) == pytest.approx(1, rel=1e-5)


def test_a_module_with_weights_of_its_own_shares_none_with_its_parts():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.shift = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.linear(x) + self.shift

    class Whole(Block):
        def __init__(self):
            super().__init__()
            self.inner, self.tied = Block(), nn.Linear(3, 3)
            self.tied.weight = self.inner.linear.weight

        def forward(self, x):
            return super().forward(self.tied(self.inner(x)))

    rows = {row.layer: row.tags for row in measure(Whole(), torch.zeros(1, 3), ords=(1,)).rows}
    tied = rows.pop("tied")
    assert tied == ("weights shared with inner.linear",)
    assert set(rows) == {"inner.linear", "inner", "linear", ""}
    assert not any(rows.values())


def test_batch_norm_in_train_mode_is_marked_and_measured_in_eval_mode():
    layer = nn.BatchNorm2d(2)
    layer.running_var.fill_(0.25)
    (row,) = measure(layer, torch.rand(1, 2, 3, 3), ords=(1,)).rows
    assert "in train mode" in row.tags[0]
    assert float(row.norms[1].lower) == pytest.approx(2, rel=1e-4)
    assert not measure(layer.eval(), torch.rand(1, 2, 3, 3), ords=(1,)).rows[0].tags


def test_compiled_and_data_parallel_models_have_the_names_of_what_is_inside():
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 2), nn.ReLU()))
    plain = measure(model, torch.zeros(1, 3))
    for wrapped in (torch.compile(model), nn.DataParallel(model), torch.compile(nn.DataParallel(model))):
        assert measure(wrapped, torch.zeros(1, 3)) == plain
    model[1] = torch.compile(model[1])
    assert measure(model, torch.zeros(1, 3)) == plain
    model[0].compile()
    assert measure(model, torch.zeros(1, 3)) == plain


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half, torch.float64])
def test_models_of_another_type_take_the_example_as_it_is(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).to(dtype)
    exact = measure(copy.deepcopy(model).double(), torch.rand(1, 1, 4, 4), ords=(1, math.inf))
    for a, b in zip(measure(model, torch.rand(1, 1, 4, 4), ords=(1, math.inf)).rows, exact.rows, strict=True):
        assert {p: float(n.lower) for p, n in a.norms.items()} == pytest.approx(
            {p: float(n.lower) for p, n in b.norms.items()}, rel=1e-2 if a.kind == "BatchNorm2d" else 1e-12
        )


def test_nothing_is_compiled_to_find_the_shapes():
    compiled = []

    def backend(module, inputs):
        compiled.append(module)
        return module.forward

    model = nn.Sequential(nn.Linear(3, 3), torch.compile(nn.Linear(3, 2), backend=backend))
    assert len(measure(model, torch.zeros(1, 3), ords=(1,)).rows) == 2
    opnorm.norms.lipschitz_bound(model, torch.zeros(1, 3), 1)
    assert not compiled


def test_a_lazy_layer_is_a_row_and_stays_lazy():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.LazyLinear(2))
    state = torch.get_rng_state()
    rows = measure(model, torch.zeros(1, 3)).rows
    assert [len(r.norms) for r in rows] == [3, 0, 0]
    assert "lazy" in rows[2].note
    assert rows[2].in_shape == (4,)
    assert isinstance(model[2], nn.LazyLinear)
    assert model[2].has_uninitialized_params()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_layer_on_the_meta_device_is_a_row():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, device="meta"))
    rows = measure(model, torch.zeros(1, 3)).rows
    assert [len(r.norms) for r in rows] == [3, 0]
    assert "meta device" in rows[1].note
    assert measure(model.to("meta"), torch.zeros(1, 3)).rows[0].out_shape == (4,)


def test_a_quantized_layer_is_a_row():
    quantization = pytest.importorskip("torch.ao.quantization")
    if set(torch.backends.quantized.supported_engines) <= {"none"}:
        pytest.skip("this torch has no engine for quantized layers")
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model[2] = quantization.quantize_dynamic(nn.Sequential(model[2]), {nn.Linear})[0]
        rows = measure(model, torch.zeros(1, 3)).rows
    assert [len(r.norms) for r in rows] == [3, 0, 0]
    assert "quantized" in rows[2].note


def test_layers_that_are_no_map_between_tensors_are_rows():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.rnn = nn.LSTM(4, 4, batch_first=True)
            self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
            self.mix = nn.Bilinear(4, 4, 3)
            self.unused = nn.Linear(3, 3)

        def forward(self, tokens):
            x, _ = self.rnn(self.embed(tokens))
            x, _ = self.attend(x, x, x)
            return self.mix(x, x)

    table = measure(Odd(), torch.zeros(1, 6, dtype=torch.long))
    assert [(r.layer, r.norms) for r in table.rows] == [
        ("embed", {}),
        ("rnn", {}),
        ("attend", {}),
        ("mix", {}),
    ]
    assert [r.note.split(" ", 1)[1][:12] for r in table.rows] == [
        "takes whole ",
        "returns tupl",
        "uses paramet",
        "takes 2 tens",
    ]
    assert table.uncalled == ("unused",)
    assert "Not reached by this forward pass: unused" in str(table)


def test_activations_show_their_constants():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.MaxPool2d(3, 2), nn.GLU(1), nn.Flatten(), nn.LayerNorm(9)
    )
    rows = measure(model, torch.rand(1, 1, 9, 9)).rows
    assert rows[1].lipschitz == {1: 0.25, 2: 0.25, math.inf: 0.25}
    assert rows[2].lipschitz == {1: 4, 2: 2, math.inf: 1}
    assert rows[3].lipschitz == {}
    assert "multiplies" in rows[3].note
    assert rows[4].norms[2].exact
    assert list(rows[5].lipschitz) == [1, 2, math.inf]
    assert not any(r.norms for r in rows if r.lipschitz)


def test_an_affine_layer_of_any_type_goes_through_its_matrix():
    class Difference(nn.Module):
        def forward(self, x):
            return x[..., 1:] - x[..., :-1] + 3

    for p, norm in ((1, 2), (math.inf, 2)):
        assert operator_norm(Difference(), p, (5,)) == Norm.of(norm, norm, "exact: the explicit matrix")
    assert float(operator_norm(Difference(), 2, (5,)).upper) == pytest.approx(2 * math.cos(math.pi / 10))

    class Square(nn.Module):
        def forward(self, x):
            return x**2

    rows = measure(nn.Sequential(Difference(), Square()), torch.zeros(1, 5)).rows
    assert len(rows[0].norms) == 3
    assert rows[1].note == "Square is not linear"


def test_a_matrix_that_is_too_large_is_said_to_be():
    class Shift(nn.Module):
        def forward(self, x):
            return x + 1

    (row,) = measure(Shift(), torch.zeros(1, 3, 100, 100), ords=(1,)).rows
    assert "matrix" in row.note


def test_an_error_nobody_foresaw_is_a_note():
    class Broken(nn.Linear):
        @property
        def in_features(self):
            raise ZeroDivisionError("surprise")

        @in_features.setter
        def in_features(self, value):
            pass

    rows = measure(nn.Sequential(Broken(2, 2), nn.Linear(2, 2)), torch.zeros(1, 2)).rows
    assert "ZeroDivisionError: surprise" in rows[0].note
    assert len(rows[1].norms) == 3


def test_integer_and_complex_weights():
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int32), requires_grad=False)
    with pytest.raises(NormError, match=r"weight .*torch.int32"):
        operator_norm(layer, 1, (2,))
    with pytest.raises(NormError, match="complex"):
        operator_norm(nn.Linear(2, 2, dtype=torch.complex64), 1, (2,))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_overflow_a_sum_are_not_mistaken_for_nan(bad):
    layer = nn.Linear(2, 2)
    layer.weight.data.fill_(3e38)
    assert float(operator_norm(layer, 1, (2,)).lower) == pytest.approx(6e38)
    layer.weight.data[0, 0] = bad
    with pytest.raises(NormError, match="weight has 1 of 4 entries"):
        operator_norm(layer, 1, (2,))


@pytest.mark.parametrize("example", [3, "abc", None, torch.tensor(1.0)])
def test_examples_that_are_none(example):
    with pytest.raises(OpnormError, match="the example is"):
        arguments(nn.Linear(2, 2), example)


def test_a_forward_that_wants_more():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(OpnormError, match="does its forward want more"):
        measure(Two(), torch.zeros(1, 2))


def test_pairs():
    induced = pytest.importorskip("opnorm.norms.induced")
    layer = nn.Linear(3, 2)
    table = measure(layer, torch.zeros(1, 3), ords=((1, 2), 1, (2, 2)))
    assert table.rows[0].norms[1, 2] == induced.induced_norm(layer, 1, 2, (3,))
    assert table.rows[0].norms[2, 2] == operator_norm(layer, 2, (3,))
    assert "ℓ1→ℓ2" in str(table)
    assert NormTable.from_json(table.to_json()).rows == table.rows
    for ord in (3, (1, 3), (1, 2, 2), "2"):
        with pytest.raises(NormError, match="is not known"):
            operator_norm(layer, ord, (3,))


def test_every_layer_of_a_resnet50_has_its_norms():
    table = measure(nets.resnet50(width=16), torch.zeros(1, 3, 64, 64), ords=(1, math.inf))
    assert sum(row.kind == "Conv2d" for row in table.rows) == 53
    assert all(row.norms or row.lipschitz for row in table.rows)


def test_width_and_failure_reach_the_intervals():
    torch.manual_seed(0)
    layer, shape = nn.Conv2d(3, 3, 3, padding=1), (3, 20, 20)
    wide, narrow = (
        opnorm.operator_norm(layer, 2, shape, relative_width=0.3),
        opnorm.operator_norm(layer, 2, shape, relative_width=1e-7),
    )
    assert 5e-3 < wide.relative_width <= 0.3
    assert narrow.relative_width <= 1e-7
    assert float(wide.lower) <= float(narrow.upper)
    assert float(narrow.lower) <= float(wide.upper)
    chance = opnorm.operator_norm(
        nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"),
        2,
        (6, 40, 40),
        relative_width=1e-2,
        failure_probability=1e-9,
    )
    assert "probability 1 - 1e-09" in chance.method
    table = opnorm.measure(nn.Sequential(layer), torch.zeros(1, *shape), (2,), relative_width=1e-7)
    assert table.rows[0].norms[2] == narrow
    for bad in ({"relative_width": 0.0}, {"failure_probability": 1.0}, {"relative_width": math.nan}):
        with pytest.raises(NormError, match=r"expected a (number above 0|probability)"):
            opnorm.operator_norm(layer, 2, shape, **bad)
        with pytest.raises(NormError, match=r"expected a (number above 0|probability)"):
            opnorm.measure(nn.Sequential(layer), torch.zeros(1, *shape), (2,), **bad)


def test_an_identity_that_is_too_large_for_a_matrix_has_an_upper_end():
    """A layer without a formula, such as DropPath in eval mode, whose forward has a bound."""

    class Branch(nn.Module):
        def forward(self, x):
            return x * (0.0 if self.training else 2.0)

    (row,) = measure(nn.Sequential(Branch()).eval(), torch.zeros(1, 5, 30, 30), ords=(2,)).rows
    assert row.norms[2].lower <= 2 <= row.norms[2].upper <= 2 * (1 + 1e-9)
