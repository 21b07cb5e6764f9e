"""The pixels of a manifest's rows, as the files that it names hold them."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sar_gen.amplitude import Scale, normalise
from sar_gen.errors import InputError
from sar_gen.patches import DEFAULT_MAX_PIXELS, Source, complete_values, facts_of, in_unit
from sar_gen.rasters import open_raster
from sar_gen.training.manifest import PatchRow, meaning_from_json

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow makes grey of colours


def read_pixels(row: PatchRow, folder: Path) -> NDArray[np.float32]:
    """Return a row's patch, ``(height, width)`` in [0, 1]: the studio's amplitude, or optical grey.

    Args:
        row: of the manifest.
        folder: the manifest's.

    Raises:
        InputError: its file cannot be used.
    """
    return finished_pixels(stored_pixels(row, folder / row.file), row)


def stored_pixels(row: PatchRow, path: Path, file: BinaryIO | None = None) -> NDArray[Any]:
    """Return a patch as it takes least memory: 8 and 16-bit values as stored, others finished.

    Args:
        row: of the manifest.
        path: of the file.
        file: its content, where it lies in an archive.

    Raises:
        InputError: the file cannot be used, or is not of the size that the row says.
    """
    with open_raster(path, DEFAULT_MAX_PIXELS, file=file) as raster:
        window = row.window
        if window is None and (raster.height, raster.width) != (row.height, row.width):
            raise InputError(
                f"{path.name} has {raster.height} rows and {raster.width} columns, its row of the manifest says "
                f"{row.height} and {row.width}; prepare the data again."
            )
        place = raster.window(window or (0, 0, row.height, row.width))
        meaning = meaning_from_json(row.meaning)
        if row.modality == "optical" and raster.colour:
            bands = [complete_values(Source(raster, band, meaning, path), place) for band in range(3)]
            values = sum(weight * band for weight, band in zip(_LUMA, bands, strict=True))
            assert not isinstance(values, int)
            values = np.rint(values) if raster.levels else values
        else:
            values = complete_values(Source(raster, raster.band(None), meaning, path), place)
        if raster.levels is not None:
            return values.astype(raster.dtype)
        finished = _to_amplitude(values, facts_of(raster), row.meaning, path.name)
        return finished.astype(np.float16) if raster.dtype == np.float16 and not meaning.needs_scale else finished


def finished_pixels(values: NDArray[Any], row: PatchRow) -> NDArray[np.float32]:
    """Return what ``stored_pixels`` gave as float32 in [0, 1]."""
    if values.dtype.kind == "f":
        return values.astype(np.float32, copy=False)
    return _table(None if row.meaning is None else json.dumps(row.meaning), values.dtype.name)[values]


@lru_cache(maxsize=64)
def _table(meaning: str | None, dtype: str) -> NDArray[np.float32]:
    """Return the finished pixel of each 8 or 16-bit value."""
    levels = int(np.iinfo(dtype).max)
    values = np.arange(levels + 1, dtype=np.float32)
    return _to_amplitude(
        values, {"levels": levels, "dtype": dtype}, None if meaning is None else json.loads(meaning), "the patch"
    )


def _to_amplitude(
    values: NDArray[Any], facts: dict[str, Any], meaning: dict[str, Any] | None, name: str
) -> NDArray[np.float32]:
    known = meaning_from_json(meaning)
    unit = in_unit(values, facts, known, name)
    return normalise(unit, known.scale) if known.needs_scale and isinstance(known.scale, Scale) else unit
