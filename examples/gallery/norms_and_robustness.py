# %% [markdown]
# # Do my weights' norms predict my robustness?
# One network, trained with norm decay of several strengths, and on attacks of several radii.

# %%
import torch

from opnorm.attacks import pgd
from opnorm.data import digits
from opnorm.models import mlp
from opnorm.objectives import pgd_at, plain
from opnorm.regularizers import norm_decay
from opnorm.report import accuracy_against_norm
from opnorm.studies.claims import rank_correlation
from opnorm.training import TrainingSettings, train, weight_metrics

data = digits()
x, y = data.test.images.float() / 255, data.test.labels
WAYS = {
    f"norm decay, β = {beta:g}": {"regularizers": [norm_decay(torch.inf, beta)]} for beta in (0.03, 0.1, 0.3)
}
WAYS |= {f"on attacks, ε = {eps:g}": {"objective": pgd_at(eps=eps, steps=5)} for eps in (0.03, 0.06, 0.1)}

# %%
rows = []
for name, settings in {"plain": {"objective": plain()}, **WAYS}.items():
    torch.manual_seed(0)
    model = mlp(in_shape=data.image_shape, width=64)
    train(model, data, TrainingSettings(epochs=10, **settings))
    right = model.eval()(pgd(eps=0.1, steps=20)(model, x, y)).argmax(1) == y
    norm = weight_metrics(model, x[:1])["norm_inf"]
    rows.append({"method": name, "norm_inf": norm, "robust": right.double().mean().item()})
chart = accuracy_against_norm(rows)
chart

# %%
plain_row, strongest = rows[0], max(rows, key=lambda row: row["robust"])
smallest = min(rows, key=lambda row: row["norm_inf"])
rank = rank_correlation([row["norm_inf"] for row in rows], [row["robust"] for row in rows])
answer = (
    f"Over these {len(rows)} trainings the rank correlation of mean ℓ∞ norm and robust accuracy is {rank:.2f}. "
    f"The smallest norm ({smallest['norm_inf']:.3g}, {smallest['method']}) has {smallest['robust']:.0%} robust accuracy, "
    f"the most robust network ({strongest['method']}) {strongest['robust']:.0%} at a norm of {strongest['norm_inf']:.3g}, "
    f"plain training {plain_row['robust']:.0%} at {plain_row['norm_inf']:.3g}."
)
print(answer)
