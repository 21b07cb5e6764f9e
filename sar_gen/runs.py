"""What was made: one folder a run, written atomically and before anything is shown.

A run folder holds, for each patch, ``000_seed7.npy`` (float32 amplitude, the measured quantity) and ``000_seed7.png``
(8-bit linear view with the settings in its PNG text), ``guide.png`` when there was one, and ``run.json``. The JSON is
rewritten after every patch, so that a run that is cut off by a power failure still lists what it finished. No clock
time goes into the PNG: the same request gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import platform
import re
import time
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from sar_gen.amplitude import quantise
from sar_gen.errors import InputError, SarGenError
from sar_gen.files import describe_os_error, write_atomic
from sar_gen.request import IMAGE_TO_IMAGE, GenerationRequest, Guide, Saved

PNG_KEY = "sar_gen"
CELLS = "cells"
"""Folder of a grid that holds the runs of its cells (``grids``)."""
_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "gradio", "numpy")


@cache
def library_versions() -> dict[str, str]:
    """Return the versions that can change a picture, without importing the libraries."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions


def amplitude_sha256(amplitude: NDArray[np.float32]) -> str:
    """Return the SHA-256 of the amplitude's little-endian float32 bytes (not of the file, whose header may change)."""
    return hashlib.sha256(np.ascontiguousarray(amplitude, dtype="<f4").tobytes()).hexdigest()


@dataclass(frozen=True)
class RunImage:
    """One finished patch of a run; the paths are absolute."""

    index: int
    seed: int
    view: Path
    amplitude_file: Path
    sha256: str


@dataclass(frozen=True)
class RunRecord:
    """A run as read back from its folder.

    ``status`` is ``done``, ``stopped``, ``failed``, or ``running``, which, once the process is gone, means cut off.
    """

    id: str
    folder: Path
    status: str
    request: GenerationRequest
    checkpoint: dict[str, Any]
    images: tuple[RunImage, ...]
    notices: tuple[str, ...]
    seconds: dict[str, float]
    device: dict[str, Any]
    versions: dict[str, str]
    report: dict[str, Any] | None
    created: str
    selection: dict[str, Any] | None = None

    @property
    def json_path(self) -> Path:
        """The run's JSON file."""
        return self.folder / "run.json"


@dataclass
class Run:
    """A run being written."""

    id: str
    folder: Path
    request: GenerationRequest
    checkpoint: dict[str, Any]
    guides: list[dict[str, Any]] = field(default_factory=list)
    images: list[RunImage] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    device: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=library_versions)
    created: str = ""
    status: str = "running"
    seconds: dict[str, float] = field(default_factory=dict)
    report: dict[str, Any] | None = None
    selection: dict[str, Any] | None = None

    def save_patch(self, index: int, seed: int, amplitude: NDArray[np.float32]) -> Saved:
        """Write one patch and list it in ``run.json``.

        Args:
            index: position in the run, from 0.
            seed: the seed that made it.
            amplitude: float32 ``(height, width)`` in [0, 1].

        Raises:
            SarGenError: the folder cannot be written.
        """
        stem = f"{index:03d}_seed{seed}"
        sha256 = amplitude_sha256(amplitude)
        image = RunImage(index, seed, self.folder / f"{stem}.png", self.folder / f"{stem}.npy", sha256)
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(amplitude, dtype="<f4"), allow_pickle=False)
        write_atomic(image.amplitude_file, buffer.getvalue())
        write_atomic(image.view, self._view_png(image, amplitude))
        self.images.append(image)
        self._write()
        return Saved(index, seed, image.view, image.amplitude_file, sha256)

    def finish(self, status: str, seconds: dict[str, float], report: dict[str, Any] | None = None) -> None:
        """Close the run: ``status`` is ``done``, ``stopped`` or ``failed``."""
        self.status, self.seconds, self.report = status, seconds, report
        self._write()

    def _view_png(self, image: RunImage, amplitude: NDArray[np.float32]) -> bytes:
        text = PngImagePlugin.PngInfo()
        settings = {
            "request": self.request.to_json(),
            "index": image.index,
            "seed": image.seed,
            "checkpoint": self.checkpoint,
            "guides": self.guides,
            "remap": "linear",
            "amplitude": {
                "file": image.amplitude_file.name,
                "sha256": image.sha256,
                "encoding": self.checkpoint.get("amplitude_encoding", "unknown"),
                "polarisation": self.checkpoint.get("polarisation"),
            },
            "versions": self.versions,
            "synthetic": True,
        }
        text.add_text(PNG_KEY, json.dumps(settings, sort_keys=True))
        buffer = io.BytesIO()
        Image.fromarray(quantise(amplitude, 8)).save(buffer, "png", pnginfo=text)
        return buffer.getvalue()

    def _write(self) -> None:
        data = {
            "id": self.id,
            "created": self.created,
            "status": self.status,
            "request": self.request.to_json(),
            "checkpoint": self.checkpoint,
            "guides": self.guides,
            "images": [
                {
                    "index": i.index,
                    "seed": i.seed,
                    "view": i.view.name,
                    "amplitude_file": i.amplitude_file.name,
                    "sha256": i.sha256,
                }
                for i in self.images
            ],
            "notices": self.notices,
            "device": self.device,
            "versions": self.versions,
            "seconds": self.seconds,
            "selection": self.selection,
            "report": self.report,
        }
        write_atomic(self.folder / "run.json", json.dumps(data, indent=1, sort_keys=True).encode())


class RunStore:
    """All runs under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, request: GenerationRequest, checkpoint: dict[str, Any], device: dict[str, Any]) -> Run:
        """Make a run folder and its first ``run.json``: a folder that cannot be written is found before any work.

        Raises:
            SarGenError: the folder cannot be written.
        """
        folder = stamped_folder(self.folder, slug(request.prompt) or "run")
        created = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        run = Run(folder.name, folder, request, checkpoint, device=device, created=created)
        run.guides = [save_guide(run.folder, guide, place) for place, guide in enumerate(request.guides)]
        run._write()
        return run

    def list(self, limit: int | None = None) -> list[RunRecord]:
        """Return the runs, newest first; folders that hold no readable ``run.json`` are passed over."""
        if not self.folder.is_dir():
            return []
        records: list[RunRecord] = []
        names = sorted((p.name for p in self.folder.iterdir() if not p.name.startswith(".")), reverse=True)
        for name in names:
            if limit is not None and len(records) >= limit:
                break
            try:
                records.append(read_run(self.folder / name))
            except InputError:
                continue
        return records

    def open(self, run: str | Path) -> RunRecord:
        """Open a run by its id, its folder, its ``run.json`` or one of its PNGs (found by the amplitude's hash).

        The cells of grids are found too, though ``list`` leaves them out.

        Raises:
            InputError: there is no such run.
        """
        path = Path(run)
        if path.suffix.lower() == ".png":
            return self._open_png(path)
        if path.name == "run.json":
            path = path.parent
        if not path.is_dir():
            places = (store.folder / str(run) for store in (self, *self.grids()))
            path = next((place for place in places if place.is_dir()), path)
        if not path.is_dir():
            raise InputError(f"There is no run {str(run)!r} in {self.folder}; `runs list` shows what there is.")
        return read_run(path)

    def grids(self) -> tuple[RunStore, ...]:
        """Return the stores that hold the cells of grids, the newest grid first."""
        return tuple(RunStore(path) for path in sorted(self.folder.glob(f"*/{CELLS}"), reverse=True))

    def _open_png(self, path: Path) -> RunRecord:
        settings = settings_from_png(path)
        if (path.parent / "run.json").is_file():
            return read_run(path.parent)
        sha256 = settings["amplitude"]["sha256"]
        for record in (record for store in (self, *self.grids()) for record in store.list()):
            if any(image.sha256 == sha256 for image in record.images):
                return record
        raise InputError(
            f"The run that made {path.name} is not in {self.folder}; its settings can still be read from the picture."
        )


def slug(text: str) -> str:
    """Return a text as part of a folder's name: small letters, digits and hyphens, 40 at most."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-")


def stamped_folder(parent: Path, name: str) -> Path:
    """Make a folder called by the time and ``name`` and return it; it is a new one, whoever else makes some.

    Raises:
        SarGenError: it cannot be made.
    """
    while True:
        now = time.time()
        stamp = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{int(now % 1 * 1000):03d}"
        folder = parent / f"{stamp}-{name}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            time.sleep(0.001)  # another one began in this millisecond
        except OSError as error:
            raise SarGenError(describe_os_error(folder, error)) from error


def save_guide(folder: Path, guide: Guide, place: int) -> dict[str, Any]:
    """Write the picture of a guide where ``request_from_json`` looks for it, and return the guide as JSON data."""
    name = "guide.png" if place == 0 else f"guide_{place}.png"
    buffer = io.BytesIO()
    Image.fromarray(guide.image).save(buffer, "png")
    write_atomic(folder / name, buffer.getvalue())
    return {**guide.to_json(), "file": name}


def request_from_json(data: dict[str, Any], folder: Path | None = None) -> GenerationRequest:
    """Rebuild a request; its guide is read from ``folder`` when it is there.

    Raises:
        InputError: the data is not a request.
    """
    names = {f.name for f in dataclasses.fields(GenerationRequest)} - {"guides"}
    try:
        values = {key: value for key, value in data.items() if key in names}
        values.setdefault("profile", "plain")  # what there was before there were profiles
        # Before there were several guides a request had one, by image-to-image.
        listed = data.get("guides") or ([{**data["guide"], "way": IMAGE_TO_IMAGE}] if data.get("guide") else [])
        found = [_load_guide(folder, place, guide) for place, guide in enumerate(listed)]
        return GenerationRequest(**values, guides=tuple(guide for guide in found if guide is not None))
    except (TypeError, KeyError, AttributeError, OSError) as error:
        raise InputError("The settings of this run cannot be read; it was written by another program.") from error


def _load_guide(folder: Path | None, place: int, data: dict[str, Any]) -> Guide | None:
    """Return a guide of a run; ``None`` where its picture is not there, or another one of that name is."""
    name = "guide.png" if place == 0 else f"guide_{place}.png"
    if folder is None or not (folder / name).is_file():
        return None
    names = {f.name for f in dataclasses.fields(Guide)} - {"image", "notes"}
    values = {key: value for key, value in data.items() if key in names}
    pixels = np.asarray(Image.open(folder / name))
    guide = Guide(**values, image=pixels, notes=tuple(data.get("notes", ())))
    return guide if data.get("sha256", guide.sha256) == guide.sha256 else None


def read_run(folder: Path) -> RunRecord:
    """Read a run folder; patches whose files have gone are left out.

    Raises:
        InputError: the folder holds no readable ``run.json``.
    """
    path = folder / "run.json"
    try:
        data = json.loads(path.read_text())
        images = tuple(
            RunImage(i["index"], i["seed"], folder / i["view"], folder / i["amplitude_file"], i["sha256"])
            for i in data["images"]
        )
        return RunRecord(
            id=data["id"],
            folder=folder,
            status=data["status"],
            request=request_from_json(data["request"], folder),
            checkpoint=data["checkpoint"],
            images=tuple(i for i in images if i.view.is_file() and i.amplitude_file.is_file()),
            notices=tuple(data["notices"]),
            seconds=data["seconds"],
            device=data["device"],
            versions=data["versions"],
            report=data["report"],
            created=data["created"],
            selection=data.get("selection"),  # runs of before have none
        )
    except FileNotFoundError as error:
        raise InputError(f"{folder} is not a run: it holds no run.json.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read as a run; it is damaged or was written by another program."
        ) from error


def settings_from_png(path: Path) -> dict[str, Any]:
    """Return the settings that a run wrote into one of its PNGs.

    Raises:
        InputError: the file is no PNG, or not one of ours.
    """
    try:
        with Image.open(path) as image:
            text = getattr(image, "text", {}).get(PNG_KEY)
        data = json.loads(text) if text else None
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"{path.name} is not a readable PNG; drop a picture that the studio saved.") from error
    if not isinstance(data, dict) or "request" not in data or "sha256" not in data.get("amplitude", {}):
        raise InputError(f"{path.name} carries no studio settings; drop a PNG that the studio saved.")
    return data


def request_from_png(path: Path) -> GenerationRequest:
    """Return the request that made a PNG.

    Raises:
        InputError: the file is not one of ours.
    """
    return request_from_json(settings_from_png(path)["request"], path.parent)
