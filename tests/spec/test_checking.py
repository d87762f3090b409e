"""What a call is refused for before its function is imported: the source says the same as the functions themselves."""

import inspect
import sys
from typing import Any

import pytest

from opnorm.errors import OpnormError, SpecError
from opnorm.spec import FAMILIES, Call, build, check, full, known_names, names, part_call, resolve, spec_of
from opnorm.spec._source import signatures


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_source_says_what_the_functions_take(kind):
    assert known_names(kind) == names(kind) == sorted(signatures(kind))
    for name, read in signatures(kind).items():
        true = inspect.signature(resolve(Call(name), kind))
        assert list(read.parameters) == list(true.parameters), name
        for a, b in zip(read.parameters.values(), true.parameters.values(), strict=True):
            assert a.kind == b.kind
            assert a.annotation in (b.annotation, Any), f"{name}({a.name}: {a.annotation})"
            if isinstance(a.default, Call):
                assert full(a.default) == full(spec_of(b.default))
            else:
                assert a.default == b.default
                assert type(a.default) is type(b.default)


def test_the_types_of_all_settings_but_objects_are_read():
    read = [p for kind in FAMILIES for s in signatures(kind).values() for p in s.parameters.values()]
    assert {p.name for p in read if p.annotation is Any} == {"arch", "attack", "certify", "model"}


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        ("cnnn()", "model"),
        ("cnn(widht=3)", "model"),
        ("cnn(1, 2, 3, 4, 5, 6, 7, 8)", "model"),
        ("cnn(width='x')", "model"),
        ("cnn(width=True)", "model"),
        ("cnn(in_shape=(1, 2))", "model"),
        ("file()", "model"),
        ("file('x', arch=cnnn())", "model"),
        ("pgd()", "objective"),
        ("pgd_at(start='here')", "objective"),
        ("pgd_at(step='x')", "objective"),
        ("step(milestones=3)", "schedule"),
        ("step(milestones=('a',))", "schedule"),
        ("random_resized_crop(scale=(1, 2, 3))", "augmentation"),
        ("autoattack(certify=prof())", "attack"),
        ("autoattack(attacks=('apgd-ce', 3))", None),
        ("jacobian_spectrum(atack=pgd())", "analysis"),
        ("jacobian_spectrum(attack=pgd(stepss=3))", "analysis"),
        ("tour(size='big')", "study"),
        ("liang2021(seed=3)", "study"),
        ("nosuch()", None),
        ("tour()", None),
        ("nowhere_at_all.build()", "model"),
        ("os.system('true')", None),
    ],
)
def test_what_is_refused_early_is_refused_in_the_same_words_later(call, kind):
    with pytest.raises(SpecError) as early:
        check(call, kind)
    with pytest.raises(OpnormError) as late:
        build(call, kind)
    value_is_wrong = f"{call.partition('(')[0]}(): "  # then the function's own words are more exact
    assert str(early.value) == str(late.value) or str(early.value).startswith(value_is_wrong)


@pytest.mark.parametrize(
    "call",
    ["cnn", "hf('me/net', arch=cnn())", "hf('me/set', size=8)", "autoattack(certify=proof(), bf16=None)", "pgd(inf, 8/255)",
     "jacobian_spectrum(attack=fgsm(eps=0.1))", "parallel_convs(kernels=((3, 3, 4, 4),))", "file('nope', arch=cnn())"],
)  # fmt: skip
def test_what_may_be_right_passes(call):
    check(call)


def test_own_code_is_looked_for_but_not_imported(tmp_path, monkeypatch):
    (tmp_path / "mine_and_not_run.py").write_text("raise SystemExit('was run')")
    monkeypatch.chdir(tmp_path)
    check("mine_and_not_run.build(width=3)", "model")
    assert "mine_and_not_run" not in sys.modules


def test_a_part_is_named_after_its_whole():
    call = Call("a.b", (), (("seeds", 2),))
    assert str(part_call(call, {"a"})) == 'a(part="b", seeds=2)'
    assert part_call(call, {"b"}) is call
