"""Texture: descriptors of the grey-level co-occurrence matrix (Haralick, Shanmugam, Dinstein 1973)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

GLCM_NAMES = ("contrast", "dissimilarity", "homogeneity", "asm", "energy", "correlation", "entropy")
"""Order of the descriptors in every GLCM array."""
LEVELS = 32
ANGLES = (0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
DIRECTIONS = ("along rows", "falling diagonal", "along columns", "rising diagonal")
"""What ``ANGLES`` are in scikit-image: the neighbour is to the right, right and below, below, left and below."""
DISTANCES = (1, 2, 4, 8)
MAP_NAMES = ("contrast", "dissimilarity", "homogeneity", "correlation")
"""Descriptors that have local maps: means over pixel pairs, which sliding sums give without any matrix."""
MAP_WINDOW = 15
_SKIMAGE_NAMES = {"asm": "ASM"}


def quantised_levels(amplitude: ArrayLike, levels: int = LEVELS) -> NDArray[np.uint8]:
    """Return amplitude in [0, 1] as grey levels ``floor(amplitude * levels)``, with 1 in the last.

    The range is fixed: stretching each patch to its own range would erase what is compared.
    """
    return np.minimum((np.asarray(amplitude) * levels).astype(np.int64), levels - 1).astype(np.uint8)


def glcm_descriptors(amplitude: ArrayLike) -> NDArray[np.float64]:
    """Return the ``GLCM_NAMES`` of one patch, float64 ``(7,)``.

    32 levels over the fixed range [0, 1], neighbours at distance 1, symmetric and normalised, each descriptor averaged
    over the four directions. Contrast is in squared levels, dissimilarity in levels, entropy in nats; energy is the
    square root of ASM in each direction. Correlation of a patch on one grey level is undefined and NaN (scikit-image
    says 1 there).

    Args:
        amplitude: ``(height, width)`` in [0, 1], at least two pixels a side.
    """
    return glcm_by_direction(amplitude, (1,))[0].mean(axis=0)


def glcm_by_direction(
    amplitude: ArrayLike, distances: tuple[int, ...] = DISTANCES, levels: int = LEVELS
) -> NDArray[np.float64]:
    """Return the ``GLCM_NAMES`` at several distances and in each of the four ``DIRECTIONS``.

    Side-looking images differ by direction: the resolution in range and azimuth, shadows and rows of fields. Which of
    rows and columns is range is for metadata to say. Otherwise as ``glcm_descriptors``, whose values are the means
    over directions at distance 1. On diagonals a distance is Euclidean and rounded (4 is 3 rows and 3 columns), as in
    scikit-image.

    Args:
        amplitude: ``(height, width)`` in [0, 1], more pixels a side than the largest distance.
        distances: in pixels.
        levels: grey levels over [0, 1], at most 256.

    Returns:
        ``(len(distances), 4, 7)`` float64; correlation is NaN where the patch is on one grey level.

    Raises:
        ValueError: a distance is not under the sides of the patch.
    """
    # Imported here: scikit-image costs half a second, which the page does not have at its start.
    from skimage.feature import graycomatrix, graycoprops

    grey = quantised_levels(amplitude, levels)
    if not all(1 <= distance < min(grey.shape) for distance in distances):
        raise ValueError(f"distances {distances} in a patch of {grey.shape}: each is at least 1 and under both sides")
    matrix = graycomatrix(grey, distances, ANGLES, levels=levels, symmetric=True, normed=True)
    values = np.stack([graycoprops(matrix, _SKIMAGE_NAMES.get(name, name)) for name in GLCM_NAMES], axis=-1)
    if grey.min() == grey.max():
        values[..., GLCM_NAMES.index("correlation")] = np.nan
    return values.astype(np.float64)


def glcm_maps(
    amplitude: ArrayLike,
    size: int = MAP_WINDOW,
    distance: int = 1,
    directions: tuple[str, ...] = DIRECTIONS,
    levels: int = LEVELS,
) -> NDArray[np.float64]:
    """Return maps of the ``MAP_NAMES`` of the GLCM of the window about each pixel, averaged over ``directions``.

    Equal to scikit-image on each window (pairs that lie wholly inside it, symmetric, normalised) without building a
    matrix for it: the descriptors are means over pairs, so one sliding sum each over the whole patch does. ASM and
    entropy need the matrix itself and have no map. About 25 ms for 256 x 256 pixels and four directions.

    Args:
        amplitude: ``(height, width)`` in [0, 1].
        size: side of the windows, odd and larger than ``distance``, in pixels.
        distance: between neighbours, in pixels; rounded on diagonals as in ``glcm_by_direction``.
        directions: some of ``DIRECTIONS``; one alone gives the map of that direction.
        levels: grey levels over [0, 1], at most 256.

    Returns:
        ``(4, height, width)`` float64 in the order of ``MAP_NAMES``; NaN within ``size // 2`` of the border, and the
        correlation also where a window is on one grey level.

    Raises:
        ValueError: ``size`` is even or not larger than ``distance``, or a direction is unknown.
    """
    if size % 2 == 0 or not 1 <= distance < size:
        raise ValueError(f"size {size}, distance {distance}: an odd window larger than the distance is needed")
    grey = quantised_levels(amplitude, levels).astype(np.int64)
    height, width = grey.shape
    maps = np.full((len(MAP_NAMES), height, width), np.nan)
    if min(height, width) < size:
        return maps
    shape = (height - size + 1, width - size + 1)
    total = np.zeros((len(MAP_NAMES), *shape))
    closeness = 1 / (1 + np.arange(levels) ** 2)
    for direction in directions:
        angle = ANGLES[DIRECTIONS.index(direction)]
        down, right = round(distance * np.sin(angle)), round(distance * np.cos(angle))
        left = max(0, -right)
        one = grey[: height - down, left : width - max(0, right)]
        other = grey[down:, left + right : width - max(0, right) + right]
        window = (size - down, size - abs(right))
        pairs = window[0] * window[1]
        difference = np.abs(one - other)
        total[0] += _sliding_sums(difference**2, window) / pairs
        total[1] += _sliding_sums(difference, window) / pairs
        total[2] += _sliding_sums(closeness[difference], window) / pairs
        # A symmetric matrix counts each pair both ways: both of its means are the mean over all members.
        first = _sliding_sums(one + other, window)
        second = _sliding_sums(one**2 + other**2, window)
        product = _sliding_sums(one * other, window)
        variance = 2 * pairs * second - first**2  # times 4 pairs², in whole numbers: zero is zero
        covariance = 4 * pairs * product - first**2
        # Pairs on one level in a window that has others: scikit-image counts them as correlated, and so do the means.
        total[3] += np.divide(covariance, variance, out=np.ones(shape), where=variance > 0)
    total[3][_one_level(grey, size)] = np.nan
    margin = size // 2
    maps[:, margin : height - margin, margin : width - margin] = total / len(directions)
    return maps


def _one_level(grey: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """Return which windows hold a single grey level."""
    pixels = size * size
    first, second = _sliding_sums(grey, (size, size)), _sliding_sums(grey**2, (size, size))
    return pixels * second == first**2


def _sliding_sums(values: NDArray[Any], window: tuple[int, int]) -> NDArray[Any]:
    """Return the sums over every window of (height, width), by a summed-area table; exact for whole numbers."""
    down, right = window
    table = np.pad(values.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    return table[down:, right:] - table[:-down, right:] - table[down:, :-right] + table[:-down, :-right]
