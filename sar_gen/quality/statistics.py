"""What is kept of a patch to be compared: histogram, GLCM descriptors, looks, speckle correlation, power spectra."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sar_gen.errors import InputError
from sar_gen.quality.blocks import block_edges
from sar_gen.quality.distribution import BINS, histogram
from sar_gen.quality.speckle import equivalent_looks, speckle_correlation
from sar_gen.quality.spectrum import ANGULAR_BINS, RADIAL_BINS, patch_spectra
from sar_gen.quality.texture import DIRECTIONS, DISTANCES, GLCM_NAMES, glcm_by_direction

MIN_SIDE = 32
"""Smallest side of a patch that is measured, in pixels."""
LAGS = 4
"""Longest lag of the speckle correlation that is kept, in pixels."""
_ROWS: dict[str, tuple[tuple[int, ...], type]] = {
    "histograms": ((BINS,), np.uint32),
    "directions": ((len(DISTANCES), len(DIRECTIONS), len(GLCM_NAMES)), np.float32),
    "enl": ((), np.float64),
    "speckle": ((2, LAGS), np.float32),
    "radial": ((RADIAL_BINS,), np.float32),
    "angular": ((ANGULAR_BINS,), np.float32),
    "blocks": ((), np.float32),
}
"""Shape and type of one row of each array."""
ARRAYS = tuple(_ROWS)
"""Names of the arrays of ``PatchStatistics``."""


@dataclass(frozen=True, eq=False)
class PatchStatistics:
    """One row a patch; about 5 kB each. Two sets are equal when they are the same object.

    Attributes:
        histograms: ``(n, BINS)`` uint32 counts of amplitude over equal bins of [0, 1].
        directions: ``(n, 4, 4, 7)`` float32: ``GLCM_NAMES`` at each of ``DISTANCES`` in each of ``DIRECTIONS``; NaN
            where a descriptor is undefined.
        enl: ``(n,)`` float64; NaN where there is no homogeneous ground.
        speckle: ``(n, 2, LAGS)`` float32 autocorrelation of speckle along rows and along columns, at 1 to ``LAGS``
            pixels; NaN where there is no homogeneous ground.
        radial: ``(n, RADIAL_BINS)`` float32 power over frequency (``quality.spectrum``).
        angular: ``(n, ANGULAR_BINS)`` float32 power over direction.
        blocks: ``(n,)`` float32, how far the grid of 8 x 8 pixels stands out, in dB (``quality.blocks``).
        groups: patches that share ground share a group, so that a floor never compares ground with itself.
    """

    histograms: NDArray[np.uint32]
    directions: NDArray[np.float32]
    enl: NDArray[np.float64]
    speckle: NDArray[np.float32]
    radial: NDArray[np.float32]
    angular: NDArray[np.float32]
    blocks: NDArray[np.float32]
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, (row, _) in _ROWS.items():
            shape = getattr(self, name).shape
            if shape != (len(self.groups), *row):
                raise ValueError(f"{name} has the shape {shape}: expected {(len(self.groups), *row)}")

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name."""
        return {name: getattr(self, name) for name in ARRAYS}

    @property
    def glcm(self) -> NDArray[np.float64]:
        """Return ``(n, 7)``: ``GLCM_NAMES`` at distance 1, mean of the four directions."""
        return self.directions[:, DISTANCES.index(1)].mean(axis=1, dtype=np.float64)

    @property
    def shares(self) -> NDArray[np.float64]:
        """Return ``(n, BINS)`` histograms as shares of each patch's pixels."""
        return self.histograms / self.histograms.sum(axis=1, keepdims=True)

    def subset(self, indices: Iterable[int]) -> PatchStatistics:
        """Return the rows ``indices``, in that order."""
        rows = np.fromiter(indices, dtype=np.int64)
        return PatchStatistics(
            **{name: array[rows] for name, array in self.arrays.items()},
            groups=tuple(self.groups[row] for row in rows),
        )


def concat(parts: Sequence[PatchStatistics]) -> PatchStatistics:
    """Return the rows of several sets, one after the other; groups of one name are one group."""
    if not parts:
        return PatchStatistics(**{name: np.empty((0, *row), dtype) for name, (row, dtype) in _ROWS.items()}, groups=())
    return PatchStatistics(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS},
        groups=tuple(group for part in parts for group in part.groups),
    )


def patch_statistics(amplitudes: Iterable[ArrayLike], groups: Sequence[str] | None = None) -> PatchStatistics:
    """Return the statistics of patches, one row each (about 20 ms a patch of 256 x 256).

    Args:
        amplitudes: ``(height, width)`` arrays of the studio's amplitude in [0, 1]; sizes may differ.
        groups: one name a patch; ``None`` gives every patch its own, named by a hash of its pixels, so that copies of
            one patch are one group.

    Raises:
        InputError: a patch is not two-dimensional, under 32 pixels a side, or not amplitude in [0, 1].
    """
    rows = [_one(_checked(amplitude, index)) for index, amplitude in enumerate(amplitudes)]
    if groups is None:
        return concat(rows)
    if len(groups) != len(rows):
        raise ValueError(f"{len(rows)} patches but {len(groups)} groups")
    every = concat(rows)
    return PatchStatistics(**every.arrays, groups=tuple(str(group) for group in groups))


def _one(amplitude: NDArray[Any]) -> PatchStatistics:
    """Return the single row of a patch."""
    estimate = equivalent_looks(amplitude)
    correlation = speckle_correlation(amplitude, LAGS, estimate=estimate)
    spectra = patch_spectra([amplitude])
    values = {
        "histograms": histogram(amplitude),
        "directions": glcm_by_direction(amplitude),
        "enl": estimate.looks,
        "speckle": [correlation.along_rows[1:], correlation.along_columns[1:]],
        "radial": spectra.radial[0],
        "angular": spectra.angular[0],
        "blocks": block_edges(amplitude),
    }
    return PatchStatistics(
        **{name: np.asarray(values[name], dtype=dtype)[None] for name, (_, dtype) in _ROWS.items()},
        groups=(hashlib.sha256(amplitude.tobytes()).hexdigest()[:16],),
    )


def _checked(amplitude: ArrayLike, index: int) -> NDArray[Any]:
    array = np.ascontiguousarray(amplitude)
    name = f"Patch {index + 1}"
    if array.ndim != 2 or min(array.shape) < MIN_SIDE:
        raise InputError(
            f"{name} has the shape {array.shape}; a patch is (height, width) with at least {MIN_SIDE} pixels a side."
        )
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{name} holds {array.dtype} values; measures need float amplitude in [0, 1].")
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise InputError(f"{name} has {bad} of {array.size} pixels that are not a number; fill or crop them first.")
    if array.min() < 0 or array.max() > 1:
        raise InputError(
            f"{name} has values from {array.min():.4g} to {array.max():.4g}; bring it to the studio's amplitude in "
            "[0, 1] first (linear amplitude divided by the set's mean + 3 standard deviations)."
        )
    return array
