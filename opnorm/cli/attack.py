"""``opnorm attack``: the robust accuracy on test points, with indicators of gradient masking."""

from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from opnorm.cli.options import DATA, MODEL, RUN, Device, Json, check_device, number, print_json
from opnorm.cli.subjects import data_of, network_and_data
from opnorm.errors import OpnormError

__all__ = ["attack"]


def attack(
    model: Annotated[Positional[str], arg(help=MODEL + RUN)],
    data: Annotated[
        str, arg(help=DATA + "; its test points are attacked. Left out for a run, which has its own")
    ] = "",
    norm: Annotated[str, arg(help="of the ball: 1, 2 or inf; inf when left out")] = "",
    eps: Annotated[
        str, arg(help="its radius in pixel values of [0, 1], such as 0.1; 8/255 when left out")
    ] = "",
    attack: Annotated[
        str, arg(help="as a call: 'autoattack', 'pgd(steps=40, restarts=5, stop_at_success=True)', 'fgsm'")
    ] = "autoattack",
    version: Annotated[
        Literal["standard", "plus", "rand"] | None,
        arg(help="of AutoAttack; rand is for models that draw random numbers"),
    ] = None,
    limit: Annotated[
        int | None, arg(help="attack at most so many test points, a fixed random choice")
    ] = None,
    seed: Annotated[int | None, arg(help="of the attack's random numbers")] = None,
    surrogate: Annotated[
        str,
        arg(help="another network for the same data: adversarial points of it should not be more successful"),
    ] = "",
    save: Annotated[Path | None, arg(help="write the perturbed points here, a .safetensors file")] = None,
    sheet: Annotated[
        Path | None, arg(help="draw adversarial points: clean, perturbed, difference; a .png file")
    ] = None,
    out: Annotated[
        Path, arg(help="folder of runs; evaluations are stored in its folder attacks, and found again")
    ] = Path("runs"),
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """The robust accuracy of a network: the share of test points without an adversarial point within eps.

    An adversarial point of a correctly classified image lies in the ball around it and in [0, 1], and is misclassified.
    The last lines report on gradient masking, which weakens attacks and makes the robust accuracy too high. Stop
    it with Ctrl-C and call it again: it goes on from the last part that ended.

    opnorm attack 'file("weights.safetensors", arch=resnet(depth=20))' --data 'parquet("cifar10")' --limit 1000

    opnorm attack 3f2a9c01d4e7 --norm 2 --eps 0.5 --attack 'pgd(steps=40)' --sheet adversarial.png

    opnorm attack 'my_package.models.noisy()' --data 'digits()' --version rand --json
    """
    from opnorm.cli.progress import AttackBar
    from opnorm.data.dataset import as_pixels
    from opnorm.runs.attack_evaluation import evaluate, save_points
    from opnorm.runs.image_sheet import contact_sheet
    from opnorm.runs.store import Store

    for option, path, suffix in (("--save", save, ".safetensors"), ("--sheet", sheet, ".png")):
        if path is not None and (path.suffix != suffix or not path.absolute().parent.is_dir()):
            raise OpnormError(
                f"{option} {path}: expected a name that ends in {suffix}, in an existing folder"
            )
    chosen = _attack(attack, {"norm": norm, "eps": eps}, {"version": version, "seed": seed})
    check_device(device)
    data = data or data_of(model, out)
    network, dataset = network_and_data(model, data, out)
    other = network_and_data(surrogate, data, out)[0].to(device) if surrogate else None
    test = (dataset if limit is None else dataset.limit(limit)).test
    x, y = as_pixels(test.images).to(device), test.labels.to(device)
    with AttackBar() as progress:
        done = evaluate(
            network.to(device), x, y, chosen, store=Store(out / "attacks"), surrogate=other, progress=progress
        )
    if save is not None:
        save_points(save, done)
    if sheet is not None:
        contact_sheet(sheet, x, done, dataset.classes)
    if json:
        about = {"model": model, "data": data, "limit": limit}
        return print_json({**about, **done.as_dict(), "folder": str(done.folder)})
    _print_evaluation(done)
    return None


def _print_evaluation(done: Any) -> None:
    from opnorm.norms.display import label as norm_label

    v, (low, high) = done.result, done.result.interval
    correct, robust, points = int(v.correct.sum()), int(v.robust.sum()), len(v.correct)
    print(f"attack            {done.attack}, {norm_label(done.norm)} ε = {done.eps:.4g}")
    print(f"accuracy          {v.clean_accuracy:.2%}  ({correct} of {points} test points)")
    print(
        f"robust accuracy   {v.robust_accuracy:.2%}  ({robust} of {points}; 95 % interval {low:.1%} to {high:.1%})"
    )
    if proved := int(v.certified.sum()):
        print(
            f"proved            {v.certified_accuracy:.2%}  ({proved} of {points}): no attack can break these"
        )
    for stage in v.stages:
        vain, jobs = stage.counts.get("stopped_early", 0), stage.searches * stage.attacked
        early = f"; {vain:,} of {jobs:,} searches stopped early" if vain else ""
        print(
            f"                  {stage.name}: {stage.misclassified} of {stage.attacked} misclassified in "
            f"{stage.wall_seconds:.1f} s{early}"
        )
    for note in v.notes:
        print(f"note: {note}")
    print(done.masking.summary)
    print(f"folder            {done.folder}")


def _attack(text: str, radius: dict[str, str], rest: dict[str, Any]) -> Any:
    """The attack that a call names, with the options that were given; an unknown one is an error."""
    from opnorm import spec

    given = {k: number(f"--{k}", v) for k, v in radius.items() if v}
    given |= {k: v for k, v in rest.items() if v is not None}
    call = spec.parse(text)
    return spec.build(spec.Call(call.name, call.args, (*call.kwargs, *given.items())), "attack")
