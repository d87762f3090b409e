"""Products with the Jacobian, against forward mode; what is refused, and what is left as it was."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opnorm._core.linear_map import LinearMap
from opnorm.errors import ModelError, NormError
from opnorm.jacobian import Matrices, explicit, features, jacobian_norm, linearized
from tests.jacobian.maps import Residual, nets, points, truth

NETS = nets()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_those_of_the_matrix(name, dtype):
    model, x = nets()[name].to(dtype).train(), points(dtype=dtype)
    A = truth(model, x)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(x.shape, generator=generator).to(dtype)
    u = torch.randn(5, 4, generator=generator).to(dtype)
    tol = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-13}
    with linearized(model, x) as J:
        assert isinstance(J, LinearMap)
        for _ in range(2):
            assert torch.allclose(J @ v, Matrices(A) @ v.flatten(1), **tol)
            assert torch.allclose((J.T @ u).flatten(1), Matrices(A).T @ u, **tol)
        assert (J @ v).dtype == dtype
    assert model.training


@pytest.mark.parametrize("n", [1, 3, 70])
def test_explicit_for_any_number_of_points(n):
    model, x = nets()["residual"].double(), points(n)
    A = truth(model, x)
    found = explicit(model, x)
    assert found.shape == (n, 4, 1, 6, 6)
    assert torch.allclose(found.flatten(2), A, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("layer", ["stem", "bn", "branch", "features"])
def test_hidden_layers_by_name(layer):
    """bn is followed by a ReLU that works in place: its own output is meant all the same."""
    model, x = nets()["residual"].double(), points(2)
    A = truth(model, x, layer)
    assert torch.allclose(explicit(features(model, x, layer), x).flatten(2), A, rtol=1e-12, atol=1e-14)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()
    with linearized(features(model, x, layer), x) as J:
        assert torch.allclose((J @ v).flatten(1), Matrices(A) @ v.flatten(1), rtol=1e-12, atol=1e-13)


def test_the_limit_counts_bytes_and_says_what_fits():
    model, x = nets()["linear"].double(), points(5)
    size = 5 * 4 * 36 * 8
    assert explicit(model, x, limit=size).numel() * 8 == size
    with pytest.raises(
        NormError, match=r"5 Jacobians of 4 x 36 take 5,760 bytes; limit=5,759 allows 4 at a time"
    ):
        explicit(model, x, limit=size - 1)


def test_a_constant_output_has_jacobian_zero():
    class Constant(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] * 0

    x = points(2)
    with linearized(Constant(), x) as J:
        assert torch.equal(J @ x, torch.zeros(2, 3).double())
        assert torch.equal(J.T @ torch.ones(2, 3).double(), torch.zeros_like(x))


def test_the_caller_may_have_switched_gradients_off_and_autocast_on():
    model, x = nets()["residual"], points(3, torch.float32)
    want = explicit(model, x)
    with torch.no_grad():
        assert torch.equal(explicit(model, x), want)
    with torch.inference_mode():
        assert torch.equal(explicit(model, x.clone()), want)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(explicit(model, x), want)


def test_nothing_about_the_model_changes():
    model, x = nets()["residual"].train(), points(3, torch.float32)
    model.head.requires_grad_(False)
    model.bn.eval()
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    state, rng = {k: t.clone() for k, t in model.state_dict().items()}, torch.get_rng_state()
    with linearized(model, x) as J:
        J @ x
        J.T @ torch.ones_like(J.outputs)
    assert model.training
    assert not model.bn.training
    assert model.stem.weight.requires_grad
    assert not model.head.weight.requires_grad
    assert torch.equal(model.stem.weight.grad, torch.ones_like(model.stem.weight))
    assert model.branch.weight.grad is None
    assert x.grad is None
    assert not x.requires_grad
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(t, state[k]) for k, t in model.state_dict().items())


def test_dropout_keeps_its_units_in_train_mode():
    model, x = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3)).double(), points(2)
    with linearized(model, x, mode="train") as J:
        A = torch.stack([(J.T @ e.expand(2, 3)).flatten(1) for e in torch.eye(3).double()], 1)
        assert torch.allclose(J @ x, Matrices(A) @ x.flatten(1), rtol=1e-12)
        assert (A[0, 0] == 0).any()
    assert torch.allclose(explicit(model, x, mode="train").flatten(2), A, rtol=1e-12)


def test_batch_norm_in_train_mode_is_refused():
    model, x = Residual().train(), points(3, torch.float32)
    for mode in ("as is", "train"):
        with pytest.raises(
            ModelError, match=r"batch norm 'bn' couples the points of a batch .it is in train mode"
        ):
            explicit(model, x, mode=mode)
    explicit(model.eval(), x, mode="as is")
    model = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten())
    with pytest.raises(ModelError, match=r"'0' couples .* keeps no running statistics"):
        explicit(model, x)


class Formula(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


MIXING = {
    "normalized along the batch": lambda t: F.normalize(t.flatten(1), dim=0),
    "divided by one length": lambda t: t.flatten(1) / t.norm(),
    "centered": lambda t: t.flatten(1) - 0.1 * t.mean(0).flatten(),
    "softmax along the batch": lambda t: t.flatten(1).softmax(0),
    "running sums": lambda t: t.flatten(1).cumsum(0),
    "running sums from the end": lambda t: t.flip(0).flatten(1).cumsum(0).flip(0),
    "in reversed order": lambda t: t.flip(0).flatten(1),
    "the first for all": lambda t: t[:1].expand_as(t).flatten(1) * 2.0,
    "one score of all": lambda t: t.flatten(1).sigmoid() * t.sigmoid().sum(),
}


@pytest.mark.parametrize("kind", MIXING)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_models_that_mix_points_are_refused(kind, count):
    model, x = Formula(MIXING[kind]), points(count)
    for call in (
        explicit,
        lambda m, t: jacobian_norm(m, t),
        lambda m, t: jacobian_norm(m, t, p=1, q=math.inf),
    ):
        with pytest.raises(ModelError, match="Formula mixes the points of a batch"):
            call(model, x)
    with pytest.raises(ModelError, match="no Jacobian of their own"), linearized(model, x):
        pass


def test_points_are_not_mixed_by_an_infinite_derivative_of_another_or_a_fixed_batch_size():
    x = points(3)
    x[2] = 0
    J = explicit(Formula(lambda t: t.flatten(1).abs().sqrt()), x)
    assert J[:2].isfinite().all()
    with linearized(Formula(lambda t: t.reshape(3, 36) * 2), x) as fixed:
        assert torch.equal(fixed @ x, 2 * x.flatten(1))


class Returns(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f, self.inner = f, nn.Linear(36, 36)

    def forward(self, x):
        return self.f(self.inner(x.flatten(1)))


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda z: z.detach(), "does not depend on the input in a differentiable way; is it detached"),
        (lambda z: z.argmax(1), "does not depend on the input in a differentiable way"),
        (lambda z: z / 0, "gives NaN or infinity for 3 of 3 points; diverged training?"),
        (lambda z: z.sum(), r"gives shape \(\) for 3 points"),
        (lambda z: z[:2], r"gives shape \(2, 36\) for 3 points"),
        (lambda z: (z, z), "returns tuple with 2 tensors"),
    ],
)
def test_outputs_without_a_jacobian(f, message):
    model = Returns(f)
    with pytest.raises(ModelError, match=message), linearized(model, torch.rand(3, 36)):
        pass
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_layers_that_are_not_there():
    model, x = nets()["residual"], points(2, torch.float32)
    with pytest.raises(ModelError, match="Residual has no layer 'feature'; did you mean 'features'"):
        explicit(features(model, x, "feature"), x)
    model.spare = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="layer 'spare' is called 0 times in a forward pass; expected once"):
        explicit(features(model, x, "spare"), x)
    twice = Returns(lambda z: z)
    twice.f = twice.inner
    with pytest.raises(ModelError, match="layer 'inner' is called 2 times"):
        explicit(features(twice, torch.rand(2, 36), "inner"), torch.rand(2, 36))


def test_points_and_vectors_that_do_not_fit():
    model, x = nets()["linear"].double(), points(2)
    for wrong in (x.byte(), x[:0], torch.tensor(1.0)):
        with pytest.raises(NormError, match="expected floating point"):
            explicit(model, wrong)
    with linearized(model, x) as J:
        with pytest.raises(NormError, match=r"vectors of shape \(2, 5\); expected \(2, 4\)"):
            J.T @ torch.zeros(2, 5).double()
        with pytest.raises(NormError, match=r"vectors of shape \(1, 1, 6, 6\); expected \(2, 1, 6, 6\)"):
            J @ x[:1]


class Attention(nn.Module):
    """One head, by torch's fused function or written out."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused

    def forward(self, x):
        q, k, v = x, 2 * x, x.flip(2)
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v)
        return (q @ k.mT / math.sqrt(x.shape[2])).softmax(2) @ v


def test_fused_attention_has_the_jacobian_of_what_it_computes():
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with linearized(Attention(True), x) as fused, linearized(Attention(False), x) as written:
        assert torch.allclose(fused @ v, written @ v)
        assert torch.allclose(fused.T @ v, written.T @ v)
