"""The settings that papers publish are the defaults: one table, each row with its source.

A row names a call, one of its settings, the value and where it is printed. A setting is a parameter of the call, or one of
MEASURED, which are read off the network that the call builds: a default may be right in the signature and not be used.
"""

import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from opnorm import spec

LIANG = "Liang & Huang 2021, Experiments"
LIU = "Liu et al. 2020, Appendix B.1"
ROTH = "Roth et al. 2020, section 5.1"
WEN = "Wen et al. 2020, Appendix D"
HE = "He et al. 2016, section 4.2 and Table 1"
VGG = "Simonyan & Zisserman 2015, Table 1"
SE = "Hu, Shen & Sun 2018"
WRN = "Zagoruyko & Komodakis 2016, Table 1"
REGNET = "Radosavovic et al. 2020, RegNetX-200MF; strides for 32x32 as in Liang & Huang 2021"
OWN = "a reading of Roth et al. 2020, section 5.1, which does not give the widths"

PUBLISHED: list[tuple[str, str, Any, str]] = [
    # networks
    ("mlp", "width", 1024, LIU),
    ("mlp", "depth", 2, LIU),
    ("cnn", "width", 128, LIU),
    ("cnn", "depth", 2, LIU),
    ("cnn", "stride", 1, LIU),
    ("vgg16", "width", 64, LIU),
    ("vgg16", "dropout", 0.5, LIU),
    ("vgg16", "stage depths", (2, 2, 3, 3, 3), VGG),
    ("vgg16", "stage widths", (64, 128, 256, 512, 512), VGG),
    ("vgg16", "stage strides", (2, 2, 2, 2, 2), VGG),
    ("vgg11", "stage depths", (1, 1, 2, 2, 2), VGG),
    ("vgg11", "stage widths", (64, 128, 256, 512, 512), VGG),
    ("vgg11", "stage strides", (2, 2, 2, 2, 2), VGG),
    ("cnn7", "stage depths", (2, 2, 2), OWN),
    ("cnn7", "stage widths", (64, 128, 256), OWN),
    ("cnn7", "stage strides", (2, 2, 2), OWN),
    ("resnet18", "stage depths", (2, 2, 2, 2), HE),
    ("resnet18", "stage widths", (64, 128, 256, 512), HE),
    ("resnet18", "stage strides", (1, 2, 2, 2), HE),
    ("resnet18", "stem stride", 1, LIANG),
    ("resnet18", "parameters", 11_173_962, "counted by hand from " + HE),
    ("senet18", "stage depths", (2, 2, 2, 2), SE),
    ("senet18", "stage widths", (64, 128, 256, 512), SE),
    ("senet18", "stage strides", (1, 2, 2, 2), LIANG),
    ("senet18", "stem stride", 1, LIANG),
    ("regnetx_200mf", "stage depths", (1, 1, 4, 7), REGNET),
    ("regnetx_200mf", "stage widths", (24, 56, 152, 368), REGNET),
    ("regnetx_200mf", "stage strides", (1, 1, 2, 2), REGNET),
    ("regnetx_200mf", "stem stride", 1, REGNET),
    ("resnet", "norm", "bn", HE),
    ("resnet(depth=56)", "stage depths", (9, 9, 9), WEN),
    ("resnet(depth=110)", "stage depths", (18, 18, 18), WEN),
    ("resnet", "stage widths", (16, 32, 64), HE),
    ("resnet", "stage strides", (1, 2, 2), HE),
    ("resnet", "stem stride", 1, HE),
    ("resnet", "parameters", 269_722, HE + ": 0.27 million"),
    ("wrn", "depth", 28, ROTH),
    ("wrn", "width", 10, ROTH),
    ("wrn", "norm", "bn", ROTH),
    ("wrn", "aggregation", "sum", WRN),
    ("wrn(width=1)", "stage depths", (4, 4, 4), WRN),
    ("wrn(width=1)", "stage widths", (16, 32, 64), WRN),
    ("wrn(width=1)", "stage strides", (1, 2, 2), WRN),
    ("wrn(width=1)", "stem stride", 1, WRN),
    ("wrn(width=1)", "dropout layers", 0, LIU),
    ("wrn50_2", "in_shape", (3, 64, 64), WEN),
    ("wrn50_2", "width", 64, WEN),
    ("wrn50_2(width=8)", "stage depths", (3, 4, 6, 3), WEN),
    ("wrn50_2(width=8)", "stage widths", (32, 64, 128, 256), WEN),
    ("wrn50_2(width=8)", "stage strides", (1, 2, 2, 2), WEN),
    ("wrn50_2(width=8)", "stem stride", 1, WEN),
    ("wrn50_2(width=8)", "dropout layers", 0, WEN),
    # training
    ("sgd", "lr", 0.05, WEN + ".1"),
    ("sgd", "momentum", 0.9, LIANG),
    ("sgd", "nesterov", False, LIANG),
    ("step", "milestones", (75, 90, 100), LIANG),
    ("step", "gamma", 0.1, LIANG),
    ("crop", "padding", 4, WEN),
    ("flip", "p", 0.5, WEN),
    ("random_resized_crop", "size", 56, WEN),
    ("random_resized_crop", "scale", (0.08, 1.0), "Szegedy et al. 2015, section 5"),
    ("random_resized_crop", "ratio", (3 / 4, 4 / 3), "Szegedy et al. 2015, section 5"),
    # attacks; what AutoAttack runs inside is in tests/attacks/test_published.py
    ("autoattack", "version", "standard", "Croce & Hein 2020, section 6"),
    ("apgd", "steps", 100, "Croce & Hein 2020, section 5"),
    ("fab", "steps", 100, "Croce & Hein 2020, section 5"),
    ("fab", "targets", 9, "Croce & Hein 2020, section 5"),
    ("square", "queries", 5000, "Croce & Hein 2020, section 5"),
    ("pgd", "steps", 10, "Roth et al. 2020, section 5.1; Wen et al. 2020, section 4"),
    ("pgd", "random_start", True, "Roth et al. 2020, Eq. 15"),
    ("fgsm", "random_start", False, "Goodfellow et al. 2015"),
    # analyses
    ("wen_robust_accuracy", "eps", 8 / 255, "Wen et al. 2020, section 4"),
    ("wen_robust_accuracy", "step", 2 / 255, "Wen et al. 2020, section 4"),
    ("wen_robust_accuracy", "steps", 10, "Wen et al. 2020, section 4"),
    ("loss_variation", "eps", (1 / 255, 2 / 255, 4 / 255), "Wen et al. 2020, Appendix B.5 and Table 1"),
    ("liu_robust_accuracy", "fgsm_eps", (0.01, 0.03, 0.05), "Liu et al. 2020, Tables 2 and 3"),
    ("liu_robust_accuracy", "pgd_eps", (0.01, 0.03), "Liu et al. 2020, Tables 2 and 3"),
    ("jacobian_spectrum", "points", 200, "Roth et al. 2020, Fig. 2"),
    ("singular_alignment", "points", 200, "Roth et al. 2020, Fig. 2"),
    ("power_method_agreement", "alpha", math.inf, "Roth et al. 2020, Theorem 1"),
    ("power_method_agreement", "steps", 10, "Roth et al. 2020, section 5.1"),
    # objectives
    ("trades", "beta", 6.0, "Zhang et al. 2019, 1/λ = 6 for CIFAR-10; default of their CIFAR-10 program"),
    (
        "trades",
        "steps",
        10,
        "Zhang et al. 2019, CIFAR-10 program: num-steps 10; Liang & Huang 2021, program: 10",
    ),
    (
        "trades",
        "eps",
        8 / 255,
        "Zhang et al. 2019, ε = 0.031 ≈ 8/255; Liang & Huang 2021: 8/255 (program: 0.031)",
    ),
    ("trades", "norm", math.inf, "Zhang et al. 2019, program: distance l_inf"),
    ("trades", "start", "gaussian", "Zhang et al. 2019, Algorithm 1: x + 0.001 N(0, I)"),
    ("trades", "mode", "eval", "Zhang et al. 2019, program: model.eval() in the attack"),
    ("trades", "passes", 3, "Zhang et al. 2019, program: clean, attacked, clean"),
    ("alp", "beta", 1.0, "Liang & Huang 2021, program: beta=1.0"),
    ("alp", "eps", 8 / 255, "Liang & Huang 2021, Fig. 2: 8/255 (program: 0.031)"),
    ("alp", "steps", 10, "Liang & Huang 2021, Fig. 2: 10 steps"),
    ("alp", "mode", "eval", "Liang & Huang 2021, program: model.eval() in the attack"),
    ("alp", "passes", 2, "Liang & Huang 2021, program: clean, attacked"),
    ("pgd_at", "eps", 8 / 255, "Madry et al. 2018, CIFAR-10: ε = 8"),
    (
        "pgd_at",
        "steps",
        10,
        "Wen et al. 2020: 10 steps; Roth et al. 2020, section 5.1: 10; Liang & Huang 2021: 10",
    ),
    (
        "pgd_at",
        "start",
        "uniform",
        "Madry et al. 2018, random start; Roth et al. 2020, Eq. 15: x_0 uniform in the ball",
    ),
    ("pgd_at", "mode", "eval", "Liang & Huang 2021, program: model.eval() in the attack"),
    ("pgd_at", "smoothing", 0.0, "Madry et al. 2018: plain cross-entropy"),
    ("fgsm_at", "start", "point", "Goodfellow et al. 2015: one step from x"),
    ("mixed", "clean", 1.0, "Roth et al. 2020, Eq. 14"),
    ("mixed", "lam", 1.0, "Roth et al. 2020, Eq. 14, λ = 1 weighs both alike"),
    ("mixed", "steps", 10, "Roth et al. 2020, section 5.1: 10 iterations"),
    ("mixed", "start", "uniform", "Roth et al. 2020, Eq. 15"),
    ("mmc", "radius", 10.0, "Pang et al. 2018 and 2020: C = 10 (mean_var = 100 in their program)"),
    ("max_mahalanobis", "radius", 10.0, "Pang et al. 2018 and 2020: C = 10"),
    ("max_mahalanobis", "features", 256, "Pang et al. 2018, program: 256 linear features before the centers"),
    # regularizers
    ("weight_decay", "lam", 5e-4, "Zagoruyko & Komodakis 2016: weight decay 0.0005, torch's form"),
    ("weight_decay", "form", "torch", "Liang & Huang 2021, program: torch.optim.SGD(weight_decay)"),
    ("norm_decay", "gamma", 0.5, "Liang & Huang 2021, experimental setup: momentum 0.5"),
    ("norm_decay", "form", "algorithm", "Liang & Huang 2021, Algorithm 1"),
    ("norm_decay", "normalize", True, "Liang & Huang 2021, Algorithm 1, line 6: β / N"),
    (
        "norm_decay",
        "linear",
        True,
        "Liang & Huang 2021, Algorithm 1, line 4: fully connected and convolutional layers",
    ),
    ("norm_decay", "conv", True, "Liang & Huang 2021, Algorithm 1, line 4"),
    ("norm_decay", "batch_norm", False, "Liang & Huang 2021, Algorithm 1, line 4; program: bn = False"),
    ("norm_decay", "beta", 1e-3, "Liang & Huang 2021, Table 2: one of 1e-2, 1e-3, 1e-4, 1e-5"),
    ("svc", "c", 1.0, "Liang & Huang 2021, Table 2: one of 2, 1.5, 1, 0.5, following Sedghi et al. 2019"),
    ("svc", "linear", False, "Sedghi et al. 2019; Liang & Huang 2021, program: Conv2d alone"),
    ("svc", "projections", 1, "Sedghi et al. 2019, section 3: one clip and one crop"),
    ("spectral_normalization", "sp", 1.0, "Wen et al. 2020, Table 6: one of 1, 3, 5"),
    (
        "global_snr",
        "steps",
        1,
        "Yoshida & Miyato 2017, Algorithm 1; Roth et al. 2020, section 5.1: one update a step",
    ),
    ("global_snr", "operator", "reshaped", "Yoshida & Miyato 2017: the kernel as a matrix"),
    ("parseval", "beta", 1e-4, "Liu et al. 2020, Appendix B.1"),
    ("parseval", "output_decay", 1e-4, "Liu et al. 2020, Appendix B.1, λ_wd of the output layer"),
    ("weissi", "energy", 1e-6, "Liu et al. 2020, Table 5, MLP and CNN, standard training"),
    ("weissi", "complexity", 1e-5, "Liu et al. 2020, Table 5, MLP and CNN, standard training"),
    ("weissi", "form", "product", "Liu et al. 2020, Eq. 13"),
    ("weissi", "eta", (2, 2), "Liu et al. 2020, Eq. 13: Frobenius norm"),
    ("weissi", "g", (1, 1), "Liu et al. 2020, Eq. 13: l1 norm"),
    ("dd_snr", "steps", 10, "Roth et al. 2020, section 5.1: 10 iterations"),
    (
        "dd_snr",
        "form",
        "difference",
        "Roth et al. 2020, after Eq. 7: the sum of squares, the more stable one",
    ),
    ("dd_onr", "steps", 10, "Roth et al. 2020, section 5.1: 10 iterations"),
    ("dd_onr", "power", 1, "Roth et al. 2020, Eq. 13"),
    ("dd_onr", "alpha", math.inf, "Roth et al. 2020, Eq. 12: the limit of the power method"),
    ("input_gradient", "q", 2, "Ross & Doshi-Velez 2018"),
    ("input_gradient", "power", 2, "Drucker & LeCun 1992; Ross & Doshi-Velez 2018: the squared length"),
]


def stages(model: nn.Module) -> list[list[nn.Module]]:
    """The blocks of each stage of a residual network; the convolutions before each pooling of a plain one."""
    named = [list(m.children()) for name, m in model.named_children() if name.startswith("stage")]
    blocks = [m for m in model.children() if sum(isinstance(c, nn.Conv2d) for c in m.modules()) > 1]
    if named or blocks:  # blocks without named stages: those of one number of channels
        channels = dict(zip(blocks, (y[1] for _, y in shapes(model, blocks)), strict=True))
        return named or [list(group) for _, group in itertools.groupby(blocks, channels.__getitem__)]
    found: list[list[nn.Module]] = [[]]
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            found[-1].append(module)
        elif isinstance(module, nn.MaxPool2d):
            found[-1].append(module)
            found.append([])
    return found[:-1]


def shapes(model: nn.Module, modules: list[nn.Module]) -> list[tuple[torch.Size, torch.Size]]:
    """The shapes of the input and the output of each module in one pass."""
    seen: dict[nn.Module, tuple[torch.Size, torch.Size]] = {}
    handles = [
        m.register_forward_hook(lambda m, x, y: seen.update({m: (x[0].shape, y.shape)})) for m in modules
    ]
    side = 64 if any(m.out_features == 200 for m in model.modules() if isinstance(m, nn.Linear)) else 32
    model.eval()(torch.rand(2, 3, side, side))
    for handle in handles:
        handle.remove()
    return [seen[m] for m in modules]


def strides(model: nn.Module) -> tuple[int, ...]:
    ends = shapes(model, list(itertools.chain(*((s[0], s[-1]) for s in stages(model)))))
    return tuple(round(first[0][-1] / last[1][-1]) for first, last in zip(ends[::2], ends[1::2], strict=True))


MEASURED: dict[str, Callable[[nn.Module], Any]] = {
    "stage depths": lambda model: tuple(
        sum(not isinstance(m, nn.MaxPool2d) for m in s) for s in stages(model)
    ),
    "stage widths": lambda model: tuple(y[1] for _, y in shapes(model, [s[-1] for s in stages(model)])),
    "stage strides": strides,
    "stem stride": lambda model: next(m.stride[0] for m in model.modules() if isinstance(m, nn.Conv2d)),
    "parameters": lambda model: sum(p.numel() for p in model.parameters()),
    "dropout layers": lambda model: sum(isinstance(m, nn.Dropout) for m in model.modules()),
}


def default(call: str, setting: str) -> Any:
    parsed = spec.parse(call)
    if setting in MEASURED:
        torch.manual_seed(0)
        return MEASURED[setting](spec.build(parsed, "model"))
    return inspect.signature(spec.resolve(parsed)).parameters[setting].default


@pytest.mark.parametrize(("call", "setting", "value", "source"), PUBLISHED, ids=lambda v: str(v)[:40])
def test_default_is_the_published_one(call, setting, value, source):
    found = default(call, setting)
    same = math.isclose(found, value, rel_tol=1e-12) if isinstance(value, float) else found == value
    assert same, f"{call}: {setting} is {found!r}; {source} has {value!r}"
