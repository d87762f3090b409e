# %% [markdown]
# # How far off is power iteration?
# Its value rises towards the norm from below; a certified interval holds the norm from the start.

# %%
import torch

import opnorm
from opnorm.data import digits
from opnorm.models import cnn
from opnorm.norms import vs_norm
from opnorm.report import Axis, Heading, Panel, Point, draw_curves
from opnorm.training import TrainingSettings, train

torch.manual_seed(0)
data = digits()
model = cnn(in_shape=data.image_shape, width=16)
train(model, data, TrainingSettings(epochs=5))
calls = [
    row for row in opnorm.measure(model.eval(), torch.zeros(1, 1, 8, 8), (2,)).rows if row.kind == "Conv2d"
]

# %%
STEPS = (1, 2, 5, 10, 20, 50, 100, 200)
points, short = [], {}
for row in calls:
    layer = model.get_submodule(row.layer)
    norm = opnorm.operator_norm(layer, 2, row.in_shape, relative_width=1e-6)
    for steps in STEPS:
        short[row.layer, steps] = 1 - vs_norm(layer, row.in_shape, iterations=steps) / float(norm.upper)
        points.append(Point(row.layer, "short", steps, max(short[row.layer, steps], 1e-7)))
heading = Heading("power-iteration", "How far power iteration falls short", "Relative to the certified norm.")
panel = Panel("1 - value / norm", log=True)
chart = draw_curves(points, [], heading, {"short": panel}, Axis("iterations", log=True, ticks=STEPS))
chart

# %%
worst = {steps: max(short[row.layer, steps] for row in calls) for steps in STEPS}
answer = (
    f"After one iteration the value is up to {worst[1]:.0%} too low in the {len(calls)} convolutions of this network, "
    f"after 10 up to {worst[10]:.1%}, and after 100 up to {worst[100]:.2g} of the norm. It is never an upper bound."
)
print(answer)
