"""Memory that is used again: page faults and resident memory inside and after; nested, in threads, and after an error."""

import json
import platform
import subprocess
import sys
import threading

import pytest

from opnorm._core import memory
from opnorm._core.memory import freed_memory_kept

MEASURE = """
import json, resource, torch
from opnorm._core.memory import freed_memory_kept

SIZE = 40 * 2**20

def work():  # five tensors at a time, as a network's features
    features = [torch.ones(SIZE // 4)]
    for _ in range(4):
        features.append(features[-1] + 1)

def faults():
    work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / (3 * 5 * SIZE / 4096)

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096 / SIZE

found = {"faults before": faults(), "resident before": resident()}
with freed_memory_kept():
    found |= {"faults inside": faults(), "resident inside": resident()}
found["resident after"] = resident()
print(json.dumps(found))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is that of glibc")
def test_freed_memory_is_used_again_and_given_back_at_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    if found["faults before"] < 0.5:
        pytest.skip("the system gives huge pages, which have hardly any faults")
    assert found["faults inside"] < 0.3, found
    assert found["resident inside"] > found["resident before"] + 4, found
    assert found["resident after"] < found["resident before"] + 1, found


SMALL = """
import json, resource, torch
from opnorm._core.memory import small_frees_kept

def faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        features = [torch.ones(2**20)]  # five tensors of 4 MiB at a time
        for _ in range(4):
            features.append(features[-1] + 1)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start) / (4 * 5 * 2**20 * 4 / 4096)

found = {"first": faults(), "before": faults()}
start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
small_frees_kept()
found["pages of the block"] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
found |= {"again first": faults(), "after": faults()}
print(json.dumps(found))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is that of glibc")
def test_small_freed_tensors_are_used_again_after_a_block_that_takes_no_memory() -> None:
    done = subprocess.run([sys.executable, "-c", SMALL], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["pages of the block"] < 500, found  # of 7,936
    if found["before"] < 0.2:
        pytest.skip("the system gives huge pages, which have hardly any faults")
    assert found["after"] < 0.05, found


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[dict[int, int]]:
    """What malloc was told."""
    told: list[dict[int, int]] = []
    monkeypatch.setattr(memory, "_set_malloc", lambda library, options: told.append(options))
    return told


def test_the_outermost_one_ends_it_also_after_an_error(settings: list[dict[int, int]]) -> None:
    with freed_memory_kept():
        with pytest.raises(ZeroDivisionError), freed_memory_kept():
            raise ZeroDivisionError
        assert settings == [memory._KEPT]
    assert settings == [memory._KEPT, memory._USUAL]


def test_the_last_of_several_threads_ends_it(settings: list[dict[int, int]]) -> None:
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with freed_memory_kept():
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=other)
    with freed_memory_kept():
        thread.start()
        assert entered.wait(30)
    assert settings == [memory._KEPT], "the other thread still needs it"
    leave.set()
    thread.join()
    assert settings == [memory._KEPT, memory._USUAL]
