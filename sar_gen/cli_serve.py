"""`serve`: the engine behind an address, for pages and command lines elsewhere."""

from __future__ import annotations

import importlib.util
import sys
import threading
from types import FrameType
from typing import Annotated

import typer

from sar_gen.cli_common import Progress, settings_with, stopped_by_signals
from sar_gen.errors import InputError, SarGenError
from sar_gen.serving import MAX_WAITING
from sar_gen.serving.addresses import is_loopback, url_of
from sar_gen.settings import Settings

HOST, PORT = "127.0.0.1", 8000


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; this machine only if left out.")] = HOST,
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = PORT,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Catalogue id of the one that is loaded at start.")] = None,
    max_waiting: Annotated[
        int, typer.Option(help="Requests that may wait beside the one that is made; of each replica.", min=0)
    ] = MAX_WAITING,
    ray: Annotated[
        str | None,
        typer.Option(help="Replicas by Ray Serve: the address of a cluster, auto, or local for this machine alone."),
    ] = None,
    replicas: Annotated[int, typer.Option(help="With --ray: engines.", min=1)] = 1,
    gpus_per_replica: Annotated[float, typer.Option(help="With --ray: GPUs of each engine; 0 is the CPU.", min=0)] = 0,
) -> None:
    """Serve the engine to pages elsewhere (`app.py --backend ADDRESS`) until Ctrl+C."""
    settings = settings_with(device=device, checkpoint=checkpoint)
    if ray is None and (replicas != 1 or gpus_per_replica):
        raise InputError("Replicas and their GPUs are Ray Serve's; add --ray local, or the address of a cluster.")
    if ray is not None and importlib.util.find_spec("ray") is None:
        raise InputError("Replicas need Ray, which is not installed; pip install -r requirements-ray.txt.")
    _check_checkpoint(settings)
    if not settings.backend_token and not is_loopback(host):
        print(
            f"Whoever reaches {host}:{port} can use this engine; set SAR_GEN_BACKEND_TOKEN here and there to keep "
            "others out.",
            file=sys.stderr,
        )
    if ray is None:
        _serve_here(settings, host, port, max_waiting)
    else:
        from sar_gen.serving.on_ray import serve_on_ray

        serve_on_ray(
            settings,
            host,
            port,
            address=ray,
            replicas=replicas,
            gpus=gpus_per_replica,
            max_waiting=max_waiting,
            while_served=_stay,
        )


def _check_checkpoint(settings: Settings) -> None:
    from sar_gen import checkpoints

    checkpoints.local_folder(checkpoints.resolve(checkpoints.catalogue(settings), settings.checkpoint), settings)


def _say(address: str) -> None:
    print(f"The engine is at {address}: python app.py --backend {address} (Ctrl+C ends it)", flush=True)


def _stay(address: str) -> None:
    _say(address)
    stopped_by_signals().wait()  # set here, since Ray sets signals of its own when it starts


def _serve_here(settings: Settings, host: str, port: int, max_waiting: int) -> None:
    """Serve one engine of this process by uvicorn."""
    import socket

    import uvicorn

    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SarGenError(
            f"Port {port} on {host} cannot be used ({error.strerror}); choose another with --port."
        ) from error
    Progress().say("Starting the engine (torch and diffusers).")
    from sar_gen.engine import Engine
    from sar_gen.serving.server import application

    engine = Engine(settings)
    engine.warm_up(settings.checkpoint)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """Let the requests at work end first, so that their clients are told."""
            threading.Thread(target=engine.close, daemon=True).start()
            super().handle_exit(sig, frame)

    app = application(engine, settings, max_waiting)
    server = Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=10, ws="none"))
    listener.listen()
    _say(url_of(host, port))
    try:
        server.run(sockets=[listener])
    finally:
        engine.close()
