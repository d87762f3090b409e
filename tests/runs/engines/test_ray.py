"""A study on a Ray cluster: the bits of the local engine, whatever dies; one message for what cannot work."""

import socket
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from opnorm.errors import BusyError, RunError
from opnorm.runs.engines import driver_lock
from opnorm.runs.engines import ray as ray_module
from opnorm.runs.engines.driver_lock import only_driver
from opnorm.runs.engines.local import LocalEngine
from opnorm.runs.engines.ray import RayEngine
from opnorm.runs.identity import hash_of
from opnorm.runs.runner import Study, run_study
from opnorm.runs.store import Store
from tests.runs.engines.clusters import cluster, connected, full_object_stores

EPOCHS = 30


def few(runs) -> Study:
    return Study("few", runs, lambda results: pytest.fail("not asked for"))


def never_back(news, index) -> bool:
    """Whether a run never went back by more than the epoch in which it was."""
    shares = [event.share for event in news if event.index == index and "epoch" in event.text]
    return all(b >= a - 1 / EPOCHS for a, b in pairwise(shares))


def test_a_node_is_killed_and_the_object_stores_are_full(tiny, store, tmp_path, seeds, same):
    runs, local = seeds(replace(tiny, epochs=EPOCHS), 2), Store(tmp_path / "local")
    bad = replace(tiny, optimizer="sgd(lr=1e30)", batch=16)
    run_study(few([*runs, bad]), local, engine=LocalEngine(1, cpus=1))
    killed, news = [], []
    with cluster() as nodes, connected(nodes.address) as ray:

        def progress(event):
            news.append(event)
            if not killed and "epoch" in event.text and event.share > 0.1:
                killed.append(next(iter(nodes.worker_nodes)))  # both have a run
                nodes.remove_node(killed[0], allow_graceful=False)

        full = full_object_stores(ray)
        results = run_study(few([*runs, bad]), store, engine=RayEngine(nodes.address), progress=progress)
        assert len(full) == 2
    assert killed
    assert never_back(news, 0)
    assert never_back(news, 1)
    assert [bool(r.failure) for r in results] == [False, False, True]
    assert results[2].failure == local.failure(bad.key)
    assert Path(results[2].log).exists()
    for run in runs:
        same(store, local, run)


# ---------------------------------------------------------------- without a cluster


def test_ray_is_not_installed(monkeypatch):
    monkeypatch.setattr(ray_module, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"pip install 'opnorm\[ray\]'"):
        RayEngine()


@pytest.mark.parametrize(
    ("address", "said"),
    [("127.0.0.1:1", "no cluster answers at 127.0.0.1:1"), ("ray://host", "expected ray://HOST:PORT")],
)
def test_a_cluster_that_cannot_be_reached(main, address, said):
    status, out, err = main("study", "tour", "--engine", "ray", "--ray-address", address)
    assert (status, out) == (2, "")
    assert said in err.splitlines()[-1]


def test_a_cluster_that_never_answers(tiny, store, monkeypatch):
    monkeypatch.setattr(ray_module, "REACHED", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RunError, match=f"the cluster {address} has not answered in time"):
            run_study(few([tiny]), store, engine=RayEngine(address))


@pytest.mark.parametrize("option", [("--ray-address", "auto"), ("--storage", "s3://bucket")])
def test_options_of_a_cluster_without_one(main, option):
    status, _, err = main("study", "tour", *option)
    assert status == 2
    assert f"{option[0]} {option[1]}: expected with --engine ray only" in err


@pytest.mark.parametrize("url", ["", "file"])
def test_two_drivers_on_one_study(tiny, store, tmp_path, url, monkeypatch):
    monkeypatch.setattr(driver_lock, "BEAT", 0.2)
    url = url and f"file://{tmp_path}/there"
    other = Store(tmp_path / "other") if url else store  # under a URL each has its own folder
    with (
        only_driver(hash_of([tiny.key]), store, url),
        pytest.raises(BusyError, match=r"another driver.* is at this study"),
    ):
        run_study(few([tiny]), other, engine=RayEngine(storage=url))
    with only_driver(hash_of([tiny.key]), other, url):  # once the first has ended
        pass


def test_a_driver_takes_over_from_one_that_has_died(store, tmp_path, monkeypatch):
    monkeypatch.setattr(driver_lock, "DEAD", 0.5)
    (tmp_path / "there" / ".drivers").mkdir(parents=True)
    (tmp_path / "there" / ".drivers" / "few.json").write_text('{"host": "a", "process": 1, "beat": 7}')
    with only_driver("few", store, f"file://{tmp_path}/there"):
        pass
