"""One line a slot: what was asked for, what came of it, and why attempts were rejected. The truth about a set.

A line is written after the patch's file, so that after a crash there is at worst one line that was cut off, which is
removed, or a file without its line, which is made again with the same bytes. A line whose file is gone or has another
size (a power failure) is removed too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import SarGenError
from sar_gen.files import describe_os_error, write_lines

Line = dict[str, Any]


class Journal:
    """The lines of ``total`` slots, in the order in which they were decided; kept in memory is where each begins.

    Args:
        path: of the file; it is made where there is none.
        total: slots.
        usable: whether a line can be kept: what it names is there.

    Attributes:
        places: ``(total,)`` int64, first byte of each slot's line; -1 where it is not decided yet.
        dropped: lines that were there but could not be kept.

    Raises:
        SarGenError: the file cannot be written.
    """

    def __init__(self, path: Path, total: int, usable: Callable[[Line], bool]) -> None:
        self.path = path
        self.places: NDArray[np.int64] = np.full(total, -1, np.int64)
        try:
            path.touch()
            self.dropped = self._scan(usable)
            if self.dropped:
                kept = np.sort(self.places[self.places >= 0])
                with path.open("rb") as file:
                    write_lines(path, (_line_at(file, int(place)) for place in kept))
                self.places.fill(-1)
                self._scan(usable)
            self._end = path.stat().st_size
            self._file = path.open("r+b")
        except OSError as error:
            raise SarGenError(describe_os_error(path, error)) from error

    @property
    def decided(self) -> NDArray[np.bool_]:
        """``(total,)``: whether each slot is decided."""
        return self.places >= 0

    def add(self, lines: Sequence[Line]) -> None:
        """Add the lines of slots that are not decided yet; they are on disk when this returns.

        Raises:
            SarGenError: the file cannot be written.
        """
        places = []
        text = b""
        for line in lines:
            assert self.places[line["slot"]] < 0, "a slot is decided once"
            places.append(self._end + len(text))
            text += json.dumps(line, allow_nan=False).encode() + b"\n"
        try:
            self._file.seek(self._end)
            self._file.write(text)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise SarGenError(describe_os_error(self.path, error)) from error
        self._end += len(text)
        for line, place in zip(lines, places, strict=True):
            self.places[line["slot"]] = place

    def line(self, slot: int) -> Line:
        """Return the line of a slot that is decided."""
        line: Line = json.loads(_line_at(self._file, int(self.places[slot])))
        return line

    def lines(self, slots: Sequence[int] | NDArray[np.int64]) -> Iterator[Line]:
        """Yield the lines of slots that are decided."""
        return (self.line(int(slot)) for slot in slots)

    def sort(self) -> None:
        """Rewrite the file in the order of slots: the order of arrival says nothing of the set.

        Raises:
            SarGenError: the file cannot be written.
        """
        slots = np.flatnonzero(self.decided)
        starts = self.places[slots]
        if (np.diff(starts) > 0).all():
            return
        write_lines(self.path, (_line_at(self._file, int(place)) for place in starts))
        self._file.close()
        self._file = self.path.open("r+b")
        self.places.fill(-1)
        self._scan(lambda _: True)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _scan(self, usable: Callable[[Line], bool]) -> int:
        """Note where the lines begin, and return how many cannot be kept."""
        dropped = place = 0
        with self.path.open("rb") as file:
            for text in file:
                line = _parsed(text)
                slot = line.get("slot", -1) if line else -1
                if line and 0 <= slot < len(self.places) and self.places[slot] < 0 and usable(line):
                    self.places[slot] = place
                else:
                    dropped += 1
                place += len(text)
        return dropped


def _line_at(file: Any, place: int) -> bytes:
    file.seek(place)
    text: bytes = file.readline()
    return text


def _parsed(text: bytes) -> Line | None:
    """Return a whole line; ``None`` of one that was cut off or is damaged."""
    if not text.endswith(b"\n"):
        return None
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("slot"), int) else None
