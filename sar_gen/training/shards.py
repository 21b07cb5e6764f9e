"""Tar shards in WebDataset's layout, written and streamed: for data sets that are too large to be held or listed.

A shard holds ``KEY.png`` (or ``.tif``, ``.npy``, ``.jpg``) and ``KEY.json`` (the patch's row of the manifest) one
after the other, so that it is read from front to end, and by the package webdataset too. ``shards.json`` beside the
shards says how many patches of each kind are in each, which spares a resumed run from reading what it has seen.

What a batch holds is decided by seed, step, rank and number of processes. In each epoch the shards are shuffled and
dealt out to the processes, and a buffer of ``shuffle`` patches shuffles further. Each epoch is complete in itself: the
last batch of a size is filled up with patches of the epoch's first.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from sar_gen.errors import InputError, SarGenError
from sar_gen.files import describe_os_error, write_atomic
from sar_gen.patches import npy_bytes
from sar_gen.training.batches import Batch, CropPlaces, ahead, crop_size, draw, generator
from sar_gen.training.config import DataConfig
from sar_gen.training.manifest import PatchRow, row_from_json
from sar_gen.training.row_pixels import finished_pixels, stored_pixels

INDEX = "shards.json"
_SUFFIXES = (".png", ".tif", ".tiff", ".npy", ".jpg", ".jpeg")
_SHARDS, _BUFFER = 4, 5  # streams of random numbers beside those of ``batches``

Kind = tuple[str, str, str | None, int, int]
"""Split, modality, terrain, height and width: what decides whether and in which batch a patch is."""


@dataclass(frozen=True)
class Sample:
    """One patch of a shard: its row, and its file as it lies in the tar."""

    row: PatchRow
    data: bytes


class ShardDataset:
    """Patches that are streamed from shards; in memory is no more than the shuffle buffer and a batch of each size."""

    def __init__(self, config: DataConfig, resolution: int, seed: int, crop_places: CropPlaces) -> None:
        assert config.shards is not None
        self.shards = [Path(name) for name in sorted(glob(os.path.expanduser(str(config.shards)), recursive=True))]
        if not self.shards:
            raise InputError(f"No shard is called {config.shards}; give a pattern such as data/train-*.tar.")
        if config.balance != "none":
            raise InputError("Streamed shards are drawn as they come; set data.balance to 'none', or give a manifest.")
        self._config, self._resolution, self._seed, self._places = config, resolution, seed, crop_places
        self._counts = _indexed(self.shards)
        if len(self._counts) == len(self.shards):
            kinds = set().union(*self._counts.values())
            for name in config.leave_out:
                if name not in {kind[2] for kind in kinds}:
                    raise InputError(f"The shards have no terrain {name!r} to leave out; correct data.leave_out.")
            if not any(self._wanted(kind) for kind in kinds):
                raise self._nothing()

    def batches(self, start: int, stop: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Yield this process's batches of the steps ``start`` to ``stop`` (without it), read a little ahead.

        Steps before ``start`` in the same epoch are read but not decoded; epochs before it are not read at all.

        Raises:
            InputError: a shard cannot be used, or there are fewer shards than processes.
        """
        if len(self.shards) < world:
            raise InputError(
                f"{len(self.shards)} shards cannot be dealt out to {world} processes; write at least one for each."
            )
        return ahead(self._chosen(start, stop, rank, world), lambda one: self._batch(*one, rank))

    def _chosen(self, start: int, stop: int, rank: int, world: int) -> Iterator[tuple[int, list[Sample]]]:
        step = epoch = 0
        while step < stop:
            shards = [self.shards[i] for i in generator(self._seed, _SHARDS, epoch).permutation(len(self.shards))]
            own = shards[rank::world]
            count = self._batch_count(own) if step < start else 0
            if count and step + count <= start:
                step += count
            else:
                before = step
                for samples in self._epoch(own, epoch, rank):
                    if start <= step < stop:
                        yield step, samples
                    step += 1
                    if step >= stop:
                        return
                if step == before:
                    raise self._nothing()
            epoch += 1

    def _epoch(self, shards: Sequence[Path], epoch: int, rank: int) -> Iterator[list[Sample]]:
        """Yield the samples of each batch of an epoch."""
        size = self._config.batch
        waiting: dict[tuple[int, int], list[Sample]] = defaultdict(list)
        firsts: dict[tuple[int, int], list[Sample]] = {}
        for sample in self._shuffled(shards, epoch, rank):
            crop = crop_size(sample.row.height, sample.row.width, self._resolution, sample.row.key)
            batch = waiting[crop]
            batch.append(sample)
            if len(batch) == size:
                waiting[crop] = []
                firsts.setdefault(crop, list(batch))
                yield batch
        for crop, batch in sorted(waiting.items()):
            if batch:
                more = firsts.get(crop, batch)
                yield [*batch, *(more[i % len(more)] for i in range(size - len(batch)))]

    def _shuffled(self, shards: Sequence[Path], epoch: int, rank: int) -> Iterator[Sample]:
        numbers = generator(self._seed, _BUFFER, epoch, rank)
        buffer: list[Sample] = []
        for shard in shards:
            for sample in read_shard(shard):
                row = sample.row
                if not self._wanted((row.split, row.modality, row.terrain, row.height, row.width)):
                    continue
                if len(buffer) < self._config.shuffle:
                    buffer.append(sample)
                    continue
                place = int(numbers.integers(len(buffer)))
                buffer[place], sample = sample, buffer[place]
                yield sample
        for place in numbers.permutation(len(buffer)):
            yield buffer[place]

    def _wanted(self, kind: Kind) -> bool:
        split, modality, terrain, _, _ = kind
        config = self._config
        return (split, modality) == (config.split, config.modality) and terrain not in config.leave_out

    def _batch_count(self, shards: Sequence[Path]) -> int:
        """Return the batches of an epoch of these shards."""
        sizes: Counter[tuple[int, int]] = Counter()
        for shard in shards:
            if shard not in self._counts:
                self._counts[shard] = Counter(kind_of(sample.row) for sample in read_shard(shard))
            for kind, count in self._counts[shard].items():
                if self._wanted(kind):
                    sizes[crop_size(kind[3], kind[4], self._resolution, shard.name)] += count
        return sum(-(-count // self._config.batch) for count in sizes.values())

    def _batch(self, step: int, samples: Sequence[Sample], rank: int) -> Batch:
        rows = [sample.row for sample in samples]
        size = crop_size(rows[0].height, rows[0].width, self._resolution, rows[0].key)
        first = rank * self._config.batch
        draws = [
            draw(row, size, self._config, self._places, self._seed, step, first + place)
            for place, row in enumerate(rows)
        ]
        pixels = [one.cut(pixels_of(sample), size) for one, sample in zip(draws, samples, strict=True)]
        return Batch(
            tuple(row.key for row in rows),
            (),
            np.stack(pixels),
            tuple(one.caption for one in draws),
            tuple(row.terrain for row in rows),
        )

    def _nothing(self) -> InputError:
        config = self._config
        return InputError(
            f"{config.shards} holds no {config.modality} patch of the split {config.split!r} to train on; give other "
            "shards, or another split."
        )


def pixels_of(sample: Sample) -> np.ndarray:
    """Return a sample's patch, ``(height, width)`` float32 in [0, 1].

    Raises:
        InputError: its file cannot be used.
    """
    return finished_pixels(stored_pixels(sample.row, Path(sample.row.file), io.BytesIO(sample.data)), sample.row)


def kind_of(row: PatchRow) -> Kind:
    """Return what decides whether and in which batch a patch is."""
    return row.split, row.modality, row.terrain, row.height, row.width


def read_shard(path: Path) -> Iterator[Sample]:
    """Yield the samples of a shard, read from front to end.

    Raises:
        InputError: it is no tar file, is cut off, or a sample lacks its picture or its row.
    """
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r|") as tar:
            key, parts = "", dict[str, bytes]()
            for member in tar:
                tar.members = []  # type: ignore[attr-defined] # else it keeps a record of each
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if f"{folder}/{stem}" != key:
                    if parts:
                        yield _sample(path, key, parts)
                    key, parts = f"{folder}/{stem}", {}
                content = tar.extractfile(member)
                assert content is not None
                parts["." + suffix] = content.read()
            if parts:
                yield _sample(path, key, parts)
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{path} cannot be read as a tar file ({error}); write the shards again.") from error


def write_shard(
    path: Path,
    rows: Iterable[PatchRow],
    folder: Path,
    beside: Callable[[PatchRow], Mapping[str, bytes]] | None = None,
) -> dict[str, Any]:
    """Write a shard and return its entry for the index.

    Args:
        path: of the ``.tar`` file; wholly there or not at all.
        rows: of the manifest.
        folder: the manifest's.
        beside: further files of a patch, by suffix (``.cls``, ``.mask.png``); what reads shards here passes them over.

    Raises:
        InputError: a patch cannot be read.
        SarGenError: the shard cannot be written.
    """
    counts: Counter[Kind] = Counter()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            with tarfile.open(fileobj=file, mode="w|", format=tarfile.GNU_FORMAT) as tar:
                for row in rows:
                    kept, suffix, data = _file_of(row, folder)
                    _add(tar, f"{row.key}{suffix}", data)
                    for more, content in (beside(row) if beside else {}).items():
                        _add(tar, f"{row.key}{more}", content)
                    _add(tar, f"{row.key}.json", json.dumps(kept.to_json()).encode())
                    counts[kind_of(kept)] += 1
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise SarGenError(describe_os_error(path, error)) from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "counts": [[*kind, count] for kind, count in sorted(counts.items(), key=str)],
    }


def write_index(folder: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write ``shards.json``.

    Raises:
        SarGenError: it cannot be written.
    """
    write_atomic(folder / INDEX, json.dumps({"shards": list(entries)}, indent=1).encode())


def read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of ``shards.json`` by file, those whose file is there with the size that it had."""
    try:
        entries = json.loads((folder / INDEX).read_text())["shards"]
        sizes = {entry["file"]: int(entry["bytes"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    there = {name: folder / name for name in sizes if (folder / name).is_file()}
    return {
        entry["file"]: entry
        for entry in entries
        if entry["file"] in there and there[entry["file"]].stat().st_size == entry["bytes"]
    }


def _indexed(shards: Sequence[Path]) -> dict[Path, Counter[Kind]]:
    known = {folder: read_index(folder) for folder in {shard.parent for shard in shards}}
    found = {}
    for shard in shards:
        entry = known[shard.parent].get(shard.name)
        if entry is not None:
            found[shard] = Counter({tuple(kind): count for *kind, count in entry["counts"]})
    return found


def _sample(path: Path, key: str, parts: dict[str, bytes]) -> Sample:
    where = f"{path.name}: {key.lstrip('/')}"
    suffix = next((name for name in parts if name.lower() in _SUFFIXES), None)
    if suffix is None or ".json" not in parts:
        raise InputError(f"{where} needs a picture and a .json file with its row; write the shards again.")
    try:
        data = json.loads(parts[".json"])
    except ValueError as error:
        raise InputError(f"{where}.json is not JSON ({error}); write the shards again.") from error
    return Sample(row_from_json(data, f"{where}.json"), parts[suffix])


def _file_of(row: PatchRow, folder: Path) -> tuple[PatchRow, str, bytes]:
    """Return a row as it is in a shard, and its file: the file itself, or the part of it that is meant."""
    path = folder / row.file
    if row.window is None:
        try:
            return dataclasses.replace(row, file=f"{row.key}{path.suffix}"), path.suffix, path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror or error}); prepare the data again.") from error
    values = stored_pixels(row, path)
    if values.dtype.kind == "u":
        return dataclasses.replace(row, file=f"{row.key}.png"), ".png", png_bytes(values)
    return dataclasses.replace(row, file=f"{row.key}.npy", meaning=None), ".npy", npy_bytes(values)


def png_bytes(values: np.ndarray) -> bytes:
    """Return ``(height, width)`` 8 or 16-bit values as PNG, compressed fast: speckle hardly gets smaller."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
