"""Starts the web app; nothing else. The page answers first, the checkpoint loads behind it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sar_gen.settings import Settings

HOST, PORT, PORTS_TRIED = "127.0.0.1", 7860, 40


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; every default shares nothing beyond this machine."""
    parser = argparse.ArgumentParser(
        prog="python app.py",
        description="SAR studio: text-to-SAR generation, judged beside real SAR. "
        "The page is served to this machine only, unless --host says otherwise.",
    )
    parser.add_argument("--host", default=HOST, help=f"address to listen on (default {HOST}: this machine only)")
    parser.add_argument("--port", type=int, help=f"port (default: the first free one from {PORT})")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: SAR_GEN_DEVICE or auto)")
    parser.add_argument("--checkpoint", help="id of the checkpoint chosen at start (default: sar-mini)")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="folder that runs are written to (default: outputs)")
    parser.add_argument(
        "--backend",
        metavar="ADDRESS",
        help="generate there instead of here: what 'python -m sar_gen serve' on a machine with GPUs says",
    )
    parser.add_argument(
        "--open", action=argparse.BooleanOptionalAction, help="open a browser (default: where there is a display)"
    )
    return parser.parse_args(arguments)


def free_port(host: str, port: int | None) -> int:
    """Return ``port`` if it is free, or the first free one from ``PORT`` where none was asked for.

    Raises:
        OSError: the port that was asked for cannot be had, or none is free.
    """
    candidates = [port] if port is not None else list(range(PORT, PORT + PORTS_TRIED))
    for candidate in candidates:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError as error:
                if candidate == candidates[-1]:
                    raise OSError(
                        f"Port {candidate} on {host} cannot be used ({error.strerror}); choose another with --port."
                    ) from error
                continue
            return int(probe.getsockname()[1])
    raise AssertionError("unreachable: the loop returns or raises")


def has_display() -> bool:
    """Tell whether a browser window could be seen on this machine."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _look_at_backend(settings: Settings) -> None:
    """Say where the backend does not answer; the page works without it, but for generating, and asks again."""
    from sar_gen.errors import InputError, SarGenError
    from sar_gen.serving.client import backend_of

    try:
        backend_of(settings).check()
    except InputError:
        raise  # no address at all
    except SarGenError as error:
        print(error, file=sys.stderr, flush=True)


def main() -> int:
    """Start the server and stay until Ctrl+C."""
    options = parse()
    from sar_gen.errors import SarGenError
    from sar_gen.imports import without_collection
    from sar_gen.settings import Settings

    try:
        port = free_port(options.host, options.port)
        chosen = {"device": options.device, "checkpoint": options.checkpoint, "backend": options.backend}
        chosen["runs"] = options.runs.expanduser().resolve() if options.runs else None
        settings = dataclasses.replace(
            Settings.from_env(), **{name: value for name, value in chosen.items() if value is not None}
        )
        if settings.backend:
            _look_at_backend(settings)
        with without_collection():
            from sar_gen.ui.page import serve  # imports gradio: not before the options are known to be good

        serve(settings, options.host, port, open_browser=has_display() if options.open is None else options.open)
    except (SarGenError, OSError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
