"""What training minimizes."""

import inspect
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opnorm import objectives
from opnorm.attacks import _gradients, fgsm, pgd
from opnorm.attacks._pgd import PGD
from opnorm.errors import AttackError, ModelError, OpnormError, SpecError
from opnorm.models import max_mahalanobis
from opnorm.objectives import alp, centers, fgsm_at, mixed, mmc, pgd_at, plain, trades
from opnorm.spec import full, names, spec_of

X = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])
ATTACKED = [name for name in names("objective") if name != "plain"]
EPS = 0.1


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    ).train()


@pytest.mark.parametrize("name", names("objective"))
@pytest.mark.parametrize("settings", [{}, {"eps": EPS, "norm": 2, "mode": "train"}, {"eps": EPS, "norm": 1}])
def test_every_objective(name, settings):
    make = getattr(objectives, name)
    settings = {k: v for k, v in settings.items() if k in inspect.signature(make).parameters}
    model, objective = net(), make(**settings)
    assert spec_of(objective).name == name
    full(str(spec_of(objective)), "objective")
    outcome = objective(model, X, Y)
    assert outcome.loss.shape == ()
    assert outcome.loss.dtype == torch.float32
    assert outcome.logits.shape == (6, 3)
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    outcome.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(m.training for m in model.modules())
    passes = {"trades": 3, "alp": 2, "mixed": 2}.get(name, 1)
    assert model[1].num_batches_tracked == passes, "the attack's passes never count"
    assert objective(model, X, Y).logits.requires_grad


@pytest.mark.parametrize("name", names("objective"))
def test_under_16_bit_autocast_the_loss_is_still_32_bit(name):
    model = net().double().float()
    with torch.autocast("cpu", torch.bfloat16):
        outcome = getattr(objectives, name)()(model, X, Y)
    assert outcome.loss.dtype == torch.float32
    outcome.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ATTACKED)
def test_attacks_in_training_move_no_statistics_and_draw_one_number(name):
    """The weights' gradients so far are kept, and the run's random state moves alike whatever the attack draws."""
    model, objective = net(), getattr(objectives, name)(eps=EPS)
    model.append(nn.Dropout(0.5))
    F.cross_entropy(model(X), Y).backward()
    before = [p.grad.clone() for p in model.parameters()]
    torch.manual_seed(3)
    objective(model.eval(), X, Y)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    torch.randint(2**62, ())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    assert model[1].num_batches_tracked == 1, "an evaluating model has none to move"


def test_plain_is_cross_entropy():
    a, b = net(), net()
    assert torch.equal(plain()(a, X, Y).loss, F.cross_entropy(b(X), Y))


@pytest.mark.parametrize("make", [plain, fgsm_at, pgd_at])
def test_smoothing_spreads_a_share_of_each_target(make):
    model = net().eval()
    torch.manual_seed(1)
    outcome = make(smoothing=0.3)(model, X, Y)
    target = 0.7 * F.one_hot(Y, 3) + 0.3 / 3
    by_hand = -(target * outcome.logits.log_softmax(1)).sum(1).mean()
    assert torch.isclose(outcome.loss, by_hand)
    torch.manual_seed(1)
    assert torch.equal(make()(model, X, Y).logits, outcome.logits), "the attack knows nothing of it"


@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_adversarial_training_is_cross_entropy_on_the_attack(norm, mode):
    for make, attack in (
        (lambda: fgsm_at(EPS, norm, mode=mode), fgsm(EPS, norm, mode=mode)),
        (
            lambda: pgd_at(EPS, norm, 3, 0.05, "point", mode),
            pgd(norm, EPS, 3, 0.05, random_start=False, mode=mode),
        ),
    ):
        a, b = net(), net()
        got = make()(a, X, Y)
        z = attack(b, X, Y)
        assert not torch.equal(z, X)
        assert torch.equal(got.loss, F.cross_entropy(b(z), Y))
        assert got.loss > plain()(net(), X, Y).loss


def adversary(model, **settings):
    """x* with the random start that the objective draws after ``torch.manual_seed(9)``."""
    torch.manual_seed(9)
    seed = int(torch.randint(2**62, ()))
    return PGD(math.inf, EPS, 5, **settings)(model, X, Y, seed=seed)


def evaluated(objective, model):
    torch.manual_seed(9)
    return objective(model, X, Y)


def softmax(z):
    return z.double().exp() / z.double().exp().sum(1, keepdim=True)


@pytest.mark.parametrize("start", ["gaussian", "uniform"])
def test_trades(start):
    model = net().eval()
    model[-1].weight.data *= 20  # else both divergences are too small to tell apart
    got = evaluated(trades(2.5, EPS, steps=5, start=start), model)
    z = adversary(model, start=start, loss="kl")
    p, q = softmax(model(X)), softmax(model(z))
    clean = -p[range(6), Y].log().mean()
    assert torch.isclose(got.loss.double(), clean + 2.5 * (p * (p / q).log()).sum(1).mean(), rtol=1e-5)
    assert torch.allclose(got.logits, model(z), atol=1e-6), "those of the attacked inputs"
    assert not torch.isclose((p * (p / q).log()).sum(), (q * (q / p).log()).sum(), rtol=0.01)


def test_trades_trains_both_sides_of_the_divergence():
    """The clean logits take part as well: with them held still, the gradient is another one."""
    model = net().eval()
    z = adversary(model, start="gaussian", loss="kl")
    objective, weights = trades(2.5, EPS, steps=5), list(model.parameters())
    got = torch.autograd.grad(evaluated(objective, model).loss, weights)
    p, q = model(X).log_softmax(1), model(z).log_softmax(1)
    loss = F.cross_entropy(model(X), Y) + 2.5 * (p.exp() * (p - q)).sum(1).mean()
    want = torch.autograd.grad(loss, weights)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, want, strict=True))


def test_the_gaussian_start_is_as_published():
    x = torch.full((50, 1, 8, 8), 0.5)
    noise = PGD(math.inf, EPS, 0, start="gaussian")(
        net(), x + 0.001 * torch.rand(50, 1, 1, 1), Y[:1].expand(50)
    )
    noise = noise - noise.mean(dim=(1, 2, 3), keepdim=True)
    assert abs(float(noise.std()) / 0.001 - 1) < 0.05


def test_passes_of_trades():
    class Count(nn.Module):
        points = 0  # of the model and of copies of it

        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            Count.points += len(x)
            return self.inner(x)

    model = Count()
    trades(steps=1)(model, X, Y)  # a copy for the attack is made once
    for passes, points in ((1, 13), (2, 13), (3, 14)):
        Count.points = 0
        trades(steps=10, passes=passes)(model, X, Y)
        assert Count.points == points * len(X)


@pytest.mark.parametrize(("loss", "q"), [("l1", 1), ("l2", 2), ("linf", math.inf)])
def test_mixed_is_clean_plus_the_distance_of_logits(loss, q):
    model = net().eval()
    got = evaluated(mixed(0.7, EPS, loss=loss, steps=5), model)
    z = adversary(model, loss=loss)
    gap = (model(z) - model(X)).abs().double()
    length = gap.max(1).values if q == math.inf else (gap**q).sum(1) ** (1 / q)
    clean = -softmax(model(X))[range(6), Y].log().mean()
    assert torch.isclose(got.loss.double(), clean + 0.7 * length.mean(), rtol=1e-5)
    random = (model(adversary(model, loss=loss, step=0.0)) - model(X)).norm(q, dim=1)
    assert (length > random).all(), "the ascent climbs"


def test_mixed_with_cross_entropy_and_with_kl():
    model = net().eval()
    got = evaluated(mixed(0.7, EPS, loss="ce", steps=5), model)
    z = adversary(model)
    assert torch.isclose(got.loss, F.cross_entropy(model(X), Y) + 0.7 * F.cross_entropy(model(z), Y))
    a, b = mixed(3, EPS, loss="kl", steps=5), trades(3, EPS, steps=5, start="uniform")
    assert torch.equal(evaluated(a, model).loss, evaluated(b, model).loss)


def test_alp():
    model = net().eval()
    got = evaluated(alp(1.5, EPS, steps=5), model)
    z = adversary(model)
    p, q = softmax(model(X))[range(6), Y], softmax(model(z))[range(6), Y]
    pairing = ((model(X) - model(z)).double() ** 2).sum() / 18
    assert torch.isclose(got.loss.double(), -(p * q).log().mean() / 2 + 1.5 * pairing, rtol=1e-5)
    assert torch.allclose(got.logits, model(z), atol=1e-6)


SETTINGS = {trades: {"loss": "kl", "start": "gaussian"}, alp: {}, mixed: {"loss": "l2"}}


@pytest.mark.parametrize("make", [trades, alp, mixed])
def test_clean_and_attacked_inputs_may_share_one_pass_in_train_mode(make):
    a, b = net(), net()
    outcome = evaluated(make(eps=EPS, steps=5, passes=1), a)
    want = b(torch.cat([X, adversary(b, **SETTINGS[make])]))[6:]
    assert torch.allclose(outcome.logits, want, atol=1e-6)
    assert torch.allclose(a[1].running_mean, b[1].running_mean)
    assert a[1].num_batches_tracked == 1


@pytest.mark.parametrize(("make", "passes"), [(trades, 3), (trades, 2), (alp, 2), (mixed, 2)])
def test_as_published_each_half_has_its_own_batch_statistics(make, passes):
    """The default; the loss and the running statistics are those of the passes one after another."""
    default = 3 if make is trades else 2
    settings = {"eps": EPS, "steps": 5} | ({} if passes == default else {"passes": passes})
    a, b = net(), net()
    outcome = evaluated(make(**settings), a)
    z = adversary(b, **SETTINGS[make])
    clean, attacked = b(X), b(z)
    again = b(X) if passes == 3 else clean
    assert torch.equal(outcome.logits, attacked)
    if make is trades:
        divergence = F.kl_div(attacked.log_softmax(1), again.softmax(1), reduction="batchmean")
        want = F.cross_entropy(clean, Y) + 6 * divergence
    elif make is alp:
        want = (F.cross_entropy(clean, Y) + F.cross_entropy(attacked, Y)) / 2 + F.mse_loss(clean, attacked)
    else:
        want = F.cross_entropy(clean, Y) + (attacked - clean).norm(dim=1).mean()
    assert torch.isclose(outcome.loss, want, rtol=1e-5)
    for name, buffer in a.named_buffers():
        assert torch.equal(buffer, dict(b.named_buffers())[name])
    weights = [torch.autograd.grad(loss, list(m.parameters())) for loss, m in ((outcome.loss, a), (want, b))]
    assert all(torch.allclose(p, q, atol=1e-5) for p, q in zip(*weights, strict=True))


def test_mixed_reaches_both_ends():
    """Without the clean loss it is adversarial training, statistics included; without the other one it is plain."""
    a, b = net(), net()
    got = evaluated(mixed(1, EPS, loss="ce", steps=5, clean=0), a)
    want = evaluated(pgd_at(EPS, steps=5), b)
    assert torch.equal(got.loss, want.loss)
    assert all(map(torch.equal, a.buffers(), b.buffers()))
    a, b = net(), net()
    assert torch.equal(evaluated(mixed(0, EPS, steps=5), a).loss, plain()(b, X, Y).loss)
    a, b = net().eval(), net().eval()
    got = evaluated(mixed(0.3, EPS, loss="ce", steps=5, clean=0.7), a)
    want = 0.7 * F.cross_entropy(b(X), Y) + 0.3 * F.cross_entropy(b(adversary(b)), Y)
    assert torch.isclose(got.loss, want)
    got = evaluated(mixed(0.3, EPS, steps=5, clean=0), a)
    want = 0.3 * (b(adversary(b, loss="l2")) - b(X)).norm(dim=1).mean()
    assert torch.isclose(got.loss, want)


@pytest.mark.parametrize("make", [pgd_at, alp])
def test_the_start_of_liangs_program(make):
    model = net().eval()
    got = evaluated(make(eps=EPS, steps=0, start="gaussian"), model)
    torch.manual_seed(9)
    seed = int(torch.randint(2**62, ()))
    start = PGD(math.inf, EPS, 0, start="gaussian")(model, X, Y, seed=seed)
    assert 0 < (start - X).abs().max() < 0.01
    assert torch.equal(got.logits, model(start))


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_max_mahalanobis_centers(classes):
    radius = 7.0
    for size in (None, classes - 1, classes, classes + 30):
        mu = centers(classes, radius, size).double()
        want = torch.full((classes, classes), -(radius**2) / (classes - 1), dtype=torch.float64)
        want.fill_diagonal_(radius**2)
        assert torch.allclose(mu @ mu.T, want, atol=1e-4)
        # no unit vectors have smaller largest inner products: |Σ μ|² ≥ 0, and here it is 0
        assert torch.allclose(mu.sum(0), torch.zeros(mu.shape[1], dtype=torch.float64), atol=1e-4)
    if classes > 2:
        with pytest.raises(ModelError, match=f"at least {classes - 1}"):
            centers(classes, radius, classes - 2)


def test_max_mahalanobis_loss():
    model = net().eval()
    z = model(X)
    got = mmc(3.0)(model, X, Y)
    mu = centers(3, 3.0)
    assert torch.isclose(got.loss, ((z - mu[Y]) ** 2).sum() / 12)
    assert torch.equal(got.logits, z), "the inputs are clean"
    far = 5 * torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.cdist(far, mu).argmin(1), far.argmax(1)), "nearest center, largest logit"
    attacked = evaluated(mmc(3.0, EPS, steps=5), model)
    z = model(adversary(model))
    assert torch.isclose(attacked.loss, ((z - mu[Y]) ** 2).sum() / 12)
    with pytest.raises(AttackError, match="1 class"):
        mmc()(nn.Sequential(nn.Flatten(), nn.Linear(16, 1)), X, Y * 0)


def with_features(radius=10.0):
    return max_mahalanobis(net(), radius, features=6)


@pytest.mark.parametrize("eps", [0, EPS])
def test_max_mahalanobis_loss_on_features(eps):
    """As published: the features are pulled to the centers, which stay, and the nearest one is the largest logit."""
    model = with_features(4.0).eval()
    features, mu = nn.Sequential(*model[:-1], model[-1][0]), model[-1][1].weight
    assert torch.allclose(mu @ mu.T, 16 * (1.5 * torch.eye(3) - 0.5), atol=1e-5)
    got = evaluated(mmc(4.0, eps, steps=5, on="features"), model)
    points = adversary(model) if eps else X
    z, logits = features(points), model(points)
    assert torch.equal(got.logits, logits)
    assert torch.isclose(got.loss, (z - mu[Y]).square().sum() / 12)
    assert torch.equal(torch.cdist(z, mu).argmin(1), logits.argmax(1))
    distances = -torch.cdist(z, mu).square() / 2
    assert torch.allclose(distances.log_softmax(1), logits.log_softmax(1), atol=1e-5)
    got.loss.backward()
    assert mu.grad is None
    assert all(p.grad.isfinite().all() for p in features.parameters())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    before = mu.clone()
    optimizer.step()
    assert torch.equal(model[-1][1].weight, before)


def test_features_without_their_last_layer_are_an_error():
    trained = with_features()
    trained[-1][1].weight.requires_grad_(True)
    for model in (net(), with_features(3.0), trained, nn.Flatten()):
        with pytest.raises(ModelError, match=r"expected max_mahalanobis\(NETWORK, radius=10\)"):
            mmc(on="features")(model, X, Y)
    with pytest.raises(SpecError, match="on='layer': expected 'logits' or 'features'"):
        mmc(on="layer")


@pytest.mark.parametrize("name", ATTACKED)
def test_random_starts_follow_the_global_seed_and_differ_from_step_to_step(name):
    make = getattr(objectives, name)
    settings = {"eps": 0.2, "start": "gaussian" if name == "trades" else "uniform", "steps": 1, "step": 1e-3}
    objective = make(**{k: v for k, v in settings.items() if k in inspect.signature(make).parameters})

    def losses():
        torch.manual_seed(7)
        model = net().double().eval()  # in float32 losses may be the same by rounding
        torch.manual_seed(7)
        return [float(objective(model, X.double(), Y).loss.detach()) for _ in range(3)]

    first = losses()
    assert first == losses()
    assert len(set(first)) == 3


@pytest.mark.parametrize("name", ATTACKED)
def test_settings_are_those_of_the_attack(name):
    make = getattr(objectives, name)
    assert inspect.signature(make).parameters["eps"].default == (0 if name == "mmc" else 8 / 255)
    for settings, message in (
        ({"eps": -1}, "eps=-1"),
        ({"eps": math.nan}, "eps=nan"),
        ({"norm": 0.5}, r"norm=0\.5"),
        ({"mode": "x"}, "mode='x'"),
    ):
        with pytest.raises(AttackError, match=message):
            make(**settings)


@pytest.mark.parametrize("name", ATTACKED)
def test_the_first_batch_is_looked_at(name):
    for x, y, message in (
        (X.clone().index_fill(0, torch.tensor(0), 2), Y, r"inputs range from 0\.\d+ to 2"),
        (X, Y + 1, "labels range from 1 to 3"),
        (X * math.nan, Y, "6 of 6 inputs contain NaN"),
    ):
        with pytest.raises(OpnormError, match=message):
            getattr(objectives, name)(eps=EPS)(net(), x, y)


class Waits(torch.overrides.TorchFunctionMode):
    """Counts the calls for which a GPU would have to be waited for."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ in ("item", "__bool__", "__float__", "__int__", "nonzero", "tolist") and (
            not isinstance(args[0], torch.Tensor) or args[0].dtype != torch.int64 or args[0].ndim
        ):
            Waits.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [n for n in ATTACKED if n != "mmc"])
def test_later_batches_are_not_waited_for(name, monkeypatch):
    monkeypatch.setattr(_gradients, "_known_finite", lambda grad: False)  # as on a GPU
    model, objective = net(), getattr(objectives, name)(eps=EPS)
    for first in (True, False, False):
        Waits.count = 0
        with Waits():
            objective(model, X, Y)
        assert bool(Waits.count) is first


def test_training_on_a_dead_network_is_quiet():
    dead = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Linear(3, 3))
    nn.init.zeros_(dead[1].weight)
    for name in ATTACKED:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            getattr(objectives, name)(eps=EPS)(dead, X, Y)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda v=v: plain(smoothing=v), "smoothing=") for v in (-0.1, 1, math.nan, True, "0.1")),
        *((lambda v=v: trades(beta=v), "beta=") for v in (-1, math.nan, math.inf, True)),
        *((lambda v=v: alp(beta=v), "beta=") for v in (-1, math.nan, math.inf, True)),
        *((lambda v=v: mixed(lam=v), "lam=") for v in (-1, math.nan, math.inf, True)),
        *((lambda v=v: mmc(radius=v), "radius=") for v in (0, -1, math.nan, math.inf, True)),
        (lambda: mixed(loss="cw"), "loss='cw': expected 'kl', 'l1', 'l2', 'linf' or 'ce'"),
        (lambda: fgsm_at(smoothing=1.5), "smoothing=1.5"),
        (lambda: pgd_at(smoothing=-1), "smoothing=-1"),
        (lambda: trades(start="point"), "expected a random start"),
        (lambda: trades(start="x"), "start='x'"),
        (lambda: mixed(start="point"), "expected a random start"),
        (lambda: mixed(0, clean=0), "lam=0 and clean=0"),
        (lambda: trades(passes=4), "passes=4: expected 1, 2 or 3"),
        (lambda: alp(passes=3), "passes=3: expected 1 or 2"),
        (lambda: mixed(passes=0), "passes=0: expected 1 or 2"),
        *((lambda v=v: mixed(clean=v), "clean=") for v in (-1, math.nan, math.inf, True)),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises((SpecError, AttackError), match=message):
        make()


def test_every_objective_teaches():
    """A few steps on a toy problem: each loss goes down, and the clean accuracy up."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = (0.5 + 0.2 * F.one_hot(y, 3).float() @ torch.randn(3, 16, generator=generator)).clamp(0, 1)
    x = (x + 0.05 * torch.randn(60, 16, generator=generator)).clamp(0, 1).view(60, 1, 4, 4)
    published = mmc(3, on="features"), max_mahalanobis(net(), 3)
    for name in (*names("objective"), published):
        if name is published:
            objective, model = published
        else:
            make = getattr(objectives, name)
            known = inspect.signature(make).parameters
            objective = make(**{k: v for k, v in {"eps": 0.05, "steps": 2}.items() if k in known})
            model = net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        losses = []
        for _ in range(25):
            optimizer.zero_grad()
            loss = objective(model, x, y).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0], name
        assert (model.eval()(x).argmax(1) == y).float().mean() > 0.9, name
