"""Shapes, constants, and entries that move or are copied."""

import torch
import torch.nn.functional as F

from tests.norms.network.random_ops.registry import MOST, axis, form, op


@op("size")
def _(name, r, x, y):
    return (lambda x, y: x.reshape(x.size(0), -1)) if x.ndim else None


@op("dim ndimension numel nelement element_size get_device is_floating_point is_complex is_contiguous")
def _(name, r, x, y):
    return lambda x, y: x + getattr(x, name)()


@op("stride")
def _(name, r, x, y):
    return (lambda x, y: x - x.stride(0)) if x.ndim else None


@op("zeros_like ones_like empty_like")
def _(name, r, x, y):
    return lambda x, y: x + getattr(torch, name)(y).fill_(2.0)


@op("full_like")
def _(name, r, x, y):
    return lambda x, y: x - torch.full_like(x, fill_value=3.0)


@op("new_zeros new_ones new_empty")
def _(name, r, x, y):
    return lambda x, y: x * getattr(x, name)(x.shape).fill_(0.5)


@op("new_full")
def _(name, r, x, y):
    return lambda x, y: x * x.new_full((1,), 1.5)


@op("new_tensor")
def _(name, r, x, y):
    return lambda x, y: x / x.new_tensor([2.0])


@op("getattr")
def _(name, r, x, y):
    if x.ndim == 2 and r.random() < 0.5:
        return lambda x, y: x.T
    if x.ndim >= 2 and r.random() < 0.5:
        return lambda x, y: x.mT
    return lambda x, y: x.reshape(x.shape).to(x.dtype) * x.ndim


# ---------------------------------------------------------------- moves and copies


@op("contiguous clone detach double cpu requires_grad_ ravel squeeze flatten t")
def _(name, r, x, y):
    if (name == "t" and x.ndim > 2) or (name == "requires_grad_" and r.random() < 0.9):
        return (lambda x, y: x.detach().requires_grad_(False)) if name == "requires_grad_" else None
    if name == "flatten" and x.ndim > 1:
        return lambda x, y: torch.flatten(x, 1)
    return form(name, r) if name != "requires_grad_" else lambda x, y: x.detach().requires_grad_(False)


@op("float half bfloat16")
def _(name, r, x, y):
    return lambda x, y: getattr(0 * x, name)().double() + x


@op("to type")
def _(name, r, x, y):
    return lambda x, y: getattr(x, name)(torch.float64)


@op("cuda")
def _(name, r, x, y):
    return (lambda x, y: x.cuda().cpu()) if torch.cuda.is_available() else (lambda x, y: x)


@op("view reshape")
def _(name, r, x, y):
    return (lambda x, y: getattr(x.contiguous(), name)(x.size(0), -1)) if x.ndim and x.numel() else None


@op("view_as reshape_as type_as")
def _(name, r, x, y):
    if name == "type_as":
        return lambda x, y: x.type_as(y)
    return lambda x, y: getattr(x.contiguous(), name)(x.unsqueeze(0))


@op("unflatten")
def _(name, r, x, y):
    a = axis(r, x)
    return None if a is None or x.shape[a] % 2 else (lambda x, y: x.unflatten(a, (2, -1)))


@op("transpose swapaxes swapdims movedim moveaxis")
def _(name, r, x, y):
    return form(name, r, axis(r, x), axis(r, x)) if x.ndim else None


@op("permute")
def _(name, r, x, y):
    order = r.sample(range(x.ndim), x.ndim)
    if r.random() < 0.7 and x.ndim:
        order = [0, *r.sample(range(1, x.ndim), x.ndim - 1)]
    return lambda x, y: x.permute(order)


@op("unsqueeze")
def _(name, r, x, y):
    return form(name, r, r.randrange(x.ndim + 1)) if x.ndim < 4 else None


@op("narrow")
def _(name, r, x, y):
    a = axis(r, x)
    return None if a is None or x.shape[a] < 2 else form(name, r, a, 1, x.shape[a] - 1)


@op("select")
def _(name, r, x, y):
    a = axis(r, x)
    return None if a is None or x.shape[a] < 1 else form(name, r, a, -1)


@op("chunk split tensor_split unbind hsplit vsplit")
def _(name, r, x, y):
    a = axis(r, x)
    if a is None or x.shape[a] < 2:
        return None
    if name in ("hsplit", "vsplit"):
        a = 1 if name == "hsplit" else 0
        if x.ndim < 2 or x.shape[a] % 2:
            return None
        return lambda x, y: torch.cat([2 * getattr(x, name)(2)[0], getattr(x, name)(2)[1]], a)
    arguments = (a,) if name == "unbind" else (1 if name == "split" else 2, a)
    if r.random() < 0.2:  # a write into a view of what is used again
        return lambda x, y: (lambda parts: (parts[0].mul_(3), x.clone())[1])(getattr(x, name)(*arguments))
    return lambda x, y: (lambda parts: parts[0] - 2 * parts[-1])(
        getattr(x, name)(*arguments)
        if name != "tensor_split"
        else x.chunk(2, a)[:1] + x.tensor_split(2, a)[:1]
    )


@op("flip roll rot90 fliplr flipud")
def _(name, r, x, y):
    a = axis(r, x)
    if a is None or (name in ("rot90", "fliplr") and x.ndim < 2):
        return None
    arguments = {"flip": ((a,),), "roll": (1, a), "rot90": (1, (0, x.ndim - 1))}.get(name, ())
    return form(name, r, *arguments)


@op("pixel_shuffle")
def _(name, r, x, y):
    return form(name, r, 2) if x.ndim >= 3 and x.shape[-3] % 4 == 0 else None


@op("pixel_unshuffle")
def _(name, r, x, y):
    return form(name, r, 2) if x.ndim >= 3 and x.shape[-1] % 2 == 0 and x.shape[-2] % 2 == 0 else None


@op("channel_shuffle native_channel_shuffle")
def _(name, r, x, y):
    return form(name, r, 2) if x.ndim >= 3 and x.shape[1] % 2 == 0 else None


@op("diagonal")
def _(name, r, x, y):
    return form(name, r, 0, x.ndim - 2, x.ndim - 1) if x.ndim >= 3 else None


@op("expand broadcast_to")
def _(name, r, x, y):
    shape = (-1, 2, *x.shape[1:]) if name == "expand" else (*x.shape[:1], 2, *x.shape[1:])
    return (lambda x, y: getattr(x.unsqueeze(1), name)(shape)) if 0 < x.ndim < 4 else None


@op("expand_as")
def _(name, r, x, y):
    a = axis(r, x)
    return None if a is None or not x.shape[a] else (lambda x, y: x.narrow(a, 0, 1).expand_as(x))


@op("repeat tile")
def _(name, r, x, y):
    if x.ndim == 0 or x.numel() > MOST // 2:
        return None
    counts = [1] * x.ndim
    counts[axis(r, x)] = 2
    return lambda x, y: getattr(x, name)(*counts)


@op("repeat_interleave")
def _(name, r, x, y):
    a = axis(r, x)
    if a is None or x.numel() > MOST // 3:
        return None
    counts = r.choice([2, torch.tensor([r.randrange(4) for _ in range(x.shape[a])])])
    if isinstance(counts, torch.Tensor) and not counts.sum():
        counts = 3
    return form(name, r, counts, a)


@op("index_select gather take take_along_dim")
def _(name, r, x, y):
    a = axis(r, x)
    if a is None or x.shape[a] < 1:
        return None
    generator = torch.Generator().manual_seed(r.randrange(10**6))
    shape = {"index_select": (3,), "take": (1, 3)}.get(name, x.shape)
    index = torch.randint(0, x.numel() if name == "take" else x.shape[a], shape, generator=generator)
    arguments = {"take": (index,), "take_along_dim": (index, a)}.get(name, (a, index))
    return form(name, r, *arguments)


@op("getitem")
def _(name, r, x, y):
    a = axis(r, x)
    if a is None or x.shape[a] < 1:
        return None
    index = [slice(None)] * x.ndim
    n = x.shape[a]
    choices = [
        0,
        slice(None, None, 2),
        [r.randrange(n) for _ in range(3)],
        None,
        slice(1, None) if n > 1 else ...,
    ]
    index[a] = r.choice(choices)
    if isinstance(index[a], list):
        index[a] = torch.tensor(index[a])
    return lambda x, y: x[tuple(index)]


@op("pad")
def _(name, r, x, y):
    mode = r.choice(["constant", "circular", "reflect", "replicate"])
    if mode != "constant" and (x.ndim not in (3, 4) or min(x.shape[2:]) < 2):
        return None
    if x.ndim == 0 or x.numel() > MOST // 2:
        return None
    pads = (1, 1) if mode == "constant" or x.ndim == 3 else (1, 0, 0, 1)
    return lambda x, y: F.pad(x, pads, mode=mode)
