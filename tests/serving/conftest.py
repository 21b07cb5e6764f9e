"""A real server on loopback over a real engine with tiny random checkpoints."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import uvicorn

from sar_gen.engine import Engine
from sar_gen.serving.server import application
from sar_gen.settings import Settings
from tests import tiny


@dataclass(frozen=True)
class Running:
    """A server: where it is, its engine, and the settings of a client of it."""

    address: str
    engine: Engine
    client: Settings
    end: Callable[[], None]


def wait_for(done: Callable[[], bool], seconds: float = 30.0) -> float:
    """Wait until something is so, and return how long it took."""
    started = time.monotonic()
    while not done():
        assert time.monotonic() - started < seconds, "it never came"
        time.sleep(0.01)
    return time.monotonic() - started


@contextmanager
def serving(settings: Settings, max_waiting: int = 2, port: int = 0) -> Iterator[Running]:
    """Serve an engine by uvicorn in a thread, as ``python -m sar_gen serve`` does in a process."""
    engine = Engine(settings)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    server = uvicorn.Server(
        uvicorn.Config(application(engine, settings, max_waiting), log_level="warning", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started)

    def end() -> None:
        server.should_exit = True
        thread.join(20)
        listener.close()

    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    client = dataclasses.replace(
        settings,
        home=settings.home.parent / "client-home",
        checkpoints=settings.home.parent / "nothing",
        runs=settings.home.parent / "client-runs",
        backend=address,
    )
    try:
        yield Running(address, engine, client, end)
    finally:
        end()
        engine.close()


@pytest.fixture(scope="session")
def served_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    root = tmp_path_factory.mktemp("serving")
    base = tiny.checkpoint(root / "checkpoints" / "base")
    tiny.checkpoint(root / "checkpoints" / "other", seed=3)
    tiny.network(root / "checkpoints" / "net", base)
    gone = tiny.checkpoint(root / "checkpoints" / "gone")
    (gone / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    return Settings(
        home=root / "home", runs=root / "runs", checkpoints=root / "checkpoints", device="cpu", checkpoint="base"
    )


@pytest.fixture(scope="module")
def server(served_settings: Settings, one_thread: None) -> Iterator[Running]:
    with serving(served_settings) as running:
        yield running
