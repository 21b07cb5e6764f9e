import os

import pytest

from sar_gen.settings import ROOT

ray_cluster = pytest.importorskip("sar_gen.ray_cluster")


def test_workers_import_this_checkout_before_anything_else(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    assert ray_cluster.environment()["env_vars"]["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "elsewhere"]
    monkeypatch.delenv("PYTHONPATH")
    assert ray_cluster.environment()["env_vars"]["PYTHONPATH"] == str(ROOT)
