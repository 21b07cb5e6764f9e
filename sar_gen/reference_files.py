"""Files of reference sets: statistics as ``.npz`` bytes, and a whole set as one ``.sarref`` file to share.

A ``.sarref`` is a zip of ``set.json`` (facts, with the SHA-256 of every other member), ``statistics.npz`` and, where
the patches are shared too, ``patches/0000.npy`` and so on. Nothing in it is ever unpickled or written under a name
that it gives.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.amplitude import Scale
from sar_gen.errors import InputError, SarGenError
from sar_gen.quality.statistics import ARRAYS, PatchStatistics, concat

SUFFIX = ".sarref"
FORMAT = "sar_gen reference set"
VERSION = 1
MAX_FACTS = 1 << 22
"""Largest ``set.json``, in bytes."""
MAX_BYTES = 2 << 30
"""Most that a file may unpack to, in bytes; 400,000 patches' statistics."""
MAX_PATCHES = 256
_MEMBER = re.compile(r"set\.json|statistics\.npz|patches/\d{4}\.npy")
_READ_ERRORS = (
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile,
    zlib.error, NotImplementedError,
)  # fmt: skip


@dataclass(frozen=True)
class SharedSet:
    """The content of a ``.sarref``.

    Attributes:
        facts: JSON data: ``name``, ``title``, ``encoding``, ``polarisation``, ``sensor``, ``scale``, ``credit``,
            ``licence``, ``note``, and ``patches``: ``name``, ``group`` and ``scale`` of each.
        statistics: one row a patch.
        splits: one of ``train`` and ``reference`` a patch, or empty.
        amplitudes: ``(height, width)`` float32 of the patches that are shown.
    """

    facts: dict[str, Any]
    statistics: PatchStatistics
    splits: tuple[str, ...]
    amplitudes: tuple[NDArray[np.float32], ...]


def pack_statistics(statistics: PatchStatistics, splits: Sequence[str] = (), **facts: Any) -> bytes:
    """Return statistics as the bytes of a compressed ``.npz`` without pickle; ``facts`` are JSON data."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {
        **statistics.arrays,
        "groups": np.array(statistics.groups, dtype=np.str_),
        "splits": np.array(list(splits), dtype=np.str_),
        "facts": np.array(json.dumps(facts, sort_keys=True), dtype=np.str_),
    }
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def unpack_statistics(data: bytes) -> tuple[PatchStatistics, tuple[str, ...], dict[str, Any]]:
    """Return the statistics, splits and facts that ``pack_statistics`` wrote.

    Raises:
        SarGenError: the bytes are damaged or of another kind.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            statistics = PatchStatistics(
                **{name: file[name] for name in ARRAYS}, groups=tuple(str(group) for group in file["groups"])
            )
            return statistics, tuple(str(split) for split in file["splits"]), json.loads(str(file["facts"]))
    except _READ_ERRORS as error:
        raise SarGenError(f"Reference statistics cannot be read ({error}); install the studio again.") from error


def pack_set(shared: SharedSet) -> bytes:
    """Return a set as the bytes of a ``.sarref`` file; the same set gives the same bytes."""
    members = {"statistics.npz": pack_statistics(shared.statistics, shared.splits)}
    for index, amplitude in enumerate(shared.amplitudes):
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(amplitude, dtype="<f4"), allow_pickle=False)
        members[f"patches/{index:04d}.npy"] = buffer.getvalue()
    facts = {
        **shared.facts,
        "format": FORMAT,
        "version": VERSION,
        "count": len(shared.statistics),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in members.items()},
    }
    text = (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {"set.json": text, **members}.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def unpack_set(path: Path) -> SharedSet:
    """Read a ``.sarref`` file, trusting nothing in it.

    Raises:
        InputError: the file is missing, damaged, too large, of another kind or of a newer version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _unpacked(path.name, archive)
    except FileNotFoundError:
        raise InputError(f"There is no file {path}; check the path.") from None
    except InputError:
        raise
    except (*_READ_ERRORS, SarGenError) as error:
        raise InputError(f"{path.name} is damaged or no reference set ({error}); ask for it again.") from error


def _unpacked(name: str, archive: zipfile.ZipFile) -> SharedSet:
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    unknown = [member for member in sizes if not _MEMBER.fullmatch(member)]
    if unknown or len(sizes) != len(archive.infolist()) or not {"set.json", "statistics.npz"} <= set(sizes):
        raise InputError(f"{name} is no reference set that the studio exported; choose a {SUFFIX} file.")
    if sum(sizes.values()) > MAX_BYTES or sizes["set.json"] > MAX_FACTS or len(sizes) > MAX_PATCHES + 2:
        raise InputError(f"{name} unpacks to more than a reference set may hold; ask for a smaller one.")
    facts = json.loads(archive.read("set.json"))
    if facts["format"] != FORMAT or facts["version"] > VERSION:
        raise InputError(f"{name} was written by a newer studio; update this one to read it.")
    members = {member: archive.read(member) for member in sorted(sizes) if member != "set.json"}
    for member, data in members.items():
        if hashlib.sha256(data).hexdigest() != facts["sha256"].get(member):
            raise InputError(f"{name} is damaged ({member} has changed since it was exported); ask for it again.")
    _check_npz(name, members["statistics.npz"])
    statistics, splits, _ = unpack_statistics(members["statistics.npz"])
    _check_statistics(name, statistics, splits)
    described = facts["patches"]
    amplitudes = tuple(_amplitude(name, members[f"patches/{row:04d}.npy"]) for row in range(len(described)))
    if len(members) != len(described) + 1:
        raise InputError(f"{name} describes {len(described)} patches and holds {len(members) - 1}; ask for it again.")
    return SharedSet(_checked_facts(name, facts), statistics, splits, amplitudes)


def _check_npz(name: str, data: bytes) -> None:
    """Refuse an ``.npz`` that unpacks to too much or declares arrays other than its bytes hold."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
            raise InputError(f"{name} unpacks to more than a reference set may hold; ask for a smaller one.")
        for info in archive.infolist():
            with archive.open(info) as file:
                _check_header(name, file, info.file_size)


def _check_header(name: str, file: Any, size: int) -> None:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    items = 1
    for side in shape:
        items *= int(side)
    if dtype.hasobject or items * dtype.itemsize > size:
        raise InputError(f"{name} is damaged (an array is not what its header says); ask for it again.")


def _check_statistics(name: str, statistics: PatchStatistics, splits: tuple[str, ...]) -> None:
    kinds = concat([]).arrays
    for key, array in statistics.arrays.items():
        if array.dtype != kinds[key].dtype:
            raise InputError(f"{name} holds {key} of type {array.dtype}, not {kinds[key].dtype}; ask for it again.")
    if not len(statistics) or not statistics.histograms.any(axis=1).all():
        raise InputError(f"{name} holds patches without pixels; ask for it again.")
    if splits and len(splits) != len(statistics):
        raise InputError(f"{name} has {len(splits)} splits for {len(statistics)} patches; ask for it again.")


def _checked_facts(name: str, facts: dict[str, Any]) -> dict[str, Any]:
    texts = ("name", "title", "sensor", "credit", "licence", "note")
    patches = facts["patches"]
    plain = (
        all(isinstance(facts[key], str) for key in texts)
        and facts["encoding"] in ("linear", "db", "unknown")
        and isinstance(facts["polarisation"], str | None)
        and all(isinstance(patch["name"], str) and isinstance(patch["group"], str) for patch in patches)
        and all(isinstance(owner["scale"], dict | None) for owner in (facts, *patches))
    )
    if not plain:
        raise InputError(f"{name} does not say what its patches are; ask for it again.")
    for owner in (facts, *patches):
        if owner["scale"] is not None:
            Scale.from_json(owner["scale"])
    return facts


def _amplitude(name: str, data: bytes) -> NDArray[np.float32]:
    file = io.BytesIO(data)
    _check_header(name, file, len(data))
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if array.ndim != 2 or array.dtype != np.float32 or not array.size:
        raise InputError(f"{name} holds a patch of shape {array.shape} and type {array.dtype}; ask for it again.")
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise InputError(f"{name} holds a patch that is not amplitude in [0, 1]; ask for it again.")
    return np.asarray(array, dtype=np.float32)
