"""A lower bound of a convolution's ℓ2 norm without a single convolution of all channels.

The zero-padded operator amplifies most what looks, inside the image, like a wave at the best frequency ω under a smooth
window that fades towards the border. So it is tried on waves

    v(x) = Σ_{j, b} c_{jb} a_j w_b(x) exp(i ω·x),     w_b products of sines that vanish just outside the image,

with a few channel vectors a_j, and the best c is the top eigenvector of a small matrix (Rayleigh and Ritz). That matrix
needs only A_τ a_j for every tap and overlaps of shifted windows; its cost does not depend on the size of the image beyond
sums along its sides. Any value of ‖M v‖_2 / ‖v‖_2 is a true lower bound, whatever v is; for complex v too, as M is real.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opnorm.norms.spectral.frequency_response import Taps, adjoint, apply

__all__ = ["attained", "ritz"]

WINDOWS = 3  # sines per axis
RANK = 16  # channel vectors on each side
FULL_WORK = 4e6  # up to so many multiplications a pass, all channels are kept,
FEW = 256  # if they are no more than these: a basis of thousands costs more than it gives
ROUNDING = 1e-9  # far above float64's rounding in the small matrix


def ritz(t: Taps, group: int, omega: np.ndarray, directions: Tensor) -> tuple[float, Callable[[], Tensor]]:
    """The largest ‖M v‖_2 / ‖v‖_2 over the waves above, lowered by a relative 1e-9 for rounding, and its v.

    Args:
        t: the convolution.
        group: which of its groups v lives in.
        omega: (axes,) the frequency.
        directions: (c_in, J) complex128 channel vectors; they need not be orthogonal.

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
        waves.append(_waves(t.whole[axis], float(omega[axis])))
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


def _waves(n: int, omega: float) -> np.ndarray:
    """Orthonormal sines times exp(iωx), (windows, n)."""
    x = np.arange(n)
    sines = np.array([np.sin(math.pi * b * (x + 1) / (n + 1)) for b in range(1, min(WINDOWS, n) + 1)])
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


def attained(
    t: Taps, group: int, omega: np.ndarray, inputs: Tensor, outputs: Tensor, settled: float = 1e-4
) -> float:
    """A lower bound of ‖M‖_2 from the channels that matter at one frequency.

    The best wave is improved by a Krylov space of the map between the spans of a few input and a few output channel
    vectors: at that rank a pass of the convolution costs next to nothing. It runs in single precision where that settles it;
    what is found is measured in double, with all output channels.

    Args:
        t: the convolution.
        group: which of its groups is meant.
        omega: (axes,) the frequency.
        inputs: (c_in, J) complex128 channel vectors, the first ones the best.
        outputs: (c_out, J) what they are turned into.
        settled: stop when a step of the Krylov space adds less than this to σ², relatively.

    Returns:
        A value that is attained, lowered by a relative 1e-9 for rounding.
    """
    if min(t.whole) < 1:
        return 0.0
    A = t.matrices[group]
    cheap = A.numel() * math.prod(t.out_size) <= FULL_WORK
    Q, P = (_span(V, FEW if cheap else RANK) for V in (inputs, outputs))
    narrow = replace(t, matrices=torch.bmm(A, Q.expand(len(A), -1, -1))[None], kernels={})
    small = replace(narrow, matrices=P.mT @ narrow.matrices, kernels={})
    value, wave = ritz(small, 0, omega, Q.mT.to(inputs.dtype) @ inputs)
    v = wave()
    if not torch.linalg.vector_norm(v) > 0:
        return value
    v = krylov(small, v.float() if settled > 1e-5 else v, settled).double()
    measured = torch.linalg.vector_norm(apply(narrow, 0, v)) / torch.linalg.vector_norm(v)
    return max(value, float(measured) * (1 - ROUNDING))


def _span(vectors: Tensor, rank: int) -> Tensor:
    """An orthonormal real basis of complex vectors' main directions, (c, rank at most); of everything if rank allows."""
    if len(vectors) <= rank:
        return torch.eye(len(vectors), dtype=torch.float64, device=vectors.device)
    both = torch.cat([vectors.real, vectors.imag], dim=1)
    return torch.linalg.svd(both, full_matrices=False)[0][:, :rank]


@torch.no_grad()
def krylov(t: Taps, v: Tensor, settled: float, steps: int = 6) -> Tensor:
    """The best vector of the Krylov space of MᵀM from v, (1, c_in, *whole); Lanczos with full reorthogonalization."""
    back = adjoint(t)
    basis, images = [v / torch.linalg.vector_norm(v)], []
    before = 0.0
    for step in range(steps + 1):
        images.append(apply(t, 0, basis[-1]))
        U = torch.stack([u.flatten() for u in images])
        values, vectors = torch.linalg.eigh(U @ U.mT)
        now = float(values[-1])
        if step == steps or now < before * (1 + settled):
            break
        before = now
        new = apply(back, 0, images[-1])
        scale = torch.linalg.vector_norm(new)
        Q = torch.stack([q.flatten() for q in basis])
        for _ in range(2):  # twice is enough
            new = new - ((Q @ new.flatten()) @ Q).view_as(new)
        size = torch.linalg.vector_norm(new)
        if not size > torch.finfo(v.dtype).eps ** 0.75 * scale:
            break
        basis.append(new / size)
    return torch.tensordot(vectors[:, -1], torch.stack(basis[: len(images)]), dims=1)
