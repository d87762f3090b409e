# %% [markdown]
# # What does adversarial training do to the Jacobian?
# All singular values of the Jacobian of the last features at test images.

# %%
import torch

from opnorm.analyses import jacobian_spectrum
from opnorm.data import digits
from opnorm.models import cnn
from opnorm.objectives import pgd_at, plain
from opnorm.training import TrainingSettings, train

data, rows = digits(), []
for name, objective in {"plain": plain(), "on attacks": pgd_at(norm=2, eps=0.5, steps=5)}.items():
    torch.manual_seed(0)
    model = cnn(in_shape=data.image_shape, width=8)
    train(model, data, TrainingSettings(objective=objective, epochs=10))
    analysis = jacobian_spectrum(points=30)
    rows += [{**row, "method": name} for row in analysis(model.eval(), data)]

# %%
chart = analysis.chart(rows, ["plain", "on attacks"])
chart

# %%
first = {row["method"]: row["mean"] for row in rows if row["at"] == "clean"}
a, b = (first[name][0] for name in ("plain", "on attacks"))
c, d = (first[name][0] / sum(first[name]) for name in ("plain", "on attacks"))
answer = (
    f"The largest singular value at clean images goes from {a:.3g} to {b:.3g}. "
    f"Its share of the sum of all goes from {c:.0%} to {d:.0%}."
)
print(answer)
