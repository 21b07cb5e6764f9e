"""An engine behind HTTP, as a plain ASGI app: for uvicorn in this process, or inside a Ray Serve replica.

    POST /generate   a request (``wire``); the answer is a stream of its events
    POST /warm_up    load a checkpoint, where none is loaded yet
    GET  /state      what the engine is doing, how many requests there are, which catalogue
    GET  /catalogue  the checkpoints and networks whose files are here
    GET  /health     200 while the engine takes work

To stop a request its client hangs up, so that the word reaches the right engine whatever stands between: the engine
ends it within one denoising step. Refusals are JSON, ``{"error": sentence}``: 422 for a wrong request, 503 when too
many wait, 401 without the token, 400 for what is not a request at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sar_gen import checkpoints, guide_networks
from sar_gen.engine import Engine
from sar_gen.errors import InputError, SarGenError
from sar_gen.request import Event, PatchReady
from sar_gen.runs import library_versions
from sar_gen.serving import MAX_WAITING, wire
from sar_gen.settings import Settings

logger = logging.getLogger(__name__)

ALIVE_SECONDS = 5.0  # of silence before the server says that it is there
SEND_SECONDS = 60.0  # a client that takes nothing for so long has gone
AHEAD = 64  # frames that a client may be behind before the events wait for it
CATALOGUE_SECONDS = 5.0  # how long a catalogue is kept before the folders are read again

Handler = Callable[[Request], Awaitable[Response]]


class BusyError(SarGenError):
    """Too many requests wait."""


def application(engine: Engine, settings: Settings, max_waiting: int = MAX_WAITING) -> Starlette:
    """Return the app; it closes the engine when it ends.

    Args:
        engine: what generates.
        settings: its settings; ``backend_token`` is what clients must show, where it is set.
        max_waiting: requests that may wait beside the one that is made.
    """
    service = _Service(engine, settings.here(), max_waiting)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(engine.close)

    def route(path: str, handler: Handler, method: str, open_to_all: bool = False) -> Route:
        async def guarded(request: Request) -> Response:
            try:
                if not open_to_all and not _may(request, settings.backend_token):
                    return _refusal(
                        401, "The backend wants its token; set SAR_GEN_BACKEND_TOKEN to the same as there."
                    )
                return await handler(request)
            except BusyError as error:
                return _refusal(503, str(error))
            except wire.WireError as error:
                return _refusal(400, str(error))
            except InputError as error:
                return _refusal(422, str(error))
            except SarGenError as error:
                return _refusal(500, str(error))

        return Route(path, guarded, methods=[method])

    return Starlette(
        routes=[
            route("/generate", service.generate, "POST"),
            route("/warm_up", service.warm_up, "POST"),
            route("/state", service.state, "GET"),
            route("/catalogue", service.catalogue, "GET"),
            route("/health", service.health, "GET", open_to_all=True),
        ],
        lifespan=lifespan,
    )


def _may(request: Request, token: str) -> bool:
    given = request.headers.get("authorization", "")
    # Headers are read as latin-1, whatever their bytes mean.
    return not token or hmac.compare_digest(given.encode("latin-1"), f"Bearer {token}".encode())


def _refusal(status: int, sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status)


async def _body(request: Request, limit: int) -> bytes:
    """Read a request's body, no more than ``limit`` bytes of it."""
    kind = request.headers.get("content-type", "")
    if kind != wire.MEDIA_TYPE:
        raise wire.WireError(f"What came is {kind or 'of no kind'}, not a request of the studio ({wire.MEDIA_TYPE}).")
    parts = bytearray()
    async for part in request.stream():
        parts += part
        if len(parts) > limit:
            raise wire.WireError(f"The request is larger than {limit / 1e6:.0f} MB; give smaller guides.")
    return bytes(parts)


class _Service:
    """The handlers."""

    def __init__(self, engine: Engine, settings: Settings, max_waiting: int) -> None:
        self.engine = engine
        self.settings = settings
        self.max_waiting = max_waiting
        self.open = 0  # requests that are being answered
        self._catalogue = (b"", "")
        self._read = float("-inf")
        self._reading = threading.Lock()

    async def generate(self, request: Request) -> Response:
        """Take a request and answer with its events."""
        if self.open > self.max_waiting:  # before anything is read: a request may be large
            many = "one request" if self.open == 1 else f"{self.open} requests"
            raise BusyError(f"The backend has {many} at work or waiting; try again in a moment.")
        self.open += 1
        cancel = threading.Event()
        try:
            body = await _body(request, wire.MAX_ARRAYS + wire.MAX_HEADER)
            asked, previews = await run_in_threadpool(wire.decode_request, body)
            events = await run_in_threadpool(self.engine.generate, asked, cancel=cancel, previews=previews)
        except BaseException:
            self.open -= 1
            raise
        return _Answer(self, events, cancel)

    async def warm_up(self, request: Request) -> Response:
        """Load a checkpoint where nothing is loaded: who comes later does not take another's checkpoint away."""
        body = await _body(request, wire.MAX_HEADER)
        try:
            asked = json.loads(body)
            checkpoint, strategy = asked["checkpoint"], asked.get("strategy")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise wire.WireError("What came does not name a checkpoint.") from error
        if self.engine.state.status in ("idle", "failed") and not self.engine.jobs:
            self.engine.warm_up(str(checkpoint), None if strategy is None else str(strategy))
        return JSONResponse({})

    async def state(self, _: Request) -> Response:
        """Say what the engine is doing."""
        known = await run_in_threadpool(self._known)
        status = wire.Status(self.engine.state, self.engine.jobs, known[1])
        return Response(wire.to_json(status), media_type="application/json")

    async def catalogue(self, _: Request) -> Response:
        """Say which checkpoints and networks are here."""
        known = await run_in_threadpool(self._known)
        return Response(known[0], media_type="application/json")

    async def health(self, _: Request) -> Response:
        """Say whether the engine takes work."""
        alive = self.engine.alive
        return JSONResponse({"ok": alive}, 200 if alive else 503)

    def _known(self) -> tuple[bytes, str]:
        """Return the catalogue and its stamp; folders are read anew after a while, as they are for a page here."""
        with self._reading:
            if time.monotonic() - self._read > CATALOGUE_SECONDS:
                found = checkpoints.catalogue(self.settings)
                here = [spec for spec in found.values() if not checkpoints.missing_files(spec, self.settings)]
                networks = guide_networks.networks(self.settings, found)
                data = wire.to_json(wire.catalogue_of(here, filter(_is_here, networks.values())))
                self._catalogue = data, hashlib.sha256(data).hexdigest()[:16]
                self._read = time.monotonic()
            return self._catalogue


def _is_here(network: guide_networks.NetworkSpec) -> bool:
    try:
        return not guide_networks.missing_files(network)
    except InputError:  # its files are refused
        return False


class _Answer(Response):
    """The stream of a request's events; it ends the request when its client hangs up."""

    media_type = wire.MEDIA_TYPE

    def __init__(self, service: _Service, events: Iterator[Event], cancel: threading.Event) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.service = service
        self.events = events
        self.cancel = cancel
        self.left = threading.Event()  # nobody listens any more; ``cancel`` is also set by an engine that ends
        self.room = threading.Semaphore(AHEAD)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the frames until the last event, or until nobody listens."""
        frames: asyncio.Queue[bytes | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._pump, args=(loop, frames), name="sar-gen-answer", daemon=True).start()
        sending = asyncio.create_task(self._send(frames, send))
        listening = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({sending, listening}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.left.set()
            self.cancel.set()
            self.service.open -= 1
            sending.cancel()
            listening.cancel()
            for outcome in await asyncio.gather(sending, listening, return_exceptions=True):
                gone = isinstance(outcome, OSError | TimeoutError | ClientDisconnect)
                if isinstance(outcome, Exception) and not gone:
                    logger.error("An answer broke off", exc_info=outcome)

    async def _send(self, frames: asyncio.Queue[bytes | None], send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        frame: bytes | None = wire.encode(wire.Hello())
        while frame is not None:
            body = {"type": "http.response.body", "body": frame, "more_body": True}
            await asyncio.wait_for(send(body), SEND_SECONDS)
            try:
                frame = await asyncio.wait_for(frames.get(), ALIVE_SECONDS)
                self.room.release()
            except TimeoutError:
                frame = wire.encode(wire.Alive())
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _pump(self, loop: asyncio.AbstractEventLoop, frames: asyncio.Queue[bytes | None]) -> None:
        """Bring the events from the engine's thread to the loop's; those of a request that was left lead nowhere."""
        told = False
        try:
            for event in self.events:
                if isinstance(event, PatchReady) and not told:
                    told = True
                    engine = self.service.engine
                    maker = wire.Maker(engine.where(), engine.identity(), dict(library_versions()))
                    self._put(loop, frames, wire.encode(maker))
                self._put(loop, frames, wire.encode(event))
        except Exception:
            logger.exception("A request broke off")
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(frames.put_nowait, None)

    def _put(self, loop: asyncio.AbstractEventLoop, frames: asyncio.Queue[bytes | None], frame: bytes) -> None:
        while not self.left.is_set():
            if self.room.acquire(timeout=0.2):
                loop.call_soon_threadsafe(frames.put_nowait, frame)
                return


async def _gone(receive: Receive) -> None:
    """Return when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass
