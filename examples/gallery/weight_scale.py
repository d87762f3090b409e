# %% [markdown]
# # Does a small weight decay penalty mean a small network?
# With ReLU, scale can move between layers: the penalty changes by orders of magnitude, the function does not.

# %%
import torch

from opnorm.data import digits
from opnorm.models import mlp
from opnorm.report import Axis, Heading, Panel, Point, draw_curves
from opnorm.theory import weight_scale
from opnorm.training import TrainingSettings, train, weight_metrics

torch.manual_seed(0)
data = digits()
model = mlp(in_shape=data.image_shape, width=32, depth=2)
train(model, data, TrainingSettings(epochs=5))
model, x = model.double().eval(), data.test.images.double() / 255
before = model(x)

# %%
points, moved = [], 0.0
linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
for power in range(-3, 4):
    factor = 10.0 ** (power / 2)
    weight_scale.shift(model, x[:1], [factor, 1 / factor, *[1.0] * (len(linear) - 2)])
    moved = max(moved, ((model(x) - before).abs().max() / before.abs().max()).item())
    penalty = sum(layer.weight.square().sum().item() for layer in linear)
    energy = 10 ** weight_metrics(model, x[:1])["log10_weight_energy"]
    points += [Point("weight decay", "size", factor, penalty), Point("weight energy", "size", factor, energy)]
    weight_scale.shift(model, x[:1], [1 / factor, factor, *[1.0] * (len(linear) - 2)])
heading = Heading(
    "weight-scale", "Penalties of one function", "The factor moves scale from layer 2 to layer 1."
)
axis = Axis("factor of the first layer", log=True)
chart = draw_curves(points, [], heading, {"size": Panel("Penalty", log=True)}, axis)
chart

# %%
decay = [point.value for point in points if point.method == "weight decay"]
answer = (
    f"No: over these shifts Σ ‖W‖² varies by a factor of {max(decay) / min(decay):.3g}, while the logits move by "
    f"{moved:.1g} of their size. The weight energy, the product of the norms, stays as it is."
)
print(answer)
