"""Long evaluations: parts, resuming after a kill, what is refused, points and pictures that are written."""

import math
import re
import time
import warnings

import pytest
import torch
from PIL import Image
from torch import nn

from opnorm import models
from opnorm.attacks import AutoAttack, apgd, autoattack, fgsm, pgd
from opnorm.errors import AttackError, RunError
from opnorm.models import cnn
from opnorm.runs.attack_evaluation import evaluate
from opnorm.runs.evaluation import load_points, save_points
from opnorm.runs.image_sheet import contact_sheet
from opnorm.runs.store import Store
from tests.attacks.honest import Around, honest, points
from tests.attacks.test_contract import exactly_inside
from tests.attacks.victims import images
from tests.runs import processes

pytestmark = pytest.mark.usefixtures("few_queries")

FAST = ("apgd-ce", "apgd-t")
TENSORS = ("points", "correct", "certified", "misclassified", "stage_index")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "attacks")


@pytest.fixture(scope="module")
def data():
    return points(60)


def agree(a, b):
    assert all(torch.equal(getattr(a.result, k), getattr(b.result, k)) for k in TENSORS)
    assert torch.equal(a.before, b.before)
    assert torch.equal(a.after, b.after)
    assert a.masking == b.masking
    assert a.result.notes == b.result.notes
    assert [(s.name, s.searches, s.attacked, s.misclassified) for s in a.result.stages] == [
        (s.name, s.searches, s.attacked, s.misclassified) for s in b.result.stages
    ]


# ---------------------------------------------------------------- what it finds


@pytest.mark.parametrize("make", [pgd, fgsm, pytest.param(apgd, marks=pytest.mark.slow)])
def test_an_attack_by_hand(make, data):
    x, y = data
    done = evaluate(honest(), x, y, make(eps=0.1), part=25)
    right = honest()(x).argmax(1) == y
    z = x.clone()
    for part in torch.arange(60).split(25):
        part = part[right[part]]
        z[part] = make(eps=0.1)(honest(), x[part], y[part])
    assert torch.equal(done.result.points, z)
    assert torch.equal(done.result.correct, right)
    assert torch.equal(done.result.misclassified, right & (honest()(z).argmax(1) != y))
    assert torch.equal(done.before, honest()(x).argmax(1))
    assert torch.equal(done.after, honest()(z).argmax(1))
    exactly_inside(x, done.result.points, 0.1, math.inf)
    row = done.as_dict()
    assert row["attack"].startswith(f"{make.__name__}(")
    assert {"norm=inf", "eps=0.1"} <= set(re.split(r"[(), ]+", row["attack"]))
    assert (row["points"], row["correct"]) == (60, int(right.sum()))
    assert row["robust_accuracy"] == pytest.approx(row["robust"] / 60)
    assert row["interval"][0] < row["robust_accuracy"] < row["interval"][1]


@pytest.mark.slow
def test_parts_do_not_change_what_autoattack_says(data):
    """In float64 the rounding of kernels, which differs with the batch, decides about no point."""
    model, (x, y) = Around().double(), data
    attack = autoattack(eps=0.1, attacks=FAST)
    whole, cut = (evaluate(model, x.double(), y, attack, part=part) for part in (1000, 17))
    assert torch.equal(whole.result.misclassified, cut.result.misclassified)
    assert torch.equal(whole.result.stage_index, cut.result.stage_index)
    assert [(s.name, s.attacked, s.misclassified) for s in whole.result.stages] == [
        (s.name, s.attacked, s.misclassified) for s in cut.result.stages
    ]
    assert sum(s.misclassified for s in cut.result.stages) == int(cut.result.misclassified.sum())
    result = attack.evaluate(model, x.double(), y)
    assert torch.equal(result.misclassified, whole.result.misclassified)


def test_a_part_that_ends_early_and_one_without_a_right_point(data):
    x, y = data
    wrong = y.clone()
    wrong[:20] = (honest()(x[:20]).argmax(1) + 1) % 10
    done = evaluate(honest(), x, wrong, autoattack(eps=0.3, attacks=FAST), part=20)
    assert not done.result.correct[:20].any()
    assert (done.result.stage_index[:20] == -1).all()
    assert done.result.stages[0].attacked == int(done.result.correct.sum())


def test_what_the_attack_warns_of_becomes_a_note_said_once(data):
    class Blind(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return 0 * grad

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = evaluate(Around(before=Blind.apply), *data, pgd(eps=0.1), part=60)
    (note,) = done.result.notes
    assert note.startswith("the gradient is exactly zero for 5")
    done = evaluate(Around(before=Blind.apply), *data, AutoAttack(eps=0.1, attacks=("apgd-ce",)), part=20)
    (note,) = [n for n in done.result.notes if "gradient" in n]
    assert note.startswith("the gradient of APGD-CE is exactly zero for 5")


# ---------------------------------------------------------------- stopped and resumed


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    "make", [pgd, pytest.param(lambda eps: autoattack(eps=eps, attacks=FAST), marks=pytest.mark.slow)]
)
def test_it_goes_on_from_the_parts_that_ended(store, data, make):
    def stop(progress):
        if progress.finished >= 40:
            raise Stopped

    whole = evaluate(honest(), *data, make(eps=0.1), part=20)
    with pytest.raises(Stopped):
        evaluate(honest(), *data, make(eps=0.1), part=20, store=store, progress=stop)
    (folder,) = store.root.glob("*.partial")
    assert len(list(folder.glob("part-*.safetensors"))) == 2
    reports = []
    done = evaluate(honest(), *data, make(eps=0.1), part=20, store=store, progress=reports.append)
    assert {r.finished for r in reports} == {40, 60}
    assert {r.total for r in reports} == {60}
    agree(done, whole)
    assert done.folder == store.root / folder.name.removesuffix(".partial")

    reports.clear()
    again = evaluate(honest(), *data, make(eps=0.1), part=20, store=store, progress=reports.append)
    assert reports == [], "found, nothing is done again"
    agree(again, whole)
    assert again.seconds == done.seconds


def loaded(weights):
    model = cnn(in_shape=(1, 8, 8), classes=10, width=8)
    model.load_state_dict(weights)
    return model


def work(root, weights, begun):
    """In a process of its own: an evaluation that waits a little at the beginning of every part."""

    def slowly(progress):
        if progress.activity.startswith("autoattack"):
            begun.value = progress.finished
            time.sleep(0.2)

    torch.set_num_threads(1)
    evaluate(
        loaded(weights),
        *points(24),
        autoattack(eps=0.1, attacks=FAST),
        part=6,
        store=Store(root),
        progress=slowly,
    )


def test_killed_in_the_middle_it_ends_the_same(store):
    begun, weights = processes.CONTEXT.Value("i", -1), honest().state_dict()
    process = processes.CONTEXT.Process(target=work, args=(store.root, weights, begun))
    process.start()
    while begun.value < 12 and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert 12 <= begun.value < 24
    (folder,) = store.root.glob("*.partial")
    kept = {p.name: p.stat().st_mtime_ns for p in folder.glob("part-*")}
    assert len(kept) >= 2
    attack = autoattack(eps=0.1, attacks=FAST)
    done = evaluate(loaded(weights), *points(24), attack, part=6, store=store)
    assert done.folder == folder.with_suffix("")
    assert {n: (done.folder / n).stat().st_mtime_ns for n in kept} == kept, "what was there was used as it is"
    assert len(list(done.folder.glob("part-*"))) == 4
    assert not list(done.folder.glob(".*"))
    agree(done, evaluate(loaded(weights), *points(24), attack, part=6))


def test_another_model_attack_or_data_is_another_evaluation(store, data):
    x, y = data
    other = Around()
    with torch.no_grad():
        other.inner[-1].bias += 1e-3
    flipped = y.clone()
    flipped[0] = (y[0] + 1) % 10
    folders = {
        evaluate(model, *inputs, attack, part=part, store=store).folder
        for model, inputs, attack, part in (
            (Around(), (x, y), fgsm(0.1), 60),
            (other, (x, y), fgsm(0.1), 60),
            (Around(), (x, y), fgsm(0.2), 60),
            (Around(), (x[:50], y[:50]), fgsm(0.1), 60),
            (Around(), (x, flipped), fgsm(0.1), 60),
            (Around(), (x, y), fgsm(0.1), 30),
        )
    }
    assert len(folders) == 6
    again = evaluate(Around(), x, y, fgsm(eps=0.1), part=60, store=store)
    assert again.folder in folders


def test_a_surrogate_that_comes_later(store, data):
    done = evaluate(honest(), *data, fgsm(0.1), store=store)
    with_one = evaluate(honest(), *data, fgsm(0.1), store=store, surrogate=honest())
    assert with_one.folder == done.folder
    assert len(with_one.masking.indicators) == len(done.masking.indicators) + 1
    agree(evaluate(honest(), *data, fgsm(0.1), store=store), done)


def test_a_damaged_part_is_said_and_made_again(store, data):
    done = evaluate(honest(), *data, fgsm(0.1), store=store)
    part = next(done.folder.glob("part-*"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"cannot read .*part-00000000\.safetensors.* It is made again"):
        agree(evaluate(honest(), *data, fgsm(0.1), store=store), done)
    assert part.stat().st_size > 100


def test_two_at_the_same_evaluation(store, data):
    def inside(heard):
        with pytest.raises(RunError, match="another process is at run"):
            evaluate(honest(), *data, fgsm(0.1), store=store)

    evaluate(honest(), *data, fgsm(0.1), store=store, progress=inside)


# ---------------------------------------------------------------- what makes no sense


class Strange:
    norm, eps = math.inf, 0.1

    def __init__(self, change):
        self.change = change

    def __call__(self, model, x, y, *, seed=None):
        return self.change(x)


def test_an_attack_of_the_users_own(store, data):
    done = evaluate(honest(), *data, Strange(lambda x: (x + 0.05).clamp(0, 1)))
    assert done.attack == ""
    assert [s.name for s in done.result.stages] == ["Strange"]
    with pytest.raises(AttackError, match="stored under the attack's call"):
        evaluate(honest(), *data, Strange(lambda x: x), store=store)
    with pytest.raises(AttackError, match="does not say its norm and eps; expected parameters norm and eps"):
        evaluate(honest(), *data, lambda model, x, y, seed=None: x)


@pytest.mark.parametrize(
    "change",
    [lambda x: (x + 0.11).clamp(0, 1), lambda x: x - 0.05, lambda x: x * math.nan],
    ids=["ball", "box", "nan"],
)
def test_points_outside_are_refused(change, data):
    with pytest.raises(
        AttackError, match=r"gave points outside of its ball of radius 0\.1 in norm inf, or of"
    ):
        evaluate(honest(), *data, Strange(change))


@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    [
        (pgd(eps=0), {}, "eps=0: nothing would be attacked"),
        (pgd(2, 9), {}, r"eps=9 is larger than the whole box of images of 64 values, 8 across in norm 2"),
        (pgd(1, 65), {}, "larger than the whole box"),
        (pgd(), {"part": 0}, "part=0: expected a whole number"),
        (pgd(), {"part": True}, "part=True"),
    ],
)
def test_bad_settings(attack, settings, message, data):
    with pytest.raises(AttackError, match=message):
        evaluate(honest(), *data, attack, **settings)
    evaluate(honest(), *points(3), pgd(2, 8, 1))


def test_bad_inputs(data):
    x, y = data
    for inputs, message in (
        ((x[:0], y[:0]), "there are no points"),
        ((2 * x, y), "inputs range from 0 to 2"),
        ((x, y + 9), "labels range from 9"),
        ((x.mul(255).to(torch.uint8), y), "divide uint8 pixels by 255"),
    ):
        with pytest.raises(AttackError, match=message):
            evaluate(honest(), *inputs, pgd(eps=0.1))
    with pytest.raises(AttackError, match="labels range from 0 to 9, but the model has 3 classes"):
        evaluate(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), x, y, pgd(eps=0.1))


# ---------------------------------------------------------------- what is written


def test_saved_points(tmp_path, data):
    done = evaluate(honest(), *data, autoattack(eps=0.1, attacks=("apgd-ce",)))
    save_points(tmp_path / "points.safetensors", done)
    saved = load_points(tmp_path / "points.safetensors")
    assert torch.equal(saved.points, done.result.points)
    assert torch.equal(saved.clean, data[0])
    assert torch.equal(saved.labels, data[1])
    assert saved.index.tolist() == list(range(60))
    fooled = saved.misclassified
    assert (honest()(saved.points).argmax(1)[fooled] != data[1][fooled]).all()
    assert (honest()(saved.clean).argmax(1) == saved.before).all()
    assert (saved.attack, saved.stages) == (done.attack, ("APGD-CE",))


def test_another_file_holds_no_points(tmp_path):
    models.save(cnn(width=2), tmp_path / "w.safetensors")
    with pytest.raises(
        RunError, match=r"has no points, clean, .*; expected a file that opnorm attack --save wrote"
    ):
        load_points(tmp_path / "w.safetensors")


def test_the_contact_sheet_shows_the_points(tmp_path, data):
    x, _ = data
    done = evaluate(honest(), *data, pgd(eps=0.1))
    contact_sheet(tmp_path / "sheet.png", x, done, points=1)
    sheet = torch.frombuffer(
        bytearray(Image.open(tmp_path / "sheet.png").convert("L").tobytes()), dtype=torch.uint8
    )
    sheet = sheet.view(Image.open(tmp_path / "sheet.png").height, -1)
    first = int(done.result.misclassified.nonzero()[0])
    clean, moved = x[first, 0], done.result.points[first, 0]
    gain = 0.5 / float((moved - clean).abs().max())
    for k, image in enumerate((clean, moved, (moved - clean) * gain + 0.5)):
        want = (image * 255).round().clamp(0, 255).to(torch.uint8)
        left, top = 12 + k * (96 + 6), 48
        assert torch.equal(sheet[top + 6 : top + 96 : 12, left + 6 : left + 96 : 12], want)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 5), (4, 6, 3), (3, 120, 130)], ids=str)
def test_contact_sheets_of_any_shape(tmp_path, shape):
    torch.manual_seed(0)
    x, _ = images(9, shape)
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 3))
    done = evaluate(model, x, model(x).argmax(1), pgd(eps=0.9, steps=5))
    contact_sheet(tmp_path / "sheet.png", x, done, ["cat", "a very long name of a class " * 5, "ελιά"])
    assert Image.open(tmp_path / "sheet.png").size[0] >= 480


def test_a_contact_sheet_of_nothing(tmp_path, data):
    contact_sheet(tmp_path / "sheet.png", data[0], evaluate(honest(), *data, pgd(eps=1e-6)))
    assert (tmp_path / "sheet.png").stat().st_size > 0
