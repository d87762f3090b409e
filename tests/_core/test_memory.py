"""Memory that is used again: page faults inside and outside, nested, in threads, and after an error."""

import platform
import threading

import pytest
import torch

from opnorm._core.memory import freed_memory_kept

resource = pytest.importorskip("resource", reason="page faults are counted on Unix only")
pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="an allocator of its own is for glibc"
)
SIZE = 40 * 2**20


def work() -> None:
    """Five tensors of 40 MiB at a time, as a network's features."""
    features = [torch.ones(SIZE // 4)]
    for _ in range(4):
        features.append(features[-1] + 1)


def faults() -> int:
    """Page faults of a turn of work after two more; each page of each tensor where none is kept."""
    before = 0
    for turn in range(3):
        if turn == 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        work()
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


ALL = 5 * SIZE // 4096
# with huge pages there are hardly any faults, kept or not
huge_pages = pytest.mark.skipif(faults() < ALL // 2, reason="the system gives huge pages")


@huge_pages
def test_freed_memory_is_used_again() -> None:
    with freed_memory_kept():
        assert faults() < ALL // 20
    assert faults() > ALL // 2


@huge_pages
def test_nested_and_after_an_error() -> None:
    with freed_memory_kept():
        with pytest.raises(ZeroDivisionError), freed_memory_kept():
            raise ZeroDivisionError
        assert faults() < ALL // 20, "the inner one must not end the outer one"
    assert faults() > ALL // 2


@huge_pages
def test_the_last_of_several_threads_ends_it() -> None:
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with freed_memory_kept():
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=other)
    with freed_memory_kept():
        thread.start()
        assert entered.wait(30)
    assert faults() < ALL // 20, "the other thread still needs it"
    leave.set()
    thread.join()
    assert faults() > ALL // 2


@huge_pages
def test_the_memory_is_given_back_at_the_end() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096

    before = resident()
    with freed_memory_kept():
        work()
        assert resident() > before + 4 * SIZE, "it is kept inside"
    assert resident() < before + SIZE
