import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from opnorm import spec
from opnorm.data import folder, hf
from opnorm.errors import DataError


def fill(root, png, pictures, classes, n=5, color=False, suffix=".png", seed=0):
    """``n`` pictures in each class folder."""
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(pictures(n, color=color, seed=seed + k)):
            (root / name / f"{i:03}{suffix}").write_bytes(png(picture))
    return root


class TestFolder:
    @pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
    def test_train_and_test(self, tmp_path, png, pictures, test):
        fill(tmp_path / "set/train", png, pictures, ["dog", "cat", "owl"], 5)
        fill(tmp_path / "set" / test, png, pictures, ["dog", "cat"], 2, seed=9)
        data = folder(str(tmp_path / "set"))
        assert data.classes == ("cat", "dog", "owl")
        assert data.name == "set"
        assert data.train.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
        assert data.test.labels.tolist() == [0] * 2 + [1] * 2
        assert torch.equal(data.train.images[5:10, 0], torch.from_numpy(pictures(5, seed=0)))
        assert torch.equal(data.test.images[:2, 0], torch.from_numpy(pictures(2, seed=10)))
        assert spec.spec_of(data).name == "folder"

    def test_test_goes_before_val(self, tmp_path, png, pictures):
        for part, n in (("train", 4), ("test", 2), ("val", 3)):
            fill(tmp_path / part, png, pictures, ["a", "b"], n)
        assert len(folder(str(tmp_path)).test.labels) == 4

    @pytest.mark.parametrize("inside", ["", "train"])
    def test_no_test_part_holds_out_a_fifth(self, tmp_path, png, pictures, inside):
        fill(tmp_path / inside, png, pictures, ["a", "b"], 10)
        data = folder(str(tmp_path))
        assert torch.bincount(data.train.labels).tolist() == [8, 8]
        assert torch.bincount(data.test.labels).tolist() == [2, 2]

    def test_classes_may_be_called_train_and_test(self, tmp_path, png, pictures):
        fill(tmp_path, png, pictures, ["bus", "test", "train"], 5)
        assert folder(str(tmp_path)).classes == ("bus", "test", "train")

    def test_other_files_deeper_folders_and_capitals(self, tmp_path, png, pictures):
        fill(tmp_path / "train", png, pictures, ["a/images", "b/images"], 3, suffix=".PNG")
        fill(tmp_path / "val", png, pictures, ["a", "b"], 1, suffix=".png")
        (tmp_path / "train/a/boxes.txt").write_text("1 2 3 4")
        (tmp_path / "train/a/images/._000.png").write_text("left by a Mac")
        for hidden in ("__MACOSX", ".cache", "train/__MACOSX", "train/.cache"):
            (tmp_path / hidden).mkdir()
        assert len(folder(str(tmp_path)).train.labels) == 6

    def test_hidden_names_at_any_depth(self, tmp_path, png, pictures):
        fill(tmp_path / "train", png, pictures, ["a", "b"], 3)
        fill(tmp_path / "val", png, pictures, ["a", "b"], 2)
        for hidden in (
            "train/a/.ipynb_checkpoints",
            "train/b/deep/.cache/x",
            "val/a/__MACOSX/a",
            ".git/a",
            "train/a/x/.y",
        ):
            fill(tmp_path, png, pictures, [hidden], 1)
        (tmp_path / "train/b/.cache").mkdir()
        (tmp_path / "train/b/.cache/broken.png").write_bytes(b"no image")
        data = folder(str(tmp_path))
        assert (len(data.train.labels), len(data.test.labels)) == (6, 4)

    def test_parts_by_name(self, tmp_path, png, pictures):
        for part, n in (("train", 4), ("test", 2), ("val", 3), ("extra", 5)):
            fill(tmp_path / part, png, pictures, ["a", "b"], n)
        assert len(folder(str(tmp_path), test="val").test.labels) == 6
        data = folder(str(tmp_path), train="Extra", test="train")
        assert (len(data.train.labels), len(data.test.labels)) == (10, 8)
        with pytest.raises(DataError, match="has no part 'tset'; did you mean 'test'"):
            folder(str(tmp_path), test="tset")

    def test_tiny_imagenet_as_published(self, tmp_path, png, pictures):
        """Test images without labels, and a list of the validation images with theirs."""
        fill(tmp_path / "train", png, pictures, ["n01/images", "n02/images"], 3, suffix=".JPEG")
        fill(tmp_path / "test", png, pictures, ["images"], 5, suffix=".JPEG")
        fill(tmp_path / "val", png, pictures, ["images"], 3, suffix=".JPEG")
        lines = ["002.JPEG\tn01\t0\t0\t62\t62", "000.JPEG\tn02\t1\t2\t3\t4", "001.JPEG\tn02\t1\t2\t3\t4"]
        (tmp_path / "val/val_annotations.txt").write_text("\n".join(lines) + "\n")
        with pytest.warns(UserWarning, match=r"test/ has no labels .*, so val/ is taken"):
            data = folder(str(tmp_path))
        assert data.classes == ("n01", "n02")
        assert data.test.labels.tolist() == [0, 1, 1]
        own = pictures(3)
        assert torch.equal(data.test.images[:, 0], torch.from_numpy(own[[2, 0, 1]]))

    def test_color_and_size(self, tmp_path, png, pictures):
        fill(tmp_path / "train", png, pictures, ["a", "b"], 3)
        fill(tmp_path / "test", png, pictures, ["a", "b"], 3, color=True)
        assert folder(str(tmp_path)).image_shape == (3, 5, 7)
        assert folder(str(tmp_path), size=4).image_shape == (3, 4, 4)

    def test_is_cached_until_a_file_changes(self, tmp_path, png, pictures, cache, monkeypatch):
        fill(tmp_path / "train", png, pictures, ["a", "b"], 3)
        fill(tmp_path / "test", png, pictures, ["a", "b"], 3)
        first = folder(str(tmp_path))
        assert len(list(cache.iterdir())) == 1
        with monkeypatch.context() as blocked:
            blocked.setattr(Image, "open", None)
            assert torch.equal(folder(str(tmp_path)).train.images, first.train.images)
        new = pictures(1, seed=77)[0]
        (tmp_path / "train/a/000.png").write_bytes(png(new))
        assert torch.equal(folder(str(tmp_path)).train.images[0, 0], torch.from_numpy(new))

    def test_refuses(self, tmp_path, png, pictures):
        with pytest.raises(DataError, match="there is no"):
            folder(str(tmp_path / "none"))
        with pytest.raises(DataError, match="holds no class folders"):
            folder(str(tmp_path))
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="is a file; expected"):
            folder(str(tmp_path / "file"))
        fill(tmp_path / "set", png, pictures, ["a"])
        with pytest.raises(DataError, match=r"1 class\(es\)"):
            folder(str(tmp_path / "set"))
        (tmp_path / "set/b").mkdir()
        with pytest.raises(DataError, match=r"set/b' holds no images \(.bmp, "):
            folder(str(tmp_path / "set"))

    def test_refuses_a_test_part_that_does_not_fit(self, tmp_path, png, pictures):
        fill(tmp_path / "val", png, pictures, ["cats"])
        with pytest.raises(DataError, match="has val/ but no train/"):
            folder(str(tmp_path))
        fill(tmp_path / "train", png, pictures, ["cat", "dog"])
        with pytest.raises(DataError, match=r"class 'cats' is not in train/.*did you mean 'cat'"):
            folder(str(tmp_path))

    def test_names_the_damaged_file(self, tmp_path, png, pictures):
        fill(tmp_path, png, pictures, ["a", "b"])
        (tmp_path / "b/003.png").write_bytes(b"no image")
        with pytest.raises(DataError, match=r"b/003.png: the file cannot be decoded"):
            folder(str(tmp_path))
        (tmp_path / "b/003.png").unlink()
        (tmp_path / "b/003.png").symlink_to(tmp_path / "gone")
        with pytest.raises(DataError, match=r"b/003.png cannot be read"):
            folder(str(tmp_path))


class TestHub:
    @pytest.fixture
    def snapshot(self, tmp_path, png, pictures, monkeypatch):
        """A snapshot folder, and the calls of the downloader that returns it."""
        import huggingface_hub

        calls, root = [], tmp_path / "snapshot"

        def download(**arguments):
            calls.append(arguments)
            return str(root)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        described = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
        metadata = {"huggingface": json.dumps({"info": {"features": described}})}
        for config, n in (("one", 4), ("two", 6)):
            for part in ("train", "test"):
                rows = [{"bytes": png(p), "path": None} for p in pictures(n)]
                table = pa.table({"img": rows, "label": [0, 1] * (n // 2)}).replace_schema_metadata(metadata)
                (root / config).mkdir(parents=True, exist_ok=True)
                pq.write_table(table, root / config / f"{part}-00000-of-00001.parquet")
        return root, calls

    def test_config(self, snapshot):
        _, calls = snapshot
        data = hf("me/set", config="two", revision="abc")
        assert len(data.train.labels) == 6
        assert data.classes == ("a", "b")
        assert data.name == "me/set/two"
        assert calls == [
            {
                "repo_id": "me/set",
                "repo_type": "dataset",
                "revision": "abc",
                "allow_patterns": ["two/*.parquet"],
            }
        ]
        assert str(spec.spec_of(data)) == 'hf(repo="me/set", config="two", revision="abc")'

    def test_without_config(self, snapshot):
        root, calls = snapshot
        with pytest.raises(DataError, match=r"several data sets, in the folders one, two.*config='two'"):
            hf("me/set")
        for file in (root / "two").iterdir():
            file.unlink()
        data = hf("me/set", image="img", label="label", size=4)
        assert data.name == "me/set"
        assert data.image_shape == (1, 4, 4)
        assert calls[-1]["allow_patterns"] == ["*.parquet"]

    def test_nothing_downloaded(self, snapshot):
        with pytest.raises(DataError, match=r"no parquet files in the folder 'three'.*refs/convert/parquet"):
            hf("me/set", config="three")

    @pytest.mark.parametrize("config", ["", "/", "../x", "/etc"])
    def test_config_is_a_folder_of_the_repository(self, config):
        with pytest.raises(DataError, match="config="):
            hf("me/set", config=config)

    @pytest.mark.parametrize("module", ["huggingface_hub", "huggingface_hub.errors"])
    def test_not_installed(self, monkeypatch, module):
        monkeypatch.setitem(sys.modules, module, None)
        if module.endswith("errors"):
            monkeypatch.delattr("huggingface_hub.errors", raising=False)
        with pytest.raises(DataError, match=r"pip install 'opnorm\[hub\]'"):
            hf("me/set")

    def test_failures(self, monkeypatch):
        import huggingface_hub
        from huggingface_hub import errors

        class Response:
            headers, status_code, request, url = {}, 404, None, "https://hub"

        def http(kind):
            try:
                return kind("404: not there\nsecond line", response=Response())
            except (TypeError, AttributeError, KeyError):  # other versions of the library
                error = kind.__new__(kind)
                error.args = ("404: not there\nsecond line",)
                return error

        cases = [
            (http(errors.RepositoryNotFoundError), "typing error"),
            (http(errors.GatedRepoError), "needs a permission"),
            (http(errors.RevisionNotFoundError), "revision='r' is not a branch"),
            (errors.HFValidationError("bad name"), "not of the form"),
            (errors.LocalEntryNotFoundError("no connection"), "no network"),
            (ConnectionError("refused"), "no network"),
            (OSError(28, "No space left on device"), "No space left"),
            (ValueError(), r"\(ValueError\)"),
        ]
        for error, message in cases:

            def download(error=error, **_):
                raise error

            monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
            with pytest.raises(DataError, match=message) as caught:
                hf("me/set", revision="r")
            assert "hf('me/set')" in str(caught.value)
            assert "\n" not in str(caught.value)
