"""Distances between amplitude distributions, computed on histograms.

Histograms are counts over ``BINS`` equal bins of [0, 1]; the last axis is the bin axis and leading axes broadcast, so
that hundreds of pairs are one call. Every function takes counts or shares; each row is normalised first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS = 1024
"""Histogram bins over [0, 1] for Wasserstein-1 and KS: amplitude resolution 1/1024, finer than an 8-bit patch."""
COARSE_BINS = 64
"""Bins for KL and JS: they depend on the number of bins, so it is fixed and stated beside the value."""
KL_EPSILON = 1e-6
"""Share added to every one of the ``COARSE_BINS`` bins before KL, which is infinite on an empty bin otherwise."""


def histogram(amplitude: ArrayLike, bins: int = BINS) -> NDArray[np.uint32]:
    """Return ``(bins,)`` counts of amplitude over equal bins of [0, 1]; 1 falls in the last bin."""
    values = np.asarray(amplitude).ravel()
    index = np.minimum((values * bins).astype(np.int64), bins - 1)
    return np.bincount(index, minlength=bins).astype(np.uint32)


def rebin(counts: ArrayLike, bins: int = COARSE_BINS) -> NDArray[Any]:
    """Return counts summed into ``bins`` equal bins; ``bins`` divides the number given."""
    counts = np.asarray(counts)
    return counts.reshape(*counts.shape[:-1], bins, -1).sum(axis=-1, dtype=np.float64)


def _shares(counts: ArrayLike) -> NDArray[np.float64]:
    counts = np.asarray(counts, dtype=np.float64)
    return counts / counts.sum(axis=-1, keepdims=True)


def wasserstein1(p: ArrayLike, q: ArrayLike) -> NDArray[Any]:
    """Return the Wasserstein-1 distance, in units of amplitude: the area between the cumulative histograms.

    Exact for amplitude on the grid of the bins; for float amplitude the binning moves it by 1/BINS at most.
    """
    return np.abs(np.cumsum(_shares(p) - _shares(q), axis=-1)).mean(axis=-1)


def ks_statistic(p: ArrayLike, q: ArrayLike) -> NDArray[Any]:
    """Return the two-sample Kolmogorov-Smirnov statistic: the largest gap between the cumulative histograms.

    There is no p-value: it presumes independent pixels, and speckle is correlated.
    """
    return np.abs(np.cumsum(_shares(p) - _shares(q), axis=-1)).max(axis=-1)


def js_divergence(p: ArrayLike, q: ArrayLike) -> NDArray[Any]:
    """Return the Jensen-Shannon divergence in bits, from 0 (equal) to 1 (disjoint), on ``COARSE_BINS`` bins.

    This is the divergence; ``scipy.spatial.distance.jensenshannon`` returns its square root.
    """
    p, q = _shares(rebin(p)), _shares(rebin(q))
    middle = (p + q) / 2
    return (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / (2 * np.log(2))


def kl_divergence(real: ArrayLike, generated: ArrayLike, epsilon: float = KL_EPSILON) -> NDArray[Any]:
    """Return KL(real || generated) in nats on ``COARSE_BINS`` bins: what is lost when generated stands for real.

    Large where real amplitudes are missing among the generated ones. ``epsilon`` is added to the share of every bin on
    both sides, which are then normalised again, so that an empty bin costs much but not infinitely.
    """
    return _relative_entropy(_shares(_shares(rebin(real)) + epsilon), _shares(_shares(rebin(generated)) + epsilon))


def _relative_entropy(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[Any]:
    p, q = np.broadcast_arrays(p, q)
    ratio = np.divide(p, q, out=np.ones(p.shape), where=p > 0)
    return (p * np.log(ratio)).sum(axis=-1)
