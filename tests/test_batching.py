"""Which request is next, and requests that share a batch: the same patches as made alone, on a tiny pipeline."""

import dataclasses
import queue
import threading

import numpy as np
import pytest

from sar_gen import engine as engine_module
from sar_gen.batching import MAX_PASSED, batch_key, companions, next_place
from sar_gen.checkpoints import catalogue
from sar_gen.engine import Engine
from sar_gen.pipelines import PipelineHolder
from sar_gen.request import (
    Done,
    Failed,
    GenerationRequest,
    Guide,
    PatchReady,
    Preview,
    Queued,
    Step,
    Stopped,
    check_request,
)
from sar_gen.settings import Settings
from tests import tiny

REQUEST = GenerationRequest("a river", checkpoint="base", seed=5, steps=4)


def test_the_loaded_checkpoint_goes_first_but_not_for_ever():
    assert next_place(["a", "b", "a"], 0, "a") == 0
    assert next_place(["b", "c", "a", "a"], 0, "a") == 2
    assert next_place(["b", "c"], 0, "a") == 0
    assert next_place(["b", "a"], MAX_PASSED - 1, "a") == 1
    assert next_place(["b", "a"], MAX_PASSED, "a") == 0


def test_nothing_goes_before_work_that_keeps_its_place():
    assert next_place([None, "a"], 0, "a") == 0
    assert next_place(["b", None, "a"], 0, "a") == 0
    assert next_place(["b", "a", None], 0, "a") == 1


def test_nobody_waits_for_more_than_the_bound():
    """A stream of requests for one checkpoint: another one's turn comes all the same."""
    waiting, passed, served = ["b", *["a"] * 30], 0, []
    while waiting:
        place = next_place(waiting, passed, "a" if not served else served[-1])
        passed = 0 if place == 0 else passed + 1
        served.append(waiting.pop(place))
    assert served.index("b") == MAX_PASSED
    assert sorted(served) == ["a"] * 30 + ["b"]


def test_companions_share_the_key_and_fit():
    assert companions(["k", "j", "k", None, "k"], [1, 1, 1, 1, 1], "k", 2) == [0, 2]
    assert companions(["k", "k", "k"], [4, 2, 1], "k", 3) == [1, 2]
    assert companions([None, None], [1, 1], None, 9) == []
    assert companions(["k"], [1], "k", 0) == []


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    root = tmp_path_factory.mktemp("batching")
    tiny.checkpoint(root / "checkpoints" / "base")
    tiny.checkpoint(root / "checkpoints" / "other", seed=3)
    return Settings(home=root / "home", runs=root / "runs", checkpoints=root / "checkpoints", device="cpu")


def key(settings, **changes):
    return batch_key(*check_request(dataclasses.replace(REQUEST, **changes), catalogue(settings), settings))


def test_requests_share_a_batch_only_where_the_denoiser_does_the_same(settings):
    mine = key(settings)
    assert mine is not None
    for changes in ({"prompt": "a wood"}, {"seed": 9}, {"count": 3}, {"negative": "sea"}):
        assert key(settings, **changes) == mine
    others = [
        {"steps": 5},
        {"guidance": 2.0},
        {"scheduler": "ddim"},
        {"checkpoint": "other"},
        {"profile": "fast"},
    ]
    keys = [mine, *(key(settings, **changes) for changes in others)]
    assert len(set(keys)) == len(keys)
    request, spec = check_request(dataclasses.replace(REQUEST, width=128), catalogue(settings), settings)
    assert batch_key(request, spec) is None
    large = dataclasses.replace(spec, resolution=128)
    assert batch_key(request, large) not in (None, batch_key(dataclasses.replace(request, width=64), large))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert key(settings, guides=(Guide("optical", pixels),)) is None


class Held(Engine):
    """An engine whose next job waits until it is let go, so that a queue can form."""

    def __init__(self, settings):
        super().__init__(settings)
        self.let_go = threading.Event()

    def hold(self):
        begun = threading.Event()

        def work(_):
            begun.set()
            self.let_go.wait(30)

        self._submit(engine_module._Job(work))
        begun.wait(30)


@pytest.fixture
def engine(settings, one_thread):
    engine = Held(settings)
    yield engine
    engine.let_go.set()
    engine.close()


def ask_all(engine, requests, cancels=None, previews=()):
    """Submit requests while the engine is held, in this order; return the events of each."""
    found = [[] for _ in requests]
    threads = []

    def listen(place, events, first):
        found[place].append(first)
        found[place].extend(events)

    engine.hold()
    for place, request in enumerate(requests):
        cancel = None if cancels is None else cancels[place]
        events = engine.generate(request, cancel=cancel, previews=place in previews)
        first = next(events)  # it is in the queue
        assert isinstance(first, Queued)
        threads.append(threading.Thread(target=listen, args=(place, events, first)))
        threads[-1].start()
    engine.let_go.set()
    for thread in threads:
        thread.join(60)
    return found


def patches(events):
    return {e.index: (e.seed, e.amplitude) for e in events if isinstance(e, PatchReady)}


@pytest.fixture
def batches(monkeypatch):
    """Eight patches at once, and a list of how many noises were drawn together."""
    sizes = []
    real = engine_module.initial_noise

    def noise(pipe, generators, *args, **options):
        sizes.append(len(generators))
        return real(pipe, generators, *args, **options)

    monkeypatch.setattr(engine_module, "batch_size", lambda placement, pixels: 8)
    monkeypatch.setattr(engine_module, "initial_noise", noise)
    return sizes


def test_waiting_requests_share_a_batch_and_are_what_they_are_alone(settings, engine, batches, monkeypatch):
    requests = [
        dataclasses.replace(REQUEST, count=2),
        dataclasses.replace(REQUEST, prompt="a wood", seed=40),
        dataclasses.replace(REQUEST, prompt="a field", negative="sea", seed=77, count=3),
    ]
    together = ask_all(engine, requests, previews=(1,))
    assert batches == [6]
    monkeypatch.setattr(engine_module, "batch_size", lambda placement, pixels: 1)
    alone = Engine(settings)
    for request, events in zip(requests, together, strict=True):
        assert isinstance(events[-1], Done)
        made, wanted = patches(events), patches(alone.generate(request, previews=False))
        assert {index: seed for index, (seed, _) in made.items()} == {
            index: request.seed + index for index in range(request.count)
        }
        assert wanted.keys() == made.keys()
        for index, (_, amplitude) in made.items():
            np.testing.assert_allclose(amplitude, wanted[index][1], atol=2e-5)
        steps = [e for e in events if isinstance(e, Step)]
        assert [(e.step, e.first, e.size, e.count) for e in steps] == [
            (k, 0, request.count, request.count) for k in (1, 2, 3, 4)
        ]
        assert steps[-1].eta == 0
    alone.close()
    different = [patches(events)[0][1] for events in together]
    assert not np.allclose(different[0], different[1], atol=1e-3)
    assert [any(isinstance(e, Preview) for e in events) for events in together] == [False, True, False]


def test_what_does_not_fit_goes_by_itself(engine, batches):
    requests = [
        dataclasses.replace(REQUEST, count=5),
        dataclasses.replace(REQUEST, count=4, seed=50),
        dataclasses.replace(REQUEST, seed=60, steps=5),
        dataclasses.replace(REQUEST, seed=70),
    ]
    together = ask_all(engine, requests)
    assert batches == [6, 4, 1]
    assert [len(patches(events)) for events in together] == [5, 4, 1, 1]


def test_one_who_stops_in_a_batch_is_told_at_once_and_the_others_go_on(engine, batches):
    cancels = [threading.Event(), threading.Event()]
    real = engine_module.preview_steps
    seen = []

    def stop(steps):  # called within each step
        seen.append(steps)
        if len(seen) == 2:
            cancels[0].set()
        return real(steps)

    requests = [REQUEST, dataclasses.replace(REQUEST, seed=40)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "preview_steps", stop)
        first, second = ask_all(engine, requests, cancels)
    assert batches == [2]
    assert isinstance(first[-1], Stopped)
    assert first[-1].finished == 0
    assert not patches(first)
    assert sum(isinstance(e, Step) for e in first) <= 2
    assert isinstance(second[-1], Done)
    assert patches(second).keys() == {0}


def test_all_who_stop_in_a_batch_end_it(engine, batches):
    cancels = [threading.Event(), threading.Event()]
    requests = [dataclasses.replace(REQUEST, steps=100), dataclasses.replace(REQUEST, steps=100, seed=40)]
    real = engine_module.preview_steps

    def stop(steps):
        for cancel in cancels:
            cancel.set()
        return real(steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "preview_steps", stop)
        found = ask_all(engine, requests, cancels)
    assert [type(events[-1]) for events in found] == [Stopped, Stopped]
    assert all(sum(isinstance(e, Step) for e in events) <= 2 for events in found)


def test_a_batch_that_fails_is_made_again_one_by_one(engine, batches, monkeypatch):
    """The fault is one request's; the others get their patches."""
    real = Engine._text

    def text(self, pipe, prompt, negative, guidance):
        if "wood" in prompt:
            raise RuntimeError("no such word")
        return real(self, pipe, prompt, negative, guidance)

    monkeypatch.setattr(Engine, "_text", text)
    requests = [REQUEST, dataclasses.replace(REQUEST, prompt="a wood"), dataclasses.replace(REQUEST, seed=40)]
    first, bad, last = ask_all(engine, requests)
    assert isinstance(bad[-1], Failed)
    assert "no such word" in bad[-1].message
    for events in (first, last):
        assert isinstance(events[-1], Done)
        assert patches(events).keys() == {0}


def test_a_batch_that_failed_after_patches_does_not_make_them_again(engine, batches, monkeypatch):
    real, calls = engine_module.decode, []

    def decode(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("broke")
        return real(*args, **options)

    monkeypatch.setattr(engine_module, "decode", decode)
    first, second = ask_all(engine, [dataclasses.replace(REQUEST, count=2), dataclasses.replace(REQUEST, seed=40)])
    assert [e.index for e in first if isinstance(e, PatchReady)] == [0, 1]
    assert [e.index for e in second if isinstance(e, PatchReady)] == [0]
    assert isinstance(first[-1], Done)
    assert isinstance(second[-1], Done)


def test_a_checkpoint_is_not_switched_to_and_fro(engine, monkeypatch):
    real, loaded = PipelineHolder.ensure, []

    def ensure(self, spec, *args, **options):
        loaded.append(spec.id)
        return real(self, spec, *args, **options)

    monkeypatch.setattr(PipelineHolder, "ensure", ensure)
    names = ["base", "other", "base", "other", "base"]
    found = ask_all(engine, [dataclasses.replace(REQUEST, checkpoint=n, seed=i) for i, n in enumerate(names)])
    assert all(isinstance(events[-1], Done) for events in found)
    assert loaded == ["base", "base", "base", "other", "other"]


def test_a_waiting_request_that_is_stopped_is_withdrawn(engine):
    engine.hold()
    cancel = threading.Event()
    events = engine.generate(REQUEST, cancel=cancel)
    assert next(events) == Queued(1)
    assert engine.jobs == 2
    cancel.set()
    assert next(events) == Stopped(0)
    assert engine.jobs == 1
    engine.let_go.set()


def test_closing_ends_those_that_wait(settings, one_thread):
    engine = Held(settings)
    engine.hold()
    events = engine.generate(REQUEST)
    next(events)
    ends = queue.SimpleQueue()
    threading.Thread(target=lambda: ends.put(list(events)[-1]), daemon=True).start()
    engine.let_go.set()
    engine.close()
    assert isinstance(ends.get(timeout=30), Stopped)
    assert not engine.alive
