"""An analysis that is interrupted resumes: the same rows, to the bit, and what was done before is not done again."""

import pytest
from torch import nn

from opnorm import spec
from opnorm._core.kept_parts import kept, kept_in
from opnorm.analyses import all_analyses
from opnorm.analyses._shared import points
from opnorm.errors import RunError
from tests.analyses.toys import data, trained

SMALL = {"steps": 1, "halvings": 1, "version": "fast", "seconds": 0.0, "distances": (0.5,)}
POINTS = {"singular_alignment": 21, "jacobian_spectrum": 21, "jacobian_norms": 21, "local_lipschitz": 2}
POINTS |= dict.fromkeys(
    ("local_linearity", "robust_radius", "lipschitz_bracket", "power_method_agreement"), 51
)
POINTS |= {"input_gradients": 501}
WHOLE = {"norm_table", "relu_cells", "scale_shift", "weight_energy", "wen_bound"}
"""Without points that are attacked, or Jacobians; seconds for networks of usual size."""
NAMES = [one.name for one in all_analyses()]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    """As for large images; 500 points of 64 numbers are one part."""
    monkeypatch.setattr(points, "ATTACKED_NUMBERS", 0)


def build(name):
    accepted = dict(spec.full(name, "analysis").kwargs)
    given = {key: value for key, value in SMALL.items() if key in accepted}
    if isinstance(accepted.get("eps"), tuple | list):
        given["eps"] = (0.1,)
    if "points" in accepted:
        given["points"] = POINTS.get(name, 101)
    return spec.build(name, "analysis", **given)


@pytest.fixture(scope="module")
def network(device):
    return trained().eval().to(device)


@pytest.fixture(scope="module")
def toy():
    return data()


def rows(name, network, toy, folder=None):
    """The rows of an analysis, without times; kept in a folder where one is given."""
    if folder is None:
        found = build(name)(network, toy)
    else:
        with kept_in(folder, least=0):
            found = build(name)(network, toy)
    return [{key: value for key, value in row.items() if key != "times"} for row in found]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in WHOLE])
def test_an_interrupted_analysis_resumes_inside(name, network, toy, tmp_path):
    expected = rows(name, network, toy)
    assert rows(name, network, toy, tmp_path) == expected, (
        "the cut is the same whether anything is kept or not"
    )
    parts = sorted(tmp_path.glob("part-*"))
    assert len(parts) > 1
    for part in parts[len(parts) // 2 :]:
        part.unlink()
    times = {part: part.stat().st_mtime_ns for part in parts[: len(parts) // 2]}
    assert rows(name, network, toy, tmp_path) == expected
    assert sorted(tmp_path.glob("part-*")) == parts
    assert times == {part: part.stat().st_mtime_ns for part in times}, "none was made again"


def test_a_stopped_analysis_has_kept_its_parts(network, toy, tmp_path):
    calls, limit = [0], [10**9]

    def count(module, args):
        calls[0] += 1
        if calls[0] == limit[0]:
            raise KeyboardInterrupt

    model = nn.Sequential(*network)
    expected = rows("robustness_curve", model, toy)
    model.register_forward_pre_hook(count)
    rows("robustness_curve", model, toy)
    whole, calls[0] = calls[0], 0
    limit[0] = whole - 1
    with pytest.raises(KeyboardInterrupt):
        rows("robustness_curve", model, toy, tmp_path)
    calls[0], limit[0] = 0, 10**9
    assert rows("robustness_curve", model, toy, tmp_path) == expected
    assert 0 < calls[0] <= whole / 2


def test_a_damaged_part_is_made_again(network, toy, tmp_path):
    expected = rows("singular_alignment", network, toy, tmp_path)
    part = sorted(tmp_path.glob("part-*"))[1]
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(bytes(content))
    with pytest.warns(UserWarning, match="differ from its checksum.* made again"):
        assert rows("singular_alignment", network, toy, tmp_path) == expected


def test_parts_of_other_points_are_not_taken(network, toy, tmp_path):
    rows("singular_alignment", network, toy, tmp_path)
    with kept_in(tmp_path, least=0):
        found = spec.build("singular_alignment(points=21, seed=1)", "analysis")(network, toy)
    alone = spec.build("singular_alignment(points=21, seed=1)", "analysis")(network, toy)
    assert found == alone


def test_a_part_has_no_parts(tmp_path):
    """Those inside of one would not be asked for, and so not counted, where it is found."""

    def inner():
        return kept(lambda: {"is": "inner"})

    for _ in range(2):
        with kept_in(tmp_path, least=0):
            assert kept(lambda: {"is": "outer", "inner": inner()["is"]}) == {"is": "outer", "inner": "inner"}
            assert kept(lambda: {"is": "last"}) == {"is": "last"}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_part_that_cannot_be_written_is_an_error(network, toy, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunError, match="cannot write in"):
        rows("jacobian_spectrum", network, toy, file)
