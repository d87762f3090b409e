"""Auto-PGD against a plain float64 version of its algorithm, on linear models with known optima, and its losses."""

import math
import warnings

import pytest
import torch
from torch import nn

from opnorm._core.random import point_keys
from opnorm.attacks._apgd import APGD, SparseAPGD, apgd, sparse_direction
from opnorm.attacks._batching import Searches
from opnorm.attacks._search import Batch, Response
from opnorm.attacks.losses import rank_targets, towards
from opnorm.attacks.projections import ball
from opnorm.errors import AttackError
from opnorm.spec import spec_of
from tests.attacks.test_batching import run
from tests.attacks.test_contract import best_in_ball_and_box, exactly_inside
from tests.attacks.victims import EPS, Linear, images, net


class Bumpy(nn.Module):
    """Three classes with many local maxima, in float64: steps overshoot, so that checkpoints halve some of them."""

    def __init__(self, seed=0, frequency=20.0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.a = torch.randn(16, 8, generator=generator, dtype=torch.float64) * frequency
        self.b = torch.randn(8, 3, generator=generator, dtype=torch.float64)

    def forward(self, x):
        return torch.sin(x.flatten(1) @ self.a) @ self.b


# ---------------------------------------------------------------- the algorithm, once more and plainly


def checkpoints(steps):
    """w_j = ceil(p_j N): p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06); in hundredths."""
    p = [0, 22]
    while p[-1] < 100:
        p.append(p[-1] + max(p[-1] - p[-2] - 3, 6))
    return sorted({-(-q * steps // 100) for q in p})  # short attacks have several at once


def plain_apgd(model, x, y, start, eps, norm, steps):
    """One point; returns all iterates that the model was asked at, and the steps lengths used."""
    region = ball(x, eps, norm)

    def look(z):
        z = z.detach().requires_grad_()
        logits = model(z)[0]
        wrong = torch.cat([logits[:y], logits[y + 1 :]])
        loss = wrong.logsumexp(0) - logits[y]
        return loss.item(), torch.autograd.grad(loss, z)[0]

    def step_from(z, grad, eta):
        unit = grad.sign() if norm == math.inf else grad / grad.norm()
        return region.project(z + eta * unit)

    w, eta, etas, j = checkpoints(steps), 2 * eps, [], 1
    path, losses = [start], []
    loss, grad = look(start)
    losses.append(loss)
    best = (loss, start, grad)
    eta_at, best_at = [eta], [loss]
    before, z = start, start
    for k in range(steps):
        u = step_from(z, grad, eta)
        new = u if k == 0 else region.project(z + 0.75 * (u - z) + 0.25 * (z - before))
        before, z = z, new
        etas.append(eta)
        path.append(z)
        loss, grad = look(z)
        losses.append(loss)
        if loss > best[0]:
            best = (loss, z, grad)
        if k + 1 == w[j]:
            rises = sum(losses[i + 1] > losses[i] for i in range(w[j - 1], w[j]))
            same = len(eta_at) > 0 and eta_at[-1] == eta and best_at[-1] == best[0]
            eta_at.append(eta)
            best_at.append(best[0])
            if rises < 0.75 * (w[j] - w[j - 1]) or same:
                eta, z, grad = eta / 2, best[1], best[2]
            j += 1
    return path, etas


def batch_of(x, y, eps, norm, seed=0, target=None):
    target = torch.full_like(y, -1) if target is None else target
    nobody = torch.full((len(x),), -math.inf)
    return Batch(x, y, target, torch.zeros_like(y), point_keys(x, seed), nobody, ball(x, eps, norm))


def path_of(search, model, batch):
    """Where a search asks, and its step lengths, without the scheduler around it."""
    state, path, etas = search.start(batch), [], []
    for _ in range(search.steps):
        path.append(state.z.clone())
        state = search.advance(batch, state, search.query(model, batch, state))
        etas.append(state.step.clone())
    return path, etas


@pytest.mark.each_value
@pytest.mark.parametrize("norm", [math.inf, 2])
@pytest.mark.parametrize("steps", [1, 2, 5, 17, 50, 100])
def test_same_path_as_the_plain_algorithm(norm, steps):
    model, (x, y) = Bumpy(), images(5, dtype=torch.float64)
    search = APGD(steps)
    batch = batch_of(x, y, 0.2, norm)
    path, etas = path_of(search, model, batch)
    halved = 0
    for i in range(5):
        start = search.start(batch).z[i : i + 1]
        want, want_etas = plain_apgd(model, x[i : i + 1], int(y[i]), start, 0.2, norm, steps)
        assert len(path) == len(want) == steps + 1
        # ℓ2 projections of batches and of points differ by rounding, and the model is bumpy
        compared = steps + 1 if norm == math.inf else min(steps + 1, 8)
        for k in range(compared):
            torch.testing.assert_close(
                path[k][i], want[k][0], rtol=0, atol=1e-9 if norm == math.inf else 1e-2, msg=str(k)
            )
        if norm == math.inf:
            assert [float(e[i]) for e in etas[:steps]] == pytest.approx(want_etas, rel=1e-6)
        halved += want_etas[-1] < want_etas[0]
    if steps >= 50:
        assert halved >= 3


def plain_sparse(model, x, y, start, eps, steps):
    """One point in the ℓ1 ball; the step length and the number of coordinates of each step."""
    flat, used = x.flatten(), []
    early = int(0.3 * steps)
    z = start
    for factor, n in ((3, early), (2, early), (1, steps - 2 * early)):
        region = ball(x, factor * eps, 1)
        z = region.project(z)
        best, eta, before, every = (-math.inf,), 0.0, math.inf, max(int(0.04 * n), 1)
        for i in range(n + 1):
            asked = z.detach().requires_grad_()
            loss = torch.nn.functional.cross_entropy(model(asked), torch.tensor([y]))
            grad = torch.autograd.grad(loss, asked)[0]
            if loss.item() > best[0]:
                best = (loss.item(), z, grad)
            if i % every == 0:
                changed = int((best[1].flatten() != flat).sum())
                if changed < 0.95 * before:  # always at first
                    eta = factor * eps
                    z, grad = best[1:]
                else:
                    eta = max(eta / 1.5, factor * eps / 10)
                before, count = changed, max(int(changed / 1.5), 1)
            used.append((eta, count))
            top = grad.flatten().abs().topk(count).indices
            step = torch.zeros_like(flat)
            step[top] = grad.flatten()[top].sign() / count
            z = region.project(z + eta * step.view_as(z))
        z = best[1]
    return used


def test_same_steps_as_the_plain_sparse_algorithm():
    model, (x, y) = Bumpy(frequency=1.0), images(6, dtype=torch.float64)
    search = SparseAPGD(50)
    batch = batch_of(x, y, 0.3, 1)
    state, used = search.start(batch), []
    starts = state.z
    for _ in range(search.steps):
        state = search.advance(batch, state, search.query(model, batch, state))
        used.append((state.step.clone(), state.count.clone()))
    for i in range(6):
        want = plain_sparse(model, x[i : i + 1], int(y[i]), starts[i : i + 1], 0.3, 50)
        assert [(pytest.approx(float(e[i])), int(c[i])) for e, c in used] == want
        assert len({count for _, count in want}) >= 3
        assert len({round(eta, 6) for eta, _ in want}) >= 5


def test_checkpoints_as_in_the_paper():
    assert checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99, 105]
    for steps in range(1, 300):
        windows = APGD(steps).windows
        at = [k for k in range(steps + 1) if windows[k]]
        assert at == [w for w in checkpoints(steps) if 0 < w <= steps]
        assert windows.sum() == at[-1]


def test_no_gain_since_the_start_halves_the_step():
    """The loss falls at the first step and rises at all others, but not above the one at the start."""
    x, y = images(1)
    search = APGD(100)
    batch = Batch(x, y, -torch.ones_like(y), 0 * y, 0 * y, torch.zeros(1), ball(x, 0.1, math.inf))
    state, grad = search.start(batch), torch.ones_like(x)
    for k in range(23):
        loss = torch.tensor([float(k or 100)])
        state = search.advance(batch, state, Response(torch.zeros(1, 3), loss, grad, 1))
        assert float(state.step) == pytest.approx(0.2 if k < 22 else 0.1)


def test_rows_at_different_iterations_do_not_affect_each_other():
    model, (x, y) = Bumpy(), images(9, dtype=torch.float64)
    for search, norm, eps in ((APGD(23), math.inf, 0.2), (SparseAPGD(23), 1, 0.5)):
        settings, both = {"eps": eps, "norm": norm, "stop_at_success": False}, Searches(search, restarts=2)
        together = run(model, x, y, both, batch=18, **settings)
        staggered = run(model, x, y, both, batch=4, **settings)
        assert torch.allclose(together.points, staggered.points, rtol=0, atol=1e-12)
        assert torch.equal(together.misclassified, staggered.misclassified)


# ---------------------------------------------------------------- known optima


@pytest.mark.each_value
@pytest.mark.parametrize("norm", [math.inf, 2, 1])
@pytest.mark.parametrize("box", ["inactive", "active"])
@pytest.mark.parametrize("loss", ["ce", "dlr", "cw"])
def test_reaches_the_optimum_of_a_linear_model(norm, box, loss):
    w = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(1))
    x, y = images(40, low=0.4, high=0.6) if box == "inactive" else images(40)
    y = y % 2
    towards = torch.where(y == 0, 1.0, -1.0).view(-1, 1, 1, 1) * w
    best = best_in_ball_and_box(x, towards, EPS[norm], norm)
    z = apgd(norm, EPS[norm], loss=loss)(Linear(w), x, y)
    exactly_inside(x, z, EPS[norm], norm)
    share = ((z - x) * towards).flatten(1).sum(1) / ((best - x) * towards).flatten(1).sum(1)
    assert share.max() <= 1 + 1e-5
    assert share.min() >= (0.9 if norm == 1 else 1 - 1e-4)
    assert share.mean() >= 0.97


def test_at_least_as_strong_as_pgd():
    from opnorm.attacks import pgd

    model, (x, y) = Bumpy(frequency=6.0), images(60, dtype=torch.float64)
    y = model(x).argmax(1)
    for norm, eps in ((math.inf, 0.01), (2, 0.03), (1, 0.03)):
        fooled = [
            float((model(attack(model, x, y)).argmax(1) != y).double().mean())
            for attack in (
                pgd(norm, eps, steps=50),
                apgd(norm, eps, steps=50),
                apgd(norm, eps, steps=50, targets=2, loss="cw"),
            )
        ]
        assert 0.05 < fooled[0] < 0.95
        assert min(fooled[1:]) >= fooled[0] - 0.02


# ---------------------------------------------------------------- ℓ1


def test_sparse_steps():
    grad = torch.tensor([[3.0, -1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, -1.0, 0.5]]).view(3, 1, 2, 2)
    got = sparse_direction(grad, torch.tensor([2, 1, 1])).flatten(1)
    want = torch.tensor([[0.5, 0, 0.5, 0], [0, 0, 0, 0], [1 / 3, 1 / 3, -1 / 3, 0]])  # ties share
    assert torch.allclose(got, want)


def test_the_sparse_search_ends_in_the_smallest_ball():
    for steps in (0, 1, 2, 3, 4, 10, 100):
        search = SparseAPGD(steps)
        assert len(search.factor) == len(search.windows) == len(search.first) == search.steps
        assert search.steps == steps + int(search.first.sum())
        assert search.factor[-1] == 1
    assert search.factor.tolist() == [3] * 31 + [2] * 31 + [1] * 41
    model, (x, y) = Bumpy(), images(4, dtype=torch.float64)
    path, _ = path_of(search, model, batch_of(x, y, 0.5, 1))
    for z, factor in zip(path, search.factor, strict=True):
        assert ((z - x).abs().flatten(1).sum(1) <= 0.5 * factor * (1 + 1e-9)).all()


# ---------------------------------------------------------------- losses and targets


def test_targets_are_the_largest_wrong_logits():
    logits = torch.tensor([[1.0, 5.0, 3.0, 4.0], [0.0, 0.0, 0.0, 9.0]])
    y = torch.tensor([1, 0])
    assert rank_targets(logits, y, 2).tolist() == [[3, 2], [3, 1]]
    assert rank_targets(logits, y, 9).tolist() == [[3, 2, 0], [3, 1, 2]]


def test_losses_towards_a_target_by_hand():
    z, pair = torch.tensor([[1.0, 5.0, 2.0, 4.0, 0.0]]), torch.tensor([[1, 2]])
    assert towards("cw")(z, pair).item() == pytest.approx(2 - 5)
    assert towards("dlr")(z, pair).item() == pytest.approx((2 - 5) / (5 - (2 + 1) / 2))
    others = math.log(sum(math.exp(v) for v in (1, 5, 4, 0)))
    assert towards("ce")(z, pair).item() == pytest.approx(2 - others)
    assert towards("dlr")(z[:, :3], pair).item() == pytest.approx(2 - 5)  # three classes: the margin
    assert towards("dlr")(7 * z, pair).item() == pytest.approx(towards("dlr")(z, pair).item())


@pytest.mark.each_value
@pytest.mark.parametrize("classes", [2, 3, 4, 8, 10])
@pytest.mark.parametrize("loss", ["ce", "dlr", "cw"])
@pytest.mark.parametrize("targets", [0, 1, 9])
def test_any_number_of_classes(classes, loss, targets):
    model, (x, _) = net(classes=classes), images(10)
    y = model.eval()(x).argmax(1)
    z = apgd(math.inf, 0.3, steps=10, loss=loss, targets=targets)(model, x, y)
    assert (model(z).argmax(1) != y).double().mean() >= 0.5


def test_names_of_the_searches():
    names = [APGD(1, loss, targeted).name for loss in ("ce", "dlr", "cw") for targeted in (False, True)]
    assert names == ["APGD-CE", "APGD-CE-T", "APGD-DLR", "APGD-T", "APGD-CW", "APGD-CW-T"]


# ---------------------------------------------------------------- the attack


def test_early_exit():
    model, (x, y) = net().eval(), images(30)
    calls = []
    model.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    apgd(math.inf, 0.5, steps=50, stop_at_success=True)(model, x, y)
    assert sum(calls) < 30 * 12
    calls.clear()
    apgd(math.inf, 0.5, steps=50)(model, x, y)
    assert sum(calls) >= 30 * 51


def test_points_wrong_by_themselves_are_left_alone_when_stopping():
    model, (x, y) = net().eval(), images(30)
    wrong = model(x).argmax(1) != y
    z = apgd(math.inf, 0.01, stop_at_success=True)(model, x, y)
    assert wrong.any()
    assert torch.equal(z[wrong], x[wrong])
    assert (z[~wrong] != x[~wrong]).flatten(1).any(1).all()


def test_the_text_of_an_attack():
    assert str(spec_of(apgd(eps=8 / 255, loss="dlr", targets=3))) == 'apgd(eps=8/255, loss="dlr", targets=3)'


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "kl"}, "loss='kl': expected 'ce', 'cw' or 'dlr'"),
        ({"targets": -1}, "targets=-1"),
        ({"targets": True}, "targets=True"),
        ({"targets": 1.0}, r"targets=1\.0"),
        ({"steps": 2.5}, r"steps=2\.5"),
        ({"restarts": 0}, "restarts=0"),
        ({"norm": 3}, "norm=3"),
        ({"eps": math.nan}, "eps=nan"),
        ({"mode": "training"}, "mode='training'"),
        ({"seed": 0.5}, r"seed=0\.5"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(AttackError, match=message):
        apgd(**settings)


def test_an_honest_model_gives_no_warning():
    model, (x, y) = net(), images(6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loss in ("ce", "dlr", "cw"):
            apgd(math.inf, 0.1, 5, loss=loss)(model, x, y)


def test_a_step_uses_one_response():
    """advance() needs one response, and keeps the best one."""
    x, y = images(2)
    batch, search = batch_of(x, y, 0.1, math.inf), APGD(3)
    state = search.start(batch)
    first = state.z.clone()
    up = Response(torch.zeros(2, 3), torch.tensor([1.0, 1.0]), torch.ones_like(x), 2)
    state = search.advance(batch, state, up)
    second = state.z.clone()
    state = search.advance(batch, state, up._replace(loss=torch.tensor([0.0, 2.0])))
    assert torch.equal(search.final_iterate(batch, state), torch.stack([first[0], second[1]]))
