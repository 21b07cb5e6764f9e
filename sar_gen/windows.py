"""Where the windows of a scene larger than the checkpoint's size lie; without torch: the page counts them too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

OVERLAP = 0.25
"""Share of a window that it overlaps the next one by, at least."""
COUNTED = 32
"""Steps that windows are counted over."""


@dataclass(frozen=True)
class Window:
    """A part of the latent scene."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def margins(height: int, width: int, native: int) -> tuple[int, int]:
    """Return how many rows and columns windows may hang over each border; 0 along a side that one window covers."""
    return tuple(0 if side <= native else min(native // 2, side - 1) for side in (height, width))  # type: ignore[return-value]


def grid(height: int, width: int, native: int, draw: np.random.Generator) -> list[Window]:
    """Lay windows of one size over a scene and its margins, evenly, at a place that ``draw`` decides.

    Args:
        height: of the scene, latent pixels.
        width: of the scene.
        native: side of a window; a shorter scene has shorter windows.
        draw: decides.

    Returns:
        Windows in rows and columns of the scene with its ``margins``; together they cover the scene.
    """
    rows, columns = (
        _places(side, native, over, draw)
        for side, over in zip((height, width), margins(height, width, native), strict=True)
    )
    return [Window(top, left, min(height, native), min(width, native)) for top in rows for left in columns]


def _places(side: int, native: int, over: int, draw: np.random.Generator) -> list[int]:
    """Return where windows begin along one side: from within the first margin to within the last one."""
    if not over:
        return [0]
    first, last = (int(value) for value in draw.integers(0, over, 2, endpoint=True))
    last += over + side - native
    count = -(-(last - first) // max(1, int(native * (1 - OVERLAP)))) + 1
    return sorted({round(place) for place in np.linspace(first, last, count)})


def mean_count(height: int, width: int, native: int) -> int:
    """Return how many windows a step has on average, of ``COUNTED`` steps."""
    return round(float(np.mean([len(grid(height, width, native, np.random.default_rng(i))) for i in range(COUNTED)])))
