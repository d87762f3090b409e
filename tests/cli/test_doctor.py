"""``opnorm doctor``: what is there, what is missing, and what it would give."""

import importlib.metadata
import importlib.util
import json

import torch

import opnorm as package


def test_versions_devices_and_folders(main, monkeypatch, tmp_path):
    monkeypatch.setenv("OPNORM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "runs" / "abc").mkdir(parents=True)
    (tmp_path / "runs" / "abc" / "run.json").write_text("{}")
    found = json.loads(main("doctor", "--json")[1])
    assert found["about"]["opnorm"] == package.__version__
    assert found["about"]["torch"] == torch.__version__
    assert f"numpy {importlib.metadata.version('numpy')}" in found["about"]["packages"]
    assert found["devices"][0]["name"] == "cpu"
    assert found["runs"] == {"folder": str(tmp_path / "runs"), "count": 1, "what": "1 run"}
    assert found["cache"]["folder"] == str(tmp_path / "cache")
    text = main("doctor")[1]
    assert f"torch              {torch.__version__}" in text
    assert "1 run\n" in text


def test_what_is_missing_is_said_with_what_it_gives(main, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else there(name))
    assert json.loads(main("doctor", "--json")[1])["optional"]["ray"]["version"] is None
    assert "missing: studies on several machines; pip install 'opnorm[ray]'" in main("doctor")[1]


def test_bfloat16_without_hardware_is_said(main, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "emulated on cpu: --precision bf16 is several times slower" in main("doctor")[1]
