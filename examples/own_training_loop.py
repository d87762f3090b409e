"""Your own training loop with one of opnorm's regularizers and objectives: four lines more."""

import torch

import opnorm
from opnorm.data import digits
from opnorm.models import cnn
from opnorm.objectives import pgd_at
from opnorm.regularizers import norm_decay

torch.manual_seed(0)
data = digits()
images, labels = data.train.images.float() / 255, data.train.labels
model = cnn(in_shape=data.image_shape, width=8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
objective = pgd_at(eps=0.1, steps=3)
hooks = norm_decay(p=float("inf"), beta=1e-3)(model, images[:1])  # once, with an example batch

for epoch in range(2):
    for chosen in torch.randperm(len(images)).split(128):
        x, y = images[chosen], labels[chosen]
        loss = objective(model, x, y).loss + hooks.penalty(model, x, y)
        optimizer.zero_grad()
        loss.backward()
        hooks.edit_grads()
        optimizer.step()
        hooks.after_step(optimizer.param_groups[0]["lr"])
    hooks.after_epoch()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

print(opnorm.measure(model.eval(), images[:1]))
