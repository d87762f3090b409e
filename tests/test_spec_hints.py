"""What a message says of a name that is not known."""

import pytest

from opnorm.errors import SpecError
from opnorm.spec import build


def test_what_an_unknown_name_may_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "weights").touch()
    with pytest.raises(
        SpecError,
        match=r'unknown data set .*a folder of this name, which is read by folder\("images"\) or parquet',
    ):
        build("images", "data set")
    with pytest.raises(
        SpecError, match=r'unknown model .*a file of this name, which is read by file\("weights"\)$'
    ):
        build("weights", "model")
    with pytest.raises(SpecError, match=r'unknown name .images.* is in quotes: "images"'):
        build("folder(images)", "data set")
