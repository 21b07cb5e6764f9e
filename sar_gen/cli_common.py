"""What the command groups share: options, and how results are printed."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal

import typer

from sar_gen.amplitude import Scale
from sar_gen.errors import InputError
from sar_gen.patches import PixelMeaning
from sar_gen.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
PatchEncoding = StrEnum("PatchEncoding", ["studio", "amplitude", "intensity", "db"])
Encoding = Annotated[
    PatchEncoding | None,
    typer.Option(
        help="What the pixels of files that the studio did not write mean: studio amplitude (already divided by "
        "mean + 3 std), linear amplitude, intensity, or decibels. The last three are scaled by --scale, or by one "
        "mean and std for the whole folder."
    ),
]
ScaleOption = Annotated[
    tuple[float, float] | None, typer.Option("--scale", help="Mean and std of linear amplitude, in the files' unit.")
]
RangeOption = Annotated[
    tuple[float, float] | None,
    typer.Option("--db-range", help="Decibels at grey 0 and at full scale, for 8 or 16-bit files in decibels."),
]
BandOption = Annotated[str | None, typer.Option("--band", help="Band of a raster: its number from 1, or its name.")]
NodataOption = Annotated[
    float | None, typer.Option("--nodata", help="Value of pixels without data, beside what the file says.")
]


def settings_with(**given: Any) -> Settings:
    """Return the environment's settings for work on this machine, with the options that were given: not ``None``."""
    return dataclasses.replace(
        Settings.from_env().here(), **{name: value for name, value in given.items() if value is not None}
    )


def print_json(data: Any) -> None:
    """Print a document on stdout."""
    print(json.dumps(data, indent=1, default=str))


def table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows as aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class Progress:
    """One changing line on stderr when it is a terminal, nothing otherwise."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Replace the line."""
        if self.live:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.show("")
        print(text, file=sys.stderr)


class Rate:
    """Progress of a long count on one changing line: phase, done, rate of the last seconds, time left.

    Args:
        phases: what is done, in order; a count that starts anew is the next phase.
        unit: what is counted.
    """

    WINDOW = 10.0  # seconds over which the rate is taken, so that results that were kept do not count as speed

    def __init__(self, phases: Sequence[str], unit: str) -> None:
        self.progress = Progress()
        self.phases = list(phases)
        self.unit = unit
        self.seen: deque[tuple[float, int]] = deque()
        self.shown = 0.0

    def show(self, done: int, total: int) -> None:
        """Show the count; at most ten times a second."""
        now = time.monotonic()
        if self.seen and done < self.seen[-1][1]:
            self.seen.clear()
            self.phases = self.phases[1:] or self.phases
        self.seen.append((now, done))
        while self.seen[0][0] < now - self.WINDOW:
            self.seen.popleft()
        if now - self.shown > 0.1 or done == total:
            self.shown = now
            self.progress.show(self.text(total))

    def text(self, total: int) -> str:
        """Return the line."""
        (start, before), (now, done) = self.seen[0], self.seen[-1]
        line = f"{self.phases[0]}: {done:,} of {total:,} {self.unit}"
        if now - start < 0.5 or done == before:
            return line
        rate = (done - before) / (now - start)
        return f"{line}, {rate:.3g} a second, {(total - done) / rate:.0f} s left"

    def end(self) -> None:
        """Clear the line."""
        self.progress.show("")


def stopped_by_signals() -> threading.Event:
    """Return what is set when the user (Ctrl+C) or the machine (SIGTERM) wants the end; a second one ends it."""
    asked = threading.Event()

    def ask(number: int, _: Any) -> None:
        asked.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    return asked


def pixel_meaning(
    encoding: PatchEncoding | None,
    scale: tuple[float, float] | None,
    db_range: tuple[float, float] | None,
    nodata: float | None = None,
) -> PixelMeaning | None:
    """Return what the options say of the pixels; ``None`` leaves it to what the studio wrote into the files."""
    if encoding is None:
        if scale is not None or db_range is not None or nodata is not None:
            raise InputError(
                "A scale, a decibel range or a value for no data needs an encoding; add --encoding amplitude, "
                "intensity or db."
            )
        return None
    known: Scale | Literal["pool"] = "pool" if scale is None else Scale(*scale, source="given by the user")
    return PixelMeaning(encoding.value, known, db_range, nodata=nodata)  # type: ignore[arg-type]


def band_of(text: str | None) -> int | str | None:
    """Return a band as its number, where the option holds one, or as its name."""
    return int(text) if text is not None and text.isdigit() else text


def plain(value: Any) -> str:
    """Return a value as one line of text."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(plain(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
