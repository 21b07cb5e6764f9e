"""What goes between a page and an engine elsewhere: requests and events as bytes, and back. Pure functions, no torch.

Everything is a *frame*: two lengths (big-endian, 4 bytes each), a JSON header, and the bytes of its arrays one after
the other, as they lie in memory (little-endian). A request is one frame; an answer is a stream of them. For a patch of
256 x 256 that is 262 kB and 0.1 ms; base64 in JSON lines took 350 kB and 5 ms, zlib saved a tenth for 14 ms (speckle
does not compress).

Nothing in a frame is trusted: lengths are bounded, fields have their types, arrays their shapes; what does not fit is
one ``WireError``. Nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, TypeVar, get_type_hints

import numpy as np
import pydantic
from numpy.typing import NDArray

from sar_gen.checkpoints import CheckpointSpec
from sar_gen.errors import SarGenError
from sar_gen.guide_networks import NetworkSpec
from sar_gen.request import (
    Done,
    EngineState,
    Event,
    Failed,
    GenerationRequest,
    Guide,
    Loading,
    Notice,
    PatchReady,
    Preview,
    Queued,
    Step,
    Stopped,
)

VERSION = 1
"""Of the frames and addresses; two sides of different versions say so."""
MEDIA_TYPE = "application/x-sar-studio"
"""No browser sends this to another site without asking first, so that no web page can use a backend on loopback."""
MAX_HEADER = 1 << 20  # bytes of JSON
MAX_ARRAYS = 256 << 20  # bytes of pixels a frame

T = TypeVar("T")


class WireError(SarGenError):
    """What came over the wire cannot be read."""


@dataclass(frozen=True)
class Hello:
    """The first frame of an answer: the request is accepted."""

    version: int = VERSION


@dataclass(frozen=True)
class Alive:
    """Nothing happened for a while, and the other side is there."""


@dataclass(frozen=True)
class Maker:
    """Who makes the patches that follow, for the record of a run.

    Attributes:
        where: device and precision.
        parts: what is loaded: base, strategy, hash of each part.
        versions: of the libraries that can change a picture.
    """

    where: dict[str, Any]
    parts: dict[str, Any]
    versions: dict[str, str]


Message = Event | Hello | Alive | Maker
KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (Queued, Loading, Notice, Step, Preview, PatchReady, Done, Stopped, Failed, Hello, Alive, Maker)
}


@dataclass(frozen=True)
class Status:
    """What a backend is doing.

    Attributes:
        state: of its engine.
        jobs: at work or waiting.
        catalogue: changes when its catalogue does.
        version: of the wire.
    """

    state: EngineState
    jobs: int
    catalogue: str
    version: int = VERSION


@dataclass(frozen=True)
class Catalogue:
    """What a backend can make: the checkpoints and networks whose files it has."""

    checkpoints: tuple[CheckpointSpec, ...] = ()
    networks: tuple[NetworkSpec, ...] = ()
    version: int = field(default=VERSION)


class Frame(NamedTuple):
    """A frame as it was read: header and the bytes of its arrays."""

    header: bytes
    arrays: bytes


PREFIX = struct.Struct(">II")


# ---- frames


def encode_frame(header: Mapping[str, Any], arrays: Iterable[NDArray[Any]] = ()) -> bytes:
    """Return a frame.

    Args:
        header: JSON data.
        arrays: already in the byte order of the wire.
    """
    text = json.dumps(header, separators=(",", ":")).encode()
    pixels = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    return PREFIX.pack(len(text), len(pixels)) + text + pixels


class Frames:
    """Takes a stream apart into frames, whatever pieces it comes in."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, piece: bytes) -> Iterator[Frame]:
        """Take a piece and yield the frames that it completes.

        Raises:
            WireError: a frame is larger than any that is sent.
        """
        self._rest += piece
        while len(self._rest) >= PREFIX.size:
            header, arrays = PREFIX.unpack_from(self._rest)
            if header > MAX_HEADER or arrays > MAX_ARRAYS:
                raise WireError(
                    "What came is not the studio's: a message is longer than any that it sends; is another program at "
                    "this address?"
                )
            end = PREFIX.size + header + arrays
            if len(self._rest) < end:
                return
            frame = bytes(self._rest[PREFIX.size : end])
            del self._rest[:end]
            yield Frame(frame[:header], frame[header:])

    @property
    def empty(self) -> bool:
        """Whether the stream ends with a whole frame."""
        return not self._rest


def _only_frame(body: bytes) -> Frame:
    frames = Frames()
    found = list(frames.feed(body))
    if len(found) != 1 or not frames.empty:
        raise WireError("The request was cut off on its way; send it again.")
    return found[0]


def _header(frame: Frame) -> dict[str, Any]:
    try:
        data = json.loads(frame.header)
    except (ValueError, RecursionError) as error:
        raise WireError("What came is not the studio's: its header is not JSON.") from error
    if not isinstance(data, dict):
        raise WireError("What came is not the studio's: its header is not a table.")
    return data


# ---- fields and arrays


@cache
def _model(kind: type[Any], without: tuple[str, ...] = ()) -> type[pydantic.BaseModel]:
    """Return what checks a dataclass's fields as they come in JSON: the names and types are the dataclass's own."""
    hints = get_type_hints(kind)
    fields: dict[str, Any] = {}
    for one in dataclasses.fields(kind):
        if one.name in without:
            continue
        default = one.default if one.default is not dataclasses.MISSING else ...
        if one.default_factory is not dataclasses.MISSING:
            default = pydantic.Field(default_factory=one.default_factory)
        fields[one.name] = (hints[one.name], default)
    return pydantic.create_model(kind.__name__, __config__=pydantic.ConfigDict(strict=True), **fields)


def read(kind: type[T], data: str | bytes, /, **rest: Any) -> T:
    """Return a dataclass from its fields in JSON; fields that it does not have are passed over.

    Args:
        kind: the dataclass.
        data: a JSON table.
        rest: fields that do not come in the JSON.

    Raises:
        WireError: a field is missing or of another type.
    """
    try:
        found = _model(kind, tuple(sorted(rest))).model_validate_json(data)  # type: ignore[arg-type]
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise WireError(f"What came is not a {kind.__name__} of the studio ({where}: {first['msg']}).") from error
    return kind(**{name: getattr(found, name) for name in type(found).model_fields}, **rest)


def _array(frame: Frame, at: int, shape: Any, dtype: str) -> tuple[NDArray[Any], int]:
    """Return an array of a frame that begins at byte ``at``, a copy, and where it ends."""
    ok = isinstance(shape, list) and len(shape) in (2, 3) and all(type(n) is int and 0 < n < 1 << 20 for n in shape)
    length = math.prod(shape) * np.dtype(dtype).itemsize if ok else 0
    if not ok or at + length > len(frame.arrays) or (len(shape) == 3 and shape[2] != 3):
        raise WireError("What came is not the studio's: an array has another shape than its bytes.")
    return np.frombuffer(frame.arrays, dtype, math.prod(shape), at).reshape(shape).copy(), at + length


# ---- requests


def encode_request(request: GenerationRequest, previews: bool) -> bytes:
    """Return a request as a frame, with the pixels of its guides.

    Raises:
        WireError: its guides are larger than a frame may be.
    """
    data = request.to_json()
    guides = [guide.image for guide in request.guides]
    size = sum(image.nbytes for image in guides)
    if size > MAX_ARRAYS:
        raise WireError(
            f"The guides have {size / 1e6:.0f} MB of pixels, and a backend takes {MAX_ARRAYS / 1e6:.0f} MB; give "
            "smaller ones."
        )
    shapes = [list(image.shape) for image in guides]
    listed = [{name: value for name, value in guide.items() if name != "sha256"} for guide in data["guides"]]
    header = {"version": VERSION, "previews": previews, "request": {**data, "guides": listed}, "shapes": shapes}
    return encode_frame(header, guides)


def decode_request(body: bytes) -> tuple[GenerationRequest, bool]:
    """Return a request and whether it wants previews.

    Raises:
        WireError: it is cut off, of another version, or not a request.
    """
    frame = _only_frame(body)
    header = _header(frame)
    check_version(header.get("version"), "The page", "this backend")
    data, shapes = header.get("request"), header.get("shapes")
    if not isinstance(data, dict) or not isinstance(shapes, list) or not isinstance(data.get("guides"), list):
        raise WireError("What came is not a request of the studio.")
    if len(shapes) != len(data["guides"]):
        raise WireError("What came is not a request of the studio: it has not one shape a guide.")
    guides, at = [], 0
    for one, shape in zip(data["guides"], shapes, strict=True):
        pixels, at = _array(frame, at, shape, "u1")
        guides.append(read(Guide, json.dumps(one), image=pixels))
    if at != len(frame.arrays):
        raise WireError("What came is not a request of the studio: it has more pixels than its guides.")
    return read(GenerationRequest, json.dumps(data), guides=tuple(guides)), header.get("previews") is True


def check_version(version: Any, theirs: str, ours: str) -> None:
    """Compare the other side's version of the wire with ours.

    Raises:
        WireError: they differ; ``theirs`` and ``ours`` name the sides.
    """
    if version != VERSION:
        raise WireError(
            f"{theirs} speaks version {version!r} of the studio's protocol and {ours} version {VERSION}; bring both "
            "to the same release."
        )


# ---- answers


def encode(message: Message) -> bytes:
    """Return an event, or what goes with them, as a frame."""
    kind = type(message)
    if kind.__name__ not in KINDS:
        raise TypeError(f"{kind.__name__} does not go over the wire")
    fields = {f.name: getattr(message, f.name) for f in dataclasses.fields(message)}
    amplitude = fields.pop("amplitude", None)
    header = {"kind": kind.__name__, "fields": fields}
    if amplitude is None:
        return encode_frame(header)
    return encode_frame({**header, "shape": list(amplitude.shape)}, [np.asarray(amplitude, "<f4")])


def decode(frame: Frame) -> Message:
    """Return what a frame of an answer says; amplitudes are float32 ``(height, width)``, bit-equal.

    Raises:
        WireError: it is not one of the studio's.
    """
    header = _header(frame)
    kind = KINDS.get(str(header.get("kind")))
    if kind is None or not isinstance(header.get("fields"), dict):
        raise WireError(f"What came is not an event that is known here ({str(header.get('kind'))[:40]}).")
    rest: dict[str, Any] = {}
    if kind in (PatchReady, Preview):
        amplitude, end = _array(frame, 0, header.get("shape"), "<f4")
        if amplitude.ndim != 2 or end != len(frame.arrays):
            raise WireError("What came is not the studio's: an array has another shape than its bytes.")
        rest["amplitude"] = amplitude.astype(np.float32, copy=False)
    elif frame.arrays:
        raise WireError(f"What came is not the studio's: a {kind.__name__} has no pixels.")
    message: Message = read(kind, json.dumps(header["fields"]), **rest)
    return message


# ---- status and catalogue


def to_json(record: Status | Catalogue) -> bytes:
    """Return a record as JSON."""
    return pydantic.TypeAdapter(type(record)).dump_json(record)


def catalogue_of(checkpoints: Iterable[CheckpointSpec], networks: Iterable[NetworkSpec]) -> Catalogue:
    """Return a catalogue to send: without the folders of this machine, which mean nothing elsewhere."""
    return Catalogue(
        tuple(dataclasses.replace(spec, path=None, origin="backend") for spec in checkpoints),
        tuple(dataclasses.replace(spec, path=None, origin="backend") for spec in networks),
    )
