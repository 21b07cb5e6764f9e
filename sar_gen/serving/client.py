"""The engine of a backend, used like one of this machine; torch is never imported.

One thread with an event loop speaks with each backend: it asks for its state every second, and carries the requests.
Whoever reads ``state`` or a request's events never waits for the network, but for the first answer to a request.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import re
import threading
import urllib.parse
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx

from sar_gen.errors import InputError, SarGenError
from sar_gen.request import Done, EngineState, Event, Failed, GenerationRequest, PatchReady, Step, Stopped
from sar_gen.serving import wire
from sar_gen.serving.addresses import is_loopback
from sar_gen.settings import Settings

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 60.0  # a backend that works says so every five seconds (``server.ALIVE_SECONDS``)
FIRST_SECONDS = 3.0  # how long the first look at a backend may take, once
LOOK_SECONDS = 0.2  # how often a request looks at Stop


class LostError(SarGenError):
    """The backend cannot be reached, or no longer."""


def address_of(text: str) -> str:
    """Return a backend's address in full: ``http://`` is put before a bare ``host:port``.

    Raises:
        InputError: it is no address.
    """
    url = text.strip() if "://" in text else f"http://{text.strip()}"
    parts = urllib.parse.urlsplit(url)
    try:
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or parts.username or parts.query or parts.fragment or re.search(r"\s", url):
        raise InputError(f"The backend {text!r} is no address; give one such as http://gpu-machine:8000.")
    return url.rstrip("/")


# ---- one backend


class Backend:
    """The connection to one backend; made by ``backend_of``, one an address."""

    def __init__(self, address: str, token: str = "") -> None:
        self.address = address
        self._token = token
        self._state = EngineState("loading", f"Asking the backend {address}.")
        self._catalogue: wire.Catalogue | None = None
        self._stamp = ""
        self._looked = threading.Event()  # once, whatever came of it
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, name="sar-gen-backend", daemon=True).start()

    @property
    def state(self) -> EngineState:
        """What its engine was doing a second ago; never waits."""
        return self._state

    @property
    def catalogue(self) -> wire.Catalogue | None:
        """What it can make, ``None`` until it has answered once; waits for the first look at it, and never again."""
        self._looked.wait(FIRST_SECONDS)
        return self._catalogue

    def check(self) -> None:
        """Wait for the first look at the backend.

        Raises:
            SarGenError: it does not answer, or not as a backend of the studio; one sentence.
        """
        self._looked.wait(2 * CONNECT_SECONDS)
        if self._catalogue is None:
            raise LostError(self._state.message)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        """Run a coroutine on the loop; the future that comes back can be cancelled from any thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)  # type: ignore[return-value]

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.create_task(self._watch())
        self._loop.run_forever()

    @asynccontextmanager
    async def ask(
        self, method: str, path: str, body: bytes | None = None, silence: float | None = None
    ) -> AsyncIterator[httpx.Response]:
        """Send a request on a connection of its own and give the answer as it begins.

        Raises:
            InputError: the backend refuses the request.
            SarGenError: it is busy, wants a token, fails, or cannot be reached.
        """
        headers = httpx.Headers({"content-type": wire.MEDIA_TYPE}, encoding="utf-8")
        if self._token:
            headers["authorization"] = f"Bearer {self._token}"
        # No proxy of the environment leads to this machine itself.
        here = is_loopback(urllib.parse.urlsplit(self.address).hostname or "")
        timeout = httpx.Timeout(SILENCE_SECONDS if silence is None else silence, connect=CONNECT_SECONDS)
        try:
            async with (
                httpx.AsyncClient(timeout=timeout, trust_env=not here) as client,
                client.stream(method, f"{self.address}{path}", content=body, headers=headers) as answer,
            ):
                if answer.status_code != 200:
                    raise _refused(answer.status_code, await _start_of(answer), self.address)
                yield answer
        except httpx.TimeoutException as error:
            raise LostError(
                f"The backend {self.address} does not answer; check the address, and that it runs there "
                "('python -m sar_gen serve')."
            ) from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise LostError(
                f"The backend {self.address} cannot be reached ({_why(error)}); check the address, and that it runs "
                "there ('python -m sar_gen serve')."
            ) from error

    async def _watch(self) -> None:
        while True:
            try:
                await self._look()
            except SarGenError as error:
                self._state = EngineState("failed", str(error))
            except Exception as error:
                logger.exception("The backend's state cannot be read")
                self._state = EngineState("failed", f"The backend {self.address} cannot be used: {error}")
            self._looked.set()
            await asyncio.sleep(POLL_SECONDS)

    async def _look(self) -> None:
        status = wire.read(wire.Status, await self._get("/state"))
        wire.check_version(status.version, f"The backend {self.address}", "this machine")
        if status.catalogue != self._stamp:
            self._catalogue = wire.read(wire.Catalogue, await self._get("/catalogue"))
            self._stamp = status.catalogue
        host = urllib.parse.urlsplit(self.address).netloc
        state = status.state
        self._state = replace(state, device=f"{state.device} at {host}" if state.device else f"at {host}")

    async def _get(self, path: str) -> bytes:
        async with self.ask("GET", path, silence=2 * CONNECT_SECONDS) as answer:
            data = bytearray()
            async for piece in answer.aiter_bytes():
                data += piece
                if len(data) > wire.MAX_ARRAYS:
                    raise wire.WireError(f"What came from {self.address} is not the studio's; check the address.")
            return bytes(data)


def _why(error: Exception) -> str:
    """Return the machine's own words for a failed connection, which lie deepest."""
    text = " ".join(str(error).split())[:120] or type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            text = os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)
        cause = cause.__cause__ or cause.__context__
    return text


async def _start_of(answer: httpx.Response) -> bytes:
    data = bytearray()
    async for piece in answer.aiter_bytes():
        data += piece
        if len(data) > 10_000:
            break
    return bytes(data)


def _refused(status: int, body: bytes, address: str) -> SarGenError:
    """Return what an answer other than 200 means."""
    try:
        sentence = str(json.loads(body)["error"])[:1000]
    except (ValueError, KeyError, TypeError):
        sentence = ""
    if status == 422 and sentence:
        return InputError(sentence)
    if sentence:
        return SarGenError(sentence)
    if status == 503:  # from what stands before the engine: Ray Serve's proxy, a load balancer
        return SarGenError(f"The backend {address} is busy or just starting; try again in a moment.")
    if status == 404:
        return SarGenError(f"There is no backend of the studio at {address} (HTTP 404); check the address.")
    return SarGenError(f"The backend {address} failed (HTTP {status}); its log has the details.")


_backends: dict[tuple[str, str], Backend] = {}
_lock = threading.Lock()


def backend_of(settings: Settings) -> Backend:
    """Return the connection to the backend of the settings, the same one at each call.

    Raises:
        InputError: the address is none.
    """
    key = (address_of(settings.backend), settings.backend_token)
    with _lock:
        if key not in _backends:
            _backends[key] = Backend(*key)
        return _backends[key]


# ---- requests

Items = queue.SimpleQueue[wire.Message | SarGenError]


class RemoteEngine:
    """What ``engine.Engine`` is to its users, done by a backend. All public methods may be called from any thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.backend = backend_of(settings)
        self._last = threading.local()  # who made the patch that this thread got last

    @property
    def state(self) -> EngineState:
        """What the backend's engine is doing; of several replicas, the one that was asked last. Never waits."""
        return self.backend.state

    def warm_up(self, checkpoint: str, strategy: str | None = None) -> None:
        """Ask the backend to load a checkpoint, which it does where it has none yet; ``state`` tells how it goes."""

        async def work() -> None:
            body = json.dumps({"checkpoint": checkpoint, "strategy": strategy}).encode()
            try:
                async with self.backend.ask("POST", "/warm_up", body):
                    pass
            except SarGenError as error:
                logger.info("Not warmed up: %s", error)  # the state says what is wrong

        self.backend.start(work())

    def generate(
        self, request: GenerationRequest, *, cancel: threading.Event | None = None, previews: bool = True
    ) -> Answer:
        """Send a request; once the backend has taken it, return an iterator over its events, as the engine's does.

        When the connection is lost, the last event is Failed; what came before it stays.

        Args:
            request: what to make.
            cancel: set it to stop: the backend stops within one denoising step, and finished patches are kept.
            previews: also yield rough looks.

        Raises:
            InputError: the backend refuses the request.
            SarGenError: it is busy or cannot be reached.
        """
        answer = Answer(self, wire.encode_request(request, previews), cancel or threading.Event())
        answer.wait()
        return answer

    def identity(self) -> dict[str, Any]:
        """Return what the backend had loaded when it made the patch that this thread got last."""
        maker: wire.Maker | None = getattr(self._last, "maker", None)
        return {} if maker is None else maker.parts

    def where(self) -> dict[str, Any]:
        """Return device, precision and backend of the patch that this thread got last."""
        maker: wire.Maker | None = getattr(self._last, "maker", None)
        return {**({} if maker is None else maker.where), "backend": self.backend.address}

    def versions(self) -> dict[str, str]:
        """Return the versions of the backend's libraries that can change a picture, for that patch."""
        maker: wire.Maker | None = getattr(self._last, "maker", None)
        return {} if maker is None else maker.versions

    def made_by(self, maker: wire.Maker | None) -> None:
        """Note who made the patch that this thread is about to get."""
        self._last.maker = maker

    def free(self) -> None:
        """Do nothing: others use the backend too."""

    def close(self) -> None:
        """Do nothing: requests end when their iterators are closed."""


class Answer(Iterator[Event]):
    """The events of one request; closing it hangs up, which stops the work."""

    def __init__(self, engine: RemoteEngine, body: bytes, cancel: threading.Event) -> None:
        self.engine = engine
        self.cancel = cancel
        self.finished = 0
        self._maker: wire.Maker | None = None
        self._spent = 0.0  # seconds of denoising, as the backend counted them
        self._items: Items = queue.SimpleQueue()
        self._ended = False
        self._call = engine.backend.start(_listen(engine.backend, body, self._items))

    def wait(self) -> None:
        """Wait until the backend has taken the request, or ``cancel`` is set.

        Raises:
            SarGenError: it has not.
        """
        first = self._next_item()
        if isinstance(first, SarGenError):
            self.close()
            raise first
        if isinstance(first, wire.Hello):
            try:
                wire.check_version(first.version, f"The backend {self.engine.backend.address}", "this machine")
            except SarGenError:
                self.close()
                raise

    def __next__(self) -> Event:
        while not self._ended:
            item = self._next_item()
            if item is None:
                self.close()
                return Stopped(self.finished, {"generate": self._spent})
            if isinstance(item, SarGenError):
                self.close()
                return Failed(self._broken(item), self.finished, isinstance(item, InputError))
            if isinstance(item, wire.Maker):
                self._maker = item
            elif not isinstance(item, wire.Hello | wire.Alive):
                return self._seen(item)
        raise StopIteration

    def close(self) -> None:
        """Hang up."""
        self._ended = True
        self._call.cancel()

    def __del__(self) -> None:
        if hasattr(self, "_call"):
            self.close()

    def _next_item(self) -> wire.Message | SarGenError | None:
        """Return what came next; ``None`` where ``cancel`` is set and no finished patch is left to hand on."""
        while True:
            stopped = self.cancel.is_set()
            if stopped:
                self._call.cancel()
            try:
                item = self._items.get(timeout=0 if stopped else LOOK_SECONDS)
            except queue.Empty:
                if stopped:
                    return None
                continue
            if not stopped or isinstance(item, PatchReady | wire.Maker | Done | Stopped | Failed):
                return item

    def _seen(self, event: Event) -> Event:
        if isinstance(event, Step):
            self._spent = event.seconds
        elif isinstance(event, PatchReady):
            self.finished += 1
            self.engine.made_by(self._maker)
        elif isinstance(event, Done | Stopped | Failed):
            self.close()
        if isinstance(event, Stopped) and not self.cancel.is_set():  # the backend was ended
            return Failed(self._broken(LostError()), self.finished)
        return event

    def _broken(self, error: SarGenError) -> str:
        if not isinstance(error, LostError):
            return str(error)
        kept = "" if not self.finished else f"; the {self.finished} finished patches are kept"
        kept = kept.replace("the 1 finished patches are", "the finished patch is")
        return f"The connection to the backend {self.engine.backend.address} was lost{kept}. Try again in a moment."


async def _listen(backend: Backend, body: bytes, items: Items) -> None:
    """Carry a request on the loop and put what comes into the queue; no ``Answer`` is held, so it may be forgotten."""
    try:
        async with backend.ask("POST", "/generate", body) as answer:
            if answer.headers.get("content-type", "") != wire.MEDIA_TYPE:
                raise wire.WireError(f"{backend.address} is no backend of the studio; check the address.")
            frames = wire.Frames()
            async for piece in answer.aiter_bytes():
                for frame in frames.feed(piece):
                    message = wire.decode(frame)
                    items.put(message)
                    if isinstance(message, Done | Stopped | Failed):
                        return
            raise LostError("the answer ended in the middle")
    except SarGenError as error:
        items.put(error)
    except Exception as error:
        logger.exception("A request to the backend failed")
        items.put(SarGenError(f"The backend's answer cannot be read ({type(error).__name__}: {error})."))
