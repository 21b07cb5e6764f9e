"""Measuring a folder of real SAR patch by patch: a stream, resumable, with memory for its statistics only.

The files are taken in chunks, in the order of their paths. What a chunk gave is written to a folder of partial results
under a name made of the chunk's files (path, size, time of change) and of what their pixels mean, so that a build that
was cut off, by Ctrl+C or by the machine, goes on where it ended and gives the same bits. Where the scale is pooled,
two passes are made: the first adds up the pixels, the second measures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sar_gen.amplitude import AmplitudeEncoding, Scale
from sar_gen.errors import InputError, SarGenError
from sar_gen.files import write_atomic
from sar_gen.patches import (
    Patch,
    PixelMeaning,
    complete_values,
    facts_of,
    folder_files,
    in_unit,
    is_complex,
    open_source,
    read_patch,
    read_tiles,
    units_of,
)
from sar_gen.quality.statistics import ARRAYS, MIN_SIDE, PatchStatistics, concat, patch_statistics
from sar_gen.rasters import open_raster
from sar_gen.reference_files import pack_statistics, unpack_statistics

CHUNK = 64
"""Files in one partial result: about one or two seconds of work, the most that is lost when a build is cut off."""
CACHE_VERSION = 4
"""Part of every key; raised when the statistics of a patch change their meaning."""
SHOWN = 64
"""Patches of a set that are kept in memory to be shown, evenly over the set; its statistics are of all."""
WORKERS = 2

Progress = Callable[[int, int], None]
"""Called with patches done and patches in all; counts anew in the second pass."""


class BuildStoppedError(SarGenError):
    """The build was cancelled; what was finished is kept."""


@dataclass(frozen=True)
class FolderOptions:
    """How a folder is read as a set.

    Attributes:
        recursive: whether subfolders are read too (hidden ones are not).
        groups: ``patch``: every patch is ground of its own; ``folder``: patches in folders of one name share ground.
        scales: ``set``: one scale is pooled over all; ``folder``: one over each first-level subfolder, for
            acquisitions whose grey levels are each their own.
        skip: leave out files that cannot be used, and count them, in place of stopping at the first.
        band: number from 1, or name, of the band that is meant of files with several.
        tile: cut every file, a large raster, into squares of so many pixels; ``None``: every file is one patch.
    """

    recursive: bool = False
    groups: Literal["patch", "folder"] = "patch"
    scales: Literal["set", "folder"] = "set"
    skip: bool = False
    band: int | str | None = None
    tile: int | None = None


@dataclass(frozen=True)
class Built:
    """What a folder gave.

    Attributes:
        statistics: one row a patch, in the order of ``names``.
        names: paths of the patches, relative to the folder; of a tile with ``@row,column`` after it.
        encoding: of the amplitude.
        polarisation: ``VV``, ``VH``, ... or ``None`` where unknown.
        scales: the scale of the whole set under ``""``, or of each first-level subfolder under its name; empty for
            amplitude that was finished.
        skipped: why files were left out, one sentence each.
    """

    statistics: PatchStatistics
    names: tuple[str, ...]
    encoding: AmplitudeEncoding
    polarisation: str | None
    scales: dict[str, Scale]
    skipped: tuple[str, ...]

    @property
    def shown(self) -> tuple[str, ...]:
        """Return the names of the patches to show: at most ``SHOWN``, evenly over the set."""
        rows = np.unique(np.linspace(0, len(self.names) - 1, min(SHOWN, len(self.names))).round().astype(int))
        return tuple(self.names[row] for row in rows)


def patch_files(folder: Path, recursive: bool = False) -> list[str]:
    """Return the paths of a folder's patches, relative to it, in the order in which they are read.

    Raises:
        InputError: the folder is missing or may not be read, or holds no patches.
    """
    if not recursive:
        names = [path.name for path in folder_files(folder)]
    else:
        names = []
        for parent, children, _ in os.walk(folder):
            children[:] = [child for child in children if not child.startswith(".")]
            names += [str(path.relative_to(folder).as_posix()) for path in folder_files(Path(parent))]
        names.sort()
    if not names:
        where = "it or its subfolders" if recursive else "it (subfolders are read with --recursive)"
        raise InputError(f"{folder} holds no patches; put PNG, TIFF, JPEG or NPY files in {where}.")
    return names


def folder_digest(folder: Path, meaning: PixelMeaning | None, options: FolderOptions) -> str:
    """Return a hash of a folder's files (path, size, time of change) and of how they are read.

    Raises:
        InputError: the folder holds no patches.
    """
    names = patch_files(folder, options.recursive)
    return _digest(CACHE_VERSION, meaning, options, _stamps(folder, names), _studio_stamps(folder, meaning))


def build(
    folder: Path,
    meaning: PixelMeaning | None,
    options: FolderOptions,
    partial: Path,
    *,
    max_pixels: int,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> Built:
    """Measure every patch of a folder.

    Args:
        folder: with the patches.
        meaning: what the pixels are; ``None`` for files that the studio wrote. The scale ``"pool"`` is taken from the
            pixels of all patches (or of each subfolder), in a pass of its own.
        options: how the folder is read.
        partial: folder for partial results, this build's own; deleted when the build is finished.
        max_pixels: of one file.
        progress: called after every patch, counts anew in the second pass; from worker threads never.
        cancel: when set, the build stops after the patches in hand.

    Raises:
        InputError: there is no patch, one cannot be used, or they differ in encoding or polarisation.
        BuildStoppedError: ``cancel`` was set.
        SarGenError: partial results cannot be written.
    """
    names = patch_files(folder, options.recursive)
    counts = [_patches_in(folder / name, options, max_pixels) for name in names]
    job = _Job(folder, names, meaning, options, partial, max_pixels, progress, cancel, counts)
    pooled = meaning is not None and meaning.needs_scale and meaning.scale == "pool"
    scales = _pooled_scales(job) if pooled else {}
    built = _measured(job, scales)
    shutil.rmtree(partial, ignore_errors=True)
    return built


def known_meaning(
    folder: Path, meaning: PixelMeaning | None, options: FolderOptions, max_pixels: int
) -> PixelMeaning | None:
    """Return the meaning of a folder's pixels: complex signal says it itself, its modulus is linear amplitude."""
    if meaning is not None:
        return meaning
    names = patch_files(folder, options.recursive)
    return PixelMeaning("amplitude") if all(is_complex(folder / name, max_pixels) for name in names) else None


def shown_patch(
    folder: Path, name: str, meaning: PixelMeaning | None, scales: dict[str, Scale], options: FolderOptions,
    max_pixels: int,
) -> Patch:  # fmt: skip
    """Read a patch of a set by its name in ``Built.names``."""
    path, _, place = name.partition("@") if options.tile is not None else (name, "", "")
    meaning = with_scale(meaning, scales, path)
    if options.tile is None or not place:
        return read_patch(folder / path, meaning, max_pixels, band=options.band)
    row, column = (int(part) for part in place.split(","))
    window = (row, column, options.tile, options.tile)
    return read_patch(folder / path, meaning, max_pixels, band=options.band, window=window)


def _patches_in(path: Path, options: FolderOptions, max_pixels: int) -> int:
    """Return how many patches a file can give: one, or all tiles of a raster."""
    if options.tile is None:
        return 1
    try:
        with open_raster(path, max_pixels) as raster:
            return (raster.height // options.tile) * (raster.width // options.tile)
    except InputError:
        return 1  # said, or left out, when it is read


def with_scale(meaning: PixelMeaning | None, scales: dict[str, Scale], name: str) -> PixelMeaning | None:
    """Return the meaning of one file of a set: with the set's scale, or its subfolder's."""
    if meaning is None or not scales:
        return meaning
    return dataclasses.replace(meaning, scale=scales["" if "" in scales else _subfolder(name)])


# Passes ------------------------------------------------------------------------------------------------------------

_Row = tuple[PatchStatistics, str, str, str | None]
"""Of one patch: its statistics, its name in the set, encoding and polarisation."""


@dataclass(frozen=True)
class _Job:
    folder: Path
    names: list[str]
    meaning: PixelMeaning | None
    options: FolderOptions
    partial: Path
    max_pixels: int
    progress: Progress | None
    cancel: threading.Event | None
    counts: list[int]
    """Patches in each file: one, or its tiles."""

    def chunks(self) -> Iterator[tuple[list[str], int, int]]:
        """Yield files, the patches before them, and theirs."""
        size = CHUNK if self.options.tile is None else 1
        done = 0
        for first in range(0, len(self.names), size):
            count = sum(self.counts[first : first + size])
            yield self.names[first : first + size], done, count
            done += count

    def each(self, function: Callable[[str], Any], names: Sequence[str], done: int) -> list[Any]:
        """Return ``function`` of every name, in order; a file that is left out gives a sentence."""

        def one(name: str) -> Any:
            self.check()
            try:
                return function(name)
            except InputError as error:
                file = name.rsplit("/", 1)[-1]
                text = str(error) if file in str(error) else f"{name}: {error}"
                if self.options.skip:
                    return text
                raise InputError(text) from error

        if len(names) == 1:
            return [one(names[0])]
        results = []
        with ThreadPoolExecutor(WORKERS) as pool:
            try:
                for result in pool.map(one, names):
                    results.append(result)
                    self.tell(done + len(results))
                    if len(results) < len(names):  # a chunk that is whole is kept
                        self.check()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return results

    def check(self) -> None:
        if self.cancel is not None and self.cancel.is_set():
            raise BuildStoppedError("Stopped; add the folder again to go on from there.")

    def tell(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, sum(self.counts))


def _pooled_scales(job: _Job) -> dict[str, Scale]:
    """Return the scale of the set, or of each first-level subfolder, from the pixels of all patches."""
    assert job.meaning is not None
    totals: dict[str, tuple[int, float, float]] = {}
    files: dict[str, int] = {}
    first_of: dict[str, str] = {}
    for chunk, done, count in job.chunks():
        path = _partial_file(job, chunk, "pixels", job.meaning).with_suffix(".json")
        moments = _read_json(path)
        if moments is None:
            moments = job.each(lambda name: _moments(job, name), chunk, done)
            write_atomic(path, json.dumps(moments).encode())
        for name, moment in zip(chunk, moments, strict=True):
            if not isinstance(moment, str):
                first_of.setdefault(moment[3], name)
                key = "" if job.options.scales == "set" else _subfolder(name)
                totals[key] = _added(totals.get(key, (0, 0.0, 0.0)), moment)
                files[key] = files.get(key, 0) + 1
        if len(first_of) > 1 and job.meaning.encoding in ("amplitude", "intensity"):
            kinds = ", ".join(f"{kind} ({name})" for kind, name in first_of.items())
            raise InputError(
                f"{job.folder.name} mixes {kinds}, whose values cannot have one scale; put each kind in a folder of "
                "its own."
            )
        job.tell(done + count)
    scales = {}
    for key, (size, mean, spread) in totals.items():
        source = f"all {files[key]} {'patches' if job.options.tile is None else 'files'} of {key or job.folder.name}"
        try:
            scales[key] = Scale(mean, (spread / size) ** 0.5, source)
        except InputError:
            raise InputError(f"The pixels of {source} are all zero; a set needs some signal.") from None
    return scales


def _moments(job: _Job, name: str) -> list[Any]:
    """Return number, mean and sum of squared deviations of a file's linear amplitude, and the kind of its values."""
    with open_source(job.folder / name, job.meaning, job.max_pixels, job.options.band) as source:
        kind = "floats" if source.raster.dtype.kind in "fc" else f"{source.raster.dtype.name} values"
        if job.options.tile is not None:
            units: Iterable[NDArray[Any]] = units_of(source)
        else:
            values = complete_values(source, source.raster.window(None))
            _check_side(values.shape)
            units = [in_unit(values, facts_of(source.raster), source.meaning, source.raster.name)]
        total = (0, 0.0, 0.0)
        for unit in units:
            job.check()
            array = unit.astype(np.float64)
            mean = float(array.mean())
            total = _added(total, [array.size, mean, float(np.square(array - mean).sum())])
    if not total[0]:
        raise InputError(f"{name} has no pixels with data.")
    return [*total, kind]


def _added(total: tuple[int, float, float], moment: Sequence[Any]) -> tuple[int, float, float]:
    """Return number, mean and sum of squared deviations of two sets of pixels (Chan, Golub, LeVeque 1979)."""
    count, mean, spread = total
    size, own, squares = int(moment[0]), moment[1], moment[2]
    both = count + size
    delta = own - mean
    return both, mean + delta * size / both, spread + squares + delta**2 * count * size / both


def _measured(job: _Job, scales: dict[str, Scale]) -> Built:
    """Measure every patch; a chunk's patches are the most that is in memory beside the statistics."""
    arrays: dict[str, NDArray[Any]] = {}
    groups: list[str] = []
    names: list[str] = []
    kinds: set[tuple[str, str | None]] = set()
    skipped: list[str] = []
    seen: set[str] = set()
    for chunk, done, count in job.chunks():
        statistics, facts = _measured_chunk(job, chunk, scales, done)
        rows = [row for row, name in enumerate(facts["names"]) if name not in seen]
        seen.update(facts["names"])  # a PNG and the float amplitude beside it are one patch
        if not arrays:
            arrays = {
                key: np.empty((sum(job.counts), *value.shape[1:]), value.dtype)
                for key, value in statistics.arrays.items()
            }
        for key, value in statistics.arrays.items():
            arrays[key][len(names) : len(names) + len(rows)] = value[rows]
        groups += [statistics.groups[row] for row in rows]
        names += [facts["names"][row] for row in rows]
        skipped += facts["skipped"]
        kinds |= {(kind[0], kind[1]) for kind in facts["kinds"]}
        _check_alike(job.folder.name, kinds)
        job.tell(done + count)
    if not names:
        raise InputError(f"None of the {len(job.names)} files of {job.folder} can be used; the first: {skipped[0]}")
    encoding, polarisation = next(iter(kinds))
    trimmed = {key: arrays[key][: len(names)] for key in ARRAYS}
    return Built(
        PatchStatistics(**trimmed, groups=tuple(groups)),
        tuple(names),
        encoding,  # type: ignore[arg-type]
        polarisation,
        scales,
        tuple(skipped),
    )


def _measured_chunk(
    job: _Job, chunk: list[str], scales: dict[str, Scale], done: int
) -> tuple[PatchStatistics, dict[str, Any]]:
    """Return a chunk's statistics with its facts: names, kinds (encoding, polarisation) and what was left out."""
    path = _partial_file(job, chunk, "statistics", *(with_scale(job.meaning, scales, name) for name in chunk))
    path = path.with_suffix(".npz")
    if path.is_file():
        try:
            statistics, _, facts = unpack_statistics(path.read_bytes())
            return statistics, facts
        except (SarGenError, OSError):
            pass  # damaged: measured again

    def measure(name: str) -> list[_Row]:
        meaning = with_scale(job.meaning, scales, name)
        if job.options.tile is None:
            return [_row(job, name, read_patch(job.folder / name, meaning, job.max_pixels, band=job.options.band))]
        rows = []
        tiles = read_tiles(job.folder / name, meaning, job.options.tile, job.max_pixels, band=job.options.band)
        for patch in tiles:
            job.check()
            rows.append(_row(job, name, patch))
            job.tell(done + len(rows))
        return rows

    results = job.each(measure, chunk, done)
    kept: dict[str, _Row] = {}
    for result in results:
        for row in () if isinstance(result, str) else result:
            kept.setdefault(row[1], row)
    statistics = concat([row[0] for row in kept.values()])
    facts = {
        "names": list(kept),
        "kinds": sorted({(row[2], row[3]) for row in kept.values()}, key=str),
        "skipped": [result for result in results if isinstance(result, str)],
    }
    write_atomic(path, pack_statistics(statistics, **facts))
    return statistics, facts


def _row(job: _Job, name: str, patch: Patch) -> _Row:
    _check_side(patch.amplitude.shape)
    statistics = patch_statistics([patch.amplitude])
    read = name if patch.path is None else patch.path.relative_to(job.folder).as_posix()
    if job.options.groups == "folder":
        statistics = dataclasses.replace(statistics, groups=(Path(read).parent.name or job.folder.name,))
    elif patch.group:
        statistics = dataclasses.replace(statistics, groups=(patch.group,))
    if patch.window is not None:
        read = f"{read}@{patch.window[0]},{patch.window[1]}"
    return statistics, read, patch.encoding, patch.polarisation


def _check_alike(name: str, kinds: set[tuple[str, str | None]]) -> None:
    for part, what in enumerate(("amplitude encoding", "polarisation")):
        values = sorted({str(kind[part]) for kind in kinds})
        if len(values) > 1:
            raise InputError(
                f"The patches of {name!r} differ in {what} ({', '.join(values)}), which are never pooled; "
                "make one set of each."
            )


def _check_side(shape: tuple[int, ...]) -> None:
    if min(shape) < MIN_SIDE:
        raise InputError(f"{shape[1]} x {shape[0]} pixels are too few; a patch has at least {MIN_SIDE} a side.")


# Keys --------------------------------------------------------------------------------------------------------------


def _partial_file(job: _Job, chunk: list[str], kind: str, *meanings: PixelMeaning | None) -> Path:
    key = _digest(
        CACHE_VERSION, kind, meanings, job.options, _stamps(job.folder, chunk), _studio_stamps(job.folder, job.meaning)
    )
    return job.partial / key[:32]


def _stamps(folder: Path, names: Iterable[str]) -> list[tuple[str, int, int]]:
    stamps = []
    for name in names:
        state = (folder / name).stat()
        stamps.append((name, state.st_size, state.st_mtime_ns))
    return stamps


def _studio_stamps(folder: Path, meaning: PixelMeaning | None) -> list[tuple[str, int, int]]:
    """Return the stamps of the files that say what the studio's own patches mean."""
    if meaning is not None:
        return []
    beside = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".npy", ".png") and path.is_file())
    return _stamps(folder, [path.relative_to(folder).as_posix() for path in beside])


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _subfolder(name: str) -> str:
    """Return the first-level subfolder of a file; files of the folder itself are one acquisition too."""
    return name.split("/", 1)[0] if "/" in name else "."


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
