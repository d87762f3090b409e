"""timm's networks, by a stand-in for the library that keeps to the part of its interface that is used."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from opnorm.errors import ModelError
from opnorm.models import file, save, timm
from opnorm.spec import build


@pytest.fixture
def library(monkeypatch):
    made = []

    def create_model(name, pretrained=False, in_chans=3, num_classes=1000, **options):
        if name == "vit" and options["img_size"][0] % 4:
            raise AssertionError("image and patch size do not fit\nmore")
        if pretrained:
            raise OSError("Name or service not known")
        made.append(options)
        model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_chans, num_classes))
        model.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.9)}
        return model

    module = ModuleType("timm")
    module.list_models = lambda: ["resnet18", "vit"]
    module.is_model = lambda name: name.partition(".")[0] in module.list_models()
    module.get_pretrained_cfg = lambda name: SimpleNamespace(fixed_input_size=name == "vit")
    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    return made


def test_its_own_normalization(library):
    model = build("timm('resnet18.a1')", "model", in_shape=(3, 8, 8), classes=7, mean=(0.0,), std=(9.0,))
    x = torch.rand(2, 3, 8, 8)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.4, 0.5, 0.9]).view(3, 1, 1)
    assert torch.allclose(model(x), model.network((x - mean) / std), atol=1e-6)
    assert model(x).shape == (2, 7)
    assert library == [{}]


def test_other_channels_sizes_and_classes(library):
    grey = timm("vit", in_shape=(1, 16, 12))
    assert grey(torch.rand(2, 1, 16, 12)).shape == (2, 1000)
    assert library == [{"img_size": (16, 12)}]
    assert grey.normalize.mean.item() == pytest.approx(0.2)
    assert grey.normalize.std.item() == pytest.approx(0.6)


def test_files(library, tmp_path):
    path = tmp_path / "w.safetensors"
    model = timm("resnet18", in_shape=(3, 8, 8), classes=4)
    save(model, path)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(file(str(path))(x), model(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "timm has no network 'resnet19'; did you mean 'resnet18'"),
        ({"name": "hf-hub:someone/else"}, r"no network 'hf-hub:someone/else'; expected one of timm.list_models\(\)"),
        ({"name": "vit", "in_shape": (3, 5, 5)}, r"\(AssertionError: image and patch size do not fit\).*5 x 5 pixels"),
        ({"name": "resnet18", "pretrained": True}, r"OSError: Name or service.*pretrained=False needs neither"),
        ({"name": "resnet18", "classes": 0}, "classes=0"),
        ({"name": "resnet18", "in_shape": (3, 8)}, "in_shape"),
    ],
)  # fmt: skip
def test_what_cannot_be_built(library, arguments, message):
    with pytest.raises(ModelError, match=message):
        timm(**arguments)


@pytest.mark.parametrize("error", [ImportError("no such module"), RuntimeError("torchvision::nms")])
def test_without_the_extra(monkeypatch, error):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "timm":
                raise error

    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(ModelError, match=rf"timm and torchvision \({error}\): pip install 'opnorm\[timm\]'"):
        timm("resnet18")
