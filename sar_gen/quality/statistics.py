"""What is kept of a patch to be compared: its histogram, GLCM descriptors and ENL."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sar_gen.errors import InputError
from sar_gen.quality.distribution import BINS, histogram
from sar_gen.quality.speckle import equivalent_looks
from sar_gen.quality.texture import GLCM_NAMES, glcm_descriptors

MIN_SIDE = 16
"""Smallest side of a patch that is measured, in pixels."""


@dataclass(frozen=True)
class PatchStatistics:
    """One row a patch.

    Attributes:
        histograms: ``(n, BINS)`` uint32 counts of amplitude over equal bins of [0, 1].
        glcm: ``(n, 7)`` float64 in the order of ``GLCM_NAMES``; NaN where a descriptor is undefined.
        enl: ``(n,)`` float64; NaN where there is no homogeneous ground.
        groups: patches that share ground share a group, so that a floor never compares ground with itself.
    """

    histograms: NDArray[np.uint32]
    glcm: NDArray[np.float64]
    enl: NDArray[np.float64]
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.groups)
        if (self.histograms.shape, self.glcm.shape, self.enl.shape) != ((n, BINS), (n, len(GLCM_NAMES)), (n,)):
            raise ValueError(
                f"{n} groups, histograms {self.histograms.shape}, glcm {self.glcm.shape}, enl {self.enl.shape}: "
                f"expected ({n}, {BINS}), ({n}, {len(GLCM_NAMES)}), ({n},)"
            )

    def __len__(self) -> int:
        return len(self.groups)

    def subset(self, indices: Iterable[int]) -> PatchStatistics:
        """Return the rows ``indices``, in that order."""
        rows = np.fromiter(indices, dtype=np.int64)
        return PatchStatistics(
            self.histograms[rows], self.glcm[rows], self.enl[rows], tuple(self.groups[row] for row in rows)
        )

    @property
    def shares(self) -> NDArray[np.float64]:
        """Return ``(n, BINS)`` histograms as shares of each patch's pixels."""
        return self.histograms / self.histograms.sum(axis=1, keepdims=True)


def concat(parts: Sequence[PatchStatistics]) -> PatchStatistics:
    """Return the rows of several sets, one after the other; groups of one name are one group."""
    if not parts:
        return PatchStatistics(
            np.empty((0, BINS), dtype=np.uint32), np.empty((0, len(GLCM_NAMES))), np.empty(0), groups=()
        )
    return PatchStatistics(
        np.concatenate([part.histograms for part in parts]),
        np.concatenate([part.glcm for part in parts]),
        np.concatenate([part.enl for part in parts]),
        tuple(group for part in parts for group in part.groups),
    )


def patch_statistics(amplitudes: Iterable[ArrayLike], groups: Sequence[str] | None = None) -> PatchStatistics:
    """Return the statistics of patches, one row each (about 15 ms a patch of 256 x 256).

    Args:
        amplitudes: ``(height, width)`` arrays of the studio's amplitude in [0, 1]; sizes may differ.
        groups: one name a patch; ``None`` gives every patch its own, named by a hash of its pixels, so that copies of
            one patch are one group.

    Raises:
        InputError: a patch is not two-dimensional, under 16 pixels a side, or not amplitude in [0, 1].
    """
    histograms: list[NDArray[np.uint32]] = []
    glcm: list[NDArray[np.float64]] = []
    enl: list[float] = []
    names: list[str] = []
    for index, amplitude in enumerate(amplitudes):
        array = _checked(amplitude, index)
        histograms.append(histogram(array))
        glcm.append(glcm_descriptors(array))
        enl.append(equivalent_looks(array).looks)
        names.append(hashlib.sha256(array.tobytes()).hexdigest()[:16])
    if groups is not None:
        if len(groups) != len(names):
            raise ValueError(f"{len(names)} patches but {len(groups)} groups")
        names = [str(group) for group in groups]
    if not names:
        return concat([])
    return PatchStatistics(np.stack(histograms), np.stack(glcm), np.array(enl, dtype=np.float64), tuple(names))


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
