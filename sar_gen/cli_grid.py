"""Grids on the command line: ``generate --grid`` and ``generate --resume-grid``."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from sar_gen import grid_export, grid_figures, grids
from sar_gen.axes import parse_axis
from sar_gen.cli_common import Progress, print_json, table
from sar_gen.errors import InputError
from sar_gen.quality.wording import title_of
from sar_gen.request import GenerationRequest, Loading, Notice, Queued, Step
from sar_gen.studio import Studio

GridOption = Annotated[
    list[str] | None,
    typer.Option(
        "--grid",
        metavar="AXIS=VALUES",
        help="Make a grid: columns, then rows, then pages, as in --grid strategy=base,turbo --grid seed=1..4. Axes: "
        "checkpoint, strategy, profile, prompt (the text that is searched, then what takes its place), negative, "
        "seed, steps, guidance, scheduler, size, strength, guide-weight and more.",
    ),
]
ResumeOption = Annotated[
    str | None, typer.Option(help="Make the missing cells of a grid, by its id or folder; the prompt is left out.")
]


def make_grid(
    studio: Studio,
    request: GenerationRequest,
    axes: Sequence[str],
    reference: str | None,
    keep: int | None,
    as_json: bool,
) -> None:
    """Make a new grid, show its progress and write its exports.

    Raises:
        InputError: an axis or a cell is wrong; nothing is made.
        SarGenError: the runs folder cannot be written.
    """
    plan = grids.Plan(request, tuple(map(parse_axis, axes)), reference, keep)
    _make(studio, grids.new_grid(plan, studio), as_json)


def go_on_with_grid(studio: Studio, name: str, prompt: str, as_json: bool) -> None:
    """Make the missing cells of a grid, show the progress and write the exports anew.

    Raises:
        InputError: there is no such grid, somebody is making it, or a prompt was given.
    """
    if prompt:
        raise InputError("A grid goes on with what it was begun with; leave out the prompt, or start a new grid.")
    _make(studio, grids.open_grid(name, studio.store.folder), as_json)


def _make(studio: Studio, grid: grids.Grid, as_json: bool) -> None:
    progress = Progress()
    started = time.monotonic()
    events = grids.run(studio, grid)
    if not as_json:
        missing, total = len(grid.waiting), len(grid.cells)
        print(f"{grid.folder}  {total} cells{'' if missing == total else f', {total - missing} of them made before'}")
    try:
        for event in events:
            if isinstance(event, grids.CellBegun):
                where = f"Cell {event.number} of {event.count}, {grid.plan.label(event.cell.place)}"
                progress.show(where)
            elif isinstance(event, grids.CellEvent):
                _show(progress, event, where, time.monotonic() - started)
            elif isinstance(event, grids.CellDone) and not as_json:
                progress.show("")
                print(_line(grid, event), flush=True)
    except KeyboardInterrupt:
        progress.say(f"The grid goes on with --resume-grid {grid.folder}")
        raise
    progress.show("")
    measure = grids.NEARNESS if grids.NEARNESS in grid.measures() else next(iter(grid.measures()), grids.NEARNESS)
    exports = grid_export.write_exports(grid, measure)
    failed = [(place, made) for place, made in grid.made.items() if made.state == "failed"]
    for place, made in failed:
        print(f"{grid.plan.label(place)} has no patch: {made.message}", file=sys.stderr)
    if as_json:
        data = grid.to_json()
        print_json({"folder": str(grid.folder), "files": {name: str(path) for name, path in exports.items()}, **data})
    else:
        _print_ranking(grid)
        for path in exports.values():
            print(path)
    if failed and not grid.finished:
        raise InputError("No cell could be made; the sentences above say why.")


def _show(progress: Progress, event: grids.CellEvent, where: str, elapsed: float) -> None:
    said = event.event
    if isinstance(said, Step):
        left = grid_figures.remaining(elapsed, event.share)
        aside = "" if left is None else f", {left:.0f} s left"
        progress.show(f"{where}: step {said.step} of {said.steps}{aside}")
    elif isinstance(said, Loading):
        progress.show(f"{where}: {said.message}")
    elif isinstance(said, Queued):
        progress.show(f"{where}: waiting, {said.position} before it")
    elif isinstance(said, Notice):
        progress.say(said.message)


def _line(grid: grids.Grid, event: grids.CellDone) -> str:
    made, place = event.made, event.cell.place
    label = grid.plan.label(place)
    if made.state == "failed":
        return f"{label}: failed"
    near, picture = made.number(grids.NEARNESS), grid.picture(place)
    assert picture is not None
    return f"{label}: {picture.relative_to(grid.folder)}" + ("" if near is None else f"  {near:.2f} floors")


RANKED = 10


def _print_ranking(grid: grids.Grid) -> None:
    """Print the cells that are nearest to real SAR, with their main measures over the floors."""
    places = grid_figures.ranking(grid, grids.NEARNESS)
    if not places:
        return
    names = [name for name in (grids.NEARNESS, *grids.MAIN_MEASURES) if name in grid.measures()]
    rows = [("cell", *map(title_of, names))]
    for place in places[:RANKED]:
        ratios = (grid.made[place].number(name) for name in names)
        rows.append((grid.plan.label(place), *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)))
    table(rows)
    if len(places) > RANKED:
        print(f"{len(places) - RANKED} more cells are farther from real SAR (grid.json has all).")
