"""Reading SAR patches as the studio's amplitude, and writing them.

``sar_gen.rasters`` says which files are read and how. A file says what its values are, seldom what they mean:
``PixelMeaning`` says that, or the file itself (settings that the studio wrote; complex signal, whose modulus is linear
amplitude, as in SICD). Nothing is guessed. The conventions:

- A scale belongs to a set or an acquisition, never to one patch. Pooled (``"pool"``), it is taken from all pixels with
  data of a folder, or of the large raster that a window or a tile is cut from; squares of 256 pixels of a raster that
  are constant count as without data.
- A patch has no pixel without data, NaN or infinite: such a file or window is refused, such a tile is left out.
- Patches of a folder may differ in size: each pixel counts once in a pooled scale. They may not differ in unit: files
  of 8 bits, of 16 bits and of floats have no common scale, save where the meaning gives them one (``studio``, ``db``).
- A constant patch is read: ``quality.report.compare`` says in words that there is nothing to judge. A constant tile is
  left out, for that is how many products fill ground without data.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sar_gen.amplitude import AmplitudeEncoding, Scale, db_to_linear, normalise, pooled_scale
from sar_gen.errors import InputError
from sar_gen.rasters import SUFFIXES, Georeference, Raster, Window, open_raster
from sar_gen.rasters.pictures import STUDIO_KEY

__all__ = [
    "DEFAULT_MAX_PIXELS", "GROUP_TILES", "STUDIO_KEY", "SUFFIXES", "FileEncoding", "Georeference", "Patch",
    "PixelMeaning", "Window", "npy_bytes", "read_folder", "read_patch", "read_tiles", "read_values", "tiff_bytes",
]  # fmt: skip

DEFAULT_MAX_PIXELS = 100_000_000
MIN_TILE = 32
"""Smallest side of a tile, in pixels: smaller patches are not measured."""
GROUP_TILES = 4
"""Blocks of this many by this many neighbouring tiles of a raster share a group."""

FileEncoding = Literal["studio", "amplitude", "intensity", "db"]
_BLOCK_PIXELS = 2**22  # of a large raster that are held at once
_SQUARE = 256  # pooling leaves out squares of this side that are constant
_POOL_TIMES = 4  # a raster gives its windows a scale only if it has at least this many times their pixels
_MAX_DB = 120.0  # 16-bit digital numbers reach 96 dB


@dataclass(frozen=True)
class Patch:
    """One patch of SAR.

    Attributes:
        amplitude: ``(height, width)`` float32 in [0, 1].
        name: file name or title.
        encoding: ``linear`` is the studio's amplitude.
        polarisation: ``VV``, ``VH``, …, where known.
        scale: the pair that brought it to [0, 1], where known.
        group: patches that share ground share a group; empty means that this is not known.
        credit: whom to name when it is shown.
        path: the file that the amplitude was read from.
        window: first row, first column, height and width in that file; ``None`` for a whole file.
        georeference: where it lies, where the file says so.
        range_axis: 0 where the rows, 1 where the columns run in range; ``None`` where the file does not say.
    """

    amplitude: NDArray[np.float32]
    name: str
    encoding: AmplitudeEncoding = "linear"
    polarisation: str | None = None
    scale: Scale | None = None
    group: str = ""
    credit: str = ""
    path: Path | None = None
    window: Window | None = None
    georeference: Georeference | None = None
    range_axis: int | None = None


@dataclass(frozen=True)
class PixelMeaning:
    """How the values of a file become the studio's amplitude.

    Attributes:
        encoding: ``studio`` (already divided by mean + 3 std: 8 or 16-bit full scale, or floats in [0, 1]),
            ``amplitude`` (linear; of complex signal the modulus), ``intensity`` (power: its square root is taken) or
            ``db`` (decibels of power).
        scale: mean and std of linear amplitude in the file's unit; ``"pool"`` takes them from all patches of the
            folder, or from all of the large raster that a window or tile is cut from. Not used by ``studio``.
        db_range: decibels at grey 0 and at full scale, for integer files in ``db``.
        polarisation: noted on the patches; where the file names it, the file's must be the same.
        nodata: value that stands for no data, besides the one that the file itself may state. Sentinel-1 GRD, for
            example, fills its borders with 0 and does not say so.
    """

    encoding: FileEncoding
    scale: Scale | Literal["pool"] | None = "pool"
    db_range: tuple[float, float] | None = None
    polarisation: str | None = None
    nodata: float | None = None

    @property
    def needs_scale(self) -> bool:
        """Whether the values are still to be brought to [0, 1]."""
        return self.encoding != "studio"

    def __post_init__(self) -> None:
        if self.encoding not in get_args(FileEncoding):
            raise InputError(
                f"The pixel meaning {self.encoding!r} is unknown; choose one of {', '.join(get_args(FileEncoding))}."
            )
        if self.db_range is not None and not self.db_range[0] < self.db_range[1]:
            raise InputError(f"The decibel range {self.db_range} is empty; give the lower end first.")


def read_patch(
    path: Path,
    meaning: PixelMeaning | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    *,
    band: int | str | None = None,
    window: Window | None = None,
) -> Patch:
    """Read one patch: a file, or a window of a large raster.

    Args:
        path: PNG, TIFF, JPEG, NPY or SICD file.
        meaning: what its values mean; ``None`` for files that the studio wrote, and for windows of complex signal. Of
            a studio PNG the float amplitude beside it is read where it is there, the 8-bit view otherwise. The scale
            ``"pool"`` of a window is taken from the whole raster, in a first pass at constant memory.
        max_pixels: larger windows (or files, where there is no window) are refused before they are decoded.
        band: number from 1, name, or polarisation in the name, of the band that is meant of several.
        window: first row, first column, height and width; ``None`` is the whole file.

    Raises:
        InputError: the file cannot be used; one sentence says why and what to do.
    """
    path = Path(path)
    if meaning is None and window is None:
        return _read_studio_patch(path, max_pixels, band)
    if meaning is None and is_complex(path, max_pixels):
        meaning = PixelMeaning("amplitude")
    if meaning is not None and meaning.needs_scale and meaning.scale == "pool" and window is None:
        raise InputError(
            f"{path.name} alone has no scale: mean and standard deviation belong to a whole set or acquisition; "
            "give the folder of its set, a window of a larger raster, or a scale."
        )
    with open_source(path, meaning, max_pixels, band) as source:
        place = source.raster.window(window)
        values = complete_values(source, place)
        scale = _scale_of(source, place[2] * place[3])
        return _finished(source, values, scale, None if window is None else place)


def read_folder(
    folder: Path,
    meaning: PixelMeaning | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    *,
    band: int | str | None = None,
) -> list[Patch]:
    """Read every patch of a folder (not of its subfolders), in the order of their names.

    Args:
        folder: a run of the studio, of which each patch is read once, or any folder of patches, which may differ in
            size.
        meaning: what the values mean, the same for all; ``None`` for files that the studio wrote, or complex signal.
            The scale ``"pool"`` is taken from all pixels of the folder.
        max_pixels: for each file.
        band: as in ``read_patch``, the same for all.

    Raises:
        InputError: a file cannot be used, there is none, or they differ in unit.
    """
    folder = Path(folder)
    files = folder_files(folder)
    if not files:
        raise InputError(f"{folder} holds no patches; put PNG, TIFF, JPEG, NPY or SICD files there.")
    if meaning is None and all(is_complex(path, max_pixels) for path in files):
        meaning = PixelMeaning("amplitude")
    if meaning is None:
        patches = {patch.path: patch for patch in (read_patch(path, None, max_pixels, band=band) for path in files)}
        return list(patches.values())  # a PNG and the float amplitude beside it are one patch
    first_of: dict[str, str] = {}
    parts = []
    for path in files:
        with open_source(path, meaning, max_pixels, band) as source:
            raster = source.raster
            values = complete_values(source, raster.window(None))
            first_of.setdefault("floats" if raster.dtype.kind in "fc" else f"{raster.dtype.name} values", path.name)
            parts.append((source, in_unit(values, facts_of(raster), meaning, path.name)))
    if len(first_of) > 1 and meaning.encoding in ("amplitude", "intensity"):
        kinds = ", ".join(f"{unit} ({name})" for unit, name in first_of.items())
        raise InputError(
            f"{folder.name} mixes {kinds}, whose values cannot have one scale; put each kind in a folder of its own."
        )
    scale = meaning.scale
    if scale == "pool":
        scale = None
        if meaning.needs_scale:
            scale = _pooled([unit for _, unit in parts], _all_of(len(parts), folder.name), folder.name)
    return [_patch(source, unit, scale, None) for source, unit in parts]


def read_tiles(
    path: Path,
    meaning: PixelMeaning | None = None,
    side: int = 256,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    *,
    band: int | str | None = None,
    window: Window | None = None,
    group_tiles: int = GROUP_TILES,
    say: Callable[[str], None] | None = None,
) -> Iterator[Patch]:
    """Walk a large raster tile by tile, from the first row to the last, at constant memory.

    Tiles do not overlap; rows and columns at the far edges that fill no tile are left out, and so are tiles that hold
    a pixel without data, NaN or infinite, or are constant. A tile is called after the file and its first row and
    column. Blocks of ``group_tiles`` by ``group_tiles`` tiles share a group: neighbours show the same field or town,
    so that a floor taken between them would be too low.

    Args:
        path: as in ``read_patch``.
        meaning: as in ``read_patch``; ``None`` also for complex signal. The raster is the acquisition: the scale
            ``"pool"`` is taken from all its pixels with data in a first pass, whatever tiles or window are asked for.
        side: of the square tiles, in pixels.
        max_pixels: bounds a tile, not the file (PNG and JPEG: the file, which is decoded whole).
        band: as in ``read_patch``.
        window: walk this part only.
        group_tiles: side of a group, in tiles.
        say: is told at the end how many tiles there were and what was left out.

    Raises:
        InputError: as ``read_patch``, or no tile has data.
    """
    path = Path(path)
    if side < MIN_TILE:
        raise InputError(f"Tiles of {side} pixels are too small to be measured; give at least {MIN_TILE}.")
    if side * side > max_pixels:
        raise InputError(
            f"Tiles of {side} x {side} pixels are more than the {max_pixels / 1e6:.4g} megapixels that are read at "
            "once; give a smaller side, or raise SAR_GEN_MAX_PIXELS."
        )
    if group_tiles < 1:
        raise InputError(f"Groups of {group_tiles} by {group_tiles} tiles are none; give at least 1.")
    if meaning is None and is_complex(path, max_pixels):
        meaning = PixelMeaning("amplitude")
    return _tiles(path, meaning, side, max_pixels, band, window, group_tiles, say)


def read_values(
    path: Path,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    *,
    file: BinaryIO | None = None,
    band: int | str | None = None,
    window: Window | None = None,
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Read the values of a file, or of a window of it, as they are.

    Args:
        path: PNG, TIFF, JPEG, NPY or SICD file, recognised by its content.
        max_pixels: larger windows (or files, where there is no window) are refused before they are decoded.
        file: the content, where it does not lie on disk under ``path`` (an archive member); must be seekable.
        band: number from 1, name, or polarisation in the name, of the band that is meant of several.
        window: first row, first column, height and width; ``None`` is the whole file.

    Returns:
        ``(height, width)`` float32, or complex64 for complex files; integers keep their value. And metadata:
        ``format``, ``dtype`` (of the file), ``levels`` (full scale of 8 and 16-bit files, else ``None``), ``studio``
        (the settings that the studio wrote, else ``None``), ``shape`` (height and width of the file), ``bands`` (their
        names), ``polarisation``, ``georeference`` (of the window) and ``range_axis``, each ``None`` where unknown.

    Raises:
        InputError: the file is missing, empty, of another kind, damaged or too large, its band must be said, or it has
            pixels without data or not finite.
    """
    with open_raster(path, max_pixels, file=file) as raster:
        index, place = raster.band(band), raster.window(window)
        values = complete_values(Source(raster, index, PixelMeaning("studio"), path), place)
        return values, facts_of(raster) | {
            "polarisation": raster.polarisation(index),
            "georeference": raster.georeference and raster.georeference.at(*place[:2]),
        }


def npy_bytes(array: NDArray[Any]) -> bytes:
    """Return an ``.npy`` file of the array, float32 little-endian (complex64 for complex arrays)."""
    buffer = io.BytesIO()
    kind = "<c8" if np.iscomplexobj(array) else "<f4"
    np.save(buffer, np.ascontiguousarray(array, dtype=kind), allow_pickle=False)
    return buffer.getvalue()


def tiff_bytes(array: NDArray[Any], metadata: dict[str, Any] | None = None) -> bytes:
    """Return a 32-bit float TIFF of ``(height, width)`` amplitude; the same input gives the same bytes.

    Args:
        array: amplitude.
        metadata: settings as in the studio's PNGs, kept in the image description as JSON.
    """
    import tifffile

    buffer = io.BytesIO()
    description = None if metadata is None else json.dumps({STUDIO_KEY: metadata}, sort_keys=True)
    tifffile.imwrite(
        buffer, np.ascontiguousarray(array, dtype="<f4"), byteorder="<", photometric="minisblack",
        description=description, metadata=None, software="SAR studio",
    )  # fmt: skip
    return buffer.getvalue()


# From values to amplitude ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """An open file, and what is meant by it."""

    raster: Raster
    band: int | None
    meaning: PixelMeaning
    path: Path
    encoding: AmplitudeEncoding = "linear"


def facts_of(raster: Raster) -> dict[str, Any]:
    return {
        "format": raster.format,
        "dtype": raster.dtype.name,
        "levels": raster.levels,
        "studio": raster.studio,
        "shape": (raster.height, raster.width),
        "bands": raster.bands,
        "range_axis": raster.range_axis,
    }


def is_complex(path: Path, max_pixels: int) -> bool:
    with open_raster(path, max_pixels) as raster:
        return raster.is_complex


def _read(source: Source, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Return a window as float32 or complex64, and where it has no data or is not finite (``None``: nowhere)."""
    raster = source.raster
    stored, missing = raster.read(window, source.band)
    if source.meaning.nodata is not None:
        empty = stored == source.meaning.nodata
        missing = empty if missing is None else missing | empty
    with np.errstate(over="ignore"):
        values = stored.astype(np.complex64 if raster.is_complex else np.float32, copy=False)
    if raster.dtype.kind in "fc":
        odd = ~np.isfinite(values)
        missing = odd if missing is None else missing | odd
    return values, missing if missing is not None and missing.any() else None


def complete_values(source: Source, window: Window) -> NDArray[Any]:
    """Return the values of a window, all of which are there.

    Raises:
        InputError: some are not.
    """
    raster = source.raster
    values, missing = _read(source, window)
    if missing is None:
        return values
    odd = int(np.count_nonzero(~np.isfinite(values)))
    absent = values[missing & np.isfinite(values)]
    if not absent.size:
        raise InputError(
            f"{raster.name} has {odd} of {values.size} pixels that are NaN or infinite; fill or crop them first."
        )
    known = {np.float32(value) for value in (raster.nodata, source.meaning.nodata) if value is not None}
    why = ", ".join(f"{value:g}" for value in known) if np.isin(absent, list(known)).all() else raster.missing_is
    raise InputError(
        f"{raster.name} has {absent.size} of {values.size} pixels without data ({why}); fill or crop them."
    )


def in_unit(values: NDArray[Any], metadata: dict[str, Any], meaning: PixelMeaning, name: str) -> NDArray[np.float32]:
    """Return linear amplitude in the unit of the file's scale; for ``studio``, the finished amplitude.

    Raises:
        InputError: the values cannot mean that.
    """
    levels = metadata["levels"]
    integer = np.issubdtype(np.dtype(metadata["dtype"]), np.integer)
    if np.iscomplexobj(values):
        if meaning.encoding != "amplitude":
            raise InputError(f"{name} is complex signal; its meaning can only be 'amplitude'.")
        return np.abs(values).astype(np.float32)
    if meaning.encoding == "studio":
        if integer and levels is None:
            raise InputError(f"{name} holds {metadata['dtype']} values; studio amplitude is 8-bit, 16-bit or float.")
        amplitude = np.asarray(values / (levels if integer else 1), dtype=np.float32)
        if amplitude.min() < 0 or amplitude.max() > 1:
            raise InputError(
                f"{name} has values from {amplitude.min():.4g} to {amplitude.max():.4g}; studio amplitude lies in "
                "[0, 1]: choose another meaning (amplitude, intensity, db)."
            )
        return amplitude
    if meaning.encoding == "db":
        if integer:
            if meaning.db_range is None or levels is None:
                raise InputError(f"{name} holds integers; say which decibels its grey range covers (db_range).")
            low, high = meaning.db_range
            values = low + values / np.float32(levels) * (high - low)
        if values.max() > _MAX_DB:
            raise InputError(
                f"{name} has values up to {values.max():.4g}, which are no decibels of backscatter: are these "
                "amplitudes or intensities?"
            )
        return np.asarray(db_to_linear(values.astype(np.float64)), dtype=np.float32)
    if values.min() < 0:
        raise InputError(
            f"{name} has values down to {values.min():.4g}; {meaning.encoding} is never negative: are these decibels?"
        )
    return np.sqrt(values) if meaning.encoding == "intensity" else values


@contextmanager
def open_source(path: Path, meaning: PixelMeaning | None, max_pixels: int, band: int | str | None) -> Iterator[Source]:
    """Open a file; one that the studio wrote (no meaning) is read whole and held as a raster."""
    if meaning is not None:
        with open_raster(path, max_pixels) as raster:
            yield Source(raster, raster.band(band), meaning, path)
        return
    patch = _read_studio_patch(path, max_pixels, band)

    def read(_: int, window: Window) -> tuple[NDArray[np.float32], None]:
        row, column, height, width = window
        return patch.amplitude[row : row + height, column : column + width], None

    height, width = patch.amplitude.shape
    raster = Raster(
        patch.name, "studio", height, width, patch.amplitude.dtype, ("",), read, max_pixels,
        georeference=patch.georeference,
    )  # fmt: skip
    meaning = PixelMeaning("studio", polarisation=patch.polarisation)
    yield Source(raster, 0, meaning, patch.path or path, patch.encoding)


def _finished(
    source: Source, values: NDArray[Any], scale: Scale | None, window: Window | None, group: str = ""
) -> Patch:
    unit = in_unit(values, facts_of(source.raster), source.meaning, source.raster.name)
    return _patch(source, unit, scale, window, group)


def _patch(
    source: Source,
    unit: NDArray[np.float32],
    scale: Scale | Literal["pool"] | None,
    window: Window | None,
    group: str = "",
) -> Patch:
    """Return linear amplitude as a patch, brought to [0, 1].

    Raises:
        InputError: there is no scale, or the file names another polarisation than the meaning.
    """
    raster, meaning, path = source.raster, source.meaning, source.path
    if isinstance(scale, str):
        scale = None  # pooling means nothing to amplitude that is finished
    if meaning.needs_scale:
        if scale is None:
            raise InputError(
                f"{path.name} has no scale; give the mean and standard deviation of its set, or pool its folder."
            )
        unit = normalise(unit, scale)
    named, said = raster.polarisation(source.band), meaning.polarisation
    if named and said and said.upper() != named:
        raise InputError(
            f"{path.name} names the band {raster.bands[source.band or 0]!r}, but {said} was said; say {named}, or "
            "choose another band (--band)."
        )
    row, column = (0, 0) if window is None else window[:2]
    name = path.name if window is None else f"{path.stem}_r{row:05d}_c{column:05d}"
    return Patch(
        np.ascontiguousarray(unit), name, source.encoding, said or named, scale, group, path=path, window=window,
        georeference=raster.georeference and raster.georeference.at(row, column), range_axis=raster.range_axis,
    )  # fmt: skip


# Large rasters -----------------------------------------------------------------------------------------------------


def _tiles(
    path: Path,
    meaning: PixelMeaning | None,
    side: int,
    max_pixels: int,
    band: int | str | None,
    window: Window | None,
    group_tiles: int,
    say: Callable[[str], None] | None,
) -> Iterator[Patch]:
    with open_source(path, meaning, max_pixels, band) as source:
        raster = source.raster
        _, _, height, width = region = raster.window(window, limited=False)
        if min(height, width) < side:
            raise InputError(
                f"{path.name} has {width} x {height} pixels to be read, less than one tile of {side} x {side}; give a "
                "smaller side."
            )
        scale = _scale_of(source, side * side)
        read = empty = constant = dark = 0
        for top, left, _, block_width in _blocks(region, side):
            values, missing = _read(source, (top, left, side, block_width))
            for start in range(0, block_width, side):
                part = slice(start, start + side)
                tile = values[:, part]
                if missing is not None and missing[:, part].any():
                    empty += 1
                elif (tile == tile[0, 0]).all():
                    constant += 1
                else:
                    read += 1
                    dark += int(np.count_nonzero(tile) < 0.99 * tile.size)
                    place = top, left + start, side, side
                    block = side * group_tiles  # in pixels of the file, whatever window is walked
                    group = f"{path.name} block {place[0] // block},{place[1] // block}"
                    yield _finished(source, tile, scale, place, group)
    left_out = [
        f"{empty} left out that hold pixels without data or not finite" if empty else "",
        f"{constant} left out that are constant" if constant else "",
        f"{height % side} rows and {width % side} columns at the far edges fill no tile"
        if height % side or width % side
        else "",
        f"{dark} hold over 1 % of pixels that are exactly 0: if these are no data, say so (nodata 0)" if dark else "",
    ]
    total = read + empty + constant
    if say is not None:
        facts = "".join(f"; {fact}" for fact in left_out if fact)
        say(f"{path.name}: {read} of {total} tiles of {side} x {side} pixels{facts}.")
    if not read:
        raise InputError(
            f"{path.name} has no tile of {side} x {side} pixels that is full of data ({empty} with pixels missing, "
            f"{constant} constant); choose a smaller side or another part."
        )


def _blocks(window: Window, side: int) -> Iterator[Window]:
    """Yield whole tiles' worth of a window: blocks one tile high, as wide as ``_BLOCK_PIXELS`` allows."""
    row, column, height, width = window
    columns = max(1, _BLOCK_PIXELS // (side * side)) * side
    for top in range(row, row + height - side + 1, side):
        for left in range(column, column + width - side + 1, columns):
            yield top, left, side, min(columns, (column + width - left) // side * side)


def _scale_of(source: Source, patch_pixels: int) -> Scale | None:
    """Return the scale of a patch of a raster: the meaning's, or one pooled over the raster at constant memory.

    Raises:
        InputError: the raster is hardly larger than the patch, so that pooling would scale the patch by itself.
    """
    raster, scale = source.raster, source.meaning.scale
    if not source.meaning.needs_scale or scale is None:
        return None
    if isinstance(scale, Scale):
        return scale
    if raster.height * raster.width < _POOL_TIMES * patch_pixels:
        raise InputError(
            f"{raster.name} has less than {_POOL_TIMES} times the pixels of the part that is asked for, so that it "
            "cannot give it a scale: mean and standard deviation belong to a whole acquisition or set; give a scale."
        )
    return _pooled(units_of(source), f"all pixels of {raster.name}", raster.name)


def units_of(source: Source) -> Iterator[NDArray[np.float32]]:
    """Yield the amplitudes of all pixels with data of a raster, some at a time, without its constant squares."""
    raster = source.raster
    width = min(raster.width, _BLOCK_PIXELS // _SQUARE)
    for top in range(0, raster.height, _SQUARE):
        for left in range(0, raster.width, width):
            window = top, left, min(_SQUARE, raster.height - top), min(width, raster.width - left)
            values, missing = _read(source, window)
            keep = np.ones(values.shape, bool) if missing is None else ~missing
            for start in range(0, values.shape[1], _SQUARE):
                square = values[:, start : start + _SQUARE]
                if (square == square[0, 0]).all():
                    keep[:, start : start + _SQUARE] = False
            if keep.any():
                yield in_unit(values[keep], facts_of(raster), source.meaning, raster.name)


def _all_of(count: int, folder: str) -> str:
    return f"the one patch of {folder}" if count == 1 else f"all {count} patches of {folder}"


def _pooled(units: Iterable[NDArray[np.float32]], source: str, name: str) -> Scale:
    """Return the pooled scale of amplitudes.

    Raises:
        InputError: there is none above zero.
    """
    lit = False

    def watched() -> Iterator[NDArray[np.float32]]:
        nonlocal lit
        for unit in units:
            lit = lit or bool(unit.any())
            yield unit

    try:
        return pooled_scale(watched(), source)
    except InputError:
        if lit:
            raise
        raise InputError(
            f"{name} has no pixels with data above zero to take a scale from; give other files."
        ) from None


# Files that the studio wrote ---------------------------------------------------------------------------------------


def _read_studio_patch(path: Path, max_pixels: int, band: int | str | None = None) -> Patch:
    values, metadata = read_values(path, max_pixels, band=band)
    settings = metadata["studio"]
    if metadata["format"] == "NPY":
        settings = _settings_beside(path)
    facts = settings.get("amplitude") if isinstance(settings, dict) else None
    if not isinstance(settings, dict) or not isinstance(facts, dict):
        if np.iscomplexobj(values):
            raise InputError(
                f"{path.name} is complex signal, whose modulus is linear amplitude, but it has no scale; give one, or "
                "pool its folder or its tiles (meaning 'amplitude')."
            )
        raise InputError(
            f"{path.name} does not say what its pixels mean; say it: studio amplitude, linear amplitude, intensity or "
            "decibels."
        )
    beside = path.parent / Path(str(facts.get("file", ""))).name
    if metadata["format"] == "PNG" and beside.suffix == ".npy" and beside.is_file():
        values, metadata = read_values(beside, max_pixels)
        path = beside
    elif metadata["format"] == "PNG" and settings.get("remap", "linear") != "linear":
        raise InputError(
            f"{path.name} is a picture under the {settings['remap']} view, which cannot be measured; "
            "give the amplitude file (.npy) beside it."
        )
    if metadata["format"] == "NPY" and facts.get("sha256") not in (None, _sha256(values)):
        raise InputError(
            f"{path.name} has changed since the studio wrote it; give its meaning to use it all the same."
        )
    known: dict[Any, AmplitudeEncoding] = {"linear": "linear", "db": "db"}
    return Patch(
        in_unit(values, metadata, PixelMeaning("studio"), path.name),
        path.name,
        known.get(facts.get("encoding"), "unknown"),
        facts.get("polarisation"),
        path=path,
        georeference=metadata["georeference"],
    )


def _sha256(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<f4").tobytes()).hexdigest()


def _run_json(folder: Path) -> dict[str, Any] | None:
    try:
        data = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) and isinstance(data.get("images"), list) else None


def _run_images(run: dict[str, Any]) -> list[dict[str, Any]]:
    return [image for image in run["images"] if isinstance(image, dict) and image.get("amplitude_file")]


def _settings_beside(path: Path) -> dict[str, Any] | None:
    """Return the settings of a float amplitude file, from its run's JSON or from the PNG of the same name."""
    run = _run_json(path.parent)
    for image in _run_images(run) if run else []:
        if image["amplitude_file"] == path.name:
            checkpoint = run.get("checkpoint") if run else None
            checkpoint = checkpoint if isinstance(checkpoint, dict) else {}
            facts = {
                "sha256": image.get("sha256"),
                "encoding": checkpoint.get("amplitude_encoding"),
                "polarisation": checkpoint.get("polarisation"),
            }
            return {"amplitude": facts}
    picture = path.with_suffix(".png")
    if picture.is_file():
        settings = read_values(picture)[1]["studio"]
        if isinstance(settings, dict) and (settings.get("amplitude") or {}).get("file") == path.name:
            return settings
    return None


def folder_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; check the path.")
    run = _run_json(folder)
    if run is not None:  # the amplitudes only: no guide, no view
        names = [Path(str(image["amplitude_file"])).name for image in _run_images(run)]
        return [folder / name for name in names if (folder / name).is_file()]
    try:
        entries: Iterable[Path] = sorted(folder.iterdir())
    except PermissionError:
        raise InputError(f"{folder} may not be read; check its permissions.") from None
    found = [p for p in entries if p.suffix.lower() in SUFFIXES and not p.is_dir() and not p.name.startswith(".")]
    gone = [p.name for p in found if p.is_symlink() and not p.exists()]
    if gone:
        raise InputError(
            f"{folder} holds a link to a file that is not there ({gone[0]}); remove it, or bring it back."
        )
    return found
