"""Figures that set generated patches beside real ones: matplotlib ``Figure`` objects, never pyplot state.

Sized for a panel 480 pixels wide at twice its resolution (4.8 inches at 200 dpi), transparent, for a light or a dark
page. Real is neutral grey, generated is orange: a pair that stays apart for every common colour blindness, and in
print by lightness.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sar_gen.errors import InputError
from sar_gen.quality.distribution import BINS
from sar_gen.quality.laws import LawFit, law_pdf
from sar_gen.quality.report import QualityReport, compare
from sar_gen.quality.spectrum import ANGLES, FREQUENCIES, PatchSpectra, pooled, spectrum_distance
from sar_gen.quality.statistics import PatchStatistics

Axis = Literal["linear", "log", "db"]
AXES: tuple[Axis, ...] = ("linear", "log", "db")

_FLOOR_DB = -40.0
_DB_STEP = 0.25
_SMOOTHING = 8  # histogram bins, 0.008 of amplitude: wider than the levels of 8-bit decibels near 1
_DB_SMOOTHING = 2  # steps of a quarter decibel
_MOST_SINGLE_CURVES = 8
_ROWS = (
    ("Contrast", "glcm_contrast"),
    ("Dissimilarity", "glcm_dissimilarity"),
    ("Homogeneity", "glcm_homogeneity"),
    ("ASM", "glcm_asm"),
    ("Energy", "glcm_energy"),
    ("Correlation", "glcm_correlation"),
    ("Entropy", "glcm_entropy"),
    ("ENL (looks)", "enl"),
)  # in the order of quality.texture.GLCM_NAMES
_MOST_FITS = 2
_NO_TEXTURE = 100.0  # a shape beyond it is called no texture: the speckle explains the pixels
_LARGEST = 64  # pixels a cycle: there are too few larger structures in a patch for a spectrum of them
_SIZES = (64, 32, 16, 8, 4, 2)
_FIT_STYLES = ((0, (4, 1.6)), (0, (1, 1.4)))
_REACH = 4.0  # the texture axis, in standard deviations of real patches


@dataclass(frozen=True)
class _Colours:
    text: str
    muted: str
    grid: str
    real: str
    band: str
    generated: str
    halo: str


_LIGHT = _Colours("#1b2026", "#5c6770", "#dde1e4", "#4c5761", "#d0d6db", "#c8500a", "#ffffff")
_DARK = _Colours("#d5dade", "#8d98a2", "#2c333a", "#c5cbd0", "#424d57", "#ff9d4d", "#1b2025")


@cache
def _font() -> str:
    """Return the first of the page's fonts that this machine has; DejaVu Sans comes with matplotlib."""
    installed = set(font_manager.get_font_names())
    wanted = ("Inter", "Segoe UI", "Helvetica Neue", "Roboto", "Noto Sans", "Liberation Sans", "Arial")
    return next((name for name in wanted if name in installed), "DejaVu Sans")


@dataclass(frozen=True)
class DensityCurves:
    """Amplitude densities for drawing.

    Attributes:
        x: ``(k,)`` amplitude, or decibels.
        pooled: ``(k,)`` density over all pixels, per unit of ``x``.
        patches: ``(n, k)`` density of each patch.
        clipped: share of all pixels in the last histogram bin, which is left out of the curves: clipping piles up
            there and would be a spike whose height depends on the drawing.
    """

    x: NDArray[np.float64]
    pooled: NDArray[np.float64]
    patches: NDArray[np.float64]
    clipped: float


def density_curves(statistics: PatchStatistics, axis: Axis) -> DensityCurves:
    """Return densities over amplitude (``linear``, ``log``) or over decibels from -40 to 0.

    They are lightly smoothed (0.008 of amplitude, half a decibel) so that 8-bit levels do not show as a comb; the
    measures use the histograms as they are.
    """
    from scipy.ndimage import gaussian_filter1d

    counts = np.vstack([statistics.histograms.sum(axis=0, dtype=np.float64), statistics.histograms])
    shares = counts / counts.sum(axis=1, keepdims=True)
    clipped = float(shares[0, -1])
    shares[:, -1] = 0
    if axis == "db":
        edges = np.arange(_FLOOR_DB, _DB_STEP / 2, _DB_STEP)
        cumulative = np.hstack([np.zeros((len(shares), 1)), shares.cumsum(axis=1)])
        position = 10 ** (edges / 20) * BINS
        left = np.minimum(position.astype(int), BINS - 1)
        at_edges = cumulative[:, left] + (cumulative[:, left + 1] - cumulative[:, left]) * (position - left)
        density = np.diff(at_edges, axis=1) / _DB_STEP
        x = (edges[1:] + edges[:-1]) / 2
        density = gaussian_filter1d(density, _DB_SMOOTHING, axis=1, mode="reflect")
    else:
        x = (np.arange(BINS) + 0.5) / BINS
        density = gaussian_filter1d(shares * BINS, _SMOOTHING, axis=1, mode="reflect")
        thin = BINS // 256
        x, density = x.reshape(-1, thin).mean(axis=1), density.reshape(len(density), -1, thin).mean(axis=2)
    return DensityCurves(x, density[0], density[1:], clipped)


def histogram_figure(
    generated: PatchStatistics,
    reference: PatchStatistics | None,
    *,
    axis: Axis = "linear",
    labels: Sequence[str] = ("generated", "real"),
    fits: Sequence[LawFit] = (),
    dark: bool = False,
) -> Figure:
    """Return amplitude densities of generated and real patches, overlaid.

    The band is where the densities of single real patches lie, 5th to 95th percentile at each amplitude; the thin
    lines are single generated patches (up to eight).

    Args:
        generated: statistics of the generated patches.
        reference: statistics of the real ones, or ``None`` for the generated alone.
        axis: ``linear``; ``log``, the same with logarithmic density, for the tails; ``db``, over decibels.
        labels: what to call the two sides.
        fits: laws fitted to the generated patches (``quality.laws``); the best two by BIC are drawn as broken lines
            with their names. A law is that of the ground before clipping, over all pixels but those at 0.
        dark: for a dark page.

    Raises:
        InputError: the axis is unknown, or there is no generated patch.
    """
    if axis not in AXES:
        raise InputError(f"The histogram axis {axis!r} is unknown; choose one of {', '.join(AXES)}.")
    if not len(generated):
        raise InputError("There is no generated patch to draw; give at least one.")
    colours = _DARK if dark else _LIGHT
    # Laws take a second line of the key; the axes keep their height.
    extra = 0.18 if fits else 0.0
    height = 2.75 + extra
    figure, axes = _figure(height, (0.09, 0.165 * 2.75 / height, 0.975, 0.86 * 2.75 / height), colours)
    made = density_curves(generated, axis)
    real = density_curves(reference, axis) if reference is not None and len(reference) else None
    tops = [made.pooled.max()]
    if real is not None and reference is not None:
        if len(reference) > 1:
            low, high = np.percentile(real.patches, [5, 95], axis=0)
            axes.fill_between(
                real.x, low, high, color=colours.band, linewidth=0, zorder=1, label=f"5–95 % of {labels[1]} patches"
            )
            tops.append(min(high.max(), 1.7 * max(real.pooled.max(), made.pooled.max())))
        axes.plot(
            real.x, real.pooled, color=colours.real, linewidth=1.6, zorder=3, label=_counted(labels[1], reference)
        )
        tops.append(real.pooled.max())
    if 1 < len(generated) <= _MOST_SINGLE_CURVES:
        for curve in made.patches:
            axes.plot(made.x, curve, color=colours.generated, linewidth=0.6, alpha=0.45, zorder=4)
    axes.plot(
        made.x, made.pooled, color=colours.generated, linewidth=2.0, zorder=5, label=_counted(labels[0], generated)
    )
    laws = _draw_laws(axes, axis, made.x, fits, colours)
    _scale_histogram(axes, axis, max(tops), made, real, colours)
    _clipped_note(axes, made, real, colours)
    font = {"family": _font(), "size": 7.5}
    if laws:
        axes.add_artist(
            axes.legend(
                handles=laws, loc="lower left", bbox_to_anchor=(-0.015, 1.0), ncols=_MOST_FITS, frameon=False,
                handlelength=1.8, handletextpad=0.5, columnspacing=1.4, borderaxespad=0.2, prop=font,
                labelcolor=colours.muted,
            )
        )  # fmt: skip
    handles, names = axes.get_legend_handles_labels()
    sides = [(h, n) for h, n in zip(handles, names, strict=True) if h not in laws]
    handles, names = [h for h, _ in sides], [n for _, n in sides]
    axes.legend(
        handles[::-1], names[::-1], loc="lower left", bbox_to_anchor=(-0.015, 1 + extra / (0.695 * 2.75)), ncols=3,
        frameon=False, handlelength=1.3, handletextpad=0.5, columnspacing=1.4, borderaxespad=0.2, prop=font,
        labelcolor=colours.text,
    )  # fmt: skip
    return figure


def _draw_laws(axes: Any, axis: Axis, x: NDArray[np.float64], fits: Sequence[LawFit], colours: _Colours) -> list[Any]:
    """Draw the best laws as broken lines over the densities; return their lines."""
    lines = []
    for fit, style in zip(sorted(fits, key=lambda fit: fit.bic)[:_MOST_FITS], _FIT_STYLES, strict=False):
        amplitude = 10 ** (x / 20) if axis == "db" else x
        density = (1 - fit.zero_share) * law_pdf(fit, amplitude)
        if axis == "db":
            density = density * amplitude * np.log(10) / 20
        lines += axes.plot(
            x, density, color=colours.text, linewidth=1.1, linestyle=style, zorder=6, label=law_label(fit)
        )
    return lines


def law_label(fit: LawFit) -> str:
    """Return the name of a fitted law with its looks and texture, as in "G0 law: 4.1 looks, α = −2.9"."""
    title = f"{fit.title} law" if len(fit.title) < 3 else fit.title
    said = [f"{fit.looks:.1f} looks"] if fit.looks is not None and fit.name != "rayleigh" else []
    if fit.texture is not None and abs(fit.texture) > _NO_TEXTURE:
        said.append("no texture")
    elif fit.texture is not None:
        said.append(f"{'α' if fit.name == 'g0' else 'texture'} = {fit.texture:.1f}".replace("-", "−"))
    return f"{title}: {', '.join(said)}" if said else title


def spectrum_figure(
    generated: PatchSpectra,
    reference: PatchSpectra | None,
    *,
    labels: Sequence[str] = ("generated", "real"),
    dark: bool = False,
) -> Figure:
    """Return radial power spectra (left) and angular ones (right), in decibels.

    Left: power against the size of structure, from 2 pixels to 64. Right: power of structure of 2 to 16 pixels by
    direction, against its mean over directions: 0° is variation along a row, 90° along a column. The band is where
    single real patches lie, 5th to 95th percentile.

    Args:
        generated: spectra of the generated patches.
        reference: those of the real ones, or ``None``.
        labels: what to call the two sides.
        dark: for a dark page.

    Raises:
        InputError: no generated patch has a spectrum (all are constant, or there is none).
    """
    if not np.isfinite(generated.radial).any():
        raise InputError(
            "There is no generated patch with a spectrum to draw; give at least one that is not constant."
        )
    colours = _DARK if dark else _LIGHT
    figure, axes = _figure(2.75, (0.095, 0.165, 0.6, 0.86), colours)
    around = figure.add_axes((0.745, 0.165, 0.215, 0.695))
    _dress(around, colours)
    font: dict[str, Any] = {"family": _font(), "fontsize": 8, "color": colours.muted}
    real = reference if reference is not None and np.isfinite(reference.radial).any() else None
    seen = (FREQUENCIES >= 0.5 / _LARGEST) & np.isfinite(pooled(generated.radial))
    seen &= np.isfinite(pooled(real.radial)) if real is not None else True
    panels = (
        (axes, FREQUENCIES[seen], lambda spectra: spectra.radial[:, seen]),
        (around, np.append(ANGLES, 180), _by_direction),
    )
    for panel, x, of in panels:
        if real is not None:
            rows = of(real)
            if len(rows) > 1:
                known = np.isfinite(pooled(rows))
                low, high = np.nanpercentile(_decibels(rows[:, known]), [5, 95], axis=0)
                name = f"5–95 % of {labels[1]} patches"
                panel.fill_between(x[known], low, high, color=colours.band, linewidth=0, zorder=1, label=name)
            name = _counted(labels[1], real)
            panel.plot(x, _decibels(pooled(rows)), color=colours.real, linewidth=1.6, zorder=3, label=name)
        name = _counted(labels[0], generated)
        panel.plot(x, _decibels(pooled(of(generated))), color=colours.generated, linewidth=2.0, zorder=5, label=name)
        panel.grid(axis="y", color=colours.grid, linewidth=0.7, zorder=0)
    axes.set_xscale("log")
    axes.set_xlim(1 / _LARGEST, 0.5)
    axes.set_xticks([1 / size for size in _SIZES], [str(size) for size in _SIZES])
    axes.minorticks_off()
    axes.set_xlabel("size of structure (pixels a cycle)", labelpad=3, **font)
    axes.set_ylabel("power (dB)", labelpad=1, **font)
    around.set_xlim(0, 180)
    around.set_xticks([0, 90, 180], ["0°", "90°", "180°"])
    reach = max(1.5, *np.abs(around.get_ylim()))
    around.set_ylim(-reach, reach)
    around.set_yticks([tick for tick in MaxNLocator(5).tick_values(-reach, reach) if abs(tick) <= reach])
    around.set_xlabel("direction", labelpad=3, **font)
    around.set_ylabel("relative power (dB)", labelpad=1, **font)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], names[::-1], loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, frameon=False,
        handlelength=1.3, handletextpad=0.5, columnspacing=1.4, borderaxespad=0.2,
        prop={"family": _font(), "size": 7.5}, labelcolor=colours.text,
    )  # fmt: skip
    if real is not None:
        distance = float(spectrum_distance(pooled(generated.radial), pooled(real.radial)))
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom - 0.1 * (top - bottom), top)  # room for the note under the curves
        halo = [withStroke(linewidth=2.5, foreground=colours.halo)]
        axes.text(
            0.03, 0.025, f"apart by {distance:.1f} dB", transform=axes.transAxes, va="bottom", fontsize=7.5,
            family=_font(), color=colours.muted, path_effects=halo, zorder=7,
        )  # fmt: skip
    return figure


def _by_direction(spectra: PatchSpectra) -> NDArray[np.float64]:
    """Return ``(n, ANGULAR_BINS + 1)``: angular power over its mean; 180° is 0° again."""
    relative = spectra.angular / pooled(spectra.angular.T)[:, None]
    return np.hstack([relative, relative[:, :1]])


def _decibels(power: NDArray[np.float64]) -> NDArray[np.float64]:
    return 10 * np.log10(np.where(power > 0, power, np.nan))


def texture_figure(
    generated: PatchStatistics,
    reference: PatchStatistics,
    *,
    report: QualityReport | None = None,
    dark: bool = False,
) -> Figure:
    """Return a chart of the GLCM descriptors and ENL, one row each.

    All rows share one axis: distance from the real mean in standard deviations of single real patches. The bar is the
    real spread (5th to 95th percentile of patches), the large dot the mean of the generated patches, small dots the
    patches. Figures stand at the right; a difference beyond what real sets of as many patches differ by (the floor's
    95th percentile) is set in the generated colour and its dot is filled.

    Args:
        generated: statistics of the generated patches.
        reference: statistics of the real ones; of a single patch there is no spread, and the axis is in percent.
        report: what ``compare`` said of the two; computed here when it is not given.
        dark: for a dark page.

    Raises:
        InputError: one side has no patch.
    """
    report = report or compare(generated, reference, reference_name="real")
    colours = _DARK if dark else _LIGHT
    figure, axes = _figure(3.1, (0.185, 0.125, 0.645, 0.905), colours)
    made = np.column_stack([generated.glcm, generated.enl])
    real = np.column_stack([reference.glcm, reference.enl])
    spread_known = len(reference) > 1
    for row, (title, name) in enumerate(_ROWS):
        measure = report.measures[name]
        known = real[np.isfinite(real[:, row]), row]
        unit = float(known.std(ddof=1)) if len(known) > 1 else 0.0
        if not unit:  # one real patch, or all alike: a tenth of the mean stands for a standard deviation
            unit = 0.1 * abs(float(known.mean())) if len(known) and known.mean() else 1.0
        beyond = measure.within is False
        axes.text(
            -0.03, row, title, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=8,
            family=_font(), color=colours.text,
        )  # fmt: skip
        _figures_at_right(axes, row, measure.generated, measure.reference, measure.relative, beyond, colours)
        if measure.reference is None:
            continue
        if len(known) > 1:
            low, high = (np.percentile(known, [5, 95]) - measure.reference) / unit
            _bar(axes, row, max(low, -_REACH), min(high, _REACH), colours)
        axes.plot([0, 0], [row - 0.27, row + 0.27], color=colours.real, linewidth=1.6, zorder=3)
        values = (made[np.isfinite(made[:, row]), row] - measure.reference) / unit
        if len(values) > 1:
            inside = values[np.abs(values) <= _REACH]
            axes.scatter(
                inside, np.full(len(inside), row), s=9, color=colours.generated, alpha=0.45, linewidths=0, zorder=4
            )
        if measure.generated is not None:
            _dot(axes, row, (measure.generated - measure.reference) / unit, beyond, colours)
    axes.set_xlim(-_REACH - 0.25, _REACH + 0.25)
    axes.set_ylim(len(_ROWS) - 0.45, -0.55)
    axes.set_yticks([])
    axes.set_xticks([-4, -2, 0, 2, 4])
    marks = ("−4σ", "−2σ", "real", "+2σ", "+4σ") if spread_known else ("−40 %", "−20 %", "real", "+20 %", "+40 %")
    axes.set_xticklabels(marks)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=colours.grid, linewidth=0.7, zorder=0)
    _texture_key(axes, colours, spread_known, len(generated))
    return figure


def figure_png(figure: Figure, dpi: int = 200) -> bytes:
    """Return the figure as a PNG with a transparent background; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, transparent=True, metadata={"Software": None})
    return buffer.getvalue()


def _figure(height: float, box: tuple[float, float, float, float], colours: _Colours) -> tuple[Figure, Any]:
    """Return a figure of 4.8 inches width and its one axes in ``box`` (left, bottom, right, top)."""
    figure = Figure(figsize=(4.8, height))
    figure.patch.set_alpha(0)
    left, bottom, right, top = box
    axes = figure.add_axes((left, bottom, right - left, top - bottom))
    _dress(axes, colours)
    return figure, axes


def _dress(axes: Any, colours: _Colours) -> None:
    """Give axes the style of the page: no box, quiet ticks."""
    axes.patch.set_alpha(0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(colours.grid)
    axes.tick_params(
        colors=colours.muted, labelsize=7.5, labelfontfamily=_font(), length=2.5, width=0.7, color=colours.grid
    )
    axes.set_axisbelow(True)


def _counted(label: str, statistics: PatchStatistics | PatchSpectra) -> str:
    return f"{label} ({len(statistics)} patch{'es' if len(statistics) != 1 else ''})"


def _scale_histogram(
    axes: Any, axis: Axis, top: float, made: DensityCurves, real: DensityCurves | None, colours: _Colours
) -> None:
    font = {"family": _font(), "fontsize": 8, "color": colours.muted}
    if axis == "db":
        curves = [made.pooled] if real is None else [made.pooled, real.pooled]
        seen = np.max(curves, axis=0) > 0.002
        low = made.x[int(np.argmax(seen))] if seen.any() else _FLOOR_DB
        axes.set_xlim(max(_FLOOR_DB, 5 * np.floor(low / 5)), 0)
        axes.set_xlabel("amplitude (dB, 0 dB = mean + 3σ of the set)", labelpad=3, **font)
        axes.set_ylabel("density (per dB)", labelpad=3, **font)
    else:
        axes.set_xlim(0, 1)
        axes.set_xlabel("linear amplitude (1 = mean + 3σ of the set)", labelpad=3, **font)
        axes.set_ylabel("density, logarithmic" if axis == "log" else "density", labelpad=3, **font)
    if axis == "log":
        axes.set_yscale("log")
        axes.grid(axis="y", color=colours.grid, linewidth=0.7, zorder=0)
        axes.set_ylim(1e-3, 2 * top)
        axes.set_yticks(10.0 ** np.arange(-3, np.floor(np.log10(2 * top)) + 1))
        axes.minorticks_off()
    else:
        axes.set_ylim(0, 1.06 * top)
        axes.locator_params(axis="y", nbins=5)
    if axis == "log":  # numbers on a density axis say nothing that the shape does not; powers of ten do
        axes.tick_params(axis="y", pad=1)
        axes.yaxis.set_label_coords(-0.065, 0.5)
    else:
        axes.tick_params(axis="y", labelleft=False, length=0)


def _clipped_note(axes: Any, made: DensityCurves, real: DensityCurves | None, colours: _Colours) -> None:
    """Say how many pixels are clipped at 1, where that is worth saying."""
    sides = [(made.clipped, colours.generated)] + ([(real.clipped, colours.real)] if real is not None else [])
    if max(share for share, _ in sides) < 0.001:
        return
    font = {"family": _font(), "fontsize": 7.5, "ha": "right", "va": "top", "transform": axes.transAxes}
    axes.text(0.99, 0.99, "clipped at 1", color=colours.muted, **font)
    for line, (share, colour) in enumerate(sides, 1):
        axes.text(0.99, 0.99 - 0.085 * line, f"{100 * share:.1f} %", color=colour, **font)


def _bar(axes: Any, row: int, low: float, high: float, colours: _Colours) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (low, row - 0.17), high - low, 0.34, boxstyle="round,pad=0,rounding_size=0.12", mutation_aspect=1,
            facecolor=colours.band, edgecolor="none", zorder=2,
        )
    )  # fmt: skip


def _dot(axes: Any, row: int, z: float, beyond: bool, colours: _Colours) -> None:
    """Draw the generated mean: a filled dot beyond the floor, a ring within, an arrow where it leaves the axis."""
    marker = "o" if abs(z) <= _REACH else (">" if z > 0 else "<")
    axes.scatter(
        np.clip(z, -_REACH, _REACH), row, marker=marker, s=46, zorder=6, linewidths=1.6, clip_on=False,
        facecolor=colours.generated if beyond else colours.halo, edgecolor=colours.generated,
    )  # fmt: skip


def _figures_at_right(
    axes: Any,
    row: int,
    made: float | None,
    real: float | None,
    relative: float | None,
    beyond: bool,
    colours: _Colours,
) -> None:
    font = {"va": "center", "ha": "right", "fontsize": 8, "family": _font(), "transform": axes.get_yaxis_transform()}
    weight = "bold" if beyond else "normal"
    colour = colours.generated if beyond else colours.text
    axes.text(1.22, row, _plain(made), color=colour, weight=weight, **font)
    axes.text(1.46, row, _plain(real), color=colours.muted, **font)
    if relative is not None:
        percent = f"{100 * relative:+.0f} %".replace("-", "−")
        axes.text(1.73, row, percent, color=colour, weight=weight, **font)


def _texture_key(axes: Any, colours: _Colours, spread_known: bool, count: int) -> None:
    font = {"fontsize": 7.5, "family": _font(), "va": "bottom"}
    head = {**font, "ha": "right", "transform": axes.transAxes}
    axes.text(1.22, 1.015, "generated", color=colours.generated, **head)
    axes.text(1.46, 1.015, "real", color=colours.muted, **head)
    axes.text(1.73, 1.015, "difference", color=colours.muted, **head)
    what = "bar: 5–95 % of real patches" if spread_known else "one real patch: no spread"
    axes.text(0.5, 1.015, what, color=colours.muted, ha="center", transform=axes.transAxes, **font)
    # Means of several patches vary less than single ones: a dot may lie on the bar and still be beyond.
    beyond = "filled: beyond real patches" if count == 1 else f"filled: beyond real sets of {count}"
    legend = {**font, "va": "top", "transform": axes.transAxes, "color": colours.muted}
    axes.text(1.73, -0.055, beyond if spread_known else "", ha="right", **legend)


def _plain(value: float | None) -> str:
    """Return three significant digits without an exponent, or a dash."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"
