"""GLCM descriptors of generated and real patches: their means, and by direction and distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from numpy.typing import NDArray

from sar_gen.errors import InputError
from sar_gen.plots.style import (
    Colours,
    add_axes,
    colours_of,
    draw_sides,
    font,
    key_above,
    label_font,
    names_of,
    new_figure,
)
from sar_gen.quality.report import QualityReport, compare, descriptors_of
from sar_gen.quality.spectrum import pooled
from sar_gen.quality.statistics import PatchStatistics
from sar_gen.quality.texture import ANGLES, DISTANCES, GLCM_NAMES

_ROWS = (
    ("Contrast", "glcm_contrast"),
    ("Dissimilarity", "glcm_dissimilarity"),
    ("Homogeneity", "glcm_homogeneity"),
    ("ASM", "glcm_asm"),
    ("Energy", "glcm_energy"),
    ("Correlation", "glcm_correlation"),
    ("Entropy", "glcm_entropy"),
    ("ENL (looks)", "enl"),
    ("Speckle corr.", "speckle_correlation"),
)  # in the order of quality.report.DESCRIPTORS
_REACH = 4.0  # the texture axis, in standard deviations of real patches
_ARROWS = ("→", "↘", "↓", "↙")  # from a pixel to its neighbour, in the order of quality.texture.DIRECTIONS
_DIRECTION_TITLES = ("along rows", "diagonal", "along columns", "diagonal")
_BY_DIRECTION = (("contrast", "contrast (levels²)"), ("correlation", "correlation"))


def texture_figure(
    generated: PatchStatistics,
    reference: PatchStatistics,
    *,
    report: QualityReport | None = None,
    labels: Sequence[str] = ("generated", "real"),
    dark: bool = False,
) -> Figure:
    """Return a chart of the GLCM descriptors, ENL and speckle correlation, one row each.

    All rows share one axis: distance from the real mean in standard deviations of single real patches. The bar is the
    real spread (5th to 95th percentile of patches), the large dot the mean of the generated patches, small dots the
    patches. Figures stand at the right; a difference beyond what real sets of as many patches differ by (the floor's
    95th percentile) is set in the generated colour and its dot is filled.

    Args:
        generated: statistics of the generated patches.
        reference: statistics of the real ones; of a single patch there is no spread, and the axis is in percent.
        report: what ``compare`` said of the two; computed here when it is not given.
        labels: what to call the two sides.
        dark: for a dark page.

    Raises:
        InputError: one side has no patch.
    """
    report = report or compare(generated, reference, reference_name="real")
    colours = colours_of(dark)
    figure, axes = new_figure(3.2, (0.185, 0.12, 0.645, 0.908), colours)
    made, real = descriptors_of(generated), descriptors_of(reference)
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
            family=font(), color=colours.text,
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
    _texture_key(axes, colours, spread_known, len(generated), labels)
    return figure


def direction_figure(
    generated: PatchStatistics,
    reference: PatchStatistics | None,
    *,
    labels: Sequence[str] = ("generated", "real"),
    dark: bool = False,
) -> Figure:
    """Return GLCM contrast (above) and correlation (below) against distance, a column for each direction.

    Side-looking images differ by direction; which of rows and columns is range is for metadata to say. The band is
    where single real patches lie, 5th to 95th percentile. Distances along diagonals are drawn as they are on the
    ground: one pixel down and one across are 1.4 pixels.

    Args:
        generated: statistics of the generated patches.
        reference: those of the real ones, or ``None``.
        labels: what to call the two sides.
        dark: for a dark page.

    Raises:
        InputError: there is no generated patch.
    """
    if not len(generated):
        raise InputError("There is no generated patch to draw; give at least one.")
    colours = colours_of(dark)
    left, right, gap = 0.085, 0.985, 0.025
    width = (right - left - 3 * gap) / 4
    boxes = [(left + i * (width + gap), left + i * (width + gap) + width) for i in range(4)]
    figure, first = new_figure(3.3, (boxes[0][0], 0.515, boxes[0][1], 0.8), colours)
    upper = [first, *(add_axes(figure, (a, 0.515, b, 0.8), colours) for a, b in boxes[1:])]
    lower = [add_axes(figure, (a, 0.135, b, 0.42), colours) for a, b in boxes]
    names = names_of(generated, reference, labels)
    real = reference if reference is not None and len(reference) else None
    for row, (descriptor, title) in zip((upper, lower), _BY_DIRECTION, strict=True):
        for direction, axes in enumerate(row):
            x, kept = _steps(direction)
            made = _of_direction(generated, descriptor, direction)[:, kept]
            true = None if real is None else _of_direction(real, descriptor, direction)[:, kept]
            draw_sides(axes, x, pooled(made), None if true is None else pooled(true), true, names, colours, "o")
            axes.set_xscale("log")
            axes.set_xlim(0.85, 10)
            axes.set_xticks(DISTANCES, [str(distance) for distance in DISTANCES])
            axes.minorticks_off()
            axes.grid(axis="y", color=colours.grid, linewidth=0.7, zorder=0)
        limits = [axes.get_ylim() for axes in row]
        low, high = min(bottom for bottom, _ in limits), max(top for _, top in limits)
        for axes in row:
            axes.set_ylim(min(low, 0), high)
            axes.locator_params(axis="y", nbins=4)
            axes.tick_params(axis="y", labelleft=axes is row[0])
        row[0].set_title(title, fontsize=8, family=font(), color=colours.muted, loc="left", pad=3)
    for axes, arrow, name in zip(upper, _ARROWS, _DIRECTION_TITLES, strict=True):
        style = {"family": [font(), "DejaVu Sans"], "fontsize": 8, "color": colours.text, "transform": axes.transAxes}
        axes.text(0.5, 1.2, f"{arrow} {name}", ha="center", va="bottom", **style)
    for axes in upper:
        axes.tick_params(axis="x", labelbottom=False)
    figure.text(
        (left + right) / 2, 0.012, "distance of neighbours (pixels)", ha="center", va="bottom", **label_font(colours)
    )
    key_above(first, colours, (-0.1, 1.36))
    return figure


def _steps(direction: int) -> tuple[NDArray[np.float64], list[int]]:
    """Return how far neighbours really are in a direction, and which of ``DISTANCES`` are no repetition there."""
    angle = ANGLES[direction]
    steps = [(round(d * np.sin(angle)), round(d * np.cos(angle))) for d in DISTANCES]
    kept = [i for i, step in enumerate(steps) if step not in steps[:i]]
    return np.array([np.hypot(*steps[i]) for i in kept]), kept


def _of_direction(statistics: PatchStatistics, descriptor: str, direction: int) -> NDArray[np.float32]:
    """Return ``(n, 4)``: a descriptor of each patch over distance."""
    return statistics.directions[:, :, direction, GLCM_NAMES.index(descriptor)]


def _bar(axes: Any, row: int, low: float, high: float, colours: Colours) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (low, row - 0.17), high - low, 0.34, boxstyle="round,pad=0,rounding_size=0.12", mutation_aspect=1,
            facecolor=colours.band, edgecolor="none", zorder=2,
        )
    )  # fmt: skip


def _dot(axes: Any, row: int, z: float, beyond: bool, colours: Colours) -> None:
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
    colours: Colours,
) -> None:
    style = {"va": "center", "ha": "right", "fontsize": 8, "family": font(), "transform": axes.get_yaxis_transform()}
    weight = "bold" if beyond else "normal"
    colour = colours.generated if beyond else colours.text
    axes.text(1.22, row, _plain(made), color=colour, weight=weight, **style)
    axes.text(1.46, row, _plain(real), color=colours.muted, **style)
    if relative is not None:
        axes.text(1.73, row, _difference(relative), color=colour, weight=weight, **style)


def _texture_key(axes: Any, colours: Colours, spread_known: bool, count: int, labels: Sequence[str]) -> None:
    style = {"fontsize": 7.5, "family": font(), "va": "bottom"}
    head = {**style, "ha": "right", "transform": axes.transAxes}
    axes.text(1.22, 1.015, labels[0], color=colours.generated, **head)
    axes.text(1.46, 1.015, labels[1], color=colours.muted, **head)
    axes.text(1.73, 1.015, "difference", color=colours.muted, **head)
    what = "bar: 5–95 % of real patches" if spread_known else "one real patch: no spread"
    axes.text(0.5, 1.015, what, color=colours.muted, ha="center", transform=axes.transAxes, **style)
    # Means of several patches vary less than single ones: a dot may lie on the bar and still be beyond.
    beyond = "filled: beyond real patches" if count == 1 else f"filled: beyond real sets of {count}"
    legend = {**style, "va": "top", "transform": axes.transAxes, "color": colours.muted}
    axes.text(1.73, -0.055, beyond if spread_known else "", ha="right", **legend)


def _plain(value: float | None) -> str:
    """Return three significant digits without an exponent, or a dash."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def _difference(relative: float) -> str:
    """Return a signed difference in percent; beyond ten times the real value only that."""
    if abs(relative) >= 10:
        return "> 10 ×"
    return f"{100 * relative:+.0f} %".replace("-", "−")
