"""A comparison as one HTML file that needs nothing else: pictures, figures and tables are inside it, no script.

The same comparison gives the same file; dates and versions stand in it only where the caller says them.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from sar_gen import plots
from sar_gen.amplitude import VIEWS, view
from sar_gen.errors import InputError
from sar_gen.files import write_atomic
from sar_gen.html_page import html_page
from sar_gen.quality.laws import LawFit
from sar_gen.quality.report import Measure
from sar_gen.quality.speckle import equivalent_looks
from sar_gen.quality.wording import meaning_of, number, reading, title_of, verdict_class

if TYPE_CHECKING:
    from sar_gen.comparison import Comparison, PatchRow
    from sar_gen.quality.sets import Memorisation, SetReport

MOST_PICTURES = 24
"""Judged patches that are shown; a page of a thousand would not open."""
MOST_REAL = 12
MOST_ROWS = 1000
MOST_PAIRS = 16
LONGEST_SIDE = 512
"""Larger pictures are shown as means of squares of pixels."""
FIGURE_DPI = 160
_SCALE_WIDTH = 2.4  # inches, of a picture in a row of four
_MEASURED_ON_MAPS = 256  # pixels a side of the part of the worst patch that maps show

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1b2026; --muted: #5c6770; --line: #dde1e4; --soft: #f4f6f7;
  --made: #c8500a; --real: #4c5761; --good: #1f7447; --fair: #8a6100; --poor: #b3392f;
  --good-soft: #e6f4ec; --fair-soft: #fbf2dc; --poor-soft: #fbe9e7; }
@media (prefers-color-scheme: dark) { :root { --page: #1b2025; --text: #d5dade; --muted: #8d98a2; --line: #2c333a;
  --soft: #232a30; --made: #ff9d4d; --real: #c5cbd0; --good: #63c492; --fair: #dcb052; --poor: #f08a80;
  --good-soft: #16291f; --fair-soft: #2c2512; --poor-soft: #321b19; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 14px/1.5 Inter, "Segoe UI", system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 3rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: .95rem; margin: 1.25rem 0 .4rem; }
p { margin: .4rem 0; max-width: 54rem; } small, .muted, figcaption, caption { color: var(--muted); }
.verdict { border-left: 4px solid var(--muted); background: var(--soft); border-radius: 3px; padding: .7rem 1rem;
  margin: 1rem 0; } .verdict p { font-size: 1.05rem; margin: 0; }
.verdict.good { border-color: var(--good); background: var(--good-soft); }
.verdict.fair, .warnings { border-color: var(--fair); background: var(--fair-soft); }
.verdict.poor { border-color: var(--poor); background: var(--poor-soft); }
.warnings { border-left: 4px solid var(--fair); border-radius: 3px; padding: .6rem 1rem; margin: 1rem 0; }
.warnings b { color: var(--fair); } .warnings ul, .notes { margin: .25rem 0; padding-left: 1.2rem; max-width: 54rem; }
.patches { display: grid; grid-template-columns: repeat(auto-fill, minmax(148px, 1fr)); gap: 10px; }
.patches.large { grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); }
figure { margin: 0; min-width: 0; } figure img { display: block; width: 100%; height: auto; border-radius: 3px; }
.patches figure { cursor: zoom-in; outline-offset: 2px; }
.patches figure:focus { grid-column: span 3; cursor: default; }
.patches figure:focus img { image-rendering: pixelated; }
.patches:not(.large) figcaption { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 4;
  overflow: hidden; } .patches:not(.large) figure:focus figcaption { -webkit-line-clamp: none; }
@media (max-width: 34rem) { .patches figure:focus { grid-column: 1 / -1; } }
figcaption { font-size: 12px; line-height: 1.35; margin-top: 3px; overflow-wrap: anywhere; }
figcaption b { color: var(--text); font-weight: 600; } figcaption i { display: inline-block; width: 9px; height: 9px;
  border-radius: 2px; margin-right: 5px; background: var(--real); } .made figcaption i { background: var(--made); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr)); gap: 22px 28px; }
.figures figcaption { margin-top: 0; } .figures img { max-width: 520px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { padding: .22rem .7rem .22rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
thead th { color: var(--muted); font-weight: 500; font-size: 12px; vertical-align: bottom; }
th:first-child, td:first-child, .left { text-align: left; } tbody th { font-weight: 500; }
td small { display: block; white-space: normal; max-width: 22rem; }
.good { color: var(--good); } .fair { color: var(--fair); } .poor { color: var(--poor); }
.verdict.good, .verdict.fair, .verdict.poor { color: inherit; }
.narrow thead th:nth-child(n+4) { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left;
  padding: .4rem 0 0 .75rem; } .narrow td { padding-right: .5rem; }
footer { margin-top: 2.5rem; padding-top: .8rem; border-top: 1px solid var(--line); color: var(--muted);
  font-size: 13px; }
@media print { .patches figure, .figures figure, tr { break-inside: avoid; } main { max-width: none; padding: 0; } }
"""


def write_html(path: Path, comparison: Comparison, *, remap: str = "linear", about: str = "") -> None:
    """Write ``html_document`` to ``path``, atomically.

    Raises:
        InputError: the remap is unknown.
        SarGenError: the file cannot be written.
    """
    write_atomic(path, html_document(comparison, remap=remap, about=about).encode())


def html_document(comparison: Comparison, *, remap: str = "linear", about: str = "") -> str:
    """Return a comparison as one HTML page: verdict, pictures, measures, figures, laws and a table of patches.

    Args:
        comparison: from ``sar_gen.comparison.compare_patches``.
        remap: how the pictures are shown, a name from ``amplitude.VIEWS``, the same for all.
        about: what made it and when, for the last line; the page says nothing of that by itself.

    Raises:
        InputError: the remap is unknown.
    """
    if remap not in VIEWS:
        raise InputError(f"The view {remap!r} is unknown; choose one of {', '.join(VIEWS)}.")
    report, reference = comparison.report, comparison.reference
    title = f"{_count(report.generated_count, 'patch')} beside {reference.title}"
    real = _count(report.reference_count, "real patch")
    aside = " · ".join(filter(None, (reference.name, reference.sensor, reference.polarisation, real)))
    sections = [
        _warnings(comparison.warnings),
        _verdict(comparison),
        _pictures(comparison, remap),
        _measures(comparison),
        _figures(comparison),
        _laws(comparison),
        _maps(comparison, remap),
        "" if comparison.sets is None else _sets(comparison.sets),
        _table_of_patches(comparison.rows),
        _notes(report.notes),
        _footer(comparison, about),
    ]
    body = "\n".join([f"<h1>{escape(title)}</h1>{_muted(aside)}", *filter(None, sections), ""])
    return html_page(f"SAR report: {title}", STYLE, body)


# Sections -----------------------------------------------------------------------------------------------------------


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return f'<div class="warnings" role="note"><b>This comparison may mislead</b><ul>{items}</ul></div>'


def _verdict(comparison: Comparison) -> str:
    kind = verdict_class(comparison.report)
    return f'<div class="verdict {kind}"><p>{escape(comparison.report.verdict)}</p></div>'


def _pictures(comparison: Comparison, remap: str) -> str:
    """Show judged patches, the worst first, and real ones, all under one remap with one mean."""
    mean = comparison.report.amplitude["reference"]["mean"]
    shown = comparison.rows[:MOST_PICTURES]
    made = []
    for row in shown:
        patch = comparison.patches[row.index]
        worst = "" if row.ratio is None else f"<br>{escape(title_of(row.worst))}, {row.ratio:.1f} × the real spread"
        text = f"<i></i><b>{escape(row.name)}</b>{worst}{_reduced_note(patch.amplitude)}"
        made.append(_picture(_view(patch.amplitude, remap, mean), text, f"Judged patch {row.name}", "made"))
    total = len(comparison.rows)
    part = f"the {MOST_PICTURES} worst of {total}" if total > MOST_PICTURES else "worst first"
    said = (
        f"All pictures under one remap: {VIEWS[remap].summary}. Click one to enlarge it. Measures are computed on "
        "amplitude, never on a picture."
    )
    under = "Under each its worst measure, as a multiple of what 95 % of single real patches stay below."
    text = (
        f"<h2>Pictures</h2>{_muted(said)}<h3>Judged patches, {part}</h3>{_muted(under)}"
        f"<div class='patches'>{''.join(made)}</div>"
    )
    real = comparison.reference.patches
    if not real:
        return f"{text}<h3>Real patches</h3>{_muted('Of this reference only statistics are at hand.')}"
    chosen = [real[i] for i in np.unique(np.linspace(0, len(real) - 1, min(len(real), MOST_REAL)).astype(int))]
    pictures = "".join(
        _picture(
            _view(patch.amplitude, remap, mean),
            f"<i></i><b>{escape(patch.name)}</b>{_reduced_note(patch.amplitude)}",
            f"Real patch {patch.name}",
            "real",
        )
        for patch in chosen
    )
    part = f", {len(chosen)} of {comparison.report.reference_count}" if len(chosen) < len(real) else ""
    return f"{text}<h3>Real patches{part}</h3><div class='patches'>{pictures}</div>"


def _measures(comparison: Comparison) -> str:
    report = comparison.report
    amplitude = _table(
        ("Amplitude", "Mean", "Std", "5 %", "Median", "95 %", "Clipped"),
        [
            [
                label,
                *(f"{report.amplitude[side][key]:.3f}" for key in ("mean", "std", "p05", "p50", "p95")),
                f"{report.amplitude[side]['clipped']:.2%}",
            ]
            for label, side in (("judged", "generated"), ("real", "reference"))
        ],
    )
    said = (
        "The floor is what as many real patches score in the role of the judged ones: its median, and the interval "
        "that holds 95 % of them. A ratio near 1 is what real data do to each other."
    )
    return f"<h2>Measures</h2>{_muted(said)}{_measure_table(report.measures)}<h3>Amplitudes</h3>{amplitude}"


def _measure_table(measures: dict[str, Measure]) -> str:
    rows = []
    for name, measure in measures.items():
        kind, words = reading(measure)
        interval = "–" if measure.interval is None else " to ".join(map(number, measure.interval))
        rows.append(
            f'<tr><th scope="row" title="{escape(meaning_of(name))}">{escape(title_of(name))}</th>'
            f"<td>{number(measure.generated)}</td><td>{number(measure.reference)}</td><td>{number(measure.value)}</td>"
            f"<td class='left muted'>{escape(measure.unit)}</td><td>{number(measure.floor)}</td><td>{interval}</td>"
            f"<td class='{kind}'>{'–' if measure.ratio is None else f'{measure.ratio:.2f}'}</td>"
            f"<td class='left {kind}'>{escape(words)}</td></tr>"
        )
    heads = ("Measure", "Judged", "Real", "Distance", "", "Floor", "95 % interval", "Ratio", "Reading")
    return _table_html(heads, rows, left=(4, 8))


def _figures(comparison: Comparison) -> str:
    made, real, report = comparison.statistics, comparison.reference.statistics, comparison.report
    labels, fits = ("judged", "real"), comparison.fits[:2]
    drawings: list[tuple[str, Callable[[bool], Figure]]] = [
        (
            f"Amplitude densities, {words}",
            lambda dark, axis=axis: plots.histogram_figure(  # type: ignore[misc]
                made, real, axis=axis, labels=labels, fits=fits, dark=dark
            ),
        )
        for axis, words in (("linear", "linear"), ("log", "logarithmic, for the tails"), ("db", "over decibels"))
    ]
    drawings += [
        (
            "Texture, looks and speckle correlation beside the spread of real patches",
            lambda dark: plots.texture_figure(made, real, report=report, labels=labels, dark=dark),
        ),
        (
            "GLCM by direction and distance",
            lambda dark: plots.direction_figure(made, real, labels=labels, dark=dark),
        ),
        (
            "Power spectra over the size and the direction of structure",
            lambda dark: plots.spectrum_figure(made, real, labels=labels, dark=dark),
        ),
        (
            "Autocorrelation of speckle on homogeneous ground",
            lambda dark: plots.speckle_figure(made, real, labels=labels, dark=dark),
        ),
    ]
    return f"<h2>Figures</h2><div class='figures'>{''.join(_figure(text, draw) for text, draw in drawings)}</div>"


def _figure(text: str, draw: Callable[[bool], Figure]) -> str:
    """Return a figure for light and for dark pages; where it cannot be drawn (constant patches), why."""
    try:
        light, dark = (_address(plots.figure_png(draw(dark), FIGURE_DPI)) for dark in (False, True))
    except InputError as error:
        return f"<figure><figcaption><b>{escape(text)}</b><br>{escape(str(error))}</figcaption></figure>"
    return (
        f'<figure><figcaption><b>{escape(text)}</b></figcaption><picture><source srcset="{dark}" '
        f'media="(prefers-color-scheme: dark)"><img src="{light}" alt="{escape(text)}"></picture></figure>'
    )


def _laws(comparison: Comparison) -> str:
    if not comparison.fits:
        said = "No law can be fitted to the judged patches: too few pixels are neither clipped nor of one value."
        return f"<h2>Amplitude laws</h2>{_muted(said)}"
    said = (
        "Fitted to all amplitudes of a side together, best BIC first. BIC presumes independent pixels: its order "
        "counts, not its size. Clipped pixels enter the fits as such; looks and texture are those of a whole set, "
        "where different ground counts as texture."
    )
    real = _law_table("Real patches", comparison.reference_fits) if comparison.reference_fits else ""
    return f"<h2>Amplitude laws</h2>{_muted(said)}{_law_table('Judged patches', comparison.fits)}{real}"


def _law_table(title: str, fits: Sequence[LawFit]) -> str:
    rows = [
        [
            fit.title,
            number(fit.looks),
            number(fit.texture),
            f"{fit.ks:.3f}",
            _grouped(fit.bic - fits[0].bic),
            ", ".join(f"{name} {value:.4g}" for name, value in fit.parameters.items()),
        ]
        for fit in fits
    ]
    first = fits[0]
    hidden = (
        f"{_grouped(first.pixels)} pixels; amplitude hidden in {first.censored_share:.2%} of all (at 0 "
        f"{first.zero_share:.2%}, on a floor {first.floor_share:.2%}, clipped at 1 {first.clipped_share:.2%})."
    )
    heads = ("Law", "Looks", "Texture", "KS", "BIC − best", "Parameters of amplitude")
    return f"<h3>{title}</h3>{_table(heads, rows, caption=hidden, left=(5,))}"


def _maps(comparison: Comparison, remap: str) -> str:
    """Show on the worst patch where looks and texture come from."""
    row = comparison.rows[0]
    amplitude = _centre(comparison.patches[row.index].amplitude)
    estimate = equivalent_looks(amplitude)
    windows = plots.windows_view(amplitude, estimate, remap, comparison.report.amplitude["reference"]["mean"])
    looks = f"ENL {estimate.looks:.1f}" if np.isfinite(estimate.looks) else "no homogeneous ground"
    shown = [
        _picture(windows, f"<b>Homogeneous ground</b><br>{looks}, from the windows outlined", "Homogeneous windows"),
        _picture(plots.looks_view(amplitude), f"<b>Local looks</b>{_scale('looks')}", "Map of local looks"),
        *(
            _picture(
                plots.texture_maps_view(amplitude, name), f"<b>Local GLCM {name}</b>{_scale(name)}", f"Map of {name}"
            )
            for name in ("contrast", "correlation")
        ),
    ]
    part = "" if amplitude.shape == comparison.patches[row.index].amplitude.shape else ", its middle"
    said = (
        f"The worst patch, {row.name}{part}. Colours run over fixed ranges, the same for every patch; grey: no value."
    )
    return f"<h2>Where the measures come from</h2>{_muted(said)}<div class='patches large'>{''.join(shown)}</div>"


def _scale(name: str) -> str:
    """Return the scale of a map for light and dark pages."""
    light, dark = (_address(plots.map_legend(name, dark=dark, width=_SCALE_WIDTH)) for dark in (False, True))
    return (
        f'<picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{escape(plots.MAPS[name].title)}"></picture>'
    )


def _sets(sets: SetReport) -> str:
    counts = f"{_count(sets.generated_count, 'patch')} and {_count(sets.reference_count, 'real patch')}"
    notes = "".join(f"<li>{escape(note)}</li>" for note in sets.notes)
    memorisation = "" if sets.memorisation is None else _memorisation(sets.memorisation)
    return (
        f"<h2>Sets</h2><p>{escape(sets.words)}</p>{_muted(f'In the features of {sets.features}: {counts}.')}"
        f"{_measure_table(sets.measures)}{memorisation}<ul class='notes muted'>{notes}</ul>"
    )


def _memorisation(found: Memorisation) -> str:
    rows = [
        [
            pair.name,
            pair.training,
            f"{pair.distance:.4f}",
            "–" if pair.nearer_real is None else f"{pair.nearer_real:.1%}",
            "likely copy" if pair.copy else "",
        ]
        for pair in found.pairs[:MOST_PAIRS]
    ]
    heads = ("Patch", "Nearest training patch", "Distance", "Real patches as near", "")
    said = f"<h3>Nearest training patches</h3><p>{escape(found.words)}</p>"
    return f"{said}{_table(heads, rows, left=(1, 4))}{_muted(found.note)}"


def _table_of_patches(rows: Sequence[PatchRow]) -> str:
    measures = list(rows[0].ratios)
    lines = []
    for row in rows[:MOST_ROWS]:
        cells = "".join(_ratio_cell(row, measure) for measure in measures)
        worst = escape(title_of(row.worst)) if row.worst else "–"
        lines.append(
            f'<tr><th scope="row">{escape(row.name)}</th><td class="left">{worst}</td>{_ratio(row.ratio)}{cells}</tr>'
        )
    cut = f" The {MOST_ROWS} worst of {len(rows)}; the CSV has all." if len(rows) > MOST_ROWS else ""
    heads = ("Patch", "Worst measure", "×", *(title_of(name) for name in measures))
    said = (
        "The worst first. Every measure of a patch as a multiple of what 95 % of single real patches stay below; "
        f"above 1 hardly any real patch is as far off.{cut}"
    )
    return f"<h2>Patch by patch</h2>{_muted(said)}<div class='narrow'>{_table_html(heads, lines, left=(1,))}</div>"


def _ratio_cell(row: PatchRow, measure: str) -> str:
    value = row.values[measure]
    said = "" if value is None else f' title="{number(value)}"'
    return _ratio(row.ratios[measure], said)


def _ratio(ratio: float | None, attributes: str = "") -> str:
    if ratio is None:
        return f"<td{attributes}>–</td>"
    kind = "poor" if ratio > 2 else "fair" if ratio > 1 else ""
    return f"<td{attributes} class='{kind}'>{ratio:.2f}</td>" if kind else f"<td{attributes}>{ratio:.2f}</td>"


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<h2>How this was measured</h2><ul class='notes'>{items}</ul>" if notes else ""


def _footer(comparison: Comparison, about: str) -> str:
    reference = comparison.reference
    credits = dict.fromkeys(patch.credit for patch in comparison.patches if patch.credit)
    lines = [
        f"Real data: {reference.credit}" if reference.credit else "",
        f"Licence of the real data: {reference.licence}" if reference.licence else "",
        reference.note,
        *(f"Judged patches: {credit}" for credit in credits),
        about,
    ]
    return "<footer>" + "".join(f"<p>{escape(line)}</p>" for line in lines if line) + "</footer>"


# Pieces -------------------------------------------------------------------------------------------------------------


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "", left: Sequence[int] = ()) -> str:
    """Return a table of plain texts; columns are set right but for the first and those in ``left``."""
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td{_left(place, left)}>{escape(cell)}</td>" for place, cell in enumerate(rest, 1))
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    return _table_html(heads, lines, caption=caption, left=left)


def _table_html(heads: Sequence[str], rows: Sequence[str], *, caption: str = "", left: Sequence[int] = ()) -> str:
    """Return a table whose rows are HTML already."""
    head = "".join(f'<th scope="col"{_left(p, left)}>{escape(text)}</th>' for p, text in enumerate(heads))
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f"<div class='scroll'><table>{said}<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _left(place: int, left: Sequence[int]) -> str:
    return ' class="left"' if place in left else ""


def _muted(text: str) -> str:
    """Return a line of explanation; nothing for an empty text."""
    return f"<p class='muted'>{escape(text)}</p>" if text else ""


def _picture(pixels: NDArray[np.uint8], text: str, alt: str, kind: str = "") -> str:
    """Return a picture that grows when it is clicked; ``text`` is HTML of ours."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return (
        f'<figure class="{kind}" tabindex="0"><img src="{_address(buffer.getvalue())}" alt="{escape(alt)}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _address(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _view(amplitude: NDArray[np.float32], remap: str, mean: float) -> NDArray[np.uint8]:
    times = _times(amplitude)
    if times > 1:
        height, width = (side // times * times for side in amplitude.shape)
        squares = amplitude[:height, :width].reshape(height // times, times, width // times, times)
        amplitude = squares.mean(axis=(1, 3))
    return view(amplitude, remap, mean)


def _times(amplitude: NDArray[Any]) -> int:
    """Return how many pixels become one along each side, so that a picture is no longer than ``LONGEST_SIDE``."""
    return math.ceil(max(amplitude.shape) / LONGEST_SIDE)


def _reduced_note(amplitude: NDArray[Any]) -> str:
    times, (height, width) = _times(amplitude), amplitude.shape
    return f"<br>{width} × {height} px, shown at 1 : {times}" if times > 1 else ""


def _centre(amplitude: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the middle of a large patch, pixel by pixel."""
    top, left = (max(0, (side - _MEASURED_ON_MAPS) // 2) for side in amplitude.shape)
    return amplitude[top : top + _MEASURED_ON_MAPS, left : left + _MEASURED_ON_MAPS]


def _grouped(value: float) -> str:
    """Return a whole number with thin spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 'es'}"
