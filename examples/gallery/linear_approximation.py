# %% [markdown]
# # Where does the linear approximation break?
# The features of a network beside their linearization at an image, as the image is changed.

# %%
import torch

from opnorm.analyses import local_linearity
from opnorm.data import digits
from opnorm.models import cnn
from opnorm.objectives import pgd_at, plain
from opnorm.training import TrainingSettings, train

data, rows = digits(), []
for name, objective in {"plain": plain(), "on attacks": pgd_at(norm=2, eps=0.5, steps=5)}.items():
    torch.manual_seed(0)
    model = cnn(in_shape=data.image_shape, width=8)
    train(model, data, TrainingSettings(objective=objective, epochs=5))
    analysis = local_linearity(points=30, distances=(0, 0.1, 0.25, 0.5, 1))
    rows += [{**row, "method": name} for row in analysis(model.eval(), data)]

# %%
chart = analysis.chart(rows, ["plain", "on attacks"])
chart

# %%
end = {row["method"]: row for row in rows if row["direction"] == "adversarial" and row["distance"] == 0.5}
answer = (
    f"At a distance of 0.5 towards the attacked image the features are {end['plain']['deviation']:.2g} off their "
    f"linearization after plain training, and {end['on attacks']['deviation']:.2g} after training on attacks. "
    f"The largest singular value there is {end['plain']['sigma']:.2g} and {end['on attacks']['sigma']:.2g}."
)
print(answer)
