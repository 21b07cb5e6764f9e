"""Batches of a prepared data set. Step and seed alone say what a batch holds, so that a resumed run goes on exactly.

With several processes, the batch of a step is drawn as one of ``world`` times the size, and each takes its part: two
processes see what one process of double batch would see.

Patches are never resampled. Those of one size (a bucket) make a batch: a side that reaches the resolution is cropped
to it, a smaller one to a multiple of 64, or of 8 below 64. Buckets take turns by their number of patches (an additive
recurrence with the golden ratio, which spreads them evenly), and each bucket is an endless row of shuffled epochs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError
from sar_gen.training.batches import BALANCE, ORDER, Batch, CropPlaces, ahead, crop_size, draw, generator
from sar_gen.training.config import DataConfig
from sar_gen.training.manifest import PatchRow, manifest_path, read_manifest
from sar_gen.training.row_pixels import finished_pixels, read_pixels, stored_pixels
from sar_gen.training.shards import ShardDataset

__all__ = ["Batch", "Dataset", "ShardDataset", "batch_indices", "open_dataset", "open_manifest", "read_pixels"]

CACHE_BYTES = 2**30
"""Of the pixels of a data set that are kept in memory as their files hold them (8-bit grey: 16,000 patches of 256 x
256); those beyond are read from disk each time."""
_GOLDEN = (5**0.5 - 1) / 2


def open_dataset(
    config: DataConfig, resolution: int, seed: int, crop_places: CropPlaces | None = None
) -> Dataset | ShardDataset:
    """Open a data set: its manifest is read and checked, its pixels when they are asked for.

    Args:
        config: which patches, and what is done to them.
        resolution: largest side of a crop, pixels.
        seed: of order, crops, captions and flips.
        crop_places: where larger patches are cropped; ``None``: in the centre where latents are cached, or at random.

    Raises:
        InputError: the manifest or the shards are not usable, or no patch is left.
    """
    if config.shards is not None:
        return ShardDataset(config, resolution, seed, _places(config, crop_places))
    return open_manifest(config, resolution, seed, crop_places)


def open_manifest(config: DataConfig, resolution: int, seed: int, crop_places: CropPlaces | None = None) -> Dataset:
    """Open a data set that has a manifest, as ``open_dataset``, for what needs its rows.

    Raises:
        InputError: it is one of shards, its manifest is not usable, or no patch is left.
    """
    if config.manifest is None:
        raise InputError("Streamed shards have no list of their patches, which is needed here; give data.manifest.")
    manifest = manifest_path(config.manifest)
    every = read_manifest(manifest)
    known = {row.terrain for row in every}
    for name in config.leave_out:
        if name not in known:
            raise InputError(
                f"{manifest.name} has no terrain {name!r} to leave out; it has "
                f"{', '.join(sorted(str(terrain) for terrain in known))}."
            )
    rows = [
        row
        for row in every
        if (row.split, row.modality) == (config.split, config.modality) and row.terrain not in config.leave_out
    ]
    if not rows:
        found = Counter(f"{row.split} {row.modality}" for row in every)
        raise InputError(
            f"{manifest} has no {config.modality} patch in the split {config.split!r} to train on; it has "
            f"{', '.join(f'{count} {kind}' for kind, count in sorted(found.items()))}."
        )
    return Dataset(rows, manifest.parent, config, resolution, seed, _places(config, crop_places))


class Dataset:
    """Patches of a manifest.

    Attributes:
        rows: of the split, modality and terrains that were asked for, in the manifest's order.
    """

    def __init__(
        self,
        rows: Sequence[PatchRow],
        folder: Path,
        config: DataConfig,
        resolution: int,
        seed: int,
        crop_places: CropPlaces,
    ) -> None:
        self.rows = list(rows)
        self.folder, self._config, self._seed, self._places = folder, config, seed, crop_places
        self._sizes = [crop_size(row.height, row.width, resolution, row.key) for row in self.rows]
        members: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, size in enumerate(self._sizes):
            members[size].append(index)
        self._buckets = [np.array(members[size], np.int64) for size in sorted(members)]
        self._weights = None
        if config.balance == "terrain":
            self._weights = [terrain_weights([self.rows[i] for i in bucket]) for bucket in self._buckets]
        self._kept: dict[int, NDArray[Any]] = {}
        self._room = CACHE_BYTES

    def __len__(self) -> int:
        return len(self.rows)

    def crop_sizes(self) -> list[tuple[int, int]]:
        """Return height and width of the crop of each row."""
        return list(self._sizes)

    def pixels(self, index: int) -> NDArray[np.float32]:
        """Return a whole patch, ``(height, width)`` in [0, 1].

        Raises:
            InputError: its file cannot be used.
        """
        row = self.rows[index]
        values = self._kept.get(index)
        if values is None:
            values = stored_pixels(row, self.folder / row.file)
            if values.nbytes <= self._room:
                self._room -= values.nbytes
                self._kept[index] = values
        return finished_pixels(values, row)

    def crops(self, indices: Sequence[int]) -> list[NDArray[np.float32]]:
        """Return the centre crops of patches, without flips: what latents that are kept are made of."""
        found = []
        for index in indices:
            pixels, (height, width) = self.pixels(index), self._sizes[index]
            top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
            found.append(pixels[top : top + height, left : left + width])
        return found

    def batches(self, start: int, stop: int, rank: int = 0, world: int = 1, *, read: bool = True) -> Iterator[Batch]:
        """Yield the batches of the steps ``start`` to ``stop`` (without it), read a little ahead in a thread.

        Args:
            start: first step.
            stop: the step after the last.
            rank: of this process.
            world: number of processes.
            read: the pixels too; not where latents are kept.

        Raises:
            InputError: a file cannot be used.
        """
        size = self._config.batch
        steps = batch_indices(self._buckets, size * world, self._seed, start, stop, self._weights)
        first = rank * size
        parts = ((step, first, indices[first : first + size]) for step, indices in enumerate(steps, start))
        return ahead(parts, lambda part: self._batch(*part, read))

    def _batch(self, step: int, first: int, indices: NDArray[np.int64], read: bool) -> Batch:
        chosen = tuple(int(index) for index in indices)
        rows = [self.rows[index] for index in chosen]
        size = self._sizes[chosen[0]]
        draws = [
            draw(row, size, self._config, self._places, self._seed, step, first + place)
            for place, row in enumerate(rows)
        ]
        pixels = np.empty((0, *size), np.float32)
        if read:
            pixels = np.stack([one.cut(self.pixels(index), size) for one, index in zip(draws, chosen, strict=True)])
        return Batch(
            tuple(row.key for row in rows),
            chosen,
            pixels,
            tuple(one.caption for one in draws),
            tuple(row.terrain for row in rows),
        )


def _places(config: DataConfig, crop_places: CropPlaces | None) -> CropPlaces:
    return crop_places or ("random" if config.cache == "none" else "centre")


# Which patches -----------------------------------------------------------------------------------------------------


def batch_indices(
    buckets: Sequence[NDArray[np.int64]],
    size: int,
    seed: int,
    start: int,
    stop: int,
    weights: Sequence[NDArray[np.float64]] | None = None,
) -> Iterator[NDArray[np.int64]]:
    """Yield which patches the batches of the steps ``start`` to ``stop`` hold, all processes together.

    Args:
        buckets: indices of the patches of one size each.
        size: patches a step.
        seed: of the order.
        start: first step.
        stop: the step after the last.
        weights: for each bucket, how often each of its patches is drawn, adding up to 1; ``None`` draws each once an
            epoch.
    """

    @lru_cache(maxsize=2 * len(buckets))
    def order(bucket: int, epoch: int) -> NDArray[np.int64]:
        return generator(seed, ORDER, bucket, epoch).permutation(buckets[bucket])

    for step, (bucket, turn) in enumerate(_turns([len(bucket) for bucket in buckets], seed, start, stop), start):
        if weights is not None:
            ends = np.cumsum(weights[bucket])
            drawn = generator(seed, BALANCE, step).random(size) * ends[-1]
            yield buckets[bucket][np.minimum(np.searchsorted(ends, drawn, side="right"), len(ends) - 1)]
            continue
        count, place = len(buckets[bucket]), turn * size
        parts, missing = [], size
        while missing:
            part = order(bucket, place // count)[place % count :][:missing]
            parts.append(part)
            place, missing = place + len(part), missing - len(part)
        yield np.concatenate(parts)


def terrain_weights(rows: Sequence[PatchRow]) -> NDArray[np.float64]:
    """Return how often each patch is drawn: terrains alike, and in one, groups of n patches as sqrt(n).

    Patches without a terrain count as one more. The square root lies between drawing patches alike, where the ground
    that was cut into most patches rules, and drawing groups alike, where a group of one patch is seen over and over.
    """
    sizes = Counter((row.terrain, row.group) for row in rows)
    totals: dict[str | None, float] = defaultdict(float)
    for (terrain, _), count in sizes.items():
        totals[terrain] += count**0.5
    each = [1 / (len(totals) * totals[row.terrain] * sizes[row.terrain, row.group] ** 0.5) for row in rows]
    return np.array(each, np.float64)


def _turns(counts: Sequence[int], seed: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield whose turn it is at each step, and how many turns that bucket had before."""
    if len(counts) == 1:
        yield from ((0, step) for step in range(start, stop))
        return
    ends = np.cumsum(counts)[:-1] / sum(counts)
    offset = generator(seed, ORDER).random()
    had = np.zeros(len(counts), np.int64)
    chunk = 2**16
    for first in range(0, stop, chunk):
        steps = np.arange(first, min(first + chunk, stop))
        turn = np.searchsorted(ends, (offset + steps * _GOLDEN) % 1, side="right")
        before = turn[steps < start]
        had += np.bincount(before, minlength=len(counts))
        for bucket in turn[len(before) :].tolist():
            yield bucket, int(had[bucket])
            had[bucket] += 1
