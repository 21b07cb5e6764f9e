"""Grids: one request varied along two axes, with pages for a third; each cell is a run like any other.

A grid is a folder ``<stamp>-grid-<slug>`` among the runs: ``grid.json`` says what was asked and how far each cell is,
and ``cells/`` holds a run for each cell that was made. ``grid.json`` is rewritten after each cell and before the cell
is shown, so a grid that was stopped or cut off goes on where it ended: only what is missing is made. A cell is made by
``Studio.generate`` from the same request as alone, so the same seed gives the same picture.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import threading
import time
import uuid
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sar_gen import checkpoints, references
from sar_gen.axes import AXES, Axis
from sar_gen.errors import InputError, SarGenError
from sar_gen.files import locked, write_atomic
from sar_gen.quality.nearness import MAIN_MEASURES, NEARNESS, nearness
from sar_gen.quality.report import finite
from sar_gen.request import (
    Done,
    Event,
    Failed,
    GenerationRequest,
    Judged,
    Saved,
    Selected,
    Step,
    Stopped,
    check_request,
)
from sar_gen.runs import (
    CELLS,
    RunImage,
    RunRecord,
    RunStore,
    library_versions,
    request_from_json,
    save_guide,
    slug,
    stamped_folder,
)
from sar_gen.settings import Settings

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from sar_gen.studio import Studio

GRID_FILE = "grid.json"
FORMAT = 1
AXES_NAMES = ("Columns", "Rows", "Pages")
_KEPT = ("value", "floor", "ratio", "floor_95", "unit")  # of a report's measure

Place = tuple[int, int, int]
"""Column, row and page of a cell, from 0."""
State = Literal["waiting", "done", "failed"]


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        request: the base, which every cell varies; what it leaves open is each cell's own default.
        axes: one to three: columns, rows, pages.
        reference: name of the set that the cells are judged with, or ``None``.
        keep: of each cell's patches, how many nearest ones are judged; ``None`` is all.
    """

    request: GenerationRequest
    axes: tuple[Axis, ...]
    reference: str | None = None
    keep: int | None = None

    @property
    def shape(self) -> Place:
        """Number of columns, rows and pages."""
        lengths = [len(axis.values) for axis in self.axes] + [1, 1, 1]
        return lengths[0], lengths[1], lengths[2]

    def places(self) -> Iterator[Place]:
        """Yield all places, page by page and row by row."""
        columns, rows, pages = self.shape
        return ((column, row, page) for page in range(pages) for row in range(rows) for column in range(columns))

    def label(self, place: Place) -> str:
        """Return what makes a cell different: ``Strategy Turbo, Seed 3``."""
        return ", ".join(f"{axis.title} {axis.labels[i]}" for axis, i in zip(self.axes, place, strict=False))


@dataclass(frozen=True)
class Cell:
    """One cell as it is to be made.

    Attributes:
        place: column, row and page.
        request: complete, as JSON data; the guides' pixels lie in the grid's folder.
        checkpoint: id that the request resolves to.
        reference: set to judge it with, ``None`` where none was asked for or it is not comparable.
        note: why it is not judged though a reference was asked for.
    """

    place: Place
    request: dict[str, Any]
    checkpoint: str
    reference: str | None = None
    note: str = ""

    @property
    def work(self) -> float:
        """How much there is to do, in evaluations of the denoiser of one pixel; the decoder counts as two."""
        asked = self.request
        branches = 2 if asked["guidance"] > 1 else 1
        evaluations = asked["steps"] * branches + 2
        return float(asked["count"] * evaluations * asked["width"] * asked["height"])


@dataclass(frozen=True)
class Made:
    """How far a cell is.

    Attributes:
        state: ``waiting``, ``done`` or ``failed``.
        run: name of its run below ``cells``.
        images: its patches: ``seed``, ``sha256`` of the amplitude, ``view`` and ``amplitude_file`` (names in the run).
        shown: which of them stands for the cell: the first one, or the nearest to the reference of those kept.
        seconds: that it took.
        measures: ``{name: {"value", "floor", "ratio", "floor_95", "unit"}}`` of the run's report, and ``nearness``.
        verdict: of the report.
        message: why it failed.
    """

    state: State = "waiting"
    run: str = ""
    images: tuple[dict[str, Any], ...] = ()
    shown: int = 0
    seconds: float = 0.0
    measures: dict[str, dict[str, Any]] = field(default_factory=dict)
    verdict: str = ""
    message: str = ""

    def number(self, measure: str, what: str = "ratio") -> float | None:
        """Return a figure of a measure; ``None`` where there is none."""
        found = self.measures.get(measure, {}).get(what)
        return None if found is None else float(found)


WAITING = Made()


@dataclass
class Grid:
    """A grid, as it lies in its folder.

    ``status`` is ``new``, ``running`` (which, once nobody makes it, means cut off), ``stopped`` or ``done``.
    """

    id: str
    folder: Path
    plan: Plan
    cells: dict[Place, Cell]
    made: dict[Place, Made]
    created: str
    status: str = "new"
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def waiting(self) -> list[Cell]:
        """The cells that are not made, in the order of the plan."""
        return [cell for place, cell in self.cells.items() if self.made[place].state != "done"]

    @property
    def finished(self) -> int:
        """How many cells are made."""
        return sum(made.state == "done" for made in self.made.values())

    @property
    def store(self) -> RunStore:
        """Where the runs of its cells are."""
        return RunStore(self.folder / CELLS)

    def picture(self, place: Place) -> Path | None:
        """Return the PNG that stands for a cell."""
        made = self.made[place]
        return self._file(made, "view") if made.images else None

    def amplitude_file(self, place: Place) -> Path | None:
        """Return the float32 amplitude of what stands for a cell."""
        made = self.made[place]
        return self._file(made, "amplitude_file") if made.images else None

    def _file(self, made: Made, what: str) -> Path:
        return self.folder / CELLS / made.run / str(made.images[made.shown][what])

    def record(self, place: Place) -> RunRecord:
        """Return the run of a cell.

        Raises:
            InputError: it is not made, or its folder has gone.
        """
        made = self.made[place]
        if not made.run:
            raise InputError(f"The cell {self.plan.label(place)} is not made yet.")
        return self.store.open(made.run)

    def request(self, cell: Cell) -> GenerationRequest:
        """Return a cell's request with the guides' pixels.

        Raises:
            InputError: the picture of a guide has gone from the grid's folder.
        """
        asked = request_from_json(cell.request, self.folder)
        if len(asked.guides) != len(cell.request["guides"]):
            raise InputError(f"The picture of a guide is gone from {self.folder}; start the grid anew.")
        return asked

    def measures(self) -> list[str]:
        """Return the measures that a cell has, the main ones first."""
        found = {name for made in self.made.values() for name in made.measures}
        main = [name for name in (NEARNESS, *MAIN_MEASURES) if name in found]
        others = [name for made in self.made.values() for name in made.measures if name not in main]
        return [*main, *dict.fromkeys(others)]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON data: the file of the grid, and its export."""
        plan = {
            "request": self.plan.request.to_json(),
            "axes": [axis.to_json() for axis in self.plan.axes],
            "reference": self.plan.reference,
            "keep": self.plan.keep,
        }
        cells = [
            {
                "place": list(place),
                "values": [axis.values[i] for axis, i in zip(self.plan.axes, place, strict=False)],
                **{name: getattr(cell, name) for name in ("request", "checkpoint", "reference", "note")},
                **dataclasses.asdict(self.made[place]),
            }
            for place, cell in self.cells.items()
        ]
        return {
            "format": FORMAT,
            "id": self.id,
            "created": self.created,
            "status": self.status,
            "synthetic": True,
            "plan": plan,
            "cells": cells,
            "versions": self.versions,
        }

    def write(self) -> None:
        """Write ``grid.json``, atomically.

        Raises:
            SarGenError: the folder cannot be written.
        """
        write_atomic(self.folder / GRID_FILE, json.dumps(self.to_json(), indent=1, sort_keys=True).encode())


# ---- planning


def check_plan(plan: Plan, settings: Settings) -> dict[Place, Cell]:
    """Check a plan and each of its cells before any work starts.

    Returns:
        The cells by place, page by page and row by row.

    Raises:
        InputError: one sentence on the first thing that is wrong, with the cell that it is wrong in.
    """
    if not 1 <= len(plan.axes) <= len(AXES_NAMES):
        raise InputError(f"A grid has one to three axes (columns, rows, pages); {len(plan.axes)} were given.")
    names = [axis.name if AXES[axis.name].once and not axis.of else f"{axis.name}:{axis.of}" for axis in plan.axes]
    for number, (axis, name) in enumerate(zip(plan.axes, names, strict=True)):
        if name in names[:number] and axis.name != "prompt":
            raise InputError(f"The axis {name.rstrip(':')} is given twice; put all of its values into one.")
    total = math.prod(plan.shape)
    if total > settings.max_cells:
        raise InputError(
            f"The grid has {' × '.join(str(n) for n in plan.shape[: len(plan.axes)])} = {total} cells; "
            f"choose {settings.max_cells} at most (SAR_GEN_MAX_CELLS)."
        )
    catalogue = checkpoints.catalogue(settings)
    reference = None if plan.reference is None else references.load_reference(plan.reference, settings)
    if plan.keep is not None and reference is None:
        raise InputError("The best patches are those nearest to a reference; choose a reference set.")
    if plan.keep is not None and not 1 <= plan.keep <= plan.request.count:
        raise InputError(f"{plan.keep} of {plan.request.count} patches cannot be kept.")
    cells: dict[Place, Cell] = {}
    for place in plan.places():
        asked, spec = _checked(plan, place, catalogue, settings)
        for axis in plan.axes:
            if idle := AXES[axis.name].idle(asked, axis):
                raise InputError(f"The axis {axis.name} would change nothing. {idle}")
        judged_by, note = plan.reference, ""
        if reference is not None:
            try:
                references.check_comparable(reference, spec.amplitude_encoding, spec.polarisation_of(asked.prompt))
            except InputError as error:
                judged_by, note = None, str(error)
        cells[place] = Cell(place, _plain(asked.to_json()), spec.id, judged_by, note)
    notes = {cell.note for cell in cells.values()}
    if reference is not None and "" not in notes:
        raise InputError(next(iter(notes)))
    return cells


def _checked(
    plan: Plan, place: Place, catalogue: dict[str, checkpoints.CheckpointSpec], settings: Settings
) -> tuple[GenerationRequest, checkpoints.CheckpointSpec]:
    """Return the complete request of a cell; axes are put in by the order of the table, not of the plan."""
    chosen = sorted(zip(plan.axes, place, strict=False), key=lambda pair: list(AXES).index(pair[0].name))
    request = plan.request
    try:
        for axis, index in chosen:
            request = axis.put(request, axis.values[index], catalogue)
        return check_request(request, catalogue, settings)
    except InputError as error:
        if place == (0, 0, 0):
            raise
        raise InputError(f"{error} (The cell with {plan.label(place)}.)") from error


def _plain(data: Any) -> Any:
    """Return JSON data as it comes back from a file."""
    return json.loads(json.dumps(data))


def in_order(cells: Iterable[Cell], loaded: str = "", catalogue: Mapping[str, Any] | None = None) -> list[Cell]:
    """Return cells so that bases, checkpoints, speed and size change least; within that as they were given.

    Args:
        cells: by the order of the plan.
        loaded: id of the checkpoint that is in memory, which comes first with what shares its base.
        catalogue: to tell which checkpoints share a base.
    """
    cells = list(cells)

    def base(checkpoint: str) -> str:
        spec = (catalogue or {}).get(checkpoint)
        return checkpoint if spec is None else str(spec.base)

    keys = [
        (base(cell.checkpoint), cell.checkpoint, str(cell.request["profile"]), str(cell.request["switches"]),
         f"{cell.request['width']}x{cell.request['height']}")
        for cell in cells
    ]  # fmt: skip
    seen: list[dict[str, int]] = [{} for _ in range(5)]
    for key in keys:
        for part, known in zip(key, seen, strict=True):
            known.setdefault(part, len(known))
    for part, known in zip((base(loaded), loaded), seen, strict=False):
        if part in known:
            known[part] = -1
    order = sorted(range(len(cells)), key=lambda i: tuple(seen[k][part] for k, part in enumerate(keys[i])))
    return [cells[i] for i in order]


def new_grid(plan: Plan, studio: Studio) -> Grid:
    """Check a plan and make its folder; no cell is made yet.

    Raises:
        InputError: the plan, or a cell of it, is wrong; nothing is left behind.
        SarGenError: the runs folder cannot be written.
    """
    cells = check_plan(plan, studio.settings)
    name = "-".join(part for part in ("grid", slug(plan.request.prompt)) if part)
    folder = stamped_folder(studio.store.folder, name)
    for place, guide in enumerate(plan.request.guides):
        save_guide(folder, guide, place)
    created = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    grid = Grid(folder.name, folder, plan, cells, dict.fromkeys(cells, WAITING), created, versions=library_versions())
    grid.write()
    return grid


# ---- reading


def open_grid(grid: str | Path, folder: Path | None = None) -> Grid:
    """Open a grid by its id below ``folder``, its own folder or its ``grid.json``.

    Cells whose run was finished but not listed any more before a power failure are found; cells whose files have gone
    wait again.

    Raises:
        InputError: there is no such grid, or it cannot be read.
    """
    path = Path(grid)
    if path.name == GRID_FILE:
        path = path.parent
    if not (path / GRID_FILE).is_file() and folder is not None:
        path = folder / str(grid)
    file = path / GRID_FILE
    if not file.is_file():
        raise InputError(
            f"There is no grid {str(grid)!r}{f' in {folder}' if folder else ''}; give its folder or its id."
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise InputError(f"{file} is of another version of the studio; start the grid anew.")
        plan = Plan(
            request_from_json(data["plan"]["request"], path),
            tuple(map(Axis.from_json, data["plan"]["axes"])),
            data["plan"]["reference"],
            data["plan"]["keep"],
        )
        cells, made = {}, {}
        for one in data["cells"]:
            column, row, page = one["place"]
            place = (column, row, page)
            cells[place] = Cell(place, one["request"], one["checkpoint"], one["reference"], one["note"])
            made[place] = Made(
                one["state"], one["run"], tuple(one["images"]), one["shown"], one["seconds"], one["measures"],
                one["verdict"], one["message"],
            )  # fmt: skip
        if list(cells) != list(plan.places()):
            raise KeyError("cells")
        opened = Grid(path.name, path, plan, cells, made, data["created"], data["status"], data["versions"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{file} cannot be read as a grid; it is damaged or was written by another program."
        ) from error
    _reconcile(opened)
    return opened


def _reconcile(grid: Grid) -> None:
    """Make ``made`` agree with what is on disk."""
    for place, made in grid.made.items():
        files = [grid.folder / CELLS / made.run / str(i[k]) for i in made.images for k in ("view", "amplitude_file")]
        if made.state == "done" and not (files and all(file.is_file() for file in files)):
            grid.made[place] = WAITING
    missing = {_key(cell.request): cell.place for cell in grid.waiting}
    if not missing or not (grid.folder / CELLS).is_dir():
        return
    known = {made.run for made in grid.made.values()}
    for folder in sorted((grid.folder / CELLS).iterdir()):
        if folder.name in known:
            continue
        try:
            data = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            found = missing.get(_key(data["request"])) if data["status"] in ("done", "stopped") else None
            if found is None or not (data["report"] or grid.cells[found].reference is None):
                continue
            record = grid.store.open(folder)
            if len(record.images) == record.request.count:  # its files are all there
                grid.made[found] = _made_of(record)
        except (OSError, ValueError, KeyError, TypeError):
            continue


def _key(request: Mapping[str, Any]) -> str:
    return json.dumps(request, sort_keys=True)


def list_grids(folder: Path, limit: int = 50) -> list[dict[str, Any]]:
    """Return what to choose a grid by, newest first; grids that cannot be read are passed over.

    Each is ``id``, ``created``, ``prompt``, ``axes`` (titles), ``done`` and ``cells`` (how many).
    """
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob(f"*/{GRID_FILE}"), reverse=True):
        if len(found) >= limit:
            break
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            found.append(
                {
                    "id": path.parent.name,
                    "created": data["created"],
                    "prompt": data["plan"]["request"]["prompt"],
                    "axes": [axis["title"] for axis in data["plan"]["axes"]],
                    "done": sum(cell["state"] == "done" for cell in data["cells"]),
                    "cells": len(data["cells"]),
                }
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


# ---- making


class Stopper:
    """Stops a grid at once, within a cell or between two; may be used from any thread."""

    def __init__(self) -> None:
        self.token = uuid.uuid4().hex
        self.asked = threading.Event()

    def stop(self, studio: Studio) -> None:
        """Stop the cell in the making and begin no other."""
        self.asked.set()
        studio.stop(self.token)


@dataclass(frozen=True)
class CellBegun:
    """A cell is begun: the ``number``-th of ``count`` that are made now. ``share`` of all this work is done."""

    cell: Cell
    number: int
    count: int
    share: float


@dataclass(frozen=True)
class CellEvent:
    """What the engine says of the cell in the making; ``share`` of all work is done."""

    cell: Cell
    event: Event
    share: float


@dataclass(frozen=True)
class CellDone:
    """A cell is on disk, with its measures; or it failed, and ``made.message`` says why."""

    cell: Cell
    made: Made
    share: float


@dataclass(frozen=True)
class GridEnded:
    """Nothing more is made: all is done, or it was stopped."""

    stopped: bool


GridEvent = CellBegun | CellEvent | CellDone | GridEnded


def run(studio: Studio, grid: Grid, stopper: Stopper | None = None, *, previews: bool = False) -> Iterator[GridEvent]:
    """Return an iterator that makes the missing cells; the last event is ``GridEnded``.

    Failed cells of before are tried again. A cell that fails does not end the grid.

    Raises:
        InputError: somebody else is making this grid; raised at once.
        SarGenError: while it runs: the folder cannot be written any more.
    """
    lock = locked(grid.folder, "This grid is being made already, on another page or command line; stop it there.")
    return _run(studio, grid, stopper or Stopper(), previews, lock)


def _run(
    studio: Studio, grid: Grid, stopper: Stopper, previews: bool, lock: BaseFileLock
) -> Generator[GridEvent, None, None]:
    try:
        todo = in_order(grid.waiting, studio.state.checkpoint, checkpoints.catalogue(studio.settings))
        total = sum(cell.work for cell in todo) or 1.0
        before = 0.0
        try:
            grid.status = "running"
            grid.write()
            for number, cell in enumerate(todo, 1):
                if stopper.asked.is_set():
                    break
                yield CellBegun(cell, number, len(todo), before / total)
                made = yield from _make(studio, grid, cell, stopper, previews, before / total, cell.work / total)
                if made is None:
                    break
                before += cell.work
                grid.made[cell.place] = made
                grid.write()
                yield CellDone(cell, made, before / total)
        finally:
            stopped = any(made.state == "waiting" for made in grid.made.values())
            grid.status = "stopped" if stopped else "done"
            with contextlib.suppress(SarGenError):  # on a full disk it stays as it is: cut off
                grid.write()
    finally:
        lock.release()
    yield GridEnded(stopped)


def _make(
    studio: Studio, grid: Grid, cell: Cell, stopper: Stopper, previews: bool, before: float, part: float
) -> Generator[GridEvent, None, Made | None]:
    """Make one cell; returns ``None`` when it was stopped before its end."""
    asked = cell.request
    keep = grid.plan.keep if cell.reference is not None else None
    saved: list[Saved] = []
    selected: tuple[int, ...] = ()
    report: dict[str, Any] | None = None
    last: Event | None = None
    share = before
    started = time.monotonic()
    try:
        events = studio.generate(
            grid.request(cell), reference=cell.reference, keep=keep, previews=previews, token=stopper.token,
            store=grid.store,
        )  # fmt: skip
    except InputError as error:
        return Made("failed", message=str(error))
    with contextlib.closing(events):  # type: ignore[type-var]  # whoever leaves the grid leaves the cell too
        for event in events:
            last = event
            if isinstance(event, Step):
                done = (event.first + event.size * event.step / max(event.steps, 1)) / max(asked["count"], 1)
                share = before + part * done
            elif isinstance(event, Saved):
                saved.append(event)
            elif isinstance(event, Selected):
                selected = tuple(event.selection.kept)
            elif isinstance(event, Judged):
                report = event.report.to_json()
            yield CellEvent(cell, event, share)
    if isinstance(last, Done | Stopped) and len(saved) == asked["count"]:  # a stop may come when all is there
        return _made(saved[0].view.parent.name, saved, time.monotonic() - started, report, selected)
    if isinstance(last, Stopped):
        return None
    return Made("failed", message=last.message if isinstance(last, Failed) else "It ended without a patch.")


def _made_of(record: RunRecord) -> Made:
    """Return a cell as its run tells of it."""
    selected = tuple((record.selection or {}).get("kept", ()))
    return _made(record.folder.name, record.images, sum(record.seconds.values()), record.report, selected)


def _made(
    run: str, saved: Sequence[Saved | RunImage], seconds: float, report: dict[str, Any] | None, selected: Sequence[int]
) -> Made:
    measures: dict[str, dict[str, Any]] = {}
    if report is not None:
        measures = {
            name: {key: measure[key] for key in _KEPT if key in measure}
            for name, measure in report["measures"].items()
        }
        ratios = {name: np.array([measures[name]["ratio"]], float) for name in MAIN_MEASURES if name in measures}
        mean = finite(nearness(ratios)[0]) if ratios else None
        measures[NEARNESS] = {"value": mean, "floor": 1.0, "ratio": mean, "floor_95": None, "unit": "floors"}
    images = tuple(
        {"seed": one.seed, "sha256": one.sha256, "view": one.view.name, "amplitude_file": one.amplitude_file.name}
        for one in saved
    )
    return Made(
        "done", run, images, selected[0] if selected else 0, round(seconds, 3), _plain(measures),
        "" if report is None else report["verdict"],
    )  # fmt: skip
