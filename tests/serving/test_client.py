"""The remote engine against a real server: the same events and pictures as the engine's, refusals, Stop, losses."""

import dataclasses
import http.server
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from sar_gen import checkpoints, guide_networks
from sar_gen.errors import InputError, SarGenError
from sar_gen.request import (
    Done,
    Failed,
    GenerationRequest,
    Guide,
    Loading,
    Notice,
    PatchReady,
    Preview,
    Queued,
    Saved,
    Step,
    Stopped,
    check_request,
)
from sar_gen.runs import library_versions
from sar_gen.serving import client, wire
from sar_gen.serving.client import Backend, RemoteEngine, address_of, backend_of
from sar_gen.settings import ROOT, Settings
from sar_gen.studio import Studio
from tests.serving.conftest import serving, wait_for

REQUEST = GenerationRequest("a river", checkpoint="base", seed=5, steps=3)
LONG = dataclasses.replace(REQUEST, steps=200, count=64)


@pytest.fixture
def engine(server):
    engine = RemoteEngine(server.client)
    engine.backend.check()
    return engine


def amplitudes(events):
    return {e.index: e.amplitude.tobytes() for e in events if isinstance(e, PatchReady)}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("gpu:8000", "http://gpu:8000"),
        (" http://127.0.0.1:8000/ ", "http://127.0.0.1:8000"),
        ("https://example.org/sar", "https://example.org/sar"),
        ("[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_an_address(text, address):
    assert address_of(text) == address


@pytest.mark.parametrize(
    "text", ["", "http://", "ftp://gpu", "gpu:port", "gpu:99999", "a b:80", "http://u:p@gpu", "x?y=1"]
)
def test_no_address(text):
    with pytest.raises(InputError, match="is no address"):
        address_of(text)


def test_events_and_pictures_are_the_engines_own(server, engine):
    request = dataclasses.replace(REQUEST, count=2, steps=4, prompt=" ".join(["wood"] * 100))
    far, near = list(engine.generate(request)), list(server.engine.generate(request))
    plain = [[e for e in events if not isinstance(e, Loading)] for events in (far, near)]
    assert [type(e) for e in plain[0]] == [type(e) for e in plain[1]]
    assert {type(e) for e in far} >= {Notice, Step, Preview, PatchReady, Done}
    assert amplitudes(far) == amplitudes(near)
    assert len(amplitudes(far)) == 2
    steps = [[(e.step, e.steps, e.first, e.size, e.count) for e in events if isinstance(e, Step)] for events in plain]
    assert steps[0] == steps[1]
    assert engine.identity() == server.engine.identity()
    where = engine.where()
    assert where == {"device": "cpu", "dtype": "float32", "backend": server.address}
    assert engine.versions() == dict(library_versions())
    assert not any(isinstance(e, Preview) for e in engine.generate(request, previews=False))


def test_guides_go_with_their_pixels(server, engine):
    pixels = np.random.default_rng(1).integers(0, 256, (80, 48, 3)).astype(np.uint8)
    for way in ("image-to-image", "net"):
        request = dataclasses.replace(REQUEST, guides=(Guide("optical", pixels, way=way),))
        far, near = list(engine.generate(request)), list(server.engine.generate(request))
        assert amplitudes(far) == amplitudes(near)
        assert len(amplitudes(far)) == 1
        assert ("guides" in engine.identity()) == (way == "net")


def test_a_refusal_is_raised_at_once(engine):
    with pytest.raises(InputError, match="The number of steps is 1000; choose 1 to 200"):
        engine.generate(dataclasses.replace(REQUEST, steps=1000))


@pytest.mark.parametrize("moment", ["before", "waiting", "denoising"])
def test_stop(server, engine, moment):
    cancel = threading.Event()
    holder = engine.generate(LONG, previews=False) if moment == "waiting" else None
    if holder is not None:
        while not isinstance(next(holder), Step):
            pass
    if moment == "before":
        cancel.set()
    events = engine.generate(LONG, cancel=cancel, previews=False)
    wanted = {"before": None, "waiting": Queued, "denoising": Step}[moment]
    while wanted is not None and not isinstance(next(events), wanted):
        pass
    cancel.set()
    started = time.monotonic()
    last = list(events)[-1]
    assert time.monotonic() - started < 1
    assert isinstance(last, Stopped)
    assert last.finished == 0
    left = 0 if holder is None else 1
    assert wait_for(lambda: server.engine.jobs == left) < 2
    if holder is not None:
        holder.close()
        wait_for(lambda: server.engine.jobs == 0)


def test_stop_keeps_what_was_finished(server, engine):
    cancel = threading.Event()
    seen = []
    for event in engine.generate(dataclasses.replace(LONG, steps=2), cancel=cancel):
        seen.append(event)
        if isinstance(event, PatchReady) and event.index == 1:
            time.sleep(0.3)  # more are finished meanwhile
            cancel.set()
    assert isinstance(seen[-1], Stopped)
    assert seen[-1].finished == len(amplitudes(seen)) >= 2
    assert seen[-1].seconds["generate"] > 0
    wait_for(lambda: server.engine.jobs == 0)


def test_closing_and_forgetting_the_iterator_stop_the_work(server, engine):
    for leave in ("close", "forget"):
        events = engine.generate(LONG)
        next(events)
        wait_for(lambda: server.engine.jobs == 1)
        if leave == "close":
            events.close()
            assert list(events) == []
        else:
            del events
        wait_for(lambda: server.engine.jobs == 0)


def test_too_many_requests(server, engine):
    held = [engine.generate(LONG) for _ in range(3)]
    with pytest.raises(SarGenError, match="has 3 requests at work or waiting; try again in a moment") as caught:
        engine.generate(REQUEST)
    assert not isinstance(caught.value, InputError)
    for events in held:
        events.close()
    wait_for(lambda: server.engine.jobs == 0)


def test_several_at_once_each_get_their_own(server, engine):
    found = {}

    def make(seed):
        found[seed] = amplitudes(engine.generate(dataclasses.replace(REQUEST, seed=seed)))

    threads = [threading.Thread(target=make, args=(seed,)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    alone = {seed: amplitudes(server.engine.generate(dataclasses.replace(REQUEST, seed=seed))) for seed in (1, 2, 3)}
    assert found == alone


# ---- the catalogue


def test_the_catalogue_is_the_backends(server, engine):
    settings = server.client
    known = checkpoints.catalogue(settings)
    assert list(known) == ["base", "other"]
    assert not checkpoints.missing_files(known["base"], settings)
    with pytest.raises(InputError, match="is on the backend, not on this machine"):
        checkpoints.local_folder(known["base"], settings)
    networks = guide_networks.networks(settings, known)
    assert list(networks) == ["net"]
    assert guide_networks.ways(networks, known["base"], "optical")[0] in ("net", "image-to-image")
    request, spec = check_request(REQUEST, known, settings)
    assert (request.width, spec.id) == (64, "base")
    assert list(checkpoints.catalogue(settings.here())) == ["sdxl-base", "hochstuhl-s1", "hochstuhl-capella"]


def test_a_new_checkpoint_appears(served_settings, one_thread, tmp_path, monkeypatch):
    from sar_gen.serving import server as server_module
    from tests import tiny

    monkeypatch.setattr(server_module, "CATALOGUE_SECONDS", 0.0)
    settings = dataclasses.replace(served_settings, checkpoint_folders=(tmp_path,))
    with serving(settings) as server:
        assert list(checkpoints.catalogue(server.client)) == ["base", "other"]
        tiny.checkpoint(tmp_path / "fresh", seed=9)
        wait_for(lambda: "fresh" in checkpoints.catalogue(server.client))


# ---- the studio


def test_a_studio_writes_runs_of_the_backend(server):
    studio = Studio(server.client)
    events = list(studio.generate(dataclasses.replace(REQUEST, count=2)))
    saved = [e for e in events if isinstance(e, Saved)]
    near = [
        e.amplitude for e in server.engine.generate(dataclasses.replace(REQUEST, count=2)) if isinstance(e, PatchReady)
    ]
    for one, amplitude in zip(saved, near, strict=True):
        assert np.load(one.amplitude_file).tobytes() == amplitude.tobytes()
    record = studio.last_run()
    assert record.status == "done"
    assert record.device["backend"] == server.address
    assert record.checkpoint["parts"] == server.engine.identity()
    assert record.versions == dict(library_versions())
    wait_for(lambda: studio.state.status == "ready")
    assert studio.state.device == f"cpu at {server.address.removeprefix('http://')}"


def test_what_the_backend_refuses_leaves_no_run(server, tmp_path):
    studio = Studio(dataclasses.replace(server.client, runs=tmp_path / "runs", max_side=8192))
    with pytest.raises(InputError, match="The width is 8192 pixels"):  # the backend's own limit
        studio.generate(dataclasses.replace(REQUEST, width=8192), token="mine")
    assert not (tmp_path / "runs").exists()
    assert studio._cancels == {}


def test_a_run_that_cannot_begin_hangs_up(server, tmp_path):
    (tmp_path / "runs").write_text("a file")
    studio = Studio(dataclasses.replace(server.client, runs=tmp_path / "runs"))
    with pytest.raises(SarGenError, match="folder"):
        studio.generate(LONG)
    wait_for(lambda: server.engine.jobs == 0)


def test_a_studio_without_torch():
    """A page on a laptop: neither the catalogue nor a request needs torch here."""
    code = """
import sys
from sar_gen.errors import SarGenError
from sar_gen.request import GenerationRequest
from sar_gen.settings import Settings
from sar_gen.studio import Studio
studio = Studio(Settings(backend="127.0.0.1:9"))
try:
    studio.generate(GenerationRequest("a river"))
except SarGenError as error:
    print(error)
print([name for name in ("torch", "diffusers", "gradio", "uvicorn", "ray") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    said, modules = done.stdout.splitlines()
    assert said.startswith("The backend http://127.0.0.1:9 cannot be reached (Connection refused); check the address")
    assert modules == "[]"


# ---- losses


def test_a_backend_that_is_lost_in_the_middle_and_comes_back(served_settings, one_thread, tmp_path):
    with serving(served_settings) as server:
        port = int(server.address.rpartition(":")[2])
        studio = Studio(dataclasses.replace(server.client, runs=tmp_path))
        events = []
        for event in studio.generate(dataclasses.replace(LONG, steps=2)):
            events.append(event)
            if isinstance(event, Saved) and event.index == 1:
                threading.Thread(target=server.end).start()
    assert isinstance(events[-1], Failed)
    assert events[-1].finished == sum(isinstance(e, Saved) for e in events) >= 2
    assert not events[-1].user_error
    assert f"The connection to the backend {server.address} was lost; the" in events[-1].message
    assert "patches are kept. Try again in a moment." in events[-1].message
    assert studio.last_run().status == "failed"
    assert len(studio.last_run().images) == events[-1].finished
    wait_for(lambda: studio.state.status == "failed")
    assert "cannot be reached" in studio.state.message
    assert list(checkpoints.catalogue(studio.settings)) == ["base", "other"]  # as it was
    with pytest.raises(SarGenError, match="cannot be reached"):
        studio.generate(REQUEST)
    with serving(served_settings, port=port):
        wait_for(lambda: studio.state.status != "failed")
        assert isinstance(list(studio.generate(REQUEST))[-1], Done)


def test_a_backend_that_says_nothing(monkeypatch):
    """A machine that accepts connections and never answers; nobody waits for it but for the first look."""
    monkeypatch.setattr(client, "CONNECT_SECONDS", 1)  # the first look gives up after twice that
    monkeypatch.setattr(client, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(client, "FIRST_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        settings = Settings(backend=f"127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        assert backend_of(settings).state.status == "loading"
        assert time.monotonic() - started < 1
        assert "sar-mini" in checkpoints.catalogue(settings)  # this machine's, until the backend has spoken
        engine = RemoteEngine(settings)
        with pytest.raises(SarGenError, match="does not answer"):
            engine.generate(GenerationRequest("a river"))
        cancel = threading.Event()
        threading.Timer(0.1, cancel.set).start()
        monkeypatch.setattr(client, "SILENCE_SECONDS", 60)
        started = time.monotonic()
        events = engine.generate(GenerationRequest("a river"), cancel=cancel)
        assert list(events) == [Stopped(0, {"generate": 0.0})]
        assert time.monotonic() - started < 5
        with pytest.raises(SarGenError, match="does not answer"):
            engine.backend.check()


class Odd(http.server.BaseHTTPRequestHandler):
    """Another program at the address; what it answers is set by the test."""

    answer = (200, "text/html", b"<html>hello</html>")

    def do_GET(self):
        status, kind, body = self.answer
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def log_message(self, *_):
        pass


HELLO = wire.encode(wire.Hello())


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((200, "text/html", b"<html>hello</html>"), "is no backend of the studio"),
        ((404, "text/html", b"no"), "There is no backend of the studio at"),
        ((500, "text/plain", b"Internal Server Error"), "failed .HTTP 500."),
        ((503, "text/plain", b"Request dropped due to backpressure"), "is busy or just starting"),
        ((422, "text/plain", b"{}"), "failed .HTTP 422."),
        ((401, "application/json", b'{"error": "It wants a token."}'), "It wants a token."),
        ((200, wire.MEDIA_TYPE, wire.encode(wire.Hello(99))), "speaks version 99 of the studio's protocol"),
        ((200, wire.MEDIA_TYPE, b"x" * 100), "not the studio's"),
    ],
)
def test_what_is_no_backend_or_another_release(answer, sentence):
    handler = type("Handler", (Odd,), {"answer": answer})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        engine = RemoteEngine(Settings(backend=f"127.0.0.1:{running.server_port}"))
        with pytest.raises(SarGenError, match=sentence) as caught:
            engine.generate(GenerationRequest("a river"))
        assert "\n" not in str(caught.value)
        with pytest.raises(SarGenError):
            engine.backend.check()
        assert engine.state.status == "failed"
        running.shutdown()


@pytest.mark.parametrize(
    ("rest", "sentence"),
    [
        (b"", "The connection to the backend .* was lost. Try again"),
        (wire.encode(PatchReady(0, 5, np.zeros((2, 2), np.float32))), "lost; the finished patch is kept. Try again"),
        (wire.encode(Step(1, 2, 0, 1, 1, 0.1, 0.1))[:-3], "was lost"),
        (wire.encode_frame({"kind": "Novelty", "fields": {}}), "not an event that is known here .Novelty."),
    ],
)
def test_an_answer_that_breaks_off(rest, sentence):
    handler = type("Handler", (Odd,), {"answer": (200, wire.MEDIA_TYPE, HELLO + rest)})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        events = list(RemoteEngine(Settings(backend=f"127.0.0.1:{running.server_port}")).generate(REQUEST))
        assert isinstance(events[-1], Failed)
        assert events[-1].finished == len(amplitudes(events))
        import re

        assert re.search(sentence, events[-1].message), events[-1].message
        running.shutdown()


def test_a_token(served_settings, one_thread):
    with serving(dataclasses.replace(served_settings, backend_token="schlüssel")) as server:
        good = server.client
        assert "schlüssel" not in repr(good)
        backend_of(good).check()
        bad = Backend(server.address, "other")
        with pytest.raises(SarGenError, match="The backend wants its token; set SAR_GEN_BACKEND_TOKEN"):
            bad.check()
        assert bad.state.status == "failed"


def test_warming_up(served_settings, one_thread):
    with serving(served_settings) as server:
        engine = RemoteEngine(server.client)
        engine.warm_up("base")
        wait_for(lambda: engine.state.status == "ready" and engine.state.checkpoint == "base")
