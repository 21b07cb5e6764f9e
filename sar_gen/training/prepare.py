"""Large SAR rasters to patches with a manifest, or to shards: windowed reads, constant memory, resumable.

1. The rasters' headers are read, their ground is divided (``ground``), and a scale is taken for each image or each
   acquisition: mean and standard deviation of all its pixels with data, in one polarisation.
2. Row by row of blocks, patches are read, normalised by amplitude / (mean + 3 std), clipped to [0, 1] (arXiv
   2506.13307) and written as 16-bit grey PNG: a step of 1.5e-5, lossless, a quarter of the size of complex floats,
   and read by every tool. Complex signal becomes its modulus. Patches with pixels without data, and constant ones, are
   left out. What each row of blocks gave is noted, so that the same call after a kill goes on from there.
3. Captions are written: limits such as "bright" need all training patches first.
4. With shards, the patches of each split are shuffled and moved into tar files of so many patches.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sar_gen.amplitude import Scale, normalise, pooled_scale, quantise
from sar_gen.errors import InputError, SarGenError
from sar_gen.files import describe_os_error, write_atomic
from sar_gen.patches import (
    DEFAULT_MAX_PIXELS,
    GROUP_TILES,
    FileEncoding,
    PixelMeaning,
    Source,
    complete_values,
    facts_of,
    in_unit,
    open_source,
    units_of,
)
from sar_gen.rasters import SUFFIXES, Window, open_raster
from sar_gen.training.batches import generator
from sar_gen.training.captioning import (
    STYLES,
    Labels,
    Seen,
    VlmCaptioner,
    attribute_facts,
    captions_of,
    described,
    label_captions,
    optical_attributes,
    optical_facts,
    read_labels,
)
from sar_gen.training.captions import TERRAINS, Thresholds, sar_descriptors, thresholds
from sar_gen.training.ground import (
    Block,
    Extent,
    Grouping,
    blocks_of,
    groups_of,
    polarisation_in,
    splits_of,
    without_polarisation,
)
from sar_gen.training.manifest import MANIFEST, PARQUET, SPLITS, PatchRow, row_from_json, write_manifest
from sar_gen.training.shards import png_bytes, read_index, write_index, write_shard

SUMMARY = "prepare.json"
"""What a finished data set was made from, and how; its presence says that it is finished."""
PARTIAL = "unfinished"
_BLOCK_PIXELS = 2**21  # of a raster that are held at once: 16 MB of complex signal
_POOL_TIMES = 4  # an image gives its patches a scale only if it has at least this many times their pixels
_MIN_TILE = 32
_SHUFFLE = 6  # stream of random numbers beside those of ``batches`` and ``shards``

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PrepareOptions:
    """How rasters become patches.

    Attributes:
        tile: side of a patch, pixels.
        stride: from one patch to the next; ``None``: ``tile``, so that patches do not overlap.
        scale: ``image``: one mean and std a raster; ``acquisition``: one a folder of rasters; or the pair itself.
        encoding: of the pixels; ``None`` for complex signal.
        db_range: decibels at grey 0 and at full scale, for integer files in ``db``.
        band: number from 1, or name, of the band that is meant of several.
        nodata: value of pixels without data, beside what the files say.
        polarisation: of all rasters; ``None``: as their bands or names say.
        groups: what shares ground: ``block`` divides rasters into blocks, ``image`` and ``acquisition`` keep a raster
            or a folder whole.
        block: side of a block, in patches.
        gap: between blocks, pixels; ``None``: an eighth of a patch.
        split: shares of train, validation and reference.
        captions: ``attributes``, ``vlm:`` and a hub id or folder, or a CSV file (``captioning.read_labels``); ``None``
            says no more than that it is SAR, and the polarisation.
        optical: folder of co-registered optical pictures of the rasters' names (without the polarisation).
        shards: patches in a shard; ``None`` writes files and a manifest.
        parquet: the manifest is Parquet.
        seed: of the splits, the captions and the shards' order.
    """

    tile: int = 256
    stride: int | None = None
    scale: Scale | Literal["image", "acquisition"] = "acquisition"
    encoding: FileEncoding | None = None
    db_range: tuple[float, float] | None = None
    band: int | str | None = None
    nodata: float | None = None
    polarisation: str | None = None
    groups: Grouping = "block"
    block: int = GROUP_TILES
    gap: int | None = None
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    captions: str | None = None
    optical: Path | None = None
    shards: int | None = None
    parquet: bool = False
    seed: int = 0

    @property
    def step(self) -> int:
        """From one patch to the next, pixels."""
        return self.stride or self.tile

    @property
    def between(self) -> int:
        """Pixels between blocks."""
        return self.tile // 8 if self.gap is None else self.gap


@dataclass(frozen=True)
class _Plan:
    """Everything that is decided before pixels are read."""

    source: Path
    extents: list[Extent]
    keys: list[str]
    meanings: list[PixelMeaning]
    polarisations: list[str | None]
    optical: list[Path | None]
    blocks: list[Block]
    groups: list[str]
    splits: dict[str, Any]
    labels: Labels | None


def prepare(
    source: Path,
    out: Path,
    options: PrepareOptions,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Make a data set of a raster or of a folder of rasters; the same call goes on with one that was cut off.

    Args:
        source: a raster, or a folder of rasters and subfolders of rasters (an acquisition each).
        out: folder of the data set; empty, or this data set's own.
        options: how.
        max_pixels: of one patch, and of a PNG or JPEG, which are decoded whole.
        progress: called with patches done and in all.
        say: told what was left out.

    Returns:
        Patches by split, what was left out, scales, and the manifest or the shards.

    Raises:
        InputError: a raster or an option cannot be used; before anything is written, as far as headers tell.
        SarGenError: ``out`` cannot be written.
    """
    _check(options)
    plan = _plan(source, options, max_pixels)
    digest = _digest(plan, options)
    done = _json(out / SUMMARY)
    if done is not None and done.get("digest") == digest:
        return done["summary"]
    partial = out / PARTIAL
    begun = _json(partial / "plan.json")
    if done is not None or (begun is None and out.exists() and any(out.iterdir())):
        raise InputError(f"{out} holds something else already; give an empty folder.")
    if begun is not None and begun != {"digest": digest}:
        raise InputError(
            f"{out} holds another data set, not finished (other files or options); give an empty folder, or repeat "
            "the call that made it."
        )
    captioner = None
    if options.captions and options.captions.startswith("vlm:"):
        captioner = VlmCaptioner(options.captions.removeprefix("vlm:"))
    write_atomic(partial / "plan.json", json.dumps({"digest": digest}).encode())
    scales = _scales(plan, options, partial, max_pixels)
    left_out = _cut(plan, options, scales, out, max_pixels, progress)
    manifest = partial / MANIFEST if options.shards else out / MANIFEST
    counts = _caption(plan, options, captioner, partial, manifest)
    if not counts:
        raise InputError(f"{source} gave no patch that is full of data ({dict(left_out)}); give a smaller tile.")
    empty = [split for split, share in zip(SPLITS, options.split, strict=True) if share > 0 and not counts.get(split)]
    if say is not None:
        for split in empty:
            say(f"The split {split} is empty: its blocks of ground had no data.")
    summary: dict[str, Any] = {
        "patches": sum(counts.values()), "splits": {split: counts.get(split, 0) for split in SPLITS},
        "groups": len(set(plan.splits)), "left_out": dict(left_out),
        "scales": {name: scale.to_json() for name, scale in scales.items()},
    }  # fmt: skip
    if options.shards:
        summary["shards"] = _shard(options, manifest, out)
    elif options.parquet:
        rows = [row_from_json(json.loads(line), MANIFEST) for line in manifest.open(encoding="utf-8")]
        write_manifest(out / PARQUET, rows)
        manifest.unlink()
    if not options.shards:
        summary["manifest"] = str(out / (PARQUET if options.parquet else MANIFEST))
    write_atomic(out / SUMMARY, json.dumps({"digest": digest, "summary": summary}, indent=1).encode())
    shutil.rmtree(partial, ignore_errors=True)
    return summary


# Plan --------------------------------------------------------------------------------------------------------------


def _check(options: PrepareOptions) -> None:
    if options.tile < _MIN_TILE or options.tile % 8:
        raise InputError(f"Patches of {options.tile} pixels cannot be trained on; give a multiple of 8 from 32 on.")
    if options.step < 1 or options.step > options.tile:
        raise InputError(f"The stride {options.step} leaves ground out or does not move; give 1 to {options.tile}.")
    if options.block < 1 or options.between < 0 or (options.shards is not None and options.shards < 1):
        raise InputError(
            "Blocks and shards need at least one patch, and a gap at least 0 pixels; correct the options."
        )
    if options.shards is not None and options.parquet:
        raise InputError("Shards carry their rows themselves; leave out --parquet or --shards.")
    if options.captions and options.captions.startswith("vlm:") and options.optical is None:
        raise InputError("A vision-language model describes optical pictures; give their folder (--optical).")


def _plan(source: Path, options: PrepareOptions, max_pixels: int) -> _Plan:
    labels = None
    if options.captions and options.captions != "attributes" and not options.captions.startswith("vlm:"):
        labels = read_labels(Path(options.captions))
    files = _files(source)
    root = source if source.is_dir() else source.parent
    extents, meanings, polarisations, optical = [], [], [], []
    for path in files:
        with open_raster(path, max_pixels) as raster:
            name = path.relative_to(root).as_posix()
            if raster.is_complex:
                encoding: FileEncoding | None = options.encoding or "amplitude"
            else:
                encoding = options.encoding
            if encoding is None:
                raise InputError(
                    f"{name} does not say what its pixels are; say it: --encoding amplitude, intensity, db or studio."
                )
            said, stated = options.polarisation, raster.polarisation(raster.band(options.band))
            named = stated or polarisation_in(path.stem)
            if said and named and said.upper() != named:
                raise InputError(f"{name} is in {named}, but {said} was said; say {named}, or another band (--band).")
            polarisations.append(said.upper() if said else named)
            meanings.append(PixelMeaning(encoding, None, options.db_range, nodata=options.nodata))
            folder = Path(name).parent.as_posix()
            extents.append(
                Extent(name, raster.height, raster.width, "" if folder == "." else folder, raster.georeference)
            )
            optical.append(_optical_of(path, raster.height, raster.width, options, max_pixels))
    blocks = [
        block
        for number, extent in enumerate(extents)
        for block in blocks_of(
            number, extent, options.tile, options.block * options.tile, options.between, options.groups
        )
    ]
    if not blocks:
        raise InputError(f"{source} has no raster of {options.tile} x {options.tile} pixels; give a smaller tile.")
    groups = groups_of(extents, blocks, options.groups)
    counts = [block.count(options.tile, options.step) for block in blocks]
    splits = splits_of(groups, counts, options.split, options.seed)
    return _Plan(
        root, extents, _keys([extent.name for extent in extents]), meanings, polarisations, optical, blocks, groups,
        splits, labels,
    )  # fmt: skip


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise InputError(f"There is no raster or folder {source}; check the path.")
    found = [
        path
        for path in sorted(source.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(source).parts)
    ]
    if not found:
        raise InputError(f"{source} holds no rasters; put GeoTIFF, NPY, SICD, PNG or JPEG files there.")
    return found


def _keys(names: Sequence[str]) -> list[str]:
    """Return a short name of each raster, of letters, digits and hyphens."""
    plain = [re.sub(r"[^A-Za-z0-9]+", "-", str(Path(name).with_suffix(""))).strip("-") or "raster" for name in names]
    twice = {key for key, count in Counter(plain).items() if count > 1}
    return [f"{key}-{number}" if key in twice else key for number, key in enumerate(plain)]


def _optical_of(path: Path, height: int, width: int, options: PrepareOptions, max_pixels: int) -> Path | None:
    """Return the optical picture of a raster.

    Raises:
        InputError: there are none in the folder, or it is not of the raster's size divided by a whole number.
    """
    if options.optical is None:
        return None
    if not options.optical.is_dir():
        raise InputError(f"There is no folder {options.optical} of optical pictures; check the path.")
    wanted = {path.stem.casefold(), without_polarisation(path.stem).strip(" -_").casefold()}
    for file in sorted(options.optical.iterdir()):
        if (
            file.suffix.lower() in SUFFIXES
            and {
                file.stem.casefold(),
                without_polarisation(file.stem).strip(" -_").casefold(),
            }
            & wanted
        ):
            with open_raster(file, max_pixels) as raster:
                factor = height // raster.height if raster.height else 0
                if factor < 1 or (raster.height * factor, raster.width * factor) != (height, width):
                    raise InputError(
                        f"{file.name} has {raster.width} x {raster.height} pixels, {path.name} {width} x {height}; an "
                        "optical picture needs the same, or a whole number of times fewer a side."
                    )
                if any(number % factor for number in (options.tile, options.step, options.between)):
                    raise InputError(
                        f"{file.name} has pixels {factor} times as coarse as {path.name}; give a tile, stride and gap "
                        f"that {factor} divides."
                    )
            return file
    return None


def _digest(plan: _Plan, options: PrepareOptions) -> str:
    """Return a hash of the files (path, size, time of change) and of the options."""
    files = [plan.source / extent.name for extent in plan.extents] + [path for path in plan.optical if path]
    if plan.labels is not None and options.captions:
        files.append(Path(options.captions))
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    data = json.dumps([stamps, dataclasses.asdict(options)], default=str)
    return hashlib.sha256(data.encode()).hexdigest()


# Scales ------------------------------------------------------------------------------------------------------------


def _scales(plan: _Plan, options: PrepareOptions, partial: Path, max_pixels: int) -> dict[str, Scale]:
    """Return the scale of each image or acquisition, by its name; those that were taken before are read."""
    members: dict[str, list[int]] = defaultdict(list)
    for number, meaning in enumerate(plan.meanings):
        if meaning.needs_scale:
            members[_scale_name(plan, options, number)].append(number)
    if isinstance(options.scale, Scale):
        return dict.fromkeys(members, options.scale)
    path = partial / "scales.json"
    kept = _json(path) or {}
    for name, numbers in members.items():
        if name in kept:
            continue
        pixels = sum(plan.extents[number].height * plan.extents[number].width for number in numbers)
        if pixels < _POOL_TIMES * options.tile**2:
            raise InputError(
                f"{name} has less than {_POOL_TIMES} times the pixels of a patch, so that it cannot give its patches "
                "a scale; pool more (--scale acquisition), or give mean and std."
            )
        what = f"all pixels of {name}" if len(numbers) == 1 else f"all pixels of the {len(numbers)} rasters of {name}"
        kept[name] = pooled_scale(_units(plan, options, numbers, max_pixels), what).to_json()
        write_atomic(path, json.dumps(kept).encode())
    return {name: Scale.from_json(kept[name]) for name in members}


def _scale_name(plan: _Plan, options: PrepareOptions, number: int) -> str:
    extent = plan.extents[number]
    if options.scale == "image":
        return extent.name
    name = extent.acquisition or plan.source.name
    polarisation = plan.polarisations[number]
    return f"{name} {polarisation}" if polarisation else name  # polarisations are never pooled


def _units(
    plan: _Plan, options: PrepareOptions, numbers: Sequence[int], max_pixels: int
) -> Iterator[NDArray[np.float32]]:
    kinds: dict[str, str] = {}
    for number in numbers:
        path = plan.source / plan.extents[number].name
        with open_source(path, plan.meanings[number], max_pixels, options.band) as source:
            kind = "floats" if source.raster.dtype.kind in "fc" else f"{source.raster.dtype.name} values"
            kinds.setdefault(kind, path.name)
            if len(kinds) > 1 and plan.meanings[number].encoding in ("amplitude", "intensity"):
                listed = ", ".join(f"{kind} ({name})" for kind, name in kinds.items())
                raise InputError(f"An acquisition mixes {listed}, which have no common scale; give --scale image.")
            yield from units_of(source)


# Patches -----------------------------------------------------------------------------------------------------------


def _cut(
    plan: _Plan, options: PrepareOptions, scales: dict[str, Scale], out: Path, max_pixels: int,
    progress: Progress | None,
) -> Counter[str]:  # fmt: skip
    """Write the patches and note them, a row of blocks at a time; return what was left out."""
    total = sum(block.count(options.tile, options.step) for block in plan.blocks)
    bands: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, block in enumerate(plan.blocks):
        bands[block.raster, block.place[0]].append(index)
    left_out: Counter[str] = Counter()
    done = 0
    for (number, row), members in bands.items():
        note = out / PARTIAL / "parts" / f"{number:06d}-{row:05d}.jsonl"
        if note.is_file():
            with note.open(encoding="utf-8") as file:
                left_out.update(json.loads(file.readline()))
        else:
            missed: Counter[str] = Counter()
            path = plan.source / plan.extents[number].name
            with open_source(path, plan.meanings[number], max_pixels, options.band) as source:
                lines = list(_band(plan, options, scales, out, source, number, members, missed, max_pixels))
            write_atomic(note, "".join(f"{json.dumps(line)}\n" for line in [missed, *lines]).encode())
            left_out.update(missed)
        done += sum(plan.blocks[index].count(options.tile, options.step) for index in members)
        if progress is not None:
            progress(done, total)
    return left_out


def _band(
    plan: _Plan, options: PrepareOptions, scales: dict[str, Scale], out: Path, source: Source, number: int,
    members: Sequence[int], missed: Counter[str], max_pixels: int,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Write the patches of one row of blocks and yield their rows and measures."""
    tile, key = options.tile, plan.keys[number]
    scale = scales[_scale_name(plan, options, number)] if source.meaning.needs_scale else None
    folder = Path("patches") / key
    (out / folder).mkdir(parents=True, exist_ok=True)
    places = sorted(
        (row, column, index) for index in members for row, column in plan.blocks[index].tiles(tile, options.step)
    )
    picture = plan.optical[number]
    for row, column, values, missing, index in _windows(source, places, tile):
        if missing:
            missed["with pixels without data"] += 1
            continue
        if (values == values[0, 0]).all():
            missed["constant"] += 1
            continue
        unit = in_unit(values, facts_of(source.raster), source.meaning, source.raster.name)
        amplitude = unit if scale is None else normalise(unit, scale)
        name = f"{key}-r{row:05d}-c{column:05d}"
        file = folder / f"{name}.png"
        _write(out / file, png_bytes(quantise(amplitude, 16)))
        group = plan.groups[index]
        found: dict[str, Any] = {}
        optical_file = None
        if picture is not None:
            crop = _optical_crop(picture, plan.extents[number], (row, column, tile, tile), max_pixels)
            optical_file = folder / f"{name}-optical.png"
            _write(out / optical_file, png_bytes(crop))
            seen = optical_attributes(crop, amplitude)
            found |= {"water": seen.water, "built_up": seen.built_up, "optical": list(crop.shape[:2])}
        brightness, roughness = sar_descriptors(amplitude)
        patch = PatchRow(
            name, file.as_posix(), tile, tile, plan.splits[group], group, polarisation=plan.polarisations[number],
            source=plan.extents[number].name, row=row, column=column,
            optical=None if optical_file is None else optical_file.as_posix(),
        )  # fmt: skip
        yield {"row": patch.to_json(), "brightness": brightness, "roughness": roughness, **found}


def _windows(
    source: Source, places: Sequence[tuple[int, int, int]], tile: int
) -> Iterator[tuple[int, int, NDArray[Any], bool, int]]:
    """Yield row, column, values, whether some are missing, and block of each patch, read in wide windows.

    Args:
        source: the open raster.
        places: row, column and block of the patches, sorted.
        tile: side of a patch.
    """
    wide = max(tile, _BLOCK_PIXELS // tile)
    start = 0
    while start < len(places):
        row, first, _ = places[start]
        end = start
        while end < len(places) and places[end][0] == row and places[end][1] + tile - first <= wide:
            end += 1
        window = row, first, tile, places[end - 1][1] + tile - first
        values, missing = _values(source, window)
        for _, column, index in places[start:end]:
            part = slice(column - first, column - first + tile)
            yield row, column, values[:, part], missing is not None and bool(missing[:, part].any()), index
        start = end


def _values(source: Source, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Return a window as float32 or complex64, and where it has no data or is not finite."""
    stored, missing = source.raster.read(window, source.band)
    odd = ~np.isfinite(stored)
    if source.meaning.nodata is not None:
        odd |= stored == source.meaning.nodata
    missing = odd if missing is None else missing | odd
    kind = np.complex64 if source.raster.is_complex else np.float32
    return stored.astype(kind, copy=False), missing if missing.any() else None


def _optical_crop(path: Path, extent: Extent, window: Window, max_pixels: int) -> NDArray[np.uint8]:
    """Return the part of an optical picture that a window of its raster covers: grey or colour, 8 bits."""
    with open_raster(path, max_pixels) as raster:
        factor = extent.height // raster.height
        row, column, height, width = (number // factor for number in window)
        bands = range(3) if len(raster.bands) >= 3 else range(1)
        if raster.levels is None:
            raise InputError(f"{path.name} holds {raster.dtype} values; save the optical picture with 8 or 16 bits.")
        meaning = PixelMeaning("studio", None)
        values = [complete_values(Source(raster, b, meaning, path), (row, column, height, width)) for b in bands]
        grey = np.rint(np.stack(values, axis=-1) * (255 / raster.levels)).astype(np.uint8)
        return grey if len(bands) == 3 else grey[..., 0]


def _write(path: Path, data: bytes) -> None:
    """Write a patch: wholly there or not at all; not synchronised, since what is lost is made again."""
    part = path.with_suffix(".part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SarGenError(describe_os_error(path, error)) from error


# Captions and manifest ---------------------------------------------------------------------------------------------


def _notes(partial: Path) -> Iterator[dict[str, Any]]:
    for note in sorted((partial / "parts").glob("*.jsonl")):
        with note.open(encoding="utf-8") as file:
            file.readline()
            for line in file:
                yield json.loads(line)


def _caption(
    plan: _Plan, options: PrepareOptions, captioner: VlmCaptioner | None, partial: Path, manifest: Path
) -> Counter[str]:
    """Write the manifest with captions, patch by patch, and return the number of patches by split."""
    limits = _limits(partial) if options.captions == "attributes" else {}
    words = _Described(captioner, partial / "described.jsonl") if captioner else None
    counts: Counter[str] = Counter()
    part = manifest.with_suffix(".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            for note in _notes(partial):
                for row in _rows(plan, options, note, limits, words, partial.parent):
                    file.write(f"{json.dumps(row.to_json())}\n")
                    counts[row.split] += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, manifest)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SarGenError(describe_os_error(manifest, error)) from error
    return counts


def _rows(
    plan: _Plan, options: PrepareOptions, note: dict[str, Any], limits: dict[str, Thresholds],
    words: _Described | None, out: Path,
) -> Iterator[PatchRow]:  # fmt: skip
    """Yield the row of a patch with its captions, and that of its optical picture, where there is one."""
    row = row_from_json(note["row"], MANIFEST)
    terrain, given = (None, ()) if plan.labels is None else plan.labels.of(row.key, row.source, _stem(row.source))
    known_terrain = terrain.lower() if terrain and terrain.lower() in TERRAINS else terrain
    row = dataclasses.replace(row, terrain=known_terrain)
    seed = f"{options.seed} {row.key}"
    sar: tuple[str, ...] = given
    optical: tuple[str, ...] = ()
    if words is not None and row.optical is not None:
        text = words.of(row.key, out / row.optical)
        sar, optical = described(text, "sar", row.polarisation), described(text, "optical")
    elif terrain and not given:
        sar = label_captions(terrain, row.polarisation, seed)
    elif options.captions == "attributes":
        seen = Seen(note["water"], note["built_up"]) if "built_up" in note else None
        known = attribute_facts(
            terrain=None, polarisation=row.polarisation, seen=seen, brightness=note["brightness"],
            roughness=note["roughness"], limits=limits[row.polarisation or ""],
        )  # fmt: skip
        sar, optical = captions_of(known, "sar", seed), captions_of(optical_facts(known), "optical", seed)
    tail = f", {row.polarisation} polarisation" if row.polarisation else ""
    plain = STYLES["sar"][0]
    yield dataclasses.replace(row, captions=sar or tuple(dict.fromkeys((plain, plain + tail))))
    if row.optical is not None:
        if terrain and not optical:
            optical = label_captions(terrain, None, seed, modality="optical")
        height, width = note["optical"]
        yield dataclasses.replace(
            row, key=f"{row.key}-optical", file=row.optical, height=height, width=width, modality="optical",
            polarisation=None, optical=None, captions=optical or (STYLES["optical"][0],),
        )  # fmt: skip


class _Described:
    """What a model said of each optical picture, kept on disk as it comes."""

    def __init__(self, captioner: VlmCaptioner, path: Path) -> None:
        self._captioner, self._path = captioner, path
        self._known: dict[str, str] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").split("\n")[:-1]:  # a line that was cut off has no end
                self._known |= json.loads(line)
            path.write_text("".join(f"{json.dumps({key: text})}\n" for key, text in self._known.items()))

    def of(self, key: str, file: Path) -> str:
        from PIL import Image

        if key not in self._known:
            with Image.open(file) as image:
                self._known[key] = self._captioner.describe(np.asarray(image))
            with self._path.open("a", encoding="utf-8") as lines:
                lines.write(f"{json.dumps({key: self._known[key]})}\n")
        return self._known[key]


def _limits(partial: Path) -> dict[str, Thresholds]:
    """Return what bright, dark, rough and smooth mean by polarisation, from the training patches, if there are any."""
    measured: dict[str, list[tuple[float, float]]] = defaultdict(list)
    training: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for note in _notes(partial):
        name, pair = note["row"]["polarisation"] or "", (note["brightness"], note["roughness"])
        measured[name].append(pair)
        if note["row"]["split"] == "train":
            training[name].append(pair)
    return {
        name: thresholds(*(list(numbers) for numbers in zip(*(training[name] or pairs), strict=True)))
        for name, pairs in measured.items()
    }


def _stem(name: str) -> str:
    return Path(name).stem


# Shards ------------------------------------------------------------------------------------------------------------


def _shard(options: PrepareOptions, manifest: Path, out: Path) -> list[str]:
    """Move the patches into shards, shuffled within each split; shards that are finished are left alone."""
    assert options.shards is not None
    places: dict[str, list[int]] = {split: [] for split in SPLITS}
    with manifest.open("rb") as file:
        place = file.tell()
        for line in iter(file.readline, b""):
            places[json.loads(line)["split"]].append(place)
            place = file.tell()
        done = read_index(out)
        for stream, split in enumerate(SPLITS):
            order = generator(options.seed, _SHUFFLE, stream).permutation(np.array(places[split], np.int64))
            for number, first in enumerate(range(0, len(order), options.shards)):
                name = f"{split}-{number:06d}.tar"
                rows = [_row_at(file, int(place)) for place in order[first : first + options.shards]]
                if name not in done:
                    kept = (dataclasses.replace(row, optical=None) for row in rows)
                    done[name] = write_shard(out / name, kept, out)
                    write_index(out, [done[shard] for shard in sorted(done)])
                for row in rows:
                    (out / row.file).unlink(missing_ok=True)
    shutil.rmtree(out / "patches", ignore_errors=True)
    return sorted(done)


def _row_at(file: Any, place: int) -> PatchRow:
    file.seek(place)
    return row_from_json(json.loads(file.readline()), MANIFEST)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
