"""Requests and events over the wire: round trips, and what is refused."""

import dataclasses
import json
import struct
import typing

import numpy as np
import pytest

from sar_gen import checkpoints, guide_networks
from sar_gen.request import (
    Done,
    EngineState,
    Event,
    Failed,
    GenerationRequest,
    Guide,
    Judged,
    Loading,
    Notice,
    PatchReady,
    Preview,
    Queued,
    Saved,
    Selected,
    Step,
    Stopped,
)
from sar_gen.serving import wire
from sar_gen.settings import Settings

RANDOM = np.random.default_rng(0)
# Every float32 there is: subnormal, signed zero, infinities and NaN with a payload keep their bits.
ODD = np.array([[0x00000001, 0x80000000, 0x7F800000], [0xFF800000, 0x7FC12345, 0x3DCCCCCD]], "<u4").view("<f4")
MESSAGES = [
    Queued(3),
    Loading("Loading «Küste»: 3 GB\n\u2028"),
    Notice("a notice"),
    Step(2, 20, 0, 4, 8, 1.25, 0.1 + 0.2),
    Preview(1, RANDOM.random((3, 5), np.float32)),
    PatchReady(7, 2**32 - 1, RANDOM.random((64, 40), np.float32)),
    PatchReady(0, 0, ODD),
    Done({"load": 0.1, "generate": 1 / 3}),
    Stopped(2, {}),
    Failed("It failed.", 3, True),
    wire.Hello(),
    wire.Alive(),
    wire.Maker({"device": "cuda"}, {"unet": {"a.safetensors": "00"}}, {"torch": "2.13.0"}),
]


def back(data, piece=None):
    """Read one message out of bytes that come in pieces."""
    frames = wire.Frames()
    found = []
    step = piece or len(data)
    for start in range(0, len(data), step):
        found += list(frames.feed(data[start : start + step]))
    assert frames.empty
    return [wire.decode(frame) for frame in found]


def same(one, other):
    assert type(one) is type(other)
    for field in dataclasses.fields(one):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, np.ndarray):
            assert theirs.dtype == mine.dtype
            assert theirs.shape == mine.shape
            assert theirs.tobytes() == mine.tobytes()
        else:
            assert theirs == mine
            assert type(theirs) is type(mine)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_comes_back_bit_for_bit(message):
    [found] = back(wire.encode(message))
    same(message, found)


def test_every_event_of_an_engine_is_among_them():
    of_the_studio = {Saved, Judged, Selected}  # made where the pictures are written
    assert {type(message) for message in MESSAGES} >= set(typing.get_args(Event)) - of_the_studio
    with pytest.raises(TypeError):
        wire.encode(Saved(0, 0, None, None, ""))


@pytest.mark.parametrize("piece", [1, 7, 4096])
def test_a_stream_comes_in_any_pieces(piece):
    found = back(b"".join(wire.encode(message) for message in MESSAGES), piece)
    for message, other in zip(MESSAGES, found, strict=True):
        same(message, other)


def test_a_view_that_is_not_contiguous_is_sent_as_it_looks():
    whole = RANDOM.random((8, 6), np.float32)
    [found] = back(wire.encode(PatchReady(0, 1, whole[::2, ::-1])))
    np.testing.assert_array_equal(found.amplitude, whole[::2, ::-1])
    found.amplitude[0, 0] = 0  # it may be written


REQUEST = GenerationRequest(
    "a river", "sea", "base", "turbo", 3, 2**32 - 100, 7, 1.5, 256, 512, "ddim", strength=0.3, profile="fast",
    switches={"reuse": 2, "guidance_end": 0.5, "graphs": False},
    guides=(
        Guide("map", RANDOM.integers(0, 9, (5, 7)).astype(np.uint8), "a.tif", "net", 0.5, 0.1, 0.9, "auto", ("one",)),
        Guide("optical", RANDOM.integers(0, 256, (6, 4, 3)).astype(np.uint8)),
    ),
)  # fmt: skip


@pytest.mark.parametrize("request_", [REQUEST, GenerationRequest("a wood")], ids=["guided", "bare"])
@pytest.mark.parametrize("previews", [True, False])
def test_a_request_comes_back_with_its_pixels(request_, previews):
    found, wanted = wire.decode_request(wire.encode_request(request_, previews))
    assert wanted is previews
    assert found.to_json() == request_.to_json()  # the guides' hashes of their pixels are among it
    assert isinstance(found.guides, tuple)
    for one, other in zip(request_.guides, found.guides, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert other.notes == one.notes


def changed(change, request_=REQUEST):
    """The bytes of a request whose header was tampered with."""
    body = wire.encode_request(request_, True)
    header, arrays = struct.unpack_from(">II", body)
    data = json.loads(body[8 : 8 + header])
    change(data)
    text = json.dumps(data).encode()
    return struct.pack(">II", len(text), arrays) + text + body[8 + header :]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.update(version=99), "version 99"),
        (lambda d: d.pop("version"), "version None"),
        (lambda d: d.pop("request"), "not a request"),
        (lambda d: d.update(shapes=[[5, 7]]), "one shape a guide"),
        (lambda d: d.update(shapes=[[5, 7], [6, 400, 3]]), "shape"),
        (lambda d: d.update(shapes=[[5, 7], [6, 4]]), "more pixels"),
        (lambda d: d.update(shapes=[[5, 7], [-6, -4, 3]]), "shape"),
        (lambda d: d.update(shapes=[[5, 7], [3, 6, 4]]), "shape"),
        (lambda d: d.update(shapes=[[5, 7], [True, 72]]), "shape"),
        (lambda d: d["request"].pop("prompt"), "prompt"),
        (lambda d: d["request"].update(prompt=5), "prompt"),
        (lambda d: d["request"].update(steps="7"), "steps"),
        (lambda d: d["request"].update(count=1.5), "count"),
        (lambda d: d["request"].update(switches=[1]), "switches"),
        (lambda d: d["request"]["guides"][0].update(kind="poem"), "kind"),
        (lambda d: d["request"]["guides"][0].update(weight="much"), "weight"),
        (lambda d: d["request"].update(guides=5), "not a request"),
    ],
)
def test_a_malformed_request_is_one_sentence(change, sentence):
    with pytest.raises(wire.WireError, match=sentence) as caught:
        wire.decode_request(changed(change))
    assert "\n" not in str(caught.value)


def test_a_field_of_a_later_release_is_passed_over():
    found, _ = wire.decode_request(changed(lambda d: d["request"].update(colour="red")))
    assert found.to_json() == REQUEST.to_json()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        wire.encode_request(REQUEST, True)[:-1],
        wire.encode_request(REQUEST, True) + b"x",
        struct.pack(">II", 3, 0) + b"[1]",
        struct.pack(">II", 3, 0) + b"\xff\xfe\x00",
        struct.pack(">II", 60_000, 0) + b"[" * 60_000,
        struct.pack(">II", 2**31, 0),
        struct.pack(">II", 2, 2**31) + b"{}",
    ],
)
def test_what_is_no_request_at_all_is_one_sentence(body):
    with pytest.raises(wire.WireError) as caught:
        wire.decode_request(body)
    assert str(caught.value).endswith((".", "?"))


@pytest.mark.parametrize(
    "frame",
    [
        wire.Frame(b'{"kind":"Boom","fields":{}}', b""),
        wire.Frame(b'{"kind":"Step","fields":{"step":1}}', b""),
        wire.Frame(b'{"kind":"Step"}', b""),
        wire.Frame(b'{"kind":"Queued","fields":{"position":"1"}}', b""),
        wire.Frame(b'{"kind":"Queued","fields":{"position":1}}', b"1234"),
        wire.Frame(b'{"kind":"PatchReady","fields":{"index":0,"seed":1}}', b"1234"),
        wire.Frame(b'{"kind":"PatchReady","fields":{"index":0,"seed":1},"shape":[1]}', b"1234"),
        wire.Frame(b'{"kind":"PatchReady","fields":{"index":0,"seed":1},"shape":[1,2]}', b"1234"),
        wire.Frame(b'{"kind":"PatchReady","fields":{"index":0,"seed":1},"shape":[1,1]}', b"12345678"),
        wire.Frame(b'{"kind":"PatchReady","fields":{"index":0,"seed":1},"shape":[99999,99999]}', b"1234"),
        wire.Frame(b"nonsense", b""),
    ],
)
def test_a_malformed_answer_is_one_sentence(frame):
    with pytest.raises(wire.WireError) as caught:
        wire.decode(frame)
    assert str(caught.value).count("\n") == 0


def test_guides_that_are_too_large_are_refused_before_they_are_sent(monkeypatch):
    monkeypatch.setattr(wire, "MAX_ARRAYS", 100)
    with pytest.raises(wire.WireError, match="give smaller ones"):
        wire.encode_request(REQUEST, True)


def test_status_and_catalogue_come_back():
    status = wire.Status(EngineState("busy", "It works.", "cuda", "bfloat16", "sar-mini"), 3, "abc")
    assert wire.read(wire.Status, wire.to_json(status)) == status
    settings = Settings()
    known = checkpoints.catalogue(settings)
    networks = guide_networks.networks(settings, known)
    sent = wire.catalogue_of(known.values(), networks.values())
    found = wire.read(wire.Catalogue, wire.to_json(sent))
    assert {"sar-mini", "sar-mini-turbo", "sdxl-base"} <= {spec.id for spec in found.checkpoints}
    for one, other in zip(known.values(), found.checkpoints, strict=True):
        quality = json.loads(json.dumps(one.quality))  # TOML's lists lie in it as tuples
        assert other == dataclasses.replace(one, path=None, origin="backend", quality=quality)
    for one, other in zip(networks.values(), found.networks, strict=True):
        assert other == dataclasses.replace(one, path=None, origin="backend")
    assert str(settings.checkpoints) not in wire.to_json(sent).decode()
