"""A lower bound of a convolution's ℓ2 norm without a single convolution of all channels.

The zero-padded operator amplifies most a wave at the best frequency ω inside the image, under a smooth window that fades
toward the border. So it is applied to waves

    v(x) = Σ_{j, b} c_{jb} a_j w_b(x) exp(i ω·x),     w_b products of sines that vanish just outside the image,

with a few channel vectors a_j, and the best c is the top eigenvector of a small matrix (Rayleigh and Ritz). That matrix
needs only A_τ a_j for every offset and overlaps of shifted windows; its cost does not depend on the size of the image beyond
sums along its sides. Any value of ‖M v‖_2 / ‖v‖_2 is a true lower bound, also for complex v, as M is real.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opnorm._core.lanczos import lanczos
from opnorm._core.lp import lp_norm
from opnorm.norms.spectral.frequency_response import Polyphase

__all__ = ["lower_bound"]

WINDOWS = 3  # sines per axis
RANK = 16  # channel vectors on each side
FULL_WORK = 4e6  # up to so many multiplications a pass, all channels are kept,
FEW = 256  # if they are no more than these: a basis of thousands costs more than it gives
STEPS = 7  # of Lanczos iteration from the best wave
ROUNDING_OF_WAVES = 1e-9  # relative, far above float64's rounding in the small matrix


def _best_wave(t: Polyphase, omega: np.ndarray, directions: Tensor) -> tuple[float, Tensor]:
    """The largest ‖M v‖_2 / ‖v‖_2 over the waves above, and the real part of that v, (1, c_in, *whole), for one group.

    Args:
        t: the convolution.
        omega: (axes,) the frequency.
        directions: (c_in, J) complex128 channel vectors; they need not be orthogonal.
    """
    a, _ = torch.linalg.qr(directions)
    axes = t.offsets.shape[1]
    overlaps, index, waves = [], [], []
    for axis in range(axes):
        distinct, place = np.unique(t.offsets[:, axis], return_inverse=True)
        waves.append(_waves(t.whole[axis], float(omega[axis])))
        overlaps.append(_overlaps(distinct, waves[-1], t.out_size[axis]).to(a.device))
        index.append(place)
    A = t.matrices[0]
    images = torch.complex(A @ a.real, A @ a.imag).permute(2, 0, 1)  # (J, T, c_out): A_τ a_j
    sizes = [S.shape[0] for S in overlaps]
    full = images.new_zeros(len(images), *sizes, images.shape[-1])
    where: tuple[Any, ...] = (slice(None), *(torch.from_numpy(p).to(a.device) for p in index))
    full[where] = images
    flat = full.flatten(0, -2)
    X = (flat.conj() @ flat.mT).reshape(len(images), *sizes, len(images), *sizes)
    names = "j" + "lmn"[:axes] + "k" + "opq"[:axes]  # offsets of the first and of the second argument
    for axis, S in enumerate(overlaps):
        offset, window, offset2, window2 = "lmn"[axis], "abc"[axis], "opq"[axis], "def"[axis]
        out = names.replace(offset, window).replace(offset2, window2)
        X = torch.einsum(f"{names},{offset}{window}{offset2}{window2}->{out}", X, S)
        names = out
    size = math.isqrt(X.numel())
    values, vectors = torch.linalg.eigh(X.reshape(size, size))

    v = torch.tensordot(a, vectors[:, -1].reshape(a.shape[1], *map(len, waves)), 1)
    for w in waves:
        v = torch.tensordot(v, torch.from_numpy(w).to(a.device), dims=([1], [0]))
    return math.sqrt(max(float(values[-1]), 0.0)), v.real.contiguous()[None]


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


def lower_bound(
    t: Polyphase, group: int, omega: np.ndarray, inputs: Tensor, outputs: Tensor, tolerance: float = 1e-4
) -> float:
    """A lower bound of ‖M‖_2 from the channels that matter at one frequency, lowered by a relative 1e-9 for rounding.

    The best wave is improved by Lanczos iteration on the map between the spans of a few input and a few output channel
    vectors: at that rank a pass of the convolution costs next to nothing. It runs in single precision where the tolerance
    allows; the result is measured in double, with all output channels.

    Args:
        t: the convolution.
        group: which of its groups is meant.
        omega: (axes,) the frequency.
        inputs: (c_in, J) complex128 channel vectors, the first ones the best.
        outputs: (c_out, J) their images.
        tolerance: stop when a Lanczos step adds less than this to σ², relatively.
    """
    if min(t.whole) < 1:
        return 0.0
    t = _window(t, tolerance)
    A = t.matrices[group]
    cheap = A.numel() * math.prod(t.out_size) <= FULL_WORK
    Q, P = (_span(V, FEW if cheap else RANK) for V in (inputs, outputs))
    narrow = replace(t, matrices=torch.bmm(A, Q.expand(len(A), -1, -1))[None])
    small = replace(narrow, matrices=P.mT @ narrow.matrices)
    value, v = _best_wave(small, omega, Q.mT.to(inputs.dtype) @ inputs)
    top = replace(t, matrices=A[None]).symbol(omega[None])[0, 0] @ inputs[:, 0]
    peak = float(top.norm() / inputs[:, 0].norm())  # ‖A(ω)‖, which no wave around ω exceeds by much
    if not v.any() or value >= peak * (1 - tolerance):
        return value * (1 - ROUNDING_OF_WAVES)
    dtype = torch.float32 if tolerance > 1e-5 else torch.float64
    v = lanczos(small.as_map(0, dtype), v.to(dtype), steps=STEPS, tolerance=tolerance / 2, every=1).double()
    measured = lp_norm(narrow.as_map(0) @ v, 2) / lp_norm(v, 2)
    return max(value, float(measured)) * (1 - ROUNDING_OF_WAVES)


def _window(t: Polyphase, tolerance: float) -> Polyphase:
    """The convolution on a part of a large map, a submatrix, so that the cost does not depend on the size of the image.

    A wave under a sine of length n loses Σ_axes (π degree / n)² / 2 of the peak at most, relatively, since the second
    derivative of a polynomial of this degree is at most degree² times its maximum (Bernstein).
    """
    axes = len(t.whole)
    most = [math.ceil(math.pi * d * math.sqrt(axes / (5 * tolerance))) + 1 for d in t.degree]
    low = t.offsets.min(0).tolist()
    whole = tuple(map(min, t.whole, most))
    out_size = tuple(max(1, min(m, n - a)) for m, n, a in zip(t.out_size, whole, low, strict=True))
    return replace(t, whole=whole, out_size=out_size)


def _span(vectors: Tensor, rank: int) -> Tensor:
    """An orthonormal real basis of complex vectors' main directions, (c, rank at most); of everything if rank allows."""
    if len(vectors) <= rank:
        return torch.eye(len(vectors), dtype=torch.float64, device=vectors.device)
    both = torch.cat([vectors.real, vectors.imag], dim=1)
    return torch.linalg.svd(both, full_matrices=False)[0][:, :rank]
