"""RobustBench's conventions: pixels in [0, 1], normalization by buffers mu and sigma, checkpoints of DataParallel."""

import pytest
import torch
from torch import nn

from opnorm.errors import ModelError
from opnorm.models import file
from tests.interop.checks import check_attacked, check_measured


class Normalized(nn.Module):
    """A network as RobustBench defines them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mu", torch.full((1, 1, 1, 1), 0.4))
        self.register_buffer("sigma", torch.full((1, 1, 1, 1), 0.2))
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(144, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.conv((x - self.mu) / self.sigma)).flatten(1))


def test_checkpoints(tmp_path):
    torch.manual_seed(0)
    model, path, x = Normalized().eval(), tmp_path / "Someone2020.pt", torch.rand(8, 1, 8, 8)
    state = nn.DataParallel(model).state_dict()
    assert all(name.startswith("module.") for name in state)
    torch.save({"state_dict": state, "epoch": 3, "best_prec1": torch.tensor(0.9)}, path)
    loaded = file(str(path), arch=Normalized()).eval()
    assert torch.equal(loaded(x), model(x))
    check_measured(loaded, x)
    check_attacked(loaded, x)
    without = {name: t for name, t in state.items() if not name.endswith(("mu", "sigma"))}
    torch.save({"state_dict": without}, path)
    with pytest.raises(ModelError, match="missing mu, sigma"):
        file(str(path), arch=Normalized())
    with pytest.warns(UserWarning, match="missing mu, sigma"):
        assert torch.equal(file(str(path), arch=Normalized(), strict=False).eval()(x), model(x))
