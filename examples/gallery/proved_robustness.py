# %% [markdown]
# # How much of the robust accuracy can be proved?
# The truth lies between what a certificate proves and what an attack leaves.

# %%
import torch

from opnorm.attacks import pgd
from opnorm.certificates import proof
from opnorm.data import digits
from opnorm.models import mlp
from opnorm.objectives import pgd_at
from opnorm.regularizers import spectral_normalization
from opnorm.report import Heading, Panel, Point, draw_curves, eps_axis
from opnorm.training import TrainingSettings, train

data, EPS = digits(), (0.01, 0.02, 0.04, 0.06, 0.08)
x, y = data.test.images[:200].float() / 255, data.test.labels[:200]
WAYS = {
    "plain": {},
    "spectral normalization": {"regularizers": [spectral_normalization(sp=1.0)]},
    "on attacks": {"objective": pgd_at(eps=0.08, steps=5)},
}

# %%
points, found = [], {}
for name, settings in WAYS.items():
    torch.manual_seed(0)
    model = mlp(in_shape=data.image_shape, width=32, depth=2)
    train(model, data, TrainingSettings(epochs=15, **settings))
    right = model.eval()(x).argmax(1) == y
    for eps in EPS:
        proved = (proof()(model, x, y, eps, torch.inf) & right).double().mean().item()
        robust = (model(pgd(eps=eps, steps=20)(model, x, y)).argmax(1) == y).double().mean().item()
        found[name, eps] = proved, robust
        points += [Point(name, "attacked", eps, robust), Point(name, "proved", eps, proved)]
panels = {"attacked": "Correct after PGD", "proved": "Proved robust"}
panels = {key: Panel(title, percent=True, limits=(0, 1)) for key, title in panels.items()}
heading = Heading("proved-robustness", "Attacked and proved", "The truth is between the two panels.")
chart = draw_curves(points, list(WAYS), heading, panels, eps_axis("inf"))
chart

# %%
answer = "At ε = 0.04 " + "; ".join(
    f"{found[name, 0.04][0]:.1%} are proved and {found[name, 0.04][1]:.1%} survive PGD ({name})"
    for name in WAYS
)
answer += ". The truth of each network is between its two numbers."
print(answer)
