"""The loop: an interrupted training ends with the same bits, whatever is random in it, and what goes wrong is said."""

import json
import math
import random
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from opnorm import objectives, regularizers, training
from opnorm._core.files import read_tensors
from opnorm.data import Dataset, Split, augmentations, digits
from opnorm.errors import ModelError, RunError, SpecError, TrainError
from opnorm.models import cnn
from opnorm.models.modules import Normalize
from opnorm.training import TrainingSettings, optimizers, precision, schedules

DATA = digits().limit(100)


def train(model, data, *, folder=None, probe=None, progress=None, **settings):
    """Settings as keywords."""
    return training.train(
        model, data, training.TrainingSettings(**settings), folder=folder, probe=probe, progress=progress
    )


def network(norm: bool = True) -> nn.Module:
    """Dropout, batch norm, convolution: all that carries state or draws numbers."""
    torch.manual_seed(1)
    return nn.Sequential(
        Normalize(1, 0.3, 0.4), nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3),
        nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


EVERYTHING = {
    "objective": objectives.pgd_at(eps=0.1, steps=2),
    "regularizers": [regularizers.weight_decay(1e-3), regularizers.norm_decay(math.inf, 0.1)],
    "augment": [augmentations.crop(1), augmentations.flip()],
    "optimizer": optimizers.sgd(0.05, nesterov=True),
    "schedule": schedules.step((1, 2)),
}
WAYS = {
    "plain": {},
    "everything": EVERYTHING,
    "bf16": EVERYTHING | {"precision": "bf16"},
    "channels_last": EVERYTHING | {"channels_last": True},
    "fgsm, l1 decay": {
        "objective": objectives.fgsm_at(0.1, start="uniform"),
        "regularizers": [regularizers.norm_decay(1)],
    },
    "adam": {"optimizer": optimizers.adam(0.01)},
    "adamw, averaged": {"optimizer": optimizers.adamw(0.01), "ema": 0.9},
    "rmsprop": {"optimizer": optimizers.rmsprop(0.001, momentum=0.5)},
    "averaged": EVERYTHING | {"ema": 0.9},
}  # fmt: skip


class Stop(Exception):
    pass


def stop_in(epoch: int, step: int = 1):
    def progress(event):
        if (event.epoch, event.step) == (epoch, step):
            raise Stop

    return progress


def end(folder: Path, **settings) -> tuple[dict, list]:
    """Everything a training leaves: each tensor of the checkpoint as bytes, and the metrics without times."""
    settings = {"epochs": 3, "batch": 32, "folder": folder} | settings
    model = network()
    metrics = train(model, DATA, **settings)
    tensors, _ = read_tensors(folder / "checkpoint.safetensors")
    own = {f"model/{k}": v for k, v in model.state_dict().items()}
    averaged = {k.replace("average/", "model/"): v for k, v in tensors.items() if k.startswith("average/")}
    assert bool(averaged) == bool(settings.get("ema"))
    tensors |= averaged
    assert all(torch.equal(tensors[k], v) for k, v in own.items()), "the model is what was saved"
    written = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert written == metrics
    for row in metrics:
        assert row.pop("seconds") > 0
    tensors, _ = read_tensors(folder / "checkpoint.safetensors")
    return {k: (v.dtype, v.numpy().tobytes()) for k, v in tensors.items()}, metrics


@pytest.mark.parametrize("way", WAYS)
def test_resuming_gives_the_same_bits(tmp_path, way):
    settings = WAYS[way]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, metrics = end(tmp_path / "a", **settings)
    for epoch, step in ((1, 2), (2, 1), (3, 3), (3, 1)):
        with pytest.raises(Stop):
            end(tmp_path / "b", progress=stop_in(epoch, step), **settings)
    pieces, again = end(tmp_path / "b", **settings)
    assert pieces == whole
    assert again == metrics
    assert any(k.startswith("optimizer/") for k in whole)
    if "regularizers" in settings:
        assert any(k.startswith("hooks/") for k in whole)


@pytest.mark.parametrize("faster", ["fp32", "bf16"])
def test_auto_takes_the_faster_precision_and_keeps_it(tmp_path, monkeypatch, faster):
    """A machine that has become another one goes on in the precision that the training began with."""
    seconds = {"fp32": (1.0, 2.0), "bf16": (2.0, 1.0)}
    wanted = EVERYTHING | {"precision": faster}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bf16 without hardware for it
        whole, metrics = end(tmp_path / "a", **wanted)
    monkeypatch.setattr(precision, "seconds_of_a_pass", lambda *args: seconds[faster])
    with pytest.raises(Stop):
        end(tmp_path / "b", progress=stop_in(2), **EVERYTHING, precision="auto")
    monkeypatch.setattr(precision, "seconds_of_a_pass", lambda *args: seconds[faster][::-1])
    pieces, again = end(tmp_path / "b", **EVERYTHING, precision="auto")
    assert pieces == whole
    assert [row.pop("precision") for row in again] == [faster] * 3
    assert again == metrics


def test_measuring_a_pass_leaves_the_model_alone():
    model, x, y = network(), DATA.train.images[:8].float() / 255, DATA.train.labels[:8]
    model[4].eval()
    model[1].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    assert all(seconds > 0 for seconds in precision.seconds_of_a_pass(model, x, y))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 7]
    assert [model.training, model[4].training] == [True, False]
    assert torch.equal(torch.get_rng_state(), state)


def test_what_bf16_costs_without_hardware_is_said_before_training(monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    monkeypatch.setattr(precision, "seconds_of_a_pass", lambda *args: (0.5, 4.0))
    steps = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            UserWarning, match=r"factor of about 8: .* 16 points takes 4 s, and 0.5 s in fp32.*auto"
        ):
            train(network(), DATA, epochs=1, batch=32, precision="bf16", progress=steps.append)
        assert not steps
        train(network(), DATA, epochs=1, batch=32, precision="auto")


def test_a_folder_changes_nothing(tmp_path):
    model = network()
    metrics = train(model, DATA, epochs=3, batch=32, **EVERYTHING)
    _, kept = end(tmp_path, **EVERYTHING)
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in metrics] == kept


def test_seeds_differ_and_repeat(tmp_path):
    results = {}
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        (tmp_path / name).mkdir()
        results[name] = end(tmp_path / name, seed=seed, **EVERYTHING)
    assert results["a"] == results["c"]
    assert results["a"][0] != results["b"][0]


def test_the_callers_random_numbers_are_left_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    train(network_without_seed(), DATA, epochs=1, batch=32, **EVERYTHING)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(Stop):
        train(network_without_seed(), DATA, epochs=1, progress=stop_in(1))
    assert torch.equal(torch.get_rng_state(), before), "also after an error"


def network_without_seed() -> nn.Module:
    with torch.random.fork_rng():
        return network()


def test_every_epoch_has_an_order_of_its_own():
    seen: list[int] = []
    images = DATA.train.images.flatten(1).float() / 255

    def spy(model, x, y):
        rows = (x.flatten(1)[:, None] == images[None]).all(2).float().argmax(1)
        seen.extend(rows.tolist())
        return objectives.plain()(model, x, y)

    train(network(), DATA, epochs=2, batch=25, objective=spy)
    first, second = seen[:100], seen[100:]
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second


def test_points_that_do_not_fill_a_batch_wait():
    sizes = []

    def spy(model, x, y):
        sizes.append(len(x))
        return objectives.plain()(model, x, y)

    train(network(), DATA, epochs=1, batch=30, objective=spy)
    assert sizes == [30, 30, 30]
    sizes.clear()
    train(network(), DATA, epochs=1, batch=1000, objective=spy)
    assert sizes == [100]


def test_learning_rates_are_the_schedules():
    rates: list[float] = []
    optimizer = None

    def make(parameters):
        nonlocal optimizer
        optimizer = torch.optim.SGD(parameters, lr=0.2)
        return optimizer

    def look(event):
        rates.append(optimizer.param_groups[0]["lr"])

    metrics = train(network(), DATA, epochs=4, batch=50, optimizer=make, progress=look)
    expected = [0.2 * 0.5 * (1 + math.cos(math.pi * t / 8)) for t in range(8)]
    assert rates == pytest.approx(expected)
    assert [row["lr"] for row in metrics] == pytest.approx(expected[1::2]), "that of the epoch's last step"
    assert [row["epoch"] for row in metrics] == [1, 2, 3, 4]

    metrics = train(network(), DATA, epochs=4, batch=50, optimizer=make, schedule=schedules.step((1, 3), 0.1))
    assert [row["lr"] for row in metrics] == pytest.approx([0.2, 0.02, 0.02, 0.002])


def test_it_learns_and_its_metrics_are_right():
    data = digits()
    torch.manual_seed(0)
    model = cnn(in_shape=(1, 8, 8), width=8)
    metrics = train(model, data, epochs=4, batch=64, optimizer=optimizers.sgd(0.05))
    losses = [row["loss"] for row in metrics]
    assert losses == sorted(losses, reverse=True)
    model.eval()
    right = (model(data.test.images.float() / 255).argmax(1) == data.test.labels).float().mean()
    assert right > 0.85

    frozen = train(model, data, epochs=1, batch=64, optimizer=optimizers.sgd(1e-30))[0]
    n = 64 * (len(data.train.labels) // 64)
    order = torch.randperm(len(data.train.labels), generator=torch.Generator().manual_seed(0))[:n]
    logits = model(data.train.images[order].float() / 255)
    assert frozen["loss"] == pytest.approx(
        nn.functional.cross_entropy(logits, data.train.labels[order]).item(), rel=1e-4
    )
    assert frozen["train_accuracy"] == pytest.approx(
        (logits.argmax(1) == data.train.labels[order]).float().mean().item()
    )


def test_fewer_epochs_than_are_there_and_none_at_all(tmp_path):
    end(tmp_path, epochs=2)
    assert len(train(network(), DATA, epochs=2, batch=32, folder=tmp_path)) == 2, "nothing left to do"
    assert train(network(), DATA, epochs=0) == []


def test_more_epochs_than_were_asked_for_go_on(tmp_path):
    settings = {"schedule": schedules.constant()}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    end(tmp_path / "a", epochs=2, **settings)
    assert end(tmp_path / "a", epochs=4, **settings) == end(tmp_path / "b", epochs=4, **settings)


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": -1},
        {"batch": 0},
        {"precision": "fp8"},
        {"seed": -1},
        {"seed": 2**70},
        {"ema": 1.0},
        {"ema": -0.1},
        {"ema": math.nan},
        {"ema": True},
    ],
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(TrainError, match=r"expected"):
        TrainingSettings(**settings)


def test_settings_are_checked():
    with pytest.raises(TrainError, match=r"batch=0: expected"):
        train(network(), DATA, epochs=1, batch=0)


def test_a_frozen_model_is_refused():
    with pytest.raises(ModelError, match="no weights to train"):
        train(network().requires_grad_(False), DATA, epochs=1)


def test_a_loss_that_is_not_finite_stops_with_the_place(tmp_path):
    model = network()

    def poison(done, epochs):
        if done > 1.3:  # before the second step of the second epoch
            with torch.no_grad():
                model[5].weight[0, 0, 0, 0] = math.nan
        return 1.0

    with pytest.raises(
        TrainError, match=r"the loss is nan at epoch 2, step 2 of 3: weight '5\.weight' is no longer finite"
    ):
        train(model, DATA, epochs=3, batch=32, folder=tmp_path, schedule=poison)
    _, metadata = read_tensors(tmp_path / "checkpoint.safetensors")
    assert metadata["epoch"] == "1", "the last good epoch is kept"


def test_an_output_that_is_not_finite_is_placed():
    class Root(nn.Module):
        def forward(self, x):
            return (x - 1e9).sqrt()

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Root())
    with pytest.raises(TrainError, match=r"epoch 1, step 1 of 1: the output of layer '2' \(Root\)"):
        train(model, DATA, epochs=1)


def test_a_penalty_that_is_not_finite_is_told_from_the_weights():
    from opnorm.regularizers import Hooks

    def bad(model, example):
        return Hooks(penalty=lambda model, x, y: x.new_tensor(math.inf))

    with pytest.raises(TrainError, match=r"the loss is inf.*loss itself or a penalty"):
        train(network(), DATA, epochs=1, regularizers=[bad])


@pytest.mark.parametrize("objective", ["plain", "fgsm_at", "pgd_at"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_divergence_is_seen_whatever_the_objective(objective, epochs, tmp_path):
    """In the last step too, which no loss follows; and an attack's own refusal is the same thing."""
    with pytest.raises(TrainError, match=r"at epoch 1, step \d+ of 1.*finite.*smaller learning rate"):
        train(
            network(), DATA, epochs=epochs, folder=tmp_path,
            objective=getattr(objectives, objective)(), optimizer=optimizers.sgd(1e30),
        )  # fmt: skip
    assert not (tmp_path / "checkpoint.safetensors").exists()


def spoil(folder: Path, how: str) -> None:
    state, lines = folder / "checkpoint.safetensors", folder / "metrics.jsonl"
    match how:
        case "truncated":
            state.write_bytes(state.read_bytes()[:-10])
        case "empty":
            state.write_bytes(b"")
        case "bit":
            content = state.read_bytes()
            state.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
        case "gone":
            state.unlink()
        case "first line" | "last line":
            rows = [json.loads(line) for line in lines.read_text().splitlines()]
            rows[0 if how == "first line" else -1]["loss"] += 0.125
            lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case "text":
            state.write_text("hello")
        case "no metrics":
            lines.unlink()
        case "metrics cut":
            lines.write_text(lines.read_text().splitlines(keepends=True)[0])
        case "metrics half a line":
            lines.write_text(lines.read_text()[:-20])
        case "metrics not objects":
            lines.write_text("1\n2\n")
        case "metrics not text":
            lines.write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    "how", ["no metrics", "metrics half a line", "metrics not objects", "metrics not text", "first line"]
)
def test_a_damaged_folder_is_refused(tmp_path, how):
    with pytest.raises(Stop):
        train(network(), DATA, epochs=3, batch=32, folder=tmp_path, progress=stop_in(3))
    spoil(tmp_path, how)
    with pytest.raises(RunError, match=f"{tmp_path}.*"):
        train(network(), DATA, epochs=3, batch=32, folder=tmp_path)


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "bit", "metrics cut", "last line", "gone"])
def test_the_checkpoint_before_a_damaged_one_is_used(tmp_path, how):
    (tmp_path / "whole").mkdir()
    (tmp_path / "spoiled").mkdir()
    whole = end(tmp_path / "whole", **EVERYTHING)
    with pytest.raises(Stop):
        end(tmp_path / "spoiled", progress=stop_in(3), **EVERYTHING)
    spoil(tmp_path / "spoiled", how)
    begun = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = end(tmp_path / "spoiled", progress=lambda event: begun.append(event.epoch), **EVERYTHING)
    assert again == whole
    assert begun[0] == 2
    said = [
        str(w.message)
        for w in caught
        if "The training goes on from the checkpoint before, of epoch 1" in str(w.message)
    ]
    assert len(said) == (how != "gone"), "a kill between two renames is no damage"


def test_any_flipped_bit_of_a_checkpoint_is_noticed(tmp_path):
    train(network(), DATA, epochs=1, folder=tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    content = path.read_bytes()
    chance = random.Random(0)
    for place in [*range(8, 400, 3), *(chance.randrange(len(content)) for _ in range(100))]:
        path.write_bytes(
            content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
        )
        with pytest.raises(RunError, match=r"checkpoint\.safetensors"):
            train(network(), DATA, epochs=1, folder=tmp_path)
    path.write_bytes(content)
    assert train(network(), DATA, epochs=1, folder=tmp_path)


def test_the_checkpoint_of_another_network_is_refused(tmp_path):
    train(network(), DATA, epochs=1, folder=tmp_path)
    with pytest.raises(RunError, match="does not fit this run"):
        train(cnn(in_shape=(1, 8, 8), width=4), DATA, epochs=2, folder=tmp_path)
    with pytest.raises(RunError, match="does not fit this run"):
        train(network(), DATA, epochs=2, folder=tmp_path, regularizers=[regularizers.norm_decay(1)])


def test_metrics_are_json_even_where_a_probe_is_not_finite(tmp_path):
    train(network(), DATA, epochs=1, folder=tmp_path, probe=lambda model: {"norm": math.inf})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["norm"] is None


@pytest.mark.parametrize("objective", ["plain", "pgd_at"])
def test_a_batch_of_one_with_batch_norm_says_what_is_wrong(objective):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 10))
    with pytest.raises(TrainError, match="batch=1: batch norm cannot normalize 1 point"):
        train(model, DATA, objective=getattr(objectives, objective)(), batch=1, epochs=1)


class Dead(nn.Module):
    """Gives the same class for all images until a number of epochs have been seen; then it learns."""

    def __init__(self, lives_from):
        super().__init__()
        self.linear, self.steps, self.lives_from = nn.Linear(64, 10), 0, lives_from

    def forward(self, x):
        if self.training:
            self.steps += 1
        alive = self.steps > self.lives_from
        return self.linear(x.flatten(1)) + (0.0 if alive else 1e3) * torch.arange(10)


@pytest.mark.parametrize(
    ("objective", "optimizer", "told"),
    [
        (objectives.mmc(), optimizers.sgd(), "sgd(lr=0.02)"),
        (objectives.mmc(radius=4), optimizers.sgd(0.1), "sgd(lr=0.05)"),
        (objectives.mmc(), optimizers.sgd(0.01), ""),
        (objectives.mmc(), optimizers.adam(0.1), ""),
        (objectives.mmc(radius=1), optimizers.sgd(), ""),
        (objectives.plain(), optimizers.sgd(1.0), ""),
    ],
)  # fmt: skip
def test_first_steps_that_are_too_large_are_said_at_the_beginning(objective, optimizer, told):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(Dead(0), DATA, objective=objective, optimizer=optimizer, epochs=0)
    found = [str(w.message) for w in caught if "dead network" in str(w.message)]
    assert len(found) == bool(told)
    assert all(told in message for message in found)


@pytest.mark.parametrize(
    ("lives_from", "epochs", "batch", "told"),
    [
        (1000, 2, 10, True),
        (1000, 1, 10, False),
        (10, 3, 10, False),
        (1000, 4, 50, False),
        (1000, 30, 50, True),
        (20, 5, 10, True),
    ],
)
def test_a_network_that_does_not_learn_is_noticed(lives_from, epochs, batch, told):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(Dead(lives_from), DATA, epochs=epochs, batch=batch, optimizer=optimizers.sgd(0.01))
    found = [str(w.message) for w in caught if "stopped learning" in str(w.message)]
    assert len(found) == told, "once, or not at all"
    if told:
        assert "gives class 9 for at least 99 % of the training images" in found[0]


def test_one_class_in_nearly_all_labels_is_no_sign():
    labels = torch.zeros(100, dtype=torch.int64)
    labels[0] = 1
    split = Split(DATA.train.images[:100], labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(
            Dead(1000),
            Dataset("one", split, split, tuple("0123456789")),
            epochs=3,
            batch=10,
            optimizer=optimizers.sgd(0.01),
        )


@pytest.mark.parametrize(
    ("make", "reference"),
    [
        (
            optimizers.adam(0.01, beta1=0.8, eps=1e-6),
            partial(torch.optim.Adam, lr=0.01, betas=(0.8, 0.999), eps=1e-6),
        ),
        (optimizers.adamw(0.01, 0.1), partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)),
        (optimizers.rmsprop(0.001, momentum=0.5), partial(torch.optim.RMSprop, lr=0.001, momentum=0.5)),
        (optimizers.sgd(0.1), partial(torch.optim.SGD, lr=0.1, momentum=0.9)),
    ],
)
def test_optimizers_are_torchs(make, reference):
    ends = []
    for optimizer in (make, reference):
        model = network()
        train(model, DATA, epochs=2, batch=32, optimizer=optimizer)
        ends.append(model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optimizers.sgd(0), "lr=0: expected a learning rate above 0"),
        (lambda: optimizers.sgd(momentum=1), r"momentum=1: expected a number in \[0, 1\)"),
        (lambda: optimizers.sgd(momentum=0.0, nesterov=True), "expected a momentum above 0 for nesterov"),
        (lambda: optimizers.adam(math.inf), "lr=inf"),
        (lambda: optimizers.adam(beta2=1.0), "beta2=1.0"),
        (lambda: optimizers.adamw(weight_decay=-1), "weight_decay=-1"),
        (lambda: optimizers.rmsprop(alpha=-0.1), "alpha=-0.1"),
        (lambda: optimizers.rmsprop(eps=0), "eps=0"),
    ],
)
def test_optimizers_that_make_no_sense(make, message):
    with pytest.raises(SpecError, match=message):
        make()


def test_accumulation_over_parts_of_a_batch_is_one_step():
    """The order that the documentation states: the gradients are edited once, on the sum of the parts."""
    x, y = DATA.train.images[:20].float() / 255, DATA.train.labels[:20]
    ends = []
    for parts in (1, 2, 4):
        model = network().eval()
        hooks = regularizers.chain(
            [regularizers.norm_decay(math.inf, 0.5)(model, x), regularizers.weight_decay(0.1)(model, x)]
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x_part, y_part in zip(x.chunk(parts), y.chunk(parts), strict=True):
            loss = objectives.plain()(model, x_part, y_part).loss + hooks.penalty(model, x_part, y_part)
            (loss / parts).backward()
        hooks.edit_grads()
        optimizer.step()
        hooks.after_step(0.1)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(ends[1], ends[0])
    torch.testing.assert_close(ends[2], ends[0])
