"""Pictures of where on a patch a measure comes from: homogeneous windows, local looks, local texture, ratio image.

Colours run over fixed ranges, the same for every patch, so that pictures can be set beside each other; ``map_legend``
draws the scale. Values beyond a range take the colour of its end; pixels without a value are grey.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from sar_gen.amplitude import view
from sar_gen.errors import InputError
from sar_gen.plots.style import WIDTH, colours_of, figure_png, font
from sar_gen.quality.speckle import LooksEstimate, looks_map
from sar_gen.quality.texture import MAP_NAMES, glcm_maps

OUTLINE = (63, 182, 200)
"""Colour of window outlines, the accent of the page: no grey, and neither side's colour."""
UNKNOWN = (128, 128, 128)


@dataclass(frozen=True)
class MapScale:
    """How a map becomes colours.

    Attributes:
        title: what the map shows, with its unit.
        low: value at the dark end.
        high: value at the bright end.
        ticks: values to name beside the scale.
        logarithmic: whether equal ratios are equal steps of colour.
        colours: name of a matplotlib colour map that is even in lightness and safe for colour blindness.
    """

    title: str
    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False
    colours: str = "viridis"

    def shares(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return where values lie between the ends, 0 to 1; NaN stays."""
        low, high = self.low, self.high
        if self.logarithmic:
            values, low, high = np.log(np.maximum(values, low)), np.log(low), np.log(high)
        return np.clip((values - low) / (high - low), 0, 1)


MAPS: dict[str, MapScale] = {
    "looks": MapScale("local looks (ENL, windows of 7 × 7)", 0.5, 32, (0.5, 1, 2, 4, 8, 16, 32), True),
    "contrast": MapScale("local GLCM contrast (levels²)", 0.5, 128, (0.5, 2, 8, 32, 128), True),
    "dissimilarity": MapScale("local GLCM dissimilarity (levels)", 0, 6, (0, 1.5, 3, 4.5, 6)),
    "homogeneity": MapScale("local GLCM homogeneity", 0, 1, (0, 0.25, 0.5, 0.75, 1)),
    "correlation": MapScale("local GLCM correlation", 0, 1, (0, 0.25, 0.5, 0.75, 1)),
    "ratio": MapScale("intensity over despeckled intensity", 0.25, 4, (0.25, 0.5, 1, 2, 4), True),
}
"""The scale of every map."""


def windows_view(
    amplitude: ArrayLike,
    estimate: LooksEstimate,
    remap: str = "linear",
    data_mean: float | None = None,
    enlarge: int = 1,
) -> NDArray[np.uint8]:
    """Return the picture with an outline around the homogeneous ground that the looks were taken from.

    Windows that touch share one outline. The line is one pixel of the picture wide, inside the windows.

    Args:
        amplitude: ``(height, width)`` in [0, 1].
        estimate: from ``quality.speckle.equivalent_looks`` of the same patch.
        remap: a name from ``amplitude.VIEWS``.
        data_mean: as in ``amplitude.view``.
        enlarge: times that the picture is repeated in both directions, for a thinner line.

    Returns:
        ``(height * enlarge, width * enlarge, 3)`` uint8 RGB.
    """
    grey = view(amplitude, remap, data_mean)
    inside = np.zeros(grey.shape, dtype=bool)
    for row, column in estimate.windows:
        inside[row : row + estimate.size, column : column + estimate.size] = True
    grey = grey.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    inside = inside.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    surrounded = inside.copy()
    for axis in (0, 1):
        for step in (1, -1):
            surrounded &= _shifted(inside, step, axis)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    rgb[inside & ~surrounded] = OUTLINE
    return rgb


def _shifted(mask: NDArray[np.bool_], step: int, axis: int) -> NDArray[np.bool_]:
    """Return the mask moved by one pixel; what comes in from beyond the border is outside."""
    moved = np.roll(mask, step, axis)
    np.moveaxis(moved, axis, 0)[0 if step > 0 else -1] = False
    return moved


def looks_view(amplitude: ArrayLike) -> NDArray[np.uint8]:
    """Return the map of local looks, 0.5 to 32 on a logarithmic scale, as ``(height, width, 3)`` uint8 RGB.

    Low on edges, texture and targets, high where speckle has been smoothed away. See ``quality.speckle.looks_map``.
    """
    return _coloured(looks_map(amplitude), MAPS["looks"])


def texture_maps_view(amplitude: ArrayLike, name: str = "contrast") -> NDArray[np.uint8]:
    """Return the map of a local GLCM descriptor as ``(height, width, 3)`` uint8 RGB.

    Args:
        amplitude: ``(height, width)`` in [0, 1].
        name: one of ``quality.texture.MAP_NAMES``.

    Raises:
        InputError: there is no such map.
    """
    if name not in MAP_NAMES:
        raise InputError(f"There is no map of {name!r}; choose one of {', '.join(MAP_NAMES)}.")
    return _coloured(glcm_maps(amplitude)[MAP_NAMES.index(name)], MAPS[name])


def ratio_view(ratio: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a ratio image (``quality.speckle.ratio_statistics(...).ratio``) as ``(height, width, 3)`` uint8 RGB.

    Nothing of the scene should be seen in it: what is seen was taken for speckle, or is not speckled.
    """
    return _coloured(ratio, MAPS["ratio"])


def _coloured(values: NDArray[Any], scale: MapScale) -> NDArray[np.uint8]:
    rgb = colormaps[scale.colours](scale.shares(values), bytes=True)[..., :3]
    return np.where(np.isfinite(values)[..., None], rgb, np.array(UNKNOWN, dtype=np.uint8))


def map_figure(name: str, *, dark: bool = False, width: float = WIDTH) -> Figure:
    """Return the scale of a map, to stand under it.

    Args:
        name: one of ``MAPS``.
        dark: for a dark page.
        width: in inches, hundreds of pixels of a page.

    Raises:
        InputError: there is no such map.
    """
    if name not in MAPS:
        raise InputError(f"There is no map of {name!r}; choose one of {', '.join(MAPS)}.")
    scale, colours = MAPS[name], colours_of(dark)
    figure = Figure(figsize=(width, 0.42))
    figure.patch.set_alpha(0)
    margin = 0.22 / width  # for the first and the last number
    axes = figure.add_axes((margin, 0.5, 1 - 2 * margin, 0.18))
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=scale.colours, aspect="auto", extent=(0, 1, 0, 1))
    axes.set_yticks([])
    beyond = ("≤ ", "≥ ") if scale.logarithmic else ("", "")
    names = [f"{tick:g}" for tick in scale.ticks]
    names = [beyond[0] + names[0], *names[1:-1], beyond[1] + names[-1]]
    axes.set_xticks(scale.shares(np.array(scale.ticks, dtype=np.float64)), names)
    axes.tick_params(
        colors=colours.muted, labelsize=7.5, labelfontfamily=font(), length=2, pad=1.5, color=colours.grid
    )
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(scale.title, fontsize=8, family=font(), color=colours.text, loc="left", pad=2.5)
    return figure


@cache
def map_legend(name: str, *, dark: bool = False, width: float = WIDTH) -> bytes:
    """Return ``map_figure`` as a PNG."""
    return figure_png(map_figure(name, dark=dark, width=width))
