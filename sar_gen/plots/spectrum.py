"""Power spectra of generated and real patches, over the size of structure and over direction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sar_gen.errors import InputError
from sar_gen.plots.style import (
    add_axes,
    colours_of,
    decibels,
    draw_sides,
    key_above,
    label_font,
    names_of,
    new_figure,
    note,
)
from sar_gen.quality.spectrum import ANGLES, FREQUENCIES, decibel_distance, pooled, spectrum_distance
from sar_gen.quality.statistics import PatchStatistics

_LARGEST = 64  # pixels a cycle: there are too few larger structures in a patch for a spectrum of them
_SIZES = (64, 32, 16, 8, 4, 2)


def spectrum_figure(
    generated: PatchStatistics,
    reference: PatchStatistics | None,
    *,
    labels: Sequence[str] = ("generated", "real"),
    dark: bool = False,
) -> Figure:
    """Return radial power spectra (left) and angular ones (right), in decibels.

    Left: power against the size of structure, from 2 pixels to 64. Right: power of structure of 2 to 16 pixels by
    direction, each patch's against its own mean over directions: 0° is variation along a row, 90° along a column. The
    band is where single real patches lie, 5th to 95th percentile. The distances are those of the measures ``spectrum``
    and ``spectrum_direction``.

    Args:
        generated: statistics of the generated patches.
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
    colours = colours_of(dark)
    figure, axes = new_figure(2.75, (0.095, 0.165, 0.6, 0.86), colours)
    around = add_axes(figure, (0.745, 0.165, 0.96, 0.86), colours)
    real = reference if reference is not None and np.isfinite(reference.radial).any() else None
    names = names_of(generated, real, labels)
    seen = (FREQUENCIES >= 0.5 / _LARGEST) & np.isfinite(pooled(generated.radial))
    seen &= np.isfinite(pooled(real.radial)) if real is not None else True
    panels = (
        (axes, FREQUENCIES[seen], generated.radial[:, seen], None if real is None else real.radial[:, seen]),
        (around, np.append(ANGLES, 180), _relative(generated), None if real is None else _relative(real)),
    )
    for panel, x, made, true in panels:
        draw_sides(
            panel,
            x,
            decibels(pooled(made)),
            None if true is None else decibels(pooled(true)),
            None if true is None else decibels(true),
            names,
            colours,
        )
        panel.grid(axis="y", color=colours.grid, linewidth=0.7, zorder=0)
    style = label_font(colours)
    axes.set_xscale("log")
    axes.set_xlim(1 / _LARGEST, 0.5)
    axes.set_xticks([1 / size for size in _SIZES], [str(size) for size in _SIZES])
    axes.minorticks_off()
    axes.set_xlabel("size of structure (pixels a cycle)", labelpad=3, **style)
    axes.set_ylabel("power (dB)", labelpad=1, **style)
    around.set_xlim(0, 180)
    around.set_xticks([0, 90, 180], ["0°", "90°", "180°"])
    reach = max(1.5, *np.abs(around.get_ylim()))
    around.set_xlabel("direction", labelpad=3, **style)
    around.set_ylabel("relative power (dB)", labelpad=1, **style)
    key_above(axes, colours)
    if real is None:
        around.set_ylim(-reach, reach)
    else:
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom - 0.1 * (top - bottom), top)  # room for the notes under the curves
        around.set_ylim(-1.25 * reach, reach)
        apart = float(spectrum_distance(pooled(generated.radial), pooled(real.radial)))
        note(axes, 0.03, 0.025, f"apart by {apart:.1f} dB", colours)
        turned = float(decibel_distance(pooled(_relative(generated)[:, :-1]), pooled(_relative(real)[:, :-1])))
        note(around, 0.06, 0.025, f"apart by {turned:.1f} dB", colours)
    bottom, top = around.get_ylim()
    around.set_yticks([tick for tick in MaxNLocator(5).tick_values(-reach, reach) if abs(tick) <= reach])
    around.set_ylim(bottom, top)
    return figure


def _relative(statistics: PatchStatistics) -> NDArray[np.float64]:
    """Return ``(n, ANGULAR_BINS + 1)``: angular power of each patch over its own mean; 180° is 0° again."""
    angular = statistics.angular.astype(np.float64)
    relative = angular / angular.mean(axis=1, keepdims=True)
    return np.hstack([relative, relative[:, :1]])
