"""The guides that a ControlNet learns from: class map, optical grey and coarse SAR of a data set's patches.

The class map is made of the optical picture alone (``training.landcover``), so that nothing of the SAR image leaks
into its own guide. The planes are those of ``conditioning``, so that training and the engine give a network the same.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sar_gen.conditioning import PLANES, coarse_sar, optical_grey, planes
from sar_gen.errors import InputError
from sar_gen.files import write_atomic
from sar_gen.guides import resize_map
from sar_gen.training.batches import generator
from sar_gen.training.config import GuidesConfig, TrainingConfig
from sar_gen.training.dataset import Dataset
from sar_gen.training.landcover import class_map
from sar_gen.training.manifest import PatchRow

STREAM = 7
"""Of random numbers; those of ``batches`` are others."""


class GuidePlanes:
    """Gives the planes of a batch; seed, step and place alone decide what is drawn."""

    def __init__(self, data: Dataset, config: TrainingConfig) -> None:
        """Take the patches of ``data``.

        Raises:
            InputError: a patch has no optical picture, and a kind of guide needs one.
        """
        self._data, self._config, self._seed = data, config.guides, config.run.seed
        self._folder = data.folder
        self._maps = config.guides.maps or config.work / "maps"
        self._kept: dict[str, NDArray[np.uint8]] = {}
        if {"map", "optical"} & set(self._config.kinds):
            lacking = next((row for row in data.rows if row.optical is None), None)
            if lacking is not None:
                raise InputError(
                    f"{lacking.key} has no optical picture to make a guide of; set guides.kinds = ['sar'] or prepare "
                    "the data with their optical halves."
                )

    def __call__(self, indices: Sequence[int], number: int, rank: int = 0) -> NDArray[np.float32]:
        """Return float32 ``(n, len(PLANES), height, width)``.

        Args:
            indices: of the patches in the data, all of one size.
            number: of the batch.
            rank: of the process.
        """
        made = []
        for place, index in enumerate(indices):
            draw = generator(self._seed, STREAM, number, rank, place)
            made.append(self._one(index, draw))
        return np.stack(made)

    def _one(self, index: int, draw: np.random.Generator) -> NDArray[np.float32]:
        size = self._data.crop_sizes()[index]
        if draw.random() < self._config.dropped:
            return np.zeros((len(PLANES), *size), np.float32)
        kind = self._config.kinds[draw.integers(len(self._config.kinds))]
        row = self._data.rows[index]
        if kind == "map":
            return planes(kind, row_map(row, self._folder, self._maps, size, self._kept))
        if kind == "optical":
            return planes(kind, jittered(row_optical(row, self._folder, size, self._kept), self._config, draw))
        return planes(kind, degraded(self._data.crops([index])[0], self._config, draw))


def row_map(
    row: PatchRow, folder: Path, maps: Path, size: tuple[int, int], kept: dict[str, NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """Return the class map of a patch's centre crop, ``size`` uint8, made of its whole optical picture once.

    Args:
        row: with an optical picture.
        folder: of the manifest.
        maps: folder where the maps of whole pictures are kept as PNG.
        size: of the crop.
        kept: pictures and maps that were read.
    """
    name = f"map {row.optical}"
    if name not in kept:
        path = maps / f"{hashlib.sha256(str(row.optical).encode()).hexdigest()[:16]}.png"
        if not path.is_file():
            buffer = io.BytesIO()
            Image.fromarray(class_map(_picture(row, folder))).save(buffer, "png")
            write_atomic(path, buffer.getvalue())
        kept[name] = np.asarray(Image.open(path))
    return resize_map(_part(kept[name], row, size, folder), size)


def row_optical(
    row: PatchRow, folder: Path, size: tuple[int, int], kept: dict[str, NDArray[np.uint8]]
) -> NDArray[np.float32]:
    """Return the optical grey of a patch's centre crop, float32 ``size`` in [0, 1]; see ``row_map``."""
    name = f"optical {row.optical}"
    if name not in kept:
        kept[name] = _picture(row, folder)
    return optical_grey(_part(kept[name], row, size, folder), size)


def jittered(grey: NDArray[np.float32], config: GuidesConfig, draw: np.random.Generator) -> NDArray[np.float32]:
    """Return optical grey with another gain and gamma: pictures of users are stretched in other ways."""
    gain, gamma = np.exp(draw.uniform(-config.jitter, config.jitter, 2))
    return np.clip(gain * grey**gamma, 0, 1).astype(np.float32)


def degraded(amplitude: NDArray[np.float32], config: GuidesConfig, draw: np.random.Generator) -> NDArray[np.float32]:
    """Return coarse SAR as another sensor might have it: averaged, with speckle of its own, and enlarged.

    Args:
        amplitude: ``(height, width)`` in [0, 1].
        config: range of factors and looks.
        draw: decides.
    """
    factor = draw.uniform(*config.factors)
    looks = np.exp(draw.uniform(*np.log(config.looks)))
    small = max(1, round(amplitude.shape[0] / factor)), max(1, round(amplitude.shape[1] / factor))
    power = coarse_sar(amplitude, small, 1) ** 2 * draw.gamma(looks, 1 / looks, small)
    coarse = np.clip(np.sqrt(power), 0, 1).astype(np.float32)
    return coarse_sar(coarse, amplitude.shape[:2], amplitude.shape[0] / small[0])


def _picture(row: PatchRow, folder: Path) -> NDArray[np.uint8]:
    path = folder / str(row.optical)
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L" if image.mode == "L" else "RGB"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); prepare the data again.") from error


def _part(picture: NDArray[np.uint8], row: PatchRow, size: tuple[int, int], folder: Path) -> NDArray[np.uint8]:
    """Return the part of an optical picture that a patch's centre crop covers."""
    whole = _covered(row, folder)
    scale = picture.shape[0] / whole[0]
    top = (row.row if row.window else 0) + (row.height - size[0]) // 2
    left = (row.column if row.window else 0) + (row.width - size[1]) // 2
    rows = slice(round(top * scale), max(round((top + size[0]) * scale), round(top * scale) + 1))
    columns = slice(round(left * scale), max(round((left + size[1]) * scale), round(left * scale) + 1))
    return picture[rows, columns]


def _covered(row: PatchRow, folder: Path) -> tuple[int, int]:
    """Return the size of the SAR file that the optical picture covers."""
    if row.window is None:
        return row.height, row.width
    return _size(folder / row.file)


@lru_cache(maxsize=1024)
def _size(path: Path) -> tuple[int, int]:
    """Return height and width of a picture, read once: it is asked for with every patch of a scene."""
    with Image.open(path) as image:
        return image.height, image.width
