import gc
import sys
import types

import pytest

from sar_gen import imports
from sar_gen.imports import without_collection


@pytest.fixture(autouse=True)
def _unfrozen():
    yield
    gc.unfreeze()


def test_the_collector_rests_and_comes_back():
    with without_collection():
        assert not gc.isenabled()
        with without_collection():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), without_collection():
        raise ImportError
    assert gc.isenabled()


def test_only_what_came_with_many_modules_is_set_aside(monkeypatch):
    gc.unfreeze()
    with without_collection():
        pass
    assert gc.get_freeze_count() == 0
    with without_collection():
        for i in range(imports.MANY):
            monkeypatch.setitem(sys.modules, f"made_up_{i}", types.ModuleType(f"made_up_{i}"))
    assert gc.get_freeze_count() > 0
