# %% [markdown]
# # How large is the gain of each layer of my ResNet?
# The norm of each layer is the most that it can stretch a change of its input. At the data the network stretches far less.

# %%
import math

import torch

import opnorm
from opnorm.data import digits
from opnorm.models import resnet
from opnorm.report import Axis, Heading, Panel, Point, draw_curves
from opnorm.training import TrainingSettings, train

torch.manual_seed(0)
data = digits()
model = resnet(depth=8, in_shape=data.image_shape)
train(model, data, TrainingSettings(epochs=3))
x = data.test.images[:20].float() / 255

# %%
table = opnorm.measure(model.eval(), x[:1])
layers = [row for row in table.rows if row.kind in ("Conv2d", "Linear")]
names = {1: "ℓ1", 2: "ℓ2", math.inf: "ℓ∞"}
points = [Point(names[p], "gain", row.layer, float(row.norms[p].upper)) for row in layers for p in names]
heading = Heading(
    "layer-gains", "Gain of each layer", "The norms of linear and convolutional layers, in order."
)
axis = Axis("layer", names=tuple(row.layer for row in layers))
chart = draw_curves(points, [], heading, {"gain": Panel("Norm", log=True)}, axis)
chart

# %%
whole = opnorm.lipschitz_bound(model, x[:1], 2).value
local = opnorm.jacobian_norm(model, x).lower.max().item()
norm, name = max((float(row.norms[2].upper), row.layer) for row in layers)
answer = (
    f"The largest ℓ2 norm of the {len(layers)} layers is {norm:.3g}, of `{name}`. "
    f"The bound of the whole network is {whole:.3g}, and the largest gain at {len(x)} test images {local:.3g}."
)
print(answer)
