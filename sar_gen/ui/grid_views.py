"""The Grid tab as HTML: pure functions of a grid, every text escaped; pictures are addresses of the cells' files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sar_gen.grid_figures import STOPS, arrangement, colour, ink, mean_ratio, ranking
from sar_gen.grid_sheet import fixed_line, title_line
from sar_gen.grids import NEARNESS, Grid, Made, Place
from sar_gen.quality.nearness import MAIN_MEASURES
from sar_gen.quality.wording import NAMES, meaning_of, number, title_of
from sar_gen.request import GenerationRequest
from sar_gen.ui import views

OF_SETS = ("kernel_distance", "density", "coverage")  # not of a cell's report
MEASURES = [
    (title_of(name), name) for name in dict.fromkeys((NEARNESS, *MAIN_MEASURES, *NAMES)) if name not in OF_SETS
]
"""What a grid can be coloured and sorted by, the main measures first."""
PLANNED, BEST, LIST = "planned", "best", "list"
SORTS = [("As planned", PLANNED), ("Nearest first", BEST), ("Ranking", LIST)]
EMPTY = (
    '<div class="sg-blank"><h3>Lay pictures side by side</h3><p>Choose what varies along columns and rows: seeds, '
    "strategies, guidance, words of the prompt. Everything else is taken from the form in Generate. Each cell "
    "shows how far it is from real SAR, and one click opens it in Generate.</p></div>"
)


def address(path: Path) -> str:
    """Return where the page finds a file of the runs folder."""
    return f"gradio_api/file={quote(str(path))}"


def key(place: Place) -> str:
    """Return a place as the page sends it back."""
    return "-".join(map(str, place))


def place_of(text: str) -> Place:
    """Return the place that ``key`` wrote."""
    column, row, page = map(int, text.split("-"))
    return column, row, page


# ---- the form


def base(request: GenerationRequest, title: str, strategy: str, random: bool, judged: str, own: bool) -> str:
    """Return what every cell has in common, as it stands in Generate.

    Args:
        request: of the form.
        title: of its checkpoint.
        strategy: of its checkpoint, for people.
        random: whether its seed is drawn.
        judged: title of the reference set, empty where there is none.
        own: whether steps and guidance are each strategy's own.
    """
    steps = "each one's own steps and guidance" if own else f"{request.steps} steps, guidance {request.guidance:g}"
    rows = [
        ("Prompt", request.prompt or "empty: write one in Generate"),
        ("Checkpoint", f"{title}, {strategy}"),
        ("Seed", "random, one for all cells" if random else str(request.seed)),
        ("Steps", steps),
        ("Guides", ", ".join(guide.name for guide in request.guides)),
        ("Patches", f"{request.count} a cell, one is shown" if request.count > 1 else ""),
        ("Judged by", judged or "nothing: choose a reference set in Generate"),
    ]
    return views.properties(rows)


def size_line(columns: int, rows: int, pages: int, seconds: float | None) -> str:
    """Return how large a planned grid is and how long it will take."""
    cells = columns * rows * pages
    shape = " × ".join(str(n) for n in (columns, rows, *([pages] if pages > 1 else [])))
    took = "time unknown until a first run" if seconds is None else f"about {views.duration(seconds)}"
    return f'<p class="sg-line"><b>{cells} cell{"s" if cells != 1 else ""}</b> ({shape}) · {took}</p>'


# ---- the grid


def heading(grid: Grid, page: int) -> str:
    """Return what the grid shows, and how much of it is there."""
    count = f"{grid.finished} of {len(grid.cells)} cells"
    failed = sum(made.state == "failed" for made in grid.made.values())
    if failed:
        count += f", {failed} failed"
    axis = grid.plan.axes[2] if len(grid.plan.axes) > 2 else None
    third = f" · {axis.title} {axis.labels[page]}" if axis else ""
    return (
        f'<div class="sg-gridhead"><b title="{escape(title_line(grid))}">{escape(title_line(grid))}</b>'
        f"<span>{escape(fixed_line(grid) + third)} · {escape(count)}</span></div>"
    )


def legend(grid: Grid, measure: str) -> str:
    """Return the scale of colours; nothing where no cell has figures."""
    if not any(made.measures for made in grid.made.values()):
        return ""
    low, high = STOPS[0][0], STOPS[-1][0]
    stops = ", ".join(f"{colour(at)} {(at - low) / (high - low):.0%}" for at, _ in STOPS)
    ticks = "".join(f"<span>{text}</span>" for text in ("1 × floor", "2 ×", "3 ×", "4 × or more"))
    said = (
        f"{title_of(measure)}: {meaning_of(measure)}. 1 × is what real patches differ by; more is farther from real."
    )
    return (
        f'<div class="sg-ramp" title="{escape(said)}"><i style="background: linear-gradient(90deg, {stops})"></i>'
        f"<div>{ticks}</div></div>"
    )


def body(
    grid: Grid, measure: str, sort: str, page: int, running: Place | None = None, selected: Place | None = None
) -> str:
    """Return the cells: a table of one page, or all of them as a ranking.

    Args:
        grid: as it is now.
        measure: that colours and sorts.
        sort: ``PLANNED``, ``BEST`` (columns and rows by their means) or ``LIST``.
        page: of the third axis.
        running: the cell in the making.
        selected: the cell whose details are shown.
    """
    if sort == LIST:
        return _ranking(grid, measure, selected)
    columns, rows = arrangement(grid, measure, page, sort == BEST)
    first = grid.plan.axes[0]
    second = grid.plan.axes[1] if len(grid.plan.axes) > 1 else None
    head = "".join(
        f'<th scope="col"><b>{escape(first.labels[c])}</b>{_mean(grid, measure, [(c, r, page) for r in rows])}</th>'
        for c in columns
    )
    corner = f'<td class="corner"><span>{escape(first.title)} →</span>'
    corner += f"<span>{escape(second.title)} ↓</span></td>" if second else "</td>"
    lines = ""
    for row in rows:
        places = [(column, row, page) for column in columns]
        side = f"<b>{escape(second.labels[row])}</b>{_mean(grid, measure, places)}" if second else ""
        cells = "".join(f"<td>{cell(grid, place, measure, running, selected)}</td>" for place in places)
        lines += f'<tr><th scope="row">{side}</th>{cells}</tr>'
    return (
        f'<div class="sg-sheet" style="--columns: {len(columns)}; --rows: {len(rows)}; --aspect: {_aspect(grid)}">'
        f"<table><thead><tr>{corner}{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _aspect(grid: Grid) -> str:
    """Return height over width of the first cell; all are shown in boxes of that shape."""
    request = next(iter(grid.cells.values())).request
    return f"{request['height'] / request['width']:.4g}"


def _mean(grid: Grid, measure: str, places: Sequence[Place]) -> str:
    mean = mean_ratio(grid, measure, places)
    return f'<small title="mean of its cells">{mean:.2f} ×</small>' if mean is not None and len(places) > 1 else ""


def cell(
    grid: Grid, place: Place, measure: str, running: Place | None, selected: Place | None, label: str = ""
) -> str:
    """Return one cell: its picture and figure, or that it waits, is in the making or has failed."""
    made, file = grid.made[place], grid.picture(place)
    name = grid.plan.label(place)
    caption = f"<em>{escape(label)}</em>" if label else ""
    if file is None:
        if place == running:
            state, inner = "running", "<span>in the making</span><i></i>"
        elif made.state == "failed":
            state, inner = "failed", f"<span>{escape(made.message)}</span>"
        else:
            state, inner = "waiting", ""
        return (
            f'<div class="sg-cell {state}" title="{escape(name)}"><div class="sg-pic">{inner}</div>'
            f'<div class="sg-fig">{caption or "&nbsp;"}</div></div>'
        )
    words = "sg-cell done selected" if place == selected else "sg-cell done"
    style = f' style="background: {colour(made.number(measure))}; color: {ink(colour(made.number(measure)))}"'
    shown = figure_words(made, measure)
    figure = f"{caption}<b>{escape(shown)}</b>{_aside(made, measure)}"
    return (
        f'<div class="{words}" data-place="{key(place)}" role="button" tabindex="0" title="{escape(name)}" '
        f'aria-label="{escape(name)}: {escape(shown)}"><div class="sg-pic">'
        f'<img src="{address(file)}" alt="" loading="lazy" draggable="false"/></div>'
        f'<div class="sg-fig"{style if made.measures else ""}>{figure}</div>'
        f'<button type="button" class="sg-go" data-open="{key(place)}" title="Open in Generate" '
        f'aria-label="Open in Generate: {escape(name)}">↗</button></div>'
    )


def figure_words(made: Made, measure: str) -> str:
    """Return what stands below a picture: the measure over its floor, or the seed where nothing was measured."""
    ratio, value = made.number(measure), made.number(measure, "value")
    if ratio is not None:
        return f"{ratio:.2f} ×"
    if value is not None:
        return number(value)
    return f"seed {made.images[made.shown]['seed']}" if made.images else ""


def _aside(made: Made, measure: str) -> str:
    value = made.number(measure, "value")
    if value is None or measure == NEARNESS or made.number(measure) is None:
        return ""
    return f"<span>{number(value)}</span>"


def _ranking(grid: Grid, measure: str, selected: Place | None) -> str:
    places = ranking(grid, measure)
    if not places:
        return '<div class="sg-blank"><p>No cell has this measure yet.</p></div>'
    cells = "".join(
        f"<li>{cell(grid, place, measure, None, selected, _values(grid, place))}<span>{rank}</span></li>"
        for rank, place in enumerate(places, 1)
    )
    return f'<ol class="sg-ranked" style="--aspect: {_aspect(grid)}">{cells}</ol>'


def _values(grid: Grid, place: Place) -> str:
    """Return a cell's values in a few words; numbers say what they are of."""
    pairs = [(axis.title, axis.labels[i]) for axis, i in zip(grid.plan.axes, place, strict=False)]
    return " · ".join(f"{title.lower()} {label}" if label[:1].isdigit() else label for title, label in pairs)


# ---- one cell


def details(grid: Grid, place: Place, measure: str) -> str:
    """Return an enlarged look at a cell with all of its main measures."""
    made, file, asked = grid.made[place], grid.picture(place), grid.cells[place].request
    if file is None:
        return views.sentence("This cell is not made yet.")
    image = made.images[made.shown]
    rows = [
        ("Prompt", asked["prompt"]),
        ("Checkpoint", grid.cells[place].checkpoint),
        ("Steps", f"{asked['steps']}, guidance {asked['guidance']:g}"),
        ("Seed", str(image["seed"])),
        ("Patches", f"{len(made.images)}; Generate shows all" if len(made.images) > 1 else ""),
        ("Seconds", f"{made.seconds:.1f}"),
        ("Amplitude", f"sha256 {image['sha256'][:16]}…"),
    ]
    said = {title for title, _ in rows}
    pairs = zip(grid.plan.axes, place, strict=False)
    varied = [(axis.title, axis.labels[i]) for axis, i in pairs if axis.title not in said]
    note = grid.cells[place].note
    return (
        f'<div class="sg-detail"><img src="{address(file)}" alt="{escape(grid.plan.label(place))}"/>'
        + views.sentence(note, "warn")
        + _measures(made.measures, measure)
        + (f"<details><summary>In words</summary>{views.sentence(made.verdict)}</details>" if made.verdict else "")
        + views.properties([*varied, *rows])
        + "</div>"
    )


def _measures(measures: Mapping[str, Mapping[str, Any]], chosen: str) -> str:
    names = [name for name in dict.fromkeys((NEARNESS, *MAIN_MEASURES, "semantic", chosen)) if name in measures]
    if not names:
        return ""
    rows = ""
    for name in names:
        one = measures[name]
        ratio, fill = one["ratio"], colour(one["ratio"])
        words = "–" if ratio is None else f"{ratio:.2f} ×"
        value = "" if name == NEARNESS else number(one["value"])
        floor = "" if name == NEARNESS else number(one["floor"])
        rows += (
            f'<tr{" class=chosen" if name == chosen else ""}><th scope="row" title="{escape(meaning_of(name))}">'
            f"{escape(title_of(name))}</th><td>{value}</td><td>{floor}</td>"
            f'<td><span style="background: {fill}; color: {ink(fill)}">{words}</span></td></tr>'
        )
    return (
        '<table class="sg-measures"><thead><tr><th scope="col">Measure</th><th scope="col">Value</th><th scope="col">'
        f'Floor</th><th scope="col">Ratio</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def grid_choice(info: Mapping[str, Any]) -> str:
    """Return an earlier grid in one line."""
    when = str(info["created"])[5:16].replace("T", " ")
    done = f"{info['done']}/{info['cells']}" if info["done"] < info["cells"] else f"{info['cells']} cells"
    return f"{when} · {' × '.join(info['axes'])} · {done} · {info['prompt']}"
