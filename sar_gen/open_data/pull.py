"""Cutting scenes that lie on a server into patches, reading only the bytes of a box, and adding them as a set.

Patches lie on a lattice that is fixed to the scene's coordinate system, so that acquisitions on one grid are cut at
the same places. Their pixels are kept as they are: no resampling, which would change the speckle. Patches whose centre
lies in one cell of the ground, four patches wide, share a group, whatever the acquisition: a floor never compares
ground with itself.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError, SarGenError
from sar_gen.files import write_atomic
from sar_gen.open_data.scenes import BBox, Scene, extra
from sar_gen.patches import PixelMeaning
from sar_gen.reference_build import BuildStoppedError, FolderOptions, Progress
from sar_gen.references import ReferenceInfo, add_reference, free_name, pulled_folder
from sar_gen.settings import Settings

MIN_SIZE, MAX_SIZE = 32, 2048
CELL = 4
"""Width of a cell of the ground, in patches."""
AT_ONCE = 16
"""Patches of one row that are read at once."""
MAX_ZEROS = 0.01
"""Share of zero pixels above which a patch is taken for the empty border of a scene and left out."""
METRES_PER_DEGREE = 111_320.0
_PLAN = ".pull.json"
_STATE = ".scene.json"


@dataclass(frozen=True)
class PullRequest:
    """What is pulled, apart from the scenes.

    Attributes:
        name: of the set.
        meaning: what the pixels are.
        bbox: west, south, east, north in degrees; a patch belongs to it by its centre.
        size: side of a patch in pixels.
        spacing: metres from pixel to pixel, about; sizes the cells of the ground.
        own_scales: one scale an acquisition (products whose grey levels are each their own), not one for the set.
        credit: whose data.
        licence: on what terms.
        sensor: in words.
        note: what one should know when comparing.
        query: what was searched for, in any words: the same words go on with what was cut off.
    """

    name: str
    meaning: PixelMeaning
    bbox: BBox
    size: int = 256
    spacing: float = 10.0
    own_scales: bool = False
    credit: str = ""
    licence: str = ""
    sensor: str = "unknown sensor"
    note: str = ""
    query: str = ""


def pull(
    request: PullRequest,
    scenes: Sequence[Scene],
    settings: Settings,
    *,
    sign: Callable[[str], str] = str,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> ReferenceInfo:
    """Read the patches of a box out of scenes over HTTP, keep them in ``settings.home``, and add them as a set.

    A call that was cut off is gone on with by the same call: rows of patches that were read are not read again.

    Args:
        request: what is pulled.
        scenes: with north-up GeoTIFFs (cloud-optimised ones, so that a box is a few ranges of bytes).
        settings: where the set is kept.
        sign: makes an address that may be read of a scene's address.
        progress: called with patches done and in all; counts anew when the patches are measured.
        cancel: when set, the call stops soon; what was finished is kept.

    Raises:
        InputError: the name or size is not usable, ``rasterio`` is missing, or the box holds no patch with data.
        SarGenError: a scene cannot be read.
        BuildStoppedError: ``cancel`` was set.
    """
    short = free_name(request.name, settings)
    if not MIN_SIZE <= request.size <= MAX_SIZE:
        raise InputError(f"A patch of {request.size} pixels is not cut; choose a size from {MIN_SIZE} to {MAX_SIZE}.")
    rasterio = extra("rasterio", "rasterio")
    folder = pulled_folder(short, settings)
    _prepare(folder, request, scenes)
    options = {
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_HTTP_MAX_RETRY": 4,
        "GDAL_HTTP_RETRY_DELAY": 1,
        "GDAL_HTTP_CONNECTTIMEOUT": 30,
        "GDAL_HTTP_LOW_SPEED_TIME": 60,
        "GDAL_HTTP_LOW_SPEED_LIMIT": 1,
    }
    with rasterio.Env(**options):
        kept = _read_scenes(rasterio, folder, request, scenes, sign, progress, cancel)
    if not kept:
        raise InputError("The box holds no whole patch with data; choose a larger box, other dates or a smaller size.")
    return add_reference(
        folder,
        request.name,
        request.meaning,
        settings,
        credit=request.credit,
        licence=request.licence,
        sensor=request.sensor,
        note=request.note,
        options=FolderOptions(
            recursive=True, groups="folder", scales="folder" if request.own_scales else "set", skip=False
        ),
        progress=progress,
        cancel=cancel,
    )


@dataclass(frozen=True)
class Tile:
    """A patch of a scene: its left and upper pixel, and the cell of the ground that its centre lies in."""

    column: int
    row: int
    cell: str


def tiles_of(raster: Any, bbox: BBox, size: int, spacing: float) -> list[Tile]:
    """Return the patches of an open raster whose centres lie in a box, row by row.

    Args:
        raster: an open ``rasterio`` dataset, north-up.
        bbox: west, south, east, north in degrees.
        size: side of a patch in pixels.
        spacing: metres from pixel to pixel, about, for the cells.

    Raises:
        InputError: the raster has no coordinate system or is not north-up.
    """
    warp = extra("rasterio.warp", "rasterio")
    place = raster.transform
    if raster.crs is None or place.b or place.d or place.a <= 0 or place.e >= 0:
        raise InputError(f"{raster.name} is not a north-up image with coordinates, which is what can be cut.")
    west, south, east, north = warp.transform_bounds("EPSG:4326", raster.crs, *bbox, densify_pts=21)
    columns = _lattice(place.c, place.a, west, east, size, raster.width)
    rows = _lattice(place.f, place.e, north, south, size, raster.height)
    if not columns or not rows:
        return []
    grid = [(column, row) for row in rows for column in columns]
    middles = np.array(grid) + size / 2
    longitudes, latitudes = warp.transform(
        raster.crs, "EPSG:4326", place.c + place.a * middles[:, 0], place.f + place.e * middles[:, 1]
    )
    side = CELL * size * spacing
    return [
        Tile(column, row, _cell(longitude, latitude, side))
        for (column, row), longitude, latitude in zip(grid, longitudes, latitudes, strict=True)
        if bbox[0] <= longitude <= bbox[2] and bbox[1] <= latitude <= bbox[3]
    ]


def usable(pixels: NDArray[Any], nodata: float | None) -> bool:
    """Return whether a patch is data throughout.

    It is not where a pixel is missing (``nodata``, NaN, infinite or negative). Zero may be dark ground or the empty
    border, which products do not always mark: up to ``MAX_ZEROS`` of a patch are taken for ground.
    """
    missing = ~np.isfinite(pixels) | (pixels < 0)
    if nodata is not None and nodata != 0:
        missing |= pixels == nodata
    return not missing.any() and int(np.count_nonzero(pixels == 0)) <= MAX_ZEROS * pixels.size


def _lattice(origin: float, step: float, first: float, last: float, size: int, length: int) -> list[int]:
    """Return the first pixels of the patches along an axis whose centres may lie between two coordinates.

    Patches begin at multiples of their width in the coordinate system, to the nearest pixel.
    """
    anchor = round(-origin / step) % size
    low = max((first - origin) / step - size, 0)
    high = min((last - origin) / step, length - size)
    start = anchor + math.ceil((low - anchor) / size) * size
    return list(range(start, math.floor(high) + 1, size))


def _cell(longitude: float, latitude: float, side: float) -> str:
    """Return the cell of the ground, about ``side`` metres wide, that a place lies in."""
    row = math.floor(latitude * METRES_PER_DEGREE / side)
    parallel = math.cos(math.radians(min(abs((row + 0.5) * side / METRES_PER_DEGREE), 89.9)))
    column = math.floor(longitude * METRES_PER_DEGREE * parallel / side)
    return f"cell{row:+d}{column:+d}"


def _prepare(folder: Path, request: PullRequest, scenes: Sequence[Scene]) -> None:
    """Note what is pulled; what another request left under this name is deleted."""
    plan = {"request": _request_json(request), "scenes": [asdict(scene) for scene in scenes]}
    if _read_json(folder / _PLAN) != plan:
        shutil.rmtree(folder, ignore_errors=True)
        write_atomic(folder / _PLAN, (json.dumps(plan, indent=1) + "\n").encode())


def planned_scenes(request: PullRequest, settings: Settings) -> tuple[Scene, ...] | None:
    """Return the scenes of the same request that was cut off before, so that newer ones do not start it anew."""
    folder = pulled_folder(free_name(request.name, settings), settings)
    plan = _read_json(folder / _PLAN)
    if not isinstance(plan, dict) or plan.get("request") != _request_json(request):
        return None
    return tuple(Scene(**scene) for scene in plan["scenes"])


def _request_json(request: PullRequest) -> dict[str, Any]:
    """Return the request as JSON gives it back, without the credit, which follows from the scenes."""
    data: dict[str, Any] = json.loads(json.dumps(asdict(request)))
    return {key: value for key, value in data.items() if key != "credit"}


def _read_scenes(
    rasterio: Any,
    folder: Path,
    request: PullRequest,
    scenes: Sequence[Scene],
    sign: Callable[[str], str],
    progress: Progress | None,
    cancel: threading.Event | None,
) -> int:
    """Read all scenes; return how many patches are kept."""
    names = _folder_names(scenes)
    found = []
    for scene in scenes:
        with _opened(rasterio, scene, sign) as raster:
            found.append(tiles_of(raster, request.bbox, request.size, request.spacing))
    total = sum(len(tiles) for tiles in found)
    done = kept = 0
    for scene, name, tiles in zip(scenes, names, found, strict=True):
        with _opened(rasterio, scene, sign) as raster:
            state = _read_json(folder / name / _STATE) or {"strips": 0, "kept": 0}
            for number, strip in enumerate(_strips(tiles)):
                if cancel is not None and cancel.is_set():
                    raise BuildStoppedError("Stopped; the same command goes on from there.")
                if number >= state["strips"]:
                    saved = _read_strip(rasterio, raster, scene, strip, request.size, folder / name)
                    state = {"strips": number + 1, "kept": state["kept"] + saved}
                    write_atomic(folder / name / _STATE, json.dumps(state).encode())
                done += len(strip)
                if progress is not None:
                    progress(done, total)
        kept += state["kept"]
    return kept


def _strips(tiles: Sequence[Tile]) -> Iterator[list[Tile]]:
    """Yield neighbours of one row, at most ``AT_ONCE``."""
    strip: list[Tile] = []
    for tile in tiles:
        if strip and (tile.row != strip[-1].row or len(strip) == AT_ONCE):
            yield strip
            strip = []
        strip.append(tile)
    if strip:
        yield strip


def _read_strip(rasterio: Any, raster: Any, scene: Scene, strip: list[Tile], size: int, folder: Path) -> int:
    """Read a row of patches with one request and write those that are data throughout; return how many."""
    first = strip[0]
    window = rasterio.windows.Window(first.column, first.row, strip[-1].column + size - first.column, size)
    try:
        pixels = raster.read(1, window=window)
    except rasterio.errors.RasterioError as error:
        raise _unreadable(scene, error) from error
    saved = 0
    for tile in strip:
        patch = pixels[:, tile.column - first.column : tile.column - first.column + size]
        if not usable(patch, raster.nodata):
            continue
        place = raster.window_transform(rasterio.windows.Window(tile.column, tile.row, size, size))
        # A nodata value of 0 would make dark pixels missing ones; patches with missing pixels are not kept anyway.
        write_atomic(
            folder / tile.cell / f"r{tile.row:06d}c{tile.column:06d}.tif", _geotiff(rasterio, patch, raster.crs, place)
        )
        saved += 1
    return saved


def _geotiff(rasterio: Any, pixels: NDArray[Any], crs: Any, place: Any) -> bytes:
    with rasterio.io.MemoryFile() as memory:
        with memory.open(
            driver="GTiff", height=pixels.shape[0], width=pixels.shape[1], count=1, dtype=pixels.dtype, crs=crs,
            transform=place, compress="deflate",
        ) as out:  # fmt: skip
            out.write(pixels, 1)
        return bytes(memory.read())


def _opened(rasterio: Any, scene: Scene, sign: Callable[[str], str]) -> Any:
    try:
        return rasterio.open(f"/vsicurl/{sign(scene.url)}")
    except rasterio.errors.RasterioError as error:
        raise _unreadable(scene, error) from error


def _unreadable(scene: Scene, error: Exception) -> SarGenError:
    reason = re.sub(r"\?\S+", "", str(error)).splitlines()[0]  # without the token of a signed address
    return SarGenError(f"The scene {scene.id} cannot be read ({reason}); the same command goes on from there.")


def _folder_names(scenes: Sequence[Scene]) -> list[str]:
    """Return a folder name for each scene, plain and unlike the others."""
    names: list[str] = []
    for scene in scenes:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", scene.id).strip(".-")[:100] or "scene"
        names.append(name if name not in names else f"{name}-{len(names)}")
    return names


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
