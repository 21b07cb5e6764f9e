"""How long a start takes: to the page, to a checkpoint that is ready, and the imports on the way.

Each time is that of a process of its own, from before it is made; files are in the system's cache after the first,
untimed round. Beside it a plain script that imports diffusers and loads the same pipeline, without a page.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from sar_gen import checkpoints
from sar_gen.bench.timing import Bench, alternate
from sar_gen.errors import SarGenError
from sar_gen.settings import ROOT, Settings

LIMIT = 300.0  # seconds that a start may take
PLAIN = """
import sys, torch
from diffusers import StableDiffusionXLPipeline
device = sys.argv[2]
dtype = torch.float32 if device == "cpu" else torch.bfloat16
StableDiffusionXLPipeline.from_pretrained(sys.argv[1], dtype=dtype, use_safetensors=True).to(device)
print("ready", flush=True)
"""
# app.py itself, and a word once the engine has its checkpoint.
STUDIO = """
import sys, threading, time
from sar_gen.studio import Studio
plain = Studio.warm_up
def tell(studio):
    while studio.state.status in ("idle", "loading"):
        time.sleep(0.01)
    print(studio.state.status, studio.state.message, flush=True)
def warm_up(self):
    plain(self)
    threading.Thread(target=tell, args=(self,), daemon=True).start()
Studio.warm_up = warm_up
import app
sys.exit(app.main())
"""
IMPORTS = {
    "python alone": "pass",
    "torch and diffusers' SDXL pipeline": "from diffusers import StableDiffusionXLPipeline",
    "the page (gradio)": "from sar_gen.ui import page",
    "the engine (torch)": "from sar_gen import engine",
}


def bench_start(settings: Settings, rounds: int = 3) -> tuple[Bench, ...]:
    """Time starts of the app and of a plain script that loads the same pipeline, and imports.

    Args:
        settings: device and checkpoint.
        rounds: that are timed.

    Raises:
        InputError: the checkpoint is not there.
        SarGenError: a process ended before it was ready; the sentence holds its last line.
    """
    spec = checkpoints.resolve(checkpoints.catalogue(settings), settings.checkpoint)
    folder = checkpoints.local_folder(spec, settings)
    device = "cpu" if settings.device == "cpu" or not _has_cuda() else settings.device.replace("auto", "cuda")
    ready: tuple[float, int] = (0.0, 0)
    with tempfile.TemporaryDirectory() as runs:

        def page() -> tuple[float, int]:
            nonlocal ready
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            options = ["--port", str(port), "--no-open", "--runs", runs, "--device", device, "--checkpoint", spec.id]
            with _Started(STUDIO, options, settings) as started:
                answered = started.answers(f"http://127.0.0.1:{port}/")
                ready = started.says("ready")
            return answered

        def plain() -> tuple[float, int]:
            with _Started(PLAIN, [str(folder), device], settings) as started:
                return started.says("ready")

        starts = alternate(
            f"From nothing to {spec.id} on {device}",
            {
                "plain script: diffusers imported, pipeline loaded": plain,
                "studio: the page answers": page,
                "studio: the checkpoint is ready": lambda: ready,
            },
            rounds,
        )

    def importing(code: str) -> Callable[[], object]:
        # It stays until it is ended: the memory of a process that is over is not known any more.
        script = f"import time\n{code}\nprint('ready', flush=True)\ntime.sleep({LIMIT})"

        def work() -> tuple[float, int]:
            with _Started(script, [], settings) as started:
                return started.says("ready")

        return work

    return starts, alternate("Imports", {name: importing(code) for name, code in IMPORTS.items()}, rounds)


class _Started:
    """A Python process that was just started, ended with the ``with`` block."""

    def __init__(self, code: str, options: list[str], settings: Settings) -> None:
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "SAR_GEN_HOME": str(settings.home),
            "SAR_GEN_CHECKPOINTS": str(settings.checkpoints),
        }
        # What it has to say of itself goes to a file: a pipe that nobody reads fills up and stops it.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._begun = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *options],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> _Started:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def says(self, word: str) -> tuple[float, int]:
        """Return seconds and memory once it writes a line that begins with ``word``; lines before are passed over."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(word):
                return self._taken()
            if line.startswith("failed"):
                raise SarGenError(f"The start failed: {line.strip()}")
        raise self._ended()

    def answers(self, address: str) -> tuple[float, int]:
        """Return seconds and memory once a page is there."""
        while time.perf_counter() - self._begun < LIMIT:
            try:
                with urllib.request.urlopen(address, timeout=LIMIT) as answer:
                    answer.read()
                    return self._taken()
            except (urllib.error.URLError, ConnectionError):
                if self._process.poll() is not None:
                    raise self._ended() from None
                time.sleep(0.01)
        raise SarGenError(f"The page did not answer within {LIMIT:.0f} s; look at what 'python app.py' says.")

    def _taken(self) -> tuple[float, int]:
        import psutil

        seconds = time.perf_counter() - self._begun
        return seconds, int(psutil.Process(self._process.pid).memory_info().rss)

    def _ended(self) -> SarGenError:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return SarGenError(f"A process ended before it was ready ({lines[-1] if lines else 'it said nothing'}).")


def _has_cuda() -> bool:
    """Tell without torch, which would take seconds to import here, whether there is an NVIDIA device."""
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists()
