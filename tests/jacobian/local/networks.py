"""Blocks of today's networks, small, and points of a ball."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Fused attention with several heads, the queries, keys and values from one layer."""

    def __init__(self, dim, heads, causal=False):
        super().__init__()
        self.qkv, self.out, self.heads, self.causal = (
            nn.Linear(dim, 3 * dim),
            nn.Linear(dim, dim),
            heads,
            causal,
        )

    def forward(self, x):
        count, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(count, tokens, dim))


class Written(nn.Module):
    """Attention written out, with a mask that is added or filled in."""

    def __init__(self, dim, masked):
        super().__init__()
        self.q, self.k, self.v, self.masked = (
            nn.Linear(dim, dim),
            nn.Linear(dim, dim),
            nn.Linear(dim, dim),
            masked,
        )

    def forward(self, x):
        scores = self.q(x) @ self.k(x).transpose(1, 2) / math.sqrt(x.shape[2])
        if self.masked:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(mask, -math.inf)
        return torch.bmm(scores.softmax(-1), self.v(x))


class PreNorm(nn.Module):
    """x + f(norm(x)), and the same with a gated or a plain feed-forward."""

    def __init__(self, dim, norm, mixer, forward):
        super().__init__()
        self.norm1, self.norm2, self.mixer, self.mlp = norm(dim), norm(dim), mixer, forward

    def forward(self, x):
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SwiGLU(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(dim, 8), nn.Linear(dim, 8), nn.Linear(8, dim)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class WrittenRMSNorm(nn.Module):
    """As of language models: in float32, with rsqrt."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(dim) + 0.5)

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)
        return self.weight * y.to(x.dtype)


class Gated(nn.Module):
    """A gate as in Mamba: a causal convolution, SiLU, a step size by softplus, decay by exp, and a product."""

    def __init__(self, dim):
        super().__init__()
        self.inner = nn.Linear(dim, 2 * dim)
        self.conv = nn.Conv1d(dim, dim, 3, padding=2, groups=dim)
        self.step = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x):
        y, z = self.inner(x).chunk(2, -1)
        y = F.silu(self.conv(y.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        step = F.softplus(self.step(y))
        return self.out(torch.exp(-step) * y * F.silu(z))


DIM = 8


def feed_forward(activation=nn.GELU):
    return nn.Sequential(nn.Linear(DIM, 12), activation(), nn.Linear(12, DIM))


def encoder(norm_first):
    return nn.TransformerEncoderLayer(
        DIM, 2, 12, activation="gelu", batch_first=True, norm_first=norm_first, dropout=0.1
    )


NETWORKS = {
    "attention": lambda: Attention(DIM, 2),
    "causal": lambda: Attention(DIM, 4, causal=True),
    "written": lambda: Written(DIM, False),
    "masked": lambda: Written(DIM, True),
    "vit block": lambda: PreNorm(DIM, nn.LayerNorm, Attention(DIM, 2), feed_forward()),
    "post-norm encoder": lambda: encoder(False),
    "pre-norm encoder": lambda: encoder(True),
    "language model": lambda: PreNorm(DIM, WrittenRMSNorm, Attention(DIM, 2, causal=True), SwiGLU(DIM)),
    "rms norm": lambda: nn.Sequential(nn.RMSNorm(DIM), nn.Linear(DIM, DIM), nn.Tanh()),
    "relu": lambda: feed_forward(nn.ReLU),
    "glu": lambda: nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GLU(), nn.LayerNorm(DIM)),
    "group norm": lambda: nn.Sequential(nn.Conv1d(4, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.SiLU()),
    "gate": lambda: Gated(DIM),
}


def network(name, seed=0, gain=1.0):
    """A network with weights that are ``gain`` times those of torch, and a point (1, 4, 8)."""
    torch.manual_seed(seed)
    model = NETWORKS[name]().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p *= gain
    return model, torch.randn(1, 4, DIM)
