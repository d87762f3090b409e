"""Sorting, and larger and smaller entries."""

import torch
import torch.nn.functional as F

from tests.norms.network.random_ops.registry import axis, form, op


@op("sort msort topk kthvalue median")
def _(name, r, x, y):
    a = axis(r, x)
    if a is None or not x.shape[a]:
        return None
    k = r.randint(1, x.shape[a])
    if name == "msort":
        return form(name, r)
    if name in ("topk", "kthvalue"):
        return lambda x, y: getattr(x, name)(k, a).values
    if name == "median":
        return lambda x, y: x.median(a, keepdim=True)[0]
    return r.choice([lambda x, y: x.sort(a)[0], lambda x, y: torch.sort(x, dim=a, descending=True).values])


@op("max_min")
def _(name, r, x, y):
    """Larger and smaller entries side by side: those of the same pairs, and others that only look like it."""
    a = axis(r, x)
    if a is None or x.shape[a] < 2 or x.shape[a] % 2:
        return None
    n = x.shape[a] // 2
    even, odd = ((slice(None),) * a + (slice(k, None, 2),) for k in (0, 1))

    def joined(u, v):
        return torch.cat([torch.max(u, v), torch.minimum(u, v)], a)

    def changed(x, y):
        u, v = (2 * x).chunk(2, a)
        larger = torch.max(u, v)
        return torch.cat([larger, torch.min(u * 3, v)], a)

    def written(x, y):
        u, v = (2 * x).split(n, a)
        larger = torch.max(u, v)
        u.mul_(3)
        return torch.cat([larger, torch.min(u, v)], a)

    def one_more(x, y):
        u, v = x.chunk(2, a)
        return torch.cat([torch.max(u, v), torch.min(u, v), u], a)

    def pairs(x, y):
        z = x.unflatten(a, (-1, 2))
        return torch.stack([z.max(a + 1)[0], -z.min(a + 1)[0]], a + 1).flatten(a, a + 1)

    def groups(x, y):
        z = x.unflatten(a, (2, -1))
        return torch.cat([z.amax(a), z.amin(a), z.amin(a)], a)

    def twice(x, y):
        z = joined(*x.chunk(2, a))
        return joined(z[even], z[odd])

    return r.choice([
        lambda x, y: joined(*x.split(n, a)),
        lambda x, y: torch.cat([torch.max(x[even], x[odd]), torch.min(x[even], x[odd])], a),
        lambda x, y: joined(x.narrow(a, 0, n), x.narrow(a, 1, n)),
        lambda x, y: torch.cat([torch.relu(x), F.relu(-x)], a),
        lambda x, y: torch.cat([F.relu(x), -torch.relu(x)], a),
        lambda x, y: torch.cat([x.relu(), x.neg().relu(), y.abs()], a),
        lambda x, y: torch.cat(x.chunk(2, a)[::-1], a),
        lambda x, y: joined(x, y),
        lambda x, y: joined(x, x),
        lambda x, y: joined(x, -x),
        lambda x, y: torch.cat([torch.max(x, -x), torch.min(-x, x).flip(a)], a),
        changed, written, one_more, pairs, groups, twice,
    ])  # fmt: skip
