"""SAR-CLIP's features of patches and sets: computed once, kept, and shipped where the pixels are not.

Features belong to the weights that they were computed with (the SHA-256 of ``SarClip.weights``), and are never mixed:

- ``assets/references/features.safetensors``: of the shipped reference sets, one tensor a set, a row a patch;
- ``training-features.safetensors`` beside a checkpoint: of the real patches that it was trained on, and of some that
  it was not;
- ``settings.home/features``: of the user's own sets, under a hash of their content.

The first two are made by

    python -m sar_gen.features DATA_FOLDER [--assets FOLDER] [--checkpoint FOLDER]

(``DATA_FOLDER`` as for ``sar_gen.reference_statistics``, after it.) Rows are float16; reading makes them unit float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sar_gen import references
from sar_gen.amplitude import Scale
from sar_gen.errors import InputError, SarGenError
from sar_gen.files import write_atomic
from sar_gen.patches import Patch
from sar_gen.quality.sets import SetReport, TrainingFeatures, compare_sets
from sar_gen.reference_build import folder_digest, patch_files, shown_patch
from sar_gen.reference_files import unpack_statistics
from sar_gen.references import ReferenceSet
from sar_gen.settings import ROOT, Settings
from sar_gen.weights import read_header

if TYPE_CHECKING:
    from sar_gen.quality.semantic import SarClip

SHIPPED = "features.safetensors"
TRAINING = "training-features.safetensors"
CHECKPOINT = "sar-mini"
MOST_REFERENCE = 1000
"""Of a user's larger set as many patches are taken, evenly over it: a patch takes 0.2 s of a core."""
AT_ONCE = 8
"""Patches between two calls of ``progress``."""
VERSION = 1
"""Part of the cache's key; raised when the features of a patch change their meaning."""

SCENE_STEP = 128
SCENES_NOTE = (
    "VH: sar-mini was trained on crops at random places of 68 scenes. These are 10 of them, cut every 128 pixels: a "
    "copy may lie 64 pixels beside the nearest crop, or in another scene, so that finding none says little."
)

Features = NDArray[np.float32]
Progress = Callable[[int, int], None]


class FeaturesStoppedError(SarGenError):
    """The computation was cancelled; the features of finished patches are kept for a while."""


@dataclass(frozen=True)
class ReferenceFeatures:
    """Features of a reference set.

    Attributes:
        features: ``(n, d)`` unit features.
        groups: ground of each.
        names: of the patches; empty where only their features ship.
        note: which part of the set they are of; empty for all.
    """

    features: Features
    groups: tuple[str, ...]
    names: tuple[str, ...] = ()
    note: str = ""


def set_report(
    patches: Sequence[Patch],
    reference: ReferenceSet,
    settings: Settings,
    *,
    clip: SarClip | None = None,
    checkpoint: str | Path | None = CHECKPOINT,
    training: ReferenceSet | None = None,
    progress: Callable[[str], None] | None = None,
    cancel: threading.Event | None = None,
) -> SetReport:
    """Compare patches with a reference set as sets, in the features of a SAR-CLIP, and look for copies.

    Args:
        patches: what is judged.
        reference: real SAR.
        settings: where SAR-CLIP, the checkpoints and the cache are.
        clip: a CLIP that is loaded; ``None`` loads the one that ships.
        checkpoint: id (or folder) of the checkpoint whose training patches copies are looked for among; ``None`` looks
            for none. One that ships no features of them is said in a note.
        training: a set of the user's own that the generator was trained on, instead of the checkpoint's.
        progress: is told what is being done; an exception that it raises ends the work.
        cancel: when set, the work ends soon.

    Raises:
        InputError: a patch cannot be seen by SAR-CLIP, or the reference has no features for these weights.
        FeaturesStoppedError: ``cancel`` was set.
    """
    from sar_gen.quality.semantic import load_sarclip

    say = progress or (lambda _: None)
    if clip is None:
        say("Loading SAR-CLIP")
        clip = load_sarclip(None, settings)

    def counting(what: str) -> Progress:
        return lambda done, total: say(f"SAR-CLIP features of {what}: {done} of {total}")

    real = reference_features(reference, settings, clip, counting(reference.name), cancel)
    notes = [real.note]
    known = None
    if training is not None:
        known = training_set(training, settings, clip, counting(training.name), cancel)
    elif checkpoint is not None:
        try:
            known = training_features(checkpoint, settings, clip, reference.polarisation)
        except InputError as error:
            notes.append(f"Copies were not looked for: {error}")
    made = features_of(patches, clip, counting("the patches"), cancel)
    say("Comparing the sets")
    report = compare_sets(
        made,
        real.features,
        real.groups,
        reference_name=reference.name,
        features=clip.label,
        names=[patch.name for patch in patches],
        training=known,
    )
    return dataclasses.replace(report, notes=(*filter(None, notes), *report.notes))


def features_of(
    patches: Sequence[Patch | NDArray[Any]],
    model: SarClip,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> Features:
    """Return unit features ``(n, d)`` of patches; those of the last few thousand patches are kept in memory.

    Args:
        patches: patches, or ``(height, width)`` amplitudes.
        model: from ``semantic.load_sarclip``.
        progress: called with patches done and in all.
        cancel: when set, the work ends soon.

    Raises:
        InputError: a patch is under 64 pixels a side, or not finite.
        FeaturesStoppedError: ``cancel`` was set.
    """
    return _features((_amplitude(patch) for patch in patches), len(patches), model, progress, cancel)


def reference_features(
    reference: ReferenceSet,
    settings: Settings,
    model: SarClip,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> ReferenceFeatures:
    """Return the features of a reference set: shipped, kept from before, or computed from its patches.

    Args:
        reference: the set.
        settings: where the features are kept.
        model: whose features.
        progress: called with patches done and in all.
        cancel: when set, the work ends soon.

    Raises:
        InputError: only statistics of the set are here, and no features of these weights.
        FeaturesStoppedError: ``cancel`` was set.
    """
    shipped = _shipped(settings.assets / "references" / SHIPPED)
    if shipped is not None and shipped.holds(reference):
        if shipped.weights != model.weights:
            raise InputError(
                f"{reference.name} ships without its pixels, with features of the studio's own SAR-CLIP only, so "
                f"{model.name} cannot see it; choose the studio's SAR-CLIP, or a reference set with patches."
            )
        return ReferenceFeatures(shipped.features[reference.name], reference.statistics.groups)
    count = len(reference.statistics)
    source = _source(reference, settings)
    if source is None and len(reference.patches) < count:
        if not reference.patches:
            raise InputError(
                f"{reference.name} holds statistics only, which SAR-CLIP cannot see; choose a set with patches."
            )
        part = f"Of the {count} patches of {reference.name}, the {len(reference.patches)} that are at hand were taken."
        names = [patch.name for patch in reference.patches]
        groups = [patch.group or f"patch {row}" for row, patch in enumerate(reference.patches)]
        rows = list(range(len(names)))
    else:
        rows = np.unique(np.linspace(0, count - 1, min(count, MOST_REFERENCE)).round().astype(int)).tolist()
        part = ""
        if len(rows) < count:
            part = f"Of the {count} patches of {reference.name}, {len(rows)} were taken, evenly over the set."
        names = list(source.names) if source else [patch.name for patch in reference.patches]
        groups = list(reference.statistics.groups)
    if source is None:
        amplitudes: Iterable[NDArray[Any]] = [reference.patches[row].amplitude for row in rows]
        digest = _digest(*(hashlib.sha256(np.ascontiguousarray(a)).hexdigest() for a in amplitudes))
    else:
        amplitudes = (source.read(names[row]).amplitude for row in rows)
        digest = _digest(source.digest, rows)
    found = _kept(digest, amplitudes, len(rows), model, settings, progress, cancel)
    return ReferenceFeatures(found, tuple(groups[row] for row in rows), tuple(names[row] for row in rows), part)


def training_features(
    checkpoint: str | Path, settings: Settings, model: SarClip, polarisation: str | None = None
) -> TrainingFeatures:
    """Return the features of a checkpoint's training patches that ship with it.

    Args:
        checkpoint: id of an embedded checkpoint, or a folder.
        settings: where the embedded checkpoints are.
        model: whose features.
        polarisation: only patches in it, since ``VV`` and ``VH`` are never compared; ``None`` is all.

    Raises:
        InputError: none ship with it, or they belong to other weights, or to another polarisation.
    """
    folder = settings.checkpoints / checkpoint
    path = folder / TRAINING
    if not path.is_file():
        raise InputError(f"{folder.name} ships no features of its training patches; give these as a set of your own.")
    shipped = _read_training(path, path.stat().st_mtime_ns)
    if shipped.weights != model.weights:
        raise InputError(
            f"the features of {folder.name}'s training patches are of the studio's own SAR-CLIP, not of {model.name}; "
            "give the patches as a set of your own."
        )
    rows, held_out = (
        [row for row, kind in enumerate(kinds) if polarisation is None or kind == polarisation.upper()]
        for kinds in (shipped.polarisations, shipped.held_out_polarisations)
    )
    if not rows:
        raise InputError(f"{folder.name} was not trained on {polarisation} patches.")
    whole = shipped.whole
    return dataclasses.replace(
        whole,
        features=whole.features[rows],
        names=tuple(whole.names[row] for row in rows),
        groups=tuple(whole.groups[row] for row in rows),
        held_out=whole.held_out[held_out],
        note=whole.note if "VH" in {shipped.polarisations[row] for row in rows} else "",
    )


def training_set(
    training: ReferenceSet,
    settings: Settings,
    model: SarClip,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> TrainingFeatures:
    """Return a set of the user's own as the training patches of a generator.

    Raises:
        InputError: only statistics of the set are here, and no features of these weights.
        FeaturesStoppedError: ``cancel`` was set.
    """
    found = reference_features(training, settings, model, progress, cancel)
    names = found.names or tuple(f"patch {row + 1}" for row in range(len(found.groups)))
    note = found.note
    if len(set(found.groups)) == len(found.groups):
        note += " Each patch counts as ground of its own: where training patches overlap, copies are missed."
    none = np.zeros((0, found.features.shape[1]), np.float32)
    return TrainingFeatures(training.name, found.features, names, found.groups, none, note.strip())


# Computing and keeping ---------------------------------------------------------------------------------------------


def _amplitude(patch: Patch | NDArray[Any]) -> NDArray[Any]:
    return patch.amplitude if isinstance(patch, Patch) else patch


def _features(
    amplitudes: Iterable[NDArray[Any]],
    count: int,
    model: SarClip,
    progress: Progress | None,
    cancel: threading.Event | None,
) -> Features:
    rows = [np.zeros((0, int(model.model.config.projection_dim)), np.float32)]
    done = 0
    chunk: list[NDArray[Any]] = []
    for amplitude in amplitudes:
        chunk.append(amplitude)
        if len(chunk) == AT_ONCE or done + len(chunk) == count:
            if cancel is not None and cancel.is_set():
                raise FeaturesStoppedError("Stopped; start again to go on from there.")
            rows.append(model.image_features(chunk))
            done += len(chunk)
            chunk = []
            if progress is not None:
                progress(done, count)
    return np.concatenate(rows)


def _kept(
    digest: str,
    amplitudes: Iterable[NDArray[Any]],
    count: int,
    model: SarClip,
    settings: Settings,
    progress: Progress | None,
    cancel: threading.Event | None,
) -> Features:
    """Return the features that are kept under this hash, or compute and keep them."""
    from safetensors.numpy import save

    if not model.weights:  # in training: they change
        return _features(amplitudes, count, model, progress, cancel)
    path = settings.home / "features" / f"{_digest(digest, model.weights)[:32]}.safetensors"
    if path.is_file():
        try:
            kept = _read(path)[0]["features"]
            if len(kept) == count:
                return kept
        except (InputError, KeyError):
            pass  # damaged: computed again
    found = _features(amplitudes, count, model, progress, cancel)
    write_atomic(path, save({"features": found.astype(np.float16)}))
    return _unit(found.astype(np.float16))


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr((VERSION, parts)).encode()).hexdigest()


def _unit(rows: NDArray[Any]) -> Features:
    values = rows.astype(np.float32)
    unit: Features = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return unit


# The user's folders ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """A folder that a set was measured from, of which only some patches are in memory; a name a row."""

    digest: str
    names: tuple[str, ...]
    read: Callable[[str], Patch]


def _source(reference: ReferenceSet, settings: Settings) -> _Source | None:
    """Return the folder of a set whose patches are not all in memory; ``None`` where it has none, or all are."""
    first = reference.patches[0].path if reference.patches else None
    if first is None or len(reference.patches) == len(reference.statistics):
        return None
    folder, meaning, options = first.parent, None, references.DEFAULT_OPTIONS
    for entry in references.registry(settings):
        if entry["name"] == reference.name and "folder" in entry and first.is_relative_to(Path(entry["folder"])):
            folder, options = Path(entry["folder"]), references.options_of(entry)
            meaning = references.meaning_of(entry["meaning"])
    digest = folder_digest(folder, meaning, options)
    cache = references.cache_file(digest, settings)
    if not cache.is_file():
        return None
    facts = unpack_statistics(cache.read_bytes())[2]
    scales = {key: Scale.from_json(scale) for key, scale in facts.get("scales", {}).items()}
    names = tuple(facts.get("names") or patch_files(folder, options.recursive))
    if len(names) != len(
        reference.statistics
    ):  # files were left out, or cut into tiles: which are the rows is unknown
        return None
    return _Source(
        digest, names, lambda name: shown_patch(folder, name, meaning, scales, options, settings.max_pixels)
    )


# What ships --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shipped:
    """The content of ``SHIPPED``."""

    weights: str
    features: dict[str, Features]
    groups: dict[str, str]

    def holds(self, reference: ReferenceSet) -> bool:
        """Return whether these are the features of this set, row by row."""
        name = reference.name
        return name in self.features and self.groups.get(name) == _groups_digest(reference.statistics.groups)


@dataclass(frozen=True)
class _Training:
    """The content of a ``TRAINING``."""

    weights: str
    whole: TrainingFeatures
    polarisations: tuple[str, ...]
    held_out_polarisations: tuple[str, ...]


def _groups_digest(groups: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(groups).encode()).hexdigest()


def _read(path: Path) -> tuple[dict[str, Features], dict[str, Any]]:
    """Return the tensors of a file as unit float32 rows, and its metadata ``facts``."""
    header = read_header(path)

    from safetensors.numpy import load_file

    try:
        facts = json.loads(header.metadata.get("facts", "{}"))
        return {name: _unit(rows) for name, rows in load_file(path).items()}, facts
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} does not hold features ({error}); copy it again.") from error


def _write(path: Path, tensors: dict[str, NDArray[Any]], facts: dict[str, Any]) -> None:
    from safetensors.numpy import save

    rows = {name: np.ascontiguousarray(values, dtype=np.float16) for name, values in tensors.items()}
    write_atomic(path, save(rows, metadata={"facts": json.dumps(facts, sort_keys=True)}))


def _shipped(path: Path) -> _Shipped | None:
    return _read_shipped(path, path.stat().st_mtime_ns) if path.is_file() else None


@lru_cache(maxsize=2)
def _read_shipped(path: Path, stamp: int) -> _Shipped:
    """Read ``SHIPPED``; ``stamp`` makes a changed file a new one."""
    tensors, facts = _read(path)
    try:
        return _Shipped(str(facts["weights"]), tensors, dict(facts["groups"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not say whose features it holds; install the studio again.") from error


@lru_cache(maxsize=4)
def _read_training(path: Path, stamp: int) -> _Training:
    """Read a ``TRAINING``; ``stamp`` makes a changed file a new one."""
    tensors, facts = _read(path)
    try:
        rows = facts["patches"]
        whole = TrainingFeatures(
            str(facts["title"]),
            tensors["features"],
            tuple(str(row[0]) for row in rows),
            tuple(str(row[1]) for row in rows),
            tensors["held_out"],
            str(facts["note"]),
        )
        held_out = tuple(str(kind) for kind in facts["held_out"])
        if len(held_out) != len(whole.held_out):
            raise ValueError("held_out")
        return _Training(str(facts["weights"]), whole, tuple(str(row[2]) for row in rows), held_out)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not describe its features; copy the checkpoint again.") from error


def write_training_features(
    path: Path,
    whole: TrainingFeatures,
    weights: str,
    polarisations: Sequence[str],
    held_out_polarisations: Sequence[str],
) -> None:
    """Write the features of a checkpoint's training patches, to lie beside it as ``TRAINING``.

    Args:
        path: the file.
        whole: features, names and grounds.
        weights: ``SarClip.weights`` of the model that they are of.
        polarisations: ``VV``, ``VH``, ... of each training patch.
        held_out_polarisations: the same of each held-out patch.
    """
    facts = {
        "title": whole.title,
        "note": whole.note,
        "weights": weights,
        "patches": [list(row) for row in zip(whole.names, whole.groups, polarisations, strict=True)],
        "held_out": list(held_out_polarisations),
    }
    _write(path, {"features": whole.features, "held_out": whole.held_out}, facts)


def build_features(
    folder: Path, assets: Path, checkpoint: Path, model: SarClip, progress: Progress | None = None
) -> None:
    """Compute what ships, from the data that ``reference_statistics`` reads (0.2 s a patch: some 8 minutes of a core).

    Args:
        folder: the data.
        assets: of which ``references`` gets ``SHIPPED``.
        checkpoint: folder of sar-mini, which gets ``TRAINING``.
        model: the SAR-CLIP that ships.
        progress: called with patches done and in all.

    Raises:
        InputError: the data are incomplete.
    """
    from sar_gen.amplitude import S1_VH, normalise
    from sar_gen.reference_statistics import CROP, TERRAINS, pair_amplitude, read_grey, read_pairs, read_rows

    pairs = read_pairs(folder)
    scenes = sorted(read_rows(folder / "s1_scenes.csv", ("scene", "sar")), key=lambda row: row["scene"])
    places = [
        (top, left) for top in range(0, 1024 - CROP + 1, SCENE_STEP) for left in range(0, 1024 - CROP + 1, SCENE_STEP)
    ]

    def amplitudes() -> Iterable[NDArray[np.float32]]:
        for pair in pairs:
            yield pair_amplitude(read_grey(pair.sar))
        for row in scenes:
            scene = normalise(read_grey(folder / row["sar"]), S1_VH)
            for top, left in places:
                yield scene[top : top + CROP, left : left + CROP]

    found = _features(amplitudes(), len(pairs) + len(scenes) * len(places), model, progress, None)
    vv, vh = found[: len(pairs)], found[len(pairs) :]
    sets: dict[str, NDArray[Any]] = {}
    groups: dict[str, list[str]] = {}
    for terrain in TERRAINS:
        rows = [row for row, pair in enumerate(pairs) if pair.terrain == terrain]
        sets[f"s1-{terrain}"], groups[f"s1-{terrain}"] = vv[rows], [pairs[row].group for row in rows]
    # The set s1-vh is the crops side by side, in the same order.
    side = [place for place, corner in enumerate(places) if not (corner[0] % CROP or corner[1] % CROP)]
    sets["s1-vh"] = np.concatenate([vh[number * len(places) :][side] for number in range(len(scenes))])
    groups["s1-vh"] = [row["scene"] for row in scenes for _ in side]
    facts = {"weights": model.weights, "groups": {name: _groups_digest(of) for name, of in groups.items()}}
    _write(assets / "references" / SHIPPED, sets, facts)
    train, rest = (
        [row for row, pair in enumerate(pairs) if (pair.split == "train") is kind] for kind in (True, False)
    )
    names = [pairs[row].sar.stem for row in train]
    names += [f"scene {row['scene']}, row {top}, column {left}" for row in scenes for top, left in places]
    ground = [pairs[row].group for row in train] + [f"scene {row['scene']}" for row in scenes for _ in places]
    whole = TrainingFeatures(
        "sar-mini", np.concatenate([vv[train], vh]), tuple(names), tuple(ground), vv[rest], SCENES_NOTE
    )
    polarisations = ["VV"] * len(train) + ["VH"] * len(vh)
    write_training_features(checkpoint / TRAINING, whole, model.weights, polarisations, ["VV"] * len(rest))


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what ships; returns the exit status."""
    from sar_gen.quality.semantic import load_sarclip

    parser = argparse.ArgumentParser(prog="python -m sar_gen.features", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, help="folder with s1_pairs.csv and s1_scenes.csv")
    parser.add_argument("--assets", type=Path, default=ROOT / "assets", help="where to write (default: assets)")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoints" / CHECKPOINT, help="of sar-mini")
    options = parser.parse_args(arguments)
    last = 0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if done - last >= 200 or done == total:
            last = done
            print(f"{done} of {total} patches", flush=True)

    try:
        build_features(options.data, options.assets, options.checkpoint, load_sarclip(), progress)
    except SarGenError as error:
        parser.exit(2 if isinstance(error, InputError) else 1, f"{error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
