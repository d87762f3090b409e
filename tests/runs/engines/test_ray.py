"""A study on a Ray cluster: the bits of the local engine, whatever dies; one message for what cannot work."""

import os
import re
import signal
import socket
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import opnorm
from opnorm.errors import BusyError, RunError
from opnorm.runs.engines import driver_lock
from opnorm.runs.engines import ray as ray_module
from opnorm.runs.engines.driver_lock import only_driver
from opnorm.runs.engines.local import LocalEngine
from opnorm.runs.engines.ray import RayEngine
from opnorm.runs.engines.ray_nodes import check_nodes
from opnorm.runs.engines.ray_task import Storage
from opnorm.runs.identity import hash_of
from opnorm.runs.run import Run
from opnorm.runs.runner import Study, run_study
from opnorm.runs.store import Store
from tests.runs import processes
from tests.runs.engines.clusters import add, cluster, connected, full_object_stores
from tests.runs.processes import alive, children

EPOCHS = 20


def few(runs) -> Study:
    return Study("few", runs, lambda results: pytest.fail("not asked for"))


def driver(address, root, url, runs):
    """A driver in a process of its own."""
    run_study(few([Run.from_dict(run) for run in runs]), Store(root), engine=RayEngine(address, storage=url))


def never_back(news, index) -> bool:
    """Whether a run never went back by more than the epoch in which it was."""
    shares = [event.share for event in news if event.index == index and "epoch" in event.text]
    return all(b >= a - 1 / EPOCHS for a, b in pairwise(shares))


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


def test_the_address_of_a_head_of_this_machine_is_said(main):
    """127.0.0.2 is this machine, too, and nothing listens there."""
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
        for scheme in ("", "ray://"):
            _, _, err = main("study", "tour", "--engine", "ray", "--ray-address", f"{scheme}127.0.0.2:{port}")
            assert f"no cluster answers at {scheme}127.0.0.2:{port}, and one may at 127.0.0.1:{port}" in err
            assert f"try --ray-address {scheme}127.0.0.1:{port}" in err
            assert ("--ray-address auto" in err) == (not scheme)


def test_a_head_on_another_port_is_found_where_ray_has_written_it(main, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        _, _, err = main("study", "tour", "--engine", "ray", "--ray-address", "localhost:1")
    assert f"no cluster answers at localhost:1, and one may at {address}" in err


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


# ---------------------------------------------------------------- with a cluster, last: it is ended with the file


@pytest.fixture(scope="module")
def two_nodes():
    with cluster(num_cpus=1) as nodes:
        yield nodes


@pytest.fixture
def nodes(two_nodes):
    """A cluster of two nodes with a core each, one of them the head."""
    if not two_nodes.worker_nodes:  # a test has killed it
        add(two_nodes)
    return two_nodes


def test_nodes_that_cannot_be_used(nodes, tmp_path, monkeypatch):
    """Found out by a task on each, before anything trains."""
    shared = Storage(str(tmp_path), "", "")
    unshared = "/proc/self/cwd/runs"  # which every process understands in its own way
    with connected(nodes.address) as ray:
        assert check_nodes(ray, 1, 0, shared) == []
        assert not list((tmp_path / ".tokens").iterdir())
        with pytest.raises(RunError, match="takes 64 CPUs and 0 GPUs, and no node has as many"):
            check_nodes(ray, 64, 0, shared)
        monkeypatch.chdir(tmp_path)
        for storage in (Storage(unshared, "", ""), Storage("", f"file://{unshared}", "")):
            with pytest.raises(
                RunError, match=r"does not see what this machine writes to .*it is not shared"
            ):
                check_nodes(ray, 1, 0, storage)
        for module in (opnorm, torch):
            name, version = module.__name__, module.__version__
            monkeypatch.setattr(module, "__version__", "99.0")
            with pytest.raises(RunError, match=f"has {name} {re.escape(version)}, and this machine 99.0"):
                check_nodes(ray, 1, 0, shared)
            monkeypatch.setattr(module, "__version__", version)


def a_node(nodes):
    nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)


def a_process(nodes):
    busy = [pid for pid in children(os.getpid()) if processes.command_of(pid).startswith("ray::run_task")]
    os.kill(busy[0], signal.SIGKILL)


@pytest.mark.parametrize("kill", [a_node, pytest.param(a_process, marks=pytest.mark.slow)])
def test_something_is_killed_and_the_object_stores_are_full(nodes, tiny, store, tmp_path, seeds, same, kill):
    runs, local = seeds(replace(tiny, epochs=EPOCHS), 2), Store(tmp_path / "local")
    bad = replace(tiny, optimizer="sgd(lr=1e30)", batch=16)
    run_study(few([*runs, bad]), local, engine=LocalEngine(1, cpus=1))
    killed, news = [], []
    with connected(nodes.address) as ray:

        def progress(event):
            news.append(event)
            if not killed and "epoch" in event.text and event.share > 0.1:
                killed.append(event)
                kill(nodes)  # both nodes have a run

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


@pytest.mark.slow
def test_a_driver_is_killed_and_started_again(nodes, tiny, store, tmp_path, seeds, same, until, monkeypatch):
    """The nodes keep the runs under a URL, in which the second driver finds what the first one's runs have left."""
    monkeypatch.setattr(driver_lock, "DEAD", 1.0)
    runs, local = seeds(replace(tiny, epochs=EPOCHS), 3), Store(tmp_path / "local")
    url = f"file://{tmp_path}/there"
    run_study(few(runs), local, engine=LocalEngine(1, cpus=1))
    first = processes.start(driver, nodes.address, store.root, url, [run.as_dict() for run in runs])
    until(lambda: list((tmp_path / "there").glob("*/current.json")), 240)
    first.kill()
    first.join()
    news = []
    run_study(few(runs), store, engine=RayEngine(nodes.address, storage=url), progress=news.append)
    begun = [next((e.share for e in news if e.index == i and "epoch" in e.text), 1.0) for i in range(3)]
    assert max(begun) > 1 / EPOCHS, "what was there was not made again"
    for run in runs:
        same(store, local, run)


@pytest.mark.slow
def test_the_head_goes(tiny, store):
    long = replace(tiny, epochs=1000)
    with cluster() as nodes:

        def progress(event):
            if "epoch" in event.text and event.share > 0.01:
                nodes.head_node.kill_all_processes(check_alive=False, allow_graceful=False)

        with pytest.raises(RunError, match=r"the head of the cluster .* has gone.*Finished epochs are kept"):
            run_study(few([long]), store, engine=RayEngine(nodes.address), progress=progress)
    assert store.metrics(store.folder(long.key))


@pytest.mark.slow
def test_a_cluster_of_this_machine_is_started_and_ended(tiny, store, until):
    def rays():
        names = ("/raylet", "/gcs_server")
        return {
            p for p in children(os.getpid()) if processes.command_of(p).partition("\0")[0].endswith(names)
        }

    before, seen = rays(), set()  # another cluster of the tests may be there
    study = few([replace(tiny, epochs=1)])
    (result,) = run_study(study, store, engine=RayEngine(), progress=lambda _: seen.update(rays() - before))
    assert not result.failure
    assert len(seen) == 2
    until(lambda: not alive(seen))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["client", "job"])
def test_other_ways_to_a_cluster(tiny, store, monkeypatch, how):
    port = processes.free_port()
    with cluster(ray_client_server_port=port) as nodes:
        if how == "job":
            monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        engine = RayEngine(f"ray://127.0.0.1:{port}" if how == "client" else None)
        (result,) = run_study(few([tiny]), store, engine=engine)
    assert not result.failure
    assert result.rows
