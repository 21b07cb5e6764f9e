"""The server as HTTP clients see it: answers, refusals, Stop by hanging up."""

import dataclasses
import json
import socket
import threading
import time
import urllib.error
import urllib.request

import httpx
import numpy as np
import pytest

from sar_gen.request import Done, GenerationRequest, Guide, PatchReady, Step
from sar_gen.serving import server as server_module
from sar_gen.serving import wire
from tests.serving.conftest import serving, wait_for

REQUEST = GenerationRequest("a river", checkpoint="base", seed=5, steps=3)
LONG = dataclasses.replace(REQUEST, steps=200, count=64)
HEADERS = {"content-type": wire.MEDIA_TYPE}


def post(server, request=REQUEST, **options):
    body = wire.encode_request(request, True) if isinstance(request, GenerationRequest) else request
    return httpx.post(f"{server.address}/generate", content=body, headers={**HEADERS, **options}, timeout=60)


def messages(answer):
    frames = wire.Frames()
    return [wire.decode(frame) for frame in frames.feed(answer.content)]


class Connection:
    """A request whose answer is read by hand, so that it can be hung up on."""

    def __init__(self, server, request=LONG):
        host, port = server.address.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.settimeout(30)
        body = wire.encode_request(request, False)
        self.socket.sendall(
            f"POST /generate HTTP/1.1\r\nhost: {host}\r\ncontent-type: {wire.MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        self.seen = b""

    def read_until(self, text):
        while text not in self.seen:
            piece = self.socket.recv(65536)
            assert piece, self.seen[-300:]
            self.seen += piece

    def hang_up(self):
        self.socket.close()


def test_an_answer_is_a_stream_of_events(server):
    answer = post(server)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == wire.MEDIA_TYPE
    found = messages(answer)
    kinds = [type(message) for message in found]
    assert kinds[0] is wire.Hello
    assert kinds[-1] is Done
    assert kinds.count(Step) == 3
    assert kinds.index(wire.Maker) < kinds.index(PatchReady)
    maker = next(message for message in found if isinstance(message, wire.Maker))
    assert maker.where == {"device": "cpu", "dtype": "float32"}
    assert maker.parts == server.engine.identity()
    assert maker.versions["torch"]
    [patch] = [message for message in found if isinstance(message, PatchReady)]
    [alone] = [event for event in server.engine.generate(REQUEST) if isinstance(event, PatchReady)]
    assert patch.amplitude.tobytes() == alone.amplitude.tobytes()


@pytest.mark.parametrize(
    ("request_", "status", "sentence"),
    [
        (dataclasses.replace(REQUEST, steps=1000), 422, "The number of steps is 1000; choose 1 to 200."),
        (dataclasses.replace(REQUEST, checkpoint="nobody"), 422, "'nobody' is unknown"),
        (dataclasses.replace(REQUEST, checkpoint="gone"), 422, "lacks unet/"),
        (dataclasses.replace(REQUEST, guides=(Guide("poem", np.zeros((4, 4, 3), np.uint8)),)), 400, "Guide"),
        (b"nonsense", 400, "not the studio's"),
        (wire.encode_request(REQUEST, True)[:-4], 400, "cut off"),
    ],
)
def test_a_refusal_is_one_sentence(server, request_, status, sentence):
    answer = post(server, request_)
    assert answer.status_code == status
    assert sentence in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert server.engine.jobs == 0


def test_what_a_web_page_could_send_is_refused(server):
    """A form of another site may post plain text to loopback, but not this media type, without asking first."""
    assert post(server, **{"content-type": "text/plain"}).status_code == 400
    asks = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    answer = httpx.options(f"{server.address}/generate", headers=asks)
    assert "access-control-allow-origin" not in answer.headers


def test_a_body_without_end_is_cut_off(server, monkeypatch):
    monkeypatch.setattr(wire, "MAX_ARRAYS", 1000)
    monkeypatch.setattr(wire, "MAX_HEADER", 1000)
    answer = post(server, b"x" * 100_000)
    assert answer.status_code == 400
    assert "larger than" in answer.json()["error"]


def test_state_catalogue_and_health(server):
    wait_for(lambda: server.engine.jobs == 0)
    status = wire.read(wire.Status, httpx.get(f"{server.address}/state").content)
    assert status.state.status == "ready"
    assert status.jobs == 0
    known = wire.read(wire.Catalogue, httpx.get(f"{server.address}/catalogue").content)
    assert [spec.id for spec in known.checkpoints] == ["base", "other"]  # not the one without its weights
    assert [network.id for network in known.networks] == ["net"]
    assert httpx.get(f"{server.address}/health").json() == {"ok": True}


def test_hanging_up_stops_the_work_within_a_step(server):
    connection = Connection(server)
    connection.read_until(b'"kind":"Step"')
    assert server.engine.jobs == 1
    connection.hang_up()
    assert wait_for(lambda: server.engine.jobs == 0) < 2
    assert server.engine.state.status == "ready"


def test_hanging_up_withdraws_one_who_waits(server):
    first = Connection(server)
    first.read_until(b'"kind":"Step"')
    second = Connection(server)
    second.read_until(b'"kind":"Queued","fields":{"position":1}')
    assert server.engine.jobs == 2
    second.hang_up()
    wait_for(lambda: server.engine.jobs == 1)
    first.seen = b""
    first.read_until(b'"kind":"Step"')  # goes on
    first.hang_up()
    wait_for(lambda: server.engine.jobs == 0)


def test_too_many_requests_are_refused(server):
    connections = []
    for _ in range(3):  # one at work, two that wait
        connections.append(Connection(server))
        connections[-1].read_until(b'"kind":"Hello"')
    answer = post(server)
    assert answer.status_code == 503
    assert answer.json()["error"] == "The backend has 3 requests at work or waiting; try again in a moment."
    for connection in connections:
        connection.hang_up()
    wait_for(lambda: server.engine.jobs == 0)
    assert post(server).status_code == 200


def test_silence_is_filled(server, monkeypatch):
    monkeypatch.setattr(server_module, "ALIVE_SECONDS", 0.1)
    first = Connection(server)
    first.read_until(b'"kind":"Step"')
    second = Connection(server)
    second.read_until(b'"kind":"Alive"')
    for connection in (first, second):
        connection.hang_up()
    wait_for(lambda: server.engine.jobs == 0)


def test_a_token_is_asked_for(served_settings, one_thread):
    settings = dataclasses.replace(served_settings, backend_token="secret-ß")
    with serving(settings) as server:
        for given in ({}, {"authorization": "Bearer other"}, {"authorization": "secret"}):
            answer = post(server, **given)
            assert answer.status_code == 401
            assert "SAR_GEN_BACKEND_TOKEN" in answer.json()["error"]
            assert httpx.get(f"{server.address}/state", headers=given).status_code == 401
        assert httpx.get(f"{server.address}/health").status_code == 200
        ok = httpx.get(f"{server.address}/state", headers={"authorization": "Bearer secret-ß".encode()})
        assert ok.status_code == 200


def test_warming_up_loads_where_nothing_is_loaded_and_nowhere_else(served_settings, one_thread):
    with serving(served_settings) as server:

        def warm_up(body):
            return httpx.post(f"{server.address}/warm_up", content=body, headers=HEADERS)

        assert warm_up(b"[]").status_code == 400
        assert warm_up(b'{"checkpoint": "base"}').status_code == 200
        wait_for(lambda: server.engine.state.status == "ready")
        assert warm_up(b'{"checkpoint": "other"}').status_code == 200
        time.sleep(0.2)
        assert server.engine.state.checkpoint == "base"


def test_an_engine_that_has_ended_is_not_healthy_and_what_it_makes_ends(served_settings, one_thread):
    with serving(served_settings) as server:
        found = []
        thread = threading.Thread(target=lambda: found.append(messages(post(server, LONG))))
        thread.start()
        wait_for(lambda: server.engine.state.status == "busy")
        server.engine.close()
        thread.join(30)
        assert type(found[0][-1]).__name__ == "Stopped"
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{server.address}/health")
        assert caught.value.code == 503
        assert json.load(caught.value) == {"ok": False}


def test_the_first_word_to_one_who_waits_is_his_place(server):
    first = Connection(server)
    first.read_until(b'"kind":"Step"')
    second = Connection(server, REQUEST)
    second.read_until(b'"kind":"Queued"')
    assert second.seen.index(b"Hello") < second.seen.index(b"Queued")
    first.hang_up()
    second.read_until(b'"kind":"Done"')
    second.hang_up()
