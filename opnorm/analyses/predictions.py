"""How sure a network is of its answers, and how much less right it is on points that it was not trained on."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.modes import evaluating, model_state_preserved
from opnorm.analyses.basic import Analysis, Row, batches, logits_of, splitter
from opnorm.analyses.points import check_count
from opnorm.attacks._checks import check_logits
from opnorm.data import Dataset, Split
from opnorm.errors import ModelError, NormError
from opnorm.spec import factory
from opnorm.theory import input_gradient_bound

__all__ = ["generalization_gap", "input_gradients", "predictions"]


@factory("analysis")
def generalization_gap() -> Analysis:
    """Loss and error on the training and on the test points, and the gaps between them.

    The loss is the mean cross-entropy, the error the share of wrong points; a gap is test minus training. All training
    points count, without augmentation, in eval mode.

    Returns:
        One row: train_loss, test_loss, loss_gap, train_error, test_error, error_gap, train_points, test_points.

    Source: Wen, Li & Jia 2020, Fig. 3 and Tables 3 to 5. (The paper gives the gaps' absolute values.)
    """

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        row: Row = {}
        for name, split in (("train", data.train), ("test", data.test)):
            losses, wrong, points = [], 0, len(split.labels)
            with evaluating(model):
                for logits, y in logits_of(model, split):
                    losses.append(_losses(logits, y))
                    wrong += int((logits.argmax(1) != y).sum())
            row |= {f"{name}_loss": float(torch.cat(losses).mean()), f"{name}_error": wrong / points}
            row[f"{name}_points"] = points
        gaps = {f"{what}_gap": row[f"test_{what}"] - row[f"train_{what}"] for what in ("loss", "error")}
        return [row | gaps]

    return analysis


@factory("analysis")
def predictions(split: str = "test") -> Analysis:
    """The probability that the network gives to the true class of each point, and its cross-entropy.

    Returns:
        One row: split, points, probabilities, losses (lists, in the order of the data).

    Raises:
        SpecError: a split other than "train" or "test".

    Source: Wen, Li & Jia 2020, Figs. 5a and 5b.
    """
    choose = splitter(split)

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        with evaluating(model):
            losses = torch.cat([_losses(logits, y) for logits, y in logits_of(model, choose(data))])
        return [
            {
                "split": split,
                "points": len(losses),
                "probabilities": _short((-losses).exp()),
                "losses": _short(losses),
            }
        ]

    return analysis


@factory("analysis")
def input_gradients(points: int | None = None) -> Analysis:
    """‖∇_x ℓ_ce‖_2 at each test point, beside what the norms of the weights allow.

    The bound of a point is Σ_j |p_j - 1[j = y]| times the bound on ‖∂ŷ_j/∂x‖_2 of Eq. 15 (chains) or Eq. 24 (residual
    blocks); see :func:`opnorm.theory.input_gradient_bound`. A gradient of 0 is one below the precision of the numbers.

    Args:
        points: the first so many test points; all when None.

    Returns:
        One row: points, lengths and bounds (lists in the order of the data; bounds is None where no bound is known, for the
        given ``reason``).

    Source: Liu et al. 2020, Fig. 3, Eqs. 14, 15 and 24.
    """
    if points is not None:
        check_count(points=points)

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        split = Split(data.test.images[:points], data.test.labels[:points])
        lengths, weights = [], []
        for x, y in batches(split, model):
            with model_state_preserved(model), torch.enable_grad():
                z = x.detach().requires_grad_()
                logits = model(z)
                check_logits(logits, y)
                (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), z)
            lengths.append(gradient.flatten(1).double().norm(dim=1))
            weights.append((logits.detach().double().softmax(1) - F.one_hot(y, logits.shape[1])).abs())
        x, y = next(batches(split, model))
        bounds, reason = None, ""
        try:  # of the logits, the same at every point: one will do
            of_logits = input_gradient_bound(model, x[:1], y[:1]).logits
            bounds = _short(torch.cat(weights) @ of_logits)
        except (ModelError, NormError) as e:  # the gradients themselves need no bound
            reason = str(e)
        return [
            {
                "points": len(split.labels),
                "lengths": _short(torch.cat(lengths)),
                "bounds": bounds,
                "reason": reason,
            }
        ]

    return analysis


def _losses(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each point, in float64: in float32 a sure answer's is 0."""
    return F.cross_entropy(logits.double(), y, reduction="none")


def _short(values: Tensor) -> list[float]:
    return [float(f"{v:.6g}") for v in values.tolist()]
