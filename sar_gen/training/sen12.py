"""The data set that the embedded models are trained on: SEN1-2 patches (VV) and Sentinel-1 scenes (VH) with optical.

``prepare_sen12`` writes a manifest only: its rows point into the source's own pictures, which are never encoded again.
The folders with them are linked into the data set's folder, so that every path stays below it. ``pack`` copies
manifest and pictures into a folder of at most so many bytes, to be carried to another machine, without links.

- SAR: VV patches as they are, in decibels over grey (scale ``S1_VV``); VH scenes in crops of 256 pixels that overlap
  by half, linear (scale ``S1_VH``).
- Optical: the co-registered half of each, grey; of a scene with half the pixels a side (10 m becomes 20 m).
- Splits: the source's ``reference``; ``validation`` is some overlap groups of its ``train`` part, chosen as for
  SAR-CLIP; scenes are held out whole.
- Captions: several a row, each true of it by the facts of ``captions``; captions of a VH patch always say so.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.amplitude import S1_VH, S1_VV, normalise
from sar_gen.errors import InputError, SarGenError
from sar_gen.files import describe_os_error
from sar_gen.patches import PixelMeaning
from sar_gen.reference_statistics import DB_FLOOR, DB_SPAN, pair_amplitude, read_pairs, read_rows
from sar_gen.training.captioning import captions_of, optical_facts
from sar_gen.training.captions import facts, optical_fractions, sar_descriptors, thresholds
from sar_gen.training.manifest import (
    MANIFEST,
    SPLITS,
    PatchRow,
    Split,
    manifest_path,
    meaning_to_json,
    read_manifest,
    write_manifest,
)
from sar_gen.training.sarclip_data import REFERENCE_SCENES, SIDE, STEP, VALIDATION_SCENES, validation_groups

VV = meaning_to_json(PixelMeaning("db", S1_VV, (DB_FLOOR, DB_FLOOR + DB_SPAN)))
VH = meaning_to_json(PixelMeaning("amplitude", S1_VH))
PACK_BYTES = 60 * 2**20
PARTS: dict[str, Callable[[PatchRow], bool]] = {
    "optical-reference": lambda row: (row.modality, row.split) == ("optical", "reference"),
    "optical-validation": lambda row: (row.modality, row.split) == ("optical", "validation"),
    "optical-vh": lambda row: row.modality == "optical" and row.group.startswith("scene-"),
    "vh-reference": lambda row: row.split == "reference" and row.group.startswith("scene-"),
    "vh": lambda row: row.group.startswith("scene-"),
}
"""Parts that ``pack`` can leave out."""
PLANS: tuple[tuple[str, ...], ...] = (
    (),
    ("optical-reference", "optical-vh"),
    ("optical-reference", "optical-vh", "optical-validation", "vh-reference"),
    ("vh",),
    ("vh", "optical-reference"),
    ("vh", "optical-reference", "optical-validation"),
)
"""What ``pack`` leaves out, least first; VV and the optical pictures that are trained on never are."""


def prepare_sen12(folder: Path, out: Path, *, seed: int = 0) -> dict[str, Any]:
    """Write the manifest of a folder with ``s1_pairs.csv`` and ``s1_scenes.csv``, and return a summary.

    Args:
        folder: the data, as ``reference_statistics`` reads it.
        out: folder for ``manifest.jsonl`` and the links; may not be ``folder`` itself.
        seed: of the choice of validation groups, and of the captions.

    Raises:
        InputError: the data are incomplete.
        SarGenError: ``out`` cannot be written.
    """
    pairs = read_pairs(folder)
    scenes = sorted(read_rows(folder / "s1_scenes.csv", ("scene", "sar", "optical")), key=lambda row: row["scene"])
    found = _pair_rows(folder, pairs, validation_groups(pairs, seed)) + _scene_rows(folder, scenes)
    limits = {}
    for polarisation in ("VV", "VH"):
        own = [measured for row, measured, _ in found if (row.polarisation, row.split) == (polarisation, "train")]
        if not own:
            raise InputError(f"{folder} has no training patch in {polarisation}; bring the whole data folder.")
        limits[polarisation] = thresholds([one["brightness"] for one in own], [one["roughness"] for one in own])
    rows: list[PatchRow] = []
    for row, measured, factor in found:
        assert row.polarisation is not None
        known = facts(
            terrain=row.terrain, polarisation=row.polarisation, **measured, limits=limits[row.polarisation]
        )  # fmt: skip
        named = f"{seed} {row.key}"
        rows.append(
            dataclasses.replace(row, captions=captions_of(known, "sar", named, polarised=row.polarisation == "VH"))
        )
        rows.append(_optical(row, captions_of(optical_facts(known), "optical", named), factor))
    for name in sorted({Path(row.file).parts[0] for row in rows}):
        _link(folder / name, out / name)
    write_manifest(out / MANIFEST, rows)
    return summary(rows)


def pack(manifest: Path, out: Path, limit: int = PACK_BYTES, without: Sequence[str] | None = None) -> dict[str, Any]:
    """Copy a manifest and the pictures that it names, byte by byte, into a folder of at most ``limit`` bytes.

    Args:
        manifest: of ``prepare_sen12``, or its folder.
        out: folder that is written.
        limit: bytes of all files together.
        without: parts (``PARTS``) that are left out; ``None``: the first of ``PLANS`` that fits. Rows of pictures that
            are left out are left out too.

    Raises:
        InputError: a part is unknown, or the rest is larger than the limit.
        SarGenError: ``out`` cannot be written.
    """
    path = manifest_path(manifest)
    for name in without or ():
        if name not in PARTS:
            raise InputError(f"There is no part {name!r} to leave out; choose of {', '.join(PARTS)}.")
    every = read_manifest(path)
    size = {name: (path.parent / name).stat().st_size for name in {row.file for row in every}}
    total = 0
    for plan in PLANS if without is None else (tuple(without),):
        rows = [row for row in every if not any(PARTS[name](row) for name in plan)]
        files = {row.file for row in rows}
        rows = [row if row.optical in files else dataclasses.replace(row, optical=None) for row in rows]
        total = sum(size[name] for name in files) + sum(len(json.dumps(row.to_json())) + 1 for row in rows)
        if total <= limit:
            break
    else:
        left = f" without {', '.join(plan)}" if plan else ""
        raise InputError(f"{path.parent} has {total / 2**20:.1f} MiB{left}, over {limit / 2**20:.1f}; raise it.")
    for name in sorted(files):
        target = out / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.is_file() or target.stat().st_size != size[name]:
                shutil.copyfile(path.parent / name, target)
        except OSError as error:
            raise SarGenError(describe_os_error(target, error)) from error
    write_manifest(out / MANIFEST, rows)
    written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return summary(rows) | {"left_out": list(plan), "bytes": written}


def summary(rows: Sequence[PatchRow]) -> dict[str, Any]:
    """Return how many patches and groups there are by split, modality and terrain (or polarisation, without one)."""
    counts: dict[str, Any] = {}
    for split in SPLITS:
        own = [row for row in rows if row.split == split]
        kinds = Counter(f"{row.modality} {row.terrain or row.polarisation or 'without label'}" for row in own)
        counts[split] = {"patches": len(own), "groups": len({row.group for row in own}), **dict(sorted(kinds.items()))}
    return counts | {"captions": len({caption for row in rows for caption in row.captions})}


Found = list[tuple[PatchRow, dict[str, float], int]]
"""A row without captions, what was measured, and how many times as coarse the optical picture is."""


def _pair_rows(folder: Path, pairs: Sequence[Any], kept_back: set[str]) -> Found:
    found: Found = []
    for pair in pairs:
        split = "validation" if pair.split == "train" and pair.group in kept_back else pair.split
        amplitude, optical = pair_amplitude(_pixels(pair.sar, "L")), _pixels(pair.optical, "L")
        height, width = amplitude.shape
        row = PatchRow(
            f"vv-{pair.sar.stem}", _inside(pair.sar, folder), height, width, _split(split), f"pairs-{pair.group}",
            terrain=pair.terrain, polarisation="VV", meaning=VV, source=_inside(pair.sar, folder),
            optical=_inside(pair.optical, folder),
        )  # fmt: skip
        found.append((row, _measured(optical, amplitude), height // optical.shape[0]))
    return found


def _scene_rows(folder: Path, scenes: Sequence[dict[str, str]]) -> Found:
    found: Found = []
    for scene in scenes:
        name = scene["scene"]
        grey, optical = _pixels(folder / scene["sar"], "L"), _pixels(folder / scene["optical"], "RGB")
        factor = grey.shape[0] // optical.shape[0]
        split = "reference" if name in REFERENCE_SCENES else "validation" if name in VALIDATION_SCENES else "train"
        for top in range(0, grey.shape[0] - SIDE + 1, STEP):
            for left in range(0, grey.shape[1] - SIDE + 1, STEP):
                crop = normalise(grey[top : top + SIDE, left : left + SIDE], S1_VH)
                ground = optical[top // factor : (top + SIDE) // factor, left // factor : (left + SIDE) // factor]
                row = PatchRow(
                    f"vh-{name}-{top}-{left}", scene["sar"], SIDE, SIDE, _split(split), f"scene-{name}",
                    polarisation="VH", meaning=VH, source=scene["sar"], row=top, column=left, optical=scene["optical"],
                )  # fmt: skip
                found.append((row, _measured(ground, crop), factor))
    return found


def _optical(row: PatchRow, captions: tuple[str, ...], factor: int) -> PatchRow:
    """Return the row of the optical half of a SAR row."""
    assert row.optical is not None
    return dataclasses.replace(
        row, key=f"optical-{row.key}", file=row.optical, source=row.optical, optical=None, modality="optical",
        meaning=None, polarisation=None, captions=captions, height=row.height // factor, width=row.width // factor,
        row=row.row // factor, column=row.column // factor,
    )  # fmt: skip


def _measured(optical: NDArray[np.uint8], amplitude: NDArray[np.float32]) -> dict[str, float]:
    water, built_up = optical_fractions(optical, amplitude, block=16 if optical.ndim == 2 else 8)
    brightness, roughness = sar_descriptors(amplitude)
    return {"water": water, "built_up": built_up, "brightness": brightness, "roughness": roughness}


def _split(name: str) -> Split:
    for split in SPLITS:
        if name == split:
            return split
    raise InputError(f"s1_pairs.csv has the unknown split {name!r}; choose one of {', '.join(SPLITS)}.")


def _inside(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _link(source: Path, target: Path) -> None:
    """Link a folder; a link that is there already is made anew, anything else refused."""
    if not target.is_symlink() and target.exists():
        raise InputError(f"{target} is there already; give an empty folder for the data set.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        os.symlink(source.resolve(), target, target_is_directory=True)
    except OSError as error:
        raise SarGenError(describe_os_error(target, error)) from error


def _pixels(path: Path, mode: str) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); bring the whole data folder.") from error
