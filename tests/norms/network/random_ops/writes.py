"""Values that are written into parts of other ones."""

import torch

from tests.norms.network.random_ops.registry import MOST, like, op


def places(r, n, m):
    """m different places of n, in any order."""
    return torch.tensor(r.sample(range(n), m), dtype=torch.long)


def base(r, x, a, n):
    """A value with n entries along an axis: zeros, constants, or one that depends on the input."""
    shape = [n if i == a else k for i, k in enumerate(x.shape)]
    fixed = like(r, *shape[1:])
    return r.choice([
        lambda x: torch.zeros([len(x), *shape[1:]], dtype=x.dtype),
        lambda x: x.new_zeros([len(x), *shape[1:]]),
        lambda x: fixed.expand(len(x), *fixed.shape).clone(),
        lambda x: (2 * x.sum(a, keepdim=True)).expand(len(x), *shape[1:]).clone(),
    ])  # fmt: skip


def room(r, x):
    """An axis but the first, and a size that is larger there; None where there is none."""
    if x.ndim < 2 or min(x.shape) < 1 or x.numel() > MOST // 3:
        return None
    a = r.randrange(1, x.ndim)
    return a, x.shape[a] + r.randint(0, 2)


@op("slice_scatter index_put index_copy index_add scatter scatter_add masked_scatter")
def _(name, r, x, y):
    if (found := room(r, x)) is None:
        return None
    a, n = found
    onto, k, some = base(r, x, a, n), x.shape[a], places(r, n, x.shape[a])
    several = torch.tensor([r.randrange(n) for _ in range(k)])
    before = (slice(None),) * a

    def along(index, x):
        return index.view([-1 if i == a else 1 for i in range(x.ndim)]).expand_as(x)

    def masked(x):
        mask = torch.zeros(n, dtype=torch.bool).index_fill(0, some, True)
        return mask.view([-1 if i == a else 1 for i in range(x.ndim)]).expand([len(x), *onto(x).shape[1:]])

    in_place = r.choice(["", "_"]) if name != "slice_scatter" else ""
    call = {
        "slice_scatter": lambda z, x: z.slice_scatter(x, a, n - k, n),
        "index_put": lambda z, x: getattr(z.movedim(a, 0), name + in_place)(
            (several,), x.movedim(a, 0), accumulate=len(before) == 1
        ).movedim(0, a),
        "index_copy": lambda z, x: getattr(z, name + in_place)(a, some, x),
        "index_add": lambda z, x: getattr(z, name + in_place)(a, several, x, alpha=-1.5),
        "scatter": lambda z, x: getattr(z, name + in_place)(a, along(some, x), x),
        "scatter_add": lambda z, x: getattr(z, name + in_place)(a, along(several, x), x),
        "masked_scatter": lambda z, x: getattr(z, name + in_place)(masked(x), x),
    }[name]
    return lambda x, y: call(onto(x), x)


@op("select_scatter diagonal_scatter index_fill")
def _(name, r, x, y):
    if x.ndim < 2 or min(x.shape) < 1:
        return None
    a = r.randrange(1, x.ndim)
    if name == "index_fill":
        number = r.choice([0.0, 2.0])
        return lambda x, y: x.index_fill(a, torch.tensor([0]), number)
    if name == "select_scatter":
        return lambda x, y: x.select_scatter(2 * y.select(a, 0), a, -1)
    if x.ndim < 3:
        return None
    return lambda x, y: torch.zeros_like(x).diagonal_scatter(y.diagonal(0, -2, -1), 0, -2, -1)


@op("copy zero fill as_strided")
def _(name, r, x, y):
    if x.ndim < 2 or min(x.shape) < 1:
        return None
    a = r.randrange(1, x.ndim)
    return {
        "copy": lambda x, y: (lambda z: (z.narrow(a, 0, 1).copy_(3 * x.narrow(a, -1, 1)), z)[1])(
            torch.zeros_like(x)
        ),
        "zero": lambda x, y: (lambda z: (z.select(a, 0).zero_(), z)[1])(x.clone()),
        "fill": lambda x, y: x + torch.zeros_like(y).fill_(x.sum()) if len(x) == 1 else x,
        "as_strided": lambda x, y: (lambda z: z.as_strided((*z.shape, 2), (*z.stride(), 0)).sum(-1))(
            x.contiguous().clone()
        ),
    }[name]


@op("setitem")
def _(name, r, x, y):
    """Writes one after another, into parts that may overlap, and into what is read again."""
    if (found := room(r, x)) is None:
        return None
    a, n = found
    onto, k, before = base(r, x, a, n), x.shape[a], (slice(None),) * a
    some, fixed = places(r, n, r.randint(1, n)), r.choice([0.0, 1.5])
    mask = torch.zeros(n, dtype=torch.bool).index_fill(0, some, True)
    writes = [
        lambda z, x, y: z.__setitem__((*before, slice(0, k)), x),
        lambda z, x, y: z.__setitem__((*before, slice(n - k, n)), 2 * y),
        lambda z, x, y: z.__setitem__((*before, 0), x.select(a, -1)),
        lambda z, x, y: z.__setitem__((*before, some), x.narrow(a, 0, 1)),
        lambda z, x, y: z.__setitem__((*before, mask), y.narrow(a, -1, 1)),
        lambda z, x, y: z.__setitem__((*before, slice(0, 1)), fixed),
        lambda z, x, y: z.narrow(a, 0, k).copy_(x),
        lambda z, x, y: z.narrow(a, n - k, k).add_(y),
        lambda z, x, y: z.select(a, 0).mul_(-2),
        lambda z, x, y: z.select(a, -1).relu_(),
        lambda z, x, y: z.__setitem__((*before, slice(0, k)), z[(*before, slice(0, k))].__iadd__(x)),
        lambda z, x, y: z.chunk(2, a)[0].mul_(3),
        lambda z, x, y: z.mul_(-2).add_(1),
        lambda z, x, y: z.__setitem__((*before, slice(0, 1)), z[(*before, slice(n - 1, n))].clone()),
    ]
    chosen = [r.choice(writes) for _ in range(r.randint(1, 4))]
    ends = r.choice([lambda z, part: z, lambda z, part: torch.cat([z, part], a), lambda z, part: part])

    def written(x, y):
        z = onto(x)
        part = z.narrow(a, 0, 1)
        for write in chosen:
            write(z, x, y)
        return ends(z, part)

    return written
