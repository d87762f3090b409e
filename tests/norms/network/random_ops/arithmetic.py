"""Sums, products, reductions."""

import operator

import torch

from tests.norms.network.random_ops.registry import MOST, axis, form, like, op


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
