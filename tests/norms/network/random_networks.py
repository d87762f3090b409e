"""Random networks of every operation that has a rule for its Lipschitz bound, and what their inputs show of their slope.

An operation is a function that is given a random generator and two tensors, the values of the network so far, and returns
the operation as a function of two such values, or None where it does not apply to their shapes.
"""

import random

import torch
from torch import nn

from tests.norms.network.random_ops import functions
from tests.norms.network.random_ops.registry import MOST, OPS, like

COMPOUND, REFUSED = functions.COMPOUND, functions.REFUSED

# ---------------------------------------------------------------- networks


class RandomNetwork(nn.Module):
    """Operations one after another; each takes two of the values before it."""

    def __init__(self, seed, first="", most=6):
        super().__init__()
        r = random.Random(seed)
        torch.manual_seed(seed)
        shape = r.choice([(3,), (4,), (2, 3), (4, 2), (1, 3, 4), (2, 2, 2), (4, 2, 2)])
        self.in_shape, self.names = shape, []
        self.steps, self.layers = [], nn.ModuleList()
        values = [like(r, 1, *shape)]
        for i in range(r.randint(1, most) + 4 * bool(first)):
            name = first if first and first not in self.names and i > 1 else r.choice(sorted(OPS))
            for _ in range(20):
                if self._add(name, r, values):
                    break
                name = first if first and first not in self.names else r.choice(sorted(OPS))

    def _add(self, name, r, values):
        a = r.randrange(max(0, len(values) - 3), len(values))
        b = r.choice([i for i, v in enumerate(values) if v.shape == values[a].shape])
        step = OPS[name](r, values[a], values[b])
        if step is None:
            return False
        self.steps.append((step, a, b))
        try:
            with torch.no_grad():
                out = self(values[0].clone())
        except RuntimeError:  # such as a write into memory that is shared
            out = torch.zeros(0)
        if not 0 < out.numel() <= MOST or out.dtype != torch.float64 or out.ndim > 4 or out.abs().max() > 1e6:
            self.steps.pop()
            return False
        values.append(out)
        if hasattr(step, "layer"):
            self.layers.append(step.layer)
        self.names.append(name)
        return True

    def forward(self, x):
        values = [x]
        for step, a, b in self.steps:
            values.append(step(values[a], values[b]))
        return values[-1]


# ---------------------------------------------------------------- slopes


def length(v, p):
    return float(torch.linalg.vector_norm(v.reshape(-1), p))


@torch.no_grad()
def steepest(model, p, seed, points=3):
    """The largest secant slope that a search finds: from the Jacobian's longest direction at several points, and onwards."""
    generator = torch.Generator().manual_seed(seed)
    best, n = 0.0, torch.Size(model.in_shape).numel()
    for i in range(points):
        x = 10.0 ** (i - 1) * torch.randn(1, *model.in_shape, generator=generator, dtype=torch.float64)
        at = model(x.clone())
        if not at.isfinite().all():
            continue
        columns = [(model(x + 1e-6 * e.view_as(x)) - at).flatten() / 1e-6 for e in torch.eye(n).double()]
        J = torch.stack(columns, 1)
        row = J[J.abs().sum(1).argmax()].sign()
        column = torch.eye(n).double()[J.abs().sum(0).argmax()]
        longest = {1: column, 2: torch.linalg.svd(J)[2][0], float("inf"): row}[p].view_as(x)
        for v in (longest, torch.randn(x.shape, generator=generator, dtype=torch.float64)):
            for h in (1e-4, 0.1, 3.0):
                if length(v, p):
                    best = max(best, length(model(x + h * v) - at, p) / length(h * v, p))
    return best


@torch.no_grad()
def steepest_in_a_batch(model, p, seed):
    """The same for one point of a batch of three and all of its outputs; 0 where the network takes no such batch."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, *model.in_shape, generator=generator, dtype=torch.float64)
    best = 0.0
    try:
        at = model(x.clone())
        for point in range(3):
            v = torch.zeros_like(x)
            v[point] = torch.randn(model.in_shape, generator=generator, dtype=torch.float64)
            for h in (1e-3, 1.0):
                best = max(best, length(model(x + h * v) - at, p) / length(h * v, p))
    except (RuntimeError, IndexError, ValueError):
        return 0.0
    return best
