"""Figures of a grid: how long it takes, the order by a measure, and the colour of a figure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from sar_gen.grids import Cell, Grid, Place
from sar_gen.runs import RunRecord

# ---- time


def estimate(cells: Iterable[Cell], records: Iterable[RunRecord]) -> float | None:
    """Return how many seconds cells will take, by what earlier runs took; ``None`` where nothing is known.

    Runs of the same checkpoint tell best, then those on any one. Loading and compiling are not counted.
    """
    rates: dict[str, list[float]] = {}
    judging: list[float] = []
    for record in records:
        asked, seconds = record.request.to_json(), record.seconds
        if record.status != "done" or not seconds.get("generate") or None in (asked["steps"], asked["guidance"]):
            continue
        rates.setdefault(str(record.checkpoint.get("id")), []).append(
            seconds["generate"] / Cell((0, 0, 0), asked, "").work
        )
        if seconds.get("compare"):
            judging.append(seconds["compare"] / len(record.images or [0]))
    everything = [rate for found in rates.values() for rate in found]
    if not everything:
        return None
    total = 0.0
    for cell in cells:
        total += cell.work * _median(rates.get(cell.checkpoint) or everything)
        if cell.reference is not None and judging:
            total += _median(judging) * cell.request["count"]
    return total


def remaining(elapsed: float, share: float) -> float | None:
    """Return the seconds left when a share of the work took so long; ``None`` while that says nothing."""
    return elapsed * (1 - share) / share if share > 0.02 else None


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


# ---- sorting


def mean_ratio(grid: Grid, measure: str, places: Iterable[Place]) -> float | None:
    """Return the mean of a measure's ratio over places; ``None`` where none of them has it."""
    known = [value for place in places if (value := figure(grid, place, measure)) is not None]
    return sum(known) / len(known) if known else None


def figure(grid: Grid, place: Place, measure: str) -> float | None:
    """Return what a cell is sorted and coloured by: the ratio to the floor, the value where there is no floor."""
    made = grid.made[place]
    ratio = made.number(measure)
    return made.number(measure, "value") if ratio is None else ratio


def arrangement(grid: Grid, measure: str, page: int = 0, sort: bool = False) -> tuple[list[int], list[int]]:
    """Return the order of columns and rows of a page: as planned, or by their mean, nearest to real SAR first.

    Columns and rows without any measure come last.
    """
    columns, rows, _ = grid.plan.shape
    if not sort:
        return list(range(columns)), list(range(rows))

    def rank(places: list[Place]) -> float:
        mean = mean_ratio(grid, measure, places)
        return math.inf if mean is None else mean

    return (
        sorted(range(columns), key=lambda c: rank([(c, r, page) for r in range(rows)])),
        sorted(range(rows), key=lambda r: rank([(c, r, page) for c in range(columns)])),
    )


def ranking(grid: Grid, measure: str) -> list[Place]:
    """Return the places of all cells that have the measure, of every page, nearest to real SAR first."""
    known = [(value, place) for place in grid.cells if (value := figure(grid, place, measure)) is not None]
    return [place for _, place in sorted(known)]


# ---- colours: blue is as real patches are to each other, through pale at twice the floor to brown at four times.
# Told apart with every kind of colour blindness (blue against orange-brown), and the figure always stands beside it.

STOPS = ((1.0, (0x2B, 0x6C, 0xB0)), (1.5, (0x9C, 0xC4, 0xE4)), (2.0, (0xF3, 0xEB, 0xDC)), (3.0, (0xE8, 0xA0, 0x57)),
         (4.0, (0xA6, 0x4B, 0x0B)))  # fmt: skip
NO_FIGURE = "#8b949c"


def colour(ratio: float | None) -> str:
    """Return the colour of a ratio to the floor as ``#rrggbb``; grey where there is none."""
    if ratio is None or math.isnan(ratio):
        return NO_FIGURE
    value = min(max(ratio, STOPS[0][0]), STOPS[-1][0])
    for (low, first), (high, last) in pairwise(STOPS):
        if value <= high:
            share = (value - low) / (high - low)
            return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(first, last, strict=True))
    raise AssertionError("unreachable: the value is clipped")


def ink(background: str) -> str:
    """Return black or white, whichever is read better on a colour ``#rrggbb`` (WCAG relative luminance)."""
    parts = [int(background[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#101418"
