"""Networks and points that Jacobians are looked at on, with the Jacobian computed in another way."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from opnorm._core.lp import conjugate

INF = float("inf")
CELLS = [(p, q) for p in (1, 2, INF) for q in (1, 2, INF)]


class Residual(nn.Module):
    """Batch norm, max-pooling, a skip, in-place ReLU."""

    def __init__(self, classes=4):
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.act = nn.ReLU(inplace=True)
        self.branch = nn.Conv2d(3, 3, 3, padding=1)
        self.features = nn.Flatten()
        self.head = nn.Linear(27, classes)

    def forward(self, x):
        x = self.act(self.bn(self.stem(x)))
        x = F.max_pool2d(x + F.relu(self.branch(x)), 2)
        return self.head(self.features(x))


def nets():
    torch.manual_seed(0)
    residual = Residual()
    residual.bn.running_mean.uniform_(-0.3, 0.3)
    residual.bn.running_var.uniform_(0.1, 0.5)
    return {
        "linear": nn.Sequential(nn.Flatten(), nn.Linear(36, 4)),
        "mlp": nn.Sequential(
            nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(36, 8), nn.GELU(), nn.Linear(8, 4)
        ),
        "residual": residual,
    }


def points(n=5, dtype=torch.float64):
    return torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(1)).to(dtype)


def truth(model, x, layer=None):
    """(B, K, n), point by point, by forward mode over the standard basis, in eval mode."""
    kept = {}
    before = model.training
    model.eval()

    def f(z):
        out = model(z[None].clone())
        return (out if layer is None else kept["out"]).flatten()

    handle = dict(model.named_modules())[layer or ""].register_forward_hook(
        lambda m, args, out: kept.update(out=out.clone())
    )
    found = torch.stack([torch.func.jacfwd(f)(z).flatten(1) for z in x]).detach()
    handle.remove()
    model.train(before)
    return found


def gauss(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute(A, p, q):
    """‖A‖_{p→q}: columns, singular values, rows, or all sign vectors of either side."""
    if p == 1:
        return torch.linalg.vector_norm(A, q, 0).max()
    if q == INF:
        return torch.linalg.vector_norm(A, conjugate(p), 1).max()
    if p == q == 2:
        return torch.linalg.svdvals(A)[0]
    if q == 1:
        A, p, q = A.T, INF, conjugate(p)
    assert p == INF
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=A.shape[1]))).to(A.dtype)
    return torch.linalg.vector_norm(signs @ A.T, q, 1).max()
