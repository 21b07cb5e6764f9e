"""Pieces of the Compare tab as HTML: pure functions of a comparison, every text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from sar_gen.patches import Patch
from sar_gen.ui import comparing, judging, views
from sar_gen.ui import judgement as judged

if TYPE_CHECKING:
    from sar_gen.comparison import Comparison, PatchRow
    from sar_gen.quality.laws import LawFit
    from sar_gen.quality.sets import SetReport

MOST_ROWS = 300  # of the table; the CSV has all
LIVE_STEP = 1.0  # seconds between updates of the time that a comparison has taken
COLUMNS = {  # of the table: what is short enough to stand in a narrow column
    "wasserstein1": "W1",
    "glcm_contrast": "Contrast",
    "glcm_correlation": "Correl.",
    "enl": "ENL",
    "speckle_correlation": "Speckle",
    "spectrum": "Spectrum",
}
EMPTY = (
    '<div class="sg-blank"><h3>Nothing compared yet</h3><p>Drop SAR patches that any model made, or take a run of the '
    "studio; say what their values mean; choose real ground; press Compare.</p><p>Every measure then stands beside "
    "what real patches differ by among themselves.</p></div>"
)


@dataclass(frozen=True)
class Picture:
    """A picture with its text for those who do not see it, and what is written over it."""

    address: str
    alt: str
    badge: str = ""


def busy(text: str, seconds: float) -> str:
    """Return the line of a comparison under way: how long it takes is not known, so that its bar only moves."""
    line = views.status(f"{text}…", "busy", None, views.duration(seconds) if seconds >= LIVE_STEP else "")
    return f'{line}<div class="sg-bar sg-wait" aria-hidden="true"><i></i></div>'


def verdict(comparison: Comparison) -> str:
    """Return the verdict with its counts, and every warning under it."""
    report = comparison.report
    kind = judged.reading(report.measures["wasserstein1"])[0] if "wasserstein1" in report.measures else "none"
    count = f"{report.generated_count} judged · {report.reference_count} real of {comparison.reference.title}"
    warnings = ""
    if comparison.warnings:
        lines = "".join(f"<li>{escape(text)}</li>" for text in comparison.warnings)
        warnings = f'<ul class="sg-warnings" aria-label="Warnings">{lines}</ul>'
    return (
        f'<div class="sg-verdict {kind}" role="status"><p>{escape(report.verdict)}</p>'
        f"<small>{escape(count)}</small></div>{warnings}"
    )


def rows_table(comparison: Comparison) -> str:
    """Return the judged patches, worst first, as rows that open a patch."""
    known = [name for name in COLUMNS if any(name in row.ratios for row in comparison.rows)]
    head = "".join(
        f'<th scope="col" title="{escape(title_of(name))}, as a multiple of what single real patches reach (95 %)">'
        f"{COLUMNS[name]}</th>"
        for name in known
    )
    body = "".join(_patch_row(row, known) for row in comparison.rows[:MOST_ROWS])
    more = len(comparison.rows) - MOST_ROWS
    note = views.sentence(f"{more} more patches are in the CSV.") if more > 0 else ""
    return (
        '<table class="sg-patches"><thead><tr><th scope="col">Patch</th><th scope="col">Worst measure</th>'
        '<th scope="col" title="the worst value divided by what 95 % of single real patches stay under">×&nbsp;real'
        f"</th>{head}</tr></thead><tbody>{body}</tbody></table>{note}"
    )


def _patch_row(row: PatchRow, known: Sequence[str]) -> str:
    cells = "".join(f"<td{_graded(row.ratios.get(name))}>{_times(row.ratios.get(name))}</td>" for name in known)
    name = escape(row.name)
    return (
        f'<tr data-patch="{row.index}" tabindex="0" aria-selected="false"><th scope="row" title="{name}">{name}</th>'
        f"<td>{escape(title_of(row.worst))}</td><td{_graded(row.ratio)}><b>{_times(row.ratio)}</b></td>{cells}</tr>"
    )


def title_of(name: str) -> str:
    """Return a measure's name for people."""
    return judged.NAMES.get(name, (name.replace("_", " "), ""))[0]


def _times(ratio: float | None) -> str:
    if ratio is None:
        return "–"
    return f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"


def _graded(ratio: float | None) -> str:
    """Return the class of a multiple of what real patches reach: 1 is their 95th percentile."""
    if ratio is None:
        return ' class="none"'
    return f' class="{"good" if ratio <= 1 else "fair" if ratio <= 1.5 else "poor"}"'


def real_caption(real: judging.RealPatch | None) -> str:
    """Return the caption of the real patch."""
    if real is None:
        return '<p class="sg-cap real"><i></i><b>Real</b><span>only the statistics of this set ship</span></p>'
    return caption("real", "Real", real.patch, f"{real.index + 1}/{real.count}", real.set_title)


def caption(role: str, title: str, patch: Patch, place: str, more: str = "") -> str:
    """Return the line under a picture."""
    height, width = patch.amplitude.shape
    step = comparing.reduced(patch.amplitude)[1]
    scale = f" (shown at 1:{step})" if step > 1 else ""
    aside = " · ".join(part for part in (place, patch.name, f"{width} × {height} px{scale}", more) if part)
    return (
        f'<p class="sg-cap {role}"><i aria-hidden="true"></i><b>{escape(title)}</b>'
        f'<span title="{escape(aside)}">{escape(aside)}</span></p>'
    )


def sides(judged: Picture, real: Picture | None) -> str:
    """Return two pictures beside each other."""
    right = '<div class="sg-frame empty"><p>Only the statistics of this set ship.</p></div>'
    return f'<div class="sg-sides">{_frame(judged)}{right if real is None else _frame(real)}</div>'


def _frame(picture: Picture) -> str:
    return f'<div class="sg-frame">{_image(picture)}{_badge(picture)}</div>'


def _image(picture: Picture, css: str = "") -> str:
    return f'<img class="{css}" src="{picture.address}" alt="{escape(picture.alt)}" draggable="false"/>'


def _badge(picture: Picture) -> str:
    return f'<span class="sg-badge">{escape(picture.badge)}</span>' if picture.badge else ""


def wipe(judged: Picture, real: Picture, aspect: float) -> str:
    """Return two pictures over each other with a line between them that a slider moves: judged left, real right.

    Args:
        judged: shown left of the line.
        real: shown right of it, drawn to the same size.
        aspect: width of the judged patch / its height.
    """
    return (
        f'<div class="sg-wipe" style="--aspect:{aspect:.4f}">{_image(real)}{_image(judged, "over")}'
        '<input type="range" min="0" max="100" value="50" step="1" '
        'aria-label="Share of the judged patch that is shown, from the left"/>'
        '<i class="line" aria-hidden="true"></i><em class="left">Judged</em><em class="right">Real</em>'
        f"{_badge(real)}</div>"
    )


def laws_table(fits: Sequence[LawFit], real: Sequence[LawFit]) -> str:
    """Return the laws fitted to the judged patches, best first, and beside them the same laws of the reference."""
    if not fits:
        return views.sentence("No law can be fitted: nearly all pixels are clipped or of one value.")
    reference = {fit.name: fit for fit in real}
    best = fits[0].bic
    body = "".join(_law_row(fit, reference.get(fit.name), best) for fit in fits)
    hidden = fits[0].censored_share
    note = (
        "BIC: less is better, 0 is the best law; it presumes independent pixels. KS: largest gap of the cumulative "
        f"distributions. Of the pixels, {fits[0].zero_share:.1%} are 0 and left out, {fits[0].clipped_share:.1%} are "
        f"clipped at 1 and {fits[0].floor_share:.1%} lie on a floor; these {hidden:.1%} are censored, not fitted."
    )
    return (
        '<table class="sg-laws"><thead><tr><th scope="col">Law</th><th scope="col">BIC</th><th scope="col">KS</th>'
        '<th scope="col">Looks</th><th scope="col">Texture</th><th scope="col">Real: KS</th>'
        f'<th scope="col">Looks</th><th scope="col">Texture</th></tr></thead><tbody>{body}</tbody></table>'
        f"{views.sentence(note)}"
    )


def _law_row(fit: LawFit, real: LawFit | None, best: float) -> str:
    difference = fit.bic - best
    cells = [f"+{difference:,.0f}" if difference else "0", f"{fit.ks:.3f}", _plain(fit.looks), _plain(fit.texture)]
    cells += ["–", "–", "–"] if real is None else [f"{real.ks:.3f}", _plain(real.looks), _plain(real.texture)]
    return f'<tr><th scope="row">{escape(fit.title)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _plain(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def sets_table(sets: SetReport | None) -> str:
    """Return the statistics of the set on SAR-CLIP features."""
    if sets is None:
        return views.sentence(
            "Not asked for: tick Statistics of the set (features) under SAR-CLIP, and compare again."
        )
    return ""
