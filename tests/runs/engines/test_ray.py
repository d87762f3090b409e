"""A study on a Ray cluster: the bits of the local engine, whatever dies; one message for what cannot work."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from opnorm.runs.engines.local import LocalEngine
from opnorm.runs.engines.ray import RayEngine
from opnorm.runs.runner import Study, run_study
from opnorm.runs.store import Store
from tests.runs.engines.clusters import cluster

pytestmark = pytest.mark.xdist_group("ray")


def few(runs) -> Study:
    return Study("few", runs, lambda results: pytest.fail("not asked for"))


@pytest.fixture
def nodes():
    with cluster() as found:
        yield found


def test_a_study_in_which_a_node_is_killed_has_the_bits_of_the_local_engine(
    nodes, tiny, store, tmp_path, seeds, same
):
    runs = seeds(replace(tiny, epochs=30), 2)
    bad = replace(tiny, optimizer="sgd(lr=1e30)", batch=16)
    run_study(few([*runs, bad]), Store(tmp_path / "local"), engine=LocalEngine(1, cpus=1))
    killed, news = [], []

    def progress(event):
        news.append(event)
        if not killed and "epoch" in event.text and event.share > 0.1:
            killed.append(next(iter(nodes.worker_nodes)))  # both have a run
            nodes.remove_node(killed[0], allow_graceful=False)

    results = run_study(few([*runs, bad]), store, engine=RayEngine(nodes.address), progress=progress)
    assert killed
    for index in range(2):
        shares = [e.share for e in news if e.index == index and "epoch" in e.text]
        assert all(b >= a - 1 / 30 for a, b in pairwise(shares)), "from the last epoch"
    assert [bool(r.failure) for r in results] == [False, False, True]
    assert "smaller learning rate" in results[2].failure
    assert Path(results[2].log).exists()
    for run in runs:
        same(store, Store(tmp_path / "local"), run)
    again = run_study(few([*runs, bad]), store, engine=RayEngine(nodes.address))
    assert all(result.found for result in again)
