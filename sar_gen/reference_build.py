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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sar_gen.amplitude import AmplitudeEncoding, Scale
from sar_gen.errors import InputError, SarGenError
from sar_gen.files import write_atomic
from sar_gen.patches import PixelMeaning, _in_unit, _patch_files, read_patch, read_values
from sar_gen.quality.statistics import ARRAYS, MIN_SIDE, PatchStatistics, concat, patch_statistics
from sar_gen.reference_files import pack_statistics, unpack_statistics

CHUNK = 64
"""Files in one partial result: about one or two seconds of work, the most that is lost when a build is cut off."""
CACHE_VERSION = 3
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
    """

    recursive: bool = False
    groups: Literal["patch", "folder"] = "patch"
    scales: Literal["set", "folder"] = "set"
    skip: bool = False


@dataclass(frozen=True)
class Built:
    """What a folder gave.

    Attributes:
        statistics: one row a patch, in the order of ``names``.
        names: paths of the patches, relative to the folder.
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
        names = [path.name for path in _patch_files(folder)]
    else:
        names = []
        for parent, children, _ in os.walk(folder):
            children[:] = [child for child in children if not child.startswith(".")]
            names += [str(path.relative_to(folder).as_posix()) for path in _patch_files(Path(parent))]
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
    job = _Job(folder, names, meaning, options, partial, max_pixels, progress, cancel)
    pooled = meaning is not None and meaning.encoding != "studio" and meaning.scale == "pool"
    scales = _pooled_scales(job) if pooled else {}
    built = _measured(job, scales)
    shutil.rmtree(partial, ignore_errors=True)
    return built


def with_scale(meaning: PixelMeaning | None, scales: dict[str, Scale], name: str) -> PixelMeaning | None:
    """Return the meaning of one file of a set: with the set's scale, or its subfolder's."""
    if meaning is None or not scales:
        return meaning
    return dataclasses.replace(meaning, scale=scales["" if "" in scales else _subfolder(name)])


# Passes ------------------------------------------------------------------------------------------------------------


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

    def chunks(self) -> Iterator[list[str]]:
        for first in range(0, len(self.names), CHUNK):
            yield self.names[first : first + CHUNK]

    def each(self, function: Callable[[str], Any], names: Iterable[str], done: int) -> list[Any]:
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

        results = []
        with ThreadPoolExecutor(WORKERS) as pool:
            try:
                for result in pool.map(one, names):
                    results.append(result)
                    self.tell(done + len(results))
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
            self.progress(done, len(self.names))


def _pooled_scales(job: _Job) -> dict[str, Scale]:
    """Return the scale of the set, or of each first-level subfolder, from the pixels of all patches."""
    assert job.meaning is not None
    totals: dict[str, tuple[int, float, float]] = {}
    patches: dict[str, int] = {}
    done = 0
    for chunk in job.chunks():
        path = _partial_file(job, chunk, "pixels", job.meaning).with_suffix(".json")
        moments = _read_json(path)
        if moments is None:
            moments = job.each(lambda name: _moments(job, name), chunk, done)
            write_atomic(path, json.dumps(moments).encode())
        for name, moment in zip(chunk, moments, strict=True):
            if not isinstance(moment, str):
                key = "" if job.options.scales == "set" else _subfolder(name)
                totals[key] = _added(totals.get(key, (0, 0.0, 0.0)), moment)
                patches[key] = patches.get(key, 0) + 1
        done += len(chunk)
        job.tell(done)
    scales = {}
    for key, (count, mean, spread) in totals.items():
        source = f"all {patches[key]} patches of {key or job.folder.name}"
        try:
            scales[key] = Scale(mean, (spread / count) ** 0.5, source)
        except InputError:
            raise InputError(f"The pixels of {source} are all zero; a set needs some signal.") from None
    return scales


def _moments(job: _Job, name: str) -> list[float]:
    """Return number, mean and sum of squared deviations of a file's linear amplitude, in its own unit."""
    assert job.meaning is not None
    values, metadata = read_values(job.folder / name, job.max_pixels)
    _check_side(values.shape)
    unit = _in_unit(values, metadata, job.meaning, Path(name).name).astype(np.float64)
    mean = float(unit.mean())
    return [unit.size, mean, float(np.square(unit - mean).sum())]


def _added(total: tuple[int, float, float], moment: list[float]) -> tuple[int, float, float]:
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
    done = 0
    for chunk in job.chunks():
        statistics, facts = _measured_chunk(job, chunk, scales, done)
        rows = [row for row, name in enumerate(facts["names"]) if name not in seen]
        seen.update(facts["names"])  # a PNG and the float amplitude beside it are one patch
        if not arrays:
            arrays = {
                key: np.empty((len(job.names), *value.shape[1:]), value.dtype)
                for key, value in statistics.arrays.items()
            }
        for key, value in statistics.arrays.items():
            arrays[key][len(names) : len(names) + len(rows)] = value[rows]
        groups += [statistics.groups[row] for row in rows]
        names += [facts["names"][row] for row in rows]
        skipped += facts["skipped"]
        kinds |= {(kind[0], kind[1]) for kind in facts["kinds"]}
        _check_alike(job.folder.name, kinds)
        done += len(chunk)
        job.tell(done)
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

    def measure(name: str) -> tuple[PatchStatistics, str, str, str | None]:
        patch = read_patch(job.folder / name, with_scale(job.meaning, scales, name), job.max_pixels)
        _check_side(patch.amplitude.shape)
        read = name if patch.path is None else patch.path.relative_to(job.folder).as_posix()
        return patch_statistics([patch.amplitude]), read, patch.encoding, patch.polarisation

    results = job.each(measure, chunk, done)
    kept: dict[str, tuple[PatchStatistics, str, str, str | None]] = {}
    for result in results:
        if not isinstance(result, str):
            kept.setdefault(result[1], result)
    statistics = concat([result[0] for result in kept.values()])
    if job.options.groups == "folder":
        shared = tuple(Path(name).parent.name or job.folder.name for name in kept)
        statistics = dataclasses.replace(statistics, groups=shared)
    facts = {
        "names": list(kept),
        "kinds": sorted({(result[2], result[3]) for result in kept.values()}, key=str),
        "skipped": [result for result in results if isinstance(result, str)],
    }
    write_atomic(path, pack_statistics(statistics, **facts))
    return statistics, facts


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
