# %% [markdown]
# # Is this defense masking gradients?
# A "defense" that rounds its input has no gradient: gradient attacks fail, and an attack without gradients does not.

# %%
import torch
from torch import nn

from opnorm.attacks import AutoAttack, pgd, square
from opnorm.attacks.gradient_masking import check_gradient_masking
from opnorm.data import digits
from opnorm.models import cnn
from opnorm.report import Axis, Heading, Panel, Point, draw_curves
from opnorm.training import TrainingSettings, train


class Rounded(nn.Module):
    """The network behind an input that is rounded to sixteen levels."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        """(B, C, H, W) -> logits."""
        return self.network((x * 15).round() / 15)


torch.manual_seed(0)
data, eps = digits(), 0.1
network = cnn(in_shape=data.image_shape, width=8)
train(network, data, TrainingSettings(epochs=5))
x, y = data.test.images[:100].float() / 255, data.test.labels[:100]

# %%
attacks = {
    "none": lambda model, x, y: x,
    "PGD": pgd(eps=eps, steps=20),
    "Square": square(eps=eps, queries=500),
}
points, shares = [], {}
for name, model in {"plain": network.eval(), "rounded input": Rounded(network).eval()}.items():
    right = model(x).argmax(1) == y  # an image that is misclassified before the attack stays so
    for attack, run in attacks.items():
        shares[name, attack] = (right & (model(run(model, x, y)).argmax(1) == y)).double().mean().item()
        points.append(Point(name, "accuracy", attack, shares[name, attack]))
heading = Heading(
    "masked-gradients", "Accuracy under three attacks", "A gap between PGD and Square: masked gradients."
)
panel = Panel("Accuracy", percent=True, limits=(0, 1))
chart = draw_curves(points, [], heading, {"accuracy": panel}, Axis(names=tuple(attacks)))
chart

# %%
result = AutoAttack(eps=eps, attacks=("apgd-ce",)).evaluate(model, x, y)
report = check_gradient_masking(model, x, y, result, norm=torch.inf, eps=eps)
found = sum(indicator.suspicious for indicator in report.indicators)
answer = (
    f"Yes: PGD leaves {shares['rounded input', 'PGD']:.0%} of the images correct, Square, which uses no gradients, "
    f"{shares['rounded input', 'Square']:.0%}. "
    f"{found} of {len(report.indicators)} indicators of gradient masking are found."
)
print(answer)
