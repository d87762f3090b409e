"""The attacks of other packages, under one signature."""

import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["PEERS", "Way", "autoattacks_of", "pgds_of"]

PEERS = ("torchattacks", "foolbox", "adversarial-robustness-toolbox")
Way = Callable[[nn.Module, Tensor, Tensor, int], Tensor]  # (model, x, y, seed)


def autoattacks_of(norm: float, eps: float, reference: str | None) -> dict[str, Way]:
    """Other people's standard AutoAttack, by name."""
    import torchattacks

    named = {1: "L1", 2: "L2", math.inf: "Linf"}[norm]
    ways: dict[str, Way] = {}
    if norm != 1:  # torchattacks has no such ball
        ways["torchattacks"] = lambda m, x, y, seed: torchattacks.AutoAttack(
            m, norm=named, eps=eps, n_classes=10, seed=seed
        )(x, y)
    if reference:
        sys.path.insert(0, reference)
        from autoattack import AutoAttack

        ways["paper's code"] = lambda m, x, y, seed: AutoAttack(
            m, norm=named, eps=eps, seed=seed, device=str(x.device), verbose=False
        ).run_standard_evaluation(x, y, bs=len(x))
    return ways


def pgds_of(eps: float, step: float) -> dict[str, Way]:
    """Other people's PGD with 40 steps in an ℓ∞ ball, by name."""
    import foolbox
    import torchattacks
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    def torchattacks_(m: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        return torchattacks.PGD(m, eps=eps, alpha=step, steps=40)(x, y)

    def foolbox_(m: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        attack = foolbox.attacks.LinfPGD(abs_stepsize=step, steps=40)
        return attack(foolbox.PyTorchModel(m, bounds=(0, 1), device=x.device), x, y, epsilons=eps)[1]

    def art(m: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        estimator = PyTorchClassifier(
            m, nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0, 1), device_type=x.device.type
        )
        attack = ProjectedGradientDescentPyTorch(
            estimator, eps=eps, eps_step=step, max_iter=40, num_random_init=1, batch_size=128, verbose=False
        )
        return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x.device)

    return {"torchattacks": torchattacks_, "foolbox": foolbox_, "ART": art}
