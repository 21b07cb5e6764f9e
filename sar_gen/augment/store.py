"""The one writer of a set's folder: patches, masks, journal, shards; at the end manifest and labels.

    plan.toml              the plan as it was given
    set.json               what the set is bound to; another plan is refused
    requests.jsonl         the journal: one line a slot
    patches/CLASS/KEY.png  16-bit grey amplitude (or .npy)
    masks/CLASS/KEY.png    the guide of a patch, where it had one
    shards/SPLIT-N.tar     WebDataset, written when all of its slots are decided
    manifest.jsonl, labels.csv, palettes.json, README.md, card.toml, report.json, report.html    of a finished set

Everything but the journal appears whole or not at all, and a killed process loses at most the unit at work.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sar_gen.augment.journal import Journal, Line
from sar_gen.augment.maker import Decision
from sar_gen.augment.recipe import Recipe, differences
from sar_gen.augment.slots import Slots
from sar_gen.errors import InputError, SarGenError
from sar_gen.files import describe_os_error, locked, write_atomic, write_lines
from sar_gen.palettes import load_palette
from sar_gen.runs import library_versions
from sar_gen.training.manifest import MANIFEST, PatchRow, row_from_json
from sar_gen.training.shards import read_index, write_index, write_shard

JOURNAL, BOUND, LABELS, PALETTES, SHARDS = "requests.jsonl", "set.json", "labels.csv", "palettes.json", "shards"
FORMAT = 1
UNDECIDED, MADE, MISSING = 0, 1, 2


class Store:
    """A set's folder, locked against other processes while it is open.

    Args:
        folder: of the set; made where it is not there.
        recipe: of the set.
        plan_text: the plan as the user wrote it, kept beside.

    Attributes:
        state: ``(total,)`` uint8: ``UNDECIDED``, ``MADE`` or ``MISSING``.
        rejected: ``(total,)`` uint16, rejected attempts.
        versions: of the libraries that the set was made with, the first ones first.

    Raises:
        InputError: another process writes the folder, it holds the set of another plan, or something else.
        SarGenError: it cannot be written.
    """

    def __init__(self, folder: Path, recipe: Recipe, plan_text: str) -> None:
        self.folder, self.recipe, self.slots = folder, recipe, Slots(recipe)
        if folder.is_dir() and not (folder / BOUND).is_file() and {path.name for path in folder.iterdir()} - {".lock"}:
            raise InputError(f"{folder} is not empty and holds no augmentation set; choose another out folder.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SarGenError(describe_os_error(folder, error)) from error
        self._lock = locked(folder, f"Another process writes {folder}; wait for it, or stop it.")
        try:
            self._open(plan_text)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, plan_text: str) -> None:
        total = self.slots.total
        self.kinds = self.slots.kinds()
        self.state = np.zeros(total, np.uint8)
        self.rejected = np.zeros(total, np.uint16)
        self.versions = self._bind(plan_text)
        self.journal = Journal(self.folder / JOURNAL, total, self._usable)
        self.journal_dropped = self.journal.dropped
        size = self.recipe.plan.shards
        self._left = np.zeros(0, np.int64)
        if size:
            self._left = np.add.reduceat((self.state == UNDECIDED).astype(np.int64), np.arange(0, total, size))
            self._index = read_index(self.folder / SHARDS)
            for number in np.flatnonzero(self._left == 0):
                self._shard(int(number))

    @property
    def new(self) -> bool:
        """Whether nothing is decided yet."""
        return not self.journal.decided.any()

    @property
    def finished(self) -> bool:
        """Whether every slot is decided."""
        return bool(self.journal.decided.all())

    def close(self) -> None:
        """Let others write the folder."""
        self.journal.close()
        self._lock.release()

    def add(self, decisions: Sequence[Decision]) -> int:
        """Write what became of some slots; those that are decided already are passed over.

        Returns:
            How many were new.

        Raises:
            SarGenError: the folder cannot be written; what was not written is made again by the next call.
        """
        fresh = [one for one in decisions if self.state[one.slot] == UNDECIDED]
        lines = [self._write(one) for one in fresh]
        self.journal.add(lines)
        for line in lines:
            self._note(line)
        size = self.recipe.plan.shards
        if size:
            for one in fresh:
                self._left[one.slot // size] -= 1
            for number in sorted({one.slot // size for one in fresh}):
                if not self._left[number]:
                    self._shard(number)
        return len(fresh)

    def finish(self) -> None:
        """Write manifest and labels of a set that is decided, all in the order of slots.

        Raises:
            SarGenError: the folder cannot be written.
        """
        assert self.finished
        self.journal.sort()
        write_lines(self.folder / MANIFEST, (_json_line(row.to_json()) for row in self._rows(self.made())))
        write_lines(self.folder / LABELS, self._labels())
        palettes = self._palettes()
        if palettes:
            write_atomic(self.folder / PALETTES, json.dumps(palettes, indent=1).encode())

    def made(self, label: int | None = None) -> np.ndarray:
        """Return the slots that have a patch, in order; of one class only where its label is given."""
        chosen = self.state == MADE
        return np.flatnonzero(chosen if label is None else chosen & (self.kinds == label))

    def counts(self) -> dict[str, dict[str, int]]:
        """Return by class: patches asked for, made, missing, not decided yet, and rejected attempts."""
        found = {}
        for one in self.recipe.classes:
            own = self.kinds == one.label
            states = np.bincount(self.state[own], minlength=3)
            found[one.name] = {
                "asked": one.count, "made": int(states[MADE]), "missing": int(states[MISSING]),
                "left": int(states[UNDECIDED]), "rejected": int(self.rejected[own].sum(dtype=np.int64)),
            }  # fmt: skip
        return found

    def row(self, line: Line) -> PatchRow:
        """Return the row of the manifest that a line of the journal stands for."""
        guides = [mask["sha256"][:16] for mask in line["masks"]]
        row = PatchRow(
            key=line["key"], file=line["file"], height=line["height"], width=line["width"],
            split=self.recipe.plan.split, group="-".join(("guide", *guides)) if guides else line["key"],
            captions=(line["request"]["prompt"],), terrain=line["class"], polarisation=line["polarisation"],
            source=f"synthetic, {self.recipe.plan.name}",
        )  # fmt: skip
        return row_from_json(row.to_json(), f"{JOURNAL}: {row.key}")

    def _bind(self, plan_text: str) -> list[dict[str, str]]:
        """Check that the folder is of this recipe, or make it so; return the library versions."""
        path = self.folder / BOUND
        now = {"format": FORMAT, "bound": self.recipe.bound, "weights": self.recipe.weights}
        now = json.loads(json.dumps(now))
        versions = {name: text for name, text in library_versions().items() if name != "gradio"}
        journal = self.folder / JOURNAL
        if path.is_file() and journal.is_file() and journal.stat().st_size:
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise SarGenError(f"{path} cannot be read ({error}); the set cannot be gone on with.") from error
            found = differences(before["bound"], now["bound"])
            if before["format"] != FORMAT or found:
                said = "; ".join(found[:4]) + (f"; and {len(found) - 4} more" if len(found) > 4 else "")
                raise InputError(
                    f"{self.folder} holds the set of another plan ({said or 'an older form'}); choose another out "
                    "folder, or give the plan as it was."
                )
            known = list(before["versions"])
            if versions in known:
                return known
            versions_now = [*known, versions]
        else:
            versions_now = [versions]
            write_atomic(self.folder / "plan.toml", plan_text.encode())
        write_atomic(path, json.dumps(now | {"versions": versions_now}, indent=1).encode())
        return versions_now

    def _usable(self, line: Line) -> bool:
        """Note a line of the journal, where what it names is there."""
        if line["made"]:
            for file in (line, *line["masks"]):
                try:
                    if os.stat(self.folder / file["file"]).st_size != file["bytes"]:
                        return False
                except OSError:
                    return False
        self._note(line)
        return True

    def _note(self, line: Line) -> None:
        self.state[line["slot"]] = MADE if line["made"] else MISSING
        self.rejected[line["slot"]] = len(line["rejected"])

    def _write(self, decision: Decision) -> Line:
        """Write the files of a decision and return its line."""
        line = decision.line
        if decision.data is None:
            return line
        folder, key = self.recipe.classes[self.kinds[decision.slot]].folder, line["key"]
        file = f"patches/{folder}/{key}.{self.recipe.plan.pixels}"
        self._put(file, decision.data)
        masks = []
        for number, (facts, data) in enumerate(zip(line["masks"], decision.masks, strict=True), 1):
            mask = f"masks/{folder}/{key}{'' if number == 1 else f'-{number}'}.png"
            self._put(mask, data)
            masks.append({**facts, "file": mask, "bytes": len(data)})
        return {**line, "file": file, "bytes": len(decision.data), "masks": masks}

    def _put(self, name: str, data: bytes) -> None:
        """Write a file, wholly there or not at all; not synchronised: what is lost is seen and made again."""
        path = self.folder / name
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise SarGenError(describe_os_error(path, error)) from error

    def _rows(self, slots: Iterable[int]) -> Iterator[PatchRow]:
        return (self.row(self.journal.line(int(slot))) for slot in slots)

    def _shard(self, number: int) -> None:
        """Write a shard whose slots are all decided, unless it is there."""
        size = self.recipe.plan.shards
        name = f"{self.recipe.plan.split}-{number:06d}.tar"
        slots = np.arange(number * size, min((number + 1) * size, self.slots.total))
        slots = slots[self.state[slots] == MADE]
        if name in self._index or not len(slots):
            return
        lines: dict[str, Line] = {}

        def rows() -> Iterator[PatchRow]:
            for line in self.journal.lines(slots):
                lines.clear()
                lines[line["key"]] = line
                yield self.row(line)

        def beside(row: PatchRow) -> dict[str, bytes]:
            line = lines[row.key]
            found = {".cls": str(self.kinds[line["slot"]]).encode()}
            for place, mask in enumerate(line["masks"], 1):
                suffix = ".mask.png" if place == 1 else f".mask{place}.png"
                found[suffix] = (self.folder / mask["file"]).read_bytes()
            return found

        folder = self.folder / SHARDS
        self._index[name] = write_shard(folder / name, rows(), self.folder, beside)
        write_index(folder, [self._index[shard] for shard in sorted(self._index)])

    def _labels(self) -> Iterator[bytes]:
        yield _csv_line(("key", "file", "label", "class", "mask", "mask_palette"))
        for slot in self.made():
            line = self.journal.line(int(slot))
            masks = line["masks"]
            yield _csv_line((
                line["key"], line["file"], int(self.kinds[slot]), line["class"],
                " ".join(mask["file"] for mask in masks), " ".join(mask.get("palette", "-") for mask in masks),
            ))  # fmt: skip

    def _palettes(self) -> dict[str, list[dict[str, Any]]]:
        """Return what the numbers in masks stand for."""
        names: set[str] = set()
        if any(one.guides for one in self.recipe.classes):
            for line in self.journal.lines(self.made()):
                names |= {mask["palette"] for mask in line["masks"] if "palette" in mask}
        return {
            name: [
                {"number": number, "name": entry.label, "colour": list(entry.colour), "code": entry.code}
                for number, entry in enumerate(load_palette(name).classes)
            ]
            for name in sorted(names)
        }


def _json_line(data: Any) -> bytes:
    return json.dumps(data).encode() + b"\n"


def _csv_line(cells: Sequence[Any]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue().encode()
