"""The list of a prepared data set's patches: JSON lines or Parquet, one row a patch, checked when it is read.

A data set is a folder with its manifest and the files that it names, all below the folder. A row says where the pixels
are, what they mean, which split they belong to and what is to be seen. The rule that everything rests on: rows of one
``group`` share ground, so a group lies wholly in one split; a manifest that breaks it is refused.

Pixels are the whole file, or, where ``file`` is ``source`` itself, the window ``row``, ``column``, ``height``,
``width`` of it: a data set can point into pictures that are there already.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from sar_gen.amplitude import Scale
from sar_gen.errors import InputError
from sar_gen.files import write_atomic
from sar_gen.patches import PixelMeaning, Window

MANIFEST = "manifest.jsonl"
PARQUET = "manifest.parquet"

Split = Literal["train", "validation", "reference"]
Modality = Literal["sar", "optical"]
SPLITS: tuple[Split, ...] = get_args(Split)
MODALITIES: tuple[Modality, ...] = get_args(Modality)


@dataclass(frozen=True)
class PatchRow:
    """One patch of a data set.

    Attributes:
        key: its name, once in a manifest; letters, digits, ``-`` and ``_``.
        file: with its pixels, relative to the manifest and below its folder.
        height: in pixels.
        width: in pixels.
        split: ``train``, ``validation`` or ``reference``.
        group: patches that share ground share a group.
        captions: what is to be seen, each true by itself; one is drawn each time.
        terrain: label, where there is one.
        polarisation: ``VV``, ``VH``, ..., where it is known.
        modality: ``sar`` or ``optical``.
        meaning: of the pixels, as ``meaning_to_json`` gives it; ``None``: the studio's amplitude, or optical grey.
        source: the file that the patch was cut from.
        row: of the patch's first pixel in ``source``.
        column: of the patch's first pixel in ``source``.
        optical: co-registered optical picture of all of ``file``, relative to the manifest; its pixels may be a whole
            number of times as coarse.
    """

    key: str
    file: str
    height: int
    width: int
    split: Split
    group: str
    captions: tuple[str, ...] = ()
    terrain: str | None = None
    polarisation: str | None = None
    modality: Modality = "sar"
    meaning: dict[str, Any] | None = None
    source: str = ""
    row: int = 0
    column: int = 0
    optical: str | None = None

    @property
    def window(self) -> Window | None:
        """Return which part of ``file`` is the patch; ``None`` is all of it."""
        return (self.row, self.column, self.height, self.width) if self.file == self.source else None

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON data."""
        data = {field.name: getattr(self, field.name) for field in _FIELDS}
        return data | {"captions": list(self.captions)}


_FIELDS = dataclasses.fields(PatchRow)
_REQUIRED = tuple(field.name for field in _FIELDS if field.default is dataclasses.MISSING)
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("key", "file", "split", "group", "modality", "source"), (str,)),
    **dict.fromkeys(("height", "width", "row", "column"), (int,)),
    **dict.fromkeys(("terrain", "polarisation", "optical"), (str, type(None))),
    "captions": (list, tuple),
    "meaning": (dict, type(None)),
}
_NAMES = frozenset(_TYPES)


def row_from_json(data: Any, where: str) -> PatchRow:
    """Return a row of JSON data.

    Args:
        data: what ``PatchRow.to_json`` gives.
        where: what it is called in an error: file and line.

    Raises:
        InputError: a field is unknown, missing or not usable.
    """
    if not isinstance(data, dict):
        raise InputError(f"{where} is not a row of a manifest but {type(data).__name__}; prepare the data again.")
    for name in data:
        if name not in _NAMES:
            raise InputError(f"{where} has the unknown field {name!r}; remove it or correct its name.")
    for name in _REQUIRED:
        if name not in data:
            raise InputError(f"{where} lacks the field {name!r}; add it.")
    for name, value in data.items():
        if not isinstance(value, _TYPES[name]) or isinstance(value, bool):
            raise InputError(f"{where} has {value!r} as {name}, of the wrong type; correct it.")
    row = PatchRow(**{**data, "captions": tuple(data.get("captions", ()))})
    _check(row, where)
    return row


def check_rows(rows: Sequence[PatchRow], name: str) -> None:
    """Check what holds between rows: keys are unique, and no group lies in two splits.

    Raises:
        InputError: it does not hold; the first case is named.
    """
    splits: dict[str, str] = {}
    keys: set[str] = set()
    for row in rows:
        if row.key in keys:
            raise InputError(f"{name} has the key {row.key!r} twice; give every patch a key of its own.")
        keys.add(row.key)
        if splits.setdefault(row.group, row.split) != row.split:
            raise InputError(
                f"{name} has the group {row.group!r} in the splits {splits[row.group]!r} and {row.split!r}, which "
                "would share ground; put a whole group in one split."
            )


def read_manifest(path: Path) -> list[PatchRow]:
    """Read a manifest and check it.

    Args:
        path: of a ``.jsonl`` or ``.parquet`` file, or of a folder that holds ``manifest.jsonl`` or
            ``manifest.parquet``.

    Raises:
        InputError: it is missing, of another kind or empty, a row is not usable, a key is there twice, or a group lies
            in two splits. Whether the files are there is seen when they are read.
    """
    path = manifest_path(path)
    if path.suffix == ".parquet":
        rows = [row_from_json(data, f"{path.name} row {number}") for number, data in enumerate(_parquet(path), 1)]
    else:
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read ({error}); give a manifest of JSON lines.") from error
        rows = [
            row_from_json(_parsed(line, f"{path.name} line {number}"), f"{path.name} line {number}")
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
    if not rows:
        raise InputError(f"{path} has no rows; prepare the data again.")
    check_rows(rows, path.name)
    return rows


def write_manifest(path: Path, rows: Iterable[PatchRow]) -> None:
    """Write a manifest, as Parquet where the name ends so, else as JSON lines; what ``read_manifest`` refuses is too.

    Raises:
        InputError: a row is not usable, or pyarrow is not installed (Parquet).
        SarGenError: the file cannot be written.
    """
    rows = list(rows)
    for number, row in enumerate(rows, 1):
        _check(row, f"row {number}")
    check_rows(rows, path.name)
    if path.suffix == ".parquet":
        write_atomic(path, _parquet_bytes(rows))
    elif path.suffix == ".jsonl":
        write_atomic(path, "".join(json.dumps(row.to_json()) + "\n" for row in rows).encode())
    else:
        raise InputError(f"{path.name} is not the name of a manifest; end it in .jsonl or .parquet.")


def manifest_path(path: Path) -> Path:
    """Return the manifest itself where its folder is given.

    Raises:
        InputError: there is none.
    """
    if path.is_dir():
        for name in (MANIFEST, PARQUET):
            if (path / name).is_file():
                return path / name
        raise InputError(f"{path} holds no {MANIFEST}; make it with `python -m sar_gen prepare`.")
    if not path.is_file():
        raise InputError(f"There is no manifest {path}; make it with `python -m sar_gen prepare`.")
    if path.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"{path.name} is not a manifest; give a .jsonl or .parquet file.")
    return path


def meaning_to_json(meaning: PixelMeaning) -> dict[str, Any]:
    """Return the meaning of pixels as JSON data; a pooled scale must have been taken before.

    Raises:
        InputError: values that need a scale have none.
    """
    if meaning.needs_scale and not isinstance(meaning.scale, Scale):
        raise InputError("A patch of a data set needs a scale of its own set; take it from the whole set first.")
    data: dict[str, Any] = {"encoding": meaning.encoding}
    if isinstance(meaning.scale, Scale) and meaning.needs_scale:
        data["scale"] = meaning.scale.to_json()
    if meaning.db_range is not None:
        data["db_range"] = list(meaning.db_range)
    return data


def meaning_from_json(data: Mapping[str, Any] | None) -> PixelMeaning:
    """Return the meaning that ``meaning_to_json`` gave; of ``None`` the studio's amplitude.

    Raises:
        InputError: it is not usable.
    """
    if data is None:
        return PixelMeaning("studio", None)
    unknown = set(data) - {"encoding", "scale", "db_range"}
    limits = data.get("db_range")
    if unknown or "encoding" not in data or not (limits is None or (isinstance(limits, list) and len(limits) == 2)):
        raise InputError(f"The pixel meaning {dict(data)} is not usable; give encoding, and scale or db_range.")
    scale = None if data.get("scale") is None else Scale.from_json(data["scale"])
    meaning = PixelMeaning(data["encoding"], scale, None if limits is None else (float(limits[0]), float(limits[1])))
    if meaning.needs_scale and scale is None:
        raise InputError(f"The pixel meaning {dict(data)} has no scale; add mean and std of the set.")
    return meaning


def _check(row: PatchRow, where: str) -> None:
    if not row.key or not row.key.replace("-", "").replace("_", "").isalnum() or not row.key.isascii():
        raise InputError(f"{where} has the key {row.key!r}; use letters, digits, '-' and '_' only.")
    if row.split not in SPLITS:
        raise InputError(f"{where} has the unknown split {row.split!r}; choose one of {', '.join(SPLITS)}.")
    if row.modality not in MODALITIES:
        raise InputError(f"{where} has the unknown modality {row.modality!r}; choose one of {', '.join(MODALITIES)}.")
    if not row.group:
        raise InputError(f"{where} has no group; name the ground that the patch lies on.")
    if min(row.height, row.width) < 1 or min(row.row, row.column) < 0:
        raise InputError(
            f"{where} is {row.width} x {row.height} pixels at row {row.row}, column {row.column}; correct it."
        )
    if not all(isinstance(caption, str) and caption.strip() for caption in row.captions):
        raise InputError(f"{where} has a caption that is no text or empty; remove it.")
    for file in (row.file, row.optical):
        if file is not None and not _stays(file):
            raise InputError(f"{where} names the file {file!r}, outside the manifest's folder; put the data below it.")
    if row.meaning is not None:
        try:
            meaning_from_json(row.meaning)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error


def _stays(file: str) -> bool:
    """Return whether a relative path names something below the folder (links that lie there are the user's own)."""
    path = PurePosixPath(file)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in file


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}); prepare the data again.") from error


# Parquet -----------------------------------------------------------------------------------------------------------


def _pyarrow(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError("Parquet needs the package pyarrow; pip install pyarrow, or use JSON lines.") from error


def _parquet(path: Path) -> Iterable[dict[str, Any]]:
    parquet, arrow = _pyarrow("pyarrow.parquet"), _pyarrow("pyarrow")
    try:
        with parquet.ParquetFile(path) as file:
            rows = [row for batch in file.iter_batches() for row in batch.to_pylist()]
    except (OSError, arrow.ArrowException) as error:
        raise InputError(f"{path} is no readable Parquet file ({error}); prepare the data again.") from error
    for row in rows:
        if isinstance(row.get("meaning"), str):
            row["meaning"] = _parsed(row["meaning"], f"{path.name}: meaning")
    return rows


def _parquet_bytes(rows: Sequence[PatchRow]) -> bytes:
    parquet, arrow = _pyarrow("pyarrow.parquet"), _pyarrow("pyarrow")
    text, number = arrow.string(), arrow.int64()
    kinds = {"captions": arrow.list_(text)} | dict.fromkeys(("height", "width", "row", "column"), number)
    schema = arrow.schema([(field.name, kinds.get(field.name, text)) for field in _FIELDS])
    data = [row.to_json() for row in rows]
    for entry in data:
        entry["meaning"] = None if entry["meaning"] is None else json.dumps(entry["meaning"])
    buffer = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(data, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()
