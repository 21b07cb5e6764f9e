import ctypes
import gc
import sys
import weakref

import psutil
import pytest
import torch

from sar_gen.kept import Kept, give_back


class Thing:
    pass


def test_the_least_recently_used_goes_first():
    kept, gone = Kept(), []
    for name in "abc":
        kept.put(name, Thing(), 10, lambda name=name: gone.append(name))
    assert kept.get("a") is not None  # used now
    assert kept.make_room(10, 30)
    assert gone == ["b"]
    assert kept.size == 20
    assert list(kept) == ["c", "a"]
    assert kept.make_room(0, 10)
    assert gone == ["b", "c"]


def test_nothing_goes_for_what_is_larger_than_the_budget():
    kept = Kept()
    kept.put("a", Thing(), 10)
    assert not kept.make_room(31, 30)
    assert "a" in kept


def test_what_is_taken_or_replaced_is_counted_once_and_dropped_once():
    kept, gone = Kept(), []
    first = Thing()
    kept.put("a", first, 10, lambda: gone.append(1))
    assert kept.take("a") is first
    assert gone == []
    assert (kept.size, len(kept), kept.take("a"), kept.get("a")) == (0, 0, None, None)
    kept.put("a", first, 10, lambda: gone.append(1))
    kept.put("a", Thing(), 20, lambda: gone.append(2))
    assert gone == [1]
    assert kept.size == 20
    kept.clear()
    assert gone == [1, 2]
    assert not kept.drop_oldest()


def test_what_goes_is_dead():
    kept, thing = Kept(), Thing()
    ref = weakref.ref(thing)
    kept.put("a", thing, 1)
    del thing
    kept.discard("a")
    gc.collect()
    assert ref() is None


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs the GNU C library"
)
def test_memory_goes_back_to_the_machine():
    """Blocks under the C library's threshold, as most tensors of a model are, stay with the process else."""
    process, last = psutil.Process(), []
    blocks = []
    for _ in range(2000):  # 200 MB, and a small one behind each, so that none is at the end of the heap
        blocks.append(torch.ones(25_000))
        last.append(torch.ones(200))
    before = process.memory_info().rss
    del blocks
    give_back()
    assert before - process.memory_info().rss > 150_000_000
