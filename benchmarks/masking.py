"""How often the report on gradient masking finds a mask, and how often it finds one where there is none.

    python benchmarks/masking.py [--attack autoattack] [--data digits] [--out local/benchmarks/masking.json]

Each network of masked_*.py and honest_*.py is attacked and judged on 64 points, at the radius at which PGD breaks three
quarters of the points of the network without its mask, or a given share of an honest network's. What a mask hides is the
number of points that are robust to the attack, and that PGD and APGD on the network without the mask or on another one,
moved to the masked one, or Square with 500 queries break. Of each list every other network was used to choose indicators
and thresholds ("development"); the others were not looked at before the choice was final ("held out"). Those of
masked_later.py and honest_later.py were invented afterwards ("added later"). A network is flagged where an indicator but
that of a weak attack is suspicious. The file is written after each network; a run that was stopped goes on with the next.
"""

import argparse
import copy
import functools
import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from honest_later import all_honest
from masked_later import KINDS
from masked_networks import Base
from networks import test_points, trained
from torch import Tensor, nn

from opnorm._core.confidence import confidence_interval
from opnorm._core.files import write_json
from opnorm.attacks import AutoAttack, apgd, autoattack, minimal_eps, pgd, square
from opnorm.attacks.gradient_masking import check_gradient_masking
from opnorm.attacks.result import AttackResult, StageResult
from opnorm.errors import AttackError

POINTS = 64
ATTACKS = {
    "pgd": lambda norm, eps: pgd(norm, eps, 40),
    "autoattack": lambda norm, eps: autoattack(norm, eps, version="fast"),
}
GROUPS = ("masked", "honest")
PARTS = ("development", "held out", "added later")
LATER = {"masked": 49, "honest": 55}  # of each list, the first that was added when the choice was final
BASES = {"digits": "cnn(width=8)", "mnist": "cnn(width=8, stride=2)"}


def correct_points(model: nn.Module, data: str) -> tuple[Tensor, Tensor]:
    x, y = (t[:500] for t in test_points(data))
    with torch.no_grad():
        rows = (model(x).argmax(1) == y).nonzero().squeeze(1)[:POINTS]
    return x[rows], y[rows]


def radius(model: nn.Module, x: Tensor, y: Tensor, norm: float, share: float) -> float:
    """At which PGD breaks a share of the points."""
    highest = {math.inf: 0.5, 2: 4.0, 1: 20.0}[norm]
    closest = minimal_eps(model, x, y, lambda eps: pgd(norm, eps, 10), norm, highest)
    distance = closest.distance.clamp(max=highest)
    return float(distance.quantile(share))


def record(model: nn.Module, x: Tensor, y: Tensor, attack: Any) -> AttackResult:
    """The record of an attack on points of which some may be misclassified before."""
    if isinstance(attack, AutoAttack):
        return attack.evaluate(model, x, y)
    started = time.process_time()
    points = attack(model, x, y)
    with torch.no_grad():
        correct, wrong = model(x).argmax(1) == y, model(points).argmax(1) != y
    misclassified, seconds = correct & wrong, time.process_time() - started
    stage = StageResult("PGD", 1, int(correct.sum()), int(misclassified.sum()), seconds, seconds, 0, 0, {})
    index = torch.where(misclassified, 0, -1)
    return AttackResult(points, correct, torch.zeros_like(correct), misclassified, index, (stage,), ())


def judge(model: nn.Module, x: Tensor, y: Tensor, attack: str, norm: float, eps: float) -> dict[str, Any]:
    """The attack's result and the report on it, with the time of both."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of gradients without a direction: the report says that
        started = time.process_time()
        try:
            result = record(model, x, y, ATTACKS[attack](norm, eps))
        except AttackError as error:
            return {"refused": str(error), "flagged": True, "weak": False, "indicators": [str(error)]}
        middle = time.process_time()
        report = check_gradient_masking(model, x, y, result, norm=norm, eps=eps)
        ended = time.process_time()
    return {
        "flagged": any(i.suspicious and i.component != "the attack" for i in report.indicators),
        "weak": any(i.suspicious and i.component == "the attack" for i in report.indicators),
        "correct": int(result.correct.sum()), "robust": int(result.robust.sum()),
        "indicators": [f"{i.component}: {i.text}" for i in report.indicators if i.suspicious],
        "others": [f"{i.component}: {i.text}" for i in report.indicators if not i.suspicious],
        "attack_s": middle - started, "report_s": ended - middle, "left": result.robust.tolist(),
    }  # fmt: skip


@functools.cache
def base_of(data: str) -> tuple[Base, Tensor, Tensor, list[Tensor]]:
    """The network that is masked, its points, and adversarial points for it and for another network."""
    net, other = (trained(data, BASES[data], seed=seed) for seed in (0, 1))
    x, y = correct_points(net, data)
    eps = radius(net, x, y, math.inf, 0.75)
    base = Base(net, other, eps, data, tuple(x.shape[1:]))
    attacks = [pgd(math.inf, eps, 40)] + [apgd(math.inf, eps, 50, loss=loss) for loss in ("ce", "cw")]
    return base, x, y, [attack(source, x, y) for source in (net, other) for attack in attacks]


def hidden(left: Tensor, model: nn.Module, base: Base, x: Tensor, y: Tensor, moved: list[Tensor]) -> int:
    """Points that the attack left, and that other attacks break: the mean of 5 passes decides."""
    broken = torch.zeros_like(left)
    with torch.no_grad():
        for points in (*moved, square(math.inf, base.eps, 500)(model, x, y)):
            mean = torch.stack([model(points.clone()).float().softmax(1) for _ in range(5)]).mean(0)
            broken |= mean.argmax(1) != y
    return int((left & broken).sum())


def masked_row(index: int, data: str, attack: str) -> dict[str, Any]:
    base, x, y, moved = base_of(data)
    torch.manual_seed(0)
    model = (
        KINDS[index].make(base._replace(net=copy.deepcopy(base.net), other=copy.deepcopy(base.other))).eval()
    )
    row = judge(model, x, y, attack, math.inf, base.eps)
    left = torch.tensor(row.pop("left", [True] * len(y)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return row | {"hidden": hidden(left, model, base, x, y, moved), "eps": base.eps}


def part_of(group: str, index: int) -> str:
    return PARTS[2 if index >= LATER[group] else index % 2]


def honest_row(index: int, attack: str) -> dict[str, Any]:
    case = list(all_honest())[index]
    model = case.make()
    x, y = correct_points(model, case.data)
    if len(x) < POINTS or len(y.unique()) < 5:
        raise RuntimeError(
            f"{case.name} classifies {len(x)} points of {len(y.unique())} classes correctly: it has not learned"
        )
    eps = radius(model, x, y, case.norm, case.broken)
    row = judge(model, x, y, attack, case.norm, eps)
    row.pop("left", None)
    return row | {"eps": eps}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=list(BASES), default="digits", help="of the masked networks")
    parser.add_argument("--attack", choices=list(ATTACKS), default="pgd")
    parser.add_argument("--part", choices=["all", *PARTS], default="all")
    parser.add_argument("--group", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("local/benchmarks/masking.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(args.out.read_text()) if args.out.exists() else []
    jobs = [("masked", i, kind.name) for i, kind in enumerate(KINDS)]
    jobs += [("honest", i, case.name) for i, case in enumerate(all_honest())]
    for group, index, name in jobs:
        about = {
            "group": group,
            "name": name,
            "part": part_of(group, index),
            "attack": args.attack,
            "data": args.data,
        }
        if group not in args.group or args.part not in ("all", about["part"]) or args.only not in name:
            continue
        if any(all(row[k] == v for k, v in about.items()) for row in rows):
            continue
        row = (
            masked_row(index, args.data, args.attack) if group == "masked" else honest_row(index, args.attack)
        )
        rows.append(about | row)
        write_json(args.out, rows)
        print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    print(summary(rows))


def rate(rows: list[dict[str, Any]], what: str = "flagged") -> str:
    """The number of networks, and Wilson's interval of the share."""
    count = sum(row[what] for row in rows)
    low, high = confidence_interval(count, len(rows))
    return f"{count} of {len(rows)} ({low:.0%} to {high:.0%})"


def summary(rows: list[dict[str, Any]]) -> str:
    """The rates of each attack, group and part, and the kinds: the tables of docs/attacks.md."""
    lines = [f"| after | networks | {' | '.join(PARTS)} |", "|---|---|---|---|---|"]
    for attack in dict.fromkeys(row["attack"] for row in rows):
        mine = [row for row in rows if row["attack"] == attack]
        masked, honest = ([row for row in mine if row["group"] == group] for group in GROUPS)
        groups = {
            "masked, flagged": (masked, "flagged"),
            "masked that hide more than 5 % from it, flagged": ([r for r in masked if hides(r)], "flagged"),
            "honest, flagged": (honest, "flagged"),
            "honest, only the attack called too weak": (honest, "weak"),
        }
        for name, (chosen, what) in groups.items():
            parts = [[r for r in chosen if r["part"] == part] for part in PARTS]
            lines.append(f"| {attack} | {name} | " + " | ".join(rate(part, what) for part in parts) + " |")
    lines += ["", "| kind | part | hides, of 64 points | what is flagged |", "|---|---|---|---|"]
    for row in rows:
        if row["group"] == "masked" or row["flagged"]:
            found = dict.fromkeys(text.partition(": ")[0] for text in row["indicators"])
            named = "the attack stops: no gradient" if "refused" in row else ", ".join(found) or "nothing"
            lines.append(f"| {row['name']} | {row['part']} | {row.get('hidden', 'honest')} | {named} |")
    return "\n".join(lines)


def hides(row: dict[str, Any]) -> bool:
    """Whether other attacks break more than 5 % of the points that the attack left."""
    return row["hidden"] > 0.05 * row.get("correct", POINTS)


if __name__ == "__main__":
    main()
