"""What every regularizer keeps to, and each one by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opnorm.errors import ModelError, NormError, OpnormError, SpecError
from opnorm.norms import l1, linf
from opnorm.regularizers import Hooks, chain, norm_decay, weight_decay
from opnorm.spec import build, names

X = torch.rand(6, 1, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])

# every regularizer, with settings that show; a new one joins every test here by a line
CASES = [
    "dd_snr(lam=0.1, eps=1e-3)",
    'dd_snr(lam=0.1, form="uJv", steps=2)',
    "dd_onr(lam=0.1)",
    "dd_onr(lam=0.1, p=1, q=2, power=2)",
    "dd_onr(lam=0.1, p=inf, q=inf, steps=200)",
    "dd_snr(lam=0.1, eps=1e-3, exact=False, steps=40)",
    'dd_snr(lam=0.1, eps=1e-3, mode="eval")',
    "dd_onr(lam=0.1, alpha=50, steps=40)",
    "input_gradient(lam=0.1)",
    'input_gradient(lam=0.1, mode="eval")',
    "input_gradient(lam=0.1, q=1, power=1)",
    "weight_decay(lam=0.2)",
    "weight_decay(lam=0.2, decoupled=True)",
    'weight_decay(lam=0.1, form="squares")',
    "weight_decay(lam=0.2, biases=True)",
    "norm_decay(p=1, beta=0.1)",
    "norm_decay(p=inf, beta=0.1)",
    "norm_decay(p=inf, beta=0.1, gamma=0.9, conv=False)",
    "norm_decay(p=1, beta=0.1, batch_norm=True, linear=False)",
    'norm_decay(p=inf, beta=0.1, form="code")',
    "norm_decay(p=1, beta=0.1, normalize=False)",
    "global_snr(lam=0.1, steps=60)",
    'global_snr(lam=0.1, steps=60, operator="true")',
    "spectral_normalization(sp=0.1)",
    "svc(c=0.1)",
    "svc(c=0.1, every=2, projections=2)",
    "svc(c=0.1, linear=True)",
    "parseval(beta=0.1, output_decay=0.1)",
    "parseval(beta=0.1, output_decay=0)",
    "weissi(energy=0.1, complexity=0.1)",
    'weissi(energy=0.1, complexity=0, form="cnn", eta=(2, 1))',
    'weissi(energy=0.1, complexity=0.1, form="log", eta=(3, 2), g=(1, inf))',
]


WITHOUT_LINEAR = ("svc(c=0.1)", "svc(c=0.1, every=2, projections=2)")


def net(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)
    )
    return model.double()


def steps(model, hooks, optimizer, n, lr=0.1):
    """A foreign training loop: the three lines of a regularizer are all that it knows of opnorm."""
    for _ in range(n):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), Y) + hooks.penalty(model, X, Y)
        loss.backward()
        hooks.edit_grads()
        optimizer.step()
        hooks.after_step(lr)
    hooks.after_epoch()


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr)


def weights(model):
    return {k: p.detach().clone() for k, p in model.named_parameters()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_every_regularizer_is_here():
    assert {c.partition("(")[0] for c in CASES} == set(names("regularizer")), "add a line to CASES"


@pytest.mark.parametrize("case", CASES)
def test_it_does_something_in_a_foreign_loop(case):
    plain, treated = net(), net()
    steps(plain, Hooks(), sgd(plain), 3)
    steps(treated, build(case)(treated, X), sgd(treated), 3)
    changed = [k for k, w in weights(plain).items() if not torch.equal(w, weights(treated)[k])]
    assert changed


@pytest.mark.parametrize("case", CASES)
def test_gradcheck_of_the_penalty(case):
    """Along random directions in the space of all parameters, against central differences."""
    model = net()
    hooks = build(case)(model, X)
    penalty = hooks.penalty(model, X, Y)
    assert penalty.shape == ()
    if not penalty.requires_grad:
        assert penalty == 0
        return
    start = weights(model)
    grads = torch.autograd.grad(penalty, list(model.parameters()), allow_unused=True, materialize_grads=True)

    def moved(direction, step):
        for p, w, d in zip(model.parameters(), start.values(), direction, strict=True):
            p.data.copy_(w + step * d)
        return float(hooks.penalty(model, X, Y).detach())

    for _ in range(4):
        direction = [torch.randn_like(grad) for grad in grads]
        slope = sum(float((grad * d).sum()) for grad, d in zip(grads, direction, strict=True))
        assert (moved(direction, 1e-6) - moved(direction, -1e-6)) / 2e-6 == pytest.approx(
            slope, rel=1e-6, abs=1e-6
        )


@pytest.mark.parametrize("case", CASES)
def test_stop_and_resume_give_the_same_bits(case):
    whole = net()
    hooks, optimizer = build(case)(whole, X), sgd(whole)
    steps(whole, hooks, optimizer, 3)
    ids = {k: id(v) for k, v in hooks.state.items()}
    saved = {k: v.clone() for k, v in whole.state_dict().items()}
    state = {k: v.clone() for k, v in hooks.state.items()}
    torch.manual_seed(1)  # as training does where an epoch begins
    steps(whole, hooks, optimizer, 3)
    assert {k: id(v) for k, v in hooks.state.items()} == ids, "the state changes in place only"

    again = net(seed=1)
    again.load_state_dict(saved)
    hooks2 = build(case)(again, X)
    assert hooks2.state.keys() == state.keys()
    for k, v in hooks2.state.items():
        v.copy_(state[k])
    torch.manual_seed(1)
    steps(again, hooks2, sgd(again), 3)
    assert equal(weights(again), weights(whole))
    assert equal(hooks2.state, hooks.state)


@pytest.mark.parametrize("case", CASES)
def test_binding_leaves_the_model_alone(case):
    model = net().train()
    before, state = model.state_dict(), torch.get_rng_state()
    before = {k: v.clone() for k, v in before.items()}
    build(case)(model, X)
    assert equal(dict(model.state_dict()), before)
    assert all(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("case", CASES)
def test_every_hook_leaves_the_modes_and_the_statistics_alone(case):
    model = net()
    model[1].eval()
    hooks = build(case)(model, X)
    modes, buffers = [m.training for m in model.modules()], [b.clone() for b in model.buffers()]
    hooks.penalty(model, X, Y)
    hooks.edit_grads()
    hooks.after_step(0.1)
    hooks.after_epoch()
    assert [m.training for m in model.modules()] == modes
    assert all(map(torch.equal, model.buffers(), buffers))


@pytest.mark.parametrize("case", CASES)
def test_frozen_weights_are_not_touched(case):
    model = net()
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    before = weights(model)
    try:
        hooks = build(case)(model, X)
    except ModelError as e:
        assert "is the model frozen" in str(e)  # noqa: PT017
        return
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    steps(model, hooks, optimizer, 2)
    for k in ("0.weight", "0.bias", "1.weight", "1.bias"):
        assert torch.equal(weights(model)[k], before[k])
        assert dict(model.named_parameters())[k].grad is None
    assert torch.equal(weights(model)["4.weight"], before["4.weight"]) is (case in WITHOUT_LINEAR)


@pytest.mark.parametrize("case", CASES)
def test_hooks_that_are_used_with_a_copy_are_an_error_or_act_on_it(case):
    model = net()
    hooks, copied = build(case)(model, X), copy.deepcopy(model)
    if case.startswith(("dd_", "input_gradient")):  # bound to no weights
        assert hooks.penalty(copied, X, Y).requires_grad
        return
    with pytest.raises(
        ModelError, match=rf"{case.partition('(')[0]} was bound to other weights than this model's"
    ):
        hooks.penalty(copied, X, Y)
    hooks.penalty(nn.DataParallel(model), X, Y)
    hooks.penalty(nn.ModuleDict({"net": model, "other": nn.Linear(2, 2)}), X, Y)


@pytest.mark.parametrize("case", [c for c in CASES if c.startswith("norm_decay")])
def test_editing_gradients_that_no_backward_pass_made_is_an_error(case):
    model = net()
    hooks, copied = build(case)(model, X), copy.deepcopy(model)
    F.cross_entropy(model(X), Y).backward()
    hooks.edit_grads()
    F.cross_entropy(copied(X), Y).backward()
    with pytest.raises(ModelError, match="the model that it was bound to and no copy"):
        hooks.edit_grads()
    F.cross_entropy(model(X), Y).backward()  # added to those of before
    hooks.edit_grads()


@pytest.mark.parametrize("case", CASES)
def test_chain_adds(case):
    alone, both = net(), net()
    first, second = build(case)(alone, X), weight_decay(0.01)(alone, X)
    hooks = chain([build(case)(both, X), weight_decay(0.01)(both, X), Hooks()])
    assert torch.isclose(hooks.penalty(both, X, Y), first.penalty(alone, X, Y) + second.penalty(alone, X, Y))
    assert len(hooks.state) == len(first.state)
    optimizer = sgd(alone)
    for _ in range(2):
        optimizer.zero_grad()
        (F.cross_entropy(alone(X), Y) + first.penalty(alone, X, Y) + second.penalty(alone, X, Y)).backward()
        for h in (first, second):
            h.edit_grads()
        optimizer.step()
        for h in (first, second):
            h.after_step(0.1)
    for h in (first, second):
        h.after_epoch()
    steps(both, hooks, sgd(both), 2)
    for k, w in weights(both).items():
        assert torch.allclose(w, weights(alone)[k], rtol=1e-12)
    for k, v in hooks.state.items():
        assert k.startswith("0.")
        assert torch.equal(v, first.state[k[2:]])


def test_an_empty_chain_and_empty_hooks_do_nothing():
    plain, other = net(), net()
    steps(plain, Hooks(), sgd(plain), 2)
    steps(other, chain([]), sgd(other), 2)
    assert equal(weights(plain), weights(other))
    assert Hooks().state == {}


# ---------------------------------------------------------------- norm decay


@pytest.mark.parametrize(("p", "norm"), [(1, l1), (math.inf, linf)])
def test_norm_decay_is_algorithm_1(p, norm):
    model, beta, gamma = net(), 0.3, 0.7
    hooks = norm_decay(p, beta, gamma)(model, X)
    layers = {"0": ((1, 5, 5), model[0]), "4": ((18,), model[4])}
    h = {name: torch.zeros_like(layer.weight) for name, (_, layer) in layers.items()}
    for _ in range(2):
        model.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        loss_grads = {k: p.grad.clone() for k, p in model.named_parameters()}
        want = {}
        for name, (shape, layer) in layers.items():
            (sign,) = torch.autograd.grad(norm(layer, shape), layer.weight)
            h[name] = gamma * h[name] + (1 - gamma) * sign
            want[f"{name}.weight"] = loss_grads[f"{name}.weight"] + beta / 2 * h[name]
        hooks.edit_grads()
        for k, param in model.named_parameters():
            assert torch.allclose(param.grad, want.get(k, loss_grads[k]), rtol=1e-13, atol=1e-15)
        assert hooks.state.keys() == h.keys()
        assert all(torch.allclose(hooks.state[k], h[k]) for k in h)
        with torch.no_grad():
            for param in model.parameters():
                param.sub_(0.1 * param.grad)


@pytest.mark.parametrize(("p", "norm"), [(1, l1), (math.inf, linf)])
def test_norm_decay_as_the_authors_program_overwrites_and_does_not_normalize(p, norm):
    model, beta, gamma = net(), 0.3, 0.7
    hooks = norm_decay(p, beta, gamma, form="code")(model, X)
    h = {name: torch.zeros_like(model[int(name)].weight) for name in ("0", "4")}
    for _ in range(3):
        model.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        want = {k: q.grad.clone() for k, q in model.named_parameters()}
        for name, shape in (("0", (1, 5, 5)), ("4", (18,))):
            layer = model[int(name)]
            (sign,) = torch.autograd.grad(norm(layer, shape), layer.weight)
            h[name] = torch.where(sign != 0, sign, gamma * h[name])
            want[f"{name}.weight"] += beta * h[name]
        hooks.edit_grads()
        for k, param in model.named_parameters():
            assert torch.allclose(param.grad, want[k], rtol=1e-13, atol=1e-15)
        with torch.no_grad():
            for param in model.parameters():
                param.sub_(0.1 * param.grad)


def test_without_normalization_the_strength_is_that_of_all_layers():
    changes = []
    for settings in ({"beta": 0.2}, {"beta": 0.1, "normalize": False}):
        model = net()
        F.cross_entropy(model(X), Y).backward()
        before = model[4].weight.grad.clone()
        norm_decay(1, **settings)(model, X).edit_grads()
        changes.append(model[4].weight.grad - before)
    assert torch.allclose(changes[0], changes[1], rtol=1e-13)
    assert changes[0].any()


@pytest.mark.parametrize(
    ("layer", "treated"),
    [
        (nn.Conv2d(2, 2, 3, padding=1), True),
        (nn.Conv2d(2, 2, 3, padding=1, groups=2), False),
        (nn.Conv2d(2, 2, 2, dilation=2), False),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), False),
        (nn.Conv2d(2, 2, 5, padding=2, stride=2), False),  # 5 + 2 - 2 > 4
        (nn.Conv2d(2, 2, 4, padding=1, stride=2), False),  # 4 + 2 - 1 > 4
        (nn.Conv2d(2, 2, 3, padding="same"), True),
    ],
)
def test_the_authors_program_leaves_layers_out(layer, treated, recwarn):
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(3))
    model(torch.rand(1, 2, 4, 4))
    hooks = norm_decay(math.inf, form="code")(model, torch.rand(1, 2, 4, 4))
    assert ("0" in hooks.state) is treated
    named = [str(w.message) for w in recwarn if "norm_decay leaves" in str(w.message)]
    assert named == ([] if treated else ["norm_decay leaves these weights as they are: 0.weight"])
    alone = nn.Sequential(layer)
    if not treated:
        with pytest.raises(ModelError, match="finds no layer that its authors' program treats"):
            norm_decay(1, form="code")(alone, torch.rand(1, 2, 4, 4))


def test_norm_decay_lowers_the_norm_and_needs_no_loss():
    model = net()
    hooks = norm_decay(math.inf, 1.0, 0.0)(model, X)
    before = float(linf(model[4], (18,)).detach()), float(linf(model[0], (1, 5, 5)).detach())
    optimizer = sgd(model, 0.01)
    for _ in range(20):
        optimizer.zero_grad()  # leaves no gradient at all
        hooks.edit_grads()
        optimizer.step()
    after = float(linf(model[4], (18,)).detach()), float(linf(model[0], (1, 5, 5)).detach())
    assert after[0] < before[0]
    assert after[1] < before[1]
    optimizer.zero_grad()
    with torch.no_grad():
        hooks.edit_grads()  # the caller's gradient mode does not matter


def test_norm_decay_treats_tied_weights_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(self.a(x)))

    model = Tied().double()
    hooks = norm_decay(1, 1.0, 0.0)(model, torch.rand(1, 4).double())
    assert list(hooks.state) == ["a"]
    hooks.edit_grads()
    (sign,) = torch.autograd.grad(l1(model.a, (4,)), model.a.weight)
    assert torch.equal(model.a.weight.grad, sign)


def test_norm_decay_of_batch_norm_is_on_gamma():
    model = net()
    hooks = norm_decay(math.inf, 1.0, 0.0, linear=False, conv=False, batch_norm=True)(model, X)
    model[1].running_var.copy_(torch.tensor([0.25, 4.0]))
    hooks.edit_grads()
    assert model[1].weight.grad.tolist() == pytest.approx([1 / math.sqrt(0.25 + 1e-5), 0])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: norm_decay(2), SpecError, "p=2: expected 1 or inf"),
        (lambda: norm_decay("inf"), SpecError, "p='inf'"),
        (lambda: norm_decay(1, -1e-9), SpecError, "beta=-1e-09: expected a strength"),
        (lambda: norm_decay(1, math.nan), SpecError, "beta=nan"),
        (lambda: norm_decay(1, math.inf), SpecError, "beta=inf"),
        (lambda: norm_decay(1, gamma=1), SpecError, r"gamma=1: expected a momentum in \[0, 1\)"),
        (lambda: norm_decay(1, gamma=math.nan), SpecError, "gamma=nan"),
        (lambda: norm_decay(1, linear=False, conv=False)(net(), X), ModelError, "no types at all"),
        (lambda: norm_decay(1)(nn.Flatten(), X), ModelError, "finds no trainable layer among Linear, Conv1d"),
        (lambda: norm_decay(1)(net().requires_grad_(False), X), ModelError, "is the model frozen"),
        (lambda: weight_decay(-1), SpecError, "lam=-1"),
        (lambda: weight_decay(math.nan), SpecError, "lam=nan"),
        (lambda: weight_decay(math.inf), SpecError, "lam=inf"),
        (lambda: weight_decay(form="sum"), SpecError, "form='sum': expected 'torch' or 'squares'"),
        (lambda: norm_decay(1, form="paper"), SpecError, "form='paper': expected 'algorithm' or 'code'"),
    ],
)
def test_bad_settings(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("case", CASES)
def test_weights_that_are_not_there_yet_are_named(case):
    with pytest.raises(ModelError, match=r"'1\.weight' is not there yet"):
        build(case)(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), X)


def test_layers_that_norm_decay_cannot_treat_are_named():
    model = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False)).double()
    with pytest.raises(NormError, match="layer '0': BatchNorm2d keeps no running statistics"):
        norm_decay(1, batch_norm=True)(model, X)
    with pytest.raises((OpnormError, RuntimeError)):
        norm_decay(1)(net(), torch.rand(1, 3, 5, 5))


# ---------------------------------------------------------------- weight decay


@pytest.mark.parametrize(("form", "factor"), [("torch", 0.5), ("squares", 1)])
def test_weight_decay_is_lambda_times_the_squares(form, factor):
    model = net()
    of_weights = model[0].weight.square().sum() + model[4].weight.square().sum()
    penalty = weight_decay(0.1, form=form)(model, X).penalty(model, X, Y)
    assert torch.isclose(penalty, 0.1 * factor * of_weights)
    everything = sum(p.square().sum() for p in model.parameters())
    penalty = weight_decay(0.1, form=form, biases=True)(model, X).penalty(model, X, Y)
    assert torch.isclose(penalty, 0.1 * factor * everything)


@pytest.mark.parametrize("biases", [False, True])
def test_weight_decay_is_that_of_sgd(biases):
    """The same number, for the weights alone or for everything as in torch.optim."""
    ours, theirs, squares = net(), net(), net()
    steps(ours, weight_decay(0.1, biases=biases)(ours, X), sgd(ours), 3)
    steps(squares, weight_decay(0.05, form="squares", biases=biases)(squares, X), sgd(squares), 3)
    groups = [
        {"params": [p for p in theirs.parameters() if biases or p.ndim > 1]},
        {"params": [p for p in theirs.parameters() if not biases and p.ndim == 1], "weight_decay": 0},
    ]
    steps(theirs, Hooks(), torch.optim.SGD(groups, lr=0.1, weight_decay=0.1), 3)
    for k, w in weights(ours).items():
        assert torch.allclose(w, weights(theirs)[k], rtol=1e-12)
        assert torch.allclose(w, weights(squares)[k], rtol=1e-12)


@pytest.mark.parametrize(("form", "rate"), [("torch", 0.05), ("squares", 0.1)])
@pytest.mark.parametrize("biases", [False, True])
def test_decoupled_weight_decay_by_hand(form, rate, biases):
    model = net()
    hooks = weight_decay(0.05, decoupled=True, form=form, biases=biases)(model, X)
    assert hooks.penalty(model, X, Y) == 0
    before = weights(model)
    hooks.after_step(0.3)
    for k, w in weights(model).items():
        factor = 1 - rate * 0.3 if biases or w.ndim > 1 else 1
        assert torch.allclose(w, before[k] * factor, rtol=1e-14)


def test_weight_decay_of_zero_weights_has_a_gradient():
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    weight_decay(1.0)(model, X).penalty(model, X, Y).backward()
    assert torch.equal(model.weight.grad, torch.zeros(2, 2))


def test_weight_decay_of_a_model_without_weights_is_zero():
    model = nn.Flatten()
    for decoupled in (False, True):
        hooks = weight_decay(1.0, decoupled)(model, X)
        assert hooks.penalty(model, X, Y) == 0
        hooks.after_step(0.1)
