"""The native code gives what torch gives, gradients included, and steps aside where it cannot."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from opnorm.norms.exact import native
from opnorm.norms.exact.by_layer import conv_l1, conv_linf, exact_all, l1, linear_l1, linear_linf, linf
from tests.norms.cases import (
    CASES,
    PADDED_CASES,
    TRANSPOSED_CASES,
    WEIGHTLESS_CASES,
    convolutions,
    matrix,
    on_cases,
    pq,
    transposed_convolutions,
)


@pytest.fixture(scope="module", autouse=True)
def code():
    if not native.build():
        pytest.skip("no C compiler")
    yield
    native.unload()


def check(layer, shape):
    M = matrix(layer, shape)
    for p, norm in ((1, l1), (math.inf, linf)):
        value = norm(layer, shape)
        with torch.no_grad():
            assert torch.equal(norm(layer, shape), value)
        assert float(value) == pytest.approx(pq(M, p), rel=1e-12, abs=1e-300)
        (grad,) = torch.autograd.grad(value, layer.weight)
        assert float((grad * layer.weight).sum()) == pytest.approx(float(value), rel=1e-12, abs=1e-300)


@on_cases(CASES + PADDED_CASES + TRANSPOSED_CASES)
def test_equals_the_matrix(layer, shape):
    check(layer, shape)


@given(st.one_of(convolutions(), transposed_convolutions()))
@settings(max_examples=300)
def test_any_layer(case):
    check(*case)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((64, 48, 3, 3), 1), ((130, 7, 5, 5), 2), ((33, 1, 7, 7), 33), ((5, 515, 1, 1), 1), ((700, 300), 0)],
)
def test_large_weights_and_threads(threads, dtype, shape, groups):
    K = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype, requires_grad=True)
    calls = (
        [functools.partial(f, K, (9, 9), s, 1, 1, groups) for f in (conv_l1, conv_linf) for s in (1, 2)]
        if groups
        else [lambda: linear_l1(K), lambda: linear_linf(K)]
    )
    torch.set_num_threads(threads)
    try:
        fast = [(value := call()).detach() for call in calls]
        grads = [torch.autograd.grad(call(), K)[0] for call in calls]
        with torch.no_grad():
            assert [float(call()) for call in calls] == [float(v) for v in fast]
    finally:
        torch.set_num_threads(1)
    native.unload()
    assert value.dtype == dtype
    slow = [call() for call in calls]
    assert torch.allclose(
        torch.stack(fast), torch.stack(slow), rtol=1e-5 if dtype == torch.float32 else 1e-13
    )
    for value, grad in zip(slow, grads, strict=True):
        assert torch.equal(torch.autograd.grad(value, K)[0], grad)
    assert native.build()


@pytest.mark.parametrize("p", [1, math.inf])
def test_exact_all(p):
    norm = l1 if p == 1 else linf
    same = [c[1:] for c in CASES + TRANSPOSED_CASES]
    mixed = [*same, *(c[1:] for c in PADDED_CASES + WEIGHTLESS_CASES), (nn.Linear(2, 3), (2,))]
    for chosen in (same, mixed):
        values = exact_all(chosen, p)
        assert values.tolist() == [float(norm(*c)) for c in chosen]
        weights = [layer.weight for layer, _ in chosen if hasattr(layer, "weight")]
        grads = torch.autograd.grad(values.pow(2).sum(), weights)
        for weight, grad, c in zip(
            weights, grads, [c for c in chosen if hasattr(c[0], "weight")], strict=True
        ):
            assert torch.equal(grad, torch.autograd.grad(norm(*c) ** 2, weight)[0].to(grad.dtype))
        with torch.no_grad():
            assert torch.equal(exact_all(chosen, p), values)


def test_frozen_layers_among_others_and_second_derivatives():
    layers = [(nn.Linear(3, 4), (3,)), (nn.Linear(3, 4).requires_grad_(False), (3,))]
    values = exact_all(layers, 1)
    (grad,) = torch.autograd.grad(values.pow(2).sum(), layers[0][0].weight, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), layers[0][0].weight)
    sign = grad.detach().sign()
    assert torch.allclose(second, 2 * sign.sum() * sign)


def test_what_it_leaves_to_torch(monkeypatch):
    K = torch.randn(4, 4, 3, 3)
    calls, real = [], native.largest
    monkeypatch.setattr(native, "largest", lambda w, p: calls.append(1) or real(w, p))
    conv_l1(K.bfloat16(), (5, 5))
    conv_l1(K.to(memory_format=torch.channels_last), (5, 5))
    conv_l1(K, (1, 1), padding=1, padding_mode="circular")
    linear_l1(torch.zeros(0, 3))
    torch.func.vmap(lambda k: conv_l1(k, (5, 5)))(K[None])
    torch.func.jvp(lambda k: conv_l1(k, (5, 5)), (K,), (K,))
    assert not calls
    conv_l1(K, (5, 5))
    assert calls


def test_nan_stays_nan():
    for shape in ((40, 30), (3, 2)):
        W = torch.randn(shape)
        W[1, 1] = math.nan
        assert math.isnan(linear_l1(W))
        assert math.isnan(linear_linf(W))


def test_without_a_compiler(monkeypatch):
    native.unload()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CC", "")
    assert not native.build()
    assert not native.build("/bin/no-such-compiler")
    assert not native.built()
    assert float(linear_l1(torch.ones(2, 3))) == 2
    monkeypatch.undo()
    assert not native.build("false")  # a program that is there and does not compile
    assert native.build()
    assert native.built()


def test_without_python_headers(monkeypatch):
    K = torch.randn(4, 4, 3, 3)
    want = conv_linf(K, (5, 5))
    native.unload()
    monkeypatch.setattr(native, "_python_flags", lambda: ("-DPYTHON", "-I/no/such/folder"))
    assert native.build()
    assert native._callable is native._library  # ctypes
    assert torch.equal(conv_linf(K, (5, 5)), want)
    native.unload()
    monkeypatch.undo()
    assert native.build()
    assert native._callable is not native._library


def test_the_module_refuses_what_is_no_call():
    with pytest.raises(TypeError, match="expected weight, plan, threads and value, got 1"):
        native._callable.largest_f32(1)
    with pytest.raises(TypeError):
        native._callable.largest_f64("a", 1, 1, 1)
