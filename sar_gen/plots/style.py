"""What all figures share: colours, fonts, axes, the key above them, and the real spread under a generated line."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from sar_gen.quality.statistics import PatchStatistics

WIDTH = 4.8  # inches; 480 pixels of a page at 100 dpi
_DRAWING = threading.Lock()


@dataclass(frozen=True)
class Colours:
    """Colours of a figure; ``halo`` is the page's own."""

    text: str
    muted: str
    grid: str
    real: str
    band: str
    generated: str
    halo: str


LIGHT = Colours("#1b2026", "#5c6770", "#dde1e4", "#4c5761", "#d0d6db", "#c8500a", "#ffffff")
DARK = Colours("#d5dade", "#8d98a2", "#2c333a", "#c5cbd0", "#424d57", "#ff9d4d", "#1b2025")


def colours_of(dark: bool) -> Colours:
    """Return the colours for a dark or a light page."""
    return DARK if dark else LIGHT


@cache
def font() -> str:
    """Return the first of the page's fonts that this machine has; DejaVu Sans comes with matplotlib."""
    installed = set(font_manager.get_font_names())
    wanted = ("Inter", "Segoe UI", "Helvetica Neue", "Roboto", "Noto Sans", "Liberation Sans", "Arial")
    return next((name for name in wanted if name in installed), "DejaVu Sans")


def label_font(colours: Colours) -> dict[str, Any]:
    """Return how axes are labelled."""
    return {"family": font(), "fontsize": 8, "color": colours.muted}


def new_figure(height: float, box: tuple[float, float, float, float], colours: Colours) -> tuple[Figure, Any]:
    """Return a transparent figure of ``WIDTH`` and its one axes in ``box`` (left, bottom, right, top)."""
    figure = Figure(figsize=(WIDTH, height))
    figure.patch.set_alpha(0)
    return figure, add_axes(figure, box, colours)


def add_axes(figure: Figure, box: tuple[float, float, float, float], colours: Colours) -> Any:
    """Return new axes in ``box`` (left, bottom, right, top) in the style of the page: no frame, quiet ticks."""
    left, bottom, right, top = box
    axes = figure.add_axes((left, bottom, right - left, top - bottom))
    axes.patch.set_alpha(0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(colours.grid)
    axes.tick_params(
        colors=colours.muted, labelsize=7.5, labelfontfamily=font(), length=2.5, width=0.7, color=colours.grid
    )
    axes.set_axisbelow(True)
    return axes


@dataclass(frozen=True)
class Names:
    """What the key calls the band, the real line and the generated line."""

    band: str
    real: str
    generated: str


def names_of(generated: PatchStatistics, reference: PatchStatistics | None, labels: Sequence[str]) -> Names:
    """Return the names of both sides with their numbers of patches."""
    return Names(
        f"5–95 % of {labels[1]} patches",
        "" if reference is None else counted(labels[1], reference),
        counted(labels[0], generated),
    )


def counted(label: str, statistics: PatchStatistics) -> str:
    """Return a side with its number of patches."""
    return f"{label} ({len(statistics)} patch{'es' if len(statistics) != 1 else ''})"


def draw_sides(
    axes: Any,
    x: NDArray[Any],
    generated: NDArray[Any],
    real: NDArray[Any] | None,
    patches: NDArray[Any] | None,
    names: Names,
    colours: Colours,
    marker: str = "",
) -> None:
    """Draw the generated line over the real one and the band of real patches.

    Args:
        axes: matplotlib axes.
        x: ``(k,)``.
        generated: ``(k,)`` of the generated patches together.
        real: ``(k,)`` of the real ones, or ``None``.
        patches: ``(n, k)`` of single real patches; the band is their 5th to 95th percentile, NaN left out. No band
            for fewer than two.
        names: for the key.
        colours: of the page.
        marker: of the points, where there are few of them.
    """
    if patches is not None and len(patches) > 1:
        known = np.isfinite(patches).any(axis=0)
        if known.any():
            low, high = np.nanpercentile(patches[:, known], [5, 95], axis=0)
            axes.fill_between(x[known], low, high, color=colours.band, linewidth=0, zorder=1, label=names.band)
    if real is not None:
        axes.plot(
            x, real, color=colours.real, linewidth=1.6, zorder=3, label=names.real, marker=marker, markersize=3.2
        )
    axes.plot(
        x, generated, color=colours.generated, linewidth=2.0, zorder=5, label=names.generated, marker=marker,
        markersize=4.2,
    )  # fmt: skip


def key_above(axes: Any, colours: Colours, anchor: tuple[float, float] = (-0.02, 1.0)) -> None:
    """Put the key above the axes, the generated side first."""
    handles, names = axes.get_legend_handles_labels()
    draw_key(axes, handles[::-1], names[::-1], anchor, 3, colours.text)


def draw_key(
    axes: Any,
    handles: Sequence[Any],
    names: Sequence[str],
    anchor: tuple[float, float],
    columns: int,
    colour: str,
    size: float = 7.5,
) -> Any:
    """Draw a key without a frame whose lower left corner is at ``anchor``, in shares of the axes."""
    return axes.legend(
        handles, names, loc="lower left", bbox_to_anchor=anchor, ncols=columns, frameon=False, handlelength=1.8,
        handletextpad=0.5, columnspacing=1.2, borderaxespad=0.2, prop={"family": font(), "size": size},
        labelcolor=colour,
    )  # fmt: skip


def note(axes: Any, x: float, y: float, text: str, colours: Colours, **options: Any) -> None:
    """Write a short remark into the axes, legible over lines; ``x`` and ``y`` in shares of the axes."""
    halo = [withStroke(linewidth=2.5, foreground=colours.halo)]
    style = {"va": "bottom", "fontsize": 7.5, "family": font(), "color": colours.muted, **options}
    axes.text(x, y, text, transform=axes.transAxes, path_effects=halo, zorder=7, **style)


def decibels(power: NDArray[Any]) -> NDArray[np.float64]:
    """Return 10 log10 of power; NaN where there is none."""
    return 10 * np.log10(np.where(power > 0, power, np.nan))


def figure_png(figure: Figure, dpi: int = 200) -> bytes:
    """Return the figure as a PNG with a transparent background; the same figure gives the same bytes.

    May be called from several threads: figures share matplotlib's font caches, so one is drawn at a time.
    """
    buffer = io.BytesIO()
    with _DRAWING:
        figure.savefig(buffer, format="png", dpi=dpi, transparent=True, metadata={"Software": None})
    return buffer.getvalue()
