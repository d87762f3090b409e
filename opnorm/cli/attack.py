"""``opnorm attack``: the robust accuracy on test points, with indicators of gradient masking."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from opnorm._core.files import shown
from opnorm._core.orders import label as norm_label
from opnorm._core.orders import plain_order
from opnorm.cli.call_checks import check_calls, check_folder, check_limit
from opnorm.cli.gates import refuse, share, too_low
from opnorm.cli.marks import Help, Positional
from opnorm.cli.options import (
    Again,
    DataOfRun,
    Device,
    Json,
    ModelOrRun,
    Results,
    SkipBad,
    Trust,
    absolute,
    check_device,
    check_device_name,
    number,
    print_json,
    say_found,
    skipping_bad,
    with_options,
)
from opnorm.cli.subjects import (
    check_network,
    check_subject,
    data_of,
    network_and_data,
    results_folder,
    run_folder,
    trust_runs,
)
from opnorm.cli.torch_loading import load_torch
from opnorm.errors import OpnormError

if TYPE_CHECKING:
    from opnorm.spec import Call

__all__ = ["attack"]


@dataclass(frozen=True)
class AttackOptions:
    """The options of the command."""

    data: DataOfRun = None
    norm: str | None = None  # of the ball: 1, 2 or inf; inf when left out
    eps: tuple[str, ...] = ()
    """its radius in pixel values of [0, 1], such as 0.1, or several; 8/255 when left out"""
    attack: Annotated[
        str, Help("as a call, such as 'pgd(steps=40, restarts=5, stop_at_success=True)'", "attack")
    ] = "autoattack"
    version: Literal["standard", "plus", "rand", "fast"] | None = None
    """of AutoAttack: standard as published; rand for models that draw random numbers; fast costs less"""
    skip_bad: SkipBad = False
    limit: int | None = None  # attack at most so many test points, a fixed random choice
    seed: int | None = None  # of the attack's random numbers
    surrogate: str | None = None
    """another network for the same data: adversarial points of it should not be more successful"""
    save: Path | None = None
    """write the points, clean and perturbed, with index and label, here: a .safetensors file"""
    sheet: Path | None = None  # draw adversarial points: clean, perturbed, difference; a .png file
    fail_under: str | None = None
    """end with status 1 where the share of the points that stay correct is below this number"""
    out: Results = None
    again: Again = False
    trust: Trust = False
    device: Device = "cpu"
    json: Json = False


def attack(
    model: Positional[ModelOrRun],
    options: AttackOptions = AttackOptions(),
) -> None:
    """The robust accuracy of a network: the share of test points without an adversarial point within eps.

    An adversarial point of a correctly classified image lies in the ball around it and in [0, 1], and is misclassified.
    The last lines report on gradient masking, which weakens attacks and makes the robust accuracy too high. Stop
    it with Ctrl-C and call it again: it goes on from the last part that ended.

    opnorm attack 'file("weights.safetensors", arch=resnet(depth=20))' --data 'parquet("cifar10")' --limit 1000

    opnorm attack 3f2a9c01d4e7 --norm 2 --eps 0.5 --attack 'pgd(steps=40)' --sheet adversarial.png

    opnorm attack 'my_package.models.noisy()' --data 'digits()' --version rand --json

    opnorm attack 3f2a9c01d4e7 --eps 0.1 --fail-under 0.45
    """
    o, out = options, results_folder((model,), options.out)
    calls, least = _checked(model, o, out)
    load_torch()

    from opnorm import spec
    from opnorm.cli.progress import AttackBar
    from opnorm.data.dataset import as_pixels
    from opnorm.runs.attack_evaluation import evaluate
    from opnorm.runs.image_sheet import check_drawable
    from opnorm.runs.store import Store

    o = replace(o, save=absolute(o.save), sheet=absolute(o.sheet))
    attacks = [spec.build(call, "attack") for call in calls]
    check_device(o.device)
    if o.trust:
        trust_runs((model, *([] if o.surrogate is None else [o.surrogate])), out)
    data = skipping_bad(data_of(model, out) if o.data is None else o.data, o.skip_bad)
    network, dataset = network_and_data(model, data, out)
    surrogate = None if o.surrogate is None else network_and_data(o.surrogate, data, out)[0].to(o.device)
    test = (dataset if o.limit is None else dataset.limit(o.limit)).test
    x, y = as_pixels(test.images[:]).to(o.device), test.labels.to(o.device)
    if o.sheet is not None:
        check_drawable(x)
    network, found, low, folder = network.to(o.device), [], [], run_folder(model, out)
    subject = {"subject": folder.name if folder else model, "data": data, "limit": o.limit}
    store = Store(out / "attacks", again=o.again, subject=subject)
    for chosen in attacks:
        with AttackBar() as progress:
            done = evaluate(network, x, y, chosen, store=store, surrogate=surrogate, progress=progress)
        say_found(done.found)
        _write(o, x, done, dataset)
        if not o.json:
            _print_evaluation(done)
        about = {"model": model, "data": data, "limit": o.limit}
        low += too_low(done, least)
        found.append(about | done.as_dict() | {"folder": str(done.folder and shown(done.folder))})
    if o.json:
        print_json(found[0] if len(found) == 1 else found)
    refuse(low)


def _checked(model: str, o: AttackOptions, out: Path) -> "tuple[list[Call], float | None]":
    """The calls of the attacks and the least robust accuracy; OpnormError for what is wrong, before anything is loaded."""
    _check_files(o)
    least, calls = share("--fail-under", o.fail_under), _calls(o)
    check_calls(calls, "attack")
    check_folder(out)
    check_limit(o.limit)
    check_device_name(o.device)
    check_subject(model, o.data, out)
    if o.surrogate is not None and run_folder(o.surrogate, out) is None:
        check_network(o.surrogate, out)
    return calls, least


def _check_files(o: AttackOptions) -> None:
    """OpnormError before the attack begins, where its results could not be written after it."""
    for option, path, suffix in (("--save", o.save, ".safetensors"), ("--sheet", o.sheet, ".png")):
        if path is not None and (path.suffix != suffix or not path.absolute().parent.is_dir()):
            raise OpnormError(
                f"{option} {path}: expected a name that ends in {suffix}, in an existing folder"
            )
    if len(o.eps) > 1 and (o.save or o.sheet):
        raise OpnormError(f"--eps {' '.join(o.eps)}: --save and --sheet write the points of one radius")


def _calls(o: AttackOptions) -> "list[Call]":
    """The call of the attack for every radius."""
    from opnorm import spec

    norm = None if o.norm is None else number("--norm", plain_order(o.norm))
    radii = [number("--eps", eps) for eps in o.eps] or [None]
    call = with_options(spec.parse(o.attack), norm=norm, version=o.version, seed=o.seed)
    return [with_options(call, eps=eps) for eps in radii]


def _write(o: AttackOptions, x: Any, done: Any, dataset: Any) -> None:
    """The files that the options name: the points, and the sheet of adversarial ones."""
    from opnorm.runs.evaluation import save_points
    from opnorm.runs.image_sheet import contact_sheet

    if o.save is not None:
        save_points(o.save, done, dataset.test_index(o.limit))
    if o.sheet is not None:
        contact_sheet(o.sheet, x, done, dataset.classes)


def _print_evaluation(done: Any) -> None:
    v, (low, high) = done.result, done.result.interval
    correct, robust, points = int(v.correct.sum()), int(v.robust.sum()), len(v.correct)
    print(f"attack            {done.attack}, {norm_label(done.norm)} ε = {done.eps:.4g}")
    print(f"accuracy          {v.clean_accuracy:.2%}  ({correct} of {points} test points)")
    interval = f"95 % interval {low:.1%} to {high:.1%}"
    print(f"robust accuracy   {v.robust_accuracy:.2%}  ({robust} of {points}; {interval})")
    if proved := int(v.certified.sum()):
        share = f"{v.certified_accuracy:.2%}  ({proved} of {points})"
        print(f"proved            {share}: no attack can break these")
    for stage in v.stages:
        vain, searches = stage.counts.get("stopped_early", 0), stage.searches * stage.attacked
        early = f"; {vain:,} of {searches:,} searches stopped early" if vain else ""
        outcome = f"{stage.misclassified} of {stage.attacked} misclassified in {stage.wall_seconds:.1f} s"
        print(f"                  {stage.name}: {outcome}{early}")
    for note in v.notes:
        print(f"note: {note}")
    print(done.masking.summary)
    print(f"folder            {shown(done.folder)}")
