"""Two replicas by Ray Serve on this machine, over tiny random checkpoints."""

import dataclasses
import json
import threading
import time
import urllib.request

import numpy as np
import pytest
import ray

from sar_gen.errors import InputError, SarGenError
from sar_gen.request import Done, GenerationRequest, PatchReady, Step, Stopped
from sar_gen.serving import on_ray
from sar_gen.serving.client import RemoteEngine
from sar_gen.settings import Settings
from tests import tiny
from tests.browser.driver import free_port
from tests.serving.conftest import wait_for

REQUEST = GenerationRequest("a river", checkpoint="base", seed=5, steps=3)
LONG = dataclasses.replace(REQUEST, steps=200, count=64)
LOOKS = 12  # answers of /state from which both replicas have surely been heard


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    root = tmp_path_factory.mktemp("ray")
    tiny.checkpoint(root / "checkpoints" / "base")
    return Settings(
        home=root / "home", runs=root / "runs", checkpoints=root / "checkpoints", device="cpu", checkpoint="base"
    )


@pytest.fixture(scope="module")
def address(settings):
    """Start Ray and two replicas, as ``python -m sar_gen serve --ray local --replicas 2`` does; end both."""
    ends, found, failed = threading.Event(), [], []

    def while_served(at):
        found.append(at)
        ends.wait()

    def run():
        try:
            on_ray.serve_on_ray(
                settings, "127.0.0.1", free_port(), replicas=2, max_waiting=1, while_served=while_served
            )
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: found or failed, 120)
    assert found, failed
    yield found[0]
    ends.set()
    thread.join(60)
    assert not ray.is_initialized()


@pytest.fixture
def engine(settings, address):
    engine = RemoteEngine(dataclasses.replace(settings, backend=address))
    engine.backend.check()
    return engine


def jobs(address):
    """How many jobs each answer to /state tells of; the proxy spreads the questions over the replicas."""
    return [json.load(urllib.request.urlopen(f"{address}/state", timeout=30))["jobs"] for _ in range(LOOKS)]


def amplitudes(events):
    return {e.index: e.amplitude for e in events if isinstance(e, PatchReady)}


def test_patches_are_the_engines_own(settings, engine, one_thread):
    from sar_gen.engine import Engine

    events = list(engine.generate(dataclasses.replace(REQUEST, count=2)))
    assert isinstance(events[-1], Done)
    assert sum(isinstance(e, Step) for e in events) == 6
    here = Engine(settings)
    near = amplitudes(here.generate(dataclasses.replace(REQUEST, count=2)))
    identity = here.identity()
    here.close()
    far = amplitudes(events)
    assert far.keys() == near.keys() == {0, 1}
    for index in far:  # with one thread each: the same sums in the same order
        np.testing.assert_array_equal(far[index], near[index])
    assert engine.identity() == identity


def test_refusals_come_through_the_proxy(engine):
    with pytest.raises(InputError, match="The number of steps is 1000; choose 1 to 200"):
        engine.generate(dataclasses.replace(REQUEST, steps=1000))


def test_two_replicas_work_at_once(engine, address):
    held = [engine.generate(LONG, previews=False) for _ in range(2)]
    for events in held:
        while not isinstance(next(events), Step):
            pass
    assert max(jobs(address)) == 1
    for events in held:
        events.close()
    wait_for(lambda: not any(jobs(address)))


def test_hanging_up_stops_the_right_replica(engine, address):
    cancel = threading.Event()
    events = engine.generate(LONG, cancel=cancel, previews=False)
    other = engine.generate(LONG, previews=False)
    for one in (events, other):
        while not isinstance(next(one), Step):
            pass
    cancel.set()
    assert isinstance(list(events)[-1], Stopped)
    wait_for(lambda: sorted(set(jobs(address))) == [0, 1])
    assert isinstance(next(other), Step)  # goes on
    other.close()
    wait_for(lambda: not any(jobs(address)))


def test_too_many_requests_are_refused_and_taken_again_later(engine, address):
    held = []
    refused = None
    for _ in range(5):  # each replica makes one and lets one wait
        try:
            held.append(engine.generate(LONG, previews=False))
        except SarGenError as error:
            refused = str(error)
            break
    assert refused == "The backend has 2 requests at work or waiting; try again in a moment."
    assert 2 <= len(held) <= 4
    for events in held:
        events.close()
    wait_for(lambda: not any(jobs(address)))
    assert isinstance(list(engine.generate(REQUEST))[-1], Done)


def test_a_replica_that_is_lost_is_replaced(engine, address):
    """Its request ends with a sentence; the next one is served."""
    events = engine.generate(LONG, previews=False)
    while not isinstance(next(events), Step):
        pass
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    replicas = [name for name in names if "REPLICA" in name.upper()]
    assert len(replicas) == 2
    for name in replicas:
        ray.kill(ray.get_actor(name, namespace="serve"))
    last = list(events)[-1]
    assert type(last).__name__ == "Failed"
    assert "was lost" in last.message
    started = time.monotonic()
    while time.monotonic() - started < 60:
        try:
            assert isinstance(list(engine.generate(REQUEST))[-1], Done)
            return
        except SarGenError:  # one sentence until a new one has started
            time.sleep(0.5)
    pytest.fail("no replica came back")


def test_what_the_cluster_has_not_is_said(address):
    with pytest.raises(InputError, match="3 replicas of 2 GPUs need 6, and the cluster has 0"):
        on_ray._cpus_each(3, 2)
    with pytest.raises(InputError, match="1000 replicas need a core each"):
        on_ray._cpus_each(1000, 0)
    assert on_ray._cpus_each(1, 0) >= 1
