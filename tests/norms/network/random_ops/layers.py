"""What layers do."""

import operator

import torch
import torch.nn.functional as F
from torch import nn

from tests.norms.network.random_ops.registry import MOST, axis, like, op


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
