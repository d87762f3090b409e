"""Random networks of every operation that has a rule for its Lipschitz bound, and what their inputs show of their slope.

An operation is a function that is given a random generator and two tensors, the values of the network so far, and returns
the operation as a function of two such values, or None where it does not apply to their shapes.
"""

import operator
import random

import torch
import torch.nn.functional as F
from torch import nn

OPS = {}
MOST = 60  # numbers in a value


def op(names):
    """Register a builder for each name; it is called with the name first."""

    def register(build):
        for name in names.split():
            assert name not in OPS, name
            OPS[name] = lambda r, x, y, name=name: build(name, r, x, y)
        return build

    return register


def form(name, r, *arguments):
    """An operation of one value: as a function of torch or torch.nn.functional, or as a method."""
    places = [getattr(place, name) for place in (torch, F) if callable(getattr(place, name, None))]
    forms = [lambda x, y, f=f: f(x, *arguments) for f in places]
    if hasattr(torch.Tensor, name):
        forms.append(lambda x, y: getattr(x, name)(*arguments))
    if places and r.random() < 0.1:
        forms = [lambda x, y, f=places[0]: f(input=x) for _ in "a" if not arguments] or forms
    return r.choice(forms)


def axis(r, x, least=1):
    """Mostly not the first one, which is the batch."""
    if x.ndim == 0:
        return None
    return r.randrange(0 if r.random() < 0.1 or x.ndim == 1 else 1, x.ndim)


def like(r, *shape):
    generator = torch.Generator().manual_seed(r.randrange(10**6))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------- shapes and constants


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


# ---------------------------------------------------------------- arithmetic


@op("add sub subtract")
def _(name, r, x, y):
    other = r.choice([None, None, 0.5, like(r, *x.shape[-1:])])
    alpha = r.choice([1, 1, -2, 0.5])
    fn = getattr(torch, name)
    if other is None:
        return lambda x, y: fn(x, y, alpha=alpha) if alpha != 1 else fn(x, other=y)
    return lambda x, y: fn(x, other)


@op("iadd isub imul itruediv")
def _(name, r, x, y):
    fn, other = getattr(operator, name), r.choice([0.5, 2.0, like(r, *x.shape[-1:])])
    return lambda x, y: fn(x * 1.0, other)


@op("mul multiply")
def _(name, r, x, y):
    c = r.choice(
        [-1.5, 2, like(r, *x.shape[-1:]), like(r, 2, *[1] * x.ndim) if x.numel() < MOST // 2 else 0.3]
    )
    return r.choice([lambda x, y: getattr(torch, name)(x, c), lambda x, y: c * x])


@op("div divide true_divide truediv")
def _(name, r, x, y):
    c = r.choice([-1.5, 2, like(r, *x.shape[-1:]).abs() + 0.3])
    return (lambda x, y: x / c) if name == "truediv" else (lambda x, y: getattr(torch, name)(x, c))


@op("neg negative positive abs absolute sin cos atan arctan asinh arcsinh erf tanh sigmoid")
def _(name, r, x, y):
    return form(name, r)


@op("pos")
def _(name, r, x, y):
    return lambda x, y: +x


@op("clamp clip")
def _(name, r, x, y):
    return form(name, r, -0.5, 0.7)


@op("clamp_min clamp_max")
def _(name, r, x, y):
    return form(name, r, 0.2)


@op("maximum minimum")
def _(name, r, x, y):
    return lambda x, y: getattr(torch, name)(x, y)


@op("max min")
def _(name, r, x, y):
    a, kind = axis(r, x), r.choice(["two", "pair", "values"])
    if kind == "two" or a is None:
        return lambda x, y: getattr(torch, name)(x, y)
    if kind == "pair":
        return lambda x, y: getattr(x, name)(a)[0]
    return lambda x, y: getattr(x, name)(dim=a, keepdim=True).values


@op("where masked_fill")
def _(name, r, x, y):
    mask = like(r, *x.shape[-1:]) > 0
    if name == "masked_fill":
        return lambda x, y: x.masked_fill(mask, 2.0)
    return r.choice([lambda x, y: torch.where(mask, x, y), lambda x, y: x.where(mask, y)])


@op("mean sum amax amin logsumexp")
def _(name, r, x, y):
    a = axis(r, x)
    if a is None or x.shape[a] < 1:
        return None
    keep = r.random() < 0.5
    return lambda x, y: getattr(x, name)(a, keepdim=keep)


@op("cat concat concatenate stack hstack vstack dstack")
def _(name, r, x, y):
    if x.ndim == 0 or 2 * x.numel() > MOST:
        return None
    arguments = () if name in ("hstack", "vstack", "dstack") else (axis(r, x),)
    if r.random() < 0.5:
        return lambda x, y: getattr(torch, name)([x, y], *arguments)
    return lambda x, y: getattr(torch, name)((y, 2 * x), *arguments)


# ---------------------------------------------------------------- what layers do


@op(
    "relu relu6 elu celu selu gelu silu mish hardtanh tanhshrink softsign softplus logsigmoid hardsigmoid hardswish "
    "softshrink leaky_relu"
)
def _(name, r, x, y):
    if name in ("relu", "elu", "selu", "celu", "relu6", "leaky_relu") and r.random() < 0.3:
        return lambda x, y: (lambda z: getattr(F, name)(z, inplace=True) + z)(2 * x)
    return lambda x, y: getattr(F, name)(x)


@op("threshold")
def _(name, r, x, y):
    return lambda x, y: F.threshold(x, 0.5, 0.5)


@op("softmax softmin log_softmax")
def _(name, r, x, y):
    a = axis(r, x)
    if a is None:
        return None
    layer = {"softmax": nn.Softmax, "softmin": nn.Softmin, "log_softmax": nn.LogSoftmax}[name](a)
    return r.choice([lambda x, y: getattr(F, name)(x, dim=a), layer_of(layer)])


def layer_of(layer):
    def call(x, y):
        return call.layer(x)

    call.layer = layer
    return call


@op("dropout alpha_dropout feature_alpha_dropout dropout1d dropout2d dropout3d")
def _(name, r, x, y):
    axes = {"dropout1d": 3, "dropout2d": 4, "dropout3d": 5}.get(name, x.ndim)
    return (
        (lambda x, y: getattr(F, name)(x[(None,) * (axes - x.ndim)], 0.5, False)) if x.ndim <= axes else None
    )


@op("lp_pool1d avg_pool1d max_pool1d adaptive_avg_pool1d adaptive_max_pool1d conv1d conv_transpose1d")
def _(name, r, x, y):
    return pooled(name, r, x, 3)


@op("lp_pool2d avg_pool2d max_pool2d adaptive_avg_pool2d adaptive_max_pool2d conv2d conv_transpose2d")
def _(name, r, x, y):
    return pooled(name, r, x, 4)


@op("lp_pool3d avg_pool3d max_pool3d adaptive_avg_pool3d adaptive_max_pool3d conv3d conv_transpose3d")
def _(name, r, x, y):
    built = pooled(name, r, x[None].movedim(0, -1), 5) if x.ndim == 4 else None
    return None if built is None else (lambda x, y: built(x.unsqueeze(-1), y))


def pooled(name, r, x, axes):
    """Pooling or a convolution of a value with so many axes."""
    if x.ndim != axes or min(x.shape) < 1 or x.numel() > MOST:
        return None
    number = r.choice([1, 2])
    if "adaptive" in name:
        return lambda x, y: getattr(F, name)(x, number)
    channels, kernel = x.shape[1], [min(2, n) for n in x.shape[2:]]
    if name.startswith("conv_t"):
        K, bias = like(r, channels, 1, *kernel), like(r, 1)
        return lambda x, y: getattr(F, name)(x, K, bias, stride=number)
    if name.startswith("conv"):
        K, padding = like(r, 2, channels, *kernel), r.choice([0, 1, "same"])
        return lambda x, y: getattr(F, name)(x, K, None, 1, padding)
    if name.startswith("lp"):
        exponent, ceil = r.choice([2, 4.0, float("inf")]), r.random() < 0.5
        return lambda x, y: getattr(F, name)(x, exponent, kernel if axes > 3 else kernel[0], number, ceil)
    return lambda x, y: getattr(F, name)(x, kernel, number)


@op("interpolate upsample")
def _(name, r, x, y):
    if x.ndim not in (3, 4) or x.numel() > MOST // 4 or x.numel() == 0:
        return None
    mode = r.choice(["nearest", "area", *(["linear"] if x.ndim == 3 else ["bilinear", "bicubic"])])
    smooth = mode in ("bilinear", "bicubic") and r.random() < 0.5
    factor = r.choice([2, 1.3])
    return lambda x, y: F.interpolate(x, scale_factor=factor, mode=mode, antialias=smooth)


@op("upsample_nearest upsample_bilinear")
def _(name, r, x, y):
    if x.ndim != 4 or x.numel() > MOST // 4 or x.numel() == 0:
        return None
    return lambda x, y: getattr(F, name)(x, scale_factor=2)


@op("unfold")
def _(name, r, x, y):
    if x.ndim == 4 and min(x.shape) > 0 and x.numel() < MOST // 4 and r.random() < 0.5:
        return lambda x, y: F.unfold(x, 2, padding=1, stride=2)
    at = axis(r, x)
    if at is None or not x.shape[at] or x.numel() > MOST // 2:
        return None
    return lambda x, y: x.unfold(at, min(2, x.shape[at]), 1)


@op("fold")
def _(name, r, x, y):
    if x.ndim != 3 or x.shape[2] not in (1, 2, 4) or not x.shape[1] or x.shape[1] % 4:
        return None
    size = {1: (2, 2), 2: (2, 3), 4: (3, 3)}[x.shape[2]]
    return lambda x, y: F.fold(x, size, 2)


@op("matmul mm imatmul")
def _(name, r, x, y):
    if x.ndim < 2 or (name == "mm" and x.ndim != 2) or not x.shape[-1]:
        return None
    W = like(r, x.shape[-1], x.shape[-1] if name == "imatmul" else r.randint(1, 3))
    if name == "matmul" and x.ndim > 2 and r.random() < 0.3:
        A = like(r, 2, x.shape[-2])
        return lambda x, y: A @ x
    if name == "imatmul":
        return lambda x, y: operator.imatmul(x, W)
    return r.choice([lambda x, y: getattr(torch, name)(x, W), lambda x, y: getattr(x, name)(W)])


@op("linear")
def _(name, r, x, y):
    if x.ndim < 2 or not x.shape[-1]:
        return None
    layer = nn.Linear(x.shape[-1], r.randint(1, 3)).double()
    layer.weight.data, layer.bias.data = like(r, *layer.weight.shape), like(r, *layer.bias.shape)
    return r.choice([lambda x, y: F.linear(x, layer.weight, layer.bias), layer_of(layer)])


@op("prelu")
def _(name, r, x, y):
    slope = like(r, 1) * 2
    return lambda x, y: F.prelu(x, slope)


@op("batch_norm")
def _(name, r, x, y):
    if x.ndim < 2:
        return None
    mean, var, weight = like(r, x.shape[1]), like(r, x.shape[1]).abs() + 0.1, like(r, x.shape[1])
    return lambda x, y: F.batch_norm(x, mean, var, weight)


@op("addmm")
def _(name, r, x, y):
    if x.ndim != 2 or not x.shape[-1]:
        return None
    W = like(r, x.shape[-1], x.shape[-1])
    return r.choice([
        lambda x, y: torch.addmm(W[0], x, W),
        lambda x, y: torch.addmm(y, x, W, beta=-0.5, alpha=2),
    ])  # fmt: skip


@op("rms_norm")
def _(name, r, x, y):
    a, eps = axis(r, x), r.choice([0.1, 1])
    if a is None or x.shape[a] < 2:
        return None
    return r.choice([
        lambda x, y: F.rms_norm(x.transpose(a, -1), x.shape[a : a + 1], eps=eps),
        lambda x, y: x * torch.rsqrt(x.pow(2).mean(a, keepdim=True) + eps),
        lambda x, y: x / torch.sqrt(eps + torch.mean(x * x, dim=a, keepdim=True)),
        lambda x, y: (lambda h: h * (h.square().mean((a,), True) + eps) ** -0.5)(x - x.mean(a, keepdim=True)),
        lambda x, y: (1 / ((x**2).mean(a, keepdim=True) + eps).sqrt()) * x,
        lambda x, y: x - x.mean(a, True),
    ])  # fmt: skip


@op("instance_norm")
def _(name, r, x, y):
    if x.ndim not in (3, 4) or x.shape[2:].numel() < 2:
        return None
    weight, mean, var = like(r, x.shape[1]), like(r, x.shape[1]), like(r, x.shape[1]).abs() + 0.1
    return r.choice([
        lambda x, y: F.instance_norm(x, weight=weight, eps=0.1),
        lambda x, y: F.instance_norm(x, mean, var, weight, None, False),
    ])  # fmt: skip


@op("layer_norm group_norm")
def _(name, r, x, y):
    if x.ndim < 2 or x.shape[1:].numel() < 2:
        return None
    if name == "layer_norm":
        shape, weight = x.shape[1:], like(r, *x.shape[1:])
        return lambda x, y: F.layer_norm(x, shape, weight, eps=0.1)
    return lambda x, y: F.group_norm(x, 1, eps=0.1)


# ---------------------------------------------------------------- sorting


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


# ---------------------------------------------------------------- functions of one variable

COMPOUND = ["max_min", "gelu_by_erf", "gelu_by_tanh", "gated", "rational", "any_function"]
"""Made of operations that have no bound by themselves."""


@op("gelu_by_erf gelu_by_tanh")
def _(name, r, x, y):
    if name == "gelu_by_erf":
        return lambda x, y: x * 0.5 * (1 + torch.erf(x / 2**0.5))
    return lambda x, y: 0.5 * x * (1 + torch.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))


@op("gated")
def _(name, r, x, y):
    gate = r.choice([torch.sigmoid, torch.tanh, F.hardsigmoid, lambda z: F.softplus(z).tanh()])
    c = r.choice([1.702, -0.5, like(r, *x.shape[-1:])])
    return r.choice([lambda x, y: x * gate(c * x), lambda x, y: (2 * x).mul_(gate(x))])


@op("rational")
def _(name, r, x, y):
    forms = [
        lambda x, y: x / (1 + x.abs()),
        lambda x, y: x * torch.rsqrt(1 + x * x),
        lambda x, y: 1 / (0.5 + x**2),
        lambda x, y: (x * x + 1).log(),
        lambda x, y: (-(x**2)).exp() + y,
        lambda x, y: x + torch.sin(2 * x) ** 2 / 2,
    ]
    return r.choice(forms)


@op("any_function")
def _(name, r, x, y):
    def built(depth):
        if not depth or r.random() < 0.2:
            c = r.choice([0.5, -1.5])
            return r.choice([lambda x: x, lambda x: x, lambda x: c * x + 1])
        f, g = built(depth - 1), built(depth - 1)
        bounded = r.choice(
            [torch.sigmoid, torch.tanh, torch.atan, torch.cos, lambda z: z.clamp(-1, 2), lambda z: z.exp()]
        )
        combined = [
            lambda x: f(x) * g(x),
            lambda x: f(x) - g(x),
            lambda x: torch.maximum(f(x), g(x)),
            lambda x: f(x) ** 2,
        ]
        return r.choice(
            [*combined, lambda x: bounded(f(x)), lambda x: bounded(f(x)), lambda x: f(x) / (1 + g(x) ** 2)]
        )

    function = built(3)
    return lambda x, y: function(x)


def _attention(x):
    W = torch.eye(x.shape[-1]).to(x)
    rows = x.flatten(0, -2)[:, None]
    weights = torch.cat([W, W, W]), None, None, None, False, 0.0, W, None
    return F.multi_head_attention_forward(rows, rows, rows, len(W), 1, *weights)[0]


# Operations whose rule refuses them, with a call.
REFUSED = {
    "bmm": lambda x: torch.bmm(x[None], x[None].mT),
    "einsum": lambda x: torch.einsum("bi->b", x),
    "cosine_similarity": lambda x: F.cosine_similarity(x, x),
    "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "multi_head_attention_forward": _attention,
    "pow": lambda x: x.pow(3),
    "hardshrink": lambda x: F.hardshrink(x),
    "glu": lambda x: F.glu(x, 1),
    "normalize": lambda x: F.normalize(x),
}
for _name in [
    "rsqrt",
    "sqrt",
    "log",
    "exp",
    "square",
    "reciprocal",
    "round",
    "floor",
    "ceil",
    "sign",
    "argmax",
    "argmin",
]:
    REFUSED[_name] = lambda x, name=_name: getattr(x, name)()
for _name in ["gt", "lt", "ge", "le", "eq", "ne"]:
    REFUSED[_name] = lambda x, name=_name: getattr(x, name)(0.5)


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
