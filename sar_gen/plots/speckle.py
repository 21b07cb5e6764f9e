"""Autocorrelation of speckle in generated and real patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from sar_gen.errors import InputError
from sar_gen.plots.style import (
    add_axes,
    colours_of,
    draw_sides,
    font,
    key_above,
    label_font,
    names_of,
    new_figure,
    note,
)
from sar_gen.quality.spectrum import pooled
from sar_gen.quality.statistics import LAGS, PatchStatistics

_MOST_SINGLE_CURVES = 8
_DIRECTIONS = ("along rows", "along columns")


def speckle_figure(
    generated: PatchStatistics,
    reference: PatchStatistics | None,
    *,
    labels: Sequence[str] = ("generated", "real"),
    dark: bool = False,
) -> Figure:
    """Return the autocorrelation of speckle along rows (left) and along columns (right), for lags of 1 to 4 pixels.

    Both sides are means over patches with homogeneous ground. The band is where single real patches lie, 5th to 95th
    percentile; thin lines are single generated patches (up to eight). Independent pixels have a correlation of 0.

    Args:
        generated: statistics of the generated patches.
        reference: those of the real ones, or ``None``.
        labels: what to call the two sides.
        dark: for a dark page.

    Raises:
        InputError: no generated patch has homogeneous ground to take the speckle from.
    """
    if not np.isfinite(generated.speckle).any():
        raise InputError(
            "There is no homogeneous ground in the generated patches, so their speckle cannot be drawn; look at the "
            "amplitudes and textures."
        )
    colours = colours_of(dark)
    figure, left = new_figure(2.75, (0.115, 0.165, 0.535, 0.8), colours)
    right = add_axes(figure, (0.57, 0.165, 0.99, 0.8), colours)
    real = reference if reference is not None and np.isfinite(reference.speckle).any() else None
    names = names_of(generated, real, labels)
    lags = np.arange(1, LAGS + 1)
    lowest, style = 0.0, label_font(colours)
    for direction, axes in enumerate((left, right)):
        made = generated.speckle[:, direction]
        true = None if real is None else real.speckle[:, direction]
        if 1 < len(made) <= _MOST_SINGLE_CURVES:
            for curve in made:
                axes.plot(lags, curve, color=colours.generated, linewidth=0.6, alpha=0.45, zorder=4)
        draw_sides(axes, lags, pooled(made), None if true is None else pooled(true), true, names, colours, "o")
        lowest = min(lowest, axes.get_ylim()[0])
        axes.set_title(_DIRECTIONS[direction], fontsize=8, family=font(), color=colours.text, loc="left", pad=3)
        axes.grid(axis="y", color=colours.grid, linewidth=0.7, zorder=0)
        axes.axhline(0, color=colours.muted, linewidth=0.7, zorder=2)
        axes.set_xticks(lags)
        axes.set_xlim(0.8, LAGS + 0.2)
        axes.set_xlabel("lag (pixels)", labelpad=3, **style)
        said = f"lag 1: {pooled(made)[0]:.2f}"
        if true is not None:
            said += f" against {pooled(true)[0]:.2f}"
        note(axes, 0.97, 0.97, said, colours, ha="right", va="top")
    for axes in (left, right):
        axes.set_ylim(lowest, 1.02)
        axes.set_yticks([tick for tick in (-0.5, 0, 0.25, 0.5, 0.75, 1) if tick >= lowest])
    right.tick_params(axis="y", labelleft=False)
    left.set_ylabel("correlation of intensity", labelpad=2, **style)
    key_above(left, colours, (-0.08, 1.09))
    return figure
