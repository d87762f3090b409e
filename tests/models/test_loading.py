"""Weights in files."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from opnorm.errors import ModelError, OpnormError, SpecError
from opnorm.models import file, mlp, resnet, save
from opnorm.spec import build, spec_of


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
    with pytest.raises(ModelError, match="no file"):
        file(str(tmp_path))


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
