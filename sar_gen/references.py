"""Sets of real SAR that generated patches are judged with.

Three kinds: statistics that ship with the studio (``assets/references``, built by ``sar_gen.reference_statistics``;
the patches themselves are not there), the real Sentinel-1 patches inside the installed package ``bigearthnet-common``
(these may be shown), and the user's own: folders, sets that somebody shared as a file, and open data that were pulled
(``sar_gen.open_data``). VV and VH are never pooled in one set.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

from sar_gen.amplitude import Scale
from sar_gen.errors import InputError, SarGenError
from sar_gen.files import describe_os_error, write_atomic
from sar_gen.patches import Patch, PixelMeaning, read_patch
from sar_gen.reference_build import (
    SHOWN,
    FolderOptions,
    Progress,
    build,
    folder_digest,
    known_meaning,
    patch_files,
    shown_patch,
)
from sar_gen.reference_files import (
    SUFFIX,
    SharedSet,
    pack_set,
    pack_statistics,
    unpack_set,
    unpack_statistics,
)
from sar_gen.reference_packaged import packaged_infos, packaged_set
from sar_gen.reference_sets import ReferenceInfo, ReferenceSet, check_comparable, from_patches
from sar_gen.settings import Settings

__all__ = [
    "INDEX", "SHOWN", "ReferenceInfo", "ReferenceSet", "add_reference", "check_comparable", "export_reference",
    "free_name", "from_patches", "import_reference", "list_references", "load_reference", "pack_statistics",
    "pulled_folder", "remove_reference", "unpack_statistics",
]  # fmt: skip

INDEX = "index.json"
DEFAULT_OPTIONS = FolderOptions()


def list_references(settings: Settings) -> list[ReferenceInfo]:
    """Return every set that can be loaded by name: shipped, packaged, then the user's own; no arrays are read."""
    infos = [
        ReferenceInfo(
            entry["name"],
            entry["title"],
            entry["count"],
            entry["polarisation"],
            entry["encoding"],
            False,
            entry["credit"],
            "shipped",
        )
        for entry in _index(settings.assets / "references" / INDEX)["sets"]
    ]
    infos += packaged_infos()
    return infos + [_user_info(entry) for entry in registry(settings)]


def load_reference(name_or_folder: str | Path, settings: Settings) -> ReferenceSet:
    """Load a set by name, or the patches of a folder (or file) that the studio wrote, for example a run.

    Sets are kept in memory; the statistics of a user's folder are computed once and kept in ``settings.home``.

    Args:
        name_or_folder: a name of ``list_references``, or a path.
        settings: where the sets are.

    Raises:
        InputError: no such set, or its patches cannot be read.
        SarGenError: a shipped file is damaged.
    """
    name = str(name_or_folder)
    for entry in _index(settings.assets / "references" / INDEX)["sets"]:
        if entry["name"] == name:
            return _shipped(settings.assets / "references", name)
    if name in ("ben-vv", "ben-vh"):
        return packaged_set("VV" if name == "ben-vv" else "VH")
    for entry in registry(settings):
        if entry["name"] == name:
            return _user_set(entry, settings)
    path = Path(name_or_folder).expanduser()
    if path.exists():
        return _folder_set(path, settings)
    names = ", ".join(info.name for info in list_references(settings))
    raise InputError(f"There is no reference set {name!r}; choose one of {names}, or give the folder of a run.")


def add_reference(
    folder: Path,
    name: str,
    meaning: PixelMeaning | None,
    settings: Settings,
    *,
    polarisation: str | None = None,
    credit: str = "",
    licence: str = "",
    sensor: str = "unknown sensor",
    note: str = "",
    copy: bool = False,
    options: FolderOptions = DEFAULT_OPTIONS,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> ReferenceInfo:
    """Add a folder of the user's own patches as a set; they are read, and measured, at once.

    The patches are streamed: only their statistics (about 5 kB a patch) and ``SHOWN`` pictures are kept. A call that
    was cut off is gone on with by the same call.

    Args:
        folder: with the patches.
        name: of the set; its short form (lower case, hyphens) is what it is asked for by.
        meaning: what pixel values mean; ``None`` only for patches that the studio wrote.
        settings: where the set is recorded (``settings.home``).
        polarisation: ``VV``, ``VH``, ... where the user knows it (in place of ``meaning.polarisation``).
        credit: whose data.
        licence: on what terms.
        sensor: in words.
        note: what one should know when comparing.
        copy: keep a copy of the patches in ``settings.home``, for folders that will go (uploads).
        options: subfolders, groups, scales, and whether files that cannot be used are left out.
        progress: called with patches done and in all; counts anew in the second pass (the first takes the scale).
        cancel: when set, the call stops soon; what was finished is kept.

    Raises:
        InputError: no usable name, a name that is taken, no patches, or patches whose pixels mean nothing known.
        BuildStoppedError: ``cancel`` was set.
    """
    short = free_name(name, settings)
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder that holds the patches.")
    if meaning is not None and polarisation is not None:
        meaning = dataclasses.replace(meaning, polarisation=polarisation)
    meaning = known_meaning(folder, meaning, options, settings.max_pixels)
    digest = folder_digest(folder, meaning, options)
    measured = _measured_folder(folder, meaning, options, settings, progress, cancel)
    entry: dict[str, Any] = {
        "name": short,
        "title": name.strip(),
        "folder": str(folder),
        "meaning": None if meaning is None else dataclasses.asdict(meaning),
        "options": dataclasses.asdict(options),
        "credit": credit,
        "licence": licence,
        "sensor": sensor,
        "note": note,
        "count": len(measured.statistics),
        "polarisation": measured.polarisation,
        "encoding": measured.encoding,
        "digest": digest,
    }
    if copy:
        entry["folder"] = str(_copied(folder, _home(settings) / short, options.recursive))
    return _recorded(entry, settings)


def remove_reference(name: str, settings: Settings) -> None:
    """Forget a user's set, and delete what the studio keeps of its patches; the user's own folder stays.

    Raises:
        InputError: there is no such set of the user's.
    """
    entries = registry(settings)
    if name not in {entry["name"] for entry in entries}:
        raise InputError(f"There is no reference set {name!r} of your own to remove.")
    _write_registry([entry for entry in entries if entry["name"] != name], settings)
    shutil.rmtree(_home(settings) / name, ignore_errors=True)
    shutil.rmtree(pulled_folder(name, settings), ignore_errors=True)
    (_home(settings) / f"{name}{SUFFIX}").unlink(missing_ok=True)


def free_name(name: str, settings: Settings) -> str:
    """Return the short form (lower case, hyphens) that a new set of this name is asked for by.

    Raises:
        InputError: the name is not usable, or taken.
    """
    short = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not short or short in ("cache", "partial", "pulled"):
        raise InputError(f"{name!r} is no usable name for a reference set; use letters and digits.")
    if short in {info.name for info in list_references(settings)} | {"ben-vv", "ben-vh"}:
        raise InputError(f"There is a reference set {short!r} already; choose another name or remove that one first.")
    return short


def pulled_folder(short: str, settings: Settings) -> Path:
    """Return the folder that holds the patches of a set that was pulled from open data."""
    return _home(settings) / "pulled" / short


def export_reference(name: str, path: Path, settings: Settings, *, with_patches: bool = False) -> str:
    """Write a set as one ``.sarref`` file to share; the same set gives the same bytes.

    Args:
        name: any set that can be loaded.
        path: of the file.
        settings: where the sets are.
        with_patches: put in the patches that are shown too (at most ``SHOWN``), not only the statistics of all.

    Returns:
        SHA-256 of the file.

    Raises:
        InputError: there is no such set, or it has no patches to put in.
        SarGenError: the file cannot be written.
    """
    reference = load_reference(name, settings)
    if with_patches and not reference.patches:
        raise InputError(f"{name} has no patches to share, only statistics; export it without them.")
    patches = reference.patches[:SHOWN] if with_patches else ()
    facts = {
        "name": reference.name,
        "title": reference.title,
        "encoding": reference.encoding,
        "polarisation": reference.polarisation,
        "sensor": reference.sensor,
        "scale": None if reference.scale is None else reference.scale.to_json(),
        "credit": reference.credit,
        "licence": reference.licence,
        "note": reference.note,
        "patches": [
            {"name": patch.name, "group": patch.group, "scale": None if patch.scale is None else patch.scale.to_json()}
            for patch in patches
        ],
    }
    data = pack_set(
        SharedSet(facts, reference.statistics, reference.splits, tuple(patch.amplitude for patch in patches))
    )
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def import_reference(path: Path, settings: Settings, *, name: str | None = None) -> ReferenceInfo:
    """Add a set that somebody exported; it is copied into ``settings.home`` and behaves as any other.

    Args:
        path: a ``.sarref`` file.
        settings: where the set is recorded.
        name: in place of the name in the file.

    Raises:
        InputError: the file cannot be used, or the name is taken.
    """
    path = path.expanduser()
    shared = unpack_set(path)
    short = free_name(name or shared.facts["name"], settings)
    target = _home(settings) / f"{short}{SUFFIX}"
    write_atomic(target, path.read_bytes())
    entry = {
        "name": short,
        "title": shared.facts["title"] if name is None else name.strip(),
        "file": str(target),
        "has_patches": bool(shared.amplitudes),
        "count": len(shared.statistics),
        **{key: shared.facts[key] for key in ("polarisation", "encoding", "credit", "licence")},
    }
    return _recorded(entry, settings)


@lru_cache(maxsize=4)
def _index(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SarGenError(f"{path} cannot be read ({error}); install the studio again (SAR_GEN_ASSETS).") from error
    return data


@lru_cache(maxsize=16)
def _shipped(folder: Path, name: str) -> ReferenceSet:
    entry = next(entry for entry in _index(folder / INDEX)["sets"] if entry["name"] == name)
    path = folder / entry["file"]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SarGenError(f"{path} is missing; install the studio again (SAR_GEN_ASSETS).") from error
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise SarGenError(f"{path} is damaged (its SHA-256 differs from {INDEX}); install the studio again.")
    statistics, splits, _ = unpack_statistics(data)
    return ReferenceSet(
        name=name,
        title=entry["title"],
        encoding=entry["encoding"],
        polarisation=entry["polarisation"],
        sensor=entry["sensor"],
        statistics=statistics,
        scale=Scale.from_json(entry["scale"]),
        credit=entry["credit"],
        licence=entry["licence"],
        note=entry["note"],
        splits=splits,
    )


def _home(settings: Settings) -> Path:
    """Where the user's sets are recorded (``sets.json``), copied (a folder each) and cached (``cache``)."""
    return settings.home / "references"


def registry(settings: Settings) -> list[dict[str, Any]]:
    path = _home(settings) / "sets.json"
    if not path.is_file():
        return []
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["sets"]
        for entry in entries:
            _user_info(entry), options_of(entry)
            if "file" not in entry:
                Path(entry["folder"]), meaning_of(entry["meaning"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as the list of your reference sets; repair or delete it.") from error
    return entries


def _write_registry(entries: list[dict[str, Any]], settings: Settings) -> None:
    write_atomic(_home(settings) / "sets.json", (json.dumps({"sets": entries}, indent=1) + "\n").encode())


def _recorded(entry: dict[str, Any], settings: Settings) -> ReferenceInfo:
    others = [other for other in registry(settings) if other["name"] != entry["name"]]
    _write_registry([*others, entry], settings)
    return _user_info(entry)


def _user_info(entry: dict[str, Any]) -> ReferenceInfo:
    shown = bool(entry["has_patches"]) if "file" in entry else Path(entry["folder"]).is_dir()
    return ReferenceInfo(
        entry["name"], entry["title"], entry["count"], entry["polarisation"], entry["encoding"], shown,
        entry["credit"], "user",
    )  # fmt: skip


def options_of(entry: dict[str, Any]) -> FolderOptions:
    return FolderOptions(**entry.get("options", {}))


def meaning_of(data: dict[str, Any] | None) -> PixelMeaning | None:
    """Return the meaning that ``dataclasses.asdict`` and JSON made of it."""
    if data is None:
        return None
    scale, db_range = data["scale"], data["db_range"]
    return PixelMeaning(
        data["encoding"],
        Scale.from_json(scale) if isinstance(scale, dict) else scale,
        None if db_range is None else (db_range[0], db_range[1]),
        data["polarisation"],
        data.get("nodata"),
    )


def _user_set(entry: dict[str, Any], settings: Settings) -> ReferenceSet:
    if "file" in entry:
        path = Path(entry["file"])
        if not path.is_file():
            raise InputError(
                f"{path} of the reference set {entry['name']} is gone; remove the set and import it again."
            )
        shared = _shared(path, path.stat().st_mtime_ns)
        return dataclasses.replace(shared, name=entry["name"], title=entry["title"])
    folder = Path(entry["folder"])
    note = entry.get("note", "")
    if folder.is_dir():
        measured = _measured_folder(folder, meaning_of(entry["meaning"]), options_of(entry), settings)
    else:
        cache = cache_file(entry["digest"], settings)
        if not cache.is_file():
            raise InputError(
                f"The folder {folder} of the reference set {entry['name']} is gone; bring it back, or remove the set."
            )
        measured = _from_cache(cache, None, entry["name"], settings)
        note = f"{note} Its folder {folder} is gone; the statistics were kept.".strip()
    return dataclasses.replace(
        measured,
        name=entry["name"],
        title=entry["title"],
        credit=entry["credit"],
        licence=entry["licence"],
        sensor=entry.get("sensor", measured.sensor),
        note=f"{note} {measured.note}".strip(),
    )


@lru_cache(maxsize=8)
def _shared(path: Path, stamp: int) -> ReferenceSet:
    """Return an imported set; ``stamp`` makes a changed file a new one."""
    shared = unpack_set(path)
    facts = shared.facts

    def scale_of(data: dict[str, Any] | None) -> Scale | None:
        return None if data is None else Scale.from_json(data)

    patches = tuple(
        Patch(
            amplitude,
            described["name"],
            facts["encoding"],
            facts["polarisation"],
            scale_of(described["scale"]),
            described["group"],
            facts["credit"],
        )
        for amplitude, described in zip(shared.amplitudes, facts["patches"], strict=True)
    )
    return ReferenceSet(
        name=facts["name"],
        title=facts["title"],
        encoding=facts["encoding"],
        polarisation=facts["polarisation"],
        sensor=facts["sensor"],
        statistics=shared.statistics,
        patches=patches,
        scale=scale_of(facts["scale"]),
        credit=facts["credit"],
        licence=facts["licence"],
        note=facts["note"],
        splits=shared.splits,
    )


def _folder_set(path: Path, settings: Settings) -> ReferenceSet:
    """Return a folder, or file, that the studio wrote as a set."""
    if path.is_dir():
        folder = path.resolve()
        meaning = known_meaning(folder, None, DEFAULT_OPTIONS, settings.max_pixels)
        return _measured_folder(folder, meaning, DEFAULT_OPTIONS, settings)
    return from_patches([read_patch(path, None, settings.max_pixels)], path.name)


def _measured_folder(
    folder: Path,
    meaning: PixelMeaning | None,
    options: FolderOptions,
    settings: Settings,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> ReferenceSet:
    """Measure a folder, or take its statistics from the cache."""
    digest = folder_digest(folder, meaning, options)
    cache = cache_file(digest, settings)
    if cache.is_file():
        try:
            return _cached(cache, folder, meaning, options, settings)
        except (SarGenError, KeyError, OSError):
            pass  # a damaged or older cache: measure again
    # Named by the folder, not by its content: a build that was cut off is gone on with when files were added.
    partial = (
        _home(settings) / "partial" / hashlib.sha256(f"{folder} {meaning!r} {options!r}".encode()).hexdigest()[:32]
    )
    built = build(folder, meaning, options, partial, max_pixels=settings.max_pixels, progress=progress, cancel=cancel)
    facts: dict[str, Any] = {
        "encoding": built.encoding,
        "polarisation": built.polarisation,
        "scales": {key: scale.to_json() for key, scale in built.scales.items()},
        "given": None if meaning is None or not isinstance(meaning.scale, Scale) else meaning.scale.to_json(),
        "names": list(built.names),
        "shown": list(built.shown),
        "skipped": list(built.skipped[:1]),
        "skipped_count": len(built.skipped),
    }
    write_atomic(cache, pack_statistics(built.statistics, **facts))
    return _cached(cache, folder, meaning, options, settings)


@lru_cache(maxsize=8)
def _cached(
    cache: Path, folder: Path, meaning: PixelMeaning | None, options: FolderOptions, settings: Settings
) -> ReferenceSet:
    """Return the set whose statistics the cache holds, with its patches to show."""
    return _from_cache(cache, folder, folder.name, settings, meaning, options)


def _from_cache(
    cache: Path,
    folder: Path | None,
    name: str,
    settings: Settings,
    meaning: PixelMeaning | None = None,
    options: FolderOptions = DEFAULT_OPTIONS,
) -> ReferenceSet:
    statistics, _, facts = unpack_statistics(cache.read_bytes())
    scales = {key: Scale.from_json(scale) for key, scale in facts["scales"].items()}
    scale = scales.get("") or (Scale.from_json(facts["given"]) if facts["given"] else None)
    patches: tuple[Patch, ...] = ()
    if folder is not None:
        patches = tuple(
            shown_patch(folder, shown, meaning, scales, options, settings.max_pixels) for shown in facts["shown"]
        )
    note = ""
    if facts["skipped_count"]:
        note = f"{facts['skipped_count']} files were left out; the first: {facts['skipped'][0]}"
    return ReferenceSet(
        name=name,
        title=name,
        encoding=facts["encoding"],
        polarisation=facts["polarisation"],
        sensor="unknown sensor",
        statistics=statistics,
        patches=patches,
        scale=scale,
        note=note,
    )


def cache_file(digest: str, settings: Settings) -> Path:
    return _home(settings) / "cache" / f"{digest[:32]}.npz"


def _copied(folder: Path, target: Path, recursive: bool) -> Path:
    """Copy the patches of a folder into ``target``, whole or not at all.

    The times of change are copied too: they are part of the key under which the statistics are kept.
    """
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        for name in patch_files(folder, recursive):
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / name, part / name)
        if (folder / "run.json").is_file():
            shutil.copy2(folder / "run.json", part / "run.json")
        shutil.rmtree(target, ignore_errors=True)  # left by a call that was cut off before it was recorded
        part.replace(target)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise SarGenError(describe_os_error(target, error)) from error
    return target
