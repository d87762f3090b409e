"""Functions of one variable, and operations without a bound."""

import torch
import torch.nn.functional as F

from tests.norms.network.random_ops.registry import like, op

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
