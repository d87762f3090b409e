"""The table of operations, and what their builders share."""

import torch
import torch.nn.functional as F

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
