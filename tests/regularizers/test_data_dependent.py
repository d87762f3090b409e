"""Data-dependent norms as penalties: values and gradients against the SVD of explicit Jacobians."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opnorm.errors import ModelError, SpecError
from opnorm.jacobian import dual, on_sphere, random_start
from opnorm.regularizers import dd_onr, dd_snr, input_gradient
from opnorm.spec import build, spec_of

INF = math.inf
CELLS = list(itertools.product((1, 2, INF), (1, 2, INF)))
HARD = [(2, 1), (INF, 1), (INF, 2)]
Y = torch.tensor([0, 1, 2, 3, 0])


class Residual(nn.Module):
    """Batch norm, max-pooling, a skip, dropout, in-place ReLU; ``classes`` logits."""

    def __init__(self, classes=4):
        super().__init__()
        self.stem, self.bn, self.act = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)
        self.branch = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(27, classes))

    def forward(self, x):
        x = self.act(self.bn(self.stem(x)))
        return self.head(F.max_pool2d(x + F.relu(self.branch(x)), 2))


def net(classes=4, frozen=False):
    torch.manual_seed(0)
    model = Residual(classes).double().train()
    model.bn.running_mean.uniform_(-0.3, 0.3)
    model.bn.running_var.uniform_(0.1, 0.5)
    model.bn.train(not frozen)
    return model


def points(n=5):
    return torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(1)).double()


def logits(model, z, x):
    """The network at z written out, its batch norm by the statistics of x, unless it is frozen; no dropout."""
    bn, a = model.bn, model.stem(x)
    mean, var = bn.running_mean, bn.running_var
    if bn.training:
        mean, var = a.mean((0, 2, 3)), a.var((0, 2, 3), unbiased=False)
    mean, var, gamma, beta = (t[:, None, None] for t in (mean, var, bn.weight, bn.bias))
    h = ((model.stem(z) - mean) / (var + bn.eps).sqrt() * gamma + beta).relu()
    return model.head[2](F.max_pool2d(h + model.branch(h).relu(), 2).flatten(1))


def jacobians(model, x):
    """(B, K, n), differentiable in the weights."""
    z = x.clone().requires_grad_()
    rows = [torch.autograd.grad(f.sum(), z, create_graph=True)[0] for f in logits(model, z, x).unbind(1)]
    return torch.stack([r.flatten(1) for r in rows], 1)


def gradients(value, model):
    grads = torch.autograd.grad(value, list(model.parameters()), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(grads, model.parameters(), strict=True)]


def same(ours, theirs, model, rtol=1e-9):
    assert torch.isclose(ours, theirs, rtol=rtol)
    for a, b in zip(gradients(ours, model), gradients(theirs, model), strict=True):
        assert torch.allclose(a, b, rtol=rtol, atol=rtol * float(b.abs().max() + 1e-3))


def brute(A, p, q):
    """‖A‖_{p→q} of one matrix, differentiable: columns, singular values, rows, or the signs of the outputs."""
    if p == 1:
        return torch.linalg.vector_norm(A, q, 0).max()
    dual = {1: INF, 2: 2, INF: 1}[p]
    if q == INF:
        return torch.linalg.vector_norm(A, dual, 1).max()
    if p == q == 2:
        return torch.linalg.svdvals(A)[0]
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(A)))).to(A.dtype)
    return torch.linalg.vector_norm(signs @ A, dual, 1).max()


@pytest.mark.parametrize("make", [lambda: dd_snr(0.3, eps=1e-5), lambda: dd_snr(0.3, "uJv")])
@pytest.mark.parametrize("frozen", [False, True])
def test_snr_is_that_of_the_svd(make, frozen):
    model, x = net(frozen=frozen), points()
    sigma = torch.linalg.svdvals(jacobians(model, x))[:, 0]
    assert (sigma > 0.1).all()
    same(make()(model, x).penalty(model, x, Y), 0.15 * sigma.square().mean(), model, 1e-8)


@pytest.mark.parametrize(("p", "q"), [c for c in CELLS if c not in HARD])
@pytest.mark.parametrize("power", [1, 2, 3.5])
def test_onr_is_that_of_the_explicit_matrix(p, q, power):
    model, x = net(), points()
    norms = torch.stack([brute(A, p, q) for A in jacobians(model, x)])
    ours = dd_onr(0.3, p, q, power=power)(model, x).penalty(model, x, Y)
    same(ours, 0.3 / power * norms.pow(power).mean(), model)


@pytest.mark.parametrize("r", [1.5, 3, 4])
def test_onr_of_general_orders(r):
    """Columns and rows have closed forms; the others are lower bounds that no random vector exceeds."""
    model, x = net(), points()
    A = jacobians(model, x)
    columns = torch.linalg.vector_norm(A, r, 1).amax(1)
    same(dd_onr(0.3, 1, r)(model, x).penalty(model, x, Y), 0.3 * columns.mean(), model)
    rows = torch.linalg.vector_norm(A, r / (r - 1), 2).amax(1)
    same(dd_onr(0.3, r, INF)(model, x).penalty(model, x, Y), 0.3 * rows.mean(), model)
    v = torch.randn(20_000, 36, generator=torch.Generator().manual_seed(0)).double()
    v /= torch.linalg.vector_norm(v, r, 1, keepdim=True)
    for q in (1, 2, 2.5):
        value = float(dd_onr(1.0, r, q)(model, x).penalty(model, x, Y).detach())
        seen = torch.linalg.vector_norm(A.detach() @ v.T, q, 1).amax(1)
        spectral = torch.linalg.svdvals(A.detach())[:, 0]
        most = (
            spectral * 36 ** max(0, 1 / 2 - 1 / r) * 4 ** max(0, 1 / q - 1 / 2)
        )  # ‖·‖_2 against ‖·‖_r and ‖·‖_q
        assert float(seen.mean()) < value <= float(most.mean())


@pytest.mark.parametrize(("p", "q"), HARD)
def test_onr_of_hard_cells_is_a_lower_bound_and_close(p, q):
    model, x = net(), points(1)
    A = jacobians(model, x)[0].detach()
    best = brute(A, p, q) if q == 1 else torch.linalg.vector_norm(A, 1, 1).norm()
    hooks = dd_onr(1.0, p, q)(model, x)
    values = torch.stack([hooks.penalty(model, x, Y[:1]).detach() for _ in range(10)])
    assert (values <= best * (1 + 1e-12)).all()
    assert values.max() > (0.99 if q == 1 else 0.6) * best


def many_logits():
    """More logits than two a step: the Jacobians stay implicit. One direction stands out, so that few steps are enough."""
    model = net(classes=50)
    with torch.no_grad():
        model.head[2].weight += 3 * torch.randn(50, 1).double() @ torch.rand(1, 27).double()
    return model


def test_without_explicit_jacobians_it_converges_to_the_same():
    model, x = many_logits(), points()
    sigma = torch.linalg.svdvals(jacobians(model, x))[:, 0]
    for form in ("difference", "uJv"):
        ours = dd_snr(0.3, form, eps=1e-5, steps=20)(model, x).penalty(model, x, Y)
        same(ours, 0.15 * sigma.square().mean(), model, 1e-6)
    same(dd_onr(0.3, steps=20)(model, x).penalty(model, x, Y), 0.3 * sigma.mean(), model, 1e-6)


@pytest.mark.parametrize(
    ("p", "q", "alpha"), [*((*cell, alpha) for cell in CELLS for alpha in (0.1, 2.0, INF)), (3, 1.5, INF)]
)
def test_it_iterates_as_published(p, q, alpha):
    """Eqs. 11 and 12 written out for the explicit Jacobians, step by step, from the same start."""
    model, x = net(frozen=True), points()
    A = jacobians(model, x).detach()
    for steps in (1, 2, 5):
        settings = {"exact": False} if alpha == INF else {"alpha": alpha}
        hooks = dd_onr(1.0, p, q, steps, **settings)(model, x)
        torch.manual_seed(5)
        value = float(hooks.penalty(model, x, Y).detach())
        torch.manual_seed(5)
        v = random_start(x, p, int(torch.randint(2**62, ()))).flatten(1)
        for _ in range(steps):
            u = dual(torch.einsum("bkn,bn->bk", A, v), q)
            ascent = torch.einsum("bkn,bk->bn", A, u)
            star = {1: INF, INF: 1}.get(p) or p / (p - 1)
            v = dual(ascent, star) if alpha == INF else on_sphere(v + alpha * ascent, p)
        assert value == pytest.approx(float(torch.einsum("bk,bkn,bn->b", u, A, v).mean()), rel=1e-5)
        if steps == 5 and (p, q) == (2, 2):
            assert value < 0.999 * float(torch.linalg.svdvals(A)[:, 0].mean()), "not the exact one"


@pytest.mark.parametrize(
    ("mode", "training"), [("eval", (False, False)), ("train", (True, True)), ("as is", (True, False))]
)
def test_the_mode_of_batch_norm(mode, training):
    for frozen, batch in zip((False, True), training, strict=True):
        model, x = net(frozen=frozen), points()
        hooks = [
            make(model, x)
            for make in (dd_snr(0.3, "uJv", mode=mode), dd_onr(0.3, mode=mode), input_gradient(mode=mode))
        ]
        values = [h.penalty(model, x, Y).detach() for h in hooks]
        assert model.bn.training is not frozen
        model.bn.train(batch)
        sigma = torch.linalg.svdvals(jacobians(model, x))[:, 0].detach()
        z = x.clone().requires_grad_()
        loss = F.cross_entropy(logits(model, z, x), Y, reduction="sum")
        gradient = torch.autograd.grad(loss, z)[0].flatten(1)
        want = 0.15 * sigma.square().mean(), 0.3 * sigma.mean(), 0.01 * gradient.square().sum(1).mean()
        assert torch.allclose(torch.stack(values), torch.stack(want), rtol=1e-9)


@pytest.mark.parametrize(("p", "q"), CELLS)
def test_few_steps_give_true_lower_bounds(p, q):
    model, x = net(), points()
    norms = torch.stack([brute(A, p, q) for A in jacobians(model, x)]) if (p, q) != (INF, 2) else None
    hooks = dd_onr(1.0, p, q, steps=1)(model, x)
    values = [float(hooks.penalty(model, x, Y).detach()) for _ in range(5)]
    assert len(set(values)) > 1 or p == 1 or q == INF, "each step has a start of its own"
    if norms is not None:
        assert max(values) <= float(norms.mean()) * (1 + 1e-9)
        assert max(values) > 0.4 * float(norms.mean())


def test_a_long_difference_is_the_secant():
    model, x = net(frozen=True), points(1)
    v = torch.linalg.svd(jacobians(model, x)[0]).Vh[0].view_as(x)
    ours = {round(float(dd_snr(2.0, eps=3.0)(model, x).penalty(model, x, Y[:1])), 9) for _ in range(20)}
    differences = [logits(model, x + 3 * s * v, x) - logits(model, x, x) for s in (1, -1)]
    secants = {round(float(d.square().sum() / 9), 9) for d in differences}
    assert len(secants) == 2
    assert ours == secants, "the first singular vector of either sign, by the random start"


def test_the_scale_of_a_convolution_before_batch_norm_is_not_pulled_at():
    model, x = net(), points()
    model.bn.eps = 0.0
    for make in (dd_snr(1.0, "uJv"), dd_snr(1.0, eps=1e-4), dd_onr(1.0, 1, 1), input_gradient(1.0)):
        value = make(model, x).penalty(model, x, Y)
        (pull,) = torch.autograd.grad(value, model.stem.weight)
        assert pull.norm() > 1e-3
        assert abs((pull * model.stem.weight).sum()) < 1e-9 * pull.norm()


def test_every_point_has_vectors_of_its_own():
    model, x = net(frozen=True), points()
    hooks = dd_onr(1.0)(model, x)
    alone = torch.stack([hooks.penalty(model, z[None], Y[:1]) for z in x])
    assert torch.isclose(hooks.penalty(model, x, Y), alone.mean())
    assert len({round(float(a), 6) for a in alone}) == 5


@pytest.mark.parametrize("steps", [1, 10])
def test_the_model_stays_as_it_was(steps):
    model, x = net(), points()
    state = {k: t.clone() for k, t in model.state_dict().items()}
    for hooks in (dd_snr(1.0, steps=steps)(model, x), dd_snr(1.0, "uJv", steps=steps)(model, x)):
        torch.manual_seed(3)
        first = hooks.penalty(model, x, Y)
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            again = hooks.penalty(model, x, Y)
        assert torch.equal(first, again), "the same seed gives the same bits; dropout and autocast are off"
        assert first.requires_grad
        assert model.training
        assert model.bn.training
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert all(torch.equal(t, state[k]) for k, t in model.state_dict().items())
        assert hooks.state == {}
        assert not x.requires_grad


@pytest.mark.parametrize(
    ("call", "classes", "forward"),
    [
        ('dd_snr(form="uJv", steps=10)', 20, 1),
        ("dd_snr(steps=10)", 20, 2),
        ('dd_snr(form="uJv", steps=10)', 21, 11),
        ("dd_snr(steps=10)", 21, 12),
        ("dd_snr(steps=10, exact=False)", 4, 12),
        ("dd_onr(steps=10, alpha=2)", 4, 11),
    ],
)
def test_what_it_costs(call, classes, forward):
    """Forward passes; batch norm in train mode takes one more, for its statistics."""
    model, x = net(classes, frozen=True), points()
    hooks = build(call)(model, x)
    calls = []
    model.register_forward_hook(lambda *args: calls.append(1))
    hooks.penalty(model, x, Y)
    assert len(calls) == forward
    model.bn.train()
    hooks.penalty(model, x, Y)
    assert len(calls) == 2 * forward + 1


def test_descending_the_penalty_lowers_the_norm():
    model, x = net(), points()
    hooks, optimizer = dd_snr(1.0)(model, x), torch.optim.SGD(model.parameters(), lr=0.05)
    before = torch.linalg.svdvals(jacobians(model, x))[:, 0].mean()
    for _ in range(20):
        optimizer.zero_grad()
        hooks.penalty(model, x, Y).backward()
        optimizer.step()
    assert torch.linalg.svdvals(jacobians(model, x))[:, 0].mean() < 0.7 * before


def test_a_zero_jacobian_has_penalty_and_gradient_zero():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).double(), points()
    nn.init.zeros_(model[1].weight)
    for p, q in CELLS:
        for steps in (1, 10):
            value = dd_onr(1.0, p, q, steps)(model, x).penalty(model, x, Y)
            assert value == 0
            assert torch.isfinite(torch.autograd.grad(value, model[1].weight)[0]).all()
    for form in ("difference", "uJv"):
        value = dd_snr(1.0, form)(model, x).penalty(model, x, Y)
        assert torch.equal(torch.autograd.grad(value, model[1].weight)[0], torch.zeros(4, 36).double())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: dd_snr(-1), SpecError, "lam=-1: expected a strength of at least 0"),
        (lambda: dd_snr(math.nan), SpecError, "lam=nan"),
        (lambda: dd_snr(True), SpecError, "lam=True"),
        (lambda: dd_snr(form="vJu"), SpecError, "form='vJu': expected 'difference' or 'uJv'"),
        (lambda: dd_snr(eps=0), SpecError, "eps=0: expected a length above 0"),
        (lambda: dd_snr(eps=math.nan), SpecError, "eps=nan"),
        (lambda: dd_snr(steps=0), SpecError, "steps=0: expected a whole number, at least 1"),
        (lambda: dd_snr(steps=2.0), SpecError, "steps=2.0"),
        (lambda: dd_onr(p=0.5), SpecError, "p=0.5: expected a number of at least 1"),
        (lambda: dd_onr(q=True), SpecError, "q=True"),
        (lambda: dd_onr(q=math.nan), SpecError, "q=nan"),
        (lambda: dd_onr(alpha=0), SpecError, "alpha=0: expected a step length above 0"),
        (lambda: dd_onr(alpha=math.nan), SpecError, "alpha=nan"),
        (lambda: dd_onr(alpha="1"), SpecError, "alpha='1'"),
        (lambda: dd_onr(p=3, alpha=1), SpecError, "p=3: the closest point of the sphere is known for"),
        (lambda: dd_snr(mode="test"), SpecError, "mode='test': expected 'eval', 'train' or 'as is'"),
        (lambda: input_gradient(mode="test"), SpecError, "mode='test'"),
        (lambda: dd_onr(power=0.5), SpecError, "power=0.5: expected an exponent of at least 1"),
        (lambda: dd_onr(power=math.inf), SpecError, "power=inf"),
        (lambda: dd_snr()(nn.Flatten(0), points()), ModelError, r"gives shape \(36, 1\) for 1 points"),
        (lambda: dd_snr()(nn.Identity(), points()), ModelError, "expected logits"),
        (
            lambda: dd_onr()(nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten()).double(), points()),
            ModelError,
            "batch norm '0' couples the points",
        ),
    ],
)  # fmt: skip
def test_bad_settings_and_models(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_the_calls_are_records():
    for text in ('dd_snr(lam=0.1, form="uJv")', "dd_onr(lam=0.1, p=inf, q=1)"):
        assert spec_of(build(text)) == spec_of(build(str(spec_of(build(text)))))


@pytest.mark.parametrize(
    "case", ["dd_snr()", "dd_snr(form='uJv')", "dd_onr()", "dd_onr(p=inf, q=1)", "input_gradient()"]
)
def test_a_diverged_network_gives_nan_and_no_error_of_its_own(case):
    """The loop says where training went wrong; a penalty that raises would hide it."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x, y = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    hooks = build(case)(model, x)
    with torch.no_grad():
        model[1].weight.fill_(math.nan)
    assert hooks.penalty(model, x, y).isnan()


@pytest.mark.parametrize(("p", "q"), [c for c in CELLS if c not in HARD])
@pytest.mark.parametrize("exponent", [-700, -90, 90, 500])
def test_the_norm_follows_the_scale_of_the_weights(p, q, exponent):
    """2^-90 and 2^90 in float32, whose squares leave its range; the others in float64."""
    dtype = torch.float32 if abs(exponent) < 100 else torch.float64
    torch.manual_seed(0)
    model, x = nn.Linear(12, 5, bias=False, dtype=dtype), torch.rand(3, 12, dtype=dtype)
    W = model.weight.detach().double()
    model.weight.data = torch.ldexp(model.weight.data, torch.tensor(float(exponent)))
    penalty = dd_onr(1.0, p, q)(model, x).penalty(model, x, torch.tensor([0, 1, 2]))
    assert math.ldexp(float(penalty.detach()), -exponent) == pytest.approx(float(brute(W, p, q)), rel=1e-5)
