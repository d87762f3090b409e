"""A run as a folder for others: its weights, card and script; and on a stand-in for the hub, there and back."""

import json
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opnorm._core.files import read_tensors, write_tensors
from opnorm.errors import ModelError, OpnormError, RunError
from opnorm.models import file, hf
from opnorm.runs.build import restore
from opnorm.runs.export import export, push
from opnorm.runs.store import Store
from opnorm.spec import spec_of
from tests.runs import hub_server

FILES = ["model.safetensors", "config.json", "README.md", "load.py"]


@pytest.fixture
def folder(finished, tiny, tmp_path):
    """The folder of a finished run with an attack on its network."""
    store = Store(shutil.copytree(finished(tiny).root, tmp_path / "runs"))
    about = {"subject": tiny.key, "data": "digits()"}
    with Store(store.root / "attacks", subject=about).open("a" * 12) as entry:
        entry.begin({"attack": "pgd(norm=inf, eps=8/255, steps=2)"})
        entry.note(robust=30, points=50, correct=40)
        entry.finish()
    return store.folder(tiny.key)


def same(a, b) -> bool:
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.equal(a.eval()(x), b.eval()(x))


def test_a_folder_for_others(folder, tiny, tmp_path, monkeypatch, capsys):
    assert [path.name for path in export(folder, tmp_path / "net")] == FILES
    model = restore(tiny, folder)
    assert same(file(str(tmp_path / "net" / "model.safetensors")), model)
    script = (tmp_path / "net" / "load.py").read_text()
    assert len(script.splitlines()) <= 10
    shutil.move(tmp_path / "net", tmp_path / "elsewhere")
    monkeypatch.chdir("/")
    assert same(runpy.run_path(str(tmp_path / "elsewhere" / "load.py"))["model"], model)
    assert "tensor([" in capsys.readouterr().out
    export(folder, tmp_path / "elsewhere")  # over an earlier one
    config = json.loads((tmp_path / "elsewhere" / "config.json").read_text())
    assert (config["key"], config["in_shape"], config["classes"]) == (tiny.key, [1, 8, 8], 10)
    assert config["run"]["model"] == "cnn(width=4)"


def test_the_card_is_read_by_the_hub(folder, tmp_path):
    from huggingface_hub import ModelCard

    export(folder, tmp_path / "net")
    card = ModelCard.load(tmp_path / "net" / "README.md")
    assert card.data.library_name == "opnorm"
    clean, robust = card.data.eval_results
    assert (robust.metric_value, robust.dataset_name) == (0.6, "digits")
    assert (
        robust.metric_name
        == "robust accuracy: pgd(norm=inf, eps=8/255, steps=2), norm inf, eps 0.0313725, 50 points"
    )
    assert 0 < clean.metric_value < 1
    assert (
        "| `pgd(norm=inf, eps=8/255, steps=2)` | inf | 0.0313725 | 60.00% | 46.2% to 72.4% | 50 |"
        in card.text
    )
    for heading in ("Load it", "Data", "Training", "Accuracy", "Norms", "Limits of use", "How to cite"):
        assert f"\n## {heading}\n" in card.text
    assert "Not measured: `opnorm norms`" in card.text
    store = Store(folder.parent)
    with store.open(folder.name) as entry:
        norm = {"1": {"upper": 3.25}, "2": {"upper": None}}
        rows = [{"layer": "4", "kind": "Linear", "norms": norm}, {"layer": "5", "kind": "ReLU", "norms": {}}]
        entry.get_or_compute("norm_table()", lambda: rows)
    export(folder, tmp_path / "net")
    assert "| 4 | Linear | 3.25 | not known | not known |\n\n" in (tmp_path / "net" / "README.md").read_text()


def changed(folder, **settings):
    about = Store(folder.parent).read(folder)
    from opnorm._core.files import write_json

    write_json(folder / "run.json", about | {"run": about["run"] | settings}, checked=True)


def test_paths_and_code_of_this_machine_stay_here(folder, tmp_path, monkeypatch):
    own = "own_net.build(in_shape=(1, 8, 8))"
    changed(folder, data='parquet("/home/me/secret/mnist")')
    tensors, _ = read_tensors(folder / "weights.safetensors")
    write_tensors(
        folder / "weights.safetensors",
        tensors,
        {"opnorm.model": f'file("/home/me/secret/w.safetensors", arch={own})'},
    )
    net = tmp_path / "net"
    export(folder, net)
    assert not [path.name for path in net.iterdir() if b"secret" in path.read_bytes()]
    assert "not in this repository" in (net / "README.md").read_text()
    assert len((net / "load.py").read_text().splitlines()) <= 10
    (tmp_path / "own_net.py").write_text(
        "from opnorm.models import cnn\nbuild = lambda in_shape: cnn(in_shape, width=4)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_net", raising=False)
    assert runpy.run_path(str(net / "load.py"))["model"](torch.rand(1, 1, 8, 8)).shape == (1, 10)


def test_what_is_trained_on_from_an_export_is_exported_again(folder, tmp_path):
    from opnorm.models import save

    export(folder, tmp_path / "net")
    model = file(str(tmp_path / "net" / "model.safetensors"))
    save(model, tmp_path / "tuned.safetensors")
    shutil.rmtree(tmp_path / "net")
    assert same(file(str(tmp_path / "tuned.safetensors")), model)


def test_what_is_refused(folder, tiny, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(
        OpnormError, match=r"mine has other files, such as thesis\.tex; expected a new folder"
    ):
        export(folder, tmp_path / "mine")
    with pytest.raises(RunError, match="no folder to write to"):
        export(folder, tmp_path / "mine" / "thesis.tex")
    store = Store(tmp_path / "other")
    with store.open(tiny.key) as entry:
        entry.begin({"run": replace(tiny).as_dict()})
    with pytest.raises(RunError, match="is no finished run"):
        export(store.folder(tiny.key), tmp_path / "net")
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(RunError, match="cannot read"):
        export(folder, tmp_path / "net")
    assert not (tmp_path / "net").exists()


# ---------------------------------------------------------------- the hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of this machine, to which this user is logged in."""
    with hub_server.serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(
            "huggingface_hub.constants.HF_HUB_DISABLE_XET", True
        )  # a protocol that the stand-in lacks
        yield hub


def test_there_and_back(hub, folder, tiny, tmp_path, main):
    assert push(folder, "me/net", private=True) == f"{hub.url}/me/net"
    assert hub.private == {"me/net": True}
    assert sorted(hub.files["me/net"]) == sorted(FILES)
    assert list(hub.objects.values()) == [hub.files["me/net"]["model.safetensors"]], "put as a large file"
    model = hf("me/net")
    assert same(model, restore(tiny, folder))
    assert str(spec_of(model)) == 'hf(repo="me/net")'
    status, table, _ = main("norms", 'hf("me/net")', "--ord", "1", "--json")
    assert (status, len(json.loads(table)["layers"])) == (0, 7)
    assert push(folder, "me/net", private=True) == f"{hub.url}/me/net", "again"


def test_a_public_repository_gets_nothing_private(hub, folder):
    hub.files["me/net"], hub.private["me/net"] = {}, False
    with pytest.raises(
        OpnormError, match="exists and is public, and --private was given; nothing was uploaded"
    ):
        push(folder, "me/net", private=True)
    assert not hub.files["me/net"]


def test_what_the_hub_refuses(hub, folder, monkeypatch):
    with pytest.raises(
        ModelError, match=r"hf\('me/none'\): expected a model .* typing error in 'owner/name'"
    ):
        hf("me/none")
    hub.files["me/empty"], hub.private["me/empty"] = {"README.md": b"x"}, False
    with pytest.raises(
        ModelError, match=r"has no model\.safetensors; expected a network that opnorm push wrote"
    ):
        hf("me/empty")
    with pytest.raises(ModelError, match="repo=3"):
        hf(3)
    with pytest.raises(OpnormError, match="not of the form 'owner/name'"):
        push(folder, "me/net/x")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(OpnormError, match=r"push to me/net failed .*401.*token is wrong"):
        push(folder, "me/net")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder / "none"))
    with pytest.raises(OpnormError, match="push to me/net: not logged in to the hub; run `hf auth login`"):
        push(folder, "me/net")
    assert list(hub.files) == ["me/empty"]


def test_a_hub_that_cannot_be_reached(folder, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    with pytest.raises(
        OpnormError, match=r"push to me/net failed .* no network, a proxy, or the hub is down"
    ):
        push(folder, "me/net")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(OpnormError, match=r"needs the package huggingface-hub .*pip install 'opnorm\[hub\]'"):
        push(folder, "me/net")


def test_what_would_be_uploaded_is_said_without_a_hub(main, hub, folder, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    status, out, err = main("push", tiny.key, "--repo", "me/net", "--dry-run")
    *listed, last = out.splitlines()
    assert (status, err, [line.split()[0] for line in listed]) == (0, "", list(FILES))
    assert last.startswith("nothing was uploaded; these would be, to me/net; opnorm export ")
    found = json.loads(main("push", tiny.key, "--repo", "me/net", "--dry-run", "--json")[1])
    assert found["repo"] == "me/net"
    main("export", tiny.key, "--to", "net")
    assert found["files"] == {name: (Path("net") / name).stat().st_size for name in FILES}
    assert "me/net" not in hub.files


def test_the_commands(main, hub, folder, tiny):
    status, out, err = main("export", tiny.key[:4], "--to", "net")
    assert (status, out.split(), err) == (0, [f"net/{name}" for name in FILES], "")
    status, out, _ = main("push", tiny.key, "--repo", "me/net")  # bars of the hub's own are on standard error
    assert status == 0
    assert out.splitlines()[0] == f"{hub.url}/me/net"
    assert not hub.private["me/net"]
    for args in (
        ("export", "nokey", "--to", "x"),
        ("push", "nokey", "--repo", "me/x"),
        ("export", tiny.key, "--to", "."),
    ):
        status, out, err = main(*args)
        assert (status, out, err.count("\n")) == (2, "", 1)
    assert Path("net/load.py").is_file()
