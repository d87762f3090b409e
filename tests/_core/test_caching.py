"""The folder of the cache, by the environment."""

import pytest

from opnorm._core.caching import cache_folder
from opnorm.errors import OpnormError


def test_the_folder_is_that_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value, expected in (
        ("XDG_CACHE_HOME", "/other", "/other/opnorm"),
        ("OPNORM_CACHE", "~/own", f"{tmp_path}/own"),
        ("OPNORM_CACHE", "/own", "/own"),
    ):
        monkeypatch.setenv(name, value)
        assert str(cache_folder()) == expected


def test_the_home_of_an_unknown_user(monkeypatch):
    monkeypatch.setenv("OPNORM_CACHE", "~nosuchuser/cache")
    with pytest.raises(
        OpnormError, match=r"OPNORM_CACHE='~nosuchuser/cache': expected a folder; .*home directory"
    ):
        cache_folder()
