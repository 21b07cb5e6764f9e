"""What is taken away of a grid: one picture, one HTML file that needs nothing else, and its JSON."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from sar_gen.amplitude import VIEWS, view
from sar_gen.files import write_atomic
from sar_gen.grid_figures import STOPS, arrangement, colour, ink, mean_ratio, ranking
from sar_gen.grid_sheet import SYNTHETIC, fixed_line, sheet_png, title_line
from sar_gen.grids import GRID_FILE, NEARNESS, Grid, Place
from sar_gen.html_page import html_page
from sar_gen.quality.nearness import MAIN_MEASURES
from sar_gen.quality.wording import meaning_of, number, title_of
from sar_gen.studio import load_amplitude

PNG_FILE, HTML_FILE = "grid.png", "grid.html"
STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1b2026; --muted: #5c6770; --line: #dde1e4;
  --soft: #f1f3f5; }
@media (prefers-color-scheme: dark) { :root { --page: #1b2025; --text: #d5dade; --muted: #8d98a2; --line: #2c333a;
  --soft: #232a30; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 14px/1.5 Inter, "Segoe UI", system-ui, sans-serif; }
main { padding: 1.75rem 2rem 3rem; }
h1 { font-size: 1.4rem; line-height: 1.25; margin: 0 0 .25rem; } h2 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
p { margin: .3rem 0; max-width: 62rem; } .muted, small { color: var(--muted); }
.scroll { overflow-x: auto; } table { border-collapse: separate; border-spacing: 8px; }
.grid th { font-weight: 600; text-align: left; vertical-align: bottom; max-width: 16rem; }
.grid tbody th { vertical-align: middle; padding-right: .5rem; } th small { display: block; font-weight: 400; }
.grid td { padding: 0; vertical-align: top; } figure { margin: 0; }
figure img { display: block; min-width: 112px; image-rendering: pixelated; }
figure[tabindex] { cursor: zoom-in; outline-offset: 2px; } figure:focus img { zoom: 2; }
figcaption { display: flex; justify-content: space-between; gap: .75rem; padding: .2rem .5rem; font-size: 13px;
  font-variant-numeric: tabular-nums; } figcaption b { white-space: nowrap; }
.none { width: 160px; padding: .75rem; background: var(--soft); border: 1px solid var(--line); color: var(--muted);
  font-size: 12.5px; }
.legend { display: flex; align-items: center; gap: .6rem; margin: .6rem 0; } .legend i { width: 14rem; height: 12px;
  border-radius: 2px; }
.figures { border-collapse: collapse; border-spacing: 0; font-size: 12.5px; font-variant-numeric: tabular-nums; }
.figures th, .figures td { padding: .2rem .7rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; } .figures thead th { color: var(--muted); font-weight: 500; vertical-align: bottom; }
.figures .left { text-align: left; } code { font: 11.5px ui-monospace, monospace; }
"""


EXPORTS = ("png", "html", "json")


def write_exports(grid: Grid, measure: str = NEARNESS, remap: str = "linear") -> dict[str, Path]:
    """Write every export into the grid's folder and return their paths by kind.

    Raises:
        SarGenError: the folder cannot be written.
    """
    return {kind: write_export(grid, kind, measure, remap) for kind in EXPORTS}


def write_export(grid: Grid, kind: str, measure: str = NEARNESS, remap: str = "linear") -> Path:
    """Write one export into the grid's folder, atomically, and return its path; the JSON is the grid's own file.

    Args:
        grid: of which cells may still be missing.
        kind: one of ``EXPORTS``.
        measure: that colours the cells.
        remap: how amplitude is shown, a name of ``amplitude.VIEWS``.

    Raises:
        SarGenError: the folder cannot be written.
    """
    if kind == "json":
        return grid.folder / GRID_FILE
    path = grid.folder / {"png": PNG_FILE, "html": HTML_FILE}[kind]
    data = sheet_png(grid, measure, remap) if kind == "png" else html_document(grid, measure, remap).encode()
    write_atomic(path, data)
    return path


def html_document(grid: Grid, measure: str = NEARNESS, remap: str = "linear") -> str:
    """Return a grid as one HTML page without scripts: the pictures, a table of all figures, and what made them.

    Args:
        grid: of which cells may still be missing.
        measure: that colours the cells.
        remap: how amplitude is shown, a name of ``amplitude.VIEWS``; the pictures are lossless.
    """
    pages = grid.plan.shape[2]
    parts = []
    for page in range(pages):
        if pages > 1:
            axis = grid.plan.axes[2]
            parts.append(f"<h2>{escape(axis.title)}: {escape(axis.labels[page])}</h2>")
        parts.append(_table(grid, page, measure, remap))
    count = f"{grid.finished} of {len(grid.cells)} cells"
    measured = any(made.measures for made in grid.made.values())
    words = " × ".join(axis.title for axis in grid.plan.axes)
    body = (
        f"<h1>{escape(title_line(grid))}</h1>"
        f"<p class='muted'>{escape(words)} · {escape(fixed_line(grid))} · {count}</p>"
        f"<p><b>{escape(SYNTHETIC)}</b></p>{_legend(measure) if measured else ''}\n"
        + "\n".join(parts)
        + (_figures(grid, measure) if measured else _made(grid))
        + f"<p class='muted'>Pictures: {escape(VIEWS[remap].title.lower())} view, {escape(VIEWS[remap].summary)}; "
        "click one to enlarge it. Measures are computed on amplitude, never on a picture. Grid "
        f"{escape(grid.id)}, {escape(grid.created)}; "
        + escape(", ".join(f"{name} {version}" for name, version in grid.versions.items()))
        + ".</p>\n"
    )
    return html_page(f"SAR grid: {title_line(grid)}", STYLE, body)


def _legend(measure: str) -> str:
    low, high = STOPS[0][0], STOPS[-1][0]
    stops = ", ".join(f"{colour(at)} {(at - low) / (high - low):.0%}" for at, _ in STOPS)
    return (
        f"<div class='legend'><span>1 ×</span><i style='background: linear-gradient(90deg, {stops})'></i>"
        f"<span>4 × or more</span></div><p class='muted'>{escape(title_of(measure))} ({escape(meaning_of(measure))}) "
        "over its floor: 1 × is what real patches differ by, more is farther from real SAR.</p>"
    )


def _table(grid: Grid, page: int, measure: str, remap: str) -> str:
    columns, rows = arrangement(grid, measure, page)
    first, second = grid.plan.axes[0], grid.plan.axes[1] if len(grid.plan.axes) > 1 else None
    corner = f"<th><small>{escape(second.title)}</small></th>" if second else ""
    head = "".join(
        f"<th scope='col'><small>{escape(first.title)}</small>{escape(first.labels[c])}"
        f"{_mean(grid, measure, [(c, r, page) for r in rows])}</th>"
        for c in columns
    )
    body = ""
    for row in rows:
        places = [(column, row, page) for column in columns]
        side = ""
        if second:
            side = f"<th scope='row'>{escape(second.labels[row])}{_mean(grid, measure, places)}</th>"
        body += f"<tr>{side}{''.join(f'<td>{_cell(grid, place, measure, remap)}</td>' for place in places)}</tr>\n"
    head = f"<thead><tr>{corner}{head}</tr></thead>"
    return f"<div class='scroll'><table class='grid'>{head}<tbody>{body}</tbody></table></div>"


def _mean(grid: Grid, measure: str, places: list[Place]) -> str:
    mean = mean_ratio(grid, measure, places)
    return "" if mean is None else f"<small>mean {mean:.2f} ×</small>"


def _cell(grid: Grid, place: Place, measure: str, remap: str) -> str:
    made, file = grid.made[place], grid.amplitude_file(place)
    if file is None:
        return f"<div class='none'>{escape(made.message or 'Not made yet.')}</div>"
    buffer = io.BytesIO()
    Image.fromarray(view(load_amplitude(file), remap)).save(buffer, "png")
    address = base64.b64encode(buffer.getvalue()).decode()
    ratio, value = made.number(measure), made.number(measure, "value")
    fill = colour(ratio)
    words = f"{ratio:.2f} ×" if ratio is not None else number(value)
    caption = "" if value is None else f"<b>{words}</b>"
    return (
        f"<figure tabindex='0'><img src='data:image/png;base64,{address}' alt='{escape(grid.plan.label(place))}'>"
        f"<figcaption style='background: {fill}; color: {ink(fill)}'>{caption}"
        f"<span>seed {made.images[made.shown]['seed']}</span></figcaption></figure>"
    )


def _figures(grid: Grid, measure: str) -> str:
    """Return every cell with its main measures, nearest to real SAR first."""
    names = [name for name in dict.fromkeys((NEARNESS, measure, *MAIN_MEASURES)) if name in grid.measures()]
    heads = "".join(f"<th scope='col'>{escape(title_of(name))}</th>" for name in names)
    axes = "".join(f"<th scope='col' class='left'>{escape(axis.title)}</th>" for axis in grid.plan.axes)
    rows = ""
    for place in ranking(grid, measure):
        made = grid.made[place]
        image = made.images[made.shown]
        values = "".join(
            f"<td class='left'>{escape(axis.labels[i])}</td>" for axis, i in zip(grid.plan.axes, place, strict=False)
        )
        figures = "".join(f"<td>{_figure(made.measures.get(name, {}))}</td>" for name in names)
        hashed = f"<td class='left'><code>{image['sha256'][:16]}</code></td>"
        rows += f"<tr>{values}{figures}<td>{image['seed']}</td>{hashed}</tr>\n"
    return (
        f"<h2>Figures, by {escape(title_of(measure))}</h2><p class='muted'>Each measure over its floor, with its "
        "value. grid.json has every request, measure and hash in full.</p>"
        "<div class='scroll'><table class='figures'><thead>"
        f"<tr>{axes}{heads}<th scope='col'>Seed</th><th scope='col' class='left'>Amplitude sha256</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _figure(measure: dict[str, Any]) -> str:
    ratio, value = measure.get("ratio"), measure.get("value")
    if ratio is None:
        return number(value)
    return f"{ratio:.2f} ×" + ("" if measure.get("unit") == "floors" else f" <small>{number(value)}</small>")


def _made(grid: Grid) -> str:
    """Return seeds and hashes of a grid that was not judged."""
    rows = "".join(
        f"<tr><td class='left'>{escape(grid.plan.label(place))}</td><td>{made.images[made.shown]['seed']}</td>"
        f"<td class='left'><code>{made.images[made.shown]['sha256'][:16]}</code></td></tr>\n"
        for place, made in grid.made.items()
        if made.images
    )
    return (
        "<h2>Cells</h2><div class='scroll'><table class='figures'><thead><tr><th class='left'>Cell</th><th>Seed</th>"
        f"<th class='left'>Amplitude sha256</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
