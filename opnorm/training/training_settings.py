"""How a network is trained: one value for all that decides the result."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from opnorm._core.training_numbers import Precision, check_numbers
from opnorm.data.augmentations import Augmentation
from opnorm.objectives import Objective, plain
from opnorm.regularizers import Regularizer
from opnorm.training.optimizers import MakeOptimizer, sgd
from opnorm.training.schedules import Schedule, cosine
from opnorm.training.setup_checks import check_function, check_functions

__all__ = ["Precision", "TrainingSettings"]


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training.

    Attributes:
        objective: the loss; cross-entropy by default.
        regularizers: applied in this order.
        optimizer: SGD with momentum 0.9 at learning rate 0.05 by default.
        schedule: of the learning rate; cosine by default.
        epochs: passes over the data.
        batch: points a step; what does not fill a last batch is left out until the next shuffle.
        augment: applied to each uint8 batch, on the device.
        seed: of everything random but the model's own initialization.
        precision: "bf16" computes the objective under autocast, as "fp32" does under the caller's; weights and penalties
            stay in float32. "auto" is the one of the two in which a pass of this network takes less time here; the metrics
            say which, and a training that goes on keeps it. Attacks in eval mode use a copy with folded batch norms
            (:mod:`opnorm._core.surrogate`).
        channels_last: memory format of images and weights.
        ema: decay a step, in [0, 1), of an exponential moving average of the weights, such as 0.995; 0 for none.

    Raises:
        TrainError: a number that makes no sense, or something that is not as described.
    """

    objective: Objective = field(default_factory=plain)
    regularizers: Sequence[Regularizer] = ()
    optimizer: MakeOptimizer = field(default_factory=sgd)
    schedule: Schedule = field(default_factory=cosine)
    epochs: int = 10
    batch: int = 128
    augment: Sequence[Augmentation] = ()
    seed: int = 0
    precision: Precision = "fp32"
    channels_last: bool = False
    ema: float = 0.0

    def __post_init__(self) -> None:
        """Check everything, before anything runs."""
        check_numbers(self.epochs, self.batch, self.precision, self.seed, self.ema)
        check_function("objective", self.objective, "objective")
        check_function("optimizer", self.optimizer, "optimizer")
        check_function("schedule", self.schedule, "schedule")
        check_functions("regularizers", self.regularizers, "regularizer")
        check_functions("augment", self.augment, "augmentation")
