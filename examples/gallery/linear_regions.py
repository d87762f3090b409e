# %% [markdown]
# # How large are the linear regions around my data?
# The share of ReLU units that keep their state when every pixel changes by up to ε.

# %%
import torch

from opnorm.analyses import relu_cells
from opnorm.data import digits
from opnorm.models import cnn
from opnorm.training import TrainingSettings, train

torch.manual_seed(0)
data = digits()
model = cnn(in_shape=data.image_shape, width=8)
train(model, data, TrainingSettings(epochs=3))

# %%
analysis = relu_cells(points=50)
rows = analysis(model.eval(), data)
chart = analysis.chart(rows)
chart

# %%
kept = {(row["around"], row["eps"]): row["mean"] for row in rows}
answer = (
    f"At ε = 0.05, {kept['data', 0.05]:.1%} of the units keep their state around test images, and "
    f"{kept['noise', 0.05]:.1%} around uniform noise. At ε = 0.2 it is {kept['data', 0.2]:.1%} and {kept['noise', 0.2]:.1%}."
)
print(answer)
