"""Pieces of the Compare tab as HTML: pure functions of a comparison, every text escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from sar_gen.patches import Patch
from sar_gen.quality.report import Measure, QualityReport
from sar_gen.quality.wording import title_of, verdict_class
from sar_gen.ui import comparing, judging, views
from sar_gen.ui import judgement as judged

if TYPE_CHECKING:
    from sar_gen.comparison import Comparison, PatchRow
    from sar_gen.quality.laws import LawFit
    from sar_gen.quality.sets import SetReport
    from sar_gen.quality.speckle import RatioStatistics

NEAREST = 16  # training patches that are listed
MOST_ROWS = 300  # of the table; the CSV has all
LIVE_STEP = 1.0  # seconds between updates of the time that a comparison has taken
COLUMNS: dict[str, tuple[str, str]] = {  # of the table of patches: title and the measures of which the worst is shown
    "W1": ("Wasserstein-1 of amplitudes", "wasserstein1"),
    "GLCM": ("the worst of the GLCM descriptors", "glcm_"),
    "ENL": ("looks on homogeneous ground", "enl"),
    "Speckle": ("correlation of neighbouring speckle", "speckle_correlation"),
    "Spectr.": ("the worse of radial and angular power spectrum", "spectrum"),
}
NAME_KEPT = 6  # characters of what all names share that are still shown
NO_TEXTURE = 100  # beyond it a law's texture parameter says that there is none
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
    count = f"{report.generated_count} judged · {report.reference_count} real of {comparison.reference.title}"
    warnings = ""
    if comparison.warnings:
        lines = "".join(f"<li>{escape(text)}</li>" for text in comparison.warnings)
        warnings = f'<ul class="sg-warnings" aria-label="Warnings">{lines}</ul>'
    prompt = "".join(f"<p>{escape(note)}</p>" for note in report.notes if note.startswith("Prompt:"))
    return (
        f'<div class="sg-verdict {verdict_class(report)}" role="status"><p>{escape(report.verdict)}</p>{prompt}'
        f"<small>{escape(count)}</small></div>{warnings}"
    )


def rows_table(comparison: Comparison) -> str:
    """Return the judged patches, worst first, as rows that open a patch."""
    head = "".join(
        f'<th scope="col" title="{escape(meaning)}, as a multiple of what 95 % of single real patches stay under">'
        f"{title}</th>"
        for title, (meaning, _) in COLUMNS.items()
    )
    shown = comparison.rows[:MOST_ROWS]
    names = short_names([row.name for row in shown])
    body = "".join(_patch_row(row, name) for row, name in zip(shown, names, strict=True))
    more = len(comparison.rows) - MOST_ROWS
    note = views.sentence(f"{more} more patches are in the CSV.") if more > 0 else ""
    return (
        '<table class="sg-patches"><thead><tr><th scope="col">Patch</th><th scope="col">Worst measure</th>'
        '<th scope="col" title="the worst value divided by what 95 % of single real patches stay under">×&nbsp;real'
        f"</th>{head}</tr></thead><tbody>{body}</tbody></table>{note}"
    )


def short_names(names: Sequence[str]) -> list[str]:
    """Return names without most of a long beginning and end that all share: it would hide what tells them apart."""
    start = _shared(names)
    end = _shared([name[start:][::-1] for name in names])
    cut = start - NAME_KEPT if start > 2 * NAME_KEPT else 0
    tail = end if end > 2 * NAME_KEPT else 0
    if len(names) < 2 or not cut + tail:
        return list(names)
    return [f"{'…' if cut else ''}{name[cut : len(name) - tail]}{'…' if tail else ''}" for name in names]


def _shared(texts: Sequence[str]) -> int:
    """Return how many characters at the beginning all texts share."""
    count = 0
    for characters in zip(*texts, strict=False):
        if len(set(characters)) > 1:
            break
        count += 1
    return count


def _patch_row(row: PatchRow, short: str) -> str:
    cells = ""
    for _, start in COLUMNS.values():
        known = [ratio for name, ratio in row.ratios.items() if name.startswith(start) and ratio is not None]
        worst = max(known, default=None)
        cells += f"<td{_graded(worst)}>{_times(worst)}</td>"
    name = escape(row.name)
    # The end of a name tells files apart, so that it is the start that gives way (see style.css).
    return (
        f'<tr data-patch="{row.index}" tabindex="0" aria-selected="false"><th scope="row" title="{name}">'
        f"<bdi>{escape(short)}</bdi></th><td>{escape(title_of(row.worst)) if row.worst else '–'}</td>"
        f"<td{_graded(row.ratio)}><b>{_times(row.ratio)}</b></td>{cells}</tr>"
    )


def _times(ratio: float | None) -> str:
    if ratio is None:
        return "–"
    return f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"


def _graded(ratio: float | None) -> str:
    """Return the class of a multiple of what real patches reach: 1 is their 95th percentile."""
    if ratio is None:
        return ' class="none"'
    return f' class="{"good" if ratio <= 1 else "fair" if ratio <= 1.5 else "poor"}"'


def caption(role: str, title: str, patch: Patch, place: str, more: str = "") -> str:
    """Return the two lines under a picture: which it is, and what it is."""
    height, width = patch.amplitude.shape
    step = comparing.reduced_by(patch.amplitude.shape)
    scale = f" (shown at 1:{step})" if step > 1 else ""
    what = " · ".join(part for part in (f"{width} × {height} px{scale}", patch.name, more) if part)
    return (
        f'<p class="sg-cap {role}"><i aria-hidden="true"></i><b>{escape(title)}</b><span>{escape(place)}</span></p>'
        f'<p class="sg-what" title="{escape(what)}">{escape(what)}</p>'
    )


def real_caption(real: judging.RealPatch | None) -> str:
    """Return the lines under the real patch; one that stands in says so first."""
    if real is None:
        return '<p class="sg-cap real"><i></i><b>Real</b></p><p class="sg-what">only statistics of this set ship</p>'
    place = f"{real.index + 1}/{real.count}"
    if real.stands_in:
        place += " · stands in"
    return caption("real", "Real", real.patch, place, real.set_title)


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
    columns = "".join(f'<th scope="col">{title}</th>' for title in ("BIC", "KS", "Looks", "Texture"))
    of_real = '<th scope="col" class="first">KS</th><th scope="col">Looks</th><th scope="col">Texture</th>'
    return (
        '<table class="sg-laws"><thead><tr><th></th><th class="of" colspan="4">judged</th>'
        f'<th class="of first" colspan="3">real</th></tr><tr><th scope="col">Law</th>{columns}{of_real}</tr></thead>'
        f"<tbody>{body}</tbody></table>{views.sentence(note)}"
    )


def _law_row(fit: LawFit, real: LawFit | None, best: float) -> str:
    difference = fit.bic - best
    made = [f"+{difference:,.0f}" if difference else "0", f"{fit.ks:.3f}", _plain(fit.looks), _texture(fit.texture)]
    theirs = ["–"] * 3 if real is None else [f"{real.ks:.3f}", _plain(real.looks), _texture(real.texture)]
    cells = "".join(f"<td>{cell}</td>" for cell in made) + f'<td class="first">{theirs[0]}</td>'
    cells += "".join(f"<td>{cell}</td>" for cell in theirs[1:])
    return f'<tr><th scope="row">{escape(fit.title)}</th>{cells}</tr>'


def _texture(value: float | None) -> str:
    return "none" if value is not None and abs(value) > NO_TEXTURE else _plain(value)


def _plain(value: float | None) -> str:
    if value is None or value != value:
        return "–"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def measures_table(measures: Mapping[str, Measure]) -> str:
    """Return measures with their floors, as the panel of the Generate tab shows them, without the notes."""
    report = QualityReport("", 0, 0, {}, dict(measures), "", ())
    return judged.table(report, "")


def ratio_table(found: Sequence[tuple[str, RatioStatistics]]) -> str:
    """Return the ratio image's statistics of the patches that are shown."""
    body = "".join(
        f'<tr><th scope="row" title="{escape(whose)}">{escape(whose)}</th>'
        f"<td>{_plain(each.mean)}</td><td>{_plain(each.looks)}</td><td>{_plain(each.given_looks)}</td></tr>"
        for whose, each in found
    )
    note = (
        "Ratio image of the two patches shown: intensity over its refined-Lee despeckled version. A mean of 1 keeps "
        "the level; looks far from those of the homogeneous ground mean structure in the ratio, or ground without "
        "speckle. Real patches are the measure."
    )
    return (
        '<table class="sg-laws"><thead><tr><th scope="col">Ratio image</th><th scope="col">Mean</th>'
        '<th scope="col">Looks</th><th scope="col">Looks of the ground</th></tr></thead>'
        f"<tbody>{body}</tbody></table>{views.sentence(note)}"
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def sets_table(sets: SetReport | None) -> str:
    """Return the statistics of the set on SAR-CLIP features, and the nearest training patches."""
    if sets is None:
        return views.sentence("Not asked for: tick Set statistics under SAR-CLIP, and compare again.")
    html = f'<p class="sg-said">{escape(sets.words)}</p>{measures_table(sets.measures)}'
    found = sets.memorisation
    if found is not None:
        rows = "".join(
            f'<tr data-patch="{pair.index}" tabindex="0"><th scope="row" title="{escape(pair.name)}"><bdi>'
            f"{escape(pair.name)}</bdi></th><td>{escape(pair.training)}</td><td>{pair.distance:.3f}</td>"
            f'<td class="{"poor" if pair.copy else "good"}">{_share(pair.nearer_real)}</td></tr>'
            for pair in found.pairs[:NEAREST]
        )
        html += (
            f'<p class="sg-said">{escape(found.words)}</p>{views.sentence(found.note)}<table class="sg-patches">'
            '<thead><tr><th scope="col">Patch</th><th scope="col">Nearest training patch</th>'
            '<th scope="col" title="1 - cosine of the features">Distance</th>'
            '<th scope="col" title="share of unseen real patches that come as near">Real as near</th></tr></thead>'
            f"<tbody>{rows}</tbody></table>"
        )
    return html + "".join(views.sentence(note) for note in sets.notes)
