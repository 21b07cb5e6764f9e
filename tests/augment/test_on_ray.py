"""Ray on this machine: two workers, started once for the module."""

import os
import signal
import sys

import psutil
import pytest

from sar_gen.augment import on_ray
from sar_gen.augment.run import augment
from sar_gen.errors import InputError
from tests.augment.test_run import contents

ray = pytest.importorskip("ray")
ray_cluster = pytest.importorskip("sar_gen.ray_cluster")
CLASSES = [{"name": "a", "count": 14}, {"name": "b", "count": 10}]
TABLES = {"classes": CLASSES, "prompts": ["{class}"], "vocabulary": {}, "shards": 6}


@pytest.fixture(scope="module")
def cluster():
    ray_cluster.join(ray_cluster.LOCAL, on_ray.STORE_BYTES)
    yield
    ray.shutdown()


def workers():
    """Return the processes of Ray's actors that were started from here."""
    return [one for one in psutil.Process().children(recursive=True) if "MapWorker" in _title(one)]


def _title(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


@pytest.mark.usefixtures("cluster")
def test_ray_makes_the_same_set_as_this_process_though_a_worker_is_killed(place, tmp_path):
    local, far = (place.plan(tmp_path / name, **TABLES) for name in ("local", "ray"))
    assert augment(local, "", place.settings, workers=1).finished
    killed = []

    def kill(state):
        if state.fresh >= 3 and not killed:
            worker = workers()[0]
            os.kill(worker.pid, signal.SIGKILL)
            killed.append(worker.pid)

    outcome = augment(far, "", place.settings, ray="local", workers=2, show=kill)
    assert killed
    assert (outcome.finished, outcome.state.fresh, outcome.state.made) == (True, 24, 24)
    assert outcome.workers.startswith("2 workers on Ray ")
    assert contents(far.out) == contents(local.out)
    assert ray.is_initialized()  # it was here before


@pytest.mark.usefixtures("cluster")
def test_what_goes_wrong_on_a_worker_is_said_here(place, tmp_path):
    plan = place.plan(tmp_path / "set", **TABLES)
    weights = place.settings.checkpoints / "base/unet/diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()

    def spoil(state):
        weights.write_bytes(before[:-1] + b"\0")

    try:
        with pytest.raises(InputError, match="The checkpoint base on this machine is not the set's"):
            augment(plan, "", place.settings, ray="local", workers=1, show=spoil)
    finally:
        weights.write_bytes(before)


@pytest.mark.usefixtures("cluster")
def test_more_workers_than_there_is_room_for_are_refused(place, tmp_path):
    cores = int(ray.cluster_resources()["CPU"])
    with pytest.raises(InputError, match=rf"Ray has room for {cores} workers of 1 core\(s\) each"):
        augment(place.plan(tmp_path / "set"), "", place.settings, ray="local", workers=cores + 1)


def test_without_ray_one_sentence_says_how_to_get_it(place, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"Ray is not installed; pip install -r requirements-ray.txt, or leave out"):
        augment(place.plan(tmp_path / "set"), "", place.settings, ray="local")
