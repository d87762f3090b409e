"""Lightning and accelerate loops with our regularizers: the weights are those of a plain loop, bit for bit."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opnorm.models import file
from opnorm.regularizers import chain, norm_decay, parseval, svc

LR = 0.1


@pytest.fixture
def lightning():
    """Imported where its test runs: at the top of the file, every process of the tests would wait for it."""
    return pytest.importorskip("pytorch_lightning", reason="the extra interop is optional")


@pytest.fixture
def accelerate():
    return pytest.importorskip("accelerate", reason="the extra interop is optional")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def batches():
    generator = torch.Generator().manual_seed(1)
    points = [(torch.rand(1, 4, 4, generator=generator), i % 3) for i in range(24)]
    return torch.utils.data.DataLoader(points, batch_size=6)


def hooks_of(model, x):
    return chain([norm_decay(p=math.inf, beta=0.05)(model, x), parseval()(model, x), svc()(model, x)])


def plain_loop(regularized=True):
    model, loader = network(), batches()
    optimizer = torch.optim.SGD(model.parameters(), LR)
    hooks = hooks_of(model, next(iter(loader))[0])
    for x, y in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        (loss + hooks.penalty(model, x, y) if regularized else loss).backward()
        if regularized:
            hooks.edit_grads()
        optimizer.step()
        if regularized:
            hooks.after_step(LR)
    return model


def same(one, other):
    return all(torch.equal(t, other.state_dict()[name]) for name, t in one.state_dict().items())


def lightning_module(lightning, model, example):
    class Module(lightning.LightningModule):
        def __init__(self, model, example):
            super().__init__()
            self.model, self.hooks = model, hooks_of(model, example)

        def training_step(self, batch, _):
            x, y = batch
            return F.cross_entropy(self.model(x), y) + self.hooks.penalty(self.model, x, y)

        def on_before_optimizer_step(self, optimizer):
            self.hooks.edit_grads()

        def on_train_batch_end(self, outputs, batch, index):
            self.hooks.after_step(self.optimizers().param_groups[0]["lr"])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), LR)

    return Module(model, example)


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path, lightning):
    module = lightning_module(lightning, network(), next(iter(batches()))[0])
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, batches())
    assert same(module.model, plain_loop())
    assert not same(module.model, plain_loop(regularized=False))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert same(file(str(tmp_path / "last.ckpt"), arch=network()), module.model)


def test_accelerate(accelerate):
    accelerator = accelerate.Accelerator(cpu=True)
    model = network()
    hooks = hooks_of(model, next(iter(batches()))[0])
    model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), LR), batches())
    for x, y in loader:
        optimizer.zero_grad()
        accelerator.backward(F.cross_entropy(model(x), y) + hooks.penalty(model, x, y))
        hooks.edit_grads()
        optimizer.step()
        hooks.after_step(LR)
    assert same(accelerator.unwrap_model(model), plain_loop())
