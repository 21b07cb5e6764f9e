"""Power spectra of patches: over spatial frequency (radial) and over direction (angular).

The field is amplitude divided by the patch's mean: brightness is for the histogram to judge, while speckle, whose
strength goes with the mean, keeps its power. Its (weighted) mean is subtracted, it is multiplied by a Hann window
(edges of a patch are no edges of the ground), and power is divided by the window's energy: independent pixels of
variance s² have the power s² at every frequency, and without a window the mean power is the variance (Parseval).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RADIAL_BINS = 64
"""Equal bins of frequency up to the Nyquist frequency of 0.5 cycles a pixel, whatever the size of a patch."""
ANGULAR_BINS = 36
"""Equal bins of direction over 180°."""
ANGULAR_RANGE = (1 / 16, 0.5)
"""Frequencies whose power goes into the angular spectrum: structure of 2 to 16 pixels; the few below have no angle."""
DISTANCE_RANGE = (1 / 32, 0.5)
"""Frequencies over which spectra are compared: structure of 2 to 32 pixels, of which every patch holds many."""
FREQUENCIES: NDArray[Any] = (np.arange(RADIAL_BINS) + 0.5) * (0.5 / RADIAL_BINS)
"""Middles of the radial bins, in cycles a pixel."""
ANGLES: NDArray[Any] = np.arange(ANGULAR_BINS) * (180 / ANGULAR_BINS)
"""Middles of the angular bins, in degrees: 0° is variation along a row, 45° towards the lower right, 90° along a
column, 135° towards the lower left."""


@dataclass(frozen=True)
class PatchSpectra:
    """One row a patch.

    Attributes:
        radial: ``(n, RADIAL_BINS)`` mean power in rings about ``FREQUENCIES``; NaN in rings without a frequency (small
            patches) and for patches without variation. Frequencies beyond 0.5 (diagonal ones) are left out.
        angular: ``(n, ANGULAR_BINS)`` mean power in directions about ``ANGLES``, over ``ANGULAR_RANGE``.
    """

    radial: NDArray[np.float64]
    angular: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.radial)


def power_spectrum(field: ArrayLike, window: bool = True) -> NDArray[np.float64]:
    """Return the power at non-negative column frequencies, as ``numpy.fft.rfft2`` orders them.

    Args:
        field: ``(height, width)`` real values; their (weighted) mean is subtracted.
        window: whether to multiply by a separable Hann window first.

    Returns:
        ``(height, width // 2 + 1)`` float64, in squared units of the field: |F|² / sum of squared weights.
    """
    from scipy.fft import rfft2

    values = np.asarray(field, dtype=np.float64)
    weights = _hann(*values.shape) if window else np.ones(values.shape)
    values = weights * (values - np.average(values, weights=weights))
    return np.abs(rfft2(values)) ** 2 / np.square(weights).sum()


def patch_spectra(amplitudes: Iterable[ArrayLike]) -> PatchSpectra:
    """Return the radial and angular spectra of patches, one row each (about 3 ms a patch of 256 x 256).

    Args:
        amplitudes: ``(height, width)`` arrays of amplitude; sizes may differ. The unit of power is the square of the
            patch's mean amplitude.
    """
    rows = [_spectra(np.asarray(amplitude, dtype=np.float64)) for amplitude in amplitudes]
    if not rows:
        return PatchSpectra(np.empty((0, RADIAL_BINS)), np.empty((0, ANGULAR_BINS)))
    return PatchSpectra(np.stack([radial for radial, _ in rows]), np.stack([angular for _, angular in rows]))


def pooled(rows: ArrayLike) -> NDArray[np.float64]:
    """Return the mean spectrum of the rows, NaN left out: ``(bins,)``, in power (not in decibels)."""
    rows = np.atleast_2d(np.asarray(rows, dtype=np.float64))
    known = np.isfinite(rows)
    count = known.sum(axis=0)
    total = np.where(known, rows, 0).sum(axis=0)
    return np.divide(total, count, out=np.full(rows.shape[1], np.nan), where=count > 0)


def spectrum_distance(
    p: ArrayLike, q: ArrayLike, frequencies: tuple[float, float] = DISTANCE_RANGE
) -> NDArray[np.float64]:
    """Return the root mean square difference of two radial spectra in decibels (10 log10 of power).

    Args:
        p: ``(..., RADIAL_BINS)`` power; leading axes broadcast, so that hundreds of pairs are one call.
        q: the same.
        frequencies: lowest and highest frequency that count, in cycles a pixel. Each ring counts as much as any other;
            those that either side lacks (NaN, or no power) are left out.

    Returns:
        ``(...)`` dB; NaN where no ring is left.
    """
    low, high = frequencies
    return decibel_distance(p, q, (low <= FREQUENCIES) & (high >= FREQUENCIES))


def decibel_distance(p: ArrayLike, q: ArrayLike, bins: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Return the root mean square difference of two rows of power in decibels (10 log10 of power).

    Args:
        p: ``(..., n)`` power; leading axes broadcast.
        q: the same.
        bins: ``(n,)`` which bins count; those that either side lacks (NaN, or no power) are left out in any case.

    Returns:
        ``(...)`` dB; NaN where no bin is left.
    """
    p, q = np.broadcast_arrays(np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64))
    known = (p > 0) & (q > 0)
    if bins is not None:
        known &= bins
    ratio = np.divide(p, q, out=np.ones(p.shape), where=known)
    squares = np.square(10 * np.log10(ratio)).sum(axis=-1)
    count = known.sum(axis=-1)
    return np.sqrt(np.divide(squares, count, out=np.full(np.shape(squares), np.nan), where=count > 0))


def _spectra(amplitude: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if amplitude.min() == amplitude.max():  # what is left of a constant patch is rounding
        return np.full(RADIAL_BINS, np.nan), np.full(ANGULAR_BINS, np.nan)
    power = power_spectrum(amplitude / amplitude.mean()).ravel()
    bins = _bins(*amplitude.shape)
    return bins.radial(power), bins.angular(power)


@dataclass(frozen=True)
class _Bins:
    """Which frequencies of a half-plane go into which bin, and how often: columns but the first stand for two."""

    weight: NDArray[np.float64]
    ring: NDArray[np.intp]
    sector: NDArray[np.intp]
    ring_weight: NDArray[np.float64]
    sector_weight: NDArray[np.float64]

    def radial(self, power: NDArray[np.float64]) -> NDArray[np.float64]:
        return _means(power * self.weight, self.ring, self.ring_weight)

    def angular(self, power: NDArray[np.float64]) -> NDArray[np.float64]:
        return _means(power * self.weight, self.sector, self.sector_weight)


def _means(weighted: NDArray[np.float64], index: NDArray[np.intp], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.bincount(index, weights=weighted, minlength=len(weight) + 1)[:-1]  # the last bin is for the rest
    return np.divide(total, weight, out=np.full(len(weight), np.nan), where=weight > 0)


@lru_cache(maxsize=4)
def _bins(height: int, width: int) -> _Bins:
    down, right = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    frequency = np.hypot(down, right).ravel()
    angle = np.degrees(np.arctan2(down, right)).ravel() % 180
    weight = np.full((height, width // 2 + 1), 2.0)
    weight[:, 0] = 1
    if width % 2 == 0:
        weight[:, -1] = 1
    ring = np.minimum(frequency * (2 * RADIAL_BINS), RADIAL_BINS - 1).astype(np.intp)
    ring[(frequency == 0) | (frequency > 0.5)] = RADIAL_BINS
    sector = np.rint(angle * (ANGULAR_BINS / 180)).astype(np.intp) % ANGULAR_BINS
    low, high = ANGULAR_RANGE
    sector[(frequency < low) | (frequency > high)] = ANGULAR_BINS
    counts = [
        np.bincount(index, weights=weight.ravel(), minlength=n + 1)[:-1].astype(np.float64)
        for index, n in ((ring, RADIAL_BINS), (sector, ANGULAR_BINS))
    ]
    return _Bins(weight.ravel(), ring, sector, *counts)


@lru_cache(maxsize=4)
def _hann(height: int, width: int) -> NDArray[np.float64]:
    """Return the separable Hann window whose first and last weights are not 0: no pixel is thrown away."""
    rows, columns = (np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in (height, width))
    return np.outer(rows, columns)
