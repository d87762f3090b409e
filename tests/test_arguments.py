"""Wrong arguments of public functions end in opnorm's own error, which names what was given and what was expected."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import config
from torch import Tensor, nn

import opnorm
from opnorm import jacobian_norm, lipschitz_bound, measure, norms, operator_norm
from opnorm.analyses import accuracy, jacobian_norms, norm_table
from opnorm.attacks import accuracy_curve, apgd, autoattack, fab, fgsm, minimal_eps, pgd, square
from opnorm.certificates import certified, lipschitz_radius
from opnorm.data import Dataset, Split, digits, folder, hf, parquet
from opnorm.data.class_separation import separation
from opnorm.errors import (
    AttackError,
    DataError,
    ModelError,
    NormError,
    OpnormError,
    RunError,
    SpecError,
    TrainError,
)
from opnorm.jacobian import linearized, secant_ascent, theorem_1
from opnorm.models import cnn, file, save
from opnorm.objectives import Outcome, mmc, pgd_at, plain, trades
from opnorm.regularizers import Hooks, chain, dd_snr, global_snr, input_gradient, norm_decay, weight_decay
from opnorm.runs.attack_evaluation import evaluate
from opnorm.training import TrainingSettings, train


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(192, 10))


MODEL = network().eval()
CONV = nn.Conv2d(1, 3, 3, padding=1)
LINEAR = nn.Linear(5, 3)
X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(4)
IMAGES = Split((X * 255).to(torch.uint8), Y)
ONE_HOT = nn.functional.one_hot(Y, 10)


def data() -> Dataset:
    return digits().limit(40)


def with_weight(change: Callable[[Tensor], Tensor]) -> nn.Linear:
    layer = nn.Linear(5, 3, bias=False)
    layer.weight = nn.Parameter(change(layer.weight.detach()))
    return layer


SPARSE = with_weight(Tensor.to_sparse)
SPARSE_WITH_BIAS = nn.Linear(5, 3)  # torch cannot run it
SPARSE_WITH_BIAS.weight = SPARSE.weight
COMPLEX = with_weight(lambda w: w.to(torch.complex64))


def trained(model: Any = None, on: Any = None, **settings: Any) -> Any:
    chosen = TrainingSettings(**{"epochs": 1, "batch": 20} | settings)
    return train(network() if model is None else model, data() if on is None else on, chosen)


def penalized(value: Callable[[Tensor], Any]) -> Any:
    return trained(regularizers=[lambda model, x: Hooks(penalty=lambda model, x, y: value(x))])


def objective(make: Callable[[nn.Module, Tensor, Tensor], Any]) -> Any:
    return trained(objective=make)


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x), y)


def secants(x: Any, v: Any) -> Any:
    return list(secant_ascent(MODEL, x, v, 0.1))


# (call, kind of error, what the message has): the value and what was expected
NORMS: list[tuple[Callable[[], Any], type[OpnormError], str]] = [
    (lambda: measure(MODEL, X, ords=3), NormError, "ords=3: expected several orders"),
    (lambda: measure(MODEL, X, ords=None), NormError, "ords=None"),
    (lambda: measure(MODEL, X, ords="2"), NormError, "ords='2'"),
    (lambda: measure(MODEL, X, ords=(math.nan,)), NormError, "ord=nan"),
    (lambda: measure(MODEL, X, only=3), NormError, "pattern 3"),
    (lambda: measure(MODEL, X, relative_width="a"), NormError, "relative_width='a'"),
    (lambda: measure(MODEL, X, failure_probability=2), NormError, "failure_probability=2"),
    (lambda: measure(MODEL.state_dict(), X), ModelError, "a OrderedDict is no network.*load_state_dict"),
    (lambda: measure(nn.Linear, X), ModelError, r"the class Linear is no network.*call it: Linear\(\.\.\.\)"),
    (lambda: measure(None, X), ModelError, "None is no network"),
    (lambda: measure("cnn()", X), ModelError, "'cnn\\(\\)' is no network.*opnorm.build"),
    (lambda: measure(MODEL, X.numpy()), OpnormError, "the example is ndarray"),
    (lambda: measure(MODEL, X[0]), OpnormError, r"shape \(8, 8\).*first axis .* is taken for the batch"),
    (lambda: measure(MODEL, IMAGES.images), OpnormError, "uint8.*pixels / 255"),
    (lambda: measure(nn.Sequential(SPARSE_WITH_BIAS), torch.rand(1, 5)), OpnormError, "0.weight is sparse.*to_dense"),
    (lambda: operator_norm(LINEAR.weight, 2), ModelError, r"shape \(3, 5\) is no network.*the layer"),
    (lambda: operator_norm(LINEAR, "2"), NormError, "ord='2'"),
    (lambda: operator_norm(CONV, 2, 8), NormError, "in_shape=8: expected the shape of one input"),
    (lambda: operator_norm(CONV, 2, "1,8,8"), NormError, "in_shape='1,8,8'"),
    (lambda: operator_norm(CONV, 2, (1, -8, 8)), NormError, r"in_shape=\(1, -8, 8\)"),
    (lambda: operator_norm(CONV, 2, (1, 8.0, 8)), NormError, r"in_shape=\(1, 8.0, 8\)"),
    (lambda: operator_norm(CONV, 2, X), NormError, "in_shape="),
    (lambda: operator_norm(CONV, 2, (4, 1, 8, 8)), NormError, r"1 channels and 2 spatial axes.*\(4, 1, 8, 8\)"),
    (lambda: operator_norm(SPARSE, 2), NormError, "sparse.*to_dense"),
    (lambda: operator_norm(COMPLEX, 1), NormError, "complex64.*real numbers"),
    (lambda: norms.l1(None, (5,)), ModelError, "None is no network"),
    (lambda: norms.linf(CONV, None), NormError, "in_shape=None"),
    (lambda: norms.l1(SPARSE, (5,)), NormError, "sparse"),
    (lambda: norms.spectral_norm(CONV, in_shape=3), NormError, "in_shape=3"),
    (lambda: norms.lipschitz(nn.ReLU(), 2, None), NormError, "in_shape=None"),
    (lambda: norms.bound(CONV, 8), NormError, "in_shape=8"),
    (lambda: norms.vs_norm(CONV, (3, 8, 8)), NormError, "takes 1 channels"),
    (lambda: norms.vs_norm(nn.ReLU(), (8,)), NormError, "ReLU has no parameters"),
    (lambda: norms.sgl_norm(CONV.weight, 8), NormError, "input_size=8"),
    (lambda: norms.singular_values(CONV, 8), NormError, "in_shape=8"),
    (lambda: norms.smallest_singular_value(nn.Linear(5, 0), (5,)), NormError, "no singular values"),
    (lambda: norms.singular_value_spread(nn.Linear(5, 0), (5,)), NormError, "no singular values"),
    (lambda: norms.induced_norm(CONV, math.inf, 1, (1, 8, 8), restarts="a"), NormError, "restarts='a'"),
    (lambda: norms.induced_norm(CONV, "1", 2, (1, 8, 8)), NormError, "p='1'"),
    (lambda: norms.power_iteration(CONV, 3), NormError, "a Conv2d is no LinearMap"),
    (lambda: norms.linear_map(LINEAR, (5,)) @ torch.zeros(1, 5), NormError, "float32.*float64"),
    (lambda: norms.linear_map(LINEAR, (5,)) @ None, NormError, "vectors: None"),
    (lambda: norms.conv_l1(CONV, (8, 8)), NormError, "weight: a Conv2d.*torch.Tensor"),
    (lambda: norms.conv_linf(CONV.weight, 8), NormError, "input_size=8"),
    (lambda: norms.conv_transpose_l1(CONV.weight, (8, 8), groups="1"), NormError, "groups='1'"),
    (lambda: norms.linear_l1(np.eye(3)), NormError, "a ndarray.*from_numpy"),
    (lambda: norms.linear_linf(CONV.weight), NormError, r"\(3, 1, 3, 3\); expected a matrix"),
    (lambda: norms.folded(CONV, None), ModelError, "None is no network"),
    (lambda: norms.compare(MODEL, MODEL), NormError, "a Sequential is no table of norms"),
    (lambda: norms.NormTable.from_json("[" * 100_000), NormError, "expected a table of norms"),
    (lambda: lipschitz_bound(MODEL.state_dict(), X), ModelError, "OrderedDict"),
    (lambda: lipschitz_bound(MODEL, X, 3), NormError, "ord=3"),
]  # fmt: skip
POINTS: list[tuple[Callable[[], Any], type[OpnormError], str]] = [
    (lambda: jacobian_norm(None, X), ModelError, "None is no network"),
    (lambda: jacobian_norm(MODEL, X.numpy()), NormError, "points: a ndarray.*from_numpy"),
    (lambda: jacobian_norm(MODEL, X[0]), ModelError, r"does not take inputs of shape \(1, 8, 8\)"),
    (lambda: jacobian_norm(MODEL, X, p="2"), NormError, "p='2'"),
    (lambda: linearized(MODEL.state_dict(), X).__enter__(), ModelError, "OrderedDict"),
    (lambda: theorem_1(MODEL, X[:0], 0.1), NormError, "B at least 1"),
    (lambda: secants(X, None), NormError, "v: None"),
    (lambda: secants(X, X[:2]), NormError, r"v has shape \(2, 1, 8, 8\)"),
    (lambda: certified(MODEL, X, Y.tolist(), eps=0.1), AttackError, "labels: a list.*torch.tensor"),
    (lambda: lipschitz_radius(MODEL, X * 2, Y), AttackError, "range from"),
    (lambda: evaluate(MODEL, X[0], Y[:1], pgd(eps=0.1)), ModelError, "does not take inputs of shape"),
    (lambda: evaluate(MODEL, X.numpy(), Y, pgd(eps=0.1)), AttackError, "inputs: a ndarray"),
    (lambda: minimal_eps(MODEL, X, Y, pgd(eps=0.1)), AttackError, "attack is a PGD.*lambda eps"),
    (lambda: minimal_eps(MODEL, X, Y, lambda eps: pgd(eps=eps), norm="inf"), AttackError, "norm='inf'"),
    (lambda: pgd(norm="inf", eps=0.1), AttackError, r"or inf; a number has no quotes: inf in a call, math\.inf in Python$"),
    (lambda: pgd(eps="8/255"), AttackError, "such as 8/255; a number has no quotes$"),
    (lambda: apgd(norm="Linf", eps=0.1), AttackError, "expected 1, 2 or inf$"),
    (lambda: norm_decay(p=1, beta="1e-3"), SpecError, "at least 0; a number has no quotes$"),
    (lambda: norm_decay(p="inf"), SpecError, "expected 1 or inf; a number has no quotes: inf"),
    (lambda: accuracy_curve([0.1], [0.1]), AttackError, "distance: a list"),
    (lambda: accuracy_curve(torch.ones(2), "a"), AttackError, "radii='a'"),
    (lambda: plain()(MODEL, X, Y.float()), AttackError, r"float32 labels.*y\.long"),
    (lambda: plain()(MODEL, X, Y + 20), AttackError, "labels range from 20 to 23, but the model has 10"),
    (lambda: plain()(MODEL, X, Y * 0 - 100), AttackError, "labels range from -100 to -100"),
    (lambda: mmc()(MODEL, X, Y * 0 - 1), AttackError, "labels range from -1 to -1"),
    (lambda: plain()(MODEL, X[:0], Y[:0]), AttackError, "the batch is empty"),
    (lambda: plain()(None, X, Y), ModelError, "None is no network"),
    (lambda: trades()(MODEL, X, ONE_HOT), AttackError, r"\(4, 10\).*argmax"),
]  # fmt: skip
TRAINING: list[tuple[Callable[[], Any], type[OpnormError], str]] = [
    (lambda: trained(on=X), DataError, r"a tensor of shape \(4, 1, 8, 8\); expected an opnorm.data.Dataset"),
    (lambda: trained(on=data().train), DataError, "a Split"),
    (lambda: trained(model=MODEL.state_dict()), ModelError, "OrderedDict"),
    (lambda: train(network(), data(), {"epochs": 1}), TrainError, "a dict; expected TrainingSettings"),
    (lambda: train(network(), data(), device="nope"), TrainError, "device='nope'"),
    (lambda: trained(epochs="3"), TrainError, "epochs='3'"),
    (lambda: trained(batch=1.5), TrainError, "batch=1.5"),
    (lambda: trained(seed=None), TrainError, "seed=None"),
    (lambda: trained(ema="a"), TrainError, "ema='a'"),
    (lambda: trained(objective="plain()"), TrainError, "objective='plain.*opnorm.build"),
    (lambda: trained(objective=pgd_at), TrainError, r"objective=pgd_at.*call it: pgd_at\(\.\.\.\)"),
    (lambda: trained(regularizers=norm_decay(p=1, beta=1e-3)), TrainError, "expected a list"),
    (lambda: trained(regularizers=[norm_decay]), TrainError, "call it: norm_decay"),
    (lambda: trained(optimizer="sgd"), TrainError, "optimizer='sgd'"),
    (lambda: trained(schedule=None), TrainError, "schedule=None"),
    (lambda: trained(augment=["flip()"]), TrainError, "augment='flip"),
    (lambda: objective(lambda m, x, y: (loss(m, x, y), m(x))), TrainError, r"a tuple.*Outcome\(loss, logits\)"),
    (lambda: objective(loss), TrainError, "gave a tensor"),
    (lambda: objective(lambda m, x, y: None), TrainError, "gave None"),
    (lambda: objective(lambda m, x, y: Outcome(loss(m, x, y).item(), m(x))), TrainError, "loss of the objective is"),
    (lambda: objective(lambda m, x, y: Outcome(loss(m, x, y).detach(), m(x))), TrainError, "no weight.*detach"),
    (lambda: objective(lambda m, x, y: Outcome(loss(m, x, y), y)), TrainError, "logits of the objective"),
    (lambda: penalized(lambda x: 0.1), ModelError, "regularizer 1 is 0.1; expected a scalar tensor"),
    (lambda: penalized(lambda x: None), ModelError, "regularizer 1 is None"),
    (lambda: penalized(lambda x: x.flatten(1).sum(1)), ModelError, r"a tensor of shape \(20,\)"),
    (lambda: trained(regularizers=[lambda model, x: None]), ModelError, "gave None; expected Hooks"),
    (lambda: chain([weight_decay(lam=0.1)]), ModelError, "a function; expected Hooks"),
    (lambda: dd_snr()(network(), None), NormError, "points: None"),
    (lambda: input_gradient()(network(), X.numpy()), NormError, "points: a ndarray"),
    (lambda: trained(model=nn.Sequential(nn.Flatten(), nn.Linear(64, 3))), ModelError, r"\(1, 3\).*expected \(1, 10\)"),
    (lambda: trained(model=network().double()), ModelError, r"weights are torch.float64: model.to\(torch.float32\)"),
    (lambda: trained(model=cnn(width=4, in_shape=(3, 8, 8))), ModelError, "channels"),
]  # fmt: skip
REST: list[tuple[Callable[[], Any], type[OpnormError], str]] = [
    (lambda: Dataset("a", IMAGES, IMAGES, 4), DataError, "classes=4"),
    (lambda: Dataset("a", IMAGES, IMAGES, "abcd"), DataError, "classes='abcd'"),
    (lambda: Dataset("a", IMAGES, IMAGES, ("a", "b", "b", "c")), DataError, "occur twice, such as 'b'"),
    (lambda: Dataset("a", X, IMAGES, tuple("abcd")), DataError, r"train is a tensor.*Split\(images, labels\)"),
    (lambda: data().limit("5"), DataError, "limit='5'"),
    (lambda: data().limit(1.5), DataError, "limit=1.5"),
    (lambda: parquet(None), DataError, "the path is None"),
    (lambda: parquet("x", train=5), DataError, "train=5"),
    (lambda: folder(5), DataError, "the path is 5"),
    (lambda: hf(None), DataError, "repo=None"),
    (lambda: separation(X), DataError, "expected an opnorm.data.Dataset"),
    (lambda: cnn(mean="a"), ModelError, "mean='a'"),
    (lambda: file(None), ModelError, "the path is None"),
    (lambda: save(MODEL.state_dict(), "a.safetensors"), ModelError, "save: a OrderedDict"),
    (lambda: opnorm.analyze(None, data()), ModelError, "None is no network"),
    (lambda: opnorm.analyze(MODEL, X), DataError, "expected an opnorm.data.Dataset"),
    (lambda: opnorm.analyze(MODEL, data(), 5), SpecError, "analyses=5"),
    (lambda: accuracy()(MODEL.state_dict(), data()), ModelError, "OrderedDict"),
    (lambda: accuracy()(MODEL, None), DataError, "None; expected an opnorm.data.Dataset"),
    (lambda: norm_table(ords=3), NormError, "ords=3"),
    (lambda: jacobian_norms(seed="a"), SpecError, "seed='a'"),
    (lambda: opnorm.build("cnn()", "modell"), SpecError, "kind='modell'"),
    (lambda: opnorm.Run("cnn()", "digits()", epochs="a"), TrainError, "epochs='a'"),
    (lambda: opnorm.Run("cnn()", "digits()", limit="a"), SpecError, "limit='a'"),
    (lambda: opnorm.Run("cnn()", "digits()", regularizers=None), SpecError, "regularizers=None"),
    (lambda: opnorm.Store(5), RunError, "root=5"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def as_users_have_it() -> Iterator[None]:
    """Without the type checks of jaxtyping, which only the tests have."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("case", [*NORMS, *POINTS, *TRAINING, *REST], ids=lambda case: case[2])
def test_a_wrong_argument_is_named(case: tuple[Callable[[], Any], type[OpnormError], str]) -> None:
    call, kind, pattern = case
    with pytest.raises(kind) as caught:
        call()
    assert re.search(pattern, str(caught.value), re.DOTALL), str(caught.value)


WRONG_BATCHES: dict[str, tuple[Any, Any, str]] = {
    "no inputs": (None, Y, "inputs: None"),
    "numpy inputs": (X.numpy(), Y, "inputs: a ndarray.*from_numpy"),
    "a list of inputs": (X.tolist(), Y, "inputs: a list"),
    "uint8": (IMAGES.images, Y, "uint8.*divide uint8 pixels by 255"),
    "pixels above 1": (X * 3, Y, r"range from .* expected \[0, 1\]"),
    "pixels below 0": (X - 1, Y, r"range from .* expected \[0, 1\]"),
    "NaN": (X * math.nan, Y, "4 of 4 inputs contain NaN"),
    "other channels": (torch.rand(4, 3, 8, 8), Y, r"does not take inputs of shape \(4, 3, 8, 8\)"),
    "no batch axis": (X[0], Y[:1], r"does not take inputs of shape \(1, 8, 8\)"),
    "no labels": (X, None, "labels: None"),
    "a list of labels": (X, Y.tolist(), r"labels: a list.*torch\.tensor"),
    "numpy labels": (X, Y.numpy(), r"labels: a ndarray.*from_numpy"),
    "one label": (X, 1, "labels: 1"),
    "float labels": (X, Y.float(), r"float32 labels .* y\.long\(\)"),
    "int32 labels": (X, Y.int(), r"int32 labels .* y\.long\(\)"),
    "one-hot labels": (X, ONE_HOT, r"\(4, 10\).*one-hot\? y\.argmax\(1\)"),
    "labels (B, 1)": (X, Y[:, None], r"\(4, 1\).*y\.squeeze\(1\)"),
    "labels of other points": (X, Y[:3], "is the batch axis of one of them missing"),
    "labels above": (X, Y + 20, "labels range from 20 to 23, but the model has 10 classes"),
    "labels below": (X, Y - 5, "labels range from -5 to -2, but the model has 10 classes"),
}


@pytest.mark.parametrize("batch", WRONG_BATCHES)
@pytest.mark.parametrize("attack", [pgd, fgsm, apgd, fab, square, autoattack], ids=lambda f: f.__name__)
def test_attacks_name_what_is_wrong_with_a_batch(attack: Callable[..., Any], batch: str) -> None:
    x, y, pattern = WRONG_BATCHES[batch]
    with pytest.raises((AttackError, ModelError)) as caught:
        attack(eps=0.1)(MODEL, x, y)
    assert re.search(pattern, str(caught.value), re.DOTALL), str(caught.value)


@pytest.mark.parametrize("attack", [pgd, fgsm, apgd, fab, square, autoattack], ids=lambda f: f.__name__)
@pytest.mark.parametrize("model", [None, MODEL.state_dict(), nn.Linear], ids=["None", "state dict", "class"])
def test_attacks_name_what_is_no_network(attack: Callable[..., Any], model: Any) -> None:
    with pytest.raises(ModelError, match="is no network"):
        attack(eps=0.1)(model, X, Y)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("ord", [1, 2, math.inf, (1, 2), (2, 1)])
def test_a_layer_without_inputs_or_outputs_has_norm_0(ord: Any) -> None:
    for layer in (nn.Linear(5, 0), nn.Linear(0, 5), nn.Linear(5, 0, bias=False)):
        found = operator_norm(layer, ord)
        assert (found.lower, found.upper) == (0, 0)


@pytest.mark.parametrize("ord", [1, 2, math.inf, (1, math.inf)])
def test_an_empty_sequence_is_the_identity(ord: Any) -> None:
    found = operator_norm(nn.Sequential(), ord, (8, 16, 16))
    assert (found.lower, found.upper) == (1, 1)
    assert norms.l1(nn.Sequential(), (5,)) == norms.linf(nn.Sequential(), (5,)) == 1


def test_a_shortcut_of_nothing_is_in_the_table_and_in_the_bound() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.shortcut = nn.Conv2d(1, 1, 1, bias=False), nn.Sequential()
            nn.init.constant_(self.conv.weight, 0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.shortcut(x)

    x = torch.rand(1, 1, 8, 8)
    row = next(row for row in measure(Block(), x).rows if row.layer == "shortcut")
    assert [float(norm) for norm in row.norms.values()] == [1, 1, 1]
    for ord in (1, 2, math.inf):
        assert lipschitz_bound(Block(), x, ord).value == pytest.approx(1.5, rel=1e-2)


def test_norms_of_complex_layers_are_not_known_and_the_reason_says_so() -> None:
    x = torch.rand(1, 5, dtype=torch.complex64)
    (row,) = measure(nn.Sequential(COMPLEX), x).rows
    assert not row.norms
    assert "complex numbers" in row.note
    bound = lipschitz_bound(nn.Sequential(COMPLEX), x)
    assert bound.value is None
    assert "complex" in bound.reason


def test_norms_of_sparse_layers_are_not_known_and_the_reason_says_so() -> None:
    (row,) = measure(nn.Sequential(SPARSE), torch.rand(1, 5)).rows
    assert not row.norms
    assert "sparse" in row.note
    assert lipschitz_bound(nn.Sequential(SPARSE), torch.rand(1, 5)).value is None


@pytest.mark.parametrize("operator", ["reshaped", "true"])
def test_a_model_may_change_its_type_after_binding(operator: str) -> None:
    model = network()
    hooks = global_snr(lam=0.1, operator=operator)(model, X)
    model.double()
    penalty = hooks.penalty(model, X.double(), Y)
    penalty.backward()
    assert penalty.dtype == torch.float64
    assert bool(penalty > 0)
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters() if p.ndim > 1)
