# %% [markdown]
# # How many steps does an attack need before its number can be believed?
# The same network and radius; the number of steps of PGD grows.

# %%
import torch

from opnorm.attacks import AutoAttack, pgd
from opnorm.data import digits
from opnorm.models import cnn
from opnorm.objectives import fgsm_at, pgd_at
from opnorm.report import Axis, Heading, Panel, Point, draw_curves
from opnorm.training import TrainingSettings, train

data, eps = digits(), 0.1
x, y = data.test.images[:200].float() / 255, data.test.labels[:200]
networks = {}
for name, objective in {
    "trained on FGSM": fgsm_at(eps=eps),
    "trained on PGD": pgd_at(eps=eps, steps=5),
}.items():
    torch.manual_seed(0)
    networks[name] = cnn(in_shape=data.image_shape, width=16)
    train(networks[name], data, TrainingSettings(objective=objective, epochs=15))

# %%
STEPS = (1, 2, 3, 5, 10, 20, 50)
points = [
    Point(
        name,
        "robust",
        steps,
        (model.eval()(pgd(eps=eps, steps=steps)(model, x, y)).argmax(1) == y).double().mean().item(),
    )
    for name, model in networks.items()
    for steps in STEPS
]
heading = Heading("attack-steps", "Accuracy after so many steps", "A curve that is flat has converged.")
panel = Panel(f"Accuracy, ε = {eps:g}", percent=True, zero=False)
chart = draw_curves(points, [], heading, {"robust": panel}, Axis("steps of PGD", log=True, ticks=STEPS))
chart

# %%
strongest = {
    name: AutoAttack(eps=eps, version="fast").evaluate(model, x, y).robust_accuracy
    for name, model in networks.items()
}
shares = {(point.method, point.x): point.value for point in points}
answer = " ".join(
    f"The network {name} keeps {shares[name, 1]:.1%} after one step, {shares[name, 10]:.1%} after 10 and "
    f"{shares[name, 50]:.1%} after 50; AutoAttack leaves {strongest[name]:.1%}."
    for name in networks
)
print(answer)
