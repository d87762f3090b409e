"""From a call to its object and back, and what a wrong name, parameter or type is answered."""

import contextlib
import inspect
import math
import re
from collections.abc import Sequence

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from opnorm import attacks, regularizers
from opnorm.errors import AttackError, OpnormError, SpecError
from opnorm.spec import (
    FAMILIES,
    Call,
    build,
    calls_in,
    check,
    factory,
    fill,
    full,
    names,
    parse,
    resolve,
    short,
    spec_of,
)
from opnorm.training import schedules
from tests.property_tests import examples
from tests.spec.values import values

# ---------------------------------------------------------------- names and objects


def test_hf_is_a_data_set_where_one_is_meant_and_a_network_elsewhere():
    """The only name of two families, as the hub has both."""
    of_data, of_model = (resolve(parse('hf("me/x")'), kind) for kind in ("data set", "model"))
    assert of_data is not of_model
    assert resolve(parse('hf("me/set", size=8)')) is of_data
    assert resolve(parse('hf("me/net", arch=cnn())')) is of_model
    assert full('file("w.pt", arch=hf("me/net"))', "model") == parse(
        'file(path="w.pt", arch=hf(repo="me/net", revision=None, arch=None), key=None, strict=True)'
    )


def test_every_name_belongs_to_one_family():
    every = [n for kind in FAMILIES for n in names(kind) if (kind, n) != ("data set", "hf")]
    assert len(every) == len(set(every)), "a nested call could mean either"
    for kind in FAMILIES:
        for name in names(kind):
            if kind == "study":
                with pytest.raises(SpecError, match="unknown name"):  # no argument of another call
                    resolve(Call(name))
            else:
                assert name == "hf" or resolve(Call(name), kind) is resolve(Call(name))
            signature = inspect.signature(resolve(Call(name), kind))
            assert all(p.kind is not p.VAR_KEYWORD for p in signature.parameters.values())


_pool = {
    bool: st.booleans(),
    int: st.integers(-1, 20),
    float: st.sampled_from([0.0, 0.1, 8 / 255, 0.5, 1.0, 2.0, 1, 2, math.inf, -1.0, 0.9, 1e-3]),
    str: st.sampled_from(["ce", "cw", "eval", "train", "as is", "test", "nothing"]),
    tuple: st.sampled_from([(), (1,), (1, 8, 8), (3, 8, 8), (0.1, 0.2), (1, 2), (2, 1), "x"]),
    type(None): st.none() | st.sampled_from([0.1, 3, "x"]),
}


@st.composite
def calls(draw, kind, wild=False):
    """A call of a known name with arguments like its defaults, or of any type."""
    name = draw(
        st.sampled_from([n for n in names(kind) if n not in ("file", "hf", "parquet", "folder", "tour")])
    )
    pairs = []
    for p in inspect.signature(resolve(Call(name), kind)).parameters.values():
        if draw(st.booleans()) and p.default is not p.empty:
            continue
        default = 1 if p.default is p.empty else p.default
        if type(default) not in _pool:  # an attack, as the call that makes it
            default = spec_of(default)
        kinds = _pool.get(type(default), st.none())
        pairs.append((p.name, draw(st.one_of(*_pool.values()) if wild else kinds | st.just(default))))
    return Call(name, (), tuple(pairs))


KINDS = [k for k in FAMILIES if k != "study"]


@pytest.mark.parametrize("kind", KINDS)
def test_string_to_object_to_string(kind):
    built = 0

    @given(calls(kind))
    @example(Call(names(kind)[0]))
    @examples(8 if kind == "model" else 25)  # large networks take a second each
    def round_trip(call):
        nonlocal built
        text = str(call)
        try:
            made = build(text, kind)
        except OpnormError:
            return
        built += 1
        assert full(spec_of(made), kind) == full(text, kind)
        assert full(str(full(text, kind)), kind) == full(text, kind)
        assert full(short(text, kind), kind) == full(text, kind)
        again = build(str(spec_of(made)), kind)
        assert spec_of(again) == spec_of(made)

    round_trip()
    assert built > 0


def refused(call, kind=None):
    """Whether a call is refused before its function is imported; then it cannot be built either."""
    try:
        check(call, kind)
    except OpnormError:
        with pytest.raises(OpnormError):
            build(call, kind)
        return True
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_fuzz_build(kind):
    @given(calls(kind, wild=True))
    @examples(60)
    def try_it(call):
        if refused(call, kind):
            return
        try:
            build(call, kind)
        except (
            OpnormError
        ) as e:  # no value is wrong then: an object, such as an attack, or the package timm is missing
            assert re.search(r": expected an? [A-Z]|expected a network|timm", str(e)), call  # noqa: PT017

    try_it()


@given(
    st.sampled_from([n for k in KINDS for n in names(k) if n not in ("hf", "tour")]),
    st.lists(values, max_size=2),
)
@examples(150)
def test_fuzz_build_with_any_positional_arguments(name, given):
    call = Call(name, tuple(v if not isinstance(v, int) or abs(v) < 50 else 50 for v in given))
    if not refused(call):
        with contextlib.suppress(OpnormError):
            build(call)


def test_defaults_named_or_not_give_one_full_form():
    want = full("pgd()")
    for same in (
        "pgd",
        "pgd(inf)",
        "pgd(norm=inf)",
        "pgd(eps=8/255, steps=10)",
        "pgd(steps=10, eps=8/255)",
        "pgd(inf, 8/255)",
    ):
        assert full(same) == want
        assert str(short(same)) == "pgd()"
    assert full("pgd(steps=11)") != want
    assert str(short("pgd(inf, 4/255, steps=10)")) == "pgd(eps=4/255)"
    assert "step=None" in str(want)


def test_what_is_public_but_not_registered_is_no_name(monkeypatch):
    monkeypatch.setattr(attacks, "__all__", [*attacks.__all__, "AutoAttack"])
    with pytest.raises(SpecError, match="unknown attack 'AutoAttack'; did you mean 'autoattack'"):
        build("AutoAttack()", "attack")
    with pytest.raises(SpecError, match="kind='atack': expected one of"):
        factory("atack")


def test_objects_remember_their_call():
    assert str(spec_of(attacks.pgd(steps=3))) == "pgd(steps=3)"
    assert str(spec_of(attacks.pgd(2, 0.5))) == "pgd(norm=2, eps=0.5)"
    assert str(spec_of(schedules.step([1, 2]))) == "step(milestones=(1, 2))"
    with pytest.raises(SpecError, match="was not made by a named factory"):
        spec_of(nn.Linear(1, 1))
    with pytest.raises(SpecError, match="was not made by a named factory"):
        spec_of([])


def test_errors_say_what_was_meant():
    with pytest.raises(SpecError, match=r"unknown attack 'pdg'; did you mean 'pgd'\?; known: .*fgsm, pgd"):
        build("pdg()", "attack")
    with pytest.raises(
        SpecError, match=r"no parameter 'step_size'; did you mean 'steps'\?|did you mean 'step'"
    ):
        build("pgd(step_size=1)")
    with pytest.raises(
        SpecError,
        match=r"it accepts: eps=8/255, norm=inf, random_start=False, ascent='box', mode='eval', seed=0",
    ):
        build("fgsm(epsilon=1)")
    with pytest.raises(SpecError, match=r"too many positional arguments; it accepts: "):
        build("plain(0.1, 1)")
    with pytest.raises(SpecError, match=r"multiple values for argument 'norm'; it accepts: "):
        build("pgd(inf, norm=inf)")
    with pytest.raises(SpecError, match=r"missing a required argument: 'p'; it accepts: p, beta=0\.001"):
        build("norm_decay()")
    with pytest.raises(AttackError, match="eps=-1"):
        build("pgd(eps=-1)")
    with pytest.raises(SpecError, match="unknown model 'pgd'"):
        build("pgd()", "model")
    with pytest.raises(SpecError, match="got 'norm' twice"):
        build(Call("pgd", (), (("norm", 2), ("norm", 2))))


def test_fill():
    call = fill(parse("cnn(width=4)"), classes=3, in_shape=(1, 8, 8), unknown=1)
    assert str(call) == "cnn(width=4, classes=3, in_shape=(1, 8, 8))"
    assert str(fill(parse("cnn(classes=7)"), classes=3)) == "cnn(classes=7)"
    assert str(fill(parse("cnn((1, 8, 8), 7)"), classes=3, in_shape=(3, 4, 4))) == "cnn((1, 8, 8), 7)"
    assert str(fill(parse("cnn(mean=0, std=None)"), mean=0.3, std=0.4)) == "cnn(mean=0, std=0.4)"
    assert str(fill(parse("robust_accuracy(points=None)"), points=5)) == "robust_accuracy(points=None)"
    nested = fill(parse('file("w.pt", arch=cnn())'), classes=3)
    assert str(nested) == 'file("w.pt", arch=cnn(classes=3))'
    model = build("mlp(width=2, depth=1)", "model", in_shape=(1, 2, 2), classes=5)
    assert model(torch.rand(1, 1, 2, 2)).shape == (1, 5)
    assert str(spec_of(model)) == "mlp(in_shape=(1, 2, 2), classes=5, width=2, depth=1)"


def test_calls_in_finds_calls_at_any_depth():
    call = parse("f(g(h), ((k(),), 1), a=(m(),))")
    assert [c.name for c in calls_in(call)] == ["f", "g", "h", "k", "m"]


def test_family_members_by_their_dotted_name():
    assert str(spec_of(build("opnorm.attacks.pgd(steps=2)"))) == "pgd(steps=2)"
    assert isinstance(regularizers.chain([]), regularizers.Hooks)


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("autoattack(bf16='x')", "bf16='x': expected True or False or None"),
        ("pgd(random_start='no')", "random_start='no': expected True or False"),
        ("square(stop_at_success=0)", "stop_at_success=0: expected True or False"),
        ("weight_decay(biases=None)", "biases=None: expected True or False"),
        ("sgd(nesterov='false')", "nesterov='false': expected True or False"),
        ("robust_accuracy(largest_first='True')", "largest_first='True': expected True or False"),
        ("jacobian_spectrum(attack='pgd')", "attack='pgd': expected an Attack"),
        ("trades(mode=True)", "mode=True: expected"),
    ],
)
@pytest.mark.parametrize("by", ["text", "python"])
def test_values_of_another_type_are_refused(call, why, by):
    parsed = parse(call)
    with pytest.raises(OpnormError, match=why):
        build(parsed) if by == "text" else resolve(parsed)(**dict(parsed.kwargs))


def _slow(stream: bool = False, sizes: Sequence[float] = (1,), count: int = 1):
    assert stream in (True, False), "what reads data is not called with a flag that is none"
    return {"stream": stream, "sizes": sizes}


_with_a_flag = factory("data set")(_slow)


def test_values_of_other_classes_that_mean_the_same_fit():
    import numpy as np

    assert _with_a_flag(True, range(3), np.int64(2)) == {"stream": True, "sizes": range(3)}
    for sizes in (np.array([1.5, 2.0]), torch.tensor([1.5, 2.0])):
        assert _with_a_flag(np.True_, sizes)["sizes"] is sizes
    with pytest.raises(SpecError, match="stream=2: expected True or False"):
        _with_a_flag(stream=2)
    for sizes in ((1.5, "a"), np.ones((2, 2)), torch.tensor(1.5)):
        with pytest.raises(SpecError, match=r"sizes=(.|\n)*: expected \(a number, ...\)"):
            _with_a_flag(sizes=sizes)
    with pytest.raises(TypeError, match=r"_slow\(\) got an unexpected keyword argument 'steam'"):
        _with_a_flag(steam=True)


def test_a_default_that_is_an_object_is_written_out_and_left_out_like_any_other():
    whole = full("jacobian_spectrum()", "analysis")
    assert full(str(whole), "analysis") == whole
    assert "steps=10" in str(whole), "the defaults of the default too"
    assert str(short("jacobian_spectrum(attack=pgd(norm=2, eps=0.5))", "analysis")) == "jacobian_spectrum()"
    assert "eps=0.25" in str(short("jacobian_spectrum(attack=pgd(norm=2, eps=0.25))", "analysis"))
