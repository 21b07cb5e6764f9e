"""What a batch is, and what is drawn for each patch of it (caption, crop, flips) from the seed and its place alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError
from sar_gen.training.config import DataConfig
from sar_gen.training.manifest import PatchRow

AHEAD = 2
"""Batches that are read while the one before is trained on."""
ORDER, BALANCE, DRAW = 1, 2, 3
"""Streams of random numbers that must not meet."""

CropPlaces = Literal["random", "centre"]
Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Batch:
    """Patches of one size.

    Attributes:
        keys: of the patches.
        indices: their places in ``Dataset.rows``; empty for streamed shards.
        pixels: ``(n, height, width)`` float32 in [0, 1]: the studio's amplitude, or optical grey; ``(0, height,
            width)`` where they were not to be read.
        captions: one of each patch's, or ``None`` where it is dropped or the patch has none.
        terrains: labels.
    """

    keys: tuple[str, ...]
    indices: tuple[int, ...]
    pixels: NDArray[np.float32]
    captions: tuple[str | None, ...]
    terrains: tuple[str | None, ...]


@dataclass(frozen=True)
class Draw:
    """What is drawn for one patch of a batch: caption, first pixel of the crop, axes that it is flipped along."""

    caption: str | None
    top: int
    left: int
    axes: tuple[int, ...]

    def cut(self, pixels: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """Return the crop of a patch."""
        height, width = size
        part = pixels[self.top : self.top + height, self.left : self.left + width]
        return np.flip(part, self.axes) if self.axes else part


def crop_size(height: int, width: int, resolution: int, name: str) -> tuple[int, int]:
    """Return height and width of the crop of a patch.

    Raises:
        InputError: a side is under 8 pixels.
    """
    if min(height, width) < 8:
        raise InputError(f"{name} is {width} x {height} pixels; a patch needs at least 8 a side: leave it out.")
    return _crop_side(height, resolution), _crop_side(width, resolution)


def _crop_side(side: int, resolution: int) -> int:
    if side >= resolution:
        return resolution - resolution % 8
    return side - side % (64 if side >= 64 else 8)


def draw(
    row: PatchRow,
    size: tuple[int, int],
    config: DataConfig,
    places: CropPlaces,
    seed: int,
    step: int,
    place: int,
) -> Draw:
    """Draw what is done to the patch at a place of the batch (of all processes) of a step."""
    numbers = generator(seed, DRAW, step, place)
    dropped, which, top, left, down, across = numbers.random(6)
    caption = None
    if row.captions and dropped >= config.caption_dropout:
        caption = row.captions[int(which * len(row.captions))]
    free = row.height - size[0], row.width - size[1]
    if places == "centre":
        start = free[0] // 2, free[1] // 2
    else:
        start = int(top * (free[0] + 1)), int(left * (free[1] + 1))
    flips = ("vertical", down, 0), ("horizontal", across, 1)
    axes = tuple(axis for name, chance, axis in flips if name in config.flips and chance < 0.5)
    return Draw(caption, *start, axes)


def generator(*key: int) -> np.random.Generator:
    """Return a generator that these numbers name."""
    return np.random.default_rng([number % 2**64 for number in key])


def ahead(items: Iterator[Item], make: Callable[[Item], Made]) -> Iterator[Made]:
    """Yield ``make`` of each item in order, a few made ahead in a thread."""
    waiting: list[Future[Made]] = []
    with ThreadPoolExecutor(1) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > AHEAD:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
