"""Weights in files."""

import argparse
import json
import os
import pickle
import time
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations

from opnorm.errors import ModelError, OpnormError, SpecError
from opnorm.models import cnn, file, mlp, resnet, save
from opnorm.runs.identity import identity
from opnorm.spec import build, full, parse, spec_of


def small(seed=0):
    torch.manual_seed(seed)
    return resnet(depth=8, in_shape=(1, 8, 8), classes=3, width=2, mean=0.4)


def test_our_own_file_says_what_it_belongs_to(tmp_path):
    model = small()
    model[2].running_mean.add_(1)
    path = tmp_path / "w.safetensors"
    save(model, path)
    back = file(str(path))
    assert back.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in model.state_dict().items())
    assert str(spec_of(back)) == f'file(path="{path}")', "and not resnet(...), which has other weights"
    assert str(spec_of(model)).startswith("resnet(depth=8, ")
    assert build(f'file("{path}")', "model")(torch.rand(1, 1, 8, 8)).shape == (1, 3)


@pytest.mark.parametrize("form", ["safetensors", "pt", "pth", "wrapped", "parallel"])
def test_other_peoples_files_with_arch(tmp_path, form):
    state = small().state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth" if form == "pth" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(
            {"state_dict": state, "epoch": 3} if form == "wrapped"
            else {f"module.{k}": v for k, v in state.items()} if form == "parallel" else state,
            path,
        )  # fmt: skip
    arch = "resnet(depth=8, in_shape=(1, 8, 8), classes=3, width=2)"
    model = build(f'file("{path}", arch={arch})', "model")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    with pytest.raises(ModelError, match="does not record its network; pass arch="):
        file(str(path))


def test_arch_is_filled_from_the_data(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(small().state_dict(), path)
    model = build(f'file("{path}", arch=resnet(depth=8, width=2))', "model", in_shape=(1, 8, 8), classes=3)
    assert model(torch.rand(1, 1, 8, 8)).shape == (1, 3)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("save_it", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_pickle_does_not_run(tmp_path, save_it):
    path, trace = tmp_path / "w.pt", tmp_path / "was-here"
    save_it({"weight": Malicious(str(trace))}, path)
    with pytest.raises(ModelError, match="cannot be read as weights"):
        file(str(path), arch=nn.Linear(1, 1))
    assert not trace.exists()


def with_metadata(path, call):
    save_file(small().state_dict(), path, {"opnorm.model": call})
    return str(path)


@pytest.mark.parametrize(
    "call",
    [
        'torch.hub.load("evil/repo", "x", trust_repo=True)',
        'torch.load("evil.pt", weights_only=False)',
        'resnet(depth=torch.load("evil.pt"))',
        "opnorm.cli.main()",
        'mlp(width=(numpy.load("x"),))',
    ],
)
def test_a_file_does_not_choose_which_code_is_run(tmp_path, call):
    path = with_metadata(tmp_path / "w.safetensors", call)
    with pytest.raises(ModelError, match="which is not opnorm's own; pass arch="):
        file(path)


@pytest.mark.parametrize(
    "recorded", ["os._exit(1)", "(" * 500, "mlp(" + "1, " * 5000 + ")", "mlp(x=" + "[" * 90, ""]
)
def test_a_recorded_network_that_cannot_be_read_is_a_short_message_with_the_file(tmp_path, recorded):
    path = with_metadata(tmp_path / "w.safetensors", recorded)
    with pytest.raises(ModelError) as caught:
        file(path)
    assert len(str(caught.value)) < 600 + len(path)
    assert path in str(caught.value)


@pytest.mark.parametrize("call", ["pgd()", "nonsense(", "resnet(depth=7)", "no_such_net()", ""])
def test_damaged_metadata(tmp_path, call):
    with pytest.raises((ModelError, SpecError)):
        file(with_metadata(tmp_path / "w.safetensors", call))


def test_a_file_that_names_itself_does_not_hang(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(OpnormError):
        file(with_metadata(path, f'file("{path}")'))


def test_missing_file(tmp_path):
    save(small(), tmp_path / "weights.safetensors")
    with pytest.raises(
        ModelError, match=r"no file .*wieghts.safetensors; did you mean 'weights.safetensors'\?"
    ):
        file(str(tmp_path / "wieghts.safetensors"))
    with pytest.raises(ModelError, match=r"no file .*searched in"):
        file(str(tmp_path / "nowhere" / "x.pt"))
    assert same(file(str(tmp_path)), small().state_dict()), "the only file of its folder"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"has no weights: expected model\.safetensors"):
        file(str(tmp_path / "empty"))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.99])
def test_truncated_and_damaged_files(tmp_path, name, keep):
    path = tmp_path / name
    if name.endswith(".pt"):
        torch.save(small().state_dict(), path)
    else:
        save(small(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(ModelError, match="cannot"):
        file(str(path), arch=small())
    path.write_bytes(b"\xff" * 500)
    with pytest.raises(ModelError, match="cannot"):
        file(str(path), arch=small())


def test_what_is_no_state_dict(tmp_path):
    path = tmp_path / "w.pt"
    for thing in ([1, 2], {"a": 1}, torch.rand(3)):
        torch.save(thing, path)
        with pytest.raises(ModelError, match="expected a state dict of tensors"):
            file(str(path), arch=small())


def test_weights_of_another_network(tmp_path):
    path = tmp_path / "w.safetensors"
    save(small(), path)
    with pytest.raises(ModelError, match=r"another network than arch: .*\(3, 8\), expected \(5, 8\)"):
        file(str(path), arch=resnet(depth=8, in_shape=(1, 8, 8), classes=5, width=2))
    with pytest.raises(ModelError, match=r"missing 4\.bias, .*; unexpected .* and .* more"):
        file(str(path), arch=mlp((1, 8, 8)))
    untouched = mlp((1, 8, 8), width=2)
    before = {k: v.clone() for k, v in untouched.state_dict().items()}
    with pytest.raises(ModelError):
        file(str(path), arch=untouched)
    assert all(torch.equal(v, before[k]) for k, v in untouched.state_dict().items())
    with pytest.raises(ModelError, match="arch='resnet': expected a network"):
        file(str(path), arch="resnet")


def test_save_refuses_other_names_and_keeps_tied_weights(tmp_path):
    with pytest.raises(ModelError, match=r"ends in \.safetensors"):
        save(small(), tmp_path / "w.pt")
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    save(model, tmp_path / "w.safetensors")
    assert torch.equal(
        file(str(tmp_path / "w.safetensors"), arch=nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))[1].weight,
        model[0].weight,
    )


def test_save_with_a_call(tmp_path):
    model = nn.Linear(2, 2)
    save(model, tmp_path / "w.safetensors", "resnet(depth=8)")
    with pytest.raises(ModelError, match="another network"):
        file(str(tmp_path / "w.safetensors"))


# ---------------------------------------------------------------- checkpoints as people have them


def renamed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def nested_wrappers(state):
    return {"features.module._orig_mod." + name if name[0] in "12" else name: t for name, t in state.items()}


STATE = small().state_dict()
FORMS = {
    "compiled in parallel": renamed(STATE, "module._orig_mod."),
    "parallel in compiled": renamed(STATE, "_orig_mod.module."),
    "thrice": renamed(STATE, "module.module._orig_mod."),
    "average": renamed(STATE, "module.") | {"n_averaged": torch.tensor(3)},
    "Lightning": {"state_dict": renamed(STATE, "model.") | {"criterion.weight": torch.ones(3)}, "epoch": 3},
    "Lightning, compiled": {"state_dict": renamed(STATE, "net._orig_mod.")},
    "net": {"net": STATE, "acc": 93.2},
    "model": {
        "model": STATE,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": []},
    },
    "model_state_dict": {"model_state_dict": renamed(STATE, "module."), "loss": torch.tensor(1.0)},
    "only an average": {"state_dict_ema": STATE},
    "deep": {"checkpoint": {"ema": {"model": renamed(STATE, "module.")}}},
}


def same(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_are_matched_with_the_network(tmp_path, form):
    torch.save(FORMS[form], tmp_path / "w.pt")
    assert same(file(str(tmp_path / "w.pt"), arch=small(seed=1)), STATE)


class Holder(nn.Module):
    """A network with a part of its own called "module"."""

    def __init__(self, twice=False):
        super().__init__()
        self.module, self.head = nn.Linear(4, 3), nn.Linear(3, 2)
        if twice:
            self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.head(self.module(x))


@pytest.mark.parametrize(
    "wrap", [lambda m: m, nn.DataParallel, torch.compile, lambda m: torch.compile(nn.DataParallel(m))]
)
@pytest.mark.parametrize("twice", [False, True])
def test_a_part_called_module_and_wrappers(tmp_path, wrap, twice):
    net = Holder(twice)
    torch.save(wrap(net).state_dict(), tmp_path / "w.pt")
    assert same(file(str(tmp_path / "w.pt"), arch=Holder(twice)), net.state_dict())
    assert same(file(str(tmp_path / "w.pt"), arch=wrap(Holder(twice))), wrap(net).state_dict())
    save(wrap(net), tmp_path / "w.safetensors")
    assert load_file(tmp_path / "w.safetensors").keys() == net.state_dict().keys(), "unwrapped names"
    assert same(file(str(tmp_path / "w.safetensors"), arch=Holder(twice)), net.state_dict())


def test_wrapped_parts_of_a_network(tmp_path):
    def parts():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2))

    net, wrapped = parts(), parts()
    wrapped[0], wrapped[2] = nn.DataParallel(wrapped[0]), torch.compile(wrapped[2])
    save(wrapped, tmp_path / "w.safetensors")
    assert load_file(tmp_path / "w.safetensors").keys() == net.state_dict().keys()
    torch.save(wrapped.state_dict(), tmp_path / "w.pt")
    assert same(
        file(str(tmp_path / "w.pt"), arch=nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2))),
        net.state_dict(),
    )


def test_a_wrapped_network_of_ours_comes_back(tmp_path):
    save(nn.DataParallel(small()), tmp_path / "w.safetensors")
    assert same(file(str(tmp_path / "w.safetensors")), STATE)


def test_several_that_fit(tmp_path):
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    path = str(tmp_path / "w.pt")
    torch.save({"state_dict": STATE, "state_dict_ema": other}, path)
    with pytest.warns(
        UserWarning, match="and not the average at state_dict_ema; key='state_dict_ema' takes that"
    ):
        assert same(file(path, arch=small(1)), STATE)
    assert same(file(path, arch=small(1), key="state_dict_ema"), other)
    torch.save({"student": STATE, "teacher": other}, path)
    with pytest.raises(
        ModelError, match=r"several state dicts.*at student, teacher; expected one. Name it: key='student'"
    ):
        file(path, arch=small(1))
    assert same(file(path, arch=small(1), key="teacher"), other)
    with pytest.raises(
        ModelError, match="no weights of this network at 'pupil'; its state dicts are at student, teacher"
    ):
        file(path, arch=small(1), key="pupil")
    torch.save(renamed(STATE, "student.") | renamed(other, "teacher."), path)
    with pytest.raises(ModelError, match="several state dicts"):
        file(path, arch=small(1))
    assert same(file(path, arch=small(1), key="teacher"), other)


def test_weights_in_part(tmp_path):
    path = str(tmp_path / "w.pt")
    part = {name: tensor for name, tensor in STATE.items() if not name.startswith("9.")}
    torch.save(renamed(part, "module.") | {"module.extra": torch.ones(1)}, path)
    with pytest.raises(ModelError, match=r"missing 9\.bias, 9\.weight; unexpected module\.extra"):
        file(path, arch=small(1))
    network = small(1)
    with pytest.warns(
        UserWarning, match=r"loaded in part: missing 9\.bias, 9\.weight; unexpected module\.extra"
    ):
        file(path, arch=network, strict=False)
    assert torch.equal(network[1].weight, STATE["1.weight"])
    assert not torch.equal(network[9].weight, STATE["9.weight"])
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(ModelError, match="another network"):
        file(path, arch=small(1), strict=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer; git lfs pull"),
        (b"<!DOCTYPE html>\n<html><head>", "a web page"),
        (b"  <html>", "a web page"),
    ],
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_what_people_take_for_weights(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        file(str(tmp_path / name), arch=small())


@pytest.mark.parametrize(
    ("other", "named"), [(np.float64(0.9), "scalar"), (argparse.Namespace(lr=1), "argparse.Namespace")]
)
def test_what_cannot_be_read_beside_weights_is_named(tmp_path, other, named):
    torch.save({"state_dict": STATE, "other": other}, tmp_path / "w.pt")
    with pytest.raises(
        ModelError, match=rf"holds a [\w.]*{named}, .*torch\.save\(model\.state_dict\(\), path\)"
    ) as error:
        file(str(tmp_path / "w.pt"), arch=small())
    assert "weights_only" not in str(error.value)
    assert "\x1b" not in str(error.value)


# ---------------------------------------------------------------- names and numbers of others


class Tied(nn.Module):
    """One weight in two layers, and one layer under two names."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.c = self.a

    def forward(self, x):
        return self.c(self.b(self.a(x)))


@pytest.mark.parametrize(
    "left_out", [(), ("a.weight",), ("b.weight", "c.weight", "a.bias"), ("a.weight", "c.weight", "c.bias")]
)
def test_tied_weights_under_some_of_their_names(tmp_path, left_out):
    model, x = Tied(), torch.rand(2, 3)
    torch.save({k: t for k, t in model.state_dict().items() if k not in left_out}, tmp_path / "w.pt")
    assert torch.equal(file(str(tmp_path / "w.pt"), arch=Tied())(x), model(x))


def test_tied_weights_that_are_gone_or_differ(tmp_path):
    state = Tied().state_dict()
    torch.save({k: t for k, t in state.items() if "weight" not in k}, tmp_path / "gone.pt")
    with pytest.raises(ModelError, match=r"missing a\.weight, b\.weight, c\.weight"):
        file(str(tmp_path / "gone.pt"), arch=Tied())
    torch.save({**state, "b.weight": state["b.weight"] + 1}, tmp_path / "differ.pt")
    with pytest.raises(ModelError, match=r"a\.weight and b\.weight differ, but are one weight in arch"):
        file(str(tmp_path / "differ.pt"), arch=Tied())


@pytest.mark.parametrize("prefix", ["", "module.net."])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
def test_both_styles_of_normalized_weights_are_one(tmp_path, name, bias, prefix):
    def net(style):
        layers = nn.Linear(5, 4, bias=bias), nn.Conv1d(1, 2, 3, bias=bias)
        a, b = (getattr(style, name)(layer) for layer in layers)
        return nn.Sequential(a, nn.Unflatten(1, (1, 4)), b).eval()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nets = [net(style) for style in (nn.utils, parametrizations)]
    x = torch.rand(3, 5)
    for model, other in (nets, nets[::-1]):
        for p in model.parameters():
            nn.init.normal_(p)
        model(x)
        state = {prefix + k: t for k, t in model.state_dict().items()}
        torch.save(state, tmp_path / "w.pt")
        assert torch.allclose(file(str(tmp_path / "w.pt"), arch=other)(x), model(x), rtol=1e-5)
        torch.save(
            {k: t for k, t in state.items() if not k.endswith(("_v", "original1"))}, tmp_path / "part.pt"
        )
        with pytest.raises(ModelError, match="missing 0"):
            file(str(tmp_path / "part.pt"), arch=other)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.int8, "torch.int8, expected floating point; quantized"),
        (torch.bool, "torch.bool, expected floating point"),
        (torch.complex64, "torch.complex64, expected real numbers"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_numbers_of_another_kind_are_not_taken_for_weights(tmp_path, dtype, message, strict):
    state = {k: (10 * t).to(dtype) for k, t in nn.Linear(3, 2).state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=message):
        file(str(tmp_path / "w.pt"), arch=nn.Linear(3, 2), strict=strict)


def test_one_of_several_shards(tmp_path):
    save_file({"0.weight": torch.ones(2, 2)}, tmp_path / "model-00001-of-00002.safetensors")
    arch = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with pytest.raises(ModelError, match=r"missing 1.weight; the file is one of several shards"):
        file(str(tmp_path / "model-00001-of-00002.safetensors"), arch=arch)


def test_an_index_and_its_folder_fill_a_network_from_all_shards(tmp_path):
    layers = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    state = layers.state_dict()
    places = {name: f"model-0000{1 + int(name[0])}-of-00002.safetensors" for name in state}
    for place in set(places.values()):
        save_file({f"net.{n}": t for n, t in state.items() if places[n] == place}, tmp_path / place)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"net.{name}": place for name, place in places.items()}}))
    for path in (tmp_path, index):
        assert same(file(str(path), arch=nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))), state)
    key = identity(full(parse(f"file({str(index)!r})")))
    save_file({"net.1.bias": state["1.bias"]}, tmp_path / places["1.bias"])
    assert identity(full(parse(f"file({str(index)!r})"))) != key, "the shards count"
    with pytest.raises(ModelError, match=r"has no tensor net.1.weight, which .* says is in it"):
        file(str(index), arch=layers)


@pytest.mark.parametrize(
    "call",
    ["mlp(in_shape=(1, 8, 8), width=1000000)", "mlp(in_shape=(1, 3000, 3000), width=1)", "cnn(width=5000)",
     "mlp(in_shape=(1, 8, 8), width=1, depth=1000000000)", "mlp(in_shape=(1, 8, 8), width=1, depth=5000)",
     "max_mahalanobis(mlp(in_shape=(1, 8, 8), width=30000, depth=2), features=300)", "cnn(classes=1000000000)"],
)  # fmt: skip
def test_a_small_file_builds_no_large_network(tmp_path, call):
    save(cnn((1, 8, 8), width=2), tmp_path / "w.safetensors", call)
    begun = time.monotonic()
    with pytest.raises(ModelError, match="much larger than its weights"):
        file(str(tmp_path / "w.safetensors"))
    assert time.monotonic() - begun < 5


def test_a_path_is_as_good_as_its_text(tmp_path):
    save(cnn((1, 8, 8), width=2), tmp_path / "w.safetensors")
    assert isinstance(file(tmp_path / "w.safetensors"), nn.Module)
