"""A lower bound of a convolution's ℓ2 norm without a single convolution.

The zero-padded operator amplifies most what looks, inside the image, like a wave at the best frequency ω under a smooth
window that fades towards the border. So it is tried on waves

    v(x) = Σ_{j, b} c_{jb} a_j w_b(x) exp(i ω·x),     w_b products of sines that vanish just outside the image,

with a few channel vectors a_j, and the best c is the top eigenvector of a small matrix (Rayleigh and Ritz). That matrix
needs only A_τ a_j for every tap and overlaps of shifted windows; its cost does not depend on the size of the image beyond
sums along its sides. Any value of ‖M v‖_2 / ‖v‖_2 is a true lower bound, whatever v is; for complex v too, as M is real.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opnorm.norms.symbol import Taps, adjoint, apply

__all__ = ["krylov", "ritz"]

WINDOWS = 4  # sines per axis
ROUNDING = 1e-9  # far above float64's rounding in the small matrix
SETTLED = 5e-4  # Lanczos stops when a step adds less than this to σ², relatively


def ritz(
    t: Taps, group: int, omega: np.ndarray, directions: Tensor, windows: int = WINDOWS
) -> tuple[float, Callable[[], Tensor]]:
    """The largest ‖M v‖_2 / ‖v‖_2 over the waves above, lowered by a relative 1e-9 for rounding, and its v.

    Args:
        t: the convolution.
        group: which of its groups v lives in.
        omega: (axes,) the frequency.
        directions: (c_in, J) complex128 channel vectors; they need not be orthogonal.
        windows: sines on each axis.

    Returns:
        The bound, and a function that makes the real part of v, (1, c_in, *whole) in float64.
    """
    if min(t.whole) < 1:
        return 0.0, lambda: torch.zeros(1, t.matrices.shape[-1], *t.whole, dtype=torch.float64)
    a, _ = torch.linalg.qr(directions)
    axes = t.offsets.shape[1]
    overlaps, index, waves = [], [], []
    for axis in range(axes):
        distinct, place = np.unique(t.offsets[:, axis], return_inverse=True)
        waves.append(_waves(t.whole[axis], float(omega[axis]), windows))
        overlaps.append(_overlaps(distinct, waves[-1], t.out_size[axis]).to(a.device))
        index.append(place)
    A = t.matrices[group]
    moved = torch.complex(A @ a.real, A @ a.imag).permute(2, 0, 1)  # (J, T, c_out): A_τ a_j
    sizes = [S.shape[0] for S in overlaps]
    full = moved.new_zeros(len(moved), *sizes, moved.shape[-1])
    where: tuple[Any, ...] = (slice(None), *(torch.from_numpy(p).to(a.device) for p in index))
    full[where] = moved
    flat = full.flatten(0, -2)
    X = (flat.conj() @ flat.mT).reshape(len(moved), *sizes, len(moved), *sizes)
    names = "j" + "lmn"[:axes] + "k" + "opq"[:axes]  # taps of the first and of the second argument
    for axis, S in enumerate(overlaps):
        tap, window, tap2, window2 = "lmn"[axis], "abc"[axis], "opq"[axis], "def"[axis]
        out = names.replace(tap, window).replace(tap2, window2)
        X = torch.einsum(f"{names},{tap}{window}{tap2}{window2}->{out}", X, S)
        names = out
    size = math.isqrt(X.numel())
    values, vectors = torch.linalg.eigh(X.reshape(size, size))

    def wave() -> Tensor:
        c = vectors[:, -1].reshape(a.shape[1], *(len(w) for w in waves))
        v = torch.tensordot(a, c, dims=([1], [0]))
        for w in waves:
            v = torch.tensordot(v, torch.from_numpy(w).to(a.device), dims=([1], [0]))
        return v.real.contiguous()[None]

    return math.sqrt(max(float(values[-1]), 0.0)) * (1 - ROUNDING), wave


def _waves(n: int, omega: float, windows: int) -> np.ndarray:
    """Orthonormal sines times exp(iωx), (windows, n)."""
    x = np.arange(n)
    sines = np.array([np.sin(math.pi * b * (x + 1) / (n + 1)) for b in range(1, min(windows, n) + 1)])
    return sines * math.sqrt(2 / (n + 1)) * np.exp(1j * omega * x)


def _overlaps(offsets: np.ndarray, waves: np.ndarray, m: int) -> Tensor:
    """S[τ, b, τ', b'] = Σ_{0≤o<m} conj(φ_b(o + τ)) φ_b'(o + τ'), each φ continued by 0."""
    n = waves.shape[1]
    shifted = np.zeros((len(offsets), len(waves), m), dtype=np.complex128)
    for i, offset in enumerate(offsets.tolist()):
        first, last = max(0, -offset), min(m, n - offset)
        if first < last:
            shifted[i, :, first:last] = waves[:, first + offset : last + offset]
    flat = shifted.reshape(-1, m)
    return torch.from_numpy((flat.conj() @ flat.T).reshape(*shifted.shape[:2], *shifted.shape[:2]))


@torch.no_grad()
def krylov(t: Taps, group: int, v: Tensor, steps: int | None = None) -> tuple[float, Tensor]:
    """A better lower bound: Lanczos on MᵀM from v, searched in bfloat16 where that is quick, measured in float32.

    From a good wave the first step takes away most of the error. Costs 2 steps + 2 passes of the convolution.

    Args:
        t: the convolution.
        group: which of its groups v lives in.
        v: (1, c_in, *whole).
        steps: of Lanczos; 1 for large convolutions and up to 16 for cheap ones when None.

    Returns:
        ‖M v‖_2 / ‖v‖_2, to float32's rounding, and its v (1, c_in, *whole).
    """
    length = torch.linalg.vector_norm(v)
    if not length > 0:
        return 0.0, v
    if steps is None:
        steps = max(1, min(16, int(4e9 / (t.matrices[group].numel() * math.prod(t.out_size)))))
    search = (
        torch.bfloat16 if v.device.type == "cuda" or torch.backends.mkldnn.is_available() else torch.float32
    )
    back = adjoint(t)
    basis, images = [(v / length).float()], []
    before = 0.0
    for step in range(steps + 1):
        images.append(apply(t, group, basis[-1].to(search)).float())
        U = torch.stack([u.flatten() for u in images])
        values, vectors = torch.linalg.eigh((U @ U.mT).double())
        now = float(values[-1])
        if step == steps or now < before * (1 + SETTLED):
            break
        before = now
        new = apply(back, group, images[-1].to(search)).float()
        for _ in range(2):  # twice is enough
            for q in basis:
                new = new - (new * q).sum() * q
        size = torch.linalg.vector_norm(new)
        if not size > 0:
            break
        basis.append(new / size)
    c = vectors[:, -1].float()
    best = torch.tensordot(c, torch.stack(basis[: len(images)]), dims=1)
    return float(torch.linalg.vector_norm(apply(t, group, best)) / torch.linalg.vector_norm(best)), best
