"""The networks, trainings and columns that several parts of Wen, Li & Jia 2020 share."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from opnorm.report import Column
from opnorm.runs.run import Result, Run
from opnorm.studies._shared.methods_table import Quantity, value_of
from opnorm.studies._shared.outcomes import Case, row_of
from opnorm.studies._shared.paper import Setting

__all__ = ["ADVERSARIAL", "NETWORKS", "STRENGTHS", "cases", "columns", "strength_label"]

STRENGTHS = (4, 8, 16)  # of adversarial training, in gray levels
DIGITS_SCALE = (
    2.0  # digits need longer changes: 8, 16 and 32 gray levels stand for 4, 8 and 16; at 48 little is learned
)
ADVERSARIAL = "pgd_at"
EVALUATED = 8  # gray levels of the attack of the evaluation

NETWORKS: dict[str, dict[str, str]] = {
    "CIFAR-10": {
        "ResNet-56": "resnet(depth=56, norm='fixup')",
        "ResNet-110": "resnet(depth=110, norm='fixup')",
    },
    "CIFAR-100": {
        "ResNet-56": "resnet(depth=56, norm='fixup')",
        "ResNet-110": "resnet(depth=110, norm='fixup')",
    },
    "Tiny-ImageNet": {"WRN-50-2": "wrn50_2()"},
}
OTHERS = {"a network without shortcuts": "cnn7()"}
SMALL = {
    "a network without shortcuts": "cnn(width=16)",
    "ResNet-56": "resnet(depth=8, width=8, norm='fixup')",
    "ResNet-110": "resnet(depth=14, width=8, norm='fixup')",
    "WRN-50-2": "wrn50_2(width=4)",
}
DATA = {
    "CIFAR-10": 'hf("uoft-cs/cifar10")',
    "CIFAR-100": 'hf("uoft-cs/cifar100", label="fine_label")',
    "Tiny-ImageNet": 'hf("zh-plus/tiny-imagenet", center_crop=56)',
}
SMALL_EPOCHS = {"CIFAR-10": 12, "CIFAR-100": 12, "Tiny-ImageNet": 10}
# fewer training points stand for the harder data sets, which a network of this size cannot learn in minutes
SMALL_LIMIT = {"CIFAR-10": None, "CIFAR-100": 600, "Tiny-ImageNet": None}


def strength_label(strength: int) -> str:
    """What tables and charts call a strength of adversarial training."""
    return f"AR {strength}"


def radius(strength: int, setting: Setting) -> float:
    """The radius of a strength."""
    return strength / 255 if setting.size == "paper" else DIGITS_SCALE * strength / 255


def evaluation(setting: Setting) -> str:
    """The attack of the paper's tables: 10 steps, a radius of 8/255."""
    points, eps = setting.pick(20, 300, None), radius(EVALUATED, setting)
    return f"wen_robust_accuracy(eps={eps!r}, step={eps / 4!r}, points={points})"


def base_run(setting: Setting, data: str, network: str) -> Run:
    """Plain training, as published or small."""
    if setting.size != "paper":
        limit = setting.pick(100, SMALL_LIMIT[data], None)
        run = Run(
            model=SMALL[network], data="digits()", optimizer="sgd(lr=0.05)",
            epochs=setting.pick(1, SMALL_EPOCHS[data], None), batch=64, limit=limit,
        )  # fmt: skip
    elif data == "Tiny-ImageNet":
        run = Run(
            model=NETWORKS[data][network], data=DATA[data], optimizer="sgd(lr=0.1)", schedule="step((30, 60))",
            epochs=90, batch=256, augment=("random_resized_crop(56)", "flip()"),
        )  # fmt: skip
    else:
        run = Run(
            model=(NETWORKS[data] | OTHERS)[network], data=DATA[data], optimizer="sgd(lr=0.05)", schedule="step((100, 150))",
            epochs=200, batch=256, augment=("crop(padding=4)", "flip()"),
        )  # fmt: skip
    return setting.base(run)


def objective(strength: int, setting: Setting, method: str = ADVERSARIAL) -> str:
    """Adversarial training of a strength: 10 steps, of 2/255 as published; plain for 0."""
    if strength == 0:
        return "plain()"
    eps = radius(strength, setting)
    if method == "fgsm_at":
        return f"fgsm_at(eps={eps!r})"
    step = 2 / 255 if setting.size == "paper" else eps / 4
    return f"pgd_at(eps={eps!r}, steps={setting.pick(2, 10, 10)}, step={step!r})"


def cases(
    setting: Setting,
    data: str,
    analyses: Sequence[str],
    *,
    networks: Sequence[str] | None = None,
    strengths: Sequence[int] = STRENGTHS,
    method: str = ADVERSARIAL,
    **changes: Any,
) -> list[Case]:
    """The trainings of a data set: each network at each strength, with each seed."""
    names = list(networks or NETWORKS[data])[: setting.pick(1, None, None)]
    some = [strengths[0], strengths[-1]] if setting.size == "smoke" else list(strengths)
    return [
        case
        for network in names
        for strength in some
        for case in setting.repeated(
            Case(
                f"{network}, {data}",
                strength_label(strength),
                replace(
                    base_run(setting, data, network),
                    objective=objective(strength, setting, method),
                    analyses=tuple(analyses),
                    **changes,
                ),
            ),
            setting.pick(1, 3, 3),
        )
    ]


def columns() -> list[Quantity]:
    """Those of Tables 3 to 6: accuracies, losses, their gaps, and accuracy under PGD."""

    def right(split: str, label: str, better: Any = None) -> Quantity:
        def measure(result: Result) -> float:
            return 1.0 - float(row_of(result, "generalization_gap")[f"{split}_error"])

        help = f"Share of {'training' if split == 'train' else 'test'} images classified correctly."
        return Quantity(Column(f"{split}_acc", label, "percent", better, help), measure)

    gap = "generalization_gap"
    attacked = (
        "Of the test images that are classified correctly, the share that PGD with 10 steps leaves correct."
    )
    return [
        right("train", "training accuracy"),
        right("test", "test accuracy", "high"),
        value_of(
            "error_gap", "error gap", gap, "Test error minus training error.", better="low", kind="percent"
        ),
        value_of("train_loss", "training loss", gap, "Mean cross-entropy on the training images."),
        value_of("test_loss", "test loss", gap, "Mean cross-entropy on the test images.", better="low"),
        value_of("loss_gap", "loss gap", gap, "Test loss minus training loss.", better="low"),
        replace(
            value_of("accuracy", "PGD", "wen_robust_accuracy", attacked, better="high", kind="percent"),
            column=Column("pgd", "PGD", "percent", "high", attacked),
        ),
    ]
