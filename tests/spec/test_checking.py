"""What a call is refused for before its function is imported: the source says the same as the functions themselves."""

import inspect
import sys
from typing import Any, Literal, get_args, get_origin

import pytest

from opnorm.errors import ModelError, OpnormError, SpecError
from opnorm.spec import (
    FAMILIES,
    Call,
    _checking,
    arguments,
    build,
    calls_in,
    check,
    full,
    known_names,
    names,
    parse,
    part_call,
    resolve,
    spec_of,
)
from opnorm.spec._source import sources


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_source_says_what_the_functions_take(kind):
    assert known_names(kind) == names(kind) == sorted(sources(kind))
    for name, source in sources(kind).items():
        read, true = source.signature, inspect.signature(resolve(Call(name), kind))
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
    read = [p for kind in FAMILIES for s in sources(kind).values() for p in s.signature.parameters.values()]
    assert {p.name for p in read if p.annotation is Any} == {"arch", "attack", "certify", "model"}


def test_a_function_begins_with_the_checks_of_its_values():
    """They are read as calls: with a nested call, or a name of another module, they would not be carried out early."""
    for kind in FAMILIES:
        for name, source in sources(kind).items():
            for line in source.checks:
                for part in calls_in(line.call):
                    assert part is line.call or not (part.args or part.kwargs), f"{name}: {part}"
            settings = {p.name for p in source.signature.parameters.values() if _is_judged(p.annotation)}
            assert settings <= set().union(*(line.names for line in source.checks), TEXTS), name


TEXTS = {"blocks", "data", "key", "layer", "model", "name", "only", "path", "revision"}
"""Parameters of which every text may be right: names, paths, patterns."""


def _is_judged(annotation: Any) -> bool:
    """Whether not every value of a type is right."""
    return annotation is not Any and get_origin(annotation) is not Literal and not _is_truth(annotation)


def _is_truth(annotation: Any) -> bool:
    return annotation is bool or set(get_args(annotation)) == {bool, type(None)}


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        ("sgd(lr=-1)", "optimizer"),
        ("sgd(momentum=0, nesterov=True)", "optimizer"),
        ("step(milestones=(3, 2))", "schedule"),
        ("cosine(warmup=-1)", "schedule"),
        ("random_resized_crop(scale=(0.5, 2))", "augmentation"),
        ("cnn(width=0)", "model"),
        ("cnn(mean=(1, 2))", "model"),
        ("cnn(std=1e-46)", "model"),
        ("resnet(depth=21)", "model"),
        ("resnet(norm='gn')", "model"),
        ("timm('x', classes=0)", "model"),
        ("parallel_convs(kernels=((3, 3, 0, 1),))", "model"),
        ("hf('me/set', size=0)", "data set"),
        ("hf('me/set', config='../x')", "data set"),
        ("folder('/nowhere', center_crop=0)", "data set"),
        ("pgd(norm=0.5)", "attack"),
        ("pgd(eps=8)", "attack"),
        ("pgd(loss='kl', random_start=False)", "attack"),
        ("apgd(loss='kl')", "attack"),
        ("fab(norm=3)", "attack"),
        ("autoattack(version='slow')", "attack"),
        ("autoattack(attacks=('square', 'x'))", "attack"),
        ("autoattack(certify=proof(), mode='train')", "attack"),
        ("autoattack(certify=proof(method='x'))", "attack"),
        ("pgd_at(norm=0.5)", "objective"),
        ("trades(start='point')", "objective"),
        ("trades(passes=4)", "objective"),
        ("mixed(lam=0, clean=0)", "objective"),
        ("norm_decay(p=2)", "regularizer"),
        ("norm_decay(p=1, form='x')", "regularizer"),
        ("weissi(eta=(1, 1))", "regularizer"),
        ("dd_onr(p=3, alpha=0.1)", "regularizer"),
        ("svc(every=0)", "regularizer"),
        ("jacobian_norms(alpha=0)", "analysis"),
        ("jacobian_spectrum(attack=pgd(steps=-1))", "analysis"),
        ("norm_table(ords=(3,))", "analysis"),
        ("robust_accuracy(attack='apgd', norm=3)", "analysis"),
        ("robust_accuracy(attack='apgd', version='rand')", "analysis"),
        ("robustness_curve(eps=(0,))", "analysis"),
        ("robustness_curve(eps=(0.1, 3))", "analysis"),
        ("wen_bound(v_min=-1)", "analysis"),
        ("margins(split='valid')", "analysis"),
        ("tour(lr=0)", "study"),
        ("liang2021(seeds=0)", "study"),
        ("liang2021(part='table9')", "study"),
        ("liang2021('nosuch')", "study"),
        ("wen2020(part='figure8b')", "study"),
        ("roth2020(part='')", "study"),
    ],
)
def test_values_are_refused_early_in_the_words_of_the_function(call, kind):
    with pytest.raises(OpnormError) as early:
        check(call, kind)
    with pytest.raises(OpnormError) as late:
        build(call, kind)
    assert (type(early.value), str(early.value)) == (type(late.value), str(late.value))


def test_a_value_that_is_only_known_later_is_not_judged_early(tmp_path, monkeypatch):
    (tmp_path / "of_my_own.py").write_text("def width():\n    return 4")
    monkeypatch.chdir(tmp_path)
    check("cnn(width=of_my_own.width())", "model")
    with pytest.raises(ModelError, match="depth=0"):
        check("mlp(depth=0)", "model")


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
        ("liang2021(part=2)", "study"),
        ("tour(data=digits())", "study"),
        ("liang2021(data=digits(), part='table1')", "study"),
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


def test_arguments_by_their_parameters(tmp_path, monkeypatch):
    call = parse("tour('digits()', seeds=2)")
    assert arguments(call, "study") == {"data": "digits()", "seeds": 2}
    monkeypatch.setattr(_checking, "sources", lambda kind: {})  # installed without the source
    assert arguments(call, "study") == {"data": "digits()", "seeds": 2}
    (tmp_path / "a_study_of_mine.py").write_text("raise SystemExit('was run')")
    monkeypatch.chdir(tmp_path)
    assert arguments(parse("a_study_of_mine.build('digits()', seeds=2)"), "study") == {}


def test_own_code_is_looked_for_but_not_imported(tmp_path, monkeypatch):
    (tmp_path / "mine_and_not_run.py").write_text("raise SystemExit('was run')")
    monkeypatch.chdir(tmp_path)
    check("mine_and_not_run.build(width=3)", "model")
    assert "mine_and_not_run" not in sys.modules


def test_a_part_is_named_after_its_whole():
    call = Call("a.b", (), (("seeds", 2),))
    assert str(part_call(call, {"a"})) == 'a(part="b", seeds=2)'
    assert part_call(call, {"b"}) is call
