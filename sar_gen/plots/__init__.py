"""Figures and pictures that set generated patches beside real ones.

Figures are matplotlib ``Figure`` objects, never pyplot state: sized for a panel 480 pixels wide at twice its
resolution (4.8 inches at 200 dpi), transparent, for a light or a dark page. Real is neutral grey, generated is orange:
a pair that stays apart for every common colour blindness, and in print by lightness. Pictures are uint8 arrays.
"""

from sar_gen.plots.histogram import AXES, Axis, DensityCurves, density_curves, histogram_figure, law_label
from sar_gen.plots.maps import (
    MAPS,
    looks_view,
    map_figure,
    map_legend,
    ratio_view,
    texture_maps_view,
    windows_view,
)
from sar_gen.plots.speckle import speckle_figure
from sar_gen.plots.spectrum import spectrum_figure
from sar_gen.plots.style import figure_png
from sar_gen.plots.texture import direction_figure, texture_figure

__all__ = [
    "AXES",
    "MAPS",
    "Axis",
    "DensityCurves",
    "density_curves",
    "direction_figure",
    "figure_png",
    "histogram_figure",
    "law_label",
    "looks_view",
    "map_figure",
    "map_legend",
    "ratio_view",
    "speckle_figure",
    "spectrum_figure",
    "texture_figure",
    "texture_maps_view",
    "windows_view",
]
