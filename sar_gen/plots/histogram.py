"""Amplitude densities of generated and real patches, with fitted laws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sar_gen.errors import InputError
from sar_gen.plots.style import (
    Colours,
    colours_of,
    draw_key,
    draw_sides,
    font,
    label_font,
    names_of,
    new_figure,
)
from sar_gen.quality.distribution import BINS
from sar_gen.quality.laws import LawFit, law_pdf
from sar_gen.quality.statistics import PatchStatistics

Axis = Literal["linear", "log", "db"]
AXES: tuple[Axis, ...] = ("linear", "log", "db")

_FLOOR_DB = -40.0
_DB_STEP = 0.25
_SMOOTHING = 8  # histogram bins, 0.008 of amplitude: wider than the levels of 8-bit decibels near 1
_DB_SMOOTHING = 2  # steps of a quarter decibel
_MOST_SINGLE_CURVES = 8
_NO_TEXTURE = 100.0  # a shape beyond it is called no texture: the speckle explains the pixels
_FIT_STYLES = ((0, (4, 1.6)), (0, (1, 1.4)), (0, (5, 1.5, 1, 1.5)))
_HEIGHT, _BOTTOM, _AXES = 2.65, 0.454, 1.911  # inches
_KEY_LINE = 0.18  # inches
_LONGEST_KEY = 72  # letters of two laws beside each other


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
        fits: laws fitted to the generated patches (``quality.laws``); the best three at most, by BIC, are drawn as
            broken lines with their names. A law is that of the ground before clipping, over all pixels but those at 0.
        dark: for a dark page.

    Raises:
        InputError: the axis is unknown, or there is no generated patch.
    """
    if axis not in AXES:
        raise InputError(f"The histogram axis {axis!r} is unknown; choose one of {', '.join(AXES)}.")
    if not len(generated):
        raise InputError("There is no generated patch to draw; give at least one.")
    colours = colours_of(dark)
    fits = sorted(fits, key=lambda fit: fit.bic)[: len(_FIT_STYLES)]
    laws_named = [f"{law_label(fit)} · KS {fit.ks:.3f}" for fit in fits]
    # Laws take lines of the key of their own; the axes keep their height.
    half = -(-len(fits) // 2)  # a key is filled column by column
    widths = [max(map(len, part), default=0) for part in (laws_named[:half], laws_named[half:])]
    columns = 2 if sum(widths) <= _LONGEST_KEY else 1
    extra = _KEY_LINE * -(-len(fits) // columns)
    height = _HEIGHT + extra
    figure, axes = new_figure(height, (0.09, _BOTTOM / height, 0.975, (_BOTTOM + _AXES) / height), colours)
    made = density_curves(generated, axis)
    real = density_curves(reference, axis) if reference is not None and len(reference) else None
    if 1 < len(generated) <= _MOST_SINGLE_CURVES:
        for curve in made.patches:
            axes.plot(made.x, curve, color=colours.generated, linewidth=0.6, alpha=0.45, zorder=4)
    draw_sides(
        axes,
        made.x,
        made.pooled,
        None if real is None else real.pooled,
        None if real is None else real.patches,
        names_of(generated, reference, labels),
        colours,
    )
    handles, names = axes.get_legend_handles_labels()
    laws = _draw_laws(axes, axis, made.x, fits, laws_named, colours)
    _scale_histogram(axes, axis, _top(made, real), made, real, colours)
    _clipped_note(axes, made, real, colours)
    if laws:
        axes.add_artist(draw_key(axes, laws, laws_named, (-0.015, 1.0), columns, colours.muted))
    draw_key(axes, handles[::-1], names[::-1], (-0.015, 1 + extra / _AXES), 3, colours.text)
    return figure


def _top(made: DensityCurves, real: DensityCurves | None) -> float:
    """Return the largest density to be shown; of the band only what is not out of all proportion."""
    if real is None:
        return float(made.pooled.max())
    top = max(made.pooled.max(), real.pooled.max())
    if len(real.patches) > 1:
        top = max(top, min(np.percentile(real.patches, 95, axis=0).max(), 1.7 * top))
    return float(top)


def _draw_laws(
    axes: Any,
    axis: Axis,
    x: NDArray[np.float64],
    fits: Sequence[LawFit],
    names: Sequence[str],
    colours: Colours,
) -> list[Any]:
    """Draw laws as broken lines over the densities; return their lines."""
    lines = []
    for fit, name, style in zip(fits, names, _FIT_STYLES, strict=False):
        amplitude = 10 ** (x / 20) if axis == "db" else x
        density = (1 - fit.zero_share) * law_pdf(fit, amplitude)
        if axis == "db":
            density = density * amplitude * np.log(10) / 20
        lines += axes.plot(
            x,
            density,
            color=colours.text,
            linewidth=1.1,
            linestyle=style,
            zorder=6,
            label=name,
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


def _scale_histogram(
    axes: Any, axis: Axis, top: float, made: DensityCurves, real: DensityCurves | None, colours: Colours
) -> None:
    style = label_font(colours)
    if axis == "db":
        curves = [made.pooled] if real is None else [made.pooled, real.pooled]
        seen = np.max(curves, axis=0) > 0.002
        low = made.x[int(np.argmax(seen))] if seen.any() else _FLOOR_DB
        axes.set_xlim(max(_FLOOR_DB, 5 * np.floor(low / 5)), 0)
        axes.set_xlabel("amplitude (dB, 0 dB = mean + 3σ of the set)", labelpad=3, **style)
        axes.set_ylabel("density (per dB)", labelpad=3, **style)
    else:
        axes.set_xlim(0, 1)
        axes.set_xlabel("linear amplitude (1 = mean + 3σ of the set)", labelpad=3, **style)
        axes.set_ylabel("density, logarithmic" if axis == "log" else "density", labelpad=3, **style)
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
        axes.yaxis.set_label_coords(-0.072, 0.5)
    else:
        axes.tick_params(axis="y", labelleft=False, length=0)


def _clipped_note(axes: Any, made: DensityCurves, real: DensityCurves | None, colours: Colours) -> None:
    """Say how many pixels are clipped at 1, where that is worth saying."""
    sides = [(made.clipped, colours.generated)] + ([(real.clipped, colours.real)] if real is not None else [])
    if max(share for share, _ in sides) < 0.001:
        return
    style = {"family": font(), "fontsize": 7.5, "ha": "right", "va": "top", "transform": axes.transAxes}
    axes.text(0.99, 0.99, "clipped at 1", color=colours.muted, **style)
    for line, (share, colour) in enumerate(sides, 1):
        axes.text(0.99, 0.99 - 0.085 * line, f"{100 * share:.1f} %", color=colour, **style)
