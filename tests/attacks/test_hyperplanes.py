"""The shortest step onto a plane within the box, against duality and bisection in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opnorm.attacks.hyperplanes import step_to_plane
from tests.property_tests import examples

NORMS = (math.inf, 2, 1)


def distance_to_plane(z, w, c, norm):
    """The least ‖δ‖_p with <w, δ> = -c and z + δ in the box, or None; plain floats, one point.

    ℓ∞ and ℓ2: the value of the plane's function falls with the multiplier, so bisection. ℓ1: the maximum over λ of the dual
    λ |c| - Σ room_i max(0, λ |w_i| - 1), which is concave with kinks at 1 / |w_i|.
    """
    if c < 0:
        w, c = [-v for v in w], -c
    room = [a if v > 0 else 1 - a for a, v in zip(z, w, strict=True)]
    if sum(abs(v) * r for v, r in zip(w, room, strict=True)) < c:
        return None
    if norm == 1:
        kinks = [0.0] + [1 / abs(v) for v in w if v]
        return max(
            k * c - sum(r * max(0.0, k * abs(v) - 1) for v, r in zip(w, room, strict=True)) for k in kinks
        )

    def moved(t):
        return [
            min(r, t * (1.0 if norm == math.inf else abs(v))) if v else 0.0
            for v, r in zip(w, room, strict=True)
        ]

    low, high = 0.0, 1.0 if norm == math.inf else 1 / min((abs(v) for v in w if v), default=1.0)
    for _ in range(200):
        t = (low + high) / 2
        short = sum(abs(v) * m for v, m in zip(w, moved(t), strict=True)) < c
        low, high = (t, high) if short else (low, t)
    return max(moved(high)) if norm == math.inf else math.hypot(*moved(high))


pixel = st.one_of(st.sampled_from([0.0, 1.0, 0.5]), st.floats(0, 1, width=32))
slope = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(0.01, 4), st.floats(-4, -0.01))


@examples(300)
@given(st.lists(st.tuples(pixel, slope), min_size=1, max_size=12), st.floats(-3, 3), st.sampled_from(NORMS))
def test_the_shortest_step(point, c, norm):
    z, w = (torch.tensor(v, dtype=torch.float64) for v in zip(*point, strict=True))
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 3e-5)):
        d = step_to_plane(z[None].to(dtype), w[None].to(dtype), torch.tensor([c], dtype=dtype), norm)[0]
        assert d.dtype == dtype
        d = d.double()
        assert ((z + d) >= -tolerance).all()
        assert ((z + d) <= 1 + tolerance).all()
        assert (d[w == 0] == 0).all()
        value = float(w @ d) + c
        want = distance_to_plane(z.tolist(), w.tolist(), c, norm)
        if want is None:  # the corner closest to the plane
            corner = torch.where(c * w > 0, 0.0, 1.0)[w != 0]
            assert torch.allclose((z + d)[w != 0], corner.double(), atol=tolerance)
        elif c:
            assert abs(value) <= tolerance * (abs(c) + float(w.abs().sum()))
            length = float(torch.linalg.vector_norm(d, norm))
            assert length == pytest.approx(want, rel=tolerance, abs=tolerance * 10)


@pytest.mark.parametrize("norm", NORMS)
def test_large_images_in_float32_against_float64(norm):
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(2, 20, 3072, generator=generator)
    z[z < 0.3] = 0
    w = torch.randn(20, 3072, generator=generator) ** 3
    c = torch.randn(2, 20, generator=generator) * torch.logspace(-4, 3, 20)
    d = step_to_plane(z, w, c, norm)
    want = step_to_plane(z.double(), w.double(), c.double(), norm)
    length, best = (torch.linalg.vector_norm(v.double(), norm, dim=2) for v in (d, want))
    assert torch.allclose(length, best, rtol=2e-5)
    reached = torch.einsum("kbn,bn->kb", d.double(), w.double())
    assert torch.allclose(reached, torch.einsum("kbn,bn->kb", want, w.double()), rtol=2e-5)
    one = step_to_plane(z[1, 3:4], w[3:4], c[1, 3:4], norm)
    assert torch.allclose(one[0], d[1, 3], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_gradients_does_not_matter(norm, scale):
    z, w, c = torch.rand(3, 9), torch.randn(3, 9), torch.randn(3)
    assert torch.allclose(
        step_to_plane(z, w * scale, c * scale, norm), step_to_plane(z, w, c, norm), atol=1e-5
    )


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_to_go_by(norm):
    """No slope, no gap, or neither a number: it ends, and what is sound elsewhere stays so."""
    z, w, c = torch.full((4, 5), 0.5), torch.ones(4, 5), torch.tensor([1.0, 0.0, math.nan, 1.0])
    w[0] = 0
    d = step_to_plane(z, w, c, norm)
    assert (d[:2] == 0).all()
    assert float(d[3].sum()) == pytest.approx(-1)
